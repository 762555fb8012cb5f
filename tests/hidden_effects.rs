//! What statements do to their session beside their texts, by objects of the catalogue: it stays with the session.
//!
//! The pool has one connection, so that two clients that alternate share it. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use running::two::{Two, show};
use running::{errors, eventually, run, values};

/// Of each kind: what defines it, what uses it, what takes it away.
const WAYS: &[(&str, &str, &str)] = &[
    ("CREATE TABLE t (i int CHECK (touch(i)))", "INSERT INTO t VALUES (1)", "DROP TABLE t"),
    ("CREATE DOMAIN d AS int CHECK (touch(VALUE))", "SELECT 1::d", "DROP DOMAIN d"),
    ("CREATE TABLE t (i int, b bool DEFAULT touch(1))", "INSERT INTO t VALUES (1)", "DROP TABLE t"),
    (
        "CREATE TABLE t (i int, b bool GENERATED ALWAYS AS (touch(i)) STORED)",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ),
    ("CREATE TABLE t (i int); CREATE INDEX ON t (touch(i))", "INSERT INTO t VALUES (1)", "DROP TABLE t"),
    (
        "CREATE TABLE t (i int); CREATE INDEX ON t (i) WHERE touch(i)",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ),
    (
        "CREATE TABLE t (i int) PARTITION BY LIST (touch(i)); CREATE TABLE p PARTITION OF t DEFAULT",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ),
    (
        "CREATE OPERATOR ### (function = touch, rightarg = int)",
        "SELECT ### 1",
        "DROP OPERATOR ### (NONE, int)",
    ),
    (
        "CREATE TYPE c AS (i int); \
         CREATE FUNCTION cast_touch(c) RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN touch(1); END'; \
         CREATE CAST (c AS bool) WITH FUNCTION cast_touch(c)",
        "SELECT row(1)::c::bool",
        "DROP TYPE c CASCADE",
    ),
    ("CREATE VIEW v AS SELECT touch(1)", "SELECT * FROM v", "DROP VIEW v"),
    (
        "CREATE FUNCTION step(bool, int) RETURNS bool LANGUAGE sql AS 'SELECT touch($2)'; \
         CREATE AGGREGATE touching(int) (sfunc = step, stype = bool); \
         CREATE VIEW v AS SELECT touching(i) FROM generate_series(1, 2) i",
        "SELECT * FROM v",
        "DROP VIEW v; DROP AGGREGATE touching(int); DROP FUNCTION step",
    ),
    (
        "CREATE TABLE t (i int); CREATE RULE r AS ON INSERT TO t DO ALSO SELECT touch(1)",
        "INSERT INTO t VALUES (1)",
        "DROP TABLE t",
    ),
    (
        "CREATE TABLE t (i int); INSERT INTO t VALUES (1); ALTER TABLE t ENABLE ROW LEVEL SECURITY; \
         CREATE POLICY p ON t USING (touch(i)); GRANT SELECT ON t TO other /* SET ROLE */",
        "SELECT * FROM t",
        "DROP TABLE t",
    ),
    (
        "CREATE FUNCTION event_touch() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM touch(1); END'; \
         CREATE EVENT TRIGGER e ON ddl_command_end EXECUTE FUNCTION event_touch()",
        "COMMENT ON FUNCTION touch(int) IS 'touches'",
        "DROP EVENT TRIGGER e",
    ),
    (
        "CREATE FUNCTION abs(text) RETURNS bool LANGUAGE sql AS 'SELECT touch(1)'",
        "SELECT abs('x'::text)",
        "DROP FUNCTION abs(text)",
    ),
    (
        "CREATE TABLE t (i int); INSERT INTO t VALUES (1); \
         CREATE FUNCTION touches(t) RETURNS bool LANGUAGE sql AS 'SELECT touch(1)'",
        "SELECT t.touches FROM t",
        "DROP TABLE t CASCADE",
    ),
    (
        "CREATE FUNCTION parsed() RETURNS bool LANGUAGE sql BEGIN ATOMIC SELECT touch(1); END; \
         CREATE FUNCTION outer_touch() RETURNS bool LANGUAGE plpgsql AS 'BEGIN RETURN Parsed(); END'; \
         CREATE VIEW v AS SELECT outer_touch()",
        "SELECT * FROM v",
        "DROP VIEW v; DROP FUNCTION outer_touch, parsed",
    ),
];

