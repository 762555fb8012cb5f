//! Commands of pgsteer's own on a server connection between two sessions: `DISCARD ALL`, and settings.
//!
//! Invariant: after `Ok` every command was carried out and the connection is idle outside of a transaction. Must not know:
//! pools, sessions.

use std::io;
use std::rc::Rc;

use super::connection::{Carried, Server};
use crate::net;
use crate::relay::answer::{Answer, Event, Expect};
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::reply::{self, TransactionStatus};

/// The longest answer to a question of pgsteer's own.
const ANSWER_BYTES_MAX: usize = 1024 * 1024;

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The connection failed.
    #[error("the server was lost: {0}")]
    Io(#[from] io::Error),
    /// The server refused; its ErrorResponse.
    #[error("the server refused: {}", reply::error_message(.0.get(5..).unwrap_or_default()))]
    Refused(Vec<u8>),
}

/// Has the server forget everything but what DISCARD ALL leaves (loaded libraries, the random seed).
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn reset(server: &mut Server) -> Result<(), CommandError> {
    run(server, &["DISCARD ALL".to_owned()]).await?;
    server.carried = Carried::default();
    server.applied = Rc::default();
    Ok(())
}

/// Has the server forget all settings and what its sequences gave last; prepared statements stay.
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn reset_settings(server: &mut Server) -> Result<(), CommandError> {
    let commands = ["RESET SESSION AUTHORIZATION", "RESET ROLE", "RESET ALL", "DISCARD SEQUENCES"];
    run(server, &commands.map(str::to_owned)).await?;
    server.applied = Rc::default();
    Ok(())
}

/// Runs the commands, each as a Query of its own, and waits for all of them.
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn run(server: &mut Server, commands: &[String]) -> Result<(), CommandError> {
    let mut bytes = Vec::new();
    let mut answer = Answer::new(vec![0; 8192].into_boxed_slice());
    for command in commands {
        reply::put_query(&mut bytes, command);
        answer.expect(Expect::Preamble);
    }
    net::write_all(&server.link.stream, &bytes).await?;
    loop {
        match answer.scan().map_err(io::Error::other)? {
            Event::Complete(status) => {
                return match answer.preamble_error() {
                    Some(error) => Err(CommandError::Refused(error.to_vec())),
                    None if status == TransactionStatus::Idle => Ok(()),
                    None => Err(io::Error::other("the connection was inside a transaction").into()),
                };
            }
            Event::NeedMore => {}
            Event::ParameterStatus | Event::Notice(_) => {
                answer.accept();
                continue;
            }
            Event::Error(_) | Event::CopyIn | Event::Settled => {
                return Err(io::Error::other("the server ended the session").into());
            }
        }
        server.link.stream.readable().await?;
        match net::try_read(&server.link.stream, answer.spare()) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => answer.advance(count),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The answer to a question.
#[derive(Debug, Default)]
pub struct Asked {
    /// Rows of columns, as text.
    pub rows: Vec<Vec<Option<String>>>,
    /// Notifications that came meanwhile, whole messages, for the client.
    pub notifications: Vec<u8>,
}

/// Runs one query of pgsteer's own and gives its rows. The connection must be idle outside of a transaction.
/// Not cancel-safe: dropped in the middle, the connection must be closed.
pub async fn ask(server: &mut Server, sql: &str) -> Result<Asked, CommandError> {
    let mut bytes = Vec::new();
    reply::put_query(&mut bytes, sql);
    server.carried.unnamed = None;
    net::write_all(&server.link.stream, &bytes).await?;
    let (mut received, mut asked, mut refused) = (Vec::new(), Asked::default(), None);
    let mut chunk = vec![0u8; 8192];
    loop {
        while let Some(header) = frame::header(&received).map_err(io::Error::other)? {
            let Some(whole) = received.get(..header.frame_bytes) else { break };
            let body = whole.get(HEADER_BYTES..).unwrap_or_default();
            match header.kind {
                b'D' => asked.rows.push(row(body).ok_or_else(|| io::Error::other("a malformed row"))?),
                b'A' => asked.notifications.extend_from_slice(whole),
                b'E' => refused = Some(whole.to_vec()),
                b'Z' => {
                    return match (refused, body.first()) {
                        (Some(error), _) => Err(CommandError::Refused(error)),
                        (None, Some(b'I')) => Ok(asked),
                        (None, _) => Err(io::Error::other("the connection was inside a transaction").into()),
                    };
                }
                _ => {}
            }
            received.drain(..header.frame_bytes);
        }
        if received.len() > ANSWER_BYTES_MAX || asked.rows.len() > ANSWER_BYTES_MAX / 64 {
            return Err(io::Error::other("the answer is too long").into());
        }
        net::readable(&server.link.stream).await?;
        match net::try_read(&server.link.stream, &mut chunk) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => received.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
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
    use super::row;

    #[test]
    fn rows_are_read_and_malformed_ones_refused() {
        let body = b"\0\x02\0\0\0\x02ab\xff\xff\xff\xff";
        assert_eq!(row(body), Some(vec![Some("ab".to_owned()), None]));
        for end in 0..body.len() - 1 {
            assert_eq!(row(&body[..end]), None, "{end}");
        }
    }
}
