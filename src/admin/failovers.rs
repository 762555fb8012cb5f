//! What happened to the cluster as JSON: one record for each failover, and the events.
//!
//! Invariant: pure; moments become ages before a given `now`, and times since the first doubt. Must not know: HTTP, clocks.

use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};

use super::json::{age_ms, millis, node_name};
use crate::topology::evidence::Event;
use crate::topology::failover::Failover;

/// The answer of `/topology/events`: the newest last.
pub fn events(failovers: &[Failover], events: &[Event], names: &[String], now: Instant) -> Value {
    let event = |event: &Event| {
        json!({
            "age_ms": age_ms(event.at, now),
            "kind": event.kind.as_str(),
            "node": event.node.map(|node| node_name(names, node)),
            "text": event.text,
        })
    };
    json!({
        "failovers": failovers.iter().map(|it| failover(it, names, now)).collect::<Vec<Value>>(),
        "events": events.iter().map(event).collect::<Vec<Value>>(),
    })
}

fn failover(it: &Failover, names: &[String], now: Instant) -> Value {
    let since = |at: Option<Instant>| at.map(|at| tenths(at.saturating_duration_since(it.suspected_at)));
    let errors: Map<String, Value> =
        it.effects.errors.iter().map(|(code, count)| ((*code).to_owned(), json!(count))).collect();
    json!({
        "number": it.number,
        "age_ms": age_ms(it.suspected_at, now),
        "outcome": it.outcome.as_str(),
        "why": it.why,
        "old_primary": it.old_primary.map(|node| node_name(names, node)),
        "new_primary": it.winner.map(|node| node_name(names, node)),
        "rule": it.rule,
        "epoch": it.epoch.0,
        "rounds": it.rounds,
        "lost_after_ms": since(it.lost_at),
        "promotion_told_after_ms": since(it.promotion_told_at),
        "primary_after_ms": since(it.primary_at),
        "settled_after_ms": since(it.settled_at),
        "standbys_left_by_readers": it.readers_left,
        "statements": {
            "held": it.effects.held,
            "released": it.effects.released,
            "waiting": it.effects.waiting,
            "longest_hold_ms": millis(it.effects.longest_hold),
            "ended_for_replay": it.effects.ended_for_replay,
        },
        "errors": errors,
    })
}

/// Milliseconds, to a tenth.
fn tenths(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 10_000.0).round() / 10.0
}
