//! One exchange with one server: a unit out, its answer back, and COPY data through.
//!
//! Invariant: never waits on one side without watching the other; what is held back has not reached the client; the client
//! is only given complete frames. Holds no rule of its own beyond `Rules`. Must not know: routing, names, pools.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::Poll;
use std::time::Duration;

use tokio::net::TcpStream;

use crate::backend::Reported;
use crate::net;
use crate::relay::answer::{Answer, Event};
use crate::relay::buffer::Window;
use crate::wire::frame;
use crate::wire::reply::{self, TransactionStatus};
use crate::wire::sqlstate::{self, SqlState};

/// Bytes that may wait for the server before the client is not read any further.
const OUT_HIGH_WATER: usize = 64 * 1024;

/// What may be done with errors that come before anything has reached the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rules {
    /// Pass everything on as it comes.
    PassOn,
    /// A read outside of a transaction on a standby: held back; conflicts and refusals end the exchange as `Refused`.
    ReadOnStandby,
    /// The same of a session that is for standbys: what a standby refuses, nobody else is to run.
    ReadForStandbys,
    /// A statement outside of a transaction: one that was prepared before its rows changed can be prepared anew.
    Alone,
    /// pgsteer's own question: any error ends it.
    Own,
    /// The first statement of a transaction, or a write outside of one, on a connection that was last known to be in
    /// recovery: a 25006 may mean that this is no primary.
    FirstOnDoubtful,
}

/// How far the exchange is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Goal {
    /// ReadyForQuery.
    Ready,
    /// All replies so far (after Flush).
    Settled,
    /// Everything sent; replies may come later.
    Sent,
    /// What has come is passed on.
    Drained,
}

/// What a server that is lost has said of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Parting {
    /// Nothing that would tell anything of its node.
    Unexplained,
    /// It shuts down or crashed (57P01 and kin).
    Announced,
    /// It had waited too long for the unit, and ended before it had read anything of it (57P05).
    Before,
}

/// How it ended.
#[derive(Debug)]
pub enum Ended {
    /// ReadyForQuery came; everything has been passed on.
    Complete(TransactionStatus),
    /// The goal short of ReadyForQuery is reached.
    Settled,
    /// What was prepared gives other rows by now: refused before it began and before anything had reached the client; the server
    /// is ready for another statement.
    PlanChanged,
    /// Refused before anything had reached the client; the server is ready for another statement.
    Refused(SqlState),
    /// The server refused a statement that pgsteer put in before the unit, of which therefore nothing has run.
    NotFit {
        /// SQLSTATE of the error.
        code: SqlState,
        /// Its text.
        message: String,
    },
    /// The server is gone.
    ServerLost {
        /// How that showed.
        cause: String,
        /// What it said of it.
        parting: Parting,
    },
    /// The server ended the session for good and the client has its words: nothing of it can run anywhere.
    Dismissed,
    /// The client is gone.
    ClientGone,
    /// The client does not read a standby's answer.
    Stalled,
    /// pgsteer ends.
    Cut,
}

