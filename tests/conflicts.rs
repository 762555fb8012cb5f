//! Reads that a standby cancels or loses, against real clusters: run again elsewhere as long as nothing of the answer has
//! been passed on, and never after that. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgsteer::sandbox::Sandbox;
use running::{
    Message, RawClient, Running, bind, conflicting, errors, eventually, execute, in_time, kinds, parse,
    status, values, wait_readable,
};

/// A read of some seconds that conflicts with every vacuum of `c`.
const SLOW: &str = "SELECT id, pg_sleep(0.01) AS slow FROM c";
/// What makes it conflict on every standby. Half of the 400 rows remain.
const CONFLICT: &str = "DELETE FROM c WHERE id % 2 = 0";

async fn cluster() -> (Sandbox, Running) {
    cluster_with(&[]).await
}

async fn cluster_with(environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = conflicting(2, Some(Duration::ZERO)).await;
    // A budget that no loaded machine exceeds: these reads are to begin on a standby.
    let proxy = Running::start_with(&sandbox, &["--auth", "trust", "--max-lag", "1m"], environment).await;
    wait_readable(&proxy, &sandbox).await;
    (sandbox, proxy)
}

async fn conflict(sandbox: &Sandbox) {
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute(CONFLICT).await.unwrap();
    primary.batch_execute("VACUUM c").await.unwrap();
    // VACUUM alone does not flush its WAL; a commit after it does.
    primary.batch_execute("CREATE TABLE vacuumed ()").await.unwrap();
}

/// The node on which a statement with this text runs.
async fn runs_on(sandbox: &Sandbox, marker: &str) -> usize {
    let mut nodes = Vec::new();
    for node in sandbox.nodes() {
        nodes.push(node.connect().await.unwrap());
    }
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
         AND query LIKE '%{marker}%'"
    );
    let mut found = None;
    eventually("the read runs", async || {
        for (index, node) in nodes.iter().enumerate() {
            if node.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 1 {
                found = Some(index);
            }
        }
        found.is_some()
    })
    .await;
    found.unwrap()
}

async fn wait_slow_runs_on(sandbox: &Sandbox, node: usize) {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1";
    eventually(&format!("the read runs on node {node}"), async || {
        direct.query_one(sql, &[&SLOW]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

async fn retries(proxy: &Running, cause: &str) -> f64 {
    proxy.metric("pgsteer_retries_total", &[("cause", cause)]).await
}

fn half(answer: &[Message]) {
    assert!(errors(answer).is_empty(), "{answer:?}");
    let mut ids: Vec<u32> = values(answer).iter().map(|id| id.parse().unwrap()).collect();
    ids.sort_unstable();
    assert_eq!(ids, (1..=400).step_by(2).collect::<Vec<u32>>());
}

async fn start_slow(client: &mut RawClient, extended: bool) {
    if extended {
        let messages = [parse("", SLOW), bind("", "", &[]), execute(""), running::sync()];
        client.send(&messages.concat()).await;
    } else {
        client.send(&running::query(SLOW)).await;
    }
}

async fn is_retried(extended: bool) {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    start_slow(&mut client, extended).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    half(&answer);
    let begins = if extended { "12D" } else { "TD" };
    assert!(kinds(&answer).starts_with(begins) && status(&answer) == 'I', "{}", kinds(&answer));
    assert!(retries(&proxy, "conflict").await >= 1.0);
}

/// C01, C05.
#[tokio::test]
async fn a_cancelled_read_is_run_again() {
    is_retried(false).await;
}

/// C01, C05.
#[tokio::test]
async fn a_cancelled_extended_read_is_run_again() {
    is_retried(true).await;
}

/// C06.
#[tokio::test]
async fn a_read_whose_rows_were_delivered_is_not_run_again() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    let wide = "SELECT id, repeat('x', 2000), pg_sleep(0.01) AS slow FROM c";
    client.send(&running::query(wide)).await;
    let mut answer = client.read_until(b'D').await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    answer.extend(client.read_until(b'Z').await);
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'));
    assert!(hint(&answer).contains("a part of its answer"), "{answer:?}");
    let (rows, kinds) = (values(&answer).len(), kinds(&answer));
    assert_eq!(kinds, format!("T{}EZ", "D".repeat(rows)));
    assert!(rows < 400);
    assert!(retries(&proxy, "conflict").await < 0.5);
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["200"]);
}

/// C06.
#[tokio::test]
async fn a_read_only_transaction_is_told_of_its_conflict() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    for statement in ["BEGIN READ ONLY", "SELECT count(*) FROM c"] {
        assert_eq!(status(&client.query(statement).await), 'T');
    }
    start_slow(&mut client, false).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'));
    assert!(hint(&answer).contains("earlier statements of its transaction"), "{answer:?}");
    assert_eq!(status(&client.query("ROLLBACK").await), 'I');
    assert!(retries(&proxy, "conflict").await < 0.5);
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["200"]);
}

