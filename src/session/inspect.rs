//! What a session has become: asked of the server itself where the text of its statements can't tell.
//!
//! Invariant: a connection on which anything may have changed the session is asked before anybody else gets it, and what can't
//! be carried over pins the session to it. A setting made inside a function counts as one made by SET. Must not know: how
//! statements are classified, routing.
//!
//! The queries name everything by schema: they run under the client's own `search_path`.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::driver::{Attached, End, Flow, Session};
use super::hidden::Reads;
use super::own_settings;
use super::settings::{self, Pairs, Touched};
use super::shard::SuspectCause;
use super::{RESET_TIMEOUT, outcome};
use crate::backend::Server;
use crate::backend::reset::{self, Asked, CommandError};
use crate::classify::{PinReason, StandardConformingStrings};
use crate::net;
use crate::telemetry::metrics::Side;
use crate::wire::sqlstate;

/// What is to be asked at the end of the transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Inspect {
    /// Nothing.
    #[default]
    Nothing,
    /// Which reasons to stay on this connection there are.
    Pins,
    /// That, and all settings; but it is only not known yet that nothing can have happened to them.
    Precaution,
    /// That, and all settings.
    All,
}

/// The pins that the server can be asked for.
const ASKED_PINS: [PinReason; 6] = [
    PinReason::TempObject,
    PinReason::AdvisoryLock,
    PinReason::HoldCursor,
    PinReason::Listen,
    PinReason::SqlPrepare,
    PinReason::Unseen,
];

/// Whether the server can be asked for this pin.
pub fn is_asked(pin: PinReason) -> bool {
    ASKED_PINS.contains(&pin)
}

/// One row for each reason to stay: `pin`, its name; for each channel that is listened to: `listen`, its name; `prepared`: how
/// many statements there are by SQL-level PREPARE, and by the protocol. Outside of a transaction only holdable cursors are left. Objects depend
/// on their schema, so that the temporary ones are found by an index.
const PINS: &str = "\
    SELECT 'pin', 'temp_object' WHERE pg_catalog.pg_my_temp_schema() OPERATOR(pg_catalog.<>) 0::pg_catalog.oid AND EXISTS (\
    SELECT FROM pg_catalog.pg_depend WHERE refclassid OPERATOR(pg_catalog.=) 'pg_catalog.pg_namespace'::pg_catalog.regclass \
    AND refobjid OPERATOR(pg_catalog.=) pg_catalog.pg_my_temp_schema()) \
    UNION ALL SELECT 'pin', 'advisory_lock' WHERE EXISTS (SELECT FROM pg_catalog.pg_locks WHERE \
    locktype OPERATOR(pg_catalog.=) 'advisory' AND pid OPERATOR(pg_catalog.=) pg_catalog.pg_backend_pid()) \
    UNION ALL SELECT 'pin', 'hold_cursor' WHERE EXISTS (SELECT FROM pg_catalog.pg_cursors) \
    UNION ALL SELECT 'listen', c FROM pg_catalog.pg_listening_channels() c \
    UNION ALL SELECT 'prepared', pg_catalog.concat(pg_catalog.count(*) FILTER (WHERE from_sql), ' ', \
    pg_catalog.count(*) FILTER (WHERE NOT from_sql)) FROM pg_catalog.pg_prepared_statements";

/// One row for each setting that the session has: its name and value. The two that say who it acts as are not in `pg_settings`.
const SETTINGS: &str = "\
    SELECT pg_catalog.lower(name), pg_catalog.current_setting(name) FROM pg_catalog.pg_settings WHERE \
    source OPERATOR(pg_catalog.=) 'session' AND context OPERATOR(pg_catalog.=) ANY (ARRAY['user', 'superuser']) \
    AND name OPERATOR(pg_catalog.!~~) 'transaction\\_%' \
    UNION ALL SELECT 'role', pg_catalog.current_setting('role') WHERE \
    pg_catalog.current_setting('role') OPERATOR(pg_catalog.<>) 'none' \
    UNION ALL SELECT 'session_authorization', pg_catalog.current_setting('session_authorization') WHERE \
    pg_catalog.current_setting('session_authorization') OPERATOR(pg_catalog.<>) ";

/// So many cancels that were meant for the statement before may hit a question.
const LATE_CANCELS_MAX: u32 = 3;
/// So often a question is asked again that its standby cancels for the sake of its replay. It is short, but where conflict follows
/// conflict several in a row may hit it.
const CONFLICTS_MAX: u32 = 20;

