//! How an exchange may go and how it can end: what an error means under the rules of its unit.
//!
//! Invariant: only what can have had no effect is ever called refused. Pure. Must not know: sockets, bytes, what the client has
//! received of it.

use super::Unsent;
use crate::wire::reply::TransactionStatus;
use crate::wire::sqlstate::{self, SqlState};

/// What may be done with errors that come before anything has reached the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Pass everything on as it comes.
    PassOn,
    /// A read outside of a transaction on a standby: held back; conflicts and refusals end the exchange as `Refused`.
    ReadOnStandby,
    /// The same of a session that is for standbys: what a standby refuses, nobody else is to run.
    ReadForStandbys,
    /// A statement outside of a transaction: one that was prepared before its rows changed can be prepared anew.
    Alone,
    /// pgsteer's own question: any error ends it.
    Own,
    /// The first statement of a transaction, or a write outside of one, on a connection that was last known to be in
    /// recovery: a 25006 may mean that this is no primary.
    FirstOnDoubtful,
}

/// How far the exchange is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// ReadyForQuery.
    Ready,
    /// All replies so far (after Flush).
    Settled,
    /// The same for a question of pgsteer's own in the middle of a batch: nothing passes through from the client meanwhile.
    Heard,
    /// Everything sent; replies may come later.
    Sent,
    /// What has come is passed on.
    Drained,
}

/// What a server that is lost has said of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parting {
    /// Nothing that would tell anything of its node.
    Unexplained,
    /// It shuts down or crashed (57P01 and kin).
    Announced,
    /// It had waited too long for the unit, and ended before it had read anything of it (57P05).
    Before,
    /// A standby ended it for the sake of its replay: nothing is wrong with its node. The whole frame of its error.
    Conflict(Vec<u8>),
}

/// Why a standby's server connection is given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leaving {
    /// Its replay stands still, and is not to.
    ReplayStands,
    /// The client does not take its answer.
    ClientStalled,
    /// Nothing has been heard of its node for long.
    NodeSilent,
    /// The time for the statement is over, and it has not ended it.
    Overdue,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// ReadyForQuery came; everything has been passed on.
    Complete(TransactionStatus),
    /// The goal short of ReadyForQuery is reached.
    Settled,
    /// What was prepared gives other rows by now: refused before it began and before anything had reached the client; the server
    /// is ready for another statement.
    PlanChanged,
    /// Refused before anything had reached the client; the server is ready for another statement.
    Refused(SqlState),
    /// The server refused a statement that pgsteer put in before the unit, of which therefore nothing has run.
    NotFit {
        /// SQLSTATE of the error.
        code: SqlState,
        /// Its text.
        message: String,
    },
    /// The server refused a BEGIN that was put off, or what was set for its transaction: nothing of the unit has run.
    NotBegun {
        /// SQLSTATE of the error.
        code: SqlState,
        /// The whole frame of it.
        error: Vec<u8>,
    },
    /// The server is gone.
    ServerLost {
        /// How that showed.
        cause: String,
        /// What it said of it.
        parting: Parting,
    },
    /// The server ended the session for good and the client has its words: nothing of it can run anywhere.
    Dismissed,
    /// The server was given up so that replay there can go on.
    Left {
        /// What of complete frames the client is still to have, the rest of one that it has begun to read among them.
        unsent: Unsent,
        /// Why.
        why: Leaving,
    },
    /// The client is gone.
    ClientGone,
    /// The client leaves a message unfinished.
    Silent,
    /// pgsteer ends.
    Cut,
}

impl Goal {
    /// Whether it is reached when all replies so far have come.
    pub(super) fn is_at_replies(self) -> bool {
        matches!(self, Self::Settled | Self::Heard)
    }
}

impl Rules {
    /// Whether the answer is held back for as long as that is possible.
    pub fn hold_back(self) -> bool {
        matches!(self, Self::ReadOnStandby | Self::ReadForStandbys)
    }

    /// Whether the unit can be run again, should what was prepared for it be out of date.
    pub(super) fn heal(self) -> bool {
        matches!(self, Self::Alone | Self::ReadOnStandby | Self::ReadForStandbys | Self::FirstOnDoubtful)
    }

    /// Whether this error, first of its answer, means "not here" rather than "wrong". `has_results`: something has run before it.
    pub(super) fn is_refusal(self, code: SqlState, has_results: bool) -> bool {
        match self {
            Self::PassOn | Self::Alone => false,
            Self::Own => true,
            Self::ReadOnStandby => {
                matches!(
                    code,
                    sqlstate::SERIALIZATION_FAILURE
                        | sqlstate::DEADLOCK_DETECTED
                        | sqlstate::READ_ONLY_SQL_TRANSACTION
                        | sqlstate::FEATURE_NOT_SUPPORTED
                        | sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE
                        | sqlstate::UNDEFINED_FILE
                        | sqlstate::UNSPECIFIED
                ) || &code.class() == b"42"
            }
            Self::ReadForStandbys => {
                matches!(code, sqlstate::SERIALIZATION_FAILURE | sqlstate::DEADLOCK_DETECTED)
            }
            Self::FirstOnDoubtful => code == sqlstate::READ_ONLY_SQL_TRANSACTION && !has_results,
        }
    }
}

impl Parting {
    /// What an error that ends the session says of its server. `untouched`: nothing of the unit can have been read before it.
    pub(super) fn by(code: SqlState, untouched: bool) -> Self {
        match code {
            sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN | sqlstate::CANNOT_CONNECT_NOW => {
                Self::Announced
            }
            sqlstate::IDLE_SESSION_TIMEOUT if untouched => Self::Before,
            _ => Self::Unexplained,
        }
    }

    /// The error of a conflict.
    pub fn conflict(self) -> Option<Vec<u8>> {
        match self {
            Self::Conflict(error) => Some(error),
            Self::Unexplained | Self::Announced | Self::Before => None,
        }
    }
}
