-- What this database has beyond PostgreSQL's own that a statement may use: rows of kind, schema, name and a truth value.
-- Everything below 16384 is PostgreSQL's own (FirstNormalObjectId). It runs with a search_path of its own, behind `word`.
-- Bodies in C (13) and of built-in functions (12) can't be looked into.
body(oid, name, language, text) AS MATERIALIZED (
  SELECT oid, proname, prolang, lower(CASE WHEN prosqlbody IS NULL THEN prosrc ELSE pg_get_function_sqlbody(oid) END)
  FROM pg_proc WHERE oid >= 16384 AND prolang NOT IN (12, 13)),
-- Functions that may change the session, and those that name one that may.
-- What is put together before it runs (EXECUTE, and all in other languages than SQL and PL/pgSQL) may; and so may what a standby has
-- its own answer to.
touching(name) AS (
  SELECT b.name FROM body b JOIN pg_language l ON l.oid = b.language, word w
  WHERE b.text ~ w.changes OR b.text ~ w.keeps OR l.lanname NOT IN ('sql', 'plpgsql') OR b.text ~ (
    '\m(execute|pg_is_in_recovery|pg_stat_\w+|pg_last_\w+|pg_current_(wal|xact|snapshot)\w*|txid_current\w*|inet_(client|server)_\w+'
    '|pg_backend_pid|pg_postmaster_start_time|pg_(try_)?advisory_\w+|pg_locks|pg_prepared_\w+|pg_control_\w+|pg_wal_replay\w*)\M')
  UNION
  SELECT b.name FROM touching t JOIN body b ON b.name <> t.name AND position(lower(t.name) IN b.text) > 0
    AND (t.name !~ '^\w+$' OR b.text ~ ('\m' || lower(t.name) || '\M'))),
-- PostgreSQL's own functions and views that a standby must not be asked for, as they stand in expressions that the catalogue keeps
-- parsed. No object depends on these.
builtin(calls, relations) AS (
  SELECT
    (SELECT format(':(op|win|agg)?(func|fn)(id|oid) (%s) ', string_agg(oid::text, '|')) FROM pg_proc WHERE oid < 16384
     AND ((provolatile = 'v' AND proname NOT IN ('clock_timestamp', 'current_query', 'gen_random_uuid', 'lo_get',
         'pg_partition_ancestors', 'pg_partition_tree', 'random', 'random_normal', 'array_sample', 'array_shuffle', 'timeofday',
         'uuidv4', 'uuidv7', 'pg_sleep', 'pg_sleep_for', 'pg_sleep_until'))
       OR proname ~ '_to_xml|^pg_stat_get|^txid_(current|visible)|^pg_current_|^inet_(client|server)_|^ts_(stat|rewrite)$|^pg_(my_temp|backend_pid|postmaster|conf_load)')),
    (SELECT format(':relid (%s) ', string_agg(oid::text, '|')) FROM pg_class WHERE oid < 16384 AND relkind = 'v'
     AND relname ~ '^pg_(stat|locks|settings|prepared|cursors|listening|replication|file_settings|hba|ident|shmem|aios|backend_memory|config|available_ext)')),
-- Users' functions that only the primary may run: by themselves, by the defaults of their arguments, and aggregates of such.
plain(oid) AS (
  SELECT p.oid FROM pg_proc p, builtin b WHERE p.oid >= 16384
  AND (p.provolatile = 'v' OR p.proname IN (SELECT name FROM touching) OR p.proargdefaults::text ~ b.calls)),
volatile(oid) AS (
  SELECT oid FROM plain
  UNION
  SELECT d.objid FROM pg_depend d JOIN plain p ON p.oid = d.refobjid
  WHERE d.classid = 'pg_proc'::regclass AND d.refclassid = 'pg_proc'::regclass
  UNION
  SELECT a.aggfnoid FROM pg_aggregate a JOIN pg_proc c ON c.oid IN (a.aggtransfn, a.aggfinalfn, a.aggcombinefn, a.aggserialfn,
    a.aggdeserialfn, a.aggmtransfn, a.aggminvtransfn, a.aggmfinalfn)
  WHERE a.aggfnoid >= 16384 AND (c.provolatile = 'v' OR c.oid IN (SELECT oid FROM plain))),
