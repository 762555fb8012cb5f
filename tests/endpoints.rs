//! Listeners that are for one kind of node: what their clients are told, where their statements run, and what happens when there is
//! no such node.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::SocketAddr;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Message, RawClient, Running, errors, eventually, free_address, in_time, values};
use tokio::net::TcpStream;

/// pgsteer with a listener of each kind.
struct Endpoints {
    proxy: Running,
    primary: SocketAddr,
    standby: SocketAddr,
    prefer_standby: SocketAddr,
}

impl Endpoints {
    async fn start(sandbox: &Sandbox, extra: &[&str], environment: &[(&str, &str)]) -> Self {
        let [primary, standby, prefer_standby] = [free_address(), free_address(), free_address()];
        let listeners = [primary, standby, prefer_standby].map(|address| address.to_string());
        let [of_primary, of_standby, of_prefer] = &listeners;
        let arguments = [
            "--auth",
            "trust",
            "--listen-primary",
            of_primary,
            "--listen-standby",
            of_standby,
            "--listen-prefer-standby",
            of_prefer,
        ];
        let proxy = Running::start_with(sandbox, &[&arguments[..], extra].concat(), environment).await;
        Self { proxy, primary, standby, prefer_standby }
    }
}

/// A client that is logged in there as superuser, and what it was told of its node.
async fn client(address: SocketAddr) -> (RawClient, String) {
    let mut client = connect(address).await;
    let welcome = client.log_in("postgres", "postgres").await;
    (client, told(&welcome).concat())
}

async fn connect(address: SocketAddr) -> RawClient {
    RawClient { stream: TcpStream::connect(address).await.unwrap() }
}

/// Reports of `in_hot_standby`.
fn told(messages: &[Message]) -> Vec<String> {
    let reports = messages.iter().filter(|message| message.kind == b'S');
    reports
        .filter_map(|report| {
            let report = String::from_utf8(report.body.clone()).unwrap();
            Some(report.strip_prefix("in_hot_standby\0")?.trim_end_matches('\0').to_owned())
        })
        .collect()
}

const WHERE: &str = "SELECT pg_is_in_recovery()::text || current_setting('transaction_read_only')";

/// All kinds of sessions that libpq knows find their endpoint, whatever the order of the hosts; and so do those that ask.
#[tokio::test]
async fn libpq_finds_the_session_that_it_asks_for() {
    let sandbox = Sandbox::builder().standbys(2).auth(Auth::Trust).start().await.unwrap();
    let at = Endpoints::start(&sandbox, &[], &[]).await;
    let split = at.proxy.address;
    let psql = sandbox.binaries().program("psql");
    let hosts = |order: &[SocketAddr]| {
        let ports: Vec<String> = order.iter().map(|address| address.port().to_string()).collect();
        let hosts = vec!["127.0.0.1"; order.len()];
        format!("host={} port={} user=postgres dbname=postgres", hosts.join(","), ports.join(","))
    };
    let orders = [
        vec![split, at.standby],
        vec![at.standby, split],
        vec![at.primary, at.prefer_standby],
        vec![at.prefer_standby, at.primary],
        vec![at.standby, at.prefer_standby, at.primary, split],
    ];
    let is_standby = |address: &SocketAddr| *address == at.standby || *address == at.prefer_standby;
    for order in orders {
        for kind in ["any", "read-write", "read-only", "primary", "standby", "prefer-standby"] {
            let found = match kind {
                "any" => &order[0],
                "read-write" | "primary" => order.iter().find(|address| !is_standby(address)).unwrap(),
                _ => order.iter().find(|address| is_standby(address)).unwrap(),
            };
            let conninfo = format!("{} target_session_attrs={kind}", hosts(&order));
            let asked = tokio::process::Command::new(&psql)
                .args(["-XAt", "-d", &conninfo, "-c", "\\echo :PORT", "-c", WHERE])
                .args(["-c", "SHOW transaction_read_only", "-c", "SHOW in_hot_standby"])
                .output();
            let output = in_time("psql", asked).await.unwrap();
            let word = |on: bool| if on { "on" } else { "off" };
            let standby = is_standby(found);
            let expected = format!("{}\n{standby}{}\n{1}\n{1}\n", found.port(), word(standby));
            assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{order:?} {kind}: {output:?}");
        }
    }
}

