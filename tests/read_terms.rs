//! What reads are promised: by the configuration, by `SET pgsteer.…`, by a leading comment; tokens that carry a session's writes to
//! others; what becomes of reads without a standby.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, describe, errors, eventually, execute, frame, in_time, no_errors,
    parse, promote, query, slow_to_flush, startup, status, values,
};
use tokio::net::TcpStream;

/// What tells where it ran: `true` on a standby.
const WHERE: &str = "SELECT pg_is_in_recovery()";

const ENVIRONMENT: [(&str, &str); 2] =
    [("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery"), ("PGSTEER_ROUTING_RECENT_WRITES", "0s")];

async fn sandbox(standbys: usize) -> Sandbox {
    let sandbox = Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

async fn start(sandbox: &Sandbox, args: &[&str], environment: &[(&str, &str)]) -> Running {
    let args = [&["--auth", "trust"], args].concat();
    let proxy = Running::start_with(sandbox, &args, &[&ENVIRONMENT, environment].concat()).await;
    let mut client = proxy.raw_logged_in().await;
    eventually("a standby answers", async || is_on_standby(&mut client).await).await;
    proxy
}

async fn is_on_standby(client: &mut RawClient) -> bool {
    let answer = client.query(WHERE).await;
    values(&answer).first().unwrap_or_else(|| panic!("{answer:?}")) == "t"
}

async fn set(client: &mut RawClient, sql: &str) {
    no_errors(&client.query(sql).await);
}

async fn shown(client: &mut RawClient, name: &str) -> String {
    let answer = client.query(&format!("SHOW pgsteer.{name}")).await;
    values(&answer).pop().unwrap_or_else(|| panic!("{name}: {answer:?}"))
}

/// Errors and the HINT of the first.
fn refused(answer: &[Message]) -> (Vec<String>, String) {
    let hint = answer.iter().find(|message| message.kind == b'E').and_then(|error| error.field(b'H'));
    (errors(answer), hint.unwrap_or_default())
}

#[tokio::test]
async fn r11_a_session_sets_what_its_reads_are_promised() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1m"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(shown(&mut client, "max_lag").await, "1min");
    assert_eq!(shown(&mut client, "consistency").await, "session");
    eventually("a standby answers", async || is_on_standby(&mut client).await).await;

    set(&mut client, "SET pgsteer.max_lag = 0").await;
    assert_eq!(shown(&mut client, "max_lag").await, "0");
    assert!(!is_on_standby(&mut client).await, "no standby is as fresh as that");
    eventually("a statement's own wins", async || {
        values(&client.query("/* pgsteer: max_lag=1m */ SELECT pg_is_in_recovery()").await) == ["t"]
    })
    .await;
    eventually("in capitals, too", async || {
        values(&client.query("/* PGSTEER: MAX_LAG=1m */ SELECT pg_is_in_recovery()").await) == ["t"]
    })
    .await;
    let mut other = proxy.raw_logged_in().await;
    assert_eq!(shown(&mut other, "max_lag").await, "1min", "it is the session's own");
    eventually("a standby answers it", async || is_on_standby(&mut other).await).await;
    set(&mut client, "RESET pgsteer.max_lag").await;
    assert_eq!(shown(&mut client, "max_lag").await, "1min");
    eventually("a standby answers again", async || is_on_standby(&mut client).await).await;

    // As all settings: undone with its transaction, and by DISCARD ALL.
    for sql in ["BEGIN", "SET pgsteer.target TO 'primary'", "ROLLBACK"] {
        set(&mut client, sql).await;
    }
    assert_eq!(shown(&mut client, "target").await, "any");
    set(&mut client, "SET SESSION pgsteer.target TO 'primary'").await;
    assert!(!is_on_standby(&mut client).await);
    set(&mut client, "DISCARD ALL").await;
    eventually("a standby answers again", async || is_on_standby(&mut client).await).await;
    set(&mut client, "SELECT set_config('pgsteer.consistency', 'primary', false)").await;
    assert_eq!(shown(&mut client, "consistency").await, "primary");
    assert!(!is_on_standby(&mut client).await);
    set(&mut client, "RESET ALL").await;
    eventually("a standby answers again", async || is_on_standby(&mut client).await).await;

    // What was set in this transaction is shown, and stays.
    for sql in ["BEGIN", "SET pgsteer.max_lag = '5s'"] {
        set(&mut client, sql).await;
    }
    assert_eq!(shown(&mut client, "max_lag").await, "5s");
    assert_eq!(shown(&mut client, "consistency").await, "session");
    set(&mut client, "COMMIT").await;
    assert_eq!(shown(&mut client, "max_lag").await, "5s");
    let answer = client.query("SET pgsteer.max_lag = '6s'; SHOW pgsteer.max_lag").await;
    assert_eq!(values(&answer), ["6s"]);
    for (sql, value) in [
        ("SET pgsteer.max_lag = E'7s'", "7s"),
        ("SET pgsteer.max_lag = '8'\n's'", "8s"),
        ("SET pgsteer.max_lag TO $$9s$$", "9s"),
        ("SET U&\"pgsteer\".max_lag = '11s'", "11s"),
        ("SELECT set_config('PGSTEER.Max_Lag', '12s', false)", "12s"),
        ("DO $$BEGIN SET pgsteer.max_lag = '13s'; END$$", "13s"),
    ] {
        set(&mut client, "SET pgsteer.max_lag = '0'").await;
        set(&mut client, sql).await;
        assert_eq!(shown(&mut client, "max_lag").await, value, "{sql}");
        eventually(&format!("it is in force: {sql}"), async || is_on_standby(&mut client).await).await;
        assert_eq!(shown(&mut other, "max_lag").await, "1min");
    }
    set(&mut client, "RESET ALL").await;

    // By the extended protocol, prepared.
    let set = [parse("s", "SET pgsteer.target = 'primary'"), bind("", "s", &[]), execute("")];
    no_errors(&client.extended(&set).await);
    let show = [parse("", "SHOW pgsteer.target"), bind("", "", &[]), describe(b'P', ""), execute("")];
    assert_eq!(values(&client.extended(&show).await), ["primary"]);
    assert!(!is_on_standby(&mut client).await);
}

