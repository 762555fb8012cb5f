//! The command line: `run`, `check`, `explain`, `pause`, `resume`, `hint`, `demo`, `sandbox`.
//!
//! Must not know: how any of them works.

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::admin::command_line::{self as admin, HintArgs, PauseArgs, ResumeArgs};
use crate::config::{self, CheckArgs, Faults, RunArgs};
use crate::demo::{self, DemoArgs};
use crate::explain::{self, ExplainArgs};
use crate::sandbox::{self, SandboxArgs};

/// A PostgreSQL proxy that steers each statement to the right node of a replicated cluster.
#[derive(Debug, Parser)]
#[command(name = "pgsteer", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the proxy
    Run(Box<RunArgs>),
    /// Check a configuration and report all its faults
    Check(CheckArgs),
    /// Tell where statements go, and why
    Explain(ExplainArgs),
    /// Hold what would begin on the primary, before a switchover or a restart
    Pause(PauseArgs),
    /// End a pause
    Resume(ResumeArgs),
    /// Say that the primary changes, so that it is looked for at once
    Hint(HintArgs),
    /// Show a failover of a real local cluster under load
    Demo(DemoArgs),
    /// Start a real local cluster to try things on
    Sandbox(SandboxArgs),
}

/// Runs the program.
pub fn main() -> ExitCode {
    match dispatch(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("pgsteer: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(args) => match args.sources().and_then(config::load) {
            Ok(config) => {
                config.log.init()?;
                crate::app::run(config)?;
                Ok(ExitCode::SUCCESS)
            }
            Err(faults) => Ok(report(&faults)),
        },
        Command::Check(args) => match args.sources().and_then(config::load) {
            Ok(config) => {
                println!("{}", valid(config.cluster.nodes.len()));
                Ok(ExitCode::SUCCESS)
            }
            Err(faults) => Ok(report(&faults)),
        },
        Command::Explain(args) => {
            runtime()?.block_on(explain::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Pause(args) => Ok(runtime()?.block_on(admin::pause(args))?),
        Command::Resume(args) => Ok(runtime()?.block_on(admin::resume(args))?),
        Command::Hint(args) => Ok(runtime()?.block_on(admin::hint(args))?),
        Command::Demo(args) => Ok(runtime()?.block_on(demo::run(args))?.into()),
        Command::Sandbox(args) => {
            runtime()?.block_on(sandbox::run(args))?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn valid(nodes: usize) -> String {
    format!("The configuration is valid ({nodes} node{}).", if nodes == 1 { "" } else { "s" })
}

fn report(faults: &Faults) -> ExitCode {
    eprintln!("{faults}");
    ExitCode::from(2)
}

fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn nodes_are_counted_as_people_do() {
        assert_eq!(valid(1), "The configuration is valid (1 node).");
        assert_eq!(valid(3), "The configuration is valid (3 nodes).");
    }

    #[test]
    fn help_names_each_variable_in_one_form() {
        let mut command = Arguments::command();
        let run = command.find_subcommand_mut("run").expect("run");
        let help = run.render_help().to_string();
        assert!(help.contains("[env: PGSTEER_CONFIG]") && help.contains("[env: PGSTEER_NODES]"), "{help}");
    }
}
