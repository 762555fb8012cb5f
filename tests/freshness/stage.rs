//! A cluster with relays between it and two proxies, clients at work, and the hand that causes faults and mends them.
//!
//! Invariant: PostgreSQL itself loses nothing that was committed synchronously: commits wait for a standby, and the standby is promoted that
//! has received most, when nothing arrives any more. After a fault everything is as before, but for who is the primary. Must not know: how clients read and write.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Sandbox, Sync};

use crate::book::{Book, Commit};
use crate::clients::{Door, LAZY, MAX_LAG, Promise, Style, Tally, Worker};
use crate::faults::{Death, Fault, Return};
use crate::running::relay::{Link, Relay};
use crate::running::{Running, eventually, in_time};

/// A standby whose primary was away for a moment may take 15 s to look for it again.
const WORKS_AFTER: Duration = Duration::from_secs(40);

/// One that has not begun to stream by then holds WAL that the new primary does not know.
const STREAMS_AFTER: Duration = Duration::from_secs(5);

/// One client of each, and more that only read.
const STYLES: [&[Style]; 2] = [&Style::ALL, &[Style::Reader; 6]];

const SCHEMA: &str = "
    CREATE TABLE counter (key int PRIMARY KEY, value bigint NOT NULL) WITH (fillfactor = 10);
    CREATE TABLE request (key int, value bigint);
    CREATE FUNCTION put(k int, v bigint) RETURNS void LANGUAGE plpgsql AS
        'BEGIN UPDATE counter SET value = v WHERE key = k; END';
    CREATE FUNCTION requested() RETURNS trigger LANGUAGE plpgsql AS
        'BEGIN PERFORM put(new.key, new.value); RETURN NULL; END';
    CREATE TRIGGER requested BEFORE INSERT ON request FOR EACH ROW EXECUTE FUNCTION requested();
    CREATE ROLE lazy LOGIN; ALTER ROLE lazy SET synchronous_commit = off;
    GRANT SELECT, UPDATE ON counter TO lazy";

/// Clients of each style at each proxy.
pub struct Stage {
    sandbox: Sandbox,
    relays: Vec<Relay>,
    doors: Vec<Door>,
    workers: Vec<Worker>,
    book: Arc<Mutex<Book>>,
    pub tally: Arc<Tally>,
}

impl Stage {
    /// A primary, two standbys, two proxies that reach them by relays, and one client of every style at each, all of which have worked.
    pub async fn set(seed: u64) -> Self {
        assert_eq!(LAZY, "lazy");
        let sandbox = Sandbox::builder().sync(Sync::Any1).auth(Auth::Trust).start().await.unwrap();
        let direct = sandbox.connect(0).await.unwrap();
        direct.batch_execute(SCHEMA).await.unwrap();
        let mut relays = Vec::new();
        for node in sandbox.nodes() {
            relays.push(Relay::start(node.address()).await);
        }
        let addresses: Vec<_> = relays.iter().map(|relay| relay.address).collect();
        let mut doors = Vec::new();
        for (index, promise) in [Promise::Session, Promise::Eventual].into_iter().enumerate() {
            let consistency = if promise == Promise::Session { "session" } else { "eventual" };
            let max_lag = format!("{}ms", MAX_LAG.as_millis());
            let environment = [
                ("PGSTEER_ROUTING_CONSISTENCY", consistency),
                ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
                // Where a read is answered is asked for with it.
                ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery"),
                ("PGSTEER_TOPOLOGY_PROBE_INTERVAL", "20ms"),
            ];
            let args = ["--auth", "trust", "--max-lag", &max_lag];
            let proxy = Arc::new(Running::start_at(&addresses, &sandbox, &args, &environment).await);
            doors.push(Door { proxy, index, promise });
        }
        let all: Vec<(usize, Style)> = (0..doors.len())
            .flat_map(|door| STYLES.iter().flat_map(|it| it.iter()).map(move |style| (door, *style)))
            .collect();
        let keys =
            all.iter().zip(1..).filter_map(|((door, style), key)| Some((key, (*door, style.commit()?))));
        let keys: Vec<(i32, (usize, Commit))> = keys.collect();
        for (key, _) in &keys {
            direct.execute("INSERT INTO counter VALUES ($1, 0)", &[key]).await.unwrap();
        }
        sandbox.wait_caught_up().await.unwrap();
        let book = Arc::new(Mutex::new(Book::new(doors.len(), keys)));
        let tally = Arc::new(Tally::default());
        let workers = all.iter().zip(1i32..).map(|(&(door, style), key)| {
            let seed = seed << 16 | u64::from(key.unsigned_abs());
            Worker::start(&doors[door], (style, key), seed, (&book, &tally))
        });
        let workers = workers.collect();
        let stage = Self { sandbox, relays, doors, workers, book, tally };
        stage.all_work().await;
        stage
    }

