//! One shard's part of one pool: who is idle, who waits. Pure.
//!
//! Invariant: idle connections and waiters never exist together. Must not know: sockets, clocks, what connections and
//! waiters are.

use std::collections::VecDeque;

/// So many idle connections are looked at for one that fits better than the last.
const LOOKED_AT_MAX: usize = 16;

/// Idle connections `C` and waiters `W`.
#[derive(Debug)]
pub struct PoolState<C, W> {
    idle: Vec<C>,
    waiting: VecDeque<W>,
}

impl<C, W> Default for PoolState<C, W> {
    fn default() -> Self {
        Self { idle: Vec::new(), waiting: VecDeque::new() }
    }
}

/// What became of a connection that was given back.
#[derive(Debug, PartialEq, Eq)]
pub enum Given<C, W> {
    /// It is idle now.
    Idle,
    /// The first waiter gets it.
    To(W, C),
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

    /// Queues a waiter, behind all others.
    pub fn wait(&mut self, waiter: W) {
        debug_assert!(self.idle.is_empty(), "nobody waits beside an idle connection");
        self.waiting.push_back(waiter);
    }

    /// A connection comes back (or is new).
    pub fn give(&mut self, connection: C) -> Given<C, W> {
        match self.waiting.pop_front() {
            Some(waiter) => Given::To(waiter, connection),
            None => {
                self.idle.push(connection);
                Given::Idle
            }
        }
    }

    /// Takes the first waiter out, because there is room to open a connection.
    pub fn next_waiter(&mut self) -> Option<W> {
        self.waiting.pop_front()
    }

    /// Takes the idle connections out for which `leave` says so.
    pub fn remove_idle(&mut self, leave: impl FnMut(&mut C) -> bool) -> Vec<C> {
        self.idle.extract_if(.., leave).collect()
    }

    /// Number of idle connections.
    pub fn idle_count(&self) -> usize {
        self.idle.len()
    }

    /// Number of waiters.
    pub fn waiting_count(&self) -> usize {
        self.waiting.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idle_is_last_in_first_out_and_waiters_first_in_first_out() {
        let mut pool: PoolState<u32, &str> = PoolState::default();
        assert_eq!(pool.claim(), None);
        assert_eq!(pool.give(1), Given::Idle);
        assert_eq!(pool.give(2), Given::Idle);
        assert_eq!((pool.claim(), pool.claim(), pool.claim()), (Some(2), Some(1), None));
        for connection in 1..=3 {
            pool.give(connection);
        }
        assert_eq!(pool.claim_fitting(|&it| it == 2), Some(2));
        assert_eq!(pool.claim_fitting(|&it| it == 2), Some(3));
        assert_eq!((pool.claim_fitting(|_| true), pool.claim()), (Some(1), None));
        pool.wait("first");
        pool.wait("second");
        assert_eq!(pool.give(2), Given::To("first", 2));
        assert_eq!(pool.give(1), Given::To("second", 1));
        assert_eq!(pool.give(1), Given::Idle);
    }
}
