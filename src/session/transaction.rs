//! Where a session's transaction stands, as the client sees it.
//!
//! Invariant: `Deferred` means that not a byte of the transaction has been sent to any server, or that nothing is left of what was;
//! `Lost` means that its server
//! is gone and its COMMIT was never sent, so that it is certainly rolled back. Must not know: sockets, servers.

use super::so_far::Rerun;
use crate::classify::AccessMode;
use crate::wire::reply::TransactionStatus;

/// The transaction block.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Transaction {
    /// None: each statement is its own.
    #[default]
    None,
    /// BEGIN was answered and is sent with the first statement.
    Deferred {
        /// BEGIN as the client wrote it, and behind it, apart by NULs, each SET TRANSACTION (`statements`).
        sql: Box<str>,
        /// READ ONLY or not.
        access: AccessMode,
        /// Asked for SERIALIZABLE.
        serializable: bool,
        /// What had been run behind it on a server that is gone, and is sent between BEGIN and that statement. The client has been told
        /// that it succeeded, and nothing else.
        again: Box<[Rerun]>,
    },
    /// Open on the attached server.
    Open,
    /// Failed on the attached server.
    Failed,
    /// Its server was lost.
    Lost {
        /// The client has been told.
        told: bool,
        /// All that it did was to read, on a standby, and its client was told all of it.
        only_read: OnlyRead,
    },
}

/// BEGIN with one more statement behind it.
pub fn followed_by(begin: &str, statement: &str) -> String {
    [begin, statement].join("\0")
}

/// The statements of which a transaction that was put off consists so far. A text has no NULs.
pub fn statements(sql: &str) -> impl Iterator<Item = &str> {
    sql.split('\0')
}

/// Whether a transaction that is lost has done nothing but read, and has left nothing in its session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnlyRead {
    /// It has.
    Yes,
    /// By its text; what else its reads may have done was not known when it was lost.
    ByItsText,
    /// It may have done more.
    No,
}

impl Transaction {
    /// Its server was lost, and the client has been told.
    pub const LOST_AND_TOLD: Self = Self::Lost { told: true, only_read: OnlyRead::No };

    /// From what a server says.
    pub fn from_status(status: TransactionStatus) -> Self {
        match status {
            TransactionStatus::Idle => Self::None,
            TransactionStatus::InTransaction => Self::Open,
            TransactionStatus::Failed => Self::Failed,
        }
    }

    /// As ReadyForQuery says it to the client.
    pub fn status(&self) -> TransactionStatus {
        match self {
            Self::None => TransactionStatus::Idle,
            Self::Deferred { .. } | Self::Open | Self::Lost { told: false, .. } => {
                TransactionStatus::InTransaction
            }
            Self::Failed | Self::Lost { told: true, .. } => TransactionStatus::Failed,
        }
    }

    /// Whether it lives on a server.
    pub fn is_on_server(&self) -> bool {
        matches!(self, Self::Open | Self::Failed)
    }

    /// Whether anything of it has run, on a server that may be gone.
    pub fn has_run(&self) -> bool {
        self.is_on_server() || matches!(self, Self::Deferred { again, .. } if !again.is_empty())
    }

    /// Whether a READ ONLY transaction has been announced and nothing of it sent.
    pub fn is_deferred_read_only(&self) -> bool {
        matches!(self, Self::Deferred { access: AccessMode::ReadOnly, serializable: false, .. })
    }
}
