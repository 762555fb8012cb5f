//! A grammar of statements, steered by a list of bytes: each choice takes the next one, and 0, the simplest, when there are no more.
//!
//! Must not know: what is done with the statements.

/// Names of columns, tables and aliases: words of the grammar that are not reserved among them.
const NAMES: [&str; 32] = [
    "a",
    "b",
    "t",
    "u",
    "c1",
    "\"d\"",
    "\"Select\"",
    "\"x y\"",
    "\u{e9}t\u{e9}",
    "value",
    "key",
    "first",
    "next",
    "rows",
    "range",
    "groups",
    "second",
    "day",
    "session",
    "share",
    "level",
    "version",
    "path",
    "document",
    "content",
    "passing",
    "ref",
    "sets",
    "cube",
    "zone",
    "filter",
    "over",
];

/// Functions that are safe on a standby.
const SAFE: [&str; 16] = [
    "lower",
    "count",
    "coalesce",
    "now",
    "max",
    "array_agg",
    "jsonb_build_object",
    "to_char",
    "pg_catalog.abs",
    "\"lower\"",
    "random",
    "greatest",
    "sum",
    "date_trunc",
    "row_number",
    "unnest",
];

/// Functions that are not, or are not known.
const UNSAFE: [&str; 24] = [
    "evil",
    "\"evil\"",
    "app.f",
    "nextval",
    "pg_advisory_lock",
    "set_config",
    "txid_current",
    "pg_sleepy",
    "dblink",
    "query_to_xml",
    "over",
    "filter",
    "cube",
    "rollup",
    "escape",
    "sets",
    "zone",
    "second",
    "rows",
    "first",
    "value",
    "system",
    "bernoulli",
    "version2",
];

const OPERATORS: [&str; 20] = [
    "=", "<>", "+", "-", "*", "||", "->>", "@>", "@@@", "|||", "&&&", "===", "###", "##", "<->", "<=>",
    "<#>", "AND", "OR", "~*",
];

const TYPES: [&str; 12] = [
    "int",
    "text",
    "numeric(10, 2)",
    "varchar(3)",
    "timestamp(3) with time zone",
    "\"char\"",
    "double precision",
    "bit varying(3)",
    "interval day to second(2)",
    "pg_catalog.int4[]",
    "character varying",
    "time(0)",
];

const LITERALS: [&str; 16] = [
    "1",
    "'x'",
    "$1",
    "NULL",
    "1.5e-3",
    "E'\\'('",
    "$q$ evil( $q$",
    "U&'\\0061'",
    "B'01'",
    "true",
    "CURRENT_TIMESTAMP",
    "'it''s'",
    "-1",
    "interval '1' second(2)",
    "date '2020-01-01'",
    "CURRENT_TIME(2)",
];

/// Between tokens.
const SPACES: [&str; 8] = [" ", " ", " ", "\n", "/* evil( */", " -- evil(1)\n", "\t", "/*/**/*/"];

/// How deep queries and expressions go.
const DEPTH_MAX: usize = 6;

pub(crate) struct Grammar<'b> {
    bytes: &'b [u8],
    at: usize,
    /// Are writes to be planted?
    plants: bool,
}

