//! The drain signal, and the guards whose end completes it.
//!
//! Invariant: `drained` resolves only after `begin`, and only while no [`Guard`] lives; a guard that is dropped by a
//! panic or a cancelled task counts like any other. Must not know: signals, time limits, sockets. Who begins the
//! drain and how long it may last is decided by `app`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use tokio::sync::Notify;

/// A handle on the one drain of this process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Shutdown {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    draining: AtomicBool,
    guards: AtomicUsize,
    changed: Notify,
}

/// Work that the drain waits for. Dropping the last one completes a drain that has begun.
#[derive(Debug)]
#[must_use = "the drain does not wait for a guard that is dropped at once"]
pub struct Guard {
    shared: Arc<Shared>,
}

impl Shutdown {
    /// A drain that has not begun.
    pub fn new() -> Self {
        Self::default()
    }

    /// Begins the drain. Calling it again changes nothing.
    pub fn begin(&self) {
        if !self.shared.draining.swap(true, Ordering::SeqCst) {
            self.shared.changed.notify_waiters();
        }
    }

    /// Whether the drain has begun. One atomic load: cheap enough for the end of every transaction.
    pub fn is_draining(&self) -> bool {
        self.shared.draining.load(Ordering::SeqCst)
    }

    /// A guard for work that must end before the process does, whether or not the drain has begun.
    pub fn guard(&self) -> Guard {
        self.shared.guards.fetch_add(1, Ordering::SeqCst);
        Guard { shared: Arc::clone(&self.shared) }
    }

    /// A guard for new work (a client that was just accepted); `None` once the drain has begun.
    pub fn admit(&self) -> Option<Guard> {
        // Counted before the look: a drain that begins in between either sees the guard or is seen here.
        let guard = self.guard();
        (!self.is_draining()).then_some(guard)
    }

    /// How many guards live.
    pub fn guards(&self) -> usize {
        self.shared.guards.load(Ordering::SeqCst)
    }

    /// Resolves when the drain has begun; at once if it already has.
    ///
    /// Cancel safety: safe. Nothing is consumed, a new call sees the same state. A loop should pin one future
    /// outside and poll it again and again: each new one registers anew, under a lock.
    pub async fn begun(&self) {
        self.until(Self::is_draining).await;
    }

    /// Resolves when the drain has begun and no guard lives.
    ///
    /// Cancel safety: safe. Nothing is consumed, a new call sees the same state.
    pub async fn drained(&self) {
        self.until(|this| this.is_draining() && this.guards() == 0).await;
    }

    async fn until(&self, reached: impl Fn(&Self) -> bool) {
        let mut changed = std::pin::pin!(self.shared.changed.notified());
        loop {
            // Registered before the look, so a change after the look is not missed.
            changed.as_mut().enable();
            if reached(self) {
                return;
            }
            changed.as_mut().await;
            changed.set(self.shared.changed.notified());
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let last = self.shared.guards.fetch_sub(1, Ordering::SeqCst) == 1;
        if last && self.shared.draining.load(Ordering::SeqCst) {
            self.shared.changed.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    /// One poll, by hand: no runtime, no clock, so no test here can depend on timing.
    fn ready(future: std::pin::Pin<&mut impl Future<Output = ()>>) -> bool {
        future.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(())
    }

    #[test]
    fn drain_completes_when_the_last_guard_goes() {
        let shutdown = Shutdown::new();
        let (first, second) = (shutdown.guard(), shutdown.guard());
        let mut drained = pin!(shutdown.drained());
        assert!(!ready(drained.as_mut()));
        shutdown.begin();
        assert!(!ready(drained.as_mut()), "two guards live");
        drop(first);
        assert!(!ready(drained.as_mut()), "one guard lives");
        drop(second);
        assert!(ready(drained.as_mut()));
    }

    #[test]
    fn no_guard_is_no_drain_before_it_begins() {
        let shutdown = Shutdown::new();
        drop(shutdown.guard());
        let mut drained = pin!(shutdown.drained());
        assert!(!ready(drained.as_mut()));
        shutdown.begin();
        assert!(ready(drained.as_mut()));
    }

    #[test]
    fn begun_wakes_clones_and_late_comers() {
        let shutdown = Shutdown::new();
        let other = shutdown.clone();
        let mut begun = pin!(other.begun());
        assert!(!ready(begun.as_mut()));
        shutdown.begin();
        shutdown.begin();
        assert!(other.is_draining());
        assert!(ready(begun.as_mut()));
        assert!(ready(pin!(shutdown.begun())));
    }

    #[test]
    fn nothing_new_is_admitted_while_draining() {
        let shutdown = Shutdown::new();
        let guard = shutdown.admit().expect("not draining");
        shutdown.begin();
        assert!(shutdown.admit().is_none());
        assert_eq!(shutdown.guards(), 1, "the refused guard is not counted");
        drop(guard);
        assert!(ready(pin!(shutdown.drained())));
    }

    #[tokio::test]
    async fn an_aborted_or_panicking_task_releases_its_guard() {
        let shutdown = Shutdown::new();
        let (aborted, panicked) = (shutdown.guard(), shutdown.guard());
        let sleeper = tokio::spawn(async move {
            let _guard = aborted;
            std::future::pending::<()>().await;
        });
        let failing = tokio::spawn(async move {
            let _guard = panicked;
            panic!("expected by this test");
        });
        shutdown.begin();
        sleeper.abort();
        shutdown.drained().await;
        assert!(failing.await.expect_err("it panics").is_panic());
    }
}
