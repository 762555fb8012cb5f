//! Who is the primary and how fresh is each standby: discovery -> probe -> reconcile -> snapshot.
//!
//! Invariant: evidence is SQL answered by the node itself; `reconcile` is the only judge; no answer means unknown, never
//! primary. Must not know: sessions, pools, routing.

mod chronicle;
pub mod discovery;
pub mod evidence;
pub mod failover;
pub mod lag_clock;
pub mod model;
pub mod monitor;
pub mod probe;
pub mod reconcile;
pub mod watchers;
