//! What a transaction on a standby has run so far, while all that its client was told of it is that it succeeded: should the
//! standby cancel or lose it, it is begun anew elsewhere, statement by statement, before the one that comes next.
//!
//! Invariant: holds only statements whose success tells nothing that depends on the node or the time (DECLARE of a cursor over a
//! known read, CLOSE, SAVEPOINT, RELEASE), and what cursors were described as, in their order, and never more than `BYTES_MAX`. Pure. Must not know: sockets, servers.

use super::prepared::Names;
use super::transaction::Transaction;
use super::unit;
use crate::classify::{AccessMode, InReadOnly};
use crate::relay::answer::Expect;
use crate::wire::extended::{self, Named};
use crate::wire::frame;

/// Bytes of statements kept for one session; a transaction of more is not begun anew.
pub const BYTES_MAX: usize = 64 * 1024;

/// What is done again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Rerun {
    /// A statement: through the unnamed statement and portal, whatever it came by.
    Statement {
        /// Its text.
        sql: Box<[u8]>,
        /// Count and OIDs of its parameters, as the client sent them.
        types: Box<[u8]>,
        /// Formats and values of its parameters, as the client sent them.
        values: Box<[u8]>,
    },
    /// The description of a cursor, which is to be the same.
    Description {
        /// Its name.
        portal: Box<[u8]>,
        /// The shape of its rows (`reply::row_shape`).
        rows: u64,
    },
}

/// A transaction that can be begun anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SoFar {
    sql: Box<str>,
    access: AccessMode,
    again: Vec<Rerun>,
}

impl Rerun {
    /// The one statement that a unit runs, if it does nothing else that would matter the next time: a Query, or Bind and Execute,
    /// behind a Parse if it is wanted, and any Describe. `names`: behind the unit.
    pub fn of(unit: &[u8], names: &Names) -> Option<Self> {
        let mut frames = unit::frames(unit).peekable();
        if let Some((_, body)) = frames.next_if(|(kind, _)| *kind == b'Q') {
            return Some(Self::new(extended::query(body)?, b"\0\0", b"\0\0\0\0\0\0"));
        }
        let parsed = match frames.next_if(|(kind, _)| *kind == b'P') {
            Some((_, body)) => Some(extended::parse(body)?),
            None => None,
        };
        frames.next_if(|(kind, _)| *kind == b'D');
        let (_, body) = frames.next_if(|(kind, _)| *kind == b'B')?;
        let bind = extended::bind(body)?;
        let here = parsed.filter(|parse| parse.name == bind.statement);
        let bound = match (here, names.named(bind.statement), &names.unnamed) {
            (Some(parse), ..) => Self::new(parse.sql, parse.types, bind.rest),
            (None, Some(named), _) => Self::new(&named.sql, &named.types, bind.rest),
            (None, None, Some(unnamed)) if bind.statement.is_empty() => {
                Self::new(&unnamed.sql, &unnamed.types, bind.rest)
            }
            _ => return None,
        };
        frames.next_if(|(kind, _)| *kind == b'D');
        frames.next_if(|(kind, _)| *kind == b'E')?;
        frames.all(|(kind, _)| kind == b'S').then_some(bound)
    }

    fn new(sql: &[u8], types: &[u8], values: &[u8]) -> Self {
        Self::Statement { sql: sql.into(), types: types.into(), values: values.into() }
    }

    fn bytes(&self) -> usize {
        match self {
            Self::Statement { sql, types, values } => sql.len() + types.len() + values.len(),
            Self::Description { portal, .. } => portal.len(),
        }
    }

    /// Appends it without a Sync: should it fail, nothing behind it runs. Gives what it is answered with.
    pub fn put(&self, out: &mut Vec<u8>) -> Expect {
        match self {
            Self::Statement { sql, types, values } => {
                frame::put(out, b'P', &[b"\0", sql, b"\0", types]);
                frame::put(out, b'B', &[b"\0\0", values]);
                frame::put(out, b'E', &[b"\0\0\0\0\0"]);
                Expect::Own
            }
            Self::Description { portal, rows } => {
                frame::put(out, b'D', &[b"P", portal, b"\0"]);
                Expect::OwnPortal { rows: *rows }
            }
        }
    }
}

