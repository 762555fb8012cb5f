//! One core's share of the work: its sessions, pools, statements and buffers, all without locks.
//!
//! Invariant: everything here stays on one thread. A new topology snapshot becomes visible to the shard's sessions only
//! after connections of the epochs before it to the lost primary have been severed on this shard. Must not know: listeners.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};

use super::control::{Answered, Control, Taken};
use super::prepared::Table;
use super::settings::Pairs;
use super::spare::Spare;
use super::standby_wait::CatchUp;
use super::{Settings, outcome};
use crate::auth::Users;
use crate::backend::cancel::cancel;
use crate::backend::connection::CancelKey;
use crate::backend::senders::{Sender, Senders};
use crate::backend::{Reported, SettingValues};
use crate::classify::{PinReason, TextCache};
use crate::pool::Pools;
use crate::relay::allowance::Allowance;
use crate::relay::buffer::Stock;
use crate::route::NodeLoad;
use crate::telemetry::metrics::ShardCounters;
use crate::topology::model::{Epoch, Incarnation, Logins, NodeId, NodeView, Readers, Role, Snapshot};
use crate::wire::reply::Clients;

/// Sets of settings that a shard remembers before it looks for those that nobody has any more.
const SETTINGS_SWEEP_AT: usize = 1024;

/// Held sessions look at an unchanged picture at most this often.
const BELL_INTERVAL: Duration = Duration::from_millis(50);
/// A node that has had no role for so long, its last answer having expired before, may hang for ever.
const SILENT_FOR: Duration = Duration::from_secs(2);

/// Tells the monitor that a node is doubted, and why.
pub type Suspect = Arc<dyn Fn(NodeId, SuspectCause) + Send + Sync>;

/// What sessions that wait may be given by this node.
fn admission(node: &NodeView) -> (Role, Readers, Logins) {
    (node.role, node.readers, node.logins)
}

/// What a session saw of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SuspectCause {
    /// Its connection broke, or could not be made.
    ConnectionLost,
    /// It said that it is shutting down, starting up or crashed.
    ShutdownAnnounced,
    /// The believed primary refused a write because it is read-only.
    ReadOnly,
}

/// What all shards share.
pub struct Shared {
    /// Settings of sessions.
    pub settings: Settings,
    /// To the monitor.
    pub suspect: Suspect,
    /// Statements held now.
    pub held_count: AtomicUsize,
    /// Bytes of statements held now.
    pub held_bytes: AtomicUsize,
    /// What sessions keep of answers beyond their relay buffers.
    pub answer_bytes: Arc<Allowance>,
    /// A database is created, renamed or dropped: what is remembered of it may be wrong.
    pub forget_database: Box<dyn Fn(&str) + Send + Sync>,
    /// Roles are created, altered or dropped: what is remembered of these users may be wrong.
    pub forget_users: Box<dyn Fn(&Users) + Send + Sync>,
    /// Asks the session that was given this process id at its login for the process of its server connection on the primary: the
    /// answer may never come.
    pub server_process: Box<dyn Fn(i32) -> Option<oneshot::Receiver<i32>> + Send + Sync>,
    /// Whom the primary's processes work for.
    pub senders: Arc<Senders>,
    /// Reads that are on the primary for want of a standby.
    pub reads_on_primary: Arc<AtomicUsize>,
    /// Has the positions of all nodes looked at soon: sessions wait for standbys to have what they saw.
    pub want_sample: Box<dyn Fn() + Send + Sync>,
    /// Where a wait for a primary ended is noted.
    pub record_hold: Box<dyn Fn(Duration) + Send + Sync>,
}

