//! pgsteer's own login role: whom it can ask, how it logs in, and what it says when nobody lets it in.
//!
//! Invariant: a node whose role is not known is never asked for anything but the reason why it rejects the role: it may
//! belong to another cluster. Must not know: what is asked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_postgres::{Client, NoTls};

use super::failure::{Cause, Failure, Passing, Picture};
use crate::config::Config;
use crate::topology::evidence::ProbeFailure;
use crate::topology::model::{NodeAddress, NodeId, Role, Snapshot};

/// The login role, and the nodes as they are known now.
pub(super) struct LoginRole {
    user: String,
    password: Option<String>,
    database: String,
    /// Bound of one login, and of one question.
    pub(super) timeout: Duration,
    /// The pictures.
    pub(super) snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A node to ask.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    /// Which.
    pub(super) id: NodeId,
    /// Where.
    pub(super) address: Arc<NodeAddress>,
    /// Its word is final.
    pub(super) primary: bool,
}

/// One round of asking: whom, and what their refusals amount to.
pub(super) struct Round {
    /// Nodes to ask, in order.
    pub(super) nodes: Vec<Asked>,
    /// The picture they were chosen by.
    pub(super) seen: Picture,
    all: usize,
    refusals: usize,
}

impl Round {
    /// Whether a refusal by this node, which would not pass by itself, ends the round for good. A standby's does not: what
    /// it lacks may only not have arrived there yet.
    pub(super) fn is_final(&mut self, node: &Asked) -> bool {
        self.refusals += 1;
        node.primary || self.refusals == self.all
    }
}

/// An open connection of the role's. Dropping it closes it, whatever it is doing.
pub(super) struct Connected {
    /// To ask by.
    pub(super) client: Client,
    _driving: JoinSet<Result<(), tokio_postgres::Error>>,
}

impl LoginRole {
    pub(super) fn new(config: &Config, snapshots: watch::Receiver<Arc<Snapshot>>) -> Self {
        Self {
            user: config.cluster.user.clone(),
            password: config.cluster.password.as_ref().map(|password| password.expose().to_owned()),
            database: config.cluster.database.clone(),
            timeout: config.topology.connect_timeout,
            snapshots,
        }
    }

    /// A round by the picture of now, the primary first.
    pub(super) fn round(&self) -> Round {
        self.round_from(Role::Primary)
    }

    /// A round by the picture of now, nodes of this role first.
    pub(super) fn round_from(&self, first: Role) -> Round {
        let snapshot = self.snapshots.borrow();
        let of = |role| {
            snapshot.nodes.iter().filter(move |node| node.role == role).map(move |node| Asked {
                id: node.id,
                address: Arc::clone(&node.address),
                primary: role == Role::Primary,
            })
        };
        let second = if first == Role::Primary { Role::Standby } else { Role::Primary };
        Round {
            nodes: of(first).chain(of(second)).collect(),
            seen: Picture::of(&snapshot),
            all: snapshot.nodes.len(),
            refusals: 0,
        }
    }

    /// Why there is nobody to ask. Final where each node says for itself that it does not let the role in.
    pub(super) async fn nobody(&self, seen: Picture) -> Failure<String> {
        let snapshot = Arc::clone(&self.snapshots.borrow());
        let mut first = None;
        for node in &snapshot.nodes {
            let rejects = [ProbeFailure::LoginRejected, ProbeFailure::Unintelligible]
                .iter()
                .any(|failure| node.reason == failure.as_str());
            if node.role != Role::Unknown || !rejects {
                return Failure::Passing(Passing::now(roll_call(&snapshot), seen));
            }
            match self.connect(&node.address).await {
                Err(cause) if !cause.passes => first = first.or(Some(cause.text)),
                Err(cause) => return Failure::Passing(Passing::now(cause.text, seen)),
                Ok(_) => return Failure::Passing(Passing::now(roll_call(&snapshot), seen)),
            }
        }
        match first {
            Some(cause) => Failure::Final(cause),
            None => Failure::Passing(Passing::now(roll_call(&snapshot), seen)),
        }
    }

    /// Logs in to a node, within the bound.
    pub(super) async fn connect(&self, address: &NodeAddress) -> Result<Connected, Cause> {
        let mut config = tokio_postgres::Config::new();
        config
            .host(&address.host)
            .port(address.port)
            .user(&self.user)
            .dbname(&self.database)
            .application_name("pgsteer_auth")
            .options("-c search_path=pg_catalog");
        if let Some(password) = &self.password {
            config.password(password);
        }
        match tokio::time::timeout(self.timeout, config.connect(NoTls)).await {
            Ok(Ok((client, connection))) => {
                let mut driving = JoinSet::new();
                driving.spawn(connection);
                Ok(Connected { client, _driving: driving })
            }
            Ok(Err(error)) => Err(Cause::of(&error, "The login of cluster.user")),
            Err(_) => Err(Cause::passing("The login of cluster.user took too long")),
        }
    }
}

/// What is known of the nodes, in numbers: addresses are nothing for a client that is not logged in.
fn roll_call(snapshot: &Snapshot) -> String {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for node in &snapshot.nodes {
        *counts.entry(format!("{} ({})", node.role.as_str(), node.reason)).or_default() += 1;
    }
    let counts: Vec<String> = counts.into_iter().map(|(what, count)| format!("{count} {what}")).collect();
    format!("No node is known as primary or standby: {}", counts.join(", "))
}
