//! A session's settings as a map of resulting values: what came with its startup packet, what it has set since, and how a
//! server connection is brought to them.
//!
//! Invariant: after the commands of `difference` the server has exactly these settings and none of another session's. Values
//! are the server's own words for them, asked for when something may have changed them (`inspect`). Must not know: sockets.

use std::time::Duration;

use super::startup_options;
pub use super::startup_options::OptionsError;
use crate::wire::startup::Startup;

/// The settings among the parameters of a startup packet. As in PostgreSQL a parameter of its own wins over `options`, in
/// whatever order they stand.
pub fn from_startup(startup: &Startup) -> Result<Pairs, OptionsError> {
    let mut pairs = Pairs::new();
    let options = startup.parameter("options").map(startup_options::parse).transpose()?;
    let own = startup.parameters.iter().filter(|(name, _)| !OF_THE_PACKET.contains(&name.as_str()));
    for (name, value) in options.iter().flatten().chain(own) {
        if name.is_empty() || OF_THE_PACKET.iter().any(|field| name.eq_ignore_ascii_case(field)) {
            return Err(OptionsError::Unrecognized(name.clone()));
        }
        // The server takes it, and has who logged in all the same (PGC_S_OVERRIDE, miscinit.c).
        if !name.eq_ignore_ascii_case("session_authorization") {
            put(&mut pairs, name, value.clone());
        }
    }
    pairs.sort();
    Ok(pairs)
}

/// What the packet says beside settings. As names of settings they would say something else to the server than they did here.
const OF_THE_PACKET: [&str; 4] = ["user", "database", "replication", "options"];

fn put(pairs: &mut Pairs, name: &str, value: String) {
    let name = name.to_ascii_lowercase();
    pairs.retain(|(other, _)| *other != name);
    pairs.push((name, value));
}

/// Names, in lower case, and values, sorted by name.
pub type Pairs = Vec<(String, String)>;

/// What has happened to a session's settings and is not in its map yet.
#[derive(Debug, Default, PartialEq, Eq)]
pub enum Touched {
    /// Nothing.
    #[default]
    Nothing,
    /// These were set, and nothing else: their values are to be asked for.
    Set(Vec<String>),
    /// RESET of this one, and nothing else, outside of a transaction.
    Reset(String),
    /// RESET ALL, outside of a transaction.
    ResetAll,
    /// DISCARD ALL.
    DiscardAll,
    /// Anything: all values are to be asked for.
    Anything,
}

/// More names than these are asked for all together.
const TOUCHED_MAX: usize = 8;

impl Touched {
    /// A setting was set by name.
    pub fn set(&mut self, name: &[u8]) {
        let Ok(name) = std::str::from_utf8(name).map(str::to_ascii_lowercase) else {
            return self.anything();
        };
        match self {
            Self::Nothing => *self = Self::Set(vec![name]),
            Self::Set(names) if names.contains(&name) => {}
            Self::Set(names) if names.len() < TOUCHED_MAX => names.push(name),
            _ => self.anything(),
        }
    }

    /// Something else happened, which is known exactly if it is all that happened.
    pub fn only(&mut self, what: Self) {
        if *self == Self::Nothing { *self = what } else { self.anything() }
    }

    /// What was taken for done may not have been: the server is asked for everything. Values that were set are asked for anyway.
    pub fn ask(&mut self) {
        if matches!(self, Self::Reset(_) | Self::ResetAll | Self::DiscardAll) {
            self.anything();
        }
    }

    /// What happened is not known.
    pub fn anything(&mut self) {
        *self = Self::Anything;
    }
}

