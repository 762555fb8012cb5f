//! Each script of raw messages is answered through pgsteer as PostgreSQL itself answers it, message by message.
//!
//! Invariant: what differs stands in [`KNOWN`] with its reason, and what stands there differs.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;
#[path = "parity/transcript.rs"]
mod transcript;

use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

use pgsteer::sandbox::{Auth, Sandbox};
use running::{Message, RawClient, Running, eventually};
use transcript::{PATIENCE, SILENCE};

/// A difference that is accepted: the first line of the answer that differs.
struct Known {
    script: &'static str,
    direct: &'static str,
    through: &'static str,
    reason: &'static str,
}

const KNOWN: &[Known] = &[
    Known {
        script: "execute behind a rollback in one query",
        direct: r#"T ?column?(0.0 23 4 -1 0)"#,
        through: r#"E S=ERROR V=ERROR C=26000 M=prepared statement \"s\" does not exist"#,
        reason: "in a failed block nothing can be prepared under the client's names, and the text goes to the server whole",
    },
    Known {
        script: "a chained read only block is made writable",
        direct: r#"C SET\x00"#,
        through: r#"E S=ERROR V=ERROR C=0A000 M=cannot set transaction read-write mode during recovery"#,
        reason: "the chained transaction is on the standby of the first",
    },
    Known {
        script: "a sequence in a read only block on a standby",
        direct: r#"E S=ERROR V=ERROR C=42P01 M=relation \"pg_catalog.nothing\" does not exist P=16"#,
        through: r#"E S=ERROR V=ERROR C=25006 M=pgsteer: this READ ONLY transaction runs on a standby, which can\'t keep session state (sequence) H=Begin it with /* pgsteer: target=primary */, or set the state outside of the transaction. W=PL/pgSQL function inline_code_block line 1 at RAISE"#,
        reason: "a standby keeps no session state (README, SQLSTATEs)",
    },
    Known {
        script: "invalid name of a statement",
        direct: r#"E S=ERROR V=ERROR C=22021 M=invalid byte sequence for encoding \"UTF8\": 0xff"#,
        through: "1 ",
        reason: "names of statements do not reach the server and may be any bytes",
    },
    Known {
        script: "unknown message",
        direct: "E S=FATAL V=FATAL C=08P01 M=invalid frontend message type 121",
        through: r#"E S=FATAL V=FATAL C=08P01 M=pgsteer: invalid frontend message type 121 H=The connection is closed because the messages after this one can\'t be told apart."#,
        reason: "it is pgsteer that refuses it, and says so",
    },
];

/// The proxies through which each script runs. Where a standby or another connection answers is a matter of each: a known
/// difference must be seen through one of them.
const MODES: [&str; 3] = ["default", "one connection", "with another client"];

/// What scripts may use without making it. Nothing of it is ever changed.
const FIXTURE: &str = "
    CREATE ROLE parity_other;
    CREATE SCHEMA fix;
    GRANT USAGE ON SCHEMA fix TO parity_other;
    CREATE TABLE fix.numbers (n int PRIMARY KEY, word text NOT NULL);
    INSERT INTO fix.numbers SELECT n, 'word ' || n FROM generate_series(1, 10) AS n;
    CREATE TYPE fix.mood AS ENUM ('good', 'bad');
    CREATE DOMAIN fix.positive AS int CONSTRAINT is_positive CHECK (VALUE > 0);
    CREATE FUNCTION fix.fails(what text) RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION 'it fails: %', what USING ERRCODE = 'P0042', DETAIL = 'the detail', HINT = 'the hint',
                COLUMN = 'a_column', CONSTRAINT = 'a_constraint', DATATYPE = 'a_type', TABLE = 'a_table', SCHEMA = 'a_schema';
        END $$;
    CREATE FUNCTION fix.notices() RETURNS int LANGUAGE plpgsql AS $$
        BEGIN
            RAISE DEBUG 'a debug';
            RAISE LOG 'a log';
            RAISE INFO 'an info';
            RAISE NOTICE 'a notice' USING HINT = 'nothing to do';
            RAISE WARNING 'a warning' USING ERRCODE = '01042';
            RETURN 1;
        END $$;
    CREATE PROCEDURE fix.commits(INOUT total int) LANGUAGE plpgsql AS $$
        BEGIN
            COMMIT;
            total := total + 1;
            ROLLBACK;
            total := total + 1;
        END $$;
