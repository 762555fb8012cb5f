//! What is made of standbys that tell of their promotion: when they are watched for it, and that it is looked at once.
//!
//! Invariant: a promotion that was told makes nobody a primary; it is a reason to ask. Must not know: how standbys are watched,
//! clocks (`now` is an argument).

use std::time::{Duration, Instant};

use super::Reconciler;
use crate::topology::evidence::{EventKind, SuspectWhy};
use crate::topology::model::{Lsn, NodeId, Role, Timeline};

/// A primary that lives answers a doubt sooner, and no promotion is complete by then: opening connections can wait so long.
const WATCH_AFTER: Duration = Duration::from_millis(20);

/// A standby that has told of its promotion is out of recovery some milliseconds later. Rounds until then; a node that takes longer to
/// answer is asked as soon as it has.
pub(super) const ROUND_BEHIND_PROMOTION: Duration = Duration::from_millis(1);

/// As long as that.
const PROMOTION_LASTS: Duration = Duration::from_millis(500);

impl Reconciler {
    /// Whether this node is to be watched for its promotion: a standby, while the primary is doubted and does not answer, or its answer
    /// is late, or somebody said that it changes.
    pub fn may_be_promoted(&self, id: NodeId, now: Instant) -> bool {
        let silent = self.silent_since().is_some_and(|since| now >= since + WATCH_AFTER);
        (silent || self.hint.is_some())
            && self.nodes.get(id.index()).is_some_and(|node| node.role == Role::Standby)
    }

    /// When the watch begins.
    pub(super) fn watch_deadline(&self, now: Instant) -> Option<Instant> {
        self.silent_since().map(|since| since + WATCH_AFTER).filter(|at| *at > now)
    }

    fn silent_since(&self) -> Option<Instant> {
        self.unattested_since.into_iter().chain(self.late_since).min()
    }

    /// Whether somebody has just told of a promotion, and no epoch has begun since then.
    pub(super) fn is_promotion_under_way(&self, now: Instant) -> bool {
        self.promotion_told.is_some_and(|(epoch, at)| {
            now.saturating_duration_since(at) < PROMOTION_LASTS
                && self.reign.is_some_and(|reign| reign.epoch == epoch)
        })
    }

    pub(super) fn promoted(&mut self, node: NodeId, told: Option<(Timeline, Lsn)>, at: Instant) {
        let Some(reign) = self.reign else { return };
        let name = self.name(node);
        let Some(state) = self.nodes.get_mut(node.index()) else { return };
        // Of the one that is the primary by now it says nothing new.
        let is_news = state.promoted_in.replace(reign.epoch) != Some(reign.epoch) && reign.node != node;
        if is_news {
            self.promotion_told = Some((reign.epoch, at));
            self.event(
                EventKind::Promoted,
                Some(node),
                format!(
                    "{name} tells that its timeline has ended: it was promoted, or the node that it follows"
                ),
                at,
            );
            self.suspect(reign.node, SuspectWhy::Promotion, at);
        }
        if let Some((timeline, lsn)) = told {
            let text = format!("{name} tells of its promotion: timeline {timeline} begins at {lsn}");
            self.event(EventKind::Promoted, Some(node), text, at);
        }
    }

