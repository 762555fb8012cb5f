//! The admin console, by a driver's simple queries and by psql: what it answers, whom it lets in, and what it leaves alone.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Binaries, Sandbox};
use running::{Running, errors, eventually, in_time, kinds, no_errors, parse, query, sync, tag, values};
use tokio_postgres::{Client, SimpleQueryMessage, SimpleQueryRow};

const USERS: (&str, &str) = ("PGSTEER_ADMIN_CONSOLE_USERS", "postgres,ops");

async fn start(standbys: usize) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &[USERS]).await;
    (sandbox, proxy)
}

async fn console(proxy: &Running) -> Client {
    proxy.connect("ops", "", "pgsteer").await
}

async fn rows(console: &Client, command: &str) -> Vec<SimpleQueryRow> {
    let messages = in_time(command, console.simple_query(command)).await.unwrap();
    messages
        .into_iter()
        .filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some(row),
            _ => None,
        })
        .collect()
}

async fn refused(console: &Client, command: &str) -> (String, String) {
    let error = in_time(command, console.simple_query(command)).await.expect_err("no such command");
    let error = error.as_db_error().unwrap().clone();
    (error.code().code().to_owned(), error.hint().unwrap_or_default().to_owned())
}

async fn psql(proxy: &Running, arguments: &[&str]) -> Output {
    let mut command = Command::new(Binaries::find().unwrap().program("psql"));
    command
        .args([
            "-X",
            "-h",
            "127.0.0.1",
            "-p",
            &proxy.address.port().to_string(),
            "-U",
            "postgres",
            "-d",
            "pgsteer",
        ])
        .args(arguments);
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test]
async fn it_shows_what_the_admin_address_does() {
    let (_sandbox, proxy) = start(1).await;
    no_errors(&proxy.raw_logged_in().await.query("CREATE TABLE t (n int)").await);
    let console = console(&proxy).await;
    eventually("both nodes are known", async || {
        let nodes = rows(&console, "SHOW NODES").await;
        nodes.iter().map(|node| node.get("role").unwrap()).eq(["primary", "standby"])
    })
    .await;
    let pools = rows(&console, "show pools;").await;
    assert!(pools.iter().any(|pool| (pool.get("node"), pool.get("limit_reached")) == (Some("n1"), None)));
    let stats = rows(&console, "Show Stats").await;
    let of = |name: &str| stats.iter().filter(|row| row.get("name") == Some(name)).count();
    assert_eq!((of("pgsteer_clients_active"), of("pgsteer_doubts_total")), (1, 10));
    assert_eq!(rows(&console, "SHOW FAILOVERS").await.len(), 0);
    assert_eq!(rows(&console, "SHOW LEARNED").await.len(), 0);
    assert_eq!(rows(&console, "SHOW CLIENTS").await[0].get("max_client_conn"), Some("10000"));
    assert!(rows(&console, "SHOW VERSION").await[0].get(0).unwrap().starts_with("pgsteer "));
    let help = rows(&console, "SHOW HELP").await;
    assert!(help.iter().any(|row| row.get("command") == Some("HINT [host:port]")));
}

#[tokio::test]
async fn what_is_no_command_is_refused_with_what_to_do() {
    let (_sandbox, proxy) = start(0).await;
    let console = console(&proxy).await;
    for command in ["SELECT 1", "SHOW TABLES", "SHOW NODES; RESUME", "PAUSE soon"] {
        let (code, hint) = refused(&console, command).await;
        assert_eq!(code, "42601", "{command}");
        assert!(hint.contains("SHOW HELP"), "{hint}");
    }
    assert_eq!(refused(&console, "HINT db9:5432").await.0, "22023");
    let extended = console.query("SHOW NODES", &[]).await.expect_err("not by the extended protocol");
    assert_eq!(extended.code().unwrap().code(), "0A000");
    // It goes on after each.
    assert_eq!(rows(&console, "SHOW NODES").await.len(), 1);
    assert!(
        console.simple_query("").await.unwrap().iter().all(|it| !matches!(it, SimpleQueryMessage::Row(_)))
    );
    console.batch_execute("SET extra_float_digits = 3").await.unwrap();

    let mut raw = proxy.raw_as("ops", "pgsteer").await;
    let batch = [parse("", "SHOW NODES"), parse("", "SHOW NODES"), sync(), query("SHOW VERSION")].concat();
    raw.send(&batch).await;
    assert_eq!(kinds(&raw.read_until(b'Z').await), "EZ");
    assert_eq!(kinds(&raw.read_until(b'Z').await), "TDCZ");
    raw.send(b"Q\0\x01\0\x01").await;
    assert_eq!(errors(&raw.read_to_end().await), ["08P01"], "64 KiB are enough for a command");
}

#[tokio::test]
async fn only_those_who_are_listed_come_in_and_without_them_it_is_not_there() {
    let (sandbox, proxy) = start(0).await;
    let error = proxy.try_connect("somebody", "", "pgsteer").await.expect_err("not listed");
    assert_eq!(error.code().unwrap().code(), "28000");
    // Without users the database is one as any other.
    sandbox.connect(0).await.unwrap().batch_execute("CREATE DATABASE pgsteer").await.unwrap();
    let plain = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut client = plain.raw_as(sandbox.user(), "pgsteer").await;
    assert_eq!(values(&client.query("SELECT current_database()").await), ["pgsteer"]);
    let other = [USERS, ("PGSTEER_ADMIN_CONSOLE_DATABASE", "steering")];
    let other = Running::start_with(&sandbox, &["--auth", "trust"], &other).await;
    let mut client = other.raw_as(sandbox.user(), "pgsteer").await;
    assert_eq!(values(&client.query("SELECT current_database()").await), ["pgsteer"]);
    assert_eq!(rows(&other.connect("ops", "", "steering").await, "SHOW NODES").await.len(), 1);
}

