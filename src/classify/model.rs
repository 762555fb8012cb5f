//! What a classification says: access, session effects, transaction effects, hints, and the reason.
//!
//! Invariant: small and `Copy`; whatever is not a known read is for the primary, once (contract P7). Must not know: nodes, sessions.

use super::AskedTerms;

/// What the text needs from the node that runs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// Known to be safe on a standby, and safe to run twice.
    Read,
    /// It writes, locks, or changes the session: primary only, never run twice.
    Write,
    /// It is not understood, or calls what nothing is known of: as a write.
    Unknown,
}

/// Why. One word of metrics and logs for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Only known-safe constructs.
    ReadOnly,
    /// Nothing but white space, comments, semicolons.
    Empty,
    /// A hint in the leading comment said primary.
    Hint,
    /// INSERT, UPDATE, DELETE, MERGE, TRUNCATE, COPY FROM.
    ModifiesData,
    /// A data-modifying WITH clause.
    ModifyingCte,
    /// FOR UPDATE / SHARE and kin, LOCK TABLE.
    Locks,
    /// CREATE, ALTER, DROP, GRANT, COMMENT, SELECT INTO, REFRESH ...
    Ddl,
    /// VACUUM, ANALYZE, CLUSTER, REINDEX, CHECKPOINT, ALTER SYSTEM ...
    Maintenance,
    /// A function not known to be safe.
    Function,
    /// A function of PostgreSQL itself that writes, locks or keeps state, and nothing beyond that.
    WritingFunction,
    /// A relation, type or operator that leads to what only the primary can do: foreign and unlogged tables, views over volatile
    /// functions.
    Object,
    /// CALL or DO.
    Procedure,
    /// LISTEN, NOTIFY, UNLISTEN.
    Notification,
    /// SET, RESET, DISCARD, LOAD, SQL-level PREPARE/EXECUTE/DEALLOCATE, cursors ...
    SessionState,
    /// BEGIN, COMMIT, ROLLBACK, SAVEPOINT, two-phase commit ...
    TransactionControl,
    /// EXPLAIN ANALYZE, or COPY (query), over something unsafe.
    UnsafeInner,
    /// Depends on the node itself (SHOW of server-local settings, ...): primary.
    NodeLocal,
    /// The grammar or the bytes are not understood.
    NotUnderstood,
}

impl Reason {
    /// The label in metrics and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ReadOnly => "read_only",
            Self::Empty => "empty",
            Self::Hint => "hint",
            Self::ModifiesData => "modifies_data",
            Self::ModifyingCte => "modifying_cte",
            Self::Locks => "locks",
            Self::Ddl => "ddl",
            Self::Maintenance => "maintenance",
            Self::Function => "function",
            Self::WritingFunction => "writing_function",
            Self::Object => "object",
            Self::Procedure => "procedure",
            Self::Notification => "notification",
            Self::SessionState => "session_state",
            Self::TransactionControl => "transaction_control",
            Self::UnsafeInner => "unsafe_inner",
            Self::NodeLocal => "node_local",
            Self::NotUnderstood => "not_understood",
        }
    }
}

/// State that a statement may leave in its session and that can't be carried to another server: it pins the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PinReason {
    /// Temporary objects.
    TempObject,
    /// Session-level advisory locks.
    AdvisoryLock,
    /// DECLARE ... WITH HOLD.
    HoldCursor,
    /// LISTEN.
    Listen,
    /// SQL-level PREPARE.
    SqlPrepare,
    /// LOAD.
    Load,
    /// setseed.
    Seed,
    /// nextval/setval with a later currval/lastval in mind.
    Sequence,
    /// DO, CALL, or a function that is not known: what it leaves behind can't be seen.
    Unseen,
    /// The client has asked for its server process: it may cancel, end or watch what it was told.
    BackendPid,
    /// Large objects that are open until the transaction ends.
    LargeObject,
    /// A snapshot that others may take over until the transaction ends.
    ExportedSnapshot,
    /// A statement too large to be prepared elsewhere.
    LargeStatement,
    /// A setting whose name is not known: no server lists those with a prefix.
    UnnamedSetting,
    /// Anything else of the kind (dblink connections, replication origins).
    Other,
    /// No statement: the pool is in mode `session`.
    PoolMode,
}