/// G01, G04: a setting made by a function behind any object stays with the session whose statement led to it.
#[tokio::test]
async fn what_objects_lead_to_stays_with_its_session() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE ROLE other").await;
    let body = "BEGIN PERFORM set_config('app.seen', 'secret', false); RETURN true; END";
    let touch = format!("CREATE FUNCTION touch(int) RETURNS bool IMMUTABLE LANGUAGE plpgsql AS $${body}$$");
    run(&mut all.one, &touch).await;
    // Nobody of pgsteer's has met the name: it is found in the function's body.
    for (define, using, remove) in WAYS {
        let mut definer = all.proxy.raw_logged_in().await;
        run(&mut definer, define).await;
        if define.contains("SET ROLE") {
            run(&mut all.one, "SET ROLE other").await;
        }
        // What was defined has been looked at by then.
        run(&mut all.two, "SELECT 1").await;
        run(&mut all.one, using).await;
        assert_eq!(show(&mut all.two, "app.seen").await, "", "{using} leaks");
        assert_eq!(show(&mut all.one, "app.seen").await, "secret", "{using} is lost");
        drop(std::mem::replace(&mut all.one, definer));
        run(&mut all.one, "RESET ROLE").await;
        run(&mut all.one, remove).await;
    }
}

/// G07, T05: a lock that a view takes is its session's, which stays with it on the primary.
#[tokio::test]
async fn a_lock_behind_a_view_pins() {
    let mut all = Two::start_sized("2", &[]).await;
    run(&mut all.one, "CREATE VIEW locks AS SELECT pg_try_advisory_lock(4711)").await;
    assert_eq!(values(&run(&mut all.one, "SELECT * FROM locks").await), ["t"]);
    for _ in 0..3 {
        assert_eq!(values(&run(&mut all.two, "SELECT pg_try_advisory_lock(4711)").await), ["f"]);
        assert_eq!(values(&run(&mut all.one, "SELECT * FROM locks").await), ["t"]);
    }
    run(&mut all.one, "SELECT pg_advisory_unlock_all()").await;
    assert_eq!(values(&run(&mut all.two, "SELECT pg_try_advisory_lock(4711)").await), ["t"]);
}

/// T05: what is defined in a transaction holds for others from its end on, whichever shard and user they have.
#[tokio::test]
async fn a_definition_is_known_to_all_from_its_end_on() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE TABLE t (i int)").await;
    let body = "BEGIN PERFORM set_config('app.seen', 'secret', false); RETURN new; END";
    run(&mut all.one, &format!("CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"))
        .await;
    run(&mut all.one, "INSERT INTO t VALUES (1)").await;
    let define = "DO $$ BEGIN EXECUTE 'CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION touch()'; END $$";
    run(&mut all.one, "BEGIN").await;
    run(&mut all.one, define).await;
    run(&mut all.one, "INSERT INTO t VALUES (1)").await;
    run(&mut all.one, "COMMIT").await;
    assert_eq!(show(&mut all.two, "app.seen").await, "");
    run(&mut all.two, "BEGIN; INSERT INTO t VALUES (1); COMMIT").await;
    run(&mut all.one, "RESET app.seen").await;
    assert_eq!(show(&mut all.one, "app.seen").await, "");
    assert_eq!(show(&mut all.two, "app.seen").await, "secret");
}

/// G06: what a view gives of sequences is its own session's: the value, or PostgreSQL's error.
#[tokio::test]
async fn sequences_behind_views_are_the_sessions_own() {
    let mut all = Two::start_sized("2", &[]).await;
    // Before anything is asked: what is defined through pgsteer is looked at after a pause.
    let direct = all.sandbox.connect(0).await.unwrap();
    let define = "CREATE TABLE t (id serial, who text); CREATE SEQUENCE s;
        CREATE VIEW last AS SELECT lastval() AS n; CREATE VIEW next AS SELECT nextval('s') AS n";
    direct.batch_execute(define).await.unwrap();
    assert_eq!(values(&run(&mut all.one, "SELECT * FROM next").await), ["1"]);
    assert_eq!(values(&run(&mut all.one, "SELECT * FROM last").await), ["1"]);
    assert_eq!(errors(&all.two.query("SELECT * FROM last").await), ["55000"]);
    run(&mut all.two, "INSERT INTO t VALUES (DEFAULT, 'two')").await;
    assert_eq!(values(&run(&mut all.one, "SELECT * FROM next").await), ["2"]);
    assert_eq!(values(&run(&mut all.two, "SELECT * FROM last").await), ["1"]);
    assert_eq!(values(&run(&mut all.one, "SELECT lastval()").await), ["2"]);
    let mut three = all.proxy.raw_logged_in().await;
    run(&mut all.two, "DISCARD ALL").await;
    assert_eq!(errors(&three.query("SELECT * FROM last").await), ["55000"]);
}

