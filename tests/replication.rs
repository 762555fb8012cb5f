//! Replication connections: what a server of one's own would say, to the tools that use them; and their end with its primary.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::path::{Path, PathBuf};
use std::process::Stdio;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    CANCEL_REQUEST, Message, PROTOCOL_3_0, RawClient, Running, errors, eventually, frame, in_time, kinds,
    query, startup, startup_frame, values,
};
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_postgres::Client;

const LOGICAL: (&str, &str) = ("replication", "database");
const PHYSICAL: (&str, &str) = ("replication", "true");

async fn trusting(standbys: usize) -> Sandbox {
    let builder = Sandbox::builder().standbys(standbys).auth(Auth::Trust);
    builder.setting("wal_level", "logical").start().await.unwrap()
}

async fn proxy(sandbox: &Sandbox, extra: &[&str]) -> Running {
    Running::start(sandbox, &[&["--auth", "trust"], extra].concat()).await
}

fn parameters<'p>(kind: (&'p str, &'p str)) -> [(&'p str, &'p str); 4] {
    [("user", "postgres"), ("database", "postgres"), kind, ("application_name", "a replica")]
}

async fn replicating(proxy: &Running, kind: (&str, &str)) -> RawClient {
    let mut raw = proxy.raw().await;
    raw.log_in_with(&parameters(kind)).await;
    raw
}

/// The third column of IDENTIFY_SYSTEM.
fn position_of(row: &Message) -> String {
    let mut rest = &row.body[2..];
    let mut columns = std::iter::from_fn(|| {
        let (length, behind) = rest.split_first_chunk::<4>()?;
        let (column, behind) = behind.split_at(usize::try_from(u32::from_be_bytes(*length)).ok()?);
        rest = behind;
        Some(String::from_utf8_lossy(column).into_owned())
    });
    columns.nth(2).unwrap()
}

async fn one(client: &Client, sql: &str) -> String {
    client.query_one(sql, &[]).await.unwrap().get(0)
}

/// What is there of the stream of WAL: a message of it has come.
async fn start_streaming(raw: &mut RawClient) {
    let position = raw.query("IDENTIFY_SYSTEM").await;
    let lsn = position_of(position.iter().find(|message| message.kind == b'D').unwrap());
    raw.send(&query(&format!("START_REPLICATION PHYSICAL {lsn}"))).await;
    let begun = raw.read().await;
    assert_eq!(begun.kind, b'W', "CopyBothResponse: {begun:?}");
    // A keepalive comes at once when the stream has caught up.
    assert_eq!(raw.read().await.kind, b'd');
}

async fn connections(proxy: &Running, expected: usize) {
    eventually("so many replication connections are there", async || {
        proxy.metric("pgsteer_replication_connections", &[]).await as usize == expected
    })
    .await;
}

/// So many servers wait for their clients to read, and go on doing so: each does now and then.
async fn stuck(direct: &Client, expected: &str) {
    let mut in_a_row = 0;
    eventually("servers wait for their clients", async || {
        let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'ClientWrite'";
        in_a_row = if one(direct, sql).await == expected { in_a_row + 1 } else { 0 };
        in_a_row == 100
    })
    .await;
}

