//! What an application does with sqlx, as checks that give one line each.
//!
//! Each check runs in a connection of its own. Must not know: who answers there.

use std::str::FromStr;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt, TryStreamExt};
use sqlx::encode::IsNull;
use sqlx::error::BoxDynError;
use sqlx::postgres::{
    PgArgumentBuffer, PgConnectOptions, PgListener, PgPoolOptions, PgRow, PgTypeInfo, PgValueRef,
};
use sqlx::types::Json;
use sqlx::{Column, Connection, Executor, PgConnection, Postgres, Row, Statement, TypeInfo};

use super::check::{Checked, line};

const UNIQUE_VIOLATION: &str = "23505";
const QUERY_CANCELED: &str = "57014";

/// Runs all checks; the lines say how they went.
pub async fn run(url: &str) -> Vec<String> {
    let own = || async { connect(url).await };
    vec![
        line("types_round_trip", types_round_trip(own().await)).await,
        line("own_types", own_types(own().await)).await,
        line("transactions", transactions(own().await)).await,
        line("errors", errors(own().await)).await,
        line("batches", batches(own().await)).await,
        line("prepared_statements", prepared_statements(own().await)).await,
        line("described", described(own().await)).await,
        line("described_for_macros", described_for_macros(own().await)).await,
        line("cursors", cursors(own().await)).await,
        line("copy", copy(own().await)).await,
        line("notifications", notifications(url.to_owned(), own().await)).await,
        line("cancel", cancel(own().await, own().await)).await,
        line("dropped_queries", dropped_queries(own().await)).await,
        line("session_state", session_state(own().await)).await,
        line("settings", settings(url.to_owned())).await,
        line("large_values", large_values(own().await)).await,
        line("many_rows", many_rows(own().await)).await,
        line("pool", pool(url.to_owned())).await,
        line("read_your_writes", read_your_writes(own().await)).await,
        line("reads_of_all_kinds", reads_of_all_kinds(own().await)).await,
    ]
}

async fn connect(url: &str) -> PgConnection {
    PgConnection::connect(url).await.unwrap()
}

async fn count(client: &mut PgConnection, table: &str) -> sqlx::Result<i64> {
    sqlx::query_scalar(&format!("SELECT count(*) FROM {table}")).fetch_one(client).await
}

fn code<T>(result: sqlx::Result<T>) -> Option<String> {
    result.err()?.as_database_error()?.code().map(|code| code.into_owned())
}

async fn types_round_trip(mut client: PgConnection) -> Checked {
    let table = "CREATE TABLE t_types (a int2, b int4, c int8, d float4, e float8, f text, g bytea, h bool,
                                       i int4[], j jsonb, l text, m text[])";
    client.execute(table).await?;
    let text = "Ærøskøbing 東京 \u{1f418} ' \\ \" \t\n";
    let bytes: Vec<u8> = (0..=255).collect();
    let numbers = vec![Some(1), None, Some(i32::MIN)];
    let document = serde_json::json!({"a": [1, 2.5, null], "ü": "日本"});
    let words = vec!["a,b".to_owned(), String::new(), "NULL".to_owned(), "日本".to_owned()];
    let inserted = sqlx::query("INSERT INTO t_types VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12)")
        .bind(i16::MIN)
        .bind(i32::MAX)
        .bind(i64::MIN)
        .bind(0.5f32)
        .bind(f64::MAX)
        .bind(text)
        .bind(&bytes)
        .bind(true)
        .bind(&numbers)
        .bind(Json(&document))
        .bind(None::<String>)
        .bind(&words)
        .execute(&mut client)
        .await?;
    assert_eq!(inserted.rows_affected(), 1);
    for _ in 0..2 {
        let row = sqlx::query("SELECT * FROM t_types").fetch_one(&mut client).await?;
        assert_eq!((row.get(0), row.get(1), row.get(2)), (i16::MIN, i32::MAX, i64::MIN));
        assert_eq!((row.get::<f32, _>(3).to_bits(), row.get::<f64, _>(4)), (0.5f32.to_bits(), f64::MAX));
        assert_eq!((row.get::<&str, _>(5), row.get::<&[u8], _>(6)), (text, &bytes[..]));
        assert_eq!((row.get::<bool, _>(7), row.get::<Vec<Option<i32>>, _>(8)), (true, numbers.clone()));
        assert_eq!(row.get::<Json<serde_json::Value>, _>(9).0, document);
        assert_eq!(row.get::<Option<String>, _>("l"), None);
        assert_eq!(row.get::<Vec<String>, _>("m"), words);
    }
    // The same by the simple protocol, in text.
    let row = sqlx::raw_sql("SELECT a, f, g, i FROM t_types").fetch_one(&mut client).await?;
    assert_eq!((row.get::<i16, _>(0), row.get::<&str, _>(1)), (i16::MIN, text));
    assert_eq!((row.get::<Vec<u8>, _>(2), row.get::<Vec<Option<i32>>, _>(3)), (bytes, numbers));
    Ok(())
}

