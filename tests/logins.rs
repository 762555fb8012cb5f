//! Logins against real servers: who may in, who may not and with which error, and bad input that harms nobody else.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, PROTOCOL_3_0, PROTOCOL_3_2, RawClient, Running, errors, eventually, frame, kinds, query,
    startup, startup_frame, values,
};
use tokio_postgres::error::DbError;

/// Ends all server processes of ann's and waits for that.
const END_ANN: &str = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'ann'";
const SSL_REQUEST: i32 = 80_877_103;
const GSSENC_REQUEST: i32 = 80_877_104;

async fn refused(proxy: &Running, user: &str, password: &str, db: &str) -> DbError {
    let error = proxy.try_connect(user, password, db).await.expect_err("a refusal");
    error.as_db_error().unwrap_or_else(|| panic!("{error:?}")).clone()
}

async fn refusal(proxy: &Running, user: &str, password: &str, db: &str) -> (String, String) {
    let error = refused(proxy, user, password, db).await;
    (error.code().code().to_owned(), error.message().to_owned())
}

fn detail(error: &DbError) -> &str {
    error.detail().unwrap_or_else(|| panic!("no DETAIL: {error:?}"))
}

/// An auth query that counts how often it is asked, and does `first` before it answers; `asked` is the count.
async fn count_auth_queries(direct: &tokio_postgres::Client, first: &str) -> (&'static str, &'static str) {
    let sql = format!(
        "CREATE SEQUENCE public.asked;
         CREATE FUNCTION public.counted(wanted text, OUT role name, OUT verifier text) LANGUAGE plpgsql
         SET search_path = pg_catalog, pg_temp AS $$ DECLARE asked bigint := nextval('public.asked'); BEGIN
         {first}
         SELECT rolname, rolpassword INTO role, verifier FROM pg_authid WHERE rolname = wanted AND rolcanlogin;
         END $$"
    );
    direct.batch_execute(&sql).await.unwrap();
    ("PGSTEER_AUTH_QUERY", "SELECT * FROM public.counted($1)")
}

async fn asked(direct: &tokio_postgres::Client) -> u64 {
    let sql = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM public.asked";
    direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0).unsigned_abs()
}

#[tokio::test]
async fn passwords_are_those_of_the_servers() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("SET password_encryption = 'scram-sha-256'; CREATE ROLE ann LOGIN PASSWORD 'one'")
        .await
        .unwrap();
    let proxy = Running::start(&sandbox, &[]).await;

    let ann = proxy.connect("ann", "one", "postgres").await;
    let name: String = ann.query_one("SELECT current_user::text", &[]).await.unwrap().get(0);
    assert_eq!(name, "ann");

    let (code, text) = refusal(&proxy, "ann", "two", "postgres").await;
    assert_eq!(code, "28P01");
    assert_eq!(text, "password authentication failed for user \"ann\"");
    let (code, text) = refusal(&proxy, "nobody_at_all", "two", "postgres").await;
    assert_eq!(code, "28P01");
    assert_eq!(text, "password authentication failed for user \"nobody_at_all\"");
    assert_eq!(refusal(&proxy, "ann", "one", "nowhere").await.0, "3D000");

    // A changed password: the new one works, at the latest a second after it was refused because of the remembered one.
    direct.batch_execute("ALTER ROLE ann PASSWORD 'three'").await.unwrap();
    let mut ann = None;
    eventually("the new password is good", async || {
        match proxy.try_connect("ann", "three", "postgres").await {
            Ok(client) => ann = Some(client),
            Err(error) => assert_eq!(error.code().unwrap().code(), "28P01"),
        }
        ann.is_some()
    })
    .await;
    ann.unwrap().batch_execute("SELECT 1").await.unwrap();
    assert_eq!(refusal(&proxy, "ann", "one", "postgres").await.0, "28P01");
    assert!(proxy.metric("pgsteer_logins_failed_total", &[]).await >= 3.0);
}