/// Greeting, commands, errors: message by message what the server itself says.
#[tokio::test]
async fn speaks_as_the_server_does() {
    let sandbox = trusting(1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE plain LOGIN; CREATE ROLE replica LOGIN REPLICATION").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let commands = [
        "IDENTIFY_SYSTEM",
        "SHOW wal_level",
        "SHOW application_name",
        "SELECT 1; SELECT current_database()",
        "SELECT 1/0",
        "BEGIN",
        "CREATE TABLE replicated (i int)",
        "ROLLBACK",
        "SET work_mem = '99kB'",
        "SHOW work_mem",
        "CREATE_REPLICATION_SLOT never TEMPORARY LOGICAL no_such_plugin",
        "TIMELINE_HISTORY 77",
        "START_REPLICATION SLOT no_such_slot PHYSICAL 0/0",
    ];
    for user in ["postgres", "plain", "replica"] {
        for kind in [LOGICAL, PHYSICAL, ("replication", "on"), ("replication", "tru")] {
            let mut asked = parameters(kind);
            asked[0].1 = user;
            let mut seen = Vec::new();
            for address in [sandbox.primary().address(), proxy.address] {
                let mut raw = RawClient { stream: TcpStream::connect(address).await.unwrap() };
                raw.send(&startup(PROTOCOL_3_0, &asked)).await;
                let mut said: Vec<Message> = Vec::new();
                while let Some(message) = raw.try_read().await {
                    let last = message.kind == b'Z';
                    said.push(message);
                    if last {
                        break;
                    }
                }
                if said.last().is_some_and(|last| last.kind == b'Z') {
                    for command in commands {
                        said.extend(raw.query(command).await);
                    }
                }
                // The key is pgsteer's own, and only its length is the same. The position of the server moves by itself.
                said.iter_mut().filter(|it| it.kind == b'K').for_each(|key| key.body.fill(0));
                let position = said.iter_mut().find(|it| it.kind == b'D');
                position.into_iter().for_each(|row| row.body = row.body[..29].to_vec());
                seen.push(said);
            }
            let (direct, through) = (&seen[0], &seen[1]);
            for (number, (direct, through)) in direct.iter().zip(through).enumerate() {
                assert_eq!(direct, through, "{user} {kind:?}, message {number}");
            }
            assert_eq!(direct.len(), through.len(), "{user} {kind:?}");
            let is_in = direct.iter().any(|message| message.kind == b'Z');
            assert_eq!(is_in, user != "plain", "{direct:?}");
        }
    }
    let refused = proxy.metric("pgsteer_errors_total", &[("sqlstate", "57P01")]).await;
    assert_eq!(refused, 0.0, "nobody lost anything");
    connections(&proxy, 0).await;
}

/// Runs a tool that lies beside the server's binaries, as superuser with a password.
async fn tool(sandbox: &Sandbox, port: u16, program: &str, args: &[&str]) {
    let path = sandbox.binaries().program(program);
    assert!(path.exists(), "{} is missing: it comes with PostgreSQL's client programs", path.display());
    let mut command = Command::new(path);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    command
        .args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", sandbox.user(), "-w"])
        .args(args)
        .env("PGPASSWORD", sandbox.password())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = in_time(program, command.output()).await.unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {}\n{said}", output.status);
}

/// An empty place for what tools write.
fn place(name: &str) -> PathBuf {
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("replication-{name}"));
    // It may not be there.
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).unwrap();
    place
}

