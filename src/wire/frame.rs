//! The header scan: one type byte, four length bytes, for every message after the startup.
//!
//! Invariant: a header is only believed when its length is at least 4 and at most `MESSAGE_BYTES_MAX`.
//! Must not know: what the messages mean.

/// PostgreSQL's own limit of a message (`PQ_LARGE_MESSAGE_LIMIT`, 1 GiB - 1), type byte not counted.
pub const MESSAGE_BYTES_MAX: usize = 0x3fff_ffff;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 5;

/// One message header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The type byte.
    pub kind: u8,
    /// Bytes of the whole frame: type byte, length field and body.
    pub frame_bytes: usize,
}

/// A length field that can't be true.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("message of type {kind:?} has the impossible length {length}")]
pub struct LengthError {
    /// The type byte, as a character.
    pub kind: char,
    /// The length field as sent.
    pub length: i32,
}

/// Reads the header at the beginning of `bytes`. `Ok(None)`: fewer than five bytes are there yet.
#[inline]
pub fn header(bytes: &[u8]) -> Result<Option<Header>, LengthError> {
    let [kind, a, b, c, d, ..] = *bytes else { return Ok(None) };
    let length = i32::from_be_bytes([a, b, c, d]);
    match usize::try_from(length) {
        Ok(length) if (4..=MESSAGE_BYTES_MAX).contains(&length) => {
            Ok(Some(Header { kind, frame_bytes: length + 1 }))
        }
        _ => Err(LengthError { kind: char::from(kind), length }),
    }
}

/// Appends a frame of `kind` with `body`.
pub fn put(out: &mut Vec<u8>, kind: u8, body: &[&[u8]]) {
    let length: usize = 4 + body.iter().map(|part| part.len()).sum::<usize>();
    out.push(kind);
    // Bodies are made of parts that came out of frames below MESSAGE_BYTES_MAX.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
    for part in body {
        out.extend_from_slice(part);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_for_five_bytes() {
        assert_eq!(header(b"Q\0\0\0"), Ok(None));
        assert_eq!(header(b"Q\0\0\0\x05\0"), Ok(Some(Header { kind: b'Q', frame_bytes: 6 })));
    }

    /// P07: negative, too small and overflowing lengths.
    #[test]
    fn refuses_impossible_lengths() {
        for length in [-1i32, i32::MIN, 0, 3, 0x4000_0000, i32::MAX] {
            let mut bytes = vec![b'Q'];
            bytes.extend_from_slice(&length.to_be_bytes());
            assert_eq!(header(&bytes), Err(LengthError { kind: 'Q', length }));
        }
    }

    #[test]
    fn put_is_read_back() {
        let mut out = Vec::new();
        put(&mut out, b'Q', &[b"select 1", b"\0"]);
        assert_eq!(header(&out), Ok(Some(Header { kind: b'Q', frame_bytes: out.len() })));
    }
}
