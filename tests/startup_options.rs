//! The startup packet, above all its `options`: through pgsteer as directly, message by message.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use pgsteer::sandbox::{Auth, Node, Sandbox};
use running::{Message, PROTOCOL_3_0, RawClient, Running, startup};
use tokio::net::TcpStream;

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

/// What a client sets, and how it goes back: what it is told is news to it, and comes once.
const RESETS: &[&[&str]] = &[
    &["SET application_name = 'b'", "RESET ALL"],
    &["SET application_name = 'b'", "RESET application_name"],
    &["SET application_name = 'b'", "SET application_name TO DEFAULT"],
    &["SET application_name = 'b'", "DISCARD ALL"],
    &["SET DateStyle = 'ISO, DMY'; SET TimeZone = 'UTC'", "RESET ALL", "RESET ALL"],
    &["RESET ALL"],
    &["DISCARD ALL"],
    &["SET TimeZone = 'UTC'", "RESET TimeZone; SELECT 1"],
    &["BEGIN", "SET application_name = 'b'", "RESET ALL", "SELECT 1", "ROLLBACK"],
    &["BEGIN", "SET LOCAL application_name = 'b'", "SET LOCAL application_name TO DEFAULT", "COMMIT"],
    &["SET application_name = 'b'", "BEGIN", "RESET application_name", "SELECT 1", "COMMIT"],
    &[
        "SET application_name = 'b'",
        "BEGIN; RESET ALL",
        "SAVEPOINT a",
        "SET TimeZone = 'UTC'",
        "ROLLBACK TO a",
        "COMMIT",
    ],
];

#[tokio::test]
async fn a_reset_tells_what_is_news_and_once() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--shards", "1", "--pool-size", "1"]).await;
    let packets: [&[(&str, &str)]; 3] = [
        &[],
        &[("application_name", "a"), ("TimeZone", "Asia/Tokyo"), ("DateStyle", "German")],
        &[("options", "-c application_name=a -c TimeZone=CET -c work_mem=5MB")],
    ];
    let mut other = proxy.raw_logged_in().await;
    for packet in packets {
        let packet = [&[("user", "postgres"), ("database", "postgres")], packet].concat();
        for play in RESETS {
            for extended in [false, true] {
                let mut direct = connect(sandbox.node(0)).await;
                let mut through = proxy.raw().await;
                direct.log_in_with(&packet).await;
                through.log_in_with(&packet).await;
                let mut between = true;
                for sql in *play {
                    if between {
                        other.query("SET application_name = 'other'").await;
                    }
                    let parts: Vec<&str> = if extended { sql.split("; ").collect() } else { vec![sql] };
                    for sql in parts {
                        let right = told(&mut direct, sql, extended).await;
                        between = running::status(&right) == 'I';
                        assert_eq!(
                            told(&mut through, sql, extended).await,
                            right,
                            "{packet:?} {play:?} {sql} {extended}"
                        );
                    }
                }
            }
        }
    }
}

/// The answer. In which order parameters are told is nobody's promise.
async fn told(client: &mut RawClient, sql: &str, extended: bool) -> Vec<Message> {
    let mut answer = if extended {
        client.extended(&[running::parse("", sql), running::bind("", "", &[]), running::execute("")]).await
    } else {
        client.query(sql).await
    };
    for told in answer.chunk_by_mut(|one, next| one.kind == next.kind) {
        if told[0].kind == b'S' {
            told.sort_by(|one, other| one.body.cmp(&other.body));
        }
    }
    answer
}
