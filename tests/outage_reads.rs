//! X13: the rate of reads while there is no primary, on sessions that are there and on new ones. By itself, since other tests
//! beside it would disturb what it measures.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use futures_util::future::{join, join_all};
use pgsteer::sandbox::{Auth, Sandbox, Sync};
use running::{RawClient, Running, values};
use tokio::time::{MissedTickBehavior, interval};

/// Sessions that are there.
const READERS: usize = 4;

/// Between two reads of a session, and between two new sessions: what a loaded machine can do. Who is late has lost a read.
const READ_INTERVAL: Duration = Duration::from_millis(40);
const LOGIN_INTERVAL: Duration = Duration::from_millis(100);

/// How long there is no primary.
const OUTAGE: Duration = Duration::from_secs(5);

/// How many reads there were, and what the slowest took.
#[derive(Debug, Clone, Copy, Default)]
struct Reads {
    count: u32,
    slowest: Duration,
}

impl Reads {
    fn and(self, other: Self) -> Self {
        Self { count: self.count + other.count, slowest: self.slowest.max(other.slowest) }
    }
}

async fn read(client: &mut RawClient) {
    let answer = client.query("SELECT count(*) FROM ledger").await;
    assert_eq!(values(&answer), ["0"], "{answer:?}");
}

/// Reads at this pace for so long; `None`: each on a session of its own.
async fn reads(proxy: &Running, mut client: Option<RawClient>, pace: Duration, lasts: Duration) -> Reads {
    let mut ticks = interval(pace);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let (began, mut reads) = (Instant::now(), Reads::default());
    loop {
        ticks.tick().await;
        if began.elapsed() >= lasts {
            return reads;
        }
        let asked = Instant::now();
        match &mut client {
            Some(client) => read(client).await,
            None => read(&mut proxy.raw_logged_in().await).await,
        }
        reads = reads.and(Reads { count: 1, slowest: asked.elapsed() });
    }
}

/// On sessions that are there, and on new ones.
async fn stretch(proxy: &Running, lasts: Duration) -> (Reads, Reads) {
    let mut readers = Vec::new();
    for _ in 0..READERS {
        readers.push(reads(proxy, Some(proxy.raw_logged_in().await), READ_INTERVAL, lasts));
    }
    let (there, new) = join(join_all(readers), reads(proxy, None, LOGIN_INTERVAL, lasts)).await;
    (there.into_iter().fold(Reads::default(), Reads::and), new)
}

#[tokio::test]
async fn reads_keep_their_rate_while_there_is_no_primary() {
    let sandbox = Sandbox::builder().sync(Sync::Any1).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--max-lag", "1m"]).await;
    // Connections are opened, and both standbys known.
    stretch(&proxy, OUTAGE / 10).await;
    let before = stretch(&proxy, OUTAGE).await;
    sandbox.node(0).kill9().await.unwrap();
    let during = stretch(&proxy, OUTAGE).await;
    assert!(proxy.topology().await["primary"].is_null());
    println!(
        "in {OUTAGE:?}, on sessions that are there and on new ones: {before:?}, without a primary {during:?}"
    );
    for (before, during) in [(before.0, during.0), (before.1, during.1)] {
        assert!(during.count * 10 >= before.count * 9, "{before:?}, without a primary {during:?}");
    }
}
