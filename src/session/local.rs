//! Units that need no server: a BEGIN that is put off, the end of a transaction that never began anywhere, a lone Sync, and
//! everything in a transaction whose server was lost.
//!
//! Invariant: answers exactly what PostgreSQL would, and only what it can prove to need no server; `None` sends the unit on
//! its way. Must not know: sockets, servers.

use super::driver::Session;
use super::journal::Journal;
use super::own_names::has_own_names;
use super::run::Task;
use super::so_far;
use super::transaction::{self, OnlyRead, Transaction};
use super::unit::{self, Kind, Needs};
use crate::classify::{self, AccessMode, Classification, SessionEffect, TransactionEffect};
use crate::route::Mode;
use crate::telemetry::metrics::Side;
use crate::wire::extended::{self, Named};
use crate::wire::reply;

impl Session {
    /// The reply to a unit that needs no server, if it is one.
    pub(super) fn local(&mut self, unit: &[u8], kind: Kind, needs: &Needs) -> Option<Vec<u8>> {
        if let Transaction::Lost { told, only_read } = self.transaction {
            return self.local_lost(unit, kind, needs, (told, only_read));
        }
        if needs.session
            && needs.statements == 1
            && let Some(out) = self.local_deallocate(unit, kind)
        {
            return Some(out);
        }
        if needs.transaction == TransactionEffect::Chain
            && let Some(out) = self.local_chain(unit, kind)
        {
            return Some(out);
        }
        if self.attached.is_some() || !matches!(kind, Kind::Simple | Kind::Synced) {
            // A Flush with nothing under way has nothing to flush.
            return (self.attached.is_none() && kind == Kind::Flushed && unit.len() == reply::SYNC.len())
                .then(Vec::new);
        }
        if unit == reply::SYNC {
            return Some(self.transaction.status().ready_for_query().to_vec());
        }
        if !is_one_statement(unit) {
            return None;
        }
        let (tag, next) = match (&self.transaction, needs.transaction) {
            // A standby refuses some, in its own words.
            (Transaction::None | Transaction::Deferred { .. }, effect)
                if self.is_for_standbys() && asks_too_much(effect) =>
            {
                return None;
            }
            (Transaction::None, TransactionEffect::Begin { access, serializable }) => {
                let sql = self.statement_text(unit)?;
                let tag = begin_tag(&sql)?;
                let access = match access {
                    AccessMode::Default if self.read_only => AccessMode::ReadOnly,
                    access => access,
                };
                let serializable = serializable || self.serializable;
                let (sql, again) = (sql.into_boxed_str(), Box::default());
                (tag, Transaction::Deferred { sql, access, serializable, again })
            }
            (Transaction::Deferred { .. }, TransactionEffect::Commit) => ("COMMIT", Transaction::None),
            (Transaction::Deferred { .. }, TransactionEffect::Rollback) => ("ROLLBACK", Transaction::None),
            (
                Transaction::Deferred { sql, access: announced, serializable: before, again },
                TransactionEffect::SetTransaction { access, serializable },
            ) if again.is_empty() && sql.len() <= so_far::BYTES_MAX => {
                let access = if access == AccessMode::Default { *announced } else { access };
                let sql = transaction::followed_by(sql, &self.statement_text(unit)?);
                let serializable = serializable || *before;
                let (sql, again) = (sql.into_boxed_str(), Box::default());
                ("SET", Transaction::Deferred { sql, access, serializable, again })
            }
            _ => return None,
        };
        let mut out = Vec::new();
        self.local_replies(unit, tag, &mut out)?;
        self.transaction = next;
        out.extend_from_slice(self.transaction.status().ready_for_query());
        Some(out)
    }

