//! The probe: one SQL statement that any login role may run on a primary and on a standby, and the connection it runs on.
//!
//! Invariant: a probe has a connection of its own, never one of a client's pool; every wait is bounded; nothing that a server
//! sends can panic. Must not know: the other nodes, what the answer means.
//!
//! Grant the probe role `pg_monitor`: without it a standby's timeline is seen late after a failover, and what its replay waits
//! for is not seen at all.

use std::error::Error as _;
use std::fmt;
use std::future::poll_fn;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::NoTlsStream;
use tokio_postgres::{AsyncMessage, Client, Config, Connection, NoTls, Row, Socket, Statement};

use super::evidence::{ProbeFailure, ProbeResult, ReplayWait, ServerFacts, Standing};
use super::model::{ConflictCounts, Lsn, NodeAddress, ReplayDelay, Slot, StandbySettings, Timeline};

/// The statement. LSNs come as text, numbers as `int8`, so that no type depends on the server's version. It calls functions, since views
/// of them cost a server that has just started several milliseconds more the first time.
pub const PROBE_SQL: &str = "\
SELECT r.rec AS in_recovery,
  (SELECT system_identifier FROM pg_catalog.pg_control_system())::int8 AS system_id,
  CASE WHEN NOT r.rec
       THEN ('x' || substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8))::bit(32)::int8
       ELSE greatest(w.received_tli,
                     (SELECT min_recovery_end_timeline FROM pg_catalog.pg_control_recovery()),
                     (SELECT timeline_id FROM pg_catalog.pg_control_checkpoint()))::int8 END AS timeline,
  CASE WHEN r.rec THEN w.received_tli::int8 END AS received_timeline,
  pg_last_wal_replay_lsn()::text AS replay_lsn,
  CASE WHEN NOT r.rec THEN pg_current_wal_flush_lsn()::text END AS flush_lsn,
  CASE WHEN NOT r.rec THEN pg_current_wal_insert_lsn()::text END AS insert_lsn,
  CASE WHEN r.rec THEN pg_last_wal_receive_lsn()::text END AS receive_lsn,
  CASE WHEN r.rec THEN pg_is_wal_replay_paused() END AS replay_paused,
  CASE WHEN r.rec AND pg_last_wal_receive_lsn() > pg_last_wal_replay_lsn()
       THEN (SELECT coalesce(a.wait_event_type = 'Activity'
                             OR a.wait_event IN ('RecoveryRetrieveRetryInterval', 'RecoveryApplyDelay', 'RecoveryPause'), false)
             FROM pg_catalog.pg_stat_get_activity(NULL) a WHERE a.backend_type = 'startup' LIMIT 1) END AS replay_is_idle,
  w.pid IS NOT NULL AS wal_receiver_up,
  current_setting('hot_standby_feedback') = 'on' AS hot_standby_feedback,
  current_setting('max_standby_streaming_delay') AS max_standby_streaming_delay,
  current_setting('primary_slot_name') <> '' AS has_slot,
  current_setting('synchronous_commit') = 'off' AS commits_asynchronously,
  current_setting('server_version_num')::int8 AS version_num,
  (extract(epoch FROM pg_postmaster_start_time()) * 1000000)::int8 AS started_us
FROM (SELECT pg_is_in_recovery() AS rec OFFSET 0) r LEFT JOIN pg_catalog.pg_stat_get_wal_receiver() w ON true";

/// What a standby has cancelled, in the order of [`ConflictCounts::KINDS`]; logical slots have conflicts from version 16 on.
const CONFLICTS_SQL: &str = "\
SELECT coalesce(sum(confl_tablespace), 0)::int8, coalesce(sum(confl_lock), 0)::int8, coalesce(sum(confl_snapshot), 0)::int8,
  coalesce(sum(confl_bufferpin), 0)::int8, coalesce(sum(confl_deadlock), 0)::int8,
  coalesce(sum((to_jsonb(c) ->> 'confl_active_logicalslot')::int8), 0)::int8
FROM pg_catalog.pg_stat_database_conflicts c";

/// Times that a probe is sent again because a promotion landed inside it.
const TRIES_DURING_PROMOTION: u32 = 5;

