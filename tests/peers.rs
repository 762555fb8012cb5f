//! Several pgsteer processes in front of one cluster: a cancel request that comes to the wrong one reaches the statement where it
//! runs, and nothing else.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    CANCEL_REQUEST, PROTOCOL_3_0, PROTOCOL_3_2, RawClient, Running, errors, eventually, free_address,
    in_time, query, startup, startup_frame, values,
};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, TcpStream};

/// What pgsteer processes say to each other (`wire/peer.rs`).
const PEER_HELLO: i32 = 1234 << 16 | 28_001;
const PEER_CANCEL: i32 = 1234 << 16 | 28_002;

/// A cancel request's connection is kept open no longer than this.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);
/// A peer has so long to say who it is.
const PEER_LIMIT: Duration = Duration::from_secs(1);

async fn sandbox() -> Sandbox {
    Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap()
}

fn listed(addresses: &[SocketAddr]) -> String {
    addresses.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(",")
}

async fn start_one(sandbox: &Sandbox, address: SocketAddr, peers: &str, more: &[&str]) -> Running {
    let args =
        [&["--auth", "trust", "--shards", "2", "--log-level", "trace", "--peers", peers], more].concat();
    Running::start_on(address, sandbox, &args, &[]).await
}

/// So many processes that all have the same list of peers, themselves included and these besides.
async fn start<const N: usize>(sandbox: &Sandbox, besides: &[SocketAddr]) -> [Running; N] {
    let addresses = [(); N].map(|()| free_address());
    let peers = listed(&[&addresses[..], besides].concat());
    let mut processes = Vec::new();
    for address in addresses {
        processes.push(start_one(sandbox, address, &peers, &[]).await);
    }
    let Ok(processes) = processes.try_into() else { unreachable!("as many as addresses") };
    processes
}

/// The whole answer to one packet.
async fn ask(process: &Running, packet: &[u8]) -> Vec<u8> {
    let mut raw = process.raw().await;
    raw.send(packet).await;
    let mut answer = Vec::new();
    in_time("an answer", raw.stream.read_to_end(&mut answer)).await.unwrap();
    answer
}

async fn sleepers(sandbox: &Sandbox) -> usize {
    let mut direct = RawClient::direct(sandbox.node(0)).await;
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    values(&direct.query(sql).await).concat().parse().unwrap()
}

async fn begin_to_sleep(sandbox: &Sandbox, raw: &mut RawClient) {
    raw.send(&query("SELECT pg_sleep(100)")).await;
    eventually("it sleeps", async || sleepers(sandbox).await == 1).await;
}

async fn forwarded(process: &Running) -> f64 {
    process.metric("pgsteer_cancels_forwarded_total", &[]).await
}

#[tokio::test]
async fn a_running_statement_is_cancelled_whatever_process_is_asked() {
    let sandbox = sandbox().await;
    let processes: [Running; 3] = start(&sandbox, &[]).await;
    for version in [PROTOCOL_3_0, PROTOCOL_3_2] {
        for owner in &processes {
            let (mut raw, key) = owner.raw_with_key(version).await;
            for asked in &processes {
                begin_to_sleep(&sandbox, &mut raw).await;
                asked.cancel(&key).await;
                assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
            }
        }
    }
    for process in &processes {
        // Of six owners each had two others asked; that is two for each process and protocol.
        assert!(forwarded(process).await >= 4.0);
    }
}

/// Neither a key nor the process id that comes with it.
#[tokio::test]
async fn keys_are_not_logged() {
    let sandbox = sandbox().await;
    let processes: [Running; 2] = start(&sandbox, &[]).await;
    let (_raw, key) = processes[0].raw_with_key(PROTOCOL_3_2).await;
    let mut forged = key.clone();
    forged[4] ^= 1;
    processes[1].cancel(&key).await;
    processes[1].cancel(&forged).await;
    let process_id = i32::from_be_bytes(key[..4].try_into().unwrap()).to_string();
    let bytes = format!("{:?}", &key[5..]).replace(['[', ']'], "");
    let logs = processes.each_ref().map(Running::log).concat();
    assert!(logs.contains("DEBUG"), "what can be logged is");
    assert!(!logs.contains(&process_id) && !logs.contains(&bytes));
}