    /// Causes the fault, mends what is broken, and has every client work.
    pub async fn cause(&mut self, fault: Fault) {
        match fault {
            Fault::Paused { standby, lasts } => {
                let standbys: Vec<usize> = self
                    .standbys()
                    .into_iter()
                    .enumerate()
                    .filter(|(at, _)| standby.is_none_or(|it| it == *at))
                    .map(|it| it.1)
                    .collect();
                for &node in &standbys {
                    self.sandbox.node(node).pause_replay().await.unwrap();
                }
                tokio::time::sleep(lasts).await;
                for &node in &standbys {
                    self.sandbox.node(node).resume_replay().await.unwrap();
                }
            }
            Fault::Delayed { standby, delay, lasts } => {
                let delay = format!("recovery_min_apply_delay = {}", delay.as_millis());
                self.set_for_a_while(standby, &delay, lasts).await;
            }
            Fault::CutOff { standby, lasts } => {
                self.set_for_a_while(standby, "primary_conninfo = ''", lasts).await;
            }
            Fault::Hung { standby, lasts } => {
                let node = self.sandbox.node(self.standbys()[standby]);
                node.sigstop().unwrap();
                tokio::time::sleep(lasts).await;
                node.sigcont().unwrap();
            }
            Fault::Restarted { standby, death } => {
                let node = self.standbys()[standby];
                self.strike(node, death).await;
                self.sandbox.node(node).start().await.unwrap();
            }
            Fault::Disturbed { node, link, lasts } => self.disturb(node, link, lasts).await,
            Fault::Stopped { proxy, lasts } => {
                let process = Pid::from_raw(self.doors[proxy].proxy.pid().cast_signed());
                kill(process, Signal::SIGSTOP).unwrap();
                tokio::time::sleep(lasts).await;
                kill(process, Signal::SIGCONT).unwrap();
            }
            Fault::PrimaryRestarted { death } => {
                let primary = self.sandbox.primary().index();
                self.lose(primary, death).await;
                self.sandbox.node(primary).start().await.unwrap();
                self.taken_over(primary).await;
                self.loss_is_over().await;
            }
            Fault::Failover { death, back } => self.fail_over(death, back).await,
        }
        self.all_work().await;
    }

    /// Lets clients read so often in all.
    pub async fn read_until(&self, reads: usize) {
        let mut before = self.tally.reads.load(Ordering::Relaxed);
        while before < reads {
            self.all_work().await;
            tokio::time::sleep(Duration::from_millis(50)).await;
            before = self.tally.reads.load(Ordering::Relaxed);
        }
    }

    /// Has the clients finish. How many statements went to standbys, and how many reads to the primary, through the proxy of each
    /// promise.
    pub async fn end(mut self) -> Vec<(Promise, f64, f64)> {
        self.tally.stop.store(true, Ordering::Relaxed);
        for worker in std::mem::take(&mut self.workers) {
            if let Err(panic) = in_time("a client's last turn", worker.task).await {
                std::panic::resume_unwind(panic.into_panic());
            }
        }
        let mut shares = Vec::new();
        for door in &self.doors {
            let routed = async |labels: &[(&str, &str)]| {
                door.proxy.metric("pgsteer_statements_routed_total", labels).await
            };
            let primary = [("side", "primary")];
            let writes = routed(&[primary[0], ("reason", "needs_primary")]).await;
            shares.push((
                door.promise,
                routed(&[("side", "standby")]).await,
                routed(&primary).await - writes,
            ));
        }
        shares
    }

    fn standbys(&self) -> [usize; 2] {
        let primary = self.sandbox.primary().index();
        [(primary + 1) % 3, (primary + 2) % 3]
    }

    /// Every client has done more of its work.
    async fn all_work(&self) {
        let before: Vec<usize> = self.workers.iter().map(|it| it.done.load(Ordering::Relaxed)).collect();
        let late = |(worker, before): &(&Worker, &usize)| worker.done.load(Ordering::Relaxed) <= **before;
        let started = Instant::now();
        eventually("every client works", async || {
            let waits: Vec<Style> =
                self.workers.iter().zip(&before).filter(late).map(|(worker, _)| worker.style).collect();
            assert!(started.elapsed() < WORKS_AFTER, "these do not work: {waits:?}");
            assert!(!self.workers.iter().any(|it| it.task.is_finished()), "a client has found a fault");
            waits.is_empty()
        })
        .await;
    }

