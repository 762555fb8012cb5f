//! What an application does with tokio-postgres, as checks that give one line each.
//!
//! Each check runs in a connection of its own. Must not know: who answers there.

use std::time::{Duration, SystemTime};

use futures_util::{SinkExt, StreamExt, TryStreamExt, pin_mut};
use tokio::sync::mpsc;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{Json, ToSql};
use tokio_postgres::{AsyncMessage, Client, IsolationLevel, NoTls, SimpleQueryMessage};

use super::check::{Checked, line};

/// Runs all checks; the lines say how they went.
pub async fn run(url: &str) -> Vec<String> {
    let own = || async { connect(url).await.0 };
    vec![
        line("types_round_trip", types_round_trip(own().await)).await,
        line("transactions", transactions(own().await)).await,
        line("errors", errors(own().await)).await,
        line("pipelined", pipelined(own().await)).await,
        line("prepared_statements", prepared_statements(own().await)).await,
        line("portals", portals(own().await)).await,
        line("copy", copy(own().await)).await,
        line("simple_queries", simple_queries(own().await)).await,
        line("notifications", notifications(connect(url).await, own().await)).await,
        line("cancel", cancel(own().await)).await,
        line("session_state", session_state(own().await)).await,
        line("settings", settings(url.to_owned())).await,
        line("large_values", large_values(own().await)).await,
        line("many_rows", many_rows(own().await)).await,
        line("read_your_writes", read_your_writes(own().await)).await,
        line("reads_of_all_kinds", reads_of_all_kinds(own().await)).await,
    ]
}

/// A client, and what its server says out of turn.
async fn connect(url: &str) -> (Client, mpsc::UnboundedReceiver<AsyncMessage>) {
    let (client, mut connection) = tokio_postgres::connect(url, NoTls).await.unwrap();
    let (sender, receiver) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut messages = futures_util::stream::poll_fn(move |context| connection.poll_message(context));
        while let Some(Ok(message)) = messages.next().await {
            // The check may have ended.
            let _ = sender.send(message);
        }
    });
    (client, receiver)
}

async fn count(client: &Client, table: &str) -> Result<i64, tokio_postgres::Error> {
    Ok(client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0))
}

fn code<T>(result: Result<T, tokio_postgres::Error>) -> Option<SqlState> {
    result.err().and_then(|error| error.code().cloned())
}

async fn types_round_trip(client: Client) -> Checked {
    client
        .batch_execute(
            "CREATE TABLE t_types (a int2, b int4, c int8, d float4, e float8, f text, g bytea, h bool, i int4[],
                                   j jsonb, k timestamptz, l text, m text[])",
        )
        .await?;
    let statement =
        client.prepare("INSERT INTO t_types VALUES ($1,$2,$3,$4,$5,$6,$7,$8,$9,$10,$11,$12,$13)").await?;
    let text = "Ærøskøbing 東京 \u{1f418} ' \\ \" \t\n";
    let bytes: Vec<u8> = (0..=255).collect();
    let numbers = [Some(1), None, Some(i32::MIN)];
    let document = serde_json::json!({"a": [1, 2.5, null], "ü": "日本"});
    let moment = SystemTime::UNIX_EPOCH + Duration::from_micros(1_709_208_000_000_001);
    let words = ["a,b", "", "NULL", "日本"];
    let inserted = client
        .execute(
            &statement,
            &[
                &i16::MIN,
                &i32::MAX,
                &i64::MIN,
                &0.5f32,
                &f64::MAX,
                &text,
                &bytes,
                &true,
                &&numbers[..],
                &Json(&document),
                &moment,
                &None::<&str>,
                &&words[..],
            ],
        )
        .await?;
    assert_eq!(inserted, 1);
    for _ in 0..2 {
        let row = client.query_one("SELECT * FROM t_types", &[]).await?;
        assert_eq!((row.get(0), row.get(1), row.get(2)), (i16::MIN, i32::MAX, i64::MIN));
        assert_eq!((row.get::<_, f32>(3).to_bits(), row.get::<_, f64>(4)), (0.5f32.to_bits(), f64::MAX));
        assert_eq!((row.get::<_, &str>(5), row.get::<_, &[u8]>(6)), (text, &bytes[..]));
        assert_eq!((row.get::<_, bool>(7), row.get::<_, Vec<Option<i32>>>(8)), (true, numbers.to_vec()));
        assert_eq!(row.get::<_, Json<serde_json::Value>>(9).0, document);
        assert_eq!((row.get::<_, SystemTime>(10), row.get::<_, Option<&str>>(11)), (moment, None));
        assert_eq!(row.get::<_, Vec<&str>>(12), words);
    }
    Ok(())
}

