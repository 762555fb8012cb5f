//! The terms of reads in force: what the configuration says for an endpoint, a user, a database, and what is asked for on top of it.
//!
//! Invariant: the nearer wish wins: statement, session, listener, user, database, `[routing]`. Must not know: where wishes come from.

use std::time::Duration;

use super::Mode;
use crate::classify::{AskedTerms, Consistency, LagBytes, NoStandby, Target};

/// What reads promise, and where they go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Where the user wants them.
    pub target: Option<Target>,
    /// What they promise; at endpoints for standbys `Primary` counts as `Session`.
    pub consistency: Consistency,
    /// Lag budget of reads on standbys, in time.
    pub max_lag: Duration,
    /// The same in bytes of WAL, as of the last probe.
    pub max_lag_bytes: LagBytes,
    /// How long a read waits for a standby that may answer it.
    pub wait_for_standby: Duration,
    /// What becomes of it then.
    pub no_standby: NoStandby,
    /// How much of an answer that a standby may still cancel is held back, so that it can be run again; 0: nothing.
    pub retry_buffer_bytes: u32,
}

impl Default for Terms {
    fn default() -> Self {
        Self {
            target: None,
            consistency: Consistency::Session,
            max_lag: Duration::from_secs(1),
            max_lag_bytes: LagBytes::UNBOUNDED,
            wait_for_standby: Duration::ZERO,
            no_standby: NoStandby::Primary,
            retry_buffer_bytes: 64 * 1024,
        }
    }
}

impl Terms {
    /// Whether anything is said of how long a read waits for a standby.
    pub fn limits_wait(&self) -> bool {
        self.no_standby == NoStandby::Error || !self.wait_for_standby.is_zero()
    }

    /// These, but for what is asked for.
    #[must_use]
    pub fn with(self, asked: &AskedTerms) -> Self {
        Self {
            target: asked.target.or(self.target),
            consistency: asked.consistency.unwrap_or(self.consistency),
            max_lag: asked.max_lag.unwrap_or(self.max_lag),
            max_lag_bytes: asked.max_lag_bytes.unwrap_or(self.max_lag_bytes),
            wait_for_standby: asked.wait_for_standby.unwrap_or(self.wait_for_standby),
            no_standby: asked.no_standby.unwrap_or(self.no_standby),
            retry_buffer_bytes: asked.retry_buffer_bytes.unwrap_or(self.retry_buffer_bytes),
        }
    }
}

/// What some have of their own (`[[routing.listener]]`, `[[routing.user]]`, `[[routing.database]]`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnTerms {
    /// By what the listener is for.
    pub listeners: Vec<(Mode, AskedTerms)>,
    /// By the user.
    pub users: Vec<(String, AskedTerms)>,
    /// By the database.
    pub databases: Vec<(String, AskedTerms)>,
}

impl OwnTerms {
    /// What a session of these has of its own.
    pub fn of(&self, mode: Mode, user: &str, database: &str) -> AskedTerms {
        let named = |list: &[(String, AskedTerms)], name: &str| {
            list.iter().find(|(other, _)| other == name).map(|(_, terms)| *terms).unwrap_or_default()
        };
        let listener = self.listeners.iter().find(|(of, _)| *of == mode).map(|(_, terms)| *terms);
        listener.unwrap_or_default().or(named(&self.users, user)).or(named(&self.databases, database))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearer_wish_wins() {
        let max_lag = |ms| AskedTerms { max_lag: Some(Duration::from_millis(ms)), ..AskedTerms::default() };
        let bytes = AskedTerms { max_lag_bytes: Some(LagBytes::at_most(7)), ..max_lag(4) };
        let own = OwnTerms {
            listeners: vec![(Mode::Standby, max_lag(1))],
            users: vec![("u".to_owned(), max_lag(2))],
            databases: vec![("d".to_owned(), bytes)],
        };
        for (mode, user, database, expected) in [
            (Mode::Standby, "u", "d", Some(1)),
            (Mode::Split, "u", "d", Some(2)),
            (Mode::Split, "v", "d", Some(4)),
            (Mode::Split, "v", "e", None),
        ] {
            let terms = Terms::default().with(&own.of(mode, user, database));
            let wanted = expected.map_or(Terms::default().max_lag, Duration::from_millis);
            assert_eq!(terms.max_lag, wanted, "{mode:?} {user} {database}");
            assert_eq!(terms.max_lag_bytes.is_bounded(), database == "d");
        }
    }
}
