-- PostgreSQL's own functions: name, and whether every overload of that name is safe to be called on a standby. Asked of each supported
-- version by tests/builtin_functions.rs, which makes the lists beside this file of it (`make functions`).
--
-- Left out by name: what executes SQL text (*_to_xml*, ts_stat, ts_rewrite), assigns a transaction id, or tells of the node, the
-- server process or the session instead of the data.
SELECT proname::text,
       bool_and(provolatile IN ('i', 's')
                AND prorettype NOT IN ('internal'::regtype, 'trigger'::regtype, 'event_trigger'::regtype)
                AND NOT 'internal'::regtype = ANY (proargtypes)
                AND NOT EXISTS (SELECT FROM pg_type
                                WHERE p.oid IN (typinput, typoutput, typreceive, typsend, typmodin, typmodout)))
       AND proname !~ ('_to_xml|^pg_stat_|^txid_(current|visible)|^pg_current_|^pg_event_trigger|^inet_(client|server)_|^ts_(stat|rewrite)$'
                       '|^binary_upgrade|^pg_(get_replication_slots|cursor|prepared_|listening|show_all|available_ext|config$|conf_load'
                       '|postmaster|backend_pid|my_temp|is_other_temp|tablespace_|relation_filepath|replication_|trigger_depth'
                       '|walfile|split_walfile|extension_update|visible_in|numa_available|column_toast_chunk_id)') AS safe
FROM pg_proc p
WHERE pronamespace = 'pg_catalog'::regnamespace
GROUP BY proname
ORDER BY proname COLLATE "C"