async fn transactions(mut client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_transactions (i int PRIMARY KEY)").await?;
    let mut transaction = client.transaction().await?;
    transaction.execute("INSERT INTO t_transactions VALUES ($1)", &[&1]).await?;
    for i in 10..20 {
        let savepoint = transaction.transaction().await?;
        savepoint.execute("INSERT INTO t_transactions VALUES ($1)", &[&i]).await?;
        if i % 2 == 0 {
            savepoint.commit().await?;
        } else {
            savepoint.rollback().await?;
        }
    }
    let failing = transaction.savepoint("failing").await?;
    let doubled = failing.execute("INSERT INTO t_transactions VALUES (1)", &[]).await;
    assert_eq!(code(doubled), Some(SqlState::UNIQUE_VIOLATION));
    let after = failing.query("SELECT 1", &[]).await;
    assert_eq!(code(after), Some(SqlState::IN_FAILED_SQL_TRANSACTION));
    // A savepoint that is dropped is rolled back.
    drop(failing);
    transaction.commit().await?;
    assert_eq!(count(&client, "t_transactions").await?, 6);
    let dropped = client.transaction().await?;
    dropped.execute("DELETE FROM t_transactions", &[]).await?;
    drop(dropped);
    assert_eq!(count(&client, "t_transactions").await?, 6);
    for level in [IsolationLevel::Serializable, IsolationLevel::RepeatableRead, IsolationLevel::ReadCommitted]
    {
        for read_only in [true, false] {
            let transaction =
                client.build_transaction().isolation_level(level).read_only(read_only).start().await?;
            let n: i64 = transaction.query_one("SELECT count(*) FROM t_transactions", &[]).await?.get(0);
            assert_eq!(n, 6);
            let written = transaction.execute("INSERT INTO t_transactions VALUES (100)", &[]).await;
            assert_eq!(code(written), read_only.then_some(SqlState::READ_ONLY_SQL_TRANSACTION));
            transaction.rollback().await?;
        }
    }
    Ok(())
}

async fn errors(client: Client) -> Checked {
    for (sql, expected) in [
        ("SELEC 1", SqlState::SYNTAX_ERROR),
        ("SELECT * FROM t_nothing", SqlState::UNDEFINED_TABLE),
        ("SELECT 1/0", SqlState::DIVISION_BY_ZERO),
        ("SELECT 100/(50 - i) FROM generate_series(1, 100) i", SqlState::DIVISION_BY_ZERO),
        ("SELECT 'x'::int", SqlState::INVALID_TEXT_REPRESENTATION),
    ] {
        assert_eq!(code(client.query(sql, &[]).await), Some(expected.clone()), "{sql}");
        assert_eq!(code(client.simple_query(sql).await), Some(expected), "{sql}");
        client.query_one("SELECT 1", &[]).await?;
    }
    Ok(())
}

async fn pipelined(client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_pipelined (i int PRIMARY KEY)").await?;
    let insert = client.prepare("INSERT INTO t_pipelined VALUES ($1)").await?;
    let read = client.prepare("SELECT count(*) FROM t_pipelined WHERE i <= $1").await?;
    // All are sent before any is answered, in this order; some fail.
    let mut pending = Vec::new();
    for i in 0..200i32 {
        let (client, insert, read) = (&client, &insert, &read);
        pending.push(async move {
            let (own, first): ([&(dyn ToSql + Sync); 1], [&(dyn ToSql + Sync); 1]) = ([&i], [&0]);
            let (written, doubled, seen) = tokio::join!(
                client.execute(insert, &own),
                client.execute(insert, &first),
                client.query_one(read, &own),
            );
            assert_eq!(written?, 1);
            assert_eq!(code(doubled), Some(SqlState::UNIQUE_VIOLATION));
            assert_eq!(seen?.get::<_, i64>(0), i64::from(i) + 1);
            Ok::<_, tokio_postgres::Error>(())
        });
    }
    futures_util::future::try_join_all(pending).await?;
    Ok(())
}

