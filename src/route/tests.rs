//! Rules of routing and of a session's own bounds, each as a small story. R numbers are those of the hazard list, P those of
//! the contract.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::freshness::{Commits, Freshness};
use super::token::Bound;
use super::*;
use crate::classify::{Consistency, Target};
use crate::topology::model::{
    Epoch, Lsn, NodeAddress, PrimaryView, Readers, ReplayDelay, Role, StandbySettings, Timeline,
};

const A: NodeId = NodeId(0);
const B: NodeId = NodeId(1);
const C: NodeId = NodeId(2);

struct Cluster {
    start: Instant,
    now: Instant,
    snapshot: Snapshot,
    freshness: Freshness,
    excluded: Vec<NodeId>,
    prefer: Prefer,
    load: [NodeLoad; 3],
    terms: Terms,
    others_wrote_at: Option<Instant>,
}

impl Cluster {
    /// A is the primary; B and C have replayed everything.
    fn healthy() -> Self {
        let start = Instant::now();
        let addresses: Vec<_> =
            (0..3).map(|n| Arc::new(NodeAddress { host: format!("pg{n}"), port: 5432 })).collect();
        let mut it = Self {
            start,
            now: start,
            snapshot: Snapshot::unknown(&addresses),
            freshness: Freshness::default(),
            excluded: Vec::new(),
            prefer: Prefer::LessBusy,
            load: [NodeLoad::default(); 3],
            terms: Terms::default(),
            others_wrote_at: None,
        };
        it.snapshot.epoch = Epoch(1);
        it.snapshot.nodes[0].role = Role::Primary;
        it.snapshot.nodes[1].role = Role::Standby;
        it.snapshot.nodes[2].role = Role::Standby;
        it.sample(0, 1000, [1000, 1000]);
        it
    }

    /// One probe round at `ms`: the primary's flush LSN and the standbys' replay LSNs.
    fn sample(&mut self, ms: u64, flush: u64, replayed: [u64; 2]) {
        let at = self.start + Duration::from_millis(ms);
        self.now = at;
        self.snapshot.primary = Some(PrimaryView {
            node: A,
            timeline: Timeline(u32::try_from(self.snapshot.epoch.0).unwrap_or(1)),
            started_us: 1,
            flush_lsn: Lsn(flush),
            insert_lsn: Lsn(flush + 500),
            commits_asynchronously: false,
            sampled_at: at,
            expires_at: at + Duration::from_secs(1),
        });
        for (node, replayed) in self.snapshot.nodes[1..].iter_mut().zip(replayed) {
            node.position = Some(Lsn(replayed));
            node.sampled_at = Some(at);
            if replayed >= flush {
                node.fresh_as_of = Some(at);
            }
        }
        self.freshness.settle(&self.snapshot, Commits::Synchronous);
    }

    fn at(&mut self, ms: u64) -> Instant {
        self.now = self.start + Duration::from_millis(ms);
        self.now
    }

    fn ask(&self, need: Need, dice: u64) -> Decision {
        route(&Question {
            need,
            terms: self.terms,
            others_wrote_at: self.others_wrote_at,
            freshness: &self.freshness,
            excluded: &self.excluded,
            prefer: self.prefer,
            load: &self.load,
            snapshot: &self.snapshot,
            now: self.now,
            dice,
        })
    }

    fn read(&self) -> (Destination, Reason) {
        let decision = self.ask(Need::Read, 7);
        (decision.destination, decision.reason)
    }

    fn admits(&self, id: NodeId) -> bool {
        self.snapshot.node(id).is_some_and(|node| self.freshness.admits(node, &self.snapshot))
    }
}

#[test]
fn p1_writes_go_to_the_attested_primary_or_wait() {
    let mut it = Cluster::healthy();
    let write = it.ask(Need::Primary, 0);
    assert_eq!(write, Decision { destination: Destination::Primary(A), reason: Reason::NeedsPrimary });
    it.terms.target = Some(Target::Standby);
    assert_eq!(it.ask(Need::Primary, 0).destination, Destination::Primary(A), "a hint forces no write");
    it.at(1000);
    let held = Decision { destination: Destination::Hold, reason: Reason::NoPrimary };
    assert_eq!(it.ask(Need::Primary, 0), held, "the claim has expired");
    it.snapshot.primary = None;
    it.at(10);
    assert_eq!(it.ask(Need::Primary, 0), held);
}

