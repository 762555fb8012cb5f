//! A shard's pools, and what all shards share: the limits, and the mail by which connections are handed over.
//!
//! Invariant: `PoolShared::open` counts every open connection of its pool on all shards, leased, idle and being opened.
//! Must not know: sessions, routing, SQL.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::Settings;
use super::keys::LoginKeys;
use super::lease::{Lease, LeaseError};
use super::state::{Given, PoolState};
use crate::auth::{RoleOid, Secret, Users};
use crate::backend::connection::Link;
use crate::backend::login::LoginError;
use crate::backend::{self, ConnectError, Endpoint, Reported, Server, SettingValues};
use crate::telemetry::metrics::ShardCounters;
use crate::topology::model::{Epoch, NodeId};
use crate::wire::sqlstate;

/// Groups that a shard remembers before it looks for those that no session has any more.
const GROUPS_SWEEP_AT: usize = 1024;

/// What makes a pool.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoolKey {
    /// The node.
    pub node: NodeId,
    /// The database.
    pub database: Arc<str>,
    /// The user.
    pub user: Arc<str>,
}

/// What the shards share of one pool.
#[derive(Debug)]
pub struct PoolShared {
    open: AtomicUsize,
    /// How often what is known of its user became wrong. Connections opened before that are not used again.
    generation: AtomicU64,
    /// By shard: idle connections.
    idle: Box<[AtomicUsize]>,
    /// By shard: sessions that wait.
    waiting: Box<[AtomicUsize]>,
    /// All sessions that wait.
    waiting_total: AtomicUsize,
}

/// Mail from shard to shard.
#[derive(Debug)]
pub enum Mail {
    /// There may be room to open a connection.
    Retry {
        /// The pool.
        key: PoolKey,
    },
    /// A shard has waiters for this pool and may not open more; the receiver has an idle connection.
    Want {
        /// The pool.
        key: PoolKey,
        /// Who wants.
        shard: usize,
    },
    /// Connections to this database are to be closed where they are idle.
    Leave {
        /// The database.
        database: Arc<str>,
        /// Done when this is dropped.
        done: oneshot::Sender<()>,
    },
    /// A pool's generation has changed: idle connections may be outdated.
    Sweep,
    /// A connection handed over.
    Give {
        /// The pool.
        key: PoolKey,
        /// The connection, taken apart.
        parts: Box<Parts>,
    },
}

/// A server connection on its way to another shard. Its prepared statements are forgotten there; their names carry the
/// shard that made them, so they cannot be mistaken for others.
#[derive(Debug)]
pub struct Parts {
    stream: std::net::TcpStream,
    epoch: Epoch,
    cancel_key: backend::connection::CancelKey,
    in_hot_standby: bool,
    role: Option<RoleOid>,
    generation: u64,
    opened_at: Instant,
    reported: Vec<(String, String)>,
    left_by: Option<u64>,
    applied: SettingValues,
}

/// All pools' shared parts, and the shards' mailboxes.
#[derive(Debug)]
pub struct Registry {
    pools: Mutex<HashMap<PoolKey, Arc<PoolShared>>>,
    mailboxes: Vec<mpsc::UnboundedSender<Mail>>,
    keys: LoginKeys,
}

impl Registry {
    /// For this many shards; gives each shard's end of its mailbox.
    pub fn new(shards: usize, keys: LoginKeys) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<Mail>>) {
        // Unbounded by type; bounded in fact: one Want for each waiter, one Give for each Want.
        let (mailboxes, receivers) = (0..shards).map(|_| mpsc::unbounded_channel()).unzip();
        (Arc::new(Self { pools: Mutex::default(), mailboxes, keys }), receivers)
    }

    fn shared(&self, key: &PoolKey) -> Arc<PoolShared> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let shards = self.mailboxes.len();
        Arc::clone(pools.entry(key.clone()).or_insert_with(|| {
            Arc::new(PoolShared {
                open: AtomicUsize::new(0),
                generation: AtomicU64::new(0),
                idle: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
                waiting: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
                waiting_total: AtomicUsize::new(0),
            })
        }))
    }

    /// Outdates every connection of these users.
    fn outdate(&self, users: &Users) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, shared) in pools.iter().filter(|(key, _)| users.include(&key.user)) {
            shared.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn send(&self, shard: usize, mail: Mail) -> Result<(), Mail> {
        match self.mailboxes.get(shard) {
            Some(mailbox) => mailbox.send(mail).map_err(|error| error.0),
            None => Err(mail),
        }
    }
}

