//! `pgsteer explain`: where statements go, and why, for people who wonder.
//!
//! Invariant: says what `run` would decide of a text by itself; what a session adds (its transaction, its writes, what standbys have
//! refused) is not known here. Must not know: how texts are classified.

use std::fmt::Write as _;
use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use tokio_postgres::NoTls;

use crate::classify::{
    self, Access, AccessMode, Called, Catalogue, CatalogueStamp, Classification, Dialect, Overrides, Pattern,
    SessionEffect, StandardConformingStrings, TransactionEffect, Verdict,
};
use crate::session::CATALOGUE_QUERY;

/// A database that does not answer in this time is given up.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Arguments of `pgsteer explain`.
#[derive(Debug, Args)]
pub struct ExplainArgs {
    /// The statements; of several in one text each is told of, and the whole
    #[arg(required_unless_present = "file")]
    sql: Option<String>,
    /// A file with statements instead; - for standard input
    #[arg(long, conflicts_with = "sql")]
    file: Option<PathBuf>,
    /// A database whose functions, views and types are known: a connection string, such as "host=db1 dbname=app user=app"
    #[arg(long, value_name = "DSN")]
    connect: Option<String>,
    /// The servers' major version, where no database is asked
    #[arg(long, value_name = "VERSION", default_value_t = *classify::SUPPORTED_VERSIONS.end())]
    server_version: u8,
    /// Functions that are reads, as in routing.read_functions
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    read_functions: Vec<String>,
    /// Functions that are writes, as in routing.write_functions
    #[arg(long, value_name = "PATTERN", value_delimiter = ',')]
    write_functions: Vec<String>,
    /// Read texts as with standard_conforming_strings = off
    #[arg(long)]
    backslash_escapes: bool,
}

/// What was asked of the database.
struct Known {
    catalogue: Option<Catalogue>,
    version: u8,
    strings: StandardConformingStrings,
}

/// Tells of each statement on standard output.
pub async fn run(args: ExplainArgs) -> anyhow::Result<()> {
    let sql = read(&args)?;
    let overrides =
        Overrides { read: patterns(&args.read_functions)?, write: patterns(&args.write_functions)? };
    let known = match &args.connect {
        Some(dsn) => ask(dsn, &overrides).await?,
        None => {
            Known { catalogue: None, version: args.server_version, strings: StandardConformingStrings::On }
        }
    };
    let strings = if args.backslash_escapes { StandardConformingStrings::Off } else { known.strings };
    let dialect = Dialect {
        strings,
        version: known.version,
        catalogue: known.catalogue.as_ref(),
        catalogue_stamp: CatalogueStamp { serial: 1, fresh: true },
        overrides: &overrides,
        cache: None,
    };
    print!("{}", told(&sql, &dialect, args.file.is_some()));
    Ok(())
}

fn read(args: &ExplainArgs) -> anyhow::Result<Vec<u8>> {
    match (&args.sql, &args.file) {
        (Some(sql), _) => Ok(sql.clone().into_bytes()),
        (None, Some(path)) if path.as_os_str() == "-" => {
            let mut sql = Vec::new();
            std::io::stdin().read_to_end(&mut sql)?;
            Ok(sql)
        }
        (None, Some(path)) => {
            std::fs::read(path).map_err(|error| anyhow::anyhow!("cannot read {}: {error}", path.display()))
        }
        (None, None) => Ok(Vec::new()),
    }
}

fn patterns(texts: &[String]) -> anyhow::Result<Vec<Pattern>> {
    let parse = |text: &String| Pattern::parse(text).map_err(|fault| anyhow::anyhow!("{text:?} {fault}"));
    texts.iter().map(parse).collect()
}

async fn ask(dsn: &str, overrides: &Overrides) -> anyhow::Result<Known> {
    let mut config: tokio_postgres::Config = dsn.parse()?;
    config.connect_timeout(CONNECT_TIMEOUT).application_name("pgsteer explain");
    let (client, connection) = config.connect(NoTls).await?;
    let connection = tokio::spawn(connection);
    let number: String = client.query_one("SHOW server_version_num", &[]).await?.get(0);
    let strings: String = client.query_one("SHOW standard_conforming_strings", &[]).await?.get(0);
    client.batch_execute("SET search_path TO pg_catalog, pg_temp; SET jit TO off").await?;
    let messages = client.simple_query(CATALOGUE_QUERY).await?;
    let rows = messages.iter().filter_map(|message| match message {
        tokio_postgres::SimpleQueryMessage::Row(row) => {
            Some([0, 1, 2, 3].map(|at| row.get(at).unwrap_or("")))
        }
        _ => None,
    });
    let catalogue = Catalogue::from_rows(rows, overrides);
    connection.abort();
    Ok(Known {
        catalogue: Some(catalogue),
        version: u8::try_from(number.parse::<u32>()? / 10_000)?,
        strings: if strings == "off" {
            StandardConformingStrings::Off
        } else {
            StandardConformingStrings::On
        },
    })
}

