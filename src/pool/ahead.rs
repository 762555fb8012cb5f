//! Connections that are opened while statements wait for a primary, so that the first of them needs no login when there is one.
//!
//! Invariant: bounded for each pool and shard, and nobody waits for it; what is opened here is idle until somebody leases it, under
//! the rules of every lease. Must not know: sessions, who will be the primary.

use std::rc::Rc;
use std::time::Instant;

use super::group::PoolGroup;
use super::lease::LeaseError;
use super::set::{Pool, Pools};
use super::shared::Limit;
use super::tend::KEEPING_PAUSE;
use super::wait::Room;
use crate::backend::Endpoint;
use crate::topology::model::{Role, Snapshot};

/// So many connections to a node are opened for a database and user.
const OPENED_AHEAD: usize = 4;

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
