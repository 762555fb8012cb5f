//! End-to-end comparison by pgbench: direct, a floor that parses nothing, PgBouncer, and pgsteer with splitting on.
//!
//! Everything it needs it starts itself: a cluster of the sandbox, the floor (this binary once more), PgBouncer, pgsteer.
//! Rounds are interleaved and the start rotates, every figure is a median over the rounds. See benches/README.md.
//! Invariant: a peer that is missing or fails is named in the output and never stops the others.
//! Must not know: pgsteer's insides; it is measured as the process users run.

#[path = "../floor/relay.rs"]
mod floor;
mod idle;
mod load;
mod options;
mod peers;
mod process;
mod report;
mod wire;

use std::collections::BTreeMap;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use pgsteer::sandbox::{Auth, Sandbox};

use load::Protocol;
use options::{Case, Command, Options};
use peers::Peer;
use report::Report;

fn main() -> ExitCode {
    let options = Options::parse();
    let outcome = match options.command {
        Some(Command::Floor { listen, upstream }) => floor::run(listen, upstream),
        // `cargo test --all-targets` starts benches too, without this flag: there it only has to compile.
        None if !options.bench => {
            println!("end_to_end: run it with `cargo bench --bench end_to_end`");
            Ok(())
        }
        None => compare(&options),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("end_to_end: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn compare(options: &Options) -> anyhow::Result<()> {
    process::raise_file_limit()?;
    let load_before = process::load_average();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let cluster = Sandbox::builder().standbys(2).auth(Auth::Trust).max_connections(300);
    let cluster = runtime.block_on(cluster.start()).context("start a cluster")?;
    let site = peers::Site::new(&cluster, load_before)?;
    load::initialise(&site, options.scale)?;
    runtime.block_on(cluster.wait_caught_up())?;
    let peers = peers::start(&site, &options.peers);

    let mut report = Report::default();
    if options.runs(Case::Throughput) {
        for protocol in &options.protocols {
            let rounds = throughput(&site, &peers, *protocol, options);
            report.throughput(*protocol, &peers, &rounds);
        }
    }
    if options.runs(Case::Syscalls) {
        for protocol in &options.protocols {
            let counts = each(&peers, |peer| process::system_calls(&site, peer, *protocol, options));
            report.system_calls(*protocol, &peers, &counts);
        }
    }
    if options.runs(Case::Memory) {
        // Each client of the floor holds a server connection of its own: it cannot have so many.
        let pooling = peers.iter().filter(|peer| peer.name != "floor");
        let growth = each(pooling, |peer| idle::memory(&site, peer, options.idle_clients));
        report.memory(options.idle_clients, &peers, &growth);
    }
    let text = report.finish(&site, options);
    println!("{text}");
    if options.record { report::record(&text) } else { Ok(()) }
}

/// What was measured of each peer, by its name: one entry per round that worked, or what went wrong.
type Rounds<T> = BTreeMap<&'static str, Vec<anyhow::Result<T>>>;

fn throughput(
    site: &peers::Site,
    peers: &[Peer],
    protocol: Protocol,
    options: &Options,
) -> Rounds<load::Measurement> {
    for peer in peers {
        // Fills pools and caches; a failure shows in the rounds again.
        let _ = load::pgbench(site, peer, protocol, options.clients, load::Length::Seconds(1));
    }
    let mut rounds = Rounds::new();
    for round in 0..options.rounds() {
        let start = round % peers.len().max(1);
        for peer in peers[start..].iter().chain(&peers[..start]) {
            let length = load::Length::Seconds(options.seconds());
            let measured = load::pgbench(site, peer, protocol, options.clients, length);
            progress(protocol.as_str(), round, peer, &measured);
            rounds.entry(peer.name).or_default().push(measured);
        }
    }
    rounds
}

fn progress(what: &str, round: usize, peer: &Peer, measured: &anyhow::Result<load::Measurement>) {
    match measured {
        Ok(it) => eprintln!(
            "{what} round {}: {:<10} {:>8.0} tps  cpu {:>6.1} us",
            round + 1,
            peer.name,
            it.statements_per_second,
            it.cpu_us
        ),
        Err(error) => eprintln!("{what} round {}: {:<10} failed: {error:#}", round + 1, peer.name),
    }
}

/// Measures each peer that is a process of its own once: figures that hardly vary.
fn each<'a, T>(
    peers: impl IntoIterator<Item = &'a Peer>,
    measure: impl Fn(&Peer) -> anyhow::Result<T>,
) -> Rounds<T> {
    let processes = peers.into_iter().filter(|peer| peer.pid().is_some());
    processes.map(|peer| (peer.name, vec![measure(peer)])).collect()
}
