//! Clients that write counters and read all of them, and hold what they see against what was promised to them.
//!
//! Invariant: what is promised to a session ends with its connection; a write whose outcome is not known promises nothing. An error
//! other than those of a lost server ends the test. Must not know: what is done to the servers meanwhile.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fastrand::Rng;
use futures_util::SinkExt;
use tokio::task::JoinHandle;
use tokio_postgres::{Client, Error, SimpleQueryMessage, Statement};

use crate::book::{Book, Commit, Key, Seen, Violation};
use crate::running::Running;

/// The budget of who asks for none.
pub const MAX_LAG: Duration = Duration::from_secs(1);

/// Budgets that are asked for, milliseconds. The first is near what a healthy standby shows.
const BUDGETS_MS: [u64; 3] = [60, 150, 400];

const READ: &str = "SELECT key, value, pg_is_in_recovery()::int FROM counter";

/// What a client may be told when a server is lost: the transaction is rolled back, its outcome is not known, no server in time, the
/// connection was pinned to it.
const LOST: [&str; 5] = ["40001", "08007", "57P03", "57P01", "57P02"];

/// The role whose default is to commit asynchronously.
pub const LAZY: &str = "lazy";

/// How a client writes its counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Style {
    /// It only reads.
    Reader,
    /// It only reads, now and then on the primary.
    Wanderer,
    Simple,
    Prepared,
    Transaction,
    Function,
    Trigger,
    CommonTable,
    Copy,
    /// Prepared by another session, committed by this one.
    TwoPhase,
    /// `SET synchronous_commit = off`.
    Asynchronous,
    /// `SET LOCAL synchronous_commit = off`.
    AsynchronousTransaction,
    /// By the default of its role.
    AsynchronousRole,
}

impl Style {
    pub const ALL: [Self; 13] = [
        Self::Reader,
        Self::Wanderer,
        Self::Simple,
        Self::Prepared,
        Self::Transaction,
        Self::Function,
        Self::Trigger,
        Self::CommonTable,
        Self::Copy,
        Self::TwoPhase,
        Self::Asynchronous,
        Self::AsynchronousTransaction,
        Self::AsynchronousRole,
    ];

    /// How it commits; `None`: never.
    pub fn commit(self) -> Option<Commit> {
        match self {
            Self::Reader | Self::Wanderer => None,
            Self::Asynchronous | Self::AsynchronousTransaction | Self::AsynchronousRole => {
                Some(Commit::Asynchronous)
            }
            _ => Some(Commit::Synchronous),
        }
    }
}

/// What a proxy's sessions are promised beside the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Promise {
    Session,
    Eventual,
}

/// What came of all clients' work.
#[derive(Debug, Default)]
pub struct Tally {
    pub reads: AtomicUsize,
    pub writes: AtomicUsize,
    /// Values that were held against a promise: own writes, monotonic reads, budgets.
    pub checks: [AtomicUsize; 3],
    /// Values that a standby had shown before they were acknowledged, and the primary not yet.
    pub early: AtomicUsize,
    pub reconnects: AtomicUsize,
    pub errors: Mutex<BTreeMap<String, usize>>,
    pub violations: Mutex<Vec<String>>,
    pub stop: AtomicBool,
}

/// A proxy as a client sees it.
#[derive(Clone)]
pub struct Door {
    pub proxy: Arc<Running>,
    pub index: usize,
    pub promise: Promise,
}

/// A client at work.
pub struct Worker {
    pub style: Style,
    pub done: Arc<AtomicUsize>,
    pub task: JoinHandle<()>,
}

