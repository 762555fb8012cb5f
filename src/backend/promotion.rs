//! A physical replication connection to a standby, as a machine without I/O: it is told of a promotion at its moment.
//!
//! Invariant: WAL that comes is thrown away, and not acknowledged as flushed, so that nobody's commit ever counts this client as
//! one that has it; all that is kept of the stream is a position. Must not know: sockets, clocks.
//! Source: "Streaming Replication Protocol". The server ends the stream by CopyDone where the timeline that it sends has
//! ended, and then says which one follows and from where.

use crate::topology::model::{Lsn, Timeline};
use crate::wire::frame;
use crate::wire::reply;
use crate::wire::sqlstate::SqlState;

/// A frame of which so much is there can be taken; all but those of WAL are smaller.
pub const PART_BYTES: usize = 8 * 1024;

/// Body bytes of a keepalive.
const KEEPALIVE_BYTES: usize = 1 + 8 + 8 + 1;

/// What the server told of a promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// The timeline that begins.
    pub timeline: Timeline,
    /// Where it begins.
    pub switch_lsn: Lsn,
}

/// What to do next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Send these bytes.
    Send(Vec<u8>),
    /// Read on.
    Wait,
    /// The timeline has ended: send these bytes. What follows it comes next.
    Ended(Vec<u8>),
    /// That is all.
    Done(Option<Promotion>),
}

/// Why there is no stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// The server says no.
    #[error("{message} (SQLSTATE {code})")]
    Refused {
        /// SQLSTATE.
        code: SqlState,
        /// The server's text.
        message: String,
    },
    /// Not the protocol.
    #[error("the server sent something that is not part of a replication stream")]
    Malformed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Asked,
    Known { timeline: Timeline, position: Lsn },
    Begun,
    Streaming,
    Over(Option<Promotion>),
}

/// The stream, from behind the login to its end.
#[derive(Debug)]
pub struct Stream {
    state: State,
    received: Lsn,
}

impl Stream {
    /// A stream, and what to send first.
    pub fn begin() -> (Self, Vec<u8>) {
        let mut out = Vec::new();
        reply::put_query(&mut out, "IDENTIFY_SYSTEM");
        (Self { state: State::Asked, received: Lsn(0) }, out)
    }

    /// Takes one message; of one with WAL its beginning will do. `body_bytes`: how long its body is in all.
    ///
    /// # Errors
    /// The server refuses, or does not speak the protocol.
    pub fn on(&mut self, kind: u8, body: &[u8], body_bytes: usize) -> Result<Action, StreamError> {
        match (self.state, kind) {
            (_, b'E') => {
                let code = reply::error_fields(body).code;
                Err(StreamError::Refused { code, message: reply::error_message(body) })
            }
            (_, b'N' | b'S') | (State::Asked, b'T' | b'C') | (State::Over(_), b'T' | b'C') => {
                Ok(Action::Wait)
            }
            (State::Asked, b'D') => {
                let timeline = value(body, 1).and_then(|it| it.parse().ok()).map(Timeline);
                let position = value(body, 2).and_then(|it| it.parse().ok());
                let (timeline, position) = timeline.zip(position).ok_or(StreamError::Malformed)?;
                self.state = State::Known { timeline, position };
                Ok(Action::Wait)
            }
            (State::Known { .. }, b'C') => Ok(Action::Wait),
            (State::Known { timeline, position }, b'Z') => {
                self.received = position;
                self.state = State::Begun;
                let mut out = Vec::new();
                let command = format!("START_REPLICATION PHYSICAL {position} TIMELINE {timeline}");
                reply::put_query(&mut out, &command);
                Ok(Action::Send(out))
            }
            (State::Begun, b'W') => {
                self.state = State::Streaming;
                Ok(Action::Wait)
            }
            (State::Streaming, b'd') => self.data(body, body_bytes),
            // A timeline that had ended before the stream began has nothing to stream.
            (State::Begun, b'T') => {
                self.state = State::Over(None);
                Ok(Action::Wait)
            }
            (State::Streaming, b'c') => {
                self.state = State::Over(None);
                let mut out = Vec::new();
                frame::put(&mut out, b'c', &[]);
                Ok(Action::Ended(out))
            }
            (State::Over(_), b'D') => {
                let timeline = value(body, 0).and_then(|it| it.parse().ok()).map(Timeline);
                let switch_lsn = value(body, 1).and_then(|it| it.parse().ok());
                let told = timeline.zip(switch_lsn);
                self.state =
                    State::Over(told.map(|(timeline, switch_lsn)| Promotion { timeline, switch_lsn }));
                Ok(Action::Wait)
            }
            (State::Over(told), b'Z') => Ok(Action::Done(told)),
            _ => Err(StreamError::Malformed),
        }
    }

