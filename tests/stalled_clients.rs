//! Clients that do not take a standby's answer: replay there goes on, and they are told in whole messages.
//!
//! A server process that waits for its client can't be cancelled by replay, so replay waits for it without limit.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgsteer::sandbox::Sandbox;
use running::{
    Message, RawClient, Running, bind, conflicting, eventually, execute, in_time, kinds, parse, query,
    status, values, wait_readable,
};
use tokio::io::AsyncReadExt;

/// 100 MB in rows of 1 kB.
const LARGE: &str = "SELECT id, repeat('x', 1000) AS large FROM c, generate_series(1, 250)";
/// Four rows of 4 MB.
const WIDE: &str = "SELECT id, repeat('x', 4000000) FROM c WHERE id <= 4";

async fn cluster(args: &[&str], environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = conflicting(2, Some(Duration::ZERO)).await;
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE written (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    // A budget that no loaded machine exceeds: these reads are to begin on a standby.
    let args = [&["--auth", "trust", "--max-lag", "1m", "--pool-size", "60"], args].concat();
    let proxy = Running::start_with(&sandbox, &args, environment).await;
    wait_readable(&proxy, &sandbox).await;
    (sandbox, proxy)
}

async fn stalls(proxy: &Running) -> f64 {
    proxy.metric("pgsteer_standby_stalls_total", &[]).await
}

/// Writes that conflict with whatever reads the standbys, and how long each of these has been behind at most.
struct Writes {
    stop: Arc<AtomicBool>,
    written: Arc<AtomicUsize>,
    writer: tokio::task::JoinHandle<()>,
    watchers: Vec<tokio::task::JoinHandle<Duration>>,
}

async fn connect(conninfo: &str) -> tokio_postgres::Client {
    loop {
        // A conflict may end it before it has begun.
        if let Ok((client, connection)) = tokio_postgres::connect(conninfo, tokio_postgres::NoTls).await {
            tokio::spawn(connection);
            return client;
        }
    }
}

/// How long the standby took at most to show what had been written.
async fn longest_lag(conninfo: String, stop: Arc<AtomicBool>, written: Arc<AtomicUsize>) -> Duration {
    let (mut longest, mut began) = (Duration::ZERO, Instant::now());
    let mut wanted = 0;
    let mut standby = connect(&conninfo).await;
    loop {
        if standby.is_closed() {
            // Its own conflicts end it now and then.
            standby = connect(&conninfo).await;
        }
        let answer = standby.simple_query("SELECT n FROM written ORDER BY n DESC LIMIT 1").await;
        let shown = answer.iter().flatten().find_map(|message| match message {
            tokio_postgres::SimpleQueryMessage::Row(row) => row.get(0)?.parse().ok(),
            _ => None,
        });
        longest = longest.max(began.elapsed());
        if shown.unwrap_or(0) >= wanted {
            if stop.load(Ordering::Relaxed) {
                return longest;
            }
            (wanted, began) = (written.load(Ordering::Acquire), Instant::now());
        }
    }
}

impl Writes {
    async fn begin(sandbox: &Sandbox) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let written = Arc::new(AtomicUsize::new(0));
        let mut watchers = Vec::new();
        for node in [1, 2] {
            let (stop, written) = (Arc::clone(&stop), Arc::clone(&written));
            watchers.push(tokio::spawn(longest_lag(sandbox.conninfo(node), stop, written)));
        }
        let primary = sandbox.connect(0).await.unwrap();
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&written));
        let writer = tokio::spawn(async move {
            while !stopped.load(Ordering::Relaxed) {
                primary.batch_execute("UPDATE c SET v = v WHERE id % 8 = 0").await.unwrap();
                primary.batch_execute("VACUUM c").await.unwrap();
                let next = count.load(Ordering::Relaxed) + 1;
                primary.batch_execute(&format!("INSERT INTO written VALUES ({next})")).await.unwrap();
                count.store(next, Ordering::Release);
            }
        });
        Self { stop, written, writer, watchers }
    }

    /// Goes on until so much more has been written.
    async fn more(&self, count: usize) {
        let wanted = self.written.load(Ordering::Relaxed) + count;
        eventually("more is written", async || self.written.load(Ordering::Relaxed) >= wanted).await;
    }

    /// The longest time that any standby took to show what was written.
    async fn end(self) -> Duration {
        self.stop.store(true, Ordering::Relaxed);
        self.writer.await.unwrap();
        let mut longest = Duration::ZERO;
        for watcher in self.watchers {
            longest = longest.max(in_time("a standby's replay", watcher).await.unwrap());
        }
        longest
    }
}

