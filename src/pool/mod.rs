//! Server connections for each (node, database, user), leased for one transaction, for a session, or pinned.
//!
//! Invariant: a connection is in exactly one place: idle in one shard's pool, leased by one session, or closed; a lease that
//! is dropped closes its connection. Idle ones are reused last-in first-out; waiters are served first come, first served.
//! Must not know: sessions, routing, SQL.

mod ahead;
mod group;
mod handover;
mod hidden;
pub mod keys;
pub mod lease;
pub mod limits;
pub mod place;
pub mod set;
pub mod shared;
pub mod state;
mod tend;
mod wait;

pub use ahead::Ahead;
pub use group::{CustomSettings, PoolGroup};
pub use hidden::{Definition, Found, Hidden};
pub use keys::LoginKeys;
pub use lease::{Lease, LeaseError};
pub use limits::{Limits, Mode, OwnLimits, Settings};
pub use place::{Budget, Place};
pub use set::{Fit, Pools, Wanted};
pub use shared::{DatabaseLessons, Limit, Mail, PoolKey, PoolReport, Registry};
