//! A session's own bounds on what it may read: its writes, and what it has already seen.
//!
//! Invariant (contract P3): once the session has had an answer from the primary at time t, a standby qualifies only when it
//! has replayed the flush LSN of a primary sample whose probe was sent after t; after a read on a standby, another standby
//! qualifies only when it has replayed at least what the first had replayed at a probe sent after that read.
//! Must not know: sockets, clocks.

use std::time::Instant;

use crate::topology::model::NodeId;

/// The session's memory. A few words; kept for every session.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    /// When the primary last answered this session, and no token has been taken for it yet.
    pub primary_answered_at: Option<Instant>,
    /// The standby that answered last, and when.
    pub standby_answered: Option<(NodeId, Instant)>,
}
