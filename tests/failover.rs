//! Failovers under load, against real clusters: connections stay, acknowledged writes are there once, and every error says
//! exactly what became of the statement. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox, Sync};
use running::ledger::{Fate, Write, judge, rows};
use running::{
    RawClient, Running, bind, errors, eventually, execute, in_time, parse, promote, status, tag, values,
};
use tokio::task::JoinHandle;
use tokio_postgres::NoTls;

/// So many writes are acknowledged before the fault, and again after it.
const SOME: usize = 30;

async fn cluster(sync: Sync) -> Sandbox {
    let sandbox = Sandbox::builder().sync(sync).auth(Auth::Trust).start().await.unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

async fn proxy(sandbox: &Sandbox, extra: &[&str]) -> Running {
    Running::start(sandbox, &[&["--auth", "trust"], extra].concat()).await
}

/// Busy writers beside a promotion.
const WRITERS: usize = 16;

/// The default of `topology.probe_interval`, and what a probe takes on a loaded machine.
const PROBE_INTERVAL: Duration = Duration::from_millis(100);
const PROBE: Duration = Duration::from_millis(150);

/// How a writer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Simple,
    Extended,
    Prepared,
    Transactions,
}

impl Style {
    const ALL: [Self; 4] = [Self::Simple, Self::Extended, Self::Prepared, Self::Transactions];
}

/// A client that writes one row after the other until it is told to stop.
struct Writer {
    stop: Arc<AtomicBool>,
    acknowledged: Arc<AtomicUsize>,
    task: JoinHandle<Vec<Write>>,
}

impl Writer {
    async fn start(proxy: &Running, style: Style, first: i64) -> Self {
        let mut client = proxy.raw_logged_in().await;
        client.stream.set_nodelay(true).unwrap();
        if style == Style::Prepared {
            assert!(errors(&client.extended(&[parse("insert", INSERT)]).await).is_empty());
        }
        let stop = Arc::new(AtomicBool::new(false));
        let acknowledged = Arc::new(AtomicUsize::new(0));
        let (stopped, count) = (Arc::clone(&stop), Arc::clone(&acknowledged));
        let task = tokio::spawn(async move {
            let mut writes = Vec::new();
            for id in first.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let sent = Instant::now();
                let fate = match style {
                    Style::Transactions => write_in_transaction(&mut client, id).await,
                    _ => write_alone(&mut client, style, id).await,
                };
                writes.push(Write { id, sent, answered: Instant::now(), fate });
                count.fetch_add(usize::from(fate == Fate::Acknowledged), Ordering::Relaxed);
            }
            writes
        });
        Self { stop, acknowledged, task }
    }

    async fn wait_for_more(&self) {
        let before = self.acknowledged.load(Ordering::Relaxed);
        eventually("writes go on", async || {
            assert!(!self.task.is_finished(), "the writer has ended");
            self.acknowledged.load(Ordering::Relaxed) >= before + SOME
        })
        .await;
    }

    async fn end(self) -> Vec<Write> {
        self.stop.store(true, Ordering::Relaxed);
        in_time("the last write", self.task).await.unwrap()
    }
}

const INSERT: &str = "INSERT INTO ledger VALUES ($1::text::bigint)";

/// X08: one statement that commits by itself.
async fn write_alone(client: &mut RawClient, style: Style, id: i64) -> Fate {
    let text = id.to_string();
    let answer = match style {
        Style::Simple => client.query(&format!("INSERT INTO ledger VALUES ({id})")).await,
        Style::Prepared => client.extended(&[bind("", "insert", &[&text]), execute("")]).await,
        _ => client.extended(&[parse("", INSERT), bind("", "", &[&text]), execute("")]).await,
    };
    assert_eq!(status(&answer), 'I', "{answer:?}");
    match errors(&answer).as_slice() {
        [] => {
            assert_eq!(tag(&answer), "INSERT 0 1");
            Fate::Acknowledged
        }
        [code] if code == "08007" => Fate::Unknown,
        other => panic!("a write of its own ended with {other:?}: {answer:?}"),
    }
}

