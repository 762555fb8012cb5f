//! The sandbox against real servers: every fault does what it says, and nothing stays behind, whoever ends it.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Auth, Reattached, Sandbox, Sync};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

/// Set in the process that holds a sandbox until it is killed.
const HOLDER: &str = "PGSTEER_TEST_SANDBOX_HOLDER";

/// The one place where these tests wait: looks until the condition holds.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(30), "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn is_alive(pid: u32) -> bool {
    if let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
        return !stat.contains(") Z ");
    }
    !Path::new("/proc/self").exists() && kill(Pid::from_raw(pid.cast_signed()), None).is_ok()
}

fn assert_nothing_left(pids: &[u32], directory: &Path) {
    assert!(!pids.is_empty());
    let left: Vec<_> = pids.iter().filter(|&&pid| is_alive(pid)).collect();
    assert!(left.is_empty(), "processes left: {left:?}");
    assert!(!directory.exists(), "{} left", directory.display());
}

fn all_pids(sandbox: &Sandbox) -> Vec<u32> {
    sandbox.nodes().iter().flat_map(pgsteer::sandbox::Node::pids).collect()
}

async fn count(client: &Client) -> i64 {
    client.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

async fn insert(client: &Client, value: i32) {
    client.execute("INSERT INTO t VALUES ($1)", &[&value]).await.unwrap();
}

async fn with_table(standbys: usize, sync: Sync) -> (Sandbox, Client) {
    let sandbox = Sandbox::builder().standbys(standbys).sync(sync).start().await.unwrap();
    let client = sandbox.connect(0).await.unwrap();
    client.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    (sandbox, client)
}

#[tokio::test]
async fn a_cluster_replicates_and_leaves_nothing_behind() {
    let started = Instant::now();
    let sandbox = Sandbox::builder()
        .sync(Sync::Any1)
        .hot_standby_feedback(true)
        .setting("work_mem", "1MB")
        .start()
        .await
        .unwrap();
    println!("a cluster of three took {:?}", started.elapsed());
    let (client, connection) = tokio_postgres::connect(&sandbox.conninfo(0), NoTls).await.unwrap();
    tokio::spawn(connection);
    client.batch_execute("CREATE TABLE t (i int); INSERT INTO t VALUES (1)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    for index in [1, 2] {
        let standby = sandbox.connect(index).await.unwrap();
        assert_eq!(count(&standby).await, 1);
        let row =
            standby.query_one("SELECT current_setting('cluster_name'), current_setting('work_mem')", &[]);
        let row = row.await.unwrap();
        assert_eq!((row.get(0), row.get(1)), (sandbox.node(index).name(), "1MB"));
    }
    let quorum = "SELECT count(*) FROM pg_stat_replication WHERE sync_state = 'quorum'";
    assert_eq!(client.query_one(quorum, &[]).await.unwrap().get::<_, i64>(0), 2);

    let (pids, directory) = (all_pids(&sandbox), sandbox.directory().to_owned());
    drop(sandbox);
    assert_nothing_left(&pids, &directory);
}

#[tokio::test]
async fn tcp_clients_need_the_password_unless_trusted() {
    let scram = Sandbox::builder().standbys(0).start().await.unwrap();
    let wrong = scram.conninfo(0).replace(scram.password(), "wrong");
    let refused = tokio_postgres::connect(&wrong, NoTls).await.err().unwrap();
    assert_eq!(refused.code(), Some(&SqlState::INVALID_PASSWORD));

    let trust = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let wrong = trust.conninfo(0).replace(trust.password(), "wrong");
    drop(tokio_postgres::connect(&wrong, NoTls).await.unwrap());
}

#[tokio::test]
async fn a_killed_primary_is_replaced_comes_back_as_split_brain_and_is_rewound() {
    let (sandbox, client) = with_table(2, Sync::Async).await;
    insert(&client, 1).await;
    sandbox.wait_caught_up().await.unwrap();

    let family = sandbox.node(0).pids();
    sandbox.node(0).kill9().await.unwrap();
    assert!(!family.iter().any(|&pid| is_alive(pid)));
    let chosen = sandbox.most_advanced_standby().await.unwrap();
    sandbox.promote_wait(chosen).await.unwrap();
    let other = 3 - chosen;
    sandbox.follow(other, chosen).await.unwrap();
    let promoted = sandbox.connect(chosen).await.unwrap();
    insert(&promoted, 2).await;
    sandbox.wait_caught_up().await.unwrap();
    assert_eq!(count(&sandbox.connect(other).await.unwrap()).await, 2);

    sandbox.node(0).start().await.unwrap();
    let old = sandbox.connect(0).await.unwrap();
    insert(&old, 77).await;
    insert(&old, 78).await;
    insert(&old, 79).await;
    assert_eq!((count(&old).await, count(&promoted).await), (4, 2), "split brain: both accept writes");

    assert_eq!(sandbox.reattach(0, chosen).await.unwrap(), Reattached::Rewound);
    insert(&promoted, 3).await;
    sandbox.wait_streaming().await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    assert_eq!(count(&sandbox.connect(0).await.unwrap()).await, 3);
}

#[tokio::test]
async fn a_frozen_node_does_not_answer_until_it_goes_on() {
    let (sandbox, client) = with_table(1, Sync::Any1).await;
    sandbox.node(1).sigstop().unwrap();
    let insert = client.execute("INSERT INTO t VALUES (1)", &[]);
    let mut insert = std::pin::pin!(insert);
    let waited = tokio::time::timeout(Duration::from_millis(200), insert.as_mut()).await;
    assert!(waited.is_err(), "a synchronous commit waits for the frozen standby");
    sandbox.node(1).sigcont().unwrap();
    insert.await.unwrap();

    sandbox.node(0).sigstop().unwrap();
    let answer = client.query("SELECT 1", &[]);
    let mut answer = std::pin::pin!(answer);
    assert!(tokio::time::timeout(Duration::from_millis(200), answer.as_mut()).await.is_err());
    sandbox.node(0).sigcont().unwrap();
    answer.await.unwrap();
}

#[tokio::test]
async fn paused_replay_receives_but_does_not_show() {
    let (sandbox, client) = with_table(1, Sync::Any1).await;
    sandbox.wait_caught_up().await.unwrap();
    sandbox.node(1).pause_replay().await.unwrap();
    insert(&client, 1).await;
    let standby = sandbox.connect(1).await.unwrap();
    assert_eq!(count(&standby).await, 0);
    sandbox.node(1).resume_replay().await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    assert_eq!(count(&standby).await, 1);
}

#[tokio::test]
async fn stopped_servers_tell_their_sessions_why_and_start_again() {
    let (sandbox, client) = with_table(0, Sync::Async).await;
    sandbox.node(0).stop_fast().await.unwrap();
    assert!(client.query("SELECT 1", &[]).await.is_err());
    assert!(sandbox.node(0).pids().is_empty());
    sandbox.node(0).start().await.unwrap();
    sandbox.node(0).stop_immediate().await.unwrap();
    sandbox.node(0).start().await.unwrap();
    assert_eq!(count(&sandbox.connect(0).await.unwrap()).await, 0);
    assert!(sandbox.node(0).start().await.unwrap_err().to_string().contains("running already"));
}

#[tokio::test]
async fn backends_that_outlive_their_postmaster_end_with_the_sandbox() {
    let (sandbox, client) = with_table(0, Sync::Async).await;
    // Busy with nothing but the processor, it does not notice that its postmaster is gone.
    let busy = tokio::spawn(async move {
        client.batch_execute("DO $$ BEGIN LOOP PERFORM 1; END LOOP; END $$").await.unwrap_err();
    });
    let watcher = sandbox.connect(0).await.unwrap();
    let active = "SELECT pid FROM pg_stat_activity WHERE query LIKE 'DO %' AND state = 'active'";
    let pid = loop {
        if let Some(row) = watcher.query_opt(active, &[]).await.unwrap() {
            break row.get::<_, i32>(0).cast_unsigned();
        }
        tokio::task::yield_now().await;
    };
    sandbox.node(0).kill9_postmaster_only().await.unwrap();
    assert!(is_alive(pid), "the busy backend goes on");
    assert!(sandbox.connect(0).await.is_err(), "nobody new gets in");
    sandbox.node(0).start().await.unwrap();
    busy.await.unwrap();
    assert!(!is_alive(pid), "a new start ends what the old one left");

    sandbox.node(0).kill9_postmaster_only().await.unwrap();
    let directory = sandbox.directory().to_owned();
    drop(sandbox);
    assert_nothing_left(&[pid], &directory);
}

#[tokio::test]
async fn a_panic_leaves_nothing_behind() {
    let (report, reported) = std::sync::mpsc::channel();
    let task = tokio::spawn(async move {
        let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
        sandbox.node(1).sigstop().unwrap();
        report.send((all_pids(&sandbox), sandbox.directory().to_owned())).unwrap();
        panic!("on purpose");
    });
    assert!(task.await.unwrap_err().is_panic());
    let (pids, directory) = reported.recv().unwrap();
    assert_nothing_left(&pids, &directory);
}

/// Not a test by itself: the process that the next test kills.
#[tokio::test]
async fn hold_a_sandbox_when_asked_to() {
    if std::env::var_os(HOLDER).is_none() {
        return;
    }
    let sandbox = Sandbox::builder().standbys(2).start().await.unwrap();
    let pids: Vec<String> = all_pids(&sandbox).iter().map(ToString::to_string).collect();
    sandbox.node(1).sigstop().unwrap();
    sandbox.node(2).kill9_postmaster_only().await.unwrap();
    let mut out = std::io::stdout();
    writeln!(out, "\nholding {} {}", sandbox.directory().display(), pids.join(" ")).unwrap();
    std::future::pending::<()>().await;
}

#[test]
fn killing_the_holder_leaves_nothing_behind() {
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGINT] {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "hold_a_sandbox_when_asked_to", "--nocapture"])
            .env(HOLDER, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let line = lines.map_while(Result::ok).find(|line| line.starts_with("holding ")).unwrap();
        let mut words = line.split_whitespace().skip(1);
        let directory = PathBuf::from(words.next().unwrap());
        let pids: Vec<u32> = words.map(|word| word.parse().unwrap()).collect();
        assert!(pids.len() > 10 && directory.exists());

        kill(Pid::from_raw(holder.id().cast_signed()), signal).unwrap();
        holder.wait().unwrap();
        eventually("the directory is gone", || !directory.exists());
        eventually("all processes are gone", || !pids.iter().any(|&pid| is_alive(pid)));
    }
}
