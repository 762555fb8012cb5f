-- What statements of this database may do to their session beside what their texts show: one row of truth values, in the order of
-- `pool::Found`, and behind them bodies in which the name of a setting may be put together, as far as 200,000 letters reach,
-- a hash of the settings that roles and the database have as defaults, and whether transactions may be committed asynchronously though
-- no text of a client says so.
-- Everything below 16384 is PostgreSQL's own (FirstNormalObjectId). It runs with a search_path of its own, behind `word`.
-- The same of PostgreSQL's own functions, as they stand in expressions that the catalogue keeps parsed. No object depends on these.
builtin(changes, keeps, asks) AS (
  SELECT
    format(':(op)?funcid (%s) ', string_agg(oid::text, '|') FILTER (WHERE proname = 'set_config')),
    format(':(op)?funcid (%s) ', string_agg(oid::text, '|') FILTER (WHERE proname ~
      '^(pg_(try_)?advisory_(?!xact_)|setseed$|lo_open$|pg_export_snapshot$|pg_replication_origin_)')),
    format(':(op)?funcid (%s) ', string_agg(oid::text, '|') FILTER (WHERE proname IN ('currval', 'lastval')))
  FROM pg_proc WHERE oid < 16384),
-- Functions that something runs which is not a text of a client: by triggers (t), by other writes (w), by reads as well (r). A read
-- also runs those that are called like one of PostgreSQL's own, and those that look like a column.
root(oid, way) AS (
  SELECT DISTINCT d.refobjid, CASE
    WHEN d.classid IN ('pg_trigger'::regclass, 'pg_event_trigger'::regclass) THEN 't'
    WHEN d.classid IN ('pg_class'::regclass, 'pg_statistic_ext'::regclass) THEN 'w'
    WHEN d.classid = 'pg_attrdef'::regclass AND NOT EXISTS (
      SELECT FROM pg_attrdef i JOIN pg_attribute a ON a.attrelid = i.adrelid AND a.attnum = i.adnum
      WHERE i.oid = d.objid AND a.attgenerated = 'v') THEN 'w'
    WHEN d.classid = 'pg_constraint'::regclass AND EXISTS (
      SELECT FROM pg_constraint i WHERE i.oid = d.objid AND i.contypid = 0) THEN 'w'
    WHEN d.classid = 'pg_rewrite'::regclass AND EXISTS (
      SELECT FROM pg_rewrite i WHERE i.oid = d.objid AND i.ev_type <> '1') THEN 'w'
    ELSE 'r' END
  FROM pg_depend d
  WHERE d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384 AND d.classid <> 'pg_proc'::regclass
  UNION ALL
  SELECT p.oid, 'r' FROM pg_proc p WHERE p.oid >= 16384 AND (
    EXISTS (SELECT FROM pg_proc b WHERE b.proname = p.proname AND b.oid < 16384)
    OR (p.pronargs = 1 AND EXISTS (SELECT FROM pg_type t WHERE t.oid = p.proargtypes[0] AND t.typtype = 'c')))),
-- And those that their bodies name, or that they depend on (aggregates, bodies that are kept parsed). Bodies in C (13) and of
-- built-in ones (12) can't be looked into.
reached(oid, way) AS (
  SELECT * FROM root
  UNION
  SELECT next.oid, r.way FROM reached r, LATERAL (
    SELECT called.oid FROM pg_proc p,
      LATERAL (
        SELECT DISTINCT spelt.word::name FROM regexp_matches(
          CASE WHEN p.prolang IN (12, 13) THEN '' WHEN p.prosqlbody IS NULL THEN p.prosrc
            ELSE pg_get_function_sqlbody(p.oid) END, '[[:alpha:]_][[:alnum:]_$]*', 'g') m,
        LATERAL (VALUES (m[1]), (lower(m[1]))) spelt(word)) named,
      LATERAL (SELECT f.oid FROM pg_proc f WHERE f.proname = named.word AND f.oid >= 16384 OFFSET 0) called
    WHERE p.oid = r.oid
    UNION ALL
    SELECT d.refobjid FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass AND d.objid = r.oid
      AND d.refclassid = 'pg_proc'::regclass AND d.refobjid >= 16384
    OFFSET 0) next),
