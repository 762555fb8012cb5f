//! How soon a node usually answers, and whether the primary's answer is overdue by much more than that: a reason to look at the
//! others, since one of them may be promoted while the primary's sockets stay open (it hangs, or its host is gone).
//!
//! Invariant: a late answer alone doubts nothing: the primary stays, and so do reads and writes; only probing is rapid, and standbys
//! are watched, until it has come. Must not know: sockets, clocks (`now` is an argument).

use std::time::{Duration, Instant};

use super::Reconciler;
use crate::topology::evidence::EventKind;
use crate::topology::model::NodeId;

/// However fast a node usually is, its answer is not overdue before this: schedulers and disks have such pauses.
const OVERDUE_MIN: Duration = Duration::from_millis(20);

/// While there are clients the primary is asked at least this often whether it is there. Answering an empty statement costs it a
/// third of what a probe does.
pub const PULSE_EVERY: Duration = Duration::from_millis(20);

/// Round trips of one node, as TCP keeps them (RFC 6298), and the question that is out.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pulse {
    smoothed: Option<Duration>,
    variation: Duration,
    /// When it was last asked.
    last_at: Option<Instant>,
    /// When the question that is out was sent.
    asked_at: Option<Instant>,
    /// The next one is sent as soon as that is answered.
    is_asked_again: bool,
}

impl Pulse {
    /// Everybody is asked, or this node alone.
    pub(super) fn asked(&mut self, now: Instant) {
        if self.asked_at.is_some() {
            self.is_asked_again = true;
        } else {
            (self.asked_at, self.last_at) = (Some(now), Some(now));
        }
    }

    pub(super) fn answered(&mut self, sent_at: Instant, at: Instant) {
        let took = at.saturating_duration_since(sent_at);
        match self.smoothed {
            None => (self.smoothed, self.variation) = (Some(took), took / 2),
            Some(smoothed) => {
                self.variation = (self.variation * 3 + smoothed.abs_diff(took)) / 4;
                self.smoothed = Some((smoothed * 7 + took) / 8);
            }
        }
        self.over(at);
    }

    pub(super) fn failed(&mut self, at: Instant) {
        self.over(at);
    }

    fn over(&mut self, at: Instant) {
        self.asked_at = std::mem::take(&mut self.is_asked_again).then_some(at);
    }

    /// Whether it owes an answer.
    pub(super) fn is_out(self) -> bool {
        self.asked_at.is_some()
    }

    /// When the answer that is out is overdue; `None`: none is out, or nothing is known of this node.
    fn overdue_at(&self) -> Option<Instant> {
        let slack = (self.variation * 4).max(OVERDUE_MIN);
        Some(self.asked_at? + self.smoothed? + slack)
    }
}

impl Reconciler {
    /// Whom to ask next whether it is there, and when: the primary, or that of before which is starting anew, while it owes no answer.
    pub fn pulse_due(&self) -> Option<(NodeId, Instant)> {
        let Some(primary) = self.primary else { return self.start_due() };
        let id = primary.node;
        let pulse = self.nodes.get(id.index())?.pulse;
        Some((id, pulse.last_at? + PULSE_EVERY)).filter(|_| !pulse.is_out())
    }

    pub(super) fn pulse_sent(&mut self, node: NodeId, now: Instant) {
        if let Some(node) = self.nodes.get_mut(node.index()) {
            node.pulse.asked(now);
        }
    }

    pub(super) fn pulse_answered(&mut self, node: NodeId, sent_at: Instant, at: Instant) {
        if let Some(node) = self.nodes.get_mut(node.index()) {
            node.pulse.answered(sent_at, at);
        }
    }

    fn primary_overdue_at(&self) -> Option<Instant> {
        self.nodes.get(self.primary?.node.index())?.pulse.overdue_at()
    }

    pub(super) fn note_lateness(&mut self, now: Instant) {
        let Some(at) = self.primary_overdue_at().filter(|at| *at <= now) else {
            self.late_since = None;
            return;
        };
        if self.late_since.is_none() {
            self.late_since = Some(at);
            let node = self.primary.map(|primary| primary.node);
            let text = format!(
                "the primary's answer is overdue by {:?}: the others are looked at",
                now.saturating_duration_since(at)
            );
            self.event(EventKind::AnswerLate, node, text, now);
        }
    }

