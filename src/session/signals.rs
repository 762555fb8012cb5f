//! Process ids in `pg_cancel_backend(...)`, `pg_terminate_backend(...)`, `pg_blocking_pids(...)`, and behind `pid =` and `pid IN` where
//! views of server processes are read: where a unit names the process id that a client was given at its login, the server process
//! is put that this client's session has. Arrays that stand there, or in `unnest(...)`, are looked through.
//!
//! Invariant: only a number that stands alone as the first argument of one of the functions or behind `pid =`, or is bound to the
//! parameter that does, or is an element of a list there, is replaced, by one that is as long. Pure. Must not know: whose process id
//! it is.

use super::prepared::Names;
use super::unit;
use crate::wire::extended;
use crate::wire::frame::HEADER_BYTES;

/// Of one unit so many are looked at.
const FOUND_MAX: usize = 16;
/// What a process id stands behind.
const BEFORE: [(&[u8], Behind); 5] = [
    (b"pg_cancel_backend", Behind::Call),
    (b"pg_terminate_backend", Behind::Call),
    (b"pg_blocking_pids", Behind::Call),
    (b"unnest", Behind::Call),
    (b"pid", Behind::Comparison),
];
/// OIDs of int4 and int8.
const INTEGERS: [u32; 2] = [23, 20];

/// How a process id stands behind a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Behind {
    /// In parentheses.
    Call,
    /// `=`, `= ANY (`, `IN (`.
    Comparison,
}

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

/// What stands where a process id is looked for.
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
                found.extend(
                    parameters
                        .into_iter()
                        .flat_map(|index| bound(bind.rest, index, values_start).unwrap_or_default()),
                );
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

/// What stands at the places of a text that begins at `offset`.
fn arguments(text: &[u8], offset: usize) -> impl Iterator<Item = Argument> {
    let mut at = 0;
    let places = std::iter::from_fn(move || {
        loop {
            let rest = text.get(at..)?;
            let (found, name, behind) = BEFORE
                .iter()
                .filter_map(|&(name, behind)| {
                    let found =
                        rest.windows(name.len()).position(|window| window.eq_ignore_ascii_case(name))?;
                    Some((found, name, behind))
                })
                .min_by_key(|&(found, name, _)| (found, std::cmp::Reverse(name.len())))?;
            let is_whole =
                !text.get(..at + found).is_some_and(|before| before.last().is_some_and(is_of_word));
            at += found + name.len();
            if is_whole {
                return Some(elements(text, at, behind, offset));
            }
        }
    });
    places.flatten().take(FOUND_MAX)
}

fn is_of_word(byte: &u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'$' | 0x80..)
}

/// Where a text goes on behind this word or sign, if it stands at `at` but for spaces.
fn behind_sign(text: &[u8], at: usize, sign: &[u8]) -> Option<usize> {
    let rest = text.get(at..)?;
    let start = at + rest.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let end = start + sign.len();
    text.get(start..end)?.eq_ignore_ascii_case(sign).then_some(end)
}

/// The numbers and parameters behind a name that ends at `at`: one, or those of the list that stands there.
fn elements(text: &[u8], at: usize, behind: Behind, offset: usize) -> Vec<Argument> {
    let signs =
        |at: usize, signs: &[&[u8]]| signs.iter().try_fold(at, |at, sign| behind_sign(text, at, sign));
    let (opened, mut is_list) = match behind {
        Behind::Call => (signs(at, &[b"("]), false),
        Behind::Comparison => match signs(at, &[b"="]) {
            Some(at) => (signs(at, &[b"any", b"("]).or(Some(at)), false),
            None => (signs(at, &[b"in", b"("]), true),
        },
    };
    let Some(mut at) = opened else { return Vec::new() };
    if let Some(inside) = signs(at, &[b"array", b"["]).or_else(|| signs(at, &[b"'{"])) {
        (at, is_list) = (inside, true);
    }
    let mut found = Vec::new();
    while found.len() < FOUND_MAX
        && let Some((element, end)) = element(text, at, offset)
    {
        found.push(element);
        match behind_sign(text, end, b",") {
            Some(next) if is_list => at = next,
            _ => break,
        }
    }
    found
}

/// The number or parameter at `at`, and where it ends.
fn element(text: &[u8], at: usize, offset: usize) -> Option<(Argument, usize)> {
    let start = at + text.get(at..)?.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
    let is_parameter = text.get(start) == Some(&b'$');
    let start = start + usize::from(is_parameter);
    let digits = text.get(start..)?;
    let length = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value: i32 = std::str::from_utf8(digits.get(..length)?).ok()?.parse().ok()?;
    let end = start + length;
    if is_parameter {
        let index = usize::try_from(value).ok()?.checked_sub(1)?;
        return Some((Argument::Parameter(index), end));
    }
    // Part of another word, or of a number that is no integer.
    if digits
        .get(length)
        .is_some_and(|&byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'$'))
    {
        return None;
    }
    let found = Found { process_id: value, form: Form::Digits, start: offset + start, length };
    Some((Argument::Number(found), end))
}

