//! Roles come and go: created, altered, renamed and dropped, although logins and connections of theirs are kept for reuse.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::pin::pin;

use futures_util::StreamExt;
use pgsteer::sandbox::Sandbox;
use running::{Running, eventually, in_time};
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, NoTls, SimpleQueryMessage};

const TWO_SHARDS: [&str; 4] = ["--shards", "2", "--max-lag", "1m"];

async fn run(client: &Client, sql: &str) {
    client.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

/// The SQLSTATE of an INSERT as ann, whose password this is; or who did it.
async fn insert_as_ann(proxy: &Running, password: &str) -> String {
    let client = match proxy.try_connect("ann", password, "postgres").await {
        Ok(client) => client,
        Err(error) => return error.code().map_or_else(|| error.to_string(), |code| code.code().to_owned()),
    };
    let sql = "INSERT INTO t VALUES (1) RETURNING current_user::text";
    match client.query_one(sql, &[]).await {
        Ok(row) => row.get(0),
        Err(error) => error.code().unwrap().code().to_owned(),
    }
}

/// Idle connections of ann's on both shards, on the primary and on standbys.
async fn leave_connections(proxy: &Running) {
    for _ in 0..4 {
        let client = proxy.connect("ann", "x", "postgres").await;
        run(&client, "INSERT INTO t VALUES (1)").await;
        run(&client, "SELECT 1").await;
    }
}

const ANN: &str = "CREATE ROLE ann LOGIN PASSWORD 'x'; CREATE TABLE t (i int); GRANT ALL ON t TO ann";

/// A role of the same name is another role: it has none of the first one's rights, and what was granted to it counts.
#[tokio::test]
async fn a_role_that_is_made_again_is_another() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = Running::start(&sandbox, &TWO_SHARDS).await;
    let admin = proxy.client().await;
    let renames: [&[&str]; 3] = [
        &["ALTER ROLE ann RENAME TO bob", "CREATE ROLE ann LOGIN PASSWORD 'x'"],
        // In a transaction, where nothing is known of it before its end.
        &["BEGIN", "ALTER USER ann RENAME TO bob", "CREATE USER ann PASSWORD 'x'", "SELECT 1", "COMMIT"],
        &["SELECT 1; alter group Ann rename to bob; SELECT 2; CREATE ROLE ann LOGIN PASSWORD 'x'"],
    ];
    for statements in renames {
        run(&admin, ANN).await;
        sandbox.wait_caught_up().await.unwrap();
        leave_connections(&proxy).await;
        for sql in statements {
            run(&admin, sql).await;
            if *sql == "SELECT 1" {
                // Nobody but the transaction itself knows yet: what others learn and leave is as before.
                leave_connections(&proxy).await;
            }
        }
        assert_eq!(insert_as_ann(&proxy, "x").await, "42501", "{statements:?}");
        run(&admin, "GRANT ALL ON t TO ann; REVOKE ALL ON t FROM bob").await;
        assert_eq!(insert_as_ann(&proxy, "x").await, "ann", "{statements:?}");
        // Dropped and made again: what is granted to it is granted to whom the server connections belong.
        run(&admin, "DROP OWNED BY ann; DROP ROLE ann").await;
        assert_eq!(insert_as_ann(&proxy, "x").await, "28P01");
        // By the protocol's own statements, too.
        admin.execute("CREATE ROLE ann LOGIN PASSWORD 'x'", &[]).await.unwrap();
        run(&admin, "GRANT ALL ON t TO ann").await;
        assert_eq!(insert_as_ann(&proxy, "x").await, "ann");
        run(&admin, "DROP TABLE t; DROP ROLE ann; DROP ROLE bob").await;
    }
}

/// A connection that is in use while its role is renamed is nobody's afterwards.
#[tokio::test]
async fn a_leased_connection_of_a_renamed_role_is_not_given_back() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let proxy = Running::start(&sandbox, &TWO_SHARDS).await;
    let admin = proxy.client().await;
    run(&admin, ANN).await;
    let mut holder = proxy.connect("ann", "x", "postgres").await;
    let open = holder.transaction().await.unwrap();
    open.batch_execute("INSERT INTO t VALUES (1)").await.unwrap();
    run(&admin, "ALTER ROLE ann RENAME TO bob; CREATE ROLE ann LOGIN PASSWORD 'x'").await;
    // As with a server of its own, the transaction goes on as the role that began it.
    let row = open.query_one("INSERT INTO t VALUES (2) RETURNING current_user::text", &[]).await.unwrap();
    assert_eq!(row.get::<_, String>(0), "bob");
    open.commit().await.unwrap();
    assert_eq!(insert_as_ann(&proxy, "x").await, "42501");
    let direct = sandbox.connect(0).await.unwrap();
    eventually("no connection of the renamed role is left", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'bob'";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    // Nor does that session become the new role: it is told.
    let error = holder.batch_execute("INSERT INTO t VALUES (3)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28000", "{error:?}");
    assert!(holder.is_closed() || holder.batch_execute("SELECT 1").await.is_err());
}

/// What pgsteer has not seen, the role's OID tells: nobody gets a connection of another role than its own.
#[tokio::test]
async fn a_role_that_is_made_again_elsewhere_is_told_by_its_oid() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = Running::start(&sandbox, &TWO_SHARDS).await;
    let direct = sandbox.connect(0).await.unwrap();
    run(&direct, ANN).await;
    sandbox.wait_caught_up().await.unwrap();
    leave_connections(&proxy).await;
    let old = proxy.connect("ann", "x", "postgres").await;
    run(&direct, "ALTER ROLE ann RENAME TO bob; CREATE ROLE ann LOGIN PASSWORD 'y'").await;
    // The first may still be measured by the verifier of before.
    eventually("the new role is let in", async || proxy.try_connect("ann", "y", "postgres").await.is_ok())
        .await;
    for _ in 0..6 {
        assert_eq!(insert_as_ann(&proxy, "y").await, "42501");
    }
    // The session of before has not become the new role, although its key would open a connection of it.
    let error = old.batch_execute("INSERT INTO t VALUES (1)").await.unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28000", "{error:?}");
}

