//! Messages that no driver sends: what PostgreSQL says to them, pgsteer says; where a message can't be passed on, it ends its
//! sender's connection with 08P01. Memory stays bounded, and nobody else notices.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::net::{Ipv4Addr, SocketAddr};

use pgsteer::sandbox::{Auth, Sandbox};
use running::{
    Message, RawClient, Running, bind, errors, execute, frame, in_time, kinds, parse, query, sync, values,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A name of a function, by which its OID is found.
const ABS: &str = "pg_catalog.abs(int4)";
const DIVIDE: &str = "pg_catalog.int4div(int4, int4)";

/// What is told otherwise than by PostgreSQL, and why.
const DIFFERENT: [(&str, &str); 2] = [
    ("a name that is not UTF-8", "statements have pgsteer's own names on the servers"),
    ("an unknown message in a batch", "the batch has not been sent yet: nothing before it is answered"),
];

async fn start(args: &[&str]) -> (Sandbox, Running) {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let args = [&["--auth", "trust", "--shards", "1"], args].concat();
    let proxy = Running::start(&sandbox, &args).await;
    (sandbox, proxy)
}

/// What came back, as text; of errors what does not depend on the version's source files.
fn told(messages: &[Message]) -> Vec<String> {
    messages
        .iter()
        .filter(|message| message.kind != b'S')
        .map(|message| match message.kind {
            b'E' | b'N' => {
                let field = |code| message.field(code).unwrap_or_default();
                let text = field(b'M');
                // Whose words they are is all that differs.
                let text = text.strip_prefix("pgsteer: ").unwrap_or(&text);
                format!("{} {} {text}", field(b'S'), field(b'C'))
            }
            kind => format!("{} {}", char::from(kind), message.body.escape_ascii()),
        })
        .collect()
}

/// Sends some messages, Sync, a query and Terminate to a fresh session, all at once; gives all that is told.
async fn conversation(mut client: RawClient, messages: &[Vec<u8>]) -> Vec<String> {
    let end = [sync(), query("SELECT 'the end'"), frame(b'X', b"")];
    client.send(&[messages, &end].concat().concat()).await;
    told(&client.read_to_end().await)
}

fn function_call(oid: u32, formats: &[u16], arguments: &[Option<&[u8]>], result: u16) -> Vec<u8> {
    let count = |count: usize| u16::try_from(count).unwrap().to_be_bytes();
    let mut body = oid.to_be_bytes().to_vec();
    body.extend_from_slice(&count(formats.len()));
    formats.iter().for_each(|format| body.extend_from_slice(&format.to_be_bytes()));
    body.extend_from_slice(&count(arguments.len()));
    for argument in arguments {
        match argument {
            Some(value) => {
                body.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
                body.extend_from_slice(value);
            }
            None => body.extend_from_slice(&u32::MAX.to_be_bytes()),
        }
    }
    body.extend_from_slice(&result.to_be_bytes());
    frame(b'F', &body)
}

async fn oid(sandbox: &Sandbox, function: &str) -> u32 {
    let mut direct = RawClient::direct(sandbox.node(0)).await;
    let found = direct.query(&format!("SELECT '{function}'::regprocedure::oid")).await;
    values(&found).concat().parse().unwrap()
}

async fn same(sandbox: &Sandbox, proxy: &Running, cases: &[(&str, Vec<Vec<u8>>)]) {
    let mut differences = Vec::new();
    for (what, messages) in cases {
        let direct = conversation(RawClient::direct(sandbox.node(0)).await, messages).await;
        let through = conversation(proxy.raw_logged_in().await, messages).await;
        if DIFFERENT.iter().any(|(known, _)| known == what) {
            assert_ne!(direct, through, "{what} is different no more");
        } else if direct != through {
            differences.push(format!("{what}\n  PostgreSQL: {direct:?}\n  pgsteer:    {through:?}"));
        }
    }
    assert!(differences.is_empty(), "\n{}", differences.join("\n"));
}

#[tokio::test]
async fn function_calls_are_those_of_the_server() {
    let (sandbox, proxy) = start(&[]).await;
    let (abs, divide) = (oid(&sandbox, ABS).await, oid(&sandbox, DIVIDE).await);
    let set_config = oid(&sandbox, "pg_catalog.set_config(text, text, bool)").await;
    let text =
        |values: &[&'static str]| values.iter().map(|value| Some(value.as_bytes())).collect::<Vec<_>>();
    let call = |oid, arguments: &[&'static str]| function_call(oid, &[], &text(arguments), 0);
    let five = call(abs, &["-5"]);
    let by_zero = call(divide, &["1", "0"]);
    let named = call(set_config, &["application_name", "by a call", "f"]);
    let cases = [
        ("a call", vec![five.clone()]),
        ("binary", vec![function_call(abs, &[1], &[Some(&(-5i32).to_be_bytes())], 1)]),
        ("a format for each", vec![function_call(divide, &[0, 1], &[Some(b"7"), Some(&[0, 0, 0, 2])], 0)]),
        ("NULL to a strict function", vec![function_call(abs, &[], &[None], 0)]),
        ("no such function", vec![call(4_000_000_000, &["1"])]),
        ("too few arguments", vec![call(divide, &["1"])]),
        ("too many formats", vec![function_call(abs, &[0, 0], &text(&["1"]), 0)]),
        ("no such format", vec![function_call(abs, &[7], &text(&["1"]), 0)]),
        ("not a number", vec![call(abs, &["x"])]),
        ("binary of the wrong length", vec![function_call(abs, &[1], &text(&["x"]), 0)]),
        ("an error", vec![by_zero.clone()]),
        ("one after an error", vec![by_zero.clone(), five.clone()]),
        ("in a transaction", vec![query("BEGIN"), five.clone(), query("COMMIT")]),
        (
            "its error in a transaction",
            vec![query("BEGIN"), by_zero.clone(), five.clone(), query("ROLLBACK")],
        ),
        ("in a failed transaction", vec![query("BEGIN"), query("SELECT 1/0"), five.clone(), query("COMMIT")]),
        ("in a failed transaction that is left", vec![query("BEGIN"), query("SELECT 1/0"), five.clone()]),
        ("a setting", vec![named.clone(), query("SHOW application_name")]),
        (
            "a setting that is rolled back",
            vec![query("BEGIN"), named, query("ROLLBACK"), query("SHOW application_name")],
        ),
        ("cut short", vec![frame(b'F', &abs.to_be_bytes())]),
        ("empty", vec![frame(b'F', b"")]),
        ("something behind", vec![frame(b'F', &[&five[5..], b"x"].concat())]),
        ("behind a failed batch", vec![parse("", "SELEKT"), five.clone(), sync(), five]),
    ];
    same(&sandbox, &proxy, &cases).await;
}

fn c_strings(strings: &[&[u8]]) -> Vec<u8> {
    strings.iter().flat_map(|string| [string, &b"\0"[..]].concat()).collect()
}

#[tokio::test]
async fn malformed_messages_get_the_servers_own_errors() {
    let (sandbox, proxy) = start(&[]).await;
    let good = || vec![parse("", "SELECT $1::text"), bind("", "", &["v"]), execute("")];
    let bound = |body: &[u8]| vec![parse("", "SELECT $1::text"), frame(b'B', body), execute("")];
    let cases = [
        ("all well", good()),
        ("Query without an end", vec![frame(b'Q', b"SELECT 1")]),
        ("Query of nothing at all", vec![frame(b'Q', b"")]),
        ("Query with NUL inside", vec![frame(b'Q', b"SELECT 1\0;SELECT 2\0")]),
        ("Query that is not UTF-8", vec![frame(b'Q', b"SELECT '\xff'\0")]),
        ("Query that ends inside a character", vec![frame(b'Q', b"SELECT '\xc3\0")]),
        ("Parse without an end", vec![frame(b'P', b"\0SELECT 1")]),
        ("Parse without types", vec![frame(b'P', b"\0SELECT 1\0")]),
        ("Parse with too few types", vec![frame(b'P', b"\0SELECT 1\0\0\x02\0\0\0\x17")]),
        ("Parse with too much", vec![frame(b'P', b"\0SELECT 1\0\0\0x")]),
        ("Parse with negative types", vec![frame(b'P', b"\0SELECT 1\0\xff\xff")]),
        ("Parse that is not UTF-8", vec![frame(b'P', b"\0SELECT '\xff'\0\0\0")]),
        ("a name that is not UTF-8", vec![frame(b'P', b"\xff\0SELECT 1\0\0\0"), frame(b'D', b"S\xff\0")]),
        ("Parse of two statements", vec![parse("", "SELECT 1; SELECT 2")]),
        ("an unknown type", vec![frame(b'P', b"\0SELECT $1\0\0\x01\xff\xff\xff\xff")]),
        ("Bind to no statement", vec![bind("", "nowhere", &[]), execute("")]),
        ("Bind to no unnamed statement", vec![bind("", "", &[]), execute("")]),
        ("Bind of nothing", bound(b"")),
        ("Bind cut short", bound(b"\0\0\0\0\0\x01\0\0\0\x09v")),
        ("Bind with too few values", vec![parse("", "SELECT $1::text"), bind("", "", &[]), execute("")]),
        ("Bind with too many values", vec![parse("", "SELECT 1"), bind("", "", &["1"]), execute("")]),
        ("Bind with negative length", bound(b"\0\0\0\0\0\x01\xff\xff\xff\xfe\0\0")),
        ("Bind with negative count", bound(b"\0\0\0\0\xff\xff\0\0")),
        ("Bind with too many formats", bound(b"\0\0\0\x02\0\0\0\0\0\x01\0\0\0\x01v\0\0")),
        ("Bind with an unknown format", bound(b"\0\0\0\x01\0\x07\0\x01\0\0\0\x01v\0\0")),
        ("Bind with an unknown result format", bound(b"\0\0\0\0\0\x01\0\0\0\x01v\0\x01\0\x07")),
        ("Bind with too many result formats", bound(b"\0\0\0\0\0\x01\0\0\0\x01v\0\x02\0\0\0\0")),
        ("Bind with too much", bound(b"\0\0\0\0\0\x01\0\0\0\x01v\0\0x")),
        ("a value that is not UTF-8", bound(b"\0\0\0\0\0\x01\0\0\0\x01\xff\0\0")),
        ("a value with NUL inside", bound(b"\0\0\0\0\0\x01\0\0\0\x03a\0b\0\0")),
        ("Execute without Bind", vec![execute("")]),
        ("Execute of an unknown portal", vec![execute("nowhere")]),
        ("Execute without an end", vec![frame(b'E', b"\0")]),
        ("Execute with too much", [&good()[..2], &[frame(b'E', b"\0\0\0\0\0x")]].concat()),
        ("Execute of less than nothing", [&good()[..2], &[frame(b'E', b"\0\xff\xff\xff\xff")]].concat()),
        ("Describe of what", vec![frame(b'D', b"x\0")]),
        ("Describe of nothing", vec![frame(b'D', b"")]),
        ("Describe of an unknown statement", vec![frame(b'D', b"Snowhere\0")]),
        ("Describe of an unknown portal", vec![frame(b'D', b"Pnowhere\0")]),
        ("Describe with too much", vec![parse("", "SELECT 1"), frame(b'D', b"S\0x")]),
        ("Close of what", vec![frame(b'C', b"x\0")]),
        ("Close of nothing", vec![frame(b'C', b"")]),
        ("Close of the unknown", vec![frame(b'C', b"Snowhere\0"), frame(b'C', b"Pnowhere\0")]),
        ("Close with too much", vec![frame(b'C', b"S\0x")]),
        ("Sync with too much", vec![frame(b'S', b"x")]),
        ("Flush with too much", vec![frame(b'H', b"x")]),
        ("COPY data for nobody", vec![frame(b'd', b"x"), frame(b'c', b""), frame(b'f', b"why\0")]),
        (
            "a failed batch and a Query",
            vec![parse("", "SELEKT"), query("SELECT 1"), sync(), query("SELECT 2")],
        ),
        ("a portal after its transaction", vec![good()[0].clone(), good()[1].clone(), sync(), execute("")]),
        ("an unknown message", vec![frame(b'y', b"what")]),
        ("a password for nobody", vec![frame(b'p', b"secret\0")]),
        ("an unknown message in a batch", vec![parse("", "SELECT 1"), frame(b'y', b"")]),
        ("an unknown message in a transaction", vec![query("BEGIN"), query("SELECT 1"), frame(b'y', b"")]),
        ("two names of one statement", vec![parse("a", "SELECT 1"), parse("a", "SELECT 2")]),
        (
            "a portal twice",
            [&[parse("", "SELECT 1")][..], &[bind("p", "", &[]), bind("p", "", &[])]].concat(),
        ),
        ("strings", vec![frame(b'P', &c_strings(&[b"n", b"SELECT 1"]))]),
    ];
    same(&sandbox, &proxy, &cases).await;
}

/// A node that is reached through here: of the server's errors with the SQLSTATE P0042 the SQLSTATE becomes a field that nobody
/// knows.
async fn without_sqlstate(server: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let server = TcpStream::connect(server).await.unwrap();
                let (mut from_client, mut to_client) = client.into_split();
                let (mut from_server, mut to_server) = server.into_split();
                tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_server).await });
                let mut bytes = vec![0; 65_536];
                while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
                    let came = &mut bytes[..count];
                    if let Some(at) = came.windows(7).position(|window| window == b"CP0042\0") {
                        came[at] = b'q';
                    }
                    if to_client.write_all(came).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn an_error_without_sqlstate_is_passed_on() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let node = without_sqlstate(sandbox.node(0).address()).await;
    let proxy = Running::start_at(&[node], &sandbox, &["--auth", "trust", "--shards", "1"], &[]).await;
    let mut client = proxy.raw_logged_in().await;
    client
        .query(
            "CREATE FUNCTION fails() RETURNS int LANGUAGE plpgsql AS
             $$ BEGIN RAISE EXCEPTION 'no code' USING ERRCODE = 'P0042'; END $$",
        )
        .await;
    let fails = "SELECT fails()";
    let bare = |messages: &[Message]| {
        let error = messages.iter().find(|message| message.kind == b'E').unwrap();
        assert_eq!((error.field(b'C'), error.field(b'q')), (None, Some("P0042".to_owned())));
        assert_eq!(error.field(b'M').unwrap(), "no code");
        assert_eq!(messages.last().unwrap().kind, b'Z');
    };
    bare(&client.query(fails).await);
    bare(&client.extended(&[parse("", fails), bind("", "", &[]), execute("")]).await);
    client.query("BEGIN").await;
    bare(&client.query(fails).await);
    assert_eq!(errors(&client.query("SELECT 1").await), ["25P02"]);
    client.query("ROLLBACK").await;
    assert_eq!(values(&client.query("SELECT 2").await), ["2"]);
}