/// Where nothing is hidden a read asks the catalogue once a minute, and nothing else.
#[tokio::test]
async fn where_nothing_is_hidden_statements_ask_nothing() {
    let mut all = Two::start().await;
    let direct = all.sandbox.connect(0).await.unwrap();
    let define = "CREATE TABLE t (id serial, n numeric CHECK (n > abs(-1)), d date DEFAULT now());
        CREATE VIEW v AS SELECT sum(n), max(id) FROM t; INSERT INTO t VALUES (DEFAULT, 2)";
    direct.batch_execute(define).await.unwrap();
    let asked = async || {
        let settled = "SELECT pg_stat_clear_snapshot()";
        direct.batch_execute(settled).await.unwrap();
        let row = "SELECT query FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() \
                   AND datname = 'postgres' AND query ~ '^SELECT sum|^INSERT'";
        direct.query(row, &[]).await.unwrap().len()
    };
    run(&mut all.two, "SELECT * FROM v").await;
    for sql in ["SELECT sum(n) FROM v, t", "INSERT INTO t VALUES (DEFAULT, 3)"] {
        run(&mut all.one, sql).await;
        run(&mut all.one, sql).await;
        // The last that the server has run is the client's own statement.
        assert_eq!(asked().await, 1, "{sql}");
    }
}

/// G01: a setting whose name nobody can read keeps its session where it was made, until it is reset.
#[tokio::test]
async fn a_setting_with_a_name_that_is_put_together_pins() {
    let mut all = Two::start_sized("2", &[]).await;
    for define in [
        "CREATE FUNCTION tenant(name text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.' || $1, 'v', false) $$",
        "CREATE FUNCTION called(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config(name, 'v', false); END $$",
        "CREATE FUNCTION outer_tenant() RETURNS void LANGUAGE plpgsql AS $$ BEGIN PERFORM Tenant('x'); END $$",
    ] {
        run(&mut all.one, define).await;
    }
    for (sql, end) in [
        ("SELECT set_config('app.' || 'x', 'v', false)", "DISCARD ALL"),
        ("DO $$ BEGIN EXECUTE format('SET %I.%I = %L', 'app', 'x', 'v'); END $$", "RESET ALL"),
        ("SELECT tenant('x')", "DISCARD ALL"),
        ("SELECT called('app.' || 'x')", "DISCARD ALL"),
        ("SELECT outer_tenant()", "RESET ALL"),
    ] {
        pins_until(&mut all, sql, end).await;
    }
}

