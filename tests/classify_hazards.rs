//! The hazards of read/write splitting, one table row for each form: what a text needs and what it leaves behind.
//!
//! Invariant: rows carry the number of their hazard (S statements, F functions, T relations, G session state,
//! M found by measuring, L lexical). Must not know: how the classifier works.

#[path = "classify_hazards/table.rs"]
mod table;

use std::time::{Duration, Instant};

use pgsteer::classify::{
    Access, AccessMode, AskedTerms, Classification, Dialect, Hint, InReadOnly, PinReason, Reason,
    SessionEffect, StandardConformingStrings, Target, TransactionEffect, classify, shape_hash,
};
use proptest::prelude::*;
use table::TABLE;

fn on(sql: &str) -> Classification {
    classify(sql.as_bytes(), &Dialect::default())
}

/// F18: lists of columns are no calls: what runs nothing unknown is not asked about afterwards.
#[test]
fn f18_lists_of_columns_are_no_calls() {
    for (sql, unseen) in [
        ("INSERT INTO t (a, b) VALUES (1, 2)", false),
        ("INSERT INTO s.t (a) SELECT 1 ON CONFLICT DO NOTHING", false),
        ("INSERT INTO t AS x (a) VALUES (1) ON CONFLICT (a) DO UPDATE SET (a, b) = (1, 2)", false),
        ("UPDATE t SET (a, b) = (1, 2) WHERE c = 3", false),
        ("INSERT INTO t (a) VALUES (unknown(1))", true),
        ("INSERT INTO t (a) SELECT unknown(1)", true),
        ("INSERT INTO t SELECT 1 FROM a JOIN b ON conflict(1)", true),
        ("UPDATE t SET a = unknown(1)", true),
        ("SELECT set(1)", true),
    ] {
        assert_eq!(on(sql).unseen, unseen, "{sql}");
    }
}

/// Process ids are looked for only where sessions may be named by them.
#[test]
fn sql_that_names_processes_says_so() {
    for sql in [
        "SELECT pg_cancel_backend(1)",
        "SELECT pg_terminate_backend(1)",
        "SELECT pg_blocking_pids(1)",
        "SELECT 1 FROM pg_stat_activity WHERE pid = 1",
        "SELECT 1 FROM pg_catalog.pg_locks WHERE pid = 1",
    ] {
        assert!(on(sql).names_processes, "{sql}");
    }
    for sql in ["SELECT pid FROM t WHERE pid = 1", "SELECT pg_backend_pid()", "SELECT 1"] {
        assert!(!on(sql).names_processes, "{sql}");
    }
}

/// G05: what must be run where the client's statements have the client's names.
#[test]
fn sql_that_names_prepared_statements_says_so() {
    for sql in [
        "PREPARE s AS SELECT 1",
        "EXECUTE s",
        "execute s (1); SELECT 1",
        "EXPLAIN ANALYZE EXECUTE s (1)",
        "EXPLAIN (COSTS OFF) EXECUTE s",
        "CREATE TEMP TABLE t AS EXECUTE s",
        "CREATE TABLE IF NOT EXISTS a.t (x, y) WITH (fillfactor = 50) AS EXECUTE s(1, 2) WITH NO DATA",
        "DEALLOCATE s",
        "DEALLOCATE PREPARE s",
        "SELECT * FROM pg_prepared_statements",
        "SELECT count(*) FROM pg_catalog.\"pg_prepared_statements\" p WHERE p.from_sql",
        "SELECT name FROM pg_catalog.pg_prepared_statement()",
        "DO $$ BEGIN PERFORM FROM PG_prepared_statements; END $$",
        "PREPARE transaction AS SELECT 1",
    ] {
        assert!(on(sql).names_prepared, "{sql}");
    }
    for sql in [
        "PREPARE TRANSACTION 'x'",
        "DEALLOCATE ALL",
        "DISCARD ALL",
        "SELECT * FROM pg_prepared_xacts",
        "CREATE TRIGGER t AFTER INSERT ON t EXECUTE FUNCTION f()",
        "GRANT EXECUTE ON FUNCTION f TO public",
        "SELECT 1 AS execute",
        "DO $$ BEGIN PERFORM 1; END $$; SELECT 'pg_prepared_statements'",
    ] {
        assert!(!on(sql).names_prepared, "{sql}");
    }
}

