//! Process ids in `pg_cancel_backend(...)`, `pg_terminate_backend(...)`, `pg_blocking_pids(...)`, and behind `pid =` where views of
//! server processes are read: where a unit names the process id that a client was given at its login, the server process is put
//! that this client's session has.
//!
//! Invariant: only a number that stands alone as the first argument of one of the functions or behind `pid =`, or is bound to the
//! parameter that does, is replaced, by one that is as long. Pure. Must not know: whose process id it is.

use super::prepared::Names;
use super::unit;
use crate::wire::extended;
use crate::wire::frame::HEADER_BYTES;

/// Of one unit so many are looked at.
const FOUND_MAX: usize = 16;
/// What a process id stands behind, and what is between.
const BEFORE: [(&[u8], u8); 4] = [
    (b"pg_cancel_backend", b'('),
    (b"pg_terminate_backend", b'('),
    (b"pg_blocking_pids", b'('),
    (b"pid", b'='),
];

/// How a number is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Digits,
    Binary,
}

/// A process id in a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The process id.
    pub process_id: i32,
    form: Form,
    start: usize,
    length: usize,
}

impl Found {
    /// Puts another process id in its place; `false` when there is no room for it.
    pub fn replace(self, unit: &mut [u8], process_id: i32) -> bool {
        let Some(place) = unit.get_mut(self.start..self.start + self.length) else { return false };
        let new = match self.form {
            Form::Digits => format!("{process_id:0width$}", width = self.length).into_bytes(),
            Form::Binary if self.length == 8 => i64::from(process_id).to_be_bytes().to_vec(),
            Form::Binary => process_id.to_be_bytes().to_vec(),
        };
        let fits = new.len() == place.len();
        if fits {
            place.copy_from_slice(&new);
        }
        fits
    }
}

/// The first argument of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Argument {
    Number(Found),
    Parameter(usize),
}

/// The process ids that a unit names.
pub fn find(unit: &[u8], names: &Names) -> Vec<Found> {
    let mut found = Vec::new();
    let mut prepared: Vec<(&[u8], Vec<usize>)> = Vec::new();
    let mut start = 0;
    for (kind, body) in unit::frames(unit) {
        let body_start = start + HEADER_BYTES;
        start = body_start + body.len();
        match kind {
            b'Q' => found.extend(arguments(body, body_start).filter_map(number)),
            b'P' => {
                let Some(parse) = extended::parse(body) else { continue };
                let text_start = body_start + parse.name.len() + 1;
                found.extend(arguments(parse.sql, text_start).filter_map(number));
                prepared.push((parse.name, arguments(parse.sql, 0).filter_map(parameter).collect()));
            }
            b'B' => {
                let Some(bind) = extended::bind(body) else { continue };
                let here = prepared.iter().rev().find(|(name, _)| *name == bind.statement);
                let parameters = match here {
                    Some((_, parameters)) => parameters.clone(),
                    None => {
                        let sql = names.sql(bind.statement).unwrap_or_default();
                        arguments(&sql, 0).filter_map(parameter).collect()
                    }
                };
                let values_start = start - bind.rest.len();
                found
                    .extend(parameters.into_iter().filter_map(|index| bound(bind.rest, index, values_start)));
            }
            _ => {}
        }
        found.truncate(FOUND_MAX);
    }
    found
}

fn number(argument: Argument) -> Option<Found> {
    if let Argument::Number(found) = argument { Some(found) } else { None }
}

fn parameter(argument: Argument) -> Option<usize> {
    if let Argument::Parameter(index) = argument { Some(index) } else { None }
}

/// First arguments in a text that stands at `offset`.
fn arguments(text: &[u8], offset: usize) -> impl Iterator<Item = Argument> {
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let rest = text.get(at..)?;
            let (found, name, opener) = BEFORE
                .iter()
                .filter_map(|&(name, opener)| {
                    let found =
                        rest.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name))?;
                    Some((found, name, opener))
                })
                .min_by_key(|&(found, name, _)| (found, std::cmp::Reverse(name.len())))?;
            let is_whole =
                !text.get(..at + found).is_some_and(|before| before.last().is_some_and(is_of_word));
            at += found + name.len();
            if is_whole && let Some(argument) = argument(text, at, opener, offset) {
                return Some(argument);
            }
        }
    })
}

fn is_of_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

/// The number behind a name that ends at `at`, and this.
fn argument(text: &[u8], at: usize, opener: u8, offset: usize) -> Option<Argument> {
    let after_spaces = |at: usize| {
        at + text.get(at..).unwrap_or_default().iter().take_while(|byte| byte.is_ascii_whitespace()).count()
    };
    let opened = after_spaces(at);
    if text.get(opened) != Some(&opener) {
        return None;
    }
    let start = after_spaces(opened + 1);
    let is_parameter = text.get(start) == Some(&b'$');
    let start = start + usize::from(is_parameter);
    let digits = text.get(start..)?;
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value: i32 = std::str::from_utf8(digits.get(..length)?).ok()?.parse().ok()?;
    if is_parameter {
        return usize::try_from(value).ok()?.checked_sub(1).map(Argument::Parameter);
    }
    // Part of another word, or of a number that is no integer.
    if digits
        .get(length)
        .is_some_and(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'$'))
    {
        return None;
    }
    Some(Argument::Number(Found { process_id: value, form: Form::Digits, start: offset + start, length }))
}

