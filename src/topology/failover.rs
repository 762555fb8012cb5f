//! One record for each failover: why the primary was doubted, how long it took, who won by which rule, what it cost the clients.
//!
//! Invariant: plain data and a machine that is told what happened; a doubt after which the primary was there all the time leaves no
//! record. Must not know: clocks (`now` is an argument), how primaries are judged, where the figures come from.

use std::time::{Duration, Instant};

use super::evidence::{Event, EventKind};
use super::model::{Epoch, NodeId, Snapshot};

/// What was in flight is answered by then: a record is not closed sooner.
const SETTLES_AFTER: Duration = Duration::from_millis(200);

/// Statements that are still held so long after the new primary was there are not waited for.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// How it came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Not yet.
    UnderWay,
    /// A new epoch: another primary, or the same node restarted or promoted anew.
    NewEpoch,
    /// The primary was lost from sight and came back, in the same epoch.
    SamePrimary,
}

impl Outcome {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::UnderWay, Self::NewEpoch, Self::SamePrimary];

    /// The word in logs, metrics and on `/topology/events`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::UnderWay => "under_way",
            Self::NewEpoch => "new_epoch",
            Self::SamePrimary => "same_primary",
        }
    }
}

/// What clients had of it, from the first doubt to the end of the record. All figures are sums over the shards.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Effects {
    /// Statements that were held.
    pub held: u64,
    /// Of these, those that got a server.
    pub released: u64,
    /// Statements held now.
    pub waiting: u64,
    /// The longest hold that has ended.
    pub longest_hold: Duration,
    /// What ran on standbys and was ended so that replay could go on.
    pub ended_for_replay: u64,
    /// Errors that pgsteer itself sent, by SQLSTATE; those that there were.
    pub errors: Vec<(&'static str, u64)>,
}

/// One failover.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failover {
    /// The first is 1.
    pub number: u64,
    /// When the primary was first doubted.
    pub suspected_at: Instant,
    /// Why, one line.
    pub why: String,
    /// The primary that was lost.
    pub old_primary: Option<NodeId>,
    /// Since when there was none. `None`: another took its place while it was still believed.
    pub lost_at: Option<Instant>,
    /// Rounds of probes from the doubt to the end.
    pub rounds: u32,
    /// When a standby told of its promotion, if one did.
    pub promotion_told_at: Option<Instant>,
    /// Standbys that reads had to leave.
    pub readers_left: u32,
    /// The epoch at its end.
    pub epoch: Epoch,
    /// Who is the primary now.
    pub winner: Option<NodeId>,
    /// By which rule.
    pub rule: &'static str,
    /// When there was a primary again.
    pub primary_at: Option<Instant>,
    /// When no statement was held any more, or was waited for.
    pub settled_at: Option<Instant>,
    /// How it came out.
    pub outcome: Outcome,
    /// What clients had of it.
    pub effects: Effects,
}

impl Failover {
    /// From the first doubt until there was a primary again.
    pub fn without_primary(&self) -> Option<Duration> {
        self.primary_at.map(|at| at.saturating_duration_since(self.suspected_at))
    }

    /// From then until no statement was held any more.
    pub fn release(&self) -> Option<Duration> {
        self.settled_at
            .zip(self.primary_at)
            .map(|(settled, primary)| settled.saturating_duration_since(primary))
    }
}

/// Writes the records.
#[derive(Debug, Default)]
pub struct Recorder {
    count: u64,
    open: Option<Failover>,
    /// One that was over when the next began.
    superseded: Option<Failover>,
    /// The last primary.
    reigned: Option<NodeId>,
    is_lost: bool,
}

impl Recorder {
    /// Whether a doubt or a failover is under way, so that the figures are wanted.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// The record under way, if it is one of a failover by now.
    pub fn under_way(&self) -> Option<&Failover> {
        self.open.as_ref().filter(|open| self.is_lost || open.primary_at.is_some())
    }

    /// A round of probes began.
    pub fn round(&mut self) {
        if let Some(open) = &mut self.open {
            open.rounds = open.rounds.saturating_add(1);
        }
    }

    /// What the judge told, with the picture after it and the `rule` by which its primary won. `true`: a record began, and the
    /// figures count from here.
    pub fn told(&mut self, events: &[Event], snapshot: &Snapshot, rule: &'static str) -> bool {
        let mut began = false;
        for event in events {
            began |= self.one(event, snapshot, rule);
        }
        self.reigned = snapshot.primary.map_or(self.reigned, |primary| Some(primary.node));
        began
    }

