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
