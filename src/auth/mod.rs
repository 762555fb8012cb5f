//! Who is at the door: SCRAM-SHA-256 of both sides, the verifiers it works on, and the ways of authentication there are.
//!
//! Invariant: no secret is ever printed (`Debug` shows `***`), secrets are compared in constant time, and no input from a
//! peer, however malformed, makes this module panic. A client's plain password is never seen when it comes by SCRAM; what
//! is learned is its [`ClientKey`], which lets pgsteer log in to the servers as the same user.
//! Must not know: sockets, clocks, sources of randomness (nonces and secrets are arguments), the frames around the messages.

mod attributes;
mod crypto;
mod hba;
mod roles;
mod scram_client;
mod scram_server;
mod verifier;

pub use crypto::{ClientKey, nonce_from};
pub use hba::AuthType;
pub use roles::{RoleOid, Users};
pub use scram_client::{ScramClient, Secret, WaitingServerFinal};
pub use scram_server::{Kind, ScramServer, WaitingFinal};
pub use verifier::Verifier;

/// The name of the SASL mechanism, as the protocol spells it.
pub const MECHANISM: &str = "SCRAM-SHA-256";

/// Iterations PostgreSQL uses when nothing else is set; also those of a mock verifier.
pub const DEFAULT_ITERATIONS: u32 = 4096;

/// More iterations than this are refused: a hostile server could otherwise keep a whole shard busy.
pub const ITERATIONS_MAX: u32 = 1_000_000;

/// Why an exchange failed. The culprit is in the name; none of it is meant to be shown to a client in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A stored verifier is not of the form `SCRAM-SHA-256$<iterations>:<salt>$<StoredKey>:<ServerKey>`.
    #[error("malformed SCRAM verifier: {0}")]
    MalformedVerifier(&'static str),
    /// The peer's message does not follow RFC 5802.
    #[error("malformed SCRAM message: {0}")]
    MalformedMessage(&'static str),
    /// The client asked for channel binding, which was not offered.
    #[error("the client requires SCRAM channel binding, which was not offered")]
    ChannelBindingNotOffered,
    /// The client asked to act as somebody else (`a=`), which PostgreSQL does not know.
    #[error("the client uses an authorization identity, which is not supported")]
    AuthorizationIdentity,
    /// The `c=` attribute does not repeat the header of the client's first message.
    #[error("SCRAM channel binding check failed")]
    ChannelBindingMismatch,
    /// The nonce is not the one of this exchange.
    #[error("SCRAM nonce mismatch")]
    NonceMismatch,
    /// The proof is wrong, or there is no such user: nobody outside can tell which.
    #[error("password authentication failed")]
    AuthenticationFailed,
    /// The server asks for more iterations than [`ITERATIONS_MAX`], or for none.
    #[error("the server asks for an unreasonable number of SCRAM iterations")]
    Iterations,
    /// The server's signature is wrong: it does not know the verifier, so it is not the server.
    #[error("the server's SCRAM signature is wrong")]
    ServerSignature,
    /// The server ended the exchange with `e=`.
    #[error("the server refused the SCRAM exchange")]
    RefusedByServer,
}