/// The numbers in the value bound to a parameter, in the part of a Bind that begins with the formats and stands at `offset`.
fn bound(rest: &[u8], index: usize, offset: usize) -> Option<Vec<Found>> {
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
            return match format {
                0 => Some(in_text(bytes, offset + at)),
                1 if matches!(length, 4 | 8) => in_binary(bytes, offset + at).map(|found| vec![found]),
                1 => in_binary_array(bytes, offset + at),
                _ => None,
            };
        }
        at += length;
    }
    None
}

/// A number, or an array of numbers, as text.
fn in_text(bytes: &[u8], offset: usize) -> Vec<Found> {
    let inside = bytes.strip_prefix(b"{").and_then(|rest| rest.strip_suffix(b"}"));
    let mut start = offset + usize::from(inside.is_some());
    let mut found = Vec::new();
    for element in inside.unwrap_or(bytes).split(|&byte| byte == b',').take(FOUND_MAX) {
        let length = element.len();
        let digits = Some(element).filter(|digits| digits.iter().all(u8::is_ascii_digit));
        let number = digits.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        found.extend(number.map(|process_id| Found { process_id, form: Form::Digits, start, length }));
        start += length + 1;
    }
    found
}

/// An int4 or int8.
fn in_binary(bytes: &[u8], start: usize) -> Option<Found> {
    let process_id = match bytes.len() {
        4 => i32::from_be_bytes(*bytes.first_chunk()?),
        8 => i32::try_from(i64::from_be_bytes(*bytes.first_chunk()?)).ok()?,
        _ => return None,
    };
    Some(Found { process_id, form: Form::Binary, start, length: bytes.len() })
}

/// An array of one dimension of int4 or int8: dimensions, flags, type, size, lower bound, and each element behind its length.
fn in_binary_array(bytes: &[u8], offset: usize) -> Option<Vec<Found>> {
    let word_at = |at: usize| Some(u32::from_be_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    if word_at(0)? != 1 || !INTEGERS.contains(&word_at(8)?) {
        return None;
    }
    let mut at = 20;
    let mut found = Vec::new();
    for _ in 0..word_at(12)?.min(FOUND_MAX as u32) {
        // NULL has a length of -1.
        let length = word_at(at).and_then(|length| i32::try_from(length).ok()).unwrap_or(0);
        let length = usize::try_from(length).unwrap_or(0);
        at += 4;
        found.extend(bytes.get(at..at + length).and_then(|element| in_binary(element, offset + at)));
        at += length;
    }
    Some(found)
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
    fn lists_are_looked_through() {
        for (text, expected) in [
            ("SELECT pg_cancel_backend(pid) FROM a WHERE pid = ANY ('{16777216, 16777217}')", 2),
            ("SELECT pg_cancel_backend(pid) FROM a WHERE pid = any(ARRAY[16777216,16777217])", 2),
            ("SELECT pg_cancel_backend(pid) FROM a WHERE pid in (16777216 ,16777217)", 2),
            ("SELECT pg_cancel_backend(n) FROM unnest(array [16777216, 16777217]) n", 2),
            // The second argument is a time.
            ("SELECT pg_terminate_backend(16777216, 16777217)", 1),
            ("SELECT 1 FROM a WHERE pid = 16777216, 16777217", 1),
            ("SELECT 1 FROM a WHERE pid = anything(16777216)", 0),
            ("SELECT 1 FROM a WHERE pid IN (x, 16777216)", 0),
            ("SELECT 1 FROM a WHERE datid = ANY('{16777216}')", 0),
            ("SELECT 1 FROM a WHERE pid = ANY('{16777216", 1),
            ("SELECT 1 FROM a WHERE pid IN (", 0),
        ] {
            let mut unit = message(b'Q', format!("{text}\0").as_bytes());
            assert_eq!(replaced(&mut unit).len(), expected, "{text}");
        }
    }

    #[test]
    fn bound_arrays_are_looked_through() {
        let words = |words: &[i32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<u8>>();
        let array = |of: i32, one: &[i32], two: &[i32]| words(&[&[1, 1, of, 3, 1], one, &[-1], two].concat());
        for (format, value, expected) in [
            (0, b"{16777216,NULL,16777217}".to_vec(), b"{00000077,NULL,00000077}".to_vec()),
            (1, array(23, &[4, 16_777_216], &[4, 16_777_217]), array(23, &[4, 77], &[4, 77])),
            (1, array(20, &[8, 0, 16_777_216], &[8, 0, 16_777_217]), array(20, &[8, 0, 77], &[8, 0, 77])),
            (
                1,
                array(700, &[4, 16_777_216], &[4, 16_777_217]),
                array(700, &[4, 16_777_216], &[4, 16_777_217]),
            ),
        ] {
            let parse = message(b'P', b"s\0SELECT pg_terminate_backend(n) FROM unnest($1::int[]) n\0\0\0");
            let mut unit = [parse.clone(), bind("s", format, &[&value])].concat();
            replaced(&mut unit);
            assert_eq!(unit, [parse, bind("s", format, &[&expected])].concat());
            for end in 0..value.len() {
                let unit = bind("", format, &[&value[..end]]);
                let _ = bound(&unit[7..], 0, 0);
            }
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
