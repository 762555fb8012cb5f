//! SQL text in, what it needs out: one pass, no allocation, and anything not understood is a write.
//!
//! Invariant: `Access::Read` only when every construct in the text is known to be safe on a standby and safe to run
//! twice (contract P7). Must not know: nodes, sessions, sockets, clocks.

mod model;

pub use model::*;
