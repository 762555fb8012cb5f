//! What is said in a login, as functions of bytes: no I/O, no clock.
//!
//! Invariant: every malformed message is a FATAL report, never a panic; whether a user exists can't be told from outside.
//! Source: "Start-up" and "SASL Authentication" in the protocol documentation.

use bytes::BytesMut;
use pgwire::messages::Message;
use pgwire::messages::startup::Authentication;

use crate::auth::MECHANISM;
use crate::wire::frame;
use crate::wire::reply::{self, Report, TransactionStatus};
use crate::wire::sqlstate as state;
use crate::wire::startup::{MINOR_MAX, NAME_BYTES_MAX, Startup, StartupError};
use crate::wire::text;

/// Who wants in, where to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// User.
    pub user: String,
    /// Database.
    pub database: String,
    /// What for.
    pub replication: Replication,
}

/// Whether a replication connection is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replication {
    /// No: a session that runs statements.
    No,
    /// One, physical or of a database: the server makes the difference.
    Wanted,
}

/// The request of a startup packet.
pub fn request(startup: &Startup) -> Result<Request, Box<Report>> {
    let user = startup.parameter("user").unwrap_or_default();
    if user.is_empty() {
        return Err(Box::new(Report::fatal(
            state::INVALID_AUTHORIZATION_SPECIFICATION,
            "no PostgreSQL user name specified in startup packet",
        )));
    }
    let replication = match startup.parameter("replication") {
        None => Replication::No,
        Some(value) => replication(value).ok_or_else(|| {
            Box::new(
                Report::fatal(
                    state::INVALID_PARAMETER_VALUE,
                    format!("invalid value for parameter \"replication\": \"{value}\""),
                )
                .hint("Valid values are: \"false\", 0, \"true\", 1, \"database\"."),
            )
        })?,
    };
    let database = startup.parameter("database").filter(|name| !name.is_empty()).unwrap_or(user);
    let mut request = Request { user: user.to_owned(), database: database.to_owned(), replication };
    text::truncate(&mut request.user, NAME_BYTES_MAX);
    text::truncate(&mut request.database, NAME_BYTES_MAX);
    Ok(request)
}

/// What `replication` in a startup packet says: "database", or a boolean as PostgreSQL reads it, any unique beginning of a word.
fn replication(value: &str) -> Option<Replication> {
    if value == "database" {
        return Some(Replication::Wanted);
    }
    let value = value.to_ascii_lowercase();
    let begins = |word: &str| !value.is_empty() && word.starts_with(&value);
    match value.as_str() {
        "0" | "of" | "off" => Some(Replication::No),
        "1" | "on" => Some(Replication::Wanted),
        _ if begins("false") || begins("no") => Some(Replication::No),
        _ if begins("true") || begins("yes") => Some(Replication::Wanted),
        _ => None,
    }
}

/// What to answer to a first packet that is wrong.
pub fn startup_fault(error: &StartupError) -> Report {
    let code = match error {
        StartupError::Version { .. } => state::FEATURE_NOT_SUPPORTED,
        StartupError::Length(_) | StartupError::Layout => state::PROTOCOL_VIOLATION,
    };
    Report::fatal(code, error.to_string())
}

/// NegotiateProtocolVersion, where the client asked for a newer version than there is, or for protocol options: pgsteer has
/// none. Otherwise nothing.
pub fn negotiation(startup: &Startup) -> Vec<u8> {
    let mut out = Vec::new();
    if startup.minor <= MINOR_MAX && startup.protocol_options.is_empty() {
        return out;
    }
    let version = (3u32 << 16 | u32::from(startup.minor_spoken())).to_be_bytes();
    // A startup packet holds no more names than a count can tell.
    let count = u32::try_from(startup.protocol_options.len()).unwrap_or(u32::MAX).to_be_bytes();
    let mut names = Vec::new();
    for name in &startup.protocol_options {
        names.extend_from_slice(&text::to_bytes(name));
        names.push(0);
    }
    frame::put(&mut out, b'v', &[&version, &count, &names]);
    out
}

/// AuthenticationSASL.
pub fn sasl_offer() -> Vec<u8> {
    encode(&Authentication::SASL(vec![MECHANISM.to_owned()]))
}

/// AuthenticationSASLContinue.
pub fn sasl_continue(data: &[u8]) -> Vec<u8> {
    encode(&Authentication::SASLContinue(data.to_vec().into()))
}

