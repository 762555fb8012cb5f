//! Reads that a standby cancels or loses, against real clusters: run again elsewhere as long as nothing of the answer has
//! been passed on, and never after that. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::Sandbox;
use running::{
    Message, RawClient, Running, bind, conflicting, describe, errors, eventually, execute, in_time, kinds,
    parse, query, status, sync, tag, values, wait_readable,
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
    // Nor does what another client has just done on the primary lead them there.
    let environment = [environment, &[("PGSTEER_ROUTING_RECENT_WRITES", "0s")]].concat();
    let proxy = Running::start_with(&sandbox, &["--auth", "trust", "--max-lag", "1m"], &environment).await;
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
        client.send(&query(SLOW)).await;
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
    client.send(&query(wide)).await;
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
    client.send(&query("SELECT pg_sleep(600) AS slow FROM generate_series(1, 1)")).await;
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
    let copy = format!("COPY ({SLOW}) TO STDOUT");
    for (extended, in_transaction) in [(false, false), (true, false), (false, true), (true, true)] {
        // Its own: one whose read ended on the primary stays there for a while.
        let mut client = proxy.raw_logged_in().await;
        if in_transaction {
            assert_eq!(status(&client.query("BEGIN READ ONLY").await), 'T');
        }
        if extended {
            client.send(&[parse("", &copy), bind("", "", &[]), execute(""), running::sync()].concat()).await;
        } else {
            client.send(&query(&copy)).await;
        }
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
        let before = retries(&proxy, "conflict").await;
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        let begins = if extended { "12" } else { "" };
        assert_eq!(kinds(&answer), format!("{begins}H{}cCZ", "d".repeat(400)));
        assert_eq!(status(&answer), if in_transaction { 'T' } else { 'I' });
        assert!(retries(&proxy, "conflict").await > before);
    }
}

/// C05, C06: data of a COPY was passed on.
#[tokio::test]
async fn a_copy_whose_data_was_told_is_not_run_again() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    let copy = "COPY (SELECT id, repeat('x', 2000), pg_sleep(0.01) AS slow FROM c) TO STDOUT";
    client.send(&query(copy)).await;
    let mut answer = client.read_until(b'd').await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict_again(&sandbox).await;
    answer.extend(client.read_until(b'Z').await);
    let rows = kinds(&answer).matches('d').count();
    assert_eq!(kinds(&answer), format!("H{}EZ", "d".repeat(rows)));
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'));
    assert!(retries(&proxy, "conflict").await < 0.5);
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
}

/// C05: functions that give something else each time, and change nothing, do not hinder it: no answer of theirs was told.
#[tokio::test]
async fn a_cancelled_read_with_harmless_volatile_functions_is_run_again() {
    let (sandbox, proxy) = cluster().await;
    let text = "SELECT id, random(), clock_timestamp(), gen_random_uuid(), pg_sleep(0.01) AS slow FROM c";
    for extended in [false, true] {
        let mut client = proxy.raw_logged_in().await;
        if extended {
            client.send(&[parse("", text), bind("", "", &[]), execute(""), running::sync()].concat()).await;
        } else {
            client.send(&query(text)).await;
        }
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
        let before = retries(&proxy, "conflict").await;
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), values(&answer).len()), (vec![], 400));
        assert!(retries(&proxy, "conflict").await > before);
    }
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
    client.send(&query(text)).await;
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
    client.send(&query("SELECT id, repeat('x', 2000), pg_sleep(0.01) AS slow FROM c")).await;
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
    client.send(&query("SELECT repeat('x', 1000), pg_sleep(0.01) FROM c WHERE id <= 100")).await;
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

