//! Which server is at the other end of a connection, as it was told on that very connection behind its login.
//!
//! Invariant: only a server that is out of recovery has an incarnation, and whatever is told otherwise is none. Must not know: sockets,
//! pools, sessions, who is the primary.

use crate::topology::model::{Incarnation, Timeline};

/// System identifier, start in microseconds since 1970, and the name of the WAL file that is written, which begins with the timeline: as
/// probes are told. `None`: it is in recovery, or this is not what was asked for.
pub(super) fn told(columns: &[Option<&str>]) -> Option<Incarnation> {
    let &[Some(system_id), Some(started_us), Some(wal_file)] = columns else { return None };
    Some(Incarnation {
        system_id: system_id.parse::<i64>().ok()?.cast_unsigned(),
        started_us: started_us.parse().ok()?,
        timeline: Timeline(u32::from_str_radix(wal_file.get(..8)?, 16).ok()?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAL_FILE: Option<&str> = Some("0000001A0000000000000001");

    #[test]
    fn a_server_out_of_recovery_has_an_incarnation() {
        let told = told(&[Some("-2"), Some("1700000000000001"), WAL_FILE]);
        let (system_id, started_us) = (u64::MAX - 1, 1_700_000_000_000_001);
        assert_eq!(told, Some(Incarnation { system_id, started_us, timeline: Timeline(26) }));
    }

    #[test]
    fn whoever_says_anything_else_has_none() {
        for columns in [
            &[][..],
            &[Some("1"), Some("2"), None],
            &[None, Some("2"), WAL_FILE],
            &[Some("1"), Some("2.5"), WAL_FILE],
            &[Some("1"), Some("2"), Some("0000")],
            &[Some("1"), Some("2"), Some("0000000\u{e9}1")],
            &[Some("1"), Some("2"), WAL_FILE, Some("")],
        ] {
            assert_eq!(told(columns), None, "{columns:?}");
        }
    }
}
