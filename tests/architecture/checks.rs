//! The rules: each takes sources and gives the breaches it finds, one line each, with file and line.
//!
//! Invariant: a rule only reads; what is allowed is an argument. Must not know: the file system.

use std::collections::{BTreeMap, BTreeSet};

use crate::source::Source;

/// More lines than this do not fit a screen.
const FUNCTION_LINES_MAX: usize = 90;

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &["utils", "util", "common", "helpers", "helper", "misc"];

/// What no pure file may name: sequences of tokens.
const IMPURE: &[&[&str]] = &[
    &["tokio", ":", ":"],
    &["tokio_postgres", ":", ":"],
    &["tracing", ":", ":"],
    &["fastrand", ":", ":"],
    &["socket2", ":", ":"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["UnixStream"],
    &["UnixListener"],
    &["Instant", ":", ":", "now"],
    &["SystemTime", ":", ":", "now"],
];

/// Types that make a `static` a global variable.
const CHANGEABLE: &[&str] = &["Mutex", "RwLock", "OnceLock", "OnceCell", "Cell", "RefCell", "ArcSwap", "mut"];

/// One module names another.
#[derive(Debug)]
pub struct Arrow {
    /// The module that imports.
    pub from: String,
    /// The module that is imported.
    pub to: String,
    /// The part of it that is named, if one is.
    pub part: Option<String>,
    /// File and line.
    pub place: String,
}

/// Every arrow between top modules.
pub fn arrows(sources: &[Source]) -> Vec<Arrow> {
    sources.iter().flat_map(arrows_of).collect()
}

fn arrows_of(source: &Source) -> Vec<Arrow> {
    let module = source.module();
    let Some(from) = module.first() else { return Vec::new() };
    let mut found = Vec::new();
    let mut inline: Vec<(String, usize)> = Vec::new();
    for index in 0..source.tokens.len() {
        inline.retain(|(_, end)| index < *end);
        if source.at(index) == "mod" && source.at(index + 2) == "{" {
            inline.push((source.at(index + 1).to_owned(), source.closing(index + 2)));
        }
        let starts_path = index == 0 || source.at(index - 1) != ":";
        let base = match source.at(index) {
            "crate" | "pgsteer" if starts_path && source.matches(index + 1, &[":", ":"]) => Vec::new(),
            "super" | "self" if starts_path && source.matches(index + 1, &[":", ":"]) => {
                module.iter().cloned().chain(inline.iter().map(|(name, _)| name.clone())).collect()
            }
            _ => continue,
        };
        let line = source.tokens[index].line;
        let base = if source.at(index) == "super" { parent(base) } else { base };
        for path in paths(source, index + 3, base) {
            let Some(to) = path.first().filter(|to| *to != from) else { continue };
            let place = format!("src/{}:{line}", source.path);
            found.push(Arrow { from: from.clone(), to: to.clone(), part: path.get(1).cloned(), place });
        }
    }
    found
}

fn parent(mut path: Vec<String>) -> Vec<String> {
    path.pop();
    path
}

/// The paths that a use-tree (or a path in an expression) names from here on.
fn paths(source: &Source, mut index: usize, mut base: Vec<String>) -> Vec<Vec<String>> {
    loop {
        match source.at(index) {
            "{" => return group(source, index, &base),
            "super" => base = parent(base),
            "self" => {}
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => base.push(word.to_owned()),
            _ => return vec![base],
        }
        if !source.matches(index + 1, &[":", ":"]) {
            return vec![base];
        }
        index += 3;
    }
}

fn group(source: &Source, open: usize, base: &[String]) -> Vec<Vec<String>> {
    let end = source.closing(open);
    let mut found = Vec::new();
    let mut index = open + 1;
    while index < end {
        found.extend(paths(source, index, base.to_vec()));
        while index < end && source.at(index) != "," {
            index = if source.at(index) == "{" { source.closing(index) + 1 } else { index + 1 };
        }
        index += 1;
    }
    found
}

/// Arrows that the table does not have, and modules it does not know.
pub fn breaches_of_graph(sources: &[Source], table: &[(&str, &[&str])]) -> Vec<String> {
    let known: BTreeMap<&str, &[&str]> = table.iter().copied().collect();
    let mut breaches = BTreeSet::new();
    for source in sources {
        if let Some(module) = source.module().first()
            && !known.contains_key(module.as_str())
        {
            breaches.insert(format!("src/{}: the table does not know the module {module}", source.path));
        }
    }
    for Arrow { from, to, part, place } in arrows(sources) {
        let Some(allowed) = known.get(from.as_str()) else { continue };
        let part = part.map(|part| format!("{to}::{part}"));
        let permits = |entry: &str| entry == "*" || entry == to || Some(entry) == part.as_deref();
        if !known.contains_key(to.as_str()) {
            breaches.insert(format!("{place}: the table does not know the module {to}"));
        } else if !allowed.iter().any(|entry| permits(entry)) {
            breaches.insert(format!("{place}: {from} may not import {}", narrow(&to, part, allowed)));
        }
    }
    breaches.into_iter().collect()
}

/// Names the part only where the table allows another part.
fn narrow(to: &str, part: Option<String>, allowed: &[&str]) -> String {
    let other_part =
        allowed.iter().any(|entry| entry.split_once("::").is_some_and(|(module, _)| module == to));
    part.filter(|_| other_part).unwrap_or_else(|| to.to_owned())
}

/// The first cycle among the modules, as `a -> b -> a`.
pub fn cycle(arrows: &[Arrow]) -> Option<String> {
    let mut next: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for arrow in arrows {
        next.entry(&arrow.from).or_default().insert(&arrow.to);
    }
    let mut done = BTreeSet::new();
    next.keys().find_map(|start| visit(start, &next, &mut Vec::new(), &mut done))
}

fn visit<'a>(
    module: &'a str,
    next: &BTreeMap<&'a str, BTreeSet<&'a str>>,
    way: &mut Vec<&'a str>,
    done: &mut BTreeSet<&'a str>,
) -> Option<String> {
    if let Some(start) = way.iter().position(|m| *m == module) {
        return Some([&way[start..], &[module]].concat().join(" -> "));
    }
    if !done.insert(module) {
        return None;
    }
    way.push(module);
    let found = next.get(module).into_iter().flatten().find_map(|to| visit(to, next, way, done));
    way.pop();
    found
}

