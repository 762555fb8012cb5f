//! What a standby does to a READ ONLY transaction that has set something in its session by a function, at its COMMIT and behind it, when
//! pgsteer asks for the state of the session: the setting is kept, or the client is told. C06, P6.
//!
//! The conflicts hit moments that can't be met from outside, so a relay before the standby makes them: the server itself raises the error,
//! or the relay ends the connection in its words.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Message, RawClient, Running, errors, eventually, frame, no_errors, status, tag, values};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};

/// What is done to a Query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It is cancelled for the sake of replay.
    Cancelled,
    /// The same, and the session ends with it.
    Ended,
}

/// It happens to so many of the Queries that have this in their text.
#[derive(Debug, Clone, Copy)]
struct Plan {
    part: &'static str,
    fault: Fault,
    times: usize,
}

type Plans = Arc<Mutex<Option<Plan>>>;

/// A node to which the plan happens.
async fn relay(node: SocketAddr, plans: Plans) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (proxy, _) = listener.accept().await.unwrap();
            let node = TcpStream::connect(node).await.unwrap();
            let plans = Arc::clone(&plans);
            tokio::spawn(async move {
                let (from_proxy, mut to_proxy) = proxy.into_split();
                let (mut from_node, to_node) = node.into_split();
                let ended = tokio::select! {
                    ended = there(from_proxy, to_node, plans) => ended,
                    _ = tokio::io::copy(&mut from_node, &mut to_proxy) => Ok(None),
                };
                if let Ok(Some(error)) = ended {
                    // Whoever it is for may be gone.
                    let _ = to_proxy.write_all(&error).await;
                }
            });
        }
    });
    address
}

/// Message by message to the node; gives the error with which the connection ends, if it is to.
async fn there(
    mut proxy: OwnedReadHalf,
    mut node: OwnedWriteHalf,
    plans: Plans,
) -> std::io::Result<Option<Vec<u8>>> {
    let mut header = vec![0; 4];
    loop {
        proxy.read_exact(&mut header).await?;
        let length = *header.last_chunk::<4>().unwrap();
        let mut body = vec![0; u32::from_be_bytes(length) as usize - 4];
        proxy.read_exact(&mut body).await?;
        match due(&header, &body, &plans) {
            None => node.write_all(&[&header[..], &body].concat()).await?,
            Some(Fault::Cancelled) => node.write_all(&running::query(CANCELLED)).await?,
            Some(Fault::Ended) => {
                let text = "terminating connection due to conflict with recovery";
                let fields = format!("SFATAL\0VFATAL\0C40001\0M{text}\0\0");
                return Ok(Some(frame(b'E', fields.as_bytes())));
            }
        }
        // Behind the startup packet messages have a kind.
        header.resize(5, 0);
    }
}

fn due(header: &[u8], body: &[u8], plans: &Plans) -> Option<Fault> {
    let mut plan = plans.lock().unwrap();
    let it = plan.as_mut()?;
    let text = String::from_utf8_lossy(body);
    (header.first() == Some(&b'Q') && it.times > 0 && text.contains(it.part)).then(|| {
        it.times -= 1;
        it.fault
    })
}

const CANCELLED: &str = "DO $$BEGIN RAISE EXCEPTION USING ERRCODE = '40001'; END$$";

/// pgsteer's own questions, by words of theirs.
const FUNCTIONS: &str = "prosrc";
const STATE: &str = "pg_my_temp_schema";

struct Cluster {
    sandbox: Sandbox,
    standby: SocketAddr,
    plans: Plans,
}

impl Cluster {
    /// One standby behind the relay; `set_tenant` sets what it is given, and so does reading the view `vt`, which gives `9`.
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
        let primary = sandbox.connect(0).await.unwrap();
        for sql in [
            "CREATE FUNCTION set_tenant(t text) RETURNS text LANGUAGE plpgsql AS \
             $$BEGIN PERFORM set_config('app.tenant', t, false); RETURN t; END$$",
            "CREATE VIEW vt AS SELECT set_tenant('9') AS v",
            "CREATE TABLE c AS SELECT generate_series(1, 400) AS id",
        ] {
            primary.batch_execute(sql).await.unwrap();
        }
        sandbox.wait_caught_up().await.unwrap();
        let plans = Plans::default();
        let standby = relay(sandbox.node(1).address(), Arc::clone(&plans)).await;
        Self { sandbox, standby, plans }
    }

    /// A pgsteer that knows nothing of the database yet.
    async fn proxy(&self) -> Running {
        self.plan(None);
        let nodes = [self.sandbox.node(0).address(), self.standby];
        let environment =
            [("PGSTEER_ROUTING_CONSISTENCY", "eventual"), ("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
        let args = ["--auth", "trust", "--max-lag", "10min"];
        let proxy = Running::start_at(&nodes, &self.sandbox, &args, &environment).await;
        eventually("the standby may be read", async || {
            proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
        })
        .await;
        proxy
    }

    fn plan(&self, plan: Option<Plan>) {
        *self.plans.lock().unwrap() = plan;
    }

    fn is_done(&self) -> bool {
        self.plans.lock().unwrap().is_none_or(|plan| plan.times == 0)
    }
}

/// A READ ONLY transaction on the standby up to its end.
async fn reads(proxy: &Running, statements: &[&str]) -> RawClient {
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.query("BEGIN READ ONLY").await);
    assert_eq!(values(&client.query("SELECT count(*) FROM c").await), ["400"]);
    assert_eq!(values(&client.query("SELECT pg_is_in_recovery()").await), ["t"]);
    for statement in statements {
        no_errors(&client.query(statement).await);
    }
    client
}

