//! Which settings and system views tell of the session or the data, and which of the node.
//!
//! Invariant: SHOW of a setting that is not listed as the session's own belongs to the primary, and so does
//! `current_setting` of a name that is not there to be read. Must not know: the values of settings.

use super::builtins::Folded;

/// Settings whose value follows the client's session, not the node.
const SESSION: [&str; 26] = [
    "application_name",
    "bytea_output",
    "client_encoding",
    "client_min_messages",
    "datestyle",
    "default_transaction_deferrable",
    "default_transaction_isolation",
    "default_transaction_read_only",
    "extra_float_digits",
    "idle_in_transaction_session_timeout",
    "integer_datetimes",
    "intervalstyle",
    "is_superuser",
    "lock_timeout",
    "max_identifier_length",
    "role",
    "row_security",
    "search_path",
    "server_encoding",
    "server_version",
    "server_version_num",
    "session_authorization",
    "standard_conforming_strings",
    "statement_timeout",
    "timezone",
    "transaction_isolation",
];

/// Settings that say what a node is or where its files are.
const NODE: [&str; 18] = [
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "hot_standby",
    "ident_file",
    "in_hot_standby",
    "listen_addresses",
    "port",
    "primary_conninfo",
    "primary_slot_name",
    "restore_command",
    "synchronous_standby_names",
    "transaction_read_only",
    "unix_socket_directories",
    "wal_receiver_status_interval",
    "recovery_target_timeline",
];

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
    NODE.iter().any(|node| name.eq_ignore_ascii_case(node.as_bytes()))
}

/// Does SHOW of this setting answer with the session's own value?
pub(super) fn is_session_setting(name: &Folded<'_>) -> bool {
    name.is_one_of(&SESSION)
}

/// Setting one of these by name works on the transaction, as SET TRANSACTION does.
pub(super) fn is_transaction_setting(name: &Folded<'_>) -> bool {
    name.begins(b"transaction_")
}

/// Is this a view (or a table) whose content is the node's own?
pub(super) fn is_node_local_view(name: &Folded<'_>) -> bool {
    name.begins(b"pg_stat_") || name.begins(b"pg_statio_") || name.is_one_of(&VIEWS)
}