/// C05: BEGIN READ ONLY and the first statement in one batch, as JDBC sends them.
#[tokio::test]
async fn a_read_only_transaction_that_begins_within_a_batch_is_begun_anew() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    // Prepared under a name from the fifth time on: then it is not parsed again.
    let begins = [
        [parse("", "BEGIN READ ONLY"), bind("", "", &[]), execute("")].concat(),
        [parse("S_1", "BEGIN READ ONLY"), bind("", "S_1", &[]), execute("")].concat(),
        [bind("", "S_1", &[]), execute("")].concat(),
    ];
    for (begin, begun) in begins.into_iter().zip(["12C", "12C", "2C"]) {
        let read = [parse("", SLOW), bind("", "", &[]), describe(b'P', ""), execute(""), sync()].concat();
        client.send(&[begin, read].concat()).await;
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), values(&answer).len()), (vec![], 400), "{answer:?}");
        assert!(kinds(&answer).starts_with(&format!("{begun}12TD")) && status(&answer) == 'T');
        assert_eq!(tag(&answer), "BEGIN");
        assert_eq!(values(&client.query("SHOW transaction_read_only").await), ["on"]);
        assert_eq!(status(&client.query("COMMIT").await), 'I');
    }
    assert!(retries(&proxy, "conflict").await >= 3.0);
    // An error behind it finds the block begun.
    let begin = [parse("", "BEGIN READ ONLY"), bind("", "", &[]), execute("")].concat();
    let fails =
        [parse("", "SELECT 1 / count(*) FROM c WHERE id < 0"), bind("", "", &[]), execute(""), sync()]
            .concat();
    client.send(&[begin, fails].concat()).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["22012".to_owned()], 'E'));
    assert_eq!(status(&client.query("ROLLBACK").await), 'I');
}

/// C05: what sets something for a READ ONLY transaction may begin it on a standby; where it has told nothing but its tag, it is set anew.
#[tokio::test]
async fn what_a_read_only_transaction_sets_for_itself_is_set_anew() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    let role =
        format!("SELECT set_config('role', '{}', true), set_config('app.tenant', '8', true)", sandbox.user());
    for (sets, shows, value) in [
        ("SET LOCAL work_mem = '12MB'", "SHOW work_mem", "12MB"),
        ("SET LOCAL app.tenant TO 7", "SHOW app.tenant", "7"),
        ("SET LOCAL search_path = pg_catalog, public", "SHOW search_path", "pg_catalog, public"),
        ("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SHOW transaction_isolation", "repeatable read"),
        (role.as_str(), "SHOW app.tenant", "8"),
    ] {
        for statement in ["BEGIN READ ONLY", sets] {
            assert_eq!(errors(&client.query(statement).await), [""; 0], "{statement}");
        }
        start_slow(&mut client, false).await;
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "{sets}: it ran on the primary");
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), values(&answer).len()), (vec![], 400), "{sets}: {answer:?}");
        assert_eq!(values(&client.query(shows).await), [value]);
        assert_eq!(status(&client.query("COMMIT").await), 'I');
        assert_ne!(values(&client.query(shows).await), [value]);
    }
    assert!(retries(&proxy, "conflict").await >= 5.0);
    // These have told more, or bound the time: they begin on a standby, and are not begun anew.
    let more = "SELECT set_config('app.tenant', '8', true), count(*) FROM c WHERE id < 0";
    for sets in [more, "SET LOCAL statement_timeout = '1min'"] {
        for statement in ["BEGIN READ ONLY", sets] {
            assert_eq!(errors(&client.query(statement).await), [""; 0], "{statement}");
        }
        start_slow(&mut client, false).await;
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "{sets}: it ran on the primary");
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'), "{sets}");
        assert_eq!(status(&client.query("ROLLBACK").await), 'I');
        // What is still being replayed of the VACUUM would cancel the next one, too.
        sandbox.wait_caught_up().await.unwrap();
    }
    // Elsewhere they are the primary's, as before.
    for begin in ["BEGIN", "BEGIN READ WRITE"] {
        for statement in [begin, "SET LOCAL work_mem = '12MB'"] {
            client.query(statement).await;
        }
        assert_eq!(values(&client.query("SELECT pg_is_in_recovery()").await), ["f"]);
        client.query("COMMIT").await;
    }
}