#[tokio::test]
async fn r11_a_value_that_is_none_is_refused_where_it_is_set() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &[], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    for (sql, code, hint) in [
        ("SET pgsteer.max_lag = 'abc'", "22023", "Expected a number"),
        ("SET pgsteer.max_lag = -1", "22023", "Expected a number"),
        ("SET pgsteer.max_lag TO '400d'", "22023", "at most 24 days"),
        ("SET pgsteer.max_lag_bytes TO '-5kB'", "22023", "or off"),
        ("SET pgsteer.consistency = strong", "22023", "Expected eventual, session or primary"),
        ("SET pgsteer.target = replica", "22023", "Expected any, primary or standby"),
        ("SET pgsteer.token = 'x'", "22023", "Expected a token"),
        ("SET pgsteer.retry_buffer = 'much'", "22023", "at most 1 GiB, or off"),
        ("SET pgsteer.retry_buffer = '2GiB'", "22023", "at most 1 GiB, or off"),
        ("/* pgsteer: retry_buffer=-1 */ SELECT 1", "22023", "a list of name=value"),
        ("SET pgsteer.max_lagg = '1s'", "42704", "pgsteer has target"),
        ("SET pgsteer.pins = 'x'", "55P02", "why the session is pinned"),
        ("SET LOCAL pgsteer.max_lag = '1s'", "0A000", "Use SET"),
        ("SELECT set_config('pgsteer.max_lag', '1s', true)", "0A000", "Use SET"),
        ("/* PGSTEER: Max_Lag=abc */ SELECT 1", "22023", "a list of name=value"),
        ("/* pgsteer: max_lag=abc */ SELECT 1", "22023", "a list of name=value"),
        ("/* pgsteer: targt=primary */ SELECT 1", "22023", "a list of name=value"),
    ] {
        let (codes, told) = refused(&client.query(sql).await);
        assert_eq!(codes, [code], "{sql}");
        assert!(told.contains(hint), "{sql}: {told}");
        let batch = [parse("", sql), bind("", "", &[]), describe(b'P', ""), execute("")];
        assert_eq!(refused(&client.extended(&batch).await).0, [code], "{sql}, extended");
        // In a block it fails the block, on the server too.
        set(&mut client, "BEGIN").await;
        assert_eq!(errors(&client.query(sql).await), [code], "{sql}, in a block");
        assert_eq!(status(&client.query("SELECT 1").await), 'E', "{sql}");
        set(&mut client, "ROLLBACK").await;
    }
    let long = refused(&client.query(&format!("SET pgsteer.max_lag = '{}'", "9".repeat(100_000))).await);
    assert_eq!((long.0, long.1.len() < 300), (vec!["22023".to_owned()], true));
    // Thousands of them in one text are as good as one.
    let many = "SET pgsteer.max_lag = 'abc'; ".repeat(20_000);
    assert_eq!(errors(&in_time("the refusal", client.query(&many)).await), ["22023"]);
    let frames: Vec<Vec<u8>> = (0..2_000).map(|_| parse("", "SET pgsteer.max_lag = 'abc'")).collect();
    assert_eq!(errors(&in_time("the refusal", client.extended(&frames)).await), ["22023"]);
    // Of a text that is not looked into, the comment is.
    let large = format!("/* pgsteer: max_lag=abc */ SELECT '{}'", "x".repeat(2 << 20));
    assert_eq!(errors(&in_time("the refusal", client.query(&large)).await), ["22023"]);
    let batch = [parse("", &large), bind("", "", &[]), execute("")];
    assert_eq!(errors(&in_time("the refusal", client.extended(&batch)).await), ["22023"]);
    // One that only the server can read fails what follows.
    set(&mut client, "SET pgsteer.max_lag = E'a\\x62'").await;
    assert_eq!(errors(&client.query("SELECT 1").await), ["22023"]);
    set(&mut client, "RESET pgsteer.max_lag").await;
    // With parameters, and beside a COPY.
    let batch = [
        parse("", "/* pgsteer: x=1 */ SELECT $1::int"),
        bind("", "", &["1"]),
        describe(b'P', ""),
        execute(""),
    ];
    assert_eq!(errors(&client.extended(&batch).await), ["22023"]);
    let copy =
        [query("COPY t FROM STDIN; SET pgsteer.max_lag = 'abc'"), frame(b'd', b"1\n"), frame(b'c', b"")];
    client.send(&copy.concat()).await;
    assert_eq!(errors(&in_time("the refusal", client.read_until(b'Z')).await), ["22023"]);
    // What stands before it in one text was done, as far as it was committed.
    let text =
        "BEGIN; INSERT INTO t VALUES (1); COMMIT; SET pgsteer.max_lag = 'abc'; INSERT INTO t VALUES (2)";
    assert_eq!(errors(&client.query(text).await), ["22023"]);
    assert_eq!(values(&client.query("SELECT n FROM t").await), ["1"]);
    assert_eq!(shown(&mut client, "max_lag").await, "1s");
    assert_eq!(errors(&client.query("SHOW pgsteer.nothing").await), ["42704"]);
}

