//! The messages pgsteer writes itself, to clients and to servers, and the few fields it reads from server messages.
//!
//! Invariant: every frame written here is complete; texts are written as the bytes they stand for (`text`). Must not know: when
//! they are sent.

use std::hash::Hasher as _;
use std::rc::Rc;

use super::sqlstate::{self, SqlState};
use super::{frame, text};

/// ReadyForQuery's transaction status.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TransactionStatus {
    /// `I`: not in a transaction block.
    #[default]
    Idle,
    /// `T`: in a transaction block.
    InTransaction,
    /// `E`: in a failed transaction block.
    Failed,
}

impl TransactionStatus {
    /// From the byte of ReadyForQuery.
    pub fn from_byte(byte: u8) -> Option<Self> {
        match byte {
            b'I' => Some(Self::Idle),
            b'T' => Some(Self::InTransaction),
            b'E' => Some(Self::Failed),
            _ => None,
        }
    }

    /// The complete ReadyForQuery message.
    pub fn ready_for_query(self) -> &'static [u8] {
        match self {
            Self::Idle => b"Z\0\0\0\x05I",
            Self::InTransaction => b"Z\0\0\0\x05T",
            Self::Failed => b"Z\0\0\0\x05E",
        }
    }
}

/// Complete ParseComplete.
pub const PARSE_COMPLETE: &[u8] = b"1\0\0\0\x04";
/// Complete BindComplete.
pub const BIND_COMPLETE: &[u8] = b"2\0\0\0\x04";
/// Complete CloseComplete.
pub const CLOSE_COMPLETE: &[u8] = b"3\0\0\0\x04";
/// Complete NoData.
pub const NO_DATA: &[u8] = b"n\0\0\0\x04";
/// Complete EmptyQueryResponse.
pub const EMPTY_QUERY: &[u8] = b"I\0\0\0\x04";
/// Complete ParameterDescription of no parameters.
pub const NO_PARAMETERS: &[u8] = b"t\0\0\0\x06\0\0";
/// Complete Sync.
pub const SYNC: &[u8] = b"S\0\0\0\x04";
/// Complete Flush.
pub const FLUSH: &[u8] = b"H\0\0\0\x04";
/// Complete Terminate.
pub const TERMINATE: &[u8] = b"X\0\0\0\x04";

/// Severity of an error pgsteer reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Severity {
    /// The statement failed; the session lives.
    Error,
    /// The session ends.
    Fatal,
    /// For information.
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Self::Error => "ERROR",
            Self::Fatal => "FATAL",
            Self::Warning => "WARNING",
        }
    }
}

/// An error for a client: what happened, the circumstances, what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// ERROR or FATAL.
    pub severity: Severity,
    /// What kind.
    pub code: SqlState,
    /// One line.
    pub message: String,
    /// What happened.
    pub detail: Option<String>,
    /// What to do.
    pub hint: Option<String>,
}

impl Report {
    /// An ERROR.
    pub fn error(code: SqlState, message: impl Into<String>) -> Self {
        Self { severity: Severity::Error, code, message: message.into(), detail: None, hint: None }
    }

    /// A FATAL.
    pub fn fatal(code: SqlState, message: impl Into<String>) -> Self {
        Self { severity: Severity::Fatal, ..Self::error(code, message) }
    }

    /// Adds the DETAIL.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// Adds the HINT.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Appends the ErrorResponse (or NoticeResponse for a warning).
    pub fn put(&self, out: &mut Vec<u8>) {
        let severity = self.severity.as_str();
        let fields = [
            (b'S', Some(severity)),
            (b'V', Some(severity)),
            (b'C', Some(self.code.as_str())),
            (b'M', Some(self.message.as_str())),
            (b'D', self.detail.as_deref()),
            (b'H', self.hint.as_deref()),
        ];
        let mut body = Vec::new();
        for (field, text) in fields {
            if let Some(text) = text {
                body.push(field);
                body.extend(text::to_bytes(text).iter().filter(|byte| **byte != 0));
                body.push(0);
            }
        }
        let kind = if self.severity == Severity::Warning { b'N' } else { b'E' };
        frame::put(out, kind, &[&body, b"\0"]);
    }
}

/// Appends a ParameterStatus.
pub fn put_parameter_status(out: &mut Vec<u8>, name: &str, value: &str) {
    frame::put(out, b'S', &[&text::to_bytes(name), b"\0", &text::to_bytes(value), b"\0"]);
}

