//! A small HTTP/1 server for `/metrics`, `/livez`, `/readyz`, `/topology`, `/topology/events`, `/pools`, `/learned`, and `/pause`,
//! `/resume` and `/hint`.
//!
//! Invariant: bounded in connections, header bytes, header count and time, one request a connection; whatever a
//! peer does costs at most that. GET and HEAD change nothing; POST, which does, is heard from this machine alone. Must
//! not know: what the answers mean; they come from [`Status`].

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::parameters;
use crate::telemetry::prometheus;

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

const LISTING: &str = "\
pgsteer
/metrics   Prometheus text format
/livez     200 as long as the control thread answers
/readyz    200 while a primary is known and no drain has begun
/topology  the cluster as pgsteer sees it, JSON
/topology/events  what happened to the cluster, one record for each failover, JSON
/pools     server connections, their limits, and who waits, JSON
/learned   reads that standbys refuse, by shape, JSON
/pause     GET: whether pgsteer is paused, JSON; POST: hold what would begin on the primary (?for=60s&until=promotion|resume)
/resume    POST: end the pause
/hint      POST: the primary changes, look for it (?node=host:port, if the new one is known)
";

/// How long to wait after `accept` failed, usually for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Whether new clients should be sent here, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Readiness {
    /// 200 or 503.
    pub ready: bool,
    /// One line for people.
    pub text: String,
}

/// Where the answers come from. Called on the control thread: must not block.
pub trait Status: Send + Sync + 'static {
    /// The exposition of `/metrics`.
    fn metrics(&self) -> String;
    /// The answer of `/readyz`.
    fn readiness(&self) -> Readiness;
    /// The answer of `/topology`.
    fn topology(&self) -> serde_json::Value;
    /// The answer of `/topology/events`.
    fn events(&self) -> serde_json::Value;
    /// The answer of `/pools`.
    fn pools(&self) -> serde_json::Value;
    /// The answer of `/learned`.
    fn learned(&self) -> serde_json::Value;
    /// Begins a pause as the query says, or tells what is wrong with it.
    fn pause(&self, query: &str) -> Result<(), String>;
    /// Ends the pause.
    fn resume(&self);
    /// Takes a hint that the primary changes, as the query says, and answers `/hint`; or tells what is wrong with it.
    fn hint(&self, query: &str) -> Result<serde_json::Value, String>;
    /// The answer of `/pause` and `/resume`.
    fn pause_report(&self) -> Pin<Box<dyn Future<Output = serde_json::Value> + Send + '_>>;
}

/// What a peer may use up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections served at once; further ones wait in the kernel's queue.
    pub connections_max: usize,
    /// Bytes of a request's head.
    pub head_bytes_max: usize,
    /// Headers of a request.
    pub headers_max: usize,
    /// Time for the head to arrive.
    pub head_timeout: Duration,
    /// Time for the whole exchange.
    pub exchange_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 64,
            head_bytes_max: 16 * 1024,
            headers_max: 64,
            head_timeout: Duration::from_secs(5),
            exchange_timeout: Duration::from_secs(10),
        }
    }
}

