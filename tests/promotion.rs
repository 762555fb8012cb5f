//! What a promotion waits for, against real clusters: reads that hold up replay leave the standby while the primary is doubted.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant, SystemTime};

use pgsteer::sandbox::Sandbox;
use running::{
    RawClient, Running, conflicting, errors, eventually, query, status, values, wait_blocked, wait_readable,
};
use tokio_postgres::Client;

/// One minute for the 400 rows that there are, no time for the two that are left.
const MINUTE: &str = "SELECT count(pg_sleep(0.15)) AS minute FROM c";
/// More than fits into all buffers on its way.
const LARGE: &str = "SELECT a.id, repeat('x', 10000) AS large FROM c a, c b";
/// So much longer than an unobstructed promotion one with pgsteer's help may take.
const HELPED: Duration = Duration::from_millis(300);
/// A promotion that has not come by then is taken for one that does not come.
const NEVER: Duration = Duration::from_secs(5);

/// No conflict ends a read.
async fn cluster(standbys: usize) -> Sandbox {
    conflicting(standbys, None).await
}

async fn proxy(sandbox: &Sandbox, extra: &[(&str, &str)]) -> Running {
    // Only the help is to end a reader; no budget is to be exceeded, and no statement given up.
    let bounds = [("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "10m"), ("PGSTEER_HOLD_TIMEOUT", "10m")];
    let args = ["--auth", "trust", "--max-lag", "10m"];
    let proxy = Running::start_with(sandbox, &args, &[&bounds, extra].concat()).await;
    wait_readable(&proxy, sandbox).await;
    proxy
}

/// Makes every snapshot on the standbys conflict with replay, and waits until replay stands still on this one.
async fn obstruct(sandbox: &Sandbox, node: usize) {
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("DELETE FROM c WHERE id > 2").await.unwrap();
    primary.batch_execute("VACUUM c").await.unwrap();
    // VACUUM alone does not flush its WAL; a commit after it does.
    primary.batch_execute("CREATE TABLE vacuumed ()").await.unwrap();
    let standby = sandbox.connect(node).await.unwrap();
    let sql =
        "SELECT wait_event = 'RecoveryConflictSnapshot' FROM pg_stat_activity WHERE backend_type = 'startup'";
    eventually("replay waits for readers", async || {
        standby.query_one(sql, &[]).await.unwrap().get::<_, Option<bool>>(0) == Some(true)
    })
    .await;
}

async fn is_in_recovery(standby: &Client) -> bool {
    standby.query_one("SELECT pg_is_in_recovery()", &[]).await.unwrap().get(0)
}

/// Promotes the first standby; how long that takes, if it comes to an end.
async fn promotion(sandbox: &Sandbox, standby: &Client) -> Option<Duration> {
    let began = Instant::now();
    sandbox.promote(1).unwrap();
    while began.elapsed() < NEVER {
        if !is_in_recovery(standby).await {
            return Some(began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    None
}

async fn unobstructed() -> Duration {
    let sandbox = cluster(1).await;
    let standby = sandbox.connect(1).await.unwrap();
    sandbox.node(0).kill9().await.unwrap();
    promotion(&sandbox, &standby).await.expect("nothing is in its way")
}

/// The statement runs on the node, and nowhere else.
async fn wait_runs(sandbox: &Sandbox, node: usize, marker: &str) {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND strpos(query, $1) > 0 \
               AND pid <> pg_backend_pid()";
    eventually(&format!("{marker} runs on node {node}"), async || {
        direct.query_one(sql, &[&marker]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

/// A read of a minute, and one whose client does not read, on the only standby.
async fn two_readers(sandbox: &Sandbox, proxy: &Running) -> (RawClient, RawClient) {
    let (mut slow, mut stalled) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    slow.send(&query(MINUTE)).await;
    stalled.send(&query(LARGE)).await;
    wait_runs(sandbox, 1, "AS minute").await;
    wait_blocked(sandbox, 1, "AS large", "ClientWrite").await;
    (slow, stalled)
}

async fn ended_for_replay(proxy: &Running) -> f64 {
    proxy.metric("pgsteer_reads_ended_for_replay_total", &[]).await
}

/// C10: the promotion of a standby with a conflicting read of a minute and with a reader that does not read.
#[tokio::test]
async fn readers_do_not_hold_up_a_promotion() {
    let bound = unobstructed().await;
    let sandbox = cluster(1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let (mut slow, mut stalled) = two_readers(&sandbox, &proxy).await;
    obstruct(&sandbox, 1).await;
    let standby = sandbox.connect(1).await.unwrap();
    assert!(ended_for_replay(&proxy).await < 0.5, "the primary is there");
    sandbox.node(0).kill9().await.unwrap();
    let took = promotion(&sandbox, &standby).await.expect("it comes to an end");
    println!("unobstructed {bound:?}, with two readers in its way {took:?}");
    assert!(took < bound + HELPED, "{took:?}, unobstructed {bound:?}");
    // Nothing of its answer had been passed on.
    let answer = slow.read_until(b'Z').await;
    assert_eq!(values(&answer), ["2"], "{answer:?}");
    // The beginning of its answer had.
    let answer = stalled.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'));
    assert_eq!(values(&stalled.query("SELECT count(*) FROM c").await), ["2"]);
    assert!((ended_for_replay(&proxy).await - 2.0).abs() < 0.5);
    assert!((proxy.metric("pgsteer_retries_total", &[("cause", "replay_stands")]).await - 1.0).abs() < 0.5);
    assert!(proxy.log().contains("reads leave it"), "the log tells of it");
}

/// C10: what it is like without the help.
#[tokio::test]
async fn without_help_readers_hold_up_a_promotion() {
    let sandbox = cluster(1).await;
    let proxy = proxy(&sandbox, &[("PGSTEER_TOPOLOGY_REPLAY_STALL_TIMEOUT", "0s")]).await;
    let (slow, stalled) = two_readers(&sandbox, &proxy).await;
    obstruct(&sandbox, 1).await;
    let standby = sandbox.connect(1).await.unwrap();
    sandbox.node(0).kill9().await.unwrap();
    assert_eq!(promotion(&sandbox, &standby).await, None);
    // The one ends by itself after a minute; the other never does.
    drop(slow);
    wait_gone(&standby, "AS minute").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert!(is_in_recovery(&standby).await, "the reader that does not read is in its way");
    drop(stalled);
    eventually("the promotion ends", async || !is_in_recovery(&standby).await).await;
}

async fn wait_gone(standby: &Client, marker: &str) {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND strpos(query, $1) > 0 \
               AND backend_type = 'client backend' AND application_name <> 'pgsteer_probe' AND pid <> pg_backend_pid()";
    eventually(&format!("{marker} has ended"), async || {
        standby.query_one(sql, &[&marker]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

/// Reads on other standbys, and whoever is idle, are in nobody's way.
#[tokio::test]
async fn what_is_in_nobodys_way_stays() {
    let sandbox = cluster(2).await;
    let proxy = proxy(&sandbox, &[]).await;
    // On both standbys, as long as it takes: one of them is obstructed.
    let mut readers = Vec::new();
    for _ in 0..16 {
        let mut reader = proxy.raw_logged_in().await;
        reader.send(&query("SELECT 7, pg_sleep(8) AS both FROM generate_series(1, 1)")).await;
        readers.push(reader);
    }
    let standbys = [sandbox.connect(1).await.unwrap(), sandbox.connect(2).await.unwrap()];
    let count = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND strpos(query, 'AS both') > 0 \
                 AND pid <> pg_backend_pid()";
    let mut on = [0, 0];
    eventually("all run", async || {
        for (on, standby) in on.iter_mut().zip(&standbys) {
            *on = standby.query_one(count, &[]).await.unwrap().get::<_, i64>(0);
        }
        on.iter().sum::<i64>() == 16
    })
    .await;
    assert!(on.iter().all(|&on| on > 0), "{on:?}");
    // Replay on the second goes on: it has nothing to replay that conflicts, as it gets nothing.
    sandbox.node(2).pause_replay().await.unwrap();
    obstruct(&sandbox, 1).await;
    sandbox.node(0).kill9().await.unwrap();
    eventually("the reads of the first have left it", async || {
        (ended_for_replay(&proxy).await - on[0] as f64).abs() < 0.5
    })
    .await;
    for mut reader in readers {
        let answer = reader.read_until(b'Z').await;
        assert_eq!(errors(&answer), Vec::<String>::new());
        assert_eq!(values(&answer).first().map(String::as_str), Some("7"), "{answer:?}");
    }
    assert!((ended_for_replay(&proxy).await - on[0] as f64).abs() < 0.5);
}

/// A READ ONLY transaction holds its locks between two statements.
#[tokio::test]
async fn an_idle_read_only_transaction_is_told_at_its_next_statement() {
    let sandbox = cluster(1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let (mut open, mut idle) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    for statement in ["BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", "SELECT count(*) FROM c"] {
        assert_eq!(status(&open.query(statement).await), 'T');
    }
    // What pgsteer asks behind an answer is a reader like any other: behind the second there is nothing left to ask.
    for _ in 0..2 {
        assert_eq!(values(&idle.query("SELECT count(*) FROM c").await), ["400"]);
    }
    wait_gone(&sandbox.connect(1).await.unwrap(), "").await;
    obstruct(&sandbox, 1).await;
    sandbox.node(0).kill9().await.unwrap();
    let standby = sandbox.connect(1).await.unwrap();
    assert!(promotion(&sandbox, &standby).await.is_some());
    let answer = open.query("SELECT count(*) FROM c").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'));
    assert_eq!(status(&open.query("ROLLBACK").await), 'I');
    assert_eq!(values(&idle.query("SELECT count(*) FROM c").await), ["2"]);
    let ended = ended_for_replay(&proxy).await;
    assert!((ended - 1.0).abs() < 0.5, "{ended}");
}

async fn watches(client: &Client) -> i64 {
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pgsteer_watch'";
    client.query_one(sql, &[]).await.unwrap().get(0)
}

async fn wait_epoch(proxy: &Running, wanted: u64) {
    eventually(&format!("epoch {wanted}"), async || proxy.topology().await["epoch"] == wanted).await;
}

#[tokio::test]
async fn standbys_are_watched_while_the_primary_is_gone() {
    let sandbox = cluster(2).await;
    let proxy = proxy(&sandbox, &[]).await;
    let standbys = [sandbox.connect(1).await.unwrap(), sandbox.connect(2).await.unwrap()];
    for standby in &standbys {
        assert_eq!(watches(standby).await, 0, "the primary is there");
    }
    sandbox.node(0).kill9().await.unwrap();
    for standby in &standbys {
        eventually("it is watched", async || watches(standby).await == 1).await;
    }
    assert!(promotion(&sandbox, &standbys[0]).await.is_some());
    wait_epoch(&proxy, 2).await;
    for standby in &standbys {
        eventually("it is watched no longer", async || watches(standby).await == 0).await;
    }
}

/// No round of probes is near: the promotion that is told begins one.
#[tokio::test]
async fn a_promotion_that_is_told_is_looked_at_at_once() {
    let sandbox = cluster(1).await;
    let names = ["PROBE_INTERVAL", "RAPID_INTERVAL", "CLAIM_TTL"].map(|it| format!("PGSTEER_TOPOLOGY_{it}"));
    let slow: Vec<_> = names.iter().map(String::as_str).zip(["20s", "20s", "60s"]).collect();
    let proxy = proxy(&sandbox, &slow).await;
    let standby = sandbox.connect(1).await.unwrap();
    sandbox.node(0).kill9().await.unwrap();
    eventually("it is watched", async || watches(&standby).await == 1).await;
    assert!(promotion(&sandbox, &standby).await.is_some());
    let promoted = Instant::now();
    wait_epoch(&proxy, 2).await;
    assert!(promoted.elapsed() < Duration::from_secs(10), "{:?}", promoted.elapsed());
    assert!(proxy.log().contains("tells that its timeline has ended"), "{}", proxy.log());
    let row = standby.query_one("SELECT pg_last_wal_replay_lsn()::text", &[]).await.unwrap();
    let told = format!("tells of its promotion: timeline 2 begins at {}", row.get::<_, &str>(0));
    eventually("it is told where the timeline begins", async || proxy.log().contains(&told)).await;
}

/// A role without REPLICATION: told once for each standby, and the failover goes on by probes.
#[tokio::test]
async fn without_replication_promotions_are_found_by_probes() {
    let sandbox = cluster(1).await;
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE ROLE probe LOGIN IN ROLE pg_monitor").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = proxy(&sandbox, &[("PGSTEER_CLUSTER_USER", "probe")]).await;
    let told = "can't be watched for its promotion";
    for _ in 0..2 {
        sandbox.node(0).stop_immediate().await.unwrap();
        eventually("it is told", async || proxy.log().contains(told)).await;
        sandbox.node(0).start().await.unwrap();
        eventually("the primary is back", async || !proxy.topology().await["primary"].is_null()).await;
    }
    sandbox.node(0).kill9().await.unwrap();
    let standby = sandbox.connect(1).await.unwrap();
    assert!(promotion(&sandbox, &standby).await.is_some());
    eventually("the standby is the primary", async || proxy.topology().await["primary"]["name"] == "n2")
        .await;
    assert_eq!(proxy.log().matches(told).count(), 1, "{}", proxy.log());
}

/// When pgsteer opened its last epoch, by its own log.
fn epoch_opened_at(proxy: &Running) -> f64 {
    let log = proxy.log();
    let line = log.lines().rfind(|line| line.contains("epoch_opened")).unwrap();
    // 2026-11-26T02:38:00.595296Z: of one day, as the test does not run at midnight.
    let time: Vec<f64> = line[11..26].split(':').map(|part| part.parse().unwrap()).collect();
    time[0] * 3600.0 + time[1] * 60.0 + time[2]
}

/// From the moment at which a direct client sees the promotion to pgsteer's new epoch, milliseconds.
async fn lateness_ms(watch: &str, interval: &str) -> f64 {
    let sandbox = cluster(1).await;
    let settings =
        [("PGSTEER_TOPOLOGY_PROMOTION_WATCH", watch), ("PGSTEER_TOPOLOGY_RAPID_INTERVAL", interval)];
    let proxy = proxy(&sandbox, &settings).await;
    let standby = sandbox.connect(1).await.unwrap();
    sandbox.node(0).kill9().await.unwrap();
    if watch == "on" {
        eventually("it is watched", async || watches(&standby).await == 1).await;
    }
    // Not in step with the rounds.
    tokio::time::sleep(Duration::from_micros(fastrand::u64(100_000..200_000))).await;
    sandbox.promote(1).unwrap();
    while is_in_recovery(&standby).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let seen = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs_f64() % 86_400.0;
    wait_epoch(&proxy, 2).await;
    (epoch_opened_at(&proxy) - seen) * 1000.0
}

/// Not a test of anything: `cargo test --test promotion -- --ignored --nocapture measure` tells what the event is worth.
#[tokio::test]
#[ignore = "a measurement: cargo test --test promotion -- --ignored --nocapture measure"]
async fn measure_how_soon_a_promotion_is_known() {
    for (watch, interval) in [("on", "5ms"), ("off", "5ms"), ("on", "100ms"), ("off", "100ms")] {
        let mut all = Vec::new();
        for _ in 0..10 {
            all.push(lateness_ms(watch, interval).await);
        }
        all.sort_by(f64::total_cmp);
        let median = f64::midpoint(all[4], all[5]);
        println!("promotion_watch {watch}, rapid_interval {interval}: {all:.1?} ms, median {median:.1}");
    }
}
