//! What holds of the reconciler, and of statements that wait for a primary, whatever the network and the servers do: 10,000 random
//! histories under a clock of their own.
//!
//! Invariant: answers may be late, repeated, contradictory and of any timeline; the laws below hold after every single input.
//! Must not know: the reconciler's inside.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgsteer::route::freshness::Freshness;
use pgsteer::route::{Destination, Need, Question, Terms, route};
use pgsteer::topology::evidence::{
    Input, Node, ProbeFailure, ProbeResult, ReplayWait, ServerFacts, Standing, SuspectWhy,
};
use pgsteer::topology::model::{Epoch, Lsn, NodeAddress, NodeId, Role, Timeline};
use pgsteer::topology::reconcile::{Reconciler, Settings};
use proptest::prelude::*;

const NODES: u16 = 3;
const CLUSTER: u64 = 1;

#[derive(Debug, Clone)]
enum Step {
    Wait(u64),
    Primary {
        node: u16,
        timeline: u32,
        lsn: u64,
        started: i64,
        late: u64,
        foreign: bool,
    },
    Standby {
        node: u16,
        timeline: u32,
        plain: bool,
        lsn: u64,
        late: u64,
    },
    Fail {
        node: u16,
        why: ProbeFailure,
        late: u64,
    },
    Suspect {
        node: u16,
        why: SuspectWhy,
    },
    Hint {
        expects: Option<u16>,
    },
    Pulse {
        node: u16,
        /// How long ago what is answered was asked.
        answers: Option<u64>,
    },
    Round,
    /// A client sends a write.
    Write,
}

/// A statement is held no longer than this.
const HOLD_TIMEOUT: Duration = Duration::from_secs(30);

/// What became of a held statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Held {
        since: Instant,
    },
    Sent {
        epoch: Epoch,
        to: NodeId,
    },
    /// Its client was told that there is no primary.
    GivenUp,
}

fn step() -> impl Strategy<Value = Step> {
    use ProbeFailure as Failure;
    let node = 0..NODES + 1;
    let failure = prop::sample::select(vec![
        Failure::Broken,
        Failure::Refused,
        Failure::NotAccepting,
        Failure::TimedOut,
        Failure::Unresolved,
        Failure::LoginRejected,
        Failure::Unintelligible,
    ]);
    prop_oneof![
        3 => prop_oneof![0u64..20, 0u64..400, 900u64..1500].prop_map(Step::Wait),
        6 => (node.clone(), 1u32..5, 0u64..50, 0i64..3, 0u64..300, prop::bool::weighted(0.05)).prop_map(
            |(node, timeline, lsn, started, late, foreign)| Step::Primary { node, timeline, lsn, started, late, foreign }
        ),
        4 => (node.clone(), 1u32..5, any::<bool>(), 0u64..50, 0u64..300)
            .prop_map(|(node, timeline, plain, lsn, late)| Step::Standby { node, timeline, plain, lsn, late }),
        3 => (node.clone(), failure, 0u64..300).prop_map(|(node, why, late)| Step::Fail { node, why, late }),
        1 => (node.clone(), prop::sample::select(SuspectWhy::ALL.to_vec()))
            .prop_map(|(node, why)| Step::Suspect { node, why }),
        1 => prop::option::of(node.clone()).prop_map(|expects| Step::Hint { expects }),
        1 => (node, prop::option::of(0u64..100)).prop_map(|(node, answers)| Step::Pulse { node, answers }),
        1 => Just(Step::Round),
        2 => Just(Step::Write),
    ]
}

/// Runs a history and keeps what the laws need.
struct World {
    reconciler: Reconciler,
    now: Instant,
    start: Instant,
    /// Highest timeline that a node of the cluster claimed in an epoch's time.
    highest: Timeline,
    last_epoch: Epoch,
    last_version: u64,
    primaries: HashMap<Epoch, (NodeId, Timeline)>,
    /// When each node's newest claim was sent, and its timeline.
    claims: HashMap<NodeId, (Instant, Timeline)>,
    /// The writes of clients, in their order.
    writes: Vec<Fate>,
}