/// The name, in lower case, and the value of `SET [SESSION] name = value`, where the value is one word, number or plain string.
pub fn set_by_text(text: &[u8], name: &[u8]) -> Option<(String, String)> {
    fn word<'t>(text: &'t str, word: &str) -> Option<&'t str> {
        let rest = text.get(word.len()..).filter(|_| text.is_char_boundary(word.len()))?;
        let is_it = text.get(..word.len())?.eq_ignore_ascii_case(word);
        (is_it && rest.starts_with([' ', '\t', '\n', '\r', '='])).then(|| rest.trim_ascii_start())
    }
    let (text, name) = (std::str::from_utf8(text).ok()?, std::str::from_utf8(name).ok()?);
    let text = word(text.trim_ascii().trim_end_matches(';').trim_ascii_end(), "SET")?;
    let text = word(text, name).or_else(|| word(word(text, "SESSION")?, name))?;
    let value = text.strip_prefix('=').map(str::trim_ascii_start).or_else(|| word(text, "TO"))?;
    let is_plain = |part: &str| !part.contains(['\'', '\\']);
    let value = match value.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')) {
        Some(string) if is_plain(string) => string.to_owned(),
        Some(_) => return None,
        None if value.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_') => {
            let is_word = value.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
            let value = value.to_ascii_lowercase();
            (is_word && !matches!(value.as_str(), "default" | "local")).then_some(value)?
        }
        None => value.parse::<f64>().is_ok().then(|| value.to_owned())?,
    };
    Some((name.to_ascii_lowercase(), value))
}

/// The map with these values in it.
pub fn with(pairs: &[(String, String)], changes: &[(String, String)]) -> Pairs {
    let mut pairs = pairs.to_vec();
    for (name, value) in changes {
        put(&mut pairs, name, value.clone());
    }
    pairs.sort();
    pairs
}

/// The map where the server has told all settings that the session has made: what it did not name has its value of the startup
/// packet, but for who the session acts as.
pub fn as_told(startup: &[(String, String)], told: &[(String, String)]) -> Pairs {
    let (identity, plain): (Vec<_>, Vec<_>) =
        startup.iter().cloned().partition(|(name, _)| is_identity(name));
    let is_told = |name: &str| told.iter().any(|(other, _)| other == name);
    let none = identity.into_iter().filter(|(name, _)| name == "role" && !is_told(name));
    let none: Pairs = none.map(|(name, _)| (name, "none".to_owned())).collect();
    with(&with(&plain, told), &none)
}

/// The map after RESET of one setting: it has its value of the startup packet again, if there was one.
pub fn reset(pairs: &[(String, String)], startup: &[(String, String)], name: &str) -> Pairs {
    let name = name.to_ascii_lowercase();
    let mut pairs: Pairs = pairs.iter().filter(|(other, _)| *other != name).cloned().collect();
    pairs.extend(startup.iter().find(|(other, _)| *other == name).cloned());
    pairs.sort();
    pairs
}

/// The map after RESET ALL, which leaves the role alone.
pub fn reset_all(pairs: &[(String, String)], startup: &[(String, String)]) -> Pairs {
    with(startup, &pairs.iter().filter(|(name, _)| is_identity(name)).cloned().collect::<Pairs>())
}

/// Names of settings with a prefix: an extension's, or nobody's but the client's own.
pub fn prefixed(pairs: &[(String, String)]) -> Vec<String> {
    pairs.iter().map(|(name, _)| name).filter(|name| name.contains('.')).cloned().collect()
}

/// Who the session acts as: set after everything else, and never reset by RESET ALL.
pub fn is_identity(name: &str) -> bool {
    matches!(name, "role" | "session_authorization")
}

/// Settings that only a superuser sees (`GUC_SUPERUSER_ONLY`) and that can be set in a session.
pub const SEEN_BY_SUPERUSERS: [&str; 3] =
    ["dynamic_library_path", "extension_control_path", "session_preload_libraries"];

/// Encodings in which a byte of a longer character can look like ASCII: only clients use them, servers can't.
pub fn is_opaque_encoding(name: &str) -> bool {
    ["SJIS", "BIG5", "GBK", "UHC", "GB18030", "JOHAB", "SHIFT_JIS_2004"]
        .iter()
        .any(|opaque| name.eq_ignore_ascii_case(opaque))
}

/// A time-out as PostgreSQL writes and reads it: a number, in milliseconds unless it has a unit. `None` for none and for 0.
pub fn time_limit(value: &str) -> Option<Duration> {
    let value = value.trim();
    let digits = value.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(value.len());
    let number: f64 = value.get(..digits)?.parse().ok()?;
    let unit_seconds = match value.get(digits..)?.trim() {
        "us" => 1e-6,
        "" | "ms" => 1e-3,
        "s" => 1.0,
        "min" => 60.0,
        "h" => 3600.0,
        "d" => 86_400.0,
        _ => return None,
    };
    Duration::try_from_secs_f64(number * unit_seconds).ok().filter(|limit| !limit.is_zero())
}

