//! Fetches one page of the admin address. Invariant: bounded in time and bytes. It must not know what a page means.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// The whole exchange has so long.
const LIMIT: Duration = Duration::from_secs(1);

/// Largest page taken in.
const BYTES_MAX: u64 = 4 << 20;

/// The body of a page that was answered with 200.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<String, Error> {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = String::new();
        stream.take(BYTES_MAX).read_to_string(&mut answer).await?;
        Ok::<_, Error>(answer)
    };
    let answer =
        tokio::time::timeout(LIMIT, exchange).await.map_err(|_| Error::from(ErrorKind::TimedOut))??;
    body(&answer).map(str::to_owned).ok_or_else(|| Error::from(ErrorKind::InvalidData))
}

/// What follows the head of an answer with status 200. pgsteer sends whole bodies, never chunks.
fn body(answer: &str) -> Option<&str> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split_ascii_whitespace().nth(1)?;
    (status == "200").then_some(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_body_of_a_good_answer_counts() {
        assert_eq!(body("HTTP/1.1 200 OK\r\na: b\r\n\r\nhello\r\n\r\n"), Some("hello\r\n\r\n"));
        assert_eq!(body("HTTP/1.1 503 Service Unavailable\r\n\r\nno primary"), None);
        assert_eq!(body("HTTP/1.1 200 OK\r\n"), None);
        assert_eq!(body(""), None);
    }
}
