//! Startup packets of all kinds, sent to a server and to pgsteer: what is negotiated, how long the cancel keys are, how faults are
//! told, and what becomes of names that are not UTF-8.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::SocketAddr;

use pgsteer::sandbox::{Auth, Node, Sandbox};
use running::{
    CANCEL_REQUEST, Message, RawClient, Running, errors, eventually, query, startup_frame, values,
};
use tokio::net::TcpStream;

/// The first major version of PostgreSQL that knows protocol 3.2.
const KNOWS_3_2: u32 = 18;

const fn version(minor: i32) -> i32 {
    3 << 16 | minor
}

fn strings(strings: &[&[u8]]) -> Vec<u8> {
    strings.iter().flat_map(|string| [string, &b"\0"[..]].concat()).chain([0]).collect()
}

/// What came back, as text: everything but what is particular to a server or a session.
fn summary(messages: &[Message]) -> String {
    let mut parts = Vec::new();
    for message in messages {
        let text = message.body.escape_ascii();
        parts.push(match message.kind {
            b'S' if message.body.starts_with(b"application_name\0") => format!("S {text}"),
            b'S' => continue,
            b'K' => format!("K {}", message.body.len() - 4),
            b'E' => {
                let fields = message.body.split(|byte| *byte == 0);
                let told = fields.filter(|field| matches!(field.first(), Some(b'S' | b'C' | b'M')));
                told.map(|field| field.escape_ascii().to_string()).collect::<Vec<_>>().join(" ")
            }
            kind => format!("{} {text}", char::from(kind)),
        });
    }
    parts.join(", ").replace("\\\"", "\"")
}

async fn answer(address: SocketAddr, packet: &[u8]) -> String {
    let mut raw = RawClient { stream: TcpStream::connect(address).await.unwrap() };
    raw.send(packet).await;
    let mut messages = Vec::new();
    while let Some(message) = raw.try_read().await {
        let ready = message.kind == b'Z';
        messages.push(message);
        if ready {
            break;
        }
    }
    summary(&messages)
}

const NO_NAME: &str = "S application_name\\x00\\x00";

fn welcome(negotiation: &str, key_bytes: usize) -> String {
    let comma = if negotiation.is_empty() { "" } else { ", " };
    format!("{negotiation}{comma}R \\x00\\x00\\x00\\x00, {NO_NAME}, K {key_bytes}, Z I")
}

fn layout() -> String {
    "SFATAL C08P01 Minvalid startup packet layout: expected terminator as last byte".to_owned()
}

fn missing(code: &str, text: &str) -> String {
    format!("R \\x00\\x00\\x00\\x00, SFATAL C{code} M{text} does not exist")
}

/// Packets, what PostgreSQL 18 says to them, and whether older ones say the same.
fn packets() -> Vec<(&'static str, Vec<u8>, String, bool)> {
    let start = |minor, parts: &[&[u8]]| startup_frame(version(minor), &strings(parts));
    let user: [&[u8]; 2] = [b"user", b"postgres"];
    let with = |minor, more: &[&[u8]]| start(minor, &[&user, more].concat());
    let down = "v \\x00\\x03\\x00\\x02\\x00\\x00\\x00\\x00";
    let long_name = "n".repeat(70);
    let cut = "n".repeat(63);
    let no_user = "SFATAL C28000 Mno PostgreSQL user name specified in startup packet";
    vec![
        ("3.0", start(0, &user), welcome("", 4), true),
        ("3.1", start(1, &user), welcome("", 4), false),
        ("3.2", start(2, &user), welcome("", 32), false),
        ("3.3", start(3, &user), welcome(down, 32), false),
        (
            "GREASE",
            with(9999, &[b"_pq_.test_protocol_negotiation", b""]),
            welcome("v \\x00\\x03\\x00\\x02\\x00\\x00\\x00\\x01_pq_.test_protocol_negotiation\\x00", 32),
            false,
        ),
        (
            "options in 3.0",
            with(0, &[b"_pq_.x", b"1", b"_pq_.y", b"2", b"_pq_.x", b"3"]),
            welcome("v \\x00\\x03\\x00\\x00\\x00\\x00\\x00\\x03_pq_.x\\x00_pq_.y\\x00_pq_.x\\x00", 4),
            true,
        ),
        (
            "an option in 3.1",
            with(1, &[b"_pq_.x", b"1"]),
            welcome("v \\x00\\x03\\x00\\x01\\x00\\x00\\x00\\x01_pq_.x\\x00", 4),
            false,
        ),
        (
            "an option that is not UTF-8",
            with(2, &[b"_pq_.\xe9", b"1"]),
            welcome("v \\x00\\x03\\x00\\x02\\x00\\x00\\x00\\x01_pq_.\\xe9\\x00", 32),
            false,
        ),
        ("no user in 3.9", start(9, &[]), format!("{down}, {no_user}"), false),
        ("no user", start(0, &[]), no_user.to_owned(), true),
        ("nothing", startup_frame(version(0), b""), layout(), true),
        ("something behind", [start(0, &user), b"x".to_vec()].concat(), welcome("", 4), true),
        ("a wrong terminator", startup_frame(version(0), b"user\0postgres\0x"), welcome("", 4), true),
        ("a value without end", startup_frame(version(0), b"user\0postgres"), layout(), true),
        ("no terminator", startup_frame(version(0), b"user\0postgres\0"), layout(), true),
        ("no value", startup_frame(version(0), b"user\0postgres\0application_name\0\0"), layout(), true),
        ("a role", start(0, &[b"user", b"jos\xe9"]), missing("28000", "role \"jos\\xe9\""), true),
        ("a database", with(0, &[b"database", b"jos\xe9"]), missing("3D000", "database \"jos\\xe9\""), true),
        (
            "a long role",
            start(0, &[b"user", long_name.as_bytes()]),
            missing("28000", &format!("role \"{cut}\"")),
            true,
        ),
        (
            "a setting",
            with(0, &[b"s\xe9t", b"1"]),
            "R \\x00\\x00\\x00\\x00, SFATAL C42704 Munrecognized configuration parameter \"s\\xe9t\""
                .to_owned(),
            true,
        ),
        ("a cancel without process id", startup_frame(CANCEL_REQUEST, b"\0\0\0"), String::new(), true),
        ("a cancel without key", startup_frame(CANCEL_REQUEST, b"\0\0\0\x01"), String::new(), true),
        ("a cancel with too much key", startup_frame(CANCEL_REQUEST, &[1; 4 + 257]), String::new(), true),
    ]
}

