//! Each kind of recovery conflict, made on a real standby: run again where nothing was told, told as it is where something was. By
//! SQLSTATE and the role of the node, whatever the message says. The hazards' numbers stand at each test.
//!
//! One standby: what it cancels is run again on the primary, which has no conflicts.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::Duration;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, errors, eventually, in_time, kinds, no_errors, status, tag, values,
};

/// With these settings of all servers.
async fn cluster(delay: Duration, settings: &[(&str, &str)]) -> (Sandbox, Running) {
    let mut builder = Sandbox::builder()
        .standbys(1)
        .auth(Auth::Trust)
        .max_standby_streaming_delay(Some(delay))
        .setting("autovacuum", "off");
    for (name, value) in settings {
        builder = builder.setting(*name, *value);
    }
    let sandbox = builder.start().await.unwrap();
    on_primary(
        &sandbox,
        &["CREATE TABLE c (id int, v text)", "INSERT INTO c SELECT g, 'x' FROM generate_series(1, 400) g"],
    )
    .await;
    on_primary(&sandbox, &["VACUUM c", "CREATE TABLE flushed (n int)"]).await;
    sandbox.wait_caught_up().await.unwrap();
    let environment = [
        ("PGSTEER_ROUTING_CONSISTENCY", "eventual"),
        ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
        // They only read, but look where they are.
        ("PGSTEER_ROUTING_READ_FUNCTIONS", "peek,speak,broken,lost"),
    ];
    let args = ["--auth", "trust", "--max-lag", "10min"];
    let proxy = Running::start_with(&sandbox, &args, &environment).await;
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
    (sandbox, proxy)
}

/// One statement after the other, each a transaction of its own, on the primary.
async fn on_primary(sandbox: &Sandbox, statements: &[&str]) {
    let primary = sandbox.connect(0).await.unwrap();
    for statement in statements {
        primary.batch_execute(statement).await.unwrap();
    }
}

/// What needs its WAL flushed, and more WAL behind it, to be replayed at once.
async fn replayed(sandbox: &Sandbox, statements: &[&str]) {
    on_primary(sandbox, statements).await;
    on_primary(sandbox, &["INSERT INTO flushed VALUES (1)"]).await;
}

/// The standby has cancelled something for this reason so often, as it reports some seconds later.
async fn cancelled(sandbox: &Sandbox, kind: &str, times: i64) {
    let sql = format!("SELECT sum(confl_{kind})::bigint FROM pg_stat_database_conflicts");
    let direct = sandbox.connect(1).await.unwrap();
    eventually(&format!("{kind} conflicts are reported"), async || {
        direct.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0) == times
    })
    .await;
}

async fn wait_runs(sandbox: &Sandbox, node: usize, part: &str) {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND strpos(query, $1) > 0 \
               AND pid <> pg_backend_pid()";
    eventually(&format!("it runs on node {node}: {part}"), async || {
        direct.query_one(sql, &[&part]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
}

async fn retries(proxy: &Running, cause: &str) -> f64 {
    proxy.metric("pgsteer_retries_total", &[("cause", cause)]).await
}

/// It was run again so often, all for conflicts.
async fn retried(proxy: &Running, times: f64) {
    let conflicts = retries(proxy, "conflict").await;
    assert!((conflicts - times).abs() < 0.5, "{conflicts} conflicts");
    for cause in ["server_lost", "refused"] {
        assert!(retries(proxy, cause).await < 0.5, "retried for {cause}");
    }
}

async fn run_all(client: &mut RawClient, statements: &[&str]) {
    for statement in statements {
        no_errors(&client.query(statement).await);
    }
}

/// A function of the database's own, known to pgsteer as a read.
async fn with_function(sandbox: &Sandbox, proxy: &Running, definition: &str, call: &str) {
    on_primary(sandbox, &[definition]).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    // What a database has of its own is asked for behind an answer.
    eventually("the function is known", async || {
        let before = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
        no_errors(&client.query(call).await);
        proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await > before
    })
    .await;
}

fn hint(answer: &[Message]) -> String {
    let error = answer.iter().find(|message| message.kind == b'E').unwrap();
    error.field(b'H').unwrap_or_default()
}

const SLOW: &str = "SELECT id, pg_sleep(0.01) FROM c";

/// C01: row versions that are removed.
#[tokio::test]
async fn c01_a_snapshot_conflict() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&running::query(SLOW)).await;
    wait_runs(&sandbox, 1, SLOW).await;
    replayed(&sandbox, &["UPDATE c SET v = v || 'y'", "VACUUM c"]).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer).len()), (vec![], 400));
    cancelled(&sandbox, "snapshot", 1).await;
    retried(&proxy, 1.0).await;
}

