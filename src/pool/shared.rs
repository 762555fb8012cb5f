//! What the shards share of the pools: how many connections are open and may be, who is idle and who waits where, and the
//! mail by which they help each other.
//!
//! Invariant: `open` counts every open connection on all shards, leased, idle and being opened, and is counted before one is
//! opened: no burst goes beyond a limit. Whoever frees something looks for waiters after that, whoever waits looks for what
//! is free after saying so: one of the two sees the other. Locks are taken only when a pool is met for the first time, and
//! where somebody waits at a limit of a database or user. Must not know: connections, sessions.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::handover::Parts;
use super::hidden::Hidden;
use super::keys::LoginKeys;
use super::limits::{Limits, Settings};
use crate::classify::{LessonReport, SteeredReport};
use crate::topology::model::NodeId;

/// A connection given back goes to a session of its own pool, unless one of another pool that it could make room for has been
/// waiting for so much longer: opening and closing connections by turns would cost the servers more than fairness to the
/// millisecond is worth.
const GRAIN: Duration = Duration::from_millis(50);

/// Nobody waits.
const NOBODY: u64 = u64::MAX;

/// Of so many databases it is remembered what their statements do, before those without sessions are forgotten.
const HIDDEN_SWEEP_AT: usize = 1024;

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

/// A limit of server connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Limit {
    /// `size`, and the reserve as far as it may be used.
    Pool,
    /// `max_db_connections`
    Database,
    /// `max_user_connections`
    User,
}

impl Limit {
    /// All, in the order of their discriminants.
    pub const ALL: [Self; 3] = [Self::Pool, Self::Database, Self::User];

    /// Its key, which is its label in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pool => "size",
            Self::Database => "max_db_connections",
            Self::User => "max_user_connections",
        }
    }

    /// What there was to wait for.
    pub fn cause(self) -> &'static str {
        match self {
            Self::Pool => "All connections of the pool were busy (pool.size)",
            Self::Database => {
                "As many connections to the database were busy as are allowed (pool.max_db_connections)"
            }
            Self::User => {
                "As many connections of the user were busy as are allowed (pool.max_user_connections)"
            }
        }
    }
}

/// Connections of all pools that one further limit holds for: those of a (node, database) or of a (node, user).
#[derive(Debug)]
pub(super) struct Tally {
    most: usize,
    open: AtomicUsize,
    /// Sessions that wait for a connection of these pools.
    waiting: AtomicUsize,
    pools: Mutex<Vec<Weak<PoolShared>>>,
}

impl Tally {
    fn has_room(&self) -> bool {
        self.open.load(Ordering::SeqCst) < self.most
    }

    /// Its pools.
    pub(super) fn pools(&self) -> Vec<Arc<PoolShared>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.iter().filter_map(Weak::upgrade).collect()
    }
}

fn take_below(open: &AtomicUsize, most: usize) -> bool {
    open.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |open| (open < most).then_some(open + 1)).is_ok()
}

/// Whom something free goes to.
#[derive(Debug)]
pub(super) enum Claimant {
    /// The first who waits for this pool on that shard.
    Of(Arc<PoolShared>, usize),
    /// Nobody can use it.
    Nobody,
}

/// What the shards share of one pool.
#[derive(Debug)]
pub struct PoolShared {
    pub(super) key: PoolKey,
    pub(super) limits: Limits,
    open: AtomicUsize,
    /// How often what is known of its user became wrong. Connections opened before that are not used again.
    generation: AtomicU64,
    /// By shard: idle connections.
    idle: Box<[AtomicUsize]>,
    /// By shard: sessions that wait.
    waiting: Box<[AtomicUsize]>,
    /// By shard: since when the first of them has been waiting.
    first_since_us: Box<[AtomicU64]>,
    /// By shard: connections on their way to it.
    coming: Box<[AtomicUsize]>,
    waiting_total: AtomicUsize,
    /// When a shard last had a session of the pool's database and user.
    wanted_us: AtomicU64,
    /// Reads that are here, on the primary, because standbys cancel them.
    pub(super) moved_reads: Arc<AtomicUsize>,
    database: Option<Arc<Tally>>,
    user: Option<Arc<Tally>>,
    clock: Instant,
}

impl PoolShared {
    fn tallies(&self) -> impl Iterator<Item = (Limit, &Arc<Tally>)> {
        let database = self.database.as_ref().map(|tally| (Limit::Database, tally));
        database.into_iter().chain(self.user.as_ref().map(|tally| (Limit::User, tally)))
    }

