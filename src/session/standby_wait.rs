//! A read that no standby may answer now: it waits for one, goes to the primary, or fails, as its terms say.
//!
//! Invariant: what waits has been sent nowhere, and no bound of it is widened by waiting. Must not know: how nodes are judged, what the
//! statement is.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::driver::{End, Flow, Session};
use super::outcome;
use super::run::Task;
use super::shard::Shard;
use crate::classify::NoStandby;
use crate::route::Terms;

/// What becomes of a read without a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WithoutStandby {
    /// The primary answers it.
    Primary,
    /// It waits for a standby until then.
    Wait(Instant),
    /// It fails.
    Refuse,
}

/// One read on the primary that a standby should have answered. Dropping it makes room for another.
#[derive(Debug)]
pub(super) struct ReadOnPrimary(Arc<AtomicUsize>);

impl ReadOnPrimary {
    /// A place, if fewer than `limit` are taken.
    fn take(taken: &Arc<AtomicUsize>, limit: usize) -> Option<Self> {
        let one_more = |count| (count < limit).then_some(count + 1);
        taken.fetch_update(Ordering::AcqRel, Ordering::Acquire, one_more).ok()?;
        Some(Self(Arc::clone(taken)))
    }
}

impl Drop for ReadOnPrimary {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How long a session's reads follow its own writes to the primary before one of them waits.
const CATCH_UP_AFTER: Duration = Duration::from_millis(50);
/// How long that one waits: for a sample of positions or two.
const CATCH_UP_WITHIN: Duration = Duration::from_millis(30);
/// After so many waits in vain, each twice as long after the one before, the time between them grows no longer (6.4 s).
const CATCH_UPS_MAX: u32 = 7;

/// Reads that go to the primary since no standby is known to have what their session wrote or saw. What the primary answers is seen as
/// well, so that a session which reads without a pause would stay there for ever: one read waits until a standby is known to have
/// what was answered before it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct CatchUp {
    since: Option<Instant>,
    in_vain: u32,
}

impl CatchUp {
    /// A write, or a read that had a standby.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Until when this read, one more of them, is to wait.
    pub(super) fn wait_until(&mut self, now: Instant) -> Option<Instant> {
        let since = *self.since.get_or_insert(now);
        let is_due = now.saturating_duration_since(since) >= CATCH_UP_AFTER * (1 << self.in_vain);
        is_due.then(|| {
            self.in_vain = CATCH_UPS_MAX.min(self.in_vain + 1);
            self.since = Some(now);
            now + CATCH_UP_WITHIN
        })
    }
}

/// A session that waits, as the shard counts them.
struct Waiting(Rc<Shard>);

impl Waiting {
    fn on(shard: &Rc<Shard>) -> Self {
        shard.waiting_for_standby.set(shard.waiting_for_standby.get() + 1);
        Self(Rc::clone(shard))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.waiting_for_standby.set(self.0.waiting_for_standby.get().saturating_sub(1));
    }
}

/// Decides, for a read that has found no standby since `since`. `limited`: whether the primary has no place for it.
fn decide(
    terms: &Terms,
    (since, now): (Instant, Instant),
    limited: bool,
    wait_max: Duration,
) -> WithoutStandby {
    let wait = match terms.wait_for_standby {
        // Who is kept from the primary by its limit waits for a place as well.
        wait if wait.is_zero() && limited && terms.no_standby == NoStandby::Primary => wait_max,
        wait => wait,
    };
    let until = since + wait;
    match terms.no_standby {
        _ if now < until => WithoutStandby::Wait(until),
        NoStandby::Primary if !limited => WithoutStandby::Primary,
        _ => WithoutStandby::Refuse,
    }
}

impl Session {
    /// What becomes of a read that no standby may answer now.
    pub(super) fn without_standby(&self, task: &mut Task<'_>, terms: &Terms) -> WithoutStandby {
        let shared = &self.shard.shared;
        let since = *task.without_standby_since.get_or_insert(task.now);
        let limit = shared.settings.routing.primary_read_limit;
        let is_due = terms.no_standby == NoStandby::Primary && task.now >= since + terms.wait_for_standby;
        let is_limited = limit > 0 && is_due && task.on_primary.is_none() && {
            task.on_primary = ReadOnPrimary::take(&shared.reads_on_primary, limit);
            task.on_primary.is_none()
        };
        task.waited_for_standby = task.now.saturating_duration_since(since);
        decide(terms, (since, task.now), is_limited, shared.settings.hold_timeout)
    }

