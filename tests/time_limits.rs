//! A session's `statement_timeout`, where pgsteer itself has to see to it: what runs again has what is left of it, and a standby that hangs
//! does not hold a client for longer. C07, C09.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, in_time, no_errors, query, status, values};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

async fn sandbox() -> Sandbox {
    Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap()
}

/// A pgsteer that knows nothing of the database yet.
async fn start_anew(sandbox: &Sandbox, nodes: [SocketAddr; 2], environment: &[(&str, &str)]) -> Running {
    let all = [
        ("PGSTEER_ROUTING_CONSISTENCY", "eventual"),
        ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
        ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_sleep"),
    ];
    let args = ["--auth", "trust", "--max-lag", "10min"];
    let proxy = Running::start_at(&nodes, sandbox, &args, &[&all[..], environment].concat()).await;
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
    proxy
}

async fn start(sandbox: &Sandbox, nodes: [SocketAddr; 2], environment: &[(&str, &str)]) -> Running {
    let proxy = start_anew(sandbox, nodes, environment).await;
    know_catalogue(&proxy).await;
    proxy
}

/// Behind an answer the database is asked for what it has.
async fn know_catalogue(proxy: &Running) {
    let mut client = proxy.raw_logged_in().await;
    for statement in ["BEGIN", "SELECT 1", "COMMIT", "BEGIN", "SELECT 1", "COMMIT"] {
        no_errors(&client.query(statement).await);
    }
}

/// A client with this `statement_timeout`.
async fn limited(sandbox: &Sandbox, proxy: &Running, limit: &str) -> RawClient {
    let options = format!("-c statement_timeout={limit}");
    let mut client = proxy.raw().await;
    client.log_in_with(&[("user", sandbox.user()), ("database", "postgres"), ("options", &options)]).await;
    client
}

/// In a READ ONLY transaction on the standby that has told something.
async fn told(proxy: &Running, client: &mut RawClient) {
    let there = async || proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    let before = there().await;
    no_errors(&client.query("BEGIN READ ONLY").await);
    no_errors(&client.query("SELECT 1").await);
    assert!(there().await > before, "it runs on the primary");
}

/// Text of a statement that a standby cancels, and whose answer on the primary waits for the end of its time.
const FIRST: &str = "SELECT 'first'";
/// The statement behind it.
const NEXT: &str = "SELECT pg_sleep(0.6), 'behind the first'";
const CANCELLED: &str = "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END$$";
const CANCEL_REQUEST: [u8; 4] = 80_877_102_u32.to_be_bytes();
/// How late a cancel request arrives, if nothing comes before it.
const LATE: Duration = Duration::from_millis(300);

/// What connections of one node tell each other.
#[derive(Default)]
struct Moments {
    cancel_came: Notify,
    next_came: Notify,
}

/// A standby that cancels `FIRST`.
async fn cancelling(node: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (proxy, _) = listener.accept().await.unwrap();
            let node = TcpStream::connect(node).await.unwrap();
            tokio::spawn(async move {
                let (mut from_proxy, mut to_proxy) = proxy.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let there = async move {
                    let mut bytes = vec![0; 64 * 1024];
                    loop {
                        let count = from_proxy.read(&mut bytes).await?;
                        if contains(&bytes[..count], FIRST) {
                            to_node.write_all(&begun_and_cancelled(&bytes[..count])).await?;
                        } else {
                            to_node.write_all(&bytes[..count]).await?;
                        }
                        if count == 0 {
                            return std::io::Result::Ok(());
                        }
                    }
                };
                tokio::select! {
                    _ = there => {}
                    _ = tokio::io::copy(&mut from_node, &mut to_proxy) => {}
                }
            });
        }
    });
    address
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|part| part == text.as_bytes())
}

/// What comes before a Query, and what raises its error in the place of that.
fn begun_and_cancelled(bytes: &[u8]) -> Vec<u8> {
    let text = bytes.windows(FIRST.len()).position(|part| part == FIRST.as_bytes()).unwrap();
    [&bytes[..text - 5], &query(CANCELLED)[..]].concat()
}

