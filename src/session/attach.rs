//! Gets a unit the server that is to run it: a node by the policy, a lease of its pool, the session's settings on it.
//!
//! Invariant: what is attached was chosen under the snapshot that still holds, and has the session's settings. Must not know:
//! what the unit says, what becomes of it.

use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::conflict::{self, RetryOutcome};
use super::driver::{Attached, End, Flow, Session};
use super::hold::Hold;
use super::outcome;
use super::run::Task;
use super::shard::SuspectCause;
use super::standby_wait::WithoutStandby;
use super::transaction::Transaction;
use super::unit::{Kind, Needs};
use crate::backend::login::{Asks, LoginError};
use crate::backend::{ConnectError, Endpoint};
use crate::classify::{NoStandby, PinReason};
use crate::pool::{Ahead, Fit, Lease, LeaseError, Wanted};
use crate::relay::buffer::Window;
use crate::route::{self, Destination, Mode, Need, Question, Reason};
use crate::telemetry::metrics::Side;
use crate::topology::model::{Epoch, NodeId, Readers, Snapshot};
use crate::wire::reply::{self, Report};
use crate::wire::sqlstate;

/// Where a unit is to run now.
enum Choice {
    /// There.
    Node(NodeId, Side, Epoch),
    /// Nobody may run it now.
    Hold,
    /// No standby may, and it is to wait for one until then.
    WaitForStandby(Instant),
    /// No standby may, and the primary is not to.
    Refuse,
    /// Standbys have cancelled it, and the primary has no place for it.
    PassOn,
    /// It was lost on a standby that is the primary by now, and may have run there as on a primary.
    Unknown,
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
    Over(Box<Result<Lease, LeaseError>>),
    /// A new epoch began: choose again.
    Outdated,
    /// The client cancelled.
    GivenUp(Box<Report>),
}

fn is_standby(decision: &route::Decision) -> bool {
    matches!(decision.destination, Destination::Standby(_))
}

