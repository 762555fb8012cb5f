//! A shard's pools: how a session gets a connection, and who gets it after that.
//!
//! Invariant: nobody overtakes. Who comes while somebody waits at the same limits waits behind him, and what becomes free goes
//! to whoever has waited longest, on whatever shard (within `shared::GRAIN` across pools). Must not know: sessions, routing,
//! SQL.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::group::PoolGroup;
use super::handover::{assemble, take_apart};
use super::lease::{Lease, LeaseError};
use super::limits::Settings;
use super::shared::{Claimant, Limit, Mail, PoolKey, PoolShared, Registry};
use super::state::PoolState;
use super::wait::{Grant, Room, Waiting};
use crate::auth::{RoleOid, Secret};
use crate::backend::connection::Link;
use crate::backend::login::LoginError;
use crate::backend::{ConnectError, Endpoint, Server};
use crate::telemetry::metrics::ShardCounters;
use crate::topology::model::{Epoch, NodeId};
use crate::wire::sqlstate;

/// Groups that a shard remembers before it looks for those that no session has any more.
const GROUPS_SWEEP_AT: usize = 1024;

/// After a server has said that it has no free slot it is not asked again for so long.
const NO_SLOT_PAUSE: Duration = Duration::from_millis(20);

/// What makes a connection need nothing before a session's statement.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Identity of the session's settings.
    pub settings_id: u64,
    /// The session's number over all shards.
    pub session: u64,
    /// The role that its user was at its login, if known. Connections of another are not for it.
    pub role: Option<RoleOid>,
    /// What matters most.
    pub wanted: Wanted,
}

/// What matters most of an idle connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// That it needs no preparation.
    Ready,
    /// That this session was the last to write there: what sequences gave last is its own.
    OwnWrites,
}

impl Fit {
    fn is_met_by(self, server: &Server) -> bool {
        if self.wanted == Wanted::OwnWrites {
            return server.last_writer == Some(self.session);
        }
        server.applied.id == self.settings_id && server.left_by.is_none_or(|left_by| left_by == self.session)
    }
}

/// One pool on one shard.
#[derive(Debug)]
pub struct Pool {
    pub(super) shared: Arc<PoolShared>,
    pub(super) state: RefCell<PoolState<Box<Server>, oneshot::Sender<Grant>>>,
    /// From when on connections may be opened to be kept ready. `None`: at any time.
    pub(super) may_keep_from: Cell<Option<Instant>>,
}

impl Pool {
    /// Whether a connection is too old to be kept.
    pub(super) fn is_outlived(&self, server: &Server, now: Instant) -> bool {
        let lifetime = self.shared.limits.server_lifetime;
        lifetime.is_zero() || now.saturating_duration_since(server.opened_at) > lifetime
    }

    /// Opened before what was known of its user became wrong.
    pub(super) fn is_outdated(&self, server: &Server) -> bool {
        server.generation != self.shared.generation()
    }

    /// Whether the session may have it.
    fn is_for(&self, server: &Server, session: Fit) -> bool {
        !self.is_outdated(server) && !RoleOid::differ(server.role, session.role)
    }
}

/// A shard's groups, by database and user; as long as a session has one.
type Groups = HashMap<(Arc<str>, Arc<str>), Weak<PoolGroup>>;

/// A shard's pools.
#[derive(Debug)]
pub struct Pools {
    pub(super) shard: usize,
    settings: Settings,
    registry: Arc<Registry>,
    pub(super) counters: Arc<ShardCounters>,
    by_key: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    groups: RefCell<Groups>,
    /// Every connection of this shard, leased or idle, for the fence. Those that are gone are swept out as it grows.
    links: RefCell<Vec<Weak<Link>>>,
    /// The epoch for which each node was last fenced, by `NodeId::index`: no connection of before it is let in any more.
    pub(super) fenced: RefCell<Vec<Epoch>>,
}

