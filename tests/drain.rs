//! SIGTERM: idle sessions end at once, transactions end first, and a time-out bounds it all.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Message, RawClient, Running, errors, eventually, kinds, query, startup};
use tokio::io::AsyncReadExt;

async fn trusting(standbys: usize) -> Sandbox {
    Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap()
}

#[tokio::test]
async fn a_running_transaction_ends_and_idle_sessions_are_told() {
    let sandbox = trusting(1).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "50s"]).await;
    let mut idle = proxy.raw_logged_in().await;
    let mut busy = proxy.raw_logged_in().await;
    assert_eq!(errors(&busy.query("CREATE TABLE kept (i int)").await), [""; 0]);
    busy.query("BEGIN").await;
    assert_eq!(kinds(&busy.query("INSERT INTO kept VALUES (1)").await), "CZ");

    proxy.terminate();
    let told = idle.read_to_end().await;
    assert_eq!(errors(&told), ["57P01"], "{told:?}");
    running::eventually("the listener is closed", async || {
        tokio::net::TcpStream::connect(proxy.address).await.is_err()
    })
    .await;

    assert_eq!(kinds(&busy.query("INSERT INTO kept VALUES (2)").await), "CZ");
    let committed = busy.query("COMMIT").await;
    assert_eq!(kinds(&committed[..2]), "CZ", "{committed:?}");
    assert_eq!(errors(&busy.read_to_end().await), ["57P01"]);
    assert!(proxy.wait_exit().await.success());

    let direct = sandbox.connect(0).await.unwrap();
    let count: i64 = direct.query_one("SELECT count(*) FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_transaction_that_never_ends_does_not_keep_the_process() {
    let sandbox = trusting(0).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "300ms"]).await;
    let mut busy = proxy.raw_logged_in().await;
    busy.query("CREATE TABLE lost (i int)").await;
    busy.query("BEGIN").await;
    assert_eq!(kinds(&busy.query("INSERT INTO lost VALUES (1)").await), "CZ");
    proxy.terminate();
    assert!(proxy.wait_exit().await.success());
    assert!(proxy.log().contains("shutdown_timeout is over"), "{}", proxy.log());
    // The server rolls back when its connection ends.
    let direct = sandbox.connect(0).await.unwrap();
    let count: i64 = direct.query_one("SELECT count(*) FROM lost", &[]).await.unwrap().get(0);
    assert_eq!(count, 0);
}

#[tokio::test]
async fn a_running_statement_gets_its_answer() {
    let sandbox = trusting(0).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "50s"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    direct.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let mut busy = proxy.raw_logged_in().await;
    busy.send(&running::query("INSERT INTO t VALUES (1)")).await;
    running::eventually("the insert waits", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        direct.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    proxy.terminate();
    running::eventually("it drains", async || proxy.log().contains("draining")).await;
    direct.batch_execute("COMMIT").await.unwrap();
    let answer = busy.read_to_end().await;
    assert_eq!(kinds(&answer), "CZE", "{answer:?}");
    assert_eq!(errors(&answer), ["57P01"]);
    assert!(proxy.wait_exit().await.success());
}

/// Whoever is not logged in yet is told at once: a load balancer's silent check, a client that is asked for its password, and
/// one that waits for a server.
#[tokio::test]
async fn logins_do_not_hold_up_the_drain() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let patience = [("PGSTEER_LISTEN_LOGIN_TIMEOUT", "50s")];
    let who = startup(running::PROTOCOL_3_0, &[("user", sandbox.user())]);
    let args = ["--shutdown-timeout", "50s"];
    let mut proxy = Running::start_with(&sandbox, &args, &patience).await;
    let silent = proxy.raw().await;
    let mut half = proxy.raw().await;
    half.send(&who[..9]).await;
    let mut asked = proxy.raw().await;
    asked.send(&who).await;
    assert_eq!(asked.read().await.kind, b'R');
    drained(&mut proxy, [silent, half, asked]).await;

    sandbox.node(0).stop_fast().await.unwrap();
    let mut proxy = Running::launch(&sandbox, &args, &patience).await;
    let mut waiting = proxy.raw().await;
    waiting.send(&who).await;
    drained(&mut proxy, [waiting]).await;
}

