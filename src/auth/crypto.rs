//! The functions of RFC 5802 that both sides share: H, HMAC, Hi, the normalised password, and the client key.
//!
//! Invariant: the names follow the RFC, so that code and RFC can be read side by side. Must not know: messages, states.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, Mac as _};
use sha2::{Digest as _, Sha256};

/// A SHA-256 digest or key.
pub(super) type Key = [u8; 32];

/// The key that proves knowledge of a password: enough to log in as the user, wherever salt and iterations are the same.
#[derive(Clone, PartialEq, Eq)]
pub struct ClientKey(pub [u8; 32]);

impl fmt::Debug for ClientKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Makes a printable nonce of 18 random bytes (as libpq does): 24 characters, no comma.
pub fn nonce_from(random: [u8; 18]) -> String {
    BASE64.encode(random)
}

/// The password as the key derivation sees it: SASLprep where that is possible, otherwise the bytes as they are,
/// exactly as PostgreSQL does on both sides.
pub(super) fn normalized_password(password: &str) -> Vec<u8> {
    if password.is_ascii() {
        return password.as_bytes().to_vec();
    }
    match stringprep::saslprep(password) {
        Ok(prepared) => prepared.as_bytes().to_vec(),
        Err(_) => password.as_bytes().to_vec(),
    }
}

pub(super) fn sha256(data: &[u8]) -> Key {
    Sha256::digest(data).into()
}

pub(super) fn hmac(key: &[u8], parts: &[&[u8]]) -> Key {
    let mut mac = keyed(key);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Hi(): PBKDF2 with one block of output.
pub(super) fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let prepared = keyed(password);
    let mut mac = prepared.clone();
    mac.update(salt);
    mac.update(&1u32.to_be_bytes());
    let mut block: Key = mac.finalize().into_bytes().into();
    let mut sum = block;
    for _ in 1..iterations {
        let mut mac = prepared.clone();
        mac.update(&block);
        block = mac.finalize().into_bytes().into();
        xor_into(&mut sum, &block);
    }
    sum
}

pub(super) fn client_key(salted_password: &Key) -> Key {
    hmac(salted_password, &[b"Client Key"])
}

pub(super) fn server_key(salted_password: &Key) -> Key {
    hmac(salted_password, &[b"Server Key"])
}

/// The AuthMessage under a key: the signature of one side, or of the other.
pub(super) fn signature(key: &Key, first_bare: &str, server_first: &str, final_without_proof: &str) -> Key {
    let parts = [first_bare, ",", server_first, ",", final_without_proof].map(str::as_bytes);
    hmac(key, &parts)
}

pub(super) fn xor_into(target: &mut Key, other: &Key) {
    for (byte, with) in target.iter_mut().zip(other) {
        *byte ^= with;
    }
}

pub(super) fn decode_base64(text: &str) -> Option<Vec<u8>> {
    BASE64.decode(text).ok()
}

pub(super) fn decode_key(text: &str) -> Option<Key> {
    decode_base64(text)?.try_into().ok()
}

pub(super) fn encode_base64(bytes: &[u8]) -> String {
    BASE64.encode(bytes)
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes a key of any length")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn client_key_is_never_printed() {
        assert_eq!(format!("{:?}", ClientKey([7; 32])), "***");
    }

    #[test]
    fn password_is_normalized_like_postgresql_does() {
        assert_eq!(normalized_password("pencil"), b"pencil");
        assert_eq!(normalized_password("I\u{00AD}X"), b"IX", "soft hyphen is mapped to nothing");
        assert_eq!(normalized_password("\u{2168}"), b"IX", "compatibility normalisation");
        let prohibited = "a\u{0627}\u{0007}é";
        assert_eq!(normalized_password(prohibited), prohibited.as_bytes(), "not preparable: as it is");
    }

    #[test]
    fn nonce_is_printable_and_has_no_comma() {
        let nonce = nonce_from([0xff; 18]);
        assert_eq!(nonce.len(), 24);
        assert!(nonce.bytes().all(|b| b.is_ascii_graphic() && b != b','));
    }
}
