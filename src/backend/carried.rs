//! The prepared statements on one server connection, as many as it may have.
//!
//! Invariant: what is listed was prepared there and not closed since. Which one goes when there are too many is the oldest
//! that has not been used since it was last looked at (second chance). Must not know: texts, names, sessions.

use crate::wire::reply::Shape;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};

/// The order of so many more than twice the statements is cleared of what has gone.
const STALE_MAX: usize = 32;

/// What prepared statements a server connection has.
#[derive(Debug, Default)]
pub struct Carried {
    /// The named ones.
    pub prepared: Prepared,
    /// Whose unnamed one: (session, its count of unnamed Parse).
    pub unnamed: Option<(u64, u64)>,
    /// The named ones are one session's alone, under the names that its client gave them.
    pub own_names: Option<OwnNames>,
}

/// What a connection with a client's own names does not have of it.
#[derive(Debug, Default)]
pub struct OwnNames {
    /// Names whose statements could not be prepared again.
    missing: Vec<Box<[u8]>>,
    /// Those of them that nothing stands for on the server.
    free: Vec<Box<[u8]>>,
}

impl OwnNames {
    /// The statement of that name is not there.
    pub fn miss(&mut self, name: &[u8]) {
        self.missing.push(name.into());
        self.free.push(name.into());
    }

    /// Something else stands for it there, under its name.
    pub fn stand_in(&mut self, name: &[u8]) {
        self.free.retain(|free| **free != *name);
    }

    /// Whether the statement of that name was missing; now it is not.
    pub fn find(&mut self, name: &[u8]) -> bool {
        self.stand_in(name);
        let at = self.missing.iter().position(|missing| **missing == *name);
        at.map(|at| self.missing.swap_remove(at)).is_some()
    }

    /// Whether the server knows nothing of that name, though the client does.
    pub fn misses(&self, name: &[u8]) -> bool {
        self.free.iter().any(|free| **free == *name)
    }
}

/// One of the prepared statements on a server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreparedHere {
    /// Identity.
    pub id: u64,
    /// The generation it was prepared in.
    pub generation: u32,
    /// What its parameters and rows look like, as far as the server was asked.
    pub shape: Option<Shape>,
}

/// The prepared statements on a server connection. Each operation takes the same time however many there are.
#[derive(Debug, Default)]
pub struct Prepared {
    by_id: HashMap<u64, Entry, BuildHasherDefault<IdHasher>>,
    /// Identities by age, each with the `since` it had then: those that are not in `by_id` with the same are gone.
    order: VecDeque<(u64, u64)>,
    inserted: u64,
}

#[derive(Debug)]
struct Entry {
    here: PreparedHere,
    since: u64,
    /// Used since its turn to go was last considered.
    used: bool,
}

impl Prepared {
    /// The statement as it was prepared here.
    pub fn get(&self, id: u64) -> Option<PreparedHere> {
        self.by_id.get(&id).map(|entry| entry.here)
    }

    /// The same for a use of it.
    pub fn used(&mut self, id: u64) -> Option<PreparedHere> {
        let entry = self.by_id.get_mut(&id)?;
        entry.used = true;
        Some(entry.here)
    }

    /// It has been prepared.
    pub fn insert(&mut self, here: PreparedHere) {
        self.inserted += 1;
        let since = self.inserted;
        self.by_id.insert(here.id, Entry { here, since, used: false });
        self.order.push_back((here.id, since));
        if self.order.len() > 2 * self.by_id.len() + STALE_MAX {
            let by_id = &self.by_id;
            self.order.retain(|(id, since)| by_id.get(id).is_some_and(|entry| entry.since == *since));
        }
    }

    /// The server has described it.
    pub fn set_shape(&mut self, id: u64, shape: Shape) {
        if let Some(entry) = self.by_id.get_mut(&id) {
            entry.here.shape = Some(shape.after(entry.here.shape));
        }
    }

    /// It is not there after all.
    pub fn remove(&mut self, id: u64) {
        self.by_id.remove(&id);
    }

    /// Takes one out when there are `bound` or more: it is to be closed on the server.
    pub fn evict(&mut self, bound: usize) -> Option<PreparedHere> {
        if self.by_id.len() < bound.max(1) {
            return None;
        }
        while let Some((id, since)) = self.order.pop_front() {
            let Some(entry) = self.by_id.get_mut(&id).filter(|entry| entry.since == since) else { continue };
            if std::mem::take(&mut entry.used) {
                self.order.push_back((id, since));
            } else {
                return self.by_id.remove(&id).map(|entry| entry.here);
            }
        }
        None
    }

    /// How many are here.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.by_id.is_empty()
    }

    /// All that are here.
    pub fn all(&self) -> impl Iterator<Item = PreparedHere> {
        self.by_id.values().map(|entry| entry.here)
    }

    /// Forgets all but these.
    pub fn retain(&mut self, stays: impl Fn(u64) -> bool) {
        self.by_id.retain(|id, _| stays(*id));
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.by_id.clear();
        self.order.clear();
    }
}

/// Identities are counted up by pgsteer itself: spreading them is all that is needed.
#[derive(Debug, Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u64(self.0 ^ u64::from(*byte)));
    }

    fn write_u64(&mut self, id: u64) {
        self.0 = id.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(id: u64) -> PreparedHere {
        PreparedHere { id, generation: 0, shape: None }
    }

    fn evicted(prepared: &mut Prepared, bound: usize) -> Option<u64> {
        prepared.evict(bound).map(|here| here.id)
    }

    #[test]
    fn the_oldest_that_is_not_used_goes_first() {
        let mut prepared = Prepared::default();
        (1..=4).for_each(|id| prepared.insert(here(id)));
        assert_eq!(evicted(&mut prepared, 5), None);
        assert_eq!(prepared.used(1), Some(here(1)));
        assert_eq!(evicted(&mut prepared, 4), Some(2));
        // One that was prepared anew is as young as any.
        prepared.remove(3);
        prepared.insert(here(3));
        assert_eq!(evicted(&mut prepared, 1), Some(4));
        assert_eq!(evicted(&mut prepared, 1), Some(1));
        assert_eq!(evicted(&mut prepared, 1), Some(3));
        assert_eq!(evicted(&mut prepared, 0), None);
    }

    #[test]
    fn all_of_them_used_makes_no_difference() {
        let mut prepared = Prepared::default();
        (1..=3).for_each(|id| prepared.insert(here(id)));
        (1..=3).for_each(|id| assert!(prepared.used(id).is_some()));
        assert_eq!(evicted(&mut prepared, 3), Some(1));
    }

    #[test]
    fn the_order_is_bounded_by_what_is_there() {
        let mut prepared = Prepared::default();
        for round in 0..10_000 {
            prepared.remove(round % 5);
            prepared.insert(here(round % 5));
        }
        assert!(prepared.order.len() <= 2 * prepared.by_id.len() + STALE_MAX);
        assert_eq!(evicted(&mut prepared, 5), Some(0));
    }
}