#[test]
fn every_hazard_is_answered_as_its_row_says() {
    let mut faults = Vec::new();
    for (hazard, sql, expected) in TABLE {
        let answer = on(sql);
        let access = if answer.access == Access::Read { "R" } else { "W" };
        let session = match answer.session {
            SessionEffect::None => "",
            SessionEffect::Set(_) => " set",
            SessionEffect::Reset(_) => " reset",
            SessionEffect::ResetLocal(_) => " reset_local",
            SessionEffect::ResetAll => " reset_all",
            SessionEffect::DiscardAll => " discard_all",
            SessionEffect::DeallocateAll => " deallocate_all",
            SessionEffect::Deallocate(_) => " deallocate",
            SessionEffect::Unknown => " unknown",
        };
        let pin = answer.pin.map(|pin| format!(" {}", pin.as_str())).unwrap_or_default();
        let found = format!("{access}{pin}{session}");
        if found != *expected {
            faults
                .push(format!("{hazard} {sql:?}: expected {expected}, found {found} ({:?})", answer.reason));
        }
    }
    assert!(TABLE.len() >= 400, "{}", TABLE.len());
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

const fn begin(access: AccessMode, serializable: bool) -> TransactionEffect {
    TransactionEffect::Begin { access, serializable }
}

const fn set(access: AccessMode, serializable: bool) -> TransactionEffect {
    TransactionEffect::SetTransaction { access, serializable }
}

#[test]
fn s25_to_s28_transaction_control_is_understood_exactly_or_not_at_all() {
    use AccessMode::{Default, ReadOnly, ReadWrite};
    use TransactionEffect::{Chain, Commit, None, Other, Rollback};
    let table: &[(&str, TransactionEffect, bool)] = &[
        ("BEGIN", begin(Default, false), false),
        ("begin work;", begin(Default, false), false),
        (";; BEGIN TRANSACTION ;", begin(Default, false), false),
        ("START TRANSACTION", begin(Default, false), false),
        ("BEGIN READ ONLY", begin(ReadOnly, false), false),
        ("BEGIN READ WRITE", begin(ReadWrite, false), false),
        ("BEGIN ISOLATION LEVEL SERIALIZABLE, READ ONLY, DEFERRABLE", begin(ReadOnly, true), false),
        ("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY NOT DEFERRABLE", begin(ReadOnly, false), false),
        ("START TRANSACTION ISOLATION LEVEL READ COMMITTED", begin(Default, false), false),
        ("BEGIN ISOLATION LEVEL READ UNCOMMITTED", begin(Default, false), false),
        ("START", Other, false),
        ("BEGIN READ ONLY,", Other, false),
        ("BEGIN , READ ONLY", Other, false),
        ("BEGIN READ ONLY READ WRITE", Other, false),
        ("BEGIN ISOLATION LEVEL CHAOS", Other, false),
        ("BEGIN; SELECT 1", Other, false),
        ("SELECT 1; COMMIT", Other, true),
        ("BEGIN; COMMIT", Other, true),
        ("COMMIT", Commit, true),
        ("END WORK", Commit, true),
        ("COMMIT TRANSACTION AND NO CHAIN", Commit, true),
        ("COMMIT AND CHAIN", Chain, true),
        ("COMMIT CHAIN", Other, true),
        ("COMMIT AND CHAIN; SELECT 1", Other, true),
        ("COMMIT PREPARED 'x'", Other, true),
        ("PREPARE TRANSACTION 'x'", Other, true),
        ("ROLLBACK", Rollback, false),
        ("ABORT WORK AND NO CHAIN", Rollback, false),
        ("ROLLBACK AND CHAIN", Chain, true),
        ("ABORT WORK AND CHAIN", Chain, true),
        ("ROLLBACK AND", Other, false),
        ("ROLLBACK TO SAVEPOINT a", Other, false),
        ("ROLLBACK PREPARED 'x'", Other, false),
        ("SAVEPOINT a", Other, false),
        ("SET TRANSACTION READ ONLY", set(ReadOnly, false), false),
        ("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE, READ WRITE", set(ReadWrite, true), false),
        ("SET TRANSACTION SNAPSHOT '0-1'", Other, false),
        ("SET transaction_read_only = on", Other, false),
        ("SET LOCAL transaction_isolation = 'serializable'", Other, false),
        ("BEGIN 'unterminated", Other, false),
        ("SELECT 1", None, false),
    ];
    for (sql, effect, commits) in table {
        let answer = on(sql);
        assert_eq!((answer.transaction, answer.commits), (*effect, *commits), "{sql}");
    }
}

/// S12, S27: what is no read by itself, and does no more than reading in a READ ONLY transaction.
#[test]
fn s12_cursors_over_reads_are_known() {
    use InReadOnly::{AsIs, Fetches, Quiet, Sets};
    for (sql, expected) in [
        ("DECLARE c CURSOR FOR SELECT 1", Quiet),
        (
            "declare \"for\" binary insensitive no scroll cursor without hold for (values (1)) order by 1;",
            Quiet,
        ),
        ("DECLARE c CURSOR FOR WITH x AS (SELECT 1) SELECT * FROM x", Quiet),
        ("DECLARE c CURSOR WITH HOLD FOR SELECT 1", AsIs),
        ("DECLARE c CURSOR FOR SELECT * FROM t FOR UPDATE", AsIs),
        ("DECLARE c CURSOR FOR SELECT evil()", AsIs),
        ("DECLARE c CURSOR FOR SELECT pg_advisory_lock(1)", AsIs),
        ("DECLARE c CURSOR FOR WITH x AS (DELETE FROM t RETURNING 1) SELECT * FROM x", AsIs),
        ("DECLARE c CURSOR FOR", AsIs),
        ("DECLARE c CURSOR FOR UPDATE t SET a = 1", AsIs),
        ("DECLARE c CURSOR FOR SELECT 1; SELECT evil()", AsIs),
        ("SELECT 1; DECLARE c CURSOR FOR SELECT 1", AsIs),
        ("FETCH c", Fetches),
        ("FETCH FORWARD 10 FROM c", Fetches),
        ("MOVE ALL IN c", Fetches),
        ("FETCH c; FETCH c", AsIs),
        ("CLOSE c", Quiet),
        ("CLOSE ALL", Quiet),
        ("SAVEPOINT a", Quiet),
        ("RELEASE SAVEPOINT a", Quiet),
        ("ROLLBACK TO SAVEPOINT a", AsIs),
        ("SET LOCAL work_mem = '1MB'", Quiet),
        ("SET LOCAL app.tenant TO 7", Quiet),
        ("SET LOCAL statement_timeout = '1min'", Sets),
        ("SET LOCAL work_mem TO DEFAULT", AsIs),
        ("SET LOCAL client_encoding = 'latin1'", AsIs),
        ("SET LOCAL transaction_read_only = off", AsIs),
        ("SET LOCAL SESSION AUTHORIZATION a", AsIs),
        ("SET work_mem = '1MB'", AsIs),
        ("SET LOCAL work_mem = '1MB'; SELECT 1", AsIs),
        ("SELECT set_config('role', $1, true), set_config('app.tenant', '7', true), count(*) FROM t", Sets),
        ("SELECT set_config('app.tenant', '7', true)", Quiet),
        ("select set_config('role', $1, true), set_config('a.b', $2::text, 't') AS b;", Quiet),
        ("SELECT set_config('statement_timeout', '7', true)", Sets),
        ("SELECT set_config('a.b', '7', true), now()", Sets),
        ("SELECT set_config('a.b', '7', true) || 'x'", Sets),
        ("SELECT set_config('a.b', '7', true) FROM t", Sets),
        ("SELECT set_config($1, '7', true)", AsIs),
        ("SELECT my.set_config('a.b', '7', true)", AsIs),
        ("SELECT set_config('app.tenant', '7', true), evil()", AsIs),
        ("SELECT evil(), set_config('app.tenant', '7', true)", AsIs),
        ("SELECT set_config('app.tenant', '7', true) FROM t FOR UPDATE", AsIs),
        ("SELECT set_config('app.tenant', '7', true) INTO x", AsIs),
        ("SELECT set_config('app.tenant', '7', false)", AsIs),
        ("SELECT set_config('app.tenant', '7', $1)", AsIs),
        ("WITH x AS (SELECT set_config('app.tenant', '7', true)) SELECT 1", AsIs),
        ("DECLARE c CURSOR FOR SELECT set_config('app.tenant', '7', true)", AsIs),
        ("EXPLAIN ANALYZE SELECT set_config('app.tenant', '7', true)", Sets),
        ("COPY (SELECT set_config('app.tenant', '7', true)) TO STDOUT", AsIs),
        ("SELECT set_config('app.tenant', '7', true); SELECT 1", AsIs),
        ("SELECT 1", AsIs),
        ("DECLARE c CURSOR FOR SELECT 'unterminated", AsIs),
    ] {
        let found = on(sql);
        assert_eq!(found.in_read_only, expected, "{sql}");
        assert!(
            found.in_read_only == AsIs || found.access == Access::Write,
            "{sql}: by itself it is no read"
        );
    }
}

#[test]
fn s22_statements_are_counted_without_the_empty_ones() {
    assert_eq!(on(";SELECT 1;;SELECT 2; -- end").statements, 2);
    assert_eq!((on(" ; ").statements, on(" ; ").reason), (0, Reason::Empty));
}

#[test]
fn s07_s08_copy_mode_is_announced() {
    assert!(on("COPY t FROM STDIN").copies && on("COPY t TO STDOUT").copies);
    assert!(on("SELECT 1; COPY (SELECT 1) TO STDOUT").copies);
    assert!(!on("COPY t TO '/tmp/x'").copies && !on("SELECT 1").copies);
}

#[test]
fn s23_strings_follow_the_session_s_setting() {
    let sql = b"SELECT '\\'; DELETE FROM t; --'";
    assert_eq!(classify(sql, &StandardConformingStrings::Off.dialect()).access, Access::Read);
    assert_ne!(classify(sql, &Dialect::default()).access, Access::Read);
}

#[test]
fn trap_20_only_the_leading_comment_is_a_hint() {
    let hint = |target, millis: Option<u64>| {
        let max_lag = millis.map(Duration::from_millis);
        Hint { terms: AskedTerms { target, max_lag, ..AskedTerms::default() }, amiss: false }
    };
    let amiss = |hint: Hint| Hint { amiss: true, ..hint };
    let table = [
        ("/* pgsteer: target=primary */ SELECT 1", hint(Some(Target::Primary), None)),
        ("/*pgsteer: target=standby, max_lag=500ms*/SELECT 1", hint(Some(Target::Standby), Some(500))),
        ("-- a\n/* b */ /* pgsteer: max_lag=2s, other=x */ SELECT 1", amiss(hint(None, Some(2_000)))),
        ("/* pgsteer: max_lag=1min */ SELECT 1", hint(None, Some(60_000))),
        ("/* pgsteer: max_lag=1m */ SELECT 1", hint(None, Some(60_000))),
        ("/* pgsteer: target=moon, max_lag=x */ SELECT 1", amiss(hint(None, None))),
        ("/* pgsteer: max_lag=2s, */ SELECT 1", hint(None, Some(2_000))),
        ("/* pgsteer: target */ SELECT 1", amiss(hint(None, None))),
        ("/* pgsteering: target=moon */ SELECT 1", hint(None, None)),
        ("SELECT /* pgsteer: target=primary */ 1", hint(None, None)),
        ("SELECT '/* pgsteer: target=primary */'", hint(None, None)),
    ];
    for (sql, expected) in table {
        assert_eq!(on(sql).hint, expected, "{sql}");
    }
}

#[test]
fn values_are_no_part_of_a_shape() {
    let shape = |sql: &str| shape_hash(sql.as_bytes());
    let base = shape("SELECT a FROM t WHERE b IN (1, 2) AND c = 'x'");
    assert_eq!(base, shape("select  A from t /* x */ where b in (7,8,9) and c = $1 -- y"));
    assert_ne!(base, shape("SELECT a FROM u WHERE b IN (1, 2) AND c = 'x'"));
    assert_ne!(shape("SELECT \"a\""), shape("SELECT \"A\""));
    assert_ne!(shape("SELECT 1, a"), shape("SELECT 1 a"));
}

/// Repeated to a mebibyte each.
const HOSTILE: [&str; 48] = [
    "(",
    "/*",
    "'",
    "[",
    "$a$",
    "\"",
    "''",
    "E'",
    "$",
    "(SELECT ",
    "a.",
    "--",
    "-",
    "'a'\n",
    ";",
    "BEGIN;",
    "((((a",
    "a(",
    "a b ",
    "\"a\".",
    "1,",
    ", 'a'",
    "'a''",
    ",1",
    "$a",
    "$1",
    "::",
    "=-",
    "-- \n",
    "/**/",
    "/*/",
    "*/",
    "////",
    "U&\"a\"",
    "E'\\'",
    "WITH a AS (",
    "CASE ",
    "x.y/**/",
    "EXPLAIN ",
    "CREATE TABLE a AS ",
    "DO '';",
    "current_setting('a',",
    "FOR ",
    "\u{e9}",
    "a\0",
    "0x",
    "set_config('a','b',",
    "SHOW a.",
];

#[test]
fn hostile_texts_take_linear_time() {
    let catalogue = pgsteer::classify::Catalogue::default();
    let known = Dialect { catalogue: Some(&catalogue), ..Dialect::default() };
    for piece in HOSTILE {
        let text = piece.repeat((1 << 20) / piece.len());
        let answer = on(&text);
        let limit = Duration::from_millis(match piece {
            _ if cfg!(debug_assertions) => 2_000,
            "(" | "/*" | "'" | "$a$" | "\"" | "((((a" | "[" | "''" | "E'" | "--" | ";" | "1," => 20,
            _ => 50,
        });
        for dialect in [Dialect::default(), known] {
            // The best of some: a neighbour on the machine is no fault of the classifier.
            let times = (0..20).map(|_| {
                let start = Instant::now();
                classify(text.as_bytes(), &dialect);
                start.elapsed()
            });
            let mut best = Duration::MAX;
            let fits = times.inspect(|time| best = best.min(*time)).any(|time| time < limit);
            println!("{piece:?}: {best:?}");
            assert!(fits, "{piece:?} took {best:?}");
        }
        assert!(
            answer.access != Access::Read || piece == ";" || piece.starts_with('-') || piece == "/**/",
            "{piece:?}"
        );
    }
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        classify(&bytes, &Dialect::default());
        classify(&bytes, &StandardConformingStrings::Off.dialect());
        shape_hash(&bytes);
    }

    #[test]
    fn mutated_statements_never_panic(
        row in 0..TABLE.len(),
        at in any::<prop::sample::Index>(),
        cut in 0usize..4,
        piece in "[-'\"$(){};:.,*/EeUu&\\\\ \n\u{e9}a1]{0,4}",
    ) {
        let mut bytes = TABLE[row].1.as_bytes().to_vec();
        let start = at.index(bytes.len() + 1);
        let end = (start + cut).min(bytes.len());
        bytes.splice(start..end, piece.into_bytes());
        let answer = classify(&bytes, &Dialect::default());
        classify(&bytes, &StandardConformingStrings::Off.dialect());
        shape_hash(&bytes);
        if std::str::from_utf8(&bytes).is_err() {
            prop_assert_ne!(answer.access, Access::Read);
        }
    }

    #[test]
    fn a_write_after_a_read_is_a_write(row in 0..TABLE.len()) {
        let (_, sql, expected) = TABLE[row];
        if expected == "R" {
            let both = format!("{sql}\n; DELETE FROM t");
            prop_assert_ne!(on(&both).access, Access::Read);
            prop_assert_eq!(on(&both).pin, None::<PinReason>);
        }
    }
}

/// What is known of roles beside the servers depends on seeing them altered.
#[test]
fn statements_about_roles_are_seen() {
    for sql in [
        "CREATE ROLE a",
        "create user a password 'x'",
        "ALTER GROUP a RENAME TO b",
        "alter /* so */ role \"A\" set work_mem = '1MB'",
        "DROP USER IF EXISTS a, b",
        "SELECT 1; SELECT 2; DROP ROLE a; SELECT 3",
    ] {
        assert!(classify(sql.as_bytes(), &Dialect::default()).roles, "{sql}");
    }
    for sql in ["CREATE TABLE role (i int)", "SELECT 'DROP ROLE a'", "DROP DATABASE a", "SET ROLE a"] {
        assert!(!classify(sql.as_bytes(), &Dialect::default()).roles, "{sql}");
    }
}