/// Whether PostgreSQL takes this value for true (`parse_bool`, bool.c).
pub fn is_true(value: &str) -> bool {
    let value = value.trim().to_ascii_lowercase();
    !value.is_empty()
        && (value == "1" || value == "on" || "true".starts_with(&value) || "yes".starts_with(&value))
}

/// Settings that decide nothing about what a text means when it is parsed: they are looked at when it runs, or when its answer is
/// written. All others may (`search_path` above all; `TimeZone` decides what a constant is).
const WITHOUT_MEANING: [&str; 8] = [
    "application_name",
    "bytea_output",
    "client_min_messages",
    "extra_float_digits",
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "idle_session_timeout",
];

/// The settings that decide what a text means.
pub fn scope(pairs: &[(String, String)]) -> Pairs {
    let decides = |name: &str| !name.contains('.') && !WITHOUT_MEANING.contains(&name);
    pairs.iter().filter(|(name, _)| decides(name)).cloned().collect()
}

/// As whom a session's settings are made on a further server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// As the user of the login; then it becomes whom it acts as.
    #[default]
    BeforeRole,
    /// As the role that it acts as, which may do more.
    BehindRole,
}

impl Order {
    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::BeforeRole => Self::BehindRole,
            Self::BehindRole => Self::BeforeRole,
        }
    }
}

/// The statements that bring a server from the settings `applied` to `wanted`, in order. What has the wanted value already is
/// left alone.
pub fn difference(applied: &[(String, String)], wanted: &[(String, String)], order: Order) -> Vec<String> {
    let has = |pairs: &[(String, String)], pair: &(String, String)| pairs.contains(pair);
    let mut commands = Vec::new();
    let resets = |name: &str| !is_identity(name) && !wanted.iter().any(|(other, _)| other == name);
    // The texts are UTF-8, whichever encoding the last session's client had and this one's has.
    let is_coded =
        wanted.iter().any(|pair| !(has(applied, pair) || (pair.0.is_ascii() && pair.1.is_ascii())))
            || applied.iter().any(|(name, _)| resets(name) && !name.is_ascii());
    let is_last = |name: &str| is_coded && name == CLIENT_ENCODING;
    if is_coded {
        commands.push(assignment(CLIENT_ENCODING, "UTF8"));
    }
    // Whoever the last session acted as may not be allowed to set what this one has set.
    if applied.iter().any(|pair| is_identity(&pair.0)) {
        commands.extend(["RESET SESSION AUTHORIZATION", "RESET ROLE"].map(str::to_owned));
    }
    for (name, _) in applied {
        if resets(name) && !is_last(name) {
            commands.push(if is_cut_short(name) {
                format!("SELECT pg_catalog.set_config({}, NULL, false)", quoted_value(name))
            } else {
                format!("RESET {}", quoted_name(name))
            });
        }
    }
    let plain =
        wanted.iter().filter(|pair| !is_identity(&pair.0) && !has(applied, pair) && !is_last(&pair.0));
    let identity = wanted.iter().rev().filter(|pair| is_identity(&pair.0));
    let assign = |(name, value): &(String, String)| assignment(name, value);
    match order {
        Order::BeforeRole => commands.extend(plain.chain(identity).map(assign)),
        Order::BehindRole => commands.extend(identity.chain(plain).map(assign)),
    }
    if is_coded {
        let own = wanted.iter().find(|(name, _)| name == CLIENT_ENCODING);
        commands.push(match own {
            Some((name, value)) => assignment(name, value),
            None => format!("RESET {}", quoted_name(CLIENT_ENCODING)),
        });
    }
    commands
}

const CLIENT_ENCODING: &str = "client_encoding";

/// Settings whose value is a list of names that SET wants one by one (`GUC_LIST_QUOTE`): in one literal, `a, b` would be the
/// name of one schema. `set_config` takes the text as it is.
const NAME_LISTS: [&str; 4] =
    ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// The statement that gives a setting this value.
pub fn assignment(name: &str, value: &str) -> String {
    if is_cut_short(name) || NAME_LISTS.iter().any(|list| name.eq_ignore_ascii_case(list)) {
        return format!(
            "SELECT pg_catalog.set_config({}, {}, false)",
            quoted_value(name),
            quoted_value(value)
        );
    }
    format!("SET {} TO {}", quoted_name(name), quoted_value(value))
}