/// Whom server processes work for.
pub trait Clients: std::fmt::Debug {
    /// The process id that the client was given at its login for whom this server process has done the last thing that may have
    /// sent a notification.
    fn client_of(&self, server: i32) -> Option<i32>;
}

/// One server process by two names: a session's server, for the moment. And all others.
#[derive(Debug, Clone)]
pub struct OwnProcess {
    /// The server's own process id.
    pub server: i32,
    /// The process id that the client was given at its login, or the server's if it has asked for that.
    pub client: i32,
    /// The other servers' clients.
    pub others: Rc<dyn Clients>,
}

impl OwnProcess {
    /// Gives a NotificationResponse (a whole frame) the process id by which the client knows the sender: by it a client tells
    /// its own notifications from others', and others from each other. Of a sender that isn't known it stays the server's.
    pub fn rename(&self, notification: &mut [u8]) {
        let id = notification.get_mut(super::frame::HEADER_BYTES..).and_then(<[u8]>::first_chunk_mut);
        let Some(id) = id else { return };
        let server = i32::from_be_bytes(*id);
        let client = if server == self.server { Some(self.client) } else { self.others.client_of(server) };
        if let Some(client) = client {
            *id = client.to_be_bytes();
        }
    }

    /// The same with several, one behind the other.
    pub fn rename_all(&self, mut notifications: &mut [u8]) {
        while let Ok(Some(header)) = super::frame::header(notifications)
            && header.frame_bytes <= notifications.len()
        {
            let (first, rest) = notifications.split_at_mut(header.frame_bytes);
            self.rename(first);
            notifications = rest;
        }
    }
}

/// Appends a CommandComplete with this tag.
pub fn put_command_complete(out: &mut Vec<u8>, tag: &str) {
    frame::put(out, b'C', &[tag.as_bytes(), b"\0"]);
}

/// Appends a Query message.
pub fn put_query(out: &mut Vec<u8>, sql: &str) {
    frame::put(out, b'Q', &[&text::to_bytes(sql), b"\0"]);
}

/// Appends one statement in the extended protocol, through the unnamed statement and portal, without a Sync: should it fail,
/// nothing behind it runs (`ignore_till_sync`, postgres.c), not even a Query.
pub fn put_statement(out: &mut Vec<u8>, sql: &str) {
    super::frame::put(out, b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
    super::frame::put(out, b'B', &[b"\0\0\0\0\0\0\0\0"]);
    super::frame::put(out, b'E', &[b"\0\0\0\0\0"]);
}

/// The portal of `put_statement_within`.
const WITHIN: &[u8] = b"pgsteer\0";

/// The same in the middle of a client's batch, whose unnamed portal stays.
pub fn put_statement_within(out: &mut Vec<u8>, sql: &str) {
    super::frame::put(out, b'P', &[b"\0", sql.as_bytes(), b"\0\0\0"]);
    super::frame::put(out, b'B', &[WITHIN, b"\0\0\0\0\0\0\0"]);
    super::frame::put(out, b'E', &[WITHIN, b"\0\0\0\0"]);
    super::frame::put(out, b'C', &[b"P", WITHIN]);
}

/// What pgsteer needs to know of an ErrorResponse or NoticeResponse.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ErrorFields {
    /// SQLSTATE; `XX000` when the server named none.
    pub code: SqlState,
    /// The session at the server ends with this (FATAL or PANIC).
    pub ends_session: bool,
    /// What was prepared gives other rows by now (`RevalidateCachedQuery`, plancache.c): its statement has not begun.
    pub plan_changed: bool,
}

/// Whether the body of an ErrorResponse tells of the end of all sessions of its server.
pub fn is_panic(body: &[u8]) -> bool {
    body.split(|&byte| byte == 0).any(|field| field == b"VPANIC")
}

/// Reads the body of an ErrorResponse or NoticeResponse; missing or malformed fields get defaults, never a panic.
pub fn error_fields(body: &[u8]) -> ErrorFields {
    let mut fields = ErrorFields { code: sqlstate::UNSPECIFIED, ends_session: false, plan_changed: false };
    let mut rest = body;
    while let Some((&kind, tail)) = rest.split_first() {
        let Some(end) = tail.iter().position(|&byte| byte == 0) else { break };
        let value = tail.get(..end).unwrap_or_default();
        match kind {
            0 => break,
            b'C' => {
                if let Ok(code) = <[u8; 5]>::try_from(value) {
                    fields.code = SqlState(code);
                }
            }
            b'R' => fields.plan_changed = value == b"RevalidateCachedQuery",
            b'V' => fields.ends_session = matches!(value, b"FATAL" | b"PANIC"),
            _ => {}
        }
        rest = tail.get(end + 1..).unwrap_or_default();
    }
    fields.plan_changed &= fields.code == sqlstate::FEATURE_NOT_SUPPORTED;
    fields
}

