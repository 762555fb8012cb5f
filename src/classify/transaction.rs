//! Transaction control: BEGIN and kin with all their modes, exactly understood or not at all.
//!
//! Invariant: an effect other than `Other` means that the statement is that command and nothing else.
//! Must not know: whether a transaction is open.

use super::lex::Kind;
use super::scan::Scanner;
use super::words::Word;
use super::{AccessMode, Reason, SessionEffect, TransactionEffect};

/// Transaction modes as they stand in BEGIN and SET TRANSACTION.
#[derive(Default)]
struct Modes {
    access: Option<AccessMode>,
    serializable: Option<bool>,
    deferrable: bool,
    count: u32,
}

/// After BEGIN or START TRANSACTION.
pub(super) fn begin(scan: &mut Scanner<'_>) {
    let effect = modes(scan).map(|modes| TransactionEffect::Begin {
        access: modes.access.unwrap_or_default(),
        serializable: modes.serializable.unwrap_or_default(),
    });
    control(scan, effect);
}

/// After SET TRANSACTION.
pub(super) fn set_transaction(scan: &mut Scanner<'_>) {
    let effect = modes(scan).filter(|modes| modes.count > 0).map(|modes| TransactionEffect::SetTransaction {
        access: modes.access.unwrap_or_default(),
        serializable: modes.serializable.unwrap_or_default(),
    });
    if effect.is_none() {
        scan.session(SessionEffect::Unknown);
    }
    control(scan, effect);
}

/// After COMMIT or END.
pub(super) fn commit(scan: &mut Scanner<'_>) {
    scan.commits = true;
    let effect = match end_of_block(scan) {
        Some(Next::Nothing) => Some(TransactionEffect::Commit),
        Some(Next::Another) => Some(TransactionEffect::Chain),
        None => None,
    };
    control(scan, effect);
}

/// After ROLLBACK or ABORT.
pub(super) fn rollback(scan: &mut Scanner<'_>) {
    let effect = match end_of_block(scan) {
        Some(Next::Nothing) => {
            scan.rolls_back = true;
            Some(TransactionEffect::Rollback)
        }
        Some(Next::Another) => {
            scan.commits = true;
            Some(TransactionEffect::Chain)
        }
        None => None,
    };
    control(scan, effect);
}

/// Anything else that touches the transaction.
pub(super) fn other(scan: &mut Scanner<'_>) {
    control(scan, None);
}

fn control(scan: &mut Scanner<'_>, effect: Option<TransactionEffect>) {
    scan.write(Reason::TransactionControl);
    scan.transaction(effect.unwrap_or(TransactionEffect::Other));
}

/// What a block is followed by.
enum Next {
    Nothing,
    /// Another block.
    Another,
}

/// `[WORK | TRANSACTION] [AND [NO] CHAIN]` and nothing more.
fn end_of_block(scan: &mut Scanner<'_>) -> Option<Next> {
    let _ = scan.accept(Word::Work) || scan.accept(Word::Transaction);
    let mut next = Next::Nothing;
    if scan.accept(Word::And) {
        if !scan.accept(Word::No) {
            next = Next::Another;
        }
        if !scan.accept(Word::Chain) {
            return None;
        }
    }
    scan.at_end().then_some(next)
}

/// The list of modes up to the end of the statement, `None` if anything in it is not understood or said twice.
fn modes(scan: &mut Scanner<'_>) -> Option<Modes> {
    let mut modes = Modes::default();
    while !scan.at_end() {
        if modes.count > 0 && scan.token().kind == Kind::Comma {
            scan.advance();
        }
        mode(scan, &mut modes)?;
        modes.count += 1;
    }
    Some(modes)
}

fn mode(scan: &mut Scanner<'_>, modes: &mut Modes) -> Option<()> {
    let fresh = if scan.accept(Word::Isolation) {
        modes.serializable.replace(isolation(scan)?).is_none()
    } else if scan.accept(Word::Read) {
        let access = if scan.accept(Word::Only) {
            AccessMode::ReadOnly
        } else if scan.accept(Word::Write) {
            AccessMode::ReadWrite
        } else {
            return None;
        };
        modes.access.replace(access).is_none()
    } else {
        let _ = scan.accept(Word::Not);
        if !scan.accept(Word::Deferrable) {
            return None;
        }
        !std::mem::replace(&mut modes.deferrable, true)
    };
    fresh.then_some(())
}

/// After ISOLATION: is it SERIALIZABLE?
fn isolation(scan: &mut Scanner<'_>) -> Option<bool> {
    if !scan.accept(Word::Level) {
        None
    } else if scan.accept(Word::Serializable) {
        Some(true)
    } else if scan.accept(Word::Repeatable) {
        scan.accept(Word::Read).then_some(false)
    } else {
        let known =
            scan.accept(Word::Read) && (scan.accept(Word::Committed) || scan.accept(Word::Uncommitted));
        known.then_some(false)
    }
}
