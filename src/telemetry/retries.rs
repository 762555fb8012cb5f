//! What standbys cancel and lose, and what becomes of the reads that are run again because of that.
//!
//! Invariant: as many series as there are nodes, words and small numbers, however much happens. Must not know: why anything is run
//! again; label words come from outside.

use std::time::Duration;

use super::counter::Family;
use super::histogram::{self, Histogram};
use super::prometheus::{Kind, Text};

/// Most words for how a statement is interrupted.
pub const INTERRUPTIONS_MAX: usize = 8;
/// Most words for what becomes of a read that is run again.
pub const OUTCOMES_MAX: usize = 8;
/// How often reads are run again, told apart.
const TIMES: [&str; 4] = ["1", "2", "3", "4 and more"];

/// One shard's.
#[derive(Debug, Default)]
pub struct Retries {
    interruptions: Box<[Family<INTERRUPTIONS_MAX>]>,
    outcomes: [Family<OUTCOMES_MAX>; TIMES.len()],
    added: Histogram,
}

impl Retries {
    pub(super) fn new(nodes: usize) -> Self {
        Self { interruptions: (0..nodes).map(|_| Family::default()).collect(), ..Self::default() }
    }

    /// This standby has cancelled or lost a statement; `how` is the discriminant. A node that was not there at the start is not counted.
    pub fn interrupted(&self, node: usize, how: usize) {
        if let Some(of_node) = self.interruptions.get(node) {
            of_node.at(how).inc();
        }
    }

    /// A read that was run again so often (at least once) is over; `outcome` is the discriminant. `added`: from when it came to when
    /// the attempt that was answered began, if one was.
    pub fn over(&self, times: usize, outcome: usize, added: Option<Duration>) {
        let times = times.clamp(1, TIMES.len()) - 1;
        if let Some(of_times) = self.outcomes.get(times) {
            of_times.at(outcome).inc();
        }
        if let Some(added) = added {
            self.added.record(added);
        }
    }
}

/// All of it, over all shards.
pub(super) fn render<'a, I>(
    text: &mut Text,
    shards: impl Fn() -> I,
    nodes: &[String],
    (interruptions, outcomes): (&[&'static str], &[&'static str]),
) where
    I: Iterator<Item = &'a Retries>,
{
    let name = "pgsteer_standby_interruptions_total";
    let help = "Statements that a standby cancelled or that were lost with their server connection there, by SQLSTATE; \
                \"none\": the connection ended without a word.";
    text.metric(name, Kind::Counter, help);
    for (node, node_name) in nodes.iter().enumerate() {
        for (how, word) in interruptions.iter().enumerate() {
            let of_node = |shard: &Retries| shard.interruptions.get(node).map_or(0, |it| it.at(how).value());
            let count: u64 = shards().map(of_node).sum();
            text.sample(name, &[("node", node_name), ("sqlstate", word)], count);
        }
    }
    let name = "pgsteer_retried_reads_total";
    let help = "Reads that were run again after a standby had cancelled or lost them, by what became of them in the end.";
    text.metric(name, Kind::Counter, help);
    for (outcome, word) in outcomes.iter().enumerate() {
        for (times, label) in TIMES.iter().enumerate() {
            let of_times = |shard: &Retries| shard.outcomes.get(times).map_or(0, |it| it.at(outcome).value());
            let count: u64 = shards().map(of_times).sum();
            text.sample(name, &[("outcome", word), ("retries", label)], count);
        }
    }
    let help = "Time that retries added to reads that were answered in the end: what passed before the attempt that was.";
    histogram::render(text, ("pgsteer_retry_added_seconds", help), shards().map(|shard| &shard.added));
}
