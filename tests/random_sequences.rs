//! Random sequences of two interleaved clients are answered through pgsteer, over a shared pool, as by a server of their own.
//!
//! `PGSTEER_SEQUENCES` is how many; `PGSTEER_SEED` the seed of the first, the others follow it. A failure tells both, and the
//! shortest sequence found that still differs. Each client writes only its own rows: what one sees of another's may be stale.
//!
//! Invariant: what is known to differ is left out of the sequences, and stands in the table of `parity.rs`, where it must still
//! differ: AND CHAIN after READ ONLY, names of statements behind a ROLLBACK in one text. Left out as well are:
//!
//! - named statements of the protocol over temporary tables: whether a server has one prepared when its table has gone is chance;
//! - statements whose columns change, unless they are described when they are prepared, and never by their portals;
//! - names with more than one number of parameters: in a failed block it depends on the server which error is the first;
//! - functions that drop what is prepared: it is seen only where there is something;
//! - what follows session state in a READ ONLY transaction: on a standby that is refused (README), and whether it runs on one is chance.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;
#[path = "parity/transcript.rs"]
mod transcript;

use std::net::SocketAddr;

use fastrand::Rng;
use pgsteer::sandbox::{Auth, Sandbox};
use running::{RawClient, Running, errors, eventually, values};
use tokio::net::TcpStream;
use transcript::PATIENCE;

/// What a standby says to session state in a READ ONLY transaction.
const KEEPS_NO_STATE: &str = "pgsteer: this READ ONLY transaction runs on a standby";

/// So many in a normal run.
const SEQUENCES: u64 = 150;

/// What random sequences have found: the fault, and the steps that showed it.
const FOUND: &[(&str, &[(usize, &str)])] = &[
    (
        "who has no unnamed statement finds another client's",
        &[(2, "Q SELECT 2"), (1, "P -: SELECT 'of one' | B - - | E - | S"), (2, "B - - | E - | S")],
    ),
    (
        "applying settings takes the unnamed statement away unnoticed",
        &[
            (1, "Q SET work_mem = '6MB'"),
            (1, "P -: SELECT 1 | S"),
            (2, "P s0: SELECT 2 | S"),
            (1, "B - - | E - | S"),
        ],
    ),
];

/// Names with values that are valid, and all different from the default.
const SETTINGS: &[(&str, &[&str])] = &[
    ("work_mem", &["'5MB'", "'6MB'", "7168"]),
    ("application_name", &["'one'", "'two'", "''"]),
    ("app.tenant", &["'1'", "'2'", "''"]),
    ("app.other", &["'x'", "'it''s'"]),
    ("search_path", &["pg_catalog, public", "public", "nowhere, public"]),
    ("DateStyle", &["'German'", "'SQL, DMY'"]),
    ("TimeZone", &["'Asia/Tokyo'", "'UTC'"]),
    ("extra_float_digits", &["0", "2"]),
    ("statement_timeout", &["'61s'", "'62s'"]),
    ("default_transaction_isolation", &["'repeatable read'", "'serializable'"]),
    ("bytea_output", &["'escape'"]),
    ("enable_seqscan", &["off"]),
    ("client_min_messages", &["warning", "error"]),
];

/// What code of a user's may do to a session.
const FUNCTIONS: &str = "
    CREATE FUNCTION sets(name text, value text, local bool) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN RETURN set_config(name, value, local); END $$;
    CREATE FUNCTION runs(what text) RETURNS text LANGUAGE plpgsql
        AS $$ BEGIN SET LOCAL client_min_messages = error; EXECUTE what; RETURN what; END $$;
";

/// One step: which client, and a line of a script.
type Step = (usize, String);

struct Generator {
    rng: Rng,
    /// READ ONLY and AND CHAIN are not in one sequence.
    chains: bool,
}

impl Generator {
    fn pick<T: Copy>(&mut self, list: &[T]) -> T {
        list[self.rng.usize(..list.len())]
    }

