//! The replies that are still to come, in order, and what is not true if one of them does not.
//!
//! Invariant: the front is what the server answers next; each promise that an error skips is told back once, in order. Must not
//! know: bytes, buffers, what becomes of a reply.

use std::collections::VecDeque;

use crate::wire::reply::Shape;

/// Expected replies for which room is kept.
const KEPT: usize = 256;

/// A reply that the messages sent so far make the server send, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// The whole answer of a Query that pgsteer put in: kept back, up to ReadyForQuery.
    Preamble,
    /// ParseComplete, BindComplete and CommandComplete of a statement that pgsteer put in (`reply::put_statement`): kept back.
    Own,
    /// The same of a BEGIN that was put off, and of what is set for its transaction.
    Begin,
    /// ParseComplete, BindComplete, any rows, CommandComplete and CloseComplete of a statement that pgsteer put in among the client's
    /// (`reply::put_statement_within`): kept back, but for its error, which is the client's.
    Within,
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
        wanted: Option<Shape>,
        /// The caller's number for it.
        token: u32,
    },
    /// RowDescription or NoData for a Describe of a portal that pgsteer put in among statements of its own: kept back. Rows of another
    /// shape than this are an event, an error is one as that of `Own`.
    OwnPortal {
        /// The shape of its rows that the client was told (`reply::row_shape`).
        rows: u64,
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

/// All that is still to come.
#[derive(Debug, Default)]
pub(super) struct Expected {
    replies: VecDeque<Expect>,
    unkept: Unkept,
    /// The number of what is answered next is no less.
    answered: u32,
}

impl Expected {
    /// As new, with its room kept.
    pub(super) fn clear(&mut self) {
        self.replies.clear();
        self.replies.shrink_to(KEPT);
        self.unkept.tokens.clear();
        self.unkept.refused = None;
        self.answered = 0;
    }

    /// Adds one.
    pub(super) fn push(&mut self, reply: Expect) {
        self.replies.push_back(reply);
    }

    /// The next one.
    #[inline]
    pub(super) fn front(&self) -> Option<Expect> {
        self.replies.front().copied()
    }

    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.replies.len()
    }

    /// Nothing is to come.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.replies.is_empty()
    }

    /// Takes the last ones back, down to so many.
    pub(super) fn truncate(&mut self, count: usize) {
        self.replies.truncate(count);
    }

    /// What was not carried out.
    pub(super) fn take_unkept(&mut self) -> Unkept {
        std::mem::take(&mut self.unkept)
    }

    /// The number of what is answered next is no less than this.
    pub(super) fn answered(&self) -> u32 {
        self.answered
    }

    /// The next is the answer to something that pgsteer put in, all of which is kept back.
    #[inline]
    pub(super) fn is_preamble(&self) -> bool {
        matches!(
            self.replies.front(),
            Some(Expect::Preamble | Expect::Own | Expect::Begin | Expect::OwnPortal { .. } | Expect::Within)
        )
    }

    /// Notes a reply other than an error; whether the client is to see it.
    pub(super) fn reply(&mut self, kind: u8) -> bool {
        let matched = match (self.replies.front(), kind) {
            (Some(Expect::Preamble), _) | (Some(Expect::Own | Expect::Begin), b'1' | b'2') => return false,
            (Some(Expect::Within), b'1' | b'2' | b'C') => return false,
            (Some(Expect::Own | Expect::Begin), b'C') | (Some(Expect::Within), b'3') => false,
            (Some(Expect::Parse { forward, .. }), b'1') => *forward,
            (Some(Expect::OwnClose { .. }), b'3')
            | (Some(Expect::OwnShape { .. } | Expect::OwnPortal { .. }), b'n' | b'T') => false,
            (Some(Expect::Close { .. }), b'3')
            | (Some(Expect::Bind), b'2')
            | (Some(Expect::Describe | Expect::Shape { .. }), b'n' | b'T')
            | (Some(Expect::Execute), b'C' | b'I' | b's') => true,
            _ => return true,
        };
        self.pop_answered();
        matched
    }

    /// The next one has come.
    pub(super) fn pop_answered(&mut self) {
        if let Some(token) = self.replies.pop_front().and_then(Expect::promise) {
            self.answered = token.saturating_add(1);
        }
    }

    /// After an error: a Query's own ends with its ReadyForQuery; behind one in the extended protocol the server skips everything
    /// up to the Sync, Queries too.
    pub(super) fn skip_to_sync(&mut self) {
        if matches!(self.replies.front(), Some(Expect::Simple | Expect::Preamble)) {
            return;
        }
        self.unkept.refused = self.front().and_then(Expect::promise);
        self.skip_up_to(|next| matches!(next, Expect::Sync | Expect::OwnSync));
    }

    /// ReadyForQuery has come: whatever was expected before it and has not come was skipped. Gives what it ends.
    pub(super) fn ready(&mut self) -> Option<Expect> {
        self.skip_up_to(|next| {
            matches!(next, Expect::Sync | Expect::OwnSync | Expect::Simple | Expect::Preamble)
        });
        self.replies.pop_front()
    }

    fn skip_up_to(&mut self, end: impl Fn(Expect) -> bool) {
        while let Some(next) = self.front()
            && !end(next)
        {
            self.unkept.tokens.extend(next.promise());
            self.replies.pop_front();
        }
    }
}
