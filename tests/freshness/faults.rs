//! The faults, and which of them come in which order: a function of the seed alone.

use std::time::Duration;

use fastrand::Rng;

use crate::running::relay::Link;

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Kill9,
    Immediate,
    Fast,
    /// It does not end: it hangs.
    Frozen,
}

/// How an old primary comes back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Return {
    /// As a standby of the new one.
    Reattached,
    /// As it was, a primary; only then as a standby.
    AsItWas,
}

/// What is done to the cluster or to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Replay stands still, on one standby or on all.
    Paused { standby: Option<usize>, lasts: Duration },
    /// Replay waits behind each commit.
    Delayed { standby: usize, delay: Duration, lasts: Duration },
    /// A standby gets no WAL: it has replayed all that it has received, and is stale.
    CutOff { standby: usize, lasts: Duration },
    /// A standby hangs.
    Hung { standby: usize, lasts: Duration },
    /// A standby goes and comes back.
    Restarted { standby: usize, death: Death },
    /// The way between the proxy and a node (0: the primary) is disturbed: what is held back comes late.
    Disturbed { node: usize, link: Link, lasts: Duration },
    /// The proxy hangs.
    Stopped { proxy: usize, lasts: Duration },
    /// The primary goes and comes back.
    PrimaryRestarted { death: Death },
    /// The primary goes, and the better standby is promoted.
    Failover { death: Death, back: Return },
}

/// The faults of one cluster.
pub fn schedule(seed: u64, count: usize) -> Vec<Fault> {
    let mut rng = Rng::with_seed(seed);
    (0..count).map(|_| fault(&mut rng)).collect()
}

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn lasts(rng: &mut Rng) -> Duration {
    // Within the budgets, beyond the short ones, beyond all.
    Duration::from_millis(one(rng, &[60, 250, 700, 1_500]))
}

fn fault(rng: &mut Rng) -> Fault {
    let deaths = [Death::Kill9, Death::Immediate, Death::Fast];
    let standby = rng.usize(..2);
    match rng.u32(..100) {
        0..26 => Fault::Paused { standby: (rng.u32(..4) > 0).then_some(standby), lasts: lasts(rng) },
        26..34 => {
            let delay = Duration::from_millis(one(rng, &[20, 150, 600]));
            Fault::Delayed { standby, delay, lasts: lasts(rng) }
        }
        34..44 => Fault::CutOff { standby, lasts: lasts(rng) },
        44..50 => Fault::Hung { standby, lasts: lasts(rng) },
        50..60 => Fault::Restarted { standby, death: one(rng, &deaths) },
        60..76 => {
            let link = one(rng, &[Link::Silent, Link::Deaf, Link::Mute, Link::Refused]);
            let lasts = Duration::from_millis(one(rng, &[10, 50, 200, 1_200]));
            Fault::Disturbed { node: rng.usize(..3), link, lasts }
        }
        76..82 => Fault::Stopped { proxy: rng.usize(..2), lasts: lasts(rng) },
        82..88 => Fault::PrimaryRestarted { death: one(rng, &deaths) },
        _ => {
            let death = one(rng, &[Death::Kill9, Death::Immediate, Death::Fast, Death::Frozen]);
            let back = one(rng, &[Return::Reattached, Return::Reattached, Return::AsItWas]);
            Fault::Failover { death, back }
        }
    }
}
