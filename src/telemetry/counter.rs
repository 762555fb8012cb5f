//! Counters and gauges that one shard writes and the control thread reads.
//!
//! Invariant: one writer each. `add` is a relaxed load and a relaxed store, no locked instruction, so a second
//! writer would lose counts (never memory safety). Must not know: names, labels, how they are rendered.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that only grows. One writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `amount`; wraps after 2^64.
    #[inline]
    pub fn add(&self, amount: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(amount), Ordering::Relaxed);
    }

    /// Adds one.
    #[inline]
    pub fn inc(&self) {
        self.add(1);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down. One writer per shard.
///
/// What one shard takes up and another puts down (a server connection that is handed over) leaves one gauge
/// negative; the sum over the shards, which is all that is ever shown, stays right.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// One more.
    #[inline]
    pub fn inc(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
    }

    /// One less.
    #[inline]
    pub fn dec(&self) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_sub(1), Ordering::Relaxed);
    }

    /// The number now; negative only as described above.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed).cast_signed()
    }
}

/// `N` counters of one name, told apart by a label; index by enum discriminant.
#[derive(Debug)]
pub struct Family<const N: usize>([Counter; N]);

impl<const N: usize> Default for Family<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Counter::default()))
    }
}

impl<const N: usize> Family<N> {
    /// The counter of one label. An index beyond the family counts into its last slot rather than panic.
    #[inline]
    pub fn at(&self, index: usize) -> &Counter {
        debug_assert!(index < N, "family of {N} has no slot {index}");
        &self.0[index.min(N - 1)]
    }

    /// All slots, in order.
    pub fn slots(&self) -> &[Counter; N] {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_grow_and_gauges_return() {
        let (counter, gauge) = (Counter::default(), Gauge::default());
        counter.add(5);
        counter.inc();
        assert_eq!(counter.value(), 6);
        gauge.dec();
        assert_eq!(gauge.value(), -1);
        gauge.inc();
        gauge.inc();
        assert_eq!(gauge.value(), 1);
    }

    #[test]
    fn a_family_tells_its_labels_apart() {
        let family = Family::<3>::default();
        family.at(1).inc();
        family.at(2).add(7);
        let values: Vec<u64> = family.slots().iter().map(Counter::value).collect();
        assert_eq!(values, [0, 1, 7]);
    }
}
