//! The admin console: a database that is none, for the users of `admin.console_users`, by the simple protocol.
//!
//! Invariant: commands are carried out on the control thread, and no server is asked anything; the shard only carries bytes, of
//! bounded number. Without users there is no console, and no database is hidden. Must not know: how the answers come about.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};

use crate::admin::Status;
use crate::admin::console::{self, Command, ParseError, Subject, Table};
use crate::config::Admin;
use crate::net;
use crate::session::control::Control;
use crate::session::outcome;
use crate::session::shard::Shard;
use crate::wire::frame::{self, HEADER_BYTES};
use crate::wire::reply::{self, Report, TransactionStatus};
use crate::wire::sqlstate as state;

/// The longest message that a client of the console may send.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Commands on their way to the control thread.
const REQUESTS_QUEUED: usize = 64;
/// PAUSE looks this often what is still under way.
const LOOKED_EVERY: Duration = Duration::from_millis(20);
/// The type of all columns: text, of any length.
const TEXT_OID: i32 = 25;

/// What a command comes to.
type Answer = Result<Done, Box<Report>>;

/// A command that was carried out.
struct Done {
    table: Option<Table>,
    tag: String,
}

/// A command, and where its answer is awaited.
pub(super) struct Request {
    command: Command,
    answer: oneshot::Sender<Answer>,
}

/// Whom the console is for, and the way to the control thread.
pub(super) struct Console {
    database: String,
    users: Vec<String>,
    requests: mpsc::Sender<Request>,
}

impl Console {
    /// The console, and what comes from it: for [`run`].
    pub(super) fn new(admin: &Admin) -> (Self, mpsc::Receiver<Request>) {
        let (requests, received) = mpsc::channel(REQUESTS_QUEUED);
        let (database, users) = (admin.console_database.clone(), admin.console_users.clone());
        (Self { database, users, requests }, received)
    }

    /// Whether this database is the console.
    pub(super) fn is(&self, database: &str) -> bool {
        !self.users.is_empty() && self.database == database
    }

