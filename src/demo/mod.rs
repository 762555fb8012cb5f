//! `pgsteer demo`: a real cluster, pgsteer in front of it, clients of its own, and the loss of the primary.
//!
//! Invariant: what it reports was measured from outside, as any application would see it: by ordinary drivers on the
//! endpoint, on the nodes themselves, and at the admin address. pgsteer runs as a child process and ends with it.
//!
//! It must not know how pgsteer works: it imports the sandbox and nothing else of the crate.

mod admin_page;
mod clients;
mod command_line;
mod error;
mod failover;
mod ledger;
mod measure;
mod nodes;
mod proxy;
mod report;
mod scenario;
mod screen;
mod status;
mod table;

pub use command_line::{DemoArgs, Outcome, run};
pub use error::Error;