/// What a stalled client reads at last: whole rows, then the error that says what to do.
fn told(answer: &[Message], begin: &str) {
    let kinds = kinds(answer);
    let rows = kinds.matches(['D', 'd']).count();
    let row = if begin.contains('H') { "d" } else { "D" };
    assert_eq!(kinds, format!("{begin}{}EZ", row.repeat(rows)));
    let error = &answer[answer.len() - 2];
    assert_eq!(error.sqlstate(), "40001", "{error:?}");
    let (detail, hint) = (error.field(b'D').unwrap(), error.field(b'H').unwrap());
    assert!(detail.contains("retry.standby_stall_timeout"), "{detail}");
    assert!(!hint.is_empty());
}

/// M01: fifty clients stop reading answers of 100 MB. The standbys' lag stays near `standby_stall_timeout`, which
/// without it would grow as long as they do not read; nor does the proxy's memory grow with their answers.
#[tokio::test]
async fn fifty_clients_that_stop_reading_do_not_stop_replay() {
    let (sandbox, proxy) = cluster(&[], &[]).await;
    let before = proxy.resident_bytes();
    let mut clients = Vec::new();
    for _ in 0..50 {
        clients.push(proxy.raw_logged_in().await);
    }
    for client in &mut clients {
        client.send(&query(LARGE)).await;
    }
    let servers = [connect(&sandbox.conninfo(1)).await, connect(&sandbox.conninfo(2)).await];
    eventually("all have stopped", async || {
        let mut stopped = stalls(&proxy).await;
        for server in &servers {
            let sql = "SELECT count(*)::float8 FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
            stopped += server.query_one(sql, &[]).await.unwrap().get::<_, f64>(0);
        }
        stopped > 49.5
    })
    .await;
    let writes = Writes::begin(&sandbox).await;
    eventually("all are given up", async || stalls(&proxy).await > 49.5).await;
    writes.more(50).await;
    let grown = proxy.resident_bytes().saturating_sub(before);
    let longest = writes.end().await;
    println!("longest lag {longest:?}, memory grown by {} MiB", grown >> 20);
    assert!(longest < Duration::from_secs(5), "a standby was {longest:?} behind");
    assert!(grown < 160 << 20, "the memory has grown by {grown}");
    for client in &mut clients {
        let answer = client.read_until(b'Z').await;
        told(&answer, "T");
        assert_eq!(status(&answer), 'I');
        assert!(values(&answer).len() < 50_000);
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    }
}

