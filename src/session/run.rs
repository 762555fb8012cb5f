//! Runs a unit: choose a node, lease, exchange; and what to do when that fails.
//!
//! Invariant: a unit goes out a second time only if nothing of it was sent, it was refused before it ran, or it is a known
//! read of which nothing has reached the client. A lost transaction is 40001 only when no COMMIT was sent. Must not know:
//! how nodes are judged, what the SQL says beyond `Needs`.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::driver::{Attached, Batch, End, Flow, Session, UNIT_BYTES_MAX};
use super::exchange::{Ended, Exchange, Goal, Rules, Through};
use super::hold::Hold;
use super::inspect::{self, Inspect};
use super::settings::{Touched, difference};
use super::shard::SuspectCause;
use super::transaction::Transaction;
use super::translate::{Journal, Translator};
use super::unit::{self, Kind, Needs};
use super::{RESET_TIMEOUT, outcome};
use crate::backend::connection::Carried;
use crate::backend::login::LoginError;
use crate::backend::reset::{self, CommandError};
use crate::backend::{ConnectError, Endpoint};
use crate::classify::TransactionEffect;
use crate::pool::LeaseError;
use crate::relay::answer::{Answer, Expect};
use crate::relay::buffer::Window;
use crate::route::{self, Destination, Need, Question};
use crate::telemetry::metrics::Side;
use crate::topology::model::{Epoch, NodeId};
use crate::wire::reply::{self, Report, TransactionStatus};
use crate::wire::sqlstate;

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
}

/// What a try of a unit came to.
enum Tried {
    /// Done with, one way or another.
    Over,
    /// To be run again.
    Again(RetryCause),
}

/// What became of a lease that was got.
enum Accepted {
    /// It is attached.
    Taken,
    /// The picture changed meanwhile: choose again.
    Outdated,
    /// The node says that it is in recovery: wait for another picture.
    NotPrimary,
}