/// G01: so does one that an object leads to.
#[tokio::test]
async fn a_setting_with_a_name_that_is_put_together_behind_an_object_pins() {
    let mut all = Two::start_sized("2", &[]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    let trigger = "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
        EXECUTE format('SET app.%s = ''v''', chr(120)); RETURN new; END $$; CREATE TABLE t (i int); \
        CREATE TRIGGER t BEFORE INSERT ON t FOR EACH ROW EXECUTE FUNCTION touch()";
    direct.batch_execute(trigger).await.unwrap();
    pins_until(&mut all, "INSERT INTO t VALUES (1)", "DISCARD ALL").await;
    let mut all = Two::start_sized("2", &[]).await;
    let direct = all.sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE VIEW v AS SELECT set_config('app.x', 'v', false)").await.unwrap();
    pins_until(&mut all, "SELECT * FROM v", "DISCARD ALL").await;
}

async fn pins_until(all: &mut Two, sql: &str, end: &str) {
    let before = all.pins("unnamed_setting").await;
    run(&mut all.one, sql).await;
    for _ in 0..2 {
        assert_eq!(show(&mut all.two, "app.x").await, "", "{sql} leaks");
        assert_eq!(show(&mut all.one, "app.x").await, "v", "{sql} is lost");
    }
    assert!(all.pins("unnamed_setting").await - before > 0.5, "{sql} does not pin");
    run(&mut all.one, end).await;
    assert_eq!(values(&run(&mut all.one, "SHOW pgsteer.pins").await), [""], "{end} does not unpin");
    drop(std::mem::replace(&mut all.one, all.proxy.raw_logged_in().await));
}

/// G01: what can be read is carried over, however much of it there is, and nothing else pins.
#[tokio::test]
async fn settings_with_names_that_are_shown_are_carried_over() {
    let mut all = Two::start().await;
    for define in [
        "CREATE FUNCTION called(name text) RETURNS text LANGUAGE plpgsql AS $$ BEGIN RETURN set_config(name, 'v', false); END $$",
        "CREATE FUNCTION takes(text) RETURNS int LANGUAGE sql AS $$ SELECT length($1) $$",
        "CREATE FUNCTION local(text) RETURNS text LANGUAGE sql AS $$ SELECT set_config('app.' || $1, 'v', true) $$",
    ] {
        run(&mut all.one, define).await;
    }
    // Other words of the form of a name do not take the place of one.
    for n in 0..600 {
        run(&mut all.two, &format!("SELECT takes('host{n}.example.com')")).await;
    }
    run(&mut all.two, "SELECT local('x'), set_config('app.' || 'y', 'v', true)").await;
    let sets: String = (0..200).map(|n| format!("PERFORM pg_sleep(0); SET app.n{n} = '{n}'; ")).collect();
    run(&mut all.one, &format!("DO $$ BEGIN {sets} END $$")).await;
    run(&mut all.two, "SELECT 1").await;
    for n in [0, 63, 64, 199] {
        assert_eq!(show(&mut all.one, &format!("app.n{n}")).await, n.to_string());
        assert_eq!(show(&mut all.two, &format!("app.n{n}")).await, "");
    }
    run(&mut all.one, "SELECT called('app.called')").await;
    assert_eq!(show(&mut all.two, "app.called").await, "");
    assert_eq!(show(&mut all.one, "app.called").await, "v");
    let long = format!("app.{}", "x".repeat(60));
    let text = running::parse("", "SELECT set_config($1, $2, $3)");
    let batch = [text, running::bind("", "", &[&long, "v", "false"]), running::execute("")];
    assert_eq!(errors(&all.one.extended(&batch).await), [""; 0]);
    assert_eq!(show(&mut all.two, &long).await, "");
    assert_eq!(show(&mut all.one, &long).await, "v");
    assert!(all.pins("unnamed_setting").await < 0.5);
}

/// G01: what a superuser has set before SET ROLE stays, wherever the session goes.
#[tokio::test]
async fn a_superusers_setting_stays_under_set_role() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE ROLE other; GRANT other TO postgres; CREATE ROLE third SUPERUSER").await;
    for (set, name, value) in [
        ("SET log_statement = 'ddl'", "log_statement", "ddl"),
        ("SET session_replication_role = replica", "session_replication_role", "replica"),
        ("SET dynamic_library_path = '/nowhere'", "dynamic_library_path", ""),
        ("SET temp_tablespaces = pg_default", "temp_tablespaces", "pg_default"),
        ("SET log_min_messages = panic", "log_min_messages", "panic"),
    ] {
        for identity in [
            "SET ROLE other",
            "SET SESSION AUTHORIZATION other",
            "SET SESSION AUTHORIZATION third; SET ROLE other",
        ] {
            for code in ["SELECT 1", "DO $$ BEGIN END $$"] {
                let mut one = all.proxy.raw_logged_in().await;
                println!("{set}; {identity}; {code}");
                run(&mut one, set).await;
                for identity in identity.split("; ") {
                    run(&mut one, identity).await;
                }
                run(&mut one, code).await;
                run(&mut all.two, "SET work_mem = '7MB'").await;
                for _ in 0..2 {
                    run(&mut all.two, "SELECT 1").await;
                    if !value.is_empty() {
                        assert_eq!(show(&mut one, name).await, value, "{set} {identity}");
                    }
                    assert_eq!(
                        show(&mut one, "role").await,
                        if identity.contains("ROLE") { "other" } else { "none" }
                    );
                }
                run(&mut one, "RESET SESSION AUTHORIZATION").await;
                run(&mut one, "RESET ROLE").await;
                run(&mut all.two, "SELECT 1").await;
                let left = format!("SELECT setting FROM pg_settings WHERE name = '{name}'");
                let wanted = if value.is_empty() { "/nowhere" } else { value };
                assert_eq!(values(&run(&mut one, &left).await), [wanted], "{set} {identity} {code}");
                assert_ne!(values(&run(&mut all.two, &left).await), [wanted], "{set} {identity}");
            }
        }
    }
}

