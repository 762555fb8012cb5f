//! A session's own bounds on what it may read: its writes, and what it has already seen.
//!
//! Invariant (contract P3): once the session has had an answer from the primary at time t, a standby qualifies only when it
//! has replayed the flush LSN of a primary sample whose probe was sent after t; after a read on a standby, another standby
//! qualifies only when it has replayed at least what the first had replayed at a probe sent after that read. In a new epoch
//! all of this becomes: it has replayed a sample of the new primary, because an older LSN may lie on lost WAL.
//! Must not know: sockets, clocks.
//!
//! [`Freshness::settle`] is to be called with each snapshot before [`Freshness::admits`]; both cost a few comparisons.
//!
//! The bound is the flush LSN, which covers what was *committed synchronously*. Behind an asynchronous commit (its own, or one
//! of somebody else that it may have seen) it is the insert LSN, which an idle primary may take long to reach.

use std::time::Instant;

use super::token::Bound;
use crate::topology::model::{Epoch, Lsn, NodeId, NodeView, PrimaryView, Snapshot};

/// How what a session has seen was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Commits {
    /// Its WAL was flushed before anybody saw it.
    #[default]
    Synchronous,
    /// Perhaps not (`synchronous_commit = off`).
    Asynchronous,
}

/// What a standby may not have, of what a session is to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lacking {
    /// What the session wrote, or saw on the primary.
    Written,
    /// What another standby has shown it.
    Shown,
}

/// WAL is written in pages of so many bytes (`XLOG_BLCKSZ`).
const WAL_PAGE_BYTES: u64 = 8192;
/// The header of the first page of a segment, the longest (`SizeOfXLogLongPHD`).
const WAL_PAGE_HEADER_BYTES: u64 = 40;

/// The session's memory. A few words; kept for every session.
#[derive(Debug, Clone, Default)]
pub struct Freshness {
    /// When the primary last answered this session, and no token has been taken for it yet.
    pub primary_answered_at: Option<Instant>,
    /// The standby that answered last, and when.
    pub standby_answered: Option<(NodeId, Instant)>,
    /// How what that answer told, or those before it since the last token, was committed.
    answered_by: Commits,
    /// What a standby must have replayed, on the history of `epoch`.
    token: Option<Lsn>,
    /// A token was brought since the session began.
    has_brought: bool,
    /// A position that was brought from elsewhere, and when: it is not known yet whether the primary has come to it.
    brought: Option<(Lsn, Instant)>,
    /// The epoch to which everything above belongs.
    epoch: Epoch,
}

impl Freshness {
    /// The primary answered: the session counts as having seen everything up to `now`, its own writes included.
    pub fn on_primary_answer(&mut self, now: Instant, commits: Commits) {
        self.primary_answered_at = self.primary_answered_at.max(Some(now));
        if commits == Commits::Asynchronous {
            self.answered_by = commits;
        }
        // A standby holds only what the primary had flushed, so this covers it.
        self.standby_answered = None;
    }

    /// A standby answered.
    pub fn on_standby_answer(&mut self, node: NodeId, now: Instant) {
        self.standby_answered = Some((node, now));
    }

    /// A token was brought: what it stands for is to be seen. To be called behind `settle` with the snapshot of now.
    pub fn bring(&mut self, bound: Bound, now: Instant) {
        self.has_brought = true;
        match bound {
            Bound::Position(lsn) => {
                let before = self.brought.map(|(lsn, _)| lsn);
                self.brought = Some((before.map_or(lsn, |before| before.max(lsn)), now));
            }
            // It is of an older history, all of which was flushed when this one began.
            Bound::Everything => self.on_primary_answer(now, Commits::Synchronous),
        }
    }

    /// Whether the session has brought a token: then it is bound by what it sees, whatever else is promised.
    pub fn has_brought(&self) -> bool {
        self.has_brought
    }

    /// Forgets everything, for a session that starts anew.
    pub fn clear(&mut self) {
        *self = Self::default();
    }

    /// The WAL position that a standby must have replayed, where one is known.
    pub fn token(&self) -> Option<Lsn> {
        self.token
    }

