//! PostgreSQL's own tools through pgsteer and directly: what they print and write must be the same.
//!
//! The tools lie beside the server's binaries; one that is missing is a failure. Where a version of them has nothing to test, the
//! version says so, nothing else.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

mod running;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use pgsteer::sandbox::Sandbox;
use running::Running;

/// The longest that one program may take on a loaded machine.
const PROGRAM_BOUND: Duration = Duration::from_secs(60);

/// Clients of a pgbench run, and transactions of each.
const CLIENTS: u64 = 4;
const TRANSACTIONS: u64 = 50;

/// `\bind` came with this version.
const PSQL_WITH_BIND: u32 = 16;

/// Which way a program goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Direct,
    Through,
}

/// A cluster, a pgsteer in its default configuration, and a directory for what the programs write.
struct Setup {
    sandbox: Sandbox,
    proxy: Running,
    directory: PathBuf,
}

impl Setup {
    async fn start(name: &str) -> Self {
        let sandbox = Sandbox::builder().standbys(1).start().await.unwrap();
        let proxy = Running::start(&sandbox, &[]).await;
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("tools-{name}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(&directory).unwrap();
        Self { sandbox, proxy, directory }
    }

    /// Runs one of PostgreSQL's programs there; gives its end and what it printed, errors among the rest as they came.
    async fn run(&self, way: Way, program: &str, database: &str, args: &[&str]) -> (ExitStatus, String) {
        let path = self.sandbox.binaries().program(program);
        assert!(path.exists(), "{} is missing: it comes with PostgreSQL's client programs", path.display());
        let port = match way {
            Way::Direct => self.sandbox.primary().port(),
            Way::Through => self.proxy.address.port(),
        };
        let output = self.directory.join(format!("{program}.{way:?}.output"));
        let file = File::create(&output).unwrap();
        let mut command = tokio::process::Command::new(path);
        for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
            command.env_remove(name);
        }
        command
            .args(args)
            .env("PGHOST", "127.0.0.1")
            .env("PGPORT", port.to_string())
            .env("PGUSER", self.sandbox.user())
            .env("PGPASSWORD", self.sandbox.password())
            .env("PGDATABASE", database)
            .env("LC_ALL", "C")
            .env("PGCLIENTENCODING", "UTF8")
            .current_dir(&self.directory)
            .stdin(Stdio::null())
            .stdout(file.try_clone().unwrap())
            .stderr(file)
            .kill_on_drop(true);
        let status = tokio::time::timeout(PROGRAM_BOUND, command.status())
            .await
            .unwrap_or_else(|_| panic!("{program} {args:?} has not ended in {PROGRAM_BOUND:?}"))
            .unwrap();
        (status, String::from_utf8_lossy(&fs::read(output).unwrap()).into_owned())
    }

    /// The same for a run that must succeed.
    async fn succeed(&self, way: Way, program: &str, database: &str, args: &[&str]) -> String {
        let (status, output) = self.run(way, program, database, args).await;
        assert!(status.success(), "{way:?}: {program} {args:?}: {status}\n{output}");
        output
    }

    fn file(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Setup {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            // What is left of it is in the way of nobody.
            let _ = fs::remove_dir_all(&self.directory);
        }
    }
}

fn source(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tools").join(name);
    path.to_str().unwrap().to_owned()
}

/// Both texts are the same, or a panic that shows where they part.
fn assert_same(what: &str, direct: &str, through: &str) {
    let mut lines = direct.lines().zip(through.lines()).enumerate();
    if let Some((number, (direct, through))) = lines.find(|(_, (direct, through))| direct != through) {
        panic!("{what}, line {}:\ndirectly:        {direct}\nthrough pgsteer: {through}", number + 1);
    }
    assert_eq!(direct.len(), through.len(), "{what}: one is longer");
}

/// A dump as text, but for the random keys that newer versions put into it.
fn plain(dump: &str) -> String {
    let random = |line: &&str| !line.starts_with("\\restrict ") && !line.starts_with("\\unrestrict ");
    dump.lines().filter(random).map(|line| format!("{line}\n")).collect()
}

/// An archive's bytes, but for the time in its head: there are seven numbers of a sign and four bytes.
fn without_time(mut archive: Vec<u8>) -> Vec<u8> {
    assert_eq!(archive[..5], *b"PGDMP");
    let (minor, int_bytes) = (archive[6], usize::from(archive[8]));
    // The magic, a version of three bytes, two sizes and the format; how it is compressed is a number before 1.15.
    let time = 11 + if minor < 15 { 1 + int_bytes } else { 1 };
    archive[time..time + 7 * (1 + int_bytes)].fill(0);
    archive
}