/// A short timeout, and an endpoint for standbys.
fn short_at(standby: &str) -> [(&'static str, &str); 2] {
    [("PGSTEER_LISTEN_STANDBY_ADDRESS", standby), ("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "100ms")]
}

async fn log_in_at(sandbox: &Sandbox, address: &str) -> RawClient {
    let mut client = RawClient { stream: tokio::net::TcpStream::connect(address).await.unwrap() };
    client.log_in(sandbox.user(), "postgres").await;
    client
}

async fn stalls_with(proxy: &Running, client: &mut RawClient, messages: &[u8]) -> Vec<Message> {
    let before = stalls(proxy).await;
    client.send(messages).await;
    eventually("it is given up", async || stalls(proxy).await > before).await;
    client.read_until(b'Z').await
}

/// M01: whatever the answer is to.
#[tokio::test]
async fn a_stalled_client_is_told_in_whole_messages() {
    let standby = running::free_address().to_string();
    let (sandbox, proxy) = cluster(&[], &short_at(&standby)).await;
    let mut client = log_in_at(&sandbox, &standby).await;
    let batch = [parse("", LARGE), bind("", "", &[]), execute(""), running::sync()].concat();
    let answer = stalls_with(&proxy, &mut client, &batch).await;
    told(&answer, "12");
    assert_eq!(status(&answer), 'I');

    let copy = query(&format!("COPY ({LARGE}) TO STDOUT"));
    let answer = stalls_with(&proxy, &mut client, &copy).await;
    told(&answer, "H");
    assert_eq!(status(&answer), 'I');

    for (first, statement) in [
        ("SELECT count(*) FROM c", LARGE.to_owned()),
        (&format!("DECLARE large CURSOR FOR {LARGE}"), "FETCH ALL FROM large".to_owned()),
    ] {
        assert_eq!(status(&client.query("BEGIN READ ONLY").await), 'T');
        assert_eq!(status(&client.query(first).await), 'T');
        let answer = stalls_with(&proxy, &mut client, &query(&statement)).await;
        told(&answer, "T");
        assert_eq!(status(&answer), 'E');
        assert_eq!(status(&client.query("ROLLBACK").await), 'I');
    }
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
}

/// M01: the end of a message larger than the buffers is waited for, so that there can be an error behind it.
#[tokio::test]
async fn a_stalled_client_gets_the_end_of_its_message() {
    let (_sandbox, proxy) = cluster(&[], &[("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "200ms")]).await;
    let mut client = proxy.raw_logged_in().await;
    let answer = stalls_with(&proxy, &mut client, &query(WIDE)).await;
    told(&answer, "T");
    assert!(answer.iter().filter(|it| it.kind == b'D').all(|row| row.body.len() > 4_000_000));
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
}

/// M01: a session that can't go on elsewhere.
#[tokio::test]
async fn a_stalled_client_of_a_kept_server_is_told_the_end() {
    let standby = running::free_address().to_string();
    let (sandbox, proxy) = cluster(&["--pool-mode", "session"], &short_at(&standby)).await;
    let mut client = log_in_at(&sandbox, &standby).await;
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    client.send(&query(LARGE)).await;
    eventually("it is given up", async || stalls(&proxy).await > 0.5).await;
    let answer = client.read_to_end().await;
    let kinds = kinds(&answer);
    assert_eq!(kinds, format!("T{}E", "D".repeat(answer.len() - 2)));
    let error = answer.last().unwrap();
    assert_eq!((error.sqlstate(), error.field(b'S')), ("57P01".to_owned(), Some("FATAL".to_owned())));
    assert!(error.field(b'D').unwrap().contains("retry.standby_stall_timeout"), "{error:?}");
}

/// Reads so many bytes with a pause between each two parts; the whole of it.
async fn read_slowly(client: &mut RawClient, part: usize, pause: Duration, bytes: usize) -> Vec<u8> {
    let mut read = Vec::new();
    let mut pauses = tokio::time::interval(pause);
    while read.len() < bytes {
        pauses.tick().await;
        let begin = read.len();
        read.resize(begin + part, 0);
        in_time("a part", client.stream.read_exact(&mut read[begin..])).await.unwrap();
    }
    read
}

/// Who reads steadily is only slow: its standby is slowed down, as the primary would be.
#[tokio::test]
async fn a_slow_client_gets_its_answer() {
    let (_sandbox, proxy) = cluster(&[], &[("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "500ms")]).await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&query("SELECT id, repeat('x', 1000) FROM c, generate_series(1, 100)")).await;
    // 40 MB in all, of which more than the timeout's worth is read slowly while nothing fits into any buffer any more.
    read_slowly(&mut client, 128 * 1024, Duration::from_millis(50), 10 << 20).await;
    let mut rest = Vec::new();
    while !rest.ends_with(b"Z\0\0\0\x05I") {
        assert!(in_time("the rest", client.stream.read_buf(&mut rest)).await.unwrap() > 0);
    }
    let complete = b"SELECT 40000\0";
    assert!(rest.windows(complete.len()).any(|window| window == complete));
    assert!(stalls(&proxy).await < 0.5);
}

/// M01: who reads so slowly that the server process hardly ever goes on does not hold up replay either, whether the conflict reaches
/// that process in time or its connection is closed.
#[tokio::test]
async fn a_slow_client_does_not_stop_replay() {
    let (sandbox, proxy) = cluster(&[], &[("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "500ms")]).await;
    let mut client = proxy.raw_logged_in().await;
    client.send(&query(LARGE)).await;
    // By then nothing fits into any buffer any more.
    let mut read = read_slowly(&mut client, 16 * 1024, Duration::from_millis(50), 1 << 20).await;
    let writes = Writes::begin(&sandbox).await;
    let mut pauses = tokio::time::interval(Duration::from_millis(50));
    while !read.ends_with(b"Z\0\0\0\x05I") {
        pauses.tick().await;
        let mut part = [0; 16 * 1024];
        let count = in_time("a part", client.stream.read(&mut part)).await.unwrap();
        assert!(count > 0, "the connection has ended");
        read.extend_from_slice(&part[..count]);
    }
    let longest = writes.end().await;
    assert!(longest < Duration::from_secs(4), "a standby was {longest:?} behind");
    assert!(read.windows(6).any(|window| window == b"C40001"));
}