/// A session that stays where it is, and runs code that can't be seen, is asked this often whether it still has a reason to.
const ASKED_INTERVAL: Duration = Duration::from_secs(1);

impl Session {
    /// Brings the session's own picture up to date with its server, between transactions. `failed`: the unit ended in an error.
    pub(super) async fn take_stock(&mut self, attached: &mut Attached, failed: bool) -> Flow<()> {
        let (touched, by_text) = (std::mem::take(&mut self.touched), self.set_by_text.take());
        let Some(server) = attached.lease.server() else { return Ok(()) };
        let startup = &self.startup.pairs;
        let mut prefixed: Vec<String> = match &touched {
            Touched::Reset(name) if name.contains('.') => vec![name.clone()],
            Touched::ResetAll | Touched::DiscardAll => settings::prefixed(&self.settings.pairs),
            _ => Vec::new(),
        };
        prefixed.retain(|name| !startup.iter().any(|(other, _)| other == name));
        match touched {
            Touched::Nothing => {}
            Touched::Anything => attached.inspect = Inspect::All,
            // A statement of its own that failed has changed nothing.
            _ if failed => {}
            Touched::Set(names) => match ask(server, &current_settings(&names)).await {
                Ok(asked) => {
                    self.pass_notifications(&asked.notifications).await?;
                    let values = names.iter().cloned().zip(asked.rows.into_iter().next().unwrap_or_default());
                    let mut told: Pairs = values.filter_map(|(name, value)| Some((name, value?))).collect();
                    keep_encoding(server, &mut told);
                    let pairs = settings::with(&self.settings.pairs, &told);
                    server.applied = self.shard.intern_settings(settings::with(&server.applied.pairs, &told));
                    self.set_settings(pairs);
                }
                Err(error) => self.not_told_of(attached, (&names, by_text), &error).await?,
            },
            Touched::Reset(name) => {
                let pairs = settings::reset(&self.settings.pairs, startup, &name);
                server.applied = self.shard.intern_settings(settings::reset(
                    &server.applied.pairs,
                    &server.defaults.pairs,
                    &name,
                ));
                self.set_settings(pairs);
            }
            Touched::ResetAll => {
                let pairs = settings::reset_all(&self.settings.pairs, startup);
                server.applied = self
                    .shard
                    .intern_settings(settings::reset_all(&server.applied.pairs, &server.defaults.pairs));
                self.pins.retain(|pin| *pin != PinReason::UnnamedSetting);
                self.mentioned = None;
                self.set_settings(pairs);
            }
            Touched::DiscardAll => {
                let pairs = startup.clone();
                server.applied = std::rc::Rc::clone(&server.defaults);
                self.channels.clear();
                self.pins.retain(|pin| pin.outlives_discard_all());
                self.mentioned = None;
                attached.inspect = Inspect::Nothing;
                self.set_settings(pairs);
            }
        }
        if self.pins.is_empty() && attached.inspect == Inspect::Nothing {
            self.mentioned = None;
        }
        if !failed && !prefixed.is_empty() {
            self.keep_placeholders(attached, &prefixed).await?;
        }
        // A session that stays where it is need not be asked yet.
        let may_leave =
            self.pins.is_empty() || std::mem::take(&mut attached.may_unpin) || self.may_have_left(attached);
        if attached.inspect != Inspect::Nothing && may_leave {
            self.inspect(attached).await?;
        }
        Ok(())
    }

    /// Code that can't be seen may have ended what the session stays for: it is asked now and then.
    fn may_have_left(&mut self, attached: &Attached) -> bool {
        let now = Instant::now();
        let is_soon = self.asked_at.is_some_and(|at| now.saturating_duration_since(at) < ASKED_INTERVAL);
        let may = !is_soon && attached.inspect == Inspect::All && self.pins.iter().all(|pin| is_asked(*pin));
        if may {
            self.asked_at = Some(now);
        }
        may
    }

    /// A setting with a prefix that no extension knows is the empty string after its RESET, not unknown again: so it must be
    /// wherever the session goes.
    async fn keep_placeholders(&mut self, attached: &mut Attached, names: &[String]) -> Flow<()> {
        let Some(server) = attached.lease.server() else { return Ok(()) };
        let asked = match ask(server, &current_settings(names)).await {
            Ok(asked) => asked,
            Err(error) => return self.not_told(attached, &error).await,
        };
        let values = asked.rows.first().into_iter().flatten();
        let empty = names.iter().zip(values).filter(|(_, value)| value.as_deref() == Some(""));
        let empty: Pairs = empty.map(|(name, _)| (name.clone(), String::new())).collect();
        server.applied = self.shard.intern_settings(settings::with(&server.applied.pairs, &empty));
        let pairs = settings::with(&self.settings.pairs, &empty);
        self.set_settings(pairs);
        self.pass_notifications(&asked.notifications).await
    }

