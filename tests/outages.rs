//! What becomes of a statement, a batch and a row whose server goes in the middle, and of a start and a failover beside
//! an address that never answers. The hazards' numbers stand at each test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox, Sync};
use running::{
    Running, bind, errors, eventually, execute, flush, frame, in_time, kinds, no_errors, parse, promote,
    query, status, sync, values, wait_blocked,
};
use socket2::{Domain, Socket, Type};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A read by its text, and a write by what it calls. It waits for a lock that a test may hold.
const HIDDEN_WRITE: &str = "CREATE FUNCTION note() RETURNS bigint LANGUAGE plpgsql AS \
    $$BEGIN INSERT INTO ledger VALUES (1); PERFORM pg_advisory_xact_lock(7); RETURN 1; END$$; \
    CREATE VIEW noted AS SELECT note() AS id";

async fn cluster() -> Sandbox {
    let sandbox = Sandbox::builder().sync(Sync::Any1).auth(Auth::Trust).start().await.unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE ledger (id bigint)").await.unwrap();
    primary.batch_execute(HIDDEN_WRITE).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

/// A proxy with a lag budget that no loaded machine exceeds, whose standbys may be read.
async fn proxy(sandbox: &Sandbox, environment: &[(&str, &str)]) -> Running {
    let proxy = Running::start_with(sandbox, &["--auth", "trust", "--max-lag", "1m"], environment).await;
    eventually("both standbys may be read", async || {
        let topology = proxy.topology().await;
        [1, 2].iter().all(|&node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
    proxy
}

async fn ledger(sandbox: &Sandbox, node: usize) -> Vec<i64> {
    let client = sandbox.connect(node).await.unwrap();
    let rows = client.query("SELECT id FROM ledger ORDER BY id", &[]).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

/// F19, C11: a standby refuses what the text does not show, and the primary does it once.
#[tokio::test]
async fn a_write_behind_a_view_is_done_once_by_the_primary() {
    let sandbox = cluster().await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(values(&client.query("SELECT id FROM noted").await), ["1"]);
    assert!((proxy.metric("pgsteer_retries_total", &[("cause", "refused")]).await - 1.0).abs() < 0.5);
    assert!(proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await >= 1.0);
    assert_eq!(ledger(&sandbox, 0).await, [1]);
}

/// The lock is nobody's on the new primary: a second run there would succeed.
async fn is_not_run_again(sql: &str) {
    let sandbox = cluster().await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    let holder = sandbox.connect(0).await.unwrap();
    holder.batch_execute("SELECT pg_advisory_lock(7)").await.unwrap();
    client.send(&query(sql)).await;
    wait_blocked(&sandbox, 0, sql, "advisory").await;
    sandbox.node(0).kill9().await.unwrap();
    let (primary, _) = promote(&sandbox).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["08007".to_owned()], 'I'), "{answer:?}");
    no_errors(&client.query("INSERT INTO ledger VALUES (2)").await);
    assert_eq!(ledger(&sandbox, primary).await, [2]);
}

/// F19, C11, X08, trap 3.
#[tokio::test]
async fn a_write_behind_a_view_that_a_standby_refused_is_not_run_again() {
    is_not_run_again("SELECT id FROM noted").await;
}

/// F19, X08, trap 3.
#[tokio::test]
async fn a_write_behind_a_view_that_was_lost_on_the_primary_is_not_run_again() {
    is_not_run_again("/* pgsteer: target=primary */ SELECT id FROM noted").await;
}

fn run_and_flush(sql: &str) -> Vec<u8> {
    [parse("", sql), bind("", "", &[]), execute(""), flush()].concat()
}

/// What was begun, then a batch of which each part is answered, then the primary's end, then the last part.
struct Parts {
    begun: &'static [&'static str],
    batch: &'static [&'static str],
    last: Vec<u8>,
    error: &'static str,
    status: char,
    rows: &'static [i64],
}

async fn is_told(parts: Parts) {
    let sandbox = cluster().await;
    let proxy = proxy(&sandbox, &[]).await;
    let mut client = proxy.raw_logged_in().await;
    for sql in parts.begun {
        no_errors(&client.query(sql).await);
    }
    for sql in parts.batch {
        client.send(&run_and_flush(sql)).await;
        assert_eq!(kinds(&client.read_until(b'C').await), "12C", "{sql}");
    }
    sandbox.node(0).kill9().await.unwrap();
    client.send(&parts.last).await;
    let answer = client.read_until(b'Z').await;
    assert_eq!(
        (errors(&answer), status(&answer)),
        (vec![parts.error.to_owned()], parts.status),
        "{answer:?}"
    );
    let (primary, _) = promote(&sandbox).await;
    if parts.status == 'E' {
        assert_eq!(errors(&client.query("INSERT INTO ledger VALUES (8)").await), ["25P02"]);
        assert_eq!(status(&client.query("ROLLBACK").await), 'I');
    }
    no_errors(&client.query("INSERT INTO ledger VALUES (9)").await);
    assert_eq!(ledger(&sandbox, primary).await, parts.rows);
}

/// X08, P01: the Sync would have committed it.
#[tokio::test]
async fn a_write_in_parts_without_a_transaction_has_an_unknown_outcome() {
    is_told(Parts {
        begun: &[],
        batch: &["INSERT INTO ledger VALUES (3)"],
        last: sync(),
        error: "08007",
        status: 'I',
        rows: &[9],
    })
    .await;
}

/// X08, P01: that the last part only reads says nothing of the first.
#[tokio::test]
async fn a_read_behind_a_write_in_parts_has_an_unknown_outcome() {
    let read = [parse("", "SELECT count(*) FROM ledger"), bind("", "", &[]), execute(""), sync()];
    is_told(Parts {
        begun: &[],
        batch: &["INSERT INTO ledger VALUES (3)"],
        last: read.concat(),
        error: "08007",
        status: 'I',
        rows: &[9],
    })
    .await;
}

/// X08, P01.
#[tokio::test]
async fn a_write_in_parts_in_a_transaction_is_rolled_back() {
    is_told(Parts {
        begun: &["BEGIN", "INSERT INTO ledger VALUES (3)"],
        batch: &["INSERT INTO ledger VALUES (4)"],
        last: sync(),
        error: "40001",
        status: 'E',
        rows: &[9],
    })
    .await;
}

/// X08, P01: what a standby has of an acknowledged commit is there.
#[tokio::test]
async fn a_commit_in_parts_has_an_unknown_outcome() {
    is_told(Parts {
        begun: &["BEGIN", "INSERT INTO ledger VALUES (3)"],
        batch: &["INSERT INTO ledger VALUES (4)", "COMMIT"],
        last: sync(),
        error: "08007",
        status: 'I',
        rows: &[3, 4, 9],
    })
    .await;
}

async fn is_cut_off_inside_a_row(hint: &str, node: usize) {
    const LARGE: usize = 100_000_000;
    let sandbox = cluster().await;
    // The loss is to end it, not the client's slowness.
    let proxy = proxy(&sandbox, &[("PGSTEER_RETRY_STANDBY_STALL_TIMEOUT", "1h")]).await;
    if node != 0 {
        for other in (1..3).filter(|&other| other != node) {
            sandbox.node(other).stop_fast().await.unwrap();
            eventually("only one standby may be read", async || {
                !proxy.topology().await["nodes"][other]["staleness_ms"].is_u64()
            })
            .await;
        }
    }
    let mut client = proxy.raw_logged_in().await;
    let sql = format!("{hint}SELECT repeat('x', {LARGE})");
    client.send(&query(&sql)).await;
    assert_eq!(client.read().await.kind, b'T');
    assert_eq!(client.read_byte().await, b'D');
    wait_blocked(&sandbox, node, &sql, "ClientWrite").await;
    let direct = sandbox.connect(node).await.unwrap();
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE query = $1";
    assert_eq!(direct.query_one(terminate, &[&sql]).await.unwrap().get::<_, i64>(0), 1);
    let mut rest = Vec::new();
    // A connection that is reset has ended as well.
    let _ = in_time("the end", client.stream.read_to_end(&mut rest)).await;
    // Lengths of the message, number of columns, length of the value.
    let (head, value) = rest.split_at(10);
    assert_eq!(head[..4], u32::try_from(LARGE + 10).unwrap().to_be_bytes());
    assert!(value.len() > 64 * 1024 && value.len() < LARGE, "{}", value.len());
    assert!(value.iter().all(|byte| *byte == b'x'), "something stands inside the row");
    assert_eq!(values(&proxy.raw_logged_in().await.query("SELECT 1").await), ["1"]);
}

/// P07, X08: nothing can be said inside a message.
#[tokio::test]
async fn a_row_whose_primary_is_lost_gets_nothing_else_inside() {
    is_cut_off_inside_a_row("/* pgsteer: target=primary */ ", 0).await;
}

/// P07, C06.
#[tokio::test]
async fn a_row_whose_standby_is_lost_gets_nothing_else_inside() {
    is_cut_off_inside_a_row("", 1).await;
}

/// An address where every connection is made and nothing is ever said, by the kernel alone.
fn silent_address() -> (SocketAddr, Socket) {
    let socket = listener((Ipv4Addr::LOCALHOST, 0).into(), 1024);
    (socket.local_addr().unwrap().as_socket().unwrap(), socket)
}

/// Makes an address one that drops every packet that would open a connection: its queue is full. Keep what it gives.
async fn dropping(address: SocketAddr) -> (SocketAddr, Socket, Vec<TcpStream>) {
    let socket = listener(address, 0);
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queue = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(500), TcpStream::connect(address)).await
    {
        queue.push(connected.unwrap());
        assert!(queue.len() < 10, "the queue has no end");
    }
    (address, socket, queue)
}