/// AuthenticationSASLFinal.
pub fn sasl_final(data: &[u8]) -> Vec<u8> {
    encode(&Authentication::SASLFinal(data.to_vec().into()))
}

fn encode(message: &impl Message) -> Vec<u8> {
    let mut bytes = BytesMut::new();
    let encoded = message.encode(&mut bytes);
    debug_assert!(encoded.is_ok(), "encoding into memory");
    bytes.to_vec()
}

/// The SCRAM message in a SASLInitialResponse; `None` if it is malformed or of another mechanism.
pub fn sasl_initial(body: &[u8]) -> Option<&[u8]> {
    let rest = body.strip_prefix(MECHANISM.as_bytes())?.strip_prefix(b"\0")?;
    let (length, data) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(i32::from_be_bytes(*length)).ok()?;
    (data.len() == length).then_some(data)
}

/// "password authentication failed", as PostgreSQL says it.
pub fn wrong_password(user: &str) -> Report {
    Report::fatal(state::INVALID_PASSWORD, format!("password authentication failed for user \"{user}\""))
}

/// AuthenticationOk.
pub fn authentication_ok() -> Vec<u8> {
    encode(&Authentication::Ok)
}

/// AuthenticationOk, what the server had to say, the parameters, the key, ReadyForQuery.
pub fn welcome(notices: &[u8], parameters: &[(String, String)], process_id: i32, key: &[u8]) -> Vec<u8> {
    let mut out = authentication_ok();
    out.extend_from_slice(notices);
    for (name, value) in parameters {
        reply::put_parameter_status(&mut out, name, value);
    }
    frame::put(&mut out, b'K', &[&process_id.to_be_bytes(), key]);
    out.extend_from_slice(TransactionStatus::Idle.ready_for_query());
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn startup(parameters: &[(&str, &str)]) -> Startup {
        let parameters =
            parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Startup { minor: 0, parameters, protocol_options: Vec::new() }
    }

    #[test]
    fn the_database_defaults_to_the_user() {
        let request = request(&startup(&[("user", "bob")])).unwrap();
        assert_eq!((request.user.as_str(), request.database.as_str()), ("bob", "bob"));
    }

    #[test]
    fn no_user_is_28000() {
        assert_eq!(request(&startup(&[])).unwrap_err().code, state::INVALID_AUTHORIZATION_SPECIFICATION);
    }

    /// P06, byte by byte what PostgreSQL 18 says: every minor version up to 3.2 as it is, newer ones are negotiated down,
    /// unknown options are named.
    #[test]
    fn versions_are_negotiated_as_postgresql_does() {
        let said = |minor, options: &[&str]| {
            let mut asked = startup(&[("user", "bob")]);
            asked.minor = minor;
            asked.protocol_options = options.iter().map(|name| (*name).to_owned()).collect();
            negotiation(&asked)
        };
        for minor in [0, 1, 2] {
            assert!(said(minor, &[]).is_empty(), "3.{minor}");
        }
        assert_eq!(said(3, &[]), *b"v\0\0\0\x0c\0\x03\0\x02\0\0\0\0");
        let grease = b"v\0\0\0\x2b\0\x03\0\x02\0\0\0\x01_pq_.test_protocol_negotiation\0";
        assert_eq!(said(9999, &["_pq_.test_protocol_negotiation"]), *grease);
        assert_eq!(said(0, &["_pq_.x", "_pq_.y"]), *b"v\0\0\0\x1a\0\x03\0\0\0\0\0\x02_pq_.x\0_pq_.y\0");
        assert_eq!(said(1, &["_pq_.x"]), *b"v\0\0\0\x13\0\x03\0\x01\0\0\0\x01_pq_.x\0");
        assert_eq!(said(2, &[&text::from_bytes(b"_pq_.\xe9")])[12..], *b"\x01_pq_.\xe9\0");
    }

    #[test]
    fn long_names_are_cut() {
        let request = request(&startup(&[("user", &"u".repeat(70)), ("database", &"d".repeat(64))])).unwrap();
        assert_eq!((request.user, request.database), ("u".repeat(63), "d".repeat(63)));
    }

    #[test]
    fn malformed_sasl_is_none() {
        for body in [&b""[..], b"SCRAM-SHA-256\0", b"SCRAM-SHA-256\0\xff\xff\xff\xff", b"PLAIN\0\0\0\0\0"] {
            assert_eq!(sasl_initial(body), None);
        }
        assert_eq!(sasl_initial(b"SCRAM-SHA-256\0\0\0\0\x01n"), Some(&b"n"[..]));
    }
}