    async fn inspect(&mut self, attached: &mut Attached) -> Flow<()> {
        let all = attached.inspect >= Inspect::Precaution;
        if all {
            attached.unlisted = true;
            if let Err(error) = self.look_at_functions(attached).await? {
                return self.not_told(attached, &error).await;
            }
            if let Err(error) = self.look_for_hidden(attached).await? {
                return self.not_told(attached, &error).await;
            }
            self.keep_last_values_found(attached);
        }
        let Some(server) = attached.lease.server() else { return Ok(()) };
        let asked = match ask(server, &self.question(all)).await {
            Ok(asked) => asked,
            Err(error) => return self.not_told(attached, &error).await,
        };
        attached.inspect = Inspect::Nothing;
        self.pass_notifications(&asked.notifications).await?;
        let mut told = Pairs::new();
        let mut pins = Vec::new();
        self.channels.clear();
        for row in asked.rows {
            match <[Option<String>; 2]>::try_from(row) {
                Ok([Some(kind), Some(value)]) if kind == "pin" => {
                    pins.extend(ASKED_PINS.iter().find(|pin| pin.as_str() == value));
                }
                Ok([Some(kind), Some(channel)]) if kind == "listen" => self.channels.push(channel),
                Ok([Some(kind), Some(counts)]) if kind == "prepared" => {
                    pins.extend(self.count_prepared(attached, &counts));
                }
                Ok([Some(name), Some(value)]) => told.push((name, value)),
                _ => {}
            }
        }
        if !self.channels.is_empty() {
            pins.push(PinReason::Listen);
        }
        if all {
            // Names that were set once and reset, or rolled back: no answer has them, and the session goes on seeing them.
            let reset =
                self.settings.pairs.iter().filter(|(name, value)| value.is_empty() && name.contains('.'));
            let reset: Pairs =
                reset.filter(|(name, _)| !told.iter().any(|(other, _)| other == name)).cloned().collect();
            told.extend(reset);
            if told.iter().any(|(name, _)| settings::is_identity(name)) {
                // Whom it acts as does not see these, and can't change them.
                let unseen = self
                    .settings
                    .pairs
                    .iter()
                    .filter(|(name, _)| settings::SEEN_BY_SUPERUSERS.contains(&&**name));
                let unseen: Pairs = unseen
                    .filter(|(name, _)| !told.iter().any(|(other, _)| other == name))
                    .cloned()
                    .collect();
                told.extend(unseen);
            }
            told.sort();
            if let Some(server) = attached.lease.server() {
                keep_encoding(server, &mut told);
            }
            let pairs = settings::as_told(&self.startup.pairs, &told);
            if let Some(server) = attached.lease.server() {
                server.applied = self.shard.intern_settings(told);
            }
            self.set_settings(pairs);
        }
        self.stay(attached, &pins);
        let mentioned = self.mentioned.take();
        if all {
            self.keep_unnamed(attached, &mentioned.unwrap_or_default());
        }
        Ok(())
    }

    /// The server has so many statements of SQL-level PREPARE and of the protocol. Code that can't be seen may have dropped them.
    fn count_prepared(&mut self, attached: &mut Attached, counts: &str) -> Option<PinReason> {
        let (by_sql, by_protocol) = counts.split_once(' ')?;
        let server = attached.lease.server()?;
        let known = server.carried.prepared.len();
        if server.carried.own_names.is_none() && by_protocol.parse() != Ok(known) {
            if by_protocol == "0" {
                server.carried.prepared.clear();
                self.names.retain(|_| false);
            } else {
                attached.spoiled = true;
            }
        }
        (by_sql != "0").then_some(PinReason::SqlPrepare)
    }

    /// Stays on the server for these reasons. On a standby nobody stays who may also write: what is there is lost with the
    /// connection, as it means nothing on the primary.
    pub(super) fn stay(&mut self, attached: &mut Attached, pins: &[PinReason]) {
        if attached.side == Side::Standby && !self.is_for_standbys() {
            attached.spoiled |= !pins.is_empty();
        } else {
            self.set_asked_pins(pins);
        }
    }

