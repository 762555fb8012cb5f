//! A transaction on a standby that has told its client nothing is begun anew where its standby cancels or loses it; of any other the
//! client gets the standby's own error, at its next statement if nothing was under way.
//!
//! Invariant: nothing that was told is told again, and nothing that ran on the primary is run again: a transaction that began there is
//! never begun anew. Must not know: how nodes are judged.

use super::attempt::Sent;
use super::driver::{Attached, Flow, Session};
use super::hidden::Reads;
use super::inspect::Inspect;
use super::outcome::{self, Loss};
use super::run::{RetryCause, Task, Tried};
use super::settings::Touched;
use super::shard::SuspectCause;
use super::so_far::SoFar;
use super::transaction::{OnlyRead, Transaction};
use super::unit::{Kind, Needs};
use crate::classify::{AccessMode, TransactionEffect};
use crate::route::Need;
use crate::telemetry::metrics::Side;
use crate::wire::reply::{self, Report, TransactionStatus};
use crate::wire::sqlstate::{self, SqlState};

impl Session {
    /// Whether nothing of the transaction that a statement belongs to has been told before it, but that what came before succeeded.
    pub(super) fn has_told_nothing(&self) -> bool {
        match self.transaction {
            Transaction::None | Transaction::Deferred { .. } => true,
            Transaction::Open => self.so_far.is_some(),
            Transaction::Failed | Transaction::Lost { .. } => false,
        }
    }

    /// Whether the transaction can only read, as far as its server is a standby: cursors and savepoints are of no account elsewhere.
    pub(super) fn only_reads(&self) -> bool {
        match &self.transaction {
            Transaction::Deferred { serializable: true, .. } => false,
            Transaction::Deferred { access, .. } => *access == AccessMode::ReadOnly || self.is_for_standbys(),
            Transaction::Open => self.so_far.is_some(),
            Transaction::None | Transaction::Failed | Transaction::Lost { .. } => false,
        }
    }

    /// Notes where the transaction stands behind a unit that is still in its window, and how it would be begun anew. `rows`: the shape of
    /// rows that it told last.
    pub(super) fn note_transaction(
        &mut self,
        task: &Task<'_>,
        side: Side,
        (sent, status): (&Sent, TransactionStatus),
        rows: Option<u64>,
    ) {
        let goes_on = status == TransactionStatus::InTransaction && side == Side::Standby && !sent.failed;
        let before = std::mem::replace(&mut self.transaction, Transaction::from_status(status));
        let known = self.so_far.take();
        // One that was passed through in parts is not in its window, and has told what it told.
        if goes_on && task.bytes > 0 && task.beyond == 0 {
            let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
            let unit = (unit, task.needs.in_read_only);
            self.so_far = SoFar::after(before, known, unit, &self.names, rows);
        }
    }

    /// Whether the open transaction has done nothing but read, and has left nothing in its session. At endpoints for standbys it is not
    /// known to be READ ONLY. `owed`: what is to be asked of its server.
    pub(super) fn has_only_read(&self, side: Side, owed: Inspect) -> bool {
        let is_open = self.transaction == Transaction::Open && self.pins.is_empty();
        // Before the catalogue is known any read may have set something by a function that its text does not show; none is known to. Who
        // answers in its stead has it looked up (`owed_by_lost`).
        let is_untouched =
            self.touched == Touched::Nothing && matches!(owed, Inspect::Nothing | Inspect::Precaution);
        is_open && is_untouched && side == Side::Standby && !self.is_for_standbys()
    }

    /// What is still to be asked of a standby that is lost with its question: of what was to be asked as a precaution the catalogue says
    /// whether it would have had anything to tell. Only where the end of a transaction depends on it: what reads have set is rolled back
    /// by anything but a COMMIT.
    pub(super) async fn owed_by_lost(&mut self, owed: Inspect, needs: &Needs) -> Inspect {
        if owed != Inspect::Precaution || !needs.commits {
            return owed;
        }
        match self.look_up_reads().await {
            Reads::Never => Inspect::Nothing,
            Reads::MayChange | Reads::NotKnown => Inspect::All,
        }
    }

    /// A COMMIT of a transaction comes whose server was lost while it was idle: whether it has only read is known by then.
    pub(super) async fn settle_only_read(&mut self, needs: &Needs) {
        if let Transaction::Lost { told: false, only_read: OnlyRead::ByItsText } = self.transaction
            && needs.transaction == TransactionEffect::Commit
        {
            let only_read = match self.owed_by_lost(Inspect::Precaution, needs).await {
                Inspect::Nothing => OnlyRead::Yes,
                _ => OnlyRead::No,
            };
            self.transaction = Transaction::Lost { told: false, only_read };
        }
    }

    /// The open transaction, of which nothing was told, is begun anew by the statement that comes next. Its server is of no use for it
    /// any more.
    pub(super) fn begin_anew(&mut self) {
        if let (Transaction::Open, Some(so_far)) = (&self.transaction, self.so_far.take()) {
            self.transaction = so_far.deferred();
        }
    }

