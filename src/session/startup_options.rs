//! The startup packet's `options`: the switches of the `postgres` program, as far as a client may give them.
//!
//! Invariant: what PostgreSQL takes is taken, as the parameters that it sets; what it refuses by itself is refused in its words.
//! Whether a parameter may be set by this client is for the server to say. Must not know: sockets, what parameters mean.
//! Source: `pg_split_opts` (postinit.c), `process_postgres_switches`, `set_debug_options` and kin (postgres.c).

use super::settings::Pairs;
use crate::wire::sqlstate::{self as state, SqlState};

/// Why `options` can't be taken, in PostgreSQL's words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// No switch, or one with a value that it does not have.
    #[error("invalid command-line argument for server process: {0}")]
    Invalid(String),
    /// `-c name` or `--name` without `=`. With the switch.
    #[error("{0} requires a value")]
    NoValue(String),
    /// A parameter that is none, and that must not be taken for a field of the startup packet.
    #[error("unrecognized configuration parameter \"{0}\"")]
    Unrecognized(String),
}

impl OptionsError {
    /// Its SQLSTATE.
    pub fn code(&self) -> SqlState {
        match self {
            Self::Invalid(_) | Self::NoValue(_) => state::SYNTAX_ERROR,
            Self::Unrecognized(_) => state::UNDEFINED_OBJECT,
        }
    }

    /// What PostgreSQL advises.
    pub fn hint(&self) -> Option<&'static str> {
        matches!(self, Self::Invalid(_)).then_some("Try \"postgres --help\" for more information.")
    }
}

/// Switches that come with a value.
const WITH_VALUE: &[u8] = b"BcCDdfhkNprStvW-";
/// Switches that come without.
const ALONE: &[u8] = b"bEeFijlnOPsT";

/// The parameters that `options` sets, in order.
pub(super) fn parse(text: &str) -> Result<Pairs, OptionsError> {
    let words = split_words(text);
    let mut pairs = Pairs::new();
    let mut stray = None;
    let mut at = 0;
    while let Some(word) = words.get(at) {
        at += 1;
        match word.strip_prefix('-') {
            // Switches behind it are looked at first, as getopt does.
            None | Some("") => stray = stray.or(Some(word)),
            Some("-") => {
                stray = stray.or(words.get(at));
                break;
            }
            Some(switches) => cluster(switches, &words, &mut at, &mut pairs)?,
        }
    }
    match stray {
        Some(word) => Err(OptionsError::Invalid(word.clone())),
        None => Ok(pairs),
    }
}

/// The switches of one word. The last may take its value from the next one; `at` is the word behind.
fn cluster(switches: &str, words: &[String], at: &mut usize, pairs: &mut Pairs) -> Result<(), OptionsError> {
    // PostgreSQL complains about the word before the one that getopt would look at next.
    let complaint = |at: usize| {
        let word = at.checked_sub(1).and_then(|at| words.get(at));
        OptionsError::Invalid(word.map_or("postgres", String::as_str).to_owned())
    };
    let mut rest = switches;
    while let Some(switch) = rest.chars().next() {
        rest = rest.get(switch.len_utf8()..).unwrap_or_default();
        let switch = u8::try_from(switch).unwrap_or_default();
        if ALONE.contains(&switch) {
            pairs.extend(alone(switch).map(|(name, value)| (name.to_owned(), value.to_owned())));
        } else if WITH_VALUE.contains(&switch) {
            let value = if rest.is_empty() {
                let next = words.get(*at).ok_or_else(|| complaint(*at))?;
                *at += 1;
                next
            } else {
                rest
            };
            return with_value(switch, value, pairs)?.ok_or_else(|| complaint(*at));
        } else {
            return Err(complaint(if rest.is_empty() { *at } else { *at - 1 }));
        }
    }
    Ok(())
}

/// What a switch without a value sets, if anything.
fn alone(switch: u8) -> Option<(&'static str, &'static str)> {
    Some(match switch {
        b'e' => ("datestyle", "euro"),
        b'F' => ("fsync", "false"),
        b'i' => ("listen_addresses", "*"),
        b'l' => ("ssl", "true"),
        b'O' => ("allow_system_table_mods", "true"),
        b'P' => ("ignore_system_indexes", "true"),
        b's' => ("log_statement_stats", "true"),
        _ => return None,
    })
}

/// Sets what a switch with this value does; `None` where it does not have such a value.
fn with_value(switch: u8, value: &str, pairs: &mut Pairs) -> Result<Option<()>, OptionsError> {
    let mut set = |name: &str, value: &str| pairs.push((name.to_owned(), value.to_owned()));
    match switch {
        b'c' | b'-' => {
            let (name, value) = value.split_once('=').ok_or_else(|| {
                let dashes = if switch == b'c' { "-c " } else { "--" };
                OptionsError::NoValue(format!("{dashes}{value}"))
            })?;
            set(&name.replace('-', "_"), value);
        }
        b'B' => set("shared_buffers", value),
        b'd' => debug_options(value).into_iter().for_each(|(name, value)| set(name, &value)),
        b'f' => {
            let Some(method) = plan_method(value) else { return Ok(None) };
            set(method, "false");
        }
        b'h' => set("listen_addresses", value),
        b'k' => set("unix_socket_directories", value),
        b'N' => set("max_connections", value),
        b'p' => set("port", value),
        b'S' => set("work_mem", value),
        b't' => {
            let Some(statistics) = statistics_of(value) else { return Ok(None) };
            set(statistics, "true");
        }
        b'W' => set("post_auth_delay", value),
        // Not for clients, or for the postmaster only: nothing happens.
        _ => {}
    }
    Ok(Some(()))
}