";

struct Script {
    name: String,
    lines: Vec<String>,
}

fn scripts() -> Vec<Script> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/parity");
    let mut files: Vec<_> = std::fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "script"))
        .collect();
    files.sort();
    let mut scripts: Vec<Script> = Vec::new();
    for file in files {
        for line in std::fs::read_to_string(&file).unwrap().lines() {
            if let Some(name) = line.strip_prefix("== ") {
                assert!(scripts.iter().all(|script| script.name != name), "{name} is there twice");
                scripts.push(Script { name: name.to_owned(), lines: Vec::new() });
            } else if !line.is_empty() && !line.starts_with('#') {
                scripts.last_mut().expect("a name before the first line").lines.push(line.to_owned());
            }
        }
    }
    scripts
}

/// All answers; `other` uses the same connections in between. At the end one Sync must bring one ReadyForQuery and nothing else, unless the connection ended.
async fn transcript(
    client: &mut RawClient,
    script: &Script,
    patience: Duration,
    mut other: Option<&mut RawClient>,
) -> Vec<String> {
    let mut lines = Vec::new();
    for line in script.lines.iter().map(String::as_str).chain(["S"]) {
        lines.push(format!("> {line}"));
        let answer = transcript::step(client, line, patience).await;
        let over = answer.last().is_some_and(|last| last.starts_with('('));
        lines.extend(answer);
        if over {
            break;
        }
        if let Some(other) = &mut other {
            other.query("SELECT 'other'").await;
            other.query("/* pgsteer: target=primary */ SELECT 'other'").await;
        }
    }
    lines
}

/// The first lines that are not equal, with the line of the script before.
fn difference<'a>(direct: &'a [String], through: &'a [String]) -> Option<(&'a str, &'a str, &'a str)> {
    let at = |lines: &'a [String], index: usize| lines.get(index).map_or("(nothing)", String::as_str);
    let index =
        (0..direct.len().max(through.len())).find(|index| direct.get(*index) != through.get(*index))?;
    let step = direct[..index.min(direct.len())].iter().rfind(|line| line.starts_with("> "))?;
    Some((step, at(direct, index), at(through, index)))
}

/// What is wrong with the differences of one script, one for each proxy: each must be as the table has it, if there is one.
fn judge(name: &str, differences: &[Option<(&str, &str, &str)>]) -> String {
    let known = KNOWN.iter().find(|known| known.script == name);
    let mut complaints = String::new();
    for ((step, direct, through), mode) in
        differences.iter().zip(MODES).filter_map(|(difference, mode)| Some(((*difference)?, mode)))
    {
        if known.is_none_or(|known| direct != known.direct || through != known.through) {
            writeln!(complaints, "{name} ({mode}): {step}\n  direct:  {direct}\n  through: {through}")
                .unwrap();
        }
    }
    // Whether a read meets a standby is not the script's to say: what differs there need not do so each time.
    let by_chance = known.is_some_and(|known| known.reason.contains("standby"));
    if let (Some(known), true, false) = (known, differences.iter().all(Option::is_none), by_chance) {
        writeln!(complaints, "{name}: no longer differs, so KNOWN must not have it: {}", known.reason)
            .unwrap();
    }
    complaints
}

/// What a session is told at its login, in the order of names.
fn login(mut messages: Vec<Message>) -> Vec<String> {
    messages.retain(|message| message.kind == b'S');
    let mut lines: Vec<String> = messages.iter().map(|message| format!("{message:?}")).collect();
    lines.sort();
    lines
}

