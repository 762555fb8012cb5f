//! Time-outs with which a server ends a session on purpose: the client is told by the server's own words and closed, as
//! without a proxy. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, frame, kinds, parse, query, single, values};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Runs all but the last statement, sends the last, and reads to the end: its kinds, and severity, SQLSTATE and text of the
/// last message.
async fn is_ended(client: &mut RawClient, statements: &[&str]) -> (String, [String; 3]) {
    let (last, first) = statements.split_last().unwrap();
    for sql in first {
        let answer = client.query(sql).await;
        assert!(errors(&answer).is_empty(), "{sql}: {answer:?}");
    }
    client.send(&query(last)).await;
    let answer = client.read_to_end().await;
    let words = answer.last().unwrap();
    let field = |code| words.field(code).unwrap_or_default();
    (kinds(&answer), [field(b'S'), words.sqlstate(), field(b'M')])
}

async fn is_ended_as_by_the_server(code: &str, statements: &[&str]) {
    let (sandbox, proxy) = single(&[]).await;
    let mut direct = RawClient::direct(sandbox.node(0)).await;
    let right = is_ended(&mut direct, statements).await;
    assert_eq!(right.1[..2], ["FATAL".to_owned(), code.to_owned()], "the server itself");
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(is_ended(&mut client, statements).await, right);
    assert_eq!(values(&proxy.raw_logged_in().await.query("SELECT 1").await), ["1"]);
}

/// G21.
#[tokio::test]
async fn an_idle_transaction_is_ended_in_the_servers_words() {
    let statements = ["BEGIN", "SET LOCAL idle_in_transaction_session_timeout = '200ms'"];
    is_ended_as_by_the_server("25P03", &statements).await;
}

/// G21: the pin has nothing to do with it.
#[tokio::test]
async fn an_idle_transaction_of_a_pinned_session_is_ended_in_the_servers_words() {
    let statements = ["SET idle_in_transaction_session_timeout = '200ms'", "BEGIN", "SELECT 1"];
    is_ended_as_by_the_server("25P03", &statements).await;
}

/// G21.
#[tokio::test]
async fn an_idle_transaction_is_ended_by_a_startup_option_in_the_servers_words() {
    let (sandbox, proxy) = single(&[]).await;
    let parameters = [("user", "postgres"), ("options", "-c idle_in_transaction_session_timeout=200ms")];
    let mut direct =
        RawClient { stream: tokio::net::TcpStream::connect(sandbox.node(0).address()).await.unwrap() };
    direct.log_in_with(&parameters).await;
    let mut client = proxy.raw().await;
    client.log_in_with(&parameters).await;
    let statements = ["BEGIN", "SELECT 1"];
    let right = is_ended(&mut direct, &statements).await;
    assert_eq!(right.1[1], "25P03");
    assert_eq!(is_ended(&mut client, &statements).await, right);
}

/// G21.
#[tokio::test]
async fn an_idle_pinned_session_is_ended_in_the_servers_words() {
    let pinned = ["CREATE TEMP TABLE pins (i int)", "SET idle_session_timeout = '200ms'"];
    is_ended_as_by_the_server("57P05", &pinned).await;
}

/// G21: while the session holds no server, nobody but pgsteer can look at its time-outs.
#[tokio::test]
async fn an_idle_session_without_a_server_is_ended_in_the_servers_words() {
    is_ended_as_by_the_server("57P05", &["SET idle_session_timeout = '200ms'"]).await;
    let put_off = ["SET idle_in_transaction_session_timeout = '200ms'", "BEGIN"];
    is_ended_as_by_the_server("25P03", &put_off).await;
}

/// G21: only from PostgreSQL 17 on is there such a time-out.
#[tokio::test]
async fn a_long_transaction_is_ended_in_the_servers_words() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    if sandbox.binaries().major() < 17 {
        return;
    }
    drop(sandbox);
    let begin = ["BEGIN", "SET LOCAL transaction_timeout = '200ms'"];
    is_ended_as_by_the_server("25P04", &begin).await;
    is_ended_as_by_the_server("25P04", &[&begin[..], &["SELECT pg_sleep(3600)"]].concat()).await;
}

