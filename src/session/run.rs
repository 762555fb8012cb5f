//! Runs a unit: choose a node, lease, exchange; and what to do when that fails.
//!
//! Invariant: a unit goes out a second time only if nothing of it was sent, it was refused before it ran, or it is a known
//! read of which nothing has reached the client. A lost transaction is 40001 only when no COMMIT was sent. Must not know:
//! how nodes are judged, what the SQL says beyond `Needs`.

use std::time::{Duration, Instant};

use super::conflict::{self, Interrupted, RetryOutcome};
use super::driver::{Flow, Session, UNIT_BYTES_MAX};
use super::outcome;
use super::own_settings::OwnSettingError;
use super::server_lost::is_no_end;
use super::standby_wait::{CatchingUp, ReadOnPrimary};
use super::transaction::Transaction;
use super::unit::{Kind, Needs};
use crate::classify::{self, Hint, PinReason};
use crate::relay::buffer::Window;
use crate::route::Mode;
use crate::topology::model::NodeId;
use crate::wire::frame;
use crate::wire::reply::Report;

/// A unit whose servers are lost one after the other before anything is sent is given up after so many.
pub(super) const TRIES_MAX: usize = 16;

/// Why a unit is run again. The index is that of the metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryCause {
    /// A recovery conflict cancelled it.
    Conflict,
    /// A standby refused it: the primary runs it.
    Refused,
    /// Its server was lost.
    ServerLost,
    /// Nothing of it had been sent.
    Unsent,
    /// The node was no primary.
    NotPrimary,
    /// What was prepared gave other rows by now.
    PlanChanged,
    /// Replay on its standby stood still, and was not to.
    ReplayStands,
}

/// What a try of a unit came to.
pub(super) enum Tried {
    /// Done with, one way or another.
    Over,
    /// To be run again.
    Again(RetryCause),
}

/// A unit and what has been tried.
pub(super) struct Task<'w> {
    pub(super) window: &'w mut Window,
    pub(super) kind: Kind,
    pub(super) bytes: usize,
    /// The rest of a single large frame that is not in the window.
    pub(super) beyond: usize,
    pub(super) needs: Needs,
    /// When it was last looked at the clock for it: at its beginning and after each wait.
    pub(super) now: Instant,
    pub(super) excluded: Vec<NodeId>,
    /// Standbys on which it was lost, and may have run behind their promotion: it is not run there again.
    pub(super) not_again_at: Vec<NodeId>,
    /// When it was last sent to a standby.
    pub(super) sent_at: Instant,
    /// Since when it has found no standby that may answer it.
    pub(super) without_standby_since: Option<Instant>,
    /// Whether it waits for one that has what was written before it.
    pub(super) catching_up: CatchingUp,
    /// What others have written that it is to see, once that was decided: their last write, or nothing.
    pub(super) others_wrote_at: Option<Option<Instant>>,
    /// How long it has waited for one.
    pub(super) waited_for_standby: Duration,
    /// Its place among the reads that may be on the primary for want of a standby.
    pub(super) on_primary: Option<ReadOnPrimary>,
    /// How often it has been run again.
    pub(super) tries: usize,
    /// What standbys have done to it.
    pub(super) interrupted: Interrupted,
    /// When it came.
    pub(super) began: Instant,
}

impl<'w> Task<'w> {
    /// A unit of so many bytes at the front of the window; what of it is not there follows later.
    pub(super) fn new(window: &'w mut Window, kind: Kind, bytes: usize, needs: Needs, now: Instant) -> Self {
        let here = window.filled().len().min(bytes);
        let beyond = bytes - here;
        Self {
            window,
            kind,
            bytes: here,
            beyond,
            needs,
            now,
            excluded: Vec::new(),
            not_again_at: Vec::new(),
            sent_at: now,
            without_standby_since: None,
            catching_up: CatchingUp::Not,
            others_wrote_at: None,
            waited_for_standby: Duration::ZERO,
            on_primary: None,
            tries: 0,
            interrupted: Interrupted::default(),
            began: now,
        }
    }

    /// One without a byte: something of pgsteer's own, for which a server is wanted. Into an empty window without room nothing is
    /// read from the client.
    pub(super) fn without_bytes(window: &'w mut Window, needs: Needs) -> Self {
        Self::new(window, Kind::Partial, 0, needs, Instant::now())
    }

