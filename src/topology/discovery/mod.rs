//! Who exists. Each source of nodes has a file of its own.
//!
//! Invariant: discovery only names nodes and gives hints; it never says who is healthy and never makes a primary.
//! Must not know: probes, snapshots.

pub mod fixed;
