//! The processes of a server. A PostgreSQL backend opens a session of its own, so a signal to the postmaster's
//! process group does not reach it: the family is found by parentage.
//!
//! Invariant: a process is named by its id and its time of birth, so a reused id is never hit.
//! It knows nothing of PostgreSQL's roles.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::wait::until_blocking;

/// How long a signalled process may take to be seen stopped.
const STOP_BOUND: Duration = Duration::from_millis(500);

/// One process, as long as it lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
    born: u64,
}

struct Entry {
    process: Process,
    parent: i32,
    state: char,
}

impl Process {
    /// The process that has this id now.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let pid = i32::try_from(pid).ok()?;
        look_up(pid).map(|entry| entry.process)
    }

    /// Its process id.
    pub(super) fn id(self) -> u32 {
        self.pid.unsigned_abs()
    }

    /// Whether it still runs. One that has ended and only waits to be reaped does not.
    pub(super) fn is_alive(self) -> bool {
        look_up(self.pid).is_some_and(|it| it.process == self && it.state != 'Z')
    }

    /// Sends a signal; a process that is gone is no error.
    pub(super) fn signal(self, signal: Signal) {
        if self.is_alive() {
            // The only answers are "gone" and "not yours"; callers look at the process, not at this.
            let _ = kill(Pid::from_raw(self.pid), signal);
        }
    }

    /// All its descendants.
    pub(super) fn descendants(self) -> Vec<Self> {
        let table = table();
        let mut found: Vec<Self> = Vec::new();
        let mut parents = vec![self.pid];
        while let Some(parent) = parents.pop() {
            let children = table.iter().filter(|it| it.parent == parent && it.process.pid != parent);
            for child in children.filter(|it| it.state != 'Z') {
                found.push(child.process);
                parents.push(child.process.pid);
            }
        }
        found
    }

    /// Stops it, so that it makes no more children, then gives its descendants.
    pub(super) fn halt(self) -> Vec<Self> {
        self.signal(Signal::SIGSTOP);
        // A stop takes effect on the way out of a system call, which may be the fork of one more child.
        until_blocking(STOP_BOUND, || look_up(self.pid).is_none_or(|it| matches!(it.state, 'T' | 't' | 'Z')));
        self.descendants()
    }
}

/// Removes the System V segment a killed postmaster leaves behind. Its file lives until the next start.
pub(super) fn remove_shared_memory(postmaster_file: &Path) {
    let Ok(text) = std::fs::read_to_string(postmaster_file) else { return };
    let segment = text.lines().nth(6).and_then(|line| line.split_whitespace().nth(1));
    if let Some(segment) = segment {
        let _ = Command::new("ipcrm").args(["-m", segment]).output();
    }
}

fn look_up(pid: i32) -> Option<Entry> {
    if Path::new("/proc/self/stat").exists() {
        return entry_of(pid, &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?);
    }
    table().into_iter().find(|it| it.process.pid == pid)
}

fn table() -> Vec<Entry> {
    if !Path::new("/proc/self/stat").exists() {
        return table_by_ps();
    }
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            entry_of(pid, &std::fs::read_to_string(entry.path().join("stat")).ok()?)
        })
        .collect()
}

/// Reads `/proc/<pid>/stat`; the name in parentheses may hold anything.
fn entry_of(pid: i32, stat: &str) -> Option<Entry> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let state = fields.next()?.chars().next()?;
    let parent = fields.next()?.parse().ok()?;
    let born = fields.nth(17)?.parse().ok()?;
    Some(Entry { process: Process { pid, born }, parent, state })
}

fn table_by_ps() -> Vec<Entry> {
    let Ok(output) = Command::new("ps").args(["-A", "-o", "pid=,ppid=,stat="]).output() else {
        return Vec::new();
    };
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let pid = fields.next()?.parse().ok()?;
            let parent = fields.next()?.parse().ok()?;
            let state = fields.next()?.chars().next()?;
            Some(Entry { process: Process { pid, born: 0 }, parent, state })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_does_not_confuse_the_fields() {
        let stat = "7 (a) b) S 3 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 99 100";
        let entry = entry_of(7, stat).unwrap();
        assert_eq!((entry.parent, entry.state, entry.process.born), (3, 'S', 4242));
    }

    #[test]
    fn a_child_is_found_halted_and_ended() {
        let mut child = Command::new("sh").args(["-c", "sleep 60 & wait"]).spawn().unwrap();
        let process = Process::of(child.id()).unwrap();
        assert!(until_blocking(Duration::from_secs(10), || process.descendants().len() == 1));
        let family = process.halt();
        for member in family.iter().chain([&process]) {
            member.signal(Signal::SIGKILL);
        }
        child.wait().unwrap();
        assert!(until_blocking(Duration::from_secs(10), || !family[0].is_alive() && !process.is_alive()));
    }
}
