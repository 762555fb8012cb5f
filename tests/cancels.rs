//! Cancel requests of clients that wait until theirs has been taken, as libpq's do: what they send next is never hit.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use running::{Message, PROTOCOL_3_0, RawClient, Running, errors, eventually, query, single, values};

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