/// One that came past the look at the texts is not passed over either.
#[tokio::test]
async fn r11_a_value_that_is_none_fails_what_follows_until_it_is_set_right() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &[], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    for right in ["RESET pgsteer.max_lag", "SET pgsteer.max_lag = '1s'", "RESET ALL", "DISCARD ALL"] {
        no_errors(&client.query("SELECT set_config('pgsteer.max_lag', 'abc', false)").await);
        for sql in ["SELECT 1", "INSERT INTO t VALUES (1)", "BEGIN"] {
            let (codes, told) = refused(&client.query(sql).await);
            assert_eq!(codes, ["22023"], "{sql}");
            assert!(told.contains("SET it anew, or RESET it"), "{told}");
        }
        let batch = [parse("", "SELECT 1"), bind("", "", &[]), execute("")];
        assert_eq!(errors(&client.extended(&batch).await), ["22023"]);
        set(&mut client, right).await;
        assert_eq!(values(&client.query("SELECT 1").await), ["1"], "{right}");
    }
    assert_eq!(values(&client.query("SELECT count(*) FROM t").await), ["0"]);
}

#[tokio::test]
async fn r11_a_startup_packet_sets_them_too() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1m"], &[]).await;
    let log_in = async |options: &str| {
        let mut client = proxy.raw().await;
        let parameters = [("user", "postgres"), ("database", "postgres"), ("options", options)];
        let answer = client.log_in_with(&parameters).await;
        (client, answer)
    };
    let (mut client, answer) = log_in("-c pgsteer.target=primary -c pgsteer.max_lag=2s").await;
    no_errors(&answer);
    assert!(!is_on_standby(&mut client).await);
    assert_eq!(shown(&mut client, "max_lag").await, "2s");
    set(&mut client, "SET pgsteer.max_lag = '3s'").await;
    set(&mut client, "RESET pgsteer.max_lag").await;
    assert_eq!(shown(&mut client, "max_lag").await, "2s", "what RESET goes back to");
    for (options, code) in [
        ("-c pgsteer.max_lag=abc", "22023"),
        ("-c pgsteer.max_lagg=1s", "42704"),
        ("-c pgsteer.token=x", "22023"),
        ("-c pgsteer.token=1:1:0/1", "22023"),
    ] {
        let mut client = proxy.raw().await;
        let parameters = [("user", "postgres"), ("database", "postgres"), ("options", options)];
        client.send(&startup(3 << 16, &parameters)).await;
        assert_eq!(errors(&client.read_to_end().await), [code], "{options}");
    }
}

