//! PostgreSQL's lexical rules, one token at a time, without allocation.
//!
//! Invariant: a token's extent is what the server's own lexer would see; what can't be lexed is `Kind::Error`, after
//! which nothing more is read. Must not know: statements.

use memchr::{memchr, memchr2};

use super::StandardConformingStrings;
use super::words::{Word, word};

/// What a token is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// An unquoted identifier or keyword.
    Word,
    /// `"name"`.
    Quoted,
    /// `U&"name"`, whose spelling is not decoded.
    Unicode,
    /// Any string constant.
    Text,
    Number,
    Parameter,
    Operator,
    /// `::`
    Cast,
    /// `:`, `:=` and `..`.
    Colon,
    Comma,
    Dot,
    Semicolon,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
    End,
    Error,
}

/// A token and where it stands. Small, because it is copied often; texts are below 1 GiB (`MESSAGE_BYTES_MAX`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Token {
    pub(super) kind: Kind,
    pub(super) word: Word,
    pub(super) start: u32,
    pub(super) end: u32,
}

impl Token {
    /// Before anything has been read.
    pub(super) const NONE: Self = Self { kind: Kind::End, word: Word::Other, start: 0, end: 0 };
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Bad,
    Space,
    Letter,
    Digit,
    Operator,
    Quote,
    DoubleQuote,
    Dollar,
    Dot,
    Colon,
    Comma,
    Semicolon,
    Open,
    Close,
    OpenBracket,
    CloseBracket,
}

static CLASS: [Class; 256] = classes();
/// The folded byte where the byte may continue an identifier, otherwise 0.
static FOLDED: [u8; 256] = folded();

const fn classes() -> [Class; 256] {
    let mut table = [Class::Bad; 256];
    let mut byte = 0usize;
    while byte < 256 {
        table[byte] = match byte as u8 {
            b' ' | b'\t' | b'\n' | b'\r' | 0x0b | 0x0c => Class::Space,
            b'a'..=b'z' | b'A'..=b'Z' | b'_' | 0x80..=0xff => Class::Letter,
            b'0'..=b'9' => Class::Digit,
            b'~' | b'!' | b'@' | b'#' | b'^' | b'&' | b'|' | b'`' | b'?' | b'+' | b'-' | b'*' | b'/'
            | b'%' | b'<' | b'>' | b'=' => Class::Operator,
            b'\'' => Class::Quote,
            b'"' => Class::DoubleQuote,
            b'$' => Class::Dollar,
            b'.' => Class::Dot,
            b':' => Class::Colon,
            b',' => Class::Comma,
            b';' => Class::Semicolon,
            b'(' => Class::Open,
            b')' => Class::Close,
            b'[' => Class::OpenBracket,
            b']' => Class::CloseBracket,
            _ => Class::Bad,
        };
        byte += 1;
    }
    table
}

