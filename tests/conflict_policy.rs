//! What is done about recovery conflicts beyond running a read again: warnings, the order of attempts, the budget on the primary,
//! steering, metrics. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, errors, eventually, execute, in_time, parse, query, status, sync,
    values,
};
use tokio_postgres::SimpleQueryMessage;

/// A read of four seconds; its rows are those of `c` whose number is not above 400.
fn slow(marker: &str) -> String {
    format!("SELECT id, pg_sleep(0.01) AS {marker} FROM c WHERE id <= 400")
}

async fn cluster(standbys: usize, args: &[&str], environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder()
        .standbys(standbys)
        .auth(Auth::Trust)
        .max_standby_streaming_delay(Some(Duration::ZERO))
        .setting("autovacuum", "off")
        .start()
        .await
        .unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE c (id int, v text); CREATE TABLE flushed ()").await.unwrap();
    primary.batch_execute("INSERT INTO c SELECT g, 'x' FROM generate_series(1, 400) g").await.unwrap();
    primary.batch_execute("VACUUM c").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let args = [&["--auth", "trust", "--max-lag", "10m", "--shards", "1"], args].concat();
    // Reads are to be on standbys whatever has been written just now.
    let own = [("PGSTEER_ROUTING_CONSISTENCY", "eventual"), ("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
    let proxy = Running::start_with(&sandbox, &args, &[&own, environment].concat()).await;
    eventually("all standbys may be read", async || {
        let topology = proxy.topology().await;
        (1..=standbys).all(|node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
    (sandbox, proxy)
}

/// Cancels what reads `c` on standbys, if their replay does not wait for it.
async fn conflict(sandbox: &Sandbox) {
    let primary = sandbox.connect(0).await.unwrap();
    // Beyond the number that the reads look for, so that they give the same rows at any time.
    for statement in ["UPDATE c SET v = v || 'y'", "VACUUM c", "INSERT INTO flushed DEFAULT VALUES"] {
        primary.batch_execute(statement).await.unwrap();
    }
}

/// The nodes on which statements with this text have been running for so long.
async fn running(sandbox: &Sandbox, marker: &str, ms: u64) -> Vec<usize> {
    let mut nodes = Vec::new();
    for node in sandbox.nodes().iter().filter(|node| node.is_running()) {
        let direct = node.connect().await.unwrap();
        let sql = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND pid <> pg_backend_pid() \
             AND query LIKE '%AS {marker} %' AND clock_timestamp() - query_start >= interval '{ms} ms'"
        );
        let count: i64 = direct.query_one(&sql, &[]).await.unwrap().get(0);
        nodes.extend((0..count).map(|_| node.index()));
    }
    nodes
}

/// Waits until the one statement with this text has been running for so long; gives its node.
async fn runs_on(sandbox: &Sandbox, marker: &str, ms: u64) -> usize {
    let mut found = Vec::new();
    eventually("the read runs", async || {
        found = running(sandbox, marker, ms).await;
        found.len() == 1
    })
    .await;
    found[0]
}

async fn set(sandbox: &Sandbox, node: usize, setting: &str, value: &str) {
    let direct = sandbox.connect(node).await.unwrap();
    direct.batch_execute(&format!("ALTER SYSTEM SET {setting} = '{value}'")).await.unwrap();
    direct.batch_execute("SELECT pg_reload_conf()").await.unwrap();
}

fn hint(answer: &[Message]) -> String {
    let error = answer.iter().find(|message| message.kind == b'E').unwrap();
    error.field(b'H').unwrap_or_default()
}

/// What is counted behind an answer is counted soon.
async fn comes_to(proxy: &Running, name: &str, labels: &[(&str, &str)], wanted: f64) {
    eventually(&format!("{name} {labels:?} is {wanted}"), async || {
        (proxy.metric(name, labels).await - wanted).abs() < 0.5
    })
    .await;
}

async fn retried(proxy: &Running, outcome: &str) -> f64 {
    proxy.metric("pgsteer_retried_reads_total", &[("outcome", outcome)]).await
}

/// C08: the two settings that make conflicts rare, in the log once for each time that they are missing, and on the page.
#[tokio::test]
async fn standbys_that_will_cancel_reads_are_warned_of() {
    let (sandbox, proxy) = cluster(1, &[], &[]).await;
    let told = async || {
        let page = proxy.topology().await;
        assert_eq!(page["nodes"][0]["warnings"], serde_json::json!([]), "the primary is none");
        serde_json::from_value::<Vec<String>>(page["nodes"][1]["warnings"].clone()).unwrap()
    };
    let logged = |text: &str| proxy.log().matches(text).count();
    let (feedback, slot) = ("hot_standby_feedback is off", "primary_slot_name is empty");
    assert!(told().await.iter().all(|text| text.starts_with(feedback)), "{:?}", told().await);
    assert_eq!((told().await.len(), logged(feedback), logged(slot)), (1, 1, 0));
    let page = proxy.topology().await;
    assert_eq!(page["nodes"][1]["max_standby_streaming_delay_ms"], 0);
    set(&sandbox, 1, "hot_standby_feedback", "on").await;
    set(&sandbox, 1, "max_standby_streaming_delay", "-1").await;
    eventually("its settings are good", async || told().await.is_empty()).await;
    set(&sandbox, 1, "primary_slot_name", "").await;
    eventually("it has no slot", async || told().await.iter().any(|text| text.starts_with(slot))).await;
    eventually("its settings are seen", async || {
        let node = proxy.topology().await["nodes"][1].clone();
        node["max_standby_streaming_delay_ms"] == -1 && node["replication_slot"] == false
    })
    .await;
    set(&sandbox, 1, "hot_standby_feedback", "off").await;
    eventually("it gives none again", async || told().await.len() == 2).await;
    eventually("the log says so", async || (logged(feedback), logged(slot)) == (2, 1)).await;
}

/// C07, C08: the next attempt is on the standby that is least likely to cancel it, though that is busier than the other.
#[tokio::test]
async fn the_next_attempt_is_on_the_calmest_standby() {
    let (sandbox, proxy) = cluster(3, &[], &[]).await;
    let (mut one, mut other) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    one.send(&query(&slow("one"))).await;
    let first = runs_on(&sandbox, "one", 0).await;
    other.send(&query(&slow("other"))).await;
    let calm = runs_on(&sandbox, "other", 0).await;
    assert!(first != 0 && calm != 0 && first != calm, "on {first} and {calm}");
    set(&sandbox, calm, "max_standby_streaming_delay", "-1").await;
    eventually("it is seen", async || {
        proxy.topology().await["nodes"][calm]["max_standby_streaming_delay_ms"] == -1
    })
    .await;
    conflict(&sandbox).await;
    eventually("it runs again", async || retries(&proxy).await > 0.5).await;
    assert_eq!(runs_on(&sandbox, "one", 0).await, calm);
    for client in [&mut one, &mut other] {
        let answer = client.read_until(b'Z').await;
        assert!(errors(&answer).is_empty(), "{:?}", errors(&answer));
        assert_eq!(values(&answer).len(), 400);
    }
    comes_to(&proxy, "pgsteer_retried_reads_total", &[("outcome", "answered")], 1.0).await;
}

async fn retries(proxy: &Running) -> f64 {
    proxy.metric("pgsteer_retries_total", &[("cause", "conflict")]).await
}

/// C07: one place on the primary, and two reads that want it: the other's client has PostgreSQL's own error, with a hint.
#[tokio::test]
async fn what_the_primary_has_no_place_for_is_passed_on() {
    let environment = [("PGSTEER_RETRY_PRIMARY_BUDGET", "10%")];
    let (sandbox, proxy) = cluster(1, &["--pool-size", "10"], &environment).await;
    for (begin, is_extended) in [(None, false), (None, true), (Some("BEGIN READ ONLY"), false)] {
        let mut clients = [proxy.raw_logged_in().await, proxy.raw_logged_in().await];
        for client in &mut clients {
            if let Some(begin) = begin {
                assert_eq!(status(&client.query(begin).await), 'T');
            }
            let text = slow("both");
            let batch = || [parse("", &text), bind("", "", &[]), execute(""), sync()].concat();
            client.send(&if is_extended { batch() } else { query(&text) }).await;
        }
        eventually("both run", async || running(&sandbox, "both", 0).await == [1, 1]).await;
        conflict(&sandbox).await;
        let [one, other] = &mut clients;
        let answers = [one.read_until(b'Z').await, other.read_until(b'Z').await];
        let (answered, passed_on): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| errors(answer).is_empty());
        assert_eq!((answered.len(), passed_on.len()), (1, 1));
        assert_eq!(values(&answered[0]).len(), 400);
        let passed_on = &passed_on[0];
        assert_eq!(errors(passed_on), ["40001"]);
        assert!(hint(passed_on).contains("retry.primary_budget"), "{passed_on:?}");
        let detail = passed_on.iter().find_map(|message| message.field(b'D')).unwrap();
        assert!(detail.starts_with("User query"), "as PostgreSQL said it: {passed_on:?}");
        assert_eq!(status(passed_on), if begin.is_some() { 'E' } else { 'I' });
        for client in &mut clients {
            client.query("ROLLBACK").await;
            assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
        }
        comes_to(&proxy, "pgsteer_moved_reads", &[], 0.0).await;
    }
    comes_to(&proxy, "pgsteer_retried_reads_total", &[("outcome", "no_place")], 3.0).await;
    comes_to(&proxy, "pgsteer_retried_reads_total", &[("outcome", "answered")], 3.0).await;
}

/// C07: a standby cancels logins too, and the reads that wanted them are no others than those that it has cancelled.
#[tokio::test]
async fn a_cancelled_login_gives_no_place_on_the_primary() {
    let environment = [("PGSTEER_RETRY_PRIMARY_BUDGET", "0%")];
    let (sandbox, proxy) = cluster(1, &["--pool-size", "10"], &environment).await;
    let direct = sandbox.connect(1).await.unwrap();
    // Behind its first snapshot.
    set(&sandbox, 1, "post_auth_delay", "1").await;
    // Its lock of the database follows that snapshot; activities are told of when all is done.
    let logins = async || -> i64 {
        let sql = "SELECT count(*) FROM pg_locks WHERE classid = 'pg_database'::regclass \
                   AND pid NOT IN (SELECT pid FROM pg_stat_activity)";
        direct.query_one(sql, &[]).await.unwrap().get(0)
    };
    let mut client = proxy.raw_logged_in().await;
    client.send(&query("SELECT count(*) FROM c")).await;
    eventually("it is logged in", async || logins().await > 0).await;
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'), "{answer:?}");
    assert!(hint(&answer).contains("retry.primary_budget"), "{answer:?}");
    eventually("a login is not cancelled", async || {
        values(&client.query("SELECT count(*) FROM c").await) == ["400"]
    })
    .await;
}

/// Whether nobody but this node's replay has all of a table.
async fn is_locked(sandbox: &Sandbox, node: usize, table: &str) -> bool {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = format!(
        "SELECT count(*) FROM pg_locks WHERE relation = '{table}'::regclass AND mode = 'AccessExclusiveLock' AND granted"
    );
    direct.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == 1
}

/// A transaction loses its standby while it fetches from a cursor, and is begun anew on the other one. There a conflict cancels the
/// declaration of the cursor, which is pgsteer's own statement by then, while it waits for the second of two tables. Gives its client,
/// and who has locked both tables on the primary.
async fn cancelled_in_what_runs_again(
    sandbox: &Sandbox,
    proxy: &Running,
) -> (RawClient, tokio_postgres::Client) {
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE one_row AS SELECT 1").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let flushed = sandbox.connect(0).await.unwrap();
    let lock = async |table: &str| {
        primary.batch_execute(&format!("LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")).await.unwrap();
        flushed.batch_execute("INSERT INTO flushed DEFAULT VALUES").await.unwrap();
    };
    let mut client = proxy.raw_logged_in().await;
    let cursor =
        "DECLARE cc CURSOR FOR SELECT id, pg_sleep(0.01) AS declared FROM one_row, c WHERE id <= 400";
    for sql in ["BEGIN READ ONLY", cursor] {
        assert_eq!(status(&client.query(sql).await), 'T');
    }
    client.send(&query("FETCH ALL /* AS fetch */ FROM cc")).await;
    let lost = runs_on(sandbox, "fetch", 0).await;
    assert_ne!(lost, 0);
    let other = 3 - lost;
    sandbox.node(lost).pause_replay().await.unwrap();
    primary.batch_execute("BEGIN").await.unwrap();
    lock("c").await;
    eventually("the other standby has locked it", async || is_locked(sandbox, other, "c").await).await;
    sandbox.node(lost).kill9().await.unwrap();
    eventually("it waits for the lock there", async || running(sandbox, "declared", 0).await == [other])
        .await;
    lock("one_row").await;
    (client, primary)
}

/// C07: what a transaction runs again is cancelled like the read itself, which then needs its place on the primary.
#[tokio::test]
async fn a_conflict_in_what_is_run_again_gives_no_place_on_the_primary() {
    let environment = [("PGSTEER_RETRY_PRIMARY_BUDGET", "0%")];
    let (sandbox, proxy) = cluster(2, &["--pool-size", "10"], &environment).await;
    let (mut client, _locker) = cancelled_in_what_runs_again(&sandbox, &proxy).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'), "{answer:?}");
    assert!(hint(&answer).contains("retry.primary_budget"), "{answer:?}");
}

/// C07: the place that it has is counted for as long as it is on the primary.
#[tokio::test]
async fn what_is_run_again_has_its_place_on_the_primary_to_its_end() {
    let environment = [("PGSTEER_RETRY_PRIMARY_BUDGET", "10%")];
    let (sandbox, proxy) = cluster(2, &["--pool-size", "10"], &environment).await;
    let (mut client, locker) = cancelled_in_what_runs_again(&sandbox, &proxy).await;
    comes_to(&proxy, "pgsteer_moved_reads", &[], 1.0).await;
    locker.batch_execute("COMMIT").await.unwrap();
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer), values(&answer).len()), (vec![], 'T', 400));
    assert_eq!(status(&client.query("COMMIT").await), 'I');
    comes_to(&proxy, "pgsteer_moved_reads", &[], 0.0).await;
    comes_to(&proxy, "pgsteer_retried_reads_total", &[("outcome", "answered")], 1.0).await;
}

