-- Beginning of the questions for what functions do: what is looked for in their bodies.
WITH RECURSIVE
-- What bodies of functions have in them that change the session: settings; what can't be carried to another server; that ask what a
-- sequence gave last; where the name of a setting may be put together. Commands only where one may begin, so that UPDATE ... SET is none.
word(changes, keeps, asks, unnamed) AS (VALUES (
  $r$\m(set_config|set_limit)\M|\mupdate\s+(only\s+)?(pg_catalog\s*[.]\s*)?pg_settings\M|(^|[;'"$]|\*/|>>|--[^\n]*\n|\m(begin|then|else|loop)\M)\s*(set\M(?!\s+(local|constraints|transaction)\M)|reset\M)$r$,
  $r$\mpg_(try_)?advisory_(?!xact_)|\m(setseed|dblink|lo_open|pg_export_snapshot|pg_replication_origin)|\m(create|into)\s+((global|local)\s+)?temp|['"]\s*temp|\mpg_temp|\mwith\s+hold\M|(^|[;'"$]|\*/|>>|--[^\n]*\n|\m(begin|then|else|loop)\M)\s*(listen|prepare|discard|load|deallocate)\M$r$,
  $r$\m(currval|lastval)\M$r$,
  $r$\mset_config\s*\((?!\s*'[^']*'\s*(::\s*text\s*)?,)|['"$]\s*set\s+(session\s+)?[[:alnum:]_.$"]*['%|{]$r$)),
