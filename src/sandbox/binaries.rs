//! Finds PostgreSQL's server binaries: `$PGSTEER_PG_BIN`, `PATH`, the usual places, `pg_config`.
//!
//! A directory counts only if it holds all programs a sandbox needs: distributions put links to some of them
//! into `PATH`. It must not start a server; it only asks for its version.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::Error;

/// The oldest major version a sandbox works with.
const OLDEST: u32 = 14;

/// Programs without which there is no cluster. `pg_rewind` may be missing: a base backup does as well.
const NEEDED: [&str; 3] = ["postgres", "initdb", "pg_basebackup"];

/// Where packages put one directory for each major version: parent, prefix of the version's directory, rest.
const PACKAGED: [(&str, &str, &str); 6] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/usr/libexec", "postgresql", ""),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/Library/PostgreSQL", "", "bin"),
];

/// The programs of one installed PostgreSQL server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Binaries {
    directory: PathBuf,
    major: u32,
}

impl Binaries {
    /// Finds a server that is new enough.
    ///
    /// # Errors
    /// None is installed, or `PGSTEER_PG_BIN` is set to a directory without one.
    pub fn find() -> Result<Self, Error> {
        if let Some(path) = std::env::var_os("PGSTEER_PG_BIN").filter(|it| !it.is_empty()) {
            return Self::of(Path::new(&path));
        }
        in_path()
            .into_iter()
            .chain(packaged())
            .find_map(|directory| Self::inspect(&directory).ok())
            .or_else(|| from_pg_config().and_then(|directory| Self::inspect(&directory).ok()))
            .ok_or(Error::NoServer)
    }

    /// Those in this directory.
    ///
    /// # Errors
    /// It has not all of them, or they are too old.
    pub fn of(path: &Path) -> Result<Self, Error> {
        Self::inspect(path).map_err(|problem| Error::BadServer { path: path.to_owned(), problem })
    }

    /// The major version, for example 17.
    #[must_use]
    pub fn major(&self) -> u32 {
        self.major
    }

    /// The path of one program.
    #[must_use]
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    fn inspect(directory: &Path) -> Result<Self, String> {
        if let Some(missing) = NEEDED.iter().find(|name| !directory.join(name).is_file()) {
            return Err(format!("it has no `{missing}`"));
        }
        let output = Command::new(directory.join("postgres"))
            .arg("--version")
            .output()
            .map_err(|error| format!("`postgres --version` does not run ({error})"))?;
        let said = String::from_utf8_lossy(&output.stdout);
        match major_version(&said) {
            Some(major) if major >= OLDEST => Ok(Self { directory: directory.to_owned(), major }),
            Some(major) => Err(format!("its version {major} is too old")),
            None => Err(format!("`postgres --version` answers {:?}", said.trim())),
        }
    }
}

/// The directories in `PATH` that hold a `postgres`, and those its links lead to.
fn in_path() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|directory| directory.join("postgres"))
        .filter(|program| program.is_file())
        .flat_map(|program| [program.canonicalize().ok(), Some(program)])
        .flatten()
        .filter_map(|program| program.parent().map(Path::to_owned))
        .collect()
}

/// The directories of packaged servers, the highest version first.
fn packaged() -> Vec<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = PACKAGED
        .iter()
        .flat_map(|&(parent, prefix, rest)| {
            let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
            entries.filter_map(move |entry| {
                let name = entry.file_name();
                let version = name.to_str()?.strip_prefix(prefix)?.trim_start_matches('@');
                Some((leading_number(version)?, entry.path().join(rest)))
            })
        })
        .collect();
    found.sort_by_key(|(version, _)| std::cmp::Reverse(*version));
    found.into_iter().map(|(_, directory)| directory).collect()
}

fn from_pg_config() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").output().ok()?;
    let said = String::from_utf8(output.stdout).ok()?;
    Some(PathBuf::from(said.trim()))
}

/// 15 from `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`.
fn major_version(said: &str) -> Option<u32> {
    leading_number(said.split_once("(PostgreSQL)")?.1.trim_start())
}

fn leading_number(text: &str) -> Option<u32> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_read_from_what_servers_say() {
        assert_eq!(major_version("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n"), Some(15));
        assert_eq!(major_version("postgres (PostgreSQL) 19devel\n"), Some(19));
        assert_eq!(major_version("postgres (EnterpriseDB) x\n"), None);
    }

    #[test]
    fn a_directory_without_the_programs_is_refused_with_the_reason() {
        let problem = Binaries::inspect(Path::new("/nonexistent")).unwrap_err();
        assert_eq!(problem, "it has no `postgres`");
    }
}
