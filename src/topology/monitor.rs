//! Drives probes and the reconciler on the control runtime, and publishes snapshots.
//!
//! Invariant: each node has a task of its own, so a hung node delays nobody; every wait is bounded; a snapshot with a new
//! epoch is published only after the fence was run (or its time was up). Must not know: sessions, pools (the fence
//! is a trait), what makes a primary.
//!
//! Cancel safety: dropping the last [`MonitorHandle`] ends all tasks; nothing is left half done that matters.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::chronicle::Chronicle;
use super::evidence::{Event, EventKind, Input, Node, ProbeFailure, Standing, SuspectWhy};
use super::failover::Failover;
use super::model::{Epoch, Logins, NodeAddress, NodeId, NodeView, Readers, Role, Snapshot};
use super::probe::{Credentials, ProbeConnection, ProbeError};
use super::reconcile::{PULSE_EVERY, Reconciler, Settings};
use super::watchers::{PromotionWatch, Watchers};
use crate::telemetry::Metrics;

/// The fence has so long; then the new epoch is published anyway.
pub const FENCE_LIMIT: Duration = Duration::from_millis(50);
/// Events kept for `/topology`.
pub const EVENTS_KEPT: usize = 200;
/// Records of failovers kept for `/topology/events`.
pub const FAILOVERS_KEPT: usize = 50;
/// A second login to a primary that lives takes no longer, unless it hangs: then the first is asked.
const LOGIN_ANEW_WITHIN: Duration = Duration::from_millis(100);
/// What nodes have answered is published after so long, though a round is not over: their answers may alternate for ever.
const PUBLISHED_WITHIN: Duration = Duration::from_millis(20);
/// Set where there is a hint, beside a node's number.
const HINTED: u32 = 1 << 16;
/// How often a standby is asked what it has cancelled.
const CONFLICTS_EVERY: Duration = Duration::from_secs(5);
/// Answers under way from the nodes' tasks to the judge.
const INPUTS_QUEUED: usize = 256;

