//! The metrics registry: one set of counters per shard, gauges of the cluster, one histogram of holds.
//!
//! Invariant: a handle, never a static; a shard writes only its own [`ShardCounters`]; everything that is shown is
//! a sum over the shards, made when somebody asks. Must not know: any other module; label words come from outside.

mod failovers;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::failovers::{Failovers, Holds};
use super::counter::{Counter, Family, Gauge};
use super::prometheus::{Kind, Text};
use super::retries::{self, INTERRUPTIONS_MAX, OUTCOMES_MAX, Retries};
use super::staleness::{self, StalenessServed};

pub use self::failovers::HoldTally;

/// Most route reasons a family holds.
pub const ROUTE_REASONS_MAX: usize = 16;
/// Most causes of a retry.
pub const RETRY_CAUSES_MAX: usize = 16;
/// Most reasons of a pin.
pub const PIN_REASONS_MAX: usize = 32;
/// Most limits of server connections, and of clients.
pub const LIMITS_MAX: usize = 4;

/// The SQLSTATEs that pgsteer itself issues, and a last slot for every other.
pub const SQLSTATES: [&str; 8] = ["40001", "08007", "57P03", "53300", "57P01", "08P01", "28P01", "other"];

/// Which side a statement was routed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// The primary.
    Primary,
    /// A standby.
    Standby,
}

/// The label words of each family, in the order of the enum whose discriminant is the index.
#[derive(Debug, Clone, Default)]
pub struct Labels {
    /// Why a statement went where it went.
    pub route_reasons: Vec<&'static str>,
    /// Why a statement was run again.
    pub retry_causes: Vec<&'static str>,
    /// How a standby interrupts statements.
    pub interruptions: Vec<&'static str>,
    /// What becomes of reads that are run again because of that.
    pub retry_outcomes: Vec<&'static str>,
    /// Why a session was pinned.
    pub pin_reasons: Vec<&'static str>,
    /// All roles a node can have.
    pub roles: Vec<&'static str>,
    /// The nodes, by index.
    pub nodes: Vec<String>,
    /// Limits of server connections.
    pub limits: Vec<&'static str>,
    /// Limits of clients.
    pub client_limits: Vec<&'static str>,
    /// How failovers come out.
    pub failover_outcomes: Vec<&'static str>,
    /// Why all nodes are looked at.
    pub doubt_causes: Vec<&'static str>,
}

/// What one shard counts. Aligned so that two shards never share a cache line.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct ShardCounters {
    /// Clients connected now.
    pub clients_active: Gauge,
    /// Replication connections, each with a server connection of its own.
    pub replication_connections: Gauge,
    /// Clients accepted.
    pub clients_total: Counter,
    /// Logins refused or broken off.
    pub logins_failed: Counter,
    /// Statements held now.
    pub statements_waiting: Gauge,
    /// Statements that were held.
    pub statements_held: Counter,
    /// Statements that were held and got a server.
    pub statements_released: Counter,
    /// Time statements were held, nanoseconds.
    pub hold_nanos_total: Counter,
    /// Statements run again, by cause.
    pub retries: Family<RETRY_CAUSES_MAX>,
    /// What standbys cancelled and lost, and what became of it.
    pub retried_reads: Retries,
    /// Sessions pinned, by reason.
    pub pins: Family<PIN_REASONS_MAX>,
    /// Server connections opened.
    pub server_connections_opened: Counter,
    /// Server connections closed.
    pub server_connections_closed: Counter,
    /// Server connections closed because somebody waited at a limit that they were under.
    pub server_connections_evicted: Counter,
    /// Server connections opened beyond the size of their pool.
    pub reserve_connections: Counter,
    /// Waits for a server connection that began at a limit, by limit.
    pub limits_reached: Family<LIMITS_MAX>,
    /// Clients kept out by a limit, by limit.
    pub clients_kept_out: Family<LIMITS_MAX>,
    /// Server connections lent to a transaction.
    pub leases: Counter,
    /// What ran on a standby and was ended so that its replay could go on.
    pub reads_ended_for_replay: Counter,
    /// Standbys' answers given up because their clients did not take them.
    pub standby_stalls: Counter,
    /// Cancel requests passed on.
    pub cancels: Counter,
    /// Cancel requests that another pgsteer process has taken.
    pub cancels_forwarded: Counter,
    /// Bytes from clients to servers.
    pub client_to_server_bytes: Counter,
    /// Bytes from servers to clients.
    pub server_to_client_bytes: Counter,
    /// Server connections taken over from another shard.
    pub cross_shard_handovers: Counter,
    /// Staleness of the standbys that answered reads.
    pub staleness_served: StalenessServed,
    routed: [Family<ROUTE_REASONS_MAX>; 2],
    errors: Family<{ SQLSTATES.len() }>,
    in_flight: Box<[Gauge]>,
}