/// X08: three statements and a COMMIT. Odd ones end a lost transaction by ROLLBACK, even ones by COMMIT.
async fn write_in_transaction(client: &mut RawClient, id: i64) -> Fate {
    let begun = client.query("BEGIN").await;
    assert_eq!((tag(&begun).as_str(), status(&begun)), ("BEGIN", 'T'), "{begun:?}");
    for statement in [format!("INSERT INTO ledger VALUES ({id})"), "SELECT count(*) FROM ledger".to_owned()] {
        let answer = client.query(&statement).await;
        if errors(&answer).is_empty() {
            assert_eq!(status(&answer), 'T', "{answer:?}");
            continue;
        }
        assert_eq!(errors(&answer), ["40001"], "{answer:?}");
        assert_eq!(status(&answer), 'E', "{answer:?}");
        let ignored = client.query("SELECT 1").await;
        assert_eq!((errors(&ignored), status(&ignored)), (vec!["25P02".to_owned()], 'E'), "{ignored:?}");
        let ended = client.query(if id % 2 == 0 { "COMMIT" } else { "ROLLBACK" }).await;
        assert_eq!((tag(&ended).as_str(), status(&ended)), ("ROLLBACK", 'I'), "{ended:?}");
        return Fate::RolledBack;
    }
    let answer = client.query("COMMIT").await;
    assert_eq!(status(&answer), 'I', "{answer:?}");
    match errors(&answer).as_slice() {
        [] => {
            assert_eq!(tag(&answer), "COMMIT");
            Fate::Acknowledged
        }
        [code] if code == "08007" => Fate::Unknown,
        [code] if code == "40001" => Fate::RolledBack,
        other => panic!("a COMMIT ended with {other:?}: {answer:?}"),
    }
}

fn report(what: &str, writes: &[Write], promoted: Instant) {
    let acknowledged: Vec<Instant> =
        writes.iter().filter(|write| write.fate == Fate::Acknowledged).map(|write| write.answered).collect();
    let gap = acknowledged.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
    let after = acknowledged.iter().find(|at| **at > promoted).map(|at| *at - promoted);
    let count = |fate| writes.iter().filter(|write| write.fate == fate).count();
    println!(
        "{what}: gap {gap:?}, first answer {after:?} after the promotion, {} acknowledged, {} unknown, {} rolled back",
        acknowledged.len(),
        count(Fate::Unknown),
        count(Fate::RolledBack)
    );
}

#[derive(Debug, Clone, Copy)]
enum Fault {
    Kill9,
    Immediate,
    Frozen,
    Fast,
}

async fn strike(sandbox: &Sandbox, fault: Fault) {
    let primary = sandbox.primary();
    match fault {
        Fault::Kill9 => drop(primary.kill9().await.unwrap()),
        Fault::Immediate => primary.stop_immediate().await.unwrap(),
        Fault::Frozen => primary.sigstop().unwrap(),
        Fault::Fast => primary.stop_fast().await.unwrap(),
    }
}

async fn fails_over(fault: Fault) {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut writers = Vec::new();
    for (style, first) in
        [(Style::Simple, 1_000_000), (Style::Extended, 2_000_000), (Style::Transactions, 3_000_000)]
    {
        writers.push((style, Writer::start(&proxy, style, first).await));
    }
    for (_, writer) in &writers {
        writer.wait_for_more().await;
    }
    strike(&sandbox, fault).await;
    let (primary, promoted) = promote(&sandbox).await;
    for (_, writer) in &writers {
        writer.wait_for_more().await;
    }
    for (style, writer) in writers {
        let writes = writer.end().await;
        report(&format!("{fault:?}, {style:?}"), &writes, promoted);
        judge(&sandbox, primary, &writes).await;
        let failed = writes.iter().filter(|write| write.fate != Fate::Acknowledged).count();
        assert!(failed <= 1, "only what is in flight may fail, not {failed} statements");
    }
}

