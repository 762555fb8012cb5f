//! Durations ("100ms") and sizes ("64KiB") as people write them.
//!
//! Invariant: pure; a number without a unit is refused rather than guessed at, overflow is refused rather than
//! wrapped. Must not know: keys, files.

use std::time::Duration;

use crate::classify::{DURATION_MAX, bytes_in, micros_in};

/// What is expected of a duration.
pub const DURATION: &str = "a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\"";
/// What is expected of a size.
pub const SIZE: &str = "a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"64KiB\"";

/// A whole number and a unit: "100ms", "5 s", "1m". `None` for anything else.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    number.checked_mul(micros_in(unit)?)?.checked_mul(1_000).map(Duration::from_nanos)
}

/// A whole number and a unit: "64KiB", "10 MB", "512B". `None` for anything else.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    number.checked_mul(bytes_in(unit)?)
}

/// What is expected of a lag or of a wait for a standby.
pub const TERM: &str =
    "a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\", at most 24 days";

/// A lag or a wait for a standby: what a session's SET takes, too.
pub fn term(text: &str) -> Option<Duration> {
    duration(text).filter(|term| *term <= DURATION_MAX)
}

fn split(text: &str) -> Option<(u64, &str)> {
    let digits = text.find(|letter: char| !letter.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(duration("100ms"), Some(Duration::from_millis(100)));
        assert_eq!(duration("5 s"), Some(Duration::from_secs(5)));
        assert_eq!(duration("1m"), Some(Duration::from_secs(60)));
        assert_eq!(duration("2min"), Some(Duration::from_secs(120)));
        assert_eq!(duration("0s"), Some(Duration::ZERO));
        assert_eq!(duration("250us"), Some(Duration::from_micros(250)));
        for bad in ["", "5", "s", "-5s", "1.5s", "5 parsecs", "99999999999d", " 5s", "5s "] {
            assert_eq!(duration(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn terms_are_what_a_session_can_set() {
        assert_eq!(term("24d"), Some(Duration::from_secs(24 * 86_400)));
        for bad in ["25d", "600h", "24", "1.5s"] {
            assert_eq!(term(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("10 MB"), Some(10_000_000));
        assert_eq!(size("512B"), Some(512));
        for bad in ["", "64", "64k", "KiB", "-1KiB", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }
}
