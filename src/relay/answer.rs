//! One answer on its way from a server to its client: header scan, what to pass on, what to keep back.
//!
//! Invariant: the bytes offered to the client are a sequence of complete frames (or a part of one frame larger than the
//! buffer), in server order, with pgsteer's own messages taken out or put in exactly where the expected replies say so.
//! Must not know: sockets, routing, statements; nor where the bytes stand (`passage`) and what was sent for them (`expected`).

pub use super::expected::{Expect, Unkept};

use super::expected::Expected;
use super::names::Names;
use super::passage::Passage;
use crate::wire::frame::{self, HEADER_BYTES, LengthError};
use crate::wire::reply::{self, ErrorFields, OwnProcess, Shape, TransactionStatus};

/// The shape of no rows at all.
const NO_ROWS: u64 = 0;

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
    /// A portal that pgsteer has made anew has other rows than the client was told: nothing behind it is to run.
    OtherPortal,
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
    /// A ReadyForQuery where a statement has not been answered, or nothing was asked: the server can't count its answers.
    OutOfTurn,
}

/// The state of one answer.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts noted while scanning, not states")]
pub struct Answer {
    passage: Passage,
    expected: Expected,
    /// Shapes of rows, by token.
    shapes: Vec<(u32, Shape)>,
    /// The types of the parameters of the statement whose rows are described next (`reply::parameter_types`).
    parameters: Option<u64>,
    /// What had this number and more was answered after DEALLOCATE ALL or DISCARD ALL.
    deallocated: Option<u32>,
    /// The client's next ReadyForQuery is an event of its own.
    announces_ready: bool,
    preamble_error: Option<Vec<u8>>,
    results: bool,
    /// The client's last message was the end of a statement.
    completed: bool,
    /// Since the last ReadyForQuery something has come that can end a Query: the end of a statement, an error, or what a function gave.
    ended: bool,
    discarding: bool,
    /// The client has been told of an error: what comes up to ReadyForQuery is kept back.
    muted: bool,
    last_status: Option<TransactionStatus>,
    /// A BEGIN that was put off has succeeded.
    begun: bool,
    /// Whose notifications are the session's own.
    own_process: Option<OwnProcess>,
    names: Names,
}

impl Answer {
    /// An answer of which nothing has come. `bytes` is the buffer to read into.
    pub fn new(bytes: Box<[u8]>) -> Self {
        Self {
            passage: Passage::new(bytes),
            expected: Expected::default(),
            shapes: Vec::new(),
            parameters: None,
            deallocated: None,
            announces_ready: false,
            preamble_error: None,
            results: false,
            completed: false,
            ended: false,
            discarding: false,
            muted: false,
            last_status: None,
            begun: false,
            own_process: None,
            names: Names::default(),
        }
    }

    /// As new, with its buffers kept.
    pub fn clear(&mut self) {
        self.passage.clear();
        self.expected.clear();
        self.shapes.clear();
        self.parameters = None;
        self.deallocated = None;
        (self.results, self.completed, self.ended, self.discarding) = (false, false, false, false);
        (self.announces_ready, self.muted) = (false, false);
        self.preamble_error = None;
        (self.last_status, self.begun) = (None, false);
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
        self.expected.push(reply);
    }

    /// The client's next ReadyForQuery is to be announced (`Event::Ready`).
    pub fn announce_ready(&mut self) {
        self.announces_ready = true;
    }

    /// How many replies are expected.
    pub fn expected(&self) -> usize {
        self.expected.len()
    }

    /// Takes the last expectations back, down to so many: what they were for is not sent.
    pub fn expect_only(&mut self, count: usize) {
        self.expected.truncate(count);
    }

    /// Shapes of rows that the server has told, by token.
    pub fn shapes(&self) -> &[(u32, Shape)] {
        &self.shapes
    }

    /// Puts these bytes, an error, in the place of all that is still to come up to ReadyForQuery.
    pub fn mute(&mut self, error: &[u8]) {
        self.put_in(error);
        self.muted = true;
    }

    /// Everything expected has come.
    pub fn is_settled(&self) -> bool {
        self.expected.is_empty()
    }

