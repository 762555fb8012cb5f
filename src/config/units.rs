//! Durations ("100ms") and sizes ("64KiB") as people write them.
//!
//! Invariant: pure; a number without a unit is refused rather than guessed at, overflow is refused rather than
//! wrapped. Must not know: keys, files.

use std::time::Duration;

/// What is expected of a duration.
pub const DURATION: &str = "a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\"";
/// What is expected of a size.
pub const SIZE: &str = "a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"64KiB\"";

/// A whole number and a unit: "100ms", "5 s", "1m". `None` for anything else.
pub fn duration(text: &str) -> Option<Duration> {
    let (number, unit) = split(text)?;
    let nanos_per_unit: u64 = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        _ => return None,
    };
    number.checked_mul(nanos_per_unit).map(Duration::from_nanos)
}

/// A whole number and a unit: "64KiB", "10 MB", "512B". `None` for anything else.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split(text)?;
    let bytes_per_unit: u64 = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(bytes_per_unit)
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
    fn sizes() {
        assert_eq!(size("64KiB"), Some(65_536));
        assert_eq!(size("10 MB"), Some(10_000_000));
        assert_eq!(size("512B"), Some(512));
        for bad in ["", "64", "64k", "KiB", "-1KiB", "99999999999GiB"] {
            assert_eq!(size(bad), None, "{bad:?}");
        }
    }
}
