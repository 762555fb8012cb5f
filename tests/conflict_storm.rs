//! Reads of mixed length on standbys that cancel whatever is in the way of their replay, while the primary updates, vacuums,
//! truncates and drops: everyone gets the right answer, which without pgsteer many would not.
//!
//! `make bench-conflicts` runs it with 10,000 reads (`PGSTEER_READS`).

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, PROTOCOL_3_0, RawClient, Running, bind, errors, eventually, execute, in_time, kinds, parse,
    query, startup, sync, values,
};
use tokio::net::TcpStream;

/// How many read at the same time.
const READERS: usize = 16;
/// Rows of the table that is read; each is `x` and its number.
const ROWS: i64 = 400;

/// Milliseconds that the reads take on a server: most are short, some long.
const LENGTHS_MS: [u32; 8] = [0, 0, 1, 5, 20, 50, 200, 500];

/// One kind of read: its text, which gives the sum of all rows however much is written meanwhile, and that sum.
fn text(number: usize, table: &str) -> String {
    let length = f64::from(LENGTHS_MS[number % LENGTHS_MS.len()]) / 1000.0;
    format!("SELECT sum(id), (SELECT pg_sleep({length})) IS NULL FROM {table}")
}

async fn cluster() -> Sandbox {
    let sandbox = Sandbox::builder()
        .auth(Auth::Trust)
        .hot_standby_feedback(false)
        .max_standby_streaming_delay(Some(Duration::ZERO))
        .start()
        .await
        .unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    primary
        .batch_execute("CREATE TABLE c (id bigint, v text) WITH (autovacuum_enabled = off)")
        .await
        .unwrap();
    let fill = format!("INSERT INTO c SELECT g, 'x' FROM generate_series(1, {ROWS}) g");
    primary.batch_execute(&fill).await.unwrap();
    let copy = "CREATE TABLE d WITH (autovacuum_enabled = off) AS SELECT * FROM c";
    primary.batch_execute(copy).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    sandbox
}

/// What makes conflicts: row versions that are removed, and locks that are replayed.
async fn write(primary: tokio_postgres::Client, stop: Arc<AtomicBool>) {
    let mut round = 0;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        primary.batch_execute("UPDATE c SET v = v || 'y' WHERE id % 7 = 0").await.unwrap();
        primary.batch_execute("VACUUM c").await.unwrap();
        let update = format!("UPDATE d SET v = 'x{}' WHERE id % 7 = 0", round % 10);
        primary.batch_execute(&update).await.unwrap();
        primary.batch_execute("VACUUM d").await.unwrap();
        if round % 5 == 0 {
            let drop = "DROP TABLE IF EXISTS other; CREATE TABLE other AS SELECT 1 AS a";
            primary.batch_execute(drop).await.unwrap();
            let refill = "BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT id, 'x'::text AS v FROM c; \
                          TRUNCATE c; INSERT INTO c SELECT id, v FROM kept; COMMIT";
            primary.batch_execute(refill).await.unwrap();
            let lock =
                "BEGIN; LOCK TABLE d IN ACCESS EXCLUSIVE MODE; UPDATE d SET v = 'z' WHERE id = 1; COMMIT";
            primary.batch_execute(lock).await.unwrap();
        }
    }
}

/// What became of the reads.
#[derive(Debug, Default)]
struct Tally {
    right: AtomicUsize,
    cancelled: AtomicUsize,
    ended: AtomicUsize,
}

/// A client, however often its login is cancelled.
async fn connect(address: SocketAddr, user: &str) -> RawClient {
    loop {
        let mut client = RawClient { stream: TcpStream::connect(address).await.unwrap() };
        client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "postgres")])).await;
        if let Some(answer) = whole_answer(&mut client).await {
            assert!(errors(&answer).is_empty(), "{answer:?}");
            return client;
        }
    }
}

/// Up to ReadyForQuery; `None` when the connection ends before it.
async fn whole_answer(client: &mut RawClient) -> Option<Vec<Message>> {
    let mut answer = Vec::new();
    while answer.last().is_none_or(|message: &Message| message.kind != b'Z') {
        answer.push(client.try_read().await?);
    }
    Some(answer)
}

/// What a client sends for one read, each up to its ReadyForQuery, and which of the answers has the rows: all forms by turns.
fn messages(number: usize) -> (Vec<Vec<u8>>, usize) {
    // The snapshot of a cursor or COPY may be of before a lock that it waits for, and to it a table that was truncated meanwhile is
    // empty: that is PostgreSQL's, see "Caveats" in its manual. They have a table of their own, which is only locked.
    let text = text(number, if matches!(number % 5, 3 | 4) { "d" } else { "c" });
    let (begin, commit) = (query("BEGIN READ ONLY"), query("COMMIT"));
    match number % 5 {
        0 => (vec![query(&text)], 0),
        1 => (vec![[parse("", &text), bind("", "", &[]), execute(""), sync()].concat()], 0),
        2 => (vec![begin, query(&text), commit], 1),
        3 => {
            let declare = query(&format!("DECLARE cc CURSOR FOR {text}"));
            (vec![begin, declare, query("FETCH ALL FROM cc"), commit], 2)
        }
        _ => (vec![query(&format!("COPY ({text}) TO STDOUT"))], 0),
    }
}

