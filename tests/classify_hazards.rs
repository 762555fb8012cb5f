//! The hazards of read/write splitting, one table row for each form: what a text needs and what it leaves behind.
//!
//! Invariant: rows carry the number of their hazard (S statements, F functions, T relations, G session state,
//! M found by measuring, L lexical). Must not know: how the classifier works.

use std::time::{Duration, Instant};

use pgsteer::classify::{
    Access, AccessMode, Classification, Dialect, Hint, PinReason, Reason, SessionEffect,
    StandardConformingStrings, Target, TransactionEffect, classify, shape_hash,
};
use proptest::prelude::*;

fn on(sql: &str) -> Classification {
    classify(sql.as_bytes(), &Dialect::default())
}

/// `R` read, `W` write; then the pin's label, if any; then what it does to settings and prepared names, if anything.
const TABLE: &[(&str, &str, &str)] = &[
    ("S01", "INSERT INTO t VALUES (1)", "W"),
    ("S01", "insert into t(a, b) select 1, 2 returning *", "W"),
    ("S01", "UPDATE t SET a = 1", "W"),
    ("S01", "DELETE FROM t", "W"),
    ("S01", "MERGE INTO t USING s ON t.a = s.a WHEN MATCHED THEN DELETE", "W"),
    ("S02", "WITH x AS (INSERT INTO t VALUES (1) RETURNING a) SELECT * FROM x", "W"),
    ("S02", "WITH x AS (SELECT 1), y AS (DELETE FROM t RETURNING *) SELECT * FROM y", "W"),
    ("S02", "WITH x AS (WITH y AS (UPDATE t SET a=1 RETURNING a) SELECT * FROM y) SELECT * FROM x", "W"),
    ("S02", "WITH x AS NOT MATERIALIZED (SELECT 1) DELETE FROM t", "W"),
    ("S02", "WITH x(a) AS MATERIALIZED (SELECT 1) SELECT a FROM x", "R"),
    ("S02", "WITH x(a, b) AS NOT MATERIALIZED (SELECT 1, 2), y(c) AS (VALUES (3)) SELECT * FROM x, y", "R"),
    ("S02", "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n+1 FROM x WHERE n < 5) SELECT * FROM x", "R"),
    ("S02", "WITH x AS (SELECT 1) (SELECT 1) ORDER BY evil(1)", "W"),
    ("S02", "WITH x AS (SELECT 1) (SELECT 1) LIMIT evil(1)", "W"),
    ("S02", "WITH evil(a) AS (SELECT 1) SELECT evil(2)", "W"),
    ("S03", "SELECT * INTO x FROM t", "W"),
    ("S03", "SELECT 1 INTO TEMP x", "W temp_object"),
    ("S03", "SELECT 1 INTO TEMPORARY TABLE x", "W temp_object"),
    ("S03", "SELECT 1 INTO LOCAL TEMP x", "W temp_object"),
    ("S03", "SELECT 1 AS not INTO t", "W"),
    ("S03", "SELECT t.as INTO x FROM t", "W"),
    ("S03", "SELECT 1 AS as INTO x", "W"),
    ("S03", "SELECT 1.INTO x", "W"),
    ("S03", "SELECT 1INTO x", "W"),
    ("S03", "SELECT 1 AS into", "R"),
    ("S03", "SELECT t.into FROM t", "R"),
    ("S03", "SELECT \"into\" FROM t", "R"),
    ("S03", "CREATE TABLE x AS SELECT 1", "W"),
    ("S03", "CREATE MATERIALIZED VIEW x AS SELECT 1", "W"),
    ("S03", "REFRESH MATERIALIZED VIEW x", "W"),
    ("S04", "SELECT * FROM t FOR UPDATE", "W"),
    ("S04", "SELECT * FROM t FOR NO KEY UPDATE NOWAIT", "W"),
    ("S04", "SELECT * FROM t FOR SHARE SKIP LOCKED", "W"),
    ("S04", "SELECT * FROM t FOR KEY SHARE OF t", "W"),
    ("S04", "SELECT * FROM (SELECT * FROM t FOR UPDATE) x", "W"),
    ("S04", "SELECT EXISTS ((SELECT 1 FROM t) FOR UPDATE)", "W"),
    ("S04", "(SELECT * FROM t) FOR SHARE", "W"),
    ("S04", "SELECT 1 UNION (SELECT a FROM t FOR/**/UPDATE)", "W"),
    ("S04", "SELECT substring(a FROM 1 FOR 2) FROM t", "R"),
    ("S05", "CREATE TABLE t (a int)", "W"),
    ("S05", "ALTER TABLE t ADD b int", "W"),
    ("S05", "DROP TABLE t", "W"),
    ("S05", "GRANT SELECT ON t TO u", "W"),
    ("S05", "REVOKE ALL ON t FROM u", "W"),
    ("S05", "COMMENT ON TABLE t IS 'x'", "W"),
    ("S05", "SECURITY LABEL ON TABLE t IS 'x'", "W"),
    ("S05", "REASSIGN OWNED BY a TO b", "W"),
    ("S05", "IMPORT FOREIGN SCHEMA a FROM SERVER b INTO c", "W"),
    ("S05", "CREATE RULE r AS ON INSERT TO t DO (DELETE FROM a; DELETE FROM b)", "W"),
    ("S06", "TRUNCATE t", "W"),
    ("S07", "COPY t FROM STDIN", "W"),
    ("S07", "COPY t (a, b) FROM '/tmp/x'", "W"),
    ("S07", "COPY t FROM PROGRAM 'cat'", "W"),
    ("S07", "COPY t FROM STDIN WHERE set_config('a.b', 'c', false) = 'c'", "W set"),
    ("S08", "COPY t TO STDOUT", "R"),
    ("S08", "COPY s.t (a, b) TO STDOUT WITH (FORMAT csv, HEADER, FORCE_QUOTE (a))", "R"),
    ("S08", "COPY (SELECT a FROM t WHERE lower(b) = 'x') TO STDOUT", "R"),
    ("S08", "COPY (SELECT evil()) TO STDOUT", "W"),
    ("S08", "COPY (DELETE FROM t RETURNING *) TO STDOUT", "W"),
    ("S08", "COPY (SELECT * FROM t FOR UPDATE) TO STDOUT", "W"),
    ("S08", "COPY t TO '/tmp/x'", "W"),
    ("S08", "COPY t TO PROGRAM 'cat'", "W"),
    ("S08", "COPY pg_stat_activity TO STDOUT", "W"),
    ("S08", "COPY pg_temp.x TO STDOUT", "W temp_object"),
    ("S09", "EXPLAIN SELECT 1", "R"),
    ("S09", "EXPLAIN (COSTS off, FORMAT json) SELECT count(*) FROM t", "R"),
    ("S09", "EXPLAIN ANALYZE VERBOSE SELECT 1", "R"),
    ("S09", "EXPLAIN (ANALYZE false) SELECT 1", "R"),
    ("S09", "EXPLAIN (SELECT 1)", "R"),
    ("S09", "EXPLAIN (ANALYZE) INSERT INTO t VALUES (1)", "W"),
    ("S09", "EXPLAIN ANALYZE SELECT evil()", "W"),
    ("S09", "EXPLAIN ANALYZE WITH x AS (DELETE FROM t RETURNING 1) SELECT 1", "W"),
    ("S09", "EXPLAIN INSERT INTO t VALUES (1)", "W"),
    ("S09", "EXPLAIN EXECUTE x", "W"),
    ("S09", "EXPLAIN ANALYZE CREATE TEMP TABLE x AS SELECT 1", "W temp_object"),
    ("S09", "EXPLAIN ANALYZE SELECT * FROM t FOR UPDATE", "W"),
    ("S10", "CALL p(1)", "W unseen"),
    ("S10", "DO $$ BEGIN PERFORM 1; END $$", "W unseen"),
    ("S11", "PREPARE x AS SELECT 1", "W sql_prepare"),
    ("S11", "EXECUTE x(1)", "W"),
    ("S11", "DEALLOCATE ALL", "W deallocate_all"),
    ("S12", "DECLARE c CURSOR FOR SELECT 1", "W"),
    ("S12", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "W hold_cursor"),
    ("S12", "DECLARE c BINARY SCROLL CURSOR WITHOUT HOLD FOR SELECT 1", "W"),
    ("S12", "FETCH 10 FROM c", "W"),
    ("S12", "MOVE c", "W"),
    ("S12", "CLOSE c", "W"),
    ("S13", "LISTEN x", "W listen"),
    ("S13", "UNLISTEN *", "W"),
    ("S13", "NOTIFY x, 'y'", "W"),
    ("S14", "LOCK TABLE t IN ACCESS SHARE MODE", "W"),
    ("S15", "VACUUM t", "W"),
    ("S15", "ANALYZE t", "W"),
    ("S15", "CLUSTER t", "W"),
    ("S15", "REINDEX TABLE t", "W"),
    ("S16", "CHECKPOINT", "W"),
    ("S17", "ALTER SYSTEM SET work_mem = 1", "W"),
    ("S18", "LOAD 'auto_explain'", "W load"),
    ("S19", "PREPARE TRANSACTION 'x'", "W"),
    ("S19", "COMMIT PREPARED 'x'", "W"),
    ("S19", "ROLLBACK PREPARED 'x'", "W"),
    ("S20", "SET CONSTRAINTS ALL DEFERRED", "W"),
    ("S21", "DISCARD ALL", "W discard_all"),
    ("S21", "RESET ALL", "W reset_all"),
    ("S22", "SELECT 1; SELECT 2", "R"),
    ("S22", "SELECT 1; DELETE FROM t; SELECT 2", "W"),
    ("S22", ";;", "R"),
    ("S22", "", "R"),
    ("S22", "SELECT 1; SET x = 1; LISTEN y", "W listen unknown"),
    ("S23", "/* a /* b */ */ SELECT 1", "R"),
    ("S23", "/* a */ -- b\n DELETE FROM t", "W"),
    ("S23", "-- a\rDELETE FROM t", "W"),
    ("S23", "SELECT 1 /* /* */ ; DELETE FROM t", "W"),
    ("S23", "SELECT $$;DELETE FROM t$$", "R"),
    ("S23", "SELECT $a$ $b$ $$ evil( $a$", "R"),
    ("S23", "SELECT E'\\'; DELETE FROM t; --'", "R"),
    ("S23", "SELECT '\\'; DELETE FROM t; --'", "W"),
    ("S23", "SELECT U&'\\0061'", "R"),
    ("S23", "SELECT E'a'\n'\\' INTO t --'", "R"),
    ("S24", "SHOW search_path", "R"),
    ("S24", "SHOW TIME ZONE", "R"),
    ("S24", "SHOW TRANSACTION ISOLATION LEVEL", "R"),
    ("S24", "SHOW server_version", "R"),
    ("S24", "SHOW transaction_read_only", "W"),
    ("S24", "SHOW in_hot_standby", "W"),
    ("S24", "SHOW data_directory", "W"),
    ("S24", "SHOW ALL", "W"),
    ("S24", "SHOW pool_nodes; DELETE FROM t", "W"),
    ("S24", "SHOW;COMMIT", "W"),
    ("S24", "SELECT current_setting('transaction_read_only')", "W"),
    ("S25", "BEGIN", "W"),
    ("S26", "SET TRANSACTION SNAPSHOT '0-1'", "W"),
    ("S27", "SAVEPOINT a", "W"),
    ("S27", "ROLLBACK TO a", "W"),
    ("S27", "RELEASE a", "W"),
    ("S29", "VALUES (1, 'a'), (2, 'b')", "R"),
    ("S29", "VALUES (evil(1))", "W"),
    ("S29", "TABLE t", "R"),
    ("S29", "((SELECT 1) UNION ALL (SELECT 2)) ORDER BY 1 LIMIT 1", "R"),
    ("S29", "(INSERT INTO t VALUES (1))", "W"),
    ("S29", "(evil)", "W"),
    ("S30", "SELEC 1", "W unseen"),
    ("S30", "WAIT FOR LSN '0/1'", "W unseen"),
    ("S30", "SELECT * FROM json_table(a, '$' COLUMNS (b int PATH evil(1))) x", "W"),
    ("S30", "SELECT (1", "W"),
    ("S30", "SELECT 1)", "W"),
    ("S30", "SELECT {fn x}", "W"),
    ("S31", "CREATE DATABASE x", "W"),
    ("S31", "DROP SUBSCRIPTION x", "W"),
    ("F01", "SELECT nextval('s')", "W sequence"),
    ("F01", "SELECT setval('s', 1)", "W sequence"),
    ("F01", "SELECT currval('s')", "W sequence"),
    ("F01", "SELECT lastval()", "W sequence"),
    ("F01", "SELECT pg_get_serial_sequence('t', 'a')", "R"),
    ("F02", "SELECT txid_current()", "W"),
    ("F02", "SELECT pg_current_xact_id()", "W"),
    ("F02", "SELECT pg_xact_status('1')", "W"),
    ("F03", "SELECT pg_advisory_lock(1)", "W advisory_lock"),
    ("F03", "SELECT pg_try_advisory_lock_shared(1, 2)", "W advisory_lock"),
    ("F03", "SELECT pg_catalog.pg_advisory_lock(1)", "W advisory_lock"),
    ("F03", "SELECT \"pg_advisory_lock\"(1)", "W advisory_lock"),
    ("F03", "SELECT PG_ADVISORY_LOCK/**/ (1)", "W advisory_lock"),
    ("F03", "SELECT pg_advisory_xact_lock(1)", "W"),
    ("F03", "SELECT pg_advisory_unlock_all()", "W advisory_lock"),
    ("F04", "SELECT set_config('a', 'b', false)", "W set"),
    ("F04", "WITH x AS (SELECT set_config($1, $2, $3)) SELECT 1", "W unknown"),
    ("F04", "INSERT INTO t SELECT set_config('a', 'b', true)", "W"),
    ("F04", "UPDATE pg_settings SET setting = 'x' WHERE name = 'y'", "W unknown"),
    ("F04", "UPDATE pg_catalog.pg_settings SET setting = 'x'", "W unknown"),
    ("F04", "SELECT U&\"set\\005fconfig\"('a', 'b', false)", "W unseen"),
    ("F05", "SELECT current_setting('search_path')", "R"),
    ("F05", "SELECT pg_catalog.current_setting ( /* a */ 'app.tenant', true)::int", "R"),
    ("F05", "SELECT current_setting('port')", "W"),
    ("F05", "SELECT \"current_setting\"('PORT')", "W"),
    ("F05", "SELECT current_setting('port', true)", "W"),
    ("F05", "SELECT current_setting($$port$$)", "W"),
    ("F05", "SELECT current_setting($a$port$a$)", "W"),
    ("F05", "SELECT current_setting($1)", "W"),
    ("F05", "SELECT current_setting('po' || 'rt')", "W"),
    ("F05", "SELECT current_setting('po'\n'rt')", "W"),
    ("F05", "SELECT current_setting(E'po\\x72t')", "W"),
    ("F05", "SELECT current_setting(U&'po\\0072t')", "W"),
    ("F05", "SELECT current_setting(N'port')", "W"),
    ("F05", "SELECT current_setting(('port'))", "W"),
    ("F05", "SELECT current_setting('port'::text)", "W"),
    ("F05", "SELECT current_setting(a) FROM t", "W"),
    ("F05", "SELECT current_setting((SELECT a FROM t))", "W"),
    ("F05", "SELECT current_setting(VARIADIC ARRAY['port'])", "W"),
    ("F05", "SELECT current_setting(setting_name => 'port')", "W"),
    ("F05", "SELECT current_setting('search_path'), current_setting('cluster_name')", "W"),
    ("F06", "SELECT setseed(0.5)", "W seed"),
    ("F07", "SELECT pg_notify('a', 'b')", "W"),
    ("F08", "SELECT lo_create(0)", "W"),
    ("F08", "SELECT lo_open(1, 2)", "W large_object"),
    ("F08", "SELECT lo_unlink(1)", "W"),
    ("F09", "SELECT pg_switch_wal()", "W"),
    ("F09", "SELECT pg_replication_origin_session_setup('x')", "W other"),
    ("F09", "SELECT pg_create_physical_replication_slot('x')", "W"),
    ("F10", "SELECT pg_is_in_recovery()", "W"),
    ("F10", "SELECT pg_last_wal_replay_lsn()", "W"),
    ("F10", "SELECT pg_current_wal_lsn()", "W"),
    ("F10", "SELECT pg_promote()", "W"),
    ("F11", "SELECT pg_terminate_backend(1)", "W"),
    ("F11", "SELECT pg_backend_pid()", "W backend_pid"),
    ("F11", "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()", "W"),
    ("F12", "SELECT * FROM pg_stat_activity", "W"),
    ("F12", "SELECT * FROM pg_catalog.\"pg_locks\"", "W"),
    ("F12", "SELECT * FROM PG_STAT_REPLICATION", "W"),
    ("F12", "SELECT * FROM pg_prepared_statements", "W"),
    ("F12", "SELECT pg_stat_reset()", "W"),
    ("F13", "SELECT pg_read_file('x')", "W"),
    ("F13", "SELECT pg_reload_conf()", "W"),
    ("F14", "SELECT dblink_connect('a', 'b')", "W other"),
    ("F14", "SELECT * FROM dblink('a', 'b') AS t(a int)", "W other"),
    ("F15", "SELECT query_to_xml('DELETE FROM t', true, true, '')", "W"),
    ("F15", "SELECT table_to_xml('t', true, true, '')", "W"),
    ("F15", "SELECT * FROM ts_stat('SELECT 1')", "W"),
    ("F15", "SELECT * FROM crosstab('SELECT 1')", "W"),
    ("F16", "SELECT clock_timestamp(), random(), gen_random_uuid(), pg_sleep(1)", "R"),
    ("F17", "SELECT now(), CURRENT_TIMESTAMP, CURRENT_TIMESTAMP(3), version()", "R"),
    ("F17", "SELECT inet_server_addr()", "W"),
    ("F17", "SELECT pg_postmaster_start_time()", "W"),
    ("F18", "SELECT evil()", "W"),
    ("F18", "SELECT public.lower('x')", "W"),
    ("F18", "SELECT db.pg_catalog.lower('x')", "W"),
    ("F18", "SELECT pg_catalog.lower('x')", "R"),
    ("F18", "SELECT \"Lower\"('x')", "W"),
    ("F18", "SELECT * FROM evil(1)", "W"),
    ("F18", "SELECT * FROM a, evil(1)", "W"),
    ("F18", "SELECT * FROM a JOIN evil(1) ON true", "W"),
    ("F18", "SELECT * FROM a CROSS JOIN LATERAL evil(a.b) c(d)", "W"),
    ("F18", "SELECT * FROM ROWS FROM (lower('a'), evil(1)) AS t(a, b)", "W"),
    ("F18", "SELECT * FROM a JOIN b ON x = ARRAY[1, evil(2)]", "W"),
    ("F18", "SELECT DISTINCT ON (a) evil(b) FROM t", "W"),
    ("F18", "SELECT a OPERATOR(pg_catalog.+) evil(b) FROM t", "W"),
    ("F18", "SELECT a OPERATOR(pg_catalog.+) lower(b) FROM t", "R"),
    ("F18", "SELECT a AT TIME ZONE evil(b) FROM t", "W"),
    ("F18", "SELECT a IS DISTINCT FROM evil(b) FROM t", "W"),
    ("F18", "SELECT a IS DISTINCT FROM b, c evil(b)", "W"),
    ("F18", "SELECT a LIKE b ESCAPE evil(c) FROM t", "W"),
    ("F18", "SELECT over(1)", "W"),
    ("F18", "SELECT filter(1)", "W"),
    ("F18", "SELECT operator(x)", "W"),
    ("F18", "SELECT \"coalesce\"(1)", "W"),
    ("F18", "SELECT \"numeric\"(evil(1))", "W"),
    ("F18", "SELECT xmlelement(name a, evil(1))", "W"),
    ("F18", "SELECT * FROM xmltable('a' PASSING evil(b) COLUMNS c int)", "W"),
    ("F18", "SELECT * FROM t TABLESAMPLE evil(10)", "W"),
    ("F18", "SELECT * FROM t TABLESAMPLE system (10) REPEATABLE (1)", "R"),
    ("F18", "SELECT 1 LIMIT evil(1)", "W"),
    ("F18", "SELECT 1 GROUP BY rollup(a), cube(b, c), GROUPING SETS ((a), rollup(b), ())", "R"),
    ("F18", "SELECT cube(1)", "W"),
    ("F18", "SELECT ($1).evil(1)", "W"),
    ("F18", "SELECT CASE WHEN evil(1) THEN 1 END", "W"),
    ("F19", "SELECT a::evil(3) FROM t", "W"),
    ("T01", "CREATE TEMP TABLE x (a int)", "W temp_object"),
    ("T01", "CREATE TEMPORARY TABLE x AS SELECT 1", "W temp_object"),
    ("T01", "CREATE LOCAL TEMP TABLE x (a int)", "W temp_object"),
    ("T02", "CREATE OR REPLACE TEMP VIEW x AS SELECT 1", "W temp_object"),
    ("T02", "CREATE TEMP SEQUENCE x", "W temp_object"),
    ("T02", "CREATE FUNCTION pg_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "W temp_object"),
    ("T02", "SELECT * FROM pg_temp.x", "W temp_object"),
    ("T02", "SELECT * FROM \"pg_temp_3\".x", "W temp_object"),
    ("T03", "CREATE UNLOGGED TABLE x (a int)", "W"),
    ("T04", "SELECT * FROM pg_catalog.pg_class c WHERE pg_catalog.pg_table_is_visible(c.oid)", "R"),
    ("T04", "SELECT * FROM information_schema.columns", "R"),
    ("T04", "SELECT * FROM pg_stats", "R"),
    ("G01", "SET search_path = a, b", "W set"),
    ("G01", "SET SESSION work_mem = '1MB'", "W set"),
    ("G01", "SET LOCAL work_mem = '1MB'", "W"),
    ("G01", "SET ROLE x", "W set"),
    ("G01", "SET SESSION AUTHORIZATION x", "W unknown"),
    ("G01", "SET SESSION CHARACTERISTICS AS TRANSACTION READ ONLY", "W unknown"),
    ("G01", "SET TIME ZONE 'UTC'", "W unknown"),
    ("G01", "SET app.tenant = '1'", "W set"),
    ("G01", "RESET work_mem", "W reset"),
    ("G01", "SET work_mem TO DEFAULT", "W reset"),
    ("G01", "SET work_mem = DEFAULT", "W reset"),
    ("G01", "SET \"app\".tenant = '1'", "W unknown"),
    ("G01", "SET NAMES 'UTF8'", "W unknown"),
    ("G01", "SET XML OPTION DOCUMENT", "W unknown"),
    ("G01", "SET x = 1; SET y = 2", "W unknown"),
    ("G01", "RESET SESSION AUTHORIZATION", "W unknown"),
    ("G01", "SET SEED = 0.5", "W seed unknown"),
    ("G05", "DEALLOCATE x", "W deallocate"),
    ("G05", "DEALLOCATE PREPARE \"X\"", "W deallocate"),
    ("F03", "SELECT (1).pg_try_advisory_lock", "W advisory_lock"),
    ("F06", "SELECT (0.5::float8).setseed", "W seed"),
    ("F03", "SELECT x.pg_try_advisory_lock FROM generate_series(1::int8, 1) x", "W advisory_lock"),
    ("F18", "SELECT ($1).unknown", "W"),
    ("F18", "SELECT $1.unknown", "W"),
    ("F18", "SELECT a[1].unknown FROM t", "W"),
    ("F18", "SELECT (a).b.unknown FROM t", "W"),
    ("F18", "SELECT ('a'::text).upper, (ARRAY[1]).cardinality", "R"),
    ("F04", "SELECT set_config('a', $1, true)", "W"),
    ("F04", "SELECT set_config('a', $1::text, FALSE)", "W set"),
    ("F04", "SELECT set_config('a', $1, $2)", "W unknown"),
    ("F04", "SELECT set_config('a' || 'b', 'c', true)", "W unknown"),
    ("G18", "SELECT pg_export_snapshot()", "W exported_snapshot"),
    ("M13", "SELECT 'x'::pdb.ngram(3,3)", "W"),
    ("M13", "SELECT CAST('x' AS pdb.ngram(3,3))", "W"),
    ("M14", "SELECT id, pdb.score(id) FROM t WHERE a @@@ 'x' ORDER BY pdb.score(id) DESC LIMIT 5", "R"),
    ("M14", "SELECT paradedb.snippet(a) FROM t WHERE id @@@ pdb.parse('a:x')", "R"),
    ("M14", "SELECT pdb.evil(1)", "W"),
    ("M14", "SELECT a FROM t WHERE a ||| 'x'::pdb.boost(2)", "R"),
    ("M15", "SELECT 1 FROM t WHERE a @@@ 'x' AND b ||| 'y' AND c &&& 'z' AND d === 'q' AND e ### 'r'", "R"),
    ("M15", "SELECT a <=> b, a <-> b, a <#> b, a ## b, a ##> b, a ->> 'x', a #> '{b}', a ? 'c' FROM t", "R"),
    ("M15", "SELECT a *-- comment evil(\n b FROM t", "R"),
    ("M15", "SELECT a @/* evil( */ b FROM t", "R"),
    ("L01", "SELECT a b(c) FROM t", "W"),
    ("L01", "SELECT * FROM t a(b, c)", "R"),
    ("L01", "SELECT * FROM (VALUES (1, 2)) AS v(a, b)", "R"),
    ("L01", "SELECT * FROM generate_series(1, 3) WITH ORDINALITY s(a, b)", "R"),
    ("L01", "SELECT * FROM json_to_recordset('[]') AS x(a numeric(10,2), b varchar(3))", "R"),
    ("L01", "SELECT a FROM t JOIN u USING (a) LEFT JOIN (SELECT 1 AS a) v(a) ON (t.a = v.a)", "R"),
    ("L02", "SELECT count(*) FILTER (WHERE a > 0) OVER (PARTITION BY (b) ORDER BY (c)) FROM t", "R"),
    ("L02", "SELECT percentile_cont(0.5) WITHIN GROUP (ORDER BY a) FROM t", "R"),
    ("L02", "SELECT rank() OVER w FROM t WINDOW w AS (PARTITION BY a)", "R"),
    ("L03", "SELECT a::numeric(10,2), CAST(b AS character varying(10)), c::timestamp(3) with time zone", "R"),
    ("L03", "SELECT interval '1 day', date '2020-01-01', numeric(3,1) '1.5', bit(3) '101'", "R"),
    (
        "L04",
        "SELECT coalesce(a, b), nullif(a, 1), greatest(a, 2), extract(year FROM d), trim(BOTH 'x' FROM a)",
        "R",
    ),
    ("L04", "SELECT a FROM t WHERE b IN (1, 2) AND c = ANY ($1) AND NOT (d) AND EXISTS (SELECT 1)", "R"),
    ("L05", "SELECT \u{e9}t\u{e9} FROM t", "R"),
    ("L05", "SELECT now\u{e9}() FROM t", "W"),
    ("L06", "SELECT 'unterminated", "W"),
    ("L06", "SELECT \"unterminated", "W"),
    ("L06", "SELECT $a$ unterminated", "W"),
    ("L06", "SELECT 1 /* unterminated", "W"),
    ("L06", "SELECT E'\\", "W"),
    ("L06", "SELECT 1\0", "W"),
];

/// F18: lists of columns are no calls: what runs nothing unknown is not asked about afterwards.
#[test]
fn f18_lists_of_columns_are_no_calls() {
    for (sql, unseen) in [
        ("INSERT INTO t (a, b) VALUES (1, 2)", false),
        ("INSERT INTO s.t (a) SELECT 1 ON CONFLICT DO NOTHING", false),
        ("INSERT INTO t AS x (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET (a, b) = (1, 2)", false),
        ("UPDATE t SET (a, b) = (1, 2) WHERE c = 3", false),
        ("INSERT INTO t (a) VALUES (unknown(1))", true),
        ("INSERT INTO t (a) SELECT unknown(1)", true),
        ("INSERT INTO t SELECT 1 FROM a JOIN b ON conflict(1)", true),
        ("UPDATE t SET a = unknown(1)", true),
        ("SELECT set(1)", true),
    ] {
        assert_eq!(on(sql).unseen, unseen, "{sql}");
    }
}

/// Process ids are looked for only where sessions may be named by them.
#[test]
fn sql_that_names_processes_says_so() {
    for sql in [
        "SELECT pg_cancel_backend(1)",
        "SELECT pg_terminate_backend(1)",
        "SELECT pg_blocking_pids(1)",
        "SELECT 1 FROM pg_stat_activity WHERE pid = 1",
        "SELECT 1 FROM pg_catalog.pg_locks WHERE pid = 1",
    ] {
        assert!(on(sql).names_processes, "{sql}");
    }
    for sql in ["SELECT pid FROM t WHERE pid = 1", "SELECT pg_backend_pid()", "SELECT 1"] {
        assert!(!on(sql).names_processes, "{sql}");
    }
}

/// G05: what must be run where the client's statements have the client's names.
#[test]
fn sql_that_names_prepared_statements_says_so() {
    for sql in [
        "PREPARE s AS SELECT 1",
        "EXECUTE s",
        "execute s (1); SELECT 1",
        "EXPLAIN ANALYZE EXECUTE s (1)",
        "EXPLAIN (COSTS OFF) EXECUTE s",
        "CREATE TEMP TABLE t AS EXECUTE s",
        "CREATE TABLE IF NOT EXISTS a.t (x, y) WITH (fillfactor = 50) AS EXECUTE s(1, 2) WITH NO DATA",
        "DEALLOCATE s",
        "DEALLOCATE PREPARE s",
        "SELECT * FROM pg_prepared_statements",
        "SELECT count(*) FROM pg_catalog.\"pg_prepared_statements\" p WHERE p.from_sql",
        "SELECT name FROM pg_catalog.pg_prepared_statement()",
        "DO $$ BEGIN PERFORM FROM PG_prepared_statements; END $$",
        "PREPARE transaction AS SELECT 1",
    ] {
        assert!(on(sql).names_prepared, "{sql}");
    }
    for sql in [
        "PREPARE TRANSACTION 'x'",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "SELECT * FROM pg_prepared_xacts",
        "CREATE TRIGGER t AFTER INSERT ON t EXECUTE FUNCTION f()",
        "GRANT EXECUTE ON FUNCTION f TO public",
        "SELECT 1 AS execute",
        "DO $$ BEGIN PERFORM 1; END $$; SELECT 'pg_prepared_statements'",
    ] {
        assert!(!on(sql).names_prepared, "{sql}");
    }
}

#[test]
fn every_hazard_is_answered_as_its_row_says() {
    let mut faults = Vec::new();
    for (hazard, sql, expected) in TABLE {
        let answer = on(sql);
        let access = if answer.access == Access::Read { "R" } else { "W" };
        let session = match answer.session {
            SessionEffect::None => "",
            SessionEffect::Set(_) => " set",
            SessionEffect::Reset(_) => " reset",
            SessionEffect::ResetLocal(_) => " reset_local",
            SessionEffect::ResetAll => " reset_all",
            SessionEffect::DiscardAll => " discard_all",
            SessionEffect::DeallocateAll => " deallocate_all",
            SessionEffect::Deallocate(_) => " deallocate",
            SessionEffect::Unknown => " unknown",
        };
        let pin = answer.pin.map(|pin| format!(" {}", pin.as_str())).unwrap_or_default();
        let found = format!("{access}{pin}{session}");
        if found != *expected {
            faults
                .push(format!("{hazard} {sql:?}: expected {expected}, found {found} ({:?})", answer.reason));
        }
    }
    assert!(TABLE.len() >= 200);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const fn begin(access: AccessMode, serializable: bool) -> TransactionEffect {
    TransactionEffect::Begin { access, serializable }
}

const fn set(access: AccessMode, serializable: bool) -> TransactionEffect {
    TransactionEffect::SetTransaction { access, serializable }
}

#[test]
fn s25_to_s28_transaction_control_is_understood_exactly_or_not_at_all() {
    use AccessMode::{Default, ReadOnly, ReadWrite};
    use TransactionEffect::{Commit, None, Other, Rollback};
    let table: &[(&str, TransactionEffect, bool)] = &[
        ("BEGIN", begin(Default, false), false),
        ("begin work;", begin(Default, false), false),
        (";; BEGIN TRANSACTION ;", begin(Default, false), false),
        ("START TRANSACTION", begin(Default, false), false),
        ("BEGIN READ ONLY", begin(ReadOnly, false), false),
        ("BEGIN READ WRITE", begin(ReadWrite, false), false),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", begin(ReadOnly, true), false),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE", begin(ReadOnly, false), false),
        ("START TRANSACTION ISOLATION LEVEL READ COMMITTED", begin(Default, false), false),
        ("BEGIN ISOLATION LEVEL READ UNCOMMITTED", begin(Default, false), false),
        ("START", Other, false),
        ("BEGIN READ ONLY,", Other, false),
        ("BEGIN , READ ONLY", Other, false),
        ("BEGIN READ ONLY READ WRITE", Other, false),
        ("BEGIN ISOLATION LEVEL CHAOS", Other, false),
        ("BEGIN; SELECT 1", Other, false),
        ("SELECT 1; COMMIT", Other, true),
        ("BEGIN; COMMIT", Other, true),
        ("COMMIT", Commit, true),
        ("END WORK", Commit, true),
        ("COMMIT TRANSACTION AND NO CHAIN", Commit, true),
        ("COMMIT AND CHAIN", Other, true),
        ("COMMIT PREPARED 'x'", Other, true),
        ("PREPARE TRANSACTION 'x'", Other, true),
        ("ROLLBACK", Rollback, false),
        ("ABORT WORK AND NO CHAIN", Rollback, false),
        ("ROLLBACK AND CHAIN", Other, true),
        ("ROLLBACK TO SAVEPOINT a", Other, false),
        ("ROLLBACK PREPARED 'x'", Other, false),
        ("SAVEPOINT a", Other, false),
        ("SET TRANSACTION READ ONLY", set(ReadOnly, false), false),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE", set(ReadWrite, true), false),
        ("SET TRANSACTION SNAPSHOT '0-1'", Other, false),
        ("SET transaction_read_only = on", Other, false),
        ("SET LOCAL transaction_isolation = 'serializable'", Other, false),
        ("BEGIN 'unterminated", Other, false),
        ("SELECT 1", None, false),
    ];
    for (sql, effect, commits) in table {
        let answer = on(sql);
        assert_eq!((answer.transaction, answer.commits), (*effect, *commits), "{sql}");
    }
}

#[test]
fn s22_statements_are_counted_without_the_empty_ones() {
    assert_eq!(on(";SELECT 1;;SELECT 2; -- end").statements, 2);
    assert_eq!((on(" ; ").statements, on(" ; ").reason), (0, Reason::Empty));
}

#[test]
fn s07_s08_copy_mode_is_announced() {
    assert!(on("COPY t FROM STDIN").copies && on("COPY t TO STDOUT").copies);
    assert!(on("SELECT 1; COPY (SELECT 1) TO STDOUT").copies);
    assert!(!on("COPY t TO '/tmp/x'").copies && !on("SELECT 1").copies);
}

#[test]
fn s23_strings_follow_the_session_s_setting() {
    let sql = b"SELECT '\\'; DELETE FROM t; --'";
    assert_eq!(classify(sql, &StandardConformingStrings::Off.dialect()).access, Access::Read);
    assert_ne!(classify(sql, &Dialect::default()).access, Access::Read);
}

#[test]
fn trap_20_only_the_leading_comment_is_a_hint() {
    let hint = |target, millis: Option<u64>| Hint { target, max_lag: millis.map(Duration::from_millis) };
    let table = [
        ("/* pgsteer: target=primary */ SELECT 1", hint(Some(Target::Primary), None)),
        ("/*pgsteer: target=standby, max_lag=500ms*/SELECT 1", hint(Some(Target::Standby), Some(500))),
        ("-- a\n/* b */ /* pgsteer: max_lag=2s, other=x */ SELECT 1", hint(None, Some(2_000))),
        ("/* pgsteer: max_lag=1min */ SELECT 1", hint(None, Some(60_000))),
        ("/* pgsteer: max_lag=1m */ SELECT 1", hint(None, Some(60_000))),
        ("/* pgsteer: target=moon, max_lag=x */ SELECT 1", hint(None, None)),
        ("SELECT /* pgsteer: target=primary */ 1", hint(None, None)),
        ("SELECT '/* pgsteer: target=primary */'", hint(None, None)),
    ];
    for (sql, expected) in table {
        assert_eq!(on(sql).hint, expected, "{sql}");
    }
}

#[test]
fn values_are_no_part_of_a_shape() {
    let shape = |sql: &str| shape_hash(sql.as_bytes());
    let base = shape("SELECT a FROM t WHERE b IN (1, 2) AND c = 'x'");
    assert_eq!(base, shape("select  A from t /* x */ where b in (7,8,9) and c = $1 -- y"));
    assert_ne!(base, shape("SELECT a FROM u WHERE b IN (1, 2) AND c = 'x'"));
    assert_ne!(shape("SELECT \"a\""), shape("SELECT \"A\""));
    assert_ne!(shape("SELECT 1, a"), shape("SELECT 1 a"));
}

#[test]
fn hostile_texts_take_linear_time() {
    for piece in [
        "(", "/*", "'", "[", "$a$", "\"", "''", "E'", "$", "(SELECT ", "a.", "--", "-", "'a'\n", ";",
        "BEGIN;",
    ] {
        let text = piece.repeat((1 << 20) / piece.len());
        let answer = on(&text);
        // The best of a few: a neighbour on the machine is no fault of the classifier.
        let best = (0..5).map(|_| {
            let start = Instant::now();
            on(&text);
            start.elapsed()
        });
        let limit = Duration::from_millis(match piece {
            _ if cfg!(debug_assertions) => 2_000,
            "(" | "/*" | "'" => 20,
            _ => 50,
        });
        let best = best.min().unwrap_or_default();
        assert!(best < limit, "{piece:?} took {best:?}");
        assert!(answer.access != Access::Read || piece == ";" || piece.starts_with('-'), "{piece:?}");
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        classify(&bytes, &Dialect::default());
        classify(&bytes, &StandardConformingStrings::Off.dialect());
        shape_hash(&bytes);
    }

    #[test]
    fn mutated_statements_never_panic(
        row in 0..TABLE.len(),
        at in any::<prop::sample::Index>(),
        cut in 0usize..4,
        piece in "[-'\"$(){};:.,*/EeUu&\\\\ \n\u{e9}a1]{0,4}",
    ) {
        let mut bytes = TABLE[row].1.as_bytes().to_vec();
        let start = at.index(bytes.len() + 1);
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, piece.into_bytes());
        let answer = classify(&bytes, &Dialect::default());
        classify(&bytes, &StandardConformingStrings::Off.dialect());
        shape_hash(&bytes);
        if std::str::from_utf8(&bytes).is_err() {
            prop_assert_ne!(answer.access, Access::Read);
        }
    }

    #[test]
    fn a_write_after_a_read_is_a_write(row in 0..TABLE.len()) {
        let (_, sql, expected) = TABLE[row];
        if expected == "R" {
            let both = format!("{sql}\n; DELETE FROM t");
            prop_assert_ne!(on(&both).access, Access::Read);
            prop_assert_eq!(on(&both).pin, None::<PinReason>);
        }
    }
}

/// What is known of roles beside the servers depends on seeing them altered.
#[test]
fn statements_about_roles_are_seen() {
    for sql in [
        "CREATE ROLE a",
        "create user a password 'x'",
        "ALTER GROUP a RENAME TO b",
        "alter /* so */ role \"A\" set work_mem = '1MB'",
        "DROP USER IF EXISTS a, b",
        "SELECT 1; SELECT 2; DROP ROLE a; SELECT 3",
    ] {
        assert!(classify(sql.as_bytes(), &Dialect::default()).roles, "{sql}");
    }
    for sql in ["CREATE TABLE role (i int)", "SELECT 'DROP ROLE a'", "DROP DATABASE a", "SET ROLE a"] {
        assert!(!classify(sql.as_bytes(), &Dialect::default()).roles, "{sql}");
    }
}
