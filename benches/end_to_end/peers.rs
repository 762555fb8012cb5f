//! The peers of the comparison: each is started here, waited for until it answers, and ended with its value.
//!
//! Must not know: what is measured.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::unistd::{Uid, User};
use pgsteer::sandbox::Sandbox;

use crate::load::Protocol;
use crate::wire;

/// How long a peer may take until it answers a query.
const START_BOUND: Duration = Duration::from_secs(20);

/// The first PgBouncer that keeps prepared statements in transaction mode.
const PREPARED_SINCE: (u32, u32) = (1, 21);

/// The database that PgBouncer pools by session.
const SESSION_DATABASE: &str = "by_session";

/// What all peers stand on: the cluster's addresses, and a directory for their files.
pub struct Site {
    pub user: &'static str,
    pub pgbench: PathBuf,
    pub major: u32,
    pub directory: PathBuf,
    /// The machine's load average before anything was started: other work spoils the figures.
    pub load_before: String,
    nodes: Vec<SocketAddr>,
}

impl Site {
    pub fn new(cluster: &Sandbox, load_before: String) -> anyhow::Result<Self> {
        let directory = std::env::temp_dir().join(format!("pgsteer-bench-{}", std::process::id()));
        fs::create_dir_all(&directory).context("make a directory for the bench")?;
        let beside = cluster.binaries().program("pgbench");
        Ok(Self {
            user: cluster.user(),
            pgbench: if beside.is_file() { beside } else { PathBuf::from("pgbench") },
            major: cluster.binaries().major(),
            directory,
            load_before,
            nodes: cluster.nodes().iter().map(|node| local(node.port())).collect(),
        })
    }

    pub fn primary(&self) -> SocketAddr {
        self.nodes[0]
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.directory);
    }
}

/// One way to the cluster.
pub struct Peer {
    pub name: &'static str,
    pub address: SocketAddr,
    process: Option<Child>,
    prepared_database: Option<&'static str>,
}

impl Peer {
    /// The process whose CPU and memory count, if there is one between client and server.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Child::id)
    }

    /// The database to ask for, which for an old PgBouncer depends on the protocol.
    pub fn database(&self, protocol: Protocol) -> &'static str {
        match protocol {
            Protocol::Prepared => self.prepared_database.unwrap_or("postgres"),
            Protocol::Simple | Protocol::Extended => "postgres",
        }
    }

    /// What a reader of the figures must know.
    pub fn remark(&self, protocol: Protocol) -> &'static str {
        match self.prepared_database {
            Some(_) if protocol == Protocol::Prepared => {
                " (session mode: this version cannot keep prepared statements in transaction mode)"
            }
            _ => "",
        }
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        if let Some(process) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// Starts the peers asked for; those that are missing or do not start are named and left out.
pub fn start(site: &Site, wanted: &[String]) -> Vec<Peer> {
    let mut peers = Vec::new();
    for name in wanted {
        let started = match name.as_str() {
            "direct" => Ok(direct(site)),
            "floor" => floor(site),
            "pgbouncer" => pgbouncer(site),
            "pgsteer" => pgsteer(site),
            other => Err(anyhow::anyhow!("no peer has the name {other}")),
        };
        match started.and_then(|peer| answering(site, peer)) {
            Ok(peer) => peers.push(peer),
            Err(error) => eprintln!("end_to_end: {name} is left out: {error:#}"),
        }
    }
    peers
}

fn direct(site: &Site) -> Peer {
    Peer { name: "direct", address: site.primary(), process: None, prepared_database: None }
}

fn floor(site: &Site) -> anyhow::Result<Peer> {
    let address = free_address()?;
    let mut command = Command::new(std::env::current_exe()?);
    command.arg("floor").arg(address.to_string()).arg(site.primary().to_string()).stdin(Stdio::piped());
    launch(site, "floor", address, &mut command)
}

fn pgsteer(site: &Site) -> anyhow::Result<Peer> {
    let address = free_address()?;
    let nodes: Vec<String> = site.nodes.iter().map(SocketAddr::to_string).collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_pgsteer"));
    command.args(["run", "--auth", "trust", "--user", site.user]);
    command.args(["--nodes", &nodes.join(","), "--listen", &address.to_string()]);
    if let Ok(more) = std::env::var("PGSTEER_BENCH_ARGS") {
        command.args(more.split_whitespace());
    }
    launch(site, "pgsteer", address, &mut command)
}

