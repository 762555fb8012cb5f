//! `pgsteer sandbox`: a cluster to play with, until Ctrl-C. It only prints and waits.

use std::fmt::Write as _;
use std::io::Write as _;

use tokio::signal::unix::{SignalKind, signal};

use super::{Error, Sandbox, Sync};

/// Arguments of `pgsteer sandbox`.
#[derive(Debug, Clone, clap::Args)]
pub struct SandboxArgs {
    /// How many standbys follow the primary.
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=9))]
    pub standbys: u8,
    /// Acknowledge commits without waiting for a standby.
    #[arg(long = "async")]
    pub asynchronous: bool,
    /// Let standbys hold back vacuum on the primary for the sake of their reads.
    #[arg(long)]
    pub hot_standby_feedback: bool,
}

/// Starts a cluster, prints how to reach it, and keeps it until Ctrl-C or SIGTERM.
///
/// # Errors
/// The cluster can't be set up; the text says what to do.
pub async fn run(args: SandboxArgs) -> Result<(), Error> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listen for Ctrl-C"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listen for SIGTERM"))?;
    let sync = if args.asynchronous { Sync::Async } else { Sync::Any1 };
    let builder = Sandbox::builder()
        .standbys(args.standbys.into())
        .sync(sync)
        .hot_standby_feedback(args.hot_standby_feedback)
        .fsync(true);
    let stay = async {
        let sandbox = builder.start().await?;
        // A closed pipe is no reason to end: the cluster is there for others.
        let _ = std::io::stdout().write_all(description(&sandbox).as_bytes());
        std::future::pending::<Result<(), Error>>().await
    };
    tokio::select! {
        ended = stay => ended,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    }
}

fn description(sandbox: &Sandbox) -> String {
    let mut text =
        format!("PostgreSQL {} in {}\n", sandbox.binaries().major(), sandbox.directory().display());
    for node in sandbox.nodes() {
        let role = if node.upstream().is_some() { "standby" } else { "primary" };
        let _ = writeln!(text, "{}  {role}  {}  psql '{}'", node.name(), node.address(), node.url());
    }
    text.push_str("Ctrl-C ends it and removes everything.\n");
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Command {
        #[command(flatten)]
        sandbox: SandboxArgs,
    }

    #[test]
    fn more_standbys_than_a_cluster_has_slots_for_are_refused_at_once() {
        let parse = |count: &str| Command::try_parse_from(["sandbox", "--standbys", count]);
        assert_eq!(parse("0").map(|it| it.sandbox.standbys).ok(), Some(0));
        assert_eq!(parse("9").map(|it| it.sandbox.standbys).ok(), Some(9));
        let error = parse("200").expect_err("too many").to_string();
        assert!(error.contains("200 is not in 0..=9"), "{error}");
    }
}