/// What makes a connection need nothing before a session's statement.
#[derive(Debug, Clone, Copy)]
pub struct Fit {
    /// Identity of the session's settings.
    pub settings_id: u64,
    /// The session's number over all shards.
    pub session: u64,
    /// The role that its user was at its login, if known. Connections of another are not for it.
    pub role: Option<RoleOid>,
}

impl Fit {
    fn is_met_by(self, server: &Server) -> bool {
        server.applied.id == self.settings_id && server.left_by.is_none_or(|left_by| left_by == self.session)
    }
}

/// What a waiter gets.
#[derive(Debug)]
enum Grant {
    Server(Box<Server>),
    /// There may be room to open one.
    Retry,
}

/// One pool on one shard.
#[derive(Debug)]
pub struct Pool {
    key: PoolKey,
    shared: Arc<PoolShared>,
    state: RefCell<PoolState<Box<Server>, oneshot::Sender<Grant>>>,
    /// Whose turn it is when sessions wait here and on other shards.
    next_goes_away: Cell<bool>,
}

impl Pool {
    /// Opened before what was known of its user became wrong.
    fn is_outdated(&self, server: &Server) -> bool {
        server.generation != self.shared.generation.load(Ordering::Relaxed)
    }

    /// Whether the session may have it.
    fn is_for(&self, server: &Server, session: Fit) -> bool {
        !self.is_outdated(server) && !RoleOid::differ(server.role, session.role)
    }
}

/// The pools of one (database, user), by node: what a session keeps, so that a lease costs no look-up by name.
#[derive(Debug)]
pub struct PoolGroup {
    database: Arc<str>,
    user: Arc<str>,
    by_node: RefCell<Vec<Option<Rc<Pool>>>>,
    /// Names of settings with a prefix that sessions of this group may make; the server does not list them.
    pub custom_settings: RefCell<CustomSettings>,
}

/// Names of settings with a prefix (`app.tenant`), as far as they were met in statements and in the bodies of functions.
#[derive(Debug, Default)]
pub struct CustomSettings {
    /// In lower case.
    pub names: BTreeSet<String>,
    /// When the bodies of functions were last looked through.
    pub looked_at: Option<Instant>,
}

impl PoolGroup {
    /// The database.
    pub fn database(&self) -> &Arc<str> {
        &self.database
    }

    /// The user.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }
}

/// A shard's groups, by database and user; as long as a session has one.
type Groups = HashMap<(Arc<str>, Arc<str>), Weak<PoolGroup>>;

