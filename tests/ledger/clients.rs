//! Clients that write rows with keys of their own, each in its own style, and note what they were told of each.
//!
//! Invariant: whatever a client is told that its style does not allow for ends the test: another SQLSTATE than those of a
//! lost server, another transaction status, the end of a connection that was not pinned. Must not know: what is done to the
//! servers meanwhile.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::task::JoinHandle;

use crate::running::ledger::{Fate, Write};
use crate::running::{
    Message, RawClient, Running, bind, errors, execute, frame, in_time, kinds, parse, query, run, status,
    sync, tag, values,
};

/// Keys of one client, at most.
const KEYS: i64 = 1_000_000_000;

/// Clients think for so long, at most: what is tested is faults, not load.
const THINKING: std::ops::Range<u64> = 0..3_000;

/// How a client writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// One statement, simple; now and then it looks whether its row is there.
    Simple,
    /// One statement by a name, prepared once.
    Prepared,
    /// BEGIN, two statements and COMMIT, simple.
    Transaction,
    /// The same by the extended protocol, one Sync each.
    ExtendedTransaction,
    /// The same without waiting for any answer.
    PipelinedTransaction,
    /// Several batches of one or two statements, without waiting for any answer.
    Pipeline,
    /// Several statements in one text.
    Several,
    /// COPY from the client.
    Copy,
    /// One statement, in a session that is pinned: it ends with its server, and is made anew.
    Pinned,
    /// Connections that are left: in an open transaction, and with a statement under way.
    Leaving,
}

impl Style {
    pub const ALL: [Self; 10] = [
        Self::Simple,
        Self::Prepared,
        Self::Transaction,
        Self::ExtendedTransaction,
        Self::PipelinedTransaction,
        Self::Pipeline,
        Self::Several,
        Self::Copy,
        Self::Pinned,
        Self::Leaving,
    ];
}

/// What a client and those who watch it share.
#[derive(Debug, Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicUsize,
    writes: Mutex<Vec<Write>>,
}

/// A client at work.
pub struct Client {
    pub style: Style,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

impl Client {
    /// Logs in and begins. `number` keeps its keys apart.
    pub async fn start(proxy: &Arc<Running>, style: Style, number: i64) -> Self {
        let shared = Arc::new(Shared::default());
        let first = number * KEYS;
        let mut hand = Hand {
            proxy: Arc::clone(proxy),
            wire: connect(proxy).await,
            shared: Arc::clone(&shared),
            next: first,
        };
        let task = tokio::spawn(async move {
            hand.prepare(style).await;
            while !hand.shared.stop.load(Ordering::Relaxed) {
                hand.turn(style).await;
                tokio::time::sleep(Duration::from_micros(fastrand::u64(THINKING))).await;
            }
        });
        Self { style, shared, task }
    }

    /// So many rows have been acknowledged.
    pub fn acknowledged(&self) -> usize {
        self.shared.acknowledged.load(Ordering::Relaxed)
    }

    /// It has found something that may not be.
    pub fn has_ended(&self) -> bool {
        self.task.is_finished()
    }

    /// Lets it finish; what it was told.
    pub async fn end(self) -> Vec<Write> {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Err(panic) = in_time("a client's last write", self.task).await {
            std::panic::resume_unwind(panic.into_panic());
        }
        std::mem::take(&mut self.shared.writes.lock().unwrap())
    }
}

async fn connect(proxy: &Running) -> RawClient {
    let client = proxy.raw_logged_in().await;
    client.stream.set_nodelay(true).unwrap();
    client
}

/// Who does the work.
struct Hand {
    proxy: Arc<Running>,
    wire: RawClient,
    shared: Arc<Shared>,
    next: i64,
}

fn insert(id: i64) -> String {
    format!("INSERT INTO ledger (id) VALUES ({id})")
}

const INSERT: &str = "INSERT INTO ledger (id) VALUES ($1::text::bigint)";

/// The messages of one statement by the extended protocol, with a Sync.
fn batch(statements: &[String]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for sql in statements {
        bytes.extend([parse("", sql), bind("", "", &[]), execute("")].concat());
    }
    bytes.extend(sync());
    bytes
}

/// What an answer says of all that it is about.
fn fate(answer: &[Message]) -> Fate {
    match errors(answer).as_slice() {
        [] => Fate::Acknowledged,
        [code] if code == "08007" => Fate::Unknown,
        [code] if code == "40001" => Fate::RolledBack,
        other => panic!("a write ended with {other:?}: {answer:?}"),
    }
}

fn tags(answer: &[Message]) -> Vec<String> {
    let complete = answer.iter().filter(|message| message.kind == b'C');
    complete.map(|message| tag(std::slice::from_ref(message))).collect()
}

impl Hand {
    fn keys<const N: usize>(&mut self) -> [i64; N] {
        std::array::from_fn(|_| {
            self.next += 1;
            self.next
        })
    }

