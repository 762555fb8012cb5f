//! Reads that are lost on a standby which was promoted while pgsteer heard nothing of it: what may have written there is not run there
//! again, what was begun in recovery is. P1, P5, F19.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::relay::{Cut, Direction, Link, Manner, Relay};
use running::{
    Message, RawClient, Running, errors, eventually, in_time, no_errors, query, status, values, wait_readable,
};
use tokio::sync::watch;
use tokio_postgres::Client;

/// It writes, whatever it is declared as.
const BUMPED: &str = "CREATE TABLE ledger (id int); \
    CREATE FUNCTION bump() RETURNS int LANGUAGE plpgsql AS $$BEGIN INSERT INTO ledger VALUES (1); RETURN 1; END$$; \
    CREATE FUNCTION bumped() RETURNS int LANGUAGE plpgsql STABLE AS $$BEGIN RETURN bump(); END$$";

struct Setup {
    sandbox: Sandbox,
    relay: Relay,
    proxy: Running,
    client: RawClient,
    standby: Client,
    /// The link of the standby's probes, on which nothing comes through.
    probes: watch::Sender<Link>,
}

impl Setup {
    /// A primary that has gone, and a standby of which nothing is heard, but where clients' statements come through.
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
        sandbox.connect(0).await.unwrap().batch_execute(BUMPED).await.unwrap();
        sandbox.wait_caught_up().await.unwrap();
        let relay = Relay::start(sandbox.node(1).address()).await;
        // What the standby has said last is believed for as long as the test may take.
        let environment = [
            ("PGSTEER_TOPOLOGY_PROBE_TIMEOUT", "10m"),
            ("PGSTEER_TOPOLOGY_CLAIM_TTL", "10m"),
            ("PGSTEER_TOPOLOGY_PROMOTION_WATCH", "off"),
            ("PGSTEER_HOLD_TIMEOUT", "10m"),
        ];
        let nodes = [sandbox.node(0).address(), relay.address];
        let args = ["--auth", "trust", "--shards", "1", "--max-lag", "10m"];
        let proxy = Running::start_at(&nodes, &sandbox, &args, &environment).await;
        wait_readable(&proxy, &sandbox).await;
        // Probes have their connection; clients come by another link.
        let probes = relay.lead_to(sandbox.node(1).address());
        let mut client = proxy.raw_logged_in().await;
        let on_standby =
            async || proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
        eventually("the function is known to be STABLE", async || {
            let before = on_standby().await;
            no_errors(&client.query("SELECT bumped() WHERE false").await);
            on_standby().await > before
        })
        .await;
        probes.send_replace(Link::Silent);
        sandbox.node(0).kill9().await.unwrap();
        eventually("there is no primary", async || proxy.topology().await["primary"].is_null()).await;
        let standby = sandbox.connect(1).await.unwrap();
        Self { sandbox, relay, proxy, client, standby, probes }
    }

    /// Sends a read, of which the standby completes the answer, and has the connection cut before anything of it comes through.
    async fn lose(&mut self, sql: &str) {
        let cut = Cut { direction: Direction::FromNode, after_bytes: 0, manner: Manner::Reset };
        let sent = query(sql);
        in_time("the loss", async { tokio::join!(self.relay.cut(cut), self.client.send(&sent)) }).await;
    }

    /// The standby is heard again; what the client is told.
    async fn hears_again(&mut self) -> Vec<Message> {
        self.probes.send_replace(Link::Open);
        in_time("the answer", self.client.read_until(b'Z')).await
    }

    async fn rows(&self) -> i64 {
        self.standby.query_one("SELECT count(*) FROM ledger", &[]).await.unwrap().get(0)
    }

    async fn run_again(&self) -> f64 {
        self.proxy.metric("pgsteer_retries_total", &[("cause", "server_lost")]).await
    }
}

#[tokio::test]
async fn p1_what_may_have_written_behind_a_promotion_is_not_run_there_again() {
    let mut setup = Setup::start().await;
    setup.sandbox.promote_wait(1).await.unwrap();
    assert_eq!(setup.proxy.topology().await["epoch"], 1, "it is taken for a standby");
    setup.lose("SELECT bumped()").await;
    assert_eq!(setup.rows().await, 1, "it has written");
    let answer = setup.hears_again().await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["08007".to_owned()], 'I'), "{answer:?}");
    assert_eq!(setup.rows().await, 1, "once");
    assert_eq!(setup.proxy.topology().await["epoch"], 2);
    assert_eq!(values(&setup.client.query("INSERT INTO ledger VALUES (2) RETURNING id").await), ["2"]);
}

#[tokio::test]
async fn p5_what_was_begun_in_recovery_is_run_again_where_it_was_lost() {
    let mut setup = Setup::start().await;
    setup.lose("SELECT count(*) || ' rows' FROM ledger").await;
    let answer = setup.hears_again().await;
    no_errors(&answer);
    assert_eq!((values(&answer), status(&answer)), (vec!["0 rows".to_owned()], 'I'));
    assert!((setup.run_again().await - 1.0).abs() < 0.5);
    assert_eq!(setup.proxy.topology().await["epoch"], 1);
}
