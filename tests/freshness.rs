//! The checker of freshness: what sessions read is held against what they wrote, what they have seen, and when what they did not see
//! was acknowledged, while standbys lag, go and come back, and primaries are replaced. P2 and P3; R01 to R03, R05, R06, R08.
//!
//! The hazards of freshness, and where they are looked at:
//! - R01 to R03, R05, R06, R08: here, and by name in `route/tests.rs`, `own_writes.rs`, `reconcile_rules.rs`, `lag_clock.rs`; R04 and
//!   R05 in `routing.rs`.
//! - R07 (a lag spike, the guard of the primary), R09 (limits of a wait), R11 (hints and SET): `read_terms.rs`.
//! - R10, a long fork (two sessions see two commits in opposite orders): not between standbys, all of which replay commits in the order
//!   of the WAL, but between a standby and the primary, which shows them as their sessions wake up. It is promised to nobody (P3 is about one
//!   session); `routing.rs` shows one, and here it shows as values seen early.
//! - R12: weights and load are tested in `route/tests.rs`. There are no zones, and `noloadbalance` is a weight of 0.
//!
//! `PGSTEER_READS` is how many reads; `PGSTEER_SEED` the seed of the first cluster's faults, the others follow it. A failure tells
//! both. The same seed gives the same faults in the same order; what they meet is the machine's affair.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

#[path = "freshness/book.rs"]
mod book;
#[path = "freshness/clients.rs"]
mod clients;
#[path = "freshness/faults.rs"]
mod faults;
mod running;
#[path = "freshness/stage.rs"]
mod stage;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use book::{Book, Commit, FLUSHED_WITHIN, Seen, TOLD_WITHIN, Violation};
use clients::Promise;
use faults::{Fault, schedule};
use stage::Stage;

/// Reads of a common run, and its faults.
const READS: usize = 10_000;
const FAULTS: usize = 7;

/// Of a long run each cluster sees so many.
const READS_EACH: usize = 100_000;
const FAULTS_EACH: usize = 40;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// No session reads behind its own writes, back in time, or beyond its budget; and standbys have their share of the reads.
#[tokio::test]
async fn what_sessions_read_is_as_fresh_as_promised() {
    let long = environment("PGSTEER_READS");
    let drawn = if long.is_some() { fastrand::u64(..1 << 32) } else { 1 };
    let mut seed = environment("PGSTEER_SEED").unwrap_or(drawn);
    let mut left = long.map_or(READS, |count| usize::try_from(count).unwrap());
    let (each, faults) = if long.is_some() { (READS_EACH, FAULTS_EACH) } else { (READS, FAULTS) };
    let mut all = 0;
    while left > 0 {
        let count = left.min(each);
        all += run(seed, count, faults * count / each).await;
        left -= count;
        seed += 1;
    }
    println!("{all} reads");
}

async fn run(seed: u64, count: usize, faults: usize) -> usize {
    let started = Instant::now();
    let mut stage = Stage::set(seed).await;
    let tally = std::sync::Arc::clone(&stage.tally);
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (number, fault) in schedule(seed, faults).into_iter().enumerate() {
        println!("PGSTEER_SEED={seed} {number} {:.1?}: {fault:?}", started.elapsed());
        stage.cause(fault).await;
        *kinds.entry(kind(fault)).or_default() += 1;
        stage.read_until(count * (number + 1) / faults).await;
        report(seed, count, &tally);
    }
    stage.read_until(count).await;
    let shares = stage.end().await;
    report(seed, count, &tally);
    let told = |count: &std::sync::atomic::AtomicUsize| count.load(Ordering::Relaxed);
    let reads = told(&tally.reads);
    println!(
        "PGSTEER_SEED={seed}: {:.1?}, {kinds:?}: {reads} reads, {} writes; own writes, monotonic, budget: {:?} checks, 0 violations; \
         {} values seen early; {} connections made anew, errors {:?}",
        started.elapsed(),
        told(&tally.writes),
        tally.checks.each_ref().map(told),
        told(&tally.early),
        told(&tally.reconnects),
        tally.errors.lock().unwrap(),
    );
    for (promise, standbys, primary) in shares {
        let share = standbys / (standbys + primary);
        println!("{promise:?}: {:.1} % of the reads on standbys", share * 100.0);
        // One that reads from the primary alone proves nothing.
        let least = if promise == Promise::Session { 0.12 } else { 0.5 };
        assert!(share > least, "{promise:?}: {standbys} reads on standbys, {primary} on the primary");
    }
    reads
}

fn report(seed: u64, count: usize, tally: &clients::Tally) {
    let violations = tally.violations.lock().unwrap();
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for violation in &*violations {
        *kinds.entry(violation.split(" {").next().unwrap()).or_default() += 1;
    }
    let first: Vec<&str> = violations.iter().take(20).map(String::as_str).collect();
    assert!(
        violations.is_empty(),
        "PGSTEER_SEED={seed} PGSTEER_READS={count}: violations {kinds:?}, among them\n{}",
        first.join("\n")
    );
}

