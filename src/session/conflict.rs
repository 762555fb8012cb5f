//! Reads that a standby has cancelled or lost: what is counted and learned of it, where they go next, and how they are told of it when
//! they are not run again.
//!
//! Invariant: what standbys cancel gets no more of the primary than `retry.primary_budget`; a conflict that is passed on is PostgreSQL's
//! own error with a hint. Must not know: how an exchange goes, how nodes are judged.

use std::time::Instant;

use super::attempt::Sent;
use super::driver::{Attached, Flow, Session};
use super::exchange::{Ended, Interruption};
use super::run::Task;
use super::transaction::Transaction;
use crate::classify::{self, NoStandby, Steer, Target};
use crate::pool::Place;
use crate::route::{Mode, Need, Prefer, Terms};
use crate::telemetry::metrics::Side;
use crate::topology::model::{NodeId, Snapshot};
use crate::wire::reply;

/// What became of a read that was run again. The discriminant is the index of its label.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RetryOutcome {
    /// It was answered.
    Answered,
    /// It was answered with an error of its own.
    Failed,
    /// It was interrupted once more, and its client was told.
    Interrupted,
    /// The primary had no room for it, and its client was told of the conflict.
    NoPlace,
    /// pgsteer has given it up: its time was over, it was cancelled, or it was held for too long.
    GivenUp,
}

impl RetryOutcome {
    /// The words for them in metrics.
    pub const LABELS: [&'static str; 5] = ["answered", "failed", "interrupted", "no_place", "given_up"];
}

/// What a task has behind it of standbys that cancelled or lost it.
#[derive(Debug, Default)]
pub(super) struct Interrupted {
    /// How often it was run again because of that.
    pub(super) times: usize,
    /// When it was last.
    pub(super) again_at: Option<Instant>,
    /// The last conflict, a whole ErrorResponse: for its client, should it not be run again.
    pub(super) conflict: Option<Vec<u8>>,
    /// Its place on the primary.
    pub(super) place: Option<Place>,
    /// There was none when it would have gone there.
    pub(super) without_place: bool,
    /// How its last attempt went.
    pub(super) outcome: Option<RetryOutcome>,
}

/// The primary has no room for what standbys cancel.
pub(super) const NO_PLACE: &str =
    "the primary runs as many reads that standbys cancelled as it may (retry.primary_budget)";
/// Nothing begins on the primary.
pub(super) const PAUSED: &str =
    "retry.attempts are used up but for the primary, where nothing begins while pgsteer is paused";
/// The primary is not for reads.
pub(super) const NO_STANDBY: &str =
    "no other standby is within its bounds, and reads do not go to the primary then (routing.no_standby)";

impl Session {
    /// An exchange with a standby has ended: counts how, if it was interrupted there, and learns from that.
    pub(super) fn note_interruption(
        &self,
        task: &mut Task<'_>,
        attached: &Attached,
        began: Instant,
        (ended, sent): (&Ended, &Sent),
    ) {
        let (node, side) = (attached.node, attached.side);
        let ran = task.now.saturating_duration_since(began);
        let interruption = Interruption::of(ended, sent.code);
        task.interrupted.outcome = match ended {
            Ended::Complete(_) | Ended::Settled => Some(match interruption {
                Some(_) => RetryOutcome::Interrupted,
                None if sent.failed => RetryOutcome::Failed,
                None => RetryOutcome::Answered,
            }),
            Ended::ServerLost { .. } | Ended::Left { .. } | Ended::Dismissed => {
                Some(RetryOutcome::Interrupted)
            }
            _ => Some(RetryOutcome::Failed),
        };
        let Some(interruption) = interruption.filter(|_| side == Side::Standby) else { return };
        self.shard.counters.retried_reads.interrupted(node.index(), interruption as usize);
        if !interruption.is_conflict() {
            return;
        }
        self.shard.note_conflict(node);
        // It is not the unit itself that was cancelled if what had run before it was.
        if !task.needs.repeatable || matches!(ended, Ended::NotFit { .. } | Ended::NotBegun { .. }) {
            return;
        }
        let steer_time = self.shard.shared.settings.retry_steer_time;
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        for text in self.texts(unit) {
            let shape = || classify::shape_text(text, self.strings, super::effects::SHAPE_BYTES_MAX);
            let steered = &self.group.hidden.steered;
            steered.conflicted(classify::shape_hash(text), (ran, steer_time), task.now, shape);
        }
    }

