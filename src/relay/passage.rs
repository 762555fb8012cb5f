//! The bytes of one answer between a server and its client: read, scanned, passed on or kept back.
//!
//! Invariant: `start <= scanned <= end`; what stands before `scanned` and is not kept back reaches the client once, in order.
//! What passes untouched is never copied. Must not know: what frames mean, which replies are expected.

use crate::wire::frame::{self, HEADER_BYTES, Header, LengthError};

/// What is kept allocated for the next answer.
const AHEAD_KEPT_BYTES: usize = 64 * 1024;

/// What becomes of the rest of a frame larger than the buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tail {
    PassOn,
    KeepBack,
}

/// Bytes on their way.
#[derive(Debug)]
pub(super) struct Passage {
    bytes: Box<[u8]>,
    /// First byte to pass on.
    start: usize,
    /// First byte not scanned.
    scanned: usize,
    /// End of what was read.
    end: usize,
    /// Bytes to pass on before `start`; empty unless something was taken out or put in, or the client is behind.
    ahead: Vec<u8>,
    /// So many of them have been passed on.
    ahead_passed: usize,
    /// Bytes of a frame larger than the buffer that are still to come.
    body_left: usize,
    /// Bytes of it that were scanned, its header included.
    body_scanned: usize,
    /// What becomes of them.
    tail: Tail,
}

impl Passage {
    /// Of which nothing has come. `bytes` is the buffer to read into.
    pub(super) fn new(bytes: Box<[u8]>) -> Self {
        Self {
            bytes,
            start: 0,
            scanned: 0,
            end: 0,
            ahead: Vec::new(),
            ahead_passed: 0,
            body_left: 0,
            body_scanned: 0,
            tail: Tail::PassOn,
        }
    }

    /// As new, with its buffers kept.
    pub(super) fn clear(&mut self) {
        self.ahead.clear();
        self.ahead.shrink_to(AHEAD_KEPT_BYTES);
        (self.start, self.scanned, self.end, self.body_left) = (0, 0, 0, 0);
        (self.ahead_passed, self.body_scanned) = (0, 0);
        self.tail = Tail::PassOn;
    }

