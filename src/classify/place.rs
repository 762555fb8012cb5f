//! Where in a statement's body a token stands: the levels of parentheses, and what was read last.
//!
//! Invariant: plain data, without a judgement. Must not know: what a place means for a name.

use super::lex::Token;
use super::words::Word;

/// Where in a query a level stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Clause {
    Expression,
    Targets,
    /// A table reference is expected or has just ended.
    From,
    JoinOn,
    GroupBy,
    /// Between WITH and the main query.
    With,
}

/// What opened a level.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opened {
    Group,
    /// `CAST(`: AS is followed by a type.
    Cast,
    /// `OPERATOR(`: a name, no operand.
    Operator,
    /// `DISTINCT ON (`: an expression follows the closing parenthesis.
    DistinctOn,
    /// `[`: the one place of a lone colon.
    Bracket,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Level {
    pub(super) clause: Clause,
    pub(super) opened: Opened,
    /// Nothing has been read at this level yet.
    pub(super) fresh: bool,
    /// SELECT, VALUES, TABLE or WITH has been read at this level.
    pub(super) query: bool,
}

pub(super) const LEVEL: Level =
    Level { clause: Clause::Expression, opened: Opened::Group, fresh: true, query: false };

/// What was read last, as far as it matters for what comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Last {
    Nothing,
    Name,
    Keyword,
    Value,
    Close,
    Open,
    Comma,
    Dot,
    As,
    Cast,
    Operator,
}

/// The name just read: its last part, its qualifier, and what stood before it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Name {
    pub(super) token: Token,
    pub(super) qualifier: Option<Token>,
    pub(super) parts: u8,
    pub(super) after: Last,
    pub(super) after_word: Word,
    pub(super) after_operand: bool,
}

/// What a parenthesis after a word turned out to be.
pub(super) enum Paren {
    Opens(Opened, Clause),
    Call,
}

/// What is expected of the first argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument {
    Any,
    /// `current_setting(`: the name of a setting.
    Setting,
    /// `current_setting('name'`: nothing more, or it is not the name.
    SettingEnd,
}

/// UPDATE of `pg_settings` is a SET in disguise.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SettingsRule {
    pub(super) updates: bool,
    pub(super) named: bool,
}
