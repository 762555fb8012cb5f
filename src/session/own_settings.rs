//! The settings `pgsteer.…` of a session: what its reads are promised, the token that it brings, what it may ask.
//!
//! They are settings of the session's like any other with a prefix: servers keep them, so that SET and RESET, transactions, savepoints,
//! `set_config` and the startup packet do with them what PostgreSQL does. pgsteer refuses values that are none where they are set, reads
//! what has become of them, and sees to it that SHOW tells what is in force.
//!
//! Invariant: no value is passed over silently: one that came past the look at the texts (by `set_config`, in code) fails what follows.
//! Must not know: how nodes are judged.

use std::time::Instant;

use super::driver::{Flow, Session};
use super::run::Task;
use super::settings::{self, Pairs};
use super::unit::{self, Kind, Needs};
use crate::backend::Server;
use crate::classify::{self, AskedTerms, Assigned, LagBytes, OWN_PREFIX, OwnAssignment, Shown, Target};
use crate::relay::buffer::Window;
use crate::route::Terms;
use crate::route::freshness::Commits;
use crate::route::token::{Token, TokenError};
use crate::topology::model::Snapshot;
use crate::wire::reply::Report;
use crate::wire::sqlstate::{self as state, SqlState};
use crate::wire::{extended, frame};

/// The setting that carries a position from session to session.
const TOKEN: &str = "token";
/// The setting by which a client asks why it is pinned.
const PINS: &str = "pins";

/// Why a setting of pgsteer's own can't have a value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OwnSettingError {
    /// There is no such setting.
    #[error("unrecognized configuration parameter \"{OWN_PREFIX}{name}\"")]
    Unknown {
        /// Behind the prefix.
        name: String,
    },
    /// It is only shown.
    #[error("parameter \"{OWN_PREFIX}{PINS}\" cannot be changed")]
    ReadOnly,
    /// SET LOCAL: the transaction's server is chosen before it could count.
    #[error("pgsteer: \"{OWN_PREFIX}{name}\" cannot be set for one transaction")]
    Local {
        /// Behind the prefix.
        name: String,
    },
    /// The value is none.
    #[error("invalid value for parameter \"{OWN_PREFIX}{name}\": \"{value}\"")]
    Value {
        /// Behind the prefix.
        name: String,
        /// What was given.
        value: String,
        /// What is expected.
        expected: String,
    },
    /// The leading comment.
    #[error("invalid hint in a leading comment \"/* pgsteer: ... */\"")]
    Hint,
}

impl OwnSettingError {
    /// Its SQLSTATE.
    pub fn code(&self) -> SqlState {
        match self {
            Self::Unknown { .. } => state::UNDEFINED_OBJECT,
            Self::ReadOnly => state::CANT_CHANGE_RUNTIME_PARAM,
            Self::Local { .. } => state::FEATURE_NOT_SUPPORTED,
            Self::Value { .. } | Self::Hint => state::INVALID_PARAMETER_VALUE,
        }
    }

    /// What to do.
    pub fn hint(&self) -> String {
        let names = || AskedTerms::NAMES.join(", ");
        match self {
            Self::Unknown { .. } => format!("pgsteer has {}, token and pins.", names()),
            Self::ReadOnly => "It tells why the session is pinned to its server.".to_owned(),
            Self::Local { .. } => {
                "Use SET, which counts from the next transaction on, or a leading comment /* pgsteer: ... */."
                    .to_owned()
            }
            Self::Value { expected, .. } => format!("{}.", sentence(expected)),
            Self::Hint => {
                format!("It is a list of name=value with commas between; names are {}.", names())
            }
        }
    }
}

/// Letters of a name or value that an error repeats.
const REPEATED_MAX: usize = 100;

fn shortened(text: &str) -> String {
    match text.char_indices().nth(REPEATED_MAX) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default()),
        None => text.to_owned(),
    }
}

fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_uppercase);
    first.chain(chars).collect()
}

