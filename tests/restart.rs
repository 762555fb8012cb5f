//! A primary that starts anew: the first statement finds a connection that was opened beside the first probe, and only one whose own
//! server told that it is the one which the probe saw.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, eventually, in_time, query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What the probe asks, and what a connection that is opened ahead is asked; each alone.
const PROBE: &[u8] = b"AS in_recovery";
const WHICH_SERVER: &[u8] = b"OPERATOR(pg_catalog.*)";

/// What the log tells of a connection that was opened ahead.
const ADMITTED: &str = "leads to the primary";
const ELSEWHERE: &str = "leads to another server";

const DEBUG: [(&str, &str); 1] = [("PGSTEER_LOG_LEVEL", "debug")];

/// To whom the address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leads {
    /// Everybody there.
    To(SocketAddr),
    /// To nobody: connections are closed at once, and those that are there, too.
    Nowhere,
    /// It moves from the one to the other: probes are there already, the next connection of a session is not yet.
    Between(SocketAddr, SocketAddr),
}

/// An address that moves.
struct Moving {
    address: SocketAddr,
    leads: watch::Sender<Leads>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Where connections of sessions went while it was on its way.
    sessions: Mutex<Vec<SocketAddr>>,
    /// Connections of sessions that have been told which server is there.
    told: watch::Sender<usize>,
    count: AtomicUsize,
}

impl Moving {
    async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (leads, shared) = (watch::Sender::new(Leads::To(server)), Arc::<Shared>::default());
        let (seen, kept) = (leads.subscribe(), Arc::clone(&shared));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                tokio::spawn(carry(client, seen.clone(), Arc::clone(&kept)));
            }
        });
        Self { address, leads, shared }
    }
}

fn has(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

async fn carry(mut client: TcpStream, mut leads: watch::Receiver<Leads>, shared: Arc<Shared>) {
    let (mut sent, mut said) = (vec![0; 65_536], vec![0; 65_536]);
    let Ok(count @ 1..) = client.read(&mut sent).await else { return };
    let is_probe = has(&sent[..count], b"pgsteer_probe");
    let now = *leads.borrow_and_update();
    let server = match now {
        Leads::Nowhere => return,
        Leads::To(server) => server,
        Leads::Between(_, new) if is_probe => new,
        Leads::Between(old, new) => {
            let server = if shared.count.fetch_add(1, Ordering::SeqCst) == 0 { old } else { new };
            shared.sessions.lock().unwrap().push(server);
            server
        }
    };
    let mut server = TcpStream::connect(server).await.unwrap();
    server.write_all(&sent[..count]).await.unwrap();
    let (mut is_asked, mut told) = (false, shared.told.subscribe());
    loop {
        tokio::select! {
            () = async { drop(leads.wait_for(|leads| *leads == Leads::Nowhere).await) } => return,
            read = client.read(&mut sent) => {
                let Ok(count @ 1..) = read else { return };
                if is_probe && matches!(now, Leads::Between(..)) && has(&sent[..count], PROBE) {
                    // The first answer is later than what is opened beside it.
                    drop(told.wait_for(|told| *told > 0).await.unwrap());
                }
                is_asked |= has(&sent[..count], WHICH_SERVER);
                if server.write_all(&sent[..count]).await.is_err() { return }
            }
            read = server.read(&mut said) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&said[..count]).await.is_err() { return }
                if std::mem::take(&mut is_asked) {
                    shared.told.send_modify(|told| *told += 1);
                }
            }
        }
    }
}

async fn rows(sandbox: &Sandbox, node: usize) -> i64 {
    let direct = sandbox.connect(node).await.unwrap();
    direct.query_one("SELECT count(*) FROM t", &[]).await.unwrap().get(0)
}

async fn wait_held(proxy: &Running) {
    eventually("it is held", async || proxy.metric("pgsteer_statements_waiting", &[]).await > 0.5).await;
}

/// One primary and one standby, of which pgsteer knows only the address that leads to the primary now.
async fn start() -> (Sandbox, Moving, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    sandbox.connect(0).await.unwrap().batch_execute("CREATE TABLE t (i int)").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let address = Moving::start(sandbox.node(0).address()).await;
    let args = ["--auth", "trust", "--shards", "1"];
    let proxy = Running::start_at(&[address.address], &sandbox, &args, &DEBUG).await;
    (sandbox, address, proxy)
}

