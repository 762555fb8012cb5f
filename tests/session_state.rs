//! Session state over one shared server connection: two clients alternate, each finds its own state and nothing of the other's.
//!
//! The pool has one connection, so that a session which stays pinned keeps everybody else out: that another client gets through
//! at all is the proof that a pin has ended. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use running::two::{Two, show};
use running::{
    RawClient, bind, close, describe, errors, eventually, execute, flush, frame, kinds, parse, run, values,
};

/// G01, G04, F04: however a setting is made, it stays with its client.
#[tokio::test]
async fn a_setting_stays_with_its_client_however_it_is_made() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE ROLE other; CREATE SCHEMA app").await;
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('work_mem', '13MB', false); END $$";
    run(&mut all.one, &format!("CREATE FUNCTION sets() RETURNS void {body}")).await;
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.tenant', '4', false); END $$";
    run(&mut all.one, &format!("CREATE FUNCTION sets_tenant() RETURNS void {body}")).await;
    let cases = [
        ("SET work_mem = '8MB'", "work_mem", "8MB"),
        ("SET SESSION work_mem TO '9MB'", "work_mem", "9MB"),
        ("SET work_mem TO DEFAULT", "work_mem", "4MB"),
        ("SELECT set_config('work_mem', '10MB', false)", "work_mem", "10MB"),
        ("UPDATE pg_settings SET setting = '11264' WHERE name = 'work_mem'", "work_mem", "11MB"),
        ("DO $$ BEGIN SET work_mem = '12MB'; END $$", "work_mem", "12MB"),
        ("SELECT sets()", "work_mem", "13MB"),
        ("SELECT sets_tenant()", "app.tenant", "4"),
        ("DO $$ BEGIN PERFORM set_config('app.customer', '6', false); END $$", "app.customer", "6"),
        ("RESET work_mem", "work_mem", "4MB"),
        ("SET app.tenant = '7'", "app.tenant", "7"),
        ("SET \"App\".Tenant = '8'", "app.tenant", "8"),
        ("SET search_path = app, public", "search_path", "app, public"),
        ("SET TIME ZONE 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        ("SET NAMES 'LATIN1'", "client_encoding", "LATIN1"),
        ("SET ROLE other", "role", "other"),
        ("RESET ROLE", "role", "none"),
        (
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            "default_transaction_isolation",
            "repeatable read",
        ),
        ("SET SESSION AUTHORIZATION other", "session_authorization", "other"),
        ("RESET SESSION AUTHORIZATION", "session_authorization", "postgres"),
        ("SET work_mem = '14MB'; SET app.tenant = '9'", "app.tenant", "9"),
        ("RESET ALL", "app.tenant", ""),
    ];
    for (sql, name, expected) in cases {
        let before = show(&mut all.two, name).await;
        run(&mut all.one, sql).await;
        assert_eq!(show(&mut all.two, name).await, before, "{sql} leaks");
        assert_eq!(show(&mut all.one, name).await, expected, "{sql} is lost");
    }
    assert_eq!(show(&mut all.one, "default_transaction_isolation").await, "read committed");
}

/// G01: what a transaction does to settings lives and dies with it.
#[tokio::test]
async fn settings_follow_their_transaction() {
    let mut all = Two::start().await;
    let cases = [
        ("BEGIN; SET work_mem = '8MB'", "COMMIT", "8MB"),
        ("BEGIN; SET work_mem = '9MB'", "ROLLBACK", "8MB"),
        ("BEGIN; SET LOCAL work_mem = '10MB'", "COMMIT", "8MB"),
        ("BEGIN; SET work_mem = '11MB'; SAVEPOINT s; SET work_mem = '12MB'; ROLLBACK TO s", "COMMIT", "11MB"),
        ("BEGIN; RESET work_mem", "COMMIT", "4MB"),
        ("BEGIN; SELECT set_config('work_mem', '13MB', true)", "COMMIT", "4MB"),
        ("BEGIN; SELECT set_config('work_mem', '14MB', false)", "END", "14MB"),
    ];
    for (begin, end, expected) in cases {
        run(&mut all.one, begin).await;
        run(&mut all.one, end).await;
        assert_eq!(show(&mut all.two, "work_mem").await, "4MB", "{begin}; {end} leaks");
        assert_eq!(show(&mut all.one, "work_mem").await, expected, "{begin}; {end}");
    }
    // A statement that fails changes nothing.
    assert_eq!(errors(&all.one.query("SET work_mem = 'x'").await), ["22023"]);
    assert_eq!(errors(&all.one.query("SET work_mem = '1MB'; SELECT 1/0").await), ["22012"]);
    assert_eq!(show(&mut all.two, "work_mem").await, "4MB");
    assert_eq!(show(&mut all.one, "work_mem").await, "14MB");
}

/// F04: the values are bound, not written.
#[tokio::test]
async fn set_config_with_bound_values() {
    let mut all = Two::start().await;
    for (local, expected) in [("false", "16MB"), ("true", "16MB")] {
        let value = if local == "false" { "16MB" } else { "17MB" };
        let messages = [
            parse("", "SELECT set_config($1, $2, $3)"),
            bind("", "", &["work_mem", value, local]),
            execute(""),
        ];
        let answer = all.one.extended(&messages).await;
        assert_eq!(kinds(&answer), "12DCZ", "{answer:?}");
        assert_eq!(show(&mut all.two, "work_mem").await, "4MB");
        assert_eq!(show(&mut all.one, "work_mem").await, expected);
    }
}

/// F04: the name is bound as well, and that of a setting which the server does not list.
#[tokio::test]
async fn set_config_with_a_bound_name() {
    let mut all = Two::start().await;
    let text = parse("s", "SELECT set_config($1, $2, $3)");
    let once = [text, bind("", "s", &["app.one", "x", "false"]), execute("")];
    assert_eq!(kinds(&all.one.extended(&once).await), "12DCZ");
    let again = [bind("", "s", &["app.two", "y", "false"]), execute("")];
    assert_eq!(kinds(&all.one.extended(&again).await), "2DCZ");
    for (name, value) in [("app.one", "x"), ("app.two", "y")] {
        assert_eq!(show(&mut all.two, name).await, "");
        assert_eq!(show(&mut all.one, name).await, value);
    }
}

