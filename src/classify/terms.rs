//! What may be asked of reads: by a leading comment, by a setting `pgsteer.…` of the session, by the configuration.
//!
//! Invariant: a value is taken as a whole or refused as a whole, with what is expected; nothing is guessed. No allocation. Must not
//! know: who asks, what is done about it.

use std::fmt;
use std::time::Duration;

use super::Target;

/// What a read may leave out, apart from the lag budget, which always holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Consistency {
    /// Whatever is within the lag budget: neither a session's own writes nor what it has seen are waited for.
    Eventual,
    /// A session sees its own writes and never goes back in time.
    Session,
    /// Reads run on the primary.
    Primary,
}

/// What becomes of a read that no standby may answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoStandby {
    /// The primary answers it.
    Primary,
    /// It fails.
    Error,
}

/// A bound on WAL that a standby has not replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LagBytes(u64);

impl LagBytes {
    /// No bound.
    pub const UNBOUNDED: Self = Self(u64::MAX);

    /// At most so many.
    pub const fn at_most(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Whether there is a bound.
    pub fn is_bounded(self) -> bool {
        self != Self::UNBOUNDED
    }

    /// Whether a standby that has not replayed so many bytes is within it; `None` when that is not known.
    pub fn admits(self, lag_bytes: Option<u64>) -> bool {
        !self.is_bounded() || lag_bytes.is_some_and(|lag| lag <= self.0)
    }
}

/// What is asked for; `None` leaves it as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct AskedTerms {
    /// `target`
    pub target: Option<Target>,
    /// `consistency`
    pub consistency: Option<Consistency>,
    /// `max_lag`
    pub max_lag: Option<Duration>,
    /// `max_lag_bytes`
    pub max_lag_bytes: Option<LagBytes>,
    /// `wait_for_standby`
    pub wait_for_standby: Option<Duration>,
    /// `no_standby`
    pub no_standby: Option<NoStandby>,
    /// `retry_buffer`, in bytes
    pub retry_buffer_bytes: Option<u32>,
}

/// Why a value is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TermError {
    /// There is nothing of this name.
    #[error(
        "known are target, consistency, max_lag, max_lag_bytes, wait_for_standby, no_standby and retry_buffer"
    )]
    Unknown,
    /// The value is none of its values.
    #[error("expected {0}")]
    Value(&'static str),
}

/// Longer than any lag or wait that makes sense, and what PostgreSQL's own settings of time can take (24 days).
pub const DURATION_MAX: Duration = Duration::from_millis(i32::MAX as u64);

const DURATION: &str = "a number from 0 and a unit (us, ms, s, min, h, d; without one: ms), at most 24 days";
const BYTES: &str = "a whole number from 0 and a unit (B, kB, MB, GB, KiB, MiB, GiB; without one: B), or off";
const BUFFER: &str =
    "a whole number from 0 and a unit (B, kB, MB, GB, KiB, MiB, GiB; without one: B), at most 1 GiB, or off";
const TARGET: &str = "any, primary or standby";
const CONSISTENCY: &str = "eventual, session or primary";
const NO_STANDBY: &str = "primary or error";

impl AskedTerms {
    /// The names of all.
    pub const NAMES: [&str; 7] = [
        "target",
        "consistency",
        "max_lag",
        "max_lag_bytes",
        "wait_for_standby",
        "no_standby",
        "retry_buffer",
    ];

