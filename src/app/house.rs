//! What logins need: verifiers from the servers themselves, the parameters a server reports, cancel keys.
//!
//! Invariant: no password is stored; a verifier is asked for over pgsteer's own login role with a fixed `search_path`, and
//! kept for `auth.cache_ttl` (longer only while no server can be asked). Parameters come from a server that accepted the
//! same user, database and settings. Must not know: statements.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::shards::Command;
use crate::auth::{AuthType, ClientKey, Kind, Secret, Verifier, nonce_from};
use crate::backend::login::LoginError;
use crate::backend::{self, ConnectError, Endpoint};
use crate::client::Door;
use crate::client::handshake::Request;
use crate::config::AuthMethod;
use crate::config::Config;
use crate::session::settings;
use crate::topology::model::{NodeAddress, NodeId, Role, Snapshot};
use crate::wire::reply::Report;
use crate::wire::sqlstate as state;
use crate::wire::startup::Startup;

/// Cached welcomes and verifiers; more than this and the cache starts anew.
const CACHED_MAX: usize = 4096;

/// Auth queries under way at a time: a storm of logins must not become one of server connections.
const ASKING_MAX: usize = 4;

/// How long reported parameters are believed (ALTER ROLE ... SET changes them).
const PARAMETERS_TTL: Duration = Duration::from_secs(60);

type WelcomeKey = (String, String, Vec<(String, String)>);
type Parameters = Vec<(String, String)>;

/// The house that all shards' doors lead into.
pub(super) struct House {
    auth_type: AuthType,
    query: String,
    cache_ttl: Duration,
    connect_timeout: Duration,
    pub(super) login_timeout: Duration,
    login: Login,
    mock_secret: [u8; 32],
    snapshots: watch::Receiver<Arc<Snapshot>>,
    commands: Vec<mpsc::UnboundedSender<Command>>,
    control: tokio::runtime::Handle,
    asking: tokio::sync::Semaphore,
    verifiers: Mutex<HashMap<String, (Option<Verifier>, Instant)>>,
    parameters: Mutex<HashMap<WelcomeKey, (Parameters, Instant)>>,
    cancel_keys: Mutex<HashMap<i32, CancelEntry>>,
}

/// pgsteer's own login role.
#[derive(Clone)]
struct Login {
    user: String,
    password: Option<String>,
    database: String,
}

struct CancelEntry {
    key: Vec<u8>,
    shard: usize,
    session: u64,
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    // The system's generator fails only before it is seeded, at boot; keys must never be predictable.
    getrandom::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

impl House {
    pub(super) fn new(
        config: &Config,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        commands: Vec<mpsc::UnboundedSender<Command>>,
        control: tokio::runtime::Handle,
    ) -> Arc<Self> {
        Arc::new(Self {
            auth_type: match config.auth.method {
                AuthMethod::ScramSha256 => AuthType::ScramSha256,
                AuthMethod::Trust => AuthType::Trust,
            },
            query: config.auth.query.clone(),
            cache_ttl: config.auth.cache_ttl,
            connect_timeout: config.topology.connect_timeout,
            login_timeout: config.listen.login_timeout,
            login: Login {
                user: config.cluster.user.clone(),
                password: config.cluster.password.as_ref().map(|password| password.expose().to_owned()),
                database: config.cluster.database.clone(),
            },
            mock_secret: random(),
            snapshots,
            commands,
            control,
            asking: tokio::sync::Semaphore::new(ASKING_MAX),
            verifiers: Mutex::default(),
            parameters: Mutex::default(),
            cancel_keys: Mutex::default(),
        })
    }

    /// Forgets a client's cancel key.
    pub(super) fn leave(&self, process_id: i32) {
        self.cancel_keys.lock().unwrap_or_else(PoisonError::into_inner).remove(&process_id);
    }

    /// Nodes to ask, the primary first.
    fn nodes(&self) -> Vec<(NodeId, Arc<NodeAddress>)> {
        let snapshot = self.snapshots.borrow();
        let of = |role| {
            snapshot
                .nodes
                .iter()
                .filter(move |node| node.role == role)
                .map(|node| (node.id, Arc::clone(&node.address)))
        };
        of(Role::Primary).chain(of(Role::Standby)).collect()
    }

