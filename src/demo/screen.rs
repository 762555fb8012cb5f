//! Standard output: events one by one, and below them a table that is drawn anew, or plain lines.
//!
//! Invariant: nothing is ever drawn over an event. A closed pipe ends nothing. It must not know what is shown.

use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often the state is told in plain lines.
const LINE_EVERY: Duration = Duration::from_secs(1);

/// Where everything is shown.
#[derive(Debug)]
pub(super) struct Screen {
    terminal: bool,
    began: Instant,
    shown: Mutex<Shown>,
}

#[derive(Debug, Default)]
struct Shown {
    /// The table that stands below the last event.
    table: Vec<String>,
    line_at: Option<Instant>,
}

impl Screen {
    pub(super) fn new() -> Self {
        Self { terminal: std::io::stdout().is_terminal(), began: Instant::now(), shown: Mutex::default() }
    }

    /// One line, with the time since the start.
    pub(super) fn event(&self, text: &str) {
        self.event_at(Instant::now(), text);
    }

    /// The same for something that happened at another moment.
    pub(super) fn event_at(&self, at: Instant, text: &str) {
        let seconds = at.saturating_duration_since(self.began).as_secs_f64();
        self.print(&format!("{seconds:8.3}  {text}\n"));
    }

    /// Text that stays.
    pub(super) fn print(&self, text: &str) {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        write(&over(&shown.table, text, &shown.table));
    }

    /// The state now; on a terminal in place of the one before, else now and then as a line.
    pub(super) fn state(&self, table: Vec<String>, line: impl FnOnce() -> String) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if self.terminal {
            write(&over(&shown.table, "", &table));
            shown.table = table;
        } else if shown.line_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shown.line_at = Some(Instant::now());
            let seconds = self.began.elapsed().as_secs_f64();
            write(&format!("{seconds:8.3}  {}\n", line()));
        }
    }

    /// The table that stands there stays; what follows comes below it.
    pub(super) fn keep_table(&self) {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner).table.clear();
    }
}

/// What replaces the table that stands there by a text and a new table.
fn over(standing: &[String], text: &str, table: &[String]) -> String {
    let back = match standing.len() {
        0 => String::new(),
        lines => format!("\x1b[{lines}A\r\x1b[J"),
    };
    let table: String = table.iter().map(|line| format!("{line}\n")).collect();
    format!("{back}{text}{table}")
}

fn write(text: &str) {
    let mut output = std::io::stdout().lock();
    let _ = output.write_all(text.as_bytes()).and_then(|()| output.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_put_above_the_table() {
        let table = ["a".to_owned(), "b".to_owned()];
        assert_eq!(over(&table, "event\n", &table), "\x1b[2A\r\x1b[Jevent\na\nb\n");
        assert_eq!(over(&[], "event\n", &[]), "event\n");
        assert_eq!(over(&[], "", &table), "a\nb\n");
    }
}
