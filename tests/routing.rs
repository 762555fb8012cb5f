//! Which node a statement runs on, against real servers: proven by what paused standbys still show, and by counters.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::Sandbox;
use running::{Running, eventually};
use tokio_postgres::Client;

const ROUTED: &str = "pgsteer_statements_routed_total";

async fn to_standbys(proxy: &Running) -> f64 {
    proxy.metric(ROUTED, &[("side", "standby")]).await
}

async fn to_primary(proxy: &Running) -> f64 {
    proxy.metric(ROUTED, &[("side", "primary")]).await
}

/// Where standbys are paused, what others have just written is not to be waited for.
async fn start_apart(sandbox: &Sandbox) -> Running {
    Running::start_with(sandbox, &["--max-lag", "1h"], &[("PGSTEER_ROUTING_RECENT_WRITES", "0s")]).await
}

async fn number(client: &Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// Standbys are paused with `t` holding 1, then the primary's copy is made 2: what a reader sees tells where it read.
async fn told_apart(sandbox: &Sandbox, more: &str) -> Client {
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i bigint); INSERT INTO t VALUES (1)").await.unwrap();
    direct.batch_execute(more).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    for index in 1..sandbox.nodes().len() {
        sandbox.node(index).pause_replay().await.unwrap();
    }
    direct.batch_execute("UPDATE t SET i = 2").await.unwrap();
    direct
}

#[tokio::test]
async fn reads_go_to_standbys_and_the_rest_to_the_primary() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let functions = "
        CREATE FUNCTION unknown_to_pgsteer() RETURNS bigint LANGUAGE sql AS 'SELECT i FROM t';
        CREATE UNLOGGED TABLE unlogged (i bigint); INSERT INTO unlogged VALUES (5)";
    let _direct = told_apart(&sandbox, functions).await;
    let client = proxy.client().await;
    eventually("a standby qualifies", async || number(&client, "SELECT i FROM t").await == 1).await;

    let before = to_standbys(&proxy).await;
    for _ in 0..20 {
        assert_eq!(number(&client, "SELECT i FROM t").await, 1);
    }
    assert!(to_standbys(&proxy).await >= before + 20.0);

    // On the primary by hint, by an unknown function, by a lock, in a plain transaction. Each in a session of its own:
    // one that has read on the primary has seen its state, and does not go back.
    for sql in [
        "/* pgsteer: target=primary */ SELECT i FROM t",
        "SELECT unknown_to_pgsteer()",
        "SELECT i FROM t FOR UPDATE",
        "WITH changed AS (UPDATE t SET i = i RETURNING i) SELECT i FROM changed",
    ] {
        let client = proxy.client().await;
        assert_eq!(number(&client, sql).await, 2, "{sql}");
        assert_eq!(number(&client, "SELECT i FROM t").await, 2, "time ran backwards after {sql}");
    }
    // G02: the session's default counts, until the transaction says otherwise.
    let client = proxy.client_with("-c default_transaction_read_only=yes").await;
    for (begin, expected) in [("BEGIN", 1), ("BEGIN READ WRITE", 2)] {
        client.batch_execute(begin).await.unwrap();
        assert_eq!(number(&client, "SELECT i FROM t").await, expected, "{begin}");
        client.batch_execute("COMMIT").await.unwrap();
    }
    let refused = client.batch_execute("UPDATE t SET i = i").await.unwrap_err();
    assert_eq!(refused.code().unwrap().code(), "25006");
    // M06: where SERIALIZABLE is the default, everything is for the primary.
    let client = proxy.client_with("-c default_transaction_isolation=serializable").await;
    assert_eq!(number(&client, "SELECT i FROM t").await, 2);
    // A standby can't read it: the client does not notice.
    let client = proxy.client().await;
    assert_eq!(number(&client, "SELECT i FROM unlogged").await, 5);
    assert_eq!(number(&client, "SELECT i FROM unlogged").await, 5);

    let client = proxy.client().await;
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    let error = client.batch_execute("INSERT INTO t VALUES (9)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "25006");
    client.batch_execute("ROLLBACK").await.unwrap();
}

/// R04: what a transaction that may write reads before its first write is the primary's.
#[tokio::test]
async fn r04_what_is_read_before_a_write_is_the_primarys() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let _direct = told_apart(&sandbox, "").await;
    let client = proxy.client().await;
    eventually("a standby qualifies", async || number(&client, "SELECT i FROM t").await == 1).await;
    for (begin, expected) in [("BEGIN", 2), ("BEGIN READ ONLY", 1), ("START TRANSACTION READ ONLY", 1)] {
        let client = proxy.client().await;
        client.batch_execute(begin).await.unwrap();
        assert_eq!(number(&client, "SELECT i FROM t").await, expected, "{begin}");
        assert_eq!(number(&client, "SELECT i FROM t").await, expected, "{begin}");
        client.batch_execute("COMMIT").await.unwrap();
    }
}

