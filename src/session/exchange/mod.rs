//! One exchange with one server: a unit out, its answer back, and COPY data through.
//!
//! Here the bytes move; what the server says in between is dealt with in `said`, what an error means is judged by `rules`, and
//! what the client may send meanwhile is told by `through`.
//!
//! Invariant: never waits on one side without watching the other; what is held back has not reached the client; the client
//! is only given complete frames. Must not know: routing, names, pools.

mod backlog;
mod interruption;
mod pass;
mod rules;
mod said;
mod through;

pub use interruption::Interruption;
pub use pass::{Standby, Unsent};
pub use rules::{Ended, Goal, Leaving, Parting, Rules};
pub use through::Through;

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use crate::backend::Reported;
use crate::net;
use crate::relay::allowance::Share;
use crate::relay::answer::{Answer, Event};
use crate::relay::buffer::Window;
use crate::wire::reply::TransactionStatus;
use crate::wire::sqlstate::{self, SqlState};

use backlog::Backlog;

/// Bytes that may wait for the server before the client is not read any further.
const OUT_HIGH_WATER: usize = 64 * 1024;

/// The two ends and what is between them.
#[expect(clippy::struct_excessive_bools, reason = "independent facts noted on the way, not states")]
pub struct Exchange<'a> {
    /// The client.
    pub client: &'a TcpStream,
    /// The server.
    pub server: &'a TcpStream,
    /// The client's bytes that are not consumed.
    pub input: &'a mut Window,
    /// Bytes at the front of `input` that are the unit itself (already in `out`): kept until something passes through.
    pub reserved: usize,
    /// Bytes for the server.
    pub out: &'a mut Vec<u8>,
    /// The answer.
    pub answer: &'a mut Answer,
    /// What goes through.
    pub through: Through,
    /// What may be refused.
    pub rules: Rules,
    /// How far to go.
    pub goal: Goal,
    /// The unit is extended: COPY is followed by a Sync.
    pub extended: bool,
    /// How often COPY data was sent to its end before the server had asked for it; negative: how often it has asked for what is
    /// not sent to its end.
    pub copies_ended: isize,
    /// The server is a standby, which can't wait for the client as long as it likes.
    pub standby: Option<Standby<'a>>,
    /// Bound of its leaving a large frame unfinished.
    pub silence_limit: Option<Duration>,
    /// What the server last said of `in_hot_standby`.
    pub in_hot_standby: &'a mut bool,
    /// What the server last reported.
    pub reported: &'a mut Reported,
    /// What the client knows of reported parameters.
    pub told: &'a Reported,
    /// The client is told whether its node is in recovery, as that may change.
    pub tells_recovery: bool,
    /// A RESET runs that goes further back on the server than for the session, which then has again what was reported at its login.
    pub resets_to: Option<&'a Reported>,
    /// What it knows now, if it was told something else.
    pub news: Option<Reported>,
    /// The unit may end its own session: then the client hears that from the server.
    pub may_end_itself: bool,
    /// Somebody is about to end it: then, too.
    pub sought: Option<&'a Cell<bool>>,
    /// Bytes of `out` sent.
    pub sent: usize,
    /// Something was sent to the server.
    pub any_sent: bool,
    /// Something of the answer has reached the client.
    pub delivered: bool,
    /// The first error that was passed on.
    pub failed: Option<SqlState>,
    /// Bytes passed to the client.
    pub passed_bytes: u64,
    refused: Option<SqlState>,
    plan_changed: bool,
    /// When something was first held back.
    held_since: Option<Instant>,
    /// It has been for long enough.
    hold_over: bool,
    /// How far the client is behind, while the standby waits for it.
    backlog: Option<Backlog>,
    /// What is kept of the answer beyond the relay buffer.
    share: Option<Share>,
    /// There is no room to read from the server before the client has taken something.
    is_full: bool,
    /// The client is given up, and the end of a message that it has begun to read is waited for until then.
    last_frame: Option<Instant>,
    /// The error by which the server ended the connection.
    pub ended_by: Option<SqlState>,
    /// The error of pgsteer's own question, or the conflict by which a standby has cancelled the unit, whole.
    pub own_error: Option<Vec<u8>>,
    client_ended: bool,
    /// COPY data was passed through.
    copied: bool,
    /// All replies have come; the rest of a frame is still on its way.
    settling: bool,
    /// ReadyForQuery has come; the rest of a frame, or what the server said behind it, is still to be dealt with.
    finishing: Option<TransactionStatus>,
    /// The server said goodbye behind its answer.
    pub server_ended: bool,
    /// It does not have a statement that was taken to be there, or can't count its answers: it is not used again.
    pub forgetful: bool,
    /// Called when a BEGIN that was put off has succeeded.
    pub on_begun: Option<&'a dyn Fn()>,
    /// Called before anything of the answer reaches the client.
    pub before_telling: Option<&'a dyn Fn()>,
    /// Set when pgsteer ends: the exchange is not to go on.
    pub cut: Option<&'a Cell<bool>>,
    /// Set when the server is given up so that replay there can go on.
    pub leaves: Option<&'a Cell<bool>>,
    /// Set when nothing has been heard of the server's node for long.
    pub is_silent: Option<&'a Cell<bool>>,
    /// When the server should have ended the unit by itself, which is a read on a standby, and has had time to say so.
    pub overdue_at: Option<Instant>,
    /// Where it is not known whether it has that time: asked for it then, and now and again as long as it is not known.
    pub keeps_limit: Option<&'a dyn Fn() -> bool>,
    /// Since when it has been waited for, and nobody but it.
    waits_since: Option<Instant>,
}

