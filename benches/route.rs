//! What a routing decision costs: three nodes, goal below 60 ns.
//!
//! Invariant: measures `route()` alone, with a snapshot as the reconciler makes it. Must not know: sockets.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use pgsteer::route::freshness::{Commits, Freshness};
use pgsteer::route::{Need, NodeLoad, Question, Terms, route};
use pgsteer::topology::model::{Epoch, Lsn, NodeAddress, NodeId, PrimaryView, Role, Snapshot, Timeline};

fn cluster(now: Instant) -> Snapshot {
    let addresses: Vec<_> =
        (0..3).map(|n| Arc::new(NodeAddress { host: format!("pg{n}"), port: 5432 })).collect();
    let mut snapshot = Snapshot::unknown(&addresses);
    for node in &mut snapshot.nodes {
        node.role = if node.id == NodeId(0) { Role::Primary } else { Role::Standby };
        node.position = Some(Lsn(2_000));
        node.sampled_at = Some(now);
        node.fresh_as_of = Some(now);
    }
    snapshot.epoch = Epoch(1);
    snapshot.primary = Some(PrimaryView {
        node: NodeId(0),
        timeline: Timeline(1),
        started_us: 1,
        flush_lsn: Lsn(1_000),
        insert_lsn: Lsn(1_000),
        commits_asynchronously: false,
        sampled_at: now,
        expires_at: now + Duration::from_secs(3600),
    });
    snapshot
}

fn benches(c: &mut Criterion) {
    let now = Instant::now();
    let snapshot = cluster(now);
    let load = [NodeLoad { in_flight: 3, latency_us: 120, recent_conflicts: 0 }; 3];
    let mut wrote = Freshness::default();
    wrote.on_primary_answer(now - Duration::from_millis(5), Commits::Synchronous);
    wrote.settle(&snapshot, Commits::Synchronous);
    let fresh = Freshness::default();
    for (name, need, freshness) in [
        ("read", Need::Read, &fresh),
        ("read_after_write", Need::Read, &wrote),
        ("write", Need::Primary, &fresh),
    ] {
        let mut dice = 0x9e37_79b9_7f4a_7c15_u64;
        c.bench_function(&format!("route/{name}"), |b| {
            b.iter(|| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                route(black_box(&Question {
                    need,
                    terms: Terms::default(),
                    others_wrote_at: None,
                    freshness,
                    excluded: &[],
                    prefer: pgsteer::route::Prefer::LessBusy,
                    load: &load,
                    snapshot: &snapshot,
                    now,
                    dice,
                }))
            });
        });
    }
}

criterion_group!(route_benches, benches);
criterion_main!(route_benches);
