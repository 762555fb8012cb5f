//! Waits for the client, beside whatever else may speak meanwhile: a held server, a time limit, the drain.
//!
//! Invariant: between transactions a session without a server keeps nothing but its wait. Must not know: what the client
//! sends.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::Poll;

use tokio::net::TcpStream;

use super::driver::{End, Flow, Rest, Session};
use super::outcome::{self, Loss};
use super::shard::SuspectCause;
use super::transaction::Transaction;
use crate::net;
use crate::relay::answer::{Answer, Event};
use crate::telemetry::metrics::Side;
use crate::wire::reply::{self, OwnProcess};
use crate::wire::sqlstate;

/// How a held server ends while nothing is under way.
enum Parting {
    /// It is gone; why.
    Lost(Loss),
    /// It ended the session on purpose, and its words are ready for the client.
    Dismissed,
}

impl Session {
    /// Waits for the client as a session that keeps nothing for its next statement.
    pub(super) async fn wait_cold(&mut self) -> Flow<Option<Rest>> {
        self.enter_idle()?;
        let wait = poll_fn(|context| {
            if self.control.is_summoned() {
                return Poll::Ready(Ok(Some(Rest::Summoned)));
            }
            self.client.poll_read_ready(context).map(|ready| ready.map(|()| None))
        });
        let ready = self.within_idle_limit(wait).await;
        self.control.idle.set(false);
        ready?.map_err(|_| End::Client)
    }

    /// Between transactions: the drain ends the session, a cancel request finds nothing to cancel.
    fn enter_idle(&self) -> Flow<()> {
        // A transaction that was begun may go on during a drain, even if nothing of it has been sent yet.
        let between = !matches!(self.transaction, Transaction::Deferred { .. });
        if self.shard.draining.get() && between {
            return Err(End::Told(Box::new(outcome::shutting_down())));
        }
        self.control.idle.set(between);
        self.control.rest();
        Ok(())
    }

    /// Waits for the client's next bytes; between transactions without holding anything. `Some`: there were none for a while.
    pub(super) async fn wait_idle(&mut self) -> Flow<Option<Rest>> {
        if self.attached.is_some() {
            return self.wait_attached().await.map(|()| None);
        }
        self.enter_idle()?;
        let wait = poll_fn(|context| {
            if let Poll::Ready(ready) = self.client.poll_read_ready(context) {
                return Poll::Ready(ready.map(|()| None));
            }
            if self.control.is_summoned() {
                return Poll::Ready(Ok(Some(Rest::Summoned)));
            }
            if self.control.cooling.replace(false) {
                return Poll::Ready(Ok(Some(Rest::Cooled)));
            }
            Poll::Pending
        });
        let waited = self.within_idle_limit(wait).await;
        self.control.idle.set(false);
        self.control.active.set(true);
        waited?.map_err(|_| End::Client)
    }