    fn sequence(&mut self) -> Vec<Step> {
        self.chains = self.rng.bool();
        let mut steps: Vec<Step> = (1..=2)
            .map(|client| {
                (
                    client,
                    format!(
                        "Q DELETE FROM mine_{client}; ALTER TABLE mine_{client} DROP COLUMN IF EXISTS more"
                    ),
                )
            })
            .collect();
        for _ in 0..self.rng.usize(5..=25) {
            let client = self.rng.usize(1..=2);
            let line = match self.rng.u8(..20) {
                0 => self.copy(client),
                1 | 2 => self.pipeline(client),
                3 => {
                    self.unfinished(client, &mut steps);
                    continue;
                }
                _ => self.packet(client),
            };
            steps.push((client, line));
        }
        steps
    }

    /// Parts of a batch with something of the other client's between them.
    fn unfinished(&mut self, client: usize, steps: &mut Vec<Step>) {
        for _ in 0..self.rng.usize(1..=2) {
            let statement = self.statement(client);
            let (end, name) = (self.pick(&["", " | H"]), self.pick(&["s0", "s1"]));
            let part = match self.rng.u8(..5) {
                0 => format!("P s0: SELECT n FROM mine_{client} ORDER BY n"),
                1 => "B - s0 | E -".to_owned(),
                2 => "B - s1: 3 | D P - | E - 1".to_owned(),
                3 => format!("C S {name}"),
                _ => format!("P -: {statement} | B - - | E -"),
            };
            steps.push((client, format!("{part}{end} >> -")));
            if self.rng.bool() {
                steps.push((3 - client, self.packet(3 - client)));
            }
        }
        steps.push((client, "S".to_owned()));
    }

    /// Several packets in one.
    fn pipeline(&mut self, client: usize) -> String {
        let parts: Vec<String> = (0..self.rng.usize(2..=4)).map(|_| self.packet(client)).collect();
        parts.join(" | ")
    }

    fn packet(&mut self, client: usize) -> String {
        match self.rng.u8(..10) {
            0..=4 => format!("Q {}", self.statement(client)),
            5 => {
                let statements: Vec<String> =
                    (0..self.rng.usize(2..=3)).map(|_| self.statement(client)).collect();
                let text = statements.join("; ");
                let has = |words: &[&str]| words.iter().any(|word| text.contains(word));
                // Behind the end of a failed block, in its own text, names are not known.
                if has(&["COMMIT", "END", "ROLLBACK", "ABORT"])
                    && has(&["EXECUTE", "DEALLOCATE", "PREPARE", "prepared"])
                {
                    return format!("Q {}", statements[0]);
                }
                format!("Q {text}")
            }
            6 => format!("P -: {} | B - - | D P - | E - | S", self.statement(client)),
            _ => self.extended(client),
        }
    }

    fn copy(&mut self, client: usize) -> String {
        if self.rng.bool() {
            return format!("Q COPY (SELECT n, s FROM mine_{client} ORDER BY n) TO STDOUT");
        }
        let (n, m) = (self.rng.u8(10..20), self.rng.u8(10..20));
        let end = self.pick(&["c", "f no", "d x\\n | c"]);
        format!("Q COPY mine_{client} FROM STDIN | d {n}\\ta\\n | d {m}\\tb\\n | {end} >> Z")
    }

    fn statement(&mut self, client: usize) -> String {
        match self.rng.u8(..12) {
            0..=2 => self.setting(),
            3..=5 => self.transaction(),
            6..=8 => self.rows(client),
            9 if self.rng.bool() => self.temporary(),
            9 => self.function(),
            10 => self.session(client),
            _ => self.pick(&["SELECT 1/0", "SELEC", "SELECT nothing", "", "SELECT 'x'::int"]).to_owned(),
        }
    }

    /// Code of the user's that does something to the session.
    fn function(&mut self) -> String {
        let (name, values) = self.pick(SETTINGS);
        let value = self.pick(values).trim_matches('\'').replace("''", "'").replace('\'', "''");
        let local = self.rng.bool();
        match self.rng.u8(..7) {
            0..=2 => format!("SELECT sets('{name}', '{value}', {local})"),
            3 => format!("SELECT sets('{name}', '{value}', {local}), 1/0"),
            4 => format!("SELECT sets('{name}', '{value}', false), sets('{name}', '{value}', true)"),
            5 => "SELECT runs('PREPARE q (int) AS SELECT $1 * 2')".to_owned(),
            _ => "SELECT runs('CREATE TEMP TABLE IF NOT EXISTS tmp AS SELECT 5 AS n')".to_owned(),
        }
    }

