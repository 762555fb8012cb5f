//! Sessions over shared servers: prepared statements, transactions, settings, COPY, cancel, pipelines, large values.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    PROTOCOL_3_0, Running, bind, close, errors, eventually, execute, flush, frame, kinds, no_errors, parse,
    query, single, status, sync, values,
};

#[tokio::test]
async fn prepared_statements_over_one_shared_server() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let mut one = proxy.raw_logged_in().await;
    let mut two = proxy.raw_logged_in().await;
    // The same name, different texts.
    no_errors(&one.extended(&[parse("s", "SELECT 'one ' || $1::text")]).await);
    no_errors(&two.extended(&[parse("s", "SELECT 'two ' || $1::text")]).await);
    for value in ["a", "b", "c"] {
        let got = one.extended(&[bind("", "s", &[value]), execute("")]).await;
        assert_eq!(values(&got), [format!("one {value}")]);
        assert_eq!(kinds(&got), "2DCZ");
        let got = two.extended(&[bind("", "s", &[value]), execute("")]).await;
        assert_eq!(values(&got), [format!("two {value}")]);
    }
    // The unnamed statement lives until the next Parse, whoever used the server meanwhile.
    no_errors(&one.extended(&[parse("", "SELECT 'mine'")]).await);
    no_errors(&two.extended(&[parse("", "SELECT 'other'")]).await);
    assert_eq!(values(&one.extended(&[bind("", "", &[]), execute("")]).await), ["mine"]);
    assert_eq!(values(&two.extended(&[bind("", "", &[]), execute("")]).await), ["other"]);
    // A name is taken until it is closed.
    assert_eq!(errors(&one.extended(&[parse("s", "SELECT 1")]).await), ["42P05"]);
    let again =
        one.extended(&[close("s"), parse("s", "SELECT 'new'"), bind("", "s", &[]), execute("")]).await;
    assert_eq!(kinds(&again), "312DCZ", "{again:?}");
    assert_eq!(values(&again), ["new"]);
    assert_eq!(values(&two.extended(&[bind("", "s", &["x"]), execute("")]).await), ["two x"]);
    // Closed, and never prepared.
    no_errors(&one.extended(&[close("s")]).await);
    assert_eq!(errors(&one.extended(&[bind("", "s", &[]), execute("")]).await), ["26000"]);
    no_errors(&one.extended(&[close("never")]).await);
    // An error in Parse leaves no statement.
    let failed = one.extended(&[parse("bad", "SELEC 1"), bind("", "bad", &[]), execute("")]).await;
    assert_eq!((errors(&failed), kinds(&failed)), (vec!["42601".to_owned()], "EZ".to_owned()));
    assert_eq!(errors(&one.extended(&[bind("", "bad", &[])]).await), ["26000"]);
    no_errors(&one.extended(&[parse("bad", "SELECT 1")]).await);
    // More than a server keeps.
    for index in 0..300 {
        no_errors(&one.extended(&[parse(&format!("m{index}"), &format!("SELECT {index}"))]).await);
    }
    for index in (0..300).rev().step_by(7) {
        let got = one.extended(&[bind("", &format!("m{index}"), &[]), execute("")]).await;
        assert_eq!(values(&got), [index.to_string()], "{got:?}");
        assert_eq!(values(&two.extended(&[bind("", "s", &["y"]), execute("")]).await), ["two y"]);
    }
}

