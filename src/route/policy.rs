//! The policy: one question in, one node and one reason out.
//!
//! Invariant: `Destination::Primary` is only ever the attested, unexpired primary of the snapshot; `Destination::Standby` is
//! a node within every bound. No allocation, no clock, no randomness. Must not know: sockets, pools.

use super::balance::{self, Candidates};
use super::freshness::Lacking;
use super::{Decision, Destination, Need, Prefer, Question, Reason};
use crate::classify::{Consistency, Target};
use crate::topology::model::{NodeView, Readers, Role};

/// Decides where a statement, batch or transaction goes.
///
/// A read that no standby may answer goes to the primary, with the reason of the bound that excluded the last standby: no
/// budget is widened silently. Without a primary it is held, while reads that a standby may answer go on. What is for standbys
/// alone is held while none qualifies.
pub fn route(question: &Question<'_>) -> Decision {
    match (question.need, question.terms.target) {
        (Need::Primary, _) => primary(question, Reason::NeedsPrimary),
        (Need::Read, Some(Target::Primary)) => primary(question, Reason::Asked),
        (Need::Read, _) if question.terms.consistency == Consistency::Primary => {
            primary(question, Reason::Asked)
        }
        (Need::Read, _) => read(question),
        (Need::Standby, _) => standby(question).unwrap_or_else(|obstacle| Decision {
            destination: Destination::Hold,
            reason: obstacle.reason(),
        }),
    }
}

fn primary(question: &Question<'_>, reason: Reason) -> Decision {
    match question.snapshot.primary_at(question.now) {
        Some(primary) => Decision { destination: Destination::Primary(primary.node), reason },
        None => Decision { destination: Destination::Hold, reason: Reason::NoPrimary },
    }
}

fn read(question: &Question<'_>) -> Decision {
    if question.prefer == Prefer::Primary
        && let Decision { destination: Destination::Primary(id), reason } =
            primary(question, Reason::Conflicts)
        && !question.excluded.contains(&id)
    {
        return Decision { destination: Destination::Primary(id), reason };
    }
    standby(question).unwrap_or_else(|obstacle| fall_back(question, obstacle.reason()))
}

/// One of the standbys that qualify; else what kept the last one from it.
fn standby(question: &Question<'_>) -> Result<Decision, Obstacle> {
    let mut candidates = Candidates::default();
    let mut obstacle = Obstacle::NoStandby;
    for node in &question.snapshot.nodes {
        match examine(question, node) {
            None => candidates.insert(node.id),
            Some(other) => obstacle = obstacle.max(other),
        }
    }
    if question.prefer != Prefer::LessBusy {
        candidates = balance::calmest(candidates, &question.snapshot.nodes, question.load);
    }
    let chosen = balance::choose(candidates, &question.snapshot.nodes, question.load, question.dice);
    match chosen {
        Some(id) => {
            Ok(Decision { destination: Destination::Standby(id), reason: Reason::StandbyWithinBudget })
        }
        None => Err(obstacle),
    }
}

/// The last attempt of a read is the primary, unless it has failed there as well.
fn fall_back(question: &Question<'_>, reason: Reason) -> Decision {
    let decision = primary(question, reason);
    match decision.destination {
        Destination::Primary(id) if question.excluded.contains(&id) => {
            Decision { destination: Destination::Hold, reason: Reason::Excluded }
        }
        _ => decision,
    }
}

/// What keeps a node from answering; the further down, the closer it came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Obstacle {
    NoStandby,
    Excluded,
    ReplayStands,
    LagBudget,
    OthersWrites,
    OwnWrites,
    Monotonic,
}

impl Obstacle {
    fn reason(self) -> Reason {
        match self {
            Self::NoStandby => Reason::NoStandby,
            Self::Excluded => Reason::Excluded,
            Self::ReplayStands => Reason::ReplayStands,
            Self::LagBudget => Reason::LagBudget,
            Self::OthersWrites => Reason::OthersWrites,
            Self::OwnWrites => Reason::OwnWrites,
            Self::Monotonic => Reason::Monotonic,
        }
    }
}

fn examine(question: &Question<'_>, node: &NodeView) -> Option<Obstacle> {
    if node.role != Role::Standby || node.weight == 0 {
        return Some(Obstacle::NoStandby);
    }
    if question.excluded.contains(&node.id) {
        return Some(Obstacle::Excluded);
    }
    if node.readers == Readers::MustLeave {
        return Some(Obstacle::ReplayStands);
    }
    let staleness = question.snapshot.staleness(node, question.now);
    if staleness.is_none_or(|staleness| staleness > question.terms.max_lag)
        || !question.terms.max_lag_bytes.admits(question.snapshot.lag_bytes(node, question.now))
    {
        return Some(Obstacle::LagBudget);
    }
    if question.terms.consistency == Consistency::Eventual && !question.freshness.has_brought() {
        return None;
    }
    match question.freshness.lacking(node, question.snapshot) {
        Some(Lacking::Written) => return Some(Obstacle::OwnWrites),
        Some(Lacking::Shown) => return Some(Obstacle::Monotonic),
        None => {}
    }
    let is_seen = |wrote_at| node.fresh_as_of.is_some_and(|as_of| as_of > wrote_at);
    if !question.others_wrote_at.is_none_or(is_seen) {
        return Some(Obstacle::OthersWrites);
    }
    None
}
