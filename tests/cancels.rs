//! Cancel requests of clients that wait until theirs has been taken, as libpq's do: what they send next is never hit.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, PROTOCOL_3_0, RawClient, Running, errors, eventually, in_time, query, single, status, values,
};

/// A statement and a cancel that meet somewhere; gives whether the cancel was first.
async fn race(proxy: &Running, raw: &mut RawClient, key: &[u8]) -> bool {
    raw.send(&query("SELECT pg_sleep(0.002)")).await;
    let ((), answer) = tokio::join!(proxy.cancel(key), raw.read_until(b'Z'));
    let errors = errors(&answer);
    assert!(errors.iter().all(|code| code == "57014"), "{answer:?}");
    !errors.is_empty()
}

fn unharmed(messages: &[Message], round: usize) {
    assert_eq!(errors(messages), [""; 0], "round {round}: {messages:?}");
}

/// The session keeps its server, so a cancel that is late would hit the statement after.
#[tokio::test]
async fn in_a_pinned_session_the_next_statement_is_not_hit() {
    let (_sandbox, proxy) = single(&["--shards", "2"]).await;
    let (mut raw, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    unharmed(&raw.query("SET application_name = 'pinned'").await, 0);
    for round in 0..100 {
        race(&proxy, &mut raw, &key).await;
        unharmed(&raw.query("SELECT pg_sleep(0.004)").await, round);
    }
}

#[tokio::test]
async fn in_a_transaction_the_next_statement_is_not_hit() {
    let (_sandbox, proxy) = single(&["--shards", "2"]).await;
    let (mut raw, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    raw.query("BEGIN").await;
    for round in 0..100 {
        unharmed(&raw.query("SAVEPOINT a").await, round);
        race(&proxy, &mut raw, &key).await;
        unharmed(&raw.query("ROLLBACK TO a").await, round);
        unharmed(&raw.query("SELECT pg_sleep(0.004)").await, round);
    }
    // With BEGIN put off, the cancel can come while that is being sent.
    unharmed(&raw.query("COMMIT").await, 0);
    for round in 0..100 {
        raw.query("BEGIN").await;
        let cancelled = race(&proxy, &mut raw, &key).await;
        let next = raw.query("SELECT pg_sleep(0.004)").await;
        assert_eq!(errors(&next), if cancelled { vec!["25P02"] } else { vec![] }, "round {round}: {next:?}");
        unharmed(&raw.query("ROLLBACK").await, round);
    }
}

/// A statement that certainly runs is certainly cancelled, and the session goes on.
#[tokio::test]
async fn a_running_statement_is_cancelled() {
    let (sandbox, proxy) = single(&["--shards", "2"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let (mut raw, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    for (round, set_up) in ["SELECT 1", "SET application_name = 'pinned'"].iter().cycle().take(10).enumerate()
    {
        unharmed(&raw.query(set_up).await, round);
        raw.send(&query("SELECT pg_sleep(100)")).await;
        eventually("it sleeps", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        proxy.cancel(&key).await;
        assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
        assert_eq!(values(&raw.query("SELECT 1").await), ["1"]);
    }
}

/// One standby that answers the reads.
async fn with_standby() -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--max-lag", "10m"]).await;
    read_again(&proxy).await;
    (sandbox, proxy)
}

async fn read_again(proxy: &Running) {
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
}

/// Sends a read of the standby, and gives the server process that runs it there.
async fn start_read(sandbox: &Sandbox, raw: &mut RawClient) -> i32 {
    let direct = sandbox.connect(1).await.unwrap();
    raw.send(&query("SELECT pg_sleep(2) AS dozes FROM generate_series(1, 1)")).await;
    let sql = "SELECT max(pid) FROM pg_stat_activity WHERE query LIKE '%AS dozes%' AND state = 'active' \
               AND pid <> pg_backend_pid()";
    let mut process = None;
    eventually("it runs there", async || {
        process = direct.query_one(sql, &[]).await.unwrap().get(0);
        process.is_some()
    })
    .await;
    process.unwrap()
}

/// C09: a standby that hangs does not heed the cancel, and nobody else is to run what was cancelled.
#[tokio::test]
async fn a_cancelled_read_on_a_standby_that_hangs_is_not_run_again() {
    let (sandbox, proxy) = with_standby().await;
    for begin in [None, Some("BEGIN READ ONLY")] {
        let (mut raw, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
        if let Some(begin) = begin {
            unharmed(&raw.query(begin).await, 0);
        }
        start_read(&sandbox, &mut raw).await;
        sandbox.node(1).sigstop().unwrap();
        let ((), answer) = tokio::join!(proxy.cancel(&key), in_time("an answer", raw.read_until(b'Z')));
        assert_eq!(errors(&answer), ["57014"], "{answer:?}");
        assert_eq!(status(&answer), if begin.is_some() { 'E' } else { 'I' });
        if begin.is_some() {
            unharmed(&raw.query("ROLLBACK").await, 0);
        }
        assert_eq!(values(&raw.query("SELECT 1").await), ["1"]);
        sandbox.node(1).sigcont().unwrap();
        read_again(&proxy).await;
    }
}

/// C09: nor what a standby was lost with behind the cancel.
#[tokio::test]
async fn a_cancelled_read_on_a_standby_that_dies_is_not_run_again() {
    let (sandbox, proxy) = with_standby().await;
    let (mut raw, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    let process = Pid::from_raw(start_read(&sandbox, &mut raw).await);
    kill(process, Signal::SIGSTOP).unwrap();
    proxy.cancel(&key).await;
    kill(process, Signal::SIGKILL).unwrap();
    let answer = in_time("an answer", raw.read_until(b'Z')).await;
    assert_eq!(errors(&answer), ["57014"], "{answer:?}");
    assert_eq!(values(&raw.query("SELECT 1").await), ["1"]);
}