/// A type that the driver has to ask the server for.
#[derive(Debug, PartialEq)]
struct Mood(String);

impl sqlx::Type<Postgres> for Mood {
    fn type_info() -> PgTypeInfo {
        PgTypeInfo::with_name("t_mood")
    }
}

impl sqlx::Encode<'_, Postgres> for Mood {
    fn encode_by_ref(&self, buffer: &mut PgArgumentBuffer) -> Result<IsNull, BoxDynError> {
        sqlx::Encode::<Postgres>::encode_by_ref(&self.0.as_str(), buffer)
    }
}

impl<'r> sqlx::Decode<'r, Postgres> for Mood {
    fn decode(value: PgValueRef<'r>) -> Result<Self, BoxDynError> {
        Ok(Self(value.as_str()?.to_owned()))
    }
}

async fn own_types(mut client: PgConnection) -> Checked {
    client
        .execute("CREATE TYPE t_mood AS ENUM ('sad', 'ok', 'glücklich'); CREATE DOMAIN t_small AS int CHECK (VALUE < 9)")
        .await?;
    client.execute("CREATE TABLE t_moods (mood t_mood, small t_small)").await?;
    for (mood, small) in [("sad", 1), ("glücklich", 2)] {
        let insert =
            sqlx::query("INSERT INTO t_moods VALUES ($1, $2)").bind(Mood(mood.to_owned())).bind(small);
        insert.execute(&mut client).await?;
    }
    let moods: Vec<Mood> = sqlx::query_scalar("SELECT mood FROM t_moods WHERE mood > $1 ORDER BY mood")
        .bind(Mood("ok".to_owned()))
        .fetch_all(&mut client)
        .await?;
    assert_eq!(moods, [Mood("glücklich".to_owned())]);
    let late = sqlx::query("INSERT INTO t_moods VALUES (NULL, $1)").bind(10).execute(&mut client).await;
    assert_eq!(code(late).as_deref(), Some("23514"));
    Ok(())
}

