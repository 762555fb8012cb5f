//! A CancelRequest to a server.
//!
//! Must not know: whose statement it is.

use std::io;
use std::time::Duration;

use tokio::io::AsyncReadExt;

use crate::net;
use crate::topology::model::NodeAddress;

/// Sends a CancelRequest and waits until the server has taken it (it closes the connection then), at most `timeout`.
/// Cancel-safe: dropping it may leave the request unsent.
pub async fn cancel(address: &NodeAddress, process_id: i32, key: &[u8], timeout: Duration) -> io::Result<()> {
    let mut stream = net::connect(&address.host, address.port, timeout).await?;
    let length = u32::try_from(12 + key.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut packet = length.to_be_bytes().to_vec();
    packet.extend_from_slice(&(1234u32 << 16 | 5678).to_be_bytes());
    packet.extend_from_slice(&process_id.to_be_bytes());
    packet.extend_from_slice(key);
    net::write_all(&stream, &packet).await?;
    let mut end = [0u8; 1];
    match tokio::time::timeout(timeout, stream.read(&mut end)).await {
        Ok(result) => result.map(|_| ()),
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
