//! What becomes of what the server says in an exchange: errors, notices, news of parameters, the end of the answer.
//!
//! Invariant: an error is held back only where the unit can be run again; of parameters the client hears what is news to it.
//! Must not know: routing, what the statements are.

use std::cell::Cell;

use super::{Ended, Exchange, Parting, Rules, Through};
use crate::wire::frame;
use crate::wire::reply::{self, TransactionStatus};
use crate::wire::sqlstate::{self, SqlState};

impl Exchange<'_> {
    /// Whether an end of the session is no loss of its server: it was meant, or is the server's answer to what it was asked (an error
    /// inside of it that is no PANIC, which all servers of the node would not outlive).
    pub(super) fn dismisses(&self, code: SqlState) -> bool {
        let may_be_meant = self.may_end_itself || self.sought.is_some_and(Cell::get);
        let may_run_again = self.rules.hold_back() && !self.delivered;
        if code == sqlstate::UNSPECIFIED && !may_run_again && !reply::is_panic(self.answer.body()) {
            return true;
        }
        (sqlstate::dismisses(code) && code != sqlstate::IDLE_SESSION_TIMEOUT)
            || (may_be_meant && code == sqlstate::ADMIN_SHUTDOWN)
    }

    pub(super) async fn notice(&mut self, fields: reply::ErrorFields) -> Result<(), Ended> {
        if matches!(fields.code, sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN) {
            self.end_frame().await?;
            self.ended_by = Some(fields.code);
            let cause = format!("The server said: {}", reply::error_message(self.answer.body()));
            return Err(Ended::ServerLost { cause, parting: Parting::Announced });
        }
        self.answer.accept();
        Ok(())
    }

    /// The last ReadyForQuery has come.
    pub(super) async fn complete(&mut self, status: TransactionStatus) -> Result<(), Ended> {
        if self.plan_changed {
            return Err(Ended::PlanChanged);
        }
        if let Some(code) = self.refused {
            return Err(Ended::Refused(code));
        }
        // The server has said all: it waits for nobody.
        self.leaves = None;
        self.flush().await?;
        self.through = self.through.at_the_end();
        if self.through == Through::Nothing && self.out.is_empty() && !self.answer.has_unscanned() {
            return Err(Ended::Complete(status));
        }
        self.finishing = Some(status);
        Ok(())
    }

    /// The server is about to be given up. Of a frame of which the client has a part, the rest may be here: it must have it
    /// before anything else can be said.
    pub(super) async fn end_frame(&mut self) -> Result<(), Ended> {
        if self.delivered { self.flush().await } else { Ok(()) }
    }

    /// All replies to a batch without Sync have come: ends the exchange, at once or at the end of a frame under way.
    pub(super) async fn settle(&mut self) -> Result<(), Ended> {
        self.flush().await?;
        self.through = self.through.at_the_end();
        if self.through == Through::Nothing && self.out.is_empty() {
            return Err(Ended::Settled);
        }
        self.settling = true;
        Ok(())
    }

    pub(super) fn note_begun(&mut self) {
        if self.answer.has_begun()
            && let Some(begun) = self.on_begun.take()
        {
            begun();
        }
    }

    pub(super) fn error(&mut self, fields: reply::ErrorFields) -> Result<(), Ended> {
        if fields.ends_session {
            let message = reply::error_message(self.answer.body());
            self.ended_by = Some(fields.code);
            let is_conflict = self.standby.is_some() && sqlstate::is_recovery_conflict(fields.code);
            if is_conflict {
                self.own_error = Some(reply::as_error(&self.answer.frame()));
            }
            let untouched =
                self.answer.last_status().is_none() && !self.answer.has_begun() && !self.answer.has_results();
            return Err(Ended::ServerLost {
                cause: format!("The server said: {message} ({})", fields.code),
                parting: if is_conflict {
                    Parting::Conflict(self.answer.frame())
                } else {
                    Parting::by(fields.code, untouched)
                },
            });
        }
        if self.answer.is_discarding() {
            // One that can't count its answers is not to be trusted with the next. Nothing of this one has been passed on.
            let cause = "The server sent a second error in one answer".to_owned();
            return Err(Ended::ServerLost { cause, parting: Parting::Unexplained });
        }
        self.forgetful |= self.failed.is_some();
        // Another session has closed what it never prepared (DEALLOCATE ALL in a function): the server has less than is believed.
        let missing = fields.code == sqlstate::INVALID_SQL_STATEMENT_NAME && self.answer.tells_own_name();
        self.forgetful |= missing;
        if (fields.plan_changed || missing) && self.heals() {
            self.plan_changed = true;
            self.answer.discard();
        } else if !self.delivered && self.rules.is_refusal(fields.code, self.answer.has_results()) {
            if self.rules == Rules::Own || sqlstate::is_recovery_conflict(fields.code) {
                let mut frame = Vec::new();
                frame::put(&mut frame, b'E', &[self.answer.body()]);
                self.own_error = Some(frame);
            }
            self.refused = Some(fields.code);
            self.answer.discard();
        } else {
            self.failed = self.failed.or(Some(fields.code));
            match &self.standby {
                // What a standby cancels for the sake of its replay nobody else would.
                Some(standby)
                    if sqlstate::is_recovery_conflict(fields.code) && !self.answer.is_discarding() =>
                {
                    let hint = format!("pgsteer did not run it again: {}.", standby.not_run_again);
                    self.answer.accept_with_hint(&hint);
                }
                _ => self.answer.accept(),
            }
        }
        Ok(())
    }

    /// A statement that pgsteer put in before the unit got an error.
    pub(super) fn not_fit(&mut self, fields: reply::ErrorFields) -> Ended {
        if self.answer.is_at_begin() {
            return Ended::NotBegun { code: fields.code, error: self.answer.frame() };
        }
        if self.standby.is_some() && sqlstate::is_recovery_conflict(fields.code) {
            // What a transaction had run before is cancelled there like the read itself.
            self.own_error = Some(self.answer.frame());
        }
        Ended::NotFit { code: fields.code, message: reply::error_message(self.answer.body()) }
    }

    /// Whether nothing of a unit outside of a transaction has had an effect or reached the client. What is executed may have
    /// had one whatever its error says: a procedure commits in the middle.
    fn heals(&self) -> bool {
        self.rules.heal() && !self.delivered && !self.answer.has_results() && self.answer.is_before_execute()
    }

    pub(super) fn parameter_status(&mut self) {
        let body = self.answer.body();
        let Some((name, reported)) = reply::parameter_status(body) else { return self.answer.accept() };
        if name == "in_hot_standby" {
            // The client's endpoint is a standby or is none, wherever a read of its ran; see `tell` for those that are both.
            *self.in_hot_standby = reported == "on";
            return self.answer.discard();
        }
        self.reported.report(name, reported);
        if self.answer.is_in_preamble() {
            // If it is still so at the client's ReadyForQuery, and news, it is told there.
            return self.answer.discard();
        }
        let value = self.resets_to.and_then(|login| login.value(name)).unwrap_or(reported);
        let news =
            !self.answer.is_discarding() && self.news.as_ref().unwrap_or(self.told).is_news(name, value);
        if news {
            self.news.get_or_insert_with(|| self.told.clone()).report(name, value);
        }
        if news && value == reported {
            return self.answer.accept();
        }
        let mut told = Vec::new();
        if news {
            reply::put_parameter_status(&mut told, name, value);
        }
        self.answer.discard();
        if news {
            self.answer.put_in(&told);
        }
    }

    /// Rows that the client would misread are on their way: it gets an error instead.
    pub(super) fn rows_changed(&mut self) {
        let mut error = Vec::new();
        reply::put_plan_changed(&mut error);
        self.failed = self.failed.or(Some(sqlstate::FEATURE_NOT_SUPPORTED));
        self.answer.mute(&error);
    }

    /// The client's ReadyForQuery is next. What pgsteer's own statements and the client's changed and changed back, the server
    /// does not report; to the client it may be news.
    pub(super) fn tell(&mut self) {
        if self.answer.is_discarding() {
            return;
        }
        let known = self.news.as_ref().unwrap_or(self.told);
        let seen = |name, value| self.resets_to.and_then(|login| login.value(name)).unwrap_or(value);
        let beyond = self.reported.beyond(known).map(|(name, value)| (name, seen(name, value)));
        let mut beyond: Vec<(String, String)> = beyond
            .filter(|(name, value)| known.is_news(name, value))
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        let recovery = if *self.in_hot_standby { "on" } else { "off" };
        if self.tells_recovery && known.is_news("in_hot_standby", recovery) {
            beyond.push(("in_hot_standby".to_owned(), recovery.to_owned()));
        }
        let mut out = Vec::new();
        for (name, value) in &beyond {
            reply::put_parameter_status(&mut out, name, value);
            self.news.get_or_insert_with(|| self.told.clone()).report(name, value);
        }
        self.answer.put_in(&out);
    }
}
