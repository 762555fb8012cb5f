//! Long messages and running queries that end otherwise than planned: a COPY that the server gives up, a client that stops
//! or goes in the middle. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::Duration;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    RawClient, Running, bind, errors, eventually, execute, flush, frame, kinds, parse, query, single, sync,
    values,
};

/// All clients share one connection; and an empty table.
async fn with_table() -> (Sandbox, Running) {
    let (sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    (sandbox, proxy)
}

/// Where the row is that the server refuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BadRow {
    /// In a message of its own: the answer comes while the large one is still on its way.
    Before,
    /// At the beginning of the large message.
    Inside,
}

/// Copies a message of 5 MB in pieces, then goes on. Gives the kinds of all answers.
async fn copy_in_pieces(client: &mut RawClient, extended: bool, bad: BadRow) -> Vec<String> {
    let mut seen = Vec::new();
    if extended {
        let copy = [parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute(""), flush()];
        client.send(&copy.concat()).await;
    } else {
        client.send(&query("COPY t FROM STDIN")).await;
    }
    seen.push(kinds(&client.read_until(b'G').await));
    let rows = "1\n".repeat(5 << 19);
    let large = match bad {
        BadRow::Before => [frame(b'd', b"x\n"), frame(b'd', rows.as_bytes())].concat(),
        BadRow::Inside => frame(b'd', ["x\n", &rows].concat().as_bytes()),
    };
    let mut pieces = large.chunks(50_000);
    client.send(pieces.next().unwrap()).await;
    // The error ends the extended batch, whose ReadyForQuery answers its Sync.
    let last = if extended { b'E' } else { b'Z' };
    if bad == BadRow::Before {
        let answer = client.read_until(last).await;
        assert_eq!(errors(&answer), ["22P02"], "{answer:?}");
        seen.push(kinds(&answer));
    }
    for piece in pieces {
        client.send(piece).await;
    }
    client.send(&frame(b'c', b"")).await;
    if extended {
        client.send(&sync()).await;
    }
    if bad == BadRow::Inside || extended {
        seen.push(kinds(&client.read_until(b'Z').await));
    }
    let next = client.query("SELECT count(*) FROM t").await;
    assert_eq!(values(&next), ["0"], "{next:?}");
    seen.push(kinds(&next));
    seen
}

async fn fails_in_order(extended: bool, bad: BadRow) {
    let (sandbox, proxy) = with_table().await;
    let mut client = proxy.raw_logged_in().await;
    let seen = copy_in_pieces(&mut client, extended, bad).await;
    let mut direct = RawClient::direct(sandbox.node(0)).await;
    assert_eq!(seen, copy_in_pieces(&mut direct, extended, bad).await);
    // There is one server: it is in order for others, too.
    let mut other = proxy.raw_logged_in().await;
    assert_eq!(values(&other.query("SELECT count(*) FROM t").await), ["0"]);
}

/// P04, P07, G19.
#[tokio::test]
async fn a_copy_that_fails_before_a_large_message_has_ended_leaves_the_session_in_order() {
    fails_in_order(false, BadRow::Before).await;
}

/// P04, P07, G19.
#[tokio::test]
async fn a_copy_that_fails_by_a_large_message_leaves_the_session_in_order() {
    fails_in_order(false, BadRow::Inside).await;
}

/// P04, P07, G19.
#[tokio::test]
async fn an_extended_copy_that_fails_by_a_large_message_leaves_the_session_in_order() {
    fails_in_order(true, BadRow::Inside).await;
}

/// P04, P07, G19.
#[tokio::test]
async fn an_extended_copy_that_fails_before_a_large_message_has_ended_leaves_the_session_in_order() {
    fails_in_order(true, BadRow::Before).await;
}

/// How a client goes.
#[derive(Debug, Clone, Copy)]
enum Goes {
    /// Its machine says that nobody is there.
    Reset,
    /// It closes without a goodbye.
    Closed,
}

fn go(client: RawClient, how: Goes) {
    if let Goes::Reset = how {
        socket2::SockRef::from(&client.stream).set_linger(Some(Duration::ZERO)).unwrap();
    }
    drop(client);
}

async fn count(sandbox: &Sandbox, node: usize, condition: &str) -> i64 {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
         AND pid <> pg_backend_pid() AND {condition}"
    );
    direct.query_one(&sql, &[]).await.unwrap().get(0)
}

