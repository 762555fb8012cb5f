//! The other pgsteer processes of the deployment: found by name, asked who they are, and given the cancel requests of their
//! clients that came here.
//!
//! A process id carries the token of the process that gave it out, so a request goes to the one peer whose it is (or to the few
//! that drew the same token), never to all. A token that nobody is known to have makes everybody be asked anew, one round at a time
//! however many wait for it: keys that are made up cost a round, not a round each.
//!
//! Invariant: only a client's request is passed on, and once to each process, however many addresses that has: a second one could
//! hit the statement after. This process is no peer of itself. Must not know: sessions; keys are never logged.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use super::cancel_keys::Token;
use crate::net;
use crate::topology::model::NodeAddress;
use crate::wire::peer::{self, INTRODUCTION_BYTES, Introduction};

/// Names are resolved, and peers asked, this often without anybody needing it.
const ROUND_INTERVAL: Duration = Duration::from_secs(30);
/// From the beginning of a round to that of the next at least this.
const ROUND_SPACING: Duration = Duration::from_millis(250);
/// A name has so long to be resolved, a peer to answer who it is, and a peer to be connected to.
const PEER_LIMIT: Duration = Duration::from_secs(1);
/// Addresses that names may resolve to; more are left out.
const ADDRESSES_MAX: usize = 256;
/// Requests under way to one peer; further ones wait.
const REQUESTS_MAX: usize = 32;
/// Requests that wait for a peer to be found; further ones come to nothing.
const SEEKING_MAX: usize = 256;

/// A peer that has introduced itself.
#[derive(Debug)]
struct Peer {
    address: SocketAddr,
    token: Token,
    requests: Semaphore,
}

/// Those that have introduced themselves, by identity, and how many rounds there have been.
#[derive(Debug, Default)]
struct Known {
    peers: HashMap<[u8; 16], Arc<Peer>>,
    begun: u64,
    ended: u64,
}

impl Known {
    fn meet(&mut self, address: SocketAddr, introduction: &Introduction) {
        // Whoever had the address before is gone.
        self.peers.retain(|identity, peer| peer.address != address || *identity == introduction.identity);
        if let Entry::Vacant(entry) = self.peers.entry(introduction.identity) {
            let token = Token::from_bytes(introduction.token);
            entry.insert(Arc::new(Peer { address, token, requests: Semaphore::new(REQUESTS_MAX) }));
        }
    }

    fn with_token(&self, token: Token) -> Vec<Arc<Peer>> {
        self.peers.values().filter(|peer| peer.token == token).cloned().collect()
    }
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Forwarded {
    /// A peer has dealt with it.
    Taken,
    /// No peer has that key, or none could be reached.
    Unclaimed,
}

/// All peers.
#[derive(Debug)]
pub(super) struct Peers {
    names: Vec<NodeAddress>,
    own: Introduction,
    known: watch::Sender<Known>,
    wanted: Notify,
    seeking: Semaphore,
}

impl Peers {
    /// The peers behind these names, which are looked for from now on. `own`: this process.
    pub(super) fn new(names: Vec<NodeAddress>, own: Introduction, control: &Handle) -> Arc<Self> {
        let peers = Arc::new(Self::unknown(names, own));
        if !peers.names.is_empty() {
            control.spawn(Arc::clone(&peers).look_around());
        }
        peers
    }

    fn unknown(names: Vec<NodeAddress>, own: Introduction) -> Self {
        let seeking = Semaphore::new(SEEKING_MAX);
        Self { names, own, known: watch::Sender::default(), wanted: Notify::new(), seeking }
    }

    /// This process.
    pub(super) fn own(&self) -> Introduction {
        self.own
    }

    /// Passes a client's request on to the process that gave it its key; returns when that has dealt with it. The caller bounds the
    /// time. Cancel-safe: dropping it may leave the request unsent.
    pub(super) async fn forward(&self, process_id: i32, key: &[u8]) -> Forwarded {
        let packet: Arc<[u8]> = peer::forwarded_cancel(process_id, key).into();
        let mut asking = JoinSet::new();
        for peer in self.owners(Token::of(process_id)).await {
            asking.spawn(deliver(peer, Arc::clone(&packet)));
        }
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok(Ok(Forwarded::Taken)) => return Forwarded::Taken,
                Ok(Err((address, error))) => {
                    tracing::debug!(%address, %error, "cancel request not forwarded")
                }
                Ok(Ok(Forwarded::Unclaimed)) | Err(_) => {}
            }
        }
        Forwarded::Unclaimed
    }

    /// The peers that have this token.
    async fn owners(&self, token: Token) -> Vec<Arc<Peer>> {
        let mut known = self.known.subscribe();
        let (owners, next_round) = {
            let known = known.borrow_and_update();
            (known.with_token(token), known.begun + 1)
        };
        // Its own token is no reason to look for others that have drawn the same.
        let is_found = !owners.is_empty() || token.to_bytes() == self.own.token;
        if is_found || self.names.is_empty() {
            return owners;
        }
        let Ok(_seeking) = self.seeking.try_acquire() else { return Vec::new() };
        self.wanted.notify_one();
        let found = known.wait_for(|known| known.ended >= next_round || !known.with_token(token).is_empty());
        found.await.map(|known| known.with_token(token)).unwrap_or_default()
    }

    async fn look_around(self: Arc<Self>) {
        loop {
            let begun = Instant::now();
            self.round().await;
            tokio::select! {
                () = self.wanted.notified() => {}
                () = sleep(ROUND_INTERVAL) => {}
            }
            sleep_until(begun + ROUND_SPACING).await;
        }
    }

    /// Resolves all names and asks everybody there.
    async fn round(&self) {
        self.known.send_modify(|known| known.begun += 1);
        let (addresses, resolution) = resolve(&self.names).await;
        let mut asking = JoinSet::new();
        for &address in &addresses {
            asking.spawn(async move { (address, timeout(PEER_LIMIT, introduction(address)).await) });
        }
        while let Some(answer) = asking.join_next().await {
            match answer {
                Ok((_, Ok(Ok(introduction)))) if introduction.identity == self.own.identity => {}
                Ok((address, Ok(Ok(introduction)))) => {
                    self.known.send_modify(|known| known.meet(address, &introduction));
                }
                Ok((address, Ok(Err(error)))) => tracing::debug!(%address, %error, "no pgsteer peer there"),
                Ok((address, Err(_))) => tracing::debug!(%address, "peer does not answer"),
                Err(_) => {}
            }
        }
        self.known.send_modify(|known| {
            if resolution == Resolution::Complete {
                known.peers.retain(|_, peer| addresses.contains(&peer.address));
            }
            known.ended += 1;
        });
    }
}

