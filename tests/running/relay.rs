//! A TCP relay between a proxy and a node, which a test makes fail: connections that are cut at any byte, refused ones,
//! and links on which nothing comes through while all sockets stay open. Its address may move to another node.
//!
//! Invariant: bytes pass in order and unchanged. What a silent link holds back comes through once it speaks again, as long as
//! the connection lives. Must not know: what the bytes mean, and what is tested.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

/// What passes through a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Link {
    /// Everything.
    Open,
    /// Nothing, in neither direction; connections stay open, and new ones are accepted.
    Silent,
    /// What comes from the node only: it hears nothing.
    Deaf,
    /// What goes to the node only: its answers are lost on the way.
    Mute,
    /// No connection: those that are there are reset, and new ones at once.
    Refused,
}

impl Link {
    fn lets(self, direction: Direction) -> bool {
        match self {
            Self::Open => true,
            Self::Silent | Self::Refused => false,
            Self::Deaf => direction == Direction::FromNode,
            Self::Mute => direction == Direction::ToNode,
        }
    }
}

/// A direction of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ToNode,
    FromNode,
}

/// How a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// With RST: what either side has not read yet is lost.
    Reset,
    /// With FIN.
    Close,
}

/// An order to cut the connection that carries the last one of so many bytes, counted over all connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    pub direction: Direction,
    pub after_bytes: usize,
    pub manner: Manner,
}

/// Where connections lead, and what comes through them.
#[derive(Clone)]
struct Way {
    node: SocketAddr,
    link: watch::Sender<Link>,
}

struct Shared {
    way: Mutex<Way>,
    cut: Mutex<Option<Cut>>,
    done: Notify,
}

/// A running relay in front of one node. It ends with this value.
pub struct Relay {
    /// Where the proxy finds the node.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Relay {
    /// Starts it; everything comes through.
    pub async fn start(node: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            way: Mutex::new(Way { node, link: watch::channel(Link::Open).0 }),
            cut: Mutex::new(None),
            done: Notify::new(),
        });
        let task = tokio::spawn(accept(listener, Arc::clone(&shared)));
        Self { address, shared, task }
    }

    /// Changes what comes through, from now on.
    pub fn set(&self, link: Link) {
        self.shared.way().link.send_replace(link);
    }

    /// Leads whoever comes from now on to this node, on a link of its own. Connections that are there stay where they are; gives theirs.
    pub fn lead_to(&self, node: SocketAddr) -> watch::Sender<Link> {
        let new = Way { node, link: watch::channel(Link::Open).0 };
        std::mem::replace(&mut *self.shared.way.lock().unwrap(), new).link
    }

    /// As if its process had gone: nobody listens at its address, and connections are reset.
    pub async fn stop_listening(&mut self) {
        self.task.abort();
        // Its socket is closed with it.
        let _ = (&mut self.task).await;
        self.set(Link::Refused);
    }

    /// It is there again.
    pub async fn listen_again(&mut self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        self.set(Link::Open);
        self.task = tokio::spawn(accept(listener, Arc::clone(&self.shared)));
    }

    /// Has one connection cut, and waits until it is.
    pub async fn cut(&self, cut: Cut) {
        let done = self.shared.done.notified();
        self.will_cut(cut);
        done.await;
    }

    /// Has one connection cut, some time.
    pub fn will_cut(&self, cut: Cut) {
        *self.shared.cut.lock().unwrap() = Some(cut);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.task.abort();
        self.set(Link::Refused);
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((proxy, _)) = listener.accept().await {
        let way = shared.way();
        if *way.link.borrow() == Link::Refused {
            end(&proxy, Manner::Reset);
            continue;
        }
        tokio::spawn(carry(proxy, way, Arc::clone(&shared)));
    }
}

/// One connection from its beginning to its end.
async fn carry(proxy: TcpStream, way: Way, shared: Arc<Shared>) {
    let Some(node) = reach(&way).await else {
        end(&proxy, Manner::Reset);
        return;
    };
    let _ = (proxy.set_nodelay(true), node.set_nodelay(true));
    let mut link = way.link.subscribe();
    let manner = tokio::select! {
        manner = pass(&shared, &way, Direction::ToNode, (&proxy, &node)) => manner,
        manner = pass(&shared, &way, Direction::FromNode, (&node, &proxy)) => manner,
        _ = link.wait_for(|link| *link == Link::Refused) => Manner::Reset,
    };
    end(&proxy, manner);
    end(&node, manner);
}

/// A connection to the node, once the link lets one through.
async fn reach(way: &Way) -> Option<TcpStream> {
    let mut link = way.link.subscribe();
    let link = *link.wait_for(|link| *link == Link::Refused || link.lets(Direction::ToNode)).await.ok()?;
    if link == Link::Refused { None } else { TcpStream::connect(way.node).await.ok() }
}

/// Passes one direction's bytes on until the connection is to end.
async fn pass(
    shared: &Shared,
    way: &Way,
    direction: Direction,
    (from, to): (&TcpStream, &TcpStream),
) -> Manner {
    let mut link = way.link.subscribe();
    let mut chunk = vec![0; 16 * 1024];
    loop {
        let Ok(()) = from.readable().await else { return Manner::Reset };
        let length = match from.try_read(&mut chunk) {
            Ok(0) => return Manner::Close,
            Ok(length) => length,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
            Err(_) => return Manner::Reset,
        };
        if link.wait_for(|link| link.lets(direction)).await.is_err() {
            return Manner::Reset;
        }
        let (passed, manner) = shared.due(direction, length);
        if write(to, &chunk[..passed]).await.is_err() {
            return Manner::Reset;
        }
        if let Some(manner) = manner {
            shared.done.notify_waiters();
            return manner;
        }
    }
}

async fn write(to: &TcpStream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        to.writable().await?;
        match to.try_write(bytes) {
            Ok(written) => bytes = &bytes[written..],
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

impl Shared {
    fn way(&self) -> Way {
        self.way.lock().unwrap().clone()
    }

    /// How many of these bytes pass before the order to cut is carried out, if it is by them.
    fn due(&self, direction: Direction, length: usize) -> (usize, Option<Manner>) {
        let mut order = self.cut.lock().unwrap();
        match order.as_mut().filter(|cut| cut.direction == direction) {
            Some(cut) if cut.after_bytes <= length => {
                let due = (cut.after_bytes, Some(cut.manner));
                *order = None;
                due
            }
            Some(cut) => {
                cut.after_bytes -= length;
                (length, None)
            }
            None => (length, None),
        }
    }
}

fn end(stream: &TcpStream, manner: Manner) {
    if manner == Manner::Reset {
        // The socket may be gone already.
        let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
    }
}
