//! What a catalogue decides: extensions' functions, operators, types and casts, and users' own, by catalogues made of rows as a
//! session gets them.
//!
//! Invariant: each row is judged with the catalogue fresh, and again while something is being defined: then nothing that is a read by
//! the catalogue alone may be one. Must not know: how the classifier works.

use pgsteer::classify::{Access, Catalogue, CatalogueStamp, Classification, Dialect, Overrides, classify};

/// Functions of one schema that are not volatile, and those that are.
struct Schema {
    name: &'static str,
    stable: &'static str,
    volatile: &'static str,
}

const SCHEMAS: [Schema; 5] = [
    Schema {
        name: "pdb",
        stable: "score snippet snippets snippet_positions all empty parse parse_with_field match term term_set phrase range \
            regex regex_phrase more_like_this boost const fuzzy_term exists prox_regex prox_array prox_clause simple ngram \
            edge_ngram whitespace literal literal_normalized unicode_words regex_pattern lindera icu jieba source_code alias \
            fuzzy slop indexed_by",
        volatile: "agg agg_fn window_agg indexes index_segments verify_index verify_all_indexes purge",
    },
    Schema {
        name: "paradedb",
        stable: "score snippet all boolean boost const_score disjunction_max parse term phrase",
        volatile: "schema index_info version_info storage_info page_info tokenize merge_info vacuum_info aggregate \
            merge_lock_garbage_collect _save_typmod force_merge create_bm25_test_table",
    },
    Schema {
        name: "public",
        stable: "l2_distance cosine_distance inner_product l2_normalize subvector binary_quantize vector halfvec sparsevec \
            similarity word_similarity strict_word_similarity show_trgm unaccent levenshtein \
            st_x st_y st_dwithin st_distance st_makepoint st_setsrid st_asgeojson st_contains st_intersects st_buffer st_transform \
            st_point st_makeenvelope st_geomfromtext st_union st_collect st_astext geometry geography postgis_version \
            digest crypt uuid_ns_dns",
        volatile: "gen_salt set_limit uuid_generate_v4 postgis_full_version addgeometrycolumn dblink",
    },
    Schema { name: "app", stable: "total twice", volatile: "charge" },
    Schema { name: "other", stable: "", volatile: "twice second" },
];

/// Kind and names of everything else.
const REST: [(&str, &str); 4] = [
    ("operator", "+# <->>"),
    ("object", "live_prices session checked value2"),
    (
        "modified_type",
        "vector halfvec sparsevec geometry geography simple ngram edge_ngram whitespace literal literal_normalized unicode_words \
         regex_pattern lindera icu jieba source_code alias fuzzy slop boost const",
    ),
    ("extension", "plpgsql pg_search vector postgis pg_trgm unaccent"),
];

fn rows() -> Vec<[&'static str; 4]> {
    let mut rows = Vec::new();
    for schema in &SCHEMAS {
        for (names, volatile) in [(schema.stable, "f"), (schema.volatile, "t")] {
            rows.extend(names.split_ascii_whitespace().map(|name| ["function", schema.name, name, volatile]));
        }
    }
    for (kind, names) in REST {
        rows.extend(names.split_ascii_whitespace().map(|name| [kind, "", name, "f"]));
    }
    rows
}

fn judge(sql: &str, catalogue: &Catalogue, fresh: bool) -> Classification {
    let dialect = Dialect {
        catalogue: Some(catalogue),
        catalogue_stamp: CatalogueStamp { serial: 1, fresh },
        ..Dialect::default()
    };
    classify(sql.as_bytes(), &dialect)
}

