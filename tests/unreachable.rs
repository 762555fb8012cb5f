//! A primary that can't be reached and may live: writes wait, reads are judged by a budget that grows, or as the user has said.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, eventually, query, status, values};

/// A frozen primary: its sockets are open and say nothing.
async fn frozen(on_unreachable: &str) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let args = ["--auth", "trust", "--hold-timeout", "2s", "--max-lag", "3s"];
    let environment = [("PGSTEER_TOPOLOGY_ON_PRIMARY_UNREACHABLE", on_unreachable)];
    let proxy = Running::start_with(&sandbox, &args, &environment).await;
    eventually("both standbys may be read", async || {
        let topology = proxy.topology().await;
        [1, 2].iter().all(|&node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
    sandbox.node(0).sigstop().unwrap();
    eventually("it is out of reach", async || {
        let topology = proxy.topology().await;
        topology["primary"].is_null() && topology["unreachable_for_ms"].is_u64()
    })
    .await;
    (sandbox, proxy)
}

async fn wait_unreachable_for(proxy: &Running, ms: u64) {
    eventually("it has been out of reach for a while", async || {
        proxy.topology().await["unreachable_for_ms"].as_u64() > Some(ms)
    })
    .await;
}

async fn writes_wait(proxy: &Running) {
    let mut client = proxy.raw_logged_in().await;
    let answer = client.query("INSERT INTO ledger VALUES (1)").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["57P03".to_owned()], 'I'));
}

#[tokio::test]
async fn reads_end_with_their_budget() {
    let (sandbox, proxy) = frozen("hold").await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(values(&client.query("SELECT count(*) FROM ledger").await), ["0"]);
    assert!(proxy.topology().await["frozen_for_ms"].is_null(), "it may live");
    writes_wait(&proxy).await;
    wait_unreachable_for(&proxy, 3000).await;
    assert!(proxy.metric("pgsteer_primary_unreachable_seconds", &[]).await > 3.0);
    client.send(&query("SELECT count(*) FROM ledger")).await;
    assert_eq!(errors(&client.read_until(b'Z').await), ["57P03"]);
    // It is there again: so are reads.
    sandbox.node(0).sigcont().unwrap();
    eventually("it is reached", async || proxy.topology().await["unreachable_for_ms"].is_null()).await;
    assert_eq!(values(&client.query("SELECT count(*) FROM ledger").await), ["0"]);
    assert!(proxy.metric("pgsteer_primary_unreachable_seconds", &[]).await < 0.001);
}

#[tokio::test]
async fn stale_reads_go_on_where_they_are_asked_for() {
    let (sandbox, proxy) = frozen("stale-reads").await;
    wait_unreachable_for(&proxy, 5000).await;
    let mut client = proxy.raw_logged_in().await;
    for _ in 0..20 {
        assert_eq!(values(&client.query("SELECT count(*) FROM ledger").await), ["0"]);
    }
    writes_wait(&proxy).await;
    assert!(proxy.topology().await["frozen_for_ms"].is_null(), "it may live");
    sandbox.node(0).sigcont().unwrap();
}
