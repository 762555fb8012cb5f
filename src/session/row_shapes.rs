//! Whether the rows of a prepared statement still look as its client was told when the statement was described.
//!
//! A client that has described a statement reads its rows by that description ever after. A server of its own would refuse to
//! give others (`cached plan must not change result type`); a server that prepares the text anew would not. So it is asked
//! wherever a statement was prepared without the client: in the write of the unit where nothing can come of it but an error,
//! else in a round trip of its own, once for each server connection: before anything is sent (`ask_first`), or, in a batch of which a
//! part was sent without its Sync, right before the statement is bound (`ask_in_place`).
//!
//! The types of parameters, by which it writes binary values, are part of what it was told of a statement.
//!
//! Invariant: a client gets no rows of another shape than it was told, unless the unit itself asks for their shape. Must not
//! know: what the shapes are.

use super::attempt::{PARTLY_TOLD, Part, Sent};
use super::driver::{Attached, Flow, Session};
use super::exchange::{Ended, Goal, Rules};
use super::journal::Mark;
use super::outcome;
use super::run::{RetryCause, Task, Tried};
use super::transaction::Transaction;
use super::translate::{self, Doubt, Shapes};
use super::unit::Kind;
use crate::relay::answer::Expect;
use crate::telemetry::metrics::Side;
use crate::wire::{reply, sqlstate};

/// What a server said when it was asked.
pub(super) enum Asked {
    /// All is as the clients were told, or will be refused by the server itself: the unit may go out.
    Same(Attached, Part),
    /// The unit is done with, or to be run again.
    Over(Tried),
}

/// A unit that can't be written to its end before the server was asked.
pub(super) struct Draft {
    pub(super) shapes: Shapes,
    /// Where it begins.
    pub(super) since: translate::Mark,
    /// How many of its bytes are written, where the question stands in their midst.
    pub(super) written: usize,
    pub(super) doubts: Vec<Doubt>,
}

impl Session {
    /// Asks until no doubt is left, and writes what is not written yet.
    pub(super) async fn settle_doubts(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        mut part: Part,
        mut draft: Draft,
    ) -> Flow<Asked> {
        while !draft.doubts.is_empty() {
            let asked = if draft.shapes == Shapes::AskInPlace {
                self.ask_in_place(task, attached, part, &draft).await?
            } else {
                self.take_back(&mut attached, &mut part, &draft.since);
                draft.shapes = Shapes::Trust;
                self.ask_first(task, attached, part, &draft.doubts).await?
            };
            (attached, part) = match asked {
                Asked::Same(attached, part) => (attached, part),
                over @ Asked::Over(_) => return Ok(over),
            };
            draft.doubts.clear();
            draft.since = part.mark();
            draft.written = self.translate(task, &mut attached, &mut part, draft.shapes, &mut draft.doubts);
        }
        Ok(Asked::Same(attached, part))
    }

    /// What is to be done about shapes that are not known on the attached server.
    pub(super) fn row_shapes(&self, task: &Task<'_>, part: &Part, rules: Rules) -> Shapes {
        if !part.is_first() {
            let may_ask = part.may_be_asked(&self.transaction);
            return if may_ask { Shapes::AskInPlace } else { Shapes::Trust };
        }
        if matches!(self.transaction, Transaction::Failed) {
            return Shapes::Trust;
        }
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        let one_read = matches!(rules, Rules::ReadOnStandby | Rules::ReadForStandbys | Rules::Alone)
            && task.needs.repeatable
            && task.needs.statements == 1
            && task.kind == Kind::Synced
            && unit.first() == Some(&b'B');
        if one_read { Shapes::Compare } else { Shapes::Ask }
    }

