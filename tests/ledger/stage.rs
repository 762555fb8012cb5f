//! A cluster with relays between it and the proxy, clients at work, and the hand that causes faults and mends them.
//!
//! Invariant: PostgreSQL itself loses no acknowledged write. Commits wait for a standby; promoted is a standby that has all
//! WAL that any had confirmed to the old primary: the better one where that is gone, where it lives the only one that
//! streams from it. After a fault everything is as before, but for who is the primary. Must not know: how clients write.

use std::collections::{HashMap, HashSet};
use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Node, Sandbox, Sync};
use tokio_postgres::types::PgLsn;

use crate::clients::{Client, Style};
use crate::faults::{Death, Fault, Place, Return};
use crate::running::ledger::{Fate, Write, faults, rows};
use crate::running::relay::{Cut, Link, Relay};
use crate::running::{Running, eventually, in_time};

/// A standby that has not begun to stream by then holds WAL that the new primary does not know.
const STREAMS_AFTER: Duration = Duration::from_secs(5);

/// Commits wait for a standby, and a standby whose primary was away for a moment may take 15 s to look for it again: when it
/// went in the middle of the WAL receiver's start.
const WRITES_AFTER: Duration = Duration::from_secs(40);

/// For so long the proxy reaches nobody but an old primary.
const ALONE: Duration = Duration::from_millis(300);

/// What was on a node when its epoch was over.
struct OldEpoch {
    node: usize,
    over: Instant,
    rows: HashSet<i64>,
}

/// The cluster, the proxy and the clients.
pub struct Stage {
    pub sandbox: Sandbox,
    relays: Vec<Relay>,
    pub proxy: Arc<Running>,
    clients: Vec<Client>,
    old_epochs: Vec<OldEpoch>,
}

/// What a run came to: rows, and the clients' own way of giving up among those that were rolled back.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    pub acknowledged: usize,
    pub rolled_back: usize,
    pub unknown: usize,
    pub unknown_written: usize,
    /// Errors 40001 and 08007 that clients got.
    pub lost_transactions: f64,
    pub unknown_outcomes: f64,
    /// Old primaries that were looked into.
    pub old_epochs: usize,
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} rows acknowledged, {} rolled back, {} unknown ({} of them written); {} errors 40001, {} errors 08007; {} old \
             primaries looked into",
            self.acknowledged,
            self.rolled_back,
            self.unknown,
            self.unknown_written,
            self.lost_transactions,
            self.unknown_outcomes,
            self.old_epochs
        )
    }
}

impl Stage {
    /// A primary, two standbys, a proxy that reaches them by relays, and `each` clients of every style, all of which have written.
    pub async fn set(each: i64) -> Self {
        let sandbox = Sandbox::builder().sync(Sync::Any1).auth(Auth::Trust).start().await.unwrap();
        let table = "CREATE TABLE ledger (id bigint); CREATE INDEX ON ledger (id)";
        sandbox.connect(0).await.unwrap().batch_execute(table).await.unwrap();
        sandbox.wait_caught_up().await.unwrap();
        let mut relays = Vec::new();
        for node in sandbox.nodes() {
            relays.push(Relay::start(node.address()).await);
        }
        let addresses: Vec<_> = relays.iter().map(|relay| relay.address).collect();
        let proxy = Arc::new(Running::start_at(&addresses, &sandbox, &["--auth", "trust"], &[]).await);
        let mut clients = Vec::new();
        for _ in 0..each {
            for style in Style::ALL {
                clients.push(Client::start(&proxy, style, 1 + i64::try_from(clients.len()).unwrap()).await);
            }
        }
        let stage = Self { sandbox, relays, proxy, clients, old_epochs: Vec::new() };
        stage.all_write().await;
        stage
    }