fn listener(address: SocketAddr, backlog: i32) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_reuse_address(true).unwrap();
    socket.bind(&address.into()).unwrap();
    socket.listen(backlog).unwrap();
    socket
}

/// Below every time-out of the proxies in these tests by far, above what a loaded machine needs.
const PROMPT: Duration = Duration::from_secs(15);
/// Any wait for an address that does not answer would last so long.
const PATIENT: [(&str, &str); 2] =
    [("PGSTEER_TOPOLOGY_CONNECT_TIMEOUT", "50s"), ("PGSTEER_TOPOLOGY_PROBE_TIMEOUT", "50s")];

/// A write, the primary's end, and a write while there is none.
async fn fails_over_promptly(proxy: &Running, sandbox: &Sandbox, address_drops: bool) {
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.query("INSERT INTO ledger VALUES (1)").await);
    let old = sandbox.node(0);
    old.kill9().await.unwrap();
    let _hole = if address_drops { Some(dropping(old.address()).await) } else { None };
    client.send(&query("INSERT INTO ledger VALUES (2)")).await;
    let (primary, _) = promote(sandbox).await;
    let promoted = Instant::now();
    no_errors(&client.read_until(b'Z').await);
    let took = promoted.elapsed();
    println!("a write was done {took:?} after the promotion");
    assert!(took < PROMPT, "{took:?}");
    assert_eq!(ledger(sandbox, primary).await, [1, 2]);
}