/// F03: a READ ONLY transaction on a standby that has told nothing but what it has set goes to the primary with what needs it.
#[tokio::test]
async fn what_needs_the_primary_takes_its_transaction_along() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    client.query("CREATE TABLE w (v text)").await;
    let is_standby = "SELECT pg_is_in_recovery()";
    for sets in [
        &["SET LOCAL work_mem = '12MB'"][..],
        &["SELECT set_config('work_mem', '12MB', true)", "SAVEPOINT a"],
        &["DECLARE cc CURSOR FOR SELECT id FROM c ORDER BY id", "SET LOCAL work_mem = '12MB'"],
    ] {
        let begin = async |client: &mut RawClient| {
            client.query("BEGIN READ ONLY").await;
            for statement in sets {
                assert_eq!(errors(&client.query(statement).await), [""; 0], "{statement}");
            }
        };
        begin(&mut client).await;
        assert_eq!(values(&client.query("SELECT pg_advisory_xact_lock(42)").await), [""]);
        let direct = sandbox.connect(0).await.unwrap();
        let sql = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'";
        assert_eq!(direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1, "{sets:?}: on the primary");
        assert_eq!(values(&client.query("SHOW work_mem").await), ["12MB"]);
        assert_eq!(values(&client.query(is_standby).await), ["f"]);
        if sets[0].starts_with("DECLARE") {
            assert_eq!(values(&client.query("FETCH cc").await), ["1"]);
        }
        assert_eq!(tag(&client.query("COMMIT").await), "COMMIT");
    }
    // Before a query it may still become one that writes.
    for statement in [
        "BEGIN READ ONLY",
        "SET LOCAL work_mem = '12MB'",
        "SET TRANSACTION READ WRITE",
        "INSERT INTO w VALUES ('x')",
        "COMMIT",
    ] {
        assert_eq!(errors(&client.query(statement).await), [""; 0], "{statement}");
    }
    assert_eq!(values(&client.query("SELECT count(*) FROM w").await), ["1"]);
    // Where rows were told it stays.
    for statement in ["BEGIN READ ONLY", "SELECT count(*) FROM c"] {
        client.query(statement).await;
    }
    assert_eq!(values(&client.query(is_standby).await), ["t"]);
    client.query("COMMIT").await;
}

/// C07: the client's `statement_timeout` is for all attempts together.
#[tokio::test]
async fn a_statement_timeout_bounds_all_attempts() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw().await;
    let options = "-c statement_timeout=3s";
    client.log_in_with(&[("user", sandbox.user()), ("database", "postgres"), ("options", options)]).await;
    let began = std::time::Instant::now();
    client.send(&query("SELECT id, pg_sleep(0.01) AS slow FROM c, generate_series(1, 100)")).await;
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

/// C07: PostgreSQL counts each statement of a batch for itself: so do all attempts together.
#[tokio::test]
async fn a_statement_timeout_is_for_each_statement_of_a_batch() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw().await;
    let options = "-c statement_timeout=3s";
    client.log_in_with(&[("user", sandbox.user()), ("database", "postgres"), ("options", options)]).await;
    let began = std::time::Instant::now();
    let texts =
        ["SELECT id, pg_sleep(0.01) AS slow FROM c WHERE id <= 200", "SELECT pg_sleep(2.5) FROM c LIMIT 1"];
    let batch = texts.map(|text| [parse("", text), bind("", "", &[]), execute("")].concat()).concat();
    client.send(&[batch, sync()].concat()).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!(values(&answer).len(), 101);
    assert!(began.elapsed() > Duration::from_secs(3), "it took {:?}", began.elapsed());
    assert!(retries(&proxy, "conflict").await >= 0.5);
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

/// What conflicts with every transaction that looks at `c`, and leaves the same rows.
async fn conflict_again(sandbox: &Sandbox) {
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("UPDATE c SET v = v || 'y'").await.unwrap();
    primary.batch_execute("VACUUM c").await.unwrap();
    primary
        .batch_execute("CREATE TABLE IF NOT EXISTS vacuumed (); INSERT INTO vacuumed DEFAULT VALUES")
        .await
        .unwrap();
}