/// C01: locks that are replayed; what is read again is what is there by then.
#[tokio::test]
async fn c01_lock_conflicts() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    for (statement, rows, codes) in [
        ("ALTER TABLE c ADD COLUMN z int", 400, vec![]),
        ("TRUNCATE c", 0, vec![]),
        ("INSERT INTO c SELECT g, 'x' FROM generate_series(1, 400) g", 400, vec![]),
        ("DROP TABLE c", 0, vec!["42P01".to_owned()]),
    ] {
        if statement.starts_with("INSERT") {
            replayed(&sandbox, &[statement]).await;
            sandbox.wait_caught_up().await.unwrap();
            continue;
        }
        client.send(&running::query(SLOW)).await;
        wait_runs(&sandbox, 1, SLOW).await;
        replayed(&sandbox, &[statement]).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!(
            (errors(&answer), values(&answer).len(), status(&answer)),
            (codes, rows, 'I'),
            "{statement}"
        );
    }
    cancelled(&sandbox, "lock", 3).await;
    retried(&proxy, 3.0).await;
}

/// A table with row versions that nobody can see, whose page VACUUM FREEZE needs for itself.
const PINNABLE: [&str; 2] = [
    "CREATE TABLE b (a int, t text)",
    "DO $$BEGIN BEGIN INSERT INTO b SELECT g, 'x' FROM generate_series(1, 5) g; RAISE division_by_zero; \
     EXCEPTION WHEN division_by_zero THEN END; INSERT INTO b SELECT g, 'y' FROM generate_series(1, 100) g; END$$",
];

/// C01: a page that is needed for replay.
#[tokio::test]
async fn c01_a_buffer_pin_conflict() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    replayed(&sandbox, &PINNABLE).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    let text = "SELECT a, pg_sleep(0.05) FROM b";
    client.send(&running::query(text)).await;
    wait_runs(&sandbox, 1, text).await;
    replayed(&sandbox, &["VACUUM FREEZE b"]).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer).len()), (vec![], 100));
    cancelled(&sandbox, "bufferpin", 1).await;
    retried(&proxy, 1.0).await;
}

/// C02: 40P01, of a standby: the statement would wait for a lock that replay holds, and replay waits for its page.
#[tokio::test]
async fn c02_a_deadlock_with_replay() {
    let settings = [("max_prepared_transactions", "4"), ("deadlock_timeout", "10min")];
    let (sandbox, proxy) = cluster(Duration::from_secs(600), &settings).await;
    replayed(&sandbox, &PINNABLE).await;
    on_primary(&sandbox, &["CREATE TABLE c2 (a int)"]).await;
    let peek = "CREATE FUNCTION peek(int) RETURNS bigint STABLE LANGUAGE plpgsql AS $$BEGIN \
         WHILE $1 = 1 AND pg_is_in_recovery() AND NOT EXISTS (SELECT FROM pg_stat_get_activity(NULL) WHERE wait_event = 'BufferPin') \
         LOOP PERFORM pg_sleep(0.01); END LOOP; RETURN (SELECT count(*) FROM c2); END$$";
    with_function(&sandbox, &proxy, peek, "SELECT peek(0)").await;
    on_primary(&sandbox, &["BEGIN; LOCK TABLE c2 IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lk'"]).await;
    on_primary(&sandbox, &["INSERT INTO flushed VALUES (1)"]).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    let text = "SELECT a, peek(a) FROM b";
    client.send(&running::query(text)).await;
    wait_runs(&sandbox, 1, text).await;
    replayed(&sandbox, &["VACUUM FREEZE b"]).await;
    eventually("it is run again", async || retries(&proxy, "conflict").await > 0.5).await;
    wait_runs(&sandbox, 0, text).await;
    on_primary(&sandbox, &["ROLLBACK PREPARED 'lk'"]).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer).len()), (vec![], 100));
    retried(&proxy, 1.0).await;
}

