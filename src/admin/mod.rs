//! The HTTP address for people and machines that look after pgsteer: metrics, health, topology, pools, and the pause.
//!
//! Invariant: reads only, but for the pause, and never in a statement's way; its answers come from a [`Status`] that `app` wires up.
//! Must not know: sessions, how the cluster is judged, configuration files.

pub mod command_line;
pub mod console;
pub mod failovers;
pub mod http;
pub mod json;
pub mod learned;
mod parameters;
pub mod pools;
pub mod request;

pub use http::{Limits, Readiness, Status, serve};
pub use json::Event;
