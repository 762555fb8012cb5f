//! A topology snapshot as JSON, as readiness and as gauges.
//!
//! Invariant: pure; moments become ages in milliseconds before a given `now`, because pgsteer's clock means nothing
//! to a reader. A primary whose claim has expired is not shown as one. Must not know: HTTP, clocks.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::http::Readiness;
use crate::telemetry::{ClusterGauges, NodeGauges};
use crate::topology::model::{
    Advice, ConflictCounts, NodeId, NodeView, ReplayDelay, Role, Slot, Snapshot, StandbySettings,
};

/// Something that happened to the topology.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// When.
    pub at: Instant,
    /// What and why: the same line that was logged.
    pub text: String,
}

/// The name of a node: the configured one, else `n1`, `n2` ... in the order of the list.
pub fn node_name(names: &[String], id: NodeId) -> String {
    names.get(id.index()).cloned().unwrap_or_else(|| format!("n{}", id.index() + 1))
}

/// The answer of `/topology`.
pub fn topology(snapshot: &Snapshot, names: &[String], events: &[Event], now: Instant) -> Value {
    let nodes: Vec<Value> = snapshot.nodes.iter().map(|view| node(snapshot, view, names, now)).collect();
    let events: Vec<Value> =
        events.iter().map(|event| json!({"age_ms": age_ms(event.at, now), "text": event.text})).collect();
    json!({
        "version": snapshot.version,
        "epoch": snapshot.epoch.0,
        "primary": snapshot.primary_at(now).map(|primary| json!({
            "name": node_name(names, primary.node),
            "timeline": primary.timeline.0,
            "flush_lsn": primary.flush_lsn.to_string(),
            "insert_lsn": primary.insert_lsn.to_string(),
            "sample_age_ms": age_ms(primary.sampled_at, now),
            "expires_in_ms": millis(primary.expires_at.saturating_duration_since(now)),
        })),
        "suspected": snapshot.suspected,
        "unreachable_for_ms": snapshot.unreachable_since.map(|at| age_ms(at, now)),
        "frozen_for_ms": snapshot.frozen_at.map(|at| age_ms(at, now)),
        "nodes": nodes,
        "events": events,
    })
}

fn node(snapshot: &Snapshot, view: &NodeView, names: &[String], now: Instant) -> Value {
    json!({
        "name": node_name(names, view.id),
        "address": view.address.to_string(),
        "role": view.role.as_str(),
        "reason": view.reason,
        "timeline": view.timeline.map(|timeline| timeline.0),
        "position": view.position.map(|lsn| lsn.to_string()),
        "receive_lsn": view.receive_lsn.map(|lsn| lsn.to_string()),
        "sample_age_ms": view.sampled_at.map(|at| age_ms(at, now)),
        "lag_bytes": view.lag_bytes,
        "replay_stands_for_ms": view.replay_stands_since.map(|since| age_ms(since, now)),
        "readers": view.readers.as_str(),
        "hot_standby_feedback": view.settings.map(|it| it.hot_standby_feedback),
        "max_standby_streaming_delay_ms": view.settings.map(|it| match it.max_standby_streaming_delay {
            ReplayDelay::AtMost(delay) => i64::try_from(delay.as_millis()).unwrap_or(i64::MAX),
            ReplayDelay::Unlimited => -1,
        }),
        "replication_slot": view.settings.map(|it| it.slot == Slot::Named),
        "warnings": advice(view).map(Advice::as_str).collect::<Vec<_>>(),
        "warned_of": advice(view).map(Advice::label).collect::<Vec<_>>(),
        "staleness_ms": snapshot.staleness(view, now).map(millis),
        "staleness_error_ms": snapshot.staleness_error(view, now).map(millis),
        "weight": view.weight,
    })
}

fn advice(view: &NodeView) -> impl Iterator<Item = Advice> {
    view.settings.into_iter().flat_map(StandbySettings::advice)
}

/// The answer of `/readyz`.
pub fn readiness(snapshot: &Snapshot, names: &[String], draining: bool, now: Instant) -> Readiness {
    if draining {
        return Readiness { ready: false, text: "draining".to_owned() };
    }
    if let Some(primary) = snapshot.primary_at(now) {
        let name = node_name(names, primary.node);
        return Readiness { ready: true, text: format!("primary {name} known, epoch {}", snapshot.epoch) };
    }
    let nodes: Vec<String> = snapshot
        .nodes
        .iter()
        .map(|view| format!("{} {} ({})", node_name(names, view.id), view.role.as_str(), view.reason))
        .collect();
    let text = format!("no primary known, epoch {}: {}", snapshot.epoch, nodes.join(", "));
    Readiness { ready: false, text }
}

/// What `/metrics` says about the cluster.
pub fn gauges(snapshot: &Snapshot, names: &[String], now: Instant) -> ClusterGauges {
    let node = |view: &NodeView| NodeGauges {
        name: node_name(names, view.id),
        address: view.address.to_string(),
        role: view.role.as_str(),
        up: view.role != Role::Unknown,
        lag_seconds: snapshot.staleness(view, now).map(|staleness| staleness.as_secs_f64()),
        lag_error_seconds: snapshot.staleness_error(view, now).map(|error| error.as_secs_f64()),
        lag_bytes: view.lag_bytes,
        timeline: view.timeline.map(|timeline| timeline.0),
        conflicts: view
            .conflicts
            .map_or_else(Vec::new, |counts| ConflictCounts::KINDS.into_iter().zip(counts.0).collect()),
    };
    ClusterGauges {
        epoch: snapshot.epoch.0,
        primary_known: snapshot.primary_at(now).is_some(),
        suspected: snapshot.suspected,
        unreachable_seconds: snapshot
            .unreachable_since
            .map_or(0.0, |since| now.saturating_duration_since(since).as_secs_f64()),
        nodes: snapshot.nodes.iter().map(node).collect(),
    }
}

pub(super) fn age_ms(at: Instant, now: Instant) -> u64 {
    millis(now.saturating_duration_since(at))
}

pub(super) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
