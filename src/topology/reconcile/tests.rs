//! A primary and a standby that both answered, and what may happen to them: for the tests of the judge's parts.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Reconciler, Settings};
use crate::topology::evidence::{
    Event, EventKind, Input, Node, ProbeFailure, ProbeResult, ReplayWait, ServerFacts, Standing,
};
use crate::topology::model::{Lsn, NodeAddress, NodeId, Slot, Snapshot, StandbySettings, Timeline};

pub(super) const PRIMARY: NodeId = NodeId(0);
pub(super) const STANDBY: NodeId = NodeId(1);

pub(super) struct Story {
    pub(super) judge: Reconciler,
    pub(super) now: Instant,
    pub(super) events: Vec<Event>,
    /// Of whoever answers.
    pub(super) settings: StandbySettings,
}

impl Story {
    pub(super) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(super) fn with(settings: Settings) -> Self {
        let node = |n| Node::new(NodeAddress { host: format!("pg{n}"), port: 5432 });
        let judge = Reconciler::new(settings, vec![node(0), node(1)]);
        let settings =
            StandbySettings { hot_standby_feedback: true, slot: Slot::Named, ..StandbySettings::default() };
        let mut it = Self { judge, now: Instant::now(), events: Vec::new(), settings };
        it.primary();
        it.standby(1000, 1000, ReplayWait::Unknown);
        it
    }

    pub(super) fn on(&mut self, input: Input) {
        self.events.extend(self.judge.on(input, self.now));
    }

    pub(super) fn wait(&mut self, ms: u64) {
        self.now += Duration::from_millis(ms);
        self.on(Input::Tick);
    }

    fn answers(&mut self, node: NodeId, sent_at: Instant, standing: Standing) {
        let server = ServerFacts { standby: self.settings, ..ServerFacts::default() };
        let result = ProbeResult { system_id: 1, started_us: 1, standing, server };
        self.on(Input::Observation { node, sent_at, answered_at: self.now, result });
    }

    /// The primary answers what it was asked just now.
    pub(super) fn primary(&mut self) {
        self.out_of_recovery(PRIMARY, 1, 0);
    }

    /// This node answers what it was asked so long ago.
    pub(super) fn out_of_recovery(&mut self, node: NodeId, timeline: u32, took_ms: u64) {
        let (timeline, lsn) = (Timeline(timeline), Lsn(1000));
        let standing =
            Standing::OutOfRecovery { timeline, flush_lsn: lsn, insert_lsn: lsn, switch_lsn: None };
        let sent_at =
            self.now.checked_sub(Duration::from_millis(took_ms)).expect("a clock that runs for long");
        self.answers(node, sent_at, standing);
    }

    pub(super) fn standby(&mut self, replay: u64, receive: u64, replay_waits: ReplayWait) {
        let standing = Standing::InRecovery {
            timeline: Timeline(1),
            received_timeline: Some(Timeline(1)),
            replay_lsn: Lsn(replay),
            receive_lsn: Some(Lsn(receive)),
            replay_paused: false,
            replay_waits,
        };
        self.answers(STANDBY, self.now, standing);
    }

    pub(super) fn primary_dies(&mut self, why: ProbeFailure) {
        let (sent_at, at) = (self.now, self.now);
        self.on(Input::ProbeFailed { node: PRIMARY, sent_at, at, why });
    }

    pub(super) fn snapshot(&self) -> Arc<Snapshot> {
        self.judge.snapshot()
    }

    pub(super) fn told(&self, kind: EventKind) -> usize {
        self.events.iter().filter(|event| event.kind == kind).count()
    }

    pub(super) fn interval(&self) -> Duration {
        self.judge.round_interval(false, self.now)
    }
}