    fn one(&mut self, event: &Event, snapshot: &Snapshot, rule: &'static str) -> bool {
        let primary = snapshot.primary.map(|primary| primary.node);
        let mut began = false;
        // Before there was a primary nothing can be lost.
        let starts = match event.kind {
            EventKind::Suspected(_) | EventKind::PrimaryLost | EventKind::EpochOpened => true,
            // What the new primary tells of its own promotion, once it is known, is no news of another.
            EventKind::Promoted => event.node.is_none() || event.node != primary,
            _ => false,
        };
        if starts && self.reigned.is_some() && self.open.as_ref().is_none_or(|open| open.primary_at.is_some())
        {
            // One that is still being settled is over with the next.
            began = self.open.is_none() || !matches!(event.kind, EventKind::Suspected(_));
            if began {
                self.superseded = self.open.take().map(|open| self.complete(open, event.at));
                self.open = Some(self.begin(event, snapshot.epoch));
                self.is_lost = false;
            }
        }
        let Some(open) = &mut self.open else { return began };
        match event.kind {
            EventKind::PrimaryLost => {
                open.lost_at.get_or_insert(event.at);
                self.is_lost = true;
            }
            EventKind::EpochOpened | EventKind::PrimaryBack => {
                open.primary_at = Some(event.at);
                open.winner = primary;
                open.epoch = snapshot.epoch;
                (open.outcome, open.rule) = match event.kind {
                    EventKind::EpochOpened => (Outcome::NewEpoch, rule),
                    _ => (Outcome::SamePrimary, "it attested itself again"),
                };
            }
            EventKind::ReadersLeave => open.readers_left += 1,
            EventKind::Promoted => drop(open.promotion_told_at.get_or_insert(event.at)),
            // The primary was there all the time.
            EventKind::Cleared if open.primary_at.is_none() && !self.is_lost => self.open = None,
            _ => {}
        }
        began
    }

    fn begin(&self, event: &Event, epoch: Epoch) -> Failover {
        Failover {
            number: self.count + 1,
            suspected_at: event.at,
            why: event.text.clone(),
            old_primary: self.reigned,
            lost_at: None,
            rounds: 0,
            promotion_told_at: None,
            readers_left: 0,
            epoch,
            winner: None,
            rule: "",
            primary_at: None,
            settled_at: None,
            outcome: Outcome::UnderWay,
            effects: Effects::default(),
        }
    }

    fn complete(&mut self, mut record: Failover, now: Instant) -> Failover {
        self.count += 1;
        record.number = self.count;
        record.settled_at.get_or_insert(now);
        record
    }

