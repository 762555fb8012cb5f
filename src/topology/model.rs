//! The words of the topology: nodes, LSNs, timelines, epochs, and the snapshot that routing reads.
//!
//! Invariant: plain data, cheap to clone behind an `Arc`, made by `reconcile` alone. A snapshot names a primary
//! only when that node attested it in its own fresh probe. Must not know: sockets, clocks, configuration files.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Index of a node in the configured list; stable as long as the process lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u16);

impl NodeId {
    /// The node's place in per-node arrays.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A WAL position in bytes, as PostgreSQL's `pg_lsn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xffff_ffff)
    }
}

/// Why a text is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a WAL position (expected hex/hex): {0:?}")]
pub struct LsnParseError(pub String);

impl std::str::FromStr for Lsn {
    type Err = LsnParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fault = || LsnParseError(text.to_owned());
        let (high, low) = text.split_once('/').ok_or_else(fault)?;
        let high = u32::from_str_radix(high, 16).map_err(|_| fault())?;
        let low = u32::from_str_radix(low, 16).map_err(|_| fault())?;
        Ok(Self(u64::from(high) << 32 | u64::from(low)))
    }
}

/// A PostgreSQL timeline. Each promotion opens a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Timeline(pub u32);

impl fmt::Display for Timeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Counts the primaries that pgsteer has seen: each new primary (or new timeline of the same node) opens one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// One life of a server out of recovery: no other server, and no other life of the same one, says all this of itself. A connection leads
/// to the same server as long as it lives, so what was said on it once holds for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Incarnation {
    /// System identifier.
    pub system_id: u64,
    /// Start of the postmaster, microseconds since 1970.
    pub started_us: i64,
    /// The timeline that it writes.
    pub timeline: Timeline,
}

/// Where a node listens.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeAddress {
    /// Host name or IP address, or the directory of a Unix socket when it begins with `/`.
    pub host: String,
    /// TCP port (or the number in the Unix socket's file name).
    pub port: u16,
}

impl fmt::Display for NodeAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// What a node is taken for, and so what it may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Role {
    /// Out of recovery, attested by its own fresh probe, winner of this epoch: writes and reads.
    Primary,
    /// In recovery, same system identifier: reads within the lag budget.
    Standby,
    /// No fresh answer: nothing.
    Unknown,
    /// Out of recovery but not the primary of this epoch (an old primary that returned): nothing.
    Quarantined,
    /// Another system identifier, or otherwise not a node of this cluster: nothing.
    Refused,
}

impl Role {
    /// The word in logs, metrics and `/topology`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Unknown => "unknown",
            Self::Quarantined => "quarantined",
            Self::Refused => "refused",
        }
    }
}

/// By what reads of standbys are judged while the primary is out of reach and may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum OnUnreachable {
    /// By the lag budget: staleness grows with time, and beyond the budget reads are held as writes are.
    #[default]
    Hold,
    /// By what they knew at the primary's last word: reads go on, however old that becomes.
    StaleReads,
}

/// Whether reads may stay on a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Readers {
    /// As far as its staleness allows.
    MayStay,
    /// Its replay stands still, a promotion would wait for that, and readers may be why: it gets no reads, and those that run there
    /// are ended.
    MustLeave,
}

impl Readers {
    /// The word on `/topology`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MayStay => "may_stay",
            Self::MustLeave => "must_leave",
        }
    }
}

/// Whether a node lets anybody in, beside its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Logins {
    /// Nothing is known that its last answer, or failure, does not say.
    #[default]
    AsAnswered,
    /// A probe has been let in since then, and is not answered yet.
    LetIn,
}

/// How long replay on a standby waits for reads that are in its way (`max_standby_streaming_delay`). The greater the better for
/// reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ReplayDelay {
    /// So long after it got the WAL; then it cancels them.
    AtMost(Duration),
    /// For ever (-1).
    Unlimited,
}

/// Whether a standby streams by way of a replication slot (`primary_slot_name`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Slot {
    /// It has one: its primary remembers what it needs, connected or not.
    Named,
    /// It has none.
    None,
}

