//! The limits of clients and of server connections, each against a real server and with two shards or more: what they allow,
//! who waits for whom, and what those are told who are beyond them.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, PROTOCOL_3_0, RawClient, Running, errors, eventually, frame, in_time, kinds, no_errors, query,
    run, startup, value, values,
};
use serde_json::Value;
use tokio::sync::Barrier;

/// One node, these roles and databases, and a proxy with this `[pool]` section and what follows it.
async fn single(pool: &str, environment: &[(&str, &str)]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    for sql in
        ["CREATE ROLE ann LOGIN", "CREATE ROLE bob LOGIN", "CREATE ROLE eve LOGIN", "CREATE DATABASE shop"]
    {
        direct.batch_execute(sql).await.unwrap();
    }
    let proxy = start(&sandbox, pool, environment).await;
    (sandbox, proxy)
}

async fn start(sandbox: &Sandbox, pool: &str, environment: &[(&str, &str)]) -> Running {
    start_as("trust", sandbox, pool, environment).await
}

async fn start_as(auth: &str, sandbox: &Sandbox, pool: &str, environment: &[(&str, &str)]) -> Running {
    let name = format!("pgsteer-limits-{}-{}.toml", std::process::id(), fastrand::u64(..));
    let file = std::env::temp_dir().join(name);
    std::fs::write(&file, format!("[pool]\n{pool}\n")).unwrap();
    let args = ["--auth", auth, "--shards", "2", "--config", file.to_str().unwrap()];
    let running = Running::start_with(sandbox, &args, environment).await;
    std::fs::remove_file(&file).unwrap();
    running
}

/// A client that has a transaction open, and so a server connection.
async fn busy(proxy: &Running, user: &str, database: &str) -> RawClient {
    let mut client = proxy.raw_as(user, database).await;
    run(&mut client, "BEGIN").await;
    assert_eq!(value(&mut client, "SELECT 1").await, "1");
    client
}

/// The pool of this user and database on the first node, as `/pools` has it; null when there is none.
async fn pool(proxy: &Running, user: &str, database: &str) -> Value {
    let body = proxy.get("/pools").await.unwrap().1;
    let pools: Value = serde_json::from_str(&body).unwrap();
    let mut pools = pools["pools"].as_array().unwrap().iter();
    let found = pools.find(|it| it["user"] == user && it["database"] == database && it["node"] == "n1");
    found.cloned().unwrap_or_default()
}

async fn waiting(proxy: &Running, user: &str, database: &str) -> u64 {
    pool(proxy, user, database).await["waiting"].as_u64().unwrap_or_default()
}

async fn until_waiting(proxy: &Running, user: &str, database: &str, count: u64) {
    eventually("so many wait", async || waiting(proxy, user, database).await == count).await;
}

/// Server processes of clients: of this user, in any database.
async fn backends(sandbox: &Sandbox, user: &str) -> i64 {
    let direct = sandbox.connect(0).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND pid <> pg_backend_pid()";
    direct.query_one(sql, &[&user]).await.unwrap().get(0)
}

/// With a table that keeps the order in which clients are served.
async fn with_served(sandbox: &Sandbox) -> tokio_postgres::Client {
    let direct = sandbox.connect(0).await.unwrap();
    let sql = "CREATE TABLE served (place serial, who int); GRANT ALL ON served, served_place_seq TO PUBLIC";
    direct.batch_execute(sql).await.unwrap();
    direct
}

