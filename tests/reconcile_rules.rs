//! Scenarios of who may be the primary and how fresh a standby is, each told as a sequence of answers and failures.
//!
//! Invariant: no clock and no server; time is counted in milliseconds from the scenario's start.
//! Must not know: the reconciler's inside. Numbers like X05 and R06 are those of the hazard list.

use std::time::{Duration, Instant};

use pgsteer::topology::evidence::{
    Event, EventKind, Input, Node, ProbeFailure, ProbeResult, ReplayWait, ServerFacts, Standing, SuspectWhy,
};
use pgsteer::topology::model::{
    Epoch, Lsn, NodeAddress, NodeId, NodeView, ReplayDelay, Role, Slot, Snapshot, StandbySettings, Timeline,
};
use pgsteer::topology::reconcile::{Reconciler, Settings};

const CLUSTER: u64 = 7_000_000_000_000_000_001;
const A: u16 = 0;
const B: u16 = 1;
const C: u16 = 2;

/// Of a standby of which there is nothing to warn.
const GOOD: StandbySettings = StandbySettings {
    hot_standby_feedback: true,
    max_standby_streaming_delay: ReplayDelay::Unlimited,
    slot: Slot::Named,
};

struct Scenario {
    reconciler: Reconciler,
    start: Instant,
    ms: u64,
    events: Vec<Event>,
    system_id: u64,
    started_us: [i64; 8],
}

impl Scenario {
    fn of(count: u16) -> Self {
        let nodes =
            (0..count).map(|n| Node::new(NodeAddress { host: format!("pg{n}"), port: 5432 })).collect();
        Self {
            reconciler: Reconciler::new(Settings::default(), nodes),
            start: Instant::now(),
            ms: 0,
            events: Vec::new(),
            system_id: CLUSTER,
            started_us: [1; 8],
        }
    }

    /// A is the primary on timeline 1 at LSN 1000; all others have replayed everything.
    fn running(count: u16) -> Self {
        let mut it = Self::of(count);
        it.primary(A, 1, 1000);
        for node in 1..count {
            it.standby(node, 1, 1000);
        }
        assert_eq!(it.primary_node(), Some(A));
        it
    }

    fn now(&self) -> Instant {
        self.start + Duration::from_millis(self.ms)
    }

    fn at(&self, ms: u64) -> Instant {
        self.start + Duration::from_millis(ms)
    }

    fn on(&mut self, input: Input) {
        let events = self.reconciler.on(input, self.now());
        self.events.extend(events);
    }

    fn wait(&mut self, ms: u64) {
        self.ms += ms;
        self.on(Input::Tick);
    }

    fn answer(&mut self, node: u16, standing: Standing) {
        let (sent_at, answered_at) = (self.now(), self.now());
        let result = ProbeResult {
            system_id: self.system_id,
            started_us: self.started_us[usize::from(node)],
            standing,
            server: ServerFacts {
                version_num: 150_006,
                standby: GOOD,
                wal_receiver_up: true,
                commits_asynchronously: false,
            },
        };
        self.on(Input::Observation { node: NodeId(node), sent_at, answered_at, result });
    }

    fn primary(&mut self, node: u16, timeline: u32, lsn: u64) {
        self.promoted(node, timeline, lsn, None);
    }

    fn promoted(&mut self, node: u16, timeline: u32, lsn: u64, switch: Option<u64>) {
        self.answer(
            node,
            Standing::OutOfRecovery {
                timeline: Timeline(timeline),
                flush_lsn: Lsn(lsn),
                insert_lsn: Lsn(lsn + 10),
                switch_lsn: switch.map(Lsn),
            },
        );
    }

    fn standby(&mut self, node: u16, timeline: u32, replay: u64) {
        self.standby_seen(node, timeline, Some(timeline), replay, replay);
    }

    /// As a probe role without `pg_monitor` sees it.
    fn standby_plain(&mut self, node: u16, timeline: u32, replay: u64) {
        self.standby_seen(node, timeline, None, replay, replay);
    }

