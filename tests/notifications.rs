//! What a server says to a listening client by itself, at whichever moment it comes. The hazards' numbers stand at each
//! test.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, frame, kinds, query};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;

const READY: &[u8] = b"Z\0\0\0\x05I";

/// What a server adds to one answer.
#[derive(Debug, Clone)]
struct Addition {
    /// Stands in the answer.
    marker: &'static str,
    /// Comes in one piece with its end.
    together: Vec<u8>,
    /// Comes when the test says so.
    later: Vec<u8>,
}

/// A way to the server on which it says more than it does: at a moment that can't be hit from outside.
struct Way {
    address: SocketAddr,
    addition: Arc<Mutex<Option<Addition>>>,
    go_on: Arc<Notify>,
}

impl Way {
    async fn to(server: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let way =
            Self { address: listener.local_addr().unwrap(), addition: Arc::default(), go_on: Arc::default() };
        let (addition, go_on) = (Arc::clone(&way.addition), Arc::clone(&way.go_on));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = TcpStream::connect(server).await.unwrap();
                let ((mut from_client, to_client), (from_server, mut to_server)) =
                    (client.into_split(), server.into_split());
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                tokio::spawn(answers(from_server, to_client, Arc::clone(&addition), Arc::clone(&go_on)));
            }
        });
        way
    }

    fn add(&self, addition: Addition) {
        *self.addition.lock().unwrap() = Some(addition);
    }
}

/// Passes on what the server says, with the addition where it belongs.
async fn answers(
    mut server: OwnedReadHalf,
    mut client: OwnedWriteHalf,
    addition: Arc<Mutex<Option<Addition>>>,
    go_on: Arc<Notify>,
) -> std::io::Result<()> {
    let mut bytes = Vec::new();
    while server.read_buf(&mut bytes).await? > 0 {
        let planned = addition.lock().unwrap().clone();
        let planned =
            planned.filter(|it| bytes.windows(it.marker.len()).any(|part| part == it.marker.as_bytes()));
        match planned {
            Some(_) if !bytes.ends_with(READY) => continue,
            Some(planned) => {
                *addition.lock().unwrap() = None;
                client.write_all(&[&bytes, planned.together.as_slice()].concat()).await?;
                go_on.notified().await;
                client.write_all(&planned.later).await?;
            }
            None => client.write_all(&bytes).await?,
        }
        bytes.clear();
    }
    Ok(())
}

/// NotificationResponse.
fn notification(payload: &str) -> Vec<u8> {
    frame(b'A', &[&7u32.to_be_bytes()[..], b"news\0", payload.as_bytes(), b"\0"].concat())
}

async fn listening(proxy: &Running) -> RawClient {
    let mut client = proxy.raw_logged_in().await;
    assert!(errors(&client.query("LISTEN news").await).is_empty());
    client
}

/// G08, P11: nothing else that the client does brings it.
#[tokio::test]
async fn a_notification_that_comes_with_the_end_of_an_answer_is_passed_on_at_once() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let way = Way::to(sandbox.node(0).address()).await;
    let proxy = Running::start_at(&[way.address], &sandbox, &["--auth", "trust"], &[]).await;
    let mut client = listening(&proxy).await;
    let one = notification("one");
    let two = notification("two");
    for (marker, together, later, at_once) in [
        ("alone", one.clone(), Vec::new(), 1),
        ("both", [one.clone(), two.clone()].concat(), Vec::new(), 2),
        ("behind", Vec::new(), one.clone(), 0),
        ("header", one[..3].to_vec(), one[3..].to_vec(), 0),
        ("half", one[..one.len() / 2].to_vec(), one[one.len() / 2..].to_vec(), 0),
        ("more", [&one[..], &two[..9]].concat(), two[9..].to_vec(), 1),
    ] {
        let all = [&together[..], &later[..]].concat();
        let count = if all.len() > one.len() { 2 } else { 1 };
        way.add(Addition { marker, together, later });
        assert_eq!(kinds(&client.query(&format!("SELECT '{marker}'")).await), "TDCZ", "{marker}");
        let mut seen = Vec::new();
        for _ in 0..at_once {
            seen.push(client.read().await);
        }
        way.go_on.notify_one();
        for _ in at_once..count {
            seen.push(client.read().await);
        }
        let whole: Vec<u8> = seen.iter().flat_map(|it| frame(it.kind, &it.body)).collect();
        assert_eq!(whole, all, "{marker}");
        assert_eq!(kinds(&client.query("SELECT 1").await), "TDCZ", "{marker}");
    }
}

