//! The statements of a text that set or show a setting `pgsteer.…`: for rare texts, of which `Classification` says that there are.
//!
//! Invariant: what is found stands where it is said to. Must not know: which settings there are, what they mean.

use std::ops::Range;

use super::StandardConformingStrings;
use super::lex::{Kind, Lexer, Token};
use super::resets::Reader;
use super::statements;
use super::words::Word;

/// The prefix of pgsteer's own settings.
pub const OWN_PREFIX: &str = "pgsteer.";

/// `SET [SESSION | LOCAL] pgsteer.name = value`
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnAssignment {
    /// The bytes of the statement in its text.
    pub place: Range<usize>,
    /// The name behind the prefix, in lower case.
    pub name: String,
    /// The value; `None` for DEFAULT.
    pub value: Option<String>,
    /// It is for the transaction only.
    pub local: bool,
}

/// All assignments of a text, in its order.
pub fn own_assignments(sql: &[u8], strings: StandardConformingStrings) -> Vec<OwnAssignment> {
    let whole = sql.as_ptr() as usize;
    let found = |statement: &[u8]| {
        let start = statement.as_ptr() as usize - whole;
        assignment(statement, strings, start..start + statement.len())
    };
    statements(sql, strings).into_iter().filter_map(found).collect()
}

/// The names that the SHOW statements of a text ask for, behind the prefix, in lower case.
pub fn own_shows(sql: &[u8], strings: StandardConformingStrings) -> Vec<String> {
    let shown = |statement: &[u8]| {
        let mut reader = Reader::new(Lexer::new(statement, strings));
        if reader.next().word != Word::Show {
            return None;
        }
        let first = reader.next();
        own_name(reader.name(first)?.0)
    };
    statements(sql, strings).into_iter().filter_map(shown).collect()
}

fn own_name(name: String) -> Option<String> {
    name.strip_prefix(OWN_PREFIX).map(str::to_owned)
}

fn assignment(
    statement: &[u8],
    strings: StandardConformingStrings,
    place: Range<usize>,
) -> Option<OwnAssignment> {
    let mut reader = Reader::new(Lexer::new(statement, strings));
    if reader.next().word != Word::Set {
        return None;
    }
    let mut first = reader.next();
    let local = first.word == Word::Local;
    if local || first.word == Word::Session {
        first = reader.next();
    }
    let (name, sign) = reader.name(first)?;
    let name = own_name(name)?;
    let assigns = sign.word == Word::To || reader.text(sign) == b"=";
    let begin = reader.next();
    let is_default = assigns && reader.is(begin, b"default");
    let value = (!is_default).then(|| value(&mut reader, statement, begin));
    Some(OwnAssignment { place, name, value, local })
}

/// The value from its first token on: the content of a plain constant, or what stands there.
fn value(reader: &mut Reader<'_>, statement: &[u8], begin: Token) -> String {
    let text = reader.text(begin);
    let is_alone = reader.next().kind == Kind::End;
    let inner = |quote: u8| text.strip_prefix(&[quote])?.strip_suffix(&[quote]);
    let content = match begin.kind {
        Kind::Text if is_alone => inner(b'\''),
        Kind::Quoted if is_alone => inner(b'"'),
        _ => None,
    };
    let rest = statement.get(begin.start as usize..).unwrap_or_default();
    String::from_utf8_lossy(content.unwrap_or(rest)).trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_found_in_all_forms() {
        let on = StandardConformingStrings::On;
        let of = |sql: &str| -> Vec<(String, Option<String>, bool)> {
            let found = own_assignments(sql.as_bytes(), on);
            found.into_iter().map(|it| (it.name, it.value, it.local)).collect()
        };
        let one = |name: &str, value: &str| vec![(name.to_owned(), Some(value.to_owned()), false)];
        for sql in [
            "SET pgsteer.max_lag = '200ms'",
            "set session PGSTEER . Max_Lag to '200ms';",
            "SELECT 1; /* x */ SET \"pgsteer\".\"max_lag\" = \"200ms\" ; SELECT 2",
        ] {
            assert_eq!(of(sql), one("max_lag", "200ms"), "{sql}");
        }
        assert_eq!(of("SET pgsteer.max_lag = 200"), one("max_lag", "200"));
        assert_eq!(of("SET pgsteer.max_lag = -5"), one("max_lag", "-5"));
        assert_eq!(of("SET pgsteer.x TO a, b"), one("x", "a, b"));
        assert_eq!(of("SET pgsteer.x TO DEFAULT"), vec![("x".to_owned(), None, false)]);
        assert_eq!(of("SET LOCAL pgsteer.x = 1"), vec![("x".to_owned(), Some("1".to_owned()), true)]);
        assert_eq!(of("SET work_mem = 1; SELECT 'SET pgsteer.x = 1'; RESET pgsteer.x"), vec![]);
        let sql = b"BEGIN; SET pgsteer.x = 1 ; COMMIT";
        let place = own_assignments(sql, on).remove(0).place;
        assert_eq!(&sql[place], b"SET pgsteer.x = 1");
    }

    #[test]
    fn shows_are_found() {
        let found =
            own_shows(b"SHOW pgsteer.token; SHOW work_mem; show \"pgsteer\".Pins", Default::default());
        assert_eq!(found, ["token", "pins"]);
    }
}