    fn standby_seen(&mut self, node: u16, timeline: u32, received: Option<u32>, replay: u64, receive: u64) {
        self.answer(
            node,
            Standing::InRecovery {
                timeline: Timeline(timeline),
                received_timeline: received.map(Timeline),
                replay_lsn: Lsn(replay),
                receive_lsn: Some(Lsn(receive)),
                replay_paused: false,
                replay_waits: ReplayWait::Unknown,
            },
        );
    }

    fn fails(&mut self, node: u16, why: ProbeFailure) {
        let now = self.now();
        self.on(Input::ProbeFailed { node: NodeId(node), sent_at: now, at: now, why });
    }

    fn snapshot(&self) -> std::sync::Arc<Snapshot> {
        self.reconciler.snapshot()
    }

    fn primary_node(&self) -> Option<u16> {
        self.snapshot().primary_at(self.now()).map(|primary| primary.node.0)
    }

    fn epoch(&self) -> u64 {
        self.snapshot().epoch.0
    }

    fn node(&self, node: u16) -> NodeView {
        self.snapshot().node(NodeId(node)).expect("a node of the scenario").clone()
    }

    fn staleness_ms(&self, node: u16) -> Option<u128> {
        let snapshot = self.snapshot();
        snapshot.staleness(&self.node(node), self.now()).map(|staleness| staleness.as_millis())
    }

    fn told(&self, kind: EventKind) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }
}

#[test]
fn the_first_primary_is_not_named_by_who_answers_first() {
    let mut it = Scenario::of(3);
    it.primary(A, 1, 9000);
    assert_eq!(it.primary_node(), None);
    it.primary(B, 2, 100);
    assert_eq!(it.primary_node(), None);
    it.fails(C, ProbeFailure::Refused);
    assert_eq!(it.primary_node(), Some(B));
    assert_eq!(it.node(A).role, Role::Quarantined);
    assert_eq!(it.epoch(), 1);
}

#[test]
fn a_silent_node_delays_the_first_primary_by_claim_ttl_only() {
    let mut it = Scenario::of(2);
    it.primary(A, 1, 9000);
    it.wait(999);
    it.primary(A, 1, 9000);
    assert_eq!(it.primary_node(), None);
    it.wait(1);
    assert_eq!(it.primary_node(), Some(A));
}

#[test]
fn one_node_only() {
    let mut it = Scenario::of(1);
    assert_eq!(it.primary_node(), None);
    it.primary(A, 4, 10);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 1));
    assert_eq!(it.node(A).role, Role::Primary);
}

#[test]
fn failover_opens_an_epoch_and_says_why() {
    let mut it = Scenario::running(3);
    it.ms += 10;
    it.fails(A, ProbeFailure::Broken);
    assert_eq!(it.primary_node(), None, "a broken probe connection withdraws the claim at once");
    assert!(it.snapshot().suspected);
    it.ms += 100;
    it.promoted(B, 2, 1100, Some(1000));
    assert_eq!((it.primary_node(), it.epoch()), (Some(B), 2));
    let opened = it.events.iter().rfind(|event| event.kind == EventKind::EpochOpened).expect("an epoch");
    assert!(
        opened.text.contains("pg1:5432") && opened.text.contains("pg0:5432 on timeline 1"),
        "{}",
        opened.text
    );
    assert_eq!(it.told(EventKind::PrimaryLost), 1);
}

#[test]
fn a_mere_time_out_leaves_the_claim_until_it_expires() {
    let mut it = Scenario::running(2);
    it.ms += 400;
    it.fails(A, ProbeFailure::TimedOut);
    assert_eq!(it.primary_node(), Some(A));
    assert!(it.snapshot().suspected);
    it.ms += 599;
    assert_eq!(it.primary_node(), Some(A));
    it.wait(1);
    assert_eq!(it.primary_node(), None);
    assert_eq!(it.snapshot().frozen_at, None, "out of reach is not gone");
}

#[test]
fn a_claim_expires_even_when_nobody_ticks() {
    let mut it = Scenario::running(2);
    it.ms += 1000;
    assert_eq!(it.primary_node(), None);
    assert_eq!(it.reconciler.deadline().map(|at| at <= it.now()), Some(true));
}

