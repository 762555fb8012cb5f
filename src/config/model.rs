//! The configuration as the program uses it: plain settings with their defaults.
//!
//! Invariant: a value that came out of `load` has passed every check; a secret never appears in Debug output. Must
//! not know: files, TOML, environment, flags.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::num::NonZeroUsize;
use std::time::Duration;

use crate::pool::Mode;
use crate::route;
use crate::telemetry::LogSettings;
use crate::topology::model::{NodeAddress, OnUnreachable};

/// Fetches a user's verifier with the login role; `$1` is the user name.
pub const DEFAULT_AUTH_QUERY: &str = "SELECT rolname, CASE WHEN rolvaliduntil < pg_catalog.now() THEN NULL ELSE rolpassword END \
     FROM pg_catalog.pg_authid WHERE rolname = $1 AND rolcanlogin";

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;

/// A text that must not be shown.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Secret(String);

impl Secret {
    /// Takes a text into safekeeping.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself, for the one place that needs it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[listen]`
    pub listen: Listen,
    /// `[admin]`
    pub admin: Admin,
    /// `[cluster]`
    pub cluster: Cluster,
    /// `[auth]`
    pub auth: Auth,
    /// `[topology]`
    pub topology: Topology,
    /// `[routing]`
    pub routing: route::Settings,
    /// `[pool]`
    pub pool: Pool,
    /// `[hold]`
    pub hold: Hold,
    /// `[retry]`
    pub retry: Retry,
    /// `[shutdown]`
    pub shutdown: Shutdown,
    /// `[log]`
    pub log: LogSettings,
}

/// Where clients come in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// Addresses to listen on.
    pub addresses: Vec<SocketAddr>,
    /// Addresses whose clients are for the primary alone.
    pub primary_addresses: Vec<SocketAddr>,
    /// Addresses whose clients are for standbys alone.
    pub standby_addresses: Vec<SocketAddr>,
    /// Addresses whose clients are for standbys, and for the primary while there is none.
    pub prefer_standby_addresses: Vec<SocketAddr>,
    /// Most clients at once; further ones get 53300.
    pub max_client_conn: u64,
    /// Most clients of one database at once; 0: no limit.
    pub max_db_client_connections: u64,
    /// Most clients of one user at once; 0: no limit.
    pub max_user_client_connections: u64,
    /// Time for a client to complete its login.
    pub login_timeout: Duration,
    /// The other pgsteer processes of the deployment: where their clients connect. A name stands for all its addresses.
    pub peers: Vec<NodeAddress>,
    /// How long a client may do nothing between transactions; zero: as long as it likes.
    pub client_idle_timeout: Duration,
    /// Number of shards; `None` means one per core, with one core left free.
    pub shards: Option<NonZeroUsize>,
}

impl Listen {
    /// The further addresses, each with its key and what its clients are for.
    pub fn further(&self) -> [(&'static str, &[SocketAddr], route::Mode); 3] {
        [
            ("listen.primary_address", &self.primary_addresses, route::Mode::Primary),
            ("listen.standby_address", &self.standby_addresses, route::Mode::Standby),
            ("listen.prefer_standby_address", &self.prefer_standby_addresses, route::Mode::PreferStandby),
        ]
    }

    /// The number of shards. Where it is not set: one for each core but one. The last core is for the control thread, so that
    /// busy clients never delay a probe; and each further thread makes a statement dearer, because fewer wake-ups are shared.
    pub fn shard_count(&self) -> NonZeroUsize {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        self.shards.or_else(|| NonZeroUsize::new(cores - 1)).unwrap_or(NonZeroUsize::MIN)
    }
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            addresses: vec![SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 6432)],
            primary_addresses: Vec::new(),
            standby_addresses: Vec::new(),
            prefer_standby_addresses: Vec::new(),
            max_client_conn: 10_000,
            max_db_client_connections: 0,
            max_user_client_connections: 0,
            login_timeout: Duration::from_secs(15),
            peers: Vec::new(),
            client_idle_timeout: Duration::ZERO,
            shards: None,
        }
    }
}