const DECLARE: &str = "DECLARE cc CURSOR FOR SELECT id, pg_sleep(0.01) AS slow FROM c";

/// A statement with parameters, in one batch up to its Sync.
async fn bound(client: &mut RawClient, text: &str, parameters: &[&str]) -> Vec<Message> {
    client.extended(&[parse("", text), bind("", "", parameters), describe(b'P', ""), execute("")]).await
}

/// C05: a READ ONLY transaction that has told nothing but tags is begun anew at a cursor's first FETCH.
#[tokio::test]
async fn a_cursors_first_fetch_is_run_again() {
    let (sandbox, proxy) = cluster().await;
    for (isolation, extended) in [("", false), ("ISOLATION LEVEL REPEATABLE READ", true)] {
        // Its own: one whose read ended on the primary stays there for a while.
        let mut client = proxy.raw_logged_in().await;
        assert_eq!(status(&client.query(&format!("BEGIN {isolation} READ ONLY")).await), 'T');
        let declared = if extended {
            bound(&mut client, &format!("{DECLARE} WHERE id > $1::int"), &["0"]).await
        } else {
            client.query(DECLARE).await
        };
        assert_eq!((errors(&declared), tag(&declared)), (vec![], "DECLARE CURSOR".to_owned()));
        let before = retries(&proxy, "conflict").await;
        client.send(&query("FETCH ALL FROM cc")).await;
        assert_ne!(runs_on(&sandbox, "FETCH ALL FROM cc").await, 0, "it ran on the primary");
        conflict_again(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), values(&answer).len(), status(&answer)), (vec![], 400, 'T'));
        assert_eq!(kinds(&answer), format!("T{}CZ", "D".repeat(400)));
        assert!(retries(&proxy, "conflict").await > before, "{isolation}");
        // It goes on, on its new server, as it was.
        assert_eq!(values(&client.query("SHOW transaction_read_only").await), ["on"]);
        assert_eq!(tag(&client.query("FETCH ALL FROM cc").await), "FETCH 0");
        assert_eq!(status(&client.query("COMMIT").await), 'I');
    }
}

/// C05: what a driver does that wants to know a cursor's rows before it fetches any: it describes the cursor's portal.
#[tokio::test]
async fn a_described_cursors_first_fetch_is_run_again() {
    let (sandbox, proxy) = cluster().await;
    for idle in [false, true] {
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &["BEGIN READ ONLY"]).await;
        let declared = bound(&mut client, &format!("{DECLARE} WHERE id > $1::int"), &["0"]).await;
        assert_eq!(tag(&declared), "DECLARE CURSOR");
        let described = client.extended(&[describe(b'P', "cc")]).await;
        assert_eq!((kinds(&described).as_str(), status(&described)), ("TZ", 'T'));
        let before = retries(&proxy, "conflict").await;
        let fetch =
            [parse("", "FETCH ALL FROM cc"), bind("", "", &[]), execute(""), running::sync()].concat();
        if !idle {
            client.send(&fetch).await;
            assert_ne!(runs_on(&sandbox, "FETCH ALL FROM cc").await, 0, "it ran on the primary");
        }
        conflict_again(&sandbox).await;
        if idle {
            wait_ended(&sandbox).await;
            client.send(&fetch).await;
        }
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), values(&answer).len(), status(&answer)), (vec![], 400, 'T'));
        assert_eq!(kinds(&answer), format!("12{}CZ", "D".repeat(400)));
        assert!(retries(&proxy, "conflict").await > before);
        assert_eq!(status(&client.query("COMMIT").await), 'I');
    }
}

