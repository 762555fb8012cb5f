//! What was learned of statements that standbys refuse or cancel, as JSON, for people who ask why a read goes where it does.
//!
//! Invariant: pure; shapes only, no values. Must not know: HTTP, clocks, how it was learned.

use serde_json::{Value, json};

use super::json::millis;
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
                "tried_again_in_ms": millis(lesson.left),
            })
        })
    });
    let steered = databases.iter().flat_map(|of| {
        of.steered.iter().map(|shape| {
            json!({
                "database": &*of.database,
                "shape": shape.text,
                "reason": "conflicts",
                "conflicts": shape.conflicts,
                "steered_to": shape.to.as_str(),
                "steered": shape.steered,
                "tried_again_in_ms": millis(shape.left),
            })
        })
    });
    let shapes = shapes.chain(steered);
    json!({ "learned": shapes.collect::<Vec<Value>>() })
}
