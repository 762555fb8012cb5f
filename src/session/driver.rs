//! The thin loop around the machines: reads units, gets servers, runs exchanges, and deals with what was lost.
//!
//! Invariant: a unit is sent a second time only when nothing of it was sent, when it was refused before it ran, or when it
//! is a known read of which nothing has reached the client. Must not know: SQL, how nodes are judged.

use std::future::poll_fn;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::attempt::LimitSet;
use super::commits::OwnCommits;
use super::control::Control;
use super::inspect::Inspect;
use super::journal::Journal;
use super::outcome;
use super::own_settings::{self, OwnSettingError};
use super::prepared::Names;
use super::setting_names::Mentioned;
use super::settings::{Order, Touched};
use super::shard::Shard;
use super::so_far::SoFar;
use super::standby_wait::ReadOnPrimary;
use super::transaction::Transaction;
use super::unit::{self, Front, Kind, Needs};
use crate::auth::{RoleOid, Secret, Users};
use crate::backend::{Reported, SettingValues};
use crate::classify::{Catalogue, CatalogueStamp, PinReason, StandardConformingStrings, TransactionEffect};
use crate::net;
use crate::pool::{Definition, Lease, Place, PoolGroup};
use crate::relay::answer::Answer;
use crate::relay::buffer::Window;
use crate::route::freshness::Freshness;
use crate::route::{Mode, Terms};
use crate::telemetry::metrics::Side;
use crate::topology::model::NodeId;
use crate::wire::reply::{self, Report};

/// A unit larger than this streams to the primary without being looked into.
pub const UNIT_BYTES_MAX: usize = 1024 * 1024;

/// How long the end of a batch is waited for before what there is of it is sent: longer than a batch takes to arrive, even where
/// the second write of a client waits for an acknowledgement that is put off (40 ms, Linux).
const BATCH_PAUSE: Duration = Duration::from_millis(100);

/// Who the client is, once logged in. The session keeps user and database by way of its pools.
#[derive(Debug, Clone)]
pub struct Identity {
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// What the endpoint is for that it came in by.
    pub mode: Mode,
    /// The role it is, if known.
    pub role: Option<RoleOid>,
    /// What logs in to servers as this user, where they ask.
    pub secret: Option<Secret<'static>>,
    /// What the client was told at its login.
    pub told: Vec<(String, String)>,
    /// Settings of the startup packet.
    pub settings: Vec<(String, String)>,
    /// How string literals are read.
    pub strings: StandardConformingStrings,
    /// The servers' major version.
    pub version: u8,
    /// The client encoding has bytes inside characters that look like ASCII: texts can't be looked into.
    pub opaque_encoding: bool,
    /// Transactions are READ ONLY unless they say otherwise.
    pub read_only: bool,
}

/// Why a session ends.
pub(super) enum End {
    /// The client said goodbye or vanished.
    Client,
    /// Reported the client this, last.
    Told(Box<Report>),
}

pub(super) type Flow<T> = Result<T, End>;

/// Why a session stops keeping what its next statement needs.
pub(super) enum Rest {
    /// It has been idle for a while.
    Cooled,
    /// Somebody wants to know the process of its server connection.
    Summoned,
}

/// A server connection in this session's hands.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about what became of it")]
pub(super) struct Attached {
    pub(super) lease: Lease,
    pub(super) node: NodeId,
    pub(super) side: Side,
    /// An extended batch is under way whose replies have not all come.
    pub(super) batch: Option<Box<Batch>>,
    /// Must be closed, not reused.
    pub(super) spoiled: bool,
    /// What it is to be asked before anybody else gets it.
    pub(super) inspect: Inspect,
    /// A pin may have ended.
    pub(super) may_unpin: bool,
    /// Settings that the server does not list may have been made: they are reset before anybody else gets it.
    pub(super) unlisted: bool,
    /// The place that its read has among those on the primary for want of a standby.
    pub(super) _on_primary: Option<ReadOnPrimary>,
    /// The place that its read has among those on the primary because standbys cancel them.
    pub(super) _place: Option<Place>,
}

