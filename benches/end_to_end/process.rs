//! What the kernel tells of a process: CPU time, memory, system calls. Linux only.
//!
//! Must not know: what the process is for.

use std::collections::BTreeMap;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::load::{Length, Protocol, pgbench};
use crate::options::Options;
use crate::peers::{Peer, Site};

/// How long strace may take to attach to every thread.
const ATTACH_BOUND: Duration = Duration::from_secs(10);

/// Open files that the idle clients of the bench and of its peers need.
const FILES: u64 = 65_536;

/// CPU time of a process, its threads included.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuTime {
    pub user: Duration,
    pub system: Duration,
}

impl CpuTime {
    /// The time used so far; none for a peer without a process.
    pub fn of(pid: Option<u32>) -> anyhow::Result<Self> {
        let Some(pid) = pid else { return Ok(Self::default()) };
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).context("the peer's process has ended")?;
        // The name in parentheses may hold anything; the fields are counted from its end.
        let (_, fields) = text.rsplit_once(')').context("malformed /proc/PID/stat")?;
        let mut fields = fields.split_whitespace().skip(11).map(str::parse::<u64>);
        let ticks_per_second = sysconf(SysconfVar::CLK_TCK)?.context("no clock tick")?;
        let mut next = || -> anyhow::Result<Duration> {
            let ticks = fields.next().context("malformed /proc/PID/stat")??;
            Ok(Duration::from_secs_f64(ticks as f64 / ticks_per_second as f64))
        };
        Ok(Self { user: next()?, system: next()? })
    }

    pub fn since(self, before: Self) -> Self {
        Self {
            user: self.user.saturating_sub(before.user),
            system: self.system.saturating_sub(before.system),
        }
    }
}

/// Bytes of memory of its own that a process holds.
pub fn anonymous_bytes(pid: u32) -> anyhow::Result<u64> {
    let kilobytes: u64 = status_field(&format!("/proc/{pid}/status"), "RssAnon:")?;
    Ok(kilobytes * 1024)
}

fn status_field(path: &str, name: &str) -> anyhow::Result<u64> {
    let text = fs::read_to_string(path).context("the peer's process has ended")?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)).context("the field is missing")?;
    Ok(line.split_whitespace().next().context("the field is empty")?.parse()?)
}

/// Lets this process and its children open as many files as the system permits.
pub fn raise_file_limit() -> anyhow::Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    Ok(setrlimit(Resource::RLIMIT_NOFILE, soft.max(hard.min(FILES)), hard)?)
}

/// The machine's load average over one minute.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("unknown").to_owned()
}

/// System calls for a statement, by name.
pub type SystemCalls = BTreeMap<String, f64>;

/// Counts the system calls of a peer's process while one client runs statements.
pub fn system_calls(
    site: &Site,
    peer: &Peer,
    protocol: Protocol,
    options: &Options,
) -> anyhow::Result<SystemCalls> {
    let pid = peer.pid().context("there is no process")?;
    // Pools are warm, so that no login is counted.
    pgbench(site, peer, protocol, 1, Length::StatementsPerClient(10))?;
    let summary = site.directory.join("strace");
    let mut tracer = Command::new("strace")
        .args(["-c", "-f", "-p", &pid.to_string(), "-o"])
        .arg(&summary)
        .stderr(Stdio::null())
        .spawn()
        .context("strace is not installed")?;
    let measured = wait_attached(pid, &mut tracer).and_then(|()| {
        pgbench(site, peer, protocol, 1, Length::StatementsPerClient(options.traced_statements))
    });
    let _ = kill(Pid::from_raw(i32::try_from(tracer.id())?), Signal::SIGINT);
    tracer.wait()?;
    let statements = measured?.statements;
    Ok(parse_summary(&fs::read_to_string(&summary)?, statements))
}

fn wait_attached(pid: u32, tracer: &mut std::process::Child) -> anyhow::Result<()> {
    let until = Instant::now() + ATTACH_BOUND;
    while !is_traced(pid)? {
        if tracer.try_wait()?.is_some() {
            bail!("strace may not attach");
        }
        if Instant::now() > until {
            bail!("strace does not attach");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Whether every thread of a process has a tracer.
fn is_traced(pid: u32) -> anyhow::Result<bool> {
    for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
        let path = thread?.path().join("status");
        if status_field(&path.to_string_lossy(), "TracerPid:")? == 0 {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Reads the lines `% time, seconds, usecs/call, calls, [errors,] name` of `strace -c`.
fn parse_summary(text: &str, statements: f64) -> SystemCalls {
    let mut calls = SystemCalls::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let (Some(count), Some(name)) = (fields.get(3).and_then(|f| f.parse::<f64>().ok()), fields.last())
        else {
            continue;
        };
        if *name != "total" {
            calls.insert((*name).to_owned(), count / statements);
        }
    }
    calls
}