impl Pools {
    /// The pools of shard number `shard`.
    pub fn new(
        shard: usize,
        settings: Settings,
        registry: Arc<Registry>,
        counters: Arc<ShardCounters>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shard,
            settings,
            registry,
            counters,
            by_key: RefCell::default(),
            groups: RefCell::default(),
            links: RefCell::default(),
            fenced: RefCell::default(),
        })
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The pool for `key`.
    pub fn pool(&self, key: &PoolKey) -> Rc<Pool> {
        if let Some(pool) = self.by_key.borrow().get(key) {
            return Rc::clone(pool);
        }
        let pool = Rc::new(Pool {
            shared: self.registry.shared(key, &self.settings),
            state: RefCell::default(),
            may_keep_from: Cell::default(),
        });
        self.by_key.borrow_mut().insert(key.clone(), Rc::clone(&pool));
        pool
    }

    /// The pools of this database and user on all nodes.
    pub fn group(&self, database: &Arc<str>, user: &Arc<str>) -> Rc<PoolGroup> {
        let mut groups = self.groups.borrow_mut();
        let key = (Arc::clone(database), Arc::clone(user));
        if let Some(group) = groups.get(&key).and_then(Weak::upgrade) {
            return group;
        }
        if groups.len() >= GROUPS_SWEEP_AT {
            groups.retain(|_, group| group.strong_count() > 0);
        }
        let limits = self.settings.limits_of(database, user);
        let group = Rc::new(PoolGroup::new(database, user, limits, self.registry.hidden(database)));
        groups.insert(key, Rc::downgrade(&group));
        group
    }

    pub(super) fn live_groups(&self) -> Vec<Rc<PoolGroup>> {
        self.groups.borrow().values().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn live_links(&self) -> Vec<Rc<Link>> {
        self.links.borrow().iter().filter_map(Weak::upgrade).collect()
    }

    pub(super) fn pools_here(&self, of: impl Fn(&PoolShared) -> bool) -> Vec<Rc<Pool>> {
        self.by_key.borrow().values().filter(|pool| of(&pool.shared)).map(Rc::clone).collect()
    }

    /// The group's pool on a node. No look-up by name after the first time.
    pub fn pool_of(&self, group: &PoolGroup, node: NodeId) -> Rc<Pool> {
        let mut by_node = group.by_node.borrow_mut();
        if let Some(Some(pool)) = by_node.get(node.index()) {
            return Rc::clone(pool);
        }
        let pool = self.pool(&PoolKey {
            node,
            database: Arc::clone(group.database()),
            user: Arc::clone(group.user()),
        });
        if by_node.len() <= node.index() {
            by_node.resize(node.index() + 1, None);
        }
        if let Some(place) = by_node.get_mut(node.index()) {
            *place = Some(Rc::clone(&pool));
        }
        pool
    }

    /// An idle connection, if there is one that is alive and of the session's role: best one that fits the session. No
    /// system call, no lock.
    pub fn try_claim(self: &Rc<Self>, pool: &Rc<Pool>, session: Fit) -> Option<Lease> {
        loop {
            let server = pool.state.borrow_mut().claim_fitting(|server| session.is_met_by(server))?;
            // Seen late elsewhere it makes a shard ask in vain, no more: the one it waits for comes when it is given back.
            self.set_idle(pool, Ordering::Relaxed);
            if server.is_quiet() && pool.is_for(&server, session) {
                return Some(self.leased(pool, server));
            }
            self.close(pool, &server);
        }
    }

    /// A connection: idle, new, or handed over; waits at most `query_wait_timeout`. Cancel-safe.
    pub async fn lease(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        endpoint: &Endpoint,
        session: Fit,
    ) -> Result<Lease, LeaseError> {
        if let Some(lease) = self.try_claim(pool, session) {
            return Ok(lease);
        }
        if pool.shared.nobody_waits() && pool.shared.take(Duration::ZERO).is_ok() {
            return self.open(Room::new(self, pool), endpoint, session.role).await;
        }
        let mut waiting = Waiting::enter(self, pool);
        // There may be room after all, and what was just counted and given up again was seen by others.
        self.let_open(pool);
        let mut obstacle = pool.shared.obstacle(Duration::ZERO).unwrap_or(Limit::Pool);
        if waiting.granted.is_empty() {
            self.counters.limits_reached.at(obstacle as usize).inc();
            self.look_for_help(pool);
        }
        let limits = &pool.shared.limits;
        let began = tokio::time::Instant::now();
        let mut reserve_at = limits.reserve_timeout.filter(|_| limits.reserve_size > 0).map(|it| began + it);
        let deadline = limits.query_wait_timeout.map(|timeout| began + timeout);
        loop {
            let until = reserve_at.into_iter().chain(deadline).min();
            let granted = match until {
                None => Ok((&mut waiting.granted).await),
                Some(until) => tokio::time::timeout_at(until, &mut waiting.granted).await,
            };
            match granted {
                Ok(Ok(Grant::Server(server))) if pool.is_for(&server, session) => {
                    return Ok(self.leased(pool, server));
                }
                // It is nobody's by now. What it leaves is for whoever waits; so rare that this session may stand in line again.
                Ok(Ok(Grant::Server(server))) => {
                    drop(waiting);
                    self.close(pool, &server);
                    return Box::pin(self.lease(pool, endpoint, session)).await;
                }
                Ok(Ok(Grant::Room(room))) => {
                    drop(waiting);
                    return self.open(room, endpoint, session.role).await;
                }
                Ok(Err(_)) => return Err(LeaseError::Fenced),
                Err(_) if reserve_at.is_some_and(|at| deadline.is_none_or(|end| at < end)) => {
                    reserve_at = None;
                    let waited = began.elapsed();
                    self.let_open(pool);
                    obstacle = pool.shared.obstacle(waited).unwrap_or(obstacle);
                    if waiting.granted.is_empty() && obstacle != Limit::Pool {
                        self.look_for_help(pool);
                    }
                }
                Err(_) => {
                    obstacle = pool.shared.obstacle(began.elapsed()).unwrap_or(obstacle);
                    return Err(LeaseError::TimedOut(obstacle));
                }
            }
        }
    }

    /// Opens a connection, for a session of this role if it is known.
    pub(super) async fn open(
        self: &Rc<Self>,
        room: Room,
        endpoint: &Endpoint,
        role: Option<RoleOid>,
    ) -> Result<Lease, LeaseError> {
        let generation = room.generation();
        match self.registry.keys.log_in(endpoint).await {
            Ok(mut server) => {
                server.generation = generation;
                let taken = self.take_in(room, server, role);
                if matches!(taken, Err(LeaseError::OtherRole)) {
                    self.registry.keys.refused(&endpoint.user);
                }
                taken
            }
            Err(ConnectError::Login(error)) if too_many(&error) => {
                drop(room);
                // The server has no slot now: as if the pool were full. Look again soon, within the caller's wait.
                tokio::time::sleep(NO_SLOT_PAUSE).await;
                Err(LeaseError::Connect(ConnectError::Login(error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Opens a connection that belongs to no pool and counts at none of their limits; the fence knows it. Cancel-safe.
    pub async fn open_apart(&self, endpoint: &Endpoint) -> Result<Box<Server>, ConnectError> {
        let server = self.registry.keys.log_in(endpoint).await?;
        if self.is_fenced(&server) {
            server.terminate();
            return Err(std::io::Error::other("the node was fenced meanwhile").into());
        }
        self.enlist(&server);
        Ok(server)
    }

    /// A client has just proved itself to be this user.
    pub fn learn_key(&self, user: &Arc<str>, secret: Secret<'static>) {
        self.registry.keys.learn(user, secret);
    }

    /// Asks a shard that has an idle connection of this pool for it. Where none has, and a limit of the database or user is in
    /// the way, an idle connection of another pool is closed for it. What is given back later comes by itself, because this
    /// shard is counted as waiting.
    fn look_for_help(self: &Rc<Self>, pool: &Pool) {
        let shared = &pool.shared;
        if let Some(shard) = shared.idle_beside(self.shard) {
            // A shard that has ended has nothing to give.
            let _ = self.registry.send(shard, Mail::Want { key: shared.key.clone(), shard: self.shard });
            return;
        }
        for tally in shared.full_tallies() {
            if self.evict_here(|other| other.is_under(tally)) {
                continue;
            }
            let idle = tally.pools().into_iter().find_map(|it| Some((it.idle_beside(self.shard)?, it)));
            if let Some((shard, other)) = idle {
                let _ = self.registry.send(shard, Mail::Evict { key: other.key.clone() });
            }
        }
    }

    /// Closes the connection that has been idle for longest, of these pools on this shard; `false` where there is none.
    fn evict_here(self: &Rc<Self>, of: impl Fn(&PoolShared) -> bool) -> bool {
        let pools = self.pools_here(of);
        let coldest = pools.iter().filter_map(|pool| {
            let since = pool.state.borrow().coldest().map(|server| server.idle_since)?;
            Some((since, pool))
        });
        let Some((_, pool)) = coldest.min_by_key(|(since, _)| *since) else { return false };
        let Some(server) = pool.state.borrow_mut().claim_coldest() else { return false };
        self.note_idle(pool);
        self.counters.server_connections_evicted.inc();
        server.terminate();
        self.closed(pool);
        true
    }

    /// Takes mail from another shard.
    pub fn on_mail(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Want { key, shard } => {
                let pool = self.pool(&key);
                let idle = pool.state.borrow_mut().claim();
                if let Some(server) = idle {
                    self.note_idle(&pool);
                    self.hand_over(&pool, *server, shard);
                }
            }
            Mail::Evict { key } => {
                // Unless there is room by now.
                if self.pool(&key).shared.full_tallies().next().is_some() {
                    self.evict_here(|pool| pool.key == key);
                }
            }
            Mail::Room { key } => self.let_open(&self.pool(&key)),
            Mail::Leave { database, done } => {
                self.leave_here(&database);
                drop(done);
            }
            Mail::Sweep => self.sweep(Instant::now()),
            Mail::Give { key, parts } => {
                let pool = self.pool(&key);
                match assemble(*parts, key.node) {
                    // Its prepared statements have the other shard's names: it forgets them before anybody gets it.
                    Ok(server) => {
                        self.enlist(&server);
                        if self.is_fenced(&server) {
                            crate::net::sever(&server.link.stream);
                        }
                        let lease = self.leased(&pool, server);
                        tokio::task::spawn_local(Rc::clone(self).receive(pool, lease));
                    }
                    Err(_) => {
                        pool.shared.sent_to(self.shard);
                        self.closed(&pool);
                        self.look_for_others(&pool);
                    }
                }
            }
        }
    }

    async fn receive(self: Rc<Self>, pool: Rc<Pool>, lease: Lease) {
        let lease = lease.reset(self.settings.connect_timeout).await;
        pool.shared.sent_to(self.shard);
        if let Some(lease) = lease {
            lease.release(Instant::now());
        }
        self.look_for_others(&pool);
    }

    /// While a connection was on its way no others were sent here: if it went elsewhere after all, whoever still waits asks for
    /// them.
    fn look_for_others(self: &Rc<Self>, pool: &Pool) {
        if pool.state.borrow().first_since_us().is_some() {
            self.look_for_help(pool);
        }
    }

    fn hand_over(self: &Rc<Self>, pool: &Rc<Pool>, server: Server, shard: usize) {
        let Some(parts) = take_apart(server) else {
            self.closed(pool);
            return;
        };
        self.counters.cross_shard_handovers.add(1);
        pool.shared.sends_to(shard);
        let mail = Mail::Give { key: pool.shared.key.clone(), parts: Box::new(parts) };
        if self.registry.send(shard, mail).is_err() {
            pool.shared.sent_to(shard);
            self.closed(pool);
        }
    }

    fn leased(self: &Rc<Self>, pool: &Rc<Pool>, server: Box<Server>) -> Lease {
        Lease::new(server, Rc::clone(pool), Rc::clone(self))
    }

    /// Notes a connection for the fence.
    pub(super) fn enlist(&self, server: &Server) {
        let mut links = self.links.borrow_mut();
        if links.len() == links.capacity() {
            links.retain(|link| link.strong_count() > 0);
        }
        links.push(Rc::downgrade(&server.link));
    }

    pub(super) fn give(self: &Rc<Self>, pool: &Rc<Pool>, server: Box<Server>) {
        let is_one_sessions = !server.defaults.pairs.is_empty();
        if is_one_sessions
            || self.is_fenced(&server)
            || pool.is_outlived(&server, server.idle_since)
            || pool.is_outdated(&server)
        {
            return self.close(pool, &server);
        }
        if !pool.shared.nobody_waits() {
            return self.pass_on(pool, server);
        }
        self.rest(pool, server);
        // A session may have begun to wait between the look above and the note: one of the two sees the other.
        if !pool.shared.nobody_waits() {
            let idle = pool.state.borrow_mut().claim();
            if let Some(server) = idle {
                self.note_idle(pool);
                self.pass_on(pool, server);
            }
        }
    }

    fn rest(&self, pool: &Pool, server: Box<Server>) {
        pool.state.borrow_mut().rest(server);
        self.note_idle(pool);
    }

    /// Gives a connection to whoever has waited longest for it.
    fn pass_on(self: &Rc<Self>, pool: &Rc<Pool>, mut server: Box<Server>) {
        loop {
            match pool.shared.who_gets(self.shard) {
                Claimant::Nobody => return self.rest(pool, server),
                Claimant::Of(other, _) if !Arc::ptr_eq(&other, &pool.shared) => {
                    self.counters.server_connections_evicted.inc();
                    server.terminate();
                    self.closed(pool);
                    return;
                }
                Claimant::Of(_, shard) if shard != self.shard => return self.hand_over(pool, *server, shard),
                Claimant::Of(..) => {
                    let waiter = pool.state.borrow_mut().next_waiter();
                    self.note_first(pool);
                    let Some(waiter) = waiter else { continue };
                    match waiter.send(Grant::Server(server)) {
                        Ok(()) => return,
                        // That waiter has just given up; the next one gets it.
                        Err(Grant::Server(back)) => server = back,
                        Err(Grant::Room(_)) => return,
                    }
                }
            }
        }
    }

    fn close(self: &Rc<Self>, pool: &Rc<Pool>, server: &Server) {
        server.terminate();
        self.closed(pool);
    }

    /// A connection is closed whose room another one is to have.
    pub(super) fn closed_for_another(&self) {
        self.counters.server_connections_closed.add(1);
    }

    pub(super) fn closed(self: &Rc<Self>, pool: &Rc<Pool>) {
        self.counters.server_connections_closed.add(1);
        self.make_room(pool);
    }

    pub(super) fn make_room(self: &Rc<Self>, pool: &Rc<Pool>) {
        pool.shared.give_back();
        if !pool.shared.nobody_waits() {
            self.let_open(pool);
        }
    }

    /// As long as there is room at this pool's limits, lets those open connections who have waited longest for room there.
    pub(super) fn let_open(self: &Rc<Self>, pool: &Rc<Pool>) {
        while let Claimant::Of(shared, shard) = pool.shared.who_may_open() {
            if shard != self.shard {
                // That shard goes on with this. One that has ended has no waiters.
                let _ = self.registry.send(shard, Mail::Room { key: shared.key.clone() });
                return;
            }
            self.grant_room(&self.pool(&shared.key));
        }
    }

    /// Grants the first who waits here for this pool room for a connection, if there still is room.
    fn grant_room(self: &Rc<Self>, pool: &Rc<Pool>) {
        let since_us = pool.state.borrow().first_since_us();
        let Some(since_us) = since_us else { return self.note_first(pool) };
        let shared = &pool.shared;
        let waited = Duration::from_micros(shared.now_us().saturating_sub(since_us));
        if shared.take(waited).is_err() {
            // Another shard was quicker.
            return;
        }
        if shared.open_count() > shared.limits.size {
            self.counters.reserve_connections.inc();
        }
        let room = Room::new(self, pool);
        let waiter = pool.state.borrow_mut().next_waiter();
        self.note_first(pool);
        if let Some(waiter) = waiter {
            // Who has just given up drops the room, and with it gives it back.
            let _ = waiter.send(Grant::Room(room));
        }
    }

    /// Since when the first one waits here, for all to see.
    pub(super) fn note_first(&self, pool: &Pool) {
        pool.shared.set_first(self.shard, pool.state.borrow().first_since_us());
    }

    /// What is idle now. The order with the look at those who wait matters: one of the two sides sees the other.
    pub(super) fn note_idle(&self, pool: &Pool) {
        self.set_idle(pool, Ordering::SeqCst);
    }

    fn set_idle(&self, pool: &Pool, order: Ordering) {
        pool.shared.set_idle(self.shard, pool.state.borrow().idle_count(), order);
    }
}

fn too_many(error: &LoginError) -> bool {
    matches!(error, LoginError::Refused { code: sqlstate::TOO_MANY_CONNECTIONS, .. })
}
