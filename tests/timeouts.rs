//! Time-outs with which a server ends a session on purpose: the client is told by the server's own words and closed, as
//! without a proxy. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, kinds, query, values};

async fn single() -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    (sandbox, proxy)
}

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
    let (sandbox, proxy) = single().await;
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
    let (sandbox, proxy) = single().await;
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
    let (sandbox, proxy) = single().await;
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
