//! Standbys that answer as no PostgreSQL does, or not to the end: no client hangs beyond its time-outs or is told of two attempts at
//! once, and what such a server is connected by is closed.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, errors, eventually, execute, frame, in_time, kinds, parse, query,
    status, sync, tag, values,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// What a statement has in it that the standby answers in its own way; whatever else it is asked it answers well.
const MARKER: &[u8] = b"badly";

/// What it does behind that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Then {
    Stall,
    Close,
}

/// A standby that is reached through here.
struct Standby {
    address: SocketAddr,
    /// How often it has answered badly.
    answered: Arc<AtomicUsize>,
    /// How many of the connections on which it did pgsteer has closed.
    discarded: Arc<AtomicUsize>,
}

async fn standby(server: SocketAddr, says: Vec<u8>, then: Then) -> Standby {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (answered, discarded) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let counts = (Arc::clone(&answered), Arc::clone(&discarded));
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(carry(client, server, says.clone(), then, counts.clone()));
        }
    });
    Standby { address, answered, discarded }
}

async fn carry(
    mut client: TcpStream,
    server: SocketAddr,
    says: Vec<u8>,
    then: Then,
    (answered, discarded): (Arc<AtomicUsize>, Arc<AtomicUsize>),
) {
    let Ok(mut server) = TcpStream::connect(server).await else { return };
    let (mut sent, mut said) = (vec![0; 65_536], vec![0; 65_536]);
    loop {
        tokio::select! {
            read = client.read(&mut sent) => {
                let Ok(count @ 1..) = read else { return };
                if sent[..count].windows(MARKER.len()).any(|window| window == MARKER) {
                    break;
                }
                if server.write_all(&sent[..count]).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut said) => {
                let Ok(count @ 1..) = read else { return };
                if client.write_all(&said[..count]).await.is_err() {
                    return;
                }
            }
        }
    }
    answered.fetch_add(1, Ordering::SeqCst);
    if client.write_all(&says).await.is_err() || then == Then::Close {
        discarded.fetch_add(1, Ordering::SeqCst);
        return;
    }
    // Until pgsteer has had enough, whatever it says.
    while matches!(client.read(&mut sent).await, Ok(1..)) {}
    discarded.fetch_add(1, Ordering::SeqCst);
}

fn rows() -> Vec<u8> {
    let column =
        [&b"\0\x01badly\0"[..], &[0; 6], &25u32.to_be_bytes(), b"\xff\xff\xff\xff\xff\xff\0\0"].concat();
    frame(b'T', &column)
}

fn row(value: &str) -> Vec<u8> {
    let length = u32::try_from(value.len()).unwrap().to_be_bytes();
    frame(b'D', &[b"\0\x01", &length[..], value.as_bytes()].concat())
}

fn error(sqlstate: Option<&str>) -> Vec<u8> {
    let code = sqlstate.map_or_else(Vec::new, |code| format!("C{code}\0").into_bytes());
    frame(b'E', &[b"SERROR\0VERROR\0", &code[..], b"Mas it likes\0\0"].concat())
}

fn ready() -> Vec<u8> {
    frame(b'Z', b"I")
}

fn complete() -> Vec<u8> {
    frame(b'C', b"SELECT 1\0")
}

/// One primary, and a standby that answers one statement so.
async fn start(says: Vec<u8>, then: Then) -> (Sandbox, Standby, Running) {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let standby = standby(sandbox.node(1).address(), says, then).await;
    let nodes = [sandbox.node(0).address(), standby.address];
    let args = ["--auth", "trust", "--shards", "1", "--max-lag", "10m"];
    let own = [
        ("PGSTEER_ROUTING_CONSISTENCY", "eventual"),
        ("PGSTEER_ROUTING_RECENT_WRITES", "0s"),
        ("PGSTEER_RETRY_HOLD_TIME", "50ms"),
    ];
    let proxy = Running::start_at(&nodes, &sandbox, &args, &own).await;
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
    (sandbox, standby, proxy)
}