/// C05, C07: replay on the second node stands still until the read runs there, so that each of the two has its conflict.
#[tokio::test]
async fn a_read_that_every_standby_cancels_is_run_on_the_primary() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    start_slow(&mut client, false).await;
    let first = runs_on(&sandbox, "AS slow").await;
    assert_ne!(first, 0, "it ran on the primary");
    let second = 3 - first;
    sandbox.node(second).pause_replay().await.unwrap();
    conflict(&sandbox).await;
    wait_slow_runs_on(&sandbox, second).await;
    sandbox.node(second).resume_replay().await.unwrap();
    wait_slow_runs_on(&sandbox, 0).await;
    half(&client.read_until(b'Z').await);
    assert!((retries(&proxy, "conflict").await - 2.0).abs() < 0.5);
}

/// C05, C07: conflicts without end, and one attempt: it is made on the primary, which has none.
#[tokio::test]
async fn the_last_attempt_of_a_cancelled_read_is_on_the_primary() {
    let (sandbox, proxy) = cluster_with(&[("PGSTEER_RETRY_ATTEMPTS", "1")]).await;
    let mut client = proxy.raw_logged_in().await;
    start_slow(&mut client, false).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    let primary = sandbox.connect(0).await.unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let storm = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            primary.batch_execute("UPDATE c SET v = v WHERE id < 50").await.unwrap();
            primary.batch_execute("VACUUM c").await.unwrap();
        }
    });
    let answer = client.read_until(b'Z').await;
    stop.store(true, Ordering::Relaxed);
    in_time("the storm's end", storm).await.unwrap();
    assert!(errors(&answer).is_empty(), "{:?}", errors(&answer));
    assert_eq!(values(&answer).len(), 400);
    assert!((retries(&proxy, "conflict").await - 1.0).abs() < 0.5);
    assert!(proxy.metric("pgsteer_statements_routed_total", &[("side", "primary")]).await >= 1.0);
}

/// C03.
#[tokio::test]
async fn a_dropped_database_ends_its_reads() {
    let (sandbox, proxy) = cluster().await;
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE DATABASE dd").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_as(sandbox.user(), "dd").await;
    client.send(&running::query("SELECT pg_sleep(600) AS slow FROM generate_series(1, 1)")).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    primary.batch_execute("DROP DATABASE dd WITH (FORCE)").await.unwrap();
    let answer = client.read_to_end().await;
    assert_eq!(errors(&answer), ["57P04"], "{answer:?}");
    for cause in ["conflict", "server_lost"] {
        assert!(retries(&proxy, cause).await < 0.5, "retried for {cause}");
    }
}

/// C09, P5.
#[tokio::test]
async fn a_read_on_a_killed_standby_is_run_on_another_node() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    start_slow(&mut client, false).await;
    let node = runs_on(&sandbox, "AS slow").await;
    assert_ne!(node, 0, "it ran on the primary");
    sandbox.node(node).kill9().await.unwrap();
    let answer = client.read_until(b'Z').await;
    assert!(errors(&answer).is_empty(), "{:?}", errors(&answer));
    assert_eq!(values(&answer).len(), 400);
    assert!(retries(&proxy, "server_lost").await >= 1.0);
    assert_eq!(proxy.topology().await["epoch"], 1);
}