/// Ends the proxy, once it has taken the clients in; each of them is told.
async fn drained<const N: usize>(proxy: &mut Running, clients: [RawClient; N]) {
    eventually("all are taken in", async || {
        (proxy.metric("pgsteer_clients_active", &[]).await - N as f64).abs() < 0.5
    })
    .await;
    proxy.terminate();
    for mut client in clients {
        assert_eq!(errors(&client.read_to_end().await), ["57P01"]);
    }
    assert!(proxy.wait_exit().await.success());
    assert!(proxy.log().contains("drained"), "{}", proxy.log());
}

fn detail(messages: &[Message]) -> String {
    assert_eq!(errors(messages), ["57P01"], "{messages:?}");
    messages.last().and_then(|message| message.field(b'D')).unwrap_or_default()
}

/// At the end of the time each client is told what is known of its work, and what runs for it is stopped.
#[tokio::test]
async fn whoever_is_cut_off_is_told_what_became_of_its_work() {
    let sandbox = trusting(0).await;
    let direct = sandbox.connect(0).await.unwrap();
    let args = ["--auth", "trust", "--pool-size", "5", "--shards", "1", "--shutdown-timeout", "300ms"];
    let mut proxy = Running::start(&sandbox, &args).await;
    // Each of these holds a server.
    let [mut idle, mut busy, mut alone, mut batch, mut deaf] = [const { None::<RawClient> }; 5];
    for (client, opening) in
        [(&mut idle, "BEGIN"), (&mut busy, "BEGIN"), (&mut alone, ""), (&mut batch, ""), (&mut deaf, "")]
    {
        let mut raw = proxy.raw_logged_in().await;
        raw.query(opening).await;
        *client = Some(raw);
    }
    let [mut idle, mut busy, mut alone, mut batch, mut deaf] =
        [idle, busy, alone, batch, deaf].map(Option::unwrap);
    idle.query("CREATE TABLE lost (i int)").await;
    busy.query("CREATE TABLE lost_too (i int)").await;
    busy.send(&query("SELECT pg_sleep(100)")).await;
    alone.send(&query("SELECT pg_sleep(100)")).await;
    let messages = [running::parse("", "SELECT pg_sleep(100)"), running::bind("", "", &[])].concat();
    batch.send(&[messages, running::execute(""), running::flush()].concat()).await;
    deaf.send(&query("SELECT repeat('x', 100000000)")).await;
    eventually("all of them run", async || {
        let sql = "SELECT count(*) FILTER (WHERE wait_event = 'PgSleep'), count(*) FILTER (WHERE wait_event = 'ClientWrite')
                   FROM pg_stat_activity";
        let row = direct.query_one(sql, &[]).await.unwrap();
        (row.get::<_, i64>(0), row.get::<_, i64>(1)) == (3, 1)
    })
    .await;
    // This one finds none left.
    let mut queued = proxy.raw_logged_in().await;
    let routed = async || proxy.metric("pgsteer_statements_routed_total", &[]).await;
    let before = routed().await;
    queued.send(&query("INSERT INTO lost VALUES (1)")).await;
    eventually("the statement waits", async || routed().await > before).await;

    proxy.terminate();
    for (client, fate) in [
        (&mut idle, "was rolled back"),
        (&mut busy, "was rolled back"),
        (&mut alone, "may have been carried out"),
        (&mut batch, "may have been carried out"),
        (&mut queued, "was not run"),
    ] {
        let told = detail(&client.read_to_end().await);
        assert!(told.contains(fate), "expected {fate}: {told}");
    }
    // Nothing is said in the middle of a row, though there is room now.
    let mut bytes = Vec::new();
    // The end may be a reset, since the row was not written to its end.
    let _ = running::in_time("the end", deaf.stream.read_to_end(&mut bytes)).await;
    assert!(!bytes.windows(5).any(|window| window == b"57P01"), "after {} bytes", bytes.len());
    assert!(proxy.wait_exit().await.success());
    eventually("the servers have stopped", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event IN ('PgSleep', 'ClientWrite')";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

#[tokio::test]
async fn a_second_signal_does_not_wait() {
    let sandbox = trusting(0).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "10m"]).await;
    let mut busy = proxy.raw_logged_in().await;
    busy.query("BEGIN").await;
    busy.query("CREATE TABLE lost (i int)").await;
    proxy.terminate();
    eventually("it drains", async || proxy.log().contains("draining")).await;
    proxy.terminate();
    assert!(detail(&busy.read_to_end().await).contains("was rolled back"));
    assert!(proxy.wait_exit().await.success());
}
