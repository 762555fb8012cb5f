//! One answer on its way from a server to its client: header scan, what to pass on, what to keep back.
//!
//! Invariant: the bytes offered to the client are a sequence of complete frames (or a part of one frame larger than the
//! buffer), in server order, with pgsteer's own messages taken out or put in exactly where the expected replies say so.
//! Must not know: sockets, routing, statements.

use std::collections::VecDeque;

use super::names::Names;
use crate::wire::frame::{self, HEADER_BYTES, LengthError};
use crate::wire::reply::{self, ErrorFields, OwnProcess, TransactionStatus};

/// What an answer keeps allocated for the next one that uses it.
const AHEAD_KEPT_BYTES: usize = 64 * 1024;
/// The shape of no rows at all.
const NO_ROWS: u64 = 0;
/// Expected replies for which room is kept.
const EXPECT_KEPT: usize = 256;

/// A reply that the messages sent so far make the server send, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The whole answer of a Query that pgsteer put in: kept back, up to ReadyForQuery.
    Preamble,
    /// ParseComplete, BindComplete and CommandComplete of a statement that pgsteer put in (`reply::put_statement`): kept back.
    Own,
    /// The whole answer of the client's Query or FunctionCall, up to ReadyForQuery.
    Simple,
    /// ParseComplete; `token` is told back when it failed.
    Parse {
        /// Whether the client asked for it.
        forward: bool,
        /// The caller's number for it.
        token: u32,
    },
    /// BindComplete.
    Bind,
    /// RowDescription or NoData (after ParameterDescription for a statement).
    Describe,
    /// The same of a statement; the shape of its rows is told back under `token`.
    Shape {
        /// The caller's number for it.
        token: u32,
    },
    /// The same for a Describe that pgsteer put in: kept back. Rows of another shape than `wanted` are an event.
    OwnShape {
        /// The shape that the client was told; `None`: none.
        wanted: Option<u64>,
        /// The caller's number for it.
        token: u32,
    },
    /// CommandComplete, EmptyQueryResponse or PortalSuspended after any rows.
    Execute,
    /// CloseComplete of the client's own Close.
    Close {
        /// The caller's number for it, told back when an error skips it.
        token: Option<u32>,
    },
    /// CloseComplete of a Close that pgsteer put in; `token` is told back when it was not carried out.
    OwnClose {
        /// The caller's number for it.
        token: u32,
    },
    /// Nothing comes from the server; these bytes are the reply. `token` is told back when an error skips it.
    Local {
        /// The reply.
        reply: &'static [u8],
        /// The caller's number for it.
        token: u32,
    },
    /// ReadyForQuery of a Sync.
    Sync,
    /// ReadyForQuery of a Sync that pgsteer put in: kept back.
    OwnSync,
}

impl Expect {
    /// The number of what is not true if this reply does not come.
    fn promise(self) -> Option<u32> {
        match self {
            Self::Parse { token, .. } | Self::Local { token, .. } | Self::OwnClose { token } => Some(token),
            Self::Close { token } => token,
            _ => None,
        }
    }
}

/// What the server did not carry out: Parse and Close messages by their tokens, and local replies that an error skipped.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Unkept {
    /// All of them, in order.
    pub tokens: Vec<u32>,
    /// The one that was refused itself; the others were skipped because of an error before them.
    pub refused: Option<u32>,
}

/// What the scan came upon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// All scanned; read more (or write out first, when `spare` is empty).
    NeedMore,
    /// An ErrorResponse stands at the scan position: `accept` or `discard` it.
    Error(ErrorFields),
    /// An ErrorResponse of a statement that pgsteer put in stands at the scan position: nothing behind it has run or will run.
    OwnError(ErrorFields),
    /// The ReadyForQuery that was to be announced is next: `put_in` what must stand before it.
    Ready,
    /// Rows would come that look otherwise than the client was told: `mute` what follows.
    Changed,
    /// A NoticeResponse stands at the scan position: `accept` or `discard` it.
    Notice(ErrorFields),
    /// A ParameterStatus stands at the scan position: `accept` or `discard` it.
    ParameterStatus,
    /// CopyInResponse: now the client sends data.
    CopyIn,
    /// The last expected ReadyForQuery: the answer is complete.
    Complete(TransactionStatus),
    /// All replies to a batch without Sync have come.
    Settled,
}

/// What becomes of the rest of a frame larger than the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    PassOn,
    KeepBack,
}