async fn transactions(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_transactions (i int PRIMARY KEY)").await?;
    let insert = "INSERT INTO t_transactions VALUES ($1)";
    let mut transaction = client.begin().await?;
    sqlx::query(insert).bind(1).execute(&mut *transaction).await?;
    for i in 10..20 {
        let mut savepoint = transaction.begin().await?;
        sqlx::query(insert).bind(i).execute(&mut *savepoint).await?;
        if i % 2 == 0 {
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await?;
        }
    }
    let mut failing = transaction.begin().await?;
    let doubled = sqlx::query(insert).bind(1).execute(&mut *failing).await;
    assert_eq!(code(doubled).as_deref(), Some(UNIQUE_VIOLATION));
    let after = sqlx::query("SELECT 1").execute(&mut *failing).await;
    assert_eq!(code(after).as_deref(), Some("25P02"));
    // A savepoint that is dropped is rolled back, before whatever comes next.
    drop(failing);
    transaction.commit().await?;
    assert_eq!(count(&mut client, "t_transactions").await?, 6);
    let mut dropped = client.begin().await?;
    sqlx::query("DELETE FROM t_transactions").execute(&mut *dropped).await?;
    drop(dropped);
    assert_eq!(count(&mut client, "t_transactions").await?, 6);
    for level in ["SERIALIZABLE", "REPEATABLE READ", "READ COMMITTED"] {
        for (access, expected) in [("READ ONLY", Some("25006")), ("READ WRITE", None)] {
            let mut transaction =
                client.begin_with(format!("BEGIN ISOLATION LEVEL {level} {access}")).await?;
            assert_eq!(count(&mut transaction, "t_transactions").await?, 6);
            let written = sqlx::query(insert).bind(100).execute(&mut *transaction).await;
            assert_eq!(code(written).as_deref(), expected);
            transaction.rollback().await?;
        }
    }
    let outcome: Result<(), sqlx::Error> = client
        .transaction(|transaction| {
            async move {
                sqlx::query("DELETE FROM t_transactions").execute(&mut **transaction).await?;
                sqlx::query("SELECT 1/0").execute(&mut **transaction).await?;
                Ok(())
            }
            .boxed()
        })
        .await;
    assert_eq!(code(outcome).as_deref(), Some("22012"));
    assert_eq!(count(&mut client, "t_transactions").await?, 6);
    Ok(())
}

async fn errors(mut client: PgConnection) -> Checked {
    for (sql, expected) in [
        ("SELEC 1", "42601"),
        ("SELECT * FROM t_nothing", "42P01"),
        ("SELECT 1/0", "22012"),
        ("SELECT 100/(50 - i) FROM generate_series(1, 100) i", "22012"),
        ("SELECT 'x'::int", "22P02"),
    ] {
        let prepared = sqlx::query(sql).fetch_all(&mut client).await;
        assert_eq!(code(prepared).as_deref(), Some(expected), "{sql}");
        let unnamed = sqlx::query(sql).persistent(false).fetch_all(&mut client).await;
        assert_eq!(code(unnamed).as_deref(), Some(expected), "{sql}");
        let simple = sqlx::raw_sql(sql).fetch_all(&mut client).await;
        assert_eq!(code(simple).as_deref(), Some(expected), "{sql}");
        client.ping().await?;
    }
    client.execute("CREATE TABLE t_errors (i int CONSTRAINT t_positive CHECK (i > 0))").await?;
    let error = client.execute("INSERT INTO t_errors VALUES (-1)").await.unwrap_err();
    let error = error.into_database_error().unwrap();
    assert_eq!((error.constraint(), error.table()), (Some("t_positive"), Some("t_errors")));
    Ok(())
}

async fn batches(mut client: PgConnection) -> Checked {
    let sql = "CREATE TABLE t_batches (i int PRIMARY KEY); INSERT INTO t_batches VALUES (1), (2); TABLE t_batches; ;";
    let results: Vec<_> = sqlx::raw_sql(sql).fetch_many(&mut client).try_collect().await?;
    assert_eq!(results.iter().filter(|result| result.is_right()).count(), 2);
    let affected: u64 =
        results.iter().filter_map(|result| result.as_ref().left()).map(|it| it.rows_affected()).sum();
    assert_eq!(affected, 4);
    let failed = client.execute("INSERT INTO t_batches VALUES (3); INSERT INTO t_batches VALUES (1)").await;
    assert_eq!(code(failed).as_deref(), Some(UNIQUE_VIOLATION));
    assert_eq!(count(&mut client, "t_batches").await?, 2);
    client
        .execute("BEGIN; INSERT INTO t_batches VALUES (3); COMMIT; BEGIN; DELETE FROM t_batches; ROLLBACK")
        .await?;
    assert_eq!(count(&mut client, "t_batches").await?, 3);
    for empty in ["", ";", "-- nothing"] {
        assert_eq!(client.execute(empty).await?.rows_affected(), 0);
        assert_eq!(sqlx::query(empty).fetch_all(&mut client).await?.len(), 0);
    }
    // As large as the protocol's 16-bit count of parameters lets it be, by a builder.
    client.execute("CREATE TABLE t_many (i int, t text)").await?;
    let mut builder = sqlx::QueryBuilder::<Postgres>::new("INSERT INTO t_many (i, t) ");
    builder.push_values(0..30_000, |mut row, i| {
        row.push_bind(i).push_bind(format!("ü{i}"));
    });
    assert_eq!(builder.build().execute(&mut client).await?.rows_affected(), 30_000);
    let ids: Vec<i32> = (0..1000).collect();
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM t_many WHERE i = ANY($1)")
        .bind(&ids)
        .fetch_one(&mut client)
        .await?;
    assert_eq!(found, 1000);
    Ok(())
}

