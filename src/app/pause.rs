//! A pause: nothing new begins on the primary, what runs there may end, and the rest is held until the pause is over.
//!
//! Invariant: a pause ends by itself: when its time is up, or, unless it was asked to wait for `resume`, when a new epoch begins.
//! While it lasts all nodes are probed in rapid rounds, so that whoever is promoted is seen at once. Must not know: HTTP, sessions.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::AbortHandle;

use super::shards::{Command, Commands};
use crate::config::units;
use crate::topology::model::Epoch;
use crate::topology::monitor::MonitorHandle;

/// A pause that nobody ends lasts so long.
const LASTS: Duration = Duration::from_secs(60);
/// The longest pause that may be asked for.
const LASTS_MAX: Duration = Duration::from_secs(3600);
/// The hint that keeps rounds rapid is renewed this often: it lasts longer than this.
const RENEWED_EVERY: Duration = Duration::from_secs(1);

/// What ends a pause before its time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// A new epoch, or `resume`.
    Promotion,
    /// Only `resume`.
    Resume,
}

impl Until {
    fn as_str(self) -> &'static str {
        match self {
            Self::Promotion => "promotion",
            Self::Resume => "resume",
        }
    }
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Wish {
    lasts: Duration,
    until: Until,
}

impl Wish {
    /// Reads `for=60s&until=promotion`; what was wrong with it otherwise.
    fn parse(query: &str) -> Result<Self, String> {
        let mut wish = Self { lasts: LASTS, until: Until::Promotion };
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            match pair.split_once('=') {
                Some(("for", value)) => {
                    let lasts = units::duration(value)
                        .filter(|it| (Duration::from_millis(1)..=LASTS_MAX).contains(it));
                    wish.lasts =
                        lasts.ok_or_else(|| format!("for={value}: must be a time up to 1h, such as 60s"))?;
                }
                Some(("until", "promotion")) => wish.until = Until::Promotion,
                Some(("until", "resume")) => wish.until = Until::Resume,
                Some(("until", value)) => return Err(format!("until={value}: must be promotion or resume")),
                _ => return Err(format!("{pair}: not understood; there is for= and until=")),
            }
        }
        Ok(wish)
    }
}

/// The pause that is in force.
#[derive(Debug)]
struct Pause {
    since: Instant,
    ends: Instant,
    until: Until,
    watch: AbortHandle,
}

/// Pauses and resumes all shards.
pub(super) struct Pauser {
    commands: Commands,
    monitor: MonitorHandle,
    pause: Mutex<Option<Pause>>,
}

impl Pauser {
    pub(super) fn new(commands: Commands, monitor: MonitorHandle) -> Arc<Self> {
        Arc::new(Self { commands, monitor, pause: Mutex::default() })
    }

    /// Begins a pause, or gives the one in force another end. Needs a tokio runtime.
    pub(super) fn pause(self: &Arc<Self>, query: &str) -> Result<(), String> {
        let wish = Wish::parse(query)?;
        let now = Instant::now();
        let epoch = self.monitor.current.load().epoch;
        let watch = tokio::spawn(Arc::clone(self).watch(now + wish.lasts, wish.until, epoch)).abort_handle();
        let before =
            self.in_force().replace(Pause { since: now, ends: now + wish.lasts, until: wish.until, watch });
        if let Some(before) = before {
            before.watch.abort();
        }
        self.tell(|| Command::Pause);
        tracing::info!(lasts = ?wish.lasts, until = wish.until.as_str(), "paused: what would begin on the primary is held");
        Ok(())
    }

    /// Ends the pause, if there is one.
    pub(super) fn resume(&self, why: &str) {
        let Some(pause) = self.in_force().take() else { return };
        pause.watch.abort();
        self.tell(|| Command::Resume);
        tracing::info!(lasted = ?pause.since.elapsed(), "resumed: {why}");
    }

    /// Keeps the monitor looking, and ends the pause when it is time.
    async fn watch(self: Arc<Self>, ends: Instant, until: Until, epoch: Epoch) {
        let mut snapshots = self.monitor.snapshots.clone();
        let mut renew = tokio::time::interval(RENEWED_EVERY);
        let why = loop {
            tokio::select! {
                () = tokio::time::sleep_until(ends.into()) => break "its time is up",
                changed = snapshots.changed() => {
                    let snapshot = Arc::clone(&snapshots.borrow_and_update());
                    if changed.is_err() || (until == Until::Promotion && snapshot.epoch > epoch) {
                        break "a new epoch has begun";
                    }
                }
                _ = renew.tick() => self.monitor.hint(None),
            }
        };
        self.resume(why);
    }

    /// How things stand: how many sessions have something under way on the primary, and until when nothing new begins there.
    pub(super) async fn report(&self) -> Value {
        let running = self.running().await;
        let now = Instant::now();
        match &*self.in_force() {
            None => json!({ "state": "running", "on_primary": running }),
            Some(pause) => json!({
                "state": if running == 0 { "paused" } else { "pausing" },
                "on_primary": running,
                "until": pause.until.as_str(),
                "ends_in_ms": u64::try_from(pause.ends.saturating_duration_since(now).as_millis()).unwrap_or(u64::MAX),
            }),
        }
    }

    async fn running(&self) -> usize {
        let mut answers = Vec::new();
        for shard in &self.commands {
            let (answer, told) = oneshot::channel();
            if shard.send(Command::Running { answer }).is_ok() {
                answers.push(told);
            }
        }
        let mut running = 0;
        for told in answers {
            // A shard that has ended runs nothing.
            running += told.await.unwrap_or_default();
        }
        running
    }

    fn tell(&self, command: fn() -> Command) {
        for shard in &self.commands {
            // A shard that has ended has nobody to hold.
            let _ = shard.send(command());
        }
    }

    fn in_force(&self) -> MutexGuard<'_, Option<Pause>> {
        self.pause.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wishes_are_read() {
        assert_eq!(Wish::parse(""), Ok(Wish { lasts: LASTS, until: Until::Promotion }));
        let wish = Wish { lasts: Duration::from_millis(200), until: Until::Resume };
        assert_eq!(Wish::parse("for=200ms&until=resume"), Ok(wish));
        for bad in ["for=0s", "for=2h", "for=5", "for", "until=never", "how=1", "until=resume&x"] {
            assert!(Wish::parse(bad).is_err(), "{bad}");
        }
    }
}