/// X02, X08.
#[tokio::test]
async fn a_killed_primary_costs_latency_and_no_write() {
    fails_over(Fault::Kill9).await;
}

/// X02, X08.
#[tokio::test]
async fn an_immediate_stop_costs_latency_and_no_write() {
    fails_over(Fault::Immediate).await;
}

/// X03, X08.
#[tokio::test]
async fn a_frozen_primary_costs_latency_and_no_write() {
    fails_over(Fault::Frozen).await;
}

/// X01, X08.
#[tokio::test]
async fn a_planned_switchover_costs_latency_and_no_write() {
    fails_over(Fault::Fast).await;
}

async fn epoch(proxy: &Running) -> u64 {
    proxy.topology().await["epoch"].as_u64().unwrap()
}

async fn role(proxy: &Running, node: usize) -> String {
    proxy.topology().await["nodes"][node]["role"].as_str().unwrap().to_owned()
}

async fn wait_epoch(proxy: &Running, wanted: u64) {
    eventually(&format!("epoch {wanted}"), async || epoch(proxy).await == wanted).await;
}

/// X04, X05: it accepts writes again, and gets none.
#[tokio::test]
async fn an_old_primary_that_returns_never_gets_a_write() {
    let sandbox = cluster(Sync::Async).await;
    let proxy = proxy(&sandbox, &[]).await;
    let writer = Writer::start(&proxy, Style::Simple, 1).await;
    let mut open = proxy.raw_logged_in().await;
    for statement in ["BEGIN", "INSERT INTO ledger VALUES (-1)"] {
        assert!(errors(&open.query(statement).await).is_empty());
    }
    writer.wait_for_more().await;
    sandbox.node(0).sigstop().unwrap();
    let (primary, _) = promote(&sandbox).await;
    wait_epoch(&proxy, 2).await;
    let taken_over = Instant::now();
    sandbox.node(0).sigcont().unwrap();
    assert_eq!(errors(&open.query("INSERT INTO ledger VALUES (-2)").await), ["40001"]);
    assert_eq!(status(&open.query("ROLLBACK").await), 'I');
    eventually("it is quarantined", async || role(&proxy, 0).await == "quarantined").await;
    writer.wait_for_more().await;
    // As it was, once more, by a restart.
    sandbox.node(0).stop_immediate().await.unwrap();
    sandbox.node(0).start().await.unwrap();
    eventually("it is quarantined again", async || role(&proxy, 0).await == "quarantined").await;
    writer.wait_for_more().await;
    let writes = writer.end().await;
    let (old, new) = (rows(&sandbox, 0).await, rows(&sandbox, primary).await);
    let late: Vec<_> = writes.iter().filter(|write| write.sent > taken_over).collect();
    assert!(late.len() >= 2 * SOME - 1);
    for write in late {
        assert_eq!((write.fate, new.get(&write.id)), (Fate::Acknowledged, Some(&1)), "{write:?}");
        assert!(!old.contains_key(&write.id), "{write:?} is on the old primary");
    }
    assert!(!old.contains_key(&-1) && !old.contains_key(&-2) && !new.contains_key(&-2));
    assert_eq!(epoch(&proxy).await, 2);
}

