//! Real PostgreSQL clusters on this machine, for the demo, the tests and the benches.
//!
//! A [`Sandbox`] is one primary and its streaming standbys, set up in a few seconds, in which every fault a
//! proxy must survive can be caused at will: crash, freeze, promotion, split brain, stalled replay.
//!
//! Invariant: however the owner ends, a return, a panic, Ctrl-C or SIGKILL, no process and no file stays behind.
//! `Drop` does it in the first cases, a watchdog process in the others.
//!
//! It must not know that pgsteer exists: it imports no other module, and nothing here talks through a proxy.

mod account;
mod binaries;
mod builder;
mod cluster;
mod command_line;
mod configuration;
mod error;
mod node;
mod processes;
mod site;
mod wait;
mod watchdog;

pub use binaries::Binaries;
pub use builder::{Auth, Builder, Sync};
pub use cluster::{Reattached, Sandbox};
pub use command_line::{SandboxArgs, run};
pub use error::Error;
pub use node::Node;
