//! The server's side of SCRAM-SHA-256 (RFC 5802, 7677): a client proves its password to us.
//!
//! Invariant: a client key comes out only when its hash is the stored key; a mock exchange takes the same steps and always
//! fails with the same error as a wrong password. Each state is consumed by its one message, so none can be used twice.
//! Must not know: frames, where the verifier and the nonce come from.

use std::fmt;

use subtle::ConstantTimeEq as _;

use super::attributes::{Attributes, check_nonce, text};
use super::crypto::{ClientKey, decode_key, encode_base64, sha256, signature, xor_into};
use super::{Error, Verifier};

/// Whether the verifier belongs to a user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The verifier is the user's.
    Known,
    /// There is no such user (or no verifier): the exchange is played to its end and fails.
    Mock,
}

/// Waits for the client's first message.
pub struct ScramServer {
    verifier: Verifier,
    kind: Kind,
    nonce: String,
}

impl ScramServer {
    /// Begins an exchange. `nonce` must be fresh and random: see [`nonce_from`](super::nonce_from).
    pub fn new(verifier: Verifier, kind: Kind, nonce: &str) -> Self {
        Self { verifier, kind, nonce: nonce.to_owned() }
    }

    /// Takes client-first-message; gives server-first-message.
    pub fn on_client_first(self, message: &[u8]) -> Result<(Vec<u8>, WaitingFinal), Error> {
        let message = text(message)?;
        let (gs2_header, bare) = split_gs2_header(message)?;
        let mut attributes = Attributes::new(bare);
        // The name is ignored, as in PostgreSQL: the user is the one of the startup packet. A mandatory extension (`m=`)
        // may stand only here, and fails for not being a name.
        attributes.expect('n', "user name")?;
        let client_nonce = check_nonce(attributes.expect('r', "nonce")?)?;
        attributes.ignore_extensions()?;

        let nonce = format!("{client_nonce}{}", self.nonce);
        let Verifier { iterations, salt, .. } = &self.verifier;
        let server_first = format!("r={nonce},s={},i={iterations}", encode_base64(salt));
        let answer = server_first.clone().into_bytes();
        let waiting = WaitingFinal {
            gs2_header: gs2_header.to_owned(),
            client_first_bare: bare.to_owned(),
            server_first,
            nonce,
            verifier: self.verifier,
            kind: self.kind,
        };
        Ok((answer, waiting))
    }
}

impl fmt::Debug for ScramServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScramServer").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Waits for the client's proof.
pub struct WaitingFinal {
    gs2_header: String,
    client_first_bare: String,
    server_first: String,
    nonce: String,
    verifier: Verifier,
    kind: Kind,
}

impl WaitingFinal {
    /// Takes client-final-message; gives server-final-message and the key the client has proved to hold.
    pub fn on_client_final(self, message: &[u8]) -> Result<(Vec<u8>, ClientKey), Error> {
        let message = text(message)?;
        let (without_proof, proof) = message.rsplit_once(",p=").ok_or(Error::MalformedMessage("proof"))?;
        let mut attributes = Attributes::new(without_proof);
        let channel_binding = attributes.expect('c', "channel binding")?;
        let nonce = attributes.expect('r', "nonce")?;
        attributes.ignore_extensions()?;
        let proof = decode_key(proof).ok_or(Error::MalformedMessage("proof"))?;
        if channel_binding != encode_base64(self.gs2_header.as_bytes()) {
            return Err(Error::ChannelBindingMismatch);
        }
        if nonce != self.nonce {
            return Err(Error::NonceMismatch);
        }

        let sign = |key| signature(key, &self.client_first_bare, &self.server_first, without_proof);
        let mut client_key = proof;
        xor_into(&mut client_key, &sign(&self.verifier.stored_key));
        let proved = sha256(&client_key).ct_eq(&self.verifier.stored_key);
        if !bool::from(proved) || self.kind == Kind::Mock {
            return Err(Error::AuthenticationFailed);
        }
        let server_final = format!("v={}", encode_base64(&sign(&self.verifier.server_key)));
        Ok((server_final.into_bytes(), ClientKey(client_key)))
    }
}

