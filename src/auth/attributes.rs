//! Reads the `k=value,k=value` text of SCRAM messages.
//!
//! Invariant: attributes are asked for in the order the RFC gives them; anything else is malformed, never skipped silently
//! (but for trailing optional extensions). Must not know: which message it reads.

use super::Error;

/// What is left of one message.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    rest: Option<&'a str>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new(message: &'a str) -> Self {
        Self { rest: Some(message) }
    }

    /// The value of the next attribute, which must be `key`.
    pub(super) fn expect(&mut self, key: char, missing: &'static str) -> Result<&'a str, Error> {
        let malformed = Error::MalformedMessage(missing);
        let rest = self.rest.ok_or(malformed)?;
        let value = rest.strip_prefix(key).and_then(|v| v.strip_prefix('=')).ok_or(malformed)?;
        let (value, rest) = match value.split_once(',') {
            Some((value, rest)) => (value, Some(rest)),
            None => (value, None),
        };
        self.rest = rest;
        Ok(value)
    }

    /// The rest must be optional extensions (`x=...`), which we do not know and may ignore.
    pub(super) fn ignore_extensions(self) -> Result<(), Error> {
        let Some(rest) = self.rest else { return Ok(()) };
        let well_formed = rest.split(',').all(|attribute| {
            let mut bytes = attribute.bytes();
            bytes.next().is_some_and(|b| b.is_ascii_alphabetic()) && bytes.next() == Some(b'=')
        });
        if well_formed { Ok(()) } else { Err(Error::MalformedMessage("extension")) }
    }
}

/// The message as text.
pub(super) fn text(message: &[u8]) -> Result<&str, Error> {
    std::str::from_utf8(message).map_err(|_| Error::MalformedMessage("not UTF-8"))
}

/// A nonce is printable ASCII without a comma, and not empty.
pub(super) fn check_nonce(nonce: &str) -> Result<&str, Error> {
    let printable = nonce.bytes().all(|b| b.is_ascii_graphic() && b != b',');
    if printable && !nonce.is_empty() { Ok(nonce) } else { Err(Error::MalformedMessage("nonce")) }
}