/// G01: what a role may set that its member may not is set on each server, and reset for the next.
#[tokio::test]
async fn a_setting_made_as_a_superuser_role_follows_its_member() {
    let mut all = Two::start().await;
    run(&mut all.one, "CREATE ROLE boss SUPERUSER; CREATE ROLE member LOGIN IN ROLE boss").await;
    let mut clients = Vec::new();
    for _ in 0..2 {
        let mut client = all.proxy.raw().await;
        client.log_in_with(&[("user", "member"), ("database", "postgres")]).await;
        clients.push(client);
    }
    let [one, two] = clients.as_mut_slice() else { unreachable!() };
    run(one, "SET ROLE boss").await;
    run(one, "SET log_statement = 'ddl'").await;
    for _ in 0..3 {
        assert_eq!(show(two, "log_statement").await, "none");
        run(two, "SET work_mem = '5MB'").await;
        assert_eq!(show(one, "log_statement").await, "ddl");
        assert_eq!(show(one, "role").await, "boss");
        run(two, "DO $$ BEGIN END $$").await;
    }
    run(one, "RESET log_statement").await;
    run(one, "RESET ROLE").await;
    run(two, "SELECT 1").await;
    assert_eq!(show(one, "log_statement").await, "none");
}

/// G01: defaults of roles and databases hold for whoever logs in after they were altered, wherever that was.
#[tokio::test]
async fn altered_defaults_hold_for_new_sessions() {
    let mut all = Two::start().await;
    run(&mut all.two, "SELECT 1").await;
    for (n, of) in ["DATABASE postgres", "ROLE postgres", "ROLE postgres IN DATABASE postgres", "ROLE ALL"]
        .iter()
        .enumerate()
    {
        for (alter, value) in [
            (format!("ALTER {of} SET work_mem = '{}MB'", n + 5), format!("{}MB", n + 5)),
            (format!("ALTER {of} RESET work_mem"), "4MB".to_owned()),
        ] {
            for transaction in [false, true] {
                if transaction {
                    run(&mut all.one, "BEGIN").await;
                }
                run(&mut all.one, &alter).await;
                if transaction {
                    run(&mut all.one, "COMMIT").await;
                }
                let mut new = all.proxy.raw_logged_in().await;
                assert_eq!(show(&mut new, "work_mem").await, value, "{alter}");
            }
        }
    }
    // From elsewhere: with the next look at the catalogue, which a definition brings about.
    let direct = all.sandbox.connect(0).await.unwrap();
    direct.batch_execute("ALTER DATABASE postgres SET work_mem = '9MB'").await.unwrap();
    run(&mut all.one, "CREATE TABLE t (i int)").await;
    eventually("a new session has the new default", async || {
        run(&mut all.one, "SELECT 1").await;
        let mut new = all.proxy.raw_logged_in().await;
        show(&mut new, "work_mem").await == "9MB"
    })
    .await;
}

/// G01: a value that is too large to be carried over is kept where it is, and nobody else's.
#[tokio::test]
async fn a_very_large_value_pins() {
    let mut all = Two::start_sized("2", &[]).await;
    for sql in [
        "SET app.large = '{}'",
        "SELECT length(set_config('app.large', '{}', false))",
        "DO $$ BEGIN PERFORM set_config('app.large', '{}', false); END $$",
    ] {
        let value = "x".repeat(900_000);
        run(&mut all.one, &sql.replace("{}", &value)).await;
        let doubled =
            "SELECT length(set_config('app.large', repeat(current_setting('app.large'), 3), false))";
        assert_eq!(values(&run(&mut all.one, doubled).await), ["2700000"]);
        assert_eq!(values(&run(&mut all.one, "SHOW pgsteer.pins").await), ["unseen"]);
        let length = "SELECT coalesce(length(current_setting('app.large', true)), 0)";
        assert_eq!(values(&run(&mut all.one, length).await), ["2700000"]);
        assert_ne!(values(&run(&mut all.two, length).await), ["2700000"]);
        run(&mut all.one, "DISCARD ALL").await;
        assert_eq!(values(&run(&mut all.one, "SHOW pgsteer.pins").await), [""]);
    }
}

/// T01: a pin ends also where code that can't be seen ends its cause.
#[tokio::test]
async fn a_pin_ends_with_its_cause_in_a_function() {
    let mut all = Two::start().await;
    let drops = "CREATE FUNCTION drops() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DROP TABLE tt; END $$";
    run(&mut all.one, drops).await;
    for (begin, end) in [
        ("CREATE TEMP TABLE tt (i int)", "SELECT drops()"),
        ("SELECT pg_advisory_lock(1)", "DO $$ BEGIN PERFORM pg_advisory_unlock_all(); END $$"),
    ] {
        let mut one = all.proxy.raw_logged_in().await;
        run(&mut one, begin).await;
        run(&mut one, "DO $$ BEGIN END $$").await;
        run(&mut one, end).await;
        all.two_gets_through().await;
    }
}