    /// Sends a question and takes the answer: the unit's own bytes stay where they are.
    async fn ask(
        &mut self,
        task: &mut Task<'_>,
        attached: &mut Attached,
        part: &mut Part,
        (rules, goal): (Rules, Goal),
    ) -> (Ended, Sent) {
        let beyond = std::mem::take(&mut task.beyond);
        let (ended, mut sent) = self.exchange(task, attached, part, rules, goal).await;
        task.beyond = beyond;
        sent.beyond = beyond;
        (ended, sent)
    }

    /// Asks the server for the shapes in doubt, before anything of the unit is sent.
    async fn ask_first(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        mut part: Part,
        doubts: &[Doubt],
    ) -> Flow<Asked> {
        self.put_questions(&mut attached, &mut part, doubts);
        part.out.extend_from_slice(reply::SYNC);
        part.answer.expect(Expect::OwnSync);
        let (ended, mut sent) = self.ask(task, &mut attached, &mut part, (Rules::Own, Goal::Ready)).await;
        match ended {
            Ended::Complete(_) => {
                let changed = self.note_answers(&mut attached, &part, Mark::default());
                part.renew();
                if changed {
                    self.refuse_changed(task, attached, part).await
                } else {
                    Ok(Asked::Same(attached, part))
                }
            }
            Ended::Refused(code) => {
                let failed = part.answer.take_unkept().tokens;
                if let Some(server) = attached.lease.server() {
                    part.journal.correct(&failed, &mut server.carried);
                }
                let mut error = part.own_error.take().unwrap_or_default();
                if attached.side == Side::Standby && sqlstate::is_recovery_conflict(code) {
                    let again = task.tries < self.shard.shared.settings.retry_attempts;
                    if self.so_far.is_some() && task.needs.only_reads() && again {
                        return Ok(Asked::Over(self.begin_elsewhere(task, attached, part, error)));
                    }
                    let why = self.bar_to_retry(task).unwrap_or(PARTLY_TOLD);
                    error = reply::with_hint(&error, &format!("pgsteer did not run it again: {why}."));
                }
                part.renew();
                if self.transaction.is_on_server() {
                    return self.refuse_in_transaction(task, attached, part, &error).await;
                }
                if code == sqlstate::QUERY_CANCELED {
                    self.shard.give_scratch(std::mem::take(&mut part.out));
                    self.shard.buffers.give_answer(part.answer);
                    self.keep_or_release(attached, task.now);
                    self.refuse(task, &outcome::cancelled()).await?;
                    return Ok(Asked::Over(Tried::Over));
                }
                // The unit will get the same error, in its place.
                Ok(Asked::Same(attached, part))
            }
            ended => {
                // Nothing of the unit itself was sent.
                sent.any = false;
                self.shard.give_scratch(std::mem::take(&mut part.out));
                self.after(task, attached, (part.answer, part.journal), ended, sent).await.map(Asked::Over)
            }
        }
    }

    /// A standby has cancelled the question in a transaction that has told nothing but tags: that is begun anew, and nothing is asked of
    /// this server any more.
    fn begin_elsewhere(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        mut part: Part,
        conflict: Vec<u8>,
    ) -> Tried {
        self.shard.give_scratch(std::mem::take(&mut part.out));
        self.shard.buffers.give_answer(part.answer);
        part.journal.undo(&mut self.names);
        task.excluded.push(attached.node);
        task.interrupted.conflict = Some(conflict);
        drop(attached);
        *self.control.runs_at.borrow_mut() = None;
        self.begin_anew();
        Tried::Again(RetryCause::Conflict)
    }

