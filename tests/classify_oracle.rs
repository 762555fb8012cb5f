//! The classifier judged by PostgreSQL's own grammar over PostgreSQL's own regression scripts.
//!
//! Invariant: no statement that is classified as a read may hold, anywhere in its parse tree, what a read must not.
//! Must not know: how the classifier works.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use pgsteer::classify::{Access, Dialect, classify, is_safe_function};

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

fn corpus() -> Option<String> {
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
fn statements(script: &str) -> Vec<String> {
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

/// Everything in `tree` that a read must not have.
fn objections(tree: &str) -> Vec<String> {
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

fn is_read_kind(tree: &str) -> bool {
    let Some(at) = tree.find("stmt: Some(Node { node: Some(") else {
        return false;
    };
    let kind = &tree[at + "stmt: Some(Node { node: Some(".len()..];
    let copy =
        kind.starts_with("CopyStmt") && kind.contains("is_from: false, is_program: false, filename: \"\"");
    copy || ["SelectStmt", "ExplainStmt", "VariableShowStmt"].iter().any(|name| kind.starts_with(name))
}

#[test]
fn no_write_is_taken_for_a_read() {
    let Some(script) = corpus() else {
        println!("no SQL corpus found (PGSTEER_SQL_CORPUS): nothing judged");
        return;
    };
    let (mut parsed, mut reads, mut pure, mut missed) = (0u32, 0u32, 0u32, 0u32);
    let mut wrong = Vec::new();
    let mut judged: BTreeMap<String, u32> = BTreeMap::new();
    let mut lost: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for text in statements(&script) {
        let Ok(result) = pg_query::parse(&text, pg_query::ParserOptions::default()) else {
            continue;
        };
        if result.protobuf.stmts.len() != 1 {
            continue;
        }
        parsed += 1;
        let tree = format!("{:?}", result.protobuf);
        let mut faults = objections(&tree);
        if !is_read_kind(&tree) {
            faults.push("not a read".into());
        }
        let answer = classify(text.as_bytes(), &Dialect::default());
        for fault in &faults {
            let kind = fault.split(' ').next().unwrap_or_default();
            *judged.entry(kind.to_owned()).or_default() += 1;
        }
        pure += u32::from(faults.is_empty());
        if answer.access == Access::Read {
            reads += 1;
            if !faults.is_empty() {
                wrong.push(format!("{faults:?}\n    {text}"));
            }
        } else if faults.is_empty() {
            missed += 1;
            lost.entry(format!("{:?}", answer.reason)).or_default().push(text);
        }
    }
    println!(
        "{parsed} statements, {reads} classified as reads, {pure} pure reads, {missed} of them sent to the primary"
    );
    for (reason, texts) in &lost {
        println!("  {reason}: {}", texts.len());
        if std::env::var_os("PGSTEER_ORACLE_VERBOSE").is_some() {
            texts.iter().for_each(|text| println!("      {}", text.trim().replace('\n', " ")));
        }
    }
    println!("  objections: {judged:?}");
    assert!(
        judged["call"] > 1_000 && judged["LockingClause"] > 30 && judged["IntoClause"] > 50,
        "{judged:?}"
    );
    assert!(parsed > 10_000, "the corpus was not split: {parsed}");
    assert!(wrong.is_empty(), "{} writes taken for reads:\n{}", wrong.len(), wrong.join("\n"));
}

/// Calls that are put in the place of single tokens: a plain name, and names that are also words of the grammar.
const PLANTED: [&str; 14] = [
    "zz",
    "over",
    "filter",
    "escape",
    "operator",
    "cube",
    "sets",
    "by",
    "zone",
    "join",
    "materialized",
    "system",
    "ilike",
    "rollup",
];

/// Every read of the corpus, with a call of an unknown function in the place of one token after the other: wherever
/// the grammar sees the call, the classifier must.
#[test]
fn no_planted_call_is_missed() {
    let Some(script) = corpus() else {
        println!("no SQL corpus found (PGSTEER_SQL_CORPUS): nothing planted");
        return;
    };
    let (mut planted, mut wrong, mut turn) = (0u32, Vec::new(), 0usize);
    for text in statements(&script) {
        if text.len() > 600 || classify(text.as_bytes(), &Dialect::default()).access != Access::Read {
            continue;
        }
        let Ok(scanned) = pg_query::scan(&text) else {
            continue;
        };
        for token in &scanned.tokens {
            turn += 1;
            let name = if turn % 3 == 0 { PLANTED[turn / 3 % PLANTED.len()] } else { "zz" };
            let (before, after) = (&text[..token.start as usize], &text[token.end as usize..]);
            for call in [format!(" {name}(a) "), format!(" {name} ")] {
                let mutated = format!("{before}{call}{after}");
                if classify(mutated.as_bytes(), &Dialect::default()).access != Access::Read {
                    continue;
                }
                let Ok(result) = pg_query::parse(&mutated, pg_query::ParserOptions::default()) else {
                    continue;
                };
                planted += 1;
                let faults = objections(&format!("{:?}", result.protobuf));
                if !faults.is_empty() {
                    wrong.push(format!("{faults:?}\n    {mutated}"));
                }
            }
        }
    }
    println!("{planted} mutated statements still classified as reads, all judged");
    assert!(wrong.is_empty(), "{} calls missed:\n{}", wrong.len(), wrong[..wrong.len().min(40)].join("\n"));
}
