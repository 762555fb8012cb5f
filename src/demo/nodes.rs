//! How much work each node has done, by its own account.
//!
//! The clients have a database for themselves, so its transactions are theirs (and a few of the proxy's resets); probes go
//! to another one. Servers tell with up to a second's delay, and a killed one takes its last second with it.
//! Invariant: bounded in time, and a node that does not answer keeps its last figure. It must not know roles.

use std::time::Duration;

use tokio_postgres::Client;

use super::clients::DATABASE;
use crate::sandbox::Node;

/// A node that does not answer for so long does not count this time.
const LIMIT: Duration = Duration::from_millis(300);

/// The connection to one node, and its last figure.
#[derive(Default)]
pub(super) struct Observer {
    client: Option<Client>,
    last: Option<u64>,
}

impl Observer {
    /// Transactions of the clients on this node.
    pub(super) async fn look(&mut self, node: &Node) -> Option<u64> {
        if node.is_running() {
            match tokio::time::timeout(LIMIT, self.ask(node)).await {
                Ok(Some(count)) => self.last = Some(count),
                _ => self.client = None,
            }
        }
        self.last
    }

    async fn ask(&mut self, node: &Node) -> Option<u64> {
        let client = match self.client.take() {
            Some(client) => client,
            None => node.connect().await.ok()?,
        };
        let sql = "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = $1";
        let row = client.query_opt(sql, &[&DATABASE]).await.ok()??;
        self.client = Some(client);
        u64::try_from(row.try_get::<_, i64>(0).ok()?).ok()
    }
}
