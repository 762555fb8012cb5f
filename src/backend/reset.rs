//! Commands of pgsteer's own on a server connection between two sessions: `DISCARD ALL`, and settings.
//!
//! Invariant: after `Ok` every command was carried out and the connection is idle outside of a transaction. Must not know:
//! pools, sessions.

use std::io;
use std::rc::Rc;

use super::carried::Carried;
use super::connection::Server;
use super::reported::Reported;
use crate::net;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::reply;
use crate::wire::sqlstate::{self, SqlState};

/// The longest message in an answer to a question of pgsteer's own that is read.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;
/// Most rows of one.
const ROWS_MAX: usize = 16 * 1024;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The connection failed.
    #[error("the server was lost: {0}")]
    Io(#[from] io::Error),
    /// The server refused; its ErrorResponse.
    #[error("the server refused: {}", reply::error_message(.0.get(5..).unwrap_or_default()))]
    Refused(Vec<u8>),
    /// It answered, but nobody wants to read so much.
    #[error("the answer is too long")]
    TooLong,
}

impl CommandError {
    /// SQLSTATE of the server's error, be it one that ended the connection.
    pub fn code(&self) -> Option<SqlState> {
        match self {
            Self::Io(error) => Some(error.get_ref()?.downcast_ref::<Ended>()?.code),
            Self::Refused(error) => {
                Some(reply::error_fields(error.get(HEADER_BYTES..).unwrap_or_default()).code)
            }
            Self::TooLong => None,
        }
    }

    /// Whether it was for the sake of replay, if the server is a standby.
    pub fn is_conflict(&self) -> bool {
        self.code().is_some_and(sqlstate::is_recovery_conflict)
    }
}

/// The server has ended the connection by an error.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
struct Ended {
    code: SqlState,
    message: String,
}

/// Has the server forget everything but what DISCARD ALL leaves (loaded libraries, the random seed).
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn reset(server: &mut Server) -> Result<(), CommandError> {
    run(server, &["DISCARD ALL".to_owned()]).await?;
    server.carried = Carried::default();
    server.applied = Rc::default();
    server.left_by = None;
    Ok(())
}

/// Has the server forget all settings, listed or not, and what its sequences gave last; prepared statements stay. Allowed in a
/// transaction.
pub const EVERY_SETTING: [&str; 4] =
    ["RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL", "DISCARD SEQUENCES"];

/// Runs the commands, each as a Query of its own, and waits for all of them. Gives the notifications that came meanwhile, for
/// the client. Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn run(server: &mut Server, commands: &[String]) -> Result<Vec<u8>, CommandError> {
    converse(server, commands).await.map(|asked| asked.notifications)
}

/// The answer to a question.
#[derive(Debug, Default)]
pub struct Asked {
    /// Rows of columns, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// There were more or longer ones, which are left out.
    is_too_long: bool,
    /// Notifications that came meanwhile, whole messages, for the client.
    pub notifications: Vec<u8>,
}

/// Runs one query of pgsteer's own and gives its rows. The connection must be idle outside of a transaction.
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn ask(server: &mut Server, sql: &str) -> Result<Asked, CommandError> {
    let asked = converse(server, &[sql.to_owned()]).await?;
    if asked.is_too_long { Err(CommandError::TooLong) } else { Ok(asked) }
}

/// The number of a group that was refused, and the body of its ErrorResponse.
pub type Refused = (usize, Vec<u8>);

/// Sends messages of pgsteer's own, in groups each of which is answered by one ReadyForQuery, and waits for all of them, also
/// inside of a transaction. Gives the numbers of the groups that were refused, each with the body of its ErrorResponse, and the
/// notifications that came meanwhile.
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn send(server: &mut Server, groups: &[Vec<u8>]) -> io::Result<(Vec<Refused>, Vec<u8>)> {
    let answer = Conversation { left: groups.len(), anywhere: true, ..Conversation::default() };
    let answer = exchange(server, &groups.concat(), answer).await?;
    // Counted by how many were left.
    let refused = answer.refused_at.into_iter();
    let refused = refused.filter_map(|(left, error)| Some((groups.len().checked_sub(left)?, error)));
    Ok((refused.collect(), answer.asked.notifications))
}

async fn converse(server: &mut Server, queries: &[String]) -> Result<Asked, CommandError> {
    let mut bytes = Vec::new();
    for query in queries {
        reply::put_query(&mut bytes, query);
    }
    let answer = Conversation { left: queries.len(), ..Conversation::default() };
    let answer = exchange(server, &bytes, answer).await?;
    match answer.refused {
        Some(error) => Err(CommandError::Refused(error)),
        None => Ok(answer.asked),
    }
}

