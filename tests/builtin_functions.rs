//! The lists of PostgreSQL's own functions, compared with the catalogue of the server that is installed here.
//!
//! `make functions BINS="/usr/lib/postgresql/14/bin ... /usr/lib/postgresql/18/bin"` makes them anew, of one server for each
//! supported version.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use pgsteer::classify::{SUPPORTED_VERSIONS, is_safe_function};
use pgsteer::sandbox::Sandbox;

const QUERY: &str = include_str!("../src/classify/functions/catalogue.sql");

/// What a name is in one version.
type Functions = BTreeMap<String, bool>;

async fn functions(binaries: Option<&Path>) -> (u32, Functions) {
    let builder = Sandbox::builder().standbys(0);
    let builder = match binaries {
        Some(path) => builder.binaries(path),
        None => builder,
    };
    let sandbox = builder.start().await.unwrap();
    let client = sandbox.connect(0).await.unwrap();
    let number = client.query_one("SHOW server_version_num", &[]).await.unwrap().get::<_, String>(0);
    let rows = client.query(QUERY, &[]).await.unwrap();
    let functions = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    (number.parse::<u32>().unwrap() / 10_000, functions)
}

/// What is safe here is known as that from this version on, and nothing else is, but for what is put right by hand.
#[tokio::test]
async fn the_lists_are_those_of_the_server() {
    let (version, functions) = functions(None).await;
    assert!(functions.len() > 2_500);
    let version = u8::try_from(version).unwrap();
    let mut faults = Vec::new();
    for (name, safe) in &functions {
        let known = is_safe_function(None, name, version);
        if known && !safe && !pgsteer::classify::is_harmless_function(name) {
            faults.push(format!("{name} is taken for safe"));
        }
        // Names that a later version does not have any more are left out.
        if *safe && !known && is_safe_function(None, name, *SUPPORTED_VERSIONS.end()) {
            faults.push(format!("{name} is not known before a later version"));
        }
    }
    let missing = functions.iter().filter(|(name, safe)| **safe && !is_safe_function(None, name, version));
    let missing: Vec<&String> = missing.map(|(name, _)| name).collect();
    assert!(missing.len() < 30, "{missing:?}");
    assert!(faults.is_empty(), "{faults:?}");
}

/// Writes the lists anew. Needs servers of all supported versions.
#[tokio::test]
#[ignore = "writes into the source: make functions"]
async fn write_the_lists() {
    let binaries = std::env::var("BINS").expect("BINS: directories of server programs, one for each version");
    let mut by_version: BTreeMap<u32, Functions> = BTreeMap::new();
    for path in binaries.split_whitespace() {
        let (version, functions) = functions(Some(Path::new(path))).await;
        by_version.insert(version, functions);
    }
    let wanted: Vec<u32> = SUPPORTED_VERSIONS.map(u32::from).collect();
    assert_eq!(by_version.keys().copied().collect::<Vec<_>>(), wanted, "one server for each version");
    let newest = &by_version[wanted.last().unwrap()];
    let mut lists: BTreeMap<u32, BTreeSet<&str>> =
        wanted.iter().map(|version| (*version, BTreeSet::new())).collect();
    for name in newest.keys() {
        // Known from the version on since which it has been there and safe without a break.
        let since =
            wanted.iter().rev().take_while(|version| by_version[*version].get(name) == Some(&true)).last();
        if let Some(since) = since {
            lists.get_mut(since).unwrap().insert(name);
        }
    }
    let safe: BTreeSet<&str> = lists.values().flatten().copied().collect();
    let all = by_version.values().flat_map(BTreeMap::keys).map(String::as_str);
    let others =
        all.filter(|name| !safe.contains(name) && !pgsteer::classify::is_harmless_function(name)).collect();
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("src/classify/functions");
    std::fs::write(folder.join("unsafe.txt"), wrapped(&others)).unwrap();
    for (version, names) in lists {
        let file = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("src/classify/functions/since_{version}.txt"));
        std::fs::write(file, wrapped(&names)).unwrap();
    }
}

/// Lines of up to 120 characters.
fn wrapped(names: &BTreeSet<&str>) -> String {
    let mut text = String::new();
    let mut width = 0;
    for name in names {
        if width > 0 && width + 1 + name.len() > 120 {
            text.push('\n');
            width = 0;
        }
        let space = if width > 0 { " " } else { "" };
        write!(text, "{space}{name}").unwrap();
        width += space.len() + name.len();
    }
    text.push('\n');
    text
}