/// C05: whose rows look otherwise by now: the client, which would misread them, gets an error.
#[tokio::test]
async fn a_described_cursor_with_other_rows_is_not_begun_anew() {
    let (sandbox, proxy) = cluster().await;
    for extended in [false, true] {
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &["BEGIN READ ONLY", "DECLARE cc CURSOR FOR SELECT * FROM c"]).await;
        assert_eq!(kinds(&client.extended(&[describe(b'P', "cc")]).await), "TZ");
        let primary = sandbox.connect(0).await.unwrap();
        primary.batch_execute(&format!("ALTER TABLE c ADD COLUMN z{extended} int")).await.unwrap();
        primary
            .batch_execute("CREATE TABLE IF NOT EXISTS flushed (); INSERT INTO flushed DEFAULT VALUES")
            .await
            .unwrap();
        wait_ended(&sandbox).await;
        let answer = if extended {
            client.extended(&[parse("", "FETCH ALL FROM cc"), bind("", "", &[]), execute("")]).await
        } else {
            client.query("FETCH ALL FROM cc").await
        };
        assert_eq!(
            (errors(&answer), kinds(&answer).as_str()),
            (vec!["0A000".to_owned()], "EZ"),
            "{answer:?}"
        );
        assert_eq!(status(&answer), 'E');
        assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
    }
}

/// C06: rows of the cursor were told, and its snapshot is gone.
#[tokio::test]
async fn a_cursors_second_fetch_is_not_run_again() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    for statement in ["BEGIN READ ONLY", DECLARE] {
        assert_eq!(errors(&client.query(statement).await), [""; 0]);
    }
    assert_eq!(values(&client.query("FETCH 1 FROM cc").await).len(), 1);
    client.send(&query("FETCH ALL FROM cc")).await;
    assert_ne!(runs_on(&sandbox, "FETCH ALL FROM cc").await, 0, "it ran on the primary");
    conflict_again(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'));
    assert!(hint(&answer).contains("earlier statements of its transaction"), "{answer:?}");
    assert!(retries(&proxy, "conflict").await < 0.5);
    assert_eq!(errors(&client.query("FETCH ALL FROM cc").await), ["25P02"]);
    assert_eq!(status(&client.query("ROLLBACK").await), 'I');
}

