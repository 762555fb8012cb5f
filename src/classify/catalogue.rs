//! What a database has beyond PostgreSQL's own: which functions, operators and relations make a statement that uses them a write.
//!
//! Invariant: of several things that have one name the strictest counts, whatever schema they are in: the `search_path` and the
//! types of arguments are not known here. What is not listed is not known. Pure. Must not know: how it was asked for.

use std::collections::{HashMap, HashSet};

use super::builtins::{self, Folded};

/// Schemas of ParadeDB's functions.
const SEARCH_SCHEMAS: [&str; 2] = ["pdb", "paradedb"];

/// The extension that ParadeDB's functions are known by.
const SEARCH_EXTENSION: &str = "pg_search";

/// Operators that words mean: IN, BETWEEN, LIKE, NULLIF, CASE, USING and their like.
const IMPLIED: [&str; 10] = ["=", "<>", "<", "<=", ">", ">=", "~~", "!~~", "~~*", "!~~*"];

/// What a call of a function needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It may run on a standby, and twice.
    Read,
    /// Only on the primary.
    Write,
}

/// A function as the catalogue has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Function {
    /// Its schema.
    pub schema: String,
    /// Its name.
    pub name: String,
    /// It is volatile, or what it consists of (an aggregate's functions) is, or its body may change the session.
    pub volatile: bool,
}

/// What was found in a database.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Found {
    /// All functions that are not PostgreSQL's own.
    pub functions: Vec<Function>,
    /// Operators that lead to a volatile function: the function's schema, the operator's name.
    pub operators: Vec<(String, String)>,
    /// Names of relations and types that only the primary may be asked for: foreign and unlogged tables, views and policies that
    /// call volatile functions, domains and types with such checks and casts.
    pub objects: Vec<String>,
    /// Names of types that take modifiers.
    pub modified_types: Vec<String>,
    /// Names of extensions.
    pub extensions: Vec<String>,
}

/// The same, to look up.
#[derive(Debug, Default)]
pub struct Catalogue {
    /// By name, and by schema and name with a dot between them.
    functions: HashMap<Box<[u8]>, Verdict>,
    operators: HashSet<Box<[u8]>>,
    /// One of them is what words such as IN and LIKE mean.
    implied: bool,
    objects: HashSet<Box<[u8]>>,
    modified_types: HashSet<Box<[u8]>>,
}

impl Catalogue {
    /// Makes what was found fit to be looked up.
    pub fn new(found: &Found, overrides: &Overrides) -> Self {
        let search = found.extensions.iter().any(|name| name == SEARCH_EXTENSION);
        let mut functions: HashMap<Box<[u8]>, Verdict> = HashMap::new();
        for function in &found.functions {
            let is_search = search && SEARCH_SCHEMAS.contains(&function.schema.as_str());
            let verdict = match overrides.of(&function.schema, &function.name) {
                Some(verdict) => verdict,
                None if is_search && builtins::is_search(&Folded::quoted(function.name.as_bytes())) => {
                    Verdict::Read
                }
                None if function.volatile => Verdict::Write,
                None => Verdict::Read,
            };
            let qualified = format!("{}.{}", function.schema, function.name);
            for key in [qualified.as_bytes(), function.name.as_bytes()] {
                let known = functions.entry(key.into()).or_insert(verdict);
                *known = (*known).max(verdict);
            }
        }
        let is_search = |schema: &str, name: &str| {
            search && SEARCH_SCHEMAS.contains(&schema) && builtins::is_search_operator(name.as_bytes())
        };
        let operators = found.operators.iter().filter(|(schema, name)| !is_search(schema, name));
        let operators: Vec<String> = operators.map(|(_, name)| name.clone()).collect();
        let implied = operators.iter().any(|name| IMPLIED.contains(&name.as_str()));
        let set = |names: &[String]| names.iter().map(|name| name.as_bytes().into()).collect();
        Self {
            functions,
            operators: set(&operators),
            implied,
            objects: set(&found.objects),
            modified_types: set(&found.modified_types),
        }
    }

    /// Makes it of the rows of `session/catalogue.sql`: kind, schema, name, a truth value.
    pub fn from_rows<'r>(rows: impl IntoIterator<Item = [&'r str; 4]>, overrides: &Overrides) -> Self {
        let mut found = Found::default();
        for [kind, schema, name, value] in rows {
            let name = name.to_owned();
            match kind {
                "function" => {
                    let schema = schema.to_owned();
                    found.functions.push(Function { schema, name, volatile: value != "f" });
                }
                "operator" => found.operators.push((schema.to_owned(), name)),
                "object" => found.objects.push(name),
                "modified_type" => found.modified_types.push(name),
                "extension" => found.extensions.push(name),
                _ => {}
            }
        }
        Self::new(&found, overrides)
    }

    /// What a call by this name alone needs; `None`: no function has it.
    pub(super) fn function(&self, name: &Folded<'_>) -> Option<Verdict> {
        name.with_key(None, |key| self.functions.get(key).copied()).flatten()
    }

    /// The same with a schema.
    pub(super) fn function_of(&self, schema: &Folded<'_>, name: &Folded<'_>) -> Option<Verdict> {
        name.with_key(Some(schema), |key| self.functions.get(key).copied()).flatten()
    }

    /// One operator that is written so leads to a volatile function.
    pub(super) fn is_writing_operator(&self, operator: &[u8]) -> bool {
        let operator: &[u8] = if operator == b"!=" { b"<>" } else { operator };
        !self.operators.is_empty() && self.operators.contains(operator)
    }

    /// Words such as IN and LIKE may lead to a volatile function.
    #[inline]
    pub(super) fn implies_writes(&self) -> bool {
        self.implied
    }

    /// One relation or type of this name only the primary may be asked for.
    #[inline]
    pub(super) fn is_primary_object(&self, name: &Folded<'_>) -> bool {
        !self.objects.is_empty() && name.with_key(None, |key| self.objects.contains(key)).unwrap_or(true)
    }

    /// There is a type of this name that takes modifiers.
    pub(super) fn is_modified_type(&self, name: &Folded<'_>) -> bool {
        name.with_key(None, |key| self.modified_types.contains(key)).unwrap_or_default()
    }
}

