-- The extended protocol, of psql 16 and newer.
\set VERBOSITY verbose
SELECT $1::int + $2::int AS sum \bind 1 2 \g
SELECT $1 AS text \bind 'ü, "quoted"' \g
SELECT 1 / $1::int \bind 0 \g
SELECT i FROM generate_series(1, $1::int) i \bind 3 \gx
INSERT INTO t_script (i, t) VALUES ($1, $2) RETURNING * \bind 50 bound \g
BEGIN;
DELETE FROM t_script WHERE i = $1 \bind 50 \g
ROLLBACK;
SELECT t FROM t_script WHERE i = $1 \bind 50 \g
SELECT 1; SELECT $1 \bind 1 \g
