//! Statements made by a grammar, with writes planted in them, judged by PostgreSQL's own.
//!
//! Invariant: what is made is a function of a list of bytes, so that a failing statement shrinks with its list. Must not know: how
//! the classifier works.

#[path = "classify_generated/grammar.rs"]
mod grammar;
#[path = "classify_oracle/judge.rs"]
mod judge;

use std::cell::Cell;

use grammar::Grammar;
use judge::{is_read_kind, objections};
use pgsteer::classify::{Access, Dialect, classify};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

/// `PGSTEER_GENERATED_CASES` makes it another number of statements.
fn cases(usual: u32) -> u32 {
    std::env::var("PGSTEER_GENERATED_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(usual)
}

fn runner(cases: u32) -> TestRunner {
    TestRunner::new(Config { cases, failure_persistence: None, ..Config::default() })
}

/// How many were made, accepted by PostgreSQL's grammar, without fault, and of these classified as writes.
#[derive(Default)]
struct Tally {
    made: Cell<u32>,
    parsed: Cell<u32>,
    pure: Cell<u32>,
    missed: Cell<u32>,
}

fn count(cell: &Cell<u32>) {
    cell.set(cell.get() + 1);
}

/// Judges one statement; the error is a write that was taken for a read.
fn judge(sql: &str, tally: &Tally) -> Result<(), TestCaseError> {
    count(&tally.made);
    let answer = classify(sql.as_bytes(), &Dialect::default());
    let Ok(result) = pg_query::parse(sql, pg_query::ParserOptions::default()) else {
        return Ok(());
    };
    count(&tally.parsed);
    let tree = format!("{:?}", result.protobuf);
    let mut faults = objections(&tree);
    if !is_read_kind(&tree) {
        faults.push("not a read".into());
    }
    if faults.is_empty() {
        count(&tally.pure);
        if answer.access != Access::Read {
            count(&tally.missed);
            if std::env::var_os("PGSTEER_ORACLE_VERBOSE").is_some() {
                println!("{:?} {sql:?}", answer.reason);
            }
        }
        return Ok(());
    }
    prop_assert_ne!(answer.access, Access::Read, "{:?}\n{}", faults, sql);
    Ok(())
}

#[test]
fn planted_writes_are_found() {
    let tally = Tally::default();
    let lists = proptest::collection::vec(any::<u8>(), 1..120);
    runner(cases(4_000))
        .run(&lists, |bytes| judge(&Grammar::planting(&bytes).statement(), &tally))
        .unwrap_or_else(|error| panic!("{error}"));
    let (made, parsed, pure) = (tally.made.get(), tally.parsed.get(), tally.pure.get());
    println!("{made} statements, {parsed} of them PostgreSQL's, {pure} without fault");
    assert!(parsed * 10 > made * 7, "the grammar makes too little that is SQL: {parsed} of {made}");
    assert!((parsed - pure) * 4 > parsed, "too little was planted: {pure} of {parsed}");
}

#[test]
fn what_has_no_write_is_a_read() {
    let tally = Tally::default();
    let lists = proptest::collection::vec(any::<u8>(), 1..120);
    runner(cases(4_000))
        .run(&lists, |bytes| judge(&Grammar::clean(&bytes).query(0), &tally))
        .unwrap_or_else(|error| panic!("{error}"));
    let (parsed, pure, missed) = (tally.parsed.get(), tally.pure.get(), tally.missed.get());
    println!(
        "{parsed} statements of PostgreSQL's, {pure} without fault, {missed} of these sent to the primary"
    );
    assert!(pure * 10 > parsed * 9, "{pure} of {parsed}");
    assert!(missed * 200 < pure, "{missed} of {pure} reads are lost");
}