/// A shard's pools.
#[derive(Debug)]
pub struct Pools {
    shard: usize,
    settings: Settings,
    registry: Arc<Registry>,
    counters: Arc<ShardCounters>,
    by_key: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    groups: RefCell<Groups>,
    /// Every connection of this shard, leased or idle, for the fence. Those that are gone are swept out as it grows.
    links: RefCell<Vec<Weak<Link>>>,
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
        })
    }

    /// The settings in force.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The pool for `key`.
    pub fn pool(&self, key: &PoolKey) -> Rc<Pool> {
        if let Some(pool) = self.by_key.borrow().get(key) {
            return Rc::clone(pool);
        }
        let pool = Rc::new(Pool {
            key: key.clone(),
            shared: self.registry.shared(key),
            state: RefCell::default(),
            next_goes_away: Cell::new(false),
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
        let group = Rc::new(PoolGroup {
            database: Arc::clone(database),
            user: Arc::clone(user),
            by_node: RefCell::default(),
            custom_settings: RefCell::default(),
        });
        groups.insert(key, Rc::downgrade(&group));
        group
    }

    /// The group's pool on a node. No look-up by name after the first time.
    pub fn pool_of(&self, group: &PoolGroup, node: NodeId) -> Rc<Pool> {
        let mut by_node = group.by_node.borrow_mut();
        if let Some(Some(pool)) = by_node.get(node.index()) {
            return Rc::clone(pool);
        }
        let pool = self.pool(&PoolKey {
            node,
            database: Arc::clone(&group.database),
            user: Arc::clone(&group.user),
        });
        if by_node.len() <= node.index() {
            by_node.resize(node.index() + 1, None);
        }
        if let Some(place) = by_node.get_mut(node.index()) {
            *place = Some(Rc::clone(&pool));
        }
        pool
    }

    /// An idle connection, if there is one that is alive and of the session's role: best one that fits the session. No system
    /// call, no lock.
    pub fn try_claim(self: &Rc<Self>, pool: &Rc<Pool>, session: Fit) -> Option<Lease> {
        loop {
            let server = pool.state.borrow_mut().claim_fitting(|server| session.is_met_by(server))?;
            self.note_claimed(pool);
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
        let deadline = tokio::time::Instant::now() + self.settings.query_wait_timeout;
        loop {
            if let Some(lease) = self.try_claim(pool, session) {
                return Ok(lease);
            }
            if self.may_open(pool) {
                return self.open(pool, endpoint, session.role).await;
            }
            let (grant, granted) = oneshot::channel();
            let mut waiting = Waiting::enter(self, pool, granted);
            pool.state.borrow_mut().wait(grant);
            if pool.shared.open.load(Ordering::SeqCst) < self.settings.size {
                // Room was made between the look at the limit and the queueing, when nobody was there to be told.
                continue;
            }
            self.ask_others(pool);
            match tokio::time::timeout_at(deadline, &mut waiting.granted).await {
                Err(_) => return Err(LeaseError::TimedOut),
                // The sender is only dropped when the node is fenced.
                Ok(Err(_)) => return Err(LeaseError::Fenced),
                Ok(Ok(Grant::Retry)) => {}
                Ok(Ok(Grant::Server(server))) if pool.is_for(&server, session) => {
                    return Ok(self.leased(pool, server));
                }
                Ok(Ok(Grant::Server(server))) => self.close(pool, &server),
            }
        }
    }

    async fn open(
        self: &Rc<Self>,
        pool: &Rc<Pool>,
        endpoint: &Endpoint,
        role: Option<RoleOid>,
    ) -> Result<Lease, LeaseError> {
        let room = Room { pools: self, pool, used: false };
        let generation = pool.shared.generation.load(Ordering::SeqCst);
        match self.registry.keys.log_in(endpoint).await {
            Ok(server) if RoleOid::differ(server.role, role) => {
                server.terminate();
                self.registry.keys.refused(&endpoint.user);
                Err(LeaseError::OtherRole)
            }
            Ok(mut server) => {
                server.generation = generation;
                self.counters.server_connections_opened.add(1);
                self.enlist(&server);
                Ok(room.fill(server))
            }
            Err(ConnectError::Login(error)) if too_many(&error) => {
                drop(room);
                // The server has no slot now: as if the pool were full. Look again soon, within the caller's wait.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(LeaseError::Connect(ConnectError::Login(error)))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// A client has just proved itself to be this user.
    pub fn learn_key(&self, user: &Arc<str>, secret: Secret<'static>) {
        self.registry.keys.learn(user, secret);
    }

    fn may_open(&self, pool: &Pool) -> bool {
        let limit = self.settings.size;
        pool.shared
            .open
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| (open < limit).then_some(open + 1))
            .is_ok()
    }

    /// Asks a shard that has an idle connection for it. Where none has, the next one given back on any shard comes here,
    /// because this shard is counted as waiting.
    fn ask_others(&self, pool: &Pool) {
        let idle_there = pool
            .shared
            .idle
            .iter()
            .enumerate()
            .find(|(shard, idle)| *shard != self.shard && idle.load(Ordering::SeqCst) > 0);
        if let Some((shard, _)) = idle_there {
            // A shard that has ended has nothing to give.
            let _ = self.registry.send(shard, Mail::Want { key: pool.key.clone(), shard: self.shard });
        }
    }

    /// Another shard on which sessions wait for this pool.
    fn waiting_elsewhere(&self, pool: &Pool) -> Option<usize> {
        if pool.shared.waiting_total.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let waiting = pool.shared.waiting.iter().enumerate();
        waiting
            .filter(|(shard, _)| *shard != self.shard)
            .find(|(_, count)| count.load(Ordering::SeqCst) > 0)
            .map(|it| it.0)
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
            Mail::Retry { key } => {
                self.wake_next(&self.pool(&key));
            }
            Mail::Leave { database, done } => {
                self.close_idle(|pool| *pool.database == *database, |_, _| true);
                drop(done);
            }
            Mail::Sweep => self.sweep(Instant::now()),
            Mail::Give { key, parts } => {
                let pool = self.pool(&key);
                match assemble(*parts, key.node) {
                    // Its prepared statements have the other shard's names: it forgets them before anybody gets it.
                    Ok(server) => {
                        self.enlist(&server);
                        let lease = self.leased(&pool, server);
                        tokio::task::spawn_local(lease.reset_and_release(self.settings.connect_timeout));
                    }
                    Err(_) => self.closed(&pool),
                }
            }
        }
    }

    fn hand_over(self: &Rc<Self>, pool: &Rc<Pool>, server: Server, shard: usize) {
        let Some(parts) = take_apart(server) else {
            self.closed(pool);
            return;
        };
        self.counters.cross_shard_handovers.add(1);
        if self.registry.send(shard, Mail::Give { key: pool.key.clone(), parts: Box::new(parts) }).is_err() {
            self.closed(pool);
        }
    }

    fn leased(self: &Rc<Self>, pool: &Rc<Pool>, server: Box<Server>) -> Lease {
        Lease::new(server, Rc::clone(pool), Rc::clone(self))
    }

    /// Notes a connection for the fence.
    fn enlist(&self, server: &Server) {
        let mut links = self.links.borrow_mut();
        if links.len() == links.capacity() {
            links.retain(|link| link.strong_count() > 0);
        }
        links.push(Rc::downgrade(&server.link));
    }

    pub(super) fn give(self: &Rc<Self>, pool: &Rc<Pool>, server: Box<Server>) {
        if pool.is_outdated(&server) {
            return self.close(pool, &server);
        }
        if let Some(shard) = self.waiting_elsewhere(pool) {
            let nobody_here = pool.state.borrow().waiting_count() == 0;
            if nobody_here || pool.next_goes_away.replace(!pool.next_goes_away.get()) {
                self.hand_over(pool, *server, shard);
                return;
            }
        }
        let mut server = server;
        loop {
            let given = pool.state.borrow_mut().give(server);
            match given {
                Given::Idle => break,
                Given::To(waiter, connection) => match waiter.send(Grant::Server(connection)) {
                    Ok(()) => break,
                    // That waiter has given up; the next one gets it.
                    Err(Grant::Server(connection)) => server = connection,
                    Err(Grant::Retry) => break,
                },
            }
        }
        self.note_idle(pool);
        // A session elsewhere may have begun to wait between the look above and the note: one of the two sees the other.
        if let Some(shard) = self.waiting_elsewhere(pool) {
            let idle = pool.state.borrow_mut().claim();
            if let Some(server) = idle {
                self.note_idle(pool);
                self.hand_over(pool, *server, shard);
            }
        }
    }

    fn close(&self, pool: &Pool, server: &Server) {
        server.terminate();
        self.closed(pool);
    }

    pub(super) fn closed(&self, pool: &Pool) {
        self.counters.server_connections_closed.add(1);
        self.make_room(pool);
    }

    fn make_room(&self, pool: &Pool) {
        pool.shared.open.fetch_sub(1, Ordering::SeqCst);
        // Whoever has given up waiting still stands in the queue for a moment: only a waiter that was reached counts.
        if self.wake_next(pool) {
            return;
        }
        if let Some(shard) = self.waiting_elsewhere(pool) {
            // A shard that has ended has no waiters.
            let _ = self.registry.send(shard, Mail::Retry { key: pool.key.clone() });
        }
    }

    /// Lets the first who waits look again; `false` when nobody does.
    fn wake_next(&self, pool: &Pool) -> bool {
        loop {
            let Some(waiter) = pool.state.borrow_mut().next_waiter() else { return false };
            if waiter.send(Grant::Retry).is_ok() {
                return true;
            }
        }
    }

    /// One fewer is idle. Seen late elsewhere it makes a shard ask in vain, no more: the one it waits for comes when it is
    /// given back.
    fn note_claimed(&self, pool: &Pool) {
        if let Some(idle) = pool.shared.idle.get(self.shard) {
            idle.store(pool.state.borrow().idle_count(), Ordering::Relaxed);
        }
    }

    /// What is idle now. The order with the look at those who wait matters: one of the two sides sees the other.
    fn note_idle(&self, pool: &Pool) {
        if let Some(idle) = pool.shared.idle.get(self.shard) {
            idle.store(pool.state.borrow().idle_count(), Ordering::SeqCst);
        }
    }

    /// Closes every connection to `node` opened before `epoch`, leased ones too: their sessions see the end at once.
    pub fn fence(&self, node: NodeId, epoch: Epoch) {
        for link in self.links.borrow().iter().filter_map(Weak::upgrade) {
            if link.node == node && link.epoch.get() < epoch {
                crate::net::sever(&link.stream);
            }
        }
        self.close_idle(|key| key.node == node, |_, server| server.link.epoch.get() < epoch);
    }

    /// Closes idle connections that are too old, unused for too long, outdated, or closed by the server.
    pub fn sweep(&self, now: Instant) {
        let (lifetime, idle) = (self.settings.server_lifetime, self.settings.server_idle_timeout);
        self.close_idle(
            |_| true,
            |pool, server| {
                pool.is_outdated(server)
                    || now.saturating_duration_since(server.opened_at) > lifetime
                    || now.saturating_duration_since(server.idle_since) > idle
                    || !server.is_quiet()
            },
        );
    }

    /// Closes all idle connections to a database, on every node and shard: DROP DATABASE and kin fail while anybody else is
    /// connected to it. Cancel-safe.
    pub async fn leave_database(&self, database: &Arc<str>) {
        self.close_idle(|pool| *pool.database == **database, |_, _| true);
        for shard in (0..self.registry.mailboxes.len()).filter(|shard| *shard != self.shard) {
            let (done, closed) = oneshot::channel();
            if self.registry.send(shard, Mail::Leave { database: Arc::clone(database), done }).is_ok() {
                // The other end is dropped when it is done, and when the shard ends.
                let _ = closed.await;
            }
        }
    }

    /// No connection of these users is used again, idle or leased, on any node or shard: their roles have been created, altered or
    /// dropped.
    pub fn outdate(&self, users: &Users) {
        self.registry.outdate(users);
        self.sweep(Instant::now());
        for shard in (0..self.registry.mailboxes.len()).filter(|shard| *shard != self.shard) {
            // A shard that has ended has none.
            let _ = self.registry.send(shard, Mail::Sweep);
        }
    }

    /// Databases to which there are pools, on this shard or another.
    pub fn databases(&self) -> Vec<Arc<str>> {
        let pools = self.registry.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut databases: Vec<Arc<str>> = pools.keys().map(|key| Arc::clone(&key.database)).collect();
        databases.sort();
        databases.dedup();
        databases
    }

    fn close_idle(&self, of: impl Fn(&PoolKey) -> bool, mut leave: impl FnMut(&Pool, &mut Server) -> bool) {
        let pools: Vec<Rc<Pool>> =
            self.by_key.borrow().iter().filter(|(key, _)| of(key)).map(|(_, pool)| Rc::clone(pool)).collect();
        for pool in pools {
            let gone = pool.state.borrow_mut().remove_idle(|server| leave(&pool, server));
            for server in gone {
                server.terminate();
                self.closed(&pool);
            }
            self.note_idle(&pool);
        }
    }

    /// Idle connections on this shard.
    pub fn idle_count(&self) -> usize {
        self.by_key.borrow().values().map(|pool| pool.state.borrow().idle_count()).sum()
    }
}

/// A place in the queue. Dropped with a connection in it (the session was cancelled just then), it passes that on.
struct Waiting<'a> {
    pools: &'a Rc<Pools>,
    pool: &'a Rc<Pool>,
    granted: oneshot::Receiver<Grant>,
}

impl<'a> Waiting<'a> {
    fn enter(pools: &'a Rc<Pools>, pool: &'a Rc<Pool>, granted: oneshot::Receiver<Grant>) -> Self {
        let waiting = Self { pools, pool, granted };
        waiting.count(|count| {
            count.fetch_add(1, Ordering::SeqCst);
        });
        waiting
    }

    fn count(&self, change: impl Fn(&AtomicUsize)) {
        let shared = &self.pool.shared;
        if let Some(here) = shared.waiting.get(self.pools.shard) {
            change(here);
        }
        change(&shared.waiting_total);
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.count(|count| {
            count.fetch_sub(1, Ordering::SeqCst);
        });
        self.granted.close();
        match self.granted.try_recv() {
            Ok(Grant::Server(server)) => self.pools.give(self.pool, server),
            Ok(Grant::Retry) => {
                self.pools.wake_next(self.pool);
            }
            Err(_) => {}
        }
    }
}

/// Room for one connection, taken from the limit; given back unless filled.
struct Room<'a> {
    pools: &'a Rc<Pools>,
    pool: &'a Rc<Pool>,
    used: bool,
}

impl Room<'_> {
    fn fill(mut self, server: Box<Server>) -> Lease {
        self.used = true;
        self.pools.leased(self.pool, server)
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if !self.used {
            self.pools.make_room(self.pool);
        }
    }
}

