//! Whatever is classified as a read is run on a real standby, which must not refuse it as one.
//!
//! PostgreSQL's regression scripts are run on a primary, statement by statement; each that is classified as a read, with the database's
//! catalogue known or not, is run on the standby when that has replayed what came before. Sessions go alike: what sets
//! something on the primary sets it on the standby, too. `PGSTEER_STANDBY_SEED` chooses which scripts are run, and
//! `PGSTEER_STANDBY_ALL` runs all of them, which takes some three minutes.
//!
//! Must not know: how the classifier works.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

#[path = "classify_oracle/judge.rs"]
mod judge;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use judge::{scripts, statements};
use pgsteer::classify::{
    Access, Catalogue, CatalogueStamp, Classification, Dialect, Overrides, Reason, classify,
};
use pgsteer::sandbox::Sandbox;
use pgsteer::session::CATALOGUE_QUERY;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, SimpleQueryMessage};

/// These make what others need, in this order.
const FIRST: [&str; 4] = ["test_setup", "create_table", "create_misc", "create_view"];

/// Run only with all others.
const SLOW: [&str; 6] = ["create_index", "gist", "select_parallel", "stats_ext", "temp", "update"];

/// Not run: they need what a sandbox has not, would end it, or take long without having a read of their own kind.
const LEFT_OUT: [&str; 8] = [
    "tablespace",
    "database",
    "infinite_recurse",
    "largeobject",
    "write_parallel",
    "stats",
    "tuplesort",
    "join_hash",
];

/// What is refused although the text alone looks like a read: its marks in the text, and why it stays so.
const KNOWN: [(&str, &str); 1] = [(
    "current_schema()",
    "makes the session's temporary schema, but only where that comes first in the search_path; it runs on the primary then, and is learned",
)];

/// A primary and a standby, and a session on each that has gone through the same statements.
struct Pair {
    sandbox: Sandbox,
    primary: Client,
    standby: Client,
    /// Asks the primary for the catalogue and for its position, outside of the scripts' transactions.
    asker: Client,
    /// The longest that took.
    asked_longest: Duration,
    /// The standby has replayed what the primary has done.
    level: bool,
}

/// What was run, and what was refused.
#[derive(Default)]
struct Tally {
    statements: u32,
    reads: BTreeMap<&'static str, u32>,
    answered: u32,
    refused: Vec<String>,
    /// Refused, and a write as soon as the catalogue is known.
    told_by_catalogue: u32,
    errors: BTreeMap<String, u32>,
}

impl Pair {
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
        let (primary, standby) = (sandbox.connect(0).await.unwrap(), sandbox.connect(1).await.unwrap());
        let asker = sandbox.connect(0).await.unwrap();
        asker.batch_execute("SET search_path TO pg_catalog, pg_temp; SET jit TO off").await.unwrap();
        Self { sandbox, primary, standby, asker, asked_longest: Duration::ZERO, level: false }
    }

    /// Two new sessions.
    async fn connect(&mut self) {
        self.primary = self.sandbox.connect(0).await.unwrap();
        self.standby = self.sandbox.connect(1).await.unwrap();
        for client in [&self.primary, &self.standby] {
            client.batch_execute("SET statement_timeout = '3s'; SET lock_timeout = '1s'").await.unwrap();
        }
    }

    /// Waits until the standby has replayed what the primary has made durable.
    async fn catch_up(&mut self) {
        if std::mem::replace(&mut self.level, true) {
            return;
        }
        // What was rolled back last may be flushed in part only, until somebody commits.
        let commit = "SELECT pg_logical_emit_message(true, 'classify', '')";
        self.asker.simple_query(commit).await.unwrap();
        let told = self.asker.simple_query("SELECT pg_current_wal_flush_lsn()").await.unwrap();
        let lsn = first_value(&told).unwrap();
        let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{lsn}'");
        let follow = async {
            loop {
                match self.standby.simple_query(&caught_up).await {
                    Ok(rows) if first_value(&rows).as_deref() == Some("t") => return,
                    Ok(_) => tokio::task::yield_now().await,
                    Err(_) => return,
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(30), follow).await.expect("the standby follows");
    }

    async fn catalogue(&mut self) -> Catalogue {
        let begin = Instant::now();
        let rows = self.asker.simple_query(CATALOGUE_QUERY).await.unwrap();
        self.asked_longest = self.asked_longest.max(begin.elapsed());
        let rows = rows.iter().filter_map(|message| match message {
            SimpleQueryMessage::Row(row) => Some([row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?]),
            _ => None,
        });
        Catalogue::from_rows(rows, &Overrides::default())
    }

    /// Runs a read on the standby: what it was refused with as what a standby can't do.
    async fn judge(&mut self, text: &str, tally: &mut Tally) -> Option<String> {
        self.catch_up().await;
        let Err(error) = self.standby.simple_query(text).await else {
            tally.answered += 1;
            return None;
        };
        let Some(error) = error.as_db_error() else {
            // The answer to COPY is not this client's to read.
            tally.answered += 1;
            return None;
        };
        *tally.errors.entry(error.code().code().to_owned()).or_default() += 1;
        let recovery = error.message().contains("during recovery");
        let refused = *error.code() == SqlState::READ_ONLY_SQL_TRANSACTION
            || (recovery
                && [SqlState::FEATURE_NOT_SUPPORTED, SqlState::OBJECT_NOT_IN_PREREQUISITE_STATE]
                    .contains(error.code()));
        refused.then(|| error.message().to_owned())
    }
}

fn first_value(rows: &[SimpleQueryMessage]) -> Option<String> {
    rows.iter().find_map(|message| match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    })
}

