//! What statements do beside their texts: asked of the catalogue of the database, for all sessions together.
//!
//! Invariant: while it is not known what a statement may have done, its session is asked for its state. Where objects lead to no
//! function that changes a session, which is the rule, a statement costs nothing but a look at what is known. Must not know: how
//! statements are classified, routing.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::RESET_TIMEOUT;
use super::driver::{Attached, Flow, Session};
use super::inspect::{Inspect, ask};
use super::setting_names::{Mentioned, Place};
use super::settings;
use super::unit::Needs;
use crate::backend::reset::CommandError;
use crate::classify::{Catalogue, Dialect, PinReason, TransactionEffect};
use crate::pool::{CustomSettings, Found};
use crate::telemetry::metrics::Side;
use crate::topology::model::{NodeId, Readers};

const HIDDEN: &str = concat!(include_str!("bodies.sql"), include_str!("hidden.sql"));

/// What a database has beyond PostgreSQL's own: rows of kind, schema, name and a truth value (`classify::Catalogue::from_rows`), to be
/// asked for with a `search_path` of `pg_catalog`.
pub const CATALOGUE: &str = concat!(include_str!("bodies.sql"), include_str!("catalogue.sql"));

/// Letters of bodies that its answer has.
const BODIES_MAX: usize = 200_000;

const FUNCTIONS: &str = include_str!("functions.sql");
/// Names and bodies that it gives at most.
const NAMES_MAX: usize = 2048;
const FUNCTIONS_MAX: usize = 256;

const CALLERS: &str = include_str!("callers.sql");

/// How long the names of functions' bodies are believed to be all.
const FUNCTIONS_TTL: Duration = Duration::from_secs(60);

/// Of the question's own: names mean PostgreSQL's own objects, and compiling it would take longer than running it.
const ITS_SETTINGS: &str = "SET LOCAL search_path TO pg_catalog, pg_temp; SET LOCAL jit TO off; \
    SET LOCAL statement_timeout TO 0; ";

/// How long another connection is waited for to look at the catalogue, where that is needed to answer.
const LOOK_ELSEWHERE_WITHIN: Duration = Duration::from_secs(2);
const LOOK_AGAIN_AFTER: Duration = Duration::from_millis(20);

/// A look at the catalogue was answered, or not for now; or its server is lost.
pub(super) type Looked = Result<(), CommandError>;

/// What reads may have done to their session without a word of it in their texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reads {
    /// Nothing: what they may call does no such thing.
    Never,
    /// The database has functions behind what they read that may.
    MayChange,
    /// The catalogue was not to be had.
    NotKnown,
}

impl Session {
    /// What is to be asked because of what a unit may have done that its text does not show.
    pub(super) fn hidden_effects(&self, needs: &Needs, now: Instant) -> Inspect {
        let alone = needs.statements == 1 && !needs.repeatable;
        let harmless = alone && (needs.session || needs.transaction != TransactionEffect::None);
        if needs.statements == 0 || harmless {
            return Inspect::Nothing;
        }
        match self.group.hidden.known() {
            Some(found) if found.changes && !needs.repeatable => Inspect::All,
            Some(found) if found.reads_change => Inspect::All,
            Some(_) if self.definition.is_none() && !self.group.hidden.is_due(now) => Inspect::Nothing,
            _ => Inspect::Precaution,
        }
    }

    /// Whether the attached server is to be asked how it commits by default: it is the primary, and none of its epoch has been. A
    /// connection that has a session's startup packet has its defaults, not those of all.
    pub(super) fn wants_primary_commits(&self, attached: &mut Attached) -> bool {
        let epoch = self.shard.snapshot.borrow().epoch;
        attached.side == Side::Primary
            && self.group.hidden.primary_commits_asynchronously(epoch).is_none()
            && attached
                .lease
                .server()
                .is_some_and(|server| server.defaults.pairs.is_empty() && server.link.epoch.get() == epoch)
    }

