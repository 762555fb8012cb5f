//! The shards' threads: each takes clients, commands, mail and snapshots, and serves its sessions.
//!
//! Invariant: a shard's thread runs one current-thread runtime and never waits for another shard. Must not know: SQL.

use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};

use super::console;
use super::house::{House, ShardDoor};
use super::seats::{self, ClientLimit, Seat, Seats};
use crate::auth::Secret;
use crate::backend::Server;
use crate::classify::{SUPPORTED_VERSIONS, StandardConformingStrings};
use crate::client::{self, Granted, LoggedIn, Outcome};
use crate::net;
use crate::pool::{self, Mail, Pools, Registry};
use crate::route::Mode;
use crate::session::control::{Answered, Control, Taken};
use crate::session::driver::{Identity, Session};
use crate::session::shard::{Shard, Shared};
use crate::session::{outcome, replication, settings};
use crate::telemetry::Metrics;
use crate::telemetry::metrics::ShardCounters;
use crate::topology::model::{Epoch, NodeId, Snapshot};
use crate::topology::monitor::{Fence, MonitorHandle};

/// How often idle server connections are looked over.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How often sessions are looked over for having become idle: what they keep is small, and so is what it costs anew.
const COOL_INTERVAL: Duration = Duration::from_millis(250);
/// In which time a standby's conflicts come to count for half.
const CONFLICTS_HALVE_IN: Duration = Duration::from_secs(30);

/// A connection that comes during the drain has so long to say what it wants: it may be a cancel request.
const LATE_LIMIT: Duration = Duration::from_secs(1);

/// What a shard is told.
pub(super) enum Command {
    /// A new client, and what its endpoint is for.
    Client(std::net::TcpStream, Seat, Mode),
    /// Cancel what that session does.
    Cancel {
        /// The session.
        session: u64,
        /// Dropped when that is over.
        taken: Taken,
    },
    /// Tell the process of the server connection that this session has on the primary.
    ServerProcess {
        /// The session.
        session: u64,
        /// Dropped where it has none.
        answer: Answered,
    },
    /// Sever connections to this node that are older than this epoch; then answer.
    Fence {
        /// The node.
        node: NodeId,
        /// The new epoch.
        epoch: Epoch,
        /// Done.
        done: oneshot::Sender<()>,
    },
    /// Begin nothing new on the primary.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Tell how many sessions have something under way on the primary.
    Running {
        /// How many.
        answer: oneshot::Sender<usize>,
    },
    /// End logins and idle sessions, let transactions end, then stop.
    Drain,
    /// Let every session say its last words, then stop.
    CutOff,
}

/// The running shards.
pub(super) struct Shards {
    ended: Vec<oneshot::Receiver<()>>,
}

/// One end of each shard's command channel.
pub(super) type Commands = Vec<mpsc::UnboundedSender<Command>>;

impl Shards {
    /// The command channels of so many shards. Unbounded by type; bounded by `max_client_conn` and the cancel rate.
    pub(super) fn channels(count: usize) -> (Commands, Vec<mpsc::UnboundedReceiver<Command>>) {
        (0..count).map(|_| mpsc::unbounded_channel()).unzip()
    }

    /// Starts a thread for each.
    pub(super) fn start(
        receivers: Vec<(mpsc::UnboundedReceiver<Command>, mpsc::UnboundedReceiver<Mail>)>,
        house: &Arc<House>,
        shared: &Arc<Shared>,
        (pool_settings, registry): &(pool::Settings, Arc<Registry>),
        metrics: &Metrics,
        monitor: &MonitorHandle,
    ) -> std::io::Result<Self> {
        let mut ended = Vec::new();
        for (number, (commands, mail)) in receivers.into_iter().enumerate() {
            let (end, end_receiver) = oneshot::channel();
            ended.push(end_receiver);
            let thread = ShardThread {
                number,
                commands,
                mail,
                house: Arc::clone(house),
                shared: Arc::clone(shared),
                pool_settings: pool_settings.clone(),
                registry: Arc::clone(registry),
                counters: metrics.shard(number).unwrap_or_default(),
                snapshots: monitor.snapshots.clone(),
            };
            std::thread::Builder::new().name(format!("shard-{number}")).spawn(move || {
                thread.run();
                // Nobody may be waiting any more.
                let _ = end.send(());
            })?;
        }
        Ok(Self { ended })
    }

