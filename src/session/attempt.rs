//! One try of a unit on the server that is attached: written as that server is to see it, and exchanged.
//!
//! Invariant: what is held back of the answer is what a further try would need. Must not know: whether there will be one.

use std::cell::Cell;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::driver::{Attached, Flow, Session};
use super::exchange::{Ended, Exchange, Goal, OVERDUE_AFTER, Parting, Rules, Standby, Through};
use super::inspect::Inspect;
use super::journal::Journal;
use super::row_shapes::{Asked, Draft};
use super::run::{RetryCause, Task, Tried};
use super::transaction::Transaction;
use super::translate::Mark;
use super::unit::{Kind, Needs};
use crate::backend::connection::CancelKey;
use crate::backend::{Reported, Server};
use crate::relay::answer::Answer;
use crate::route::Mode;
use crate::telemetry::metrics::Side;
use crate::wire::sqlstate::SqlState;

/// A server takes a cancel request at once, unless it hangs.
const CANCEL_TAKEN_WITHIN: Duration = Duration::from_secs(1);
/// Why a read that could be run again is not.
pub(super) const PARTLY_TOLD: &str = "a part of its answer had been passed on";

/// Whether the open transaction may have set `statement_timeout` for itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum LimitSet {
    /// It has not.
    #[default]
    No,
    /// It has not by its texts; what its reads lead to was not known.
    Unseen,
    /// It may have.
    Yes,
}

/// What the client has of an answer that ReadyForQuery is missing from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// Nothing that would say how it ends.
    Nothing,
    /// The end of a statement, and nothing behind it.
    Completed,
    /// An error.
    Failed,
}

/// What had happened when an exchange ended.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each asked for on its own")]
pub(super) struct Sent {
    /// Anything had been sent to the server.
    pub(super) any: bool,
    /// Anything had reached the client.
    pub(super) delivered: bool,
    /// What the client was told last.
    pub(super) told: Told,
    /// The client has the beginning of a frame whose end will not come.
    pub(super) inside_frame: bool,
    /// Bytes of the unit that are still in the window: all or nothing of it.
    pub(super) unit_left: usize,
    /// COPY data was being taken from the client.
    pub(super) copying: bool,
    /// Bytes of a large frame that the client has not sent yet.
    pub(super) beyond: usize,
    /// The exchange began with this unit, not in the middle of a batch.
    pub(super) fresh: bool,
    /// An error was passed on.
    pub(super) failed: bool,
    /// The first error that was passed on, or that by which the server has ended the connection.
    pub(super) code: Option<SqlState>,
    /// The server said goodbye behind its answer.
    pub(super) server_ended: bool,
    /// See `Exchange::forgetful`.
    pub(super) forgetful: bool,
    /// See `Exchange::copies_ended`.
    pub(super) copies_ended: isize,
}

/// A part of a batch on its way: what is written for the server, what its answer is to be, what can be undone.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about what was sent before")]
pub(super) struct Part {
    /// It is the first.
    pub(super) fresh: bool,
    /// An error was passed on in an earlier one.
    failed: bool,
    /// A ROLLBACK was sent in an earlier one.
    rolled_back: bool,
    copies_ended: isize,
    /// Its unit is a RESET to what the server has not seen: the settings of the startup packet.
    pub(super) is_reset: bool,
    pub(super) answer: Box<Answer>,
    pub(super) journal: Journal,
    pub(super) out: Vec<u8>,
    /// The error that pgsteer's own question got.
    pub(super) own_error: Option<Vec<u8>>,
}

impl Part {
    /// Whether nothing of its batch was sent before.
    pub(super) fn is_first(&self) -> bool {
        self.fresh
    }

    /// Whether a question can be put in: no COPY waits for its data, and no failed block for its end.
    pub(super) fn may_be_asked(&self, transaction: &Transaction) -> bool {
        self.copies_ended >= 0 && (self.rolled_back || !matches!(transaction, Transaction::Failed))
    }

    /// How far it is written.
    pub(super) fn mark(&self) -> Mark {
        Mark::new(&self.out, &self.answer, &self.journal)
    }

    /// So much has become of it.
    pub(super) fn note(&mut self, sent: &Sent) {
        self.failed |= sent.failed;
        self.copies_ended = sent.copies_ended;
    }

