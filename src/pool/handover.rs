//! A server connection on its way from one shard to another.
//!
//! Invariant: epoch, cancel key and applied settings go with the socket; prepared statements are forgotten. Their names carry
//! the shard that made them, so they cannot be mistaken for others. Must not know: limits, waiters.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Instant;

use tokio::net::TcpStream;

use crate::auth::RoleOid;
use crate::backend::carried::Carried;
use crate::backend::connection::{CancelKey, Link};
use crate::backend::senders::Sender;
use crate::backend::{Reported, Server, SettingValues};
use crate::topology::model::{Epoch, NodeId};

/// A server connection, taken apart.
#[derive(Debug)]
pub struct Parts {
    stream: std::net::TcpStream,
    epoch: Epoch,
    cancel_key: CancelKey,
    in_hot_standby: bool,
    role: Option<RoleOid>,
    generation: u64,
    opened_at: Instant,
    reported: Vec<(String, String)>,
    last_writer: Option<u64>,
    sender: Option<Sender>,
    left_by: Option<u64>,
    applied: SettingValues,
}

/// `None` where somebody else still holds the connection, too.
pub(super) fn take_apart(server: Server) -> Option<Parts> {
    let link = Rc::try_unwrap(server.link).ok()?;
    Some(Parts {
        stream: link.stream.into_std().ok()?,
        epoch: link.epoch.get(),
        cancel_key: (*server.cancel_key).clone(),
        in_hot_standby: server.in_hot_standby,
        role: server.role,
        generation: server.generation,
        opened_at: server.opened_at,
        reported: server.reported.pairs().to_vec(),
        last_writer: server.last_writer,
        sender: server.sender,
        left_by: server.left_by,
        applied: (*server.applied).clone(),
    })
}

pub(super) fn assemble(parts: Parts, node: NodeId) -> std::io::Result<Box<Server>> {
    let stream = TcpStream::from_std(parts.stream)?;
    Ok(Box::new(Server {
        link: Rc::new(Link { stream, node, epoch: Cell::new(parts.epoch) }),
        cancel_key: Rc::new(parts.cancel_key),
        in_hot_standby: parts.in_hot_standby,
        role: parts.role,
        // Only asked before it belongs to a pool.
        incarnation: None,
        generation: parts.generation,
        opened_at: parts.opened_at,
        reported: Reported::new(parts.reported),
        idle_since: Instant::now(),
        carried: Carried::default(),
        last_writer: parts.last_writer,
        sender: parts.sender,
        left_by: parts.left_by,
        // One with its own belongs to one session, and is not handed over.
        defaults: Rc::default(),
        applied: Rc::new(parts.applied),
    }))
}
