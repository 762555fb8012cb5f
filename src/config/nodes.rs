//! The nodes written as `[[cluster.node]]` tables.
//!
//! Invariant: every table is looked at, and every fault in it reported, even after an earlier one failed. Must not
//! know: the other keys.

use toml_edit::{Item, TableLike};

use super::model::Node;
use crate::topology::model::NodeAddress;

/// A node's share of reads where none is given.
pub(super) const DEFAULT_WEIGHT: u32 = 1;

const DEFAULT_PORT: i64 = 5432;
const WEIGHT_MAX: i64 = 1000;
const FIELDS: [&str; 4] = ["host", "port", "weight", "name"];

/// The name of a node that was given none: `n1`, `n2` ... in the order of the list.
pub(super) fn default_name(index: usize) -> String {
    format!("n{}", index + 1)
}

/// What is wrong with one field: its name, its span, what is expected.
pub(super) type FieldFault = (&'static str, Option<std::ops::Range<usize>>, String);

/// Reads one table; `None` when it has a fault.
pub(super) fn read(table: &dyn TableLike, index: usize, faults: &mut Vec<FieldFault>) -> Option<Node> {
    let before = faults.len();
    for (name, item) in table.iter() {
        if !FIELDS.contains(&name) {
            let message = format!("unknown key {name:?} (expected one of {})", FIELDS.join(", "));
            faults.push(("", item.span(), message));
        }
    }
    let host = table.get("host").and_then(Item::as_str).and_then(|text| {
        let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
        bracketed.parse().ok()
    });
    let Some(NodeAddress { host, .. }) = host else {
        faults.push((
            "host",
            table.get("host").and_then(Item::span),
            "expected a host name or address".to_owned(),
        ));
        return None;
    };
    let port = whole(table, "port", DEFAULT_PORT, 1..=65535, faults);
    let weight = whole(table, "weight", i64::from(DEFAULT_WEIGHT), 0..=WEIGHT_MAX, faults);
    let name = match table.get("name") {
        None => default_name(index),
        Some(item) => item.as_str().filter(|name| !name.is_empty()).map(str::to_owned).unwrap_or_else(|| {
            faults.push(("name", item.span(), "expected a text that is not empty".to_owned()));
            String::new()
        }),
    };
    let address = NodeAddress { host, port: u16::try_from(port).ok()? };
    let weight = u32::try_from(weight).ok()?;
    (faults.len() == before).then_some(Node { name, address, weight })
}

fn whole(
    table: &dyn TableLike,
    name: &'static str,
    default: i64,
    range: std::ops::RangeInclusive<i64>,
    faults: &mut Vec<FieldFault>,
) -> i64 {
    let Some(item) = table.get(name) else { return default };
    item.as_integer().filter(|number| range.contains(number)).unwrap_or_else(|| {
        let message = format!("expected a whole number from {} to {}", range.start(), range.end());
        faults.push((name, item.span(), message));
        default
    })
}
