//! What is done to a shard's idle connections from outside: the fence, the regular look, databases that are left, and the
//! connections that are kept ready.
//!
//! Invariant: only idle connections are closed for their age; the fence also cuts leased ones. Nothing here makes a session
//! wait. Must not know: sessions.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::group::PoolGroup;
use super::lease::{Lease, LeaseError};
use super::set::{Pool, Pools};
use super::shared::{Limit, Mail, PoolKey};
use super::wait::Room;
use crate::auth::{RoleOid, Users};
use crate::backend::login::Asks;
use crate::backend::{Endpoint, Server};
use crate::topology::model::{Epoch, NodeId, NodeView, Role, Snapshot};

/// After a connection that was to be kept ready could not be opened, the next try waits for so long.
pub(super) const KEEPING_PAUSE: Duration = Duration::from_secs(5);

/// A pool is kept ready as long as a shard has said within this time that it has a session for it.
const WANTED_FOR: Duration = Duration::from_secs(5);

impl Pool {
    /// Whether connections may be opened for which nobody waits.
    pub(super) fn may_keep(&self, now: Instant) -> bool {
        self.may_keep_from.get().is_none_or(|from| from <= now)
    }

    /// How many connections `server_idle_timeout` leaves.
    fn kept_ready(&self) -> usize {
        if self.shared.was_wanted_within(WANTED_FOR) { self.shared.limits.min_size } else { 0 }
    }
}

impl Pools {
    /// Closes every connection to `node` opened before `epoch`, leased ones too: their sessions see the end at once.
    /// One that is being opened now, or comes from another shard, is not let in.
    pub fn fence(self: &Rc<Self>, node: NodeId, epoch: Epoch) {
        {
            let mut fenced = self.fenced.borrow_mut();
            if fenced.len() <= node.index() {
                fenced.resize(node.index() + 1, Epoch(0));
            }
            if let Some(before) = fenced.get_mut(node.index()) {
                *before = epoch.max(*before);
            }
        }
        for link in self.live_links() {
            if link.node == node && link.epoch.get() < epoch {
                crate::net::sever(&link.stream);
            }
        }
        self.close_idle(|key| key.node == node, |_, server| server.link.epoch.get() < epoch);
    }

    /// A logged-in connection becomes one of the shard's: the fence knows it from now on.
    pub(super) fn take_in(
        &self,
        room: Room,
        server: Box<Server>,
        role: Option<RoleOid>,
    ) -> Result<Lease, LeaseError> {
        let obstacle = if RoleOid::differ(server.role, role) {
            Some(LeaseError::OtherRole)
        } else {
            // The fence may have been run while the login was under way.
            self.is_fenced(&server).then_some(LeaseError::Fenced)
        };
        if let Some(obstacle) = obstacle {
            server.terminate();
            return Err(obstacle);
        }
        self.counters.server_connections_opened.add(1);
        self.enlist(&server);
        room.fill(server).ok_or(LeaseError::Fenced)
    }

    /// Whether the node has been fenced since the connection was opened.
    pub(super) fn is_fenced(&self, server: &Server) -> bool {
        let fenced = self.fenced.borrow();
        fenced.get(server.link.node.index()).is_some_and(|fenced| server.link.epoch.get() < *fenced)
    }

    /// Closes idle connections that are too old, unused for too long, outdated, or closed by the server.
    pub fn sweep(self: &Rc<Self>, now: Instant) {
        self.registry().expire(now);
        self.close_idle(
            |_| true,
            |pool, server| {
                let limits = &pool.shared.limits;
                let unused = now.saturating_duration_since(server.idle_since);
                pool.is_outlived(server, now)
                    || pool.is_outdated(server)
                    || (limits.server_idle_timeout.is_some_and(|timeout| unused > timeout)
                        && pool.shared.open_count() > pool.kept_ready())
                    || !server.is_quiet()
            },
        );
    }