/// Whom the probe logs in as.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Role.
    pub user: String,
    /// Password, where the server asks for one.
    pub password: Option<String>,
    /// Database.
    pub dbname: String,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("user", &self.user)
            .field("password", &self.password.as_ref().map(|_| "***"))
            .field("dbname", &self.dbname)
            .finish()
    }
}

/// Why a probe brought nothing home.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", why.as_str())]
pub struct ProbeError {
    /// The kind, which is all that the reconciler looks at.
    pub why: ProbeFailure,
    /// What the server or the system said.
    pub detail: String,
}

impl ProbeError {
    fn new(why: ProbeFailure, detail: impl Into<String>) -> Self {
        Self { why, detail: detail.into() }
    }

    /// Of a node of which a session lives: another login was refused, as to everybody.
    pub(super) fn closing(self) -> Self {
        Self { why: ProbeFailure::Closing, ..self }
    }

    fn from_postgres(error: &tokio_postgres::Error) -> Self {
        if lacks_password(error) {
            return Self::new(ProbeFailure::LoginRejected, NO_PASSWORD);
        }
        let detail = match error.as_db_error() {
            Some(db) => format!("{} (SQLSTATE {})", db.message(), db.code().code()),
            None => error.source().map_or_else(|| error.to_string(), |source| format!("{error}: {source}")),
        };
        Self::new(failure_of(error), detail)
    }
}

/// What to do when the server asks for a password and there is none.
pub const NO_PASSWORD: &str = "the node asks for a password and none is given: \
    set PGSTEER_PASSWORD, cluster.password_file or cluster.password";

/// Whether the server asked for a password and none was given: the driver has no kind for this, only words.
pub fn lacks_password(error: &tokio_postgres::Error) -> bool {
    error.source().is_some_and(|source| source.to_string() == "password missing")
}

/// Sorts an error of the driver.
fn failure_of(error: &tokio_postgres::Error) -> ProbeFailure {
    if let Some(code) = error.code() {
        return match *code {
            SqlState::CANNOT_CONNECT_NOW => ProbeFailure::NotAccepting,
            SqlState::ADMIN_SHUTDOWN | SqlState::CRASH_SHUTDOWN => ProbeFailure::Broken,
            SqlState::TOO_MANY_CONNECTIONS => ProbeFailure::LoginRejected,
            ref code if matches!(code.code().get(..2), Some("28" | "3D")) => ProbeFailure::LoginRejected,
            _ => ProbeFailure::Unintelligible,
        };
    }
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return if is_about_the_name(io) { ProbeFailure::Unresolved } else { failure_of_io(io.kind()) };
        }
        source = cause.source();
    }
    if error.is_closed() { ProbeFailure::Broken } else { ProbeFailure::Unintelligible }
}

/// The standard library and the driver have no kind for a name without an address, only words.
fn is_about_the_name(error: &std::io::Error) -> bool {
    let text = error.to_string();
    text.starts_with("failed to lookup address information") || text == "could not resolve any addresses"
}

fn failure_of_io(kind: std::io::ErrorKind) -> ProbeFailure {
    use std::io::ErrorKind as Kind;
    match kind {
        // A Unix socket that does not exist is nobody listening.
        Kind::ConnectionRefused | Kind::NotFound => ProbeFailure::Refused,
        Kind::ConnectionReset | Kind::ConnectionAborted | Kind::BrokenPipe | Kind::UnexpectedEof => {
            ProbeFailure::Broken
        }
        // No route, time-outs: the node may live.
        _ => ProbeFailure::TimedOut,
    }
}

/// Whether the statement is prepared on a connection. The first answer is waited for most: it is asked for in one round trip.
#[derive(Debug)]
enum Preparation {
    NotAsked,
    AskedOnce,
    Prepared(Statement),
}

/// A logged-in connection.
#[derive(Debug)]
pub struct ProbeConnection {
    client: Client,
    preparation: Preparation,
    ended: JoinHandle<ProbeError>,
}

