//! What a database has beyond PostgreSQL's own decides where a statement runs: users' functions, operators, views, types, tables.
//!
//! Where it ran is told by counters; a read that is refused by a standby counts there, too. The hazards' numbers stand at the cases.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::process::Stdio;

use pgsteer::sandbox::Sandbox;
use running::{Running, eventually};
use tokio::io::AsyncWriteExt;
use tokio_postgres::Client;

async fn routed(proxy: &Running, side: &str) -> f64 {
    proxy.metric("pgsteer_statements_routed_total", &[("side", side)]).await
}

/// Whether a statement is sent to a standby, as far as the session's own bounds allow it.
async fn runs_on_standby(proxy: &Running, client: &Client, sql: &str) -> bool {
    let before = routed(proxy, "standby").await;
    client.simple_query(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    routed(proxy, "standby").await > before
}

/// Reads of this session are sent to standbys by now, and what it has defined is known.
async fn settled(proxy: &Running, client: &Client) {
    eventually("reads go to a standby", async || runs_on_standby(proxy, client, "SELECT app.known()").await)
        .await;
}

const SET_UP: &str = "
    CREATE SCHEMA app; CREATE SCHEMA other;
    CREATE TABLE t (i int);
    INSERT INTO t VALUES (1);
    CREATE FUNCTION app.known() RETURNS int LANGUAGE sql STABLE AS 'SELECT 1';
    CREATE FUNCTION app.stable() RETURNS int LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION app.volatile() RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION app.twice(int) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 2 * $1';
    CREATE FUNCTION other.twice(text) RETURNS int LANGUAGE sql AS 'SELECT 2';
    CREATE FUNCTION app.sets() RETURNS text LANGUAGE sql STABLE AS 'SELECT set_config(''app.x'', ''1'', false)';
    CREATE FUNCTION app.calls_sets() RETURNS text LANGUAGE plpgsql STABLE AS 'BEGIN RETURN app.sets(); END';
    CREATE FUNCTION lower(int) RETURNS text LANGUAGE plpgsql AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION public.field(t) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION app.add_volatile(int, int) RETURNS int LANGUAGE plpgsql AS 'BEGIN RETURN 1; END';
    CREATE AGGREGATE app.total(int) (SFUNC = app.add_volatile, STYPE = int, INITCOND = 0);
    CREATE AGGREGATE app.sum_of(int) (SFUNC = int4pl, STYPE = int, INITCOND = 0);
    CREATE OPERATOR app.+# (LEFTARG = int, RIGHTARG = int, FUNCTION = app.add_volatile);
    CREATE VIEW plain_view AS SELECT i, random() AS r FROM t;
    CREATE VIEW volatile_view AS SELECT app.volatile() AS i;
    CREATE VIEW above_view AS SELECT * FROM volatile_view;
    CREATE SEQUENCE s;
    CREATE VIEW next_view AS SELECT nextval('s') AS i;
    CREATE VIEW node_view AS SELECT pid FROM pg_stat_activity;
    CREATE UNLOGGED TABLE unlogged (i int);
    CREATE TABLE parted (i int) PARTITION BY LIST (i);
    CREATE UNLOGGED TABLE part PARTITION OF parted FOR VALUES IN (1);
    CREATE TABLE guarded (i int);
    ALTER TABLE guarded ENABLE ROW LEVEL SECURITY;
    CREATE POLICY p ON guarded USING (app.volatile() = 1);
    CREATE DOMAIN checked AS int CHECK (app.volatile() = VALUE);
    CREATE TYPE pair AS (a int, b int);
    CREATE FUNCTION app.runs(text) RETURNS text LANGUAGE plpgsql STABLE AS 'BEGIN EXECUTE $1; RETURN 1; END';
    CREATE FUNCTION app.defaults(text DEFAULT set_config('app.x', '1', false)) RETURNS text LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE FUNCTION app.defaults_own(int DEFAULT app.volatile()) RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT $1';
    CREATE FUNCTION app.asks_node() RETURNS bool LANGUAGE sql STABLE AS 'SELECT pg_is_in_recovery()';
    CREATE FUNCTION app.final(int) RETURNS text LANGUAGE sql STABLE AS 'SELECT set_config(''app.y'', ''1'', false)';
    CREATE AGGREGATE app.touches(int) (SFUNC = int4pl, STYPE = int, INITCOND = 0, FINALFUNC = app.final);
    CREATE FUNCTION app.strict_one(int) RETURNS int LANGUAGE sql IMMUTABLE STRICT AS 'SELECT length(''calls_sets_not'')';
    CREATE DOMAIN above_checked AS checked;
    CREATE VIEW cast_view AS SELECT i::checked FROM t;
    CREATE TYPE holder AS (a checked);
    CREATE FUNCTION app.unequal(int, text) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
    CREATE MATERIALIZED VIEW kept AS SELECT app.volatile() AS i";

/// Hazard, statement, whether it is a read.
const CASES: &[(&str, &str, bool)] = &[
    ("F18", "SELECT app.stable()", true),
    ("F18", "SELECT app.stable() FROM t WHERE app.twice(i) = 2", true),
    ("F18", "SELECT app.volatile()", false),
    ("F18", "SELECT * FROM app.volatile()", false),
    ("F18", "SELECT twice('a') FROM (SELECT set_config('search_path', 'other', true)) x", false),
    ("F20", "SELECT other.twice('a')", false),
    ("F18", "SELECT app.sets()", false),
    ("F18", "SELECT app.calls_sets()", false),
    ("F18", "SELECT lower(1)", false),
    ("F18", "SELECT pg_catalog.lower('A')", true),
    ("F18", "SELECT t.field FROM t", false),
    ("F18", "SELECT (t).field FROM t", false),
    ("F18", "SELECT ((1, 2)::pair).a", true),
    ("F19", "SELECT app.total(i) FROM t", false),
    ("F19", "SELECT app.sum_of(i) FROM t", true),
    ("F19", "SELECT 1 OPERATOR(app.+#) 2", false),
    ("F19", "SELECT * FROM plain_view", true),
    ("F19", "SELECT * FROM volatile_view", false),
    ("F19", "SELECT * FROM \"above_view\"", false),
    ("F19", "TABLE above_view", false),
    ("F01", "SELECT * FROM next_view", false),
    ("F12", "SELECT * FROM node_view", false),
    ("T03", "SELECT * FROM unlogged", false),
    ("T03", "COPY unlogged TO STDOUT", false),
    ("T03", "SELECT * FROM parted", false),
    ("F19", "SELECT * FROM guarded", false),
    ("F19", "SELECT 1::checked", false),
    ("T04", "SELECT * FROM kept", true),
    ("F18", "SELECT app.runs('SELECT 1')", false),
    ("F18", "SELECT app.defaults()", false),
    ("F18", "SELECT app.defaults_own()", false),
    ("F18", "SELECT app.asks_node()", false),
    ("F19", "SELECT app.touches(i) FROM t", false),
    ("F18", "SELECT app.strict_one(1)", true),
    ("F10", "SELECT (true).pg_promote FROM (SELECT 1 WHERE false) x", false),
    ("F09", "SELECT ('s'::name).pg_drop_replication_slot FROM t WHERE false", false),
    ("T10", "SELECT last_value FROM s", false),
    ("F19", "SELECT 1::above_checked", false),
    ("F19", "SELECT * FROM cast_view", false),
    ("F19", "SELECT NULL::holder", false),
    ("F99", "SELECT nothing_of_this_name()", false),
];

#[tokio::test]
async fn the_catalogue_decides() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--max-lag", "1h"]).await;
    let client = proxy.client().await;
    client.batch_execute(SET_UP).await.unwrap();
    settled(&proxy, &client).await;
    for (hazard, sql, reads) in CASES {
        settled(&proxy, &client).await;
        let before = routed(&proxy, "standby").await;
        let _ = client.simple_query(sql).await;
        let on_standby = routed(&proxy, "standby").await > before;
        assert_eq!(on_standby, *reads, "{hazard} {sql}");
    }
}