/// X04, M18, trap 12.
#[tokio::test]
async fn addresses_that_never_answer_delay_neither_start_nor_failover() {
    let sandbox = cluster().await;
    let (silent, _open) = silent_address();
    let (drops, _full, _queue) = dropping((Ipv4Addr::LOCALHOST, 0).into()).await;
    let mut nodes = vec![silent, drops];
    nodes.extend(sandbox.nodes().iter().map(pgsteer::sandbox::Node::address));
    let started = Instant::now();
    let proxy = Running::start_at(&nodes, &sandbox, &["--auth", "trust"], &PATIENT).await;
    let took = started.elapsed();
    println!("ready after {took:?}");
    assert!(took < PROMPT, "{took:?}");
    fails_over_promptly(&proxy, &sandbox, false).await;
}

/// X04, M18, trap 12: as when the machine is gone, not only the server.
#[tokio::test]
async fn a_lost_primary_whose_address_drops_everything_delays_no_failover() {
    let sandbox = cluster().await;
    let proxy = Running::start_with(&sandbox, &["--auth", "trust"], &PATIENT).await;
    fails_over_promptly(&proxy, &sandbox, true).await;
}

/// What a gate lets through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Passes {
    All,
    /// New connections are ended as by an administrator in the middle of their login.
    NoLogin,
    /// The answer that has this in it up to its ReadyForQuery; there the connection ends.
    UpToReady(&'static str),
}

/// A server in front of a server.
struct Gate {
    address: SocketAddr,
    passes: Arc<Mutex<Passes>>,
}

impl Gate {
    async fn before(node: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let passes = Arc::new(Mutex::new(Passes::All));
        let shared = Arc::clone(&passes);
        tokio::spawn(async move {
            loop {
                let (from, _) = listener.accept().await.unwrap();
                // An end that comes sooner than expected is as good as any.
                tokio::spawn(carry(from, node, Arc::clone(&shared)));
            }
        });
        Self { address, passes }
    }

