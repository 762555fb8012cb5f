//! The consequences of a try: what the session is now, who gets the server next, whether the unit runs again.
//!
//! Invariant: a unit goes out a second time only if nothing of it was sent, it was refused before it ran, or it is a known
//! read on a standby of which nothing has reached the client. A lost transaction is 40001 only when no COMMIT was sent. Must
//! not know: how nodes are judged.

use std::time::Instant;

use super::attempt::Sent;
use super::control::NextStatement;
use super::driver::{Attached, Batch, End, Flow, Session};
use super::exchange::{Ended, Leaving, Parting, Unsent};
use super::inspect::{self, Inspect};
use super::journal::Journal;
use super::outcome::{self, Loss};
use super::own_names::has_own_names;
use super::run::{RetryCause, Task, Tried};
use super::settings::Touched;
use super::shard::SuspectCause;
use super::transaction::Transaction;
use super::unit;
use super::unit::{Kind, Needs};
use crate::classify::{PinReason, Refusal};
use crate::relay::answer::Answer;
use crate::route::Need;
use crate::route::freshness::Commits;
use crate::telemetry::metrics::Side;
use crate::topology::model::NodeId;
use crate::wire::extended::{self, Named};
use crate::wire::reply::TransactionStatus;
use crate::wire::sqlstate;

/// Why a standby's conflict at the end of a transaction is told.
const MAY_HAVE_SET: &str = "its transaction may have changed settings of the session, which are rolled back";

impl Session {
    /// Draws the consequences of an exchange.
    pub(super) async fn after(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        (mut answer, mut journal): (Box<Answer>, Journal),
        ended: Ended,
        mut sent: Sent,
    ) -> Flow<Tried> {
        task.bytes = sent.unit_left;
        let now = task.now;
        match ended {
            Ended::Complete(status) => {
                self.unit_complete(task, attached, (answer, journal), sent, status).await?;
                Ok(Tried::Over)
            }
            Ended::Settled => {
                self.settled(task, attached, answer, journal, sent);
                Ok(Tried::Over)
            }
            Ended::Refused(code) => {
                self.not_begun(&mut attached, answer, &mut journal);
                self.after_refusal(task, attached, &mut journal, code).await
            }
            Ended::PlanChanged => {
                self.not_begun(&mut attached, answer, &mut journal);
                self.begin_anew();
                if let Some(server) = attached.lease.server() {
                    server.carried.unnamed = None;
                }
                self.keep_or_release(attached, now);
                self.prepare_anew(task);
                Ok(Tried::Again(RetryCause::PlanChanged))
            }
            ended @ (Ended::NotFit { .. } | Ended::NotBegun { .. }) => {
                self.unfit(task, attached, (answer, journal), &sent, ended).await
            }
            Ended::ServerLost { cause, parting } => {
                let unkept = answer.take_unkept();
                let nothing_awaited = task.bytes == 0 && !sent.fresh && answer.is_settled();
                self.shard.buffers.give_answer(answer);
                match &parting {
                    Parting::Announced => {
                        self.shard.suspect(attached.node, SuspectCause::ShutdownAnnounced);
                    }
                    Parting::Unexplained => self.shard.suspect(attached.node, SuspectCause::ConnectionLost),
                    Parting::Before => sent.any = false,
                    // That it can do so says that it is well.
                    Parting::Conflict(_) => {}
                }
                let (node, side, owed) = (attached.node, attached.side, attached.inspect);
                drop(attached);
                *self.control.runs_at.borrow_mut() = None;
                if side == Side::Standby {
                    task.excluded.push(node);
                }
                let conflict = parting.conflict();
                let loss = Loss { conflict, nothing_awaited, ..Loss::of_server(cause) };
                self.server_lost(task, (&mut journal, &unkept), loss, ((node, side), sent, owed)).await
            }
            Ended::Left { unsent, why } => {
                self.left(task, attached, (answer, journal), (unsent, why), sent).await
            }
            Ended::Dismissed => Err(End::Client),
            Ended::Cut => {
                let unsent = !sent.any && sent.fresh;
                Err(self.cut_short(&task.needs, attached.side, unsent, sent.inside_frame))
            }
            Ended::ClientGone => {
                if let Some(key) = self.control.runs_at.borrow_mut().take() {
                    self.shard.cancel_at(&key);
                }
                Err(End::Client)
            }
            Ended::Silent => {
                let between = sent.fresh && matches!(self.transaction, Transaction::None);
                Err(self.silent_for_too_long(between, sent.inside_frame))
            }
        }
    }

