//! What a failed question to a server means: whether waiting can help, when to ask again, and how often to say so.
//!
//! Invariant: a failure is final only on the word of somebody who answered; silence always passes. Must not know: what was
//! asked.

use std::collections::HashMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::topology::model::{Epoch, Role, Snapshot};
use crate::topology::probe;
use crate::wire::sqlstate::{self as state, SqlState};

/// What failed is not asked again any sooner, whatever has changed.
pub(super) const PAUSE: Duration = Duration::from_millis(100);

/// And it is asked again after so long though nothing has changed: a server may have a free slot again.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// A cause is logged once in this time.
const WARN_INTERVAL: Duration = Duration::from_secs(1);

/// Distinct causes logged in that time; what servers say may hold anything.
const WARN_CAUSES_MAX: usize = 16;

/// Why there is no answer.
#[derive(Debug, Clone)]
pub(super) enum Failure<F> {
    /// It will be the same however long one waits.
    Final(F),
    /// It may pass.
    Passing(Passing),
}

/// A failure that may pass.
#[derive(Debug, Clone)]
pub(super) struct Passing {
    /// What went wrong, for people.
    pub(super) cause: String,
    /// Who could be asked at that time.
    seen: Picture,
    at: Instant,
}

/// What of a snapshot decides who can be asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    epoch: Epoch,
    roles: Vec<Role>,
}

impl Picture {
    /// That of this snapshot.
    pub(super) fn of(snapshot: &Snapshot) -> Self {
        Self { epoch: snapshot.epoch, roles: snapshot.nodes.iter().map(|node| node.role).collect() }
    }

    fn differs(&self, snapshot: &Snapshot) -> bool {
        self.epoch != snapshot.epoch
            || self.roles.iter().copied().ne(snapshot.nodes.iter().map(|node| node.role))
    }
}

impl Passing {
    /// A failure now, of a question that was asked with this picture in mind.
    pub(super) fn now(cause: impl Into<String>, seen: Picture) -> Self {
        Self { cause: cause.into(), seen, at: Instant::now() }
    }

    /// Waits until another answer can be hoped for. Cancel-safe.
    pub(super) async fn until_worth_asking(&self, mut snapshots: watch::Receiver<Arc<Snapshot>>) {
        let changed = async {
            if snapshots.wait_for(|snapshot| self.seen.differs(snapshot)).await.is_err() {
                // Nobody judges the nodes any more: pgsteer ends.
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = changed => {}
            () = tokio::time::sleep_until((self.at + ASK_AGAIN).into()) => {}
        }
        tokio::time::sleep_until((self.at + PAUSE).into()).await;
    }
}

/// What one node's answer, or its silence, came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Cause {
    /// For people.
    pub(super) text: String,
    /// It may be gone when asked again.
    pub(super) passes: bool,
}

impl Cause {
    /// One that may pass.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), passes: true }
    }

    /// Sorts an error of the driver; `doing` begins the sentence.
    pub(super) fn of(error: &tokio_postgres::Error, doing: &str) -> Self {
        if let Some(error) = error.as_db_error() {
            let code = <[u8; 5]>::try_from(error.code().code().as_bytes()).map(SqlState);
            return Self {
                text: format!("{doing} failed: {} (SQLSTATE {})", error.message(), error.code().code()),
                passes: code.is_ok_and(state::passes),
            };
        }
        if probe::lacks_password(error) {
            return Self { text: format!("{doing} failed: {}", probe::NO_PASSWORD), passes: false };
        }
        let Some(source) = error.source() else {
            return Self { text: format!("{doing} failed: {error}"), passes: error.is_closed() };
        };
        let passes = error.is_closed() || source.is::<std::io::Error>();
        Self { text: format!("{doing} failed: {error}: {source}"), passes }
    }
}

/// What was logged lately.
#[derive(Debug, Default)]
pub(super) struct Warnings {
    last: Mutex<HashMap<String, Instant>>,
}

impl Warnings {
    /// Whether this cause may be logged now. Asking counts as logging it.
    pub(super) fn may_say(&self, cause: &str, now: Instant) -> bool {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.retain(|_, at| now.saturating_duration_since(*at) < WARN_INTERVAL);
        if last.contains_key(cause) || last.len() >= WARN_CAUSES_MAX {
            return false;
        }
        last.insert(cause.to_owned(), now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_is_said_once_in_a_second_and_few_at_a_time() {
        let (warnings, start) = (Warnings::default(), Instant::now());
        assert!(warnings.may_say("a", start));
        assert!(!warnings.may_say("a", start + WARN_INTERVAL / 2));
        assert!(warnings.may_say("b", start + WARN_INTERVAL / 2));
        assert!(warnings.may_say("a", start + WARN_INTERVAL));
        let said = (0..1000).filter(|n| warnings.may_say(&n.to_string(), start + WARN_INTERVAL)).count();
        assert_eq!(said, WARN_CAUSES_MAX - 2);
    }

    fn snapshots() -> (watch::Sender<Arc<Snapshot>>, watch::Receiver<Arc<Snapshot>>) {
        watch::channel(Arc::new(Snapshot::unknown(&[])))
    }

    /// What changes with every probe is no reason to ask again; another epoch is, though not at once.
    #[tokio::test]
    async fn asks_again_when_the_picture_changes() {
        let (sender, receiver) = snapshots();
        let passing = Passing::now("x", Picture::of(&receiver.borrow()));
        let asks_again = passing.until_worth_asking(receiver.clone());
        let mut asks_again = std::pin::pin!(asks_again);
        for version in 1..50 {
            sender.send_modify(|snapshot| Arc::make_mut(snapshot).version = version);
            if tokio::time::timeout(Duration::from_millis(2), &mut asks_again).await.is_ok() {
                // On a machine that is slow enough, the second is over.
                assert!(passing.at.elapsed() >= ASK_AGAIN, "version {version}");
                return;
            }
        }
        sender.send_modify(|snapshot| Arc::make_mut(snapshot).epoch = Epoch(1));
        asks_again.await;
        assert!(passing.at.elapsed() >= PAUSE);
    }
}
