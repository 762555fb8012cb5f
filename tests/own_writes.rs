//! Commits that are acknowledged before they are flushed: whoever has seen one sees it from then on, wherever it reads.
//!
//! The primary's WAL writer is slow, so that an asynchronous commit is not flushed by itself while a test looks.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::Duration;

use pgsteer::sandbox::Sandbox;
use running::{
    RawClient, Running, bind, eventually, execute, flush, in_time, no_errors, parse, slow_to_flush, sync,
    values,
};

/// What tells where it ran.
const READ: &str = "SELECT count(*)::text || pg_is_in_recovery()::text FROM t";

/// Who commits asynchronously by default. Where anybody does, each commit may be one.
#[derive(PartialEq)]
enum Hasty {
    Nobody,
    ARole,
}

struct Setup {
    sandbox: Sandbox,
    proxy: Running,
}

impl Setup {
    async fn start(hasty: Hasty) -> Self {
        let sandbox = slow_to_flush().await;
        let admin = sandbox.connect(0).await.unwrap();
        admin.batch_execute("CREATE TABLE t (n int); CREATE TABLE other (n int)").await.unwrap();
        if hasty == Hasty::ARole {
            let role = "CREATE ROLE hasty LOGIN PASSWORD 'hasty'; GRANT ALL ON t TO hasty; \
                        ALTER ROLE hasty SET synchronous_commit = off";
            admin.batch_execute(role).await.unwrap();
        }
        sandbox.wait_caught_up().await.unwrap();
        let proxy = Self::proxy(&sandbox).await;
        Self { sandbox, proxy }
    }

    async fn proxy(sandbox: &Sandbox) -> Running {
        // Looking where it ran is no reason to read on the primary here.
        let environment = [
            ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery"),
            ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
            ("PGSTEER_ROUTING_MAX_LAG", "1m"),
        ];
        Running::start_with(sandbox, &["--auth", "trust"], &environment).await
    }

    /// A client of a proxy that has seen no asynchronous commit, of which all would count as such for a while, and knows the database:
    /// behind a commit a standby answers, although nobody flushes anything.
    async fn anew(&mut self) -> RawClient {
        self.proxy = Self::proxy(&self.sandbox).await;
        let mut client = self.proxy.raw_logged_in().await;
        eventually("a standby answers behind a commit", async || {
            no_errors(&client.query("INSERT INTO other VALUES (1)").await);
            let began = std::time::Instant::now();
            while began.elapsed() < Duration::from_millis(200) {
                if values(&client.query(READ).await)[0].ends_with("true") {
                    return true;
                }
            }
            false
        })
        .await;
        client
    }

    /// Reads for longer than it takes a sample of the primary to come, then has all flushed, and reads until a standby answers.
    async fn sees(&self, client: &mut RawClient, expected: &str, how: &str) {
        if let Some(wrong) = self.sees_otherwise(client, expected).await {
            panic!("{how}: {wrong}");
        }
    }

    /// What it sees instead.
    async fn sees_otherwise(&self, client: &mut RawClient, expected: &str) -> Option<String> {
        // With pauses in which a sample of the primary is taken: what it answers meanwhile is bound by a later one.
        let mut pace = tokio::time::interval(Duration::from_millis(30));
        pace.tick().await;
        for _ in 0..20 {
            pace.tick().await;
            let seen = values(&client.query(READ).await).concat();
            if seen != format!("{expected}false") && seen != format!("{expected}true") {
                return Some(seen);
            }
        }
        let admin = self.sandbox.connect(0).await.unwrap();
        admin.batch_execute("SELECT pg_logical_emit_message(true, 'flush', '')").await.unwrap();
        let mut wrong = None;
        eventually("a standby answers again", async || {
            let seen = values(&client.query(READ).await).concat();
            if !seen.starts_with(expected) {
                wrong = Some(seen);
                return true;
            }
            seen == format!("{expected}true")
        })
        .await;
        wrong
    }
}