/// What a pure file names though it must not.
pub fn breaches_of_purity(source: &Source, pure: &[&str]) -> Vec<String> {
    let path = source.path.trim_end_matches(".rs");
    let is_pure =
        |entry: &&str| path.strip_prefix(*entry).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    if !pure.iter().any(is_pure) {
        return Vec::new();
    }
    let found = (0..source.tokens.len()).flat_map(|index| {
        IMPURE.iter().filter(move |words| source.matches(index, words)).map(move |w| (index, w))
    });
    found
        .map(|(index, words)| {
            let line = source.tokens[index].line;
            format!("src/{}:{line}: a pure file names {}", source.path, words.concat())
        })
        .collect()
}

/// Names, `unwrap`, length of functions, globals.
pub fn breaches_of_form(source: &Source) -> Vec<String> {
    let mut breaches = Vec::new();
    for part in source.path.trim_end_matches(".rs").split('/') {
        if EMPTY_NAMES.contains(&part) {
            breaches.push(format!("src/{}: the name {part} says nothing", source.path));
        }
    }
    for index in 0..source.tokens.len() {
        let fault = match source.at(index) {
            "." if source.matches(index + 1, &["unwrap", "("]) => Some("unwrap outside tests".to_owned()),
            // Without a name it is a type.
            "fn" if source.at(index + 1) != "(" => long_function(source, index),
            "static" => global(source, index),
            _ => None,
        };
        if let Some(fault) = fault {
            breaches.push(format!("src/{}:{}: {fault}", source.path, source.tokens[index].line));
        }
    }
    breaches
}

fn long_function(source: &Source, index: usize) -> Option<String> {
    let mut open = index;
    while !matches!(source.at(open), "{") {
        open = match source.at(open) {
            "" | ";" => return None,
            "(" | "[" => source.closing(open) + 1,
            _ => open + 1,
        };
    }
    let end = source.tokens.get(source.closing(open))?.line;
    let lines = end + 1 - source.tokens[index].line;
    let name = source.at(index + 1);
    (lines > FUNCTION_LINES_MAX)
        .then(|| format!("fn {name} has {lines} lines, more than {FUNCTION_LINES_MAX}"))
}

fn global(source: &Source, index: usize) -> Option<String> {
    let end = (index..source.tokens.len()).find(|i| matches!(source.at(*i), "=" | ";" | "|"))?;
    let changeable = |word: &str| CHANGEABLE.contains(&word) || word.starts_with("Atomic");
    let found = (index..end).map(|i| source.at(i)).find(|word| changeable(word))?;
    Some(format!("a static with {found} is a global variable; statics are for tables of constants"))
}

/// Every file begins by saying what it is for.
pub fn breach_of_head(source: &Source) -> Option<String> {
    let says = source.head.strip_prefix("//!").is_some_and(|rest| !rest.trim().is_empty());
    (!says).then(|| format!("{}: does not begin with a //! line that says what it is for", source.path))
}