    /// When the primary's answer is overdue, if it is not yet.
    pub(super) fn overdue_deadline(&self) -> Option<Instant> {
        self.primary_overdue_at().filter(|_| self.late_since.is_none())
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::tests::{PRIMARY, STANDBY, Story};
    use super::*;
    use crate::topology::evidence::{Input, ReplayWait};
    use crate::topology::model::{Epoch, Readers};

    impl Story {
        fn looks(&self) -> bool {
            self.interval() == Settings::default().rapid_interval
        }
    }

    #[test]
    fn an_answer_that_is_late_by_much_more_than_usual_makes_rounds_rapid_and_doubts_nothing() {
        let mut it = Story::new();
        it.standby(1000, 2000, ReplayWait::PerhapsForReaders);
        it.wait(100);
        it.on(Input::RoundStarted);
        it.standby(1000, 2000, ReplayWait::PerhapsForReaders);
        assert_eq!(it.judge.deadline(), Some(it.now + OVERDUE_MIN));
        it.wait(19);
        assert!(!it.looks());
        it.wait(1);
        for _ in 0..35 {
            assert!(it.looks());
            let seen = it.snapshot();
            assert!(!seen.suspected && seen.primary.is_some());
            assert_eq!(seen.node(STANDBY).map(|it| it.readers), Some(Readers::MayStay));
            it.wait(5);
            it.on(Input::RoundStarted);
            it.standby(1000, 2000, ReplayWait::PerhapsForReaders);
        }
        it.primary();
        assert!(!it.looks() && !it.snapshot().suspected);
        assert_eq!(it.told(EventKind::AnswerLate), 1);
    }

    #[test]
    fn what_is_promoted_behind_a_primary_that_hangs_is_the_primary() {
        let mut it = Story::new();
        it.wait(100);
        it.on(Input::RoundStarted);
        it.standby(1000, 1000, ReplayWait::Unknown);
        it.wait(25);
        assert!(it.looks());
        it.out_of_recovery(STANDBY, 2, 0);
        let seen = it.snapshot();
        assert_eq!((seen.epoch, seen.primary.map(|it| it.node)), (Epoch(2), Some(STANDBY)));
        assert!(!it.looks(), "it is another's answer that is late");
    }

    /// A primary far away, or a busy one, is not looked behind all the time.
    #[test]
    fn what_is_usual_is_learned() {
        let mut it = Story::new();
        for round in 0..50 {
            it.wait(100);
            it.on(Input::RoundStarted);
            let took = 60 + 10 * (round % 2);
            it.wait(took);
            let looks = it.looks();
            assert!(!looks || round < 8, "round {round}");
            it.out_of_recovery(PRIMARY, 1, took);
            assert!(!it.looks());
        }
        it.wait(100);
        it.on(Input::RoundStarted);
        it.wait(120);
        assert!(it.looks());
    }

    /// A round that begins while an answer is out is asked as soon as that is there.
    #[test]
    fn an_answer_in_the_middle_of_a_round_is_followed_by_the_next_question() {
        let mut it = Story::new();
        it.on(Input::RoundStarted);
        it.wait(15);
        it.on(Input::RoundStarted);
        it.out_of_recovery(PRIMARY, 1, 15);
        it.wait(10);
        assert!(!it.looks());
        it.wait(60);
        assert!(it.looks());
    }

    #[test]
    fn the_primary_is_asked_between_rounds_unless_it_owes_an_answer() {
        let mut it = Story::new();
        it.on(Input::RoundStarted);
        assert_eq!(it.judge.pulse_due(), None);
        let round = it.now;
        it.wait(1);
        it.out_of_recovery(PRIMARY, 1, 1);
        assert_eq!(it.judge.pulse_due(), Some((PRIMARY, round + PULSE_EVERY)));
        it.wait(19);
        it.on(Input::PulseSent { node: PRIMARY });
        assert_eq!(it.judge.pulse_due(), None);
        let sent_at = it.now;
        it.wait(1);
        it.on(Input::PulseAnswered { node: PRIMARY, sent_at, at: it.now });
        assert_eq!(it.judge.pulse_due(), Some((PRIMARY, sent_at + PULSE_EVERY)));
        it.wait(19);
        it.on(Input::PulseSent { node: PRIMARY });
        it.wait(25);
        assert!(it.looks());
    }
}
