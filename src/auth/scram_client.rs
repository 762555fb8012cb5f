//! The client's side of SCRAM-SHA-256: pgsteer logs in to a server, with a password or with keys it has learned.
//!
//! Invariant: a login counts only when the server's signature was right, so a server that does not know the user's verifier
//! is never trusted; the work a server can ask for is capped. Each state is consumed by its one message.
//! Must not know: frames, where the secret and the nonce come from.

use std::fmt;

use subtle::ConstantTimeEq as _;

use super::attributes::{Attributes, check_nonce, text};
use super::crypto::{
    Key, client_key, decode_base64, decode_key, encode_base64, normalized_password, salted_password,
    server_key, sha256, signature, xor_into,
};
use super::verifier::parse_iterations;
use super::{ClientKey, Error};

/// No channel binding, no authorization identity.
const GS2_HEADER: &str = "n,,";

/// What a client can prove itself with.
#[derive(Clone, Copy)]
pub enum Secret<'a> {
    /// A password.
    Password(&'a str),
    /// Keys that were derived before; they fit only while the server's verifier keeps its salt and iterations.
    Keys {
        /// As learned from a client's exchange: see [`ClientKey`].
        client_key: [u8; 32],
        /// As the verifier holds it.
        server_key: [u8; 32],
    },
}

impl<'a> Secret<'a> {
    /// The keys of a client that has proved itself against a verifier with this server key.
    pub fn keys(client_key: &ClientKey, server_key: &[u8; 32]) -> Self {
        Self::Keys { client_key: client_key.0, server_key: *server_key }
    }

    /// Whether it is the same secret. In constant time where it is one of keys.
    pub fn is_same(&self, other: &Secret<'_>) -> bool {
        match (self, other) {
            (
                Self::Keys { client_key, server_key },
                Secret::Keys { client_key: other_client, server_key: other_server },
            ) => (client_key.ct_eq(other_client) & server_key.ct_eq(other_server)).into(),
            (Self::Password(one), Secret::Password(other)) => one.as_bytes().ct_eq(other.as_bytes()).into(),
            _ => false,
        }
    }
}

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Knows what to say first, and waits for the server's first message.
pub struct ScramClient<'a> {
    secret: Secret<'a>,
    nonce: String,
}

impl<'a> ScramClient<'a> {
    /// Begins an exchange. `nonce` must be fresh and random: see [`nonce_from`](super::nonce_from).
    pub fn new(secret: Secret<'a>, nonce: &str) -> Self {
        Self { secret, nonce: nonce.to_owned() }
    }

    /// client-first-message. The name is empty, as with libpq: the server takes it from the startup packet.
    pub fn client_first(&self) -> Vec<u8> {
        format!("{GS2_HEADER}{}", self.first_bare()).into_bytes()
    }

    /// Takes server-first-message; gives client-final-message.
    pub fn on_server_first(self, message: &[u8]) -> Result<(Vec<u8>, WaitingServerFinal), Error> {
        let server_first = text(message)?;
        let mut attributes = Attributes::new(server_first);
        let nonce = check_nonce(attributes.expect('r', "nonce")?)?;
        let salt = decode_base64(attributes.expect('s', "salt")?).ok_or(Error::MalformedMessage("salt"))?;
        let iterations = attributes.expect('i', "iterations")?;
        attributes.ignore_extensions()?;
        match nonce.strip_prefix(self.nonce.as_str()) {
            Some(servers_part) if !servers_part.is_empty() => {}
            _ => return Err(Error::NonceMismatch),
        }
        let iterations = parse_iterations(iterations).ok_or(Error::Iterations)?;

        let (client_key, server_key) = self.keys(&salt, iterations);
        let without_proof = format!("c={},r={nonce}", encode_base64(GS2_HEADER.as_bytes()));
        let sign = |key: &Key| signature(key, &self.first_bare(), server_first, &without_proof);
        let mut proof = client_key;
        xor_into(&mut proof, &sign(&sha256(&client_key)));
        let expected_signature = sign(&server_key);
        let client_final = format!("{without_proof},p={}", encode_base64(&proof));
        Ok((client_final.into_bytes(), WaitingServerFinal { expected_signature }))
    }

    fn first_bare(&self) -> String {
        format!("n=,r={}", self.nonce)
    }

    fn keys(&self, salt: &[u8], iterations: u32) -> (Key, Key) {
        match self.secret {
            Secret::Keys { client_key, server_key } => (client_key, server_key),
            Secret::Password(password) => {
                let salted = salted_password(&normalized_password(password), salt, iterations);
                (client_key(&salted), server_key(&salted))
            }
        }
    }
}

impl fmt::Debug for ScramClient<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramClient").finish_non_exhaustive()
    }
}

/// Waits for the server's signature. Until it was right, the server has proved nothing.
pub struct WaitingServerFinal {
    expected_signature: Key,
}

