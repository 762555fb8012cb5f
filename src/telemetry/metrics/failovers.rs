//! Of the metrics: how long statements were held, and what failovers took.
//!
//! Invariant: locks are taken at the end of a hold, of a failover, and to render, never on a statement's way. Must not know: why.

use std::sync::PoisonError;
use std::time::Duration;

use hdrhistogram::Histogram;

use super::super::prometheus::{Kind, Text};
use super::{Labels, Metrics, SQLSTATES};

/// Upper bounds of the hold histogram's buckets, milliseconds.
const HOLD_BUCKETS_MS: [u64; 14] =
    [1, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000];

/// The longest hold the histogram tells apart; longer ones count as this.
const HOLD_MAX: Duration = Duration::from_secs(3600);

/// Durations, and their sum.
#[derive(Debug)]
struct Durations {
    micros: Histogram<u64>,
    sum: Duration,
}

impl Holds {
    pub(super) fn new() -> Result<Self, hdrhistogram::CreationError> {
        Ok(Self { durations: Durations::new()?, longest: Duration::ZERO })
    }
}

impl Failovers {
    pub(super) fn new(labels: &Labels) -> Result<Self, hdrhistogram::CreationError> {
        let none_of = |words: &[&'static str]| words.iter().map(|word| (*word, 0)).collect();
        Ok(Self {
            without_primary: Durations::new()?,
            release: Durations::new()?,
            by_outcome: none_of(&labels.failover_outcomes),
            doubts: none_of(&labels.doubt_causes),
        })
    }
}

impl Durations {
    fn new() -> Result<Self, hdrhistogram::CreationError> {
        let micros_max = u64::try_from(HOLD_MAX.as_micros()).unwrap_or(u64::MAX);
        Ok(Self { micros: Histogram::new_with_max(micros_max, 3)?, sum: Duration::ZERO })
    }

    fn record(&mut self, duration: Duration) {
        let micros = duration.min(HOLD_MAX).as_micros();
        self.micros.saturating_record(u64::try_from(micros).unwrap_or(u64::MAX));
        self.sum += duration;
    }

    fn render(&self, text: &mut Text, name: &str, help: &str) {
        text.metric(name, Kind::Histogram, help);
        let bucket = format!("{name}_bucket");
        for bound in HOLD_BUCKETS_MS {
            let seconds = Duration::from_millis(bound).as_secs_f64().to_string();
            text.sample(&bucket, &[("le", &seconds)], self.micros.count_between(0, bound * 1_000));
        }
        text.sample(&bucket, &[("le", "+Inf")], self.micros.len());
        text.sample(&format!("{name}_sum"), &[], self.sum.as_secs_f64());
        text.sample(&format!("{name}_count"), &[], self.micros.len());
    }
}

#[derive(Debug)]
pub(super) struct Holds {
    durations: Durations,
    /// The longest since somebody last began to look.
    longest: Duration,
}

#[derive(Debug)]
pub(super) struct Failovers {
    without_primary: Durations,
    release: Durations,
    by_outcome: Vec<(&'static str, u64)>,
    doubts: Vec<(&'static str, u64)>,
}

/// What happened to held statements, and the errors that pgsteer sent, since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HoldTally {
    /// Statements that were held.
    pub held: u64,
    /// Of these, those that got a server.
    pub released: u64,
    /// Those held now.
    pub waiting: u64,
    /// What ran on standbys and was ended so that replay could go on.
    pub ended_for_replay: u64,
    /// Errors, by the index in [`SQLSTATES`].
    pub errors: [u64; SQLSTATES.len()],
}

impl Metrics {
    /// Records how long one statement was held. Takes a lock: for the end of a hold, never for a statement's way.
    pub fn record_hold(&self, held: Duration) {
        let mut holds = self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner);
        holds.durations.record(held);
        holds.longest = holds.longest.max(held);
    }

    /// The longest hold that ended since [`Self::forget_longest_hold`].
    pub fn longest_hold(&self) -> Duration {
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner).longest
    }

    /// The longest hold is looked for from now on.
    pub fn forget_longest_hold(&self) {
        self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner).longest = Duration::ZERO;
    }

    /// Records a failover: how it came out, how long there was no primary, and how long statements were held beyond that.
    pub fn record_failover(
        &self,
        outcome: &str,
        without_primary: Option<Duration>,
        release: Option<Duration>,
    ) {
        let mut failovers = self.inner.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = failovers.by_outcome.iter_mut().find(|(known, _)| *known == outcome) {
            *count += 1;
        }
        if let Some(duration) = without_primary {
            failovers.without_primary.record(duration);
        }
        if let Some(duration) = release {
            failovers.release.record(duration);
        }
    }

    /// Counts a reason to look at all nodes.
    pub fn record_doubt(&self, cause: &str) {
        let mut failovers = self.inner.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, count)) = failovers.doubts.iter_mut().find(|(known, _)| *known == cause) {
            *count += 1;
        }
    }

    /// Held statements and errors, over all shards.
    pub fn hold_tally(&self) -> HoldTally {
        // First who waits: who does no longer has been counted as released before.
        let waiting = self.gauge_total(|shard| shard.statements_waiting.value()).max(0).unsigned_abs();
        std::sync::atomic::fence(std::sync::atomic::Ordering::Acquire);
        let mut tally = HoldTally { waiting, ..HoldTally::default() };
        for shard in &self.inner.shards {
            tally.held += shard.statements_held.value();
            tally.released += shard.statements_released.value();
            tally.ended_for_replay += shard.reads_ended_for_replay.value();
            for (index, count) in tally.errors.iter_mut().enumerate() {
                *count += shard.errors.at(index).value();
            }
        }
        tally
    }

    pub(super) fn render_holds(&self, text: &mut Text) {
        let holds = self.inner.holds.lock().unwrap_or_else(PoisonError::into_inner);
        let help = "How long each held statement waited.";
        holds.durations.render(text, "pgsteer_hold_duration_seconds", help);
    }

    pub(super) fn render_failovers(&self, text: &mut Text) {
        let failovers = self.inner.failovers.lock().unwrap_or_else(PoisonError::into_inner);
        let name = "pgsteer_failovers_total";
        text.metric(name, Kind::Counter, "Times that the primary was lost or replaced, by how it came out.");
        for (outcome, count) in &failovers.by_outcome {
            text.sample(name, &[("outcome", outcome)], count);
        }
        let name = "pgsteer_doubts_total";
        text.metric(
            name,
            Kind::Counter,
            "Times that all nodes were looked at in rapid rounds, by why that began.",
        );
        for (cause, count) in &failovers.doubts {
            text.sample(name, &[("cause", cause)], count);
        }
        let help = "From the first doubt about the primary until there was one again.";
        failovers.without_primary.render(text, "pgsteer_failover_duration_seconds", help);
        let help = "From the new primary until no statement was held any more.";
        failovers.release.render(text, "pgsteer_failover_release_seconds", help);
    }
}