code(way, body) AS (
  SELECT r.way, p.body FROM reached r, LATERAL (
    SELECT lower(CASE WHEN prosqlbody IS NULL THEN prosrc ELSE pg_get_function_sqlbody(oid) END) AS body
    FROM pg_proc WHERE oid = r.oid AND prolang NOT IN (12, 13) OFFSET 0) p),
tree(way, tree) AS (
  SELECT CASE a.attgenerated WHEN 'v' THEN 'r' ELSE 'w' END, d.adbin::text
  FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid AND a.attnum = d.adnum WHERE d.oid >= 16384
  UNION ALL SELECT CASE contypid WHEN 0 THEN 'w' ELSE 'r' END, conbin::text
  FROM pg_constraint WHERE oid >= 16384 AND conbin IS NOT NULL
  UNION ALL SELECT CASE ev_type WHEN '1' THEN 'r' ELSE 'w' END, concat(ev_qual, ev_action)
  FROM pg_rewrite WHERE oid >= 16384
  UNION ALL SELECT 'r', concat(polqual, polwithcheck) FROM pg_policy
  UNION ALL SELECT r.way, p.proargdefaults::text
  FROM reached r JOIN pg_proc p ON p.oid = r.oid WHERE p.proargdefaults IS NOT NULL
  UNION ALL SELECT 'w', concat(indexprs, indpred)
  FROM pg_index WHERE indexrelid >= 16384 AND (indexprs IS NOT NULL OR indpred IS NOT NULL)
  UNION ALL SELECT 'w', tgqual::text FROM pg_trigger WHERE tgqual IS NOT NULL
  UNION ALL SELECT 'w', partexprs::text FROM pg_partitioned_table WHERE partexprs IS NOT NULL
  UNION ALL SELECT 'w', typdefaultbin::text FROM pg_type WHERE oid >= 16384 AND typdefaultbin IS NOT NULL
  UNION ALL SELECT 'r', concat(':funcid ', oprcode::oid, ' ') FROM pg_operator WHERE oid >= 16384),
found(way, changes, keeps, asks, unnamed) AS (
  SELECT c.way, c.body ~ w.changes, c.body ~ w.keeps, c.body ~ w.asks,
    CASE WHEN c.body ~ w.unnamed THEN c.body END FROM code c, word w
  UNION ALL SELECT e.way, e.tree ~ b.changes, e.tree ~ b.keeps, e.tree ~ b.asks,
    CASE WHEN e.tree ~ b.changes THEN 'set_config(' END FROM tree e, builtin b)
SELECT
  bool_or(changes OR keeps), bool_or(changes OR keeps) FILTER (WHERE way = 'r'), bool_or(keeps) FILTER (WHERE way = 'r'),
  bool_or(asks), bool_or(asks) FILTER (WHERE way <> 't'), bool_or(asks) FILTER (WHERE way = 'r'),
  left(string_agg(DISTINCT unnamed, chr(10)), 200000),
  (SELECT abs(hashtextextended(coalesce(string_agg(concat(setdatabase, ' ', setrole, ' ', setconfig), ' ' ORDER BY setdatabase, setrole), ''), 0)) >> 2
   FROM pg_db_role_setting WHERE setdatabase IN (0, (SELECT oid FROM pg_database WHERE datname = current_database()))),
  (SELECT reset_val = 'off' FROM pg_settings WHERE name = 'synchronous_commit')
    OR EXISTS (SELECT FROM pg_proc WHERE oid >= 16384 AND prolang NOT IN (12, 13) AND prosrc ~* 'synchronous_commit')
FROM found
