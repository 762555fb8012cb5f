//! R06: what pgsteer says of a standby's staleness, held against the times of this process: it is never less than the truth, and no
//! more than the truth and the error that it tells; over a change of the primary, too (`lag_clock/change.rs`).

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

#[allow(dead_code, reason = "the checker of freshness uses the rest of it")]
#[path = "freshness/book.rs"]
mod book;
#[path = "lag_clock/change.rs"]
mod change;
mod running;

use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Sandbox};
use running::relay::{Link, Relay};
use running::{Running, eventually};
use tokio_postgres::Client;

/// What a standby is to lag at least while it is kept from replaying.
const LAG: Duration = Duration::from_millis(400);

/// A cluster and a proxy whose reads are bound by the lag budget alone.
struct Watched {
    sandbox: Sandbox,
    proxy: Running,
    /// The primary.
    direct: Client,
}

/// A write that was sent and answered at these times.
#[derive(Debug, Clone, Copy)]
struct Written {
    sent: Instant,
    answered: Instant,
}

/// What is said of one standby, asked for and told at these times.
#[derive(Debug, Clone, Copy)]
struct Told {
    asked: Instant,
    answered: Instant,
    staleness: Duration,
    error: Duration,
}

impl Watched {
    async fn start(sandbox: Sandbox, nodes: &[std::net::SocketAddr]) -> Self {
        let direct = sandbox.connect(0).await.unwrap();
        direct.batch_execute("CREATE TABLE t (i bigint); INSERT INTO t VALUES (0)").await.unwrap();
        let environment =
            [("PGSTEER_ROUTING_CONSISTENCY", "eventual"), ("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
        let args = ["--auth", "trust", "--max-lag", "1s"];
        let proxy = Running::start_at(nodes, &sandbox, &args, &environment).await;
        Self { sandbox, proxy, direct }
    }

    async fn of(sandbox: Sandbox) -> Self {
        let nodes: Vec<_> = sandbox.nodes().iter().map(pgsteer::sandbox::Node::address).collect();
        Self::start(sandbox, &nodes).await
    }

    async fn write(&self) -> Written {
        let sent = Instant::now();
        self.direct.batch_execute("UPDATE t SET i = i + 1").await.unwrap();
        Written { sent, answered: Instant::now() }
    }

    /// `None`: nothing is known of it.
    async fn told(&self, node: usize) -> Option<Told> {
        let asked = Instant::now();
        let topology = self.proxy.topology().await;
        let answered = Instant::now();
        let name = self.sandbox.node(node).name();
        let view =
            topology["nodes"].as_array().unwrap().iter().find(|it| it["name"] == name).unwrap().clone();
        let millis = |key: &str| Some(Duration::from_millis(view[key].as_u64()?));
        Some(Told {
            asked,
            answered,
            staleness: millis("staleness_ms")?,
            error: millis("staleness_error_ms")?,
        })
    }

    /// It has all that the primary has, as far as is known: what is told is nothing but error.
    async fn wait_fresh(&self, node: usize) {
        eventually(&format!("node {node} is fresh"), async || {
            self.told(node).await.is_some_and(|told| told.staleness == told.error && told.staleness < LAG)
        })
        .await;
    }

    /// The standby lacks this write, and nothing before it.
    async fn wait_stale(&self, node: usize, written: Written) {
        // Milliseconds are told as whole ones.
        let whole = Duration::from_millis(1);
        eventually(&format!("node {node} is stale"), async || {
            let Some(told) = self.told(node).await else { return false };
            let at_least = told.asked.saturating_duration_since(written.answered);
            assert!(told.staleness + whole >= at_least, "{told:?} {written:?}: less than the truth");
            let at_most = told.answered - written.sent;
            assert!(
                told.staleness <= at_most + told.error + whole,
                "{told:?} {written:?}: more than the error"
            );
            told.staleness > LAG
        })
        .await;
    }
}

async fn set(client: &Client, setting: &str) {
    client.batch_execute(&format!("ALTER SYSTEM {setting}")).await.unwrap();
    client.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

/// The standby gets no WAL any more. (Not while its replay is paused.)
async fn cut_off(standby: &Client) {
    set(standby, "SET primary_conninfo = ''").await;
    let receivers = "SELECT count(*) FROM pg_stat_wal_receiver";
    eventually("it gets no WAL", async || {
        standby.query_one(receivers, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

/// R06: an idle primary, replay that is paused, replay that is delayed, a standby that gets no WAL and has replayed all of it.
#[tokio::test]
async fn r06_staleness_is_right_in_every_way_to_lag() {
    let it = Watched::of(Sandbox::builder().auth(Auth::Trust).start().await.unwrap()).await;
    for node in [1, 2] {
        it.wait_fresh(node).await;
    }
    // Nothing is written for longer than any interval: that is no lag.
    let idle = Instant::now();
    while idle.elapsed() < LAG {
        let told = it.told(1).await.unwrap();
        assert!(told.staleness <= told.error + Duration::from_millis(1) || told.staleness < LAG, "{told:?}");
    }
    it.wait_fresh(1).await;

    it.sandbox.node(1).pause_replay().await.unwrap();
    let written = it.write().await;
    it.wait_stale(1, written).await;
    it.wait_fresh(2).await;
    it.sandbox.node(1).resume_replay().await.unwrap();
    it.wait_fresh(1).await;

    let standby = it.sandbox.connect(1).await.unwrap();
    set(&standby, "SET recovery_min_apply_delay = '1h'").await;
    // Replay hears of it by and by: until then it replays what is written.
    let put_off = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'RecoveryApplyDelay'";
    let number = async |client: &Client, sql| client.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    let written = loop {
        let written = it.write().await;
        let last = number(&it.direct, "SELECT i FROM t").await;
        let mut is_put_off = false;
        eventually("it is replayed, or put off", async || {
            is_put_off = number(&standby, put_off).await == 1;
            is_put_off || number(&standby, "SELECT i FROM t").await == last
        })
        .await;
        if is_put_off {
            break written;
        }
    };
    it.wait_stale(1, written).await;
    set(&standby, "RESET recovery_min_apply_delay").await;
    it.wait_fresh(1).await;

    cut_off(&standby).await;
    let written = it.write().await;
    it.wait_stale(1, written).await;
    let caught_up = "SELECT pg_last_wal_receive_lsn() = pg_last_wal_replay_lsn()";
    assert!(
        standby.query_one(caught_up, &[]).await.unwrap().get::<_, bool>(0),
        "replay = receive says nothing"
    );
    set(&standby, "RESET primary_conninfo").await;
    it.wait_fresh(1).await;
}

/// R06: a standby of a standby is as stale as what it replays, whatever the one before it replays.
#[tokio::test]
async fn r06_a_cascading_standby_is_measured_against_the_primary() {
    let it = Watched::of(Sandbox::builder().auth(Auth::Trust).start().await.unwrap()).await;
    it.sandbox.follow(2, 1).await.unwrap();
    let upstream = it.sandbox.connect(1).await.unwrap();
    let streams = "SELECT count(*) FROM pg_stat_replication WHERE state = 'streaming'";
    eventually("node 2 streams from node 1", async || {
        upstream.query_one(streams, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    it.write().await;
    it.wait_fresh(2).await;

    it.sandbox.node(2).pause_replay().await.unwrap();
    let written = it.write().await;
    it.wait_stale(2, written).await;
    it.wait_fresh(1).await;
    it.sandbox.node(2).resume_replay().await.unwrap();
    it.wait_fresh(2).await;

    // What keeps node 1 from its primary keeps node 2 from it as well.
    cut_off(&upstream).await;
    let written = it.write().await;
    it.wait_stale(2, written).await;
    set(&upstream, "RESET primary_conninfo").await;
    it.wait_fresh(2).await;
}

/// R06: a standby whose answers are late is taken for as stale as its last one says; one that answers is not held up by it.
#[tokio::test]
async fn r06_a_late_answer_makes_no_standby_fresher() {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    let mut relays = Vec::new();
    for node in sandbox.nodes() {
        relays.push(Relay::start(node.address()).await);
    }
    let nodes: Vec<_> = relays.iter().map(|relay| relay.address).collect();
    let it = Watched::start(sandbox, &nodes).await;
    it.wait_fresh(1).await;
    relays[1].set(Link::Mute);
    let written = it.write().await;
    it.sandbox.wait_caught_up().await.unwrap();
    it.wait_stale(1, written).await;
    it.wait_fresh(2).await;
    relays[1].set(Link::Open);
    it.wait_fresh(1).await;
}

/// R06: what pgsteer knew before it was stopped is as old as the time that it was.
#[tokio::test]
async fn r06_time_in_which_pgsteer_was_stopped_counts() {
    let it = Watched::of(Sandbox::builder().auth(Auth::Trust).start().await.unwrap()).await;
    let client = it.proxy.client().await;
    let read = async || client.query_one("SELECT i FROM t", &[]).await.unwrap().get::<_, i64>(0);
    let to_standbys =
        async || it.proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    let process = Pid::from_raw(it.proxy.pid().cast_signed());
    for round in 1..=3 {
        eventually("a standby answers what is there", async || {
            let before = to_standbys().await;
            read().await == round - 1 && to_standbys().await > before
        })
        .await;
        for node in [1, 2] {
            it.sandbox.node(node).pause_replay().await.unwrap();
        }
        kill(process, Signal::SIGSTOP).unwrap();
        let written = it.write().await;
        // Beyond the budget of a second.
        tokio::time::sleep_until((written.answered + Duration::from_millis(1_050)).into()).await;
        let (seen, ()) = tokio::join!(read(), async { kill(process, Signal::SIGCONT).unwrap() });
        assert_eq!(seen, round, "a read more than a second after the write");
        for node in [1, 2] {
            it.sandbox.node(node).resume_replay().await.unwrap();
        }
    }
}

/// R06: nor is it known, behind such a stop, that there is still no primary.
#[tokio::test]
async fn r06_time_in_which_pgsteer_was_stopped_counts_without_a_primary_too() {
    let it = Watched::of(Sandbox::builder().auth(Auth::Trust).start().await.unwrap()).await;
    it.write().await;
    it.sandbox.wait_caught_up().await.unwrap();
    for node in [1, 2] {
        it.wait_fresh(node).await;
    }
    let mut clients = Vec::new();
    for _ in 0..8 {
        let client = it.proxy.client().await;
        // What is asked for the first time brings questions about the database with it.
        client.simple_query("SELECT i FROM t").await.unwrap();
        clients.push(client);
    }
    it.sandbox.node(0).kill9().await.unwrap();
    eventually("it is known to be gone", async || it.proxy.topology().await["frozen_for_ms"].is_u64()).await;
    let process = Pid::from_raw(it.proxy.pid().cast_signed());
    kill(process, Signal::SIGSTOP).unwrap();
    it.sandbox.promote_wait(1).await.unwrap();
    it.sandbox.connect(1).await.unwrap().batch_execute("UPDATE t SET i = i + 1").await.unwrap();
    let written = Instant::now();
    // Beyond the budget of a second.
    tokio::time::sleep_until((written + Duration::from_millis(1_050)).into()).await;
    let reads = clients.iter().map(|client| client.simple_query("SELECT i::text FROM t"));
    let (seen, ()) = tokio::join!(futures_util::future::join_all(reads), async {
        kill(process, Signal::SIGCONT).unwrap();
    });
    for messages in seen {
        let messages = messages.unwrap();
        let row = messages.iter().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        assert_eq!(row, Some("2"), "a read more than a second after the write");
    }
}
