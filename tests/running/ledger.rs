//! What clients were told of their writes, and whether the table `ledger` agrees.
//!
//! Must not know: how rows are written, and what was done to the servers meanwhile.

use std::collections::HashMap;
use std::time::Instant;

use pgsteer::sandbox::Sandbox;

/// What became of a write, as the client was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Acknowledged,
    /// 08007, or the end of the connection.
    Unknown,
    /// 40001, or an error that says so otherwise.
    RolledBack,
}

/// One row.
#[derive(Debug, Clone, Copy)]
pub struct Write {
    pub id: i64,
    pub sent: Instant,
    pub answered: Instant,
    pub fate: Fate,
}

/// How often each row is on a node.
pub async fn rows(sandbox: &Sandbox, node: usize) -> HashMap<i64, i64> {
    let client = sandbox.connect(node).await.unwrap();
    let rows = client.query("SELECT id, count(*) FROM ledger GROUP BY id", &[]).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// X19: what was acknowledged is there once, what was rolled back is not, the rest is there once or not.
pub async fn judge(sandbox: &Sandbox, node: usize, writes: &[Write]) {
    let faults = faults(&rows(sandbox, node).await, writes);
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// Each write with which the table does not agree.
pub fn faults(rows: &HashMap<i64, i64>, writes: &[Write]) -> Vec<String> {
    let mut faults = Vec::new();
    for write in writes {
        let count = rows.get(&write.id).copied().unwrap_or(0);
        let right = match write.fate {
            Fate::Acknowledged => count == 1,
            Fate::Unknown => count <= 1,
            Fate::RolledBack => count == 0,
        };
        if !right {
            faults.push(format!("{write:?} is there {count} times"));
        }
    }
    faults
}
