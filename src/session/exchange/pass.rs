//! What is ready of an answer on its way to the client: passed on, held back, or kept for a client that is behind.
//!
//! A server is waited for by nobody but its client, so on the primary a slow client slows its server down. A standby's replay may
//! wait for that server: there the answer is read on into a buffer, and when that is full for too long the server is given up.
//!
//! Invariant: what is kept beyond the relay buffer is within the allowance of all sessions; the client gets complete frames in
//! server order, whatever becomes of the server. Must not know: routing, what the statements are.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use super::backlog::Backlog;
use super::{Ended, Exchange, Leaving, OVERDUE_AFTER, Through};
use crate::relay::allowance::{Allowance, Share};
use crate::relay::buffer::BUFFER_BYTES;

/// Whether a server is overdue is asked again after this, where it was not known.
const OVERDUE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is different where the server is a standby.
pub struct Standby<'a> {
    /// How much of a retriable answer is held back.
    pub hold_back_bytes: usize,
    /// For how long.
    pub hold_back_time: Duration,
    /// For how long reading may stop because the client does not take what was read.
    pub stall_timeout: Duration,
    /// How much is read for it before reading stops.
    pub stall_buffer_bytes: usize,
    /// Of what is kept beyond the relay buffer.
    pub allowance: &'a Arc<Allowance>,
    /// Since when the standby has had WAL to replay and has replayed none.
    pub replay_stands_since: &'a dyn Fn() -> Option<Instant>,
    /// Why a statement that it cancels is not run again, for its client.
    pub not_run_again: &'static str,
}

/// What a client is still to have of a server that is given up.
#[derive(Debug, Default)]
pub struct Unsent {
    /// Complete frames, or the rest of them.
    pub bytes: Vec<u8>,
    /// Held until the client has them.
    _share: Option<Share>,
}

/// What is waited for with patience that ends.
#[derive(Debug, Clone, Copy)]
pub(super) enum Patience {
    /// Until the client goes on with a message that it has left unfinished.
    Message,
    /// Until an answer that can be run again has been held back for long enough.
    Holding,
    /// Until the client takes what was read for it.
    Reading,
    /// Until the server should have ended the statement.
    Overdue,
}

