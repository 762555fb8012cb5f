//! A server connection in the hands of one session.
//!
//! Invariant: dropping a lease closes its connection; only `release` gives it back to the pool. Must not know: sessions.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::set::{Pool, Pools};
use super::shared::Limit;
use super::wait::Room;
use crate::auth::RoleOid;
use crate::backend::{self, ConnectError, Endpoint, Server};

/// Why a session gets no connection.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    /// Connecting or logging in failed.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// All connections stayed busy for `query_wait_timeout`; the limit that allowed no further one.
    #[error("no server connection became free in time ({})", .0.as_str())]
    TimedOut(Limit),
    /// The node has ceased to be what it was chosen for; choose again.
    #[error("the node was fenced")]
    Fenced,
    /// The user name belongs to another role by now.
    #[error("the user is another role by now")]
    OtherRole,
}

/// A leased connection.
#[derive(Debug)]
pub struct Lease {
    server: Option<Box<Server>>,
    pool: Rc<Pool>,
    pools: Rc<Pools>,
}

impl Lease {
    pub(super) fn new(server: Box<Server>, pool: Rc<Pool>, pools: Rc<Pools>) -> Self {
        Self { server: Some(server), pool, pools }
    }

    /// The connection. `None` only after `release`, which consumes the lease.
    pub fn server(&mut self) -> Option<&mut Server> {
        self.server.as_deref_mut()
    }

    /// Gives the connection back, fit for the next session.
    pub fn release(mut self, now: Instant) {
        if let Some(mut server) = self.server.take() {
            server.idle_since = now;
            self.pools.give(&self.pool, server);
        }
    }

    /// Another connection in the place of this one, which is closed. For one with a startup packet of its own.
    pub async fn open_anew(mut self, endpoint: &Endpoint, role: Option<RoleOid>) -> Result<Self, LeaseError> {
        let room = Room::new(&self.pools, &self.pool);
        if let Some(server) = self.server.take() {
            self.pools.closed_for_another();
            server.terminate();
        }
        let pools = Rc::clone(&self.pools);
        drop(self);
        pools.open(room, endpoint, role).await
    }

    /// Has the server forget the session (`DISCARD ALL`), then gives it back; closes it if that fails.
    pub async fn reset_and_release(self, timeout: Duration) {
        if let Some(lease) = self.reset(timeout).await {
            lease.release(Instant::now());
        }
    }

    /// Has the server forget the session (`DISCARD ALL`); closes it if that fails.
    pub(super) async fn reset(mut self, timeout: Duration) -> Option<Self> {
        let server = self.server.as_deref_mut()?;
        match tokio::time::timeout(timeout, backend::reset::reset(server)).await {
            Ok(Ok(())) => Some(self),
            Ok(Err(_)) | Err(_) => None,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(server) = self.server.take() {
            self.pools.closed(&self.pool);
            server.terminate();
        }
    }
}
