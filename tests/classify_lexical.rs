//! PostgreSQL's lexical rules: where a constant, a comment, a name, a number or an operator ends decides what is a call.
//!
//! Invariant: each text is judged as the server reads it, by both settings of `standard_conforming_strings`; `pg_query`, which is
//! PostgreSQL's own lexer, agrees about where tokens begin and end. Must not know: how the classifier works.

use pgsteer::classify::{Access, Dialect, StandardConformingStrings, classify, shape_hash};
use proptest::prelude::*;

/// Text; is it a read with `standard_conforming_strings` on, and off?
const TABLE: &[(&str, bool, bool)] = &[
    // Comments.
    ("SELECT 1 /* a /* b */ c */", true, true),
    ("SELECT 1 /* a /* b */ c", false, false),
    ("/**/SELECT/**/1/**/", true, true),
    ("/***/ SELECT 1 /****/", true, true),
    ("/*/**/*/ SELECT 1", true, true),
    ("/*/ SELECT 1", false, false),
    ("/*/*/ */ DELETE FROM t /* */ */ SELECT 1", true, true),
    ("/* ' */ SELECT evil(1) /* ' */", false, false),
    ("/* -- */ DELETE FROM t", false, false),
    ("-- /* \nDELETE FROM t -- */", false, false),
    ("SELECT 1 --", true, true),
    ("SELECT 1 -- a\r, evil(1)", false, false),
    ("SELECT 1 -- a\u{b}, evil(1)", true, true),
    ("SELECT '--', evil(1)", false, false),
    ("SELECT \"/*\", evil(1) AS \"*/\"", false, false),
    ("SELECT 1 - - 1, 2--1\n-1", true, true),
    ("SELECT evil/* a */--b\n(1)", false, false),
    // Quotes.
    ("SELECT 'it''s', '', ''''", true, true),
    ("SELECT 'a''; DELETE FROM t; --'", true, true),
    ("SELECT 'a'''; DELETE FROM t; --'", false, false),
    ("SELECT '\\', evil(1), '", false, true),
    ("SELECT '\\'', evil(1)", false, false),
    ("SELECT '\\\\', evil(1)", false, false),
    ("SELECT E'\\'', evil(1)", false, false),
    ("SELECT E'\\\\'', evil(1) --'", true, true),
    ("SELECT e'\\'; DELETE FROM t; --'", true, true),
    ("SELECT E'\\", false, false),
    ("SELECT n'\\'; DELETE FROM t; --'", false, true),
    ("SELECT N'a', B'01', b'1', X'1F', x'f'", true, true),
    ("SELECT B'\\'; DELETE FROM t; --'", false, false),
    ("SELECT X'\\'; DELETE FROM t; --'", false, false),
    ("SELECT U&'\\'; DELETE FROM t; --'", false, false),
    ("SELECT u&'d\\0061t\\+000061', U&'d!0061' UESCAPE '!'", true, true),
    ("SELECT a&'b' FROM t", true, true),
    ("SELECT u &'b' FROM t", true, true),
    ("SELECT type'x'", true, true),
    ("SELECT date'2020-01-01', timestamp'now', interval'1 day'", true, true),
    ("SELECT _e'\\'; DELETE FROM t; --'", false, true),
    ("SELECT 1e'\\'; DELETE FROM t; --'", true, true),
    // Constants that go on.
    ("SELECT 'a'\n'b', 'c' -- d\n 'e'", true, true),
    ("SELECT 'a' 'evil('", true, true),
    ("SELECT E'a'\n'\\'; DELETE FROM t; --'", true, true),
    ("SELECT E'a' '\\'; DELETE FROM t; --'", false, true),
    ("SELECT E'a' /* \n */ '\\'; DELETE FROM t; --'", false, true),
    ("SELECT E'a' -- b\n-- c\n'\\'; DELETE FROM t; --'", true, true),
    ("SELECT 'a' -- b", true, true),
    // Dollar quotes.
    ("SELECT $$ ' $$, $a$ $$ $b$ $a$", true, true),
    ("SELECT $a$ $a $a$", true, true),
    ("SELECT $a$ $A$, evil(1), $a$", true, true),
    ("SELECT $a$ $a$, evil(1), $A$ $A$", false, false),
    ("SELECT $\u{e9}t\u{e9}1_$ evil( $\u{e9}t\u{e9}1_$", true, true),
    ("SELECT $1a$ evil(1) $1a$", false, false),
    ("SELECT a$b$ FROM t", true, true),
    ("SELECT a$b$, evil(1), a$b$", false, false),
    ("SELECT 1$a$ evil( $a$", true, true),
    ("SELECT $a$b$c$ $a$", true, true),
    ("SELECT $a-b$ x $a-b$", false, false),
    ("SELECT $", false, false),
    // Parameters.
    ("SELECT $1, $2::int, $3.a FROM t", false, false),
    ("SELECT $1+$2, a=$3, b<$4", true, true),
    ("SELECT $1evil(1)", false, false),
    ("SELECT $1 evil(1)", false, false),
    ("SELECT $1INTO t", false, false),
    ("SELECT $1$a$ evil(1) $a$", true, true),
    ("SELECT a$1(1)", false, false),
    // Numbers.
    ("SELECT 0x1F, 0X1f, 0o17, 0b101, 1_000, 0x_1F, 0xFF_FF, 1_0.5_0e1_0", true, true),
    ("SELECT 1.5e-3, 1E+3, .5, 5., 1.e5, 0.0", true, true),
    ("SELECT 1evil(1)", false, false),
    ("SELECT 1.evil(1)", false, false),
    ("SELECT 1e5evil(1)", false, false),
    ("SELECT 1e(1)", false, false),
    ("SELECT 1e+evil(1)", false, false),
    ("SELECT 0xevil(1)", false, false),
    ("SELECT 0x(1)", false, false),
    ("SELECT 1_evil(1)", false, false),
    ("SELECT 0x1FINTO t", false, false),
    ("SELECT 1.5INTO t", false, false),
    ("SELECT a[1:2], a[1 : b], a[:], a[1:][:2] FROM t", true, true),
    ("SELECT 1..evil(1)", false, false),
    // Operators.
    ("SELECT a*-1, a=-1, a<-1, a<>-1, a|/4, a@-1, a-+b FROM t", true, true),
    ("SELECT a*/* evil( */b, a-/**/-b FROM t", true, true),
    ("SELECT a@--b\nevil(1)", false, false),
    ("SELECT a<=b, a>=b, a!=b, a<>b, a=>b FROM t", true, true),
    ("SELECT a::int, a :: int, a::\"char\"", true, true),
    ("SELECT a->>'b'->c#>'{d}'@@@e FROM t", true, true),
    ("SELECT (1)*(2)/(3)", true, true),
    ("SELECT ?(1)", true, true),
    // Names.
    ("SELECT \"a\"\"b\", \"evil(\", \"sel\"\"ect\"", true, true),
    ("SELECT \"\"", false, false),
    ("SELECT \"a\"\"(1)", false, false),
    ("SELECT \"lower\"(a), \"LOWER\"(a)", false, false),
    ("SELECT LOWER(a), LoWeR (a)", true, true),
    ("SELECT \u{fc}ber, na\u{ef}ve, \u{65e5}\u{672c} FROM \u{442}\u{430}\u{431}", true, true),
    ("SELECT \u{fc}ber(1)", false, false),
    ("SELECT lower\u{fc}(1)", false, false),
    ("SELECT lower\u{a0}(1)", false, false),
    ("SELECT\u{a0}lower(1)", false, false),
    ("\u{feff}SELECT 1", false, false),
    ("SELECT\u{b}1\u{c},\t2\r\n", true, true),
    ("SELECT a.\"b\".*, \"t\".\"c\" FROM s.\"t\"", true, true),
    ("SELECT \u{212a}", true, true),
    ("\u{17f}elect 1", false, false),
    ("SELECT _a, a1, a_1$, A$1 FROM t", true, true),
    // What is no SQL.
    ("\\d t", false, false),
    ("\\copy t FROM 'x'", false, false),
    ("SELECT 1 \\g", false, false),
    ("SELECT 1 \\; SELECT 2", false, false),
    ("SELECT :a", false, false),
    ("SELECT :'a', :\"b\"", false, false),
    ("SELECT a WHERE b = :c", false, false),
    ("SELECT {d '2020-01-01'}", false, false),
    ("SELECT 1 \u{1}", false, false),
    ("SELECT 1\0", false, false),
    ("GO", false, false),
    ("?", false, false),
];