/// X04: the old primary answers all the time and would take every write; none is acknowledged there later than one probe
/// round after the promotion.
#[tokio::test]
async fn a_promotion_beside_a_living_primary_takes_all_writes_over() {
    let sandbox = cluster(Sync::Async).await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut writers = Vec::new();
    for number in 0..WRITERS {
        let style = Style::ALL[number % Style::ALL.len()];
        let first = 1_000_000 * i64::try_from(number + 1).unwrap();
        writers.push(Writer::start(&proxy, style, first).await);
    }
    for writer in &writers {
        writer.wait_for_more().await;
    }
    let promoted = sandbox.promote_wait(1).await.unwrap();
    wait_epoch(&proxy, 2).await;
    let taken_over = Instant::now();
    let mut writes = Vec::new();
    for writer in &writers {
        writer.wait_for_more().await;
    }
    for writer in writers {
        let told = writer.end().await;
        let failed = told.iter().filter(|write| write.fate != Fate::Acknowledged).count();
        assert!(failed <= 1, "only what is in flight may fail, not {failed} statements");
        writes.extend(told);
    }
    writes.sort_by_key(|write| write.answered);
    report("split brain", &writes, promoted);
    let (old, new) = (rows(&sandbox, 0).await, rows(&sandbox, 1).await);
    let late: Vec<_> = writes.iter().filter(|write| write.sent > taken_over).collect();
    assert!(late.len() >= WRITERS * (SOME - 1));
    for write in late {
        assert_eq!((write.fate, new.get(&write.id)), (Fate::Acknowledged, Some(&1)), "{write:?}");
        assert!(!old.contains_key(&write.id), "{write:?} is on the old primary");
    }
    let acknowledged = || writes.iter().filter(|write| write.fate == Fate::Acknowledged);
    for write in acknowledged() {
        assert!(old.contains_key(&write.id) || new.contains_key(&write.id), "{write:?} is nowhere");
    }
    let on_the_old = acknowledged().filter(|write| !new.contains_key(&write.id)).map(|write| write.answered);
    let last = on_the_old.max().map_or(Duration::ZERO, |at| at.saturating_duration_since(promoted));
    println!("seen after {:?}, the last write on the old primary after {last:?}", taken_over - promoted);
    assert!(last <= PROBE_INTERVAL + PROBE, "{last:?}");
    assert_eq!(role(&proxy, 0).await, "quarantined");
}

async fn wait_no_primary(proxy: &Running) {
    eventually("no primary is known", async || proxy.topology().await["primary"].is_null()).await;
}

async fn waiting(proxy: &Running, count: f64) {
    eventually(&format!("{count} statements wait"), async || {
        (proxy.metric("pgsteer_statements_waiting", &[]).await - count).abs() < 0.5
    })
    .await;
}

/// X12: the window's end, a cancel, and a client that goes.
#[tokio::test]
async fn a_held_statement_can_time_out_be_cancelled_and_be_left() {
    let sandbox = cluster(Sync::Any1).await;
    let short = Running::start(&sandbox, &["--auth", "trust", "--hold-timeout", "1s"]).await;
    let long = Running::start(&sandbox, &["--auth", "trust", "--hold-timeout", "10m"]).await;
    let mut timed = short.raw_logged_in().await;
    let cancelled = long.client().await;
    let mut leaving = long.raw_logged_in().await;
    sandbox.node(0).kill9().await.unwrap();
    wait_no_primary(&long).await;

    let asked = Instant::now();
    let answer = timed.query("INSERT INTO ledger VALUES (1)").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["57P03".to_owned()], 'I'), "{answer:?}");
    assert!(asked.elapsed() >= Duration::from_millis(950), "{:?}", asked.elapsed());
    assert_eq!(values(&timed.query("SELECT count(*) FROM ledger").await), ["0"]);

    let token = cancelled.cancel_token();
    let held = tokio::spawn(async move {
        let error = cancelled.batch_execute("INSERT INTO ledger VALUES (2)").await.unwrap_err();
        (cancelled, error)
    });
    waiting(&long, 1.0).await;
    token.cancel_query(NoTls).await.unwrap();
    let (cancelled, error) = in_time("the cancel", held).await.unwrap();
    assert_eq!(error.code().map(tokio_postgres::error::SqlState::code), Some("57014"), "{error:?}");
    waiting(&long, 0.0).await;

    leaving.send(&running::query("INSERT INTO ledger VALUES (3)")).await;
    waiting(&long, 1.0).await;
    drop(leaving);
    waiting(&long, 0.0).await;

    let (primary, _) = promote(&sandbox).await;
    cancelled.batch_execute("INSERT INTO ledger VALUES (4)").await.unwrap();
    wait_epoch(&short, 2).await;
    assert!(errors(&timed.query("INSERT INTO ledger VALUES (5)").await).is_empty());
    let mut there: Vec<i64> = rows(&sandbox, primary).await.into_keys().collect();
    there.sort_unstable();
    assert_eq!(there, [4, 5]);
}