/// Checks a value, as a startup packet or a SET gives it.
///
/// # Errors
/// Why it is none.
pub fn check(name: &str, value: &str, snapshot: &Snapshot) -> Result<(), OwnSettingError> {
    let refused = |expected: String| OwnSettingError::Value {
        name: shortened(name),
        value: shortened(value),
        expected,
    };
    match name {
        PINS => Err(OwnSettingError::ReadOnly),
        TOKEN if value.is_empty() => Ok(()),
        TOKEN => {
            let bound = value.parse::<Token>().and_then(|token| token.bound(snapshot));
            bound.map(|_| ()).map_err(|error: TokenError| refused(error.to_string()))
        }
        _ => AskedTerms::default().set(name, value).map_err(|error| match error {
            classify::TermError::Unknown => OwnSettingError::Unknown { name: shortened(name) },
            classify::TermError::Value(_) => refused(error.to_string()),
        }),
    }
}

/// The names of those that a session can set.
pub fn names() -> Vec<String> {
    AskedTerms::NAMES.iter().chain([&TOKEN]).map(|name| format!("{OWN_PREFIX}{name}")).collect()
}

/// Checks those among the settings of a startup packet.
///
/// # Errors
/// The first that is none.
pub fn check_startup(pairs: &[(String, String)], snapshot: &Snapshot) -> Result<(), OwnSettingError> {
    own(pairs).try_for_each(|(name, value)| check(name, value, snapshot))
}

/// Whether a token is among them: it can only be looked at when it is known which cluster this is.
pub fn has_token(pairs: &[(String, String)]) -> bool {
    own(pairs).any(|(name, value)| name == TOKEN && !value.is_empty())
}

fn own(pairs: &[(String, String)]) -> impl Iterator<Item = (&str, &str)> {
    pairs.iter().filter_map(|(name, value)| Some((name.strip_prefix(OWN_PREFIX)?, value.as_str())))
}

/// Takes the token out of the settings: it is an event, not a state that a session brings to its servers.
pub(super) fn take_token(pairs: &mut Pairs) -> Option<String> {
    let at = pairs.iter().position(|(name, _)| name.strip_prefix(OWN_PREFIX) == Some(TOKEN))?;
    Some(pairs.remove(at).1)
}

/// What is in force where the session asks for these; the name of one that has no such value.
fn asked(pairs: &[(String, String)]) -> (AskedTerms, Option<OwnSettingError>) {
    let mut terms = AskedTerms::default();
    let mut amiss = None;
    for (name, value) in own(pairs).filter(|(name, _)| *name != PINS) {
        if let Err(error) = terms.set(name, value) {
            let expected = error.to_string();
            let (name, value) = (shortened(name), shortened(value));
            amiss = Some(match error {
                classify::TermError::Unknown => OwnSettingError::Unknown { name },
                classify::TermError::Value(_) => OwnSettingError::Value { name, value, expected },
            });
        }
    }
    (terms, amiss)
}

impl Session {
    /// What the configuration and the session's settings make of its reads.
    pub(super) fn read_own_settings(&mut self) {
        let routing = &self.shard.shared.settings.routing;
        let configured = routing.own.of(self.mode, self.group.user(), self.group.database());
        let (asked, amiss) = asked(&self.settings.pairs);
        self.terms = routing.terms.with(&configured).with(&asked);
        self.amiss = amiss.map(Box::new);
    }

    /// The terms of a unit.
    pub(super) fn terms(&self, needs: &Needs) -> Terms {
        self.terms.with(&needs.terms)
    }

    /// Takes the token that came with the settings, if one did.
    pub(super) fn bring_token(&mut self, token: Option<String>) {
        let Some(value) = token.filter(|value| !value.is_empty()) else { return };
        let now = Instant::now();
        let snapshot = std::sync::Arc::clone(&self.shard.snapshot.borrow());
        self.freshness.settle(&snapshot, self.others_commit(now));
        match value.parse::<Token>().and_then(|token| token.bound(&snapshot)) {
            Ok(bound) => self.freshness.bring(bound, now),
            Err(error) => {
                let (name, value) = (TOKEN.to_owned(), shortened(&value));
                let expected = error.to_string();
                self.amiss = Some(Box::new(OwnSettingError::Value { name, value, expected }));
            }
        }
    }