    /// Asks the server, in the middle of a batch, for the shape of the rows of what is bound next. What stands before that goes out in
    /// the same write: it is run whatever comes of the question, as on a server of the client's own.
    async fn ask_in_place(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        mut part: Part,
        draft: &Draft,
    ) -> Flow<Asked> {
        let question = (Rules::PassOn, Goal::Heard);
        let (mut ended, mut sent) = self.ask(task, &mut attached, &mut part, question).await;
        part.note(&sent);
        if matches!(ended, Ended::Settled) && !sent.failed {
            if !self.note_answers(&mut attached, &part, draft.since.journal) {
                task.window.consume(draft.written);
                task.bytes -= draft.written;
                return Ok(Asked::Same(attached, part));
            }
            // The server's batch has to fail, too; its error is kept back for this one.
            let mut error = Vec::new();
            reply::put_plan_changed(&mut error);
            part.answer.mute(&error);
            reply::put_statement_within(&mut part.out, PLAN_CHANGED);
            part.out.extend_from_slice(reply::FLUSH);
            part.answer.expect(Expect::Within);
            if let Some(server) = attached.lease.server() {
                server.carried.unnamed = None;
            }
            (ended, sent) = self.ask(task, &mut attached, &mut part, question).await;
        }
        self.shard.give_scratch(part.out);
        if !matches!(ended, Ended::Settled) {
            let over = self.after(task, attached, (part.answer, part.journal), ended, sent).await?;
            return Ok(Asked::Over(over));
        }
        // Its Sync is all that counts of the batch now.
        sent.failed = true;
        if task.kind == Kind::Synced {
            task.bytes -= reply::SYNC.len();
        }
        let beyond = std::mem::take(&mut task.beyond);
        self.settled(task, attached, part.answer, part.journal, sent);
        self.skip(task.window, beyond).await?;
        Ok(Asked::Over(Tried::Over))
    }

    /// Whether a statement that was asked of since then has rows that look otherwise than the client was told.
    fn note_answers(&mut self, attached: &mut Attached, part: &Part, since: Mark) -> bool {
        let Some(server) = attached.lease.server() else { return false };
        let shapes = part.answer.shapes();
        part.journal.note_shapes(shapes, &mut self.names, &mut server.carried);
        part.journal.has_other_shapes(since, shapes)
    }

    /// Refuses the unit as a server would that had prepared the statement before its rows changed.
    async fn refuse_changed(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        mut part: Part,
    ) -> Flow<Asked> {
        let mut error = Vec::new();
        reply::put_plan_changed(&mut error);
        if !self.transaction.is_on_server() {
            self.shard.give_scratch(std::mem::take(&mut part.out));
            self.shard.buffers.give_answer(part.answer);
            if matches!(self.transaction, Transaction::Deferred { .. }) {
                self.transaction = Transaction::LOST_AND_TOLD;
            }
            self.keep_or_release(attached, task.now);
            self.end_unit(task, error).await?;
            return Ok(Asked::Over(Tried::Over));
        }
        // The server's transaction has to fail, too.
        reply::put_query(&mut part.out, PLAN_CHANGED);
        part.answer.expect(Expect::Preamble);
        let (ended, sent) = self.ask(task, &mut attached, &mut part, (Rules::PassOn, Goal::Ready)).await;
        if let Ended::Complete(_) = ended {
            part.renew();
            return self.refuse_in_transaction(task, attached, part, &error).await;
        }
        self.shard.give_scratch(std::mem::take(&mut part.out));
        self.after(task, attached, (part.answer, part.journal), ended, sent).await.map(Asked::Over)
    }

    /// The server's transaction has failed by this error, which the client gets instead of its unit.
    async fn refuse_in_transaction(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        mut part: Part,
        error: &[u8],
    ) -> Flow<Asked> {
        self.shard.give_scratch(std::mem::take(&mut part.out));
        self.shard.buffers.give_answer(part.answer);
        self.transaction = Transaction::Failed;
        self.attached = Some(attached);
        self.end_unit(task, error.to_vec()).await?;
        Ok(Asked::Over(Tried::Over))
    }
}

/// Fails a transaction with the error that its client is told.
const PLAN_CHANGED: &str = "DO $pgsteer$BEGIN RAISE EXCEPTION USING ERRCODE = '0A000', \
     MESSAGE = 'cached plan must not change result type';END$pgsteer$";
