//! Pool mode `session`: one server for a client's whole life, and nothing of it for the next client.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    PROTOCOL_3_0, RawClient, Running, bind, errors, eventually, execute, in_time, kinds, parse, query, run,
    value, values,
};

async fn cluster(standbys: usize, shards: &str, args: &[&str]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap();
    let args = [&["--auth", "trust", "--shards", shards, "--pool-mode", "session"], args].concat();
    let proxy = Running::start(&sandbox, &args).await;
    (sandbox, proxy)
}

/// Says goodbye and goes.
async fn leave(mut client: RawClient) {
    client.send(&running::frame(b'X', b"")).await;
    assert_eq!(client.read_to_end().await, []);
}

/// Reads and writes, simple and extended, in transactions and outside: one server process, that of the primary.
#[tokio::test]
async fn a_client_keeps_one_server_of_the_primary_for_its_life() {
    let (_sandbox, proxy) = cluster(1, "2", &[]).await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(value(&mut client, "SELECT count(*) > 0 FROM pg_class").await, "t");
    let pid = value(&mut client, "SELECT pg_backend_pid()").await;
    let read = "SELECT pg_backend_pid() FROM pg_class LIMIT 1";
    for sql in
        ["BEGIN", read, "COMMIT", "BEGIN READ ONLY", read, "COMMIT", "CREATE TEMP TABLE mine (i int)", read]
    {
        if let Some(other) = values(&run(&mut client, sql).await).pop() {
            assert_eq!(other, pid, "{sql}");
        }
    }
    let answer = client.extended(&[parse("", read), bind("", "", &[]), execute("")]).await;
    assert_eq!(values(&answer).first(), Some(&pid));
    run(&mut client, "DISCARD ALL").await;
    assert_eq!(value(&mut client, read).await, pid, "DISCARD ALL ends no session");
    let routed = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    assert!(routed < 0.5, "{routed} on a standby");
    assert!((proxy.metric("pgsteer_pins_total", &[("reason", "pool_mode")]).await - 1.0).abs() < 0.5);
}

/// What a session can leave behind, and the question that finds it.
const STATE: [(&str, &str, &str); 8] = [
    ("SET work_mem = '8MB'", "SELECT current_setting('work_mem')", "4MB"),
    ("SET app.tenant = 'one'", "SELECT coalesce(current_setting('app.tenant', true), '')", ""),
    ("CREATE TEMP TABLE mine (i int)", "SELECT to_regclass('mine') IS NULL", "t"),
    ("SELECT pg_advisory_lock(7)", "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory'", "0"),
    ("LISTEN channel", "SELECT count(*) FROM pg_listening_channels()", "0"),
    ("PREPARE p AS SELECT 1", "SELECT count(*) FROM pg_prepared_statements", "0"),
    ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", "SELECT count(*) FROM pg_cursors WHERE is_holdable", "0"),
    ("SET ROLE other", "SELECT current_user", "postgres"),
];

/// The next client has the same server process, and finds nothing. On one shard: what is handed over is reset in any case.
#[tokio::test]
async fn the_next_client_finds_nothing_of_the_last_one() {
    let (sandbox, proxy) = cluster(0, "1", &["--pool-size", "1"]).await;
    sandbox.connect(0).await.unwrap().batch_execute("CREATE ROLE other").await.unwrap();
    let mut first_pid = None;
    for (leaves, finds, nothing) in STATE {
        let mut one = proxy.raw_logged_in().await;
        let pid = value(&mut one, "SELECT pg_backend_pid()").await;
        assert_eq!(*first_pid.get_or_insert(pid.clone()), pid, "it is kept for the next client");
        run(&mut one, leaves).await;
        assert_eq!(errors(&one.extended(&[parse("named", "SELECT 5")]).await), [""; 0]);
        assert_ne!(value(&mut one, finds).await, nothing, "{leaves} leaves nothing to find");
        leave(one).await;
        let mut two = proxy.raw_logged_in().await;
        assert_eq!(value(&mut two, finds).await, nothing, "{leaves}");
        assert_eq!(value(&mut two, "SELECT pg_backend_pid()").await, pid, "{leaves}");
        leave(two).await;
    }
    // What DISCARD ALL leaves goes with its server process: the random seed.
    let mut one = proxy.raw_logged_in().await;
    run(&mut one, "SELECT setseed(0.5)").await;
    leave(one).await;
    let mut two = proxy.raw_logged_in().await;
    assert_ne!(value(&mut two, "SELECT pg_backend_pid()").await, first_pid.unwrap());
}