/// What a standby is set to that decides how often it cancels reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StandbySettings {
    /// `hot_standby_feedback`: its primary keeps the row versions that reads here may see.
    pub hot_standby_feedback: bool,
    /// `max_standby_streaming_delay`
    pub max_standby_streaming_delay: ReplayDelay,
    /// `primary_slot_name`
    pub slot: Slot,
}

impl Default for StandbySettings {
    /// PostgreSQL's own.
    fn default() -> Self {
        Self {
            hot_standby_feedback: false,
            max_standby_streaming_delay: ReplayDelay::AtMost(Duration::from_secs(30)),
            slot: Slot::None,
        }
    }
}

impl StandbySettings {
    /// What should be otherwise.
    pub fn advice(self) -> impl Iterator<Item = Advice> {
        let feedback = (!self.hot_standby_feedback).then_some(Advice::Feedback);
        let slot = (self.slot == Slot::None).then_some(Advice::Slot);
        feedback.into_iter().chain(slot)
    }
}

/// How many statements a standby has cancelled, by kind, since its statistics were reset (`pg_stat_database_conflicts`, all databases).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ConflictCounts(pub [u64; ConflictCounts::KINDS.len()]);

impl ConflictCounts {
    /// The kinds, in order: the names of the columns behind `confl_`.
    pub const KINDS: [&'static str; 6] =
        ["tablespace", "lock", "snapshot", "bufferpin", "deadlock", "active_logicalslot"];
}

/// What should be otherwise on a standby so that reads there are rarely cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Advice {
    /// `hot_standby_feedback` is off.
    Feedback,
    /// It has no replication slot.
    Slot,
}

impl Advice {
    /// What is wrong with it, what comes of that, and what to do.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Feedback => {
                "hot_standby_feedback is off: the primary removes row versions that reads on this standby still need, and \
                 these are cancelled. Set hot_standby_feedback = on there and reload; VACUUM then keeps what the \
                 longest read on a standby may see"
            }
            Self::Slot => {
                "primary_slot_name is empty: without a replication slot the primary forgets what reads on this standby need \
                 (hot_standby_feedback) whenever the connection between them breaks, and may remove WAL that it has not got yet. \
                 Run SELECT pg_create_physical_replication_slot('name') on the node that it follows, set primary_slot_name = \
                 'name' on the standby and reload; max_slot_wal_keep_size bounds the WAL that is kept"
            }
        }
    }

    /// The same in a word, for a table.
    pub fn label(self) -> &'static str {
        match self {
            Self::Feedback => "hot_standby_feedback is off",
            Self::Slot => "no replication slot",
        }
    }
}

/// One node as routing sees it.
#[derive(Debug, Clone)]
pub struct NodeView {
    /// The node.
    pub id: NodeId,
    /// Where it listens.
    pub address: Arc<NodeAddress>,
    /// What it may be given.
    pub role: Role,
    /// Why it has this role: one short phrase for people.
    pub reason: &'static str,
    /// Since when it has had this role without a break. A standby that restarts may come back with less replayed than it
    /// had. `None`: not known.
    pub role_since: Option<Instant>,
    /// Its timeline, as far as known.
    pub timeline: Option<Timeline>,
    /// Standby: replay LSN. Primary: flush LSN. `None` before the first answer.
    pub position: Option<Lsn>,
    /// Standby: WAL received and written, at the probe.
    pub receive_lsn: Option<Lsn>,
    /// When pgsteer *sent* the probe whose answer gave `position`.
    pub sampled_at: Option<Instant>,
    /// Standby: pgsteer's own time up to which this standby is known to have replayed everything that the primary
    /// had flushed. Its staleness at `now` is at most `now - fresh_as_of`, the error of measurement included.
    pub fresh_as_of: Option<Instant>,
    /// Standby: by when the primary was known to have flushed something that is not replayed here; `None`: nothing of the kind is
    /// known. Its staleness at `now` is at least `now - missed_at`.
    pub missed_at: Option<Instant>,
    /// Bytes of WAL flushed on the primary and not replayed here, in the same probe round.
    pub lag_bytes: Option<u64>,
    /// Standby: since when it has had WAL to replay and has replayed none of it.
    pub replay_stands_since: Option<Instant>,
    /// Standby: whether reads may stay there.
    pub readers: Readers,
    /// Whether it lets anybody in.
    pub logins: Logins,
    /// Standby: what decides how often it cancels reads.
    pub settings: Option<StandbySettings>,
    /// Standby: what it has cancelled, as far as it was asked.
    pub conflicts: Option<ConflictCounts>,
    /// Relative share of reads; 0 means none.
    pub weight: u32,
}