#[tokio::test]
async fn r02_what_was_committed_asynchronously_is_seen() {
    let mut setup = Setup::start(Hasty::Nobody).await;
    let ways: [(&str, &[&str]); 9] = [
        ("a session's setting", &["SET synchronous_commit = off", "INSERT INTO t VALUES (1)"]),
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
        (
            "DO for the session",
            &["DO $$BEGIN SET synchronous_commit = off; END$$", "INSERT INTO t VALUES (1)"],
        ),
        (
            "a name that DO puts together",
            &[
                "DO $$BEGIN EXECUTE 'SET LOCAL synchronous' || '_commit = off'; INSERT INTO t VALUES (1); END$$",
            ],
        ),
        (
            "a name that a statement puts together",
            &[
                "BEGIN",
                "SELECT set_config('synchronous' || '_commit', 'off', true)",
                "INSERT INTO t VALUES (1)",
                "COMMIT",
            ],
        ),
        (
            "the same in a DO",
            &["DO $$BEGIN PERFORM set_config(concat('synchronous', '_commit'), 'off', true); \
                 INSERT INTO t VALUES (1); END$$"],
        ),
        (
            "pg_settings",
            &[
                "BEGIN",
                "UPDATE pg_settings SET setting = 'off' WHERE name LIKE 'synchronous%commit'",
                "INSERT INTO t VALUES (1)",
                "COMMIT",
            ],
        ),
    ];
    let mut wrong = Vec::new();
    for ((how, statements), count) in ways.into_iter().zip(1..) {
        let mut client = setup.anew().await;
        for sql in statements {
            no_errors(&client.query(sql).await);
        }
        let seen = setup.sees_otherwise(&mut client, &format!("{count}")).await;
        wrong.extend(seen.map(|seen| format!("{how}: {seen}")));
    }
    assert_eq!(wrong, [""; 0]);
    let mut client = setup.anew().await;
    for sql in ["SET synchronous_commit = off", "RESET synchronous_commit", "INSERT INTO t VALUES (1)"] {
        no_errors(&client.query(sql).await);
    }
    setup.sees(&mut client, "10", "reset, it is as before").await;
}

/// What a batch sets counts for all of its transaction, in whatever parts it comes.
#[tokio::test]
async fn r02_a_batch_that_sets_it_counts() {
    let mut setup = Setup::start(Hasty::Nobody).await;
    let whole = |sql: &str| [parse("", sql), bind("", "", &[]), execute("")].concat();
    let sets = ["SET LOCAL synchronous_commit = off", "SELECT set_config('synchronous_commit', 'off', true)"];
    for (count, sql) in (1..).zip(sets) {
        let mut client = setup.anew().await;
        let first = [&whole("BEGIN")[..], &whole(sql), &flush()].concat();
        client.send(&first).await;
        for _ in 0..2 {
            let answer = in_time("the first part", client.read_until(b'C')).await;
            no_errors(&answer);
        }
        let rest = [&whole("INSERT INTO t VALUES (1)")[..], &whole("COMMIT"), &sync()].concat();
        client.send(&rest).await;
        no_errors(&in_time("the rest", client.read_until(b'Z')).await);
        setup.sees(&mut client, &count.to_string(), sql).await;
    }
}

#[tokio::test]
async fn r02_a_default_of_the_role_counts() {
    let setup = Setup::start(Hasty::ARole).await;
    let mut client = setup.proxy.raw_as("hasty", "postgres").await;
    for count in 1..4 {
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, &count.to_string(), "a default").await;
    }
}

/// Whoever was asked first: what another role has, or a standby, says nothing of it.
#[tokio::test]
async fn r02_a_default_counts_whoever_was_looked_at_before() {
    let setup = Setup::start(Hasty::ARole).await;
    let mut first = setup.proxy.raw_logged_in().await;
    no_errors(&first.query("CREATE TABLE u (n int)").await);
    no_errors(&first.query("INSERT INTO u VALUES (1)").await);
    let mut client = setup.proxy.raw_as("hasty", "postgres").await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    setup.sees(&mut client, "1", "another role was looked at").await;
}

#[tokio::test]
async fn r02_the_primarys_own_configuration_counts() {
    let setup = Setup::start(Hasty::Nobody).await;
    let admin = setup.sandbox.connect(0).await.unwrap();
    for sql in ["ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()"] {
        admin.batch_execute(sql).await.unwrap();
    }
    let mut client = setup.proxy.raw_logged_in().await;
    eventually("a standby answers", async || values(&client.query(READ).await) == ["0true"]).await;
    for count in 1..3 {
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, &count.to_string(), "the primary's configuration").await;
    }
}

const SHOW: &str = "/* pgsteer: target=primary */ SHOW synchronous_commit";

