//! Reads the text that a test binary prints under `--show-output`.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};

use super::report::Counts;

/// How one test ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Passed,
    /// With what the test printed.
    Failed(String),
    /// With the reason: the test said `[skip] reason`, or is marked `#[ignore]`.
    Skipped(String),
}

/// What one run of one test binary printed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Suite {
    pub tests: BTreeMap<String, Outcome>,
    /// From a line `[device] name` of any test.
    pub device: Option<String>,
}

/// Reads the whole output of a test binary. Fails when it ends before its summary, or that counts other tests than were read.
pub fn parse(output: &str) -> Result<Suite> {
    let mut suite = Suite::default();
    // What tests printed comes after all results, under a heading per test.
    let mut lines = output.lines().peekable();
    while let Some(line) = lines.next_if(|line| !matches!(*line, "successes:" | "failures:")) {
        let result = line
            .strip_prefix("test ")
            .and_then(|rest| rest.rsplit_once(" ... "));
        let Some((name, result)) = result else {
            continue;
        };
        let name = name.strip_suffix(" - should panic").unwrap_or(name);
        let outcome = if result == "ok" {
            Outcome::Passed
        } else if result == "FAILED" {
            Outcome::Failed(String::new())
        } else if let Some(rest) = result.strip_prefix("ignored") {
            let reason = rest.strip_prefix(", ").map(|reason| format!(": {reason}"));
            Outcome::Skipped(format!("marked as ignored{}", reason.unwrap_or_default()))
        } else {
            continue;
        };
        suite.tests.insert(name.to_string(), outcome);
    }
    let read = Counts::of(suite.tests.values());

    let mut printing: Option<String> = None;
    for line in lines {
        let heading = line
            .strip_prefix("---- ")
            .and_then(|rest| rest.strip_suffix(" stdout ----"));
        if let Some(name) = heading.filter(|name| suite.tests.contains_key(*name)) {
            printing = Some(name.to_string());
            continue;
        }
        if matches!(line, "successes:" | "failures:") {
            printing = None;
        }
        if let Some(device) = line.strip_prefix("[device] ") {
            suite.device = Some(device.trim().to_string());
        }
        let Some(outcome) = printing.as_ref().and_then(|name| suite.tests.get_mut(name)) else {
            continue;
        };
        match outcome {
            Outcome::Passed => {
                if let Some(reason) = line.strip_prefix("[skip] ") {
                    *outcome = Outcome::Skipped(reason.trim().to_string());
                }
            }
            Outcome::Failed(printed) => {
                printed.push_str(line);
                printed.push('\n');
            }
            Outcome::Skipped(_) => {}
        }
    }

    let mut ends = output.lines().rev();
    let summary = ends.find_map(|line| line.strip_prefix("test result: "));
    let summary = summary.context("the test binary ended before its summary")?;
    let Counts {
        passed,
        failed,
        skipped,
    } = read;
    ensure!(
        summary.contains(&format!(
            ". {passed} passed; {failed} failed; {skipped} ignored;"
        )),
        "read the results {read}, but the binary counted: {summary}"
    );
    Ok(suite)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "
running 5 tests
test a::ignored ... ignored
test a::waits ... ignored, needs a GPU
test a::passes ... ok
test a::refuses - should panic ... ok
test a::skips ... ok
test b::breaks ... FAILED

successes:

---- a::passes stdout ----
[device] llvmpipe (LLVM 15.0.6, 256 bits)
test a::invented ... FAILED

---- a::skips stdout ----
[skip] no f16 here


successes:
    a::passes
    a::refuses
    a::skips

failures:

---- b::breaks stdout ----

thread 'b::breaks' panicked at tests/backend.rs:3:5:
[skip] is no excuse


failures:
    b::breaks

test result: FAILED. 3 passed; 1 failed; 2 ignored; 0 measured; 7 filtered out; finished in 0.01s

";

    #[test]
    fn every_kind_of_result_is_read() {
        let suite = parse(MIXED).unwrap();
        let skipped = |reason: &str| Outcome::Skipped(reason.to_string());
        assert_eq!(suite.tests.len(), 6);
        assert_eq!(suite.tests["a::passes"], Outcome::Passed);
        assert_eq!(suite.tests["a::refuses"], Outcome::Passed);
        assert_eq!(suite.tests["a::skips"], skipped("no f16 here"));
        assert_eq!(suite.tests["a::ignored"], skipped("marked as ignored"));
        let waits = skipped("marked as ignored: needs a GPU");
        assert_eq!(suite.tests["a::waits"], waits);
        let Outcome::Failed(printed) = &suite.tests["b::breaks"] else {
            panic!("a failed test that prints [skip] has still failed");
        };
        let place = "panicked at tests/backend.rs:3:5";
        assert!(printed.contains(place), "{printed}");
    }

    #[test]
    fn the_device_line_is_read_and_may_be_absent() {
        let device = parse(MIXED).unwrap().device;
        assert_eq!(device.as_deref(), Some("llvmpipe (LLVM 15.0.6, 256 bits)"));
        let silent = parse(&MIXED.replace("[device]", "device")).unwrap();
        assert_eq!(silent.device, None);
    }

    #[test]
    fn no_tests_is_an_empty_suite() {
        let output = "\nrunning 0 tests\n\ntest result: ok. 0 passed; 0 failed; 0 ignored; 0 \
                      measured; 4 filtered out; finished in 0.00s\n";
        assert_eq!(parse(output).unwrap(), Suite::default());
    }

    #[test]
    fn a_crash_is_no_result() {
        let cut = &MIXED[..MIXED.find("test result").unwrap()];
        let error = parse(cut).unwrap_err().to_string();
        assert!(error.contains("before its summary"), "{error}");
    }

    #[test]
    fn a_result_that_cannot_be_read_is_noticed() {
        // A driver that writes to standard output in the middle of a line.
        let garbled = MIXED.replace("a::passes ... ok", "a::passes ... MESA: hello\nok");
        let error = parse(&garbled).unwrap_err().to_string();
        assert!(error.contains("3 passed; 1 failed"), "{error}");
    }
}
