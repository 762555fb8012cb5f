//! `pg_cancel_backend` and `pg_terminate_backend` by the process id that a client was given at its login. The hazards' numbers stand
//! at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, errors, eventually, execute, frame, kinds, parse, query, sync, values,
};

async fn start(args: &[&str]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &[&["--auth", "trust"], args].concat()).await;
    (sandbox, proxy)
}

/// A client and the process id of its login.
async fn known(proxy: &Running, user: &str) -> (RawClient, i32) {
    let mut client = proxy.raw().await;
    let welcome = client.log_in(user, "postgres").await;
    let key = welcome.iter().find(|message| message.kind == b'K').unwrap();
    (client, i32::from_be_bytes(*key.body.first_chunk().unwrap()))
}

fn is_ended(messages: &[Message]) -> bool {
    messages.last().is_some_and(|last| {
        last.kind == b'E' && last.sqlstate() == "57P01" && last.field(b'S').as_deref() == Some("FATAL")
    })
}

/// Each way in which a number gets into a call.
fn calls(function: &str, process_id: i32) -> Vec<Vec<u8>> {
    let text = format!("SELECT {function}({process_id})");
    let bound = parse("", &format!("SELECT {function}($1)"));
    let mut binary = b"\0\0\0\x01\0\x01\0\x01\0\0\0\x04".to_vec();
    binary.extend_from_slice(&process_id.to_be_bytes());
    binary.extend_from_slice(b"\0\0");
    vec![
        query(&text),
        [parse("", &text), bind("", "", &[]), execute(""), sync()].concat(),
        [bound.clone(), bind("", "", &[&process_id.to_string()]), execute(""), sync()].concat(),
        [bound, frame(b'B', &binary), execute(""), sync()].concat(),
    ]
}

/// P6: an idle session is ended, and its client hears it from the server.
#[tokio::test]
async fn an_idle_session_is_ended_by_its_process_id() {
    for shards in ["1", "2"] {
        let (_sandbox, proxy) = start(&["--shards", shards]).await;
        let mut killer = proxy.raw_logged_in().await;
        for way in 0..4 {
            let (mut victim, process_id) = known(&proxy, "postgres").await;
            let (mut bystander, _) = known(&proxy, "postgres").await;
            assert_eq!(values(&victim.query("SELECT 1").await), ["1"]);
            killer.send(&calls("pg_terminate_backend", process_id)[way]).await;
            assert_eq!(values(&killer.read_until(b'Z').await), ["t"], "{way}");
            assert!(is_ended(&victim.read_to_end().await), "{way}");
            assert_eq!(values(&bystander.query("SELECT 2").await), ["2"]);
            assert_eq!(values(&killer.query("SELECT 3").await), ["3"]);
        }
    }
}

/// P6: sessions are ended by a list of process ids, whoever ends several at once.
#[tokio::test]
async fn sessions_are_ended_by_a_list_of_their_process_ids() {
    let (_sandbox, proxy) = start(&[]).await;
    let mut killer = proxy.raw_logged_in().await;
    for sql in [
        "SELECT count(pg_terminate_backend(n)) FROM unnest($1::int[]) n",
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE pid = ANY ($1)",
    ] {
        let (mut one, first) = known(&proxy, "postgres").await;
        let (mut two, second) = known(&proxy, "postgres").await;
        let (mut bystander, _) = known(&proxy, "postgres").await;
        let list = format!("{{{first},{second}}}");
        let unit = [parse("", sql), bind("", "", &[&list]), execute(""), sync()].concat();
        killer.send(&unit).await;
        assert_eq!(values(&killer.read_until(b'Z').await), ["2"], "{sql}");
        for victim in [&mut one, &mut two] {
            assert!(is_ended(&victim.read_to_end().await), "{sql}");
        }
        assert_eq!(values(&bystander.query("SELECT 1").await), ["1"]);
    }
}