    fn setting(&mut self) -> String {
        let (name, values) = self.pick(SETTINGS);
        let value = self.pick(values);
        let text = value.trim_matches('\'').replace("''", "'").replace('\'', "''");
        let local = self.rng.bool();
        match self.rng.u8(..14) {
            0..=2 => format!("SET {name} = {value}"),
            3 => format!("SET LOCAL {name} TO {value}"),
            4 => format!("RESET {name}"),
            5 => format!("SET {name} TO DEFAULT"),
            6 => "RESET ALL".to_owned(),
            7 => format!("SELECT set_config('{name}', '{text}', {local})"),
            8 => format!("DO $$ BEGIN PERFORM set_config('{name}', '{text}', {local}); END $$"),
            9 if self.rng.bool() => format!("SET {name} = nonsense, 'more', 5"),
            9 => format!("BEGIN; SAVEPOINT a; SET {name} = {value}; ROLLBACK TO a; RELEASE a; COMMIT"),
            10 if !name.contains('.') => format!("SHOW {name}"),
            // Whether a name of an application has ever been known is a matter of the connection.
            _ => format!("SELECT coalesce(current_setting('{name}', true), '')"),
        }
    }

    fn transaction(&mut self) -> String {
        let read_only = ["BEGIN READ ONLY", "START TRANSACTION READ ONLY", "SET TRANSACTION READ ONLY"];
        let chain = ["COMMIT AND CHAIN", "ROLLBACK AND CHAIN", "COMMIT AND NO CHAIN"];
        let name = self.pick(&["a", "b"]);
        match self.rng.u8(..14) {
            0..=2 => self.pick(&["BEGIN", "START TRANSACTION", "BEGIN ISOLATION LEVEL REPEATABLE READ"]),
            3 | 4 => self.pick(if self.chains { &chain } else { &read_only }),
            5..=7 => self.pick(&["COMMIT", "END"]),
            8 => self.pick(&["ROLLBACK", "ABORT"]),
            9 | 10 => return format!("SAVEPOINT {name}"),
            11 => return format!("ROLLBACK TO {name}"),
            12 => return format!("RELEASE {name}"),
            _ => self.pick(&[
                "SHOW transaction_isolation",
                "SET TRANSACTION ISOLATION LEVEL SERIALIZABLE",
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ",
            ]),
        }
        .to_owned()
    }

    fn rows(&mut self, client: usize) -> String {
        let n = self.rng.u8(..10);
        match self.rng.u8(..9) {
            8 => {
                let change =
                    self.pick(&["ADD COLUMN IF NOT EXISTS more int DEFAULT 7", "DROP COLUMN IF EXISTS more"]);
                format!("ALTER TABLE mine_{client} {change}")
            }
            0 | 1 => format!("INSERT INTO mine_{client} VALUES ({n}, 'row {n}')"),
            2 => {
                format!("INSERT INTO mine_{client} SELECT g, 'many' FROM generate_series({n}, {n} + 2) AS g")
            }
            3 => format!("UPDATE mine_{client} SET s = s || '!' WHERE n > {n}"),
            4 => format!("DELETE FROM mine_{client} WHERE n = {n} RETURNING n, s"),
            5 => format!("SELECT count(*) FROM mine_{client}"),
            _ => format!("SELECT n, s FROM mine_{client} WHERE n <> {n} ORDER BY n"),
        }
    }

    fn temporary(&mut self) -> String {
        self.pick(&[
            "CREATE TEMP TABLE tmp (n int)",
            "CREATE TEMP TABLE tmp (n int) ON COMMIT DROP",
            "CREATE TEMP TABLE IF NOT EXISTS tmp AS SELECT 1 AS n",
            "INSERT INTO tmp VALUES (1)",
            "INSERT INTO tmp VALUES (2)",
            "SELECT n FROM tmp ORDER BY n",
            "SELECT count(*) FROM tmp",
            "DROP TABLE tmp",
            "DROP TABLE IF EXISTS tmp",
        ])
        .to_owned()
    }