/// A primary that keeps back the answer to `FIRST` until a cancel request comes for it, and takes that only behind the next statement,
/// if there is one before it is `LATE`.
async fn late(node: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let moments = Arc::new(Moments::default());
    tokio::spawn(async move {
        loop {
            let (mut proxy, _) = listener.accept().await.unwrap();
            let mut node = TcpStream::connect(node).await.unwrap();
            let moments = Arc::clone(&moments);
            tokio::spawn(async move {
                let mut bytes = vec![0; 64 * 1024];
                let count = proxy.read(&mut bytes).await?;
                if bytes.get(4..8) == Some(&CANCEL_REQUEST) {
                    moments.cancel_came.notify_one();
                    let _ = tokio::time::timeout(LATE, moments.next_came.notified()).await;
                }
                node.write_all(&bytes[..count]).await?;
                let (mut from_proxy, mut to_proxy) = proxy.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let (first_sent, mut first) = mpsc::unbounded_channel();
                let told = Arc::clone(&moments);
                let there = async move {
                    loop {
                        let count = from_proxy.read(&mut bytes).await?;
                        let is_first = contains(&bytes[..count], FIRST);
                        if is_first {
                            first_sent.send(()).unwrap();
                        }
                        to_node.write_all(&bytes[..count]).await?;
                        if contains(&bytes[..count], NEXT) {
                            told.next_came.notify_one();
                        }
                        if count == 0 {
                            return std::io::Result::Ok(());
                        }
                    }
                };
                let back = async move {
                    let mut bytes = vec![0; 64 * 1024];
                    loop {
                        let count = from_node.read(&mut bytes).await?;
                        if first.try_recv().is_ok() {
                            moments.cancel_came.notified().await;
                        }
                        to_proxy.write_all(&bytes[..count]).await?;
                        if count == 0 {
                            return std::io::Result::Ok(());
                        }
                    }
                };
                tokio::select! {
                    ended = there => ended,
                    ended = back => ended,
                }
            });
        }
    });
    address
}

/// C07: the cancel by which pgsteer ends a statement that ran again is for that statement alone, however late it arrives.
#[tokio::test]
async fn the_end_of_a_statements_time_does_not_hit_the_next_statement() {
    let sandbox = sandbox().await;
    let nodes = [late(sandbox.node(0).address()).await, cancelling(sandbox.node(1).address()).await];
    let proxy = start(&sandbox, nodes, &[]).await;
    let mut client = limited(&sandbox, &proxy, "1s").await;
    no_errors(&client.query("BEGIN READ ONLY").await);
    assert_eq!(values(&client.query(FIRST).await), ["first"]);
    assert!(proxy.metric("pgsteer_retries_total", &[("cause", "conflict")]).await > 0.5, "it ran at once");
    let answer = client.query(NEXT).await;
    no_errors(&answer);
    assert_eq!((values(&answer).len(), status(&answer)), (1, 'T'), "{answer:?}");
}

/// C09: in a transaction that can't be begun anew, too.
#[tokio::test]
async fn a_standby_that_hangs_does_not_hold_a_transaction_for_longer_than_its_limit() {
    let sandbox = sandbox().await;
    let proxy = start(&sandbox, [0, 1].map(|node| sandbox.node(node).address()), &[]).await;
    let mut clients = Vec::new();
    for sets in [
        None,
        Some("SET LOCAL statement_timeout = 0"),
        Some("SAVEPOINT a"),
        Some("SET LOCAL work_mem = '1MB'"),
    ] {
        let mut client = limited(&sandbox, &proxy, "500ms").await;
        told(&proxy, &mut client).await;
        if let Some(sets) = sets {
            no_errors(&client.query(sets).await);
        }
        clients.push((sets, client));
    }
    let mut cursor = limited(&sandbox, &proxy, "500ms").await;
    told(&proxy, &mut cursor).await;
    no_errors(&cursor.query("DECLARE c CURSOR FOR SELECT generate_series(1, 10)").await);
    sandbox.node(1).sigstop().unwrap();
    let began = Instant::now();
    for (_, client) in &mut clients {
        client.send(&query("SELECT 2")).await;
    }
    cursor.send(&query("FETCH 3 FROM c")).await;
    let mut unlimited = None;
    for (sets, mut client) in clients.into_iter().chain([(Some("FETCH"), cursor)]) {
        if sets.is_some_and(|sets| sets.contains("statement_timeout")) {
            unlimited = Some(client);
            continue;
        }
        let answer = in_time("an answer", client.read_until(b'Z')).await;
        assert_eq!(
            (errors(&answer), status(&answer)),
            (vec!["57014".to_owned()], 'E'),
            "{sets:?}: {answer:?}"
        );
        assert!(began.elapsed() > Duration::from_millis(500), "too early");
        no_errors(&client.query("ROLLBACK").await);
        assert_eq!(values(&client.query("SELECT 3").await), ["3"]);
    }
    // Its transaction has no limit: it is answered when the standby goes on.
    sandbox.node(1).sigcont().unwrap();
    let answer = in_time("an answer", unlimited.unwrap().read_until(b'Z')).await;
    assert_eq!((values(&answer), status(&answer)), (vec!["2".to_owned()], 'T'), "{answer:?}");
}