/// C02: the same where rows were told before: the standby's own error.
#[tokio::test]
async fn c02_a_deadlock_with_replay_that_can_be_told() {
    let settings = [("max_prepared_transactions", "4"), ("deadlock_timeout", "10min")];
    let (sandbox, proxy) = cluster(Duration::from_secs(600), &settings).await;
    replayed(&sandbox, &PINNABLE).await;
    on_primary(&sandbox, &["CREATE TABLE c2 (a int)"]).await;
    on_primary(&sandbox, &["BEGIN; LOCK TABLE c2 IN ACCESS EXCLUSIVE MODE; PREPARE TRANSACTION 'lk'"]).await;
    on_primary(&sandbox, &["INSERT INTO flushed VALUES (1)"]).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    run_all(&mut client, &["BEGIN READ ONLY", "DECLARE cc CURSOR FOR SELECT a FROM b", "FETCH 1 FROM cc"])
        .await;
    replayed(&sandbox, &["VACUUM FREEZE b"]).await;
    let direct = sandbox.connect(1).await.unwrap();
    eventually("replay waits for the page", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'BufferPin'";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let answer = client.query("SELECT count(*) FROM c2").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["40P01".to_owned()], 'E'), "{answer:?}");
    assert!(hint(&answer).contains("earlier statements of its transaction"), "{answer:?}");
    assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
    on_primary(&sandbox, &["ROLLBACK PREPARED 'lk'"]).await;
    retried(&proxy, 0.0).await;
}

/// C01: a tablespace that is dropped, with temporary files in it.
#[tokio::test]
async fn c01_a_tablespace_conflict() {
    let settings = [("allow_in_place_tablespaces", "on"), ("work_mem", "64kB"), ("temp_tablespaces", "ts")];
    let (sandbox, proxy) = cluster(Duration::ZERO, &settings).await;
    on_primary(&sandbox, &["CREATE TABLESPACE ts LOCATION ''"]).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    let text = "SELECT g, CASE WHEN g % 10000 = 0 THEN pg_sleep(0.1) END FROM \
                (SELECT g FROM generate_series(1, 200000) g ORDER BY g DESC OFFSET 0) sorted WHERE g % 10000 = 0";
    client.send(&running::query(text)).await;
    let direct = sandbox.connect(1).await.unwrap();
    eventually("it sorts on disk", async || {
        let sql = "SELECT count(*) FROM pg_tablespace t, pg_ls_tmpdir(t.oid) WHERE spcname = 'ts'";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) > 0
    })
    .await;
    replayed(&sandbox, &["DROP TABLESPACE ts"]).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer).len()), (vec![], 20));
    cancelled(&sandbox, "tablespace", 1).await;
    retried(&proxy, 1.0).await;
}

/// C01: in a block with an exception clause the standby ends the whole session, which says nothing bad of its node.
#[tokio::test]
async fn c01_a_conflict_in_an_exception_block() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let careful = "CREATE FUNCTION careful(float) RETURNS bigint STABLE LANGUAGE plpgsql AS $$BEGIN \
         BEGIN PERFORM pg_sleep($1) FROM c; EXCEPTION WHEN OTHERS THEN RETURN -1; END; RETURN (SELECT count(*) FROM c); END$$";
    with_function(&sandbox, &proxy, careful, "SELECT careful(0)").await;
    let mut client = proxy.raw_logged_in().await;
    let text = "SELECT careful(0.005)";
    client.send(&running::query(text)).await;
    wait_runs(&sandbox, 1, text).await;
    replayed(&sandbox, &["UPDATE c SET v = v || 'y'", "VACUUM c"]).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer)), (vec![], vec!["400".to_owned()]));
    retried(&proxy, 1.0).await;
}

