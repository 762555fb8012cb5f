//! Staleness in time without comparing two machines' clocks.
//!
//! pgsteer remembers, for each probe of the primary, its *own* time when the probe was sent and the flush LSN that came
//! back. Whatever was flushed (so: committed, synchronously) before that moment lies at or below that LSN. A standby that has
//! replayed LSN r is therefore as fresh as the newest sample whose LSN is at most r.
//!
//! The error: of the next sample's LSN it is known only that it was there when that probe was answered. So what a node lacks was
//! flushed at any time between the first probe's sending and the second's answer: one interval and one round trip.
//!
//! Invariant: LSNs and times in the ring both grow from old to new; thinning only forgets, so it can only
//! overstate staleness. Must not know: nodes, sockets, clocks, settings.

use std::collections::VecDeque;
use std::time::Instant;

use super::model::Lsn;

/// Samples kept. When full, every second one of the older half is forgotten.
const CAPACITY: usize = 512;

/// A position of the primary.
#[derive(Debug, Clone, Copy)]
struct Sample {
    lsn: Lsn,
    /// When the first probe was answered that told of it: it was there by then.
    known_at: Instant,
    /// When the last probe was sent that told of it: nothing beyond it was there yet.
    as_of: Instant,
}

/// How fresh a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// It has everything that had been flushed by then.
    pub as_of: Instant,
    /// The primary was known by then to have something that it lacks; `None`: nothing of the kind is known.
    pub missed_at: Option<Instant>,
}

/// The samples of one primary on one timeline.
#[derive(Debug, Default)]
pub struct LagClock {
    samples: VecDeque<Sample>,
}

impl LagClock {
    /// Forgets everything: another history begins.
    pub fn reset(&mut self) {
        self.samples.clear();
    }

    /// Takes the flush LSN that a probe of the primary, sent and answered at these times, brought home.
    pub fn record(&mut self, (sent_at, answered_at): (Instant, Instant), flush_lsn: Lsn) {
        if let Some(last) = self.samples.back_mut() {
            if sent_at <= last.as_of {
                return;
            }
            if flush_lsn == last.lsn {
                // An idle primary: the same position at a later time says strictly more.
                last.as_of = sent_at;
                return;
            }
            if flush_lsn < last.lsn {
                // WAL went backwards: what we knew belongs to another history.
                self.samples.clear();
            }
        }
        if self.samples.len() >= CAPACITY {
            self.thin();
        }
        self.samples.push_back(Sample { lsn: flush_lsn, known_at: answered_at, as_of: sent_at });
    }

    /// Up to which of pgsteer's own times a node that has replayed `replay_lsn` has everything. `None`: not known.
    pub fn reached(&self, replay_lsn: Lsn) -> Option<Reached> {
        let next = self.samples.partition_point(|sample| sample.lsn <= replay_lsn);
        let newest = self.samples.get(next.checked_sub(1)?)?;
        Some(Reached { as_of: newest.as_of, missed_at: self.samples.get(next).map(|sample| sample.known_at) })
    }

    /// The newest flush LSN.
    pub fn newest_lsn(&self) -> Option<Lsn> {
        self.samples.back().map(|sample| sample.lsn)
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
            let sent = start + Duration::from_millis(u64::from(step));
            clock.record((sent, sent), Lsn(u64::from(step) * 10));
        }
        assert!(clock.samples.len() <= CAPACITY);
        for step in [9_999u32, 9_990, 9_500, 5_000, 100] {
            let truth = start + Duration::from_millis(u64::from(step));
            if let Some(reached) = clock.reached(Lsn(u64::from(step) * 10)) {
                assert!(reached.as_of <= truth && reached.missed_at.is_none_or(|missed| missed > truth));
            }
        }
        let newest = Reached { as_of: start + Duration::from_millis(9_999), missed_at: None };
        assert_eq!(clock.reached(Lsn(99_990)), Some(newest));
    }

    #[test]
    fn wal_that_went_backwards_starts_a_new_history() {
        let start = Instant::now();
        let mut clock = LagClock::default();
        let later = start + Duration::from_millis(1);
        clock.record((start, start), Lsn(100));
        clock.record((later, later), Lsn(50));
        assert_eq!(clock.reached(Lsn(49)), None);
        assert_eq!(clock.reached(Lsn(60)), Some(Reached { as_of: later, missed_at: None }));
    }

    /// The error is one interval and one round trip, however long the primary was idle before.
    #[test]
    fn the_error_is_an_interval_and_a_round_trip() {
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        let mut clock = LagClock::default();
        for ms in [0, 100, 200, 300] {
            clock.record((at(ms), at(ms + 7)), Lsn(100));
        }
        clock.record((at(400), at(407)), Lsn(200));
        assert_eq!(clock.reached(Lsn(150)), Some(Reached { as_of: at(300), missed_at: Some(at(407)) }));
        clock.record((at(500), at(507)), Lsn(200));
        clock.record((at(600), at(607)), Lsn(300));
        assert_eq!(clock.reached(Lsn(150)), Some(Reached { as_of: at(300), missed_at: Some(at(407)) }));
        assert_eq!(clock.reached(Lsn(299)), Some(Reached { as_of: at(500), missed_at: Some(at(607)) }));
        assert_eq!(clock.reached(Lsn(300)), Some(Reached { as_of: at(600), missed_at: None }));
    }
}
