//! What can go wrong in a sandbox, each with what to do about it. It knows nothing of how the faults arise.
//!
//! Invariant: a text does not repeat its source; whoever prints an error prints the chain of its sources.

use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

/// Why a sandbox could not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No usable server binaries on this machine.
    #[error(
        "no PostgreSQL server 14 or newer found: install one (apt-get install postgresql, \
         dnf install postgresql-server, apk add postgresql, brew install postgresql@17), \
         or set PGSTEER_PG_BIN to its bin directory"
    )]
    NoServer,
    /// `PGSTEER_PG_BIN` names a directory that does not do.
    #[error("PGSTEER_PG_BIN={} can't be used, {problem}: point it at the bin directory of a PostgreSQL server 14 or newer, or unset it", path.display())]
    BadServer {
        /// The directory.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// Running as root, and there is no account to run the server under.
    #[error(
        "PostgreSQL refuses to run as root and there is neither an account `postgres` nor `nobody`: create one, or start this as an ordinary user"
    )]
    NoAccount,
    /// The operating system refused something.
    #[error("can't {what}")]
    Io {
        /// What was tried.
        what: String,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// One of PostgreSQL's own programs failed.
    #[error("`{program}` failed ({status}); its last words: {output}")]
    Tool {
        /// The program.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// A server ended while it should have started.
    #[error("node {node} ended while starting ({status}); the end of its log: {log}")]
    Ended {
        /// The node.
        node: String,
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// No free port in the range the sandbox uses.
    #[error("no free port between 20000 and 30000 on 127.0.0.1: end other sandboxes")]
    NoPort,
    /// Something did not come true in time.
    #[error("waited {} s in vain until {what}: look into the node's log, or at the machine's load", after.as_secs())]
    TimedOut {
        /// What was waited for.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The node has no process.
    #[error("node {node} is not running: call start() first")]
    NotRunning {
        /// The node.
        node: String,
    },
    /// The node has a process already.
    #[error("node {node} is running already: stop it first")]
    Running {
        /// The node.
        node: String,
    },
    /// No standby answers.
    #[error("no standby answers: start one, or reattach a node, before choosing the most advanced")]
    NoStandby,
    /// A server answered with an error, or not at all.
    #[error("node {node} did not {what} (its log says why)")]
    Sql {
        /// The node.
        node: String,
        /// What was asked.
        what: String,
        /// The driver's error.
        source: tokio_postgres::Error,
    },
}

impl Error {
    pub(super) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Io { what, source }
    }

    /// Whether a server could not start because another process took its port.
    pub(super) fn is_port_taken(&self) -> bool {
        matches!(self, Self::Ended { log, .. } if log.contains("Address already in use")
            || log.contains("could not create any TCP/IP sockets"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let error = anyhow::Error::from(Error::io("make the directory /x")(refused));
        assert_eq!(format!("{error:#}"), "can't make the directory /x: permission denied");
    }
}