/// R05: one standby and one snapshot for the whole of a READ ONLY transaction, whatever becomes of the standbys meanwhile.
#[tokio::test]
async fn r05_a_repeatable_read_stays_on_its_standby() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let direct = told_apart(&sandbox, "").await;
    for round in 0..3 {
        // Another value on each of the standbys.
        let base = 10 * round + 10;
        direct.batch_execute(&format!("UPDATE t SET i = {base}")).await.unwrap();
        for node in [1, 2].map(|index| sandbox.node(index)) {
            node.resume_replay().await.unwrap();
        }
        sandbox.wait_caught_up().await.unwrap();
        sandbox.node(1).pause_replay().await.unwrap();
        direct.batch_execute(&format!("UPDATE t SET i = {}", base + 1)).await.unwrap();
        let ahead = sandbox.connect(2).await.unwrap();
        eventually("one is ahead", async || number(&ahead, "SELECT i FROM t").await == base + 1).await;
        sandbox.node(2).pause_replay().await.unwrap();

        let mut readers = Vec::new();
        let mut seen = Vec::new();
        while seen.len() < 2 {
            let client = proxy.client().await;
            client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await.unwrap();
            let value = number(&client, "SELECT i FROM t").await;
            assert!(value == base || value == base + 1, "{value}");
            if !seen.contains(&value) {
                seen.push(value);
            }
            readers.push((client, value));
        }
        for index in [1, 2] {
            sandbox.node(index).resume_replay().await.unwrap();
        }
        direct.batch_execute(&format!("UPDATE t SET i = {}", base + 2)).await.unwrap();
        sandbox.wait_caught_up().await.unwrap();
        for (client, value) in readers {
            for _ in 0..10 {
                assert_eq!(number(&client, "SELECT i FROM t").await, value);
            }
            client.batch_execute("COMMIT").await.unwrap();
        }
    }
}

/// R10: a long fork. Two sessions see two commits in opposite orders, one on a standby and one on the primary: nobody is promised
/// otherwise (P3 is about one session).
#[tokio::test]
async fn r10_two_sessions_may_see_two_commits_in_opposite_orders() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE first (n int); CREATE TABLE second (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let seen = "SELECT (SELECT count(*) FROM first) * 10 + (SELECT count(*) FROM second)";
    let (on_standby, on_primary) = (proxy.client().await, proxy.client().await);
    eventually("a standby answers", async || {
        let before = to_standbys(&proxy).await;
        number(&on_standby, seen).await == 0 && to_standbys(&proxy).await > before
    })
    .await;
    // The first commit waits for somebody who never confirms it: standbys show it, the primary does not.
    for sql in ["ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()"] {
        direct.batch_execute(sql).await.unwrap();
    }
    eventually("it is in force", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
        let waiting = sandbox.connect(0).await.unwrap();
        tokio::spawn(async move { waiting.batch_execute("INSERT INTO first VALUES (1)").await });
        eventually("it waits, or is done", async || {
            number(&direct, sql).await > 0 || number(&direct, "SELECT count(*) FROM first").await > 0
        })
        .await;
        let waits = number(&direct, sql).await > 0;
        if !waits {
            direct.batch_execute("TRUNCATE first").await.unwrap();
        }
        waits
    })
    .await;
    eventually("the standby shows the first", async || number(&on_standby, seen).await == 10).await;
    sandbox.node(1).pause_replay().await.unwrap();
    direct.batch_execute("SET synchronous_commit = local; INSERT INTO second VALUES (1)").await.unwrap();
    assert_eq!(number(&on_primary, &format!("/* pgsteer: target=primary */ {seen}")).await, 1);
    assert_eq!(number(&on_standby, seen).await, 10);
    for sql in ["ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()"] {
        direct.batch_execute(sql).await.unwrap();
    }
}

