//! The Prometheus text format 0.0.4: samples in, text out.
//!
//! Invariant: each metric name gets HELP and TYPE exactly once, before its first sample, and label values are
//! escaped whatever they hold. Must not know: which metrics there are.

use std::fmt::{Display, Write as _};

/// The media type of what [`Text`] makes.
pub const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What a metric is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Only grows.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Cumulative buckets, `_sum` and `_count`.
    Histogram,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        }
    }
}

/// An exposition being written.
#[derive(Debug, Default)]
pub struct Text {
    out: String,
}

impl Text {
    /// Opens a metric: HELP and TYPE. Its samples must follow directly.
    pub fn metric(&mut self, name: &str, kind: Kind, help: &str) {
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        push(&mut self.out, format_args!("# HELP {name} {help}\n# TYPE {name} {}\n", kind.as_str()));
    }

    /// One sample.
    pub fn sample(&mut self, name: &str, labels: &[(&str, &str)], value: impl Display) {
        self.out.push_str(name);
        for (position, (label, text)) in labels.iter().enumerate() {
            let open = if position == 0 { '{' } else { ',' };
            push(&mut self.out, format_args!("{open}{label}=\"{}\"", escape(text)));
        }
        if !labels.is_empty() {
            self.out.push('}');
        }
        push(&mut self.out, format_args!(" {value}\n"));
    }

    /// The exposition.
    pub fn finish(self) -> String {
        self.out
    }
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = out.write_fmt(text);
}

fn escape(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_escaped() {
        let mut text = Text::default();
        text.metric("pgsteer_x", Kind::Gauge, "two\nlines \\ here");
        text.sample("pgsteer_x", &[("node", "a\"b\\c\nd"), ("role", "primary")], 1);
        text.sample("pgsteer_x", &[], 0.5);
        assert_eq!(
            text.finish(),
            "# HELP pgsteer_x two\\nlines \\\\ here\n# TYPE pgsteer_x gauge\n\
             pgsteer_x{node=\"a\\\"b\\\\c\\nd\",role=\"primary\"} 1\npgsteer_x 0.5\n"
        );
    }
}
