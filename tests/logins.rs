//! Logins against real servers: who may in, who may not and with which error, and bad input that harms nobody else.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, eventually, frame, kinds, query, startup, startup_frame, values};

const PROTOCOL_3_0: i32 = 196_608;
const PROTOCOL_3_2: i32 = 196_610;
const SSL_REQUEST: i32 = 80_877_103;
const GSSENC_REQUEST: i32 = 80_877_104;

async fn refusal(proxy: &Running, user: &str, password: &str, db: &str) -> (String, String) {
    let error = proxy.try_connect(user, password, db).await.expect_err("a refusal");
    let error = error.as_db_error().unwrap_or_else(|| panic!("{error:?}")).clone();
    (error.code().code().to_owned(), error.message().to_owned())
}

#[tokio::test]
async fn passwords_are_those_of_the_servers() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE ann LOGIN PASSWORD 'one'")
        .await
        .unwrap();
    let proxy = Running::start(&sandbox, &[]).await;

    let ann = proxy.connect("ann", "one", "postgres").await;
    let name: String = ann.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
    assert_eq!(name, "ann");

    let (code, text) = refusal(&proxy, "ann", "two", "postgres").await;
    assert_eq!(code, "28P01");
    assert_eq!(text, "password authentication failed for user \"ann\"");
    let (code, text) = refusal(&proxy, "nobody_at_all", "two", "postgres").await;
    assert_eq!(code, "28P01");
    assert_eq!(text, "password authentication failed for user \"nobody_at_all\"");
    assert_eq!(refusal(&proxy, "ann", "one", "nowhere").await.0, "3D000");

    // A changed password: the new one works, at the latest after one refusal of the remembered one.
    direct.batch_execute("ALTER ROLE ann PASSWORD 'three'").await.unwrap();
    let first = proxy.try_connect("ann", "three", "postgres").await;
    if let Err(error) = first {
        assert_eq!(error.code().unwrap().code(), "28P01");
    }
    let ann = proxy.connect("ann", "three", "postgres").await;
    ann.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(refusal(&proxy, "ann", "one", "postgres").await.0, "28P01");
    assert!(proxy.metric("pgsteer_logins_failed_total", &[]).await >= 3.0);
}