/// A shard.
pub struct Shard {
    /// Its number.
    pub number: usize,
    /// What all shards share.
    pub shared: Arc<Shared>,
    /// Whom the primary's processes work for.
    pub clients: Rc<dyn Clients>,
    /// Its server connections.
    pub pools: Rc<Pools>,
    /// Texts that its sessions send again and again.
    pub texts: TextCache,
    /// Its prepared statements.
    pub statements: Table,
    /// Its buffers.
    pub buffers: Stock,
    /// Its counters.
    pub counters: Arc<ShardCounters>,
    /// The snapshot its sessions route by.
    pub snapshot: RefCell<Arc<Snapshot>>,
    /// Sessions that wait for a standby.
    pub(super) waiting_for_standby: Cell<usize>,
    /// Rings for held sessions when the snapshot has changed.
    pub snapshot_changed: watch::Sender<u64>,
    /// Load of each node, as far as this shard causes it.
    pub load: RefCell<Vec<NodeLoad>>,
    /// No new work.
    pub draining: Cell<bool>,
    /// Nothing new begins on the primary.
    paused: Cell<bool>,
    /// A node that a session of this shard has seen fail, and when: until it has been looked at since, it gets nothing new as the
    /// primary. A server that shuts down ends its connections one after the other.
    doubt: Cell<Option<(NodeId, Instant)>>,
    last_primary: Cell<Option<(NodeId, Epoch)>>,
    last_bell: Cell<Instant>,
    sessions: RefCell<HashMap<u64, Rc<Control>>>,
    /// Sessions that keep what their next statement needs.
    warm: RefCell<Vec<Rc<Control>>>,
    next_session: Cell<u64>,
    /// Cancel requests on their way to servers.
    cancels_under_way: Cell<usize>,
    settings: RefCell<HashMap<Pairs, Rc<SettingValues>>>,
    /// What clients were told of reported parameters: most know the same.
    told: RefCell<HashSet<Reported>>,
    scratch: RefCell<Vec<Vec<u8>>>,
    /// Reads that may go to the primary because of what others wrote.
    pub(super) spare: Spare,
    /// Whether reads wait for standbys to catch up.
    pub(super) catch_up: CatchUp,
    /// When the log was last told of a session that is pinned, by reason.
    pub(super) pins_told_at: [Cell<Option<Instant>>; PinReason::ALL.len()],
}

impl Shard {
    /// An empty shard.
    pub fn new(
        number: usize,
        shared: Arc<Shared>,
        pools: Rc<Pools>,
        counters: Arc<ShardCounters>,
        snapshot: Arc<Snapshot>,
    ) -> Rc<Self> {
        let load = vec![NodeLoad::default(); snapshot.nodes.len()];
        Rc::new(Self {
            number,
            clients: Rc::new(Arc::clone(&shared.senders)),
            shared,
            pools,
            texts: TextCache::new(fastrand::u64(..)),
            statements: Table::new(number),
            buffers: Stock::default(),
            counters,
            snapshot: RefCell::new(snapshot),
            waiting_for_standby: Cell::new(0),
            snapshot_changed: watch::Sender::new(0),
            load: RefCell::new(load),
            draining: Cell::new(false),
            paused: Cell::new(false),
            doubt: Cell::default(),
            last_primary: Cell::default(),
            last_bell: Cell::new(Instant::now()),
            sessions: RefCell::default(),
            warm: RefCell::default(),
            next_session: Cell::new(1),
            cancels_under_way: Cell::new(0),
            settings: RefCell::default(),
            told: RefCell::default(),
            scratch: RefCell::default(),
            spare: Spare::new(Instant::now()),
            catch_up: CatchUp::default(),
            pins_told_at: Default::default(),
        })
    }

    /// Where a server process says for which client it works.
    pub fn sender(&self, server: i32) -> Sender {
        Sender::new(&self.shared.senders, server)
    }

    /// A new snapshot: severs what the new epoch outdates, then lets sessions see it.
    pub fn publish(self: &Rc<Self>, snapshot: Arc<Snapshot>) {
        if let Some(primary) = &snapshot.primary {
            if let Some((node, epoch)) = self.last_primary.get()
                && epoch < snapshot.epoch
            {
                self.pools.fence(node, snapshot.epoch);
            }
            self.last_primary.set(Some((primary.node, snapshot.epoch)));
        }
        let version = snapshot.version;
        let before = self.snapshot.replace(snapshot);
        // Rounds come every few milliseconds during an outage: held sessions are woken when something has changed for them,
        // and now and then in case a bound has moved.
        let changed = {
            let now = self.snapshot.borrow();
            before.epoch != now.epoch
                || before.primary.map(|view| view.node) != now.primary.map(|view| view.node)
                || before.nodes.iter().map(admission).ne(now.nodes.iter().map(admission))
        };
        self.clear_the_way();
        self.leave_silent_nodes();
        let cleared = self.doubt.get().is_some() && !self.is_doubted_anywhere();
        if cleared {
            self.doubt.set(None);
        }
        let now = Instant::now();
        let is_awaited = self.waiting_for_standby.get() > 0;
        if changed
            || cleared
            || is_awaited
            || now.saturating_duration_since(self.last_bell.get()) >= BELL_INTERVAL
        {
            self.last_bell.set(now);
            self.snapshot_changed.send_replace(version);
        }
    }