/// X02, X14: the second failover goes to a node that was the primary before the first.
#[tokio::test]
async fn two_failovers_in_a_row_lose_nothing() {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let writer = Writer::start(&proxy, Style::Simple, 1).await;
    writer.wait_for_more().await;
    sandbox.node(0).kill9().await.unwrap();
    let (first, _) = promote(&sandbox).await;
    writer.wait_for_more().await;
    sandbox.reattach(0, first).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    writer.wait_for_more().await;
    sandbox.node(first).kill9().await.unwrap();
    let (second, promoted) = promote(&sandbox).await;
    writer.wait_for_more().await;
    let writes = writer.end().await;
    report("two in a row", &writes, promoted);
    judge(&sandbox, second, &writes).await;
    assert!(writes.iter().filter(|write| write.fate != Fate::Acknowledged).count() <= 2);
    assert_eq!(epoch(&proxy).await, 3);
}

/// X10.
#[tokio::test]
async fn a_pinned_session_ends_with_its_server_and_is_told_why() {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut pinned = proxy.raw_logged_in().await;
    assert!(errors(&pinned.query("CREATE TEMP TABLE mine (i int)").await).is_empty());
    // What pins it is asked for behind the answer, and before the next.
    assert!(errors(&pinned.query("SELECT 1").await).is_empty());
    sandbox.node(0).kill9().await.unwrap();
    let last = pinned.read_to_end().await;
    assert_eq!(errors(&last), ["57P01"], "{last:?}");
    assert_eq!(last[0].field(b'S').as_deref(), Some("FATAL"));
    let detail = last[0].field(b'D').unwrap();
    assert!(detail.contains("temp"), "{detail}");
}

/// X12, X17.
#[tokio::test]
async fn logins_during_an_outage_wait_and_succeed() {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    sandbox.node(0).kill9().await.unwrap();
    wait_no_primary(&proxy).await;
    let logins: Vec<_> = (0..50)
        .map(|id: i64| {
            let config = proxy.config();
            tokio::spawn(async move {
                let (client, connection) = config.connect(NoTls).await.unwrap();
                tokio::spawn(connection);
                client.batch_execute(&format!("INSERT INTO ledger VALUES ({id})")).await.unwrap();
            })
        })
        .collect();
    waiting(&proxy, 50.0).await;
    let (primary, _) = promote(&sandbox).await;
    for login in logins {
        in_time("a login", login).await.unwrap();
    }
    let rows = rows(&sandbox, primary).await;
    assert_eq!(rows.len(), 50);
    assert!(rows.values().all(|count| *count == 1));
}