impl Attached {
    /// One on which nothing has been done yet.
    pub(super) fn new(lease: Lease, node: NodeId, side: Side) -> Self {
        Self {
            lease,
            node,
            side,
            batch: None,
            spoiled: false,
            inspect: Inspect::Nothing,
            may_unpin: false,
            unlisted: false,
            _on_primary: None,
            _place: None,
        }
    }
}

/// An extended batch under way.
#[expect(clippy::struct_excessive_bools, reason = "independent facts about what was sent")]
pub(super) struct Batch {
    pub(super) answer: Box<Answer>,
    pub(super) journal: Journal,
    /// A COMMIT is among what was sent.
    pub(super) commits: bool,
    /// A ROLLBACK is: what comes behind it is a transaction of its own.
    pub(super) rolls_back: bool,
    /// All that was sent only reads.
    pub(super) repeatable: bool,
    /// An error came: the server ignores everything up to Sync.
    pub(super) failed: bool,
    /// See `Exchange::copies_ended`.
    pub(super) copies_ended: isize,
}

/// What some settings mean for the reading of a client's texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) strings: StandardConformingStrings,
    /// The servers' major version.
    pub(super) version: u8,
    pub(super) opaque_encoding: bool,
    /// `default_transaction_read_only`.
    pub(super) read_only: bool,
}

/// One client's session.
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each read by another rule")]
pub struct Session {
    pub(super) shard: Rc<Shard>,
    pub(super) client: Rc<TcpStream>,
    pub(super) control: Rc<Control>,
    pub(super) number: u64,
    pub(super) group: Rc<PoolGroup>,
    pub(super) secret: Option<Secret<'static>>,
    /// What its endpoint is for.
    pub(super) mode: Mode,
    /// The role that the user was at its login, if known.
    pub(super) role: Option<RoleOid>,
    pub(super) strings: StandardConformingStrings,
    pub(super) opaque_encoding: bool,
    /// Transactions are READ ONLY unless they say otherwise.
    pub(super) read_only: bool,
    /// Transactions are SERIALIZABLE unless they say otherwise, as far as it is known: a standby refuses that.
    pub(super) serializable: bool,
    /// How its transactions are committed.
    pub(super) own_commits: OwnCommits,
    /// `idle_session_timeout`, for while no server is held that would look at it.
    pub(super) idle_limit: Option<Duration>,
    /// Its `statement_timeout`, as far as the session has set it: waiting for a server counts.
    pub(super) statement_limit: Option<Duration>,
    /// Whether the open transaction may have set it otherwise for itself.
    pub(super) limit_set: LimitSet,
    /// `idle_in_transaction_session_timeout`, for a transaction that was put off.
    pub(super) idle_in_transaction_limit: Option<Duration>,
    /// What the session is to find on its server, between transactions.
    pub(super) settings: Rc<SettingValues>,
    /// Those of `settings` that decide what a text means: statements are shared only among sessions that have the same.
    pub(super) scope: Rc<SettingValues>,
    /// What the client knows of reported parameters.
    pub(super) told: Reported,
    /// What it was told at its login: where no setting was changed since, or all are reset, it is so still.
    pub(super) welcome: Reported,
    /// What its reads are promised, by the configuration and by its settings.
    pub(super) terms: Terms,
    /// One of its settings `pgsteer.…` has a value that is none.
    pub(super) amiss: Option<Box<OwnSettingError>>,
    /// Of the startup packet: what RESET goes back to.
    pub(super) startup: Rc<SettingValues>,
    /// What may have changed `settings` since.
    pub(super) touched: Touched,
    /// Name and value of a SET that is all of a Query outside of a transaction, where its text shows them.
    pub(super) set_by_text: Option<(String, String)>,
    /// How texts were to be read at login.
    pub(super) first: Reading,
    /// What is known of the database, and which catalogue that is.
    pub(super) catalogue: Option<Arc<Catalogue>>,
    pub(super) catalogue_stamp: CatalogueStamp,
    pub(super) names: Names,
    pub(super) transaction: Transaction,
    /// How the open transaction is begun anew elsewhere, while that is possible.
    pub(super) so_far: Option<Box<SoFar>>,
    /// An error that the client is to have when it sends something: what it is for was lost while it waited for nothing.
    pub(super) owed: Option<Box<[u8]>>,
    pub(super) freshness: Freshness,
    pub(super) pins: Vec<PinReason>,
    /// Channels that are listened to.
    pub(super) channels: Vec<String>,
    pub(super) attached: Option<Attached>,
    pub(super) skip_to_sync: bool,
    /// The pin `BackendPid` is only for whoever has summoned the session, and ends with its next statement.
    pub(super) summoned: bool,
    /// A COMMIT or ROLLBACK was bound in this transaction: a portal bound earlier may be it.
    pub(super) commit_bound: bool,
    /// What code has mentioned of settings that no server lists, and it has not been asked for yet.
    pub(super) mentioned: Option<Box<Mentioned>>,
    /// When it was asked last whether code that can't be seen has ended its pins.
    pub(super) asked_at: Option<Instant>,
    /// As whom its settings could be made the last time.
    pub(super) settings_order: Order,
    /// Something was defined in this transaction that may run code beside other statements.
    pub(super) definition: Option<Definition>,
    /// Databases that were altered in this transaction.
    pub(super) altered_databases: Vec<Arc<str>>,
    /// A savepoint may have been set in this transaction.
    pub(super) may_have_savepoints: bool,
    /// Roles that were created, altered or dropped in this transaction.
    pub(super) altered_roles: Option<Box<Users>>,
}