#[tokio::test]
async fn the_first_packets() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start_with(
        &sandbox,
        &["--auth", "trust"],
        &[("PGSTEER_LISTEN_LOGIN_TIMEOUT", "700ms"), ("PGSTEER_LISTEN_MAX_CLIENT_CONN", "20")],
    )
    .await;
    let witness = proxy.client().await;

    // Requests for encryption, then the login on the same connection.
    let mut raw = proxy.raw().await;
    raw.send(&startup_frame(GSSENC_REQUEST, b"")).await;
    assert_eq!(raw.read_byte().await, b'N');
    raw.send(&startup_frame(SSL_REQUEST, b"")).await;
    assert_eq!(raw.read_byte().await, b'N');
    raw.log_in("postgres", "postgres").await;
    assert_eq!(values(&raw.query("SELECT 7").await), ["7"]);

    // A newer minor version is negotiated down, unknown protocol options are named.
    let mut raw = proxy.raw().await;
    raw.send(&startup(PROTOCOL_3_2, &[("user", "postgres"), ("_pq_.future", "1")])).await;
    let welcome = raw.read_until(b'Z').await;
    let negotiation = welcome.iter().find(|message| message.kind == b'v').expect("a negotiation");
    assert_eq!(negotiation.body, *b"\0\x03\0\0\0\0\0\x01_pq_.future\0");
    assert_eq!(values(&raw.query("SELECT 8").await), ["8"]);

    for (bytes, code, what) in [
        (startup(PROTOCOL_3_0, &[]), "28000", "no user"),
        (startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "nowhere")]), "3D000", "no database"),
        (startup(PROTOCOL_3_0, &[("user", "no_such_role")]), "28000", "no role"),
        (startup(131_072, &[("user", "postgres")]), "0A000", "protocol 2"),
        (b"\0\0\0\x04".to_vec(), "08P01", "too short"),
        (b"\xff\xff\xff\xff\0\x03\0\0".to_vec(), "08P01", "negative length"),
        (b"\x7f\xff\xff\xff\0\x03\0\0".to_vec(), "08P01", "oversized"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01", "HTTP"),
        (startup_frame(PROTOCOL_3_0, b"user\0postgres"), "08P01", "no terminator"),
    ] {
        let mut raw = proxy.raw().await;
        raw.send(&bytes).await;
        assert_eq!(errors(&raw.read_to_end().await), [code], "{what}");
    }

    // A client that says nothing, and one that stops in the middle, are let go.
    let mut silent = proxy.raw().await;
    let mut half = proxy.raw().await;
    half.send(&startup(PROTOCOL_3_0, &[("user", "postgres")])[..11]).await;
    silent.read_to_end().await;
    half.read_to_end().await;

    // Too many clients.
    eventually("the clients above have left", async || {
        proxy.metric("pgsteer_clients_active", &[]).await <= 3.0
    })
    .await;
    let mut clients = Vec::new();
    let refused = loop {
        let mut raw = proxy.raw().await;
        raw.send(&startup(PROTOCOL_3_0, &[("user", "postgres")])).await;
        let message = raw.read().await;
        if message.kind == b'E' {
            break message;
        }
        raw.read_until(b'Z').await;
        clients.push(raw);
        assert!(clients.len() <= 20, "max_client_conn has no effect");
    };
    assert_eq!(refused.sqlstate(), "53300");
    drop(clients);

    witness.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn bad_messages_end_only_their_sender() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--pool-size", "2"]).await;
    let witness = proxy.client().await;
    for (bytes, what) in [
        (b"Q\0\0\0\x03".to_vec(), "length below 4"),
        (b"Q\xff\xff\xff\xff".to_vec(), "negative length"),
        (b"S\x7f\xff\xff\xff".to_vec(), "a Sync of 2 GB"),
        (frame(b'y', b"what"), "unknown type"),
        (frame(0, b""), "type zero"),
    ] {
        let mut raw = proxy.raw_logged_in().await;
        raw.send(&bytes).await;
        let answer = raw.read_to_end().await;
        assert_eq!(errors(&answer), ["08P01"], "{what}: {answer:?}");
        witness.batch_execute("SELECT 1").await.unwrap();
    }
    // Inside a transaction: its work is undone, its server is not given to anybody as it was.
    let mut raw = proxy.raw_logged_in().await;
    raw.query("CREATE TABLE undone (i int)").await;
    raw.query("BEGIN").await;
    assert_eq!(kinds(&raw.query("INSERT INTO undone VALUES (1)").await), "CZ");
    raw.send(&frame(b'y', b"")).await;
    raw.read_to_end().await;
    // A truncated message, then the end of the connection.
    let mut raw = proxy.raw_logged_in().await;
    let text = query("INSERT INTO undone VALUES (2)");
    raw.send(&text[..text.len() - 3]).await;
    drop(raw);
    eventually("the transaction is undone", async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        witness.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let rows: i64 = witness.query_one("SELECT count(*) FROM undone", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn without_a_node_a_login_waits_and_is_told_why() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    sandbox.node(0).stop_fast().await.unwrap();
    let patience = [("PGSTEER_LISTEN_LOGIN_TIMEOUT", "1s")];
    let proxy = Running::launch(&sandbox, &[], &patience).await;
    assert_eq!(proxy.get("/readyz").await.unwrap().0, 503);
    assert_eq!(refusal(&proxy, "postgres", sandbox.password(), "postgres").await.0, "57P03");
    drop(proxy);

    // One with more patience is let in when the node comes.
    let proxy = Running::launch(&sandbox, &[], &[("PGSTEER_LISTEN_LOGIN_TIMEOUT", "50s")]).await;
    let (client, started) = tokio::join!(proxy.client(), sandbox.node(0).start());
    started.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn idle_clients_cost_no_server_connection() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(proxy.raw_logged_in().await);
    }
    let direct = sandbox.connect(0).await.unwrap();
    eventually("only the prober is connected", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        // This connection and the prober's.
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) <= 2
    })
    .await;
    assert!((proxy.metric("pgsteer_clients_active", &[]).await - 300.0).abs() < 0.5);
    for client in clients.iter_mut().step_by(50) {
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    }
}