/// G01: RESET goes to the value of the startup packet, not to the server's.
#[tokio::test]
async fn reset_goes_to_the_startup_value() {
    let mut all = Two::start_with(&[("options", "-c work_mem=6MB -c app.tenant=5")]).await;
    for sql in ["RESET work_mem", "RESET ALL", "DISCARD ALL", "SET work_mem TO DEFAULT"] {
        run(&mut all.one, "SET work_mem = '8MB'").await;
        run(&mut all.one, "SET app.tenant = '6'").await;
        run(&mut all.one, sql).await;
        assert_eq!(show(&mut all.two, "work_mem").await, "4MB", "{sql}");
        assert_eq!(show(&mut all.one, "work_mem").await, "6MB", "{sql}");
    }
    run(&mut all.one, "DISCARD ALL").await;
    assert_eq!(show(&mut all.one, "app.tenant").await, "5");
    assert_eq!(show(&mut all.two, "app.tenant").await, "");
}

/// T01, G07, G08, S11, S12: what can't be carried over pins, and the pin ends with its cause.
#[tokio::test]
async fn a_pin_ends_with_its_cause() {
    let mut all = Two::start().await;
    let cases = [
        ("temp_object", "CREATE TEMP TABLE t (i int)", "DROP TABLE t"),
        ("temp_object", "SELECT 1 AS i INTO TEMP t", "DISCARD TEMP"),
        ("advisory_lock", "SELECT pg_advisory_lock(1)", "SELECT pg_advisory_unlock(1)"),
        ("advisory_lock", "SELECT pg_try_advisory_lock(2)", "SELECT pg_advisory_unlock_all()"),
        ("hold_cursor", "DECLARE c CURSOR WITH HOLD FOR SELECT 1", "CLOSE c"),
        ("listen", "LISTEN channel", "UNLISTEN *"),
        ("sql_prepare", "PREPARE p AS SELECT 1", "DEALLOCATE p"),
        ("sql_prepare", "PREPARE p AS SELECT 1", "DISCARD ALL"),
        ("advisory_lock", "DO $$ BEGIN PERFORM pg_advisory_lock(3); END $$", "DISCARD ALL"),
    ];
    for (reason, begin, end) in cases {
        let before = all.pins(reason).await;
        run(&mut all.one, begin).await;
        // The server is asked behind the answer; the next statement comes after that.
        run(&mut all.one, "SELECT 1").await;
        assert!((all.pins(reason).await - before - 1.0).abs() < 0.5, "{begin} does not pin for {reason}");
        run(&mut all.one, end).await;
        all.two_gets_through().await;
    }
    for sql in [
        "BEGIN; CREATE TEMP TABLE t (i int) ON COMMIT DROP; COMMIT",
        "BEGIN; CREATE TEMP TABLE t (i int); ROLLBACK",
        "BEGIN; DECLARE c CURSOR FOR SELECT 1; COMMIT",
        "SELECT pg_advisory_xact_lock(1)",
    ] {
        run(&mut all.one, sql).await;
        all.two_gets_through().await;
    }
}

/// F03: a lock that was not got pins nobody.
#[tokio::test]
async fn a_failed_try_lock_does_not_pin() {
    let mut all = Two::start().await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct.batch_execute("SELECT pg_advisory_lock(1)").await.unwrap();
    assert_eq!(values(&run(&mut all.one, "SELECT pg_try_advisory_lock(1)").await), ["f"]);
    all.two_gets_through().await;
}

/// G05: DEALLOCATE of what was prepared by the protocol, which only the client knows by that name.
#[tokio::test]
async fn deallocate_of_a_statement_of_the_protocol() {
    let mut all = Two::start().await;
    for sql in ["DEALLOCATE s", "DEALLOCATE PREPARE S", "DEALLOCATE \"s\"", "DEALLOCATE ALL", "DISCARD ALL"] {
        let answer = all.one.extended(&[parse("s", "SELECT 1"), bind("", "s", &[]), execute("")]).await;
        assert_eq!(kinds(&answer), "12DCZ", "{answer:?}");
        let tag = if sql == "DISCARD ALL" { sql } else { sql.get(..10).unwrap() };
        let answer = run(&mut all.one, sql).await;
        assert!(answer[0].body.starts_with(tag.as_bytes()), "{answer:?}");
        assert_eq!(errors(&all.one.extended(&[bind("", "s", &[]), execute("")]).await), ["26000"], "{sql}");
        all.two_gets_through().await;
    }
    assert_eq!(errors(&all.one.query("DEALLOCATE nothing").await), ["26000"]);
}

/// G05: a statement prepared after a DDL is that of after the DDL on every server, those included that had it before.
#[tokio::test]
async fn a_statement_prepared_anew_is_new_everywhere() {
    let mut all = Two::start_sized("2", &[]).await;
    run(&mut all.one, "CREATE TABLE t (a int); INSERT INTO t VALUES (1)").await;
    let text = "SELECT * FROM t";
    let prepare = [parse("s", text), bind("", "s", &[]), execute("")];
    // Each on a server of its own: the first one's is held by its transaction meanwhile.
    run(&mut all.one, "BEGIN").await;
    assert_eq!(kinds(&all.one.extended(&prepare).await), "12DCZ");
    assert_eq!(kinds(&all.two.extended(&prepare).await), "12DCZ");
    run(&mut all.one, "COMMIT").await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct.batch_execute("ALTER TABLE t ADD b int DEFAULT 2").await.unwrap();
    // The server used last is the first one's.
    let anew = [running::close("s"), parse("s", text), bind("", "s", &[]), execute("")];
    assert_eq!(kinds(&all.two.extended(&anew).await), "312DCZ");
    run(&mut all.one, "BEGIN").await;
    run(&mut all.one, "SELECT 1").await;
    let answer = all.two.extended(&[bind("", "s", &[]), execute("")]).await;
    assert_eq!(kinds(&answer), "2DCZ", "{answer:?}");
}

/// G01, G07: a statement that fails with a syntax error deep inside has got somewhere all the same.
#[tokio::test]
async fn a_failure_inside_a_function_leaves_no_state_behind() {
    let mut all = Two::start().await;
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('work_mem', '8MB', false); COMMIT; EXECUTE 'selec'; END $$";
    run(&mut all.one, &format!("CREATE PROCEDURE fails() {body}")).await;
    assert_eq!(errors(&all.one.query("CALL fails()").await), ["42601"]);
    all.two_gets_through().await;
    assert_eq!(show(&mut all.one, "work_mem").await, "8MB");
    let fails = "DO $$ BEGIN PERFORM pg_advisory_lock(1); EXECUTE 'selec'; END $$";
    assert_eq!(errors(&all.one.query(fails).await), ["42601"]);
    run(&mut all.one, "SELECT pg_advisory_unlock_all()").await;
    all.two_gets_through().await;
}