/// A token is looked at when it is known which cluster this is: its login waits for a primary as all do.
#[tokio::test]
async fn r11_a_token_in_a_startup_packet_waits_for_a_primary() {
    let sandbox = sandbox(0).await;
    let admin = sandbox.connect(0).await.unwrap();
    let sql = "SELECT system_identifier || ':1:0/1' FROM pg_control_system()";
    let token: String = admin.query_one(sql, &[]).await.unwrap().get(0);
    sandbox.node(0).stop_fast().await.unwrap();
    let proxy = Running::launch(&sandbox, &["--auth", "trust"], &ENVIRONMENT).await;
    let mut logins = Vec::new();
    for (token, code) in [(token, None), ("123:1:0/1".to_owned(), Some("22023"))] {
        let mut client = proxy.raw().await;
        let options = format!("-c pgsteer.token={token}");
        let parameters = [("user", "postgres"), ("database", "postgres"), ("options", options.as_str())];
        client.send(&startup(3 << 16, &parameters)).await;
        logins.push((client, code));
    }
    for (client, _) in &mut logins {
        let told = tokio::time::timeout(Duration::from_millis(200), client.stream.peek(&mut [0])).await;
        assert!(told.is_err(), "it does not wait");
    }
    sandbox.node(0).start().await.unwrap();
    for (mut client, code) in logins {
        match code {
            None => no_errors(&in_time("the login", client.read_until(b'Z')).await),
            Some(code) => assert_eq!(errors(&in_time("the refusal", client.read_to_end()).await), [code]),
        }
    }
}