/// A server whose statement's time is over ends it by itself, and has so long to say so.
pub const OVERDUE_AFTER: Duration = Duration::from_secs(5);

impl<'a> Exchange<'a> {
    /// An exchange about to begin.
    pub fn new(
        (client, server): (&'a TcpStream, &'a TcpStream),
        input: &'a mut Window,
        out: &'a mut Vec<u8>,
        answer: &'a mut Answer,
        (in_hot_standby, reported): (&'a mut bool, &'a mut Reported),
        told: &'a Reported,
    ) -> Self {
        Self {
            client,
            server,
            input,
            reserved: 0,
            out,
            answer,
            through: Through::Nothing,
            rules: Rules::PassOn,
            goal: Goal::Ready,
            extended: false,
            copies_ended: 0,
            standby: None,
            silence_limit: None,
            in_hot_standby,
            reported,
            told,
            tells_recovery: false,
            resets_to: None,
            news: None,
            may_end_itself: false,
            sought: None,
            sent: 0,
            any_sent: false,
            delivered: false,
            failed: None,
            passed_bytes: 0,
            refused: None,
            plan_changed: false,
            held_since: None,
            hold_over: false,
            backlog: None,
            share: None,
            is_full: false,
            last_frame: None,
            ended_by: None,
            own_error: None,
            client_ended: false,
            copied: false,
            settling: false,
            finishing: None,
            server_ended: false,
            forgetful: false,
            on_begun: None,
            before_telling: None,
            cut: None,
            leaves: None,
            is_silent: None,
            overdue_at: None,
            keeps_limit: None,
            waits_since: None,
        }
    }

    fn holds_back(&self) -> bool {
        self.rules.hold_back()
            && !self.delivered
            && !self.hold_over
            && self.through == Through::Nothing
            && self.standby.as_ref().is_none_or(|standby| self.answer.ready_bytes() < standby.hold_back_bytes)
    }

    fn is_cut(&self) -> bool {
        self.cut.is_some_and(Cell::get)
    }

    fn leaves(&self) -> bool {
        self.leaves.is_some_and(Cell::get)
    }

    /// Nothing is heard of the node any more, and the unit can be run elsewhere as if it had never been there.
    fn is_forsaken(&self) -> bool {
        self.is_silent.is_some_and(Cell::get)
            && self.rules.hold_back()
            && !self.delivered
            && self.finishing.is_none()
            && self.through == Through::Nothing
    }

    /// The server is gone: by itself, or because it was given up.
    fn lost(&mut self, cause: String) -> Ended {
        if self.leaves() {
            return self.left(Leaving::ReplayStands);
        }
        Ended::ServerLost { cause, parting: Parting::Unexplained }
    }

