//! Names and values of startup packets as `String`s that stand for any bytes: PostgreSQL takes these bytes as they are, in
//! whatever encoding the client has.
//!
//! Invariant: `to_bytes(from_bytes(b)) == b` for all bytes, and different bytes give different strings, so that names can be
//! compared and looked up as strings. Valid UTF-8 is itself. Must not know: what the strings name.

use std::borrow::Cow;

/// Bytes that are not UTF-8 stand as private-use characters from here on (U+10FF80 to U+10FFFF); these characters themselves,
/// which nobody has ever assigned, stand as their four bytes.
const ESCAPE: u32 = 0x10_ff00;

/// The string that stands for these bytes.
pub fn from_bytes(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            if escaped(c).is_some() {
                c.encode_utf8(&mut [0; 4]).bytes().for_each(|byte| text.push(escape(byte)));
            } else {
                text.push(c);
            }
        }
        chunk.invalid().iter().for_each(|byte| text.push(escape(*byte)));
    }
    text
}

/// The bytes that this string stands for.
pub fn to_bytes(text: &str) -> Cow<'_, [u8]> {
    if is_utf8(text) {
        return Cow::Borrowed(text.as_bytes());
    }
    let mut bytes = Vec::with_capacity(text.len());
    for c in text.chars() {
        match escaped(c) {
            Some(byte) => bytes.push(byte),
            None => bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
    }
    Cow::Owned(bytes)
}

/// Whether the bytes that this string stands for are the string's own.
pub fn is_utf8(text: &str) -> bool {
    text.is_ascii() || !text.chars().any(|c| escaped(c).is_some())
}

/// Cuts what the string stands for to at most so many bytes, in the middle of a character if need be, as PostgreSQL does.
pub fn truncate(text: &mut String, bytes_max: usize) {
    let bytes = to_bytes(text);
    if let (true, Some(kept)) = (bytes.len() > bytes_max, bytes.get(..bytes_max)) {
        *text = from_bytes(kept);
    }
}

fn escape(byte: u8) -> char {
    char::from_u32(ESCAPE + u32::from(byte)).unwrap_or(char::REPLACEMENT_CHARACTER)
}

fn escaped(c: char) -> Option<u8> {
    let byte = u8::try_from(u32::from(c).checked_sub(ESCAPE)?).ok()?;
    (!byte.is_ascii()).then_some(byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_back_as_they_were() {
        let samples: [&[u8]; 8] = [
            b"",
            b"bob",
            "caf\u{e9} \u{1f418}".as_bytes(),
            b"caf\xe9",
            b"\xff\x80\xc3",
            "\u{10ff80}\u{10fffd}".as_bytes(),
            b"\xf4\x8f\xbe\x80\xf4\x8f",
            "\u{10ff7f}".as_bytes(),
        ];
        for bytes in samples {
            assert_eq!(*to_bytes(&from_bytes(bytes)), *bytes, "{bytes:?}");
        }
        assert_eq!(from_bytes("caf\u{e9}".as_bytes()), "caf\u{e9}");
        assert!(is_utf8("caf\u{e9}") && !is_utf8(&from_bytes(b"caf\xe9")));
    }

    /// A name can't be mistaken for another that is written with the stand-ins themselves.
    #[test]
    fn different_bytes_are_different_strings() {
        let raw = from_bytes(b"\x80");
        assert_ne!(from_bytes(raw.as_bytes()), raw);
    }

    #[test]
    fn truncation_counts_bytes() {
        let mut text = from_bytes("a\u{e9}\u{e9}".as_bytes());
        truncate(&mut text, 4);
        assert_eq!(*to_bytes(&text), *b"a\xc3\xa9\xc3");
        truncate(&mut text, 9);
        assert_eq!(*to_bytes(&text), *b"a\xc3\xa9\xc3");
    }
}
