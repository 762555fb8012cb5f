//! What a sandbox can be asked for. It must not touch the machine: `start` hands it on to the cluster.

use std::path::PathBuf;
use std::time::Duration;

use super::{Error, Sandbox};

/// When the primary acknowledges a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// As soon as it is durable on the primary itself: a crash may lose it.
    #[default]
    Async,
    /// As soon as any one standby has it as well. While no standby follows the primary, commits wait.
    Any1,
}

/// How clients that come over TCP prove who they are. Over the Unix socket all are trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Auth {
    /// By the password, with SCRAM-SHA-256.
    #[default]
    Scram,
    /// Not at all.
    Trust,
}

#[derive(Debug, Clone)]
pub(super) struct Settings {
    /// The directory of the server's programs; found unless told.
    pub(super) binaries: Option<PathBuf>,
    pub(super) standbys: usize,
    pub(super) sync: Sync,
    pub(super) auth: Auth,
    pub(super) hot_standby_feedback: bool,
    pub(super) fsync: bool,
    pub(super) max_connections: u32,
    pub(super) max_standby_streaming_delay: Option<Duration>,
    pub(super) extra: Vec<(String, String)>,
}

/// Describes a cluster, then starts it.
#[derive(Debug, Clone)]
#[must_use = "nothing runs until `start` is awaited"]
pub struct Builder(Settings);

impl Default for Builder {
    fn default() -> Self {
        Self(Settings {
            binaries: None,
            standbys: 2,
            sync: Sync::Async,
            auth: Auth::Scram,
            hot_standby_feedback: false,
            fsync: false,
            max_connections: 100,
            max_standby_streaming_delay: Some(Duration::from_secs(30)),
            extra: Vec::new(),
        })
    }
}

impl Builder {
    /// The directory with the server's programs; looked for unless told.
    pub fn binaries(mut self, path: impl Into<PathBuf>) -> Self {
        self.0.binaries = Some(path.into());
        self
    }

    /// The number of standbys; 2 unless told.
    pub fn standbys(mut self, count: usize) -> Self {
        self.0.standbys = count;
        self
    }

    /// When commits are acknowledged; [`Sync::Async`] unless told. Without standbys always so.
    pub fn sync(mut self, sync: Sync) -> Self {
        self.0.sync = sync;
        self
    }

    /// How TCP clients log in; [`Auth::Scram`] unless told.
    pub fn auth(mut self, auth: Auth) -> Self {
        self.0.auth = auth;
        self
    }

    /// Whether standbys hold back vacuum on the primary for the sake of their reads; off unless told.
    pub fn hot_standby_feedback(mut self, on: bool) -> Self {
        self.0.hot_standby_feedback = on;
        self
    }

    /// Whether commits really reach the disk. Off unless told: no sandbox survives a power cut anyway.
    pub fn fsync(mut self, on: bool) -> Self {
        self.0.fsync = on;
        self
    }

    /// `max_connections` of every node; 100 unless told.
    pub fn max_connections(mut self, count: u32) -> Self {
        self.0.max_connections = count;
        self
    }

    /// How long replay waits for a conflicting read; `None` is for ever, 30 s unless told.
    pub fn max_standby_streaming_delay(mut self, delay: Option<Duration>) -> Self {
        self.0.max_standby_streaming_delay = delay;
        self
    }

    /// Any other setting, on every node. The last word on a name counts.
    pub fn setting(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.0.extra.push((name.into(), value.into()));
        self
    }

    /// Sets the cluster up; when this returns, every node answers and every standby streams.
    ///
    /// # Errors
    /// No server is installed, or a node does not come up; the text says what to do.
    pub async fn start(self) -> Result<Sandbox, Error> {
        Sandbox::start(self.0).await
    }
}
