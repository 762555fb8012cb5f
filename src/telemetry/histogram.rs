//! Times in buckets, from a millisecond to a minute.
//!
//! Invariant: one writer each, as of all counters; a record costs a few comparisons and two additions. Must not know: what is measured.

use std::time::Duration;

use super::counter::{Counter, Family};
use super::prometheus::{Kind, Text};

/// Upper bounds of the buckets, milliseconds; the last bucket has none.
const BUCKETS_MS: [u64; 13] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 10_000, 60_000];

/// One shard's.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: Family<{ BUCKETS_MS.len() + 1 }>,
    sum_us: Counter,
}

impl Histogram {
    /// One more.
    #[inline]
    pub fn record(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.buckets.at(BUCKETS_MS.partition_point(|bound| bound * 1_000 < us)).inc();
        self.sum_us.add(us);
    }
}

/// The histogram over all shards.
pub fn render<'a>(
    text: &mut Text,
    (name, help): (&'static str, &'static str),
    shards: impl Iterator<Item = &'a Histogram>,
) {
    let mut counts = [0; BUCKETS_MS.len() + 1];
    let mut sum = Duration::ZERO;
    for shard in shards {
        for (count, counter) in counts.iter_mut().zip(shard.buckets.slots()) {
            *count += counter.value();
        }
        sum += Duration::from_micros(shard.sum_us.value());
    }
    text.metric(name, Kind::Histogram, help);
    let bucket = format!("{name}_bucket");
    let mut total: u64 = 0;
    let bounds = BUCKETS_MS.iter().map(|bound| Duration::from_millis(*bound).as_secs_f64().to_string());
    for (count, bound) in counts.iter().zip(bounds.chain(["+Inf".to_owned()])) {
        total += count;
        text.sample(&bucket, &[("le", &bound)], total);
    }
    text.sample(&format!("{name}_sum"), &[], sum.as_secs_f64());
    text.sample(&format!("{name}_count"), &[], total);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_in_the_buckets_from_its_own_on() {
        let shards = [Histogram::default(), Histogram::default()];
        shards[0].record(Duration::from_millis(5));
        shards[1].record(Duration::from_micros(5_001));
        shards[1].record(Duration::from_secs(3_600));
        let mut text = Text::default();
        render(&mut text, ("pgsteer_times_seconds", "Times."), shards.iter());
        let text = text.finish();
        for line in [
            "_bucket{le=\"0.002\"} 0",
            "_bucket{le=\"0.005\"} 1",
            "_bucket{le=\"0.01\"} 2",
            "_bucket{le=\"60\"} 2",
            "_bucket{le=\"+Inf\"} 3",
            "_sum 3600.010001",
            "_count 3",
        ] {
            assert!(text.contains(&format!("pgsteer_times_seconds{line}\n")), "{line}: {text}");
        }
    }
}