impl NodeView {
    /// One of which nothing is known.
    pub fn not_probed(id: NodeId, address: Arc<NodeAddress>) -> Self {
        Self {
            id,
            address,
            role: Role::Unknown,
            reason: "not probed yet",
            role_since: None,
            timeline: None,
            position: None,
            receive_lsn: None,
            sampled_at: None,
            fresh_as_of: None,
            missed_at: None,
            lag_bytes: None,
            replay_stands_since: None,
            readers: Readers::MayStay,
            logins: Logins::AsAnswered,
            settings: None,
            conflicts: None,
            weight: 1,
        }
    }
}

/// The primary of an epoch, with the sample that read-your-writes needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrimaryView {
    /// The node.
    pub node: NodeId,
    /// Its timeline.
    pub timeline: Timeline,
    /// Start of its postmaster, microseconds since 1970.
    pub started_us: i64,
    /// Flush LSN, of a probe sent at `sampled_at`: bounds every synchronous commit answered before that moment.
    pub flush_lsn: Lsn,
    /// Insert LSN of the same probe: bounds asynchronous commits too, but may stay unreached on an idle primary.
    pub insert_lsn: Lsn,
    /// Whether it commits asynchronously by its configuration, as far as nothing else is set for the login role.
    pub commits_asynchronously: bool,
    /// When pgsteer sent that probe.
    pub sampled_at: Instant,
    /// After this moment the claim has expired and nothing may be sent on its strength.
    pub expires_at: Instant,
}

/// Everything routing may know about the cluster, at one moment. Immutable.
#[derive(Debug, Clone)]
pub struct Snapshot {
    /// Grows by one with every snapshot.
    pub version: u64,
    /// Which cluster this is, once a primary or the configuration has said.
    pub system_id: Option<u64>,
    /// The epoch of the last known primary.
    pub epoch: Epoch,
    /// The primary, if one is attested now.
    pub primary: Option<PrimaryView>,
    /// The primary is doubted and rapid probe rounds run; a known primary stays usable until its claim expires.
    pub suspected: bool,
    /// Since when there has been no primary: no commit can be acknowledged, so the staleness of standbys is frozen.
    /// `None` while there is one, and also when the primary is merely out of reach and may live.
    pub frozen_at: Option<Instant>,
    /// Up to when there was none, as far as all nodes have said: since then one of them may have become the primary, so that staleness
    /// grows from there.
    pub vacant_as_of: Option<Instant>,
    /// The last word of a primary that is out of reach and may live: it may go on acknowledging commits of others. `None` while there
    /// is a primary, and when there is provably none.
    pub unreachable_since: Option<Instant>,
    /// What that means for reads.
    pub on_unreachable: OnUnreachable,
    /// All nodes, by `NodeId::index`.
    pub nodes: Box<[NodeView]>,
}

impl Snapshot {
    /// Whether a node is known to have been in recovery behind `sent_at`, when a statement was sent to it: what begins in recovery can't
    /// write, even if the node is promoted under it. What began behind a promotion of which nothing was known yet may have written,
    /// whatever its text says (a function that is declared STABLE and calls others), and is not run there again.
    pub fn was_in_recovery_behind(&self, node: NodeId, sent_at: Instant) -> bool {
        let view = self.node(node).filter(|view| view.role == Role::Standby);
        view.and_then(|view| view.sampled_at).is_some_and(|sampled_at| sampled_at > sent_at)
    }