    /// Whether a unit may ask, unseen, what a sequence gave last.
    pub(super) fn may_ask_last_value(&self, needs: &Needs) -> bool {
        needs.asks_last_value
            || needs.unseen
            || self.group.hidden.known().is_none_or(|found| match needs.repeatable {
                true => found.reads_ask,
                false => found.asks,
            })
    }

    /// Notes that a unit defines something, before it is sent. Others see it from the end of its transaction on.
    pub(super) fn note_definition(&mut self) {
        self.definition = Some(self.group.hidden.define());
    }

    /// Takes over what is known of the database by now. Two atomic reads while nothing is new.
    #[inline]
    pub(super) fn refresh_catalogue(&mut self) {
        let stamp = self.group.hidden.stamp();
        if self.catalogue_stamp != stamp {
            self.catalogue = self.group.hidden.catalogue();
            self.catalogue_stamp = stamp;
        }
    }

    /// How this session's texts are to be read.
    pub(super) fn dialect(&self) -> Dialect<'_> {
        Dialect {
            strings: self.strings,
            version: self.first.version,
            catalogue: self.catalogue.as_deref(),
            catalogue_stamp: self.catalogue_stamp,
            overrides: &self.shard.shared.settings.routing.functions,
            cache: Some(&self.shard.texts),
        }
    }

    /// Whether the server has all that was defined.
    fn has_definitions(&self, attached: &Attached) -> bool {
        let replayed = self.shard.snapshot.borrow().node(attached.node).and_then(|node| node.fresh_as_of);
        attached.side == Side::Primary || self.group.hidden.is_seen(replayed)
    }

    /// Has the catalogue looked through, if it is time. An error: the server is lost.
    pub(super) async fn look_for_hidden(&mut self, attached: &mut Attached) -> Flow<Looked> {
        if !self.has_definitions(attached) {
            return Ok(Ok(()));
        }
        let is_wanted = self.wants_primary_commits(attached);
        let look = self.group.hidden.look(is_wanted, Instant::now());
        let epoch = self.shard.snapshot.borrow().epoch;
        let (Some(server), Some(look)) = (attached.lease.server(), look) else {
            return Ok(Ok(()));
        };
        let says_primary_commits = attached.side == Side::Primary
            && server.defaults.pairs.is_empty()
            && server.link.epoch.get() == epoch;
        // Refused, it is asked again with the next statement.
        let asked = match ask(server, &[ITS_SETTINGS, HIDDEN].concat()).await {
            Ok(asked) => asked,
            Err(error) => return Ok(unless_lost(error)),
        };
        self.pass_notifications(&asked.notifications).await?;
        let Some(row) = asked.rows.first() else { return Ok(Ok(())) };
        let is_so = |column: usize| row.get(column).is_some_and(|it| it.as_deref() == Some("t"));
        let defaults = row.get(7).and_then(|hash| hash.as_deref()?.parse().ok());
        if attached.side == Side::Primary
            && defaults.is_some_and(|hash| self.group.hidden.has_new_defaults(hash))
        {
            self.forget_defaults(&Arc::clone(self.group.database()));
        }
        let mut found = Found::from_bits(std::array::from_fn(is_so));
        found.commits_asynchronously = is_so(8);
        if says_primary_commits {
            self.group.hidden.note_primary_commits(epoch, is_so(9));
        }
        let bodies = row.get(6).and_then(Option::as_deref).unwrap_or_default();
        found.unnamed = bodies.chars().count() >= BODIES_MAX || makes_unnamed(bodies);
        let Some(server) = attached.lease.server() else { return Ok(Ok(())) };
        let asked = match ask(server, &[ITS_SETTINGS, CATALOGUE].concat()).await {
            Ok(asked) => asked,
            Err(error) => return Ok(unless_lost(error)),
        };
        let rows = asked.rows.iter().filter_map(|row| match row.as_slice() {
            [Some(kind), Some(schema), Some(name), Some(value)] => {
                Some([kind.as_str(), schema.as_str(), name.as_str(), value.as_str()])
            }
            _ => None,
        });
        let catalogue = Catalogue::from_rows(rows, &self.shard.shared.settings.routing.functions);
        look.found(found, Arc::new(catalogue));
        self.pass_notifications(&asked.notifications).await.map(Ok)
    }

    /// Whether what only reads may have changed its session without a word of it in its text: where that is not known, another
    /// connection is asked for the catalogue.
    pub(super) async fn look_up_reads(&mut self) -> Reads {
        // A look that somebody else has begun, or that waits for a definition to end, is waited for.
        let look = async {
            while !self.group.hidden.is_up_to_date(Instant::now()) {
                let wanted = self.group.hidden.is_due(Instant::now());
                // A standby without the last definition gives no news: without a pause that would never end.
                if !wanted || !self.look_elsewhere().await {
                    tokio::time::sleep(LOOK_AGAIN_AFTER).await;
                }
            }
        };
        let is_over = tokio::time::timeout(RESET_TIMEOUT, look).await.is_ok();
        match self.group.hidden.known() {
            Some(found) if found.reads_change => Reads::MayChange,
            Some(_) if is_over => Reads::Never,
            _ => Reads::NotKnown,
        }
    }

    /// Has the catalogue looked through by way of any connection: on the primary, which has all definitions, or else on a standby.
    async fn look_elsewhere(&mut self) -> bool {
        let nodes: Vec<(NodeId, Side)> = {
            let snapshot = self.shard.snapshot.borrow();
            let primary = snapshot.primary_at(Instant::now()).map(|view| view.node);
            let primary =
                primary.filter(|node| !self.shard.is_paused() && !self.shard.is_doubted(*node, &snapshot));
            let standbys = snapshot.nodes.iter().filter(|view| view.readers == Readers::MayStay);
            let standbys = standbys.map(|view| (view.id, Side::Standby));
            primary.map(|node| (node, Side::Primary)).into_iter().chain(standbys).collect()
        };
        for (node, side) in nodes {
            let lease = tokio::time::timeout(LOOK_ELSEWHERE_WITHIN, self.lease_quietly(node)).await;
            let Ok(Some(lease)) = lease else { continue };
            let mut attached = Attached::new(lease, node, side);
            if matches!(self.look_for_hidden(&mut attached).await, Ok(Ok(()))) {
                attached.lease.release(Instant::now());
                if self.group.hidden.is_up_to_date(Instant::now()) {
                    return true;
                }
            }
        }
        false
    }

    /// Has the bodies of functions looked through for settings that no server lists, if it is time. An error: it could not be
    /// asked, and the question behind it would not have these names.
    pub(super) async fn look_at_functions(&mut self, attached: &mut Attached) -> Flow<Looked> {
        if !self.has_definitions(attached) {
            return Ok(Ok(()));
        }
        let Some(server) = attached.lease.server() else { return Ok(Ok(())) };
        let (now, definitions) = (Instant::now(), self.group.hidden.definitions());
        let is_new = |(at, before): (Instant, u64)| {
            before == definitions && now.saturating_duration_since(at) <= FUNCTIONS_TTL
        };
        if self.group.custom_settings.borrow().looked_at.is_some_and(is_new) {
            return Ok(Ok(()));
        }
        let mut found = CustomSettings { looked_at: Some((now, definitions)), ..CustomSettings::default() };
        let asked = match ask(server, &[ITS_SETTINGS, FUNCTIONS].concat()).await {
            Ok(asked) => asked,
            Err(error) if is_interrupted(&error) => return Ok(Err(error)),
            Err(_) => {
                if attached.inspect == Inspect::All {
                    self.mentioned.get_or_insert_default().unnamed = true;
                }
                return Ok(Ok(()));
            }
        };
        let mut notifications = asked.notifications;
        let mut bodies = 0;
        for row in asked.rows {
            match <[Option<String>; 4]>::try_from(row) {
                Ok([Some(kind), Some(name), _, _]) if kind == "name" => {
                    found.names.insert(name);
                }
                Ok([_, Some(function), Some(body), parameters]) => {
                    bodies += 1;
                    let mut mentioned = Mentioned::default();
                    mentioned.read_body(&body.to_lowercase(), &parameters.unwrap_or_default());
                    if mentioned.unnamed {
                        found.unnamed_by.insert(function.to_lowercase());
                    } else if mentioned.passed {
                        found.passed_by.insert(function.to_lowercase());
                    }
                }
                _ => {}
            }
        }
        found.is_cut = found.names.len() >= NAMES_MAX || bodies >= FUNCTIONS_MAX;
        if bodies > 0 {
            let names = found.unnamed_by.iter().chain(&found.passed_by);
            let names: Vec<String> = names.map(|it| settings::quoted_value(it)).collect();
            let question = CALLERS.replace("$names", &format!("ARRAY[{}]", names.join(", ")));
            match ask(server, &[ITS_SETTINGS, &question].concat()).await {
                Ok(asked) => {
                    notifications.extend(asked.notifications);
                    let callers = asked.rows.into_iter().flatten().flatten();
                    let callers: Vec<String> =
                        callers.filter(|caller| !found.passed_by.contains(caller)).collect();
                    found.unnamed_by.extend(callers);
                }
                Err(error) if is_interrupted(&error) => return Ok(Err(error)),
                Err(_) => found.is_cut = true,
            }
        }
        *self.group.custom_settings.borrow_mut() = found;
        self.pass_notifications(&notifications).await.map(Ok)
    }

    /// A setting that no server lists may be there, and its name is not known: the session stays where it is.
    pub(super) fn keep_unnamed(&mut self, attached: &mut Attached, mentioned: &Mentioned) {
        let made = {
            let custom = self.group.custom_settings.borrow();
            mentioned.unnamed
                || custom.is_cut
                || mentioned.called.iter().any(|function| custom.unnamed_by.contains(function))
                || mentioned.called_with_more.iter().any(|function| custom.passed_by.contains(function))
                || self.group.hidden.known().is_some_and(|found| found.unnamed)
        };
        if made && attached.side == Side::Standby && !self.is_for_standbys() {
            attached.spoiled = true;
        } else if made {
            self.add_pin(PinReason::UnnamedSetting);
        }
    }

    /// What sequences gave last on this server is the session's now. Where it is asked for, the session stays there.
    pub(super) fn note_write(&mut self, needs: &Needs, attached: &mut Attached) {
        let key = self.key();
        if let Some(server) = attached.lease.server() {
            server.last_writer = Some(key);
        }
        if needs.asks_last_value {
            self.group.hidden.note_last_value_asked();
        }
        let Needs { repeatable, session, transaction, statements, .. } = *needs;
        let harmless = statements <= 1 && (session || transaction != TransactionEffect::None);
        if !repeatable && !harmless && statements > 0 {
            self.keep_last_values();
        }
    }

    fn keep_last_values(&mut self) {
        if self.group.hidden.asks_last_values() {
            self.add_pin(PinReason::Sequence);
        }
    }

    /// It may have written before it was known that something asks what sequences gave last.
    pub(super) fn keep_last_values_found(&mut self, attached: &Attached) {
        let asks = self.group.hidden.known().is_some_and(|found| found.asks_for_session);
        if asks && attached.side == Side::Primary {
            self.keep_last_values();
        }
    }
}

/// Refused, it is asked again with the next statement.
fn unless_lost(error: CommandError) -> Looked {
    match error {
        CommandError::Io(_) => Err(error),
        CommandError::Refused(_) | CommandError::TooLong => Ok(()),
    }
}

/// Whether a question was not answered for no reason of its own.
fn is_interrupted(error: &CommandError) -> bool {
    matches!(error, CommandError::Io(_)) || error.is_conflict()
}

/// Whether code in bodies of functions may make a setting with a name that it puts together.
fn makes_unnamed(bodies: &str) -> bool {
    let mut mentioned = Mentioned::default();
    mentioned.read(bodies.as_bytes(), Place::Body);
    mentioned.unnamed || mentioned.passed
}
