//! Statements of ParadeDB's search, against servers that have the extension's names: its operators and builders, declared volatile as
//! some of them are, the cache that a tokenizer's first use writes to, and an index that can't be read on standbys.
//!
//! The extension itself is not to be had here: what the catalogue says of it is put there by hand.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::Sandbox;
use running::{Running, eventually};
use tokio_postgres::Client;

const EXTENSION: &str = "
    SET allow_system_table_mods = on;
    CREATE SCHEMA paradedb; CREATE SCHEMA pdb;
    INSERT INTO pg_extension VALUES (99999, 'pg_search', 10, 'paradedb'::regnamespace, false, '0.20.0', NULL, NULL);
    CREATE TABLE items (id int PRIMARY KEY, description text, category text);
    INSERT INTO items VALUES (1, 'running shoes', 'footwear'), (2, 'keyboard', 'electronics');
    CREATE FUNCTION paradedb.finds(text, text) RETURNS bool LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1 LIKE ''%'' || $2 || ''%''; END';
    CREATE OPERATOR @@@ (LEFTARG = text, RIGHTARG = text, FUNCTION = paradedb.finds);
    CREATE OPERATOR ||| (LEFTARG = text, RIGHTARG = text, FUNCTION = paradedb.finds);
    CREATE OPERATOR === (LEFTARG = text, RIGHTARG = text, FUNCTION = paradedb.finds);
    CREATE FUNCTION pdb.score(int) RETURNS real LANGUAGE plpgsql STABLE AS 'BEGIN RETURN 1; END';
    CREATE FUNCTION pdb.snippet(text, start_tag text DEFAULT '<b>') RETURNS text LANGUAGE plpgsql STABLE AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION pdb.agg_fn(text) RETURNS text LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN $1; END';
    CREATE FUNCTION paradedb.version_info() RETURNS text LANGUAGE plpgsql VOLATILE AS 'BEGIN RETURN ''0.20.0''; END';
    CREATE FUNCTION paradedb.merge_lock_garbage_collect(text) RETURNS int LANGUAGE plpgsql VOLATILE AS
        'BEGIN INSERT INTO items VALUES (random() * 1000000, $1, $1); RETURN 1; END';
    CREATE TABLE paradedb._typmod_cache (typmod text PRIMARY KEY);
    CREATE FUNCTION pdb.tokenize(text) RETURNS text LANGUAGE plpgsql VOLATILE AS '
        BEGIN
            IF NOT EXISTS (SELECT FROM paradedb._typmod_cache WHERE typmod = $1) THEN
                INSERT INTO paradedb._typmod_cache VALUES ($1);
            END IF;
            RETURN $1;
        END';
    CREATE FUNCTION paradedb.finds_where_it_may(text, text) RETURNS bool LANGUAGE plpgsql VOLATILE AS '
        BEGIN
            IF pg_is_in_recovery() THEN
                RAISE SQLSTATE ''0A000'' USING MESSAGE = ''pg_search: replicas are not supported'';
            END IF;
            RETURN true;
        END';
    CREATE OPERATOR &&& (LEFTARG = text, RIGHTARG = text, FUNCTION = paradedb.finds_where_it_may)";

async fn metric(proxy: &Running, name: &str, label: (&str, &str)) -> f64 {
    proxy.metric(name, &[label]).await
}

async fn to_standbys(proxy: &Running) -> f64 {
    metric(proxy, "pgsteer_statements_routed_total", ("side", "standby")).await
}