    /// Takes what the snapshot offers: a token as soon as the primary was sampled after its last answer, and a new bound
    /// where the epoch has changed. `others`: how anybody may have committed what the session saw there.
    pub fn settle(&mut self, snapshot: &Snapshot, others: Commits) {
        if self.epoch == snapshot.epoch && self.primary_answered_at.is_none() && self.brought.is_none() {
            return;
        }
        if self.is_blank() {
            self.epoch = snapshot.epoch;
            return;
        }
        let Some(primary) = &snapshot.primary else { return };
        self.settle_brought(primary, snapshot.epoch);
        if self.epoch == snapshot.epoch && self.primary_answered_at.is_none() {
            return;
        }
        let sampled_after = self.primary_answered_at.is_none_or(|answered| primary.sampled_at > answered);
        if !sampled_after {
            return;
        }
        if self.epoch != snapshot.epoch {
            // What the old standby had replayed may be lost WAL: only the new primary's history counts.
            self.standby_answered = None;
            self.token = None;
            self.epoch = snapshot.epoch;
        }
        let bound = match (std::mem::take(&mut self.answered_by), others) {
            (Commits::Synchronous, Commits::Synchronous) => primary.flush_lsn,
            _ => written(primary),
        };
        self.token = self.token.max(Some(bound));
        self.primary_answered_at = None;
    }

    /// What was brought counts as soon as the primary is known to have come to it. One that has not by now never gave it: then
    /// what it has is all there is to be seen.
    fn settle_brought(&mut self, primary: &PrimaryView, epoch: Epoch) {
        let Some((lsn, at)) = self.brought else { return };
        if self.epoch != epoch {
            // Which history it is of is not known any more.
            self.brought = None;
            self.on_primary_answer(at, Commits::Synchronous);
        } else if lsn <= primary.flush_lsn || primary.sampled_at > at {
            self.brought = None;
            let bound = if lsn <= written(primary) { lsn } else { primary.flush_lsn };
            self.token = self.token.max(Some(bound));
        }
    }

    /// May this standby answer the session's next read, as far as its own writes and reads go? (The lag budget is
    /// another question.)
    pub fn admits(&self, standby: &NodeView, snapshot: &Snapshot) -> bool {
        self.lacking(standby, snapshot).is_none()
    }

    /// What keeps it from that.
    pub fn lacking(&self, standby: &NodeView, snapshot: &Snapshot) -> Option<Lacking> {
        if self.is_blank() {
            return None;
        }
        let is_other_history = self.epoch != snapshot.epoch || self.brought.is_some();
        if is_other_history || !self.admits_own_writes(standby) {
            return Some(Lacking::Written);
        }
        (!self.admits_seen(standby, snapshot)).then_some(Lacking::Shown)
    }

    fn is_blank(&self) -> bool {
        self.brought.is_none()
            && self.token.is_none()
            && self.primary_answered_at.is_none()
            && self.standby_answered.is_none()
    }

    fn admits_own_writes(&self, standby: &NodeView) -> bool {
        // An earlier token may be an insert LSN, above the flush LSN of later samples.
        if self.token.is_some_and(|token| standby.position.is_none_or(|position| position < token)) {
            return false;
        }
        // No token of the last answer yet, but the standby may have replayed a sample sent after it all the same.
        self.primary_answered_at.is_none_or(|answered| {
            let is_synchronous = self.answered_by == Commits::Synchronous;
            is_synchronous && standby.fresh_as_of.is_some_and(|as_of| as_of > answered)
        })
    }

    fn admits_seen(&self, standby: &NodeView, snapshot: &Snapshot) -> bool {
        let Some((last, answered)) = self.standby_answered else { return true };
        if standby.fresh_as_of.is_some_and(|as_of| as_of > answered) {
            return true;
        }
        // A standby that was away since then may have come back with less than the session saw there.
        let unbroken = |node: &NodeView| node.role_since.is_none_or(|since| since <= answered);
        if standby.id == last {
            return unbroken(standby);
        }
        let seen = snapshot
            .node(last)
            .filter(|node| unbroken(node))
            .filter(|node| node.sampled_at.is_some_and(|sampled_at| sampled_at > answered))
            .and_then(|node| node.position);
        seen.zip(standby.position).is_some_and(|(seen, position)| position >= seen)
    }
}

/// The end of what had been written: the insert LSN, unless that only stands behind the header of a page on which there is nothing.
fn written(primary: &PrimaryView) -> Lsn {
    let PrimaryView { flush_lsn, insert_lsn, .. } = *primary;
    let is_on_new_page = flush_lsn.0 % WAL_PAGE_BYTES == 0;
    let is_header = insert_lsn.0.checked_sub(flush_lsn.0).is_some_and(|bytes| bytes <= WAL_PAGE_HEADER_BYTES);
    if is_on_new_page && is_header { flush_lsn } else { insert_lsn }
}