/// G08, P11: from the server itself, to the client that listens and to nobody else.
#[tokio::test]
async fn notifications_reach_who_listens_while_idle_and_while_busy() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let mut client = listening(&proxy).await;
    let mut other = proxy.raw_logged_in().await;
    direct.batch_execute("NOTIFY news, 'idle'").await.unwrap();
    let message = client.read().await;
    assert!(message.kind == b'A' && message.body.ends_with(b"news\0idle\0"), "{message:?}");
    // At any moment around the end of a statement: each comes once, before the next statement or with it.
    for round in 0..100 {
        client.send(&query("SELECT 1")).await;
        direct.batch_execute(&format!("NOTIFY news, 'round {round}'")).await.unwrap();
        let mut seen = client.read_until(b'Z').await;
        if !kinds(&seen).contains('A') {
            seen.push(client.read().await);
        }
        assert_eq!(kinds(&seen).replace('A', ""), "TDCZ", "{seen:?}");
        let news: Vec<_> = seen.iter().filter(|message| message.kind == b'A').collect();
        assert!(news.len() == 1 && news[0].body.ends_with(format!("round {round}\0").as_bytes()), "{seen:?}");
    }
    let mut own = listening(&proxy).await;
    assert_eq!(kinds(&own.query("NOTIFY news, 'own'").await).replace('A', ""), "CZ");
    assert_eq!(kinds(&other.query("SELECT 1").await), "TDCZ");
}

/// Clients tell their own notifications from others' by the process id of their login.
#[tokio::test]
async fn its_own_notifications_come_from_the_process_that_the_client_knows() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let direct = sandbox.connect(0).await.unwrap();
    let (mut client, own) = logged_in(&proxy).await;
    client.query("LISTEN news").await;
    // With the answer; while the server is asked for the session's state afterwards; and in one message with it.
    for sql in [
        "NOTIFY news",
        "SELECT pg_notify('news', 'x')",
        "DO $$BEGIN NOTIFY news; END$$",
        "SELECT 1; NOTIFY news",
    ] {
        let mut seen = client.query(sql).await;
        if !kinds(&seen).contains('A') {
            seen.push(client.read().await);
        }
        let news: Vec<_> = seen.iter().filter(|message| message.kind == b'A').collect();
        assert!(news.len() == 1 && news[0].body.starts_with(&own), "{sql}: {seen:?}");
    }
    let server = direct.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get::<_, i32>(0);
    direct.batch_execute("NOTIFY news").await.unwrap();
    let message = client.read().await;
    assert!(message.kind == b'A' && message.body.starts_with(&server.to_be_bytes()), "{message:?}");
}

/// Clients tell who sent a notification by the process id of the sender's login, on whichever server connection it was sent.
#[tokio::test]
async fn others_notifications_come_from_the_process_of_their_senders_login() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut client = listening(&proxy).await;
    let (mut one, one_is) = logged_in(&proxy).await;
    let (mut two, two_is) = logged_in(&proxy).await;
    assert!(errors(&one.query("CREATE TABLE told (id int)").await).is_empty());
    let notes =
        "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN NOTIFY news; RETURN NULL; END$$";
    assert!(errors(&one.query(notes).await).is_empty());
    let trigger = "CREATE TRIGGER note AFTER INSERT ON told EXECUTE FUNCTION note()";
    assert!(errors(&one.query(trigger).await).is_empty());
    for sql in [
        "NOTIFY news",
        "SELECT pg_notify('news', '')",
        "INSERT INTO told VALUES (1)",
        "BEGIN; NOTIFY news; COMMIT",
    ] {
        for (sender, is) in [(&mut one, &one_is), (&mut two, &two_is)] {
            assert!(errors(&sender.query(sql).await).is_empty(), "{sql}");
            let message = client.read().await;
            assert!(message.kind == b'A' && message.body.starts_with(is), "{sql}: {message:?}");
        }
    }
}

/// Who has asked the server for its process id compares with that.
#[tokio::test]
async fn notifications_come_from_the_process_that_the_client_has_asked_for() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    let mut other = listening(&proxy).await;
    let (mut client, _) = logged_in(&proxy).await;
    let answer = client.query("SELECT pg_backend_pid()").await;
    let row = answer.iter().find(|message| message.kind == b'D').unwrap();
    let server: i32 = std::str::from_utf8(&row.body[6..]).unwrap().parse().unwrap();
    client.query("LISTEN news").await;
    let mut seen = client.query("NOTIFY news").await;
    if !kinds(&seen).contains('A') {
        seen.push(client.read().await);
    }
    seen.push(other.read().await);
    let news: Vec<_> = seen.iter().filter(|message| message.kind == b'A').collect();
    assert_eq!(news.len(), 2, "{seen:?}");
    assert!(news.iter().all(|message| message.body.starts_with(&server.to_be_bytes())), "{server} {news:?}");
}

/// A client, and the process id of its login as it stands in notifications.
async fn logged_in(proxy: &Running) -> (RawClient, Vec<u8>) {
    let mut client = proxy.raw().await;
    let welcome = client.log_in("postgres", "postgres").await;
    let key = welcome.iter().find(|message| message.kind == b'K').unwrap();
    let process_id = key.body[..4].to_vec();
    (client, process_id)
}