impl ProbeConnection {
    /// Connects and logs in, within `connect_timeout` in all.
    ///
    /// # Errors
    ///
    /// `ProbeError` with the kind of failure; a black hole is `TimedOut` after `connect_timeout`.
    pub async fn open(
        address: &NodeAddress,
        credentials: &Credentials,
        connect_timeout: Duration,
    ) -> Result<Self, ProbeError> {
        let config = config(address, credentials, connect_timeout);
        let opening = async {
            let (client, connection) =
                config.connect(NoTls).await.map_err(|error| ProbeError::from_postgres(&error))?;
            // From here on the driver's task ends with this value.
            Ok(Self { client, preparation: Preparation::NotAsked, ended: tokio::spawn(drive(connection)) })
        };
        match tokio::time::timeout(connect_timeout, opening).await {
            Ok(opened) => opened,
            Err(_) => Err(ProbeError::new(ProbeFailure::TimedOut, "no login within connect_timeout")),
        }
    }

    /// Asks once, within `timeout`. After an error the connection is of no further use.
    ///
    /// # Errors
    ///
    /// `ProbeError` with the kind of failure. A promotion in the middle of the statement (55000) is no failure: it asks again
    /// at once.
    pub async fn probe(&mut self, timeout: Duration) -> Result<ProbeResult, ProbeError> {
        let asking = async {
            for _ in 0..TRIES_DURING_PROMOTION {
                match self.ask().await {
                    Ok(row) => return parse(&row),
                    Err(error) if error.code() == Some(&SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE) => {}
                    Err(error) => return Err(ProbeError::from_postgres(&error)),
                }
            }
            Err(ProbeError::new(ProbeFailure::Unintelligible, "55000 again and again"))
        };
        tokio::time::timeout(timeout, asking).await.unwrap_or_else(|_| {
            Err(ProbeError::new(ProbeFailure::TimedOut, "no answer within probe_timeout"))
        })
    }

    /// Sends the statement: whole the first time, prepared from the second time on.
    async fn ask(&mut self) -> Result<Row, tokio_postgres::Error> {
        match &self.preparation {
            Preparation::NotAsked => {
                self.preparation = Preparation::AskedOnce;
                self.client.query_typed_one(PROBE_SQL, &[]).await
            }
            Preparation::AskedOnce => {
                let statement = self.client.prepare(PROBE_SQL).await?;
                let row = self.client.query_one(&statement, &[]).await;
                self.preparation = Preparation::Prepared(statement);
                row
            }
            Preparation::Prepared(statement) => self.client.query_one(statement, &[]).await,
        }
    }

    /// Asks a standby what it has cancelled so far, within `timeout`. After an error the connection is of no further use.
    ///
    /// # Errors
    ///
    /// `ProbeError` with the kind of failure.
    pub async fn conflicts(&self, timeout: Duration) -> Result<ConflictCounts, ProbeError> {
        let row = match tokio::time::timeout(timeout, self.client.query_one(CONFLICTS_SQL, &[])).await {
            Ok(answer) => answer.map_err(|error| ProbeError::from_postgres(&error))?,
            Err(_) => return Err(ProbeError::new(ProbeFailure::TimedOut, "no answer within probe_timeout")),
        };
        let mut counts = ConflictCounts::default();
        for (column, count) in counts.0.iter_mut().enumerate() {
            let value: i64 = row.try_get(column).map_err(|error| ProbeError::from_postgres(&error))?;
            *count = value.max(0).unsigned_abs();
        }
        Ok(counts)
    }

    /// Asks whether it is there, within `timeout`, by an empty statement. After an error the connection is of no further use.
    ///
    /// # Errors
    ///
    /// `ProbeError` with the kind of failure.
    pub async fn pulse(&self, timeout: Duration) -> Result<(), ProbeError> {
        match tokio::time::timeout(timeout, self.client.simple_query("")).await {
            Ok(answer) => answer.map(drop).map_err(|error| ProbeError::from_postgres(&error)),
            Err(_) => Err(ProbeError::new(ProbeFailure::TimedOut, "no answer within probe_timeout")),
        }
    }

    /// Ends when the server ends the connection or announces that it will. Cancel safe.
    pub async fn ended(&mut self) -> ProbeError {
        if self.ended.is_finished() && self.client.is_closed() {
            return closed();
        }
        (&mut self.ended).await.unwrap_or_else(|_| closed())
    }
}