    /// Ends what sessions do on standbys that are to have no readers. With every picture, since one may have got its connection by
    /// the picture before.
    fn clear_the_way(self: &Rc<Self>) {
        let snapshot = self.snapshot();
        for node in snapshot.nodes.iter().filter(|node| node.readers == Readers::MustLeave) {
            for control in self.sessions.borrow().values() {
                // A server process that is stuck takes no cancel, one that works sees no closed socket: each gets both.
                if let Some(key) = control.leave(node.id) {
                    self.counters.reads_ended_for_replay.inc();
                    tracing::debug!(
                        node = node.id.0,
                        process = key.process_id,
                        client = control.process_id.get(),
                        "what runs there is ended"
                    );
                    self.cancel_at(&key);
                }
            }
        }
    }

    /// Has reads that can be run elsewhere leave nodes of which nothing has been heard for long. What has an end is heard of: this is
    /// for those that hang, whose sockets stay open.
    fn leave_silent_nodes(&self) {
        let (snapshot, now) = (self.snapshot.borrow(), Instant::now());
        let is_silent = |node: &&NodeView| {
            let since = node.role_since.filter(|_| node.role == Role::Unknown);
            since.is_some_and(|since| now.saturating_duration_since(since) >= SILENT_FOR)
        };
        for node in snapshot.nodes.iter().filter(is_silent) {
            for control in self.sessions.borrow().values() {
                control.node_is_silent(node.id);
            }
        }
    }

    /// A session has seen this node fail: the monitor looks at it at once, and until then nothing new goes there as to the primary.
    pub fn suspect(&self, node: NodeId, cause: SuspectCause) {
        self.doubt.set(Some((node, Instant::now())));
        (self.shared.suspect)(node, cause);
    }

    /// The primary is doubted, and has not answered a probe that was sent since.
    pub fn is_doubted(&self, primary: NodeId, snapshot: &Snapshot) -> bool {
        self.doubt.get().is_some_and(|(node, since)| {
            node == primary
                && snapshot.primary.is_some_and(|view| view.node == node && view.sampled_at <= since)
        })
    }

    /// The node that was the primary, while there is none and it has let a probe in that it has not answered yet.
    pub fn primary_that_lets_in(&self) -> Option<(NodeId, Epoch)> {
        let (node, _) = self.last_primary.get()?;
        let snapshot = self.snapshot.borrow();
        let lets_in = snapshot.primary.is_none()
            && snapshot.node(node).is_some_and(|view| view.logins == Logins::LetIn);
        lets_in.then_some((node, snapshot.epoch))
    }

    /// Which life of which server this node is as the primary of this epoch; `None` where it is not.
    pub fn incarnation_of(&self, node: NodeId, epoch: Epoch) -> Option<Incarnation> {
        let snapshot = self.snapshot.borrow();
        let reigns = snapshot.epoch == epoch && snapshot.primary.is_some_and(|view| view.node == node);
        snapshot.incarnation().filter(|_| reigns)
    }

    fn is_doubted_anywhere(&self) -> bool {
        let snapshot = self.snapshot.borrow();
        self.doubt.get().is_some_and(|(node, _)| self.is_doubted(node, &snapshot))
    }