    /// Whether a transaction on a standby goes to the primary with this unit, as it would have gone had the unit been its first: its client
    /// has been told nothing that the primary could tell otherwise.
    pub(super) fn leads_to_primary(&self, task: &Task<'_>) -> bool {
        let on_standby = self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby);
        if !on_standby || self.transaction != Transaction::Open || self.so_far.is_none() || self.is_in_batch()
        {
            return false;
        }
        // Of a text that is not here nothing is known: that is no reason to leave.
        let is_known = task.beyond == 0 && task.needs.statements > 0;
        let whole = matches!(task.kind, Kind::Simple | Kind::Synced) && is_known;
        let runs = match task.needs.transaction {
            TransactionEffect::None => true,
            TransactionEffect::SetTransaction { access, serializable } => {
                access == AccessMode::ReadWrite || serializable
            }
            _ => false,
        };
        whole && runs && task.needs.need == Need::Primary && !self.is_for_standbys() && self.pins.is_empty()
    }

    /// What a transaction had run before could not be run again in its place: nothing of the unit has run.
    pub(super) async fn not_begun_anew(
        &mut self,
        task: &mut Task<'_>,
        attached: Attached,
        code: SqlState,
        message: &str,
    ) -> Flow<Tried> {
        let (node, side) = (attached.node, attached.side);
        drop(attached);
        *self.control.runs_at.borrow_mut() = None;
        let again = task.tries < self.shard.shared.settings.retry_attempts;
        if side == Side::Standby && again && sqlstate::is_recovery_conflict(code) {
            task.excluded.push(node);
            return Ok(Tried::Again(RetryCause::Conflict));
        }
        let report = match code {
            sqlstate::QUERY_CANCELED => outcome::cancelled(),
            _ => outcome::not_begun_anew(code, message),
        };
        self.refuse(task, &report).await?;
        Ok(Tried::Over)
    }

    /// The server of a transaction is gone while its client is idle: the client notices nothing, or is told at its next statement.
    pub(super) fn transaction_lost_while_idle(&mut self, loss: Loss) {
        let (cause, suspect) = match loss.conflict {
            Some(_) => (RetryCause::Conflict, None),
            None => (RetryCause::ServerLost, Some(SuspectCause::ConnectionLost)),
        };
        let only_read = match &self.attached {
            Some(it) if !self.has_only_read(it.side, it.inspect) => OnlyRead::No,
            Some(it) if it.inspect == Inspect::Precaution => OnlyRead::ByItsText,
            Some(_) => OnlyRead::Yes,
            None => OnlyRead::No,
        };
        self.detach_lost(suspect);
        let again = loss.may_run_again && self.shard.shared.settings.retry_attempts > 0;
        if self.transaction == Transaction::Open && self.so_far.is_some() && again {
            self.shard.counters.retries.at(cause as usize).inc();
            return self.begin_anew();
        }
        if self.transaction == Transaction::Failed {
            // It has its error already, and nothing but its end is still to come.
            self.transaction = Transaction::LOST_AND_TOLD;
            return;
        }
        self.owed = loss.conflict.map(|error| words(&error, EARLIER_ANSWERS).into());
        self.transaction = Transaction::Lost { told: false, only_read };
    }

    /// What a client is told of a loss: in the standby's words where that has cancelled it.
    pub(super) fn told_of(&self, loss: &Loss, report: &Report, not_run_again: &str) -> Vec<u8> {
        self.shard.counters.error(report.code.as_str());
        match &loss.conflict {
            Some(error) if report.code == sqlstate::SERIALIZATION_FAILURE => words(error, not_run_again),
            _ => {
                let mut out = Vec::new();
                report.put(&mut out);
                out
            }
        }
    }

    /// Sends what the client is still to be told of a batch that was lost while it waited for nothing.
    pub(super) async fn send_owed(&mut self) -> Flow<()> {
        match self.owed.take() {
            Some(owed) => self.send_client(&owed).await,
            None => Ok(()),
        }
    }

    /// What a client is told in a transaction whose server was lost.
    pub(super) fn tell_lost(&mut self, told: bool) -> Vec<u8> {
        if let (false, Some(owed)) = (told, self.owed.take()) {
            self.shard.counters.error(sqlstate::SERIALIZATION_FAILURE.as_str());
            return owed.into();
        }
        let report = outcome::in_lost_transaction(told);
        self.shard.counters.error(report.code.as_str());
        let mut out = Vec::new();
        report.put(&mut out);
        out
    }
}

/// Why an idle transaction is not begun anew.
const EARLIER_ANSWERS: &str = "the answers to earlier statements of its transaction had been passed on";

/// The error by which a standby has ended a session for the sake of its replay, as that of a statement: the client's session goes on.
fn words(error: &[u8], not_run_again: &str) -> Vec<u8> {
    let hint = format!("pgsteer did not run it again: {not_run_again}. The connection to pgsteer goes on.");
    reply::with_hint(&reply::as_error(error), &hint)
}
