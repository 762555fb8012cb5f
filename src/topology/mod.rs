//! Who is the primary and how fresh is each standby: discovery -> probe -> reconcile -> snapshot.
//!
//! Invariant: evidence is SQL answered by the node itself; `reconcile` is the only judge; no answer means unknown, never
//! primary. Must not know: sessions, pools, routing.

pub mod model;
