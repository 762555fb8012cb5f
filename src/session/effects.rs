//! What a unit needs of its server, and what it may do to the session's settings, to databases and to roles.
//!
//! Invariant: what can't be looked into may do anything. Must not know: servers, sockets.

use std::time::Instant;

use super::commits;
use super::driver::Session;
use super::setting_names::{Mentioned, Place};
use super::settings::{self, Touched};
use super::transaction::Transaction;
use super::unit::{self, Needs};
use crate::auth::Users;
use crate::classify::{
    self, InReadOnly, Refusal, Reset, SessionEffect, StandardConformingStrings, Steer, TransactionEffect,
};
use crate::route::{Mode, Need};
use crate::wire::{extended, startup, text};

/// What CREATE DATABASE copies if it is not told otherwise.
const DEFAULT_TEMPLATE: &[u8] = b"template1";

/// The setting that says how a transaction is committed.
const COMMIT_SETTING: &[u8] = b"synchronous_commit";

/// Bytes of a shape that `/learned` shows.
pub(super) const SHAPE_BYTES_MAX: usize = 400;

impl Session {
    pub(super) fn needs(&self, unit: &[u8]) -> Needs {
        if self.opaque_encoding {
            let names_prepared = mentions_prepared(unit);
            return Needs { transaction: TransactionEffect::Other, names_prepared, ..Needs::unknown() };
        }
        let mut needs = unit::needs(unit, &self.names, &self.dialect());
        if needs.in_read_only != InReadOnly::AsIs && self.only_reads() {
            needs.need = Need::Read;
            needs.repeatable = true;
        }
        if needs.need == Need::Read && !self.group.hidden.learned.is_empty() && self.is_learned(unit, &needs)
        {
            needs.need = Need::Primary;
            needs.repeatable = false;
        }
        if needs.need == Need::Read && !self.group.hidden.steered.is_empty() {
            needs.steer = self.steer(unit);
        }
        if needs.earlier_portal {
            needs.need = Need::Primary;
            needs.repeatable = false;
            needs.commits |= self.commit_bound;
        }
        if needs.need == Need::Read && self.group.hidden.known().is_some_and(|found| found.reads_keep) {
            needs.need = Need::Primary;
        }
        if self.mode == Mode::Primary || self.serializable || self.keeps_server() {
            needs.need = Need::Primary;
        }
        needs
    }