/// The value bound to a parameter, in the part of a Bind that begins with the formats and stands at `offset`.
fn bound(rest: &[u8], index: usize, offset: usize) -> Option<Found> {
    let count_at = |at: usize| Some(usize::from(u16::from_be_bytes(*rest.get(at..)?.first_chunk::<2>()?)));
    let formats = count_at(0)?;
    let format = match formats {
        0 => 0,
        1 => count_at(2)?,
        _ => count_at(2 + 2 * index)?,
    };
    let mut at = 2 + 2 * formats;
    let values = count_at(at)?;
    at += 2;
    for value in 0..values {
        let length = i32::from_be_bytes(*rest.get(at..)?.first_chunk::<4>()?);
        at += 4;
        let length = usize::try_from(length).unwrap_or(0);
        if value == index {
            let bytes = rest.get(at..at + length)?;
            let (form, process_id) = match (format, length) {
                (0, _) if bytes.iter().all(u8::is_ascii_digit) => {
                    (Form::Digits, std::str::from_utf8(bytes).ok()?.parse().ok()?)
                }
                (1, 4) => (Form::Binary, i32::from_be_bytes(*bytes.first_chunk()?)),
                (1, 8) => (Form::Binary, i32::try_from(i64::from_be_bytes(*bytes.first_chunk()?)).ok()?),
                _ => return None,
            };
            return Some(Found { process_id, form, start: offset + at, length });
        }
        at += length;
    }
    None
}

/// Whether a process id can be one that a client was given at its login: above those of any operating system.
pub fn is_of_a_client(process_id: i32) -> bool {
    process_id >= 1 << 23
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame;

    fn message(kind: u8, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::put(&mut out, kind, &[body]);
        out
    }

    fn bind(statement: &str, format: u16, values: &[&[u8]]) -> Vec<u8> {
        let mut body = [b"\0", statement.as_bytes(), b"\0\0\x01", &format.to_be_bytes()].concat();
        body.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
        for value in values {
            body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend_from_slice(value);
        }
        body.extend_from_slice(b"\0\0");
        message(b'B', &body)
    }

    /// Each process id found becomes 77 in place; gives those that were found.
    fn replaced(unit: &mut [u8]) -> Vec<i32> {
        let found = find(unit, &Names::default());
        assert!(found.iter().all(|found| found.replace(unit, 77)));
        found.iter().map(|found| found.process_id).collect()
    }

    #[test]
    fn literals_are_found_and_replaced_in_place() {
        let mut unit =
            message(b'Q', b"SELECT PG_Cancel_Backend ( 16777216 ), pg_terminate_backend(16777217, 5)\0");
        assert_eq!(replaced(&mut unit), [16_777_216, 16_777_217]);
        assert_eq!(&unit[5..], b"SELECT PG_Cancel_Backend ( 00000077 ), pg_terminate_backend(00000077, 5)\0");
        for nothing in [
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity",
            "SELECT pg_terminate_backend(1.5)",
            "SELECT pg_terminate_backend(0x10)",
            "SELECT pg_terminate_backend",
            "SELECT pg_terminate_backend(",
            "SELECT pg_terminate_backend(99999999999)",
        ] {
            let mut unit = message(b'Q', format!("{nothing}\0").as_bytes());
            assert_eq!(replaced(&mut unit), [0; 0], "{nothing}");
        }
    }

    #[test]
    fn numbers_behind_pid_are_found_and_replaced_in_place() {
        let mut unit = message(
            b'Q',
            b"SELECT pg_blocking_pids(16777219) FROM pg_locks l WHERE l.pid=16777216 OR PID = 16777217\0",
        );
        assert_eq!(replaced(&mut unit), [16_777_219, 16_777_216, 16_777_217]);
        assert_eq!(
            &unit[5..],
            b"SELECT pg_blocking_pids(00000077) FROM pg_locks l WHERE l.pid=00000077 OR PID = 00000077\0"
        );
        for nothing in [
            "SELECT leader_pid = 16777216",
            "SELECT pid <> 16777216",
            "SELECT pid == 16777216",
            "pids = 16777216",
        ] {
            let mut unit = message(b'Q', format!("{nothing}\0").as_bytes());
            assert_eq!(replaced(&mut unit), [0; 0], "{nothing}");
        }
    }

    #[test]
    fn bound_values_are_found_and_replaced_in_place() {
        let parse = message(b'P', b"s\0SELECT $1, pg_terminate_backend($2)\0\0\0");
        for (format, value, expected) in [
            (0, b"16777216".to_vec(), b"00000077".to_vec()),
            (1, 16_777_216_i32.to_be_bytes().to_vec(), 77_i32.to_be_bytes().to_vec()),
            (1, 16_777_216_i64.to_be_bytes().to_vec(), 77_i64.to_be_bytes().to_vec()),
        ] {
            let mut unit = [parse.clone(), bind("s", format, &[b"5", &value])].concat();
            assert_eq!(replaced(&mut unit), [16_777_216]);
            assert_eq!(unit, [parse.clone(), bind("s", format, &[b"5", &expected])].concat());
        }
        for cut in 0..30 {
            let whole = bind("s", 0, &[b"5", b"16777216"]);
            let body = &whole[5..whole.len().saturating_sub(cut).max(5)];
            let mut unit = [parse.clone(), message(b'B', body)].concat();
            let found = find(&unit, &Names::default());
            assert!(found.iter().all(|found| found.replace(&mut unit, 77)));
        }
    }
}