    /// Waits until every shard has ended.
    pub(super) async fn ended(self) {
        for end in self.ended {
            // An error means that the thread is gone.
            let _ = end.await;
        }
    }
}

struct ShardThread {
    number: usize,
    commands: mpsc::UnboundedReceiver<Command>,
    mail: mpsc::UnboundedReceiver<Mail>,
    house: Arc<House>,
    shared: Arc<Shared>,
    pool_settings: pool::Settings,
    registry: Arc<Registry>,
    counters: Arc<ShardCounters>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

impl ShardThread {
    fn run(self) {
        let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => {
                tracing::error!(shard = self.number, %error, "cannot make the shard's runtime");
                return;
            }
        };
        tokio::task::LocalSet::new().block_on(&runtime, async {
            // As a task of its own it is polled when there is something for it, not with every statement of a client.
            let serving = tokio::task::spawn_local(self.serve());
            if let Err(error) = serving.await {
                tracing::error!(%error, "a shard has ended");
            }
        });
    }

    async fn serve(mut self) {
        let pools = Pools::new(
            self.number,
            self.pool_settings.clone(),
            Arc::clone(&self.registry),
            Arc::clone(&self.counters),
        );
        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
        let shard = Shard::new(
            self.number,
            Arc::clone(&self.shared),
            pools,
            Arc::clone(&self.counters),
            Arc::clone(&snapshot),
        );
        shard.publish(snapshot);
        let mut sweep = tokio::time::interval(SWEEP_INTERVAL);
        let mut cool = tokio::time::interval(COOL_INTERVAL);
        let mut age = tokio::time::interval(CONFLICTS_HALVE_IN);
        let mut is_closing = false;
        loop {
            tokio::select! {
                biased;
                changed = self.snapshots.changed() => match changed {
                    Ok(()) => {
                        let snapshot = Arc::clone(&self.snapshots.borrow_and_update());
                        shard.publish(snapshot);
                    }
                    Err(_) => return,
                },
                command = self.commands.recv(), if !is_closing => match command {
                    Some(command) => self.command(&shard, command),
                    None => return,
                },
                Some(mail) = self.mail.recv() => shard.pools.on_mail(mail),
                _ = cool.tick() => shard.cool_down(),
                _ = age.tick() => shard.age_conflicts(),
                _ = sweep.tick() => {
                    shard.pools.sweep(Instant::now());
                    shard.pools.keep_ready(&shard.snapshot(), Instant::now());
                }
            }
            // Looked at with every turn, which the ticks alone bring soon enough.
            if shard.draining.get() && shard.is_empty() {
                // Who has come meanwhile is heard; whoever comes now is given to a shard that goes on.
                is_closing = true;
                self.commands.close();
                while let Ok(command) = self.commands.try_recv() {
                    self.command(&shard, command);
                }
                if shard.is_empty() {
                    return;
                }
            }
        }
    }

    fn command(&self, shard: &Rc<Shard>, command: Command) {
        match command {
            Command::Client(stream, seat, mode) => self.take_in(shard, stream, (seat, mode)),
            Command::Cancel { session, taken } => shard.cancel(session, taken),
            Command::ServerProcess { session, answer } => shard.server_process(session, answer),
            Command::Fence { node, epoch, done } => {
                shard.pools.fence(node, epoch);
                // The monitor does not wait for ever.
                let _ = done.send(());
            }
            Command::Pause => shard.pause(),
            Command::Resume => shard.resume(),
            Command::Running { answer } => {
                // Who asked may have gone.
                let _ = answer.send(shard.running_on_primary());
            }
            Command::Drain => shard.drain(),
            Command::CutOff => shard.cut_off(),
        }
    }

