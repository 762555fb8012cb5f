//! Reasons to look for a new primary that are no failure of its node: a hint from outside, an answer of the primary that is late, a
//! connection that it ends.
//!
//! Rounds are seconds apart for the first two, so that only the reason finds it.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, eventually, in_time, no_errors, query, values};
use tokio::task::JoinHandle;

/// Much less than a round, and enough for a busy machine.
const AT_ONCE: Duration = Duration::from_secs(1);

async fn cluster(interval: &str, environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let environment = [&[("PGSTEER_TOPOLOGY_PROBE_INTERVAL", interval)], environment].concat();
    let args = ["--auth", "trust", "--max-lag", "1h", "--shards", "1"];
    let proxy = Running::start_with(&sandbox, &args, &environment).await;
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
    // 2 to 10 ms where nothing else runs; a round is 5 s.
    assert!(taken[2] < AT_ONCE, "{taken:?}");
}

/// X01: a server that shuts down ends its sessions one after the other, and that of the probes may be the last. Here a smart shutdown ends
/// none by itself: who has lost a connection is not sent to another one there.
#[tokio::test]
async fn a_primary_that_lets_nobody_in_is_not_well_because_probes_are_answered() {
    let (sandbox, proxy) = cluster("100ms", &[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let (mut lost, mut other) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    for sql in ["BEGIN", "INSERT INTO t VALUES (1)"] {
        no_errors(&lost.query(sql).await);
    }
    // It leaves its connection to whoever comes.
    no_errors(&other.query("INSERT INTO t VALUES (2)").await);
    kill(Pid::from_raw(sandbox.node(0).pid().unwrap().cast_signed()), Signal::SIGTERM).unwrap();
    eventually("nobody is let in", async || sandbox.connect(0).await.is_err()).await;
    assert!(proxy.log().matches("is suspected").count() == 0, "probes are answered");
    let ended = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE state = 'idle in transaction'";
    assert_eq!(direct.query(ended, &[]).await.unwrap().len(), 1);
    eventually("its end is noticed", async || proxy.log().contains("a server connection broke")).await;
    other.send(&query("INSERT INTO t VALUES (3) RETURNING inet_server_port()")).await;
    // It would be answered in milliseconds.
    assert!(tokio::time::timeout(AT_ONCE, other.stream.peek(&mut [0])).await.is_err(), "it is held");
    eventually("the primary is out of reach, and may live", async || {
        let topology = proxy.topology().await;
        topology["primary"].is_null() && topology["unreachable_for_ms"].is_u64()
    })
    .await;
    sandbox.promote_wait(1).await.unwrap();
    let answer = in_time("the write", other.read_until(b'Z')).await;
    no_errors(&answer);
    assert_eq!(values(&answer), [sandbox.node(1).port().to_string()]);
    let written = direct.query_one("SELECT count(*) FROM t WHERE n = 3", &[]).await.unwrap();
    assert_eq!(written.get::<_, i64>(0), 0, "on the old primary");
    assert_eq!(errors(&lost.query("INSERT INTO t VALUES (1)").await), ["40001"]);
}
