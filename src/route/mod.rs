//! Statement needs + session facts + one topology snapshot + dice -> node and reason. Pure.
//!
//! Invariant: a write is only ever given the attested, unexpired primary; a read goes to a standby only within every
//! bound (lag budget, own writes, monotonic reads), otherwise to the primary. Must not know: sockets, pools, clocks.

pub mod balance;
pub mod freshness;
pub mod policy;
pub mod terms;
pub mod token;

use std::time::{Duration, Instant};

use crate::classify::Overrides;
use crate::topology::model::{NodeId, Snapshot};

pub use policy::route;
pub use terms::{OwnTerms, Terms};

/// What a statement, batch or whole transaction needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// The primary and nothing else.
    Primary,
    /// Any node that is fresh enough.
    Read,
    /// A standby that is fresh enough and nothing else, whatever it is that runs there.
    Standby,
}

/// How much of a node's capacity this shard uses now; index by `NodeId::index`.
#[derive(Debug, Clone, Copy, Default)]
pub struct NodeLoad {
    /// Statements sent and not answered.
    pub in_flight: u32,
    /// Smoothed time from sending to the end of the answer, microseconds.
    pub latency_us: u32,
    /// Statements that it has cancelled for the sake of its replay, the older ones counted for less.
    pub recent_conflicts: u32,
}

/// Which of the nodes within all bounds a read is to have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Prefer {
    /// The standby with less to do.
    #[default]
    LessBusy,
    /// The standby that is least likely to cancel it.
    FewerConflicts,
    /// The primary, where it never is cancelled; without one, that standby.
    Primary,
}

/// What an endpoint is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Reads to standbys, writes to the primary.
    Split,
    /// Everything to the primary.
    Primary,
    /// Everything to standbys.
    Standby,
    /// Everything to standbys; to the primary while there is none that qualifies.
    PreferStandby,
}

impl Mode {
    /// The word in configuration and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Split => "split",
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::PreferStandby => "prefer-standby",
        }
    }
}

/// Settings of routing (`[routing]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What the ordinary endpoint is for: `Split` or `Primary`.
    pub mode: Mode,
    /// What reads promise, where nobody has anything of its own.
    pub terms: Terms,
    /// What some have of their own.
    pub own: OwnTerms,
    /// At most so many reads at a time run on the primary for want of a standby; 0: no limit.
    pub primary_read_limit: usize,
    /// So long a read waits for a standby that has what its session, or another one lately, has written, before it goes to the
    /// primary; zero: it goes there at once. Where `terms` have a wait of their own that one holds.
    pub catch_up_wait: Duration,
    /// For so long after a write of any session the others are to see it; zero: never.
    pub recent_writes: Duration,
    /// Functions that are reads or writes whatever the catalogue says.
    pub functions: Overrides,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            mode: Mode::Split,
            terms: Terms::default(),
            own: OwnTerms::default(),
            primary_read_limit: 0,
            catch_up_wait: Duration::from_millis(20),
            recent_writes: Duration::from_secs(1),
            functions: Overrides::default(),
        }
    }
}

/// All that the policy looks at.
#[derive(Debug)]
pub struct Question<'a> {
    /// What is to run.
    pub need: Need,
    /// What is promised of it and asked for.
    pub terms: Terms,
    /// When another session's write was answered last, where reads are to see it.
    pub others_wrote_at: Option<Instant>,
    /// The session's own bounds.
    pub freshness: &'a freshness::Freshness,
    /// Nodes that this statement already failed on: not chosen again.
    pub excluded: &'a [NodeId],
    /// Which of the others a read is to have.
    pub prefer: Prefer,
    /// Load of each node, as this shard sees it.
    pub load: &'a [NodeLoad],
    /// The topology.
    pub snapshot: &'a Snapshot,
    /// The time.
    pub now: Instant,
    /// Random bits.
    pub dice: u64,
}

/// Why this node. One label for metrics, logs and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// The statement needs the primary.
    NeedsPrimary,
    /// A read on a standby within every bound.
    StandbyWithinBudget,
    /// Asked for by a hint, by the endpoint or by what its session promises (`consistency`).
    Asked,
    /// No standby is up.
    NoStandby,
    /// Standbys are up, none within the lag budget, in time or in bytes.
    LagBudget,
    /// No standby has (provably) replayed what another session has just written.
    OthersWrites,
    /// No standby has (provably) replayed what this session wrote, or saw on the primary.
    OwnWrites,
    /// No standby has (provably) replayed what another one has shown this session.
    Monotonic,
    /// Every node that qualifies has already failed for this statement.
    Excluded,
    /// A promotion may be waiting for the replay of every standby that qualifies.
    ReplayStands,
    /// There is no attested primary now.
    NoPrimary,
    /// Standbys cancel it (conflicts with recovery).
    Conflicts,
}

impl Reason {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 12] = [
        Self::NeedsPrimary,
        Self::StandbyWithinBudget,
        Self::Asked,
        Self::NoStandby,
        Self::LagBudget,
        Self::OthersWrites,
        Self::OwnWrites,
        Self::Monotonic,
        Self::Excluded,
        Self::ReplayStands,
        Self::NoPrimary,
        Self::Conflicts,
    ];

    /// A read has no standby that may answer it, though others of its kind would have one.
    pub fn is_want_of_standby(self) -> bool {
        matches!(
            self,
            Self::NoStandby
                | Self::LagBudget
                | Self::OwnWrites
                | Self::Monotonic
                | Self::Excluded
                | Self::ReplayStands
        )
    }

    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NeedsPrimary => "needs_primary",
            Self::StandbyWithinBudget => "standby_within_budget",
            Self::Asked => "asked",
            Self::NoStandby => "no_standby",
            Self::LagBudget => "lag_budget",
            Self::OthersWrites => "others_writes",
            Self::OwnWrites => "own_writes",
            Self::Monotonic => "monotonic",
            Self::Excluded => "excluded",
            Self::ReplayStands => "replay_stands",
            Self::NoPrimary => "no_primary",
            Self::Conflicts => "conflicts",
        }
    }
}

/// Where to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Destination {
    /// The primary of this snapshot's epoch.
    Primary(NodeId),
    /// This standby.
    Standby(NodeId),
    /// Wait for another snapshot: nobody may run it now.
    Hold,
}

/// The answer of the policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision {
    /// Where to.
    pub destination: Destination,
    /// Why.
    pub reason: Reason,
}

#[cfg(test)]
mod tests;