    /// What its client is told at the login; or why it is not let in.
    pub(super) fn greeting(&self, user: &str) -> Result<Vec<(String, String)>, Report> {
        if !self.users.iter().any(|known| known == user) {
            let message = format!("pgsteer: user \"{user}\" may not use the console");
            return Err(Report::fatal(state::INVALID_AUTHORIZATION_SPECIFICATION, message)
                .hint("Whoever may is listed in admin.console_users."));
        }
        let version = format!("{} (pgsteer)", env!("CARGO_PKG_VERSION"));
        let pairs = [
            ("server_version", version.as_str()),
            ("server_encoding", "UTF8"),
            ("client_encoding", "UTF8"),
            ("standard_conforming_strings", "on"),
            ("integer_datetimes", "on"),
            ("DateStyle", "ISO, MDY"),
            ("TimeZone", "UTC"),
            ("is_superuser", "off"),
        ];
        Ok(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    async fn carry_out(&self, command: Command) -> Answer {
        let gone = || Box::new(Report::error(state::ADMIN_SHUTDOWN, "pgsteer: shutting down"));
        let (answer, answered) = oneshot::channel();
        self.requests.send(Request { command, answer }).await.map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

/// Carries out commands on the runtime that it is run on. Ends with the last console.
pub(super) async fn run(mut requests: mpsc::Receiver<Request>, status: Arc<dyn Status>) {
    while let Some(Request { command, answer }) = requests.recv().await {
        let status = Arc::clone(&status);
        // A pause may take long to come; a client waits for its own.
        tokio::spawn(async move {
            // Who asked may have gone.
            let _ = answer.send(carry_out(command, &*status).await);
        });
    }
}

async fn carry_out(command: Command, status: &dyn Status) -> Answer {
    match command {
        Command::Show(subject) => {
            Ok(Done { table: Some(show(subject, status).await), tag: "SHOW".to_owned() })
        }
        Command::Pause { wait_s } => pause(wait_s, status).await,
        Command::Resume => {
            status.resume();
            Ok(Done { table: None, tag: "RESUME".to_owned() })
        }
        Command::Hint { node } => {
            let query = node.map(|node| format!("node={node}")).unwrap_or_default();
            let report = status.hint(&query).map_err(|fault| refused(&fault))?;
            Ok(Done { table: Some(Table::of_hint(&report)), tag: "HINT".to_owned() })
        }
        Command::Set | Command::Nothing => Ok(Done { table: None, tag: "SET".to_owned() }),
    }
}

async fn show(subject: Subject, status: &dyn Status) -> Table {
    match subject {
        Subject::Help => Table::of_help(),
        Subject::Version => Table::of_version(),
        Subject::Nodes => Table::of_nodes(&status.topology()),
        Subject::Pools => Table::of_pools(&status.pools()),
        Subject::Clients => Table::of_clients(&status.pools()),
        Subject::Stats => Table::of_stats(&status.metrics()),
        Subject::Failovers => Table::of_failovers(&status.events()),
        Subject::Learned => Table::of_learned(&status.learned()),
        Subject::State => Table::of_state(&status.pause_report().await),
    }
}

/// Begins a pause and waits until nothing runs on the primary. An error if something still does after that; the pause goes on.
async fn pause(wait_s: u64, status: &dyn Status) -> Answer {
    status.pause("").map_err(|fault| refused(&fault))?;
    let deadline = Instant::now() + Duration::from_secs(wait_s);
    loop {
        let report: Value = status.pause_report().await;
        match report["state"].as_str() {
            Some("paused") => return Ok(Done { table: None, tag: "PAUSE".to_owned() }),
            Some("running") => {
                return Err(Box::new(Report::error(
                    state::OBJECT_NOT_IN_PREREQUISITE_STATE,
                    "pgsteer: the pause is over already",
                )));
            }
            _ if Instant::now() >= deadline => {
                let message = format!("pgsteer: {} still run on the primary", report["on_primary"]);
                return Err(Box::new(
                    Report::error(state::OBJECT_NOT_IN_PREREQUISITE_STATE, message)
                        .detail("Nothing new begins there: the pause goes on.")
                        .hint("Say PAUSE again to wait for longer, or RESUME to end the pause."),
                ));
            }
            _ => tokio::time::sleep(LOOKED_EVERY).await,
        }
    }
}

fn refused(fault: &str) -> Box<Report> {
    Box::new(Report::error(state::INVALID_PARAMETER_VALUE, format!("pgsteer: {fault}")))
}

fn no_command(error: &ParseError) -> Box<Report> {
    let report = Report::error(state::SYNTAX_ERROR, format!("pgsteer: {error}"));
    Box::new(report.hint("This is the admin console, not a database: SHOW HELP lists its commands."))
}

/// Serves one client until it goes, or pgsteer ends. `early`: bytes that came together with the login.
pub(super) async fn serve(
    shard: &Rc<Shard>,
    client: &TcpStream,
    control: &Control,
    console: &Console,
    early: Vec<u8>,
) {
    // Whatever it does, nothing of it is lost with the connection: the drain ends it at once.
    control.idle.set(true);
    if shard.draining.get() {
        let mut out = Vec::new();
        outcome::shutting_down().put(&mut out);
        // Best effort, on a socket that was just written to.
        let _ = client.try_write(&out);
        return;
    }
    let mut bytes = early;
    let mut chunk = [0u8; 1024];
    let mut skips = false;
    loop {
        let mut out = Vec::new();
        while let Some(step) = next(&mut bytes) {
            match step {
                Step::Fault(report) => {
                    report.put(&mut out);
                    let _ = net::write_all(client, &out).await;
                    return;
                }
                Step::Message(b'X', _) => return,
                Step::Message(kind, body) => {
                    on_message(console, kind, &body, &mut skips, &mut out).await;
                    if net::write_all(client, &out).await.is_err() {
                        return;
                    }
                    out.clear();
                }
            }
        }
        if net::readable(client).await.is_err() {
            return;
        }
        match net::try_read(client, &mut chunk) {
            Ok(0) => return,
            Ok(count) => bytes.extend_from_slice(chunk.get(..count).unwrap_or_default()),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
    }
}

enum Step {
    /// Its kind and body.
    Message(u8, Vec<u8>),
    Fault(Box<Report>),
}

/// Takes the first message out, if it is complete.
fn next(bytes: &mut Vec<u8>) -> Option<Step> {
    let header = match frame::header(bytes) {
        Ok(header) => header?,
        Err(error) => {
            return Some(Step::Fault(Box::new(Report::fatal(state::PROTOCOL_VIOLATION, error.to_string()))));
        }
    };
    if header.frame_bytes > MESSAGE_BYTES_MAX {
        let message = "pgsteer: the message is too long for the console";
        return Some(Step::Fault(Box::new(Report::fatal(state::PROTOCOL_VIOLATION, message))));
    }
    if bytes.len() < header.frame_bytes {
        return None;
    }
    let rest = bytes.split_off(header.frame_bytes);
    let mut message = std::mem::replace(bytes, rest);
    message.drain(..HEADER_BYTES);
    Some(Step::Message(header.kind, message))
}

/// `skips`: a message of the extended protocol was refused, and all are skipped up to the Sync.
async fn on_message(console: &Console, kind: u8, body: &[u8], skips: &mut bool, out: &mut Vec<u8>) {
    let ready = TransactionStatus::Idle.ready_for_query();
    match kind {
        b'Q' => {
            *skips = false;
            let text = body.split(|byte| *byte == 0).next().unwrap_or_default();
            match console::parse(&String::from_utf8_lossy(text)) {
                Ok(Command::Nothing) => out.extend_from_slice(reply::EMPTY_QUERY),
                Ok(command) => match console.carry_out(command).await {
                    Ok(done) => put_done(out, &done),
                    Err(report) => report.put(out),
                },
                Err(error) => no_command(&error).put(out),
            }
            out.extend_from_slice(ready);
        }
        b'S' => {
            *skips = false;
            out.extend_from_slice(ready);
        }
        // Flush, and what belongs to a COPY that there is none of.
        b'H' | b'd' | b'c' | b'f' => {}
        _ if *skips => {}
        _ => {
            let message = "pgsteer: the console knows the simple protocol only";
            let hint = "Send the command as a simple query: psql does, drivers have a call or a mode for it.";
            Report::error(state::FEATURE_NOT_SUPPORTED, message).hint(hint).put(out);
            // A function call is a cycle of its own.
            *skips = kind != b'F';
            if kind == b'F' {
                out.extend_from_slice(ready);
            }
        }
    }
}

fn put_done(out: &mut Vec<u8>, done: &Done) {
    if let Some(table) = &done.table {
        put_table(out, table);
    }
    reply::put_command_complete(out, &done.tag);
}

fn put_table(out: &mut Vec<u8>, table: &Table) {
    let count = |many: usize| i16::try_from(many).unwrap_or(i16::MAX).to_be_bytes();
    let mut body = count(table.columns.len()).to_vec();
    for column in &table.columns {
        body.extend_from_slice(column.as_bytes());
        // No table, no column of one.
        body.extend_from_slice(&[0; 7]);
        body.extend_from_slice(&TEXT_OID.to_be_bytes());
        // Of any length, without a modifier, as text.
        body.extend_from_slice(&[0xff; 6]);
        body.extend_from_slice(&[0; 2]);
    }
    frame::put(out, b'T', &[&body]);
    for row in &table.rows {
        let mut body = count(row.len()).to_vec();
        for value in row {
            match value {
                None => body.extend_from_slice(&(-1i32).to_be_bytes()),
                Some(text) => {
                    body.extend_from_slice(&i32::try_from(text.len()).unwrap_or(0).to_be_bytes());
                    body.extend_from_slice(text.as_bytes());
                }
            }
        }
        frame::put(out, b'D', &[&body]);
    }
}