async fn start() -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--shards", "2"]).await;
    (sandbox, proxy)
}

async fn major(node: &Node) -> u32 {
    let mut direct = RawClient::direct(node).await;
    let number = values(&direct.query("SHOW server_version_num").await).concat();
    number.parse::<u32>().unwrap() / 10_000
}

#[tokio::test]
async fn startup_packets_are_answered_as_by_postgresql() {
    let (sandbox, proxy) = start().await;
    let knows_3_2 = major(sandbox.node(0)).await >= KNOWS_3_2;
    for (what, packet, expected, everywhere) in packets() {
        assert_eq!(answer(proxy.address, &packet).await, expected, "{what}, from pgsteer");
        if knows_3_2 || everywhere {
            let direct = answer(sandbox.node(0).address(), &packet).await;
            assert_eq!(direct, expected, "{what}, from the server");
        }
    }
}

/// What the server makes of such a name depends on its version; the session keeps it on whatever server it is.
#[tokio::test]
async fn application_names_are_what_the_server_makes_of_them() {
    let (sandbox, proxy) = start().await;
    let latin = b"caf\xe9 \xc3\xa9\x01".to_vec();
    let long = "n".repeat(70).into_bytes();
    for name in [&latin, &long] {
        let packet = startup_frame(
            version(0),
            &strings(&[b"user", b"postgres", b"application_name", name.as_slice()]),
        );
        let reported = |messages: &[Message]| {
            let status = messages.iter().find(|message| message.body.starts_with(b"application_name\0"));
            status.unwrap().body.clone()
        };
        let mut seen = Vec::new();
        for address in [sandbox.node(0).address(), proxy.address] {
            let mut raw = RawClient { stream: TcpStream::connect(address).await.unwrap() };
            raw.send(&packet).await;
            let at_login = reported(&raw.read_until(b'Z').await);
            let mut values = values(&raw.query("SHOW application_name").await);
            raw.query("SET application_name = 'other'").await;
            raw.query("RESET application_name").await;
            values.extend(running::values(&raw.query("SHOW application_name").await));
            seen.push((at_login, values));
        }
        assert_eq!(seen[0], seen[1]);
    }
}

/// A session's settings are brought to servers by SET, which takes text only.
#[tokio::test]
async fn other_values_must_be_utf8() {
    let (_sandbox, proxy) = start().await;
    let packet = startup_frame(version(0), &strings(&[b"user", b"postgres", b"app.tenant", b"jos\xe9"]));
    let mut raw = proxy.raw().await;
    raw.send(&packet).await;
    assert_eq!(errors(&raw.read_to_end().await), ["22021"]);
}

/// A key of any length works, and only as a whole.
#[tokio::test]
async fn a_long_key_cancels() {
    let (sandbox, proxy) = start().await;
    let direct = sandbox.connect(0).await.unwrap();
    for (minor, key_bytes) in [(0, 4), (2, 32), (9999, 32)] {
        let mut raw = proxy.raw().await;
        raw.send(&startup_frame(version(minor), &strings(&[b"user", b"postgres"]))).await;
        let welcome = raw.read_until(b'Z').await;
        let key = welcome.iter().find(|message| message.kind == b'K').unwrap().body.clone();
        assert_eq!(key.len(), 4 + key_bytes);
        raw.send(&query("SELECT pg_sleep(100)")).await;
        eventually("it sleeps", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        let cancelled_before = proxy.metric("pgsteer_cancels_total", &[]).await;
        let mut other = key.clone();
        *other.last_mut().unwrap() ^= 1;
        for wrong in [&other[..], &key[..key.len() - 1], &[&key[..], b"x"].concat(), &key[..5]] {
            proxy.cancel(wrong).await;
        }
        assert_eq!(proxy.metric("pgsteer_cancels_total", &[]).await, cancelled_before);
        proxy.cancel(&key).await;
        assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
    }
}
