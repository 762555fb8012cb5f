//! What pgsteer says about itself: the tracing set-up and the metrics registry.
//!
//! Invariant: no global state except tracing's own subscriber; metrics are a handle that is passed on, and counting
//! on a shard costs a load and a store. Must not know: any other module; label words are passed in by `app`.

pub mod counter;
pub mod histogram;
pub mod log;
pub mod metrics;
pub mod prometheus;
pub mod retries;
pub mod staleness;

pub use counter::{Counter, Family, Gauge};
pub use log::{LogFormat, LogSettings};
pub use metrics::{ClusterGauges, Labels, Metrics, NodeGauges, PoolGauges, ShardCounters, Side};
