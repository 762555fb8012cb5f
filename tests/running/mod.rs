//! A pgsteer process in front of a sandbox, for tests: started, watched and ended; and what tests do to the sandbox's servers.
//!
//! Must not know: what is tested.

// Each test binary uses its own part of this, and a test's set-up ends by a panic.
#![allow(dead_code, unused_imports, clippy::unwrap_used)]

mod raw;

pub mod figures;
pub mod ledger;
pub mod relay;
pub mod two;

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::admin::request;
use pgsteer::sandbox::{Auth, Node, Sandbox};
pub use raw::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_postgres::{Client, NoTls};

/// The longest anything may take on a loaded machine.
pub const BOUND: Duration = Duration::from_secs(60);

/// Apart from the sandbox's own ports and from those the kernel hands out.
const PORTS: std::ops::Range<u16> = 10_000..20_000;

/// The one place where these tests wait: looks until the condition holds.
pub async fn eventually<F>(what: &str, mut holds: F)
where
    F: AsyncFnMut() -> bool,
{
    let started = Instant::now();
    while !holds().await {
        assert!(started.elapsed() < BOUND, "waited in vain until {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The answer, or a panic when it takes too long.
pub async fn in_time<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what} takes too long"))
}

/// An address where nobody listens.
pub fn free_address() -> SocketAddr {
    (0..1000)
        .map(|_| SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(PORTS))))
        .find(|address| TcpListener::bind(address).is_ok())
        .expect("a free port")
}

/// One server where all are trusted, and a proxy in front of it.
pub async fn single(args: &[&str]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &[&["--auth", "trust"], args].concat()).await;
    (sandbox, proxy)
}

