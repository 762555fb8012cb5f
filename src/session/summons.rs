//! One client's server process, for whoever wants to cancel or end that client by the process id of its login.
//!
//! A client's process id is no server process. Where a statement hands it to `pg_cancel_backend` or `pg_terminate_backend` the
//! server process of that client's session is put in its place; whether it may be signalled is the server's to judge. An idle
//! session takes a server connection for that and keeps it until its next statement, so that what happens to the process happens
//! to the session.
//!
//! Invariant: a session that is in the middle of something is never disturbed; who can't be found is left to the server, for which
//! such a number is no process. Must not know: how the numbers are written.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::driver::Session;
use super::run::Task;
use super::signals;
use super::unit::Needs;
use crate::backend::connection::CancelKey;
use crate::classify::PinReason;
use crate::relay::buffer::Window;
use crate::wire::reply::OwnProcess;

/// How long another session is waited for, and a server connection for it.
const SUMMONS_LIMIT: Duration = Duration::from_secs(1);

/// Whoever was told a server process has signalled it by then.
const SIGNAL_COMES_WITHIN: Duration = Duration::from_millis(300);

impl Session {
    /// Puts server processes in the place of clients' process ids.
    pub(super) async fn resolve_signals(&mut self, task: &mut Task<'_>) {
        task.needs.processes_resolved = true;
        let unit = task.window.filled().get(..task.bytes).unwrap_or_default();
        for found in signals::find(unit, &self.names) {
            if !signals::is_of_a_client(found.process_id) {
                continue;
            }
            let own = found.process_id == self.control.process_id.get();
            let process_id = if own {
                self.control.runs_at.borrow().as_ref().map(|key| key.process_id)
            } else {
                match (self.shard.shared.server_process)(found.process_id) {
                    Some(answered) => {
                        tokio::time::timeout(SUMMONS_LIMIT, answered).await.ok().and_then(Result::ok)
                    }
                    None => None,
                }
            };
            if let (Some(process_id), Some(unit)) =
                (process_id, task.window.filled_mut().get_mut(..task.bytes))
            {
                found.replace(unit, process_id);
            }
        }
    }

    /// Takes a server connection on the primary and tells those who have summoned the session which process it is.
    pub(super) async fn answer_summons(&mut self) {
        let process_id = match &self.attached {
            Some(_) => self.control.runs_at.borrow().as_ref().map(|key| key.process_id),
            None => self.take_connection().await,
        };
        for answer in self.control.take_summons() {
            if let Some(process_id) = process_id {
                // Who asked may have given up.
                let _ = answer.send(process_id);
            }
        }
    }

    async fn take_connection(&mut self) -> Option<i32> {
        let mut nothing = Window::new(Box::default());
        let mut task = Task::without_bytes(&mut nothing, Needs::primary());
        let taken =
            tokio::time::timeout(SUMMONS_LIMIT, self.attach_quietly(&mut task)).await.unwrap_or(false);
        self.control.begin_pending.set(false);
        if !taken {
            return None;
        }
        self.summoned = !self.pins.contains(&PinReason::BackendPid);
        if self.summoned {
            self.pins.push(PinReason::BackendPid);
        }
        self.control.runs_at.borrow().as_ref().map(|key| key.process_id)
    }

    /// The server process with this key, which is the session's for the moment, by its two names: one who has asked for the
    /// server's own compares with that.
    pub(super) fn own_process(&self, server: &CancelKey) -> OwnProcess {
        OwnProcess {
            server: server.process_id,
            client: if self.has_asked_for_process() {
                server.process_id
            } else {
                self.control.process_id.get()
            },
            others: Rc::clone(&self.shard.clients),
        }
    }

    /// The client knows its server by the server's process id.
    pub(super) fn has_asked_for_process(&self) -> bool {
        !self.summoned && self.pins.contains(&PinReason::BackendPid)
    }

    /// Somebody has been told the session's server process, or all that keeps it there is that somebody knows it: the end of that
    /// process is the session's, in the server's own words.
    pub(super) fn is_known_by_process(&self) -> bool {
        self.pins == [PinReason::BackendPid] || self.control.sought.get()
    }

    /// The next statement of a session that was summoned: it is free again.
    pub(super) fn end_summons(&mut self) {
        if std::mem::take(&mut self.summoned) {
            self.pins.retain(|pin| *pin != PinReason::BackendPid);
        }
    }

    /// Somebody has been told the session's server process, just now or while the statement ran.
    pub(super) fn is_sought(&self, now: Instant) -> bool {
        let just_told = |at: Instant| now.saturating_duration_since(at) < SIGNAL_COMES_WITHIN;
        self.control.sought.get() || self.control.sought_at.get().is_some_and(just_told)
    }

    /// Somebody was told the process while the statement ran that has ended now, or shortly before: the signal may still be to come, and
    /// is not to hit whoever would get that process next. So it is kept, as if the session had been summoned.
    pub(super) fn is_to_be_signalled(&mut self, now: Instant) -> bool {
        let is_sought = self.is_sought(now);
        self.control.sought.set(false);
        if is_sought {
            self.summoned = true;
            self.pins.push(PinReason::BackendPid);
        }
        is_sought
    }
}
