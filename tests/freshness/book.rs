//! What was acknowledged when, and what a read may therefore not have missed. Pure.
//!
//! Invariant: each key has one writer, whose values grow. A read is held against times of this process alone: when it was sent, when
//! writes were acknowledged. While a primary is down no commit can be acknowledged, so that time does not count towards staleness:
//! from the moment before it was struck until a write is acknowledged again. Must not know: how is read and written.

use std::collections::HashMap;
use std::time::{Duration, Instant};

/// A counter.
pub type Key = i32;

/// How a key's writer commits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Commit {
    /// An acknowledged value outlives the primary.
    Synchronous,
    /// It may be lost with the primary, and is flushed up to so long after it was acknowledged (three times `wal_writer_delay`).
    Asynchronous,
}

/// How often a primary was lost, or began to be: what was not flushed may be gone since. Odd while one is being lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Losses(usize);

/// When asynchronous commits are flushed at the latest, as PostgreSQL promises: three times `wal_writer_delay`; twice that, because its
/// process may wait for a core.
pub const FLUSHED_WITHIN: Duration = Duration::from_millis(1_200);

/// A proxy has so long to tell all of its threads of a new primary, of which one client may have heard already.
pub const TOLD_WITHIN: Duration = Duration::from_millis(100);

/// The times without a primary, as one proxy's clients see them.
#[derive(Debug, Default)]
struct Outages {
    over: Vec<(Instant, Instant)>,
    since: Option<Instant>,
    /// When it was over with the old primary.
    struck: Option<Instant>,
}

impl Outages {
    /// The moment from which staleness is counted for a read that was sent at this one.
    fn counted_from(&self, sent: Instant) -> Instant {
        let within = self.over.iter().find(|(from, to)| (*from..*to + TOLD_WITHIN).contains(&sent));
        let open = self.since.filter(|since| sent >= *since);
        within.map(|(from, _)| *from).or(open).unwrap_or(sent)
    }
}

/// A value that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    pub value: i64,
    pub losses: Losses,
}

/// A promise that was broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Violation {
    OwnWrite { key: Key, wrote: i64, saw: i64 },
    Monotonic { key: Key, before: i64, saw: i64 },
    Budget { key: Key, saw: i64, newer: i64, acknowledged_before: Duration, budget: Duration },
}

/// All acknowledged writes.
#[derive(Debug)]
pub struct Book {
    /// How each key is committed, and through which proxy.
    commits: HashMap<Key, (usize, Commit)>,
    acknowledged: HashMap<Key, Vec<(Instant, i64)>>,
    outages: Vec<Outages>,
    losses: Losses,
    /// When that changed last.
    lost_at: Option<Instant>,
}

impl Book {
    /// For so many proxies.
    pub fn new(proxies: usize, keys: impl IntoIterator<Item = (Key, (usize, Commit))>) -> Self {
        Self {
            commits: keys.into_iter().collect(),
            acknowledged: HashMap::new(),
            outages: (0..proxies).map(|_| Outages::default()).collect(),
            losses: Losses::default(),
            lost_at: None,
        }
    }

    /// What was lost so far.
    pub fn losses(&self) -> Losses {
        self.losses
    }

    /// The primary is about to be struck.
    pub fn loss_begins(&mut self, now: Instant) {
        self.losses.0 += 1;
        self.lost_at = Some(now);
    }

    /// There is a primary again, and every write that was under way has come to its end.
    pub fn loss_is_over(&mut self, now: Instant) {
        self.losses.0 += 1;
        self.lost_at = Some(now);
    }

    /// The primary is struck in such a way that the proxies can tell that it is gone: not before `since`.
    pub fn goes(&mut self, since: Instant) {
        for outages in &mut self.outages {
            outages.since.get_or_insert(since);
            outages.struck = None;
        }
    }

    /// It is gone, and acknowledges nothing more.
    pub fn has_gone(&mut self, struck: Instant) {
        for outages in &mut self.outages {
            outages.struck = Some(struck);
        }
    }

    /// A write was acknowledged.
    pub fn acknowledged(&mut self, proxy: usize, (key, value): (Key, i64), (sent, now): (Instant, Instant)) {
        self.acknowledged.entry(key).or_default().push((now, value));
        let outages = &mut self.outages[proxy];
        // One that was sent before may have been carried out before.
        if outages.struck.is_some_and(|struck| sent > struck)
            && let Some(since) = outages.since.take()
        {
            outages.over.push((since, now));
        }
    }

    /// What a read through this proxy missed that was acknowledged longer ago than the budget when it was sent.
    pub fn beyond(
        &self,
        proxy: usize,
        (key, saw): (Key, i64),
        (sent, budget): (Instant, Duration),
    ) -> Option<Violation> {
        let from = self.outages[proxy].counted_from(sent);
        let more = match self.commits.get(&key)?.1 {
            Commit::Synchronous => Duration::ZERO,
            Commit::Asynchronous if self.is_losing() => return None,
            Commit::Asynchronous => FLUSHED_WITHIN,
        };
        let due = from.checked_sub(budget + more)?;
        let writes = self.acknowledged.get(&key)?;
        let before = writes.partition_point(|(at, _)| *at < due);
        let (at, newer) = *writes.get(before.checked_sub(1)?)?;
        let may_be_lost = more > Duration::ZERO && self.lost_at.is_some_and(|lost| at <= lost);
        let acknowledged_before = from.duration_since(at);
        (newer > saw && !may_be_lost).then_some(Violation::Budget {
            key,
            saw,
            newer,
            acknowledged_before,
            budget,
        })
    }

    /// Whether this value, or a later one, was acknowledged before this moment. A commit may be seen on a standby, which has it to
    /// confirm, before it is over on the primary.
    pub fn knows(&self, (key, value): (Key, i64), at: Instant) -> bool {
        let writes = self.acknowledged.get(&key);
        writes.is_some_and(|writes| writes.iter().rev().any(|(when, it)| *when <= at && *it >= value))
    }

    fn is_losing(&self) -> bool {
        self.losses.0 % 2 == 1
    }

    /// Whether what a session of this proxy knows of a key still binds: what may have been lost does not, and that a commit through
    /// another proxy was asynchronous nobody tells.
    pub fn binds(&self, proxy: usize, key: Key, seen: Seen) -> bool {
        match self.commits.get(&key) {
            Some((of, Commit::Asynchronous)) => {
                *of == proxy && seen.losses == self.losses && !self.is_losing()
            }
            _ => true,
        }
    }
}
