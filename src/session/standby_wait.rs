//! A read that no standby may answer now: it waits for one, goes to the primary, or fails, as its terms say.
//!
//! Invariant: what waits has been sent nowhere, and no bound of it is widened by waiting. Must not know: how nodes are judged, what the
//! statement is.

use std::cell::Cell;
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

/// Behind a wait in vain no read waits for so long, twice as long behind each further one.
const PAUSE_IN_VAIN: Duration = Duration::from_millis(50);
/// After so many waits in vain the pause grows no longer (6.4 s).
const IN_VAIN_MAX: u32 = 8;

/// Whether reads wait for a standby to have what was written before them. It mostly takes some milliseconds: a sample of positions or
/// two. Where it does not (standbys that lag by more, commits that are not flushed yet), waiting would only make reads late, and few do.
#[derive(Debug, Default)]
pub(super) struct CatchUp {
    in_vain: Cell<u32>,
    paused_until: Cell<Option<Instant>>,
}

impl CatchUp {
    /// Whether a read of now is to wait.
    fn is_worth_it(&self, now: Instant) -> bool {
        self.paused_until.get().is_none_or(|until| until <= now)
    }

    /// A read waited, and a standby had it then.
    fn succeeded(&self) {
        self.in_vain.set(0);
        self.paused_until.set(None);
    }

    /// A read waited, and went to the primary.
    fn failed(&self, now: Instant) {
        // Those that waited beside one another count as one.
        if self.is_worth_it(now) {
            let pause = PAUSE_IN_VAIN * (1 << self.in_vain.get().min(IN_VAIN_MAX - 1));
            self.in_vain.set(self.in_vain.get() + 1);
            self.paused_until.set(Some(now + pause));
        }
    }
}

/// Of one read: whether it waits for standbys to catch up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum CatchingUp {
    /// It has not come to that.
    #[default]
    Not,
    /// Until then.
    Until(Instant),
    /// No longer, or never.
    Over,
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
    /// Until when a read waits for a standby that has what was written before it, if it is to wait on.
    pub(super) fn catches_up_until(&self, task: &mut Task<'_>) -> Option<Instant> {
        let catch_up = &self.shard.catch_up;
        // What is left of its `statement_timeout` is for the primary.
        let most = self.statement_limit.map_or(Duration::MAX, |limit| limit / 4);
        let wait = self.shard.shared.settings.routing.catch_up_wait.min(most);
        if task.catching_up == CatchingUp::Not {
            let waits = !wait.is_zero() && catch_up.is_worth_it(task.now);
            task.catching_up = if waits { CatchingUp::Until(task.now + wait) } else { CatchingUp::Over };
        }
        match task.catching_up {
            CatchingUp::Until(until) if task.now < until => Some(until),
            CatchingUp::Until(_) => {
                catch_up.failed(task.now);
                task.catching_up = CatchingUp::Over;
                None
            }
            CatchingUp::Not | CatchingUp::Over => None,
        }
    }

    /// A standby was found.
    pub(super) fn caught_up(&self, task: &mut Task<'_>) {
        if matches!(task.catching_up, CatchingUp::Until(_)) {
            self.shard.catch_up.succeeded();
            task.catching_up = CatchingUp::Over;
        }
    }

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
    fn waits_in_vain_get_rare_until_one_is_not() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let catch_up = CatchUp::default();
        let mut waits = Vec::new();
        for ms in 0..60_000u64 {
            if catch_up.is_worth_it(at(ms)) {
                waits.push(ms);
                // Many at once.
                catch_up.failed(at(ms));
                catch_up.failed(at(ms));
            }
        }
        assert_eq!(waits.get(..4), Some([0, 50, 150, 350].as_slice()));
        assert!(waits.len() < 20, "{waits:?}");
        catch_up.succeeded();
        assert!(catch_up.is_worth_it(start));
        catch_up.failed(start);
        assert!(!catch_up.is_worth_it(at(49)) && catch_up.is_worth_it(at(50)));
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
