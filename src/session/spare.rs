//! How many reads a shard may send to the primary for the sake of what other sessions have just written.
//!
//! Invariant: never more than `PER_SECOND` in the long run, `AT_ONCE` in a burst: what is meant for people and tests that look at
//! one session's work from another is not to take the standbys out of use. Pure. Must not know: nodes.

use std::cell::Cell;
use std::time::Instant;

/// So many in each second.
const PER_SECOND: f64 = 100.0;
/// So many after a while without any.
const AT_ONCE: f64 = 200.0;

/// What is left to spare.
#[derive(Debug)]
pub struct Spare {
    left: Cell<f64>,
    at: Cell<Instant>,
}

impl Spare {
    /// All of it.
    pub fn new(now: Instant) -> Self {
        Self { left: Cell::new(AT_ONCE), at: Cell::new(now) }
    }

    /// Takes one, if there is one.
    pub fn take(&self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at.replace(now)).as_secs_f64();
        let left = (self.left.get() + passed * PER_SECOND).min(AT_ONCE);
        let taken = left >= 1.0;
        self.left.set(if taken { left - 1.0 } else { left });
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn no_more_are_spared_than_there_are() {
        let mut now = Instant::now();
        let spare = Spare::new(now);
        let burst = (0..1000).filter(|_| spare.take(now)).count();
        assert_eq!(burst, 200);
        let mut taken = 0;
        for _ in 0..10_000 {
            now += Duration::from_millis(1);
            taken += usize::from(spare.take(now));
        }
        assert!((999..=1001).contains(&taken), "{taken}");
    }
}
