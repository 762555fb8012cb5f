//! The state of one classification: the token stream and what has been found so far.
//!
//! Invariant: nothing found is ever taken back; the first reason to write and the first reason to pin win.
//! Must not know: any statement.

use super::builtins::Folded;
use super::lex::{Kind, Lexer, Token};
use super::words::Word;
use super::{
    Access, Called, Classification, Dialect, Hint, InReadOnly, PinReason, Reason, Resets, SessionEffect,
    Span, TransactionEffect,
};

/// Reads tokens and collects findings.
#[expect(clippy::struct_excessive_bools, reason = "independent findings")]
pub(super) struct Scanner<'a> {
    lexer: Lexer<'a>,
    dialect: &'a Dialect<'a>,
    /// Of the current token; the lexer knows the rest of it.
    kind: Kind,
    written: Option<Reason>,
    pinned: Option<PinReason>,
    unseen: bool,
    session: SessionEffect,
    transaction: TransactionEffect,
    pub(super) commits: bool,
    /// A plain ROLLBACK is among the statements.
    pub(super) rolls_back: bool,
    pub(super) copies: bool,
    pub(super) in_read_only: InReadOnly,
    /// The statement is a SELECT, not part of another.
    pub(super) is_select: bool,
    /// It sets something for the transaction, which alone does not make it a write in one that is READ ONLY.
    pub(super) sets_local: bool,
    pub(super) databases: bool,
    pub(super) roles: bool,
    pub(super) defines: bool,
    pub(super) signals: bool,
    pub(super) names_processes: bool,
    pub(super) asks_last_value: bool,
    pub(super) names_prepared: bool,
    pub(super) search: bool,
    pub(super) shows_own: bool,
    pub(super) sets_own: bool,
    pub(super) sets_commit: bool,
    /// What the statement calls is only defined by it, and runs later if at all.
    pub(super) defines_only: bool,
    /// A setting was reset by a statement so far.
    pub(super) resets: bool,
    resets_before: bool,
    statements: u16,
    /// The calls, where they are asked for.
    called: Option<Vec<Called>>,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(sql: &'a [u8], dialect: &'a Dialect<'a>) -> Self {
        Self {
            lexer: Lexer::new(sql, dialect.strings),
            dialect,
            kind: Kind::End,
            written: None,
            pinned: None,
            unseen: false,
            session: SessionEffect::None,
            transaction: TransactionEffect::None,
            commits: false,
            rolls_back: false,
            copies: false,
            in_read_only: InReadOnly::AsIs,
            is_select: false,
            sets_local: false,
            databases: false,
            roles: false,
            defines: false,
            signals: false,
            names_processes: false,
            asks_last_value: false,
            names_prepared: false,
            search: false,
            shows_own: false,
            sets_own: false,
            sets_commit: false,
            defines_only: false,
            resets: false,
            resets_before: false,
            statements: 0,
            called: None,
        }
    }

    /// Calls are to be noted.
    pub(super) fn note_calls(&mut self) {
        self.called = Some(Vec::new());
    }

    /// Notes a call, where that is asked for.
    #[inline]
    pub(super) fn called(&mut self, call: impl FnOnce() -> Called) {
        if let Some(called) = &mut self.called {
            called.push(call());
        }
    }

    /// The calls noted.
    pub(super) fn take_called(&mut self) -> Vec<Called> {
        self.called.take().unwrap_or_default()
    }

    /// How the text is to be read.
    #[inline]
    pub(super) fn dialect(&self) -> &'a Dialect<'a> {
        self.dialect
    }

    /// The next token, which is then the current one.
    #[inline]
    pub(super) fn advance(&mut self) -> Token {
        self.kind = self.lexer.read();
        if self.kind == Kind::Error {
            self.write(Reason::NotUnderstood);
        }
        self.token()
    }

    /// Steps over a list of values behind the current token, which is one; whether there is one. The last of them is then the current
    /// token, whose text is not known.
    #[inline]
    pub(super) fn skip_values(&mut self) -> bool {
        self.lexer.skip_values()
    }

    #[inline]
    pub(super) fn token(&self) -> Token {
        self.lexer.token(self.kind)
    }

    #[inline]
    pub(super) fn text(&self, token: Token) -> &'a [u8] {
        self.lexer.text(token)
    }

    /// The name a token spells.
    #[inline]
    pub(super) fn folded(&self, token: Token) -> Folded<'a> {
        let text = self.text(token);
        match token.kind {
            Kind::Quoted => Folded::quoted(text.get(1..text.len() - 1).unwrap_or_default()),
            _ => Folded::unquoted(text),
        }
    }

    /// Does the current statement end here?
    #[inline]
    pub(super) fn at_end(&self) -> bool {
        matches!(self.kind, Kind::Semicolon | Kind::End | Kind::Error)
    }

    /// Is the current token this word? Then steps over it.
    pub(super) fn accept(&mut self, word: Word) -> bool {
        let found = self.kind == Kind::Word && self.token().word == word;
        if found {
            self.advance();
        }
        found
    }

    pub(super) fn begin_statement(&mut self) {
        self.statements = self.statements.saturating_add(1);
        self.defines_only = false;
    }

    /// A statement begins that sees the session's settings.
    pub(super) fn sees_settings(&mut self) {
        self.resets_before |= self.resets;
    }

    #[inline]
    pub(super) fn write(&mut self, reason: Reason) {
        let runs = !(self.defines_only && reason == Reason::Function);
        self.unseen |= runs && matches!(reason, Reason::Function | Reason::Procedure | Reason::NotUnderstood);
        if self.written.is_none() {
            self.written = Some(reason);
        }
    }

    /// It runs what can't be seen here.
    pub(super) fn unseen(&mut self) {
        self.unseen = true;
    }

    pub(super) fn written(&self) -> Option<Reason> {
        self.written
    }

    /// Says of a statement found unsafe just now that it was inside another.
    pub(super) fn written_inside(&mut self) {
        if self.written.is_some() {
            self.written = Some(Reason::UnsafeInner);
        }
    }

    pub(super) fn pin(&mut self, reason: PinReason) {
        if self.pinned.is_none() {
            self.pinned = Some(reason);
        }
    }

    /// Notes an effect on the session; of two only that there is one.
    pub(super) fn session(&mut self, effect: SessionEffect) {
        let first = self.statements == 1 && self.session == SessionEffect::None;
        self.session = if first { effect } else { SessionEffect::Unknown };
    }

    /// Corrects the effect just noted, where more of the statement tells.
    pub(super) fn session_is(&mut self, effect: SessionEffect) {
        if self.session != SessionEffect::Unknown {
            self.session = effect;
        }
    }

    /// Where the name stands that a token spells, without its quotes; `None` for names that would have to be decoded.
    pub(super) fn name_span(&self, token: Token) -> Option<Span> {
        match token.kind {
            Kind::Word => Some(Span { start: token.start, end: token.end }),
            Kind::Quoted if !self.text(token).get(1..token_length(token) - 1)?.contains(&b'"') => {
                Some(Span { start: token.start + 1, end: token.end - 1 })
            }
            _ => None,
        }
    }

    /// A lexer that reads on from the current token, without moving this one.
    pub(super) fn ahead(&self) -> Lexer<'a> {
        self.lexer.clone()
    }

    pub(super) fn transaction(&mut self, effect: TransactionEffect) {
        let first = self.statements == 1 && self.transaction == TransactionEffect::None;
        self.transaction = if first { effect } else { TransactionEffect::Other };
    }

    pub(super) fn finish(self, hint: Hint) -> Classification {
        let failed = self.kind == Kind::Error;
        let transaction = match self.transaction {
            TransactionEffect::None => TransactionEffect::None,
            effect if self.statements == 1 && !failed => effect,
            _ => TransactionEffect::Other,
        };
        let (access, reason) = match self.written {
            Some(reason @ (Reason::Function | Reason::NotUnderstood)) => (Access::Unknown, reason),
            Some(reason) => (Access::Write, reason),
            None if self.sets_local => (Access::Write, Reason::WritingFunction),
            None if self.statements == 0 => (Access::Read, Reason::Empty),
            None => (Access::Read, Reason::ReadOnly),
        };
        let session = match self.session {
            SessionEffect::None => SessionEffect::None,
            effect if self.statements == 1 && !failed => effect,
            _ => SessionEffect::Unknown,
        };
        Classification {
            access,
            reason,
            pin: self.pinned,
            unseen: self.unseen,
            session,
            transaction,
            // What follows a ROLLBACK is a transaction of its own, which ends with the text.
            commits: self.commits || (self.rolls_back && self.statements > 1),
            statements: self.statements,
            databases: self.databases,
            roles: self.roles,
            defines: self.defines,
            signals: self.signals,
            names_processes: self.names_processes,
            asks_last_value: self.asks_last_value,
            names_prepared: self.names_prepared,
            search: self.search,
            shows_own: self.shows_own,
            sets_own: self.sets_own,
            sets_commit: self.sets_commit,
            resets: match self.resets {
                _ if self.resets_before => Resets::Before,
                true if self.statements > 1 => Resets::AtTheEnd,
                _ => Resets::Alone,
            },
            copies: self.copies,
            in_read_only: match self.pinned {
                None if self.statements == 1 && !failed => self.in_read_only,
                _ => InReadOnly::AsIs,
            },
            hint,
        }
    }
}

fn token_length(token: Token) -> usize {
    (token.end - token.start) as usize
}
