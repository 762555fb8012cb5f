//! Which settings a text gives their first values again: for rare texts, of sessions whose first values the server does not know.
//!
//! Invariant: a reset that stands in the text is found, whether it runs or not. Must not know: what the first values are.

use super::StandardConformingStrings;
use super::lex::{Kind, Lexer, Token};
use super::statements;
use super::words::Word;

/// What is reset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reset {
    /// All settings but who the session acts as.
    All,
    /// Everything.
    Everything,
    /// The setting of this name, in lower case.
    One(String),
    /// The same until the transaction ends.
    Local(String),
}

/// All resets of a text, in its order.
pub fn resets(sql: &[u8], strings: StandardConformingStrings) -> Vec<Reset> {
    statements(sql, strings).into_iter().filter_map(|statement| reset(statement, strings)).collect()
}

/// The settings that the SET and RESET statements of a text name, in lower case, however they are written.
pub fn named_settings(sql: &[u8], strings: StandardConformingStrings) -> Vec<String> {
    let named = |statement: &[u8]| {
        let mut reader = Reader::new(Lexer::new(statement, strings));
        let head = reader.next().word;
        let mut first = reader.next();
        if head == Word::Set && matches!(first.word, Word::Session | Word::Local) {
            first = reader.next();
        }
        let is_named = matches!(head, Word::Set | Word::Reset);
        is_named.then(|| reader.name(first)).flatten().map(|(name, _)| name)
    };
    statements(sql, strings).into_iter().filter_map(named).collect()
}

fn reset(statement: &[u8], strings: StandardConformingStrings) -> Option<Reset> {
    let mut reader = Reader::new(Lexer::new(statement, strings));
    match reader.next().word {
        Word::Discard => (reader.next().word == Word::All).then_some(Reset::Everything),
        Word::Reset => {
            let first = reader.next();
            match first.word {
                Word::All => Some(Reset::All),
                Word::Time => Some(Reset::One("timezone".to_owned())),
                Word::Session => Some(Reset::One("session_authorization".to_owned())),
                _ => reader.name(first).map(|(name, _)| Reset::One(name)),
            }
        }
        Word::Set => set(&mut reader),
        _ => None,
    }
}

/// From behind SET.
fn set(reader: &mut Reader<'_>) -> Option<Reset> {
    let mut first = reader.next();
    let local = first.word == Word::Local;
    if local || (first.word == Word::Session && !reader.is_authorization_next()) {
        first = reader.next();
    }
    let (name, value) = match first.word {
        // SET TIME ZONE value
        Word::Time => (reader.next().word == Word::Zone).then(|| ("timezone".to_owned(), reader.next()))?,
        Word::Session => {
            reader.next();
            ("session_authorization".to_owned(), reader.next())
        }
        // SET NAMES [value]
        _ if reader.is(first, b"names") => ("client_encoding".to_owned(), reader.next()),
        _ => {
            let (name, behind) = reader.name(first)?;
            let assigns = behind.word == Word::To || reader.lexer.text(behind) == b"=";
            (name, if assigns { reader.next() } else { behind })
        }
    };
    let zone = name == "timezone" && value.word == Word::Local;
    let no_name = name == "client_encoding" && value.kind == Kind::End;
    if !(zone || no_name || reader.is(value, b"default")) {
        return None;
    }
    Some(if local { Reset::Local(name) } else { Reset::One(name) })
}

/// Reads one statement.
pub(super) struct Reader<'a> {
    lexer: Lexer<'a>,
}

impl<'a> Reader<'a> {
    pub(super) fn new(lexer: Lexer<'a>) -> Self {
        Self { lexer }
    }

    pub(super) fn text(&self, token: Token) -> &'a [u8] {
        self.lexer.text(token)
    }

    pub(super) fn next(&mut self) -> Token {
        self.lexer.next()
    }

    pub(super) fn is(&self, token: Token, word: &[u8]) -> bool {
        token.kind == Kind::Word && self.lexer.text(token).eq_ignore_ascii_case(word)
    }

    fn is_authorization_next(&self) -> bool {
        let mut ahead = self.lexer.clone();
        let token = ahead.next();
        token.kind == Kind::Word && ahead.text(token).eq_ignore_ascii_case(b"authorization")
    }

    /// `name` or `prefix.name` from its first token on, in lower case; and the token behind it.
    pub(super) fn name(&mut self, first: Token) -> Option<(String, Token)> {
        let mut name = self.part(first)?;
        let mut next = self.next();
        while next.kind == Kind::Dot {
            let part = self.next();
            name.push('.');
            name.push_str(&self.part(part)?);
            next = self.next();
        }
        Some((name, next))
    }

    /// Names of settings are compared without regard to case, quoted or not.
    fn part(&self, token: Token) -> Option<String> {
        let text = self.lexer.text(token);
        let text = match token.kind {
            Kind::Word => text,
            Kind::Quoted => text.get(1..text.len() - 1)?,
            _ => return None,
        };
        Some(String::from_utf8_lossy(text).replace("\"\"", "\"").to_lowercase())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_named_however_they_are_written() {
        let sql = b"SET app . /* x */ tenant = 'x'; SET SESSION \"App\".\"T\" TO 1; RESET a.b; SELECT 1; SET LOCAL c.d = 2";
        let found = named_settings(sql, StandardConformingStrings::On);
        assert_eq!(found, ["app.tenant", "app.t", "a.b", "c.d"]);
    }

    #[test]
    fn resets_are_found_in_all_forms() {
        let one = |name: &str| Reset::One(name.to_owned());
        for (sql, found) in [
            ("RESET work_mem", vec![one("work_mem")]),
            ("reset \"Work_Mem\" ; SET app . \"X\" = DEFAULT", vec![one("work_mem"), one("app.x")]),
            ("RESET ALL; DISCARD ALL; DISCARD TEMP", vec![Reset::All, Reset::Everything]),
            ("SET LOCAL search_path TO DEFAULT", vec![Reset::Local("search_path".to_owned())]),
            ("SET SESSION search_path = default", vec![one("search_path")]),
            ("SET search_path TO \"default\"", vec![]),
            ("SET search_path TO 'default', b", vec![]),
            ("RESET TIME ZONE; SET TIME ZONE LOCAL; SET TIME ZONE DEFAULT", vec![one("timezone"); 3]),
            ("SET TIME ZONE 'UTC'; SET LOCAL TIME ZONE DEFAULT", vec![Reset::Local("timezone".to_owned())]),
            ("SET NAMES DEFAULT; SET NAMES; SET NAMES 'UTF8'", vec![one("client_encoding"); 2]),
            (
                "SET SESSION AUTHORIZATION DEFAULT; RESET SESSION AUTHORIZATION",
                vec![one("session_authorization"); 2],
            ),
            ("RESET ROLE; SET ROLE NONE", vec![one("role")]),
            ("SELECT 'RESET ALL'; SET x.y = 1", vec![]),
            ("RESET", vec![]),
        ] {
            assert_eq!(resets(sql.as_bytes(), StandardConformingStrings::On), found, "{sql}");
        }
    }
}
