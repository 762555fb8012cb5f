//! Arguments of the bench. Must not know: how anything is measured.

use std::net::SocketAddr;

use clap::{Parser, Subcommand, ValueEnum};

use crate::load::Protocol;

/// Compares pgsteer with a direct connection, a floor, and PgBouncer.
#[derive(Debug, Parser)]
#[command(name = "end_to_end")]
#[expect(clippy::struct_excessive_bools, reason = "switches of a command line are independent")]
pub struct Options {
    /// Rounds; every figure is the median over them.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of each run of pgbench.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// One round of two seconds: does it work at all?
    #[arg(long)]
    quick: bool,
    /// What to measure; everything unless told.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Case>,
    /// Whom to measure.
    #[arg(long, value_delimiter = ',', default_value = "direct,floor,pgbouncer,pgsteer")]
    pub peers: Vec<String>,
    /// Query modes of pgbench.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "simple,prepared,extended")]
    pub protocols: Vec<Protocol>,
    /// Clients of pgbench.
    #[arg(long, default_value_t = 16)]
    pub clients: u32,
    /// Scale of pgbench's tables.
    #[arg(long, default_value_t = 10)]
    pub scale: u32,
    /// Idle connections for the memory figure.
    #[arg(long, default_value_t = 1000)]
    pub idle_clients: usize,
    /// Statements for the count of system calls.
    #[arg(long, default_value_t = 4000)]
    pub traced_statements: u32,
    /// Append the tables to benches/RESULTS.md.
    #[arg(long)]
    pub record: bool,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    pub bench: bool,
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What this binary can be besides the bench.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// The floor, as a process of its own so that its CPU time can be read.
    #[command(hide = true)]
    Floor {
        /// Where clients come.
        listen: SocketAddr,
        /// Where the server is.
        upstream: SocketAddr,
    },
}

/// One kind of figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Case {
    /// Statements per second, latency, CPU per statement.
    Throughput,
    /// System calls per statement at one client.
    Syscalls,
    /// Memory per idle client.
    Memory,
}

impl Options {
    pub fn runs(&self, case: Case) -> bool {
        self.only.is_empty() || self.only.contains(&case)
    }

    pub fn rounds(&self) -> usize {
        if self.quick { 1 } else { self.rounds }
    }

    pub fn seconds(&self) -> u32 {
        if self.quick { 2 } else { self.seconds }
    }
}