/// What has not come to its end yet holds no server, and the memory for it has a bound.
#[tokio::test]
async fn half_messages_and_silence_harm_nobody() {
    const CLIENTS: usize = 60;
    /// What a client's unit may take, with a buffer's worth of margin.
    const EACH_BYTES_MAX: u64 = 1_200_000;
    let (_sandbox, proxy) = start(&["--pool-size", "1"]).await;
    let witness = proxy.client().await;
    witness.batch_execute("SELECT 1").await.unwrap();
    let before = proxy.resident_bytes();
    let long = query(&format!("SELECT '{}'", "x".repeat(900_000)));
    // Whole messages without a Sync go on to the server after a while: this is half of the first.
    let first = parse("", "INSERT INTO nowhere VALUES ($1)");
    let values = frame(b'B', &[&b"\0\0\0\0\0\x01"[..], &900_000u32.to_be_bytes(), &[b'x'; 900_000]].concat());
    let halves = [
        b"Q".to_vec(),
        b"Q\0\0".to_vec(),
        query("SELECT 1")[..9].to_vec(),
        long[..800_000].to_vec(),
        first[..first.len() - 2].to_vec(),
        values[..800_000].to_vec(),
        // What is announced is nearly a gibibyte.
        b"Q\x3f\0\0\0".to_vec(),
        [&b"B\x3f\0\0\0\0"[..], &[b'x'; 400_000]].concat(),
    ];
    let mut silent = Vec::new();
    for number in 0..CLIENTS {
        let mut client = proxy.raw_logged_in().await;
        client.send(&halves[number % halves.len()]).await;
        silent.push(client);
    }
    for number in 0..20 {
        let values: [&(dyn tokio_postgres::types::ToSql + Sync); 1] = [&number];
        let row = in_time("a free server", witness.query_one("SELECT $1::int", &values)).await.unwrap();
        assert_eq!(row.get::<_, i32>(0), number);
    }
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < CLIENTS as u64 * EACH_BYTES_MAX, "{grown} bytes for {CLIENTS} clients");
    // Those that go on are served.
    let rest = &long[800_000..];
    silent[3].send(rest).await;
    assert_eq!(kinds(&silent[3].read_until(b'Z').await), "TDCZ");
}

