//! pgsteer as a child process of the demonstration.
//!
//! Invariant: it never outlives the demonstration. It is killed on drop; and it works in the sandbox's directory, whose
//! watchdog ends every process in there if the demonstration itself is killed. It must not know the cluster's state.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::{Error, admin_page};
use crate::sandbox::Sandbox;

/// How long the child may take until it knows a primary.
const READY: Duration = Duration::from_secs(15);

/// How long it may take to end in good order.
const FAREWELL: Duration = Duration::from_secs(5);

/// How much of its log an error shows.
const LOG_LINES: usize = 15;

/// A running pgsteer.
#[derive(Debug)]
pub(super) struct Proxy {
    child: Child,
    log: PathBuf,
    /// For clients.
    pub(super) listen: SocketAddr,
    /// For `/topology` and `/metrics`.
    pub(super) admin: SocketAddr,
}

impl Proxy {
    /// Starts this very program as a proxy in front of the cluster; returns when it is ready.
    pub(super) async fn start(sandbox: &Sandbox) -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(Error::io("find the program itself"))?;
        let log = sandbox.directory().join("pgsteer.log");
        let output = std::fs::File::create(&log).map_err(Error::io("make a file for pgsteer's log"))?;
        let errors = output.try_clone().map_err(Error::io("share the file of pgsteer's log"))?;
        let [listen, admin] = free_addresses()?;
        let nodes: Vec<String> = sandbox.nodes().iter().map(|node| node.address().to_string()).collect();
        let mut command = Command::new(program);
        command
            .args(["run", "--nodes", &nodes.join(","), "--listen", &listen.to_string()])
            .args(["--admin", &admin.to_string(), "--user", sandbox.user(), "--auth", "scram-sha-256"])
            .env("PGSTEER_PASSWORD", sandbox.password())
            .current_dir(sandbox.directory())
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .kill_on_drop(true);
        // Ctrl-C goes to the whole group; the demonstration ends the child itself.
        command.process_group(0);
        let child = command.spawn().map_err(Error::io("start pgsteer"))?;
        let mut proxy = Self { child, log, listen, admin };
        tokio::time::timeout(READY, proxy.ready())
            .await
            .unwrap_or_else(|_| Err(proxy.timed_out("pgsteer knew a primary", READY)))?;
        Ok(proxy)
    }

    /// Ends it in good order, by force if need be.
    pub(super) async fn stop(mut self) {
        if let Some(id) = self.child.id().and_then(|id| i32::try_from(id).ok()) {
            let _ = kill(Pid::from_raw(id), Signal::SIGTERM);
        }
        if tokio::time::timeout(FAREWELL, self.child.wait()).await.is_err() {
            let _ = self.child.kill().await;
        }
    }

    /// The error for something that did not come true.
    pub(super) fn timed_out(&self, what: &'static str, after: Duration) -> Error {
        Error::TimedOut { what, seconds: after.as_secs(), log: self.last_words() }
    }

    /// An error if it has ended.
    pub(super) fn check(&mut self) -> Result<(), Error> {
        match self.child.try_wait().map_err(Error::io("look after pgsteer"))? {
            Some(status) => Err(Error::ProxyEnded { status, log: self.last_words() }),
            None => Ok(()),
        }
    }

    async fn ready(&mut self) -> Result<(), Error> {
        while admin_page::get(self.admin, "/readyz").await.is_err() {
            self.check()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    fn last_words(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(LOG_LINES)..].join("\n")
    }
}

/// Two free addresses, below the ports the kernel hands out for outgoing connections.
fn free_addresses() -> Result<[SocketAddr; 2], Error> {
    let mut taken = Vec::new();
    for _ in 0..1_000 {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, fastrand::u16(20_000..30_000)));
        if let Ok(listener) = TcpListener::bind(address) {
            taken.push((address, listener));
        }
        if let [(first, _), (second, _)] = taken.as_slice() {
            return Ok([*first, *second]);
        }
    }
    Err(Error::io("find a free port between 20000 and 30000")(std::io::ErrorKind::AddrInUse.into()))
}