impl ShardCounters {
    fn new(nodes: usize) -> Self {
        let in_flight = (0..nodes).map(|_| Gauge::default()).collect();
        Self { in_flight, retried_reads: Retries::new(nodes), ..Self::default() }
    }

    /// Statements routed to one side for one reason (the index is the reason's discriminant).
    #[inline]
    pub fn routed(&self, side: Side, reason: usize) -> &Counter {
        self.routed[side as usize].at(reason)
    }

    /// Counts an error that pgsteer itself sent to a client.
    pub fn error(&self, sqlstate: &str) {
        let known = SQLSTATES.iter().position(|state| *state == sqlstate);
        self.errors.at(known.unwrap_or(SQLSTATES.len() - 1)).inc();
    }

    /// Statements sent to a node and not answered; `None` for a node that was not there at the start.
    #[inline]
    pub fn in_flight(&self, node: usize) -> Option<&Gauge> {
        self.in_flight.get(node)
    }
}

/// The cluster at the moment of rendering, given by the caller.
#[derive(Debug, Clone, Default)]
pub struct ClusterGauges {
    /// The epoch of the last known primary.
    pub epoch: u64,
    /// A primary is attested now.
    pub primary_known: bool,
    /// The primary is doubted.
    pub suspected: bool,
    /// Age of the last word of a primary that is out of reach and may live; 0 otherwise.
    pub unreachable_seconds: f64,
    /// Each node.
    pub nodes: Vec<NodeGauges>,
}

/// One node at the moment of rendering.
#[derive(Debug, Clone, Default)]
pub struct NodeGauges {
    /// Its name.
    pub name: String,
    /// Where it listens.
    pub address: String,
    /// Its role, one of [`Labels::roles`].
    pub role: &'static str,
    /// Whether its last probe was answered.
    pub up: bool,
    /// Upper bound of its staleness.
    pub lag_seconds: Option<f64>,
    /// By how much that may be too much.
    pub lag_error_seconds: Option<f64>,
    /// Bytes of WAL it has yet to replay.
    pub lag_bytes: Option<u64>,
    /// Its timeline.
    pub timeline: Option<u32>,
    /// What it has cancelled by its own count, by kind; empty: it was not asked.
    pub conflicts: Vec<(&'static str, u64)>,
}

/// The pools at the moment of rendering, given by the caller.
#[derive(Debug, Clone, Default)]
pub struct PoolGauges {
    /// Open server connections.
    pub open: usize,
    /// Idle ones.
    pub idle: usize,
    /// Sessions that wait for one.
    pub waiting: usize,
    /// Pools that have no room for one more, by limit.
    pub full: Vec<usize>,
    /// Clients that are in, and how many may be.
    pub clients: (usize, usize),
    /// Reads that are on the primary because standbys cancel them.
    pub moved_reads: usize,
    /// Bytes of answers that sessions keep beyond their relay buffers.
    pub answer_bytes: usize,
}

/// The registry. Clones share it.
#[derive(Debug, Clone)]
pub struct Metrics {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shards: Vec<Arc<ShardCounters>>,
    labels: Labels,
    holds: Mutex<Holds>,
    failovers: Mutex<Failovers>,
}

/// Why a registry cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum MetricsError {
    /// A family has more labels than slots.
    #[error("{family} has {labels} labels but only {slots} slots")]
    TooManyLabels {
        /// The family.
        family: &'static str,
        /// Labels given.
        labels: usize,
        /// Slots there are.
        slots: usize,
    },
    /// The histogram's bounds were refused.
    #[error("hold histogram")]
    Histogram(#[from] hdrhistogram::CreationError),
}

impl Metrics {
    /// A registry of `shards` sets of counters.
    ///
    /// # Errors
    /// A label table is longer than its family.
    pub fn new(shards: usize, labels: Labels) -> Result<Self, MetricsError> {
        for (family, labels, slots) in [
            ("route_reasons", labels.route_reasons.len(), ROUTE_REASONS_MAX),
            ("retry_causes", labels.retry_causes.len(), RETRY_CAUSES_MAX),
            ("interruptions", labels.interruptions.len(), INTERRUPTIONS_MAX),
            ("retry_outcomes", labels.retry_outcomes.len(), OUTCOMES_MAX),
            ("pin_reasons", labels.pin_reasons.len(), PIN_REASONS_MAX),
            ("limits", labels.limits.len(), LIMITS_MAX),
            ("client_limits", labels.client_limits.len(), LIMITS_MAX),
        ] {
            if labels > slots {
                return Err(MetricsError::TooManyLabels { family, labels, slots });
            }
        }
        let (holds, failovers) = (Holds::new()?, Failovers::new(&labels)?);
        let shards = (0..shards).map(|_| Arc::new(ShardCounters::new(labels.nodes.len()))).collect();
        Ok(Self {
            inner: Arc::new(Inner {
                shards,
                labels,
                holds: Mutex::new(holds),
                failovers: Mutex::new(failovers),
            }),
        })
    }