impl<'b> Grammar<'b> {
    /// One that makes reads only.
    pub(crate) fn clean(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0, plants: false }
    }

    /// One that plants a write here and there.
    pub(crate) fn planting(bytes: &'b [u8]) -> Self {
        Self { bytes, at: 0, plants: true }
    }

    fn pick(&mut self, choices: usize) -> usize {
        let byte = self.bytes.get(self.at).copied().unwrap_or(0);
        self.at += 1;
        usize::from(byte) % choices
    }

    fn one_of(&mut self, list: &[&'static str]) -> &'static str {
        list[self.pick(list.len())]
    }

    /// True in one of `choices` cases, and only where writes are planted.
    fn plant(&mut self, choices: usize) -> bool {
        self.plants && self.pick(choices) == 1
    }

    fn name(&mut self) -> &'static str {
        self.one_of(&NAMES)
    }

    fn space(&mut self) -> &'static str {
        self.one_of(&SPACES)
    }

    fn list(&mut self, most: usize, mut item: impl FnMut(&mut Self) -> String) -> String {
        let count = 1 + self.pick(most);
        (0..count).map(|_| item(self)).collect::<Vec<_>>().join(", ")
    }

    /// One statement of any kind.
    pub(crate) fn statement(&mut self) -> String {
        match self.pick(12) {
            0..=5 => self.query(0),
            6 => format!("EXPLAIN (ANALYZE, COSTS off) {}", self.query(0)),
            7 => format!("COPY ({}) TO STDOUT", self.query(0)),
            8 => format!("EXPLAIN DECLARE c CURSOR FOR {}", self.query(0)),
            9 => format!("{}; {}", self.query(1), self.query(1)),
            10 => self.modification(0),
            _ => format!("({}) UNION ALL {}", self.query(1), self.query(1)),
        }
    }

    fn modification(&mut self, depth: usize) -> String {
        let (table, column) = (self.name(), self.name());
        let text = match self.pick(4) {
            0 => format!("INSERT INTO {table} ({column}) {}", self.query(depth + 1)),
            1 => format!("UPDATE {table} SET {column} = {}", self.expression(depth + 1)),
            2 => format!("DELETE FROM {table} WHERE {}", self.expression(depth + 1)),
            _ => format!("MERGE INTO {table} USING u ON true WHEN MATCHED THEN DO NOTHING"),
        };
        if self.pick(2) == 0 { text } else { format!("{text} RETURNING {column}") }
    }

    /// A query without parentheses around it.
    pub(crate) fn query(&mut self, depth: usize) -> String {
        let mut text = String::new();
        if depth < DEPTH_MAX && self.pick(5) == 1 {
            text.push_str(if self.pick(4) == 1 { "WITH RECURSIVE " } else { "WITH " });
            let parts = self.list(2, |grammar| grammar.common_table(depth + 1));
            text.push_str(&parts);
            text.push_str(self.space());
        }
        let body = self.body(depth + 1);
        text.push_str(&body);
        if self.pick(4) == 1 {
            text.push_str(&format!(" ORDER BY {} DESC NULLS LAST", self.expression(depth + 1)));
        }
        match self.pick(8) {
            1 => text.push_str(&format!(" LIMIT {}", self.expression(depth + 1))),
            2 => text.push_str(" OFFSET 5 ROWS FETCH FIRST 10 ROWS ONLY"),
            3 => text.push_str(" LIMIT ALL OFFSET 1"),
            _ => {}
        }
        if self.plant(12) {
            let lock = self.one_of(&[
                "FOR UPDATE",
                "FOR SHARE",
                "FOR NO KEY UPDATE NOWAIT",
                "FOR KEY SHARE SKIP LOCKED",
                "FOR/**/UPDATE",
            ]);
            text.push_str(self.space());
            text.push_str(lock);
        }
        text
    }

    fn common_table(&mut self, depth: usize) -> String {
        let name = self.name();
        let columns = if self.pick(3) == 1 { "(a, b)" } else { "" };
        let kind = self.one_of(&["AS", "AS MATERIALIZED", "AS NOT MATERIALIZED"]);
        let body = if self.plant(5) { self.modification(depth) } else { self.query(depth) };
        format!("{name}{columns} {kind}{}({body})", self.space())
    }

    fn body(&mut self, depth: usize) -> String {
        if depth >= DEPTH_MAX {
            return "SELECT 1".into();
        }
        match self.pick(10) {
            0..=5 => self.select(depth),
            6 => format!("VALUES {}", self.list(2, |grammar| format!("({})", grammar.expressions(depth)))),
            7 => format!("TABLE {}", self.name()),
            8 => {
                let set = self.one_of(&["UNION", "UNION ALL", "INTERSECT", "EXCEPT ALL", "UNION DISTINCT"]);
                format!("({}) {set} {}", self.query(depth + 1), self.select(depth + 1))
            }
            _ => format!("({})", self.query(depth + 1)),
        }
    }

    fn select(&mut self, depth: usize) -> String {
        let mut text = format!("SELECT{}", self.space());
        match self.pick(6) {
            1 => text.push_str("DISTINCT "),
            2 => text.push_str(&format!("DISTINCT ON ({}) ", self.expressions(depth + 1))),
            3 => text.push_str("ALL "),
            _ => {}
        }
        let targets = self.list(3, |grammar| grammar.target(depth + 1));
        text.push_str(&targets);
        if self.plant(15) {
            text.push_str(self.one_of(&[" INTO x", " INTO TEMP x", "/**/INTO/**/x", " INTO TABLE \"x\""]));
        }
        if self.pick(3) != 1 {
            text.push_str(self.space());
            text.push_str("FROM ");
            let tables = self.list(2, |grammar| grammar.table(depth + 1));
            text.push_str(&tables);
        }
        if self.pick(2) == 1 {
            text.push_str(&format!(" WHERE {}", self.expression(depth + 1)));
        }
        if self.pick(4) == 1 {
            let groups = self.list(2, |grammar| grammar.group(depth + 1));
            text.push_str(&format!(" GROUP BY {groups}"));
            if self.pick(2) == 1 {
                text.push_str(&format!(" HAVING {}", self.expression(depth + 1)));
            }
        }
        if self.pick(8) == 1 {
            text.push_str(&format!(" WINDOW w AS ({})", self.window(depth + 1)));
        }
        text
    }

    fn group(&mut self, depth: usize) -> String {
        match self.pick(6) {
            1 => format!("ROLLUP ({})", self.expressions(depth)),
            2 => format!("CUBE ({})", self.expressions(depth)),
            3 => format!("GROUPING SETS (({}), ())", self.expressions(depth)),
            _ => self.expression(depth),
        }
    }

    fn target(&mut self, depth: usize) -> String {
        match self.pick(8) {
            0 => "*".into(),
            1 => format!(
                "{} AS {}",
                self.expression(depth),
                self.one_of(&["x", "select", "\"for\"", "into", "over", "from"])
            ),
            2 => format!("t.{}", self.name()),
            3 => format!("{} x", self.expression(depth)),
            _ => self.expression(depth),
        }
    }

    fn table(&mut self, depth: usize) -> String {
        if depth >= DEPTH_MAX {
            return "t".into();
        }
        match self.pick(12) {
            0..=3 => self.name().into(),
            4 => format!("s.{} AS x (a, b)", self.name()),
            5 => format!("({}) x (a, b)", self.query(depth + 1)),
            6 => format!("{} x (a)", self.call(depth + 1)),
            7 => format!("LATERAL {} WITH ORDINALITY AS x", self.call(depth + 1)),
            8 => {
                let join = self.one_of(&["JOIN", "LEFT OUTER JOIN", "FULL JOIN", "INNER JOIN"]);
                format!(
                    "{} {join} {} ON {}",
                    self.table(depth + 1),
                    self.table(depth + 1),
                    self.expression(depth + 1)
                )
            }
            9 => format!("{} NATURAL JOIN {}", self.table(depth + 1), self.table(depth + 1)),
            10 => format!("(t JOIN {} USING (a)) AS y", self.table(depth + 1)),
            _ => format!(
                "ROWS FROM ({}, generate_series(1, 2)) AS x (a int, b numeric(3, 1))",
                self.call(depth + 1)
            ),
        }
    }

    fn window(&mut self, depth: usize) -> String {
        let mut text = String::new();
        if self.pick(2) == 1 {
            text.push_str(&format!("PARTITION BY {} ", self.expressions(depth)));
        }
        text.push_str(&format!("ORDER BY {}", self.expression(depth)));
        if self.pick(2) == 1 {
            let unit = self.one_of(&["ROWS", "RANGE", "GROUPS"]);
            text.push_str(&format!(" {unit} BETWEEN 1 PRECEDING AND UNBOUNDED FOLLOWING EXCLUDE TIES"));
        }
        text
    }

    fn expressions(&mut self, depth: usize) -> String {
        self.list(3, |grammar| grammar.expression(depth))
    }

    fn call(&mut self, depth: usize) -> String {
        let function = if self.plant(6) { self.one_of(&UNSAFE) } else { self.one_of(&SAFE) };
        let arguments = if self.pick(4) == 1 { String::new() } else { self.expressions(depth) };
        format!("{function}{}({arguments})", if self.pick(3) == 1 { self.space() } else { "" })
    }

    fn expression(&mut self, depth: usize) -> String {
        if depth >= DEPTH_MAX {
            return if self.pick(2) == 0 { self.name().into() } else { self.one_of(&LITERALS).into() };
        }
        let deeper = depth + 1;
        match self.pick(32) {
            0..=3 => self.name().into(),
            4..=6 => self.one_of(&LITERALS).into(),
            7..=9 => format!(
                "{} {}{}{}",
                self.expression(deeper),
                self.one_of(&OPERATORS),
                self.space(),
                self.expression(deeper)
            ),
            10..=13 => self.call(deeper),
            14 => format!("{} OVER ({})", self.call(deeper), self.window(deeper)),
            15 => format!("{} FILTER (WHERE {}) OVER w", self.call(deeper), self.expression(deeper)),
            16 => format!(
                "CASE WHEN {} THEN {} ELSE {} END",
                self.expression(deeper),
                self.expression(deeper),
                self.expression(deeper)
            ),
            17 => format!("CAST({} AS {})", self.expression(deeper), self.one_of(&TYPES)),
            18 => format!("({})::{}", self.expression(deeper), self.one_of(&TYPES)),
            19 => format!("({})", self.query(deeper)),
            20 => format!("EXISTS ({})", self.query(deeper)),
            21 => format!("{} NOT IN ({})", self.name(), self.expressions(deeper)),
            22 => format!("{} = ANY ({})", self.name(), self.query(deeper)),
            23 => format!("ARRAY[{}]", self.expressions(deeper)),
            24 => format!("ROW({}, {})", self.expression(deeper), self.expression(deeper)),
            25 => format!("{} BETWEEN {} AND {}", self.name(), self.call(deeper), self.call(deeper)),
            26 => format!("{} NOT LIKE {} ESCAPE '!'", self.name(), self.call(deeper)),
            27 => self.special(deeper),
            28 => format!("({})[{}:2]", self.name(), self.expression(deeper)),
            29 => format!("{} IS DISTINCT FROM {}", self.name(), self.expression(deeper)),
            30 => format!("{} AT TIME ZONE {}", self.name(), self.expression(deeper)),
            _ => format!("NOT ({})", self.expressions(deeper)),
        }
    }

    /// What the grammar writes in a way of its own.
    fn special(&mut self, depth: usize) -> String {
        let inner = self.expression(depth);
        match self.pick(14) {
            0 => format!("extract(year FROM {inner})"),
            1 => format!("trim(BOTH 'x' FROM {inner})"),
            2 => format!("substring(a FROM 1 FOR ({inner}))"),
            3 => format!("overlay(a PLACING 'x' FROM ({inner}) FOR 2)"),
            4 => format!("position('a' IN ({inner}))"),
            5 => format!("array_agg(DISTINCT a ORDER BY {inner})"),
            6 => format!("percentile_cont(0.5) WITHIN GROUP (ORDER BY {inner})"),
            7 => format!("collation FOR ({inner})"),
            8 => format!("({inner}) COLLATE \"C\""),
            9 => format!("xmlelement(name a, {inner})"),
            10 => format!("nullif({inner}, 1)"),
            11 => format!("a OPERATOR(pg_catalog.+) ({inner})"),
            12 => format!("grouping({inner})"),
            _ => format!("(a, b) OVERLAPS ({inner}, b)"),
        }
    }
}
