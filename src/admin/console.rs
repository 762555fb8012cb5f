//! The commands of the admin console, and their answers as tables.
//!
//! Invariant: pure; columns are the same whether there are rows or not. Must not know: sockets, the protocol, where the answers
//! come from.

use serde_json::{Map, Value};

/// What the console is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Tell something.
    Show(Subject),
    /// Begin a pause, and wait so many seconds for what runs on the primary to end.
    Pause {
        /// How many.
        wait_s: u64,
    },
    /// End the pause.
    Resume,
    /// The primary changes, perhaps to this node.
    Hint {
        /// By address or name.
        node: Option<String>,
    },
    /// A setting of a session, which has none here: drivers send some by themselves.
    Set,
    /// No command at all.
    Nothing,
}

/// What can be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    /// The commands.
    Help,
    /// The version.
    Version,
    /// Each node.
    Nodes,
    /// Server connections.
    Pools,
    /// How many clients there are.
    Clients,
    /// All metrics but histograms.
    Stats,
    /// The last failovers.
    Failovers,
    /// Reads that standbys refuse.
    Learned,
    /// Whether there is a pause.
    State,
}

impl Subject {
    /// All, with their words.
    pub const ALL: [(&'static str, Self); 9] = [
        ("HELP", Self::Help),
        ("VERSION", Self::Version),
        ("NODES", Self::Nodes),
        ("POOLS", Self::Pools),
        ("CLIENTS", Self::Clients),
        ("STATS", Self::Stats),
        ("FAILOVERS", Self::Failovers),
        ("LEARNED", Self::Learned),
        ("STATE", Self::State),
    ];
}

/// What there is.
pub const COMMANDS: [(&str, &str); 12] = [
    ("SHOW HELP", "these commands"),
    ("SHOW VERSION", "the version of pgsteer"),
    ("SHOW NODES", "each node with its role, why it has it, positions and staleness"),
    ("SHOW POOLS", "server connections, their limits, and who waits"),
    ("SHOW CLIENTS", "how many clients there are, and may be"),
    ("SHOW STATS", "all metrics but histograms"),
    ("SHOW FAILOVERS", "the last 50 failovers"),
    ("SHOW LEARNED", "shapes of reads that standbys refuse, or cancel again and again"),
    ("SHOW STATE", "whether pgsteer is paused, and what runs on the primary"),
    ("PAUSE [seconds]", "hold what would begin on the primary; wait so long (10) for what runs there to end"),
    ("RESUME", "end the pause"),
    ("HINT [host:port]", "the primary changes, or has changed (to this node): look for it at once"),
];

/// Seconds that PAUSE waits where it is not told.
const PAUSE_WAIT_S: u64 = 10;
/// The longest that it may be told to wait.
const PAUSE_WAIT_S_MAX: u64 = 3600;

const NODES: [&str; 17] = [
    "name",
    "address",
    "role",
    "reason",
    "timeline",
    "position",
    "receive_lsn",
    "sample_age_ms",
    "lag_bytes",
    "staleness_ms",
    "replay_stands_for_ms",
    "readers",
    "weight",
    "hot_standby_feedback",
    "max_standby_streaming_delay_ms",
    "replication_slot",
    "warned_of",
];
const POOLS: [&str; 17] = [
    "node",
    "database",
    "user",
    "mode",
    "open",
    "idle",
    "size",
    "min_pool_size",
    "reserve_pool_size",
    "database_open",
    "max_db_connections",
    "user_open",
    "max_user_connections",
    "moved_reads",
    "waiting",
    "longest_wait_ms",
    "limit_reached",
];
const CLIENTS: [&str; 2] = ["connected", "max_client_conn"];
const FAILOVERS: [&str; 16] = [
    "number",
    "age_ms",
    "outcome",
    "why",
    "old_primary",
    "new_primary",
    "rule",
    "epoch",
    "rounds",
    "lost_after_ms",
    "promotion_told_after_ms",
    "primary_after_ms",
    "settled_after_ms",
    "standbys_left_by_readers",
    "statements",
    "errors",
];
const LEARNED: [&str; 9] = [
    "database",
    "shape",
    "reason",
    "refused",
    "sent_to_primary",
    "conflicts",
    "steered_to",
    "steered",
    "tried_again_in_ms",
];
const STATE: [&str; 4] = ["state", "on_primary", "until", "ends_in_ms"];

/// Why a text is no command.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// More than one.
    #[error("one command at a time")]
    Several,
    /// Not known.
    #[error("unknown command: {0}")]
    Unknown(String),
    /// Not a number of seconds, or too many.
    #[error("PAUSE {0}: must be a number of seconds up to {PAUSE_WAIT_S_MAX}")]
    Seconds(String),
}