/// The hint of the one error, which says why pgsteer did not run the statement again.
fn hint(answer: &[Message]) -> String {
    let error = answer.iter().find(|message| message.kind == b'E').unwrap();
    error.field(b'H').unwrap_or_default()
}

/// C01, C05: a READ ONLY transaction of which nothing was told is begun anew elsewhere, whatever its isolation.
#[tokio::test]
async fn a_read_only_transaction_is_begun_anew() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    for (extended, begin) in
        [(false, "BEGIN READ ONLY"), (true, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")]
    {
        assert_eq!(status(&client.query(begin).await), 'T');
        start_slow(&mut client, extended).await;
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
        let before = retries(&proxy, "conflict").await;
        let primary = sandbox.connect(0).await.unwrap();
        primary.batch_execute("UPDATE c SET v = v || 'y'").await.unwrap();
        primary.batch_execute("VACUUM c").await.unwrap();
        primary
            .batch_execute("CREATE TABLE IF NOT EXISTS vacuumed (); INSERT INTO vacuumed DEFAULT VALUES")
            .await
            .unwrap();
        let answer = client.read_until(b'Z').await;
        assert!(errors(&answer).is_empty(), "{:?}", errors(&answer));
        assert_eq!((values(&answer).len(), status(&answer)), (400, 'T'));
        assert!(retries(&proxy, "conflict").await > before, "{begin}");
        assert_eq!(values(&client.query("SHOW transaction_read_only").await), ["on"]);
        assert_eq!(status(&client.query("COMMIT").await), 'I');
    }
}

/// C05, C09: the same when its server is lost.
#[tokio::test]
async fn a_read_only_transaction_on_a_killed_standby_is_begun_anew() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(status(&client.query("BEGIN READ ONLY").await), 'T');
    start_slow(&mut client, false).await;
    let node = runs_on(&sandbox, "AS slow").await;
    assert_ne!(node, 0, "it ran on the primary");
    sandbox.node(node).kill9().await.unwrap();
    let answer = client.read_until(b'Z').await;
    assert!(errors(&answer).is_empty(), "{:?}", errors(&answer));
    assert_eq!((values(&answer).len(), status(&answer)), (400, 'T'));
    assert_eq!(status(&client.query("COMMIT").await), 'I');
}

/// C05: COPY (query) TO STDOUT whose data has not begun.
#[tokio::test]
async fn a_cancelled_copy_is_run_again() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&running::query(&format!("COPY ({SLOW}) TO STDOUT"))).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(kinds(&answer), format!("H{}cCZ", "d".repeat(200)));
    assert!(retries(&proxy, "conflict").await >= 1.0);
}

/// C05: what the server said before the error is discarded with the attempt.
#[tokio::test]
async fn a_cancelled_read_is_answered_once() {
    let (sandbox, proxy) = cluster().await;
    let primary = sandbox.connect(0).await.unwrap();
    primary
        .batch_execute(
            "CREATE FUNCTION noisy(int) RETURNS int STABLE LANGUAGE plpgsql AS \
             $$BEGIN IF $1 = 1 THEN RAISE NOTICE 'here'; END IF; RETURN $1; END$$",
        )
        .await
        .unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    let text = "SELECT noisy(id), pg_sleep(0.01) AS slow FROM c WHERE id % 2 = 1";
    // What a database has of its own is asked for behind the first answer.
    eventually("the function is known", async || {
        let before = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
        assert_eq!(values(&client.query("SELECT noisy(2)").await), ["2"]);
        proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await > before
    })
    .await;
    client.send(&running::query(text)).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert!(retries(&proxy, "conflict").await >= 1.0);
    assert_eq!(kinds(&answer).matches('N').count(), 1, "{answer:?}");
    assert_eq!(kinds(&answer).matches('T').count(), 1, "{answer:?}");
    assert_eq!(values(&answer).len(), 200);
}

/// C05: nothing is held back, so what has begun is not run again.
#[tokio::test]
async fn without_a_buffer_nothing_is_held_back() {
    let (sandbox, proxy) = cluster_with(&[("PGSTEER_RETRY_BUFFER", "0B")]).await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&running::query("SELECT id, repeat('x', 2000), pg_sleep(0.01) AS slow FROM c")).await;
    client.read_until(b'D').await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(errors(&answer), ["40001"]);
    assert!(hint(&answer).contains("a part of its answer"), "{answer:?}");
}

