//! What each kind of statement is, told by its first words.
//!
//! Invariant: a kind that is not named here is a write that may leave anything behind. Must not know: expressions.

use super::lex::{Kind, Token};
use super::names::sets_only;
use super::query::Body;
use super::scan::Scanner;
use super::words::Word;
use super::{InReadOnly, PinReason, Reason, SessionEffect, Span, settings, transaction};

/// Classifies one statement, from its first token to the one that ends it.
pub(super) fn statement(scan: &mut Scanner<'_>, head: Token) {
    scan.begin_statement();
    if scan.resets && !is_blind(scan, head) {
        scan.sees_settings();
    }
    command(scan, head);
    if !scan.at_end() {
        let token = scan.token();
        body(scan, token);
    }
}

/// Whether it is of no interest to a statement that a setting was reset before it: of those that a pool's clients send to clean up
/// none is.
fn is_blind(scan: &Scanner<'_>, head: Token) -> bool {
    use Word::*;
    match head.word {
        Reset | Discard | Close | Deallocate | Unlisten | Commit | End | Rollback | Abort => true,
        // SET LOCAL of what was reset would last.
        Set => scan.ahead().next().word != Local,
        Select => {
            let mut ahead = scan.ahead();
            let (name, open, close, end) = (ahead.next(), ahead.next(), ahead.next(), ahead.next());
            scan.folded(name).is(b"pg_advisory_unlock_all")
                && (open.kind, close.kind) == (Kind::Open, Kind::Close)
                && matches!(end.kind, Kind::Semicolon | Kind::End)
        }
        _ => false,
    }
}

/// Reads the rest of a statement for calls and for what makes a query a write.
fn body(scan: &mut Scanner<'_>, token: Token) {
    Body::new().read(scan, token);
}

fn write_body(scan: &mut Scanner<'_>, token: Token, reason: Reason) {
    scan.write(reason);
    body(scan, token);
}

/// A statement that is a write, pins its session, and whose rest is read.
fn pinned(scan: &mut Scanner<'_>, token: Token, reason: Reason, pin: PinReason) {
    scan.pin(pin);
    write_body(scan, token, reason);
}

fn command(scan: &mut Scanner<'_>, head: Token) {
    use Word::*;
    match head.word {
        Select => {
            let list = scan.ahead();
            scan.is_select = true;
            body(scan, head);
            scan.is_select = false;
            if scan.sets_local && scan.written().is_none() {
                scan.in_read_only = if sets_only(list) { InReadOnly::Quiet } else { InReadOnly::Sets };
            }
        }
        Values | Table | With => body(scan, head),
        Insert | Update | Delete | Merge | Truncate => write_body(scan, head, Reason::ModifiesData),
        Begin => {
            scan.advance();
            let _ = scan.accept(Work) || scan.accept(Transaction);
            transaction::begin(scan);
        }
        Start => {
            scan.advance();
            if scan.accept(Transaction) { transaction::begin(scan) } else { transaction::other(scan) }
        }
        Commit | End => {
            scan.commits = true;
            // What was defined in a prepared transaction counts from then on.
            scan.defines |= scan.advance().word == Prepared;
            transaction::commit(scan);
        }
        Rollback | Abort => {
            scan.advance();
            transaction::rollback(scan);
        }
        Savepoint | Release => {
            scan.advance();
            scan.in_read_only = InReadOnly::Quiet;
            transaction::other(scan);
        }
        Set => set(scan),
        Reset => reset(scan),
        Discard => discard(scan),
        Show => show(scan),
        Explain => explain(scan),
        Copy => copy(scan),
        Prepare => prepare(scan),
        Execute => {
            scan.names_prepared = true;
            scan.unseen();
            write_body(scan, head, Reason::SessionState);
        }
        Deallocate => deallocate(scan),
        Declare => declare(scan),
        Fetch | Move => of_cursors(scan, InReadOnly::Fetches, |scan| body(scan, head)),
        Close => of_cursors(scan, InReadOnly::Quiet, |scan| body(scan, head)),
        Listen => pinned(scan, head, Reason::Notification, PinReason::Listen),
        Notify | Unlisten => write_body(scan, head, Reason::Notification),
        Load => pinned(scan, head, Reason::SessionState, PinReason::Load),
        Do | Call => {
            scan.names_prepared |= mentions_prepared(scan);
            pinned(scan, head, Reason::Procedure, PinReason::Unseen);
        }
        Lock => write_body(scan, head, Reason::Locks),
        Create => create(scan),
        Alter => alter(scan),
        Drop => {
            let token = scan.advance();
            note_shared_object(scan, token);
            scan.write(Reason::Ddl);
        }
        Grant | Revoke | Comment | Security | Reassign | Import | Refresh => {
            scan.defines |= head.word == Import;
            write_body(scan, head, Reason::Ddl);
        }
        Vacuum | Analyze | Analyse | Cluster | Reindex | Checkpoint => {
            write_body(scan, head, Reason::Maintenance);
        }
        _ if head.kind == Kind::Open => parenthesised(scan, head),
        // What it leaves behind is asked of the server; most likely it is a syntax error.
        _ => write_body(scan, head, Reason::NotUnderstood),
    }
}