    fn question(&self, all: bool) -> String {
        let mut sql = PINS.to_owned();
        if all {
            sql.push_str(" UNION ALL (");
            sql.push_str(SETTINGS);
            sql.push_str(&settings::quoted_value(self.group.user()));
            sql.push(')');
            let custom = self.group.custom_settings.borrow();
            let own = self.settings.pairs.iter().map(|(name, _)| name).filter(|name| name.contains('.'));
            let mentioned = self.mentioned.iter().flat_map(|mentioned| &mentioned.names);
            let of_pgsteer = own_settings::names();
            let names: BTreeSet<&String> =
                custom.names.iter().chain(own).chain(mentioned).chain(&of_pgsteer).collect();
            if !names.is_empty() {
                let names: Vec<String> = names.into_iter().map(|name| settings::quoted_value(name)).collect();
                sql.push_str(
                    " UNION ALL SELECT n, v FROM (SELECT n, pg_catalog.current_setting(n, true) AS v FROM ",
                );
                sql.push_str("pg_catalog.unnest(ARRAY[");
                sql.push_str(&names.join(", "));
                sql.push_str("]) n) custom WHERE v OPERATOR(pg_catalog.<>) ''");
            }
        }
        sql
    }

    /// Whether the session can stay on its server for want of an answer (see `stay`).
    fn may_stay(&self, attached: &Attached, error: &CommandError) -> bool {
        let is_there = matches!(error, CommandError::Refused(_) | CommandError::TooLong);
        is_there && (attached.side == Side::Primary || self.is_for_standbys())
    }

    /// A server that goes with a question unanswered is not used again, and doubted if it was lost but for the sake of its replay.
    fn part_unheard(&self, attached: &mut Attached, error: &CommandError) {
        attached.spoiled = true;
        attached.inspect = Inspect::Nothing;
        if matches!(error, CommandError::Io(_)) && !error.is_conflict() {
            self.shard.suspect(attached.node, SuspectCause::ConnectionLost);
        }
    }

    /// The same as `not_told` where these were set: a server is not needed to know what the text shows.
    async fn not_told_of(
        &mut self,
        attached: &mut Attached,
        (names, by_text): (&[String], Option<(String, String)>),
        error: &CommandError,
    ) -> Flow<()> {
        let is_all = matches!(attached.inspect, Inspect::Nothing | Inspect::Precaution);
        let shown = by_text.filter(|(name, _)| is_all && *names == [name.as_str()]);
        let Some(shown) = shown.filter(|_| !self.may_stay(attached, error)) else {
            attached.inspect = attached.inspect.max(Inspect::All);
            return self.not_told(attached, error).await;
        };
        self.part_unheard(attached, error);
        self.set_settings(settings::with(&self.settings.pairs, &[shown]));
        Ok(())
    }

    /// The server did not say: with it in hand the session stays on it; without it, or where it can't stay, the session's state is lost.
    async fn not_told(&mut self, attached: &mut Attached, error: &CommandError) -> Flow<()> {
        if self.may_stay(attached, error) {
            attached.inspect = Inspect::All;
            self.stay(attached, &[PinReason::Unseen]);
            return Ok(());
        }
        let is_lost = matches!(error, CommandError::Io(_));
        // Whoever ended it meant the session.
        if is_lost && self.is_sought(Instant::now()) {
            return Err(End::Told(Box::new(outcome::ended_by_administrator())));
        }
        match attached.inspect {
            // What pins is of no use elsewhere.
            Inspect::Pins if !is_lost => {
                self.part_unheard(attached, error);
                return Ok(());
            }
            Inspect::Precaution => {
                self.part_unheard(attached, error);
                // Most likely there was nothing to be told.
                if self.look_up_reads().await != Reads::MayChange {
                    return Ok(());
                }
            }
            _ => {}
        }
        Err(End::Told(Box::new(outcome::pinned_server_lost(&[PinReason::Unseen], unheard(error)))))
    }

    /// What the client listens to and came with an answer that is not its own.
    pub(super) async fn pass_notifications(&mut self, notifications: &[u8]) -> Flow<()> {
        if notifications.is_empty() {
            return Ok(());
        }
        let mut notifications = notifications.to_vec();
        if let Some(key) = &*self.control.runs_at.borrow() {
            self.own_process(key).rename_all(&mut notifications);
        }
        net::write_all(&self.client, &notifications).await.map_err(|_| End::Client)
    }

