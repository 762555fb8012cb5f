//! One client's life after its login: what it sent, what it may be given, where its transaction stands.
//!
//! Invariant: nothing that may have executed is sent a second time unless it is a known read (contract P1, P5); what was
//! not sent is held, not failed (P4). The machines (`unit`, `transaction`, `prepared`, `translate`, `settings`) do no
//! I/O; `driver`, `exchange` and `hold` only move bytes and wait. Must not know: configuration files, HTTP.

mod aftermath;
mod attach;
mod attempt;
mod begin_anew;
mod commits;
mod compose;
mod conflict;
pub mod control;
pub mod driver;
mod effects;
mod endpoint;
pub mod exchange;
mod hidden;
pub mod hold;
mod input;
mod inspect;
pub mod journal;
mod last_words;
mod limits;
mod listen;
mod local;
pub mod outcome;
mod own_names;
pub mod own_settings;
mod pins;
pub mod prepared;
pub mod replication;
mod row_shapes;
mod run;
mod server_lost;
pub mod setting_names;
pub mod settings;
pub mod shard;
pub mod signals;
mod so_far;
mod spare;
mod standby_wait;
mod startup_options;
mod summons;
pub mod transaction;
pub mod translate;
pub mod unit;
mod wait;

use std::time::Duration;

use crate::pool::Budget;

pub use conflict::RetryOutcome;
pub use exchange::Interruption;
pub use hidden::CATALOGUE as CATALOGUE_QUERY;

/// A server that does not do what pgsteer itself asks of it in this time is closed.
const RESET_TIMEOUT: Duration = Duration::from_secs(5);

/// Labels of the causes of a retry, by the index that the counters use.
pub const RETRY_LABELS: [&str; 7] =
    ["conflict", "refused", "server_lost", "unsent", "not_primary", "plan_changed", "replay_stands"];

/// Settings of sessions (`[hold]`, `[retry]`, `[routing]` ...).
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long a statement waits for a primary.
    pub hold_timeout: Duration,
    /// Most statements held at a time, over all shards.
    pub hold_count_max: usize,
    /// Most bytes of statements held at a time, over all shards.
    pub hold_bytes_max: usize,
    /// How often a read is run again; the last time on the primary.
    pub retry_attempts: usize,
    /// How much of the primary they may have.
    pub retry_primary_budget: Budget,
    /// How long shapes of reads that standbys cancel again and again are steered; zero: not at all.
    pub retry_steer_time: Duration,
    /// How long a retriable answer is held back.
    pub retry_hold_time: Duration,
    /// How long reading from a standby may stop because the client does not take what was read.
    pub standby_stall_timeout: Duration,
    /// How much is read from a standby for a client that is behind.
    pub standby_stall_buffer_bytes: usize,
    /// Routing.
    pub routing: crate::route::Settings,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            hold_timeout: Duration::from_secs(30),
            hold_count_max: 10_000,
            hold_bytes_max: 64 * 1024 * 1024,
            retry_attempts: 3,
            retry_primary_budget: Budget { percent: 50 },
            retry_steer_time: Duration::from_secs(60),
            retry_hold_time: Duration::from_millis(500),
            standby_stall_timeout: Duration::from_secs(1),
            standby_stall_buffer_bytes: 1024 * 1024,
            routing: crate::route::Settings::default(),
        }
    }
}
