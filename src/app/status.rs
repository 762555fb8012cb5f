//! What the admin address shows, taken from the monitor and the counters.
//!
//! Must not know: HTTP.

use std::time::Instant;

use crate::admin::http::{Readiness, Status};
use crate::admin::json;
use crate::classify::PinReason;
use crate::config::Config;
use crate::route::Reason;
use crate::session::RETRY_LABELS;
use crate::shutdown::Shutdown;
use crate::telemetry::{Labels, Metrics};
use crate::topology::model::Role;
use crate::topology::monitor::MonitorHandle;

/// The running proxy, as people see it.
pub(super) struct ProxyStatus {
    names: Vec<String>,
    monitor: MonitorHandle,
    metrics: Metrics,
    shutdown: Shutdown,
}

fn names(config: &Config) -> Vec<String> {
    config.cluster.nodes.iter().map(|node| node.name.clone()).collect()
}

/// The label words, in the order of the enums' discriminants.
pub(super) fn labels(config: &Config) -> Labels {
    Labels {
        route_reasons: Reason::ALL.iter().map(|reason| reason.as_str()).collect(),
        retry_causes: RETRY_LABELS.to_vec(),
        pin_reasons: PinReason::ALL.iter().map(|reason| reason.as_str()).collect(),
        roles: [Role::Primary, Role::Standby, Role::Unknown, Role::Quarantined, Role::Refused]
            .map(Role::as_str)
            .to_vec(),
        nodes: names(config),
    }
}

impl ProxyStatus {
    pub(super) fn new(config: &Config, monitor: MonitorHandle, metrics: Metrics, shutdown: Shutdown) -> Self {
        Self { names: names(config), monitor, metrics, shutdown }
    }
}

impl Status for ProxyStatus {
    fn metrics(&self) -> String {
        self.metrics.render(&json::gauges(&self.monitor.current.load(), &self.names, Instant::now()))
    }

    fn readiness(&self) -> Readiness {
        json::readiness(
            &self.monitor.current.load(),
            &self.names,
            self.shutdown.is_draining(),
            Instant::now(),
        )
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
