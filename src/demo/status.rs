//! What `/topology` and `/metrics` say, as far as the demonstration shows it.
//!
//! Invariant: pure, and forgiving: what a page lacks stays empty. It must not know how the pages are fetched.

use serde_json::Value;

/// The cluster as pgsteer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Topology {
    pub(super) nodes: Vec<NodeStatus>,
    pub(super) events: Vec<Event>,
}

/// One node as pgsteer sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NodeStatus {
    pub(super) name: String,
    pub(super) address: String,
    pub(super) role: String,
    pub(super) timeline: Option<u64>,
    pub(super) staleness_ms: Option<u64>,
}

/// Something that happened, `age_ms` before the page was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Event {
    pub(super) age_ms: u64,
    pub(super) text: String,
}

impl Topology {
    /// Reads the page.
    pub(super) fn parse(page: &str) -> Result<Self, serde_json::Error> {
        let page: Value = serde_json::from_str(page)?;
        let list = |name: &str| page[name].as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
        let node = |node: &Value| NodeStatus {
            name: text(&node["name"]),
            address: text(&node["address"]),
            role: text(&node["role"]),
            timeline: node["timeline"].as_u64(),
            staleness_ms: node["staleness_ms"].as_u64(),
        };
        let nodes: Vec<NodeStatus> = list("nodes").iter().map(node).collect();
        let event = |event: &Value| Event {
            age_ms: event["age_ms"].as_u64().unwrap_or(0),
            text: with_names(text(&event["text"]), &nodes),
        };
        let events = list("events").iter().map(event).collect();
        Ok(Self { nodes, events })
    }
}

/// The text with the nodes' names, as they stand in the table, instead of their addresses.
fn with_names(text: String, nodes: &[NodeStatus]) -> String {
    let mut nodes: Vec<&NodeStatus> = nodes.iter().collect();
    // One address may be the beginning of another.
    nodes.sort_by_key(|node| std::cmp::Reverse(node.address.len()));
    nodes.into_iter().fold(text, |text, node| text.replace(&node.address, &node.name))
}

/// How far the ages on two pages may disagree about one event.
const JITTER_MS: u64 = 250;

/// The events that an earlier page, fetched `passed_ms` before, did not have yet. Pages list the oldest first.
pub(super) fn news<'a>(earlier: &[Event], page: &'a [Event], passed_ms: u64) -> &'a [Event] {
    let Some(last) = earlier.last() else { return page };
    let known = page.iter().rposition(|event| {
        event.text == last.text && event.age_ms.abs_diff(last.age_ms + passed_ms) <= JITTER_MS
    });
    known.map_or(page, |index| &page[index + 1..])
}

/// What pgsteer has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Statements that had to go to the primary.
    pub(super) needs_primary: u64,
    /// Reads that went to the primary though a standby might have had them.
    pub(super) reads_on_primary: u64,
    /// Reads that went to a standby.
    pub(super) reads_on_standbys: u64,
    /// Statements that waited for a primary.
    pub(super) held: u64,
    /// Statements run again elsewhere.
    pub(super) retried: u64,
    /// Errors that pgsteer itself sent.
    pub(super) errors: u64,
}

impl Totals {
    /// Reads the page.
    pub(super) fn parse(page: &str) -> Self {
        let mut totals = Self::default();
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            let Some((series, value)) = line.rsplit_once(' ') else { continue };
            let Ok(value) = value.parse::<u64>() else { continue };
            let name = series.split('{').next().unwrap_or_default();
            let slot = match name {
                "pgsteer_statements_routed_total" if series.contains("side=\"standby\"") => {
                    &mut totals.reads_on_standbys
                }
                "pgsteer_statements_routed_total" if series.contains("reason=\"needs_primary\"") => {
                    &mut totals.needs_primary
                }
                "pgsteer_statements_routed_total" => &mut totals.reads_on_primary,
                "pgsteer_statements_held_total" => &mut totals.held,
                "pgsteer_retries_total" => &mut totals.retried,
                "pgsteer_errors_total" => &mut totals.errors,
                _ => continue,
            };
            *slot += value;
        }
        totals
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(age_ms: u64, text: &str) -> Event {
        Event { age_ms, text: text.to_owned() }
    }

    #[test]
    fn topology_page_is_read() {
        let page = r#"{"nodes": [
            {"name": "n1", "address": "127.0.0.1:1", "role": "primary", "timeline": 2, "staleness_ms": null},
            {"name": "n2", "address": "127.0.0.1:2", "role": "standby", "timeline": null, "staleness_ms": 7}],
            "events": [{"age_ms": 12, "text": "n1 is the primary"}]}"#;
        let topology = Topology::parse(page).unwrap();
        assert_eq!(topology.nodes[0].timeline, Some(2));
        assert_eq!(topology.nodes[1].staleness_ms, Some(7));
        assert_eq!(topology.nodes[1].role, "standby");
        assert_eq!(topology.events, [event(12, "n1 is the primary")]);
        assert_eq!(Topology::parse("{}").unwrap(), Topology::default());
        assert!(Topology::parse("<html>").is_err());
    }

    #[test]
    fn events_name_nodes_as_the_table_does() {
        let page = r#"{"nodes": [{"name": "n1", "address": "127.0.0.1:2001"}, {"name": "n2", "address": "127.0.0.1:20017"}],
            "events": [{"age_ms": 1, "text": "127.0.0.1:20017 is now primary, and 127.0.0.1:2001 is not"}]}"#;
        let topology = Topology::parse(page).unwrap();
        assert_eq!(topology.events, [event(1, "n2 is now primary, and n1 is not")]);
    }

    #[test]
    fn an_event_is_new_once() {
        let first = [event(900, "a"), event(100, "b")];
        assert_eq!(news(&[], &first, 0).len(), 2);
        let second = [event(1400, "a"), event(602, "b"), event(50, "a")];
        assert_eq!(news(&first, &second, 500), [event(50, "a")]);
        assert_eq!(news(&second, &second, 0), []);
    }

    #[test]
    fn the_same_words_later_are_news() {
        let first = [event(100, "a")];
        assert_eq!(news(&first, &[event(1100, "a"), event(10, "a")], 1000), [event(10, "a")]);
    }

    #[test]
    fn metrics_page_is_summed() {
        let page = "# HELP pgsteer_statements_held_total x 1\n\
            pgsteer_statements_routed_total{side=\"primary\",reason=\"needs_primary\"} 10\n\
            pgsteer_statements_routed_total{side=\"primary\",reason=\"lag_budget\"} 2\n\
            pgsteer_statements_routed_total{side=\"primary\",reason=\"own_writes\"} 1\n\
            pgsteer_statements_routed_total{side=\"standby\",reason=\"standby_within_budget\"} 30\n\
            pgsteer_statements_held_total 4\n\
            pgsteer_retries_total{cause=\"a\"} 5\npgsteer_retries_total{cause=\"b\"} 1\n\
            pgsteer_errors_total{sqlstate=\"08007\"} 1\npgsteer_hold_wait_seconds_total 0.25\nrubbish\n";
        let expected = Totals {
            needs_primary: 10,
            reads_on_primary: 3,
            reads_on_standbys: 30,
            held: 4,
            retried: 6,
            errors: 1,
        };
        assert_eq!(Totals::parse(page), expected);
    }
}
