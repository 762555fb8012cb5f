//! The law of the crate: who may import whom, what a pure file must not name, and how files must look.
//!
//! ARCHITECTURE.md says why. A new arrow in the module graph is a decision: it is made here, in the same commit as the code
//! that needs it. The checks read the sources as text, so they know nothing of macros that would hide a path.
//! Invariant: no rule without a self-test that shows that a breach of it is caught.

#[path = "architecture/checks.rs"]
mod checks;
#[path = "architecture/source.rs"]
mod source;

use std::fs;
use std::path::{Path, PathBuf};

use checks::{Arrow, arrows, breaches_of_form, breaches_of_graph, breaches_of_purity, cycle};
use source::Source;

/// May import everything.
const ALL: &[&str] = &["*"];

/// Each module, and what it may import: a module, or one part of it (`topology::model`).
const MAY_IMPORT: &[(&str, &[&str])] = &[
    ("wire", &[]),
    ("net", &[]),
    ("telemetry", &[]),
    ("shutdown", &[]),
    ("classify", &[]),
    ("auth", &["wire"]),
    ("relay", &["wire"]),
    ("client", &["wire", "net", "auth", "telemetry", "shutdown"]),
    ("backend", &["wire", "net", "auth", "relay", "telemetry", "topology::model"]),
    ("topology", &["telemetry", "shutdown"]),
    ("route", &["classify", "topology::model"]),
    // What is known of a database is kept with its pools.
    ("pool", &["wire", "net", "auth", "classify", "backend", "topology", "telemetry", "shutdown"]),
    (
        "session",
        &[
            "net",
            "wire",
            "telemetry",
            "shutdown",
            "classify",
            "auth",
            "relay",
            "client",
            "backend",
            "topology",
            "route",
            "pool",
        ],
    ),
    ("admin", &["topology", "pool", "telemetry", "shutdown"]),
    // The settings types of the modules; that nobody but `app` and `cli` imports `config` follows from this table.
    ("config", ALL),
    ("sandbox", &[]),
    ("demo", &["admin", "sandbox"]),
    // What the catalogue is asked is the sessions' question.
    ("explain", &["classify", "session"]),
    // The composition root, and the arguments in front of it. That they do not import each other both ways is the
    // business of the check for cycles.
    ("app", ALL),
    ("cli", ALL),
    ("main", &["cli"]),
];

/// Pure files: a directory, or one module whether it is a file or a directory.
const PURE: &[&str] = &[
    "wire",
    "classify",
    "auth",
    "relay",
    "route",
    "config",
    "admin/console",
    "topology/model",
    "topology/failover",
    "topology/reconcile",
    "client/handshake",
    "backend/login",
    "backend/promotion",
    "backend/reset",
    "session/exchange/rules",
    "session/exchange/through",
    "session/commits",
    "session/unit",
    "session/journal",
    "session/translate",
    "session/outcome",
    "session/transaction",
    "session/prepared",
    "session/setting_names",
    "session/settings",
    "pool/state",
];

/// All `.rs` files below a directory of the repository, with their paths relative to it.
fn read_tree(directory: &str) -> Vec<Source> {
    read_texts(directory).iter().map(|(path, text)| Source::new(path, text)).collect()
}

fn read_texts(directory: &str) -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut texts = Vec::new();
    let mut todo = vec![root.clone()];
    while let Some(path) = todo.pop() {
        let entries = fs::read_dir(&path).map(|entries| entries.flatten().map(|e| e.path()).collect());
        let entries: Vec<PathBuf> = entries.unwrap_or_default();
        for entry in entries {
            if entry.is_dir() {
                todo.push(entry);
            } else if entry.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&entry).expect("a readable source file");
                let relative = entry.strip_prefix(&root).expect("below the root");
                texts.push((relative.to_string_lossy().into_owned(), text));
            }
        }
    }
    texts.sort();
    texts
}

/// Hazards of freshness that no test has in its name, among these texts.
fn untested_hazards(texts: &[(String, String)]) -> Vec<String> {
    let all = (1..=12).map(|number| format!("r{number:02}_"));
    let is_tested = |name: &str| texts.iter().any(|(_, text)| text.contains(&format!("fn {name}")));
    all.filter(|name| !is_tested(name)).collect()
}