#[test]
fn reads_go_to_standbys_and_only_to_standbys() {
    let it = Cluster::healthy();
    let mut seen = [0u32; 3];
    for dice in 0..1000u64 {
        let decision = it.ask(Need::Read, dice.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        assert_eq!(decision.reason, Reason::StandbyWithinBudget);
        if let Destination::Standby(id) = decision.destination {
            seen[id.index()] += 1;
        }
    }
    assert_eq!(seen[0], 0);
    assert!(seen[1] > 400 && seen[2] > 400, "{seen:?}");
}

#[test]
fn asked_for_the_primary() {
    let mut it = Cluster::healthy();
    it.terms.target = Some(Target::Primary);
    assert_eq!(it.read(), (Destination::Primary(A), Reason::Asked));
}

#[test]
fn p2_the_budget_is_never_widened() {
    let mut it = Cluster::healthy();
    it.terms.max_lag = Duration::from_millis(100);
    it.at(100);
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
    it.at(101);
    assert_eq!(it.read(), (Destination::Primary(A), Reason::LagBudget));
    it.snapshot.primary = None;
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
    it.snapshot.nodes[2].fresh_as_of = None;
    it.at(50);
    assert_eq!(it.read().0, Destination::Standby(B), "unknown staleness gets no reads");
}

/// A standby endpoint never falls back on the primary, and widens no bound either.
#[test]
fn what_is_for_standbys_waits_for_one() {
    let mut it = Cluster::healthy();
    it.terms.target = Some(Target::Primary);
    let decided = |it: &Cluster| {
        let decision = it.ask(Need::Standby, 7);
        (decision.destination, decision.reason)
    };
    assert!(matches!(decided(&it), (Destination::Standby(_), Reason::StandbyWithinBudget)));
    it.at(1001);
    assert_eq!(decided(&it), (Destination::Hold, Reason::LagBudget));
    it.at(1);
    it.excluded = vec![B, C];
    assert_eq!(decided(&it), (Destination::Hold, Reason::Excluded));
    it.excluded.clear();
    it.snapshot.nodes[1].role = Role::Unknown;
    it.snapshot.nodes[2].role = Role::Unknown;
    assert_eq!(decided(&it), (Destination::Hold, Reason::NoStandby));
}

#[test]
fn p2_while_frozen_reads_go_on() {
    let mut it = Cluster::healthy();
    it.snapshot.primary = None;
    it.snapshot.frozen_at = Some(it.start + Duration::from_millis(20));
    it.at(60_000);
    it.snapshot.vacant_as_of = Some(it.now);
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
    assert_eq!(it.ask(Need::Primary, 0).destination, Destination::Hold);
    it.terms.max_lag = Duration::from_millis(19);
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
    // Since all nodes were asked last one of them may have been promoted.
    it.terms.max_lag = Duration::from_millis(30);
    it.at(60_010);
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
    it.at(60_011);
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
}

/// A promotion may be waiting for the replay of a standby: it gets no reads.
#[test]
fn readers_that_must_leave_a_standby_do_not_come_back() {
    let mut it = Cluster::healthy();
    it.snapshot.nodes[1].readers = Readers::MustLeave;
    for dice in 0..64 {
        assert_eq!(it.ask(Need::Read, dice).destination, Destination::Standby(C));
    }
    it.snapshot.nodes[2].readers = Readers::MustLeave;
    assert_eq!(it.read(), (Destination::Primary(A), Reason::ReplayStands));
    it.snapshot.primary = None;
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
    assert_eq!(it.ask(Need::Standby, 0).destination, Destination::Hold);
}

#[test]
fn reasons_name_the_bound_that_failed() {
    let mut it = Cluster::healthy();
    it.excluded = vec![B, C];
    assert_eq!(it.read(), (Destination::Primary(A), Reason::Excluded));
    it.excluded.push(A);
    assert_eq!(it.read(), (Destination::Hold, Reason::Excluded));
    it.excluded.clear();
    it.snapshot.nodes[1].role = Role::Unknown;
    it.snapshot.nodes[2].weight = 0;
    assert_eq!(it.read(), (Destination::Primary(A), Reason::NoStandby));
    it.snapshot.nodes[1].role = Role::Quarantined;
    assert_eq!(it.read(), (Destination::Primary(A), Reason::NoStandby));
}

#[test]
fn r01_p3_after_a_write_only_a_standby_that_has_it() {
    let mut it = Cluster::healthy();
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Synchronous);
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    assert_eq!(it.read(), (Destination::Primary(A), Reason::OwnWrites), "the sample is older than the write");
    it.sample(100, 2000, [1999, 2000]);
    assert_eq!(it.freshness.token(), Some(Lsn(2000)));
    assert_eq!(it.read().0, Destination::Standby(C));
    it.sample(200, 2500, [2000, 2400]);
    assert!(it.admits(B) && it.admits(C), "one sample is enough; newer writes of others do not count");
}

