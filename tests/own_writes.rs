//! Commits that are acknowledged before they are flushed: whoever has seen one sees it from then on, wherever it reads.
//!
//! The primary's WAL writer is slow, so that an asynchronous commit is not flushed by itself while a test looks.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::Duration;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, eventually, no_errors, values};

/// What tells where it ran.
const READ: &str = "SELECT count(*)::text || pg_is_in_recovery()::text FROM t";

struct Setup {
    sandbox: Sandbox,
    proxy: Running,
}

impl Setup {
    async fn start() -> Self {
        let sandbox = Sandbox::builder()
            .standbys(1)
            .setting("wal_writer_delay", "10s")
            .auth(Auth::Trust)
            .start()
            .await
            .unwrap();
        let admin = sandbox.connect(0).await.unwrap();
        admin
            .batch_execute(
                "CREATE TABLE t (n int); CREATE ROLE hasty LOGIN PASSWORD 'hasty'; GRANT ALL ON t TO hasty; \
                 ALTER ROLE hasty SET synchronous_commit = off",
            )
            .await
            .unwrap();
        sandbox.wait_caught_up().await.unwrap();
        // Looking where it ran is no reason to read on the primary here.
        let environment = [
            ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery"),
            ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
            ("PGSTEER_ROUTING_MAX_LAG", "1m"),
        ];
        let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &environment).await;
        Self { sandbox, proxy }
    }

    /// Reads for longer than it takes a sample of the primary to come, then has all flushed, and reads until a standby answers.
    async fn sees(&self, client: &mut RawClient, expected: &str, how: &str) {
        // With pauses in which a sample of the primary is taken: what it answers meanwhile is bound by a later one.
        let mut pace = tokio::time::interval(Duration::from_millis(30));
        for _ in 0..20 {
            pace.tick().await;
            let seen = values(&client.query(READ).await);
            assert!(
                seen == [format!("{expected}false")] || seen == [format!("{expected}true")],
                "{how}: {seen:?}"
            );
        }
        let admin = self.sandbox.connect(0).await.unwrap();
        admin.batch_execute("SELECT pg_logical_emit_message(true, 'flush', '')").await.unwrap();
        eventually("a standby answers again", async || {
            let seen = values(&client.query(READ).await);
            assert!(seen[0].starts_with(expected), "{how}: {seen:?}");
            seen == [format!("{expected}true")]
        })
        .await;
    }
}

#[tokio::test]
async fn r02_what_was_committed_asynchronously_is_seen() {
    let setup = Setup::start().await;
    let mut client = setup.proxy.raw_logged_in().await;
    no_errors(
        &client.query("CREATE FUNCTION hasten() RETURNS void LANGUAGE sql AS $$SELECT pg_sleep(0)$$").await,
    );
    let ways: [(&str, &[&str]); 5] = [
        ("a session's setting", &["SET synchronous_commit = off", "INSERT INTO t VALUES (1)"]),
        ("reset, it is as before", &["RESET synchronous_commit", "INSERT INTO t VALUES (1)"]),
        (
            "a transaction's setting",
            &["BEGIN", "SET LOCAL synchronous_commit TO off", "INSERT INTO t VALUES (1)", "COMMIT"],
        ),
        (
            "set_config",
            &[
                "BEGIN",
                "SELECT set_config('synchronous_commit', 'off', true)",
                "INSERT INTO t VALUES (1)",
                "COMMIT",
            ],
        ),
        ("DO", &["DO $$BEGIN SET LOCAL synchronous_commit = off; INSERT INTO t VALUES (1); END$$"]),
    ];
    let mut count = 0;
    for (how, statements) in ways {
        for sql in statements {
            no_errors(&client.query(sql).await);
        }
        count += 1;
        setup.sees(&mut client, &count.to_string(), how).await;
    }
}

#[tokio::test]
async fn r02_a_default_of_the_role_counts() {
    let setup = Setup::start().await;
    let mut client = setup.proxy.raw_as("hasty", "postgres").await;
    for count in 1..4 {
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, &count.to_string(), "a default").await;
    }
}

#[tokio::test]
async fn r02_a_function_that_sets_it_counts() {
    let setup = Setup::start().await;
    let mut client = setup.proxy.raw_logged_in().await;
    let function = "CREATE FUNCTION hasty() RETURNS void LANGUAGE plpgsql AS \
         $$BEGIN SET LOCAL synchronous_commit = off; INSERT INTO t VALUES (1); END$$";
    no_errors(&client.query(function).await);
    for count in 1..3 {
        no_errors(&client.query("SELECT hasty()").await);
        setup.sees(&mut client, &count.to_string(), "a function").await;
    }
}

#[tokio::test]
async fn r03_what_another_session_committed_asynchronously_does_not_vanish_again() {
    let setup = Setup::start().await;
    let mut writer = setup.proxy.raw_logged_in().await;
    let mut reader = setup.proxy.raw_logged_in().await;
    no_errors(&reader.query("SELECT 1").await);
    no_errors(&writer.query("SET synchronous_commit = off").await);
    for count in 1..4 {
        no_errors(&writer.query("INSERT INTO t VALUES (1)").await);
        let seen = values(&reader.query(&format!("/* pgsteer: target=primary */ {READ}")).await);
        assert_eq!(seen, [format!("{count}false")]);
        setup.sees(&mut reader, &count.to_string(), "another session's").await;
    }
}
