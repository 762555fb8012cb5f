//! Watches a standby over a replication connection until it is promoted.
//!
//! Invariant: bounded in memory, and in the WAL that it has the standby send; every wait but that for the promotion has a limit.
//! Must not know: what a promotion means, other nodes.

use std::time::Duration;

use tokio::net::TcpStream;

use super::ConnectError;
use super::connection::log_in;
use super::login::{Asks, Login, startup_message};
use super::promotion::{Action, PART_BYTES, Promotion, Stream, StreamError};
use crate::auth::Secret;
use crate::net;
use crate::topology::model::NodeAddress;
use crate::wire::frame;

/// Where so much WAL flows the primary is not gone, and its standbys are not about to be promoted.
const WAL_BYTES_MAX: usize = 64 * 1024 * 1024;

/// The server says what follows the timeline within this time.
const LAST_WORDS_LIMIT: Duration = Duration::from_millis(250);

/// Why a standby is not watched.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// It can't be reached, or does not let the role in.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It does not stream.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// More WAL flows than is worth it.
    #[error("the standby sends WAL without end, so the primary lives")]
    WalFlows,
}

/// How a watch ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// The node is promoted now; what it told of that, if it did.
    Promoted(Option<Promotion>),
    /// It was not in recovery when it was asked.
    OutOfRecovery,
}

/// Waits until the standby is promoted. `promoted` is called at that moment, before the server has said which timeline follows.
///
/// Cancel-safe: dropping it closes the connection.
///
/// # Errors
/// It can't be watched, or not any longer.
pub async fn watch(
    address: &NodeAddress,
    (user, password): (&str, Option<&str>),
    nonce: String,
    connect_timeout: Duration,
    promoted: impl FnOnce() + Send,
) -> Result<Watched, WatchError> {
    let opening = open(address, (user, password), nonce, connect_timeout);
    let (stream, is_standby) =
        tokio::time::timeout(connect_timeout, opening).await.map_err(|_| ConnectError::TimedOut)??;
    if !is_standby {
        return Ok(Watched::OutOfRecovery);
    }
    let (watch, first) = Stream::begin();
    net::write_all(&stream, &first).await.map_err(ConnectError::from)?;
    let mut reading = Reading { stream, watch, received: Vec::with_capacity(PART_BYTES), skip: 0, taken: 0 };
    match reading.next_event().await? {
        Action::Ended(bytes) => {
            promoted();
            // What the server still has to say is worth little: the probe asks for it, too.
            let rest = async {
                net::write_all(&reading.stream, &bytes).await.map_err(ConnectError::from)?;
                reading.next_event().await
            };
            match tokio::time::timeout(LAST_WORDS_LIMIT, rest).await {
                Ok(Ok(Action::Done(told))) => Ok(Watched::Promoted(told)),
                _ => Ok(Watched::Promoted(None)),
            }
        }
        Action::Done(told) => {
            promoted();
            Ok(Watched::Promoted(told))
        }
        Action::Send(_) | Action::Wait => Err(StreamError::Malformed.into()),
    }
}

/// Logs in for replication; whether the server says that it is in recovery (before 14 it does not say).
async fn open(
    address: &NodeAddress,
    (user, password): (&str, Option<&str>),
    nonce: String,
    connect_timeout: Duration,
) -> Result<(TcpStream, bool), ConnectError> {
    let parameters = [("replication", "true"), ("application_name", "pgsteer_watch")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let stream = net::connect(&address.host, address.port, connect_timeout).await?;
    let startup = startup_message(user, "replication", &parameters);
    let login = Login::new(password.map(Secret::Password), nonce, Asks::Nothing);
    let greeting = log_in(&stream, &startup, login).await?;
    let is_standby =
        !greeting.parameters.iter().any(|(name, value)| name == "in_hot_standby" && value == "off");
    Ok((stream, is_standby))
}

/// The bytes of the stream, cut into messages.
struct Reading {
    stream: TcpStream,
    watch: Stream,
    received: Vec<u8>,
    /// Bytes of WAL that are still to be thrown away.
    skip: usize,
    /// Bytes that have come.
    taken: usize,
}

impl Reading {
    /// Goes on to the end of the timeline, or of the stream.
    async fn next_event(&mut self) -> Result<Action, WatchError> {
        loop {
            while let Some(action) = self.step()? {
                match action {
                    Action::Send(bytes) => {
                        net::write_all(&self.stream, &bytes).await.map_err(ConnectError::from)?;
                    }
                    Action::Wait => {}
                    Action::Ended(_) | Action::Done(_) => return Ok(action),
                }
            }
            if self.taken > WAL_BYTES_MAX {
                return Err(WatchError::WalFlows);
            }
            self.read().await.map_err(ConnectError::from)?;
        }
    }

    /// The next message, if enough of it is there.
    fn step(&mut self) -> Result<Option<Action>, StreamError> {
        let thrown = self.skip.min(self.received.len());
        self.received.drain(..thrown);
        self.skip -= thrown;
        let Some(header) = frame::header(&self.received).map_err(|_| StreamError::Malformed)? else {
            return Ok(None);
        };
        let here = header.frame_bytes.min(PART_BYTES);
        if header.frame_bytes > PART_BYTES && header.kind != b'd' {
            return Err(StreamError::Malformed);
        }
        let Some(body) = self.received.get(frame::HEADER_BYTES..here) else { return Ok(None) };
        let action = self.watch.on(header.kind, body, header.frame_bytes - frame::HEADER_BYTES)?;
        self.received.drain(..here);
        self.skip = header.frame_bytes - here;
        Ok(Some(action))
    }

    async fn read(&mut self) -> std::io::Result<()> {
        let mut chunk = [0; PART_BYTES];
        loop {
            self.stream.readable().await?;
            match self.stream.try_read(&mut chunk) {
                Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    self.taken += count;
                    self.received.extend_from_slice(chunk.get(..count).unwrap_or_default());
                    return Ok(());
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }
}
