//! The errors that pgsteer itself reports, each with what happened and what to do (contract P4; design section 1).
//!
//! Invariant: 40001 only when the transaction is certainly rolled back; 08007 whenever it may have committed.
//! Must not know: sockets.

use std::time::Duration;

use crate::classify::PinReason;
use crate::wire::reply::{Report, Severity};
use crate::wire::sqlstate::{self as state, SqlState};

/// A transaction whose server is gone and whose COMMIT was never sent.
pub fn transaction_lost(cause: &str) -> Report {
    Report::error(
        state::SERIALIZATION_FAILURE,
        "pgsteer: the transaction was rolled back because its server was lost",
    )
    .detail(format!("{cause}. No COMMIT had been sent, so nothing of the transaction remains."))
    .hint("End the transaction (ROLLBACK) and run it again.")
}

/// A statement or COMMIT that was sent and not answered.
pub fn outcome_unknown(cause: &str) -> Report {
    Report::error(
        state::TRANSACTION_RESOLUTION_UNKNOWN,
        "pgsteer: the server was lost before it answered; the outcome of the statement is unknown",
    )
    .detail(format!("{cause}. The statement had been sent and may have been carried out and committed."))
    .hint("Look whether its effect is there before running it again.")
}

/// A read that was lost and is not run again.
pub fn read_interrupted(loss: &Loss) -> Report {
    Report::error(loss.code, loss.message)
        .detail(format!("{}. The statement only read.", loss.cause))
        .hint(loss.hint)
}

/// Why a server connection to a standby was given up.
pub const LEFT_FOR_REPLAY: &str =
    "Replay on the standby stood still while the primary was doubted, so pgsteer ended what ran there";

/// Why a server connection is gone in the middle of something.
#[derive(Debug)]
pub struct Loss {
    /// One sentence without its full stop.
    pub cause: String,
    /// What the client of a read may do.
    pub hint: &'static str,
    /// A read of which nothing was delivered may run on another server.
    pub may_run_again: bool,
    /// What is told of a read that does not.
    pub code: SqlState,
    /// The same for people.
    pub message: &'static str,
    /// The frame of the error by which a standby ended it for the sake of its replay.
    pub conflict: Option<Vec<u8>>,
    /// The client waits for no answer: it is told when it sends something.
    pub nothing_awaited: bool,
}

impl Loss {
    /// The server has ended it.
    pub fn of_server(cause: String) -> Self {
        Self {
            cause,
            hint: "Run it again.",
            may_run_again: true,
            code: state::SERIALIZATION_FAILURE,
            message: "pgsteer: the read was cut off after part of its answer had been sent",
            conflict: None,
            nothing_awaited: false,
        }
    }

    /// Its statement's time was over, and it did not end it.
    pub fn overdue() -> Self {
        Self {
            may_run_again: false,
            code: state::QUERY_CANCELED,
            message: "canceling statement due to statement timeout",
            ..Self::of_server("pgsteer ended it: the standby's answer had stopped, and it did not end the statement in time".to_owned())
        }
    }

    /// pgsteer gave it up because a promotion may wait for it.
    pub fn left_for_replay() -> Self {
        Self::of_server(LEFT_FOR_REPLAY.to_owned())
    }

    /// pgsteer gave it up because the client does not take what it sends.
    pub fn client_stalled(limit: Duration) -> Self {
        Self {
            cause: format!(
                "The client did not take a standby's answer for {limit:?} (retry.standby_stall_timeout), and replay \
                 there can't pass a server process that waits for its client, so pgsteer ended it"
            ),
            hint: "Take answers as they come, fetch them in parts by a cursor, or read on the primary: \
                   /* pgsteer: target=primary */.",
            may_run_again: false,
            ..Self::of_server(String::new())
        }
    }
}

/// No primary within `hold_timeout`.
pub fn no_primary(waited: Duration) -> Report {
    Report::error(state::CANNOT_CONNECT_NOW, "pgsteer: no primary is available")
        .detail(format!(
            "The statement was held for {waited:?} and no node was attested as the primary. It was not run."
        ))
        .hint("Run it again later; see /topology on the admin address for the state of each node.")
}

/// Held by a pause for longer than `hold_timeout`.
pub fn paused(waited: Duration) -> Report {
    Report::error(state::CANNOT_CONNECT_NOW, "pgsteer: paused")
        .detail(format!(
            "The statement was held for {waited:?} because somebody has paused pgsteer. It was not run."
        ))
        .hint("Run it again later, or end the pause: pgsteer resume.")
}

