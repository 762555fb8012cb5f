//! The cancel keys that clients of this process were given, and the token that all of them carry.
//!
//! Invariant: a key leads to the session that it was given to, as long as that lives, or nowhere. A process id is this process's
//! token, by which other pgsteer processes tell whose it is, and a number. Keys are compared in constant time and never shown.
//! Must not know: what a cancel does.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use subtle::ConstantTimeEq;

use super::house::random;

/// Bits of the number in a process id: more clients than any configuration allows.
const NUMBER_BITS: u32 = 20;
/// What is left of a positive process id. Two processes may draw the same token: both are asked then.
const TOKEN_BITS: u32 = i32::BITS - 1 - NUMBER_BITS;

/// Process ids of clients are above those that any operating system gives (Linux: 2^22 at most): whoever has a server signal what it
/// takes for its own server process must not hit somebody else's.
const TOKEN_MIN: u16 = 8;

/// Which process gave out a process id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Token(u16);

impl Token {
    /// The token in a process id.
    pub(super) fn of(process_id: i32) -> Self {
        let token = process_id.cast_unsigned() >> NUMBER_BITS;
        Self(u16::try_from(token).unwrap_or_default())
    }

    /// As peers tell it.
    pub(super) fn from_bytes(bytes: [u8; 2]) -> Self {
        Self(u16::from_be_bytes(bytes))
    }

    /// As it is told to peers.
    pub(super) fn to_bytes(self) -> [u8; 2] {
        self.0.to_be_bytes()
    }

    fn draw() -> Self {
        Self(TOKEN_MIN + u16::from_be_bytes(random()) % ((1 << TOKEN_BITS) - TOKEN_MIN))
    }

    fn process_id(self, number: u32) -> i32 {
        let number = number & ((1 << NUMBER_BITS) - 1);
        (u32::from(self.0) << NUMBER_BITS | number).cast_signed()
    }
}

/// A session, wherever it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Holder {
    pub(super) shard: usize,
    pub(super) session: u64,
}

/// All keys of this process.
pub(super) struct CancelKeys {
    pub(super) token: Token,
    given: Mutex<HashMap<i32, (Vec<u8>, Holder)>>,
}

impl fmt::Debug for CancelKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CancelKeys").field("token", &self.token).finish_non_exhaustive()
    }
}

impl CancelKeys {
    /// None yet, under a token of its own.
    pub(super) fn new() -> Self {
        Self { token: Token::draw(), given: Mutex::default() }
    }

    /// A new process id and a key of so many bytes, at most 32, for this session.
    pub(super) fn give(&self, key_bytes: usize, holder: Holder) -> (i32, Vec<u8>) {
        let mut given = self.lock();
        loop {
            let process_id = self.token.process_id(u32::from_be_bytes(random()));
            if let Entry::Vacant(entry) = given.entry(process_id) {
                let key = random::<32>().get(..key_bytes).unwrap_or_default().to_vec();
                entry.insert((key.clone(), holder));
                return (process_id, key);
            }
        }
    }

    /// The session is over.
    pub(super) fn forget(&self, process_id: i32) {
        self.lock().remove(&process_id);
    }

    /// The session that was given this process id.
    pub(super) fn session(&self, process_id: i32) -> Option<Holder> {
        self.lock().get(&process_id).map(|(_, holder)| *holder)
    }

    /// Whose key this is.
    pub(super) fn holder(&self, process_id: i32, key: &[u8]) -> Option<Holder> {
        let given = self.lock();
        let (own, holder) = given.get(&process_id)?;
        bool::from(own.as_slice().ct_eq(key)).then_some(*holder)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<i32, (Vec<u8>, Holder)>> {
        self.given.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_leads_to_its_session_as_long_as_that_lives() {
        let keys = CancelKeys::new();
        let holder = |session| Holder { shard: 1, session };
        let (short_id, short) = keys.give(4, holder(7));
        let (long_id, long) = keys.give(32, holder(8));
        assert_eq!((short.len(), long.len()), (4, 32));
        assert_eq!(keys.holder(short_id, &short), Some(holder(7)));
        assert_eq!(keys.holder(long_id, &long), Some(holder(8)));
        assert_eq!(keys.holder(long_id, &short), None);
        assert_eq!(keys.holder(long_id, &long[..31]), None);
        assert_eq!(keys.holder(long_id ^ 1, &long), None);
        keys.forget(long_id);
        assert_eq!(keys.holder(long_id, &long), None);
    }

    #[test]
    fn process_ids_are_positive_and_carry_the_token() {
        let keys = CancelKeys::new();
        for session in 0..100 {
            let (process_id, _) = keys.give(4, Holder { shard: 0, session });
            assert!(process_id >= 1 << 23);
            assert_eq!(Token::of(process_id), keys.token);
        }
        assert_eq!(Token::from_bytes(keys.token.to_bytes()), keys.token);
        // Whatever a client sends.
        for process_id in [0, -1, i32::MIN, i32::MAX] {
            Token::of(process_id);
        }
        let highest = Token((1 << TOKEN_BITS) - 1);
        assert_eq!(Token::of(highest.process_id(u32::MAX)), highest);
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = CancelKeys::new();
        keys.give(4, Holder { shard: 0, session: 424_242 });
        assert!(!format!("{keys:?}").contains("424242"));
    }
}
