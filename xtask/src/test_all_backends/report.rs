//! What the runs of all backends amount to.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display};
use std::time::Duration;

use super::Setting;
use super::libtest::{Outcome, Suite};
use crate::columns::{self, Column};

/// Per cent of the tests of a setting that may say that they cannot hold in it.
const MOST_SKIPPED: usize = 5;

/// Everything that one backend ran in one setting.
#[derive(Default)]
pub struct Row {
    pub backend: &'static str,
    /// `None`: the backend's own defaults.
    pub setting: Option<Setting>,
    /// By `crate::test::name`.
    pub tests: BTreeMap<String, Outcome>,
    pub device: Option<String>,
    pub time: Duration,
    /// Why the backend, or one of its suites, could not run.
    pub broken: Vec<String>,
}

/// Passed, failed and skipped tests.
#[derive(Clone, Copy, Default)]
pub struct Counts {
    pub passed: usize,
    pub failed: usize,
    pub skipped: usize,
}

impl Row {
    pub fn new(backend: &'static str) -> Self {
        Self {
            backend,
            ..Self::default()
        }
    }

    pub fn name(&self) -> String {
        match self.setting {
            None => self.backend.into(),
            Some((setting, _)) => format!("{} {setting}", self.backend),
        }
    }

    fn counts(&self) -> Counts {
        Counts::of(self.tests.values())
    }

    pub fn add(&mut self, package: &str, suite: Suite) {
        self.device = self.device.take().or(suite.device);
        let named = |(name, outcome)| (format!("{package}::{name}"), outcome);
        self.tests.extend(suite.tests.into_iter().map(named));
    }
}

impl Counts {
    pub fn of<'a>(outcomes: impl IntoIterator<Item = &'a Outcome>) -> Self {
        let mut counts = Self::default();
        for outcome in outcomes {
            match outcome {
                Outcome::Passed => counts.passed += 1,
                Outcome::Failed(_) => counts.failed += 1,
                Outcome::Skipped(_) => counts.skipped += 1,
            }
        }
        counts
    }
}

impl Display for Counts {
    fn fmt(&self, out: &mut fmt::Formatter) -> fmt::Result {
        let Self {
            passed,
            failed,
            skipped,
        } = self;
        write!(out, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// What stands against a green result, one line each. Empty: all is well.
pub fn objections(rows: &[Row]) -> Vec<String> {
    let mut objections = Vec::new();
    for row in rows {
        for reason in &row.broken {
            objections.push(format!("{} could not run: {reason}", row.name()));
        }
        let counts = row.counts();
        if counts.failed > 0 {
            objections.push(format!("{}: {} failed", row.name(), counts.failed));
        }
        if row.broken.is_empty() && counts.passed + counts.failed == 0 {
            objections.push(format!("{}: no test ran", row.name()));
        }
        let most = (counts.passed + counts.failed + counts.skipped) * MOST_SKIPPED / 100;
        if row.setting.is_some() && counts.skipped > most {
            let (name, skipped) = (row.name(), counts.skipped);
            objections.push(format!("{name}: {skipped} skipped, at most {most} may be"));
        }
    }
    let is_plain = |row: &&Row| row.setting.is_none();
    let (plain, set): (Vec<&Row>, Vec<&Row>) = rows.iter().partition(is_plain);
    objections.extend(differences(&plain));
    objections.extend(differences(&set));
    objections
}

/// The tests that some backends ran and another one did not. A backend that broke off is left out:
/// what it lacks is no news.
fn differences(rows: &[&Row]) -> Vec<String> {
    let complete = rows.iter().filter(|row| row.broken.is_empty());
    let complete: Vec<&&Row> = complete.collect();
    let all: BTreeSet<&String> = complete.iter().flat_map(|row| row.tests.keys()).collect();
    let mut differences = Vec::new();
    for row in complete {
        for name in all.iter().filter(|name| !row.tests.contains_key(**name)) {
            differences.push(format!("{} does not have the test {name}", row.name()));
        }
    }
    differences
}

/// The closing table and the line that machines read.
pub fn table(rows: &[Row]) -> String {
    let columns: [Column<Row>; 6] = [
        ("backend", |row| row.name()),
        ("device", |row| {
            row.device.clone().unwrap_or("unknown".into())
        }),
        ("passed", |row| row.counts().passed.to_string()),
        ("failed", |row| row.counts().failed.to_string()),
        ("skipped", |row| row.counts().skipped.to_string()),
        ("seconds", |row| {
            if row.broken.is_empty() {
                format!("{:.1}", row.time.as_secs_f64())
            } else {
                "could not run".into()
            }
        }),
    ];
    let all = Counts::of(rows.iter().flat_map(|row| row.tests.values()));
    format!("{}\n{all}", columns::table(rows, 2, &columns))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(backend: &'static str, names: &[&str]) -> Row {
        let passed = |name: &&str| (name.to_string(), Outcome::Passed);
        Row {
            tests: names.iter().map(passed).collect(),
            ..Row::new(backend)
        }
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
        let mut skipping = row("wgpu", &["a"]);
        let skipped = Outcome::Skipped("no f64".into());
        skipping.tests.insert("b".into(), skipped);
        assert!(objections(&[row("flex", &["a", "b"]), skipping]).is_empty());
    }

    #[test]
    fn a_setting_may_skip_a_few_tests_and_lack_those_of_commands() {
        let names: Vec<String> = (0..40).map(|at| format!("test {at}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let plain = || row("flex", &[&names[..], &["of a command"]].concat());
        let half = |skipped: usize| {
            let mut half = row("flex", &names);
            half.setting = Some(("f16", ("ARBORA_TEST_FLOAT", "f16")));
            for name in &names[..skipped] {
                let outcome = Outcome::Skipped("rounding".into());
                half.tests.insert(name.to_string(), outcome);
            }
            half
        };
        assert!(objections(&[plain(), half(2)]).is_empty());
        assert_eq!(
            objections(&[plain(), half(3)]),
            ["flex f16: 3 skipped, at most 2 may be"]
        );
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
        let skipped = Outcome::Skipped("why".into());
        idle.tests.insert("a".into(), skipped);
        assert_eq!(objections(&[idle]), ["flex: no test ran"]);
    }

    #[test]
    fn the_table_closes_with_the_sums() {
        let mut failing = row("tch", &["a"]);
        let failed = Outcome::Failed(String::new());
        failing.tests.insert("b".into(), failed);
        let text = table(&[row("flex", &["a", "b"]), failing]);
        assert!(text.ends_with("\n3 passed, 1 failed, 0 skipped"), "{text}");
        assert!(text.contains("unknown"), "{text}");
    }
}