/// Waits until pgsteer has no connection to any standby on which a transaction was begun.
async fn wait_ended(sandbox: &Sandbox) {
    for node in [1, 2] {
        let direct = sandbox.connect(node).await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        eventually("the idle transaction has been ended", async || {
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
}

/// Ends all idle transactions of a node.
async fn terminate_idle(sandbox: &Sandbox) {
    for node in [1, 2] {
        let sql =
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        sandbox.connect(node).await.unwrap().batch_execute(sql).await.unwrap();
    }
}

/// Execute with a limit of rows.
fn execute_some(portal: &str, rows: u32) -> Vec<u8> {
    running::frame(b'E', &[portal.as_bytes(), b"\0", &rows.to_be_bytes()].concat())
}

async fn run_all(client: &mut RawClient, statements: &[&str]) {
    for statement in statements {
        assert_eq!(errors(&client.query(statement).await), [""; 0], "{statement}");
    }
}

/// The standby that an idle transaction is on, and its process there.
async fn idle_on(sandbox: &Sandbox) -> (usize, i32) {
    let sql = "SELECT pid FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    for node in [1, 2] {
        if let Some(row) = sandbox.connect(node).await.unwrap().query_opt(sql, &[]).await.unwrap() {
            return (node, row.get(0));
        }
    }
    panic!("it is on no standby");
}

/// C01, C05, C09: the standby ends a transaction that is idle and has told nothing but tags, or is lost with it: its client never knows.
#[tokio::test]
async fn an_idle_transaction_that_told_nothing_is_begun_anew() {
    let (sandbox, proxy) = cluster().await;
    for cause in ["conflict", "terminated", "crash", "immediate shutdown", "fast shutdown", "kill -9"] {
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &["BEGIN READ ONLY", "DECLARE cc CURSOR FOR SELECT id FROM c", "SAVEPOINT a"])
            .await;
        let (node, pid) = idle_on(&sandbox).await;
        let standby = sandbox.node(node);
        let lost = async || [retries(&proxy, "conflict").await, retries(&proxy, "server_lost").await];
        let before = lost().await;
        match cause {
            "conflict" => conflict_again(&sandbox).await,
            "terminated" => terminate_idle(&sandbox).await,
            // Of another session's process: all others are ended as well.
            "crash" => {
                let other = other_process(&sandbox, node, pid).await;
                kill(Pid::from_raw(other), Signal::SIGKILL).unwrap();
            }
            "immediate shutdown" => standby.stop_immediate().await.unwrap(),
            "fast shutdown" => standby.stop_fast().await.unwrap(),
            _ => drop(standby.kill9().await.unwrap()),
        }
        eventually("it is ended, and pgsteer knows", async || lost().await != before).await;
        let answer = client.query("FETCH ALL FROM cc").await;
        assert_eq!((errors(&answer), values(&answer).len(), status(&answer)), (vec![], 400, 'T'), "{cause}");
        let now = lost().await;
        let expected = if cause == "conflict" { [1.0, 0.0] } else { [0.0, 1.0] };
        assert_eq!([now[0] - before[0], now[1] - before[1]], expected, "{cause}");
        // The savepoint is there again, too.
        run_all(&mut client, &["ROLLBACK TO SAVEPOINT a", "COMMIT"]).await;
        if !standby.is_running() {
            standby.start().await.unwrap();
        }
        eventually("both standbys may be read", async || {
            let topology = proxy.topology().await;
            [1, 2].iter().all(|&node| topology["nodes"][node]["staleness_ms"].is_u64())
        })
        .await;
    }
    assert_eq!(proxy.topology().await["epoch"], 1);
}

/// A server process of the node that serves a client, but for this one.
async fn other_process(sandbox: &Sandbox, node: usize, but: i32) -> i32 {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> $1 LIMIT 1";
    direct.query_one(sql, &[&but]).await.unwrap().get(0)
}

/// C01, C06: an idle transaction that has told something: its client gets the standby's own error at its next statement.
#[tokio::test]
async fn an_idle_transaction_that_told_something_gets_the_error() {
    let (sandbox, proxy) = cluster().await;
    for extended in [false, true] {
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT count(*) FROM c"])
            .await;
        conflict_again(&sandbox).await;
        wait_ended(&sandbox).await;
        let answer = if extended {
            bound(&mut client, "SELECT count(*) FROM c WHERE id > $1::int", &["0"]).await
        } else {
            client.query("SELECT count(*) FROM c").await
        };
        assert_eq!((kinds(&answer).as_str(), status(&answer)), ("EZ", 'E'), "{answer:?}");
        let error = &answer[0];
        assert_eq!((error.sqlstate().as_str(), error.field(b'V').as_deref()), ("40001", Some("ERROR")));
        assert!(error.field(b'D').unwrap().starts_with("User query might have needed"), "{answer:?}");
        assert!(hint(&answer).contains("earlier statements of its transaction"), "{answer:?}");
        assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
        assert_eq!(tag(&client.query("COMMIT").await), "ROLLBACK");
        assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    }
    assert!(retries(&proxy, "conflict").await < 0.5);
}

/// C01: what an idle transaction has left in its session is lost with it: its COMMIT must not say otherwise.
#[tokio::test]
async fn the_end_of_an_idle_transaction_that_set_something_is_no_success() {
    let (sandbox, proxy) = cluster().await;
    sandbox.connect(0).await.unwrap().batch_execute("CREATE ROLE low").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    for (set, show, before) in [
        ("SET ROLE low", "SELECT current_user", sandbox.user()),
        ("SET search_path TO nowhere", "SHOW search_path", "\"$user\", public"),
        ("SELECT set_config('work_mem', '77MB', false)", "SHOW work_mem", "4MB"),
    ] {
        let mut client = proxy.raw_logged_in().await;
        let begin = ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT count(*) FROM c", set];
        run_all(&mut client, &begin).await;
        idle_on(&sandbox).await;
        conflict_again(&sandbox).await;
        wait_ended(&sandbox).await;
        let answer = client.query("COMMIT").await;
        assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'), "{set}: {answer:?}");
        assert_eq!(values(&client.query(show).await), [before], "{set}");
    }
}

/// C06: a text that is passed through in parts has told what it told.
#[tokio::test]
async fn an_idle_transaction_that_told_something_in_a_large_text_gets_the_error() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    run_all(
        &mut client,
        &["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "DECLARE k CURSOR FOR SELECT 1"],
    )
    .await;
    let large = format!("/*{}*/ SELECT count(*) FROM c", "x".repeat(1_500_000));
    assert_eq!(values(&client.query(&large).await), ["400"]);
    idle_on(&sandbox).await;
    conflict_again(&sandbox).await;
    wait_ended(&sandbox).await;
    let answer = client.query("SELECT count(*) FROM c").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'), "{answer:?}");
}

/// C01, C06: a portal of which a part was told, in a batch that goes on and waits for nothing.
#[tokio::test]
async fn a_suspended_portal_that_is_lost_gets_the_error_at_its_next_execute() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    let first = [parse("", "SELECT id FROM c"), bind("", "", &[]), execute_some("", 10), running::flush()];
    // Batches that go on run on the primary unless the transaction is READ ONLY and on a standby already.
    run_all(&mut client, &["BEGIN READ ONLY", "SELECT count(*) FROM c"]).await;
    client.send(&first.concat()).await;
    let answer = client.read_until(b's').await;
    assert_eq!((kinds(&answer), values(&answer).len()), (format!("12{}s", "D".repeat(10)), 10));
    let told = async || proxy.metric("pgsteer_errors_total", &[("sqlstate", "40001")]).await;
    let before = told().await;
    conflict_again(&sandbox).await;
    eventually("the loss is noticed", async || told().await > before).await;
    let mut byte = [0];
    let early = client.stream.try_read(&mut byte);
    assert!(early.is_err(), "the client is told something that it does not wait for: {early:?}");
    client.send(&[execute_some("", 10), running::sync()].concat()).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((kinds(&answer).as_str(), status(&answer)), ("EZ", 'E'), "{answer:?}");
    assert_eq!(errors(&answer), ["40001"]);
    assert!(hint(&answer).contains("pgsteer did not run it again"), "{answer:?}");
    assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
}

