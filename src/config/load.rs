//! Puts the sources together, in order of rank, and checks what no single key can.
//!
//! Invariant: nothing stops at the first fault (only a file that is not TOML is reported as that alone, with the
//! other sources still looked at). The environment is a value passed in, never read behind the caller's back. Must
//! not know: what the settings do.

use std::collections::HashMap;
use std::fmt;
use std::net::SocketAddr;
use std::ops::Range;
use std::path::Path;

use toml_edit::{Document, Item, TableLike, Value};

use super::fault::{Faults, Origin};
use super::keys::{Draft, Given, KEYS, Key};
use super::model::{Config, Override, Secret};
use super::nodes;
use super::overrides::{
    DATABASE_TERMS, DATABASES, FieldFault, LISTENER_TERMS, Tables, USER_TERMS, USERS, listener, terms,
};
use crate::classify::AskedTerms;
use crate::route::Mode;

/// A configuration file that has been read. Its text may hold a password: no Debug of it is derived.
#[derive(Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Its name, for faults.
    pub name: String,
    /// Its text.
    pub text: String,
}

/// Everything a configuration is made from.
#[derive(Clone, Default)]
pub struct Sources {
    /// The file, the lowest rank.
    pub file: Option<SourceFile>,
    /// Environment variables. Those that mean nothing here are ignored, near misses are faults.
    pub environment: Vec<(String, String)>,
    /// Flags with their values, the highest rank; see `RunArgs::flags`.
    pub flags: Vec<(&'static str, String)>,
}

impl Sources {
    /// A file, if there is one, and the environment of this process.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn of_process(file: Option<&Path>) -> Result<Self, Faults> {
        let file = match file {
            None => None,
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| Faults::unreadable(path.to_owned(), &error))?;
                Some(SourceFile { name: path.display().to_string(), text })
            }
        };
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Ok(Self { file, environment, flags: Vec::new() })
    }
}

impl fmt::Debug for Sources {
    /// Names only: the values may hold passwords.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags: Vec<&str> = self.flags.iter().map(|(flag, _)| *flag).collect();
        let file = self.file.as_ref().map(|file| file.name.as_str());
        f.debug_struct("Sources").field("file", &file).field("flags", &flags).finish_non_exhaustive()
    }
}

/// Makes a configuration of its sources.
///
/// # Errors
/// All that is wrong with them.
pub fn load(sources: Sources) -> Result<Config, Faults> {
    let mut loading = Loading::default();
    loading.defaults(&sources.environment);
    if let Some(file) = &sources.file {
        loading.file = Some(file.name.clone());
        loading.file(file);
    }
    loading.environment(&sources.environment);
    loading.flags(&sources.flags);
    loading.password();
    loading.check();
    loading.faults.into_result(loading.draft.config)
}

#[derive(Default)]
struct Loading {
    draft: Draft,
    /// The file's name.
    file: Option<String>,
    /// Where each key's value in force came from; also of values that were refused.
    origins: HashMap<&'static str, Origin>,
    refused: Vec<&'static str>,
    faults: Faults,
}

impl Loading {
    fn defaults(&mut self, environment: &[(String, String)]) {
        let variable =
            |wanted: &str| environment.iter().find(|(name, value)| name == wanted && !value.is_empty());
        if let Some((_, user)) = variable("PGUSER") {
            self.draft.config.cluster.user.clone_from(user);
        }
        if let Some((_, password)) = variable("PGPASSWORD") {
            self.draft.config.cluster.password = Some(Secret::new(password));
        }
    }

    fn set(&mut self, key: &Key, given: &Given, origin: Origin) {
        match key.set(&mut self.draft, given) {
            Ok(()) => self.refused.retain(|path| *path != key.path),
            Err(message) => {
                self.faults.push(origin.clone(), key.path, message);
                self.refused.push(key.path);
            }
        }
        self.origins.insert(key.path, origin);
    }

    fn file(&mut self, file: &SourceFile) {
        let document = match Document::parse(file.text.as_str()) {
            Ok(document) => document,
            Err(error) => {
                let origin = file.origin(error.span());
                self.faults.push(origin, "", format!("not TOML: {}", error.message().trim()));
                // What the file would have said is not known: no fault for what seems to be missing.
                self.refused.push("cluster.nodes");
                return;
            }
        };
        for (name, item) in document.iter() {
            let span = key_span(document.as_table(), name).or_else(|| item.span());
            if !KEYS.iter().any(|key| key.parts().0 == name) {
                self.faults.push(file.origin(span), name, unknown(name, ""));
            } else if let Some(section) = item.as_table_like() {
                self.section(file, name, section);
            } else {
                self.faults.push(file.origin(span), name, format!("expected a section [{name}]"));
            }
        }
    }