    /// Whether a BEGIN that was put off has succeeded.
    pub fn has_begun(&self) -> bool {
        self.begun
    }

    /// Whether what comes next answers such a BEGIN.
    pub fn is_at_begin(&self) -> bool {
        self.expected.front() == Some(Expect::Begin)
    }

    /// The transaction status of the last ReadyForQuery seen, pgsteer's own preamble included.
    pub fn last_status(&self) -> Option<TransactionStatus> {
        self.last_status
    }

    /// What the server did not carry out after all.
    pub fn take_unkept(&mut self) -> Unkept {
        self.expected.take_unkept()
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
        self.passage.spare()
    }

    /// `count` bytes were read into `spare`.
    pub fn advance(&mut self, count: usize) {
        self.passage.advance(count);
    }

    /// Bytes have come that are not scanned yet.
    pub fn has_unscanned(&self) -> bool {
        self.passage.has_unscanned()
    }

    /// How many bytes are ready for the client.
    pub fn ready_bytes(&self) -> usize {
        self.passage.ready_bytes()
    }

    /// The bytes that are ready for the client, as one slice.
    pub fn ready_joined(&mut self) -> &[u8] {
        self.passage.ready_joined()
    }

    /// The first of them, to be passed on without being moved; empty when nothing is ready.
    pub fn ready_front(&self) -> &[u8] {
        self.passage.ready_front()
    }

    /// All that was ready was passed on.
    pub fn passed_on(&mut self) {
        self.passage.passed_on();
    }

    /// The first `count` bytes of `ready_front` were passed on.
    pub fn passed(&mut self, count: usize) {
        self.passage.passed(count);
    }

    /// Makes room to read into: what is ready is kept elsewhere.
    pub fn set_aside(&mut self) {
        self.passage.set_aside();
    }

    /// The server is given up: forgets a frame larger than the buffer whose end will not come, if nothing of it was passed on.
    pub fn forget_begun(&mut self) {
        self.passage.forget_begun();
    }

    /// Takes all that is ready for the client.
    pub fn take_ready(&mut self) -> Vec<u8> {
        self.passage.take_ready()
    }

    /// Bytes of a frame larger than the buffer that are still to come.
    pub fn body_left(&self) -> usize {
        self.passage.body_left()
    }

    /// In the middle of a frame larger than the buffer, part of which was passed on: no message can be put in here.
    pub fn inside_frame(&self) -> bool {
        self.passage.inside_frame()
    }

    /// Appends bytes of pgsteer's own for the client, after all that is ready.
    pub fn put_in(&mut self, bytes: &[u8]) {
        self.passage.put_in(bytes);
    }

    /// What comes now is thrown away, up to the end of the answer.
    pub fn is_discarding(&self) -> bool {
        self.discarding
    }

    /// A row, COPY data or the end of a statement of the client's has been scanned: something has run.
    pub fn has_results(&self) -> bool {
        self.results
    }

    /// The last that the client is told of is the end of a statement (CommandComplete or EmptyQueryResponse).
    pub fn is_completed(&self) -> bool {
        self.completed
    }

    /// A Bind or Describe is next to be answered: whatever it is answered with, its statement has not begun.
    pub fn is_before_execute(&self) -> bool {
        matches!(
            self.expected.front(),
            Some(Expect::Bind | Expect::Describe | Expect::Shape { .. } | Expect::OwnShape { .. })
        )
    }

    /// What is at the scan position answers something of pgsteer's own.
    pub fn is_in_preamble(&self) -> bool {
        self.expected.is_preamble()
    }

    /// The message at the scan position names one of the client's statements as the server knows it.
    pub fn tells_own_name(&self) -> bool {
        self.passage.whole().is_some_and(|whole| self.names.translated(whole).is_some())
    }

    /// The body of the message at the scan position (as far as it is in the buffer).
    pub fn body(&self) -> &[u8] {
        self.passage.body()
    }

