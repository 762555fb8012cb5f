//! What the reconciler remembers of one node: its last answer, its last failure, and what it was taken for.
//!
//! Invariant: an answer counts only until it expires or is withdrawn, and evidence never goes back in time: an answer to a
//! probe that was sent before the last withdrawal changes nothing. Must not know: the other nodes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::topology::evidence::{Node, ProbeFailure, ProbeResult, Standing};
use crate::topology::model::{
    Advice, ConflictCounts, Epoch, Logins, Lsn, NodeAddress, Readers, Role, Timeline,
};

use super::pulse::Pulse;
use super::stall::Stall;
use super::start::Start;

/// The last answer of a node.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) sent_at: Instant,
    pub(super) answered_at: Instant,
    pub(super) result: ProbeResult,
    /// The connection it came over is gone, or the node is.
    withdrawn: bool,
}

/// A live claim to be the primary.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim {
    pub(super) timeline: Timeline,
    pub(super) flush_lsn: Lsn,
    pub(super) insert_lsn: Lsn,
    pub(super) switch_lsn: Option<Lsn>,
    pub(super) commits_asynchronously: bool,
    pub(super) started_us: i64,
    pub(super) system_id: u64,
    pub(super) sent_at: Instant,
    pub(super) answered_at: Instant,
}

#[derive(Debug)]
pub(super) struct NodeState {
    pub(super) address: Arc<NodeAddress>,
    pub(super) weight: u32,
    /// When it last answered or failed to.
    pub(super) heard_at: Option<Instant>,
    /// When it was asked for that.
    pub(super) asked_at: Option<Instant>,
    /// Kept after it expired: positions stay readable.
    pub(super) answer: Option<Answer>,
    /// The last failure, unless an answer came after it.
    pub(super) failure: Option<ProbeFailure>,
    /// Since when this node is provably gone or in recovery, so that it can acknowledge no commit.
    pub(super) powerless_since: Option<Instant>,
    /// It claimed the very timeline on which another node is this epoch's primary.
    pub(super) rival: bool,
    /// Most WAL it was first seen to hold after the primary was provably gone.
    pub(super) held_after_loss: Option<Lsn>,
    /// The epoch whose history it is known to share although its timeline is not known to have changed.
    pub(super) shares: Option<Epoch>,
    pub(super) role: Role,
    pub(super) role_since: Option<Instant>,
    pub(super) reason: &'static str,
    /// What people were told of its settings.
    pub(super) advised: Vec<Advice>,
    /// What it has cancelled.
    pub(super) conflicts: Option<ConflictCounts>,
    pub(super) pulse: Pulse,
    pub(super) stall: Stall,
    pub(super) start: Start,
    pub(super) readers: Readers,
    /// Whether it has let a probe in since it last answered or failed to.
    pub(super) logins: Logins,
    /// It told of its promotion while this epoch lasted.
    pub(super) promoted_in: Option<Epoch>,
    /// It was told that it can't be watched for its promotion.
    pub(super) unwatched_told: bool,
}

impl NodeState {
    pub(super) fn new(node: Node) -> Self {
        Self {
            address: node.address,
            weight: node.weight,
            heard_at: None,
            asked_at: None,
            answer: None,
            failure: None,
            powerless_since: None,
            rival: false,
            held_after_loss: None,
            shares: None,
            role: Role::Unknown,
            role_since: None,
            reason: "not probed yet",
            advised: Vec::new(),
            conflicts: None,
            pulse: Pulse::default(),
            stall: Stall::default(),
            start: Start::default(),
            readers: Readers::MayStay,
            logins: Logins::AsAnswered,
            promoted_in: None,
            unwatched_told: false,
        }
    }

