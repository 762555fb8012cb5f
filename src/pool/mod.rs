//! Server connections for each (node, database, user), leased for one transaction or pinned.
//!
//! Invariant: a connection is in exactly one place: idle in one shard's pool, leased by one session, or closed; a lease that
//! is dropped closes its connection. Idle ones are reused last-in first-out; waiters are served first come, first served.
//! Must not know: sessions, routing, SQL.

pub mod keys;
pub mod lease;
pub mod set;
pub mod state;

use std::time::Duration;

pub use keys::LoginKeys;
pub use lease::{Lease, LeaseError};
pub use set::{Fit, Mail, PoolGroup, PoolKey, Pools, Registry};

/// Settings of pooling (`[pool]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Most server connections for each (node, database, user), all shards together.
    pub size: usize,
    /// An idle connection older than this is closed.
    pub server_lifetime: Duration,
    /// A connection idle for longer than this is closed.
    pub server_idle_timeout: Duration,
    /// How long a session waits for a connection before it gets 53300.
    pub query_wait_timeout: Duration,
    /// Bound of connecting and logging in to a server.
    pub connect_timeout: Duration,
    /// Most prepared statements kept on a server connection.
    pub max_prepared_statements: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            size: 20,
            server_lifetime: Duration::from_secs(3600),
            server_idle_timeout: Duration::from_secs(600),
            query_wait_timeout: Duration::from_secs(120),
            connect_timeout: Duration::from_secs(5),
            max_prepared_statements: 200,
        }
    }
}
