//! Which of a client's bytes go straight to the server in the middle of an exchange: COPY data, and the rest of a large frame.
//!
//! Invariant: frames go through whole, and nothing behind the end of the data. Pure. Must not know: sockets, what is in the data.

use crate::wire::frame;

/// What of the client's further bytes goes straight to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Through {
    /// Nothing: they wait for their turn.
    Nothing,
    /// COPY data, up to CopyDone or CopyFail; then up to Sync, if the copy was begun by the extended protocol.
    Copy {
        /// The frame in hand has so many bytes to come.
        left: usize,
        /// A Sync is still to be passed on after the data.
        sync: bool,
        /// CopyDone or CopyFail has passed.
        done: bool,
    },
    /// The rest of one large frame.
    Frame {
        /// Bytes to come.
        left: usize,
    },
}

impl Through {
    /// What is left of a large frame.
    pub fn rest_of_frame(left: usize) -> Self {
        if left > 0 { Self::Frame { left } } else { Self::Nothing }
    }

    /// How much of `filled` passes now, and what comes behind it; `None` when nothing does.
    pub(super) fn step(self, filled: &[u8]) -> Option<(usize, Self)> {
        Some(match self {
            Self::Nothing => return None,
            Self::Frame { left } => {
                let take = left.min(filled.len());
                (take, if take == left { Self::Nothing } else { Self::Frame { left: left - take } })
            }
            Self::Copy { left, sync, done } if left > 0 => {
                let take = left.min(filled.len());
                (take, Self::Copy { left: left - take, sync, done })
            }
            Self::Copy { sync: false, done: true, .. } => (0, Self::Nothing),
            Self::Copy { sync, done, .. } => {
                let header = frame::header(filled).ok().flatten()?;
                let take = header.frame_bytes.min(filled.len());
                let done = done || matches!(header.kind, b'c' | b'f');
                // The Sync after the data ends the unit; one in the middle of it is ignored by the server.
                let sync = sync && !(done && header.kind == b'S');
                (take, Self::Copy { left: header.frame_bytes - take, sync, done })
            }
        })
    }

    /// The answer is over. A COPY that failed in the middle of a frame goes on to its end, for server and client.
    pub(super) fn at_the_end(self) -> Self {
        match self {
            Self::Copy { left, .. } | Self::Frame { left } if left > 0 => Self::Frame { left },
            _ => Self::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::frame::put;

    /// However the bytes are cut: the data, its end and the Sync behind it, and nothing of the next unit.
    #[test]
    fn a_copy_passes_up_to_its_sync() {
        let mut bytes = Vec::new();
        put(&mut bytes, b'd', &[b"rows"]);
        put(&mut bytes, b'S', &[]);
        put(&mut bytes, b'c', &[]);
        put(&mut bytes, b'S', &[]);
        let copy = bytes.len();
        put(&mut bytes, b'Q', &[b"SELECT 1\0"]);
        for chunk in 1..=bytes.len() {
            let mut through = Through::Copy { left: 0, sync: true, done: false };
            let (mut passed, mut there) = (0, 0);
            while through != Through::Nothing && there < bytes.len() {
                there = bytes.len().min(there + chunk);
                while let Some((take, next)) = through.step(&bytes[passed..there]) {
                    if take == 0 && next == through {
                        break;
                    }
                    passed += take;
                    through = next;
                }
            }
            assert_eq!((passed, through), (copy, Through::Nothing), "{chunk} bytes at a time");
        }
    }

    #[test]
    fn a_copy_that_failed_ends_with_its_frame() {
        let inside = Through::Copy { left: 3, sync: true, done: false };
        assert_eq!(inside.at_the_end(), Through::Frame { left: 3 });
        assert_eq!(Through::Copy { left: 0, sync: true, done: true }.at_the_end(), Through::Nothing);
    }
}
