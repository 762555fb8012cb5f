//! What figures are made of: pgbench, and the CPU time of a process.

use std::path::PathBuf;
use std::time::Duration;

use pgsteer::sandbox::Sandbox;
use tokio::process::Command;

/// Clock ticks of `/proc` in a second (USER_HZ).
const TICKS_PER_SECOND: f64 = 100.0;

fn pgbench(sandbox: &Sandbox) -> PathBuf {
    let beside = sandbox.binaries().program("pgbench");
    if beside.is_file() { beside } else { PathBuf::from("pgbench") }
}

/// Runs pgbench, and gives its transactions per second.
pub async fn bench(sandbox: &Sandbox, port: u16, args: &[&str]) -> f64 {
    let mut command = Command::new(pgbench(sandbox));
    command.args(["-h", "127.0.0.1", "-p", &port.to_string(), "-U", sandbox.user()]).args(args);
    let output = command.arg("postgres").env("PGSSLMODE", "disable").output().await.unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    let tps = text.lines().find_map(|line| line.strip_prefix("tps = "));
    tps.map_or(0.0, |rest| rest.split(' ').next().unwrap().parse().unwrap())
}

/// CPU time of a process, all of its threads.
pub fn cpu(process: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The name in parentheses may have blanks; the fields behind it are counted from 3 (proc(5)): utime is 14, stime 15.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    let ticks: f64 = fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap();
    Duration::from_secs_f64(ticks / TICKS_PER_SECOND)
}

/// The middle one.
pub fn median(mut of: Vec<f64>) -> f64 {
    of.sort_by(f64::total_cmp);
    of[of.len() / 2]
}