/// A client that waits gets the connection when the other has left, not before; also from the other shard.
#[tokio::test]
async fn a_server_is_free_when_its_client_has_left() {
    let (_sandbox, proxy) = cluster(0, "2", &["--pool-size", "1"]).await;
    for _ in 0..6 {
        let mut one = proxy.raw_logged_in().await;
        run(&mut one, "SET work_mem = '8MB'").await;
        let mut two = proxy.raw_logged_in().await;
        two.send(&query("SELECT current_setting('work_mem')")).await;
        eventually("it waits", async || proxy.metric("pgsteer_sessions_waiting", &[]).await > 0.5).await;
        assert_eq!(value(&mut one, "SELECT current_setting('work_mem')").await, "8MB");
        leave(one).await;
        assert_eq!(values(&two.read_until(b'Z').await), ["4MB"]);
        leave(two).await;
    }
}

/// A client that vanishes in a transaction, in a batch or in a statement: all of it is undone, and nobody gets that connection.
#[tokio::test]
async fn a_server_in_the_middle_of_something_is_closed() {
    let (sandbox, proxy) = cluster(0, "2", &["--pool-size", "1"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    for how in ["transaction", "batch", "statement"] {
        let mut one = proxy.raw_logged_in().await;
        let pid = value(&mut one, "SELECT pg_backend_pid()").await;
        match how {
            "transaction" => {
                run(&mut one, "BEGIN").await;
                run(&mut one, "INSERT INTO t VALUES (1)").await;
            }
            "batch" => {
                let batch =
                    [parse("", "INSERT INTO t VALUES (1)"), bind("", "", &[]), execute(""), running::flush()];
                one.send(&batch.concat()).await;
                one.read_until(b'C').await;
            }
            _ => {
                one.send(&query("INSERT INTO t SELECT 1 FROM pg_sleep(3600)")).await;
                eventually("it runs", async || {
                    let sql = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%3600%' AND pid <> pg_backend_pid()";
                    direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
                })
                .await;
            }
        }
        drop(one);
        let mut two = proxy.raw_logged_in().await;
        assert_ne!(value(&mut two, "SELECT pg_backend_pid()").await, pid, "{how}");
        assert_eq!(value(&mut two, "SELECT count(*) FROM t").await, "0", "{how}");
        leave(two).await;
    }
}

/// The server is the session: it ends with it, as a pinned one does. A session that has run nothing yet loses nothing.
#[tokio::test]
async fn a_session_ends_with_its_server() {
    let (sandbox, proxy) = cluster(0, "2", &[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut fresh = proxy.raw_logged_in().await;
    let mut client = proxy.raw_logged_in().await;
    let pid = value(&mut client, "SELECT pg_backend_pid()").await;
    let ends = format!("SELECT pg_terminate_backend({pid})");
    direct.batch_execute(&ends).await.unwrap();
    let answer = in_time("the end", client.read_to_end()).await;
    let words = answer.last().unwrap();
    assert_eq!(
        (words.field(b'S').unwrap(), words.sqlstate()),
        ("FATAL".to_owned(), "57P01".to_owned()),
        "{answer:?}"
    );
    assert!(words.field(b'D').unwrap().contains("pool_mode"), "{words:?}");
    assert_eq!(value(&mut fresh, "SELECT 1").await, "1");
}

/// The mode of a database, and of a user, which wins.
#[tokio::test]
async fn databases_and_users_have_modes_of_their_own() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    for sql in ["CREATE ROLE ann LOGIN", "CREATE ROLE bob LOGIN", "CREATE DATABASE shop"] {
        direct.batch_execute(sql).await.unwrap();
    }
    let file = std::env::temp_dir().join(format!("pgsteer-modes-{}.toml", std::process::id()));
    let tables = "[[pool.database]]\nname = \"shop\"\nmode = \"session\"\n[[pool.user]]\nname = \"bob\"\nmode = \"transaction\"\n";
    std::fs::write(&file, tables).unwrap();
    let args = ["--auth", "trust", "--pool-size", "1", "--config", file.to_str().unwrap()];
    let proxy = Running::start(&sandbox, &args).await;
    std::fs::remove_file(&file).unwrap();
    for (user, database, keeps) in [
        ("ann", "shop", true),
        ("ann", "postgres", false),
        ("bob", "shop", false),
        ("bob", "postgres", false),
    ] {
        let mut one = proxy.raw_as(user, database).await;
        run(&mut one, "SELECT 1").await;
        let mut two = proxy.raw().await;
        two.send(&running::startup(PROTOCOL_3_0, &[("user", user), ("database", database)])).await;
        two.read_until(b'Z').await;
        two.send(&query("SELECT 2")).await;
        if keeps {
            eventually("it waits", async || proxy.metric("pgsteer_sessions_waiting", &[]).await > 0.5).await;
            leave(one).await;
        }
        let answer = two.read_until(b'Z').await;
        assert_eq!((kinds(&answer).as_str(), values(&answer)), ("TDCZ", vec!["2".to_owned()]));
    }
}
