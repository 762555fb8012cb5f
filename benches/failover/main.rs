//! How long after a new primary can be written through pgsteer: by kind of failover, beside a client of libpq that knows all nodes.
//!
//! `make bench-failover`, or `cargo bench --bench failover -- --runs 20 --faults kill9,freeze`. Counted from the moment at which a direct
//! client that looks every millisecond sees the node out of recovery.
//! Invariant: each run has a cluster of its own; what it starts ends with it. Must not know: how pgsteer does it.

// A bench that can't go on ends by a panic.
#![allow(clippy::unwrap_used)]

#[path = "../../tests/running/mod.rs"]
mod running;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Node, Sandbox, Sync};
use running::relay::{Link, Relay};
use running::{Running, errors, eventually};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::task::JoinHandle;

/// So long a client of libpq is waited for.
const LIBPQ_LIMIT: Duration = Duration::from_secs(3);

/// How the primary goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// `kill -9` of all its processes.
    Kill9,
    /// `pg_ctl stop -m immediate`.
    Immediate,
    /// SIGSTOP: its sockets stay open.
    Freeze,
    /// Nothing comes through to it or from it any more.
    BlackHole,
    /// `pg_ctl stop -m fast`.
    Switchover,
    /// The same behind `POST /pause`.
    Pause,
    /// `kill -9`, and the same node is started again.
    Restart,
}

