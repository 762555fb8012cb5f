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
    /// The value.
    pub value: Assigned,
    /// It is for the transaction only.
    pub local: bool,
}

/// What is assigned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assigned {
    /// DEFAULT
    Default,
    /// This, as far as it is one for a setting.
    Value(String),
    /// A constant with escapes, which only the server reads.
    NotRead,
}

/// All assignments of a text, in its order.
pub fn own_assignments(sql: &[u8], strings: StandardConformingStrings) -> Vec<OwnAssignment> {
    let whole = sql.as_ptr() as usize;
    let found = |statement: &[u8]| {
        let start = statement.as_ptr() as usize - whole;
        let place = start..start + statement.len();
        assignment(statement, strings, place.clone()).or_else(|| local_call(statement, strings, place))
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
    let value = if is_default { Assigned::Default } else { value(&mut reader, statement, begin) };
    Some(OwnAssignment { place, name, value, local })
}

/// The first `set_config('pgsteer.name', ..., true)` of a statement, by constants. One for the session is as good as a SET, and its value
/// is asked of the server.
fn local_call(
    statement: &[u8],
    strings: StandardConformingStrings,
    place: Range<usize>,
) -> Option<OwnAssignment> {
    let mut lexer = Lexer::new(statement, strings);
    loop {
        let token = lexer.next();
        let name = match token.kind {
            Kind::End | Kind::Error => return None,
            Kind::Word => lexer.text(token),
            Kind::Quoted => {
                lexer.text(token).get(1..).and_then(|text| text.strip_suffix(b"\"")).unwrap_or_default()
            }
            _ => continue,
        };
        if !name.eq_ignore_ascii_case(b"set_config") {
            continue;
        }
        let mut call = lexer.clone();
        if call.next().kind == Kind::Open
            && let Some(name) = local_of_call(&mut call)
        {
            return Some(OwnAssignment { place, name, value: Assigned::NotRead, local: true });
        }
    }
}

/// The name that a call sets for its transaction, from behind its parenthesis on.
fn local_of_call(call: &mut Lexer<'_>) -> Option<String> {
    let name = call.next();
    let name = plain_content(call.text(name)).filter(|_| name.kind == Kind::Text)?;
    let name = own_name(String::from_utf8_lossy(name).to_lowercase())?;
    let (mut depth, mut commas) = (0, 0);
    loop {
        let token = call.next();
        match token.kind {
            Kind::Open | Kind::OpenBracket => depth += 1,
            Kind::Close | Kind::CloseBracket if depth > 0 => depth -= 1,
            Kind::Comma if depth == 0 => commas += 1,
            Kind::Close | Kind::End | Kind::Error => return None,
            Kind::Word | Kind::Text if commas == 2 => {
                let flag = call.text(token).to_ascii_lowercase();
                let flag = flag.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'")).unwrap_or(&flag);
                return matches!(flag, b"true" | b"t" | b"on" | b"yes" | b"y" | b"1").then_some(name);
            }
            _ => {}
        }
    }
}

/// The value from its first token on: the content of a constant, or what stands there.
fn value(reader: &mut Reader<'_>, statement: &[u8], begin: Token) -> Assigned {
    let text = reader.text(begin);
    let next = reader.next();
    let known = |bytes: &[u8]| Assigned::Value(String::from_utf8_lossy(bytes).trim().to_owned());
    let content = match begin.kind {
        Kind::Text if next.kind == Kind::Text => return Assigned::NotRead,
        Kind::Text => plain_content(text),
        Kind::Unicode => None,
        Kind::Quoted => text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")),
        _ => return known(statement.get(begin.start as usize..).unwrap_or_default()),
    };
    match content {
        None => Assigned::NotRead,
        Some(content) if next.kind == Kind::End => known(content),
        // A list.
        Some(_) => known(statement.get(begin.start as usize..).unwrap_or_default()),
    }
}

/// What a constant without escapes has in it.
fn plain_content(text: &[u8]) -> Option<&[u8]> {
    if let Some(rest) = text.strip_prefix(b"$") {
        let tag = rest.iter().position(|&byte| byte == b'$')? + 2;
        return text.get(tag..text.len().checked_sub(tag)?);
    }
    let quote = text.iter().position(|&byte| byte == b'\'')?;
    let content = text.get(quote + 1..text.len().checked_sub(1)?)?;
    let is_read = matches!(text.get(..quote)?, b"" | b"E" | b"e" | b"U&" | b"u&");
    let has_escapes = content.iter().any(|byte| matches!(byte, b'\\' | b'\''));
    (is_read && !has_escapes).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn assignments_are_found_in_all_forms() {
        let on = StandardConformingStrings::On;
        let of = |sql: &str| -> Vec<(String, Assigned, bool)> {
            let found = own_assignments(sql.as_bytes(), on);
            found.into_iter().map(|it| (it.name, it.value, it.local)).collect()
        };
        let one = |name: &str, value: &str| vec![(name.to_owned(), Assigned::Value(value.to_owned()), false)];
        for sql in [
            "SET pgsteer.max_lag = '200ms'",
            "set session PGSTEER . Max_Lag to '200ms';",
            "SELECT 1; /* x */ SET \"pgsteer\".\"max_lag\" = \"200ms\" ; SELECT 2",
        ] {
            assert_eq!(of(sql), one("max_lag", "200ms"), "{sql}");
        }
        let read = [
            "E'200ms'",
            "$$200ms$$",
            "$a$200ms$a$",
            "U&'200ms'",
            "' 200ms '",
            "'200ms' -- c",
            "'200ms' /* c */",
        ];
        for constant in read {
            assert_eq!(
                of(&format!("SET pgsteer.max_lag = {constant}")),
                one("max_lag", "200ms"),
                "{constant}"
            );
        }
        for constant in ["'200'\n'ms'", "E'\\x32s'", "'a''b'", "U&'\\0032s'"] {
            let found = of(&format!("SET pgsteer.max_lag = {constant}")).remove(0).1;
            assert_eq!(found, Assigned::NotRead, "{constant}");
        }
        assert_eq!(of("SET pgsteer.max_lag = '1s', '2'"), one("max_lag", "'1s', '2'"));
        assert_eq!(of("SET pgsteer.max_lag = 200"), one("max_lag", "200"));
        assert_eq!(of("SET pgsteer.max_lag = -5"), one("max_lag", "-5"));
        assert_eq!(of("SET pgsteer.x TO a, b"), one("x", "a, b"));
        assert_eq!(of("SET pgsteer.x TO DEFAULT"), vec![("x".to_owned(), Assigned::Default, false)]);
        assert_eq!(
            of("SET LOCAL pgsteer.x = 1"),
            vec![("x".to_owned(), Assigned::Value("1".to_owned()), true)]
        );
        assert_eq!(of("SET work_mem = 1; SELECT 'SET pgsteer.x = 1'; RESET pgsteer.x"), vec![]);
        let sql = b"BEGIN; SET pgsteer.x = 1 ; COMMIT";
        let place = own_assignments(sql, on).remove(0).place;
        assert_eq!(&sql[place], b"SET pgsteer.x = 1");
    }

    #[test]
    fn calls_for_one_transaction_are_found() {
        for sql in [
            "SELECT set_config('pgsteer.max_lag', '1s', true)",
            "select pg_catalog . \"set_config\" ( 'PGSTEER.Max_Lag' , concat('1', 's'), 't' )",
            "SELECT set_config('a.b', 'c', true), set_config('pgsteer.max_lag', $1, true)",
            "WITH x AS (SELECT set_config('pgsteer.max_lag', (SELECT 1)::text, true::bool)) SELECT 1",
        ] {
            let found = own_assignments(sql.as_bytes(), StandardConformingStrings::On);
            let expected = OwnAssignment {
                place: 0..sql.len(),
                name: "max_lag".to_owned(),
                value: Assigned::NotRead,
                local: true,
            };
            assert_eq!(found, [expected], "{sql}");
        }
        for sql in [
            "SELECT set_config('pgsteer.max_lag', '1s', false)",
            "SELECT set_config('pgsteer.max_lag', 'true', $1)",
            "SELECT 'set_config(''pgsteer.max_lag'', ''1s'', true)'",
            "SELECT set_config('app.pgsteer.x', '1s', true)",
            "SELECT set_config('pgsteer.max_lag'",
        ] {
            assert_eq!(own_assignments(sql.as_bytes(), StandardConformingStrings::On), [], "{sql}");
        }
    }

    #[test]
    fn shows_are_found() {
        let found =
            own_shows(b"SHOW pgsteer.token; SHOW work_mem; show \"pgsteer\".Pins", Default::default());
        assert_eq!(found, ["token", "pins"]);
    }
}