/// What a client with a `statement_timeout` of a second is told, by the simple protocol and by the extended; and that its session
/// goes on, on another connection.
async fn told(says: Vec<u8>, then: Then) -> [Vec<Message>; 2] {
    let mut told = [Vec::new(), Vec::new()];
    for (answer, is_extended) in told.iter_mut().zip([false, true]) {
        let before = if is_extended { [frame(b'1', b""), frame(b'2', b"")].concat() } else { Vec::new() };
        let (sandbox, standby, proxy) = start([before, says.clone()].concat(), then).await;
        let mut client: RawClient = proxy.raw().await;
        let options =
            [("user", sandbox.user()), ("database", "postgres"), ("options", "-c statement_timeout=1s")];
        client.log_in_with(&options).await;
        // The settings of the startup packet are brought along in the same write, which the server would have to answer first.
        assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
        let text = "SELECT 'well' AS badly";
        client
            .send(&if is_extended {
                [parse("", text), bind("", "", &[]), execute(""), sync()].concat()
            } else {
                query(text)
            })
            .await;
        *answer = in_time("an answer", client.read_until(b'Z')).await;
        assert_eq!(kinds(answer).matches('Z').count(), 1);
        assert_eq!(standby.answered.load(Ordering::SeqCst), 1, "it ran elsewhere");
        eventually("the connection is closed", async || standby.discarded.load(Ordering::SeqCst) == 1).await;
        assert_eq!((status(answer), values(&client.query("SELECT 2").await)), ('I', vec!["2".to_owned()]));
    }
    told
}

fn is_answered_well(told: &[Vec<Message>; 2]) {
    for (answer, expected) in told.iter().zip(["TDCZ", "12DCZ"]) {
        assert_eq!((kinds(answer).as_str(), values(answer)), (expected, vec!["well".to_owned()]));
    }
}

/// Half a row, and then nothing.
#[tokio::test]
async fn half_an_answer_ends_with_its_time() {
    let half = &row("ill")[..8];
    for answer in told([&rows(), half].concat(), Then::Stall).await {
        assert_eq!((errors(&answer), values(&answer)), (vec!["57014".to_owned()], Vec::new()), "{answer:?}");
    }
}

/// C05: a row that was held back for long enough, and then nothing: it is the client's already.
#[tokio::test]
async fn an_answer_that_stops_once_it_is_begun_ends_with_its_time() {
    for answer in told([rows(), row("ill")].concat(), Then::Stall).await {
        assert_eq!((errors(&answer), values(&answer)), (vec!["57014".to_owned()], vec!["ill".to_owned()]));
    }
}

/// Half a row, and the end.
#[tokio::test]
async fn half_an_answer_and_the_end_is_run_again() {
    let half = &row("ill")[..8];
    is_answered_well(&told([&rows(), half].concat(), Then::Close).await);
}

/// A whole answer, but for ReadyForQuery.
#[tokio::test]
async fn an_answer_that_is_never_ready_ends_with_its_time() {
    let [simple, extended] = told([rows(), row("ill"), complete()].concat(), Then::Stall).await;
    // What was a Query is complete; of a batch more could have followed.
    assert_eq!((kinds(&simple).as_str(), values(&simple)), ("TDCZ", vec!["ill".to_owned()]));
    assert_eq!(errors(&extended), ["57014"], "{extended:?}");
}

/// An error, but no ReadyForQuery.
#[tokio::test]
async fn an_error_that_is_never_ready_is_the_answer() {
    for answer in told(error(Some("22012")), Then::Stall).await {
        assert_eq!(errors(&answer), ["22012"], "{answer:?}");
    }
}

/// C04: a conflict, but no ReadyForQuery: when that is known there is no time left to run it again.
#[tokio::test]
async fn a_conflict_that_is_never_ready_is_passed_on_in_the_end() {
    for answer in told(error(Some("40001")), Then::Stall).await {
        assert_eq!(errors(&answer), ["40001"], "{answer:?}");
        let hint = answer.iter().find_map(|message| message.field(b'H')).unwrap();
        assert!(hint.contains("did not complete its answer"), "{hint}");
    }
}