fn assert_none(breaches: Vec<String>) {
    assert!(breaches.is_empty(), "\n{}\n", breaches.join("\n"));
}

#[test]
fn imports_follow_the_module_graph() {
    let sources = read_tree("src");
    assert!(!sources.is_empty(), "src is found");
    assert_none(breaches_of_graph(&sources, MAY_IMPORT));
}

#[test]
fn module_graph_has_no_cycle() {
    assert_eq!(cycle(&arrows(&read_tree("src"))), None);
}

#[test]
fn table_itself_has_no_cycle() {
    let arrow = |from: &str, to: &&str| Arrow {
        from: from.to_owned(),
        to: to.split("::").next().unwrap_or_default().to_owned(),
        part: None,
        place: String::new(),
    };
    let table: Vec<Arrow> =
        MAY_IMPORT.iter().flat_map(|(from, to)| to.iter().map(move |to| arrow(from, to))).collect();
    assert_eq!(cycle(&table), None);
}

#[test]
fn pure_files_know_no_runtime_clock_dice_or_log() {
    let sources = read_tree("src");
    assert_none(sources.iter().flat_map(|s| breaches_of_purity(s, PURE)).collect());
}

/// Hazards of freshness R01 to R12: each has a test that has its number in its name.
#[test]
fn every_hazard_of_freshness_has_a_test() {
    let texts = [read_texts("src"), read_texts("tests")].concat();
    assert_none(untested_hazards(&texts));
}

#[test]
fn every_file_keeps_the_form() {
    assert_none(read_tree("src").iter().flat_map(breaches_of_form).collect());
}

#[test]
fn every_file_says_what_it_is_for() {
    let all = ["src", "tests", "benches"].into_iter().flat_map(read_tree);
    assert_none(all.filter_map(|source| checks::breach_of_head(&source)).collect());
}

/// The checks themselves, on sources that exist only here.
mod the_checks {
    use super::*;

    fn graph(path: &str, text: &str) -> Vec<String> {
        breaches_of_graph(&[Source::new(path, text)], MAY_IMPORT)
    }

    #[test]
    fn forbidden_import_is_caught_however_it_is_written() {
        for (path, text) in [
            ("relay/pump.rs", "use crate::route::Decision;"),
            ("relay/pump.rs", "use crate::{\n    wire,\n    route::{self, Decision},\n};"),
            ("relay/pump.rs", "fn f() { crate::route::decide(); }"),
            ("relay/mod.rs", "use super::route;"),
            ("relay/pump.rs", "use super::super::route::Decision;"),
            ("relay/deep/er.rs", "use super::super::super::route;"),
            ("relay/pump.rs", "mod inner { use super::super::super::route; }"),
            ("shutdown.rs", "use super::telemetry;"),
            ("route/policy.rs", "use crate::topology::monitor::Monitor;"),
            ("route/policy.rs", "use crate::topology;"),
            ("route/policy.rs", "use crate::topology::{model::Snapshot, monitor};"),
            ("client/accept.rs", "use crate::backend::login;"),
            ("pool/lease.rs", "use crate::config::Config;"),
            ("sandbox/mod.rs", "use crate::wire;"),
            ("main.rs", "fn main() { pgsteer::app::run() }"),
            ("novelty.rs", "//! A module that is not in the table."),
            ("relay/pump.rs", "use crate::novelty::X;"),
        ] {
            assert_eq!(graph(path, text).len(), 1, "{path}: {text}: {:?}", graph(path, text));
        }
    }

    #[test]
    fn allowed_imports_comments_strings_and_tests_pass() {
        for (path, text) in [
            ("client/pump.rs", "use crate::{net, wire::{Header, limits}};"),
            ("relay/pump.rs", "use super::buffer::Buffer;\npub(crate) fn f() {}"),
            ("relay/pump.rs", "// use crate::route;\n/* crate::route /* nested */ */"),
            ("relay/pump.rs", "const A: &str = \"crate::route\"; const B: &str = r#\"\"crate::route\"#;"),
            ("relay/pump.rs", "fn f<'a>(x: &'a u8) -> char { '\"' }\n// \" use crate::route"),
            ("relay/pump.rs", "#[cfg(test)]\nmod tests { use crate::route::Decision; }"),
            ("route/policy.rs", "use crate::topology::model::{NodeId, Snapshot};"),
            ("app.rs", "use crate::{config, session};"),
            ("main.rs", "fn main() { pgsteer::cli::main() }"),
        ] {
            assert_eq!(graph(path, text), Vec::<String>::new(), "{path}: {text}");
        }
    }