#[test]
fn x04_split_brain_the_higher_timeline_wins_in_both_orders() {
    for new_one_first in [true, false] {
        let mut it = Scenario::running(3);
        it.ms += 100;
        if new_one_first {
            it.primary(B, 2, 1010);
            it.primary(A, 1, 5000);
        } else {
            it.primary(A, 1, 5000);
            it.primary(B, 2, 1010);
        }
        assert_eq!((it.primary_node(), it.epoch()), (Some(B), 2));
        assert_eq!(it.node(A).role, Role::Quarantined);
        assert_eq!(it.snapshot().frozen_at, None);
    }
}

#[test]
fn x04_two_nodes_on_one_timeline_mean_no_primary() {
    let mut it = Scenario::running(3);
    it.ms += 50;
    it.primary(B, 1, 1000);
    assert_eq!(it.primary_node(), None);
    assert_eq!(it.reconciler.vacancy(), "two nodes claim the same timeline");
    assert_eq!(it.snapshot().frozen_at, None, "one of them may go on committing");
    // The rival leaves by going into recovery: the epoch's primary goes on.
    it.ms += 50;
    it.primary(A, 1, 1100);
    it.standby(B, 1, 1000);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 1));
    assert_eq!(it.told(EventKind::PrimaryBack), 1);
}

#[test]
fn x04_a_rival_never_inherits_the_timeline() {
    let mut it = Scenario::running(3);
    it.ms += 50;
    it.primary(B, 1, 9000);
    it.fails(A, ProbeFailure::Refused);
    assert_eq!(it.primary_node(), None);
    assert_eq!(it.node(B).role, Role::Quarantined);
    it.primary(B, 2, 9100);
    assert_eq!((it.primary_node(), it.epoch()), (Some(B), 2));
}

#[test]
fn shared_storage_moves_the_same_timeline_to_another_node() {
    let mut it = Scenario::running(2);
    it.ms += 10;
    it.fails(A, ProbeFailure::Refused);
    it.fails(B, ProbeFailure::Refused);
    it.primary(B, 1, 999);
    assert_eq!(it.primary_node(), None, "it lacks WAL that the primary had flushed");
    it.ms += 10;
    it.primary(B, 1, 1000);
    assert_eq!((it.primary_node(), it.epoch()), (Some(B), 2));
}

#[test]
fn x05_an_old_primary_returns_with_more_wal_and_a_lower_timeline() {
    let mut it = Scenario::running(2);
    it.ms += 10;
    it.fails(A, ProbeFailure::Refused);
    it.primary(B, 2, 1100);
    it.ms += 10;
    it.primary(A, 1, 99_000);
    assert_eq!(it.primary_node(), Some(B));
    assert_eq!(it.node(A).role, Role::Quarantined);
    // Also when it is the only one left.
    it.fails(B, ProbeFailure::Refused);
    for _ in 0..100 {
        it.ms += 100;
        it.primary(A, 1, 99_000);
        it.fails(B, ProbeFailure::Refused);
        assert_eq!(it.primary_node(), None);
        assert_eq!(it.snapshot().frozen_at, None, "the old primary may be acknowledging commits");
    }
    // Rewound, it is a standby; promoted, it is the primary.
    it.standby(A, 2, 1100);
    assert_eq!(it.node(A).role, Role::Standby);
    it.primary(A, 3, 1200);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 3));
}

#[test]
fn the_highest_timeline_counts_even_if_it_never_won() {
    let mut it = Scenario::running(3);
    it.ms += 10;
    it.primary(B, 2, 1100);
    let epoch = it.epoch();
    it.primary(C, 2, 1100);
    assert_eq!(it.primary_node(), None);
    it.fails(B, ProbeFailure::Refused);
    it.fails(C, ProbeFailure::Refused);
    it.primary(A, 1, 2000);
    assert_eq!((it.primary_node(), it.epoch()), (None, epoch));
}

#[test]
fn x07_crash_restart_in_place_with_a_new_timeline() {
    let mut it = Scenario::running(2);
    it.ms += 10;
    it.fails(A, ProbeFailure::Broken);
    it.started_us[0] = 2;
    it.standby(A, 1, 1000);
    assert_eq!(it.primary_node(), None, "in recovery for a moment");
    it.ms += 300;
    it.primary(A, 2, 1100);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 2));
}