/// Appends what PostgreSQL says of a prepared statement whose rows would look otherwise than its client was told
/// (`RevalidateCachedQuery`, plancache.c). Drivers know it by its fields and prepare anew.
pub fn put_plan_changed(out: &mut Vec<u8>) {
    let fields: [&[u8]; 7] = [
        b"SERROR\0",
        b"VERROR\0",
        b"C0A000\0",
        b"Mcached plan must not change result type\0",
        b"Fplancache.c\0",
        b"L1\0",
        b"RRevalidateCachedQuery\0\0",
    ];
    super::frame::put(out, b'E', &fields);
}

/// An ErrorResponse, a whole frame, with a hint added behind its own, if it has one.
pub fn with_hint(frame: &[u8], hint: &str) -> Vec<u8> {
    let mut fields = Vec::with_capacity(frame.len() + hint.len() + 2);
    let mut own = None;
    for field in frame.get(super::frame::HEADER_BYTES..).unwrap_or_default().split(|&byte| byte == 0) {
        match field.split_first() {
            None => {}
            Some((b'H', text)) => own = Some(text),
            Some(_) => fields.extend_from_slice(&[field, b"\0"].concat()),
        }
    }
    fields.push(b'H');
    if let Some(own) = own {
        fields.extend_from_slice(&[own, b" "].concat());
    }
    fields.extend_from_slice(&[hint.as_bytes(), b"\0\0"].concat());
    let mut out = Vec::with_capacity(fields.len() + super::frame::HEADER_BYTES);
    super::frame::put(&mut out, b'E', &[&fields]);
    out
}

/// An ErrorResponse that ended a session, as the error of a statement.
pub fn as_error(frame: &[u8]) -> Vec<u8> {
    let mut fields = Vec::with_capacity(frame.len());
    for field in frame.get(super::frame::HEADER_BYTES..).unwrap_or_default().split(|&byte| byte == 0) {
        match field.first() {
            None => {}
            Some(kind @ (b'S' | b'V')) => fields.extend_from_slice(&[&[*kind], &b"ERROR\0"[..]].concat()),
            Some(_) => fields.extend_from_slice(&[field, b"\0"].concat()),
        }
    }
    fields.push(0);
    let mut out = Vec::with_capacity(fields.len() + super::frame::HEADER_BYTES);
    super::frame::put(&mut out, b'E', &[&fields]);
    out
}

/// The message text of an ErrorResponse, for logs and for passing a server's refusal on.
pub fn error_message(body: &[u8]) -> String {
    let mut rest = body;
    while let Some((&kind, tail)) = rest.split_first() {
        let Some(end) = tail.iter().position(|&byte| byte == 0) else { break };
        if kind == b'M' {
            return String::from_utf8_lossy(tail.get(..end).unwrap_or_default()).into_owned();
        }
        rest = tail.get(end + 1..).unwrap_or_default();
    }
    String::new()
}

/// Splits the body of a ParameterStatus.
pub fn parameter_status(body: &[u8]) -> Option<(&str, &str)> {
    let (name, value) = parameter_status_bytes(body)?;
    Some((std::str::from_utf8(name).ok()?, std::str::from_utf8(value).ok()?))
}

/// The same in whatever encoding.
pub fn parameter_status_bytes(body: &[u8]) -> Option<(&[u8], &[u8])> {
    let body = body.strip_suffix(b"\0")?;
    let middle = body.iter().position(|&byte| byte == 0)?;
    let (name, value) = body.split_at(middle);
    Some((name, value.get(1..)?))
}

/// What a client was told of a prepared statement when it was described, and relies on ever after.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Of the rows (`row_shape`). `None`: any, as where they are told anew.
    pub rows: Option<u64>,
    /// Of the types of the parameters (`parameter_types`). `None`: there are none, or they were not told, as where only a portal was
    /// described.
    pub parameters: Option<u64>,
}

impl Shape {
    /// Who was told the one reads and writes the other rightly.
    pub fn agrees(self, other: Self) -> bool {
        let agree = |one: Option<u64>, two: Option<u64>| one.is_none() || two == one || two.is_none();
        agree(self.rows, other.rows) && agree(self.parameters, other.parameters)
    }