    pub(super) fn not_watched(&mut self, node: NodeId, why: &str, now: Instant) {
        let name = self.name(node);
        let Some(state) = self.nodes.get_mut(node.index()) else { return };
        if !std::mem::replace(&mut state.unwatched_told, true) {
            let text = format!(
                "{name} can't be watched for its promotion, which is found by probes instead: {why}. The login role needs \
                 REPLICATION, a line for replication in pg_hba.conf, and one of max_wal_senders"
            );
            self.event(EventKind::Advice, Some(node), text, now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::tests::{PRIMARY, STANDBY, Story};
    use super::*;
    use crate::topology::evidence::{Input, ProbeFailure, ReplayWait};
    use crate::topology::model::Epoch;

    impl Story {
        fn dies(&mut self) {
            self.primary_dies(ProbeFailure::Broken);
        }

        fn is_watched(&self, node: NodeId) -> bool {
            self.judge.may_be_promoted(node, self.now)
        }
    }

    #[test]
    fn standbys_are_watched_while_the_primary_is_doubted_and_no_longer() {
        let mut it = Story::new();
        it.wait(500);
        it.primary();
        assert!(!it.is_watched(STANDBY));
        it.dies();
        assert!(!it.is_watched(STANDBY), "it may be back at once");
        assert_eq!(it.judge.deadline(), Some(it.now + WATCH_AFTER));
        it.wait(20);
        assert!(it.is_watched(STANDBY) && !it.is_watched(PRIMARY));
        it.out_of_recovery(STANDBY, 2, 0);
        assert_eq!(it.snapshot().epoch, Epoch(2));
        assert!(!it.is_watched(STANDBY));
    }

    /// It hangs, and its sockets stay open: nothing else tells.
    #[test]
    fn standbys_are_watched_while_the_primary_is_late() {
        let mut it = Story::new();
        it.wait(100);
        it.on(Input::RoundStarted);
        it.wait(39);
        assert!(!it.is_watched(STANDBY));
        it.wait(1);
        assert!(it.is_watched(STANDBY));
        it.primary();
        assert!(!it.is_watched(STANDBY));
    }

    /// One connection for all of it, however long it takes: a hint that is renewed is the same hint.
    #[test]
    fn standbys_are_watched_from_a_hint_to_its_end() {
        let mut it = Story::new();
        for _ in 0..60 {
            it.wait(500);
            it.on(Input::Hint { expects: None });
            assert!(it.is_watched(STANDBY) && !it.is_watched(PRIMARY));
            it.primary();
            it.standby(1000, 1000, ReplayWait::Unknown);
            assert!(it.is_watched(STANDBY));
        }
        it.wait(1);
        it.out_of_recovery(STANDBY, 2, 0);
        assert!(!it.is_watched(STANDBY));
    }

    #[test]
    fn a_promotion_that_is_told_makes_no_primary() {
        let mut it = Story::new();
        it.dies();
        it.wait(20);
        for told in [None, Some((Timeline(2), Lsn(1000))), None] {
            it.on(Input::Promoted { node: STANDBY, told, at: it.now });
            assert_eq!((it.snapshot().epoch, it.snapshot().primary), (Epoch(1), None));
        }
        assert_eq!(it.told(EventKind::Promoted), 2);
    }

    /// Beside a primary that answers: it must be looked at at once.
    #[test]
    fn a_promotion_that_is_told_is_a_doubt_about_the_primary() {
        let mut it = Story::new();
        it.on(Input::Promoted { node: STANDBY, told: None, at: it.now });
        assert!(it.snapshot().suspected);
        assert_eq!(it.judge.round_interval(false, it.now), ROUND_BEHIND_PROMOTION);
        it.wait(500);
        assert_eq!(it.judge.round_interval(false, it.now), Settings::default().rapid_interval);
    }

    #[test]
    fn a_promotion_is_looked_for_in_the_shortest_rounds_until_it_is_seen() {
        let mut it = Story::new();
        it.dies();
        it.wait(20);
        it.on(Input::Promoted { node: STANDBY, told: None, at: it.now });
        assert_eq!(it.judge.round_interval(false, it.now), ROUND_BEHIND_PROMOTION);
        it.out_of_recovery(STANDBY, 2, 0);
        assert!(it.judge.round_interval(false, it.now) > ROUND_BEHIND_PROMOTION);
    }

    /// A probe may have found it before.
    #[test]
    fn a_promotion_that_is_told_late_is_no_doubt_about_the_new_primary() {
        let mut it = Story::new();
        it.dies();
        it.wait(20);
        it.out_of_recovery(STANDBY, 2, 0);
        let before = it.events.len();
        it.on(Input::Promoted { node: STANDBY, told: None, at: it.now });
        assert_eq!(it.events[before..], []);
    }

    #[test]
    fn a_standby_that_refuses_is_told_of_once() {
        let mut it = Story::new();
        for _ in 0..3 {
            it.on(Input::NotWatched { node: STANDBY, why: "no".to_owned() });
        }
        assert_eq!(it.told(EventKind::Advice), 1);
    }
}