    /// Statements of SQL-level PREPARE, cursors, locks, DISCARD.
    fn session(&mut self, client: usize) -> String {
        let name = self.pick(&["q", "q", "s0", "s1"]);
        match self.rng.u8(..17) {
            0 => format!("PREPARE {name} (int) AS SELECT n FROM mine_{client} WHERE n > $1 ORDER BY n"),
            1 | 2 => format!("EXECUTE {name} ({})", self.rng.u8(..10)),
            3 => format!("DEALLOCATE {name}"),
            14 => "SELECT name, statement, parameter_types, from_sql FROM pg_prepared_statements ORDER BY 1"
                .to_owned(),
            15 => format!("EXECUTE {name}"),
            16 => format!("PREPARE {name} AS SELECT 'prepared'"),
            4 => "DEALLOCATE ALL".to_owned(),
            5 => "DISCARD ALL".to_owned(),
            6 => format!("DECLARE c CURSOR FOR SELECT n FROM mine_{client} ORDER BY n"),
            7 => format!("DECLARE c CURSOR WITH HOLD FOR SELECT n, s FROM mine_{client} ORDER BY n"),
            8 | 9 => "FETCH 2 FROM c".to_owned(),
            10 => "CLOSE c".to_owned(),
            11 => format!("SELECT pg_advisory_lock({client})"),
            12 => format!("SELECT pg_advisory_unlock({client})"),
            _ => "SELECT pg_advisory_unlock_all()".to_owned(),
        }
    }

    /// A statement over nothing that goes away.
    fn lasting(&mut self, client: usize) -> String {
        match self.rng.u8(..6) {
            0 => self.setting(),
            1 => self.transaction(),
            2 => self
                .pick(&["DEALLOCATE ALL", "DISCARD ALL", "EXECUTE q (1)", "EXECUTE s0", "DEALLOCATE s1"])
                .to_owned(),
            3 => "SELECT name, from_sql FROM pg_prepared_statements ORDER BY name".to_owned(),
            _ => self.rows(client),
        }
    }

    fn extended(&mut self, client: usize) -> String {
        let (n, m) = (self.rng.u8(..10), self.rng.u8(1..4));
        let (bind, execute) = (self.pick(&["B - s0", "B - s0 r=1"]), self.pick(&["E -", "E - 2"]));
        let (name, values) = self.pick(SETTINGS);
        let value = self.pick(values).replace("''", "'").trim_matches('\'').replace(',', "\\x2c");
        let statement = self.lasting(client);
        match self.rng.u8(..21) {
            16 => format!("P s0: {statement} | S"),
            17 => format!("C S s2 | P s2: SELECT * FROM mine_{client} ORDER BY n | D S s2 | S"),
            18 => format!("B - s2 | {execute} | S"),
            19 => format!("B q s0 | D P q | E q 1 | P -: {statement} | B - - | E - | E q | S"),
            20 => {
                format!("P -: SELECT 1/0 | B - - | E - | P -: {statement} | C S s0 | P s1: SELECT $1 | S")
            }
            0 => format!("C S s0 | P s0: SELECT n, s FROM mine_{client} ORDER BY n | D S s0 | S"),
            1 => "C S s0 | P s0: SHOW work_mem | S".to_owned(),
            2 => format!("C S s0 | P s0: {statement} | S"),
            3 => format!("{bind} | D P - | {execute} | S"),
            4 => format!("{bind} | {execute} | S | {bind} | {execute} | S"),
            5 => format!("C S s1 | P s1: SELECT n FROM mine_{client} WHERE n > $1 ORDER BY n | S"),
            6 => format!("C S s1 | P s1: INSERT INTO mine_{client} VALUES ($1, 'bound') | D S s1 | S"),
            7 => format!("B - s1: {n} | {execute} | S"),
            8 => format!("B - s1: {n} | E - | B - s1: x | E - | B - s1: {m} | E - | S"),
            9 => format!("B p s1: {n} | E p {m} | E p {m} | S"),
            10 => format!("E p {m} | S"),
            11 => self.pick(&["D P p | S", "C P p | S", "D S s1 | S", "C S s1 | S", "C S s0 | S"]).to_owned(),
            // A bound name of an application's own is lost, see `parity.rs`.
            12 if name.contains('.') => {
                format!("P -: SELECT set_config('{name}', $1, $2) | B - -: {value},f | E - | S")
            }
            12 => format!("P -: SELECT set_config($1, $2, $3) | B - -: {name},{value},f | E - | S"),
            13 => self.pick(&["S", "S | S", "H | S"]).to_owned(),
            14 => format!("P -: {} | B - - | E - | C S s0 | S", self.statement(client)),
            _ => format!("P -: SELECT n FROM mine_{client} ORDER BY n | B p - | E p {m} | S"),
        }
    }
}

