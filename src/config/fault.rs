//! What is wrong with a configuration, and where it stands.
//!
//! Invariant: a fault names its place, its key and what is expected; it never repeats the value of a secret. Must
//! not know: what the keys are.

use std::fmt;
use std::path::PathBuf;

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The configuration file; lines count from 1.
    File {
        /// The file's name as given.
        name: String,
        /// The line.
        line: usize,
    },
    /// An environment variable.
    Environment(String),
    /// A command-line flag.
    Flag(&'static str),
    /// Nobody gave it.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::Flag(name) => write!(f, "flag {name}"),
            Self::Default => f.write_str("configuration"),
        }
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands.
    pub origin: Origin,
    /// The key, as `section.key`; empty when the file as a whole is at fault.
    pub key: String,
    /// What is wrong and what is expected.
    pub message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.origin, self.key.as_str()) {
            (origin, "") => write!(f, "{origin}: {}", self.message),
            (Origin::Default, key) => write!(f, "configuration: {key}: {}", self.message),
            (origin, key) => write!(f, "{origin} {key}: {}", self.message),
        }
    }
}

/// Everything that is wrong, in the order of the file, then environment and flags.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Adds a fault.
    pub fn push(&mut self, origin: Origin, key: impl Into<String>, message: impl Into<String>) {
        self.0.push(Fault { origin, key: key.into(), message: message.into() });
    }

    /// The faults.
    pub fn list(&self) -> &[Fault] {
        &self.0
    }

    /// `Err` with all of them, lines in order, unless there is none.
    ///
    /// # Errors
    /// There is a fault.
    pub fn into_result<T>(mut self, value: T) -> Result<T, Self> {
        self.0.sort_by_key(|fault| match &fault.origin {
            Origin::File { line, .. } => (0, *line),
            Origin::Environment(_) => (1, 0),
            Origin::Flag(_) => (2, 0),
            Origin::Default => (3, 0),
        });
        if self.0.is_empty() { Ok(value) } else { Err(self) }
    }

    /// The one fault that a file cannot be read.
    pub(super) fn unreadable(path: PathBuf, error: &std::io::Error) -> Self {
        let mut faults = Self::default();
        faults.push(Origin::Default, "", format!("cannot read {}: {error}", path.display()));
        faults
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, fault) in self.0.iter().enumerate() {
            let end = if position == 0 { "" } else { "\n" };
            write!(f, "{end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
