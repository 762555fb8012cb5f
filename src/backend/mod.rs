//! One server connection: connect, log in, what it carries, cancel.
//!
//! Invariant: a `Server` that exists is logged in; dropping it closes its socket. Mirrors `client` and never imports it.
//! Must not know: pools, routing, sessions.

pub mod cancel;
pub mod carried;
pub mod connection;
mod incarnation;
pub mod login;
pub mod promotion;
pub mod reported;
pub mod reset;
pub mod senders;
pub mod standby_watch;

pub use connection::{ConnectError, Endpoint, Server, SettingValues, open};
pub use reported::Reported;
