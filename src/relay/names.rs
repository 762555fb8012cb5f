//! Names of prepared statements in errors: the server knows them by other names than the client.
//!
//! Invariant: nothing but such a name between double quotes is replaced, and the frame stays well-formed. Must not know: how
//! the names are made.

use crate::wire::frame::{self, HEADER_BYTES};

/// Names noted for one answer; what does not fit stays as the server says it.
const NOTED_MAX_BYTES: usize = 4096;

/// Which of the client's names the server's stand for, as far as they occur in one answer.
#[derive(Debug, Default)]
pub struct Names {
    /// Server's name, zero, client's name, zero; and so on.
    noted: Vec<u8>,
}

impl Names {
    /// Notes a pair. A batch that uses one statement again and again notes it once.
    pub fn note(&mut self, server: &[u8], client: &[u8]) {
        let length = server.len() + client.len() + 2;
        let last = self.noted.len().checked_sub(length).and_then(|start| self.noted.get(start..));
        let is_last = last.is_some_and(|last| {
            last.strip_prefix(server)
                .and_then(|rest| rest.strip_prefix(b"\0"))
                .is_some_and(|rest| rest.strip_prefix(client) == Some(b"\0"))
        });
        if is_last || self.noted.len() + length > NOTED_MAX_BYTES {
            return;
        }
        for part in [server, b"\0", client, b"\0"] {
            self.noted.extend_from_slice(part);
        }
    }

    /// Forgets all, and keeps the room.
    pub fn clear(&mut self) {
        self.noted.clear();
    }

    /// The frame with the client's names; `None` when none of the server's is in it.
    pub fn translated(&self, whole: &[u8]) -> Option<Vec<u8>> {
        let mut body = whole.get(HEADER_BYTES..)?.to_vec();
        let mut changed = false;
        let mut words = self.noted.split(|&byte| byte == 0);
        while let (Some(server), Some(client)) = (words.next(), words.next()) {
            let quoted = [b"\"", server, b"\""].concat();
            let mut from = 0;
            while let Some(at) = find(body.get(from..).unwrap_or_default(), &quoted) {
                let start = from + at + 1;
                body.splice(start..start + server.len(), client.iter().copied());
                from = start + client.len() + 1;
                changed = true;
            }
        }
        let mut out = Vec::with_capacity(HEADER_BYTES + body.len());
        frame::put(&mut out, *whole.first()?, &[&body]);
        changed.then_some(out)
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(message: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        frame::put(&mut out, b'E', &[b"C42P05\0M", message, b"\0\0"]);
        out
    }

    #[test]
    fn each_of_the_servers_names_becomes_the_clients() {
        let mut names = Names::default();
        for _ in 0..1000 {
            names.note(b"_s_1", b"one");
        }
        names.note(b"_s_12", b"a longer name");
        assert!(names.noted.len() < 64);
        let said = error(b"\"_s_12\" and \"_s_1\" and \"_s_1\", not _s_1 or \"_s_123\"");
        let meant = error(b"\"a longer name\" and \"one\" and \"one\", not _s_1 or \"_s_123\"");
        assert_eq!(names.translated(&said), Some(meant));
        assert_eq!(names.translated(&error(b"division by zero")), None);
        names.clear();
        assert_eq!(names.translated(&said), None);
    }

    #[test]
    fn what_is_noted_is_bounded() {
        let mut names = Names::default();
        for number in 0..10_000 {
            names.note(format!("_s_{number}").as_bytes(), b"x");
        }
        assert!(names.noted.len() <= NOTED_MAX_BYTES);
    }
}