/// Hazard, statement; `R` a read by what PostgreSQL itself has, `C` a read by the catalogue as long as it is fresh, `W` a write.
const TABLE: &[(&str, &str, char)] = &[
    // ParadeDB's searches.
    (
        "M14",
        "SELECT id, description, pdb.score(id) FROM mock_items WHERE description ||| 'running shoes' ORDER BY pdb.score(id) DESC, id LIMIT 5",
        'C',
    ),
    (
        "M15",
        "SELECT id FROM mock_items WHERE description @@@ 'shoes' OR category @@@ 'footwear' AND rating @@@ '>2'",
        'R',
    ),
    ("M15", "SELECT id FROM mock_items WHERE description &&& 'runing shose'::pdb.fuzzy(2)", 'R'),
    ("M15", "SELECT id FROM mock_items WHERE description ### 'shoes running'::pdb.slop(2)", 'R'),
    ("M15", "SELECT id FROM mock_items WHERE description ### ARRAY['running','shoes']", 'R'),
    (
        "M15",
        "SELECT id FROM mock_items WHERE category === 'electronics' AND category === ARRAY['a', 'b']",
        'R',
    ),
    ("M15", "SELECT id FROM mock_items WHERE description @@@ ('sleek' ## 1 ## 'shoes')", 'R'),
    (
        "M15",
        "SELECT id FROM mock_items WHERE description @@@ (pdb.prox_regex('sl.*') ##> 1 ##> pdb.prox_array('sneakers', pdb.prox_regex('sho.*')))",
        'C',
    ),
    (
        "M15",
        "SELECT id FROM mock_items WHERE id @@@ pdb.all() ORDER BY embedding <=> '[1,2,3]', id LIMIT 5",
        'C',
    ),
    ("M14", "SELECT id FROM mock_items WHERE id @@@ pdb.more_like_this(3)", 'C'),
    ("M14", "SELECT id FROM mock_items WHERE description @@@ pdb.parse('a AND b', lenient => true)", 'C'),
    (
        "M14",
        "SELECT id, pdb.snippet(description, start_tag => '<i>', end_tag => '</i>'), pdb.snippets(description, max_num_chars => 15, \"limit\" => 1), pdb.snippet_positions(description) FROM mock_items WHERE description ||| 'shoes'",
        'C',
    ),
    (
        "M14",
        "SELECT pdb.agg('{\"terms\": {\"field\": \"metadata.color\"}}') FROM mock_items WHERE id @@@ pdb.all()",
        'C',
    ),
    (
        "M14",
        "SELECT id, pdb.agg('{\"terms\": {\"field\": \"rating\"}}') OVER () AS facets FROM mock_items WHERE category === 'x' ORDER BY rating LIMIT 3",
        'C',
    ),
    (
        "M14",
        "SELECT rating, pdb.agg('{\"avg\": {\"field\": \"price\"}}') FILTER (WHERE category === 'x') FROM mock_items WHERE id @@@ pdb.all() GROUP BY rating",
        'C',
    ),
    (
        "M14",
        "WITH text AS (SELECT id, RANK() OVER (ORDER BY pdb.score(id) DESC) AS r FROM mock_items WHERE description ||| 'keyboard' LIMIT 20), vector AS (SELECT id, RANK() OVER (ORDER BY embedding <=> '[1,2,3]') AS r FROM mock_items LIMIT 20), fused AS (SELECT id, 1.0 / (60 + r) AS s FROM text UNION ALL SELECT id, 1.0 / (60 + r) FROM vector) SELECT m.id, sum(s) FROM fused JOIN mock_items m USING (id) GROUP BY m.id ORDER BY 2 DESC LIMIT 5",
        'C',
    ),
    (
        "M14",
        "SELECT o.id FROM orders o JOIN mock_items m ON o.item = m.id WHERE m.description ||| 'keyboard' AND NOT EXISTS (SELECT 1 FROM mock_items m2 WHERE m2.description ||| 'x') ORDER BY pdb.score(m.id) LIMIT 5",
        'C',
    ),
    ("M14", "EXPLAIN (ANALYZE) SELECT id FROM mock_items WHERE description ||| 'x'", 'R'),
    ("M14", "EXPLAIN (ANALYZE) SELECT pdb.score(id) FROM mock_items WHERE description ||| $1", 'C'),
    (
        "M14",
        "SELECT id FROM mock_items WHERE description ||| pdb.boost($1) AND description @@@ pdb.boolean(must => ARRAY[pdb.term('a', 'b')])",
        'W',
    ),
    (
        "M14",
        "SELECT id FROM mock_items WHERE id @@@ paradedb.boolean(must => ARRAY[paradedb.term('a', 'b'), paradedb.phrase('c', ARRAY['d', 'e'])])",
        'C',
    ),
    ("M14", "SELECT * FROM pdb.indexes()", 'C'),
    ("M14", "SELECT * FROM pdb.verify_index('i', heapallindexed := true)", 'C'),
    ("M14", "SELECT * FROM paradedb.schema('i'), paradedb.index_info('i'), paradedb.version_info()", 'C'),
    ("M14", "SELECT paradedb.merge_lock_garbage_collect('i')", 'W'),
    ("M14", "SELECT paradedb._save_typmod(ARRAY['x'])", 'W'),
    ("M14", "SELECT paradedb.force_merge('i')", 'W'),
    ("M14", "CALL paradedb.create_bm25_test_table('s', 't')", 'W'),
    ("M14", "SELECT pdb.purge('i')", 'W'),
    ("M14", "SELECT pdb.unheard_of('i')", 'W'),
    ("M14", "CREATE INDEX i ON t USING paradedb (id, (a::pdb.ngram(3,3))) WITH (key_field = 'id')", 'W'),
    ("M13", "SELECT 'x'::pdb.ngram(3,3)::text[]", 'R'),
    ("M13", "SELECT 'Quick Fox'::pdb.edge_ngram(2,5)::text[]", 'R'),
    ("M13", "SELECT 'x'::pdb.simple('stemmer=english', 'alias=a')::text[]", 'R'),
    ("M13", "SELECT CAST('x' AS pdb.lindera(chinese))", 'R'),
    ("M13", "SELECT id FROM mock_items WHERE description ||| 'sho'::pdb.ngram(1,10,'prefix_only=true')", 'R'),
    (
        "M13",
        "SELECT id FROM mock_items WHERE description ||| 'sho'::pdb.regex_pattern('[a-z]+')::pdb.boost(2)",
        'R',
    ),
    (
        "M13",
        "SELECT id FROM mock_items WHERE (description::pdb.alias('d')) @@@ 'x' AND pdb.score(id) > 1",
        'C',
    ),
    ("M13", "SELECT 'x'::pdb.ngram(charge(1))", 'W'),
    ("M13", "SELECT 'x'::pdb.unheard_of(3)", 'W'),
    ("M13", "SELECT pdb.score(app.charge(1))", 'W'),
    // pgvector.
    ("M15", "SELECT id FROM items ORDER BY embedding <-> '[3,1,2]' LIMIT 5", 'R'),
    (
        "M15",
        "SELECT id, (embedding <#> $1) * -1 AS ip, 1 - (embedding <=> $1::vector(3)) FROM items WHERE embedding <-> $1 < 5",
        'R',
    ),
    ("M15", "SELECT embedding <+> '[1]', bits <~> '101', bits <%> B'101' FROM items", 'R'),
    (
        "F18",
        "SELECT l2_distance(a, b), cosine_distance(a, b), avg(a), subvector(a, 1, 3)::halfvec(3) FROM items",
        'C',
    ),
    (
        "F18",
        "SELECT id FROM (SELECT * FROM items ORDER BY binary_quantize(embedding)::bit(3) <~> binary_quantize('[1,-2,3]') LIMIT 20) x ORDER BY embedding <=> '[1,-2,3]' LIMIT 5",
        'C',
    ),
    ("F18", "SELECT public.l2_normalize(embedding) FROM items", 'C'),
    // PostGIS.
    (
        "F18",
        "SELECT name, ST_Distance(geom, ST_SetSRID(ST_MakePoint(1, 2), 4326)::geography) FROM places WHERE ST_DWithin(geom, ST_Point(1, 2)::geography, 1000) ORDER BY geom <-> ST_Point(1, 2) LIMIT 10",
        'C',
    ),
    (
        "F18",
        "SELECT id FROM places WHERE geom && ST_MakeEnvelope(1, 2, 3, 4, 4326) AND ST_Contains(geom, $1)",
        'C',
    ),
    ("F18", "SELECT ST_AsGeoJSON(public.ST_Transform(geom, 3857)) FROM places", 'C'),
    ("F18", "SELECT geom::geometry(Point, 4326), a ~= b, a &< b, a |>> b, a <<->> b FROM places", 'R'),
    ("F18", "SELECT AddGeometryColumn('a', 'b', 4326, 'POINT', 2)", 'W'),
    // pg_trgm, unaccent and full-text search.
    (
        "F18",
        "SELECT name, similarity(name, $1) FROM people WHERE name % $1 AND $1 <% name AND $1 <<% name ORDER BY name <-> $1",
        'C',
    ),
    ("F18", "SELECT unaccent(name) ILIKE '%' || unaccent($1) || '%' FROM people", 'C'),
    ("F18", "SELECT set_limit(0.5)", 'W'),
    (
        "F18",
        "SELECT title, ts_rank_cd(v, q) FROM docs, to_tsquery('english', 'a & b') q WHERE v @@ q ORDER BY 2 DESC",
        'R',
    ),
    (
        "F18",
        "SELECT ts_headline('english', body, phraseto_tsquery($1)), setweight(to_tsvector(title), 'A') || to_tsvector(body) FROM docs WHERE to_tsvector('english', body) @@ websearch_to_tsquery('english', $2)",
        'R',
    ),
    ("F18", "SELECT numnode(q), querytree(q), strip(v), v @@@ q, q && q, q <-> q, q @> q FROM docs", 'R'),
    // Users' own.
    ("F18", "SELECT app.total(1)", 'C'),
    ("F18", "SELECT total(a) FROM t", 'C'),
    ("F18", "SELECT app.charge(1)", 'W'),
    ("F18", "SELECT charge(1)", 'W'),
    ("F18", "SELECT unheard_of(1)", 'W'),
    ("F20", "SELECT app.twice(1)", 'C'),
    ("F20", "SELECT twice(1)", 'W'),
    ("F20", "SELECT other.twice(1)", 'W'),
    ("F18", "SELECT gen_salt('bf')", 'W'),
    ("F18", "SELECT crypt($1, password) = password FROM users", 'C'),
    ("F18", "SELECT t.charge FROM t", 'W'),
    ("F18", "SELECT (t).charge FROM t", 'W'),
    ("F18", "SELECT (row(1, 2)).f1, (t).a, (t.b).c, a[1].d FROM t", 'C'),
    ("F19", "SELECT a +# b FROM t", 'W'),
    ("F19", "SELECT a OPERATOR(app.+#) b FROM t", 'W'),
    ("F19", "SELECT a +#-1 FROM t", 'R'),
    ("F19", "SELECT a <->>b FROM t", 'W'),
    ("F19", "SELECT a <->> -b FROM t", 'W'),
    ("F19", "SELECT a <->>-b FROM t", 'W'),
    ("F19", "SELECT a <->>+b FROM t", 'W'),
    ("T07", "SELECT * FROM live_prices", 'W'),
    ("T07", "SELECT * FROM s.\"live_prices\" p", 'W'),
    ("T07", "TABLE live_prices", 'W'),
    ("T03", "COPY live_prices TO STDOUT", 'W'),
    ("F19", "SELECT 1::checked", 'W'),
    ("F19", "SELECT CAST(1 AS s.checked)", 'W'),
    // Names that are words of the grammar.
    ("T03", "SELECT * FROM session", 'W'),
    ("T03", "SELECT * FROM public.session", 'W'),
    ("T03", "SELECT * FROM a JOIN session USING (b)", 'W'),
    ("T03", "TABLE session", 'W'),
    ("F18", "SELECT second(1)", 'W'),
    ("F18", "SELECT interval '1' second(2)", 'R'),
];

#[test]
fn the_catalogue_decides() {
    let catalogue = Catalogue::from_rows(rows(), &Overrides::default());
    let mut faults = Vec::new();
    for (hazard, sql, expected) in TABLE {
        for (fresh, read) in [(true, *expected != 'W'), (false, *expected == 'R')] {
            let answer = judge(sql, &catalogue, fresh);
            if (answer.access == Access::Read) != read {
                faults.push(format!(
                    "{hazard} {sql}: expected {expected}, fresh {fresh}, found {:?}",
                    answer.reason
                ));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// M13: without the extension a schema of that name is anybody's.
#[test]
fn search_functions_are_known_by_their_extension() {
    let without: Vec<_> = rows().into_iter().filter(|row| row[2] != "pg_search").collect();
    let (with, without) = (
        Catalogue::from_rows(rows(), &Overrides::default()),
        Catalogue::from_rows(without, &Overrides::default()),
    );
    for (sql, stable) in [("SELECT pdb.agg('x') FROM t", false), ("SELECT pdb.score(id) FROM t", true)] {
        assert_eq!(judge(sql, &with, true).access, Access::Read, "{sql}");
        assert_eq!(judge(sql, &without, true).access == Access::Read, stable, "{sql}");
    }
}
