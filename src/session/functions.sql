-- What functions of this database show of the settings that they make: rows of ('name', a name with a prefix) and ('body', the name of
-- the function, its body, the names of its parameters) where the name of the setting may be put together. Bodies in C (13) can't be looked into.
WITH body AS MATERIALIZED (
  SELECT proname, proargnames AS parameters, CASE WHEN prosqlbody IS NULL THEN prosrc ELSE pg_get_function_sqlbody(oid) END AS body
  FROM pg_proc WHERE oid >= 16384 AND prolang NOT IN (12, 13)
  AND (prosqlbody IS NOT NULL OR prosrc ~* 'set_config|\mset\s'))
(SELECT DISTINCT 'name', lower(coalesce(m[1], m[2])), NULL, NULL
FROM body, regexp_matches(body, $r$'([[:alpha:]_][[:alnum:]_$]*(?:[.][[:alpha:]_][[:alnum:]_$]*)+)'|\mset\s+(?:session\s+)?([[:alpha:]_][[:alnum:]_$]*(?:[.][[:alpha:]_][[:alnum:]_$]*)+)$r$, 'gi') m LIMIT 2048)
UNION ALL
-- A body that is too long to be read is one that can't be.
(SELECT 'body', proname, CASE WHEN length(body) < 100000 THEN body ELSE 'set_config(' END,
  lower(array_to_string(parameters, ','))
FROM body WHERE body ~* $r$\mset_config\s*\((?!\s*'[^']*'\s*(::\s*text\s*)?,)|['"$]\s*set\s+(session\s+)?[[:alnum:]_.$"]*['%|{]$r$
LIMIT 256)
