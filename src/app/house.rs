//! What logins need, under one roof: verifiers, the parameters a server reports, cancel keys.
//!
//! Invariant: whoever is let in has proved itself (or all are trusted), and a server has accepted the same user, database and
//! settings. Must not know: statements.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};

use super::cancel_keys::{CancelKeys, Holder};
use super::console::Console;
use super::login_role::LoginRole;
use super::parameters::{Parameters, Question, Reported};
use super::peers::{Forwarded, Peers};
use super::replication;
use super::seats::{self, ClientLimit, Seat};
use super::shards::Command;
use super::verifiers::Verifiers;
use crate::auth::{AuthType, ClientKey, Kind, Secret, Users, Verifier};
use crate::backend::Server;
use crate::client::handshake::{Replication, Request};
use crate::client::{Denial, Door, Granted};
use crate::config::{AuthMethod, Config};
use crate::route::Mode;
use crate::session::shard::Shard;
use crate::session::{outcome, own_settings, settings};
use crate::topology::model::{Role, Snapshot};
use crate::wire::peer::Introduction;
use crate::wire::reply::Report;
use crate::wire::sqlstate as state;
use crate::wire::startup::Startup;
use crate::wire::text;

/// PostgreSQL cuts a longer application name, and says so.
const APPLICATION_NAME_BYTES_MAX: usize = 63;

/// A cancel request's connection is kept open no longer than this, whatever has become of the request.
const CANCEL_LIMIT: Duration = Duration::from_secs(5);

/// The house that all shards' doors lead into.
pub(super) struct House {
    auth_type: AuthType,
    pub(super) login_timeout: Duration,
    mock_secret: [u8; 32],
    commands: Vec<mpsc::UnboundedSender<Command>>,
    verifiers: Arc<Verifiers>,
    reported: Arc<Reported>,
    cancel_keys: CancelKeys,
    peers: Arc<Peers>,
    pub(super) console: Console,
}

/// Random bytes for nonces, keys and secrets.
pub(super) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0u8; N];
    // The system's generator fails only before it is seeded, at boot; keys must never be predictable.
    getrandom::fill(&mut bytes).expect("the system's random generator works");
    bytes
}

/// pgsteer itself is not let in, or not told: nothing that the client could mend.
pub(super) fn role_rejected(cause: &str) -> Report {
    Report::fatal(state::CANNOT_CONNECT_NOW, "pgsteer: no server can be asked for the password")
        .detail(format!("{cause}."))
        .hint("cluster.user must be able to run auth.query: see \"The login role\" in the README.")
}

impl House {
    pub(super) fn new(
        config: &Config,
        snapshots: watch::Receiver<Arc<Snapshot>>,
        commands: Vec<mpsc::UnboundedSender<Command>>,
        console: Console,
        control: tokio::runtime::Handle,
    ) -> Arc<Self> {
        let role = Arc::new(LoginRole::new(config, snapshots));
        let cancel_keys = CancelKeys::new();
        let own = Introduction { token: cancel_keys.token.to_bytes(), identity: random() };
        Arc::new(Self {
            auth_type: match config.auth.method {
                AuthMethod::ScramSha256 => AuthType::ScramSha256,
                AuthMethod::Trust => AuthType::Trust,
            },
            login_timeout: config.listen.login_timeout,
            mock_secret: random(),
            commands,
            verifiers: Verifiers::new(config, Arc::clone(&role), control.clone()),
            peers: Peers::new(config.listen.peers.clone(), own, &control),
            reported: Reported::new(role, control),
            cancel_keys,
            console,
        })
    }

    /// Forgets what was reported of a database.
    pub(super) fn forget_database(&self, database: &str) {
        self.reported.forget_database(database);
    }

    /// Forgets what is known of these users.
    pub(super) fn forget_users(&self, users: &Users) {
        self.verifiers.forget(users);
        self.reported.forget_users(users);
    }

