//! What a server stores in place of a password: salt, iterations, StoredKey, ServerKey.
//!
//! Invariant: a verifier that parses can be used for an exchange without a further check. A mock verifier is the same for
//! the same user every time, so that a client cannot tell by its salt that the user does not exist.
//! Must not know: where verifiers come from.

use std::fmt;
use std::str::FromStr;

use super::crypto::{
    Key, client_key, decode_base64, decode_key, encode_base64, hmac, normalized_password, salted_password,
    server_key, sha256,
};
use super::{DEFAULT_ITERATIONS, Error, ITERATIONS_MAX, MECHANISM};

/// Length of the salts that PostgreSQL makes; a mock must look the same.
const SALT_LENGTH: usize = 16;

/// A SCRAM-SHA-256 verifier, as `pg_authid.rolpassword` holds it.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    /// Iterations of the key derivation, 1 to [`ITERATIONS_MAX`].
    pub iterations: u32,
    /// The salt.
    pub salt: Vec<u8>,
    /// H(ClientKey): a client's proof is checked against it.
    pub stored_key: [u8; 32],
    /// The key with which the server signs.
    pub server_key: [u8; 32],
}

impl Verifier {
    /// Derives the verifier of a password. The salt is random and comes from the caller.
    pub fn from_password(password: &str, salt: &[u8], iterations: u32) -> Self {
        let salted = salted_password(&normalized_password(password), salt, iterations);
        Self {
            iterations,
            salt: salt.to_vec(),
            stored_key: sha256(&client_key(&salted)),
            server_key: server_key(&salted),
        }
    }

    /// A verifier that no password fits, for a user who does not exist. `secret` lives as long as the process.
    pub fn mock(user: &str, secret: &[u8; 32]) -> Self {
        let derived = |label: &[u8]| -> Key { hmac(secret, &[label, b"\0", user.as_bytes()]) };
        Self {
            iterations: DEFAULT_ITERATIONS,
            salt: derived(b"salt")[..SALT_LENGTH].to_vec(),
            stored_key: derived(b"stored key"),
            server_key: derived(b"server key"),
        }
    }
}

impl FromStr for Verifier {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let malformed = Error::MalformedVerifier;
        let rest = text.strip_prefix(MECHANISM).and_then(|r| r.strip_prefix('$'));
        let rest = rest.ok_or(malformed("not SCRAM-SHA-256"))?;
        let (derivation, keys) = rest.split_once('$').ok_or(malformed("keys are missing"))?;
        let (iterations, salt) = derivation.split_once(':').ok_or(malformed("salt is missing"))?;
        let (stored_key, server_key) = keys.split_once(':').ok_or(malformed("server key is missing"))?;
        Ok(Self {
            iterations: parse_iterations(iterations).ok_or(malformed("iterations"))?,
            salt: decode_base64(salt).filter(|s| !s.is_empty()).ok_or(malformed("salt"))?,
            stored_key: decode_key(stored_key).ok_or(malformed("stored key"))?,
            server_key: decode_key(server_key).ok_or(malformed("server key"))?,
        })
    }
}

/// The form that `pg_authid.rolpassword` has. It is a secret: for files and servers, not for logs.
impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { iterations, salt, stored_key, server_key } = self;
        let [salt, stored, server] = [&salt[..], stored_key, server_key].map(encode_base64);
        write!(f, "{MECHANISM}${iterations}:{salt}${stored}:{server}")
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier").field("iterations", &self.iterations).finish_non_exhaustive()
    }
}

/// Digits only (no sign), within the bounds.
pub(super) fn parse_iterations(text: &str) -> Option<u32> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|i| (1..=ITERATIONS_MAX).contains(i))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn text_form_round_trips() {
        let verifier = Verifier::from_password("pencil", b"0123456789abcdef", 4096);
        let text = verifier.to_string();
        assert!(text.starts_with("SCRAM-SHA-256$4096:MDEyMzQ1Njc4OWFiY2RlZg==$"), "{text}");
        assert_eq!(text.parse(), Ok(verifier));
    }

    #[test]
    fn malformed_verifiers_name_the_fault() {
        let good = Verifier::from_password("x", b"salt", 10).to_string();
        for (text, fault) in [
            ("", "not SCRAM-SHA-256"),
            ("md53175bce1d3201d16594cebf9d7eb3f9d", "not SCRAM-SHA-256"),
            ("SCRAM-SHA-256$4096:c2FsdA==", "keys are missing"),
            ("SCRAM-SHA-256$4096$a:b", "salt is missing"),
            ("SCRAM-SHA-256$4096:c2FsdA==$AAAA", "server key is missing"),
            (&good.replace("$10:", "$0:"), "iterations"),
            (&good.replace("$10:", "$+10:"), "iterations"),
            (&good.replace("$10:", "$1000001:"), "iterations"),
            (&good.replace("c2FsdA==", "*"), "salt"),
            (&good.replace("c2FsdA==", ""), "salt"),
            ("SCRAM-SHA-256$4096:c2FsdA==$AAAA:AAAA", "stored key"),
            (good.trim_end_matches('='), "server key"),
        ] {
            assert_eq!(text.parse::<Verifier>(), Err(Error::MalformedVerifier(fault)), "{text}");
        }
    }

    #[test]
    fn mock_is_stable_for_a_user_and_looks_real() {
        let mock = Verifier::mock("alice", &[1; 32]);
        assert_eq!(mock, Verifier::mock("alice", &[1; 32]));
        assert_ne!(mock.salt, Verifier::mock("bob", &[1; 32]).salt);
        assert_ne!(mock.salt, Verifier::mock("alice", &[2; 32]).salt);
        assert_eq!((mock.iterations, mock.salt.len()), (4096, 16));
    }

    #[test]
    fn keys_are_never_printed() {
        let verifier = Verifier::from_password("pencil", b"salt", 10);
        assert_eq!(format!("{verifier:?}"), "Verifier { iterations: 10, .. }");
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(SCRAM-SHA-256)?[$]?[0-9]{0,12}[:$a-zA-Z0-9+/=é]{0,80}") {
            let _ = text.parse::<Verifier>();
        }
    }
}
