//! Many sessions over few servers: settings that are refused, names in failed transactions, fairness between the shards,
//! a storm of logins. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pgsteer::sandbox::Sandbox;
use running::{
    RawClient, Running, bind, close, errors, eventually, execute, in_time, kinds, no_errors, parse, query,
    single, status, sync, values,
};
use tokio_postgres::NoTls;

/// G01, G03, G22: what was valid at the login is not any more. Nothing runs under other settings instead.
#[tokio::test]
async fn settings_that_the_server_refuses_later_stop_their_own_session_only() {
    let (sandbox, proxy) = single(&["--pool-size", "1", "--shards", "1"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    for sql in [
        "CREATE ROLE ann LOGIN",
        "CREATE ROLE worker",
        "GRANT worker TO ann",
        "CREATE TABLE who (name text DEFAULT current_user)",
        "GRANT ALL ON who TO PUBLIC",
    ] {
        direct.batch_execute(sql).await.unwrap();
    }
    let base = [("user", "ann"), ("database", "postgres")];
    let mut as_worker = proxy.raw().await;
    as_worker.log_in_with(&[&base[..], &[("options", "-c role=worker")]].concat()).await;
    let mut plain = proxy.raw().await;
    plain.log_in_with(&base).await;
    no_errors(&as_worker.extended(&[parse("mine", "SELECT current_user")]).await);
    assert_eq!(values(&as_worker.query("SELECT current_user").await), ["worker"]);
    assert_eq!(values(&plain.query("SELECT current_user").await), ["ann"]);

    direct.batch_execute("REVOKE ALL ON who FROM worker; DROP ROLE worker").await.unwrap();
    for _ in 0..3 {
        let refused = as_worker.query("INSERT INTO who DEFAULT VALUES").await;
        assert_eq!((errors(&refused), status(&refused)), (vec!["22023".to_owned()], 'I'), "{refused:?}");
        let refused = as_worker.extended(&[bind("", "mine", &[]), execute("")]).await;
        assert_eq!((errors(&refused), kinds(&refused)), (vec!["22023".to_owned()], "EZ".to_owned()));
        assert_eq!(values(&plain.query("SELECT current_user").await), ["ann"]);
    }
    assert_eq!(status(&as_worker.query("BEGIN").await), 'T');
    let refused = as_worker.query("INSERT INTO who DEFAULT VALUES").await;
    assert_eq!((errors(&refused), status(&refused)), (vec!["22023".to_owned()], 'E'), "{refused:?}");
    assert_eq!(status(&as_worker.query("COMMIT").await), 'I');
    assert_eq!(values(&plain.query("SELECT count(*) FROM who").await), ["0"]);

    direct.batch_execute("CREATE ROLE worker; GRANT worker TO ann").await.unwrap();
    no_errors(&as_worker.query("INSERT INTO who DEFAULT VALUES").await);
    assert_eq!(values(&as_worker.extended(&[bind("", "mine", &[]), execute("")]).await), ["worker"]);
    assert_eq!(values(&plain.query("SELECT name FROM who").await), ["worker"]);
}

/// X17: one server connection for the clients of two shards, none of whom ever pauses.
#[tokio::test]
async fn one_server_is_shared_by_the_clients_of_all_shards() {
    const CLIENTS: usize = 8;
    const STATEMENTS: usize = 200;
    let (_sandbox, proxy) = single(&["--pool-size", "1", "--shards", "2"]).await;
    let done: Arc<[AtomicUsize]> = (0..CLIENTS).map(|_| AtomicUsize::new(0)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..CLIENTS {
        let mut client = proxy.raw_logged_in().await;
        let (done, stop) = (Arc::clone(&done), Arc::clone(&stop));
        tasks.spawn(async move {
            let sql = format!("SELECT {number}");
            while !stop.load(Ordering::Relaxed) {
                assert_eq!(values(&client.query(&sql).await), [number.to_string()]);
                done[number].fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    // Whoever is done goes on all the same: who gets nothing beside the others would never be done.
    eventually("every client has its statements", async || {
        done.iter().all(|count| count.load(Ordering::Relaxed) >= STATEMENTS)
    })
    .await;
    stop.store(true, Ordering::Relaxed);
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
    let done: Vec<usize> = done.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    println!("statements: {done:?}");
    assert!(
        proxy.metric("pgsteer_cross_shard_handovers_total", &[]).await >= 1.0,
        "one shard had all clients"
    );
}

/// The kinds of each step's answer, with the SQLSTATEs in it.
async fn play(client: &mut RawClient, steps: &[Vec<u8>]) -> Vec<(String, Vec<String>)> {
    let mut seen = Vec::new();
    for step in steps {
        client.send(step).await;
        let answer = client.read_until(b'Z').await;
        seen.push((format!("{}{}", kinds(&answer), status(&answer)), errors(&answer)));
    }
    seen
}

fn batch(messages: &[Vec<u8>]) -> Vec<u8> {
    [messages.concat(), sync()].concat()
}

fn run(name: &str) -> Vec<u8> {
    batch(&[bind("", name, &[]), execute("")])
}

/// What another session has prepared on the same server.
const SHARED: &str = "SELECT 'shared'";

/// Each is played in a failed transaction block, after the first and before the third, which follows its ROLLBACK.
fn plays() -> Vec<(&'static str, [Vec<Vec<u8>>; 3])> {
    let prepare = |name: &str, sql: &str| batch(&[parse(name, sql)]);
    vec![
        (
            "a name in use",
            [
                vec![prepare("a", "SELECT 1")],
                vec![prepare("a", "SELECT 2")],
                vec![
                    prepare("a", "SELECT 2"),
                    run("a"),
                    batch(&[close("a"), parse("a", "SELECT 3")]),
                    run("a"),
                ],
            ],
        ),
        (
            "a new name of a text that the server has",
            [
                vec![],
                vec![prepare("b", SHARED)],
                vec![run("b"), prepare("b", SHARED), run("b"), prepare("b", SHARED)],
            ],
        ),
        (
            "a new name of a new text",
            [vec![], vec![prepare("c", "SELECT 4")], vec![run("c"), prepare("c", "SELECT 4"), run("c")]],
        ),
        (
            "a name that was closed",
            [
                vec![prepare("d", SHARED), batch(&[close("d")])],
                vec![prepare("d", SHARED)],
                vec![run("d"), prepare("d", SHARED), run("d")],
            ],
        ),
        (
            "a name that is closed in the failed block",
            [
                vec![prepare("e", SHARED)],
                vec![batch(&[close("e")]), prepare("e", SHARED), run("e")],
                vec![run("e"), prepare("e", SHARED), run("e")],
            ],
        ),
        (
            "twice in one batch",
            [
                vec![],
                vec![batch(&[parse("f", SHARED), parse("f", SHARED)])],
                vec![batch(&[parse("f", SHARED), parse("f", SHARED)]), run("f")],
            ],
        ),
        (
            "closed and prepared in one batch",
            [
                vec![prepare("g", "SELECT 5")],
                vec![batch(&[close("g"), parse("g", SHARED)])],
                vec![run("g"), prepare("g", SHARED), run("g")],
            ],
        ),
        (
            "what ends the block",
            [
                vec![
                    prepare("h", "ROLLBACK"),
                    batch(&[parse("i", "BEGIN"), bind("", "i", &[]), execute("")]),
                ],
                vec![prepare("h", "ROLLBACK"), prepare("i", "BEGIN"), prepare("j", "ROLLBACK"), run("j")],
                vec![
                    prepare("h", "ROLLBACK"),
                    prepare("i", "BEGIN"),
                    prepare("j", "ROLLBACK"),
                    run("i"),
                    run("j"),
                ],
            ],
        ),
    ]
}

/// All of it is played beside a session that has prepared the same on the same server, and directly.
async fn as_on_a_server_of_ones_own(steps: impl Fn([Vec<Vec<u8>>; 3]) -> Vec<Vec<u8>>) {
    let (sandbox, proxy) = single(&["--pool-size", "1", "--shards", "1"]).await;
    let mut other = proxy.raw_logged_in().await;
    no_errors(&other.extended(&[parse("other", SHARED)]).await);
    let mut client = proxy.raw_logged_in().await;
    let mut direct = RawClient::direct(sandbox.node(0)).await;
    for (what, parts) in plays() {
        let steps = steps(parts);
        let seen = play(&mut client, &steps).await;
        let right = play(&mut direct, &steps).await;
        assert_eq!(seen, right, "{what}");
        no_errors(&other.extended(&[bind("", "other", &[]), execute("")]).await);
    }
}

/// G05, P10: as on a server of one's own.
#[tokio::test]
async fn names_in_a_failed_transaction_are_those_of_postgresql() {
    as_on_a_server_of_ones_own(|[before, within, after]| {
        [before, vec![query("BEGIN"), query("SELECT 1/0")], within, vec![query("ROLLBACK")], after].concat()
    })
    .await;
}

/// G05: the same, in a transaction that fails by what it prepares.
#[tokio::test]
async fn names_of_a_transaction_that_they_fail_are_those_of_postgresql() {
    as_on_a_server_of_ones_own(|[before, within, after]| {
        let taken = batch(&[parse("taken", "SELECT 'taken'")]);
        [
            vec![batch(&[close("taken"), close("x")]), taken.clone()],
            before,
            vec![query("BEGIN"), batch(&[parse("x", SHARED)]), taken],
            within,
            vec![query("ROLLBACK"), run("x"), batch(&[parse("x", SHARED)])],
            after,
        ]
        .concat()
    })
    .await;
}

/// P14, X17, X18: so many that the server has no room for any at first. None of the passwords is known yet.
#[tokio::test]
async fn a_storm_of_logins_is_let_in_over_few_connections() {
    const LOGINS: usize = 200;
    let sandbox = Sandbox::builder().standbys(0).max_connections(20).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE ann LOGIN PASSWORD 'secret'").await.unwrap();
    drop(direct);
    let proxy = Running::start(&sandbox, &["--pool-size", "10", "--log-level", "pgsteer=debug"]).await;
    let mut taken = Vec::new();
    let mut server: tokio_postgres::Config = sandbox.conninfo(0).parse().unwrap();
    server.user("ann").password("secret");
    let full = loop {
        match server.connect(NoTls).await {
            Ok((client, connection)) => taken.push((client, tokio::spawn(connection))),
            Err(error) => break error,
        }
    };
    assert_eq!(full.code().unwrap().code(), "53300");

    let mut config = proxy.config();
    config.user("ann").password("secret");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..LOGINS {
        let config = config.clone();
        tasks.spawn(async move {
            let (client, connection) = config.connect(NoTls).await.unwrap();
            tokio::spawn(connection);
            let name: String = client.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
            assert_eq!(name, "ann");
            client
        });
    }
    eventually("a login has found no room", async || proxy.log().contains("login at a server failed")).await;
    drop(taken);
    let clients = in_time("the logins", tasks.join_all()).await;
    assert_eq!(clients.len(), LOGINS);
    assert!((proxy.metric("pgsteer_clients_active", &[]).await - 200.0).abs() < 0.5);
    assert!(proxy.metric("pgsteer_errors_total", &[]).await < 0.5);
}