/// X08, trap 13: one backend is ended by an administrator.
#[tokio::test]
async fn a_terminated_backend_is_no_failover() {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let writer = Writer::start(&proxy, Style::Simple, 1).await;
    let mut victim = proxy.raw_logged_in().await;
    victim.send(&running::query("INSERT INTO ledger SELECT -1 FROM pg_sleep(600)")).await;
    let primary = sandbox.connect(0).await.unwrap();
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE state = 'active' \
                     AND query LIKE 'INSERT INTO ledger SELECT%'";
    eventually("the victim runs", async || {
        primary.query_one(terminate, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    let answer = victim.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["08007".to_owned()], 'I'), "{answer:?}");
    assert!(errors(&victim.query("INSERT INTO ledger VALUES (-2)").await).is_empty());
    writer.wait_for_more().await;
    let writes = writer.end().await;
    assert!(writes.iter().all(|write| write.fate == Fate::Acknowledged), "{writes:?}");
    judge(&sandbox, 0, &writes).await;
    assert_eq!(epoch(&proxy).await, 1);
    assert_eq!(rows(&sandbox, 0).await.get(&-1), None);
}

/// X10: a session that only listens goes on listening on the new primary, and is told that it may have missed something.
#[tokio::test]
async fn a_listening_session_listens_on_the_new_primary() {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut listener = proxy.raw_logged_in().await;
    for sql in ["LISTEN one", "LISTEN \"Two \"\" quoted\"", "LISTEN three", "UNLISTEN three", "SELECT 1"] {
        assert!(errors(&listener.query(sql).await).is_empty(), "{sql}");
    }
    sandbox.primary().kill9().await.unwrap();
    let (primary, _) = promote(&sandbox).await;
    let notice = listener.read_until(b'N').await.pop().unwrap();
    assert_eq!(notice.sqlstate(), "01000");
    assert!(notice.field(b'M').unwrap().contains("listens on the new primary"), "{notice:?}");
    let notifier = sandbox.connect(primary).await.unwrap();
    for (channel, payload) in [("\"three\"", "c"), ("\"one\"", "a"), ("\"Two \"\" quoted\"", "b")] {
        notifier.batch_execute(&format!("NOTIFY {channel}, '{payload}'")).await.unwrap();
    }
    for payload in ["a", "b"] {
        let notification = listener.read_until(b'A').await.pop().unwrap();
        assert!(notification.body.ends_with(format!("{payload}\0").as_bytes()), "{notification:?}");
    }
    assert_eq!(values(&listener.query("SELECT 2").await), ["2"]);
}

/// P1: a 25006 that comes after something has been committed is no reason to run that again.
#[tokio::test]
async fn a_refusal_behind_a_commit_runs_nothing_again() {
    let sandbox = Sandbox::builder().auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--max-lag", "1m"]).await;
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE once (v text)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    // Connections to both standbys, which keep their last word on recovery over the promotion.
    for _ in 0..20 {
        let mut reader = proxy.raw_logged_in().await;
        assert_eq!(values(&reader.query("SELECT count(*) FROM once").await), ["0"]);
    }
    sandbox.primary().kill9().await.unwrap();
    let (primary, _) = promote(&sandbox).await;
    let several =
        "BEGIN; INSERT INTO once VALUES ('x'); COMMIT; BEGIN READ ONLY; INSERT INTO once VALUES ('no')";
    let answer = proxy.raw_logged_in().await.query(several).await;
    assert_eq!(errors(&answer), ["25006"], "{answer:?}");
    let direct = sandbox.connect(primary).await.unwrap();
    assert_eq!(direct.query_one("SELECT count(*) FROM once", &[]).await.unwrap().get::<_, i64>(0), 1);
}

/// X01: with a pause before it, a switchover costs nobody anything but time.
#[tokio::test]
async fn a_switchover_behind_a_pause_costs_no_client_an_error() {
    let sandbox = cluster(Sync::Any1).await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut writers = Vec::new();
    for number in 0..9 {
        let style = [Style::Simple, Style::Extended, Style::Transactions][number % 3];
        writers.push(Writer::start(&proxy, style, 1_000_000 * (1 + i64::try_from(number).unwrap())).await);
    }
    for writer in &writers {
        writer.wait_for_more().await;
    }
    assert_eq!(proxy.post("/pause").await.0, 200);
    eventually("nothing runs on the primary", async || {
        proxy.get("/pause").await.is_some_and(|(_, body)| body.contains("\"paused\""))
    })
    .await;
    strike(&sandbox, Fault::Fast).await;
    let (primary, _) = promote(&sandbox).await;
    for writer in &writers {
        writer.wait_for_more().await;
    }
    assert!(proxy.get("/pause").await.unwrap().1.contains("\"running\""), "it ends with the new epoch");
    let mut all = Vec::new();
    for writer in writers {
        all.extend(writer.end().await);
    }
    judge(&sandbox, primary, &all).await;
    let failed: Vec<&Write> = all.iter().filter(|write| write.fate != Fate::Acknowledged).collect();
    assert!(failed.is_empty(), "{failed:?}");
}