    fn settle(&self, ids: &[i64], sent: Instant, fate: Fate) {
        let answered = Instant::now();
        self.shared.writes.lock().unwrap().extend(ids.iter().map(|&id| Write { id, sent, answered, fate }));
        if fate == Fate::Acknowledged {
            self.shared.acknowledged.fetch_add(ids.len(), Ordering::Relaxed);
        }
    }

    async fn prepare(&mut self, style: Style) {
        match style {
            Style::Prepared => {
                let answer = self.wire.extended(&[parse("write", INSERT)]).await;
                assert_eq!(kinds(&answer), "1Z", "{answer:?}");
            }
            Style::Pinned => self.pin().await,
            _ => {}
        }
    }

    async fn turn(&mut self, style: Style) {
        match style {
            Style::Simple => self.simple().await,
            Style::Prepared => self.prepared().await,
            Style::Transaction => self.transaction(false).await,
            Style::ExtendedTransaction => self.transaction(true).await,
            Style::PipelinedTransaction => self.pipelined_transaction().await,
            Style::Pipeline => self.pipeline().await,
            Style::Several => self.several().await,
            Style::Copy => self.copy().await,
            Style::Pinned => self.pinned().await,
            Style::Leaving => self.leaving().await,
        }
    }

    async fn simple(&mut self) {
        let [id] = self.keys();
        let sent = Instant::now();
        let answer = self.wire.query(&insert(id)).await;
        assert_eq!(status(&answer), 'I', "{answer:?}");
        let fate = fate(&answer);
        assert_eq!(tag(&answer) == "INSERT 0 1", fate == Fate::Acknowledged, "{answer:?}");
        self.settle(&[id], sent, fate);
        if fate == Fate::Acknowledged && id % 4 == 0 {
            self.look(id).await;
        }
    }

    /// P3: a session sees its own write, wherever it reads.
    async fn look(&mut self, id: i64) {
        let answer = self.wire.query(&format!("SELECT count(*) FROM ledger WHERE id = {id}")).await;
        if fate(&answer) == Fate::Acknowledged {
            assert_eq!(values(&answer), ["1"], "{id} was acknowledged to the session that reads");
        }
    }

    async fn prepared(&mut self) {
        let [id] = self.keys();
        let sent = Instant::now();
        let answer = self.wire.extended(&[bind("", "write", &[&id.to_string()]), execute("")]).await;
        assert_eq!(status(&answer), 'I', "{answer:?}");
        self.settle(&[id], sent, fate(&answer));
    }

    async fn ask(&mut self, sql: &str, extended: bool) -> Vec<Message> {
        self.wire.send(&if extended { batch(&[sql.to_owned()]) } else { query(sql) }).await;
        self.wire.read_until(b'Z').await
    }

    async fn transaction(&mut self, extended: bool) {
        let ids: [i64; 2] = self.keys();
        let sent = Instant::now();
        let begun = self.ask("BEGIN", extended).await;
        assert_eq!((tag(&begun).as_str(), status(&begun)), ("BEGIN", 'T'), "{begun:?}");
        for id in ids {
            let answer = self.ask(&insert(id), extended).await;
            match fate(&answer) {
                Fate::Acknowledged => assert_eq!(status(&answer), 'T', "{answer:?}"),
                Fate::RolledBack => {
                    assert_eq!(status(&answer), 'E', "{answer:?}");
                    let ended = self.ask(if id % 4 < 2 { "COMMIT" } else { "ROLLBACK" }, extended).await;
                    assert_eq!((tag(&ended).as_str(), status(&ended)), ("ROLLBACK", 'I'), "{ended:?}");
                    return self.settle(&ids, sent, Fate::RolledBack);
                }
                Fate::Unknown => panic!("no COMMIT had been sent: {answer:?}"),
            }
        }
        let answer = self.ask("COMMIT", extended).await;
        assert_eq!(status(&answer), 'I', "{answer:?}");
        let fate = fate(&answer);
        assert_eq!(tag(&answer) == "COMMIT", fate == Fate::Acknowledged, "{answer:?}");
        self.settle(&ids, sent, fate);
    }

    async fn pipelined_transaction(&mut self) {
        let [id] = self.keys();
        let sent = Instant::now();
        let statements = ["BEGIN".to_owned(), insert(id), "COMMIT".to_owned()];
        let batches: Vec<Vec<u8>> = statements.iter().map(|sql| batch(std::slice::from_ref(sql))).collect();
        self.wire.send(&batches.concat()).await;
        let begun = self.wire.read_until(b'Z').await;
        assert_eq!((tag(&begun).as_str(), status(&begun)), ("BEGIN", 'T'), "{begun:?}");
        let inserted = self.wire.read_until(b'Z').await;
        let ended = self.wire.read_until(b'Z').await;
        assert_eq!(status(&ended), 'I', "{ended:?}");
        let told = match fate(&inserted) {
            Fate::RolledBack => {
                assert_eq!((status(&inserted), tag(&ended).as_str()), ('E', "ROLLBACK"), "{ended:?}");
                Fate::RolledBack
            }
            Fate::Acknowledged => fate(&ended),
            Fate::Unknown => panic!("no COMMIT had been sent: {inserted:?}"),
        };
        self.settle(&[id], sent, told);
    }