/// They log in with their password, as to any database.
#[tokio::test]
async fn its_users_prove_who_they_are() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let proxy = Running::start_with(&sandbox, &[], &[USERS]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE ops LOGIN PASSWORD 'right'").await.unwrap();
    let error = proxy.try_connect("ops", "wrong", "pgsteer").await.expect_err("a wrong password");
    assert_eq!(error.code().unwrap().code(), "28P01");
    let console = proxy.connect("ops", "right", "pgsteer").await;
    assert_eq!(rows(&console, "SHOW NODES").await.len(), 1);
}

#[tokio::test]
async fn it_needs_no_server() {
    let (sandbox, proxy) = start(1).await;
    for node in 0..2 {
        sandbox.node(node).kill9().await.unwrap();
    }
    let console = console(&proxy).await;
    eventually("none is there", async || {
        let nodes = rows(&console, "SHOW NODES").await;
        nodes.len() == 2 && nodes.iter().all(|node| node.get("role") == Some("unknown"))
    })
    .await;
    assert_eq!(rows(&console, "HINT").await[0].get("primary"), None);
}

#[tokio::test]
async fn it_pauses_and_resumes() {
    let (_sandbox, proxy) = start(0).await;
    let console = console(&proxy).await;
    let (mut busy, mut other) = (proxy.raw_logged_in().await, proxy.raw_logged_in().await);
    no_errors(&busy.query("CREATE TABLE t (n int)").await);
    no_errors(&busy.query("BEGIN; INSERT INTO t VALUES (1)").await);
    assert_eq!(refused(&console, "PAUSE 0").await.0, "55000");
    other.send(&query("INSERT INTO t VALUES (2)")).await;
    eventually("it is held", async || proxy.metric("pgsteer_statements_waiting", &[]).await > 0.5).await;
    let state = rows(&console, "SHOW STATE").await;
    assert_eq!((state[0].get("state"), state[0].get("on_primary")), (Some("pausing"), Some("1")));
    // Who waits for the pause does not stop the shard, nor other consoles.
    let (mut waits, mut asks) = (proxy.raw_as("ops", "pgsteer").await, proxy.raw_as("ops", "pgsteer").await);
    waits.send(&query("PAUSE 600")).await;
    no_errors(&asks.query("SHOW NODES").await);
    no_errors(&busy.query("COMMIT").await);
    assert_eq!(tag(&waits.read_until(b'Z').await), "PAUSE");
    assert_eq!(rows(&console, "SHOW STATE").await[0].get("state"), Some("paused"));
    console.batch_execute("resume;").await.unwrap();
    no_errors(&other.read_until(b'Z').await);
}

#[tokio::test]
async fn a_hint_finds_a_promotion_long_before_the_next_round() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let environment =
        [USERS, ("PGSTEER_TOPOLOGY_PROBE_INTERVAL", "20s"), ("PGSTEER_TOPOLOGY_CLAIM_TTL", "40s")];
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &environment).await;
    let console = console(&proxy).await;
    let looking = rows(&console, "HINT n2").await;
    assert_eq!((looking[0].get("expects"), looking[0].get("primary")), (Some("n2"), Some("n1")));
    let began = Instant::now();
    sandbox.promote_wait(1).await.unwrap();
    eventually("the new primary is seen", async || {
        rows(&console, "SHOW NODES").await[1].get("role") == Some("primary")
    })
    .await;
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    eventually("it is recorded", async || {
        let failovers = rows(&console, "SHOW FAILOVERS").await;
        failovers.iter().any(|it| (it.get("old_primary"), it.get("new_primary")) == (Some("n1"), Some("n2")))
    })
    .await;
}

#[tokio::test]
async fn psql_can_use_it() {
    let (_sandbox, proxy) = start(0).await;
    let out =
        psql(&proxy, &["-A", "-t", "-F", "|", "-c", "SHOW NODES", "-c", "PAUSE;", "-c", "RESUME"]).await;
    assert!(out.status.success(), "{out:?}");
    let text = String::from_utf8(out.stdout).unwrap();
    assert!(text.starts_with("n1|127.0.0.1:") && text.ends_with("PAUSE\nRESUME\n"), "{text}");
    let out = psql(&proxy, &["-c", "SELECT 1"]).await;
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(said.contains("unknown command: SELECT 1") && said.contains("SHOW HELP"), "{said}");
}

#[tokio::test]
async fn the_drain_ends_it() {
    let (_sandbox, mut proxy) = start(0).await;
    let mut raw = proxy.raw_as("ops", "pgsteer").await;
    no_errors(&raw.query("SHOW NODES").await);
    proxy.terminate();
    assert_eq!(errors(&raw.read_to_end().await), ["57P01"]);
    assert!(proxy.wait_exit().await.success());
}