/// The same until the transaction ends.
pub fn local_assignment(name: &str, value: &str) -> String {
    format!("SELECT pg_catalog.set_config({}, {}, true)", quoted_value(name), quoted_value(value))
}

/// Whether a part of the name is longer than an identifier in SQL can be (`NAMEDATALEN`): `set_config` takes it all the same.
fn is_cut_short(name: &str) -> bool {
    name.split('.').any(|part| part.len() > IDENTIFIER_BYTES_MAX)
}

/// The rest of a longer identifier is ignored.
const IDENTIFIER_BYTES_MAX: usize = 63;

fn quoted_name(name: &str) -> String {
    name.split('.')
        .map(|part| format!("\"{}\"", part.to_ascii_lowercase().replace('"', "\"\"")))
        .collect::<Vec<_>>()
        .join(".")
}

/// An escape string, which means the same whatever `standard_conforming_strings` is.
pub fn quoted_value(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn difference(applied: &[(String, String)], wanted: &[(String, String)]) -> Vec<String> {
        super::difference(applied, wanted, Order::BeforeRole)
    }

    /// What is a field of the packet can't come in by another way: the server would take it for one.
    #[test]
    fn fields_of_the_packet_are_no_settings() {
        let of = |parameters: &[(&str, &str)]| {
            let parameters =
                parameters.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            from_startup(&Startup { minor: 0, parameters, protocol_options: Vec::new() })
        };
        assert_eq!(of(&[("user", "a"), ("database", "b"), ("options", "-S1")]).unwrap().len(), 1);
        for (parameter, name) in [
            (("options", "-c user=postgres"), "user"),
            (("options", "--Database=x"), "Database"),
            (("User", "postgres"), "User"),
            (("options", "-c =1"), ""),
        ] {
            assert_eq!(of(&[parameter]), Err(OptionsError::Unrecognized(name.to_owned())));
        }
    }

    /// G01: one session's settings are gone when another's are applied; values can't break out of their quotes.
    #[test]
    fn the_difference_resets_what_is_not_wanted() {
        let pairs = |pairs: &[(&str, &str)]| -> Pairs {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let wanted = pairs(&[("app.same", "s"), ("application_name", "it's \\ x"), ("app.t", "1")]);
        assert_eq!(
            difference(&pairs(&[("timezone", "UTC"), ("app.same", "s"), ("app.t", "2")]), &wanted),
            [
                "RESET \"timezone\"",
                "SET \"application_name\" TO E'it''s \\\\ x'",
                "SET \"app\".\"t\" TO E'1'"
            ]
        );
        assert!(difference(&[], &[]).is_empty());
        assert!(difference(&wanted, &wanted).is_empty());
        let acting = pairs(&[("role", "b"), ("session_authorization", "a"), ("work_mem", "1MB")]);
        assert_eq!(
            difference(&acting, &acting),
            [
                "RESET SESSION AUTHORIZATION",
                "RESET ROLE",
                "SET \"session_authorization\" TO E'a'",
                "SET \"role\" TO E'b'"
            ]
        );
    }

    /// G01: what a role may set and its member may not is set as the role.
    #[test]
    fn settings_are_made_as_who_may() {
        let pairs = [("log_statement", "all"), ("role", "boss")];
        let wanted: Pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let (set, role) = ("SET \"log_statement\" TO E'all'", "SET \"role\" TO E'boss'");
        assert_eq!(super::difference(&[], &wanted, Order::BeforeRole), [set, role]);
        assert_eq!(super::difference(&[], &wanted, Order::BeforeRole.other()), [role, set]);
    }

    /// G01: a text means the same in whichever encoding the connection was left.
    #[test]
    fn what_is_not_ascii_is_set_in_utf8() {
        let pairs = |pairs: &[(&str, &str)]| -> Pairs {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let latin = pairs(&[("client_encoding", "LATIN1")]);
        let utf8 = "SET \"client_encoding\" TO E'UTF8'";
        let set = "SET \"app\".\"t\" TO E'é'";
        assert_eq!(difference(&latin, &pairs(&[("app.t", "é")])), [utf8, set, "RESET \"client_encoding\""]);
        assert_eq!(
            difference(&[], &pairs(&[("app.t", "é"), ("client_encoding", "LATIN1"), ("z.z", "1")])),
            [utf8, set, "SET \"z\".\"z\" TO E'1'", "SET \"client_encoding\" TO E'LATIN1'"]
        );
    }

    /// G01: a name that SQL would cut short is set and reset in full.
    #[test]
    fn a_name_longer_than_an_identifier_is_not_cut_short() {
        let long = format!("app.{}", "x".repeat(IDENTIFIER_BYTES_MAX + 1));
        let pairs = vec![(long.clone(), "v".to_owned())];
        assert_eq!(
            difference(&pairs, &[]),
            [format!("SELECT pg_catalog.set_config(E'{long}', NULL, false)")]
        );
        assert_eq!(
            difference(&[], &pairs),
            [format!("SELECT pg_catalog.set_config(E'{long}', E'v', false)")]
        );
    }

    /// G01: RESET goes to the value of the startup packet.
    #[test]
    fn reset_goes_back_to_the_startup_packet() {
        let pairs = |pairs: &[(&str, &str)]| -> Pairs {
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
        };
        let startup = pairs(&[("statement_timeout", "50")]);
        let now = with(&startup, &pairs(&[("work_mem", "1MB"), ("statement_timeout", "0"), ("role", "r")]));
        assert_eq!(now, pairs(&[("role", "r"), ("statement_timeout", "0"), ("work_mem", "1MB")]));
        assert_eq!(reset(&now, &startup, "Work_Mem"), pairs(&[("role", "r"), ("statement_timeout", "0")]));
        assert_eq!(
            reset(&now, &startup, "statement_timeout"),
            pairs(&[("role", "r"), ("statement_timeout", "50"), ("work_mem", "1MB")])
        );
        assert_eq!(reset_all(&now, &startup), pairs(&[("role", "r"), ("statement_timeout", "50")]));
        let mut touched = Touched::default();
        touched.set(b"A");
        touched.set(b"a");
        assert_eq!(touched, Touched::Set(vec!["a".to_owned()]));
    }

    #[test]
    fn time_limits_are_read_as_postgresql_writes_them() {
        for (value, milliseconds) in
            [("200", 200), ("200ms", 200), ("1.5s", 1500), ("2min", 120_000), ("1 h", 3_600_000)]
        {
            assert_eq!(time_limit(value), Some(Duration::from_millis(milliseconds)), "{value}");
        }
        for value in ["0", "", "off", "5 parsecs", "-1", "1e9"] {
            assert_eq!(time_limit(value), None, "{value}");
        }
    }

    #[test]
    fn what_a_text_sets_is_read_where_it_is_plain() {
        for (text, name, value) in [
            ("SET work_mem = '5MB';", "work_mem", "5MB"),
            ("set session Work_Mem to 5000", "Work_Mem", "5000"),
            ("SET jit=OFF", "jit", "off"),
            (" SET app.tenant TO 'a b' ; ", "app.tenant", "a b"),
            ("SET x TO -1.5", "x", "-1.5"),
            ("SET x = ''", "x", ""),
        ] {
            let wanted = Some((name.to_ascii_lowercase(), value.to_owned()));
            assert_eq!(set_by_text(text.as_bytes(), name.as_bytes()), wanted, "{text}");
        }
        for (text, name) in [
            ("SET x TO DEFAULT", "x"),
            ("SET LOCAL x = 1", "x"),
            ("SET search_path = a, b", "search_path"),
            ("SET x = 'a''b'", "x"),
            ("SET x = E'a'", "x"),
            ("SET x = 'a', 'b'", "x"),
            ("SET TIME ZONE 'UTC'", "timezone"),
            ("SET ROLE bob", "role"),
            ("SET x /* y */ = 1", "x"),
            ("SET \"x\" = 1", "x"),
            ("SET xy = 1", "x"),
        ] {
            assert_eq!(set_by_text(text.as_bytes(), name.as_bytes()), None, "{text}");
        }
    }

    /// G03: a list of schemas stays a list, in the words it was given in.
    #[test]
    fn lists_of_names_are_set_as_they_were_given() {
        assert_eq!(
            assignment("search_path", "public, \"A\"\"b\" ,Pg"),
            "SELECT pg_catalog.set_config(E'search_path', E'public, \"A\"\"b\" ,Pg', false)"
        );
        assert_eq!(assignment("application_name", "a, b"), "SET \"application_name\" TO E'a, b'");
    }
}