    fn section(&mut self, file: &SourceFile, section: &str, table: &dyn TableLike) {
        for (name, item) in table.iter() {
            let origin = file.origin(key_span(table, name).or_else(|| item.span()));
            let found = KEYS.iter().find(|key| key.parts() == (section, name));
            match found {
                None => self.faults.push(origin, format!("{section}.{name}"), unknown(name, section)),
                Some(key) if key.path == DATABASES.path => {
                    self.draft.config.pool.databases = self.limits(file, &DATABASES, item, origin);
                }
                Some(key) if key.path == USERS.path => {
                    self.draft.config.pool.users = self.limits(file, &USERS, item, origin);
                }
                Some(key) if key.path == LISTENER_TERMS => {
                    self.draft.config.routing.own.listeners = self.listener_terms(file, item, origin);
                }
                Some(key) if key.path == USER_TERMS => {
                    self.draft.config.routing.own.users = self.tables(file, USER_TERMS, item, origin, terms);
                }
                Some(key) if key.path == DATABASE_TERMS => {
                    self.draft.config.routing.own.databases =
                        self.tables(file, DATABASE_TERMS, item, origin, terms);
                }
                Some(key) if key.path == "cluster.node" => self.nodes(file, key, item, origin),
                Some(key) => self.set(key, &given(item), origin),
            }
        }
    }

    fn nodes(&mut self, file: &SourceFile, key: &Key, item: &Item, origin: Origin) {
        let tables: Vec<&dyn TableLike> = match item {
            Item::ArrayOfTables(tables) => tables.iter().map(|table| table as &dyn TableLike).collect(),
            _ => return self.set(key, &given(item), origin),
        };
        let (mut listed, mut faulty) = (Vec::new(), Vec::new());
        for (index, table) in tables.into_iter().enumerate() {
            let own = match item {
                Item::ArrayOfTables(tables) => tables.get(index).and_then(toml_edit::Table::span),
                _ => None,
            };
            listed.extend(nodes::read(table, index, &mut faulty));
            for (field, span, message) in faulty.drain(..) {
                let dot = if field.is_empty() { "" } else { "." };
                let place = file.origin(span.or_else(|| own.clone()));
                self.faults.push(place, format!("cluster.node{dot}{field}"), message);
                self.refused.push("cluster.nodes");
            }
        }
        if self.origins.contains_key("cluster.nodes") {
            self.faults.push(
                origin.clone(),
                key.path,
                "give either cluster.nodes or [[cluster.node]], not both",
            );
        }
        self.draft.config.cluster.nodes = listed;
        self.origins.insert("cluster.nodes", origin.clone());
        self.origins.insert("cluster.node", origin);
    }

    fn limits(&mut self, file: &SourceFile, of: &Tables, item: &Item, origin: Origin) -> Vec<Override> {
        let read = |table: &dyn TableLike, faults: &mut Vec<FieldFault>| of.read(table, faults);
        self.tables(file, of.path, item, origin, read).into_iter().map(|(_, own)| own).collect()
    }

    fn tables<T>(
        &mut self,
        file: &SourceFile,
        path: &'static str,
        item: &Item,
        origin: Origin,
        read: impl Fn(&dyn TableLike, &mut Vec<FieldFault>) -> Option<(String, T)>,
    ) -> Vec<(String, T)> {
        let Item::ArrayOfTables(tables) = item else {
            self.faults.push(origin, path, format!("expected tables [[{path}]]"));
            return Vec::new();
        };
        let (mut listed, mut faulty) = (Vec::<(String, T)>::new(), Vec::new());
        for table in tables {
            let own = read(table, &mut faulty);
            if let Some((name, _)) = own.as_ref().filter(|(name, _)| listed.iter().any(|it| it.0 == *name)) {
                faulty.push(("name", None, format!("{name:?} has a table already")));
            }
            listed.extend(own);
            for (field, span, message) in faulty.drain(..) {
                let dot = if field.is_empty() { "" } else { "." };
                let place = file.origin(span.or_else(|| table.span()));
                self.faults.push(place, format!("{path}{dot}{field}"), message);
            }
        }
        listed
    }

    /// What listeners have of their own, by what they are for.
    fn listener_terms(&mut self, file: &SourceFile, item: &Item, origin: Origin) -> Vec<(Mode, AskedTerms)> {
        let tables = self.tables(file, LISTENER_TERMS, item, origin.clone(), terms);
        let mut listed = Vec::new();
        for (name, terms) in tables {
            match listener(&name) {
                Some(mode) => listed.push((mode, terms)),
                None => {
                    let message = format!(
                        "expected \"split\", \"primary\", \"standby\" or \"prefer-standby\", got {name:?}"
                    );
                    self.faults.push(origin.clone(), format!("{LISTENER_TERMS}.name"), message);
                }
            }
        }
        listed
    }