/// Where both clients of one side log in.
struct Side {
    address: SocketAddr,
    database: &'static str,
}

impl Side {
    async fn connect(&self) -> RawClient {
        let mut client = RawClient { stream: TcpStream::connect(self.address).await.unwrap() };
        client.log_in("postgres", self.database).await;
        client
    }

    /// The answers to all steps, by two fresh clients.
    async fn answers(&self, steps: &[Step]) -> Vec<Vec<String>> {
        let mut clients = [self.connect().await, self.connect().await];
        let mut answers = Vec::new();
        for (client, line) in steps {
            let answer = transcript::step(&mut clients[client - 1], line, PATIENCE).await;
            let over = answer.last().is_some_and(|last| last.starts_with('('));
            answers.push(answer);
            if over {
                break;
            }
        }
        answers
    }
}

struct Sides {
    direct: Side,
    through: Side,
}

impl Sides {
    /// The first step that is answered otherwise, as text.
    async fn difference(&self, steps: &[Step]) -> Option<String> {
        let (direct, through) = (self.direct.answers(steps).await, self.through.answers(steps).await);
        let meaning = |answers: &[Vec<String>], at: usize| -> Option<Vec<String>> {
            let lines = answers.get(at)?;
            let next = lines.iter().skip(1).map(Some).chain([None]);
            // Describe of a statement that can't be prepared any more: which parameters it had, only its first server knew.
            let told = lines.iter().zip(next).filter(|(line, next)| {
                !(line.starts_with("t ") && next.is_some_and(|next| next.starts_with("E ")))
            });
            Some(told.map(|(line, _)| without_place(line)).collect())
        };
        let at =
            (0..direct.len().max(through.len())).find(|&at| meaning(&direct, at) != meaning(&through, at))?;
        let text =
            |answers: &[Vec<String>]| answers.get(at).map_or(String::new(), |lines| lines.join("\n    "));
        let refused = |lines: &Vec<String>| lines.iter().any(|line| line.contains(KEEPS_NO_STATE));
        if through.get(at).is_some_and(refused) {
            return None;
        }
        let (client, line) = &steps[at];
        Some(format!(
            "{client} {line}\n  direct:\n    {}\n  through:\n    {}\n",
            text(&direct),
            text(&through)
        ))
    }

    /// A shorter sequence that still differs, and how.
    async fn shrink(&self, mut steps: Vec<Step>) -> (Vec<Step>, String) {
        let mut told = "it differs no more when run again alone\n".to_owned();
        let mut at = steps.len();
        while at > 0 {
            at -= 1;
            let mut fewer = steps.clone();
            fewer.remove(at);
            if let Some(difference) = self.difference(&fewer).await {
                (steps, told) = (fewer, difference);
                at = at.min(steps.len());
            }
        }
        (steps, told)
    }
}

async fn run(client: &mut RawClient, sql: &str) {
    let answer = client.query(sql).await;
    assert_eq!(errors(&answer), [""; 0], "{sql}: {answer:?}");
}

