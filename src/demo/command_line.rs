//! The arguments of `pgsteer demo`, and what its exit status says. It only repeats runs and prints.

use std::process::ExitCode;

use tokio::signal::unix::{SignalKind, signal};

use super::Error;
use super::report::{Report, summary};
use super::scenario::Stage;
use super::screen::Screen;

/// Arguments of `pgsteer demo`.
#[derive(Debug, Clone, clap::Args)]
pub struct DemoArgs {
    /// Number of runs, each with a new cluster; the median and the worst are printed.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Stay up after the last run, and print how to connect.
    #[arg(long)]
    pub keep: bool,
    /// Acknowledge commits without waiting for a standby: PostgreSQL itself may then lose some.
    #[arg(long = "async")]
    pub asynchronous: bool,
    /// Clients that write.
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=50))]
    pub writers: u16,
    /// Clients that read.
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=200))]
    pub readers: u16,
    /// Seconds before the primary is killed.
    #[arg(long, default_value_t = 5, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..))]
    pub seconds: u64,
}

/// How a demonstration ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every promise was kept.
    Kept,
    /// An acknowledged write was lost or doubled, or a client connection was dropped.
    Broken,
    /// Ctrl-C ended it before there was a result.
    Interrupted,
    /// SIGTERM did.
    Terminated,
}

impl From<Outcome> for ExitCode {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Kept => Self::SUCCESS,
            Outcome::Broken => Self::FAILURE,
            // As a shell says it of a process that the signal ended.
            Outcome::Interrupted => Self::from(130),
            Outcome::Terminated => Self::from(143),
        }
    }
}

/// Runs the demonstration and prints what it shows. It ends at once on Ctrl-C or SIGTERM, and leaves nothing behind.
///
/// # Errors
/// The cluster or the proxy could not be set up, or did not come back; the text says what to look at.
pub async fn run(args: DemoArgs) -> Result<Outcome, Error> {
    let mut interrupt = signal(SignalKind::interrupt()).map_err(Error::io("listen for Ctrl-C"))?;
    let mut terminate = signal(SignalKind::terminate()).map_err(Error::io("listen for SIGTERM"))?;
    let screen = Screen::new();
    let (stage, outcome) = {
        let played = tokio::select! {
            played = play_all(&args, &screen) => played,
            _ = interrupt.recv() => Ok((None, Outcome::Interrupted)),
            _ = terminate.recv() => Ok((None, Outcome::Terminated)),
        };
        screen.flow();
        played?
    };
    let Some(stage) = stage else { return Ok(outcome) };
    let kept = tokio::select! {
        kept = keep(&stage, &screen) => kept,
        _ = interrupt.recv() => Ok(()),
        _ = terminate.recv() => Ok(()),
    };
    stage.clear().await;
    kept.map(|()| outcome)
}

/// All runs; the last one's stage is given back if it is to be kept.
async fn play_all(args: &DemoArgs, screen: &Screen) -> Result<(Option<Stage>, Outcome), Error> {
    let mut reports: Vec<Report> = Vec::new();
    let mut kept = None;
    for number in 1..=args.runs {
        let mut stage = Stage::set(args, screen).await?;
        let report = stage.play(args, screen).await?;
        if args.runs > 1 {
            screen.event(&format!("run {number} of {}: {}", args.runs, report.line()));
        } else {
            screen.print(&format!("\n{}\n", report.text()));
        }
        reports.push(report);
        if args.keep && number == args.runs {
            kept = Some(stage);
        } else {
            stage.clear().await;
        }
    }
    if let Some(summary) = summary(&reports) {
        screen.print(&summary);
    }
    let outcome = if reports.iter().all(Report::is_good) { Outcome::Kept } else { Outcome::Broken };
    let verdict = match outcome {
        Outcome::Kept => {
            "Every acknowledged write is there exactly once, and no client lost its connection.\n"
        }
        _ if args.asynchronous => {
            "Acknowledged writes or connections were lost. With --async PostgreSQL itself loses commits that no standby had.\n"
        }
        _ => "A PROMISE WAS BROKEN: see the counts above.\n",
    };
    screen.print(verdict);
    Ok((kept, outcome))
}

/// Makes the cluster whole, says how to reach it, and waits for ever.
async fn keep(stage: &Stage, screen: &Screen) -> Result<(), Error> {
    let (sandbox, proxy) = (&stage.sandbox, &stage.proxy);
    let old = sandbox.nodes().iter().find(|node| !node.is_running());
    if let Some(old) = old {
        sandbox.reattach(old.index(), sandbox.primary().index()).await?;
        screen.event(&format!("{} is back, as a standby of {}", old.name(), sandbox.primary().name()));
    }
    let (user, password) = (sandbox.user(), sandbox.password());
    let (database, listen) = (super::clients::DATABASE, proxy.listen);
    screen.print(&format!(
        "\n  psql 'postgresql://{user}:{password}@{listen}/{database}'\n  \
         curl http://{}/topology\n\nCtrl-C ends it and removes everything.\n",
        proxy.admin
    ));
    std::future::pending().await
}