/// What of the client's further bytes goes straight to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// Nothing: they wait for their turn.
    Nothing,
    /// COPY data, up to CopyDone or CopyFail; then up to Sync, if the copy was begun by the extended protocol.
    Copy {
        /// The frame in hand has so many bytes to come.
        left: usize,
        /// A Sync is still to be passed on after the data.
        sync: bool,
        /// CopyDone or CopyFail has passed.
        done: bool,
    },
    /// The rest of one large frame.
    Frame {
        /// Bytes to come.
        left: usize,
    },
}

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
    /// How much of a retriable answer is held back.
    pub hold_back_bytes: usize,
    /// Bound of a client's not reading; `None` on the primary.
    pub stall_timeout: Option<Duration>,
    /// What the server last said of `in_hot_standby`.
    pub in_hot_standby: &'a mut bool,
    /// What the server last reported.
    pub reported: &'a mut Reported,
    /// What the client knows of reported parameters.
    pub told: &'a Reported,
    /// The client is told whether its node is in recovery, as that may change.
    pub tells_recovery: bool,
    /// What it knows now, if it was told something else.
    pub news: Option<Reported>,
    /// The unit may end its own session: then the client hears that from the server.
    pub may_end_itself: bool,
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
    /// The error of pgsteer's own question, whole.
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
    /// Called when the first ReadyForQuery (of a BEGIN that was put off) has come.
    pub on_begun: Option<&'a dyn Fn()>,
    /// Set when pgsteer ends: the exchange is not to go on.
    pub cut: Option<&'a Cell<bool>>,
}

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
            hold_back_bytes: usize::MAX,
            stall_timeout: None,
            in_hot_standby,
            reported,
            told,
            tells_recovery: false,
            news: None,
            may_end_itself: false,
            sent: 0,
            any_sent: false,
            delivered: false,
            failed: None,
            passed_bytes: 0,
            refused: None,
            plan_changed: false,
            own_error: None,
            client_ended: false,
            copied: false,
            settling: false,
            finishing: None,
            server_ended: false,
            on_begun: None,
            cut: None,
        }
    }

    fn is_cut(&self) -> bool {
        self.cut.is_some_and(Cell::get)
    }

    /// Runs to the goal. Not cancel-safe: dropping it leaves both ends in the middle of something.
    pub async fn run(&mut self) -> Ended {
        loop {
            if self.is_cut() {
                return Ended::Cut;
            }
            let mut moved = false;
            match self.push() {
                Ok(pushed) => moved |= pushed,
                Err(error) => return lost(&error),
            }
            if self.goal == Goal::Sent && self.out.is_empty() && self.through == Through::Nothing {
                return Ended::Settled;
            }
            if self.goal == Goal::Settled
                && (self.copied || self.settling)
                && self.out.is_empty()
                && self.through == Through::Nothing
            {
                // The server keeps the end of its answer back until the Sync that follows the data.
                return Ended::Settled;
            }
            match self.pull().await {
                Ok(false) if self.goal == Goal::Drained => return Ended::Settled,
                Ok(pulled) => moved |= pulled,
                // The answer is complete; that the server ends behind it is the next statement's matter.
                Err(Ended::ServerLost { .. }) if self.finishing.is_some() => {
                    self.server_ended = true;
                    return Ended::Complete(self.finishing.unwrap_or_default());
                }
                Err(ended) => return ended,
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
            if !moved {
                self.wait().await;
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
        if self.answer.spare().is_empty() {
            self.flush().await?;
        }
        let count = match net::try_read(self.server, self.answer.spare()) {
            Ok(0) => {
                return Err(Ended::ServerLost {
                    cause: "The server closed the connection".to_owned(),
                    parting: Parting::Unexplained,
                });
            }
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if self.goal == Goal::Settled
                    && self.out.is_empty()
                    && matches!(self.answer.scan(), Ok(Event::Settled))
                {
                    // A Flush behind which nothing will come: all has been answered, or was answered here.
                    self.settle().await?;
                }
                return Ok(false);
            }
            Err(error) => return Err(lost(&error)),
        };
        self.answer.advance(count);
        loop {
            let event = self.answer.scan().map_err(|error| Ended::ServerLost {
                cause: error.to_string(),
                parting: Parting::Unexplained,
            })?;
            match event {
                Event::NeedMore => break,
                Event::Error(fields) if fields.ends_session && self.dismisses(fields.code) => {
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
                Event::Ready => self.tell(),
                Event::Changed => self.rows_changed(),
                Event::OwnError(fields) => {
                    let message = reply::error_message(self.answer.body());
                    return Err(Ended::NotFit { code: fields.code, message });
                }
                Event::Notice(fields) => self.notice(fields).await?,
                Event::ParameterStatus => self.parameter_status(),
                Event::CopyIn if self.copies_ended > 0 || self.goal == Goal::Drained => {
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
                    if self.goal == Goal::Settled || (self.goal == Goal::Ready && self.failed.is_some()) {
                        self.settle().await?;
                    }
                    break;
                }
            }
        }
        self.note_begun();
        if !self.holds_back() {
            self.flush().await?;
        }
        Ok(true)
    }

    /// Whether an end of the session is no loss of its server: it was meant.
    fn dismisses(&self, code: SqlState) -> bool {
        (sqlstate::dismisses(code) && code != sqlstate::IDLE_SESSION_TIMEOUT)
            || (self.may_end_itself && code == sqlstate::ADMIN_SHUTDOWN)
    }

    async fn notice(&mut self, fields: reply::ErrorFields) -> Result<(), Ended> {
        if matches!(fields.code, sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN) {
            self.end_frame().await?;
            let cause = format!("The server said: {}", reply::error_message(self.answer.body()));
            return Err(Ended::ServerLost { cause, parting: Parting::Announced });
        }
        self.answer.accept();
        Ok(())
    }

    /// The last ReadyForQuery has come.
    async fn complete(&mut self, status: TransactionStatus) -> Result<(), Ended> {
        if self.plan_changed {
            return Err(Ended::PlanChanged);
        }
        if let Some(code) = self.refused {
            return Err(Ended::Refused(code));
        }
        self.flush().await?;
        self.end_through();
        if self.through == Through::Nothing && self.out.is_empty() && !self.answer.has_unscanned() {
            return Err(Ended::Complete(status));
        }
        self.finishing = Some(status);
        Ok(())
    }

    /// The server is about to be given up. Of a frame of which the client has a part, the rest may be here: it must have it
    /// before anything else can be said.
    async fn end_frame(&mut self) -> Result<(), Ended> {
        if self.delivered { self.flush().await } else { Ok(()) }
    }

    /// All replies to a batch without Sync have come: ends the exchange, at once or at the end of a frame under way.
    async fn settle(&mut self) -> Result<(), Ended> {
        self.flush().await?;
        self.end_through();
        if self.through == Through::Nothing && self.out.is_empty() {
            return Err(Ended::Settled);
        }
        self.settling = true;
        Ok(())
    }

    /// The answer is over. A COPY that failed in the middle of a frame goes on to its end, for server and client.
    fn end_through(&mut self) {
        self.through = match self.through {
            Through::Copy { left, .. } | Through::Frame { left } if left > 0 => Through::Frame { left },
            _ => Through::Nothing,
        };
    }

    fn note_begun(&mut self) {
        if self.answer.last_status().is_some()
            && let Some(begun) = self.on_begun.take()
        {
            begun();
        }
    }

    fn holds_back(&self) -> bool {
        matches!(self.rules, Rules::ReadOnStandby | Rules::ReadForStandbys)
            && !self.delivered
            && self.answer.ready_bytes() < self.hold_back_bytes
            && self.through == Through::Nothing
    }

    fn error(&mut self, fields: reply::ErrorFields) -> Result<(), Ended> {
        if fields.ends_session {
            let message = reply::error_message(self.answer.body());
            let parting = match fields.code {
                sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN | sqlstate::CANNOT_CONNECT_NOW => {
                    Parting::Announced
                }
                sqlstate::IDLE_SESSION_TIMEOUT
                    if self.answer.last_status().is_none() && !self.answer.has_results() =>
                {
                    Parting::Before
                }
                _ => Parting::Unexplained,
            };
            return Err(Ended::ServerLost {
                cause: format!("The server said: {message} ({})", fields.code),
                parting,
            });
        }
        if fields.plan_changed && self.heals() {
            self.plan_changed = true;
            self.answer.discard();
        } else if !self.delivered && self.is_refusal(fields.code) {
            if self.rules == Rules::Own {
                let mut frame = Vec::new();
                crate::wire::frame::put(&mut frame, b'E', &[self.answer.body()]);
                self.own_error = Some(frame);
            }
            self.refused = Some(fields.code);
            self.answer.discard();
        } else {
            self.failed = self.failed.or(Some(fields.code));
            self.answer.accept();
        }
        Ok(())
    }

    /// Whether nothing of a unit outside of a transaction has had an effect or reached the client.
    fn heals(&self) -> bool {
        matches!(
            self.rules,
            Rules::Alone | Rules::ReadOnStandby | Rules::ReadForStandbys | Rules::FirstOnDoubtful
        ) && !self.delivered
            && !self.answer.has_results()
            && self.answer.awaits_bind()
    }

    /// Whether this error, first of its answer, means "not here" rather than "wrong".
    fn is_refusal(&self, code: SqlState) -> bool {
        match self.rules {
            Rules::PassOn | Rules::Alone => false,
            Rules::Own => true,
            Rules::ReadOnStandby => {
                matches!(
                    code,
                    sqlstate::SERIALIZATION_FAILURE
                        | sqlstate::DEADLOCK_DETECTED
                        | sqlstate::READ_ONLY_SQL_TRANSACTION
                        | sqlstate::FEATURE_NOT_SUPPORTED
                        | sqlstate::OBJECT_NOT_IN_PREREQUISITE_STATE
                        | sqlstate::UNDEFINED_FILE
                        | sqlstate::UNSPECIFIED
                ) || &code.class() == b"42"
            }
            Rules::ReadForStandbys => {
                matches!(code, sqlstate::SERIALIZATION_FAILURE | sqlstate::DEADLOCK_DETECTED)
            }
            Rules::FirstOnDoubtful => {
                code == sqlstate::READ_ONLY_SQL_TRANSACTION && !self.answer.has_results()
            }
        }
    }

    fn parameter_status(&mut self) {
        let passes = match reply::parameter_status(self.answer.body()) {
            // The client's endpoint is a standby or is none, wherever a read of its ran; see `tell` for those that are both.
            Some(("in_hot_standby", value)) => {
                *self.in_hot_standby = value == "on";
                false
            }
            Some((name, value)) => {
                self.reported.report(name, value);
                let news = !self.answer.is_discarding()
                    && self.news.as_ref().unwrap_or(self.told).is_news(name, value);
                if news {
                    self.news.get_or_insert_with(|| self.told.clone()).report(name, value);
                }
                news
            }
            None => true,
        };
        if passes { self.answer.accept() } else { self.answer.discard() }
    }

    /// Rows that the client would misread are on their way: it gets an error instead.
    fn rows_changed(&mut self) {
        let mut error = Vec::new();
        reply::put_plan_changed(&mut error);
        self.failed = self.failed.or(Some(sqlstate::FEATURE_NOT_SUPPORTED));
        self.answer.mute(&error);
    }

    /// The client's ReadyForQuery is next. What pgsteer's own statements and the client's changed and changed back, the server
    /// does not report; to the client it may be news.
    fn tell(&mut self) {
        if self.answer.is_discarding() {
            return;
        }
        let known = self.news.as_ref().unwrap_or(self.told);
        let mut beyond: Vec<(String, String)> =
            self.reported.beyond(known).map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
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

    /// Passes on all that is ready.
    async fn flush(&mut self) -> Result<(), Ended> {
        let mut written = 0;
        loop {
            let ready = self.answer.ready_joined();
            let Some(rest) = ready.get(written..).filter(|rest| !rest.is_empty()) else { break };
            match self.client.try_write(rest) {
                Ok(count) => {
                    written += count;
                    self.delivered |= count > 0;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let writable = self.client.writable();
                    let result = match self.stall_timeout {
                        None => writable.await,
                        Some(limit) => {
                            tokio::time::timeout(limit, writable).await.map_err(|_| Ended::Stalled)?
                        }
                    };
                    result.map_err(|_| Ended::ClientGone)?;
                }
                Err(_) => return Err(Ended::ClientGone),
            }
        }
        self.passed_bytes += written as u64;
        self.answer.passed_on();
        Ok(())
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
            let (take, next) = match self.through {
                Through::Nothing => break,
                Through::Frame { left } => {
                    let take = left.min(filled.len());
                    (take, if take == left { Through::Nothing } else { Through::Frame { left: left - take } })
                }
                Through::Copy { left, sync, done } if left > 0 => {
                    let take = left.min(filled.len());
                    (take, Through::Copy { left: left - take, sync, done })
                }
                Through::Copy { sync: false, done: true, .. } => (0, Through::Nothing),
                Through::Copy { sync, done, .. } => match frame::header(filled) {
                    Ok(Some(header)) => {
                        let take = header.frame_bytes.min(filled.len());
                        let done = done || matches!(header.kind, b'c' | b'f');
                        // The Sync after the data ends the unit; one in the middle of it is ignored by the server.
                        let sync = sync && !(done && header.kind == b'S');
                        (take, Through::Copy { left: header.frame_bytes - take, sync, done })
                    }
                    _ => break,
                },
            };
            if take == 0 && next == self.through {
                break;
            }
            self.out.extend_from_slice(filled.get(..take).unwrap_or_default());
            self.input.consume(take);
            self.through = next;
        }
        self.out.len() > before
    }

    /// Waits until something can move.
    async fn wait(&mut self) {
        let (client, server) = (self.client, self.server);
        let want_write = !self.out.is_empty();
        let want_client = !self.input.spare().is_empty() && self.out.len() < OUT_HIGH_WATER;
        poll_fn(|context| {
            let mut ready = server.poll_read_ready(context).is_ready() || self.is_cut();
            if want_write {
                ready |= server.poll_write_ready(context).is_ready();
            }
            if want_client {
                ready |= client.poll_read_ready(context).is_ready();
            }
            if ready { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }
}

fn lost(error: &io::Error) -> Ended {
    Ended::ServerLost {
        cause: format!("The connection to the server failed: {error}"),
        parting: Parting::Unexplained,
    }
}