/// What a wait for a connection came to.
enum Waited {
    /// A connection, or why there is none.
    Over(Box<Result<crate::pool::Lease, LeaseError>>),
    /// A new epoch began: choose again.
    Outdated,
    /// The client cancelled.
    Cancelled,
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
    /// How often it has been run again.
    pub(super) tries: usize,
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
        let task = Task { window, kind, bytes, beyond: 0, needs, now, excluded: Vec::new(), tries: 0 };
        self.run_task(task).await
    }

    /// Sends one frame of COPY data on, in the middle of a batch.
    pub(super) async fn copy_data(&mut self, window: &mut Window, frame_bytes: usize) -> Flow<()> {
        let ends = matches!(window.filled().first(), Some(b'c' | b'f'));
        let here = window.filled().len().min(frame_bytes);
        let needs = Needs { need: Need::Primary, repeatable: false, ..Needs::default() };
        let task = Task {
            window,
            kind: Kind::Partial,
            bytes: here,
            beyond: frame_bytes - here,
            needs,
            now: Instant::now(),
            excluded: Vec::new(),
            tries: 0,
        };
        self.run_task(task).await?;
        if let (true, Some(batch)) =
            (ends, self.attached.as_mut().and_then(|attached| attached.batch.as_mut()))
        {
            batch.copies_ended += 1;
        }
        Ok(())
    }

    /// Runs a unit of one frame that is larger than its buffer may become: to the primary, streaming.
    pub(super) async fn oversized(&mut self, window: &mut Window, kind: u8, frame_bytes: usize) -> Flow<()> {
        let simple = matches!(kind, b'Q' | b'F');
        // As the server would: nothing but a Sync counts, and that is never this large.
        if self.skip_to_sync || self.is_in_failed_batch() {
            return self.skip(window, frame_bytes).await;
        }
        self.control.forget_cancels();
        if let Transaction::Lost { told } = self.transaction {
            return self.oversized_in_lost(window, simple, frame_bytes, told).await;
        }
        while window.filled().len() < UNIT_BYTES_MAX.min(frame_bytes) / 2 {
            self.read_more(window).await?;
        }
        let here = window.filled().len().min(frame_bytes);
        let needs =
            Needs { pin: (kind == b'P').then_some(crate::classify::PinReason::Other), ..Needs::unknown() };
        let kind = if simple { Kind::Simple } else { Kind::Partial };
        let task = Task {
            window,
            kind,
            bytes: here,
            beyond: frame_bytes - here,
            needs,
            now: Instant::now(),
            excluded: Vec::new(),
            tries: 0,
        };
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
        let report = outcome::in_lost_transaction(told);
        self.shard.counters.error(report.code.as_str());
        let mut out = Vec::new();
        report.put(&mut out);
        self.transaction = Transaction::Lost { told: true };
        if simple {
            out.extend_from_slice(self.transaction.status().ready_for_query());
        } else {
            self.skip_to_sync = true;
        }
        self.send_client(&out).await
    }

    async fn run_task(&mut self, mut task: Task<'_>) -> Flow<()> {
        loop {
            if self.attached.is_none() && !self.attach(&mut task).await? {
                return Ok(());
            }
            if !self.transaction.is_on_server() && !self.apply_settings(&mut task).await? {
                return Ok(());
            }
            if self.attached.is_none() {
                continue;
            }
            if self.control.begin_pending.replace(false) && self.control.cancel_waiting.replace(false) {
                // It came while the connection was made fit, when there was nothing yet that a server could cancel.
                if let Some(attached) = self.attached.take() {
                    self.keep_or_release(attached, task.now);
                }
                return self.refuse(&mut task, &outcome::cancelled()).await.map(|_| ());
            }
            if self.must_not_pin_here(&task) {
                self.detach();
                self.transaction = Transaction::Lost { told: true };
                return self.refuse(&mut task, &outcome::no_state_on_standby()).await.map(|_| ());
            }
            match self.try_once(&mut task).await? {
                Tried::Over => return Ok(()),
                Tried::Again(cause) => {
                    task.tries += 1;
                    self.shard.counters.retries.at(cause as usize).inc();
                    if task.tries >= self.shard.shared.settings.retry_attempts
                        && cause == RetryCause::Conflict
                    {
                        task.needs.need = Need::Primary;
                    }
                    if task.tries > TRIES_MAX {
                        let report =
                            outcome::no_server_connection("Every server that was tried was lost at once");
                        return self.refuse(&mut task, &report).await.map(|_| ());
                    }
                }
            }
        }
    }

    /// Answers a unit that was not run with an error. Gives `false`: there is nothing to go on with.
    async fn refuse(&mut self, task: &mut Task<'_>, report: &Report) -> Flow<bool> {
        self.shard.counters.error(report.code.as_str());
        let mut out = Vec::new();
        report.put(&mut out);
        if matches!(self.transaction, Transaction::Deferred { .. }) {
            self.transaction = Transaction::Lost { told: true };
        }
        self.end_unit(task, out).await?;
        Ok(false)
    }

    /// Ends a unit that has no server any more: `out` to the client, then ReadyForQuery, now or at its Sync.
    async fn end_unit(&mut self, task: &mut Task<'_>, mut out: Vec<u8>) -> Flow<()> {
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

    /// Gets a server connection for the task; `false` when the client has been told why there is none.
    pub(super) async fn attach(&mut self, task: &mut Task<'_>) -> Flow<bool> {
        let mut hold: Option<Hold> = None;
        let deadline = self.group.limits().query_wait_timeout.map(|timeout| task.now + timeout);
        loop {
            let Some((node, side, epoch)) = self.choose(task) else {
                if !self.hold(&mut hold, task).await? {
                    return Ok(false);
                }
                continue;
            };
            let pool = self.shard.pools.pool_of(&self.group, node);
            let lease = match self.shard.pools.try_claim(&pool) {
                Some(lease) => Ok(lease),
                None => {
                    let Some(endpoint) = self.endpoint(node, epoch) else { return Err(End::Client) };
                    let waited = self.wait_for_lease(&pool, &endpoint).await;
                    task.now = Instant::now();
                    match waited {
                        Waited::Over(lease) => *lease,
                        Waited::Outdated => continue,
                        Waited::Cancelled => return self.refuse(task, &outcome::cancelled()).await,
                    }
                }
            };
            let error = match lease {
                Ok(lease) => match self.accept_lease(lease, node, side, epoch, task.now) {
                    Accepted::Taken => return Ok(true),
                    Accepted::Outdated => continue,
                    Accepted::NotPrimary => {
                        if !self.hold(&mut hold, task).await? {
                            return Ok(false);
                        }
                        continue;
                    }
                },
                Err(error) => error,
            };
            match error {
                LeaseError::TimedOut(limit) => {
                    let report = outcome::no_server_connection(limit.cause());
                    return self.refuse(task, &report).await;
                }
                LeaseError::Fenced => continue,
                LeaseError::Connect(ConnectError::Login(LoginError::Refused { code, frame, .. }))
                    if side == Side::Primary
                        && !matches!(code, sqlstate::CANNOT_CONNECT_NOW | sqlstate::TOO_MANY_CONNECTIONS) =>
                {
                    // The role or database is gone, or the password was changed: the server's own words, and the end.
                    self.send_client(&frame).await?;
                    return Err(End::Client);
                }
                LeaseError::Connect(ConnectError::Login(LoginError::Refused { code, .. }))
                    if side == Side::Primary && code == sqlstate::TOO_MANY_CONNECTIONS =>
                {
                    if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                        let report = outcome::no_server_connection("The server has no free connection slot");
                        return self.refuse(task, &report).await;
                    }
                }
                LeaseError::Connect(error) => {
                    tracing::debug!(node = node.0, %error, "server connection not opened");
                    // A role, password or database may not have arrived on a standby yet: that is no reason to doubt it.
                    if !matches!(error, ConnectError::Login(LoginError::Refused { .. }))
                        || side == Side::Primary
                    {
                        self.shard.suspect(node, SuspectCause::ConnectionLost);
                    }
                    if side == Side::Standby {
                        task.excluded.push(node);
                    } else if !self.hold(&mut hold, task).await? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// Waits for a connection of the pool, unless the client cancels or a new epoch begins meanwhile.
    async fn wait_for_lease(&self, pool: &Rc<crate::pool::set::Pool>, endpoint: &Endpoint) -> Waited {
        let lease = self.shard.pools.lease(pool, endpoint);
        let mut lease = std::pin::pin!(lease);
        loop {
            tokio::select! {
                biased;
                lease = &mut lease => return Waited::Over(Box::new(lease)),
                // A frozen node may be the one that is being asked: it would answer the connect with silence.
                () = self.epoch_after(endpoint.epoch) => return Waited::Outdated,
                () = self.control.bell.notified() => {
                    if self.control.cancel_waiting.replace(false) {
                        return Waited::Cancelled;
                    }
                }
            }
        }
    }

    /// Returns when a later epoch than this has begun. Cancel-safe.
    async fn epoch_after(&self, epoch: Epoch) {
        let mut changes = self.shard.snapshot_changed.subscribe();
        while self.shard.snapshot.borrow().epoch <= epoch {
            if changes.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Waits for another snapshot; `false` when the client has been told that there will be none.
    async fn hold(&mut self, hold: &mut Option<Hold>, task: &mut Task<'_>) -> Flow<bool> {
        if hold.is_none() {
            match Hold::enter(&self.shard, task.bytes, task.now) {
                Ok(entered) => *hold = Some(entered),
                Err(report) => return self.refuse(task, &report).await,
            }
        }
        let Some(waiting) = hold.as_mut() else { return Ok(false) };
        loop {
            // Bytes behind the unit are taken in as far as there is room; without room an end is seen late.
            let watched = !task.window.spare().is_empty();
            tokio::select! {
                biased;
                waited = waiting.wait(&self.control) => {
                    task.now = Instant::now();
                    return match waited {
                        Ok(()) => Ok(true),
                        Err(report) => self.refuse(task, &report).await,
                    };
                }
                ready = crate::net::readable(&self.client), if watched => ready.map_err(|_| End::Client)?,
            }
            match crate::net::try_read(&self.client, task.window.spare()) {
                Ok(0) => return Err(End::Client),
                Ok(count) => task.window.advance(count),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(_) => return Err(End::Client),
            }
        }
    }

    /// Brings the attached server to this session's settings and waits for that: a statement must never run under other
    /// settings than its session's. Costs a round trip, and only where the last session had others. `false` when the client
    /// has been told that it failed; attached to nothing when the server was lost.
    pub(super) async fn apply_settings(&mut self, task: &mut Task<'_>) -> Flow<bool> {
        let Some(attached) = self.attached.as_mut().filter(|attached| attached.batch.is_none()) else {
            return Ok(true);
        };
        let Some(server) = attached.lease.server() else { return Ok(true) };
        if server.applied.id == self.settings.id {
            return Ok(true);
        }
        let commands = difference(&server.applied.pairs, &self.settings.pairs);
        let applied = if commands.is_empty() {
            Ok(Vec::new())
        } else {
            match tokio::time::timeout(RESET_TIMEOUT, reset::run(server, &commands)).await {
                Ok(applied) => applied,
                Err(_) => Err(CommandError::Io(std::io::ErrorKind::TimedOut.into())),
            }
        };
        match applied {
            Ok(notifications) => {
                server.applied = Rc::clone(&self.settings);
                self.send_client(&notifications).await?;
                Ok(true)
            }
            Err(CommandError::Io(_)) => {
                let node = server.link.node;
                if self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby) {
                    task.excluded.push(node);
                }
                self.detach_lost(SuspectCause::ConnectionLost);
                Ok(true)
            }
            Err(CommandError::Refused(error)) => {
                self.detach();
                let report =
                    outcome::settings_refused(&reply::error_message(error.get(5..).unwrap_or_default()));
                self.refuse(task, &report).await
            }
        }
    }

    /// Closes the attached server connection.
    fn detach(&mut self) {
        self.attached = None;
        *self.control.runs_at.borrow_mut() = None;
    }

    /// The unit would leave state on a standby, and can't be refused by the server itself (see `translate`).
    fn must_not_pin_here(&self, task: &Task<'_>) -> bool {
        task.needs.pin.is_some()
            && matches!(task.kind, Kind::Flushed | Kind::Partial)
            && self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby)
    }

    /// Asks the policy. `None`: nobody may run it now.
    fn choose(&mut self, task: &Task<'_>) -> Option<(NodeId, Side, Epoch)> {
        let snapshot = self.shard.snapshot.borrow();
        self.freshness.settle(&snapshot);
        // What follows an unfinished batch runs on the same node, and is not known yet.
        let whole = matches!(task.kind, Kind::Simple | Kind::Synced);
        let free = matches!(self.transaction, Transaction::None)
            || (self.transaction.is_deferred_read_only() && task.needs.pin.is_none());
        let need = if whole && free { task.needs.need } else { Need::Primary };
        let excluded = task.excluded.as_slice();
        let decision = route::route(&Question {
            need,
            target: task.needs.target,
            max_lag: task.needs.max_lag.unwrap_or(self.shard.shared.settings.routing.max_lag),
            freshness: &self.freshness,
            excluded,
            load: &self.shard.load.borrow(),
            snapshot: &snapshot,
            now: task.now,
            dice: fastrand::u64(..),
        });
        let (node, side) = match decision.destination {
            Destination::Primary(node) if self.shard.is_doubted(node, &snapshot) => return None,
            Destination::Primary(node) => (node, Side::Primary),
            Destination::Standby(node) => (node, Side::Standby),
            Destination::Hold => return None,
        };
        self.shard.counters.routed(side, decision.reason as usize).inc();
        Some((node, side, snapshot.epoch))
    }

    fn endpoint(&self, node: NodeId, epoch: Epoch) -> Option<Endpoint> {
        let snapshot = self.shard.snapshot.borrow();
        Some(Endpoint {
            node,
            address: Arc::clone(&snapshot.node(node)?.address),
            epoch,
            user: Arc::clone(self.group.user()),
            database: Arc::clone(self.group.database()),
            secret: self.secret,
            parameters: Vec::new(),
            timeout: self.shard.pools.settings().connect_timeout,
        })
    }

    /// Takes the lease, unless the picture changed while it was being got.
    fn accept_lease(
        &mut self,
        mut lease: crate::pool::Lease,
        node: NodeId,
        side: Side,
        epoch: Epoch,
        now: Instant,
    ) -> Accepted {
        let still = {
            let snapshot = self.shard.snapshot.borrow();
            match side {
                Side::Primary => {
                    snapshot.epoch == epoch && snapshot.primary_at(now).is_some_and(|view| view.node == node)
                }
                Side::Standby => snapshot.epoch == epoch,
            }
        };
        if !still {
            lease.release(now);
            return Accepted::Outdated;
        }
        let Some(server) = lease.server() else { return Accepted::Outdated };
        if side == Side::Primary {
            if server.in_hot_standby && server.link.epoch.get() == epoch {
                // Opened under this epoch and in recovery: whatever answers there is not the primary.
                self.shard.suspect(node, SuspectCause::ReadOnly);
                return Accepted::NotPrimary;
            }
            server.link.epoch.set(epoch);
        }
        *self.control.runs_at.borrow_mut() = Some(Rc::clone(&server.cancel_key));
        self.control.cancel_sent.set(false);
        // Nothing of the unit has been sent: a cancel request waits until then.
        self.control.begin_pending.set(true);
        self.shard.counters.leases.inc();
        self.attached = Some(Attached {
            lease,
            node,
            side,
            batch: None,
            spoiled: false,
            inspect: Inspect::Nothing,
            may_unpin: false,
            unlisted: false,
        });
        Accepted::Taken
    }

    /// One try of the task on the attached server.
    async fn try_once(&mut self, task: &mut Task<'_>) -> Flow<Tried> {
        let Some(mut attached) = self.attached.take() else { return Ok(Tried::Again(RetryCause::Unsent)) };
        let fresh = attached.batch.is_none();
        let mut copies_ended = 0;
        let mut failed_before = false;
        let (mut answer, mut journal) = match attached.batch.take() {
            Some(batch) => {
                failed_before = batch.failed;
                // What was sent of the batch before counts when it is lost now.
                task.needs.commits |= batch.commits || (batch.rolls_back && task.needs.statements > 0);
                task.needs.rolls_back |= batch.rolls_back;
                task.needs.repeatable &= batch.repeatable;
                copies_ended = batch.copies_ended;
                (batch.answer, batch.journal)
            }
            None => (self.shard.buffers.take_answer(), Journal::default()),
        };
        let mut out = self.shard.take_scratch();
        self.translate(task, &mut attached, &mut answer, &mut journal, &mut out);
        let (node, side) = (attached.node, attached.side);
        let rules = if fresh { self.rules(task, &mut attached) } else { Rules::PassOn };
        let Some(server) = attached.lease.server() else { return Ok(Tried::Again(RetryCause::Unsent)) };
        let link = Rc::clone(&server.link);
        let client = Rc::clone(&self.client);
        let out_bytes = out.len() as u64;
        let began = task.now;
        self.shard.begin_load(node);
        let (ended, sent) = {
            let mut exchange = Exchange::new(
                (&client, &link.stream),
                task.window,
                &mut out,
                &mut answer,
                &mut server.in_hot_standby,
            );
            exchange.reserved = task.bytes;
            exchange.rules = rules;
            exchange.copies_ended = copies_ended;
            exchange.extended = task.kind == Kind::Synced;
            exchange.goal = match task.kind {
                Kind::Simple | Kind::Synced => Goal::Ready,
                Kind::Flushed => Goal::Settled,
                Kind::Partial => Goal::Sent,
            };
            exchange.through =
                if task.beyond > 0 { Through::Frame { left: task.beyond } } else { Through::Nothing };
            exchange.hold_back_bytes = self.shard.shared.settings.retry_buffer_bytes;
            exchange.stall_timeout =
                (side == Side::Standby).then_some(self.shard.shared.settings.standby_stall_timeout);
            exchange.cut = Some(&self.control.cut);
            let begun = || self.shard.cancel_after_begin(&self.control);
            if matches!(self.transaction, Transaction::Deferred { .. }) {
                self.control.begin_pending.set(true);
                exchange.on_begun = Some(&begun);
            }
            let ended = exchange.run().await;
            self.control.begin_pending.set(false);
            let sent = Sent {
                any: exchange.any_sent,
                delivered: exchange.delivered,
                inside_frame: exchange.answer.inside_frame() && exchange.delivered,
                unit_left: exchange.reserved,
                copying: matches!(exchange.through, Through::Copy { .. }),
                beyond: if let Through::Frame { left } = exchange.through { left } else { 0 },
                fresh,
                failed: failed_before || exchange.failed.is_some(),
                server_ended: exchange.server_ended,
                copies_ended: exchange.copies_ended,
            };
            self.shard.counters.server_to_client_bytes.add(exchange.passed_bytes);
            (ended, sent)
        };
        // A connection that somebody else holds too can't be handed to another shard.
        drop(link);
        let now = Instant::now();
        task.now = now;
        self.shard.end_load(node, began, now);
        self.shard.counters.client_to_server_bytes.add(out_bytes);
        self.shard.give_scratch(out);
        self.after(task, attached, (answer, journal), ended, sent, now).await
    }

    fn rules(&self, task: &Task<'_>, attached: &mut Attached) -> Rules {
        let alone = matches!(self.transaction, Transaction::None) && self.pins.is_empty();
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced) && task.beyond == 0;
        let again = task.tries < self.shard.shared.settings.retry_attempts;
        if alone
            && ends
            && again
            && task.needs.repeatable
            && task.needs.transaction == TransactionEffect::None
        {
            return if attached.side == Side::Standby { Rules::ReadOnStandby } else { Rules::PassOn };
        }
        let first = alone || matches!(self.transaction, Transaction::Deferred { .. });
        let doubtful = attached.side == Side::Primary
            && attached.lease.server().is_some_and(|server| server.in_hot_standby);
        // Of one statement, a 25006 undoes all; of several, or of code that can't be seen, a part may be committed by then.
        let single = task.needs.statements <= 1 && !task.needs.unseen && !task.needs.commits;
        if first && ends && doubtful && single { Rules::FirstOnDoubtful } else { Rules::PassOn }
    }

    /// Writes the task's unit as the server is to see it, with what must go before it.
    fn translate(
        &mut self,
        task: &Task<'_>,
        attached: &mut Attached,
        answer: &mut Answer,
        journal: &mut Journal,
        out: &mut Vec<u8>,
    ) {
        let standby = attached.side == Side::Standby;
        let scope = self.scope_now();
        let Some(server) = attached.lease.server() else { return };
        if let Transaction::Deferred { sql, .. } = &self.transaction {
            reply::put_query(out, sql);
            answer.expect(Expect::Preamble);
            // A Query takes the server's unnamed statement away; the client may have prepared its own before.
            server.carried.unnamed = None;
        }
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        if let (true, Some(pin), Kind::Simple | Kind::Synced) = (standby, task.needs.pin, task.kind) {
            // It would leave state on a standby that later writes of the session need on the primary.
            server.carried.unnamed = None;
            reply::put_query(out, &refusal_on_standby(pin.as_str()));
            return answer.expect(Expect::Simple);
        }
        let mut translator = Translator {
            session: self.number << 8 | (self.shard.number as u64 & 0xff),
            out,
            answer,
            scope,
            carried: &mut server.carried,
            names: &mut self.names,
            table: &self.shard.statements,
            prepared_max: self.shard.pools.settings().max_prepared_statements,
            strings: self.strings,
            journal,
        };
        if task.beyond > 0 {
            if let Some(&kind) = unit.first() {
                translator.large(kind, task.bytes + task.beyond, unit);
            }
            return;
        }
        for (kind, body) in unit::frames(unit) {
            translator.frame(kind, body);
        }
    }

    /// Under which settings texts are parsed now. While a change is not known yet (a SET in this transaction) what is prepared is
    /// shared with nobody.
    pub(super) fn scope_now(&self) -> u64 {
        if self.touched == Touched::Nothing { self.scope.id } else { self.shard.own_scope() }
    }

    /// Draws the consequences of an exchange.
    async fn after(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        (mut answer, mut journal): (Box<Answer>, Journal),
        ended: Ended,
        sent: Sent,
        now: Instant,
    ) -> Flow<Tried> {
        task.bytes = sent.unit_left;
        match ended {
            Ended::Complete(status) => {
                task.window.consume(task.bytes);
                attached.spoiled |= sent.server_ended;
                self.completed(task, &mut attached, &mut answer, &mut journal);
                self.shard.buffers.give_answer(answer);
                self.answered(&attached, now);
                let alone = matches!(self.transaction, Transaction::None);
                self.transaction = Transaction::from_status(status);
                let between = !self.transaction.is_on_server();
                // Only of a Query that is one statement its success tells what it did; a Parse may never be executed, and what is
                // executed may be rolled back in the same batch.
                let told = sent.fresh && task.kind == Kind::Simple && task.needs.statements == 1;
                if !told {
                    self.touched.ask();
                }
                if between && (self.touched != Touched::Nothing || attached.inspect != Inspect::Nothing) {
                    self.take_stock(&mut attached, alone && told && sent.failed).await?;
                }
                self.keep_or_release(attached, now);
                Ok(Tried::Over)
            }
            Ended::Settled => {
                self.settled(task, attached, answer, journal, sent);
                Ok(Tried::Over)
            }
            Ended::Refused(code) => {
                let failed = std::mem::take(answer.failed_parses());
                if let Some(server) = attached.lease.server() {
                    journal.correct(&failed, &mut server.carried);
                }
                attached.spoiled |= answer.last_status() != Some(TransactionStatus::Idle);
                self.shard.buffers.give_answer(answer);
                journal.undo(&mut self.names);
                let (node, side) = (attached.node, attached.side);
                self.keep_or_release(attached, now);
                Ok(Tried::Again(self.refused(task, code, node, side)))
            }
            Ended::ServerLost { cause, announced } => {
                self.shard.buffers.give_answer(answer);
                let why =
                    if announced { SuspectCause::ShutdownAnnounced } else { SuspectCause::ConnectionLost };
                self.shard.suspect(attached.node, why);
                let (node, side) = (attached.node, attached.side);
                drop(attached);
                *self.control.runs_at.borrow_mut() = None;
                if side == Side::Standby {
                    task.excluded.push(node);
                }
                self.server_lost(task, &mut journal, &cause, (side, sent)).await
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
            Ended::Stalled => {
                // Nothing can be said to it: a part of a message may have been written already. It is counted all the same.
                self.shard.counters.error(sqlstate::ADMIN_SHUTDOWN.as_str());
                tracing::info!(
                    node = attached.node.0,
                    "a client that does not read a standby's answer is cut off"
                );
                Err(End::Client)
            }
        }
    }

    /// A part of a batch is out, and answered as far as it will be now.
    fn settled(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
        answer: Box<Answer>,
        journal: Journal,
        sent: Sent,
    ) {
        task.window.consume(task.bytes);
        if matches!(self.transaction, Transaction::Deferred { .. }) {
            self.transaction = Transaction::Open;
        }
        self.note_state(task, &mut attached);
        self.commit_bound |= task.needs.commits || task.needs.rolls_back;
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
        let failed = std::mem::take(answer.failed_parses());
        attached.spoiled |= answer.preamble_error().is_some();
        self.commit_bound |= task.needs.commits || task.needs.rolls_back;
        let deallocated = answer.take_deallocated();
        if let Some(server) = attached.lease.server() {
            journal.settle(&failed, &mut self.names, &mut server.carried);
            if deallocated {
                server.carried.prepared.clear();
                server.carried.unnamed = None;
            }
        }
        if deallocated {
            self.names.clear();
        }
        self.note_state(task, attached);
    }

    /// What the unit may have left in its session: a pin, or a question to the server at the end of the transaction.
    fn note_state(&mut self, task: &Task<'_>, attached: &mut Attached) {
        let Needs { pin, unseen, may_unpin, .. } = task.needs;
        attached.may_unpin |= may_unpin;
        let may_end = may_unpin && self.pins.iter().any(|pin| inspect::is_asked(*pin));
        let question = match pin {
            _ if unseen => Inspect::All,
            Some(pin) if inspect::is_asked(pin) => Inspect::Pins,
            _ if may_end => Inspect::Pins,
            _ => Inspect::Nothing,
        };
        attached.inspect = attached.inspect.max(question);
        if let Some(pin) = pin
            && !inspect::is_asked(pin)
            && !self.pins.contains(&pin)
        {
            self.shard.counters.pins.at(pin as usize).inc();
            self.pins.push(pin);
        }
        self.keep_server();
    }

    fn answered(&mut self, attached: &Attached, now: Instant) {
        match attached.side {
            Side::Primary => self.freshness.on_primary_answer(now),
            Side::Standby => self.freshness.on_standby_answer(attached.node, now),
        }
    }

    /// Keeps the server while the transaction or a pin needs it, else gives it back fit for anybody, else closes it.
    fn keep_or_release(&mut self, attached: Attached, now: Instant) {
        if self.transaction.is_on_server() || !self.pins.is_empty() {
            self.attached = Some(attached);
            return;
        }
        *self.control.runs_at.borrow_mut() = None;
        self.commit_bound = false;
        if attached.spoiled || self.control.cancel_sent.get() {
            // A cancel may still be on its way to that server process: nobody else must be hit by it.
            drop(attached);
        } else if attached.unlisted {
            tokio::task::spawn_local(attached.lease.reset_settings_and_release(RESET_TIMEOUT));
        } else {
            attached.lease.release(now);
        }
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
        // What has only not arrived on the standby yet (class 42) is not remembered.
        if &code.class() != b"42" {
            let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
            let shapes: Vec<u64> = self.shapes(unit).collect();
            for shape in shapes {
                self.shard.learn(shape);
            }
        }
        RetryCause::Refused
    }

    async fn server_lost(
        &mut self,
        task: &mut Task<'_>,
        journal: &mut Journal,
        cause: &str,
        (side, sent): (Side, Sent),
    ) -> Flow<Tried> {
        if sent.inside_frame {
            // The client has the beginning of a message: nothing can be said inside it, and nothing run again.
            return Err(End::Client);
        }
        if !self.pins.is_empty() {
            let fate = if matches!(self.transaction, Transaction::Open | Transaction::Failed)
                && !task.needs.commits
            {
                "The open transaction was rolled back"
            } else {
                "The statement in flight may have been carried out and committed"
            };
            let cause = format!("{cause}. {fate}");
            return Err(End::Told(Box::new(outcome::pinned_server_lost(&self.pins, &cause))));
        }
        // Whatever the lost statement did must be seen by the session's next look.
        self.freshness.on_primary_answer(Instant::now());
        let begun = self.transaction.is_on_server();
        let whole = task.bytes > 0 && sent.fresh;
        if !sent.any && !begun && whole {
            journal.undo(&mut self.names);
            return Ok(Tried::Again(RetryCause::Unsent));
        }
        let alone = matches!(self.transaction, Transaction::None);
        let ends = matches!(task.kind, Kind::Simple | Kind::Synced);
        let again = task.tries < self.shard.shared.settings.retry_attempts;
        // On a standby nothing can have been written. On the primary a text that only reads may write all the same (a view
        // over a volatile function, an operator): what was sent there is not sent again.
        let repeatable = side == Side::Standby && task.needs.repeatable;
        if alone && whole && ends && again && repeatable && !sent.delivered {
            journal.undo(&mut self.names);
            return Ok(Tried::Again(RetryCause::ServerLost));
        }
        let report = if alone && repeatable {
            outcome::read_interrupted(cause)
        } else if alone || task.needs.commits {
            self.transaction = Transaction::None;
            outcome::outcome_unknown(cause)
        } else {
            self.transaction = Transaction::Lost { told: true };
            outcome::transaction_lost(cause)
        };
        journal.settle(&[], &mut self.names, &mut Carried::default());
        self.shard.counters.error(report.code.as_str());
        let mut out = Vec::new();
        report.put(&mut out);
        task.beyond = sent.beyond;
        if sent.copying && task.kind == Kind::Synced {
            // The client still sends its data, then a Sync.
            task.kind = Kind::Flushed;
        }
        self.end_unit(task, out).await?;
        Ok(Tried::Over)
    }

    /// The attached server is gone while nothing was under way.
    pub(super) fn detach_lost(&mut self, why: SuspectCause) {
        if let Some(attached) = self.attached.take() {
            self.shard.suspect(attached.node, why);
        }
        *self.control.runs_at.borrow_mut() = None;
    }
}

/// A statement that fails on the server with an explanation, and fails its transaction block as any error would.
fn refusal_on_standby(pin: &str) -> String {
    format!(
        "DO $pgsteer$BEGIN RAISE EXCEPTION USING ERRCODE = '25006', \
         MESSAGE = 'pgsteer: this READ ONLY transaction runs on a standby, which can''t keep session state ({pin})', \
         HINT = 'Begin it with /* pgsteer: target=primary */, or set the state outside of the transaction.';END$pgsteer$"
    )
}

/// What had happened when an exchange ended.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each asked for on its own")]
struct Sent {
    /// Anything had been sent to the server.
    any: bool,
    /// Anything had reached the client.
    delivered: bool,
    /// The client has the beginning of a frame whose end will not come.
    inside_frame: bool,
    /// Bytes of the unit that are still in the window: all or nothing of it.
    unit_left: usize,
    /// COPY data was being taken from the client.
    copying: bool,
    /// Bytes of a large frame that the client has not sent yet.
    beyond: usize,
    /// The exchange began with this unit, not in the middle of a batch.
    fresh: bool,
    /// An error was passed on.
    failed: bool,
    /// The server said goodbye behind its answer.
    server_ended: bool,
    /// COPY data that was sent to its end before the server asked for it.
    copies_ended: usize,
}