#[tokio::test]
async fn every_script_is_answered_as_by_postgresql() {
    let sandbox = Sandbox::builder()
        .standbys(2)
        .auth(Auth::Trust)
        .setting("max_prepared_transactions", "5")
        .start()
        .await
        .unwrap();
    let mut admin = RawClient::direct(sandbox.primary()).await;
    let made = admin.query(FIXTURE).await;
    assert!(made.iter().all(|message| message.kind != b'E'), "{made:?}");
    for node in sandbox.nodes() {
        let mut client = RawClient::direct(node).await;
        eventually("the fixture is everywhere", async || {
            let answer = client.query("SELECT to_regprocedure('fix.commits(int)') IS NOT NULL").await;
            running::values(&answer) == ["t"]
        })
        .await;
    }
    let proxies = [
        Running::start(&sandbox, &["--auth", "trust"]).await,
        Running::start(&sandbox, &["--auth", "trust", "--shards", "1", "--pool-size", "1"]).await,
        Running::start(&sandbox, &["--auth", "trust", "--shards", "1", "--pool-size", "2"]).await,
    ];
    // Has other settings, and uses the connections in between.
    let mut other = proxies[2].raw_logged_in().await;
    other.query("SET work_mem = '9MB'").await;
    let mut complaints = String::new();
    let scripts = scripts();
    for known in KNOWN {
        assert!(scripts.iter().any(|script| script.name == known.script), "no script: {}", known.script);
    }
    let only = std::env::var("PGSTEER_SCRIPT").ok();
    for script in scripts.iter().filter(|script| only.as_ref().is_none_or(|only| *only == script.name)) {
        let mut direct = RawClient::direct(sandbox.primary()).await;
        let expected = transcript(&mut direct, script, PATIENCE, None).await;
        if only.is_some() {
            println!("{}", expected.join("\n"));
        }
        drop(direct);
        let mut answers = Vec::new();
        for (proxy, mode) in proxies.iter().zip(MODES) {
            renew(&mut admin).await;
            let mut client = proxy.raw_logged_in().await;
            // What is known not to come is not waited for long.
            let silent = KNOWN.iter().any(|known| known.script == script.name && known.through == SILENCE);
            let patience = if silent { Duration::from_secs(1) } else { PATIENCE };
            let between = (mode == "with another client").then_some(&mut other);
            answers.push(transcript(&mut client, script, patience, between).await);
        }
        let differences: Vec<_> = answers.iter().map(|got| difference(&expected, got)).collect();
        complaints.push_str(&judge(&script.name, &differences));
        renew(&mut admin).await;
        if expected.iter().any(|line| line == SILENCE) {
            writeln!(complaints, "{}: waits for what PostgreSQL does not send", script.name).unwrap();
        }
    }
    assert!(complaints.is_empty(), "\n{complaints}");
    println!("{} scripts", scripts.len());
}

/// What a script has made is gone before the next run.
async fn renew(admin: &mut RawClient) {
    let clients = "SELECT count(*) FROM pg_locks WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
        AND pid <> pg_backend_pid()";
    eventually("no script holds a lock", async || running::values(&admin.query(clients).await) == ["0"])
        .await;
    let answer = admin
        .query("SET client_min_messages = error; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
        .await;
    assert!(answer.iter().all(|message| message.kind != b'E'), "{answer:?}");
}

#[tokio::test]
async fn a_login_is_told_the_same_parameters() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust"]).await;
    for further in [
        &[][..],
        &[("application_name", "parity"), ("TimeZone", "Asia/Tokyo"), ("DateStyle", "German")],
        &[("options", "-c work_mem=5MB --search_path=fix,public"), ("client_encoding", "LATIN1")],
    ] {
        let parameters = [&[("user", "postgres"), ("database", "postgres")], further].concat();
        let mut direct =
            RawClient { stream: tokio::net::TcpStream::connect(sandbox.primary().address()).await.unwrap() };
        let expected = login(direct.log_in_with(&parameters).await);
        let mut client = proxy.raw().await;
        assert_eq!(login(client.log_in_with(&parameters).await), expected, "{further:?}");
    }
}

#[test]
fn a_difference_must_be_in_the_table_and_nothing_else() {
    let lines = |text: &str| text.split(';').map(str::to_owned).collect::<Vec<_>>();
    let (direct, through) = (lines("> Q x;C SET;Z I"), lines("> Q x;C SET;Z T"));
    assert_eq!(difference(&direct, &direct), None);
    assert_eq!(difference(&direct, &through), Some(("> Q x", "Z I", "Z T")));
    assert_eq!(difference(&direct, &direct[..2]), Some(("> Q x", "Z I", "(nothing)")));
    assert_eq!(judge("none", &[None, None]), "");
    assert_ne!(judge("none", &[None, difference(&direct, &through)]), "");
    for known in KNOWN {
        let as_known = Some(("", known.direct, known.through));
        assert_eq!(judge(known.script, &[None, as_known]), "");
        let vanished = judge(known.script, &[None, None]);
        assert_eq!(vanished.is_empty(), known.reason.contains("standby"), "{}", known.script);
        assert_ne!(judge(known.script, &[as_known, Some(("", known.direct, "other"))]), "");
        assert!(!known.reason.is_empty());
    }
}
