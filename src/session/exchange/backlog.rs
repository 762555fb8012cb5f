//! How far a client is behind with the answer of a standby, and when that has gone on for too long.
//!
//! A server process that can't send can't be cancelled by replay either, so replay waits for it. It is looked at only while the
//! buffer is full, that is while reading from the standby has stopped.
//!
//! Invariant: replay is held up by one client for no longer than the limit. Whoever takes something within the limit is slow and
//! not stalled, as long as replay goes on. Pure. Must not know: sockets, clocks (`now` is an argument).

use std::time::{Duration, Instant};

/// So many bytes read from a server in a while have let it go on in that while, whatever the kernels keep between it and us:
/// Linux wakes a process that waits for its socket when a third of at most 4 MiB is free.
const LETS_GO_ON_BYTES: usize = 4 * 1024 * 1024;

/// A client that is behind.
#[derive(Debug)]
pub(super) struct Backlog {
    limit: Duration,
    /// When it took something last, or the wait for it began.
    took_at: Instant,
    /// Since when the server has been read more slowly than that it would surely have gone on.
    slow_since: Instant,
    read_bytes: usize,
}

impl Backlog {
    /// Begins when reading from the server stops.
    pub(super) fn new(limit: Duration, now: Instant) -> Self {
        Self { limit, took_at: now, slow_since: now, read_bytes: 0 }
    }

    /// The client has taken something.
    pub(super) fn client_took(&mut self, now: Instant) {
        self.took_at = now;
    }

    /// So much could be read from the server.
    pub(super) fn server_sent(&mut self, bytes: usize, now: Instant) {
        self.read_bytes += bytes;
        if self.read_bytes >= LETS_GO_ON_BYTES {
            (self.slow_since, self.read_bytes) = (now, 0);
        }
    }

    /// Whether the server is to be waited for no longer. `replay_stands_since`: since when the standby has had WAL to replay and has
    /// replayed none.
    pub(super) fn is_too_long(&self, replay_stands_since: Option<Instant>, now: Instant) -> bool {
        let passed = |since: Instant| now.saturating_duration_since(since) >= self.limit;
        passed(self.took_at) || (passed(self.slow_since) && replay_stands_since.is_some_and(passed))
    }

    /// After how long to look again.
    pub(super) fn look_again_after(&self) -> Duration {
        (self.limit / 8).clamp(Duration::from_millis(1), Duration::from_millis(100))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(1);
    const TICK: Duration = Duration::from_millis(250);

    #[test]
    fn who_takes_nothing_is_stalled() {
        let start = Instant::now();
        let backlog = Backlog::new(LIMIT, start);
        assert!(!backlog.is_too_long(None, start + TICK * 3));
        assert!(backlog.is_too_long(None, start + LIMIT));
    }

    /// As slow as it may be, unless replay waits.
    #[test]
    fn who_takes_little_is_slow() {
        let mut now = Instant::now();
        let mut backlog = Backlog::new(LIMIT, now);
        for _ in 0..100 {
            now += TICK;
            backlog.client_took(now);
            backlog.server_sent(1000, now);
            assert!(!backlog.is_too_long(None, now));
        }
        assert!(!backlog.is_too_long(Some(now - TICK), now));
        assert!(backlog.is_too_long(Some(now - LIMIT), now));
    }

    /// Whoever reads fast is not why replay stands.
    #[test]
    fn who_lets_the_server_go_on_is_in_nobodys_way() {
        let mut now = Instant::now();
        let stands_since = now;
        let mut backlog = Backlog::new(LIMIT, now);
        for _ in 0..100 {
            now += TICK;
            backlog.client_took(now);
            backlog.server_sent(LETS_GO_ON_BYTES / 2, now);
            assert!(!backlog.is_too_long(Some(stands_since), now));
        }
    }
}