impl PinReason {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 16] = [
        Self::TempObject,
        Self::AdvisoryLock,
        Self::HoldCursor,
        Self::Listen,
        Self::SqlPrepare,
        Self::Load,
        Self::Seed,
        Self::Sequence,
        Self::Unseen,
        Self::BackendPid,
        Self::LargeObject,
        Self::ExportedSnapshot,
        Self::LargeStatement,
        Self::UnnamedSetting,
        Self::Other,
        Self::PoolMode,
    ];

    /// Its cause is gone when the transaction is over.
    pub fn ends_with_transaction(self) -> bool {
        matches!(self, Self::LargeObject | Self::ExportedSnapshot)
    }

    /// DISCARD ALL does not end its cause.
    pub fn outlives_discard_all(self) -> bool {
        matches!(self, Self::Load | Self::Seed | Self::Other | Self::PoolMode)
    }

    /// The label in metrics, logs and error DETAILs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::TempObject => "temp_object",
            Self::AdvisoryLock => "advisory_lock",
            Self::HoldCursor => "hold_cursor",
            Self::Listen => "listen",
            Self::SqlPrepare => "sql_prepare",
            Self::Load => "load",
            Self::Seed => "seed",
            Self::Sequence => "sequence",
            Self::Unseen => "unseen",
            Self::BackendPid => "backend_pid",
            Self::LargeObject => "large_object",
            Self::ExportedSnapshot => "exported_snapshot",
            Self::LargeStatement => "large_statement",
            Self::UnnamedSetting => "unnamed_setting",
            Self::Other => "other",
            Self::PoolMode => "pool_mode",
        }
    }
}

/// A part of the text, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Span {
    /// First byte.
    pub start: u32,
    /// Behind the last.
    pub end: u32,
}

impl Span {
    /// That part of `text`; empty where it has none.
    pub fn of(self, text: &[u8]) -> &[u8] {
        text.get(self.start as usize..self.end as usize).unwrap_or_default()
    }
}

/// What a statement does to the session's settings and prepared names, as far as its text shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum SessionEffect {
    /// Nothing.
    #[default]
    None,
    /// Sets the setting that has this name.
    Set(Span),
    /// Gives the setting that has this name its first value again.
    Reset(Span),
    /// The same until the transaction ends (SET LOCAL ... TO DEFAULT).
    ResetLocal(Span),
    /// RESET ALL.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// DEALLOCATE of one name.
    Deallocate(Span),
    /// DEALLOCATE ALL.
    DeallocateAll,
    /// May change any setting, in a way that the text does not show.
    Unknown,
}

/// A text of several statements resets a setting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub enum Resets {
    /// None, or it is the only statement.
    #[default]
    Alone,
    /// What follows it in the text does not depend on settings.
    AtTheEnd,
    /// What may depend on it runs behind it.
    Before,
}

/// Transaction access mode of BEGIN / SET TRANSACTION.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AccessMode {
    /// Not said: the session's default.
    #[default]
    Default,
    /// READ ONLY.
    ReadOnly,
    /// READ WRITE.
    ReadWrite,
}

/// What a statement does to the transaction block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum TransactionEffect {
    /// Nothing.
    #[default]
    None,
    /// Exactly one plain BEGIN / START TRANSACTION, all its modes understood: may be answered at once and sent later.
    Begin {
        /// Access mode.
        access: AccessMode,
        /// ISOLATION LEVEL SERIALIZABLE was asked for: a standby refuses it.
        serializable: bool,
    },
    /// Exactly one COMMIT / END, without AND CHAIN.
    Commit,
    /// Exactly one ROLLBACK / ABORT, without AND CHAIN and without TO SAVEPOINT.
    Rollback,
    /// Exactly one SET TRANSACTION (this transaction only).
    SetTransaction {
        /// Access mode.
        access: AccessMode,
        /// ISOLATION LEVEL SERIALIZABLE.
        serializable: bool,
    },
    /// Exactly one COMMIT or ROLLBACK with AND CHAIN.
    Chain,
    /// Anything else that touches the transaction: savepoints, 2PC, control inside a multi-statement string.
    /// Sent as it is; what became of it is read from ReadyForQuery.
    Other,
}

