//! How many clients may be in: all together, for each database, for each user.
//!
//! Invariant: a place is counted before it is given, and given up when the client is gone, so that no burst gets more in than
//! the limits say. Locks are taken at logins only. Must not know: sockets, passwords.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::wire::reply::Report;
use crate::wire::sqlstate as state;

/// Connections that have not said yet who they are (or are cancel requests): so many more than `max_client_conn` are taken.
const ANTEROOM_MAX: usize = 1024;

/// A limit on clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientLimit {
    /// `listen.max_client_conn`
    All,
    /// `listen.max_db_client_connections`
    Database,
    /// `listen.max_user_client_connections`
    User,
}

impl ClientLimit {
    /// All, in the order of their discriminants.
    pub(super) const ALL: [Self; 3] = [Self::All, Self::Database, Self::User];

    /// Its key, which is its label in metrics.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::All => "max_client_conn",
            Self::Database => "max_db_client_connections",
            Self::User => "max_user_client_connections",
        }
    }
}

/// What the client beyond a limit is told.
pub(super) fn refusal(limit: ClientLimit) -> Report {
    let key = limit.as_str();
    Report::fatal(state::TOO_MANY_CONNECTIONS, format!("pgsteer: too many clients already ({key})"))
        .detail(format!("As many clients are connected as listen.{key} allows."))
        .hint(format!("Raise listen.{key}, or close connections that are not used."))
}

/// One limit for all names but those that have their own; `None`: none.
#[derive(Debug, Default)]
struct ByName {
    most: Option<usize>,
    own: HashMap<String, usize>,
    taken: Mutex<HashMap<Arc<str>, usize>>,
}

impl ByName {
    fn new(most: u64, own: impl Iterator<Item = (String, u64)>) -> Self {
        let own = own.map(|(name, most)| (name, some(most).unwrap_or(usize::MAX))).collect();
        Self { most: some(most), own, taken: Mutex::default() }
    }

    /// Takes a place; `None` where the name has none left, `Some(None)` where nobody counts.
    fn take(&self, name: &str) -> Option<Option<Arc<str>>> {
        let Some(most) = self.own.get(name).copied().or(self.most) else { return Some(None) };
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        let name: Arc<str> = match taken.get_key_value(name) {
            Some((_, count)) if *count >= most => return None,
            Some((name, _)) => Arc::clone(name),
            None => name.into(),
        };
        *taken.entry(Arc::clone(&name)).or_default() += 1;
        Some(Some(name))
    }

    fn give(&self, name: &Arc<str>) {
        let mut taken = self.taken.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = taken.get_mut(name) {
            *count -= 1;
            if *count == 0 {
                taken.remove(name);
            }
        }
    }
}

fn some(limit: u64) -> Option<usize> {
    (limit > 0).then(|| usize::try_from(limit).unwrap_or(usize::MAX))
}

/// All places, and those that are taken.
#[derive(Debug)]
pub(super) struct Seats {
    most: usize,
    arrived: AtomicUsize,
    seated: AtomicUsize,
    databases: ByName,
    users: ByName,
}

impl Seats {
    pub(super) fn new(config: &Config) -> Arc<Self> {
        let listen = &config.listen;
        let own = |of: &[crate::config::Override]| -> Vec<(String, u64)> {
            of.iter().filter_map(|it| Some((it.name.clone(), it.max_client_connections?))).collect()
        };
        Arc::new(Self {
            most: usize::try_from(listen.max_client_conn).unwrap_or(usize::MAX),
            arrived: AtomicUsize::new(0),
            seated: AtomicUsize::new(0),
            databases: ByName::new(listen.max_db_client_connections, own(&config.pool.databases).into_iter()),
            users: ByName::new(listen.max_user_client_connections, own(&config.pool.users).into_iter()),
        })
    }

    /// A connection has come; `None` when not even the anteroom has room for it.
    pub(super) fn arrive(self: &Arc<Self>) -> Option<Seat> {
        take(&self.arrived, self.most.saturating_add(ANTEROOM_MAX)).then(|| Seat {
            seats: Arc::clone(self),
            seated: false,
            database: None,
            user: None,
        })
    }