fn kind(fault: Fault) -> String {
    let text = format!("{fault:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// A seed is worth nothing if it gives something else the next time.
#[test]
fn a_seed_gives_the_same_faults() {
    let all = || (0..10).flat_map(|seed| schedule(seed, FAULTS_EACH)).collect::<Vec<Fault>>();
    assert_eq!(all(), all());
    assert_eq!(schedule(7, 10), schedule(7, FAULTS_EACH)[..10]);
    let text = format!("{:?}", all());
    for part in [
        "Paused { standby: None",
        "Paused { standby: Some(1)",
        "Delayed",
        "CutOff",
        "Hung",
        "Restarted { standby",
        "Disturbed { node: 0",
        "Deaf",
        "Stopped { proxy: 0",
        "PrimaryRestarted",
        "Failover { death: Frozen",
        "AsItWas",
    ] {
        assert!(text.contains(part), "{part} never comes");
    }
}

/// What was acknowledged longer ago than the budget must be seen, and nothing else.
#[test]
fn a_read_is_held_against_what_was_acknowledged_before() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let budget = Duration::from_millis(100);
    let mut book = Book::new(1, [(1, (0, Commit::Synchronous)), (2, (0, Commit::Asynchronous))]);
    book.acknowledged(0, (1, 1), (at(0), at(10)));
    book.acknowledged(0, (1, 2), (at(1_000), at(1_010)));
    let beyond = |book: &Book, saw, ms| book.beyond(0, (1, saw), (at(ms), budget));
    assert_eq!(beyond(&book, 0, 110), None, "exactly the budget");
    let acknowledged_before = Duration::from_millis(101);
    let violation = Violation::Budget { key: 1, saw: 0, newer: 1, acknowledged_before, budget };
    assert_eq!(beyond(&book, 0, 111), Some(violation));
    assert_eq!(beyond(&book, 1, 1_110), None);
    assert!(beyond(&book, 1, 1_111).is_some() && beyond(&book, 2, 9_000).is_none());
    book.acknowledged(0, (2, 1), (at(0), at(10)));
    let flushed = FLUSHED_WITHIN + budget + Duration::from_millis(11);
    assert_eq!(book.beyond(0, (2, 0), (start + flushed - Duration::from_millis(1), budget)), None);
    assert!(book.beyond(0, (2, 0), (start + flushed, budget)).is_some());
}

/// P2: while no commit can be acknowledged, staleness stands still.
#[test]
fn the_time_without_a_primary_does_not_count() {
    let start = Instant::now();
    let at = |ms: u64| start + Duration::from_millis(ms);
    let budget = Duration::from_millis(100);
    let mut book = Book::new(2, [(1, (0, Commit::Synchronous))]);
    book.acknowledged(0, (1, 1), (at(0), at(950)));
    book.goes(at(1_000));
    book.acknowledged(0, (1, 1), (at(1_001), at(1_002)));
    assert_eq!(book.beyond(0, (1, 0), (at(1_050), budget)), None, "it is going");
    book.has_gone(at(1_500));
    let beyond = |book: &Book, proxy, ms| book.beyond(proxy, (1, 0), (at(ms), budget)).is_some();
    assert!(!beyond(&book, 0, 5_000), "50 ms when the primary went");
    book.acknowledged(0, (1, 2), (at(1_499), at(2_000)));
    assert!(!beyond(&book, 0, 5_000), "sent before, and perhaps carried out before");
    book.acknowledged(0, (1, 3), (at(2_000), at(6_000)));
    let told = u64::try_from(TOLD_WITHIN.as_millis()).unwrap();
    assert!(!beyond(&book, 0, 6_000 + told - 1) && beyond(&book, 0, 6_000 + told));
    assert!(!beyond(&book, 1, 7_000), "each proxy finds out by itself");
}

/// What was committed asynchronously may be lost with its primary.
#[test]
fn what_may_be_lost_does_not_bind() {
    let now = Instant::now();
    let mut book = Book::new(1, [(1, (0, Commit::Synchronous)), (2, (0, Commit::Asynchronous))]);
    let seen = Seen { value: 1, losses: book.losses() };
    assert!(book.binds(0, 1, seen) && book.binds(0, 2, seen));
    book.loss_begins(now);
    let meanwhile = Seen { value: 1, losses: book.losses() };
    assert!(book.binds(0, 1, seen) && !book.binds(0, 2, seen) && !book.binds(0, 2, meanwhile));
    book.loss_is_over(now);
    assert!(!book.binds(0, 2, meanwhile));
    assert!(book.binds(0, 2, Seen { value: 1, losses: book.losses() }));
}
