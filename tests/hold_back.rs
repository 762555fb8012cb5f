//! What it costs that the answer of a read is held back until it cannot be cancelled any more (`retry.buffer`). Figures, to be asked for:
//!
//!     cargo test --release --test hold_back -- --ignored --nocapture --test-threads 1
//!
//! Two pgsteers before one cluster, one with `retry.buffer = "0B"`, by turns. What a slow read's first row takes is a test like others.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::figures::{bench, cpu, median};
use running::{RawClient, Running, query};
use tokio::io::AsyncReadExt;

const ROUNDS: usize = 21;
/// The columns of a round: the work done in a second, and pgsteer's CPU for a unit of it.
type Figures = (f64, f64);

async fn cluster() -> Sandbox {
    let sandbox =
        Sandbox::builder().standbys(1).auth(Auth::Trust).max_connections(200).start().await.unwrap();
    bench(&sandbox, sandbox.primary().port(), &["-i", "-q", "-s", "5"]).await;
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

/// Both pgsteers by turns; prints the medians and the median of the rounds' ratios.
async fn compare(name: &str, sandbox: &Sandbox, unit: &str, measure: impl AsyncFn(&Running) -> Figures) {
    let held = Running::start_with(sandbox, &["--auth", "trust"], &[]).await;
    let not_held =
        Running::start_with(sandbox, &["--auth", "trust"], &[("PGSTEER_RETRY_BUFFER", "0B")]).await;
    let mut rounds: [Vec<Figures>; 2] = Default::default();
    for round in 0..=ROUNDS {
        for turn in 0..2 {
            // Who begins changes; the first round warms up.
            let which = (turn + round) % 2;
            let figures = measure([&held, &not_held][which]).await;
            if round > 0 {
                rounds[which].push(figures);
            }
        }
    }
    let of =
        |which: usize, pick: fn(&Figures) -> f64| -> Vec<f64> { rounds[which].iter().map(pick).collect() };
    let ratio = |pick: fn(&Figures) -> f64| {
        median(of(0, pick).iter().zip(of(1, pick)).map(|(held, not)| held / not).collect())
    };
    println!(
        "{name}: held {:.0} {unit}/s, not held {:.0}: x {:.4}; CPU {:.2} and {:.2} us each: x {:.4}",
        median(of(0, |it| it.0)),
        median(of(1, |it| it.0)),
        ratio(|it| it.0),
        median(of(0, |it| it.1)),
        median(of(1, |it| it.1)),
        ratio(|it| it.1),
    );
}

#[tokio::test]
#[ignore = "figures, on a machine that does nothing else: \
            cargo test --release --test hold_back -- --ignored --nocapture --test-threads 1"]
async fn what_it_costs_small_answers() {
    let sandbox = cluster().await;
    for protocol in ["simple", "prepared"] {
        let args = ["-n", "-S", "-M", protocol, "-c", "8", "-T", "4"];
        compare(&format!("pgbench -S -M {protocol}"), &sandbox, "statements", async |proxy| {
            let before = cpu(proxy.pid());
            let tps = bench(&sandbox, proxy.address.port(), &args).await;
            (tps, (cpu(proxy.pid()) - before).as_secs_f64() * 1e6 / (tps * 4.0))
        })
        .await;
    }
}

/// Reads the answer to a query until it is complete; gives its bytes.
async fn drain(client: &mut RawClient, text: &str) -> usize {
    client.send(&query(text)).await;
    let (mut bytes, mut total) = (vec![0; 256 << 10], 0);
    loop {
        let read = client.stream.read(&mut bytes).await.unwrap();
        assert!(read > 0, "the connection ended behind {total} bytes");
        total += read;
        if bytes[..read].ends_with(b"Z\0\0\0\x05I") {
            return total;
        }
    }
}

#[tokio::test]
#[ignore = "figures, on a machine that does nothing else: \
            cargo test --release --test hold_back -- --ignored --nocapture --test-threads 1"]
async fn what_it_costs_a_large_result() {
    const ROWS: f64 = 1e6;
    let sandbox = cluster().await;
    let text = "SELECT repeat('x', 1000) FROM generate_series(1, 1000000)";
    compare("1 GB in rows of 1 kB", &sandbox, "rows", async |proxy| {
        let mut client = proxy.raw_logged_in().await;
        let (before, began) = (cpu(proxy.pid()), Instant::now());
        assert!(drain(&mut client, text).await > 1_000_000_000);
        (ROWS / began.elapsed().as_secs_f64(), (cpu(proxy.pid()) - before).as_secs_f64() * 1e6 / ROWS)
    })
    .await;
}

/// C05: rows that come slowly are not kept for longer than `retry.hold_time`, counted from when they came, whatever place there is.
#[tokio::test]
async fn a_slow_read_s_first_row_is_kept_for_the_hold_time_at_most() {
    const HOLD_TIME: Duration = Duration::from_millis(500);
    const SENT_AT: Duration = Duration::from_millis(400);
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    // The server sends what fills its own buffer of 8 kB; all of it fits into retry.buffer, and takes two seconds.
    let text = "SELECT repeat('x', 8200), pg_sleep(0.4) FROM generate_series(1, 5)";
    let mut times = Vec::new();
    for _ in 0..3 {
        let began = Instant::now();
        client.send(&query(text)).await;
        assert_eq!(client.read().await.kind, b'T');
        assert_eq!(client.read().await.kind, b'D');
        let (first, last) = (began.elapsed(), {
            client.read_until(b'Z').await;
            began.elapsed()
        });
        assert!(last >= Duration::from_secs(2), "it comes slowly: {last:?}");
        times.push((first, last));
    }
    println!("first row and the end: {times:?}");
    // The server sends it at 400 ms. The best of them: what the machine does beside is not the proxy's.
    let best = times.iter().map(|(first, _)| *first).min().unwrap();
    assert!(best < SENT_AT + HOLD_TIME + Duration::from_millis(100), "{times:?}");
}