/// A cluster with a table `c` of 400 rows for reads that conflict with what is vacuumed there; replay waits so long for them (`None`:
/// for ever).
pub async fn conflicting(standbys: usize, delay: Option<Duration>) -> Sandbox {
    let builder = Sandbox::builder().standbys(standbys).auth(Auth::Trust).max_standby_streaming_delay(delay);
    let sandbox = builder.setting("autovacuum", "off").start().await.unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary.batch_execute("CREATE TABLE c (id int, v text)").await.unwrap();
    primary.batch_execute("INSERT INTO c SELECT g, 'x' FROM generate_series(1, 400) g").await.unwrap();
    primary.batch_execute("VACUUM c").await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

/// A cluster of two whose primary flushes an asynchronous commit by itself only after a long while.
pub async fn slow_to_flush() -> Sandbox {
    let builder = Sandbox::builder().standbys(1).setting("wal_writer_delay", "10s");
    builder.auth(Auth::Trust).start().await.unwrap()
}

/// Waits until it is known of all standbys how stale they are.
pub async fn wait_readable(proxy: &Running, sandbox: &Sandbox) {
    eventually("all standbys may be read", async || {
        let topology = proxy.topology().await;
        (1..sandbox.nodes().len()).all(|node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
}

/// Promotes the best standby and makes the others follow it; gives it, and when it had become the primary.
pub async fn promote(sandbox: &Sandbox) -> (usize, Instant) {
    let old = sandbox.primary().index();
    let chosen = sandbox.most_advanced_standby().await.unwrap();
    let promoted = sandbox.promote_wait(chosen).await.unwrap();
    for node in sandbox.nodes() {
        if node.index() != chosen && node.index() != old && node.is_running() {
            sandbox.follow(node.index(), chosen).await.unwrap();
        }
    }
    (chosen, promoted)
}

/// Waits until the one statement on this node in which `part` stands is stuck, waiting for this event.
pub async fn wait_blocked(sandbox: &Sandbox, node: usize, part: &str, event: &str) {
    let direct = sandbox.connect(node).await.unwrap();
    let sql = "SELECT count(*) FROM pg_stat_activity WHERE strpos(query, $1) > 0 AND wait_event = $2 \
               AND pid <> pg_backend_pid()";
    let mut in_a_row = 0;
    eventually(&format!("it is blocked by {event}"), async || {
        let count: i64 = direct.query_one(sql, &[&part, &event]).await.unwrap().get(0);
        in_a_row = if count == 1 { in_a_row + 1 } else { 0 };
        in_a_row >= 50
    })
    .await;
}

/// A running proxy. It ends with this value.
pub struct Running {
    child: Child,
    /// Where clients connect.
    pub address: SocketAddr,
    /// Where HTTP is served.
    pub admin: SocketAddr,
    user: String,
    password: String,
    log: PathBuf,
}

impl Running {
    /// Starts it in front of the sandbox; it is ready when this returns.
    pub async fn start(sandbox: &Sandbox, extra_args: &[&str]) -> Self {
        Self::start_with(sandbox, extra_args, &[]).await
    }

    /// The same with environment variables, for the keys that have no flag.
    pub async fn start_with(sandbox: &Sandbox, extra_args: &[&str], environment: &[(&str, &str)]) -> Self {
        let mut running = Self::launch(sandbox, extra_args, environment).await;
        running.wait_ready().await;
        running
    }

    /// The same with other nodes than the sandbox's own, or further ones.
    pub async fn start_at(
        nodes: &[SocketAddr],
        sandbox: &Sandbox,
        extra_args: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let mut running = Self::launch_at(free_address(), nodes, sandbox, extra_args, environment).await;
        running.wait_ready().await;
        running
    }

    /// The same with an address for clients that others know beforehand.
    pub async fn start_on(
        address: SocketAddr,
        sandbox: &Sandbox,
        extra_args: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let nodes: Vec<SocketAddr> = sandbox.nodes().iter().map(Node::address).collect();
        let mut running = Self::launch_at(address, &nodes, sandbox, extra_args, environment).await;
        running.wait_ready().await;
        running
    }

    async fn wait_ready(&mut self) {
        eventually("pgsteer is ready", async || {
            self.assert_running();
            self.ready().await
        })
        .await;
    }

    /// The same without waiting for a primary: the listeners are open when this returns.
    pub async fn launch(sandbox: &Sandbox, extra_args: &[&str], environment: &[(&str, &str)]) -> Self {
        let nodes: Vec<SocketAddr> = sandbox.nodes().iter().map(Node::address).collect();
        Self::launch_at(free_address(), &nodes, sandbox, extra_args, environment).await
    }

    async fn launch_at(
        address: SocketAddr,
        nodes: &[SocketAddr],
        sandbox: &Sandbox,
        extra_args: &[&str],
        environment: &[(&str, &str)],
    ) -> Self {
        let nodes: Vec<String> = nodes.iter().map(SocketAddr::to_string).collect();
        let admin =
            std::iter::repeat_with(free_address).find(|admin| *admin != address).expect("another address");
        let log =
            std::env::temp_dir().join(format!("pgsteer-test-{}-{}.log", std::process::id(), address.port()));
        let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteer"));
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(name);
        }
        command
            .args(["run", "--nodes", &nodes.join(","), "--listen", &address.to_string()])
            .args(["--admin", &admin.to_string()])
            .args(extra_args)
            .env("PGSTEER_CLUSTER_USER", sandbox.user())
            .env("PGSTEER_PASSWORD", sandbox.password())
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log).unwrap());
        let child = command.spawn().unwrap();
        let mut running = Self {
            child,
            address,
            admin,
            user: sandbox.user().to_owned(),
            password: sandbox.password().to_owned(),
            log,
        };
        eventually("pgsteer listens", async || {
            running.assert_running();
            running.log().contains("accepting clients") && running.get("/livez").await.is_some()
        })
        .await;
        running
    }

    fn assert_running(&mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "pgsteer has ended:\n{}", self.log());
    }

    /// What it logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// How a driver reaches it as superuser, in libpq's form.
    pub fn conninfo(&self) -> String {
        format!(
            "host=127.0.0.1 port={} user={} password={} dbname=postgres",
            self.address.port(),
            self.user,
            self.password
        )
    }

    /// Parameters of a connection, to be completed by the test.
    pub fn config(&self) -> tokio_postgres::Config {
        self.conninfo().parse().unwrap()
    }

    /// A client in the way of every driver.
    pub async fn try_connect(
        &self,
        user: &str,
        password: &str,
        db: &str,
    ) -> Result<Client, tokio_postgres::Error> {
        let mut config = self.config();
        config.user(user).password(password).dbname(db);
        let (client, connection) = in_time("a login", config.connect(NoTls)).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// The same, which must succeed.
    pub async fn connect(&self, user: &str, password: &str, db: &str) -> Client {
        self.try_connect(user, password, db).await.unwrap_or_else(|error| panic!("{error:?}\n{}", self.log()))
    }

    /// A client as superuser.
    pub async fn client(&self) -> Client {
        self.connect(&self.user, &self.password, "postgres").await
    }

    /// A client as superuser with startup options.
    pub async fn client_with(&self, options: &str) -> Client {
        let mut config = self.config();
        config.options(options);
        let (client, connection) = in_time("a login", config.connect(NoTls)).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Status and body of one page of the admin address.
    pub async fn get(&self, path: &str) -> Option<(u16, String)> {
        request::send(self.admin, "GET", path).await.ok()
    }

    /// Status and body of a request that changes something.
    pub async fn post(&self, path: &str) -> (u16, String) {
        request::send(self.admin, "POST", path).await.unwrap()
    }

    async fn ready(&self) -> bool {
        self.get("/readyz").await.is_some_and(|(status, _)| status == 200)
    }

    /// All metrics as text.
    pub async fn metrics(&self) -> String {
        self.get("/metrics").await.expect("metrics").1
    }

    /// The sum of the samples that have the name and all these labels.
    pub async fn metric(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let text = self.metrics().await;
        let wanted: Vec<String> =
            labels.iter().map(|(label, value)| format!("{label}=\"{value}\"")).collect();
        text.lines()
            .filter(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])))
            .filter(|line| wanted.iter().all(|label| line.contains(label.as_str())))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }

    /// The page of the cluster.
    pub async fn topology(&self) -> serde_json::Value {
        serde_json::from_str(&self.get("/topology").await.expect("topology").1).unwrap()
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Resident memory, bytes.
    pub fn resident_bytes(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    }

    /// Asks it to drain and end.
    pub fn terminate(&self) {
        kill(Pid::from_raw(self.pid().cast_signed()), Signal::SIGTERM).unwrap();
    }

    /// Waits for its end.
    pub async fn wait_exit(&mut self) -> ExitStatus {
        let mut status = None;
        eventually("pgsteer has ended", async || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        })
        .await;
        status.unwrap()
    }

    /// A raw client, connected, nothing sent.
    pub async fn raw(&self) -> RawClient {
        RawClient { stream: TcpStream::connect(self.address).await.unwrap() }
    }

    /// A raw client that has logged in as superuser where all are trusted.
    pub async fn raw_logged_in(&self) -> RawClient {
        self.raw_as(&self.user, "postgres").await
    }

    /// The same as another user, to any database.
    pub async fn raw_as(&self, user: &str, database: &str) -> RawClient {
        let mut raw = self.raw().await;
        raw.log_in(user, database).await;
        raw
    }

    /// The same by this version of the protocol, and the body of its BackendKeyData.
    pub async fn raw_with_key(&self, version: i32) -> (RawClient, Vec<u8>) {
        let mut raw = self.raw().await;
        raw.send(&startup(version, &[("user", &self.user), ("database", "postgres")])).await;
        let welcome = raw.read_until(b'Z').await;
        let key = welcome.iter().find(|message| message.kind == b'K').unwrap().body.clone();
        (raw, key)
    }

    /// As PQcancel: the end of the connection is the answer.
    pub async fn cancel(&self, key: &[u8]) {
        let mut raw = self.raw().await;
        raw.send(&startup_frame(CANCEL_REQUEST, key)).await;
        assert_eq!(raw.read_to_end().await, []);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            println!("--- pgsteer's log\n{}", self.log());
        }
        let _ = std::fs::remove_file(&self.log);
    }
}
