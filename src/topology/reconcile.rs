//! The only judge of who is the primary.
//!
//! Invariant: at most one node is the primary of an epoch; a primary is named only on the strength of its own answer,
//! younger than `claim_ttl` and not withdrawn; epochs never go back; a node out of recovery on a timeline lower than the
//! highest ever claimed is never the primary, also when it is the only one that answers. Whatever does not decide
//! means: no primary. Must not know: sockets, clocks (`now` is an argument), logging, configuration files.
//!
//! ## A standby's timeline
//!
//! A probe role without `pg_monitor` sees a standby's timeline in the control file only, where it stays old until the next
//! restartpoint after a failover. So a standby's timeline *equal* to the primary's proves that it follows;
//! a *higher* one is a hint that a primary exists out of our sight (a reason to look, no verdict); a *lower* one proves
//! something only when the WAL receiver itself says it. In the doubtful case a standby counts as following when, after the
//! old primary was provably gone, it held no WAL beyond the point where the new timeline began: then all it holds is shared,
//! and nobody but the new primary's side can feed it. Otherwise it gets no reads until its timeline shows.

mod advice;
mod doubt;
mod node;
mod promotion;
mod pulse;
mod stall;
mod start;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::evidence::{Event, EventKind, Input, Node, ProbeFailure, Standing, SuspectWhy};
use super::lag_clock::LagClock;
use super::model::{Epoch, Lsn, NodeId, NodeView, OnUnreachable, PrimaryView, Role, Snapshot, Timeline};
use doubt::{Hint, Suspicion};
use node::{Claim, NodeState};
pub use pulse::PULSE_EVERY;

/// WAL on its way to a standby when the primary dies has arrived after this time.
const WAL_IN_FLIGHT: Duration = Duration::from_millis(20);
/// Times of the monitor (`[topology]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Between two rounds when all is well.
    pub probe_interval: Duration,
    /// Between two rounds while the primary is doubted or missing.
    pub rapid_interval: Duration,
    /// Between two rounds while somebody waits to know how far standbys are.
    pub sample_interval: Duration,
    /// A probe without an answer for so long has failed (a hung node).
    pub probe_timeout: Duration,
    /// Limit of connecting and logging in.
    pub connect_timeout: Duration,
    /// An answer counts for so long after its probe was sent.
    pub claim_ttl: Duration,
    /// While the primary is doubted, a standby that has WAL to replay and has replayed none of it for so long is to have no
    /// readers; zero: they may stay.
    pub replay_stall_timeout: Duration,
    /// What becomes of reads while the primary is out of reach and may live.
    pub on_unreachable: OnUnreachable,
    /// System identifier of the cluster; `None`: that of the first primary seen.
    pub system_id: Option<u64>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            probe_interval: Duration::from_millis(100),
            rapid_interval: Duration::from_millis(5),
            sample_interval: Duration::from_millis(2),
            probe_timeout: Duration::from_secs(1),
            connect_timeout: Duration::from_secs(1),
            claim_ttl: Duration::from_secs(1),
            replay_stall_timeout: Duration::from_millis(50),
            on_unreachable: OnUnreachable::Hold,
            system_id: None,
        }
    }
}

/// Who the primary of the current epoch is, or was.
#[derive(Debug, Clone, Copy)]
struct Reign {
    epoch: Epoch,
    node: NodeId,
    timeline: Timeline,
    started_us: i64,
    /// The highest flush LSN it attested.
    flush_lsn: Lsn,
    /// Where its timeline began.
    switch_lsn: Option<Lsn>,
    /// Its predecessor was provably gone when the epoch opened.
    predecessor_gone: bool,
    opened_at: Instant,
    /// By which rule it became the primary.
    rule: &'static str,
}