#[test]
fn x07_the_timeline_of_a_running_primary_may_change_without_a_break() {
    let mut it = Scenario::running(2);
    it.ms += 100;
    it.primary(A, 2, 1100);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 2));
}

#[test]
fn a_restart_on_the_same_timeline_opens_an_epoch_a_broken_probe_does_not() {
    let mut it = Scenario::running(2);
    it.ms += 10;
    it.fails(A, ProbeFailure::Broken);
    it.ms += 5;
    it.primary(A, 1, 1000);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 1));
    it.started_us[0] = 99;
    it.ms += 5;
    it.primary(A, 1, 1000);
    assert_eq!((it.primary_node(), it.epoch()), (Some(A), 2));
}

#[test]
fn x15_an_address_taken_over_by_another_cluster_is_refused() {
    let mut it = Scenario::running(3);
    it.ms += 10;
    it.system_id = 42;
    it.primary(B, 9, 50_000);
    it.standby(C, 9, 50_000);
    assert_eq!(it.primary_node(), Some(A));
    assert_eq!((it.node(B).role, it.node(C).role), (Role::Refused, Role::Refused));
    it.fails(A, ProbeFailure::Refused);
    it.primary(B, 9, 50_000);
    assert_eq!(it.primary_node(), None);
    it.system_id = CLUSTER;
    it.primary(A, 1, 1000);
    assert_eq!(it.primary_node(), Some(A), "the foreign timeline was not remembered");
}

#[test]
fn x15_claims_of_two_clusters_at_first_sight_decide_nothing() {
    let mut it = Scenario::of(2);
    it.primary(A, 1, 1000);
    it.system_id = 42;
    it.primary(B, 9, 1000);
    assert_eq!(it.primary_node(), None);
}

#[test]
fn flapping_stays_in_one_epoch() {
    let mut it = Scenario::running(2);
    for round in 0..50 {
        it.ms += 10;
        it.fails(A, ProbeFailure::Broken);
        assert_eq!(it.primary_node(), None);
        it.ms += 10;
        it.primary(A, 1, 1000 + round);
        it.standby(B, 1, 1000 + round);
        assert_eq!((it.primary_node(), it.epoch()), (Some(A), 1));
    }
}

#[test]
fn all_gone_and_back() {
    let mut it = Scenario::running(3);
    it.ms += 20;
    for node in [A, B, C] {
        it.fails(node, ProbeFailure::Refused);
    }
    assert_eq!(it.primary_node(), None);
    assert!([A, B, C].into_iter().all(|node| it.node(node).role == Role::Unknown));
    assert_eq!(it.snapshot().frozen_at, Some(it.at(20)));
    it.ms += 5000;
    it.started_us = [5; 8];
    it.primary(A, 1, 1000);
    assert_eq!((it.primary_node(), it.epoch(), it.snapshot().frozen_at), (Some(A), 2, None));
}

#[test]
fn an_answer_older_than_the_withdrawal_changes_nothing() {
    let mut it = Scenario::running(2);
    it.ms += 50;
    it.fails(A, ProbeFailure::Broken);
    let (sent_at, answered_at) = (it.at(40), it.at(60));
    let standing = Standing::OutOfRecovery {
        timeline: Timeline(1),
        flush_lsn: Lsn(1000),
        insert_lsn: Lsn(1000),
        switch_lsn: None,
    };
    let result = ProbeResult { system_id: CLUSTER, started_us: 1, standing, server: ServerFacts::default() };
    it.ms += 10;
    it.on(Input::Observation { node: NodeId(A), sent_at, answered_at, result });
    assert_eq!(it.primary_node(), None);
}