#[tokio::test]
async fn r11_listeners_users_and_databases_have_terms_of_their_own() {
    let sandbox = sandbox(1).await;
    let admin = sandbox.connect(0).await.unwrap();
    for sql in ["CREATE ROLE app LOGIN", "CREATE DATABASE shop"] {
        admin.batch_execute(sql).await.unwrap();
    }
    sandbox.wait_caught_up().await.unwrap();
    let standby = running::free_address().to_string();
    let file = sandbox.directory().join("terms.toml");
    let text = "[retry]\nbuffer = \"32KiB\"\n\
                [[routing.listener]]\nname = \"standby\"\nmax_lag = \"30s\"\nretry_buffer = \"2MiB\"\n\
                [[routing.user]]\nname = \"app\"\nmax_lag = \"20s\"\nretry_buffer = \"0B\"\nconsistency = \"eventual\"\n\
                [[routing.database]]\nname = \"shop\"\nmax_lag = \"10s\"\nmax_lag_bytes = \"16MiB\"\nno_standby = \"error\"\n";
    std::fs::write(&file, text).unwrap();
    let file = file.to_str().unwrap();
    let proxy = start(&sandbox, &["--config", file, "--listen-standby", &standby], &[]).await;
    for (user, database, expected) in [
        ("postgres", "postgres", ["1s", "off", "session", "primary", "32KiB"]),
        ("app", "postgres", ["20s", "off", "eventual", "primary", "0B"]),
        ("postgres", "shop", ["10s", "16MiB", "session", "error", "32KiB"]),
        ("app", "shop", ["20s", "16MiB", "eventual", "error", "0B"]),
    ] {
        let mut client = proxy.raw_as(user, database).await;
        let names = ["max_lag", "max_lag_bytes", "consistency", "no_standby", "retry_buffer"];
        for (name, value) in names.iter().zip(expected) {
            assert_eq!(shown(&mut client, name).await, value, "{user} {database} {name}");
        }
    }
    let mut client = RawClient { stream: TcpStream::connect(&standby).await.unwrap() };
    no_errors(&client.log_in("app", "shop").await);
    assert_eq!(shown(&mut client, "max_lag").await, "30s");
    assert_eq!(shown(&mut client, "max_lag_bytes").await, "16MiB");
    assert_eq!(shown(&mut client, "retry_buffer").await, "2MiB");
    no_errors(&client.query("SET pgsteer.retry_buffer = '3MiB'").await);
    assert_eq!(shown(&mut client, "retry_buffer").await, "3MiB");
}

/// R06: bytes count where time does not tell.
#[tokio::test]
async fn a_lag_in_bytes_is_a_bound() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    set(&mut client, "SET pgsteer.max_lag_bytes = '1MiB'").await;
    set(&mut client, "SET pgsteer.consistency = eventual").await;
    eventually("a standby answers", async || is_on_standby(&mut client).await).await;
    sandbox.node(1).pause_replay().await.unwrap();
    let admin = sandbox.connect(0).await.unwrap();
    admin.batch_execute("INSERT INTO t SELECT generate_series(1, 100000)").await.unwrap();
    eventually("the standby is beyond it", async || !is_on_standby(&mut client).await).await;
    let commented = client.query("/* pgsteer: max_lag_bytes=1GiB */ SELECT pg_is_in_recovery()").await;
    assert_eq!(values(&commented), ["t"]);
    sandbox.node(1).resume_replay().await.unwrap();
    eventually("it has caught up", async || is_on_standby(&mut client).await).await;
}