/// Cuts every server connection to an old primary before anybody hears of the new one.
pub trait Fence: Send + Sync {
    /// Closes what is open to `old_primary`; `epoch` is the new one. Awaited for at most [`FENCE_LIMIT`].
    fn fence(&self, old_primary: NodeId, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>>;
}

/// Fences nothing: for tests, and where there are no connections.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoFence;

impl Fence for NoFence {
    fn fence(&self, _old_primary: NodeId, _epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(std::future::ready(()))
    }
}

/// Suspicions that wait for the monitor: one word of reasons for each node.
#[derive(Debug, Default)]
struct Suspicions {
    reasons: Box<[AtomicU32]>,
    /// Sessions have lost a connection to it that was the primary: its next answers are to be from behind a new login.
    logins_due: Box<[AtomicBool]>,
    /// The last hint: [`HINTED`], and the node that it names, counted from 1.
    hint: AtomicU32,
    raised: Notify,
}

/// Whether anybody waits for the next sample of all positions.
#[derive(Debug, Default)]
struct Demand {
    wanted: AtomicBool,
    raised: Notify,
}

/// Ends the monitor when the last handle goes.
#[derive(Debug)]
struct Running(JoinHandle<()>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the rest of the proxy holds of the monitor. Cheap to clone.
#[derive(Debug, Clone)]
pub struct MonitorHandle {
    /// Wakes whoever waits for a change.
    pub snapshots: watch::Receiver<Arc<Snapshot>>,
    /// The picture now, for the hot path.
    pub current: Arc<ArcSwap<Snapshot>>,
    suspicions: Arc<Suspicions>,
    demand: Arc<Demand>,
    events: Arc<Mutex<VecDeque<Event>>>,
    failovers: Arc<Mutex<VecDeque<Failover>>>,
    _running: Arc<Running>,
}

impl MonitorHandle {
    /// Makes the monitor look at all nodes at once. Never blocks, allocates nothing, and many calls count as one.
    pub fn suspect(&self, node: NodeId, why: SuspectWhy) {
        let is_loss = matches!(why, SuspectWhy::ConnectionBroke | SuspectWhy::Shutdown);
        if is_loss
            && self.current.load().primary.is_some_and(|primary| primary.node == node)
            && let Some(due) = self.suspicions.logins_due.get(node.index())
        {
            due.store(true, Ordering::Release);
        }
        if let Some(reasons) = self.suspicions.reasons.get(node.index()) {
            let before = reasons.fetch_or(why.bit(), Ordering::AcqRel);
            if before & why.bit() == 0 {
                self.suspicions.raised.notify_one();
            }
        }
    }

    /// Has the next round come soon: sessions wait to know how far standbys are. Never blocks, allocates nothing, and many calls
    /// before that round count as one.
    pub fn want_sample(&self) {
        if !self.demand.wanted.load(Ordering::Relaxed) && !self.demand.wanted.swap(true, Ordering::AcqRel) {
            self.demand.raised.notify_one();
        }
    }

    /// Somebody outside says that the primary changes, or has changed, and perhaps to which node. It makes the monitor look at all
    /// nodes in rapid rounds until that is seen, for some seconds at most. Never blocks, and many calls count as one.
    pub fn hint(&self, expects: Option<NodeId>) {
        let word = HINTED | expects.map_or(0, |node| u32::from(node.0) + 1);
        self.suspicions.hint.store(word, Ordering::Release);
        self.suspicions.raised.notify_one();
    }

    /// The last failovers, oldest first, that under way among them; at most [`FAILOVERS_KEPT`].
    pub fn failovers(&self) -> Vec<Failover> {
        self.failovers.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// The last events, oldest first; at most [`EVENTS_KEPT`].
    pub fn events(&self) -> Vec<Event> {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Starts the monitor.
#[derive(Debug)]
pub struct Monitor;

impl Monitor {
    /// Spawns the probes and the judge on the current tokio runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn spawn(
        settings: Settings,
        nodes: Vec<Node>,
        credentials: Credentials,
        fence: Arc<dyn Fence>,
        watch: Arc<dyn PromotionWatch>,
        metrics: Metrics,
    ) -> MonitorHandle {
        let reconciler = Reconciler::new(settings.clone(), nodes.clone());
        let first = reconciler.snapshot();
        let (snapshots_in, snapshots) = watch::channel(Arc::clone(&first));
        let current = Arc::new(ArcSwap::new(Arc::clone(&first)));
        let events = Arc::new(Mutex::new(VecDeque::with_capacity(EVENTS_KEPT)));
        let failovers = Arc::new(Mutex::new(VecDeque::new()));
        let suspicions = Arc::new(Suspicions {
            reasons: nodes.iter().map(|_| AtomicU32::new(0)).collect(),
            logins_due: nodes.iter().map(|_| AtomicBool::new(false)).collect(),
            ..Suspicions::default()
        });
        let demand = Arc::new(Demand::default());
        let pulses: Box<[Arc<Notify>]> = nodes.iter().map(|_| Arc::default()).collect();
        let (inputs_in, inputs) = mpsc::channel(INPUTS_QUEUED);
        let (rounds, _) = watch::channel(0u64);
        let mut probes = JoinSet::new();
        for ((node, index), pulse) in nodes.iter().zip(0u16..).zip(&pulses) {
            let worker = Worker {
                id: NodeId(index),
                address: Arc::clone(&node.address),
                credentials: credentials.clone(),
                settings: settings.clone(),
                rounds: rounds.subscribe(),
                pulse: Arc::clone(pulse),
                suspicions: Arc::clone(&suspicions),
                inputs: inputs_in.clone(),
                conflicts_due: Instant::now(),
            };
            probes.spawn(worker.run());
        }
        let coordinator = Coordinator {
            reconciler,
            watchers: Watchers::new(watch, &nodes, inputs_in),
            chronicle: Chronicle::new(metrics.clone(), Arc::clone(&failovers)),
            metrics,
            inputs,
            rounds,
            pulses,
            idle_until: Instant::now(),
            suspicions: Arc::clone(&suspicions),
            demand: Arc::clone(&demand),
            fence,
            published: first,
            published_at: Instant::now(),
            reigned: None,
            snapshots: snapshots_in,
            current: Arc::clone(&current),
            events: Arc::clone(&events),
            answers: vec![Answer::Here; nodes.len()],
            round_began: Instant::now(),
            _probes: probes,
        };
        let running = Arc::new(Running(tokio::spawn(coordinator.run())));
        MonitorHandle { snapshots, current, suspicions, demand, events, failovers, _running: running }
    }
}

/// A node's answer to the round under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    /// The round is not over without it.
    Awaited,
    /// It was not there when the round before this one ended: nobody waits for it any more, or one node that hangs would keep the
    /// positions of all others from being known.
    Overdue,
    /// It is there.
    Here,
}

impl Answer {
    fn in_next_round(self) -> Self {
        match self {
            Self::Here => Self::Awaited,
            Self::Awaited | Self::Overdue => Self::Overdue,
        }
    }
}

/// Feeds the judge and publishes its pictures.
struct Coordinator {
    reconciler: Reconciler,
    watchers: Watchers,
    chronicle: Chronicle,
    metrics: Metrics,
    inputs: mpsc::Receiver<Input>,
    rounds: watch::Sender<u64>,
    /// Ask one node whether it is there.
    pulses: Box<[Arc<Notify>]>,
    /// There were no clients: the primary need not be asked before this.
    idle_until: Instant,
    suspicions: Arc<Suspicions>,
    demand: Arc<Demand>,
    fence: Arc<dyn Fence>,
    published: Arc<Snapshot>,
    published_at: Instant,
    /// The last primary that was published.
    reigned: Option<NodeId>,
    snapshots: watch::Sender<Arc<Snapshot>>,
    current: Arc<ArcSwap<Snapshot>>,
    events: Arc<Mutex<VecDeque<Event>>>,
    /// Whose answers this round still needs.
    answers: Vec<Answer>,
    round_began: Instant,
    /// Dropped with the coordinator, which ends the nodes' tasks.
    _probes: JoinSet<()>,
}

impl Coordinator {
    async fn run(mut self) {
        self.start_round().await;
        loop {
            let next_round = self.round_began + self.round_interval(Instant::now());
            let pulse = self.reconciler.pulse_due().map(|(_, due)| due.max(self.idle_until));
            let wake = self.reconciler.deadline().into_iter().chain(pulse).fold(next_round, Instant::min);
            let (suspicions, demand) = (Arc::clone(&self.suspicions), Arc::clone(&self.demand));
            tokio::select! {
                biased;
                () = suspicions.raised.notified() => self.take_suspicions().await,
                input = self.inputs.recv() => match input {
                    Some(input) => self.take(input).await,
                    None => return,
                },
                // The next round comes sooner by now.
                () = demand.raised.notified() => {}
                () = tokio::time::sleep_until(wake.into()) => {}
            }
            let now = Instant::now();
            if self.reconciler.deadline().is_some_and(|deadline| deadline <= now) {
                self.judge(Input::Tick).await;
            }
            if self.round_began + self.round_interval(now) <= now {
                self.start_round().await;
            }
            self.pulse(now).await;
        }
    }

    /// Asks the primary, or that of before while it is starting, whether it is there, if there are clients and it was not asked lately.
    async fn pulse(&mut self, now: Instant) {
        let Some((node, due)) = self.reconciler.pulse_due() else { return };
        if now < due.max(self.idle_until) {
            return;
        }
        if self.metrics.clients() == 0 {
            self.idle_until = now + PULSE_EVERY;
            return;
        }
        if let Some(pulse) = self.pulses.get(node.index()) {
            pulse.notify_one();
            self.judge(Input::PulseSent { node }).await;
        }
    }

    fn round_interval(&self, now: Instant) -> Duration {
        self.reconciler.round_interval(self.demand.wanted.load(Ordering::Acquire), now)
    }

    async fn start_round(&mut self) {
        // What is asked for from now on is for the round behind this one.
        self.demand.wanted.store(false, Ordering::Release);
        self.round_began = Instant::now();
        for answer in &mut self.answers {
            *answer = answer.in_next_round();
        }
        self.rounds.send_modify(|round| *round += 1);
        self.chronicle.round();
        self.judge(Input::RoundStarted).await;
    }

    async fn take_suspicions(&mut self) {
        let suspicions = Arc::clone(&self.suspicions);
        let hint = suspicions.hint.swap(0, Ordering::AcqRel);
        if hint & HINTED != 0 {
            let expects = (hint & !HINTED).checked_sub(1).and_then(|index| u16::try_from(index).ok());
            self.judge(Input::Hint { expects: expects.map(NodeId) }).await;
        }
        for (reasons, index) in suspicions.reasons.iter().zip(0u16..) {
            let bits = reasons.swap(0, Ordering::AcqRel);
            for why in SuspectWhy::ALL.into_iter().filter(|why| bits & why.bit() != 0) {
                self.judge(Input::Suspect { node: NodeId(index), why }).await;
            }
        }
    }

    async fn take(&mut self, input: Input) {
        if let Input::Observation { node, .. } | Input::ProbeFailed { node, .. } = &input
            && let Some(answer) = self.answers.get_mut(node.index())
        {
            *answer = Answer::Here;
        }
        let is_promotion = matches!(input, Input::Promoted { .. });
        self.judge(input).await;
        if is_promotion {
            self.start_round().await;
        }
    }

    async fn judge(&mut self, input: Input) {
        let is_answer = matches!(input, Input::Observation { .. } | Input::ProbeFailed { .. });
        let round_over = is_answer && !self.answers.contains(&Answer::Awaited);
        let now = Instant::now();
        let events = self.reconciler.on(input, now);
        let reconciler = &self.reconciler;
        self.watchers.watch(|node| reconciler.may_be_promoted(node, now));
        let snapshot = self.reconciler.snapshot();
        let is_old = now.saturating_duration_since(self.published_at) >= PUBLISHED_WITHIN;
        if round_over || (is_answer && is_old) || is_news(&self.published, &snapshot) {
            self.publish(Arc::clone(&snapshot)).await;
        }
        for event in &events {
            self.tell(event, &snapshot);
        }
        self.chronicle.told(&events, &snapshot, self.reconciler.rule(), now);
        self.remember(events);
    }

    async fn publish(&mut self, snapshot: Arc<Snapshot>) {
        if snapshot.epoch != self.published.epoch
            && let Some(old) = self.reigned
        {
            let fencing = self.fence.fence(old, snapshot.epoch);
            if tokio::time::timeout(FENCE_LIMIT, fencing).await.is_err() {
                tracing::warn!(epoch = snapshot.epoch.0, "fencing the old primary took too long");
            }
        }
        if let Some(primary) = snapshot.primary {
            self.reigned = Some(primary.node);
        }
        self.published = Arc::clone(&snapshot);
        self.published_at = Instant::now();
        self.current.store(Arc::clone(&snapshot));
        self.snapshots.send_replace(snapshot);
    }

    fn tell(&self, event: &Event, snapshot: &Snapshot) {
        let node = event
            .node
            .and_then(|id| snapshot.node(id))
            .map_or_else(String::new, |node| node.address.to_string());
        let (kind, epoch) = (event.kind.as_str(), snapshot.epoch.0);
        match event.kind {
            EventKind::AnswerLate => {
                tracing::debug!(target: "pgsteer::topology", kind, epoch, node, "{}", event.text);
            }
            EventKind::PrimaryLost
            | EventKind::Suspected(_)
            | EventKind::Hinted
            | EventKind::Advice
            | EventKind::ReadersLeave => {
                tracing::warn!(target: "pgsteer::topology", kind, epoch, node, "{}", event.text);
            }
            _ => tracing::info!(target: "pgsteer::topology", kind, epoch, node, "{}", event.text),
        }
    }

    fn remember(&self, events: Vec<Event>) {
        let mut kept = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        for event in events.into_iter().filter(|event| event.kind != EventKind::AnswerLate) {
            if kept.len() == EVENTS_KEPT {
                kept.pop_front();
            }
            kept.push_back(event);
        }
    }
}

/// Worth publishing before the round is over: who is the primary, who may be given what, and a new sample of the
/// primary, which releases reads of one's own writes.
fn is_news(old: &Snapshot, new: &Snapshot) -> bool {
    old.epoch != new.epoch
        || old.primary != new.primary
        || old.suspected != new.suspected
        || old.frozen_at != new.frozen_at
        || old.unreachable_since != new.unreachable_since
        || !old.nodes.iter().map(admission).eq(new.nodes.iter().map(admission))
}

fn admission(node: &NodeView) -> (Role, Readers, Logins) {
    (node.role, node.readers, node.logins)
}

/// Probes one node, once a round.
struct Worker {
    id: NodeId,
    address: Arc<NodeAddress>,
    credentials: Credentials,
    settings: Settings,
    rounds: watch::Receiver<u64>,
    pulse: Arc<Notify>,
    suspicions: Arc<Suspicions>,
    inputs: mpsc::Sender<Input>,
    /// When to ask next what the node has cancelled.
    conflicts_due: Instant,
}

/// What a node's task has to do.
enum Work {
    Broken(ProbeError),
    Probe,
    Pulse,
}

impl Worker {
    /// A round that begins while the last probe is still out is skipped: the answer under way serves it.
    async fn run(mut self) {
        let mut connection: Option<ProbeConnection> = None;
        let mut last_failure = None;
        self.rounds.mark_changed();
        loop {
            let began = Instant::now();
            let work = tokio::select! {
                biased;
                error = async {
                    match &mut connection {
                        Some(connection) => connection.ended().await,
                        None => std::future::pending().await,
                    }
                } => Work::Broken(error),
                round = self.rounds.changed() => match round {
                    Ok(()) => Work::Probe,
                    Err(_) => return,
                },
                () = self.pulse.notified() => Work::Pulse,
            };
            let input = match work {
                Work::Broken(error) => {
                    connection = None;
                    tracing::debug!(node = %self.address, "probe connection ended: {error}");
                    let why = ProbeFailure::Broken;
                    Input::ProbeFailed { node: self.id, sent_at: began, at: Instant::now(), why }
                }
                Work::Probe => self.probe(&mut connection, &mut last_failure).await,
                Work::Pulse => match connection.take() {
                    Some(open) => self.pulse(open, &mut connection, &mut last_failure).await,
                    None => self.probe(&mut connection, &mut last_failure).await,
                },
            };
            let is_standby = matches!(
                &input,
                Input::Observation { result, .. } if matches!(result.standing, Standing::InRecovery { .. })
            );
            if self.inputs.send(input).await.is_err() {
                return;
            }
            if is_standby && self.conflicts_due <= Instant::now() {
                self.count_conflicts(&mut connection).await;
            }
        }
    }

    /// Asks a standby what it has cancelled. Behind its answer to a probe, which is not to be late.
    async fn count_conflicts(&mut self, connection: &mut Option<ProbeConnection>) {
        self.conflicts_due = Instant::now() + CONFLICTS_EVERY;
        let Some(open) = connection.take() else { return };
        match open.conflicts(self.settings.probe_timeout).await {
            Ok(counts) => {
                *connection = Some(open);
                // Nobody listens any more: the next input finds that out.
                let _ = self.inputs.send(Input::ConflictsCounted { node: self.id, counts }).await;
            }
            // The next round connects anew, and says so if that fails.
            Err(error) => tracing::debug!(node = %self.address, "conflicts not counted: {error}"),
        }
    }

    /// Sessions have lost a connection to the primary, and look at what it answers from then on. A server that shuts down ends its sessions
    /// one after the other, and that of the probes may be the last to hear of it; new logins it refuses from the beginning.
    async fn log_in_anew(&self, connection: &mut Option<ProbeConnection>) -> Result<(), ProbeError> {
        let Some(due) = self.suspicions.logins_due.get(self.id.index()) else { return Ok(()) };
        if !due.swap(false, Ordering::AcqRel) || connection.is_none() {
            return Ok(());
        }
        let timeout = self.settings.connect_timeout.min(LOGIN_ANEW_WITHIN);
        match ProbeConnection::open(&self.address, &self.credentials, timeout).await {
            Ok(open) => *connection = Some(open),
            Err(error) if error.why.refuses_all() => {
                due.store(true, Ordering::Release);
                return Err(error.closing());
            }
            // That it has no room, or is slow to let anybody in, says nothing.
            Err(error) => tracing::debug!(node = %self.address, "no second probe connection: {error}"),
        }
        Ok(())
    }

    /// One probe, with a connection made first where there is none.
    async fn probe(
        &self,
        connection: &mut Option<ProbeConnection>,
        last_failure: &mut Option<ProbeFailure>,
    ) -> Input {
        let mut sent_at = Instant::now();
        let attempt = async {
            self.log_in_anew(connection).await?;
            let mut open = match connection.take() {
                Some(open) => open,
                None => {
                    let limit = self.settings.connect_timeout;
                    let opened = ProbeConnection::open(&self.address, &self.credentials, limit).await?;
                    // Nobody listens any more: the next input finds that out.
                    let _ = self.inputs.send(Input::LetIn { node: self.id }).await;
                    opened
                }
            };
            sent_at = Instant::now();
            let result = open.probe(self.settings.probe_timeout).await?;
            *connection = Some(open);
            Ok::<_, ProbeError>(result)
        };
        let outcome = attempt.await;
        match outcome {
            Ok(result) => {
                *last_failure = None;
                Input::Observation { node: self.id, sent_at, answered_at: Instant::now(), result }
            }
            Err(error) => self.failed(sent_at, &error, last_failure),
        }
    }

    /// One empty statement on a connection that is kept if it is answered.
    async fn pulse(
        &self,
        open: ProbeConnection,
        connection: &mut Option<ProbeConnection>,
        last_failure: &mut Option<ProbeFailure>,
    ) -> Input {
        let sent_at = Instant::now();
        match open.pulse(self.settings.probe_timeout).await {
            Ok(()) => {
                *connection = Some(open);
                Input::PulseAnswered { node: self.id, sent_at, at: Instant::now() }
            }
            Err(error) => self.failed(sent_at, &error, last_failure),
        }
    }

    fn failed(&self, sent_at: Instant, error: &ProbeError, last_failure: &mut Option<ProbeFailure>) -> Input {
        if last_failure.replace(error.why) != Some(error.why) {
            tracing::warn!(target: "pgsteer::topology", node = %self.address, "probe failed: {error}");
        }
        Input::ProbeFailed { node: self.id, sent_at, at: Instant::now(), why: error.why }
    }
}

#[cfg(test)]
mod tests {
    use super::super::model::{Lsn, PrimaryView, Timeline};
    use super::super::watchers::NoWatch;
    use super::*;
    use crate::telemetry::Labels;

    /// Never answers, and counts how often it was asked.
    #[derive(Debug, Default)]
    struct Silent(AtomicU32);

    impl Fence for Silent {
        fn fence(&self, _old_primary: NodeId, _epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
            self.0.fetch_add(1, Ordering::AcqRel);
            Box::pin(std::future::pending())
        }
    }

    fn coordinator(fence: Arc<dyn Fence>) -> (Coordinator, watch::Receiver<Arc<Snapshot>>) {
        let nodes: Vec<Node> =
            (1..=2).map(|n| Node::new(NodeAddress { host: format!("pg{n}"), port: 5432 })).collect();
        let reconciler = Reconciler::new(Settings::default(), nodes.clone());
        let metrics = Metrics::new(1, Labels::default()).expect("a registry");
        let first = reconciler.snapshot();
        let (snapshots, seen) = watch::channel(Arc::clone(&first));
        let coordinator = Coordinator {
            reconciler,
            watchers: Watchers::new(Arc::new(NoWatch), &nodes, mpsc::channel(1).0),
            chronicle: Chronicle::new(metrics.clone(), Arc::default()),
            metrics,
            inputs: mpsc::channel(1).1,
            rounds: watch::channel(0).0,
            pulses: Box::default(),
            idle_until: Instant::now(),
            suspicions: Arc::default(),
            demand: Arc::default(),
            fence,
            published: Arc::clone(&first),
            published_at: Instant::now(),
            reigned: None,
            snapshots,
            current: Arc::new(ArcSwap::new(first)),
            events: Arc::default(),
            answers: Vec::new(),
            round_began: Instant::now(),
            _probes: JoinSet::new(),
        };
        (coordinator, seen)
    }

    fn reign(coordinator: &Coordinator, epoch: u64, node: u16) -> Arc<Snapshot> {
        let now = Instant::now();
        let primary = PrimaryView {
            node: NodeId(node),
            timeline: Timeline(1),
            started_us: 1,
            flush_lsn: Lsn(1),
            insert_lsn: Lsn(1),
            commits_asynchronously: false,
            sampled_at: now,
            expires_at: now + Duration::from_secs(1),
        };
        let unknown = Snapshot::clone(&coordinator.reconciler.snapshot());
        Arc::new(Snapshot { epoch: Epoch(epoch), primary: Some(primary), ..unknown })
    }

    /// P1: a fence that hangs delays the new primary by its limit, and by no more than that.
    #[tokio::test]
    async fn a_new_epoch_is_published_though_the_fence_never_answers() {
        let fence = Arc::new(Silent::default());
        let (mut coordinator, seen) = coordinator(Arc::clone(&fence) as Arc<dyn Fence>);
        let bound = Duration::from_secs(20);
        let first = reign(&coordinator, 1, 0);
        tokio::time::timeout(bound, coordinator.publish(first)).await.expect("nobody is there to be fenced");
        assert_eq!((seen.borrow().epoch, fence.0.load(Ordering::Acquire)), (Epoch(1), 0));

        let second = reign(&coordinator, 2, 1);
        let began = Instant::now();
        let mut publishing = std::pin::pin!(coordinator.publish(second));
        tokio::select! {
            biased;
            () = &mut publishing => panic!("published without the fence"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(
            (seen.borrow().epoch, fence.0.load(Ordering::Acquire)),
            (Epoch(1), 1),
            "the fence is first"
        );
        tokio::time::timeout(bound, publishing).await.expect("a fence without end is given up");
        assert!(began.elapsed() >= FENCE_LIMIT, "{:?}", began.elapsed());
        let published = Arc::clone(&seen.borrow());
        assert_eq!((published.epoch, published.primary.map(|it| it.node)), (Epoch(2), Some(NodeId(1))));
    }
}
