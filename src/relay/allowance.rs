//! How many bytes of answers all sessions together may keep beyond their relay buffers.
//!
//! Invariant: never more than the maximum is given out; what a share has is given back when it is dropped. Must not know: whose
//! bytes they are, and why they are kept.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What there is, for all shards.
#[derive(Debug)]
pub struct Allowance {
    bytes_max: usize,
    used_bytes: AtomicUsize,
}

impl Allowance {
    /// Of so many bytes, all of them free.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Self { bytes_max, used_bytes: AtomicUsize::new(0) })
    }

    /// Given out now.
    pub fn used_bytes(&self) -> usize {
        self.used_bytes.load(Ordering::Relaxed)
    }

    fn take(&self, bytes: usize) -> bool {
        let taken = self.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|used| *used <= self.bytes_max)
        });
        taken.is_ok()
    }
}

/// What one session has of it.
#[derive(Debug)]
pub struct Share {
    of: Arc<Allowance>,
    bytes: usize,
}

impl Share {
    /// Of nothing yet.
    pub fn new(of: &Arc<Allowance>) -> Self {
        Self { of: Arc::clone(of), bytes: 0 }
    }

    /// Makes it at least so large; `false`: there is not so much left, and it stays as it is.
    pub fn reach(&mut self, bytes: usize) -> bool {
        let more = bytes.saturating_sub(self.bytes);
        if more == 0 {
            return true;
        }
        let taken = self.of.take(more);
        if taken {
            self.bytes += more;
        }
        taken
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.of.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_given_out_than_there_is() {
        let all = Allowance::new(100);
        let (mut one, mut other) = (Share::new(&all), Share::new(&all));
        assert!(one.reach(60) && one.reach(50));
        assert!(!other.reach(41) && other.reach(40) && !one.reach(61));
        assert_eq!(all.used_bytes(), 100);
        drop(one);
        assert_eq!(all.used_bytes(), 40);
        assert!(other.reach(100));
        drop(other);
        assert_eq!(all.used_bytes(), 0);
    }
}