    fn set(&self, passes: Passes) {
        *self.passes.lock().unwrap() = passes;
    }
}

async fn carry(mut from: TcpStream, node: SocketAddr, passes: Arc<Mutex<Passes>>) -> std::io::Result<()> {
    if *passes.lock().unwrap() == Passes::NoLogin {
        let mut startup = vec![0; from.read_u32().await? as usize - 4];
        from.read_exact(&mut startup).await?;
        let fatal = b"SFATAL\0VFATAL\0C57P01\0Mterminating connection due to administrator command\0\0";
        return from.write_all(&frame(b'E', fatal)).await;
    }
    let to = TcpStream::connect(node).await?;
    let (mut from_proxy, mut to_proxy) = from.into_split();
    let (mut from_node, mut to_node) = to.into_split();
    let back = async move {
        let mut bytes = vec![0; 64 * 1024];
        loop {
            let count = from_node.read(&mut bytes).await?;
            let last = passed(&bytes[..count], &passes);
            to_proxy.write_all(&bytes[..last.unwrap_or(count)]).await?;
            if last.is_some() || count == 0 {
                return Ok(());
            }
        }
    };
    tokio::select! {
        ended = tokio::io::copy(&mut from_proxy, &mut to_node) => ended.map(|_| ()),
        ended = back => ended,
    }
}

/// How much of these bytes passes, if the connection is to end behind that. Small answers come in one piece.
fn passed(bytes: &[u8], passes: &Mutex<Passes>) -> Option<usize> {
    let mut passes = passes.lock().unwrap();
    let Passes::UpToReady(text) = *passes else { return None };
    bytes.windows(text.len()).find(|part| *part == text.as_bytes())?;
    *passes = Passes::All;
    bytes.windows(5).position(|part| part == b"Z\0\0\0\x05")
}

async fn behind_a_gate() -> (Sandbox, Gate, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let table = "CREATE TABLE ledger (id bigint UNIQUE DEFERRABLE INITIALLY DEFERRED)";
    sandbox.connect(0).await.unwrap().batch_execute(table).await.unwrap();
    let gate = Gate::before(sandbox.node(0).address()).await;
    let proxy = Running::start_at(&[gate.address], &sandbox, &["--auth", "trust"], &[]).await;
    (sandbox, gate, proxy)
}

/// X08, M16: a server that ends all its clients ends those that are logging in, too. Nothing of theirs has run.
#[tokio::test]
async fn a_server_that_ends_a_login_costs_the_client_nothing() {
    let (_sandbox, gate, proxy) = behind_a_gate().await;
    let mut client = proxy.raw_logged_in().await;
    gate.set(Passes::NoLogin);
    client.send(&query("SELECT 1")).await;
    eventually("it waits", async || proxy.metric("pgsteer_statements_waiting", &[]).await > 0.5).await;
    gate.set(Passes::All);
    let answer = client.read_until(b'Z').await;
    no_errors(&answer);
    assert_eq!(values(&answer), ["1"]);
}