/// A base backup, a stream of WAL and one of changes, with SCRAM: what they write is what is there.
#[tokio::test]
async fn tools_write_what_the_server_has() {
    let sandbox = Sandbox::builder().standbys(1).setting("wal_level", "logical").start().await.unwrap();
    let proxy = Running::start(&sandbox, &[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let port = proxy.address.port();
    let place = place("tools");
    let at = |name: &str| place.join(name).to_str().unwrap().to_owned();
    direct.batch_execute("CREATE PUBLICATION everything FOR ALL TABLES").await.unwrap();
    let own_port = sandbox.primary().port();
    for (port, slot) in [(port, "changes"), (own_port, "twin")] {
        let args = ["--create-slot", "--plugin", "pgoutput", "--slot", slot, "-d", "postgres"];
        tool(&sandbox, port, "pg_recvlogical", &args).await;
    }
    // Whole segments of WAL, from before the table to behind it.
    let wal = at("wal");
    std::fs::create_dir(&wal).unwrap();
    tool(&sandbox, port, "pg_receivewal", &["--create-slot", "--slot", "receiver"]).await;
    let sql = "SELECT (pg_current_wal_lsn() + 2 * 16777216::numeric)::text";
    let end = one(&direct, sql).await;
    let args = ["-D", &wal, "--slot", "receiver", "--endpos", &end, "--no-loop"];
    let receiving = tool(&sandbox, port, "pg_receivewal", &args);
    let writing = async {
        eventually("WAL is streamed", async || {
            let sql =
                "SELECT count(*)::text FROM pg_stat_replication WHERE application_name = 'pg_receivewal'
                       AND state = 'streaming'";
            one(&direct, sql).await == "1"
        })
        .await;
        for i in 0..4 {
            direct
                .batch_execute(&format!(
                    "CREATE TABLE replicated_{i} AS
                         SELECT i, repeat(md5(i::text), 20) AS t FROM generate_series(1, 5000) i;
                     INSERT INTO replicated_{i} VALUES (0, 'the last of {i}')"
                ))
                .await
                .unwrap();
            one(&direct, "SELECT pg_switch_wal()::text").await;
        }
    };
    tokio::join!(receiving, writing);
    let mut segments = 0;
    for entry in std::fs::read_dir(&wal).unwrap() {
        let entry = entry.unwrap();
        let name = entry.file_name().into_string().unwrap();
        if name.ends_with(".partial") {
            continue;
        }
        let sql = format!("SELECT pg_read_binary_file('pg_wal/{name}')");
        let original: Vec<u8> = direct.query_one(&sql, &[]).await.unwrap().get(0);
        assert!(std::fs::read(entry.path()).unwrap() == original, "{name} is not the server's");
        segments += 1;
    }
    assert!(segments >= 2, "{segments} segments to {end}");

    let backup = at("backup");
    tool(&sandbox, port, "pg_basebackup", &["-D", &backup, "-X", "stream", "--checkpoint=fast"]).await;
    let verify =
        Command::new(sandbox.binaries().program("pg_verifybackup")).arg(&backup).output().await.unwrap();
    assert!(verify.status.success(), "{}", String::from_utf8_lossy(&verify.stderr));

    let options = ["-o", "proto_version=1", "-o", "publication_names=everything", "--no-loop", "--endpos"];
    let end = one(&direct, "SELECT pg_current_wal_lsn()::text").await;
    for (port, slot) in [(port, "changes"), (own_port, "twin")] {
        let file = at(slot);
        let own = ["--start", "-f", &file, "--slot", slot, "-d", "postgres"];
        tool(&sandbox, port, "pg_recvlogical", &[&own[..], &options, &[&end]].concat()).await;
    }
    let (through, direct) = (std::fs::read(at("changes")).unwrap(), std::fs::read(at("twin")).unwrap());
    assert!(through.windows(13).any(|part| part == b"the last of 3"), "the changes are there");
    assert!(through == direct, "{} bytes of changes, {} directly", through.len(), direct.len());
    connections(&proxy, 0).await;
    std::fs::remove_dir_all(&place).unwrap();
}

/// The old primary lives on, and its stream would, too: it is cut, for who reads and for who does not.
#[tokio::test]
async fn a_new_primary_ends_the_streams_of_the_old() {
    let sandbox = trusting(2).await;
    let proxy = proxy(&sandbox, &[]).await;
    let old = sandbox.connect(0).await.unwrap();
    let mut streaming = replicating(&proxy, PHYSICAL).await;
    start_streaming(&mut streaming).await;
    let mut idle = replicating(&proxy, LOGICAL).await;
    // Their clients do not read: a part of a message is under way.
    let mut deaf = [replicating(&proxy, LOGICAL).await, replicating(&proxy, LOGICAL).await];
    for raw in &mut deaf {
        raw.send(&query("SELECT repeat('x', 1000000) FROM generate_series(1, 200)")).await;
    }
    stuck(&old, "2").await;
    connections(&proxy, 4).await;

    sandbox.promote_wait(1).await.unwrap();
    let said = streaming.read_to_end().await;
    assert_eq!(errors(&said), ["57P01"], "{}", kinds(&said));
    // This one wakes up while there would be time to say something.
    let mut rest = Vec::new();
    in_time("the end", deaf[0].stream.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.windows(5).any(|part| part == b"57P01"), "nothing is said inside a message");
    assert!(rest.len() > 64 * 1024 && rest[rest.len() - 100..].iter().all(|byte| *byte == b'x'));
    let last = idle.read_to_end().await;
    assert_eq!((kinds(&last), errors(&last)), ("E".to_owned(), vec!["57P01".to_owned()]));
    assert!(last[0].field(b'M').unwrap().contains("pgsteer"), "{last:?}");
    // The other never does, and is cut all the same.
    connections(&proxy, 0).await;

    // Who comes again is led to the new one.
    let mut again = replicating(&proxy, LOGICAL).await;
    let port = again.query("SELECT current_setting('port')").await;
    assert_eq!(values(&port), [sandbox.node(1).port().to_string()]);
    start_streaming(&mut replicating(&proxy, PHYSICAL).await).await;
}

/// While there is no primary a replication client waits at the door; a standby is no substitute.
#[tokio::test]
async fn waits_for_a_primary() {
    let sandbox = trusting(1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut before = replicating(&proxy, PHYSICAL).await;
    sandbox.node(0).kill9().await.unwrap();
    let said = before.read_to_end().await;
    assert_eq!(errors(&said), ["57P01"], "{said:?}");
    let mut waiting = proxy.raw().await;
    waiting.send(&startup(PROTOCOL_3_0, &parameters(LOGICAL))).await;
    eventually("the loss is known", async || {
        !proxy.log().contains("the primary_lost") && proxy.log().contains("is no longer the primary")
    })
    .await;
    sandbox.promote_wait(1).await.unwrap();
    waiting.read_until(b'Z').await;
    let port = waiting.query("SELECT current_setting('port') WHERE NOT pg_is_in_recovery()").await;
    assert_eq!(values(&port), [sandbox.node(1).port().to_string()]);
}

#[tokio::test]
async fn is_cancelled_and_given_up() {
    let sandbox = trusting(0).await;
    let proxy = proxy(&sandbox, &["--shards", "2"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let sleeping = async |expected: &str| {
        let sql = "SELECT count(*)::text FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
        eventually("it sleeps, or does not", async || one(&direct, sql).await == expected).await;
    };
    let mut raw = proxy.raw().await;
    let welcome = raw.log_in_with(&parameters(LOGICAL)).await;
    let key = welcome.iter().find(|message| message.kind == b'K').unwrap().body.clone();
    for _ in 0..3 {
        raw.send(&query("SELECT pg_sleep(100)")).await;
        sleeping("1").await;
        let mut canceller = proxy.raw().await;
        canceller.send(&startup_frame(CANCEL_REQUEST, &key)).await;
        canceller.read_to_end().await;
        assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
        assert_eq!(values(&raw.query("SELECT 1").await), ["1"]);
    }
    // A client that vanishes stops what it had begun.
    raw.send(&query("SELECT pg_sleep(100)")).await;
    sleeping("1").await;
    drop(raw);
    sleeping("0").await;
    connections(&proxy, 0).await;
    // One that says goodbye is none that was lost.
    let mut raw = replicating(&proxy, LOGICAL).await;
    raw.send(&frame(b'X', b"")).await;
    assert_eq!(kinds(&raw.read_to_end().await), "");
    assert_eq!(proxy.metric("pgsteer_errors_total", &[("sqlstate", "57P01")]).await, 0.0);
    assert!(!proxy.log().contains("suspected"), "{}", proxy.log());
}

/// They are clients like others, but no pool counts their servers.
#[tokio::test]
async fn counts_as_a_client_and_in_no_pool() {
    let sandbox = trusting(0).await;
    let environment = [("PGSTEER_LISTEN_MAX_CLIENT_CONN", "4"), ("PGSTEER_LISTEN_LOGIN_TIMEOUT", "20s")];
    let args = ["--auth", "trust", "--pool-size", "1"];
    let proxy = Running::start_with(&sandbox, &args, &environment).await;
    let mut replicas = Vec::new();
    for kind in [LOGICAL, PHYSICAL, LOGICAL] {
        replicas.push(replicating(&proxy, kind).await);
    }
    connections(&proxy, 3).await;
    let mut ordinary = proxy.raw_logged_in().await;
    ordinary.query("BEGIN").await;
    assert_eq!(values(&ordinary.query("SELECT 1").await), ["1"]);
    let mut beyond = proxy.raw().await;
    beyond.send(&startup(PROTOCOL_3_0, &parameters(LOGICAL))).await;
    assert_eq!(errors(&beyond.read_to_end().await), ["53300"]);
    drop(replicas);
    connections(&proxy, 0).await;
    replicating(&proxy, LOGICAL).await;
}

/// Who does not read stops the server, not pgsteer's memory; nothing is lost by that.
#[tokio::test]
async fn a_slow_client_slows_its_server() {
    let sandbox = trusting(0).await;
    let proxy = proxy(&sandbox, &[]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut raw = replicating(&proxy, LOGICAL).await;
    let before = proxy.resident_bytes();
    raw.send(&query("SELECT repeat('x', 1000000) FROM generate_series(1, 100)")).await;
    stuck(&direct, "1").await;
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 8 << 20, "{grown} bytes more");
    let answer = raw.read_until(b'Z').await;
    let rows =
        answer.iter().filter(|message| message.kind == b'D' && message.body.len() == 1_000_006).count();
    assert_eq!(rows, 100);
    // And the other way: what the server does not take is not taken from the client.
    let text = "y".repeat(30_000_000);
    let answer = raw.query(&format!("SELECT length('{text}')")).await;
    assert_eq!(values(&answer), ["30000000"]);
}

/// The drain waits for them as long as for others, and then says so.
#[tokio::test]
async fn the_drain_ends_them_at_its_time_out() {
    let sandbox = trusting(0).await;
    let mut proxy = proxy(&sandbox, &["--shutdown-timeout", "1s"]).await;
    let mut streaming = replicating(&proxy, PHYSICAL).await;
    start_streaming(&mut streaming).await;
    let mut busy = replicating(&proxy, LOGICAL).await;
    proxy.terminate();
    eventually("it drains", async || proxy.log().contains("draining")).await;
    assert_eq!(values(&busy.query("SELECT 1").await), ["1"], "the drain is not over");
    assert_eq!(errors(&busy.read_to_end().await), ["57P01"]);
    assert_eq!(errors(&streaming.read_to_end().await), ["57P01"]);
    assert!(proxy.wait_exit().await.success());
    assert!(proxy.log().contains("shutdown_timeout is over"), "{}", proxy.log());
}

/// A subscription of another cluster: the copy of what is there, the changes after it, and its end, which drops the slot.
#[tokio::test]
async fn a_subscription_follows() {
    let (sandbox, other) = tokio::join!(trusting(1), trusting(0));
    let proxy = proxy(&sandbox, &[]).await;
    let (publisher, subscriber) = (proxy.client().await, other.connect(0).await.unwrap());
    let table = "CREATE TABLE followed (i int PRIMARY KEY, t text)";
    publisher.batch_execute(table).await.unwrap();
    subscriber.batch_execute(table).await.unwrap();
    publisher
        .batch_execute(
            "INSERT INTO followed SELECT i, repeat('ü', 500) FROM generate_series(1, 5000) i;
             CREATE PUBLICATION following FOR TABLE followed",
        )
        .await
        .unwrap();
    let subscribe =
        format!("CREATE SUBSCRIPTION following CONNECTION '{}' PUBLICATION following", proxy.conninfo());
    in_time("subscribing", subscriber.batch_execute(&subscribe)).await.unwrap();
    let arrives = async |expected: &str| {
        let sql = "SELECT concat_ws(' ', count(*), sum(i), sum(length(t))) FROM followed";
        eventually("the changes arrive", async || one(&subscriber, sql).await == expected).await;
    };
    arrives("5000 12502500 2500000").await;
    publisher
        .batch_execute(
            "BEGIN; DELETE FROM followed WHERE i > 10; UPDATE followed SET t = 'x' WHERE i = 1; COMMIT",
        )
        .await
        .unwrap();
    arrives("10 55 4501").await;
    connections(&proxy, 1).await;
    in_time("the end of it", subscriber.batch_execute("DROP SUBSCRIPTION following")).await.unwrap();
    connections(&proxy, 0).await;
    let slots = "SELECT count(*)::text FROM pg_replication_slots WHERE slot_type = 'logical'";
    assert_eq!(one(&sandbox.connect(0).await.unwrap(), slots).await, "0");
}

/// An endpoint for standbys only does not lead to the primary by this way either; one that prefers them does.
#[tokio::test]
async fn endpoints_keep_their_word() {
    let sandbox = trusting(1).await;
    let [standby, prefer] = [running::free_address(), running::free_address()];
    let (only, rather) = (standby.to_string(), prefer.to_string());
    let proxy = proxy(&sandbox, &["--listen-standby", &only, "--listen-prefer-standby", &rather]).await;
    for (address, expected) in [(standby, "RE"), (prefer, "Z"), (proxy.address, "Z")] {
        let mut raw = RawClient { stream: TcpStream::connect(address).await.unwrap() };
        raw.send(&startup(PROTOCOL_3_0, &parameters(LOGICAL))).await;
        if expected == "Z" {
            raw.read_until(b'Z').await;
            assert_eq!(values(&raw.query("SELECT pg_is_in_recovery()").await), ["f"]);
        } else {
            let said = raw.read_to_end().await;
            assert_eq!((kinds(&said), errors(&said)), (expected.to_owned(), vec!["0A000".to_owned()]));
        }
    }
}
