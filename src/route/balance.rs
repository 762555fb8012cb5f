//! Which of several standbys that all qualify: the better of two drawn at random; of a read that conflicts with replay, among those
//! that are least likely to cancel it.
//!
//! Invariant: only candidates are chosen; a node of twice the weight is drawn twice as often and bears twice the load before
//! it looks as busy. Must not know: why a node is a candidate, sockets, a source of randomness (dice are an argument).

use std::cmp::Reverse;

use super::NodeLoad;
use crate::topology::model::{NodeId, NodeView};

/// A set of nodes without an allocation. Nodes beyond the 128th are never in it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Candidates(u128);

impl Candidates {
    /// Adds a node.
    pub fn insert(&mut self, id: NodeId) {
        if let Some(bit) = 1u128.checked_shl(u32::from(id.0)) {
            self.0 |= bit;
        }
    }

    /// Nobody.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    fn without(self, id: NodeId) -> Self {
        Self(self.0 & !1u128.checked_shl(u32::from(id.0)).unwrap_or(0))
    }

    fn iter(self) -> impl Iterator<Item = NodeId> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let index = rest.trailing_zeros();
            rest &= rest.wrapping_sub(1);
            u16::try_from(index).ok().filter(|_| index < u128::BITS).map(NodeId)
        })
    }
}

/// Draws two candidates by weight and takes the one with less to do. `None` when there are none.
pub fn choose(candidates: Candidates, nodes: &[NodeView], load: &[NodeLoad], dice: u64) -> Option<NodeId> {
    let first = draw(candidates, nodes, dice & 0xffff_ffff)?;
    let Some(second) = draw(candidates.without(first), nodes, dice >> 32) else { return Some(first) };
    Some(if cost(second, nodes, load) < cost(first, nodes, load) { second } else { first })
}

/// Those of the candidates that are least likely to cancel a read: `hot_standby_feedback` comes before a longer
/// `max_standby_streaming_delay`, since it makes conflicts rare and the delay only later, and that before what was seen lately. A
/// standby that has not told its settings yet is taken for PostgreSQL's own.
pub fn calmest(candidates: Candidates, nodes: &[NodeView], load: &[NodeLoad]) -> Candidates {
    let calm = |id: NodeId| {
        let settings = nodes.get(id.index()).and_then(|node| node.settings).unwrap_or_default();
        let conflicts = load.get(id.index()).map_or(0, |load| load.recent_conflicts);
        (settings.hot_standby_feedback, settings.max_standby_streaming_delay, Reverse(conflicts))
    };
    let mut best = Candidates::default();
    if let Some(most) = candidates.iter().map(calm).max() {
        candidates.iter().filter(|id| calm(*id) == most).for_each(|id| best.insert(id));
    }
    best
}

/// Weighted draw; `dice` has 32 random bits.
fn draw(candidates: Candidates, nodes: &[NodeView], dice: u64) -> Option<NodeId> {
    let weight = |id: NodeId| nodes.get(id.index()).map_or(0, |node| u64::from(node.weight));
    let total: u64 = candidates.iter().map(weight).sum();
    let mut mark = u64::try_from((u128::from(dice) * u128::from(total)) >> 32).unwrap_or(0);
    candidates.iter().find(|&id| {
        let share = weight(id);
        let hit = mark < share;
        mark = mark.saturating_sub(share);
        hit
    })
}

/// Expected wait, per unit of weight. Latency is in coarse steps (powers of two), so that noise does not decide.
fn cost(id: NodeId, nodes: &[NodeView], load: &[NodeLoad]) -> u64 {
    let load = load.get(id.index()).copied().unwrap_or_default();
    let weight = nodes.get(id.index()).map_or(1, |node| node.weight.max(1));
    let latency_step = u64::from(load.latency_us | 15).next_power_of_two();
    (u64::from(load.in_flight) + 1).saturating_mul(latency_step).saturating_mul(256) / u64::from(weight)
}