/// All of one client's, and more than a server connection keeps.
#[tokio::test]
async fn ten_thousand_prepared_statements() {
    const STATEMENTS: usize = 10_000;
    /// For text, name and what is known of each.
    const EACH_BYTES_MAX: u64 = 4_000;
    let (_sandbox, proxy) = start(&["--pool-size", "2"]).await;
    let mut client = proxy.raw_logged_in().await;
    client.query("SELECT 1").await;
    let before = proxy.resident_bytes();
    let name = |number: usize| format!("s{number}");
    for first in (0..STATEMENTS).step_by(500) {
        let batch: Vec<_> =
            (first..first + 500).map(|number| parse(&name(number), &format!("SELECT {number}"))).collect();
        assert_eq!(errors(&client.extended(&batch).await), [""; 0]);
    }
    let grown = proxy.resident_bytes().saturating_sub(before);
    assert!(grown < STATEMENTS as u64 * EACH_BYTES_MAX, "{grown} bytes for {STATEMENTS} statements");
    for number in [0, 1, STATEMENTS / 2, STATEMENTS - 1, 0] {
        let answer = client.extended(&[bind("", &name(number), &[]), execute("")]).await;
        assert_eq!(values(&answer), [number.to_string()], "{answer:?}");
    }
    let kept = client.query("SELECT count(*) FROM pg_prepared_statements").await;
    assert_eq!(values(&kept), [STATEMENTS.to_string()], "its own, as without pgsteer");
    // Another client has none of them.
    let mut other = proxy.raw_logged_in().await;
    assert_eq!(errors(&other.extended(&[bind("", &name(0), &[]), execute("")]).await), ["26000"]);
}