impl WaitingServerFinal {
    /// Takes server-final-message.
    pub fn on_server_final(self, message: &[u8]) -> Result<(), Error> {
        let message = text(message)?;
        if message.starts_with("e=") {
            return Err(Error::RefusedByServer);
        }
        let mut attributes = Attributes::new(message);
        let signature = decode_key(attributes.expect('v', "signature")?);
        attributes.ignore_extensions()?;
        let signature = signature.ok_or(Error::MalformedMessage("signature"))?;
        if bool::from(signature.ct_eq(&self.expected_signature)) {
            Ok(())
        } else {
            Err(Error::ServerSignature)
        }
    }
}

impl fmt::Debug for WaitingServerFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitingServerFinal").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::{Kind, ScramServer, Verifier};
    use super::*;

    fn verifier() -> Verifier {
        Verifier::from_password("pencil", b"0123456789abcdef", 4096)
    }

    fn exchange(secret: Secret<'_>, verifier: Verifier) -> Result<ClientKey, Error> {
        let client = ScramClient::new(secret, "client");
        let server = ScramServer::new(verifier, Kind::Known, "server");
        let (server_first, server) = server.on_client_first(&client.client_first())?;
        let (client_final, client) = client.on_server_first(&server_first)?;
        let (server_final, key) = server.on_client_final(&client_final)?;
        client.on_server_final(&server_final)?;
        Ok(key)
    }

    /// The client key a server learned is enough to log in to the next server: no password is stored.
    #[test]
    fn learned_key_logs_in_elsewhere() {
        let key = exchange(Secret::Password("pencil"), verifier()).unwrap();
        let again = exchange(Secret::keys(&key, &verifier().server_key), verifier()).unwrap();
        assert_eq!(key, again);
        let salted_anew = Verifier::from_password("pencil", b"another salt....", 4096);
        let stale = exchange(Secret::keys(&key, &verifier().server_key), salted_anew);
        assert_eq!(stale, Err(Error::AuthenticationFailed));
    }

    #[test]
    fn wrong_password_fails() {
        assert_eq!(exchange(Secret::Password("pen"), verifier()), Err(Error::AuthenticationFailed));
    }

    #[test]
    fn server_that_does_not_know_the_verifier_is_not_trusted() {
        let impostor = Verifier { server_key: [9; 32], ..verifier() };
        assert_eq!(exchange(Secret::Password("pencil"), impostor), Err(Error::ServerSignature));
    }

    #[test]
    fn first_message_faults() {
        for (message, error) in [
            (&b"r=other,s=c2FsdA==,i=10"[..], Error::NonceMismatch),
            (b"r=client,s=c2FsdA==,i=10", Error::NonceMismatch),
            (b"m=x,r=clientserver,s=c2FsdA==,i=10", Error::MalformedMessage("nonce")),
            (b"r=clientserver,s=*,i=10", Error::MalformedMessage("salt")),
            (b"r=clientserver,s=c2FsdA==", Error::MalformedMessage("iterations")),
            (b"r=clientserver,s=c2FsdA==,i=0", Error::Iterations),
            (b"r=clientserver,s=c2FsdA==,i=-1", Error::Iterations),
            (b"r=clientserver,s=c2FsdA==,i=1000001", Error::Iterations),
            (b"r=clientserver,s=c2FsdA==,i=99999999999999999999", Error::Iterations),
            (b"e=other-error", Error::MalformedMessage("nonce")),
        ] {
            let client = ScramClient::new(Secret::Password("pencil"), "client");
            assert_eq!(client.on_server_first(message).unwrap_err(), error, "{message:?}");
        }
    }

    #[test]
    fn final_message_faults() {
        for (message, error) in [
            (&b"e=invalid-proof"[..], Error::RefusedByServer),
            (b"v=AAAA", Error::MalformedMessage("signature")),
            (b"", Error::MalformedMessage("signature")),
            (b"v=AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=", Error::ServerSignature),
        ] {
            let waiting = WaitingServerFinal { expected_signature: [1; 32] };
            assert_eq!(waiting.on_server_final(message), Err(error), "{message:?}");
        }
    }

    #[test]
    fn secrets_are_never_printed() {
        let secret = Secret::Password("pencil");
        let client = ScramClient::new(secret, "n");
        assert!(!format!("{secret:?} {client:?}").contains("pencil"));
    }

    proptest! {
        #[test]
        fn no_bytes_panic(first: Vec<u8>, last: Vec<u8>) {
            let keys = Secret::Keys { client_key: [0; 32], server_key: [0; 32] };
            let _ = ScramClient::new(keys, "client").on_server_first(&first);
            let _ = WaitingServerFinal { expected_signature: [1; 32] }.on_server_final(&last);
        }

        #[test]
        fn nearly_right_text_does_not_panic(first in "r?=?(client)?[a-zé,=]{0,9},?s?=?[A-Z=,]{0,9},?i?=?[0-9,-]{0,12}",
                                            last in "[ve]?=?[A-Z=,é]{0,50}") {
            let keys = Secret::Keys { client_key: [0; 32], server_key: [0; 32] };
            let _ = ScramClient::new(keys, "client").on_server_first(first.as_bytes());
            let _ = WaitingServerFinal { expected_signature: [1; 32] }.on_server_final(last.as_bytes());
        }
    }
}
