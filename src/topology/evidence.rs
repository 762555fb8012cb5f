//! What a probe can bring home: a node's answer about itself, or the way in which it failed to answer; and what others
//! noticed in passing.
//!
//! Invariant: plain data; an answer speaks only of the node that gave it, at a moment after the probe was sent.
//! Must not know: sockets, clocks, what the reconciler makes of it.

use std::sync::Arc;
use std::time::Instant;

use super::model::{ConflictCounts, Lsn, NodeAddress, NodeId, StandbySettings, Timeline};

/// One node of the cluster as configured or discovered: that it exists, and nothing about its health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Where it listens.
    pub address: Arc<NodeAddress>,
    /// Relative share of reads; 0 means none.
    pub weight: u32,
}

impl Node {
    /// A node with weight 1.
    pub fn new(address: NodeAddress) -> Self {
        Self { address: Arc::new(address), weight: 1 }
    }
}

/// What a node said of itself in answer to one probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProbeResult {
    /// Equal on all physical copies of a cluster: proves the same cluster, not the same history.
    pub system_id: u64,
    /// Start of the postmaster, microseconds since 1970: another value means that every older connection is dead.
    pub started_us: i64,
    /// Where it stands.
    pub standing: Standing,
    /// Settings of the server, for advice.
    pub server: ServerFacts,
}

/// In recovery or out of it, with the positions that belong to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Out of recovery: a claim to be the primary.
    OutOfRecovery {
        /// Timeline of the WAL being written now.
        timeline: Timeline,
        /// Flushed so far.
        flush_lsn: Lsn,
        /// Inserted so far, flushed or not.
        insert_lsn: Lsn,
        /// Where its timeline began, when it was promoted since its last start; `None` when not known.
        switch_lsn: Option<Lsn>,
    },
    /// In recovery.
    InRecovery {
        /// Highest timeline known to have been followed. For a role without `pg_monitor` this comes from the control
        /// file and stays old until the next restartpoint after a failover.
        timeline: Timeline,
        /// Timeline its WAL receiver streams now; `None` without a WAL receiver or without `pg_monitor`.
        received_timeline: Option<Timeline>,
        /// Replayed so far.
        replay_lsn: Lsn,
        /// Received and flushed so far.
        receive_lsn: Option<Lsn>,
        /// Replay is paused, or a pause is requested.
        replay_paused: bool,
        /// What replay waits for, should there be WAL that is not replayed yet.
        replay_waits: ReplayWait,
    },
}

/// What a standby's replay waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReplayWait {
    /// For the rest of a record, or on purpose (a pause, an apply delay): readers are not why it stands still.
    NotForReaders,
    /// It works, or waits for something else: if it stands still, readers may be why.
    PerhapsForReaders,
    /// Not asked, as there is nothing to replay, or not told to a role without `pg_monitor`.
    Unknown,
}

/// Settings worth a warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ServerFacts {
    /// `server_version_num`, such as 150006.
    pub version_num: i32,
    /// What decides how often it cancels reads while it is a standby.
    pub standby: StandbySettings,
    /// A WAL receiver runs (standbys only).
    pub wal_receiver_up: bool,
    /// `synchronous_commit` is off, where nothing else is set for the login role.
    pub commits_asynchronously: bool,
}

/// How a probe failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProbeFailure {
    /// An established connection ended: closed socket, reset, 57P01, 57P02.
    Broken,
    /// Nobody listens.
    Refused,
    /// 57P03: starting up, shutting down, in recovery mode.
    NotAccepting,
    /// No answer in time, or no route: the node may live and be out of reach.
    TimedOut,
    /// Its name has no address now. That says nothing of the node: it counts as no answer in time.
    Unresolved,
    /// The node is up and does not let the probe in (password, HBA, database, too many connections).
    LoginRejected,
    /// The probe statement itself failed, or its answer was not understood.
    Unintelligible,
    /// A session of before lives, and no other is let in: it shuts down, and some of its sessions may still commit.
    Closing,
}

impl ProbeFailure {
    /// The failure proves that no session of the node can go on committing (within the limits of
    /// what a closed port proves).
    pub fn proves_gone(self) -> bool {
        matches!(self, Self::Broken | Self::Refused | Self::NotAccepting)
    }

    /// Of a new login: nobody is let in.
    pub fn refuses_all(self) -> bool {
        matches!(self, Self::Refused | Self::NotAccepting)
    }

    /// A phrase for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Broken => "connection broken",
            Self::Refused => "connection refused",
            Self::NotAccepting => "not accepting connections (57P03)",
            Self::TimedOut => "timed out",
            Self::Unresolved => "name not resolved",
            Self::LoginRejected => "probe login rejected",
            Self::Unintelligible => "probe answer not understood",
            Self::Closing => "new logins are refused",
        }
    }
}

/// Why somebody doubts a node. A reason to look, never a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SuspectWhy {
    /// A server connection broke.
    ConnectionBroke,
    /// 57P01, 57P02 or 57P03 came, as an error or as a notice.
    Shutdown,
    /// 25006 from the believed primary.
    ReadOnly,
    /// Connecting failed or timed out.
    ConnectFailed,
    /// Somebody outside says that the primary changes.
    Hint,
    /// The probe's own connection failed.
    ProbeFailed,
    /// The believed primary's answer is overdue.
    ProbeLate,
    /// A standby follows a newer timeline than the believed primary's.
    NewerTimeline,
    /// A standby was promoted, as it told itself.
    Promotion,
}

