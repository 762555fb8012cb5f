//! The tracing set-up: level filter, text or JSON, on standard error.
//!
//! Invariant: `init` is the only place that installs a subscriber, and it fails rather than replace one. Must not
//! know: what is logged. That no password and no statement literal appears is the duty of those who log.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// For people; coloured on a terminal.
    #[default]
    Text,
    /// One JSON object a line, the event's fields at its top.
    Json,
}

/// Settings of logging (`[log]`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// A level (`info`) or tracing directives (`info,pgsteer::topology=debug`).
    pub filter: String,
    /// The form of a line.
    pub format: LogFormat,
}

impl Default for LogSettings {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The filter is not a level and not a list of directives.
    #[error("not a log level or list of directives")]
    Filter(#[from] tracing_subscriber::filter::ParseError),
    /// There is no filter at all.
    #[error("empty log level")]
    Empty,
    /// A subscriber is already installed.
    #[error("logging is already set up: {0}")]
    Installed(Box<dyn std::error::Error + Send + Sync>),
}

impl LogSettings {
    /// Checks the filter without installing anything.
    ///
    /// # Errors
    /// [`LogError`] when it is empty, does not parse, or is one bare word that is no level.
    pub fn check(&self) -> Result<(), LogError> {
        self.parsed().map(drop)
    }

    fn parsed(&self) -> Result<EnvFilter, LogError> {
        if self.filter.is_empty() {
            return Err(LogError::Empty);
        }
        // A bare word that is no level would be taken for a target of that name, and log nothing at all.
        let bare = self.filter.chars().all(|letter| letter.is_ascii_alphanumeric());
        let text = if bare { format!("pgsteer={}", self.filter) } else { self.filter.clone() };
        EnvFilter::builder().parse(&text)?;
        Ok(EnvFilter::builder().parse(&self.filter)?)
    }

    /// Installs the process-wide subscriber.
    ///
    /// # Errors
    /// The filter does not parse, or a subscriber is already installed.
    pub fn init(&self) -> Result<(), LogError> {
        let builder = fmt()
            .with_env_filter(self.parsed()?)
            .with_writer(std::io::stderr)
            .with_ansi(std::io::stderr().is_terminal());
        match self.format {
            LogFormat::Text => builder.with_target(false).try_init(),
            LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        }
        .map_err(LogError::Installed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(filter: &str) -> LogSettings {
        LogSettings { filter: filter.to_owned(), format: LogFormat::Text }
    }

    #[test]
    fn levels_and_directives_are_accepted() {
        for filter in ["info", "debug", "off", "warn,pgsteer::topology=debug"] {
            assert!(settings(filter).check().is_ok(), "{filter}");
        }
    }

    #[test]
    fn a_misspelt_level_is_refused() {
        for filter in ["inof", "verbose", "pgsteer=loud", ""] {
            assert!(settings(filter).check().is_err(), "{filter:?}");
        }
    }
}
