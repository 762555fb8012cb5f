//! Databases come and go: created, renamed, copied and dropped, although connections to them are kept for reuse.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{PROTOCOL_3_0, Running, errors, eventually, no_errors, run, startup, values};

/// M19: idle connections of the pool, on any shard and node, are nobody's who uses the database.
#[tokio::test]
async fn a_database_with_idle_connections_is_dropped_renamed_and_copied() {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--shards", "2", "--max-lag", "1m"]).await;
    let mut admin = proxy.raw_logged_in().await;
    for round in 0..3 {
        run(&mut admin, "CREATE DATABASE come").await;
        sandbox.wait_caught_up().await.unwrap();
        // Four clients are on both shards; each leaves connections behind, on the primary and on standbys.
        for client in 0..4 {
            let mut client_of = proxy.raw_as(sandbox.user(), "come").await;
            run(&mut client_of, &format!("CREATE TABLE t{client} (i int)")).await;
            assert_eq!(values(&client_of.query("SELECT count(*) FROM pg_class WHERE false").await), ["0"]);
        }
        let direct = sandbox.connect(0).await.unwrap();
        eventually("connections are kept", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE datname = 'come'";
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) >= 1
        })
        .await;
        run(&mut admin, "CREATE DATABASE copied TEMPLATE come").await;
        run(&mut admin, "ALTER DATABASE copied RENAME TO gone").await;
        // Another database of the same name: nothing is remembered of the one before.
        let mut anew = proxy.raw_as(sandbox.user(), "gone").await;
        assert_eq!(values(&anew.query("/* pgsteer: target=primary */ SELECT count(*) FROM t3").await), ["0"]);
        drop(anew);
        run(&mut admin, "DROP DATABASE gone").await;
        if round == 2 {
            // Prepared by the protocol, in other words.
            let messages = [
                running::parse("", "DROP DATABASE IF EXISTS \"come\""),
                running::bind("", "", &[]),
                running::execute(""),
            ];
            no_errors(&admin.extended(&messages).await);
        } else {
            run(&mut admin, "drop database Come").await;
        }
        let mut late = proxy.raw().await;
        let user = sandbox.user();
        late.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "come")])).await;
        assert_eq!(errors(&late.read_to_end().await), ["3D000"]);
    }
}