#[tokio::test]
async fn prepared_statements_of_many_clients_over_changing_nodes() {
    let sandbox = Sandbox::builder().standbys(2).start().await.unwrap();
    // Each client writes all the time: what others have just written is not to be waited for.
    let apart = [("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
    let proxy = Running::start_with(&sandbox, &["--pool-size", "2", "--max-lag", "1h"], &apart).await;
    proxy.client().await.batch_execute("CREATE TABLE p (c int, n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..12i32 {
        let client = proxy.client().await;
        tasks.spawn(async move {
            let read = client.prepare(&format!("SELECT {number} + $1::int")).await.unwrap();
            let write = client.prepare("INSERT INTO p VALUES ($1, $2) RETURNING n").await.unwrap();
            for n in 0..25i32 {
                let got: i32 = client.query_one(&read, &[&n]).await.unwrap().get(0);
                assert_eq!(got, number + n);
                let got: i32 = client.query_one(&write, &[&number, &n]).await.unwrap().get(0);
                assert_eq!(got, n);
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.unwrap();
    }
    assert!(proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await > 0.0);
}

#[tokio::test]
async fn transactions() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let mut one = proxy.raw_logged_in().await;
    let mut two = proxy.raw_logged_in().await;
    no_errors(&one.query("CREATE TABLE t (i int PRIMARY KEY)").await);
    // Both are in a transaction; there is one server.
    assert_eq!(status(&one.query("BEGIN").await), 'T');
    assert_eq!(status(&two.query("BEGIN").await), 'T');
    no_errors(&one.query("INSERT INTO t VALUES (1)").await);
    assert_eq!(status(&one.query("COMMIT").await), 'I');
    assert_eq!(values(&two.query("SELECT count(*) FROM t").await), ["1"]);
    assert_eq!(status(&two.query("ROLLBACK").await), 'I');
    // Savepoints and errors.
    one.query("BEGIN").await;
    one.query("INSERT INTO t VALUES (2)").await;
    assert_eq!(status(&one.query("SAVEPOINT a").await), 'T');
    let failed = one.query("INSERT INTO t VALUES (2)").await;
    assert_eq!((errors(&failed), status(&failed)), (vec!["23505".to_owned()], 'E'));
    assert_eq!(errors(&one.query("SELECT 1").await), ["25P02"]);
    assert_eq!(status(&one.query("ROLLBACK TO a").await), 'T');
    no_errors(&one.query("INSERT INTO t VALUES (3)").await);
    no_errors(&one.query("COMMIT").await);
    // COMMIT of a failed transaction is a rollback.
    one.query("BEGIN").await;
    one.query("INSERT INTO t VALUES (4)").await;
    one.query("SELECT 1/0").await;
    let ended = one.query("COMMIT").await;
    assert_eq!(ended[0].body, b"ROLLBACK\0");
    assert_eq!(values(&two.query("SELECT count(*) FROM t").await), ["3"]);
    // Several statements in one message.
    let many = one.query("INSERT INTO t VALUES (5); SELECT 1; BEGIN; INSERT INTO t VALUES (6)").await;
    assert_eq!((kinds(&many), status(&many)), ("CTDCCCZ".to_owned(), 'T'));
    let many = one.query("COMMIT; BEGIN; INSERT INTO t VALUES (7); ROLLBACK; SELECT count(*) FROM t").await;
    assert_eq!((values(&many), status(&many)), (vec!["5".to_owned()], 'I'));
    // Without BEGIN such a message is one transaction.
    assert_eq!(errors(&one.query("INSERT INTO t VALUES (8); SELECT 1/0").await), ["22012"]);
    assert_eq!(values(&two.query("SELECT count(*) FROM t").await), ["5"]);
    assert_eq!(kinds(&two.query("").await), "IZ");
    // Notices pass, and so do errors with their fields.
    let notice = two.query("DO $$BEGIN RAISE NOTICE 'look' USING HINT = 'here'; END$$").await;
    assert_eq!(kinds(&notice), "NCZ");
    assert_eq!(
        (notice[0].field(b'M').unwrap(), notice[0].field(b'H').unwrap()),
        ("look".into(), "here".into())
    );
    let raised = two.query("DO $$BEGIN RAISE 'x' USING ERRCODE = 'ZZ001', DETAIL = 'd'; END$$").await;
    assert_eq!((raised[0].sqlstate(), raised[0].field(b'D').unwrap()), ("ZZ001".into(), "d".into()));
}

#[tokio::test]
async fn session_state_does_not_leak() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "2"]).await;
    let mut pinned = proxy.raw_logged_in().await;
    no_errors(&pinned.query("SET work_mem = '77kB'").await);
    no_errors(&pinned.query("CREATE TEMP TABLE mine (i int)").await);
    eventually("the session is pinned", async || proxy.metric("pgsteer_pins_total", &[]).await >= 1.0).await;
    for _ in 0..5 {
        let mut other = proxy.raw_logged_in().await;
        assert_ne!(values(&other.query("SHOW work_mem").await), ["77kB"]);
        assert_eq!(errors(&other.query("SELECT * FROM mine").await), ["42P01"]);
    }
    assert_eq!(values(&pinned.query("SHOW work_mem").await), ["77kB"]);
    no_errors(&pinned.query("INSERT INTO mine VALUES (1)").await);
    drop(pinned);
    for _ in 0..10 {
        let mut other = proxy.raw_logged_in().await;
        assert_ne!(values(&other.query("SHOW work_mem").await), ["77kB"]);
        assert_eq!(errors(&other.query("SELECT * FROM mine").await), ["42P01"]);
    }
}

#[tokio::test]
async fn startup_settings_follow_their_client() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let base = [("user", "postgres"), ("database", "postgres")];
    let mut plain = proxy.raw().await;
    plain.log_in_with(&base).await;
    let usual = values(&plain.query("SHOW work_mem").await);
    let mut one = proxy.raw().await;
    let with_one =
        [&base[..], &[("application_name", "one"), ("options", "-c work_mem=1234kB"), ("search_path", "s1")]];
    let welcome = one.log_in_with(&with_one.concat()).await;
    let reported = welcome.iter().any(|message| message.body == b"application_name\0one\0");
    assert!(reported, "{welcome:?}");
    let mut two = proxy.raw().await;
    two.log_in_with(&[&base[..], &[("application_name", "two"), ("options", "-c work_mem=2345kB")]].concat())
        .await;
    for _ in 0..3 {
        assert_eq!(values(&one.query("SHOW work_mem").await), ["1234kB"]);
        assert_eq!(values(&one.query("SHOW application_name").await), ["one"]);
        assert_eq!(values(&one.query("SHOW search_path").await), ["s1"]);
        assert_eq!(values(&two.query("SHOW work_mem").await), ["2345kB"]);
        assert_eq!(values(&two.query("SHOW application_name").await), ["two"]);
        assert_ne!(values(&two.query("SHOW search_path").await), ["s1"]);
        assert_eq!(values(&plain.query("SHOW work_mem").await), usual);
        assert_ne!(values(&plain.query("SHOW application_name").await), ["two"]);
    }
}