/// A slow answer is held back for `retry.hold_time` and no longer.
#[tokio::test]
async fn a_slow_answer_is_not_held_back_for_long() {
    let (_sandbox, proxy) = cluster_with(&[("PGSTEER_RETRY_HOLD_TIME", "50ms")]).await;
    let mut client = proxy.raw_logged_in().await;
    // The server sends every 8 kB: some 8 rows, 80 ms. All of it is 100 kB and takes 1 s.
    client.send(&running::query("SELECT repeat('x', 1000), pg_sleep(0.01) FROM c WHERE id <= 100")).await;
    let began = std::time::Instant::now();
    client.read_until(b'D').await;
    let first = began.elapsed();
    assert_eq!(errors(&client.read_until(b'Z').await), [""; 0]);
    let last = began.elapsed();
    assert!(first < last / 2, "the first row came after {first:?}, the last after {last:?}");
}

/// C06, C07: why a statement was not run again is said to whoever is told of its conflict.
#[tokio::test]
async fn a_hint_says_why_it_was_not_run_again() {
    let (sandbox, proxy) = cluster_with(&[("PGSTEER_RETRY_ATTEMPTS", "0")]).await;
    let mut client = proxy.raw_logged_in().await;
    for first in [None, Some("SELECT 1")] {
        if let Some(first) = first {
            assert_eq!(status(&client.query("BEGIN READ ONLY").await), 'T');
            assert_eq!(values(&client.query(first).await), ["1"]);
        }
        start_slow(&mut client, false).await;
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
        let primary = sandbox.connect(0).await.unwrap();
        primary.batch_execute("UPDATE c SET v = v || 'y'").await.unwrap();
        primary.batch_execute("VACUUM c").await.unwrap();
        primary
            .batch_execute("CREATE TABLE IF NOT EXISTS vacuumed (); INSERT INTO vacuumed DEFAULT VALUES")
            .await
            .unwrap();
        let answer = client.read_until(b'Z').await;
        assert_eq!(errors(&answer), ["40001"]);
        assert!(hint(&answer).contains("retry.attempts"), "{answer:?}");
        // As PostgreSQL sent it, in all else.
        assert!(
            answer.iter().any(|it| it.field(b'D').is_some_and(|detail| detail.starts_with("User query")))
        );
    }
}

/// C07: the client's `statement_timeout` is for all attempts together.
#[tokio::test]
async fn a_statement_timeout_bounds_all_attempts() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw().await;
    let options = "-c statement_timeout=3s";
    client.log_in_with(&[("user", sandbox.user()), ("database", "postgres"), ("options", options)]).await;
    let began = std::time::Instant::now();
    client.send(&running::query("SELECT id, pg_sleep(0.01) AS slow FROM c, generate_series(1, 100)")).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    // The first attempt is ended late: the second has less than the whole time.
    tokio::time::sleep_until((began + Duration::from_millis(1500)).into()).await;
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(errors(&answer), ["57014"], "{answer:?}");
    assert!(retries(&proxy, "conflict").await >= 1.0);
    assert!(began.elapsed() < Duration::from_millis(4400), "it took {:?}", began.elapsed());
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
}

/// The primary would run it, but not in a pause: its client hears at once what it would hear without retries.
#[tokio::test]
async fn a_read_that_is_out_of_retries_is_not_held_by_a_pause() {
    let (sandbox, proxy) = cluster_with(&[("PGSTEER_RETRY_ATTEMPTS", "1")]).await;
    let mut client = proxy.raw_logged_in().await;
    start_slow(&mut client, false).await;
    runs_on(&sandbox, "AS slow").await;
    assert_eq!(proxy.post("/pause?for=10m&until=resume").await.0, 200);
    conflict(&sandbox).await;
    assert_eq!(errors(&client.read_until(b'Z').await), ["40001"]);
    assert!(proxy.metric("pgsteer_statements_held_total", &[]).await < 0.5);
}