    /// BEGIN READ ONLY before other statements of one batch, as JDBC sends it: put off as if it had come alone, so that the rest may run,
    /// and run again, on a standby. Gives how many bytes of the batch that is, and the replies to them.
    pub(super) fn local_begin(&mut self, unit: &[u8], kind: Kind) -> Option<(usize, Vec<u8>)> {
        let free = self.attached.is_none() && self.transaction == Transaction::None;
        if kind != Kind::Synced || !free || self.mode == Mode::Primary {
            return None;
        }
        let begin = unit.get(..unit::first_executed(unit)?)?;
        // A named portal stays until its transaction ends.
        let unnamed = |(kind, body): (u8, &[u8])| !matches!(kind, b'B' | b'E') || body.first() == Some(&0);
        if !unit::frames(begin).all(unnamed) {
            return None;
        }
        let sql = self.statement_text(begin)?;
        let TransactionEffect::Begin { access, serializable } =
            classify::classify(sql.as_bytes(), &self.dialect()).transaction
        else {
            return None;
        };
        let is_read_only =
            access == AccessMode::ReadOnly || (access == AccessMode::Default && self.read_only);
        if !is_read_only || serializable || self.serializable || !is_one_statement(begin) {
            return None;
        }
        let tag = begin_tag(&sql)?;
        let mut out = Vec::new();
        self.local_replies(begin, tag, &mut out)?;
        let (sql, access, again) = (sql.into_boxed_str(), AccessMode::ReadOnly, Box::default());
        self.transaction = Transaction::Deferred { sql, access, serializable: false, again };
        Some((begin.len(), out))
    }

