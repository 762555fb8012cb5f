//! What a name stands for beside a call: a type, a setting that is set, something that is left in the session.
//!
//! Invariant: a name that is not known here stands for none of it. Must not know: where in a statement it stands.

use super::builtins::Folded;
use super::lex::{Kind, Lexer, Token};
use super::scan::Scanner;
use super::words::Word;
use super::{OWN_PREFIX, PinReason, SessionEffect, Span};

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

/// Whether a SELECT, behind whose first word this lexer stands, consists of calls of `set_config` for the transaction, by plain names and with constants:
/// what it tells is what it was told to set. Those that matter to pgsteer are none of them.
pub(super) fn sets_only(mut lexer: Lexer<'_>) -> bool {
    loop {
        let token = lexer.next();
        if !lexer.text(token).eq_ignore_ascii_case(b"set_config") || lexer.next().kind != Kind::Open {
            return false;
        }
        let name = lexer.next();
        let content = lexer.text(name).strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'"));
        let is_plain = content.is_some_and(|name| {
            name.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.'))
                && ![&b"statement_timeout"[..], b"client_encoding"]
                    .iter()
                    .any(|other| name.eq_ignore_ascii_case(other))
        });
        if !is_plain || lexer.next().kind != Kind::Comma {
            return false;
        }
        let is_constant = matches!(lexer.next().kind, Kind::Text | Kind::Parameter | Kind::Number);
        let mut next = lexer.next();
        if next.kind == Kind::Cast {
            lexer.next();
            next = lexer.next();
        }
        let local = lexer.next();
        let is_local =
            [&b"true"[..], b"'t'", b"'true'"].iter().any(|it| lexer.text(local).eq_ignore_ascii_case(it));
        if !is_constant || next.kind != Kind::Comma || !is_local || lexer.next().kind != Kind::Close {
            return false;
        }
        next = lexer.next();
        if next.kind == Kind::Word && lexer.text(next).eq_ignore_ascii_case(b"as") {
            next = lexer.next();
        }
        if matches!(next.kind, Kind::Word | Kind::Quoted) {
            next = lexer.next();
        }
        match next.kind {
            Kind::Comma => {}
            Kind::Semicolon | Kind::End => return true,
            _ => return false,
        }
    }
}

/// Whether `set_config(` sets a setting `pgsteer.…`, by a plain name. The current token is the parenthesis.
pub(super) fn sets_own(scan: &Scanner<'_>) -> bool {
    let mut lexer = scan.ahead();
    let name = lexer.next();
    let start = lexer.text(name).get(1..=OWN_PREFIX.len());
    name.kind == Kind::Text && start.is_some_and(|start| start.eq_ignore_ascii_case(OWN_PREFIX.as_bytes()))
}

/// Whether `set_config(` may set `synchronous_commit`: by its name, or by one that is put together. That of a parameter stands in
/// the Bind. The current token is the parenthesis.
pub(super) fn may_set_commit(scan: &Scanner<'_>) -> bool {
    let mut lexer = scan.ahead();
    let name = lexer.next();
    if name.kind == Kind::Parameter {
        return false;
    }
    if name.kind != Kind::Text || !matches!(lexer.next().kind, Kind::Comma | Kind::Cast) {
        return true;
    }
    let text = lexer.text(name);
    let content = text.strip_prefix(b"'").and_then(|text| text.strip_suffix(b"'"));
    content.is_none_or(|content| {
        content.eq_ignore_ascii_case(b"synchronous_commit")
            || content.iter().any(|byte| matches!(byte, b'\\' | b'\''))
    })
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
