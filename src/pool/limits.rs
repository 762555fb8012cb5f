//! What may be set for pools, for all of them or for those of one database or user, and what that comes to for one pool.
//!
//! Invariant: pure. A user's own value wins over the database's own, that one over the value for all. Must not know: where
//! the values come from, how they are held to.

use std::collections::HashMap;
use std::time::Duration;

/// How long a session keeps its server connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// To the end of each transaction, or longer while it is pinned.
    #[default]
    Transaction,
    /// From its first statement to its own end, on the primary.
    Session,
}

impl Mode {
    /// The word in configuration and on the admin address.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Transaction => "transaction",
            Self::Session => "session",
        }
    }
}

/// What holds for one pool: one (node, database, user), on all shards together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// How long a session keeps its connection.
    pub mode: Mode,
    /// Most connections.
    pub size: usize,
    /// Connections kept open while a client of the database and user is there; more than `size` means `size`.
    pub min_size: usize,
    /// Connections beyond `size` for those who have waited for `reserve_timeout`.
    pub reserve_size: usize,
    /// How long that is; `None`: nobody gets one.
    pub reserve_timeout: Option<Duration>,
    /// Most connections to one node and database, of all users.
    pub database_max: Option<usize>,
    /// Most connections to one node as one user, to all databases.
    pub user_max: Option<usize>,
    /// A connection older than this is closed when nobody uses it.
    pub server_lifetime: Duration,
    /// A connection idle for longer than this is closed, unless it is one of `min_size`.
    pub server_idle_timeout: Option<Duration>,
    /// How long a session waits for a connection before it gets 53300.
    pub query_wait_timeout: Option<Duration>,
    /// How long a client may do nothing between transactions.
    pub client_idle_timeout: Option<Duration>,
    /// How long a client may do nothing in a transaction.
    pub idle_transaction_timeout: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            mode: Mode::Transaction,
            size: 20,
            min_size: 0,
            reserve_size: 0,
            reserve_timeout: Some(Duration::from_secs(5)),
            database_max: None,
            user_max: None,
            server_lifetime: Duration::from_secs(3600),
            server_idle_timeout: Some(Duration::from_secs(600)),
            query_wait_timeout: Some(Duration::from_secs(120)),
            client_idle_timeout: None,
            idle_transaction_timeout: None,
        }
    }
}

/// The values that one database or user has of its own; a zero means none, as in `Limits`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OwnLimits {
    /// `mode`
    pub mode: Option<Mode>,
    /// `size`
    pub size: Option<usize>,
    /// `min_pool_size`
    pub min_size: Option<usize>,
    /// `reserve_pool_size`
    pub reserve_size: Option<usize>,
    /// `max_db_connections` of a database, `max_user_connections` of a user.
    pub connections_max: Option<usize>,
    /// `server_lifetime`
    pub server_lifetime: Option<Duration>,
    /// `query_wait_timeout`
    pub query_wait_timeout: Option<Duration>,
    /// `client_idle_timeout`
    pub client_idle_timeout: Option<Duration>,
    /// `idle_transaction_timeout`
    pub idle_transaction_timeout: Option<Duration>,
}

impl OwnLimits {
    fn apply_to(&self, limits: &mut Limits) {
        limits.mode = self.mode.unwrap_or(limits.mode);
        limits.size = self.size.unwrap_or(limits.size);
        limits.min_size = self.min_size.unwrap_or(limits.min_size);
        limits.reserve_size = self.reserve_size.unwrap_or(limits.reserve_size);
        limits.server_lifetime = self.server_lifetime.unwrap_or(limits.server_lifetime);
        for (own, field) in [
            (self.query_wait_timeout, &mut limits.query_wait_timeout),
            (self.client_idle_timeout, &mut limits.client_idle_timeout),
            (self.idle_transaction_timeout, &mut limits.idle_transaction_timeout),
        ] {
            *field = own.map_or(*field, time_limit);
        }
    }
}

/// A limit of time; zero means that there is none.
pub fn time_limit(limit: Duration) -> Option<Duration> {
    (!limit.is_zero()).then_some(limit)
}

/// A limit of number; zero means that there is none.
pub fn count_limit(limit: usize) -> Option<usize> {
    (limit > 0).then_some(limit)
}

/// Settings of pooling (`[pool]`).
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// What holds for a pool that has nothing of its own.
    pub limits: Limits,
    /// By name.
    pub databases: HashMap<String, OwnLimits>,
    /// By name.
    pub users: HashMap<String, OwnLimits>,
    /// Bound of connecting and logging in to a server.
    pub connect_timeout: Duration,
    /// Most prepared statements kept on a server connection.
    pub max_prepared_statements: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            databases: HashMap::new(),
            users: HashMap::new(),
            connect_timeout: Duration::from_secs(5),
            max_prepared_statements: 200,
        }
    }
}

impl Settings {
    /// What holds for the pools of this database and user.
    pub fn limits_of(&self, database: &str, user: &str) -> Limits {
        let mut limits = self.limits;
        if let Some(own) = self.databases.get(database) {
            own.apply_to(&mut limits);
            limits.database_max = own.connections_max.map_or(limits.database_max, count_limit);
        }
        if let Some(own) = self.users.get(user) {
            own.apply_to(&mut limits);
            limits.user_max = own.connections_max.map_or(limits.user_max, count_limit);
        }
        limits.min_size = limits.min_size.min(limits.size);
        limits
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_own_value_wins_over_the_databases_over_that_for_all() {
        let own = |size, max| OwnLimits { size, connections_max: max, ..OwnLimits::default() };
        let settings = Settings {
            limits: Limits { database_max: Some(9), min_size: 4, ..Limits::default() },
            databases: HashMap::from([("shop".to_owned(), own(Some(5), Some(7)))]),
            users: HashMap::from([
                ("ann".to_owned(), own(Some(3), Some(8))),
                ("bob".to_owned(), own(None, None)),
            ]),
            ..Settings::default()
        };
        let of = |database, user| {
            let limits = settings.limits_of(database, user);
            (limits.size, limits.min_size, limits.database_max, limits.user_max)
        };
        assert_eq!(of("other", "eve"), (20, 4, Some(9), None));
        assert_eq!(of("shop", "bob"), (5, 4, Some(7), None));
        assert_eq!(of("shop", "ann"), (3, 3, Some(7), Some(8)), "at least min_size is no more than size");
    }

    #[test]
    fn zero_lifts_what_holds_for_all() {
        let own = OwnLimits {
            connections_max: Some(0),
            query_wait_timeout: Some(Duration::ZERO),
            ..OwnLimits::default()
        };
        let settings = Settings {
            limits: Limits { database_max: Some(9), ..Limits::default() },
            databases: HashMap::from([("shop".to_owned(), own)]),
            ..Settings::default()
        };
        let limits = settings.limits_of("shop", "ann");
        assert_eq!((limits.database_max, limits.query_wait_timeout), (None, None));
    }
}