    /// A name as it stands above, however it is written.
    pub fn name(written: &str) -> Option<&'static str> {
        Self::NAMES.into_iter().find(|name| name.eq_ignore_ascii_case(written))
    }

    /// Takes a value by its name, both as people write them. The empty value asks for nothing.
    ///
    /// # Errors
    /// What is expected instead.
    pub fn set(&mut self, name: &str, value: &str) -> Result<(), TermError> {
        let value = value.trim();
        let is_empty = value.is_empty();
        let expected = |expected| move || TermError::Value(expected);
        let is = |word: &str| value.eq_ignore_ascii_case(word);
        match name {
            "target" if is_empty || is("any") => self.target = None,
            "target" if is("primary") => self.target = Some(Target::Primary),
            "target" if is("standby") => self.target = Some(Target::Standby),
            "target" => return Err(TermError::Value(TARGET)),
            "consistency" if is_empty => self.consistency = None,
            "consistency" => {
                self.consistency = Some(Consistency::parse(value).ok_or_else(expected(CONSISTENCY))?);
            }
            "max_lag" if is_empty => self.max_lag = None,
            "max_lag" => self.max_lag = Some(duration(value).ok_or_else(expected(DURATION))?),
            "max_lag_bytes" if is_empty => self.max_lag_bytes = None,
            "max_lag_bytes" => self.max_lag_bytes = Some(bytes(value).ok_or_else(expected(BYTES))?),
            "wait_for_standby" if is_empty => self.wait_for_standby = None,
            "wait_for_standby" => {
                self.wait_for_standby = Some(duration(value).ok_or_else(expected(DURATION))?);
            }
            "no_standby" if is_empty => self.no_standby = None,
            "no_standby" => self.no_standby = Some(NoStandby::parse(value).ok_or_else(expected(NO_STANDBY))?),
            "retry_buffer" if is_empty => self.retry_buffer_bytes = None,
            "retry_buffer" => {
                self.retry_buffer_bytes = Some(buffer(value).ok_or_else(expected(BUFFER))?);
            }
            _ => return Err(TermError::Unknown),
        }
        Ok(())
    }

    /// These, and the other's where these ask for nothing.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        Self {
            target: self.target.or(other.target),
            consistency: self.consistency.or(other.consistency),
            max_lag: self.max_lag.or(other.max_lag),
            max_lag_bytes: self.max_lag_bytes.or(other.max_lag_bytes),
            wait_for_standby: self.wait_for_standby.or(other.wait_for_standby),
            no_standby: self.no_standby.or(other.no_standby),
            retry_buffer_bytes: self.retry_buffer_bytes.or(other.retry_buffer_bytes),
        }
    }
}

impl Consistency {
    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Eventual, Self::Session, Self::Primary]
            .into_iter()
            .find(|it| it.as_str().eq_ignore_ascii_case(word))
    }

    /// The word in configuration and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Eventual => "eventual",
            Self::Session => "session",
            Self::Primary => "primary",
        }
    }
}

impl NoStandby {
    /// By its word.
    pub fn parse(word: &str) -> Option<Self> {
        [Self::Primary, Self::Error].into_iter().find(|it| it.as_str().eq_ignore_ascii_case(word))
    }

    /// The word in configuration and settings.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Error => "error",
        }
    }
}

impl fmt::Display for LagBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.is_bounded() {
            return f.write_str("off");
        }
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1u64 << 10)];
        match units.into_iter().find(|(_, unit)| self.0 > 0 && self.0.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}B", self.0),
        }
    }
}

/// A duration as settings are shown: in the largest unit of which it is a whole number.
#[derive(Debug, Clone, Copy)]
pub struct Shown(pub Duration);

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let micros = self.0.as_micros();
        let units = [
            ("d", 86_400_000_000),
            ("h", 3_600_000_000),
            ("min", 60_000_000),
            ("s", 1_000_000),
            ("ms", 1_000),
        ];
        match units.into_iter().find(|(_, unit)| micros > 0 && micros.is_multiple_of(*unit)) {
            Some((name, unit)) => write!(f, "{}{name}", micros / unit),
            None if micros == 0 => f.write_str("0"),
            None => write!(f, "{micros}us"),
        }
    }
}

/// A whole number with its unit; without one it is milliseconds.
fn duration(text: &str) -> Option<Duration> {
    let (whole, rest) = number(text)?;
    let (parts, unit) = match rest.strip_prefix('.') {
        Some(rest) => fraction(rest)?,
        None => (0, rest),
    };
    let micros = if unit.is_empty() { 1_000 } else { micros_in(unit)? };
    let micros = whole.checked_mul(micros)?.checked_add(parts.checked_mul(micros)? / MILLION)?;
    Some(Duration::from_micros(micros)).filter(|it| *it <= DURATION_MAX)
}

/// Microseconds in a unit of time.
pub fn micros_in(unit: &str) -> Option<u64> {
    Some(match unit {
        "us" => 1,
        "ms" => 1_000,
        "s" => 1_000_000,
        "m" | "min" => 60_000_000,
        "h" => 3_600_000_000,
        "d" => 86_400_000_000,
        _ => return None,
    })
}

/// Bytes in a unit of size.
pub fn bytes_in(unit: &str) -> Option<u64> {
    Some(match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    })
}

const MILLION: u64 = 1_000_000;

/// The millionths behind a decimal point, further ones cut off, and what stands behind them.
fn fraction(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let places = number.bytes().map(|digit| u64::from(digit - b'0')).chain(std::iter::repeat(0));
    Some((places.take(6).fold(0, |sum, digit| sum * 10 + digit), unit.trim_start()))
}

fn bytes(text: &str) -> Option<LagBytes> {
    if text.eq_ignore_ascii_case("off") {
        return Some(LagBytes::UNBOUNDED);
    }
    size(text).filter(|bytes| *bytes < u64::MAX).map(LagBytes)
}