/// What a client meets at a standby endpoint is what a standby says, and nothing of it runs on the primary.
#[tokio::test]
async fn a_standby_endpoint_answers_as_a_standby() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary
        .batch_execute(
            "CREATE TABLE t (i int); CREATE SEQUENCE s; \
             CREATE FUNCTION writes() RETURNS int LANGUAGE sql AS 'INSERT INTO t VALUES (1) RETURNING i'; \
             CREATE VIEW v AS SELECT writes()",
        )
        .await
        .unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let at = Endpoints::start(&sandbox, &[], &[]).await;
    let scripts: [&[&str]; 22] = [
        &[WHERE],
        &["/* pgsteer: target=primary */ SELECT pg_is_in_recovery()"],
        &["INSERT INTO t VALUES (1)"],
        &["CREATE TABLE u ()"],
        &["SELECT nextval('s')"],
        &["SELECT * FROM v"],
        &["SELECT * FROM missing"],
        &["SELECT writes()"],
        &["BEGIN", "SELECT 1", "INSERT INTO t VALUES (1)", "SELECT 2", "COMMIT"],
        &["BEGIN READ WRITE", "SELECT 1", "ROLLBACK"],
        &["BEGIN ISOLATION LEVEL SERIALIZABLE", "SELECT 1", "ROLLBACK"],
        &["BEGIN", "SET TRANSACTION READ WRITE", "ROLLBACK"],
        &["LISTEN c"],
        &["CREATE TEMP TABLE u ()"],
        &["DO $$ BEGIN PERFORM 1; END $$", "SELECT 1"],
        &[
            "SELECT pg_advisory_lock_shared(7)",
            "SELECT pg_advisory_unlock_shared(7)",
            "SELECT pg_advisory_unlock_shared(7)",
        ],
        &["PREPARE p AS SELECT 5", "EXECUTE p", "DEALLOCATE p", "EXECUTE p"],
        &["BEGIN; DECLARE c CURSOR WITH HOLD FOR SELECT 6; COMMIT", "FETCH c", "CLOSE c", "FETCH c"],
        &["SET work_mem = '5MB'", "SHOW work_mem", "RESET ALL"],
        &["SELECT 1; INSERT INTO t VALUES (1); SELECT 2"],
        &["COPY t FROM STDIN"],
        &["SELECT pg_current_wal_lsn()"],
    ];
    for address in [at.standby, at.prefer_standby] {
        for script in scripts {
            let mut direct = connect(sandbox.node(1).address()).await;
            direct.log_in("postgres", "postgres").await;
            let (mut through, told) = client(address).await;
            assert_eq!(told, "on");
            for sql in script {
                let [expected, found] = [direct.query(sql).await, through.query(sql).await].map(|answer| {
                    let answer: Vec<String> = answer.iter().map(shown).collect();
                    answer
                });
                assert_eq!(found, expected, "{sql}");
            }
        }
    }
    // By the protocol's own statements, whole and cut.
    let (mut through, _) = client(at.standby).await;
    let messages =
        [running::parse("", "INSERT INTO t VALUES (1)"), running::bind("", "", &[]), running::execute("")];
    assert_eq!(errors(&through.extended(&messages).await), ["25006"]);
    through.send(&[&messages.concat()[..], &running::flush()].concat()).await;
    assert_eq!(errors(&through.read_until(b'E').await), ["25006"]);
    through.send(&running::sync()).await;
    through.read_until(b'Z').await;
    assert_eq!(values(&through.query(WHERE).await), ["trueon"]);
    // What a standby refuses is not run a second time.
    assert!(at.proxy.metric("pgsteer_retries_total", &[("cause", "refused")]).await < 0.5);
    let rows: i64 = primary.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
    let (mut writer, told) = client(at.primary).await;
    assert_eq!(told, "off");
    assert_eq!(values(&writer.query(WHERE).await), ["falseoff"]);
    assert_eq!(values(&writer.query("SELECT count(*) FROM pg_stat_wal_receiver").await), ["0"]);
    assert_eq!(errors(&writer.query("INSERT INTO t VALUES (1)").await), [""; 0]);
}

fn shown(message: &Message) -> String {
    match message.kind {
        b'E' => format!("{} {:?}", message.sqlstate(), message.field(b'M')),
        _ => format!("{message:?}"),
    }
}