/// PostgreSQL's sessions outlive a change of their role's password, and whoever knows the new one comes in.
#[tokio::test]
async fn sessions_outlive_a_change_of_the_password() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE ann LOGIN PASSWORD 'one'").await.unwrap();
    let proxy = Running::start(&sandbox, &["--shards", "2"]).await;
    // On both shards, and none of them holds a server when the password is changed.
    let mut old = Vec::new();
    for _ in 0..4 {
        let session = proxy.connect("ann", "one", "postgres").await;
        session.batch_execute("SELECT 1").await.unwrap();
        old.push(session);
    }
    // The same password set again has another salt: as a key it is another one.
    for password in ["one", "one", "two"] {
        let change = format!("ALTER ROLE ann PASSWORD '{password}'");
        direct.batch_execute(&change).await.unwrap();
        direct.execute(END_ANN, &[]).await.unwrap();
        // What is remembered of the password is of before: that is found out by the first who needs a server, and those who
        // come a second later at the latest are in.
        let started = Instant::now();
        eventually("the password is good", async || {
            match proxy.try_connect("ann", password, "postgres").await {
                Ok(client) => client.batch_execute("SELECT 1").await.is_ok(),
                Err(error) => {
                    assert_eq!(error.code().unwrap().code(), "28P01");
                    false
                }
            }
        })
        .await;
        assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
        for session in &old {
            direct.execute(END_ANN, &[]).await.unwrap();
            session.batch_execute("SELECT 1").await.unwrap();
        }
    }
}