/// `((SELECT ...) UNION ...)`: only a query may stand in parentheses.
fn parenthesised(scan: &mut Scanner<'_>, head: Token) {
    let mut read = Body::new();
    let mut token = head;
    while token.kind == Kind::Open {
        read.step(scan, token);
        token = scan.advance();
    }
    if !is_query(token) {
        scan.write(Reason::NotUnderstood);
    }
    read.read(scan, token);
}

fn is_query(token: Token) -> bool {
    matches!(token.word, Word::Select | Word::Values | Word::Table | Word::With)
}

fn set(scan: &mut Scanner<'_>) {
    scan.advance();
    scan.write(Reason::SessionState);
    let local = scan.accept(Word::Local);
    let session = !local && scan.accept(Word::Session);
    let token = scan.token();
    match token.word {
        Word::Transaction => {
            scan.advance();
            if local || session || scan.token().word == Word::Snapshot {
                transaction::other(scan);
            } else {
                transaction::set_transaction(scan);
            }
        }
        Word::Constraints if !local && !session => {}
        _ => {
            if settings::is_transaction_setting(&scan.folded(token)) {
                transaction::other(scan);
            } else {
                set_session(scan, token, local);
            }
        }
    }
}

/// `SET [LOCAL] name`, from the name on: what it leaves in the session.
fn set_session(scan: &mut Scanner<'_>, token: Token, local: bool) {
    // SET TIME ZONE, NAMES, SCHEMA and kin have names of their own for what they set.
    let special = matches!(token.word, Word::Time | Word::Session | Word::Characteristics)
        || ["authorization", "names", "schema", "xml", "seed"]
            .iter()
            .any(|word| scan.folded(token).is(word.as_bytes()));
    if special {
        if scan.folded(token).is(b"seed") {
            scan.pin(PinReason::Seed);
        }
        while !scan.at_end() {
            let word = scan.advance();
            let is_default = word.kind == Kind::Word && scan.folded(word).is(b"default");
            scan.resets |= word.word == Word::Local || is_default;
        }
        if !local {
            scan.session(SessionEffect::Unknown);
        }
        return;
    }
    scan.sets_commit |= scan.folded(token).is(b"synchronous_commit");
    scan.sets_own |= scan.folded(token).is(b"pgsteer");
    let (is_encoding, is_limit) =
        (scan.folded(token).is(b"client_encoding"), scan.folded(token).is(b"statement_timeout"));
    let effect = setting_name(scan, token);
    if !local {
        scan.session(effect.map_or(SessionEffect::Unknown, SessionEffect::Set));
    }
    let assigned = scan.token();
    if assigned.word == Word::To || scan.text(assigned) == b"=" {
        let value = scan.advance();
        let is_default = value.kind == Kind::Word && scan.folded(value).is(b"default");
        if local && !is_default && !is_encoding {
            scan.in_read_only = if is_limit { InReadOnly::Sets } else { InReadOnly::Quiet };
        }
        if let (Some(name), true) = (effect, is_default) {
            scan.resets = true;
            if local {
                scan.session(SessionEffect::ResetLocal(name));
            } else {
                scan.session_is(SessionEffect::Reset(name));
            }
        }
    }
}