    /// A server would not run it, and has taken back what it had begun.
    async fn after_refusal(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        journal: &mut Journal,
        code: sqlstate::SqlState,
    ) -> Flow<Tried> {
        let (node, side) = (attached.node, attached.side);
        if self.transaction == Transaction::Open && attached.inspect == Inspect::Precaution {
            attached.inspect = self.owed_by_lost(attached.inspect, &task.needs).await;
            if attached.inspect == Inspect::All {
                // It was the end of its transaction, and has failed as such.
                self.transaction = Transaction::None;
                drop(attached);
                *self.control.runs_at.borrow_mut() = None;
                return self.pass_on_conflict(task, MAY_HAVE_SET).await.map(|_| Tried::Over);
            }
        }
        if self.has_only_read(side, attached.inspect)
            && let Some(out) = self.end_in_its_stead(task, journal)
        {
            self.keep_or_release(attached, task.now);
            self.end_unit(task, out).await?;
            return Ok(Tried::Over);
        }
        self.begin_anew();
        self.keep_or_release(attached, task.now);
        Ok(Tried::Again(self.refused(task, code, node, side)))
    }

    /// A standby's server was given up.
    async fn left(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        (mut answer, mut journal): (Box<Answer>, Journal),
        (unsent, why): (Unsent, Leaving),
        sent: Sent,
    ) -> Flow<Tried> {
        let unkept = answer.take_unkept();
        let nothing_awaited =
            task.bytes == 0 && !sent.fresh && answer.is_settled() && unsent.bytes.is_empty();
        self.shard.buffers.give_answer(answer);
        let (node, side, owed) = (attached.node, attached.side, attached.inspect);
        if side == Side::Standby && why == Leaving::NodeSilent {
            task.excluded.push(node);
        }
        // Replay is let go before the client is waited for.
        drop(attached);
        *self.control.runs_at.borrow_mut() = None;
        let loss = match why {
            Leaving::ReplayStands => Loss::left_for_replay(),
            Leaving::ClientStalled => self.stalled(node),
            Leaving::NodeSilent => {
                Loss::of_server("Nothing was heard of the standby for some seconds".to_owned())
            }
            Leaving::Overdue => Loss::overdue(),
        };
        let loss = Loss { nothing_awaited, ..loss };
        if sent.inside_frame {
            return Err(End::Client);
        }
        // It is to have what it was being told whenever it reads on.
        self.send_client(&unsent.bytes).await?;
        drop(unsent);
        let lost = self.server_lost(task, (&mut journal, &unkept), loss, ((node, side), sent, owed));
        Ok(match lost.await? {
            Tried::Again(RetryCause::ServerLost) if why == Leaving::ReplayStands => {
                Tried::Again(RetryCause::ReplayStands)
            }
            tried => tried,
        })
    }

    /// The unit has been answered to its end.
    async fn unit_complete(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        (mut answer, mut journal): (Box<Answer>, Journal),
        sent: Sent,
        status: TransactionStatus,
    ) -> Flow<()> {
        let now = task.now;
        attached.spoiled |= sent.server_ended || sent.forgetful;
        self.end_summons();
        self.completed(task, &mut attached, &mut answer, &mut journal);
        let rows = answer.shapes().last().and_then(|(_, shape)| shape.rows);
        self.shard.buffers.give_answer(answer);
        self.answered(&task.needs, &attached, now);
        let alone = matches!(self.transaction, Transaction::None);
        self.note_limit(task);
        self.note_transaction(task, attached.side, (&sent, status), rows);
        task.window.consume(task.bytes);
        self.own_commits.note(&task.needs, self.transaction.is_on_server());
        if !self.altered_databases.is_empty() {
            self.settle_databases();
        }
        if self.altered_roles.is_some() {
            // The client knows by now: others must, before anything else is waited for.
            self.settle_roles();
        }
        let between = !self.transaction.is_on_server();
        if between && !task.needs.repeatable && attached.side == Side::Primary {
            self.group.hidden.note_write(now);
        }
        if !between {
            self.control.sought.set(false);
        }
        if between {
            self.pins.retain(|pin| !pin.ends_with_transaction());
            self.names.drop_portals();
            self.definition = None;
        }
        // Only of a Query that is one statement its success tells what it did; a Parse may never be executed, and what is
        // executed may be rolled back in the same batch.
        let told = sent.fresh && task.kind == Kind::Simple && task.needs.statements == 1;
        if !told {
            self.touched.ask();
        }
        let is_known = self.touched == Touched::Nothing && attached.inspect == Inspect::Nothing;
        if between && (!is_known || has_own_names(&mut attached)) {
            let next =
                if task.window.filled().is_empty() { NextStatement::Unread } else { NextStatement::Read };
            self.learn_state(&mut attached, alone && told && sent.failed, next).await?;
        }
        self.keep_or_release(attached, now);
        Ok(())
    }