#[tokio::test]
async fn the_first_packets() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start_with(
        &sandbox,
        &["--auth", "trust"],
        &[("PGSTEER_LISTEN_LOGIN_TIMEOUT", "700ms"), ("PGSTEER_LISTEN_MAX_CLIENT_CONN", "20")],
    )
    .await;
    let witness = proxy.client().await;

    // Requests for encryption, then the login on the same connection.
    let mut raw = proxy.raw().await;
    raw.send(&startup_frame(GSSENC_REQUEST, b"")).await;
    assert_eq!(raw.read_byte().await, b'N');
    raw.send(&startup_frame(SSL_REQUEST, b"")).await;
    assert_eq!(raw.read_byte().await, b'N');
    raw.log_in("postgres", "postgres").await;
    assert_eq!(values(&raw.query("SELECT 7").await), ["7"]);

    // Unknown protocol options are named.
    let mut raw = proxy.raw().await;
    raw.send(&startup(PROTOCOL_3_2, &[("user", "postgres"), ("_pq_.future", "1")])).await;
    let welcome = raw.read_until(b'Z').await;
    let negotiation = welcome.iter().find(|message| message.kind == b'v').expect("a negotiation");
    assert_eq!(negotiation.body, *b"\0\x03\0\x02\0\0\0\x01_pq_.future\0");
    assert_eq!(values(&raw.query("SELECT 8").await), ["8"]);

    for (bytes, code, what) in [
        (startup(PROTOCOL_3_0, &[]), "28000", "no user"),
        (startup(PROTOCOL_3_0, &[("user", "postgres"), ("database", "nowhere")]), "3D000", "no database"),
        (startup(PROTOCOL_3_0, &[("user", "no_such_role")]), "28000", "no role"),
        (startup(PROTOCOL_3_0, &[("user", "postgres"), ("replication", "o")]), "22023", "on or off"),
        (startup(131_072, &[("user", "postgres")]), "0A000", "protocol 2"),
        (b"\0\0\0\x04".to_vec(), "08P01", "too short"),
        (b"\xff\xff\xff\xff\0\x03\0\0".to_vec(), "08P01", "negative length"),
        (b"\x7f\xff\xff\xff\0\x03\0\0".to_vec(), "08P01", "oversized"),
        (b"GET / HTTP/1.1\r\n\r\n".to_vec(), "08P01", "HTTP"),
        (startup_frame(PROTOCOL_3_0, b"user\0postgres"), "08P01", "no terminator"),
    ] {
        let mut raw = proxy.raw().await;
        raw.send(&bytes).await;
        assert_eq!(errors(&raw.read_to_end().await), [code], "{what}");
    }

    // Who has proved itself is told so before it is told what else is wrong.
    for (name, value) in [("database", "nowhere"), ("options", "-c no_such=1"), ("user", "no_such_role")] {
        let mut raw = proxy.raw().await;
        raw.send(&startup(PROTOCOL_3_0, &[("user", "postgres"), (name, value)])).await;
        assert_eq!(kinds(&raw.read_to_end().await), "RE", "{name}");
    }

    // What says no in PostgreSQL's words is no replication; a parameter of its own wins over the options.
    for parameters in [
        [("replication", "F"), ("work_mem", "2MB"), ("options", "-c work_mem=1MB")],
        [("options", "-c work_mem=1MB"), ("replication", "of"), ("work_mem", "2MB")],
    ] {
        let mut raw = proxy.raw().await;
        raw.log_in_with(&[&[("user", "postgres")], &parameters[..]].concat()).await;
        assert_eq!(values(&raw.query("SHOW work_mem").await), ["2MB"], "{parameters:?}");
    }

    // A goodbye before the login is answered by nothing, in one piece or not.
    for cut in [5, 4, 1] {
        let mut raw = proxy.raw().await;
        raw.send(&b"X\0\0\0\x04"[..cut]).await;
        raw.send(&b"X\0\0\0\x04"[cut..]).await;
        assert!(raw.read_to_end().await.is_empty(), "cut at {cut}");
    }

    // No process id of a client can be that of a process: a signal meant for it hits nobody.
    let welcome = proxy.raw().await.log_in("postgres", "postgres").await;
    let key = welcome.iter().find(|message| message.kind == b'K').unwrap();
    assert!(i32::from_be_bytes(key.body[..4].try_into().unwrap()) >= 1 << 23);

    // A client that says nothing, and one that stops in the middle, are let go.
    let mut silent = proxy.raw().await;
    let mut half = proxy.raw().await;
    half.send(&startup(PROTOCOL_3_0, &[("user", "postgres")])[..11]).await;
    silent.read_to_end().await;
    half.read_to_end().await;

    // Too many clients.
    eventually("the clients above have left", async || {
        proxy.metric("pgsteer_clients_active", &[]).await <= 3.0
    })
    .await;
    let mut clients = Vec::new();
    let refused = loop {
        let mut raw = proxy.raw().await;
        raw.send(&startup(PROTOCOL_3_0, &[("user", "postgres")])).await;
        let message = raw.read().await;
        if message.kind == b'E' {
            break message;
        }
        raw.read_until(b'Z').await;
        clients.push(raw);
        assert!(clients.len() <= 20, "max_client_conn has no effect");
    };
    assert_eq!(refused.sqlstate(), "53300");
    drop(clients);

    witness.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn bad_messages_end_only_their_sender() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--pool-size", "2"]).await;
    let witness = proxy.client().await;
    for (bytes, what) in [
        (b"Q\0\0\0\x03".to_vec(), "length below 4"),
        (b"Q\xff\xff\xff\xff".to_vec(), "negative length"),
        (b"S\x7f\xff\xff\xff".to_vec(), "a Sync of 2 GB"),
        (frame(b'y', b"what"), "unknown type"),
        (frame(0, b""), "type zero"),
    ] {
        let mut raw = proxy.raw_logged_in().await;
        raw.send(&bytes).await;
        let answer = raw.read_to_end().await;
        assert_eq!(errors(&answer), ["08P01"], "{what}: {answer:?}");
        witness.batch_execute("SELECT 1").await.unwrap();
    }
    // Inside a transaction: its work is undone, its server is not given to anybody as it was.
    let mut raw = proxy.raw_logged_in().await;
    raw.query("CREATE TABLE undone (i int)").await;
    raw.query("BEGIN").await;
    assert_eq!(kinds(&raw.query("INSERT INTO undone VALUES (1)").await), "CZ");
    raw.send(&frame(b'y', b"")).await;
    raw.read_to_end().await;
    // A truncated message, then the end of the connection.
    let mut raw = proxy.raw_logged_in().await;
    let text = query("INSERT INTO undone VALUES (2)");
    raw.send(&text[..text.len() - 3]).await;
    drop(raw);
    eventually("the transaction is undone", async || {
        let open = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'";
        witness.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0
    })
    .await;
    let rows: i64 = witness.query_one("SELECT count(*) FROM undone", &[]).await.unwrap().get(0);
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn without_a_node_a_login_waits_and_is_told_why() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    sandbox.node(0).stop_fast().await.unwrap();
    let patience = [("PGSTEER_LISTEN_LOGIN_TIMEOUT", "1s")];
    let proxy = Running::launch(&sandbox, &[], &patience).await;
    assert_eq!(proxy.get("/readyz").await.unwrap().0, 503);
    let error = refused(&proxy, "postgres", sandbox.password(), "postgres").await;
    assert_eq!(error.code().code(), "57P03");
    assert!(detail(&error).starts_with("No node is known as primary or standby: 1 unknown ("), "{error:?}");
    drop(proxy);

    // One with more patience is let in when the node comes.
    let proxy = Running::launch(&sandbox, &[], &[("PGSTEER_LISTEN_LOGIN_TIMEOUT", "50s")]).await;
    let (client, started) = tokio::join!(proxy.client(), sandbox.node(0).start());
    started.unwrap();
    client.batch_execute("SELECT 1").await.unwrap();
}

