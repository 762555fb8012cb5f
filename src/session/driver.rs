//! The thin loop around the machines: reads units, gets servers, runs exchanges, and deals with what was lost.
//!
//! Invariant: a unit is sent a second time only when nothing of it was sent, when it was refused before it ran, or when it
//! is a known read of which nothing has reached the client. Must not know: SQL, how nodes are judged.

use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant};

use tokio::net::TcpStream;

use super::control::Control;
use super::inspect::Inspect;
use super::outcome;
use super::prepared::Names;
use super::settings::{self, Touched};
use super::shard::{Shard, SuspectCause};
use super::transaction::Transaction;
use super::translate::Journal;
use super::unit::{self, Front, Kind, Needs};
use crate::auth::Secret;
use crate::backend::SettingValues;
use crate::classify::{self, PinReason, SessionEffect, StandardConformingStrings, TransactionEffect};
use crate::net;
use crate::pool::{Lease, PoolGroup};
use crate::relay::answer::{Answer, Event};
use crate::relay::buffer::Window;
use crate::route::freshness::Freshness;
use crate::route::{Mode, Need};
use crate::telemetry::metrics::Side;
use crate::topology::model::NodeId;
use crate::wire::reply::{self, Report};
use crate::wire::{extended, sqlstate};

/// A unit larger than this streams to the primary without being looked into.
pub const UNIT_BYTES_MAX: usize = 1024 * 1024;

/// What CREATE DATABASE copies if it is not told otherwise.
const DEFAULT_TEMPLATE: &[u8] = b"template1";

/// Names of settings with a prefix that are kept for one database and user.
const CUSTOM_SETTINGS_MAX: usize = 512;

/// Who the client is, once logged in. The session keeps user and database by way of its pools.
#[derive(Debug, Clone)]
pub struct Identity {
    /// User.
    pub user: Arc<str>,
    /// Database.
    pub database: Arc<str>,
    /// What logs in to servers as this user, where they ask.
    pub secret: Option<Secret<'static>>,
    /// Settings of the startup packet.
    pub settings: Vec<(String, String)>,
    /// How string literals are read.
    pub strings: StandardConformingStrings,
    /// The client encoding has bytes inside characters that look like ASCII: texts can't be looked into.
    pub opaque_encoding: bool,
    /// Transactions are READ ONLY unless they say otherwise.
    pub read_only: bool,
}

/// Why a session ends.
pub(super) enum End {
    /// The client said goodbye or vanished.
    Client,
    /// Told the client this, last.
    Told(Box<Report>),
}

/// How a held server ends while nothing is under way.
enum Parting {
    /// It is gone; why.
    Lost(String),
    /// It ended the session on purpose, and its words are ready for the client.
    Dismissed,
}

pub(super) type Flow<T> = Result<T, End>;

/// Why a session stops keeping what its next statement needs.
enum Rest {
    /// It has been idle for a while.
    Cooled,
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
    /// COPY data that was sent to its end before the server had asked for it.
    pub(super) copies_ended: usize,
}

