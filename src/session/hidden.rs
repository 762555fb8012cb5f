//! What statements do beside their texts: asked of the catalogue of the database, for all sessions together.
//!
//! Invariant: while it is not known what a statement may have done, its session is asked for its state. Where objects lead to no
//! function that changes a session, which is the rule, a statement costs nothing but a look at what is known. Must not know: how
//! statements are classified, routing.

use std::time::Instant;

use super::driver::{Attached, Flow, Session};
use super::inspect::{Inspect, ask};
use super::unit::Needs;
use crate::classify::{PinReason, TransactionEffect};
use crate::pool::Found;
use crate::telemetry::metrics::Side;

const HIDDEN: &str = include_str!("hidden.sql");

/// Of the question's own: names mean PostgreSQL's own objects, and compiling it would take longer than running it.
const ITS_SETTINGS: &str = "SET LOCAL search_path TO pg_catalog, pg_temp; SET LOCAL jit TO off; ";

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

    /// Has the catalogue looked through, if it is time.
    pub(super) async fn look_for_hidden(&mut self, attached: &mut Attached) -> Flow<()> {
        let (Some(server), Some(look)) = (attached.lease.server(), self.group.hidden.look(Instant::now()))
        else {
            return Ok(());
        };
        // Refused, it is asked again with the next statement.
        let Ok(asked) = ask(server, &[ITS_SETTINGS, HIDDEN].concat()).await else { return Ok(()) };
        if let Some(row) = asked.rows.first() {
            let is_so = |column: usize| row.get(column).is_some_and(|it| it.as_deref() == Some("t"));
            look.found(Found::from_bits(std::array::from_fn(is_so)));
        }
        self.pass_notifications(&asked.notifications).await
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
