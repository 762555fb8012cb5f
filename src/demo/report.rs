//! The result of a run, and of several, as text. Pure. It must not know how anything was measured.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::ledger::Verdict;
use super::measure::{median, millis, worst};

/// What one run has shown.
#[derive(Debug, Clone, Default)]
pub(super) struct Report {
    /// Last write acknowledged before the outage to the first one after it, through pgsteer.
    pub(super) pause: Duration,
    /// Kill to the moment the promoted node was out of recovery.
    pub(super) promotion: Duration,
    /// Kill to the promotion's order; part of `promotion`.
    pub(super) choice: Duration,
    /// Kill to the first acknowledged write of a client that knows the new primary.
    pub(super) direct: Duration,
    /// Kill to the first acknowledged write through pgsteer.
    pub(super) resumed: Duration,
    pub(super) verdict: Verdict,
    pub(super) write_errors: BTreeMap<String, u64>,
    pub(super) read_errors: BTreeMap<String, u64>,
    /// Client connections that were lost, those that had to be broken off included.
    pub(super) dropped: u64,
    pub(super) reads: u64,
    pub(super) reads_in_outage: u64,
    pub(super) reads_went_back: u64,
    pub(super) reads_on_standbys: u64,
    pub(super) reads_on_primary: u64,
    pub(super) held: u64,
    pub(super) retried: u64,
    /// Of the reads that were routed: those that only prepared a statement.
    pub(super) reads_prepared: u64,
    pub(super) nodes: Vec<Share>,
}

/// What a node carried out, by its own account.
#[derive(Debug, Clone, Default)]
pub(super) struct Share {
    pub(super) name: String,
    pub(super) served: Option<u64>,
    /// It was killed, and what it had not told yet is gone.
    pub(super) killed: bool,
}

impl Share {
    fn text(&self) -> String {
        let served = self.served.map_or_else(|| "?".to_owned(), |served| served.to_string());
        format!("{} {}{served}", self.name, if self.killed { "at least " } else { "" })
    }
}

impl Report {
    /// What pgsteer adds to what PostgreSQL itself needs, in milliseconds. Both are counted from the kill, so it does not
    /// matter how long before that the last write was. Below zero when the direct client's attempt came later.
    pub(super) fn overhead(&self) -> f64 {
        millis(self.resumed) - millis(self.direct)
    }

    /// From the end of the promotion to the first write through pgsteer, in milliseconds. With synchronous replication the
    /// second standby's re-attachment is part of it.
    pub(super) fn beyond_promotion(&self) -> f64 {
        millis(self.resumed) - millis(self.promotion)
    }

    /// Whether every promise was kept.
    pub(super) fn is_good(&self) -> bool {
        let Verdict { lost, doubled, unexpected, .. } = self.verdict;
        lost == 0 && doubled == 0 && unexpected == 0 && self.dropped == 0
    }

    /// Everything, a line for each matter.
    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |label: &str, value: String| {
            let _ = writeln!(text, "  {label:<26}{value}");
        };
        let Verdict { acknowledged, lost, doubled, unexpected, unknown_written, unknown_absent } =
            self.verdict;
        line("write pause", format!("{:.0} ms through pgsteer", millis(self.pause)));
        let (promotion, choice) = (millis(self.promotion), millis(self.choice));
        line("promotion itself", format!("{promotion:.0} ms ({choice:.0} ms of it to choose the standby)"));
        line("first write possible", format!("after {:.0} ms, by a direct client", millis(self.direct)));
        let (overhead, beyond) = (self.overhead(), self.beyond_promotion());
        line("overhead of pgsteer", format!("{} ({} after the promotion)", signed(overhead), signed(beyond)));
        line("acknowledged writes", acknowledged.to_string());
        line("  lost", lost.to_string());
        line("  doubled", doubled.to_string());
        if unexpected > 0 {
            line("  refused, yet written", unexpected.to_string());
        }
        line("  outcome unknown", format!("{unknown_written} written, {unknown_absent} not"));
        let (writes, reads) = (by_sqlstate(&self.write_errors), by_sqlstate(&self.read_errors));
        line("client errors", format!("writes: {writes}; reads: {reads}"));
        line("dropped connections", self.dropped.to_string());
        line("reads", self.reads.to_string());
        let (standbys, primary) = (self.reads_on_standbys, self.reads_on_primary);
        let prepared = self.reads_prepared;
        let parts = format!("{standbys} to standbys, {primary} to the primary");
        line("  routed", format!("{parts} ({prepared} of them to prepare)"));
        line("  during the outage", self.reads_in_outage.to_string());
        if self.reads_went_back > 0 {
            line("  that went back in time", self.reads_went_back.to_string());
        }
        line("statements", format!("{} held, {} retried", self.held, self.retried));
        let nodes: Vec<String> = self.nodes.iter().map(Share::text).collect();
        line("  by the nodes' account", nodes.join(", "));
        text
    }

    /// The run in one line.
    pub(super) fn line(&self) -> String {
        format!(
            "write pause {:.0} ms, promotion {:.0} ms, direct {:.0} ms, overhead {}; \
             lost {}, doubled {}, dropped connections {}",
            millis(self.pause),
            millis(self.promotion),
            millis(self.direct),
            signed(self.overhead()),
            self.verdict.lost,
            self.verdict.doubled,
            self.dropped,
        )
    }
}

