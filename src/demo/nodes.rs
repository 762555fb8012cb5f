//! How much work each node has done, by its own account.
//!
//! The clients have a database for themselves, so its transactions are theirs (and a few of the proxy's resets); probes go
//! to another one. Servers tell with up to a second's delay, idle ones later, and a killed one takes its last second with
//! it.
//! Invariant: bounded in time, and a node that does not answer keeps its last figure. It must not know roles.

use std::time::Duration;

use tokio_postgres::Client;

use super::clients::DATABASE;
use crate::sandbox::Node;

/// A node that does not answer for so long does not count this time.
const LIMIT: Duration = Duration::from_millis(300);

/// How long the connections may take to end, and to have told what they did.
const FAREWELL: Duration = Duration::from_secs(2);

/// Up to PostgreSQL 14 a figure may be half a second old.
const STALE: Duration = Duration::from_millis(600);

const SERVED: &str = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1";
const END_ALL: &str = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";

/// The connection to one node, and its last figure.
#[derive(Default)]
pub(super) struct Observer {
    client: Option<Client>,
    last: Option<u64>,
}

impl Observer {
    /// Transactions of the clients on this node.
    pub(super) async fn look(&mut self, node: &Node) -> Option<u64> {
        if let Some(count) = self.ask(node, SERVED).await {
            self.last = Some(count);
        }
        self.last
    }

    /// Ends what is left of the clients' server connections: each tells what it has done at the latest when it ends.
    async fn end_all(&mut self, node: &Node) {
        let end = async {
            while self.ask(node, END_ALL).await.is_some_and(|left| left > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        // What has not ended by then is missing in the figure.
        let _ = tokio::time::timeout(FAREWELL, end).await;
    }

    /// One number from the node, if it answers in time.
    async fn ask(&mut self, node: &Node, sql: &str) -> Option<u64> {
        if !node.is_running() {
            return None;
        }
        let client = self.client.take();
        let answer = async {
            let client = match client {
                Some(client) => client,
                None => node.connect().await.ok()?,
            };
            let row = client.query_opt(sql, &[&DATABASE]).await.ok()??;
            Some((client, u64::try_from(row.try_get::<_, i64>(0).ok()?).ok()?))
        };
        let (client, number) = tokio::time::timeout(LIMIT, answer).await.ok()??;
        self.client = Some(client);
        Some(number)
    }
}

/// The final figures, when the clients have left.
pub(super) async fn settle(observers: &mut [Observer], nodes: &[Node]) -> Vec<Option<u64>> {
    for (observer, node) in observers.iter_mut().zip(nodes) {
        observer.end_all(node).await;
    }
    tokio::time::sleep(STALE).await;
    let mut figures = Vec::new();
    for (observer, node) in observers.iter_mut().zip(nodes) {
        figures.push(observer.look(node).await);
    }
    figures
}