/// The HTTP address, and the console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Admin {
    /// Where to serve; `None` serves nothing.
    pub address: Option<SocketAddr>,
    /// Who may use the console; empty: there is none.
    pub console_users: Vec<String>,
    /// The database by which clients reach it.
    pub console_database: String,
}

impl Default for Admin {
    fn default() -> Self {
        Self { address: None, console_users: Vec::new(), console_database: "pgsteer".to_owned() }
    }
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Its name in logs and metrics.
    pub name: String,
    /// Where it listens.
    pub address: NodeAddress,
    /// Relative share of reads; 0 means none.
    pub weight: u32,
}

/// The nodes, and pgsteer's own login role.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cluster {
    /// All nodes, in the order given.
    pub nodes: Vec<Node>,
    /// Login role of probes and of the auth query.
    pub user: String,
    /// Its password, read from `password_file` where that was given.
    pub password: Option<Secret>,
    /// The database that probes connect to.
    pub database: String,
}

impl Default for Cluster {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            user: "postgres".to_owned(),
            password: None,
            database: "postgres".to_owned(),
        }
    }
}

/// How clients prove who they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// By password, checked against the servers' own verifiers.
    ScramSha256,
    /// Not at all.
    Trust,
}

/// Authentication of clients.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Auth {
    /// `auth.type`
    pub method: AuthMethod,
    /// The auth query.
    pub query: String,
    /// How long a verifier is believed without asking again.
    pub cache_ttl: Duration,
}

impl Default for Auth {
    fn default() -> Self {
        Self {
            method: AuthMethod::ScramSha256,
            query: DEFAULT_AUTH_QUERY.to_owned(),
            cache_ttl: Duration::from_secs(60),
        }
    }
}

/// How a promotion is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PromotionEvents {
    /// By a replication connection to each standby while the primary is doubted, where the servers allow that; and by probes.
    Watch,
    /// By probes.
    Off,
}

/// Probing and judging the nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    /// Between two probe rounds while all is well.
    pub probe_interval: Duration,
    /// Between two probe rounds while the primary is doubted.
    pub rapid_interval: Duration,
    /// Between two probe rounds while sessions wait to know that standbys have what they wrote or saw.
    pub sample_interval: Duration,
    /// Time for a probe to be answered.
    pub probe_timeout: Duration,
    /// Time to connect and log in to a node.
    pub connect_timeout: Duration,
    /// How long a primary's own attestation is believed.
    pub claim_ttl: Duration,
    /// How long replay may stand still while the primary is doubted before reads must leave the standby; zero: for ever.
    pub replay_stall_timeout: Duration,
    /// Whether standbys tell of their promotion.
    pub promotion_watch: PromotionEvents,
    /// What becomes of reads while the primary is out of reach and may live.
    pub on_primary_unreachable: OnUnreachable,
}

impl Default for Topology {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(100),
            rapid_interval: Duration::from_millis(5),
            sample_interval: Duration::from_millis(2),
            probe_timeout: Duration::from_millis(500),
            connect_timeout: Duration::from_secs(2),
            claim_ttl: Duration::from_secs(1),
            replay_stall_timeout: Duration::from_millis(50),
            promotion_watch: PromotionEvents::Watch,
            on_primary_unreachable: OnUnreachable::Hold,
        }
    }
}

