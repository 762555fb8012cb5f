//! `pgsteer pause` and `resume`: what runs on the primary may end, what would begin there waits, reads go on.
//!
//! The switchover behind a pause is in `failover.rs`.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, no_errors, query, values};

async fn cluster() -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let args = ["--auth", "trust", "--max-lag", "1h", "--hold-timeout", "20s"];
    let proxy = Running::start(&sandbox, &args).await;
    (sandbox, proxy)
}

/// Runs this program's `pause` or `resume`, on a thread of its own.
async fn command(proxy: &Running, arguments: &[&str]) -> Output {
    let admin = proxy.admin.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteer"));
    command.args(arguments).args(["--admin", &admin]);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

async fn waiting(proxy: &Running, count: f64) {
    eventually("so many are held", async || {
        (proxy.metric("pgsteer_statements_waiting", &[]).await - count).abs() < 0.5
    })
    .await;
}

async fn answer(client: &mut RawClient) -> Vec<String> {
    errors(&client.read_until(b'Z').await)
}

#[tokio::test]
async fn what_runs_may_end_and_what_would_begin_waits() {
    let (_sandbox, proxy) = cluster().await;
    let [mut busy, mut pinned, mut other, mut begins, mut reader] = [
        proxy.raw_logged_in().await,
        proxy.raw_logged_in().await,
        proxy.raw_logged_in().await,
        proxy.raw_logged_in().await,
        proxy.raw_logged_in().await,
    ];
    no_errors(&busy.query("BEGIN; INSERT INTO t VALUES (1)").await);
    no_errors(&pinned.query("CREATE TEMP TABLE mine (n int)").await);
    // Behind an answer pgsteer may still ask for the session's state.
    eventually("one is left", async || {
        let out = command(&proxy, &["pause", "--wait", "0"]).await;
        assert_eq!(out.status.code(), Some(3), "{out:?}");
        String::from_utf8_lossy(&out.stdout).contains("1 still run")
    })
    .await;
    other.send(&query("INSERT INTO t VALUES (2)")).await;
    pinned.send(&query("INSERT INTO mine VALUES (1)")).await;
    assert_eq!(errors(&begins.query("BEGIN").await), [""; 0], "nothing of it needs a server");
    begins.send(&query("INSERT INTO t VALUES (3)")).await;
    let mut late = proxy.raw_logged_in().await;
    late.send(&query("INSERT INTO t VALUES (4)")).await;
    waiting(&proxy, 4.0).await;
    // A read has nothing to do with it.
    eventually("a standby answers", async || values(&reader.query("SELECT count(*) FROM t").await) == ["0"])
        .await;
    no_errors(&busy.query("INSERT INTO t VALUES (5)").await);
    no_errors(&busy.query("COMMIT").await);
    let out = command(&proxy, &["pause", "--wait", "10"]).await;
    assert!(out.status.success(), "{out:?}");
    waiting(&proxy, 4.0).await;
    let out = command(&proxy, &["resume"]).await;
    assert!(out.status.success(), "{out:?}");
    for client in [&mut other, &mut pinned, &mut begins, &mut late] {
        assert_eq!(answer(client).await, [""; 0]);
    }
    no_errors(&begins.query("COMMIT").await);
    assert_eq!(values(&other.query("/* pgsteer: target=primary */ SELECT count(*) FROM t").await), ["5"]);
    assert_eq!(values(&pinned.query("SELECT count(*) FROM mine").await), ["1"]);
}

#[tokio::test]
async fn a_pause_that_nobody_ends_is_over_when_its_time_is_up() {
    let (_sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    let began = Instant::now();
    assert_eq!(proxy.post("/pause?for=400ms&until=resume").await.0, 200);
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    assert!(began.elapsed() >= Duration::from_millis(400));
    // One that is not understood changes nothing.
    assert_eq!(proxy.post("/pause?for=soon").await.0, 400);
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
}

#[tokio::test]
async fn a_held_statement_can_be_cancelled_and_times_out_in_words_of_its_own() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--hold-timeout", "1s"]).await;
    let (mut client, key) = proxy.raw_with_key(3 << 16).await;
    no_errors(&client.query("CREATE TABLE t (n int)").await);
    assert_eq!(proxy.post("/pause").await.0, 200);
    client.send(&query("INSERT INTO t VALUES (1)")).await;
    waiting(&proxy, 1.0).await;
    proxy.cancel(&key).await;
    assert_eq!(answer(&mut client).await, ["57014"]);
    let refused = client.query("INSERT INTO t VALUES (1)").await;
    assert_eq!(errors(&refused), ["57P03"]);
    assert_eq!(refused[0].field(b'M').as_deref(), Some("pgsteer: paused"));
    assert_eq!(proxy.post("/resume").await.0, 200);
    assert_eq!(values(&client.query("INSERT INTO t VALUES (1) RETURNING n").await), ["1"]);
}

/// Who waits for a connection when the pause begins does not get one; a cancel ends the wait of whoever has one.
#[tokio::test]
async fn who_waits_for_a_connection_when_it_begins_is_held() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--pool-size", "1", "--shards", "1"]).await;
    let (mut busy, mut waits) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    no_errors(&busy.query("CREATE TABLE t (n int)").await);
    no_errors(&busy.query("BEGIN; INSERT INTO t VALUES (1)").await);
    waits.send(&query("INSERT INTO t VALUES (2)")).await;
    eventually("it waits", async || proxy.get("/pools").await.unwrap().1.contains("\"waiting\": 1")).await;
    assert_eq!(proxy.post("/pause?until=resume").await.0, 200);
    no_errors(&busy.query("COMMIT").await);
    waiting(&proxy, 1.0).await;
    let direct = sandbox.connect(0).await.unwrap();
    let count = async || direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(count().await, 1);
    assert_eq!(proxy.post("/resume").await.0, 200);
    assert_eq!(answer(&mut waits).await, [""; 0]);
    drop(waits);
    // One that stays on the primary.
    let (mut pinned, key) = proxy.raw_with_key(3 << 16).await;
    no_errors(&pinned.query("CREATE TEMP TABLE mine (n int)").await);
    assert_eq!(proxy.post("/pause?until=resume").await.0, 200);
    pinned.send(&query("INSERT INTO t VALUES (3)")).await;
    waiting(&proxy, 1.0).await;
    proxy.cancel(&key).await;
    assert_eq!(answer(&mut pinned).await, ["57014"]);
    assert_eq!(proxy.post("/resume").await.0, 200);
    assert_eq!(values(&pinned.query("SELECT count(*) FROM t").await), ["2"]);
}
