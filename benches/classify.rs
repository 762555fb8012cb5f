//! What a classification costs: the statements of pgbench, an ORM and a search product, and long texts.
//!
//! Invariant: none; it measures. Must not know: the inside of the classifier.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgsteer::classify::{Dialect, TextCache, classify, shape_hash};

const ORM: &str = r#"SELECT "orders"."id" AS "t0_c0", "orders"."customer_id" AS "t0_c1", "customers"."name" AS "t1_c0",
    COUNT(DISTINCT "items"."id") FROM "orders" LEFT OUTER JOIN "customers" ON "customers"."id" = "orders"."customer_id"
    INNER JOIN "items" ON ("items"."order_id" = "orders"."id") WHERE "orders"."state" IN ($1, $2, $3) AND
    "orders"."created_at" BETWEEN $4 AND $5 AND lower("customers"."name") LIKE $6 GROUP BY "orders"."id",
    "customers"."name" ORDER BY "orders"."created_at" DESC LIMIT $7 OFFSET $8"#;

const SEARCH: &str = "SELECT id, description, pdb.score(id), pdb.snippet(description) FROM mock_items \
    WHERE description @@@ 'running shoes' AND rating > 3 ORDER BY pdb.score(id) DESC LIMIT 10";

fn texts() -> Vec<(&'static str, String)> {
    let list: Vec<String> = (0..1_450).map(|number| (100_000 + number).to_string()).collect();
    vec![
        ("pgbench_select", "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;".into()),
        (
            "pgbench_update",
            "UPDATE pgbench_accounts SET abalance = abalance + 4711 WHERE aid = 12345;".into(),
        ),
        ("begin", "BEGIN".into()),
        ("orm", ORM.into()),
        ("search", SEARCH.into()),
        ("in_list_10kb", format!("SELECT * FROM t WHERE id IN ({})", list.join(", "))),
        ("literal_100kb", format!("INSERT INTO t VALUES ('{}')", "lorem ipsum ".repeat(8_500))),
    ]
}

fn bench(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("classify");
    for (name, text) in texts() {
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function(name, |bencher| {
            bencher.iter(|| classify(black_box(text.as_bytes()), &Dialect::default()));
        });
    }
    group.finish();
    let mut group = criterion.benchmark_group("classify_cached");
    let cache = TextCache::new(1);
    let dialect = Dialect { cache: Some(&cache), ..Dialect::default() };
    for (name, text) in texts().into_iter().filter(|(_, text)| text.len() < 1000) {
        group.bench_function(name, |bencher| bencher.iter(|| classify(black_box(text.as_bytes()), &dialect)));
    }
    group.finish();
    criterion
        .bench_function("shape_hash/orm", |bencher| bencher.iter(|| shape_hash(black_box(ORM.as_bytes()))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
