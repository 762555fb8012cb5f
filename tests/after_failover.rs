//! What a failover leaves of sessions and of the cluster: statements and settings, commits that waited for a standby, prepared
//! transactions, proxies that were started in the middle. The hazards' numbers stand at each test.
//!
//! Of X21 the rest is PostgreSQL's own and not pgsteer's to change: sequences that jump ahead, unlogged tables that are empty, advisory
//! locks and slots that are lost. X20, clusters without positions of WAL, are not supported: without them nothing is known of a standby.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox, Sync};
use running::{
    Message, RawClient, Running, bind, errors, eventually, execute, kinds, no_errors, parse, promote, query,
    values, wait_blocked,
};

const ARGS: [&str; 4] = ["--auth", "trust", "--max-lag", "1h"];

async fn cluster(sync: Sync, standbys: usize) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(standbys).sync(sync).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = Running::start(&sandbox, &ARGS).await;
    (sandbox, proxy)
}

async fn executed(client: &mut RawClient, name: &str, value: &str) -> Vec<Message> {
    client.extended(&[bind("", name, &[value]), execute("")]).await
}

/// X11.
#[tokio::test]
async fn statements_and_settings_are_on_the_new_primary() {
    let (sandbox, proxy) = cluster(Sync::Any1, 2).await;
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.extended(&[parse("s", "INSERT INTO t VALUES ($1::text::int) RETURNING n")]).await);
    no_errors(&client.query("SET app.tenant = 'mine'; SET work_mem = '1234kB'").await);
    no_errors(&executed(&mut client, "s", "1").await);
    sandbox.node(0).kill9().await.unwrap();
    promote(&sandbox).await;
    assert_eq!(values(&executed(&mut client, "s", "2").await), ["2"]);
    let told = "/* pgsteer: target=primary */ SELECT current_setting('app.tenant'), count(*) FROM t";
    assert_eq!(values(&client.query(told).await), ["mine"]);
    assert_eq!(values(&client.query("SHOW work_mem").await), ["1234kB"]);
}

/// X06: writes go on as soon as the new primary can be written, though nobody follows it; who does not follow it is not read.
#[tokio::test]
async fn writes_do_not_wait_for_others_to_follow() {
    let (sandbox, proxy) = cluster(Sync::Async, 2).await;
    let mut client = proxy.raw_logged_in().await;
    sandbox.node(0).kill9().await.unwrap();
    let chosen = sandbox.most_advanced_standby().await.unwrap();
    sandbox.promote_wait(chosen).await.unwrap();
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    for _ in 0..20 {
        assert_eq!(values(&client.query("SELECT count(*) FROM t").await), ["1"]);
    }
}

/// Its server connection was open before the promotion: a login takes longer than the rest of a redirect.
#[tokio::test]
async fn the_first_write_behind_a_promotion_needs_no_login() {
    let (sandbox, proxy) = cluster(Sync::Async, 2).await;
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    let chosen = sandbox.most_advanced_standby().await.unwrap();
    let direct = sandbox.connect(chosen).await.unwrap();
    let there = async || -> Vec<String> {
        let sql = "SELECT pid::text FROM pg_stat_activity WHERE backend_type = 'client backend' \
            AND application_name <> 'pgsteer_probe' AND pid <> pg_backend_pid()";
        direct.query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    };
    assert_eq!(there().await, [""; 0], "no read has been there");
    sandbox.node(0).kill9().await.unwrap();
    client.send(&query("INSERT INTO t VALUES (2) RETURNING pg_backend_pid()")).await;
    eventually("a connection is opened ahead", async || !there().await.is_empty()).await;
    let ahead = there().await;
    sandbox.promote_wait(chosen).await.unwrap();
    let answer = client.read_until(b'Z').await;
    assert_eq!(values(&answer), ahead, "{answer:?}");
}

/// X06: the same node starts anew. What was held runs once, whatever was opened while it was starting.
#[tokio::test]
async fn writes_go_on_where_the_primary_starts_anew() {
    let (sandbox, proxy) = cluster(Sync::Async, 1).await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(proxy.raw_logged_in().await);
    }
    for round in 1..=3 {
        sandbox.node(0).kill9().await.unwrap();
        for client in &mut clients {
            client.send(&query("INSERT INTO t VALUES (1)")).await;
        }
        sandbox.node(0).start().await.unwrap();
        for client in &mut clients {
            no_errors(&client.read_until(b'Z').await);
        }
        let direct = sandbox.connect(0).await.unwrap();
        let count: i64 = direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
        assert_eq!(count, 8 * round);
    }
}