/// What a session keeps for itself is done on both servers.
fn is_setting(class: &Classification) -> bool {
    class.reason == Reason::SessionState && class.pin.is_none() && class.statements == 1
}

fn is_read_by(catalogue: &Catalogue, text: &str) -> bool {
    let stamp = CatalogueStamp { serial: 1, fresh: true };
    let dialect = Dialect { catalogue: Some(catalogue), catalogue_stamp: stamp, ..Dialect::default() };
    classify(text.as_bytes(), &dialect).access == Access::Read
}

/// Runs one script. The catalogue is asked for again behind definitions, before a statement that it could make a read.
async fn run(pair: &mut Pair, script: &str, tally: &mut Tally) {
    pair.connect().await;
    let mut catalogue = Catalogue::default();
    let mut stale = true;
    for text in statements(script) {
        let plain = classify(text.as_bytes(), &Dialect::default());
        if plain.copies && plain.access != Access::Read {
            continue;
        }
        tally.statements += 1;
        let by_text = plain.access == Access::Read;
        // What may become a read by the catalogue.
        if plain.access == Access::Unknown && std::mem::take(&mut stale) {
            catalogue = pair.catalogue().await;
        }
        let by_catalogue = plain.access == Access::Unknown && is_read_by(&catalogue, &text);
        if by_text || by_catalogue {
            let how = if by_text { "a read by its text" } else { "a read by the catalogue" };
            *tally.reads.entry(how).or_default() += 1;
            if let Some(message) = pair.judge(&text, tally).await {
                if std::mem::take(&mut stale) {
                    catalogue = pair.catalogue().await;
                }
                // A view over what a standby can't do is known by the catalogue alone; until then such a refusal is learned.
                let known = is_read_by(&catalogue, &text);
                if known && !KNOWN.iter().any(|(mark, _)| text.contains(mark)) {
                    tally.refused.push(format!("{message} ({how}): {}", text.trim()));
                }
                tally.told_by_catalogue += u32::from(!known);
            }
        }
        // A session that was ended has others begun.
        if pair.primary.is_closed() || pair.standby.is_closed() {
            pair.connect().await;
        }
        let _ = pair.primary.simple_query(&text).await;
        if is_setting(&plain) {
            let _ = pair.standby.simple_query(&text).await;
        }
        pair.level &= plain.access == Access::Read;
        stale |= plain.defines || plain.unseen;
    }
    let _ = pair.primary.simple_query("ROLLBACK").await;
}

/// Whether a script is among those that the seed chooses, one in eight.
fn is_chosen(name: &str, seed: u64) -> bool {
    let hash = name.bytes().fold(seed ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    (hash >> 32).is_multiple_of(8)
}

#[tokio::test]
async fn a_standby_refuses_no_read() {
    let Some(scripts) = scripts() else {
        println!("no SQL corpus found (PGSTEER_SQL_CORPUS): nothing run");
        return;
    };
    let all = std::env::var_os("PGSTEER_STANDBY_ALL").is_some();
    let seed = std::env::var("PGSTEER_STANDBY_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    let mut pair = Pair::start().await;
    let mut tally = Tally::default();
    let first = FIRST.iter().filter_map(|name| scripts.get_key_value(*name));
    let rest = scripts.iter().filter(|(name, _)| {
        let other = !FIRST.contains(&name.as_str()) && !LEFT_OUT.contains(&name.as_str());
        other && (all || (is_chosen(name, seed) && !SLOW.contains(&name.as_str())))
    });
    for (name, script) in first.chain(rest) {
        let begin = Instant::now();
        run(&mut pair, script, &mut tally).await;
        if begin.elapsed() > Duration::from_secs(5) {
            println!("{name}: {:?}", begin.elapsed());
        }
    }
    let Tally { statements, reads, answered, refused, told_by_catalogue, errors } = &tally;
    println!("{statements} statements, seed {seed}; {reads:?}");
    println!("{answered} answered by the standby, other errors: {errors:?}");
    println!("{told_by_catalogue} refused that only the catalogue shows to be writes");
    println!("asking for the catalogue took at most {:?}", pair.asked_longest);
    assert!(*answered > 500, "{answered}");
    assert!(refused.is_empty(), "{} refused:\n{}", refused.len(), refused.join("\n"));
}
