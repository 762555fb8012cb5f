//! The pools as JSON, for people who ask why a client waits.
//!
//! Invariant: pure. Must not know: HTTP, clocks, how limits are held to.

use serde_json::{Value, json};

use super::json::node_name;
use crate::pool::PoolReport;

/// Clients that are in, and how many may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientReport {
    /// That are in.
    pub connected: usize,
    /// That may be.
    pub max_client_conn: usize,
}

/// The answer of `/pools`.
pub fn pools(pools: &[PoolReport], clients: ClientReport, names: &[String]) -> Value {
    json!({
        "clients": { "connected": clients.connected, "max_client_conn": clients.max_client_conn },
        "pools": pools.iter().map(|report| pool(report, names)).collect::<Vec<Value>>(),
    })
}

fn pool(report: &PoolReport, names: &[String]) -> Value {
    let limits = &report.limits;
    json!({
        "node": node_name(names, report.key.node),
        "database": &*report.key.database,
        "user": &*report.key.user,
        "mode": limits.mode.as_str(),
        "open": report.open,
        "idle": report.idle,
        "size": limits.size,
        "min_pool_size": limits.min_size,
        "reserve_pool_size": limits.reserve_size,
        "database_open": report.database_open,
        "max_db_connections": limits.database_max,
        "user_open": report.user_open,
        "max_user_connections": limits.user_max,
        "moved_reads": report.moved_reads,
        "waiting": report.waiting,
        "longest_wait_ms": report.longest_wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)),
        "limit_reached": report.full.map(crate::pool::Limit::as_str),
    })
}
