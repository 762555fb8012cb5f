//! A pgsteer process in front of a sandbox, for tests: started, watched and ended; and a client that speaks raw frames.
//!
//! Must not know: what is tested.

// Each test binary uses its own part of this, and a test's set-up ends by a panic.
#![allow(dead_code, clippy::unwrap_used)]

pub mod two;

use std::fmt::Debug;
use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pgsteer::sandbox::{Node, Sandbox};
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
        let admin = free_address();
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
        let mut stream = TcpStream::connect(self.admin).await.ok()?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: pgsteer\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.ok()?;
        let status = answer.split(' ').nth(1)?.parse().ok()?;
        Some((status, answer.split_once("\r\n\r\n")?.1.to_owned()))
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
        let mut raw = self.raw().await;
        raw.log_in(&self.user, "postgres").await;
        raw
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

/// One message from the proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct Message {
    /// Its type byte.
    pub kind: u8,
    /// What follows the length.
    pub body: Vec<u8>,
}

impl Debug for Message {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}{:?}", char::from(self.kind), String::from_utf8_lossy(&self.body))
    }
}

impl Message {
    /// A field of an error or a notice.
    pub fn field(&self, code: u8) -> Option<String> {
        self.body
            .split(|byte| *byte == 0)
            .find(|field| field.first() == Some(&code))
            .map(|field| String::from_utf8_lossy(&field[1..]).into_owned())
    }

    /// Its SQLSTATE.
    pub fn sqlstate(&self) -> String {
        self.field(b'C').unwrap_or_default()
    }

    /// The first column of a row.
    pub fn value(&self) -> String {
        assert_eq!(self.kind, b'D', "{self:?}");
        let length = i32::from_be_bytes(self.body[2..6].try_into().unwrap());
        String::from_utf8_lossy(&self.body[6..6 + usize::try_from(length).unwrap()]).into_owned()
    }
}

/// A message to the server.
pub fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).unwrap();
    [&[kind], &length.to_be_bytes()[..], body].concat()
}

/// A message without type byte.
pub fn startup_frame(code: i32, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 8).unwrap();
    [&length.to_be_bytes()[..], &code.to_be_bytes()[..], body].concat()
}

/// StartupMessage.
pub fn startup(version: i32, parameters: &[(&str, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (name, value) in parameters {
        body.extend_from_slice(&[name.as_bytes(), b"\0", value.as_bytes(), b"\0"].concat());
    }
    body.push(0);
    startup_frame(version, &body)
}

/// Query.
pub fn query(text: &str) -> Vec<u8> {
    frame(b'Q', &[text.as_bytes(), b"\0"].concat())
}

/// Parse without parameter types.
pub fn parse(name: &str, text: &str) -> Vec<u8> {
    frame(b'P', &[name.as_bytes(), b"\0", text.as_bytes(), b"\0\0\0"].concat())
}

/// Bind of text values, all results as text.
pub fn bind(portal: &str, name: &str, values: &[&str]) -> Vec<u8> {
    let mut body = [portal.as_bytes(), b"\0", name.as_bytes(), b"\0\0\0"].concat();
    body.extend_from_slice(&u16::try_from(values.len()).unwrap().to_be_bytes());
    for value in values {
        body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
        body.extend_from_slice(value.as_bytes());
    }
    body.extend_from_slice(&[0, 0]);
    frame(b'B', &body)
}

/// Execute without a row limit.
pub fn execute(portal: &str) -> Vec<u8> {
    frame(b'E', &[portal.as_bytes(), b"\0\0\0\0\0"].concat())
}

/// Close of a statement.
pub fn close(name: &str) -> Vec<u8> {
    frame(b'C', &[b"S", name.as_bytes(), b"\0"].concat())
}

/// Sync.
pub fn sync() -> Vec<u8> {
    frame(b'S', b"")
}

/// Flush.
pub fn flush() -> Vec<u8> {
    frame(b'H', b"")
}

/// A client whose messages are made by hand.
pub struct RawClient {
    /// The connection.
    pub stream: TcpStream,
}

impl RawClient {
    /// A client of the server itself, logged in as superuser where all are trusted: what PostgreSQL says.
    pub async fn direct(node: &Node) -> Self {
        let mut raw = Self { stream: TcpStream::connect(node.address()).await.unwrap() };
        raw.log_in("postgres", "postgres").await;
        raw
    }

    /// Sends bytes as they are.
    pub async fn send(&mut self, bytes: &[u8]) {
        in_time("sending", self.stream.write_all(bytes)).await.unwrap();
    }

    /// One byte, such as the answer to SSLRequest.
    pub async fn read_byte(&mut self) -> u8 {
        in_time("one byte", self.stream.read_u8()).await.unwrap()
    }

    /// The next message, or `None` at the end of the connection.
    pub async fn try_read(&mut self) -> Option<Message> {
        in_time("a message", async {
            let kind = self.stream.read_u8().await.ok()?;
            let length = self.stream.read_u32().await.ok()?;
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body).await.ok()?;
            Some(Message { kind, body })
        })
        .await
    }

    /// The next message.
    pub async fn read(&mut self) -> Message {
        self.try_read().await.expect("the connection is open")
    }

    /// All messages up to and with one of this kind.
    pub async fn read_until(&mut self, kind: u8) -> Vec<Message> {
        let mut messages = Vec::new();
        loop {
            let message = self.read().await;
            let last = message.kind == kind;
            messages.push(message);
            if last {
                return messages;
            }
        }
    }

    /// All messages up to the end of the connection.
    pub async fn read_to_end(&mut self) -> Vec<Message> {
        let mut messages = Vec::new();
        while let Some(message) = self.try_read().await {
            messages.push(message);
        }
        messages
    }

    /// Logs in where all are trusted; gives what came before ReadyForQuery.
    pub async fn log_in(&mut self, user: &str, db: &str) -> Vec<Message> {
        self.log_in_with(&[("user", user), ("database", db)]).await
    }

    /// The same with any parameters.
    pub async fn log_in_with(&mut self, parameters: &[(&str, &str)]) -> Vec<Message> {
        self.send(&startup(196_608, parameters)).await;
        let messages = self.read_until(b'Z').await;
        assert_eq!(messages[0].kind, b'R', "{messages:?}");
        messages
    }

    /// Runs a simple query; all of its answer.
    pub async fn query(&mut self, text: &str) -> Vec<Message> {
        self.send(&query(text)).await;
        self.read_until(b'Z').await
    }

    /// Sends messages that end with one Sync; all of the answer.
    pub async fn extended(&mut self, messages: &[Vec<u8>]) -> Vec<Message> {
        self.send(&messages.concat()).await;
        self.send(&sync()).await;
        self.read_until(b'Z').await
    }
}

/// The kinds of messages, as a word.
pub fn kinds(messages: &[Message]) -> String {
    messages.iter().map(|message| char::from(message.kind)).collect()
}

/// The first column of all rows.
pub fn values(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.kind == b'D').map(Message::value).collect()
}

/// The SQLSTATEs of all errors.
pub fn errors(messages: &[Message]) -> Vec<String> {
    messages.iter().filter(|message| message.kind == b'E').map(Message::sqlstate).collect()
}
