//! One shard's part of one pool: who is idle, who waits. Pure.
//!
//! Invariant: waiters are in the order in which they came; idle connections are taken last-in first-out. Must not know:
//! sockets, clocks, limits, what connections and waiters are.

use std::collections::VecDeque;

/// So many idle connections are looked at for one that fits better than the last.
const LOOKED_AT_MAX: usize = 16;

/// Idle connections `C` and waiters `W`.
#[derive(Debug)]
pub struct PoolState<C, W> {
    idle: Vec<C>,
    waiting: VecDeque<Waiter<W>>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiter<W> {
    ticket: u64,
    since_us: u64,
    waiter: W,
}

impl<C, W> Default for PoolState<C, W> {
    fn default() -> Self {
        Self { idle: Vec::new(), waiting: VecDeque::new(), tickets: 0 }
    }
}

impl<C, W> PoolState<C, W> {
    /// The most recently used idle connection.
    pub fn claim(&mut self) -> Option<C> {
        self.idle.pop()
    }

    /// Of the most recently used idle connections the last one for which `fits` says so, else the last one.
    pub fn claim_fitting(&mut self, fits: impl Fn(&C) -> bool) -> Option<C> {
        let found = self.idle.iter().rev().take(LOOKED_AT_MAX).position(fits);
        match found {
            None | Some(0) => self.idle.pop(),
            Some(from_end) => Some(self.idle.remove(self.idle.len() - 1 - from_end)),
        }
    }

    /// The idle connection that was used longest ago, as far as it matters who that is: the bottom of the stack.
    pub fn claim_coldest(&mut self) -> Option<C> {
        (!self.idle.is_empty()).then(|| self.idle.remove(0))
    }

    /// The idle connection that would be taken by `claim_coldest`.
    pub fn coldest(&self) -> Option<&C> {
        self.idle.first()
    }

    /// A connection that nobody waits for.
    pub fn rest(&mut self, connection: C) {
        self.idle.push(connection);
    }

    /// Queues a waiter, behind all others; gives its ticket.
    pub fn wait(&mut self, since_us: u64, waiter: W) -> u64 {
        self.tickets += 1;
        self.waiting.push_back(Waiter { ticket: self.tickets, since_us, waiter });
        self.tickets
    }

    /// Takes the first waiter out, because there is something for it.
    pub fn next_waiter(&mut self) -> Option<W> {
        self.waiting.pop_front().map(|first| first.waiter)
    }

    /// Takes a waiter out that has given up; nothing happens if it is not there any more.
    pub fn forget(&mut self, ticket: u64) {
        self.waiting.retain(|it| it.ticket != ticket);
    }

    /// Since when the first waiter has been waiting.
    pub fn first_since_us(&self) -> Option<u64> {
        self.waiting.front().map(|first| first.since_us)
    }

    /// Takes the first idle connection out for which `leave` says so.
    pub fn remove_first_idle(&mut self, leave: impl FnMut(&mut C) -> bool) -> Option<C> {
        let place = self.idle.iter_mut().position(leave)?;
        Some(self.idle.remove(place))
    }

    /// Number of idle connections.
    pub fn idle_count(&self) -> usize {
        self.idle.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_last_in_first_out_and_waiters_first_in_first_out() {
        let mut pool: PoolState<u32, &str> = PoolState::default();
        assert_eq!(pool.claim(), None);
        for connection in [1, 2, 3] {
            pool.rest(connection);
        }
        assert_eq!((pool.claim(), pool.coldest(), pool.idle_count()), (Some(3), Some(&1), 2));
        assert_eq!(
            (pool.remove_first_idle(|it| *it == 2), pool.remove_first_idle(|it| *it == 2)),
            (Some(2), None)
        );
        pool.rest(2);
        assert_eq!((pool.claim_coldest(), pool.claim(), pool.claim_coldest()), (Some(1), Some(2), None));

        for connection in 1..=3 {
            pool.rest(connection);
        }
        assert_eq!(pool.claim_fitting(|&it| it == 2), Some(2));
        assert_eq!(pool.claim_fitting(|&it| it == 2), Some(3));
        assert_eq!((pool.claim_fitting(|_| true), pool.claim()), (Some(1), None));

        let tickets = [pool.wait(10, "first"), pool.wait(20, "second"), pool.wait(30, "third")];
        assert_eq!(pool.first_since_us(), Some(10));
        pool.forget(tickets[1]);
        assert_eq!((pool.next_waiter(), pool.first_since_us()), (Some("first"), Some(30)));
        pool.forget(tickets[0]);
        assert_eq!(
            (pool.next_waiter(), pool.next_waiter(), pool.first_since_us()),
            (Some("third"), None, None)
        );
    }
}