impl SoFar {
    /// What becomes of it with a unit that a standby has answered without an error, in a transaction that goes on. `before`: where the
    /// transaction stood; `known`: what it had run if it had begun; `in_read_only`: what the unit is there; `rows`: the shape of rows that
    /// it told last.
    pub fn after(
        before: Transaction,
        known: Option<Box<Self>>,
        (unit, in_read_only): (&[u8], InReadOnly),
        names: &Names,
        rows: Option<u64>,
    ) -> Option<Box<Self>> {
        let rerun = if in_read_only == InReadOnly::Quiet {
            Some(Rerun::of(unit, names)?)
        } else if let Some(portal) = described_portal(unit) {
            Some(Rerun::Description { portal: portal.into(), rows: rows? })
        } else if only_prepares(unit) {
            None
        } else {
            return None;
        };
        let mut so_far = match before {
            Transaction::Deferred { sql, access, serializable: false, again } => {
                Box::new(Self { sql, access, again: again.into_vec() })
            }
            Transaction::Open => known?,
            _ => return None,
        };
        so_far.again.extend(rerun);
        let bytes: usize = so_far.again.iter().map(Rerun::bytes).sum();
        (bytes <= BYTES_MAX).then_some(so_far)
    }

    /// The transaction as one of which nothing has been sent.
    pub fn deferred(self) -> Transaction {
        let Self { sql, access, again } = self;
        Transaction::Deferred { sql, access, serializable: false, again: again.into_boxed_slice() }
    }
}

/// The portal that a unit describes, if it does nothing else.
fn described_portal(unit: &[u8]) -> Option<&[u8]> {
    let mut frames = unit::frames(unit);
    let (b'D', body) = frames.next()? else { return None };
    let Named::Portal(portal) = extended::named(body)? else { return None };
    frames.all(|(kind, _)| kind == b'S').then_some(portal)
}

