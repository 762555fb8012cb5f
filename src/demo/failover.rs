//! The outage: the primary is killed, the most advanced standby promoted, the other one made to follow it.
//!
//! Beside it a client that knows the new primary tries to write there all the time. When it first succeeds is what
//! PostgreSQL itself needs, and so the measure for what a proxy adds.
//! Invariant: every connection it measures with was opened before. It must not know the proxy.

use std::time::{Duration, Instant};

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Statement};

use super::Error;
use super::screen::Screen;
use crate::sandbox::Sandbox;

/// The table of the direct client, in the superuser's database.
pub(super) const DIRECT_TABLE: &str = "CREATE TABLE demo_direct (at timestamptz NOT NULL)";

/// Between two looks at the promoted node.
const STEP: Duration = Duration::from_millis(1);

/// How long PostgreSQL may take to be writable again.
const LIMIT: Duration = Duration::from_secs(30);

/// The moments of an outage.
#[derive(Debug, Clone, Copy)]
pub(super) struct Outage {
    /// The primary was killed.
    pub(super) killed: Instant,
    /// A standby was chosen, and told to promote itself.
    pub(super) ordered: Instant,
    /// The promoted node was first seen out of recovery.
    pub(super) promoted: Instant,
    /// The direct client's first write was acknowledged.
    pub(super) direct: Instant,
    /// The new primary.
    pub(super) primary: usize,
}

/// The connections to one standby.
pub(super) struct Witness {
    node: usize,
    watcher: Client,
    recovering: Statement,
    writer: Client,
    insert: Statement,
}

impl Witness {
    /// Connects to every standby.
    pub(super) async fn all(sandbox: &Sandbox) -> Result<Vec<Self>, Error> {
        let mut all = Vec::new();
        for node in sandbox.nodes().iter().filter(|node| node.upstream().is_some()) {
            let (watcher, writer) = (node.connect().await?, node.connect().await?);
            let prepare = Error::sql("prepare the measurement on a standby");
            let recovering = watcher.prepare("SELECT pg_is_in_recovery()").await.map_err(prepare)?;
            let prepare = Error::sql("prepare the direct client's insert on a standby");
            let insert = writer.prepare("INSERT INTO demo_direct VALUES (now())").await.map_err(prepare)?;
            all.push(Self { node: node.index(), watcher, recovering, writer, insert });
        }
        Ok(all)
    }

    /// When the node was first seen out of recovery.
    async fn promoted(&self) -> Result<Instant, Error> {
        loop {
            let row = self.watcher.query_one(&self.recovering, &[]).await;
            let row = row.map_err(Error::sql("watch the promotion"))?;
            if !row.try_get::<_, bool>(0).map_err(Error::sql("watch the promotion"))? {
                return Ok(Instant::now());
            }
            tokio::time::sleep(STEP).await;
        }
    }

    /// When a write was first acknowledged.
    async fn written(&self) -> Result<Instant, Error> {
        loop {
            match self.writer.execute(&self.insert, &[]).await {
                Ok(_) => return Ok(Instant::now()),
                Err(error) if error.code() == Some(&SqlState::READ_ONLY_SQL_TRANSACTION) => {}
                Err(source) => return Err(Error::Sql { what: "write directly to the new primary", source }),
            }
            tokio::time::sleep(STEP).await;
        }
    }
}

/// Causes the outage and ends it; returns when PostgreSQL can be written again.
pub(super) async fn cause(
    sandbox: &Sandbox,
    witnesses: &[Witness],
    screen: &Screen,
) -> Result<Outage, Error> {
    let old = sandbox.primary();
    screen.event(&format!("killing {} (primary) with -9", old.name()));
    let killed = old.kill9().await?;
    let primary = sandbox.most_advanced_standby().await?;
    let ordered = Instant::now();
    sandbox.promote(primary)?;
    screen.event(&format!("promoting {} (received most WAL)", sandbox.node(primary).name()));
    let Some(witness) = witnesses.iter().find(|witness| witness.node == primary) else {
        return Err(crate::sandbox::Error::NoStandby.into());
    };
    let others = witnesses.iter().map(|witness| witness.node).filter(|&node| node != primary);
    let follow = async {
        for node in others {
            sandbox.follow(node, primary).await?;
            let names = (sandbox.node(node).name(), sandbox.node(primary).name());
            screen.event(&format!("{} is told to follow {}", names.0, names.1));
        }
        Ok(())
    };
    let promoted = async {
        let promoted = witness.promoted().await?;
        screen.event_at(promoted, &format!("{} is out of recovery", sandbox.node(primary).name()));
        Ok::<_, Error>(promoted)
    };
    let direct = async {
        let direct = witness.written().await?;
        screen.event_at(direct, "a direct client's commit succeeds on the new primary");
        Ok(direct)
    };
    let all = async { tokio::try_join!(follow, promoted, direct) };
    let ((), promoted, direct) = tokio::time::timeout(LIMIT, all).await.unwrap_or_else(|_| {
        Err(crate::sandbox::Error::TimedOut { what: "the new primary took a write".to_owned(), after: LIMIT }
            .into())
    })?;
    Ok(Outage { killed, ordered, promoted, direct, primary })
}
