//! Reasons to look for a new primary that are no failure: a hint from outside, and an answer of the primary that is late.
//!
//! Rounds are seconds apart here, so that only the reason finds it.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, eventually, no_errors, query};
use tokio::task::JoinHandle;

/// Much less than a round, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn cluster(interval: &str, environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let environment = [&[("PGSTEER_TOPOLOGY_PROBE_INTERVAL", interval)], environment].concat();
    let proxy = Running::start_with(&sandbox, &["--auth", "trust", "--max-lag", "1h"], &environment).await;
    (sandbox, proxy)
}

/// Looks every millisecond, on a connection of its own, when the first standby is out of recovery.
async fn promoted(sandbox: &Sandbox) -> JoinHandle<Instant> {
    let direct = sandbox.connect(1).await.unwrap();
    tokio::spawn(async move {
        while direct.query_one("SELECT pg_is_in_recovery()", &[]).await.unwrap().get(0) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Instant::now()
    })
}

async fn epoch_2(proxy: &Running) -> Instant {
    eventually("the new primary is seen", async || proxy.topology().await["epoch"] == 2).await;
    Instant::now()
}

async fn hint(proxy: &Running, arguments: &[&str]) -> Output {
    let admin = proxy.admin.to_string();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteer"));
    command.arg("hint").args(["--admin", &admin]).args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

/// The old primary lives and says that it is one; nothing breaks.
#[tokio::test]
async fn a_promotion_that_was_hinted_at_is_seen_long_before_the_next_round() {
    let ttl = ("PGSTEER_TOPOLOGY_CLAIM_TTL", "30s");
    for (watch, arguments) in [("off", &[][..]), ("on", &["--node", "n2"][..])] {
        let (sandbox, proxy) = cluster("10s", &[ttl, ("PGSTEER_TOPOLOGY_PROMOTION_WATCH", watch)]).await;
        let out = hint(&proxy, &["--node", "db7:5432"]).await;
        assert!(
            !out.status.success() && String::from_utf8_lossy(&out.stderr).contains("no such node"),
            "{out:?}"
        );
        // Before the promotion, as Patroni does.
        let promoted = promoted(&sandbox).await;
        assert!(hint(&proxy, arguments).await.status.success());
        sandbox.promote(1).unwrap();
        let seen = epoch_2(&proxy).await;
        let after = seen.saturating_duration_since(promoted.await.unwrap());
        println!("watch {watch}: {after:?} after the promotion");
        assert!(after < AT_ONCE, "{after:?}");
        assert!((proxy.metric("pgsteer_doubts_total", &[("cause", "hint")]).await - 1.0).abs() < 0.1);
        assert!(
            proxy.topology().await["events"].to_string().contains("a change of the primary was announced")
        );
        let mut client = proxy.raw_logged_in().await;
        no_errors(&client.query("INSERT INTO t VALUES (1)").await);
    }
}

/// SIGSTOP: its sockets stay open, and nothing is known of it but that it answers late.
#[tokio::test]
async fn a_promotion_behind_a_primary_that_hangs_is_seen_at_once() {
    let mut taken = Vec::new();
    for _ in 0..3 {
        let (sandbox, proxy) = cluster(
            "5s",
            &[("PGSTEER_TOPOLOGY_CLAIM_TTL", "20s"), ("PGSTEER_TOPOLOGY_PROBE_TIMEOUT", "20s")],
        )
        .await;
        let mut busy = proxy.raw_logged_in().await;
        no_errors(&busy.query("INSERT INTO t VALUES (1)").await);
        let promoted = promoted(&sandbox).await;
        sandbox.node(0).sigstop().unwrap();
        let hangs = Instant::now();
        busy.send(&query("INSERT INTO t VALUES (2)")).await;
        eventually("the answer is late", async || {
            proxy.metric("pgsteer_doubts_total", &[("cause", "answer_late")]).await > 0.0
        })
        .await;
        assert!(hangs.elapsed() < AT_ONCE, "it is asked between rounds: {:?}", hangs.elapsed());
        let topology = proxy.topology().await;
        assert_eq!((&topology["suspected"], &topology["primary"]["name"]), (&false.into(), &"n1".into()));
        sandbox.promote(1).unwrap();
        let seen = epoch_2(&proxy).await;
        taken.push(seen.saturating_duration_since(promoted.await.unwrap()));
        let mut client = proxy.raw_logged_in().await;
        no_errors(&client.query("INSERT INTO t VALUES (3)").await);
    }
    taken.sort_unstable();
    println!("after the promotion: {taken:?}");
    assert!(taken[0] < Duration::from_millis(30), "{taken:?}");
    assert!(taken[2] < AT_ONCE, "{taken:?}");
}