async fn prepared_statements(client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_prepared (i int); INSERT INTO t_prepared VALUES (1)").await?;
    let mut kept = Vec::new();
    for number in 0..250i32 {
        kept.push(client.prepare(&format!("SELECT i + {number} + $1 FROM t_prepared")).await?);
    }
    let update = client.prepare("UPDATE t_prepared SET i = i").await?;
    for (number, statement) in (0..).zip(&kept) {
        let got: i32 = client.query_one(statement, &[&1]).await?.get(0);
        assert_eq!(got, number + 2);
        if number % 10 == 0 {
            client.execute(&update, &[]).await?;
        }
    }
    // Dropped ones are closed; the same texts again.
    drop(kept);
    for number in 0..250i32 {
        let text = format!("SELECT i + {number} + $1 FROM t_prepared");
        assert_eq!(client.query_one(&text, &[&1]).await?.get::<_, i32>(0), number + 2);
    }
    Ok(())
}

async fn portals(mut client: Client) -> Checked {
    let transaction = client.transaction().await?;
    transaction.batch_execute("CREATE TABLE t_portals AS SELECT generate_series(1, 100) AS i").await?;
    let one = transaction.bind("SELECT i FROM t_portals WHERE i > $1 ORDER BY i", &[&50]).await?;
    let two = transaction.bind("SELECT -i FROM t_portals ORDER BY i", &[]).await?;
    for part in 0..10i32 {
        let rows = transaction.query_portal(&one, 3).await?;
        assert_eq!(rows[0].get::<_, i32>(0), 51 + 3 * part);
        let rows = transaction.query_portal(&two, 5).await?;
        assert_eq!((rows.len(), rows[0].get::<_, i32>(0)), (5, -1 - 5 * part));
        transaction.execute("UPDATE t_portals SET i = i WHERE i = $1", &[&part]).await?;
    }
    assert_eq!(transaction.query_portal(&one, 0).await?.len(), 20);
    transaction.commit().await?;
    let transaction = client.build_transaction().read_only(true).start().await?;
    let read = transaction.bind("SELECT i FROM t_portals", &[]).await?;
    assert_eq!(transaction.query_portal(&read, 10).await?.len(), 10);
    assert_eq!(transaction.query_portal(&read, 0).await?.len(), 90);
    transaction.commit().await?;
    Ok(())
}

async fn copy(client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_copy (i int)").await?;
    let sink = client.copy_in("COPY t_copy FROM STDIN").await?;
    pin_mut!(sink);
    for number in 0..20_000 {
        sink.feed(bytes::Bytes::from(format!("{number}\n"))).await?;
    }
    assert_eq!(sink.finish().await?, 20_000);
    let out = client.copy_out("COPY (SELECT i FROM t_copy ORDER BY i) TO STDOUT").await?;
    let parts: Vec<bytes::Bytes> = out.try_collect().await?;
    assert_eq!(parts.len(), 20_000);
    assert_eq!(parts.last().map(|part| &part[..]), Some(&b"19999\n"[..]));
    // The server gives up; the client gives up.
    let sink = client.copy_in("COPY t_copy FROM STDIN").await?;
    pin_mut!(sink);
    sink.send(bytes::Bytes::from_static(b"x\n")).await?;
    assert_eq!(code(sink.finish().await), Some(SqlState::INVALID_TEXT_REPRESENTATION));
    drop(client.copy_in::<_, bytes::Bytes>("COPY t_copy FROM STDIN").await?);
    assert_eq!(count(&client, "t_copy").await?, 20_000);
    Ok(())
}

