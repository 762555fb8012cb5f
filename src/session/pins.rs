//! Why a session stays on its server: the reasons, and whom they are told.
//!
//! Invariant: each reason that begins is counted once and said in the log, the client's own are its to ask for (`SHOW
//! pgsteer.pins`, `own_settings`). Must not know: what makes a reason, what ends it.

use std::time::{Duration, Instant};

use super::driver::Session;
use super::inspect;
use crate::classify::PinReason;

/// Of sessions that are pinned for the same reason one a shard is told of at `info` in this time; all are at `debug`.
const LOG_INTERVAL: Duration = Duration::from_secs(60);

impl Session {
    /// One more reason to stay, if it is not one already.
    pub(super) fn add_pin(&mut self, pin: PinReason) {
        if !self.pins.contains(&pin) {
            self.begin_pin(pin);
            self.pins.push(pin);
        }
    }

    /// Of the reasons that servers are asked for, these are all.
    pub(super) fn set_asked_pins(&mut self, found: &[PinReason]) {
        for &pin in found.iter().filter(|pin| !self.pins.contains(pin)) {
            self.begin_pin(pin);
        }
        self.pins.retain(|pin| !inspect::is_asked(*pin));
        self.pins.extend_from_slice(found);
    }

    fn begin_pin(&self, pin: PinReason) {
        self.shard.counters.pins.at(pin as usize).inc();
        let (reason, user, database) = (pin.as_str(), &**self.group.user(), &**self.group.database());
        tracing::debug!(reason, user, database, session = self.key(), "session pinned to its server");
        let now = Instant::now();
        let told_at = self.shard.pins_told_at.get(pin as usize);
        if let Some(told_at) =
            told_at.filter(|at| at.get().is_none_or(|at| now.saturating_duration_since(at) > LOG_INTERVAL))
        {
            told_at.set(Some(now));
            tracing::info!(
                reason,
                user,
                database,
                "a session is pinned to its server; further ones for this reason are not told of for a minute"
            );
        }
    }
}