/// Serves until it is dropped: health must be told during the drain, too.
///
/// Cancel safety: dropping the future closes the listener and breaks off the connections being served; nothing
/// else is lost.
pub async fn serve(listener: TcpListener, status: Arc<dyn Status>, limits: Limits) -> Infallible {
    let mut served = JoinSet::new();
    loop {
        while served.try_join_next().is_some() {}
        if served.len() >= limits.connections_max {
            served.join_next().await;
            continue;
        }
        match listener.accept().await {
            Ok((stream, peer)) => {
                served.spawn(exchange(stream, peer, Arc::clone(&status), limits.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "admin: accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

async fn exchange(stream: TcpStream, peer: SocketAddr, status: Arc<dyn Status>, limits: Limits) {
    let service = service_fn(|request: Request<Incoming>| {
        let status = Arc::clone(&status);
        async move { Ok::<_, Infallible>(answer(request, peer, &*status).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .keep_alive(false)
        .max_buf_size(limits.head_bytes_max)
        .max_headers(limits.headers_max)
        .header_read_timeout(limits.head_timeout)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(limits.exchange_timeout, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "admin: connection failed"),
        Err(_) => tracing::debug!("admin: connection exceeded its time"),
    }
}

async fn answer(request: Request<Incoming>, peer: SocketAddr, status: &dyn Status) -> Response<Full<Bytes>> {
    let (head, body) = request.into_parts();
    let (method, path) = (&head.method, head.uri.path());
    if method == Method::POST && matches!(path, "/pause" | "/resume" | "/hint") {
        if head.headers.contains_key(ORIGIN) {
            return respond(StatusCode::FORBIDDEN, TEXT, "not for web pages\n".to_owned());
        }
        let Ok(body) = Limited::new(body, parameters::BODY_BYTES_MAX).collect().await else {
            return respond(
                StatusCode::PAYLOAD_TOO_LARGE,
                TEXT,
                "the body is too large, or broken\n".to_owned(),
            );
        };
        return match parameters::joined(head.uri.query().unwrap_or_default(), &body.to_bytes()) {
            Ok(query) => change(path, &query, peer, status).await,
            Err(fault) => respond(StatusCode::BAD_REQUEST, TEXT, fault + "\n"),
        };
    }
    if method != Method::GET && method != Method::HEAD {
        return not_allowed("only GET and HEAD, and POST for /pause, /resume and /hint\n", "GET, HEAD");
    }
    match path {
        "/" => respond(StatusCode::OK, TEXT, LISTING.to_owned()),
        "/metrics" => respond(StatusCode::OK, prometheus::CONTENT_TYPE, status.metrics()),
        "/livez" => respond(StatusCode::OK, TEXT, "alive\n".to_owned()),
        "/readyz" => {
            let Readiness { ready, text } = status.readiness();
            let code = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
            respond(code, TEXT, text + "\n")
        }
        "/topology" => respond(StatusCode::OK, JSON, format!("{:#}\n", status.topology())),
        "/topology/events" => respond(StatusCode::OK, JSON, format!("{:#}\n", status.events())),
        "/pools" => respond(StatusCode::OK, JSON, format!("{:#}\n", status.pools())),
        "/learned" => respond(StatusCode::OK, JSON, format!("{:#}\n", status.learned())),
        "/pause" => respond(StatusCode::OK, JSON, format!("{:#}\n", status.pause_report().await)),
        "/resume" | "/hint" => not_allowed("only POST\n", "POST"),
        _ => respond(StatusCode::NOT_FOUND, TEXT, format!("not found; there is:\n{LISTING}")),
    }
}

/// `/pause`, `/resume` and `/hint`.
async fn change(path: &str, query: &str, peer: SocketAddr, status: &dyn Status) -> Response<Full<Bytes>> {
    // Whoever may read metrics need not be one who may stop all writes.
    if !peer.ip().to_canonical().is_loopback() {
        return respond(
            StatusCode::FORBIDDEN,
            TEXT,
            "only from the machine that pgsteer runs on\n".to_owned(),
        );
    }
    let done = match path {
        "/hint" => status.hint(query),
        "/pause" => match status.pause(query) {
            Ok(()) => Ok(status.pause_report().await),
            Err(fault) => Err(fault),
        },
        _ => {
            status.resume();
            Ok(status.pause_report().await)
        }
    };
    match done {
        Ok(report) => respond(StatusCode::OK, JSON, format!("{report:#}\n")),
        Err(fault) => respond(StatusCode::BAD_REQUEST, TEXT, fault + "\n"),
    }
}

fn not_allowed(text: &str, allowed: &'static str) -> Response<Full<Bytes>> {
    let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, text.to_owned());
    response.headers_mut().insert(ALLOW, HeaderValue::from_static(allowed));
    response
}

fn respond(code: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = code;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
