//! The extended protocol's client messages, as views into the bytes they came in.
//!
//! Invariant: borrows, never copies; `None` for a body that does not have the message's form (it is then left to the
//! server to complain). Must not know: which statements exist.

/// Parse: name, text, parameter types.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parse<'a> {
    /// Prepared-statement name, empty for the unnamed one.
    pub name: &'a [u8],
    /// SQL text, without its terminator.
    pub sql: &'a [u8],
    /// Count and OIDs as sent.
    pub types: &'a [u8],
}

/// Splits a NUL-terminated string off.
fn cstring<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = rest.iter().position(|&byte| byte == 0)?;
    let (text, tail) = rest.split_at_checked(end)?;
    *rest = tail.get(1..)?;
    Some(text)
}

/// Reads the body of a Parse message.
pub fn parse(body: &[u8]) -> Option<Parse<'_>> {
    let mut rest = body;
    let name = cstring(&mut rest)?;
    let sql = cstring(&mut rest)?;
    let count = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
    (rest.len() == 2 + 4 * count).then_some(Parse { name, sql, types: rest })
}

/// Bind: portal, statement, and all that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bind<'a> {
    /// Portal name.
    pub portal: &'a [u8],
    /// Prepared-statement name.
    pub statement: &'a [u8],
    /// Formats and values as sent.
    pub rest: &'a [u8],
}

/// Reads the beginning of a Bind message's body.
pub fn bind(body: &[u8]) -> Option<Bind<'_>> {
    let mut rest = body;
    let portal = cstring(&mut rest)?;
    let statement = cstring(&mut rest)?;
    Some(Bind { portal, statement, rest })
}

impl Bind<'_> {
    /// The values, as far as it is well-formed; NULL is left out.
    pub fn values(&self) -> impl Iterator<Item = &[u8]> {
        fn count(rest: &mut &[u8]) -> Option<usize> {
            let (count, tail) = rest.split_first_chunk::<2>()?;
            *rest = tail;
            Some(usize::from(u16::from_be_bytes(*count)))
        }
        let mut rest = self.rest;
        let formats = count(&mut rest).unwrap_or_default();
        rest = rest.get(2 * formats..).unwrap_or_default();
        let values = count(&mut rest).unwrap_or_default();
        (0..values)
            .map_while(move |_| {
                let (length, tail) = rest.split_first_chunk::<4>()?;
                let length = usize::try_from(i32::from_be_bytes(*length)).ok();
                let (value, tail) = tail.split_at_checked(length.unwrap_or(0))?;
                rest = tail;
                Some(length.map(|_| value))
            })
            .flatten()
    }

    /// Whether it is well-formed and binds no values.
    pub fn is_without_values(&self) -> bool {
        fn after_formats(rest: &[u8]) -> Option<&[u8]> {
            let count = usize::from(u16::from_be_bytes(*rest.first_chunk::<2>()?));
            rest.get(2 + 2 * count..)
        }
        // One format is for all values, be there none; more must be as many as there are values.
        if !matches!(self.rest, [0, 0 | 1, ..]) {
            return false;
        }
        let Some(rest) = after_formats(self.rest) else { return false };
        let Some(results) = rest.strip_prefix(&[0, 0]) else { return false };
        after_formats(results).is_some_and(<[u8]>::is_empty)
    }
}

/// What Describe and Close speak of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named<'a> {
    /// A prepared statement.
    Statement(&'a [u8]),
    /// A portal.
    Portal(&'a [u8]),
}

/// Reads the body of a Describe or Close message.
pub fn named(body: &[u8]) -> Option<Named<'_>> {
    let (&kind, mut rest) = body.split_first()?;
    let name = cstring(&mut rest)?;
    match kind {
        b'S' if rest.is_empty() => Some(Named::Statement(name)),
        b'P' if rest.is_empty() => Some(Named::Portal(name)),
        _ => None,
    }
}

/// Reads the SQL text of a Query message's body: everything before the terminator.
pub fn query(body: &[u8]) -> Option<&[u8]> {
    let (&last, text) = body.split_last()?;
    (last == 0).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_each_message() {
        assert_eq!(
            parse(b"s1\0select $1\0\0\x01\0\0\0\x17"),
            Some(Parse { name: b"s1", sql: b"select $1", types: b"\0\x01\0\0\0\x17" })
        );
        assert_eq!(bind(b"\0s1\0\0\0"), Some(Bind { portal: b"", statement: b"s1", rest: b"\0\0" }));
        assert_eq!(named(b"Ss1\0"), Some(Named::Statement(b"s1")));
        assert_eq!(named(b"P\0"), Some(Named::Portal(b"")));
        assert_eq!(query(b"select 1\0"), Some(&b"select 1"[..]));
    }

    #[test]
    fn values_are_found_behind_their_formats() {
        let body = b"\0\0\0\x01\0\x01\0\x03\0\0\0\x02ab\xff\xff\xff\xff\0\0\0\0\0\0";
        let values =
            |body: &[u8]| -> Vec<Vec<u8>> { bind(body).unwrap().values().map(<[u8]>::to_vec).collect() };
        assert_eq!(values(body), [b"ab".to_vec(), Vec::new()]);
        assert_eq!(values(&body[..14]), [b"ab".to_vec()]);
        assert!(values(b"\0\0\0\x09\0").is_empty());
    }

    /// P07: truncated bodies.
    #[test]
    fn malformed_bodies_are_none() {
        for body in [&b""[..], b"s1", b"s1\0select", b"s1\0select\0", b"s1\0select\0\0\x02\0\0\0\0"] {
            assert_eq!(parse(body), None, "{body:?}");
        }
        assert_eq!(bind(b"\0s1"), None);
        assert_eq!(named(b"X\0"), None);
        assert_eq!(query(b""), None);
    }
}
