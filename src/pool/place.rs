//! Places of a pool for reads that standbys cancel: so many of them may be on the primary at a time (`retry.primary_budget`).
//!
//! Invariant: counted over all shards; a place comes back when it is dropped. Must not know: why a read has one, sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::set::Pool;

/// The share of a primary's pool that such reads may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Of `pool.size`; 0: none.
    pub percent: usize,
}

impl Budget {
    /// Of a pool of so many connections; one at least, unless there is to be none.
    pub fn places(self, pool_size: usize) -> usize {
        pool_size.saturating_mul(self.percent).div_ceil(100)
    }
}

/// One read's place. Dropping it makes room for another.
#[derive(Debug)]
pub struct Place(Arc<AtomicUsize>);

impl Place {
    fn take(taken: &Arc<AtomicUsize>, most: usize) -> Option<Self> {
        let one_more = |count| (count < most).then_some(count + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// A place for a read that a standby has cancelled, if fewer than the budget has are taken.
    pub fn place(&self, budget: Budget) -> Option<Place> {
        Place::take(&self.shared.moved_reads, budget.places(self.shared.limits.size))
    }

    /// The same for one that was not cancelled yet: half of the budget is left for those that were.
    pub fn place_beforehand(&self, budget: Budget) -> Option<Place> {
        Place::take(&self.shared.moved_reads, budget.places(self.shared.limits.size).div_ceil(2))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C07.
    #[test]
    fn places_are_bounded_and_come_back() {
        let taken = Arc::default();
        let one = Place::take(&taken, 2);
        let two = Place::take(&taken, 2);
        assert!(one.is_some() && two.is_some() && Place::take(&taken, 2).is_none());
        drop(one);
        assert!(Place::take(&taken, 2).is_some());
        drop(two);
        assert_eq!(taken.load(Ordering::Acquire), 0);
    }

    #[test]
    fn a_budget_is_a_share_of_the_pool() {
        for (percent, size, places) in
            [(50, 20, 10), (50, 1, 1), (0, 20, 0), (1, 20, 1), (100, 7, 7), (33, 10, 4)]
        {
            assert_eq!(Budget { percent }.places(size), places, "{percent} % of {size}");
        }
    }
}