    /// A connection of another generation is outdated.
    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    /// The clock by which waiters are ordered over all shards.
    pub(super) fn now_us(&self) -> u64 {
        u64::try_from(self.clock.elapsed().as_micros()).unwrap_or(u64::MAX - 1)
    }

    /// Most connections for a session that has waited for so long.
    fn most(&self, waited: Duration) -> usize {
        let reserve = self.limits.reserve_timeout.is_some_and(|timeout| waited >= timeout);
        self.limits.size + if reserve { self.limits.reserve_size } else { 0 }
    }

    /// Which limit leaves no room for one more. Counts nothing.
    pub(super) fn obstacle(&self, waited: Duration) -> Option<Limit> {
        if self.open.load(Ordering::SeqCst) >= self.most(waited) {
            return Some(Limit::Pool);
        }
        self.tallies().find(|(_, tally)| !tally.has_room()).map(|(limit, _)| limit)
    }

    /// Whether this limit holds for the pool.
    pub(super) fn is_under(&self, tally: &Arc<Tally>) -> bool {
        self.tallies().any(|(_, own)| Arc::ptr_eq(own, tally))
    }

    /// Tallies that leave no room for one more.
    pub(super) fn full_tallies(&self) -> impl Iterator<Item = &Arc<Tally>> {
        self.tallies().map(|(_, tally)| tally).filter(|tally| !tally.has_room())
    }

    /// Counts one more, if every limit has room for it.
    pub(super) fn take(&self, waited: Duration) -> Result<(), Limit> {
        self.take_up_to(self.most(waited))
    }

    /// The same with a limit of the pool's own that is given.
    pub(super) fn take_up_to(&self, most: usize) -> Result<(), Limit> {
        if !take_below(&self.open, most) {
            return Err(Limit::Pool);
        }
        let mut taken: Vec<&Tally> = Vec::new();
        for (limit, tally) in self.tallies() {
            if !take_below(&tally.open, tally.most) {
                for tally in taken {
                    tally.open.fetch_sub(1, Ordering::SeqCst);
                }
                self.open.fetch_sub(1, Ordering::SeqCst);
                return Err(limit);
            }
            taken.push(tally);
        }
        Ok(())
    }

    /// One has been closed, or was not opened after all.
    pub(super) fn give_back(&self) {
        for (_, tally) in self.tallies() {
            tally.open.fetch_sub(1, Ordering::SeqCst);
        }
        self.open.fetch_sub(1, Ordering::SeqCst);
    }

    /// Open connections.
    pub(super) fn open_count(&self) -> usize {
        self.open.load(Ordering::SeqCst)
    }

    /// A shard has a session of the pool's database and user now.
    pub(super) fn is_wanted_now(&self) {
        self.wanted_us.store(self.now_us().max(1), Ordering::Relaxed);
    }

    /// Whether any shard has had one since so long ago.
    pub(super) fn was_wanted_within(&self, age: Duration) -> bool {
        let at = self.wanted_us.load(Ordering::Relaxed);
        at > 0 && Duration::from_micros(self.now_us().saturating_sub(at)) <= age
    }

    /// A session begins (or ceases) to wait on a shard.
    pub(super) fn begin_waiting(&self, shard: usize) {
        for (_, tally) in self.tallies() {
            tally.waiting.fetch_add(1, Ordering::SeqCst);
        }
        self.waiting_total.fetch_add(1, Ordering::SeqCst);
        add(&self.waiting, shard);
    }

    pub(super) fn end_waiting(&self, shard: usize) {
        sub(&self.waiting, shard);
        self.waiting_total.fetch_sub(1, Ordering::SeqCst);
        for (_, tally) in self.tallies() {
            tally.waiting.fetch_sub(1, Ordering::SeqCst);
        }
    }

    /// Since when the first one waits on that shard.
    pub(super) fn set_first(&self, shard: usize, since_us: Option<u64>) {
        if let Some(first) = self.first_since_us.get(shard) {
            first.store(since_us.unwrap_or(NOBODY), Ordering::SeqCst);
        }
    }

    pub(super) fn set_idle(&self, shard: usize, count: usize, order: Ordering) {
        if let Some(idle) = self.idle.get(shard) {
            idle.store(count, order);
        }
    }

    /// A connection is on its way to that shard.
    pub(super) fn sends_to(&self, shard: usize) {
        add(&self.coming, shard);
    }

