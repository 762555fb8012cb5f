//! The settings a session brought with its startup packet, and how a server connection is brought to them.
//!
//! Invariant: after the preamble of `difference` the server has exactly these settings and none of another session's.
//! Must not know: sockets. SET during the session pins it (see `classify`), so nothing else needs carrying over yet.

use std::fmt::Write as _;

use crate::wire::startup::Startup;

/// Settings of a startup packet.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StartupSettings {
    /// Identity within its shard; 0 for none.
    pub id: u64,
    /// Name and value, sorted by name.
    pub pairs: Vec<(String, String)>,
}

/// A startup `options` value that pgsteer does not understand.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("startup option not understood: {0:?} (expected -c name=value or --name=value)")]
pub struct OptionsError(pub String);

/// The settings among the parameters of a startup packet.
pub fn from_startup(startup: &Startup) -> Result<Vec<(String, String)>, OptionsError> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (name, value) in &startup.parameters {
        match name.as_str() {
            "user" | "database" | "replication" => {}
            "options" => {
                for (name, value) in options(value)? {
                    put(&mut pairs, &name, value);
                }
            }
            _ => put(&mut pairs, name, value.clone()),
        }
    }
    pairs.sort();
    Ok(pairs)
}

fn put(pairs: &mut Vec<(String, String)>, name: &str, value: String) {
    pairs.retain(|(other, _)| !other.eq_ignore_ascii_case(name));
    pairs.push((name.to_owned(), value));
}

/// Splits `-c a=b --c=d` as PostgreSQL's `pg_split_opts` and `process_postgres_switches` do.
fn options(text: &str) -> Result<Vec<(String, String)>, OptionsError> {
    let fault = || OptionsError(text.to_owned());
    let mut pairs = Vec::new();
    let mut words = split_words(text).into_iter();
    while let Some(word) = words.next() {
        let assignment = if let Some(rest) = word.strip_prefix("--") {
            rest.to_owned()
        } else if let Some(rest) = word.strip_prefix("-c") {
            if rest.is_empty() { words.next().ok_or_else(fault)? } else { rest.to_owned() }
        } else {
            return Err(fault());
        };
        let (name, value) = assignment.split_once('=').ok_or_else(fault)?;
        let plain =
            name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'));
        if name.is_empty() || !plain {
            return Err(fault());
        }
        pairs.push((name.replace('-', "_"), value.to_owned()));
    }
    Ok(pairs)
}

fn split_words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c.is_ascii_whitespace() {
            words.extend(word.take());
        } else {
            let next = if c == '\\' { chars.next().unwrap_or('\\') } else { c };
            word.get_or_insert_default().push(next);
        }
    }
    words.extend(word);
    words
}

/// The commands that bring a server from the settings named in `applied` to `wanted`, in order, each a Query of its own: a
/// SET that fails must not take the RESETs before it back.
pub fn difference(applied: &[String], wanted: &StartupSettings) -> Vec<String> {
    let mut reset = String::new();
    for name in applied {
        if !wanted.pairs.iter().any(|(other, _)| other == name) {
            let _ = write!(reset, "RESET {};", quoted_name(name));
        }
    }
    let mut set = String::new();
    for (name, value) in &wanted.pairs {
        let _ = write!(set, "SET {} TO {};", quoted_name(name), argument(name, value));
    }
    [reset, set].into_iter().filter(|sql| !sql.is_empty()).collect()
}

/// Settings whose value is a list of names that SET wants one by one (`GUC_LIST_QUOTE`): in one literal, `a, b` would be the
/// name of one schema. SELECT of `set_config` reads them as the startup packet does, but fails on a standby where the default
/// isolation is serializable.
const NAME_LISTS: [&str; 4] =
    ["search_path", "temp_tablespaces", "session_preload_libraries", "local_preload_libraries"];

/// What stands behind `SET name TO`.
fn argument(name: &str, value: &str) -> String {
    if NAME_LISTS.iter().any(|list| name.eq_ignore_ascii_case(list))
        && let Some(names) = name_list(value)
        && !names.is_empty()
    {
        return names.iter().map(|name| quoted_value(name)).collect::<Vec<_>>().join(", ");
    }
    quoted_value(value)
}

/// Splits a list of names as `SplitIdentifierString` (varlena.c) does; `None` if it is none.
fn name_list(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() {
        let name;
        if let Some(quoted) = rest.strip_prefix('"') {
            let mut end = 0;
            loop {
                end += quoted.get(end..)?.find('"')?;
                if !quoted.get(end + 1..)?.starts_with('"') {
                    break;
                }
                end += 2;
            }
            name = quoted.get(..end)?.replace("\"\"", "\"");
            rest = quoted.get(end + 1..)?.trim_ascii_start();
        } else {
            let end = rest.find(',').unwrap_or(rest.len());
            let word = rest.get(..end)?.trim_ascii_end();
            if word.is_empty() || word.contains(|c: char| c.is_ascii_whitespace()) {
                return None;
            }
            name = word.to_ascii_lowercase();
            rest = rest.get(end..)?;
        }
        names.push(name);
        rest = match rest.strip_prefix(',') {
            Some(more) if !more.trim_ascii().is_empty() => more.trim_ascii_start(),
            None if rest.is_empty() => rest,
            _ => return None,
        };
    }
    Some(names)
}

fn quoted_name(name: &str) -> String {
    name.split('.')
        .map(|part| format!("\"{}\"", part.to_ascii_lowercase().replace('"', "\"\"")))
        .collect::<Vec<_>>()
        .join(".")
}

/// An escape string, which means the same whatever `standard_conforming_strings` is.
fn quoted_value(value: &str) -> String {
    format!("E'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_options_are_split_as_postgresql_does() {
        let expected =
            vec![("work_mem".to_owned(), "4MB".to_owned()), ("app.tenant".to_owned(), "a b".to_owned())];
        assert_eq!(options("-c work_mem=4MB  --app.tenant=a\\ b").unwrap(), expected);
        assert_eq!(options("-cwork_mem=4MB").unwrap(), expected[..1]);
        assert!(options("-x").is_err());
        assert!(options("-c").is_err());
        assert!(options("-c a;b=1").is_err());
    }

    /// G01: one session's settings are gone when another's are applied; values can't break out of their quotes.
    #[test]
    fn the_difference_resets_what_is_not_wanted() {
        let wanted = StartupSettings {
            id: 1,
            pairs: vec![("application_name".into(), "it's \\ x".into()), ("app.t".into(), "1".into())],
        };
        assert_eq!(
            difference(&["TimeZone".to_owned(), "app.t".to_owned()], &wanted),
            ["RESET \"timezone\";", "SET \"application_name\" TO E'it''s \\\\ x';SET \"app\".\"t\" TO E'1';"]
        );
        assert!(difference(&[], &StartupSettings::default()).is_empty());
    }

    /// G03: a list of schemas stays a list.
    #[test]
    fn lists_of_names_are_set_name_by_name() {
        assert_eq!(
            argument("search_path", "public, \"A\"\"b\" ,Pg_Catalog"),
            "E'public', E'A\"b', E'pg_catalog'"
        );
        assert_eq!(argument("search_path", ""), "E''");
        assert_eq!(argument("search_path", "a b"), "E'a b'");
        assert_eq!(argument("search_path", "a,"), "E'a,'");
        assert_eq!(argument("application_name", "a, b"), "E'a, b'");
    }
}
