//! What is told of a failover: one record, on `/topology/events`, in the log and in metrics.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, eventually, promote, query, status};
use serde_json::Value;

async fn cluster() -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    (sandbox, proxy)
}

async fn failovers(proxy: &Running) -> Vec<Value> {
    let (code, body) = proxy.get("/topology/events").await.unwrap();
    assert_eq!(code, 200);
    serde_json::from_str::<Value>(&body).unwrap()["failovers"].as_array().unwrap().clone()
}

async fn settled(proxy: &Running, count: usize) -> Value {
    let mut all = Vec::new();
    eventually("the record is complete", async || {
        let complete = counted(proxy, "pgsteer_failovers_total", &[]).await;
        all = failovers(proxy).await;
        all.len() == count && complete == count as u64
    })
    .await;
    all.pop().unwrap()
}

async fn counted(proxy: &Running, name: &str, labels: &[(&str, &str)]) -> u64 {
    proxy.metric(name, labels).await.round() as u64
}

/// One statement is in flight, two are held, and none of it is forgotten.
#[tokio::test]
async fn a_failover_leaves_one_record() {
    let (sandbox, proxy) = cluster().await;
    let mut flying = proxy.raw_logged_in().await;
    flying.send(&query("INSERT INTO ledger SELECT 1 FROM pg_sleep(60)")).await;
    let primary = sandbox.connect(0).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE 'INSERT%'";
    eventually("it runs", async || primary.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1).await;
    assert!(failovers(&proxy).await.is_empty());
    // An error that has nothing to do with it, some rounds before.
    let mut rude = proxy.raw_logged_in().await;
    rude.send(b"Q\0\0\0\x01").await;
    eventually("it is told", async || {
        counted(&proxy, "pgsteer_errors_total", &[("sqlstate", "08P01")]).await == 1
    })
    .await;
    let version = async || proxy.topology().await["version"].as_u64().unwrap();
    let told = version().await;
    eventually("some rounds have passed", async || version().await > told + 16).await;
    sandbox.node(0).kill9().await.unwrap();
    assert_eq!(errors(&flying.read_until(b'Z').await), ["08007"]);
    let mut held = [proxy.raw_logged_in().await, proxy.raw_logged_in().await];
    for (client, id) in held.iter_mut().zip(2..) {
        client.send(&query(&format!("INSERT INTO ledger VALUES ({id})"))).await;
    }
    eventually("they wait", async || counted(&proxy, "pgsteer_statements_waiting", &[]).await == 2).await;
    let under_way = failovers(&proxy).await;
    assert_eq!((under_way.len(), &under_way[0]["outcome"]), (1, &Value::from("under_way")));
    assert_eq!(under_way[0]["statements"]["waiting"], 2);
    promote(&sandbox).await;
    for client in &mut held {
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), status(&answer)), (Vec::new(), 'I'));
    }
    let record = settled(&proxy, 1).await;
    println!("{record:#}");
    assert_eq!((&record["number"], &record["outcome"]), (&Value::from(1), &Value::from("new_epoch")));
    assert_eq!((&record["old_primary"], &record["epoch"]), (&Value::from("n1"), &Value::from(2)));
    assert_eq!(record["new_primary"], proxy.topology().await["primary"]["name"]);
    assert_eq!(record["rule"], "the only claim, on a higher timeline");
    assert!(record["why"].as_str().unwrap().contains("is suspected"), "{record}");
    let statements = &record["statements"];
    assert_eq!((&statements["held"], &statements["released"]), (&Value::from(2), &Value::from(2)));
    assert!(statements["longest_hold_ms"].as_u64() > Some(0), "{record}");
    assert_eq!(record["errors"], serde_json::json!({"08007": 1}));
    assert!(record["rounds"].as_u64() > Some(1), "{record}");
    let [lost, primary, settled] =
        ["lost_after_ms", "primary_after_ms", "settled_after_ms"].map(|key| record[key].as_f64().unwrap());
    assert!(lost <= primary && primary <= settled, "{record}");
    assert_eq!(counted(&proxy, "pgsteer_failovers_total", &[("outcome", "new_epoch")]).await, 1);
    for name in ["pgsteer_failover_duration_seconds_count", "pgsteer_failover_release_seconds_count"] {
        assert_eq!(counted(&proxy, name, &[]).await, 1, "{name}");
    }
    assert!(proxy.log().contains("failover 1: from "), "{}", proxy.log());
}

/// A doubt that comes to nothing is none; a restart of the same node is.
#[tokio::test]
async fn a_doubt_leaves_no_record_and_a_restart_does() {
    let (sandbox, proxy) = cluster().await;
    let primary = sandbox.connect(0).await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    assert!(errors(&client.query("INSERT INTO ledger VALUES (1)").await).is_empty());
    let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE application_name = 'pgsteer_probe'";
    let ended: i64 = primary.query_one(end, &[]).await.unwrap().get(0);
    assert_eq!(ended, 1);
    eventually("the doubt is over", async || proxy.log().contains("the picture is clear")).await;
    let before = failovers(&proxy).await.len();
    drop(primary);
    sandbox.node(0).stop_immediate().await.unwrap();
    sandbox.node(0).start().await.unwrap();
    let record = settled(&proxy, before + 1).await;
    assert_eq!(record["rule"], "the same node and timeline, started anew");
    assert_eq!(record["old_primary"], record["new_primary"]);
    assert_eq!(proxy.topology().await["epoch"], 2);
}