/// In the middle of a session that is known to commit synchronously, and of an epoch.
#[tokio::test]
async fn r02_the_configuration_counts_from_the_next_probe_on() {
    let mut setup = Setup::start(Hasty::Nobody).await;
    // Older than the connection of the probes, as the client's is newer: who is told to read the configuration anew is told before
    // the one or behind the other.
    let admin = setup.sandbox.connect(0).await.unwrap();
    admin.batch_execute("SET synchronous_commit = on").await.unwrap();
    let older = setup.sandbox.connect(0).await.unwrap();
    let mut client = setup.anew().await;
    for sql in ["ALTER SYSTEM SET synchronous_commit = off", "SELECT pg_reload_conf()"] {
        admin.batch_execute(sql).await.unwrap();
    }
    eventually("all have read it", async || {
        let of_older: String = older.query_one("SHOW synchronous_commit", &[]).await.unwrap().get(0);
        of_older == "off" && values(&client.query(SHOW).await) == ["off"]
    })
    .await;
    admin.batch_execute("SELECT pg_logical_emit_message(true, 'behind', '')").await.unwrap();
    eventually("a probe has been answered since", async || {
        let flushed = "SELECT pg_current_wal_flush_lsn()::text";
        let flushed: String = admin.query_one(flushed, &[]).await.unwrap().get(0);
        setup.proxy.topology().await["primary"]["flush_lsn"] == flushed
    })
    .await;
    for count in 1..3 {
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, &count.to_string(), "the configuration").await;
    }
}

/// By way of another database than the one whose commits it is about.
#[tokio::test]
async fn r02_a_default_that_is_altered_from_another_database_counts() {
    for sql in [
        "ALTER DATABASE postgres SET synchronous_commit = off",
        "ALTER ROLE postgres IN DATABASE postgres SET synchronous_commit = off",
    ] {
        let mut setup = Setup::start(Hasty::Nobody).await;
        let mut client = setup.anew().await;
        let mut elsewhere = setup.proxy.raw_as("postgres", "template1").await;
        no_errors(&elsewhere.query(sql).await);
        eventually("it is in force", async || values(&client.query(SHOW).await) == ["off"]).await;
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, "1", sql).await;
    }
}

/// It counts from the next look at the catalogue on, which follows a definition, or a minute. Servers' connections have it from their beginning.
#[tokio::test]
async fn r02_a_default_that_is_altered_past_pgsteer_counts_from_the_next_look_on() {
    for sql in [
        "ALTER DATABASE postgres SET synchronous_commit = off",
        "ALTER ROLE postgres SET synchronous_commit = off",
        "ALTER ROLE ALL SET synchronous_commit = off",
    ] {
        let mut setup = Setup::start(Hasty::Nobody).await;
        let mut first = setup.anew().await;
        let admin = setup.sandbox.connect(0).await.unwrap();
        admin.batch_execute(sql).await.unwrap();
        // It is known to be a read when the catalogue has been looked at.
        let function =
            "CREATE FUNCTION nothing() RETURNS text STABLE LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'";
        no_errors(&first.query(function).await);
        eventually("the catalogue has been looked at", async || {
            admin.batch_execute("SELECT pg_logical_emit_message(true, 'flush', '')").await.unwrap();
            values(&first.query("SELECT concat(nothing(), pg_is_in_recovery())").await) == ["t"]
        })
        .await;
        let mut client = setup.proxy.raw_logged_in().await;
        assert_eq!(values(&client.query(SHOW).await), ["off"], "in a connection of before that");
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
        setup.sees(&mut client, "1", sql).await;
    }
}

#[tokio::test]
async fn r02_a_default_that_is_altered_counts() {
    let setup = Setup::start(Hasty::Nobody).await;
    let mut client = setup.proxy.raw_logged_in().await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    setup.sees(&mut client, "1", "as it was").await;
    no_errors(&client.query("ALTER ROLE postgres SET synchronous_commit = off").await);
    let mut client = setup.proxy.raw_logged_in().await;
    no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    setup.sees(&mut client, "2", "altered").await;
}

#[tokio::test]
async fn r02_a_function_that_sets_it_counts() {
    let setup = Setup::start(Hasty::Nobody).await;
    let mut client = setup.proxy.raw_logged_in().await;
    let function = "CREATE FUNCTION hasty() RETURNS void LANGUAGE plpgsql AS \
         $$BEGIN SET LOCAL synchronous_commit = off; INSERT INTO t VALUES (1); END$$";
    no_errors(&client.query(function).await);
    for count in 1..3 {
        no_errors(&client.query("SELECT hasty()").await);
        setup.sees(&mut client, &count.to_string(), "a function").await;
    }
    let function = "CREATE FUNCTION parsed() RETURNS text LANGUAGE sql BEGIN ATOMIC \
         SELECT set_config('synchronous_commit', 'off', true); END";
    no_errors(&client.query(function).await);
    no_errors(&client.query("DROP FUNCTION hasty").await);
    for sql in ["BEGIN", "SELECT parsed()", "INSERT INTO t VALUES (1)", "COMMIT"] {
        no_errors(&client.query(sql).await);
    }
    setup.sees(&mut client, "3", "a function that is kept parsed").await;
}

#[tokio::test]
async fn r03_what_another_session_committed_asynchronously_does_not_vanish_again() {
    let setup = Setup::start(Hasty::Nobody).await;
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