/// The files of a dump in the directory format.
fn archive_files(directory: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = fs::read_dir(directory).unwrap().map(|entry| {
        let entry = entry.unwrap();
        let bytes = fs::read(entry.path()).unwrap();
        let name = entry.file_name().into_string().unwrap();
        let bytes = if name == "toc.dat" { without_time(bytes) } else { bytes };
        (name, bytes)
    });
    files.collect()
}

/// Dumps in all formats are the same bytes, and what is restored through pgsteer is what was dumped.
#[tokio::test]
async fn dump_and_restore() {
    let setup = Setup::start("dump").await;
    setup.succeed(Way::Through, "createdb", "postgres", &["original"]).await;
    let schema = source("schema.sql");
    setup
        .succeed(Way::Through, "psql", "original", &["-X", "-q", "-v", "ON_ERROR_STOP=1", "-f", &schema])
        .await;

    let mut texts = Vec::new();
    for way in [Way::Direct, Way::Through] {
        let text = setup.succeed(way, "pg_dump", "original", &["--create"]).await;
        setup
            .succeed(way, "pg_dump", "original", &["-Fc", "-f", &setup.file(&format!("{way:?}.dump"))])
            .await;
        let directory = setup.file(&format!("{way:?}.dir"));
        setup.succeed(way, "pg_dump", "original", &["-Fd", "-j2", "-f", &directory]).await;
        texts.push(plain(&text));
    }
    assert!(texts[0].contains("CREATE POLICY cheap") && texts[0].contains("Müller 300"), "it is all there");
    assert_same("pg_dump", &texts[0], &texts[1]);
    let archive = |way: Way| without_time(fs::read(setup.file(&format!("{way:?}.dump"))).unwrap());
    assert!(archive(Way::Direct) == archive(Way::Through), "pg_dump -Fc gives other bytes");
    let files = |way: Way| archive_files(Path::new(&setup.file(&format!("{way:?}.dir"))));
    let (direct, through) = (files(Way::Direct), files(Way::Through));
    assert_eq!(direct.keys().collect::<Vec<_>>(), through.keys().collect::<Vec<_>>());
    let other: Vec<_> =
        direct.iter().filter(|(name, bytes)| through[*name] != **bytes).map(|it| it.0).collect();
    assert!(other.is_empty(), "pg_dump -Fd -j2 gives other bytes: {other:?}");
    let globals =
        |way| setup.succeed(way, "pg_dumpall", "postgres", &["--globals-only", "--no-role-passwords"]);
    assert_same("pg_dumpall", &plain(&globals(Way::Direct).await), &plain(&globals(Way::Through).await));

    let whole = setup.succeed(Way::Direct, "pg_dump", "original", &[]).await;
    let (jobs, one) = (["-j2", "-d", "in_parallel"], ["--single-transaction", "-d", "in_one"]);
    for (database, args, from) in
        [("in_parallel", &jobs[..], "Through.dir"), ("in_one", &one, "Through.dump")]
    {
        setup.succeed(Way::Through, "createdb", "postgres", &[database]).await;
        let (verbose, from) = (["--exit-on-error"], setup.file(from));
        setup.succeed(Way::Through, "pg_restore", database, &[&verbose, args, &[&from]].concat()).await;
        let restored = setup.succeed(Way::Direct, "pg_dump", database, &[]).await;
        assert_same(database, &plain(&whole), &plain(&restored));
    }
    // Over what is there already.
    let again =
        ["--clean", "--if-exists", "-j2", "--exit-on-error", "-d", "in_one", &setup.file("Through.dir")];
    setup.succeed(Way::Through, "pg_restore", "in_one", &again).await;
    let restored = setup.succeed(Way::Direct, "pg_dump", "in_one", &[]).await;
    assert_same("pg_restore --clean", &plain(&whole), &plain(&restored));
}

/// What psql prints, but for process ids.
fn printed(output: &str) -> String {
    let mut lines = String::new();
    for line in output.lines() {
        match line.split_once("server process with PID ") {
            Some((before, _)) => lines.push_str(before),
            None => lines.push_str(line),
        }
        lines.push('\n');
    }
    lines
}

