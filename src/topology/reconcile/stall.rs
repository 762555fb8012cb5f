//! Standbys whose replay stands still while the primary is doubted: a promotion waits for replay, and replay for readers.
//!
//! Invariant: readers leave only where replay could go on and does not, only while the primary has not attested itself since it
//! was doubted, and for at most `LEAVE_LASTS` at one position: what stands still after that is not held up by them. Must not
//! know: who the readers are, clocks (`now` is an argument).

use std::time::{Duration, Instant};

use super::Reconciler;
use crate::topology::evidence::{EventKind, ProbeResult, ReplayWait, Standing};
use crate::topology::model::{Lsn, NodeId, Readers, Role};

/// Replay looks at what it waits for at least once a second (PostgreSQL's longest sleep there), so it goes on within this time
/// if it was readers of pgsteer's that it waited for.
const LEAVE_LASTS: Duration = Duration::from_millis(1500);

/// How a standby's replay stands.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stall {
    started_us: i64,
    replay_lsn: Lsn,
    receive_lsn: Lsn,
    /// Since when it has had WAL to replay and has replayed none.
    since: Option<Instant>,
    /// Readers were told to leave at this position.
    left_at: Option<Instant>,
}

impl Stall {
    /// Takes an answer of the node.
    pub(super) fn observed(&mut self, result: &ProbeResult, at: Instant) {
        let Standing::InRecovery { replay_lsn, receive_lsn, replay_paused, replay_waits, .. } =
            result.standing
        else {
            *self = Self::default();
            return;
        };
        if (result.started_us, replay_lsn) != (self.started_us, self.replay_lsn) {
            *self = Self { started_us: result.started_us, replay_lsn, ..Self::default() };
        }
        self.receive_lsn = receive_lsn.unwrap_or_default();
        // A pause ends with a promotion.
        let has_to_go_on =
            self.receive_lsn > replay_lsn && !replay_paused && replay_waits != ReplayWait::NotForReaders;
        self.since = if has_to_go_on { self.since.or(Some(at)) } else { None };
    }

    /// Since when it has had WAL to replay and has replayed none.
    pub(super) fn since(&self) -> Option<Instant> {
        self.since
    }

    fn readers(&self, promotion_may_wait_since: Option<Instant>, timeout: Duration, now: Instant) -> Readers {
        let Some((since, wanted_since)) = self.since.zip(promotion_may_wait_since) else {
            return Readers::MayStay;
        };
        let is_over = self.left_at.is_some_and(|left| now >= left + LEAVE_LASTS);
        if timeout.is_zero() || is_over || now < since.max(wanted_since) + timeout {
            Readers::MayStay
        } else {
            Readers::MustLeave
        }
    }
}

impl Reconciler {
    /// Judges for each standby whether reads may stay there.
    pub(super) fn clear_the_way(&mut self, now: Instant) {
        self.note_attestation(now);
        let wanted_since = self.promotion_may_wait_since();
        let timeout = self.settings.replay_stall_timeout;
        for index in 0..self.nodes.len() {
            let Some(id) = u16::try_from(index).ok().map(NodeId) else { break };
            let node = &mut self.nodes[index];
            let live = node.role == Role::Standby && node.live(now, self.settings.claim_ttl).is_some();
            let readers =
                if live { node.stall.readers(wanted_since, timeout, now) } else { Readers::MayStay };
            let before = std::mem::replace(&mut node.readers, readers);
            let stall = node.stall;
            match (before, readers) {
                (Readers::MayStay, Readers::MustLeave) => {
                    node.stall.left_at.get_or_insert(now);
                    let text = format!(
                        "{}: replay stands still at {} since {:?}, with WAL up to {}, while the primary is doubted: \
                         reads leave it",
                        self.name(id),
                        stall.replay_lsn,
                        stall.since.map(|since| now.saturating_duration_since(since)).unwrap_or_default(),
                        stall.receive_lsn
                    );
                    self.event(EventKind::ReadersLeave, Some(id), text, now);
                }
                (Readers::MustLeave, Readers::MayStay) => {
                    let why = if !live {
                        "it is no standby any more"
                    } else if stall.since.is_none() || stall.left_at.is_none() {
                        "its replay goes on"
                    } else if wanted_since.is_none() {
                        "the primary is there"
                    } else {
                        "its replay stands still all the same: others hold it up"
                    };
                    let text = format!("{}: reads may stay again: {why}", self.name(id));
                    self.event(EventKind::ReadersMayStay, Some(id), text, now);
                }
                _ => {}
            }
        }
    }

    /// A primary that is doubted and answers is none that a standby is about to replace.
    fn note_attestation(&mut self, now: Instant) {
        let Some(reign) = self.reign else { return };
        let doubt = self.suspicion.filter(|suspicion| suspicion.node == reign.node);
        let attested =
            self.primary.is_some_and(|primary| doubt.is_none_or(|doubt| primary.sampled_at > doubt.since));
        self.unattested_since = if attested { None } else { self.unattested_since.or(Some(now)) };
    }