impl Session {
    /// Gets a server connection for the task; `false` when the client has been told why there is none.
    pub(super) async fn attach(&mut self, task: &mut Task<'_>) -> Flow<bool> {
        let mut hold: Option<Hold> = None;
        let deadline = self.group.limits().query_wait_timeout.map(|timeout| task.now + timeout);
        loop {
            let Some((node, side, epoch)) = self.wait_for_node(&mut hold, task).await? else {
                return Ok(false);
            };
            let pool = self.shard.pools.pool_of(&self.group, node);
            let lease = match self.shard.pools.try_claim(&pool, self.fit(&task.needs)) {
                Some(lease) => Ok(lease),
                None => {
                    let Some(endpoint) = self.endpoint(node, epoch) else { return Err(End::Client) };
                    match self.wait_for_lease(&pool, &endpoint, hold.as_mut(), task).await? {
                        Waited::Over(lease) => *lease,
                        Waited::Outdated => continue,
                        Waited::GivenUp(report) => return self.refuse(task, &report).await,
                    }
                }
            };
            let lease = match lease {
                Ok(lease) if task.needs.needs_own_defaults() && self.has_startup_to_reset_to() => {
                    self.with_own_defaults(lease, node, epoch).await
                }
                lease => lease,
            };
            let error = match lease {
                Ok(lease) => match self.accept_lease(lease, node, side, epoch, task.now) {
                    Accepted::Taken => {
                        if let Some(attached) = self.attached.as_mut() {
                            attached._on_primary = task.on_primary.take();
                            attached._place = task.interrupted.place.take();
                        }
                        return Ok(self.released(hold.as_ref()));
                    }
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
            if !self.without_lease(error, (node, side), deadline, &mut hold, task).await? {
                return Ok(false);
            }
        }
    }

    /// What is to be done about a connection that was not to be had; `false` when the client has been told, otherwise choose again.
    async fn without_lease(
        &mut self,
        error: LeaseError,
        (node, side): (NodeId, Side),
        deadline: Option<Instant>,
        hold: &mut Option<Hold>,
        task: &mut Task<'_>,
    ) -> Flow<bool> {
        match error {
            LeaseError::TimedOut(limit) => {
                let report = outcome::no_server_connection(limit.cause());
                return self.refuse(task, &report).await;
            }
            LeaseError::Fenced => {}
            // It may only not have heard of it yet.
            LeaseError::OtherRole if side == Side::Standby => task.excluded.push(node),
            LeaseError::OtherRole => {
                return Err(End::Told(Box::new(outcome::other_role(self.group.user()))));
            }
            LeaseError::Connect(ConnectError::Login(LoginError::Refused { code, frame, .. }))
                if side == Side::Primary && !sqlstate::passes(code) =>
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
            LeaseError::Connect(ConnectError::Login(LoginError::Refused { code, frame, .. }))
                if side == Side::Standby && sqlstate::is_recovery_conflict(code) =>
            {
                // A login has a snapshot too: the read may be on the primary as one that a standby has cancelled.
                if task.needs.only_reads() && task.needs.statements > 0 {
                    task.interrupted.conflict.get_or_insert_with(|| reply::as_error(&frame));
                }
                task.excluded.push(node);
            }
            LeaseError::Connect(error) => {
                tracing::debug!(node = node.0, %error, "server connection not opened");
                // A role, password or database may not have arrived on a standby yet: that is no reason to doubt it.
                if !matches!(error, ConnectError::Login(LoginError::Refused { .. })) || side == Side::Primary
                {
                    self.shard.suspect(node, SuspectCause::ConnectionLost);
                }
                if side == Side::Standby {
                    task.excluded.push(node);
                } else if !self.hold(hold, task).await? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The node that is to run the task, as soon as there is one; `None` when the client has been told why there is none.
    async fn wait_for_node(
        &mut self,
        hold: &mut Option<Hold>,
        task: &mut Task<'_>,
    ) -> Flow<Option<(NodeId, Side, Epoch)>> {
        loop {
            let goes_on = match self.choose(task) {
                Choice::Node(node, side, epoch) => return Ok(Some((node, side, epoch))),
                Choice::Hold => self.hold(hold, task).await?,
                Choice::WaitForStandby(until) => self.wait_for_standby(task, until).await?,
                Choice::PassOn => {
                    self.note_retried(task, Some(RetryOutcome::NoPlace));
                    task.interrupted.times = 0;
                    self.pass_on_conflict(task, conflict::NO_PLACE).await?
                }
                Choice::Unknown => {
                    let cause = "The server that ran it was lost, and had been promoted meanwhile";
                    self.refuse(task, &outcome::outcome_unknown(cause)).await?
                }
                Choice::Refuse if task.interrupted.conflict.is_some() => {
                    self.pass_on_conflict(task, conflict::NO_STANDBY).await?
                }
                Choice::Refuse => {
                    let report = outcome::no_standby_within_bounds(task.waited_for_standby);
                    self.refuse(task, &report).await?
                }
            };
            if !goes_on {
                return Ok(None);
            }
        }
    }

    /// What was held, if it was, has a server.
    fn released(&self, hold: Option<&Hold>) -> bool {
        if hold.is_some() {
            self.shard.counters.statements_released.inc();
        }
        true
    }

    /// Has a connection opened anew by the session's own startup packet, to which a RESET goes back there. Nobody else gets it.
    async fn with_own_defaults(&self, lease: Lease, node: NodeId, epoch: Epoch) -> Result<Lease, LeaseError> {
        let Some(mut endpoint) = self.endpoint(node, epoch) else { return Err(LeaseError::Fenced) };
        endpoint.parameters.clone_from(&self.startup.pairs);
        let mut lease = lease.open_anew(&endpoint, self.role).await?;
        if let Some(server) = lease.server() {
            server.defaults = Rc::clone(&self.startup);
            server.applied = Rc::clone(&self.startup);
        }
        Ok(lease)
    }

    fn fit(&self, needs: &Needs) -> Fit {
        let wanted = if needs.pin == Some(PinReason::Sequence) { Wanted::OwnWrites } else { Wanted::Ready };
        Fit { settings_id: self.settings.id, session: self.key(), role: self.role, wanted }
    }

    /// Gets a server connection without a word to the client, if there is one to be had: whether it did.
    pub(super) async fn attach_quietly(&mut self, task: &mut Task<'_>) -> bool {
        let Choice::Node(node, side, epoch) = self.choose(task) else { return false };
        let pool = self.shard.pools.pool_of(&self.group, node);
        let fit = self.fit(&task.needs);
        let lease = match (self.shard.pools.try_claim(&pool, fit), self.endpoint(node, epoch)) {
            (Some(lease), _) => Ok(lease),
            (None, Some(endpoint)) => self.shard.pools.lease(&pool, &endpoint, fit).await,
            (None, None) => return false,
        };
        let Ok(lease) = lease else { return false };
        matches!(self.accept_lease(lease, node, side, epoch, Instant::now()), Accepted::Taken)
    }

    /// A connection to this node that is not the session's own, for a question of pgsteer's that has nothing to do with what the session
    /// has there.
    pub(super) async fn lease_quietly(&self, node: NodeId) -> Option<Lease> {
        let epoch = self.shard.snapshot.borrow().epoch;
        let pool = self.shard.pools.pool_of(&self.group, node);
        let fit = self.fit(&Needs::default());
        match self.shard.pools.try_claim(&pool, fit) {
            Some(lease) => Some(lease),
            None => self.shard.pools.lease(&pool, &self.endpoint(node, epoch)?, fit).await.ok(),
        }
    }

    /// Waits for a connection of the pool, or for that which was opened ahead while the task was held, unless the client cancels or leaves or
    /// a new epoch begins meanwhile.
    async fn wait_for_lease(
        &self,
        pool: &Rc<crate::pool::set::Pool>,
        endpoint: &Endpoint,
        held: Option<&mut Hold>,
        task: &mut Task<'_>,
    ) -> Flow<Waited> {
        let (fit, window) = (self.fit(&task.needs), &mut *task.window);
        let ahead = held.and_then(|hold| hold.ahead.take_if(|ahead| ahead.is_to(endpoint.node)));
        let pools = &self.shard.pools;
        let primary = self.shard.incarnation_of(endpoint.node, endpoint.epoch).map(|it| (endpoint.epoch, it));
        let lease = async {
            if let Some((ahead, primary)) = ahead.zip(primary)
                && let Some(lease) = ahead.admitted(pools, primary, fit.role).await
            {
                return Ok(lease);
            }
            pools.lease(pool, endpoint, fit).await
        };
        let mut lease = std::pin::pin!(lease);
        loop {
            let watched = !window.spare().is_empty();
            tokio::select! {
                biased;
                lease = &mut lease => {
                    task.now = Instant::now();
                    return Ok(Waited::Over(Box::new(lease)));
                }
                // A frozen node may be the one that is being asked: it would answer the connect with silence.
                () = self.shard.epoch_after(endpoint.epoch) => {
                    task.now = Instant::now();
                    return Ok(Waited::Outdated);
                }
                () = self.control.bell.notified() => {
                    if self.control.cancel_waiting.replace(false) {
                        return Ok(Waited::GivenUp(Box::new(outcome::cancelled())));
                    }
                }
                ready = crate::net::readable(&self.client), if watched => {
                    ready.map_err(|_| End::Client)?;
                    self.read_ahead(window)?;
                }
            }
        }
    }

    /// Takes in what the client has sent behind its unit, as far as there is room; without room an end is seen late.
    pub(super) fn read_ahead(&self, window: &mut Window) -> Flow<()> {
        match crate::net::try_read(&self.client, window.spare()) {
            Ok(0) => Err(End::Client),
            Ok(count) => {
                window.advance(count);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Client),
        }
    }

    /// Waits for another snapshot; `false` when the client has been told that there will be none.
    pub(super) async fn hold(&mut self, hold: &mut Option<Hold>, task: &mut Task<'_>) -> Flow<bool> {
        if hold.is_none() {
            match Hold::enter(&self.shard, task.bytes, task.now, (self.mode, self.statement_limit)) {
                Ok(entered) => {
                    *hold = Some(entered);
                    if self.mode != Mode::Standby {
                        let snapshot = self.shard.snapshot();
                        self.shard.pools.open_ahead(&self.group, &snapshot, task.now);
                    }
                }
                Err(report) => return self.refuse(task, &report).await,
            }
        }
        let Some(waiting) = hold.as_mut() else { return Ok(false) };
        if waiting.ahead.is_none() && self.mode != Mode::Standby {
            waiting.ahead = self.open_to_former_primary();
        }
        loop {
            let watched = !task.window.spare().is_empty();
            tokio::select! {
                biased;
                waited = waiting.wait(&self.control) => {
                    task.now = Instant::now();
                    return match waited {
                        Ok(()) => {
                            // There is nobody else: who could not answer before may now, and may be the primary by now.
                            task.excluded.clear();
                            Ok(true)
                        }
                        Err(report) => self.refuse(task, &report).await,
                    };
                }
                ready = crate::net::readable(&self.client), if watched => ready.map_err(|_| End::Client)?,
            }
            self.read_ahead(task.window)?;
        }
    }

    /// Begins to open a connection to the node that was the primary, once it lets anybody in: by then it may be the primary again, as the
    /// same server or as another one.
    fn open_to_former_primary(&self) -> Option<Ahead> {
        let (node, epoch) = self.shard.primary_that_lets_in()?;
        let pool = self.shard.pools.pool_of(&self.group, node);
        self.shard.pools.open_to_former(&pool, self.endpoint(node, epoch)?)
    }

    /// Asks the policy.
    fn choose(&mut self, task: &mut Task<'_>) -> Choice {
        let snapshot = self.shard.snapshot.borrow();
        let others_commit = self.others_commit(task.now);
        self.freshness.settle(&snapshot, others_commit);
        // What follows an unfinished batch runs on the same node, and is not known yet.
        let whole = matches!(task.kind, Kind::Simple | Kind::Synced);
        let free = matches!(self.transaction, Transaction::None)
            || (self.transaction.is_deferred_read_only() && task.needs.pin.is_none());
        let need = self.need_at_endpoint(if whole && free { task.needs.need } else { Need::Primary });
        let mut terms = self.terms(&task.needs);
        terms.target = terms.target.filter(|_| !self.is_for_standbys());
        terms.consistency = self.consistency_at_endpoint(terms.consistency);
        let prefer = self.preference(task, need, &terms, &snapshot);
        let excluded = task.excluded.as_slice();
        let load = self.shard.load.borrow();
        let dice = fastrand::u64(..);
        let decide = |others_wrote_at| {
            route::route(&Question {
                need,
                terms,
                others_wrote_at,
                freshness: &self.freshness,
                excluded,
                prefer,
                load: &load,
                snapshot: &snapshot,
                now: task.now,
                dice,
            })
        };
        let is_split = need == Need::Read && self.mode == Mode::Split;
        let others = match task.others_wrote_at {
            Some(decided) => decided,
            None if is_split => self.others_wrote_at(task.now),
            None => None,
        };
        let mut decision = decide(others);
        if others.is_some() && !is_standby(&decision) {
            let alone = decide(None);
            // What others have written is to be seen, as long as that costs little and nobody is held for it.
            let is_kept_from_it = is_standby(&alone);
            let is_spared = is_kept_from_it
                && decision.destination != Destination::Hold
                && (task.others_wrote_at.is_some() || self.shard.spare.take(task.now));
            if !is_spared {
                decision = alone;
            }
            if is_kept_from_it {
                task.others_wrote_at = Some(others.filter(|_| is_spared));
            }
        }
        let has_primary = self.mode != Mode::Standby;
        let wants_standby = match decision.reason {
            // The primary is not there to stand in.
            Reason::NoPrimary => need == Need::Read && has_primary && terms.limits_wait(),
            reason if has_primary => reason.is_want_of_standby() && need == Need::Read,
            _ => decision.destination == Destination::Hold && terms.limits_wait(),
        };
        let is_behind =
            matches!(decision.reason, Reason::OwnWrites | Reason::OthersWrites | Reason::Monotonic);
        if is_behind {
            (self.shard.shared.want_sample)();
        }
        if is_standby(&decision) {
            self.caught_up(task);
        } else if is_behind
            && is_split
            // A Close is not worth a wait, nor is a Parse that may not be executed at all.
            && task.needs.statements > 0
            && terms.wait_for_standby.is_zero()
            && let Some(until) = self.catches_up_until(task)
        {
            return Choice::WaitForStandby(until);
        }
        if wants_standby {
            if !has_primary {
                terms.no_standby = NoStandby::Error;
            }
            match self.without_standby(task, &terms) {
                WithoutStandby::Primary => {}
                WithoutStandby::Wait(until) => return Choice::WaitForStandby(until),
                WithoutStandby::Refuse => return Choice::Refuse,
            }
        }
        self.place(task, need, &decision, &snapshot)
    }

    /// What the policy's answer comes to.
    fn place(
        &self,
        task: &mut Task<'_>,
        need: Need,
        decision: &route::Decision,
        snapshot: &Snapshot,
    ) -> Choice {
        let (node, side) = match decision.destination {
            Destination::Primary(node) if self.shard.is_paused() || self.shard.is_doubted(node, snapshot) => {
                return Choice::Hold;
            }
            Destination::Primary(node) if task.not_again_at.contains(&node) => return Choice::Unknown,
            Destination::Primary(node) => (node, Side::Primary),
            // It may have been promoted, which its next answer will tell.
            Destination::Standby(node)
                if task.not_again_at.contains(&node)
                    && !snapshot.was_in_recovery_behind(node, task.sent_at) =>
            {
                return Choice::Hold;
            }
            Destination::Standby(node) => (node, Side::Standby),
            Destination::Hold => return Choice::Hold,
        };
        if !self.may_run_at(task, (node, side), need) {
            return Choice::PassOn;
        }
        self.shard.counters.routed(side, decision.reason as usize).inc();
        Choice::Node(node, side, snapshot.epoch)
    }

    /// When another session last wrote, where reads of now are to see that.
    fn others_wrote_at(&self, now: Instant) -> Option<Instant> {
        let recent = self.shard.shared.settings.routing.recent_writes;
        let wrote_at = if recent.is_zero() { None } else { self.group.hidden.last_write() };
        wrote_at.filter(|at| now.saturating_duration_since(*at) < recent)
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
            asks: Asks::Role,
            timeout: self.shard.pools.settings().connect_timeout,
        })
    }

    /// Takes the lease, unless the picture changed while it was being got.
    fn accept_lease(
        &mut self,
        mut lease: Lease,
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
                Side::Standby => {
                    let view = snapshot.node(node);
                    snapshot.epoch == epoch && view.is_some_and(|view| view.readers == Readers::MayStay)
                }
            }
        };
        // A pause that began while a connection was waited for holds whoever waited, too.
        if !still || (side == Side::Primary && self.shard.is_paused()) {
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
        self.control.hold_server(&server.link, &server.cancel_key);
        // Nothing of the unit has been sent: a cancel request waits until then.
        self.control.begin_pending.set(true);
        self.shard.counters.leases.inc();
        self.attached = Some(Attached::new(lease, node, side));
        Accepted::Taken
    }

    /// Closes the attached server connection.
    pub(super) fn detach(&mut self) {
        self.attached = None;
        *self.control.runs_at.borrow_mut() = None;
    }
}