    /// As it was before anything of its unit was written.
    pub(super) fn renew(&mut self) {
        self.answer.clear();
        self.journal = Journal::default();
        self.out.clear();
    }
}

impl Sent {
    /// Of a try in which nothing could be sent.
    pub(super) fn nothing(task: &Task<'_>) -> Self {
        Self {
            any: false,
            delivered: false,
            told: Told::Nothing,
            inside_frame: false,
            unit_left: task.bytes,
            copying: false,
            beyond: task.beyond,
            fresh: true,
            failed: false,
            code: None,
            server_ended: false,
            forgetful: false,
            copies_ended: 0,
        }
    }

    fn of(exchange: &Exchange<'_>, fresh: bool) -> Self {
        let told = match exchange.failed {
            _ if !exchange.delivered || exchange.answer.ready_bytes() > 0 => Told::Nothing,
            Some(_) => Told::Failed,
            None if exchange.answer.is_completed() => Told::Completed,
            None => Told::Nothing,
        };
        Self {
            any: exchange.any_sent,
            delivered: exchange.delivered,
            told,
            inside_frame: exchange.delivered
                && (exchange.answer.inside_frame() || exchange.answer.ready_bytes() > 0),
            unit_left: exchange.reserved,
            copying: matches!(exchange.through, Through::Copy { .. }),
            beyond: if let Through::Frame { left } = exchange.through { left } else { 0 },
            fresh,
            failed: exchange.failed.is_some(),
            code: exchange.ended_by.or(exchange.failed),
            server_ended: exchange.server_ended,
            forgetful: exchange.forgetful,
            copies_ended: exchange.copies_ended,
        }
    }
}