impl Session {
    /// A session for an authenticated client whose login has been answered.
    pub fn new(
        shard: &Rc<Shard>,
        client: Rc<TcpStream>,
        control: Rc<Control>,
        number: u64,
        identity: Identity,
    ) -> Self {
        let mut pairs = identity.settings;
        let token = own_settings::take_token(&mut pairs);
        let settings = shard.intern_settings(pairs);
        let welcome = shard.intern_told(Reported::new(identity.told));
        let mut session = Self {
            shard: Rc::clone(shard),
            client,
            control,
            number,
            group: shard.pools.group(&identity.database, &identity.user),
            secret: identity.secret,
            mode: identity.mode,
            role: identity.role,
            told: welcome.clone(),
            welcome,
            strings: identity.strings,
            opaque_encoding: identity.opaque_encoding,
            scope: Rc::default(),
            terms: Terms::default(),
            amiss: None,
            startup: Rc::clone(&settings),
            settings,
            touched: Touched::default(),
            set_by_text: None,
            read_only: identity.read_only,
            serializable: false,
            own_commits: OwnCommits::default(),
            idle_limit: None,
            statement_limit: None,
            limit_set: LimitSet::No,
            idle_in_transaction_limit: None,
            first: Reading {
                strings: identity.strings,
                version: identity.version,
                opaque_encoding: identity.opaque_encoding,
                read_only: identity.read_only,
            },
            catalogue: None,
            catalogue_stamp: CatalogueStamp::default(),
            names: Names::default(),
            transaction: Transaction::None,
            so_far: None,
            owed: None,
            freshness: Freshness::default(),
            pins: Vec::new(),
            channels: Vec::new(),
            attached: None,
            skip_to_sync: false,
            summoned: false,
            commit_bound: false,
            mentioned: None,
            asked_at: None,
            settings_order: Order::default(),
            may_have_savepoints: false,
            definition: None,
            altered_databases: Vec::new(),
            altered_roles: None,
        };
        session.read_settings();
        session.bring_token(token);
        session
    }

    /// Serves the client until it goes. `early`: bytes that came together with the login.
    ///
    /// The session is a box, and so is its work: a client that has been idle for a while costs neither.
    pub async fn serve(mut self: Box<Self>, early: Vec<u8>) {
        let end = match self.live(early).await {
            Some(end) => end,
            None => self.last_words(),
        };
        self.control.idle.set(false);
        if let End::Told(report) = end {
            self.shard.counters.error(report.code.as_str());
            let mut bytes = Vec::new();
            report.put(&mut bytes);
            // Best effort, bounded: the client may have stopped reading.
            let _ = tokio::time::timeout(Duration::from_secs(1), net::write_all(&self.client, &bytes)).await;
        }
        if let Some(attached) = self.attached.take() {
            // An open transaction ends with its connection; only what runs must be stopped.
            if attached.batch.is_some()
                && let Some(key) = self.control.runs_at.borrow().clone()
            {
                self.shard.cancel_at(&key);
            }
            self.part_from(attached);
        }
        self.shard.leave(self.number);
    }

