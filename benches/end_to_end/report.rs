//! The tables: medians over the rounds, and ratios to PgBouncer and to the floor.
//!
//! Must not know: how the figures came about.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Command;

use anyhow::Context as _;

use crate::Rounds;
use crate::idle::Growth;
use crate::load::{Measurement, Protocol};
use crate::options::Options;
use crate::peers::{Peer, Site};
use crate::process::SystemCalls;

/// Where results are kept.
const RESULTS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/RESULTS.md");

/// The peers that ratios refer to.
const REFERENCES: [&str; 2] = ["pgbouncer", "floor"];

/// The tables so far.
#[derive(Default)]
pub struct Report {
    tables: String,
}

impl Report {
    pub fn throughput(&mut self, protocol: Protocol, peers: &[Peer], rounds: &Rounds<Measurement>) {
        let mut rows = Vec::new();
        for peer in peers {
            let of = |name: &str, figure: fn(&Measurement) -> f64| median(rounds, name, figure);
            let with_ratios = |figure: fn(&Measurement) -> f64| {
                REFERENCES.map(|reference| ratio(of(peer.name, figure), of(reference, figure)))
            };
            let is_process = peer.pid().is_some();
            let cpu = |figure: fn(&Measurement) -> f64| of(peer.name, figure).filter(|_| is_process);
            let [tps_pgbouncer, tps_floor] = with_ratios(|it| it.statements_per_second);
            let [cpu_pgbouncer, cpu_floor] =
                if is_process { with_ratios(|it| it.cpu_us) } else { REFERENCES.map(|_| number(None, 0)) };
            rows.push(vec![
                format!("{}{}", peer.name, peer.remark(protocol)),
                number(of(peer.name, |it| it.statements_per_second), 0),
                tps_pgbouncer,
                tps_floor,
                number(of(peer.name, |it| it.p50_us), 0),
                number(of(peer.name, |it| it.p99_us), 0),
                number(cpu(|it| it.cpu_us), 1),
                number(cpu(|it| it.system_us), 1),
                cpu_pgbouncer,
                cpu_floor,
            ]);
        }
        let head = "peer|statements/s|x pgbouncer|x floor|p50 us|p99 us|CPU us/statement|of it system\
                    |CPU x pgbouncer|CPU x floor";
        self.table(&format!("pgbench -S -M {}", protocol.as_str()), head, &rows);
        self.failures(rounds);
    }

    pub fn system_calls(&mut self, protocol: Protocol, peers: &[Peer], counts: &Rounds<SystemCalls>) {
        let mut rows = Vec::new();
        for peer in peers.iter().filter(|peer| peer.pid().is_some()) {
            let total = median(counts, peer.name, |calls| calls.values().sum());
            let Some(Ok(calls)) = counts.get(peer.name).and_then(|rounds| rounds.first()) else { continue };
            let mut by_count: Vec<(&String, &f64)> =
                calls.iter().filter(|(_, count)| **count >= 0.01).collect();
            by_count.sort_by(|a, b| b.1.total_cmp(a.1));
            let names: Vec<String> =
                by_count.iter().map(|(name, count)| format!("{name} {count:.2}")).collect();
            rows.push(vec![peer.name.to_owned(), number(total, 2), names.join(", ")]);
        }
        let title = format!("System calls per statement, one client, {}", protocol.as_str());
        self.table(&title, "peer|calls|which", &rows);
        self.failures(counts);
    }

    pub fn memory(&mut self, clients: usize, peers: &[Peer], growth: &Rounds<Growth>) {
        let mut rows = Vec::new();
        for peer in peers.iter().filter(|peer| growth.contains_key(peer.name)) {
            let of =
                |figure: fn(&Growth) -> f64| median(growth, peer.name, figure).map(|bytes| bytes / 1024.0);
            rows.push(vec![
                peer.name.to_owned(),
                number(of(|it| it.logged_in), 2),
                number(of(|it| it.after_query), 2),
            ]);
        }
        let title = format!("Memory per idle client, {clients} clients (RssAnon)");
        self.table(&title, "peer|kB logged in|kB after a query each", &rows);
        self.failures(growth);
    }

    /// The tables under a heading that says what they were measured on.
    pub fn finish(self, site: &Site, options: &Options) -> String {
        let cores = std::thread::available_parallelism().map_or(0, usize::from);
        format!(
            "## {}, {}\n\n{cores} cores, PostgreSQL {}, {}; load before {}; {} clients, scale {}, \
             medians of {} rounds of {} s, interleaved.\n{}",
            first_line("date", &["-u", "+%Y-%m-%d %H:%M UTC"]),
            first_line("git", &["describe", "--always", "--dirty"]),
            site.major,
            first_line("pgbouncer", &["--version"]),
            site.load_before,
            options.clients,
            options.scale,
            options.rounds(),
            options.seconds(),
            self.tables
        )
    }

    fn table(&mut self, title: &str, head: &str, rows: &[Vec<String>]) {
        let columns: Vec<&str> = head.split('|').collect();
        let rule: Vec<&str> =
            columns.iter().enumerate().map(|(i, _)| if i == 0 { "---" } else { "---:" }).collect();
        // Writing to a string cannot fail.
        let _ = writeln!(self.tables, "\n### {title}\n\n| {} |\n|{}|", columns.join(" | "), rule.join("|"));
        for row in rows {
            let _ = writeln!(self.tables, "| {} |", row.join(" | "));
        }
    }

    fn failures<T>(&mut self, rounds: &Rounds<T>) {
        for (name, results) in rounds {
            let failed: Vec<&anyhow::Error> =
                results.iter().filter_map(|result| result.as_ref().err()).collect();
            if let Some(first) = failed.first() {
                let _ = writeln!(
                    self.tables,
                    "\n{name}: {} of {} failed: {first:#}",
                    failed.len(),
                    results.len()
                );
            }
        }
    }
}

/// Appends the tables to the results kept in the repository.
pub fn record(text: &str) -> anyhow::Result<()> {
    let mut file = OpenOptions::new().append(true).create(true).open(RESULTS).context(RESULTS)?;
    Ok(write!(file, "\n{}\n", text.trim_end())?)
}

fn median<T>(rounds: &Rounds<T>, name: &str, figure: impl Fn(&T) -> f64) -> Option<f64> {
    let mut values: Vec<f64> =
        rounds.get(name)?.iter().filter_map(|it| it.as_ref().ok()).map(figure).collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(values[middle]),
        _ => Some(f64::midpoint(values[middle - 1], values[middle])),
    }
}

fn ratio(value: Option<f64>, reference: Option<f64>) -> String {
    let quotient = value.zip(reference).filter(|(_, reference)| *reference > 0.0);
    number(quotient.map(|(value, reference)| value / reference), 2)
}

fn number(value: Option<f64>, decimals: usize) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.decimals$}"))
}

fn first_line(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").trim().to_owned()
}
