//! One run: cluster, proxy, clients, outage, result.
//!
//! Invariant: everything it starts ends with it, whether it returns or is dropped. It must not know how results are shown.

use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio_postgres::{Client, Config, NoTls};

use super::clients::{Clients, DATABASE, LEDGER, Record};
use super::failover::{self, DIRECT_TABLE, Outage, Witness};
use super::ledger::{Found, check};
use super::measure::pause;
use super::nodes::{Observer, settle};
use super::proxy::Proxy;
use super::report::{Report, Share};
use super::screen::Screen;
use super::status::{Event, Topology, Totals, news};
use super::table::Picture;
use super::{DemoArgs, Error, admin_page};
use crate::sandbox::{Node, Sandbox, Sync};

/// How often pgsteer is asked for its view of the cluster.
const GLANCE_EVERY: Duration = Duration::from_millis(100);

/// Every so many glances it is asked for its counters as well, and the nodes for theirs.
const GLANCES_PER_LOOK: u32 = 5;

/// An event is on the screen only when it is so old that nothing earlier can still come to light.
const SETTLED: Duration = Duration::from_millis(20);

/// How long the clients go on after writes have resumed.
const AFTERMATH: Duration = Duration::from_secs(3);

/// How long writes may take to come back once PostgreSQL takes them.
const RESUME: Duration = Duration::from_secs(20);

/// A cluster with pgsteer in front of it.
pub(super) struct Stage {
    // Ends before the cluster does.
    pub(super) proxy: Proxy,
    pub(super) sandbox: Sandbox,
}

impl Stage {
    /// Sets up the cluster, its tables and the proxy.
    pub(super) async fn set(args: &DemoArgs, screen: &Screen) -> Result<Self, Error> {
        let (sync, words) = if args.asynchronous {
            (Sync::Async, "asynchronous")
        } else {
            (Sync::Any1, "synchronous (ANY 1)")
        };
        screen.event(&format!("starting a primary and two standbys, {words}"));
        let sandbox = Sandbox::builder().sync(sync).hot_standby_feedback(true).fsync(false).start().await?;
        let client = sandbox.primary().connect().await?;
        let make = || Error::sql("make the demonstration's tables");
        client.batch_execute(&format!("CREATE DATABASE {DATABASE}")).await.map_err(make())?;
        client.batch_execute(DIRECT_TABLE).await.map_err(make())?;
        let ledger = connect(&sandbox, sandbox.primary().address().port()).await?;
        ledger.batch_execute(LEDGER).await.map_err(make())?;
        sandbox.wait_caught_up().await?;
        // pgsteer's events come to light later than they happen.
        screen.hold();
        let proxy = Proxy::start(&sandbox).await?;
        let major = sandbox.binaries().major();
        screen.event(&format!("PostgreSQL {major} runs; pgsteer takes clients on {}", proxy.listen));
        Ok(Self { proxy, sandbox })
    }

    /// The outage under load, and what came of it.
    pub(super) async fn play(&mut self, args: &DemoArgs, screen: &Screen) -> Result<Report, Error> {
        let endpoint = endpoint(&self.sandbox, self.proxy.listen.port())?;
        let mut clients = Clients::start(&endpoint, args.writers, args.readers)?;
        screen.event(&format!("{} writer(s) and {} reader(s) at work", args.writers, args.readers));
        let mut view = View::new(self, screen);
        let outage = tokio::select! {
            outage = self.break_down(args, &clients, screen) => outage?,
            never = view.watch(&clients) => match never {},
        };
        let stuck = clients.stop().await;
        if stuck > 0 {
            screen.event(&format!("{stuck} client(s) got no answer to the last statement"));
        }
        view.finish(&clients).await;
        let Picture { totals, statements, .. } = view.picture;
        self.proxy.check()?;
        let (writes, reads) = clients.records();
        let mut report = self.judge(&outage, writes, &reads, totals).await?;
        report.dropped += stuck as u64;
        let share = |(node, served): (&Node, _)| Share {
            name: node.name().to_owned(),
            served,
            killed: !node.is_running(),
        };
        report.nodes = self.sandbox.nodes().iter().zip(statements).map(share).collect();
        Ok(report)
    }