/// What is altered of a role counts from its next login on; a session of before lives on.
#[tokio::test]
async fn what_is_altered_of_a_role_counts_at_once() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = Running::start(&sandbox, &TWO_SHARDS).await;
    let admin = proxy.client().await;
    run(&admin, ANN).await;
    sandbox.wait_caught_up().await.unwrap();
    leave_connections(&proxy).await;
    let held = proxy.connect("ann", "x", "postgres").await;
    run(&held, "INSERT INTO t VALUES (1)").await;
    for (from, to) in [("x", "y"), ("y", "z"), ("z", "x")] {
        run(&admin, &format!("ALTER ROLE ann PASSWORD '{to}'")).await;
        assert_eq!(insert_as_ann(&proxy, to).await, "ann");
        assert_eq!(insert_as_ann(&proxy, from).await, "28P01");
        run(&held, "INSERT INTO t VALUES (1)").await;
    }
    // Set again, it is another verifier all the same.
    run(&admin, "ALTER ROLE ann PASSWORD 'x'").await;
    assert_eq!(insert_as_ann(&proxy, "x").await, "ann");
    let shown = async |sql: &str| -> String {
        let client = proxy.connect("ann", "x", "postgres").await;
        let sql = format!("/* pgsteer: target=primary */ SELECT current_setting('{sql}')");
        client.query_one(sql.as_str(), &[]).await.unwrap().get(0)
    };
    run(&admin, "ALTER ROLE ann SET work_mem = '5MB'").await;
    assert_eq!(shown("work_mem").await, "5MB");
    run(&admin, "ALTER ROLE ALL SET maintenance_work_mem = '7MB'").await;
    assert_eq!(shown("maintenance_work_mem").await, "7MB");
    run(&admin, "ALTER ROLE ann NOLOGIN").await;
    assert_eq!(insert_as_ann(&proxy, "x").await, "28P01");
}

/// Who is told of a COMMIT logs in at once: what others have learned before it is not for that login, whatever the session that has
/// committed is doing meanwhile.
#[tokio::test]
async fn what_is_told_of_a_role_counts_before_its_session_goes_on() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let proxy = Running::start(&sandbox, &TWO_SHARDS).await;
    let direct = sandbox.connect(0).await.unwrap();
    run(&direct, "SELECT pg_advisory_lock(7)").await;
    let admin = proxy.client().await;
    run(&admin, ANN).await;
    sandbox.wait_caught_up().await.unwrap();
    run(&admin, "BEGIN; ALTER ROLE ann RENAME TO bob; CREATE ROLE ann LOGIN PASSWORD 'x'").await;
    leave_connections(&proxy).await;
    // What fills the server's buffer is told at once, and the rest has no end yet.
    let sql = "COMMIT; SELECT repeat('x', 20000); SELECT pg_advisory_lock(7)";
    let mut answer = pin!(admin.simple_query_raw(sql).await.unwrap());
    let told = in_time("the COMMIT", answer.next()).await.unwrap().unwrap();
    assert!(matches!(told, SimpleQueryMessage::CommandComplete(_)), "{told:?}");
    assert_eq!(insert_as_ann(&proxy, "x").await, "42501");
    run(&direct, "SELECT pg_advisory_unlock(7)").await;
    while let Some(message) = in_time("the rest", answer.next()).await {
        message.unwrap();
    }
}

/// What the auth query is, and who asks about ann waits behind the answer for a lock that a test may hold.
const LOOKUP: &str = "CREATE FUNCTION lookup(who text) RETURNS TABLE (usename name, passwd text) LANGUAGE plpgsql AS \
    $$BEGIN SELECT rolname, rolpassword INTO usename, passwd FROM pg_authid WHERE rolname = who; \
    IF who = 'ann' THEN PERFORM pg_advisory_xact_lock_shared(8); END IF; RETURN NEXT; END$$";

/// Nor is what others are learning: their question was asked before.
#[tokio::test]
async fn a_login_does_not_share_a_question_of_before_its_role_was_altered() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    run(&direct, LOOKUP).await;
    run(&direct, ANN).await;
    let environment = [
        ("PGSTEER_AUTH_QUERY", "SELECT * FROM public.lookup($1)"),
        ("PGSTEER_TOPOLOGY_CONNECT_TIMEOUT", "10m"),
    ];
    let proxy = Running::start_with(&sandbox, &TWO_SHARDS, &environment).await;
    let admin = proxy.client().await;
    run(&direct, "SELECT pg_advisory_lock(8)").await;
    let log_in = |password: &str| -> JoinHandle<Result<(), Error>> {
        let mut config = proxy.config();
        config.user("ann").password(password);
        tokio::spawn(async move { config.connect(NoTls).await.map(drop) })
    };
    let are_asked = async |count: i64| {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'";
        eventually(&format!("{count} questions are asked"), async || {
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == count
        })
        .await;
    };
    let before = log_in("x");
    are_asked(1).await;
    run(&admin, "ALTER ROLE ann PASSWORD 'y'").await;
    let behind = log_in("y");
    are_asked(2).await;
    run(&direct, "SELECT pg_advisory_unlock(8)").await;
    in_time("the login behind it", behind).await.unwrap().unwrap();
    let error = in_time("the login before it", before).await.unwrap().unwrap_err();
    assert_eq!(error.code().unwrap().code(), "28P01", "{error:?}");
}