    /// From now on the session has these settings.
    fn set_settings(&mut self, mut pairs: Pairs) {
        let token = own_settings::take_token(&mut pairs);
        self.settings = self.shard.intern_settings(pairs);
        self.read_settings();
        self.bring_token(token);
    }

    /// Draws from the settings what they mean for the reading of texts and for transactions.
    pub(super) fn read_settings(&mut self) {
        let pairs = &self.settings.pairs;
        let value =
            |name: &str| pairs.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
        self.strings = match value("standard_conforming_strings") {
            None => self.first.strings,
            Some("off") => StandardConformingStrings::Off,
            Some(_) => StandardConformingStrings::On,
        };
        self.opaque_encoding =
            value("client_encoding").map_or(self.first.opaque_encoding, settings::is_opaque_encoding);
        self.read_only =
            value("default_transaction_read_only").map_or(self.first.read_only, settings::is_true);
        // As PostgreSQL reads it: what is true is `on`, what is false `off`.
        self.own_commits.asynchronous = value("synchronous_commit").map(|it| it == "off");
        self.statement_limit = value("statement_timeout").and_then(settings::time_limit);
        self.idle_limit = value("idle_session_timeout").and_then(settings::time_limit);
        self.idle_in_transaction_limit =
            value("idle_in_transaction_session_timeout").and_then(settings::time_limit);
        self.scope = self.shard.intern_settings(settings::scope(pairs));
        self.serializable =
            value("default_transaction_isolation").is_some_and(|it| it.eq_ignore_ascii_case("serializable"));
        self.read_own_settings();
    }
}

/// The question was asked in UTF-8 (`ask`): what the client's encoding is, the server has reported.
fn keep_encoding(server: &Server, told: &mut Pairs) {
    let reported = server.reported.pairs().iter().find(|(name, _)| name == "client_encoding");
    if let (Some((_, told)), Some((_, reported))) =
        (told.iter_mut().find(|(name, _)| name == "client_encoding"), reported)
    {
        told.clone_from(reported);
    }
}

pub(super) async fn ask(server: &mut Server, sql: &str) -> Result<Asked, CommandError> {
    // Values are read as UTF-8, whichever encoding the client has. In one Query with the question this ends with it.
    let coded = server.reported.is_news("client_encoding", "UTF8");
    let coded = coded.then(|| format!("SET LOCAL client_encoding TO 'UTF8'; {sql}"));
    let sql = coded.as_deref().unwrap_or(sql);
    match tokio::time::timeout(RESET_TIMEOUT, ask_until_answered(server, sql)).await {
        Ok(asked) => asked,
        Err(_) => Err(CommandError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

/// Asks again what was cancelled: by a cancel that was meant for the statement before, or for the sake of replay, which leaves the
/// connection and the session's state as they were.
async fn ask_until_answered(server: &mut Server, sql: &str) -> Result<Asked, CommandError> {
    let (mut cancels, mut conflicts) = (LATE_CANCELS_MAX, CONFLICTS_MAX);
    loop {
        let asked = reset::ask(server, sql).await;
        let left = match asked.as_ref().err().and_then(CommandError::code) {
            Some(sqlstate::QUERY_CANCELED) => &mut cancels,
            Some(code) if sqlstate::is_recovery_conflict(code) => &mut conflicts,
            _ => return asked,
        };
        if *left == 0 || !matches!(asked, Err(CommandError::Refused(_))) {
            return asked;
        }
        *left -= 1;
    }
}

/// Why the state of a session is lost with a question that was not answered.
fn unheard(error: &CommandError) -> &'static str {
    match error {
        CommandError::Io(_) if error.is_conflict() => {
            "The standby ended its connection for the sake of its replay (40001) before it could be asked for the state of the session"
        }
        CommandError::Io(_) => "The server was lost before it could be asked for the state of the session",
        CommandError::Refused(_) if error.is_conflict() => {
            "The standby cancelled every question for the state of the session for the sake of its replay (40001)"
        }
        CommandError::Refused(_) | CommandError::TooLong => {
            "The standby did not say what the state of the session is, which can't be kept on a standby"
        }
    }
}

/// One row with the value of each setting.
fn current_settings(names: &[String]) -> String {
    let columns: Vec<String> = names
        .iter()
        .map(|name| format!("pg_catalog.current_setting({}, true)", settings::quoted_value(name)))
        .collect();
    format!("SELECT {}", columns.join(", "))
}