impl SuspectWhy {
    /// All reasons, in the order of their bits.
    pub const ALL: [Self; 9] = [
        Self::ConnectionBroke,
        Self::Shutdown,
        Self::ReadOnly,
        Self::ConnectFailed,
        Self::Hint,
        Self::ProbeFailed,
        Self::ProbeLate,
        Self::NewerTimeline,
        Self::Promotion,
    ];

    /// A bit of its own, for a set of reasons in one word.
    pub fn bit(self) -> u32 {
        1 << (self as u32)
    }

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::ConnectionBroke => "connection_broke",
            Self::Shutdown => "shutdown",
            Self::ReadOnly => "read_only",
            Self::ConnectFailed => "connect_failed",
            Self::Hint => "hint",
            Self::ProbeFailed => "probe_failed",
            Self::ProbeLate => "probe_late",
            Self::NewerTimeline => "newer_timeline",
            Self::Promotion => "promotion",
        }
    }

    /// A phrase for people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionBroke => "a server connection broke",
            Self::Shutdown => "it announced a shutdown or crash",
            Self::ReadOnly => "it refused a write as read-only",
            Self::ConnectFailed => "connecting to it failed",
            Self::Hint => "a change of the primary was announced",
            Self::ProbeFailed => "its probe failed",
            Self::ProbeLate => "its probe answer is overdue",
            Self::NewerTimeline => "a standby follows a newer timeline",
            Self::Promotion => "a standby was promoted",
        }
    }
}

/// Everything the reconciler can be told.
#[derive(Debug, Clone)]
pub enum Input {
    /// All nodes are being probed now.
    RoundStarted,
    /// A node answered.
    Observation {
        /// Who.
        node: NodeId,
        /// When the probe was sent: what it says was true at or after this moment.
        sent_at: Instant,
        /// When the answer was complete.
        answered_at: Instant,
        /// What it said.
        result: ProbeResult,
    },
    /// A node has let a probe in; its answer is still to come.
    LetIn {
        /// Who.
        node: NodeId,
    },
    /// A standby has told what it has cancelled so far.
    ConflictsCounted {
        /// Who.
        node: NodeId,
        /// What.
        counts: ConflictCounts,
    },
    /// A node did not answer.
    ProbeFailed {
        /// Who.
        node: NodeId,
        /// When the probe (or the connection attempt) began.
        sent_at: Instant,
        /// When it was known to have failed.
        at: Instant,
        /// How.
        why: ProbeFailure,
    },
    /// A node is asked whether it is there, between two rounds.
    PulseSent {
        /// Who.
        node: NodeId,
    },
    /// It is.
    PulseAnswered {
        /// Who.
        node: NodeId,
        /// When it was asked.
        sent_at: Instant,
        /// When the answer was complete.
        at: Instant,
    },
    /// Somebody outside says that the primary changes, or has changed.
    Hint {
        /// Who is to be the primary, where that was said.
        expects: Option<NodeId>,
    },
    /// Somebody doubts a node.
    Suspect {
        /// Who.
        node: NodeId,
        /// Why.
        why: SuspectWhy,
    },
    /// A standby under watch was promoted. Its own answer to a probe is still to come.
    Promoted {
        /// Who.
        node: NodeId,
        /// The timeline that begins and where, once it has told.
        told: Option<(Timeline, Lsn)>,
        /// When that was seen.
        at: Instant,
    },
    /// A standby can't be watched for its promotion.
    NotWatched {
        /// Who.
        node: NodeId,
        /// What it said.
        why: String,
    },
    /// A deadline passed.
    Tick,
}

/// What kind of thing happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EventKind {
    /// A new primary (or a new timeline or start of the same one).
    EpochOpened,
    /// There is no attested primary any more.
    PrimaryLost,
    /// The primary of the same epoch attested itself again.
    PrimaryBack,
    /// A node is taken for something else than before.
    RoleChanged,
    /// Rapid probing began, and why.
    Suspected(SuspectWhy),
    /// In the middle of a doubt somebody said that the primary changes.
    Hinted,
    /// An answer of the primary is overdue by much more than usual: the others are looked at. Not for people.
    AnswerLate,
    /// The doubt is over.
    Cleared,
    /// Replay on a standby stands still while the primary is doubted: reads must leave it.
    ReadersLeave,
    /// They may stay on it again.
    ReadersMayStay,
    /// A standby told that it was promoted, or the node that it follows.
    Promoted,
    /// A setting of a server deserves a warning.
    Advice,
}

impl EventKind {
    /// As what it is counted in the metrics, if it is a reason to look at all nodes.
    pub fn cause(self) -> Option<&'static str> {
        match self {
            Self::Suspected(why) => Some(why.label()),
            Self::Hinted => Some(SuspectWhy::Hint.label()),
            Self::AnswerLate => Some(Self::AnswerLate.as_str()),
            _ => None,
        }
    }

    /// All words that [`Self::cause`] can give.
    pub fn causes() -> Vec<&'static str> {
        SuspectWhy::ALL.into_iter().map(SuspectWhy::label).chain([Self::AnswerLate.as_str()]).collect()
    }

    /// The label in logs and on `/topology`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::EpochOpened => "epoch_opened",
            Self::PrimaryLost => "primary_lost",
            Self::PrimaryBack => "primary_back",
            Self::RoleChanged => "role_changed",
            Self::Suspected(_) => "suspected",
            Self::Hinted => "hinted",
            Self::AnswerLate => "answer_late",
            Self::Cleared => "cleared",
            Self::ReadersLeave => "readers_leave",
            Self::ReadersMayStay => "readers_may_stay",
            Self::Promoted => "promoted",
            Self::Advice => "advice",
        }
    }
}

/// Something that people want to read in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What kind.
    pub kind: EventKind,
    /// About whom.
    pub node: Option<NodeId>,
    /// What and why, one line.
    pub text: String,
}
