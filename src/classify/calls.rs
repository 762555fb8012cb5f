//! What a name means that is called, or stands for a type: by PostgreSQL's own lists, the catalogue and the configuration.
//!
//! Invariant: of a name that nothing is known of a call is no read. Must not know: which places make a name a call.

use super::builtins::{self, Folded};
use super::lex::{Kind, Token};
use super::scan::Scanner;
use super::words::Word;
use super::{Dialect, PinReason, SessionEffect, Span, Verdict};

/// Whether a call is a read, by all that is known of the name.
#[inline]
pub(super) fn is_read(
    dialect: &Dialect<'_>,
    parts: u8,
    schema: Option<Folded<'_>>,
    function: &Folded<'_>,
) -> bool {
    if !dialect.overrides.is_empty()
        && let Some(verdict) = dialect.overrides.of_call(schema.as_ref(), function)
    {
        return verdict == Verdict::Read;
    }
    let own = || builtins::is_builtin(function, dialect.version);
    match (parts, schema) {
        (1, _) => match dialect.catalogue.and_then(|catalogue| catalogue.function(function)) {
            // Which of them is meant depends on arguments and search_path.
            Some(verdict) => {
                let fresh = dialect.catalogue_stamp.fresh && !is_unsafe(function);
                verdict == Verdict::Read && (own() || fresh)
            }
            None => own(),
        },
        (2, Some(schema)) if schema.is(b"pg_catalog") => own(),
        (2, Some(schema)) => match dialect.catalogue {
            Some(catalogue) => {
                let fresh = dialect.catalogue_stamp.fresh;
                fresh && catalogue.function_of(&schema, function) == Some(Verdict::Read)
            }
            None => (schema.is(b"pdb") || schema.is(b"paradedb")) && builtins::is_search(function),
        },
        _ => false,
    }
}

/// Functions of PostgreSQL that must not be called by the way of `alias.name`, which looks like a column.
pub(super) fn is_unsafe(name: &Folded<'_>) -> bool {
    let letters = b"cilnpst";
    letters.iter().any(|&letter| name.may_begin(letter))
        && (builtins::is_writing(name) || builtins::is_node_local(name))
}

/// Types whose modifiers are known to be harmless.
pub(super) fn is_type(scan: &Scanner<'_>, token: Token, schema: Option<Token>, parts: u8) -> bool {
    const COMMON: [&str; 9] = [
        "bpchar",
        "varbit",
        "timetz",
        "timestamptz",
        "vector",
        "halfvec",
        "sparsevec",
        "geometry",
        "geography",
    ];
    if scan.dialect().catalogue.is_some_and(|catalogue| catalogue.is_modified_type(&scan.folded(token))) {
        return true;
    }
    const SEARCH: [&str; 4] = ["boost", "const", "fuzzy", "slop"];
    let varying = token.word == Word::Varying;
    let folded = scan.folded(token);
    match (parts, schema) {
        (1, _) => token.word.is_type() || varying || folded.is_one_of(&COMMON),
        (2, Some(schema)) => {
            let schema = scan.folded(schema);
            (schema.is(b"pg_catalog") && (token.word.is_type() || folded.is_one_of(&COMMON)))
                || (schema.is(b"pdb") && folded.is_one_of(&SEARCH))
        }
        _ => false,
    }
}

/// `set_config(` with plain arguments says what it sets, and whether for this transaction only. The current token is the
/// parenthesis.
pub(super) fn set_config(scan: &Scanner<'_>) -> SessionEffect {
    let mut lexer = scan.ahead();
    let name = lexer.next();
    if name.kind != Kind::Text || lexer.next().kind != Kind::Comma {
        return SessionEffect::Unknown;
    }
    let text = lexer.text(name);
    let plain =
        text.first() == Some(&b'\'') && !text.get(1..text.len() - 1).unwrap_or_default().contains(&b'\'');
    if !matches!(lexer.next().kind, Kind::Text | Kind::Parameter | Kind::Number) {
        return SessionEffect::Unknown;
    }
    let mut token = lexer.next();
    if token.kind == Kind::Cast {
        lexer.next();
        token = lexer.next();
    }
    let (local, end) = (lexer.next(), lexer.next());
    if token.kind != Kind::Comma || end.kind != Kind::Close {
        return SessionEffect::Unknown;
    }
    match lexer.text(local).to_ascii_lowercase().as_slice() {
        b"true" | b"'t'" | b"'true'" => SessionEffect::None,
        b"false" | b"'f'" | b"'false'" if plain => {
            SessionEffect::Set(Span { start: name.start + 1, end: name.end - 1 })
        }
        _ => SessionEffect::Unknown,
    }
}

/// What a function leaves behind in its session.
pub(super) fn pin_of(function: &Folded<'_>) -> Option<PinReason> {
    if function.is_one_of(&["nextval", "setval", "currval", "lastval"]) {
        Some(PinReason::Sequence)
    } else if function.is(b"setseed") {
        Some(PinReason::Seed)
    } else if (function.begins(b"pg_advisory_") || function.begins(b"pg_try_advisory_"))
        && !function.begins(b"pg_advisory_xact_")
        && !function.begins(b"pg_try_advisory_xact_")
    {
        // Unlocking is among them: whether anything is locked is asked of the server.
        Some(PinReason::AdvisoryLock)
    } else if function.is(b"lo_open") {
        Some(PinReason::LargeObject)
    } else if function.is(b"pg_export_snapshot") {
        Some(PinReason::ExportedSnapshot)
    } else if function.begins(b"dblink") || function.begins(b"pg_replication_origin_") {
        Some(PinReason::Other)
    } else {
        None
    }
}