/// R01: a session that brings another's token sees what that one wrote.
#[tokio::test]
async fn r01_a_token_carries_what_was_written_to_other_sessions_and_processes() {
    let sandbox = sandbox(1).await;
    let here = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let there = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    sandbox.node(1).pause_replay().await.unwrap();
    let mut writer = here.raw_logged_in().await;
    set(&mut writer, "INSERT INTO t VALUES (1)").await;
    let token = shown(&mut writer, "token").await;
    let show = [parse("", "SHOW pgsteer.token"), bind("", "", &[]), describe(b'P', ""), execute("")];
    let again = values(&writer.extended(&show).await);
    assert!(again[0].starts_with(token.split_once('/').unwrap().0), "{again:?} {token}");

    let count = "SELECT count(*)::text || pg_is_in_recovery()::text FROM t";
    let mut stale = there.raw_logged_in().await;
    assert_eq!(values(&stale.query(count).await), ["0true"], "without it the budget is all there is");
    let mut bringing = there.raw_logged_in().await;
    set(&mut bringing, &format!("SET pgsteer.token = '{token}'")).await;
    assert_eq!(values(&bringing.query(count).await), ["1false"]);
    let mut prepared = there.raw_logged_in().await;
    let batch =
        [parse("", "SELECT set_config('pgsteer.token', $1, false)"), bind("", "", &[&token]), execute("")];
    no_errors(&prepared.extended(&batch).await);
    assert_eq!(values(&prepared.query(count).await), ["1false"]);
    let mut client = there.raw().await;
    let options = format!("-c pgsteer.token={token}");
    let parameters = [("user", "postgres"), ("database", "postgres"), ("options", options.as_str())];
    no_errors(&client.log_in_with(&parameters).await);
    assert_eq!(values(&client.query(count).await), ["1false"]);
    // Nobody else's session gets it with a connection.
    assert_eq!(
        values(&stale.query("SELECT coalesce(current_setting('pgsteer.token', true), '')").await),
        [""]
    );
    sandbox.node(1).resume_replay().await.unwrap();
    for client in [&mut bringing, &mut prepared, &mut client] {
        eventually("the standby has it", async || {
            let seen = values(&client.query(count).await);
            assert!(seen[0].starts_with('1'), "{seen:?}");
            seen == ["1true"]
        })
        .await;
    }
}

/// R01: a token covers what is not flushed yet, too, whoever wrote it.
#[tokio::test]
async fn r01_a_token_covers_asynchronous_commits() {
    let sandbox = slow_to_flush().await;
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (n int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let here = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let there = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let (mut writer, mut reader) = (here.raw_logged_in().await, here.raw_logged_in().await);
    let mut elsewhere = there.raw_logged_in().await;
    for count in 1..4 {
        for sql in ["BEGIN", "SET LOCAL synchronous_commit = off", "INSERT INTO t VALUES (1)", "COMMIT"] {
            set(&mut writer, sql).await;
        }
        let seen = values(&reader.query("/* pgsteer: target=primary */ SELECT count(*) FROM t").await);
        assert_eq!(seen, [count.to_string()]);
        for client in [&mut writer, &mut reader] {
            let token = shown(client, "token").await;
            set(&mut elsewhere, &format!("SET pgsteer.token = '{token}'")).await;
            let mut pace = tokio::time::interval(Duration::from_millis(30));
            for _ in 0..10 {
                pace.tick().await;
                assert_eq!(values(&elsewhere.query("SELECT count(*) FROM t").await), [count.to_string()]);
            }
        }
    }
}

/// A token bounds a session that promises nothing else.
#[tokio::test]
async fn r01_a_token_counts_where_reads_are_eventual() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    sandbox.node(1).pause_replay().await.unwrap();
    let mut writer = proxy.raw_logged_in().await;
    set(&mut writer, "INSERT INTO t VALUES (1)").await;
    let token = shown(&mut writer, "token").await;
    let mut client = proxy.raw_logged_in().await;
    set(&mut client, "SET pgsteer.consistency = eventual").await;
    assert_eq!(values(&client.query("SELECT count(*) FROM t").await), ["0"]);
    set(&mut client, &format!("SET pgsteer.token = '{token}'")).await;
    assert_eq!(values(&client.query("SELECT count(*) FROM t").await), ["1"]);
}