    /// Opens connections, in the background, where fewer than `min_size` are open and a session of the database and user is on
    /// this shard. Closes nothing for it, and waits for nothing. To be called regularly.
    pub fn keep_ready(self: &Rc<Self>, snapshot: &Snapshot, now: Instant) {
        for group in self.live_groups().into_iter().filter(|group| group.limits().min_size > 0) {
            let in_use = |view: &&NodeView| matches!(view.role, Role::Primary | Role::Standby);
            for view in snapshot.nodes.iter().filter(in_use) {
                let pool = self.pool_of(&group, view.id);
                pool.shared.is_wanted_now();
                if pool.shared.open_count() >= group.limits().min_size || !pool.may_keep(now) {
                    continue;
                }
                // Until this round has ended nobody begins another one.
                pool.may_keep_from.set(Some(now + KEEPING_PAUSE));
                let endpoint = self.endpoint_of(&group, view, snapshot.epoch);
                tokio::task::spawn_local(Rc::clone(self).fill_up(pool, group.limits().min_size, endpoint));
            }
        }
    }

    pub(super) fn endpoint_of(&self, group: &PoolGroup, view: &NodeView, epoch: Epoch) -> Endpoint {
        Endpoint {
            node: view.id,
            address: Arc::clone(&view.address),
            epoch,
            user: Arc::clone(group.user()),
            database: Arc::clone(group.database()),
            secret: self.registry().keys.newest_of(group.user()),
            parameters: Vec::new(),
            asks: Asks::Role,
            timeout: self.settings().connect_timeout,
        }
    }

    async fn fill_up(self: Rc<Self>, pool: Rc<Pool>, min_size: usize, endpoint: Endpoint) {
        loop {
            match pool.shared.take_up_to(min_size) {
                Ok(()) => {}
                Err(Limit::Pool) => break,
                Err(Limit::Database | Limit::User) => {
                    // For a moment it was counted in the pool: somebody may have begun to wait because of that.
                    self.let_open(&pool);
                    break;
                }
            }
            match self.open(Room::new(&self, &pool), &endpoint, None).await {
                Ok(lease) => lease.release(Instant::now()),
                Err(error) => {
                    tracing::debug!(node = endpoint.node.0, %error, "no connection to be kept ready");
                    return;
                }
            }
        }
        pool.may_keep_from.set(None);
    }

    /// Closes all idle connections to a database, on every node and shard: DROP DATABASE and kin fail while anybody else is
    /// connected to it. Cancel-safe.
    pub async fn leave_database(self: &Rc<Self>, database: &Arc<str>) {
        self.leave_here(database);
        let registry = self.registry();
        for shard in (0..registry.mailboxes.len()).filter(|shard| *shard != self.shard) {
            let (done, closed) = oneshot::channel();
            if registry.send(shard, Mail::Leave { database: Arc::clone(database), done }).is_ok() {
                // The other end is dropped when it is done, and when the shard ends.
                let _ = closed.await;
            }
        }
    }

    pub(super) fn leave_here(self: &Rc<Self>, database: &Arc<str>) {
        self.close_idle(|pool| *pool.database == **database, |_, _| true);
    }

    /// No connection of these users is used again, idle or leased, on any node or shard: their roles have been created, altered or
    /// dropped.
    pub fn outdate(self: &Rc<Self>, users: &Users) {
        self.outdate_pools(|key| users.include(&key.user));
    }

    /// The same of a database, whose defaults have changed.
    pub fn outdate_database(self: &Rc<Self>, database: &str) {
        self.outdate_pools(|key| *key.database == *database);
    }

    fn outdate_pools(self: &Rc<Self>, of: impl Fn(&PoolKey) -> bool) {
        let registry = self.registry();
        registry.outdate(of);
        self.sweep(Instant::now());
        for shard in (0..registry.mailboxes.len()).filter(|shard| *shard != self.shard) {
            // A shard that has ended has none.
            let _ = registry.send(shard, Mail::Sweep);
        }
    }

    /// Databases to which there are pools, on this shard or another.
    pub fn databases(&self) -> Vec<Arc<str>> {
        self.registry().databases()
    }

    fn close_idle(
        self: &Rc<Self>,
        of: impl Fn(&PoolKey) -> bool,
        mut leave: impl FnMut(&Pool, &mut Server) -> bool,
    ) {
        for pool in self.pools_here(|shared| of(&shared.key)) {
            // One after the other, so that `leave` sees how many are still open.
            loop {
                let left = pool.state.borrow_mut().remove_first_idle(|server| leave(&pool, server));
                let Some(server) = left else { break };
                self.note_idle(&pool);
                server.terminate();
                self.closed(&pool);
            }
        }
    }

    /// Idle connections on this shard.
    pub fn idle_count(&self) -> usize {
        self.pools_here(|_| true).iter().map(|pool| pool.state.borrow().idle_count()).sum()
    }
}