/// The state of one answer.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts noted while scanning, not states")]
pub struct Answer {
    bytes: Box<[u8]>,
    /// First byte to pass on.
    start: usize,
    /// First byte not scanned.
    scanned: usize,
    /// End of what was read.
    end: usize,
    /// Bytes to pass on before `start`; empty unless something was taken out or put in.
    ahead: Vec<u8>,
    /// Bytes of a frame larger than the buffer that are still to come.
    body_left: usize,
    expect: VecDeque<Expect>,
    unkept: Unkept,
    /// Shapes of rows, by token.
    shapes: Vec<(u32, u64)>,
    /// What had this number and more was answered after DEALLOCATE ALL or DISCARD ALL.
    deallocated: Option<u32>,
    /// The number of what is answered next is no less.
    answered: u32,
    /// The client's next ReadyForQuery is an event of its own.
    announces_ready: bool,
    /// What becomes of the `body_left` bytes of a large frame.
    tail: Tail,
    preamble_error: Option<Vec<u8>>,
    results: bool,
    discarding: bool,
    /// The client has been told of an error: what comes up to ReadyForQuery is kept back.
    muted: bool,
    last_status: Option<TransactionStatus>,
    /// Whose notifications are the session's own.
    own_process: Option<OwnProcess>,
    names: Names,
}

impl Answer {
    /// An answer of which nothing has come. `bytes` is the buffer to read into.
    pub fn new(bytes: Box<[u8]>) -> Self {
        Self {
            bytes,
            start: 0,
            scanned: 0,
            end: 0,
            ahead: Vec::new(),
            body_left: 0,
            expect: VecDeque::new(),
            unkept: Unkept::default(),
            shapes: Vec::new(),
            deallocated: None,
            answered: 0,
            announces_ready: false,
            tail: Tail::PassOn,
            preamble_error: None,
            results: false,
            discarding: false,
            muted: false,
            last_status: None,
            own_process: None,
            names: Names::default(),
        }
    }

    /// As new, with its buffers kept.
    pub fn clear(&mut self) {
        self.ahead.clear();
        self.ahead.shrink_to(AHEAD_KEPT_BYTES);
        self.expect.clear();
        self.expect.shrink_to(EXPECT_KEPT);
        self.unkept.tokens.clear();
        self.unkept.refused = None;
        self.shapes.clear();
        (self.start, self.scanned, self.end, self.body_left) = (0, 0, 0, 0);
        self.tail = Tail::PassOn;
        (self.deallocated, self.answered) = (None, 0);
        (self.results, self.discarding) = (false, false);
        (self.announces_ready, self.muted) = (false, false);
        self.preamble_error = None;
        self.last_status = None;
        self.own_process = None;
        self.names.clear();
    }

    /// Notifications of this process are the session's own, and come under the name that the client knows.
    pub fn comes_from(&mut self, process: OwnProcess) {
        self.own_process = Some(process);
    }

    /// The server knows a statement by another name than the client: errors are to say the client's.
    pub fn renames(&mut self, server: &[u8], client: &[u8]) {
        self.names.note(server, client);
    }

    /// Adds an expected reply.
    pub fn expect(&mut self, reply: Expect) {
        self.expect.push_back(reply);
    }

    /// The client's next ReadyForQuery is to be announced (`Event::Ready`).
    pub fn announce_ready(&mut self) {
        self.announces_ready = true;
    }

    /// How many replies are expected.
    pub fn expected(&self) -> usize {
        self.expect.len()
    }

    /// Takes the last expectations back, down to so many: what they were for is not sent.
    pub fn expect_only(&mut self, count: usize) {
        self.expect.truncate(count);
    }

    /// Shapes of rows that the server has told, by token.
    pub fn shapes(&self) -> &[(u32, u64)] {
        &self.shapes
    }

    /// Puts these bytes, an error, in the place of all that is still to come up to ReadyForQuery.
    pub fn mute(&mut self, error: &[u8]) {
        self.put_in(error);
        self.muted = true;
    }

    /// Everything expected has come.
    pub fn is_settled(&self) -> bool {
        self.expect.is_empty()
    }

    /// The transaction status of the last ReadyForQuery seen, pgsteer's own preamble included.
    pub fn last_status(&self) -> Option<TransactionStatus> {
        self.last_status
    }

    /// What the server did not carry out after all.
    pub fn take_unkept(&mut self) -> Unkept {
        std::mem::take(&mut self.unkept)
    }

