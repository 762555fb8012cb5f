//! Hints from outside that the primary changes, or has changed: all nodes are looked at until that is seen.
//!
//! Invariant: a hint makes nobody a primary, and what it costs is bounded in time. Must not know: HTTP, what is made of it.

use std::time::Instant;

use serde_json::{Value, json};

use crate::admin::json::node_name;
use crate::topology::model::{NodeId, Snapshot};
use crate::topology::monitor::MonitorHandle;

/// Reads `node=host:port` (or a node's name), hints, and tells how things stand; or what was wrong with it.
pub(super) fn hint(monitor: &MonitorHandle, names: &[String], query: &str) -> Result<Value, String> {
    let snapshot = monitor.current.load();
    let expects = parse(&snapshot, names, query)?;
    monitor.hint(expects);
    Ok(json!({
        "state": "looking",
        "expects": expects.map(|node| node_name(names, node)),
        "epoch": snapshot.epoch.0,
        "primary": snapshot.primary_at(Instant::now()).map(|primary| node_name(names, primary.node)),
    }))
}

fn parse(snapshot: &Snapshot, names: &[String], query: &str) -> Result<Option<NodeId>, String> {
    let mut expects = None;
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let Some(("node", word)) = pair.split_once('=') else {
            return Err(format!("{pair}: not understood; there is node="));
        };
        let is_meant = |id: NodeId, address: String| word == address || word == node_name(names, id);
        let meant = snapshot.nodes.iter().find(|view| is_meant(view.id, view.address.to_string()));
        expects =
            Some(meant.ok_or_else(|| format!("node={word}: no such node; there is {}", known(snapshot)))?.id);
    }
    Ok(expects)
}

fn known(snapshot: &Snapshot) -> String {
    let addresses: Vec<_> = snapshot.nodes.iter().map(|view| view.address.to_string()).collect();
    addresses.join(", ")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::topology::model::NodeAddress;

    #[test]
    fn nodes_are_known_by_address_and_by_name() {
        let address = |n| Arc::new(NodeAddress { host: format!("db{n}"), port: 5432 });
        let (snapshot, names) = (Snapshot::unknown(&[address(1), address(2)]), ["a".to_owned()]);
        assert_eq!(parse(&snapshot, &names, ""), Ok(None));
        for (query, node) in [("node=db2:5432", 1), ("node=a", 0), ("node=n2", 1)] {
            assert_eq!(parse(&snapshot, &names, query), Ok(Some(NodeId(node))), "{query}");
        }
        for bad in ["node=db3:5432", "node=", "node", "nodes=a"] {
            assert!(parse(&snapshot, &names, bad).is_err(), "{bad}");
        }
    }
}
