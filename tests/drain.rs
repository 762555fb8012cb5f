//! SIGTERM: idle sessions end at once, transactions end first, and a time-out bounds it all.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Running, errors, kinds};

async fn trusting(standbys: usize) -> Sandbox {
    Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap()
}

#[tokio::test]
async fn a_running_transaction_ends_and_idle_sessions_are_told() {
    let sandbox = trusting(1).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "50s"]).await;
    let mut idle = proxy.raw_logged_in().await;
    let mut busy = proxy.raw_logged_in().await;
    assert_eq!(errors(&busy.query("CREATE TABLE kept (i int)").await), [""; 0]);
    busy.query("BEGIN").await;
    assert_eq!(kinds(&busy.query("INSERT INTO kept VALUES (1)").await), "CZ");

    proxy.terminate();
    let told = idle.read_to_end().await;
    assert_eq!(errors(&told), ["57P01"], "{told:?}");
    running::eventually("the listener is closed", async || {
        tokio::net::TcpStream::connect(proxy.address).await.is_err()
    })
    .await;

    assert_eq!(kinds(&busy.query("INSERT INTO kept VALUES (2)").await), "CZ");
    let committed = busy.query("COMMIT").await;
    assert_eq!(kinds(&committed[..2]), "CZ", "{committed:?}");
    assert_eq!(errors(&busy.read_to_end().await), ["57P01"]);
    assert!(proxy.wait_exit().await.success());

    let direct = sandbox.connect(0).await.unwrap();
    let count: i64 = direct.query_one("SELECT count(*) FROM kept", &[]).await.unwrap().get(0);
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_transaction_that_never_ends_does_not_keep_the_process() {
    let sandbox = trusting(0).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "300ms"]).await;
    let mut busy = proxy.raw_logged_in().await;
    busy.query("CREATE TABLE lost (i int)").await;
    busy.query("BEGIN").await;
    assert_eq!(kinds(&busy.query("INSERT INTO lost VALUES (1)").await), "CZ");
    proxy.terminate();
    assert!(proxy.wait_exit().await.success());
    assert!(proxy.log().contains("shutdown_timeout is over"), "{}", proxy.log());
    // The server rolls back when its connection ends.
    let direct = sandbox.connect(0).await.unwrap();
    let count: i64 = direct.query_one("SELECT count(*) FROM lost", &[]).await.unwrap().get(0);
    assert_eq!(count, 0);
}

#[tokio::test]
async fn a_running_statement_gets_its_answer() {
    let sandbox = trusting(0).await;
    let mut proxy = Running::start(&sandbox, &["--auth", "trust", "--shutdown-timeout", "50s"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    direct.batch_execute("CREATE TABLE t (i int)").await.unwrap();
    direct.batch_execute("BEGIN; LOCK TABLE t").await.unwrap();
    let mut busy = proxy.raw_logged_in().await;
    busy.send(&running::query("INSERT INTO t VALUES (1)")).await;
    running::eventually("the insert waits", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted";
        direct.query_one(waiting, &[]).await.unwrap().get::<_, i64>(0) == 1
    })
    .await;
    proxy.terminate();
    running::eventually("it drains", async || proxy.log().contains("draining")).await;
    direct.batch_execute("COMMIT").await.unwrap();
    let answer = busy.read_to_end().await;
    assert_eq!(kinds(&answer), "CZE", "{answer:?}");
    assert_eq!(errors(&answer), ["57P01"]);
    assert!(proxy.wait_exit().await.success());
}