impl World {
    fn new() -> Self {
        let nodes =
            (0..NODES).map(|n| Node::new(NodeAddress { host: format!("pg{n}"), port: 5432 })).collect();
        let settings = Settings { system_id: Some(CLUSTER), ..Settings::default() };
        let start = Instant::now();
        Self {
            reconciler: Reconciler::new(settings, nodes),
            now: start,
            start,
            highest: Timeline(0),
            last_epoch: Epoch(0),
            last_version: 0,
            primaries: HashMap::new(),
            claims: HashMap::new(),
            writes: Vec::new(),
        }
    }

    fn sent(&self, late: u64) -> Instant {
        self.now.checked_sub(Duration::from_millis(late)).map_or(self.start, |sent| sent.max(self.start))
    }

    fn observe(&mut self, node: u16, late: u64, system_id: u64, started_us: i64, standing: Standing) {
        let (sent_at, answered_at) = (self.sent(late), self.now);
        let result = ProbeResult { system_id, started_us, standing, server: ServerFacts::default() };
        self.reconciler.on(Input::Observation { node: NodeId(node), sent_at, answered_at, result }, self.now);
    }

    fn run(&mut self, step: Step) {
        match step {
            Step::Wait(ms) => {
                self.now += Duration::from_millis(ms);
                self.reconciler.on(Input::Tick, self.now);
            }
            Step::Primary { node, timeline, lsn, started, late, foreign } => {
                let system_id = if foreign { 99 } else { CLUSTER };
                let sent_at = self.sent(late);
                if !foreign && node < NODES {
                    let claim = self.claims.entry(NodeId(node)).or_insert((sent_at, Timeline(timeline)));
                    if sent_at >= claim.0 {
                        *claim = (sent_at, Timeline(timeline));
                    }
                }
                let (timeline, flush_lsn, insert_lsn) = (Timeline(timeline), Lsn(lsn), Lsn(lsn + 1));
                let standing =
                    Standing::OutOfRecovery { timeline, flush_lsn, insert_lsn, switch_lsn: Some(Lsn(9)) };
                self.observe(node, late, system_id, started, standing);
            }
            Step::Standby { node, timeline, plain, lsn, late } => {
                let standing = Standing::InRecovery {
                    timeline: Timeline(timeline),
                    received_timeline: (!plain).then_some(Timeline(timeline)),
                    replay_lsn: Lsn(lsn),
                    receive_lsn: Some(Lsn(lsn)),
                    replay_paused: false,
                    replay_waits: ReplayWait::Unknown,
                };
                self.observe(node, late, CLUSTER, 0, standing);
            }
            Step::Fail { node, why, late } => {
                let (sent_at, at) = (self.sent(late), self.now);
                self.reconciler.on(Input::ProbeFailed { node: NodeId(node), sent_at, at, why }, self.now);
            }
            Step::Suspect { node, why } => {
                self.reconciler.on(Input::Suspect { node: NodeId(node), why }, self.now);
            }
            Step::Hint { expects } => {
                self.reconciler.on(Input::Hint { expects: expects.map(NodeId) }, self.now);
            }
            Step::Pulse { node, answers } => {
                let node = NodeId(node);
                let input = match answers {
                    None => Input::PulseSent { node },
                    Some(late) => Input::PulseAnswered { node, sent_at: self.sent(late), at: self.now },
                };
                self.reconciler.on(input, self.now);
            }
            Step::Round => {
                self.reconciler.on(Input::RoundStarted, self.now);
            }
            Step::Write => {
                self.writes.push(Fate::Held { since: self.now });
                self.reconciler.on(Input::Tick, self.now);
            }
        }
    }

    /// What sessions do with every picture: each asks for the primary, and is told where it is, or goes on waiting.
    fn release(&mut self) {
        let snapshot = self.reconciler.snapshot();
        for write in &mut self.writes {
            let Fate::Held { since } = *write else { continue };
            let decision = route(&Question {
                need: Need::Primary,
                terms: Terms::default(),
                others_wrote_at: None,
                freshness: &Freshness::default(),
                prefer: pgsteer::route::Prefer::LessBusy,
                excluded: &[],
                load: &[],
                snapshot: &snapshot,
                now: self.now,
                dice: 0,
            });
            if let Destination::Primary(to) = decision.destination {
                *write = Fate::Sent { epoch: snapshot.epoch, to };
            } else if self.now >= since + HOLD_TIMEOUT {
                *write = Fate::GivenUp;
            }
        }
    }

