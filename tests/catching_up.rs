//! Reads behind writes that no standby is known to have yet: they wait some milliseconds for one, so that standbys answer them.
//!
//! A wait is bounded by a minute here: what is not found in that time fails a test, however slow the machine is.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, bind, eventually, execute, no_errors, parse, query, sync, values};

const READ: &str = "SELECT count(*)::text FROM t";
const ROUNDS: usize = 20;

async fn start(catch_up_wait: &str) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(2).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let environment = [("PGSTEER_ROUTING_CATCH_UP_WAIT", catch_up_wait), ("PGSTEER_ROUTING_MAX_LAG", "1m")];
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &environment).await;
    eventually("a standby may be read", async || {
        let topology = proxy.topology().await;
        (1..=2).any(|node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
    (sandbox, proxy)
}

async fn reads_on(proxy: &Running, side: &str) -> f64 {
    let routed =
        async |labels: &[(&str, &str)]| proxy.metric("pgsteer_statements_routed_total", labels).await;
    routed(&[("side", side)]).await - routed(&[("side", side), ("reason", "needs_primary")]).await
}

#[tokio::test]
async fn standbys_answer_reads_that_follow_a_write_at_once() {
    let (_sandbox, proxy) = start("1m").await;
    let mut client = proxy.raw_logged_in().await;
    for round in 1..=ROUNDS {
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        for _ in 0..3 {
            assert_eq!(values(&client.query(READ).await), [round.to_string()]);
        }
    }
    assert_eq!(reads_on(&proxy, "primary").await, 0.0, "{}", proxy.metrics().await);
    assert!(reads_on(&proxy, "standby").await >= 60.0);
}

#[tokio::test]
async fn standbys_answer_reads_that_follow_the_writes_of_others_at_once() {
    let (_sandbox, proxy) = start("1m").await;
    let mut writer = proxy.raw_logged_in().await;
    let mut reader = proxy.raw_logged_in().await;
    for round in 1..=ROUNDS {
        no_errors(&writer.query("INSERT INTO t VALUES (1)").await);
        assert_eq!(values(&reader.query(READ).await), [round.to_string()]);
        assert_eq!(values(&reader.query(READ).await), [round.to_string()]);
    }
    assert_eq!(reads_on(&proxy, "primary").await, 0.0, "{}", proxy.metrics().await);
}

/// What can't be caught up with is read on the primary, after the wait and without it.
#[tokio::test]
async fn behind_standbys_that_stand_still_the_primary_answers() {
    for wait in ["5ms", "0s"] {
        let (sandbox, proxy) = start(wait).await;
        for node in 1..=2 {
            let standby = sandbox.connect(node).await.unwrap();
            standby.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
        }
        let mut client = proxy.raw_logged_in().await;
        for round in 1..=ROUNDS {
            no_errors(&client.query("INSERT INTO t VALUES (1)").await);
            assert_eq!(values(&client.query(READ).await), [round.to_string()]);
        }
        assert!(reads_on(&proxy, "primary").await >= 20.0, "{wait}");
    }
}

async fn pause_replay(sandbox: &Sandbox) {
    for node in 1..=2 {
        sandbox.node(node).pause_replay().await.unwrap();
    }
}

/// Sends the read by the simple protocol, or by the extended.
async fn send_read(client: &mut RawClient, is_extended: bool) {
    let batch = || [parse("", READ), bind("", "", &[]), execute(""), sync()].concat();
    client.send(&if is_extended { batch() } else { query(READ) }).await;
}

/// A read does not wait for standbys until its `statement_timeout` ends it: in time it goes to the primary, which has it.
#[tokio::test]
async fn a_wait_leaves_the_primary_time_within_the_statement_timeout() {
    let (sandbox, proxy) = start("1m").await;
    pause_replay(&sandbox).await;
    for (round, is_extended) in [(1, false), (2, true)] {
        // Behind a wait in vain the shard's next reads do not wait at all.
        let mut client = proxy.raw_logged_in().await;
        no_errors(&client.query("SET statement_timeout = '8s'").await);
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        let began = Instant::now();
        send_read(&mut client, is_extended).await;
        let answer = client.read_until(b'Z').await;
        no_errors(&answer);
        assert_eq!(values(&answer), [round.to_string()]);
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        assert_eq!(reads_on(&proxy, "primary").await, f64::from(round), "{}", proxy.metrics().await);
    }
}

/// One that is longer than the wait does not cut it short.
#[tokio::test]
async fn a_wait_is_as_long_as_a_long_statement_timeout_lets_it() {
    for is_extended in [false, true] {
        let (sandbox, proxy) = start("1m").await;
        pause_replay(&sandbox).await;
        let mut client = proxy.raw_logged_in().await;
        no_errors(&client.query("SET statement_timeout = '1h'").await);
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        send_read(&mut client, is_extended).await;
        // No answer comes in a time that is much shorter than the wait.
        assert!(tokio::time::timeout(Duration::from_secs(1), client.stream.peek(&mut [0])).await.is_err());
        for node in 1..=2 {
            sandbox.node(node).resume_replay().await.unwrap();
        }
        assert_eq!(values(&client.read_until(b'Z').await), ["1"]);
        assert_eq!(reads_on(&proxy, "primary").await, 0.0, "{}", proxy.metrics().await);
    }
}