async fn prepared_statements(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_prepared (i int); INSERT INTO t_prepared VALUES (1)").await?;
    // More than the driver keeps: it closes the oldest.
    for round in 0..2 {
        for number in 0..150i32 {
            let text = format!("SELECT i + {number} + $1 FROM t_prepared");
            for persistent in [true, true, false] {
                let query = sqlx::query_scalar::<_, i32>(&text).bind(round).persistent(persistent);
                assert_eq!(query.fetch_one(&mut client).await?, number + 1 + round);
            }
            if number % 10 == 0 {
                sqlx::query("UPDATE t_prepared SET i = i").execute(&mut client).await?;
            }
        }
        client.clear_cached_statements().await?;
    }
    // A failed one is no longer remembered as good.
    for _ in 0..3 {
        let failed = sqlx::query("SELECT i / ($1 - $1) FROM t_prepared").bind(1).fetch_all(&mut client).await;
        assert_eq!(code(failed).as_deref(), Some("22012"));
        let wrong = sqlx::query("SELECT nothing FROM t_prepared").fetch_all(&mut client).await;
        assert_eq!(code(wrong).as_deref(), Some("42703"));
    }
    Ok(())
}

async fn described(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_described (i int NOT NULL, t text)").await?;
    let statement = client.prepare("SELECT t, i FROM t_described WHERE i = $1").await?;
    let columns: Vec<_> =
        statement.columns().iter().map(|column| (column.name(), column.type_info().name())).collect();
    assert_eq!(columns, [("t", "TEXT"), ("i", "INT4")]);
    let parameters = statement.parameters().map(|either| either.either(<[_]>::len, |count| count));
    assert_eq!(parameters, Some(1));
    assert!(statement.query().bind(1).fetch_optional(&mut client).await?.is_none());
    Ok(())
}

/// What the driver's macros ask for when a program is compiled: the catalogue, and EXPLAIN EXECUTE of what it has prepared.
async fn described_for_macros(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_nullable (i int NOT NULL, t text)").await?;
    let described = client.describe("SELECT i, t FROM t_nullable").await?;
    assert_eq!((described.nullable(0), described.nullable(1)), (Some(false), Some(true)));
    Ok(())
}

async fn cursors(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_cursors AS SELECT generate_series(1, 100) AS i").await?;
    for begin in ["BEGIN", "BEGIN READ ONLY"] {
        let mut transaction = client.begin_with(begin).await?;
        transaction.execute("DECLARE t_cursor SCROLL CURSOR FOR SELECT i FROM t_cursors ORDER BY i").await?;
        for part in 0..10 {
            let rows = sqlx::query("FETCH 10 FROM t_cursor").fetch_all(&mut *transaction).await?;
            let values: Vec<i32> = rows.iter().map(|row: &PgRow| row.get(0)).collect();
            assert_eq!(values, (part * 10 + 1..=part * 10 + 10).collect::<Vec<_>>());
        }
        let back: i32 =
            sqlx::query_scalar("FETCH ABSOLUTE 7 FROM t_cursor").fetch_one(&mut *transaction).await?;
        assert_eq!(back, 7);
        transaction.commit().await?;
        let gone = client.execute("FETCH 1 FROM t_cursor").await;
        assert_eq!(code(gone).as_deref(), Some("34000"));
    }
    client.execute("DECLARE t_held CURSOR WITH HOLD FOR SELECT i FROM t_cursors ORDER BY i").await?;
    for expected in 1..=5 {
        let value: i32 = sqlx::query_scalar("FETCH 1 FROM t_held").fetch_one(&mut client).await?;
        assert_eq!(value, expected);
    }
    client.execute("CLOSE t_held").await?;
    Ok(())
}

