//! The client's side of a login, as a machine without I/O.
//!
//! Invariant: a password is only ever used for SCRAM, or in clear where the caller gave one and the server asks for it never:
//! cleartext and MD5 are refused. Must not know: sockets, clocks, where secrets come from.
//! Behind the login the server is asked which role the user is: names are used again, OIDs are not, and a connection stays its
//! role's when the name is another's by then; and, where the connection was opened before that was known, which server it is.
//! Source: "Start-up" in the protocol documentation's message flow.

use super::incarnation;
use crate::auth::{RoleOid, ScramClient, Secret, WaitingServerFinal};
use crate::topology::model::Incarnation;
use crate::wire::frame;
use crate::wire::reply;
use crate::wire::sqlstate::SqlState;
use crate::wire::text;

/// Asks which role the session's user is. No function or setting of the user's own can get between.
const WHICH_ROLE: &str = "SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(session_user))::pg_catalog.oid";

/// The same, and behind it which server answers: see [`incarnation`].
const WHICH_ROLE_AND_SERVER: &str = "\
SELECT pg_catalog.to_regrole(pg_catalog.quote_ident(session_user))::pg_catalog.oid, c.system_identifier, \
(extract(epoch FROM pg_catalog.pg_postmaster_start_time()) OPERATOR(pg_catalog.*) 1000000)::pg_catalog.int8, \
CASE WHEN NOT pg_catalog.pg_is_in_recovery() \
THEN pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()) END \
FROM pg_catalog.pg_control_system() c";

/// What the server is asked behind a login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asks {
    /// Nothing: the connection takes no SQL.
    Nothing,
    /// Which role the user is.
    Role,
    /// That, and which server answers.
    RoleAndServer,
}

impl Asks {
    fn sql(self) -> Option<&'static str> {
        match self {
            Self::Nothing => None,
            Self::Role => Some(WHICH_ROLE),
            Self::RoleAndServer => Some(WHICH_ROLE_AND_SERVER),
        }
    }
}

/// Notices of a login are kept up to this many bytes.
const NOTICES_BYTES_MAX: usize = 4096;

/// What the server said once it was ready.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Greeting {
    /// BackendKeyData: process id.
    pub process_id: i32,
    /// BackendKeyData: secret key.
    pub key: Vec<u8>,
    /// Reported parameters.
    pub parameters: Vec<(String, String)>,
    /// What the server had to say of the login: whole NoticeResponses, `NOTICES_BYTES_MAX` at most.
    pub notices: Vec<u8>,
    /// The role that the user is. `None` where the server does not tell, as a standby where the user's transactions are SERIALIZABLE.
    pub role: Option<RoleOid>,
    /// Which server that is: `None` where it was not asked, or is in recovery, or does not tell.
    pub incarnation: Option<Incarnation>,
}

/// Why a login failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The server refused with an ErrorResponse.
    #[error("the server refused the login: {message} (SQLSTATE {code})")]
    Refused {
        /// SQLSTATE.
        code: SqlState,
        /// The server's text.
        message: String,
        /// The whole ErrorResponse, to pass on.
        frame: Vec<u8>,
        /// It came behind AuthenticationOk.
        authenticated: bool,
    },
    /// The server asks for a password and there is none for this user.
    #[error("the server asks for a password, and pgsteer knows none for this user")]
    NoSecret,
    /// The server wants a method that pgsteer does not speak.
    #[error("the server asks for authentication method {0}; pgsteer logs in with scram-sha-256 or trust")]
    Method(u32),
    /// SCRAM failed.
    #[error("SCRAM with the server failed: {0}")]
    Scram(String),
    /// Not the protocol.
    #[error("the server sent something that is not part of a login")]
    Malformed,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Read on.
    Wait,
    /// Logged in.
    Done(Greeting),
}

enum State<'s> {
    Start,
    First(Box<ScramClient<'s>>),
    Final(Box<WaitingServerFinal>),
    Parameters,
    Role,
    Failed,
}

/// A login under way.
pub struct Login<'s> {
    secret: Option<Secret<'s>>,
    nonce: String,
    state: State<'s>,
    asks: Asks,
    greeting: Greeting,
}

/// The StartupMessage (protocol 3.0) for these parameters.
pub fn startup_message(user: &str, database: &str, parameters: &[(String, String)]) -> Vec<u8> {
    let mut body = (3u32 << 16).to_be_bytes().to_vec();
    let parameters = parameters.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in [("user", user), ("database", database)].into_iter().chain(parameters) {
        for string in [name, value] {
            body.extend_from_slice(&text::to_bytes(string));
            body.push(0);
        }
    }
    body.push(0);
    // The server refuses what is longer than a startup packet may be.
    let mut packet = u32::try_from(body.len() + 4).unwrap_or(u32::MAX).to_be_bytes().to_vec();
    packet.append(&mut body);
    packet
}

impl<'s> Login<'s> {
    /// A login whose StartupMessage has been sent. `nonce`: random printable ASCII.
    pub fn new(secret: Option<Secret<'s>>, nonce: String, asks: Asks) -> Self {
        Self { secret, nonce, state: State::Start, asks, greeting: Greeting::default() }
    }