async fn simple_queries(client: Client) -> Checked {
    let sql =
        "CREATE TABLE t_simple (i int PRIMARY KEY); INSERT INTO t_simple VALUES (1), (2); TABLE t_simple; ;";
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter(|message| matches!(message, SimpleQueryMessage::Row(_))).count();
    assert_eq!(rows, 2);
    let failed =
        client.batch_execute("INSERT INTO t_simple VALUES (3); INSERT INTO t_simple VALUES (1)").await;
    assert_eq!(code(failed), Some(SqlState::UNIQUE_VIOLATION));
    assert_eq!(count(&client, "t_simple").await?, 2);
    client
        .batch_execute(
            "BEGIN; INSERT INTO t_simple VALUES (3); COMMIT; BEGIN; DELETE FROM t_simple; ROLLBACK",
        )
        .await?;
    assert_eq!(count(&client, "t_simple").await?, 3);
    for empty in ["", ";", "-- nothing"] {
        client.batch_execute(empty).await?;
        assert_eq!(client.query(empty, &[]).await?.len(), 0);
    }
    Ok(())
}

async fn notifications(
    (listener, mut messages): (Client, mpsc::UnboundedReceiver<AsyncMessage>),
    sender: Client,
) -> Checked {
    listener.batch_execute("LISTEN t_channel; NOTIFY t_channel, 'own'").await?;
    sender.execute("SELECT pg_notify('t_channel', $1)", &[&"über"]).await?;
    sender.batch_execute("BEGIN; NOTIFY t_channel, 'never'; ROLLBACK").await?;
    sender.batch_execute("NOTIFY t_channel, 'last'").await?;
    let mut payloads = Vec::new();
    while payloads.last().is_none_or(|last| last != "last") {
        if let Some(AsyncMessage::Notification(notification)) = messages.recv().await {
            payloads.push(notification.payload().to_owned());
        }
    }
    assert_eq!(payloads, ["own", "über", "last"]);
    Ok(())
}

async fn cancel(client: Client) -> Checked {
    let token = client.cancel_token();
    for sql in [
        "SELECT pg_sleep(60)",
        "/* pgsteer: target=primary */ SELECT pg_sleep(60)",
        "SELECT count(*) FROM generate_series(1, 100000) a, generate_series(1, 100000) b",
    ] {
        // A request may come before its query: it is repeated until the query has ended.
        let again = async {
            loop {
                // One that fails is repeated too.
                let _ = token.cancel_query(NoTls).await;
            }
        };
        tokio::select! {
            result = client.batch_execute(sql) => assert_eq!(code(result), Some(SqlState::QUERY_CANCELED)),
            () = again => {}
        }
        // The driver does not wait until a request has been taken: one may hit what follows.
        while let Err(error) = client.query_one("SELECT 1", &[]).await {
            assert_eq!(error.code(), Some(&SqlState::QUERY_CANCELED));
        }
    }
    Ok(())
}

async fn session_state(client: Client) -> Checked {
    client.batch_execute("SET statement_timeout = '1s'").await?;
    let late = client.batch_execute("SELECT pg_sleep(60)").await;
    assert_eq!(code(late), Some(SqlState::QUERY_CANCELED));
    client.batch_execute("SET statement_timeout = 0; CREATE TEMP TABLE t_temp (i int)").await?;
    client.query_one("SELECT set_config('my.tenant', $1, false)", &[&"ü"]).await?;
    for i in 0..10 {
        client.execute("INSERT INTO t_temp VALUES ($1)", &[&i]).await?;
        assert_eq!(count(&client, "t_temp").await?, i64::from(i) + 1);
    }
    let tenant: String = client.query_one("SELECT current_setting('my.tenant')", &[]).await?.get(0);
    assert_eq!(tenant, "ü");
    Ok(())
}

async fn settings(url: String) -> Checked {
    let mut config: tokio_postgres::Config = url.parse()?;
    config.options("-c statement_timeout=1000 -c work_mem=99kB").application_name("t t");
    let (client, connection) = config.connect(NoTls).await?;
    tokio::spawn(connection);
    for (name, expected) in [("statement_timeout", "1s"), ("work_mem", "99kB"), ("application_name", "t t")] {
        let got: String = client.query_one(&format!("SHOW {name}"), &[]).await?.get(0);
        assert_eq!(got, expected);
    }
    let late = client.query_one("SELECT pg_sleep(60)", &[]).await;
    assert_eq!(code(late), Some(SqlState::QUERY_CANCELED));
    for (user, password, database, expected) in [
        ("t_nothing", "x", "t_nothing", SqlState::INVALID_PASSWORD),
        ("app", "wrong", "t_nothing", SqlState::INVALID_PASSWORD),
    ] {
        config.user(user).password(password).dbname(database);
        assert_eq!(code(config.connect(NoTls).await), Some(expected));
    }
    Ok(())
}