async fn commits(client: &mut RawClient) {
    let answer = client.query("COMMIT").await;
    assert_eq!((tag(&answer), status(&answer)), ("COMMIT".to_owned(), 'I'), "{answer:?}");
}

async fn tenant(client: &mut RawClient) -> String {
    let answer = client.query("SELECT coalesce(current_setting('app.tenant', true), '')").await;
    no_errors(&answer);
    values(&answer).concat()
}

/// pgsteer has looked at the catalogue.
async fn know_catalogue(proxy: &Running) {
    let mut client = proxy.raw_logged_in().await;
    no_errors(&client.query("SELECT 1").await);
    no_errors(&client.query("SELECT 2").await);
}

fn detail(answer: &[Message]) -> String {
    answer.iter().find(|message| message.kind == b'E').and_then(|it| it.field(b'D')).unwrap_or_default()
}

/// An error of the question alone leaves the session's state where it is.
#[tokio::test]
async fn a_question_that_is_cancelled_is_asked_again() {
    let cluster = Cluster::start().await;
    for (nth, part) in [STATE, FUNCTIONS].into_iter().enumerate() {
        let proxy = cluster.proxy().await;
        if part == STATE {
            know_catalogue(&proxy).await;
        }
        let value = format!("tenant-{nth}");
        let mut client = reads(&proxy, &[&format!("SELECT set_tenant('{value}')")]).await;
        cluster.plan(Some(Plan { part, fault: Fault::Cancelled, times: 5 }));
        commits(&mut client).await;
        assert_eq!(tenant(&mut client).await, value, "{part}");
        assert!(cluster.is_done(), "{part}: it was not asked");
    }
}

/// Without an answer the state is lost with the standby's connection, as the session does not stay there: it does not go on without.
#[tokio::test]
async fn a_session_whose_state_cannot_be_asked_for_ends() {
    let cluster = Cluster::start().await;
    let proxy = cluster.proxy().await;
    // What is asked first, for the names that the question for the state has, is asked once for all sessions.
    for (fault, part, words) in [
        (Fault::Cancelled, FUNCTIONS, "cancelled every question"),
        (Fault::Cancelled, STATE, "cancelled every question"),
        (Fault::Ended, STATE, "ended its connection for the sake of its replay"),
    ] {
        let mut client = reads(&proxy, &["SELECT set_tenant('7')"]).await;
        cluster.plan(Some(Plan { part, fault, times: 1000 }));
        let answer = client.query("COMMIT").await;
        assert_eq!(tag(&answer), "COMMIT", "{answer:?}");
        let end = client.read_to_end().await;
        assert_eq!(errors(&end), ["57P01"], "{fault:?}: {end:?}");
        assert!(detail(&end).contains(words), "{end:?}");
        cluster.plan(None);
    }
    // What the text shows is known without its server.
    for fault in [Fault::Cancelled, Fault::Ended] {
        let mut client = proxy.raw_logged_in().await;
        let part = "current_setting('app.tenant', true)";
        cluster.plan(Some(Plan { part, fault, times: 1000 }));
        no_errors(&client.query("SET app.tenant = 'shown'").await);
        cluster.plan(None);
        assert_eq!(tenant(&mut client).await, "shown", "{fault:?}");
    }
    assert!(!proxy.log().contains("is suspected"), "its node was doubted");
}

/// While the catalogue is not known, what a view may have set is looked up before a COMMIT is answered in the standby's stead.
#[tokio::test]
async fn a_commit_is_answered_only_where_no_setting_is_lost() {
    let cluster = Cluster::start().await;
    for fault in [Fault::Cancelled, Fault::Ended] {
        let proxy = cluster.proxy().await;
        let mut client = reads(&proxy, &["SELECT v FROM vt"]).await;
        cluster.plan(Some(Plan { part: "COMMIT", fault, times: 1 }));
        let answer = client.query("COMMIT").await;
        let code = if fault == Fault::Cancelled { "40001" } else { "08007" };
        assert_eq!((errors(&answer), status(&answer)), (vec![code.to_owned()], 'I'), "{fault:?}: {answer:?}");
        assert!(cluster.is_done());
        assert_eq!(tenant(&mut client).await, "");
        no_errors(&client.query("SELECT 1").await);
    }
    // The same behind the COMMIT.
    let proxy = cluster.proxy().await;
    let mut client = reads(&proxy, &["SELECT v FROM vt"]).await;
    cluster.plan(Some(Plan { part: STATE, fault: Fault::Ended, times: 1 }));
    let answer = client.query("COMMIT").await;
    assert_eq!(tag(&answer), "COMMIT", "{answer:?}");
    let end = client.read_to_end().await;
    assert_eq!(errors(&end), ["57P01"], "{end:?}");
}

/// Where nothing can have set anything, the end of what only read goes on succeeding.
#[tokio::test]
async fn a_commit_is_answered_where_the_catalogue_says_that_nothing_was_set() {
    let cluster = Cluster::start().await;
    let primary = cluster.sandbox.connect(0).await.unwrap();
    primary.batch_execute("DROP VIEW vt").await.unwrap();
    cluster.sandbox.wait_caught_up().await.unwrap();
    for (fault, part) in [(Fault::Cancelled, "COMMIT"), (Fault::Ended, "COMMIT"), (Fault::Ended, STATE)] {
        let proxy = cluster.proxy().await;
        let mut client = reads(&proxy, &["SELECT id FROM c"]).await;
        cluster.plan(Some(Plan { part, fault, times: 1 }));
        commits(&mut client).await;
        no_errors(&client.query("SELECT 1").await);
        assert!(cluster.is_done(), "{fault:?} {part}");
    }
}