/// G03: a prepared statement means what it meant under the settings it was prepared with, whoever else prepares the same text.
#[tokio::test]
async fn statements_are_shared_only_under_the_same_search_path() {
    let mut all = Two::start().await;
    run(
        &mut all.one,
        "CREATE SCHEMA a; CREATE SCHEMA b; CREATE TABLE a.t (v text); CREATE TABLE b.t (v bit(8))",
    )
    .await;
    let insert = "INSERT INTO t VALUES ($1)";
    run(&mut all.one, "SET search_path = a").await;
    run(&mut all.two, "BEGIN").await;
    run(&mut all.two, "SET search_path = b").await;
    // Inside of the transaction that sets it nothing is shared yet.
    assert_eq!(kinds(&all.two.extended(&[parse("s", insert)]).await), "1Z");
    run(&mut all.two, "COMMIT").await;
    assert_eq!(kinds(&all.one.extended(&[parse("s", insert)]).await), "1Z");
    assert_eq!(kinds(&all.two.extended(&[parse("u", insert)]).await), "1Z");
    for _ in 0..2 {
        for (first, name, value) in [(true, "s", "words"), (false, "s", "10101010"), (false, "u", "10101010")]
        {
            let client = if first { &mut all.one } else { &mut all.two };
            let answer = client.extended(&[bind("", name, &[value]), execute("")]).await;
            assert_eq!(kinds(&answer), "2CZ", "{name} {answer:?}");
        }
    }
    assert_eq!(values(&run(&mut all.one, "SELECT count(*) FROM t WHERE v = 'words'").await), ["2"]);
    assert_eq!(values(&run(&mut all.two, "SELECT count(*) FROM t WHERE v = B'10101010'").await), ["4"]);
}

/// G01, S21: what was only prepared, or was rolled back in the same batch, has reset nothing.
#[tokio::test]
async fn a_reset_that_did_not_happen_is_not_believed() {
    let mut all = Two::start().await;
    let run_it = |text: &str| [parse("", text), bind("", "", &[]), execute("")].concat();
    for text in ["RESET work_mem", "RESET ALL", "DISCARD ALL"] {
        for messages in [vec![parse("", text)], vec![run_it("RESET work_mem"), run_it("ROLLBACK")]] {
            run(&mut all.one, "SET work_mem = '8MB'").await;
            assert_eq!(errors(&all.one.extended(&messages).await), [""; 0], "{text}");
            all.two_gets_through().await;
            assert_eq!(show(&mut all.one, "work_mem").await, "8MB", "{text}");
        }
        run(&mut all.one, "CREATE TEMP TABLE kept (i int)").await;
        assert_eq!(kinds(&all.one.extended(&[parse("", text)]).await), "1Z");
        run(&mut all.one, "INSERT INTO kept VALUES (1)").await;
        run(&mut all.one, "DROP TABLE kept").await;
        assert_eq!(kinds(&all.one.extended(&[run_it(text)]).await), "12CZ", "{text}");
        all.two_gets_through().await;
        assert_eq!(show(&mut all.one, "work_mem").await, "4MB", "{text}");
    }
}

/// P6, F11: who has asked for its server process keeps it, until it lets go of everything: nobody else is cancelled by what it was
/// told. In a condition the process id tells the client nothing.
#[tokio::test]
async fn the_server_process_stays_with_who_asked_for_it() {
    let mut all = Two::start_sized("2", &[]).await;
    let harmless = "SELECT count(*) FROM pg_stat_activity WHERE pid <> pg_backend_pid()";
    run(&mut all.one, harmless).await;
    assert_eq!(all.pins("backend_pid").await, 0.0);
    let told = values(&run(&mut all.one, "SELECT pg_backend_pid()").await);
    eventually("it is pinned", async || all.pins("backend_pid").await >= 1.0).await;
    for _ in 0..3 {
        all.two_gets_through().await;
        let sql = "SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid()";
        assert_ne!(values(&run(&mut all.two, sql).await), told);
        assert_eq!(values(&run(&mut all.one, "SELECT pg_backend_pid()").await), told);
    }
    run(&mut all.one, "DISCARD ALL").await;
    // Both connections are free for others, each in a transaction.
    let mut three = all.proxy.raw_logged_in().await;
    for client in [&mut all.two, &mut three] {
        run(client, "BEGIN; CREATE TABLE free (n int); ROLLBACK; BEGIN; SELECT txid_current()").await;
    }
}

/// G01, G04: a connection on which unseen code has run goes back at once, best to the same session; another session finds it as new.
#[tokio::test]
async fn what_unseen_code_left_is_reset_before_another_session_only() {
    let mut all = Two::start_sized("2", &[]).await;
    run(&mut all.one, "CREATE SEQUENCE s").await;
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.left', '7', false); \
                PERFORM nextval('s'); RETURN (SELECT pid FROM pg_stat_activity WHERE pid = pg_backend_pid()); END $$";
    run(&mut all.one, &format!("CREATE FUNCTION leaves() RETURNS int {body}")).await;
    let first = values(&run(&mut all.one, "SELECT leaves()").await);
    for _ in 0..5 {
        assert_eq!(values(&run(&mut all.one, "SELECT leaves()").await), first);
        assert_eq!(show(&mut all.one, "app.left").await, "7");
    }
    // The other session gets both connections in turn.
    run(&mut all.one, "BEGIN; SELECT leaves()").await;
    assert_eq!(show(&mut all.two, "app.left").await, "");
    run(&mut all.one, "COMMIT").await;
    for _ in 0..3 {
        assert_eq!(show(&mut all.two, "app.left").await, "");
        let sequence = all.two.query("SELECT lastval()").await;
        assert_eq!(errors(&sequence), ["55000"], "{sequence:?}");
        run(&mut all.two, "DISCARD ALL").await;
        run(&mut all.one, "SELECT leaves()").await;
    }
}

/// G06: what an INSERT made a sequence give is the session's own to ask for, and never another session's.
#[tokio::test]
async fn what_a_sequence_gave_last_is_the_sessions_own() {
    let mut all = Two::start_sized("2", &[]).await;
    run(&mut all.one, "CREATE TABLE t (id serial, who text)").await;
    let last = async |client: &mut RawClient| {
        let answer = client.query("SELECT lastval()").await;
        if errors(&answer).is_empty() { values(&answer).concat() } else { errors(&answer).concat() }
    };
    // A session that has inserted nothing gets PostgreSQL's error, not the value of another.
    run(&mut all.one, "INSERT INTO t (who) VALUES ('one')").await;
    assert_eq!(last(&mut all.two).await, "55000");
    // From the first question on whoever inserts stays where it has.
    for round in 0..3 {
        run(&mut all.one, "INSERT INTO t (who) VALUES ('one')").await;
        let mut three = all.proxy.raw_logged_in().await;
        drop(std::mem::replace(&mut all.two, three));
        three = all.proxy.raw_logged_in().await;
        run(&mut three, "INSERT INTO t (who) VALUES ('three')").await;
        let own = values(&run(&mut all.one, "SELECT max(id) FROM t WHERE who = 'one'").await).concat();
        assert_eq!(last(&mut all.one).await, own, "{round}");
        let own = values(&run(&mut three, "SELECT max(id) FROM t WHERE who = 'three'").await).concat();
        assert_eq!(last(&mut three).await, own, "{round}");
    }
    assert!(all.pins("sequence").await >= 2.0);
}

