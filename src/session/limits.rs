//! What the limits of its pools mean for a session: how long it may be idle, and how long it keeps its server.
//!
//! Invariant: in pool mode `session` a session that has run something keeps its primary connection to its end, and nobody else
//! gets that connection before it was reset whole. Must not know: how connections are got.

use std::time::Duration;

use tokio::net::TcpStream;

use super::driver::{Attached, End, Flow, Session};
use super::transaction::Transaction;
use super::{RESET_TIMEOUT, outcome};
use crate::classify::PinReason;
use crate::pool::Mode;
use crate::wire::reply::{OwnProcess, Report};

/// A limit on how long the client may do nothing.
struct IdleLimit {
    limit: Duration,
    /// What the client is told.
    report: fn(between: bool, limit: Duration) -> Report,
}

impl Session {
    /// Pool mode `session`: reads, too, go to the one server.
    pub(super) fn keeps_server(&self) -> bool {
        self.group.limits().mode == Mode::Session
    }

    /// Something has run: in pool mode `session` this is its server from now on.
    pub(super) fn keep_server(&mut self) {
        if self.keeps_server() {
            self.add_pin(PinReason::PoolMode);
        }
    }

    /// At the session's end: in pool mode `session` a connection on which nothing is under way is reset for the next session;
    /// any other is closed, and the server ends what is open there.
    pub(super) fn part_from(&self, attached: Attached) {
        let resets = |pin: &PinReason| {
            // DISCARD ALL leaves loaded libraries and the random seed, and what is not known.
            let resets = matches!(pin, PinReason::PoolMode) || !pin.outlives_discard_all();
            resets && *pin != PinReason::Unseen
        };
        let nothing_under_way = attached.batch.is_none()
            && matches!(self.transaction, Transaction::None)
            && !attached.spoiled
            && !self.control.cancel_sent.get()
            && !self.control.cut.get();
        if self.keeps_server() && nothing_under_way && self.pins.iter().all(resets) {
            tokio::task::spawn_local(attached.lease.reset_and_release(RESET_TIMEOUT));
        }
    }

    /// Until the end of what the held server says by itself, its connection is in the middle of something. Gives what was
    /// known before.
    pub(super) fn begin_unsolicited(&mut self) -> bool {
        self.attached.as_mut().is_some_and(|attached| std::mem::replace(&mut attached.spoiled, true))
    }

    /// It has come to its end.
    pub(super) fn end_unsolicited(&mut self, spoiled: bool) {
        if let Some(attached) = &mut self.attached {
            attached.spoiled = spoiled;
        }
    }

    /// The pool's limit, and without a server that would look at it also the session's own setting: whichever is shorter.
    fn idle_limit(&self) -> Option<IdleLimit> {
        let between = self.is_between();
        let limits = self.group.limits();
        let (own, of_pool) = if between {
            (self.idle_limit, limits.client_idle_timeout)
        } else {
            (self.idle_in_transaction_limit, limits.idle_transaction_timeout)
        };
        let own = own.filter(|_| self.attached.is_none());
        let own = own.map(|limit| IdleLimit { limit, report: |between, _| outcome::idle_too_long(between) });
        let of_pool = of_pool.map(|limit| IdleLimit { limit, report: outcome::idle_timeout });
        own.into_iter().chain(of_pool).min_by_key(|it| it.limit)
    }

    /// How long a client may leave a message unfinished of which a server has the beginning. A session's own settings are the
    /// server's to hold it to: for PostgreSQL, too, it is idle until its message is whole.
    pub(super) fn silence_limit(&self, between: bool) -> Option<Duration> {
        let limits = self.group.limits();
        if between { limits.client_idle_timeout } else { limits.idle_transaction_timeout }
    }

    /// A client has left a message unfinished for so long. Its server connection is closed.
    pub(super) fn silent_for_too_long(&self, between: bool, inside_frame: bool) -> End {
        match self.silence_limit(between) {
            Some(limit) if !inside_frame => End::Told(Box::new(outcome::idle_timeout(between, limit))),
            _ => End::Client,
        }
    }

    /// Waits for the client as long as it may be idle. Cancel-safe if `wait` is.
    pub(super) async fn within_idle_limit<T>(&self, wait: impl Future<Output = T>) -> Flow<T> {
        let Some(idle) = self.idle_limit() else { return Ok(wait.await) };
        let waited = tokio::time::timeout(idle.limit, wait).await;
        waited.map_err(|_| self.idle_for_too_long(&idle))
    }

    /// The same while a server is held.
    pub(super) async fn wait_beside_within_limit(
        &mut self,
        stream: &TcpStream,
        own: &OwnProcess,
    ) -> Flow<()> {
        let Some(idle) = self.idle_limit() else { return self.wait_beside(stream, own).await };
        match tokio::time::timeout(idle.limit, self.wait_beside(stream, own)).await {
            Ok(waited) => waited,
            Err(_) => Err(self.idle_for_too_long(&idle)),
        }
    }

    fn idle_for_too_long(&self, idle: &IdleLimit) -> End {
        // A client that does not read has the beginning of a message, inside which nothing can be said.
        if self.control.speaking.get() {
            return End::Client;
        }
        let between = self.is_between();
        End::Told(Box::new((idle.report)(between, idle.limit)))
    }
}
