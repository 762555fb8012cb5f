//! The hot path: reads server bytes, scans frame headers, gives whole chunks on.
//!
//! Invariant: row bytes are never copied into messages; only complete frames reach the client unless a frame is larger
//! than the buffer. Must not know: classification, routing, pools, sessions.

pub mod allowance;
pub mod answer;
pub mod boundary;
pub mod buffer;
mod expected;
mod names;
mod passage;
#[cfg(test)]
mod tests;
