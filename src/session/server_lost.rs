//! A server that is lost, or given up, with a unit under way: what the client is told of it, and whether the unit runs again.
//!
//! Invariant: a unit goes out a second time only if nothing of it was sent, or it is a known read on a standby of which nothing has
//! reached the client. A lost transaction is 40001 only when no COMMIT was sent. Must not know: how nodes are judged.

use std::time::Instant;

use super::attempt::{PARTLY_TOLD, Sent, Told};
use super::driver::{End, Flow, Session};
use super::inspect::Inspect;
use super::journal::Journal;
use super::outcome::{self, Loss};
use super::run::{RetryCause, Task, Tried};
use super::settings::Touched;
use super::transaction::Transaction;
use super::unit::{Kind, Needs};
use crate::backend::carried::Carried;
use crate::classify::TransactionEffect;
use crate::relay::answer::Unkept;
use crate::telemetry::metrics::Side;
use crate::topology::model::NodeId;
use crate::wire::frame;
use crate::wire::sqlstate;

/// Why a read is not run again, where nothing else bars it.
const NOT_AGAIN: &str = "its standby did not complete its answer in time";

impl Session {
    /// The server is gone with a unit under way, or was given up.
    pub(super) async fn server_lost(
        &mut self,
        task: &mut Task<'_>,
        (journal, unkept): (&mut Journal, &Unkept),
        loss: Loss,
        ((node, side), sent, owed): ((NodeId, Side), Sent, Inspect),
    ) -> Flow<Tried> {
        let cause = &loss.cause;
        if sent.inside_frame {
            // The client has the beginning of a message: nothing can be said inside it, and nothing run again.
            return Err(End::Client);
        }
        let may_commit = task.needs.commits && !(sent.fresh && self.is_in_vain(task));
        if !self.pins.is_empty() {
            let fate = if matches!(self.transaction, Transaction::Open | Transaction::Failed) && !may_commit {
                "The open transaction was rolled back"
            } else {
                "The statement in flight may have been carried out and committed"
            };
            let cause = format!("{cause}. {fate}");
            return Err(End::Told(Box::new(outcome::pinned_server_lost(&self.pins, &cause))));
        }
        let only_read = side == Side::Standby && task.needs.repeatable && !sent.delivered;
        if !only_read {
            // Whatever the lost statement did or told must be seen by the session's next look.
            let now = Instant::now();
            let commits = self.commits(&task.needs, now);
            self.freshness.on_primary_answer(now, commits);
        }
        let begun = self.transaction.is_on_server();
        let owed = match side {
            Side::Standby if begun => self.owed_by_lost(owed, &task.needs).await,
            _ => owed,
        };
        let whole = task.bytes > 0 && sent.fresh;
        if !sent.any && !begun && whole {
            journal.undo(&mut self.names);
            return Ok(Tried::Again(RetryCause::Unsent));
        }
        let alone = matches!(self.transaction, Transaction::None);
        let repeatable = side == Side::Standby && task.needs.repeatable;
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced);
        if self.transaction == Transaction::Failed
            && whole
            && ends
            && !sent.delivered
            && let Some(out) = self.end_in_its_stead(task, journal)
        {
            self.end_unit(task, out).await?;
            return Ok(Tried::Over);
        }
        if whole
            && ends
            && !sent.delivered
            && let Some(tried) = self.lost_untold(task, journal, &loss, ((node, side), owed)).await?
        {
            return Ok(tried);
        }
        let not_run_again = self.bar_to_retry(task).unwrap_or(PARTLY_TOLD);
        let report = if let Some(transaction) = self.already_told(task, &sent, owed) {
            self.transaction = transaction;
            None
        } else if alone && repeatable {
            Some(outcome::read_interrupted(&loss))
        } else if alone || may_commit {
            self.transaction = Transaction::None;
            Some(outcome::outcome_unknown(cause))
        } else if loss.code == sqlstate::QUERY_CANCELED {
            self.transaction = Transaction::LOST_AND_TOLD;
            Some(outcome::read_interrupted(&loss))
        } else {
            self.transaction = Transaction::LOST_AND_TOLD;
            Some(outcome::transaction_lost(cause))
        };
        journal.settle(unkept, &mut self.names, &mut Carried::default());
        let out = report.map(|report| self.told_of(&loss, &report, not_run_again)).unwrap_or_default();
        if loss.nothing_awaited {
            // Whoever waits for nothing would not know what an error is for.
            self.owed = Some(out.into_boxed_slice());
            self.skip_to_sync = true;
            return Ok(Tried::Over);
        }
        task.beyond = sent.beyond;
        if sent.copying && task.kind == Kind::Synced {
            // The client still sends its data, then a Sync.
            task.kind = Kind::Flushed;
        }
        self.end_unit(task, out).await?;
        Ok(Tried::Over)
    }

    /// A whole unit was lost of which nothing was delivered: it is run again if it only read on a standby, or told otherwise than as lost. `None`:
    /// it is lost.
    async fn lost_untold(
        &mut self,
        task: &mut Task<'_>,
        journal: &mut Journal,
        loss: &Loss,
        ((node, side), owed): ((NodeId, Side), Inspect),
    ) -> Flow<Option<Tried>> {
        let again = loss.may_run_again && task.tries < self.shard.shared.settings.retry_attempts;
        // On a standby nothing can have been written. On the primary a text that only reads may write all the same (a view
        // over a volatile function, an operator): what was sent there is not sent again.
        let repeatable = side == Side::Standby && task.needs.repeatable;
        let begins = self.has_told_nothing() && task.needs.only_reads();
        if begins && repeatable && again {
            // In a READ ONLY transaction nothing is written anywhere; at endpoints for standbys one is not known to be that.
            let may_write = matches!(self.transaction, Transaction::None) || self.is_for_standbys();
            if may_write && !self.shard.snapshot.borrow().was_in_recovery_behind(node, task.sent_at) {
                task.not_again_at.push(node);
            }
            journal.undo(&mut self.names);
            self.begin_anew();
            let is_conflict = loss.conflict.is_some();
            return Ok(Some(Tried::Again(if is_conflict {
                RetryCause::Conflict
            } else {
                RetryCause::ServerLost
            })));
        }
        if begins && repeatable && !loss.nothing_awaited && task.interrupted.conflict.is_some() {
            // It has ended its session there, not the client's.
            journal.undo(&mut self.names);
            let why = self.bar_to_retry(task).unwrap_or(NOT_AGAIN);
            return self.pass_on_conflict(task, why).await.map(|_| Some(Tried::Over));
        }
        if self.has_only_read(side, owed)
            && let Some(out) = self.end_in_its_stead(task, journal)
        {
            self.end_unit(task, out).await?;
            return Ok(Some(Tried::Over));
        }
        Ok(None)
    }

    /// Whether a unit that begins a batch, or is a Query, can commit nothing because its block has failed: what comes first in it does not
    /// end that, or is all that it is.
    fn is_in_vain(&self, task: &Task<'_>) -> bool {
        let Needs { transaction, statements, earlier_portal, .. } = task.needs;
        let ends = matches!(
            transaction,
            TransactionEffect::Commit | TransactionEffect::Rollback | TransactionEffect::Chain
        );
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        self.transaction == Transaction::Failed
            && ((ends && statements == 1 && !earlier_portal) || is_no_end(unit))
    }

    /// Where the transaction stands when the client has been told already what became of the unit, so that only ReadyForQuery is
    /// missing: a Query has committed when its only statement is completed, a COMMIT in any case, and behind an error nothing runs, so
    /// that a block in which a single statement got one has failed, unless that ends it.
    fn already_told(&self, task: &Task<'_>, sent: &Sent, owed: Inspect) -> Option<Transaction> {
        let Needs { transaction, commits, .. } = task.needs;
        if !sent.fresh || !matches!(task.kind, Kind::Simple | Kind::Synced) {
            return None;
        }
        let alone = matches!(self.transaction, Transaction::None);
        let single = task.needs.statements == 1 && !task.needs.earlier_portal;
        let ends = matches!(transaction, TransactionEffect::Commit | TransactionEffect::Rollback) && single;
        let stays = !commits && !task.needs.rolls_back;
        let plain = transaction == TransactionEffect::None && stays;
        let stays = stays && single && transaction != TransactionEffect::Chain;
        match sent.told {
            // In a batch it may have been another message than the COMMIT.
            Told::Failed if alone && (ends || plain || stays) => Some(Transaction::None),
            Told::Failed if ends && task.kind == Kind::Simple => Some(Transaction::None),
            Told::Failed if ends || plain || stays => Some(Transaction::LOST_AND_TOLD),
            // The session's state would be asked for now.
            Told::Completed if self.owes_questions(&task.needs, task.now, owed) => None,
            Told::Completed if ends => Some(Transaction::None),
            Told::Completed if plain && alone && single && task.kind == Kind::Simple => {
                Some(Transaction::None)
            }
            Told::Failed | Told::Completed | Told::Nothing => None,
        }
    }

    /// What the unit left in its session would have to be asked for.
    fn owes_questions(&self, needs: &Needs, now: Instant, owed: Inspect) -> bool {
        let visible = needs.pin.is_some() || needs.session || needs.unseen;
        // Of what is asked as a precaution there is most likely nothing to be told.
        let is_owed = !matches!(owed, Inspect::Nothing | Inspect::Precaution);
        let hidden = is_owed || self.hidden_effects(needs, now) == Inspect::All;
        self.touched != Touched::Nothing || visible || hidden
    }
}

/// Whether the first frame, of which the beginning is here, certainly runs no COMMIT, ROLLBACK or what else a failed block takes: any other
/// statement is refused there, and all behind it skipped.
pub(super) fn is_no_end(unit: &[u8]) -> bool {
    let body = unit.get(frame::HEADER_BYTES..).unwrap_or_default();
    let text = match unit.first() {
        Some(b'Q') => body,
        Some(b'P') => body.splitn(2, |byte| *byte == 0).nth(1).unwrap_or_default(),
        _ => return false,
    };
    let word = text.trim_ascii_start().split(|byte| !byte.is_ascii_alphabetic()).next().unwrap_or_default();
    let ends = ["commit", "end", "rollback", "abort", "prepare"];
    // Behind a comment it may be anything.
    !word.is_empty() && !ends.iter().any(|end| word.eq_ignore_ascii_case(end.as_bytes()))
}
