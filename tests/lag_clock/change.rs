//! R06, R08: staleness over a change of the primary. A counter goes up all the time on whoever is the primary; what pgsteer says of each
//! standby is held against the value that the standby itself shows afterwards, and reads within budgets against what was acknowledged.
//!
//! Invariant: a node's value is asked of the node itself, past pgsteer. Must not know: how staleness is measured.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use tokio::task::JoinHandle;
use tokio_postgres::Client;

use super::book::{Book, Commit, TOLD_WITHIN};
use super::running::eventually;
use super::{LAG, Watched, cut_off, set};

const KEY: i32 = 1;
/// Budgets that are asked for, milliseconds.
const BUDGETS_MS: [u64; 3] = [60, 250, 1_000];
const STANDBYS: usize = 3;

/// What those who look on found.
#[derive(Default)]
struct Seen {
    samples: AtomicUsize,
    reads: AtomicUsize,
    /// When reads were sent that showed what was lost with the primary.
    lost: Mutex<Vec<Instant>>,
    violations: Mutex<Vec<String>>,
}

struct Changing {
    watched: Arc<Watched>,
    book: Arc<Mutex<Book>>,
    seen: Arc<Seen>,
    stop: Arc<AtomicBool>,
    onlookers: Vec<JoinHandle<()>>,
}

/// Writes until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Writer {
    async fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap();
    }
}

impl Changing {
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(STANDBYS).auth(Auth::Trust).start().await.unwrap();
        let watched = Arc::new(Watched::of(sandbox).await);
        watched
            .direct
            .batch_execute("ALTER TABLE t ADD COLUMN lost bool NOT NULL DEFAULT false")
            .await
            .unwrap();
        let mut it = Self {
            watched,
            book: Arc::new(Mutex::new(Book::new(1, [(KEY, (0, Commit::Synchronous))]))),
            seen: Arc::default(),
            stop: Arc::default(),
            onlookers: Vec::new(),
        };
        it.watched.sandbox.wait_caught_up().await.unwrap();
        for node in 1..=STANDBYS {
            it.watched.wait_fresh(node).await;
        }
        for budget_ms in BUDGETS_MS {
            it.read_within(Duration::from_millis(budget_ms)).await;
        }
        for node in 1..=STANDBYS {
            it.watch(node).await;
        }
        it
    }

    fn sandbox(&self) -> &Sandbox {
        &self.watched.sandbox
    }

    /// Counts on this primary.
    async fn write_on(&self, node: usize) -> Writer {
        let client = self.sandbox().connect(node).await.unwrap();
        let (stop, book): (Arc<AtomicBool>, _) = (Arc::default(), Arc::clone(&self.book));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(5));
            while !stopped.load(Ordering::Relaxed) {
                pace.tick().await;
                let sent = Instant::now();
                let row = client.query_one("UPDATE t SET i = i + 1 RETURNING i", &[]).await.unwrap();
                let times = (sent, Instant::now());
                book.lock().unwrap().acknowledged(0, (KEY, row.get(0)), times);
            }
        });
        Writer { stop, task }
    }

    /// Reads through pgsteer as fast as it answers.
    async fn read_within(&mut self, budget: Duration) {
        let client = self.watched.proxy.client().await;
        client.batch_execute(&format!("SET pgsteer.max_lag = '{}ms'", budget.as_millis())).await.unwrap();
        let (book, seen, stop) = (Arc::clone(&self.book), Arc::clone(&self.seen), Arc::clone(&self.stop));
        self.onlookers.push(tokio::spawn(async move {
            while !stop.load(Ordering::Relaxed) {
                let sent = Instant::now();
                let row = match client.query_one("SELECT i, lost FROM t", &[]).await {
                    Ok(row) => row,
                    // It ran on the primary that was killed.
                    Err(error) if error.code().is_some_and(|code| code.code() == "08007") => continue,
                    Err(error) => panic!("{error:?}"),
                };
                seen.reads.fetch_add(1, Ordering::Relaxed);
                if row.get(1) {
                    seen.lost.lock().unwrap().push(sent);
                }
                if let Some(violation) = book.lock().unwrap().beyond(0, (KEY, row.get(0)), (sent, budget)) {
                    seen.violations.lock().unwrap().push(format!("a read: {violation:?}"));
                }
            }
        }));
    }

    /// Holds what is told of a node against what the node shows behind that.
    async fn watch(&mut self, node: usize) {
        let direct = self.sandbox().connect(node).await.unwrap();
        let begin = Instant::now();
        let watched = Arc::clone(&self.watched);
        let (book, seen, stop) = (Arc::clone(&self.book), Arc::clone(&self.seen), Arc::clone(&self.stop));
        self.onlookers.push(tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(3));
            while !stop.load(Ordering::Relaxed) {
                pace.tick().await;
                let Some(told) = watched.told(node).await else { continue };
                let shows = value(&direct).await;
                seen.samples.fetch_add(1, Ordering::Relaxed);
                // Milliseconds are told as whole ones.
                let staleness = told.staleness + Duration::from_millis(1);
                let less = book.lock().unwrap().beyond(0, (KEY, shows), (told.asked, staleness));
                // Nothing is older than this, but for what was there before.
                let absurd = told.staleness > told.answered - begin + LAG || told.error > told.staleness;
                if less.is_some() || absurd {
                    seen.violations.lock().unwrap().push(format!("node {node}: {told:?} {less:?}"));
                }
            }
        }));
    }

    async fn wait_told(&self, what: &str, node: usize, holds: impl Fn(Duration) -> bool) {
        eventually(what, async || self.watched.told(node).await.is_some_and(|told| holds(told.staleness)))
            .await;
    }

    /// The primary dies with a write that one standby has and the next primary lacks. Gives when that one was known to all.
    async fn change_primary(&self, writer: Writer) -> (Writer, Instant) {
        writer.stop().await;
        let last = value(&self.watched.direct).await;
        let next = self.sandbox().connect(1).await.unwrap();
        eventually("the next primary has all", async || value(&next).await == last).await;
        cut_off(&next).await;
        self.watched.direct.batch_execute("UPDATE t SET lost = true").await.unwrap();
        let ahead = self.sandbox().connect(STANDBYS).await.unwrap();
        eventually("one standby has what will be lost", async || {
            ahead.query_one("SELECT lost FROM t", &[]).await.unwrap().get(0)
        })
        .await;

        self.book.lock().unwrap().goes(Instant::now());
        let killed = self.sandbox().node(0).kill9().await.unwrap();
        self.book.lock().unwrap().has_gone(killed);
        eventually("it is known to be gone", async || {
            self.watched.proxy.topology().await["frozen_for_ms"].is_u64()
        })
        .await;
        self.sandbox().promote_wait(1).await.unwrap();
        // Who is made a copy of it has its settings.
        set(&next, "RESET primary_conninfo").await;
        let writer = self.write_on(1).await;
        eventually("the new primary is known", async || self.watched.proxy.topology().await["epoch"] == 2)
            .await;
        (writer, Instant::now())
    }

    async fn end(self) -> Seen {
        self.stop.store(true, Ordering::Relaxed);
        for onlooker in self.onlookers {
            onlooker.await.unwrap();
        }
        Arc::into_inner(self.seen).unwrap()
    }
}

