//! The faults, and which of them come in which order: a function of the seed alone.

use std::time::Duration;

use fastrand::Rng;

use crate::running::relay::{Cut, Direction, Link, Manner};

/// A node by what it is when the fault comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Primary,
    /// One of both standbys.
    Standby(usize),
}

/// How a server ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Death {
    Kill9,
    Immediate,
    Fast,
    /// SIGKILL to the postmaster alone: those of its processes that are busy go on for a while.
    Orphaned,
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
    /// The same, and for a while the proxy reaches nobody else.
    AsItWasAndAlone,
}

/// What is done to the cluster, or between it and the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// One connection is cut at some byte.
    Cut { at: Place, cut: Cut },
    /// The way to one node, or to all, is disturbed for a while.
    Disturbed { at: Option<Place>, link: Link, lasts: Duration },
    /// An administrator ends one client's server process, or all.
    Terminated { all: bool },
    /// One server process is killed, whereupon the server restarts all of them.
    Crash,
    /// A node goes and comes back as it was.
    Restart { at: Place, death: Death },
    /// A node hangs for a while.
    Frozen { at: Place, lasts: Duration },
    /// The primary goes, the better standby is promoted, and then has all its clients' connections ended, or one cut, or not.
    Failover { death: Death, second_wave: bool, cut: Option<Cut>, old: Return },
    /// A standby is promoted beside the living primary, which the proxy may reach in this way by then.
    Handover { to: usize, link: Link, old: Return },
    /// The primary goes, and the one after it as soon as it has written anything.
    Twice { to: usize, first: Death, second: Death },
}

/// The faults of one cluster.
pub fn schedule(seed: u64, count: usize) -> Vec<Fault> {
    let mut rng = Rng::with_seed(seed);
    (0..count).map(|_| fault(&mut rng)).collect()
}

/// Of a primary for which a standby is promoted.
const DEATHS: [Death; 4] = [Death::Kill9, Death::Immediate, Death::Fast, Death::Frozen];

fn one<T: Copy>(rng: &mut Rng, of: &[T]) -> T {
    of[rng.usize(..of.len())]
}

fn fault(rng: &mut Rng) -> Fault {
    match rng.u32(..100) {
        0..54 => cut(rng),
        54..70 => {
            let links = [Link::Silent, Link::Deaf, Link::Mute, Link::Refused];
            let places = [Some(Place::Primary), Some(Place::Primary), Some(standby(rng)), None];
            // Short ones pass unseen, long ones cost the primary its claim.
            let lasts = Duration::from_millis(one(rng, &[5, 30, 100, 300, 1_500]));
            Fault::Disturbed { at: one(rng, &places), link: one(rng, &links), lasts }
        }
        70..75 => Fault::Terminated { all: rng.bool() },
        75..79 => Fault::Crash,
        79..86 => {
            let at = if rng.u32(..3) > 0 { Place::Primary } else { standby(rng) };
            let deaths = [Death::Kill9, Death::Immediate, Death::Fast, Death::Orphaned];
            Fault::Restart { at, death: one(rng, &deaths) }
        }
        86..90 => {
            let at = if rng.bool() { Place::Primary } else { standby(rng) };
            Fault::Frozen { at, lasts: Duration::from_millis(one(rng, &[20, 200, 800])) }
        }
        90..94 => Fault::Failover {
            death: one(rng, &DEATHS),
            second_wave: rng.bool(),
            cut: rng.bool().then(|| order(rng, 2_000)),
            old: old(rng),
        },
        94..96 => {
            Fault::Twice { to: rng.usize(..2), first: one(rng, &DEATHS), second: one(rng, &DEATHS[..3]) }
        }
        _ => Fault::Handover {
            to: rng.usize(..2),
            link: one(rng, &[Link::Open, Link::Silent, Link::Deaf, Link::Mute, Link::Refused]),
            old: old(rng),
        },
    }
}

fn standby(rng: &mut Rng) -> Place {
    Place::Standby(rng.usize(..2))
}

fn old(rng: &mut Rng) -> Return {
    one(rng, &[Return::Reattached, Return::Reattached, Return::AsItWas, Return::AsItWasAndAlone])
}

fn cut(rng: &mut Rng) -> Fault {
    let at = if rng.u32(..6) > 0 { Place::Primary } else { standby(rng) };
    // Little passes between the proxy and a standby.
    let most = if at == Place::Primary { one(rng, &[100, 1_000, 20_000]) } else { 600 };
    Fault::Cut { at, cut: order(rng, most) }
}

fn order(rng: &mut Rng, most: usize) -> Cut {
    let direction = one(rng, &[Direction::ToNode, Direction::FromNode]);
    let manner = one(rng, &[Manner::Reset, Manner::Close]);
    Cut { direction, after_bytes: rng.usize(..most), manner }
}