/// X09: a commit that waits for a standby and is cancelled is there on the primary alone; PostgreSQL's warning says so.
#[tokio::test]
async fn a_cancelled_wait_for_a_standby_is_told_with_its_warning() {
    let (sandbox, proxy) = cluster(Sync::Any1, 1).await;
    let (mut client, key) = proxy.raw_with_key(3 << 16).await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    sandbox.node(1).stop_immediate().await.unwrap();
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_blocked(&sandbox, 0, "INSERT INTO t VALUES (2)", "SyncRep").await;
    proxy.cancel(&key).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(kinds(&answer), "NCZ", "{answer:?}");
    assert!(answer[0].field(b'M').unwrap().contains("synchronous replication"), "{answer:?}");
}

/// X09: the same when the server shuts down: the outcome is unknown, and the warning stands in the error's detail.
#[tokio::test]
async fn a_wait_for_a_standby_that_a_shutdown_ends_has_an_unknown_outcome() {
    let (sandbox, proxy) = cluster(Sync::Any1, 1).await;
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    sandbox.node(1).stop_immediate().await.unwrap();
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_blocked(&sandbox, 0, "INSERT INTO t VALUES (2)", "SyncRep").await;
    sandbox.node(0).stop_fast().await.unwrap();
    let answer = client.read_until(b'Z').await;
    assert_eq!((kinds(&answer), errors(&answer)), ("EZ".to_owned(), vec!["08007".to_owned()]), "{answer:?}");
    let detail = answer[0].field(b'D').unwrap();
    assert!(detail.contains("canceling the wait for synchronous replication"), "{detail}");
}

/// X21: a prepared transaction outlives the primary, and any session may end it.
#[tokio::test]
async fn a_prepared_transaction_is_ended_on_the_new_primary() {
    let (sandbox, proxy) = cluster(Sync::Any1, 2).await;
    let mut client = proxy.raw_logged_in().await;
    for sql in ["BEGIN", "INSERT INTO t VALUES (7)", "PREPARE TRANSACTION 'two'"] {
        no_errors(&client.query(sql).await);
    }
    sandbox.node(0).kill9().await.unwrap();
    promote(&sandbox).await;
    no_errors(&client.query("COMMIT PREPARED 'two'").await);
    assert_eq!(values(&client.query("SELECT n FROM t").await), ["7"]);
}

/// X16: a proxy that comes up while there is no primary serves as soon as there is one, and agrees with the others.
#[tokio::test]
async fn a_proxy_started_in_the_middle_serves_when_there_is_a_primary() {
    let (sandbox, proxy) = cluster(Sync::Any1, 2).await;
    sandbox.node(0).kill9().await.unwrap();
    let late = Running::launch(&sandbox, &ARGS, &[]).await;
    let (chosen, _) = promote(&sandbox).await;
    for proxy in [&proxy, &late] {
        eventually("it is ready", async || {
            proxy.get("/readyz").await.is_some_and(|(status, _)| status == 200)
        })
        .await;
        no_errors(&proxy.raw_logged_in().await.query("INSERT INTO t VALUES (1)").await);
        assert_eq!(proxy.topology().await["nodes"][chosen]["role"], "primary");
    }
}

/// X12: the session's own limit counts while its statement is held.
#[tokio::test]
async fn a_statements_own_limit_counts_while_it_is_held() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut client = proxy.raw_logged_in().await;
    // What a unit leaves is asked for behind its answer, and before the next.
    for sql in ["CREATE TABLE t (n int)", "SET statement_timeout = '700ms'", "SELECT 1"] {
        no_errors(&client.query(sql).await);
    }
    sandbox.node(0).kill9().await.unwrap();
    let began = Instant::now();
    let answer = client.query("INSERT INTO t VALUES (3)").await;
    assert_eq!(errors(&answer), ["57014"]);
    assert!(began.elapsed() >= Duration::from_millis(650));
    let hold = Duration::from_secs(30);
    assert!(began.elapsed() < hold, "{:?}", began.elapsed());
    sandbox.node(0).start().await.unwrap();
    eventually("the primary is back", async || {
        proxy.get("/readyz").await.is_some_and(|(status, _)| status == 200)
    })
    .await;
    // Opening a connection does not count, as it does not in PostgreSQL.
    no_errors(&client.query("INSERT INTO t VALUES (2)").await);
    assert_eq!(values(&client.query("SELECT n FROM t").await), ["2"]);
}