#[tokio::test]
async fn a_session_sees_its_own_writes() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let client = proxy.client().await;
    client.batch_execute("CREATE TABLE w (i bigint); INSERT INTO w VALUES (0)").await.unwrap();
    for value in 1..=200i64 {
        client.execute("UPDATE w SET i = $1", &[&value]).await.unwrap();
        assert_eq!(number(&client, "SELECT i FROM w").await, value);
    }
    // Once the standbys have it they answer again.
    let before = to_standbys(&proxy).await;
    eventually("reads return to standbys", async || {
        assert_eq!(number(&client, "SELECT i FROM w").await, 200);
        to_standbys(&proxy).await > before
    })
    .await;

    // Without replay they never have it.
    for index in [1, 2] {
        sandbox.node(index).pause_replay().await.unwrap();
    }
    let other = proxy.client().await;
    for value in 201..=300i64 {
        client.execute("UPDATE w SET i = $1", &[&value]).await.unwrap();
        assert_eq!(number(&client, "SELECT i FROM w").await, value);
        assert_eq!(number(&other, "SELECT i FROM w").await, 200);
    }
    // Nor in a transaction, nor by the simple protocol.
    client.batch_execute("BEGIN; UPDATE w SET i = 301; COMMIT").await.unwrap();
    let rows = client.simple_query("SELECT i FROM w").await.unwrap();
    let seen = rows.iter().find_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    });
    assert_eq!(seen.as_deref(), Some("301"));
}

#[tokio::test]
async fn what_reads_promise_is_configured() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let start = async |consistency| {
        let environment =
            [("PGSTEER_ROUTING_CONSISTENCY", consistency), ("PGSTEER_ROUTING_RECENT_WRITES", "1h")];
        Running::start_with(&sandbox, &["--max-lag", "1h"], &environment).await
    };
    let (eventual, primary) = (start("eventual").await, start("primary").await);
    let _direct = told_apart(&sandbox, "").await;

    // The budget alone: neither the session's own writes nor those of others.
    let client = eventual.client().await;
    eventually("a standby qualifies", async || number(&client, "SELECT i FROM t").await == 1).await;
    client.batch_execute("UPDATE t SET i = 3").await.unwrap();
    assert_eq!(number(&client, "SELECT i FROM t").await, 1);

    // All on the primary, READ ONLY transactions too.
    let client = primary.client().await;
    assert_eq!(number(&client, "SELECT i FROM t").await, 3);
    client.batch_execute("BEGIN READ ONLY").await.unwrap();
    assert_eq!(number(&client, "SELECT i FROM t").await, 3);
    client.batch_execute("COMMIT").await.unwrap();
    assert!(to_standbys(&primary).await.abs() < 0.5);
}

#[tokio::test]
async fn beyond_the_lag_budget_reads_go_to_the_primary() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--max-lag", "1s"]).await;
    let client = proxy.client().await;
    sandbox.wait_caught_up().await.unwrap();
    eventually("a standby qualifies", async || {
        let before = to_standbys(&proxy).await;
        client.batch_execute("SELECT 1").await.unwrap();
        to_standbys(&proxy).await > before
    })
    .await;
    let direct = told_apart(&sandbox, "").await;
    let written = std::time::Instant::now();
    let mut stale = 0;
    // The old value may be seen for as long as the budget says, from any session.
    eventually("reads are on the primary", async || {
        let asked = written.elapsed();
        let client = proxy.client().await;
        let seen = number(&client, "SELECT i FROM t").await;
        if seen == 1 {
            stale += 1;
            assert!(asked < std::time::Duration::from_secs(1), "a read {asked:?} after the write was stale");
        }
        asked > std::time::Duration::from_millis(1500)
    })
    .await;
    println!("{stale} reads within the budget saw the old value");
    let before = to_primary(&proxy).await;
    let client = proxy.client().await;
    assert_eq!(number(&client, "SELECT i FROM t").await, 2);
    assert!(proxy.metric(ROUTED, &[("side", "primary"), ("reason", "lag_budget")]).await >= 1.0);
    assert!(to_primary(&proxy).await > before);
    for index in [1, 2] {
        sandbox.node(index).resume_replay().await.unwrap();
    }
    let before = to_standbys(&proxy).await;
    eventually("standbys are used again", async || {
        let client = proxy.client().await;
        assert_eq!(number(&client, "SELECT i FROM t").await, 2);
        to_standbys(&proxy).await > before
    })
    .await;
    drop(direct);
}