/// The largest buffer; more than a message can have is of no use.
const BUFFER_MAX: u64 = 1 << 30;

fn buffer(text: &str) -> Option<u32> {
    let bytes = if text.eq_ignore_ascii_case("off") { 0 } else { size(text)? };
    u32::try_from(bytes).ok().filter(|_| bytes <= BUFFER_MAX)
}

fn size(text: &str) -> Option<u64> {
    let (number, unit) = number(text)?;
    let bytes = if unit.is_empty() { 1 } else { bytes_in(unit)? };
    number.checked_mul(bytes)
}

fn number(text: &str) -> Option<(u64, &str)> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    Some((number.parse().ok()?, unit.trim_start()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_whole_or_refused_whole() {
        for (name, value, shown) in [
            ("max_lag", "200ms", "200ms"),
            ("max_lag", " 1500 ", "1500ms"),
            ("max_lag", "2 min", "2min"),
            ("max_lag", "0", "0"),
            ("max_lag", "1.5s", "1500ms"),
            ("max_lag", "200.0", "200ms"),
            ("max_lag", "24d", "24d"),
            ("max_lag_bytes", "16MiB", "16MiB"),
            ("max_lag_bytes", "16MB", "15625KiB"),
            ("max_lag_bytes", "0", "0B"),
            ("max_lag_bytes", "OFF", "off"),
            ("consistency", "Eventual", "eventual"),
            ("no_standby", "error", "error"),
            ("wait_for_standby", "10us", "10us"),
            ("retry_buffer", "256kB", "250KiB"),
            ("retry_buffer", "1GiB", "1GiB"),
            ("retry_buffer", "0", "0B"),
            ("retry_buffer", "off", "0B"),
        ] {
            let mut terms = AskedTerms::default();
            terms.set(name, value).unwrap_or_else(|error| panic!("{name} {value}: {error}"));
            let got = [
                terms.max_lag.map(|it| Shown(it).to_string()),
                terms.wait_for_standby.map(|it| Shown(it).to_string()),
                terms.max_lag_bytes.map(|it| it.to_string()),
                terms.consistency.map(|it| it.as_str().to_owned()),
                terms.no_standby.map(|it| it.as_str().to_owned()),
                terms.retry_buffer_bytes.map(|it| LagBytes(it.into()).to_string()),
            ];
            assert_eq!(got.into_iter().flatten().collect::<Vec<_>>(), [shown], "{name} {value}");
            terms.set(name, "").unwrap();
            assert_eq!(terms, AskedTerms::default(), "{name} asks for nothing when it is empty");
        }
        for (name, value) in [
            ("max_lag", "-1"),
            ("max_lag", "abc"),
            ("max_lag", "1.s.5"),
            ("max_lag", ".5s"),
            ("max_lag", "25d"),
            ("max_lag", "99999999999999999999"),
            ("max_lag", "1 fortnight"),
            ("max_lag_bytes", "-5"),
            ("max_lag_bytes", "18446744073709551615"),
            ("max_lag_bytes", "99999999999GiB"),
            ("consistency", "strong"),
            ("target", "replica"),
            ("no_standby", "wait"),
            ("retry_buffer", "-1"),
            ("retry_buffer", "much"),
            ("retry_buffer", "1.5kB"),
            ("retry_buffer", "1073741825"),
        ] {
            let mut terms = AskedTerms::default();
            assert!(matches!(terms.set(name, value), Err(TermError::Value(_))), "{name} {value}");
            assert_eq!(terms, AskedTerms::default());
        }
        assert_eq!(AskedTerms::default().set("max_lagg", "1s"), Err(TermError::Unknown));
        for name in AskedTerms::NAMES {
            assert_eq!(AskedTerms::default().set(name, ""), Ok(()));
        }
    }

    #[test]
    fn the_nearer_wish_wins() {
        let near = AskedTerms { max_lag: Some(Duration::ZERO), ..AskedTerms::default() };
        let far = AskedTerms { max_lag: Some(DURATION_MAX), target: Some(Target::Primary), ..near };
        assert_eq!(near.or(far), AskedTerms { target: Some(Target::Primary), ..near });
    }

    #[test]
    fn bytes_that_are_not_known_are_within_no_bound() {
        assert!(LagBytes::at_most(10).admits(Some(10)) && !LagBytes::at_most(10).admits(Some(11)));
        assert!(!LagBytes::at_most(10).admits(None) && LagBytes::UNBOUNDED.admits(None));
    }
}