async fn wait_nothing_open(sandbox: &Sandbox) {
    eventually("no transaction is open", async || {
        count(sandbox, 0, "state LIKE 'idle in transaction%'").await == 0
    })
    .await;
}

/// P07, G19.
#[tokio::test]
async fn the_query_of_a_client_that_vanishes_is_cancelled_and_its_transaction_undone() {
    let (sandbox, proxy) = with_table().await;
    for how in [Goes::Reset, Goes::Closed] {
        for begun in [&["BEGIN", "INSERT INTO t VALUES (1)"][..], &[]] {
            let mut client = proxy.raw_logged_in().await;
            for sql in begun {
                assert!(errors(&client.query(sql).await).is_empty());
            }
            client.send(&query("INSERT INTO t SELECT 2 FROM pg_sleep(3600)")).await;
            let runs = "state = 'active' AND query LIKE 'INSERT INTO t SELECT 2%'";
            eventually("it runs", async || count(&sandbox, 0, runs).await == 1).await;
            go(client, how);
            eventually("it has ended", async || count(&sandbox, 0, runs).await == 0).await;
            // There is one server: nobody else holds it, and nothing was left open on it.
            let mut other = proxy.raw_logged_in().await;
            assert_eq!(values(&other.query("SELECT count(*) FROM t").await), ["0"], "{how:?}, {begun:?}");
            wait_nothing_open(&sandbox).await;
        }
    }
}

/// P07, M02: a read on a standby would hold up replay for nobody.
#[tokio::test]
async fn the_read_of_a_client_that_vanishes_is_cancelled_on_its_standby() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let table = "CREATE TABLE t (n int); INSERT INTO t VALUES (1)";
    sandbox.connect(0).await.unwrap().batch_execute(table).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--max-lag", "1m"]).await;
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
    for how in [Goes::Reset, Goes::Closed] {
        let mut client = proxy.raw_logged_in().await;
        client.send(&query("SELECT pg_sleep(3600) FROM t")).await;
        let runs = "state = 'active' AND query = 'SELECT pg_sleep(3600) FROM t'";
        eventually("it runs", async || count(&sandbox, 1, runs).await == 1).await;
        go(client, how);
        eventually("it has ended", async || count(&sandbox, 1, runs).await == 0).await;
    }
}

/// P07: with one server for all, whoever is in the middle of a message must not hold it.
#[tokio::test]
async fn half_a_message_holds_no_server() {
    let (_sandbox, proxy) = with_table().await;
    let mut other = proxy.raw_logged_in().await;
    let large = query(&format!("INSERT INTO t SELECT length('{}')", "x".repeat(600_000)));
    let batch = [parse("", "INSERT INTO t VALUES (1)"), bind("", "", &[]), execute(""), sync()].concat();
    for message in [query("INSERT INTO t VALUES (1)"), batch, large] {
        for part in [1, 4, 5, message.len() / 2, message.len() - 1] {
            let mut client = proxy.raw_logged_in().await;
            client.send(&message[..part]).await;
            assert_eq!(values(&other.query("SELECT count(*) FROM t").await), ["0"], "{part} bytes");
            go(client, Goes::Reset);
        }
    }
    assert_eq!(values(&other.query("SELECT count(*) FROM t").await), ["0"]);
}

/// P07, G19: what is too large to be kept is on its way to the server already.
#[tokio::test]
async fn half_a_message_of_a_client_that_vanishes_is_not_carried_out() {
    let (sandbox, proxy) = with_table().await;
    let mut other = proxy.raw_logged_in().await;
    let small = query("INSERT INTO t VALUES (1)");
    let large = query(&format!("INSERT INTO t SELECT length('{}')", "x".repeat(3_000_000)));
    for begun in [&["BEGIN", "INSERT INTO t VALUES (2)"][..], &[]] {
        for message in [&small, &large] {
            for how in [Goes::Reset, Goes::Closed] {
                let mut client = proxy.raw_logged_in().await;
                for sql in begun {
                    assert!(errors(&client.query(sql).await).is_empty());
                }
                client.send(&message[..message.len() * 2 / 3]).await;
                go(client, how);
                assert_eq!(values(&other.query("SELECT count(*) FROM t").await), ["0"], "{how:?}");
                wait_nothing_open(&sandbox).await;
            }
        }
    }
}