/// An error and the end: it is what came of an attempt that is not known to be over, and is run again.
#[tokio::test]
async fn an_error_and_the_end_is_run_again() {
    is_answered_well(&told(error(Some("22012")), Then::Close).await);
    is_answered_well(&told(error(Some("40001")), Then::Close).await);
}

/// The standby can't say why: the primary may know better.
#[tokio::test]
async fn an_error_without_sqlstate_is_run_on_the_primary() {
    let says = [error(None), ready()].concat();
    let (_sandbox, standby, proxy) = start(says, Then::Stall).await;
    let mut client = proxy.raw_logged_in().await;
    let answer = client.query("SELECT 'well' AS badly").await;
    assert_eq!((kinds(&answer).as_str(), values(&answer)), ("TDCZ", vec!["well".to_owned()]));
    assert_eq!(standby.answered.load(Ordering::SeqCst), 1);
}

/// C05: the second error is none of the other attempt's answer.
#[tokio::test]
async fn a_second_error_behind_a_conflict_is_discarded() {
    is_answered_well(
        &told([error(Some("40001")), error(Some("22012")), ready()].concat(), Then::Stall).await,
    );
    is_answered_well(&told([error(Some("40001")), error(None), ready()].concat(), Then::Stall).await);
}

/// What can't count its answers is not used again.
#[tokio::test]
async fn a_second_error_behind_the_first_costs_the_connection() {
    for answer in told([error(Some("22012")), error(Some("22003")), ready()].concat(), Then::Stall).await {
        assert_eq!(errors(&answer)[0], "22012", "{answer:?}");
    }
}

/// Lengths that can't be, and messages that no server sends here.
#[tokio::test]
async fn what_is_no_message_is_run_again() {
    is_answered_well(&told([&rows()[..], b"D\0\0\0\x03"].concat(), Then::Stall).await);
    is_answered_well(&told([&rows()[..], b"D\xff\xff\xff\xff"].concat(), Then::Stall).await);
}

/// C09: a standby whose sockets stay open and say nothing: what has not been answered is run elsewhere, without a time-out.
#[tokio::test]
async fn a_read_on_a_standby_that_hangs_is_run_on_another_node() {
    let sandbox = Sandbox::builder().standbys(1).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--max-lag", "10m"]).await;
    eventually("the standby may be read", async || {
        proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
    })
    .await;
    for begin in [None, Some("BEGIN READ ONLY")] {
        let mut client = proxy.raw_logged_in().await;
        if let Some(begin) = begin {
            assert_eq!(status(&client.query(begin).await), 'T');
        }
        let direct = sandbox.connect(1).await.unwrap();
        client.send(&query("SELECT 'well', pg_sleep(1) AS hangs FROM generate_series(1, 1)")).await;
        let sql = "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query LIKE '%AS hangs%' \
                   AND pid <> pg_backend_pid()";
        eventually("it runs there", async || direct.query_one(sql, &[]).await.unwrap().get::<_, i64>(0) == 1)
            .await;
        sandbox.node(1).sigstop().unwrap();
        let answer = in_time("an answer from elsewhere", client.read_until(b'Z')).await;
        assert!(errors(&answer).is_empty(), "{answer:?}");
        assert_eq!(values(&answer), ["well"]);
        assert_eq!(status(&answer), if begin.is_some() { 'T' } else { 'I' });
        sandbox.node(1).sigcont().unwrap();
        eventually("the standby is back", async || {
            proxy.topology().await["nodes"][1]["staleness_ms"].is_u64()
        })
        .await;
    }
    assert!(proxy.metric("pgsteer_retries_total", &[("cause", "server_lost")]).await >= 2.0);
}

/// One primary that is reached through what answers one statement so.
async fn start_alone(says: Vec<u8>, then: Then) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let primary = standby(sandbox.node(0).address(), says, then).await;
    let args = ["--auth", "trust", "--shards", "1"];
    let proxy = Running::start_at(&[primary.address], &sandbox, &args, &[]).await;
    (sandbox, proxy)
}

