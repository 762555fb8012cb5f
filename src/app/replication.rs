//! Opens the server connection of a replication client: to the primary, as the client, with the client's startup packet.
//!
//! Invariant: what is given was opened under the snapshot that still holds, to a server that says it is not in recovery, and is
//! known to the fence. What the primary refuses is final, in its words; what may pass is waited for. Must not know: sessions.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::Secret;
use crate::backend::login::{Asks, LoginError};
use crate::backend::{ConnectError, Endpoint, Server};
use crate::client::Denial;
use crate::client::handshake::Request;
use crate::session::shard::{Shard, SuspectCause};
use crate::topology::model::{Epoch, NodeAddress, NodeId};
use crate::wire::reply::Report;
use crate::wire::sqlstate as state;
use crate::wire::startup::Startup;

use super::parameters;

/// A primary that did not let the client in is not asked again any sooner.
const PAUSE: Duration = Duration::from_millis(20);

/// A connection, or the ErrorResponse. The caller bounds the time; `note` hears what is waited for. Cancel-safe.
pub(super) async fn open(
    shard: &Shard,
    request: &Request,
    startup: &Startup,
    secret: Option<Secret<'static>>,
    note: impl Fn(&str),
) -> Result<Box<Server>, Denial> {
    let (user, database): (Arc<str>, Arc<str>) =
        (request.user.as_str().into(), request.database.as_str().into());
    let parameters = startup.parameters.iter().filter(|(name, _)| name != "user" && name != "database");
    let parameters: Vec<_> = parameters.cloned().collect();
    loop {
        let Some((node, address, epoch)) = primary(shard) else {
            note("No node is known as the primary");
            shard.another_snapshot().await;
            continue;
        };
        let endpoint = Endpoint {
            node,
            address,
            epoch,
            user: Arc::clone(&user),
            database: Arc::clone(&database),
            secret,
            parameters: parameters.clone(),
            asks: Asks::Role,
            timeout: shard.pools.settings().connect_timeout,
        };
        let opened = tokio::select! {
            biased;
            opened = shard.pools.open_apart(&endpoint) => opened,
            // A node that hangs would answer with silence.
            () = shard.epoch_after(epoch) => continue,
        };
        match opened {
            Ok(server) if primary(shard).is_none_or(|(now, _, at)| (now, at) != (node, epoch)) => {
                note("The primary has changed");
                server.terminate();
                continue;
            }
            Ok(server) if server.in_hot_standby => {
                note("The primary says that it is in recovery");
                shard.suspect(node, SuspectCause::ReadOnly);
            }
            Ok(server) => return Ok(server),
            Err(error) => {
                let cause = error.to_string();
                if let Some(denial) = refusal(error) {
                    return Err(denial);
                }
                note(&cause);
                shard.suspect(node, SuspectCause::ConnectionLost);
            }
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// The primary as this shard's sessions see it.
fn primary(shard: &Shard) -> Option<(NodeId, Arc<NodeAddress>, Epoch)> {
    let snapshot = shard.snapshot();
    let node = snapshot.primary_at(Instant::now())?.node;
    if shard.is_doubted(node, &snapshot) {
        return None;
    }
    Some((node, Arc::clone(&snapshot.node(node)?.address), snapshot.epoch))
}

/// The ErrorResponse of what does not pass soon. A server without a free slot for replication is one: whoever has one keeps it,
/// and clients come again by themselves.
fn refusal(error: ConnectError) -> Option<Denial> {
    match error {
        ConnectError::Login(LoginError::Refused { code, frame, authenticated, .. })
            if &code.class() == b"53" =>
        {
            Some(Denial { frame, authenticated })
        }
        error => parameters::refusal(error).map(|refusal| refusal.denial),
    }
}

/// At an endpoint that never leads to the primary.
pub(super) fn not_at_standbys() -> Report {
    Report::fatal(
        state::FEATURE_NOT_SUPPORTED,
        "pgsteer: replication connections lead to the primary, and this endpoint to standbys only",
    )
    .hint("Connect to another endpoint of pgsteer, or to the standby itself.")
}