/// Statements and cancels that meet somewhere; the statement after is never hit, of whatever session.
#[tokio::test]
async fn the_next_statement_is_not_hit() {
    let sandbox = sandbox().await;
    let processes: [Running; 3] = start(&sandbox, &[]).await;
    for set_up in ["SELECT 1", "SET application_name = 'pinned'"] {
        let mut clients = Vec::new();
        for process in &processes {
            let (mut raw, key) = process.raw_with_key(PROTOCOL_3_0).await;
            raw.query(set_up).await;
            clients.push((raw, key));
        }
        let mut cancelled = 0;
        for round in 0..100 {
            let asked = &processes[(round + 1 + round / 3 % 2) % 3];
            let (raw, key) = &mut clients[round % 3];
            raw.send(&query("SELECT pg_sleep(0.004)")).await;
            let ((), answer) = tokio::join!(asked.cancel(key), raw.read_until(b'Z'));
            let codes = errors(&answer);
            assert!(codes.iter().all(|code| code == "57014"), "{answer:?}");
            cancelled += codes.len();
            let next = raw.query("SELECT pg_sleep(0.004)").await;
            assert_eq!(errors(&next), [""; 0], "round {round}: {next:?}");
            // The next one to use that server connection.
            let (other, _) = &mut clients[(round + 1) % 3];
            let next = other.query("SELECT pg_sleep(0.001)").await;
            assert_eq!(errors(&next), [""; 0], "round {round}: {next:?}");
        }
        assert!(cancelled > 0, "no cancel met its statement");
    }
}

/// A statement that waits for a server has nothing yet that a server could cancel.
#[tokio::test]
async fn a_statement_that_waits_is_cancelled() {
    let sandbox = sandbox().await;
    let (owner, asked) = (free_address(), free_address());
    let peers = listed(&[owner, asked]);
    let owner = start_one(&sandbox, owner, &peers, &["--pool-size", "1"]).await;
    let asked = start_one(&sandbox, asked, &peers, &[]).await;
    let (mut holds, _) = owner.raw_with_key(PROTOCOL_3_0).await;
    holds.query("BEGIN").await;
    holds.query("SELECT 1").await;
    let (mut waits, key) = owner.raw_with_key(PROTOCOL_3_0).await;
    waits.send(&query("SELECT 1")).await;
    let answer = async {
        let cancels = async {
            loop {
                asked.cancel(&key).await;
            }
        };
        // A request that comes before the statement does is for nothing.
        tokio::select! {
            answer = waits.read_until(b'Z') => answer,
            () = cancels => unreachable!("endless"),
        }
    };
    assert_eq!(errors(&answer.await), ["57014"]);
    assert_eq!(errors(&holds.query("COMMIT").await), [""; 0]);
    assert_eq!(values(&waits.query("SELECT 2").await), ["2"]);
}

/// In a rolling update: the process that drains gets no new clients, but what runs there can be cancelled.
#[tokio::test]
async fn a_process_that_drains_takes_cancel_requests() {
    let sandbox = sandbox().await;
    let [mut drains, other]: [Running; 2] = start(&sandbox, &[]).await;
    let mut clients = Vec::new();
    // Busy on one shard only: the other ends at once.
    let (mut busy, key) = drains.raw_with_key(PROTOCOL_3_0).await;
    busy.query("BEGIN").await;
    busy.query("SAVEPOINT a").await;
    begin_to_sleep(&sandbox, &mut busy).await;
    drains.terminate();
    eventually("it drains", async || drains.log().contains("draining")).await;
    for _ in 0..4 {
        let mut late = drains.raw().await;
        late.send(&startup(PROTOCOL_3_0, &[("user", "postgres")])).await;
        assert_eq!(errors(&late.read_to_end().await), ["57P01"]);
        // Nobody waits long for those that say nothing.
        clients.push(drains.raw().await);
    }
    for asked in [&other, &drains, &other] {
        asked.cancel(&key).await;
        assert_eq!(errors(&busy.read_until(b'Z').await), ["57014"]);
        busy.query("ROLLBACK TO a").await;
        begin_to_sleep(&sandbox, &mut busy).await;
    }
    other.cancel(&key).await;
    busy.read_until(b'Z').await;
    busy.send(&query("ROLLBACK")).await;
    assert_eq!(errors(&busy.read_to_end().await), ["57P01"]);
    for mut silent in clients {
        assert_eq!(errors(&silent.read_to_end().await), ["57P01"]);
    }
    assert!(drains.wait_exit().await.success());
}