fn too_many(error: &LoginError) -> bool {
    matches!(error, LoginError::Refused { code: sqlstate::TOO_MANY_CONNECTIONS, .. })
}

fn take_apart(server: Server) -> Option<Parts> {
    let link = Rc::try_unwrap(server.link).ok()?;
    Some(Parts {
        stream: link.stream.into_std().ok()?,
        epoch: link.epoch.get(),
        cancel_key: (*server.cancel_key).clone(),
        in_hot_standby: server.in_hot_standby,
        role: server.role,
        generation: server.generation,
        opened_at: server.opened_at,
        reported: server.reported.pairs().to_vec(),
        left_by: server.left_by,
        applied: (*server.applied).clone(),
    })
}

fn assemble(parts: Parts, node: NodeId) -> std::io::Result<Box<Server>> {
    let stream = TcpStream::from_std(parts.stream)?;
    Ok(Box::new(Server {
        link: Rc::new(Link { stream, node, epoch: Cell::new(parts.epoch) }),
        cancel_key: Rc::new(parts.cancel_key),
        in_hot_standby: parts.in_hot_standby,
        role: parts.role,
        generation: parts.generation,
        opened_at: parts.opened_at,
        reported: Reported::new(parts.reported),
        left_by: parts.left_by,
        idle_since: Instant::now(),
        carried: backend::connection::Carried::default(),
        applied: Rc::new(parts.applied),
    }))
}
