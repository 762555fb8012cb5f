//! Keeps the records of failovers: joins what the judge told to what clients had of it, and tells the log and the metrics.
//!
//! Invariant: bounded; costs a few sums with each round while nobody is doubted. Must not know: how primaries are judged, sessions.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::evidence::Event;
use super::failover::{Effects, Failover, Recorder};
use super::model::{NodeId, Snapshot};
use super::monitor::FAILOVERS_KEPT;
use crate::telemetry::Metrics;
use crate::telemetry::metrics::{HoldTally, SQLSTATES};

/// The records.
pub(super) struct Chronicle {
    recorder: Recorder,
    metrics: Metrics,
    /// The figures from which the record under way counts: of the last round before it, since sessions see a primary fail, and
    /// answer, before anybody is told.
    before: HoldTally,
    kept: Arc<Mutex<VecDeque<Failover>>>,
}

impl Chronicle {
    pub(super) fn new(metrics: Metrics, kept: Arc<Mutex<VecDeque<Failover>>>) -> Self {
        Self { recorder: Recorder::default(), metrics, before: HoldTally::default(), kept }
    }

    pub(super) fn round(&mut self) {
        if !self.recorder.is_open() {
            self.count_from_here();
        }
        self.recorder.round();
    }

    /// Takes what the judge told, and closes what is complete.
    pub(super) fn told(&mut self, events: &[Event], snapshot: &Snapshot, rule: &'static str, now: Instant) {
        for cause in events.iter().filter_map(|event| event.kind.cause()) {
            self.metrics.record_doubt(cause);
        }
        let was_open = self.recorder.is_open();
        if self.recorder.told(events, snapshot, rule) && was_open {
            self.count_from_here();
        }
        if !self.recorder.is_open() {
            return;
        }
        let effects = self.effects();
        while let Some(record) = self.recorder.settle(effects.clone(), now) {
            self.metrics.record_failover(record.outcome.as_str(), record.without_primary(), record.release());
            tell(&record, snapshot);
            self.keep(record);
        }
        if let Some(under_way) = self.recorder.under_way() {
            let under_way = under_way.clone();
            self.keep(under_way);
        }
    }

    fn count_from_here(&mut self) {
        self.before = self.metrics.hold_tally();
        self.metrics.forget_longest_hold();
    }

    fn effects(&self) -> Effects {
        let (now, before) = (self.metrics.hold_tally(), &self.before);
        let errors = SQLSTATES.iter().zip(now.errors.iter().zip(&before.errors));
        Effects {
            held: now.held.saturating_sub(before.held),
            released: now.released.saturating_sub(before.released),
            waiting: now.waiting,
            longest_hold: self.metrics.longest_hold(),
            ended_for_replay: now.ended_for_replay.saturating_sub(before.ended_for_replay),
            errors: errors
                .map(|(code, (now, before))| (*code, now.saturating_sub(*before)))
                .filter(|(_, count)| *count > 0)
                .collect(),
        }
    }

    /// In the place of what was kept of it while it was under way.
    fn keep(&self, record: Failover) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(same) = kept.iter_mut().rfind(|kept| kept.number == record.number) {
            *same = record;
            return;
        }
        if kept.len() == FAILOVERS_KEPT {
            kept.pop_front();
        }
        kept.push_back(record);
    }
}

fn tell(record: &Failover, snapshot: &Snapshot) {
    let name = |node: Option<NodeId>| {
        node.and_then(|id| snapshot.node(id))
            .map_or_else(|| "none".to_owned(), |node| node.address.to_string())
    };
    let effects = &record.effects;
    let errors: Vec<String> = effects.errors.iter().map(|(code, count)| format!("{code}: {count}")).collect();
    tracing::info!(
        target: "pgsteer::topology",
        kind = "failover",
        number = record.number,
        outcome = record.outcome.as_str(),
        epoch = record.epoch.0,
        rounds = record.rounds,
        held = effects.held,
        released = effects.released,
        longest_hold = ?effects.longest_hold,
        ended_for_replay = effects.ended_for_replay,
        errors = errors.join(", "),
        without_primary = ?record.without_primary().unwrap_or_default(),
        release = ?record.release().unwrap_or_default(),
        "failover {}: from {} to {} ({}); {}",
        record.number,
        name(record.old_primary),
        name(record.winner),
        record.rule,
        record.why
    );
}
