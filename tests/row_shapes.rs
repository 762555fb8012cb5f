//! Prepared statements whose rows change their shape by DDL: nobody gets rows of another shape than it was told, and who was
//! told nothing is not bothered. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, describe, errors, eventually, execute, flush, frame, kinds, parse,
    status, sync, values,
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

/// Who was told the types of its parameters writes values of those ever after. A server of its own keeps them; one on which the text is
/// prepared anew would take eight bytes of a bigint for a double.
#[tokio::test]
async fn parameters_never_change_their_types() {
    let mut stage = Stage::start().await;
    stage.direct.batch_execute("ALTER TABLE t ALTER n TYPE bigint").await.unwrap();
    let sql = "INSERT INTO t (n) VALUES ($1)";
    let value =
        [b"\0s\0\0\x01\0\x01\0\x01\0\0\0\x08".as_slice(), &4607182418800017408_i64.to_be_bytes(), b"\0\0"];
    let insert = [frame(b'B', &value.concat()), execute("")];
    assert_eq!(kinds(&stage.one.extended(&[parse("s", sql), describe(b'S', "s")]).await), "1tnZ");
    assert_eq!(kinds(&stage.one.extended(&insert).await), "2CZ");
    stage.lose_the_connection().await;
    // Nothing has changed.
    assert_eq!(kinds(&stage.one.extended(&insert).await), "2CZ");
    stage.direct.batch_execute("ALTER TABLE t ALTER n TYPE float8").await.unwrap();
    stage.lose_the_connection().await;
    assert!(is_plan_changed(&stage.one.extended(&insert).await));
    // Whoever has the rows told anew goes by the old types all the same.
    let described = [insert[0].clone(), describe(b'P', ""), insert[1].clone()];
    assert!(is_plan_changed(&stage.one.extended(&described).await));
    // Told anew, it goes on; the description of a portal says nothing of parameters.
    let anew = [parse("", sql), describe(b'S', "")];
    assert_eq!(kinds(&stage.one.extended(&anew).await), "1tnZ");
    stage.lose_the_connection().await;
    let text = [bind("", "", &["2"]), describe(b'P', ""), execute("")];
    assert_eq!(kinds(&stage.one.extended(&text).await), "2nCZ");
    assert_eq!(kinds(&stage.one.extended(&[bind("", "", &["2"]), execute("")]).await), "2CZ");
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

/// A batch whose parts are sent apart: what the server says before its end is read before it is ended.
impl Stage {
    /// A statement that is told, and a connection that has not prepared it.
    async fn with_told(name: &str, sql: &str) -> Self {
        let mut stage = Self::start().await;
        let told = [parse(name, sql), describe(b'S', name), parse("w", "INSERT INTO t (n) VALUES (5)")];
        assert_eq!(kinds(&stage.one.extended(&told).await), "1tT1Z");
        stage.lose_the_connection().await;
        stage
    }

    async fn send(&mut self, messages: &[Vec<u8>]) {
        self.one.send(&messages.concat()).await;
    }

    /// A first part that writes.
    async fn begin_batch(&mut self) {
        self.send(&[bind("", "w", &[]), execute(""), flush()]).await;
        assert_eq!(kinds(&self.one.read_until(b'C').await), "2C");
    }

    async fn count(&self) -> i64 {
        self.direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
    }
}

/// S04: bound behind a Flush, where the server would be told of it too late.
#[tokio::test]
async fn in_a_later_part_of_a_batch_rows_do_not_change_their_shape() {
    for (name, sql) in [("s", READ), ("", READ), ("s", WRITE), ("", WRITE)] {
        let mut stage = Stage::with_told(name, sql).await;
        stage.add_column().await;
        for end in [sync(), flush()] {
            stage.begin_batch().await;
            stage.send(&[bind("", name, &[]), execute(""), end.clone()]).await;
            let mut answer = stage.one.read_until(b'E').await;
            if end == flush() {
                // Nothing counts now but the Sync.
                stage.send(&[bind("", "w", &[]), execute(""), flush(), sync()]).await;
            }
            answer.extend(stage.one.read_until(b'Z').await);
            assert_eq!(kinds(&answer), "EZ", "{name} {sql}: {answer:?}");
            assert!(is_plan_changed(&answer) && status(&answer) == 'I', "{answer:?}");
            assert_eq!(stage.count().await, 1, "the first part is rolled back, and the rest not run");
            stage.lose_the_connection().await;
        }
        assert_eq!(values(&stage.one.query("SELECT count(*) FROM t").await), ["1"]);
    }
}

/// S04: the same in a transaction block, which fails by it.
#[tokio::test]
async fn in_a_later_part_in_a_transaction_it_fails() {
    for sql in [READ, WRITE] {
        let mut stage = Stage::with_told("s", sql).await;
        stage.add_column().await;
        stage.one.query("BEGIN").await;
        stage.begin_batch().await;
        stage.send(&[bind("", "s", &[]), execute(""), sync()]).await;
        let answer = stage.one.read_until(b'Z').await;
        assert!(is_plan_changed(&answer) && kinds(&answer) == "EZ" && status(&answer) == 'E', "{answer:?}");
        assert_eq!(errors(&stage.one.query("SELECT 1").await), ["25P02"]);
        assert_eq!(stage.one.query("COMMIT").await[0].body, b"ROLLBACK\0");
        assert_eq!(stage.count().await, 1);
    }
}

/// S04: what stands before it in the same part has run, and is answered; where nothing has changed all of it is.
#[tokio::test]
async fn what_stands_before_it_in_its_part_is_answered() {
    let mut stage = Stage::with_told("s", READ).await;
    let part = [bind("", "w", &[]), execute(""), bind("", "s", &[]), execute(""), sync()];
    stage.begin_batch().await;
    stage.send(&part).await;
    assert_eq!(kinds(&stage.one.read_until(b'Z').await), "2C2DDDCZ");
    stage.lose_the_connection().await;
    stage.add_column().await;
    stage.begin_batch().await;
    stage.send(&part).await;
    let answer = stage.one.read_until(b'Z').await;
    assert_eq!(kinds(&answer), "2CEZ", "{answer:?}");
    assert!(is_plan_changed(&answer));
    assert_eq!(stage.count().await, 3);
}

/// S04: the column is added by the batch itself, on a connection that learns the statement only behind that.
#[tokio::test]
async fn a_batch_that_changes_the_rows_itself_is_refused() {
    for apart in [true, false] {
        let mut stage = Stage::with_told("s", READ).await;
        stage.begin_batch().await;
        let mut alter = vec![parse("", "ALTER TABLE t ADD COLUMN more int"), bind("", "", &[]), execute("")];
        if apart {
            alter.push(flush());
            stage.send(&alter).await;
            assert_eq!(kinds(&stage.one.read_until(b'C').await), "12C");
            alter.clear();
        }
        stage.send(&[alter.concat(), bind("", "s", &[]), execute(""), sync()]).await;
        let answer = stage.one.read_until(b'Z').await;
        assert_eq!(kinds(&answer), if apart { "EZ" } else { "12CEZ" }, "{answer:?}");
        assert!(is_plan_changed(&answer), "{answer:?}");
        assert_eq!(stage.count().await, 1);
    }
}

/// S04: a part that was cut by a pause of its client, while the statement before it still runs.
#[tokio::test]
async fn behind_a_pause_rows_do_not_change_their_shape() {
    let mut stage = Stage::with_told("s", READ).await;
    stage.add_column().await;
    stage.direct.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let waits = "SELECT 'waits' FROM pg_advisory_xact_lock(7)";
    stage.send(&[parse("", waits), bind("", "", &[]), execute("")]).await;
    eventually("the first part runs", async || {
        let sql =
            "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%waits%' AND wait_event = 'advisory'";
        stage.direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    stage.send(&[bind("", "s", &[]), execute(""), sync()]).await;
    stage.direct.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    let answer = stage.one.read_until(b'Z').await;
    assert_eq!(kinds(&answer), "12DCEZ", "{answer:?}");
    assert!(is_plan_changed(&answer), "{answer:?}");
    assert_eq!(kinds(&stage.one.extended(&[bind("", "w", &[]), execute("")]).await), "2CZ");
}

/// S04: what can't be prepared any more fails where it is bound, by the server's own error.
#[tokio::test]
async fn what_is_gone_fails_in_a_later_part_as_ever() {
    let mut stage = Stage::with_told("s", READ).await;
    stage.direct.batch_execute("CREATE TABLE u (n int); ALTER TABLE t RENAME TO gone").await.unwrap();
    stage.send(&[parse("", "INSERT INTO u VALUES (1)"), bind("", "", &[]), execute(""), flush()]).await;
    stage.one.read_until(b'C').await;
    stage.send(&[bind("", "s", &[]), execute(""), sync()]).await;
    let answer = stage.one.read_until(b'Z').await;
    assert_eq!((kinds(&answer), errors(&answer)), ("EZ".to_owned(), vec!["42P01".to_owned()]));
    assert_eq!(values(&stage.one.query("SELECT count(*) FROM u").await), ["0"]);
}

/// S04: a Bind that is larger than a unit may become in memory, alone and behind a Flush.
#[tokio::test]
async fn a_large_bind_gets_no_rows_of_another_shape() {
    let large = "x".repeat(3_000_000);
    for later in [false, true] {
        let mut stage = Stage::start().await;
        let sql = "SELECT *, length($1::text) FROM t";
        let told = [parse("s", sql), describe(b'S', "s"), parse("w", "INSERT INTO t (n) VALUES (5)")];
        assert_eq!(kinds(&stage.one.extended(&told).await), "1tT1Z");
        for changed in [false, true] {
            stage.lose_the_connection().await;
            if changed {
                stage.add_column().await;
            }
            let count = stage.count().await;
            if later {
                stage.begin_batch().await;
            }
            stage.send(&[bind("", "s", &[&large]), execute(""), sync()]).await;
            let answer = stage.one.read_until(b'Z').await;
            if changed {
                assert_eq!(kinds(&answer), "EZ", "{later}: {answer:?}");
                assert!(is_plan_changed(&answer), "{answer:?}");
                assert_eq!(stage.count().await, count);
            } else {
                let rows = count + i64::from(later);
                assert_eq!(kinds(&answer), format!("2{}CZ", "D".repeat(usize::try_from(rows).unwrap())));
                // By then the server has been asked what so large a message may have left there.
                assert_eq!(values(&stage.one.query("SELECT 1").await), ["1"]);
            }
        }
    }
}

/// S04: behind COPY data that came before the server had asked for it.
#[tokio::test]
async fn behind_copy_data_in_the_same_batch() {
    for changed in [false, true] {
        let mut stage = Stage::with_told("s", READ).await;
        if changed {
            stage.add_column().await;
        }
        stage.begin_batch().await;
        let copy = [parse("", "COPY t (n) FROM STDIN"), bind("", "", &[]), execute("")];
        let data = [frame(b'd', b"6\n7\n"), frame(b'c', b"")];
        stage.send(&[copy.concat(), data.concat(), bind("", "s", &[]), execute(""), sync()]).await;
        let answer = stage.one.read_until(b'Z').await;
        assert_eq!(kinds(&answer), if changed { "12GCEZ" } else { "12GC2DDDDCZ" }, "{answer:?}");
        assert_eq!(stage.count().await, if changed { 1 } else { 4 });
    }
}
