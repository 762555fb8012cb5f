//! The text of a node's configuration files. They lie outside the data directory, where neither `pg_rewind` nor
//! a base backup replaces them by another node's. Pure: text in, text out.

use super::builder::{Auth, Settings, Sync};

/// The node and its surroundings, as far as its configuration names them.
pub(super) struct Facts<'a> {
    pub(super) name: &'a str,
    pub(super) port: u16,
    pub(super) directory: &'a str,
    pub(super) others: &'a [String],
    pub(super) primary_conninfo: Option<String>,
}

/// The text of `postgresql.conf`.
pub(super) fn server(settings: &Settings, facts: &Facts<'_>) -> String {
    let delay = match settings.max_standby_streaming_delay {
        Some(delay) => format!("{}ms", delay.as_millis()),
        None => "-1".to_owned(),
    };
    let synchronous = match settings.sync {
        Sync::Any1 if !facts.others.is_empty() => format!("ANY 1 ({})", facts.others.join(", ")),
        _ => String::new(),
    };
    let switch = |on: bool| (if on { "on" } else { "off" }).to_owned();
    let fixed = [
        ("cluster_name", facts.name.to_owned()),
        ("listen_addresses", "127.0.0.1".to_owned()),
        ("port", facts.port.to_string()),
        ("unix_socket_directories", facts.directory.to_owned()),
        ("hba_file", format!("{}/pg_hba.conf", facts.directory)),
        ("password_encryption", "scram-sha-256".to_owned()),
        ("max_connections", settings.max_connections.to_string()),
        ("shared_buffers", "32MB".to_owned()),
        // In the data directory, so that nothing stays in /dev/shm after a crash.
        ("dynamic_shared_memory_type", "mmap".to_owned()),
        ("fsync", switch(settings.fsync)),
        ("wal_level", "replica".to_owned()),
        ("wal_log_hints", "on".to_owned()),
        ("wal_keep_size", "512MB".to_owned()),
        ("min_wal_size", "32MB".to_owned()),
        ("max_wal_senders", "20".to_owned()),
        ("max_replication_slots", "20".to_owned()),
        ("max_prepared_transactions", "10".to_owned()),
        ("hot_standby_feedback", switch(settings.hot_standby_feedback)),
        ("max_standby_streaming_delay", delay),
        ("wal_receiver_status_interval", "1s".to_owned()),
        ("wal_retrieve_retry_interval", "50ms".to_owned()),
        ("synchronous_standby_names", synchronous),
        ("primary_slot_name", facts.name.to_owned()),
        ("primary_conninfo", facts.primary_conninfo.clone().unwrap_or_default()),
        ("log_line_prefix", "%m [%p] %a ".to_owned()),
    ];
    let extra = settings.extra.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    let all = fixed.iter().map(|(name, value)| (*name, value.as_str())).chain(extra);
    all.map(|(name, value)| format!("{name} = '{}'\n", quoted(value))).collect()
}

/// The text of `pg_hba.conf`.
pub(super) fn host_based_authentication(auth: Auth) -> String {
    let method = match auth {
        Auth::Scram => "scram-sha-256",
        Auth::Trust => "trust",
    };
    format!(
        "local all all trust\nlocal replication all trust\n\
         host all all 127.0.0.1/32 {method}\nhost replication all 127.0.0.1/32 {method}\n"
    )
}

fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('\'', "''")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_do_not_end_a_value() {
        assert_eq!(quoted(r"it's \n"), r"it''s \\n");
    }
}
