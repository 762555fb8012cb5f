//! Messages in an order that few drivers send them in: after errors, without Sync, larger than a buffer, behind a lost server.
//! Each is answered as PostgreSQL answers it, and what was skipped has done nothing. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::Sandbox;
use running::{
    Message, RawClient, bind, close, errors, execute, flush, kinds, parse, query, run, single, status, sync,
    values,
};

/// Larger than a unit may become in memory.
const LARGE: usize = 1_500_000;
/// All clients of one shard share one connection.
const ONE_SERVER: &[&str] = &["--shards", "1", "--pool-size", "1"];

async fn answered(client: &mut RawClient, messages: &[Vec<u8>]) -> Vec<Message> {
    client.send(&messages.concat()).await;
    client.read_until(b'Z').await
}

/// Ends the server process of the one transaction that is open.
async fn lose_server(sandbox: &Sandbox) {
    let direct = sandbox.connect(0).await.unwrap();
    let sql = "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity \
               WHERE state = 'idle in transaction' AND pid <> pg_backend_pid()";
    assert!(direct.query_one(sql, &[]).await.unwrap().get::<_, bool>(0));
}

/// G05: the unnamed statement is each session's own, and where a session has none there is none.
#[tokio::test]
async fn another_session_s_unnamed_statement_is_not_to_be_had() {
    let (sandbox, proxy) = single(ONE_SERVER).await;
    let mut one = proxy.raw_logged_in().await;
    let mut two = proxy.raw_logged_in().await;
    run(&mut one, "CREATE TABLE t (v text)").await;
    let insert = parse("", "INSERT INTO t VALUES ('one') RETURNING v");
    for before in [None, Some(query("SELECT 1")), Some([parse("", "selec"), sync()].concat())] {
        if let Some(before) = before {
            answered(&mut two, &[before]).await;
        }
        assert_eq!(kinds(&answered(&mut one, &[insert.clone(), sync()]).await), "1Z");
        let answer = answered(&mut two, &[bind("", "", &[]), execute(""), sync()]).await;
        assert_eq!((kinds(&answer).as_str(), errors(&answer)), ("EZ", vec!["26000".to_owned()]));
        // Its own is still there.
        assert_eq!(values(&answered(&mut one, &[bind("", "", &[]), execute(""), sync()]).await), ["one"]);
    }
    let direct = sandbox.connect(0).await.unwrap();
    assert_eq!(direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0), 3);
}

/// G05: what pgsteer itself sends to the server leaves the client's unnamed statement alone.
#[tokio::test]
async fn the_unnamed_statement_survives_what_pgsteer_does() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    let runs = |name: &str| [bind("", name, &[]), execute(""), sync()];
    // A BEGIN that is put off is sent later, through the unnamed statement.
    let prepare = [parse("b", "BEGIN"), parse("", "SELECT 1"), sync()];
    assert_eq!(kinds(&answered(&mut client, &prepare).await), "11Z");
    answered(&mut client, &runs("b")).await;
    assert_eq!(values(&answered(&mut client, &runs("")).await), ["1"]);
    run(&mut client, "COMMIT").await;
    // Settings go back and forth.
    let mut other = proxy.raw_logged_in().await;
    run(&mut client, "SET work_mem = '6MB'").await;
    answered(&mut client, &[parse("", "SELECT 2"), sync()]).await;
    answered(&mut other, &[parse("s", "SELECT 3"), sync()]).await;
    assert_eq!(values(&answered(&mut client, &runs("")).await), ["2"]);
}

/// G05, P07: an unnamed statement whose text is larger than a unit is there all the same, until the next one.
#[tokio::test]
async fn a_large_unnamed_statement_is_there() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    let large = format!("SELECT length('{}')", "x".repeat(LARGE));
    let expected = [LARGE.to_string()];
    for _ in 0..2 {
        let answer = answered(&mut client, &[parse("", &large), sync()]).await;
        assert_eq!(kinds(&answer), "1Z");
        assert_eq!(values(&answered(&mut client, &[bind("", "", &[]), execute(""), sync()]).await), expected);
        run(&mut client, "SELECT 1").await;
        let answer = answered(&mut client, &[bind("", "", &[]), execute(""), sync()]).await;
        assert_eq!(errors(&answer), ["26000"]);
    }
}

