//! Tests of the registry: every rendered line is parsed as the format demands. Knows only the public API.

use std::collections::HashSet;

use super::*;

fn registry() -> Metrics {
    let labels = Labels {
        route_reasons: vec!["needs_primary", "standby_within_budget"],
        retry_causes: vec!["conflict"],
        interruptions: vec!["40001", "none"],
        retry_outcomes: vec!["answered", "failed"],
        pin_reasons: vec!["temp_table", "listen"],
        roles: vec!["primary", "standby", "unknown"],
        nodes: vec!["n1".to_owned(), "n\"2".to_owned()],
        limits: vec!["size", "max_db_connections"],
        client_limits: vec!["max_client_conn"],
        failover_outcomes: vec!["new_epoch", "same_primary"],
        doubt_causes: vec!["hint", "probe_late"],
    };
    Metrics::new(2, labels).expect("labels fit")
}

fn cluster() -> ClusterGauges {
    let node = |name: &str, role, lag| NodeGauges {
        name: name.to_owned(),
        address: "10.0.0.1:5432".to_owned(),
        role,
        up: true,
        lag_seconds: lag,
        lag_error_seconds: lag,
        lag_bytes: lag.map(|_| 4096),
        timeline: Some(3),
        conflicts: vec![("snapshot", 7)],
    };
    let nodes = vec![node("n1", "primary", None), node("n\"2", "standby", Some(0.125))];
    ClusterGauges { epoch: 3, primary_known: true, suspected: false, unreachable_seconds: 0.0, nodes }
}

/// Checks one sample line against the grammar of the format and returns the name.
fn parse_sample(line: &str) -> &str {
    let (series, value) = line.rsplit_once(' ').expect("a value after a space");
    assert!(value.parse::<f64>().is_ok(), "{line}");
    let Some((name, labels)) = series.split_once('{') else { return series };
    let mut rest = labels.strip_suffix('}').expect("closed braces");
    while !rest.is_empty() {
        let (label, after) = rest.split_once("=\"").expect("label=\"value\"");
        assert!(label.chars().all(|c| c.is_ascii_lowercase() || c == '_'), "{line}");
        let mut escaped = false;
        let end = after
            .char_indices()
            .find(|(_, letter)| {
                let closes = *letter == '"' && !escaped;
                escaped = *letter == '\\' && !escaped;
                closes
            })
            .expect("a closing quote")
            .0;
        rest = after[end + 1..].trim_start_matches(',');
    }
    name
}

#[test]
fn every_line_obeys_the_format() {
    let text = registry().render(&cluster(), &PoolGauges::default());
    assert!(text.ends_with('\n'));
    let (mut declared, mut current) = (HashSet::new(), String::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            current = help.split(' ').next().expect("a name").to_owned();
            assert!(current.starts_with("pgsteer_"), "{line}");
            assert!(declared.insert(current.clone()), "declared twice: {current}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').expect("name and type");
            assert_eq!(name, current);
            assert!(["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
        } else {
            let name = parse_sample(line);
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| name.strip_suffix(suffix));
            assert!(name == current || base == Some(&current), "{line} under {current}");
        }
    }
}

#[test]
fn shards_are_summed() {
    let metrics = registry();
    for shard in metrics.shards() {
        shard.clients_total.add(2);
        shard.routed(Side::Standby, 1).add(3);
        shard.error("57P03");
        shard.error("XX000");
    }
    // A connection that moved between shards: the sum stays right.
    metrics.shards()[0].in_flight(1).expect("node").dec();
    metrics.shards()[1].in_flight(1).expect("node").inc();
    metrics.shards()[0].hold_nanos_total.add(1_500_000_000);
    let text = metrics.render(&cluster(), &PoolGauges::default());
    for line in [
        "pgsteer_clients_total 4",
        "pgsteer_statements_routed_total{side=\"standby\",reason=\"standby_within_budget\"} 6",
        "pgsteer_errors_total{sqlstate=\"57P03\"} 2",
        "pgsteer_errors_total{sqlstate=\"other\"} 2",
        "pgsteer_node_statements_in_flight{node=\"n\\\"2\"} 0",
        "pgsteer_hold_wait_seconds_total 1.5",
        "pgsteer_epoch 3",
        "pgsteer_node_role{node=\"n1\",address=\"10.0.0.1:5432\",role=\"primary\"} 1",
        "pgsteer_node_role{node=\"n1\",address=\"10.0.0.1:5432\",role=\"standby\"} 0",
        "pgsteer_node_lag_seconds{node=\"n\\\"2\",address=\"10.0.0.1:5432\"} 0.125",
    ] {
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("pgsteer_node_lag_seconds{node=\"n1\""), "unknown lag is absent, not zero");
}

#[test]
fn holds_fall_into_cumulative_buckets() {
    let metrics = registry();
    for millis in [3, 40, 700, 90_000] {
        metrics.record_hold(Duration::from_millis(millis));
    }
    metrics.record_hold(Duration::from_secs(1_000_000));
    let text = metrics.render(&ClusterGauges::default(), &PoolGauges::default());
    for (bound, count) in [("0.001", 0), ("0.005", 1), ("0.05", 2), ("1", 3), ("60", 3), ("+Inf", 5)] {
        let line = format!("pgsteer_hold_duration_seconds_bucket{{le=\"{bound}\"}} {count}");
        assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
    }
}

#[test]
fn a_label_table_longer_than_its_family_is_refused() {
    let labels = Labels { route_reasons: vec!["x"; ROUTE_REASONS_MAX + 1], ..Labels::default() };
    assert!(matches!(Metrics::new(1, labels), Err(MetricsError::TooManyLabels { .. })));
}