/// C01, C06: behind a savepoint, too; where something was told the client gets the standby's words, and keeps its session.
#[tokio::test]
async fn c01_a_conflict_behind_a_savepoint() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    for told in [false, true] {
        run_all(&mut client, &["BEGIN READ ONLY"]).await;
        if told {
            run_all(&mut client, &["SELECT 1"]).await;
        }
        run_all(&mut client, &["SAVEPOINT a"]).await;
        client.send(&running::query(SLOW)).await;
        wait_runs(&sandbox, 1, SLOW).await;
        replayed(&sandbox, &["UPDATE c SET v = v || 'y'", "VACUUM c"]).await;
        let answer = client.read_until(b'Z').await;
        if told {
            assert_eq!((errors(&answer), status(&answer)), (vec!["40001".to_owned()], 'E'), "{answer:?}");
            let error = answer.iter().find(|message| message.kind == b'E').unwrap();
            assert_eq!(error.field(b'V').as_deref(), Some("ERROR"));
            assert!(error.field(b'D').unwrap().starts_with("User query might have needed"), "{error:?}");
            assert!(hint(&answer).contains("earlier statements of its transaction"), "{answer:?}");
            // The savepoint is gone with its server.
            assert_eq!(errors(&client.query("ROLLBACK TO SAVEPOINT a").await), ["25P02"]);
            assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
        } else {
            assert_eq!((errors(&answer), values(&answer).len(), status(&answer)), (vec![], 400, 'T'));
            run_all(&mut client, &["ROLLBACK TO SAVEPOINT a", "COMMIT"]).await;
        }
    }
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    retried(&proxy, 1.0).await;
}

/// C05: what the transaction had run before can't be run again: its error is the statement's, and nothing is run twice.
#[tokio::test]
async fn c05_a_transaction_that_cannot_be_begun_anew_is_told_why() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    run_all(&mut client, &["BEGIN READ ONLY", "SAVEPOINT a", "DECLARE cc CURSOR FOR SELECT id FROM c"]).await;
    replayed(&sandbox, &["DROP TABLE c"]).await;
    eventually("it is ended, and pgsteer knows", async || retries(&proxy, "conflict").await > 0.5).await;
    let answer = client.query("FETCH ALL FROM cc").await;
    assert_eq!((errors(&answer), kinds(&answer).as_str()), (vec!["42P01".to_owned()], "EZ"), "{answer:?}");
    assert_eq!(status(&answer), 'E');
    assert!(hint(&answer).contains("run it again"), "{answer:?}");
    assert_eq!(errors(&client.query("FETCH ALL FROM cc").await), ["25P02"]);
    assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
    assert_eq!(values(&client.query("SELECT count(*) FROM flushed").await), ["1"]);
}

/// C03: a database that is dropped under an idle transaction: the server's word, and the end.
#[tokio::test]
async fn c03_a_database_dropped_under_an_idle_transaction() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    on_primary(&sandbox, &["CREATE DATABASE dd"]).await;
    sandbox.wait_caught_up().await.unwrap();
    let mut client = proxy.raw_as(sandbox.user(), "dd").await;
    run_all(&mut client, &["BEGIN READ ONLY", "DECLARE cc CURSOR FOR SELECT 1"]).await;
    replayed(&sandbox, &["DROP DATABASE dd WITH (FORCE)"]).await;
    assert_eq!(errors(&in_time("the end", client.read_to_end()).await), ["57P04"]);
    retried(&proxy, 0.0).await;
}