    async fn set_for_a_while(&self, standby: usize, setting: &str, lasts: Duration) {
        let client = self.sandbox.connect(self.standbys()[standby]).await.unwrap();
        let name = setting.split(' ').next().unwrap();
        client.batch_execute(&format!("ALTER SYSTEM SET {setting}")).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        tokio::time::sleep(lasts).await;
        client.batch_execute(&format!("ALTER SYSTEM RESET {name}")).await.unwrap();
        client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
        self.sandbox.wait_streaming().await.unwrap();
    }

    async fn disturb(&self, node: usize, link: Link, lasts: Duration) {
        let at = (self.sandbox.primary().index() + node) % 3;
        if node == 0 && link == Link::Refused {
            // It looks as if there were none; and nobody can write, since there is no other way.
            self.book.lock().unwrap().goes(Instant::now());
        }
        self.relays[at].set(link);
        self.book.lock().unwrap().has_gone(Instant::now());
        tokio::time::sleep(lasts).await;
        self.relays[at].set(Link::Open);
    }

    async fn strike(&self, node: usize, death: Death) {
        let node = self.sandbox.node(node);
        match death {
            Death::Kill9 => drop(node.kill9().await.unwrap()),
            Death::Immediate => node.stop_immediate().await.unwrap(),
            Death::Fast => node.stop_fast().await.unwrap(),
            Death::Frozen => node.sigstop().unwrap(),
        }
    }

    /// The primary ends, and what was not flushed with it.
    async fn lose(&self, primary: usize, death: Death) {
        let struck = Instant::now();
        self.book.lock().unwrap().loss_begins(struck);
        if death != Death::Frozen {
            self.book.lock().unwrap().goes(struck);
        }
        self.strike(primary, death).await;
        self.book.lock().unwrap().has_gone(Instant::now());
    }

    /// Whatever was answered by the lost primary has been noted by its client, once every client has gone on since.
    async fn loss_is_over(&self) {
        self.all_work().await;
        self.book.lock().unwrap().loss_is_over(Instant::now());
    }

    async fn fail_over(&self, death: Death, back: Return) {
        let old = self.sandbox.primary().index();
        self.lose(old, death).await;
        self.nothing_arrives().await;
        let new = self.sandbox.most_advanced_standby().await.unwrap();
        self.sandbox.promote_wait(new).await.unwrap();
        let other = 3 - old - new;
        self.follow(other, new).await;
        self.taken_over(new).await;
        if back == Return::AsItWas {
            self.returns_as_it_was(old).await;
        }
        if self.sandbox.node(old).is_running() {
            self.sandbox.node(old).stop_immediate().await.unwrap();
        }
        self.sandbox.reattach(old, new).await.unwrap();
        self.sandbox.wait_streaming().await.unwrap();
        self.loss_is_over().await;
    }

    /// Has a standby follow the new primary, whatever it takes.
    async fn follow(&self, node: usize, primary: usize) {
        self.sandbox.follow(node, primary).await.unwrap();
        let client = self.sandbox.connect(primary).await.unwrap();
        let sql = "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = $1";
        let streams = eventually("a standby streams", async || {
            client.query_one(sql, &[&self.sandbox.node(node).name()]).await.unwrap().get(0)
        });
        if tokio::time::timeout(STREAMS_AFTER, streams).await.is_err() {
            self.sandbox.reattach(node, primary).await.unwrap();
        }
    }

    /// Both standbys have all the WAL that the lost primary had sent them.
    async fn nothing_arrives(&self) {
        let mut clients = Vec::new();
        for node in self.standbys() {
            clients.push(self.sandbox.connect(node).await.unwrap());
        }
        let (mut before, mut in_a_row) = (Vec::new(), 0);
        eventually("nothing arrives", async || {
            let mut now = Vec::new();
            for client in &clients {
                let row = client.query_one("SELECT pg_last_wal_receive_lsn()::text", &[]).await.unwrap();
                now.push(row.get::<_, Option<String>>(0));
            }
            in_a_row = if now == before { in_a_row + 1 } else { 0 };
            before = now;
            in_a_row >= 20
        })
        .await;
    }

    /// X05: it claims to be a primary, and is taken for none.
    async fn returns_as_it_was(&self, old: usize) {
        let node = self.sandbox.node(old);
        if node.is_frozen() {
            node.sigcont().unwrap();
        } else {
            node.start().await.unwrap();
        }
        for door in &self.doors {
            eventually("the old primary is known for one", async || {
                let topology = door.proxy.topology().await;
                let nodes = topology["nodes"].as_array().unwrap();
                nodes.iter().any(|it| it["name"] == node.name() && it["role"] == "quarantined")
            })
            .await;
        }
    }

    async fn taken_over(&self, primary: usize) {
        let name = self.sandbox.node(primary).name();
        for door in &self.doors {
            eventually("the proxy has the primary", async || {
                door.proxy.topology().await["primary"]["name"].as_str() == Some(name)
            })
            .await;
        }
    }
}
