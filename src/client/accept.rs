//! Drives a login over a socket.
//!
//! Invariant: bytes that come before a reply they must wait for are refused, so that nothing can be smuggled past the
//! authentication. Must not know: where verifiers and parameters come from (`Door`).

use std::io;

use tokio::net::TcpStream;

use super::handshake::{self, Request};
use crate::auth::{AuthType, ClientKey, Kind, RoleOid, ScramServer, Verifier, nonce_from};
use crate::net;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::peer::{self, Introduction};
use crate::wire::reply::Report;
use crate::wire::sqlstate as state;
use crate::wire::startup::{self, Initial, STARTUP_BYTES_MAX, Startup};

/// PostgreSQL's `PG_MAX_AUTH_TOKEN_LENGTH`.
const AUTH_BYTES_MAX: usize = 65_535;

/// What a login needs from the house.
pub trait Door {
    /// How clients prove themselves.
    fn auth_type(&self) -> AuthType;
    /// Why nobody is let in any more, if that is so.
    fn closed(&self) -> Option<Box<Report>>;
    /// Whoever asks to be let in needs a place, before it costs anything.
    fn take_place(&self) -> Result<(), Box<Report>>;
    /// It has proved who it is: a place for this user and database.
    fn take_place_as(&self, request: &Request) -> Result<(), Box<Report>>;
    /// The user's verifier; a mock one for a user that does not exist or may not log in.
    fn verifier(&self, user: &str) -> impl Future<Output = Result<(Verifier, Kind), Box<Report>>>;
    /// The parameters to report, from a server that accepted this user, database and settings; else its ErrorResponse.
    fn parameters(
        &self,
        request: &Request,
        startup: &Startup,
        keys: Option<&(ClientKey, [u8; 32])>,
    ) -> impl Future<Output = Result<Granted, Denial>>;
    /// Takes the client in: its process id and a key of so many bytes.
    fn admit(&self, key_bytes: usize) -> (i32, Vec<u8>);
    /// A password was wrong: the cached verifier may be out of date.
    fn distrust(&self, user: &str);
    /// A cancel request came. Resolves when it has taken effect as far as it ever will, so that what the client sends next is
    /// not hit; bounded.
    fn cancel(&self, process_id: i32, key: &[u8]) -> impl Future<Output = ()>;
    /// The same for one that came to another pgsteer process. Gives whether the key is one of this process; where it is not, that
    /// is all: it is not passed on again.
    fn forwarded_cancel(&self, process_id: i32, key: &[u8]) -> impl Future<Output = bool>;
    /// How this process introduces itself to others.
    fn introduction(&self) -> Introduction;
}

/// What a server said when it let the client in.
#[derive(Debug, Clone)]
pub struct Granted {
    /// The parameters to report.
    pub parameters: Vec<(String, String)>,
    /// Its notices, whole messages.
    pub notices: Vec<u8>,
    /// The role that the user is, if known.
    pub role: Option<RoleOid>,
}

/// Why the client is not let in though it has proved itself.
#[derive(Debug, Clone)]
pub struct Denial {
    /// The ErrorResponse.
    pub frame: Vec<u8>,
    /// A server would have said AuthenticationOk before.
    pub authenticated: bool,
}

/// A client that is in.
#[derive(Debug)]
pub struct LoggedIn {
    /// Who.
    pub request: Request,
    /// With which startup packet.
    pub startup: Startup,
    /// What logs in to servers as this user.
    pub keys: Option<(ClientKey, [u8; 32])>,
    /// What a server said of it; the parameters were reported.
    pub granted: Granted,
    /// The process id it was given.
    pub process_id: i32,
    /// Bytes that came behind the login.
    pub early: Vec<u8>,
}

/// How a connection's beginning ended.
#[derive(Debug)]
pub enum Outcome {
    /// Logged in.
    In(Box<LoggedIn>),
    /// It was a cancel request, and has been dealt with; or the client went away.
    Over,
    /// Refused; the client has been told.
    Refused,
}