/// G21: a server connection that ended so is nobody's loss. Its session holds none while it is idle, and gets another.
#[tokio::test]
async fn a_session_time_out_of_an_idle_server_connection_is_not_seen() {
    let (sandbox, proxy) = single(&[]).await;
    let mut client = proxy.raw_logged_in().await;
    let direct = sandbox.connect(0).await.unwrap();
    // Of the servers' own configuration: it is meant for connections that nobody uses.
    direct.batch_execute("SET idle_session_timeout = 0").await.unwrap();
    direct.batch_execute("ALTER SYSTEM SET idle_session_timeout = '50ms'").await.unwrap();
    direct.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%AS mine'";
    for round in 0..5 {
        assert_eq!(values(&client.query(&format!("SELECT {round} AS mine")).await), [round.to_string()]);
        eventually("the server has ended the connection", async || {
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }
}

/// A way to the server that once, when a statement with this marker comes, says instead of it what a server says that has just
/// ended for having waited too long.
async fn ended_just_before(server: SocketAddr, marker: &'static str) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let ended = Arc::new(AtomicBool::new(false));
        while let Ok((client, _)) = listener.accept().await {
            let ended = Arc::clone(&ended);
            tokio::spawn(async move {
                let (mut from_server, mut to_server) = TcpStream::connect(server).await.unwrap().into_split();
                let (mut from_client, to_client) = client.into_split();
                let to_client = Arc::new(tokio::sync::Mutex::new(to_client));
                let back = Arc::clone(&to_client);
                tokio::spawn(async move {
                    let mut bytes = vec![0; 65_536];
                    while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                        back.lock().await.write_all(&bytes[..count]).await.unwrap();
                    }
                });
                let mut bytes = vec![0; 65_536];
                while let Ok(count @ 1..) = from_client.read(&mut bytes).await {
                    let came = &bytes[..count];
                    let is_it = came.windows(marker.len()).any(|part| part == marker.as_bytes());
                    if is_it && !ended.swap(true, Ordering::SeqCst) {
                        let fatal = b"SFATAL\0VFATAL\0C57P05\0Mterminating connection due to idle-session timeout\0\0";
                        let mut client = to_client.lock().await;
                        client.write_all(&frame(b'E', fatal)).await.unwrap();
                        return client.shutdown().await.unwrap();
                    }
                    to_server.write_all(came).await.unwrap();
                }
            });
        }
    });
    address
}

/// X08, G21: a server that ended by its session time-out just as a write was sent has not read it: it is run on another connection,
/// once.
#[tokio::test]
async fn what_a_server_ended_before_is_run_elsewhere() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let node = ended_just_before(sandbox.node(0).address(), "VALUES (7)").await;
    let proxy = Running::start_at(&[node], &sandbox, &["--auth", "trust", "--shards", "1"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    client.query("CREATE TABLE t (n int)").await;
    let inserted = client.query("INSERT INTO t VALUES (7)").await;
    assert_eq!((kinds(&inserted), errors(&inserted)), ("CZ".to_owned(), vec![]), "{inserted:?}");
    assert_eq!(values(&client.query("SELECT n FROM t").await), ["7"]);
    assert!(proxy.metric("pgsteer_retries_total", &[("cause", "unsent")]).await >= 1.0);
}

/// A statement that PostgreSQL itself answers with the end of the session ends it here, too: SAVEPOINT behind EXECUTE, outside of a
/// transaction.
#[tokio::test]
async fn a_session_that_its_statement_ends_hears_it_from_the_server() {
    let (sandbox, proxy) = single(&[]).await;
    let mut answers = Vec::new();
    for mut client in [RawClient::direct(sandbox.node(0)).await, proxy.raw_logged_in().await] {
        let prepared = client.extended(&[parse("s", "SAVEPOINT a")]).await;
        assert_eq!(errors(&prepared), [""; 0]);
        client.send(&query("EXECUTE s")).await;
        let answer = client.read_to_end().await;
        let words = answer.last().unwrap();
        answers.push((kinds(&answer), [b'S', b'C', b'M'].map(|code| words.field(code))));
    }
    assert_eq!(answers[0].1[0].as_deref(), Some("FATAL"), "the server itself");
    assert_eq!(answers[1], answers[0]);
    assert_eq!(values(&proxy.raw_logged_in().await.query("SELECT 1").await), ["1"]);
}