/// The largest Bind there can be, in pieces; gives the answer. `between` is called after each piece.
async fn bind_a_gibibyte(client: &mut RawClient, between: impl Fn()) -> Vec<String> {
    /// PostgreSQL's limit of a message, less than what stands around the value in this one.
    const VALUE_BYTES: usize = 0x3fff_ffff - 64;
    const PIECE: &[u8] = &[b'x'; 1 << 20];
    let head = b"\0\0\0\x01\0\x01\0\x01";
    let tail = b"\0\0";
    let length = u32::try_from(4 + head.len() + 4 + VALUE_BYTES + tail.len()).unwrap();
    client.send(&parse("", "SELECT length($1::bytea)")).await;
    client.send(&[b"B", &length.to_be_bytes()[..], head].concat()).await;
    client.send(&u32::try_from(VALUE_BYTES).unwrap().to_be_bytes()).await;
    let mut left = VALUE_BYTES;
    while left > 0 {
        let piece = &PIECE[..left.min(PIECE.len())];
        client.send(piece).await;
        left -= piece.len();
        between();
    }
    client.send(&[&tail[..], &execute(""), &sync()].concat()).await;
    told(&client.read_until(b'Z').await)
}

/// It passes through; only PostgreSQL has it in memory.
#[tokio::test]
async fn a_bind_of_a_gibibyte_is_not_collected() {
    const GROWTH_BYTES_MAX: u64 = 16 << 20;
    let (sandbox, proxy) = start(&[]).await;
    let mut client = proxy.raw_logged_in().await;
    client.query("SELECT 1").await;
    let before = proxy.resident_bytes();
    let through = bind_a_gibibyte(&mut client, || {
        let grown = proxy.resident_bytes().saturating_sub(before);
        assert!(grown < GROWTH_BYTES_MAX, "{grown} bytes more");
    })
    .await;
    assert_eq!(through, bind_a_gibibyte(&mut RawClient::direct(sandbox.node(0)).await, || {}).await);
    assert!(through.iter().any(|message| message.ends_with("1073741759")), "{through:?}");
    assert_eq!(values(&client.query("SELECT 1").await), ["1"]);
}