    /// The unit with what fails in the place of assignments that can't be made, if there are any. A batch that is here as a whole fails
    /// as a whole: a statement in the place of one that has parameters would have none.
    pub(super) fn refusing(&self, kind: Kind, unit: &[u8]) -> Option<(Kind, Vec<u8>)> {
        let mut out = Vec::new();
        if kind == Kind::Synced && !self.is_in_batch() {
            let mut parses = unit::frames(unit).filter(|(kind, _)| *kind == b'P');
            let error = parses.find_map(|(_, body)| self.refusal_of(extended::parse(body)?.sql))?;
            frame::put(&mut out, b'Q', &[&raising(&error), b"\0"]);
            return Some((Kind::Simple, out));
        }
        let mut refused = false;
        for (kind, body) in unit::frames(unit) {
            let parse = extended::parse(body).filter(|_| kind == b'P');
            let sql = if kind == b'Q' { extended::query(body) } else { parse.map(|parse| parse.sql) };
            let replaced = sql.and_then(|sql| self.refusing_text(sql));
            refused |= replaced.is_some();
            match (replaced, parse) {
                (None, _) => frame::put(&mut out, kind, &[body]),
                (Some(sql), None) => frame::put(&mut out, kind, &[&sql, b"\0"]),
                // It has no parameters, whatever the client thinks.
                (Some(sql), Some(parse)) => frame::put(&mut out, kind, &[parse.name, b"\0", &sql, b"\0\0\0"]),
            }
        }
        refused.then_some((kind, out))
    }

    /// The first of a text's assignments that can't be made.
    fn refusal_of(&self, sql: &[u8]) -> Option<OwnSettingError> {
        if classify::classify(sql, &self.dialect()).hint.amiss {
            return Some(OwnSettingError::Hint);
        }
        let snapshot = self.shard.snapshot.borrow();
        let assignments = classify::own_assignments(sql, self.strings);
        assignments.iter().find_map(|assignment| check_assignment(assignment, &snapshot).err())
    }

    fn refusing_text(&self, sql: &[u8]) -> Option<Vec<u8>> {
        if classify::classify(sql, &self.dialect()).hint.amiss {
            return Some(raising(&OwnSettingError::Hint));
        }
        let snapshot = self.shard.snapshot.borrow();
        let mut assignments = classify::own_assignments(sql, self.strings).into_iter();
        let (start, error) = assignments.find_map(|assignment| {
            let error = check_assignment(&assignment, &snapshot).err()?;
            Some((assignment.place.start, error))
        })?;
        // What stands behind it would not run. What takes data from the client must find it where it is.
        let before = sql.get(..start).filter(|_| !self.dialect().classify(sql).1.copies).unwrap_or_default();
        Some([before, &raising(&error)].concat())
    }

    /// Fails a unit because a setting has a value that is none, unless the unit may set it right. `false`: it has failed.
    pub(super) async fn is_in_order(
        &mut self,
        window: &mut Window,
        (kind, bytes): (Kind, usize),
        needs: &Needs,
    ) -> Flow<bool> {
        let between = !self.transaction.is_on_server() && !self.is_in_batch();
        let Some(error) = self.amiss.as_deref().filter(|_| between && !needs.session && needs.statements > 0)
        else {
            return Ok(true);
        };
        let report = Report::error(error.code(), error.to_string())
            .detail("pgsteer: it was set past the look at the session's statements. This one was not run.")
            .hint(format!("{} SET it anew, or RESET it.", error.hint()));
        let mut task = Task::new(window, kind, bytes, *needs, Instant::now());
        self.refuse(&mut task, &report).await
    }

    /// The statements after which the server answers a unit's SHOW of settings `pgsteer.…`, taken for run.
    pub(super) fn tell_own(&self, server: &mut Server, unit: &[u8]) -> Vec<String> {
        let mut names: Vec<String> =
            self.texts(unit).flat_map(|sql| classify::own_shows(sql, self.strings)).collect();
        names.sort();
        names.dedup();
        let mut commands = Vec::new();
        for name in names {
            let setting = format!("{OWN_PREFIX}{name}");
            if name == TOKEN {
                commands.extend(self.token_assignment(&setting));
            } else if name == PINS {
                commands.push(settings::assignment(&setting, &self.pins_shown()));
            } else if let Some(value) = self.shown(&name) {
                commands.push(assignment_if_unset(&setting, &value));
            } else {
                continue;
            }
            // Nobody's settings hold it, so it is reset before the next statement that is not this.
            let told = (setting, "\0".to_owned());
            server.applied = self.shard.intern_settings(settings::with(&server.applied.pairs, &[told]));
        }
        commands
    }

