//! A unit as the server that is attached is to see it: the session's settings before it, its transaction begun, names and texts translated.
//!
//! Invariant: all of it is one write, and the unit does not run should anything before it fail. Must not know: what becomes of it.

use std::rc::Rc;

use super::attempt::Part;
use super::driver::{Attached, Session};
use super::effects::restoring;
use super::run::Task;
use super::settings::{Touched, difference, is_identity};
use super::transaction::{self, Transaction};
use super::translate::{Doubt, Mark, Shapes, Translator};
use super::unit::{self, Kind};
use crate::backend::{Server, reset};
use crate::classify::Dialect;
use crate::relay::answer::Expect;
use crate::telemetry::metrics::Side;
use crate::wire::{extended, frame, reply};

impl Session {
    /// Takes back what was written since.
    pub(super) fn take_back(&mut self, attached: &mut Attached, part: &mut Part, since: &Mark) {
        let Some(server) = attached.lease.server() else { return };
        self.translator(server, part, (&[], Shapes::Trust), &mut Vec::new()).take_back(since);
    }

    /// Puts questions for the shapes of rows before the unit.
    pub(super) fn put_questions(&mut self, attached: &mut Attached, part: &mut Part, doubts: &[Doubt]) {
        let Some(server) = attached.lease.server() else { return };
        self.translator(server, part, (&[], Shapes::Trust), &mut Vec::new()).ask(doubts);
    }