    /// DEALLOCATE ALL or DISCARD ALL was carried out: the server has no named statements any more but those whose tokens are no
    /// less than this.
    pub fn take_deallocated(&mut self) -> Option<u32> {
        self.deallocated.take()
    }

    /// The ErrorResponse that one of pgsteer's own preambles got, if any.
    pub fn preamble_error(&self) -> Option<&[u8]> {
        self.preamble_error.as_deref()
    }

    /// Room to read into. Empty: everything scanned must be passed on first.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.scanned, self.end) = (0, 0, 0);
        } else if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            self.scanned -= self.start;
            self.end -= self.start;
            self.start = 0;
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were read into `spare`.
    pub fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Bytes have come that are not scanned yet.
    pub fn has_unscanned(&self) -> bool {
        self.scanned < self.end
    }

    /// How many bytes are ready for the client.
    pub fn ready_bytes(&self) -> usize {
        self.ahead.len() + (self.scanned - self.start)
    }

    /// The bytes that are ready for the client, as one slice.
    pub fn ready_joined(&mut self) -> &[u8] {
        if self.ahead.is_empty() {
            return self.bytes.get(self.start..self.scanned).unwrap_or_default();
        }
        self.set_aside();
        &self.ahead
    }

    /// All that was ready was passed on.
    pub fn passed_on(&mut self) {
        self.ahead.clear();
        self.start = self.scanned;
    }

    /// In the middle of a frame larger than the buffer, part of which was passed on: no message can be put in here.
    pub fn inside_frame(&self) -> bool {
        self.body_left > 0
    }

    /// Appends bytes of pgsteer's own for the client, after all that is ready.
    pub fn put_in(&mut self, bytes: &[u8]) {
        self.set_aside();
        self.ahead.extend_from_slice(bytes);
    }

    /// What comes now is thrown away, up to the end of the answer.
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// A row, COPY data or the end of a statement of the client's has been scanned: something has run.
    pub fn has_results(&self) -> bool {
        self.results
    }

    /// A Bind or Describe is next to be answered: whatever it is answered with, its statement has not begun.
    pub fn is_before_execute(&self) -> bool {
        let front = self.expect.front();
        matches!(
            front,
            Some(Expect::Bind | Expect::Describe | Expect::Shape { .. } | Expect::OwnShape { .. })
        )
    }

    /// The message at the scan position names one of the client's statements as the server knows it.
    pub fn tells_own_name(&self) -> bool {
        let whole = self.current().and_then(|(_, bytes)| self.bytes.get(self.scanned..self.scanned + bytes));
        whole.is_some_and(|whole| self.names.translated(whole).is_some())
    }

    /// The body of the message at the scan position (as far as it is in the buffer).
    pub fn body(&self) -> &[u8] {
        let rest = self.bytes.get(self.scanned..self.end).unwrap_or_default();
        match frame::header(rest) {
            Ok(Some(header)) => {
                rest.get(HEADER_BYTES..header.frame_bytes.min(rest.len())).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// Scans on to the next thing that needs a decision.
    pub fn scan(&mut self) -> Result<Event, LengthError> {
        loop {
            if self.body_left > 0 {
                let part = self.body_left.min(self.end - self.scanned);
                self.body_left -= part;
                self.pass(part);
                if self.body_left > 0 {
                    return Ok(Event::NeedMore);
                }
            }
            self.put_in_local();
            if self.expect.is_empty() && self.scanned == self.end {
                return Ok(Event::Settled);
            }
            let rest = self.bytes.get(self.scanned..self.end).unwrap_or_default();
            let Some(header) = frame::header(rest)? else { return Ok(Event::NeedMore) };
            if header.frame_bytes > rest.len() && header.frame_bytes <= self.bytes.len() {
                return Ok(Event::NeedMore);
            }
            if let Some(event) = self.frame(header.kind, header.frame_bytes) {
                return Ok(event);
            }
        }
    }

    /// Takes the frame at the scan position; `Some` when the caller must decide or know.
    fn frame(&mut self, kind: u8, frame_bytes: usize) -> Option<Event> {
        match kind {
            b'D' | b'd' => {
                self.results |= !self.in_preamble();
                self.take(frame_bytes);
            }
            b'E' => return self.error(frame_bytes),
            b'N' => {
                if self.in_preamble() {
                    self.drop_frame(frame_bytes);
                    return None;
                }
                return Some(Event::Notice(reply::error_fields(self.body())));
            }
            b'S' => return Some(Event::ParameterStatus),
            b'Z' if self.announces_ready && !self.in_preamble() => {
                self.announces_ready = false;
                return Some(Event::Ready);
            }
            b'Z' => return self.ready_for_query(frame_bytes),
            b'G' => {
                self.take(frame_bytes);
                return Some(Event::CopyIn);
            }
            b'1' | b'2' | b'3' | b'n' | b'T' | b'C' | b'I' | b's' => {
                if kind == b'C'
                    && matches!(self.body(), b"DISCARD ALL\0" | b"DEALLOCATE ALL\0")
                    && !self.in_preamble()
                {
                    self.deallocated = Some(self.answered);
                }
                self.results |= matches!(kind, b'C' | b'I' | b's') && !self.in_preamble();
                let reply = self.expect.front().copied();
                let shape = self.shape(kind, frame_bytes);
                let forward = self.reply(kind);
                if forward && !self.discarding {
                    self.take(frame_bytes)
                } else {
                    self.drop_frame(frame_bytes)
                }
                if let (Some(Expect::OwnShape { wanted: Some(wanted), .. }), b'n' | b'T') = (reply, kind)
                    && shape != Some(wanted)
                    && !self.muted
                {
                    return Some(Event::Changed);
                }
            }
            b't' if matches!(self.expect.front(), Some(Expect::OwnShape { .. })) => {
                self.drop_frame(frame_bytes);
            }
            b'A' => {
                let whole = self.bytes.get_mut(self.scanned..self.end).unwrap_or_default();
                if let Some(own) = self.own_process {
                    own.rename(whole);
                }
                self.take(frame_bytes);
            }
            // CopyOutResponse, CopyDone, ParameterDescription, FunctionCallResponse ...
            _ => self.take(frame_bytes),
        }
        None
    }

    /// Notes the shape of the rows that a RowDescription or NoData describes, if it was to be told back.
    fn shape(&mut self, kind: u8, frame_bytes: usize) -> Option<u64> {
        let (Some(&(Expect::Shape { token } | Expect::OwnShape { token, .. })), b'n' | b'T') =
            (self.expect.front(), kind)
        else {
            return None;
        };
        let body = self.body();
        // Of a description larger than the buffer nothing is known.
        let shape = match kind {
            b'n' => Some(NO_ROWS),
            _ if body.len() + HEADER_BYTES == frame_bytes => reply::row_shape(body),
            _ => None,
        };
        self.shapes.extend(shape.map(|shape| (token, shape)));
        shape
    }

    fn error(&mut self, frame_bytes: usize) -> Option<Event> {
        let fields = reply::error_fields(self.body());
        if fields.ends_session {
            return Some(Event::Error(fields));
        }
        if self.expect.front() == Some(&Expect::Own) {
            return Some(Event::OwnError(fields));
        }
        if self.in_preamble() {
            self.preamble_error =
                self.bytes.get(self.scanned..self.scanned + frame_bytes).map(<[u8]>::to_vec);
            self.drop_frame(frame_bytes);
            return None;
        }
        if self.discarding {
            self.drop_frame(frame_bytes);
            return None;
        }
        if self.muted {
            self.skip_to_sync();
            self.drop_frame(frame_bytes);
            return None;
        }
        Some(Event::Error(fields))
    }

    /// Passes the frame at the scan position on. After an error the replies up to the next ReadyForQuery will not come.
    pub fn accept(&mut self) {
        if let Some((kind, frame_bytes)) = self.current() {
            if kind == b'E' {
                self.skip_to_sync();
                let whole = self.bytes.get(self.scanned..self.scanned + frame_bytes);
                if let Some(translated) = whole.and_then(|whole| self.names.translated(whole)) {
                    self.drop_frame(frame_bytes);
                    return self.put_in(&translated);
                }
            }
            self.take(frame_bytes);
        }
    }

    /// Keeps the frame at the scan position back. An error is discarded together with the rest of its answer.
    pub fn discard(&mut self) {
        if let Some((kind, frame_bytes)) = self.current() {
            if kind == b'E' {
                self.skip_to_sync();
                self.discarding = true;
                // What was ready belongs to the same answer.
                self.passed_on();
            }
            self.drop_frame(frame_bytes);
        }
    }

    fn current(&self) -> Option<(u8, usize)> {
        let rest = self.bytes.get(self.scanned..self.end)?;
        frame::header(rest).ok().flatten().map(|header| (header.kind, header.frame_bytes))
    }

    /// After an error: a Query's own ends with its ReadyForQuery; behind one in the extended protocol the server skips everything
    /// up to the Sync, Queries too.
    fn skip_to_sync(&mut self) {
        if matches!(self.expect.front(), Some(Expect::Simple | Expect::Preamble)) {
            return;
        }
        self.unkept.refused = self.expect.front().and_then(|next| next.promise());
        self.skip_up_to(|next| matches!(next, Expect::Sync | Expect::OwnSync));
    }

    fn skip_up_to(&mut self, end: impl Fn(Expect) -> bool) {
        while let Some(&next) = self.expect.front()
            && !end(next)
        {
            self.unkept.tokens.extend(next.promise());
            self.expect.pop_front();
        }
    }

    fn in_preamble(&self) -> bool {
        matches!(self.expect.front(), Some(Expect::Preamble | Expect::Own))
    }

    fn ready_for_query(&mut self, frame_bytes: usize) -> Option<Event> {
        let status =
            self.body().first().and_then(|&byte| TransactionStatus::from_byte(byte)).unwrap_or_default();
        self.last_status = Some(status);
        // Whatever was expected before it and has not come was skipped.
        self.skip_up_to(|next| {
            matches!(next, Expect::Sync | Expect::OwnSync | Expect::Simple | Expect::Preamble)
        });
        let expected = self.expect.pop_front();
        self.muted = false;
        if matches!(expected, Some(Expect::Preamble | Expect::OwnSync)) || self.discarding {
            self.drop_frame(frame_bytes);
        } else {
            // Whole, and the client's, whatever of pgsteer's own is expected behind it.
            self.tail = Tail::PassOn;
            self.pass(frame_bytes);
        }
        self.expect.is_empty().then_some(Event::Complete(status))
    }

    /// Notes a reply other than an error; whether the client is to see it.
    fn reply(&mut self, kind: u8) -> bool {
        let matched = match (self.expect.front(), kind) {
            (Some(Expect::Preamble), _) | (Some(Expect::Own), b'1' | b'2') => return false,
            (Some(Expect::Own), b'C') => false,
            (Some(Expect::Parse { forward, .. }), b'1') => *forward,
            (Some(Expect::OwnClose { .. }), b'3') | (Some(Expect::OwnShape { .. }), b'n' | b'T') => false,
            (Some(Expect::Close { .. }), b'3')
            | (Some(Expect::Bind), b'2')
            | (Some(Expect::Describe | Expect::Shape { .. }), b'n' | b'T')
            | (Some(Expect::Execute), b'C' | b'I' | b's') => true,
            _ => return true,
        };
        self.pop_answered();
        matched
    }

    fn pop_answered(&mut self) {
        if let Some(token) = self.expect.pop_front().and_then(Expect::promise) {
            self.answered = token.saturating_add(1);
        }
    }

    fn put_in_local(&mut self) {
        while let Some(&Expect::Local { reply: bytes, .. }) = self.expect.front() {
            self.pop_answered();
            if !self.discarding && !self.muted {
                self.put_in(bytes);
            }
        }
    }

    /// Passes on a frame that may be larger than what is there.
    fn take(&mut self, frame_bytes: usize) {
        if self.discarding || self.muted || self.in_preamble() {
            self.drop_frame(frame_bytes);
            return;
        }
        let here = frame_bytes.min(self.end - self.scanned);
        self.body_left = frame_bytes - here;
        self.tail = Tail::PassOn;
        self.pass(here);
    }

    fn pass(&mut self, count: usize) {
        self.scanned += count;
        if self.discarding || self.tail == Tail::KeepBack {
            self.start = self.scanned;
        }
    }

    fn drop_frame(&mut self, frame_bytes: usize) {
        self.set_aside();
        let here = frame_bytes.min(self.end - self.scanned);
        self.scanned += here;
        self.start = self.scanned;
        self.body_left = frame_bytes - here;
        self.tail = Tail::KeepBack;
    }

    /// Moves what is ready out of the buffer, because a gap follows.
    fn set_aside(&mut self) {
        if self.start < self.scanned {
            let ready = self.bytes.get(self.start..self.scanned).unwrap_or_default();
            self.ahead.extend_from_slice(ready);
            self.start = self.scanned;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::put;

    fn answer(expected: &[Expect], bytes: &[u8]) -> Answer {
        let mut answer = Answer::new(vec![0; 256].into_boxed_slice());
        for &reply in expected {
            answer.expect(reply);
        }
        answer.spare()[..bytes.len()].copy_from_slice(bytes);
        answer.advance(bytes.len());
        answer
    }

    fn frames(kinds: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, body) in kinds {
            put(&mut out, *kind, &[body]);
        }
        out
    }

    #[test]
    fn a_plain_answer_passes_untouched() {
        let bytes = frames(&[(b'T', b"x"), (b'D', b"row"), (b'C', b"SELECT 1\0"), (b'Z', b"I")]);
        let mut answer = answer(&[Expect::Simple], &bytes);
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
        assert_eq!(answer.ready_joined(), bytes);
    }

    #[test]
    fn preambles_are_taken_out() {
        let mut bytes = frames(&[(b'C', b"BEGIN\0"), (b'Z', b"T")]);
        let own = frames(&[(b'T', b"x"), (b'C', b"SELECT 1\0"), (b'Z', b"T")]);
        bytes.extend_from_slice(&own);
        let mut answer = answer(&[Expect::Preamble, Expect::Simple], &bytes);
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::InTransaction)));
        assert_eq!(answer.ready_joined(), own);
    }

    /// What pgsteer puts in behind the client's Query is taken out as well.
    #[test]
    fn preambles_are_taken_out_behind_a_query() {
        let own = frames(&[(b'C', b"RESET\0"), (b'Z', b"T")]);
        let mut bytes = own.clone();
        bytes.extend_from_slice(&frames(&[(b'C', b"SET\0"), (b'Z', b"T")]));
        let mut answer = answer(&[Expect::Simple, Expect::Preamble], &bytes);
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::InTransaction)));
        assert_eq!(answer.ready_joined(), own);
    }

    #[test]
    fn local_replies_stand_where_they_belong() {
        let bytes = frames(&[(b'1', b""), (b'2', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
        let expected = [
            Expect::Local { reply: reply::PARSE_COMPLETE, token: 9 },
            Expect::Parse { forward: false, token: 0 },
            Expect::Bind,
            Expect::Local { reply: reply::CLOSE_COMPLETE, token: 9 },
            Expect::Execute,
            Expect::Sync,
        ];
        let mut answer = answer(&expected, &bytes);
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
        let seen = frames(&[(b'1', b""), (b'2', b""), (b'3', b""), (b'C', b"SELECT 0\0"), (b'Z', b"I")]);
        assert_eq!(answer.ready_joined(), seen);
    }

    #[test]
    fn an_error_skips_to_sync_and_tells_failed_parses() {
        let bytes = frames(&[(b'E', b"CXX001\0\0"), (b'Z', b"I")]);
        let expected = [
            Expect::Parse { forward: true, token: 7 },
            Expect::Bind,
            Expect::Local { reply: reply::CLOSE_COMPLETE, token: 9 },
            Expect::Sync,
        ];
        let mut answer = answer(&expected, &bytes);
        assert!(matches!(answer.scan(), Ok(Event::Error(_))));
        answer.accept();
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
        assert_eq!(answer.ready_joined(), bytes);
        assert_eq!(answer.take_unkept(), Unkept { tokens: vec![7, 9], refused: Some(7) });
    }

    /// C05: what was held back of a cancelled read never reaches the client.
    #[test]
    fn a_discarded_error_takes_its_answer_with_it() {
        let bytes = frames(&[(b'T', b"x"), (b'D', b"row"), (b'E', b"C40001\0\0"), (b'Z', b"I")]);
        let mut answer = answer(&[Expect::Simple], &bytes);
        assert!(matches!(answer.scan(), Ok(Event::Error(_))));
        answer.discard();
        assert_eq!(answer.scan(), Ok(Event::Complete(TransactionStatus::Idle)));
        assert!(answer.ready_joined().is_empty());
    }

    #[test]
    fn frames_larger_than_the_buffer_stream_through() {
        let mut big = vec![b'D'];
        big.extend_from_slice(&1000u32.to_be_bytes());
        big.extend(std::iter::repeat_n(7u8, 996));
        big.extend_from_slice(&frames(&[(b'C', b"SELECT 1\0"), (b'Z', b"I")]));
        let mut answer = answer(&[Expect::Simple], &[]);
        let (mut seen, mut rest) = (Vec::new(), &big[..]);
        loop {
            let spare = answer.spare();
            let count = spare.len().min(rest.len());
            spare[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            answer.advance(count);
            let event = answer.scan().unwrap();
            seen.extend_from_slice(answer.ready_joined());
            answer.passed_on();
            if let Event::Complete(_) = event {
                break;
            }
        }
        assert_eq!(seen, big);
    }
}