    /// AND CHAIN behind a READ ONLY transaction that failed on a standby: PostgreSQL has forgotten by then that it was READ ONLY, so the
    /// next one may need the primary. One that failed in a savepoint is still known to it.
    fn local_chain(&mut self, unit: &[u8], kind: Kind) -> Option<Vec<u8>> {
        let whole = matches!(kind, Kind::Simple | Kind::Synced) && is_one_statement(unit);
        let on_standby = self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby);
        let forgotten = self.transaction == Transaction::Failed && !self.may_have_savepoints;
        if !(whole && on_standby && forgotten) || self.is_for_standbys() || !self.pins.is_empty() {
            return None;
        }
        let mut out = Vec::new();
        self.local_replies(unit, "ROLLBACK", &mut out)?;
        // It is rolled back with its connection.
        self.detach();
        let access = if self.read_only { AccessMode::ReadOnly } else { AccessMode::Default };
        let (sql, serializable, again) = ("BEGIN".into(), self.serializable, Box::default());
        self.transaction = Transaction::Deferred { sql, access, serializable, again };
        out.extend_from_slice(self.transaction.status().ready_for_query());
        Some(out)
    }

    /// DEALLOCATE of a statement that was prepared by the protocol: only pgsteer knows it by that name.
    fn local_deallocate(&mut self, unit: &[u8], kind: Kind) -> Option<Vec<u8>> {
        let whole = matches!(kind, Kind::Simple | Kind::Synced) && is_one_statement(unit);
        if !whole || self.transaction == Transaction::Failed {
            return None;
        }
        let text = self.statement_text(unit)?.into_bytes();
        let SessionEffect::Deallocate(span) = classify::classify(&text, &self.dialect()).session else {
            return None;
        };
        let quoted = span.start.checked_sub(1).and_then(|at| text.get(at as usize)) == Some(&b'"');
        let name = if quoted { span.of(&text).to_vec() } else { span.of(&text).to_ascii_lowercase() };
        self.names.named(&name)?;
        if self.attached.as_mut().is_some_and(has_own_names) {
            return None;
        }
        let mut out = Vec::new();
        self.local_replies(unit, "DEALLOCATE", &mut out)?;
        self.names.remove(&name);
        out.extend_from_slice(self.transaction.status().ready_for_query());
        Some(out)
    }

    /// The replies to the messages of a unit with one statement that is answered here, without ReadyForQuery.
    fn local_replies(&mut self, unit: &[u8], tag: &str, out: &mut Vec<u8>) -> Option<()> {
        if !self.all_succeed(unit)? {
            return None;
        }
        for (kind, body) in unit::frames(unit) {
            match kind {
                b'Q' => {
                    self.names.drop_unnamed();
                    reply::put_command_complete(out, tag);
                }
                b'E' => reply::put_command_complete(out, tag),
                b'P' => {
                    let parse = extended::parse(body)?;
                    let class = self.dialect().classify(parse.sql);
                    if parse.name.is_empty() {
                        let before = self.names.parse_unnamed(parse.sql, parse.types, class);
                        self.names.forget_unnamed(before);
                    } else {
                        let statement =
                            self.shard.statements.intern(self.scope_now(), parse.sql, parse.types, || class);
                        let _ = self.names.insert(parse.name, statement);
                    }
                    out.extend_from_slice(reply::PARSE_COMPLETE);
                }
                b'B' => out.extend_from_slice(reply::BIND_COMPLETE),
                b'D' => {
                    if let Named::Statement(_) = extended::named(body)? {
                        out.extend_from_slice(reply::NO_PARAMETERS);
                    }
                    out.extend_from_slice(reply::NO_DATA);
                }
                b'C' => {
                    match extended::named(body)? {
                        Named::Statement(b"") => self.names.drop_unnamed(),
                        Named::Statement(name) => self.names.restore(name, None),
                        Named::Portal(_) => {}
                    }
                    out.extend_from_slice(reply::CLOSE_COMPLETE);
                }
                _ => {}
            }
        }
        Some(())
    }

    /// Whether the server would do without an error what the messages say, and all of them are about the one statement.
    fn all_succeed(&self, unit: &[u8]) -> Option<bool> {
        let mut parsed: Vec<&[u8]> = Vec::new();
        let mut bound: Option<&[u8]> = None;
        for (kind, body) in unit::frames(unit) {
            let is_known = |name: &[u8]| {
                parsed.contains(&name)
                    || self.names.class(name, &self.dialect()).is_some_and(|class| is_control(&class))
            };
            let succeeds = match kind {
                b'P' => {
                    let parse = extended::parse(body)?;
                    let is_free = !parsed.contains(&parse.name) && self.names.named(parse.name).is_none();
                    parsed.push(parse.name);
                    is_free
                        && parse.types == [0, 0]
                        && is_control(&classify::classify(parse.sql, &self.dialect()))
                }
                b'B' => {
                    let bind = extended::bind(body)?;
                    // Values for a statement that takes none are the server's to refuse.
                    let first = bound.replace(bind.portal).is_none();
                    first && bind.is_without_values() && is_known(bind.statement)
                }
                b'E' => bound.is_some_and(|portal| {
                    body.strip_prefix(portal).is_some_and(|rest| rest.len() == 5 && rest.first() == Some(&0))
                }),
                b'D' => match extended::named(body)? {
                    Named::Statement(name) => is_known(name),
                    Named::Portal(portal) => bound == Some(portal),
                },
                b'C' => extended::named(body).is_some(),
                _ => true,
            };
            if !succeeds {
                return Some(false);
            }
        }
        Some(true)
    }

    /// Answers in a transaction whose server was lost.
    fn local_lost(
        &mut self,
        unit: &[u8],
        kind: Kind,
        needs: &Needs,
        (told, only_read): (bool, OnlyRead),
    ) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let ends = matches!(needs.transaction, TransactionEffect::Rollback | TransactionEffect::Commit);
        let rolls_back = needs.transaction == TransactionEffect::Rollback || (told && ends);
        // Of a transaction that only read nothing is lost once its answers were told.
        let commits = only_read == OnlyRead::Yes && !told && needs.transaction == TransactionEffect::Commit;
        let whole = matches!(kind, Kind::Simple | Kind::Synced);
        if (rolls_back || (commits && is_one_statement(unit))) && whole {
            self.local_replies(unit, if rolls_back { "ROLLBACK" } else { "COMMIT" }, &mut out)?;
            self.transaction = Transaction::None;
            self.owed = None;
        } else if unit != reply::SYNC {
            out = self.tell_lost(told);
            // A COMMIT ends the block even where it fails.
            self.transaction = if ends { Transaction::None } else { Transaction::LOST_AND_TOLD };
        }
        match kind {
            Kind::Simple | Kind::Synced => out.extend_from_slice(self.transaction.status().ready_for_query()),
            Kind::Flushed | Kind::Partial => self.skip_to_sync = true,
        }
        Some(out)
    }

    /// Whether a unit is nothing but the end of the transaction, which would succeed.
    pub(super) fn only_ends(&self, task: &Task<'_>) -> bool {
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        matches!(task.needs.transaction, TransactionEffect::Commit | TransactionEffect::Rollback)
            && matches!(task.kind, Kind::Simple | Kind::Synced)
            && is_one_statement(unit)
            && self.all_succeed(unit) == Some(true)
    }

    /// The answer to the end of a transaction that has failed, or that only read on a standby, where its server was lost before it answered,
    /// or cancelled it; `None` where the unit is anything else.
    pub(super) fn end_in_its_stead(&mut self, task: &Task<'_>, journal: &mut Journal) -> Option<Vec<u8>> {
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        let tag = match task.needs.transaction {
            TransactionEffect::Commit if self.transaction != Transaction::Failed => "COMMIT",
            TransactionEffect::Commit | TransactionEffect::Rollback => "ROLLBACK",
            _ => return None,
        };
        if !is_one_statement(unit) {
            return None;
        }
        journal.undo(&mut self.names);
        let mut out = Vec::new();
        self.local_replies(unit, tag, &mut out)?;
        self.names.drop_portals();
        self.transaction = Transaction::None;
        Some(out)
    }

    pub(super) fn statement_text(&self, unit: &[u8]) -> Option<String> {
        let mut parsed: Option<(&[u8], &[u8])> = None;
        for (kind, body) in unit::frames(unit) {
            let sql: &[u8] = match kind {
                b'Q' => extended::query(body)?,
                b'P' => {
                    let parse = extended::parse(body)?;
                    parsed = Some((parse.name, parse.sql));
                    continue;
                }
                b'B' => {
                    let name = extended::bind(body)?.statement;
                    match parsed {
                        Some((parsed, sql)) if parsed == name => sql,
                        _ if name.is_empty() => {
                            self.names.unnamed.as_ref().map(|unnamed| unnamed.sql.as_slice())?
                        }
                        _ => self.names.named(name).map(|statement| &*statement.sql)?,
                    }
                }
                _ => continue,
            };
            let text = std::str::from_utf8(sql).ok()?;
            return Some(text.trim().trim_end_matches(';').to_owned());
        }
        None
    }
}