    async fn pipeline(&mut self) {
        let [a, b, c, d, e] = self.keys();
        let in_a_transaction = ["BEGIN".to_owned(), insert(e), "COMMIT".to_owned()];
        let parts: [(&[i64], Vec<u8>); 5] = [
            (&[a], batch(&[insert(a)])),
            (&[b, c], batch(&[insert(b), insert(c)])),
            (&[], batch(&["SELECT count(*) FROM ledger WHERE id < 0".to_owned()])),
            (&[d], query(&insert(d))),
            (&[e], batch(&in_a_transaction)),
        ];
        let sent = Instant::now();
        self.wire.send(&parts.iter().flat_map(|(_, bytes)| bytes.clone()).collect::<Vec<u8>>()).await;
        for (ids, _) in parts {
            let answer = self.wire.read_until(b'Z').await;
            let fate = fate(&answer);
            // The block may have been begun: then it is the client's to end.
            if status(&answer) == 'E' && fate == Fate::RolledBack {
                run(&mut self.wire, "ROLLBACK").await;
            } else {
                assert_eq!(status(&answer), 'I', "{answer:?}");
            }
            self.settle(ids, sent, fate);
        }
    }

    /// One implicit transaction, or an explicit one in the middle of the text and a statement behind it.
    async fn several(&mut self) {
        let [a, b, c] = self.keys();
        let sent = Instant::now();
        if a % 2 == 0 {
            let answer = self.wire.query(&[insert(a), insert(b), insert(c)].join("; ")).await;
            assert_eq!(status(&answer), 'I', "{answer:?}");
            return self.settle(&[a, b, c], sent, fate(&answer));
        }
        let text = [&insert(a), "BEGIN", &insert(b), "COMMIT", &insert(c)].join("; ");
        let answer = self.wire.query(&text).await;
        assert_eq!(status(&answer), 'I', "{answer:?}");
        let fate = fate(&answer);
        let committed = tags(&answer).iter().any(|tag| tag == "COMMIT");
        self.settle(&[a, b], sent, if committed { Fate::Acknowledged } else { fate });
        self.settle(&[c], sent, fate);
    }

    async fn copy(&mut self) {
        let ids: [i64; 20] = self.keys();
        let gives_up = ids[0] % 3 == 0;
        let sent = Instant::now();
        self.wire.send(&query("COPY ledger (id) FROM STDIN")).await;
        let begun = self.wire.read().await;
        let mut answer = Vec::new();
        if begun.kind == b'G' {
            let rows = ids.map(|id| frame(b'd', format!("{id}\n").as_bytes())).concat();
            self.wire.send(&rows).await;
            self.wire.send(&if gives_up { frame(b'f', b"no more\0") } else { frame(b'c', b"") }).await;
        } else {
            answer.push(begun);
        }
        answer.extend(self.wire.read_until(b'Z').await);
        assert_eq!(status(&answer), 'I', "{answer:?}");
        let fate = if gives_up && errors(&answer) == ["57014"] { Fate::RolledBack } else { fate(&answer) };
        assert!(!gives_up || fate != Fate::Acknowledged, "{answer:?}");
        self.settle(&ids, sent, fate);
    }

    async fn pinned(&mut self) {
        let [id] = self.keys();
        let sent = Instant::now();
        let bytes = query(&insert(id));
        // The session may have ended before.
        let mut answer = Vec::new();
        if self.wire.try_send(&bytes).await {
            while let Some(message) = self.wire.try_read().await {
                let last = message.kind == b'Z';
                answer.push(message);
                if last {
                    return self.settle(&[id], sent, fate(&answer));
                }
            }
        }
        let told = errors(&answer);
        assert!(told.is_empty() || told == ["57P01"], "{answer:?}");
        self.settle(&[id], sent, Fate::Unknown);
        self.wire = connect(&self.proxy).await;
        self.pin().await;
    }

    /// G19: what is left without a COMMIT is rolled back, whoever gets that server next.
    async fn leaving(&mut self) {
        let [left, under_way] = self.keys();
        let sent = Instant::now();
        self.ask("BEGIN", false).await;
        self.ask(&insert(left), false).await;
        self.wire = connect(&self.proxy).await;
        self.settle(&[left], sent, Fate::RolledBack);
        self.wire.send(&query(&insert(under_way))).await;
        self.wire = connect(&self.proxy).await;
        self.settle(&[under_way], sent, Fate::Unknown);
        self.simple().await;
    }

    /// Pins the session, whatever becomes of the try.
    async fn pin(&mut self) {
        self.wire.send(&query("CREATE TEMP TABLE mine (i int)")).await;
        while let Some(message) = self.wire.try_read().await {
            if message.kind == b'Z' {
                break;
            }
        }
    }
}
