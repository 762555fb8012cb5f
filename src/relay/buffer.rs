//! The shard's stock of relay buffers: an idle client holds none.
//!
//! Invariant: at most `KEPT_MAX` of each kind are kept; each buffer is `BUFFER_BYTES` long. Must not know: what is in them.

use std::cell::RefCell;

use super::answer::Answer;

/// Bytes of a relay buffer. Reads of 4 kB would make wide rows three times dearer.
pub const BUFFER_BYTES: usize = 64 * 1024;

/// Buffers kept for reuse on one shard.
const KEPT_MAX: usize = 64;

/// A shard's free buffers. Last in, first out, so that the memory stays warm.
#[derive(Debug, Default)]
pub struct Stock {
    free: RefCell<Vec<Box<[u8]>>>,
    #[expect(clippy::vec_box, reason = "an answer is moved often; its box is what is kept")]
    answers: RefCell<Vec<Box<Answer>>>,
}

impl Stock {
    /// Takes a buffer; allocates only when the stock is empty.
    pub fn take(&self) -> Box<[u8]> {
        self.free.borrow_mut().pop().unwrap_or_else(|| vec![0; BUFFER_BYTES].into_boxed_slice())
    }

    /// Gives a buffer back.
    pub fn give(&self, buffer: Box<[u8]>) {
        let mut free = self.free.borrow_mut();
        if free.len() < KEPT_MAX && buffer.len() == BUFFER_BYTES {
            free.push(buffer);
        }
    }

    /// Takes an answer of which nothing has come; allocates only when the stock is empty.
    pub fn take_answer(&self) -> Box<Answer> {
        let kept = self.answers.borrow_mut().pop();
        kept.unwrap_or_else(|| Box::new(Answer::new(self.take())))
    }

    /// Gives an answer back.
    pub fn give_answer(&self, mut answer: Box<Answer>) {
        let mut answers = self.answers.borrow_mut();
        if answers.len() < KEPT_MAX {
            answer.clear();
            answers.push(answer);
        }
    }
}

/// Bytes read and not consumed, in a fixed buffer.
#[derive(Debug)]
pub struct Window {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Window {
    /// An empty window over `bytes`.
    pub fn new(bytes: Box<[u8]>) -> Self {
        Self { bytes, start: 0, end: 0 }
    }

    /// What is there.
    pub fn filled(&self) -> &[u8] {
        self.bytes.get(self.start..self.end).unwrap_or_default()
    }

    /// The same, to be changed in place.
    pub fn filled_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(self.start..self.end).unwrap_or_default()
    }

    /// Room to read into; moves what is there to the front when the end is reached. Empty when full.
    pub fn spare(&mut self) -> &mut [u8] {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.bytes.len() && self.start > 0 {
            self.bytes.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    /// `count` bytes were read into `spare`.
    pub fn advance(&mut self, count: usize) {
        self.end = (self.end + count).min(self.bytes.len());
    }

    /// `count` bytes of `filled` are done with.
    pub fn consume(&mut self, count: usize) {
        self.start = (self.start + count).min(self.end);
    }

    /// The buffer is full from front to end.
    pub fn is_full(&self) -> bool {
        self.end - self.start == self.bytes.len()
    }

    /// Makes room for more, up to `limit` bytes in all; `false` when it is that large already.
    pub fn grow(&mut self, limit: usize) -> bool {
        if self.bytes.len() >= limit {
            return false;
        }
        let mut bytes = vec![0; (self.bytes.len() * 2).min(limit)].into_boxed_slice();
        let filled = self.filled();
        let count = filled.len();
        if let Some(front) = bytes.get_mut(..count) {
            front.copy_from_slice(filled);
        }
        (self.bytes, self.start, self.end) = (bytes, 0, count);
        true
    }

    /// The buffer, for the stock.
    pub fn into_bytes(self) -> Box<[u8]> {
        self.bytes
    }
}