/// What no standby can do for a transaction.
fn asks_too_much(effect: TransactionEffect) -> bool {
    match effect {
        TransactionEffect::Begin { access, serializable }
        | TransactionEffect::SetTransaction { access, serializable } => {
            access == AccessMode::ReadWrite || serializable
        }
        _ => false,
    }
}

/// Whether a unit is one Query, or runs one statement and asks of nothing else: any other message is the server's to answer.
fn is_one_statement(unit: &[u8]) -> bool {
    let (mut parsed, mut bound, mut executed) = (None, None, false);
    for (kind, body) in unit::frames(unit) {
        let fits = match kind {
            b'P' => extended::parse(body).is_some_and(|parse| parsed.replace(parse.name).is_none()),
            b'B' => extended::bind(body).is_some_and(|bind| {
                let own = parsed.is_none_or(|name| name == bind.statement);
                bound.replace((bind.portal, bind.statement)).is_none() && own
            }),
            b'D' => match extended::named(body) {
                Some(Named::Statement(name)) => {
                    parsed == Some(name) || bound.is_some_and(|(_, statement)| statement == name)
                }
                Some(Named::Portal(name)) => bound.is_some_and(|(portal, _)| portal == name),
                None => false,
            },
            b'E' => bound.is_some_and(|(portal, _)| {
                let of_portal = body.starts_with(portal) && body.get(portal.len()) == Some(&0);
                of_portal && !std::mem::replace(&mut executed, true)
            }),
            b'C' => executed,
            _ => true,
        };
        if !fits {
            return false;
        }
    }
    unit.first() == Some(&b'Q') || executed
}

/// The command tag of a BEGIN that is answered here; `None` when the text begins with anything else (a comment, say).
fn begin_tag(sql: &str) -> Option<&'static str> {
    let word = sql.split(|c: char| !c.is_ascii_alphabetic()).next()?;
    if word.eq_ignore_ascii_case("begin") {
        Some("BEGIN")
    } else if word.eq_ignore_ascii_case("start") {
        Some("START TRANSACTION")
    } else {
        None
    }
}

/// Whether a text is a single statement of a kind that is answered here, which always can be prepared and takes no values.
fn is_control(class: &Classification) -> bool {
    class.statements == 1
        && (!matches!(class.transaction, TransactionEffect::None | TransactionEffect::Other)
            || matches!(class.session, SessionEffect::Deallocate(_)))
}
