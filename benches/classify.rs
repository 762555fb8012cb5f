//! What a classification costs, beside `pg_query::parse` and `sqlparser` on the same texts: the statements of pgbench, of ORMs and of a
//! search product, and long texts.
//!
//! Invariant: each figure is of a text that all three understand. Must not know: the inside of the classifier.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use pgsteer::classify::{Access, Dialect, TextCache, classify, shape_hash};
use sqlparser::dialect::PostgreSqlDialect;
use sqlparser::parser::Parser;

/// As `pgbench -S` and `pgbench` send them.
const PGBENCH: [(&str, &str); 4] = [
    ("select", "SELECT abalance FROM pgbench_accounts WHERE aid = 12345;"),
    ("prepared", "SELECT abalance FROM pgbench_accounts WHERE aid = $1;"),
    ("update", "UPDATE pgbench_accounts SET abalance = abalance + 4711 WHERE aid = 12345;"),
    (
        "insert",
        "INSERT INTO pgbench_history (tid, bid, aid, delta, mtime) VALUES (3, 1, 12345, 4711, CURRENT_TIMESTAMP);",
    ),
];

/// As the named frameworks write them.
const ORM: [(&str, &str); 10] = [
    (
        "django_get",
        r#"SELECT "auth_user"."id", "auth_user"."password", "auth_user"."last_login", "auth_user"."is_superuser", "auth_user"."username", "auth_user"."first_name", "auth_user"."last_name", "auth_user"."email", "auth_user"."is_staff", "auth_user"."is_active", "auth_user"."date_joined" FROM "auth_user" WHERE "auth_user"."id" = 1 LIMIT 21"#,
    ),
    (
        "django_join",
        r#"SELECT "shop_order"."id", "shop_order"."state", "shop_customer"."name" FROM "shop_order" INNER JOIN "shop_customer" ON ("shop_order"."customer_id" = "shop_customer"."id") WHERE ("shop_order"."state" IN ('open', 'paid') AND UPPER("shop_customer"."name"::text) LIKE UPPER('%smith%') AND "shop_order"."created" >= '2026-01-01T00:00:00+00:00'::timestamptz) ORDER BY "shop_order"."created" DESC LIMIT 25 OFFSET 50"#,
    ),
    (
        "django_aggregate",
        r#"SELECT "shop_item"."category_id", COUNT("shop_item"."id") AS "n", COALESCE(SUM(("shop_item"."price" * "shop_item"."stock")), 0) AS "worth" FROM "shop_item" WHERE NOT EXISTS(SELECT 1 AS "a" FROM "shop_recall" U0 WHERE U0."item_id" = ("shop_item"."id") LIMIT 1) GROUP BY "shop_item"."category_id" HAVING COUNT("shop_item"."id") > 3 ORDER BY "n" DESC"#,
    ),
    ("rails_find", r#"SELECT "users".* FROM "users" WHERE "users"."id" = $1 LIMIT $2"#),
    (
        "rails_eager",
        r#"SELECT "orders"."id" AS "t0_c0", "orders"."customer_id" AS "t0_c1", "customers"."name" AS "t1_c0", COUNT(DISTINCT "items"."id") FROM "orders" LEFT OUTER JOIN "customers" ON "customers"."id" = "orders"."customer_id" INNER JOIN "items" ON ("items"."order_id" = "orders"."id") WHERE "orders"."state" IN ($1, $2, $3) AND "orders"."created_at" BETWEEN $4 AND $5 AND lower("customers"."name") LIKE $6 GROUP BY "orders"."id", "customers"."name" ORDER BY "orders"."created_at" DESC LIMIT $7 OFFSET $8"#,
    ),
    (
        "rails_exists",
        r#"SELECT 1 AS one FROM "posts" WHERE "posts"."slug" = $1 AND "posts"."deleted_at" IS NULL LIMIT $2"#,
    ),
    (
        "hibernate_entity",
        "select o1_0.id,o1_0.created_at,c1_0.id,c1_0.email,c1_0.name,o1_0.state,o1_0.version from orders o1_0 left join customers c1_0 on c1_0.id=o1_0.customer_id where o1_0.id=$1",
    ),
    (
        "hibernate_page",
        "select p1_0.id,p1_0.name,p1_0.price,row_number() over(order by p1_0.name) from products p1_0 where lower(p1_0.name) like lower($1) escape '' and p1_0.category_id in ($2,$3,$4) order by p1_0.name offset $5 rows fetch first $6 rows only",
    ),
    (
        "prisma_many",
        r#"SELECT "public"."Post"."id", "public"."Post"."title", "public"."Post"."published", "public"."Post"."authorId" FROM "public"."Post" WHERE ("public"."Post"."published" = $1 AND ("public"."Post"."id") NOT IN (SELECT "t1"."postId" FROM "public"."Flag" AS "t1" WHERE ("t1"."open" = $2 AND "t1"."postId" IS NOT NULL))) ORDER BY "public"."Post"."id" ASC LIMIT $3 OFFSET $4"#,
    ),
    (
        "prisma_json",
        r#"SELECT "t0"."id", "t0"."email", "posts"."data" AS "posts" FROM "public"."User" AS "t0" LEFT JOIN LATERAL (SELECT COALESCE(JSONB_AGG("j"."data"), '[]') AS "data" FROM (SELECT JSONB_BUILD_OBJECT('id', "t1"."id", 'title', "t1"."title") AS "data" FROM "public"."Post" AS "t1" WHERE "t0"."id" = "t1"."authorId") AS "j") AS "posts" ON TRUE WHERE "t0"."id" = $1 LIMIT $2"#,
    ),
];

/// As they stand in ParadeDB's and pgvector's documentation.
const SEARCH: [(&str, &str); 5] = [
    (
        "score",
        "SELECT id, description, pdb.score(id), pdb.snippet(description) FROM mock_items WHERE description @@@ 'running shoes' AND rating > 3 ORDER BY pdb.score(id) DESC LIMIT 10",
    ),
    ("any_term", "SELECT id FROM mock_items WHERE description ||| $1 ORDER BY id LIMIT 5"),
    ("facets", r#"SELECT pdb.agg('{"terms": {"field": "rating"}}') FROM mock_items WHERE id @@@ pdb.all()"#),
    (
        "hybrid",
        "WITH text AS (SELECT id, rank() OVER (ORDER BY pdb.score(id) DESC) AS r FROM mock_items WHERE description @@@ 'shoes' LIMIT 20), vector AS (SELECT id, rank() OVER (ORDER BY embedding <=> '[1,2,3]') AS r FROM mock_items ORDER BY embedding <=> '[1,2,3]' LIMIT 20) SELECT id, sum(1.0 / (60 + r)) AS s FROM (SELECT * FROM text UNION ALL SELECT * FROM vector) f GROUP BY id ORDER BY s DESC LIMIT 5",
    ),
    (
        "full_text",
        "SELECT id, ts_rank(v, q) FROM docs, websearch_to_tsquery('english', $1) q WHERE v @@ q ORDER BY ts_rank(v, q) DESC LIMIT 10",
    ),
];

fn long() -> Vec<(&'static str, String)> {
    let list: Vec<String> = (0..1_280).map(|number| (100_000 + number).to_string()).collect();
    let dense: Vec<String> =
        (0..2_500).map(|n| format!("({n}, 'name {n}', {n}.25, NULL, lower($1))")).collect();
    vec![
        ("in_list_10kb", format!("SELECT * FROM t WHERE id IN ({})", list.join(", "))),
        ("literal_100kb", format!("INSERT INTO t VALUES ('{}')", "lorem ipsum ".repeat(8_500))),
        ("escaped_100kb", format!("INSERT INTO t VALUES (E'{}')", "it''s a line\\n".repeat(7_000))),
        ("rows_100kb", format!("INSERT INTO t (a, b, c, d, e) VALUES {}", dense.join(", "))),
        ("comment_100kb", format!("/* {} */ SELECT 1", "lorem ipsum ".repeat(8_500))),
    ]
}

fn bench(criterion: &mut Criterion) {
    let short = [("pgbench", &PGBENCH[..]), ("orm", &ORM[..]), ("search", &SEARCH[..])];
    let mut texts: Vec<(String, String)> = short
        .iter()
        .flat_map(|(kind, list)| {
            list.iter().map(move |(name, text)| (format!("{kind}_{name}"), (*text).to_owned()))
        })
        .collect();
    texts.extend(long().into_iter().map(|(name, text)| (name.to_owned(), text)));
    for (name, text) in &texts {
        let read = classify(text.as_bytes(), &Dialect::default()).access == Access::Read;
        assert!(read || text.starts_with("INSERT") || text.starts_with("UPDATE"), "{name} is a read");
        let mut group = criterion.benchmark_group(name);
        group.throughput(Throughput::Bytes(text.len() as u64));
        group.bench_function("classify", |bencher| {
            bencher.iter(|| classify(black_box(text.as_bytes()), &Dialect::default()));
        });
        if text.len() < 1_000 {
            let cache = TextCache::new(1);
            let dialect = Dialect { cache: Some(&cache), ..Dialect::default() };
            group.bench_function("classify_cached", |bencher| {
                bencher.iter(|| classify(black_box(text.as_bytes()), &dialect));
            });
        }
        if pg_query::parse(text, pg_query::ParserOptions::default()).is_ok() {
            group.bench_function("pg_query", |bencher| {
                bencher.iter(|| pg_query::parse(black_box(text), pg_query::ParserOptions::default()));
            });
        }
        if Parser::parse_sql(&PostgreSqlDialect {}, text).is_ok() {
            group.bench_function("sqlparser", |bencher| {
                bencher.iter(|| Parser::parse_sql(&PostgreSqlDialect {}, black_box(text)));
            });
        }
        group.finish();
    }
    let shaped = ORM[4].1.as_bytes();
    criterion.bench_function("shape_hash", |bencher| bencher.iter(|| shape_hash(black_box(shaped))));
}

criterion_group!(benches, bench);
criterion_main!(benches);