/// Reads one command: in any case, with or without a semicolon.
pub fn parse(text: &str) -> Result<Command, ParseError> {
    let text = text.trim().trim_end_matches([';', ' ', '\t', '\r', '\n']);
    if text.contains(';') {
        return Err(ParseError::Several);
    }
    let words: Vec<&str> = text.split_ascii_whitespace().collect();
    let unknown = || ParseError::Unknown(text.chars().take(100).collect());
    let Some((verb, rest)) = words.split_first() else { return Ok(Command::Nothing) };
    match (verb.to_ascii_uppercase().as_str(), rest) {
        ("SHOW", [subject]) => Subject::ALL
            .iter()
            .find(|(word, _)| subject.eq_ignore_ascii_case(word))
            .map(|(_, subject)| Command::Show(*subject))
            .ok_or_else(unknown),
        ("PAUSE", []) => Ok(Command::Pause { wait_s: PAUSE_WAIT_S }),
        ("PAUSE", [seconds]) => {
            let wait_s = seconds.parse().ok().filter(|seconds| *seconds <= PAUSE_WAIT_S_MAX);
            wait_s
                .map(|wait_s| Command::Pause { wait_s })
                .ok_or_else(|| ParseError::Seconds((*seconds).to_owned()))
        }
        ("RESUME", []) => Ok(Command::Resume),
        ("HINT", []) => Ok(Command::Hint { node: None }),
        ("HINT", [node]) => Ok(Command::Hint { node: Some(node.trim_matches('\'').to_owned()) }),
        ("SET", [_, ..]) => Ok(Command::Set),
        _ => Err(unknown()),
    }
}

/// Rows of text; `None` is NULL.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The names of the columns.
    pub columns: Vec<&'static str>,
    /// As many values each as there are columns.
    pub rows: Vec<Vec<Option<String>>>,
}

impl Table {
    /// The commands.
    pub fn of_help() -> Self {
        let row =
            |(command, does): &(&str, &str)| vec![Some((*command).to_owned()), Some((*does).to_owned())];
        Self { columns: vec!["command", "does"], rows: COMMANDS.iter().map(row).collect() }
    }

    /// The version.
    pub fn of_version() -> Self {
        let version = format!("pgsteer {}", env!("CARGO_PKG_VERSION"));
        Self { columns: vec!["version"], rows: vec![vec![Some(version)]] }
    }

    /// Of the answer of `/topology`.
    pub fn of_nodes(topology: &Value) -> Self {
        Self::of(&NODES, rows(&topology["nodes"]))
    }

    /// Of the answer of `/pools`.
    pub fn of_pools(pools: &Value) -> Self {
        Self::of(&POOLS, rows(&pools["pools"]))
    }

    /// Of the answer of `/pools`.
    pub fn of_clients(pools: &Value) -> Self {
        Self::of(&CLIENTS, std::slice::from_ref(&pools["clients"]))
    }

    /// Of the answer of `/topology/events`.
    pub fn of_failovers(events: &Value) -> Self {
        Self::of(&FAILOVERS, rows(&events["failovers"]))
    }

    /// Of the answer of `/learned`.
    pub fn of_learned(learned: &Value) -> Self {
        Self::of(&LEARNED, rows(&learned["learned"]))
    }

    /// Of the answer of `/pause`.
    pub fn of_state(pause: &Value) -> Self {
        Self::of(&STATE, std::slice::from_ref(pause))
    }

    /// Of the answer of `/hint`.
    pub fn of_hint(hint: &Value) -> Self {
        Self::of(&["state", "expects", "epoch", "primary"], std::slice::from_ref(hint))
    }