impl Fault {
    const ALL: [(&'static str, Self); 7] = [
        ("kill9", Self::Kill9),
        ("immediate", Self::Immediate),
        ("freeze", Self::Freeze),
        ("blackhole", Self::BlackHole),
        ("switchover", Self::Switchover),
        ("pause", Self::Pause),
        ("restart", Self::Restart),
    ];
}

/// When writes of one client were acknowledged, and the errors it got.
#[derive(Debug, Default)]
struct Record {
    acknowledged: Vec<Instant>,
    errors: BTreeMap<String, u64>,
}

impl Record {
    fn note(&mut self, error: Option<&String>) {
        match error {
            None => self.acknowledged.push(Instant::now()),
            Some(code) => *self.errors.entry(code.clone()).or_default() += 1,
        }
    }
}

type Shared = Arc<Mutex<Record>>;

fn first_after(record: &Shared, moment: Instant) -> Option<Instant> {
    record.lock().unwrap().acknowledged.iter().copied().find(|at| *at > moment)
}

fn begins(record: &Shared) -> bool {
    record.lock().unwrap().acknowledged.len() > 50
}

/// Writes through pgsteer, one statement after the other.
async fn write(proxy: &Running) -> (Shared, JoinHandle<()>) {
    let record = Shared::default();
    let mut client = proxy.raw_logged_in().await;
    client.stream.set_nodelay(true).unwrap();
    let kept = Arc::clone(&record);
    let task = tokio::spawn(async move {
        loop {
            let answer = client.query("INSERT INTO ledger VALUES (1)").await;
            kept.lock().unwrap().note(errors(&answer).first());
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    });
    (record, task)
}

/// The client of libpq, as a process; it ends with this value.
struct Libpq {
    record: Shared,
    _child: tokio::process::Child,
}

impl Libpq {
    fn start(nodes: &[SocketAddr], user: &str) -> Option<Self> {
        let target = std::env::var("CARGO_TARGET_DIR").unwrap_or_else(|_| "target".to_owned());
        let python = Path::new(&target).join("drivers/python/bin/python");
        let of = |part: fn(&SocketAddr) -> String| nodes.iter().map(part).collect::<Vec<_>>().join(",");
        let conninfo = format!(
            "host={} port={} user={user} dbname=postgres target_session_attrs=read-write connect_timeout=2",
            of(|node| node.ip().to_string()),
            of(|node| node.port().to_string())
        );
        let mut child = tokio::process::Command::new(python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/failover/libpq_client.py"))
            .arg(conninfo)
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .ok()?;
        let mut lines = BufReader::new(child.stdout.take()?).lines();
        let record = Shared::default();
        let kept = Arc::clone(&record);
        tokio::spawn(async move {
            while let Ok(Some(_)) = lines.next_line().await {
                kept.lock().unwrap().acknowledged.push(Instant::now());
            }
        });
        Some(Self { record, _child: child })
    }
}

/// The end of an outage as a direct client has it.
struct Seen {
    /// It was ordered.
    ordered: Instant,
    /// The node is out of recovery.
    writable: Instant,
    /// The client's own first write, sent at that moment, was answered: no proxy can be sooner.
    wrote: Instant,
}

/// Looks every millisecond on one connection, and writes as soon as the node can be written. `None`: the connection is lost.
async fn first_write(client: &tokio_postgres::Client, ordered: Instant) -> Option<Seen> {
    while client.query_one("SELECT pg_is_in_recovery()", &[]).await.ok()?.get::<_, bool>(0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let writable = Instant::now();
    client.batch_execute("INSERT INTO direct VALUES (1)").await.ok()?;
    Some(Seen { ordered, writable, wrote: Instant::now() })
}

/// The same for a node that is starting.
async fn first_write_behind_a_start(node: &Node, ordered: Instant) -> Seen {
    loop {
        if let Ok(client) = node.connect().await
            && let Some(seen) = first_write(&client, ordered).await
        {
            return seen;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// What one run has shown.
struct Shown {
    promotion: Duration,
    /// Milliseconds of a direct client's write.
    direct: f64,
    /// The same from the first doubt on, where that came later: what its detection is not part of.
    behind_doubt: f64,
    /// The record of the failover, as pgsteer has it.
    told: serde_json::Value,
    /// In milliseconds; below zero when it was answered before the direct client had looked again.
    pgsteer: f64,
    libpq: Option<f64>,
    errors: BTreeMap<String, u64>,
}

async fn run(fault: Fault) -> Shown {
    let sandbox = Sandbox::builder().sync(Sync::Async).auth(Auth::Trust).fsync(false).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE ledger (id bigint); CREATE TABLE direct (id bigint)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let mut nodes: Vec<SocketAddr> = sandbox.nodes().iter().map(Node::address).collect();
    let relay = Relay::start(nodes[0]).await;
    if fault == Fault::BlackHole {
        nodes[0] = relay.address;
    }
    let proxy = Running::start_at(&nodes, &sandbox, &["--auth", "trust"], &[]).await;
    let (through, writing) = write(&proxy).await;
    let libpq = Libpq::start(&nodes, sandbox.user());
    let at_work = || begins(&through) && libpq.as_ref().is_none_or(|libpq| begins(&libpq.record));
    eventually("the clients write", async || at_work()).await;
    if fault == Fault::Pause {
        assert_eq!(proxy.post("/pause").await.0, 200);
        eventually("nothing runs", async || proxy.get("/pause").await.unwrap().1.contains("\"paused\""))
            .await;
    }
    let seen = strike(&sandbox, fault, &relay).await;
    let after = |record: &Shared| first_after(record, seen.ordered);
    eventually("writes go on", async || after(&through).is_some()).await;
    writing.abort();
    // A client whose server is silent waits for ever unless it has a limit of its own.
    let libpq_wrote = async {
        while libpq.as_ref().is_some_and(|libpq| after(&libpq.record).is_none()) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let _ = tokio::time::timeout(LIBPQ_LIMIT, libpq_wrote).await;
    let beyond = |record: &Shared| {
        let first = after(record)?;
        Some(if first > seen.writable {
            millis(first - seen.writable)
        } else {
            -millis(seen.writable - first)
        })
    };
    let errors = through.lock().unwrap().errors.clone();
    let told = proxy.get("/topology/events").await.map(|it| it.1).unwrap_or_default();
    let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_default();
    let behind_doubt = millis(after(&through).unwrap().saturating_duration_since(doubted_at(&told)));
    Shown {
        promotion: seen.writable - seen.ordered,
        direct: millis(seen.wrote - seen.writable),
        behind_doubt: beyond(&through).unwrap().min(behind_doubt),
        told,
        pgsteer: beyond(&through).unwrap(),
        libpq: libpq.as_ref().and_then(|libpq| beyond(&libpq.record)),
        errors,
    }
}

/// When the last failover's primary was first doubted, to a millisecond.
fn doubted_at(told: &serde_json::Value) -> Instant {
    let last = told["failovers"].as_array().and_then(|records| records.last());
    let age = last.and_then(|record| record["age_ms"].as_u64()).unwrap_or_default();
    Instant::now().checked_sub(Duration::from_millis(age)).expect("a moment of this run")
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

async fn strike(sandbox: &Sandbox, fault: Fault, relay: &Relay) -> Seen {
    let old = sandbox.primary();
    match fault {
        Fault::Kill9 | Fault::Restart => drop(old.kill9().await.unwrap()),
        Fault::Immediate => old.stop_immediate().await.unwrap(),
        Fault::Freeze => old.sigstop().unwrap(),
        Fault::BlackHole => relay.set(Link::Silent),
        Fault::Switchover | Fault::Pause => old.stop_fast().await.unwrap(),
    }
    if fault == Fault::Restart {
        let (started, seen) = tokio::join!(old.start(), first_write_behind_a_start(old, Instant::now()));
        started.unwrap();
        return seen;
    }
    let chosen = sandbox.most_advanced_standby().await.unwrap();
    let client = sandbox.connect(chosen).await.unwrap();
    let ordered = Instant::now();
    let watcher = tokio::spawn(async move { first_write(&client, ordered).await });
    sandbox.promote(chosen).unwrap();
    watcher.await.unwrap().expect("the new primary lives")
}

fn median_and_worst(values: &[f64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.last() {
        Some(worst) => format!("{:.1} / {worst:.1}", sorted[sorted.len() / 2]),
        None => "-".to_owned(),
    }
}

fn option(arguments: &[String], name: &str) -> Option<String> {
    let at = arguments.iter().position(|argument| argument == name)?;
    arguments.get(at + 1).cloned()
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let runs: usize = option(&arguments, "--runs").map_or(20, |runs| runs.parse().expect("--runs N"));
    let wanted = option(&arguments, "--faults");
    let is_wanted = |name: &str| wanted.as_ref().is_none_or(|wanted| wanted.split(',').any(|it| it == name));
    println!(
        "milliseconds from the end of recovery to the first acknowledged write, median / worst of {runs} runs\n"
    );
    println!(
        "| fault | promotion or restart itself, ms | direct write, ms | pgsteer, ms | behind its first doubt, ms | libpq, ms | errors of pgsteer's client |"
    );
    println!("|---|---:|---:|---:|---:|---:|---|");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (name, fault) in Fault::ALL.into_iter().filter(|(name, _)| is_wanted(name)) {
        let shown: Vec<Shown> = (0..runs).map(|_| runtime.block_on(run(fault))).collect();
        let promotions: Vec<f64> = shown.iter().map(|it| millis(it.promotion)).collect();
        let pgsteer: Vec<f64> = shown.iter().map(|it| it.pgsteer).collect();
        let libpq: Vec<f64> = shown.iter().filter_map(|it| it.libpq).collect();
        let mut errors: BTreeMap<&str, u64> = BTreeMap::new();
        for (code, count) in shown.iter().flat_map(|it| &it.errors) {
            *errors.entry(code).or_default() += count;
        }
        let errors: Vec<String> = errors.iter().map(|(code, count)| format!("{code} x{count}")).collect();
        let errors = if errors.is_empty() { "none".to_owned() } else { errors.join(", ") };
        let silent = shown.len() - libpq.len();
        let never = if silent > 0 { format!(" ({silent} runs without)") } else { String::new() };
        if std::env::var_os("TRACE").is_some() {
            for it in &shown {
                eprintln!(
                    "direct {:.1} pgsteer {:.1} libpq {:?} {}",
                    it.direct, it.pgsteer, it.libpq, it.told["failovers"]
                );
            }
        }
        println!(
            "| {name} | {} | {} | {} | {} | {}{never} | {errors} |",
            median_and_worst(&promotions),
            median_and_worst(&shown.iter().map(|it| it.direct).collect::<Vec<f64>>()),
            median_and_worst(&pgsteer),
            median_and_worst(&shown.iter().map(|it| it.behind_doubt).collect::<Vec<f64>>()),
            median_and_worst(&libpq)
        );
    }
}
