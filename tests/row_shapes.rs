//! Prepared statements whose rows change their shape by DDL: nobody gets rows of another shape than it was told, and who was
//! told nothing is not bothered. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, describe, errors, eventually, execute, kinds, parse, sync, values,
};
use tokio_postgres::Client;

struct Stage {
    _sandbox: Sandbox,
    direct: Client,
    proxy: Running,
    one: RawClient,
}

impl Stage {
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
        let direct = sandbox.connect(0).await.unwrap();
        direct.batch_execute("CREATE TABLE t (n int); INSERT INTO t VALUES (1)").await.unwrap();
        let args = ["--auth", "trust", "--shards", "1", "--pool-size", "1"];
        let proxy = Running::start(&sandbox, &args).await;
        let one = proxy.raw_logged_in().await;
        Self { _sandbox: sandbox, direct, proxy, one }
    }

    /// The pooled connection ends: the next unit gets a new one, on which nothing is prepared.
    async fn lose_the_connection(&self) {
        let pooled = "FROM pg_stat_activity WHERE backend_type = 'client backend' \
             AND application_name <> 'pgsteer_probe' AND pid <> pg_backend_pid()";
        self.direct
            .batch_execute(&format!("SELECT count(pg_terminate_backend(pid)) {pooled}"))
            .await
            .unwrap();
        let left = format!("SELECT count(*) {pooled}");
        eventually("the pooled connection is gone", async || {
            self.direct.query_one(&left, &[]).await.unwrap().get::<_, i64>(0) == 0
        })
        .await;
    }

    async fn add_column(&self) {
        self.direct.batch_execute("ALTER TABLE t ADD COLUMN more text DEFAULT 'x'").await.unwrap();
    }
}

/// What drivers know the error by.
fn is_plan_changed(answer: &[Message]) -> bool {
    answer.iter().any(|message| {
        message.kind == b'E'
            && message.field(b'M').as_deref() == Some("cached plan must not change result type")
            && message.field(b'R').as_deref() == Some("RevalidateCachedQuery")
            && message.sqlstate() == "0A000"
    })
}

const READ: &str = "SELECT * FROM t";
const WRITE: &str = "INSERT INTO t (n) VALUES (2) RETURNING *";

/// S04: a described statement, on a server that has not prepared it: refused like by a server of the client's own.
#[tokio::test]
async fn described_rows_never_change_their_shape() {
    for (name, sql) in [("s", READ), ("", READ), ("s", WRITE), ("", WRITE)] {
        let mut stage = Stage::start().await;
        let told = stage.one.extended(&[parse(name, sql), describe(b'S', name)]).await;
        assert_eq!(kinds(&told), "1tTZ", "{told:?}");
        stage.add_column().await;
        stage.lose_the_connection().await;
        for _ in 0..2 {
            let answer = stage.one.extended(&[bind("", name, &[]), execute("")]).await;
            assert_eq!(kinds(&answer), "EZ", "{name} {sql}: {answer:?}");
            assert!(is_plan_changed(&answer), "{answer:?}");
            assert_eq!(answer[1].body, b"I");
        }
        let count = stage.one.query("SELECT count(*) FROM t").await;
        assert_eq!(values(&count), ["1"], "{sql} has run all the same");
        let anew = [parse("anew", sql), describe(b'S', "anew"), bind("", "anew", &[]), execute("")];
        let answer = stage.one.extended(&anew).await;
        assert_eq!(kinds(&answer), "1tT2DCZ", "{answer:?}");
        let answer = stage.one.extended(&[bind("", "anew", &[]), execute("")]).await;
        assert_eq!(kinds(&answer), "2DCZ", "{answer:?}");
    }
}

/// S04: the same inside of a transaction, which fails by it; and for what has been there all along.
#[tokio::test]
async fn in_a_transaction_it_fails() {
    for sql in [READ, WRITE] {
        let mut stage = Stage::start().await;
        stage.one.extended(&[parse("s", sql), describe(b'S', "s")]).await;
        stage.add_column().await;
        stage.lose_the_connection().await;
        for begun in ["BEGIN", "BEGIN; SELECT 1"] {
            stage.one.query(begun).await;
            let answer = stage.one.extended(&[bind("", "s", &[]), execute("")]).await;
            assert_eq!(kinds(&answer), "EZ", "{begun}: {answer:?}");
            assert!(is_plan_changed(&answer) && answer[1].body == b"E", "{answer:?}");
            assert_eq!(errors(&stage.one.query("SELECT 1").await), ["25P02"]);
            assert_eq!(stage.one.query("COMMIT").await[0].body, b"ROLLBACK\0");
        }
        assert_eq!(values(&stage.one.query("SELECT count(*) FROM t").await), ["1"]);
    }
}

