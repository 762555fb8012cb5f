//! TCP streams and listeners with the socket options pgsteer wants; nothing of the protocol.
//!
//! Invariant: every stream that leaves here has Nagle off and keepalives on; every listener has `SO_REUSEADDR`.
//! Must not know: what the bytes mean, who is at the other end.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use socket2::{Domain, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

/// How long unacknowledged bytes may stay in flight before the kernel gives a server up (`TCP_USER_TIMEOUT`).
pub const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens a listener on `address`; port 0 takes a free one.
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(4096)?;
    TcpListener::from_std(socket.into())
}

/// How much the kernel takes of what can't be sent to a client yet. With more, a client that reads slowly would look for seconds as
/// if it did not read at all, since the kernel wakes us only when a third of its buffer is free.
#[cfg(target_os = "linux")]
const NOT_SENT_BYTES: u32 = 64 * 1024;

/// Sets the options of an accepted client's stream.
pub fn tune_client(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let socket = SockRef::from(stream);
    #[cfg(target_os = "linux")]
    socket.set_tcp_notsent_lowat(NOT_SENT_BYTES)?;
    socket.set_tcp_keepalive(&keepalive())
}

/// Connects to a server. Fails with `TimedOut` after `timeout`. Cancel-safe: dropping it closes the socket.
pub async fn connect(host: &str, port: u16, timeout: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(timeout, TcpStream::connect((host, port)))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer to the connection attempt"))??;
    stream.set_nodelay(true)?;
    let socket = SockRef::from(&stream);
    socket.set_tcp_keepalive(&keepalive())?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    Ok(stream)
}

fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_secs(30))
        .with_interval(Duration::from_secs(5))
        .with_retries(3)
}

/// Shuts both directions down, whoever holds the stream: its reader sees the end at once.
pub fn sever(stream: &TcpStream) {
    // An error means that the socket is gone already.
    let _ = SockRef::from(stream).shutdown(std::net::Shutdown::Both);
}

/// Waits until there is something to read, or the end. For the one task that reads this stream: only its waker is kept, and
/// no queue of waiters is needed. The readiness may be stale. Cancel-safe.
pub async fn readable(stream: &TcpStream) -> io::Result<()> {
    std::future::poll_fn(|context| stream.poll_read_ready(context)).await
}

/// Reads without waiting. A read that leaves room in `buffer` has emptied the socket (readiness is edge-triggered), so the
/// next one costs no system call until something comes: without this, every message would cost one `recv` more.
pub fn try_read(stream: &TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let count = stream.try_read(buffer)?;
    if count > 0 && count < buffer.len() {
        // Saying that the socket would block clears the readiness; that is all this call does.
        let cleared: io::Result<()> =
            stream.try_io(Interest::READABLE, || Err(io::ErrorKind::WouldBlock.into()));
        debug_assert!(cleared.is_err(), "the closure never succeeds");
    }
    Ok(count)
}

/// Writes all of `bytes`, waiting where the socket is full. Not cancel-safe: a part may have been written.
pub async fn write_all(stream: &TcpStream, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match stream.try_write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
