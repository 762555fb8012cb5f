//! The process that cleans up when its owner can't. It waits on a pipe whose other end only the owner holds;
//! when that closes and the directory is still there, the owner died without `Drop`.
//!
//! Invariant: it outlives the owner's signals. It must not need anything but a POSIX shell.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::Error;

/// The directory comes by the environment, not as an argument, since processes are found by their arguments.
const SCRIPT: &str = r#"
trap '' INT TERM HUP QUIT
while read -r _; do :; done
[ -d "$directory" ] || exit 0
children() {
    if [ -d /proc/self ]; then
        for status in $(grep -ls "^PPid:[[:space:]]*$1\$" /proc/[0-9]*/status); do
            status=${status%/status}
            echo "${status#/proc/}"
        done
    else
        ps -A -o pid=,ppid= | while read -r pid parent; do [ "$parent" = "$1" ] && echo "$pid"; done
    fi
}
named() {
    if [ -d /proc/self ]; then
        for line in $(printf '%s' "$directory/" | grep -lsFf - /proc/[0-9]*/cmdline); do
            line=${line%/cmdline}
            echo "${line#/proc/}"
        done
    else
        ps -A -o pid=,args= | while read -r pid args; do
            case $args in *"$directory/"*) echo "$pid" ;; esac
        done
    fi
}
inside() {
    for process in /proc/[0-9]*; do
        case $(readlink "$process/cwd" 2>/dev/null) in "$directory"*) echo "${process#/proc/}" ;; esac
    done
}
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    found=
    for pid in $(named); do
        found=yes
        kill -STOP "$pid" 2>/dev/null
        for child in $(children "$pid"); do kill -KILL "$child" 2>/dev/null; done
        kill -KILL "$pid" 2>/dev/null
    done
    for pid in $(inside); do
        found=yes
        kill -KILL "$pid" 2>/dev/null
    done
    for file in "$directory"/*/postmaster.pid; do
        [ -f "$file" ] || continue
        set -- $(sed -n 7p "$file")
        [ -n "$2" ] && ipcrm -m "$2" 2>/dev/null
        rm -f "$file"
    done
    rm -rf "$directory"
    [ -z "$found" ] && [ ! -e "$directory" ] && exit 0
    sleep 0.1
done
"#;

/// Guards one directory and every process that works in it.
#[derive(Debug)]
pub(super) struct Watchdog {
    child: Child,
}

impl Watchdog {
    /// Begins to guard.
    pub(super) fn over(directory: &Path) -> Result<Self, Error> {
        let child = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "pgsteer-sandbox-watchdog"])
            .env("directory", directory)
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .map_err(Error::io("start the sandbox's watchdog (/bin/sh)"))?;
        Ok(Self { child })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}