    /// The snapshot in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot.borrow())
    }

    /// Returns when a later epoch than this has begun. Cancel-safe.
    pub async fn epoch_after(&self, epoch: Epoch) {
        while self.snapshot.borrow().epoch <= epoch {
            self.another_snapshot().await;
        }
    }

    /// Returns when the snapshot has changed for those who wait, or may have. Cancel-safe.
    pub async fn another_snapshot(&self) {
        // The sender is the shard's own: it is there.
        let _ = self.snapshot_changed.subscribe().changed().await;
    }

    /// Registers a session; gives its number.
    pub fn enter(&self, control: Rc<Control>) -> u64 {
        let number = self.next_session.replace(self.next_session.get() + 1);
        self.sessions.borrow_mut().insert(number, control);
        self.counters.clients_active.inc();
        number
    }

    /// A session has ended.
    pub fn leave(&self, session: u64) {
        if self.sessions.borrow_mut().remove(&session).is_some() {
            self.counters.clients_active.dec();
        }
    }

    /// A session begins to keep what its next statement needs.
    pub fn warm_up(&self, control: &Rc<Control>) {
        control.active.set(true);
        self.warm.borrow_mut().push(Rc::clone(control));
    }

    /// Has sessions that ran nothing since the last call give up what they keep. To be called regularly.
    pub fn cool_down(&self) {
        self.warm.borrow_mut().retain(|control| control.keeps_warm());
    }

    /// Whether there is nothing left to wait for: no session, and no cancel request on its way.
    pub fn is_empty(&self) -> bool {
        self.sessions.borrow().is_empty() && self.cancels_under_way.get() == 0
    }

    /// Cancels what that session is doing, if it does anything.
    pub fn cancel(self: &Rc<Self>, session: u64, taken: Taken) {
        let Some(control) = self.sessions.borrow().get(&session).cloned() else { return };
        let Some(key) = control.runs_at.borrow().clone() else {
            if !control.idle.get() {
                control.cancel_while_waiting(taken);
                control.bell.notify_one();
            }
            return;
        };
        if let Some(next) = control.asking.get() {
            return control.cancel_while_asking(next, taken);
        }
        if control.begin_pending.get() {
            control.cancel_while_waiting(taken);
            // One that is attached may be held all the same.
            control.bell.notify_one();
            return;
        }
        control.cancel_by_client();
        self.send_cancel(&key, vec![taken]);
    }

    /// The BEGIN that a cancel must not hit is over: one that came meanwhile goes to the statement behind it.
    pub fn cancel_after_begin(self: &Rc<Self>, control: &Control) {
        control.begin_pending.set(false);
        if control.cancel_waiting.replace(false)
            && let Some(key) = control.runs_at.borrow().clone()
        {
            control.cancel_by_client();
            self.send_cancel(&key, control.take_cancels());
        }
    }

    /// Tells the process of the server connection that a session has on the primary. An idle session takes one for that.
    pub fn server_process(&self, session: u64, answer: Answered) {
        let Some(control) = self.sessions.borrow().get(&session).cloned() else { return };
        let primary = self.snapshot.borrow().primary.as_ref().map(|primary| primary.node);
        let held = control.runs_at.borrow().as_ref().map(|key| (key.node, key.process_id));
        match held {
            Some((node, process_id)) if Some(node) == primary => {
                control.sought.set(true);
                control.sought_at.set(Some(Instant::now()));
                // Who asks may have gone: nobody to tell.
                let _ = answer.send(process_id);
            }
            // It will be idle soon, or who asks gives up: of what it does on a standby the primary knows nothing.
            Some(_) => control.summon(answer),
            None if !control.logging_in.get() => control.summon(answer),
            None => {}
        }
    }

    /// Sends a CancelRequest to a server, in the background.
    pub fn cancel_at(self: &Rc<Self>, key: &Rc<CancelKey>) {
        self.send_cancel(key, Vec::new());
    }

    /// The same; what this gives is over when the server has taken it, or it came to nothing.
    pub fn cancel_and_tell(self: &Rc<Self>, key: &Rc<CancelKey>) -> oneshot::Receiver<()> {
        let (taken, is_taken) = oneshot::channel();
        self.send_cancel(key, vec![taken]);
        is_taken
    }

    /// The same for those who wait until it has been taken.
    fn send_cancel(self: &Rc<Self>, key: &Rc<CancelKey>, taken: Vec<Taken>) {
        self.counters.cancels.inc();
        let Some(address) = self.snapshot().node(key.node).map(|node| Arc::clone(&node.address)) else {
            return;
        };
        let (shard, key) = (Rc::clone(self), Rc::clone(key));
        self.cancels_under_way.set(self.cancels_under_way.get() + 1);
        tokio::task::spawn_local(async move {
            let timeout = shard.pools.settings().connect_timeout;
            if let Err(error) = cancel(&address, key.process_id, &key.key, timeout).await {
                tracing::debug!(node = %address, %error, "cancel request not delivered");
            }
            drop(taken);
            shard.cancels_under_way.set(shard.cancels_under_way.get().saturating_sub(1));
        });
    }

    /// From now on what would begin on the primary is held.
    pub fn pause(&self) {
        self.paused.set(true);
    }

    /// What was held by the pause goes on.
    pub fn resume(&self) {
        self.paused.set(false);
        self.snapshot_changed.send_modify(|_| {});
    }

    /// Nothing new begins on the primary.
    pub fn is_paused(&self) -> bool {
        self.paused.get()
    }

    /// How many sessions have a statement or a transaction under way on the primary, or on that of before.
    pub fn running_on_primary(&self) -> usize {
        let Some((primary, _)) = self.last_primary.get() else { return 0 };
        let is_there =
            |control: &Control| control.runs_at.borrow().as_ref().is_some_and(|key| key.node == primary);
        let is_running = |control: &Control| !control.idle.get() && !control.paused.get();
        let sessions = self.sessions.borrow();
        sessions.values().filter(|control| is_running(control) && is_there(control)).count()
    }

    /// Begins the drain: who is not logged in is told, idle sessions end now, the others at the end of their transaction.
    pub fn drain(&self) {
        self.draining.set(true);
        for control in self.sessions.borrow().values() {
            if control.logging_in.get() {
                control.bell.notify_one();
            } else {
                self.end_if_idle(control);
            }
        }
        self.snapshot_changed.send_modify(|_| {});
    }

    /// Ends the drain: every session that is left says its last words.
    pub fn cut_off(&self) {
        self.draining.set(true);
        for control in self.sessions.borrow().values() {
            control.cut_off();
        }
    }

    fn end_if_idle(&self, control: &Control) {
        if let (true, Some(client)) = (control.idle.get(), control.client.upgrade()) {
            let mut bytes = Vec::new();
            outcome::shutting_down().put(&mut bytes);
            // Best effort: a client that does not read has lost interest.
            let _ = client.try_write(&bytes);
            crate::net::sever(&client);
        }
    }

    /// Settings as one value, shared by all sessions that have the same.
    pub fn intern_settings(&self, pairs: Pairs) -> Rc<SettingValues> {
        if pairs.is_empty() {
            return Rc::default();
        }
        let mut settings = self.settings.borrow_mut();
        if settings.len() > SETTINGS_SWEEP_AT {
            settings.retain(|_, value| Rc::strong_count(value) > 1);
        }
        // Unique over shards, since connections are handed over with the identity of what was applied.
        let id = self.own_scope();
        Rc::clone(
            settings
                .entry(pairs)
                .or_insert_with_key(|pairs| Rc::new(SettingValues { id, pairs: pairs.clone() })),
        )
    }

    /// The same knowledge, shared with the sessions that have it too.
    pub fn intern_told(&self, told: Reported) -> Reported {
        let mut known = self.told.borrow_mut();
        if let Some(same) = known.get(&told) {
            return same.clone();
        }
        if known.len() > SETTINGS_SWEEP_AT {
            known.retain(|told| !told.is_unshared());
        }
        known.insert(told.clone());
        told
    }

    /// An identity of settings that nobody else has or will have.
    pub fn own_scope(&self) -> u64 {
        self.next_session.replace(self.next_session.get() + 1) << 8 | (self.number as u64 & 0xff)
    }

    /// A byte vector for what goes to a server.
    pub fn take_scratch(&self) -> Vec<u8> {
        self.scratch.borrow_mut().pop().unwrap_or_default()
    }

    /// Gives the vector back.
    pub fn give_scratch(&self, mut bytes: Vec<u8>) {
        let mut scratch = self.scratch.borrow_mut();
        if bytes.capacity() <= 64 * 1024 && scratch.len() < 64 {
            bytes.clear();
            scratch.push(bytes);
        }
    }

    /// A statement was sent to a node.
    pub fn begin_load(&self, node: NodeId) {
        if let Some(load) = self.load.borrow_mut().get_mut(node.index()) {
            load.in_flight += 1;
        }
        if let Some(gauge) = self.counters.in_flight(node.index()) {
            gauge.inc();
        }
    }

    /// A standby has cancelled a statement.
    pub fn note_conflict(&self, node: NodeId) {
        if let Some(load) = self.load.borrow_mut().get_mut(node.index()) {
            load.recent_conflicts = load.recent_conflicts.saturating_add(1);
        }
    }

    /// What was cancelled counts for half of what it did. To be called regularly.
    pub fn age_conflicts(&self) {
        self.load.borrow_mut().iter_mut().for_each(|load| load.recent_conflicts /= 2);
    }

    /// Its answer is complete, or will never be.
    pub fn end_load(&self, node: NodeId, began: Instant, now: Instant) {
        if let Some(load) = self.load.borrow_mut().get_mut(node.index()) {
            load.in_flight = load.in_flight.saturating_sub(1);
            let took = u32::try_from(now.saturating_duration_since(began).as_micros()).unwrap_or(u32::MAX);
            load.latency_us = load.latency_us - load.latency_us / 8 + took / 8;
        }
        if let Some(gauge) = self.counters.in_flight(node.index()) {
            gauge.dec();
        }
    }
}
