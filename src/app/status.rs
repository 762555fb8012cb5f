//! What the admin address shows, taken from the monitor and the counters.
//!
//! Must not know: HTTP.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use super::hint::hint;
use super::pause::Pauser;
use super::seats::{ClientLimit, Seats};
use crate::admin::failovers;
use crate::admin::http::{Readiness, Status};
use crate::admin::json;
use crate::admin::learned;
use crate::admin::pools::{self, ClientReport};
use crate::classify::PinReason;
use crate::config::Config;
use crate::pool::{Limit, Registry};
use crate::relay::allowance::Allowance;
use crate::route::Reason;
use crate::session::{Interruption, RETRY_LABELS, RetryOutcome};
use crate::shutdown::Shutdown;
use crate::telemetry::{Labels, Metrics, PoolGauges};
use crate::topology::evidence::EventKind;
use crate::topology::failover::Outcome;
use crate::topology::model::Role;
use crate::topology::monitor::MonitorHandle;

/// The running proxy, as people see it.
pub(super) struct ProxyStatus {
    names: Vec<String>,
    monitor: MonitorHandle,
    metrics: Metrics,
    shutdown: Shutdown,
    registry: Arc<Registry>,
    seats: Arc<Seats>,
    pauser: Arc<Pauser>,
    answer_bytes: Arc<Allowance>,
}

fn names(config: &Config) -> Vec<String> {
    config.cluster.nodes.iter().map(|node| node.name.clone()).collect()
}

/// The label words, in the order of the enums' discriminants.
pub(super) fn labels(config: &Config) -> Labels {
    Labels {
        route_reasons: Reason::ALL.iter().map(|reason| reason.as_str()).collect(),
        retry_causes: RETRY_LABELS.to_vec(),
        interruptions: Interruption::LABELS.to_vec(),
        retry_outcomes: RetryOutcome::LABELS.to_vec(),
        pin_reasons: PinReason::ALL.iter().map(|reason| reason.as_str()).collect(),
        roles: [Role::Primary, Role::Standby, Role::Unknown, Role::Quarantined, Role::Refused]
            .map(Role::as_str)
            .to_vec(),
        nodes: names(config),
        limits: Limit::ALL.map(Limit::as_str).to_vec(),
        client_limits: ClientLimit::ALL.map(ClientLimit::as_str).to_vec(),
        doubt_causes: EventKind::causes(),
        failover_outcomes: Outcome::ALL.iter().skip(1).map(|outcome| outcome.as_str()).collect(),
    }
}

impl ProxyStatus {
    pub(super) fn new(
        config: &Config,
        monitor: MonitorHandle,
        metrics: Metrics,
        shutdown: Shutdown,
        registry: Arc<Registry>,
        (seats, pauser): (Arc<Seats>, Arc<Pauser>),
        answer_bytes: Arc<Allowance>,
    ) -> Self {
        Self { names: names(config), monitor, metrics, shutdown, registry, seats, pauser, answer_bytes }
    }

    fn pool_gauges(&self) -> PoolGauges {
        let reports = self.registry.report();
        let full = |limit: Limit| reports.iter().filter(|pool| pool.full == Some(limit)).count();
        PoolGauges {
            open: reports.iter().map(|pool| pool.open).sum(),
            idle: reports.iter().map(|pool| pool.idle).sum(),
            waiting: reports.iter().map(|pool| pool.waiting).sum(),
            full: Limit::ALL.map(full).to_vec(),
            clients: self.seats.taken(),
            moved_reads: reports.iter().map(|pool| pool.moved_reads).sum(),
            answer_bytes: self.answer_bytes.used_bytes(),
        }
    }
}

impl Status for ProxyStatus {
    fn metrics(&self) -> String {
        let cluster = json::gauges(&self.monitor.current.load(), &self.names, Instant::now());
        self.metrics.render(&cluster, &self.pool_gauges())
    }

    fn pools(&self) -> serde_json::Value {
        let (connected, max_client_conn) = self.seats.taken();
        pools::pools(&self.registry.report(), ClientReport { connected, max_client_conn }, &self.names)
    }

    fn learned(&self) -> serde_json::Value {
        learned::learned(&self.registry.lessons(Instant::now()))
    }

    fn pause(&self, query: &str) -> Result<(), String> {
        self.pauser.pause(query)
    }

    fn resume(&self) {
        self.pauser.resume("it was asked for");
    }

    fn hint(&self, query: &str) -> Result<serde_json::Value, String> {
        hint(&self.monitor, &self.names, query)
    }

    fn pause_report(&self) -> Pin<Box<dyn Future<Output = serde_json::Value> + Send + '_>> {
        Box::pin(self.pauser.report())
    }

    fn readiness(&self) -> Readiness {
        json::readiness(
            &self.monitor.current.load(),
            &self.names,
            self.shutdown.is_draining(),
            Instant::now(),
        )
    }

    fn events(&self) -> serde_json::Value {
        let (failovers, events) = (self.monitor.failovers(), self.monitor.events());
        failovers::events(&failovers, &events, &self.names, Instant::now())
    }

    fn topology(&self) -> serde_json::Value {
        let events: Vec<json::Event> = self
            .monitor
            .events()
            .into_iter()
            .map(|event| json::Event { at: event.at, text: event.text })
            .collect();
        json::topology(&self.monitor.current.load(), &self.names, &events, Instant::now())
    }
}