    /// A task is over. Of one that was run again it is counted what became of it.
    pub(super) fn note_retried(&self, task: &Task<'_>, outcome: Option<RetryOutcome>) {
        let it = &task.interrupted;
        let Some(outcome) = outcome.filter(|_| it.times > 0) else { return };
        let added = it.again_at.filter(|_| outcome == RetryOutcome::Answered);
        let added = added.map(|at| at.saturating_duration_since(task.began));
        self.shard.counters.retried_reads.over(it.times, outcome as usize, added);
    }

    /// Which node a read is to have: any standby at first, another one after a conflict, and the primary for its last attempt or if
    /// the calmest standby cancels its like again and again, as far as that has places for them.
    pub(super) fn preference(
        &self,
        task: &mut Task<'_>,
        need: Need,
        terms: &Terms,
        snapshot: &Snapshot,
    ) -> Prefer {
        let (steer, is_cancelled) = (task.needs.steer, task.interrupted.conflict.is_some());
        if need == Need::Primary || (steer == Steer::Not && !is_cancelled) {
            return Prefer::LessBusy;
        }
        let settings = &self.shard.shared.settings;
        let is_last = is_cancelled && task.tries >= settings.retry_attempts;
        let is_steered = steer == Steer::Primary && !is_cancelled && terms.target != Some(Target::Standby);
        let primary = snapshot.primary_at(task.now).map(|view| view.node);
        let is_there =
            primary.is_some_and(|node| !self.shard.is_paused() && !self.shard.is_doubted(node, snapshot));
        let may_read_there = self.mode == Mode::Split && terms.no_standby == NoStandby::Primary && is_there;
        if (is_last || is_steered) && may_read_there && self.has_place(task, primary) {
            return Prefer::Primary;
        }
        Prefer::FewerConflicts
    }

    /// Whether a unit may run where it was sent: a read that standbys have cancelled may on the primary if there is a place for it.
    pub(super) fn may_run_at(&self, task: &mut Task<'_>, (node, side): (NodeId, Side), need: Need) -> bool {
        if side == Side::Standby {
            task.interrupted.place = None;
            return true;
        }
        need != Need::Read || task.interrupted.conflict.is_none() || self.has_place(task, Some(node))
    }

    /// Whether a read that standbys cancel may be on the primary, and takes its place if so.
    fn has_place(&self, task: &mut Task<'_>, primary: Option<NodeId>) -> bool {
        let Some(primary) = primary else { return false };
        let it = &mut task.interrupted;
        if it.place.is_none() {
            let pool = self.shard.pools.pool_of(&self.group, primary);
            let budget = self.shard.shared.settings.retry_primary_budget;
            it.place = match it.conflict {
                Some(_) => pool.place(budget),
                None => pool.place_beforehand(budget),
            };
            it.without_place = it.place.is_none() && it.conflict.is_some();
        }
        it.place.is_some()
    }

    /// Tells the client of the conflict by which a standby has cancelled its read, and why it is not run again. Gives `false`: there is
    /// nothing to go on with.
    pub(super) async fn pass_on_conflict(&mut self, task: &mut Task<'_>, why: &str) -> Flow<bool> {
        let conflict = task.interrupted.conflict.take().unwrap_or_default();
        let out = reply::with_hint(&conflict, &format!("pgsteer did not run it again: {why}."));
        if matches!(self.transaction, Transaction::Deferred { .. } | Transaction::Open) {
            self.transaction = Transaction::LOST_AND_TOLD;
        }
        self.end_unit(task, out).await?;
        Ok(false)
    }
}
