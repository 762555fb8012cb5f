//! The clients: writers of a ledger and readers of it, as applications would be.
//!
//! Invariant: ordinary drivers on one endpoint. A row is noted as possibly written before it is sent, so whatever
//! ends a client, the journal is right. They must not know that the endpoint is a proxy.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_postgres::{Client, Config, NoTls, Statement};

use super::Error;
use super::ledger::{Fate, Journal, fate_of_error};

/// The clients' own database.
pub(super) const DATABASE: &str = "demo";

/// The ledger. No constraint forbids doubles: they are to be found, not prevented.
pub(super) const LEDGER: &str = "CREATE TABLE demo_ledger (writer int NOT NULL, seq bigint NOT NULL);
    CREATE INDEX ON demo_ledger (writer, seq)";

const INSERT: &str = "INSERT INTO demo_ledger (writer, seq) VALUES ($1, $2)";
const READ: &str = "SELECT max(seq) FROM demo_ledger WHERE writer = $1";

/// The pause of a client after an error.
const AFTER_ERROR: Duration = Duration::from_millis(5);

/// The pause of a reader between reads, so that a small machine has breath left for the servers.
const BETWEEN_READS: Duration = Duration::from_millis(2);

/// How long a client may take to finish its statement at the end.
const LAST_STATEMENT: Duration = Duration::from_secs(10);

/// What one client, or all of a kind, has seen.
#[derive(Debug, Clone, Default)]
pub(super) struct Record {
    /// Writers only: one for each.
    pub(super) journals: Vec<Journal>,
    /// When each statement succeeded.
    pub(super) successes: Vec<Instant>,
    /// Errors by SQLSTATE; `connection` for those without one.
    pub(super) errors: BTreeMap<String, u64>,
    /// Connections that ended without the client's doing.
    pub(super) dropped: u64,
    /// Statements that were prepared, one for each connection.
    pub(super) prepared: u64,
    /// Reads that saw less than an earlier one of the same connection.
    pub(super) went_back: u64,
}

impl Record {
    fn merge(&mut self, other: Self) {
        self.journals.extend(other.journals);
        self.successes.extend(other.successes);
        for (sqlstate, count) in other.errors {
            *self.errors.entry(sqlstate).or_default() += count;
        }
        self.dropped += other.dropped;
        self.prepared += other.prepared;
        self.went_back += other.went_back;
    }

    fn failed(&mut self, error: &tokio_postgres::Error) {
        let sqlstate = error.code().map_or("connection", |code| code.code());
        *self.errors.entry(sqlstate.to_owned()).or_default() += 1;
    }

    fn settle(&mut self, seq: i64, fate: Fate) {
        if let Some(journal) = self.journals.last_mut() {
            journal.settle(seq, fate);
        }
    }
}

type Shared = Arc<Mutex<Record>>;

fn lock(record: &Shared) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Tells the clients to finish. When its sender is gone, they end at once.
type Stop = watch::Receiver<bool>;

/// All clients of a run. They end with this value.
///
/// They have a thread for themselves: what holds up the one that causes the outage must not keep them from having
/// statements under way at that very moment.
#[derive(Debug)]
pub(super) struct Clients {
    stop: watch::Sender<bool>,
    /// Comes when all have ended, with the number of those that could not finish.
    ended: oneshot::Receiver<usize>,
    writers: Vec<Shared>,
    readers: Vec<Shared>,
}

impl Clients {
    /// Starts writers and readers on an endpoint.
    pub(super) fn start(endpoint: &Config, writers: u16, readers: u16) -> Result<Self, Error> {
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = oneshot::channel();
        let fresh = |count| (0..count).map(|_| Shared::default()).collect::<Vec<_>>();
        let clients = Self { stop, ended, writers: fresh(writers), readers: fresh(readers) };
        let mut tasks = JoinSet::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(Error::io("make a runtime for the clients"))?;
        for (record, writer) in clients.writers.iter().zip(0i32..) {
            lock(record).journals.push(Journal::default());
            let task = write(endpoint.clone(), writer, stopped.clone(), Arc::clone(record));
            tasks.spawn_on(task, runtime.handle());
        }
        for (record, number) in clients.readers.iter().zip(0u16..) {
            let writer = i32::from(number % writers.max(1));
            let task = read(endpoint.clone(), writer, stopped.clone(), Arc::clone(record));
            tasks.spawn_on(task, runtime.handle());
        }
        let work = move || {
            let stuck = runtime.block_on(finish(tasks, stopped));
            // Nobody waits for it when the run was broken off.
            let _ = end.send(stuck);
        };
        let thread = std::thread::Builder::new().name("clients".to_owned());
        thread.spawn(work).map_err(Error::io("start a thread for the clients"))?;
        Ok(clients)
    }