    /// Serves the client until the session ends by itself; `None` when pgsteer does not wait for that any longer. Whatever is
    /// in the middle of something is dropped then, except for an exchange, which ends itself (`Ended::Cut`).
    async fn live(&mut self, early: Vec<u8>) -> Option<End> {
        let control = Rc::clone(&self.control);
        let mut work = std::pin::pin!(self.work(early));
        poll_fn(|context| match work.as_mut().poll(context) {
            Poll::Ready(end) => Poll::Ready(Some(end)),
            Poll::Pending if control.cut.get() => Poll::Ready(None),
            Poll::Pending => {
                control.keep_waker(context.waker());
                Poll::Pending
            }
        })
        .await
    }

    async fn work(&mut self, mut early: Vec<u8>) -> End {
        loop {
            if early.is_empty() {
                match self.wait_cold().await {
                    Ok(None | Some(Rest::Cooled)) => {}
                    Ok(Some(Rest::Summoned)) => Box::pin(self.answer_summons()).await,
                    Err(end) => return end,
                }
            }
            self.shard.warm_up(&self.control);
            match Box::pin(self.serve_units(std::mem::take(&mut early))).await {
                Ok(Rest::Cooled | Rest::Summoned) => {}
                Err(end) => return end,
            }
        }
    }

    async fn serve_units(&mut self, early: Vec<u8>) -> Flow<Rest> {
        let mut input: Option<Window> = if early.is_empty() {
            let mut window = Window::new(self.shard.buffers.take());
            self.read_first(&mut window)?;
            Some(window)
        } else {
            Some(self.window_with(&early)?)
        };
        drop(early);
        loop {
            let mut window = match input.take() {
                Some(window) if !window.filled().is_empty() => window,
                idle => {
                    if let Some(window) = idle {
                        self.shard.buffers.give(window.into_bytes());
                    }
                    match self.wait_idle().await? {
                        None => {}
                        Some(Rest::Summoned) => {
                            Box::pin(self.answer_summons()).await;
                            continue;
                        }
                        Some(rest) => return Ok(rest),
                    }
                    Window::new(self.shard.buffers.take())
                }
            };
            let front = unit::front(window.filled(), UNIT_BYTES_MAX)
                .map_err(|error| End::Told(Box::new(outcome::protocol(&error.to_string()))))?;
            match front {
                Front::Incomplete if window.filled().is_empty() => self.read_first(&mut window)?,
                Front::Incomplete => self.read_on(&mut window).await?,
                Front::Terminate => return Err(End::Client),
                Front::Invalid { kind } => {
                    return Err(End::Told(Box::new(outcome::protocol(&format!(
                        "invalid frontend message type {kind}"
                    )))));
                }
                // Behind an Execute of COPY the data may come before the server has asked for it.
                Front::Stray { bytes } if self.is_in_batch() && !self.is_in_failed_batch() => {
                    self.copy_data(&mut window, bytes).await?
                }
                Front::Stray { bytes } => self.skip(&mut window, bytes).await?,
                Front::Unit { kind, bytes } => self.unit(&mut window, kind, bytes).await?,
                Front::Oversized { kind, bytes } => self.oversized(&mut window, kind, bytes).await?,
            }
            input = Some(window);
        }
    }