/// Prepares statements by the protocol, one packet.
async fn prepare(client: &mut RawClient, statements: &[(&str, &str)]) {
    let messages: Vec<Vec<u8>> = statements.iter().map(|(name, sql)| parse(name, sql)).collect();
    let answer = client.extended(&messages).await;
    assert_eq!(errors(&answer), [""; 0], "{statements:?}: {answer:?}");
}

async fn executed(client: &mut RawClient, name: &str) -> Vec<String> {
    let answer = client.extended(&[bind("", name, &[]), execute("")]).await;
    let errors = errors(&answer);
    if errors.is_empty() { values(&answer) } else { errors }
}

const LISTED: &str = "SELECT name || '=' || statement FROM pg_prepared_statements ORDER BY name";

/// G02: who looks at what is prepared sees its own, and each finds its own afterwards.
#[tokio::test]
async fn prepared_statements_are_listed_for_their_own_client_alone() {
    let mut all = Two::start().await;
    prepare(&mut all.one, &[("s", "SELECT 'secret of one'"), ("t", "SELECT 1")]).await;
    prepare(&mut all.two, &[("s", "SELECT 'secret of two'"), ("u", "SELECT 1")]).await;
    for _ in 0..2 {
        assert_eq!(
            values(&run(&mut all.one, LISTED).await),
            ["s=SELECT 'secret of one'", "t=SELECT 1"],
            "one"
        );
        assert_eq!(
            values(&run(&mut all.two, LISTED).await),
            ["s=SELECT 'secret of two'", "u=SELECT 1"],
            "two"
        );
        assert_eq!(executed(&mut all.one, "s").await, ["secret of one"]);
        assert_eq!(executed(&mut all.two, "s").await, ["secret of two"]);
        assert_eq!(values(&run(&mut all.two, "EXECUTE u").await), ["1"]);
        assert_eq!(errors(&all.one.query("EXECUTE u").await), ["26000"]);
    }
    // In a transaction, too.
    run(&mut all.one, "BEGIN; SELECT 1").await;
    assert_eq!(values(&run(&mut all.one, LISTED).await).len(), 2);
    assert_eq!(values(&run(&mut all.one, "EXECUTE s").await), ["secret of one"]);
    run(&mut all.one, "COMMIT").await;
    assert_eq!(values(&run(&mut all.two, LISTED).await).len(), 2);
    // PREPARE keeps the server, and its end gives it back.
    run(&mut all.one, "PREPARE q AS SELECT 1").await;
    run(&mut all.one, "SELECT 1").await;
    assert_eq!(all.pins("sql_prepare").await, 1.0);
    run(&mut all.one, "DEALLOCATE q").await;
    all.two_gets_through().await;
    assert_eq!(executed(&mut all.one, "s").await, ["secret of one"]);
    // One that ends while its names are there takes the connection with it.
    run(&mut all.one, "PREPARE q AS SELECT 1").await;
    drop(all.one);
    assert_eq!(values(&run(&mut all.two, LISTED).await).len(), 2);
    assert_eq!(executed(&mut all.two, "s").await, ["secret of two"]);
}

/// G02: a statement that can't be prepared any more has its name all the same, and its error.
#[tokio::test]
async fn the_name_of_a_statement_that_cant_be_prepared_any_more_is_taken() {
    let mut all = Two::start().await;
    run(&mut all.two, "CREATE TABLE t (n int)").await;
    let node = all.sandbox.node(0);
    let (mut direct, mut through) = (RawClient::direct(node).await, all.proxy.raw_logged_in().await);
    let mut told = Vec::new();
    for client in [&mut direct, &mut through] {
        prepare(client, &[("s", "SELECT n FROM t"), ("u", "SELECT n FROM t WHERE n = 1")]).await;
        run(client, "SET search_path TO nowhere").await;
        let mut said = Vec::new();
        for sql in
            ["PREPARE s AS SELECT 1", "EXECUTE s", "DEALLOCATE s", "EXECUTE s", "PREPARE s AS SELECT 1"]
        {
            let answer = client.query(sql).await;
            let texts = answer.iter().filter(|message| message.kind == b'E');
            said.push((
                sql,
                kinds(&answer),
                errors(&answer),
                texts.map(|it| it.field(b'M')).collect::<Vec<_>>(),
            ));
        }
        said.push(("by the protocol", String::new(), executed(client, "u").await, Vec::new()));
        // One that is dropped by code is free again.
        prepare(client, &[("a\"q", "SELECT 1")]).await;
        run(client, "SET search_path TO public").await;
        prepare(client, &[("v", "SELECT n FROM t WHERE n = 2")]).await;
        run(client, "SET search_path TO nowhere").await;
        run(client, "DO $$ BEGIN EXECUTE 'DEALLOCATE v'; END $$; SELECT name FROM pg_prepared_statements")
            .await;
        said.push(("dropped by code", String::new(), errors(&client.query("EXECUTE v").await), Vec::new()));
        prepare(client, &[("v", "SELECT 2")]).await;
        run(client, "SET search_path TO public").await;
        assert_eq!(executed(client, "u").await, [""; 0]);
        run(client, "DEALLOCATE ALL").await;
        told.push(said);
    }
    assert_eq!(told[0][0].2, ["42P05"], "the server itself");
    assert_eq!(told[1], told[0]);
}