    /// This, told after that.
    #[must_use]
    pub fn after(self, before: Option<Self>) -> Self {
        let parameters = self.parameters.or_else(|| before.and_then(|before| before.parameters));
        Self { parameters, ..self }
    }
}

/// What a ParameterDescription says; `None` when there are no parameters.
pub fn parameter_types(body: &[u8]) -> Option<u64> {
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write(body);
    (body != [0, 0]).then(|| hasher.finish())
}

/// What a RowDescription says that its client relies on when it reads rows later: names, types and modifiers of the columns
/// (as `equalTupleDescs`, tupdesc.c). `None` when the body is malformed or not all there.
pub fn row_shape(body: &[u8]) -> Option<u64> {
    let count = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
    let mut rest = body.get(2..)?;
    let mut hasher = std::hash::DefaultHasher::new();
    hasher.write_u16(count);
    for _ in 0..count {
        let name = rest.get(..rest.iter().position(|&byte| byte == 0)?)?;
        // Table and column number, which are not looked at; type, its length, modifier, format.
        let fields = rest.get(name.len() + 1..)?.get(..18)?;
        hasher.write(name);
        hasher.write_u8(0);
        hasher.write(fields.get(6..10)?);
        hasher.write(fields.get(12..16)?);
        rest = rest.get(name.len() + 1 + fields.len()..)?;
    }
    rest.is_empty().then(|| hasher.finish())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_of_rows_is_that_of_names_and_types() {
        let column = |name: &str, table: u8, oid: u8, modifier: u8| {
            let fields = [0, 0, 0, table, 0, table, 0, 0, 0, oid, 0, 4, 0, 0, 0, modifier, 0, 0];
            [name.as_bytes(), b"\0", &fields].concat()
        };
        let row = |columns: &[Vec<u8>]| {
            let count = u16::try_from(columns.len()).unwrap();
            [&count.to_be_bytes()[..], &columns.concat()].concat()
        };
        let body = row(&[column("a", 1, 23, 0), column("b", 1, 25, 0)]);
        let shape = row_shape(&body);
        assert_eq!(row_shape(&row(&[column("a", 9, 23, 0), column("b", 9, 25, 0)])), shape);
        for other in [
            row(&[column("a", 1, 23, 0)]),
            row(&[column("b", 1, 23, 0), column("a", 1, 25, 0)]),
            row(&[column("a", 1, 20, 0), column("b", 1, 25, 0)]),
            row(&[column("a", 1, 23, 7), column("b", 1, 25, 0)]),
        ] {
            assert!(row_shape(&other).is_some() && row_shape(&other) != shape);
        }
        for end in 0..body.len() {
            assert_eq!(row_shape(&body[..end]), None, "{end}");
        }
    }

    #[test]
    fn a_changed_plan_is_known_by_its_routine() {
        let mut error = Vec::new();
        put_plan_changed(&mut error);
        assert!(error_fields(&error[5..]).plan_changed);
        assert!(!error_fields(b"C0A000\0RExecEvalStuff\0\0").plan_changed);
        assert!(!error_fields(b"C42P01\0RRevalidateCachedQuery\0\0").plan_changed);
    }

    #[test]
    fn a_report_is_read_back() {
        let mut out = Vec::new();
        Report::fatal(sqlstate::PROTOCOL_VIOLATION, "pgsteer: x\0y").detail("d").hint("h").put(&mut out);
        assert_eq!(out[0], b'E');
        let fields = error_fields(&out[5..]);
        assert_eq!(
            fields,
            ErrorFields { code: sqlstate::PROTOCOL_VIOLATION, ends_session: true, plan_changed: false }
        );
        assert_eq!(error_message(&out[5..]), "pgsteer: xy");
    }

    /// P07: ErrorResponse without SQLSTATE, without end, empty.
    #[test]
    fn malformed_errors_do_not_panic() {
        for body in [&b""[..], b"\0", b"C", b"CXX\0\0", b"M", b"V\0\0"] {
            let fields = error_fields(body);
            assert_eq!((fields.code, fields.ends_session), (sqlstate::UNSPECIFIED, false));
        }
    }

    #[test]
    fn parameter_status_is_split() {
        assert_eq!(parameter_status(b"TimeZone\0UTC\0"), Some(("TimeZone", "UTC")));
        assert_eq!(parameter_status(b"TimeZone"), None);
    }
}