/// A unit whose answer lacks its ReadyForQuery.
struct Endless {
    /// A transaction block with this in it is open.
    block: Option<String>,
    unit: Vec<u8>,
    /// What is in the last message that comes.
    behind: &'static str,
    /// What the client gets, and where its transaction stands.
    answered: (&'static str, char),
    /// What is there then.
    rows: &'static [i64],
}

/// X08: what the client has been told is what happened, whatever becomes of the server before its ReadyForQuery.
#[tokio::test]
async fn an_answer_that_lacks_only_its_end_is_no_loss() {
    let (sandbox, gate, proxy) = behind_a_gate().await;
    let mut client = proxy.raw_logged_in().await;
    let insert =
        [parse("", "INSERT INTO ledger VALUES (2)"), bind("", "", &[]), execute(""), sync()].concat();
    let commit = [parse("", "COMMIT"), bind("", "", &[]), execute(""), sync()].concat();
    let row = |id: i64| format!("INSERT INTO ledger VALUES ({id})");
    let of = |block, unit, behind, answered, rows| Endless { block, unit, behind, answered, rows };
    let cases = [
        of(None, query(&row(1)), "INSERT 0 1", ("CZ", 'I'), &[1][..]),
        of(None, query("SELECT 1/0"), "22012", ("EZ", 'I'), &[1]),
        // In the extended protocol only the Sync commits.
        of(None, insert, "INSERT 0 1", ("12CEZ", 'I'), &[1, 2]),
        of(None, query(&format!("BEGIN; {}", row(3))), "INSERT 0 1", ("CCEZ", 'I'), &[1, 2]),
        of(Some(row(4)), query("COMMIT"), "COMMIT", ("CZ", 'I'), &[1, 2, 4]),
        of(Some(row(5)), commit, "COMMIT", ("12CZ", 'I'), &[1, 2, 4, 5]),
        of(Some(row(5)), query("COMMIT"), "23505", ("EZ", 'I'), &[1, 2, 4, 5]),
        of(Some(row(6)), query("SELECT 1/0"), "22012", ("EZ", 'E'), &[1, 2, 4, 5]),
        of(Some(row(7)), query("SELECT 'of its own'"), "of its own", ("TDCEZ", 'E'), &[1, 2, 4, 5]),
    ];
    for Endless { block, unit, behind, answered, rows } in cases {
        if let Some(sql) = block {
            no_errors(&client.query("BEGIN").await);
            no_errors(&client.query(&sql).await);
        }
        gate.set(Passes::UpToReady(behind));
        client.send(&unit).await;
        let answer = client.read_until(b'Z').await;
        assert_eq!((kinds(&answer).as_str(), status(&answer)), answered, "{behind}: {answer:?}");
        if answered.1 == 'E' {
            assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
            no_errors(&client.query("ROLLBACK").await);
        }
        assert_eq!(ledger(&sandbox, 0).await, rows, "{behind}");
    }
    let unknown = proxy.metric("pgsteer_errors_total", &[("sqlstate", "08007")]).await;
    assert!((unknown - 2.0).abs() < 0.5, "{unknown}");
}

/// Passes everything on until the server has completed a SET, once: what is sent to it after that ends the connection.
async fn ends_behind_a_set(node: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let armed = Arc::new(AtomicBool::new(true));
    tokio::spawn(async move {
        while let Ok((proxy, _)) = listener.accept().await {
            let armed = Arc::clone(&armed);
            tokio::spawn(async move {
                let server = TcpStream::connect(node).await.unwrap();
                let ((mut from_proxy, mut to_proxy), (mut from_server, mut to_server)) =
                    (proxy.into_split(), server.into_split());
                let is_over = Arc::new(AtomicBool::new(false));
                let seen = Arc::clone(&is_over);
                let back = async move {
                    let mut chunk = vec![0; 8192];
                    while let Ok(count @ 1..) = from_server.read(&mut chunk).await {
                        let has_set = chunk[..count].windows(9).any(|part| part == b"C\0\0\0\x08SET\0");
                        if has_set && armed.swap(false, Ordering::SeqCst) {
                            seen.store(true, Ordering::SeqCst);
                        }
                        if to_proxy.write_all(&chunk[..count]).await.is_err() {
                            break;
                        }
                    }
                };
                let forth = async move {
                    let mut chunk = vec![0; 8192];
                    while let Ok(count @ 1..) = from_proxy.read(&mut chunk).await {
                        if is_over.load(Ordering::SeqCst)
                            || to_server.write_all(&chunk[..count]).await.is_err()
                        {
                            break;
                        }
                    }
                };
                tokio::select! { () = back => {}, () = forth => {} }
            });
        }
    });
    address
}

/// Pools send a SET when they take a connection out: its server may be lost while pgsteer asks what became of it.
#[tokio::test]
async fn a_set_whose_server_is_lost_behind_its_answer_is_known_by_its_text() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    for (sql, is_known) in [("SET work_mem = '15MB'", true), ("SET search_path = a, b", false)] {
        let relay = ends_behind_a_set(sandbox.node(0).address()).await;
        let proxy = Running::start_at(&[relay], &sandbox, &["--auth", "trust"], &[]).await;
        let mut client = proxy.raw_logged_in().await;
        no_errors(&client.query(sql).await);
        if is_known {
            assert_eq!(values(&client.query("SHOW work_mem").await), ["15MB"]);
        } else {
            client.try_send(&query("SHOW work_mem")).await;
            assert_eq!(errors(&client.read_to_end().await), ["57P01"]);
        }
    }
}