    fn environment(&mut self, environment: &[(String, String)]) {
        let mut known = vec!["PGSTEER_CONFIG".to_owned()];
        for key in &KEYS {
            for variable in key.variables() {
                if let Some((_, value)) =
                    environment.iter().find(|(name, value)| *name == variable && !value.is_empty())
                {
                    self.set(key, &Given::Word(value.clone()), Origin::Environment(variable.clone()));
                }
                known.push(variable);
            }
        }
        for (name, _) in environment.iter().filter(|(name, _)| name.starts_with("PGSTEER_")) {
            // Kubernetes sets PGSTEER_SERVICE_HOST and the like for a Service of that name: far from any key.
            let near = known.iter().find(|known| distance(known, name) <= 2);
            if let Some(near) = near.filter(|_| !known.contains(name)) {
                let message = format!("unknown variable; did you mean {near}?");
                self.faults.push(Origin::Environment(name.clone()), "", message);
            }
        }
    }

    fn flags(&mut self, flags: &[(&'static str, String)]) {
        for (flag, value) in flags {
            match KEYS.iter().find(|key| key.flag == Some(*flag)) {
                Some(key) => self.set(key, &Given::Word(value.clone()), Origin::Flag(flag)),
                None => self.faults.push(Origin::Flag(flag), "", "unknown flag"),
            }
        }
    }

    /// Of a password and a password file the one of higher rank counts; of equal rank they contradict each other.
    fn password(&mut self) {
        let Some(path) = self.draft.password_file.take() else { return };
        let origin = self.origin("cluster.password_file");
        let (own, other) = (rank(&origin), self.origins.get("cluster.password").map_or(0, rank));
        if own == other {
            self.faults.push(
                origin,
                "cluster.password_file",
                "cluster.password is given as well; give one of them",
            );
        } else if own > other {
            match std::fs::read_to_string(&path) {
                Ok(text) => {
                    let text = text.trim_end_matches(['\r', '\n']);
                    self.draft.config.cluster.password = Some(Secret::new(text));
                }
                Err(error) => {
                    let message = format!("cannot read {}: {error}", path.display());
                    self.faults.push(origin, "cluster.password_file", message);
                }
            }
        }
    }

    fn check(&mut self) {
        self.check_nodes();
        self.check_intervals();
        self.check_listeners();
    }

    /// One address can be one thing only. The fault is that of the later one.
    fn check_listeners(&mut self) {
        let config = &self.draft.config;
        let own = ("listen.address", config.listen.addresses.as_slice());
        let further = config.listen.further().map(|(path, addresses, _)| (path, addresses));
        let mut seen: Vec<(&'static str, SocketAddr)> = Vec::new();
        let mut faults: Vec<(&'static str, String)> = Vec::new();
        for (path, address) in [own]
            .iter()
            .chain(&further)
            .flat_map(|(path, addresses)| addresses.iter().map(move |it| (*path, *it)))
        {
            match seen.iter().find(|(_, other)| *other == address) {
                Some((first, _)) if *first == path => {
                    faults.push((path, format!("{address} is listed twice")))
                }
                Some((first, _)) => faults.push((path, format!("{address} is also in {first}"))),
                None => seen.push((path, address)),
            }
        }
        let admin = config.admin.address.filter(|admin| seen.iter().any(|(_, address)| address == admin));
        faults.extend(
            admin.map(|address| ("admin.address", format!("{address} is also an address for clients"))),
        );
        for (path, message) in faults {
            self.fault(path, message);
        }
    }

    fn check_nodes(&mut self) {
        let nodes = &self.draft.config.cluster.nodes;
        let address = duplicate(nodes.iter().map(|node| &node.address)).map(ToString::to_string);
        let name = duplicate(nodes.iter().map(|node| &node.name)).cloned();
        if nodes.is_empty() {
            let file = self.file.as_deref().unwrap_or("a file that --config names");
            let message = format!(
                "no nodes: give --nodes host:port,..., PGSTEER_NODES, or nodes under [cluster] in {file}"
            );
            self.fault("cluster.nodes", message);
        }
        if let Some(address) = address {
            self.fault("cluster.nodes", format!("{address} is listed twice"));
        }
        if let Some(name) = name {
            self.fault("cluster.nodes", format!("two nodes have the name {name:?}"));
        }
    }

    fn check_intervals(&mut self) {
        let topology = self.draft.config.topology.clone();
        if self.refused.iter().any(|path| path.starts_with("topology.")) {
            return;
        }
        let (probe, rapid, ttl) = (topology.probe_interval, topology.rapid_interval, topology.claim_ttl);
        if probe >= ttl {
            let why = "every claim would expire before the next probe";
            self.pair_fault(
                (
                    "topology.probe_interval",
                    format!("expected less than claim_ttl ({ttl:?}), got {probe:?}: {why}"),
                ),
                (
                    "topology.claim_ttl",
                    format!("expected more than probe_interval ({probe:?}), got {ttl:?}: {why}"),
                ),
            );
        }
        if rapid > probe {
            self.pair_fault(
                (
                    "topology.rapid_interval",
                    format!("expected at most probe_interval ({probe:?}), got {rapid:?}"),
                ),
                (
                    "topology.probe_interval",
                    format!("expected at least rapid_interval ({rapid:?}), got {probe:?}"),
                ),
            );
        }
    }

    /// Two values that do not fit together: a fault of the one that was given, of the first if both were.
    fn pair_fault(&mut self, first: (&'static str, String), second: (&'static str, String)) {
        let given = |path| self.origin(path) != Origin::Default;
        let (path, message) = if given(first.0) || !given(second.0) { first } else { second };
        self.fault(path, message);
    }

    /// A fault of a value that is well-formed in itself; silent where the value was refused already.
    fn fault(&mut self, path: &'static str, message: String) {
        if !self.refused.contains(&path) {
            self.faults.push(self.origin(path), path, message);
        }
    }

    fn origin(&self, path: &str) -> Origin {
        self.origins.get(path).cloned().unwrap_or(Origin::Default)
    }
}

impl SourceFile {
    fn origin(&self, span: Option<Range<usize>>) -> Origin {
        let start = span.map_or(0, |span| span.start).min(self.text.len());
        let line = 1 + self.text.as_bytes()[..start].iter().filter(|byte| **byte == b'\n').count();
        Origin::File { name: self.name.clone(), line }
    }
}

fn key_span(table: &dyn TableLike, name: &str) -> Option<Range<usize>> {
    table.get_key_value(name).and_then(|(key, _)| key.span())
}

fn given(item: &Item) -> Given {
    match item {
        Item::Value(Value::String(text)) => Given::Text(text.value().clone()),
        Item::Value(Value::Integer(number)) => Given::Integer(*number.value()),
        Item::Value(Value::Array(array)) => array
            .iter()
            .map(|value| value.as_str().map(str::to_owned))
            .collect::<Option<Vec<String>>>()
            .map_or(Given::Other("an array that is not all strings"), Given::List),
        other => Given::Other(other.type_name()),
    }
}

fn rank(origin: &Origin) -> u8 {
    match origin {
        Origin::Default => 0,
        Origin::File { .. } => 1,
        Origin::Environment(_) => 2,
        Origin::Flag(_) => 3,
    }
}

fn duplicate<T: PartialEq>(values: impl Iterator<Item = T>) -> Option<T> {
    let mut seen = Vec::new();
    for value in values {
        if seen.contains(&value) {
            return Some(value);
        }
        seen.push(value);
    }
    None
}

/// PgBouncer's names of what has another name here.
const OF_PGBOUNCER: [(&str, &str); 6] = [
    ("default_pool_size", "pool.size"),
    ("pool_size", "pool.size"),
    ("pool_mode", "pool.mode"),
    ("reserve_pool", "pool.reserve_pool_size"),
    ("client_login_timeout", "listen.login_timeout"),
    ("server_connect_timeout", "topology.connect_timeout"),
];

/// "unknown key", with the most likely meaning: the same name elsewhere, or the nearest one here.
fn unknown(name: &str, section: &str) -> String {
    if let Some((_, meant)) = OF_PGBOUNCER.iter().find(|(theirs, _)| *theirs == name) {
        return format!("unknown key; did you mean {meant:?}?");
    }
    let elsewhere = KEYS.iter().find(|key| key.parts().1 == name).map(|key| key.path.to_owned());
    let candidates = KEYS.iter().map(|key| if section.is_empty() { key.parts().0 } else { key.parts().1 });
    let here = candidates
        .zip(&KEYS)
        .filter(|(_, key)| section.is_empty() || key.parts().0 == section)
        .map(|(candidate, _)| (distance(candidate, name), candidate))
        .filter(|(steps, candidate)| *steps <= (candidate.len() / 3).max(2))
        .min();
    let what = if section.is_empty() { "unknown section" } else { "unknown key" };
    match here.map(|(_, candidate)| candidate.to_owned()).or(elsewhere) {
        Some(meant) => format!("{what}; did you mean {meant:?}?"),
        None if section.is_empty() => what.to_owned(),
        None => {
            let keys = KEYS.iter().map(Key::parts).filter(|(own, _)| *own == section);
            let keys: Vec<&str> = keys.map(|(_, key)| key).collect();
            format!("{what}; [{section}] has {}", keys.join(", "))
        }
    }
}

/// Levenshtein distance.
fn distance(left: &str, right: &str) -> usize {
    let right: Vec<char> = right.chars().collect();
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (above, letter) in left.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, other) in right.iter().enumerate() {
            let replaced = diagonal + usize::from(letter != *other);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[right.len()]
}