/// The sum that a whole answer tells.
fn sums(answer: &[Message]) -> Vec<String> {
    let copied = answer.iter().filter(|message| message.kind == b'd');
    let copied =
        copied.map(|line| String::from_utf8_lossy(&line.body).split('\t').next().unwrap().to_owned());
    values(answer).into_iter().chain(copied).collect()
}

/// One read; whether it was answered rightly and whole. `None` when the connection has ended.
async fn read_once(client: &mut RawClient, number: usize, wanted: &str) -> Option<bool> {
    let (messages, told_by) = messages(number);
    let in_transaction = messages.len() > 1;
    for (place, message) in messages.iter().enumerate() {
        client.send(message).await;
        let answer = whole_answer(client).await?;
        let errors = errors(&answer);
        if !errors.is_empty() {
            assert_eq!(errors, ["40001"], "{answer:?}");
            println!("{number}, message {place}: {answer:?}");
            if in_transaction {
                client.send(&query("ROLLBACK")).await;
                whole_answer(client).await?;
            }
            return Some(false);
        }
        if place == told_by {
            assert_eq!(sums(&answer), [wanted], "{}", kinds(&answer));
        }
    }
    Some(true)
}

/// Reads until `left` is used up.
async fn read(address: SocketAddr, user: String, left: Arc<AtomicUsize>, tally: Arc<Tally>) {
    let mut client = connect(address, &user).await;
    let wanted = (ROWS * (ROWS + 1) / 2).to_string();
    while let Ok(number) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
    {
        let counter = match read_once(&mut client, number, &wanted).await {
            Some(true) => &tally.right,
            Some(false) => &tally.cancelled,
            None => {
                client = connect(address, &user).await;
                &tally.ended
            }
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// So many reads by clients that connect there; how they went.
async fn storm(sandbox: &Sandbox, address: SocketAddr, reads: usize) -> Arc<Tally> {
    let (stop, left, tally) =
        (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(reads)), Arc::new(Tally::default()));
    let writer = tokio::spawn(write(sandbox.connect(0).await.unwrap(), Arc::clone(&stop)));
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let user = sandbox.user().to_owned();
        readers.push(tokio::spawn(read(address, user, Arc::clone(&left), Arc::clone(&tally))));
    }
    for reader in readers {
        reader.await.unwrap();
    }
    stop.store(true, Ordering::Relaxed);
    in_time("the writer's end", writer).await.unwrap();
    tally
}

/// C01, C05, C08: with `hot_standby_feedback` off and no delay. The same load on a standby without pgsteer shows what there is to lose.
#[tokio::test]
async fn reads_outlive_a_storm_of_conflicts() {
    let reads = std::env::var("PGSTEER_READS").map_or(300, |reads| reads.parse().unwrap());
    let sandbox = cluster().await;
    let direct = storm(&sandbox, sandbox.node(1).address(), reads.min(1000)).await;
    let lost = direct.cancelled.load(Ordering::Relaxed) + direct.ended.load(Ordering::Relaxed);
    // The sandbox's own login may be cancelled by what is still replayed.
    eventually("the standbys have caught up", async || sandbox.wait_caught_up().await.is_ok()).await;
    // Reads are to be on standbys whatever has been written just now.
    let args = ["--auth", "trust", "--max-lag", "1m", "--pool-size", "40"];
    let environment = [("PGSTEER_ROUTING_CONSISTENCY", "eventual"), ("PGSTEER_ROUTING_RECENT_WRITES", "0s")];
    let proxy = Running::start_with(&sandbox, &args, &environment).await;
    eventually("both standbys may be read", async || {
        let topology = proxy.topology().await;
        [1, 2].iter().all(|&node| topology["nodes"][node]["staleness_ms"].is_u64())
    })
    .await;
    let began = Instant::now();
    let tally = storm(&sandbox, proxy.address, reads).await;
    let took = began.elapsed();
    let retried = proxy.metric("pgsteer_retries_total", &[("cause", "conflict")]).await;
    let killed = proxy.metric("pgsteer_retries_total", &[("cause", "server_lost")]).await;
    let standby = proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    let primary = proxy.metric("pgsteer_statements_routed_total", &[("side", "primary")]).await;
    println!(
        "on a standby: {lost} of {} reads cancelled or lost\nby pgsteer: {:?} of {reads} in {took:?}; run again {retried} times \
         after a conflict, {killed} times after the loss of a server; sent to standbys {standby}, to the primary {primary}",
        reads.min(1000),
        tally,
    );
    assert_eq!(tally.right.load(Ordering::Relaxed), reads, "{tally:?}");
    assert!(lost > 0 && retried + killed > 0.5, "there was nothing to lose");
}