impl Worker {
    /// Logs in and begins.
    pub fn start(
        door: &Door,
        (style, key): (Style, Key),
        seed: u64,
        (book, tally): (&Arc<Mutex<Book>>, &Arc<Tally>),
    ) -> Self {
        let done = Arc::new(AtomicUsize::new(0));
        let (door, book, tally) = (door.clone(), Arc::clone(book), Arc::clone(tally));
        let counted = Arc::clone(&done);
        let task = tokio::spawn(async move {
            let rng = Rng::with_seed(seed);
            let mut session = Session::open(door, style, key, (book, tally), rng).await;
            while !session.tally.stop.load(Ordering::Relaxed) {
                session.turn().await;
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { style, done, task }
    }
}

struct Session {
    door: Door,
    style: Style,
    key: Key,
    book: Arc<Mutex<Book>>,
    tally: Arc<Tally>,
    rng: Rng,
    client: Client,
    /// Who prepares what this one commits.
    other: Option<Client>,
    reads: HashMap<Option<u64>, Statement>,
    write: Option<Statement>,
    /// The driver sends CopyFail and Sync behind a COPY that failed before it began, and takes the answer for the next statement's.
    is_confused: bool,
    /// The last value that was sent.
    value: i64,
    wrote: Option<Seen>,
    seen: HashMap<Key, Seen>,
}

impl Session {
    async fn open(
        door: Door,
        style: Style,
        key: Key,
        (book, tally): (Arc<Mutex<Book>>, Arc<Tally>),
        rng: Rng,
    ) -> Self {
        let client = connect(&door, style).await;
        let mut session = Self {
            door,
            style,
            key,
            book,
            tally,
            rng,
            client,
            other: None,
            reads: HashMap::new(),
            write: None,
            is_confused: false,
            value: 0,
            wrote: None,
            seen: HashMap::new(),
        };
        session.set_up().await;
        session
    }

    /// What each connection of its style begins with. Whatever fails is done anew before it is needed.
    async fn set_up(&mut self) {
        if self.style == Style::TwoPhase {
            self.other = Some(connect(&self.door, self.style).await);
        }
        while self.style == Style::Asynchronous
            && let Err(error) = self.client.batch_execute("SET synchronous_commit = off").await
        {
            self.told(&error);
        }
    }

    async fn turn(&mut self) {
        if std::mem::take(&mut self.is_confused)
            || self.client.is_closed()
            || self.other.as_ref().is_some_and(Client::is_closed)
        {
            self.tally.reconnects.fetch_add(1, Ordering::Relaxed);
            self.client = connect(&self.door, self.style).await;
            (self.write, self.wrote) = (None, None);
            self.reads.clear();
            self.seen.clear();
            self.set_up().await;
        }
        if self.style.commit().is_some() {
            self.put().await;
        }
        if self.is_confused {
            return;
        }
        for _ in 0..self.rng.usize(1..8) {
            self.look().await;
            // Who thinks for longer than a probe takes comes back to the standbys.
            if self.rng.u8(..3) == 0 {
                tokio::time::sleep(Duration::from_micros(self.rng.u64(..60_000))).await;
            }
        }
    }

    async fn put(&mut self) {
        self.value += 1;
        let losses = self.book.lock().unwrap().losses();
        let sent = Instant::now();
        match self.write().await {
            Ok(()) => {
                let (mut book, now) = (self.book.lock().unwrap(), Instant::now());
                book.acknowledged(self.door.index, (self.key, self.value), (sent, now));
                self.wrote = Some(Seen { value: self.value, losses });
                self.tally.writes.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) => {
                self.told(&error);
                if self.style == Style::Copy {
                    self.is_confused = true;
                    return;
                }
                if self.style == Style::TwoPhase {
                    self.give_up().await;
                }
                // The transaction may be open, or failed.
                if let Err(error) = self.client.batch_execute("ROLLBACK").await {
                    self.told(&error);
                }
            }
        }
    }

    async fn write(&mut self) -> Result<(), Error> {
        let (key, value, client) = (self.key, self.value, &self.client);
        let update = format!("UPDATE counter SET value = {value} WHERE key = {key}");
        match self.style {
            Style::Reader | Style::Wanderer => Ok(()),
            Style::Simple | Style::Asynchronous | Style::AsynchronousRole => {
                client.batch_execute(&update).await
            }
            Style::Prepared => {
                if self.write.is_none() {
                    let sql = "UPDATE counter SET value = $1 WHERE key = $2";
                    self.write = Some(client.prepare(sql).await?);
                }
                let Some(statement) = &self.write else { return Ok(()) };
                client.execute(statement, &[&value, &key]).await.map(drop)
            }
            Style::Transaction => {
                for sql in ["BEGIN", READ, &update, "COMMIT"] {
                    client.simple_query(sql).await?;
                }
                Ok(())
            }
            Style::AsynchronousTransaction => {
                for sql in ["BEGIN", "SET LOCAL synchronous_commit TO off", &update, "COMMIT"] {
                    client.batch_execute(sql).await?;
                }
                Ok(())
            }
            Style::Function => client.batch_execute(&format!("SELECT put({key}, {value})")).await,
            Style::Trigger => {
                client.batch_execute(&format!("INSERT INTO request VALUES ({key}, {value})")).await
            }
            Style::CommonTable => {
                let sql = format!("WITH changed AS ({update} RETURNING value) SELECT value FROM changed");
                client.batch_execute(&sql).await
            }
            Style::Copy => {
                let mut sink = std::pin::pin!(client.copy_in("COPY request FROM STDIN").await?);
                sink.send(bytes::Bytes::from(format!("{key}\t{value}\n"))).await?;
                sink.finish().await.map(drop)
            }
            Style::TwoPhase => {
                let Some(other) = &self.other else { return Ok(()) };
                for sql in ["BEGIN", &update, &format!("PREPARE TRANSACTION '{key}'")] {
                    other.batch_execute(sql).await?;
                }
                client.batch_execute(&format!("COMMIT PREPARED '{key}'")).await
            }
        }
    }

    /// What may be prepared would keep its row locked.
    async fn give_up(&mut self) {
        let Some(other) = &self.other else { return };
        for sql in ["ROLLBACK".to_owned(), format!("ROLLBACK PREPARED '{}'", self.key)] {
            while let Err(error) = other.batch_execute(&sql).await {
                // There is none.
                if other.is_closed() || error.code().is_some_and(|code| code.code() == "42704") {
                    break;
                }
                self.told(&error);
            }
        }
    }

    /// Reads all counters in some way.
    async fn look(&mut self) {
        let budget = BUDGETS_MS.get(self.rng.usize(..BUDGETS_MS.len() + 2)).copied();
        let max_lag = budget.map_or(MAX_LAG, Duration::from_millis);
        let text =
            budget.map_or_else(|| READ.to_owned(), |ms| format!("/* pgsteer: max_lag={ms}ms */ {READ}"));
        let way = self.rng.u8(..20);
        let losses = self.book.lock().unwrap().losses();
        let sent = Instant::now();
        let (read, max_lag) = match way {
            0..2 => (self.in_transaction().await, MAX_LAG),
            2..5 if self.style == Style::Wanderer => {
                let text = format!("/* pgsteer: target=primary */ {READ}");
                (self.simple(&text).await, Duration::ZERO)
            }
            2..10 => (self.simple(&text).await, max_lag),
            _ => (self.prepared(budget, &text).await, max_lag),
        };
        match read {
            Ok(rows) => {
                for rows in rows {
                    self.check(&rows, sent, (max_lag, losses));
                    self.tally.reads.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) => {
                self.told(&error);
                if way < 2
                    && let Err(error) = self.client.batch_execute("ROLLBACK").await
                {
                    self.told(&error);
                }
            }
        }
    }

    async fn simple(&self, text: &str) -> Result<Vec<Rows>, Error> {
        let messages = self.client.simple_query(text).await?;
        let number =
            |row: &tokio_postgres::SimpleQueryRow, column| row.get(column).unwrap().parse::<i64>().unwrap();
        let rows = messages.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => {
                let key = Key::try_from(number(row, 0)).unwrap();
                Some((key, number(row, 1), Place::of(number(row, 2))))
            }
            _ => None,
        });
        let rows: Rows = rows.collect();
        assert!(!rows.is_empty(), "{:?} {:?}: {text}: {messages:?}", self.style, self.door.promise);
        Ok(vec![rows])
    }

    async fn prepared(&mut self, budget: Option<u64>, text: &str) -> Result<Vec<Rows>, Error> {
        if !self.reads.contains_key(&budget) {
            self.reads.insert(budget, self.client.prepare(text).await?);
        }
        let rows = self.client.query(&self.reads[&budget], &[]).await?;
        Ok(vec![
            rows.iter().map(|row| (row.get(0), row.get(1), Place::of(row.get::<_, i32>(2).into()))).collect(),
        ])
    }

    /// R05: one standby for the whole transaction, by the budget at its beginning.
    async fn in_transaction(&self) -> Result<Vec<Rows>, Error> {
        self.client.batch_execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY").await?;
        let mut reads = self.simple(READ).await?;
        let again = self.simple(READ).await?;
        let values = |reads: &[Rows]| -> Vec<(Key, i64)> {
            reads.iter().flatten().map(|(key, value, _)| (*key, *value)).collect()
        };
        assert_eq!(values(&reads), values(&again), "one snapshot for the whole transaction");
        reads.extend(again);
        self.client.batch_execute("COMMIT").await?;
        Ok(reads)
    }

    fn check(&mut self, rows: &Rows, sent: Instant, (budget, losses): (Duration, crate::book::Losses)) {
        let book = self.book.lock().unwrap();
        let mut violations = Vec::new();
        let count = |at: usize| self.tally.checks[at].fetch_add(1, Ordering::Relaxed);
        for &(key, saw, place) in rows {
            count(2);
            violations.extend(book.beyond(self.door.index, (key, saw), (sent, budget)));
            if self.door.promise == Promise::Eventual {
                continue;
            }
            if let Some(wrote) =
                self.wrote.filter(|wrote| key == self.key && book.binds(self.door.index, key, *wrote))
            {
                count(0);
                if saw < wrote.value {
                    violations.push(Violation::OwnWrite { key, wrote: wrote.value, saw });
                }
            }
            let now = Seen { value: saw, losses };
            let before =
                self.seen.insert(key, now).filter(|before| book.binds(self.door.index, key, *before));
            if let Some(before) = before {
                count(1);
                // Not acknowledged, it may not be over on the primary yet, or have gone with it.
                let may_miss = place == Place::Primary || before.losses != losses;
                let not_yet = may_miss && !book.knows((key, before.value), sent);
                if saw < before.value && not_yet {
                    self.tally.early.fetch_add(1, Ordering::Relaxed);
                } else if saw < before.value {
                    violations.push(Violation::Monotonic { key, before: before.value, saw });
                }
            }
        }
        drop(book);
        let told = violations
            .iter()
            .map(|violation| format!("{:?} {:?}: {violation:?}", self.style, self.door.promise));
        self.tally.violations.lock().unwrap().extend(told);
    }

    /// An error that a lost server explains; any other ends the test.
    fn told(&self, error: &Error) {
        let code = match error.code() {
            Some(code) => code.code().to_owned(),
            None => "end of the connection".to_owned(),
        };
        let known = LOST.contains(&code.as_str()) || error.is_closed() || error.code().is_none();
        assert!(known, "{:?} was told {error:?}", self.style);
        *self.tally.errors.lock().unwrap().entry(code).or_default() += 1;
    }
}

/// Where a read was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Primary,
    Standby,
}

impl Place {
    fn of(is_standby: i64) -> Self {
        if is_standby == 1 { Self::Standby } else { Self::Primary }
    }
}

/// Keys and values of one read.
type Rows = Vec<(Key, i64, Place)>;

async fn connect(door: &Door, style: Style) -> Client {
    let user = if style == Style::AsynchronousRole { LAZY } else { "postgres" };
    loop {
        // While there is no primary a login waits, and may be told so in the end.
        match door.proxy.try_connect(user, "", "postgres").await {
            Ok(client) => return client,
            Err(error) => assert!(error.code().is_none_or(|code| LOST.contains(&code.code())), "{error:?}"),
        }
    }
}
