//! A shard's pools, and what all shards share: the limits, and the mail by which connections are handed over.
//!
//! Invariant: `PoolShared::open` counts every open connection of its pool on all shards, leased, idle and being opened.
//! Must not know: sessions, routing, SQL.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use super::Settings;
use super::lease::{Lease, LeaseError};
use super::state::{Given, PoolState};
use crate::backend::{self, ConnectError, Endpoint, Server};
use crate::telemetry::metrics::ShardCounters;
use crate::topology::model::{Epoch, NodeId};

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
    idle: Box<[AtomicUsize]>,
    wanted: AtomicUsize,
}

/// Mail from shard to shard.
#[derive(Debug)]
pub enum Mail {
    /// A shard has waiters for this pool and may not open more.
    Want {
        /// The pool.
        key: PoolKey,
        /// Who wants.
        shard: usize,
    },
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
    opened_at: Instant,
    settings: u64,
    applied: Vec<String>,
}

/// All pools' shared parts, and the shards' mailboxes.
#[derive(Debug)]
pub struct Registry {
    pools: Mutex<HashMap<PoolKey, Arc<PoolShared>>>,
    mailboxes: Vec<mpsc::UnboundedSender<Mail>>,
}

impl Registry {
    /// For this many shards; gives each shard's end of its mailbox.
    pub fn new(shards: usize) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<Mail>>) {
        // Unbounded by type; bounded in fact: one Want for each waiter, one Give for each Want.
        let (mailboxes, receivers) = (0..shards).map(|_| mpsc::unbounded_channel()).unzip();
        (Arc::new(Self { pools: Mutex::default(), mailboxes }), receivers)
    }

    fn shared(&self, key: &PoolKey) -> Arc<PoolShared> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let shards = self.mailboxes.len();
        Arc::clone(pools.entry(key.clone()).or_insert_with(|| {
            Arc::new(PoolShared {
                open: AtomicUsize::new(0),
                idle: (0..shards).map(|_| AtomicUsize::new(0)).collect(),
                wanted: AtomicUsize::new(0),
            })
        }))
    }

    fn send(&self, shard: usize, mail: Mail) -> Result<(), Mail> {
        match self.mailboxes.get(shard) {
            Some(mailbox) => mailbox.send(mail).map_err(|error| error.0),
            None => Err(mail),
        }
    }
}

/// What a waiter gets.
#[derive(Debug)]
enum Grant {
    Server(Server),
    /// There may be room to open one.
    Retry,
}

/// One pool on one shard.
#[derive(Debug)]
pub struct Pool {
    key: PoolKey,
    shared: Arc<PoolShared>,
    state: RefCell<PoolState<Server, oneshot::Sender<Grant>>>,
    /// Shards to which the next connections given back go.
    owed: RefCell<Vec<usize>>,
}