    fn pins_shown(&self) -> String {
        self.pins.iter().map(|pin| pin.as_str()).collect::<Vec<_>>().join(", ")
    }

    /// A setting's value in force, where the session has not set it.
    fn shown(&self, name: &str) -> Option<String> {
        let terms = &self.terms;
        Some(match name {
            "target" => match terms.target {
                None => "any",
                Some(Target::Primary) => "primary",
                Some(Target::Standby) => "standby",
            }
            .to_owned(),
            "consistency" => self.consistency_at_endpoint(terms.consistency).as_str().to_owned(),
            "max_lag" => Shown(terms.max_lag).to_string(),
            "max_lag_bytes" => terms.max_lag_bytes.to_string(),
            "wait_for_standby" => Shown(terms.wait_for_standby).to_string(),
            "no_standby" => terms.no_standby.as_str().to_owned(),
            "retry_buffer" => LagBytes::at_most(terms.retry_buffer_bytes.into()).to_string(),
            _ => return None,
        })
    }

    /// Has the server itself say how far it is: on the primary what is committed is flushed, or at least written.
    fn token_assignment(&self, setting: &str) -> Option<String> {
        let snapshot = self.shard.snapshot.borrow();
        let (system_id, timeline) = (snapshot.system_id?, snapshot.primary?.timeline);
        // What the session wrote, or saw of others: all that was asynchronous is noted, unless it is not known yet.
        let is_known = !self.group.hidden.has_altered_commits()
            && self.group.hidden.known().is_some_and(|found| !found.commits_asynchronously)
            && self.primary_commits_asynchronously() == Some(false);
        let others = self.others_commit(Instant::now());
        let is_synchronous = is_known && others == Commits::Synchronous;
        let position = if is_synchronous { "flush" } else { "insert" };
        Some(format!(
            "SELECT pg_catalog.set_config('{setting}', pg_catalog.concat('{system_id}:{timeline}:', CASE WHEN \
             pg_catalog.pg_is_in_recovery() THEN pg_catalog.pg_last_wal_replay_lsn() \
             ELSE pg_catalog.pg_current_wal_{position}_lsn() END), false)"
        ))
    }
}

/// Sets it unless the session has, which may have been in this transaction: only the server knows.
fn assignment_if_unset(setting: &str, value: &str) -> String {
    let value = settings::quoted_value(value);
    format!(
        "SELECT pg_catalog.set_config('{setting}', CASE WHEN pg_catalog.current_setting('{setting}', true) \
         OPERATOR(pg_catalog.<>) '' THEN pg_catalog.current_setting('{setting}') ELSE {value} END, false)"
    )
}

fn check_assignment(assignment: &OwnAssignment, snapshot: &Snapshot) -> Result<(), OwnSettingError> {
    let name = &assignment.name;
    match &assignment.value {
        Assigned::Default => check(name, "", snapshot)?,
        Assigned::Value(value) => check(name, value, snapshot)?,
        // The server knows what it is, and is asked for it behind its answer.
        Assigned::NotRead => {}
    }
    if assignment.local { Err(OwnSettingError::Local { name: name.clone() }) } else { Ok(()) }
}

/// A statement that fails with the error.
fn raising(error: &OwnSettingError) -> Vec<u8> {
    let body = format!(
        "BEGIN RAISE EXCEPTION USING ERRCODE = '{}', MESSAGE = {}, HINT = {}; END",
        error.code().as_str(),
        settings::quoted_value(&error.to_string()),
        settings::quoted_value(&error.hint()),
    );
    format!("DO LANGUAGE plpgsql {}", settings::quoted_value(&body)).into_bytes()
}

/// The report of a startup packet with such a setting.
pub fn refused_at_login(error: &OwnSettingError) -> Report {
    Report::fatal(error.code(), error.to_string()).hint(error.hint())
}
