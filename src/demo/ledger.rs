//! What the writers know of their rows, and whether the table agrees.
//!
//! Invariant: a fate follows from the answer alone. `Acknowledged` and `Refused` are statements of fact about the table,
//! `Unknown` is none. Pure. It must not know how rows are written.

use std::collections::BTreeMap;

/// What a writer was told about one row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    /// Sent, and the answer is missing or says that the outcome is not known.
    Unknown,
    /// An error said that the row was certainly not written.
    Refused,
    /// The insert was acknowledged.
    Acknowledged,
}

/// What an error tells about the row; `None` stands for a lost connection.
pub(super) fn fate_of_error(sqlstate: Option<&str>) -> Fate {
    match sqlstate {
        // The server may have been stopped after the commit, while it waited for a standby.
        None | Some("57P01" | "57P02" | "57014") => Fate::Unknown,
        Some(code) if code.starts_with("08") => Fate::Unknown,
        Some(_) => Fate::Refused,
    }
}

/// The fates of one writer's rows, by sequence number from 0.
#[derive(Debug, Clone, Default)]
pub(super) struct Journal {
    fates: Vec<Fate>,
}

impl Journal {
    /// The row is about to be sent: from now on it may be there.
    pub(super) fn attempt(&mut self, seq: i64) {
        self.settle(seq, Fate::Unknown);
    }

    /// The answer is there.
    pub(super) fn settle(&mut self, seq: i64, fate: Fate) {
        let Ok(index) = usize::try_from(seq) else { return };
        if index >= self.fates.len() {
            self.fates.resize(index + 1, Fate::Refused);
        }
        self.fates[index] = fate;
    }

    fn fate(&self, seq: i64) -> Option<Fate> {
        self.fates.get(usize::try_from(seq).ok()?).copied()
    }
}

/// How often one row is in the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) writer: i32,
    pub(super) seq: i64,
    pub(super) count: i64,
}

/// What the comparison brought to light.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Verdict {
    /// Rows that were acknowledged.
    pub(super) acknowledged: u64,
    /// Acknowledged and not there.
    pub(super) lost: u64,
    /// There more than once, whatever was said about them.
    pub(super) doubled: u64,
    /// Said not to have been written, and there; or never sent at all.
    pub(super) unexpected: u64,
    /// Outcome unknown to the writer, and there.
    pub(super) unknown_written: u64,
    /// Outcome unknown to the writer, and not there.
    pub(super) unknown_absent: u64,
}

/// Compares the journals (the index is the writer) with the table.
pub(super) fn check(journals: &[Journal], table: &[Found]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut there = BTreeMap::new();
    for found in table {
        there.insert((found.writer, found.seq), found.count);
        let journal = usize::try_from(found.writer).ok().and_then(|writer| journals.get(writer));
        let fate = journal.and_then(|journal| journal.fate(found.seq));
        verdict.doubled += u64::from(found.count > 1);
        verdict.unexpected += u64::from(matches!(fate, None | Some(Fate::Refused)));
    }
    for (journal, writer) in journals.iter().zip(0..) {
        for (fate, seq) in journal.fates.iter().zip(0..) {
            let present = there.contains_key(&(writer, seq));
            match fate {
                Fate::Acknowledged => {
                    verdict.acknowledged += 1;
                    verdict.lost += u64::from(!present);
                }
                Fate::Unknown if present => verdict.unknown_written += 1,
                Fate::Unknown => verdict.unknown_absent += 1,
                Fate::Refused => {}
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(fates: &[Fate]) -> Journal {
        Journal { fates: fates.to_vec() }
    }

    fn found(writer: i32, seq: i64, count: i64) -> Found {
        Found { writer, seq, count }
    }

    #[test]
    fn a_table_that_agrees_has_no_fault() {
        let journals = [
            journal(&[Fate::Acknowledged, Fate::Unknown, Fate::Unknown, Fate::Acknowledged]),
            journal(&[Fate::Acknowledged, Fate::Refused]),
        ];
        let table = [found(0, 0, 1), found(0, 2, 1), found(0, 3, 1), found(1, 0, 1)];
        let expected =
            Verdict { acknowledged: 3, unknown_written: 1, unknown_absent: 1, ..Verdict::default() };
        assert_eq!(check(&journals, &table), expected);
    }

    #[test]
    fn a_lost_row_is_found() {
        let verdict = check(&[journal(&[Fate::Acknowledged, Fate::Acknowledged])], &[found(0, 1, 1)]);
        assert_eq!((verdict.acknowledged, verdict.lost), (2, 1));
    }

    #[test]
    fn a_row_that_is_there_twice_is_found_whatever_was_said_of_it() {
        let journals = [journal(&[Fate::Acknowledged, Fate::Unknown])];
        let verdict = check(&journals, &[found(0, 0, 2), found(0, 1, 3)]);
        assert_eq!((verdict.doubled, verdict.lost, verdict.unexpected), (2, 0, 0));
    }

    #[test]
    fn a_row_that_was_refused_or_never_sent_is_found() {
        let journals = [journal(&[Fate::Refused])];
        let verdict = check(&journals, &[found(0, 0, 1), found(0, 7, 1), found(3, 0, 1), found(-1, -1, 1)]);
        assert_eq!(verdict.unexpected, 4);
    }

    #[test]
    fn a_refused_row_that_is_sent_again_counts_by_its_last_answer() {
        let mut journal = Journal::default();
        for fate in [Fate::Refused, Fate::Acknowledged] {
            journal.attempt(0);
            journal.settle(0, fate);
        }
        journal.attempt(1);
        let verdict = check(&[journal], &[found(0, 0, 1)]);
        let expected = Verdict { acknowledged: 1, unknown_absent: 1, ..Verdict::default() };
        assert_eq!(verdict, expected);
    }

    #[test]
    fn only_errors_that_say_so_leave_the_outcome_open() {
        assert_eq!(fate_of_error(Some("40001")), Fate::Refused);
        assert_eq!(fate_of_error(Some("57P03")), Fate::Refused);
        assert_eq!(fate_of_error(Some("08007")), Fate::Unknown);
        assert_eq!(fate_of_error(Some("57P01")), Fate::Unknown);
        assert_eq!(fate_of_error(None), Fate::Unknown);
    }
}