    /// Statements go to one node in each epoch, in the order of epochs, and none waits while there is a primary.
    fn check_writes(&self, before: &[Fate]) -> Result<(), TestCaseError> {
        for (before, after) in before.iter().zip(&self.writes) {
            let was_held = matches!(before, Fate::Held { .. });
            prop_assert!(was_held || before == after, "sent twice, or taken back: {:?} {:?}", before, after);
        }
        for write in &self.writes {
            match *write {
                Fate::Sent { epoch, to } => {
                    prop_assert_eq!(self.primaries.get(&epoch).map(|(node, _)| *node), Some(to));
                }
                Fate::Held { since } => {
                    prop_assert!(self.reconciler.snapshot().primary_at(self.now).is_none(), "no progress");
                    prop_assert!(self.now < since + HOLD_TIMEOUT, "held for ever");
                }
                Fate::GivenUp => {}
            }
        }
        Ok(())
    }

    /// All is well again: every node answers, one as the primary of a timeline that is higher than any before.
    fn heal(&mut self) {
        let timeline =
            1 + self.highest.0.max(self.claims.values().map(|(_, it)| it.0).max().unwrap_or(0)).max(9);
        self.now += Duration::from_secs(2);
        for node in 1..NODES {
            self.run(Step::Standby { node, timeline, plain: false, lsn: 100, late: 0 });
        }
        self.run(Step::Primary { node: 0, timeline, lsn: 100, started: 9, late: 0, foreign: false });
    }

    fn check(&mut self) -> Result<(), TestCaseError> {
        let snapshot = self.reconciler.snapshot();
        prop_assert!(snapshot.epoch >= self.last_epoch, "the epoch went back");
        prop_assert_eq!(snapshot.version, self.last_version + 1);
        (self.last_epoch, self.last_version) = (snapshot.epoch, snapshot.version);
        prop_assert!(self.reconciler.deadline().is_none_or(|at| at > self.now), "a deadline that has passed");
        let called_primary = snapshot.nodes.iter().filter(|node| node.role == Role::Primary);
        prop_assert_eq!(called_primary.count(), usize::from(snapshot.primary.is_some()));
        for node in &snapshot.nodes {
            prop_assert!(node.fresh_as_of.is_none() || node.role == Role::Standby);
            prop_assert!(node.fresh_as_of.is_none_or(|as_of| as_of <= self.now));
        }
        let Some(primary) = snapshot.primary else { return Ok(()) };
        prop_assert!(snapshot.frozen_at.is_none());
        prop_assert!(self.now < primary.expires_at, "a primary whose claim has expired");
        let claim = self.claims.get(&primary.node).copied();
        prop_assert!(
            claim.is_some_and(|(sent_at, _)| primary.sampled_at <= sent_at),
            "a primary that never claimed"
        );
        prop_assert!(primary.expires_at <= primary.sampled_at + Duration::from_secs(1));
        let reign = (primary.node, primary.timeline);
        let first = *self.primaries.entry(snapshot.epoch).or_insert(reign);
        prop_assert_eq!(first, reign, "two primaries in one epoch");
        prop_assert!(
            primary.timeline >= self.highest,
            "a quarantined node became primary on a lower timeline"
        );
        self.highest = primary.timeline;
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 10_000, max_shrink_iters: 20_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_laws_hold_after_every_input(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        for step in steps {
            world.run(step);
            world.check()?;
            let before = world.writes.clone();
            world.release();
            world.check_writes(&before)?;
        }
        let waited = world.writes.iter().filter(|write| matches!(write, Fate::Held { .. })).count();
        world.heal();
        world.release();
        let left = world.writes.iter().filter(|write| matches!(write, Fate::Held { .. })).count();
        prop_assert_eq!(left, 0, "{} waited, and there is a primary", waited);
    }
}