const fn folded() -> [u8; 256] {
    let mut table = [0u8; 256];
    let mut byte = 0usize;
    while byte < 256 {
        let b = byte as u8;
        if b.is_ascii_alphanumeric() || b == b'_' || b == b'$' || b >= 0x80 {
            table[byte] = b.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
}

/// The length of a block comment at the start of `text` (which begins with `/*`), `None` if it does not end.
pub(super) fn block_comment(text: &[u8]) -> Option<usize> {
    let mut depth = 1usize;
    let mut at = 2;
    // Both what begins and what ends a comment have a slash; no byte counts for two of them.
    loop {
        let slash = at + memchr(b'/', text.get(at..)?)?;
        if slash > at && text[slash - 1] == b'*' {
            depth -= 1;
            at = slash + 1;
            if depth == 0 {
                return Some(at);
            }
        } else if text.get(slash + 1) == Some(&b'*') {
            depth += 1;
            at = slash + 2;
        } else {
            at = slash + 1;
        }
    }
}

/// The length of a comment that ends with its line, at the start of `text`.
pub(super) fn line_comment(text: &[u8]) -> usize {
    memchr2(b'\n', b'\r', text).unwrap_or(text.len())
}

/// Splits a text into tokens.
#[derive(Clone)]
pub(super) struct Lexer<'a> {
    sql: &'a [u8],
    at: usize,
    plain_backslash: bool,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(sql: &'a [u8], strings: StandardConformingStrings) -> Self {
        // No message is that long; a caller that has such a text all the same sees an unterminated one.
        let sql = sql.get(..u32::MAX as usize).unwrap_or(sql);
        Self { sql, at: 0, plain_backslash: strings == StandardConformingStrings::Off }
    }

    #[inline]
    pub(super) fn text(&self, token: Token) -> &'a [u8] {
        &self.sql[token.start as usize..token.end as usize]
    }

    #[inline]
    fn peek(&self, ahead: usize) -> u8 {
        self.sql.get(self.at + ahead).copied().unwrap_or(0)
    }

    #[inline]
    pub(super) fn next(&mut self) -> Token {
        loop {
            let start = self.at;
            let Some(&byte) = self.sql.get(start) else {
                return self.token(Kind::End, start);
            };
            let kind = match CLASS[usize::from(byte)] {
                Class::Space => {
                    self.at += 1;
                    continue;
                }
                Class::Letter => return self.word_or_prefix(start, byte),
                Class::Comma => self.single(Kind::Comma),
                Class::Open => self.single(Kind::Open),
                Class::Close => self.single(Kind::Close),
                Class::Semicolon => self.single(Kind::Semicolon),
                Class::OpenBracket => self.single(Kind::OpenBracket),
                Class::CloseBracket => self.single(Kind::CloseBracket),
                Class::Digit => self.number(),
                Class::Quote => self.string(self.plain_backslash),
                Class::DoubleQuote => self.quoted(Kind::Quoted),
                Class::Dollar => self.dollar(),
                Class::Dot if self.peek(1).is_ascii_digit() => self.number(),
                Class::Dot if self.peek(1) == b'.' => self.double(Kind::Colon),
                Class::Dot => self.single(Kind::Dot),
                Class::Colon if self.peek(1) == b':' => self.double(Kind::Cast),
                Class::Colon if self.peek(1) == b'=' => self.double(Kind::Colon),
                Class::Colon => self.single(Kind::Colon),
                Class::Operator => match self.operator(byte) {
                    Some(kind) => kind,
                    None => continue,
                },
                Class::Bad => Kind::Error,
            };
            return self.token(kind, start);
        }
    }

    #[inline]
    fn token(&self, kind: Kind, start: usize) -> Token {
        self.spanned(kind, Word::Other, start)
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "texts longer than u32 are cut off in `new`")]
    fn spanned(&self, kind: Kind, word: Word, start: usize) -> Token {
        Token { kind, word, start: start as u32, end: self.at as u32 }
    }

    #[inline]
    fn single(&mut self, kind: Kind) -> Kind {
        self.at += 1;
        kind
    }

    fn double(&mut self, kind: Kind) -> Kind {
        self.at += 2;
        kind
    }

    #[inline]
    fn word_or_prefix(&mut self, start: usize, byte: u8) -> Token {
        let next = self.peek(1);
        if next == b'\'' || (next == b'&' && matches!(self.peek(2), b'\'' | b'"')) {
            let kind = match (byte | 0x20, next) {
                (b'e', b'\'') => {
                    self.at += 1;
                    self.string(true)
                }
                (b'b' | b'x', b'\'') => {
                    self.at += 1;
                    self.string(false)
                }
                (b'n', b'\'') => {
                    self.at += 1;
                    self.string(self.plain_backslash)
                }
                (b'u', b'&') => {
                    self.at += 2;
                    if self.peek(0) == b'"' { self.quoted(Kind::Unicode) } else { self.string(false) }
                }
                _ => return self.name(start),
            };
            return self.token(kind, start);
        }
        self.name(start)
    }

    #[inline]
    fn name(&mut self, start: usize) -> Token {
        let rest = &self.sql[start..];
        let length = rest.iter().position(|&byte| FOLDED[usize::from(byte)] == 0).unwrap_or(rest.len());
        self.at = start + length;
        self.spanned(Kind::Word, word(&rest[..length]), start)
    }

    #[inline]
    fn digits(&mut self) {
        while self.peek(0).is_ascii_digit() || (self.peek(0) == b'_' && self.peek(1).is_ascii_digit()) {
            self.at += 1;
        }
    }

    /// `0x1F`, `0o17`, `0b1`: what servers before 16 read as a number and a name comes to the same.
    #[inline]
    fn radix(&mut self) -> bool {
        let is_digit: fn(&u8) -> bool = match self.peek(1) | 0x20 {
            b'x' => u8::is_ascii_hexdigit,
            b'o' => |byte| matches!(byte, b'0'..=b'7'),
            b'b' => |byte| matches!(byte, b'0' | b'1'),
            _ => return false,
        };
        let first = 2 + usize::from(self.peek(2) == b'_');
        if !is_digit(&self.peek(first)) {
            return false;
        }
        self.at += first;
        while is_digit(&self.peek(0)) || (self.peek(0) == b'_' && is_digit(&self.peek(1))) {
            self.at += 1;
        }
        true
    }

    #[inline]
    fn number(&mut self) -> Kind {
        if self.peek(0) == b'0' && self.peek(1).is_ascii_alphabetic() && self.radix() {
            return Kind::Number;
        }
        self.digits();
        if self.peek(0) == b'.' && self.peek(1) != b'.' {
            self.at += 1;
            self.digits();
        }
        if self.peek(0) | 0x20 == b'e' {
            let sign = usize::from(matches!(self.peek(1), b'+' | b'-'));
            if self.peek(1 + sign).is_ascii_digit() {
                self.at += 1 + sign;
                self.digits();
            }
        }
        Kind::Number
    }

    /// From the opening quote to the end of the constant, its continuations on later lines included.
    fn string(&mut self, backslash: bool) -> Kind {
        self.at += 1;
        loop {
            let rest = &self.sql[self.at..];
            let stop = if backslash { memchr2(b'\'', b'\\', rest) } else { memchr(b'\'', rest) };
            let Some(stop) = stop else {
                self.at = self.sql.len();
                return Kind::Error;
            };
            self.at += stop;
            if self.peek(0) == b'\\' {
                self.at = (self.at + 2).min(self.sql.len());
            } else if self.peek(1) == b'\'' {
                self.at += 2;
            } else {
                self.at += 1;
                match self.continuation() {
                    Some(next) => self.at = next + 1,
                    None => return Kind::Text,
                }
            }
        }
    }

    /// Where the quote stands that continues a constant: after white space with a newline in it.
    fn continuation(&self) -> Option<usize> {
        let mut newline = false;
        let mut at = self.at;
        loop {
            match self.sql.get(at)? {
                b'\n' | b'\r' => newline = true,
                b' ' | b'\t' | 0x0b | 0x0c => {}
                b'\'' if newline => return Some(at),
                b'-' if self.sql.get(at + 1) == Some(&b'-') => {
                    at += line_comment(&self.sql[at..]);
                    continue;
                }
                _ => return None,
            }
            at += 1;
        }
    }

    fn quoted(&mut self, kind: Kind) -> Kind {
        self.at += 1;
        let first = self.at;
        loop {
            let Some(stop) = memchr(b'"', &self.sql[self.at..]) else {
                self.at = self.sql.len();
                return Kind::Error;
            };
            self.at += stop + 1;
            if self.peek(0) != b'"' {
                return if self.at - 1 == first { Kind::Error } else { kind };
            }
            self.at += 1;
        }
    }

    fn dollar(&mut self) -> Kind {
        if self.peek(1).is_ascii_digit() {
            self.at += 1;
            while self.peek(0).is_ascii_digit() {
                self.at += 1;
            }
            return Kind::Parameter;
        }
        let begin = self.at;
        let mut end = begin + 1;
        while let Some(&byte) = self.sql.get(end) {
            if byte == b'$' || FOLDED[usize::from(byte)] == 0 {
                break;
            }
            end += 1;
        }
        if self.sql.get(end) != Some(&b'$') {
            return Kind::Error;
        }
        let tag = &self.sql[begin..=end];
        let mut at = end + 1;
        while let Some(stop) = memchr(b'$', &self.sql[at..]) {
            at += stop;
            if self.sql[at..].starts_with(tag) {
                self.at = at + tag.len();
                return Kind::Text;
            }
            at += 1;
        }
        self.at = self.sql.len();
        Kind::Error
    }

    /// An operator; `None` if it was a comment and has been skipped.
    #[inline]
    fn operator(&mut self, byte: u8) -> Option<Kind> {
        if byte == b'-' && self.peek(1) == b'-' {
            self.at += line_comment(&self.sql[self.at..]);
            return None;
        }
        if byte == b'/' && self.peek(1) == b'*' {
            return match block_comment(&self.sql[self.at..]) {
                Some(length) => {
                    self.at += length;
                    None
                }
                None => {
                    self.at = self.sql.len();
                    Some(Kind::Error)
                }
            };
        }
        let start = self.at;
        self.at += 1;
        while CLASS[usize::from(self.peek(0))] == Class::Operator {
            let comment = matches!((self.peek(0), self.peek(1)), (b'-', b'-') | (b'/', b'*'));
            if comment {
                break;
            }
            self.at += 1;
        }
        if self.at - start > 1 && matches!(self.sql[self.at - 1], b'+' | b'-') {
            self.give_back_signs(start);
        }
        Some(Kind::Operator)
    }

    /// An operator of several characters ends in a sign only if it has a character that SQL's own operators don't have: `a <-1` is
    /// `a < -1`.
    fn give_back_signs(&mut self, start: usize) {
        let own = |byte: &u8| matches!(byte, b'+' | b'-' | b'*' | b'/' | b'<' | b'>' | b'=');
        if self.sql[start..self.at].iter().all(own) {
            while self.at - start > 1 && matches!(self.sql[self.at - 1], b'+' | b'-') {
                self.at -= 1;
            }
        }
    }
}