    /// Asks the session of this process for the process of its server connection.
    pub(super) fn server_process(&self, process_id: i32) -> Option<oneshot::Receiver<i32>> {
        let holder = self.cancel_keys.session(process_id)?;
        let (answer, answered) = oneshot::channel();
        let asked = Command::ServerProcess { session: holder.session, answer };
        self.commands.get(holder.shard)?.send(asked).ok().map(|()| answered)
    }

    /// A server has refused this user's keys, or says that it is another role by now.
    pub(super) fn doubt(&self, user: &str) {
        self.verifiers.doubt(user);
        self.reported.forget_users(&Users::of([user.to_owned()]));
    }

    /// Forgets a client's cancel key.
    pub(super) fn leave(&self, process_id: i32) {
        self.cancel_keys.forget(process_id);
    }

    /// Cancels what the session with this key does and waits until that has taken effect. Gives whether there is such a session.
    async fn cancel(&self, process_id: i32, key: &[u8]) -> bool {
        let Some(holder) = self.cancel_keys.holder(process_id, key) else { return false };
        let Some(commands) = self.commands.get(holder.shard) else { return false };
        let (taken, answer) = oneshot::channel();
        // A shard that has ended runs nothing that could be cancelled: it drops its end, and that is an answer, too.
        if commands.send(Command::Cancel { session: holder.session, taken }).is_ok() {
            let _ = tokio::time::timeout(CANCEL_LIMIT, answer).await;
        }
        true
    }
}

/// One connection's door: the house, which shard and session it leads to, and how far the login is.
pub(super) struct ShardDoor<'a> {
    house: &'a Arc<House>,
    shard: &'a Shard,
    session: u64,
    /// What the endpoint is for.
    mode: Mode,
    /// What the login is waiting for, when it waits for a server.
    waits_for: RefCell<Option<String>>,
    /// It is no login: a cancel request is being dealt with.
    cancelling: Cell<bool>,
    admitted: Cell<Option<i32>>,
    seat: RefCell<Seat>,
    /// A replication client's own server connection.
    server: RefCell<Option<Box<Server>>>,
    /// The limit that kept it out.
    kept_out_by: Cell<Option<ClientLimit>>,
}

impl<'a> ShardDoor<'a> {
    pub(super) fn new(
        house: &'a Arc<House>,
        shard: &'a Shard,
        session: u64,
        (seat, mode): (Seat, Mode),
    ) -> Self {
        Self {
            house,
            shard,
            session,
            mode,
            waits_for: RefCell::default(),
            cancelling: Cell::new(false),
            admitted: Cell::new(None),
            seat: RefCell::new(seat),
            server: RefCell::default(),
            kept_out_by: Cell::new(None),
        }
    }

    /// The place of the client that was let in, and the server connection that it has for itself.
    pub(super) fn into_seat(self) -> (Seat, Option<Box<Server>>) {
        (self.seat.into_inner(), self.server.into_inner())
    }

    /// The limit that kept the client out, if one did.
    pub(super) fn kept_out_by(&self) -> Option<ClientLimit> {
        self.kept_out_by.get()
    }

    fn placed(&self, placed: Result<(), ClientLimit>) -> Result<(), Box<Report>> {
        placed.map_err(|limit| {
            self.kept_out_by.set(Some(limit));
            Box::new(seats::refusal(limit))
        })
    }

    pub(super) fn is_cancelling(&self) -> bool {
        self.cancelling.get()
    }

    /// The client was not let in after all.
    pub(super) fn close(&self) {
        if let Some(process_id) = self.admitted.take() {
            self.house.leave(process_id);
        }
    }

    /// For a client whose time is up.
    pub(super) fn too_late(&self) -> Report {
        let report = Report::fatal(state::CANNOT_CONNECT_NOW, "pgsteer: the login was not completed in time");
        match &*self.waits_for.borrow() {
            Some(cause) => report
                .detail(format!("{cause}."))
                .hint("Try again later; see /topology on the admin address for the state of each node."),
            None => report.detail("The client did not answer in time."),
        }
    }