    /// Takes one message from the server.
    pub fn on(&mut self, kind: u8, body: &[u8]) -> Result<Action, LoginError> {
        match kind {
            b'R' => self.authentication(body),
            b'E' if matches!(self.state, State::Role) && !reply::error_fields(body).ends_session => {
                Ok(Action::Wait)
            }
            b'E' => {
                let mut whole = Vec::new();
                frame::put(&mut whole, b'E', &[body]);
                let code = reply::error_fields(body).code;
                Err(LoginError::Refused {
                    code,
                    message: reply::error_message(body),
                    frame: whole,
                    authenticated: matches!(self.state, State::Parameters | State::Role),
                })
            }
            b'S' => {
                if let Some((name, value)) = reply::parameter_status_bytes(body) {
                    let name = text::from_bytes(name);
                    self.greeting.parameters.retain(|(other, _)| *other != name);
                    self.greeting.parameters.push((name, text::from_bytes(value)));
                }
                Ok(Action::Wait)
            }
            b'K' => {
                let (process_id, key) = body.split_first_chunk::<4>().ok_or(LoginError::Malformed)?;
                self.greeting.process_id = i32::from_be_bytes(*process_id);
                self.greeting.key = key.to_vec();
                Ok(Action::Wait)
            }
            b'N' => {
                self.notice(body);
                Ok(Action::Wait)
            }
            b'v' => Ok(Action::Wait),
            b'Z' if matches!(self.state, State::Parameters) => {
                let Some(sql) = self.asks.sql() else {
                    return Ok(Action::Done(std::mem::take(&mut self.greeting)));
                };
                self.state = State::Role;
                let mut question = Vec::new();
                reply::put_query(&mut question, sql);
                Ok(Action::Send(question))
            }
            b'D' if matches!(self.state, State::Role) => {
                let row = columns(body).unwrap_or_default();
                let (role, server) = row.split_first().unwrap_or((&None, &[]));
                self.greeting.role = role.and_then(|oid| oid.parse().ok()).map(RoleOid);
                self.greeting.incarnation = incarnation::told(server);
                Ok(Action::Wait)
            }
            b'T' | b'C' if matches!(self.state, State::Role) => Ok(Action::Wait),
            b'Z' if matches!(self.state, State::Role) => Ok(Action::Done(std::mem::take(&mut self.greeting))),
            _ => Err(LoginError::Malformed),
        }
    }

    /// pgsteer's own question is none of the client's affairs.
    fn notice(&mut self, body: &[u8]) {
        let notices = &mut self.greeting.notices;
        let fits = notices.len() + frame::HEADER_BYTES + body.len() <= NOTICES_BYTES_MAX;
        if fits && !matches!(self.state, State::Role) {
            frame::put(notices, b'N', &[body]);
        }
    }

    fn authentication(&mut self, body: &[u8]) -> Result<Action, LoginError> {
        let (code, data) = body.split_first_chunk::<4>().ok_or(LoginError::Malformed)?;
        let code = u32::from_be_bytes(*code);
        match (code, std::mem::replace(&mut self.state, State::Failed)) {
            (0, _) => {
                self.state = State::Parameters;
                Ok(Action::Wait)
            }
            (10, State::Start) => {
                if !data.split(|&byte| byte == 0).any(|name| name == b"SCRAM-SHA-256") {
                    return Err(LoginError::Method(10));
                }
                let secret = self.secret.take().ok_or(LoginError::NoSecret)?;
                let scram = ScramClient::new(secret, &self.nonce);
                let first = scram.client_first();
                let length = u32::try_from(first.len()).unwrap_or(u32::MAX).to_be_bytes();
                self.state = State::First(Box::new(scram));
                Ok(Action::Send(password_message(&[b"SCRAM-SHA-256\0", &length, &first])))
            }
            (11, State::First(scram)) => {
                let (last, waiting) =
                    scram.on_server_first(data).map_err(|error| LoginError::Scram(error.to_string()))?;
                self.state = State::Final(Box::new(waiting));
                Ok(Action::Send(password_message(&[&last])))
            }
            (12, State::Final(waiting)) => {
                waiting.on_server_final(data).map_err(|error| LoginError::Scram(error.to_string()))?;
                Ok(Action::Wait)
            }
            (10..=12, _) => Err(LoginError::Malformed),
            _ => Err(LoginError::Method(code)),
        }
    }
}

/// The values of a DataRow, as text.
fn columns(body: &[u8]) -> Option<Vec<Option<&str>>> {
    let (count, mut rest) = body.split_first_chunk()?;
    let column = |_| {
        let (length, behind) = rest.split_first_chunk()?;
        let Ok(length) = usize::try_from(i32::from_be_bytes(*length)) else {
            rest = behind;
            return Some(None);
        };
        let (value, behind) = behind.split_at_checked(length)?;
        rest = behind;
        Some(Some(std::str::from_utf8(value).ok()?))
    };
    (0..u16::from_be_bytes(*count)).map(column).collect()
}

fn password_message(parts: &[&[u8]]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, b'p', parts);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_read_as_far_as_it_is_one() {
        let row = b"\0\x03\0\0\0\x0210\xff\xff\xff\xff\0\0\0\0";
        assert_eq!(columns(row), Some(vec![Some("10"), None, Some("")]));
        for length in 0..row.len() {
            assert_eq!(columns(&row[..length]), None, "{length}");
        }
        assert_eq!(columns(b"\0\x01\0\0\0\x01\xff"), None);
    }
}