    /// The counters of each shard.
    pub fn shards(&self) -> &[Arc<ShardCounters>] {
        &self.inner.shards
    }

    /// The counters of one shard, for that shard alone to write.
    pub fn shard(&self, index: usize) -> Option<Arc<ShardCounters>> {
        self.inner.shards.get(index).cloned()
    }

    /// The label words.
    pub fn labels(&self) -> &Labels {
        &self.inner.labels
    }

    /// The sum of one counter over the shards, for tests, the demo and the status page.
    pub fn total(&self, read: impl Fn(&ShardCounters) -> u64) -> u64 {
        self.inner.shards.iter().map(|shard| read(shard)).sum()
    }

    /// Clients that are connected.
    pub fn clients(&self) -> u64 {
        self.gauge_total(|shard| shard.clients_active.value()).max(0).unsigned_abs()
    }

    fn gauge_total(&self, read: impl Fn(&ShardCounters) -> i64) -> i64 {
        self.inner.shards.iter().map(|shard| read(shard)).sum()
    }

    /// Everything, in the Prometheus text format.
    pub fn render(&self, cluster: &ClusterGauges, pools: &PoolGauges) -> String {
        let mut text = Text::default();
        text.metric("pgsteer_build_info", Kind::Gauge, "The running version, always 1.");
        text.sample("pgsteer_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        self.render_plain(&mut text);
        self.render_families(&mut text);
        self.render_limits(&mut text, pools);
        let retried = || self.inner.shards.iter().map(|shard| &shard.retried_reads);
        let words = (&*self.labels().interruptions, &*self.labels().retry_outcomes);
        retries::render(&mut text, retried, &self.labels().nodes, words);
        staleness::render(&mut text, self.inner.shards.iter().map(|shard| &shard.staleness_served));
        self.render_holds(&mut text);
        self.render_failovers(&mut text);
        render_cluster(&mut text, cluster);
        self.render_nodes(&mut text, cluster);
        text.finish()
    }

    fn render_plain(&self, text: &mut Text) {
        for (name, help, read) in GAUGES {
            text.metric(name, Kind::Gauge, help);
            text.sample(name, &[], self.gauge_total(|shard| read(shard).value()));
        }
        for (name, help, read) in COUNTERS {
            text.metric(name, Kind::Counter, help);
            text.sample(name, &[], self.total(|shard| read(shard).value()));
        }
        let name = "pgsteer_hold_wait_seconds_total";
        text.metric(name, Kind::Counter, "Time that statements spent held, summed.");
        let nanos = self.total(|shard| shard.hold_nanos_total.value());
        text.sample(name, &[], Duration::from_nanos(nanos).as_secs_f64());
    }

    fn render_families(&self, text: &mut Text) {
        let labels = self.labels();
        let name = "pgsteer_statements_routed_total";
        text.metric(name, Kind::Counter, "Statements (or batches) routed, by side and reason.");
        for (side, word) in [(Side::Primary, "primary"), (Side::Standby, "standby")] {
            for (index, reason) in labels.route_reasons.iter().enumerate() {
                let count = self.total(|shard| shard.routed(side, index).value());
                text.sample(name, &[("side", word), ("reason", reason)], count);
            }
        }
        let name = "pgsteer_retries_total";
        text.metric(name, Kind::Counter, "Statements run again elsewhere, by cause.");
        for (index, cause) in labels.retry_causes.iter().enumerate() {
            text.sample(name, &[("cause", cause)], self.total(|shard| shard.retries.at(index).value()));
        }
        let name = "pgsteer_pins_total";
        text.metric(name, Kind::Counter, "Sessions pinned to one server connection, by reason.");
        for (index, reason) in labels.pin_reasons.iter().enumerate() {
            text.sample(name, &[("reason", reason)], self.total(|shard| shard.pins.at(index).value()));
        }
        let name = "pgsteer_errors_total";
        text.metric(name, Kind::Counter, "Errors that pgsteer itself sent to clients, by SQLSTATE.");
        for (index, sqlstate) in SQLSTATES.iter().enumerate() {
            text.sample(name, &[("sqlstate", sqlstate)], self.total(|shard| shard.errors.at(index).value()));
        }
        let name = "pgsteer_node_statements_in_flight";
        text.metric(name, Kind::Gauge, "Statements sent to a node and not answered.");
        for (index, node) in labels.nodes.iter().enumerate() {
            let count = self.gauge_total(|shard| shard.in_flight(index).map_or(0, Gauge::value));
            text.sample(name, &[("node", node)], count);
        }
    }

    fn render_limits(&self, text: &mut Text, pools: &PoolGauges) {
        let labels = self.labels();
        for (name, help, value) in [
            (
                "pgsteer_server_connections_open",
                "Server connections open: leased, idle, being opened.",
                pools.open,
            ),
            ("pgsteer_server_connections_idle", "Server connections idle.", pools.idle),
            ("pgsteer_sessions_waiting", "Sessions that wait for a server connection.", pools.waiting),
            ("pgsteer_clients_seated", "Clients counted for max_client_conn.", pools.clients.0),
            ("pgsteer_clients_max", "The limit max_client_conn.", pools.clients.1),
            (
                "pgsteer_moved_reads",
                "Reads on the primary because standbys cancel them (retry.primary_budget).",
                pools.moved_reads,
            ),
            (
                "pgsteer_answer_bytes",
                "Bytes of answers kept beyond the relay buffers, held back or for clients that are behind (retry.buffer_total).",
                pools.answer_bytes,
            ),
        ] {
            text.metric(name, Kind::Gauge, help);
            text.sample(name, &[], value);
        }
        let name = "pgsteer_pools_full";
        text.metric(name, Kind::Gauge, "Pools with no room for one more server connection, by limit.");
        for (limit, count) in labels.limits.iter().zip(&pools.full) {
            text.sample(name, &[("limit", limit)], count);
        }
        let name = "pgsteer_limit_waits_total";
        text.metric(name, Kind::Counter, "Waits for a server connection, by the limit in the way.");
        for (index, limit) in labels.limits.iter().enumerate() {
            let count = self.total(|shard| shard.limits_reached.at(index).value());
            text.sample(name, &[("limit", limit)], count);
        }
        let name = "pgsteer_clients_refused_total";
        text.metric(name, Kind::Counter, "Clients kept out, by limit.");
        for (index, limit) in labels.client_limits.iter().enumerate() {
            let count = self.total(|shard| shard.clients_kept_out.at(index).value());
            text.sample(name, &[("limit", limit)], count);
        }
    }

    fn render_nodes(&self, text: &mut Text, cluster: &ClusterGauges) {
        let name = "pgsteer_node_role";
        text.metric(name, Kind::Gauge, "1 for the role a node has, 0 for the others.");
        for node in &cluster.nodes {
            for role in &self.labels().roles {
                let labels = [("node", &*node.name), ("address", &*node.address), ("role", *role)];
                text.sample(name, &labels, u8::from(node.role == *role));
            }
        }
        let name = "pgsteer_node_recovery_conflicts_total";
        let help = "Statements that a standby has cancelled for the sake of its replay, whoever sent them, by kind \
                    (pg_stat_database_conflicts).";
        text.metric(name, Kind::Counter, help);
        for node in &cluster.nodes {
            for (kind, count) in &node.conflicts {
                let labels = [("node", &*node.name), ("address", &*node.address), ("kind", *kind)];
                text.sample(name, &labels, count);
            }
        }
        for (name, help, read) in NODE_GAUGES {
            text.metric(name, Kind::Gauge, help);
            for node in &cluster.nodes {
                if let Some(value) = read(node) {
                    text.sample(name, &[("node", &*node.name), ("address", &*node.address)], value);
                }
            }
        }
    }
}

fn render_cluster(text: &mut Text, cluster: &ClusterGauges) {
    for (name, help, value) in [
        ("pgsteer_epoch", "Epoch of the last known primary; grows with every new one.", cluster.epoch),
        ("pgsteer_primary_known", "1 while a primary is attested.", u64::from(cluster.primary_known)),
        ("pgsteer_primary_suspected", "1 while the primary is doubted.", u64::from(cluster.suspected)),
    ] {
        text.metric(name, Kind::Gauge, help);
        text.sample(name, &[], value);
    }
    let name = "pgsteer_primary_unreachable_seconds";
    let help = "Age of the last word of a primary that is out of reach and may live; 0 otherwise.";
    text.metric(name, Kind::Gauge, help);
    text.sample(name, &[], cluster.unreachable_seconds);
}

type Row<T> = (&'static str, &'static str, fn(&ShardCounters) -> &T);

const GAUGES: [Row<Gauge>; 3] = [
    ("pgsteer_clients_active", "Clients connected.", |shard| &shard.clients_active),
    (
        "pgsteer_replication_connections",
        "Clients with a replication connection, each through a server connection of its own.",
        |shard| &shard.replication_connections,
    ),
    ("pgsteer_statements_waiting", "Statements held now.", |shard| &shard.statements_waiting),
];

const COUNTERS: [Row<Counter>; 16] = [
    ("pgsteer_clients_total", "Clients accepted.", |shard| &shard.clients_total),
    ("pgsteer_logins_failed_total", "Logins refused or broken off.", |shard| &shard.logins_failed),
    ("pgsteer_statements_held_total", "Statements that waited for a primary.", |shard| {
        &shard.statements_held
    }),
    ("pgsteer_statements_released_total", "Statements that were held and got a server.", |shard| {
        &shard.statements_released
    }),
    ("pgsteer_server_connections_opened_total", "Server connections opened.", |shard| {
        &shard.server_connections_opened
    }),
    ("pgsteer_server_connections_closed_total", "Server connections closed.", |shard| {
        &shard.server_connections_closed
    }),
    (
        "pgsteer_server_connections_evicted_total",
        "Server connections closed for who waited at a limit.",
        |shard| &shard.server_connections_evicted,
    ),
    (
        "pgsteer_reserve_connections_total",
        "Server connections opened beyond the size of their pool.",
        |shard| &shard.reserve_connections,
    ),
    ("pgsteer_leases_total", "Server connections lent to a transaction.", |shard| &shard.leases),
    (
        "pgsteer_reads_ended_for_replay_total",
        "What ran on a standby and was ended, while the primary was doubted, so that replay there could go on.",
        |shard| &shard.reads_ended_for_replay,
    ),
    (
        "pgsteer_standby_stalls_total",
        "Standbys' answers given up because their clients did not take them.",
        |shard| &shard.standby_stalls,
    ),
    ("pgsteer_cancels_total", "Cancel requests passed on.", |shard| &shard.cancels),
    (
        "pgsteer_cancels_forwarded_total",
        "Cancel requests of other pgsteer processes' clients, passed on to those.",
        |shard| &shard.cancels_forwarded,
    ),
    ("pgsteer_client_to_server_bytes_total", "Bytes from clients to servers.", |shard| {
        &shard.client_to_server_bytes
    }),
    ("pgsteer_server_to_client_bytes_total", "Bytes from servers to clients.", |shard| {
        &shard.server_to_client_bytes
    }),
    ("pgsteer_cross_shard_handovers_total", "Server connections taken over from another shard.", |shard| {
        &shard.cross_shard_handovers
    }),
];

type NodeRow = (&'static str, &'static str, fn(&NodeGauges) -> Option<f64>);

const NODE_GAUGES: [NodeRow; 5] = [
    ("pgsteer_node_up", "1 if the node's last probe was answered.", |node| {
        Some(f64::from(u8::from(node.up)))
    }),
    ("pgsteer_node_lag_seconds", "Upper bound of a standby's staleness.", |node| node.lag_seconds),
    ("pgsteer_node_lag_error_seconds", "By how much the bound may be too much.", |node| {
        node.lag_error_seconds
    }),
    // Exact up to 2^53 bytes, eight petabytes of WAL.
    #[allow(clippy::cast_precision_loss, reason = "the format has only doubles")]
    ("pgsteer_node_lag_bytes", "WAL flushed on the primary and not replayed here.", |node| {
        node.lag_bytes.map(|bytes| bytes as f64)
    }),
    ("pgsteer_node_timeline", "The node's timeline.", |node| node.timeline.map(f64::from)),
];

#[cfg(test)]
mod tests;