    /// A server connection of the client's own, in place of what other logins are told; `into_seat` gives it.
    async fn open_replication(
        &self,
        request: &Request,
        startup: &Startup,
        keys: Option<&(ClientKey, [u8; 32])>,
    ) -> Result<Granted, Denial> {
        if self.mode == Mode::Standby {
            return Err(denied(&replication::not_at_standbys()));
        }
        let secret = keys.map(|(client_key, server_key)| Secret::keys(client_key, server_key));
        let opening = replication::open(self.shard, request, startup, secret, |cause| self.note(cause));
        let server = self.asking(opening).await?;
        let parameters = server.reported.pairs().to_vec();
        self.server.replace(Some(server));
        Ok(Granted { parameters, notices: Vec::new(), role: None })
    }

    /// Runs what asks servers; `too_late` tells the last cause that it notes.
    async fn asking<T>(&self, question: impl Future<Output = T>) -> T {
        self.note("No server has answered yet");
        let answer = question.await;
        self.waits_for.replace(None);
        answer
    }

    /// The nodes are known, and no standby is among them.
    fn is_without_standby(&self) -> bool {
        let snapshot = self.shard.snapshot.borrow();
        snapshot.primary.is_some() && !snapshot.nodes.iter().any(|node| node.role == Role::Standby)
    }

    /// Waits until a primary has said which cluster this is, as long as a login waits for one.
    async fn cluster_is_known(&self) {
        let mut changes = self.shard.snapshot_changed.subscribe();
        let known = async {
            while self.shard.snapshot.borrow().system_id.is_none() && changes.changed().await.is_ok() {}
        };
        // Without it the check says so.
        let _ = tokio::time::timeout(self.shard.shared.settings.hold_timeout, known).await;
    }

    /// Whether the session is on a standby, as far as it is known before its first statement.
    fn in_hot_standby(&self) -> bool {
        match self.mode {
            // Writes work, whichever node was asked.
            Mode::Split | Mode::Primary => false,
            Mode::Standby => true,
            Mode::PreferStandby => !self.is_without_standby(),
        }
    }

    fn note(&self, cause: &str) {
        self.waits_for.replace(Some(cause.to_owned()));
    }
}