/// S04: another client has prepared the same text after the DDL, on the same connection.
#[tokio::test]
async fn what_another_client_prepared_does_not_count() {
    let mut stage = Stage::start().await;
    stage.one.extended(&[parse("s", READ), describe(b'S', "s")]).await;
    stage.add_column().await;
    let mut two = stage.proxy.raw_logged_in().await;
    let own = [parse("mine", READ), describe(b'S', "mine"), bind("", "mine", &[]), execute("")];
    assert_eq!(kinds(&two.extended(&own).await), "1tT2DCZ");
    let answer = stage.one.extended(&[bind("", "s", &[]), execute("")]).await;
    assert!(is_plan_changed(&answer), "{answer:?}");
    assert_eq!(kinds(&two.extended(&[bind("", "mine", &[]), execute("")]).await), "2DCZ");
}

/// S04: who asks for the shape of what it executes gets it, whatever it was told before.
#[tokio::test]
async fn who_describes_the_portal_is_served() {
    for sql in [READ, WRITE] {
        let mut stage = Stage::start().await;
        stage.one.extended(&[parse("s", sql), describe(b'S', "s")]).await;
        stage.add_column().await;
        stage.lose_the_connection().await;
        let unit = [bind("", "s", &[]), describe(b'P', ""), execute("")];
        let answer = stage.one.extended(&unit).await;
        assert_eq!(kinds(&answer), "2TDCZ", "{answer:?}");
        assert_eq!(answer[1].body[..2], [0, 2]);
    }
}

/// S04: on the server where it was prepared the statement is prepared anew, for whoever was told nothing.
#[tokio::test]
async fn a_statement_that_was_not_described_is_prepared_anew() {
    for sql in [READ, WRITE] {
        let mut stage = Stage::start().await;
        let first = [parse("s", sql), bind("", "s", &[]), describe(b'P', ""), execute("")];
        assert_eq!(kinds(&stage.one.extended(&first).await), "12TDCZ");
        stage.add_column().await;
        let unit = [bind("", "s", &[]), describe(b'P', ""), execute("")];
        let answer = stage.one.extended(&unit).await;
        assert_eq!(kinds(&answer), "2TDCZ", "{sql}: {answer:?}");
        assert_eq!(answer[1].body[..2], [0, 2]);
        let healed = stage.proxy.metric("pgsteer_retries_total", &[("cause", "plan_changed")]).await;
        assert!(healed >= 1.0, "{sql}: {healed}");
        // Inside of a transaction it is too late.
        stage.direct.batch_execute("ALTER TABLE t ADD COLUMN third int").await.unwrap();
        stage.one.query("BEGIN; SELECT 1").await;
        let answer = stage.one.extended(&unit).await;
        assert!(is_plan_changed(&answer), "{answer:?}");
        stage.one.query("ROLLBACK").await;
    }
}

/// S04: what can't be prepared any more fails by the server's own error, where the unit stands.
#[tokio::test]
async fn what_is_gone_fails_as_ever() {
    for begun in [false, true] {
        let mut stage = Stage::start().await;
        stage.one.extended(&[parse("s", WRITE), describe(b'S', "s")]).await;
        stage.direct.batch_execute("DROP TABLE t").await.unwrap();
        stage.lose_the_connection().await;
        if begun {
            stage.one.query("BEGIN; SELECT 1").await;
        }
        let answer = stage.one.extended(&[bind("", "s", &[]), execute("")]).await;
        assert_eq!((kinds(&answer), errors(&answer)), ("EZ".to_owned(), vec!["42P01".to_owned()]));
        assert_eq!(answer[1].body, if begun { b"E" } else { b"I" });
    }
}

/// S04: a pipeline of several statements is asked for first; nothing of it runs.
#[tokio::test]
async fn nothing_of_a_pipeline_runs() {
    let mut stage = Stage::start().await;
    stage.one.extended(&[parse("s", READ), describe(b'S', "s")]).await;
    stage.add_column().await;
    stage.lose_the_connection().await;
    let pipeline =
        [parse("w", WRITE), bind("", "w", &[]), execute(""), bind("", "s", &[]), execute(""), sync()];
    stage.one.send(&pipeline.concat()).await;
    let answer = stage.one.read_until(b'Z').await;
    assert!(is_plan_changed(&answer), "{answer:?}");
    assert_eq!(values(&stage.one.query("SELECT count(*) FROM t").await), ["1"]);
    // `w` was not prepared: its name is free.
    assert_eq!(kinds(&stage.one.extended(&[parse("w", "SELECT 1")]).await), "1Z");
}

/// S04: the shape that a portal was described with counts as well: drivers keep it with the statement.
#[tokio::test]
async fn the_shape_of_a_portal_is_that_of_its_statement() {
    for sql in [READ, WRITE] {
        let mut stage = Stage::start().await;
        let first = [parse("s", sql), bind("", "s", &[]), describe(b'P', ""), execute("")];
        assert_eq!(kinds(&stage.one.extended(&first).await), "12TDCZ");
        let count = values(&stage.one.query("SELECT count(*) FROM t").await);
        stage.add_column().await;
        // On the server where it was prepared, and on another.
        for _ in 0..2 {
            let answer = stage.one.extended(&[bind("", "s", &[]), execute("")]).await;
            assert!(is_plan_changed(&answer) && kinds(&answer) == "EZ", "{sql}: {answer:?}");
            stage.lose_the_connection().await;
        }
        assert_eq!(values(&stage.one.query("SELECT count(*) FROM t").await), count);
    }
}