/// P6: so is one in a transaction, and one with a statement under way.
#[tokio::test]
async fn a_busy_session_is_ended_by_its_process_id() {
    let (sandbox, proxy) = start(&["--shards", "2"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut killer = proxy.raw_logged_in().await;
    for way in 0..4 {
        for runs in [false, true] {
            let (mut victim, process_id) = known(&proxy, "postgres").await;
            assert_eq!(errors(&victim.query("BEGIN; CREATE TABLE IF NOT EXISTS t (n int)").await), [""; 0]);
            if runs {
                victim.send(&query("SELECT pg_sleep(3600)")).await;
                eventually("it runs", async || {
                    let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
                    direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
                })
                .await;
            }
            killer.send(&calls("pg_terminate_backend", process_id)[way]).await;
            assert_eq!(values(&killer.read_until(b'Z').await), ["t"], "{way}");
            assert!(is_ended(&victim.read_to_end().await), "{way} {runs}");
        }
    }
}

/// P6: so is one that runs one short statement after the other; the signal is not to hit whoever has its server next.
#[tokio::test]
async fn a_session_between_short_statements_is_ended_by_its_process_id() {
    let (_sandbox, proxy) = start(&["--shards", "2"]).await;
    let mut killer = proxy.raw_logged_in().await;
    let (mut bystander, _) = known(&proxy, "postgres").await;
    for round in 0..60 {
        let (mut victim, process_id) = known(&proxy, "postgres").await;
        let sleep =
            format!("/* pgsteer: target=primary */ SELECT pg_sleep({})", f64::from(round % 6) / 1000.0);
        let unit = |name: &str| [parse(name, &sleep), sync()].concat();
        victim.send(&[unit("a"), query(&sleep), unit("b"), query(&sleep)].concat()).await;
        killer.send(&query(&format!("SELECT pg_terminate_backend({process_id})"))).await;
        bystander.send(&query("INSERT INTO ran VALUES (1)")).await;
        assert_eq!(values(&killer.read_until(b'Z').await), ["t"], "{round}");
        assert!(is_ended(&victim.read_to_end().await), "{round}");
        assert_eq!(errors(&bystander.read_until(b'Z').await), ["42P01"], "{round}");
    }
}

/// P6: so is one that only listens, which the loss of its server would not end, and one that is pinned otherwise.
#[tokio::test]
async fn a_pinned_session_is_ended_by_its_process_id() {
    let (_sandbox, proxy) = start(&["--shards", "2"]).await;
    let mut killer = proxy.raw_logged_in().await;
    for pin in ["LISTEN news", "CREATE TEMP TABLE x (n int)", "SELECT pg_advisory_lock(1)"] {
        let (mut victim, process_id) = known(&proxy, "postgres").await;
        assert_eq!(errors(&victim.query(pin).await), [""; 0], "{pin}");
        // What the server is asked after the first is over.
        assert_eq!(values(&victim.query("SELECT 1").await), ["1"], "{pin}");
        killer.send(&query(&format!("SELECT pg_terminate_backend({process_id})"))).await;
        assert_eq!(values(&killer.read_until(b'Z').await), ["t"], "{pin}");
        let said = victim.read_to_end().await;
        assert!(is_ended(&said), "{pin}: {said:?}");
        let words = said.last().unwrap().field(b'M');
        assert_eq!(words.as_deref(), Some("terminating connection due to administrator command"), "{pin}");
    }
}

/// What nobody was about to end is a loss of its server, also after a cancel that found it.
#[tokio::test]
async fn a_session_that_was_sought_before_its_last_statement_goes_on_without_its_server() {
    let (sandbox, proxy) = start(&["--shards", "1"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut canceller = proxy.raw_logged_in().await;
    let (mut client, process_id) = known(&proxy, "postgres").await;
    assert_eq!(errors(&client.query("BEGIN; CREATE TABLE t (n int)").await), [""; 0]);
    let answer = canceller.query(&format!("SELECT pg_cancel_backend({process_id})")).await;
    assert_eq!(values(&answer), ["t"]);
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    let sql = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query LIKE 'INSERT%'";
    assert_eq!(direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0), 1);
    assert_eq!(errors(&client.query("SELECT 1").await), ["40001"]);
    assert_eq!(errors(&client.query("ROLLBACK").await), [""; 0]);
}

/// What a session does is found by the process id of its login.
#[tokio::test]
async fn a_session_is_seen_by_its_process_id() {
    let (_sandbox, proxy) = start(&["--shards", "2"]).await;
    let mut watcher = proxy.raw_logged_in().await;
    let (mut seen, process_id) = known(&proxy, "postgres").await;
    assert_eq!(errors(&seen.query("BEGIN; CREATE TABLE seen (n int)").await), [""; 0]);
    let bound =
        |sql: &str| [parse("", sql), bind("", "", &[&process_id.to_string()]), execute(""), sync()].concat();
    let text = format!("SELECT state FROM pg_stat_activity WHERE pid = {process_id}");
    for unit in [query(&text), bound("SELECT state FROM pg_stat_activity WHERE pid = $1")] {
        watcher.send(&unit).await;
        assert_eq!(values(&watcher.read_until(b'Z').await), ["idle in transaction"]);
    }
    let locks = "SELECT mode FROM pg_locks l WHERE l.pid = $1 AND locktype = 'relation' AND mode LIKE 'Access%' LIMIT 1";
    watcher.send(&bound(locks)).await;
    assert_eq!(values(&watcher.read_until(b'Z').await), ["AccessExclusiveLock"]);
    watcher.send(&bound("SELECT pg_blocking_pids($1)")).await;
    assert_eq!(values(&watcher.read_until(b'Z').await), ["{}"]);
    // Its own, while it is asked.
    let own = format!("SELECT state FROM pg_stat_activity WHERE pid = {process_id}");
    assert_eq!(values(&seen.query(&own).await), ["active"]);
}

/// P6: what runs is cancelled, and nothing after it; its session goes on.
#[tokio::test]
async fn a_statement_is_cancelled_by_its_sessions_process_id() {
    let (sandbox, proxy) = start(&["--shards", "2"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut canceller = proxy.raw_logged_in().await;
    for way in 0..4 {
        let (mut client, process_id) = known(&proxy, "postgres").await;
        client.send(&query("CREATE TABLE IF NOT EXISTS t (n int); SELECT pg_sleep(3600) AS long")).await;
        eventually("it runs", async || {
            let sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
            direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
        canceller.send(&calls("pg_cancel_backend", process_id)[way]).await;
        assert_eq!(values(&canceller.read_until(b'Z').await), ["t"], "{way}");
        assert_eq!(errors(&client.read_until(b'Z').await), ["57014"], "{way}");
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
    }
}

/// A session that was idle when it was to be cancelled has lost nothing, and is kept nowhere for long.
#[tokio::test]
async fn a_cancel_of_an_idle_session_leaves_nothing_behind() {
    let (_sandbox, proxy) = start(&["--shards", "1", "--pool-size", "2"]).await;
    let mut canceller = proxy.raw_logged_in().await;
    let (mut idle, process_id) = known(&proxy, "postgres").await;
    for _ in 0..20 {
        let answer = canceller.query(&format!("SELECT pg_cancel_backend({process_id})")).await;
        assert_eq!(values(&answer), ["t"]);
        assert_eq!(values(&idle.query("SELECT 1").await), ["1"]);
    }
    // Both connections are free: two sessions can have them, in transactions.
    for client in [&mut canceller, &mut idle] {
        assert_eq!(errors(&client.query("BEGIN; CREATE TEMP TABLE x (n int) ON COMMIT DROP").await), [""; 0]);
    }
}

/// Who may not, may not: the server judges. A number that is nobody's is nobody's.
#[tokio::test]
async fn the_server_judges() {
    let (sandbox, proxy) = start(&["--shards", "1"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE ROLE ann LOGIN").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let (mut ann, _) = known(&proxy, "ann").await;
    let (mut victim, process_id) = known(&proxy, "postgres").await;
    let refused = ann.query(&format!("SELECT pg_terminate_backend({process_id})")).await;
    assert_eq!(errors(&refused), ["42501"], "{refused:?}");
    assert_eq!(values(&victim.query("SELECT 1").await), ["1"]);
    drop(victim);
    let nobody = ann.query("SELECT pg_terminate_backend(2147483647)").await;
    assert_eq!((kinds(&nobody), values(&nobody)), ("TNDCZ".to_owned(), vec!["f".to_owned()]));
}

/// A session that ends itself by the process id of its login.
#[tokio::test]
async fn a_session_ends_itself() {
    let (_sandbox, proxy) = start(&["--shards", "1"]).await;
    for way in 0..4 {
        let (mut client, process_id) = known(&proxy, "postgres").await;
        client.send(&calls("pg_terminate_backend", process_id)[way]).await;
        assert!(is_ended(&client.read_to_end().await), "{way}");
    }
}