/// P07, X08: what belongs to a transaction whose server was lost runs nowhere, however large it is.
#[tokio::test]
async fn a_large_message_in_a_lost_transaction_is_not_run() {
    let (sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TABLE t (v text)").await;
    let large = "x".repeat(LARGE);
    for extended in [false, true] {
        run(&mut client, "BEGIN").await;
        run(&mut client, "INSERT INTO t VALUES ('first half')").await;
        lose_server(&sandbox).await;
        let answer = if extended {
            client.send(&parse("", "INSERT INTO t VALUES ($1)")).await;
            answered(&mut client, &[bind("", "", &[&large]), execute(""), sync()]).await
        } else {
            client.query(&format!("INSERT INTO t VALUES ('{large}')")).await
        };
        assert_eq!(errors(&answer), ["40001"], "{}", kinds(&answer));
        assert_eq!(answer.last().unwrap().body, b"E");
        assert_eq!(errors(&client.query(&format!("SELECT '{large}'")).await), ["25P02"]);
        assert!(run(&mut client, "COMMIT").await[0].body.starts_with(b"ROLLBACK"));
        assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["0"]);
    }
}

/// P01, P07: after an error everything up to the Sync is skipped, large messages and Queries too.
#[tokio::test]
async fn what_follows_an_error_is_skipped_up_to_the_sync() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TABLE t (v text CHECK (v <> 'bad'))").await;
    let large = "x".repeat(LARGE);
    // Known before the large message is sent.
    client.send(&[parse("", "selec"), flush()].concat()).await;
    client.read_until(b'E').await;
    let answer = answered(&mut client, &[bind("", "", &[&large]), execute(""), sync()]).await;
    assert_eq!(kinds(&answer), "Z");
    assert_eq!(values(&run(&mut client, "SELECT 1").await), ["1"]);
    // Not known yet.
    let insert = parse("i", "INSERT INTO t VALUES ($1)");
    assert_eq!(kinds(&answered(&mut client, &[insert, sync()]).await), "1Z");
    let messages = [
        [bind("", "i", &["bad"]), execute("")].concat(),
        [bind("", "i", &[&large]), execute("")].concat(),
        [bind("", "i", &[&large]), execute(""), sync()].concat(),
    ];
    let answer = answered(&mut client, &messages).await;
    assert_eq!((kinds(&answer).as_str(), errors(&answer)), ("2EZ", vec!["23514".to_owned()]));
    assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["0"]);
    // A Query.
    let answer =
        answered(&mut client, &[parse("", "selec"), query("INSERT INTO t VALUES ('q')"), sync()]).await;
    assert_eq!(kinds(&answer), "EZ");
    assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["0"]);
    // Without an error it is run.
    let answer =
        answered(&mut client, &[parse("", "SELECT 1"), query("INSERT INTO t VALUES ('q')"), sync()]).await;
    assert_eq!(kinds(&answer), "1CZ");
    assert_eq!(kinds(&client.read_until(b'Z').await), "Z");
    assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["1"]);
}

/// G05: of statements in a batch that failed before them nothing has happened, in pgsteer's memory as on the server.
#[tokio::test]
async fn what_a_failed_batch_skipped_has_not_happened() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TEMP TABLE pins (i int)").await;
    let runs = |name: &str| [bind("", name, &[]), execute(""), sync()];
    assert_eq!(kinds(&answered(&mut client, &[parse("s", "SELECT 7"), sync()]).await), "1Z");
    for _ in 0..2 {
        let answer = answered(&mut client, &[parse("", "selec"), parse("u", "SELECT 7"), sync()]).await;
        assert_eq!(kinds(&answer), "EZ");
        assert_eq!(values(&answered(&mut client, &runs("s")).await), ["7"]);
        assert_eq!(errors(&answered(&mut client, &runs("u")).await), ["26000"]);
    }
    assert_eq!(kinds(&answered(&mut client, &[parse("u", "SELECT 7"), sync()]).await), "1Z");
    let again = [parse("", "selec"), close("s"), parse("s", "SELECT 8"), sync()];
    assert_eq!(kinds(&answered(&mut client, &again).await), "EZ");
    assert_eq!(values(&answered(&mut client, &runs("s")).await), ["7"]);
}