/// C05, C06: of a portal that is read in parts, the first part is run again, a later one is not.
#[tokio::test]
async fn the_first_part_of_a_portal_is_run_again() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    run_all(&mut client, &["BEGIN READ ONLY"]).await;
    let first = [parse("", SLOW), bind("p", "", &[]), execute_some("p", 300), running::sync()];
    client.send(&first.concat()).await;
    assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "it ran on the primary");
    conflict_again(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(kinds(&answer), format!("12{}sZ", "D".repeat(300)));
    let retried = retries(&proxy, "conflict").await;
    assert!(retried >= 1.0);
    if proxy.metric("pgsteer_statements_routed_total", &[("side", "primary")]).await > 0.5 {
        // Both standbys had their conflict: there is none where it is now.
        return;
    }
    client.send(&[execute_some("p", 100), running::sync()].concat()).await;
    runs_on(&sandbox, "AS slow").await;
    conflict_again(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'));
    assert!((retries(&proxy, "conflict").await - retried).abs() < 0.5);
    assert_eq!(status(&client.query("ROLLBACK").await), 'I');
}

/// C05, C06: how much is held back of a session's reads is for it to say, and for a statement.
#[tokio::test]
async fn a_session_says_how_much_of_its_answers_is_held_back() {
    // A SET is a write, whose session would read on the primary for a moment.
    let environment = [("PGSTEER_ROUTING_CONSISTENCY", "eventual"), ("PGSTEER_RETRY_HOLD_TIME", "1h")];
    let (sandbox, proxy) = cluster_with(&environment).await;
    let (own, statements_own) = ("SET pgsteer.retry_buffer = '2MB'", "/* pgsteer: retry_buffer=2MiB */ ");
    // 20 kB are less than the 64 KiB of the default, 200 kB are more; they come before what takes its time.
    for (set, comment, rows, retried) in [
        (own, "", 100, true),
        (own, "/* pgsteer: retry_buffer=0 */ ", 10, false),
        ("SET pgsteer.retry_buffer = off", "", 10, false),
        ("RESET pgsteer.retry_buffer", statements_own, 100, true),
        ("RESET pgsteer.retry_buffer", "", 100, false),
        ("RESET pgsteer.retry_buffer", "", 10, true),
    ] {
        let case = format!("{set} {comment} {rows}");
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &[set]).await;
        let before = retries(&proxy, "conflict").await;
        let text = format!(
            "{comment}SELECT id, repeat('x', 2000), CASE WHEN id > {rows} THEN pg_sleep(0.01) END AS slow FROM c"
        );
        client.send(&query(&text)).await;
        let mut answer = if retried { Vec::new() } else { client.read_until(b'D').await };
        assert_ne!(runs_on(&sandbox, "AS slow").await, 0, "{case}: it ran on the primary");
        conflict_again(&sandbox).await;
        answer.extend(client.read_until(b'Z').await);
        let now = retries(&proxy, "conflict").await;
        if retried {
            assert_eq!((errors(&answer), values(&answer).len()), (vec![], 400), "{case}");
            assert!(now > before, "{case}");
        } else {
            assert_eq!(errors(&answer), ["40001"], "{case}");
            assert!((now - before).abs() < 0.5, "{case}");
        }
    }
}

