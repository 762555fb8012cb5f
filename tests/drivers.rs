//! Real drivers, each with one suite that runs through pgsteer and directly against the primary: both must go alike.
//!
//! The suites are in `tests/drivers`; `make test` installs their packages (`.ci/drivers`). A check that fails both ways
//! is a fault of its suite, one that fails only through pgsteer is a fault of pgsteer.

// A test ends by a panic, its set-up too.
#![allow(clippy::unwrap_used)]

#[path = "drivers/check.rs"]
mod check;
mod running;
#[path = "drivers/sqlx.rs"]
mod sqlx_suite;
#[path = "drivers/tokio_postgres.rs"]
mod tokio_postgres_suite;

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use pgsteer::sandbox::Sandbox;
use running::Running;

/// The longest that one script may take on a loaded machine.
const SCRIPT_BOUND: Duration = Duration::from_secs(240);

/// Seconds after which a script gives a check up.
const CHECK_BOUND: &str = "20";

const USER: &str = "app";
const PASSWORD: &str = "app-secret";

/// What is known to go otherwise through pgsteer, each time: driver, check, and why. An entry that is no longer true fails the
/// test.
const KNOWN_DIFFERENCES: &[(&str, &str, &str)] = &[];

/// The lines that a script prints, one for each check: its name, a colon, `ok` or what failed.
type Lines = Vec<String>;

/// A cluster and a pgsteer in its default configuration.
struct Setup {
    sandbox: Sandbox,
    proxy: Running,
}

impl Setup {
    async fn start() -> Self {
        let sandbox = Sandbox::builder().standbys(2).start().await.unwrap();
        let admin = sandbox.connect(0).await.unwrap();
        for statement in [
            format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'"),
            format!("CREATE DATABASE direct OWNER {USER}"),
            format!("CREATE DATABASE pgsteer OWNER {USER}"),
        ] {
            admin.batch_execute(&statement).await.unwrap();
        }
        sandbox.wait_caught_up().await.unwrap();
        let proxy = Running::start(&sandbox, &[]).await;
        Self { sandbox, proxy }
    }

    /// Runs a suite in both ways at once, each in a database of its own, and compares.
    async fn compare(&self, driver: &str, suite: impl AsyncFn(String) -> Lines) {
        let url = |port, database| format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{port}/{database}");
        let began = Instant::now();
        let (direct, through) = tokio::join!(
            suite(url(self.sandbox.primary().port(), "direct")),
            suite(url(self.proxy.address.port(), "pgsteer")),
        );
        let routed = self.proxy.metric("pgsteer_statements_routed_total", &[("side", "standby")]).await;
        println!("{driver}: {} checks in {:?}, {routed} on standbys", direct.len(), began.elapsed());
        let faults = faults(driver, &direct, &through);
        assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
        assert!(routed > 0.0, "no read went to a standby");
    }
}

fn faults(driver: &str, direct: &[String], through: &[String]) -> Vec<String> {
    let mut faults = Vec::new();
    let name = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    if direct.is_empty() || direct.len() != through.len() {
        faults.push(format!("{} lines directly, {} through pgsteer", direct.len(), through.len()));
    }
    for line in direct.iter().filter(|line| !line.contains(": ok")) {
        faults.push(format!("directly: {line}"));
    }
    for (direct, through) in direct.iter().zip(through) {
        let check = name(direct);
        let known = KNOWN_DIFFERENCES.iter().find(|(of, known, ..)| *of == driver && check == *known);
        match (direct == through, known) {
            (false, None) => faults.push(format!("directly:        {direct}\nthrough pgsteer: {through}")),
            (true, Some((_, _, why))) => {
                faults.push(format!("{check}: take it from the list, it is no longer true that {why}"));
            }
            (false, Some((_, _, why))) => println!("known: {through}\n       {why}"),
            (true, None) => {}
        }
    }
    faults
}

/// Where `.ci/drivers` has installed the packages.
fn installed() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("drivers")
}

fn must_be_installed(what: &str) -> PathBuf {
    let path = installed().join(what);
    assert!(path.exists(), "{} is missing: `make test` installs the drivers", path.display());
    path
}

async fn script(program: &Path, script: &str, url: String) -> Lines {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/drivers");
    let mut command = tokio::process::Command::new(program);
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("PG")) {
        command.env_remove(name);
    }
    command
        .arg(sources.join(script))
        .current_dir(installed())
        .env("DATABASE_URL", url)
        .env("CHECK_TIMEOUT", CHECK_BOUND)
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = tokio::time::timeout(SCRIPT_BOUND, command.output())
        .await
        .unwrap_or_else(|_| panic!("{script} has not ended in {SCRIPT_BOUND:?}"))
        .unwrap_or_else(|error| panic!("{} does not start: {error}", program.display()));
    let lines = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {}\n{lines:#?}\n{errors}", output.status);
    lines
}

#[tokio::test]
async fn psycopg() {
    let python = must_be_installed("python/bin/python");
    let setup = Setup::start().await;
    setup.compare("psycopg", async |url| script(&python, "psycopg3.py", url).await).await;
}

#[tokio::test]
async fn asyncpg() {
    let python = must_be_installed("python/bin/python");
    let setup = Setup::start().await;
    setup.compare("asyncpg", async |url| script(&python, "asyncpg_suite.py", url).await).await;
}

#[tokio::test]
async fn node_postgres() {
    must_be_installed("node_modules/pg");
    let setup = Setup::start().await;
    let node = Path::new("node");
    setup.compare("node-postgres", async |url| script(node, "node_postgres.mjs", url).await).await;
}

#[tokio::test]
async fn tokio_postgres() {
    let setup = Setup::start().await;
    setup.compare("tokio-postgres", async |url| tokio_postgres_suite::run(&url).await).await;
}

#[tokio::test]
async fn sqlx() {
    let setup = Setup::start().await;
    setup.compare("sqlx", async |url| sqlx_suite::run(&url).await).await;
}
