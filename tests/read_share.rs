//! Which share of the reads standbys answer under pgbench, and what a statement costs. Figures, no promise: to be asked for.
//!
//!     cargo test --release --test read_share -- --ignored --nocapture --test-threads 1
//!
//! What is counted as a read is what is no part of a transaction with writes: the statements of `select-only`.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used, clippy::cast_precision_loss)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::Running;
use running::figures::{bench, cpu};

const SECONDS: &str = "6";

/// Nine of ten transactions read.
const MIX: [&str; 4] = ["-b", "select-only@9", "-b", "simple-update@1"];

/// Reads answered by standbys and by the primary, and everything that was routed.
async fn routed(proxy: &Running) -> [f64; 3] {
    let routed =
        async |labels: &[(&str, &str)]| proxy.metric("pgsteer_statements_routed_total", labels).await;
    let all = routed(&[]).await;
    let writes = routed(&[("reason", "needs_primary")]).await;
    let standbys = routed(&[("side", "standby")]).await;
    [standbys, all - writes - standbys, all]
}

async fn measure(name: &str, sandbox: &Sandbox, environment: &[(&str, &str)], args: &[&str]) {
    let proxy = Running::start_with(sandbox, &["--auth", "trust"], environment).await;
    let port = proxy.address.port();
    bench(sandbox, port, &[&["-n", "-T", "1"], args].concat()).await;
    let (before, cpu_before) = (routed(&proxy).await, cpu(proxy.pid()));
    let tps = bench(sandbox, port, &[&["-n", "-T", SECONDS], args].concat()).await;
    let (after, used) = (routed(&proxy).await, cpu(proxy.pid()) - cpu_before);
    let [standbys, primary, all] = std::array::from_fn(|at| after[at] - before[at]);
    println!(
        "{name}: {:.1} % of {:.0} reads on standbys; {tps:.0} transactions/s, {:.1} us of CPU for a statement or transaction",
        standbys * 100.0 / (standbys + primary).max(1.0),
        standbys + primary,
        used.as_secs_f64() * 1e6 / all.max(1.0)
    );
    for line in proxy.metrics().await.lines() {
        let is_read = line.starts_with("pgsteer_statements_routed_total{side=\"primary\"")
            && !line.contains("needs_primary");
        if is_read && !line.ends_with(" 0") {
            println!("    {line}");
        }
    }
}

async fn cluster(standbys: usize) -> Sandbox {
    let sandbox =
        Sandbox::builder().standbys(standbys).auth(Auth::Trust).max_connections(200).start().await.unwrap();
    bench(&sandbox, sandbox.primary().port(), &["-i", "-q", "-s", "5"]).await;
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

#[tokio::test]
#[ignore = "figures, on a machine that does nothing else: \
            cargo test --release --test read_share -- --ignored --nocapture --test-threads 1"]
async fn the_share_of_reads_on_standbys_under_a_mix() {
    let sandbox = cluster(2).await;
    let at_once: Vec<&str> = MIX.into_iter().chain(["-c", "8"]).collect();
    // Clients that think: 40 transactions a second each.
    let thinking: Vec<&str> = MIX.into_iter().chain(["-c", "8", "-R", "320"]).collect();
    for (pace, args) in [("at once", &at_once), ("40/s each", &thinking)] {
        for (name, environment) in [
            ("default", &[][..]),
            ("recent_writes 0", &[("PGSTEER_ROUTING_RECENT_WRITES", "0s")][..]),
            (
                "recent_writes 0, wait_for_standby 50 ms",
                &[("PGSTEER_ROUTING_RECENT_WRITES", "0s"), ("PGSTEER_ROUTING_WAIT_FOR_STANDBY", "50ms")][..],
            ),
            ("wait_for_standby 50 ms", &[("PGSTEER_ROUTING_WAIT_FOR_STANDBY", "50ms")][..]),
            ("eventual", &[("PGSTEER_ROUTING_CONSISTENCY", "eventual")][..]),
        ] {
            measure(&format!("{pace}, {name}"), &sandbox, environment, args).await;
        }
    }
}

#[tokio::test]
#[ignore = "figures, on a machine that does nothing else: \
            cargo test --release --test read_share -- --ignored --nocapture --test-threads 1"]
async fn what_eventual_reads_cost_by_the_number_of_standbys() {
    for standbys in [1, 2] {
        let sandbox = cluster(standbys).await;
        let environment = [("PGSTEER_ROUTING_CONSISTENCY", "eventual")];
        let args = ["-S", "-M", "prepared", "-c", "16", "-j", "2"];
        measure(&format!("{standbys} standbys, pgbench -S"), &sandbox, &environment, &args).await;
    }
}