impl Drop for ProbeConnection {
    fn drop(&mut self) {
        self.ended.abort();
    }
}

fn closed() -> ProbeError {
    ProbeError::new(ProbeFailure::Broken, "the server closed the connection")
}

/// Drives the connection until it ends. An immediate shutdown and a crash are announced as a NOTICE, not as an error.
async fn drive(mut connection: Connection<Socket, NoTlsStream>) -> ProbeError {
    loop {
        match poll_fn(|cx| connection.poll_message(cx)).await {
            None => return closed(),
            Some(Err(error)) => {
                let mut error = ProbeError::from_postgres(&error);
                // It was open; however it ended, it is broken now.
                error.why = ProbeFailure::Broken;
                return error;
            }
            Some(Ok(AsyncMessage::Notice(notice)))
                if [SqlState::ADMIN_SHUTDOWN, SqlState::CRASH_SHUTDOWN].contains(notice.code()) =>
            {
                return ProbeError::new(ProbeFailure::Broken, notice.message());
            }
            Some(Ok(_)) => {}
        }
    }
}

fn config(address: &NodeAddress, credentials: &Credentials, connect_timeout: Duration) -> Config {
    let mut config = Config::new();
    config
        .host(&address.host)
        .port(address.port)
        .user(&credentials.user)
        .dbname(&credentials.dbname)
        .application_name("pgsteer_probe")
        // A role's or database's default of SERIALIZABLE would make every statement on a standby fail with 0A000.
        .options("-c default_transaction_isolation=read\\ committed -c search_path=pg_catalog")
        .connect_timeout(connect_timeout)
        .tcp_user_timeout(connect_timeout.max(Duration::from_secs(1)))
        .keepalives(true)
        .keepalives_idle(Duration::from_secs(1))
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(3);
    if let Some(password) = &credentials.password {
        config.password(password);
    }
    config
}

fn parse(row: &Row) -> Result<ProbeResult, ProbeError> {
    let timeline = timeline(required(row, "timeline")?)?;
    let replay_lsn = lsn(row, "replay_lsn")?;
    let standing = if required::<bool>(row, "in_recovery")? {
        Standing::InRecovery {
            timeline,
            received_timeline: optional::<i64>(row, "received_timeline")?.map(self::timeline).transpose()?,
            // Before the first record is replayed there is nothing: position zero gets no reads.
            replay_lsn: replay_lsn.unwrap_or_default(),
            receive_lsn: lsn(row, "receive_lsn")?,
            replay_paused: optional(row, "replay_paused")?.unwrap_or(false),
            replay_waits: match optional(row, "replay_is_idle")? {
                Some(true) => ReplayWait::NotForReaders,
                Some(false) => ReplayWait::PerhapsForReaders,
                None => ReplayWait::Unknown,
            },
        }
    } else {
        Standing::OutOfRecovery {
            timeline,
            flush_lsn: lsn(row, "flush_lsn")?.ok_or_else(|| missing("flush_lsn"))?,
            insert_lsn: lsn(row, "insert_lsn")?.ok_or_else(|| missing("insert_lsn"))?,
            switch_lsn: replay_lsn,
        }
    };
    Ok(ProbeResult {
        system_id: required::<i64>(row, "system_id")?.cast_unsigned(),
        started_us: required(row, "started_us")?,
        standing,
        server: ServerFacts {
            version_num: i32::try_from(required::<i64>(row, "version_num")?).unwrap_or(i32::MAX),
            standby: standby_settings(row)?,
            wal_receiver_up: required(row, "wal_receiver_up")?,
            commits_asynchronously: required(row, "commits_asynchronously")?,
        },
    })
}

fn standby_settings(row: &Row) -> Result<StandbySettings, ProbeError> {
    let delay: &str = required(row, "max_standby_streaming_delay")?;
    Ok(StandbySettings {
        hot_standby_feedback: required(row, "hot_standby_feedback")?,
        max_standby_streaming_delay: replay_delay(delay).ok_or_else(|| {
            let detail = format!("max_standby_streaming_delay: {delay:?} is no time");
            ProbeError::new(ProbeFailure::Unintelligible, detail)
        })?,
        slot: if required(row, "has_slot")? { Slot::Named } else { Slot::None },
    })
}