    /// It has arrived, or never will.
    pub(super) fn sent_to(&self, shard: usize) {
        sub(&self.coming, shard);
    }

    /// A shard other than this one that has an idle connection.
    pub(super) fn idle_beside(&self, shard: usize) -> Option<usize> {
        let mut idle = self.idle.iter().enumerate();
        idle.find(|(other, idle)| *other != shard && idle.load(Ordering::SeqCst) > 0).map(|(other, _)| other)
    }

    /// Nobody waits for this pool, nor at a limit that it is under. A few loads; the hot path's only look at the limits.
    pub(super) fn nobody_waits(&self) -> bool {
        self.waiting_total.load(Ordering::SeqCst) == 0
            && self.tallies().all(|(_, tally)| tally.waiting.load(Ordering::SeqCst) == 0)
    }

    /// The shard on which somebody has waited longest for this pool, and since when. A shard that has enough on its way is passed
    /// over, but for `own`.
    fn first_waiter(&self, own: usize) -> Option<(u64, usize)> {
        if self.waiting_total.load(Ordering::SeqCst) == 0 {
            return None;
        }
        let firsts = self.first_since_us.iter().enumerate();
        let firsts = firsts.map(|(shard, since)| (since.load(Ordering::SeqCst), shard));
        firsts
            .filter(|(since, shard)| {
                *since != NOBODY
                    && (*shard == own || count(&self.waiting, *shard) > count(&self.coming, *shard))
            })
            .min()
    }

    /// Who is to open a connection: of those for whom there is room now, the one who has waited longest.
    pub(super) fn who_may_open(self: &Arc<Self>) -> Claimant {
        let now_us = self.now_us();
        let candidate = |pool: &Arc<Self>| {
            let (since, shard) = pool.first_opener()?;
            let waited = Duration::from_micros(now_us.saturating_sub(since));
            pool.obstacle(waited).is_none().then(|| (since, Arc::clone(pool), shard))
        };
        let own = candidate(self);
        let others = self.tallies().filter(|(_, tally)| self.others_wait(tally) && tally.has_room());
        let others = others.flat_map(|(_, tally)| tally.pools()).filter_map(|pool| candidate(&pool));
        first_of(own.into_iter().chain(others))
    }

    /// Who gets a connection of this pool that is given back on shard `own`: one of its own sessions; or one of another pool,
    /// for which this one is closed. That need not be enough for the other one, where both its database and its user are at
    /// their limits: then it waits for the next. If only what is enough by itself were closed, both would stay idle.
    pub(super) fn who_gets(self: &Arc<Self>, own: usize) -> Claimant {
        let first = self.first_waiter(own);
        let bar_us = first.map_or(NOBODY, |(since, _)| {
            since.saturating_sub(u64::try_from(GRAIN.as_micros()).unwrap_or(u64::MAX))
        });
        let now_us = self.now_us();
        let waiting = self.tallies().filter(|(_, tally)| self.others_wait(tally) && !tally.has_room());
        let others = waiting.flat_map(|(_, tally)| tally.pools()).filter_map(|pool| {
            let (since, shard) = pool.first_opener()?;
            let waited = Duration::from_micros(now_us.saturating_sub(since));
            let gets = !Arc::ptr_eq(&pool, self) && since < bar_us && pool.open_count() < pool.most(waited);
            gets.then_some((since, pool, shard))
        });
        match first_of(others) {
            Claimant::Nobody => match first {
                Some((_, shard)) => Claimant::Of(Arc::clone(self), shard),
                None => Claimant::Nobody,
            },
            other => other,
        }
    }

    /// Since when and where somebody waits who could open a connection.
    fn first_opener(&self) -> Option<(u64, usize)> {
        let firsts = self.first_since_us.iter().enumerate();
        let firsts = firsts.map(|(shard, since)| (since.load(Ordering::SeqCst), shard));
        firsts.filter(|(since, _)| *since != NOBODY).min()
    }

    /// Whether anybody waits at this limit for another pool than this one.
    fn others_wait(&self, tally: &Tally) -> bool {
        let own = self.waiting_total.load(Ordering::SeqCst);
        tally.waiting.load(Ordering::SeqCst) > own
    }
}

fn first_of(candidates: impl Iterator<Item = (u64, Arc<PoolShared>, usize)>) -> Claimant {
    match candidates.min_by_key(|(since, _, _)| *since) {
        Some((_, pool, shard)) => Claimant::Of(pool, shard),
        None => Claimant::Nobody,
    }
}