fn extended(text: &str) -> Vec<u8> {
    [parse("", text), bind("", "", &[]), execute(""), sync()].concat()
}

/// C06: what has failed can't be committed, so the loss of its server leaves nothing unknown.
#[tokio::test]
async fn the_end_of_a_failed_block_is_never_unknown() {
    let (_sandbox, proxy) = start_alone(Vec::new(), Then::Close).await;
    let (_both, _standby, beside) = start(Vec::new(), Then::Close).await;
    for (proxy, begin) in [(&proxy, "BEGIN"), (&beside, "BEGIN READ ONLY")] {
        let mut client = proxy.raw_logged_in().await;
        let mut fail = async |messages: Vec<u8>| {
            assert_eq!(status(&client.query(begin).await), 'T');
            assert_eq!(
                errors(&client.query("SELECT 1 / (count(*) - 1) FROM generate_series(1, 1)").await),
                ["22012"]
            );
            client.send(&messages).await;
            let answer = in_time("an answer", client.read_until(b'Z')).await;
            let end = status(&answer);
            if end == 'E' {
                assert_eq!(tag(&client.query("ROLLBACK").await), "ROLLBACK");
            }
            assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
            (errors(&answer), end, answer)
        };
        for end in ["COMMIT /* badly */", "ROLLBACK /* badly */"] {
            for messages in [query(end), extended(end)] {
                let (errors, status, answer) = fail(messages).await;
                assert_eq!((errors, status, tag(&answer).as_str()), (Vec::new(), 'I', "ROLLBACK"), "{begin}");
            }
        }
        let large = format!("SELECT 'badly{}'", "x".repeat(1_500_000));
        // On a standby it is answered without one.
        let chain = Some("COMMIT AND CHAIN /* badly */").filter(|_| begin == "BEGIN");
        for text in ["DO 'BEGIN END' -- badly", "CALL badly()", &large].into_iter().chain(chain) {
            let (errors, status, answer) = fail(query(text)).await;
            // What would leave state on a standby is sent there as another text.
            let told = if begin == "BEGIN" { &["40001"][..] } else { &["40001", "25P02"] };
            assert!(status == 'E' && told.contains(&errors.join(" ").as_str()), "{begin}: {answer:?}");
        }
        // What follows the end is another transaction.
        let (errors, status, _) = fail(query("ROLLBACK; CREATE TABLE badly ()")).await;
        assert_eq!((errors, status), (vec!["08007".to_owned()], 'I'), "{begin}");
    }
}

/// An error, and the end in the place of ReadyForQuery: the client has its one error.
#[tokio::test]
async fn a_savepoint_s_error_and_the_end_is_one_error() {
    let (_sandbox, proxy) = start_alone(error(Some("3B001")), Then::Close).await;
    let mut client = proxy.raw_logged_in().await;
    for text in ["SAVEPOINT badly", "RELEASE badly", "ROLLBACK TO badly"] {
        for messages in [query(text), extended(text)] {
            assert_eq!(status(&client.query("BEGIN").await), 'T');
            assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
            client.send(&messages).await;
            let answer = in_time("an answer", client.read_until(b'Z')).await;
            assert_eq!((errors(&answer), status(&answer)), (vec!["3B001".to_owned()], 'E'), "{text}");
            assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
            assert_eq!(tag(&client.query("COMMIT").await), "ROLLBACK");
        }
    }
}

/// A second ReadyForQuery, before or behind the client's next statement: it is not the whole of that one's answer.
#[tokio::test]
async fn a_second_ready_for_query_answers_nothing() {
    is_answered_well(&told(ready(), Then::Stall).await);
    for answer in told([rows(), row("ill"), complete(), ready(), ready()].concat(), Then::Stall).await {
        assert_eq!(values(&answer), ["ill"], "{answer:?}");
    }
    let (_sandbox, proxy) = start_alone(ready(), Then::Stall).await;
    let mut client = proxy.raw_logged_in().await;
    let answer = client.query("CREATE TABLE badly ()").await;
    assert_eq!((errors(&answer), status(&answer)), (vec!["08007".to_owned()], 'I'));
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
}