/// The same as soon as it is known that what the transaction has read can't have set another limit.
#[tokio::test]
async fn a_standby_that_hangs_before_the_catalogue_is_known_holds_nobody_for_ever() {
    let sandbox = sandbox().await;
    let proxy = start_anew(&sandbox, [0, 1].map(|node| sandbox.node(node).address()), &[]).await;
    let mut client = limited(&sandbox, &proxy, "500ms").await;
    told(&proxy, &mut client).await;
    sandbox.node(1).sigstop().unwrap();
    client.send(&query("SELECT 2")).await;
    know_catalogue(&proxy).await;
    let answer = in_time("an answer", client.read_until(b'Z')).await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["57014".to_owned()], 'E'), "{answer:?}");
    sandbox.node(1).sigcont().unwrap();
}

/// A node whose answers are taken at once, and arrive part by part.
async fn far_away(node: SocketAddr) -> SocketAddr {
    const PART_BYTES: usize = 256 * 1024;
    const PART_TIME: Duration = Duration::from_millis(40);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (proxy, _) = listener.accept().await.unwrap();
            let node = TcpStream::connect(node).await.unwrap();
            tokio::spawn(async move {
                let (mut from_proxy, mut to_proxy) = proxy.into_split();
                let (mut from_node, mut to_node) = node.into_split();
                let (taken, mut parts) = mpsc::unbounded_channel();
                let take = async move {
                    loop {
                        let mut part = vec![0; PART_BYTES];
                        let count = from_node.read(&mut part).await?;
                        part.truncate(count);
                        if count == 0 || taken.send(part).is_err() {
                            return std::io::Result::Ok(());
                        }
                    }
                };
                let give = async move {
                    while let Some(part) = parts.recv().await {
                        if part.len() > PART_BYTES / 8 {
                            tokio::time::sleep(PART_TIME).await;
                        }
                        to_proxy.write_all(&part).await?;
                    }
                    std::io::Result::Ok(())
                };
                tokio::join!(
                    async {
                        let _ = tokio::io::copy(&mut from_proxy, &mut to_node).await;
                        let _ = to_node.shutdown().await;
                    },
                    async { drop(take.await) },
                    async { drop(give.await) }
                );
            });
        }
    });
    address
}

/// A client that takes a large answer slowly is not taken for a standby that hangs: what was answered in time goes on arriving.
#[tokio::test]
async fn a_slow_client_has_the_whole_of_an_answer_that_came_in_time() {
    let sandbox = sandbox().await;
    let nodes = [sandbox.node(0).address(), far_away(sandbox.node(1).address()).await];
    let proxy = start(&sandbox, nodes, &[("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "1min")]).await;
    let mut client = limited(&sandbox, &proxy, "2s").await;
    told(&proxy, &mut client).await;
    client.send(&query("SELECT repeat('x', 100000) FROM generate_series(1, 400)")).await;
    // Longer than the limit and what a server has beyond it.
    tokio::time::sleep(Duration::from_secs(8)).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), values(&answer).len(), status(&answer)), (vec![], 400, 'T'));
}