fn count(counts: &[AtomicUsize], shard: usize) -> usize {
    counts.get(shard).map_or(0, |count| count.load(Ordering::SeqCst))
}

fn add(counts: &[AtomicUsize], shard: usize) {
    if let Some(count) = counts.get(shard) {
        count.fetch_add(1, Ordering::SeqCst);
    }
}

fn sub(counts: &[AtomicUsize], shard: usize) {
    if let Some(count) = counts.get(shard) {
        count.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Mail from shard to shard.
#[derive(Debug)]
pub enum Mail {
    /// There may be room to open a connection for somebody who waits on the receiver's shard.
    Room {
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
    /// Somebody waits at a limit that this pool is under: an idle connection of it is to be closed.
    Evict {
        /// The pool.
        key: PoolKey,
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

/// One pool as the admin address shows it.
#[derive(Debug, Clone)]
pub struct PoolReport {
    /// The pool.
    pub key: PoolKey,
    /// What holds for it.
    pub limits: Limits,
    /// Open connections: leased, idle and being opened.
    pub open: usize,
    /// Idle ones.
    pub idle: usize,
    /// Sessions that wait.
    pub waiting: usize,
    /// How long the first of them has been waiting.
    pub longest_wait: Option<Duration>,
    /// Reads that are here, on the primary, because standbys cancel them.
    pub moved_reads: usize,
    /// The limit that leaves no room for one more.
    pub full: Option<Limit>,
    /// Open connections of the node and database, where they are limited.
    pub database_open: Option<usize>,
    /// Open connections of the node and user, where they are limited.
    pub user_open: Option<usize>,
}

type Tallies = HashMap<(Limit, NodeId, Arc<str>), Arc<Tally>>;

/// What was learned of one database.
#[derive(Debug, Clone)]
pub struct DatabaseLessons {
    /// The database.
    pub database: Arc<str>,
    /// Statements that its standbys refuse.
    pub lessons: Vec<LessonReport>,
    /// Statements that they cancel again and again.
    pub steered: Vec<SteeredReport>,
}

/// All pools' shared parts, and the shards' mailboxes.
#[derive(Debug)]
pub struct Registry {
    pools: Mutex<HashMap<PoolKey, Arc<PoolShared>>>,
    tallies: Mutex<Tallies>,
    /// By database. Kept without a session, too: clients that come for one statement each are not to pay for it.
    hidden: Mutex<HashMap<Arc<str>, Arc<Hidden>>>,
    /// A default of how commits are made has been altered.
    altered_commits: Arc<AtomicBool>,
    catalogues: Arc<AtomicU64>,
    pub(super) mailboxes: Vec<mpsc::UnboundedSender<Mail>>,
    pub(super) keys: LoginKeys,
    clock: Instant,
}

impl Registry {
    /// For this many shards; gives each shard's end of its mailbox.
    pub fn new(shards: usize, keys: LoginKeys) -> (Arc<Self>, Vec<mpsc::UnboundedReceiver<Mail>>) {
        // Unbounded by type; bounded in fact: one Want or Evict for each waiter, one Give for each Want.
        let (mailboxes, receivers) = (0..shards).map(|_| mpsc::unbounded_channel()).unzip();
        let registry = Self {
            pools: Mutex::default(),
            tallies: Mutex::default(),
            hidden: Mutex::default(),
            altered_commits: Arc::default(),
            catalogues: Arc::default(),
            mailboxes,
            keys,
            clock: Instant::now(),
        };
        (Arc::new(registry), receivers)
    }

    /// Outdates every connection of these pools.
    pub(super) fn outdate(&self, of: impl Fn(&PoolKey) -> bool) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        for (_, shared) in pools.iter().filter(|(key, _)| of(key)) {
            shared.generation.fetch_add(1, Ordering::SeqCst);
        }
    }

    pub(super) fn shared(&self, key: &PoolKey, settings: &Settings) -> Arc<PoolShared> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(key) {
            return Arc::clone(pool);
        }
        let limits = settings.limits_of(&key.database, &key.user);
        let database = self.tally(Limit::Database, key.node, &key.database, limits.database_max);
        let user = self.tally(Limit::User, key.node, &key.user, limits.user_max);
        let counts = || self.mailboxes.iter().map(|_| AtomicUsize::new(0)).collect();
        let pool = Arc::new(PoolShared {
            key: key.clone(),
            limits,
            open: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            idle: counts(),
            waiting: counts(),
            first_since_us: self.mailboxes.iter().map(|_| AtomicU64::new(NOBODY)).collect(),
            coming: counts(),
            waiting_total: AtomicUsize::new(0),
            wanted_us: AtomicU64::new(0),
            moved_reads: Arc::default(),
            database,
            user,
            clock: self.clock,
        });
        for (_, tally) in pool.tallies() {
            tally.pools.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(&pool));
        }
        pools.insert(key.clone(), Arc::clone(&pool));
        pool
    }

    fn tally(&self, limit: Limit, node: NodeId, name: &Arc<str>, most: Option<usize>) -> Option<Arc<Tally>> {
        let most = most?;
        let mut tallies = self.tallies.lock().unwrap_or_else(PoisonError::into_inner);
        let tally = tallies.entry((limit, node, Arc::clone(name))).or_insert_with(|| {
            let (open, waiting) = (AtomicUsize::new(0), AtomicUsize::new(0));
            Arc::new(Tally { most, open, waiting, pools: Mutex::default() })
        });
        Some(Arc::clone(tally))
    }

    pub(super) fn send(&self, shard: usize, mail: Mail) -> Result<(), Mail> {
        match self.mailboxes.get(shard) {
            Some(mailbox) => mailbox.send(mail).map_err(|error| error.0),
            None => Err(mail),
        }
    }

    /// What is known of the statements of a database.
    pub(super) fn hidden(&self, database: &Arc<str>) -> Arc<Hidden> {
        let mut by_database = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        if by_database.len() >= HIDDEN_SWEEP_AT && !by_database.contains_key(database) {
            by_database.retain(|_, hidden| Arc::strong_count(hidden) > 1);
        }
        let new = || Arc::new(Hidden::new(&self.catalogues, &self.altered_commits));
        Arc::clone(by_database.entry(Arc::clone(database)).or_insert_with(new))
    }

    /// Databases to which there are pools.
    pub(super) fn databases(&self) -> Vec<Arc<str>> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let mut databases: Vec<Arc<str>> = pools.keys().map(|key| Arc::clone(&key.database)).collect();
        databases.sort();
        databases.dedup();
        databases
    }

    /// What is known of databases and is too old is known no more.
    pub fn expire(&self, now: Instant) {
        let by_database = self.hidden.lock().unwrap_or_else(PoisonError::into_inner);
        by_database.values().for_each(|hidden| hidden.expire(now));
    }

    /// What was learned of each database.
    pub fn lessons(&self, now: Instant) -> Vec<DatabaseLessons> {
        let by_database = self.hidden.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let lessons = by_database.into_iter().map(|(database, hidden)| {
            let (lessons, steered) = (hidden.learned.report(now), hidden.steered.report(now));
            DatabaseLessons { database, lessons, steered }
        });
        let mut lessons: Vec<_> = lessons.collect();
        lessons.sort_by(|a, b| a.database.cmp(&b.database));
        lessons
    }

    /// Every pool as it is now, by node, database and user.
    pub fn report(&self) -> Vec<PoolReport> {
        let mut pools: Vec<Arc<PoolShared>> =
            self.pools.lock().unwrap_or_else(PoisonError::into_inner).values().map(Arc::clone).collect();
        pools.sort_by(|a, b| {
            (a.key.node.0, &a.key.database, &a.key.user).cmp(&(b.key.node.0, &b.key.database, &b.key.user))
        });
        let open = |tally: &Option<Arc<Tally>>| tally.as_ref().map(|it| it.open.load(Ordering::SeqCst));
        let report = |pool: &Arc<PoolShared>| {
            let since = pool.first_opener().map(|(since, _)| since);
            PoolReport {
                key: pool.key.clone(),
                limits: pool.limits,
                open: pool.open_count(),
                idle: pool.idle.iter().map(|idle| idle.load(Ordering::SeqCst)).sum(),
                waiting: pool.waiting_total.load(Ordering::SeqCst),
                longest_wait: since.map(|it| Duration::from_micros(pool.now_us().saturating_sub(it))),
                moved_reads: pool.moved_reads.load(Ordering::Acquire),
                full: pool.obstacle(Duration::ZERO),
                database_open: open(&pool.database),
                user_open: open(&pool.user),
            }
        };
        pools.iter().map(report).collect()
    }
}

#[cfg(test)]
mod tests;