    /// The texts that a unit parses or runs.
    pub(super) fn texts<'u>(&'u self, unit: &'u [u8]) -> impl Iterator<Item = &'u [u8]> + 'u {
        unit::frames(unit).filter_map(|(kind, body)| match kind {
            b'Q' => extended::query(body),
            b'P' => extended::parse(body).map(|parse| parse.sql),
            b'B' => {
                let name = extended::bind(body)?.statement;
                match self.names.named(name) {
                    Some(statement) => Some(&*statement.sql),
                    None => self.names.unnamed.as_ref().map(|unnamed| unnamed.sql.as_slice()),
                }
            }
            _ => None,
        })
    }

    fn is_learned(&self, unit: &[u8], needs: &Needs) -> bool {
        let (learned, now) = (&self.group.hidden.learned, Instant::now());
        (needs.search && learned.keeps_search(now))
            || self.texts(unit).any(|text| learned.keeps(classify::shape_hash(text), now))
    }

    /// Where a read goes whose like standbys cancel again and again: of several texts, as the first that is steered.
    fn steer(&self, unit: &[u8]) -> Steer {
        let (steered, now) = (&self.group.hidden.steered, Instant::now());
        let mut steers = self.texts(unit).map(|text| steered.steer(classify::shape_hash(text), now));
        steers.find(|steer| *steer != Steer::Not).unwrap_or_default()
    }

    /// A standby has refused the unit.
    pub(super) fn learn(&self, unit: &[u8], refusal: Refusal, now: Instant) {
        for text in self.texts(unit) {
            let shape = || classify::shape_text(text, self.strings, SHAPE_BYTES_MAX);
            self.group.hidden.learned.learn(classify::shape_hash(text), refusal, now, shape);
        }
    }

    /// Whether code that a unit runs says how its transaction is to be committed. Rare, so it reads the texts once more.
    pub(super) fn mentions_commit(&self, unit: &[u8]) -> bool {
        let mentions = |text: &[u8]| {
            text.windows(COMMIT_SETTING.len()).any(|part| part.eq_ignore_ascii_case(COMMIT_SETTING))
        };
        // The values of a Bind are in the unit itself. What is put together at run time may be anything.
        mentions(unit) || self.texts(unit).any(|text| mentions(text) || commits::puts_names_together(text))
    }

    /// Notes what a unit may do to the session's settings. Rare, so it reads the texts once more.
    pub(super) fn note_effects(&mut self, unit: &[u8]) {
        if self.opaque_encoding {
            let mut mentioned = Mentioned::default();
            mentioned.read(unit, Place::Statement);
            self.note_mentioned(mentioned);
            self.note_code(unit);
            return self.touched.anything();
        }
        let between = matches!(self.transaction, Transaction::None);
        let mut touched = std::mem::take(&mut self.touched);
        let mut unknown = false;
        let mut mentioned = Mentioned::default();
        for (kind, body) in unit::frames(unit) {
            if let (true, b'B', Some(bind)) = (unknown, kind, extended::bind(body)) {
                // `set_config($1, $2, $3)`: the name is a value.
                bind.values().for_each(|value| mentioned.value(value));
            }
            let text = match kind {
                b'Q' => extended::query(body).map(<[u8]>::to_vec),
                b'P' => extended::parse(body).map(|parse| parse.sql.to_vec()),
                b'B' => extended::bind(body).and_then(|bind| self.names.sql(bind.statement)),
                _ => continue,
            };
            let Some(text) = text else { continue };
            let class = classify::classify(&text, &self.dialect());
            if class.unseen {
                self.note_code(&text);
            }
            if class.unseen || class.session == SessionEffect::Unknown {
                unknown = true;
                for name in classify::named_settings(&text, self.strings) {
                    mentioned.value(name.as_bytes());
                }
                if !(class.statements == 1 && defines_function(&text)) {
                    mentioned.read(&text, Place::Statement);
                }
                if let (b'B', Some(bind)) = (kind, extended::bind(body)) {
                    bind.values().for_each(|value| mentioned.value(value));
                }
            }
            match class.session {
                SessionEffect::None
                | SessionEffect::ResetLocal(_)
                | SessionEffect::Deallocate(_)
                | SessionEffect::DeallocateAll => {}
                SessionEffect::Set(name) => {
                    let plain = classify::named_settings(&text, self.strings).pop();
                    let name = plain.as_deref().map_or_else(|| name.of(&text), str::as_bytes);
                    mentioned.value(name);
                    let whole = between && kind == b'Q' && class.statements == 1;
                    self.set_by_text = whole.then(|| settings::set_by_text(&text, name)).flatten();
                    touched.set(name);
                }
                SessionEffect::Reset(name) if between => {
                    let plain = classify::named_settings(&text, self.strings).pop();
                    let name =
                        plain.unwrap_or_else(|| String::from_utf8_lossy(name.of(&text)).to_ascii_lowercase());
                    if touched != Touched::Reset(name.clone()) {
                        touched.only(Touched::Reset(name));
                    }
                }
                SessionEffect::ResetAll if between && touched != Touched::ResetAll => {
                    touched.only(Touched::ResetAll);
                }
                SessionEffect::DiscardAll if between && touched != Touched::DiscardAll => {
                    touched.only(Touched::DiscardAll);
                }
                SessionEffect::ResetAll | SessionEffect::DiscardAll if between => {}
                _ => touched.anything(),
            }
        }
        self.touched = touched;
        self.note_mentioned(mentioned);
    }

    /// Notes what a text that can't be looked into may define.
    pub(super) fn note_code(&mut self, text: &[u8]) {
        let mentions = |word: &[u8]| text.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
        if mentions(b"create") || mentions(b"alter") {
            self.note_definition();
        }
    }

    /// Whether its startup packet has settings that a RESET goes back to, and that decide how a statement goes.
    pub(super) fn has_startup_to_reset_to(&self) -> bool {
        let of_server = self.told.pairs().iter().find(|(name, _)| name == "server_encoding");
        let is_of_server = |value: &str| of_server.is_some_and(|(_, own)| is_same_encoding(own, value));
        self.startup.pairs.iter().any(|(name, value)| match name.as_str() {
            "application_name" => false,
            "client_encoding" => !is_of_server(value),
            _ => true,
        })
    }

    /// Notes what code mentions of settings that no server lists.
    fn note_mentioned(&mut self, mentioned: Mentioned) {
        if mentioned != Mentioned::default() {
            self.mentioned.get_or_insert_default().add(mentioned);
        }
    }

    /// Closes the idle connections to every database that a unit may name: the server refuses to drop, rename or copy one to
    /// which anybody else is connected.
    pub(super) async fn leave_databases(&mut self, unit: &[u8]) {
        let mut named = self.names_in(unit);
        named.push(DEFAULT_TEMPLATE.to_vec());
        for name in named.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
            (self.shard.shared.forget_database)(name);
        }
        for database in self.shard.pools.databases() {
            if named.iter().any(|name| name == database.as_bytes()) {
                // Those in use, perhaps only for a question of pgsteer's own, are closed when they are given back: the server waits
                // some seconds for that.
                self.shard.pools.outdate_database(&database);
                self.shard.pools.leave_database(&database).await;
                self.altered_databases.push(database);
            }
        }
    }

    /// A unit is over that may have altered databases: their defaults hold for whoever logs in from the end of the transaction on,
    /// so that no connection opened before is for anybody.
    pub(super) fn settle_databases(&mut self) {
        if self.transaction.is_on_server() || self.is_in_batch() {
            return;
        }
        for database in std::mem::take(&mut self.altered_databases) {
            self.forget_defaults(&database);
        }
    }

    /// Roles have other defaults in this database.
    pub(super) fn forget_defaults(&self, database: &str) {
        (self.shard.shared.forget_database)(database);
        self.shard.pools.outdate_database(database);
    }

    /// All names in the texts of a unit.
    fn names_in(&self, unit: &[u8]) -> Vec<Vec<u8>> {
        let mut named = Vec::new();
        for (kind, body) in unit::frames(unit) {
            match kind {
                b'Q' => named.extend(extended::query(body).map(classify::names).unwrap_or_default()),
                b'P' => {
                    named.extend(extended::parse(body).map(|it| classify::names(it.sql)).unwrap_or_default());
                }
                b'B' => {
                    let text = extended::bind(body).and_then(|bind| self.names.sql(bind.statement));
                    named.extend(text.map(|text| classify::names(&text)).unwrap_or_default());
                }
                _ => {}
            }
        }
        named
    }

    /// Notes the roles that a unit may create, alter or drop, before it runs. What is known of them is forgotten, here and before the
    /// client is told anything (`forget_altered`): who is told that it is done must not be let in by what was known before.
    pub(super) fn note_roles(&mut self, unit: &[u8]) {
        let names = self.names_in(unit).into_iter().map(|name| {
            let mut name = text::from_bytes(&name);
            text::truncate(&mut name, startup::NAME_BYTES_MAX);
            name
        });
        let named = Users::of(names);
        let all = match self.altered_roles.take() {
            Some(users) => users.and(named),
            None => named,
        };
        self.forget_users(&all);
        self.altered_roles = Some(Box::new(all));
    }

    /// A unit is over: what others have learned of these roles meanwhile is forgotten, too. Others see them altered only from the end
    /// of the transaction on.
    pub(super) fn settle_roles(&mut self) {
        let Some(users) = self.altered_roles.take() else { return };
        self.forget_users(&users);
        if self.transaction.is_on_server() || self.is_in_batch() {
            self.altered_roles = Some(users);
        }
    }

    /// Whether the session's transaction alters what logins of others go by. Any part of an answer may tell that it is over.
    pub(super) fn alters_others(&self) -> bool {
        self.altered_roles.is_some() || !self.altered_databases.is_empty()
    }

    /// What others have learned so far of roles and databases that the session alters is forgotten. Who is told that it is done logs in
    /// elsewhere at once, before this session has gone on.
    pub(super) fn forget_altered(&self) {
        if let Some(users) = &self.altered_roles {
            self.forget_users(users);
        }
        for database in &self.altered_databases {
            self.forget_defaults(database);
        }
    }

    fn forget_users(&self, users: &Users) {
        (self.shard.shared.forget_users)(users);
        self.shard.pools.outdate(users);
    }
}