    /// `None`: no standby is about to be promoted, as far as is known. A primary that is provably gone is not waited for; one whose
    /// answer is overdue, and of which nothing else is known, may only be slow: until its claim has expired reads stay.
    fn promotion_may_wait_since(&self) -> Option<Instant> {
        let since = self.unattested_since?;
        if self.primary.is_some() && self.suspicion.is_some_and(|suspicion| suspicion.only_late) {
            return None;
        }
        let gone = self.reign.is_some_and(|reign| {
            self.primary.is_none()
                && self.nodes.get(reign.node.index()).is_some_and(|node| node.powerless_since.is_some())
        });
        if gone { self.first_input_at } else { Some(since) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::tests::{PRIMARY, STANDBY, Story};
    use super::*;
    use crate::topology::evidence::{Input, ProbeFailure, SuspectWhy};

    impl Story {
        fn stands(&mut self) {
            self.standby(1000, 2000, ReplayWait::PerhapsForReaders);
        }

        fn readers(&self) -> Readers {
            self.snapshot().node(STANDBY).expect("the standby").readers
        }
    }

    #[test]
    fn readers_stay_while_the_primary_is_there() {
        let mut it = Story::new();
        for _ in 0..50 {
            it.wait(100);
            it.primary();
            it.stands();
            assert_eq!(it.readers(), Readers::MayStay);
        }
        let since = it.judge.snapshot().node(STANDBY).and_then(|view| view.replay_stands_since);
        assert_eq!(since.map(|since| it.now - since), Some(Duration::from_millis(4900)));
    }

    #[test]
    fn readers_leave_at_once_when_the_primary_is_gone_and_replay_has_stood_still_for_long() {
        let mut it = Story::new();
        it.stands();
        it.wait(49);
        it.primary();
        it.stands();
        it.primary_dies(ProbeFailure::Refused);
        assert_eq!(it.readers(), Readers::MayStay);
        it.wait(1);
        it.stands();
        assert_eq!((it.readers(), it.told(EventKind::ReadersLeave)), (Readers::MustLeave, 1));
        it.wait(5);
        it.standby(1500, 2000, ReplayWait::PerhapsForReaders);
        assert_eq!((it.readers(), it.told(EventKind::ReadersMayStay)), (Readers::MayStay, 1));
        // The next conflict on the way.
        it.wait(50);
        it.standby(1500, 2000, ReplayWait::PerhapsForReaders);
        assert_eq!(it.readers(), Readers::MustLeave);
    }

    #[test]
    fn a_doubt_that_the_primary_answers_costs_no_reader() {
        let mut it = Story::new();
        it.stands();
        for _ in 0..20 {
            it.wait(100);
            it.on(Input::Suspect { node: PRIMARY, why: SuspectWhy::ConnectionBroke });
            it.stands();
            assert_eq!(it.readers(), Readers::MayStay);
            it.wait(49);
            it.primary();
            it.stands();
            assert_eq!(it.readers(), Readers::MayStay);
        }
        it.on(Input::Suspect { node: PRIMARY, why: SuspectWhy::ConnectionBroke });
        it.wait(50);
        it.stands();
        assert_eq!(it.readers(), Readers::MustLeave);
        it.wait(5);
        it.primary();
        assert_eq!(it.readers(), Readers::MayStay);
    }

    /// A stall of a disk or of a network is not the end of a primary.
    #[test]
    fn an_answer_that_is_overdue_costs_no_reader_before_the_claim_expires() {
        let mut it = Story::new();
        it.stands();
        let last = it.now;
        while it.now < last + Duration::from_millis(980) {
            it.wait(20);
            it.on(Input::Tick);
            it.stands();
            assert_eq!(it.readers(), Readers::MayStay, "{:?}", it.now - last);
        }
        assert_eq!(it.told(EventKind::Suspected(SuspectWhy::ProbeLate)), 1, "it is doubted all the same");
        it.wait(20);
        it.stands();
        assert_eq!(it.readers(), Readers::MustLeave);
    }

    #[test]
    fn a_doubt_about_a_standby_is_none_about_the_primary() {
        let mut it = Story::new();
        it.stands();
        it.wait(60);
        it.primary();
        it.on(Input::Suspect { node: STANDBY, why: SuspectWhy::ConnectionBroke });
        it.wait(60);
        it.stands();
        assert_eq!(it.readers(), Readers::MayStay);
    }

    #[test]
    fn readers_come_back_where_they_were_not_why() {
        let mut it = Story::new();
        it.stands();
        it.primary_dies(ProbeFailure::Refused);
        it.wait(50);
        it.stands();
        assert_eq!(it.readers(), Readers::MustLeave);
        for ms in [500, 500, 499] {
            it.wait(ms);
            it.stands();
            assert_eq!(it.readers(), Readers::MustLeave);
        }
        for _ in 0..100 {
            it.wait(100);
            it.stands();
            assert_eq!(it.readers(), Readers::MayStay);
        }
        assert_eq!(it.told(EventKind::ReadersLeave), 1);
    }

    /// The primary died in the middle of a record: what was received of it is never replayed.
    #[test]
    fn replay_that_waits_for_the_rest_of_a_record_is_not_held_up_by_readers() {
        let mut it = Story::new();
        it.primary_dies(ProbeFailure::Refused);
        for _ in 0..50 {
            it.wait(100);
            it.standby(1000, 1200, ReplayWait::NotForReaders);
            assert_eq!(it.readers(), Readers::MayStay);
        }
    }

    #[test]
    fn replay_that_has_nothing_to_do_does_not_stand_still() {
        let mut it = Story::new();
        it.primary_dies(ProbeFailure::Refused);
        it.wait(500);
        it.standby(1000, 1000, ReplayWait::Unknown);
        assert_eq!(it.readers(), Readers::MayStay);
    }

    #[test]
    fn a_zero_turns_it_off() {
        let mut it = Story::with(Settings { replay_stall_timeout: Duration::ZERO, ..Settings::default() });
        it.stands();
        it.primary_dies(ProbeFailure::Refused);
        it.wait(10_000);
        it.stands();
        assert_eq!(it.readers(), Readers::MayStay);
    }
}
