//! The admin address over a real socket: endpoints, codes, bodies, and what a rude peer is given.
//!
//! Invariant under test: reads only, bounded, and `/readyz` is 200 only while a primary is known and nothing drains.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pgsteer::admin::pools::{self, ClientReport};
use pgsteer::admin::{Event, Limits, Readiness, Status, failovers, json, serve};
use pgsteer::telemetry::{Labels, Metrics, PoolGauges};
use pgsteer::topology::model::{Epoch, Lsn, NodeAddress, NodeId, PrimaryView, Role, Snapshot, Timeline};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn snapshot(now: Instant) -> Snapshot {
    let address = |host: &str| Arc::new(NodeAddress { host: host.to_owned(), port: 5432 });
    let mut snapshot = Snapshot::unknown(&[address("10.0.0.1"), address("::1")]);
    snapshot.version = 9;
    snapshot.epoch = Epoch(3);
    snapshot.nodes[1].role = Role::Primary;
    snapshot.nodes[1].timeline = Some(Timeline(2));
    snapshot.nodes[0].role = Role::Standby;
    snapshot.nodes[0].lag_bytes = Some(128);
    snapshot.nodes[0].position = Some(Lsn(0x1_0000_00ff));
    snapshot.nodes[0].fresh_as_of = Some(now);
    snapshot.primary = Some(PrimaryView {
        node: NodeId(1),
        timeline: Timeline(2),
        started_us: 1,
        flush_lsn: Lsn(0x1_0000_017f),
        insert_lsn: Lsn(0x1_0000_0180),
        commits_asynchronously: false,
        sampled_at: now,
        expires_at: now + Duration::from_secs(1),
    });
    snapshot
}

struct Fixed {
    snapshot: Snapshot,
    now: Instant,
    draining: AtomicBool,
    metrics: Metrics,
}

impl Status for Fixed {
    fn metrics(&self) -> String {
        self.metrics.render(&json::gauges(&self.snapshot, &[], self.now), &PoolGauges::default())
    }

    fn readiness(&self) -> Readiness {
        json::readiness(&self.snapshot, &[], self.draining.load(Ordering::SeqCst), self.now)
    }

    fn topology(&self) -> serde_json::Value {
        let event = Event { at: self.now - Duration::from_millis(40), text: "n2 is primary".to_owned() };
        json::topology(&self.snapshot, &[], &[event], self.now)
    }

    fn events(&self) -> serde_json::Value {
        failovers::events(&[], &[], &[], self.now)
    }

    fn pools(&self) -> serde_json::Value {
        pools::pools(&[], ClientReport { connected: 3, max_client_conn: 10 }, &[])
    }

    fn pause(&self, query: &str) -> Result<(), String> {
        if query == "for=1s" { Ok(()) } else { Err("not understood".to_owned()) }
    }

    fn resume(&self) {}

    fn hint(&self, query: &str) -> Result<serde_json::Value, String> {
        if query.is_empty() {
            Ok(serde_json::json!({ "state": "looking" }))
        } else {
            Err("no such node".to_owned())
        }
    }

    fn pause_report(&self) -> Pin<Box<dyn Future<Output = serde_json::Value> + Send + '_>> {
        Box::pin(async { serde_json::json!({ "state": "paused" }) })
    }

    fn learned(&self) -> serde_json::Value {
        serde_json::json!({ "learned": [] })
    }
}

async fn start(snapshot: Snapshot, now: Instant, limits: Limits) -> (std::net::SocketAddr, Arc<Fixed>) {
    let labels = Labels { roles: vec!["primary", "standby"], ..Labels::default() };
    let metrics = Metrics::new(1, labels).expect("labels fit");
    let status = Arc::new(Fixed { snapshot, now, draining: AtomicBool::new(false), metrics });
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(serve(listener, Arc::clone(&status) as Arc<dyn Status>, limits));
    (address, status)
}

/// Sends raw bytes and reads until the server closes.
async fn raw(address: std::net::SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connect");
    // The server may answer and close before it has read everything.
    let _ = stream.write_all(request).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).expect("text")
}