/// Median and worst of several runs; nothing for a single one.
pub(super) fn summary(reports: &[Report]) -> Option<String> {
    if reports.len() < 2 {
        return None;
    }
    let overheads: Vec<f64> = reports.iter().map(Report::overhead).collect();
    let beyond: Vec<f64> = reports.iter().map(Report::beyond_promotion).collect();
    Some(format!(
        "{} runs: overhead of pgsteer median {}, worst {}; first write after the promotion median {}, worst {}\n",
        reports.len(),
        signed(median(&overheads)?),
        signed(worst(&overheads)?),
        signed(median(&beyond)?),
        signed(worst(&beyond)?),
    ))
}

/// Whole milliseconds with their sign; nothing is less than nothing.
fn signed(millis: f64) -> String {
    format!("{:+.0} ms", millis.round() + 0.0)
}

fn by_sqlstate(errors: &BTreeMap<String, u64>) -> String {
    if errors.is_empty() {
        return "none".to_owned();
    }
    let errors: Vec<String> = errors.iter().map(|(state, count)| format!("{state} ×{count}")).collect();
    errors.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn share(name: &str, served: Option<u64>, killed: bool) -> Share {
        Share { name: name.to_owned(), served, killed }
    }

    fn report(resumed: u64) -> Report {
        Report {
            pause: Duration::from_millis(resumed + 2),
            resumed: Duration::from_millis(resumed),
            promotion: Duration::from_millis(100),
            choice: Duration::from_millis(20),
            direct: Duration::from_millis(120),
            verdict: Verdict { acknowledged: 5000, unknown_absent: 1, ..Verdict::default() },
            write_errors: BTreeMap::from([("08007".to_owned(), 1)]),
            reads: 9646,
            reads_on_standbys: 9590,
            reads_on_primary: 60,
            reads_prepared: 4,
            nodes: vec![share("n1", Some(7), true), share("n2", Some(8), false), share("n3", None, false)],
            ..Report::default()
        }
    }

    #[test]
    fn result_names_every_matter() {
        let text = report(130).text();
        for part in [
            "write pause               132 ms through pgsteer\n",
            "promotion itself          100 ms (20 ms of it to choose the standby)\n",
            "first write possible      after 120 ms, by a direct client\n",
            "overhead of pgsteer       +10 ms (+30 ms after the promotion)\n",
            "outcome unknown         0 written, 1 not\n",
            "client errors             writes: 08007 ×1; reads: none\n",
            "reads                     9646\n",
            "routed                  9590 to standbys, 60 to the primary (4 of them to prepare)\n",
            "by the nodes' account   n1 at least 7, n2 8, n3 ?\n",
        ] {
            assert!(text.contains(part), "{part:?} in\n{text}");
        }
        assert!(!text.contains("refused, yet written") && !text.contains("back in time"));
    }

    #[test]
    fn a_lost_a_doubled_a_refused_write_or_a_dropped_connection_is_a_failure() {
        assert!(report(1).is_good());
        let spoil: [fn(&mut Report); 4] = [
            |it| it.verdict.lost = 1,
            |it| it.verdict.doubled = 1,
            |it| it.verdict.unexpected = 1,
            |it| it.dropped = 1,
        ];
        for spoil in spoil {
            let mut report = report(1);
            spoil(&mut report);
            assert!(!report.is_good());
        }
    }

    #[test]
    fn zero_has_one_sign() {
        assert_eq!([-0.6, -0.4, 0.4].map(signed), ["-1 ms", "+0 ms", "+0 ms"]);
    }

    #[test]
    fn summary_gives_median_and_worst() {
        assert_eq!(summary(&[report(130)]), None);
        let text = summary(&[report(130), report(118), report(150)]);
        let expected = "3 runs: overhead of pgsteer median +10 ms, worst +30 ms; \
            first write after the promotion median +30 ms, worst +50 ms\n";
        assert_eq!(text.as_deref(), Some(expected));
    }
}
