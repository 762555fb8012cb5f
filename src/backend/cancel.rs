//! A CancelRequest to a server.
//!
//! Must not know: whose statement it is.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::net;
use crate::topology::model::NodeAddress;

/// Sends a CancelRequest and waits until the server has taken it (it closes the connection then), at most `timeout` in all.
/// Cancel-safe: dropping it may leave the request unsent.
pub async fn cancel(address: &NodeAddress, process_id: i32, key: &[u8], timeout: Duration) -> io::Result<()> {
    let length = u32::try_from(12 + key.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend_from_slice(&(1234u32 << 16 | 5678).to_be_bytes());
    packet.extend_from_slice(&process_id.to_be_bytes());
    packet.extend_from_slice(key);
    let delivery = async {
        let mut stream = net::connect(&address.host, address.port, timeout).await?;
        net::write_all(&stream, &packet).await?;
        let mut end = [0u8; 1];
        stream.read(&mut end).await.map(|_| ())
    };
    tokio::time::timeout(timeout, delivery).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