/// A shard's pools.
#[derive(Debug)]
pub struct Pools {
    shard: usize,
    settings: Settings,
    registry: Arc<Registry>,
    counters: Arc<ShardCounters>,
    by_key: RefCell<HashMap<PoolKey, Rc<Pool>>>,
    leased: RefCell<HashMap<u64, (NodeId, Epoch, Weak<TcpStream>)>>,
    next_live: Cell<u64>,
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
            leased: RefCell::default(),
            next_live: Cell::new(0),
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
            owed: RefCell::default(),
        });
        self.by_key.borrow_mut().insert(key.clone(), Rc::clone(&pool));
        pool
    }

    /// An idle connection, if there is one that is fit. No system call, no lock.
    pub fn try_claim(self: &Rc<Self>, pool: &Rc<Pool>) -> Option<Lease> {
        loop {
            let server = pool.state.borrow_mut().claim()?;
            self.note_idle(pool);
            if server.is_quiet() {
                return Some(self.leased(pool, server));
            }
            self.closed(pool);
        }
    }

    /// A connection: idle, new, or handed over; waits at most `query_wait_timeout`. Cancel-safe.
    pub async fn lease(self: &Rc<Self>, pool: &Rc<Pool>, endpoint: &Endpoint) -> Result<Lease, LeaseError> {
        let deadline = tokio::time::Instant::now() + self.settings.query_wait_timeout;
        loop {
            if let Some(lease) = self.try_claim(pool) {
                return Ok(lease);
            }
            if self.may_open(pool) {
                return self.open(pool, endpoint).await;
            }
            let (grant, granted) = oneshot::channel();
            pool.state.borrow_mut().wait(grant);
            self.ask_others(pool);
            let mut waiting = Waiting { pools: self, pool, granted };
            match tokio::time::timeout_at(deadline, &mut waiting.granted).await {
                Err(_) => return Err(LeaseError::TimedOut),
                // The sender is only dropped when the node is fenced.
                Ok(Err(_)) => return Err(LeaseError::Fenced),
                Ok(Ok(Grant::Retry)) => {}
                Ok(Ok(Grant::Server(server))) => return Ok(self.leased(pool, server)),
            }
        }
    }

    async fn open(self: &Rc<Self>, pool: &Rc<Pool>, endpoint: &Endpoint) -> Result<Lease, LeaseError> {
        let room = Room { pools: self, pool, used: false };
        let mut random = [0u8; 18];
        getrandom::fill(&mut random)
            .map_err(|error| ConnectError::Io(std::io::Error::other(error.to_string())))?;
        match backend::open(endpoint.clone(), crate::auth::nonce_from(random)).await {
            Ok((server, _)) => {
                self.counters.server_connections_opened.add(1);
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

    fn may_open(&self, pool: &Pool) -> bool {
        let limit = self.settings.size;
        pool.shared
            .open
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |open| (open < limit).then_some(open + 1))
            .is_ok()
    }

    fn ask_others(&self, pool: &Pool) {
        pool.shared.wanted.fetch_add(1, Ordering::AcqRel);
        let shards = pool.shared.idle.len();
        let idle_there = (0..shards)
            .filter(|&shard| shard != self.shard)
            .find(|&shard| pool.shared.idle.get(shard).is_some_and(|idle| idle.load(Ordering::Acquire) > 0));
        for shard in (0..shards).filter(|&shard| shard != self.shard) {
            if idle_there.is_none_or(|there| there == shard) {
                // A shard that has ended has nothing to give.
                let _ = self.registry.send(shard, Mail::Want { key: pool.key.clone(), shard: self.shard });
            }
        }
    }

    /// Takes mail from another shard.
    pub fn on_mail(self: &Rc<Self>, mail: Mail) {
        match mail {
            Mail::Want { key, shard } => {
                let pool = self.pool(&key);
                let idle = pool.state.borrow_mut().claim();
                match idle {
                    Some(server) => {
                        self.note_idle(&pool);
                        self.hand_over(&pool, server, shard);
                    }
                    None => pool.owed.borrow_mut().push(shard),
                }
            }
            Mail::Give { key, parts } => {
                let pool = self.pool(&key);
                match assemble(*parts, key.node) {
                    Ok(server) => self.give(&pool, server),
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

    fn leased(self: &Rc<Self>, pool: &Rc<Pool>, server: Server) -> Lease {
        let live = self.next_live.get();
        self.next_live.set(live + 1);
        self.leased.borrow_mut().insert(live, (server.node, server.epoch, Rc::downgrade(&server.stream)));
        Lease::new(server, Rc::clone(pool), Rc::clone(self), live)
    }

    pub(super) fn unregister(&self, live: u64) {
        self.leased.borrow_mut().remove(&live);
    }

    pub(super) fn give(self: &Rc<Self>, pool: &Rc<Pool>, server: Server) {
        if pool.state.borrow().waiting_count() == 0 {
            let owed = pool.owed.borrow_mut().pop();
            if let Some(shard) = owed {
                self.hand_over(pool, server, shard);
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
    }

    pub(super) fn closed(&self, pool: &Pool) {
        self.counters.server_connections_closed.add(1);
        self.make_room(pool);
    }

    fn make_room(&self, pool: &Pool) {
        pool.shared.open.fetch_sub(1, Ordering::AcqRel);
        self.wake_next(pool);
    }

    fn wake_next(&self, pool: &Pool) {
        while let Some(waiter) = pool.state.borrow_mut().next_waiter() {
            if waiter.send(Grant::Retry).is_ok() {
                break;
            }
        }
    }

    fn note_idle(&self, pool: &Pool) {
        if let Some(idle) = pool.shared.idle.get(self.shard) {
            idle.store(pool.state.borrow().idle_count(), Ordering::Release);
        }
    }

    /// Closes every connection to `node` opened before `epoch`, leased ones too: their sessions see the end at once.
    pub fn fence(&self, node: NodeId, epoch: Epoch) {
        for (at, opened, stream) in self.leased.borrow().values() {
            if let (true, Some(stream)) = (*at == node && *opened < epoch, stream.upgrade()) {
                crate::net::sever(&stream);
            }
        }
        self.close_idle(|server| server.node == node && server.epoch < epoch);
    }

    /// Closes idle connections that are too old, unused for too long, or closed by the server.
    pub fn sweep(&self, now: Instant) {
        let (lifetime, idle) = (self.settings.server_lifetime, self.settings.server_idle_timeout);
        self.close_idle(|server| {
            now.saturating_duration_since(server.opened_at) > lifetime
                || now.saturating_duration_since(server.idle_since) > idle
                || !server.is_quiet()
        });
    }

    fn close_idle(&self, mut leave: impl FnMut(&mut Server) -> bool) {
        let pools: Vec<Rc<Pool>> = self.by_key.borrow().values().cloned().collect();
        for pool in pools {
            let gone = pool.state.borrow_mut().remove_idle(&mut leave);
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

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.granted.close();
        match self.granted.try_recv() {
            Ok(Grant::Server(server)) => self.pools.give(self.pool, server),
            Ok(Grant::Retry) => self.pools.wake_next(self.pool),
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
    fn fill(mut self, server: Server) -> Lease {
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

fn too_many(error: &crate::backend::login::LoginError) -> bool {
    matches!(error, crate::backend::login::LoginError::Refused { code, .. }
        if *code == crate::wire::sqlstate::TOO_MANY_CONNECTIONS)
}

fn take_apart(server: Server) -> Option<Parts> {
    let stream = Rc::try_unwrap(server.stream).ok()?.into_std().ok()?;
    Some(Parts {
        stream,
        epoch: server.epoch,
        cancel_key: (*server.cancel_key).clone(),
        in_hot_standby: server.in_hot_standby,
        opened_at: server.opened_at,
        settings: server.settings,
        applied: server.applied,
    })
}

fn assemble(parts: Parts, node: NodeId) -> std::io::Result<Server> {
    let stream = TcpStream::from_std(parts.stream)?;
    Ok(Server {
        stream: Rc::new(stream),
        node,
        epoch: parts.epoch,
        cancel_key: Rc::new(parts.cancel_key),
        in_hot_standby: parts.in_hot_standby,
        opened_at: parts.opened_at,
        idle_since: Instant::now(),
        carried: backend::connection::Carried::default(),
        settings: parts.settings,
        applied: parts.applied,
    })
}