#[tokio::test]
async fn copy_both_ways() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let mut raw = proxy.raw_logged_in().await;
    no_errors(&raw.query("CREATE TABLE c (i int)").await);
    let data = |text: &str| frame(b'd', text.as_bytes());
    for extended in [false, true] {
        let start = |sql: &str| {
            if extended { [parse("", sql), bind("", "", &[]), execute("")].concat() } else { query(sql) }
        };
        let end: &[u8] = if extended { &sync() } else { b"" };
        // In.
        raw.send(&start("COPY c FROM STDIN")).await;
        if extended {
            raw.send(&flush()).await;
        }
        raw.read_until(b'G').await;
        raw.send(&[data("1\n2\n"), data("3\n"), frame(b'c', b""), end.to_vec()].concat()).await;
        no_errors(&raw.read_until(b'Z').await);
        // All at once.
        raw.send(&[start("COPY c FROM STDIN"), data("4\n"), frame(b'c', b""), end.to_vec()].concat()).await;
        no_errors(&raw.read_until(b'Z').await);
        // The client gives up.
        raw.send(&[start("COPY c FROM STDIN"), data("5\n"), frame(b'f', b"no\0"), end.to_vec()].concat())
            .await;
        assert_eq!(errors(&raw.read_until(b'Z').await), ["57014"]);
        // The server gives up, the client does not know yet.
        raw.send(&start("COPY c FROM STDIN")).await;
        raw.send(&[data("x\n"), data("6\n"), data("7\n"), frame(b'c', b""), end.to_vec()].concat()).await;
        assert_eq!(errors(&raw.read_until(b'Z').await), ["22P02"]);
        // Out.
        raw.send(&[start("COPY (SELECT i FROM c ORDER BY i) TO STDOUT"), end.to_vec()].concat()).await;
        let out = raw.read_until(b'Z').await;
        let text: Vec<u8> = out.iter().filter(|m| m.kind == b'd').flat_map(|m| m.body.clone()).collect();
        assert_eq!(String::from_utf8_lossy(&text), "1\n2\n3\n4\n", "{out:?}");
        no_errors(&raw.query("TRUNCATE c").await);
    }
    let mut other = proxy.raw_logged_in().await;
    assert_eq!(values(&other.query("SELECT count(*) FROM c").await), ["0"]);
}