impl Door for ShardDoor<'_> {
    fn auth_type(&self) -> AuthType {
        self.house.auth_type
    }

    fn closed(&self) -> Option<Box<Report>> {
        if self.shard.draining.get() {
            return Some(Box::new(outcome::shutting_down()));
        }
        // Whoever lists several hosts tries the next one.
        (self.mode == Mode::Standby && self.is_without_standby())
            .then(|| Box::new(outcome::no_standby_at_login()))
    }

    fn take_place(&self) -> Result<(), Box<Report>> {
        let placed = self.seat.borrow_mut().sit();
        self.placed(placed)
    }

    fn take_place_as(&self, request: &Request) -> Result<(), Box<Report>> {
        let placed = self.seat.borrow_mut().sit_as(&request.database, &request.user);
        self.placed(placed)
    }

    async fn verifier(&self, user: &str) -> Result<(Verifier, Kind), Box<Report>> {
        let look_up = self.house.verifiers.look_up(user, |cause| self.note(cause));
        match self.asking(look_up).await {
            Ok(Some(verifier)) => Ok((verifier, Kind::Known)),
            Ok(None) => Ok((Verifier::mock(user, &self.house.mock_secret), Kind::Mock)),
            Err(cause) => Err(Box::new(role_rejected(&cause))),
        }
    }

    async fn parameters(
        &self,
        request: &Request,
        startup: &Startup,
        keys: Option<&(ClientKey, [u8; 32])>,
    ) -> Result<Granted, Denial> {
        if request.replication == Replication::Wanted {
            return self.open_replication(request, startup, keys).await;
        }
        if self.house.console.is(&request.database) {
            let parameters = self.house.console.greeting(&request.user).map_err(|report| denied(&report))?;
            return Ok(Granted { parameters, notices: Vec::new(), role: None });
        }
        let pairs = settings::from_startup(startup).map_err(|error| {
            let report = Report::fatal(error.code(), error.to_string());
            denied(&error.hint().into_iter().fold(report, Report::hint))
        })?;
        if own_settings::has_token(&pairs) {
            self.asking(self.cluster_is_known()).await;
        }
        own_settings::check_startup(&pairs, &self.shard.snapshot.borrow())
            .map_err(|error| denied(&own_settings::refused_at_login(&error)))?;
        // The server takes any bytes at its login, but not in a SET, by which a session's settings are brought to other servers.
        let opaque = |(name, value): &&(String, String)| !is_application_name(name) && !text::is_utf8(value);
        if let Some((name, _)) = pairs.iter().find(opaque) {
            return Err(denied(&not_utf8(name)));
        }
        // A name that the server takes as it is makes no question of its own: many clients have one each.
        let (plain_names, settings): (Parameters, Parameters) =
            pairs.into_iter().partition(|(name, value)| is_application_name(name) && is_plain(value));
        let question = Question {
            user: request.user.clone(),
            database: request.database.clone(),
            settings,
            first: match self.mode {
                Mode::Split | Mode::Primary => Role::Primary,
                Mode::Standby | Mode::PreferStandby => Role::Standby,
            },
            proof: keys.map(|(_, server_key)| *server_key),
        };
        let client_key = keys.map(|(client_key, _)| client_key);
        let asked = self.house.reported.get(&question, client_key, |cause| self.note(cause));
        let mut found = self.asking(asked).await.map_err(|refusal| {
            if refusal.code == Some(state::INVALID_PASSWORD) {
                // The password has been changed since the verifier was asked for.
                self.house.verifiers.doubt(&request.user);
            }
            refusal.denial
        })?;
        for (name, value) in &mut found.parameters {
            if name == "in_hot_standby" {
                let told = if self.in_hot_standby() { "on" } else { "off" };
                told.clone_into(value);
            } else if let (true, Some((_, given))) = (is_application_name(name), plain_names.last()) {
                value.clone_from(given);
            }
        }
        Ok(found)
    }

    fn admit(&self, key_bytes: usize) -> (i32, Vec<u8>) {
        let holder = Holder { shard: self.shard.number, session: self.session };
        let (process_id, key) = self.house.cancel_keys.give(key_bytes, holder);
        self.admitted.set(Some(process_id));
        (process_id, key)
    }

    fn distrust(&self, user: &str) {
        self.house.verifiers.doubt(user);
    }

    async fn cancel(&self, process_id: i32, key: &[u8]) {
        self.cancelling.set(true);
        if self.house.cancel(process_id, key).await {
            return;
        }
        let forwarded = self.house.peers.forward(process_id, key);
        if let Ok(Forwarded::Taken) = tokio::time::timeout(CANCEL_LIMIT, forwarded).await {
            self.shard.counters.cancels_forwarded.inc();
        }
    }

    async fn forwarded_cancel(&self, process_id: i32, key: &[u8]) -> bool {
        self.cancelling.set(true);
        self.house.cancel(process_id, key).await
    }

    fn introduction(&self) -> Introduction {
        self.house.peers.own()
    }
}

fn not_utf8(name: &str) -> Report {
    Report::fatal(
        state::CHARACTER_NOT_IN_REPERTOIRE,
        format!("pgsteer: the value of startup parameter \"{name}\" is not valid UTF-8"),
    )
    .detail("Only user, database and application_name may be in another encoding.")
    .hint("Set it by a SET command after the login.")
}

/// Told to a client that has proved itself, as a server would.
fn denied(report: &Report) -> Denial {
    let mut frame = Vec::new();
    report.put(&mut frame);
    Denial { frame, authenticated: true }
}

fn is_application_name(name: &str) -> bool {
    name.eq_ignore_ascii_case("application_name")
}

/// PostgreSQL keeps only printable ASCII in an application name, and what it makes of the rest depends on its version.
fn is_plain(value: &str) -> bool {
    value.len() <= APPLICATION_NAME_BYTES_MAX && value.bytes().all(|byte| (b' '..=b'~').contains(&byte))
}
