//! SQL text in, what it needs out: one pass, no allocation, and anything not understood is a write.
//!
//! Invariant: `Access::Read` only when every construct in the text is known to be safe on a standby and safe to run
//! twice (contract P7). Must not know: nodes, sessions, sockets, clocks.
//!
//! The way of a text: `lex` splits it into tokens (`words` knows the keywords), `statement` tells the kind of each
//! statement, `query` reads its body, `transaction` reads BEGIN and kin, `scan` holds what was found.
//!
//! What a text can't show is not judged here: a user's function that shadows a built-in one, functions behind views,
//! operators, casts and `row.function` notation, and types of the catalogue. The text is taken as UTF-8.

mod builtins;
mod hint;
mod lex;
mod model;
mod query;
mod scan;
mod settings;
mod shape;
mod statement;
mod transaction;
mod words;

pub use builtins::{SUPPORTED_VERSIONS, is_harmless_function, is_safe_function};
pub use model::*;
pub use shape::shape_hash;

use lex::Kind;
use scan::Scanner;

/// The session's `standard_conforming_strings`: is a backslash in `'...'` an ordinary character?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum StandardConformingStrings {
    /// A backslash is an ordinary character (the default since PostgreSQL 9.1).
    #[default]
    On,
    /// A backslash escapes, as in `E'...'`.
    Off,
}

/// All names in a text as the server reads them, and the contents of plain string constants: for rare statements of which only
/// the names matter. Names that would have to be decoded are left out.
pub fn names(sql: &[u8]) -> Vec<Vec<u8>> {
    let mut scan = Scanner::new(sql, StandardConformingStrings::On);
    let mut names = Vec::new();
    loop {
        let token = scan.advance();
        match token.kind {
            Kind::End | Kind::Error => return names,
            Kind::Word => names.push(scan.text(token).to_ascii_lowercase()),
            Kind::Quoted | Kind::Text => {
                let text = scan.text(token);
                names.push(text.get(1..text.len() - 1).unwrap_or_default().to_vec());
            }
            _ => {}
        }
    }
}

/// Says what `sql` needs: the text of one Query or Parse message, without its terminating zero.
pub fn classify(sql: &[u8], strings: StandardConformingStrings) -> Classification {
    let mut scan = Scanner::new(sql, strings);
    if sql.contains(&0) || std::str::from_utf8(sql).is_err() {
        scan.write(Reason::NotUnderstood);
    }
    loop {
        let token = scan.advance();
        match token.kind {
            Kind::Semicolon => {}
            Kind::End | Kind::Error => break,
            _ => statement::statement(&mut scan, token),
        }
        if matches!(scan.token().kind, Kind::End | Kind::Error) {
            break;
        }
    }
    scan.finish(hint::leading(sql))
}
