//! One run of pgbench against one peer, and what it and the peer's process tell afterwards.
//!
//! Must not know: rounds, ratios.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum;
use hdrhistogram::Histogram;

use crate::peers::{Peer, Site};
use crate::process::CpuTime;

/// The share of statements whose latency is logged: all of them would cost pgbench more than the statements.
const LATENCY_SAMPLE: f64 = 0.1;

/// How pgbench sends its statements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// Simple queries.
    Simple,
    /// Extended protocol, unnamed statements.
    Extended,
    /// Extended protocol, named statements prepared once.
    Prepared,
}

impl Protocol {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Simple => "simple",
            Self::Extended => "extended",
            Self::Prepared => "prepared",
        }
    }
}

/// How long a run is.
#[derive(Debug, Clone, Copy)]
pub enum Length {
    Seconds(u32),
    StatementsPerClient(u32),
}

/// What one run gave.
#[derive(Debug, Clone, Copy)]
pub struct Measurement {
    pub statements: f64,
    pub statements_per_second: f64,
    pub p50_us: f64,
    pub p99_us: f64,
    /// CPU time of the peer's process for a statement, user and system together.
    pub cpu_us: f64,
    /// The system's share of it.
    pub system_us: f64,
}

/// Makes pgbench's tables on the primary.
pub fn initialise(site: &Site, scale: u32) -> anyhow::Result<()> {
    let mut command = base(site, site.primary());
    command.args(["-i", "-q", "-s", &scale.to_string(), "postgres"]);
    let output = command.output().context("run pgbench")?;
    if output.status.success() { Ok(()) } else { bail!("pgbench -i: {}", last_words(&output)) }
}

/// Runs `pgbench -S` through a peer.
pub fn pgbench(
    site: &Site,
    peer: &Peer,
    protocol: Protocol,
    clients: u32,
    length: Length,
) -> anyhow::Result<Measurement> {
    let logs = site.directory.join("latency");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    let mut command = base(site, peer.address);
    command.args(["-n", "-S", "-M", protocol.as_str()]);
    command.args(["-c", &clients.to_string(), "-j", &clients.min(2).to_string()]);
    match length {
        Length::Seconds(seconds) => {
            command.args([
                "-T",
                &seconds.to_string(),
                "--log",
                "--sampling-rate",
                &LATENCY_SAMPLE.to_string(),
            ]);
            command.arg("--log-prefix").arg(logs.join("log"));
        }
        Length::StatementsPerClient(count) => {
            command.args(["-t", &count.to_string()]);
        }
    }
    command.arg(peer.database(protocol));

    let before = CpuTime::of(peer.pid())?;
    let output = command.output().context("run pgbench")?;
    let used = CpuTime::of(peer.pid())?.since(before);
    let text = String::from_utf8_lossy(&output.stdout);
    let statements = figure(&text, "transactions actually processed: ").unwrap_or_default();
    let is_partial = String::from_utf8_lossy(&output.stderr).contains("aborted");
    if !output.status.success() || is_partial || statements < 1.0 {
        bail!("pgbench: {}", last_words(&output));
    }
    let latency = latencies(&logs)?;
    let per_statement = |time: Duration| time.as_secs_f64() * 1e6 / statements;
    Ok(Measurement {
        statements,
        statements_per_second: figure(&text, "tps = ").context("pgbench tells no tps")?,
        p50_us: latency.value_at_quantile(0.50) as f64,
        p99_us: latency.value_at_quantile(0.99) as f64,
        cpu_us: per_statement(used.user + used.system),
        system_us: per_statement(used.system),
    })
}

fn base(site: &Site, address: std::net::SocketAddr) -> Command {
    let mut command = Command::new(&site.pgbench);
    command.args(["-h", &address.ip().to_string(), "-p", &address.port().to_string(), "-U", site.user]);
    command.env("PGSSLMODE", "disable").env("PGGSSENCMODE", "disable").env("PGCONNECT_TIMEOUT", "10");
    command
}

/// The number after a text in pgbench's report.
fn figure(report: &str, after: &str) -> Option<f64> {
    let rest = &report[report.find(after)? + after.len()..];
    let end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
    rest[..end].parse().ok()
}

fn last_words(output: &Output) -> String {
    let text = String::from_utf8_lossy(&output.stderr);
    let telling = text.lines().find(|line| line.contains("ERROR") || line.contains("FATAL"));
    telling.or(text.lines().last()).unwrap_or("it ended without a word").to_owned()
}

/// Reads pgbench's logs: `client transaction latency_us ...` on each line.
fn latencies(directory: &Path) -> anyhow::Result<Histogram<u64>> {
    let mut histogram = Histogram::new(3)?;
    for entry in fs::read_dir(directory)? {
        let text = fs::read_to_string(entry?.path())?;
        for latency_us in text.lines().filter_map(|line| line.split(' ').nth(2)?.parse::<u64>().ok()) {
            histogram.record(latency_us)?;
        }
    }
    Ok(histogram)
}
