//! The startup packet, above all its `options`: through pgsteer as directly, message by message.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Node, Sandbox};
use running::{Message, RawClient, Running, startup};
use tokio::net::TcpStream;

const PROTOCOL_3_0: i32 = 196_608;

const SETTINGS: &str = "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings \
    WHERE name ~ '^(enable_|log_.*stats|log_min_mess|log_statement$|debug_print|work_mem|DateStyle|allow_sys)'";

async fn connect(node: &Node) -> RawClient {
    RawClient { stream: TcpStream::connect(node.address()).await.unwrap() }
}

/// The answer to a startup packet: what was said and, where the client is in, what was set by it.
async fn answer(mut client: RawClient, user: &str, parameters: &[(&str, &str)]) -> Vec<String> {
    client
        .send(&startup(PROTOCOL_3_0, &[&[("user", user), ("database", "postgres")], parameters].concat()))
        .await;
    let mut said = Vec::new();
    while let Some(message) = client.try_read().await {
        let kind = message.kind;
        match kind {
            b'S' | b'K' | b'N' => {}
            b'E' => said.push(shown(&message)),
            _ => said.push(format!("{message:?}")),
        }
        if kind == b'Z' {
            said.extend(running::values(&client.query(SETTINGS).await));
            return said;
        }
    }
    said
}

fn shown(error: &Message) -> String {
    b"SVCMDH".iter().map(|field| format!("{} ", error.field(*field).unwrap_or_default())).collect()
}

#[tokio::test]
async fn startup_options_are_taken_as_postgresql_takes_them() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    sandbox.connect(0).await.unwrap().batch_execute("CREATE ROLE ann LOGIN").await.unwrap();
    // One fault each: of several PostgreSQL tells the first, pgsteer its own before the server's.
    let options = [
        "-c work_mem=1MB",
        "--work-mem=3MB -S 1024",
        "-e",
        "-fs -fi -f n -fmx -fo -fb -ft -fh",
        "-s",
        "-tpa",
        "-t pl",
        "-te",
        "-d 3",
        "-d5 -d x",
        "-O",
        "-B 100",
        "-F",
        "-i",
        "-l",
        "-N 10 -p 1",
        "-h x",
        "-bEjT -C x -Dx -rx -v3",
        "--",
        "nonsense",
        "-x",
        "-xs",
        "-b -xs",
        "-c",
        "-c x",
        "--x",
        "-c =1",
        "-c a;b=1",
        "-c nosuch=1",
        "-c work_mem=x",
        "-c user=postgres",
        "--Database=template1",
        "-c options=x",
        "-f x",
        "-tq",
        "-- a",
        "\\",
        "-c work_mem=2MB\\",
    ];
    for user in ["postgres", "ann"] {
        for text in options {
            let direct = answer(connect(sandbox.node(0)).await, user, &[("options", text)]).await;
            let through = answer(proxy.raw().await, user, &[("options", text)]).await;
            assert_eq!(through, direct, "{user}: {text:?}");
        }
        // Not options, but taken or refused at the same time.
        for parameters in [
            [("User", "postgres"), ("work_mem", "1MB")],
            [("nosuch", "1"), ("work_mem", "1MB")],
            [("database", "nowhere"), ("work_mem", "1MB")],
            [("work_mem", "2MB"), ("options", "-S 1024")],
        ] {
            let direct = answer(connect(sandbox.node(0)).await, user, &parameters).await;
            assert_eq!(answer(proxy.raw().await, user, &parameters).await, direct, "{parameters:?}");
        }
    }
    // Refused behind AuthenticationOk, too.
    let direct = answer(connect(sandbox.node(0)).await, "nobody", &[]).await;
    assert_eq!(answer(proxy.raw().await, "nobody", &[]).await, direct);
    assert_eq!(direct.len(), 2);
}