    /// Asks the server what became of the session, if need be. The client has its answer: a cancel that comes now is not for what
    /// pgsteer asks.
    async fn learn_state(&mut self, attached: &mut Attached, failed: bool, next: NextStatement) -> Flow<()> {
        self.control.asking.set(Some(next));
        if self.touched != Touched::Nothing || attached.inspect != Inspect::Nothing {
            self.take_stock(attached, failed).await?;
        }
        if has_own_names(attached) {
            self.leave_own_names(attached).await?;
        }
        self.control.asking.set(None);
        Ok(())
    }

    /// A client does not take a standby's answer, and that is given up.
    fn stalled(&self, node: NodeId) -> Loss {
        self.shard.counters.standby_stalls.inc();
        tracing::debug!(
            node = node.0,
            client = self.control.process_id.get(),
            "a standby is not waited for, since the client does not take its answer"
        );
        Loss::client_stalled(self.shard.shared.settings.standby_stall_timeout)
    }

    /// The unit was refused before it began: takes back what it was to do.
    fn not_begun(&mut self, attached: &mut Attached, mut answer: Box<Answer>, journal: &mut Journal) {
        let failed = answer.take_unkept().tokens;
        if let Some(server) = attached.lease.server() {
            journal.correct(&failed, &mut server.carried);
        }
        attached.spoiled |= answer.last_status() != Some(TransactionStatus::Idle);
        self.shard.buffers.give_answer(answer);
        journal.undo(&mut self.names);
    }

    /// Wherever the statements that a unit binds are prepared, it was before their rows changed.
    fn prepare_anew(&self, task: &Task<'_>) {
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        for (kind, body) in unit::frames(unit) {
            let name = match kind {
                b'B' => extended::bind(body).map(|bind| bind.statement),
                b'D' => extended::named(body).and_then(|named| match named {
                    Named::Statement(name) => Some(name),
                    Named::Portal(_) => None,
                }),
                _ => None,
            };
            if let Some(statement) = name.and_then(|name| self.names.named(name)) {
                statement.generation.set(statement.generation.get().wrapping_add(1));
            }
        }
    }

    /// A part of a batch is out, and answered as far as it will be now.
    pub(super) fn settled(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        answer: Box<Answer>,
        journal: Journal,
        sent: Sent,
    ) {
        task.window.consume(task.bytes);
        self.note_limit(task);
        if matches!(self.transaction, Transaction::Deferred { .. }) {
            self.transaction = Transaction::Open;
        }
        self.so_far = None;
        self.note_state(task, &mut attached);
        self.commit_bound |= task.needs.commits || task.needs.rolls_back;
        self.own_commits.note(&task.needs, true);
        let Needs { commits, rolls_back, repeatable, .. } = task.needs;
        attached.batch = Some(Box::new(Batch {
            answer,
            journal,
            commits,
            rolls_back,
            repeatable,
            failed: sent.failed,
            copies_ended: sent.copies_ended,
        }));
        self.attached = Some(attached);
    }

    fn completed(
        &mut self,
        task: &Task<'_>,
        attached: &mut Attached,
        answer: &mut Answer,
        journal: &mut Journal,
    ) {
        let unkept = answer.take_unkept();
        attached.spoiled |= answer.preamble_error().is_some();
        self.commit_bound |= task.needs.commits || task.needs.rolls_back;
        let deallocated = answer.take_deallocated();
        let made = deallocated.map(|from| journal.made_since(from, &unkept));
        if let Some(server) = attached.lease.server() {
            journal.note_shapes(answer.shapes(), &mut self.names, &mut server.carried);
            journal.settle(&unkept, &mut self.names, &mut server.carried);
            if let Some(made) = made {
                made.is_all(&mut self.names, &mut server.carried);
                attached.spoiled |= made.unknown;
            }
        }
        self.note_state(task, attached);
    }