    /// Room to read into. Empty: everything scanned must be passed on first.
    pub(super) fn spare(&mut self) -> &mut [u8] {
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
    pub(super) fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// Bytes have come that are not scanned yet.
    #[inline]
    pub(super) fn has_unscanned(&self) -> bool {
        self.scanned < self.end
    }

    /// How many bytes are ready for the client.
    pub(super) fn ready_bytes(&self) -> usize {
        self.ahead.len() - self.ahead_passed + (self.scanned - self.start)
    }

    /// The bytes that are ready for the client, as one slice.
    pub(super) fn ready_joined(&mut self) -> &[u8] {
        if self.ahead.is_empty() {
            return self.bytes.get(self.start..self.scanned).unwrap_or_default();
        }
        self.set_aside();
        self.ahead.get(self.ahead_passed..).unwrap_or_default()
    }

    /// The first of them, to be passed on without being moved.
    pub(super) fn ready_front(&self) -> &[u8] {
        if self.ahead.is_empty() {
            self.bytes.get(self.start..self.scanned).unwrap_or_default()
        } else {
            self.ahead.get(self.ahead_passed..).unwrap_or_default()
        }
    }

    /// All that was ready was passed on.
    pub(super) fn passed_on(&mut self) {
        self.ahead.clear();
        self.ahead_passed = 0;
        self.start = self.scanned;
    }

    /// The first `count` bytes of `ready_front` were passed on.
    pub(super) fn passed(&mut self, count: usize) {
        if self.ahead.is_empty() {
            self.start = (self.start + count).min(self.scanned);
            return;
        }
        self.ahead_passed = (self.ahead_passed + count).min(self.ahead.len());
        if self.ahead_passed == self.ahead.len() {
            self.ahead.clear();
            self.ahead_passed = 0;
        } else if self.ahead_passed > self.ahead.len() / 2 {
            // At most as much is moved as was passed on before: each byte once.
            self.ahead.drain(..self.ahead_passed);
            self.ahead_passed = 0;
        }
    }

    /// In the middle of a frame larger than the buffer of which nothing has been passed on yet: forgets it, since its end will
    /// not come.
    pub(super) fn forget_begun(&mut self) {
        if self.body_left > 0 && self.tail == Tail::PassOn && self.ready_bytes() >= self.body_scanned {
            self.set_aside();
            self.ahead.truncate(self.ahead.len() - self.body_scanned);
            self.body_left = 0;
            self.start = self.scanned;
        }
    }

    /// Takes all that is ready.
    pub(super) fn take_ready(&mut self) -> Vec<u8> {
        self.set_aside();
        self.ahead.drain(..self.ahead_passed);
        self.ahead_passed = 0;
        std::mem::take(&mut self.ahead)
    }

    /// Bytes of a frame larger than the buffer that are still to come.
    pub(super) fn body_left(&self) -> usize {
        self.body_left
    }

    /// In the middle of a frame larger than the buffer: no message can be put in here.
    pub(super) fn inside_frame(&self) -> bool {
        self.body_left > 0
    }

    /// Appends bytes for the client, after all that is ready.
    pub(super) fn put_in(&mut self, bytes: &[u8]) {
        self.set_aside();
        self.ahead.extend_from_slice(bytes);
    }

    /// Goes on with a frame larger than the buffer; `false` when more of it is to come.
    #[inline]
    pub(super) fn end_frame(&mut self) -> bool {
        if self.body_left > 0 {
            let part = self.body_left.min(self.end - self.scanned);
            self.body_left -= part;
            self.body_scanned += part;
            self.scanned += part;
            if self.tail == Tail::KeepBack {
                self.start = self.scanned;
            }
        }
        self.body_left == 0
    }

    /// The header of the frame at the scan position, if that is all there, or as much of it as there is room for.
    #[inline]
    pub(super) fn next(&self) -> Result<Option<Header>, LengthError> {
        let rest = self.unscanned();
        let header = frame::header(rest)?;
        Ok(header.filter(|header| header.frame_bytes <= rest.len() || header.frame_bytes > self.bytes.len()))
    }

    /// Kind and length of the frame at the scan position.
    pub(super) fn current(&self) -> Option<(u8, usize)> {
        frame::header(self.unscanned()).ok().flatten().map(|header| (header.kind, header.frame_bytes))
    }

    /// The frame at the scan position, if it is all there.
    pub(super) fn whole(&self) -> Option<&[u8]> {
        let (_, bytes) = self.current()?;
        self.unscanned().get(..bytes)
    }

    /// The body of the frame at the scan position, as far as it is in the buffer.
    pub(super) fn body(&self) -> &[u8] {
        let rest = self.unscanned();
        match frame::header(rest) {
            Ok(Some(header)) => {
                rest.get(HEADER_BYTES..header.frame_bytes.min(rest.len())).unwrap_or_default()
            }
            _ => &[],
        }
    }

    /// All that is not scanned yet.
    #[inline]
    fn unscanned(&self) -> &[u8] {
        self.bytes.get(self.scanned..self.end).unwrap_or_default()
    }

    /// The same, to be changed in place.
    pub(super) fn unscanned_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.scanned..self.end).unwrap_or_default()
    }

    /// Passes the frame at the scan position on. It may be larger than what is there.
    #[inline]
    pub(super) fn pass_on(&mut self, frame_bytes: usize) {
        let here = frame_bytes.min(self.end - self.scanned);
        self.scanned += here;
        self.body_left = frame_bytes - here;
        self.body_scanned = here;
        self.tail = Tail::PassOn;
    }

    /// Keeps the frame at the scan position back. It may be larger than what is there.
    pub(super) fn keep_back(&mut self, frame_bytes: usize) {
        self.set_aside();
        let here = frame_bytes.min(self.end - self.scanned);
        self.scanned += here;
        self.start = self.scanned;
        self.body_left = frame_bytes - here;
        self.tail = Tail::KeepBack;
    }

    /// Moves what is ready out of the buffer, because a gap follows or room is wanted.
    pub(super) fn set_aside(&mut self) {
        if self.start < self.scanned {
            let ready = self.bytes.get(self.start..self.scanned).unwrap_or_default();
            self.ahead.extend_from_slice(ready);
            self.start = self.scanned;
        }
    }
}
