//! An address that moves from the old primary to the new one, while the old one lives and believes that it is the primary: no statement
//! of the new epoch reaches it, whatever was opened to it before. P1, F02.
//!
//! For the proxy it is one node at one address, as behind a virtual IP; what has been opened to the old primary stays open there.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::relay::{Link, Relay};
use running::{RawClient, Running, eventually, in_time, no_errors, query, status, values};
use tokio_postgres::Client;

const OLD: usize = 0;
const NEW: usize = 1;
/// More than were ever idle at once: each of them is leased by some of these.
const WRITERS: usize = 6;

struct Setup {
    sandbox: Sandbox,
    relay: Relay,
    proxy: Running,
    /// One client of each node.
    direct: [Client; 2],
}

impl Setup {
    async fn start(environment: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
        let direct = [sandbox.connect(OLD).await.unwrap(), sandbox.connect(NEW).await.unwrap()];
        direct[OLD].batch_execute("CREATE TABLE ledger (id int)").await.unwrap();
        sandbox.wait_caught_up().await.unwrap();
        let relay = Relay::start(sandbox.node(OLD).address()).await;
        // All sessions share their connections.
        let args = ["--auth", "trust", "--shards", "1"];
        let proxy = Running::start_at(&[relay.address], &sandbox, &args, environment).await;
        Self { sandbox, relay, proxy, direct }
    }

    async fn epoch(&self) -> u64 {
        self.proxy.topology().await["epoch"].as_u64().unwrap()
    }

    async fn waits_for_epoch_2(&self) {
        eventually("the new primary is found", async || self.epoch().await == 2).await;
    }

    /// Several at a time write, each in a transaction, so that no two of them share a connection; all of it must be done by the new
    /// primary.
    async fn all_write_to_the_new_primary(&self) {
        let mut writers = Vec::new();
        for _ in 0..WRITERS {
            let mut writer = self.proxy.raw_logged_in().await;
            no_errors(&writer.query("BEGIN").await);
            writers.push(writer);
        }
        for writer in &mut writers {
            assert_eq!(insert(writer, 2).await, self.port(NEW));
        }
        for writer in &mut writers {
            no_errors(&writer.query("COMMIT").await);
        }
        assert_eq!(self.count(NEW, 2).await, WRITERS);
        assert_eq!(self.count(OLD, 2).await, 0);
        eventually("nothing is left at the old primary", async || self.sessions(OLD).await.is_empty()).await;
    }

    fn port(&self, node: usize) -> String {
        self.sandbox.node(node).port().to_string()
    }

    fn at(&self, node: usize) -> &Client {
        &self.direct[node]
    }

    /// Rows of this number on a node.
    async fn count(&self, node: usize, id: i32) -> usize {
        let sql = "SELECT count(*) FROM ledger WHERE id = $1";
        let row = self.at(node).query_one(sql, &[&id]).await.unwrap();
        usize::try_from(row.get::<_, i64>(0)).unwrap()
    }