    /// The same while a server connection is held: what the server says by itself is passed on.
    pub(super) async fn wait_attached(&mut self) -> Flow<()> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        self.control.rest();
        if attached.batch.is_some() {
            return self.wait_in_batch().await;
        }
        let Some(server) = attached.lease.server() else { return Ok(()) };
        let (link, key) = (Rc::clone(&server.link), Rc::clone(&server.cancel_key));
        let own = self.own_process(&key);
        let between = matches!(self.transaction, Transaction::None);
        if between && self.shard.draining.get() {
            return Err(End::Told(Box::new(outcome::shutting_down())));
        }
        self.control.idle.set(between);
        let waited = self.wait_beside_within_limit(&link.stream, &own).await;
        self.control.idle.set(false);
        waited
    }

    /// Nothing of a transaction or batch is under way.
    pub(super) fn is_between(&self) -> bool {
        let in_batch = self.attached.as_ref().is_some_and(|attached| attached.batch.is_some());
        matches!(self.transaction, Transaction::None) && !in_batch
    }

    /// Waits for the rest of a batch, passing on what the server says meanwhile.
    async fn wait_in_batch(&mut self) -> Flow<()> {
        loop {
            let Some(attached) = &mut self.attached else { return Ok(()) };
            let Some(link) = attached.lease.server().map(|server| Rc::clone(&server.link)) else {
                return Ok(());
            };
            if !self.within_idle_limit(self.server_speaks(&link.stream)).await? {
                return Ok(());
            }
            drop(link);
            self.drain_server().await?;
        }
    }

    /// Waits until the client or the server has something to say; whether it is the server.
    async fn server_speaks(&self, server: &TcpStream) -> bool {
        poll_fn(|context| {
            let speaks = server.poll_read_ready(context).is_ready();
            if speaks || self.client.poll_read_ready(context).is_ready() {
                Poll::Ready(speaks)
            } else {
                Poll::Pending
            }
        })
        .await
    }

    /// Waits for the client, passing on what the held server says by itself.
    pub(super) async fn wait_beside(&mut self, stream: &TcpStream, own: &OwnProcess) -> Flow<()> {
        while self.server_speaks(stream).await {
            let mut answer = self.shard.buffers.take_answer();
            answer.comes_from(own.clone());
            let spoiled = self.begin_unsolicited();
            let result = self.unsolicited(stream, &mut answer).await;
            self.shard.buffers.give_answer(answer);
            match result? {
                None => self.end_unsolicited(spoiled),
                Some(loss) => return self.lost_while_idle(loss).await,
            }
        }
        Ok(())
    }

    /// Reads what a held server says by itself, to the end of a message; `Some` when it is gone.
    async fn unsolicited(&mut self, stream: &TcpStream, answer: &mut Answer) -> Flow<Option<Loss>> {
        let failed = |error| Loss::of_server(format!("The connection to the server failed: {error}"));
        loop {
            match net::try_read(stream, answer.spare()) {
                Ok(0) => {
                    return Ok(Some(Loss::of_server("The server closed the connection".to_owned())));
                }
                Ok(count) => answer.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !answer.has_unscanned() {
                        return Ok(None);
                    }
                    // Half a message: the rest is on its way.
                    if let Err(error) = stream.readable().await {
                        return Ok(Some(failed(error)));
                    }
                    continue;
                }
                Err(error) => return Ok(Some(failed(error))),
            }
            let said = self.scan_unsolicited(answer);
            self.send_client(answer.ready_joined()).await?;
            answer.passed_on();
            match said {
                None => {}
                Some(Parting::Lost(loss)) => return Ok(Some(loss)),
                Some(Parting::Dismissed) => return Err(End::Client),
            }
        }
    }

    fn scan_unsolicited(&mut self, answer: &mut Answer) -> Option<Parting> {
        loop {
            let mut conflict = None;
            let event = match answer.scan() {
                Ok(event) => event,
                Err(error) => return Some(Parting::Lost(Loss::of_server(error.to_string()))),
            };
            let ends = match event {
                Event::Error(fields)
                    if fields.ends_session
                        && (sqlstate::dismisses(fields.code)
                            || (self.is_known_by_process() && fields.code == sqlstate::ADMIN_SHUTDOWN)) =>
                {
                    answer.accept();
                    return Some(Parting::Dismissed);
                }
                Event::Error(fields) => {
                    let is_conflict = fields.ends_session
                        && self.attached.as_ref().is_some_and(|attached| attached.side == Side::Standby)
                        && sqlstate::is_recovery_conflict(fields.code);
                    conflict = is_conflict.then(|| answer.frame());
                    fields.ends_session
                }
                Event::Notice(fields) => {
                    matches!(fields.code, sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN)
                }
                Event::ParameterStatus => {
                    match reply::parameter_status(answer.body()) {
                        // What is held is the primary, as the client knows.
                        Some(("in_hot_standby", _)) => answer.discard(),
                        Some((name, value)) if !self.told.is_news(name, value) => answer.discard(),
                        Some((name, value)) => {
                            let mut told = self.told.clone();
                            told.report(name, value);
                            self.told = self.shard.intern_told(told);
                            answer.accept();
                        }
                        None => answer.accept(),
                    }
                    continue;
                }
                Event::Settled | Event::Complete(_) | Event::NeedMore => return None,
                Event::CopyIn
                | Event::OwnError(_)
                | Event::OutOfTurn
                | Event::Ready
                | Event::Changed
                | Event::OtherPortal => {
                    let cause = "The server sent something out of turn".to_owned();
                    return Some(Parting::Lost(Loss::of_server(cause)));
                }
            };
            if ends {
                let cause = format!("The server said: {}", reply::error_message(answer.body()));
                return Some(Parting::Lost(Loss { conflict, ..Loss::of_server(cause) }));
            }
            answer.accept();
        }
    }

    async fn lost_while_idle(&mut self, loss: Loss) -> Flow<()> {
        let cause = if self.control.leaves.get() { outcome::LEFT_FOR_REPLAY } else { &loss.cause };
        if self.only_listens() {
            self.detach_lost(Some(SuspectCause::ConnectionLost));
            return Box::pin(self.listen_again(cause)).await;
        }
        if !self.pins.is_empty() {
            let report = outcome::pinned_server_lost(&self.pins, cause);
            self.detach_lost(Some(SuspectCause::ConnectionLost));
            return Err(End::Told(Box::new(report)));
        }
        self.transaction_lost_while_idle(loss);
        Ok(())
    }
}
