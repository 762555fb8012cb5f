//! A source file as tokens: what the checks look at, without comments, literals and test-only items.
//!
//! Invariant: every token keeps its line; text inside comments and literals never becomes a token.
//! Must not know: any rule.

/// One source file.
#[derive(Debug)]
pub struct Source {
    /// Relative to `src`, with `/`.
    pub path: String,
    /// The first line.
    pub head: String,
    /// The code, items under `#[cfg(test)]` left out; empty for files that are wholly tests.
    pub tokens: Vec<Token>,
}

/// An identifier or one character of punctuation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Its text.
    pub text: String,
    /// Its line, from 1.
    pub line: usize,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let is_test = path.split('/').any(|part| matches!(part.trim_end_matches(".rs"), "tests" | "testing"));
        let tokens = if is_test { Vec::new() } else { without_tests(&tokens(text)) };
        Self { path: path.to_owned(), head: text.lines().next().unwrap_or_default().to_owned(), tokens }
    }

    /// The module a file is: `client/handshake.rs` is `client::handshake`, `lib.rs` is the root.
    pub fn module(&self) -> Vec<String> {
        let path = self.path.trim_end_matches(".rs");
        let mut parts: Vec<String> = path.split('/').map(str::to_owned).collect();
        if parts.last().is_some_and(|last| matches!(last.as_str(), "mod" | "lib")) {
            parts.pop();
        }
        parts
    }

    /// The text of the token at an index, "" past the end.
    pub fn at(&self, index: usize) -> &str {
        self.tokens.get(index).map_or("", |t| t.text.as_str())
    }

    /// Whether the tokens from an index on are these.
    pub fn matches(&self, index: usize, texts: &[&str]) -> bool {
        texts.iter().enumerate().all(|(offset, text)| self.at(index + offset) == *text)
    }

    /// The index of the bracket that closes the one at `open`.
    pub fn closing(&self, open: usize) -> usize {
        closing(&self.tokens, open)
    }
}

fn closing(tokens: &[Token], open: usize) -> usize {
    let mut depth = 0usize;
    for (index, token) in tokens.iter().enumerate().skip(open) {
        match token.text.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth = depth.saturating_sub(1),
            _ => continue,
        }
        if depth == 0 {
            return index;
        }
    }
    tokens.len()
}

/// Leaves out each item that has an attribute `#[cfg(...)]` which names `test`.
fn without_tests(all: &[Token]) -> Vec<Token> {
    let mut kept = Vec::new();
    let mut index = 0;
    while index < all.len() {
        let text = |offset: usize| all.get(index + offset).map_or("", |t| t.text.as_str());
        if text(0) == "#" && text(1) == "[" && text(2) == "cfg" {
            let end = closing(all, index + 1);
            let condition = &all[index..end.min(all.len())];
            let names = |word: &str| condition.iter().any(|t| t.text == word);
            if names("test") && !names("not") {
                index = end_of_item(all, end + 1);
                continue;
            }
        }
        kept.push(all[index].clone());
        index += 1;
    }
    kept
}

/// The index after the item that begins here: past its `;`, or past its body.
fn end_of_item(tokens: &[Token], mut index: usize) -> usize {
    while let Some(token) = tokens.get(index) {
        match token.text.as_str() {
            ";" => return index + 1,
            "{" => return closing(tokens, index) + 1,
            "(" | "[" => index = closing(tokens, index) + 1,
            _ => index += 1,
        }
    }
    index
}

fn tokens(text: &str) -> Vec<Token> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    let mut line = 1;
    while at < bytes.len() {
        let length = match bytes[at] {
            b'/' if text[at..].starts_with("//") => line_comment(bytes, at),
            b'/' if text[at..].starts_with("/*") => block_comment(bytes, at),
            b'"' => string(bytes, at),
            b'\'' => quote(text, at),
            byte if is_word(byte) => {
                let length = bytes[at..].iter().take_while(|b| is_word(**b)).count();
                let word = &text[at..at + length];
                match literal_prefix(word, bytes, at + length) {
                    Some(rest) => length + rest,
                    None => {
                        found.push(Token { text: word.to_owned(), line });
                        length
                    }
                }
            }
            byte if byte.is_ascii_punctuation() => {
                found.push(Token { text: char::from(byte).to_string(), line });
                1
            }
            _ => 1,
        };
        let end = (at + length).min(bytes.len());
        line += bytes[at..end].iter().filter(|b| **b == b'\n').count();
        at = end;
    }
    found
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || !byte.is_ascii()
}

fn line_comment(bytes: &[u8], at: usize) -> usize {
    bytes[at..].iter().take_while(|b| **b != b'\n').count()
}

fn block_comment(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0usize;
    let mut end = at;
    while end < bytes.len() {
        if bytes[end..].starts_with(b"/*") {
            depth += 1;
            end += 2;
        } else if bytes[end..].starts_with(b"*/") {
            depth -= 1;
            end += 2;
        } else {
            end += 1;
        }
        if depth == 0 {
            break;
        }
    }
    end - at
}

fn string(bytes: &[u8], at: usize) -> usize {
    let mut end = at + 1;
    while end < bytes.len() && bytes[end] != b'"' {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    end + 1 - at
}

/// A character literal is skipped whole, a lifetime together with its name.
fn quote(text: &str, at: usize) -> usize {
    let mut chars = text[at + 1..].char_indices();
    let (Some((_, first)), second) = (chars.next(), chars.next()) else { return 1 };
    if first == '\\' {
        let rest = &text.as_bytes()[at + 3..];
        return 3 + rest.iter().take_while(|b| **b != b'\'').count() + 1;
    }
    match second {
        Some((offset, '\'')) => 1 + offset + 1,
        _ => 1 + text.as_bytes()[at + 1..].iter().take_while(|b| is_word(**b)).count(),
    }
}

/// The length of the literal that a prefix (`r`, `b`, `br`, `c`, `cr`) introduces; none if it is an ordinary word.
fn literal_prefix(word: &str, bytes: &[u8], after: usize) -> Option<usize> {
    let next = *bytes.get(after)?;
    match word {
        "b" | "c" if next == b'"' => Some(string(bytes, after)),
        "b" if next == b'\'' => {
            let body = if bytes.get(after + 1) == Some(&b'\\') { 3 } else { 2 };
            let rest = bytes.get(after + body..)?;
            Some(body + rest.iter().take_while(|b| **b != b'\'').count() + 1)
        }
        "r" | "br" | "cr" => {
            let hashes = bytes[after..].iter().take_while(|b| **b == b'#').count();
            if bytes.get(after + hashes) != Some(&b'"') {
                return None;
            }
            let end = [b"\"".as_slice(), &vec![b'#'; hashes]].concat();
            let body = &bytes[after + hashes + 1..];
            let length = body.windows(end.len()).position(|w| w == end).unwrap_or(body.len());
            Some(hashes + 1 + length + end.len())
        }
        _ => None,
    }
}