/// G02: who asks what rows an EXECUTE gives is told those of the client's own statement.
#[tokio::test]
async fn an_execute_is_described_as_the_clients_own_statement() {
    let mut all = Two::start().await;
    prepare(&mut all.one, &[("s", "SELECT 1, 'one'"), ("e", "EXECUTE s")]).await;
    prepare(&mut all.two, &[("s", "SELECT 2"), ("e", "EXECUTE s")]).await;
    for _ in 0..2 {
        for (client, columns) in [(&mut all.one, 2), (&mut all.two, 1)] {
            let unnamed = client.extended(&[parse("", "EXECUTE s"), describe(b'S', "")]).await;
            let named = client.extended(&[describe(b'S', "e")]).await;
            for answer in [unnamed, named] {
                let rows = answer.iter().find(|message| message.kind == b'T').expect("a RowDescription");
                assert_eq!(rows.body[..2], [0, columns], "{answer:?}");
            }
            assert_eq!(executed(client, "").await, executed(client, "s").await);
            assert_eq!(executed(client, "e").await, executed(client, "s").await);
        }
    }
}

/// G02: code that drops what other sessions have prepared on the connection does not make their names mean something else.
#[tokio::test]
async fn code_that_deallocates_all_does_so_for_its_own_client() {
    let mut all = Two::start().await;
    prepare(&mut all.one, &[("s", "SELECT 'first'")]).await;
    prepare(&mut all.two, &[("s", "SELECT 'first'")]).await;
    run(&mut all.one, "DO $$ BEGIN EXECUTE 'DEALLOCATE ALL'; END $$").await;
    prepare(&mut all.one, &[("s", "SELECT 'second'")]).await;
    assert_eq!(executed(&mut all.one, "s").await, ["second"]);
    assert_eq!(executed(&mut all.two, "s").await, ["first"]);
    run(&mut all.one, "DEALLOCATE ALL").await;
    assert_eq!(executed(&mut all.one, "s").await, ["26000"]);
    assert_eq!(executed(&mut all.two, "s").await, ["first"]);
}

/// G05: what stands beside a DEALLOCATE in its batch is never answered for it: it runs, or the client is told that it has not.
#[tokio::test]
async fn a_batch_with_a_deallocate_in_it_is_not_answered_as_one() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE TABLE t (n int)").await;
    all.one.extended(&[parse("s", "SELECT 1")]).await;
    let (deallocate, insert) = (parse("", "DEALLOCATE s"), parse("", "INSERT INTO t VALUES (1)"));
    let (bind, execute) = (bind("", "", &[]), execute(""));
    let batch = [deallocate, bind.clone(), execute.clone(), insert, bind, execute];
    let answer = all.one.extended(&batch).await;
    let count = values(&run(&mut all.two, "SELECT count(*) FROM t").await).concat();
    assert_eq!(count, if errors(&answer).is_empty() { "1" } else { "0" }, "{answer:?}");
}

/// G05: what another session closes that it never prepared, each session finds again.
#[tokio::test]
async fn a_statement_that_another_session_closed_is_found_again() {
    let mut all = Two::start().await;
    run(&mut all.one, "SELECT 1").await;
    let prepare = [parse("s", "SELECT 42")];
    let unit = [bind("", "s", &[]), execute("")];
    assert_eq!(kinds(&all.one.extended(&prepare).await), "1Z");
    let closes = "DO $$BEGIN EXECUTE 'DEALLOCATE ALL'; END$$";
    run(&mut all.two, closes).await;
    assert_eq!(values(&all.one.extended(&unit).await), ["42"]);
    run(&mut all.two, closes).await;
    run(&mut all.one, "BEGIN; SELECT 1").await;
    assert_eq!(values(&all.one.extended(&unit).await), ["42"]);
    run(&mut all.one, "ROLLBACK").await;
    assert_eq!(values(&all.one.extended(&unit).await), ["42"]);
}

/// X19: a procedure that has committed is not called again, whatever its error says.
#[tokio::test]
async fn a_procedure_that_committed_is_called_once() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE TABLE once (n int)").await;
    run(&mut all.one, "CREATE TABLE shape (n int)").await;
    let body = "DECLARE n text := 'p' || (random() * 1e9)::int; BEGIN \
        EXECUTE 'PREPARE ' || n || ' AS SELECT * FROM shape'; EXECUTE 'EXECUTE ' || n; \
        EXECUTE 'ALTER TABLE shape ADD COLUMN ' || n || ' int'; INSERT INTO once VALUES (1); COMMIT; \
        EXECUTE 'EXECUTE ' || n; END";
    run(&mut all.one, &format!("CREATE PROCEDURE p() LANGUAGE plpgsql AS $${body}$$")).await;
    let calls = [vec![parse("", "CALL p()"), bind("", "", &[]), execute("")], vec![]];
    for (called, call) in calls.iter().enumerate() {
        let mut one = all.proxy.raw_logged_in().await;
        let answer = if call.is_empty() { one.query("CALL p()").await } else { one.extended(call).await };
        assert_eq!(errors(&answer), ["0A000"]);
        let count = values(&run(&mut one, "SELECT count(*) FROM once").await).concat();
        assert_eq!(count, (called + 1).to_string());
    }
}

/// G06: nor is it another session's that inserts between other statements of one Query.
#[tokio::test]
async fn an_insert_among_other_statements_is_an_insert() {
    for query in [
        "BEGIN; INSERT INTO t VALUES (DEFAULT); COMMIT",
        "SET work_mem = '5MB'; INSERT INTO t VALUES (DEFAULT)",
    ] {
        let mut all = Two::start().await;
        run(&mut all.one, "CREATE TABLE t (id serial)").await;
        run(&mut all.two, "INSERT INTO t VALUES (DEFAULT)").await;
        run(&mut all.one, query).await;
        assert_eq!(errors(&all.two.query("SELECT lastval()").await), ["55000"], "{query}");
    }
}

/// G01: a value is the same in whatever encoding its client and the one before have.
#[tokio::test]
async fn a_value_survives_the_encodings_of_clients() {
    let mut all = Two::start_with(&[("client_encoding", "LATIN1")]).await;
    let stored = "SELECT encode(convert_to(current_setting('app.t'), 'UTF8'), 'hex')";
    run(&mut all.one, "SELECT 1").await;
    run(&mut all.two, "SET app.t = '\u{e9}'").await;
    let mut set = frame(b'Q', b"SET app.t = '\xe9'\0");
    for _ in 0..2 {
        all.one.send(&std::mem::take(&mut set)).await;
        all.one.read_until(b'Z').await;
        assert_eq!(values(&run(&mut all.two, stored).await), ["c3a9"]);
        assert_eq!(values(&run(&mut all.one, stored).await), ["c3a9"]);
        set = frame(b'Q', b"DO $$BEGIN PERFORM set_config('app.t', '\xe9', false); END$$\0");
    }
    assert_eq!(show(&mut all.one, "client_encoding").await, "LATIN1");
    assert_eq!(show(&mut all.two, "client_encoding").await, "UTF8");
}

