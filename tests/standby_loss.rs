//! Standbys that are killed, stopped and brought back under a load of reads of all forms that can be run again: no client sees an
//! error in the place of an answer, and every answer is whole. C05, C09, P5.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, PROTOCOL_3_0, RawClient, Running, bind, errors, eventually, execute, in_time, kinds, no_errors,
    parse, query, startup, status, sync, values,
};
use tokio::net::TcpStream;

/// Some milliseconds, in which a standby may be lost before anything of the answer has come, or in the middle of it.
const TEXT: &str = "SELECT id, pg_sleep(0.002) FROM c";
const ROWS: usize = 20;

/// How reads come.
#[derive(Debug, Clone, Copy)]
enum Form {
    Simple,
    Extended,
    FirstOfTransaction,
    Cursor,
    Copy,
}

const FORMS: [Form; 5] = [Form::Simple, Form::Extended, Form::FirstOfTransaction, Form::Cursor, Form::Copy];

async fn connect(address: SocketAddr, user: &str) -> RawClient {
    let mut client = RawClient { stream: TcpStream::connect(address).await.unwrap() };
    client.send(&startup(PROTOCOL_3_0, &[("user", user), ("database", "postgres")])).await;
    no_errors(&client.read_until(b'Z').await);
    client
}

/// The answer to the read itself.
async fn read_once(client: &mut RawClient, form: Form) -> Vec<Message> {
    match form {
        Form::Simple => client.query(TEXT).await,
        Form::Extended => {
            client.send(&[parse("", TEXT), bind("", "", &[]), execute(""), sync()].concat()).await;
            client.read_until(b'Z').await
        }
        Form::FirstOfTransaction => {
            no_errors(&client.query("BEGIN READ ONLY").await);
            client.query(TEXT).await
        }
        Form::Cursor => {
            no_errors(&client.query("BEGIN READ ONLY").await);
            no_errors(&client.query(&format!("DECLARE cc CURSOR FOR {TEXT}")).await);
            client.query("FETCH ALL FROM cc").await
        }
        Form::Copy => {
            client.send(&query(&format!("COPY ({TEXT}) TO STDOUT"))).await;
            client.read_until(b'Z').await
        }
    }
}

/// Reads until it is told to stop.
async fn read(address: SocketAddr, user: String, form: Form, stop: Arc<AtomicBool>, reads: Arc<AtomicUsize>) {
    let mut client = connect(address, &user).await;
    while !stop.load(Ordering::Relaxed) {
        let answer = read_once(&mut client, form).await;
        assert_eq!(errors(&answer), [""; 0], "{form:?}: {answer:?}");
        let rows = match form {
            Form::Copy => kinds(&answer).matches('d').count(),
            _ => values(&answer).len(),
        };
        assert_eq!(rows, ROWS, "{form:?}: {}", kinds(&answer));
        if status(&answer) == 'T' {
            // All has been told by then: its server may be lost, and nothing with it.
            let end = client.query("COMMIT").await;
            assert_eq!(status(&end), 'I', "{end:?}");
            no_errors(&end);
        }
        reads.fetch_add(1, Ordering::Relaxed);
    }
}

#[tokio::test]
async fn c09_reads_outlive_the_loss_of_standbys() {
    let sandbox = Sandbox::builder().standbys(2).auth(Auth::Trust).start().await.unwrap();
    let primary = sandbox.connect(0).await.unwrap();
    let fill = format!("CREATE TABLE c AS SELECT g AS id FROM generate_series(1, {ROWS}) g");
    primary.batch_execute(&fill).await.unwrap();
    sandbox.wait_caught_up().await.unwrap();
    let args = ["--auth", "trust", "--max-lag", "10min", "--pool-size", "40"];
    let proxy = Running::start_with(&sandbox, &args, &[]).await;
    let is_read = async |node: usize| proxy.topology().await["nodes"][node]["staleness_ms"].is_u64();
    eventually("both standbys may be read", async || is_read(1).await && is_read(2).await).await;
    let (stop, reads) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut readers = Vec::new();
    for form in FORMS.into_iter().chain(FORMS) {
        let user = sandbox.user().to_owned();
        readers.push(tokio::spawn(read(proxy.address, user, form, Arc::clone(&stop), Arc::clone(&reads))));
    }
    let more = async |count: usize| {
        let wanted = reads.load(Ordering::Relaxed) + count;
        eventually("reads go on", async || {
            assert!(!readers.iter().any(tokio::task::JoinHandle::is_finished), "a reader has ended");
            reads.load(Ordering::Relaxed) >= wanted
        })
        .await;
    };
    for round in 0..3 {
        for (node, fault) in [(1, "kill -9"), (2, "fast"), (1, "immediate"), (2, "backend")] {
            more(50).await;
            let standby = sandbox.node(node);
            match fault {
                "kill -9" => drop(standby.kill9().await.unwrap()),
                "fast" => standby.stop_fast().await.unwrap(),
                "immediate" => standby.stop_immediate().await.unwrap(),
                _ => {
                    let direct = sandbox.connect(node).await.unwrap();
                    let sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity \
                               WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()";
                    direct.batch_execute(sql).await.unwrap();
                }
            }
            more(50).await;
            if fault != "backend" {
                standby.start().await.unwrap();
            }
            eventually(&format!("node {node} is read again, round {round}"), async || is_read(node).await)
                .await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for reader in readers {
        in_time("a reader's end", reader).await.unwrap();
    }
    let lost = proxy.metric("pgsteer_retries_total", &[("cause", "server_lost")]).await;
    println!("{} reads, {lost} of them run again behind the loss of a server", reads.load(Ordering::Relaxed));
    assert!(lost > 2.5, "there was nothing to lose: {lost}");
    assert_eq!(proxy.topology().await["epoch"], 1);
}
