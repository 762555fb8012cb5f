//! What texts need that were classified before: a hash and a comparison instead of reading them again.
//!
//! Invariant: what is found is what reading the text would give now: text, way of reading and catalogue are compared. Bounded in
//! number and bytes, without a lock: each shard has its own. A text is kept when it comes for the second time, so that texts with
//! values in them, which come once, cost a hash and put nothing out. Must not know: what a classification says.

use std::cell::RefCell;
use std::hash::{BuildHasher, Hasher};

use foldhash::fast::FixedState;

use super::{CatalogueStamp, Classification, Dialect, StandardConformingStrings};

/// A power of two.
const SLOTS: usize = 2048;
/// Longer texts take longer to send and to run, too: they are read each time.
const TEXT_BYTES_MAX: usize = 1024;

/// One text, and the hash of another that would take its place if it came again.
#[derive(Debug, Default)]
struct Slot {
    text: Vec<u8>,
    class: Option<Kept>,
    hash: u64,
    next: u64,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    strings: StandardConformingStrings,
    version: u8,
    stamp: CatalogueStamp,
    class: Classification,
}

/// The texts of a shard. At most `SLOTS` of at most `TEXT_BYTES_MAX` bytes: 2 MiB.
pub struct TextCache {
    slots: RefCell<Box<[Slot]>>,
    hasher: FixedState,
}

impl std::fmt::Debug for TextCache {
    /// Texts are not shown.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextCache").finish_non_exhaustive()
    }
}

impl TextCache {
    /// Nothing is kept. `seed`: random, so that nobody outside can choose texts that put each other out.
    pub fn new(seed: u64) -> Self {
        let slots = std::iter::repeat_with(Slot::default).take(SLOTS).collect();
        Self { slots: RefCell::new(slots), hasher: FixedState::with_seed(seed) }
    }

    /// What the text needs: kept, or read now by `read`.
    #[inline]
    pub(super) fn get(
        &self,
        sql: &[u8],
        dialect: &Dialect<'_>,
        read: impl FnOnce() -> Classification,
    ) -> Classification {
        if sql.len() > TEXT_BYTES_MAX {
            return read();
        }
        let mut hasher = self.hasher.build_hasher();
        hasher.write(sql);
        let hash = hasher.finish();
        #[expect(clippy::cast_possible_truncation, reason = "its low bits choose a slot")]
        let place = hash as usize & (SLOTS - 1);
        let mut slots = self.slots.borrow_mut();
        let Some(slot) = slots.get_mut(place) else { return read() };
        let is_same = slot.hash == hash && slot.text == sql;
        if is_same
            && let Some(kept) = &slot.class
            && kept.stamp == dialect.catalogue_stamp
            && kept.strings == dialect.strings
            && kept.version == dialect.version
        {
            return kept.class;
        }
        let class = read();
        if is_same || slot.next == hash {
            slot.keep(sql, hash);
            let Dialect { strings, version, catalogue_stamp: stamp, .. } = *dialect;
            slot.class = Some(Kept { strings, version, stamp, class });
        } else {
            slot.next = hash;
        }
        class
    }
}

impl Slot {
    fn keep(&mut self, sql: &[u8], hash: u64) {
        self.text.clear();
        self.text.extend_from_slice(sql);
        self.hash = hash;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::classify::{Access, classify};
    use std::cell::Cell;

    #[test]
    fn a_text_that_comes_again_is_not_read_again() {
        let cache = TextCache::new(7);
        let reads = Cell::new(0);
        let get = |sql: &[u8], dialect: &Dialect<'_>| {
            cache.get(sql, dialect, || {
                reads.set(reads.get() + 1);
                classify(sql, dialect)
            })
        };
        let plain = Dialect::default();
        for _ in 0..5 {
            assert_eq!(get(b"SELECT '\\'", &plain).access, Access::Read);
        }
        assert_eq!(reads.get(), 2, "the second time it is kept");
        // Read in another way it is another text.
        let escapes = StandardConformingStrings::Off.dialect();
        assert_ne!(get(b"SELECT '\\'", &escapes).access, Access::Read);
        let stamp = CatalogueStamp { serial: 3, fresh: true };
        get(b"SELECT '\\'", &Dialect { catalogue_stamp: stamp, ..plain });
        get(b"SELECT '\\'", &Dialect { version: 15, ..plain });
        assert_eq!(reads.get(), 5);
        let long = [b' '; TEXT_BYTES_MAX + 1];
        for _ in 0..3 {
            get(&long, &plain);
        }
        assert_eq!(reads.get(), 8);
    }

    #[test]
    fn texts_that_come_once_put_nothing_out() {
        let cache = TextCache::new(7);
        let plain = Dialect::default();
        let get = |sql: &str| cache.get(sql.as_bytes(), &plain, || classify(sql.as_bytes(), &plain));
        for _ in 0..2 {
            get("SELECT 1");
        }
        for number in 0..100_000 {
            get(&format!("SELECT {number} FROM t"));
        }
        let mut read = false;
        cache.get(b"SELECT 1", &plain, || {
            read = true;
            classify(b"SELECT 1", &plain)
        });
        assert!(!read);
    }
}
