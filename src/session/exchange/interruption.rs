//! How a standby interrupts what runs there: what is counted of it, and whether it was for the sake of its replay.
//!
//! Invariant: by SQLSTATE, never by the text of a message. Pure. Must not know: whether it is run again.

use super::{Ended, Leaving, Parting};
use crate::wire::sqlstate::{self, SqlState};

/// A statement was cancelled, or lost with its server connection. The discriminant is the index of its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Interruption {
    /// A conflict with recovery.
    Conflict,
    /// One that had become a deadlock with it.
    Deadlock,
    /// The server was shut down, or an administrator has ended the connection.
    Shutdown,
    /// The server has crashed.
    Crash,
    /// It starts or stops.
    NotAccepting,
    /// The database was dropped.
    Dropped,
    /// Another error that ended the connection.
    Other,
    /// The connection ended without one.
    Silent,
}

impl Interruption {
    /// The words for them in metrics.
    pub const LABELS: [&'static str; 8] =
        ["40001", "40P01", "57P01", "57P02", "57P03", "57P04", "other", "none"];

    /// Of an exchange with a standby that ended so. `last`: the first error that was passed on, or that by which the server ended
    /// the connection.
    pub fn of(ended: &Ended, last: Option<SqlState>) -> Option<Self> {
        match ended {
            Ended::Refused(code) | Ended::NotFit { code, .. } | Ended::NotBegun { code, .. } => {
                Some(*code).filter(|code| sqlstate::is_recovery_conflict(*code)).map(Self::by)
            }
            Ended::Complete(_) | Ended::Settled => {
                last.filter(|code| sqlstate::is_recovery_conflict(*code)).map(Self::by)
            }
            Ended::Dismissed => last.filter(|code| *code == sqlstate::DATABASE_DROPPED).map(Self::by),
            Ended::ServerLost { parting: Parting::Before, .. } => None,
            Ended::Left { why: Leaving::NodeSilent | Leaving::Overdue, .. } => Some(Self::Silent),
            Ended::ServerLost { .. } => Some(last.map_or(Self::Silent, Self::by)),
            _ => None,
        }
    }

    fn by(code: SqlState) -> Self {
        match code {
            sqlstate::SERIALIZATION_FAILURE => Self::Conflict,
            sqlstate::DEADLOCK_DETECTED => Self::Deadlock,
            sqlstate::ADMIN_SHUTDOWN => Self::Shutdown,
            sqlstate::CRASH_SHUTDOWN => Self::Crash,
            sqlstate::CANNOT_CONNECT_NOW => Self::NotAccepting,
            sqlstate::DATABASE_DROPPED => Self::Dropped,
            _ => Self::Other,
        }
    }

    /// It was for the sake of replay there, and would not have been elsewhere.
    pub fn is_conflict(self) -> bool {
        matches!(self, Self::Conflict | Self::Deadlock)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::reply::TransactionStatus;

    /// C01, C02, C04, C09.
    #[test]
    fn an_interruption_is_told_by_its_sqlstate() {
        let lost = |parting| Ended::ServerLost { cause: String::new(), parting };
        let complete = Ended::Complete(TransactionStatus::Idle);
        let not_fit = |code| Ended::NotFit { code, message: String::new() };
        let division = SqlState(*b"22012");
        for (ended, last, expected) in [
            (Ended::Refused(sqlstate::SERIALIZATION_FAILURE), None, Some(Interruption::Conflict)),
            (Ended::Refused(sqlstate::DEADLOCK_DETECTED), None, Some(Interruption::Deadlock)),
            (Ended::Refused(sqlstate::READ_ONLY_SQL_TRANSACTION), None, None),
            (lost(Parting::Unexplained), None, Some(Interruption::Silent)),
            (lost(Parting::Unexplained), Some(division), Some(Interruption::Other)),
            (lost(Parting::Announced), Some(sqlstate::CRASH_SHUTDOWN), Some(Interruption::Crash)),
            (
                lost(Parting::Conflict(Vec::new())),
                Some(sqlstate::SERIALIZATION_FAILURE),
                Some(Interruption::Conflict),
            ),
            (lost(Parting::Before), Some(sqlstate::IDLE_SESSION_TIMEOUT), None),
            (not_fit(sqlstate::SERIALIZATION_FAILURE), None, Some(Interruption::Conflict)),
            (not_fit(division), None, None),
            (Ended::Dismissed, Some(sqlstate::DATABASE_DROPPED), Some(Interruption::Dropped)),
            (Ended::Dismissed, Some(sqlstate::ADMIN_SHUTDOWN), None),
            (Ended::ClientGone, Some(sqlstate::SERIALIZATION_FAILURE), None),
        ] {
            assert_eq!(Interruption::of(&ended, last), expected, "{ended:?} {last:?}");
        }
        assert_eq!(
            Interruption::of(&complete, Some(sqlstate::SERIALIZATION_FAILURE)),
            Some(Interruption::Conflict)
        );
        assert_eq!(Interruption::of(&complete, Some(division)), None);
        assert_eq!(Interruption::LABELS[Interruption::Silent as usize], "none");
        assert_eq!(Interruption::LABELS[Interruption::Dropped as usize], "57P04");
    }
}