/// S23, S26: a BEGIN that ends in a comment does not hide what is put behind it.
#[tokio::test]
async fn a_comment_behind_begin_hides_nothing() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "BEGIN -- it").await;
    run(&mut client, "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ -- too").await;
    assert_eq!(values(&run(&mut client, "SHOW transaction_isolation").await), ["repeatable read"]);
    run(&mut client, "COMMIT").await;
}

/// S26: a BEGIN that is put off has been answered when its server refuses it. What follows must not run without its transaction: here the
/// server can't write a letter of a comment in its own encoding.
#[tokio::test]
async fn nothing_runs_without_the_transaction_that_its_client_has_begun() {
    let (sandbox, proxy) = single(ONE_SERVER).await;
    let direct = sandbox.connect(0).await.unwrap();
    let create = "CREATE DATABASE latin ENCODING 'LATIN1' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0";
    direct.batch_execute(create).await.unwrap();
    let mut client = proxy.raw().await;
    let login = [("user", sandbox.user()), ("database", "latin"), ("client_encoding", "UTF8")];
    client.log_in_with(&login).await;
    run(&mut client, "CREATE TABLE t (v text)").await;
    let insert = "INSERT INTO t VALUES ('x')";
    let batch = || [parse("", insert), bind("", "", &[]), execute(""), sync()].concat();
    let in_parts = || [parse("", insert), bind("", "", &[]), flush(), execute(""), sync()].concat();
    for begin in [
        &["BEGIN /* € */"][..],
        &["BEGIN", "SET TRANSACTION READ WRITE /* € */"],
        &["BEGIN", "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ", "SET TRANSACTION READ WRITE -- €"],
    ] {
        for unit in [query(insert), batch(), in_parts(), query(&format!("{insert}; {insert}"))] {
            for statement in begin {
                run(&mut client, statement).await;
            }
            let answer = answered(&mut client, &[unit]).await;
            assert_eq!((errors(&answer), status(&answer)), (vec!["22P05".to_owned()], 'E'), "{answer:?}");
            assert_eq!(errors(&answered(&mut client, &[query(insert)]).await), ["25P02"]);
            assert_eq!(kinds(&run(&mut client, "ROLLBACK").await), "CZ");
            assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["0"]);
        }
    }
    // The connection that it failed on is none that others get.
    run(&mut client, "BEGIN -- e").await;
    run(&mut client, insert).await;
    run(&mut client, "COMMIT").await;
    assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["1"]);
}

