//! The account the servers run under. PostgreSQL refuses to run as root, so root lends it an ordinary one.
//! It knows nothing of PostgreSQL beyond that.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::statvfs::statvfs;
use nix::unistd::{Uid, User};

use super::Error;

/// The file system in memory, on Linux.
const MEMORY: &str = "/dev/shm";

/// Free bytes it must have: three nodes with all the WAL they keep, and as much again.
const MEMORY_NEEDED: u64 = 4 << 30;

/// Whom the servers run as: nobody else than we (`None`), or an account lent by root.
#[derive(Debug, Clone, Copy)]
pub(super) struct Account(Option<(u32, u32)>);

impl Account {
    /// Our own account, or as root `postgres`, else `nobody`.
    pub(super) fn choose() -> Result<Self, Error> {
        if !Uid::effective().is_root() {
            return Ok(Self(None));
        }
        ["postgres", "nobody"]
            .into_iter()
            .find_map(|name| User::from_name(name).ok().flatten())
            .map(|user| Self(Some((user.uid.as_raw(), user.gid.as_raw()))))
            .ok_or(Error::NoAccount)
    }

    /// Lets a command run under this account.
    pub(super) fn lend(self, command: &mut Command) {
        if let Some((uid, gid)) = self.0 {
            command.uid(uid).gid(gid);
        }
    }

    /// Hands a file over to this account.
    pub(super) fn give(self, path: &Path) -> Result<(), Error> {
        let Some((uid, gid)) = self.0 else { return Ok(()) };
        std::os::unix::fs::chown(path, Some(uid), Some(gid))
            .map_err(Error::io(format!("hand {} over to the server's account", path.display())))
    }

    /// Where a cluster's directory goes: `TMPDIR` if the account can get there, else `/tmp`. One that need not be
    /// durable goes to memory where there is plenty: a cluster is thousands of files, which disks are slow at.
    pub(super) fn temporary_directory(self, durable: bool) -> PathBuf {
        let wanted = usable(std::env::var_os("TMPDIR"));
        if wanted.is_none() && !durable && has_room(Path::new(MEMORY)) {
            return PathBuf::from(MEMORY);
        }
        let open = |path: &PathBuf| self.0.is_none() || path.ancestors().all(is_open_to_all);
        wanted.filter(open).unwrap_or_else(|| PathBuf::from("/tmp"))
    }
}

/// The directory that `TMPDIR` names. An empty or relative one counts as none: the servers work elsewhere.
fn usable(variable: Option<OsString>) -> Option<PathBuf> {
    let path = variable.map(PathBuf::from).filter(|path| path.is_absolute())?;
    // A Unix socket's whole path must stay below 104 bytes.
    (path.as_os_str().len() < 60).then_some(path)
}

fn has_room(directory: &Path) -> bool {
    statvfs(directory).is_ok_and(|it| {
        // The fields' widths differ from system to system.
        #[allow(clippy::useless_conversion)]
        let free = u64::from(it.blocks_available()) * u64::from(it.fragment_size());
        free >= MEMORY_NEEDED
    })
}

fn is_open_to_all(directory: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    std::fs::metadata(directory).is_ok_and(|it| it.permissions().mode() & 0o001 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_path_counts_as_temporary_directory() {
        assert_eq!(usable(Some("/var/tmp".into())), Some(PathBuf::from("/var/tmp")));
        for unusable in [None, Some(""), Some("tmp"), Some("./tmp")] {
            assert_eq!(usable(unusable.map(Into::into)), None, "{unusable:?}");
        }
        assert_eq!(usable(Some(format!("/{}", "x".repeat(60)).into())), None, "too long for a socket in it");
    }
}