/// As SHOW gives it: in the largest unit that it is a whole number of.
fn replay_delay(shown: &str) -> Option<ReplayDelay> {
    if shown == "-1" {
        return Some(ReplayDelay::Unlimited);
    }
    let digits = shown.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = shown.split_at_checked(digits)?;
    let unit_ms = match unit {
        "ms" | "" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    let ms = number.parse::<u64>().ok()?.checked_mul(unit_ms)?;
    Some(ReplayDelay::AtMost(Duration::from_millis(ms)))
}

fn timeline(number: i64) -> Result<Timeline, ProbeError> {
    u32::try_from(number)
        .map(Timeline)
        .map_err(|_| ProbeError::new(ProbeFailure::Unintelligible, format!("timeline {number} out of range")))
}

fn lsn(row: &Row, column: &str) -> Result<Option<Lsn>, ProbeError> {
    optional::<&str>(row, column)?
        .map(|text| text.parse::<Lsn>())
        .transpose()
        .map_err(|error| ProbeError::new(ProbeFailure::Unintelligible, format!("{column}: {error}")))
}

fn required<'r, T: tokio_postgres::types::FromSql<'r>>(row: &'r Row, column: &str) -> Result<T, ProbeError> {
    optional(row, column)?.ok_or_else(|| missing(column))
}

fn optional<'r, T: tokio_postgres::types::FromSql<'r>>(
    row: &'r Row,
    column: &str,
) -> Result<Option<T>, ProbeError> {
    row.try_get::<_, Option<T>>(column)
        .map_err(|error| ProbeError::new(ProbeFailure::Unintelligible, format!("{column}: {error}")))
}

fn missing(column: &str) -> ProbeError {
    ProbeError::new(ProbeFailure::Unintelligible, format!("{column} is NULL"))
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    async fn failure(host: &str, port: u16) -> ProbeError {
        let address = NodeAddress { host: host.to_owned(), port };
        let credentials =
            Credentials { user: "postgres".to_owned(), password: None, dbname: "postgres".to_owned() };
        ProbeConnection::open(&address, &credentials, LIMIT).await.expect_err("nothing to connect to")
    }

    /// C08: as SHOW gives it, in whatever unit.
    #[test]
    fn a_replay_delay_is_read_in_each_unit() {
        let ms = |ms| Some(ReplayDelay::AtMost(Duration::from_millis(ms)));
        for (shown, delay) in [
            ("-1", Some(ReplayDelay::Unlimited)),
            ("0", ms(0)),
            ("600ms", ms(600)),
            ("30s", ms(30_000)),
            ("5min", ms(300_000)),
            ("2h", ms(7_200_000)),
            ("1d", ms(86_400_000)),
            ("", None),
            ("30 s", None),
            ("-2", None),
            ("99999999999999999999s", None),
        ] {
            assert_eq!(replay_delay(shown), delay, "{shown}");
        }
        assert!(ms(7_200_000) < Some(ReplayDelay::Unlimited));
    }

    #[tokio::test]
    async fn a_missing_password_is_told_with_what_to_do() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let port = listener.local_addr().expect("address").port();
        let server = async {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut startup = [0; 64];
            assert!(stream.read(&mut startup).await.expect("startup packet") > 0);
            stream.write_all(b"R\0\0\0\x17\0\0\0\x0aSCRAM-SHA-256\0\0").await.expect("ask for a password");
            // Open until the driver has given up.
            stream.read_to_end(&mut Vec::new()).await
        };
        let (error, _) = tokio::join!(failure("127.0.0.1", port), server);
        assert_eq!(
            error.to_string(),
            "probe login rejected: the node asks for a password and none is given: \
             set PGSTEER_PASSWORD, cluster.password_file or cluster.password"
        );
    }

    #[tokio::test]
    async fn a_name_without_an_address_is_no_time_out() {
        // Longer than any name may be, so no name server is asked.
        let error = failure(&"n".repeat(300), 5432).await;
        assert_eq!(error.why, ProbeFailure::Unresolved, "{error}");
        assert!(error.to_string().starts_with("name not resolved: "), "{error}");
        assert!(!error.why.proves_gone());
    }
}