/// Takes a client through its login. The caller bounds the time. Cancel-safe: dropping it drops the client.
pub async fn login<D: Door>(stream: &TcpStream, door: &D) -> io::Result<Outcome> {
    let mut bytes = Vec::with_capacity(512);
    let startup = match first_packets(stream, &mut bytes).await? {
        Ok(Initial::Startup(startup)) => startup,
        Ok(Initial::Cancel { process_id, key }) => {
            // The end of this connection is the answer: PostgreSQL's clients wait for it before they send anything else.
            door.cancel(process_id, &key).await;
            return Ok(Outcome::Over);
        }
        Ok(Initial::PeerCancel { process_id, key }) => {
            let is_mine = door.forwarded_cancel(process_id, &key).await;
            net::write_all(stream, if is_mine { peer::TAKEN } else { peer::NOT_MINE }).await?;
            return Ok(Outcome::Over);
        }
        Ok(Initial::PeerHello) => {
            net::write_all(stream, &door.introduction().encode()).await?;
            return Ok(Outcome::Over);
        }
        Ok(Initial::MalformedCancel | Initial::Ssl | Initial::GssEnc | Initial::Terminate) => {
            return Ok(Outcome::Over);
        }
        Err(report) => return refuse(stream, &report).await,
    };
    if let Some(report) = door.closed() {
        return refuse(stream, &report).await;
    }
    let mut negotiation = handshake::negotiation(&startup);
    let request = match handshake::request(&startup) {
        Ok(request) => request,
        Err(report) => {
            net::write_all(stream, &negotiation).await?;
            return refuse(stream, &report).await;
        }
    };
    if let Err(report) = door.take_place() {
        net::write_all(stream, &negotiation).await?;
        return refuse(stream, &report).await;
    }
    let keys = match door.auth_type() {
        AuthType::Trust => None,
        AuthType::ScramSha256 => {
            match scram(stream, &mut bytes, door, &request, std::mem::take(&mut negotiation)).await? {
                Ok(keys) => Some(keys),
                Err(report) => return refuse(stream, &report).await,
            }
        }
    };
    if let Err(report) = door.take_place_as(&request) {
        return refuse(stream, &report).await;
    }
    let granted = match door.parameters(&request, &startup, keys.as_ref()).await {
        Ok(granted) => granted,
        Err(denial) => {
            if denial.authenticated {
                negotiation.extend_from_slice(&handshake::authentication_ok());
            }
            negotiation.extend_from_slice(&denial.frame);
            net::write_all(stream, &negotiation).await?;
            return Ok(Outcome::Refused);
        }
    };
    let (process_id, key) = door.admit(startup.cancel_key_bytes());
    negotiation.extend_from_slice(&handshake::welcome(
        &granted.notices,
        &granted.parameters,
        process_id,
        &key,
    ));
    net::write_all(stream, &negotiation).await?;
    Ok(Outcome::In(Box::new(LoggedIn { request, startup, keys, granted, process_id, early: bytes })))
}

async fn refuse(stream: &TcpStream, report: &Report) -> io::Result<Outcome> {
    let mut out = Vec::new();
    report.put(&mut out);
    net::write_all(stream, &out).await?;
    Ok(Outcome::Refused)
}

