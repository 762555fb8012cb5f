//! pgsteer: a PostgreSQL wire-protocol proxy that steers each statement to the right node.
//!
//! This file is the table of contents. The modules stand in the order in which a statement meets them:
//!
//! ```text
//! client -> session -> classify -> route -> pool -> backend -> relay -> client
//! ```
//!
//! and beside that way, never in it: `topology` (discovery -> probe -> reconcile -> snapshot).
//! Who may import whom is held by `tests/architecture.rs`; ARCHITECTURE.md says why.

// The ground: what the protocol is, and how bytes move.
pub mod net;
pub mod wire;

// Services every layer may use.
pub mod shutdown;
pub mod telemetry;

// The way of a statement.
pub mod auth;
pub mod backend;
pub mod classify;
pub mod client;
pub mod pool;
pub mod relay;
pub mod route;
pub mod session;

// Beside the way: who is the primary, and how fresh is each standby.
pub mod topology;

// For people: metrics, health, configuration, the command line.
pub mod admin;
pub mod app;
pub mod cli;
pub mod config;
pub mod explain;

// Real PostgreSQL clusters for the demo, the tests and the benches.
pub mod sandbox;

// The demonstration: all of it, before the eyes of a newcomer.
pub mod demo;
