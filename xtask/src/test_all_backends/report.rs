//! What the runs of all backends amount to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::time::Duration;

use super::libtest::{Outcome, Suite};

/// Everything that one backend ran.
pub struct Row {
    pub backend: &'static str,
    /// By `crate::test::name`.
    pub tests: BTreeMap<String, Outcome>,
    pub device: Option<String>,
    pub time: Duration,
    /// Why the backend, or one of its suites, could not run.
    pub broken: Vec<String>,
}

/// Passed, failed and skipped tests.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Row {
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            tests: BTreeMap::new(),
            device: None,
            time: Duration::ZERO,
            broken: Vec::new(),
        }
    }

    pub fn add(&mut self, package: &str, suite: Suite) {
        self.device = self.device.take().or(suite.device);
        let named = |(name, outcome)| (format!("{package}::{name}"), outcome);
        self.tests.extend(suite.tests.into_iter().map(named));
    }

    pub fn counts(&self) -> Counts {
        counts(self.tests.values())
    }
}

pub fn counts<'a>(outcomes: impl Iterator<Item = &'a Outcome>) -> Counts {
    let mut counts = Counts::default();
    for outcome in outcomes {
        match outcome {
            Outcome::Passed => counts.passed += 1,
            Outcome::Failed(_) => counts.failed += 1,
            Outcome::Skipped(_) => counts.skipped += 1,
        }
    }
    counts
}

/// What stands against a green result, one line each. Empty: all is well.
pub fn objections(rows: &[Row]) -> Vec<String> {
    let mut objections = Vec::new();
    for row in rows {
        for reason in &row.broken {
            objections.push(format!("{} could not run: {reason}", row.backend));
        }
        let counts = row.counts();
        if counts.failed > 0 {
            objections.push(format!("{}: {} failed", row.backend, counts.failed));
        }
        if row.broken.is_empty() && counts.passed + counts.failed == 0 {
            objections.push(format!("{}: no test ran", row.backend));
        }
    }
    objections.extend(differences(rows));
    objections
}

/// The tests that some backends ran and another one did not. A backend that broke off is left out:
/// what it lacks is no news.
fn differences(rows: &[Row]) -> Vec<String> {
    let complete: Vec<&Row> = rows.iter().filter(|row| row.broken.is_empty()).collect();
    let all: BTreeSet<&String> = complete.iter().flat_map(|row| row.tests.keys()).collect();
    let mut differences = Vec::new();
    for row in complete {
        for name in all.iter().filter(|name| !row.tests.contains_key(**name)) {
            differences.push(format!("{} does not have the test {name}", row.backend));
        }
    }
    differences
}

/// The closing table and the line that machines read.
pub fn table(rows: &[Row]) -> String {
    let device = |row: &Row| row.device.clone().unwrap_or_else(|| "unknown".to_string());
    let widest = rows
        .iter()
        .map(|row| device(row).chars().count())
        .max()
        .unwrap_or(0)
        .max(6);
    let mut text = format!(
        "{:<8} {:<widest$} {:>7} {:>7} {:>8} {:>8}\n",
        "backend", "device", "passed", "failed", "skipped", "seconds"
    );
    let mut total = Counts::default();
    for row in rows {
        let counts = row.counts();
        total.passed += counts.passed;
        total.failed += counts.failed;
        total.skipped += counts.skipped;
        let broken = if row.broken.is_empty() {
            ""
        } else {
            "  could not run"
        };
        writeln!(
            text,
            "{:<8} {:<widest$} {:>7} {:>7} {:>8} {:>8.1}{broken}",
            row.backend,
            device(row),
            counts.passed,
            counts.failed,
            counts.skipped,
            row.time.as_secs_f64()
        )
        .expect("writing to a string");
    }
    write!(
        text,
        "\n{} passed, {} failed, {} skipped",
        total.passed, total.failed, total.skipped
    )
    .expect("writing to a string");
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &'static str, names: &[&str]) -> Row {
        let mut row = Row::new(backend);
        row.tests = names
            .iter()
            .map(|name| (name.to_string(), Outcome::Passed))
            .collect();
        row
    }

    #[test]
    fn equal_names_and_no_failure_raise_no_objection() {
        assert!(objections(&[row("flex", &["a", "b"]), row("tch", &["a", "b"])]).is_empty());
    }

    #[test]
    fn a_test_that_one_backend_lacks_is_named() {
        let rows = [row("flex", &["a", "b"]), row("tch", &["b", "c"])];
        assert_eq!(
            objections(&rows),
            [
                "flex does not have the test c",
                "tch does not have the test a"
            ]
        );
    }

    #[test]
    fn a_skipped_test_still_counts_as_a_name() {
        let mut skipping = row("wgpu", &["a", "b"]);
        skipping
            .tests
            .insert("b".to_string(), Outcome::Skipped("no f64".to_string()));
        assert!(objections(&[row("flex", &["a", "b"]), skipping]).is_empty());
    }

    #[test]
    fn a_broken_backend_is_one_objection_and_no_difference() {
        let mut broken = row("wgpu", &[]);
        broken.broken.push("no adapter".to_string());
        assert_eq!(
            objections(&[row("flex", &["a"]), broken]),
            ["wgpu could not run: no adapter"]
        );
    }

    #[test]
    fn nothing_but_skips_is_no_run() {
        let mut idle = row("flex", &[]);
        idle.tests
            .insert("a".to_string(), Outcome::Skipped("why".to_string()));
        assert_eq!(objections(&[idle]), ["flex: no test ran"]);
    }

    #[test]
    fn the_table_closes_with_the_sums() {
        let mut failing = row("tch", &["a"]);
        failing
            .tests
            .insert("b".to_string(), Outcome::Failed(String::new()));
        let text = table(&[row("flex", &["a", "b"]), failing]);
        assert!(text.ends_with("\n3 passed, 1 failed, 0 skipped"), "{text}");
        assert!(text.contains("unknown"), "{text}");
    }
}