    /// What the unit may have left in its session: a pin, or a question to the server at the end of the transaction.
    fn note_state(&mut self, task: &Task<'_>, attached: &mut Attached) {
        if attached.side == Side::Primary {
            self.note_write(&task.needs, attached);
        }
        let Needs { pin, unseen, may_unpin, .. } = task.needs;
        attached.may_unpin |= may_unpin;
        let hidden = self.hidden_effects(&task.needs, task.now);
        let may_end = may_unpin && self.pins.iter().any(|pin| inspect::is_asked(*pin));
        let question = match pin {
            _ if unseen => Inspect::All,
            Some(pin) if hidden != Inspect::Nothing && inspect::is_asked(pin) => Inspect::All,
            _ if hidden != Inspect::Nothing => hidden,
            Some(pin) if inspect::is_asked(pin) => Inspect::Pins,
            _ if may_end => Inspect::Pins,
            _ => Inspect::Nothing,
        };
        attached.inspect = attached.inspect.max(question);
        if let Some(pin) = pin
            && !inspect::is_asked(pin)
            && (pin != PinReason::BackendPid || attached.side == Side::Primary)
        {
            self.add_pin(pin);
        }
        self.keep_server();
    }

    fn answered(&mut self, needs: &Needs, attached: &Attached, now: Instant) {
        match attached.side {
            Side::Primary => {
                let commits = self.commits(needs, now);
                self.freshness.on_primary_answer(now, commits);
            }
            Side::Standby => {
                self.freshness.on_standby_answer(attached.node, now);
                let snapshot = self.shard.snapshot.borrow();
                let staleness = snapshot.node(attached.node).and_then(|view| snapshot.staleness(view, now));
                if let Some(staleness) = staleness {
                    self.shard.counters.staleness_served.record(staleness);
                }
            }
        }
    }

    /// How anybody may have committed what is seen on the primary.
    pub(super) fn others_commit(&self, now: Instant) -> Commits {
        if self.group.hidden.has_unflushed(now) { Commits::Asynchronous } else { Commits::Synchronous }
    }

    /// How what the primary has just answered is committed, as far as it is known.
    pub(super) fn commits(&self, needs: &Needs, now: Instant) -> Commits {
        let by_default = self.primary_commits_asynchronously();
        self.own_commits.of_answer(needs, &self.group.hidden, by_default, now)
    }

    /// Whether the primary commits asynchronously by its own configuration: as its last probe says, which follows a reload, or as
    /// sessions see it.
    pub(super) fn primary_commits_asynchronously(&self) -> Option<bool> {
        let snapshot = self.shard.snapshot.borrow();
        if snapshot.primary.is_some_and(|primary| primary.commits_asynchronously) {
            return Some(true);
        }
        self.group.hidden.primary_commits_asynchronously(snapshot.epoch)
    }

    /// Keeps the server while the transaction or a pin needs it, else gives it back fit for anybody, else closes it.
    pub(super) fn keep_or_release(&mut self, mut attached: Attached, now: Instant) {
        let stays = self.transaction.is_on_server() || !self.pins.is_empty();
        if !self.transaction.is_on_server() || !self.pins.is_empty() {
            // Who stays for other reasons does not take a place from reads.
            (attached._on_primary, attached._place) = (None, None);
        }
        let is_fit = attached.side == Side::Primary && !attached.spoiled;
        if stays || (is_fit && self.is_to_be_signalled(now)) {
            self.attached = Some(attached);
            return;
        }
        *self.control.runs_at.borrow_mut() = None;
        self.commit_bound = false;
        if attached.spoiled || self.control.cancel_sent.get() || has_own_names(&mut attached) {
            // A cancel may still be on its way to that server process: nobody else must be hit by it.
            drop(attached);
        } else {
            let unlisted = attached.unlisted;
            if let Some(server) = attached.lease.server().filter(|_| unlisted) {
                server.left_by = Some(self.key());
            }
            attached.lease.release(now);
        }
    }