/// C06, C09: of a READ ONLY transaction whose answers were all told nothing is lost with its standby: its end succeeds.
#[tokio::test]
async fn the_end_of_a_transaction_that_only_read_needs_no_standby() {
    let (sandbox, proxy) = cluster().await;
    for (end, extended) in [("COMMIT", false), ("COMMIT", true), ("ROLLBACK", false), ("END", true)] {
        let mut client = proxy.raw_logged_in().await;
        run_all(&mut client, &["BEGIN READ ONLY", "SELECT count(*) FROM c"]).await;
        terminate_idle(&sandbox).await;
        wait_ended(&sandbox).await;
        let answer = if extended { bound(&mut client, end, &[]).await } else { client.query(end).await };
        let expected = if end == "ROLLBACK" { "ROLLBACK" } else { "COMMIT" };
        assert_eq!((errors(&answer), tag(&answer), status(&answer)), (vec![], expected.to_owned(), 'I'));
        assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    }
    // What may have written is another matter.
    let mut client = proxy.raw_logged_in().await;
    run_all(&mut client, &["BEGIN", "SELECT count(*) FROM c"]).await;
    let primary = sandbox.connect(0).await.unwrap();
    let sql =
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    primary.batch_execute(sql).await.unwrap();
    let idle = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
    eventually("it is ended", async || primary.query_one(idle, &[]).await.unwrap().get::<_, i64>(0) == 0)
        .await;
    let answer = client.query("COMMIT").await;
    assert!(["40001", "08007"].contains(&errors(&answer)[0].as_str()), "{answer:?}");
    assert_eq!(status(&answer), 'I');
}

/// C06: a failed transaction that is lost has had its error: nothing but its end is still to come.
#[tokio::test]
async fn a_failed_transaction_that_is_lost_stays_failed() {
    let (sandbox, proxy) = cluster().await;
    let mut client = proxy.raw_logged_in().await;
    run_all(&mut client, &["BEGIN READ ONLY", "SELECT count(*) FROM c"]).await;
    assert_eq!(errors(&client.query("SELECT 1 / 0").await), ["22012"]);
    terminate_idle(&sandbox).await;
    wait_ended(&sandbox).await;
    client.send(&running::sync()).await;
    assert_eq!(status(&client.read_until(b'Z').await), 'E');
    assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
    assert_eq!(tag(&client.query("COMMIT").await), "ROLLBACK");
}