/// X08: behind a ROLLBACK in the same text or batch a new transaction begins, which may be committed when the server is lost: that is
/// not "rolled back".
#[tokio::test]
async fn what_follows_a_rollback_may_have_been_committed() {
    let (sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TABLE t (v text)").await;
    let body =
        "LANGUAGE plpgsql AS $$ BEGIN INSERT INTO t VALUES ('x'); COMMIT; PERFORM pg_sleep(600); END $$";
    run(&mut client, &format!("CREATE PROCEDURE commits() {body}")).await;
    let direct = sandbox.connect(0).await.unwrap();
    let together = [
        [parse("", "ROLLBACK"), bind("", "", &[]), execute("")].concat(),
        [parse("", "CALL commits()"), bind("", "", &[]), execute(""), sync()].concat(),
    ];
    let apart = [
        [parse("", "ROLLBACK"), bind("", "", &[]), execute(""), flush()].concat(),
        [parse("", "CALL commits()"), bind("", "", &[]), execute(""), sync()].concat(),
    ];
    for (round, messages) in [together, apart].into_iter().enumerate() {
        run(&mut client, "BEGIN").await;
        run(&mut client, "INSERT INTO t VALUES ('rolled back')").await;
        client.send(&messages[0]).await;
        if round == 1 {
            client.read_until(b'C').await;
        }
        client.send(&messages[1]).await;
        let count = i64::try_from(round + 1).unwrap();
        running::eventually("the procedure has committed", async || {
            direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get::<_, i64>(0) == count
        })
        .await;
        running::eventually("the procedure sleeps and is ended", async || {
            let sql =
                "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            direct.query(sql, &[]).await.unwrap().len() == 1
        })
        .await;
        let answer = client.read_until(b'Z').await;
        assert_eq!(errors(&answer), ["08007"], "{answer:?}");
        assert_eq!(answer.last().unwrap().body, b"I");
    }
}

/// X01: messages without a Sync are run as they come, here in transactions of their own and in an open one, and an error is told
/// before the Sync is sent.
#[tokio::test]
async fn what_has_no_end_is_run_all_the_same() {
    let (sandbox, proxy) = single(ONE_SERVER).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TABLE t (n int PRIMARY KEY)").await;
    let insert = parse("s", "INSERT INTO t VALUES ($1)");
    answered(&mut client, &[insert, sync()]).await;
    for begun in [false, true] {
        if begun {
            run(&mut client, "BEGIN").await;
        }
        client.send(&[bind("", "s", &["1"]), execute("")].concat()).await;
        running::eventually("the insert has run", async || {
            let sql =
                "SELECT count(*) FROM pg_locks WHERE relation = 't'::regclass AND mode = 'RowExclusiveLock'";
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        client.send(&[bind("", "s", &["1"]), execute("")].concat()).await;
        let failed = client.read_until(b'E').await;
        assert_eq!((kinds(&failed), errors(&failed)), ("2C2E".to_owned(), vec!["23505".to_owned()]));
        let rest = answered(&mut client, &[bind("", "s", &["2"]), execute(""), sync()]).await;
        assert_eq!(
            (kinds(&rest), &rest[0].body[..]),
            ("Z".to_owned(), &(if begun { *b"E" } else { *b"I" })[..])
        );
        run(&mut client, "ROLLBACK").await;
        assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["0"]);
    }
    // COPY is asked for before its data are there.
    client.send(&[parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute("")].concat()).await;
    running::eventually("COPY has begun", async || {
        let sql = "SELECT count(*) FROM pg_stat_progress_copy";
        direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let data =
        [running::frame(b'd', b"7\n"), running::frame(b'd', b"8\n"), running::frame(b'c', b""), sync()];
    let copied = answered(&mut client, &data).await;
    assert_eq!(kinds(&copied), "12GCZ", "{copied:?}");
    let twice = [parse("", "COPY t FROM STDIN"), bind("", "", &[]), execute(""), sync()];
    client.send(&twice.concat()).await;
    client.read_until(b'G').await;
    let copied =
        answered(&mut client, &[running::frame(b'd', b"9\n"), running::frame(b'c', b""), sync()]).await;
    assert_eq!(kinds(&copied), "CZ", "{copied:?}");
    assert_eq!(values(&run(&mut client, "SELECT count(*) FROM t").await), ["3"]);
}

/// P1, P5: code that commits and then meets a plan that has changed under it has run, and is not run again.
#[tokio::test]
async fn code_that_has_committed_is_not_run_again() {
    let (_sandbox, proxy) = single(ONE_SERVER).await;
    let mut client = proxy.raw_logged_in().await;
    run(&mut client, "CREATE TABLE shape (a int); CREATE TABLE once (n int)").await;
    let body = "LANGUAGE plpgsql AS $$ DECLARE n text := 'p' || (random() * 1e9)::int; BEGIN \
                EXECUTE 'PREPARE ' || n || ' AS SELECT * FROM shape'; EXECUTE 'EXECUTE ' || n; \
                EXECUTE 'ALTER TABLE shape ADD COLUMN ' || n || ' int'; INSERT INTO once VALUES (1); COMMIT; \
                EXECUTE 'EXECUTE ' || n; END $$";
    run(&mut client, &format!("CREATE PROCEDURE commits() {body}")).await;
    let extended = [parse("", "CALL commits()"), bind("", "", &[]), execute(""), sync()];
    for (round, messages) in [vec![query("CALL commits()")], extended.to_vec()].into_iter().enumerate() {
        assert_eq!(errors(&answered(&mut client, &messages).await), ["0A000"]);
        let count = values(&run(&mut client, "SELECT count(*) FROM once").await).concat();
        assert_eq!(count, (round + 1).to_string());
    }
}