async fn served(direct: &tokio_postgres::Client) -> Vec<i32> {
    let rows = direct.query("SELECT who FROM served ORDER BY place", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

// --- clients

/// Logs in so many times at once from a thread of its own; gives who got in, and how many were told that there is no place.
fn burst(
    address: std::net::SocketAddr,
    logins: usize,
    start: &std::sync::Barrier,
) -> (Vec<std::net::TcpStream>, usize) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let log_in = move || async move {
        let mut raw = RawClient { stream: tokio::net::TcpStream::connect(address).await.unwrap() };
        raw.send(&startup(PROTOCOL_3_0, &[("user", "ann"), ("database", "postgres")])).await;
        let first = raw.read().await;
        if first.kind == b'E' {
            assert_eq!(first.sqlstate(), "53300");
            assert!(first.field(b'M').unwrap().contains("max_client_conn"), "{first:?}");
            return None;
        }
        raw.read_until(b'Z').await;
        Some(raw.stream.into_std().unwrap())
    };
    start.wait();
    let clients = runtime.block_on(async {
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..logins {
            tasks.spawn(log_in());
        }
        tasks.join_all().await
    });
    let refused = clients.iter().filter(|client| client.is_none()).count();
    (clients.into_iter().flatten().collect(), refused)
}

/// A burst from many threads on two shards: exactly `max_client_conn` are let in, and places are given back.
#[tokio::test]
async fn a_burst_of_logins_fills_max_client_conn_exactly() {
    const THREADS: usize = 8;
    let (_sandbox, proxy) = single("", &[("PGSTEER_LISTEN_MAX_CLIENT_CONN", "40")]).await;
    for round in 0..3 {
        let (address, start) = (proxy.address, Arc::new(std::sync::Barrier::new(THREADS)));
        let threads: Vec<_> = (0..THREADS)
            .map(|_| {
                let start = Arc::clone(&start);
                tokio::task::spawn_blocking(move || burst(address, 40, &start))
            })
            .collect();
        let (mut clients, mut refused) = (Vec::new(), 0);
        for thread in threads {
            let (let_in, others) = in_time("a thread", thread).await.unwrap();
            clients.extend(let_in);
            refused += others;
        }
        assert_eq!((clients.len(), refused), (40, 280), "round {round}");
        assert!((proxy.metric("pgsteer_clients_seated", &[]).await - 40.0).abs() < 0.5);
        for client in clients {
            let mut client = RawClient { stream: tokio::net::TcpStream::from_std(client).unwrap() };
            assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
        }
        eventually("all places are free", async || proxy.metric("pgsteer_clients_seated", &[]).await < 0.5)
            .await;
    }
    let counted = proxy.metric("pgsteer_clients_refused_total", &[("limit", "max_client_conn")]).await;
    assert!((counted - 840.0).abs() < 0.5, "{counted}");
}

/// A cancel request needs no place.
#[tokio::test]
async fn a_cancel_reaches_its_statement_when_all_places_are_taken() {
    let (sandbox, proxy) = single("", &[("PGSTEER_LISTEN_MAX_CLIENT_CONN", "1")]).await;
    let mut client = proxy.raw().await;
    let welcome = client.log_in("ann", "postgres").await;
    let key = welcome.iter().find(|message| message.kind == b'K').unwrap().body.clone();
    client.send(&query("SELECT pg_sleep(3600)")).await;
    eventually("it runs", async || {
        let direct = sandbox.connect(0).await.unwrap();
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%3600%' AND pid <> pg_backend_pid()";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let mut cancel = proxy.raw().await;
    cancel.send(&running::startup_frame(80_877_102, &key)).await;
    assert_eq!(errors(&client.read_until(b'Z').await), ["57014"]);
}

#[tokio::test]
async fn databases_and_users_have_limits_on_their_clients() {
    let tables = "[[pool.user]]\nname = \"ann\"\nmax_user_client_connections = 1\n\
                  [[pool.database]]\nname = \"shop\"\nmax_db_client_connections = 3";
    let (_sandbox, proxy) = single(tables, &[("PGSTEER_LISTEN_MAX_USER_CLIENT_CONNECTIONS", "2")]).await;
    let refused = async |user: &str, database: &str| {
        let mut raw = proxy.raw().await;
        raw.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", database)])).await;
        let answer = raw.read_to_end().await;
        let words = answer.last().unwrap();
        assert_eq!((words.kind, words.sqlstate()), (b'E', "53300".to_owned()), "{answer:?}");
        words.field(b'M').unwrap()
    };
    let ann = proxy.raw_as("ann", "shop").await;
    assert!(refused("ann", "postgres").await.contains("max_user_client_connections"));
    let _bobs = [proxy.raw_as("bob", "shop").await, proxy.raw_as("bob", "shop").await];
    assert!(refused("bob", "postgres").await.contains("max_user_client_connections"));
    assert!(refused("eve", "shop").await.contains("max_db_client_connections"));
    let _eve = proxy.raw_as("eve", "postgres").await;
    drop(ann);
    eventually("ann's place is free", async || proxy.metric("pgsteer_clients_seated", &[]).await < 3.5).await;
    let _eve = proxy.raw_as("eve", "shop").await;
}

#[tokio::test]
async fn idle_clients_are_let_go() {
    let own = "idle_transaction_timeout = \"1h\"\n[[pool.user]]\nname = \"ann\"\n\
               client_idle_timeout = \"300ms\"\nidle_transaction_timeout = \"200ms\"";
    let (sandbox, proxy) = single(own, &[]).await;
    let told = |answer: Vec<Message>| {
        let words = answer.last().unwrap().clone();
        assert_eq!((words.kind, words.field(b'S').unwrap()), (b'E', "FATAL".to_owned()), "{answer:?}");
        (words.sqlstate(), words.field(b'M').unwrap())
    };
    let idle = ("57P05".to_owned(), "pgsteer: client idle timeout".to_owned());
    let in_transaction = ("25P03".to_owned(), "pgsteer: idle transaction timeout".to_owned());
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE TABLE t (i int); GRANT ALL ON t TO ann; GRANT ALL ON SCHEMA public TO ann")
        .await
        .unwrap();

    let mut untouched = proxy.raw_as("bob", "postgres").await;
    no_errors(&untouched.query("BEGIN").await);
    assert_eq!(values(&untouched.query("SELECT 1").await), ["1"]);

    // It has done nothing at all; it has done something; it is pinned.
    assert_eq!(told(proxy.raw_as("ann", "postgres").await.read_to_end().await), idle);
    for sql in ["SELECT 1", "CREATE TEMP TABLE pins (i int)", "LISTEN channel"] {
        let mut client = proxy.raw_as("ann", "postgres").await;
        no_errors(&client.query(sql).await);
        assert_eq!(told(client.read_to_end().await), idle, "{sql}");
    }
    // In a transaction: put off, open, failed.
    for sql in ["SELECT 1", "INSERT INTO t VALUES (1)", "SELECT 1/0"] {
        let mut client = proxy.raw_as("ann", "postgres").await;
        no_errors(&client.query("BEGIN").await);
        if sql != "SELECT 1" {
            client.query(sql).await;
        }
        assert_eq!(told(client.read_to_end().await), in_transaction, "{sql}");
    }
    // Nothing of it is left, no lock either, and the connection is nobody's.
    direct.batch_execute("BEGIN; LOCK TABLE t; COMMIT").await.unwrap();
    assert_eq!(direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 0);
    // A statement that works is not idleness.
    let mut client = proxy.raw_as("ann", "postgres").await;
    assert_eq!(values(&client.query("SELECT 'done' FROM pg_sleep(0.6)").await), ["done"]);
    assert_eq!(values(&untouched.query("SELECT 1").await), ["1"]);
}

/// Idle is a client until its message is whole, as for PostgreSQL: one that falls silent in the middle keeps no server.
#[tokio::test]
async fn clients_that_fall_silent_in_a_message_are_let_go() {
    let own = "[[pool.user]]\nname = \"ann\"\nclient_idle_timeout = \"300ms\"\nidle_transaction_timeout = \"200ms\"";
    let (sandbox, proxy) = single(own, &[]).await;
    let large = query(&format!("SELECT length('{}')", "x".repeat(3_000_000)));
    let bind =
        frame(b'B', &[b"\0\0\0\0\0\x01\0\x2d\xc6\xc0".as_slice(), &[b'x'; 3_000_000], b"\0\0"].concat());
    for (before, code) in [("SELECT 1", "57P05"), ("BEGIN; SELECT 1", "25P03"), ("BEGIN", "25P03")] {
        for (message, sent) in [(&large, 10), (&large, 300_000), (&large, 2_000_000), (&bind, 2_000_000)] {
            let mut client = proxy.raw_as("ann", "postgres").await;
            run(&mut client, before).await;
            client.send(&message[..sent]).await;
            let answer = client.read_to_end().await;
            assert_eq!(
                (kinds(&answer).as_str(), errors(&answer)),
                ("E", vec![code.to_owned()]),
                "{before} {sent}"
            );
            // Whoever goes on is not cut off.
            let mut client = proxy.raw_as("ann", "postgres").await;
            client.send(&large[..2_000_000]).await;
            client.send(&large[2_000_000..]).await;
            assert_eq!(values(&client.read_until(b'Z').await), ["3000000"]);
        }
    }
    eventually("their servers are free", async || {
        let direct = sandbox.connect(0).await.unwrap();
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ann' AND state <> 'idle'";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
}

// --- server connections

/// Each limit by itself, by clients of two shards that all come at once and keep what they get: as many connections as it
/// allows, to the last one, and everybody is served when they are given back.
#[tokio::test]
async fn a_crowd_gets_as_many_server_connections_as_each_limit_allows() {
    const CLIENTS: u64 = 40;
    let mixed = "[[pool.user]]\nname = \"ann\"\nsize = 2\n[[pool.database]]\nname = \"postgres\"\nmax_db_connections = 5";
    // Connections in all, and of ann's.
    for (settings, all, of_ann) in [
        ("size = 3", 6, 3..=3),
        ("max_db_connections = 4", 4, 0..=4),
        ("max_user_connections = 2", 4, 2..=2),
        (mixed, 5, 0..=2),
    ] {
        let (sandbox, proxy) = single(settings, &[]).await;
        let go_on = Arc::new(tokio::sync::Semaphore::new(0));
        let barrier = Arc::new(Barrier::new(usize::try_from(CLIENTS).unwrap()));
        let mut tasks = tokio::task::JoinSet::new();
        for number in 0..CLIENTS {
            let user = if number % 4 < 2 { "ann" } else { "bob" };
            let mut client = proxy.raw_as(user, "postgres").await;
            let (go_on, barrier) = (Arc::clone(&go_on), Arc::clone(&barrier));
            tasks.spawn(async move {
                no_errors(&client.query("BEGIN").await);
                barrier.wait().await;
                assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
                let _permit = in_time("the sign", go_on.acquire()).await.unwrap();
                no_errors(&client.query("COMMIT").await);
            });
        }
        eventually("the others wait", async || {
            let waiting = waiting(&proxy, "ann", "postgres").await + waiting(&proxy, "bob", "postgres").await;
            waiting == CLIENTS - all
        })
        .await;
        // A server process is seen a moment after the first answer is, and may be a moment after its connection was closed for another.
        let (mut ann, mut bob) = (0, 0);
        eventually("as many connections as the limit allows", async || {
            (ann, bob) = (backends(&sandbox, "ann").await, backends(&sandbox, "bob").await);
            (ann + bob).cast_unsigned() == all
        })
        .await;
        assert!(of_ann.contains(&ann), "{settings}: ann {ann}, bob {bob}");
        go_on.add_permits(usize::try_from(CLIENTS).unwrap());
        while let Some(ended) = in_time("a client", tasks.join_next()).await {
            ended.unwrap();
        }
        assert_eq!(waiting(&proxy, "ann", "postgres").await + waiting(&proxy, "bob", "postgres").await, 0);
    }
}

/// First come, first served, over both shards: the order of arrival is the order in which they are served.
#[tokio::test]
async fn waiters_of_all_shards_are_served_in_the_order_of_their_arrival() {
    let (sandbox, proxy) = single("size = 1", &[]).await;
    let direct = with_served(&sandbox).await;
    let mut first = busy(&proxy, "ann", "postgres").await;
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12u64 {
        let mut client = proxy.raw_as("ann", "postgres").await;
        tasks.spawn(async move {
            no_errors(&client.query(&format!("INSERT INTO served (who) VALUES ({number})")).await)
        });
        until_waiting(&proxy, "ann", "postgres", number + 1).await;
    }
    // One of them gives up: it must not take anything with it.
    let mut leaves = proxy.raw_as("ann", "postgres").await;
    leaves.send(&query("SELECT 1")).await;
    until_waiting(&proxy, "ann", "postgres", 13).await;
    no_errors(&first.query("COMMIT").await);
    while let Some(ended) = in_time("a client", tasks.join_next()).await {
        ended.unwrap();
    }
    assert_eq!(values(&leaves.read_until(b'Z').await), ["1"]);
    let order = served(&direct).await;
    assert_eq!(order, (0..12).collect::<Vec<i32>>());
    assert!(
        proxy.metric("pgsteer_cross_shard_handovers_total", &[]).await >= 1.0,
        "one shard had all clients"
    );
    assert_eq!(backends(&sandbox, "ann").await, 1);
}

/// Whoever comes does not overtake: while somebody waits, room that appears is his.
#[tokio::test]
async fn room_goes_to_who_has_waited_longest() {
    let (sandbox, proxy) = single("max_db_connections = 2", &[]).await;
    let (mut ann, mut bob) = (busy(&proxy, "ann", "postgres").await, busy(&proxy, "bob", "postgres").await);
    let mut tasks = tokio::task::JoinSet::new();
    let direct = with_served(&sandbox).await;
    for (number, user) in ["eve", "ann", "eve", "bob", "eve", "ann"].into_iter().enumerate() {
        let mut client = proxy.raw_as(user, "postgres").await;
        tasks.spawn(async move {
            no_errors(&client.query(&format!("INSERT INTO served (who) VALUES ({number})")).await)
        });
        eventually("it waits", async || {
            proxy.metric("pgsteer_sessions_waiting", &[]).await > number as f64 + 0.5
        })
        .await;
        // Across pools the order is coarser than within one.
        let since = std::time::Instant::now();
        eventually("it has waited for longer than what is taken as the same time", async || {
            since.elapsed() > std::time::Duration::from_millis(60)
        })
        .await;
    }
    // Two connections become free, of other pools than the first waiter's.
    no_errors(&ann.query("COMMIT").await);
    eventually("the first is served", async || proxy.metric("pgsteer_sessions_waiting", &[]).await < 5.5)
        .await;
    while let Some(ended) = in_time("a client", tasks.join_next()).await {
        ended.unwrap();
    }
    no_errors(&bob.query("COMMIT").await);
    let order = served(&direct).await;
    println!("{order:?}");
    assert_eq!(order, (0..6).collect::<Vec<i32>>());
}

/// A connection that is idle for another user, on either shard, makes room; one that works does not.
#[tokio::test]
async fn an_idle_connection_of_another_pool_makes_room() {
    for (setting, [first, second], [database, other_database]) in [
        ("max_db_connections = 2", ["ann", "bob"], ["postgres", "postgres"]),
        ("max_user_connections = 2", ["ann", "ann"], ["postgres", "shop"]),
    ] {
        let (sandbox, proxy) = single(setting, &[]).await;
        // Clients go to the two shards by turns. Both connections become idle on the first shard; the first newcomer is on the other
        // shard, the second one is not.
        let mut one = busy(&proxy, first, database).await;
        let _between = proxy.raw_as("eve", "shop").await;
        let mut two = busy(&proxy, first, database).await;
        no_errors(&one.query("COMMIT").await);
        no_errors(&two.query("COMMIT").await);
        let mut others = Vec::new();
        for left in [1, 0] {
            others.push(busy(&proxy, second, other_database).await);
            assert_eq!(pool(&proxy, first, database).await["open"], left, "{setting}");
        }
        assert!(proxy.metric("pgsteer_server_connections_evicted_total", &[]).await > 1.5);
        assert_eq!(pool(&proxy, first, database).await["limit_reached"], setting.split(' ').next().unwrap());
        // Now all of them work: whoever comes waits, and gets the first that is given back.
        let waiter = tokio::spawn(async move { one.query("SELECT 2").await });
        until_waiting(&proxy, first, database, 1).await;
        no_errors(&others[0].query("COMMIT").await);
        assert_eq!(values(&in_time("the waiter", waiter).await.unwrap()), ["2"]);
        eventually("what was closed is gone", async || {
            backends(&sandbox, first).await + backends(&sandbox, second).await
                <= if first == second { 4 } else { 2 }
        })
        .await;
    }
}

#[tokio::test]
async fn whoever_waits_for_too_long_is_told_for_what() {
    for (setting, key) in [
        ("size = 1", "pool.size"),
        ("max_db_connections = 1", "pool.max_db_connections"),
        ("max_user_connections = 1", "pool.max_user_connections"),
    ] {
        let settings = format!(
            "{setting}\n[[pool.database]]\nname = \"postgres\"\nquery_wait_timeout = \"1s\"\n\
             [[pool.user]]\nname = \"bob\"\nquery_wait_timeout = \"0s\""
        );
        let (_sandbox, proxy) = single(&settings, &[]).await;
        let mut busy_one = busy(&proxy, "ann", "postgres").await;
        let mut client = proxy.raw_as("ann", "postgres").await;
        let answer = client.query("SELECT 1").await;
        assert_eq!((kinds(&answer), errors(&answer)), ("EZ".to_owned(), vec!["53300".to_owned()]));
        assert!(answer[0].field(b'D').unwrap().contains(key), "{answer:?}");
        let limit = key.split('.').next_back().unwrap();
        assert!(proxy.metric("pgsteer_limit_waits_total", &[("limit", limit)]).await > 0.5, "{limit}");
        no_errors(&busy_one.query("COMMIT").await);
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    }
}

/// After `reserve_pool_timeout` those who wait get further connections, as many as there are in the reserve.
#[tokio::test]
async fn the_reserve_is_for_those_who_have_waited() {
    let settings =
        "size = 1\nreserve_pool_size = 1\nreserve_pool_timeout = \"150ms\"\nquery_wait_timeout = \"60s\"";
    let (sandbox, proxy) = single(settings, &[]).await;
    let mut first = busy(&proxy, "ann", "postgres").await;
    let started = std::time::Instant::now();
    let mut second = busy(&proxy, "ann", "postgres").await;
    assert!(started.elapsed() >= std::time::Duration::from_millis(150));
    assert_eq!(backends(&sandbox, "ann").await, 2);
    assert!((proxy.metric("pgsteer_reserve_connections_total", &[]).await - 1.0).abs() < 0.5);
    // The reserve is used up: the next one waits for one of the two.
    let mut third = proxy.raw_as("ann", "postgres").await;
    let waiter = tokio::spawn(async move { third.query("SELECT 3").await });
    until_waiting(&proxy, "ann", "postgres", 1).await;
    eventually("it has waited for longer", async || {
        pool(&proxy, "ann", "postgres").await["longest_wait_ms"].as_u64().unwrap_or_default() > 300
    })
    .await;
    assert_eq!(pool(&proxy, "ann", "postgres").await["open"], 2);
    no_errors(&first.query("COMMIT").await);
    assert_eq!(values(&in_time("the waiter", waiter).await.unwrap()), ["3"]);
    no_errors(&second.query("COMMIT").await);
}

/// Open connections of the user's pools.
async fn open(proxy: &Running, user: &str) -> Vec<u64> {
    let pools: Value = serde_json::from_str(&proxy.get("/pools").await.unwrap().1).unwrap();
    let pools = pools["pools"].as_array().unwrap().clone();
    let of_user = pools.iter().filter(|it| it["user"] == user);
    of_user.map(|it| it["open"].as_u64().unwrap()).collect()
}

/// Kept ready as long as a client is there, on each node in use, and for nobody else; with the client's own password.
#[tokio::test]
async fn connections_are_kept_ready_for_those_who_are_there() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE ROLE ann LOGIN PASSWORD 'a'; CREATE ROLE bob LOGIN PASSWORD 'b'")
        .await
        .unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let settings =
        "min_pool_size = 3\nserver_idle_timeout = \"50ms\"\n[[pool.user]]\nname = \"bob\"\nsize = 2";
    let proxy = start_as("scram-sha-256", &sandbox, settings, &[]).await;
    let clients = [proxy.connect("ann", "a", "postgres").await, proxy.connect("bob", "b", "postgres").await];
    eventually("they are open", async || {
        open(&proxy, "ann").await == [3, 3] && open(&proxy, "bob").await == [2, 2]
    })
    .await;
    assert_eq!(open(&proxy, "postgres").await, [0u64; 0]);
    // Nobody uses them, for many times the idle time-out.
    let old =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'ann' AND now() - backend_start > '2.5s'";
    eventually("they have been idle for long", async || {
        direct.query_one(old, &[]).await.unwrap().get::<_, i64>(0) == 3
    })
    .await;
    let closed = proxy.metric("pgsteer_server_connections_closed_total", &[]).await;
    assert!(closed < 0.5, "{closed} were closed");
    drop(clients);
    eventually("nothing is kept", async || {
        open(&proxy, "ann").await == [0, 0] && open(&proxy, "bob").await == [0, 0]
    })
    .await;
}

/// What is closed for its age is opened anew.
#[tokio::test]
async fn connections_that_are_kept_ready_are_replaced() {
    let (_sandbox, proxy) = single("min_pool_size = 3\nserver_lifetime = \"500ms\"", &[]).await;
    let _client = proxy.raw_as("ann", "postgres").await;
    eventually("all have been replaced", async || {
        proxy.metric("pgsteer_server_connections_closed_total", &[]).await > 5.5
    })
    .await;
    eventually("they are open", async || open(&proxy, "ann").await == [3]).await;
}

/// A lifetime of zero: each connection is used once.
#[tokio::test]
async fn a_connection_does_not_outlive_its_lifetime() {
    let (_sandbox, proxy) = single("server_lifetime = \"0s\"", &[]).await;
    let mut client = proxy.raw_as("ann", "postgres").await;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..5 {
        let own = "SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        seen.extend(values(&client.query(own).await));
    }
    assert_eq!(seen.len(), 5);
}

/// Clients of several users and databases at tight limits, some of whom vanish while they wait or work: in the end nothing is
/// counted that is not there, and nobody is forgotten.
#[tokio::test]
async fn nothing_is_lost_in_a_crowd() {
    let settings = "size = 2\nreserve_pool_size = 1\nreserve_pool_timeout = \"20ms\"\nmax_db_connections = 3\n\
                    max_user_connections = 3\nquery_wait_timeout = \"60s\"";
    let (_sandbox, proxy) = single(settings, &[]).await;
    let mut random = fastrand::Rng::with_seed(7);
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..48usize {
        let (user, database) = (["ann", "bob", "eve"][number % 3], ["postgres", "shop"][number % 2]);
        let (mut client, mut random) = (proxy.raw_as(user, database).await, random.fork());
        tasks.spawn(async move {
            for _ in 0..30 {
                match random.u8(..) {
                    // Leaves in the middle of a statement, or while it waits for a server.
                    0..4 => return client.send(&query("SELECT pg_sleep(0.01)")).await,
                    4..90 => no_errors(&client.query("BEGIN; SELECT pg_sleep(0.001); COMMIT").await),
                    90..110 => {
                        no_errors(&client.query("CREATE TEMP TABLE pins (i int)").await);
                        no_errors(&client.query("DISCARD ALL").await);
                    }
                    _ => assert_eq!(values(&client.query("SELECT 1").await), ["1"]),
                }
            }
        });
    }
    while let Some(ended) = in_time("a client", tasks.join_next()).await {
        ended.unwrap();
    }
    let mut pools = Value::Null;
    eventually("nothing is under way", async || {
        let page: Value = serde_json::from_str(&proxy.get("/pools").await.unwrap().1).unwrap();
        pools = page["pools"].clone();
        let mut all = pools.as_array().unwrap().iter();
        page["clients"]["connected"] == 0 && all.all(|it| it["open"] == it["idle"] && it["waiting"] == 0)
    })
    .await;
    let open = |key: &str, name: &str| -> u64 {
        let of_name = pools.as_array().unwrap().iter().filter(|it| it[key] == name);
        of_name.map(|it| it["open"].as_u64().unwrap()).sum()
    };
    for report in pools.as_array().unwrap() {
        let (database, user) = (report["database"].as_str().unwrap(), report["user"].as_str().unwrap());
        assert_eq!(report["database_open"], open("database", database), "{report}");
        assert_eq!(report["user_open"], open("user", user), "{report}");
        assert!(report["database_open"].as_u64().unwrap() <= 3 && report["user_open"].as_u64().unwrap() <= 3);
    }
    for (user, database) in [("ann", "postgres"), ("bob", "shop"), ("eve", "shop")] {
        assert_eq!(values(&proxy.raw_as(user, database).await.query("SELECT 1").await), ["1"]);
    }
    let evicted = proxy.metric("pgsteer_server_connections_evicted_total", &[]).await;
    println!("evicted {evicted}: {pools}");
}