/// The statements that a text needs behind it on a server that has not seen the startup packet: a RESET goes to the server's
/// own value there, and the session's is that of its packet. Of its settings, `startup` has the values.
pub(super) fn restoring(
    startup: &[(String, String)],
    sql: &[u8],
    strings: StandardConformingStrings,
) -> Vec<String> {
    if startup.is_empty() {
        return Vec::new();
    }
    let mut commands = Vec::new();
    for reset in classify::resets(sql, strings) {
        let is_reset = |name: &str| match &reset {
            Reset::All => !settings::is_identity(name),
            Reset::Everything => true,
            Reset::One(reset) | Reset::Local(reset) => reset == name,
        };
        let assign = match reset {
            Reset::Local(_) => settings::local_assignment,
            _ => settings::assignment,
        };
        commands.extend(
            startup.iter().filter(|(name, _)| is_reset(name)).map(|(name, value)| assign(name, value)),
        );
    }
    commands
}

/// Encodings are compared as PostgreSQL does (`pg_char_to_encoding`): by their letters and digits.
fn is_same_encoding(one: &str, other: &str) -> bool {
    let letters = |name: &str| -> String {
        name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
    };
    letters(one) == letters(other)
}

/// Whether a statement is CREATE [OR REPLACE] FUNCTION or PROCEDURE, whose body is not run.
fn defines_function(text: &[u8]) -> bool {
    let mut words = text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty());
    let mut is_next = |wanted: &[&str]| {
        words.next().is_some_and(|word| wanted.iter().any(|it| word.eq_ignore_ascii_case(it.as_bytes())))
    };
    is_next(&["create"])
        && (is_next(&["function", "procedure"])
            || (is_next(&["replace"]) && is_next(&["function", "procedure"])))
}

/// Whether texts that can't be looked into may name prepared statements.
fn mentions_prepared(unit: &[u8]) -> bool {
    let mentions = |word: &[u8]| unit.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    mentions(b"prepare") || mentions(b"execute") || mentions(b"deallocate")
}
