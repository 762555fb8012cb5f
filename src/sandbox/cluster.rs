//! A primary and its standbys, and what concerns more than one of them: promotion, following, reattaching.
//!
//! It must not decide anything by itself: it is the hand of a test or a demo, which plays the cluster manager.

use std::collections::HashSet;
use std::net::{Ipv4Addr, TcpListener};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

use super::builder::Settings;
use super::node::{Node, SUPERUSER, Upstream, name_of};
use super::site::{Site, finish};
use super::{Binaries, Builder, Error, configuration};

/// Below the ports the kernel hands out for outgoing connections, so that none of those gets in the way.
const PORTS: std::ops::Range<u16> = 20_000..30_000;

/// How often a port may be snatched away between the choice and the server's start.
const PORT_ATTEMPTS: usize = 5;

/// How long a standby may take to tell its position, before it does not count.
const POSITION_BOUND: Duration = Duration::from_secs(1);

/// A cluster of real servers on this machine. It ends with this value: no process and no file stays behind.
#[derive(Debug)]
pub struct Sandbox {
    // Before `site`: the servers end before their directory goes.
    nodes: Vec<Node>,
    primary: AtomicUsize,
    site: Arc<Site>,
}

/// How a node was brought back into the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reattached {
    /// `pg_rewind` took back what the new primary does not know.
    Rewound,
    /// All data was copied anew.
    Copied,
}

impl Sandbox {
    /// Describes a cluster of one primary and two asynchronous standbys, to be changed as needed.
    pub fn builder() -> Builder {
        Builder::default()
    }

    pub(super) async fn start(settings: Settings) -> Result<Self, Error> {
        let site = Arc::new(Site::open(settings)?);
        initialise(&site).await?;
        let primary = launch_somewhere(Arc::clone(&site), 0, None).await?;
        let mut launches = JoinSet::new();
        for index in 1..=site.settings.standbys {
            primary.ensure_slot(&name_of(index)).await?;
            launches.spawn(launch_somewhere(Arc::clone(&site), index, Some(primary.as_upstream())));
        }
        let mut nodes = vec![primary];
        for standby in launches.join_all().await {
            nodes.push(standby?);
        }
        nodes.sort_by_key(Node::index);
        let sandbox = Self { nodes, primary: AtomicUsize::new(0), site };
        sandbox.wait_streaming().await?;
        Ok(sandbox)
    }

    /// All nodes; the first primary is the first.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// One node.
    ///
    /// # Panics
    /// There is no such node.
    #[must_use]
    pub fn node(&self, index: usize) -> &Node {
        &self.nodes[index]
    }

    /// The node promoted last, or the first primary. It need not be running.
    #[must_use]
    pub fn primary(&self) -> &Node {
        &self.nodes[self.primary.load(Ordering::Acquire)]
    }

