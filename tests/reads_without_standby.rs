//! What becomes of reads that no standby may answer: places on the primary, waits at each endpoint, standbys that let nobody in.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, free_address, in_time, no_errors, query, values};
use tokio::net::TcpStream;
use tokio_postgres::Client;

/// What tells where it ran: `t` on a standby.
const WHERE: &str = "SELECT pg_is_in_recovery()";

const ENVIRONMENT: [(&str, &str); 2] = [
    ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery,public.slow"),
    ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
];

/// A read that lasts until the advisory lock 7 is given up.
const SLOW: &str = "SELECT public.slow(7)";

async fn sandbox(standbys: usize) -> (Sandbox, Client) {
    let sandbox = Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap();
    let admin = sandbox.connect(0).await.unwrap();
    let slow =
        "CREATE FUNCTION slow(bigint) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock_shared($1)'";
    admin.batch_execute(slow).await.unwrap();
    admin.batch_execute("CREATE TABLE t (n int); SELECT pg_advisory_lock(7)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    (sandbox, admin)
}

async fn connect(address: SocketAddr) -> RawClient {
    let mut client = RawClient { stream: TcpStream::connect(address).await.unwrap() };
    no_errors(&client.log_in("postgres", "postgres").await);
    client
}

async fn run(client: &mut RawClient, statements: &[&str]) {
    for sql in statements {
        no_errors(&client.query(sql).await);
    }
}

/// How a read that has a place on the primary comes to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum End {
    Commit,
    Rollback,
    Failure,
    PinnedInIt,
    PinnedAndGone,
    Terminate,
    GoneInTransaction,
    GoneInRead,
    Cancel,
    TimeOut,
    ServerKilled,
    ServerKilledInRead,
}

impl End {
    const ALL: [Self; 12] = [
        Self::Commit,
        Self::Rollback,
        Self::Failure,
        Self::PinnedInIt,
        Self::PinnedAndGone,
        Self::Terminate,
        Self::GoneInTransaction,
        Self::GoneInRead,
        Self::Cancel,
        Self::TimeOut,
        Self::ServerKilled,
        Self::ServerKilledInRead,
    ];

    fn is_of_a_read(self) -> bool {
        matches!(self, Self::GoneInRead | Self::Cancel | Self::TimeOut | Self::ServerKilledInRead)
    }
}

/// R07: a place on the primary is taken for as long as its transaction lasts, and comes back however that ends.
#[tokio::test]
async fn r07_a_place_on_the_primary_comes_back_at_every_kind_of_end() {
    let (sandbox, admin) = sandbox(1).await;
    let environment =
        [&ENVIRONMENT[..], &[("PGSTEER_ROUTING_PRIMARY_READ_LIMIT", "1"), ("PGSTEER_HOLD_TIMEOUT", "60s")]]
            .concat();
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &environment).await;
    let mut other = connect(proxy.address).await;
    // No standby is as fresh as that.
    run(&mut other, &["SET pgsteer.max_lag = 0"]).await;
    let killed = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                  WHERE backend_type = 'client backend' AND query LIKE '%marked%' AND pid <> pg_backend_pid()";
    let runs = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    let count = async |sql: &str| admin.query_one(sql, &[]).await.unwrap().get::<_, i64>(0);
    for end in End::ALL {
        let (mut holder, key) = proxy.raw_with_key(running::PROTOCOL_3_0).await;
        run(&mut holder, &["SET pgsteer.max_lag = 0"]).await;
        if end == End::TimeOut {
            run(&mut holder, &["SET statement_timeout = '500ms'"]).await;
        }
        if end.is_of_a_read() {
            holder.send(&query(&format!("{SLOW}, 'marked'"))).await;
            eventually("it is under way", async || count(runs).await == 1).await;
        } else {
            run(&mut holder, &["BEGIN READ ONLY", "SELECT 'marked', pg_is_in_recovery()"]).await;
        }
        if end != End::TimeOut {
            run(&mut other, &["SET pgsteer.wait_for_standby = '1ms'"]).await;
            assert_eq!(errors(&other.query(WHERE).await), ["57P03"], "{end:?}: there is one place");
        }
        match end {
            End::Commit => run(&mut holder, &["COMMIT"]).await,
            End::Rollback => run(&mut holder, &["ROLLBACK"]).await,
            End::Failure => {
                assert_eq!(errors(&holder.query("SELECT 1 / 0").await), ["22012"]);
                run(&mut holder, &["COMMIT"]).await;
            }
            End::PinnedInIt | End::PinnedAndGone => {
                run(&mut holder, &["PREPARE p AS SELECT 5", "COMMIT"]).await;
                assert_eq!(values(&holder.query("SHOW pgsteer.pins").await), ["sql_prepare"]);
                assert_eq!(values(&holder.query("EXECUTE p").await), ["5"]);
            }
            End::Terminate => holder.send(&running::frame(b'X', b"")).await,
            End::Cancel => {
                proxy.cancel(&key).await;
                assert_eq!(errors(&in_time("the cancel", holder.read_until(b'Z')).await), ["57014"]);
            }
            End::TimeOut => {
                assert_eq!(errors(&in_time("the time-out", holder.read_until(b'Z')).await), ["57014"]);
            }
            End::ServerKilled | End::ServerKilledInRead => assert_eq!(count(killed).await, 1),
            End::GoneInTransaction | End::GoneInRead => {}
        }
        let stays = !matches!(end, End::PinnedAndGone | End::GoneInTransaction | End::GoneInRead);
        let _holder = stays.then_some(holder);
        // It waits until there is a place, as long as a hold may last.
        run(&mut other, &["SET pgsteer.wait_for_standby = 0"]).await;
        for _ in 0..2 {
            let answer = in_time("a place", other.query(WHERE)).await;
            assert_eq!(values(&answer), ["f"], "{end:?}: {answer:?}");
        }
    }
}