    async fn look_up(&self, user: &str) -> Result<Option<Verifier>, Box<Report>> {
        let cached = self.verifiers.lock().unwrap_or_else(PoisonError::into_inner).get(user).cloned();
        if let Some((verifier, at)) = &cached
            && at.elapsed() < self.cache_ttl
        {
            return Ok(verifier.clone());
        }
        let mut changes = self.snapshots.clone();
        let asked = loop {
            let asked = self.ask(user).await;
            // With an old answer at hand a login need not wait for a server; without one it does, as long as it may.
            if asked.is_ok() || cached.is_some() || changes.changed().await.is_err() {
                break asked;
            }
        };
        match (asked, cached) {
            (Ok(verifier), _) => {
                let mut verifiers = self.verifiers.lock().unwrap_or_else(PoisonError::into_inner);
                if verifiers.len() >= CACHED_MAX {
                    verifiers.clear();
                }
                verifiers.insert(user.to_owned(), (verifier.clone(), Instant::now()));
                Ok(verifier)
            }
            (Err(_), Some((verifier, _))) => Ok(verifier),
            (Err(cause), None) => Err(Box::new(
                Report::fatal(state::CANNOT_CONNECT_NOW, "pgsteer: no server can be asked for the password")
                    .detail(cause)
                    .hint("Try again later; see /topology on the admin address for the state of each node."),
            )),
        }
    }

    /// Runs the auth query on the first node that answers.
    async fn ask(&self, user: &str) -> Result<Option<Verifier>, String> {
        let mut last = "No node answers.".to_owned();
        let Ok(_turn) = self.asking.acquire().await else { return Err(last) };
        for (_, address) in self.nodes() {
            let (login, query, user) = (self.login.clone(), self.query.clone(), user.to_owned());
            let timeout = self.connect_timeout;
            let asked = self.control.spawn(async move {
                tokio::time::timeout(timeout, auth_query(&login, &address, &query, &user)).await
            });
            match asked.await {
                Ok(Ok(Ok(verifier))) => return Ok(verifier),
                Ok(Ok(Err(cause))) => last = cause,
                Ok(Err(_)) => "The auth query took too long.".clone_into(&mut last),
                Err(_) => "pgsteer is shutting down.".clone_into(&mut last),
            }
            tracing::warn!(cause = last, "the auth query failed");
        }
        Err(last)
    }

    async fn fetch_parameters(&self, endpoint: Endpoint) -> Result<Parameters, Vec<u8>> {
        let mut changes = self.snapshots.clone();
        loop {
            for (node, address) in self.nodes() {
                let endpoint = Endpoint { node, address, ..endpoint.clone() };
                match backend::open(endpoint, nonce_from(random())).await {
                    Ok((server, parameters)) => {
                        server.terminate();
                        return Ok(parameters);
                    }
                    Err(ConnectError::Login(LoginError::Refused { code, frame, .. }))
                        if !matches!(code, state::CANNOT_CONNECT_NOW | state::TOO_MANY_CONNECTIONS) =>
                    {
                        return Err(frame);
                    }
                    Err(ConnectError::Login(
                        error @ (LoginError::NoSecret | LoginError::Method(_) | LoginError::Scram(_)),
                    )) => {
                        return Err(login_impossible(&error));
                    }
                    Err(error) => tracing::debug!(node = node.0, %error, "login at a server failed"),
                }
            }
            if changes.changed().await.is_err() {
                let mut out = Vec::new();
                Report::fatal(state::ADMIN_SHUTDOWN, "pgsteer is shutting down").put(&mut out);
                return Err(out);
            }
        }
    }
}

fn login_impossible(error: &LoginError) -> Vec<u8> {
    let mut out = Vec::new();
    Report::fatal(state::INVALID_AUTHORIZATION_SPECIFICATION, "pgsteer: cannot log in to the servers as this user")
        .detail(error.to_string())
        .hint("With auth.type = \"trust\" the servers must trust pgsteer too; with \"scram-sha-256\" they must ask for SCRAM.")
        .put(&mut out);
    out
}

async fn auth_query(
    login: &Login,
    address: &NodeAddress,
    query: &str,
    user: &str,
) -> Result<Option<Verifier>, String> {
    let mut config = tokio_postgres::Config::new();
    config
        .host(&address.host)
        .port(address.port)
        .user(&login.user)
        .dbname(&login.database)
        .application_name("pgsteer_auth")
        .options("-c search_path=pg_catalog");
    if let Some(password) = &login.password {
        config.password(password);
    }
    let (client, connection) =
        config.connect(tokio_postgres::NoTls).await.map_err(|error| explain(&error))?;
    let driver = tokio::spawn(connection);
    let row = client.query_opt(query, &[&user]).await.map_err(|error| explain(&error));
    driver.abort();
    let Some(row) = row? else { return Ok(None) };
    let text: Option<String> = row.try_get(1).map_err(|error| explain(&error))?;
    let Some(text) = text else { return Ok(None) };
    match text.parse() {
        Ok(verifier) => Ok(Some(verifier)),
        Err(_) => {
            tracing::warn!(user, "the password is not stored as a SCRAM-SHA-256 verifier: login refused");
            Ok(None)
        }
    }
}

fn explain(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(error) => format!("The auth query failed: {} ({})", error.message(), error.code().code()),
        None => format!("The auth query failed: {error}"),
    }
}