/// `-d`: the value is read as `atoi` does.
fn debug_options(value: &str) -> Vec<(&'static str, String)> {
    let value = value.trim_start();
    let digits = value.strip_prefix('+').unwrap_or(value);
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let level: u32 = digits.get(..end).and_then(|digits| digits.parse().ok()).unwrap_or_default();
    let messages = if level > 0 { format!("debug{level}") } else { "notice".to_owned() };
    let mut pairs = vec![("log_min_messages", messages)];
    let further = [
        (2, "log_statement", "all"),
        (3, "debug_print_parse", "true"),
        (4, "debug_print_plan", "true"),
        (5, "debug_print_rewritten", "true"),
    ];
    pairs.extend(
        further
            .iter()
            .filter(|(from, ..)| level >= *from)
            .map(|(_, name, value)| (*name, (*value).to_owned())),
    );
    pairs
}

/// `-f`: the first letter counts.
fn plan_method(value: &str) -> Option<&'static str> {
    Some(match value.as_bytes().first()? {
        b's' => "enable_seqscan",
        b'i' => "enable_indexscan",
        b'o' => "enable_indexonlyscan",
        b'b' => "enable_bitmapscan",
        b't' => "enable_tidscan",
        b'n' => "enable_nestloop",
        b'm' => "enable_mergejoin",
        b'h' => "enable_hashjoin",
        _ => return None,
    })
}

/// `-t`: the first letters count.
fn statistics_of(value: &str) -> Option<&'static str> {
    Some(match value.as_bytes() {
        [b'p', b'a', ..] => "log_parser_stats",
        [b'p', b'l', ..] => "log_planner_stats",
        [b'e', ..] => "log_executor_stats",
        _ => return None,
    })
}

/// Words are separated by white space; a backslash takes the next character as it is, and is nothing at the end.
fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() || c == '\x0b' {
            words.extend(word.take());
        } else {
            let next = if c == '\\' { chars.next() } else { Some(c) };
            word.get_or_insert_default().extend(next);
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::{OptionsError, parse};

    fn pairs(text: &str) -> Vec<(String, String)> {
        parse(text).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    fn shown(text: &str) -> String {
        pairs(text).iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn words_are_split_as_postgresql_does() {
        let expected = [("work_mem", "4MB"), ("app.tenant", "a b")];
        let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(pairs("-c work_mem=4MB  --app.tenant=a\\ b"), expected);
        assert_eq!(pairs("-cwork_mem=4MB"), expected[..1]);
        assert_eq!(pairs("\x0b--work-mem=4MB\\"), expected[..1]);
        assert!(pairs("").is_empty() && pairs(" -- ").is_empty());
    }

    #[test]
    fn switches_set_what_postgresql_sets() {
        for (text, expected) in [
            ("-e -S 1024 -B100", "datestyle=euro work_mem=1024 shared_buffers=100"),
            ("-fs -f n -fmx", "enable_seqscan=false enable_nestloop=false enable_mergejoin=false"),
            ("-sOP", "log_statement_stats=true allow_system_table_mods=true ignore_system_indexes=true"),
            ("-tpa -tpl -t e", "log_parser_stats=true log_planner_stats=true log_executor_stats=true"),
            ("-d 3", "log_min_messages=debug3 log_statement=all debug_print_parse=true"),
            ("-d0", "log_min_messages=notice"),
            ("-dx", "log_min_messages=notice"),
            ("-sW1", "log_statement_stats=true post_auth_delay=1"),
            ("-bEjT -Dx -Cx -rx -v3", ""),
        ] {
            assert_eq!(shown(text), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_switch_is_named_as_postgresql_names_it() {
        let invalid = |word: &str| Err(OptionsError::Invalid(word.to_owned()));
        for (text, word) in [
            ("nonsense", "nonsense"),
            ("nonsense -c work_mem=1MB", "nonsense"),
            ("-x", "-x"),
            ("-c work_mem=1MB -x", "-x"),
            // getopt has not come to the end of the word.
            ("-xs", "postgres"),
            ("-s -xs", "-s"),
            ("-c", "-c"),
            ("-f x", "x"),
            ("-fx", "-fx"),
            ("-t q", "q"),
            ("-- a", "a"),
            ("\\", ""),
        ] {
            assert_eq!(parse(text), invalid(word), "{text}");
        }
        assert_eq!(parse("-c x").unwrap_err().to_string(), "-c x requires a value");
        assert_eq!(parse("--x").unwrap_err().to_string(), "--x requires a value");
    }
}