#[test]
fn eventual_reads_are_bound_by_the_lag_budget_alone() {
    let mut it = Cluster::healthy();
    it.terms.consistency = Consistency::Eventual;
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Synchronous);
    it.others_wrote_at = Some(answered);
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
    assert!(matches!(it.ask(Need::Standby, 7).destination, Destination::Standby(_)));
    it.sample(5_000, 2000, [1000, 1000]);
    assert_eq!(it.read(), (Destination::Primary(A), Reason::LagBudget));
}

#[test]
fn primary_consistency_reads_on_the_primary_whatever_a_hint_says() {
    let mut it = Cluster::healthy();
    it.terms.consistency = Consistency::Primary;
    for target in [None, Some(Target::Standby), Some(Target::Primary)] {
        it.terms.target = target;
        assert_eq!(it.read(), (Destination::Primary(A), Reason::Asked), "{target:?}");
    }
    it.snapshot.primary = None;
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
}

#[test]
fn r01_what_others_wrote_is_seen_where_it_is_asked_for() {
    let mut it = Cluster::healthy();
    it.others_wrote_at = Some(it.at(10));
    assert_eq!(
        it.read(),
        (Destination::Primary(A), Reason::OthersWrites),
        "the sample is older than the write"
    );
    it.sample(100, 2000, [1999, 2000]);
    assert_eq!(it.read().0, Destination::Standby(C));
    it.others_wrote_at = None;
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
}

#[test]
fn r01_a_sample_sent_at_the_very_moment_of_the_answer_does_not_count() {
    let mut it = Cluster::healthy();
    it.freshness.on_primary_answer(it.now, Commits::Synchronous);
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    assert_eq!(it.read().1, Reason::OwnWrites);
}

#[test]
fn m10_asynchronous_commits_are_bounded_by_the_insert_lsn() {
    let mut it = Cluster::healthy();
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Asynchronous);
    it.sample(100, 2000, [2000, 2500]);
    assert_eq!(it.freshness.token(), Some(Lsn(2500)));
    assert!(!it.admits(B) && it.admits(C));
}

#[test]
fn r01_a_position_that_was_brought_bounds_as_soon_as_the_primary_has_it() {
    let mut it = Cluster::healthy();
    it.sample(0, 2000, [2000, 2000]);
    let brought = it.at(10);
    it.freshness.bring(Bound::Position(Lsn(1500)), brought);
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    assert_eq!(it.freshness.token(), Some(Lsn(1500)), "it lies on what is known already");
    assert!(it.admits(B) && it.admits(C));
    // Newer than the last sample: it waits for one that was sent behind it.
    let brought = it.at(20);
    it.freshness.bring(Bound::Position(Lsn(2500)), brought);
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    assert!(!it.admits(B) && !it.admits(C));
    it.sample(100, 2600, [2499, 2500]);
    assert_eq!(it.freshness.token(), Some(Lsn(2500)));
    assert!(!it.admits(B) && it.admits(C));
}

#[test]
fn r08_a_position_that_the_primary_has_not_come_to_is_not_waited_for() {
    let mut it = Cluster::healthy();
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    let brought = it.at(10);
    it.freshness.bring(Bound::Position(Lsn(u64::MAX)), brought);
    it.sample(100, 2000, [1999, 2000]);
    assert_eq!(it.freshness.token(), Some(Lsn(2000)));
    assert!(!it.admits(B) && it.admits(C));
}

