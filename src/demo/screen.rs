//! Standard output: events one by one, and below them a table that is drawn anew, or plain lines.
//!
//! Invariant: nothing is ever drawn over an event: no line of the table is wider than the terminal. Events that are held
//! back come out in the order in which they happened. A closed pipe ends nothing. It must not know what is shown.

use std::io::{IsTerminal, Write as _};
use std::sync::{Mutex, MutexGuard, PoisonError};
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
    /// Lines that wait for earlier ones, with their moments; `None` when nothing is held back.
    held: Option<Vec<(Instant, String)>>,
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
        self.shown().tell(at, format!("{seconds:8.3}  {text}\n"));
    }

    /// From now on events wait for their release: others that happened before may still be on their way.
    pub(super) fn hold(&self) {
        self.shown().held.get_or_insert_default();
    }

    /// Nothing that happened before this moment is on its way any more.
    pub(super) fn release(&self, until: Instant) {
        self.shown().release(until);
    }

    /// Everything that waits is told, and from now on nothing waits.
    pub(super) fn flow(&self) {
        let mut shown = self.shown();
        if let Some(last) = shown.held.iter().flatten().map(|(at, _)| *at).max() {
            shown.release(last);
        }
        shown.held = None;
    }

    /// Text that stays.
    pub(super) fn print(&self, text: &str) {
        self.shown().print(text);
    }

    /// The state now; on a terminal in place of the one before, as a table that is told how many columns there are;
    /// else now and then as a line.
    pub(super) fn state(&self, table: impl FnOnce(usize) -> Vec<String>, line: impl FnOnce() -> String) {
        let mut shown = self.shown();
        if self.terminal {
            let columns = columns();
            let table = cut(table(columns), columns);
            write(&over(&shown.table, "", &table));
            shown.table = table;
        } else if shown.line_at.is_none_or(|at| at.elapsed() >= LINE_EVERY) {
            shown.line_at = Some(Instant::now());
            drop(shown);
            self.event(&line());
        }
    }

    /// The table that stands there stays; what follows comes below it.
    pub(super) fn keep_table(&self) {
        self.shown().table.clear();
    }

    fn shown(&self) -> MutexGuard<'_, Shown> {
        self.shown.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Shown {
    fn tell(&mut self, at: Instant, line: String) {
        match &mut self.held {
            Some(held) => held.push((at, line)),
            None => self.print(&line),
        }
    }

    fn release(&mut self, until: Instant) {
        let Some(held) = &mut self.held else { return };
        let due = due(held, until);
        if !due.is_empty() {
            self.print(&due);
        }
    }

    fn print(&self, text: &str) {
        write(&over(&self.table, text, &self.table));
    }
}

/// Takes out what happened up to a moment, in order.
fn due(held: &mut Vec<(Instant, String)>, until: Instant) -> String {
    held.sort_by_key(|(at, _)| *at);
    let count = held.partition_point(|(at, _)| *at <= until);
    held.drain(..count).map(|(_, line)| line).collect()
}

/// How many columns the terminal has now; no limit where it does not say.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|&columns| columns > 0).unwrap_or(usize::MAX)
}

/// Lines of at most so many characters: the way back up counts lines, not what the terminal makes of them.
fn cut(lines: Vec<String>, columns: usize) -> Vec<String> {
    lines.into_iter().map(|line| line.chars().take(columns).collect()).collect()
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

    #[test]
    fn events_come_out_in_the_order_in_which_they_happened() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut held = vec![(at(30), "c"), (at(10), "a"), (at(50), "e"), (at(20), "b"), (at(30), "d")]
            .into_iter()
            .map(|(at, line)| (at, line.to_owned()))
            .collect();
        assert_eq!(due(&mut held, at(5)), "");
        assert_eq!(due(&mut held, at(30)), "abcd", "of the same moment the first told comes first");
        assert_eq!(held, [(at(50), "e".to_owned())]);
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let lines = || vec!["×abc".to_owned(), "a".to_owned()];
        assert_eq!(cut(lines(), 2), ["×a", "a"]);
        assert_eq!(cut(lines(), usize::MAX), lines());
    }
}