/// Status code, head and body of one request.
async fn ask(address: std::net::SocketAddr, method: &str, path: &str) -> (u16, String, String) {
    let answer = raw(address, format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status code");
    (code, head.to_ascii_lowercase(), body.to_owned())
}

#[tokio::test]
async fn endpoints_answer() {
    let now = Instant::now();
    let (address, _status) = start(snapshot(now), now, Limits::default()).await;
    let (code, head, body) = ask(address, "GET", "/metrics").await;
    assert_eq!(code, 200);
    assert!(head.contains("content-type: text/plain; version=0.0.4"), "{head}");
    assert!(body.contains("pgsteer_primary_known 1\n"), "{body}");
    assert!(
        body.contains("pgsteer_node_role{node=\"n2\",address=\"[::1]:5432\",role=\"primary\"} 1\n"),
        "{body}"
    );
    assert_eq!(ask(address, "GET", "/livez").await.0, 200);
    let (code, _, body) = ask(address, "GET", "/readyz?verbose").await;
    assert_eq!((code, &*body), (200, "primary n2 known, epoch 3\n"));
    let (code, _, body) = ask(address, "GET", "/").await;
    assert_eq!(code, 200);
    assert!(body.contains("/topology"), "{body}");
    assert_eq!(ask(address, "GET", "/nothing").await.0, 404);
}

#[tokio::test]
async fn pools_are_listed() {
    let now = Instant::now();
    let (address, _status) = start(snapshot(now), now, Limits::default()).await;
    let (code, head, body) = ask(address, "GET", "/pools").await;
    assert!(code == 200 && head.contains("application/json"), "{head}");
    let value: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(value["clients"]["connected"], 3);
    assert_eq!(value["pools"], serde_json::json!([]));
}

#[tokio::test]
async fn topology_gives_ages_and_positions() {
    let now = Instant::now();
    let (address, _status) = start(snapshot(now), now, Limits::default()).await;
    let (code, head, body) = ask(address, "GET", "/topology").await;
    assert_eq!(code, 200);
    assert!(head.contains("application/json"), "{head}");
    let value: serde_json::Value = serde_json::from_str(&body).expect("JSON");
    assert_eq!(value["version"], 9);
    assert_eq!(value["epoch"], 3);
    assert_eq!(value["primary"]["name"], "n2");
    assert_eq!(value["primary"]["expires_in_ms"], 1000);
    assert_eq!(value["suspected"], false);
    assert_eq!(value["nodes"][0]["position"], "1/FF");
    assert_eq!(value["nodes"][0]["lag_bytes"], 128);
    assert_eq!(value["nodes"][0]["staleness_ms"], 0);
    assert_eq!(value["nodes"][1]["address"], "[::1]:5432");
    assert_eq!(value["nodes"][1]["staleness_ms"], serde_json::Value::Null);
    assert_eq!(value["events"][0]["age_ms"], 40);
    assert_eq!(value["events"][0]["text"], "n2 is primary");
}

#[tokio::test]
async fn not_ready_says_why() {
    let now = Instant::now();
    let (address, status) = start(snapshot(now), now, Limits::default()).await;
    status.draining.store(true, Ordering::SeqCst);
    let (code, _, body) = ask(address, "GET", "/readyz").await;
    assert_eq!((code, &*body), (503, "draining\n"));
    assert_eq!(ask(address, "GET", "/livez").await.0, 200, "a drain is not a death");

    // The same snapshot, looked at after its primary's claim has expired.
    let (address, _status) = start(snapshot(now), now + Duration::from_secs(1), Limits::default()).await;
    let (code, _, body) = ask(address, "GET", "/readyz").await;
    assert_eq!(code, 503);
    assert!(body.starts_with("no primary known, epoch 3: n1 standby"), "{body}");
}

#[tokio::test]
async fn only_get_and_head_but_for_the_pause() {
    let now = Instant::now();
    let (address, _status) = start(snapshot(now), now, Limits::default()).await;
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        let (code, head, _) = ask(address, method, "/metrics").await;
        assert_eq!(code, 405, "{method}");
        assert!(head.contains("allow: get, head"), "{head}");
    }
    for (method, path, wanted) in [
        ("GET", "/pause", 200),
        ("POST", "/pause?for=1s", 200),
        ("POST", "/pause?for=soon", 400),
        ("POST", "/resume", 200),
        ("GET", "/resume", 405),
        ("PUT", "/pause", 405),
        ("POST", "/hint", 200),
        ("POST", "/hint?node=db9:5432", 400),
        ("GET", "/hint", 405),
    ] {
        assert_eq!(ask(address, method, path).await.0, wanted, "{method} {path}");
    }
    // Parameters may stand in the body, as a form or as JSON.
    for (path, body, wanted) in [
        ("/pause", "for=1s", 200),
        ("/pause", "for%3D1s", 200),
        ("/pause", "{\"for\": \"1s\"}", 200),
        ("/pause", "{\"for\": 1}", 400),
        ("/hint", "{}", 200),
        ("/hint", "node=db9:5432", 400),
        ("/hint", &"x".repeat(5000), 413),
    ] {
        let head = format!("POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", body.len());
        let answer = raw(address, (head + body).as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {wanted} ")), "{path} {body}: {answer}");
    }
    // What a web page sends has an Origin.
    for path in ["/pause", "/hint"] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: x\r\nOrigin: http://x\r\n\r\n");
        let of_a_page = raw(address, request.as_bytes()).await;
        assert!(of_a_page.starts_with("HTTP/1.1 403 "), "{of_a_page}");
    }
    let (code, head, body) = ask(address, "HEAD", "/livez").await;
    assert_eq!((code, &*body), (200, ""));
    assert!(head.contains("content-length: 6"), "{head}");
}

#[tokio::test]
async fn a_rude_peer_is_cut_off() {
    let now = Instant::now();
    let limits = Limits { head_timeout: Duration::from_millis(50), connections_max: 2, ..Limits::default() };
    let (address, _status) = start(snapshot(now), now, limits).await;

    let mut long = b"GET / HTTP/1.1\r\nX: ".to_vec();
    long.resize(64 * 1024, b'x');
    let answer = raw(address, &long).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");

    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "A: b\r\n".repeat(100));
    let answer = raw(address, many.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");

    let answer = raw(address, b"\x00\x00\x00\x08\x04\xd2\x16\x2f").await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");

    // Two peers that say nothing take both places; once they are timed out, others are served.
    let _silent = TcpStream::connect(address).await.expect("connect");
    let _silent_too = TcpStream::connect(address).await.expect("connect");
    assert_eq!(ask(address, "GET", "/livez").await.0, 200);
}