    /// State that the unit would leave, where later statements of the session need it on the primary. Which process a standby's
    /// is means something until the end of its transaction.
    pub(super) fn pin_elsewhere(&self) -> Option<PinReason> {
        self.needs.pin.filter(|pin| *pin != PinReason::BackendPid)
    }
}

impl Session {
    /// Runs the unit at the front of the window to its end.
    pub(super) async fn run(
        &mut self,
        window: &mut Window,
        kind: Kind,
        bytes: usize,
        needs: Needs,
        now: Instant,
    ) -> Flow<()> {
        self.run_task(Task::new(window, kind, bytes, needs, now)).await
    }

    /// Sends one frame of COPY data on, in the middle of a batch.
    pub(super) async fn copy_data(&mut self, window: &mut Window, frame_bytes: usize) -> Flow<()> {
        let ends = matches!(window.filled().first(), Some(b'c' | b'f'));
        let task = Task::new(window, Kind::Partial, frame_bytes, Needs::primary(), Instant::now());
        self.run_task(task).await?;
        if let (true, Some(batch)) =
            (ends, self.attached.as_mut().and_then(|attached| attached.batch.as_mut()))
        {
            batch.copies_ended += 1;
        }
        Ok(())
    }

    /// Passes on what the server says in the middle of a batch.
    pub(super) async fn drain_server(&mut self) -> Flow<()> {
        let mut nothing = Window::new(Box::default());
        let task = Task::without_bytes(&mut nothing, Needs::default());
        // Boxed: the wait of an idle session is not to have room for it.
        Box::pin(self.run_task(task)).await
    }

    /// Runs a unit of one frame that is larger than its buffer may become: to the primary, streaming.
    pub(super) async fn oversized(&mut self, window: &mut Window, kind: u8, frame_bytes: usize) -> Flow<()> {
        let simple = matches!(kind, b'Q' | b'F');
        // As the server would: nothing but a Sync counts, and that is never this large.
        if self.skip_to_sync || self.is_in_failed_batch() {
            self.send_owed().await?;
            return self.skip(window, frame_bytes).await;
        }
        self.control.begin_statement();
        if let Transaction::Lost { told, .. } = self.transaction {
            return self.oversized_in_lost(window, simple, frame_bytes, told).await;
        }
        while window.filled().len() < UNIT_BYTES_MAX.min(frame_bytes) / 2 {
            self.read_more(window).await?;
        }
        let here = window.filled().len().min(frame_bytes);
        if matches!(kind, b'Q' | b'P') {
            self.note_code(window.filled().get(..here).unwrap_or_default());
        }
        let hint = leading_hint(kind, window.filled().get(..here).unwrap_or_default());
        let pin = (kind == b'P').then_some(PinReason::LargeStatement);
        let in_vain = self.transaction == Transaction::Failed
            && is_no_end(window.filled().get(..here).unwrap_or_default());
        let needs = Needs { pin, terms: hint.terms, commits: !in_vain, ..Needs::unknown() };
        let kind = if simple { Kind::Simple } else { Kind::Partial };
        let mut task = Task::new(window, kind, frame_bytes, needs, Instant::now());
        // In a transaction nothing but the server could fail it.
        if hint.amiss && !self.transaction.is_on_server() && !self.is_in_batch() {
            let error = OwnSettingError::Hint;
            let report = Report::error(error.code(), error.to_string()).hint(error.hint());
            return self.refuse(&mut task, &report).await.map(|_| ());
        }
        self.run_task(task).await
    }

    /// A frame larger than its buffer in a transaction whose server was lost: none of it may run anywhere.
    async fn oversized_in_lost(
        &mut self,
        window: &mut Window,
        simple: bool,
        frame_bytes: usize,
        told: bool,
    ) -> Flow<()> {
        self.skip(window, frame_bytes).await?;
        let mut out = self.tell_lost(told);
        self.transaction = Transaction::LOST_AND_TOLD;
        if simple {
            out.extend_from_slice(self.transaction.status().ready_for_query());
        } else {
            self.skip_to_sync = true;
        }
        self.send_client(&out).await
    }

