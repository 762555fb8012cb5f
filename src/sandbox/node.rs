//! One server of a cluster: its process, its way in, and the faults that can be done to it.
//!
//! Invariant: after a method that ends the server has returned, none of its processes runs; only
//! [`Node::kill9_postmaster_only`] leaves some, on purpose. It must not know which node is the primary.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Config, NoTls};

use super::processes::{Process, remove_shared_memory};
use super::site::{Site, finish, last_lines};
use super::wait::{BOUND, until, until_blocking};
use super::{Error, configuration};

/// The superuser of every sandbox, and the database everybody has.
pub(super) const SUPERUSER: &str = "postgres";

/// How long a server may take to end when the sandbox is dropped, before it is killed.
const FAREWELL: Duration = Duration::from_secs(2);

/// One server of the cluster.
#[derive(Debug)]
pub struct Node {
    site: Arc<Site>,
    index: usize,
    name: String,
    port: u16,
    state: Mutex<State>,
}

/// The node a standby streams from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upstream {
    index: usize,
    port: u16,
}

#[derive(Debug, Default)]
struct State {
    child: Option<Child>,
    /// Backends whose postmaster was killed without them.
    orphans: Vec<Process>,
    frozen: bool,
    /// The node this one streams from; `None` for one that was promoted, or never was a standby.
    upstream: Option<usize>,
}

impl Node {
    pub(super) fn new(site: Arc<Site>, index: usize, port: u16) -> Self {
        Self { site, index, name: name_of(index), port, state: Mutex::default() }
    }

    /// Its place in the cluster; the first primary has 0.
    #[must_use]
    pub fn index(&self) -> usize {
        self.index
    }