    /// Waits for another picture of the cluster, until `until` at most; `false` when the client has been told that it waits no longer.
    pub(super) async fn wait_for_standby(&mut self, task: &mut Task<'_>, until: Instant) -> Flow<bool> {
        let shard = Rc::clone(&self.shard);
        let _waiting = Waiting::on(&shard);
        let mut changes = shard.snapshot_changed.subscribe();
        (shard.shared.want_sample)();
        let since = task.without_standby_since.unwrap_or(task.now);
        let limit = self.statement_limit.map(|limit| since + limit).filter(|limit| *limit < until);
        let deadline = tokio::time::Instant::from_std(limit.unwrap_or(until));
        loop {
            let watched = !task.window.spare().is_empty();
            tokio::select! {
                biased;
                () = self.control.bell.notified() => {
                    if self.control.cancel_waiting.replace(false) {
                        return self.refuse(task, &outcome::cancelled()).await;
                    }
                    break;
                }
                changed = changes.changed() => {
                    changed.map_err(|_| End::Told(Box::new(outcome::shutting_down())))?;
                    // A standby that was lost may be back.
                    task.excluded.clear();
                    break;
                }
                () = tokio::time::sleep_until(deadline) => {
                    if limit.is_some() {
                        return self.refuse(task, &outcome::statement_timed_out()).await;
                    }
                    break;
                }
                ready = crate::net::readable(&self.client), if watched => ready.map_err(|_| End::Client)?,
            }
            self.read_ahead(task.window)?;
        }
        task.now = Instant::now();
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r07_a_read_without_a_standby_waits_and_then_goes_where_its_terms_say() {
        let since = Instant::now();
        let (wait, wait_max) = (Duration::from_millis(100), Duration::from_secs(30));
        let terms = |wait_for_standby, no_standby| Terms { wait_for_standby, no_standby, ..Terms::default() };
        let at = |ms| since + Duration::from_millis(ms);
        for (terms, limited, ms, expected) in [
            (terms(Duration::ZERO, NoStandby::Primary), false, 0, WithoutStandby::Primary),
            (terms(Duration::ZERO, NoStandby::Error), false, 0, WithoutStandby::Refuse),
            (terms(wait, NoStandby::Primary), false, 99, WithoutStandby::Wait(at(100))),
            (terms(wait, NoStandby::Primary), false, 100, WithoutStandby::Primary),
            (terms(wait, NoStandby::Error), false, 99, WithoutStandby::Wait(at(100))),
            (terms(wait, NoStandby::Error), false, 100, WithoutStandby::Refuse),
            (terms(Duration::ZERO, NoStandby::Primary), true, 0, WithoutStandby::Wait(since + wait_max)),
            (terms(Duration::ZERO, NoStandby::Primary), true, 30_000, WithoutStandby::Refuse),
            (terms(wait, NoStandby::Primary), true, 100, WithoutStandby::Refuse),
        ] {
            assert_eq!(
                decide(&terms, (since, at(ms)), limited, wait_max),
                expected,
                "{terms:?} {limited} {ms}"
            );
        }
    }

    #[test]
    fn reads_that_follow_one_another_wait_once_and_then_ever_more_rarely() {
        let start = Instant::now();
        let mut catch_up = CatchUp::default();
        let mut waits = Vec::new();
        for ms in 0..60_000u64 {
            if let Some(until) = catch_up.wait_until(start + Duration::from_millis(ms)) {
                assert_eq!(until, start + Duration::from_millis(ms) + CATCH_UP_WITHIN);
                waits.push(ms);
            }
        }
        assert_eq!(waits.get(..4), Some([50, 150, 350, 750].as_slice()));
        assert!(waits.len() < 20, "{waits:?}");
        catch_up.clear();
        assert_eq!(catch_up.wait_until(start), None);
    }

    #[test]
    fn places_on_the_primary_are_bounded_and_come_back() {
        let taken = Arc::default();
        let one = ReadOnPrimary::take(&taken, 2);
        let two = ReadOnPrimary::take(&taken, 2);
        assert!(one.is_some() && two.is_some() && ReadOnPrimary::take(&taken, 2).is_none());
        drop(one);
        assert!(ReadOnPrimary::take(&taken, 2).is_some());
    }
}