#[test]
fn r08_a_position_of_before_a_failover_asks_for_all_that_the_new_primary_has() {
    let mut it = Cluster::healthy();
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    let brought = it.at(10);
    it.freshness.bring(Bound::Position(Lsn(9000)), brought);
    it.snapshot.epoch = Epoch(2);
    it.sample(100, 1100, [1050, 1100]);
    assert_eq!(it.freshness.token(), Some(Lsn(1100)));
    assert!(!it.admits(B) && it.admits(C));
}

/// A later answer that is bounded by a flush LSN takes nothing of that bound away.
#[test]
fn r02_the_bound_of_an_asynchronous_commit_stands_until_it_is_reached() {
    let mut it = Cluster::healthy();
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Asynchronous);
    it.sample(100, 2000, [2000, 2500]);
    let read = it.at(110);
    it.freshness.on_primary_answer(read, Commits::Synchronous);
    assert!(!it.admits(C), "nothing is known of it after that answer");
    it.sample(200, 2400, [2400, 2500]);
    assert_eq!(it.freshness.token(), Some(Lsn(2500)));
    assert!(!it.admits(B) && it.admits(C));
    // The primary goes, and with it the way to a token; what a standby has is known all the same.
    let read = it.at(210);
    it.freshness.on_primary_answer(read, Commits::Synchronous);
    it.sample(300, 2450, [2450, 2500]);
    it.snapshot.primary = None;
    assert!(!it.admits(B) && it.admits(C));
}

#[test]
fn r03_p3_another_standby_must_have_what_was_seen() {
    let mut it = Cluster::healthy();
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    let answered = it.at(10);
    it.freshness.on_standby_answer(B, answered);
    assert!(it.admits(B));
    assert!(!it.admits(C), "nothing is known of C after that read");
    it.excluded = vec![B];
    assert_eq!(it.read(), (Destination::Primary(A), Reason::Monotonic));
    it.excluded.clear();
    it.sample(100, 3000, [2500, 2400]);
    assert!(it.admits(B) && !it.admits(C));
    it.sample(200, 3500, [2600, 2600]);
    assert!(it.admits(C));
}

#[test]
fn r03_a_standby_that_restarted_may_have_less_than_was_seen_there() {
    let mut it = Cluster::healthy();
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    let answered = it.at(10);
    it.freshness.on_standby_answer(B, answered);
    it.sample(100, 3000, [900, 950]);
    it.snapshot.nodes[1].role_since = Some(it.now);
    assert!(!it.admits(B), "same node, but it was away");
    assert!(!it.admits(C), "what B holds now bounds nothing");
    it.sample(200, 3000, [3000, 3000]);
    assert!(it.admits(B) && it.admits(C));
}

#[test]
fn r08_a_token_of_an_older_epoch_is_replaced_by_the_new_primarys_sample() {
    let mut it = Cluster::healthy();
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Synchronous);
    it.sample(100, 9000, [1000, 1000]);
    assert_eq!(it.freshness.token(), Some(Lsn(9000)));
    // The write at 9000 was lost: the new timeline began at 1000.
    it.snapshot.epoch = Epoch(2);
    assert!(!it.admits(B), "an old token admits nobody in a new epoch");
    it.sample(200, 1100, [1050, 1100]);
    assert_eq!(it.freshness.token(), Some(Lsn(1100)));
    assert!(!it.admits(B) && it.admits(C));
}

#[test]
fn r08_what_an_old_standby_showed_counts_as_the_new_primarys_first_sample() {
    let mut it = Cluster::healthy();
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    let answered = it.at(10);
    it.freshness.on_standby_answer(B, answered);
    it.snapshot.epoch = Epoch(2);
    it.sample(200, 1100, [1050, 1100]);
    assert!(!it.admits(B), "even the same node");
    assert!(it.admits(C));
}