/// pgsteer with a listener of each kind for standbys.
async fn endpoints(sandbox: &Sandbox) -> (Running, SocketAddr, SocketAddr) {
    let (standby, prefer) = (free_address(), free_address());
    let listeners = [standby, prefer].map(|address| address.to_string());
    let [of_standby, of_prefer] = &listeners;
    let arguments = [
        "--auth",
        "trust",
        "--max-lag",
        "1h",
        "--hold-timeout",
        "60s",
        "--listen-standby",
        of_standby,
        "--listen-prefer-standby",
        of_prefer,
    ];
    let proxy = Running::start_with(sandbox, &arguments, &ENVIRONMENT).await;
    for address in [proxy.address, standby, prefer] {
        let mut client = connect(address).await;
        eventually("a standby answers", async || values(&client.query(WHERE).await) == ["t"]).await;
    }
    (proxy, standby, prefer)
}

/// `wait_for_standby` and `no_standby` at the endpoints for standbys, for sessions that are free and for those that are pinned there.
#[tokio::test]
async fn r07_endpoints_for_standbys_wait_as_long_as_they_are_told_to() {
    let (sandbox, _admin) = sandbox(1).await;
    let (proxy, standby, prefer) = endpoints(&sandbox).await;
    let wait = Duration::from_millis(300);
    for (address, is_pinned) in [(standby, false), (standby, true), (prefer, false), (prefer, true)] {
        let mut client = connect(address).await;
        if is_pinned {
            run(&mut client, &["PREPARE p AS SELECT 5"]).await;
        }
        // A SET needs a standby as well: the bound that none meets comes last.
        run(&mut client, &["SET pgsteer.wait_for_standby = '300ms'", "SET pgsteer.max_lag = 0"]).await;
        let began = Instant::now();
        let answer = in_time("the end of the wait", client.query(WHERE)).await;
        assert!(began.elapsed() >= wait, "{address} {is_pinned}: {:?}", began.elapsed());
        if address == prefer && !is_pinned {
            assert_eq!(values(&answer), ["f"], "the primary answers then");
        } else {
            assert_eq!(errors(&answer), ["57P03"], "{address} {is_pinned}");
        }
        let unbound = "/* pgsteer: max_lag=1h */";
        for setting in ["no_standby = error", "wait_for_standby = 0"] {
            run(&mut client, &[&format!("{unbound} SET pgsteer.{setting}")]).await;
        }
        let began = Instant::now();
        assert_eq!(errors(&client.query(WHERE).await), ["57P03"], "{address} {is_pinned}");
        assert!(began.elapsed() < Duration::from_secs(30), "at once, and not for as long as a hold");
        // A standby that has caught up ends the wait.
        for setting in ["wait_for_standby = '1h'", "max_lag = '1h'"] {
            run(&mut client, &[&format!("{unbound} SET pgsteer.{setting}")]).await;
        }
        sandbox.node(1).pause_replay().await.unwrap();
        let mut writer = connect(proxy.address).await;
        run(&mut writer, &["INSERT INTO t VALUES (1)"]).await;
        let token = values(&writer.query("SHOW pgsteer.token").await).concat();
        run(&mut client, &[&format!("SET pgsteer.token = '{token}'")]).await;
        client.send(&query(WHERE)).await;
        assert!(
            tokio::time::timeout(Duration::from_millis(200), client.stream.peek(&mut [0])).await.is_err(),
            "{address} {is_pinned}: it does not wait"
        );
        sandbox.node(1).resume_replay().await.unwrap();
        let answer = in_time("the standby has it", client.read_until(b'Z')).await;
        assert_eq!(values(&answer), ["t"], "{address} {is_pinned}: {answer:?}");
    }
}