    pub(super) async fn run_task(&mut self, mut task: Task<'_>) -> Flow<()> {
        loop {
            if self.leads_to_primary(&task) {
                self.begin_anew();
                self.detach();
            }
            let ready = match self.attached {
                None => self.attach(&mut task).await?,
                Some(_) => self.may_go_on(&mut task).await?,
            };
            if !ready {
                self.note_retried(&task, Some(RetryOutcome::GivenUp));
                return Ok(());
            }
            if self.control.begin_pending.replace(false) && self.control.cancel_waiting.replace(false) {
                // It came while the connection was made fit, when there was nothing yet that a server could cancel.
                if let Some(attached) = self.attached.take() {
                    self.keep_or_release(attached, task.now);
                }
                self.note_retried(&task, Some(RetryOutcome::GivenUp));
                return self.refuse(&mut task, &outcome::cancelled()).await.map(|_| ());
            }
            if task.needs.names_processes && !task.needs.processes_resolved {
                self.resolve_signals(&mut task).await;
            }
            if self.must_not_pin_here(&task) {
                self.detach();
                self.transaction = Transaction::LOST_AND_TOLD;
                return self.refuse(&mut task, &outcome::no_state_on_standby()).await.map(|_| ());
            }
            match self.try_once(&mut task).await? {
                Tried::Over => {
                    self.note_retried(&task, task.interrupted.outcome);
                    return Ok(());
                }
                Tried::Again(cause) => {
                    if !self.goes_on(&mut task, cause).await? {
                        self.note_retried(&task, Some(RetryOutcome::GivenUp));
                        return Ok(());
                    }
                }
            }
        }
    }

    /// Whether the task is tried once more; `false` when the client has been told why not.
    async fn goes_on(&mut self, task: &mut Task<'_>, cause: RetryCause) -> Flow<bool> {
        task.tries += 1;
        self.shard.counters.retries.at(cause as usize).inc();
        if matches!(cause, RetryCause::Conflict | RetryCause::ServerLost | RetryCause::ReplayStands) {
            task.interrupted.times += 1;
            task.interrupted.again_at = Some(Instant::now());
        }
        if self.control.cancelled_by_client.get() {
            return self.refuse(task, &outcome::cancelled_again()).await;
        }
        let is_last = task.tries >= self.shard.shared.settings.retry_attempts;
        let is_cancelled = task.interrupted.conflict.is_some();
        if is_last && is_cancelled && self.shard.is_paused() && self.mode != Mode::Standby {
            // The primary is all that is left, and it may not be asked for a long time.
            return self.pass_on_conflict(task, conflict::PAUSED).await;
        }
        let has_run = !matches!(cause, RetryCause::Unsent | RetryCause::NotPrimary);
        if has_run && self.time_limit(task).is_some_and(|limit| task.began.elapsed() >= limit) {
            return self.refuse(task, &outcome::statement_timed_out_again()).await;
        }
        if task.tries > TRIES_MAX {
            let report = outcome::no_server_connection("Every server that was tried was lost at once");
            return self.refuse(task, &report).await;
        }
        Ok(true)
    }

    /// Answers a unit that was not run with an error. Gives `false`: there is nothing to go on with.
    pub(super) async fn refuse(&mut self, task: &mut Task<'_>, report: &Report) -> Flow<bool> {
        self.shard.counters.error(report.code.as_str());
        let mut out = Vec::new();
        report.put(&mut out);
        if matches!(self.transaction, Transaction::Deferred { .. }) {
            self.transaction = Transaction::LOST_AND_TOLD;
        }
        self.end_unit(task, out).await?;
        Ok(false)
    }

    /// Ends a unit that has no server any more: `out` to the client, then ReadyForQuery, now or at its Sync.
    pub(super) async fn end_unit(&mut self, task: &mut Task<'_>, mut out: Vec<u8>) -> Flow<()> {
        task.window.consume(task.bytes);
        if task.beyond > 0 {
            // The rest of a large frame is still to come; it can't be told from messages unless it is read. Until then the client
            // has not heard what became of it.
            self.control.speaking.set(true);
            let beyond = std::mem::take(&mut task.beyond);
            self.skip(task.window, beyond).await?;
        }
        match task.kind {
            Kind::Simple | Kind::Synced => out.extend_from_slice(self.transaction.status().ready_for_query()),
            Kind::Flushed | Kind::Partial => self.skip_to_sync = true,
        }
        self.send_client(&out).await
    }
}

/// What the leading comment of a frame's text asks for, of which the beginning is here.
fn leading_hint(kind: u8, frame: &[u8]) -> Hint {
    let body = frame.get(frame::HEADER_BYTES..).unwrap_or_default();
    match kind {
        b'Q' => classify::leading_hint(body),
        // Behind the name.
        b'P' => classify::leading_hint(body.splitn(2, |byte| *byte == 0).nth(1).unwrap_or_default()),
        _ => Hint::default(),
    }
}