    /// Causes the fault, mends what is broken, and has every client write.
    pub async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::Cut { at, cut } => {
                in_time("a cut", self.relays[self.place(at)].cut(cut)).await;
            }
            Fault::Disturbed { at, link, lasts } => {
                self.link(at, link);
                tokio::time::sleep(lasts).await;
                self.link(None, Link::Open);
            }
            Fault::Terminated { all } => self.terminate(if all { "true" } else { "pid % 7 = 0" }).await,
            Fault::Crash => self.crash().await,
            Fault::Restart { at, death } => {
                let node = self.sandbox.node(self.place(at));
                strike(node, death).await;
                node.start().await.unwrap();
            }
            Fault::Frozen { at, lasts } => {
                let node = self.sandbox.node(self.place(at));
                node.sigstop().unwrap();
                tokio::time::sleep(lasts).await;
                node.sigcont().unwrap();
            }
            Fault::Failover { death, second_wave, cut, old } => {
                self.fail_over(death, (second_wave, cut), old).await;
            }
            Fault::Handover { to, link, old } => self.hand_over(to, link, old).await,
            Fault::Twice { to, first, second } => self.fail_over_twice(to, first, second).await,
        }
        self.all_write().await;
        self.sandbox.wait_streaming().await.unwrap();
    }

    /// Has the clients finish, and compares what they were told with what is there.
    pub async fn judge(mut self) -> (Tally, Vec<String>) {
        let clients = std::mem::take(&mut self.clients);
        let mut writes = Vec::new();
        for client in clients {
            writes.extend(client.end().await);
        }
        let rows = rows(&self.sandbox, self.sandbox.primary().index()).await;
        let mut wrong = faults(&rows, &writes);
        wrong.extend(never_sent(&rows, &writes));
        for old in &self.old_epochs {
            wrong.extend(old.faults(&writes));
        }
        let count = |fate| writes.iter().filter(|write| write.fate == fate).count();
        let written = |write: &&Write| write.fate == Fate::Unknown && rows.contains_key(&write.id);
        let tally = Tally {
            acknowledged: count(Fate::Acknowledged),
            rolled_back: count(Fate::RolledBack),
            unknown: count(Fate::Unknown),
            unknown_written: writes.iter().filter(written).count(),
            lost_transactions: self.proxy.metric("pgsteer_errors_total", &[("sqlstate", "40001")]).await,
            unknown_outcomes: self.proxy.metric("pgsteer_errors_total", &[("sqlstate", "08007")]).await,
            old_epochs: self.old_epochs.len(),
        };
        (tally, wrong)
    }

    fn primary(&self) -> usize {
        self.sandbox.primary().index()
    }

    fn standbys(&self) -> [usize; 2] {
        let primary = self.primary();
        [(primary + 1) % 3, (primary + 2) % 3]
    }

    fn place(&self, place: Place) -> usize {
        match place {
            Place::Primary => self.primary(),
            Place::Standby(which) => self.standbys()[which],
        }
    }

    fn link(&self, at: Option<Place>, link: Link) {
        match at {
            Some(place) => self.relays[self.place(place)].set(link),
            None => self.relays.iter().for_each(|relay| relay.set(link)),
        }
    }

    /// Every client has more of its writes acknowledged.
    pub async fn all_write(&self) {
        let before: Vec<usize> = self.clients.iter().map(Client::acknowledged).collect();
        let late = |(client, before): &(&Client, &usize)| client.acknowledged() <= **before;
        let pairs = || self.clients.iter().zip(&before);
        let waits = || pairs().filter(late).map(|(client, _)| client.style).collect::<Vec<_>>();
        let started = Instant::now();
        eventually("every client writes", async || {
            let waits = waits();
            assert!(started.elapsed() < WRITES_AFTER, "these do not write: {waits:?}");
            assert!(!self.clients.iter().any(Client::has_ended), "a client has found a fault");
            waits.is_empty()
        })
        .await;
    }

    async fn terminate(&self, whose: &str) {
        let sql = format!(
            "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE backend_type = 'client backend' \
             AND application_name <> 'sandbox' AND {whose}"
        );
        let client = self.sandbox.connect(self.primary()).await.unwrap();
        client.batch_execute(&sql).await.unwrap();
    }

    async fn crash(&self) {
        let client = self.sandbox.connect(self.primary()).await.unwrap();
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' \
                   AND pid <> pg_backend_pid() ORDER BY pid LIMIT 1";
        let pid: i32 = client.query_one(sql, &[]).await.unwrap().get(0);
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        eventually("the server has noticed", async || client.is_closed()).await;
        eventually("the server accepts clients again", async || {
            self.sandbox.connect(self.primary()).await.is_ok()
        })
        .await;
    }

    async fn fail_over(&mut self, death: Death, (second_wave, cut): (bool, Option<Cut>), back: Return) {
        let old = self.primary();
        strike(self.sandbox.node(old), death).await;
        let new = self.sandbox.most_advanced_standby().await.unwrap();
        self.sandbox.promote_wait(new).await.unwrap();
        if let Some(cut) = cut {
            self.relays[new].will_cut(cut);
        }
        if second_wave {
            self.terminate("true").await;
        }
        self.follow(3 - old - new, new).await;
        let over = self.taken_over(new).await;
        self.all_write().await;
        self.bring_back(old, new, back, over).await;
    }

    async fn hand_over(&mut self, to: usize, link: Link, back: Return) {
        let (old, new) = (self.primary(), self.standbys()[to]);
        let other = 3 - old - new;
        self.sandbox.follow(other, new).await.unwrap();
        self.wait_streaming(other, new).await;
        self.relays[old].set(link);
        self.sandbox.promote_wait(new).await.unwrap();
        let over = self.taken_over(new).await;
        self.all_write().await;
        self.relays[old].set(Link::Open);
        self.bring_back(old, new, back, over).await;
    }

    async fn fail_over_twice(&self, to: usize, first: Death, second: Death) {
        let (old, new) = (self.primary(), self.standbys()[to]);
        let last = 3 - old - new;
        self.sandbox.follow(last, new).await.unwrap();
        self.wait_streaming(last, new).await;
        strike(self.sandbox.node(old), first).await;
        self.sandbox.promote_wait(new).await.unwrap();
        self.wait_beyond_switch(last, new).await;
        strike(self.sandbox.node(new), second).await;
        self.sandbox.promote_wait(last).await.unwrap();
        for node in [new, old] {
            self.sandbox.reattach(node, last).await.unwrap();
        }
        self.taken_over(last).await;
    }

    /// Waits until a standby has of the new primary's timeline, and so all that was written before it.
    async fn wait_beyond_switch(&self, node: usize, primary: usize) {
        let client = self.sandbox.connect(primary).await.unwrap();
        let switch: PgLsn = client.query_one("SELECT pg_last_wal_replay_lsn()", &[]).await.unwrap().get(0);
        let client = self.sandbox.connect(node).await.unwrap();
        eventually("a standby has WAL of the new timeline", async || {
            let received = client.query_one("SELECT pg_last_wal_receive_lsn()", &[]).await.unwrap();
            received.get::<_, Option<PgLsn>>(0).is_some_and(|lsn| lsn > switch)
        })
        .await;
    }

    /// When the proxy has taken this node for its primary.
    async fn taken_over(&self, new: usize) -> Instant {
        let name = self.sandbox.node(new).name();
        eventually("the proxy has the new primary", async || {
            self.proxy.topology().await["primary"]["name"].as_str() == Some(name)
        })
        .await;
        Instant::now()
    }

    /// Has a standby follow the new primary, whatever it takes.
    async fn follow(&self, node: usize, primary: usize) {
        self.sandbox.follow(node, primary).await.unwrap();
        if tokio::time::timeout(STREAMS_AFTER, self.wait_streaming(node, primary)).await.is_err() {
            self.sandbox.reattach(node, primary).await.unwrap();
        }
    }

    async fn wait_streaming(&self, node: usize, upstream: usize) {
        let client = self.sandbox.connect(upstream).await.unwrap();
        let sql = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = $1";
        eventually("a standby streams", async || {
            client.query_one(sql, &[&self.sandbox.node(node).name()]).await.unwrap().get(0)
        })
        .await;
    }

    async fn bring_back(&mut self, old: usize, new: usize, back: Return, over: Instant) {
        if back != Return::Reattached {
            let node = self.sandbox.node(old);
            if node.is_frozen() {
                node.sigcont().unwrap();
            } else if !node.is_running() {
                node.start().await.unwrap();
            }
            let name = node.name();
            eventually("the old primary is known for one", async || {
                let topology = self.proxy.topology().await;
                let nodes = topology["nodes"].as_array().unwrap();
                nodes.iter().any(|node| node["name"] == name && node["role"] == "quarantined")
            })
            .await;
            if back == Return::AsItWasAndAlone {
                (0..3).filter(|&it| it != old).for_each(|it| self.relays[it].set(Link::Silent));
                tokio::time::sleep(ALONE).await;
                self.link(None, Link::Open);
            }
            self.all_write().await;
            self.read_old(old, over).await;
        } else if self.sandbox.node(old).is_running() {
            // In good order it would wait for standbys: sessions that end drop their temporary tables.
            self.sandbox.node(old).stop_immediate().await.unwrap();
        }
        self.sandbox.reattach(old, new).await.unwrap();
    }

    /// Reads what is on an old primary, that which it waits to commit included: from now on it needs no standby for that.
    async fn read_old(&mut self, node: usize, over: Instant) {
        let client = self.sandbox.connect(node).await.unwrap();
        for sql in ["ALTER SYSTEM SET synchronous_standby_names = ''", "SELECT pg_reload_conf()"] {
            client.batch_execute(sql).await.unwrap();
        }
        let sql = "SELECT count(*) = 0 FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        eventually("nothing waits for standbys", async || client.query_one(sql, &[]).await.unwrap().get(0))
            .await;
        let rows = rows(&self.sandbox, node).await.into_keys().collect();
        self.old_epochs.push(OldEpoch { node, over, rows });
        client.batch_execute("ALTER SYSTEM RESET synchronous_standby_names").await.unwrap();
    }
}

impl OldEpoch {
    /// What was sent when the epoch was over, and came here.
    fn faults(&self, writes: &[Write]) -> Vec<String> {
        let late = writes.iter().filter(|write| write.sent > self.over && self.rows.contains(&write.id));
        late.map(|write| {
            format!("{write:?} is on node {}, whose epoch was over at {:?}", self.node, self.over)
        })
        .collect()
    }
}

fn never_sent(rows: &HashMap<i64, i64>, writes: &[Write]) -> Vec<String> {
    let known: HashSet<i64> = writes.iter().map(|write| write.id).collect();
    rows.keys()
        .filter(|id| !known.contains(id))
        .map(|id| format!("{id} is there, and was never sent"))
        .collect()
}

async fn strike(node: &Node, death: Death) {
    match death {
        Death::Kill9 => drop(node.kill9().await.unwrap()),
        Death::Immediate => node.stop_immediate().await.unwrap(),
        Death::Fast => node.stop_fast().await.unwrap(),
        Death::Orphaned => drop(node.kill9_postmaster_only().await.unwrap()),
        Death::Frozen => node.sigstop().unwrap(),
    }
}