#[test]
fn suspicion_makes_rounds_rapid_until_the_picture_is_clear() {
    let settings = Settings::default();
    let mut it = Scenario::running(2);
    assert_eq!(it.reconciler.round_interval(false, it.now()), settings.probe_interval);
    it.ms += 10;
    it.on(Input::Suspect { node: NodeId(A), why: SuspectWhy::ConnectionBroke });
    assert!(it.snapshot().suspected);
    assert_eq!(it.primary_node(), Some(A), "a reason to look, not a verdict");
    assert_eq!(it.reconciler.round_interval(false, it.now()), settings.rapid_interval);
    for _ in 0..60 {
        it.ms += 5;
        it.primary(A, 1, 1000);
        it.standby(B, 1, 1000);
    }
    assert!(!it.snapshot().suspected);
    assert_eq!(it.reconciler.round_interval(false, it.now()), settings.probe_interval);
    assert_eq!(
        (it.told(EventKind::Suspected(SuspectWhy::ConnectionBroke)), it.told(EventKind::Cleared)),
        (1, 1)
    );
}

#[test]
fn rapid_rounds_do_not_go_on_for_ever() {
    let mut it = Scenario::running(1);
    it.fails(A, ProbeFailure::Refused);
    for _ in 0..61 {
        it.wait(1000);
        it.fails(A, ProbeFailure::Refused);
    }
    assert_eq!(it.reconciler.round_interval(false, it.now()), Settings::default().probe_interval);
}

#[test]
fn doubts_about_a_standby_known_to_be_down_are_ignored() {
    let mut it = Scenario::running(2);
    it.fails(B, ProbeFailure::Refused);
    it.on(Input::Suspect { node: NodeId(B), why: SuspectWhy::ConnectFailed });
    assert!(!it.snapshot().suspected);
    it.on(Input::Suspect { node: NodeId(77), why: SuspectWhy::ConnectFailed });
    assert!(!it.snapshot().suspected);
}

#[test]
fn an_overdue_answer_is_a_reason_to_look() {
    let mut it = Scenario::running(1);
    assert_eq!(it.reconciler.deadline(), Some(it.at(300)));
    it.wait(300);
    assert!(it.snapshot().suspected);
    assert_eq!(it.primary_node(), Some(A));
}

#[test]
fn r06_an_idle_primary_makes_no_false_lag() {
    let mut it = Scenario::running(2);
    for _ in 0..100 {
        it.ms += 100;
        it.primary(A, 1, 1000);
        it.standby(B, 1, 1000);
        assert_eq!(it.staleness_ms(B), Some(0));
        assert_eq!(it.node(B).lag_bytes, Some(0));
    }
}

#[test]
fn r06_paused_replay_grows() {
    let mut it = Scenario::running(2);
    for round in 1..=50 {
        it.ms += 100;
        it.primary(A, 1, 1000 + round * 100);
        it.standby_seen(B, 1, Some(1), 1000, 1000 + round * 100);
    }
    assert_eq!(it.staleness_ms(B), Some(5000));
    assert_eq!(it.node(B).lag_bytes, Some(5000));
}

#[test]
fn r06_a_standby_cut_off_from_its_primary_grows_although_replay_equals_receive() {
    let mut it = Scenario::running(2);
    for round in 1..=50 {
        it.ms += 100;
        it.primary(A, 1, 1000 + round);
        it.standby_seen(B, 1, None, 1000, 1000);
    }
    assert_eq!(it.staleness_ms(B), Some(5000));
}

#[test]
fn r06_a_primary_out_of_reach_lets_staleness_grow() {
    let mut it = Scenario::running(2);
    for _ in 0..30 {
        it.ms += 100;
        it.fails(A, ProbeFailure::TimedOut);
        it.standby(B, 1, 1000);
    }
    assert_eq!(it.staleness_ms(B), Some(3000));
}

#[test]
fn r06_a_standby_one_round_behind_is_as_fresh_as_that_round() {
    let mut it = Scenario::running(2);
    it.ms += 100;
    it.standby(B, 1, 1500);
    it.primary(A, 1, 2000);
    assert_eq!(it.staleness_ms(B), Some(100));
    it.ms += 100;
    it.standby(B, 1, 2000);
    assert_eq!(it.staleness_ms(B), Some(100));
}