    /// Of the exposition of `/metrics`.
    pub fn of_stats(exposition: &str) -> Self {
        let row = |line: &str| {
            let (sample, value) = line.rsplit_once(' ')?;
            let (name, labels) = match sample.split_once('{') {
                Some((name, labels)) => (name, Some(labels.trim_end_matches('}').to_owned())),
                None => (sample, None),
            };
            (!name.ends_with("_bucket")).then(|| vec![Some(name.to_owned()), labels, Some(value.to_owned())])
        };
        let samples = exposition.lines().filter(|line| !line.starts_with('#')).filter_map(row);
        Self { columns: vec!["name", "labels", "value"], rows: samples.collect() }
    }

    fn of(columns: &[&'static str], objects: &[Value]) -> Self {
        let row = |object: &Value| columns.iter().map(|column| cell(&object[*column])).collect();
        Self { columns: columns.to_vec(), rows: objects.iter().map(row).collect() }
    }
}

fn rows(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn cell(value: &Value) -> Option<String> {
    match value {
        Value::Null => None,
        Value::String(text) => Some(text.clone()),
        Value::Object(object) => Some(pairs(object)),
        Value::Array(values) => Some(values.iter().filter_map(cell).collect::<Vec<_>>().join(", ")),
        other => Some(other.to_string()),
    }
}

/// One line of what has parts.
fn pairs(object: &Map<String, Value>) -> String {
    let parts: Vec<String> = object.iter().map(|(name, value)| format!("{name}={value}")).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn commands_are_read_in_any_case() {
        let hint = |node: &str| Command::Hint { node: Some(node.to_owned()) };
        for (text, command) in [
            ("show nodes", Command::Show(Subject::Nodes)),
            ("  SHOW\n Pools ; ;\n", Command::Show(Subject::Pools)),
            ("PAUSE", Command::Pause { wait_s: 10 }),
            ("pause 0;", Command::Pause { wait_s: 0 }),
            ("Resume;", Command::Resume),
            ("HINT", Command::Hint { node: None }),
            ("hint 'db2:5432'", hint("db2:5432")),
            ("hint [::1]:5432;", hint("[::1]:5432")),
            ("SET extra_float_digits = 3", Command::Set),
            (";", Command::Nothing),
            ("", Command::Nothing),
        ] {
            assert_eq!(parse(text), Ok(command), "{text}");
        }
        for text in [
            "SELECT 1",
            "show",
            "show tables",
            "SHOW NODES NOW",
            "SHOW NODES; RESUME",
            "PAUSE soon",
            "PAUSE 3601",
            "PAUSE -1",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn all_that_can_be_shown_is_listed() {
        let listed: Vec<String> = Subject::ALL.iter().map(|(word, _)| format!("SHOW {word}")).collect();
        let told: Vec<&str> =
            COMMANDS.iter().map(|(command, _)| *command).filter(|it| it.starts_with("SHOW")).collect();
        assert_eq!(listed, told);
    }

    #[test]
    fn objects_become_rows() {
        let clients = Table::of_clients(&json!({ "clients": { "connected": 3, "max_client_conn": 10 } }));
        assert_eq!(clients.rows, [[Some("3".to_owned()), Some("10".to_owned())]]);
        let none = Table::of_failovers(&json!({ "failovers": [] }));
        assert_eq!((none.columns.len(), none.rows.len()), (16, 0));
        let failover =
            json!({ "failovers": [{ "number": 1, "errors": { "08007": 2 }, "lost_after_ms": null }] });
        let row = &Table::of_failovers(&failover).rows[0];
        assert_eq!(
            (row[0].as_deref(), row[9].as_deref(), row[15].as_deref()),
            (Some("1"), None, Some("08007=2"))
        );
    }

    #[test]
    fn samples_become_rows() {
        let text = "# HELP a b\na{x=\"1\",y=\"2 3\"} 4\nb 5.5\nc_bucket{le=\"1\"} 6\n";
        let row = |cells: [Option<&str>; 3]| cells.map(|cell| cell.map(str::to_owned)).to_vec();
        let wanted =
            [row([Some("a"), Some("x=\"1\",y=\"2 3\""), Some("4")]), row([Some("b"), None, Some("5.5")])];
        assert_eq!(Table::of_stats(text).rows, wanted);
    }
}