/// C07: where the primary is not for such reads at all, they are told of their conflict, and why.
#[tokio::test]
async fn a_conflict_is_passed_on_where_the_primary_is_not_for_reads() {
    for (environment, why) in [
        (("PGSTEER_RETRY_PRIMARY_BUDGET", "0%"), "retry.primary_budget"),
        (("PGSTEER_ROUTING_NO_STANDBY", "error"), "routing.no_standby"),
    ] {
        let (sandbox, proxy) = cluster(1, &[], &[environment]).await;
        let mut client = proxy.raw_logged_in().await;
        client.send(&query(&slow("alone"))).await;
        assert_eq!(runs_on(&sandbox, "alone", 0).await, 1);
        conflict(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'));
        assert!(hint(&answer).contains(why), "{answer:?}");
        assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    }
}

/// How many statements with this text run at the same time. One look does not tell: the view is read backend by backend, and what ends
/// behind a look at it may be followed by another that is looked at later. What both of two looks see ran between them.
async fn together(direct: &tokio_postgres::Client, marker: &str) -> usize {
    let sql = format!(
        "SELECT pid, query_start::text FROM pg_stat_activity WHERE state = 'active' \
         AND pid <> pg_backend_pid() AND query LIKE '%AS {marker} %'"
    );
    let look = async || -> Vec<(i32, String)> {
        direct.query(&sql, &[]).await.unwrap().iter().map(|row| (row.get(0), row.get(1))).collect()
    };
    let (before, behind) = (look().await, look().await);
    behind.iter().filter(|statement| before.contains(statement)).count()
}

/// Reads again and again until it is to stop: how many were answered and how many passed on.
async fn read(mut client: RawClient, stop: Arc<AtomicBool>) -> (usize, usize) {
    let (mut answered, mut passed_on) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        let answer = client.query("SELECT id, pg_sleep(0.005) AS storm FROM c WHERE id <= 100").await;
        if errors(&answer).is_empty() {
            assert_eq!(values(&answer).len(), 100);
            answered += 1;
        } else {
            assert_eq!(errors(&answer), ["40001"], "{answer:?}");
            assert!(hint(&answer).contains("retry.primary_budget"), "{answer:?}");
            passed_on += 1;
        }
    }
    (answered, passed_on)
}

