//! Where a stream of messages stands, for whoever passes its bytes on untouched: between two messages, or inside one.
//!
//! Invariant: what has been passed is counted byte by byte, however it was cut; a length that can't be true leaves the stream
//! inside a message for good. Must not know: what the messages mean.

use crate::wire::frame::{self, HEADER_BYTES};

/// How far a stream has come.
#[derive(Debug, Default)]
pub struct Boundary {
    header: [u8; HEADER_BYTES],
    /// Bytes of the header that have come.
    come: usize,
    /// Bytes of the message that are still to come.
    left: usize,
    last: Option<u8>,
}

impl Boundary {
    /// These bytes have been passed on.
    pub fn pass(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = if self.left > 0 { self.left } else { HEADER_BYTES - self.come };
            let (taken, rest) = bytes.split_at(room.min(bytes.len()));
            bytes = rest;
            if self.left > 0 {
                self.left -= taken.len();
                continue;
            }
            if let Some(place) = self.header.get_mut(self.come..self.come + taken.len()) {
                place.copy_from_slice(taken);
            }
            self.come += taken.len();
            if self.come == HEADER_BYTES {
                self.come = 0;
                self.last = Some(self.header[0]);
                self.left = match frame::header(&self.header) {
                    Ok(Some(header)) => header.frame_bytes - HEADER_BYTES,
                    _ => usize::MAX,
                };
            }
        }
    }

    /// No message is under way.
    pub fn is_between(&self) -> bool {
        self.come == 0 && self.left == 0
    }

    /// The type of the last message that has begun.
    pub fn last(&self) -> Option<u8> {
        self.last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stands_between_messages_however_they_are_cut() {
        let stream = b"S\0\0\0\x06abZ\0\0\0\x05Id\0\0\0\x04";
        let ends = [0, 7, 13, 18];
        for piece in 1..stream.len() {
            let (mut boundary, mut passed) = (Boundary::default(), 0);
            for bytes in stream.chunks(piece) {
                boundary.pass(bytes);
                passed += bytes.len();
                assert_eq!(boundary.is_between(), ends.contains(&passed), "{passed} bytes by {piece}");
            }
            assert_eq!(boundary.last(), Some(b'd'));
        }
    }

    #[test]
    fn is_lost_for_good_behind_an_impossible_length() {
        let mut boundary = Boundary::default();
        assert!(boundary.is_between() && boundary.last().is_none());
        boundary.pass(b"d\0\0\0\x03");
        boundary.pass(&[0; 100]);
        assert!(!boundary.is_between());
    }
}