#[test]
fn r08_an_epoch_that_is_lost_at_once_leaves_the_bound_open() {
    let mut it = Cluster::healthy();
    let answered = it.at(10);
    it.freshness.on_primary_answer(answered, Commits::Synchronous);
    it.snapshot.epoch = Epoch(2);
    it.snapshot.primary = None;
    it.freshness.settle(&it.snapshot, Commits::Synchronous);
    it.snapshot.nodes[1].position = Some(Lsn(u64::MAX));
    assert!(!it.admits(B));
    assert_eq!(it.read(), (Destination::Hold, Reason::NoPrimary));
}

#[test]
fn a_session_that_has_seen_nothing_is_bound_by_nothing() {
    let it = Cluster::healthy();
    assert!(it.admits(B) && it.admits(C));
}

/// R12: what there is of it: load and weights (0, as in `reasons_name_the_bound_that_failed`, takes a node out).
#[test]
fn r12_balance_follows_load_and_weights() {
    let mut it = Cluster::healthy();
    it.load[1] = NodeLoad { in_flight: 9, latency_us: 100, ..NodeLoad::default() };
    it.load[2] = NodeLoad { in_flight: 2, latency_us: 100, ..NodeLoad::default() };
    for dice in 0..200u64 {
        let dice = dice.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        assert_eq!(it.ask(Need::Read, dice).destination, Destination::Standby(C), "the better of the two");
    }
    it.snapshot.nodes[1].weight = 100;
    assert_eq!(it.read().0, Destination::Standby(B), "ten times the load on a hundred times the weight");
}

/// C07, C08: a read that conflicts goes to the standby that is least likely to cancel it, whatever that has to do.
#[test]
fn a_read_that_conflicts_prefers_the_calmest_standby() {
    let standby = |hot_standby_feedback, delay| {
        Some(StandbySettings {
            hot_standby_feedback,
            max_standby_streaming_delay: delay,
            ..Default::default()
        })
    };
    let short = ReplayDelay::AtMost(Duration::from_secs(1));
    let long = ReplayDelay::AtMost(Duration::from_secs(300));
    let chosen = |of_b, of_c, conflicts: [u32; 2]| {
        let mut it = Cluster::healthy();
        (it.snapshot.nodes[1].settings, it.snapshot.nodes[2].settings) = (of_b, of_c);
        it.load[1] = NodeLoad { in_flight: 90, recent_conflicts: conflicts[0], ..NodeLoad::default() };
        it.load[2] = NodeLoad { recent_conflicts: conflicts[1], ..NodeLoad::default() };
        assert_eq!(it.read().0, Destination::Standby(C), "otherwise load decides");
        it.prefer = Prefer::FewerConflicts;
        let chosen = it.read();
        it.excluded.push(B);
        assert_eq!(it.read().0, Destination::Standby(C), "what has failed is not chosen again");
        chosen
    };
    let b = (Destination::Standby(B), Reason::StandbyWithinBudget);
    let c = (Destination::Standby(C), Reason::StandbyWithinBudget);
    assert_eq!(chosen(standby(true, short), standby(false, ReplayDelay::Unlimited), [9, 0]), b);
    assert_eq!(chosen(standby(false, ReplayDelay::Unlimited), standby(false, long), [9, 0]), b);
    assert_eq!(chosen(standby(true, long), standby(true, short), [9, 0]), b);
    assert_eq!(chosen(standby(true, long), standby(true, long), [1, 2]), b);
    assert_eq!(chosen(standby(true, long), standby(true, long), [2, 2]), c, "load decides among equals");
    assert_eq!(chosen(standby(false, long), None, [9, 0]), b, "taken for PostgreSQL's own, 30 s");
}

/// C07: the primary cancels nothing; where there is none, standbys go on.
#[test]
fn a_read_that_prefers_the_primary_falls_back_on_standbys() {
    let mut it = Cluster::healthy();
    it.prefer = Prefer::Primary;
    assert_eq!(it.read(), (Destination::Primary(A), Reason::Conflicts));
    assert_eq!(
        it.ask(Need::Standby, 7).reason,
        Reason::StandbyWithinBudget,
        "standbys alone are standbys alone"
    );
    it.excluded.push(A);
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
    it.excluded.clear();
    it.snapshot.primary = None;
    assert_eq!(it.read().1, Reason::StandbyWithinBudget);
}