/// C07: a storm of conflicts does not move all reads to the primary, steered ones included.
#[tokio::test]
async fn a_storm_of_conflicts_takes_no_more_of_the_primary_than_its_budget() {
    const PLACES: usize = 2;
    let environment = [("PGSTEER_RETRY_PRIMARY_BUDGET", "20%")];
    let (sandbox, proxy) = cluster(2, &["--pool-size", "10"], &environment).await;
    let stop = Arc::new(AtomicBool::new(false));
    let primary = sandbox.connect(0).await.unwrap();
    let stopped = Arc::clone(&stop);
    let writer = tokio::spawn(async move {
        while !stopped.load(Ordering::Relaxed) {
            primary.batch_execute("UPDATE c SET v = 'y' WHERE id > 350").await.unwrap();
            primary.batch_execute("VACUUM c").await.unwrap();
        }
    });
    let mut readers = Vec::new();
    for _ in 0..8 {
        readers.push(tokio::spawn(read(proxy.raw_logged_in().await, Arc::clone(&stop))));
    }
    let watch = sandbox.connect(0).await.unwrap();
    let mut most = 0;
    eventually("many were passed on", async || {
        let there = together(&watch, "storm").await;
        most = most.max(there);
        if there > PLACES {
            panic!("{there} at a time on the primary\n{}", proxy.metrics().await);
        }
        retried(&proxy, "no_place").await >= 20.0 && most > 0
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    in_time("the writer's end", writer).await.unwrap();
    let (mut answered, mut passed_on) = (0, 0);
    for reader in readers {
        let (right, lost) = in_time("a reader's end", reader).await.unwrap();
        (answered, passed_on) = (answered + right, passed_on + lost);
    }
    println!("answered {answered}, passed on {passed_on}, at most {most} at a time on the primary");
    assert!(answered > 0 && passed_on > 0);
    comes_to(&proxy, "pgsteer_moved_reads", &[], 0.0).await;
}

/// C07: what is cancelled again and again after it has run long goes elsewhere from the start.
#[tokio::test]
async fn shapes_that_conflict_again_and_again_are_steered() {
    let console = [("PGSTEER_ADMIN_CONSOLE_USERS", "console")];
    let (sandbox, proxy) = cluster(1, &[], &console).await;
    let mut client = proxy.raw_logged_in().await;
    let learned = async || -> serde_json::Value {
        let page: serde_json::Value = serde_json::from_str(&proxy.get("/learned").await.unwrap().1).unwrap();
        page["learned"][0].clone()
    };
    for round in 1..=4 {
        client.send(&query(&slow("again"))).await;
        assert_eq!(runs_on(&sandbox, "again", 200).await, 1, "round {round}");
        conflict(&sandbox).await;
        let answer = client.read_until(b'Z').await;
        assert!(errors(&answer).is_empty() && values(&answer).len() == 400, "{:?}", errors(&answer));
        let to = ["", "", "calmest standby", "primary"][round - 1];
        assert_eq!(learned().await["steered_to"].as_str().unwrap_or_default(), to, "round {round}");
    }
    client.send(&query(&slow("again"))).await;
    assert_eq!(runs_on(&sandbox, "again", 0).await, 0, "it goes to the primary from the start");
    let page = learned().await;
    assert_eq!((page["reason"].as_str(), page["conflicts"].as_u64()), (Some("conflicts"), Some(4)), "{page}");
    assert!(page["shape"].as_str().unwrap().contains("pg_sleep"), "{page}");
    // Another shape is not.
    let mut other = proxy.raw_logged_in().await;
    other.send(&query("SELECT pg_sleep(0.01) AS unlike FROM c WHERE id <= 100")).await;
    assert_eq!(runs_on(&sandbox, "unlike", 0).await, 1);
    assert_eq!(values(&client.read_until(b'Z').await).len(), 400);
    assert!(proxy.metric("pgsteer_statements_routed_total", &[("reason", "conflicts")]).await >= 1.0);
    let console = proxy.connect("console", "", "pgsteer").await;
    let rows = console.simple_query("SHOW LEARNED").await.unwrap();
    let row = rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get("steered_to")),
        _ => None,
    });
    assert_eq!(row, Some(Some("primary")));
}