    /// The proxy's sessions there that may run statements of clients.
    async fn sessions(&self, node: usize) -> Vec<i32> {
        let sql = "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND state = 'idle' \
                   AND application_name <> 'pgsteer_probe' AND pid <> pg_backend_pid()";
        self.at(node).query(sql, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }
}

fn insertion(id: i32) -> String {
    format!("INSERT INTO ledger VALUES ({id}) RETURNING inet_server_port()")
}

/// Writes a row; the port of the server that did.
async fn insert(client: &mut RawClient, id: i32) -> String {
    inserted(client.query(&insertion(id)).await)
}

fn inserted(answer: Vec<running::Message>) -> String {
    no_errors(&answer);
    assert_ne!(status(&answer), 'E');
    values(&answer).concat()
}

/// What becomes of those who wait while the old primary refuses connections.
#[derive(PartialEq)]
enum Held {
    /// They are answered when it does not any more.
    Stay,
    /// Nobody uses what is opened for them.
    Leave,
}

async fn what_was_opened_behind_a_refusal_is_fenced(held: Held) {
    let mut setup = Setup::start(&[]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(setup.proxy.raw_logged_in().await);
    }
    assert_eq!(insert(&mut clients[0], 1).await, setup.port(OLD));
    setup.relay.stop_listening().await;
    eventually("there is no primary", async || setup.proxy.topology().await["primary"].is_null()).await;
    for client in &mut clients {
        client.send(&query(&insertion(1))).await;
    }
    let waiting = async || setup.proxy.metric("pgsteer_statements_waiting", &[]).await;
    eventually("all are held", async || (waiting().await - 3.0).abs() < 0.5).await;
    if held == Held::Leave {
        clients.clear();
        eventually("nobody waits", async || waiting().await < 0.5).await;
    }
    setup.relay.listen_again().await;
    for client in &mut clients {
        let answer = in_time("a held statement", client.read_until(b'Z')).await;
        assert_eq!(inserted(answer), setup.port(OLD));
    }
    eventually("it is the primary again", async || !setup.proxy.topology().await["primary"].is_null()).await;
    assert_eq!(setup.epoch().await, 1, "it was the same all the time");
    setup.sandbox.wait_caught_up().await.unwrap();
    setup.sandbox.promote_wait(NEW).await.unwrap();
    let to_old = setup.relay.lead_to(setup.sandbox.node(NEW).address());
    to_old.send_replace(Link::Silent);
    setup.waits_for_epoch_2().await;
    to_old.send_replace(Link::Open);
    setup.all_write_to_the_new_primary().await;
    assert_eq!(setup.count(OLD, 1).await, if held == Held::Stay { 4 } else { 1 });
}

/// What statements that waited have been given, and left idle.
#[tokio::test]
async fn p1_what_was_opened_behind_a_refusal_is_fenced() {
    what_was_opened_behind_a_refusal_is_fenced(Held::Stay).await;
}

/// A refusal proves nothing of the server: what is opened behind it, ahead of those who wait, may lead to the same one, and is of the same
/// epoch.
#[tokio::test]
async fn p1_what_was_opened_ahead_behind_a_refusal_is_fenced() {
    what_was_opened_behind_a_refusal_is_fenced(Held::Leave).await;
}

/// Logins that were under way when the fence was run come to their end behind it: one that a statement waits for, and one that nobody
/// waits for, to keep a connection ready.
#[tokio::test]
async fn p1_a_login_that_ends_behind_the_fence_is_not_let_in() {
    let environment = [("PGSTEER_POOL_MIN_POOL_SIZE", "1"), ("PGSTEER_TOPOLOGY_CONNECT_TIMEOUT", "10m")];
    let setup = Setup::start(&environment).await;
    let mut client = setup.proxy.raw_logged_in().await;
    let ready = async || setup.proxy.metric("pgsteer_server_connections_idle", &[]).await;
    eventually("a connection is kept ready", async || ready().await > 0.5).await;
    // The old primary is well; whoever logs in there from now on hears nothing of it.
    let well = setup.relay.lead_to(setup.sandbox.node(OLD).address());
    setup.relay.set(Link::Mute);
    let before = setup.sessions(OLD).await;
    setup
        .at(OLD)
        .execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) pid", &[&before])
        .await
        .unwrap();
    let let_in = async |count: usize| {
        let sessions = setup.sessions(OLD).await;
        sessions.len() == count && !sessions.iter().any(|pid| before.contains(pid))
    };
    eventually("another one is being opened in its place", async || let_in(1).await).await;
    client.send(&query(&insertion(2))).await;
    eventually("the statement has its own login", async || let_in(2).await).await;
    setup.sandbox.promote_wait(NEW).await.unwrap();
    let hung = setup.relay.lead_to(setup.sandbox.node(NEW).address());
    well.send_replace(Link::Refused);
    setup.waits_for_epoch_2().await;
    let answer = in_time("the statement", client.read_until(b'Z')).await;
    assert_eq!(inserted(answer), setup.port(NEW));
    setup.at(NEW).batch_execute("DELETE FROM ledger").await.unwrap();
    hung.send_replace(Link::Open);
    setup.all_write_to_the_new_primary().await;
}