    #[test]
    fn breach_names_file_and_line() {
        let breaches = graph("relay/pump.rs", "//! Pump.\n\nuse crate::route;");
        assert_eq!(breaches, ["src/relay/pump.rs:3: relay may not import route"]);
    }

    #[test]
    fn cycle_is_caught_and_named() {
        let sources = [
            Source::new("pool/mod.rs", "use crate::backend::Server;"),
            Source::new("backend/mod.rs", "use crate::telemetry::Metrics;"),
            Source::new("telemetry/mod.rs", "use crate::pool::Pool;"),
        ];
        assert_eq!(cycle(&arrows(&sources)).as_deref(), Some("backend -> telemetry -> pool -> backend"));
        assert_eq!(cycle(&arrows(&sources[..2])), None);
    }

    #[test]
    fn impurity_is_caught_in_pure_files_only() {
        for text in [
            "use tokio::time::Instant;",
            "use std::net::TcpStream;",
            "fn f() { let t = Instant::now(); }",
            "fn f() { let t = std::time::SystemTime::now(); }",
            "fn f() -> u64 { fastrand::u64(..) }",
            "fn f() { tracing::info!(\"x\"); }",
        ] {
            for path in ["route/policy.rs", "session/unit.rs", "session/unit/batch.rs", "auth/mod.rs"] {
                assert_eq!(breaches_of_purity(&Source::new(path, text), PURE).len(), 1, "{path}: {text}");
            }
            let driver = Source::new("session/driver.rs", text);
            assert_eq!(breaches_of_purity(&driver, PURE), Vec::<String>::new());
        }
        let value =
            Source::new("route/policy.rs", "use std::time::Instant; fn f(now: Instant, tokio: u8) {}");
        assert_eq!(breaches_of_purity(&value, PURE), Vec::<String>::new());
    }

    #[test]
    fn form_is_held() {
        let long = format!("fn long(x: [u8; 2]) {{{}}}", "\n".repeat(90));
        for (path, text) in [
            ("net/utils.rs", ""),
            ("helpers/mod.rs", ""),
            ("net/tcp.rs", "fn f() { g().unwrap(); }"),
            ("net/tcp.rs", long.as_str()),
            ("net/tcp.rs", "static mut COUNT: u32 = 0;"),
            ("net/tcp.rs", "static COUNT: AtomicU64 = AtomicU64::new(0);"),
            ("net/tcp.rs", "static POOLS: OnceLock<Pools> = OnceLock::new();"),
            ("net/tcp.rs", "thread_local! { static X: Cell<u8> = Cell::new(0); }"),
        ] {
            assert_eq!(breaches_of_form(&Source::new(path, text)).len(), 1, "{path}: {text}");
        }
        for text in [
            "static NAMES: &[&str] = &[\"a\"]; fn f(x: &'static str) {}",
            "#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() { x().unwrap(); }\n}",
            "fn f() { x().unwrap_or_default(); }",
            "trait T { fn f(&self); }\nfn short() {}",
        ] {
            assert_eq!(breaches_of_form(&Source::new("net/tcp.rs", text)), Vec::<String>::new(), "{text}");
        }
        let test_file = Source::new("session/tests/pair.rs", "fn f() { x().unwrap(); }");
        assert_eq!(breaches_of_form(&test_file), Vec::<String>::new());
    }

    #[test]
    fn a_hazard_without_a_test_is_caught() {
        let but_the_last: String = (1..12).map(|number| format!("async fn r{number:02}_x() {{}}")).collect();
        assert_eq!(untested_hazards(&[(String::new(), but_the_last)]), ["r12_"]);
    }

    #[test]
    fn missing_head_is_caught() {
        assert!(checks::breach_of_head(&Source::new("net/tcp.rs", "use std::io;")).is_some());
        assert!(checks::breach_of_head(&Source::new("net/tcp.rs", "//!\n")).is_some());
        assert!(checks::breach_of_head(&Source::new("net/tcp.rs", "//! TCP.\n")).is_none());
    }
}
