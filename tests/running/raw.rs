//! A client that speaks raw frames: messages to the server made by hand, and what comes back looked into.
//!
//! Must not know: what is tested.

use std::fmt::Debug;

use pgsteer::sandbox::Node;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::in_time;

pub const PROTOCOL_3_0: i32 = 196_608;
pub const PROTOCOL_3_2: i32 = 196_610;
pub const CANCEL_REQUEST: i32 = 80_877_102;

/// One message from the proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type byte.
    pub kind: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

impl Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{:?}", char::from(self.kind), String::from_utf8_lossy(&self.body))
    }
}

impl Message {
    /// A field of an error or a notice.
    pub fn field(&self, code: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// Its SQLSTATE.
    pub fn sqlstate(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The first column of a row.
    pub fn value(&self) -> String {
        assert_eq!(self.kind, b'D', "{self:?}");
        let length = i32::from_be_bytes(self.body[2..6].try_into().unwrap());
        String::from_utf8_lossy(&self.body[6..6 + usize::try_from(length).unwrap()]).into_owned()
    }
}

/// A message to the server.
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// A message without type byte.
pub fn startup_frame(code: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes()[..], body].concat()
}

/// StartupMessage.
pub fn startup(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend_from_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    startup_frame(version, &body)
}

/// Query.
pub fn query(text: &str) -> Vec<u8> {
    frame(b'Q', &[text.as_bytes(), b"\0"].concat())
}

/// Parse without parameter types.
pub fn parse(name: &str, text: &str) -> Vec<u8> {
    frame(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat())
}

/// Bind of text values, all results as text.
pub fn bind(portal: &str, name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0"].concat();
    body.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    frame(b'B', &body)
}

/// Execute without a row limit.
pub fn execute(portal: &str) -> Vec<u8> {
    frame(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"].concat())
}

/// Describe of a statement (`S`) or a portal (`P`).
pub fn describe(kind: u8, name: &str) -> Vec<u8> {
    frame(b'D', &[&[kind], name.as_bytes(), b"\0"].concat())
}

/// Close of a statement.
pub fn close(name: &str) -> Vec<u8> {
    frame(b'C', &[b"S", name.as_bytes(), b"\0"].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    frame(b'H', b"")
}

/// A client whose messages are made by hand.
pub struct RawClient {
    /// The connection.
    pub stream: TcpStream,
}

impl RawClient {
    /// A client of the server itself, logged in as superuser where all are trusted: what PostgreSQL says.
    pub async fn direct(node: &Node) -> Self {
        let mut raw = Self { stream: TcpStream::connect(node.address()).await.unwrap() };
        raw.log_in("postgres", "postgres").await;
        raw
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        in_time("sending", self.stream.write_all(bytes)).await.unwrap();
    }

    /// The same; whether the connection took them.
    pub async fn try_send(&mut self, bytes: &[u8]) -> bool {
        in_time("sending", self.stream.write_all(bytes)).await.is_ok()
    }

    /// One byte, such as the answer to SSLRequest.
    pub async fn read_byte(&mut self) -> u8 {
        in_time("one byte", self.stream.read_u8()).await.unwrap()
    }

    /// The next message, or `None` at the end of the connection.
    pub async fn try_read(&mut self) -> Option<Message> {
        in_time("a message", async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some(Message { kind, body })
        })
        .await
    }

    /// The next message.
    pub async fn read(&mut self) -> Message {
        self.try_read().await.expect("the connection is open")
    }

    /// All messages up to and with one of this kind.
    pub async fn read_until(&mut self, kind: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let Some(message) = self.try_read().await else {
                panic!("the connection has ended behind {messages:?}")
            };
            let last = message.kind == kind;
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// All messages up to the end of the connection.
    pub async fn read_to_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_read().await {
            messages.push(message);
        }
        messages
    }

    /// Logs in where all are trusted; gives what came before ReadyForQuery.
    pub async fn log_in(&mut self, user: &str, db: &str) -> Vec<Message> {
        self.log_in_with(&[("user", user), ("database", db)]).await
    }

    /// The same with any parameters.
    pub async fn log_in_with(&mut self, parameters: &[(&str, &str)]) -> Vec<Message> {
        self.send(&startup(PROTOCOL_3_0, parameters)).await;
        let messages = self.read_until(b'Z').await;
        assert_eq!(messages[0].kind, b'R', "{messages:?}");
        messages
    }

    /// Runs a simple query; all of its answer.
    pub async fn query(&mut self, text: &str) -> Vec<Message> {
        self.send(&query(text)).await;
        self.read_until(b'Z').await
    }

    /// Sends messages that end with one Sync; all of the answer.
    pub async fn extended(&mut self, messages: &[Vec<u8>]) -> Vec<Message> {
        self.send(&messages.concat()).await;
        self.send(&sync()).await;
        self.read_until(b'Z').await
    }
}

/// The kinds of messages, as a word.
pub fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.kind)).collect()
}

/// The first column of all rows.
pub fn values(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.kind == b'D').map(Message::value).collect()
}

/// The SQLSTATEs of all errors.
pub fn errors(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.kind == b'E').map(Message::sqlstate).collect()
}

/// Nothing of it is an error.
pub fn no_errors(messages: &[Message]) {
    assert_eq!(errors(messages), [""; 0], "{messages:?}");
}

/// The transaction status at the end of an answer.
pub fn status(answer: &[Message]) -> char {
    char::from(answer.last().unwrap().body[0])
}

/// The tag of the first statement that was completed.
pub fn tag(answer: &[Message]) -> String {
    let complete = answer.iter().find(|message| message.kind == b'C');
    complete
        .map(|message| String::from_utf8_lossy(&message.body).trim_end_matches('\0').to_owned())
        .unwrap_or_default()
}

/// Runs a simple query, which must succeed; all of its answer.
pub async fn run(client: &mut RawClient, sql: &str) -> Vec<Message> {
    let answer = client.query(sql).await;
    assert_eq!(errors(&answer), [""; 0], "{sql}: {answer:?}");
    answer
}

/// The one value that it gives, or the last.
pub async fn value(client: &mut RawClient, sql: &str) -> String {
    values(&run(client, sql).await).pop().unwrap()
}