/// The judge. One input at a time, and out come the events worth a log line.
#[derive(Debug)]
pub struct Reconciler {
    settings: Settings,
    nodes: Vec<NodeState>,
    system_id: Option<u64>,
    reign: Option<Reign>,
    highest_timeline: Timeline,
    primary: Option<PrimaryView>,
    /// Why there is no primary.
    vacancy: &'static str,
    frozen_at: Option<Instant>,
    vacant_as_of: Option<Instant>,
    unreachable_since: Option<Instant>,
    suspicion: Option<Suspicion>,
    /// Somebody said that the primary changes, and nothing has come of it yet.
    hint: Option<Hint>,
    /// Since when the primary's answer is overdue by much more than usual.
    late_since: Option<Instant>,
    /// Since when the epoch's primary is doubted or missing, without having attested itself in between.
    unattested_since: Option<Instant>,
    /// Since when rapid rounds run without a break.
    rapid_since: Option<Instant>,
    /// In which epoch a standby has last told of its promotion, and when.
    promotion_told: Option<(Epoch, Instant)>,
    first_input_at: Option<Instant>,
    looked_at_all: bool,
    newer_timeline_seen: Timeline,
    clock: LagClock,
    deadline: Option<Instant>,
    version: u64,
    snapshot: Arc<Snapshot>,
    events: Vec<Event>,
}

impl Reconciler {
    /// A judge who knows nothing but the nodes' names.
    pub fn new(settings: Settings, nodes: Vec<Node>) -> Self {
        let nodes: Vec<NodeState> = nodes.into_iter().map(NodeState::new).collect();
        let addresses: Vec<_> = nodes.iter().map(|node| Arc::clone(&node.address)).collect();
        let mut first = Snapshot::unknown(&addresses);
        for (view, node) in first.nodes.iter_mut().zip(&nodes) {
            view.weight = node.weight;
        }
        Self {
            system_id: settings.system_id,
            settings,
            nodes,
            reign: None,
            highest_timeline: Timeline(0),
            primary: None,
            vacancy: "no node has been probed yet",
            frozen_at: None,
            vacant_as_of: None,
            unreachable_since: None,
            suspicion: None,
            hint: None,
            late_since: None,
            unattested_since: None,
            rapid_since: None,
            promotion_told: None,
            first_input_at: None,
            looked_at_all: false,
            newer_timeline_seen: Timeline(0),
            clock: LagClock::default(),
            deadline: None,
            version: 0,
            snapshot: Arc::new(first),
            events: Vec::new(),
        }
    }

    /// Takes one input and judges anew. What the log should tell comes back, in order.
    pub fn on(&mut self, input: Input, now: Instant) -> Vec<Event> {
        self.first_input_at.get_or_insert(now);
        match input {
            Input::Tick => {}
            Input::RoundStarted => self.nodes.iter_mut().for_each(|node| node.pulse.asked(now)),
            Input::PulseSent { node } => self.pulse_sent(node, now),
            Input::PulseAnswered { node, sent_at, at } => self.pulse_answered(node, sent_at, at),
            Input::Observation { node, sent_at, answered_at, result } => {
                self.advise(node, &result, now);
                if let Some(state) = self.nodes.get_mut(node.index()) {
                    state.answered(sent_at, answered_at, result);
                }
            }
            Input::LetIn { node } => self.let_in(node),
            Input::ConflictsCounted { node, counts } => self.count_conflicts(node, counts),
            Input::ProbeFailed { node, sent_at, at, why } => self.probe_failed(node, sent_at, at, why, now),
            Input::Suspect { node, why } => self.suspect(node, why, now),
            Input::Hint { expects } => self.hinted(expects, now),
            Input::Promoted { node, told, at } => self.promoted(node, told, at),
            Input::NotWatched { node, why } => self.not_watched(node, &why, now),
        }
        self.judge(now);
        self.publish(now);
        std::mem::take(&mut self.events)
    }