    fn take_in(&self, shard: &Rc<Shard>, stream: std::net::TcpStream, entry: (Seat, Mode)) {
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot take a client in");
                return;
            }
        };
        // Fails only on a socket that is closed already.
        let _ = net::tune_client(&stream);
        shard.counters.clients_total.inc();
        let client = Rc::new(stream);
        let control = Control::new(&client);
        control.idle.set(false);
        control.logging_in.set(true);
        // Here and not in its task: a drain that begins before the task runs must know of it.
        let session = shard.enter(Rc::clone(&control));
        let (shard, house) = (Rc::clone(shard), Arc::clone(&self.house));
        tokio::task::spawn_local(client_task(shard, house, client, (control, session), entry));
    }
}

/// A client that is in.
struct Admitted {
    role: Role,
    process_id: i32,
    /// Bytes that came behind the login.
    early: Vec<u8>,
    seat: Seat,
}

/// What a client is in for.
enum Role {
    Session(Box<Identity>),
    /// Through a server connection of its own.
    Replication(Box<Server>),
    Console,
}

/// One client, from its first byte to its last.
async fn client_task(
    shard: Rc<Shard>,
    house: Arc<House>,
    client: Rc<TcpStream>,
    (control, session): (Rc<Control>, u64),
    entry: (Seat, Mode),
) {
    // The place is given up when everything of the session is gone.
    if let Some(admitted) = Box::pin(log_in(&shard, &house, &client, (&control, session), entry)).await {
        let Admitted { role, process_id, early, seat: _seat } = admitted;
        control.logging_in.set(false);
        control.process_id.set(process_id);
        match role {
            Role::Session(identity) => {
                Box::new(Session::new(&shard, client, control, session, *identity)).serve(early).await;
            }
            Role::Console => console::serve(&shard, &client, &control, &house.console, early).await,
            Role::Replication(server) => {
                replication::serve(&shard, &client, &control, session, server, early).await;
            }
        }
        house.leave(process_id);
    }
    shard.leave(session);
}

async fn log_in(
    shard: &Rc<Shard>,
    house: &Arc<House>,
    client: &Rc<TcpStream>,
    (control, session): (&Control, u64),
    (seat, mode): (Seat, Mode),
) -> Option<Admitted> {
    // It may bring a cancel request.
    let patience = if shard.draining.get() { LATE_LIMIT } else { Duration::ZERO };
    let door = ShardDoor::new(house, shard, session, (seat, mode));
    let report = tokio::select! {
        biased;
        outcome = tokio::time::timeout(house.login_timeout, client::login(client, &door)) => match outcome {
            Ok(Ok(Outcome::In(logged_in))) => {
                let (seat, server) = door.into_seat();
                let (identity, process_id, early) = let_in(shard, *logged_in, mode);
                let is_console = house.console.is(&identity.database);
                let role = match server {
                    Some(server) => Role::Replication(server),
                    None if is_console => Role::Console,
                    None => Role::Session(Box::new(identity)),
                };
                return Some(Admitted { role, process_id, early, seat });
            }
            Ok(Ok(Outcome::Refused)) => {
                shard.counters.logins_failed.inc();
                None
            }
            Ok(Ok(Outcome::Over) | Err(_)) => None,
            Err(_) => {
                shard.counters.logins_failed.inc();
                Some(door.too_late())
            }
        },
        () = drain_begins(shard, control, &door, patience) => Some(outcome::shutting_down()),
    };
    if let Some(limit) = door.kept_out_by() {
        shard.counters.clients_kept_out.at(limit as usize).inc();
    }
    door.close();
    if let Some(report) = report {
        let mut out = Vec::new();
        report.put(&mut out);
        // Best effort: the client may not be reading.
        let _ = client.try_write(&out);
    }
    None
}

fn let_in(shard: &Shard, logged_in: LoggedIn, mode: Mode) -> (Identity, i32, Vec<u8>) {
    let LoggedIn { request, startup, keys, granted, process_id, early } = logged_in;
    let Granted { parameters, role, .. } = granted;
    let mut settings = settings::from_startup(&startup).unwrap_or_default();
    // What a server makes of other bytes than printable ASCII depends on its version.
    for (_, value) in settings.iter_mut().filter(|(name, _)| name == "application_name") {
        parameter(&parameters, "application_name").clone_into(value);
    }
    let identity = Identity {
        user: request.user.as_str().into(),
        database: request.database.as_str().into(),
        mode,
        role,
        secret: keys.map(|(client_key, server_key)| Secret::keys(&client_key, &server_key)),
        settings,
        strings: strings(&parameters),
        version: version(&parameters),
        opaque_encoding: settings::is_opaque_encoding(parameter(&parameters, "client_encoding")),
        read_only: parameter(&parameters, "default_transaction_read_only") == "on",
        told: parameters,
    };
    if let Some(secret) = identity.secret {
        shard.pools.learn_key(&identity.user, secret);
    }
    (identity, process_id, early)
}