/// Each statement of a batch has what its own comment asks for, and none that of another.
#[tokio::test]
async fn r11_a_comment_is_for_its_own_statement() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    sandbox.node(1).pause_replay().await.unwrap();
    set(&mut client, "INSERT INTO t VALUES (1)").await;
    let count = "SELECT count(*) FROM t";
    let eventual = format!("/* pgsteer: consistency=eventual */ {count}");
    assert_eq!(values(&client.query(&eventual).await), ["0"]);
    for order in [[&eventual, count], [count, &eventual]] {
        let batch = order.map(|sql| [parse("", sql), bind("", "", &[]), execute("")]).concat();
        assert_eq!(values(&client.extended(&batch).await), ["1", "1"], "{order:?}");
    }
}

/// R08: tokens of other histories are refused or read as "all there is"; none is waited for in vain.
#[tokio::test]
async fn r08_tokens_of_other_histories() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    let token = shown(&mut client, "token").await;
    let parts: Vec<&str> = token.split(':').collect();
    let [system, timeline, lsn] = parts[..] else { panic!("{token}") };
    assert_eq!(timeline, "1");
    for (other, hint) in [
        (format!("99{system}:1:{lsn}"), "Expected a token"),
        (format!("123:1:{lsn}"), "another cluster"),
        (format!("{system}:2:{lsn}"), "has not come to"),
    ] {
        let (codes, told) = refused(&client.query(&format!("SET pgsteer.token = '{other}'")).await);
        assert_eq!(codes, ["22023"], "{other}");
        assert!(told.contains(hint), "{other}: {told}");
    }
    // One that the primary has never come to.
    set(&mut client, &format!("SET pgsteer.token = '{system}:1:FFFFFF/0'")).await;
    eventually("a standby answers", async || is_on_standby(&mut client).await).await;
    // One of before a failover.
    promote(&sandbox).await;
    eventually("the new primary is there", async || proxy.topology().await["epoch"] == 2).await;
    set(&mut proxy.raw_logged_in().await, "INSERT INTO t VALUES (1)").await;
    let mut client = proxy.raw_logged_in().await;
    set(&mut client, &format!("SET pgsteer.token = '{system}:1:FFFFFF/0'")).await;
    assert_eq!(values(&client.query("SELECT count(*) FROM t").await), ["1"]);
    let token = shown(&mut client, "token").await;
    assert!(token.starts_with(&format!("{system}:2:")), "{token}");
}

/// R07, R09: a read waits for a standby as long as it is told to, within its own limits.
#[tokio::test]
async fn r09_a_read_waits_for_a_standby_within_its_own_limits() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let (mut client, key) = proxy.raw_with_key(3 << 16).await;
    sandbox.node(1).pause_replay().await.unwrap();
    set(&mut client, "INSERT INTO t VALUES (1)").await;
    set(&mut client, "SET pgsteer.wait_for_standby = '300ms'").await;
    let began = Instant::now();
    assert!(!is_on_standby(&mut client).await, "then the primary answers");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());

    set(&mut client, "SET pgsteer.no_standby = error").await;
    let began = Instant::now();
    let (codes, hint) = refused(&client.query(WHERE).await);
    assert_eq!(codes, ["57P03"]);
    assert_eq!(proxy.post("/pause").await.0, 200);
    assert_eq!(errors(&in_time("a read in a pause", client.query(WHERE)).await), ["57P03"]);
    assert_eq!(proxy.post("/resume").await.0, 200);
    assert!(hint.contains("target=primary"), "{hint}");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    let commented = client.query("/* pgsteer: target=primary */ SELECT pg_is_in_recovery()").await;
    assert_eq!(values(&commented), ["f"]);

    set(&mut client, "SET pgsteer.wait_for_standby = '1h'").await;
    set(&mut client, "SET statement_timeout = '200ms'").await;
    let began = Instant::now();
    assert_eq!(errors(&in_time("the time-out", client.query(WHERE)).await), ["57014"]);
    assert!(began.elapsed() >= Duration::from_millis(200), "{:?}", began.elapsed());
    set(&mut client, "SET statement_timeout = 0").await;

    client.send(&query(WHERE)).await;
    eventually("it waits, and the cancel comes", async || {
        proxy.cancel(&key).await;
        tokio::time::timeout(Duration::from_millis(50), client.stream.peek(&mut [0])).await.is_ok()
    })
    .await;
    assert_eq!(errors(&client.read_until(b'Z').await), ["57014"]);

    client.send(&query(WHERE)).await;
    sandbox.node(1).resume_replay().await.unwrap();
    let answer = in_time("the standby has it", client.read_until(b'Z')).await;
    assert_eq!(values(&answer), ["t"]);
}