    /// When to send a `Tick` if nothing else comes: something known expires then.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    /// The picture after the last input.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshot)
    }

    /// Why there is no primary, in words; empty while there is one.
    pub fn vacancy(&self) -> &'static str {
        if self.primary.is_some() { "" } else { self.vacancy }
    }

    fn probe_failed(&mut self, node: NodeId, sent_at: Instant, at: Instant, why: ProbeFailure, now: Instant) {
        let Some(state) = self.nodes.get_mut(node.index()) else { return };
        if state.failed(sent_at, at, why) && self.reign.is_some_and(|reign| reign.node == node) {
            self.suspect(node, SuspectWhy::ProbeFailed, now);
        }
    }

    fn judge(&mut self, now: Instant) {
        let before = self.primary;
        let claims = self.claims(now);
        self.look_at_all(now);
        self.primary = match self.choose(&claims) {
            Ok((node, claim)) => Some(self.enthrone(node, claim, now)),
            Err(why) => {
                self.vacancy = why;
                None
            }
        };
        self.tell_of_primary(before, now);
        self.learn_history(&claims, now);
        self.assign_roles(now);
        self.freeze(&claims, now);
        self.note_lateness(now);
        self.doubt(now);
        self.clear_the_way(now);
        self.set_deadline(now);
    }

    /// Live claims of this cluster; remembers the highest timeline among them.
    fn claims(&mut self, now: Instant) -> Vec<(NodeId, Claim)> {
        let (ttl, pinned) = (self.settings.claim_ttl, self.system_id);
        let claims: Vec<_> = ids(&self.nodes)
            .filter_map(|(id, node)| node.claim(now, ttl).map(|claim| (id, claim)))
            .filter(|(_, claim)| pinned.is_none_or(|system_id| claim.system_id == system_id))
            .collect();
        if self.system_id.is_some() {
            for (_, claim) in &claims {
                self.highest_timeline = self.highest_timeline.max(claim.timeline);
            }
        }
        claims
    }

    /// The first primary is not named by who answers first: every node has its say, or `claim_ttl` passes.
    fn look_at_all(&mut self, now: Instant) {
        let waited = self.first_input_at.is_some_and(|first| now >= first + self.settings.claim_ttl);
        self.looked_at_all |= waited || self.nodes.iter().all(|node| node.heard_at.is_some());
    }

    fn choose(&mut self, claims: &[(NodeId, Claim)]) -> Result<(NodeId, Claim), &'static str> {
        if !self.looked_at_all {
            return Err("not every node has been asked yet");
        }
        let Some(&(first, claim)) = claims.iter().max_by_key(|(_, claim)| claim.timeline) else {
            return Err("no node claims to be the primary");
        };
        if self.system_id.is_none() && claims.iter().any(|(_, other)| other.system_id != claim.system_id) {
            return Err("nodes of different clusters claim to be the primary");
        }
        if claim.timeline < self.highest_timeline {
            return Err("only an old primary (on a lower timeline) claims to be the primary");
        }
        let rivals = || claims.iter().filter(|(_, other)| other.timeline == claim.timeline);
        if rivals().count() > 1 {
            self.mark_rivals(claim.timeline, claims);
            return Err("two nodes claim the same timeline");
        }
        let Some(reign) = self.reign else { return Ok((first, claim)) };
        if claim.timeline > reign.timeline || first == reign.node {
            return Ok((first, claim));
        }
        // Another node on the timeline of this epoch. A promotion always opens a new timeline, so this is the same data
        // under another name (shared storage, a moved volume) or a split brain.
        if self.nodes.get(first.index()).is_some_and(|node| node.rival) {
            return Err("the only claim is that of a rival of this epoch's primary, on the same timeline");
        }
        if claim.flush_lsn < reign.flush_lsn {
            return Err("the only claim is on this epoch's timeline, but lacks WAL that its primary had");
        }
        Ok((first, claim))
    }

    fn mark_rivals(&mut self, timeline: Timeline, claims: &[(NodeId, Claim)]) {
        let Some(reign) = self.reign.filter(|reign| reign.timeline == timeline) else { return };
        for &(id, claim) in claims {
            if claim.timeline == timeline
                && id != reign.node
                && let Some(node) = self.nodes.get_mut(id.index())
            {
                node.rival = true;
            }
        }
    }

    /// The winner's claim becomes the primary, in a new epoch where it is not the one that reigned.
    fn enthrone(&mut self, node: NodeId, claim: Claim, now: Instant) -> PrimaryView {
        let continues = self.reign.is_some_and(|reign| {
            reign.node == node && reign.timeline == claim.timeline && reign.started_us == claim.started_us
        });
        if !continues {
            self.open_epoch(node, claim, now);
        }
        if let Some(reign) = &mut self.reign {
            reign.flush_lsn = reign.flush_lsn.max(claim.flush_lsn);
        }
        self.clock.record((claim.sent_at, claim.answered_at), claim.flush_lsn);
        PrimaryView {
            node,
            timeline: claim.timeline,
            started_us: claim.started_us,
            flush_lsn: claim.flush_lsn,
            insert_lsn: claim.insert_lsn,
            commits_asynchronously: claim.commits_asynchronously,
            sampled_at: claim.sent_at,
            expires_at: claim.sent_at + self.settings.claim_ttl,
        }
    }

    /// By which rule the primary of this epoch became it.
    pub fn rule(&self) -> &'static str {
        self.reign.map_or("", |reign| reign.rule)
    }

    fn open_epoch(&mut self, node: NodeId, claim: Claim, now: Instant) {
        let before = self.reign;
        let beside = self.claims(now).len() > 1;
        let rule = rule(before, node, claim, beside);
        let epoch = Epoch(before.map_or(1, |reign| reign.epoch.0 + 1));
        let was = match before {
            None => "first primary seen".to_owned(),
            Some(old) if old.node != node => {
                format!("before: {} on timeline {}", self.name(old.node), old.timeline)
            }
            Some(old) if old.timeline != claim.timeline => {
                format!("same node, before on timeline {}", old.timeline)
            }
            Some(_) => "same node and timeline, restarted".to_owned(),
        };
        let text = format!(
            "epoch {epoch}: {} is the primary on timeline {} ({was}; {rule})",
            self.name(node),
            claim.timeline
        );
        let predecessor_gone = before.is_some_and(|old| {
            let ttl = self.settings.claim_ttl;
            let gone = |old: &NodeState| old.powerless(now, ttl).is_some();
            old.node == node || self.nodes.get(old.node.index()).is_some_and(gone)
        });
        for state in &mut self.nodes {
            state.rival = false;
        }
        self.system_id.get_or_insert(claim.system_id);
        self.highest_timeline = self.highest_timeline.max(claim.timeline);
        self.reign = Some(Reign {
            epoch,
            node,
            timeline: claim.timeline,
            started_us: claim.started_us,
            flush_lsn: claim.flush_lsn,
            switch_lsn: claim.switch_lsn,
            predecessor_gone,
            opened_at: now,
            rule,
        });
        self.clock.reset();
        self.event(EventKind::EpochOpened, Some(node), text, now);
    }

    fn tell_of_primary(&mut self, before: Option<PrimaryView>, now: Instant) {
        let opened = self.events.iter().any(|event| event.kind == EventKind::EpochOpened);
        match (before, self.primary) {
            (Some(old), None) => {
                let detail = self.nodes.get(old.node.index()).map_or("", NodeState::silence);
                let text =
                    format!("{} is no longer the primary: {}; {detail}", self.name(old.node), self.vacancy);
                self.event(EventKind::PrimaryLost, Some(old.node), text, now);
            }
            (None, Some(new)) if !opened => {
                let text = format!("{} is the primary again, in the same epoch", self.name(new.node));
                self.event(EventKind::PrimaryBack, Some(new.node), text, now);
            }
            _ => {}
        }
    }

    /// Keeps, for the doubtful case of a standby's timeline, who is known to share the primary's history.
    fn learn_history(&mut self, claims: &[(NodeId, Claim)], now: Instant) {
        let Some(reign) = self.reign else { return };
        let old_claim_lives = claims.iter().any(|&(id, _)| id != reign.node);
        let (ttl, has_primary) = (self.settings.claim_ttl, self.primary.is_some());
        let gone_since = self.nodes.get(reign.node.index()).and_then(|node| node.powerless(now, ttl));
        for node in &mut self.nodes {
            if old_claim_lives {
                // Whoever is not seen to follow the new timeline might be fed by the old primary.
                node.shares = None;
                node.held_after_loss = None;
                continue;
            }
            let held = node.live(now, ttl).map(|answer| answer.sent_at).zip(node.held_lsn());
            match (has_primary, gone_since, held) {
                (false, Some(gone), Some((sent_at, held))) if sent_at >= gone + WAL_IN_FLIGHT => {
                    node.held_after_loss.get_or_insert(held);
                }
                (true, _, held) => {
                    let seen_since = held.filter(|&(sent_at, _)| sent_at >= reign.opened_at);
                    let least = node.held_after_loss.take().or(seen_since.map(|(_, held)| held));
                    let shared = reign.switch_lsn.zip(least).is_some_and(|(switch, held)| held <= switch);
                    if reign.predecessor_gone && shared {
                        node.shares = Some(reign.epoch);
                    }
                }
                _ => {}
            }
        }
    }

    /// Does this standby replay the history of the current epoch, as far as can be known?
    fn follows(&self, node: &NodeState, reign: Reign) -> bool {
        let Some(answer) = &node.answer else { return false };
        let Standing::InRecovery { timeline, received_timeline, .. } = answer.result.standing else {
            return false;
        };
        match timeline.cmp(&reign.timeline) {
            std::cmp::Ordering::Equal => true,
            std::cmp::Ordering::Greater => false,
            std::cmp::Ordering::Less => received_timeline.is_none() && node.shares == Some(reign.epoch),
        }
    }

    fn role_of(&self, id: NodeId, node: &NodeState, now: Instant) -> (Role, &'static str) {
        let Some(answer) = node.live(now, self.settings.claim_ttl) else {
            return (Role::Unknown, node.silence());
        };
        if self.system_id.is_some_and(|pinned| pinned != answer.result.system_id) {
            return (Role::Refused, "it belongs to another cluster (system identifier)");
        }
        match answer.result.standing {
            Standing::InRecovery { timeline, .. } => match self.reign {
                None => (Role::Standby, "in recovery; no primary seen yet"),
                Some(reign) if self.follows(node, reign) => (Role::Standby, "in recovery"),
                Some(reign) if timeline > reign.timeline => {
                    (Role::Standby, "in recovery on a newer timeline than the primary's; no reads")
                }
                Some(_) => {
                    (Role::Standby, "in recovery, not known to follow the primary's timeline; no reads")
                }
            },
            Standing::OutOfRecovery { .. } if self.primary.is_some_and(|primary| primary.node == id) => {
                (Role::Primary, "out of recovery on the highest timeline")
            }
            Standing::OutOfRecovery { .. } if !self.looked_at_all => {
                (Role::Unknown, "claims to be the primary; not every node has been asked yet")
            }
            Standing::OutOfRecovery { timeline, .. } if timeline < self.highest_timeline => {
                (Role::Quarantined, "out of recovery on a lower timeline: an old primary")
            }
            Standing::OutOfRecovery { .. } => (Role::Quarantined, "out of recovery beside another claim"),
        }
    }

    fn assign_roles(&mut self, now: Instant) {
        for index in 0..self.nodes.len() {
            let Some(id) = u16::try_from(index).ok().map(NodeId) else { break };
            let (role, reason) = self.role_of(id, &self.nodes[index], now);
            let node = &mut self.nodes[index];
            let changed = node.role != role;
            (node.role, node.reason) = (role, reason);
            if changed {
                node.role_since = Some(now);
                let text = format!("{} is now {}: {reason}", node.address, role.as_str());
                self.event(EventKind::RoleChanged, Some(id), text, now);
            }
        }
    }

    /// Commits can't be acknowledged while the epoch's primary is provably powerless, nobody else claims the throne and
    /// nobody hides who might.
    fn freeze(&mut self, claims: &[(NodeId, Claim)], now: Instant) {
        let ttl = self.settings.claim_ttl;
        let powerless = self
            .reign
            .and_then(|reign| self.nodes.get(reign.node.index()))
            .and_then(|node| node.powerless(now, ttl));
        let nobody_else = claims.is_empty() && !self.nodes.iter().any(|node| node.may_hide(now, ttl));
        self.frozen_at = match powerless {
            Some(since) if self.primary.is_none() && nobody_else => Some(self.frozen_at.unwrap_or(since)),
            _ => None,
        };
        let asked = self.nodes.iter().map(|node| node.asked_at).min().flatten();
        self.vacant_as_of = asked.filter(|_| self.frozen_at.is_some());
        // It says nothing, and nothing proves that it is gone.
        let silent = self.reign.and_then(|reign| self.nodes.get(reign.node.index()));
        self.unreachable_since = silent
            .filter(|node| self.primary.is_none() && claims.is_empty() && node.may_hide(now, ttl))
            .and_then(|node| node.answer.as_ref())
            .map(|answer| answer.sent_at);
    }

    fn set_deadline(&mut self, now: Instant) {
        let ttl = self.settings.claim_ttl;
        let expiries = self.nodes.iter().filter_map(|node| node.live(now, ttl)).map(|a| a.sent_at + ttl);
        let late = self
            .primary
            .filter(|_| self.suspicion.is_none())
            .map(|primary| primary.sampled_at + self.late_after());
        let first_look =
            self.first_input_at.filter(|_| !self.looked_at_all).map(|first| first + self.settings.claim_ttl);
        let watch = self.watch_deadline(now);
        let overdue = self.overdue_deadline();
        self.deadline = expiries.chain(late).chain(first_look).chain(watch).chain(overdue).min();
    }

    fn publish(&mut self, now: Instant) {
        self.version += 1;
        let views = ids(&self.nodes).map(|(id, node)| self.view(id, node, now)).collect();
        self.snapshot = Arc::new(Snapshot {
            version: self.version,
            system_id: self.system_id,
            epoch: self.reign.map_or(Epoch(0), |reign| reign.epoch),
            primary: self.primary,
            suspected: self.suspicion.is_some() || self.primary.is_none(),
            frozen_at: self.frozen_at,
            vacant_as_of: self.vacant_as_of,
            unreachable_since: self.unreachable_since,
            on_unreachable: self.settings.on_unreachable,
            nodes: views,
        });
    }

    fn view(&self, id: NodeId, node: &NodeState, now: Instant) -> NodeView {
        let mut view = NodeView {
            role: node.role,
            reason: node.reason,
            role_since: node.role_since,
            replay_stands_since: node.stall.since(),
            readers: node.readers,
            logins: node.logins,
            weight: node.weight,
            ..NodeView::not_probed(id, Arc::clone(&node.address))
        };
        let Some(answer) = &node.answer else { return view };
        view.sampled_at = Some(answer.sent_at);
        match answer.result.standing {
            Standing::OutOfRecovery { timeline, flush_lsn, .. } => {
                view.timeline = Some(timeline);
                view.position = Some(flush_lsn);
            }
            Standing::InRecovery { timeline, received_timeline, replay_lsn, receive_lsn, .. } => {
                view.timeline = Some(received_timeline.map_or(timeline, |received| received.max(timeline)));
                view.position = Some(replay_lsn);
                view.receive_lsn = receive_lsn;
                view.settings = Some(answer.result.server.standby);
                view.conflicts = node.conflicts;
                let live = node.live(now, self.settings.claim_ttl).is_some() && node.role == Role::Standby;
                if live && self.reign.is_some_and(|reign| self.follows(node, reign)) {
                    let reached = self.clock.reached(replay_lsn);
                    view.fresh_as_of = reached.map(|reached| reached.as_of);
                    view.missed_at = reached.and_then(|reached| reached.missed_at);
                    view.lag_bytes = self.clock.newest_lsn().map(|lsn| lsn.0.saturating_sub(replay_lsn.0));
                }
            }
        }
        view
    }

    fn name(&self, id: NodeId) -> String {
        self.nodes.get(id.index()).map_or_else(|| format!("node {}", id.0), |node| node.address.to_string())
    }

    fn event(&mut self, kind: EventKind, node: Option<NodeId>, text: String, at: Instant) {
        self.events.push(Event { at, kind, node, text });
    }
}

/// By which rule a claim opens an epoch.
fn rule(before: Option<Reign>, node: NodeId, claim: Claim, beside: bool) -> &'static str {
    match before {
        None => "the only claim, or that on the highest timeline",
        Some(old) if claim.timeline > old.timeline && beside => {
            "its timeline is the highest of several claims"
        }
        Some(old) if claim.timeline > old.timeline => "the only claim, on a higher timeline",
        Some(old) if old.node == node => "the same node and timeline, started anew",
        Some(_) => "the only claim, on the same timeline and with all of its WAL",
    }
}

fn ids(nodes: &[NodeState]) -> impl Iterator<Item = (NodeId, &NodeState)> {
    nodes.iter().zip(0u16..).map(|(node, index)| (NodeId(index), node))
}
