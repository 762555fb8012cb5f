//! One request to the admin address of a running pgsteer, as its other commands make them.
//!
//! Invariant: bounded in time and bytes. Must not know: what a page means.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The whole exchange has so long.
const LIMIT: Duration = Duration::from_secs(1);

/// Largest page taken in.
const BYTES_MAX: u64 = 4 << 20;

/// The status code and the body. `target` is a path, with its query.
///
/// # Errors
/// Nobody listens there, nobody answers in time, or what answers does not speak HTTP.
pub async fn send(address: SocketAddr, method: &str, target: &str) -> Result<(u16, String), Error> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("{method} {target} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(BYTES_MAX).read_to_string(&mut answer).await?;
        Ok::<_, Error>(answer)
    };
    let answer =
        tokio::time::timeout(LIMIT, exchange).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
    parse(&answer).ok_or_else(|| Error::from(ErrorKind::InvalidData))
}

/// Status and what follows the head. pgsteer sends whole bodies, never chunks.
fn parse(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some((status, body.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_taken_apart() {
        let good = parse("HTTP/1.1 200 OK\r\na: b\r\n\r\nhello\r\n\r\n");
        assert_eq!(good, Some((200, "hello\r\n\r\n".to_owned())));
        let bad = parse("HTTP/1.1 503 Service Unavailable\r\n\r\nno primary");
        assert_eq!(bad, Some((503, "no primary".to_owned())));
        assert_eq!(parse("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(parse(""), None);
    }
}