/// Whether every name could be resolved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Resolution {
    Complete,
    Partial,
}

async fn resolve(names: &[NodeAddress]) -> (Vec<SocketAddr>, Resolution) {
    let mut looking = JoinSet::new();
    for name in names.iter().cloned() {
        looking.spawn(async move {
            let found = tokio::net::lookup_host((name.host.as_str(), name.port));
            let found =
                timeout(PEER_LIMIT, found).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
            found.map(Vec::from_iter).map_err(|error| (name, error))
        });
    }
    let (mut addresses, mut resolution) = (Vec::new(), Resolution::Complete);
    while let Some(found) = looking.join_next().await {
        match found {
            Ok(Ok(found)) => addresses.extend(found),
            Ok(Err((name, error))) => {
                tracing::debug!(%name, %error, "peer name not resolved");
                resolution = Resolution::Partial;
            }
            Err(_) => resolution = Resolution::Partial,
        }
    }
    addresses.sort_unstable();
    addresses.dedup();
    addresses.truncate(ADDRESSES_MAX);
    (addresses, resolution)
}

async fn introduction(address: SocketAddr) -> io::Result<Introduction> {
    let mut stream = net::connect(&address.ip().to_string(), address.port(), PEER_LIMIT).await?;
    net::write_all(&stream, &peer::hello()).await?;
    let mut answer = [0; INTRODUCTION_BYTES];
    stream.read_exact(&mut answer).await?;
    Introduction::decode(&answer).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

async fn deliver(peer: Arc<Peer>, packet: Arc<[u8]>) -> Result<Forwarded, (SocketAddr, io::Error)> {
    // Never closed.
    let Ok(_request) = peer.requests.acquire().await else { return Ok(Forwarded::Unclaimed) };
    let answer = async {
        let mut stream =
            net::connect(&peer.address.ip().to_string(), peer.address.port(), PEER_LIMIT).await?;
        net::write_all(&stream, &packet).await?;
        let mut answer = [0; 1];
        stream.read_exact(&mut answer).await?;
        Ok(if answer == peer::TAKEN { Forwarded::Taken } else { Forwarded::Unclaimed })
    };
    answer.await.map_err(|error| (peer.address, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn introduced(identity: u8, token: u8) -> Introduction {
        Introduction { token: [0, token], identity: [identity; 16] }
    }

    fn at(port: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], port))
    }

    fn addresses(known: &Known, token: u8) -> Vec<u16> {
        let mut ports: Vec<u16> =
            known.with_token(Token::from_bytes([0, token])).iter().map(|peer| peer.address.port()).collect();
        ports.sort_unstable();
        ports
    }

    /// One process at two addresses gets a request once; two processes with one token get it both.
    #[test]
    fn a_process_is_known_once() {
        let mut known = Known::default();
        known.meet(at(1), &introduced(1, 7));
        known.meet(at(2), &introduced(1, 7));
        assert_eq!(addresses(&known, 7), [1]);
        known.meet(at(3), &introduced(2, 7));
        assert_eq!(addresses(&known, 7), [1, 3]);
    }

    #[test]
    fn a_new_process_at_an_address_takes_the_place_of_the_old() {
        let mut known = Known::default();
        known.meet(at(1), &introduced(1, 7));
        known.meet(at(1), &introduced(2, 8));
        assert_eq!(addresses(&known, 7), [0; 0]);
        assert_eq!(addresses(&known, 8), [1]);
    }

    /// It may stand behind the name that it is given for its peers.
    #[tokio::test]
    async fn this_process_is_no_peer_of_itself() {
        let listener = tokio::net::TcpListener::bind(at(0)).await.unwrap();
        let name = NodeAddress { host: "127.0.0.1".to_owned(), port: listener.local_addr().unwrap().port() };
        let answer = |introduction: Introduction| {
            let listener = &listener;
            async move {
                let (stream, _) = listener.accept().await.unwrap();
                net::write_all(&stream, &introduction.encode()).await.unwrap();
            }
        };
        for (met, count) in [(introduced(1, 7), 0), (introduced(2, 7), 1)] {
            let peers = Peers::unknown(vec![name.clone()], introduced(1, 7));
            tokio::join!(peers.round(), answer(met));
            assert_eq!(peers.known.borrow().peers.len(), count);
        }
    }

    /// C05: with nobody to ask, nothing is waited for.
    #[tokio::test]
    async fn without_peers_a_request_is_unclaimed_at_once() {
        let peers = Peers::new(Vec::new(), introduced(1, 7), &Handle::current());
        assert_eq!(peers.forward(1 << 20, b"four").await, Forwarded::Unclaimed);
    }
}