/// C07.
#[tokio::test]
async fn nothing_is_steered_where_that_is_off() {
    let (sandbox, proxy) = cluster(1, &[], &[("PGSTEER_RETRY_STEER_TIME", "0s")]).await;
    let mut client = proxy.raw_logged_in().await;
    for _ in 1..=4 {
        client.send(&query(&slow("again"))).await;
        assert_eq!(runs_on(&sandbox, "again", 200).await, 1);
        conflict(&sandbox).await;
        assert_eq!(values(&client.read_until(b'Z').await).len(), 400);
    }
    assert!(!proxy.get("/learned").await.unwrap().1.contains("steered_to"));
}

/// C01, C04: a conflict inside a block with a handler ends the server's session, and not the client's.
#[tokio::test]
async fn a_fatal_conflict_that_is_passed_on_ends_the_statement_only() {
    let (sandbox, proxy) = cluster(1, &[], &[("PGSTEER_RETRY_ATTEMPTS", "0")]).await;
    let primary = sandbox.connect(0).await.unwrap();
    primary
        .batch_execute(
            "CREATE FUNCTION guarded(int) RETURNS int STABLE LANGUAGE plpgsql AS $$BEGIN PERFORM pg_sleep(0.01); RETURN $1; \
             EXCEPTION WHEN division_by_zero THEN RETURN 0; END$$",
        )
        .await
        .unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    eventually("the function is known", async || {
        let before = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
        assert_eq!(values(&client.query("SELECT guarded(2)").await), ["2"]);
        proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await > before
    })
    .await;
    client.send(&query("SELECT guarded(id) AS fatal FROM c WHERE id <= 400")).await;
    assert_eq!(runs_on(&sandbox, "fatal", 0).await, 1);
    conflict(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'I'));
    let error = answer.iter().find(|message| message.kind == b'E').unwrap();
    assert_eq!((error.field(b'S').as_deref(), error.field(b'V').as_deref()), (Some("ERROR"), Some("ERROR")));
    assert!(hint(&answer).contains("retry.attempts"), "{answer:?}");
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    assert!(!proxy.log().contains("a server connection broke"), "it is no reason to doubt the node");
}