/// One connection's door: the house, and which shard and session it leads to.
pub(super) struct ShardDoor<'a> {
    pub(super) house: &'a Arc<House>,
    pub(super) shard: usize,
    pub(super) session: u64,
}

impl Door for ShardDoor<'_> {
    fn auth_type(&self) -> AuthType {
        self.house.auth_type
    }

    async fn verifier(&self, user: &str) -> Result<(Verifier, Kind), Box<Report>> {
        Ok(match self.house.look_up(user).await? {
            Some(verifier) => (verifier, Kind::Known),
            None => (Verifier::mock(user, &self.house.mock_secret), Kind::Mock),
        })
    }

    async fn parameters(
        &self,
        request: &Request,
        startup: &Startup,
        keys: Option<&(ClientKey, [u8; 32])>,
    ) -> Result<Parameters, Vec<u8>> {
        let pairs = settings::from_startup(startup).map_err(|error| {
            let mut out = Vec::new();
            Report::fatal(state::INVALID_PARAMETER_VALUE, format!("pgsteer: {error}")).put(&mut out);
            out
        })?;
        let application_name =
            pairs.iter().find(|(name, _)| name == "application_name").map(|(_, value)| value.clone());
        let judged: Parameters = pairs.into_iter().filter(|(name, _)| name != "application_name").collect();
        let key = (request.user.clone(), request.database.clone(), judged);
        let cached = {
            let parameters = self.house.parameters.lock().unwrap_or_else(PoisonError::into_inner);
            parameters
                .get(&key)
                .filter(|(_, at)| at.elapsed() < PARAMETERS_TTL)
                .map(|(found, _)| found.clone())
        };
        let mut found = match cached {
            Some(found) => found,
            None => {
                let endpoint = Endpoint {
                    node: NodeId(0),
                    address: Arc::new(NodeAddress { host: String::new(), port: 0 }),
                    epoch: self.house.snapshots.borrow().epoch,
                    user: request.user.as_str().into(),
                    database: request.database.as_str().into(),
                    secret: keys.map(|(client_key, server_key)| Secret::keys(client_key, server_key)),
                    parameters: key.2.clone(),
                    timeout: self.house.connect_timeout,
                };
                let found = self.house.fetch_parameters(endpoint).await?;
                let mut parameters = self.house.parameters.lock().unwrap_or_else(PoisonError::into_inner);
                if parameters.len() >= CACHED_MAX {
                    parameters.clear();
                }
                parameters.insert(key, (found.clone(), Instant::now()));
                found
            }
        };
        for (name, value) in &mut found {
            match name.as_str() {
                // Writes work at this endpoint, whichever node was asked.
                "in_hot_standby" => "off".clone_into(value),
                "application_name" => *value = application_name.clone().unwrap_or_default(),
                _ => {}
            }
        }
        Ok(found)
    }

    fn admit(&self) -> (i32, Vec<u8>) {
        let mut keys = self.house.cancel_keys.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let process_id = i32::from_be_bytes(random::<4>()) & i32::MAX;
            if process_id == 0 || keys.contains_key(&process_id) {
                continue;
            }
            let key = random::<4>().to_vec();
            keys.insert(
                process_id,
                CancelEntry { key: key.clone(), shard: self.shard, session: self.session },
            );
            return (process_id, key);
        }
    }

    fn distrust(&self, user: &str) {
        self.house.verifiers.lock().unwrap_or_else(PoisonError::into_inner).remove(user);
    }

    fn cancel(&self, process_id: i32, key: &[u8]) {
        let keys = self.house.cancel_keys.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = keys.get(&process_id).filter(|entry| entry.key == key) else { return };
        if let Some(commands) = self.house.commands.get(entry.shard) {
            // A shard that has ended runs nothing that could be cancelled.
            let _ = commands.send(Command::Cancel { session: entry.session });
        }
    }
}