/// Whether it was sent to a standby, and what it gave.
async fn run(proxy: &Running, client: &Client, sql: &str) -> (bool, Vec<String>) {
    // It is kept: its Close, which goes to a standby as well, might be counted with the next one.
    let before = to_standbys(proxy).await;
    let statement = client.prepare(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let statement = Box::leak(Box::new(statement));
    let rows = client.query(&*statement, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    let rows = rows.iter().map(|row| row.get(0)).collect();
    (to_standbys(proxy).await > before, rows)
}

async fn cluster() -> (Sandbox, Running, Client) {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute(EXTENSION).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let apart = [("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
    let proxy = Running::start_with(&sandbox, &["--max-lag", "1h"], &apart).await;
    let client = proxy.client().await;
    // The catalogue is asked behind the first statement that is not known to be a read.
    eventually("the catalogue is known", async || {
        run(&proxy, &client, "SELECT paradedb.version_info()").await.0
    })
    .await;
    (sandbox, proxy, client)
}

#[tokio::test]
async fn searches_are_reads_whatever_their_volatility() {
    let (_sandbox, proxy, client) = cluster().await;
    for sql in [
        "SELECT description FROM items WHERE description @@@ 'shoes'",
        "SELECT pdb.snippet(description, start_tag => '<i>') FROM items WHERE description ||| 'shoes' ORDER BY pdb.score(id) DESC, id LIMIT 5",
        "SELECT description FROM items WHERE category === 'footwear'",
        "SELECT pdb.agg_fn(description) FROM items WHERE description @@@ 'shoes'",
        "WITH text AS (SELECT id, rank() OVER (ORDER BY pdb.score(id)) FROM items WHERE description ||| 'shoes') \
         SELECT description FROM text JOIN items USING (id)",
    ] {
        assert_eq!(run(&proxy, &client, sql).await, (true, vec!["running shoes".to_owned()]), "{sql}");
    }
    // Those that write are none, whatever schema they are of.
    let before = to_standbys(&proxy).await;
    client.query("SELECT paradedb.merge_lock_garbage_collect('x')", &[]).await.unwrap();
    client.batch_execute("CREATE INDEX ON items (description)").await.unwrap();
    assert!(to_standbys(&proxy).await <= before);
}

/// The client sees one answer; the shape is for the primary meanwhile, and for standbys again when it has been forgotten.
#[tokio::test]
async fn a_tokenizers_first_use_is_done_by_the_primary_and_forgotten() {
    let (sandbox, proxy, client) = cluster().await;
    let sql = "SELECT pdb.tokenize('stemmer=english')";
    let before = metric(&proxy, "pgsteer_retries_total", ("cause", "learned")).await;
    assert_eq!(run(&proxy, &client, sql).await.1, ["stemmer=english"]);
    let direct = sandbox.connect(0).await.unwrap();
    let kept = direct.query_one("SELECT count(*) FROM paradedb._typmod_cache", &[]).await.unwrap();
    assert_eq!(kept.get::<_, i64>(0), 1, "the primary has run it once");
    assert!(metric(&proxy, "pgsteer_retries_total", ("cause", "learned")).await >= before);
    let (_, learned) = proxy.get("/learned").await.unwrap();
    assert!(learned.contains("writes"), "{learned}");
    sandbox.wait_caught_up().await.unwrap();
    assert!(!run(&proxy, &client, sql).await.0, "it is remembered");
    eventually("it is tried again", async || run(&proxy, &client, sql).await.0).await;
    assert_eq!(run(&proxy, &client, sql).await, (true, vec!["stemmer=english".to_owned()]));
}

/// Learned once for all statements of search, in this database.
#[tokio::test]
async fn search_that_standbys_refuse_is_for_the_primary() {
    let (_sandbox, proxy, client) = cluster().await;
    let found = ["running shoes".to_owned(), "keyboard".to_owned()].to_vec();
    assert_eq!(
        run(&proxy, &client, "SELECT description FROM items WHERE description &&& 'a' ORDER BY id").await.1,
        found
    );
    let (_, learned) = proxy.get("/learned").await.unwrap();
    assert!(learned.contains("any statement of search"), "{learned}");
    let other =
        run(&proxy, &client, "SELECT description FROM items WHERE description @@@ 'shoes' LIMIT 1").await;
    assert_eq!(other, (false, vec!["running shoes".to_owned()]));
    // What does not search goes on being read there.
    eventually("other reads go to the standby", async || {
        run(&proxy, &client, "SELECT description FROM items ORDER BY id LIMIT 1").await.0
    })
    .await;
}
