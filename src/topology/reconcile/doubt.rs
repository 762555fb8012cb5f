//! Doubts: what makes everybody look at all nodes in rapid rounds, and what ends that.
//!
//! Invariant: a doubt decides nothing; rapid rounds are bounded in time. Must not know: who doubts, clocks (`now` is an argument).

use std::time::{Duration, Instant};

use super::Reconciler;
use super::promotion::ROUND_BEHIND_PROMOTION;
use crate::topology::evidence::{EventKind, Standing, SuspectWhy};
use crate::topology::model::{NodeId, Role};

/// Rapid rounds go on at least this long after a doubt.
const SUSPICION_LASTS: Duration = Duration::from_millis(200);
/// A doubt that nothing resolves ends rapid rounds after this time.
const RAPID_LASTS: Duration = Duration::from_secs(60);
/// Whoever says that the primary changes says so before the promotion is complete: it is looked for so long.
pub(super) const HINT_LASTS: Duration = Duration::from_secs(5);

/// A doubt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Suspicion {
    pub(super) node: NodeId,
    pub(super) since: Instant,
    /// All that is known is that an answer is overdue.
    pub(super) only_late: bool,
}

/// Somebody said that the primary changes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hint {
    /// When that was first said.
    since: Instant,
    /// When it was last said.
    renewed_at: Instant,
    /// Who is to be the primary.
    expects: Option<NodeId>,
}

impl Reconciler {
    /// Time between two rounds, as things stand. `sample_wanted`: sessions wait to know how far standbys are.
    pub fn round_interval(&self, sample_wanted: bool, now: Instant) -> Duration {
        if self.is_promotion_under_way(now) {
            return ROUND_BEHIND_PROMOTION.min(self.settings.rapid_interval);
        }
        match self.rapid_since {
            Some(since) if now.saturating_duration_since(since) < RAPID_LASTS => self.settings.rapid_interval,
            _ if sample_wanted => self.settings.sample_interval.min(self.settings.probe_interval),
            _ => self.settings.probe_interval,
        }
    }

    pub(super) fn suspect(&mut self, node: NodeId, why: SuspectWhy, now: Instant) {
        let reigns = self.reign.is_none_or(|reign| reign.node == node);
        if !reigns && self.nodes.get(node.index()).is_none_or(|node| node.role != Role::Standby) {
            // Known not to be well already; whoever goes on trying it must not keep rapid rounds alive.
            return;
        }
        if self.suspicion.is_none() {
            let text = format!("{} is suspected: {}", self.name(node), why.as_str());
            self.event(EventKind::Suspected(why), Some(node), text, now);
        }
        // A hint or a client's trouble restarts the rapid period; a probe that goes on failing does not.
        if !matches!(why, SuspectWhy::ProbeFailed | SuspectWhy::ProbeLate) {
            self.rapid_since = None;
        }
        let late = why == SuspectWhy::ProbeLate;
        let only_late = late && self.suspicion.is_none_or(|before| before.only_late);
        self.suspicion = Some(Suspicion { node, since: now, only_late });
        self.rapid_since.get_or_insert(now);
    }

    /// Said again and again (as long as a pause lasts) it is one hint, and one doubt: the primary need not attest itself anew.
    pub(super) fn hinted(&mut self, expects: Option<NodeId>, now: Instant) {
        let since = self.hint.map_or(now, |before| before.since);
        let is_new = self.hint.replace(Hint { since, renewed_at: now, expects }).is_none();
        self.rapid_since = Some(now);
        let Some(reign) = self.reign.filter(|_| is_new) else { return };
        if self.suspicion.is_some() {
            let text = format!("{} may be replaced: {}", self.name(reign.node), SuspectWhy::Hint.as_str());
            self.event(EventKind::Hinted, Some(reign.node), text, now);
        }
        self.suspect(reign.node, SuspectWhy::Hint, now);
    }

    /// A hint is over with a new epoch, with the primary that it told of, and with its time.
    fn end_hint(&mut self, now: Instant) {
        let Some(hint) = self.hint else { return };
        let opened = self.reign.is_some_and(|reign| reign.opened_at > hint.since);
        let expected = self
            .primary
            .is_some_and(|primary| hint.expects == Some(primary.node) && primary.sampled_at > hint.since);
        if expected || (opened && self.primary.is_some()) || now >= hint.renewed_at + HINT_LASTS {
            self.hint = None;
        }
    }

    /// Raises doubts that follow from the picture itself, and ends those that it answers.
    pub(super) fn doubt(&mut self, now: Instant) {
        self.end_hint(now);
        if let Some(primary) = self.primary
            && now >= primary.sampled_at + self.late_after()
            && self.suspicion.is_none()
        {
            self.suspect(primary.node, SuspectWhy::ProbeLate, now);
        }
        self.doubt_by_newer_timeline(now);
        if self.primary.is_none() || self.late_since.is_some() || self.hint.is_some() {
            self.rapid_since.get_or_insert(now);
        }
        let (Some(suspicion), Some(primary)) = (self.suspicion, self.primary) else {
            let is_calm = self.suspicion.is_none() && self.late_since.is_none() && self.hint.is_none();
            if is_calm && self.primary.is_some() {
                self.rapid_since = None;
            }
            return;
        };
        let heard = self.nodes.get(suspicion.node.index()).and_then(|node| node.heard_at);
        if self.hint.is_none()
            && primary.sampled_at > suspicion.since
            && heard.is_some_and(|at| at > suspicion.since)
            && now >= suspicion.since + SUSPICION_LASTS
            && now < primary.sampled_at + self.late_after()
        {
            self.suspicion = None;
            self.rapid_since = None;
            let text = format!("the picture is clear: {} is the primary", self.name(primary.node));
            self.event(EventKind::Cleared, Some(primary.node), text, now);
        }
    }

