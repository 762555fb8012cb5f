//! SQL text in, what it needs out: one pass, no allocation, and anything not understood is a write.
//!
//! Invariant: `Access::Read` only when every construct in the text is known to be safe on a standby and safe to run
//! twice (contract P7). Must not know: nodes, sessions, sockets, clocks.
//!
//! The way of a text: `lex` splits it into tokens (`words` knows the keywords), `statement` tells the kind of each
//! statement, `query` reads its body (`place` says where in it a token stands), `calls` and `names` know what names in it mean,
//! `transaction` reads BEGIN and kin, `scan` holds what was found.
//!
//! What a text can't show is looked up in the database's `catalogue`: users' functions, also those that have a built-in one's name
//! or are called as `row.function`, and views, operators, casts and types that lead to volatile ones. Where no catalogue is known
//! only PostgreSQL's own functions are. The text is taken as UTF-8.

mod builtins;
mod cache;
mod calls;
mod catalogue;
mod hint;
mod learned;
mod lex;
mod model;
mod names;
mod own_settings;
mod place;
mod query;
mod resets;
mod scan;
mod settings;
mod shape;
mod statement;
mod steered;
mod terms;
mod transaction;
mod words;

pub use builtins::{SUPPORTED_VERSIONS, is_harmless_function, is_safe_function};
pub use cache::TextCache;
pub use calls::{Called, Source};
pub use catalogue::{Catalogue, Found, Function, Overrides, Pattern, Verdict};
pub use learned::{Learned, LessonReport, Refusal};
pub use model::*;
pub use own_settings::{Assigned, OWN_PREFIX, OwnAssignment, own_assignments, own_shows};
pub use resets::{Reset, named_settings, resets};
pub use shape::{shape_hash, shape_text};
pub use steered::{Steer, SteeredReport, SteeredShapes};
pub use terms::{
    AskedTerms, Consistency, DURATION_MAX, LagBytes, NoStandby, Shown, TermError, bytes_in, micros_in,
};

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

/// How texts are to be read.
#[derive(Debug, Clone, Copy)]
pub struct Dialect<'c> {
    /// How string constants are read.
    pub strings: StandardConformingStrings,
    /// The server's major version.
    pub version: u8,
    /// What the database has beyond PostgreSQL's own, as far as it is known.
    pub catalogue: Option<&'c Catalogue>,
    /// Which catalogue that is, and whether it is still true: what it calls a write is one anyway.
    pub catalogue_stamp: CatalogueStamp,
    /// What the configuration says of functions.
    pub overrides: &'c Overrides,
    /// What was read before.
    pub cache: Option<&'c TextCache>,
}

/// Which catalogue a text was read by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CatalogueStamp {
    /// Another number for each catalogue of the process; 0 for none.
    pub serial: u64,
    /// Nothing was defined since it was asked for.
    pub fresh: bool,
}

/// Nothing is said.
static NO_OVERRIDES: Overrides = Overrides { read: Vec::new(), write: Vec::new() };

impl Default for Dialect<'_> {
    /// The newest version, of which no catalogue is known.
    fn default() -> Self {
        Self {
            strings: StandardConformingStrings::On,
            version: *SUPPORTED_VERSIONS.end(),
            catalogue: None,
            catalogue_stamp: CatalogueStamp::default(),
            overrides: &NO_OVERRIDES,
            cache: None,
        }
    }
}

impl Dialect<'_> {
    /// What a text needs, and by which catalogue.
    pub fn classify(&self, sql: &[u8]) -> (CatalogueStamp, Classification) {
        (self.catalogue_stamp, classify(sql, self))
    }
}

impl StandardConformingStrings {
    /// The usual dialect, but for this.
    pub fn dialect(self) -> Dialect<'static> {
        Dialect { strings: self, ..Dialect::default() }
    }
}

/// All names in a text as the server reads them, and the contents of plain string constants: for rare statements of which only
/// the names matter. Names that would have to be decoded are left out.
pub fn names(sql: &[u8]) -> Vec<Vec<u8>> {
    let dialect = Dialect::default();
    let mut scan = Scanner::new(sql, &dialect);
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

/// The statements of a text, by their bytes: what stands between semicolons, without empty ones.
pub fn statements(sql: &[u8], strings: StandardConformingStrings) -> Vec<&[u8]> {
    let mut lexer = lex::Lexer::new(sql, strings);
    let (mut found, mut start, mut last) = (Vec::new(), None, 0);
    loop {
        let token = lexer.next();
        let ends = matches!(token.kind, Kind::Semicolon | Kind::End | Kind::Error);
        if token.kind == Kind::Error {
            start = start.or(Some(token.start as usize));
            last = sql.len();
        }
        match start {
            Some(begin) if ends => {
                found.extend(sql.get(begin..last));
                start = None;
            }
            None if !ends => start = Some(token.start as usize),
            _ => {}
        }
        last = token.end as usize;
        if matches!(token.kind, Kind::End | Kind::Error) {
            return found;
        }
    }
}

/// What `sql` needs, and the functions that it calls: for people.
pub fn explain(sql: &[u8], dialect: &Dialect<'_>) -> (Classification, Vec<Called>) {
    let mut scan = Scanner::new(sql, dialect);
    scan.note_calls();
    read(&mut scan, sql);
    let called = scan.take_called();
    (scan.finish(hint::leading(sql)), called)
}

/// What the leading comment of a text asks for, of which the beginning is enough.
pub fn leading_hint(beginning: &[u8]) -> Hint {
    hint::leading(beginning)
}

/// Says what `sql` needs: the text of one Query or Parse message, without its terminating zero.
pub fn classify(sql: &[u8], dialect: &Dialect<'_>) -> Classification {
    match dialect.cache {
        Some(cache) => cache.get(sql, dialect, || classify_anew(sql, dialect)),
        None => classify_anew(sql, dialect),
    }
}

fn classify_anew(sql: &[u8], dialect: &Dialect<'_>) -> Classification {
    let mut scan = Scanner::new(sql, dialect);
    read(&mut scan, sql);
    scan.finish(hint::leading(sql))
}

#[inline]
fn read(scan: &mut Scanner<'_>, sql: &[u8]) {
    if sql.contains(&0) || std::str::from_utf8(sql).is_err() {
        scan.write(Reason::NotUnderstood);
    }
    loop {
        let token = scan.advance();
        match token.kind {
            Kind::Semicolon => {}
            Kind::End | Kind::Error => break,
            _ => statement::statement(scan, token),
        }
        if matches!(scan.token().kind, Kind::End | Kind::Error) {
            break;
        }
    }
}