    /// The superuser's name.
    #[must_use]
    pub fn user(&self) -> &'static str {
        SUPERUSER
    }

    /// The superuser's password.
    #[must_use]
    pub fn password(&self) -> &str {
        &self.site.password
    }

    /// The directory that holds everything, the Unix sockets and logs too.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.site.directory
    }

    /// The server binaries in use.
    #[must_use]
    pub fn binaries(&self) -> &Binaries {
        &self.site.binaries
    }

    /// Connects to one node as superuser.
    ///
    /// # Errors
    /// The server does not accept connections.
    pub async fn connect(&self, index: usize) -> Result<Client, Error> {
        self.node(index).connect().await
    }

    /// How a driver reaches a node over TCP as superuser, in libpq's form.
    #[must_use]
    pub fn conninfo(&self, index: usize) -> String {
        self.node(index).conninfo()
    }

    /// Has a standby promoted and returns at once. The old primary is left as it is: end it before, or have split
    /// brain. With [`super::Sync::Any1`] commits wait until another node follows.
    ///
    /// # Errors
    /// The node does not run.
    pub fn promote(&self, index: usize) -> Result<(), Error> {
        self.node(index).promote()?;
        self.primary.store(index, Ordering::Release);
        Ok(())
    }

    /// Promotes and gives the moment at which the node was first seen out of recovery, to about a millisecond.
    ///
    /// # Errors
    /// The node does not run or answer, or does not leave recovery in time.
    pub async fn promote_wait(&self, index: usize) -> Result<Instant, Error> {
        let client = self.connect(index).await?;
        self.promote(index)?;
        self.node(index).until_true(&client, "SELECT NOT pg_is_in_recovery()", "promotion has ended").await?;
        Ok(Instant::now())
    }

    /// Points a standby to another primary, while it runs; it gets a slot there. Returns after the reload.
    ///
    /// # Errors
    /// One of the nodes does not run or answer.
    pub async fn follow(&self, index: usize, primary: usize) -> Result<(), Error> {
        let (node, primary) = (self.node(index), self.node(primary));
        primary.ensure_slot(node.name()).await?;
        node.configure(Some(primary.as_upstream()))?;
        node.reload()
    }

    /// Brings a node back as a standby of `primary`, whatever it was and did: ends it, takes back by `pg_rewind` what
    /// the primary does not know, or if that fails copies everything anew. Returns when it answers.
    ///
    /// # Errors
    /// The primary does not answer, or the node does not come up.
    pub async fn reattach(&self, index: usize, primary: usize) -> Result<Reattached, Error> {
        let (node, primary) = (self.node(index), self.node(primary));
        node.end().await?;
        // Until its first checkpoint the new primary's control file shows the old timeline, which misleads pg_rewind.
        let client = primary.connect().await?;
        primary.execute(&client, "CHECKPOINT").await?;
        primary.ensure_slot(node.name()).await?;
        let how = match node.rewind(primary).await {
            Ok(()) => Reattached::Rewound,
            Err(_) => {
                node.base_backup(primary).await?;
                Reattached::Copied
            }
        };
        node.configure(Some(primary.as_upstream()))?;
        node.mark_as_standby()?;
        node.start().await?;
        node.drop_idle_slots().await?;
        Ok(how)
    }

    /// The running standby that has received most, the one to promote. Frozen ones don't count.
    ///
    /// # Errors
    /// No standby answers.
    pub async fn most_advanced_standby(&self) -> Result<usize, Error> {
        let mut best: Option<(PgLsn, usize)> = None;
        for node in self.standbys() {
            let position = tokio::time::timeout(POSITION_BOUND, received(node)).await;
            if let Ok(Ok(Some(lsn))) = position
                && best.is_none_or(|(most, _)| lsn > most)
            {
                best = Some((lsn, node.index()));
            }
        }
        best.map(|(_, index)| index).ok_or(Error::NoStandby)
    }

    /// Waits until every running standby of the primary has replayed what the primary has flushed by now.
    ///
    /// # Errors
    /// A node does not answer, or a standby does not catch up in time.
    pub async fn wait_caught_up(&self) -> Result<(), Error> {
        let primary = self.primary();
        let client = primary.connect().await?;
        let row = client
            .query_one("SELECT pg_current_wal_flush_lsn()", &[])
            .await
            .map_err(|source| primary.sql("tell its position", source))?;
        let target: PgLsn = row.get(0);
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{target}'");
        for standby in self.standbys().filter(|it| it.upstream() == Some(primary.index())) {
            let client = standby.connect().await?;
            standby.until_true(&client, &sql, "replay has caught up").await?;
        }
        Ok(())
    }

    /// Waits until every running standby of the primary streams from it.
    ///
    /// # Errors
    /// The primary does not answer, or a standby does not stream in time.
    pub async fn wait_streaming(&self) -> Result<(), Error> {
        let primary = self.primary();
        let client = primary.connect().await?;
        for standby in self.standbys().filter(|it| it.upstream() == Some(primary.index())) {
            let sql = format!(
                "SELECT count(*) > 0 FROM pg_stat_replication WHERE state = 'streaming' AND application_name = '{}'",
                standby.name()
            );
            primary.until_true(&client, &sql, &format!("{} streams", standby.name())).await?;
        }
        Ok(())
    }

    fn standbys(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|it| it.upstream().is_some() && it.is_running() && !it.is_frozen())
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // All at once; each node's own `Drop` then waits for it.
        self.nodes.iter().for_each(Node::bid_farewell);
    }
}

async fn received(node: &Node) -> Result<Option<PgLsn>, Error> {
    let client = node.connect().await?;
    let sql = "SELECT greatest(pg_last_wal_receive_lsn(), pg_last_wal_replay_lsn())";
    let row = client.query_one(sql, &[]).await.map_err(|source| node.sql("tell its position", source))?;
    Ok(row.get(0))
}

/// Makes the data directories: one new, the others copies of it. A copy of a cluster that never ran is a valid base.
async fn initialise(site: &Arc<Site>) -> Result<(), Error> {
    let hba = site.directory.join("pg_hba.conf");
    site.write(&hba, &configuration::host_based_authentication(site.settings.auth))?;
    let password_file = site.directory.join("password");
    site.write(&password_file, &site.password)?;
    let first = Node::new(Arc::clone(site), 0, 0);
    let mut command = site.program("initdb");
    command.arg("--pgdata").arg(first.data_directory()).arg("--pwfile").arg(&password_file);
    command.args(["--username", SUPERUSER, "--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"]);
    finish(command).await?;
    let mut copies = JoinSet::new();
    for index in 1..=site.settings.standbys {
        let node = Node::new(Arc::clone(site), index, 0);
        let (site, from) = (Arc::clone(site), first.data_directory());
        copies.spawn(async move {
            site.copy(&from, &node.data_directory()).await?;
            node.mark_as_standby()
        });
    }
    copies.join_all().await.into_iter().collect()
}

/// Starts a node for the first time, on a free port that it keeps.
async fn launch_somewhere(site: Arc<Site>, index: usize, upstream: Option<Upstream>) -> Result<Node, Error> {
    let mut attempts = PORT_ATTEMPTS;
    loop {
        attempts -= 1;
        let node = Node::new(Arc::clone(&site), index, free_port(&site.ports)?);
        node.configure(upstream)?;
        match node.start().await {
            Err(error) if error.is_port_taken() && attempts > 0 => {
                // The next attempt must not read this one's complaint.
                let _ = std::fs::remove_file(node.log_file());
            }
            other => return other.map(|()| node),
        }
    }
}

/// A port nobody listens on and no other node of this sandbox was given.
fn free_port(taken: &Mutex<HashSet<u16>>) -> Result<u16, Error> {
    let mut taken = taken.lock().unwrap_or_else(PoisonError::into_inner);
    (0..1_000)
        .map(|_| fastrand::u16(PORTS))
        .find(|&port| TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() && taken.insert(port))
        .ok_or(Error::NoPort)
}
