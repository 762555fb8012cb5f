//! Roles come and go: created, altered, renamed and dropped, although logins and connections of theirs are kept for reuse.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::Sandbox;
use running::{Running, eventually};
use tokio_postgres::Client;

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
