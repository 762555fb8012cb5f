//! The epoch's primary when it is starting anew: it is asked between rounds, too, since its first answer ends the outage.
//!
//! Invariant: bounded in time for each start, and one question at a time. Must not know: sockets, clocks (times come with the inputs).

use std::time::{Duration, Instant};

use super::Reconciler;
use super::node::NodeState;
use crate::topology::evidence::ProbeFailure;
use crate::topology::model::{Logins, NodeId};

/// Who says that it is starting is asked again so long after. Each question costs it a process that ends at once.
const ASK_STARTING_EVERY: Duration = Duration::from_millis(1);

/// As long as that: who takes longer is found by the next round.
const STARTING_LASTS: Duration = Duration::from_millis(500);

/// Since when a node has been refusing connections by its own word (57P03), and by nothing else.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Start(Option<Instant>);

impl Start {
    pub(super) fn answered(&mut self) {
        self.0 = None;
    }

    pub(super) fn failed(&mut self, why: ProbeFailure, at: Instant) {
        match why {
            ProbeFailure::NotAccepting => _ = self.0.get_or_insert(at),
            _ => self.0 = None,
        }
    }

    /// When to ask next, if this was said last.
    fn ask_at(self, said_at: Instant) -> Option<Instant> {
        let since = self.0?;
        (said_at < since + STARTING_LASTS).then(|| said_at + ASK_STARTING_EVERY)
    }
}

impl Reconciler {
    pub(super) fn let_in(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(node.index()) {
            node.logins = Logins::LetIn;
        }
    }

    /// When to ask the epoch's primary whether it has started, if it said that it is starting, or stopping: nobody but itself knows.
    pub(super) fn start_due(&self) -> Option<(NodeId, Instant)> {
        let id = self.reign.filter(|_| self.primary.is_none())?.node;
        let NodeState { start, heard_at, pulse, .. } = self.nodes.get(id.index())?;
        let due = start.ask_at((*heard_at)?)?;
        (!pulse.is_out()).then_some((id, due))
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{PRIMARY, STANDBY, Story};
    use super::*;
    use crate::topology::evidence::Input;

    impl Story {
        fn says_that_it_starts(&mut self) {
            self.primary_dies(ProbeFailure::NotAccepting);
        }

        fn asked_in(&self) -> Option<(NodeId, Duration)> {
            self.judge.pulse_due().map(|(node, due)| (node, due.saturating_duration_since(self.now)))
        }
    }

    #[test]
    fn a_primary_that_is_starting_is_asked_again_and_again_until_it_answers() {
        let mut it = Story::new();
        it.primary_dies(ProbeFailure::Refused);
        assert_eq!(it.asked_in(), None, "nobody is there");
        for _ in 0..10 {
            it.wait(3);
            it.says_that_it_starts();
            assert_eq!(it.asked_in(), Some((PRIMARY, ASK_STARTING_EVERY)));
            it.on(Input::PulseSent { node: PRIMARY });
            assert_eq!(it.asked_in(), None, "one question at a time");
        }
        it.primary();
        it.on(Input::PulseSent { node: PRIMARY });
        it.says_that_it_starts();
        assert_eq!(it.asked_in(), Some((PRIMARY, ASK_STARTING_EVERY)));
    }

    #[test]
    fn a_start_that_takes_long_is_left_to_the_rounds() {
        let mut it = Story::new();
        it.says_that_it_starts();
        it.wait(499);
        it.says_that_it_starts();
        assert!(it.asked_in().is_some());
        it.wait(1);
        it.says_that_it_starts();
        assert_eq!(it.asked_in(), None);
        it.primary_dies(ProbeFailure::Refused);
        it.says_that_it_starts();
        assert!(it.asked_in().is_some(), "this is another start");
    }

    /// It makes nobody a primary, and is over with the answer, whatever that is.
    #[test]
    fn a_probe_that_is_let_in_is_told_until_it_is_answered() {
        let mut it = Story::new();
        it.primary_dies(ProbeFailure::Broken);
        let seen = |it: &Story| {
            let snapshot = it.snapshot();
            (snapshot.nodes[0].logins, snapshot.primary.is_some())
        };
        assert_eq!(seen(&it), (Logins::AsAnswered, false));
        it.on(Input::LetIn { node: PRIMARY });
        assert_eq!(seen(&it), (Logins::LetIn, false));
        it.primary_dies(ProbeFailure::Broken);
        assert_eq!(seen(&it), (Logins::AsAnswered, false));
        it.on(Input::LetIn { node: PRIMARY });
        it.wait(1);
        it.primary();
        assert_eq!(seen(&it), (Logins::AsAnswered, true));
    }

    #[test]
    fn nobody_else_is_asked_between_rounds() {
        let mut it = Story::new();
        let (sent_at, at, why) = (it.now, it.now, ProbeFailure::NotAccepting);
        it.on(Input::ProbeFailed { node: STANDBY, sent_at, at, why });
        assert!(it.asked_in().is_none_or(|(node, _)| node == PRIMARY));
        it.says_that_it_starts();
        it.wait(1);
        it.out_of_recovery(STANDBY, 2, 0);
        it.says_that_it_starts();
        assert!(it.asked_in().is_none_or(|(node, _)| node == STANDBY), "another is the primary");
    }
}