/// G01, G04, T05: what a trigger does to the session stays with the session whose write it was.
#[tokio::test]
async fn what_a_trigger_leaves_is_its_own_sessions() {
    let mut all = Two::start_sized("2", &[]).await;
    run(&mut all.one, "CREATE TABLE t (x text)").await;
    let body = "LANGUAGE plpgsql AS $$ BEGIN PERFORM set_config('app.tenant', new.x, false); \
                PERFORM pg_advisory_lock(4711); RETURN new; END $$";
    run(&mut all.one, &format!("CREATE FUNCTION leaves() RETURNS trigger {body}")).await;
    run(&mut all.one, "CREATE TRIGGER leaves BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION leaves()")
        .await;
    run(&mut all.one, "INSERT INTO t VALUES ('secret')").await;
    for _ in 0..3 {
        assert_eq!(show(&mut all.two, "app.tenant").await, "");
        assert_eq!(show(&mut all.one, "app.tenant").await, "secret");
    }
    let free = "SELECT pg_try_advisory_lock(4711)";
    assert_eq!(values(&run(&mut all.two, free).await), ["f"], "the lock is the first session's");
    run(&mut all.one, "SELECT pg_advisory_unlock_all()").await;
    assert_eq!(values(&run(&mut all.two, free).await), ["t"]);
}

/// G06: a column's default, a view and a function ask what a sequence gave last as well.
#[tokio::test]
async fn hidden_questions_for_a_sequences_value_are_answered_from_ones_own() {
    let mut all = Two::start_sized("1", &[]).await;
    // Not by way of pgsteer, which would learn from the texts that such values are asked for.
    let direct = all.sandbox.connect(0).await.unwrap();
    for sql in [
        "CREATE TABLE parent (id serial, who text)",
        "CREATE FUNCTION last() RETURNS bigint LANGUAGE plpgsql AS $$ BEGIN RETURN lastval(); END $$",
    ] {
        direct.batch_execute(sql).await.unwrap();
    }
    run(&mut all.one, "INSERT INTO parent (who) VALUES ('one')").await;
    assert_eq!(errors(&all.two.query("SELECT last()").await), ["55000"]);
    // A default that asks keeps whoever writes where it has written.
    let mut all = Two::start_sized("2", &[]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE parent (id serial, who text)").await.unwrap();
    let child = "CREATE TABLE child (parent int DEFAULT currval('parent_id_seq'), who text)";
    direct.batch_execute(child).await.unwrap();
    run(&mut all.one, "INSERT INTO parent (who) VALUES ('one')").await;
    for _ in 0..2 {
        assert_eq!(errors(&all.two.query("INSERT INTO child (who) VALUES ('two')").await), ["55000"]);
        run(&mut all.one, "INSERT INTO child (who) VALUES ('one')").await;
    }
    let parents = run(&mut all.one, "SELECT DISTINCT parent FROM child").await;
    assert_eq!(values(&parents), ["1"]);
}

/// G05: a batch that binds the unnamed statement and then parses another runs the one and the other, wherever it runs.
#[tokio::test]
async fn the_unnamed_statement_of_before_is_bound_before_the_next_is_parsed() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE TABLE t (n int)").await;
    all.one.extended(&[parse("", "INSERT INTO t VALUES (1)"), frame(b'D', b"S\0")]).await;
    run(&mut all.two, "SELECT 1").await;
    let (bind, execute) = (bind("", "", &[]), execute(""));
    let next = parse("", "INSERT INTO t VALUES (2)");
    let answer = all.one.extended(&[bind.clone(), execute.clone(), next, bind, execute]).await;
    assert_eq!(kinds(&answer), "2C12CZ");
    assert_eq!(values(&run(&mut all.two, "SELECT n FROM t ORDER BY n").await), ["1", "2"]);
}