/// Server connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// How long a session keeps its server connection.
    pub mode: Mode,
    /// Most server connections for each node, database and user.
    pub size: u64,
    /// Server connections kept open for each node, database and user of which a client is there.
    pub min_pool_size: u64,
    /// Server connections beyond `size` for those who have waited for `reserve_pool_timeout`.
    pub reserve_pool_size: u64,
    /// How long that is; zero: nobody gets one.
    pub reserve_pool_timeout: Duration,
    /// Most server connections for each node and database; 0: no limit.
    pub max_db_connections: u64,
    /// Most server connections for each node and user; 0: no limit.
    pub max_user_connections: u64,
    /// Age after which a server connection is replaced; zero: it is used once.
    pub server_lifetime: Duration,
    /// Idle time after which a server connection is closed; zero: never.
    pub server_idle_timeout: Duration,
    /// How long a statement waits for a server connection before its client gets 53300; zero: for ever.
    pub query_wait_timeout: Duration,
    /// How long a client may do nothing in a transaction; zero: as long as it likes.
    pub idle_transaction_timeout: Duration,
    /// Most prepared statements kept on a server connection.
    pub max_prepared_statements: u64,
    /// `[[pool.database]]`
    pub databases: Vec<Override>,
    /// `[[pool.user]]`
    pub users: Vec<Override>,
}

impl Default for Pool {
    fn default() -> Self {
        Self {
            mode: Mode::Transaction,
            size: 20,
            min_pool_size: 0,
            reserve_pool_size: 0,
            reserve_pool_timeout: Duration::from_secs(5),
            max_db_connections: 0,
            max_user_connections: 0,
            server_lifetime: Duration::from_secs(3600),
            server_idle_timeout: Duration::from_secs(600),
            query_wait_timeout: Duration::from_secs(120),
            idle_transaction_timeout: Duration::ZERO,
            max_prepared_statements: 200,
            databases: Vec::new(),
            users: Vec::new(),
        }
    }
}

/// What one database or user has of its own. Of a database those fields are set that PgBouncer has for databases, of a
/// user those that it has for users.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Override {
    /// Of the database or user.
    pub name: String,
    /// `mode`
    pub mode: Option<Mode>,
    /// `size`
    pub size: Option<u64>,
    /// `min_pool_size`
    pub min_pool_size: Option<u64>,
    /// `reserve_pool_size`
    pub reserve_pool_size: Option<u64>,
    /// `max_db_connections` or `max_user_connections`
    pub max_connections: Option<u64>,
    /// `max_db_client_connections` or `max_user_client_connections`
    pub max_client_connections: Option<u64>,
    /// `server_lifetime`
    pub server_lifetime: Option<Duration>,
    /// `query_wait_timeout`
    pub query_wait_timeout: Option<Duration>,
    /// `client_idle_timeout`
    pub client_idle_timeout: Option<Duration>,
    /// `idle_transaction_timeout`
    pub idle_transaction_timeout: Option<Duration>,
}

/// Statements that wait for a primary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// How long before the client gets 57P03.
    pub timeout: Duration,
    /// Most statements held at once.
    pub max_count: u64,
    /// Most bytes held at once.
    pub max_bytes: u64,
}

impl Default for Hold {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(30), max_count: 10_000, max_bytes: 64 * MIB }
    }
}

/// Running reads again elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// How much of an answer is held back while it can still be retried.
    pub buffer: u64,
    /// How long an answer is held back.
    pub hold_time: Duration,
    /// How much of answers all sessions together may keep beyond their relay buffers.
    pub buffer_total: u64,
    /// Most attempts after the first; 0 retries nothing.
    pub attempts: u64,
    /// Percent of the connections of a pool on the primary that reads may have which standbys cancel.
    pub primary_budget: u64,
    /// How long a shape of reads that standbys cancel again and again is steered; zero: none is.
    pub steer_time: Duration,
    /// How long reading from a standby may stop because its client does not take what was read.
    pub standby_stall_timeout: Duration,
    /// How much is read from a standby for a client that is behind.
    pub standby_stall_buffer: u64,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            buffer: 64 * KIB,
            hold_time: Duration::from_millis(500),
            buffer_total: 64 * MIB,
            attempts: 3,
            primary_budget: 50,
            steer_time: Duration::from_secs(60),
            standby_stall_timeout: Duration::from_secs(1),
            standby_stall_buffer: MIB,
        }
    }
}

/// The drain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shutdown {
    /// How long transactions may take to end.
    pub timeout: Duration,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self { timeout: Duration::from_secs(60) }
    }
}