    pub(super) fn is_in_batch(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.batch.is_some())
    }

    pub(super) fn is_in_failed_batch(&self) -> bool {
        self.attached.as_ref().is_some_and(|it| it.batch.as_ref().is_some_and(|batch| batch.failed))
    }

    /// Reads more of what is not a whole unit yet. Whole messages of a batch whose end does not come soon go to the server
    /// without it, which runs them and says at once if one fails.
    async fn read_on(&mut self, window: &mut Window) -> Flow<()> {
        let unfinished = unit::unfinished(window.filled());
        if unfinished == 0 || self.skip_to_sync {
            if self.attached.is_some() {
                // What the held server says meanwhile is passed on, and the limits of an idle client hold.
                self.wait_attached().await?;
            }
            return self.read_more(window).await;
        }
        match tokio::time::timeout(BATCH_PAUSE, self.read_more(window)).await {
            Ok(read) => read,
            Err(_) => self.unit(window, Kind::Partial, unfinished).await,
        }
    }

    /// Runs one unit that stands whole at the front of the window.
    async fn unit(&mut self, window: &mut Window, kind: Kind, bytes: usize) -> Flow<()> {
        if self.skip_to_sync {
            self.send_owed().await?;
            window.consume(bytes);
            // A Query is skipped, too: only a Sync ends this.
            if kind == Kind::Synced {
                self.skip_to_sync = false;
                return self.send_client(self.transaction.status().ready_for_query()).await;
            }
            return Ok(());
        }
        self.control.begin_statement();
        let bytes = if self.is_in_failed_batch() {
            // As the server would: nothing but the Sync counts.
            let ignored = if kind == Kind::Synced { bytes - reply::SYNC.len() } else { bytes };
            window.consume(ignored);
            if kind != Kind::Synced {
                return Ok(());
            }
            reply::SYNC.len()
        } else {
            bytes
        };
        self.read_and_run(window, kind, bytes).await
    }

    /// Finds out what a unit needs, and runs it.
    async fn read_and_run(&mut self, window: &mut Window, kind: Kind, bytes: usize) -> Flow<()> {
        let in_batch = self.is_in_batch();
        self.may_have_savepoints &= self.transaction.has_run();
        let mut needs = if in_batch && kind == Kind::Flushed && bytes == reply::SYNC.len() {
            Needs::default()
        } else {
            self.refresh_catalogue();
            self.needs(window.filled().get(..bytes).unwrap_or_default())
        };
        if needs.sets_own
            && let Some((kind, unit)) = self.refusing(kind, window.filled().get(..bytes).unwrap_or_default())
        {
            window.consume(bytes);
            let length = unit.len();
            let mut refusing = Window::new(unit.into_boxed_slice());
            refusing.advance(length);
            return Box::pin(self.read_and_run(&mut refusing, kind, length)).await;
        }
        if self.amiss.is_some() && !self.is_in_order(window, (kind, bytes), &needs).await? {
            return Ok(());
        }
        if !in_batch {
            if matches!(self.transaction, Transaction::Lost { .. }) {
                self.settle_only_read(&needs).await;
            }
            let local = self.local(window.filled().get(..bytes).unwrap_or_default(), kind, &needs);
            if let Some(reply) = local {
                window.consume(bytes);
                return self.send_client(&reply).await;
            }
            if needs.transaction == TransactionEffect::Other
                && let Some((begin_bytes, replies)) =
                    self.local_begin(window.filled().get(..bytes).unwrap_or_default(), kind)
            {
                // The rest stands at the front then.
                window.consume(begin_bytes);
                return self.send_client(&replies).await;
            }
        }
        self.may_have_savepoints |= needs.transaction == TransactionEffect::Other;
        let is_ddl = needs.may_unpin || needs.roles || needs.databases;
        if needs.session || needs.unseen || is_ddl {
            let unit = window.filled().get(..bytes).unwrap_or_default();
            needs.sets_commit |= self.mentions_commit(unit);
            if is_ddl && needs.sets_commit {
                // ALTER ROLE, DATABASE or SYSTEM may make it the default of sessions.
                self.group.hidden.note_altered_commits();
            }
        }
        if needs.session || needs.unseen {
            self.note_effects(window.filled().get(..bytes).unwrap_or_default());
        }
        if needs.defines {
            self.note_definition();
        }
        if needs.databases {
            self.leave_databases(window.filled().get(..bytes).unwrap_or_default()).await;
        }
        if needs.roles {
            self.note_roles(window.filled().get(..bytes).unwrap_or_default());
        }
        let flow = self.run(window, kind, bytes, needs, Instant::now()).await;
        if self.altered_roles.is_some() {
            self.settle_roles();
        }
        if !self.altered_databases.is_empty() {
            self.settle_databases();
        }
        flow
    }
}
