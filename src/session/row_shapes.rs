//! Whether the rows of a prepared statement still look as its client was told when the statement was described.
//!
//! A client that has described a statement reads its rows by that description ever after. A server of its own would refuse to
//! give others (`cached plan must not change result type`); a server that prepares the text anew would not. So it is asked
//! wherever a statement was prepared without the client: in the write of the unit where nothing can come of it but an error,
//! else in a round trip of its own, once for each server connection.
//!
//! Invariant: a client gets no rows of another shape than it was told, unless the unit itself asks for their shape. Must not
//! know: what the shapes are.

use super::attempt::Part;
use super::driver::{Attached, Flow, Session};
use super::exchange::{Ended, Goal, Rules};
use super::outcome;
use super::run::{Task, Tried};
use super::transaction::Transaction;
use super::translate::{Doubt, Shapes};
use super::unit::Kind;
use crate::relay::answer::Expect;
use crate::wire::{reply, sqlstate};

/// What a server said when it was asked.
pub(super) enum Asked {
    /// All is as the clients were told, or will be refused by the server itself: the unit may go out.
    Same(Attached, Part),
    /// The unit is done with, or to be run again.
    Over(Tried),
}

impl Session {
    /// What is to be done about shapes that are not known on the attached server.
    pub(super) fn row_shapes(&self, task: &Task<'_>, part: &Part, rules: Rules) -> Shapes {
        if !part.is_first() || matches!(self.transaction, Transaction::Failed) {
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

    /// Asks the server for the shapes in doubt, before anything of the unit is sent.
    pub(super) async fn ask_shapes(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        mut part: Part,
        doubts: &[Doubt],
    ) -> Flow<Asked> {
        self.put_questions(&mut attached, &mut part, doubts);
        part.out.extend_from_slice(reply::SYNC);
        part.answer.expect(Expect::OwnSync);
        let (ended, mut sent) = self.exchange(task, &mut attached, &mut part, Rules::Own, Goal::Ready).await;
        match ended {
            Ended::Complete(_) => {
                let changed = self.note_answers(&mut attached, &mut part, doubts);
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
                let error = part.own_error.take().unwrap_or_default();
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

    /// Whether a statement's rows look otherwise than the client was told.
    fn note_answers(&mut self, attached: &mut Attached, part: &mut Part, doubts: &[Doubt]) -> bool {
        let Some(server) = attached.lease.server() else { return false };
        part.journal.note_shapes(part.answer.shapes(), &mut self.names, &mut server.carried);
        // Each doubt was one question, in order.
        let answers = part.answer.shapes();
        doubts.iter().zip(answers).any(|(doubt, (_, shape))| match doubt {
            Doubt::Named(_, _, told) | Doubt::Unnamed(told) => told != shape,
        })
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
                self.transaction = Transaction::Lost { told: true };
            }
            self.keep_or_release(attached, task.now);
            self.end_unit(task, error).await?;
            return Ok(Asked::Over(Tried::Over));
        }
        // The server's transaction has to fail, too.
        reply::put_query(&mut part.out, PLAN_CHANGED);
        part.answer.expect(Expect::Preamble);
        let (ended, sent) = self.exchange(task, &mut attached, &mut part, Rules::PassOn, Goal::Ready).await;
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