/// C04: what counts is the SQLSTATE and who says it, whatever it says: servers speak many languages.
#[tokio::test]
async fn c04_a_conflict_is_known_by_its_code_and_its_node() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let speak = "CREATE FUNCTION speak(bool, text, text) RETURNS int STABLE LANGUAGE plpgsql AS $$BEGIN \
         IF $1 IS NULL OR $1 = pg_is_in_recovery() THEN \
         RAISE EXCEPTION USING ERRCODE = $2, MESSAGE = $3; END IF; RETURN 1; END$$";
    with_function(&sandbox, &proxy, speak, "SELECT speak(true, '', '') WHERE false").await;
    let mut client = proxy.raw_logged_in().await;
    // Said by a standby: a conflict, in any language.
    for (round, code) in ["40001", "40P01"].into_iter().enumerate() {
        let text = format!(
            "SELECT speak(true, '{code}', 'storniere Anfrage wegen Konflikt mit der Wiederherstellung')"
        );
        assert_eq!(values(&client.query(&text).await), ["1"], "{code}");
        retried(&proxy, round as f64 + 1.0).await;
    }
    run_all(&mut client, &["BEGIN READ ONLY"]).await;
    assert_eq!(values(&client.query("SELECT speak(true, '40P01', 'x'), 2").await), ["1"]);
    run_all(&mut client, &["COMMIT"]).await;
    retried(&proxy, 3.0).await;
    // PostgreSQL's own words with another code: an error like any other.
    let text = "SELECT speak(true, 'P0001', 'canceling statement due to conflict with recovery')";
    assert_eq!(errors(&client.query(text).await), ["P0001"]);
    // Said by the primary: the client's own.
    for code in ["40001", "40P01"] {
        let text = format!(
            "/* pgsteer: target=primary */ SELECT speak(false, '{code}', 'canceling statement due to conflict with recovery')"
        );
        let answer = client.query(&text).await;
        assert_eq!(errors(&answer), [code]);
        assert_eq!(hint(&answer), "", "{answer:?}");
    }
    retried(&proxy, 3.0).await;
}

/// C10: what a standby alone may have wrong is asked of the primary once; its answer counts, and the shape is for it from then on.
#[tokio::test]
async fn c10_an_internal_error_of_a_standby_is_not_run_again_in_a_loop() {
    let (sandbox, proxy) = cluster(Duration::ZERO, &[]).await;
    let break_down = |name: &str| {
        format!(
            "CREATE FUNCTION {name}(bool, text) RETURNS int STABLE LANGUAGE plpgsql AS $$BEGIN \
             IF $1 IS NULL OR $1 = pg_is_in_recovery() THEN RAISE EXCEPTION USING ERRCODE = $2; END IF; RETURN 1; END$$"
        )
    };
    let mut refused = 0.0;
    for (name, code) in [("broken", "XX000"), ("lost", "58P01")] {
        let call = format!("SELECT {name}(true, '') WHERE false");
        with_function(&sandbox, &proxy, &break_down(name), &call).await;
        let mut client = proxy.raw_logged_in().await;
        assert_eq!(values(&client.query(&format!("SELECT {name}(true, '{code}')")).await), ["1"], "{code}");
        refused += 1.0;
        assert!((retries(&proxy, "refused").await - refused).abs() < 0.5, "{code}");
        // On the primary as well: told once, after one further attempt at the most.
        let answer = client.query(&format!("SELECT {name}(NULL, '{code}'), 2")).await;
        assert_eq!((errors(&answer), kinds(&answer).as_str()), (vec![code.to_owned()], "TEZ"), "{answer:?}");
        refused += 1.0;
        assert!((retries(&proxy, "refused").await - refused).abs() < 0.5, "{code}");
        assert_eq!(errors(&client.query(&format!("SELECT {name}(NULL, '{code}'), 2")).await), [code]);
        assert!((retries(&proxy, "refused").await - refused).abs() < 0.5, "{code}, once more");
    }
    // Snapshot too old: the same everywhere.
    let mut client = proxy.raw_logged_in().await;
    let answer = client.query("SELECT broken(true, '72000'), 3, 4").await;
    assert_eq!(errors(&answer), ["72000"]);
    assert!((retries(&proxy, "refused").await - refused).abs() < 0.5);
    assert!(retries(&proxy, "conflict").await < 0.5);
}