/// Peers that are down, that accept and say nothing, and that are no pgsteer at all delay nobody.
#[tokio::test]
async fn peers_that_do_not_answer_delay_nobody() {
    let sandbox = sandbox().await;
    let black_hole = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let besides = [free_address(), black_hole.local_addr().unwrap(), sandbox.node(0).address()];
    let owners = [(); 3].map(|()| free_address());
    let peers = listed(&[&owners[..], &besides[..]].concat());
    let asked = start_one(&sandbox, free_address(), &peers, &[]).await;
    let mut fastest = CANCEL_LIMIT;
    for owner in owners {
        // It is there only now: nobody has heard of it.
        let owner = start_one(&sandbox, owner, &peers, &[]).await;
        let (mut raw, key) = owner.raw_with_key(PROTOCOL_3_0).await;
        for round in 0..2 {
            begin_to_sleep(&sandbox, &mut raw).await;
            let started = Instant::now();
            asked.cancel(&key).await;
            let elapsed = started.elapsed();
            assert!(elapsed < CANCEL_LIMIT);
            if round == 0 {
                fastest = fastest.min(elapsed);
            }
            assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
        }
        // A key of a process that has gone.
        drop(owner);
        let started = Instant::now();
        asked.cancel(&key).await;
        assert!(started.elapsed() < CANCEL_LIMIT);
    }
    assert!(fastest < PEER_LIMIT, "{fastest:?}");
    assert!(forwarded(&asked).await >= 6.0);
}

/// Keys that are made up hit nobody, and however many there are, the peers hardly notice.
#[tokio::test]
async fn forged_keys_cost_little() {
    let sandbox = sandbox().await;
    let [asked, peer]: [Running; 2] = start(&sandbox, &[]).await;
    let (mut raw, key) = peer.raw_with_key(PROTOCOL_3_0).await;
    begin_to_sleep(&sandbox, &mut raw).await;
    // The right token, the wrong secret or number.
    for index in [3, 4, 7] {
        let mut forged = key.clone();
        forged[index] ^= 1;
        asked.cancel(&forged).await;
        peer.cancel(&forged).await;
    }
    let known = peer.metric("pgsteer_clients_total", &[]).await;
    let mut flood = tokio::task::JoinSet::new();
    for number in 0..300u32 {
        let address = asked.address;
        let mut forged = key.clone();
        forged[0] ^= 0x40;
        forged[4..].copy_from_slice(&number.to_be_bytes());
        flood.spawn(async move {
            let mut raw = RawClient { stream: TcpStream::connect(address).await.unwrap() };
            raw.send(&startup_frame(CANCEL_REQUEST, &forged)).await;
            raw.read_to_end().await
        });
    }
    while let Some(answer) = flood.join_next().await {
        assert_eq!(answer.unwrap(), []);
    }
    // Each round asks once; how many there were depends on how fast the flood came.
    let asked_since = peer.metric("pgsteer_clients_total", &[]).await - known;
    assert!(asked_since < 30.0, "{asked_since}");
    assert_eq!(sleepers(&sandbox).await, 1);
    assert_eq!(forwarded(&asked).await, 0.0);
    asked.cancel(&key).await;
    assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
}

/// A request that was forwarded once stays where it is.
#[tokio::test]
async fn what_was_forwarded_is_not_forwarded_again() {
    let sandbox = sandbox().await;
    let [one, other]: [Running; 2] = start(&sandbox, &[]).await;
    let (mut raw, key) = other.raw_with_key(PROTOCOL_3_0).await;
    begin_to_sleep(&sandbox, &mut raw).await;
    assert_eq!(ask(&one, &startup_frame(PEER_CANCEL, &key)).await, b"N");
    assert_eq!(sleepers(&sandbox).await, 1);
    assert_eq!(ask(&other, &startup_frame(PEER_CANCEL, &key)).await, b"C");
    assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
    // Requests that can't be.
    assert_eq!(ask(&one, &startup_frame(PEER_CANCEL, b"")).await, b"");
    assert_eq!(ask(&one, &startup_frame(PEER_CANCEL, &[0; 4 + 257])).await, b"");
    let introductions = [
        ask(&one, &startup_frame(PEER_HELLO, b"")).await,
        ask(&other, &startup_frame(PEER_HELLO, b"")).await,
    ];
    assert!(introductions.iter().all(|bytes| bytes.starts_with(b"pgsteer\0") && bytes.len() == 26));
    assert_ne!(introductions[0], introductions[1]);
}

/// A process that is its own only peer: behind a headless Service it finds itself, too.
#[tokio::test]
async fn a_process_does_not_ask_itself() {
    let sandbox = sandbox().await;
    let address = free_address();
    // By name, as a Service has one.
    let peers = format!("localhost:{}", address.port());
    let process = start_one(&sandbox, address, &peers, &[]).await;
    let (mut raw, key) = process.raw_with_key(PROTOCOL_3_2).await;
    begin_to_sleep(&sandbox, &mut raw).await;
    let mut forged = key.clone();
    forged[0] ^= 0x40;
    process.cancel(&forged).await;
    forged[0] ^= 0x40;
    forged[9] ^= 1;
    process.cancel(&forged).await;
    assert_eq!(sleepers(&sandbox).await, 1);
    assert_eq!(forwarded(&process).await, 0.0);
    process.cancel(&key).await;
    assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
}