async fn epoch(proxy: &Running) -> u64 {
    proxy.topology().await["epoch"].as_u64().unwrap()
}

/// P1: the address moves to the promoted standby while the old primary lives. A connection that reaches the old one all the same is not
/// used in the new epoch, however well it was opened.
#[tokio::test]
async fn a_connection_that_leads_to_another_server_than_the_probe_is_not_used() {
    let (sandbox, address, proxy) = start().await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    sandbox.wait_caught_up().await.unwrap();
    address.leads.send_replace(Leads::Nowhere);
    eventually("the primary is lost", async || proxy.topology().await["primary"].is_null()).await;
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_held(&proxy).await;
    sandbox.promote_wait(1).await.unwrap();
    let (old, new) = (sandbox.node(0).address(), sandbox.node(1).address());
    address.leads.send_replace(Leads::Between(old, new));
    let answer = in_time("the held write", client.read_until(b'Z')).await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!(epoch(&proxy).await, 2);
    assert_eq!((rows(&sandbox, 0).await, rows(&sandbox, 1).await), (1, 2), "{}", proxy.log());
    assert_eq!(address.shared.sessions.lock().unwrap()[..2], [old, new], "{}", proxy.log());
    assert!(proxy.log().contains(ELSEWHERE) && !proxy.log().contains(ADMITTED), "{}", proxy.log());
}

/// The same address, the same server after all: it was only out of reach, and the epoch goes on.
#[tokio::test]
async fn a_connection_to_the_same_server_is_used_in_the_same_epoch() {
    let (sandbox, address, proxy) = start().await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    address.leads.send_replace(Leads::Nowhere);
    eventually("the primary is lost", async || proxy.topology().await["primary"].is_null()).await;
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_held(&proxy).await;
    let server = sandbox.node(0).address();
    address.leads.send_replace(Leads::Between(server, server));
    let answer = in_time("the held write", client.read_until(b'Z')).await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!((epoch(&proxy).await, rows(&sandbox, 0).await), (1, 2));
    assert!(proxy.log().contains(ADMITTED), "{}", proxy.log());
    assert_eq!(address.shared.sessions.lock().unwrap()[..], [server], "{}", proxy.log());
}

/// A crash, a start: what is opened beside the first probe is of the new epoch, and the fence leaves it alone.
#[tokio::test]
async fn behind_a_restart_the_first_statement_needs_no_login_of_its_own() {
    let (sandbox, address, proxy) = start().await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    let server = sandbox.node(0).address();
    address.leads.send_replace(Leads::Nowhere);
    sandbox.node(0).kill9().await.unwrap();
    eventually("the primary is lost", async || proxy.topology().await["primary"].is_null()).await;
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_held(&proxy).await;
    sandbox.node(0).start().await.unwrap();
    address.leads.send_replace(Leads::Between(server, server));
    let answer = in_time("the held write", client.read_until(b'Z')).await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!((epoch(&proxy).await, rows(&sandbox, 0).await), (2, 2));
    assert!(proxy.log().contains(ADMITTED), "{}", proxy.log());
    assert_eq!(address.shared.sessions.lock().unwrap()[..], [server], "{}", proxy.log());
}

/// In recovery it has no incarnation: what answers there is not the primary.
#[tokio::test]
async fn a_server_in_recovery_is_nobody_to_wait_for() {
    let (sandbox, address, proxy) = start().await;
    let mut client = proxy.raw_logged_in().await;
    assert_eq!(errors(&client.query("INSERT INTO t VALUES (1)").await), [""; 0]);
    address.leads.send_replace(Leads::Nowhere);
    eventually("the primary is lost", async || proxy.topology().await["primary"].is_null()).await;
    client.send(&query("INSERT INTO t VALUES (2)")).await;
    wait_held(&proxy).await;
    let standby = sandbox.node(1).address();
    address.leads.send_replace(Leads::Between(standby, standby));
    eventually("it is asked", async || *address.shared.told.borrow() > 0).await;
    eventually("a standby is seen", async || proxy.topology().await["nodes"][0]["role"] == "standby").await;
    sandbox.promote_wait(1).await.unwrap();
    let answer = in_time("the held write", client.read_until(b'Z')).await;
    assert_eq!(errors(&answer), [""; 0], "{answer:?}");
    assert_eq!((epoch(&proxy).await, rows(&sandbox, 1).await), (2, 2));
    assert!(!proxy.log().contains(ADMITTED), "{}", proxy.log());
}
