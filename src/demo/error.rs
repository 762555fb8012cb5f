//! What can end a demonstration before it has a result, each with what to look at. It knows nothing of how it arises.
//!
//! Invariant: a text does not repeat its source; whoever prints an error prints the chain of its sources.

use std::process::ExitStatus;

/// Why the demonstration could not be carried through.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The cluster did not do what it was asked.
    #[error(transparent)]
    Sandbox(#[from] crate::sandbox::Error),
    /// The operating system refused something.
    #[error("can't {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The operating system's answer.
        source: std::io::Error,
    },
    /// A server answered with an error, or not at all.
    #[error("can't {what}")]
    Sql {
        /// What was tried.
        what: &'static str,
        /// The driver's error.
        source: tokio_postgres::Error,
    },
    /// The proxy ended while it should run.
    #[error("pgsteer ended by itself ({status}); the end of its log:\n{log}")]
    ProxyEnded {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// Something did not come true in time.
    #[error("waited {seconds} s in vain until {what}; the end of pgsteer's log:\n{log}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        seconds: u64,
        /// The end of pgsteer's log.
        log: String,
    },
}

impl Error {
    pub(super) fn io(what: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { what, source }
    }

    pub(super) fn sql(what: &'static str) -> impl FnOnce(tokio_postgres::Error) -> Self {
        move |source| Self::Sql { what, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once() {
        let refused = || std::io::Error::from(std::io::ErrorKind::PermissionDenied);
        let own = anyhow::Error::from(Error::io("start pgsteer")(refused()));
        assert_eq!(format!("{own:#}"), "can't start pgsteer: permission denied");
        let sandbox = crate::sandbox::Error::Io { what: "start `postgres`".to_owned(), source: refused() };
        let sandbox = anyhow::Error::from(Error::from(sandbox));
        assert_eq!(format!("{sandbox:#}"), "can't start `postgres`: permission denied");
    }
}