/// What a statement that is no read by itself is in a READ ONLY transaction, on the node that this is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum InReadOnly {
    /// Nothing else than its access says.
    #[default]
    AsIs,
    /// Exactly one DECLARE of a cursor over a known read that ends with its transaction, CLOSE, SAVEPOINT, RELEASE, SET LOCAL of a
    /// constant, or SELECT of nothing but such `set_config`s: its success tells nothing, and it can be run again in a transaction that is
    /// begun anew.
    Quiet,
    /// Exactly one SET LOCAL, or SELECT with calls of `set_config` for the transaction and nothing else but reads, whose transaction is not
    /// begun anew: it has told more than it has set, or it says how long a statement may run.
    Sets,
    /// Exactly one FETCH or MOVE.
    Fetches,
}

/// What the leading comment `/* pgsteer: ... */` asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Hint {
    /// `target=standby`, `max_lag=<duration>` and all others.
    pub terms: AskedTerms,
    /// Something in it is not understood.
    pub amiss: bool,
}

/// Where the user wants a statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Target {
    /// Only the primary.
    Primary,
    /// A standby if the statement allows it (it never forces a write there).
    Standby,
}

/// The answer of `classify`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts about a text")]
pub struct Classification {
    /// What it needs.
    pub access: Access,
    /// Why.
    pub reason: Reason,
    /// The first reason to pin the session, if any.
    pub pin: Option<PinReason>,
    /// It runs code whose effects on the session can't be seen: unknown functions, DO, CALL, what is not understood.
    pub unseen: bool,
    /// What it does to the session's settings.
    pub session: SessionEffect,
    /// What it does to the transaction.
    pub transaction: TransactionEffect,
    /// Contains COMMIT / END / PREPARE TRANSACTION anywhere (multi-statement strings included): once sent, an unanswered
    /// transaction's outcome is unknown.
    pub commits: bool,
    /// Number of non-empty statements, saturating.
    pub statements: u16,
    /// CREATE, ALTER or DROP DATABASE among them: nobody else may be connected to what it names.
    pub databases: bool,
    /// CREATE, ALTER or DROP ROLE, USER or GROUP among them: what is known of those it names may be wrong from then on.
    pub roles: bool,
    /// It defines something that may run code beside other statements from then on: a table, a view, a trigger, a function ...
    pub defines: bool,
    /// It calls `pg_terminate_backend` or `pg_cancel_backend`, which may end its own session.
    pub signals: bool,
    /// It may name sessions by their process ids: those two, `pg_blocking_pids`, `pg_locks`, `pg_stat_activity` and its like.
    pub names_processes: bool,
    /// It asks what a sequence gave last (`currval`, `lastval`), which any INSERT of the session may have made it give.
    pub asks_last_value: bool,
    /// It uses prepared statements by their names: PREPARE, EXECUTE, DEALLOCATE of one, `pg_prepared_statements`.
    pub names_prepared: bool,
    /// It uses operators or functions of ParadeDB's search.
    pub search: bool,
    /// SHOW of a setting `pgsteer.…`: only pgsteer knows.
    pub shows_own: bool,
    /// SET of a setting `pgsteer.…`: see `own_assignments`.
    pub sets_own: bool,
    /// It sets `synchronous_commit`, if only for its transaction.
    pub sets_commit: bool,
    /// Whether one of its statements resets a setting.
    pub resets: Resets,
    /// COPY ... FROM STDIN or TO STDOUT among them.
    pub copies: bool,
    /// What it is in a READ ONLY transaction.
    pub in_read_only: InReadOnly,
    /// What the leading comment asks for.
    pub hint: Hint,
}