    fn doubt_by_newer_timeline(&mut self, now: Instant) {
        let (Some(reign), ttl) = (self.reign, self.settings.claim_ttl) else { return };
        let newest = self
            .nodes
            .iter()
            .filter(|node| node.role == Role::Standby)
            .filter_map(|node| node.live(now, ttl))
            .filter_map(|answer| match answer.result.standing {
                Standing::InRecovery { timeline, .. } => Some(timeline),
                Standing::OutOfRecovery { .. } => None,
            })
            .max();
        if let Some(newest) =
            newest.filter(|&newest| newest > reign.timeline && newest > self.newer_timeline_seen)
        {
            self.newer_timeline_seen = newest;
            self.suspect(reign.node, SuspectWhy::NewerTimeline, now);
        }
    }

    /// An answer of the primary is overdue after so long.
    pub(super) fn late_after(&self) -> Duration {
        (self.settings.probe_interval * 3).min(self.settings.claim_ttl)
    }
}

#[cfg(test)]
mod tests {
    use super::super::Settings;
    use super::super::tests::{PRIMARY, STANDBY, Story};
    use super::*;
    use crate::topology::evidence::{Input, ReplayWait};
    use crate::topology::model::{Epoch, Readers};

    const DOUBT: EventKind = EventKind::Suspected(SuspectWhy::Hint);

    impl Story {
        fn hint(&mut self, expects: Option<NodeId>) {
            self.on(Input::Hint { expects });
        }

        /// Both answer every 5 ms.
        fn goes_on(&mut self, ms: u64) {
            for _ in 0..ms / 5 {
                self.wait(5);
                self.primary();
                self.standby(1000, 2000, ReplayWait::PerhapsForReaders);
            }
        }

        fn is_rapid(&self) -> bool {
            self.interval() == Settings::default().rapid_interval
        }
    }

    #[test]
    fn a_hint_makes_no_primary_and_ends_with_the_promotion() {
        let mut it = Story::new();
        it.hint(None);
        assert!(it.is_rapid() && it.snapshot().suspected);
        it.goes_on(1000);
        assert_eq!((it.snapshot().epoch, it.snapshot().primary.map(|it| it.node)), (Epoch(1), Some(PRIMARY)));
        assert!(it.is_rapid(), "a promotion may take longer than it takes the old primary to answer");
        it.wait(5);
        it.out_of_recovery(STANDBY, 2, 0);
        assert_eq!(it.snapshot().primary.map(|it| it.node), Some(STANDBY));
        it.wait(200);
        it.on(Input::Suspect { node: PRIMARY, why: SuspectWhy::ConnectionBroke });
        it.out_of_recovery(STANDBY, 2, 0);
        assert!(it.judge.hint.is_none());
    }

    #[test]
    fn a_hint_that_comes_to_nothing_ends_with_its_time() {
        let mut it = Story::new();
        it.hint(None);
        it.goes_on(4_995);
        assert!(it.is_rapid());
        it.goes_on(5);
        assert!(!it.is_rapid() && !it.snapshot().suspected);
        assert_eq!((it.told(DOUBT), it.told(EventKind::Cleared)), (1, 1));
    }

    #[test]
    fn a_hint_of_who_is_the_primary_already_is_over_when_that_is_seen() {
        let mut it = Story::new();
        it.hint(Some(PRIMARY));
        it.goes_on(205);
        assert!(!it.is_rapid());
        it.hint(Some(STANDBY));
        it.goes_on(1000);
        assert!(it.is_rapid());
    }

    /// A pause says it as long as it lasts; a primary that answers costs no reader, however far away it is.
    #[test]
    fn a_hint_that_is_renewed_is_one_doubt() {
        let mut it = Story::new();
        for _ in 0..100 {
            it.hint(None);
            it.goes_on(30);
        }
        assert_eq!(it.told(DOUBT) + it.told(EventKind::Hinted), 1);
        assert_eq!(it.told(EventKind::ReadersLeave), 0);
        assert_eq!(it.snapshot().node(STANDBY).map(|it| it.readers), Some(Readers::MayStay));
    }

    #[test]
    fn a_hint_in_the_middle_of_a_doubt_is_told_and_restarts_rapid_rounds() {
        let mut it = Story::new();
        it.primary_dies(crate::topology::evidence::ProbeFailure::Refused);
        it.wait(70_000);
        assert!(!it.is_rapid());
        it.hint(Some(STANDBY));
        assert!(it.is_rapid());
        assert_eq!((it.told(EventKind::Hinted), it.told(DOUBT)), (1, 0));
    }
}