/// Returns when the drain has begun, which a login does not outlive; a cancel request does, it is over soon. What has come since
/// then has so much `patience` to say what it is.
async fn drain_begins(shard: &Shard, control: &Control, door: &ShardDoor<'_>, patience: Duration) {
    if !patience.is_zero() {
        tokio::time::sleep(patience).await;
    }
    while !shard.draining.get() || door.is_cancelling() {
        control.bell.notified().await;
    }
}

fn parameter<'p>(parameters: &'p [(String, String)], name: &str) -> &'p str {
    parameters.iter().find(|(other, _)| other == name).map_or("", |(_, value)| value.as_str())
}

/// The major version; the oldest where it is not told.
fn version(parameters: &[(String, String)]) -> u8 {
    let told = parameter(parameters, "server_version");
    let digits = told.find(|c: char| !c.is_ascii_digit()).unwrap_or(told.len());
    told.get(..digits).and_then(|it| it.parse().ok()).unwrap_or(*SUPPORTED_VERSIONS.start())
}

fn strings(parameters: &[(String, String)]) -> StandardConformingStrings {
    if parameter(parameters, "standard_conforming_strings") == "off" {
        StandardConformingStrings::Off
    } else {
        StandardConformingStrings::On
    }
}

/// Accepts clients and hands them out to the shards in turn.
pub(super) async fn accept(listeners: Vec<(TcpListener, Mode)>, commands: Commands, seats: Arc<Seats>) {
    let mut accepting = tokio::task::JoinSet::new();
    for (listener, mode) in listeners {
        let (commands, seats) = (commands.clone(), Arc::clone(&seats));
        accepting.spawn(async move {
            let mut next = 0usize;
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        let Some(seat) = seats.arrive() else {
                            too_many(&stream);
                            continue;
                        };
                        if let Ok(stream) = stream.into_std() {
                            next = hand_out(Command::Client(stream, seat, mode), &commands, next);
                        }
                    }
                    Err(error) => {
                        // Out of file descriptors, most likely: give the others a moment to end.
                        tracing::warn!(%error, "cannot accept a client");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
            }
        });
    }
    while accepting.join_next().await.is_some() {}
}

/// Gives a client to the shard behind `last`, or the next that has not ended; gives which. Where all have ended, nobody is served.
fn hand_out(client: Command, commands: &Commands, last: usize) -> usize {
    let mut command = client;
    let mut next = last;
    for _ in 0..commands.len() {
        next = (next + 1) % commands.len();
        match commands.get(next).map(|shard| shard.send(command)) {
            Some(Err(mpsc::error::SendError(back))) => command = back,
            Some(Ok(())) | None => break,
        }
    }
    next
}

fn too_many(stream: &TcpStream) {
    let mut out = Vec::new();
    seats::refusal(ClientLimit::All).put(&mut out);
    // Best effort on a fresh socket.
    let _ = stream.try_write(&out);
}

/// Severs connections on all shards before the monitor tells anybody of a new epoch.
pub(super) struct ShardFence {
    commands: Commands,
}

impl ShardFence {
    pub(super) fn new(commands: Commands) -> Self {
        Self { commands }
    }
}

impl Fence for ShardFence {
    fn fence(&self, old_primary: NodeId, epoch: Epoch) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        let waits: Vec<oneshot::Receiver<()>> = self
            .commands
            .iter()
            .filter_map(|commands| {
                let (done, wait) = oneshot::channel();
                commands.send(Command::Fence { node: old_primary, epoch, done }).ok().map(|()| wait)
            })
            .collect();
        Box::pin(async move {
            for wait in waits {
                // A shard that has ended holds no connections.
                let _ = wait.await;
            }
        })
    }
}
