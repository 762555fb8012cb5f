//! The leading comment `/* pgsteer: target=standby, max_lag=500ms */`.
//!
//! Invariant: only comments before the first token count; what stands inside a statement is never a hint.
//! Must not know: what becomes of a hint.

use std::time::Duration;

use super::lex::{block_comment, line_comment};
use super::{Hint, Target};

const PREFIX: &str = "pgsteer:";

/// The hint in the comments before the first token.
#[inline]
pub(super) fn leading(sql: &[u8]) -> Hint {
    let mut rest = sql.trim_ascii_start();
    while matches!(rest.first(), Some(b'/' | b'-')) {
        if rest.starts_with(b"/*") {
            let Some(length) = block_comment(rest) else {
                break;
            };
            if let Some(hint) = comment(&rest[2..length - 2]) {
                return hint;
            }
            rest = rest[length..].trim_ascii_start();
        } else if rest.starts_with(b"--") {
            rest = rest[line_comment(rest)..].trim_ascii_start();
        } else {
            break;
        }
    }
    Hint::default()
}

fn comment(text: &[u8]) -> Option<Hint> {
    let list = std::str::from_utf8(text).ok()?.trim().strip_prefix(PREFIX)?;
    let mut hint = Hint::default();
    for item in list.split(',') {
        let Some((key, value)) = item.split_once('=') else {
            continue;
        };
        match (key.trim(), value.trim()) {
            ("target", "primary") => hint.target = Some(Target::Primary),
            ("target", "standby") => hint.target = Some(Target::Standby),
            ("max_lag", value) => hint.max_lag = duration(value).or(hint.max_lag),
            _ => {}
        }
    }
    Some(hint)
}

/// A whole number with its unit; without one it is milliseconds.
fn duration(text: &str) -> Option<Duration> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let number: u64 = text[..digits].parse().ok()?;
    match text[digits..].trim_start() {
        "us" => Some(Duration::from_micros(number)),
        "" | "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" | "min" => number.checked_mul(60).map(Duration::from_secs),
        _ => None,
    }
}
