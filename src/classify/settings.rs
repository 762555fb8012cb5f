//! Which settings and system views tell of the session or the data, and which of the node.
//!
//! Invariant: a setting that is not listed as the session's own belongs to the primary, by SHOW and by `current_setting`, and so does
//! `current_setting` of a name that is not there to be read. Must not know: the values of settings.

use super::builtins::Folded;

/// Settings whose value follows the client's session, and those that all nodes of a cluster have in common: what any role may set
/// on servers of versions 14 to 18 without one for the connection's own socket, and what was fixed by initdb or the build.
const SESSION: &str = "\
    application_name array_nulls backend_flush_after backslash_quote block_size bytea_output check_function_bodies \
    client_encoding client_min_messages commit_siblings constraint_exclusion cpu_index_tuple_cost cpu_operator_cost \
    cpu_tuple_cost createrole_self_grant cursor_tuple_fraction data_checksums datestyle debug_parallel_query \
    debug_pretty_print debug_print_parse debug_print_plan debug_print_rewritten default_statistics_target \
    default_table_access_method default_tablespace default_text_search_config default_toast_compression \
    default_transaction_deferrable default_transaction_isolation default_transaction_read_only effective_cache_size \
    effective_io_concurrency enable_async_append enable_bitmapscan enable_distinct_reordering enable_gathermerge \
    enable_group_by_reordering enable_hashagg enable_hashjoin enable_incremental_sort enable_indexonlyscan \
    enable_indexscan enable_material enable_memoize enable_mergejoin enable_nestloop enable_parallel_append \
    enable_parallel_hash enable_partition_pruning enable_partitionwise_aggregate enable_partitionwise_join \
    enable_presorted_aggregate enable_self_join_elimination enable_seqscan enable_sort enable_tidscan \
    escape_string_warning extra_float_digits file_copy_method force_parallel_mode from_collapse_limit geqo geqo_effort \
    geqo_generations geqo_pool_size geqo_seed geqo_selection_bias geqo_threshold gin_fuzzy_search_limit \
    gin_pending_list_limit hash_mem_multiplier icu_validation_level idle_in_transaction_session_timeout \
    idle_session_timeout integer_datetimes intervalstyle io_combine_limit is_superuser jit jit_above_cost \
    jit_inline_above_cost jit_optimize_above_cost join_collapse_limit lc_collate lc_ctype lc_messages lc_monetary \
    lc_numeric lc_time local_preload_libraries lock_timeout log_parameter_max_length_on_error logical_decoding_work_mem \
    maintenance_io_concurrency maintenance_work_mem max_function_args max_identifier_length max_index_keys \
    max_parallel_maintenance_workers max_parallel_workers max_parallel_workers_per_gather min_parallel_index_scan_size \
    min_parallel_table_scan_size operator_precedence_warning parallel_leader_participation parallel_setup_cost \
    parallel_tuple_cost password_encryption plan_cache_mode quote_all_identifiers random_page_cost \
    recursive_worktable_factor restrict_nonsystem_relation_kind role row_security scram_iterations search_path \
    segment_size seq_page_cost server_encoding server_version server_version_num session_authorization \
    session_replication_role standard_conforming_strings statement_timeout stats_fetch_consistency synchronize_seqscans \
    synchronous_commit temp_buffers temp_tablespaces timezone timezone_abbreviations transaction_deferrable \
    transaction_isolation transaction_timeout transform_null_equals vacuum_buffer_usage_limit vacuum_cost_delay \
    vacuum_cost_limit vacuum_cost_page_dirty vacuum_cost_page_hit vacuum_cost_page_miss vacuum_failsafe_age \
    vacuum_freeze_min_age vacuum_freeze_table_age vacuum_max_eager_freeze_failure_rate vacuum_multixact_failsafe_age \
    vacuum_multixact_freeze_min_age vacuum_multixact_freeze_table_age vacuum_truncate wal_block_size wal_segment_size \
    wal_sender_timeout wal_skip_threshold work_mem xmlbinary xmloption";

/// Views on the node or the server process.
const VIEWS: [&str; 25] = [
    "pg_aios",
    "pg_available_extension_versions",
    "pg_available_extensions",
    "pg_backend_memory_contexts",
    "pg_config",
    "pg_cursors",
    "pg_dsm_registry_allocations",
    "pg_file_settings",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_listening_channels",
    "pg_locks",
    "pg_lock_status",
    "pg_prepared_statements",
    "pg_prepared_xacts",
    "pg_replication_origin_status",
    "pg_replication_slots",
    "pg_sequences",
    "pg_settings",
    "pg_shmem_allocations",
    "pg_shmem_allocations_numa",
    "pg_buffercache",
    "pg_buffercache_summary",
    "pg_wait_sampling_profile",
    "pg_show_all_settings",
];

/// May this constant name a setting that is the node's own? Only a plain `'name'` shows what it names: with dollar
/// quotes, a prefix, an escape or a second part it may be any.
pub(super) fn may_be_node_local(constant: &[u8]) -> bool {
    let plain = constant.strip_prefix(b"'").and_then(|rest| rest.strip_suffix(b"'"));
    let Some(name) = plain.filter(|name| !name.iter().any(|byte| matches!(byte, b'\'' | b'\\'))) else {
        return true;
    };
    // Those with a prefix are set by sessions, or by extensions, which a cluster has in common.
    !name.contains(&b'.') && !is_session_setting(&Folded::unquoted(name))
}

/// Does SHOW of this setting answer with the session's own value?
pub(super) fn is_session_setting(name: &Folded<'_>) -> bool {
    SESSION.split_ascii_whitespace().any(|setting| name.is(setting.as_bytes()))
}

/// Setting one of these by name works on the transaction, as SET TRANSACTION does.
pub(super) fn is_transaction_setting(name: &Folded<'_>) -> bool {
    name.begins(b"transaction_")
}

/// Is this a view (or a table) whose content is the node's own?
pub(super) fn is_node_local_view(name: &Folded<'_>) -> bool {
    name.begins(b"pg_stat_") || name.begins(b"pg_statio_") || name.is_one_of(&VIEWS)
}
