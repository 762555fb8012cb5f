//! What a call needs, by all that is known of its name, and where that is known from.
//!
//! Invariant: a name of which nothing is known is a write; of several meanings the strictest counts. Must not know: where in a
//! statement a call stands.

use super::builtins::{self, Folded};
use super::{Dialect, Verdict};

/// Where it is known from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// One of PostgreSQL's own that is safe.
    Builtin,
    /// One of PostgreSQL's own that writes, locks or keeps state.
    Writing,
    /// One that tells of the node or the server process.
    NodeLocal,
    /// The database's catalogue.
    Catalogue,
    /// The same, which was read before something was defined.
    StaleCatalogue,
    /// `routing.read_functions` or `routing.write_functions`.
    Configuration,
    /// ParadeDB's search.
    Search,
    /// Nothing is known.
    Unknown,
}

impl Source {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Builtin => "PostgreSQL's own, safe on a standby",
            Self::Writing => "PostgreSQL's own, writes, locks or keeps state",
            Self::NodeLocal => "PostgreSQL's own, tells of the node or the server process",
            Self::Catalogue => "by the database's catalogue",
            Self::StaleCatalogue => "by the database's catalogue, which is being changed",
            Self::Configuration => "by the configuration",
            Self::Search => "of ParadeDB's search",
            Self::Unknown => "not known",
        }
    }
}

/// A call in a text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Called {
    /// The function, as the server reads its name.
    pub name: String,
    /// What the call needs.
    pub verdict: Verdict,
    /// Where that is known from.
    pub source: Source,
}

/// What a call needs, and where that is known from. `parts`: of its name.
#[inline]
pub(super) fn judge(
    dialect: &Dialect<'_>,
    parts: u8,
    schema: Option<&Folded<'_>>,
    function: &Folded<'_>,
) -> (Verdict, Source) {
    if !dialect.overrides.is_empty()
        && let Some(verdict) = dialect.overrides.of_call(schema, function)
    {
        return (verdict, Source::Configuration);
    }
    let own = builtins::is_builtin(function, dialect.version);
    let fresh = dialect.catalogue_stamp.fresh;
    let source = if fresh { Source::Catalogue } else { Source::StaleCatalogue };
    match (parts, schema) {
        (1, _) => match dialect.catalogue.and_then(|catalogue| catalogue.function(function)) {
            // Which of them is meant depends on arguments and search_path.
            Some(Verdict::Write) => (Verdict::Write, source),
            Some(Verdict::Read) if !own && fresh && !is_unsafe(function) => (Verdict::Read, source),
            Some(Verdict::Read) | None => of_postgresql(own, function),
        },
        (2, Some(schema)) if schema.is(b"pg_catalog") => {
            match dialect.catalogue.and_then(|catalogue| catalogue.function_of(schema, function)) {
                Some(Verdict::Write) => (Verdict::Write, source),
                _ => of_postgresql(own, function),
            }
        }
        (2, Some(schema)) => match dialect.catalogue {
            Some(catalogue) => match catalogue.function_of(schema, function) {
                Some(Verdict::Read) if fresh => (Verdict::Read, source),
                Some(_) => (Verdict::Write, source),
                None => (Verdict::Write, Source::Unknown),
            },
            None if (schema.is(b"pdb") || schema.is(b"paradedb")) && builtins::is_search(function) => {
                (Verdict::Read, Source::Search)
            }
            None => (Verdict::Write, Source::Unknown),
        },
        _ => (Verdict::Write, Source::Unknown),
    }
}

#[inline]
fn of_postgresql(own: bool, function: &Folded<'_>) -> (Verdict, Source) {
    if own {
        (Verdict::Read, Source::Builtin)
    } else if builtins::is_node_local(function) {
        (Verdict::Write, Source::NodeLocal)
    } else if builtins::is_writing(function) {
        (Verdict::Write, Source::Writing)
    } else {
        (Verdict::Write, Source::Unknown)
    }
}

/// Functions of PostgreSQL that must not be called by the way of `alias.name`, which looks like a column.
#[inline]
pub(super) fn is_unsafe(name: &Folded<'_>) -> bool {
    may_be_unsafe(name) && (builtins::is_writing(name) || builtins::is_node_local(name))
}

/// A quick look at how the name begins, before it is looked for: most names are columns.
#[inline]
fn may_be_unsafe(name: &Folded<'_>) -> bool {
    const BEGINNINGS: [[u8; 2]; 8] = [*b"cu", *b"in", *b"la", *b"lo", *b"ne", *b"pg", *b"se", *b"tx"];
    name.lower_pair().is_some_and(|pair| BEGINNINGS.contains(&pair))
}

/// The same for people.
pub(super) fn called(
    dialect: &Dialect<'_>,
    parts: u8,
    schema: Option<&Folded<'_>>,
    function: &Folded<'_>,
) -> Called {
    let (verdict, source) = judge(dialect, parts, schema, function);
    let name = function.spelt();
    let name = schema.map_or_else(|| name.clone(), |schema| format!("{}.{name}", schema.spelt()));
    Called { name, verdict, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_quick_look_lets_no_unsafe_name_pass() {
        for name in builtins::unsafe_names() {
            assert!(is_unsafe(&Folded::quoted(name.as_bytes())), "{name}");
            assert!(is_unsafe(&Folded::unquoted(name.to_ascii_uppercase().as_bytes())), "{name}");
        }
        assert!(!is_unsafe(&Folded::quoted(b"name")));
    }
}