operator(oid, name) AS (SELECT oid, oprname FROM pg_operator WHERE oprcode IN (SELECT oid FROM volatile)),
-- Types that lead to such functions, and all that have one of them in them.
own_type(oid) AS (
  SELECT oid FROM pg_type WHERE oid >= 16384 AND EXISTS (
    SELECT FROM volatile v WHERE v.oid IN (typinput, typoutput, typreceive, typsend))
  UNION SELECT casttarget FROM pg_cast WHERE castfunc IN (SELECT oid FROM volatile)
  UNION SELECT i.contypid FROM pg_constraint i, builtin b WHERE i.contypid <> 0 AND (i.conbin ~ b.calls OR EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_constraint'::regclass AND d.objid = i.oid AND (
      (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM volatile))
      OR (d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM operator)))))),
type(oid) AS (
  SELECT t.oid FROM own_type t JOIN pg_type p ON p.oid = t.oid JOIN pg_namespace n ON n.oid = p.typnamespace
  WHERE n.nspname NOT IN ('pdb', 'paradedb')
  UNION
  SELECT next.oid FROM type y, LATERAL (
    SELECT oid FROM pg_type WHERE typbasetype = y.oid OR typelem = y.oid
    UNION ALL SELECT c.reltype FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid
    WHERE a.atttypid = y.oid AND c.relkind IN ('c', 'r', 'v', 'm', 'f', 'p')
    OFFSET 0) next),
-- Relations that only the primary can be asked for: foreign and unlogged ones, those with policies that call such functions, views
-- that do; and then those above them.
relation(oid) AS (
  SELECT oid FROM pg_class WHERE oid >= 16384 AND (
    relkind IN ('f', 'S') OR (relpersistence = 'u' AND relkind IN ('r', 'm', 'p')))
  UNION
  SELECT p.polrelid FROM pg_policy p, builtin b WHERE concat(p.polqual, p.polwithcheck) ~ b.calls OR concat(p.polqual, p.polwithcheck) ~ b.relations OR EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_policy'::regclass AND d.objid = p.oid AND (
      (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM volatile))
      OR (d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM operator))))
  UNION
  SELECT r.ev_class FROM pg_rewrite r JOIN pg_class c ON c.oid = r.ev_class AND c.relkind = 'v', builtin b
  WHERE r.oid >= 16384 AND r.ev_type = '1' AND (r.ev_action ~ b.calls OR r.ev_action ~ b.relations OR EXISTS (
    SELECT FROM pg_depend d WHERE d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid AND (
      (d.refclassid = 'pg_proc'::regclass AND d.refobjid IN (SELECT oid FROM volatile))
      OR (d.refclassid = 'pg_type'::regclass AND d.refobjid IN (SELECT oid FROM type))
      OR (d.refclassid = 'pg_operator'::regclass AND d.refobjid IN (SELECT oid FROM operator)))))),
above(oid) AS (
  SELECT oid FROM relation
  UNION
  SELECT next.oid FROM above a, LATERAL (
    SELECT r.ev_class AS oid FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid AND r.ev_type = '1'
      JOIN pg_class c ON c.oid = r.ev_class AND c.relkind = 'v'
    WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = a.oid
    UNION ALL SELECT inhparent FROM pg_inherits WHERE inhrelid = a.oid
    OFFSET 0) next)
SELECT 'function', n.nspname, p.proname, bool_or(p.oid IN (SELECT oid FROM volatile))
FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace WHERE p.oid >= 16384 GROUP BY 2, 3
UNION ALL SELECT DISTINCT 'operator', n.nspname, o.oprname, false FROM operator JOIN pg_operator o USING (oid)
  JOIN pg_proc p ON p.oid = o.oprcode JOIN pg_namespace n ON n.oid = p.pronamespace
UNION ALL SELECT DISTINCT 'object', '', c.relname, false FROM above a JOIN pg_class c USING (oid)
UNION ALL SELECT DISTINCT 'object', '', t.typname, false FROM type y JOIN pg_type t USING (oid)
UNION ALL SELECT DISTINCT 'modified_type', '', typname, false FROM pg_type WHERE oid >= 16384 AND typmodin <> 0
UNION ALL SELECT 'extension', '', extname, false FROM pg_extension