    /// `n1`, `n2` and so on: its `cluster_name`, and its `application_name` where it streams.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The port on 127.0.0.1. It stays the same for the life of the sandbox.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// The postmaster's process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.state().running().map(|child| child.id())
    }

    /// The ids of all its processes, the postmaster first; none when it does not run.
    #[must_use]
    pub fn pids(&self) -> Vec<u32> {
        let postmaster = self.pid();
        let backends = postmaster.and_then(Process::of).map(Process::descendants).unwrap_or_default();
        postmaster.into_iter().chain(backends.into_iter().map(Process::id)).collect()
    }

    /// Whether it has a postmaster; a frozen one counts.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.pid().is_some()
    }

    /// The node it streams from, as the sandbox set it up.
    #[must_use]
    pub fn upstream(&self) -> Option<usize> {
        self.state().upstream
    }

    /// The file its server writes its log to.
    #[must_use]
    pub fn log_file(&self) -> PathBuf {
        self.site.directory.join(format!("{}.log", self.name))
    }

    /// How a driver reaches it over TCP as superuser, in libpq's form.
    #[must_use]
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={SUPERUSER} password={} dbname={SUPERUSER}",
            self.port, self.site.password
        )
    }

    /// The same as a URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("postgresql://{SUPERUSER}:{}@127.0.0.1:{}/{SUPERUSER}", self.site.password, self.port)
    }

    /// Connects as superuser over the Unix socket, without a password; the connection's task is spawned.
    ///
    /// # Errors
    /// The server does not accept connections.
    pub async fn connect(&self) -> Result<Client, Error> {
        let mut config = Config::new();
        config.host_path(&self.site.directory).port(self.port).user(SUPERUSER).dbname(SUPERUSER);
        config.application_name("sandbox").connect_timeout(Duration::from_secs(5));
        let (client, connection) =
            config.connect(NoTls).await.map_err(|source| self.sql("connect", source))?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Starts the server as it was left: an old primary comes back as a primary, which is split brain.
    /// Returns when it answers.
    ///
    /// # Errors
    /// It runs already, or ends while starting.
    pub async fn start(&self) -> Result<(), Error> {
        self.launch().await?;
        self.ready().await
    }

    /// Shuts it down in good order; sessions are ended with 57P01.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn stop_fast(&self) -> Result<(), Error> {
        self.stop(Signal::SIGINT).await
    }

    /// Makes it quit at once, as on a crash; sessions are ended with 57P02.
    ///
    /// # Errors
    /// It does not run, or does not end in time.
    pub async fn stop_immediate(&self) -> Result<(), Error> {
        self.stop(Signal::SIGQUIT).await
    }

    /// Kills the postmaster and all its backends with SIGKILL, as when the machine goes. Gives the moment of it.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill9(&self) -> Result<Instant, Error> {
        let postmaster = self.postmaster()?;
        let family = postmaster.halt();
        let at = Instant::now();
        for process in family.iter().chain([&postmaster]) {
            process.signal(Signal::SIGKILL);
        }
        self.gone(&family).await?;
        Ok(at)
    }

    /// Kills only the postmaster with SIGKILL: no new connection is accepted, yet a busy backend may go on and
    /// commit. Gives the moment of it.
    ///
    /// # Errors
    /// It does not run.
    pub async fn kill9_postmaster_only(&self) -> Result<Instant, Error> {
        let postmaster = self.postmaster()?;
        self.state().orphans = postmaster.descendants();
        let at = Instant::now();
        postmaster.signal(Signal::SIGKILL);
        self.gone(&[]).await?;
        Ok(at)
    }

    /// Freezes the whole server: its sockets stay open and nothing answers.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigstop(&self) -> Result<(), Error> {
        let postmaster = self.postmaster()?;
        for process in postmaster.halt() {
            process.signal(Signal::SIGSTOP);
        }
        self.state().frozen = true;
        Ok(())
    }

    /// Lets a frozen server go on.
    ///
    /// # Errors
    /// It does not run.
    pub fn sigcont(&self) -> Result<(), Error> {
        let postmaster = self.postmaster()?;
        for process in postmaster.descendants().iter().chain([&postmaster]) {
            process.signal(Signal::SIGCONT);
        }
        self.state().frozen = false;
        Ok(())
    }

    /// Whether it is frozen by [`Node::sigstop`].
    #[must_use]
    pub fn is_frozen(&self) -> bool {
        self.state().frozen
    }

    /// Stops replay on a standby; WAL is still received. Returns when replay stands still.
    ///
    /// # Errors
    /// It is not a standby, or does not answer.
    pub async fn pause_replay(&self) -> Result<(), Error> {
        let client = self.connect().await?;
        self.execute(&client, "SELECT pg_wal_replay_pause()").await?;
        self.until_true(&client, "SELECT pg_get_wal_replay_pause_state() = 'paused'", "replay is paused")
            .await
    }

    /// Lets replay go on.
    ///
    /// # Errors
    /// It is not a standby, or does not answer.
    pub async fn resume_replay(&self) -> Result<(), Error> {
        let client = self.connect().await?;
        match self.execute(&client, "SELECT pg_wal_replay_resume()").await {
            // Replay that goes on may cancel the very statement that had it go on: it has done its work then.
            Err(Error::Sql { source, .. }) if source.code() == Some(&SqlState::T_R_SERIALIZATION_FAILURE) => {
                Ok(())
            }
            done => done,
        }
    }

    /// What a standby must know of it.
    pub(super) fn as_upstream(&self) -> Upstream {
        Upstream { index: self.index, port: self.port }
    }

    pub(super) fn data_directory(&self) -> PathBuf {
        self.site.directory.join(&self.name)
    }

    /// Tells the server to promote itself and returns at once; needs no connection.
    pub(super) fn promote(&self) -> Result<(), Error> {
        let postmaster = self.postmaster()?;
        // Under its name only when it is the server's own: the postmaster may find it, and take it away, at any moment.
        let (written, named) = ["promote.new", "promote"].map(|name| self.data_directory().join(name)).into();
        self.site.write(&written, "")?;
        std::fs::rename(&written, &named).map_err(Error::io("name the file that asks for a promotion"))?;
        postmaster.signal(Signal::SIGUSR1);
        self.state().upstream = None;
        Ok(())
    }

    /// Writes its configuration. With an upstream it will be a standby of that node from its next start or reload.
    pub(super) fn configure(&self, upstream: Option<Upstream>) -> Result<(), Error> {
        let primary_conninfo = upstream.map(|it| {
            format!(
                "host=127.0.0.1 port={} user={SUPERUSER} password={} application_name={}",
                it.port, self.site.password, self.name
            )
        });
        let others: Vec<String> =
            (0..=self.site.settings.standbys).filter(|&it| it != self.index).map(name_of).collect();
        let directory = self.site.directory.display().to_string();
        let facts = configuration::Facts {
            name: &self.name,
            port: self.port,
            directory: &directory,
            others: &others,
            primary_conninfo,
        };
        self.site.write(&self.configuration_file(), &configuration::server(&self.site.settings, &facts))?;
        if let Some(upstream) = upstream {
            self.state().upstream = Some(upstream.index);
        }
        Ok(())
    }

    /// Makes its data directory that of a standby.
    pub(super) fn mark_as_standby(&self) -> Result<(), Error> {
        self.site.write(&self.data_directory().join("standby.signal"), "")
    }

    /// Makes the server read its configuration again.
    pub(super) fn reload(&self) -> Result<(), Error> {
        self.postmaster()?.signal(Signal::SIGHUP);
        Ok(())
    }

    /// Makes a physical slot for a standby, if there is none yet.
    pub(super) async fn ensure_slot(&self, standby: &str) -> Result<(), Error> {
        let client = self.connect().await?;
        let sql = format!(
            "SELECT pg_create_physical_replication_slot('{standby}', true) \
             WHERE NOT EXISTS (SELECT FROM pg_replication_slots WHERE slot_name = '{standby}')"
        );
        self.execute(&client, &sql).await
    }

    /// Drops the slots of a former life as primary; they would keep WAL for ever.
    pub(super) async fn drop_idle_slots(&self) -> Result<(), Error> {
        let client = self.connect().await?;
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots WHERE NOT active";
        self.execute(&client, sql).await
    }

    /// Makes its data directory's history one that leads to `source`'s.
    pub(super) async fn rewind(&self, source: &Self) -> Result<(), Error> {
        let mut command = self.site.program("pg_rewind");
        command.arg("--target-pgdata").arg(self.data_directory());
        command.arg("--source-server").arg(source.tool_conninfo()).arg("--no-sync");
        finish(command).await
    }

    /// Replaces its data directory by a fresh copy of `source`'s.
    pub(super) async fn base_backup(&self, source: &Self) -> Result<(), Error> {
        let data = self.data_directory();
        std::fs::remove_dir_all(&data)
            .map_err(Error::io(format!("empty the data directory {}", data.display())))?;
        let mut command = self.site.program("pg_basebackup");
        command.arg("--pgdata").arg(data).arg("--dbname").arg(source.tool_conninfo());
        command.args(["--wal-method=stream", "--checkpoint=fast", "--no-sync"]);
        finish(command).await
    }

    /// Ends the server if it runs, however deep it is stuck.
    pub(super) async fn end(&self) -> Result<(), Error> {
        if self.is_running() && (self.is_frozen() || self.stop_fast().await.is_err()) {
            self.kill9().await?;
        }
        Ok(())
    }

    /// Asks for one boolean until it is true.
    pub(super) async fn until_true(&self, client: &Client, sql: &str, what: &str) -> Result<(), Error> {
        until(format!("{what} on {}", self.name), BOUND, || async {
            let row = client.query_one(sql, &[]).await.map_err(|source| self.sql(what, source))?;
            Ok(row.get::<_, Option<bool>>(0).unwrap_or(false))
        })
        .await
    }

    /// Runs statements whose answer does not matter.
    pub(super) async fn execute(&self, client: &Client, sql: &str) -> Result<(), Error> {
        client.batch_execute(sql).await.map_err(|source| self.sql(sql, source))
    }

    pub(super) fn sql(&self, what: &str, source: tokio_postgres::Error) -> Error {
        Error::Sql { node: self.name.clone(), what: what.to_owned(), source }
    }

    /// Starts the process; it does not answer yet.
    pub(super) async fn launch(&self) -> Result<(), Error> {
        if self.is_running() {
            return Err(Error::Running { node: self.name.clone() });
        }
        self.end_orphans().await?;
        let log = self.log_file();
        let failed = || Error::io(format!("write {}", log.display()));
        let output = std::fs::File::options().create(true).append(true).open(&log).map_err(failed())?;
        let mut command = self.site.program("postgres");
        command.arg("-D").arg(self.data_directory());
        command.arg(format!("--config-file={}", self.configuration_file().display()));
        command.stdout(output.try_clone().map_err(failed())?).stderr(output);
        let child = command.spawn().map_err(Error::io("start `postgres`"))?;
        let mut state = self.state();
        state.child = Some(child);
        state.frozen = false;
        Ok(())
    }

    /// Waits until the server answers.
    pub(super) async fn ready(&self) -> Result<(), Error> {
        until(format!("node {} answers", self.name), BOUND, || async {
            let ended = self.state().child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                let log = std::fs::read(self.log_file()).unwrap_or_default();
                let log = last_lines(&String::from_utf8_lossy(&log));
                return Err(Error::Ended { node: self.name.clone(), status, log });
            }
            Ok(self.connect().await.is_ok())
        })
        .await
    }

    async fn stop(&self, signal: Signal) -> Result<(), Error> {
        let postmaster = self.postmaster()?;
        if self.is_frozen() {
            self.sigcont()?;
        }
        let family = postmaster.descendants();
        postmaster.signal(signal);
        self.gone(&family).await
    }

    /// Waits until the postmaster is reaped and these processes have ended.
    async fn gone(&self, family: &[Process]) -> Result<(), Error> {
        until(format!("node {} has ended", self.name), BOUND, || async {
            Ok(self.state().running().is_none() && !family.iter().any(|it| it.is_alive()))
        })
        .await?;
        let mut state = self.state();
        state.child = None;
        state.frozen = false;
        Ok(())
    }

    async fn end_orphans(&self) -> Result<(), Error> {
        let orphans = std::mem::take(&mut self.state().orphans);
        for orphan in &orphans {
            orphan.signal(Signal::SIGKILL);
        }
        until("killed backends are gone", BOUND, || async { Ok(!orphans.iter().any(|it| it.is_alive())) })
            .await
    }

    /// PostgreSQL's own programs come in over the Unix socket: their arguments are there for all to see.
    fn tool_conninfo(&self) -> String {
        format!(
            "host={} port={} user={SUPERUSER} dbname={SUPERUSER}",
            self.site.directory.display(),
            self.port
        )
    }

    fn configuration_file(&self) -> PathBuf {
        self.site.directory.join(format!("{}.conf", self.name))
    }

    fn postmaster(&self) -> Result<Process, Error> {
        self.pid().and_then(Process::of).ok_or_else(|| Error::NotRunning { node: self.name.clone() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the server to end at once, without waiting for it.
    pub(super) fn bid_farewell(&self) {
        if let Ok(postmaster) = self.postmaster() {
            if self.is_frozen() {
                let _ = self.sigcont();
            }
            postmaster.signal(Signal::SIGQUIT);
        }
    }
}

impl State {
    /// The postmaster, unless it has ended.
    fn running(&mut self) -> Option<&mut Child> {
        self.child.as_mut().and_then(|child| matches!(child.try_wait(), Ok(None)).then_some(child))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.bid_farewell();
        let mut doomed = std::mem::take(&mut self.state().orphans);
        if !until_blocking(FAREWELL, || !self.is_running())
            && let Ok(postmaster) = self.postmaster()
        {
            doomed.extend(postmaster.halt());
            doomed.push(postmaster);
        }
        for process in &doomed {
            process.signal(Signal::SIGKILL);
        }
        until_blocking(FAREWELL, || !self.is_running() && !doomed.iter().any(|it| it.is_alive()));
        remove_shared_memory(&self.data_directory().join("postmaster.pid"));
    }
}

/// The name of the node in this place.
pub(super) fn name_of(index: usize) -> String {
    format!("n{}", index + 1)
}
