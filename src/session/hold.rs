//! Waiting for a primary (or for any node that qualifies): bounded by count, bytes and time.
//!
//! Invariant: a held statement has not been sent anywhere. Must not know: what the statement is.

use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use super::control::Control;
use super::outcome;
use super::shard::Shard;
use crate::pool::Ahead;
use crate::route::Mode;
use crate::wire::reply::Report;

/// One statement's wait. Dropping it takes the statement out of the queue.
pub struct Hold {
    shard: Rc<Shard>,
    bytes: usize,
    began: Instant,
    changes: watch::Receiver<u64>,
    mode: Mode,
    /// The session's `statement_timeout`.
    statement_limit: Option<Duration>,
    /// A connection to the node that was the primary, which it may be again.
    pub(super) ahead: Option<Ahead>,
}

impl Hold {
    /// Enters the queue with a statement of so many bytes, from an endpoint of this mode and a session with this `statement_timeout`.
    pub fn enter(
        shard: &Rc<Shard>,
        bytes: usize,
        now: Instant,
        (mode, statement_limit): (Mode, Option<Duration>),
    ) -> Result<Self, Box<Report>> {
        let shared = &shard.shared;
        let count = shared.held_count.fetch_add(1, Ordering::AcqRel) + 1;
        let held_bytes = shared.held_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        let changes = shard.snapshot_changed.subscribe();
        let hold =
            Self { shard: Rc::clone(shard), bytes, began: now, changes, mode, statement_limit, ahead: None };
        shard.counters.statements_waiting.inc();
        shard.counters.statements_held.inc();
        if count > shared.settings.hold_count_max || held_bytes > shared.settings.hold_bytes_max {
            return Err(Box::new(outcome::hold_full()));
        }
        Ok(hold)
    }

    /// Waits for the next snapshot. An error ends the hold: time is up (`hold_timeout`, or the statement's own), the client cancelled,
    /// or pgsteer ends.
    /// Cancel-safe.
    pub async fn wait(&mut self, control: &Control) -> Result<(), Box<Report>> {
        let limit = self.shard.shared.settings.hold_timeout;
        let statement_limit = self.statement_limit.filter(|it| *it < limit);
        let deadline = tokio::time::Instant::from_std(self.began) + statement_limit.unwrap_or(limit);
        tokio::select! {
            changed = self.changes.changed() => changed.map_err(|_| Box::new(outcome::shutting_down())),
            () = tokio::time::sleep_until(deadline) => Err(Box::new(match self.mode {
                _ if statement_limit.is_some() => outcome::statement_timed_out(),
                Mode::Standby => outcome::no_standby(limit),
                _ if self.shard.is_paused() => outcome::paused(limit),
                _ => outcome::no_primary(limit),
            })),
            () = control.bell.notified() => {
                if control.cancel_waiting.replace(false) { Err(Box::new(outcome::cancelled())) } else { Ok(()) }
            }
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let shared = &self.shard.shared;
        shared.held_count.fetch_sub(1, Ordering::AcqRel);
        shared.held_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
        self.shard.counters.statements_waiting.dec();
        let waited = self.began.elapsed();
        self.shard.counters.hold_nanos_total.add(u64::try_from(waited.as_nanos()).unwrap_or(u64::MAX));
        (shared.record_hold)(waited);
    }
}