/// G01, G03: inside of a transaction, too, RESET goes to the value of the startup packet: nothing is written to another schema's table.
#[tokio::test]
async fn reset_in_a_transaction_goes_to_the_startup_value() {
    let mut all = Two::start_with(&[("options", "-c search_path=own -c work_mem=6MB")]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE SCHEMA own; CREATE TABLE own.t (n int); CREATE TABLE public.t (n int)")
        .await
        .unwrap();
    let resets = ["RESET search_path", "RESET ALL", "SET search_path TO DEFAULT"];
    for (round, reset) in resets.into_iter().enumerate() {
        for extended in [false, true] {
            run(&mut all.one, "BEGIN").await;
            run(&mut all.one, "SET search_path = public").await;
            let answer = if extended {
                all.one.extended(&[parse("", reset), bind("", "", &[]), execute("")]).await
            } else {
                all.one.query(reset).await
            };
            assert_eq!(errors(&answer), [""; 0], "{reset}: {answer:?}");
            assert_eq!(kinds(&answer).matches('Z').count(), 1, "{reset}: {answer:?}");
            run(&mut all.one, "INSERT INTO t VALUES (1)").await;
            assert_eq!(show(&mut all.one, "work_mem").await, "6MB");
            run(&mut all.one, "COMMIT").await;
        }
        let count = direct.query_one("SELECT count(*) FROM own.t", &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(usize::try_from(count).unwrap(), 2 * (round + 1), "{reset}");
    }
    assert_eq!(show(&mut all.two, "work_mem").await, "4MB");
}

/// G01, G03: what stands behind a RESET in one text sees the values of the startup packet, on a connection that was opened by it; in
/// a transaction that runs on another one already it is refused rather than run under the server's own.
#[tokio::test]
async fn a_reset_in_the_middle_of_a_text_goes_to_the_startup_value() {
    let mut all = Two::start_with(&[("options", "-c search_path=own -c work_mem=6MB")]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE SCHEMA own; CREATE TABLE own.t (n int); CREATE TABLE public.t (n int)")
        .await
        .unwrap();
    let resets =
        ["RESET search_path", "RESET ALL", "SET search_path TO DEFAULT", "SET LOCAL search_path TO DEFAULT"];
    for (round, reset) in resets.into_iter().enumerate() {
        run(&mut all.one, "SET search_path = public").await;
        let text = format!("{reset}; INSERT INTO t VALUES (1); SELECT current_setting('work_mem')");
        assert_eq!(values(&run(&mut all.one, &text).await), ["6MB"], "{reset}");
        run(&mut all.one, "BEGIN").await;
        run(&mut all.one, &text).await;
        run(&mut all.one, "COMMIT").await;
        run(&mut all.one, "BEGIN").await;
        run(&mut all.one, "SELECT pg_backend_pid() > 0").await;
        let answer = all.one.query(&text).await;
        assert_eq!(errors(&answer), ["0A000"], "{reset}");
        assert_eq!(values(&run(&mut all.one, "ROLLBACK").await), [""; 0]);
        let count = direct.query_one("SELECT count(*) FROM own.t", &[]).await.unwrap().get::<_, i64>(0);
        assert_eq!(usize::try_from(count).unwrap(), 2 * (round + 1), "{reset}");
        run(&mut all.one, "DISCARD ALL").await;
    }
    assert_eq!(show(&mut all.two, "work_mem").await, "4MB");
    assert_eq!(show(&mut all.two, "search_path").await, "\"$user\", public");
    // What clients send to clean up costs no connection.
    let opened = all.proxy.metric("pgsteer_server_connections_opened_total", &[]).await;
    let text =
        "RESET ALL; CLOSE ALL; UNLISTEN *; SELECT pg_advisory_unlock_all(); DISCARD SEQUENCES; DISCARD TEMP";
    run(&mut all.one, text).await;
    assert_eq!(show(&mut all.one, "work_mem").await, "6MB");
    assert_eq!(all.proxy.metric("pgsteer_server_connections_opened_total", &[]).await, opened);
}

/// G01, G03: in the middle of a batch, too, in whatever parts it comes: nothing is written to another schema's table.
#[tokio::test]
async fn a_reset_in_the_middle_of_a_batch_goes_to_the_startup_value() {
    let mut all = Two::start_with(&[("options", "-c search_path=own -c work_mem=6MB")]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE SCHEMA own; CREATE TABLE own.t (n int); CREATE TABLE public.t (n int)")
        .await
        .unwrap();
    let runs = |sql: &str| [parse("", sql), bind("", "", &[]), execute("")].concat();
    let insert = "INSERT INTO t VALUES (1) RETURNING current_setting('work_mem')";
    let mut count = 0;
    for reset in ["RESET search_path", "RESET ALL", "SET search_path TO DEFAULT"] {
        for (begin, cut) in [(false, false), (false, true), (true, false), (true, true)] {
            run(&mut all.one, "SET search_path = public").await;
            if begin {
                run(&mut all.one, "BEGIN").await;
                run(&mut all.one, "SELECT txid_current()").await;
            }
            let cut = if cut { flush() } else { Vec::new() };
            let messages = [runs("SELECT 1"), runs(reset), cut, runs(insert)];
            let answer = all.one.extended(&messages).await;
            assert_eq!(kinds(&answer), "12DC12C12DCZ", "{reset}: {answer:?}");
            assert_eq!(values(&answer), ["1", "6MB"], "{reset}");
            if begin {
                run(&mut all.one, "COMMIT").await;
            }
            count += 1;
            let counted = direct.query_one("SELECT count(*) FROM own.t", &[]).await.unwrap().get::<_, i64>(0);
            assert_eq!(counted, count, "{reset}");
        }
    }
    assert_eq!(show(&mut all.two, "search_path").await, "\"$user\", public");
    // A portal that is open stays, and an error is the client's.
    run(&mut all.one, "BEGIN").await;
    let fetch = frame(b'E', b"\0\0\0\0\x01");
    let rows = [parse("", "SELECT generate_series(1, 3)"), bind("", "", &[]), fetch.clone()].concat();
    let reset = [parse("r", "RESET work_mem"), bind("r", "r", &[]), execute("r"), fetch].concat();
    assert_eq!(values(&all.one.extended(&[rows, reset]).await), ["1", "2"]);
    run(&mut all.one, "COMMIT").await;
}

/// G01, G03: whatever the form of a text or batch that resets, what comes after it sees the value of the startup packet, or it is
/// refused; nothing is ever written to another schema's table.
#[tokio::test]
async fn no_form_of_a_reset_leads_to_another_schema() {
    let mut all = Two::start_with(&[("options", "-c search_path=own -c timezone=Asia/Tokyo")]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct
        .batch_execute("CREATE SCHEMA own; CREATE TABLE own.t (n int); CREATE TABLE public.t (n int)")
        .await
        .unwrap();
    let texts: &[&[&str]] = &[
        &["BEGIN; RESET search_path"],
        &["SELECT 1; BEGIN; SET search_path TO DEFAULT"],
        &["BEGIN", "SAVEPOINT s; RESET search_path"],
        &["BEGIN", "SET search_path = a; RESET search_path"],
        &["BEGIN", "SELECT txid_current()", "SET search_path = a; RESET search_path"],
        &["BEGIN", "RESET search_path; RESET work_mem"],
        &["BEGIN", "SELECT txid_current()", "RESET ALL; CLOSE ALL; UNLISTEN *"],
        &["BEGIN", "SELECT txid_current()", "COMMIT; BEGIN; RESET ALL"],
        &["BEGIN", "RESET search_path; COMMIT AND CHAIN"],
        &["BEGIN", "COPY (SELECT 1) TO STDOUT; RESET search_path"],
        &["RESET search_path; SET LOCAL search_path TO DEFAULT"],
        &["BEGIN", "SET NAMES DEFAULT; RESET TIME ZONE"],
        &["RESET ALL; CLOSE ALL; UNLISTEN *"],
    ];
    let mut written = 0;
    for run in texts {
        for text in *run {
            all.one.query(text).await;
        }
        let answer = all.one.query("INSERT INTO t VALUES (1) RETURNING current_setting('timezone')").await;
        if errors(&answer).is_empty() {
            assert_eq!(values(&answer), ["Asia/Tokyo"], "{run:?}");
            written += 1;
        }
        all.one.query("COMMIT").await;
        all.one.query("DISCARD ALL").await;
        let count = async |schema: &str| {
            let sql = format!("SELECT count(*) FROM {schema}.t");
            direct.query_one(&sql, &[]).await.unwrap().get::<_, i64>(0)
        };
        assert_eq!(count("public").await, 0, "{run:?}");
    }
    assert!(written >= 8, "{written} of {} went through", texts.len());
    // By a portal that is not of the statement parsed last, or of a batch before.
    let insert = [parse("", "INSERT INTO t VALUES (1)"), bind("", "", &[]), execute("")].concat();
    let batches: &[&[Vec<u8>]] = &[
        &[
            parse("q0", "SET search_path TO DEFAULT"),
            parse("q1", "SELECT 1"),
            bind("p0", "q0", &[]),
            bind("p1", "q1", &[]),
            execute("p0"),
            execute("p1"),
        ],
        &[
            parse("", "RESET search_path"),
            bind("p0", "", &[]),
            parse("", "SELECT 1"),
            bind("p1", "", &[]),
            execute("p0"),
        ],
        &[parse("r", "RESET ALL"), bind("p", "r", &[]), close("r"), execute("p")],
    ];
    for batch in batches {
        for begins in [false, true] {
            if begins {
                run(&mut all.one, "BEGIN").await;
            }
            let answer = all.one.extended(&[batch.concat(), insert.clone()]).await;
            assert_eq!(errors(&answer), [""; 0], "{answer:?}");
            all.one.query("COMMIT").await;
            run(&mut all.one, "DEALLOCATE ALL").await;
        }
    }
    run(&mut all.one, "BEGIN").await;
    all.one.extended(&[parse("", "RESET search_path"), bind("p0", "", &[])]).await;
    all.one.extended(&[execute("p0")]).await;
    all.one.extended(&[insert]).await;
    run(&mut all.one, "COMMIT").await;
    let public = direct.query_one("SELECT count(*) FROM public.t", &[]).await.unwrap().get::<_, i64>(0);
    assert_eq!(public, 0);
}

/// A role of the startup packet does not come back behind SET SESSION AUTHORIZATION, which ends it.
#[tokio::test]
async fn the_role_of_the_startup_packet_ends_with_another_user() {
    let setup = Two::start().await;
    let direct = setup.sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE bob; CREATE ROLE al").await.unwrap();
    let mut client = setup.proxy.raw().await;
    let parameters = [("user", setup.sandbox.user()), ("database", "postgres"), ("options", "-c role=bob")];
    client.log_in_with(&parameters).await;
    let who = async |client: &mut RawClient| values(&run(client, "SELECT current_user").await).remove(0);
    assert_eq!(who(&mut client).await, "bob");
    run(&mut client, "SET SESSION AUTHORIZATION al").await;
    assert_eq!(who(&mut client).await, "al");
    run(&mut client, "SET SESSION AUTHORIZATION DEFAULT").await;
    assert_eq!(who(&mut client).await, setup.sandbox.user());
    run(&mut client, "SET ROLE al").await;
    assert_eq!(who(&mut client).await, "al");
    run(&mut client, "RESET ROLE").await;
    assert_eq!(who(&mut client).await, "bob");
}

/// SET LOCAL ... TO DEFAULT goes to the value of the startup packet for the rest of the transaction.
#[tokio::test]
async fn set_local_to_default_goes_to_the_startup_value() {
    let mut all = Two::start_with(&[("options", "-c work_mem=6MB")]).await;
    run(&mut all.one, "SET work_mem = '7MB'").await;
    run(&mut all.one, "BEGIN").await;
    run(&mut all.one, "SELECT 1").await;
    run(&mut all.one, "SET LOCAL work_mem TO DEFAULT").await;
    assert_eq!(show(&mut all.one, "work_mem").await, "6MB");
    run(&mut all.one, "COMMIT").await;
    assert_eq!(show(&mut all.one, "work_mem").await, "7MB");
    assert_eq!(show(&mut all.two, "work_mem").await, "4MB");
}

/// A client is told why it is pinned, and only it.
#[tokio::test]
async fn a_client_is_told_its_pins() {
    let mut all = Two::start_sized("2", &[]).await;
    let pins = async |client: &mut RawClient| values(&run(client, "SHOW pgsteer.pins").await);
    assert_eq!(pins(&mut all.one).await, [""]);
    run(&mut all.one, "CREATE TEMP TABLE t (n int)").await;
    assert_eq!(pins(&mut all.one).await, ["temp_object"]);
    run(&mut all.one, "SELECT pg_advisory_lock(1)").await;
    run(&mut all.one, "BEGIN").await;
    assert_eq!(pins(&mut all.one).await, ["temp_object, advisory_lock"]);
    run(&mut all.one, "COMMIT").await;
    assert_eq!(pins(&mut all.two).await, [""]);
    run(&mut all.one, "DROP TABLE t; SELECT pg_advisory_unlock(1)").await;
    assert_eq!(pins(&mut all.one).await, [""]);
    assert_eq!(show(&mut all.two, "pgsteer.pins").await, "");
    let asks = [parse("", "SHOW pgsteer.pins"), bind("", "", &[]), frame(b'D', b"P\0"), execute("")];
    run(&mut all.one, "CREATE TEMP TABLE t (n int)").await;
    let answer = all.one.extended(&asks).await;
    assert_eq!((kinds(&answer).as_str(), values(&answer)), ("12TDCZ", vec!["temp_object".to_owned()]));
    run(&mut all.one, "DROP TABLE t").await;
    let answer = all.one.extended(&asks).await;
    assert_eq!((kinds(&answer).as_str(), values(&answer)), ("12TDCZ", vec![String::new()]));
    // As PostgreSQL has it in a failed block.
    run(&mut all.one, "BEGIN").await;
    assert_eq!(errors(&all.one.query("SELECT 1/0").await), ["22012"]);
    assert_eq!(errors(&all.one.query("SHOW pgsteer.pins").await), ["25P02"]);
}

/// Large objects are open, and snapshots exported, until the transaction ends: so long they pin.
#[tokio::test]
async fn what_ends_with_the_transaction_pins_no_longer() {
    let mut all = Two::start().await;
    let object = values(&run(&mut all.one, "SELECT lo_create(0)").await).remove(0);
    for (sql, reason) in [
        (format!("SELECT lo_open({object}, 262144)"), "large_object"),
        ("SELECT pg_export_snapshot()".to_owned(), "exported_snapshot"),
    ] {
        run(&mut all.one, "BEGIN").await;
        run(&mut all.one, &sql).await;
        assert_eq!(values(&run(&mut all.one, "SHOW pgsteer.pins").await), [reason]);
        run(&mut all.one, "COMMIT").await;
        all.two_gets_through().await;
    }
}

/// G01: a setting keeps its name however that is written.
#[tokio::test]
async fn a_name_with_blanks_around_its_dot_is_that_name() {
    let mut all = Two::start().await;
    for set in [
        "SET app . tenant = 'x'",
        "SET app /* a */ . tenant TO 'x'",
        "SET \"app\".\"Tenant\" = 'x'",
        "SET APP.tenant = 'x'; SELECT 1",
    ] {
        run(&mut all.one, set).await;
        assert_eq!(show(&mut all.two, "app.tenant").await, "", "{set}");
        assert_eq!(show(&mut all.one, "app.tenant").await, "x", "{set}");
        run(&mut all.one, "RESET app . tenant").await;
        assert_eq!(show(&mut all.two, "app.tenant").await, "");
        assert_eq!(show(&mut all.one, "app.tenant").await, "", "{set}");
    }
}
