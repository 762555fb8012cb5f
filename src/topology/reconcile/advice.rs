//! What people are told of a standby's settings, once for each node and cause, and again when it is so again; and of what it cancels.
//!
//! Must not know: who is the primary.

use std::time::Instant;

use super::Reconciler;
use crate::topology::evidence::{EventKind, ProbeResult, Standing};
use crate::topology::model::{Advice, ConflictCounts, NodeId};

impl Reconciler {
    pub(super) fn count_conflicts(&mut self, node: NodeId, counts: ConflictCounts) {
        if let Some(state) = self.nodes.get_mut(node.index()) {
            state.conflicts = Some(counts);
        }
    }

    pub(super) fn advise(&mut self, node: NodeId, result: &ProbeResult, now: Instant) {
        let Some(state) = self.nodes.get_mut(node.index()) else { return };
        let is_standby = matches!(result.standing, Standing::InRecovery { .. });
        let advice = || result.server.standby.advice().filter(|_| is_standby);
        if advice().eq(state.advised.iter().copied()) {
            return;
        }
        let news: Vec<Advice> = advice().filter(|advice| !state.advised.contains(advice)).collect();
        state.advised = advice().collect();
        let name = self.name(node);
        for advice in news {
            self.event(EventKind::Advice, Some(node), format!("{name}: {}", advice.as_str()), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::Story;
    use super::*;
    use crate::topology::evidence::ReplayWait;
    use crate::topology::model::{Slot, StandbySettings};

    /// C08: once for each cause, and again only when it is so again.
    #[test]
    fn a_standby_is_warned_of_once_for_each_cause() {
        let mut it = Story::new();
        let mut told = |feedback, slot| {
            it.settings = StandbySettings { hot_standby_feedback: feedback, slot, ..it.settings };
            it.events.clear();
            it.standby(1000, 1000, ReplayWait::Unknown);
            let told = it.events.iter().filter(|event| event.kind == EventKind::Advice);
            told.map(|event| event.text.clone()).collect::<Vec<String>>()
        };
        assert_eq!(told(true, Slot::Named), [""; 0]);
        let first = told(false, Slot::Named);
        assert!(
            first.len() == 1 && first[0].starts_with("pg1:5432: hot_standby_feedback is off"),
            "{first:?}"
        );
        assert_eq!(told(false, Slot::Named), [""; 0], "it was told");
        let second = told(false, Slot::None);
        assert!(second.len() == 1 && second[0].contains("pg_create_physical_replication_slot"), "{second:?}");
        assert_eq!(told(true, Slot::None), [""; 0]);
        assert_eq!(told(false, Slot::None), first, "it is so again");
    }
}
