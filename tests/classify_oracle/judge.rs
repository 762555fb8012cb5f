//! PostgreSQL's grammar as the judge: which statements the corpus has, and what in a parse tree no read may have.
//!
//! Invariant: it is looked for in the whole tree, so that nothing can hide. Must not know: how the classifier works.

// Each test binary uses its own part of this, and a test's set-up ends by a panic.
#![allow(dead_code)]

use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pgsteer::classify::is_safe_function;

/// Nodes that no read has. They are looked for in the whole printed tree, so that none can hide.
const FORBIDDEN: [&str; 8] = [
    "IntoClause {",
    "LockingClause {",
    "InsertStmt {",
    "UpdateStmt {",
    "DeleteStmt {",
    "MergeStmt {",
    "ExecuteStmt {",
    "CreateTableAsStmt {",
];

/// The scripts of the corpus, one behind the other; `None` where it isn't.
pub(crate) fn corpus() -> Option<String> {
    let folder = std::env::var_os("PGSTEER_SQL_CORPUS")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../shared/corpora"), PathBuf::from);
    let archive = folder.join("postgresql-15-regress-sql.tar.gz");
    if !archive.exists() {
        return None;
    }
    let mut child =
        Command::new("tar").arg("-xzOf").arg(archive).stdout(Stdio::piped()).spawn().expect("tar starts");
    let mut bytes = Vec::new();
    child.stdout.take().expect("piped").read_to_end(&mut bytes).expect("tar answers");
    assert!(child.wait().expect("tar ends").success());
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// Drops psql's own lines and COPY data, and cuts the rest where a line ends with a semicolon and the text so far
/// can be scanned.
pub(crate) fn statements(script: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut text = String::new();
    let mut data = false;
    for line in script.lines() {
        if data {
            data = line != "\\.";
            continue;
        }
        if line.starts_with('\\') {
            continue;
        }
        text.push_str(line);
        text.push('\n');
        let ends = line.trim_end().ends_with(';') || line.contains("; --") || line.contains(";\t");
        if (ends && pg_query::scan(&text).is_ok()) || text.len() > 20_000 {
            let parts = pg_query::split_with_scanner(&text)
                .map_or_else(|_| vec![text.clone()], |parts| parts.into_iter().map(str::to_owned).collect());
            data = parts.iter().any(|part| {
                let lower = part.to_lowercase();
                lower.contains("copy ") && lower.contains("from stdin")
            });
            found.extend(parts);
            text.clear();
        }
    }
    found
}

/// Views that answer for a node, a server process or a session: no read of the database's. A sequence's last value runs ahead on
/// standbys (M11), and what is prepared stands on the primary alone.
const NODE_VIEWS: [&str; 20] = [
    "pg_available_extension_versions",
    "pg_available_extensions",
    "pg_backend_memory_contexts",
    "pg_config",
    "pg_cursors",
    "pg_file_settings",
    "pg_hba_file_rules",
    "pg_ident_file_mappings",
    "pg_locks",
    "pg_prepared_statements",
    "pg_prepared_xacts",
    "pg_replication_slots",
    "pg_sequences",
    "pg_settings",
    "pg_shmem_allocations",
    "pg_stat_all_tables",
    "pg_stat_slru",
    "pg_stat_user_tables",
    "pg_stat_wal",
    "pg_stat_wal_receiver",
];

/// The view of a node that a statement reads.
pub(crate) fn node_view(tree: &str) -> Option<&'static str> {
    let named = |view: &&&str| tree.contains(&format!("relname: \"{view}\""));
    NODE_VIEWS
        .iter()
        .find(named)
        .copied()
        .or_else(|| tree.contains("relname: \"pg_statio_").then_some("pg_statio"))
}

/// Everything in `tree` that a read must not have.
pub(crate) fn objections(tree: &str) -> Vec<String> {
    let mut found: Vec<String> =
        FORBIDDEN.iter().filter(|node| tree.contains(**node)).map(|node| (*node).to_owned()).collect();
    for call in tree.split("FuncCall { funcname: [").skip(1) {
        let list = &call[..call.find("], args").unwrap_or(call.len())];
        let names: Vec<&str> = list
            .split("sval: \"")
            .skip(1)
            .map(|rest| &rest[..rest.find('"').unwrap_or(rest.len())])
            .collect();
        let safe = match names[..] {
            [name] => is_safe_function(None, name, 18),
            [schema, name] => is_safe_function(Some(schema), name, 18),
            _ => false,
        };
        if !safe {
            found.push(format!("call of {}", names.join(".")));
        }
    }
    found
}

/// Is it a kind of statement that can be a read?
pub(crate) fn is_read_kind(tree: &str) -> bool {
    let Some(at) = tree.find("stmt: Some(Node { node: Some(") else {
        return false;
    };
    let kind = &tree[at + "stmt: Some(Node { node: Some(".len()..];
    let copy =
        kind.starts_with("CopyStmt") && kind.contains("is_from: false, is_program: false, filename: \"\"");
    copy || ["SelectStmt", "ExplainStmt", "VariableShowStmt"].iter().any(|name| kind.starts_with(name))
}