    /// A snapshot of nodes of which nothing is known yet.
    pub fn unknown(addresses: &[Arc<NodeAddress>]) -> Self {
        let nodes = addresses
            .iter()
            .zip(0u16..)
            .map(|(address, index)| NodeView::not_probed(NodeId(index), Arc::clone(address)))
            .collect();
        Self {
            version: 0,
            system_id: None,
            epoch: Epoch(0),
            primary: None,
            suspected: false,
            frozen_at: None,
            vacant_as_of: None,
            unreachable_since: None,
            on_unreachable: OnUnreachable::Hold,
            nodes,
        }
    }

    /// The view of one node. `None` for an id that this topology does not have.
    pub fn node(&self, id: NodeId) -> Option<&NodeView> {
        self.nodes.get(id.index())
    }

    /// The primary, unless its claim has expired at `now`.
    pub fn primary_at(&self, now: Instant) -> Option<&PrimaryView> {
        self.primary.as_ref().filter(|primary| now < primary.expires_at)
    }

    /// Which life of which server the primary is, if one is attested now. The same as long as the epoch lasts.
    pub fn incarnation(&self) -> Option<Incarnation> {
        let (system_id, primary) = self.system_id.zip(self.primary)?;
        Some(Incarnation { system_id, started_us: primary.started_us, timeline: primary.timeline })
    }

    /// Bytes of WAL that a standby had not replayed of what the primary had flushed, in the last probe round of both; `None` when that
    /// is not known, or while the primary is not, which may have written more since.
    pub fn lag_bytes(&self, node: &NodeView, now: Instant) -> Option<u64> {
        let is_known = self.primary_at(now).is_some() || self.frozen_at.is_some();
        node.lag_bytes.filter(|_| is_known)
    }

    /// Upper bound of a standby's staleness at `now`, error included; `None` when unknown (then it gets no reads). With
    /// [`OnUnreachable::StaleReads`] it is that at the last word of a primary that is out of reach.
    pub fn staleness(&self, node: &NodeView, now: Instant) -> Option<Duration> {
        let until = self.counts_until(now);
        node.fresh_as_of.map(|as_of| until.saturating_duration_since(as_of))
    }

    /// By how much that may be too much: one round trip and one interval, where probes come in time. A standby that has all that is
    /// known of may not be stale at all.
    pub fn staleness_error(&self, node: &NodeView, now: Instant) -> Option<Duration> {
        let until = self.counts_until(now);
        let lacks_since = node.missed_at.map_or(until, |missed| missed.min(until));
        node.fresh_as_of.map(|as_of| lacks_since.saturating_duration_since(as_of))
    }

    /// Up to when staleness grows.
    fn counts_until(&self, now: Instant) -> Instant {
        let last_word = match self.on_unreachable {
            OnUnreachable::Hold => None,
            OnUnreachable::StaleReads => self.unreachable_since,
        };
        let frozen = self.frozen_at.map(|since| {
            let known = self.vacant_as_of.map_or(since, |vacant| vacant.max(since));
            since + now.saturating_duration_since(known)
        });
        frozen.or(last_word).unwrap_or(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P1: only an answer of a standby that was asked behind the sending shows that the statement began in recovery.
    #[test]
    fn only_a_later_answer_in_recovery_shows_that_nothing_was_written() {
        let (sent_at, ms) = (Instant::now(), Duration::from_millis(1));
        let address = Arc::new(NodeAddress { host: "pg1".to_owned(), port: 5432 });
        let mut snapshot = Snapshot::unknown(&[address]);
        for (role, sampled_at, expected) in [
            (Role::Standby, Some(sent_at + ms), true),
            (Role::Standby, Some(sent_at), false),
            (Role::Standby, None, false),
            (Role::Primary, Some(sent_at + ms), false),
            (Role::Unknown, Some(sent_at + ms), false),
        ] {
            (snapshot.nodes[0].role, snapshot.nodes[0].sampled_at) = (role, sampled_at);
            assert_eq!(snapshot.was_in_recovery_behind(NodeId(0), sent_at), expected, "{role:?}");
        }
        assert!(!snapshot.was_in_recovery_behind(NodeId(7), sent_at));
    }
}
