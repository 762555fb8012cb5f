//! A fixed list of nodes, as written by a person.
//!
//! Invariant: an accepted list is not empty, names no node twice and fits `NodeId`.
//! Must not know: the configuration file it stood in, DNS, sockets.

use std::net::Ipv6Addr;
use std::str::FromStr;

use crate::topology::evidence::Node;
use crate::topology::model::NodeAddress;

/// The port PostgreSQL listens on unless told otherwise.
pub const DEFAULT_PORT: u16 = 5432;

/// Why a text is not the address of a node.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// Nothing where a host should be.
    #[error("no host in node address {0:?} (expected host, host:port or [IPv6]:port)")]
    NoHost(String),
    /// The port is no number from 1 to 65535.
    #[error("bad port in node address {0:?} (expected a number from 1 to 65535)")]
    BadPort(String),
    /// More than one colon outside brackets.
    #[error("ambiguous node address {0:?}: write an IPv6 address in brackets, as in [::1]:5432")]
    Unbracketed(String),
    /// An opening bracket without its match, or text after it.
    #[error("unbalanced brackets in node address {0:?} (expected [IPv6]:port)")]
    Brackets(String),
    /// The brackets hold something else.
    #[error("no IPv6 address in the brackets of node address {0:?} (expected [IPv6]:port)")]
    NotIpv6(String),
    /// White space, a comma or control characters inside.
    #[error("white space, comma or control character in node address {0:?}")]
    BadCharacter(String),
}

/// Why a list of addresses is not a list of nodes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ListError {
    /// One address is wrong.
    #[error(transparent)]
    Address(#[from] AddressError),
    /// No node at all.
    #[error("the list of nodes is empty")]
    Empty,
    /// The same address twice: it would look like two nodes that claim the same timeline.
    #[error("node {0} is listed twice")]
    Twice(String),
    /// More nodes than can be told apart.
    #[error("{0} nodes are listed; at most 128 are supported")]
    TooMany(usize),
}

/// Nodes that routing can tell apart.
pub const MAX_NODES: usize = 128;

impl FromStr for NodeAddress {
    type Err = AddressError;

    /// Parses `host`, `host:port`, `[IPv6]`, `[IPv6]:port`, or `/directory` (Unix socket) with an optional `:port`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if text.chars().any(|c| c.is_whitespace() || c.is_control() || c == ',') {
            return Err(AddressError::BadCharacter(text.to_owned()));
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let unbalanced = || AddressError::Brackets(text.to_owned());
            let (host, after) = rest.split_once(']').ok_or_else(unbalanced)?;
            if !host.is_empty() && host.parse::<Ipv6Addr>().is_err() {
                return Err(AddressError::NotIpv6(text.to_owned()));
            }
            match after {
                "" => (host, None),
                _ => (host, Some(after.strip_prefix(':').ok_or_else(unbalanced)?)),
            }
        } else {
            match text.split_once(':') {
                None => (text, None),
                Some((_, port)) if port.contains(':') => {
                    return Err(AddressError::Unbracketed(text.to_owned()));
                }
                Some((host, port)) => (host, Some(port)),
            }
        };
        if host.is_empty() {
            return Err(AddressError::NoHost(text.to_owned()));
        }
        let port = match port {
            None => DEFAULT_PORT,
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => digits
                .parse()
                .ok()
                .filter(|&port| port != 0)
                .ok_or_else(|| AddressError::BadPort(text.to_owned()))?,
            Some(_) => return Err(AddressError::BadPort(text.to_owned())),
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

/// Turns a list of addresses into nodes of weight 1, in the same order.
///
/// # Errors
///
/// `ListError` when an address is malformed, when one stands twice, or when there are none or more than [`MAX_NODES`].
pub fn nodes<'a>(addresses: impl IntoIterator<Item = &'a str>) -> Result<Vec<Node>, ListError> {
    let mut nodes: Vec<Node> = Vec::new();
    for text in addresses {
        let address: NodeAddress = text.parse()?;
        if nodes.iter().any(|node| *node.address == address) {
            return Err(ListError::Twice(address.to_string()));
        }
        nodes.push(Node::new(address));
    }
    match nodes.len() {
        0 => Err(ListError::Empty),
        count if count > MAX_NODES => Err(ListError::TooMany(count)),
        _ => Ok(nodes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(host: &str, port: u16) -> NodeAddress {
        NodeAddress { host: host.to_owned(), port }
    }

    #[test]
    fn addresses() {
        assert_eq!("pg1".parse(), Ok(address("pg1", 5432)));
        assert_eq!(" pg1:6000 ".parse(), Ok(address("pg1", 6000)));
        assert_eq!("[::1]".parse(), Ok(address("::1", 5432)));
        assert_eq!("[fe80::1]:7000".parse(), Ok(address("fe80::1", 7000)));
        assert_eq!("/var/run/postgresql:5433".parse(), Ok(address("/var/run/postgresql", 5433)));
        assert_eq!("[::1]:5432".parse::<NodeAddress>().map(|a| a.to_string()), Ok("[::1]:5432".to_owned()));
    }

    #[test]
    fn faulty_addresses() {
        let fault = |text: &str| text.parse::<NodeAddress>().expect_err(text);
        assert!(matches!(fault(""), AddressError::NoHost(_)));
        assert!(matches!(fault(":5432"), AddressError::NoHost(_)));
        assert!(matches!(fault("[]:5432"), AddressError::NoHost(_)));
        assert!(matches!(fault("pg1:"), AddressError::BadPort(_)));
        assert!(matches!(fault("pg1:0"), AddressError::BadPort(_)));
        assert!(matches!(fault("pg1:+5"), AddressError::BadPort(_)));
        assert!(matches!(fault("pg1:65536"), AddressError::BadPort(_)));
        assert!(matches!(fault("::1"), AddressError::Unbracketed(_)));
        assert!(matches!(fault("[::1"), AddressError::Brackets(_)));
        assert!(matches!(fault("[::1]5432"), AddressError::Brackets(_)));
        assert!(matches!(fault("[x]:1"), AddressError::NotIpv6(_)));
        assert!(matches!(fault("a b"), AddressError::BadCharacter(_)));
        assert!(matches!(fault("a:1,b:1"), AddressError::BadCharacter(_)));
    }

    #[test]
    fn lists() {
        assert_eq!(nodes(["a", "b:1"]).map(|n| n.len()), Ok(2));
        assert_eq!(nodes([]), Err(ListError::Empty));
        assert_eq!(nodes(["a", "a:5432"]), Err(ListError::Twice("a:5432".to_owned())));
    }
}