    async fn break_down(&self, args: &DemoArgs, clients: &Clients, screen: &Screen) -> Result<Outage, Error> {
        let witnesses = Witness::all(&self.sandbox).await?;
        tokio::time::sleep(Duration::from_secs(args.seconds)).await;
        let outage = failover::cause(&self.sandbox, &witnesses, screen).await?;
        let resumed = async {
            loop {
                if let Some(first) = clients.first_write_after(outage.ordered) {
                    return first;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let first = tokio::time::timeout(RESUME, resumed)
            .await
            .map_err(|_| self.proxy.timed_out("a write through pgsteer succeeded", RESUME))?;
        let after = first.saturating_duration_since(outage.killed).as_millis();
        screen.event_at(first, &format!("writes through pgsteer resumed {after} ms after the kill"));
        tokio::time::sleep(AFTERMATH).await;
        Ok(outage)
    }

    async fn judge(
        &self,
        outage: &Outage,
        writes: Record,
        reads: &Record,
        totals: Totals,
    ) -> Result<Report, Error> {
        let table = ledger(&self.sandbox, outage.primary).await?;
        let gap = pause(&writes.successes, outage.ordered)
            .ok_or_else(|| self.proxy.timed_out("a write succeeded before the kill", Duration::ZERO))?;
        let since = |moment: Instant| moment.saturating_duration_since(outage.killed);
        let in_outage = reads.successes.iter().filter(|&&at| at > outage.killed && at < gap.first).count();
        Ok(Report {
            pause: gap.length(),
            promotion: since(outage.promoted),
            choice: since(outage.ordered),
            direct: since(outage.direct),
            resumed: since(gap.first),
            verdict: check(&writes.journals, &table),
            dropped: writes.dropped + reads.dropped,
            write_errors: writes.errors,
            read_errors: reads.errors.clone(),
            reads: reads.successes.len() as u64,
            reads_in_outage: in_outage as u64,
            reads_went_back: reads.went_back,
            reads_on_standbys: totals.reads_on_standbys,
            reads_on_primary: totals.reads_on_primary,
            reads_prepared: reads.prepared,
            held: totals.held,
            retried: totals.retried,
            nodes: Vec::new(),
        })
    }

    /// Ends the proxy in good order, and then the cluster.
    pub(super) async fn clear(self) {
        self.proxy.stop().await;
    }
}

/// How a client reaches a port as superuser, in the clients' database.
fn endpoint(sandbox: &Sandbox, port: u16) -> Result<Config, Error> {
    let mut config = Config::from_str(&format!("host=127.0.0.1 port={port} dbname={DATABASE}"))
        .map_err(Error::sql("describe the endpoint"))?;
    config.user(sandbox.user()).password(sandbox.password()).application_name("pgsteer demo");
    config.connect_timeout(Duration::from_secs(5));
    Ok(config)
}

async fn connect(sandbox: &Sandbox, port: u16) -> Result<Client, Error> {
    let endpoint = endpoint(sandbox, port)?;
    let (client, connection) = endpoint.connect(NoTls).await.map_err(Error::sql("connect to the primary"))?;
    tokio::spawn(connection);
    Ok(client)
}

/// Every row of the ledger on a node, with how often it is there.
async fn ledger(sandbox: &Sandbox, node: usize) -> Result<Vec<Found>, Error> {
    let read = || Error::sql("read the ledger on the new primary");
    let client = connect(sandbox, sandbox.node(node).port()).await?;
    let sql = "SELECT writer, seq, count(*) FROM demo_ledger GROUP BY writer, seq";
    let rows = client.query(sql, &[]).await.map_err(read())?;
    rows.iter()
        .map(|row| Ok(Found { writer: row.try_get(0)?, seq: row.try_get(1)?, count: row.try_get(2)? }))
        .collect::<Result<_, _>>()
        .map_err(read())
}

/// Looks at the cluster now and then, and shows it.
struct View<'a> {
    sandbox: &'a Sandbox,
    admin: std::net::SocketAddr,
    screen: &'a Screen,
    observers: Vec<Observer>,
    events: Vec<Event>,
    looked: Instant,
    picture: Picture,
}

impl<'a> View<'a> {
    fn new(stage: &'a Stage, screen: &'a Screen) -> Self {
        Self {
            sandbox: &stage.sandbox,
            admin: stage.proxy.admin,
            screen,
            observers: stage.sandbox.nodes().iter().map(|_| Observer::default()).collect(),
            events: Vec::new(),
            looked: Instant::now(),
            picture: Picture::default(),
        }
    }

    async fn watch(&mut self, clients: &Clients) -> std::convert::Infallible {
        let mut ticks = tokio::time::interval(GLANCE_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            for _ in 0..GLANCES_PER_LOOK {
                ticks.tick().await;
                self.glance(clients).await;
            }
            self.count().await;
        }
    }

    /// The last look, when the clients have left. The table that it leaves stays.
    async fn finish(&mut self, clients: &Clients) {
        self.glance(clients).await;
        self.count().await;
        self.screen.flow();
        // What pgsteer makes of the connections that end here is no part of the demonstration.
        self.picture.statements = settle(&mut self.observers, self.sandbox.nodes()).await;
        self.show();
        self.screen.keep_table();
    }

    /// The cluster as pgsteer sees it. A page that is missing leaves what was there before.
    async fn glance(&mut self, clients: &Clients) {
        let asked = Instant::now();
        if let Ok(page) = admin_page::get(self.admin, "/topology").await
            && let Ok(topology) = Topology::parse(&page)
        {
            // The page was made some time between question and answer.
            self.tell(topology.events, asked + asked.elapsed() / 2);
            self.picture.nodes = topology.nodes;
        }
        (self.picture.writes, self.picture.reads) = clients.progress();
        self.screen.release(asked.checked_sub(SETTLED).unwrap_or(asked));
        self.show();
    }

    fn show(&self) {
        self.screen.state(|columns| self.picture.table(columns), || self.picture.line());
    }

    /// What pgsteer has counted, and the nodes.
    async fn count(&mut self) {
        if let Ok(page) = admin_page::get(self.admin, "/metrics").await {
            self.picture.totals = Totals::parse(&page);
        }
        let mut statements = Vec::new();
        for (node, observer) in self.sandbox.nodes().iter().zip(&mut self.observers) {
            statements.push(observer.look(node).await);
        }
        self.picture.statements = statements;
    }

    fn tell(&mut self, events: Vec<Event>, made: Instant) {
        let passed = made.saturating_duration_since(self.looked);
        let passed = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        for event in news(&self.events, &events, passed) {
            let at = made.checked_sub(Duration::from_millis(event.age_ms)).unwrap_or(made);
            self.screen.event_at(at, &format!("pgsteer: {}", event.text));
        }
        if !events.is_empty() {
            self.events = events;
            self.looked = made;
        }
    }
}