/// C01, C09: what is told of conflicts.
#[tokio::test]
async fn conflicts_and_retries_are_counted() {
    let (sandbox, proxy) = cluster(1, &[], &[]).await;
    let interruptions = "pgsteer_standby_interruptions_total";
    let mut client = proxy.raw_logged_in().await;
    client.send(&query(&slow("counted"))).await;
    assert_eq!(runs_on(&sandbox, "counted", 0).await, 1);
    conflict(&sandbox).await;
    assert_eq!(values(&client.read_until(b'Z').await).len(), 400);
    comes_to(&proxy, interruptions, &[("node", "n2"), ("sqlstate", "40001")], 1.0).await;
    let once = [("outcome", "answered"), ("retries", "1")];
    comes_to(&proxy, "pgsteer_retried_reads_total", &once, 1.0).await;
    comes_to(&proxy, "pgsteer_retry_added_seconds_count", &[], 1.0).await;
    let added = proxy.metric("pgsteer_retry_added_seconds_sum", &[]).await;
    assert!(added > 0.0 && added < 60.0, "{added}");
    eventually("the standby's own count is read", async || {
        proxy.metric("pgsteer_node_recovery_conflicts_total", &[("node", "n2"), ("kind", "snapshot")]).await
            >= 1.0
    })
    .await;
    client.send(&query(&slow("killed"))).await;
    assert_eq!(runs_on(&sandbox, "killed", 0).await, 1);
    sandbox.node(1).kill9().await.unwrap();
    assert_eq!(values(&client.read_until(b'Z').await).len(), 400);
    // With or without a word, as the kernel has it.
    comes_to(&proxy, interruptions, &[("node", "n2")], 2.0).await;
    comes_to(&proxy, interruptions, &[("sqlstate", "40001")], 1.0).await;
    comes_to(&proxy, "pgsteer_retried_reads_total", &[("outcome", "answered")], 2.0).await;
}
