//! A suite in parts that run at once.
//!
//! On backends that compile kernels a process keeps one core busy, whatever its number of test threads: fusing,
//! compiling and running are the work of one thread per device. Several processes keep several cores busy. What tests
//! of one module need is compiled once, since they stay together; what two processes need is compiled twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, mpsc};

/// Tests of a suite.
#[derive(Debug, PartialEq, Eq)]
pub struct Part<S> {
    pub of: S,
    /// Their names, sorted. `None`: all that the filter leaves.
    pub tests: Option<Vec<String>>,
}

impl<S> Part<S> {
    pub fn whole(of: S) -> Self {
        Self { of, tests: None }
    }
}

/// The names in what a test binary prints under `--list --format terse`.
pub fn listed(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(str::to_string)
        .collect()
}

/// One part per module. A suite without tests is one part without tests.
pub fn by_module<S: Copy>(of: S, tests: &[String]) -> Vec<Part<S>> {
    let mut modules: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for test in tests {
        let module = test.split_once("::").map_or("", |(module, _)| module);
        modules.entry(module).or_default().push(test.clone());
    }
    if modules.is_empty() {
        return vec![Part::whole(of)];
    }
    modules
        .into_values()
        .map(|mut tests| {
            tests.sort_unstable();
            Part {
                of,
                tests: Some(tests),
            }
        })
        .collect()
}

/// Runs parts in so many threads, those with the most tests first, and hands over each result as it comes.
pub fn run<S: Copy + Send, R: Send>(
    mut parts: Vec<Part<S>>,
    threads: usize,
    run: impl Fn(&Part<S>) -> R + Sync,
    mut done: impl FnMut(&Part<S>, R),
) {
    // Taken from the end. Sorting is stable: parts of one size keep their order.
    parts.reverse();
    parts.sort_by_key(|part| part.tests.as_ref().map_or(0, Vec::len));
    let parts = Mutex::new(parts);
    let (sender, results) = mpsc::channel();
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            let (parts, run, sender) = (&parts, &run, sender.clone());
            scope.spawn(move || {
                loop {
                    let next = parts.lock().expect("nobody panics with the lock").pop();
                    let Some(part) = next else {
                        return;
                    };
                    let result = run(&part);
                    if sender.send((part, result)).is_err() {
                        return;
                    }
                }
            });
        }
        drop(sender);
        for (part, result) in results {
            done(&part, result);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| name.to_string()).collect()
    }

    #[test]
    fn names_are_read_and_benchmarks_are_not() {
        let output = "a::b: test\nc: test\nd: benchmark\n\n2 tests, 1 benchmark\n";
        assert_eq!(listed(output), ["a::b", "c"]);
    }

    #[test]
    fn each_module_is_a_part_with_its_tests_sorted() {
        let parts = by_module(7, &names(&["b::y", "c", "a::x", "b::x::z", "a::w"]));
        let tests: Vec<Vec<String>> = parts.into_iter().filter_map(|part| part.tests).collect();
        assert_eq!(
            tests,
            [
                names(&["c"]),
                names(&["a::w", "a::x"]),
                names(&["b::x::z", "b::y"])
            ]
        );
    }

    #[test]
    fn a_suite_without_tests_still_runs() {
        assert_eq!(by_module(7, &[]), [Part::whole(7)]);
    }

    #[test]
    fn every_part_runs_once_and_the_largest_first() {
        let part = |of: usize, tests: &[&str]| Part {
            of,
            tests: Some(names(tests)),
        };
        for threads in [0, 1, 3] {
            let parts = vec![part(0, &["a"]), part(1, &["b", "c"]), part(2, &["d"])];
            let mut order = Vec::new();
            run(
                parts,
                threads,
                |part| part.of * 10,
                |part, result| {
                    assert_eq!(result, part.of * 10);
                    order.push(part.of);
                },
            );
            if threads <= 1 {
                assert_eq!(order, [1, 0, 2]);
            }
            order.sort_unstable();
            assert_eq!(order, [0, 1, 2]);
        }
    }
}
