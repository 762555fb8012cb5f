//! A logged-in server connection and what it carries from one lease to the next.
//!
//! Invariant: `prepared` and `settings` say what is on the server side of this connection, nothing more, nothing less; who
//! can't keep that up closes the connection instead. Must not know: pools, sessions.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::carried::Carried;
use super::login::{Action, Asks, Greeting, Login, LoginError, startup_message};
use super::reported::Reported;
use super::senders::Sender;
use crate::auth::{RoleOid, Secret};
use crate::net;
use crate::topology::model::{Epoch, Incarnation, NodeAddress, NodeId};
use crate::wire::frame;

/// Login traffic is small; a server that sends more than this before ReadyForQuery is not PostgreSQL.
const LOGIN_BYTES_MAX: usize = 64 * 1024;

/// Where and as whom to connect.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// The node.
    pub node: NodeId,
    /// Its address.
    pub address: Arc<NodeAddress>,
    /// The epoch in which the connection is opened.
    pub epoch: Epoch,
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// How to prove it, where the server asks.
    pub secret: Option<Secret<'static>>,
    /// Further startup parameters.
    pub parameters: Vec<(String, String)>,
    /// What is asked behind the login.
    pub asks: Asks,
    /// Bound of connecting and logging in together.
    pub timeout: Duration,
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The network or the server process.
    #[error("cannot reach the server: {0}")]
    Io(#[from] io::Error),
    /// The server's answer.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// It took too long.
    #[error("the server did not complete the login in time")]
    TimedOut,
}

/// What a CancelRequest for a server connection needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CancelKey {
    /// The node.
    pub node: NodeId,
    /// The server's process id.
    pub process_id: i32,
    /// The server's secret key.
    pub key: Vec<u8>,
}

/// The part of a server connection that fencing looks at, whoever holds the rest. Others hold weak references only.
#[derive(Debug)]
pub struct Link {
    /// The socket.
    pub stream: TcpStream,
    /// The node.
    pub node: NodeId,
    /// The epoch in which it was opened, or last confirmed to lead to the primary.
    pub epoch: Cell<Epoch>,
}

/// A server connection.
#[derive(Debug)]
pub struct Server {
    /// Socket, node and epoch.
    pub link: Rc<Link>,
    /// For CancelRequest.
    pub cancel_key: Rc<CancelKey>,
    /// The server last reported `in_hot_standby = on`. Stale on a promoted node until the next command there.
    pub in_hot_standby: bool,
    /// The role that the user was when the server let it in, if the server told.
    pub role: Option<RoleOid>,
    /// Which server that is, where it was asked behind the login.
    pub incarnation: Option<Incarnation>,
    /// What its pool counted when it was opened: see `PoolShared::generation`.
    pub generation: u64,
    /// When it was opened.
    pub opened_at: Instant,
    /// When it was last given back.
    pub idle_since: Instant,
    /// Prepared statements there.
    pub carried: Carried,
    /// What it last reported.
    pub reported: Reported,
    /// The last session that may have written here, by its number over all shards: what sequences gave last was given to it.
    pub last_writer: Option<u64>,
    /// Where it says for which client it works: from the first time on that it does something that may send a notification.
    pub sender: Option<Sender>,
    /// The session that may have left here what the server does not list (settings with a prefix, what sequences gave), by its
    /// number over all shards: before another one runs anything it must all be reset (`reset::EVERY_SETTING`).
    pub left_by: Option<u64>,
    /// Those of its startup packet, to which a RESET goes back there: none, for all that a pool keeps.
    pub defaults: Rc<SettingValues>,
    /// The settings it has been brought to.
    pub applied: Rc<SettingValues>,
}

/// Settings of a session that differ from what the server would have by itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SettingValues {
    /// Identity, unique over shards; 0 for none.
    pub id: u64,
    /// Name, in lower case, and value; sorted by name.
    pub pairs: Vec<(String, String)>,
}

impl Server {
    /// Whether nothing has come in since the last answer: an idle server that talks is closing or confused.
    /// Costs no system call when nothing has happened on the socket.
    pub fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        matches!(self.link.stream.try_read(&mut byte), Err(error) if error.kind() == io::ErrorKind::WouldBlock)
    }

    /// Says goodbye, best effort, before the connection is dropped.
    pub fn terminate(&self) {
        // The server sees the closed socket anyway.
        let _ = self.link.stream.try_write(crate::wire::reply::TERMINATE);
    }
}

/// Connects and logs in; gives the connection and what the server said. Cancel-safe: dropping it closes the socket.
pub async fn open(endpoint: Endpoint, nonce: String) -> Result<(Box<Server>, Greeting), ConnectError> {
    let timeout = endpoint.timeout;
    tokio::time::timeout(timeout, open_unbounded(endpoint, nonce))
        .await
        .map_err(|_| ConnectError::TimedOut)?
}

async fn open_unbounded(endpoint: Endpoint, nonce: String) -> Result<(Box<Server>, Greeting), ConnectError> {
    let stream = net::connect(&endpoint.address.host, endpoint.address.port, endpoint.timeout).await?;
    let startup = startup_message(&endpoint.user, &endpoint.database, &endpoint.parameters);
    let greeting = log_in(&stream, &startup, Login::new(endpoint.secret, nonce, endpoint.asks)).await?;
    let now = Instant::now();
    let in_hot_standby =
        greeting.parameters.iter().any(|(name, value)| name == "in_hot_standby" && value == "on");
    let server = Box::new(Server {
        link: Rc::new(Link { stream, node: endpoint.node, epoch: Cell::new(endpoint.epoch) }),
        cancel_key: Rc::new(CancelKey {
            node: endpoint.node,
            process_id: greeting.process_id,
            key: greeting.key.clone(),
        }),
        in_hot_standby,
        role: greeting.role,
        incarnation: greeting.incarnation,
        generation: 0,
        opened_at: now,
        idle_since: now,
        carried: Carried::default(),
        reported: Reported::new(greeting.parameters.clone()),
        last_writer: None,
        sender: None,
        left_by: None,
        defaults: Rc::default(),
        applied: Rc::default(),
    });
    Ok((server, greeting))
}

/// Logs in on a fresh stream. Nothing may come behind the greeting by itself. Cancel-safe: the stream is of no further use then.
pub(super) async fn log_in(
    stream: &TcpStream,
    startup: &[u8],
    mut login: Login<'_>,
) -> Result<Greeting, ConnectError> {
    net::write_all(stream, startup).await?;
    let mut received: Vec<u8> = Vec::with_capacity(1024);
    let mut chunk = vec![0u8; 4096];
    loop {
        while let Some(header) = frame::header(&received).map_err(|_| LoginError::Malformed)? {
            let Some(body) = received.get(frame::HEADER_BYTES..header.frame_bytes) else { break };
            let action = login.on(header.kind, body)?;
            received.drain(..header.frame_bytes);
            match action {
                Action::Send(bytes) => net::write_all(stream, &bytes).await?,
                Action::Wait => {}
                Action::Done(greeting) => return Ok(greeting),
            }
        }
        if received.len() > LOGIN_BYTES_MAX {
            return Err(LoginError::Malformed.into());
        }
        stream.readable().await?;
        match stream.try_read(&mut chunk) {
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into()),
            Ok(count) => received.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
    }
}
