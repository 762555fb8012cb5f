//! What was learned of statements that standbys refuse, as JSON, for people who ask why a read goes to the primary.
//!
//! Invariant: pure; shapes only, no values. Must not know: HTTP, clocks, how it was learned.

use serde_json::{Value, json};

use crate::pool::DatabaseLessons;

/// The answer of `/learned`.
pub fn learned(databases: &[DatabaseLessons]) -> Value {
    let shapes = databases.iter().flat_map(|of| {
        of.lessons.iter().map(|lesson| {
            json!({
                "database": &*of.database,
                "shape": lesson.text,
                "reason": lesson.refusal.as_str(),
                "refused": lesson.refused,
                "sent_to_primary": lesson.spared,
                "tried_again_in_ms": u64::try_from(lesson.left.as_millis()).unwrap_or(u64::MAX),
            })
        })
    });
    json!({ "learned": shapes.collect::<Vec<Value>>() })
}