fn pgbouncer(site: &Site) -> anyhow::Result<Peer> {
    let program = find_pgbouncer().context("PgBouncer is not installed; `make setup` installs it")?;
    let keeps_prepared = version(&program)? >= PREPARED_SINCE;
    let address = free_address()?;
    let directory = site.directory.join("pgbouncer");
    fs::create_dir_all(&directory)?;
    let users = directory.join("users");
    fs::write(&users, format!("\"{}\" \"\"\n", site.user))?;
    let configuration = directory.join("pgbouncer.ini");
    let primary = site.primary();
    let server = format!("host={} port={}", primary.ip(), primary.port());
    let mut text = format!(
        "[databases]\n{SESSION_DATABASE} = {server} dbname=postgres pool_mode=session\n* = {server}\n\
         [pgbouncer]\nlisten_addr = {}\nlisten_port = {}\nunix_socket_dir =\nauth_type = trust\nauth_file = {}\n\
         pool_mode = transaction\nmax_client_conn = 20000\ndefault_pool_size = 20\nlogfile =\npidfile =\n",
        address.ip(),
        address.port(),
        users.display()
    );
    if keeps_prepared {
        text.push_str("max_prepared_statements = 100\n");
    }
    fs::write(&configuration, text)?;

    let mut command = Command::new(&program);
    command.arg(&configuration);
    if Uid::effective().is_root() {
        lend_account(&mut command, &[&site.directory, &directory, &users, &configuration])?;
    }
    let mut peer = launch(site, "pgbouncer", address, &mut command)?;
    peer.prepared_database = (!keeps_prepared).then_some(SESSION_DATABASE);
    Ok(peer)
}

/// PgBouncer refuses to run as root.
fn lend_account(command: &mut Command, files: &[&Path]) -> anyhow::Result<()> {
    let accounts = ["postgres", "nobody"];
    let user = accounts.iter().find_map(|name| User::from_name(name).ok().flatten());
    let user = user.context("neither the account postgres nor nobody exists")?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    for file in files {
        chown(file, Some(uid), Some(gid))?;
    }
    command.uid(uid).gid(gid);
    Ok(())
}

fn find_pgbouncer() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut directories: Vec<PathBuf> = std::env::split_paths(&path).collect();
    directories.push(PathBuf::from("/usr/sbin"));
    directories.into_iter().map(|directory| directory.join("pgbouncer")).find(|program| program.is_file())
}

/// Major and minor, from `PgBouncer 1.24.1`.
fn version(program: &Path) -> anyhow::Result<(u32, u32)> {
    let output = Command::new(program).arg("--version").output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let number = text.split_whitespace().nth(1).context("PgBouncer does not tell its version")?;
    let mut parts = number.split('.').map(str::parse);
    match (parts.next(), parts.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Ok((major, minor)),
        _ => bail!("PgBouncer's version {number} is not understood"),
    }
}

fn launch(
    site: &Site,
    name: &'static str,
    address: SocketAddr,
    command: &mut Command,
) -> anyhow::Result<Peer> {
    let log = File::create(site.directory.join(format!("{name}.log")))?;
    command.stdout(log.try_clone()?).stderr(log);
    let process = command.spawn().with_context(|| format!("start {name}"))?;
    Ok(Peer { name, address, process: Some(process), prepared_database: None })
}

/// Waits until the peer answers a query; a peer that ends before shows its last words.
fn answering(site: &Site, mut peer: Peer) -> anyhow::Result<Peer> {
    let until = Instant::now() + START_BOUND;
    loop {
        let error = match wire::Connection::open(peer.address, site.user, "postgres")
            .and_then(|mut connection| connection.query("SELECT 1"))
        {
            Ok(()) => return Ok(peer),
            Err(error) => error,
        };
        let ended = match &mut peer.process {
            Some(process) => process.try_wait()?,
            None => None,
        };
        if ended.is_some() || Instant::now() > until {
            let log =
                fs::read_to_string(site.directory.join(format!("{}.log", peer.name))).unwrap_or_default();
            let state = ended.map_or("does not answer".to_owned(), |status| format!("ended with {status}"));
            bail!("it {state}: {error:#}; {}", log.lines().last().unwrap_or("it logged nothing"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn local(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}

fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(TcpListener::bind(local(0))?.local_addr()?)
}