impl Exchange<'_> {
    /// Something is ready for the client, and it is for the client to take it.
    pub(super) fn is_behind(&self) -> bool {
        self.answer.ready_bytes() > 0 && !self.holds_back()
    }

    /// Passes on all that is ready, however long the client takes.
    pub(super) async fn flush(&mut self) -> Result<(), Ended> {
        while !self.write_ready()? {
            if self.leaves.is_some_and(Cell::get) {
                // The server process may be stuck in sending: it is to be let go before the client is waited for.
                return Err(self.left(Leaving::ReplayStands));
            }
            self.client_writable().await?;
        }
        Ok(())
    }

    /// Passes on what is ready: as far as the client takes it now, if the server is a standby.
    pub(super) async fn pass_on(&mut self) -> Result<(), Ended> {
        if self.standby.is_none() {
            return self.flush().await;
        }
        self.write_ready().map(|_| ())
    }

    /// Writes what the client takes now; `true`: all that is ready.
    pub(super) fn write_ready(&mut self) -> Result<bool, Ended> {
        loop {
            let ready = self.answer.ready_front();
            if ready.is_empty() {
                (self.backlog, self.share, self.last_frame) = (None, None, None);
                return Ok(true);
            }
            if let Some(before_telling) = self.before_telling {
                before_telling();
            }
            match self.client.try_write(ready) {
                Ok(0) => return Err(Ended::ClientGone),
                Ok(count) => {
                    self.answer.passed(count);
                    self.delivered = true;
                    self.waits_since = None;
                    self.passed_bytes += count as u64;
                    if let Some(backlog) = &mut self.backlog {
                        backlog.client_took(Instant::now());
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(_) => return Err(Ended::ClientGone),
            }
        }
    }

    /// Waits until the client takes more, or the server is to be given up.
    async fn client_writable(&self) -> Result<(), Ended> {
        let writable = match self.leaves {
            None => self.client.writable().await,
            Some(leaves) => {
                poll_fn(|context| match self.client.poll_write_ready(context) {
                    Poll::Pending if leaves.get() => Poll::Ready(Ok(())),
                    ready => ready,
                })
                .await
            }
        };
        writable.map_err(|_| Ended::ClientGone)
    }

    /// The relay buffer is full: `false` when there will be room only after the client has taken something.
    pub(super) async fn make_room(&mut self) -> Result<bool, Ended> {
        if self.holds_back()
            && let Some(standby) = &self.standby
            && standby.hold_back_bytes > BUFFER_BYTES
            && self.keep(standby.hold_back_bytes)
        {
            return Ok(true);
        }
        self.pass_on().await?;
        if !self.answer.spare().is_empty() {
            return Ok(true);
        }
        let most = match &self.standby {
            _ if self.last_frame.is_some() => usize::MAX,
            Some(standby) => standby.stall_buffer_bytes,
            None => 0,
        };
        if self.keep(most) {
            return Ok(true);
        }
        self.is_full = true;
        if let (None, Some(standby)) = (&self.backlog, &self.standby) {
            self.backlog = Some(Backlog::new(standby.stall_timeout, Instant::now()));
        }
        Ok(false)
    }

    /// Keeps what is ready elsewhere than in the relay buffer, if it is no more than that and all sessions together may.
    fn keep(&mut self, most: usize) -> bool {
        let Some(standby) = &self.standby else { return false };
        let bytes = self.answer.ready_bytes();
        let share = self.share.get_or_insert_with(|| Share::new(standby.allowance));
        let kept = bytes <= most && share.reach(bytes);
        if kept {
            self.answer.set_aside();
        }
        kept
    }

    /// How long to wait, and for whom; `None`: for as long as it takes.
    pub(super) fn patience(&mut self) -> Option<(Duration, Patience)> {
        let other = self.patience_with_peers();
        // What it has said already is the client's to take.
        let Some(at) = self.overdue_at.filter(|_| !self.is_full && self.answer.ready_bytes() == 0) else {
            return other;
        };
        // A server that could not send for as long as its client took nothing has the same time to go on.
        let now = Instant::now();
        let since = *self.waits_since.get_or_insert(now);
        let left = at.max(since + OVERDUE_AFTER).saturating_duration_since(now);
        match other {
            Some((limit, _)) if limit < left => other,
            _ => Some((left, Patience::Overdue)),
        }
    }

    fn patience_with_peers(&mut self) -> Option<(Duration, Patience)> {
        if (self.is_full || self.last_frame.is_some())
            && let Some(backlog) = &self.backlog
        {
            return Some((backlog.look_again_after(), Patience::Reading));
        }
        if self.answer.ready_bytes() > 0
            && self.holds_back()
            && let Some(standby) = &self.standby
        {
            let now = Instant::now();
            let since = *self.held_since.get_or_insert(now);
            let limit = standby.hold_back_time.saturating_sub(now.saturating_duration_since(since));
            return Some((limit, Patience::Holding));
        }
        let unfinished = matches!(self.through, Through::Frame { .. }) && self.out.is_empty();
        let limit = self.silence_limit.filter(|_| unfinished)?;
        Some((limit, Patience::Message))
    }

    /// Such a wait is over.
    pub(super) fn lose(&mut self, patience: Patience) -> Result<(), Ended> {
        match patience {
            Patience::Message => Err(Ended::Silent),
            Patience::Holding => {
                self.hold_over = true;
                Ok(())
            }
            Patience::Reading => self.judge_client(),
            Patience::Overdue if self.keeps_limit.is_some_and(|keeps| !keeps()) => {
                self.overdue_at = Some(Instant::now() + OVERDUE_AGAIN_AFTER);
                Ok(())
            }
            Patience::Overdue => Err(self.left(Leaving::Overdue)),
        }
    }

    /// Whether the client is to be waited for any longer.
    fn judge_client(&mut self) -> Result<(), Ended> {
        let (Some(standby), Some(backlog)) = (&self.standby, &self.backlog) else { return Ok(()) };
        let now = Instant::now();
        match self.last_frame {
            Some(until) if now < until => return Ok(()),
            Some(_) => return Err(self.left(Leaving::ClientStalled)),
            None => {}
        }
        if !backlog.is_too_long((standby.replay_stands_since)(), now) {
            return Ok(());
        }
        self.answer.forget_begun();
        let until = now + standby.stall_timeout;
        let bytes = self.answer.ready_bytes().saturating_add(self.answer.body_left());
        if self.answer.inside_frame() && self.share.as_mut().is_some_and(|share| share.reach(bytes)) {
            // Its rest is read, which lets the server go on, and then nothing more.
            self.last_frame = Some(until);
            return Ok(());
        }
        Err(self.left(Leaving::ClientStalled))
    }

    /// The message whose end was waited for is whole.
    pub(super) fn last_frame_ended(&mut self) -> Option<Ended> {
        let until = self.last_frame?;
        self.answer.forget_begun();
        let is_over = !self.answer.inside_frame() || Instant::now() >= until;
        is_over.then(|| self.left(Leaving::ClientStalled))
    }

    /// The server is given up. What is run again as a whole needs nothing that is still here.
    pub(super) fn left(&mut self, why: Leaving) -> Ended {
        self.answer.forget_begun();
        let ready = self.answer.take_ready();
        let bytes = if self.delivered { ready } else { Vec::new() };
        Ended::Left { unsent: Unsent { bytes, _share: self.share.take() }, why }
    }

    /// The server has ended by itself: the client is to have what came before, if it has the beginning of it.
    pub(super) async fn with_the_rest(&mut self, ended: Ended) -> Ended {
        if !matches!(ended, Ended::ServerLost { .. }) || !self.delivered {
            return ended;
        }
        self.answer.forget_begun();
        match self.flush().await {
            Ok(()) => ended,
            Err(other) => other,
        }
    }
}