async fn copy(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_copy (i int)").await?;
    let mut sink = client.copy_in_raw("COPY t_copy FROM STDIN").await?;
    for chunk in 0..100 {
        let lines: String = (0..200).map(|line| format!("{}\n", chunk * 200 + line)).collect();
        sink.send(lines.as_bytes()).await?;
    }
    assert_eq!(sink.finish().await?, 20_000);
    let out = client.copy_out_raw("COPY (SELECT i FROM t_copy ORDER BY i) TO STDOUT").await?;
    let text: Vec<u8> =
        out.try_fold(Vec::new(), async |all, part| Ok([&all[..], &part[..]].concat())).await?;
    let expected: String = (0..20_000).map(|line| format!("{line}\n")).collect();
    assert!(text == expected.as_bytes(), "COPY TO gives something else");
    // The server gives up; the client gives up. (Dropped without either, the driver itself loses count.)
    let mut sink = client.copy_in_raw("COPY t_copy FROM STDIN").await?;
    sink.send(&b"x\n"[..]).await?;
    assert_eq!(code(sink.finish().await).as_deref(), Some("22P02"));
    let mut sink = client.copy_in_raw("COPY t_copy FROM STDIN").await?;
    sink.send(&b"1\n"[..]).await?;
    sink.abort("no more").await?;
    assert_eq!(count(&mut client, "t_copy").await?, 20_000);
    Ok(())
}

async fn notifications(url: String, mut sender: PgConnection) -> Checked {
    let mut listener = PgListener::connect(&url).await?;
    listener.listen_all(["t_channel", "t_other"]).await?;
    listener.unlisten("t_other").await?;
    for statement in
        ["NOTIFY t_channel, 'first'", "NOTIFY t_other, 'never'", "BEGIN; NOTIFY t_channel, 'never'; ROLLBACK"]
    {
        sender.execute(statement).await?;
    }
    sqlx::query("SELECT pg_notify('t_channel', $1)").bind("über").execute(&mut sender).await?;
    sender.execute("NOTIFY t_channel, 'last'").await?;
    for expected in ["first", "über", "last"] {
        let notification = listener.recv().await?;
        assert_eq!((notification.channel(), notification.payload()), ("t_channel", expected));
    }
    // A listener runs statements, too.
    let listened: Vec<String> =
        sqlx::query_scalar("SELECT pg_listening_channels()").fetch_all(&mut listener).await?;
    assert_eq!(listened, ["t_channel"]);
    Ok(())
}

/// The driver has no cancel requests: another session cancels by SQL what runs in a transaction of this one.
async fn cancel(mut client: PgConnection, mut other: PgConnection) -> Checked {
    let mut transaction = client.begin().await?;
    transaction.execute("CREATE TABLE t_cancel (i int)").await?;
    let pid: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut *transaction).await?;
    // It may come before the query: it is repeated until that has ended.
    let again = async {
        loop {
            let cancelled = sqlx::query("SELECT pg_cancel_backend($1)").bind(pid).execute(&mut other).await;
            assert_eq!(code(cancelled), None);
        }
    };
    tokio::select! {
        result = transaction.execute("SELECT pg_sleep(60)") =>
            assert_eq!(code(result).as_deref(), Some(QUERY_CANCELED)),
        () = again => {}
    }
    transaction.rollback().await?;
    client.ping().await?;
    Ok(())
}