#[test]
fn a_gone_primary_freezes_staleness_and_a_hidden_node_forbids_it() {
    let mut it = Scenario::running(3);
    it.ms += 40;
    it.fails(A, ProbeFailure::Refused);
    for _ in 0..100 {
        it.ms += 100;
        it.fails(A, ProbeFailure::Refused);
        it.standby(B, 1, 1000);
        it.standby(C, 1, 1000);
    }
    assert_eq!(it.staleness_ms(B), Some(40));
    // C is late, and may have been promoted since it was asked.
    it.ms += 70;
    it.fails(A, ProbeFailure::Refused);
    it.standby(B, 1, 1000);
    assert_eq!(it.staleness_ms(B), Some(110));
    it.standby(C, 1, 1000);
    assert_eq!(it.staleness_ms(B), Some(40));
    // C falls silent: it may have been promoted out of our sight.
    for _ in 0..11 {
        it.ms += 100;
        it.fails(A, ProbeFailure::Refused);
        it.standby(B, 1, 1000);
        it.fails(C, ProbeFailure::TimedOut);
    }
    assert_eq!(it.snapshot().frozen_at, None);
    assert_eq!(it.staleness_ms(B), Some(11_210));
}

#[test]
fn after_a_failover_only_the_new_history_counts() {
    let mut it = Scenario::running(3);
    it.ms += 10;
    it.fails(A, ProbeFailure::Refused);
    it.promoted(B, 2, 1100, Some(1000));
    it.standby(C, 1, 1300);
    assert_eq!(it.staleness_ms(C), None, "its WAL receiver is still on timeline 1");
    assert_eq!(it.node(C).role, Role::Standby);
    it.ms += 10;
    it.standby(C, 2, 1050);
    assert_eq!(it.staleness_ms(C), None, "not caught up with the first sample");
    it.standby(C, 2, 1100);
    assert_eq!(it.staleness_ms(C), Some(10));
}

#[test]
fn a_plain_probe_role_trusts_a_standby_that_held_nothing_beyond_the_switch() {
    for (held, trusted) in [(1000, true), (1001, false)] {
        let mut it = Scenario::running(3);
        it.ms += 10;
        it.fails(A, ProbeFailure::Refused);
        it.ms += 30;
        it.standby_plain(C, 1, held);
        it.ms += 30;
        it.promoted(B, 2, 1100, Some(1000));
        it.standby_plain(C, 1, 1100);
        assert_eq!(it.staleness_ms(C).is_some(), trusted, "held {held}");
        // The old primary comes back alive: it might feed C.
        it.primary(A, 1, 5000);
        assert_eq!(it.staleness_ms(C), None);
    }
}

#[test]
fn a_standby_on_a_newer_timeline_is_a_hint_and_gets_no_reads() {
    let mut it = Scenario::running(2);
    it.ms += 10;
    it.standby(B, 2, 1000);
    assert_eq!(it.staleness_ms(B), None);
    assert_eq!(it.primary_node(), Some(A));
    assert!(it.snapshot().suspected);
}

#[test]
fn a_standby_that_was_away_says_since_when_it_is_back() {
    let mut it = Scenario::running(2);
    assert_eq!(it.node(B).role_since, Some(it.at(0)));
    it.ms += 50;
    it.fails(B, ProbeFailure::Broken);
    it.ms += 200;
    it.standby(B, 1, 900);
    assert_eq!(it.node(B).role_since, Some(it.at(250)));
}

#[test]
fn an_epoch_is_counted_from_one() {
    let it = Scenario::of(2);
    assert_eq!(it.snapshot().epoch, Epoch(0));
    assert_eq!(Scenario::running(2).snapshot().epoch, Epoch(1));
}

/// A primary that is silent may live; one whose port is closed does not.
#[test]
fn a_primary_out_of_reach_is_told_from_none() {
    let mut it = Scenario::running(2);
    it.wait(100);
    it.primary(A, 1, 1000);
    assert_eq!(it.snapshot().unreachable_since, None);
    it.wait(1000);
    it.standby(B, 1, 1000);
    it.fails(A, ProbeFailure::TimedOut);
    assert_eq!((it.snapshot().unreachable_since, it.snapshot().frozen_at), (Some(it.at(100)), None));
    it.wait(500);
    it.standby(B, 1, 1000);
    assert_eq!(it.staleness_ms(B), Some(1500), "it grows");
    it.fails(A, ProbeFailure::Refused);
    assert_eq!(it.snapshot().unreachable_since, None);
    assert!(it.snapshot().frozen_at.is_some());
}
