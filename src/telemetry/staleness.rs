//! How stale the standbys were that answered reads.
//!
//! Invariant: what is counted is the upper bound, the error of its measurement included. Must not know: how staleness is measured.

use super::histogram::{self, Histogram};
use super::prometheus::Text;

/// One shard's.
pub type StalenessServed = Histogram;

/// The histogram over all shards.
pub fn render<'a>(text: &mut Text, shards: impl Iterator<Item = &'a StalenessServed>) {
    let help = "Upper bound of the staleness of the standby, for each answer of one.";
    histogram::render(text, ("pgsteer_staleness_served_seconds", help), shards);
}
