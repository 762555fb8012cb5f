//! The shape of a statement: its text without the values in it.
//!
//! Invariant: two texts that differ only in constants, parameters, lengths of constant lists, comments, white space
//! or the case of unquoted words have one shape. Must not know: what a shape is remembered for.

use super::StandardConformingStrings;
use super::builtins::Folded;
use super::lex::{Kind, Lexer};

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

#[inline]
fn mix(hash: u64, value: u64) -> u64 {
    let mixed = (hash ^ value).wrapping_mul(MULTIPLIER);
    mixed ^ (mixed >> 29)
}

fn mix_bytes(hash: u64, text: &[u8]) -> u64 {
    text.iter().fold(hash, |hash, &byte| mix(hash, u64::from(byte)))
}

/// A hash of the shape of `sql`. A text that can't be lexed is hashed as it is from there on.
pub fn shape_hash(sql: &[u8]) -> u64 {
    let mut lexer = Lexer::new(sql, StandardConformingStrings::On);
    let mut hash = MULTIPLIER;
    let mut after_value = false;
    let mut pending_comma = false;
    loop {
        let token = lexer.next();
        let value = matches!(token.kind, Kind::Text | Kind::Number | Kind::Parameter);
        if pending_comma && !value {
            hash = mix(hash, Kind::Comma as u64);
        }
        let listed = std::mem::take(&mut pending_comma) && value;
        match token.kind {
            Kind::End => return hash,
            Kind::Error => return mix_bytes(hash, sql.get(token.start as usize..).unwrap_or_default()),
            Kind::Comma if after_value => pending_comma = true,
            _ if value => {
                if !listed {
                    hash = mix(hash, Kind::Text as u64);
                }
            }
            Kind::Word => {
                let name = Folded::unquoted(lexer.text(token)).hash();
                hash = mix(hash, u64::from(name) << 32 | u64::from(token.end - token.start));
            }
            Kind::Quoted | Kind::Unicode | Kind::Operator => {
                hash = mix_bytes(mix(hash, token.kind as u64), lexer.text(token));
            }
            _ => hash = mix(hash, token.kind as u64),
        }
        after_value = value;
    }
}

/// The shape of `sql` for people: values as `?`, lists of them as `?, ...`, words in lower case; cut off at `bytes_max`.
pub fn shape_text(sql: &[u8], strings: StandardConformingStrings, bytes_max: usize) -> String {
    let mut lexer = Lexer::new(sql, strings);
    let mut text = String::new();
    let (mut end, mut values, mut comma) = (0, 0usize, false);
    loop {
        let token = lexer.next();
        if matches!(token.kind, Kind::End | Kind::Error) {
            return text;
        }
        let is_value = matches!(token.kind, Kind::Text | Kind::Number | Kind::Parameter);
        if token.kind == Kind::Comma && values > 0 && !comma {
            comma = true;
            continue;
        }
        let is_listed = comma && is_value;
        if comma && (!is_listed || values == 1) {
            text.push(',');
        }
        let piece = match is_value {
            true if is_listed && values == 1 => " ...".into(),
            true if is_listed => "".into(),
            true => "?".into(),
            false => String::from_utf8_lossy(lexer.text(token)),
        };
        let spaced = token.start > end && !text.is_empty() && !is_listed;
        if spaced || (comma && !is_listed) {
            text.push(' ');
        }
        if token.kind == Kind::Word {
            text.push_str(&piece.to_lowercase())
        } else {
            text.push_str(&piece)
        }
        end = token.end;
        values = if is_value { values + 1 } else { 0 };
        comma = false;
        if text.len() > bytes_max {
            let cut = (0..=bytes_max).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            text.truncate(cut);
            text.push_str(" ...");
            return text;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_for_people_have_no_values() {
        for (sql, text) in [
            (
                "SELECT  A,\n b FROM \"T\" -- x\n WHERE i IN (1, 2,3) AND t='s' /* ? */",
                "select a, b from \"T\" where i in (?, ...) and t=?",
            ),
            ("select $1::text, E'a\\'b', $$x$$", "select ?::text, ?, ..."),
            ("", ""),
            ("select 'open", "select"),
        ] {
            assert_eq!(shape_text(sql.as_bytes(), StandardConformingStrings::On, 100), text, "{sql}");
        }
        assert_eq!(shape_text("SELECT äöü".as_bytes(), StandardConformingStrings::On, 8), "select  ...");
        let escaped = shape_text(b"select 'it\\'s my secret'", StandardConformingStrings::Off, 100);
        assert_eq!(escaped, "select ?");
        assert_eq!(shape_hash(b"select 1, 2"), shape_hash(b"SELECT 5, 6, 7"));
    }
}