/// `name` or `prefix.name`, read to behind it.
fn setting_name(scan: &mut Scanner<'_>, first: Token) -> Option<Span> {
    let mut span = scan.name_span(first)?;
    let quoted = first.kind != Kind::Word;
    let mut next = scan.advance();
    while next.kind == Kind::Dot {
        let part = scan.advance();
        if quoted || part.kind != Kind::Word {
            return None;
        }
        span.end = part.end;
        next = scan.advance();
    }
    Some(span)
}

fn reset(scan: &mut Scanner<'_>) {
    let token = scan.advance();
    scan.resets = true;
    scan.write(Reason::SessionState);
    let effect = if token.word == Word::All {
        scan.advance();
        SessionEffect::ResetAll
    } else if matches!(token.word, Word::Time | Word::Session | Word::Transaction) {
        SessionEffect::Unknown
    } else {
        setting_name(scan, token).map_or(SessionEffect::Unknown, SessionEffect::Reset)
    };
    scan.session(if scan.at_end() { effect } else { SessionEffect::Unknown });
}

fn discard(scan: &mut Scanner<'_>) {
    let token = scan.advance();
    scan.write(Reason::SessionState);
    if token.word == Word::All {
        scan.resets = true;
        scan.advance();
        scan.session(if scan.at_end() { SessionEffect::DiscardAll } else { SessionEffect::Unknown });
    } else {
        scan.session(SessionEffect::Unknown);
    }
}

fn deallocate(scan: &mut Scanner<'_>) {
    let mut token = scan.advance();
    scan.write(Reason::SessionState);
    if token.word == Word::Prepare {
        token = scan.advance();
    }
    let all = token.word == Word::All;
    let name = scan.name_span(token).filter(|_| !all);
    scan.names_prepared |= !all;
    if !scan.at_end() {
        scan.advance();
    }
    let effect = match name {
        _ if !scan.at_end() => SessionEffect::Unknown,
        Some(name) => SessionEffect::Deallocate(name),
        None if all => SessionEffect::DeallocateAll,
        None => SessionEffect::Unknown,
    };
    scan.session(effect);
}

fn show(scan: &mut Scanner<'_>) {
    let first = scan.advance();
    let second = if scan.at_end() { first } else { scan.advance() };
    let third = if scan.at_end() { second } else { scan.advance() };
    scan.shows_own |= scan.folded(first).is(b"pgsteer") && second.kind == Kind::Dot;
    let ordinary = match (first.word, second.word, third.word) {
        (Word::Time, Word::Zone, _) => scan.at_end() || scan.advance().kind == Kind::End,
        (Word::Transaction, Word::Isolation, Word::Level) => {
            scan.advance();
            true
        }
        // One with a prefix was set by a session or belongs to an extension.
        _ if second.kind == Kind::Dot && first.kind == Kind::Word => {
            let is_part = |part: Token| matches!(part.kind, Kind::Word | Kind::Quoted);
            let mut fits = is_part(third) && !scan.folded(first).is(b"pgsteer");
            while fits {
                let dot = scan.advance();
                if scan.at_end() {
                    break;
                }
                fits = dot.kind == Kind::Dot && is_part(scan.advance());
            }
            fits
        }
        _ => {
            second.start == third.start
                && first.kind == Kind::Word
                && settings::is_session_setting(&scan.folded(first))
        }
    };
    if !ordinary || !scan.at_end() {
        scan.write(Reason::NodeLocal);
    }
}

