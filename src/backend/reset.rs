//! Commands of pgsteer's own on a server connection between two sessions: `DISCARD ALL`, and settings.
//!
//! Invariant: after `Ok` every command was carried out and the connection is idle outside of a transaction. Must not know:
//! pools, sessions.

use std::io;

use super::connection::{Carried, Server};
use crate::net;
use crate::relay::answer::{Answer, Event, Expect};
use crate::wire::reply::{self, TransactionStatus};

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
    server.settings = 0;
    server.applied.clear();
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
