//! The live view as text: a table of the nodes, or the same in one line. Pure. It must not know where it is shown.

use std::fmt::Write as _;

use super::status::{NodeStatus, Totals};

/// Everything that is shown at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Picture {
    pub(super) nodes: Vec<NodeStatus>,
    /// Statements that each node has carried out, in the order of `nodes`, as far as it told.
    pub(super) statements: Vec<Option<u64>>,
    pub(super) totals: Totals,
    pub(super) writes: u64,
    pub(super) reads: u64,
}

/// Servers tell what they have done about once a second.
const HEAD: [&str; 6] = ["node", "address", "role", "timeline", "lag", "served 1 s ago"];

/// Between two cells, and between two totals.
const GAP: &str = "  ";

/// The column that a narrow terminal goes without.
const ADDRESS: usize = 1;

impl Picture {
    /// The table, one line for each node, and the totals, made to fit into so many columns as far as possible.
    pub(super) fn table(&self, columns: usize) -> Vec<String> {
        let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
        rows.extend(self.nodes.iter().enumerate().map(|(index, node)| {
            let known = |value: Option<u64>| value.map_or_else(|| "-".to_owned(), |it| it.to_string());
            vec![
                node.name.clone(),
                node.address.clone(),
                node.role.clone(),
                known(node.timeline),
                lag(node),
                known(self.statements.get(index).copied().flatten()),
            ]
        }));
        let mut lines = aligned(&rows);
        if lines.iter().any(|line| line.chars().count() > columns) {
            for row in &mut rows {
                row.remove(ADDRESS);
            }
            lines = aligned(&rows);
        }
        lines.extend(filled(&self.totals(), columns));
        lines
    }

    /// The same in one line.
    pub(super) fn line(&self) -> String {
        let mut text = String::new();
        for (index, node) in self.nodes.iter().enumerate() {
            let _ = write!(text, "{} {}", node.name, node.role);
            if let Some(timeline) = node.timeline {
                let _ = write!(text, " tl{timeline}");
            }
            if node.role == "standby" {
                let _ = write!(text, " {}", lag(node));
            }
            if let Some(count) = self.statements.get(index).copied().flatten() {
                let _ = write!(text, " {count}");
            }
            text.push_str(" | ");
        }
        text + &self.totals().join(GAP)
    }

    fn totals(&self) -> [String; 5] {
        let Totals { held, retried, errors, .. } = self.totals;
        let counts = [
            ("writes", self.writes),
            ("reads", self.reads),
            ("held", held),
            ("retried", retried),
            ("errors", errors),
        ];
        counts.map(|(name, count)| format!("{name} {count}"))
    }
}

fn lag(node: &NodeStatus) -> String {
    match node.staleness_ms {
        Some(ms) if node.role == "standby" => format!("{ms} ms"),
        _ => "-".to_owned(),
    }
}

/// Columns as wide as their widest cell.
fn aligned(rows: &[Vec<String>]) -> Vec<String> {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    rows.iter()
        .map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, &width)| format!("{cell:width$}"));
            cells.collect::<Vec<_>>().join(GAP).trim_end().to_owned()
        })
        .collect()
}

/// The parts in as few lines as there is room for.
fn filled(parts: &[String], columns: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for part in parts {
        match lines.last_mut() {
            Some(line) if line.len() + GAP.len() + part.len() <= columns => {
                line.push_str(GAP);
                line.push_str(part);
            }
            _ => lines.push(part.clone()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn picture() -> Picture {
        let node = |name: &str, role: &str, timeline, staleness_ms| NodeStatus {
            name: name.to_owned(),
            address: "127.0.0.1:20001".to_owned(),
            role: role.to_owned(),
            timeline,
            staleness_ms,
        };
        Picture {
            nodes: vec![
                node("n1", "unknown", None, Some(9)),
                node("n2", "standby", Some(1), Some(12)),
                node("n3", "primary", Some(2), None),
            ],
            statements: vec![None, Some(1200), Some(7)],
            totals: Totals { held: 1, retried: 2, errors: 3, ..Totals::default() },
            writes: 40,
            reads: 50,
        }
    }

    #[test]
    fn table_has_a_line_for_each_node() {
        let expected = [
            "node  address          role     timeline  lag    served 1 s ago",
            "n1    127.0.0.1:20001  unknown  -         -      -",
            "n2    127.0.0.1:20001  standby  1         12 ms  1200",
            "n3    127.0.0.1:20001  primary  2         -      7",
            "writes 40  reads 50  held 1  retried 2  errors 3",
        ];
        assert_eq!(picture().table(usize::MAX), expected);
        assert_eq!(picture().table(80), expected);
    }

    #[test]
    fn a_narrow_table_goes_without_addresses() {
        let expected = [
            "node  role     timeline  lag    served 1 s ago",
            "n1    unknown  -         -      -",
            "n2    standby  1         12 ms  1200",
            "n3    primary  2         -      7",
            "writes 40  reads 50  held 1  retried 2  errors 3",
        ];
        assert_eq!(picture().table(48), expected);
        assert_eq!(picture().table(47)[4..], ["writes 40  reads 50  held 1  retried 2", "errors 3"]);
    }

    #[test]
    fn line_says_the_same() {
        let expected = "n1 unknown | n2 standby tl1 12 ms 1200 | n3 primary tl2 7 | \
            writes 40  reads 50  held 1  retried 2  errors 3";
        assert_eq!(picture().line(), expected);
    }

    #[test]
    fn nothing_known_is_shown_as_nothing() {
        assert_eq!(Picture::default().line(), "writes 0  reads 0  held 0  retried 0  errors 0");
        assert_eq!(Picture::default().table(80).len(), 2);
    }
}