async fn large_values(client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_large (b bytea, t text)").await?;
    let value: Vec<u8> = (0..10u32 << 20).map(|i| i.to_le_bytes()[1]).collect();
    let text = "ü".repeat(5 << 20);
    client.execute("INSERT INTO t_large VALUES ($1, $2)", &[&value, &text]).await?;
    let row = client.query_one("SELECT b, t FROM t_large", &[]).await?;
    assert!(row.get::<_, &[u8]>(0) == value && row.get::<_, &str>(1) == text, "a value has changed");
    client.batch_execute(&format!("SELECT length('{text}')")).await?;
    Ok(())
}

async fn many_rows(client: Client) -> Checked {
    let rows = client.query_raw("SELECT i FROM generate_series(1, $1) i", &[100_000i32]).await?;
    let sum = rows.try_fold(0i64, async |sum, row| Ok(sum + i64::from(row.get::<_, i32>(0)))).await?;
    assert_eq!(sum, 5_000_050_000);
    // A stream that is dropped is read to its end by the driver.
    drop(client.query_raw("SELECT i FROM generate_series(1, $1) i", &[100_000i32]).await?);
    client.query_one("SELECT 1", &[]).await?;
    Ok(())
}

async fn read_your_writes(client: Client) -> Checked {
    client.batch_execute("CREATE TABLE t_writes (i int)").await?;
    for i in 0..200i32 {
        client.execute("INSERT INTO t_writes VALUES ($1)", &[&i]).await?;
        assert_eq!(count(&client, "t_writes").await?, i64::from(i) + 1);
    }
    Ok(())
}

async fn reads_of_all_kinds(mut client: Client) -> Checked {
    client
        .batch_execute(
            "CREATE TABLE t_reads AS SELECT i, repeat('ü', 500) AS t FROM generate_series(1, 1000) i",
        )
        .await?;
    let read = client.prepare("SELECT i FROM t_reads WHERE i = $1").await?;
    let fail = client.prepare("SELECT 1/(i - $1) FROM t_reads").await?;
    for i in 1..=300i32 {
        if i % 30 == 0 {
            // Pauses as applications do: any server that has caught up may answer what comes next.
            tokio::time::sleep(Duration::from_millis(150)).await;
        }
        assert_eq!(count(&client, "t_reads").await?, 1000);
        assert_eq!(client.query_one(&read, &[&i]).await?.get::<_, i32>(0), i);
        if i % 10 == 0 {
            assert_eq!(code(client.query(&fail, &[&i]).await), Some(SqlState::DIVISION_BY_ZERO));
            let nothing = client.simple_query("SELECT nothing FROM t_reads").await;
            assert_eq!(code(nothing), Some(SqlState::UNDEFINED_COLUMN));
        }
        if i % 20 == 0 {
            assert_eq!(client.query("SELECT * FROM t_reads", &[]).await?.len(), 1000);
            let both = tokio::try_join!(client.query_one(&read, &[&1]), client.query_one(&read, &[&2]))?;
            assert_eq!((both.0.get::<_, i32>(0), both.1.get::<_, i32>(0)), (1, 2));
        }
        if i % 30 == 0 {
            let mut transaction = client.build_transaction().read_only(true).start().await?;
            let n: i64 = transaction.query_one("SELECT count(*) FROM t_reads", &[]).await?.get(0);
            assert_eq!(n, 1000);
            let savepoint = transaction.transaction().await?;
            let nothing = savepoint.query("SELECT * FROM t_nothing", &[]).await;
            assert_eq!(code(nothing), Some(SqlState::UNDEFINED_TABLE));
            savepoint.rollback().await?;
            let portal = transaction.bind("SELECT i FROM t_reads", &[]).await?;
            assert_eq!(transaction.query_portal(&portal, 10).await?.len(), 10);
            assert_eq!(transaction.query_portal(&portal, 0).await?.len(), 990);
            transaction.commit().await?;
        }
    }
    Ok(())
}
