//! SQLSTATEs by their condition names (PostgreSQL appendix A), as far as pgsteer sends them or decides by them.
//!
//! Must not know: when they are used.

use std::fmt;

/// Five ASCII characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct SqlState(pub [u8; 5]);

impl SqlState {
    /// As text; `?????` if a server sent something that is not ASCII.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }

    /// The first two characters.
    pub fn class(&self) -> [u8; 2] {
        [self.0[0], self.0[1]]
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

macro_rules! states {
    ($($(#[$doc:meta])* $name:ident = $code:literal;)*) => {
        $($(#[$doc])* pub const $name: SqlState = SqlState(*$code);)*
    };
}

states! {
    /// Not an error.
    WARNING = b"01000";
    /// A FATAL or ERROR that named none.
    UNSPECIFIED = b"XX000";
    /// The connection to the server could not be used.
    CONNECTION_FAILURE = b"08006";
    /// A statement was sent and its outcome is unknown.
    TRANSACTION_RESOLUTION_UNKNOWN = b"08007";
    /// The peer broke the protocol.
    PROTOCOL_VIOLATION = b"08P01";
    /// Not offered.
    FEATURE_NOT_SUPPORTED = b"0A000";
    /// A lock was not to be had in time.
    LOCK_NOT_AVAILABLE = b"55P03";
    /// Not in the right state; also "recovery is in progress".
    OBJECT_NOT_IN_PREREQUISITE_STATE = b"55000";
    /// Startup parameter or value refused.
    INVALID_PARAMETER_VALUE = b"22023";
    /// Not text in the encoding it should be in.
    CHARACTER_NOT_IN_REPERTOIRE = b"22021";
    /// A write on a standby, or in a READ ONLY transaction.
    READ_ONLY_SQL_TRANSACTION = b"25006";
    /// Commands ignored until the end of the transaction block.
    IN_FAILED_SQL_TRANSACTION = b"25P02";
    /// The server ended a session for its idle transaction.
    IDLE_IN_TRANSACTION_SESSION_TIMEOUT = b"25P03";
    /// The server ended a session for its long transaction.
    TRANSACTION_TIMEOUT = b"25P04";
    /// The server ended an idle session.
    IDLE_SESSION_TIMEOUT = b"57P05";
    /// No such role, or login refused.
    INVALID_AUTHORIZATION_SPECIFICATION = b"28000";
    /// Wrong password.
    INVALID_PASSWORD = b"28P01";
    /// There is no such prepared statement.
    INVALID_SQL_STATEMENT_NAME = b"26000";
    /// Not SQL: nothing was carried out.
    SYNTAX_ERROR = b"42601";
    /// No such object; of a parameter: no such parameter.
    UNDEFINED_OBJECT = b"42704";
    /// A setting that can't be set.
    CANT_CHANGE_RUNTIME_PARAM = b"55P02";
    /// Safe to run again; on a standby: recovery conflict.
    SERIALIZATION_FAILURE = b"40001";
    /// Deadlock; on a standby: a conflict with the startup process.
    DEADLOCK_DETECTED = b"40P01";
    /// No free connection.
    TOO_MANY_CONNECTIONS = b"53300";
    /// Not allowed to the user.
    INSUFFICIENT_PRIVILEGE = b"42501";
    /// Cancelled by the user.
    QUERY_CANCELED = b"57014";
    /// Shutdown or terminated by an administrator.
    ADMIN_SHUTDOWN = b"57P01";
    /// A backend crashed.
    CRASH_SHUTDOWN = b"57P02";
    /// Starting up, shutting down, or no primary.
    CANNOT_CONNECT_NOW = b"57P03";
    /// The database was dropped.
    DATABASE_DROPPED = b"57P04";
    /// A library or file is missing on that node.
    UNDEFINED_FILE = b"58P01";
}

/// A FATAL by which the server ends this session on purpose: nothing was lost, and it is the client's to hear.
pub fn dismisses(code: SqlState) -> bool {
    matches!(
        code,
        DATABASE_DROPPED | IDLE_IN_TRANSACTION_SESSION_TIMEOUT | TRANSACTION_TIMEOUT | IDLE_SESSION_TIMEOUT
    )
}

/// Whether an error with this SQLSTATE may be gone when the same is asked again: connections, rollbacks, resources, an
/// operator's intervention.
pub fn passes(code: SqlState) -> bool {
    match &code.class() {
        b"08" | b"40" | b"53" => true,
        b"57" => code != DATABASE_DROPPED,
        _ => code == LOCK_NOT_AVAILABLE,
    }
}

/// On a standby: it cancelled the statement for the sake of its replay, and nothing else (nothing there is SERIALIZABLE, or locks rows).
pub fn is_recovery_conflict(code: SqlState) -> bool {
    matches!(code, SERIALIZATION_FAILURE | DEADLOCK_DETECTED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_servers_final_word_is_told_from_a_passing_one() {
        for code in ["08006", "40001", "53300", "53400", "57014", "57P01", "57P02", "57P03", "55P03"] {
            assert!(passes(SqlState(code.as_bytes().try_into().unwrap())), "{code}");
        }
        for code in ["42501", "42883", "42P01", "28000", "28P01", "3D000", "57P04", "55000", "22023", "XX000"]
        {
            assert!(!passes(SqlState(code.as_bytes().try_into().unwrap())), "{code}");
        }
    }
}