/// What is said of a text. `apart`: its statements are sent one by one, as psql does with a file.
fn told(sql: &[u8], dialect: &Dialect<'_>, apart: bool) -> String {
    let mut out = String::new();
    let statements = classify::statements(sql, dialect.strings);
    for statement in &statements {
        let _ = writeln!(out, "{}", String::from_utf8_lossy(statement).trim());
        tell(&mut out, statement, dialect);
    }
    if statements.len() > 1 && !apart {
        let _ = writeln!(out, "all {} in one text", statements.len());
        tell(&mut out, sql, dialect);
    }
    if statements.is_empty() {
        out.push_str("nothing but white space and comments\n");
    }
    out
}

fn tell(out: &mut String, sql: &[u8], dialect: &Dialect<'_>) {
    let (class, called) = classify::explain(sql, dialect);
    let place = match class.access {
        Access::Read => "a standby, or the primary",
        Access::Write | Access::Unknown => "the primary",
    };
    line(out, "goes to", &format!("{place} ({})", class.reason.as_str()));
    for (at, call) in called.iter().enumerate() {
        line(out, if at == 0 { "calls" } else { "" }, &call_line(call));
    }
    if let Some(effect) = session_line(&class, sql) {
        line(out, "session", &effect);
    }
    if let Some(effect) = transaction_line(&class) {
        line(out, "transaction", effect);
    }
    out.push('\n');
}

fn line(out: &mut String, label: &str, text: &str) {
    let _ = writeln!(out, "    {label:<12}{text}");
}

fn call_line(call: &Called) -> String {
    let verdict = match call.verdict {
        Verdict::Read => "read",
        Verdict::Write => "primary only",
    };
    format!("{}: {verdict} ({})", call.name, call.source.as_str())
}

fn session_line(class: &Classification, sql: &[u8]) -> Option<String> {
    let mut parts = Vec::new();
    let name = |span: classify::Span| String::from_utf8_lossy(span.of(sql)).to_lowercase();
    match class.session {
        SessionEffect::None => {}
        SessionEffect::Set(span) => parts.push(format!("sets {}", name(span))),
        SessionEffect::Reset(span) => parts.push(format!("resets {}", name(span))),
        SessionEffect::ResetLocal(span) => parts.push(format!("resets {} in the transaction", name(span))),
        SessionEffect::ResetAll => parts.push("resets all settings".to_owned()),
        SessionEffect::DiscardAll => parts.push("forgets everything".to_owned()),
        SessionEffect::Deallocate(span) => parts.push(format!("drops the prepared statement {}", name(span))),
        SessionEffect::DeallocateAll => parts.push("drops all prepared statements".to_owned()),
        SessionEffect::Unknown => parts.push("may change settings: the server is asked for them".to_owned()),
    }
    if let Some(pin) = class.pin {
        parts.push(format!("pins the session ({})", pin.as_str()));
    }
    if class.unseen {
        parts.push("runs code that can't be seen: the server is asked what it left behind".to_owned());
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn transaction_line(class: &Classification) -> Option<&'static str> {
    match class.transaction {
        TransactionEffect::None => None,
        TransactionEffect::Begin { access: AccessMode::ReadOnly, .. } => {
            Some("begins one that is READ ONLY: goes where its first statement may go")
        }
        TransactionEffect::Begin { .. } => Some("begins one: sent together with its first statement"),
        TransactionEffect::Commit => Some("commits"),
        TransactionEffect::Rollback => Some("rolls back"),
        TransactionEffect::SetTransaction { .. } => Some("sets its modes"),
        TransactionEffect::Chain => Some("ends, and the next one begins"),
        TransactionEffect::Other => Some("something else about it"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_statement_does_is_told() {
        for (sql, lines) in [
            (
                "SELECT lower(a), f(b) FROM t",
                vec![
                    "goes to     the primary (function)",
                    "calls       lower: read (PostgreSQL's own, safe on a standby)",
                    "f: primary only (not known)",
                    "session     runs code that can't be seen: the server is asked what it left behind",
                ],
            ),
            ("SELECT 1", vec!["goes to     a standby, or the primary (read_only)"]),
            ("SET App.X = '1'", vec!["goes to     the primary (session_state)", "session     sets app.x"]),
            ("CREATE TEMP TABLE t (i int)", vec!["session     pins the session (temp_object)"]),
            (
                "BEGIN READ ONLY",
                vec!["transaction begins one that is READ ONLY: goes where its first statement may go"],
            ),
            (
                "SELECT 1; INSERT INTO t VALUES (1);",
                vec!["SELECT 1", "INSERT INTO t VALUES (1)", "all 2 in one text"],
            ),
            (" -- nothing", vec!["nothing but white space and comments"]),
            ("SELECT 'open", vec!["goes to     the primary (not_understood)"]),
        ] {
            let told = told(sql.as_bytes(), &Dialect::default(), false);
            for line in lines {
                assert!(told.contains(line), "{sql}: {line:?} is not in\n{told}");
            }
        }
    }
}