    fn data(&mut self, body: &[u8], body_bytes: usize) -> Result<Action, StreamError> {
        let position = body.get(1..9).and_then(|it| it.try_into().ok()).map(u64::from_be_bytes);
        match (body.first(), position) {
            (Some(b'w'), Some(start)) => {
                let wal = body_bytes.saturating_sub(1 + 8 + 8 + 8);
                self.received = self.received.max(Lsn(start.saturating_add(wal as u64)));
                Ok(Action::Wait)
            }
            (Some(b'k'), Some(end)) if body_bytes == KEEPALIVE_BYTES => {
                self.received = self.received.max(Lsn(end));
                let wants_reply = body.last() == Some(&1);
                Ok(if wants_reply { Action::Send(self.status()) } else { Action::Wait })
            }
            _ => Err(StreamError::Malformed),
        }
    }

    /// Written up to here, which a server that shuts down waits for; nothing flushed, which a commit might wait for.
    fn status(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let nothing = [0; 8];
        frame::put(
            &mut out,
            b'd',
            &[b"r", &self.received.0.to_be_bytes(), &nothing, &nothing, &nothing, b"\0"],
        );
        out
    }
}

/// A column of a DataRow.
fn value(body: &[u8], column: usize) -> Option<&str> {
    let (_, mut rest) = body.split_first_chunk::<2>()?;
    for index in 0.. {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(i32::from_be_bytes(*length)).unwrap_or(0);
        let value = behind.get(..length)?;
        if index == column {
            return std::str::from_utf8(value).ok();
        }
        rest = behind.get(length..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(values: &[&str]) -> Vec<u8> {
        let mut body = u16::try_from(values.len()).unwrap().to_be_bytes().to_vec();
        for value in values {
            body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
            body.extend_from_slice(value.as_bytes());
        }
        body
    }

    fn take(stream: &mut Stream, kind: u8, body: &[u8]) -> Action {
        stream.on(kind, body, body.len()).unwrap()
    }

    fn streaming() -> Stream {
        let (mut stream, first) = Stream::begin();
        assert_eq!(first, b"Q\0\0\0\x14IDENTIFY_SYSTEM\0");
        assert_eq!(take(&mut stream, b'T', b""), Action::Wait);
        take(&mut stream, b'D', &row(&["7123", "3", "0/5000060", ""]));
        take(&mut stream, b'C', b"IDENTIFY_SYSTEM\0");
        let Action::Send(start) = take(&mut stream, b'Z', b"I") else { panic!("nothing is sent") };
        assert_eq!(&start[5..], b"START_REPLICATION PHYSICAL 0/5000060 TIMELINE 3\0");
        assert_eq!(take(&mut stream, b'W', b"\0\0\0"), Action::Wait);
        stream
    }

    #[test]
    fn the_end_of_the_timeline_is_the_promotion() {
        let mut stream = streaming();
        assert_eq!(take(&mut stream, b'c', b""), Action::Ended(b"c\0\0\0\x04".to_vec()));
        take(&mut stream, b'T', b"");
        take(&mut stream, b'D', &row(&["4", "0/6000000"]));
        take(&mut stream, b'C', b"START_STREAMING\0");
        take(&mut stream, b'C', b"START_REPLICATION\0");
        take(&mut stream, b'S', b"in_hot_standby\0off\0");
        let promotion = Promotion { timeline: Timeline(4), switch_lsn: Lsn(0x600_0000) };
        assert_eq!(take(&mut stream, b'Z', b"I"), Action::Done(Some(promotion)));
    }

    /// Whoever acknowledged a flush would be counted as a synchronous standby.
    #[test]
    fn nothing_is_said_to_be_flushed() {
        let mut stream = streaming();
        let mut wal = vec![b'w'];
        wal.extend_from_slice(&0x500_0060u64.to_be_bytes());
        wal.resize(25, 0);
        // The WAL itself, 131,072 bytes, is not here.
        assert_eq!(stream.on(b'd', &wal, 25 + 0x2_0000), Ok(Action::Wait));
        let mut keepalive = vec![b'k'];
        keepalive.extend_from_slice(&0x500_0060u64.to_be_bytes());
        keepalive.resize(17, 0);
        keepalive.push(1);
        let Action::Send(status) = take(&mut stream, b'd', &keepalive) else { panic!("nothing is sent") };
        let mut expected = b"d\0\0\0\x26r".to_vec();
        expected.extend_from_slice(&0x502_0060u64.to_be_bytes());
        expected.resize(expected.len() + 8 + 8 + 8 + 1, 0);
        assert_eq!(status, expected);
    }

    #[test]
    fn what_is_not_the_protocol_does_no_harm() {
        for kind in 0..=u8::MAX {
            for body in
                [&b""[..], b"\0", b"\0\x05\0\0\0\x01", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
            {
                let (mut asked, _) = Stream::begin();
                let _ = asked.on(kind, body, body.len());
                let _ = streaming().on(kind, body, usize::MAX);
            }
        }
    }
}
