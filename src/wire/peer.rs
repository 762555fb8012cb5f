//! What pgsteer processes of one deployment say to each other: who they are, and cancel requests of each other's clients.
//!
//! Each is a first packet on the port that clients use, with a request code that no client sends, so nothing more has to be
//! opened or configured. An older process, or a server, refuses it like any unknown version.
//!
//! Invariant: a forwarded request is of another kind than a client's, so that it can't be forwarded again. Must not know: sockets,
//! who the peers are.

/// Who are you?
pub(super) const HELLO: u32 = 1234 << 16 | 28_001;
/// Cancel this, if it is yours.
pub(super) const FORWARDED_CANCEL: u32 = 1234 << 16 | 28_002;

/// The answer to a forwarded cancel request when it has taken effect.
pub const TAKEN: &[u8] = b"C";
/// The answer when there is no such key.
pub const NOT_MINE: &[u8] = b"N";

const GREETING: &[u8; 8] = b"pgsteer\0";

/// Bytes of an introduction.
pub const INTRODUCTION_BYTES: usize = GREETING.len() + 2 + 16;

/// How a process introduces itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Introduction {
    /// The token in the process ids that it gives to its clients.
    pub token: [u8; 2],
    /// Which process it is, at whatever address.
    pub identity: [u8; 16],
}

impl Introduction {
    /// The answer to "who are you".
    pub fn encode(&self) -> Vec<u8> {
        [&GREETING[..], &self.token, &self.identity].concat()
    }

    /// Reads such an answer; `None` if it is not the answer of a pgsteer process.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (token, rest) = bytes.strip_prefix(GREETING)?.split_first_chunk()?;
        Some(Self { token: *token, identity: rest.try_into().ok()? })
    }
}

/// The packet that asks who is there.
pub fn hello() -> Vec<u8> {
    packet(HELLO, &[])
}

/// The packet that passes a client's cancel request on.
pub fn forwarded_cancel(process_id: i32, key: &[u8]) -> Vec<u8> {
    packet(FORWARDED_CANCEL, &[&process_id.to_be_bytes(), key])
}

fn packet(code: u32, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    // A key came out of a packet of limited length.
    let length = u32::try_from(8 + body.len()).unwrap_or(u32::MAX);
    [&length.to_be_bytes()[..], &code.to_be_bytes(), &body].concat()
}

#[cfg(test)]
mod tests {
    use super::super::startup::{Initial, initial};
    use super::*;

    #[test]
    fn packets_are_read_back() {
        let read = |packet: Vec<u8>| initial(&packet).unwrap().unwrap();
        assert_eq!(read(hello()), (Initial::PeerHello, 8));
        let (process_id, key) = (7, vec![1, 2, 3, 4]);
        let expected = Initial::PeerCancel { process_id, key: key.clone() };
        assert_eq!(read(forwarded_cancel(process_id, &key)), (expected, 16));
        assert_eq!(read(forwarded_cancel(process_id, &[])), (Initial::MalformedCancel, 12));
    }

    #[test]
    fn introductions_are_read_back() {
        let introduction = Introduction { token: [1, 2], identity: [3; 16] };
        let encoded = introduction.encode();
        assert_eq!(encoded.len(), INTRODUCTION_BYTES);
        assert_eq!(Introduction::decode(&encoded), Some(introduction));
        for other in [&b""[..], &encoded[..25], &[&encoded[..], b"x"].concat(), &[b'E'; INTRODUCTION_BYTES]] {
            assert_eq!(Introduction::decode(other), None);
        }
    }
}