#[tokio::test]
async fn idle_clients_cost_no_server_connection() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut clients = Vec::new();
    for _ in 0..300 {
        clients.push(proxy.raw_logged_in().await);
    }
    let direct = sandbox.connect(0).await.unwrap();
    eventually("only the prober is connected", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'";
        // This connection and the prober's.
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) <= 2
    })
    .await;
    assert!((proxy.metric("pgsteer_clients_active", &[]).await - 300.0).abs() < 0.5);
    for client in clients.iter_mut().step_by(50) {
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    }
}

/// A login role that may not ask: the client is told at once, the servers are asked once, the log has one line of it.
#[tokio::test]
async fn a_login_role_that_may_not_ask_is_told_to_the_client_at_once() {
    let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE weak LOGIN PASSWORD 'weak'; GRANT pg_monitor TO weak").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let patience = ("PGSTEER_LISTEN_LOGIN_TIMEOUT", "50s");
    let weak = [patience, ("PGSTEER_CLUSTER_USER", "weak"), ("PGSTEER_PASSWORD", "weak")];
    let no_function = [patience, ("PGSTEER_AUTH_QUERY", "SELECT * FROM public.missing($1)")];
    for (environment, code) in [(&weak[..], "42501"), (&no_function[..], "42883")] {
        let proxy = Running::start_with(&sandbox, &[], environment).await;
        let started = Instant::now();
        for user in ["weak", "weak", "postgres", "nobody_at_all"] {
            let error = refused(&proxy, user, "weak", "postgres").await;
            assert_eq!(error.code().code(), "57P03");
            assert_eq!(error.message(), "pgsteer: no server can be asked for the password");
            assert!(detail(&error).contains(code), "{error:?}");
            assert!(error.hint().unwrap().starts_with("cluster.user must be able to run auth.query"));
        }
        let lines = proxy.log().lines().filter(|line| line.contains("the auth query failed")).count() as u64;
        assert!((1..=1 + started.elapsed().as_secs()).contains(&lines), "{}", proxy.log());
    }

    // A password that no node accepts: not even the probes get in.
    let wrong = [patience, ("PGSTEER_PASSWORD", "wrong")];
    let proxy = Running::launch(&sandbox, &[], &wrong).await;
    let error = refused(&proxy, "weak", "weak", "postgres").await;
    assert_eq!(error.code().code(), "57P03");
    assert!(detail(&error).contains("28P01"), "{error:?}");
}