async fn exchange(server: &mut Server, bytes: &[u8], mut answer: Conversation) -> io::Result<Conversation> {
    server.carried.unnamed = None;
    net::write_all(&server.link.stream, bytes).await?;
    let mut received = Vec::new();
    let mut chunk = vec![0u8; 8192];
    // Of a message that is too long, what is still to come.
    let mut skipped = 0;
    loop {
        let mut taken = 0;
        while skipped == 0
            && let Some(header) =
                frame::header(received.get(taken..).unwrap_or_default()).map_err(io::Error::other)?
        {
            if header.frame_bytes > ANSWER_BYTES_MAX && header.kind == b'D' {
                answer.asked.is_too_long = true;
                skipped = taken + header.frame_bytes - received.len().min(taken + header.frame_bytes);
            } else if let Some(whole) = received.get(taken..taken + header.frame_bytes) {
                answer.on(header.kind, whole, &mut server.reported)?;
            } else {
                break;
            }
            taken = received.len().min(taken + header.frame_bytes);
        }
        received.drain(..taken);
        // Behind the last answer there may be the beginning of a notification, which is nobody's to throw away.
        if answer.left == 0 && received.is_empty() {
            return Ok(answer);
        }
        if received.len() > ANSWER_BYTES_MAX {
            return Err(io::Error::other("the answer is too long"));
        }
        net::readable(&server.link.stream).await?;
        match net::try_read(&server.link.stream, &mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                let rest = skipped.min(count);
                skipped -= rest;
                received.extend_from_slice(chunk.get(rest..count).unwrap_or_default());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// What has been answered so far.
#[derive(Debug, Default)]
struct Conversation {
    /// Queries whose ReadyForQuery has not come.
    left: usize,
    /// It may be inside of a transaction.
    anywhere: bool,
    asked: Asked,
    refused: Option<Vec<u8>>,
    /// How many were left when one was refused, and the error's body.
    refused_at: Vec<Refused>,
}

impl Conversation {
    fn on(&mut self, kind: u8, whole: &[u8], reported: &mut Reported) -> io::Result<()> {
        let body = whole.get(HEADER_BYTES..).unwrap_or_default();
        match kind {
            b'D' if self.asked.rows.len() >= ROWS_MAX => self.asked.is_too_long = true,
            b'D' => self.asked.rows.push(row(body).ok_or_else(|| io::Error::other("a malformed row"))?),
            b'S' => {
                if let Some((name, value)) = reply::parameter_status(body) {
                    reported.report(name, value);
                }
            }
            b'A' => self.asked.notifications.extend_from_slice(whole),
            b'E' if reply::error_fields(body).ends_session => {
                let (code, message) =
                    (reply::error_fields(body).code, reply::error_message(body).to_string());
                return Err(io::Error::other(Ended { code, message }));
            }
            b'E' => {
                self.refused = self.refused.take().or_else(|| Some(whole.to_vec()));
                self.refused_at.push((self.left, body.to_vec()));
            }
            b'Z' if self.left == 0 || !(self.anywhere || body.first() == Some(&b'I')) => {
                return Err(io::Error::other("the connection was inside a transaction"));
            }
            b'Z' => self.left -= 1,
            _ => {}
        }
        Ok(())
    }
}

/// The columns of a DataRow, read as text.
fn row(body: &[u8]) -> Option<Vec<Option<String>>> {
    let count = u16::from_be_bytes(body.get(..2)?.try_into().ok()?);
    let mut rest = body.get(2..)?;
    let mut columns = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let length = i32::from_be_bytes(rest.get(..4)?.try_into().ok()?);
        rest = rest.get(4..)?;
        let Ok(length) = usize::try_from(length) else {
            columns.push(None);
            continue;
        };
        columns.push(Some(String::from_utf8_lossy(rest.get(..length)?).into_owned()));
        rest = rest.get(length..)?;
    }
    Some(columns)
}

#[cfg(test)]
mod tests {
    use super::{Conversation, Reported, row};
    use crate::wire::frame;

    /// G08: a notification that comes with the answer, before or behind its end, is kept; a failed query fails the whole.
    #[test]
    fn notifications_are_kept_beside_the_answer() {
        let message = |kind: u8, body: &[u8]| {
            let mut out = Vec::new();
            frame::put(&mut out, kind, &[body]);
            out
        };
        let mut answer = Conversation { left: 1, ..Conversation::default() };
        let note = message(b'A', b"\0\0\0\x01c\0p\0");
        for (kind, body) in [(b'A', &note[5..]), (b'E', b"C42501\0\0"), (b'Z', b"I"), (b'A', &note[5..])] {
            answer.on(kind, &message(kind, body), &mut Reported::default()).unwrap();
        }
        assert_eq!((answer.left, answer.asked.notifications), (0, [note.clone(), note].concat()));
        assert!(answer.refused.is_some());
    }

    #[test]
    fn rows_are_read_and_malformed_ones_refused() {
        let body = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        assert_eq!(row(body), Some(vec![Some("ab".to_owned()), None]));
        for end in 0..body.len() - 1 {
            assert_eq!(row(&body[..end]), None, "{end}");
        }
    }
}