    /// Clients that have a place, and how many may have one.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.seated.load(Ordering::Relaxed), self.most)
    }
}

fn take(count: &AtomicUsize, most: usize) -> bool {
    count
        .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |taken| (taken < most).then_some(taken + 1))
        .is_ok()
}

/// What one connection has taken; given up when this is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    seated: bool,
    database: Option<Arc<str>>,
    user: Option<Arc<str>>,
}

impl Seat {
    /// It wants to be a client.
    pub(super) fn sit(&mut self) -> Result<(), ClientLimit> {
        if !self.seated {
            self.seated = take(&self.seats.seated, self.seats.most);
        }
        if self.seated { Ok(()) } else { Err(ClientLimit::All) }
    }

    /// It has proved that it may be this user. Called once.
    pub(super) fn sit_as(&mut self, database: &str, user: &str) -> Result<(), ClientLimit> {
        self.user = self.seats.users.take(user).ok_or(ClientLimit::User)?;
        self.database = self.seats.databases.take(database).ok_or(ClientLimit::Database)?;
        Ok(())
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(name) = &self.database {
            self.seats.databases.give(name);
        }
        if let Some(name) = &self.user {
            self.seats.users.give(name);
        }
        if self.seated {
            self.seats.seated.fetch_sub(1, Ordering::SeqCst);
        }
        self.seats.arrived.fetch_sub(1, Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seats(most: u64, per_database: u64, ann: u64) -> Arc<Seats> {
        let mut config = Config::default();
        config.listen.max_client_conn = most;
        config.listen.max_db_client_connections = per_database;
        config.pool.users = vec![crate::config::Override {
            name: "ann".to_owned(),
            max_client_connections: Some(ann),
            ..crate::config::Override::default()
        }];
        Seats::new(&config)
    }

    #[test]
    fn each_limit_is_held_and_given_back() {
        let seats = seats(4, 3, 2);
        let sit = |database: &str, user: &str| {
            let mut seat = seats.arrive().unwrap();
            seat.sit().and_then(|()| seat.sit_as(database, user)).map(|()| seat)
        };
        let (first, _second) = (sit("a", "ann").unwrap(), sit("b", "ann").unwrap());
        assert_eq!(sit("a", "ann").unwrap_err(), ClientLimit::User);
        assert_eq!(seats.taken(), (2, 4), "who is refused leaves nothing behind");
        let _others = [sit("a", "bob").unwrap(), sit("a", "bob").unwrap()];
        drop(first);
        let third = sit("a", "bob").unwrap();
        assert_eq!(sit("b", "bob").unwrap_err(), ClientLimit::All);
        drop(third);
        sit("a", "ann").unwrap();
        let _again = sit("a", "bob").unwrap();
        drop(_second);
        assert_eq!(sit("a", "ann").unwrap_err(), ClientLimit::Database);
        sit("b", "ann").unwrap();
    }

    /// A burst from many threads: exactly as many as there are places.
    #[test]
    fn no_burst_gets_more_in() {
        let seats = seats(50, 30, 2);
        let got: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let mut kept = Vec::new();
                        for _ in 0..100 {
                            let mut seat = seats.arrive().unwrap();
                            if seat.sit().is_ok() && seat.sit_as("a", "bob").is_ok() {
                                kept.push(seat);
                            }
                        }
                        kept
                    })
                })
                .collect();
            let kept: Vec<_> = threads.into_iter().map(|thread| thread.join().unwrap()).collect();
            kept.iter().map(Vec::len).sum()
        });
        assert_eq!(got, 30);
        assert_eq!(seats.taken().0, 0);
    }

    #[test]
    fn the_anteroom_is_bounded() {
        let seats = seats(1, 0, 0);
        let arrived: Vec<Seat> = std::iter::from_fn(|| seats.arrive()).collect();
        assert_eq!(arrived.len(), 1 + ANTEROOM_MAX);
    }
}