/// An error that passes is asked again, now and then, and told when the time is up.
#[tokio::test]
async fn an_auth_query_that_fails_for_a_while_is_asked_again() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    let query = count_auth_queries(
        &direct,
        "IF asked <= 2 OR wanted = 'unlucky' THEN RAISE 'not now' USING ERRCODE = '53400'; END IF;",
    )
    .await;
    let proxy = Running::start_with(&sandbox, &[], &[query]).await;
    proxy.client().await.batch_execute("SELECT 1").await.unwrap();
    assert_eq!(asked(&direct).await, 3);
    drop(proxy);

    let patience = [query, ("PGSTEER_LISTEN_LOGIN_TIMEOUT", "2500ms")];
    let proxy = Running::start_with(&sandbox, &[], &patience).await;
    let logins = (0..20).map(|_| refused(&proxy, "unlucky", "x", "postgres"));
    let started = Instant::now();
    for error in join_all(logins).await {
        assert_eq!(error.code().code(), "57P03");
        assert_eq!(error.message(), "pgsteer: the login was not completed in time");
        assert_eq!(detail(&error), "The auth query failed: not now (SQLSTATE 53400).");
    }
    // All of them together: one each second, and one more for each that came a little later than the others.
    let rounds = asked(&direct).await - 3;
    assert!(rounds <= 4 + started.elapsed().as_secs(), "{rounds} auth queries");
    let lines = proxy.log().lines().filter(|line| line.contains("53400")).count() as u64;
    assert!(lines <= 1 + started.elapsed().as_secs(), "{}", proxy.log());
}

/// However many come, a user who does not exist costs the servers a query each second, and so do wrong passwords.
#[tokio::test]
async fn a_flood_of_refused_logins_does_not_reach_the_servers() {
    let sandbox = Sandbox::builder().standbys(0).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    let query = count_auth_queries(&direct, "").await;
    direct.batch_execute("CREATE ROLE ann LOGIN PASSWORD 'one'").await.unwrap();
    let proxy = Running::start_with(&sandbox, &[], &[query]).await;
    let started = Instant::now();
    for (code, message) in join_all((0..60).map(|_| refusal(&proxy, "ghost", "x", "postgres"))).await {
        assert_eq!((code.as_str(), message.contains("ghost")), ("28P01", true));
    }
    let count = asked(&direct).await;
    assert!((1..=1 + started.elapsed().as_secs()).contains(&count), "{count} auth queries");

    let started = Instant::now();
    proxy.connect("ann", "one", "postgres").await;
    for _ in 0..5 {
        let wrong = (0..8).map(|_| refusal(&proxy, "ann", "two", "postgres"));
        assert!(join_all(wrong).await.iter().all(|(code, _)| code == "28P01"));
        proxy.connect("ann", "one", "postgres").await;
    }
    // The first look, the one because of the first wrong password, then one each second.
    let count = asked(&direct).await - count;
    assert!((2..=2 + started.elapsed().as_secs()).contains(&count), "{count} auth queries");

    // A changed password gets in within a second of the first refusal.
    direct.batch_execute("ALTER ROLE ann PASSWORD 'two'").await.unwrap();
    eventually("the new password is good", async || {
        proxy.try_connect("ann", "two", "postgres").await.is_ok()
    })
    .await;
    // And one who did not exist a moment ago.
    direct.batch_execute("CREATE ROLE ghost LOGIN PASSWORD 'x'").await.unwrap();
    eventually("the new role is seen", async || proxy.try_connect("ghost", "x", "postgres").await.is_ok())
        .await;
    assert!(started.elapsed() < Duration::from_secs(30), "{:?}", started.elapsed());
}

