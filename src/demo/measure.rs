//! Moments and durations to figures. Pure. It must not know what was measured.

use std::time::{Duration, Instant};

/// The pause around an outage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pause {
    /// The last moment before it.
    pub(super) last: Instant,
    /// The first moment after it.
    pub(super) first: Instant,
}

impl Pause {
    /// How long it was.
    pub(super) fn length(self) -> Duration {
        self.first.saturating_duration_since(self.last)
    }
}

/// The pause that ends with the first of the moments after `turn`. None without a moment on either side.
pub(super) fn pause(moments: &[Instant], turn: Instant) -> Option<Pause> {
    let last = moments.iter().copied().filter(|&at| at <= turn).max()?;
    let first = moments.iter().copied().filter(|&at| at > turn).min()?;
    Some(Pause { last, first })
}

/// A duration in milliseconds.
pub(super) fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1_000.0
}

/// The middle value; the mean of the two middle ones where there are as many.
pub(super) fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = sorted.get(sorted.len() / 2)?;
    let lower = sorted.get((sorted.len() - 1) / 2)?;
    Some(f64::midpoint(*lower, *upper))
}

/// The largest value.
pub(super) fn worst(values: &[f64]) -> Option<f64> {
    values.iter().copied().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pause_lies_around_the_turn() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let moments = [at(400), at(1), at(3), at(395)];
        assert_eq!(pause(&moments, at(100)), Some(Pause { last: at(3), first: at(395) }));
        assert_eq!(pause(&moments, at(100)).map(Pause::length), Some(Duration::from_millis(392)));
        assert_eq!(pause(&moments, at(0)), None, "nothing before");
        assert_eq!(pause(&moments, at(500)), None, "nothing after");
        assert_eq!(pause(&[], at(0)), None);
    }

    #[test]
    fn median_and_worst_do_not_depend_on_the_order() {
        assert_eq!(median(&[3.0, -1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), Some(2.5));
        assert_eq!(median(&[7.0]), Some(7.0));
        assert_eq!(worst(&[3.0, 9.0, 2.0]), Some(9.0));
        assert_eq!((median(&[]), worst(&[])), (None, None));
    }
}