#[tokio::test]
async fn psql_scripts() {
    let setup = Setup::start("psql").await;
    fs::write(setup.file("in.csv"), "i,t,n\n4,four,4.5\n5,\"quoted, ü\",\n6,,0\n").unwrap();
    let mut seen = Vec::new();
    for way in [Way::Direct, Way::Through] {
        // The same name both ways: it is in what is printed.
        setup.succeed(Way::Direct, "createdb", "postgres", &["scripts"]).await;
        setup.sandbox.wait_caught_up().await.unwrap();
        setup.succeed(way, "psql", "scripts", &["-X", "-q", "-f", &source("schema.sql")]).await;
        let mut all = String::new();
        let (script, bind) = (source("script.sql"), source("bind.sql"));
        let mut runs = vec![
            vec!["-X", "-a", "-f", &script],
            vec!["-X", "-1", "-c", "CREATE TABLE t_one (i int)", "-c", "SELECT 1/0", "-c", "SELECT 1"],
            vec![
                "-X",
                "-c",
                "SELECT to_regclass('t_one')",
                "-c",
                "INSERT INTO t_script VALUES (90); SELECT 1/0",
            ],
            vec!["-X", "-A", "-t", "-c", "SELECT count(*) FROM t_script"],
            vec!["-X", "-l"],
        ];
        if setup.sandbox.binaries().major() >= PSQL_WITH_BIND {
            runs.push(vec!["-X", "-a", "-f", &bind]);
        }
        for args in &runs {
            let (status, output) = setup.run(way, "psql", "scripts", args).await;
            all.push_str(&format!("{}{status}\n", printed(&output)));
        }
        for written in ["out.csv", "out.txt"] {
            all.push_str(&fs::read_to_string(setup.file(written)).unwrap());
            fs::remove_file(setup.file(written)).unwrap();
        }
        setup.succeed(way, "dropdb", "postgres", &["--force", "scripts"]).await;
        seen.push(all);
    }
    assert!(seen[0].contains("new_session") && !seen[0].contains("'never';\n never"), "{}", seen[0]);
    assert_same("psql", &seen[0], &seen[1]);
}

/// All modes of pgbench: no transaction fails, and none is lost or done twice.
#[tokio::test]
async fn pgbench() {
    let setup = Setup::start("pgbench").await;
    setup.succeed(Way::Through, "createdb", "postgres", &["bench"]).await;
    setup.succeed(Way::Through, "pgbench", "bench", &["-i", "-s", "2", "-q", "-I", "dtgvpf"]).await;
    let (clients, transactions) = (CLIENTS.to_string(), TRANSACTIONS.to_string());
    let mut written = 0;
    for mode in ["simple", "extended", "prepared"] {
        for (builtin, more) in [("tpcb-like", &[][..]), ("select-only", &[]), ("tpcb-like", &["-C"])] {
            let fixed = ["-n", "-j", "2", "-c", &clients, "-t", &transactions, "-M", mode, "-b", builtin];
            let output = setup.succeed(Way::Through, "pgbench", "bench", &[&fixed, more].concat()).await;
            let all = CLIENTS * TRANSACTIONS;
            let processed = format!("number of transactions actually processed: {all}/{all}");
            assert!(output.contains(&processed), "{mode} {builtin} {more:?}\n{output}");
            assert!(
                output.contains("number of failed transactions: 0 (0.000%)"),
                "{mode} {builtin}\n{output}"
            );
            written += if builtin == "tpcb-like" { all } else { 0 };
        }
    }
    let sums = "SELECT (SELECT count(*) FROM pgbench_history), (SELECT sum(delta) FROM pgbench_history),
                       (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(tbalance) FROM pgbench_tellers),
                       (SELECT sum(bbalance) FROM pgbench_branches)";
    for way in [Way::Direct, Way::Through] {
        let row = setup.succeed(way, "psql", "bench", &["-X", "-A", "-t", "-c", sums]).await;
        let row: Vec<i64> = row.trim().split('|').map(|number| number.parse().unwrap()).collect();
        assert_eq!(row[0], i64::try_from(written).unwrap(), "rows of the history");
        assert!(
            row[2..].iter().all(|sum| *sum == row[1]),
            "{way:?}: history, accounts, tellers, branches: {row:?}"
        );
    }
    let routed = setup.proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
    assert!(routed > 0.0, "no read went to a standby");
}