    /// Writes and reads that succeeded so far.
    pub(super) fn progress(&self) -> (u64, u64) {
        let count = |records: &[Shared]| records.iter().map(|it| lock(it).successes.len() as u64).sum();
        (count(&self.writers), count(&self.readers))
    }

    /// The first acknowledged write after a moment.
    pub(super) fn first_write_after(&self, moment: Instant) -> Option<Instant> {
        // Each record is in order.
        let first = |record: &Shared| {
            let record = lock(record);
            let index = record.successes.partition_point(|&at| at <= moment);
            record.successes.get(index).copied()
        };
        self.writers.iter().filter_map(first).min()
    }

    /// Lets every client finish its statement. Gives the number of those that could not.
    pub(super) async fn stop(&mut self) -> usize {
        let _ = self.stop.send(true);
        (&mut self.ended).await.unwrap_or(self.writers.len() + self.readers.len())
    }

    /// What the writers have seen, and what the readers have.
    pub(super) fn records(&self) -> (Record, Record) {
        let merged = |records: &[Shared]| {
            let mut all = Record::default();
            records.iter().for_each(|record| all.merge(lock(record).clone()));
            all
        };
        (merged(&self.writers), merged(&self.readers))
    }
}

/// Waits until all clients have ended, after the word to stop for a limited time.
async fn finish(mut tasks: JoinSet<()>, mut stop: Stop) -> usize {
    let all = async { while tasks.join_next().await.is_some() {} };
    let limit = async {
        if stop.wait_for(|&stop| stop).await.is_ok() {
            tokio::time::sleep(LAST_STATEMENT).await;
        }
    };
    tokio::select! {
        () = all => {}
        () = limit => {}
    }
    tasks.len()
}

/// One connection with its prepared statement.
struct Session {
    client: Client,
    statement: Statement,
    driver: JoinHandle<()>,
}

impl Session {
    async fn open(endpoint: &Config, sql: &str) -> Result<Self, tokio_postgres::Error> {
        let (client, connection) = endpoint.connect(NoTls).await?;
        let driver = tokio::spawn(async move {
            // The error, if any, reaches the client's next statement as well.
            let _ = connection.await;
        });
        let statement = client.prepare(sql).await?;
        Ok(Self { client, statement, driver })
    }

    /// The same, and the record has it. After a failure the next try is put off for a moment.
    async fn open_noted(endpoint: &Config, sql: &str, record: &Shared) -> Option<Self> {
        match Self::open(endpoint, sql).await {
            Ok(session) => {
                lock(record).prepared += 1;
                Some(session)
            }
            Err(error) => {
                lock(record).failed(&error);
                tokio::time::sleep(AFTER_ERROR).await;
                None
            }
        }
    }

    /// Whether the connection has ended; after an error it gets a moment to do so.
    async fn has_ended(&self) -> bool {
        tokio::time::sleep(AFTER_ERROR).await;
        self.client.is_closed() || self.driver.is_finished()
    }
}

async fn write(endpoint: Config, writer: i32, stop: Stop, record: Shared) {
    let mut seq = 0i64;
    while !*stop.borrow() {
        let Some(session) = Session::open_noted(&endpoint, INSERT, &record).await else { continue };
        while !*stop.borrow() {
            if let Some(journal) = lock(&record).journals.last_mut() {
                journal.attempt(seq);
            }
            let Err(error) = session.client.execute(&session.statement, &[&writer, &seq]).await else {
                let mut record = lock(&record);
                record.successes.push(Instant::now());
                record.settle(seq, Fate::Acknowledged);
                seq += 1;
                continue;
            };
            let fate = fate_of_error(error.code().map(|code| code.code()));
            {
                let mut record = lock(&record);
                record.failed(&error);
                record.settle(seq, fate);
            }
            // A row that may be there is never sent again.
            seq += i64::from(fate != Fate::Refused);
            if session.has_ended().await {
                lock(&record).dropped += 1;
                break;
            }
        }
    }
}

async fn read(endpoint: Config, writer: i32, stop: Stop, record: Shared) {
    while !*stop.borrow() {
        let Some(session) = Session::open_noted(&endpoint, READ, &record).await else { continue };
        let mut highest = None;
        while !*stop.borrow() {
            let answer = session.client.query_one(&session.statement, &[&writer]).await;
            match answer.and_then(|row| row.try_get::<_, Option<i64>>(0)) {
                Ok(seen) => {
                    let mut record = lock(&record);
                    record.successes.push(Instant::now());
                    record.went_back += u64::from(seen < highest);
                    highest = highest.max(seen);
                }
                Err(error) => {
                    lock(&record).failed(&error);
                    if session.has_ended().await {
                        lock(&record).dropped += 1;
                        break;
                    }
                }
            }
            tokio::time::sleep(BETWEEN_READS).await;
        }
    }
}