/// Without a standby: an error that says so, at the login and for what was held; or the primary, where that is allowed.
#[tokio::test]
async fn without_a_standby() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let at = Endpoints::start(&sandbox, &[], &[("PGSTEER_HOLD_TIMEOUT", "1s")]).await;
    let (mut strict, _) = client(at.standby).await;
    let (mut lenient, _) = client(at.prefer_standby).await;
    for client in [&mut strict, &mut lenient] {
        assert_eq!(values(&client.query(WHERE).await), ["trueon"]);
    }
    sandbox.node(1).stop_fast().await.unwrap();
    eventually("the standby is known to be gone", async || {
        let mut late = connect(at.standby).await;
        late.send(&running::startup(running::PROTOCOL_3_0, &[("user", "postgres")])).await;
        let answer = vec![late.read().await];
        errors(&answer) == ["57P03"] && answer[0].field(b'M').unwrap() == "pgsteer: no standby is available"
    })
    .await;
    let held = strict.query("SELECT 1").await;
    assert_eq!(errors(&held), ["57P03"]);
    assert_eq!(held[0].field(b'M').unwrap(), "pgsteer: no standby is available");
    // The one is told where it is now, the other stays where it was told to be.
    let answer = lenient.query(WHERE).await;
    assert_eq!((values(&answer), told(&answer)), (vec!["falseoff".to_owned()], vec!["off".to_owned()]));
    assert_eq!(told(&lenient.query("SELECT 1").await), [""; 0]);
    assert_eq!(client(at.prefer_standby).await.1, "off");

    sandbox.node(1).start().await.unwrap();
    eventually("the standby is used again", async || {
        values(&lenient.query("SELECT pg_is_in_recovery()::text").await) == ["true"]
    })
    .await;
    assert_eq!(client(at.prefer_standby).await.1, "on");
    let answer = strict.query(WHERE).await;
    assert_eq!((values(&answer), told(&answer)), (vec!["trueon".to_owned()], vec![]));
}

#[tokio::test]
async fn consistency_of_the_primary_is_not_for_those_who_asked_for_standbys() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let at =
        Endpoints::start(&sandbox, &["--max-lag", "1h"], &[("PGSTEER_ROUTING_CONSISTENCY", "primary")]).await;
    sandbox.wait_caught_up().await.unwrap();
    for (address, expected) in
        [(at.proxy.address, "falseoff"), (at.standby, "trueon"), (at.prefer_standby, "trueon")]
    {
        let (mut client, _) = client(address).await;
        assert_eq!(values(&client.query(WHERE).await), [expected], "{address}");
    }
}

/// P2 holds here, too: who is for standbys gets nothing that is older than the budget, pinned or not.
#[tokio::test]
async fn a_standby_that_lags_is_waited_for() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let environment = [("PGSTEER_HOLD_TIMEOUT", "1s")];
    let at = Endpoints::start(&sandbox, &["--max-lag", "300ms"], &environment).await;
    let (mut free, _) = client(at.standby).await;
    let (mut pinned, _) = client(at.standby).await;
    assert_eq!(errors(&pinned.query("PREPARE p AS SELECT 5").await), [""; 0]);
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE t ()").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox.node(1).pause_replay().await.unwrap();
    primary.batch_execute("DROP TABLE t").await.unwrap();
    eventually("the standby is out of the budget", async || {
        errors(&free.query("SELECT 1").await) == ["57P03"]
    })
    .await;
    assert_eq!(errors(&pinned.query("EXECUTE p").await), ["57P03"]);
    sandbox.node(1).resume_replay().await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    eventually("the standby is within it again", async || values(&free.query("SELECT 1").await) == ["1"])
        .await;
    assert_eq!(values(&pinned.query("EXECUTE p").await), ["5"]);
}

/// A promotion changes nothing for the clients of any endpoint; but who had state on the promoted node has lost it.
#[tokio::test]
async fn a_failover_changes_nothing_for_the_clients() {
    let sandbox = Sandbox::builder().standbys(2).auth(Auth::Trust).start().await.unwrap();
    let at = Endpoints::start(&sandbox, &["--max-lag", "1m"], &[]).await;
    let mut clients = Vec::new();
    for address in [at.proxy.address, at.primary, at.standby, at.prefer_standby] {
        clients.push(client(address).await.0);
    }
    // Pinned sessions on both standbys.
    let mut pinned: Vec<(RawClient, String)> = Vec::new();
    let port = "SELECT inet_server_port()";
    while pinned.iter().map(|(_, port)| port).collect::<std::collections::HashSet<_>>().len() < 2 {
        let (mut client, _) = client(at.standby).await;
        assert_eq!(errors(&client.query("PREPARE p AS SELECT 5").await), [""; 0]);
        let port = values(&client.query(port).await).concat();
        pinned.push((client, port));
    }
    sandbox.node(0).kill9().await.unwrap();
    sandbox.promote_wait(1).await.unwrap();
    sandbox.follow(2, 1).await.unwrap();
    for (client, expected) in clients.iter_mut().zip(["falseoff", "falseoff", "trueon", "trueon"]) {
        eventually("the session is where it was", async || {
            let answer = client.query(WHERE).await;
            assert_eq!(told(&answer).iter().filter(|it| *it != "on" && *it != "off").count(), 0);
            values(&answer) == [expected]
        })
        .await;
    }
    let promoted = sandbox.node(1).port().to_string();
    for (client, port) in &mut pinned {
        if *port == promoted {
            client.send(&running::query("EXECUTE p")).await;
            assert_eq!(errors(&client.read_to_end().await), ["57P01"]);
        }
    }
}
