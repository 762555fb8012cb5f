//! Fetches one page of the admin address. It must not know what a page means.

use std::io::{Error, ErrorKind};
use std::net::SocketAddr;

use crate::admin::request;

/// The body of a page that was answered with 200.
pub(super) async fn get(address: SocketAddr, path: &str) -> Result<String, Error> {
    match request::send(address, "GET", path).await? {
        (200, body) => Ok(body),
        _ => Err(Error::from(ErrorKind::InvalidData)),
    }
}