/// What some settings mean for the reading of a client's texts.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading {
    pub(super) strings: StandardConformingStrings,
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
    pub(super) strings: StandardConformingStrings,
    pub(super) opaque_encoding: bool,
    /// Transactions are READ ONLY unless they say otherwise.
    pub(super) read_only: bool,
    /// Transactions are SERIALIZABLE unless they say otherwise, as far as it is known: a standby refuses that.
    pub(super) serializable: bool,
    /// `idle_session_timeout`, for while no server is held that would look at it.
    pub(super) idle_limit: Option<Duration>,
    /// `idle_in_transaction_session_timeout`, for a transaction that was put off.
    pub(super) idle_in_transaction_limit: Option<Duration>,
    /// What the session is to find on its server, between transactions.
    pub(super) settings: Rc<SettingValues>,
    /// Those of `settings` that decide what a text means: statements are shared only among sessions that have the same.
    pub(super) scope: Rc<SettingValues>,
    /// Of the startup packet: what RESET goes back to.
    pub(super) startup: Rc<SettingValues>,
    /// What may have changed `settings` since.
    pub(super) touched: Touched,
    /// How texts were to be read at login.
    pub(super) first: Reading,
    pub(super) names: Names,
    pub(super) transaction: Transaction,
    pub(super) freshness: Freshness,
    pub(super) pins: Vec<PinReason>,
    /// Channels that are listened to.
    pub(super) channels: Vec<String>,
    pub(super) attached: Option<Attached>,
    pub(super) skip_to_sync: bool,
    /// A COMMIT or ROLLBACK was bound in this transaction: a portal bound earlier may be it.
    pub(super) commit_bound: bool,
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
        let settings = shard.intern_settings(identity.settings);
        let mut session = Self {
            shard: Rc::clone(shard),
            client,
            control,
            number,
            group: shard.pools.group(&identity.database, &identity.user),
            secret: identity.secret,
            strings: identity.strings,
            opaque_encoding: identity.opaque_encoding,
            scope: Rc::default(),
            startup: Rc::clone(&settings),
            settings,
            touched: Touched::default(),
            read_only: identity.read_only,
            serializable: false,
            idle_limit: None,
            idle_in_transaction_limit: None,
            first: Reading {
                strings: identity.strings,
                opaque_encoding: identity.opaque_encoding,
                read_only: identity.read_only,
            },
            names: Names::default(),
            transaction: Transaction::None,
            freshness: Freshness::default(),
            pins: Vec::new(),
            channels: Vec::new(),
            attached: None,
            skip_to_sync: false,
            commit_bound: false,
        };
        session.read_settings();
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
            if early.is_empty()
                && let Err(end) = self.wait_cold().await
            {
                return end;
            }
            self.shard.warm_up(&self.control);
            match Box::pin(self.serve_units(std::mem::take(&mut early))).await {
                Ok(Rest::Cooled) => {}
                Err(end) => return end,
            }
        }
    }

    /// Waits for the client as a session that keeps nothing for its next statement.
    async fn wait_cold(&mut self) -> Flow<()> {
        self.enter_idle()?;
        let ready = self.within_idle_limit(net::readable(&self.client)).await;
        self.control.idle.set(false);
        ready?.map_err(|_| End::Client)
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
                    if let Some(rest) = self.wait_idle().await? {
                        return Ok(rest);
                    }
                    Window::new(self.shard.buffers.take())
                }
            };
            let front = unit::front(window.filled(), UNIT_BYTES_MAX)
                .map_err(|error| End::Told(Box::new(outcome::protocol(&error.to_string()))))?;
            match front {
                Front::Incomplete if window.filled().is_empty() => self.read_first(&mut window)?,
                Front::Incomplete => self.read_more(&mut window).await?,
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

    /// A window that holds these bytes.
    fn window_with(&self, bytes: &[u8]) -> Flow<Window> {
        let mut window = Window::new(self.shard.buffers.take());
        while window.spare().len() < bytes.len() {
            if !window.grow(UNIT_BYTES_MAX) {
                let report = outcome::protocol("too many bytes before the login was answered");
                return Err(End::Told(Box::new(report)));
            }
        }
        if let Some(front) = window.spare().get_mut(..bytes.len()) {
            front.copy_from_slice(bytes);
        }
        window.advance(bytes.len());
        Ok(window)
    }

    /// Between transactions: the drain ends the session, a cancel request finds nothing to cancel.
    fn enter_idle(&self) -> Flow<()> {
        // A transaction that was begun may go on during a drain, even if nothing of it has been sent yet.
        let between = !matches!(self.transaction, Transaction::Deferred { .. });
        if self.shard.draining.get() && between {
            return Err(End::Told(Box::new(outcome::shutting_down())));
        }
        self.control.idle.set(between);
        self.control.forget_cancels();
        Ok(())
    }

    /// Waits for the client's next bytes; between transactions without holding anything. `Some`: there were none for a while.
    async fn wait_idle(&mut self) -> Flow<Option<Rest>> {
        if self.attached.is_some() {
            return self.wait_attached().await.map(|()| None);
        }
        self.enter_idle()?;
        let wait = poll_fn(|context| {
            if let Poll::Ready(ready) = self.client.poll_read_ready(context) {
                return Poll::Ready(ready.map(|()| None));
            }
            if self.control.cooling.replace(false) {
                return Poll::Ready(Ok(Some(Rest::Cooled)));
            }
            Poll::Pending
        });
        let waited = self.within_idle_limit(wait).await;
        self.control.idle.set(false);
        self.control.active.set(true);
        waited?.map_err(|_| End::Client)
    }

    /// The same while a server connection is held: what the server says by itself is passed on.
    async fn wait_attached(&mut self) -> Flow<()> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        self.control.forget_cancels();
        if attached.batch.is_some() {
            return self.wait_in_batch().await;
        }
        let Some(link) = attached.lease.server().map(|server| Rc::clone(&server.link)) else {
            return Ok(());
        };
        let between = matches!(self.transaction, Transaction::None);
        if between && self.shard.draining.get() {
            return Err(End::Told(Box::new(outcome::shutting_down())));
        }
        self.control.idle.set(between);
        let waited = self.wait_beside_within_limit(&link.stream).await;
        self.control.idle.set(false);
        waited
    }

    /// Waits for the rest of a batch. Nobody reads the server meanwhile; a standby that has something to say and can't would keep
    /// replay waiting, so there the client has only so long.
    async fn wait_in_batch(&mut self) -> Flow<()> {
        let Some(attached) = &mut self.attached else { return Ok(()) };
        if attached.side == Side::Primary {
            return net::readable(&self.client).await.map_err(|_| End::Client);
        }
        let Some(link) = attached.lease.server().map(|server| Rc::clone(&server.link)) else {
            return Ok(());
        };
        let limit = self.shard.shared.settings.standby_stall_timeout;
        loop {
            if let Ok(ready) = tokio::time::timeout(limit, net::readable(&self.client)).await {
                return ready.map_err(|_| End::Client);
            }
            let talks = poll_fn(|context| Poll::Ready(link.stream.poll_read_ready(context).is_ready())).await;
            if talks {
                self.shard.counters.error(sqlstate::ADMIN_SHUTDOWN.as_str());
                return Err(End::Client);
            }
        }
    }

    /// Waits for the client, passing on what the held server says by itself.
    pub(super) async fn wait_beside(&mut self, stream: &TcpStream) -> Flow<()> {
        loop {
            let mut server_ready = false;
            poll_fn(|context| {
                server_ready = stream.poll_read_ready(context).is_ready();
                if server_ready || self.client.poll_read_ready(context).is_ready() {
                    Poll::Ready(())
                } else {
                    Poll::Pending
                }
            })
            .await;
            if !server_ready {
                return Ok(());
            }
            let mut answer = self.shard.buffers.take_answer();
            let spoiled = self.begin_unsolicited();
            let result = self.unsolicited(stream, &mut answer).await;
            self.shard.buffers.give_answer(answer);
            match result? {
                None => self.end_unsolicited(spoiled),
                Some(cause) => return self.lost_while_idle(&cause).await,
            }
        }
    }

    /// Reads what a held server says by itself, to the end of a message; `Some` when it is gone.
    async fn unsolicited(&mut self, stream: &TcpStream, answer: &mut Answer) -> Flow<Option<String>> {
        loop {
            match net::try_read(stream, answer.spare()) {
                Ok(0) => return Ok(Some("The server closed the connection".to_owned())),
                Ok(count) => answer.advance(count),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !answer.has_unscanned() {
                        return Ok(None);
                    }
                    // Half a message: the rest is on its way.
                    if let Err(error) = stream.readable().await {
                        return Ok(Some(format!("The connection to the server failed: {error}")));
                    }
                    continue;
                }
                Err(error) => return Ok(Some(format!("The connection to the server failed: {error}"))),
            }
            let said = Self::scan_unsolicited(answer);
            self.send_client(answer.ready_joined()).await?;
            answer.passed_on();
            match said {
                None => {}
                Some(Parting::Lost(cause)) => return Ok(Some(cause)),
                Some(Parting::Dismissed) => return Err(End::Client),
            }
        }
    }

    fn scan_unsolicited(answer: &mut Answer) -> Option<Parting> {
        loop {
            let event = match answer.scan() {
                Ok(event) => event,
                Err(error) => return Some(Parting::Lost(error.to_string())),
            };
            let ends = match event {
                Event::Error(fields) if fields.ends_session && sqlstate::dismisses(fields.code) => {
                    answer.accept();
                    return Some(Parting::Dismissed);
                }
                Event::Error(fields) => fields.ends_session,
                Event::Notice(fields) => {
                    matches!(fields.code, sqlstate::ADMIN_SHUTDOWN | sqlstate::CRASH_SHUTDOWN)
                }
                Event::ParameterStatus => false,
                Event::Settled | Event::Complete(_) | Event::NeedMore => return None,
                Event::CopyIn => {
                    return Some(Parting::Lost("The server sent something out of turn".to_owned()));
                }
            };
            if ends {
                return Some(Parting::Lost(format!(
                    "The server said: {}",
                    reply::error_message(answer.body())
                )));
            }
            answer.accept();
        }
    }

    async fn lost_while_idle(&mut self, cause: &str) -> Flow<()> {
        self.detach_lost(SuspectCause::ConnectionLost);
        if self.only_listens() {
            return Box::pin(self.listen_again(cause)).await;
        }
        if !self.pins.is_empty() {
            return Err(End::Told(Box::new(outcome::pinned_server_lost(&self.pins, cause))));
        }
        self.transaction = Transaction::Lost { told: false };
        Ok(())
    }

    /// Reads what a wake-up promised. Readiness may be stale: then nothing comes and the session waits as an idle one.
    fn read_first(&self, window: &mut Window) -> Flow<()> {
        match net::try_read(&self.client, window.spare()) {
            Ok(0) => Err(End::Client),
            Ok(count) => {
                window.advance(count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Client),
        }
    }

    pub(super) async fn read_more(&mut self, window: &mut Window) -> Flow<()> {
        if window.is_full() && !window.grow(UNIT_BYTES_MAX) {
            return Err(End::Told(Box::new(outcome::protocol("a message is larger than its buffer"))));
        }
        loop {
            match net::try_read(&self.client, window.spare()) {
                Ok(0) => return Err(End::Client),
                Ok(count) => {
                    window.advance(count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    net::readable(&self.client).await.map_err(|_| End::Client)?;
                }
                Err(_) => return Err(End::Client),
            }
        }
    }

    /// Reads and forgets a frame of so many bytes.
    pub(super) async fn skip(&mut self, window: &mut Window, mut bytes: usize) -> Flow<()> {
        loop {
            let here = bytes.min(window.filled().len());
            window.consume(here);
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            self.read_more(window).await?;
        }
    }

    pub(super) async fn send_client(&mut self, bytes: &[u8]) -> Flow<()> {
        self.control.speaking.set(true);
        let written = net::write_all(&self.client, bytes).await;
        self.control.speaking.set(false);
        written.map_err(|_| End::Client)
    }

    fn is_in_batch(&self) -> bool {
        self.attached.as_ref().is_some_and(|attached| attached.batch.is_some())
    }

    pub(super) fn is_in_failed_batch(&self) -> bool {
        self.attached.as_ref().is_some_and(|it| it.batch.as_ref().is_some_and(|batch| batch.failed))
    }

    /// Runs one unit that stands whole at the front of the window.
    async fn unit(&mut self, window: &mut Window, kind: Kind, bytes: usize) -> Flow<()> {
        if self.skip_to_sync {
            window.consume(bytes);
            // A Query is skipped, too: only a Sync ends this.
            if kind == Kind::Synced {
                self.skip_to_sync = false;
                return self.send_client(self.transaction.status().ready_for_query()).await;
            }
            return Ok(());
        }
        self.control.forget_cancels();
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
        let in_batch = self.is_in_batch();
        let needs = if in_batch && kind == Kind::Flushed && bytes == reply::SYNC.len() {
            Needs::default()
        } else {
            self.needs(window.filled().get(..bytes).unwrap_or_default())
        };
        if !in_batch {
            let local = self.local(window.filled().get(..bytes).unwrap_or_default(), kind, &needs);
            if let Some(reply) = local {
                window.consume(bytes);
                return self.send_client(&reply).await;
            }
        }
        if needs.session || needs.unseen {
            self.note_effects(window.filled().get(..bytes).unwrap_or_default());
        }
        if needs.databases {
            self.leave_databases(window.filled().get(..bytes).unwrap_or_default()).await;
        }
        self.run(window, kind, bytes, needs, Instant::now()).await
    }

    /// Closes the idle connections to every database that a unit may name: the server refuses to drop, rename or copy one to
    /// which anybody else is connected.
    async fn leave_databases(&self, unit: &[u8]) {
        let mut named: Vec<Vec<u8>> = vec![DEFAULT_TEMPLATE.to_vec()];
        for (kind, body) in unit::frames(unit) {
            match kind {
                b'Q' => named.extend(extended::query(body).map(classify::names).unwrap_or_default()),
                b'P' => {
                    named.extend(extended::parse(body).map(|it| classify::names(it.sql)).unwrap_or_default());
                }
                b'B' => {
                    let text = extended::bind(body).and_then(|bind| self.names.sql(bind.statement));
                    named.extend(text.map(|text| classify::names(&text)).unwrap_or_default());
                }
                _ => {}
            }
        }
        for name in named.iter().filter_map(|name| std::str::from_utf8(name).ok()) {
            (self.shard.shared.forget_database)(name);
        }
        for database in self.shard.pools.databases() {
            if named.iter().any(|name| name == database.as_bytes()) {
                self.shard.pools.leave_database(&database).await;
            }
        }
    }

    /// Notes what a unit may do to the session's settings. Rare, so it reads the texts once more.
    fn note_effects(&mut self, unit: &[u8]) {
        if self.opaque_encoding {
            return self.touched.anything();
        }
        let between = matches!(self.transaction, Transaction::None);
        let mut touched = std::mem::take(&mut self.touched);
        let mut unknown = false;
        for (kind, body) in unit::frames(unit) {
            if let (true, b'B', Some(bind)) = (unknown, kind, extended::bind(body)) {
                // `set_config($1, $2, $3)`: the name is a value.
                self.note_custom_settings(settings::dotted_words(bind.rest));
            }
            let text = match kind {
                b'Q' => extended::query(body).map(<[u8]>::to_vec),
                b'P' => extended::parse(body).map(|parse| parse.sql.to_vec()),
                b'B' => extended::bind(body).and_then(|bind| self.names.sql(bind.statement)),
                _ => continue,
            };
            let Some(text) = text else { continue };
            let class = classify::classify(&text, self.strings);
            if class.unseen || class.session == SessionEffect::Unknown {
                unknown = true;
                self.note_custom_settings(settings::dotted_words(&text));
                if let (b'B', Some(bind)) = (kind, extended::bind(body)) {
                    self.note_custom_settings(settings::dotted_words(bind.rest));
                }
            }
            match class.session {
                SessionEffect::None | SessionEffect::Deallocate(_) => {}
                SessionEffect::Set(name) => {
                    self.note_custom_settings(settings::dotted_words(name.of(&text)));
                    touched.set(name.of(&text));
                }
                SessionEffect::Reset(name) if between => {
                    let name = String::from_utf8_lossy(name.of(&text)).to_ascii_lowercase();
                    if touched != Touched::Reset(name.clone()) {
                        touched.only(Touched::Reset(name));
                    }
                }
                SessionEffect::ResetAll if between && touched != Touched::ResetAll => {
                    touched.only(Touched::ResetAll);
                }
                SessionEffect::DiscardAll if between && touched != Touched::DiscardAll => {
                    touched.only(Touched::DiscardAll);
                }
                SessionEffect::ResetAll | SessionEffect::DiscardAll if between => {}
                _ => touched.anything(),
            }
        }
        self.touched = touched;
    }

    /// Names that the server is to be asked for where it does not tell by itself.
    pub(super) fn note_custom_settings(&self, names: Vec<String>) {
        let mut custom = self.group.custom_settings.borrow_mut();
        for name in names {
            if custom.names.len() < CUSTOM_SETTINGS_MAX {
                custom.names.insert(name);
            }
        }
    }

    fn needs(&self, unit: &[u8]) -> Needs {
        if self.opaque_encoding {
            return Needs { transaction: TransactionEffect::Other, ..Needs::unknown() };
        }
        let mut needs = unit::needs(unit, &self.names, self.strings);
        if needs.need == Need::Read && !self.shard.learned.borrow().is_empty() && self.is_learned(unit) {
            needs.need = Need::Primary;
            needs.repeatable = false;
        }
        if needs.earlier_portal {
            needs.need = Need::Primary;
            needs.repeatable = false;
            needs.commits |= self.commit_bound;
        }
        if self.shard.shared.settings.routing.mode == Mode::Primary
            || self.serializable
            || self.keeps_server()
        {
            needs.need = Need::Primary;
        }
        needs
    }

    pub(super) fn shapes<'u>(&'u self, unit: &'u [u8]) -> impl Iterator<Item = u64> + 'u {
        unit::frames(unit).filter_map(|(kind, body)| match kind {
            b'Q' => extended::query(body).map(classify::shape_hash),
            b'P' => extended::parse(body).map(|parse| classify::shape_hash(parse.sql)),
            b'B' => {
                let name = extended::bind(body)?.statement;
                match self.names.named(name) {
                    Some(statement) => Some(classify::shape_hash(&statement.sql)),
                    None => self.names.unnamed.as_ref().map(|unnamed| classify::shape_hash(&unnamed.sql)),
                }
            }
            _ => None,
        })
    }

    fn is_learned(&self, unit: &[u8]) -> bool {
        let learned = self.shard.learned.borrow();
        self.shapes(unit).any(|shape| learned.contains(&shape))
    }
}