async fn sides(sandbox: &Sandbox, proxy: &Running) -> Sides {
    let primary = sandbox.primary().address();
    let sides = Sides {
        direct: Side { address: primary, database: "direct" },
        through: Side { address: proxy.address, database: "through" },
    };
    let mut admin = RawClient::direct(sandbox.primary()).await;
    for database in ["direct", "through"] {
        run(&mut admin, &format!("CREATE DATABASE {database}")).await;
        let mut client = Side { address: primary, database }.connect().await;
        run(&mut client, "CREATE TABLE mine_1 (n int PRIMARY KEY, s text)").await;
        run(&mut client, "CREATE TABLE mine_2 (n int PRIMARY KEY, s text)").await;
        run(&mut client, FUNCTIONS).await;
    }
    for node in sandbox.nodes() {
        let mut admin = RawClient::direct(node).await;
        eventually("the database is everywhere", async || {
            values(&admin.query("SELECT count(*) FROM pg_database WHERE datname = 'through'").await) == ["1"]
        })
        .await;
        let mut client = Side { address: node.address(), database: "through" }.connect().await;
        eventually("the tables are everywhere", async || {
            values(&client.query("SELECT to_regproc('runs') IS NOT NULL").await) == ["t"]
        })
        .await;
    }
    sides
}

/// A READ ONLY transaction on a standby refuses a write in other words ("during recovery"), by the same SQLSTATE.
fn without_place(line: &str) -> String {
    match line.split_once(" C=25006 M=cannot execute") {
        Some((before, _)) => format!("{before} C=25006"),
        None => line.to_owned(),
    }
}

fn environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

fn sequence(seed: u64) -> Vec<Step> {
    Generator { rng: Rng::with_seed(seed), chains: false }.sequence()
}

#[tokio::test]
async fn two_clients_are_answered_as_by_a_server_of_their_own() {
    // The same each time, on one node: what a run finds must be there in the next. The long run draws its own and has standbys.
    let long = environment("PGSTEER_SEQUENCES");
    let standbys = if long.is_some() { 2 } else { 0 };
    let sandbox = Sandbox::builder().standbys(standbys).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--shards", "1", "--pool-size", "2"]).await;
    let sides = sides(&sandbox, &proxy).await;
    let drawn = if long.is_some() { fastrand::u64(..1 << 32) } else { 1 };
    let first = environment("PGSTEER_SEED").unwrap_or(drawn);
    let count = long.unwrap_or(SEQUENCES);
    println!("PGSTEER_SEED={first} PGSTEER_SEQUENCES={count}");
    for seed in first..first + count {
        let steps = sequence(seed);
        let Some(difference) = sides.difference(&steps).await else { continue };
        let (fewer, told) = sides.shrink(steps).await;
        let script: Vec<String> = fewer.iter().map(|(client, line)| format!("  {client} {line}")).collect();
        panic!(
            "PGSTEER_SEED={seed} PGSTEER_SEQUENCES=1 (the run began with {first})\n{difference}\n\
             The shortest found:\n{}\nand there:\n{told}",
            script.join("\n")
        );
    }
}

#[tokio::test]
async fn what_was_found_once_is_not_found_again() {
    let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
    let proxy = Running::start(&sandbox, &["--auth", "trust", "--shards", "1", "--pool-size", "1"]).await;
    let sides = sides(&sandbox, &proxy).await;
    for (fault, steps) in FOUND {
        let steps: Vec<Step> = steps.iter().map(|(client, line)| (*client, (*line).to_owned())).collect();
        assert_eq!(sides.difference(&steps).await, None, "{fault}");
    }
}

/// A seed is worth nothing if it gives something else the next time.
#[test]
fn a_seed_gives_the_same_sequence() {
    let all: Vec<Vec<Step>> = (0..200).map(sequence).collect();
    assert_eq!(all, (0..200).map(sequence).collect::<Vec<_>>());
    let text = format!("{all:?}");
    for part in
        ["SET LOCAL", "RESET ALL", "SAVEPOINT", "READ ONLY", "AND CHAIN", "CREATE TEMP", "E p 2", "COPY"]
    {
        assert!(text.contains(part), "{part} never comes");
    }
}
