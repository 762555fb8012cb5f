//! The arguments of `pgsteer run` and `pgsteer check`.
//!
//! Invariant: a flag is only a text for one key; what it means is decided where the file's values are, so all
//! sources obey one set of rules. Must not know: values, defaults.

use std::path::PathBuf;

use super::fault::Faults;
use super::load::Sources;

/// Arguments of `pgsteer run`. Each flag wins over its environment variable, and that over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct RunArgs {
    /// Configuration file (TOML)
    #[arg(long, env = "PGSTEER_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Nodes of the cluster, comma-separated [env: PGSTEER_NODES]
    #[arg(long, value_name = "HOST:PORT,...")]
    pub nodes: Option<String>,
    /// Addresses for clients, comma-separated [env: PGSTEER_LISTEN]
    #[arg(long, value_name = "IP:PORT,...")]
    pub listen: Option<String>,
    /// Addresses for clients of the primary alone [env: PGSTEER_LISTEN_PRIMARY]
    #[arg(long, value_name = "IP:PORT,...")]
    pub listen_primary: Option<String>,
    /// Addresses for clients of standbys alone [env: PGSTEER_LISTEN_STANDBY]
    #[arg(long, value_name = "IP:PORT,...")]
    pub listen_standby: Option<String>,
    /// Addresses for clients of standbys, or of the primary while there is none [env: PGSTEER_LISTEN_PREFER_STANDBY]
    #[arg(long, value_name = "IP:PORT,...")]
    pub listen_prefer_standby: Option<String>,
    /// HTTP address for metrics and health, or "off" [env: PGSTEER_ADMIN]
    #[arg(long, value_name = "IP:PORT")]
    pub admin: Option<String>,
    /// Login role of probes and of the auth query [env: PGSTEER_USER, PGUSER]
    #[arg(long, value_name = "ROLE")]
    pub user: Option<String>,
    /// Database that probes connect to [env: PGSTEER_DATABASE]
    #[arg(long, value_name = "NAME")]
    pub database: Option<String>,
    /// File that holds the login role's password [env: PGSTEER_PASSWORD_FILE; the password itself:
    /// PGSTEER_PASSWORD, PGPASSWORD]
    #[arg(long, value_name = "FILE")]
    pub password_file: Option<String>,
    /// How clients log in: scram-sha-256 or trust [env: PGSTEER_AUTH]
    #[arg(long, value_name = "TYPE")]
    pub auth: Option<String>,
    /// Lag budget of reads on standbys, such as 1s [env: PGSTEER_MAX_LAG]
    #[arg(long, value_name = "DURATION")]
    pub max_lag: Option<String>,
    /// split, or primary to send everything there [env: PGSTEER_MODE]
    #[arg(long, value_name = "MODE")]
    pub mode: Option<String>,
    /// Most server connections for each node, database and user [env: PGSTEER_POOL_SIZE]
    #[arg(long, value_name = "COUNT")]
    pub pool_size: Option<String>,
    /// The other pgsteer processes of this deployment, comma-separated, to forward cancel requests to; a name stands
    /// for all its addresses [env: PGSTEER_PEERS]
    #[arg(long, value_name = "HOST:PORT,...")]
    pub peers: Option<String>,
    /// transaction or session: how long a client keeps a server connection [env: PGSTEER_POOL_MODE]
    #[arg(long, value_name = "MODE")]
    pub pool_mode: Option<String>,
    /// Number of shards, or "auto": one per core, one core left free [env: PGSTEER_SHARDS]
    #[arg(long, value_name = "COUNT")]
    pub shards: Option<String>,
    /// Log level or tracing directives [env: PGSTEER_LOG_LEVEL]
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// text or json [env: PGSTEER_LOG_FORMAT]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<String>,
    /// How long a statement waits for a primary [env: PGSTEER_HOLD_TIMEOUT]
    #[arg(long, value_name = "DURATION")]
    pub hold_timeout: Option<String>,
    /// How long transactions may take to end after SIGTERM [env: PGSTEER_SHUTDOWN_TIMEOUT]
    #[arg(long, value_name = "DURATION")]
    pub shutdown_timeout: Option<String>,
}

/// Arguments of `pgsteer check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// Configuration file (TOML)
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

impl RunArgs {
    /// The sources of a run: the file, this process's environment, these flags.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sources(&self) -> Result<Sources, Faults> {
        let mut sources = Sources::of_process(self.config.as_deref())?;
        sources.flags = self.flags();
        Ok(sources)
    }

    /// The flags that were given, by name.
    pub fn flags(&self) -> Vec<(&'static str, String)> {
        [
            ("--nodes", &self.nodes),
            ("--listen", &self.listen),
            ("--listen-primary", &self.listen_primary),
            ("--listen-standby", &self.listen_standby),
            ("--listen-prefer-standby", &self.listen_prefer_standby),
            ("--admin", &self.admin),
            ("--user", &self.user),
            ("--database", &self.database),
            ("--password-file", &self.password_file),
            ("--auth", &self.auth),
            ("--max-lag", &self.max_lag),
            ("--mode", &self.mode),
            ("--pool-size", &self.pool_size),
            ("--peers", &self.peers),
            ("--pool-mode", &self.pool_mode),
            ("--shards", &self.shards),
            ("--log-level", &self.log_level),
            ("--log-format", &self.log_format),
            ("--hold-timeout", &self.hold_timeout),
            ("--shutdown-timeout", &self.shutdown_timeout),
        ]
        .into_iter()
        .filter_map(|(flag, value)| Some((flag, value.clone()?)))
        .collect()
    }
}

impl CheckArgs {
    /// The sources of a check: the file and this process's environment, as a run would see them.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn sources(&self) -> Result<Sources, Faults> {
        Sources::of_process(Some(&self.file))
    }
}