impl Session {
    /// The unit would leave state on a standby, and can't be refused by the server itself (see `translate`).
    pub(super) fn must_not_pin_here(&self, task: &Task<'_>) -> bool {
        task.pin_elsewhere().is_some()
            && !self.is_for_standbys()
            && matches!(task.kind, Kind::Flushed | Kind::Partial)
            && self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby)
    }

    /// One try of the task on the attached server.
    pub(super) async fn try_once(&mut self, task: &mut Task<'_>) -> Flow<Tried> {
        let Some(mut attached) = self.attached.take() else { return Ok(Tried::Again(RetryCause::Unsent)) };
        if self.needs_own_names(task, &mut attached) {
            attached = match self.give_own_names(task, attached).await? {
                Ok(attached) => attached,
                Err(tried) => return Ok(tried),
            };
        }
        let mut part = self.part(task, &mut attached);
        let rules = if part.fresh { self.rules(task, &mut attached) } else { Rules::PassOn };
        if part.fresh && !self.transaction.is_on_server() {
            self.put_settings(task, &mut attached, &mut part);
        }
        let shapes = self.row_shapes(task, &part, rules);
        let since = part.mark();
        let mut doubts = Vec::new();
        let written = self.translate(task, &mut attached, &mut part, shapes, &mut doubts);
        if !doubts.is_empty() {
            let draft = Draft { shapes, since, written, doubts };
            (attached, part) = match self.settle_doubts(task, attached, part, draft).await? {
                Asked::Same(attached, part) => (attached, part),
                Asked::Over(tried) => return Ok(tried),
            };
        }
        let goal = match task.kind {
            Kind::Simple | Kind::Synced => Goal::Ready,
            Kind::Flushed => Goal::Settled,
            Kind::Partial if part.out.is_empty() => Goal::Drained,
            Kind::Partial => Goal::Sent,
        };
        let began = task.now;
        let (ended, sent) = self.exchange(task, &mut attached, &mut part, rules, goal).await;
        self.note_interruption(task, &attached, began, (&ended, &sent));
        self.shard.give_scratch(part.out);
        if part.own_error.is_some() {
            task.interrupted.conflict = part.own_error.take();
        }
        self.after(task, attached, (part.answer, part.journal), ended, sent).await
    }

    /// Begins a part of a batch, or goes on with one.
    fn part(&self, task: &mut Task<'_>, attached: &mut Attached) -> Part {
        let out = self.shard.take_scratch();
        let Some(batch) = attached.batch.take() else {
            let answer = self.shard.buffers.take_answer();
            return Part {
                fresh: true,
                failed: false,
                rolled_back: false,
                copies_ended: 0,
                is_reset: false,
                answer,
                journal: Journal::default(),
                out,
                own_error: None,
            };
        };
        // What was sent of the batch before counts when it is lost now.
        task.needs.commits |= batch.commits || (batch.rolls_back && task.needs.statements > 0);
        task.needs.rolls_back |= batch.rolls_back;
        task.needs.repeatable &= batch.repeatable;
        Part {
            fresh: false,
            failed: batch.failed,
            rolled_back: batch.rolls_back,
            copies_ended: batch.copies_ended,
            is_reset: false,
            answer: batch.answer,
            journal: batch.journal,
            out,
            own_error: None,
        }
    }

    /// Sends what is written and takes the answer.
    pub(super) async fn exchange(
        &mut self,
        task: &mut Task<'_>,
        attached: &mut Attached,
        part: &mut Part,
        rules: Rules,
        goal: Goal,
    ) -> (Ended, Sent) {
        let (node, side) = (attached.node, attached.side);
        let tells_recovery = self.mode == Mode::PreferStandby;
        if tells_recovery {
            part.answer.announce_ready();
        }
        let Some(server) = attached.lease.server() else {
            let cause = "The connection was taken away".to_owned();
            return (Ended::ServerLost { cause, parting: Parting::Unexplained }, Sent::nothing(task));
        };
        let key = Rc::clone(&server.cancel_key);
        if side == Side::Primary && !task.needs.repeatable {
            self.works_on(server);
        }
        part.answer.comes_from(self.own_process(&key));
        let link = Rc::clone(&server.link);
        let known_by_process = self.is_known_by_process();
        let client = Rc::clone(&self.client);
        let out_bytes = part.out.len() as u64;
        let began = task.now;
        if side == Side::Standby {
            task.sent_at = Instant::now();
        }
        self.shard.begin_load(node);
        let in_time = self.end_in_time(task, &key);
        let overdue_at = self.overdue_at(task, (side, part.fresh), rules);
        let not_run_again = self.bar_to_retry(task).unwrap_or(PARTLY_TOLD);
        let mut exchange = Exchange::new(
            (&client, &link.stream),
            task.window,
            &mut part.out,
            &mut part.answer,
            (&mut server.in_hot_standby, &mut server.reported),
            &self.told,
        );
        exchange.reserved = task.bytes;
        exchange.tells_recovery = tells_recovery;
        exchange.resets_to = part.is_reset.then_some(&self.welcome);
        exchange.rules = rules;
        exchange.copies_ended = part.copies_ended;
        exchange.extended = task.kind == Kind::Synced;
        exchange.goal = goal;
        exchange.may_end_itself = task.needs.signals || known_by_process;
        exchange.through = Through::rest_of_frame(task.beyond);
        let replay_stands_since =
            || self.shard.snapshot.borrow().node(node).and_then(|view| view.replay_stands_since);
        exchange.standby =
            (side == Side::Standby).then(|| self.standby(&task.needs, &replay_stands_since, not_run_again));
        // A part of a message may have been passed on in an earlier part of the batch.
        exchange.delivered = !part.fresh && exchange.answer.inside_frame();
        let keeps_limit = || self.group.hidden.known().is_some_and(|found| !found.reads_change);
        self.bound(&mut exchange, (side, part.fresh), (overdue_at, &keeps_limit));
        let begun = || self.shard.cancel_after_begin(&self.control);
        if matches!(self.transaction, Transaction::Deferred { .. }) {
            self.control.begin_pending.set(true);
            exchange.on_begun = Some(&begun);
        }
        let forget = || self.forget_altered();
        exchange.before_telling = self.alters_others().then_some(&forget);
        let ended = exchange.run().await;
        self.control.begin_pending.set(false);
        if let Some(in_time) = in_time {
            in_time.over(&ended).await;
        }
        let mut sent = Sent::of(&exchange, part.fresh);
        sent.failed |= part.failed;
        part.own_error = exchange.own_error.take();
        let news = exchange.news.take();
        self.shard.counters.server_to_client_bytes.add(exchange.passed_bytes);
        // A connection that somebody else holds too can't be handed to another shard.
        drop(link);
        task.now = Instant::now();
        self.shard.end_load(node, began, task.now);
        self.shard.counters.client_to_server_bytes.add(out_bytes);
        if sent.delivered || matches!(ended, Ended::Complete(_) | Ended::Settled) {
            self.note_told(news);
        }
        (ended, sent)
    }

    /// The client has been told of these parameters.
    fn note_told(&mut self, news: Option<Reported>) {
        if let Some(news) = news {
            self.told = self.shard.intern_told(news);
        }
    }

    /// What is different where the server is a standby.
    fn standby<'a>(
        &'a self,
        needs: &Needs,
        replay_stands_since: &'a dyn Fn() -> Option<Instant>,
        not_run_again: &'static str,
    ) -> Standby<'a> {
        let settings = &self.shard.shared.settings;
        Standby {
            hold_back_bytes: self.terms(needs).retry_buffer_bytes as usize,
            hold_back_time: settings.retry_hold_time,
            stall_timeout: settings.standby_stall_timeout,
            stall_buffer_bytes: settings.standby_stall_buffer_bytes,
            allowance: &self.shard.shared.answer_bytes,
            replay_stands_since,
            not_run_again,
        }
    }

    /// What ends an exchange before its end.
    fn bound<'a>(
        &'a self,
        exchange: &mut Exchange<'a>,
        (side, fresh): (Side, bool),
        (overdue_at, keeps_limit): (Option<Instant>, &'a dyn Fn() -> bool),
    ) {
        exchange.silence_limit = self.silence_limit(fresh && matches!(self.transaction, Transaction::None));
        exchange.cut = Some(&self.control.cut);
        exchange.sought = Some(&self.control.sought);
        if side == Side::Standby {
            exchange.leaves = Some(&self.control.leaves);
            exchange.is_silent = Some(&self.control.is_silent);
            exchange.overdue_at = overdue_at;
            let is_doubtful = self.transaction.is_on_server() && self.limit_set == LimitSet::Unseen;
            exchange.keeps_limit = is_doubtful.then_some(keeps_limit);
        }
    }

    /// When a standby should have ended a unit by itself, if the time that it has for it is known.
    fn overdue_at(&self, task: &Task<'_>, (side, fresh): (Side, bool), rules: Rules) -> Option<Instant> {
        let limit = self.time_limit(task).filter(|_| side == Side::Standby)?;
        // What was sent before the rest of a batch may still run, with a limit for each of its statements.
        let is_known = fresh && (rules.hold_back() || self.knows_limit(task, fresh));
        is_known.then(|| task.sent_at + limit + OVERDUE_AFTER)
    }

    /// Whether a server has the session's own `statement_timeout` for all of a unit, and runs nothing else meanwhile.
    fn knows_limit(&self, task: &Task<'_>, fresh: bool) -> bool {
        let whole = matches!(task.kind, Kind::Simple | Kind::Synced) && fresh && task.beyond == 0;
        // One statement has its limit from what was set before it.
        let keeps = task.needs.statements <= 1 || task.needs.keeps_limit();
        let is_set = self.transaction.is_on_server() && self.limit_set == LimitSet::Yes;
        whole && keeps && self.pins.is_empty() && !is_set
    }

    /// A unit was answered, or a part of a batch: whether what its transaction has run may have set `statement_timeout`. To be called
    /// before it is noted where the transaction stands behind it.
    pub(super) fn note_limit(&mut self, task: &Task<'_>) {
        let hidden = match self.hidden_effects(&task.needs, task.now) {
            Inspect::Nothing => LimitSet::No,
            _ => match self.group.hidden.known() {
                None => LimitSet::Unseen,
                Some(found) if found.reads_change => LimitSet::Yes,
                Some(_) => LimitSet::No,
            },
        };
        let shown = if task.needs.keeps_limit() { LimitSet::No } else { LimitSet::Yes };
        let before = if self.transaction.is_on_server() { self.limit_set } else { LimitSet::No };
        self.limit_set = before.max(hidden).max(shown);
    }

    /// Whoever is notified by this server process is told that this session did it.
    fn works_on(&self, server: &mut Server) {
        let process_id = server.cancel_key.process_id;
        let sender = server.sender.get_or_insert_with(|| self.shard.sender(process_id));
        sender.works_for(if self.has_asked_for_process() { 0 } else { self.control.process_id.get() });
    }

    fn rules(&self, task: &Task<'_>, attached: &mut Attached) -> Rules {
        let alone = matches!(self.transaction, Transaction::None) && self.pins.is_empty();
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced) && task.beyond == 0;
        let again = task.tries < self.shard.shared.settings.retry_attempts;
        if self.bar_to_retry(task).is_none() {
            match attached.side {
                Side::Standby if self.is_for_standbys() || !alone => return Rules::ReadForStandbys,
                Side::Standby => return Rules::ReadOnStandby,
                Side::Primary if alone => return Rules::Alone,
                Side::Primary => {}
            }
        }
        if self.has_only_read(attached.side, attached.inspect) && self.only_ends(task) {
            // A standby may cancel that, too, and it needs none.
            return Rules::ReadForStandbys;
        }
        let first = alone || matches!(self.transaction, Transaction::Deferred { .. });
        let doubtful = attached.side == Side::Primary
            && attached.lease.server().is_some_and(|server| server.in_hot_standby);
        // Of one statement, a 25006 undoes all; of several, or of code that can't be seen, a part may be committed by then.
        let single = task.needs.statements <= 1 && !task.needs.unseen && !task.needs.commits;
        if first && ends && doubtful && single {
            Rules::FirstOnDoubtful
        } else if alone && ends && again {
            Rules::Alone
        } else {
            Rules::PassOn
        }
    }

    /// Why a unit that a standby cancels, or is lost with it, would not be run again even if nothing of its answer had been passed on.
    pub(super) fn bar_to_retry(&self, task: &Task<'_>) -> Option<&'static str> {
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced) && task.beyond == 0;
        if task.tries >= self.shard.shared.settings.retry_attempts {
            Some(match task.interrupted.without_place {
                false => "retry.attempts are used up",
                true => {
                    "retry.attempts are used up, and the primary had no place for it (retry.primary_budget)"
                }
            })
        } else if !self.has_told_nothing() {
            Some("the answers to earlier statements of its transaction had been passed on")
        } else if !self.pins.is_empty() {
            Some("its session is kept on its server")
        } else if !ends {
            Some("it is a part of a batch that goes on")
        } else if !task.needs.only_reads() {
            Some("it is not known to be a read")
        } else {
            None
        }
    }

    /// How long a task may run by the session's `statement_timeout`, which is for each statement (`start_xact_command`, postgres.c).
    pub(super) fn time_limit(&self, task: &Task<'_>) -> Option<Duration> {
        let statements = u32::try_from(task.needs.statements).unwrap_or(u32::MAX);
        self.statement_limit.map(|limit| limit.saturating_mul(statements.max(1)))
    }

    /// A statement that runs again has what is left of its `statement_timeout`: cancels it there when that is over.
    fn end_in_time(&self, task: &Task<'_>, key: &Rc<CancelKey>) -> Option<EndInTime> {
        let limit = self.time_limit(task).filter(|_| task.tries > 0)?;
        let until = tokio::time::Instant::from_std(task.began) + limit;
        let (shard, control, key) = (Rc::clone(&self.shard), Rc::clone(&self.control), Rc::clone(key));
        let is_over = Rc::new(Cell::new(false));
        let fired = Rc::clone(&is_over);
        let task = tokio::task::spawn_local(async move {
            tokio::time::sleep_until(until).await;
            fired.set(true);
            control.cancel_sent.set(true);
            // Taken or not, there is nothing more to be done.
            let _ = shard.cancel_and_tell(&key).await;
        });
        Some(EndInTime { is_over, task })
    }
}

/// Cancels what runs when its time is over, unless it is dropped before.
struct EndInTime {
    /// The cancel request is on its way.
    is_over: Rc<Cell<bool>>,
    /// Ends when the server has taken it.
    task: JoinHandle<()>,
}

impl EndInTime {
    /// The exchange has ended. A cancel request that came too late for it is not to hit what comes next in its transaction: an idle server
    /// ignores it, so it is waited for.
    async fn over(mut self, ended: &Ended) {
        let stays =
            matches!(ended, Ended::Complete(_) | Ended::Settled | Ended::Refused(_) | Ended::PlanChanged);
        if stays && self.is_over.get() {
            // Where it is not taken nothing is heard of the server at all.
            let _ = tokio::time::timeout(CANCEL_TAKEN_WITHIN, &mut self.task).await;
        }
    }
}

impl Drop for EndInTime {
    fn drop(&mut self) {
        self.task.abort();
    }
}