/// No standby within `hold_timeout`, for a session that is for standbys alone.
pub fn no_standby(waited: Duration) -> Report {
    Report::error(state::CANNOT_CONNECT_NOW, "pgsteer: no standby is available")
        .detail(format!(
            "The statement was held for {waited:?} and no standby was within its bounds. It was not run."
        ))
        .hint(NO_STANDBY_HINT)
}

/// A read that no standby may answer, and that the primary is not to.
pub fn no_standby_within_bounds(waited: Duration) -> Report {
    let waited =
        if waited.is_zero() { String::new() } else { format!(" for {waited:?}, for which it waited") };
    Report::error(state::CANNOT_CONNECT_NOW, "pgsteer: no standby may answer this read")
        .detail(format!(
            "No standby was within the bounds of the session{waited}, and reads do not go to the primary then (routing.no_standby, \
             routing.primary_read_limit). It was not run."
        ))
        .hint("See /topology on the admin address for the lag of each standby; /* pgsteer: target=primary */ reads on the primary.")
}

/// No standby at a login to an endpoint that is for standbys alone.
pub fn no_standby_at_login() -> Report {
    Report::fatal(state::CANNOT_CONNECT_NOW, "pgsteer: no standby is available").hint(NO_STANDBY_HINT)
}

const NO_STANDBY_HINT: &str = "See /topology on the admin address for the state of each node; \
    an endpoint of listen.prefer_standby_address falls back on the primary.";

/// The hold queue is full.
pub fn hold_full() -> Report {
    Report::error(
        state::CANNOT_CONNECT_NOW,
        "pgsteer: no primary is available and too many statements wait for one",
    )
    .detail("The limits hold.max_count or hold.max_bytes were reached. The statement was not run.")
    .hint("Run it again later.")
}

/// No server connection within `query_wait_timeout`.
pub fn no_server_connection(cause: &str) -> Report {
    Report::error(state::TOO_MANY_CONNECTIONS, "pgsteer: no server connection became free in time")
        .detail(format!("{cause}. The statement was not run."))
        .hint("Raise the limit (and max_connections of the servers), or shorten transactions.")
}

/// The user's role was dropped or renamed, and another has its name.
pub fn other_role(user: &str) -> Report {
    Report::fatal(
        state::INVALID_AUTHORIZATION_SPECIFICATION,
        "pgsteer: the role of this session was dropped or renamed",
    )
    .detail(format!("\"{user}\" is another role by now. The statement was not run."))
    .hint("Connect again, as whoever you are to be.")
}

/// A pinned session's server is gone.
pub fn pinned_server_lost(pins: &[PinReason], cause: &str) -> Report {
    let pins: Vec<&str> = pins.iter().map(|pin| pin.as_str()).collect();
    Report::fatal(
        state::ADMIN_SHUTDOWN,
        "pgsteer: the server of this session was lost, and with it the session's state",
    )
    .detail(format!("{cause}. The session was pinned to that server by: {}.", pins.join(", ")))
    .hint("Connect again and set the session up anew.")
}

/// The server of a replication connection is gone, or is no longer the primary.
pub fn replication_lost(cause: &str) -> Report {
    Report::fatal(state::ADMIN_SHUTDOWN, "pgsteer: the server of this replication connection was lost")
        .detail(format!("{cause}."))
        .hint("Connect again: pgsteer leads to the primary.")
}

/// The channels of a session whose server was lost are listened to on another one.
pub fn listening_again(cause: &str) -> Report {
    Report {
        severity: Severity::Warning,
        ..Report::error(
            state::WARNING,
            "pgsteer: the server was lost; the session listens on the new primary",
        )
    }
    .detail(format!("{cause}. Notifications sent meanwhile may have been missed."))
    .hint("Look at what the notifications are about.")
}

/// A unit that would leave session state on the standby that its READ ONLY transaction runs on.
pub fn no_state_on_standby() -> Report {
    Report::error(
        state::READ_ONLY_SQL_TRANSACTION,
        "pgsteer: this READ ONLY transaction runs on a standby, which can't keep session state",
    )
    .hint("Begin it with /* pgsteer: target=primary */, or set the state outside of the transaction.")
}

/// The server did not accept the settings that the session brought along.
pub fn settings_refused(message: &str) -> Report {
    Report::error(
        state::INVALID_PARAMETER_VALUE,
        "pgsteer: the settings of this session could not be applied",
    )
    .detail(format!("The server said: {message}. The statement was not run."))
    .hint("Look at the connection's startup options; they may not be valid for this user or node any more.")
}

/// A READ ONLY transaction whose standby cancelled or lost it can't be begun anew: what it had run gets this error now.
pub fn not_begun_anew(code: state::SqlState, message: &str) -> Report {
    Report::error(code, message)
        .detail(
            "pgsteer: a standby had cancelled or lost the transaction, and this is what an earlier statement of it gets on \
             another server.",
        )
        .hint("End the transaction (ROLLBACK) and run it again.")
}