impl fmt::Debug for WaitingFinal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WaitingFinal").field("kind", &self.kind).finish_non_exhaustive()
    }
}

/// Splits `n,,` or `y,,` off. `y` (the client could bind, but thinks we cannot) is right: we offer no `-PLUS`.
fn split_gs2_header(message: &str) -> Result<(&str, &str), Error> {
    let mut fields = message.splitn(3, ',');
    let (Some(flag), Some(identity), Some(bare)) = (fields.next(), fields.next(), fields.next()) else {
        return Err(Error::MalformedMessage("header"));
    };
    match flag {
        "n" | "y" => {}
        _ if flag.starts_with("p=") => return Err(Error::ChannelBindingNotOffered),
        _ => return Err(Error::MalformedMessage("channel binding flag")),
    }
    match identity {
        "" | "a=" => {}
        _ if identity.starts_with("a=") => return Err(Error::AuthorizationIdentity),
        _ => return Err(Error::MalformedMessage("authorization identity")),
    }
    let header_length = message.len() - bare.len();
    Ok((&message[..header_length], bare))
}

#[cfg(test)]
mod tests {
    use postgres_protocol::authentication::sasl::{ChannelBinding, ScramSha256};
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
    const CLIENT_FIRST: &[u8] = b"n,,n=user,r=rOprNGfwEbeRWgbNEkqO";