    /// The whole message at the scan position (as far as it is in the buffer).
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = Vec::new();
        if let Some((kind, _)) = self.passage.current() {
            frame::put(&mut frame, kind, &[self.body()]);
        }
        frame
    }

    /// Scans on to the next thing that needs a decision.
    pub fn scan(&mut self) -> Result<Event, LengthError> {
        loop {
            if !self.passage.end_frame() {
                return Ok(Event::NeedMore);
            }
            self.put_in_local();
            if self.expected.is_empty() && !self.passage.has_unscanned() {
                return Ok(Event::Settled);
            }
            let Some(header) = self.passage.next()? else { return Ok(Event::NeedMore) };
            if let Some(event) = self.take_frame(header.kind, header.frame_bytes) {
                return Ok(event);
            }
        }
    }

    /// Takes the frame at the scan position; `Some` when the caller must decide or know.
    fn take_frame(&mut self, kind: u8, frame_bytes: usize) -> Option<Event> {
        match kind {
            b'D' | b'd' => {
                self.results |= !self.expected.is_preamble();
                self.completed = false;
                self.take(frame_bytes);
            }
            b'E' => return self.error(frame_bytes),
            b'N' => {
                if self.expected.is_preamble() {
                    self.passage.keep_back(frame_bytes);
                    return None;
                }
                return Some(Event::Notice(reply::error_fields(self.body())));
            }
            b'S' => return Some(Event::ParameterStatus),
            b'Z' if self.is_out_of_turn() => return Some(Event::OutOfTurn),
            b'Z' if self.announces_ready && !self.expected.is_preamble() => {
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
                    && !self.expected.is_preamble()
                {
                    self.deallocated = Some(self.expected.answered());
                }
                self.results |= matches!(kind, b'C' | b'I' | b's') && !self.expected.is_preamble();
                let reply = self.expected.front();
                self.begun |= kind == b'C' && reply == Some(Expect::Begin);
                let shape = self.shape(kind, frame_bytes);
                let own = self.expected.is_preamble();
                let forward = self.expected.reply(kind);
                self.ended |= matches!(kind, b'C' | b'I' | b's') && !own;
                // The client's, whatever of pgsteer's own is expected behind it.
                if forward && !self.discarding && !self.muted {
                    self.completed = matches!(kind, b'C' | b'I');
                    self.passage.pass_on(frame_bytes)
                } else {
                    self.passage.keep_back(frame_bytes)
                }
                if let (Some(Expect::OwnPortal { rows }), b'n' | b'T') = (reply, kind)
                    && shape.and_then(|shape| shape.rows) != Some(rows)
                {
                    return Some(Event::OtherPortal);
                }
                if let (Some(Expect::OwnShape { wanted: Some(wanted), .. }), b'n' | b'T') = (reply, kind)
                    && !shape.is_some_and(|shape| shape.agrees(wanted))
                    && !self.muted
                {
                    return Some(Event::Changed);
                }
            }
            b't' => self.parameter_description(frame_bytes),
            b'A' => {
                if let Some(own) = &self.own_process {
                    own.rename(self.passage.unscanned_mut());
                }
                self.take(frame_bytes);
            }
            // CopyOutResponse, CopyDone, FunctionCallResponse ...
            _ => {
                self.ended |= matches!(kind, b'V' | b'c');
                self.take(frame_bytes);
            }
        }
        None
    }

    /// Whether a ReadyForQuery can't come now.
    fn is_out_of_turn(&self) -> bool {
        match self.expected.front() {
            Some(Expect::Simple) => !self.ended,
            Some(Expect::Execute | Expect::Begin) => true,
            Some(_) => false,
            None => true,
        }
    }

    /// Notes the types of the parameters; the rows are described behind them.
    fn parameter_description(&mut self, frame_bytes: usize) {
        let body = self.body();
        let is_whole = body.len() + HEADER_BYTES == frame_bytes;
        self.parameters = if is_whole { reply::parameter_types(body) } else { None };
        if matches!(self.expected.front(), Some(Expect::OwnShape { .. })) {
            self.passage.keep_back(frame_bytes);
        } else {
            self.take(frame_bytes);
        }
    }

    /// Notes the shape of the rows that a RowDescription or NoData describes, if it was to be told back.
    fn shape(&mut self, kind: u8, frame_bytes: usize) -> Option<Shape> {
        let parameters = if matches!(kind, b'n' | b'T') { self.parameters.take() } else { None };
        let token = match (self.expected.front(), kind) {
            (Some(Expect::Shape { token } | Expect::OwnShape { token, .. }), b'n' | b'T') => Some(token),
            (Some(Expect::OwnPortal { .. }), b'n' | b'T') => None,
            _ => return None,
        };
        let body = self.body();
        // Of a description larger than the buffer nothing is known.
        let rows = match kind {
            b'n' => Some(NO_ROWS),
            _ if body.len() + HEADER_BYTES == frame_bytes => reply::row_shape(body),
            _ => None,
        };
        let shape = rows.map(|rows| Shape { rows: Some(rows), parameters });
        self.shapes.extend(token.zip(shape));
        shape
    }

    fn error(&mut self, frame_bytes: usize) -> Option<Event> {
        let fields = reply::error_fields(self.body());
        self.ended = true;
        if fields.ends_session {
            return Some(Event::Error(fields));
        }
        if matches!(self.expected.front(), Some(Expect::Own | Expect::Begin | Expect::OwnPortal { .. })) {
            return Some(Event::OwnError(fields));
        }
        if self.expected.is_preamble() && self.expected.front() != Some(Expect::Within) {
            self.preamble_error = self.passage.whole().map(<[u8]>::to_vec);
            self.passage.keep_back(frame_bytes);
            return None;
        }
        if self.muted && !self.discarding {
            self.expected.skip_to_sync();
            self.passage.keep_back(frame_bytes);
            return None;
        }
        Some(Event::Error(fields))
    }

    /// Passes the frame at the scan position on. After an error the replies up to the next ReadyForQuery will not come.
    pub fn accept(&mut self) {
        if let Some((kind, frame_bytes)) = self.passage.current() {
            if kind == b'E' {
                self.expected.skip_to_sync();
                if let Some(translated) = self.passage.whole().and_then(|whole| self.names.translated(whole))
                {
                    self.passage.keep_back(frame_bytes);
                    return self.put_in(&translated);
                }
            }
            self.take(frame_bytes);
        }
    }

    /// The same of an error, with a hint added.
    pub fn accept_with_hint(&mut self, hint: &str) {
        let Some((_, frame_bytes)) = self.passage.current() else { return };
        let Some(whole) = self.passage.whole() else { return self.accept() };
        let translated = self.names.translated(whole);
        let told = reply::with_hint(translated.as_deref().unwrap_or(whole), hint);
        self.expected.skip_to_sync();
        self.passage.keep_back(frame_bytes);
        self.put_in(&told);
    }

    /// Keeps the frame at the scan position back. An error is discarded together with the rest of its answer.
    pub fn discard(&mut self) {
        if let Some((kind, frame_bytes)) = self.passage.current() {
            if kind == b'E' {
                self.expected.skip_to_sync();
                self.discarding = true;
                // What was ready belongs to the same answer.
                self.passed_on();
            }
            self.passage.keep_back(frame_bytes);
        }
    }

    fn ready_for_query(&mut self, frame_bytes: usize) -> Option<Event> {
        let status =
            self.body().first().and_then(|&byte| TransactionStatus::from_byte(byte)).unwrap_or_default();
        self.last_status = Some(status);
        self.ended = false;
        let expected = self.expected.ready();
        self.muted = false;
        if matches!(expected, Some(Expect::Preamble | Expect::OwnSync)) || self.discarding {
            self.passage.keep_back(frame_bytes);
        } else {
            // Whole, and the client's, whatever of pgsteer's own is expected behind it.
            self.passage.pass_on(frame_bytes);
        }
        self.expected.is_empty().then_some(Event::Complete(status))
    }

    fn put_in_local(&mut self) {
        while let Some(Expect::Local { reply: bytes, .. }) = self.expected.front() {
            self.expected.pop_answered();
            if !self.discarding && !self.muted {
                self.put_in(bytes);
            }
        }
    }

    /// Passes a frame on, unless what comes now is kept back.
    fn take(&mut self, frame_bytes: usize) {
        if self.discarding || self.muted || self.expected.is_preamble() {
            self.passage.keep_back(frame_bytes);
        } else {
            self.passage.pass_on(frame_bytes);
        }
    }
}