/// R01: what a token asks for counts where a session stays on its standby, too.
#[tokio::test]
async fn r01_a_token_binds_a_session_that_is_pinned_to_a_standby() {
    let (sandbox, _admin) = sandbox(1).await;
    let (proxy, standby, prefer) = endpoints(&sandbox).await;
    let count = "SELECT count(*)::text || pg_is_in_recovery()::text FROM t";
    for (number, address) in [(1, standby), (2, prefer)] {
        let (mut bringing, mut other) = (connect(address).await, connect(address).await);
        for client in [&mut bringing, &mut other] {
            run(client, &["PREPARE p AS SELECT 5"]).await;
            assert_eq!(values(&client.query("SHOW pgsteer.pins").await), ["sql_prepare"]);
        }
        sandbox.node(1).pause_replay().await.unwrap();
        let mut writer = connect(proxy.address).await;
        run(&mut writer, &["INSERT INTO t VALUES (1)"]).await;
        let token = values(&writer.query("SHOW pgsteer.token").await).concat();
        let bring = format!("SET pgsteer.token = '{token}'");
        run(&mut bringing, &["SET pgsteer.wait_for_standby = '1h'", &bring]).await;
        let at_once = format!("/* pgsteer: wait_for_standby=0, no_standby=error */ {count}");
        assert_eq!(errors(&bringing.query(&at_once).await), ["57P03"]);
        assert_eq!(values(&other.query(count).await), [format!("{}true", number - 1)], "it has brought none");
        sandbox.node(1).resume_replay().await.unwrap();
        let answer = in_time("the standby has it", bringing.query(count)).await;
        assert_eq!(values(&answer), [format!("{number}true")]);
        assert_eq!(values(&bringing.query("EXECUTE p").await), ["5"], "it is pinned all the time");
    }
}

/// A standby that lets nobody in while it qualifies (53300 to a role that is there too often, 57P03 in the middle of a shutdown): its
/// reads go elsewhere.
#[tokio::test]
async fn a_standby_that_refuses_logins_is_gone_around() {
    let (sandbox, admin) = sandbox(2).await;
    admin.batch_execute("CREATE ROLE app LOGIN CONNECTION LIMIT 2; GRANT ALL ON t TO app").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let arguments = ["--auth", "trust", "--max-lag", "1m"];
    let proxy = Running::start_with(&sandbox, &arguments, &ENVIRONMENT).await;
    let mut taken = Vec::new();
    for _ in 0..2 {
        let mut client = RawClient { stream: TcpStream::connect(sandbox.node(1).address()).await.unwrap() };
        no_errors(&client.log_in("app", "postgres").await);
        taken.push(client);
    }
    let mut client = proxy.raw_as("app", "postgres").await;
    let all_read = async |client: &mut RawClient, expected: &str| {
        for _ in 0..50 {
            let answer = client.query(WHERE).await;
            assert_eq!(errors(&answer), [""; 0], "{expected}");
        }
    };
    all_read(&mut client, "53300").await;
    let staleness = async |node: usize| proxy.topology().await["nodes"][node]["staleness_ms"].is_u64();
    assert!(staleness(1).await, "it qualifies");
    drop(taken);

    // No new connections: those that are there go on, the probe's too.
    let postmaster = sandbox.node(2).pid().unwrap();
    let _stays = sandbox.connect(2).await.unwrap();
    kill(Pid::from_raw(postmaster.cast_signed()), Signal::SIGTERM).unwrap();
    eventually("it refuses logins", async || {
        let refused = sandbox.connect(2).await;
        refused.is_err()
    })
    .await;
    assert!(staleness(2).await, "it qualifies");
    admin.batch_execute("CREATE ROLE late LOGIN").await.unwrap();
    let late = sandbox.connect(1).await.unwrap();
    eventually("the role is there", async || {
        late.query_one("SELECT count(*) FROM pg_roles WHERE rolname = 'late'", &[])
            .await
            .unwrap()
            .get::<_, i64>(0)
            == 1
    })
    .await;
    let mut client = proxy.raw_as("late", "postgres").await;
    all_read(&mut client, "57P03").await;
    assert!(staleness(2).await, "it qualifies to the end");
}