/// A query that nobody waits for any longer: the driver reads its answer away before the next.
async fn dropped_queries(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_dropped (i int)").await?;
    let text = "WITH slow AS (SELECT pg_sleep(0.1)) INSERT INTO t_dropped SELECT $1 FROM slow";
    sqlx::query(text).bind(0).execute(&mut client).await?;
    for i in 1..=5 {
        // It is sent by the first poll, and there is no other.
        assert!(
            sqlx::query(text).bind(i).execute(&mut client).now_or_never().is_none(),
            "faster than its sleep"
        );
        assert_eq!(count(&mut client, "t_dropped").await?, i64::from(i) + 1);
    }
    Ok(())
}

async fn session_state(mut client: PgConnection) -> Checked {
    client.execute("SET statement_timeout = '1s'").await?;
    let late = client.execute("SELECT pg_sleep(60)").await;
    assert_eq!(code(late).as_deref(), Some(QUERY_CANCELED));
    client.execute("SET statement_timeout = 0; CREATE TEMP TABLE t_temp (i int)").await?;
    sqlx::query("SELECT set_config('my.tenant', $1, false)").bind("ü").execute(&mut client).await?;
    for i in 0..10 {
        sqlx::query("INSERT INTO t_temp VALUES ($1)").bind(i).execute(&mut client).await?;
        assert_eq!(count(&mut client, "t_temp").await?, i64::from(i) + 1);
    }
    let tenant: String =
        sqlx::query_scalar("SELECT current_setting('my.tenant')").fetch_one(&mut client).await?;
    assert_eq!(tenant, "ü");
    let lock = sqlx::postgres::PgAdvisoryLock::new(format!("t_lock {}", count(&mut client, "t_temp").await?));
    let guard = lock.acquire(client).await?;
    let mut client = guard.release_now().await?;
    client.ping().await?;
    Ok(())
}

async fn settings(url: String) -> Checked {
    let options = PgConnectOptions::from_str(&url)?
        .options([("statement_timeout", "1000"), ("work_mem", "99kB")])
        .application_name("t t");
    let mut client = PgConnection::connect_with(&options).await?;
    for (name, expected) in [
        ("statement_timeout", "1s"),
        ("work_mem", "99kB"),
        ("application_name", "t t"),
        ("TimeZone", "UTC"),
        ("extra_float_digits", "2"),
    ] {
        let got: String = sqlx::query_scalar(&format!("SHOW {name}")).fetch_one(&mut client).await?;
        assert_eq!(got, expected);
    }
    let late = sqlx::query("SELECT pg_sleep(60)").execute(&mut client).await;
    assert_eq!(code(late).as_deref(), Some(QUERY_CANCELED));
    client.close().await?;
    for (user, password) in [("t_nothing", "x"), ("app", "wrong")] {
        let wrong = options.clone().username(user).password(password).database("t_nothing");
        assert_eq!(code(PgConnection::connect_with(&wrong).await).as_deref(), Some("28P01"));
    }
    Ok(())
}

async fn large_values(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_large (b bytea, t text)").await?;
    let value: Vec<u8> = (0..10u32 << 20).map(|i| i.to_le_bytes()[1]).collect();
    let text = "ü".repeat(5 << 20);
    sqlx::query("INSERT INTO t_large VALUES ($1, $2)").bind(&value).bind(&text).execute(&mut client).await?;
    let row = sqlx::query("SELECT b, t FROM t_large").fetch_one(&mut client).await?;
    assert!(row.get::<&[u8], _>(0) == value && row.get::<&str, _>(1) == text, "a value has changed");
    client.execute(format!("SELECT length('{text}')").as_str()).await?;
    Ok(())
}

