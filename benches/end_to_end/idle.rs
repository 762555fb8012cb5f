//! Memory that an idle client costs a peer.
//!
//! Must not know: other figures.

use std::time::Duration;

use anyhow::Context as _;

use crate::load::Protocol;
use crate::peers::{Peer, Site};
use crate::process::anonymous_bytes;
use crate::wire::Connection;

/// After this the peer has nothing left to do for the clients, and its memory stands still.
const SETTLE: Duration = Duration::from_secs(1);

/// Growth of the process's own memory for each idle client, bytes.
#[derive(Debug, Clone, Copy)]
pub struct Growth {
    /// The clients have logged in.
    pub logged_in: f64,
    /// Each has run one query as well.
    pub after_query: f64,
}

/// Opens idle clients and looks at the process's memory before and after.
pub fn memory(site: &Site, peer: &Peer, clients: usize) -> anyhow::Result<Growth> {
    let pid = peer.pid().context("there is no process")?;
    let open = || Connection::open(peer.address, site.user, peer.database(Protocol::Simple));
    let clients_f = clients as f64;
    // The first client pays for what all share.
    open()?.query("SELECT 1")?;
    let growth_since = |before: u64| -> anyhow::Result<f64> {
        std::thread::sleep(SETTLE);
        Ok((anonymous_bytes(pid)? as f64 - before as f64) / clients_f)
    };
    std::thread::sleep(SETTLE);
    let before = anonymous_bytes(pid)?;
    let mut open_clients = Vec::with_capacity(clients);
    for number in 0..clients {
        open_clients.push(open().with_context(|| format!("client {number}"))?);
    }
    let logged_in = growth_since(before)?;
    for client in &mut open_clients {
        client.query("SELECT 1")?;
    }
    Ok(Growth { logged_in, after_query: growth_since(before)? })
}