async fn value(client: &Client) -> i64 {
    client.query_one("SELECT i FROM t", &[]).await.unwrap().get(0)
}

/// R06, R08: a standby that lags when the primary goes, one that has what went with it, and both on the new timeline.
#[tokio::test]
async fn r06_staleness_is_right_over_a_change_of_primary() {
    let it = Changing::start().await;
    let sandbox = it.sandbox();
    let writer = it.write_on(0).await;
    cut_off(&sandbox.connect(2).await.unwrap()).await;
    it.wait_told("node 2 lags", 2, |staleness| staleness > LAG).await;
    it.wait_told("node 3 does not", 3, |staleness| staleness < LAG).await;
    let (writer, known) = it.change_primary(writer).await;

    // By its position alone, node 3 would soon have all that the new primary has.
    let (primary, ahead) = (sandbox.connect(1).await.unwrap(), sandbox.connect(3).await.unwrap());
    let replayed: String =
        ahead.query_one("SELECT pg_last_wal_replay_lsn()::text", &[]).await.unwrap().get(0);
    let is_beyond = format!("SELECT pg_current_wal_flush_lsn() > '{replayed}'::pg_lsn + 100000");
    eventually("the new primary is beyond it", async || {
        assert_eq!(it.watched.told(3).await.map(|told| told.staleness), None, "it is of another history");
        assert_eq!(it.watched.told(2).await.map(|told| told.staleness), None, "it lacks all of this one");
        primary.query_one(&is_beyond, &[]).await.unwrap().get(0)
    })
    .await;

    sandbox.follow(2, 1).await.unwrap();
    let standby = sandbox.connect(2).await.unwrap();
    set(&standby, "RESET primary_conninfo").await;
    it.wait_told("node 2 has caught up on the new timeline", 2, |staleness| staleness < LAG).await;
    for _ in 0..2 {
        sandbox.node(2).pause_replay().await.unwrap();
        it.wait_told("node 2 lags on the new timeline", 2, |staleness| staleness > LAG).await;
        sandbox.node(2).resume_replay().await.unwrap();
        it.wait_told("node 2 has caught up again", 2, |staleness| staleness < LAG).await;
    }
    let to_standbys =
        async || it.watched.proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    let before = to_standbys().await;
    eventually("reads run there", async || to_standbys().await > before + 100.0).await;
    sandbox.reattach(0, 1).await.unwrap();
    it.wait_told("the old primary is a standby", 0, |staleness| staleness < LAG).await;
    assert_eq!(it.watched.told(3).await.map(|told| told.staleness), None, "it is of another history");
    writer.stop().await;

    let seen = it.end().await;
    println!("{:?} samples, {:?} reads", seen.samples, seen.reads);
    let violations = seen.violations.into_inner().unwrap();
    assert!(
        violations.is_empty(),
        "{} violations:\n{}",
        violations.len(),
        violations[..violations.len().min(20)].join("\n")
    );
    let lost = seen.lost.into_inner().unwrap();
    assert!(lost.iter().all(|sent| *sent < known + TOLD_WITHIN), "what was lost is shown again");
}
