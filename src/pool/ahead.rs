//! Connections that are opened while statements wait for a primary, so that the first of them needs no login when there is one.
//!
//! Invariant: bounded for each pool and shard, and nobody waits for it; what is opened here is idle until somebody leases it, under
//! the rules of every lease. Must not know: sessions, who will be the primary.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::group::PoolGroup;
use super::lease::LeaseError;
use super::set::{Pool, Pools};
use super::shared::Limit;
use super::tend::KEEPING_PAUSE;
use super::wait::Room;
use crate::backend::login::LoginError;
use crate::backend::{ConnectError, Endpoint};
use crate::topology::model::{Epoch, Role, Snapshot};
use crate::wire::sqlstate;

/// So many connections to a node are opened for a database and user.
const OPENED_AHEAD: usize = 4;

/// A node that is starting is asked again after so long, as probes do.
const RESTART_INTERVAL: Duration = Duration::from_millis(5);

/// And for so long at most: who takes longer is found by probes alone.
const RESTART_WITHIN: Duration = Duration::from_secs(2);

/// For so many pools of a shard at a time, since each try costs the node a process.
const RESTARTS_AWAITED: usize = 2;

impl Pools {
    /// A statement of the group begins to wait for a primary. One more connection is opened to each standby, of which one is the
    /// next primary, and one to the node that was it and may be starting anew. Who fails is not asked again for a while.
    pub fn open_ahead(self: &Rc<Self>, group: &PoolGroup, snapshot: &Snapshot, now: Instant) {
        for view in &snapshot.nodes {
            let pool = self.pool_of(group, view.id);
            if !pool.may_keep(now) {
                continue;
            }
            let endpoint = self.endpoint_of(group, view, snapshot.epoch);
            match view.role {
                Role::Standby => {
                    tokio::task::spawn_local(Rc::clone(self).open_one(pool, endpoint));
                }
                Role::Primary | Role::Unknown if self.restarts_awaited.get() < RESTARTS_AWAITED => {
                    pool.may_keep_from.set(Some(now + RESTART_WITHIN));
                    self.restarts_awaited.set(self.restarts_awaited.get() + 1);
                    tokio::task::spawn_local(Rc::clone(self).await_restart(pool, endpoint));
                }
                Role::Primary | Role::Unknown | Role::Quarantined | Role::Refused => {}
            }
        }
    }

    async fn open_one(self: Rc<Self>, pool: Rc<Pool>, endpoint: Endpoint) {
        if let Err(error) = self.try_ahead(&pool, &endpoint).await {
            tracing::debug!(node = endpoint.node.0, %error, "no connection ahead of a promotion");
            pool.may_keep_from.set(Some(Instant::now() + KEEPING_PAUSE));
        }
    }

    /// A server that has been refusing connections is not the one any more that was the primary: what is opened behind that is of the
    /// next epoch already, and no fence need cut it.
    async fn await_restart(self: Rc<Self>, pool: Rc<Pool>, mut endpoint: Endpoint) {
        let (until, next) = (Instant::now() + RESTART_WITHIN, Epoch(endpoint.epoch.0 + 1));
        while let Err(LeaseError::Connect(error)) = self.try_ahead(&pool, &endpoint).await {
            if !refuses(&error) || Instant::now() >= until {
                tracing::debug!(node = endpoint.node.0, %error, "no connection ahead of a restart");
                break;
            }
            endpoint.epoch = next;
            tokio::time::sleep(RESTART_INTERVAL).await;
        }
        self.restarts_awaited.set(self.restarts_awaited.get().saturating_sub(1));
    }

    /// Opens one, if fewer than [`OPENED_AHEAD`] are open and all limits have room for it, and leaves it to whoever comes.
    async fn try_ahead(self: &Rc<Self>, pool: &Rc<Pool>, endpoint: &Endpoint) -> Result<(), LeaseError> {
        match pool.shared.take_up_to(OPENED_AHEAD.min(pool.shared.limits.size)) {
            Ok(()) => {
                let lease = self.open(Room::new(self, pool), endpoint, None).await?;
                lease.release(Instant::now());
            }
            Err(Limit::Pool) => {}
            // For a moment it was counted in the pool: somebody may have begun to wait because of that.
            Err(Limit::Database | Limit::User) => self.let_open(pool),
        }
        Ok(())
    }
}

/// Nobody listens, or who does is starting or stopping.
fn refuses(error: &ConnectError) -> bool {
    match error {
        ConnectError::Io(error) => error.kind() == std::io::ErrorKind::ConnectionRefused,
        ConnectError::Login(LoginError::Refused { code, .. }) => *code == sqlstate::CANNOT_CONNECT_NOW,
        ConnectError::Login(_) | ConnectError::TimedOut => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// P1: only a refusal shows that the old server is gone. A time-out or an end in the middle may be a server that lives.
    #[test]
    fn only_a_refusal_makes_the_next_connection_one_of_the_next_epoch() {
        let io = |kind: std::io::ErrorKind| ConnectError::Io(kind.into());
        let login = |code| {
            ConnectError::Login(LoginError::Refused {
                code,
                message: String::new(),
                frame: Vec::new(),
                authenticated: false,
            })
        };
        assert!(refuses(&io(std::io::ErrorKind::ConnectionRefused)));
        assert!(refuses(&login(sqlstate::CANNOT_CONNECT_NOW)));
        for error in [
            io(std::io::ErrorKind::ConnectionReset),
            io(std::io::ErrorKind::UnexpectedEof),
            ConnectError::TimedOut,
            login(sqlstate::TOO_MANY_CONNECTIONS),
        ] {
            assert!(!refuses(&error), "{error}");
        }
    }
}