/// What the configuration says of functions: `routing.read_functions` and `routing.write_functions`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Overrides {
    /// Patterns of those that are reads.
    pub read: Vec<Pattern>,
    /// Patterns of those that are writes, which win.
    pub write: Vec<Pattern>,
}

/// `name`, `schema.name`, and either with `*` for anything.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    schema: Option<String>,
    name: String,
}

impl Pattern {
    /// Reads a pattern; what was wrong with it otherwise.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let (schema, name) = match text.split_once('.') {
            Some((schema, name)) => (Some(schema.to_owned()), name.to_owned()),
            None => (None, text.to_owned()),
        };
        let is_fine = |part: &str| !part.is_empty() && !part.contains(['(', ')', ' ', '"', '.']);
        if !is_fine(&name) || !schema.as_deref().is_none_or(is_fine) {
            return Err("must be a function's name, with its schema or without, and * for anything");
        }
        Ok(Self { schema, name })
    }

    fn fits(&self, schema: &[u8], name: &[u8]) -> bool {
        self.schema.as_deref().is_none_or(|pattern| like(pattern.as_bytes(), schema))
            && like(self.name.as_bytes(), name)
    }
}

impl Overrides {
    /// Nothing is said.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.read.is_empty() && self.write.is_empty()
    }

    /// What is said of a function.
    pub fn of(&self, schema: &str, name: &str) -> Option<Verdict> {
        self.of_bytes(schema.as_bytes(), name.as_bytes())
    }

    fn of_bytes(&self, schema: &[u8], name: &[u8]) -> Option<Verdict> {
        let says = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.fits(schema, name));
        if says(&self.write) { Some(Verdict::Write) } else { says(&self.read).then_some(Verdict::Read) }
    }

    /// What is said of a function of PostgreSQL itself, or of one of which nothing else is known.
    pub(super) fn of_call(&self, schema: Option<&Folded<'_>>, name: &Folded<'_>) -> Option<Verdict> {
        name.with_key(None, |name| match schema {
            Some(schema) => schema.with_key(None, |schema| self.of_bytes(schema, name)).flatten(),
            None => self.of_bytes(b"pg_catalog", name),
        })
        .flatten()
    }
}

/// Whether the name is as the pattern says, `*` standing for anything. Time and stack in proportion to the lengths.
fn like(pattern: &[u8], name: &[u8]) -> bool {
    let (mut at, mut from) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while from < name.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, from));
                at += 1;
            }
            Some(&letter) if Some(&letter) == name.get(from) => {
                at += 1;
                from += 1;
            }
            _ => {
                let Some((star_at, star_from)) = star else { return false };
                star = Some((star_at, star_from + 1));
                (at, from) = (star_at + 1, star_from + 1);
            }
        }
    }
    pattern.get(at..).is_some_and(|rest| rest.iter().all(|&letter| letter == b'*'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn function(schema: &str, name: &str, volatile: bool) -> Function {
        Function { schema: schema.into(), name: name.into(), volatile }
    }

    fn folded(name: &str) -> Folded<'_> {
        Folded::unquoted(name.as_bytes())
    }

    #[test]
    fn of_several_functions_the_strictest_counts() {
        let found = Found {
            functions: vec![function("a", "f", false), function("b", "f", true), function("a", "g", false)],
            ..Found::default()
        };
        let catalogue = Catalogue::new(&found, &Overrides::default());
        assert_eq!(catalogue.function(&folded("F")), Some(Verdict::Write));
        assert_eq!(catalogue.function(&folded("g")), Some(Verdict::Read));
        assert_eq!(catalogue.function(&folded("h")), None);
        assert_eq!(catalogue.function_of(&folded("A"), &folded("f")), Some(Verdict::Read));
        assert_eq!(catalogue.function_of(&folded("b"), &folded("f")), Some(Verdict::Write));
    }

    #[test]
    fn the_configuration_has_the_last_word() {
        let pattern = |text| Pattern::parse(text).unwrap();
        let overrides =
            Overrides { read: vec![pattern("app.*"), pattern("report")], write: vec![pattern("app.*_now")] };
        let found = Found {
            functions: vec![
                function("app", "f", true),
                function("app", "do_now", false),
                function("x", "f", true),
            ],
            ..Found::default()
        };
        let catalogue = Catalogue::new(&found, &overrides);
        assert_eq!(catalogue.function_of(&folded("app"), &folded("f")), Some(Verdict::Read));
        assert_eq!(catalogue.function(&folded("f")), Some(Verdict::Write), "another schema's");
        assert_eq!(catalogue.function(&folded("do_now")), Some(Verdict::Write));
        assert_eq!(overrides.of_call(None, &folded("REPORT")), Some(Verdict::Read));
        for wrong in ["", "a.", ".b", "f(int)", "a.b.c", "\"f\""] {
            assert!(Pattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, fits) in [
            ("*", "", true),
            ("a*c", "abbbc", true),
            ("a*c", "abbbd", false),
            ("*b*", "abc", true),
            ("a**", "a", true),
            ("a", "ab", false),
            ("", "a", false),
            ("*aaaaaaaaaaaaaaaaaaaaaaaab", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", false),
        ] {
            assert_eq!(like(pattern.as_bytes(), name.as_bytes()), fits, "{pattern} {name}");
        }
    }
}