fn explain(scan: &mut Scanner<'_>) {
    let mut token = scan.advance();
    let mut executes = false;
    let mut held = None;
    if token.kind == Kind::Open {
        let first = scan.advance();
        if is_query(first) || first.kind == Kind::Open {
            held = Some(first);
        } else {
            executes = options(scan);
            token = scan.token();
        }
    } else {
        executes = scan.accept(Word::Analyze) || scan.accept(Word::Analyse);
        scan.accept(Word::Verbose);
        token = scan.token();
    }
    let before = scan.written();
    match (held, token.word) {
        (Some(first), _) => {
            let mut read = Body::new();
            read.step(scan, token);
            read.read(scan, first);
        }
        (None, Word::Declare) => explained_cursor(scan),
        (None, Word::Explain) => write_body(scan, token, Reason::NotUnderstood),
        (None, _) if scan.at_end() => scan.write(Reason::NotUnderstood),
        (None, _) => command(scan, token),
    }
    if executes && before.is_none() {
        scan.written_inside();
    }
    if scan.in_read_only == InReadOnly::Quiet {
        // A plan is no silence.
        scan.in_read_only = if scan.sets_local { InReadOnly::Sets } else { InReadOnly::AsIs };
    }
}

/// `EXPLAIN ... DECLARE c CURSOR FOR query`: what is planned, or run, is the query alone.
fn explained_cursor(scan: &mut Scanner<'_>) {
    while !scan.at_end() && scan.token().word != Word::For {
        scan.advance();
    }
    let first = if scan.at_end() { scan.token() } else { scan.advance() };
    match first.kind {
        Kind::Open => parenthesised(scan, first),
        _ if is_query(first) => body(scan, first),
        _ => write_body(scan, first, Reason::NotUnderstood),
    }
}

/// The options of EXPLAIN, from the first word to behind the closing parenthesis: is ANALYZE among them?
fn options(scan: &mut Scanner<'_>) -> bool {
    let mut analyze = false;
    while !scan.at_end() {
        let token = scan.token();
        analyze |= matches!(token.word, Word::Analyze | Word::Analyse);
        scan.advance();
        match token.kind {
            Kind::Close => return analyze,
            Kind::Word | Kind::Quoted | Kind::Text | Kind::Number | Kind::Comma | Kind::Operator => {}
            _ => scan.write(Reason::NotUnderstood),
        }
    }
    scan.write(Reason::NotUnderstood);
    analyze
}

fn copy(scan: &mut Scanner<'_>) {
    let token = scan.advance();
    let before = scan.written();
    let inner = token.kind == Kind::Open;
    if inner {
        let mut read = Body::new();
        read.step(scan, token);
        let first = scan.advance();
        if !is_query(first) && first.kind != Kind::Open {
            scan.write(Reason::NotUnderstood);
        }
        read.read_level(scan, first);
        if before.is_none() {
            scan.written_inside();
        }
    } else {
        relation(scan);
    }
    let to = scan.token().word == Word::To;
    let from = scan.token().word == Word::From;
    let place = if scan.at_end() { scan.token() } else { scan.advance() };
    scan.copies |= matches!(place.word, Word::Stdin | Word::Stdout);
    if from {
        scan.write(Reason::ModifiesData);
    } else if !to || place.word != Word::Stdout {
        scan.write(Reason::NodeLocal);
        // A form that is not understood may still put the connection into COPY mode.
        scan.copies |= !to;
    } else {
        while !scan.at_end() {
            scan.advance();
        }
    }
}

/// `[schema.]table [(columns)]`, up to TO or FROM.
fn relation(scan: &mut Scanner<'_>) {
    let mut read = Body::new();
    let mut column = false;
    while !scan.at_end() {
        let token = scan.token();
        match token.kind {
            Kind::Word if !column && matches!(token.word, Word::To | Word::From) => return,
            Kind::Word | Kind::Quoted | Kind::Unicode => read.name(scan),
            Kind::Open if !column => column = true,
            Kind::Close if column => column = false,
            Kind::Comma | Kind::Dot => {}
            _ => return scan.write(Reason::NotUnderstood),
        }
        scan.advance();
    }
}

fn prepare(scan: &mut Scanner<'_>) {
    let token = scan.advance();
    if token.word == Word::Transaction {
        scan.commits = true;
        let name = scan.advance();
        transaction::other(scan);
        if name.kind == Kind::Text {
            return;
        }
        // Otherwise a prepared statement that is named "transaction".
    }
    scan.names_prepared = true;
    scan.pin(PinReason::SqlPrepare);
    scan.write(Reason::SessionState);
}