    fn pencil() -> Verifier {
        let salt = super::super::crypto::decode_base64("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        Verifier::from_password("pencil", &salt, 4096)
    }

    /// A verifier that costs nothing to make, where the keys do not matter.
    fn any() -> Verifier {
        Verifier::mock("any", &[1; 32])
    }

    fn after_first(first: &[u8]) -> WaitingFinal {
        ScramServer::new(any(), Kind::Known, NONCE).on_client_first(first).unwrap().1
    }

    #[test]
    fn rfc_7677_exchange() {
        let server = ScramServer::new(pencil(), Kind::Known, NONCE);
        let (first, waiting) = server.on_client_first(CLIENT_FIRST).unwrap();
        assert_eq!(
            String::from_utf8(first).unwrap(),
            "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"
        );
        let client_final = b"c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
            p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=";
        let (server_final, key) = waiting.on_client_final(client_final).unwrap();
        assert_eq!(server_final, b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=");
        assert_eq!(sha256(&key.0), pencil().stored_key);
    }

    #[test]
    fn first_message_faults() {
        for (message, error) in [
            (&b"p=tls-server-end-point,,n=,r=x"[..], Error::ChannelBindingNotOffered),
            (b"n,a=root,n=,r=x", Error::AuthorizationIdentity),
            (b"n,b,n=,r=x", Error::MalformedMessage("authorization identity")),
            (b"q,,n=,r=x", Error::MalformedMessage("channel binding flag")),
            (b"n,", Error::MalformedMessage("header")),
            (b"", Error::MalformedMessage("header")),
            (b"n,,m=x,n=,r=x", Error::MalformedMessage("user name")),
            (b"n,,n=", Error::MalformedMessage("nonce")),
            (b"n,,n=,r=", Error::MalformedMessage("nonce")),
            (b"n,,n=,r=a b", Error::MalformedMessage("nonce")),
            (b"n,,n=,r=x,", Error::MalformedMessage("extension")),
            (b"n,,n=\xff,r=x", Error::MalformedMessage("not UTF-8")),
        ] {
            let server = ScramServer::new(any(), Kind::Known, NONCE);
            assert_eq!(server.on_client_first(message).unwrap_err(), error, "{message:?}");
        }
    }

    #[test]
    fn headers_without_binding_are_accepted_and_must_be_echoed() {
        for header in ["n,,", "y,,", "n,a=,"] {
            let proof = encode_base64(&[0; 32]);
            let nonce = format!("x{NONCE}");
            let first = format!("{header}n=,r=x");
            let echoed = format!("c={},r={nonce},p={proof}", encode_base64(header.as_bytes()));
            let result = after_first(first.as_bytes()).on_client_final(echoed.as_bytes());
            assert_eq!(result.unwrap_err(), Error::AuthenticationFailed, "the echo itself is right");
            let other = format!("c={},r={nonce},p={proof}", encode_base64(b"n,a=x,"));
            let result = after_first(first.as_bytes()).on_client_final(other.as_bytes());
            assert_eq!(result.unwrap_err(), Error::ChannelBindingMismatch);
        }
    }

    #[test]
    fn final_message_faults() {
        let proof = encode_base64(&[0; 32]);
        let nonce = format!("rOprNGfwEbeRWgbNEkqO{NONCE}");
        for (message, error) in [
            (format!("c=biws,r={nonce}"), Error::MalformedMessage("proof")),
            (format!("c=biws,r={nonce},p=AAAA"), Error::MalformedMessage("proof")),
            (format!("r={nonce},p={proof}"), Error::MalformedMessage("channel binding")),
            (format!("c=biws,p={proof}"), Error::MalformedMessage("nonce")),
            (format!("c=biws,r=rOprNGfwEbeRWgbNEkqO,p={proof}"), Error::NonceMismatch),
            (format!("c=biws,r={nonce}x,p={proof}"), Error::NonceMismatch),
            (format!("c=biws,r={nonce},p={proof}"), Error::AuthenticationFailed),
        ] {
            let result = after_first(CLIENT_FIRST).on_client_final(message.as_bytes());
            assert_eq!(result.unwrap_err(), error, "{message}");
        }
    }

    /// One exchange with the client of the `postgres-protocol` crate.
    fn with_foreign_client(verifier: Verifier, kind: Kind, password: &str) -> Result<ClientKey, Error> {
        let mut client = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
        let server = ScramServer::new(verifier, kind, NONCE);
        let (first, waiting) = server.on_client_first(client.message())?;
        client.update(&first).unwrap();
        let (server_final, key) = waiting.on_client_final(client.message())?;
        client.finish(&server_final).unwrap();
        Ok(key)
    }

    #[test]
    fn foreign_client_logs_in() {
        for password in ["pencil", "", "p,=ss wörd", "I\u{00AD}X \u{2168}"] {
            let verifier = Verifier::from_password(password, b"0123456789abcdef", 4096);
            let stored_key = verifier.stored_key;
            let key = with_foreign_client(verifier, Kind::Known, password).unwrap();
            assert_eq!(sha256(&key.0), stored_key);
        }
    }

    #[test]
    fn wrong_password_and_unknown_user_fail_alike() {
        let wrong = with_foreign_client(pencil(), Kind::Known, "pen");
        let unknown = with_foreign_client(Verifier::mock("nobody", &[3; 32]), Kind::Mock, "pencil");
        assert_eq!(wrong, Err(Error::AuthenticationFailed));
        assert_eq!(unknown, wrong);
        let right_but_mock = with_foreign_client(pencil(), Kind::Mock, "pencil");
        assert_eq!(right_but_mock, wrong, "a mock exchange never succeeds");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(first: Vec<u8>, last: Vec<u8>) {
            let _ = ScramServer::new(any(), Kind::Known, NONCE).on_client_first(&first);
            let _ = after_first(CLIENT_FIRST).on_client_final(&last);
        }

        #[test]
        fn nearly_right_text_does_not_panic(first in "[npy]?,?,?[an=,]{0,6}r?=?[a-zé,=]{0,9}",
                                            last in "c?=?(biws)?,?r?=?[a-zé,=+/]{0,60},?p?=?[A-Z=,]{0,50}") {
            let _ = ScramServer::new(any(), Kind::Known, NONCE).on_client_first(first.as_bytes());
            let _ = after_first(CLIENT_FIRST).on_client_final(last.as_bytes());
        }
    }
}
