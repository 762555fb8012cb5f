//! The files for containers hold what the program accepts, and their time limits fit together.
//!
//! Invariant under test: the ConfigMap's file and the variables of compose.yaml load without a fault, and whoever
//! stops pgsteer waits longer than its drain.

use std::time::Duration;

use pgsteer::config::{Config, SourceFile, Sources, load};

const CONFIG_MAP: &str = include_str!("../config/kubernetes/configmap.yaml");
const DEPLOYMENT: &str = include_str!("../config/kubernetes/deployment.yaml");
const SERVICES: &str = include_str!("../config/kubernetes/service.yaml");
const COMPOSE: &str = include_str!("../docker/compose.yaml");
const DOCKERFILE: &str = include_str!("../docker/Dockerfile");

fn config_map() -> Config {
    let (_, block) = CONFIG_MAP.split_once("  pgsteer.toml: |\n").expect("the file's key");
    // The Secret is mounted in the cluster only.
    let text: String = block
        .lines()
        .map(|line| line.strip_prefix("    ").unwrap_or(line))
        .filter(|line| !line.starts_with("password_file"))
        .map(|line| format!("{line}\n"))
        .collect();
    let file = SourceFile { name: "configmap.yaml".to_owned(), text };
    load(Sources { file: Some(file), ..Sources::default() }).unwrap_or_else(|faults| panic!("{faults}"))
}

/// The number behind `key`, up to `unit`.
fn seconds(text: &str, key: &str, unit: &str) -> Duration {
    let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).expect(key);
    Duration::from_secs(line.trim().trim_end_matches(unit).parse().expect("a number of seconds"))
}

#[test]
fn kubernetes_waits_longer_than_the_drain() {
    let config = config_map();
    assert!(seconds(DEPLOYMENT, "terminationGracePeriodSeconds:", "") > config.shutdown.timeout);
    assert_eq!(config.cluster.nodes.len(), 3);
}

#[test]
fn probes_and_ports_agree() {
    let config = config_map();
    let ports = [config.listen.addresses[0].port(), config.admin.address.expect("admin is on").port()];
    for port in ports {
        assert!(DEPLOYMENT.contains(&format!("containerPort: {port}\n")), "{port}");
        assert!(DOCKERFILE.lines().any(|line| {
            line.strip_prefix("EXPOSE ").is_some_and(|ports| ports.split(' ').any(|p| p == port.to_string()))
        }));
    }
    for path in ["/livez", "/readyz", "/metrics"] {
        assert!(DEPLOYMENT.contains(path), "{path}");
    }
}

/// A headless Service's name stands for the pods themselves, so its port is theirs.
#[test]
fn replicas_find_each_other() {
    let config = config_map();
    let [peers] = &config.listen.peers[..] else { panic!("{:?}", config.listen.peers) };
    let service = SERVICES
        .split("---\n")
        .find(|service| service.contains(&format!("  name: {}\n", peers.host)))
        .expect("the Service of that name");
    assert!(service.contains("clusterIP: None\n"));
    assert!(service.contains("publishNotReadyAddresses: true\n"));
    assert_eq!(peers.port, config.listen.addresses[0].port());
    assert!(service.contains(&format!("port: {}\n", peers.port)));
}

#[test]
fn compose_gives_variables_that_load() {
    let environment: Vec<(String, String)> = COMPOSE
        .lines()
        .filter_map(|line| line.trim().split_once(": "))
        .filter(|(name, _)| name.starts_with("PGSTEER_"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let config =
        load(Sources { environment, ..Sources::default() }).unwrap_or_else(|faults| panic!("{faults}"));
    assert_eq!(config.cluster.nodes.len(), 3);
    assert!(seconds(COMPOSE, "stop_grace_period:", "s") > config.shutdown.timeout);
}
