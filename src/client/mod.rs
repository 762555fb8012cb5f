//! The server's side of a client's login: first packets, authentication, welcome.
//!
//! Invariant: until `login` has returned, a client has cost no server connection of its own, and every wait is bounded by
//! `login_timeout`. Mirrors `backend` and never imports it. Must not know: pools, topology, sessions.

pub mod accept;
pub mod handshake;

pub use accept::{Denial, Door, Granted, LoggedIn, Outcome, login};