/// F20: what is defined through pgsteer counts from then on, for prepared statements, too; on whichever connection.
#[tokio::test]
async fn a_definition_counts_from_its_end_on() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--max-lag", "1h"]).await;
    let (client, definer) = (proxy.client().await, proxy.client().await);
    definer.batch_execute(SET_UP).await.unwrap();
    settled(&proxy, &client).await;
    let prepared = client.prepare("SELECT app.stable()").await.unwrap();
    let before = routed(&proxy, "standby").await;
    client.query_one(&prepared, &[]).await.unwrap();
    assert!(routed(&proxy, "standby").await > before);
    definer
        .batch_execute(
            "BEGIN; CREATE OR REPLACE FUNCTION app.stable() RETURNS int LANGUAGE plpgsql AS
        'BEGIN RETURN 2; END'",
        )
        .await
        .unwrap();
    // While it is being defined nothing of the kind is trusted.
    let before = routed(&proxy, "standby").await;
    client.query_one(&prepared, &[]).await.unwrap();
    definer.batch_execute("COMMIT").await.unwrap();
    for _ in 0..10 {
        client.query_one(&prepared, &[]).await.unwrap();
        assert!(!runs_on_standby(&proxy, &client, "SELECT app.stable()").await);
    }
    assert!(routed(&proxy, "standby").await <= before);
    definer.batch_execute("ALTER FUNCTION app.stable() STABLE").await.unwrap();
    eventually("it is a read again", async || runs_on_standby(&proxy, &client, "SELECT app.stable()").await)
        .await;
}

/// The configuration has the last word.
#[tokio::test]
async fn functions_can_be_said_to_be_reads_or_writes() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let environment = [
        ("PGSTEER_ROUTING_READ_FUNCTIONS", "app.vol*"),
        ("PGSTEER_ROUTING_WRITE_FUNCTIONS", "app.stable,pg_catalog.md5"),
    ];
    let proxy = Running::start_with(&sandbox, &["--max-lag", "1h"], &environment).await;
    let client = proxy.client().await;
    client.batch_execute(SET_UP).await.unwrap();
    settled(&proxy, &client).await;
    for (sql, reads) in [
        ("SELECT app.volatile()", true),
        ("SELECT app.stable()", false),
        ("SELECT md5('a')", false),
        ("SELECT app.twice(1)", true),
    ] {
        settled(&proxy, &client).await;
        assert_eq!(runs_on_standby(&proxy, &client, sql).await, reads, "{sql}");
    }
}

/// What people are told is what is done.
#[tokio::test]
async fn explain_knows_the_database() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute(SET_UP).await.unwrap();
    let texts: Vec<&str> = CASES.iter().map(|(_, sql, _)| *sql).collect();
    let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_pgsteer"))
        .args(["explain", "--connect", &sandbox.node(0).conninfo(), "--file", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(texts.join(";\n").as_bytes()).await.unwrap();
    let output = child.wait_with_output().await.unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    for (hazard, sql, reads) in CASES {
        let (_, rest) =
            told.split_once(&format!("{sql}\n    goes to     ")).unwrap_or_else(|| panic!("{sql}\n{told}"));
        assert_eq!(rest.starts_with("a standby"), *reads, "{hazard} {sql}: {}", rest.lines().next().unwrap());
    }
}
