//! TOML file, environment and flags -> one checked [`Config`]; all faults at once, each with its place.
//!
//! Invariant: `load` gives either a configuration that passed every check or the full list of what is wrong; flags
//! win over the environment, the environment over the file. Must not know: what the settings do. Nobody below
//! `app` imports this module.

mod args;
mod fault;
mod keys;
mod load;
mod model;
mod nodes;
mod overrides;
pub mod units;

pub use args::{CheckArgs, RunArgs};
pub use fault::{Fault, Faults, Origin};
pub use load::{SourceFile, Sources, load};
pub use model::{
    Admin, Auth, AuthMethod, Cluster, Config, DEFAULT_AUTH_QUERY, Hold, Listen, Node, Override, Pool,
    PromotionEvents, Retry, Secret, Shutdown, Topology,
};

/// The path of every key of the file, `section.key`; documentation and tests hold themselves against it.
pub fn key_paths() -> Vec<&'static str> {
    keys::KEYS.iter().map(|key| key.path).collect()
}
