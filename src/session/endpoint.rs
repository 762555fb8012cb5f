//! What is different for a session whose endpoint is for standbys, and whether one that stays on its server may go on there.
//!
//! Invariant: a session of a standby endpoint runs nothing on a node that is known not to be a standby, and nothing outside of the
//! lag budget but the rest of a transaction that it has begun. Must not know: how nodes are judged.

use super::driver::{End, Flow, Session};
use super::hold::Hold;
use super::outcome;
use super::run::Task;
use super::standby_wait::WithoutStandby;
use crate::classify::{Consistency, NoStandby};
use crate::route::{Mode, Need, Terms};
use crate::telemetry::metrics::Side;
use crate::topology::model::{NodeId, Readers, Role};

/// How a node stands to a session that stays on it.
enum Standing {
    /// It may go on.
    Good,
    /// It does not know enough, its replay must go on, or nothing is known of it: that may pass.
    Stale,
    /// It is no standby any more.
    Promoted,
}

impl Session {
    /// Whether all that the session does is meant for standbys.
    pub(super) fn is_for_standbys(&self) -> bool {
        matches!(self.mode, Mode::Standby | Mode::PreferStandby)
    }

    /// What a unit needs of its node by the endpoint that the session came in by.
    pub(super) fn need_at_endpoint(&self, of_unit: Need) -> Need {
        match self.mode {
            Mode::Split | Mode::Primary => of_unit,
            Mode::Standby => Need::Standby,
            // The primary has it if no standby may.
            Mode::PreferStandby => Need::Read,
        }
    }

    /// What the session's reads promise: who comes in by an endpoint for standbys has asked for them.
    pub(super) fn consistency_at_endpoint(&self, consistency: Consistency) -> Consistency {
        match consistency {
            Consistency::Primary if self.is_for_standbys() => Consistency::Session,
            consistency => consistency,
        }
    }

    /// Looks whether a session that stays on its server may run its next unit there; `false` when the client has been told why not.
    pub(super) async fn may_go_on(&mut self, task: &mut Task<'_>) -> Flow<bool> {
        if self.transaction.is_on_server() || self.is_in_batch() {
            return Ok(true);
        }
        if !self.is_for_standbys() {
            return self.waits_for_end_of_pause(task).await;
        }
        let mut hold: Option<Hold> = None;
        while let Some(node) = self.attached.as_ref().map(|attached| attached.node) {
            match self.standing(node, task) {
                Standing::Good => return Ok(true),
                Standing::Stale => {
                    let terms = Terms { no_standby: NoStandby::Error, ..self.terms(&task.needs) };
                    let goes_on = if self.terms(&task.needs).limits_wait() {
                        self.wait_for_own_standby(task, &terms).await?
                    } else {
                        self.hold_attached(&mut hold, task).await?
                    };
                    if !goes_on {
                        return Ok(false);
                    }
                }
                Standing::Promoted => {
                    self.detach();
                    let cause = "The standby is none any more";
                    return Err(End::Told(Box::new(outcome::pinned_server_lost(&self.pins, cause))));
                }
            }
        }
        Ok(true)
    }

    /// The wait of a session that stays on a standby for just that one, as long as its terms say.
    async fn wait_for_own_standby(&mut self, task: &mut Task<'_>, terms: &Terms) -> Flow<bool> {
        // As in a hold: nothing of the unit has been sent.
        self.control.begin_pending.set(true);
        let goes_on = match self.without_standby(task, terms) {
            WithoutStandby::Wait(until) => self.wait_for_standby(task, until).await?,
            WithoutStandby::Primary | WithoutStandby::Refuse => {
                let report = outcome::no_standby_within_bounds(task.waited_for_standby);
                self.refuse(task, &report).await?
            }
        };
        if !goes_on {
            self.control.begin_pending.set(false);
        }
        Ok(goes_on)
    }

    /// A pause holds those, too, that stay on the primary: its end may be the end of what keeps them there.
    async fn waits_for_end_of_pause(&mut self, task: &mut Task<'_>) -> Flow<bool> {
        let on_primary = self.attached.as_ref().is_some_and(|attached| attached.side == Side::Primary);
        let mut hold: Option<Hold> = None;
        let mut may_go_on = Ok(true);
        while on_primary && self.shard.is_paused() && matches!(may_go_on, Ok(true)) {
            self.control.paused.set(true);
            may_go_on = self.hold_attached(&mut hold, task).await;
        }
        self.control.paused.set(false);
        may_go_on
    }

    /// The hold of a session that has a server: nothing of the unit has been sent there, so a cancel ends the wait.
    async fn hold_attached(&mut self, hold: &mut Option<Hold>, task: &mut Task<'_>) -> Flow<bool> {
        self.control.begin_pending.set(true);
        let held = self.hold(hold, task).await?;
        if !held {
            self.control.begin_pending.set(false);
        }
        Ok(held)
    }

    fn standing(&mut self, node: NodeId, task: &Task<'_>) -> Standing {
        let others_commit = self.others_commit(task.now);
        let snapshot = self.shard.snapshot.borrow();
        self.freshness.settle(&snapshot, others_commit);
        let Some(view) = snapshot.node(node) else { return Standing::Stale };
        match view.role {
            Role::Standby => {
                let Terms { max_lag, max_lag_bytes, .. } = self.terms(&task.needs);
                let in_time =
                    snapshot.staleness(view, task.now).is_some_and(|staleness| staleness <= max_lag);
                // Where it stays it goes on seeing what it saw; a token asks for more.
                let has_brought = !self.freshness.has_brought() || self.freshness.admits(view, &snapshot);
                let fresh =
                    has_brought && in_time && max_lag_bytes.admits(snapshot.lag_bytes(view, task.now));
                if fresh && view.readers == Readers::MayStay { Standing::Good } else { Standing::Stale }
            }
            Role::Primary if self.mode == Mode::PreferStandby => Standing::Good,
            Role::Unknown => Standing::Stale,
            _ => Standing::Promoted,
        }
    }
}