    fn translator<'t>(
        &'t mut self,
        server: &'t mut Server,
        part: &'t mut Part,
        (unit, shapes): (&'t [u8], Shapes),
        doubts: &'t mut Vec<Doubt>,
    ) -> Translator<'t> {
        Translator {
            session: self.key(),
            scope: self.scope_now(),
            out: &mut part.out,
            answer: &mut part.answer,
            carried: &mut server.carried,
            names: &mut self.names,
            table: &self.shard.statements,
            prepared_max: self.shard.pools.settings().max_prepared_statements,
            dialect: Dialect {
                strings: self.strings,
                version: self.first.version,
                catalogue: self.catalogue.as_deref(),
                catalogue_stamp: self.catalogue_stamp,
                overrides: &self.shard.shared.settings.routing.functions,
                cache: Some(&self.shard.texts),
            },
            journal: &mut part.journal,
            unit,
            shapes,
            doubts,
            bound: None,
        }
    }

    /// The session's number, unique over the shards.
    pub(super) fn key(&self) -> u64 {
        self.number << 8 | (self.shard.number as u64 & 0xff)
    }

    /// The statements after which the server has the session's settings and no other, taken for run.
    pub(super) fn take_over(&self, server: &mut Server) -> Vec<String> {
        let foreign = server.left_by.is_some_and(|session| session != self.key());
        let mut commands: Vec<String> = Vec::new();
        let applied = std::mem::replace(&mut server.applied, Rc::clone(&self.settings));
        if foreign {
            // The session before may have set what the server does not list.
            commands.extend(reset::EVERY_SETTING.map(str::to_owned));
            server.left_by = None;
        }
        let acted = applied.id != self.settings.id && applied.pairs.iter().any(|(name, _)| is_identity(name));
        let applied = match (foreign, acted) {
            (true, _) => &[],
            // Who it is by then may not be allowed to reset what was set as another. RESET ALL asks nobody.
            (false, true) => {
                commands.extend(reset::EVERY_SETTING.iter().take(3).map(|sql| (*sql).to_owned()));
                server.defaults.pairs.as_slice()
            }
            (false, false) => applied.pairs.as_slice(),
        };
        commands.extend(difference(applied, &self.settings.pairs, self.settings_order));
        commands
    }

    /// Puts what brings the server to the session's settings before the unit, in the same write: in a transaction of its own, and
    /// in such a way that the unit does not run should any of it fail.
    pub(super) fn put_settings(&self, task: &Task<'_>, attached: &mut Attached, part: &mut Part) {
        let key = self.key();
        let Some(server) = attached.lease.server() else { return };
        let foreign = server.left_by.is_some_and(|session| session != key);
        // What sequences gave another session there must not be taken for this one's.
        let asks = self.may_ask_last_value(&task.needs);
        let others_values = asks && server.last_writer.is_some_and(|writer| writer != key);
        if !foreign && !others_values && server.applied.id == self.settings.id {
            return;
        }
        let mut commands = self.take_over(server);
        if others_values && !foreign {
            commands.push("DISCARD SEQUENCES".to_owned());
        }
        let Part { answer, out, .. } = part;
        if commands.is_empty() {
            return;
        }
        server.carried.unnamed = None;
        answer.announce_ready();
        // A standby refuses SELECT where transactions are SERIALIZABLE unless they say otherwise.
        let begin = "BEGIN ISOLATION LEVEL READ COMMITTED";
        for sql in [begin].into_iter().chain(commands.iter().map(String::as_str)).chain(["COMMIT"]) {
            reply::put_statement(out, sql);
            answer.expect(Expect::Own);
        }
    }

    /// Writes the task's unit as the server is to see it, with what must go before it. Where a question must be answered first
    /// (`doubts`), it is written up to there; gives the bytes of the unit that are written.
    pub(super) fn translate(
        &mut self,
        task: &Task<'_>,
        attached: &mut Attached,
        part: &mut Part,
        shapes: Shapes,
        doubts: &mut Vec<Doubt>,
    ) -> usize {
        let (standby, fresh) = (attached.side == Side::Standby, part.fresh);
        let Some(server) = attached.lease.server() else { return task.bytes };
        let (out, answer) = (&mut part.out, &mut part.answer);
        if let Transaction::Deferred { sql, again, .. } = &self.transaction {
            for sql in transaction::statements(sql) {
                reply::put_statement(out, sql);
                answer.expect(Expect::Begin);
            }
            // A cancel request is not to hit the BEGIN: it waits until that is heard of.
            frame::put(out, b'H', &[]);
            for rerun in again {
                let reply = rerun.put(out);
                answer.expect(reply);
            }
            // It took the place of the server's unnamed statement; the client may have prepared its own before.
            server.carried.unnamed = None;
        }
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        if let Some(refusal) = self.refusal(task, standby, server) {
            server.carried.unnamed = None;
            reply::put_query(out, &refusal);
            answer.expect(Expect::Simple);
            return task.bytes;
        }
        let simple = task.kind == Kind::Simple;
        let shows_own = task.needs.shows_own && self.transaction != Transaction::Failed;
        let shown = if shows_own { self.tell_own(server, unit) } else { Vec::new() };
        for sql in shown.iter().filter(|_| simple) {
            reply::put_query(out, sql);
            answer.expect(Expect::Preamble);
        }
        let may_reset = (task.needs.session || self.names.resets()) && server.defaults.id != self.startup.id;
        let startup = may_reset.then(|| Rc::clone(&self.startup));
        let in_transaction = matches!(self.transaction, Transaction::Deferred { .. } | Transaction::Open);
        let strings = self.strings;
        let mut translator = self.translator(server, part, (unit, shapes), doubts);
        let in_place = |translator: &mut Translator<'_>, before: &Mark| {
            let asks = shapes == Shapes::AskInPlace && !translator.doubts.is_empty();
            if asks {
                translator.ask_instead(before);
            }
            asks
        };
        if task.beyond > 0 {
            let before = translator.mark();
            if let Some(&kind) = unit.first() {
                translator.large(kind, task.bytes + task.beyond, unit);
            }
            return if in_place(&mut translator, &before) { 0 } else { task.bytes };
        }
        if task.needs.names_prepared && translator.carried.own_names.is_none() && !fresh {
            translator.give_own_names();
        }
        for sql in shown.iter().filter(|_| !simple) {
            translator.put_within(sql);
        }
        let mut written = 0;
        for (kind, body) in unit::frames(unit) {
            let before = translator.mark();
            translator.frame(kind, body);
            if in_place(&mut translator, &before) {
                return written;
            }
            written += frame::HEADER_BYTES + body.len();
            if let Some(startup) = &startup {
                translator.restore(kind, body, &startup.pairs);
            }
        }
        if let (Some(startup), true) = (startup, simple) {
            let text = unit::frames(unit).next().and_then(|(_, body)| extended::query(body));
            let restoring = restoring(&startup.pairs, text.unwrap_or_default(), strings);
            part.is_reset = !restoring.is_empty();
            // Outside of a transaction the next statement's server is brought to them.
            for sql in restoring.iter().filter(|_| in_transaction) {
                reply::put_query(&mut part.out, sql);
                part.answer.expect(Expect::Preamble);
                server.carried.unnamed = None;
            }
        }
        task.bytes
    }

    /// What is sent in the place of a unit that can't be run on this server as on one of the session's own: it fails there, and fails
    /// its transaction block as any error would.
    fn refusal(&self, task: &Task<'_>, standby: bool, server: &Server) -> Option<String> {
        let keeps_no_state = standby && !self.is_for_standbys();
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced);
        if let (true, Some(pin), true) = (keeps_no_state, task.pin_elsewhere(), ends) {
            // It would leave state on a standby that later writes of the session need on the primary.
            return Some(refusal_on_standby(pin.as_str()));
        }
        // What follows the RESET would run under the server's settings instead of those of the session's startup packet.
        let is_amiss = task.needs.needs_own_defaults()
            && server.defaults.pairs.is_empty()
            && self.has_startup_to_reset_to();
        is_amiss.then(|| RESET_IN_THE_MIDDLE.to_owned())
    }

    /// Under which settings texts are parsed now. While a change is not known yet (a SET in this transaction) what is prepared is
    /// shared with nobody.
    pub(super) fn scope_now(&self) -> u64 {
        if self.touched == Touched::Nothing { self.scope.id } else { self.shard.own_scope() }
    }
}

/// Fails a text that can't be run as the server of the session's own would.
const RESET_IN_THE_MIDDLE: &str = "DO $pgsteer$BEGIN RAISE EXCEPTION USING ERRCODE = '0A000', \
     MESSAGE = 'pgsteer: a RESET of settings that came with the startup packet, and statements behind it, in one text', \
     DETAIL = 'The session is in a transaction, or pinned to its server, whose own settings are not those of the startup packet.', \
     HINT = 'Send the RESET by itself.';END$pgsteer$";

/// Fails a unit that would leave state on a standby.
fn refusal_on_standby(pin: &str) -> String {
    format!(
        "DO $pgsteer$BEGIN RAISE EXCEPTION USING ERRCODE = '25006', \
         MESSAGE = 'pgsteer: this READ ONLY transaction runs on a standby, which can''t keep session state ({pin})', \
         HINT = 'Begin it with /* pgsteer: target=primary */, or set the state outside of the transaction.';END$pgsteer$"
    )
}