#[tokio::test]
async fn cancel_requests() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(
        &sandbox,
        &["--auth", "trust", "--max-lag", "1h", "--pool-size", "1", "--shards", "1"],
    )
    .await;
    let (mut one, key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    let (mut two, other_key) = proxy.raw_with_key(PROTOCOL_3_0).await;
    // On the primary (by a hint) and on the standby (a long pure read).
    for (node, sql) in [
        (0, "/* pgsteer: target=primary */ SELECT pg_sleep(50)"),
        (1, "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b"),
    ] {
        // A session that used the primary returns to standbys once they have provably seen the same.
        eventually("the standby qualifies", async || {
            let before = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
            no_errors(&one.query("SELECT 1").await);
            proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await > before
        })
        .await;
        one.send(&query(sql)).await;
        let direct = sandbox.connect(node).await.unwrap();
        eventually("the query runs", async || {
            let running = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = $1";
            direct.query_one(running, &[&sql]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        proxy.cancel(&key).await;
        assert_eq!(errors(&one.read_until(b'Z').await), ["57014"], "node {node}");
        assert_eq!(values(&one.query("SELECT 1").await), ["1"]);
    }
    // One that is idle has nothing to cancel, and a wrong key cancels nothing. Who has the server next is never hit.
    for _ in 0..30 {
        proxy.cancel(&key).await;
        let mut wrong = other_key.clone();
        wrong[5] ^= 1;
        proxy.cancel(&wrong).await;
        no_errors(&two.query("CREATE TABLE IF NOT EXISTS harmless (i int)").await);
        no_errors(&two.query("SELECT 1").await);
    }
    // A cancel at any moment of a short statement hits that statement or none.
    for _ in 0..50 {
        one.send(&query("SELECT pg_sleep(0.002)")).await;
        proxy.cancel(&key).await;
        let (first, second) = tokio::join!(one.read_until(b'Z'), two.query("SELECT pg_sleep(0.001)"));
        assert!(errors(&first).iter().all(|code| code == "57014"), "{first:?}");
        no_errors(&second);
    }
    // While it waits for a server.
    two.query("BEGIN").await;
    no_errors(&two.query("INSERT INTO harmless VALUES (1)").await);
    one.send(&query("INSERT INTO harmless VALUES (2)")).await;
    proxy.cancel(&key).await;
    let mut settled = None;
    // The cancel may come before the statement does; then it is sent again, as a person would.
    while settled.is_none() {
        tokio::select! {
            answer = one.read_until(b'Z') => settled = Some(answer),
            () = cancel_again(&proxy, &key) => {}
        }
    }
    assert_eq!(errors(&settled.unwrap()), ["57014"]);
    no_errors(&two.query("COMMIT").await);
    assert_eq!(
        values(&one.query("/* pgsteer: target=primary */ SELECT count(*) FROM harmless").await),
        ["1"]
    );
}

/// Cancels until somebody drops this.
async fn cancel_again(proxy: &Running, key: &[u8]) {
    eventually("the cancel has an effect", async || {
        proxy.cancel(key).await;
        false
    })
    .await;
}

#[tokio::test]
async fn pipelines_and_flush() {
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "1"]).await;
    let mut raw = proxy.raw_logged_in().await;
    no_errors(&raw.query("CREATE TABLE p (i int)").await);
    // Several groups in one write; one of them fails and the next is not touched by it.
    let run = |sql: &str| [parse("", sql), bind("", "", &[]), execute(""), sync()].concat();
    let group = [run("SELECT 'a'"), run("SELECT 1/0"), run("INSERT INTO p VALUES (1)"), run("SELECT 'b'")];
    raw.send(&group.concat()).await;
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(raw.read_until(b'Z').await);
    }
    assert_eq!(got.iter().map(|group| kinds(group)).collect::<Vec<_>>(), ["12DCZ", "1EZ", "12CZ", "12DCZ"]);
    // Flush without Sync: answers come, the transaction is not ended.
    raw.send(&[parse("", "SELECT 'f'"), flush()].concat()).await;
    assert_eq!(raw.read().await.kind, b'1');
    raw.send(&[bind("", "", &[]), execute(""), flush()].concat()).await;
    assert_eq!(kinds(&raw.read_until(b'C').await), "2DC");
    raw.send(&[parse("", "INSERT INTO p VALUES (2)"), bind("", "", &[]), execute(""), flush()].concat())
        .await;
    assert_eq!(kinds(&raw.read_until(b'C').await), "12C");
    raw.send(&sync()).await;
    assert_eq!(kinds(&raw.read_until(b'Z').await), "Z");
    let mut other = proxy.raw_logged_in().await;
    assert_eq!(values(&other.query("SELECT count(*) FROM p").await), ["2"]);
    // Simple queries in a row without waiting.
    raw.send(&[query("SELECT 1"), query("BEGIN"), query("SELECT 2"), query("COMMIT")].concat()).await;
    let mut statuses = Vec::new();
    for _ in 0..4 {
        statuses.push(status(&raw.read_until(b'Z').await));
    }
    assert_eq!(statuses, ['I', 'T', 'T', 'I']);
}

#[tokio::test]
async fn large_values_stream() {
    const LARGE: usize = 100 << 20;
    let (_sandbox, proxy) = single(&["--shards", "1", "--pool-size", "2"]).await;
    let client = proxy.client().await;
    client.batch_execute("CREATE TABLE l (b bytea)").await.unwrap();
    // Any read warms up the buffers that stay.
    client.batch_execute("SELECT repeat('x', 1000000)").await.unwrap();
    let before = proxy.resident_bytes();
    let value = vec![0x5a_u8; LARGE];
    client.execute("INSERT INTO l VALUES ($1)", &[&value]).await.unwrap();
    let back: Vec<u8> = client.query_one("SELECT b FROM l", &[]).await.unwrap().get(0);
    assert!(back == value, "the value has changed");
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < 100 << 20, "grew by {} MiB", grown >> 20);
    println!("grew by {} MiB", grown >> 20);

    let text = format!("SELECT length('{}')", "y".repeat(3 << 20));
    let length: i32 = client.query_one(&text, &[]).await.unwrap().get(0);
    assert_eq!(length, 3 << 20);
    client.batch_execute(&text).await.unwrap();
    // Another session on the same server is unaffected.
    proxy.client().await.batch_execute("SELECT 1").await.unwrap();
}