#[tokio::test]
async fn what_a_standby_refuses_runs_on_the_primary_and_is_remembered() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = start_apart(&sandbox).await;
    let direct = sandbox.connect(0).await.unwrap();
    // A view hides the function, whose STABLE is a lie: the reads of it look harmless.
    direct
        .batch_execute(
            "CREATE TABLE log (i int);
             CREATE FUNCTION writes() RETURNS bigint LANGUAGE plpgsql AS
                 'BEGIN INSERT INTO log VALUES (1); RETURN 4; END';
             CREATE FUNCTION lies() RETURNS bigint LANGUAGE plpgsql STABLE AS 'BEGIN RETURN writes(); END';
             CREATE VIEW harmless AS SELECT lies() AS i",
        )
        .await
        .unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let client = proxy.client().await;
    eventually("a standby qualifies", async || {
        let before = to_standbys(&proxy).await;
        client.batch_execute("SELECT 1").await.unwrap();
        to_standbys(&proxy).await > before
    })
    .await;
    for round in 0..5 {
        // A session of its own: it has written nothing and may read anywhere.
        let client = proxy.client().await;
        assert_eq!(number(&client, "SELECT i FROM harmless").await, 4);
        let retries = proxy.metric("pgsteer_retries_total", &[("cause", "refused")]).await;
        assert!((retries - 1.0).abs() < 0.1, "round {round}: {retries} retries\n{}", proxy.metrics().await);
    }
    // Each ran exactly once.
    assert_eq!(number(&direct, "SELECT count(*) FROM log").await, 5);
    // T05: what is not there is not asked for at a standby again and again.
    for _ in 0..3 {
        let error = client.batch_execute("SELECT * FROM missing WHERE i = 1").await.unwrap_err();
        assert_eq!(error.code().unwrap().code(), "42P01");
    }
    let (_, page) = proxy.get("/learned").await.unwrap();
    let page: serde_json::Value = serde_json::from_str(&page).unwrap();
    let told = |at: usize, key: &str| page["learned"][at][key].clone();
    assert_eq!((told(0, "shape"), told(0, "reason")), ("select i from harmless".into(), "writes".into()));
    assert_eq!(told(0, "refused"), 1);
    assert!(told(0, "sent_to_primary").as_u64().unwrap() >= 4, "{page:#}");
    assert_eq!(
        (told(1, "shape"), told(1, "reason")),
        ("select * from missing where i = ?".into(), "missing".into())
    );
    assert_eq!((told(1, "refused"), told(1, "sent_to_primary")), (1.into(), 2.into()), "{page:#}");
}

/// R01: what one session has written the next one sees, as long as the primary can be spared for it (where nobody waits).
#[tokio::test]
async fn another_session_sees_what_was_just_written() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let at_once = [("PGSTEER_ROUTING_CATCH_UP_WAIT", "0s")];
    let proxy = Running::start_with(&sandbox, &["--shards", "2"], &at_once).await;
    let writer = proxy.client().await;
    writer.batch_execute("CREATE TABLE t (i bigint); INSERT INTO t VALUES (0)").await.unwrap();
    for round in 1..=100 {
        writer.batch_execute("UPDATE t SET i = i + 1").await.unwrap();
        // Who has read nothing yet has no bounds of its own.
        let reader = proxy.client().await;
        assert_eq!(number(&reader, "SELECT i FROM t").await, round);
    }
    assert!(proxy.metric(ROUTED, &[("reason", "others_writes")]).await > 0.0);
}

/// What one session has written, the others see at once, though their standby has not: as many reads as there are to spare.
#[tokio::test]
async fn what_others_have_just_written_is_seen() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--max-lag", "1h", "--shards", "1"]).await;
    let _direct = told_apart(&sandbox, "").await;
    let (writer, reader) = (proxy.client().await, proxy.client().await);
    eventually("the standby qualifies", async || number(&reader, "SELECT i FROM t").await == 1).await;
    writer.batch_execute("UPDATE t SET i = 3").await.unwrap();
    assert_eq!(number(&reader, "SELECT i FROM t").await, 3);
    assert!(proxy.metric(ROUTED, &[("reason", "others_writes")]).await >= 1.0);
    // It is no promise: a busy system goes on reading from its standbys. (Who has read on the primary stays there meanwhile.)
    let busy = async || {
        let other = proxy.client().await;
        number(&other, "SELECT i FROM t").await == 1
    };
    eventually("the standby is in use again", busy).await;
}

#[tokio::test]
async fn what_is_under_way_is_counted_at_its_node() {
    let (sandbox, proxy) = running::single(&[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    direct.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let count = async || proxy.metric("pgsteer_node_statements_in_flight", &[("node", "n1")]).await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&running::query("INSERT INTO t VALUES (1)")).await;
    eventually("it is under way", async || (count().await - 1.0).abs() < 0.1).await;
    direct.batch_execute("ROLLBACK").await.unwrap();
    running::no_errors(&client.read_until(b'Z').await);
    eventually("it is not any more", async || count().await.abs() < 0.1).await;
}