    /// Takes an answer. False when it is older than what is known.
    pub(super) fn answered(&mut self, sent_at: Instant, answered_at: Instant, result: ProbeResult) -> bool {
        self.pulse.answered(sent_at, answered_at);
        self.logins = Logins::AsAnswered;
        if self.answer.as_ref().is_some_and(|answer| sent_at < answer.sent_at) {
            return false;
        }
        if self.failure.is_some() && self.heard_at.is_some_and(|failed_at| sent_at < failed_at) {
            return false;
        }
        match result.standing {
            Standing::InRecovery { .. } => {
                self.rival = false;
                self.powerless_since.get_or_insert(answered_at);
            }
            Standing::OutOfRecovery { .. } => self.powerless_since = None,
        }
        self.stall.observed(&result, answered_at);
        self.start.answered();
        (self.heard_at, self.asked_at) = (Some(answered_at), Some(sent_at));
        self.failure = None;
        self.answer = Some(Answer { sent_at, answered_at, result, withdrawn: false });
        true
    }

    /// Takes a failure. False when an answer is newer.
    pub(super) fn failed(&mut self, sent_at: Instant, at: Instant, why: ProbeFailure) -> bool {
        self.pulse.failed(at);
        self.logins = Logins::AsAnswered;
        let stale =
            |answer: &Answer| sent_at < answer.sent_at && self.heard_at.is_some_and(|heard| at < heard);
        if self.answer.as_ref().is_some_and(stale) {
            return false;
        }
        if why.proves_gone() {
            self.powerless_since.get_or_insert(at);
            if let Some(answer) = &mut self.answer {
                answer.withdrawn = true;
            }
        } else if self.live(at, Duration::MAX).is_none() {
            // It was gone; now it is merely silent, and may have come back out of our sight.
            self.powerless_since = None;
        }
        self.start.failed(why, at);
        (self.heard_at, self.asked_at) = (Some(at), Some(sent_at));
        self.failure = Some(why);
        true
    }

    /// The answer, while it counts.
    pub(super) fn live(&self, now: Instant, ttl: Duration) -> Option<&Answer> {
        self.answer
            .as_ref()
            .filter(|answer| !answer.withdrawn && now.saturating_duration_since(answer.sent_at) < ttl)
    }

    /// The claim to be the primary, while it counts.
    pub(super) fn claim(&self, now: Instant, ttl: Duration) -> Option<Claim> {
        let answer = self.live(now, ttl)?;
        match answer.result.standing {
            Standing::InRecovery { .. } => None,
            Standing::OutOfRecovery { timeline, flush_lsn, insert_lsn, switch_lsn } => Some(Claim {
                timeline,
                flush_lsn,
                insert_lsn,
                switch_lsn,
                commits_asynchronously: answer.result.server.commits_asynchronously,
                started_us: answer.result.started_us,
                system_id: answer.result.system_id,
                sent_at: answer.sent_at,
                answered_at: answer.answered_at,
            }),
        }
    }

    /// Since when it can acknowledge no commit, while that is still proven: it says that it is in recovery, or its port
    /// says that nobody is there.
    pub(super) fn powerless(&self, now: Instant, ttl: Duration) -> Option<Instant> {
        let proven = self.failure.is_some_and(ProbeFailure::proves_gone) || self.live(now, ttl).is_some();
        self.powerless_since.filter(|_| proven)
    }

    /// Silent although it may live: its last word is missing, not a proof that it is gone.
    pub(super) fn may_hide(&self, now: Instant, ttl: Duration) -> bool {
        self.live(now, ttl).is_none() && self.powerless(now, ttl).is_none()
    }

    /// All WAL it holds, replayed or not; `None` when it is not known to be in recovery.
    pub(super) fn held_lsn(&self) -> Option<Lsn> {
        match self.answer.as_ref()?.result.standing {
            Standing::InRecovery { replay_lsn, receive_lsn, .. } => {
                Some(receive_lsn.map_or(replay_lsn, |receive| receive.max(replay_lsn)))
            }
            Standing::OutOfRecovery { .. } => None,
        }
    }

    /// Why it is unknown.
    pub(super) fn silence(&self) -> &'static str {
        match (self.failure, &self.answer) {
            (Some(failure), _) => failure.as_str(),
            (None, Some(_)) => "no fresh answer",
            (None, None) => "not probed yet",
        }
    }
}