/// Anything in a transaction whose server was lost; the first time the client is told why.
pub fn in_lost_transaction(told: bool) -> Report {
    if told { block_failed() } else { transaction_lost("The server of this transaction was lost") }
}

/// Commands in a failed transaction block whose server is gone.
pub fn block_failed() -> Report {
    Report::error(
        state::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
}

/// A cancel request that came while the statement was waiting.
pub fn cancelled() -> Report {
    Report::error(state::QUERY_CANCELED, "canceling statement due to user request")
        .detail("pgsteer: the statement was waiting for a server and was not run.")
}

/// A cancel request was passed on to a server that cancelled the statement for another reason, or was lost, before it heeded that.
pub fn cancelled_again() -> Report {
    Report::error(state::QUERY_CANCELED, "canceling statement due to user request")
        .detail("pgsteer: a server had cancelled the statement or was lost with it; it was not run again.")
}

/// Somebody has ended the session by its process, in the words of PostgreSQL.
pub fn ended_by_administrator() -> Report {
    Report::fatal(state::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
}

/// Its `statement_timeout` passed while the statement was waiting.
pub fn statement_timed_out() -> Report {
    Report::error(state::QUERY_CANCELED, "canceling statement due to statement timeout")
        .detail("pgsteer: the statement was waiting for a server and was not run.")
}

/// Its `statement_timeout` passed when it was about to be run again.
pub fn statement_timed_out_again() -> Report {
    Report::error(state::QUERY_CANCELED, "canceling statement due to statement timeout")
        .detail("pgsteer: a server had cancelled the statement or was lost with it; it was not run again.")
}

/// A client that held no server has been idle for longer than its settings allow: in the words of PostgreSQL.
pub fn idle_too_long(between: bool) -> Report {
    if between {
        Report::fatal(state::IDLE_SESSION_TIMEOUT, "terminating connection due to idle-session timeout")
    } else {
        Report::fatal(
            state::IDLE_IN_TRANSACTION_SESSION_TIMEOUT,
            "terminating connection due to idle-in-transaction timeout",
        )
    }
}

/// A client has been idle for longer than the limits of its pool allow.
pub fn idle_timeout(between: bool, limit: Duration) -> Report {
    if between {
        Report::fatal(state::IDLE_SESSION_TIMEOUT, "pgsteer: client idle timeout")
            .detail(format!("The client sent nothing for {limit:?} (listen.client_idle_timeout)."))
            .hint("Connect again; close connections that are not used, or raise the limit.")
    } else {
        Report::fatal(state::IDLE_IN_TRANSACTION_SESSION_TIMEOUT, "pgsteer: idle transaction timeout")
            .detail(format!(
                "The client sent nothing for {limit:?} in an open transaction (pool.idle_transaction_timeout). \
                 No COMMIT had been sent, so the transaction was rolled back."
            ))
            .hint("Connect again and run the transaction again; keep transactions short, or raise the limit.")
    }
}

/// pgsteer is shutting down.
pub fn shutting_down() -> Report {
    Report::fatal(state::ADMIN_SHUTDOWN, "terminating connection due to administrator command")
        .detail("pgsteer is shutting down.")
}

/// What is known of a session's work when pgsteer ends before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// There was none.
    Idle,
    /// Nothing of it had been sent to a server.
    NotRun,
    /// No COMMIT had been sent.
    RolledBack,
    /// It could not have changed anything.
    OnlyRead,
    /// It was sent and not answered.
    Unknown,
}

/// pgsteer ends, and this session's work with it.
pub fn cut_short(fate: Fate) -> Report {
    let (what, hint) = match fate {
        Fate::Idle => return shutting_down(),
        Fate::NotRun => (
            "Nothing of the statement or transaction had been sent to a server: it was not run.",
            "Connect again and run it again.",
        ),
        Fate::RolledBack => (
            "No COMMIT had been sent, so the transaction was rolled back and nothing of it remains.",
            "Connect again and run the transaction again.",
        ),
        Fate::OnlyRead => ("The statement only read.", "Connect again and run it again."),
        Fate::Unknown => (
            "The statement had been sent and may have been carried out and committed: its outcome is unknown, as with \
             SQLSTATE 08007.",
            "Look whether its effect is there before running it again.",
        ),
    };
    shutting_down().detail(format!("pgsteer is shutting down. {what}")).hint(hint)
}

/// The client broke the protocol.
pub fn protocol(what: &str) -> Report {
    Report::fatal(state::PROTOCOL_VIOLATION, format!("pgsteer: {what}"))
        .hint("The connection is closed because the messages after this one can't be told apart.")
}
