//! The ledger: many clients write rows of their own under random faults, and what they were told must agree with what is
//! there afterwards. X19, and with it X01 to X05, X08 and X14.
//!
//! `PGSTEER_FAULTS` is how many; `PGSTEER_SEED` the seed of the first cluster's, the others follow it. A failure tells both.
//! The same seed gives the same faults in the same order; what they meet is the machine's affair.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

#[path = "ledger/clients.rs"]
mod clients;
#[path = "ledger/faults.rs"]
mod faults;
mod running;
#[path = "ledger/stage.rs"]
mod stage;

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use faults::{Fault, schedule};
use running::in_time;
use running::ledger::{Fate, Write};
use running::relay::{Cut, Direction, Link, Manner, Relay};
use stage::Stage;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Faults of a common run.
const FAULTS: usize = 200;

/// Faults that one cluster sees.
const FAULTS_EACH: usize = 50;

/// Clients of each style.
const CLIENTS_EACH: i64 = 2;

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

/// X19: acknowledged is there once, 40001 is not, 08007 is there once or not, old epochs get nothing, connections stay.
#[tokio::test]
async fn what_clients_were_told_is_what_is_there() {
    let long = environment("PGSTEER_FAULTS");
    let drawn = if long.is_some() { fastrand::u64(..1 << 32) } else { 1 };
    let mut seed = environment("PGSTEER_SEED").unwrap_or(drawn);
    let mut left = long.map_or(FAULTS, |count| usize::try_from(count).unwrap());
    while left > 0 {
        let count = left.min(FAULTS_EACH);
        run(seed, count).await;
        left -= count;
        seed += 1;
    }
}

async fn run(seed: u64, count: usize) {
    let started = Instant::now();
    let mut stage = Stage::set(CLIENTS_EACH).await;
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for (number, fault) in schedule(seed, count).into_iter().enumerate() {
        println!("PGSTEER_SEED={seed} PGSTEER_FAULTS={} {:.1?}: {fault:?}", number + 1, started.elapsed());
        stage.cause(fault).await;
        *kinds.entry(kind(fault)).or_default() += 1;
    }
    let (tally, wrong) = stage.judge().await;
    println!("PGSTEER_SEED={seed} PGSTEER_FAULTS={count}: {:.1?}, {kinds:?}: {tally}", started.elapsed());
    assert!(wrong.is_empty(), "PGSTEER_SEED={seed} PGSTEER_FAULTS={count}\n{}", wrong.join("\n"));
}

fn kind(fault: Fault) -> String {
    let text = format!("{fault:?}");
    text.split([' ', '{']).next().unwrap_or_default().to_owned()
}

/// A seed is worth nothing if it gives something else the next time.
#[test]
fn a_seed_gives_the_same_faults() {
    let all: Vec<Fault> = (0..20).flat_map(|seed| schedule(seed, FAULTS_EACH)).collect();
    assert_eq!(all, (0..20).flat_map(|seed| schedule(seed, FAULTS_EACH)).collect::<Vec<_>>());
    assert_eq!(schedule(7, 10), schedule(7, FAULTS_EACH)[..10]);
    let text = format!("{all:?}");
    for part in [
        "Cut {",
        "Disturbed",
        "Terminated",
        "Crash",
        "Restart",
        "Frozen {",
        "Failover",
        "Handover",
        "Twice",
        "Orphaned",
        "Kill9",
        "Immediate",
        "Fast",
        "death: Frozen",
        "Silent",
        "Deaf",
        "Mute",
        "Refused",
        "AsItWas }",
        "AsItWasAndAlone",
        "Reattached",
        "second_wave: true",
        "ToNode",
        "FromNode",
        "Reset",
        "Close",
        "to: 0",
        "to: 1",
    ] {
        assert!(text.contains(part), "{part} never comes");
    }
}

#[test]
fn the_table_is_held_against_what_was_told() {
    let now = Instant::now();
    let write = |id, fate| Write { id, sent: now, answered: now, fate };
    let told = [Fate::Acknowledged, Fate::Unknown, Fate::RolledBack];
    let right = |count: i64, fate| {
        let rows: HashMap<i64, i64> = (count > 0).then_some((1, count)).into_iter().collect();
        running::ledger::faults(&rows, &[write(1, fate)]).is_empty()
    };
    assert_eq!(told.map(|fate| right(0, fate)), [false, true, true]);
    assert_eq!(told.map(|fate| right(1, fate)), [true, true, false]);
    assert_eq!(told.map(|fate| right(2, fate)), [false, false, false]);
}

/// A relay in front of a server of this test's own, and a connection through it: what the client has, what the server has.
async fn through_a_relay() -> (Relay, TcpStream, TcpStream) {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let relay = Relay::start(server.local_addr().unwrap()).await;
    let client = TcpStream::connect(relay.address).await.unwrap();
    let (served, _) = server.accept().await.unwrap();
    (relay, client, served)
}

#[tokio::test]
async fn a_relay_cuts_at_the_byte_that_it_was_told() {
    for manner in [Manner::Reset, Manner::Close] {
        let (relay, mut client, mut served) = through_a_relay().await;
        client.write_all(b"before").await.unwrap();
        let mut before = [0; 6];
        served.read_exact(&mut before).await.unwrap();
        let cut = Cut { direction: Direction::ToNode, after_bytes: 4, manner };
        let sent = async { client.write_all(b"123456").await.unwrap() };
        in_time("the cut", async { tokio::join!(relay.cut(cut), sent) }).await;
        let mut came = Vec::new();
        let ended = in_time("the end", served.read_to_end(&mut came)).await;
        match manner {
            Manner::Close => assert_eq!((came.as_slice(), ended.unwrap()), (&b"1234"[..], 4)),
            Manner::Reset => assert!(b"1234".starts_with(&came) && ended.is_err(), "{came:?} {ended:?}"),
        }
        assert!(matches!(in_time("the end", client.read(&mut before)).await, Ok(0) | Err(_)));
    }
}

#[tokio::test]
async fn a_silent_relay_keeps_back_and_a_refusing_one_resets() {
    let (relay, mut client, mut served) = through_a_relay().await;
    relay.set(Link::Mute);
    client.write_all(b"question").await.unwrap();
    let mut bytes = [0; 8];
    in_time("the question", served.read_exact(&mut bytes)).await.unwrap();
    served.write_all(b"answered").await.unwrap();
    let silence = tokio::time::timeout(Duration::from_millis(50), client.read(&mut bytes)).await;
    assert!(silence.is_err(), "{silence:?}");
    relay.set(Link::Open);
    in_time("the answer", client.read_exact(&mut bytes)).await.unwrap();
    assert_eq!(&bytes, b"answered");
    relay.set(Link::Refused);
    assert!(in_time("the end", client.read(&mut bytes)).await.is_err());
    assert!(in_time("the end", served.read(&mut bytes)).await.is_err());
    let mut refused = TcpStream::connect(relay.address).await.unwrap();
    assert!(matches!(in_time("the end", refused.read(&mut bytes)).await, Ok(0) | Err(_)));
}
