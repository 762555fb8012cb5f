//! What a session says when pgsteer does not wait for it any longer: what is known of its work, if that can still be said.
//!
//! Invariant: "rolled back" only when no COMMIT was sent; nothing is said inside a message. Must not know: why pgsteer ends.

use super::driver::{End, Session};
use super::outcome::{self, Fate};
use super::transaction::Transaction;
use super::unit::Needs;
use crate::telemetry::metrics::Side;

impl Session {
    /// Whatever the session was waiting for has been dropped, and it was not an exchange that could end itself.
    pub(super) fn last_words(&mut self) -> End {
        if self.control.speaking.get() {
            return End::Client;
        }
        let Some(attached) = &self.attached else {
            let sent = self.control.runs_at.borrow_mut().take();
            if let Some(key) = sent {
                // An exchange whose client does not read: a part of a message may be out.
                self.shard.cancel_at(&key);
                return End::Client;
            }
            return told(self.fate_of_what_waits());
        };
        let Some(batch) = &attached.batch else { return told(self.fate_of_what_waits()) };
        if batch.answer.inside_frame() {
            return End::Client;
        }
        told(self.fate_of_what_was_sent(batch.commits, batch.repeatable, attached.side))
    }

    /// An exchange was cut short. `unsent`: nothing of the unit, or of what the unit continues, has been sent.
    pub(super) fn cut_short(&mut self, needs: &Needs, side: Side, unsent: bool, inside_message: bool) -> End {
        let ran_at = self.control.runs_at.borrow_mut().take();
        // A COMMIT is left to its end: stopped while it waits for a standby, it would be visible without being safe.
        if let Some(key) = ran_at
            && !unsent
            && !needs.commits
        {
            self.shard.cancel_at(&key);
        }
        if inside_message {
            return End::Client;
        }
        told(if unsent {
            self.fate_of_what_waits()
        } else {
            self.fate_of_what_was_sent(needs.commits, needs.repeatable, side)
        })
    }

    /// Nothing is under way at a server but the transaction itself.
    fn fate_of_what_waits(&self) -> Fate {
        match self.transaction {
            Transaction::Open | Transaction::Failed | Transaction::Lost { .. } => Fate::RolledBack,
            Transaction::None if self.control.idle.get() => Fate::Idle,
            Transaction::None | Transaction::Deferred { .. } => Fate::NotRun,
        }
    }

    /// By the rules of `server_lost`.
    fn fate_of_what_was_sent(&self, commits: bool, repeatable: bool, side: Side) -> Fate {
        let alone = matches!(self.transaction, Transaction::None);
        if alone && repeatable && side == Side::Standby {
            Fate::OnlyRead
        } else if alone || commits {
            Fate::Unknown
        } else {
            Fate::RolledBack
        }
    }
}

fn told(fate: Fate) -> End {
    End::Told(Box::new(outcome::cut_short(fate)))
}
