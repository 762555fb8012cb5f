//! The leading comment `/* pgsteer: target=standby, max_lag=500ms */`.
//!
//! Invariant: upper and lower case are the same; only comments before the first token count; what stands inside a statement is never a hint. What is not understood is
//! said to be amiss, not passed over.
//! Must not know: what becomes of a hint.

use super::lex::{block_comment, line_comment};
use super::{AskedTerms, Hint};

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
    let (prefix, list) = text.trim_ascii().split_at_checked(PREFIX.len())?;
    if !prefix.eq_ignore_ascii_case(PREFIX.as_bytes()) {
        return None;
    }
    let mut hint = Hint::default();
    let Ok(list) = std::str::from_utf8(list) else { return Some(Hint { amiss: true, ..hint }) };
    for item in list.split(',').filter(|item| !item.trim().is_empty()) {
        let taken = item.split_once('=').is_some_and(|(name, value)| {
            let name = AskedTerms::name(name.trim()).unwrap_or_default();
            !value.trim().is_empty() && hint.terms.set(name, value).is_ok()
        });
        hint.amiss |= !taken;
    }
    Some(hint)
}