async fn many_rows(mut client: PgConnection) -> Checked {
    let text = "SELECT i FROM generate_series(1, $1) i";
    let rows = sqlx::query(text).bind(100_000).fetch(&mut client);
    let sum = rows.try_fold(0i64, async |sum, row| Ok(sum + i64::from(row.get::<i32, _>(0)))).await?;
    assert_eq!(sum, 5_000_050_000);
    // A stream that is dropped is read to its end by the driver.
    let mut rows = sqlx::query(text).bind(100_000).fetch(&mut client);
    assert!(rows.next().await.is_some());
    drop(rows);
    client.ping().await?;
    Ok(())
}

/// Connections that many tasks borrow in turn, each with statements that another has prepared.
async fn pool(url: String) -> Checked {
    let pool = PgPoolOptions::new().max_connections(4).connect(&url).await?;
    pool.execute("CREATE TABLE t_pool (i int)").await?;
    let tasks: Vec<_> = (0..20)
        .map(|task| {
            let pool = pool.clone();
            tokio::spawn(async move {
                for i in 0..20 {
                    let insert = sqlx::query("INSERT INTO t_pool VALUES ($1)").bind(task * 20 + i);
                    insert.execute(&pool).await?;
                    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM t_pool WHERE i >= $1")
                        .bind(0)
                        .fetch_one(&pool)
                        .await?;
                    assert!(found > 0);
                    let mut transaction = pool.begin().await?;
                    sqlx::query("DELETE FROM t_pool").execute(&mut *transaction).await?;
                    drop(transaction);
                }
                Ok::<_, sqlx::Error>(())
            })
        })
        .collect();
    for task in tasks {
        task.await??;
    }
    assert_eq!(sqlx::query_scalar::<_, i64>("SELECT count(*) FROM t_pool").fetch_one(&pool).await?, 400);
    pool.close().await;
    Ok(())
}

async fn read_your_writes(mut client: PgConnection) -> Checked {
    client.execute("CREATE TABLE t_writes (i int)").await?;
    for i in 0..200 {
        sqlx::query("INSERT INTO t_writes VALUES ($1)").bind(i).execute(&mut client).await?;
        assert_eq!(count(&mut client, "t_writes").await?, i64::from(i) + 1);
    }
    Ok(())
}

async fn reads_of_all_kinds(mut client: PgConnection) -> Checked {
    client
        .execute("CREATE TABLE t_reads AS SELECT i, repeat('ü', 500) AS t FROM generate_series(1, 1000) i")
        .await?;
    for i in 1..=300 {
        if i % 30 == 0 {
            // Pauses as applications do: any server that has caught up may answer what comes next.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        assert_eq!(count(&mut client, "t_reads").await?, 1000);
        let own: i32 =
            sqlx::query_scalar("SELECT i FROM t_reads WHERE i = $1").bind(i).fetch_one(&mut client).await?;
        assert_eq!(own, i);
        if i % 10 == 0 {
            let failed = sqlx::query("SELECT 1/(i - $1) FROM t_reads").bind(i).fetch_all(&mut client).await;
            assert_eq!(code(failed).as_deref(), Some("22012"));
            let nothing = sqlx::raw_sql("SELECT nothing FROM t_reads").fetch_all(&mut client).await;
            assert_eq!(code(nothing).as_deref(), Some("42703"));
        }
        if i % 20 == 0 {
            assert_eq!(sqlx::query("SELECT * FROM t_reads").fetch_all(&mut client).await?.len(), 1000);
            let first =
                sqlx::query("SELECT * FROM t_reads").persistent(false).fetch_optional(&mut client).await?;
            assert!(first.is_some());
        }
        if i % 30 == 0 {
            let mut transaction = client.begin_with("BEGIN READ ONLY").await?;
            assert_eq!(count(&mut transaction, "t_reads").await?, 1000);
            let mut savepoint = transaction.begin().await?;
            let nothing = savepoint.execute("SELECT * FROM t_nothing").await;
            assert_eq!(code(nothing).as_deref(), Some("42P01"));
            savepoint.rollback().await?;
            assert_eq!(count(&mut transaction, "t_reads").await?, 1000);
            transaction.commit().await?;
        }
    }
    Ok(())
}
