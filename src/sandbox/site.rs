//! The ground a cluster stands on: its directory, its account, its programs, its password.
//!
//! Invariant: the directory exists as long as the site, and is gone after it. It knows nothing of nodes.

use std::collections::HashSet;
use std::fs::DirBuilder;
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use super::account::Account;
use super::builder::Settings;
use super::wait::until_blocking;
use super::watchdog::Watchdog;
use super::{Binaries, Error};

/// How long a directory may resist removal, while a killed program writes its last file.
const REMOVAL_BOUND: Duration = Duration::from_secs(10);

/// What all nodes of one cluster share.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) directory: PathBuf,
    pub(super) settings: Settings,
    pub(super) password: String,
    pub(super) binaries: Binaries,
    pub(super) ports: Mutex<HashSet<u16>>,
    account: Account,
    // Last: what it guards must be removed before it looks.
    _watchdog: Watchdog,
}

impl Site {
    /// Makes the directory.
    pub(super) fn open(settings: Settings) -> Result<Self, Error> {
        let binaries = settings.binaries.as_deref().map_or_else(Binaries::find, Binaries::of)?;
        let account = Account::choose()?;
        let token = random_hex()?;
        let directory =
            account.temporary_directory(settings.fsync).join(format!("pgsteer-sandbox-{}", &token[..12]));
        let watchdog = Watchdog::over(&directory)?;
        DirBuilder::new()
            .mode(0o700)
            .create(&directory)
            .map_err(Error::io(format!("make the directory {}", directory.display())))?;
        let site = Self {
            directory,
            settings,
            password: random_hex()?,
            binaries,
            ports: Mutex::default(),
            account,
            _watchdog: watchdog,
        };
        site.account.give(&site.directory)?;
        Ok(site)
    }

    /// Writes a file that only the server's account may read.
    pub(super) fn write(&self, path: &Path, text: &str) -> Result<(), Error> {
        let failed = || Error::io(format!("write {}", path.display()));
        let mut file = std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(path)
            .map_err(failed())?;
        file.write_all(text.as_bytes()).map_err(failed())?;
        self.account.give(path)
    }

    /// One of PostgreSQL's programs, to be run under the right account, out of reach of the terminal's Ctrl-C
    /// and of the caller's `PG*` variables.
    pub(super) fn program(&self, name: &str) -> Command {
        self.command(&self.binaries.program(name))
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        self.account.lend(&mut command);
        command.current_dir(&self.directory).process_group(0).stdin(Stdio::null()).env("LC_ALL", "C");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
            command.env_remove(name);
        }
        command
    }

    /// Copies a directory of the server's, rights included.
    pub(super) async fn copy(&self, from: &Path, to: &Path) -> Result<(), Error> {
        let mut command = self.command(Path::new("cp"));
        command.arg("-a").arg(from).arg(to);
        finish(command).await
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        until_blocking(REMOVAL_BOUND, || {
            let _ = std::fs::remove_dir_all(&self.directory);
            !self.directory.exists()
        });
    }
}

/// Runs a program to its end.
pub(super) async fn finish(command: Command) -> Result<(), Error> {
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().display().to_string();
    let output = tokio::process::Command::from(command)
        .kill_on_drop(true)
        .output()
        .await
        .map_err(Error::io(format!("run `{program}`")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].concat();
    Err(Error::Tool { program, status: output.status, output: last_lines(&String::from_utf8_lossy(&said)) })
}

/// The end of a long text, for an error message.
pub(super) fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.trim().lines().collect();
    lines[lines.len().saturating_sub(8)..].join("\n")
}

fn random_hex() -> Result<String, Error> {
    let mut bytes = [0_u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut source| source.read_exact(&mut bytes))
        .map_err(Error::io("read /dev/urandom"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}
