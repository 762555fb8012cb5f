//! Connections that are opened while statements wait for a primary, so that the first of them needs no login when there is one.
//!
//! Invariant: bounded for each pool and shard. What is opened to a standby is idle until somebody leases it, under the rules of every
//! lease. What is opened to the node that was the primary is of no epoch, and nobody's, until its own server has told on it that it is the
//! server that is the primary now: nothing is sent on it before. Must not know: sessions, who will be the primary.

use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use super::group::PoolGroup;
use super::lease::{Lease, LeaseError};
use super::set::{Pool, Pools};
use super::shared::Limit;
use super::tend::KEEPING_PAUSE;
use super::wait::Room;
use crate::auth::RoleOid;
use crate::backend::login::Asks;
use crate::backend::{Endpoint, Server};
use crate::topology::model::{Epoch, Incarnation, NodeId, Role, Snapshot};

/// So many connections to a node are opened for a database and user.
const OPENED_AHEAD: usize = 4;

/// A login that is under way when there is a primary is waited for so long, in place of beginning another one.
const AWAITED: Duration = Duration::from_millis(20);

/// A logged-in connection, and the server that it leads to.
struct Known {
    room: Room,
    server: Box<Server>,
    incarnation: Incarnation,
}

/// A connection to the node that was the primary, for one session, begun before anybody knows which server is there. Dropped, it is closed.
pub struct Ahead {
    node: NodeId,
    login: JoinHandle<Option<Known>>,
}

impl Ahead {
    /// Whether this is the node.
    pub fn is_to(&self, node: NodeId) -> bool {
        self.node == node
    }

    /// The connection, as one of this epoch, if its own server has told that it is the epoch's primary. `None`: it leads elsewhere, or could
    /// not be opened in time. Cancel-safe.
    pub async fn admitted(
        mut self,
        pools: &Rc<Pools>,
        (epoch, primary): (Epoch, Incarnation),
        role: Option<RoleOid>,
    ) -> Option<Lease> {
        let Known { room, server, incarnation } =
            tokio::time::timeout(AWAITED, &mut self.login).await.ok()?.ok()??;
        if !server.is_quiet() || server.generation != room.generation() {
            return None;
        }
        if incarnation != primary {
            tracing::debug!(
                node = self.node.0,
                ?incarnation,
                ?primary,
                "a connection leads to another server"
            );
            server.terminate();
            return None;
        }
        tracing::debug!(node = self.node.0, %epoch, "a connection that was opened ahead leads to the primary");
        server.link.epoch.set(epoch);
        pools.take_in(room, server, role).ok()
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        self.login.abort();
    }
}

impl Pools {
    /// A statement of the group begins to wait for a primary: one more connection is opened to each standby, of which one is the next
    /// primary. Who fails is not asked again for a while.
    pub fn open_ahead(self: &Rc<Self>, group: &PoolGroup, snapshot: &Snapshot, now: Instant) {
        for view in snapshot.nodes.iter().filter(|view| view.role == Role::Standby) {
            let pool = self.pool_of(group, view.id);
            if pool.may_keep(now) {
                let endpoint = self.endpoint_of(group, view, snapshot.epoch);
                tokio::task::spawn_local(Rc::clone(self).open_one(pool, endpoint));
            }
        }
    }

    /// Begins to open a connection to the node that was the primary, for a session that waits, unless there are enough or one is idle.
    pub fn open_to_former(self: &Rc<Self>, pool: &Rc<Pool>, mut endpoint: Endpoint) -> Option<Ahead> {
        if pool.state.borrow().idle_count() > 0 {
            return None;
        }
        match pool.shared.take_up_to(OPENED_AHEAD.min(pool.shared.limits.size)) {
            Ok(()) => {}
            Err(Limit::Pool) => return None,
            Err(Limit::Database | Limit::User) => {
                // For a moment it was counted in the pool: somebody may have begun to wait because of that.
                self.let_open(pool);
                return None;
            }
        }
        endpoint.asks = Asks::RoleAndServer;
        let (node, room, pools) = (endpoint.node, Room::new(self, pool), Rc::clone(self));
        let login = tokio::task::spawn_local(async move {
            let known = pools.get_to_know(room, &endpoint).await;
            if known.is_none() {
                tracing::debug!(node = endpoint.node.0, "no connection ahead of the first answer");
            }
            known
        });
        Some(Ahead { node, login })
    }

    async fn get_to_know(self: Rc<Self>, room: Room, endpoint: &Endpoint) -> Option<Known> {
        let generation = room.generation();
        let mut server = self.registry().keys.log_in(endpoint).await.ok()?;
        server.generation = generation;
        let incarnation = server.incarnation?;
        Some(Known { room, server, incarnation })
    }

    async fn open_one(self: Rc<Self>, pool: Rc<Pool>, endpoint: Endpoint) {
        if let Err(error) = self.try_ahead(&pool, &endpoint).await {
            tracing::debug!(node = endpoint.node.0, %error, "no connection ahead of a promotion");
            pool.may_keep_from.set(Some(Instant::now() + KEEPING_PAUSE));
        }
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