/// A session that reads without a pause comes back to the standbys all the same.
#[tokio::test]
async fn who_reads_without_a_pause_does_not_stay_on_the_primary() {
    let sandbox = sandbox(1).await;
    let proxy = start(&sandbox, &["--max-lag", "1h"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    let (mut slowest, mut on_primary) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..5 {
        set(&mut client, "INSERT INTO t VALUES (1)").await;
        let began = Instant::now();
        loop {
            let asked = Instant::now();
            let is_back = is_on_standby(&mut client).await;
            slowest = slowest.max(asked.elapsed());
            if is_back {
                break;
            }
        }
        on_primary += began.elapsed();
    }
    println!("{on_primary:?} on the primary, the slowest read took {slowest:?}");
    // By chance alone it takes ten seconds.
    assert!(on_primary < Duration::from_secs(4), "{on_primary:?}");
}

/// R07: a lag spike does not throw all reads at the primary.
#[tokio::test]
async fn r07_only_so_many_reads_are_on_the_primary_for_want_of_a_standby() {
    let sandbox = sandbox(1).await;
    let environment = [
        ("PGSTEER_ROUTING_PRIMARY_READ_LIMIT", "2"),
        ("PGSTEER_ROUTING_READ_FUNCTIONS", "pg_is_in_recovery,public.slow"),
    ];
    let admin = sandbox.connect(0).await.unwrap();
    let slow =
        "CREATE FUNCTION slow(bigint) RETURNS void LANGUAGE sql AS 'SELECT pg_advisory_xact_lock_shared($1)'";
    admin.batch_execute(slow).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let proxy = start(&sandbox, &["--max-lag", "1m"], &environment).await;
    // No standby is as fresh as that.
    admin.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    let mut reads = Vec::new();
    for _ in 0..5 {
        let mut client = proxy.raw_logged_in().await;
        set(&mut client, "SET pgsteer.max_lag = 0").await;
        set(&mut client, "SET pgsteer.wait_for_standby = '300ms'").await;
        reads.push(async move { errors(&client.query("SELECT public.slow(7)").await) });
    }
    let reads: Vec<_> = reads.into_iter().map(tokio::spawn).collect();
    let blocked = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted";
    eventually("two are there", async || {
        let count: i64 = admin.query_one(blocked, &[]).await.unwrap().get(0);
        assert!(count <= 2, "{count} reads are on the primary");
        count == 2
    })
    .await;
    eventually("the others have given up", async || {
        reads.iter().filter(|read| read.is_finished()).count() == 3
    })
    .await;
    admin.batch_execute("SELECT pg_advisory_unlock(7)").await.unwrap();
    let mut told = Vec::new();
    for read in reads {
        told.push(read.await.unwrap().concat());
    }
    told.sort();
    assert_eq!(told, ["", "", "57P03", "57P03", "57P03"]);
    // The places are free again.
    let mut client = proxy.raw_logged_in().await;
    set(&mut client, "SET pgsteer.max_lag = 0").await;
    for _ in 0..3 {
        assert!(!is_on_standby(&mut client).await);
    }
}
