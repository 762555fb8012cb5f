-- The functions of this database that call any of those in `l` (an array of names in lower case), directly or not: their names.
WITH RECURSIVE
body AS MATERIALIZED (
  SELECT lower(proname) AS name, lower(CASE WHEN prosqlbody IS NULL THEN prosrc ELSE pg_get_function_sqlbody(oid) END) AS body
  FROM pg_proc WHERE oid >= 16384 AND prolang NOT IN (12, 13)),
l(name) AS (
  SELECT unnest($names::text[]) COLLATE "C"
  UNION
  SELECT b.name FROM l JOIN body b ON strpos(b.body, l.name) > 0
  WHERE l.name !~ '^[[:alnum:]_]+$' OR b.body ~ ('\m' || l.name || '\M'))
SELECT DISTINCT name FROM l
