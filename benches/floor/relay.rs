//! The floor: the least a proxy can do. One thread, epoll, bytes copied from one socket to the other, nothing parsed.
//!
//! Every client gets a server connection of its own, so the floor pools nothing and routes nothing. What a real proxy costs
//! above it is the price of looking at the protocol. Linux only, as epoll is.
//! Invariant: six system calls for a statement and its answer: wait, read, write, and the same back.
//! Must not know: PostgreSQL.

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};

const LISTENER: u64 = 0;
const OWNER: u64 = 1;
const FIRST_END: usize = 2;

/// One socket of a pair, and what waits to be written to it.
struct End {
    stream: TcpStream,
    unsent: Vec<u8>,
}

/// The relay: ends stand in pairs, so the other side of token `t` is `t ^ 1`.
struct Relay {
    epoll: Epoll,
    ends: Vec<Option<End>>,
    free: Vec<usize>,
    upstream: SocketAddr,
    buffer: Vec<u8>,
}

/// Relays until the standard input closes, that is, until the owner of this process ends.
pub fn run(listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
    epoll.add(io::stdin(), EpollEvent::new(EpollFlags::EPOLLIN, OWNER))?;
    let ends = (0..FIRST_END).map(|_| None).collect();
    let mut relay = Relay { epoll, ends, free: Vec::new(), upstream, buffer: vec![0; 64 * 1024] };
    let mut events = vec![EpollEvent::empty(); 256];
    loop {
        let count = match relay.epoll.wait(&mut events, None::<u8>) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data() {
                OWNER => return Ok(()),
                LISTENER => relay.accept(&listener)?,
                token => relay.serve(usize::try_from(token)?, event.events()),
            }
        }
    }
}

impl Relay {
    fn accept(&mut self, listener: &TcpListener) -> anyhow::Result<()> {
        let client = match listener.accept() {
            Ok((client, _)) => client,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        // A server that refuses costs this client its connection, nothing else.
        let Ok(server) = TcpStream::connect(self.upstream) else { return Ok(()) };
        let token = self.free.pop().unwrap_or(self.ends.len());
        for (offset, stream) in [client, server].into_iter().enumerate() {
            stream.set_nonblocking(true)?;
            stream.set_nodelay(true)?;
            let event = EpollEvent::new(EpollFlags::EPOLLIN, u64::try_from(token + offset)?);
            self.epoll.add(&stream, event)?;
            let end = Some(End { stream, unsent: Vec::new() });
            match self.ends.get_mut(token + offset) {
                Some(slot) => *slot = end,
                None => self.ends.push(end),
            }
        }
        Ok(())
    }

    /// Serves one end that is ready; a pair whose one end fails is closed.
    fn serve(&mut self, token: usize, ready: EpollFlags) {
        let mut outcome = Ok(());
        if ready.contains(EpollFlags::EPOLLOUT) {
            outcome = self.flush(token);
        }
        if outcome.is_ok()
            && ready.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR)
        {
            outcome = self.copy(token);
        }
        if outcome.is_err() {
            let pair = token & !1;
            if self.ends[pair].take().is_some() | self.ends[pair + 1].take().is_some() {
                self.free.push(pair);
            }
        }
    }

    /// One read from this end, one write to the other.
    fn copy(&mut self, token: usize) -> io::Result<()> {
        // The pair may have been closed by an earlier event of the same wait.
        let Some(from) = self.ends[token].as_mut() else { return Ok(()) };
        let length = match from.stream.read(&mut self.buffer) {
            Ok(0) => return Err(ErrorKind::UnexpectedEof.into()),
            Ok(length) => length,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        };
        let Some(to) = self.ends[token ^ 1].as_mut() else { return Ok(()) };
        if to.unsent.is_empty() {
            let sent = match to.stream.write(&self.buffer[..length]) {
                Ok(sent) => sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => 0,
                Err(error) => return Err(error),
            };
            if sent == length {
                return Ok(());
            }
            to.unsent.extend_from_slice(&self.buffer[sent..length]);
        } else {
            to.unsent.extend_from_slice(&self.buffer[..length]);
        }
        // Until the slow end has taken everything, the fast one is not read: backpressure.
        self.watch(token, EpollFlags::empty())?;
        self.watch(token ^ 1, EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT)
    }

    fn flush(&mut self, token: usize) -> io::Result<()> {
        let Some(end) = self.ends[token].as_mut() else { return Ok(()) };
        while !end.unsent.is_empty() {
            match end.stream.write(&end.unsent) {
                Ok(sent) => drop(end.unsent.drain(..sent)),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        end.unsent.shrink_to_fit();
        self.watch(token, EpollFlags::EPOLLIN)?;
        self.watch(token ^ 1, EpollFlags::EPOLLIN)
    }

    fn watch(&self, token: usize, interest: EpollFlags) -> io::Result<()> {
        let Some(end) = self.ends[token].as_ref() else { return Ok(()) };
        // Tokens are indexes of a vector: they fit.
        let mut event = EpollEvent::new(interest, token as u64);
        Ok(self.epoll.modify(&end.stream, &mut event)?)
    }
}
