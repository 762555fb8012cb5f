//! A position in a cluster's history that can be carried from one session to another: `SHOW pgsteer.token`, `SET pgsteer.token`.
//!
//! Invariant: a token is only believed on the timeline that it names. On a later one it may lie on WAL that was lost, and says no more
//! than that its bearer wants to see all that was done before it came. Must not know: sessions, sockets.

use std::fmt;
use std::str::FromStr;

use crate::topology::model::{Lsn, Snapshot, Timeline};

/// `system identifier:timeline:LSN`, such as `7312345678901234567:1:0/3000148`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Token {
    /// Of the cluster.
    pub system_id: u64,
    /// Of the primary that gave it.
    pub timeline: Timeline,
    /// What a standby must have replayed.
    pub lsn: Lsn,
}

/// What a token asks of a session's next reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bound {
    /// All up to this position of the timeline of now.
    Position(Lsn),
    /// All that the primary has by now.
    Everything,
}

/// Why a token is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is none.
    #[error("expected a token as SHOW pgsteer.token gives it, such as 7312345678901234567:1:0/3000148")]
    Malformed,
    /// It belongs elsewhere.
    #[error("the token was given by another cluster")]
    OtherCluster,
    /// Its timeline has not begun yet.
    #[error("the token is of a timeline that this cluster has not come to")]
    FutureTimeline,
    /// No node has been seen.
    #[error("the cluster that it would have to be of is not known yet")]
    ClusterNotKnown,
}

impl Token {
    /// What it asks for in a cluster that looks like this.
    ///
    /// # Errors
    /// Why it can't be of this cluster.
    pub fn bound(&self, snapshot: &Snapshot) -> Result<Bound, TokenError> {
        let system_id = snapshot.system_id.ok_or(TokenError::ClusterNotKnown)?;
        if self.system_id != system_id {
            return Err(TokenError::OtherCluster);
        }
        // Without a primary the highest timeline of those that are there is the last one.
        let known = match snapshot.primary {
            Some(primary) => Some(primary.timeline),
            None => snapshot.nodes.iter().filter_map(|node| node.timeline).max(),
        };
        match known {
            Some(known) if self.timeline > known => Err(TokenError::FutureTimeline),
            Some(known) if self.timeline == known => Ok(Bound::Position(self.lsn)),
            _ => Ok(Bound::Everything),
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.system_id, self.timeline, self.lsn)
    }
}

impl FromStr for Token {
    type Err = TokenError;

    fn from_str(text: &str) -> Result<Self, TokenError> {
        let mut parts = text.trim().split(':');
        let mut part =
            || parts.next().filter(|part| part.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'/'));
        let (system_id, timeline, lsn) = (part(), part(), part());
        let read = || {
            Some(Self {
                system_id: system_id?.parse().ok()?,
                timeline: Timeline(timeline?.parse().ok().filter(|timeline| *timeline > 0)?),
                lsn: lsn?.parse().ok()?,
            })
        };
        read().filter(|_| parts.next().is_none()).ok_or(TokenError::Malformed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r08_only_a_token_of_this_history_is_a_position() {
        let mut snapshot = Snapshot::unknown(&[]);
        let token = |text: &str| text.parse::<Token>();
        let given = token("7:2:0/3000148").unwrap();
        assert_eq!(given.to_string(), "7:2:0/3000148");
        assert_eq!(given.bound(&snapshot), Err(TokenError::ClusterNotKnown));
        snapshot.system_id = Some(8);
        assert_eq!(given.bound(&snapshot), Err(TokenError::OtherCluster));
        snapshot.system_id = Some(7);
        assert_eq!(given.bound(&snapshot), Ok(Bound::Everything), "no timeline is known");
        let address = std::sync::Arc::new("a:1".parse().unwrap());
        snapshot = Snapshot { system_id: Some(7), ..Snapshot::unknown(&[address]) };
        for (timeline, expected) in [
            (1, Err(TokenError::FutureTimeline)),
            (2, Ok(Bound::Position(Lsn(0x300_0148)))),
            (3, Ok(Bound::Everything)),
        ] {
            snapshot.nodes[0].timeline = Some(Timeline(timeline));
            assert_eq!(given.bound(&snapshot), expected, "timeline {timeline}");
        }
        for text in [
            "",
            "7",
            "7:2",
            "7:2:0/1:9",
            "7:0:0/1",
            "-7:2:0/1",
            "7:2:0",
            "7:2:G/1",
            "a:2:0/1",
            "7:99999999999:0/1",
        ] {
            assert_eq!(token(text), Err(TokenError::Malformed), "{text}");
        }
    }
}
