\set VERBOSITY verbose
\set ON_ERROR_STOP off
\pset null '(null)'
CREATE TABLE t_script (i int PRIMARY KEY, t text DEFAULT 'none', n numeric(10, 2) CHECK (n >= 0));
COMMENT ON TABLE t_script IS 'a table';

-- \copy in all directions
\copy t_script (i, t) from stdin
1	one
2	\N
3	tab\there
\.
\copy t_script from pstdin csv
\copy t_script from 'in.csv' csv header
\copy t_script to 'out.csv' (format csv, header, force_quote *)
\copy (SELECT i, t FROM t_script ORDER BY i DESC) to stdout
\copy t_script (i) from stdin
x
\.
\copy t_nothing from 'in.csv'
\copy t_script from 'missing.csv'
COPY t_script (i, t) FROM stdin;
8	eight
8	again
\.
COPY t_script (i, t) FROM stdin;
8	eight
\.
COPY (SELECT * FROM t_script ORDER BY i) TO stdout;
\copy (SELECT * FROM t_script ORDER BY i) to program 'cat 1>&2'

-- \gexec, \gset, \gdesc, \gx, \g
SELECT format('CREATE TABLE t_made_%s AS SELECT %s AS i', i, i) FROM generate_series(1, 3) i
UNION ALL SELECT 'SELEC 1' UNION ALL SELECT 'SELECT count(*) FROM t_made_1'
\gexec
SELECT count(*) AS rows, max(t) AS last, NULL AS nothing FROM t_script \gset script_
\echo :script_rows :'script_last' :{?script_nothing}
SELECT i, t, n, now() AS at, ARRAY[i] AS many FROM t_script \gdesc
SELECT nothing FROM t_script \gdesc
SELECT 1 AS one, 2 AS two \gx
SELECT * FROM t_script WHERE i = :script_rows OR t = :'script_last' \g (format=unaligned tuples_only=on)
SELECT i FROM t_script ORDER BY i \g 'out.txt'
SELECT a, b, a * b FROM generate_series(1, 2) a, generate_series(1, 2) b \crosstabview

-- errors: in and out of transactions
SELECT 1/0;
\errverbose
INSERT INTO t_script VALUES (1);
BEGIN;
SELECT 1/0;
SELECT 1;
COMMIT;
SELECT 1; SELECT 2; SELECT 1/0; SELECT 3;
SELECT 1\; SELECT 2\; SELECT 1/0\; SELECT 3;
\set ON_ERROR_ROLLBACK on
BEGIN;
INSERT INTO t_script VALUES (20, 'kept');
INSERT INTO t_script VALUES (20, 'doubled');
SELEC 1;
SELECT count(*) FROM t_script;
SAVEPOINT mine;
INSERT INTO t_script VALUES (21, 'not kept');
ROLLBACK TO mine;
COMMIT;
SELECT * FROM t_script WHERE i > 19;
\set ON_ERROR_ROLLBACK off
\set AUTOCOMMIT off
INSERT INTO t_script VALUES (30, 'rolled back');
ROLLBACK;
INSERT INTO t_script VALUES (31, 'kept');
COMMIT;
SELECT 'a read begins one, too';
SHOW transaction_isolation;
VACUUM t_script;
ROLLBACK;
\set AUTOCOMMIT on
SELECT i FROM t_script WHERE i > 29;

-- in parts
\set FETCH_COUNT 7
SELECT i, repeat('x', i % 5) FROM generate_series(1, 30) i;
SELECT 100 / (20 - i) FROM generate_series(1, 30) i;
SELECT 1 WHERE false;
BEGIN;
SELECT i FROM t_script ORDER BY i;
COMMIT;
\unset FETCH_COUNT

-- session state
SET application_name = 'the script'; SET work_mem = '77kB'; SHOW work_mem;
BEGIN; SET LOCAL work_mem = '88kB'; SHOW work_mem; ROLLBACK; SHOW work_mem;
PREPARE p (int) AS SELECT $1 + count(*) FROM t_script;
EXECUTE p (1); EXECUTE p (100); DEALLOCATE p; EXECUTE p (1);
CREATE TEMP TABLE t_temp AS TABLE t_script;
SELECT count(*) FROM t_temp; DROP TABLE t_temp;
DECLARE c CURSOR WITH HOLD FOR SELECT i FROM t_script ORDER BY i;
FETCH 2 FROM c; MOVE 1 FROM c; FETCH 1 FROM c; CLOSE c;
LISTEN t_channel; NOTIFY t_channel, 'hello';
UNLISTEN *;
\encoding LATIN1
SELECT 'na' || chr(239) || 've';
\encoding UTF8
DO $$ BEGIN RAISE NOTICE 'a notice'; RAISE WARNING 'a warning' USING HINT = 'a hint'; END $$;
EXPLAIN (COSTS off) SELECT * FROM t_script WHERE i = 1;

-- what psql asks the catalogue for
\d t_script
\d+ t_script
\dt
\dt+ t_made_*
\di
\df shop.*
\dn
\du postgres
\dT
\dp t_script
\dconfig work_mem
\sf pg_catalog.now
\d shop.*
\connect
SELECT current_setting('work_mem') <> '77kB' AS new_session;
\set ON_ERROR_STOP on
SELECT 1/0;
SELECT 'never';