    /// Takes the figures since the record began; gives a record that is complete.
    pub fn settle(&mut self, effects: Effects, now: Instant) -> Option<Failover> {
        if let Some(before) = self.superseded.take() {
            return Some(before);
        }
        let open = self.open.as_mut()?;
        open.effects = effects;
        let primary_at = open.primary_at?;
        open.settled_at = if open.effects.waiting == 0 { open.settled_at.or(Some(now)) } else { None };
        let patience = if open.settled_at.is_some() { SETTLES_AFTER } else { SETTLES_WITHIN };
        if now < primary_at + patience {
            return None;
        }
        self.is_lost = false;
        let open = self.open.take()?;
        Some(self.complete(open, now))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::topology::evidence::SuspectWhy;
    use crate::topology::model::{Lsn, NodeAddress, PrimaryView, Timeline};

    const DOUBT: EventKind = EventKind::Suspected(SuspectWhy::ConnectionBroke);

    struct Story {
        recorder: Recorder,
        snapshot: Snapshot,
        now: Instant,
    }

    impl Story {
        fn new() -> Self {
            let address = Arc::new(NodeAddress { host: "pg".to_owned(), port: 5432 });
            let snapshot = Snapshot::unknown(&[Arc::clone(&address), address]);
            let mut it = Self { recorder: Recorder::default(), snapshot, now: Instant::now() };
            it.primary(Some(0), 1);
            it.happens(EventKind::EpochOpened);
            assert!(!it.recorder.is_open(), "the first primary is no failover");
            it
        }

        fn primary(&mut self, node: Option<u16>, epoch: u64) {
            self.snapshot.epoch = Epoch(epoch);
            self.snapshot.primary = node.map(|node| PrimaryView {
                node: NodeId(node),
                timeline: Timeline(1),
                started_us: 1,
                flush_lsn: Lsn(1),
                insert_lsn: Lsn(1),
                commits_asynchronously: false,
                sampled_at: self.now,
                expires_at: self.now + Duration::from_secs(1),
            });
        }

        fn happens(&mut self, kind: EventKind) -> bool {
            self.now += Duration::from_millis(10);
            let event = Event { at: self.now, kind, node: None, text: kind.as_str().to_owned() };
            self.recorder.told(&[event], &self.snapshot, "the rule")
        }

        fn settle(&mut self, waiting: u64) -> Option<Failover> {
            self.recorder.settle(Effects { held: 3, waiting, ..Effects::default() }, self.now)
        }
    }

    #[test]
    fn a_failover_is_recorded_from_the_doubt_to_the_last_release() {
        let mut it = Story::new();
        assert!(it.happens(DOUBT));
        assert_eq!(it.settle(0), None);
        it.primary(None, 1);
        assert!(!it.happens(EventKind::PrimaryLost));
        it.recorder.round();
        it.recorder.round();
        it.happens(EventKind::Promoted);
        assert_eq!(it.settle(3), None);
        it.primary(Some(1), 2);
        it.happens(EventKind::EpochOpened);
        assert_eq!(it.settle(1), None, "one is still held");
        it.now += Duration::from_millis(5);
        assert_eq!(it.settle(0), None, "what was in flight may not be answered yet");
        it.now += SETTLES_AFTER;
        let record = it.settle(0).expect("all are released");
        assert_eq!((record.number, record.why.as_str(), record.rounds), (1, "suspected", 2));
        assert_eq!((record.old_primary, record.winner), (Some(NodeId(0)), Some(NodeId(1))));
        assert_eq!((record.outcome, record.rule, record.epoch), (Outcome::NewEpoch, "the rule", Epoch(2)));
        assert_eq!(record.without_primary(), Some(Duration::from_millis(30)));
        assert_eq!(record.release(), Some(Duration::from_millis(5)));
        assert_eq!(record.effects.held, 3);
        assert!(!it.recorder.is_open());
        // The doubt ends behind it.
        it.happens(EventKind::Cleared);
        assert!(!it.recorder.is_open());
    }

    /// Where its timeline begins a standby may tell after a probe has found it.
    #[test]
    fn what_the_new_primary_tells_of_its_promotion_is_no_failover() {
        let mut it = Story::new();
        it.happens(DOUBT);
        it.primary(Some(1), 2);
        it.happens(EventKind::EpochOpened);
        assert_eq!(it.settle(2), None);
        let event = Event {
            at: it.now,
            kind: EventKind::Promoted,
            node: Some(NodeId(1)),
            text: "timeline 2 begins".to_owned(),
        };
        assert!(!it.recorder.told(&[event], &it.snapshot, "the rule"));
        assert_eq!(it.settle(2), None, "two are still held");
        it.now += SETTLES_AFTER;
        assert_eq!(it.settle(0).map(|record| record.number), Some(1));
        assert!(!it.recorder.is_open());
    }

    #[test]
    fn a_doubt_that_comes_to_nothing_leaves_no_record() {
        let mut it = Story::new();
        for _ in 0..3 {
            it.happens(DOUBT);
            assert_eq!(it.settle(0), None);
            assert!(it.recorder.under_way().is_none());
            it.happens(EventKind::Cleared);
            assert!(!it.recorder.is_open());
        }
    }

    #[test]
    fn a_primary_that_was_out_of_sight_is_recorded_as_such() {
        let mut it = Story::new();
        it.happens(DOUBT);
        it.primary(None, 1);
        it.happens(EventKind::PrimaryLost);
        assert!(it.recorder.under_way().is_some());
        it.primary(Some(0), 1);
        it.happens(EventKind::PrimaryBack);
        it.now += SETTLES_AFTER;
        let record = it.settle(0).expect("it is over");
        assert_eq!((record.outcome, record.winner), (Outcome::SamePrimary, Some(NodeId(0))));
    }

    #[test]
    fn statements_that_nobody_releases_do_not_keep_a_record_open() {
        let mut it = Story::new();
        it.primary(Some(1), 2);
        assert!(it.happens(EventKind::EpochOpened));
        it.now += SETTLES_WITHIN;
        let record = it.settle(7).expect("it is over");
        assert_eq!((record.lost_at, record.effects.waiting), (None, 7));
    }

    #[test]
    fn a_second_failover_during_the_release_of_the_first_is_one_of_its_own() {
        let mut it = Story::new();
        it.primary(Some(1), 2);
        it.happens(EventKind::EpochOpened);
        assert_eq!(it.settle(1), None);
        assert!(!it.happens(DOUBT), "that is no loss yet");
        it.primary(None, 2);
        assert!(it.happens(EventKind::PrimaryLost));
        it.primary(Some(0), 3);
        it.happens(EventKind::EpochOpened);
        it.now += SETTLES_AFTER;
        let records = [it.settle(0), it.settle(0)].map(|it| it.expect("it is over"));
        assert_eq!(records.each_ref().map(|it| it.number), [1, 2]);
        assert_eq!(records.each_ref().map(|it| it.old_primary), [0, 1].map(|it| Some(NodeId(it))));
        assert_eq!(records.each_ref().map(|it| it.winner), [1, 0].map(|it| Some(NodeId(it))));
    }
}