    fn failed(&mut self, error: &io::Error) -> Ended {
        self.lost(format!("The connection to the server failed: {error}"))
    }

    /// Runs to the goal. Not cancel-safe: dropping it leaves both ends in the middle of something.
    pub async fn run(&mut self) -> Ended {
        loop {
            if self.is_cut() {
                return Ended::Cut;
            }
            if self.leaves() && self.finishing.is_none() {
                return self.left(Leaving::ReplayStands);
            }
            if self.is_forsaken() {
                return self.left(Leaving::NodeSilent);
            }
            let mut moved = false;
            match self.push() {
                Ok(pushed) => moved |= pushed,
                Err(error) => {
                    let ended = self.failed(&error);
                    return self.with_the_rest(ended).await;
                }
            }
            if self.is_behind() {
                let before = self.passed_bytes;
                if let Err(ended) = self.write_ready() {
                    return ended;
                }
                moved |= self.passed_bytes > before;
            }
            if self.goal == Goal::Sent
                && self.out.is_empty()
                && self.through == Through::Nothing
                && !self.is_behind()
            {
                return Ended::Settled;
            }
            if self.goal.is_at_replies()
                && (self.copied || self.settling)
                && self.out.is_empty()
                && self.through == Through::Nothing
            {
                // The server keeps the end of its answer back until the Sync that follows the data.
                return Ended::Settled;
            }
            match self.pull().await {
                Ok(false) if self.goal == Goal::Drained && !self.is_behind() => return Ended::Settled,
                Ok(pulled) => moved |= pulled,
                // The answer is complete; that the server ends behind it is the next statement's matter.
                Err(Ended::ServerLost { .. } | Ended::Left { .. }) if self.finishing.is_some() => {
                    self.server_ended = true;
                    return Ended::Complete(self.finishing.unwrap_or_default());
                }
                Err(ended) => return self.with_the_rest(ended).await,
            }
            if let Some(ended) = self.last_frame_ended() {
                return ended;
            }
            if let Some(status) = self.finishing
                && self.out.is_empty()
                && self.through == Through::Nothing
                && !self.answer.has_unscanned()
            {
                return Ended::Complete(status);
            }
            if !moved {
                moved = self.take_client();
            }
            if self.client_ended {
                return Ended::ClientGone;
            }
            if !moved && let Err(ended) = self.wait_for_either().await {
                return ended;
            }
        }
    }