async fn join_all<T: Send + 'static>(futures: impl Iterator<Item = impl Future<Output = T>>) -> Vec<T> {
    let mut waiting: Vec<_> = futures.map(|future| Some(Box::pin(future))).collect();
    let mut done = Vec::new();
    std::future::poll_fn(|context| {
        for slot in &mut waiting {
            if let Some(future) = slot
                && let std::task::Poll::Ready(value) = future.as_mut().poll(context)
            {
                done.push(value);
                *slot = None;
            }
        }
        if waiting.iter().any(Option::is_some) {
            std::task::Poll::Pending
        } else {
            std::task::Poll::Ready(())
        }
    })
    .await;
    done
}

fn application_name(welcome: &[Message]) -> String {
    let names: Vec<String> = welcome
        .iter()
        .filter(|message| message.kind == b'S')
        .map(|message| String::from_utf8(message.body.clone()).unwrap())
        .filter_map(|body| body.strip_prefix("application_name\0").map(str::to_owned))
        .collect();
    names.concat().trim_end_matches('\0').to_owned()
}

/// What is reported is what the server has, and that is not always what was sent.
#[tokio::test]
async fn the_application_name_is_reported_as_the_server_has_it() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE ROLE named LOGIN; ALTER ROLE named SET application_name = 'of the role'")
        .await
        .unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    for parameters in [
        &[("user", "postgres"), ("application_name", "plain ~ name")][..],
        &[("user", "postgres"), ("application_name", "\u{fc} p")],
        &[("user", "postgres"), ("application_name", "a\tb\u{1f418}")],
        &[("user", "postgres")],
        &[("user", "named"), ("database", "postgres")],
        &[("user", "named"), ("database", "postgres"), ("Application_Name", "mine")],
    ] {
        let address = sandbox.node(0).address().to_string();
        let mut server = RawClient { stream: tokio::net::TcpStream::connect(address).await.unwrap() };
        let expected = application_name(&server.log_in_with(parameters).await);
        let mut raw = proxy.raw().await;
        assert_eq!(application_name(&raw.log_in_with(parameters).await), expected, "{parameters:?}");
        assert_eq!(values(&raw.query("SHOW application_name").await), [expected], "{parameters:?}");
    }
}

/// What the server has to say of a login is told to each client, and not only to the first for which it was asked.
#[tokio::test]
async fn notices_of_the_login_are_passed_on() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let direct = sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE ROLE warned LOGIN; ALTER ROLE warned SET default_text_search_config = 'none'")
        .await
        .unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let (long, longest) = ("x".repeat(65), "y".repeat(63));
    for (parameters, count) in [
        (&[("user", "postgres"), ("application_name", &long)][..], 1),
        (&[("user", "postgres"), ("application_name", &longest)], 0),
        (&[("user", "warned"), ("database", "postgres")], 1),
        (&[("user", "warned"), ("database", "postgres"), ("client_min_messages", "error")], 0),
    ] {
        let address = sandbox.node(0).address().to_string();
        let mut server = RawClient { stream: tokio::net::TcpStream::connect(address).await.unwrap() };
        let expected = server.log_in_with(parameters).await;
        assert_eq!(notices(&expected).len(), count, "{parameters:?}: {expected:?}");
        for _ in 0..2 {
            let mut raw = proxy.raw().await;
            let welcome = raw.log_in_with(parameters).await;
            assert_eq!(notices(&welcome), notices(&expected), "{parameters:?}");
            assert_eq!(application_name(&welcome), application_name(&expected), "{parameters:?}");
            // It is said once.
            assert_eq!(kinds(&raw.query("SELECT 1").await), "TDCZ", "{parameters:?}");
        }
    }
}

fn notices(welcome: &[Message]) -> Vec<&Message> {
    welcome.iter().filter(|message| message.kind == b'N').collect()
}
