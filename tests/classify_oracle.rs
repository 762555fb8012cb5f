//! The classifier judged by PostgreSQL's own grammar over PostgreSQL's own regression scripts.
//!
//! Invariant: no statement that is classified as a read may hold, anywhere in its parse tree, what a read must not.
//! Must not know: how the classifier works.

#[path = "classify_oracle/judge.rs"]
mod judge;

use std::collections::BTreeMap;

use judge::{corpus, is_read_kind, node_view, objections, statements};
use pgsteer::classify::{Access, Catalogue, CatalogueStamp, Dialect, classify};

/// Why a statement without any fault is sent to the primary all the same: every class of them, the part of the text or the tree that
/// marks it, how many there may be at most, and why it stays.
const REMAINING: [(&str, u32, &str); 7] = [
    (
        "node view",
        90,
        "pg_stat_*, pg_locks, pg_settings, pg_cursors, pg_prepared_*, pg_sequences ...: they answer for one node, process or \
         session, so a standby's answer would be another",
    ),
    (
        "field of a row",
        45,
        "(row).field may be a call of the function `field`: a read as soon as the catalogue is known (asserted below)",
    ),
    ("U&\"name\"", 6, "a name that would have to be decoded; too rare to be worth it"),
    (
        "server's setting",
        20,
        "SHOW transaction_read_only (true on every standby), track_counts ...: the node's own settings",
    ),
    (
        "sampling method",
        2,
        "TABLESAMPLE of a method that is not PostgreSQL's own calls a handler that is not known",
    ),
    (
        "only sleeps",
        8,
        "SELECT pg_sleep(1): who looks for it, or ends it by its process, does so on the primary",
    ),
    ("window frame", 3, "ROWS (expression) PRECEDING looks like a call of a function `rows`"),
];

fn remaining_class(text: &str, tree: &str) -> &'static str {
    let lower = text.to_lowercase();
    if node_view(tree).is_some() {
        "node view"
    } else if lower.contains("pg_sleep") && !lower.contains("from") {
        "only sleeps"
    } else if tree.contains("VariableShowStmt") {
        "server's setting"
    } else if lower.contains("u&\"") {
        "U&\"name\""
    } else if tree.contains("RangeTableSample {") {
        "sampling method"
    } else if lower.contains("rows (select") {
        "window frame"
    } else if tree.contains("AIndirection {") {
        "field of a row"
    } else {
        "none"
    }
}

/// What a run over the corpus has found.
#[derive(Default)]
struct Tally {
    parsed: u32,
    reads: u32,
    pure: u32,
    missed: u32,
    wrong: Vec<String>,
    judged: BTreeMap<String, u32>,
    lost: BTreeMap<&'static str, Vec<String>>,
}

impl Tally {
    fn add(&mut self, text: &str, dialect: &Dialect<'_>) {
        let Ok(result) = pg_query::parse(text, pg_query::ParserOptions::default()) else {
            return;
        };
        if result.protobuf.stmts.len() != 1 {
            return;
        }
        self.parsed += 1;
        let tree = format!("{:?}", result.protobuf);
        let mut faults = objections(&tree);
        if !is_read_kind(&tree) {
            faults.push("not a read".into());
        }
        for fault in &faults {
            let kind = fault.split(' ').next().unwrap_or_default();
            *self.judged.entry(kind.to_owned()).or_default() += 1;
        }
        self.pure += u32::from(faults.is_empty());
        let answer = classify(text.as_bytes(), dialect);
        if answer.access == Access::Read {
            self.reads += 1;
            if !faults.is_empty() {
                self.wrong.push(format!("{faults:?}\n    {text}"));
            }
        } else if faults.is_empty() {
            self.missed += 1;
            let text = format!("{:?}: {}", answer.reason, text.trim().replace('\n', " "));
            self.lost.entry(remaining_class(&text, &tree)).or_default().push(text);
        }
    }

    fn print(&self) {
        println!(
            "{} statements, {} classified as reads, {} pure reads, {} of them ({:.2} %) sent to the primary",
            self.parsed,
            self.reads,
            self.pure,
            self.missed,
            100.0 * f64::from(self.missed) / f64::from(self.pure)
        );
        for (class, texts) in &self.lost {
            println!("  {class}: {}", texts.len());
            if std::env::var_os("PGSTEER_ORACLE_VERBOSE").is_some() || *class == "none" {
                texts.iter().for_each(|text| println!("      {text}"));
            }
        }
        println!("  objections: {:?}", self.judged);
    }
}

#[test]
fn no_write_is_taken_for_a_read() {
    let Some(script) = corpus() else {
        println!("no SQL corpus found (PGSTEER_SQL_CORPUS): nothing judged");
        return;
    };
    let mut tally = Tally::default();
    statements(&script).iter().for_each(|text| tally.add(text, &Dialect::default()));
    tally.print();
    let judged = &tally.judged;
    assert!(
        judged["call"] > 1_000 && judged["LockingClause"] > 30 && judged["IntoClause"] > 50,
        "{judged:?}"
    );
    assert!(tally.parsed > 10_000, "the corpus was not split: {}", tally.parsed);
    assert!(
        tally.wrong.is_empty(),
        "{} writes taken for reads:\n{}",
        tally.wrong.len(),
        tally.wrong.join("\n")
    );
    assert!(tally.missed * 100 < tally.pure, "{} of {} reads are lost", tally.missed, tally.pure);
    for (class, texts) in &tally.lost {
        let Some((_, most, _)) = REMAINING.iter().find(|(name, ..)| name == class) else {
            panic!("no explanation of {texts:?}");
        };
        assert!(texts.len() <= *most as usize, "{class}: {}", texts.len());
    }
}

/// With the catalogue of a database that has nothing of its own, fields of rows are reads, too.
#[test]
fn no_write_is_taken_for_a_read_with_a_catalogue() {
    let Some(script) = corpus() else {
        println!("no SQL corpus found (PGSTEER_SQL_CORPUS): nothing judged");
        return;
    };
    let catalogue = Catalogue::default();
    let dialect = Dialect {
        catalogue: Some(&catalogue),
        catalogue_stamp: CatalogueStamp { serial: 1, fresh: true },
        ..Dialect::default()
    };
    let mut tally = Tally::default();
    statements(&script).iter().for_each(|text| tally.add(text, &dialect));
    tally.print();
    assert!(
        tally.wrong.is_empty(),
        "{} writes taken for reads:\n{}",
        tally.wrong.len(),
        tally.wrong.join("\n")
    );
    assert!(tally.lost.get("field of a row").is_none_or(|texts| texts.len() < 4), "{:?}", tally.lost);
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