    /// Sends what waits for the server.
    fn push(&mut self) -> io::Result<bool> {
        let Some(rest) = self.out.get(self.sent..).filter(|rest| !rest.is_empty()) else { return Ok(false) };
        match self.server.try_write(rest) {
            Ok(written) => {
                self.any_sent |= written > 0;
                self.sent += written;
                if self.sent >= self.out.len() {
                    self.out.clear();
                    self.sent = 0;
                }
                Ok(written > 0)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads from the server and scans; passes on what may be passed on.
    async fn pull(&mut self) -> Result<bool, Ended> {
        // Room that the client has made meanwhile is room as well: then the server is to be waited for again.
        self.is_full = false;
        if self.answer.spare().is_empty() && !self.make_room().await? {
            return Ok(false);
        }
        let count = match net::try_read(self.server, self.answer.spare()) {
            Ok(0) => return Err(self.lost("The server closed the connection".to_owned())),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.goal.is_at_replies()
                    && self.out.is_empty()
                    && matches!(self.answer.scan(), Ok(Event::Settled))
                {
                    // A Flush behind which nothing will come: all has been answered, or was answered here.
                    self.settle().await?;
                }
                return Ok(false);
            }
            Err(error) => return Err(self.failed(&error)),
        };
        self.answer.advance(count);
        self.waits_since = None;
        if let Some(backlog) = &mut self.backlog {
            backlog.server_sent(count, Instant::now());
        }
        loop {
            let event = self.answer.scan().map_err(|error| Ended::ServerLost {
                cause: error.to_string(),
                parting: Parting::Unexplained,
            })?;
            match event {
                Event::NeedMore => break,
                Event::Error(fields) if fields.ends_session && self.dismisses(fields.code) => {
                    self.ended_by = Some(fields.code);
                    self.answer.accept();
                    self.flush().await?;
                    return Err(Ended::Dismissed);
                }
                Event::Error(fields) => {
                    if fields.ends_session {
                        self.end_frame().await?;
                    }
                    self.error(fields)?;
                }
                Event::OutOfTurn => {
                    // Whatever it is for, what comes next would be taken for the answer to something else.
                    let cause = "The server said that it was ready before it had answered".to_owned();
                    return Err(Ended::ServerLost { cause, parting: Parting::Unexplained });
                }
                Event::Ready => self.tell(),
                Event::Changed => self.rows_changed(),
                Event::OtherPortal => {
                    let message = "pgsteer: the rows of a cursor look otherwise by now".to_owned();
                    return Err(Ended::NotFit { code: sqlstate::FEATURE_NOT_SUPPORTED, message });
                }
                Event::OwnError(fields) => return Err(self.not_fit(fields)),
                Event::Notice(fields) => self.notice(fields).await?,
                Event::ParameterStatus => self.parameter_status(),
                Event::CopyIn
                    if self.copies_ended > 0 || matches!(self.goal, Goal::Drained | Goal::Heard) =>
                {
                    self.copies_ended -= 1;
                }
                Event::CopyIn => {
                    self.copied = true;
                    self.through = Through::Copy { left: 0, sync: self.extended, done: false };
                    self.flush().await?;
                }
                Event::Complete(status) => self.complete(status).await?,
                Event::Settled => {
                    // Or a Query that the server skips, since a message before it failed and a Sync is still to come.
                    if self.goal.is_at_replies() || (self.goal == Goal::Ready && self.failed.is_some()) {
                        self.settle().await?;
                    }
                    break;
                }
            }
        }
        self.note_begun();
        if !self.holds_back() {
            self.pass_on().await?;
        }
        Ok(true)
    }

    /// Reads from the client, if there is room, and passes through what may pass.
    fn take_client(&mut self) -> bool {
        let mut moved = false;
        if self.out.len() < OUT_HIGH_WATER {
            moved |= self.pass_through();
        }
        let spare = self.input.spare();
        if spare.is_empty() {
            return moved;
        }
        match net::try_read(self.client, spare) {
            Ok(0) => {
                self.client_ended = true;
                true
            }
            Ok(count) => {
                self.input.advance(count);
                self.pass_through();
                true
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => moved,
            Err(_) => {
                self.client_ended = true;
                true
            }
        }
    }

    fn pass_through(&mut self) -> bool {
        let before = self.out.len();
        if self.through != Through::Nothing {
            self.input.consume(std::mem::take(&mut self.reserved));
        }
        while self.out.len() < OUT_HIGH_WATER * 2 {
            let filled = self.input.filled();
            let Some((take, next)) = self.through.step(filled) else { break };
            if take == 0 && next == self.through {
                break;
            }
            self.out.extend_from_slice(filled.get(..take).unwrap_or_default());
            self.input.consume(take);
            self.through = next;
        }
        self.out.len() > before
    }

    /// Waits until something can move. An error: time is up for somebody.
    async fn wait_for_either(&mut self) -> Result<(), Ended> {
        let Some((limit, patience)) = self.patience() else {
            self.wait().await;
            return Ok(());
        };
        if tokio::time::timeout(limit, self.wait()).await.is_err() {
            return self.lose(patience);
        }
        Ok(())
    }

    /// Waits until something can move.
    async fn wait(&mut self) {
        let (client, server) = (self.client, self.server);
        let want_write = !self.out.is_empty();
        let want_client = !self.input.spare().is_empty() && self.out.len() < OUT_HIGH_WATER;
        let (want_server, is_behind) = (!self.is_full, self.is_behind());
        poll_fn(|context| {
            let mut ready = self.is_cut() || self.leaves() || self.is_forsaken();
            if want_server {
                ready |= server.poll_read_ready(context).is_ready();
            }
            if want_write {
                ready |= server.poll_write_ready(context).is_ready();
            }
            if want_client {
                ready |= client.poll_read_ready(context).is_ready();
            }
            if is_behind {
                ready |= client.poll_write_ready(context).is_ready();
            }
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}