#[test]
fn texts_are_read_as_the_server_reads_them() {
    let mut faults = Vec::new();
    for (sql, on, off) in TABLE {
        for (strings, read) in [(StandardConformingStrings::On, *on), (StandardConformingStrings::Off, *off)]
        {
            let answer = classify(sql.as_bytes(), &strings.dialect());
            if (answer.access == Access::Read) != read {
                faults.push(format!("{sql:?} {strings:?}: expected read {read}, found {:?}", answer.reason));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Encodings in which a byte of a character may be a quote or a backslash never come to a read.
#[test]
fn bytes_that_are_not_utf8_are_no_read() {
    for sql in [
        &b"SELECT '\x95\x5c'; DELETE FROM t; --'"[..],
        b"SELECT '\xbf\x27; DELETE FROM t; --'",
        b"SELECT \x81\x40",
        b"SELECT '\xe9'",
        b"SELECT '\xc3",
        b"SELECT \xff",
        b"SELECT '\xed\xa0\x80'",
    ] {
        for strings in [StandardConformingStrings::On, StandardConformingStrings::Off] {
            assert_ne!(classify(sql, &strings.dialect()).access, Access::Read, "{sql:?}");
        }
    }
}

/// Pieces that are put together at random: whatever has to do with where a token ends.
const PIECES: [&str; 40] = [
    "'", "\"", "$$", "$a$", "$1", "--", "/*", "*/", "\n", " ", "E'", "U&'", "U&\"", "B'", "N'", "\\", "''",
    "evil(1)", "zz(", ")", "(", "1", "0x1F", "1_0", "1e5", ".5", ".", ",", "::", "a", "lower(b)", "FROM t",
    "SELECT", "+", "-", "*", "/", "@", "INTO x", ";",
];

/// Whether PostgreSQL's grammar sees a call or an INTO in a text; `None` if it doesn't accept it.
fn sees_a_write(sql: &str) -> Option<bool> {
    let result = pg_query::parse(sql, pg_query::ParserOptions::default()).ok()?;
    let tree = format!("{:?}", result.protobuf);
    let calls = tree.split("FuncCall { funcname: [").skip(1).any(|call| {
        let list = &call[..call.find("], args").unwrap_or(call.len())];
        list.contains("\"evil\"") || list.contains("\"zz\"")
    });
    Some(calls || tree.contains("IntoClause {"))
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever PostgreSQL's own lexer and grammar accept and see a call or an INTO in, is no read.
    #[test]
    fn no_end_of_a_token_hides_a_call(pieces in proptest::collection::vec(0..PIECES.len(), 1..12)) {
        let text: String = std::iter::once("SELECT ").chain(pieces.iter().map(|&piece| PIECES[piece])).collect();
        if classify(text.as_bytes(), &Dialect::default()).access == Access::Read {
            prop_assert_ne!(sees_a_write(&text), Some(true), "{}", text);
        }
        shape_hash(text.as_bytes());
    }
}
