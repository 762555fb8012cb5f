//! PostgreSQL's protocol v3 as bytes: header scan, the messages pgsteer must look into, SQLSTATEs, limits.
//!
//! Invariant: nothing here trusts a length or a string that came from outside, and nothing panics on any input.
//! Must not know: sockets, sessions, nodes.

pub mod extended;
pub mod frame;
pub mod peer;
pub mod reply;
pub mod sqlstate;
pub mod startup;
pub mod text;

pub use sqlstate::SqlState;