/// Whether the constants of a statement, which may be code, mention what is prepared. Nothing is moved.
fn mentions_prepared(scan: &Scanner<'_>) -> bool {
    const NAME: &[u8] = b"pg_prepared_statement";
    let mut ahead = scan.ahead();
    loop {
        let token = ahead.next();
        match token.kind {
            Kind::Semicolon | Kind::End | Kind::Error => return false,
            Kind::Text
                if ahead.text(token).windows(NAME.len()).any(|part| part.eq_ignore_ascii_case(NAME)) =>
            {
                return true;
            }
            _ => {}
        }
    }
}

/// A statement about cursors. `read` finds out whether there is anything unsafe in it.
fn of_cursors(scan: &mut Scanner<'_>, is: InReadOnly, read: impl FnOnce(&mut Scanner<'_>)) {
    let before = scan.written();
    read(scan);
    if before.is_none() && scan.written().is_some() {
        return scan.written_inside();
    }
    scan.in_read_only = is;
    scan.write(Reason::SessionState);
}

fn declare(scan: &mut Scanner<'_>) {
    let mut with = false;
    while !scan.at_end() && scan.token().word != Word::For {
        let token = scan.advance();
        if with && token.word == Word::Hold {
            scan.pin(PinReason::HoldCursor);
        }
        with = token.word == Word::With;
    }
    let query = if scan.at_end() { scan.token() } else { scan.advance() };
    of_cursors(scan, InReadOnly::Quiet, |scan| match query.kind {
        Kind::Open => parenthesised(scan, query),
        _ if is_query(query) => body(scan, query),
        _ => write_body(scan, query, Reason::NotUnderstood),
    });
}

fn create(scan: &mut Scanner<'_>) {
    scan.write(Reason::Ddl);
    let mut token = scan.advance();
    // CREATE [OR REPLACE] [GLOBAL | LOCAL] TEMP ...
    while matches!(token.word, Word::Or | Word::Global | Word::Local) || scan.folded(token).is(b"replace") {
        token = scan.advance();
    }
    let temporary = matches!(token.word, Word::Temp | Word::Temporary);
    if temporary {
        scan.pin(PinReason::TempObject);
    }
    let shared = note_shared_object(scan, token);
    scan.defines |= !temporary && !shared;
    if temporary {
        token = scan.advance();
    }
    let is = |word: &[u8]| token.kind == Kind::Word && scan.folded(token).is(word);
    let is_view = is(b"view") || is(b"recursive");
    scan.defines_only = is_view || (token.word == Word::Table && !is_filled(scan));
}

/// Whether a CREATE TABLE may have a query behind AS. Nothing is moved.
fn is_filled(scan: &Scanner<'_>) -> bool {
    let mut ahead = scan.ahead();
    let mut behind_as = false;
    loop {
        let token = ahead.next();
        let query = is_query(token) || token.word == Word::Execute || token.kind == Kind::Open;
        match token.kind {
            Kind::Semicolon | Kind::End => return false,
            Kind::Error => return true,
            _ if behind_as && query => return true,
            _ => behind_as = token.word == Word::As,
        }
    }
}

/// Databases and roles are not in a database: what is known of them beside the server may be wrong from then on.
/// Whether it is one.
fn note_shared_object(scan: &mut Scanner<'_>, token: Token) -> bool {
    let is = |word: &[u8]| token.kind == Kind::Word && scan.folded(token).is(word);
    let (database, role) = (is(b"database"), is(b"role") || is(b"user") || is(b"group"));
    scan.databases |= database;
    scan.roles |= role;
    database || role
}

fn alter(scan: &mut Scanner<'_>) {
    let token = scan.advance();
    let shared = note_shared_object(scan, token);
    scan.defines |= !shared && token.word != Word::System;
    scan.write(if token.word == Word::System { Reason::Maintenance } else { Reason::Ddl });
}
