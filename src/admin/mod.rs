//! The HTTP address for people and machines that look after pgsteer: metrics, health, topology, pools.
//!
//! Invariant: reads only, and never in a statement's way; its answers come from a [`Status`] that `app` wires up.
//! Must not know: sessions, how the cluster is judged, configuration files.

pub mod failovers;
pub mod http;
pub mod json;
pub mod learned;
pub mod pools;

pub use http::{Limits, Readiness, Status, serve};
pub use json::Event;
