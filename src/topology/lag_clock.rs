//! Staleness in time without comparing two machines' clocks.
//!
//! pgsteer remembers, for each probe of the primary, its *own* time when the probe was sent and the flush LSN that came
//! back. Whatever was flushed (so: committed, synchronously) before that moment lies at or below that LSN. A standby that has
//! replayed LSN r is therefore as fresh as the newest sample whose LSN is at most r.
//!
//! Invariant: LSNs and times in the ring both grow from old to new; thinning only forgets, so it can only
//! overstate staleness. Must not know: nodes, sockets, clocks, settings.

use std::collections::VecDeque;
use std::time::Instant;

use super::model::Lsn;

/// Samples kept. When full, every second one of the older half is forgotten.
const CAPACITY: usize = 512;

/// The samples of one primary on one timeline.
#[derive(Debug, Default)]
pub struct LagClock {
    samples: VecDeque<(Instant, Lsn)>,
}

impl LagClock {
    /// Forgets everything: another history begins.
    pub fn reset(&mut self) {
        self.samples.clear();
    }

    /// Takes the flush LSN that a probe of the primary, sent at `sent_at`, brought home.
    pub fn record(&mut self, sent_at: Instant, flush_lsn: Lsn) {
        if let Some(&mut (ref mut at, lsn)) = self.samples.back_mut() {
            if sent_at <= *at {
                return;
            }
            if flush_lsn == lsn {
                // An idle primary: the same position at a later time says strictly more.
                *at = sent_at;
                return;
            }
            if flush_lsn < lsn {
                // WAL went backwards: what we knew belongs to another history.
                self.samples.clear();
            }
        }
        if self.samples.len() >= CAPACITY {
            self.thin();
        }
        self.samples.push_back((sent_at, flush_lsn));
    }

    /// Up to which of pgsteer's own times a node that has replayed `replay_lsn` has everything. `None`: not known.
    pub fn fresh_as_of(&self, replay_lsn: Lsn) -> Option<Instant> {
        let reached = self.samples.partition_point(|&(_, lsn)| lsn <= replay_lsn);
        reached.checked_sub(1).and_then(|newest| self.samples.get(newest)).map(|&(at, _)| at)
    }

    /// The newest flush LSN.
    pub fn newest_lsn(&self) -> Option<Lsn> {
        self.samples.back().map(|&(_, lsn)| lsn)
    }

    fn thin(&mut self) {
        let mut index = 0;
        self.samples.retain(|_| {
            index += 1;
            index > CAPACITY / 2 || index % 2 == 1
        });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn thinning_keeps_order_and_never_understates_staleness() {
        let start = Instant::now();
        let mut clock = LagClock::default();
        for step in 0..10_000u32 {
            clock.record(start + Duration::from_millis(u64::from(step)), Lsn(u64::from(step) * 10));
        }
        assert!(clock.samples.len() <= CAPACITY);
        for step in [9_999u32, 9_990, 9_500, 5_000, 100] {
            let truth = start + Duration::from_millis(u64::from(step));
            if let Some(as_of) = clock.fresh_as_of(Lsn(u64::from(step) * 10)) {
                assert!(as_of <= truth);
            }
        }
        assert_eq!(clock.fresh_as_of(Lsn(99_990)), Some(start + Duration::from_millis(9_999)));
    }

    #[test]
    fn wal_that_went_backwards_starts_a_new_history() {
        let start = Instant::now();
        let mut clock = LagClock::default();
        clock.record(start, Lsn(100));
        clock.record(start + Duration::from_millis(1), Lsn(50));
        assert_eq!(clock.fresh_as_of(Lsn(49)), None);
        assert_eq!(clock.fresh_as_of(Lsn(60)), Some(start + Duration::from_millis(1)));
    }
}