/// Whether a unit runs nothing and binds nothing: what it prepares and describes is the session's, wherever it runs.
fn only_prepares(unit: &[u8]) -> bool {
    !unit.is_empty()
        && unit::frames(unit).all(|(kind, body)| match kind {
            b'P' | b'S' => true,
            b'D' | b'C' => matches!(extended::named(body), Some(Named::Statement(_))),
            _ => false,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(sql: &str) -> Vec<u8> {
        let mut unit = Vec::new();
        frame::put(&mut unit, b'Q', &[sql.as_bytes(), b"\0"]);
        unit
    }

    fn begun() -> Transaction {
        Transaction::Deferred {
            sql: "BEGIN READ ONLY".into(),
            access: AccessMode::ReadOnly,
            serializable: false,
            again: Box::default(),
        }
    }

    fn after(
        before: Transaction,
        known: Option<Box<SoFar>>,
        unit: &[u8],
        what: InReadOnly,
    ) -> Option<Box<SoFar>> {
        SoFar::after(before, known, (unit, what), &Names::default(), None)
    }

    /// It was passed through in parts, and is not known here.
    #[test]
    fn what_is_not_seen_has_told_something() {
        assert_eq!(after(begun(), None, &[], InReadOnly::AsIs), None);
    }

    #[test]
    fn what_tells_nothing_is_kept_in_order() {
        let first = after(begun(), None, &query("DECLARE c CURSOR FOR SELECT 1"), InReadOnly::Quiet);
        let both = after(Transaction::Open, first, &query("SAVEPOINT a"), InReadOnly::Quiet).unwrap();
        let Transaction::Deferred { sql, again, .. } = both.clone().deferred() else { panic!("{both:?}") };
        assert_eq!(&*sql, "BEGIN READ ONLY");
        let text = |rerun: &'_ Rerun| match rerun {
            Rerun::Statement { sql, .. } => sql.to_vec(),
            Rerun::Description { portal, .. } => portal.to_vec(),
        };
        let texts: Vec<Vec<u8>> = again.iter().map(text).collect();
        assert_eq!(texts, [b"DECLARE c CURSOR FOR SELECT 1".to_vec(), b"SAVEPOINT a".to_vec()]);
        // One that was begun anew is told of again.
        let third = after(both.clone().deferred(), None, &query("SAVEPOINT b"), InReadOnly::Quiet).unwrap();
        assert_eq!(third.again.len(), 3);
        for (what, unit) in [(InReadOnly::Fetches, "FETCH c"), (InReadOnly::AsIs, "SELECT 1")] {
            assert_eq!(after(Transaction::Open, Some(both.clone()), &query(unit), what), None, "{unit}");
        }
        assert_eq!(after(Transaction::Open, None, &query("SAVEPOINT a"), InReadOnly::Quiet), None);
    }

    #[test]
    fn values_are_kept_with_their_statement() {
        let mut unit = Vec::new();
        let sql = b"DECLARE c CURSOR FOR SELECT $1";
        frame::put(&mut unit, b'P', &[b"s\0", sql, b"\0\0\x01\0\0\0\x17"]);
        frame::put(&mut unit, b'B', &[b"p\0s\0", b"\0\0\0\x01\0\0\0\x017\0\0"]);
        frame::put(&mut unit, b'E', &[b"p\0\0\0\0\0"]);
        frame::put(&mut unit, b'S', &[]);
        let kept = Rerun::of(&unit, &Names::default()).unwrap();
        assert_eq!(kept, Rerun::new(sql, b"\0\x01\0\0\0\x17", b"\0\0\0\x01\0\0\0\x017\0\0"));
        let mut out = Vec::new();
        assert_eq!(kept.put(&mut out), Expect::Own);
        let frames: Vec<(u8, &[u8])> = unit::frames(&out).collect();
        assert_eq!(frames.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), b"PBE");
        assert_eq!(extended::bind(frames[1].1).unwrap().values().collect::<Vec<_>>(), [b"7"]);
    }

    /// C05: what else a unit does may change what the same messages would do the next time.
    #[test]
    fn a_unit_that_does_more_is_not_run_again() {
        const PARSE: (u8, &[u8]) = (b'P', b"s\0DECLARE c CURSOR FOR SELECT 1\0\0\0");
        const BIND: (u8, &[u8]) = (b'B', b"\0s\0\0\0\0\0\0\0");
        const EXECUTE: (u8, &[u8]) = (b'E', b"\0\0\0\0\0");
        const SYNC: (u8, &[u8]) = (b'S', b"");
        let of = |frames: &[(u8, &[u8])]| {
            let mut unit = Vec::new();
            for (kind, body) in frames {
                frame::put(&mut unit, *kind, &[body]);
            }
            Rerun::of(&unit, &Names::default())
        };
        for kept in [
            &[PARSE, BIND, EXECUTE, SYNC][..],
            &[PARSE, (b'D', b"Ss\0"), BIND, (b'D', b"P\0"), EXECUTE, SYNC],
            &[PARSE, BIND, EXECUTE],
        ] {
            assert!(of(kept).is_some(), "{kept:?}");
        }
        for more in [
            &[
                PARSE,
                BIND,
                EXECUTE,
                (b'C', &b"Ss\0"[..]),
                (b'P', b"s\0DECLARE c CURSOR FOR SELECT 2\0\0\0"),
                SYNC,
            ][..],
            &[PARSE, BIND, EXECUTE, (b'P', b"s\0SELECT 2\0\0\0"), SYNC],
            &[PARSE, BIND, EXECUTE, (b'C', b"Pc\0"), SYNC],
            &[(b'C', b"Pc\0"), PARSE, BIND, EXECUTE, SYNC],
            &[PARSE, BIND, SYNC],
            &[PARSE, BIND, EXECUTE, EXECUTE, SYNC],
        ] {
            assert_eq!(of(more), None, "{more:?}");
        }
    }

    #[test]
    fn what_is_only_prepared_is_not_run_again() {
        let mut unit = Vec::new();
        frame::put(&mut unit, b'P', &[b"s\0SELECT 1\0\0\0"]);
        frame::put(&mut unit, b'D', &[b"Ss\0"]);
        frame::put(&mut unit, b'S', &[]);
        let kept = after(begun(), None, &unit, InReadOnly::AsIs).unwrap();
        assert!(kept.again.is_empty());
        frame::put(&mut unit, b'B', &[b"p\0s\0\0\0\0\0\0\0"]);
        assert_eq!(after(begun(), None, &unit, InReadOnly::AsIs), None, "a portal is its server's");
    }

    #[test]
    fn what_was_told_of_a_cursor_is_to_be_the_same() {
        let declared = after(begun(), None, &query("DECLARE c CURSOR FOR SELECT 1"), InReadOnly::Quiet);
        let mut unit = Vec::new();
        frame::put(&mut unit, b'D', &[b"Pc\0"]);
        frame::put(&mut unit, b'S', &[]);
        let of = |rows| {
            let what = (&unit[..], InReadOnly::AsIs);
            SoFar::after(Transaction::Open, declared.clone(), what, &Names::default(), rows)
        };
        assert_eq!(of(None), None, "it is not known what was told");
        let again = of(Some(7)).unwrap().again;
        assert_eq!(again.last().unwrap().put(&mut Vec::new()), Expect::OwnPortal { rows: 7 });
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let long = format!("DECLARE c CURSOR FOR SELECT '{}'", "x".repeat(BYTES_MAX));
        assert_eq!(after(begun(), None, &query(&long), InReadOnly::Quiet), None);
    }
}