/// Reads up to the packet that decides, answering `N` to requests for encryption.
async fn first_packets(stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<Result<Initial, Box<Report>>> {
    // A client may try GSS, then TLS, then go on in the clear.
    for _ in 0..3 {
        let (initial, length) = loop {
            match startup::initial(bytes) {
                Ok(Some(packet)) => break packet,
                Ok(None) if bytes.len() <= STARTUP_BYTES_MAX => read(stream, bytes).await?,
                Ok(None) => {
                    return Ok(Err(Box::new(Report::fatal(
                        state::PROTOCOL_VIOLATION,
                        "startup packet too large",
                    ))));
                }
                Err(error) => return Ok(Err(Box::new(handshake::startup_fault(&error)))),
            }
        };
        bytes.drain(..length);
        match initial {
            Initial::Ssl | Initial::GssEnc => {
                if !bytes.is_empty() {
                    let message = "received unencrypted data after SSL or GSSAPI encryption request";
                    return Ok(Err(Box::new(Report::fatal(state::PROTOCOL_VIOLATION, message))));
                }
                net::write_all(stream, b"N").await?;
            }
            other => return Ok(Ok(other)),
        }
    }
    Ok(Err(Box::new(Report::fatal(state::PROTOCOL_VIOLATION, "too many requests for encryption"))))
}

async fn read(stream: &TcpStream, bytes: &mut Vec<u8>) -> io::Result<()> {
    let mut chunk = [0u8; 1024];
    loop {
        match stream.try_read(&mut chunk) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(count) => {
                bytes.extend_from_slice(chunk.get(..count).unwrap_or_default());
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => stream.readable().await?,
            Err(error) => return Err(error),
        }
    }
}

/// Reads one password message.
async fn password_message(
    stream: &TcpStream,
    bytes: &mut Vec<u8>,
) -> io::Result<Result<Vec<u8>, Box<Report>>> {
    let fault = |message: &str| Ok(Err(Box::new(Report::fatal(state::PROTOCOL_VIOLATION, message))));
    loop {
        match frame::header(bytes) {
            Err(error) => return fault(&error.to_string()),
            Ok(Some(header)) if header.kind != b'p' => {
                return fault("expected SASL response, got another message");
            }
            Ok(Some(header)) if header.frame_bytes > AUTH_BYTES_MAX => {
                return fault("authentication message is too long");
            }
            Ok(Some(header)) if header.frame_bytes <= bytes.len() => {
                let rest = bytes.split_off(header.frame_bytes);
                let message = std::mem::replace(bytes, rest);
                return Ok(Ok(message.get(HEADER_BYTES..).unwrap_or_default().to_vec()));
            }
            Ok(_) => read(stream, bytes).await?,
        }
    }
}

type Proved = Result<(ClientKey, [u8; 32]), Box<Report>>;

async fn scram<D: Door>(
    stream: &TcpStream,
    bytes: &mut Vec<u8>,
    door: &D,
    request: &Request,
    mut out: Vec<u8>,
) -> io::Result<Proved> {
    let (verifier, kind) = match door.verifier(&request.user).await {
        Ok(found) => found,
        Err(report) => return Ok(Err(report)),
    };
    let server_key = verifier.server_key;
    let malformed = || Box::new(Report::fatal(state::PROTOCOL_VIOLATION, "malformed SCRAM message"));
    out.extend_from_slice(&handshake::sasl_offer());
    net::write_all(stream, &out).await?;
    let initial = match password_message(stream, bytes).await? {
        Ok(initial) => initial,
        Err(report) => return Ok(Err(report)),
    };
    let Some(first) = handshake::sasl_initial(&initial) else { return Ok(Err(malformed())) };
    let mut random = [0u8; 18];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let server = ScramServer::new(verifier, kind, &nonce_from(random));
    let Ok((server_first, waiting)) = server.on_client_first(first) else { return Ok(Err(malformed())) };
    net::write_all(stream, &handshake::sasl_continue(&server_first)).await?;
    let last = match password_message(stream, bytes).await? {
        Ok(last) => last,
        Err(report) => return Ok(Err(report)),
    };
    match waiting.on_client_final(&last) {
        Ok((server_final, client_key)) => {
            net::write_all(stream, &handshake::sasl_final(&server_final)).await?;
            Ok(Ok((client_key, server_key)))
        }
        Err(error) => {
            tracing::debug!(%error, "SCRAM exchange failed");
            door.distrust(&request.user);
            Ok(Err(Box::new(handshake::wrong_password(&request.user))))
        }
    }
}