    /// The server would not run what was put before the unit, of which therefore nothing has run.
    async fn unfit(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        (answer, mut journal): (Box<Answer>, Journal),
        sent: &Sent,
        ended: Ended,
    ) -> Flow<Tried> {
        // Behind BEGIN comes what had run before.
        let begun = sent.fresh && self.transaction.has_run() && answer.has_begun();
        self.shard.buffers.give_answer(answer);
        journal.undo(&mut self.names);
        task.beyond = sent.beyond;
        match ended {
            Ended::NotFit { code, message } if begun => {
                self.not_begun_anew(task, attached, code, &message).await
            }
            Ended::NotFit { code, message } => self.not_fit(task, attached, sent, code, &message).await,
            Ended::NotBegun { code, error } => self.never_begun(task, attached, sent, (code, error)).await,
            _ => Ok(Tried::Over),
        }
    }

    /// The server can't be brought to the session's settings. What is missing on a standby (a role, an extension) may only not
    /// have arrived there.
    async fn not_fit(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        sent: &Sent,
        code: sqlstate::SqlState,
        message: &str,
    ) -> Flow<Tried> {
        let (node, side) = (attached.node, attached.side);
        drop(attached);
        *self.control.runs_at.borrow_mut() = None;
        let whole = task.bytes > 0 && sent.fresh && task.beyond == 0;
        if code == sqlstate::INSUFFICIENT_PRIVILEGE {
            self.settings_order = self.settings_order.other();
        }
        let elsewhere = !self.is_for_standbys() || task.tries < self.shard.shared.settings.retry_attempts;
        if side == Side::Standby && whole && elsewhere && code != sqlstate::QUERY_CANCELED {
            task.excluded.push(node);
            return Ok(Tried::Again(RetryCause::Refused));
        }
        if whole && task.tries == 0 && code != sqlstate::QUERY_CANCELED {
            // What another session did on that connection may be why (temp_buffers behind temporary tables).
            return Ok(Tried::Again(RetryCause::Unsent));
        }
        let report = if code == sqlstate::QUERY_CANCELED {
            outcome::cancelled()
        } else {
            outcome::settings_refused(message)
        };
        self.refuse(task, &report).await?;
        Ok(Tried::Over)
    }

    /// A server would not begin the transaction of which the client believes that it has begun: the unit must not run without it.
    async fn never_begun(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        sent: &Sent,
        (code, error): (sqlstate::SqlState, Vec<u8>),
    ) -> Flow<Tried> {
        let (node, side) = (attached.node, attached.side);
        drop(attached);
        *self.control.runs_at.borrow_mut() = None;
        // What was sent before the rest of a batch is not here any more.
        let whole = task.bytes > 0 && sent.fresh && task.beyond == 0;
        let again = whole && task.tries < self.shard.shared.settings.retry_attempts;
        if side == Side::Standby && again && sqlstate::is_recovery_conflict(code) {
            task.excluded.push(node);
            task.interrupted.conflict = Some(error);
            return Ok(Tried::Again(RetryCause::Conflict));
        }
        self.shard.counters.error(code.as_str());
        self.transaction = Transaction::LOST_AND_TOLD;
        self.end_unit(task, error).await?;
        Ok(Tried::Over)
    }

    fn refused(
        &mut self,
        task: &mut Task<'_>,
        code: sqlstate::SqlState,
        node: NodeId,
        side: Side,
    ) -> RetryCause {
        if side == Side::Primary {
            self.shard.suspect(node, SuspectCause::ReadOnly);
            return RetryCause::NotPrimary;
        }
        if matches!(code, sqlstate::SERIALIZATION_FAILURE | sqlstate::DEADLOCK_DETECTED) {
            task.excluded.push(node);
            return RetryCause::Conflict;
        }
        // What the standby refused may write, whatever its text looks like.
        task.needs.need = Need::Primary;
        task.needs.repeatable = false;
        let refusal = match code {
            sqlstate::READ_ONLY_SQL_TRANSACTION => Refusal::Writes,
            sqlstate::FEATURE_NOT_SUPPORTED if task.needs.search => Refusal::Search,
            // It may only not have arrived there yet.
            code if &code.class() == b"42" => Refusal::Missing,
            _ => Refusal::Recovery,
        };
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        self.learn(unit, refusal, task.now);
        RetryCause::Refused
    }

    /// The attached server is gone while nothing was under way; `why` it is suspected then, if it is.
    pub(super) fn detach_lost(&mut self, why: Option<SuspectCause>) {
        if let (Some(attached), Some(why)) = (self.attached.take(), why)
            && !self.control.leaves.get()
        {
            self.shard.suspect(attached.node, why);
        }
        *self.control.runs_at.borrow_mut() = None;
    }
}
