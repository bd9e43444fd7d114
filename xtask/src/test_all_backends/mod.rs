//! `cargo xtask test-all-backends`: one suite, every backend.
//!
//! The suite is the test target `backend` of each crate that has one. It is compiled once, with the
//! features of all backends asked for, and run once per backend with `BURN_DEVICE`.

mod libtest;
mod parts;
mod report;

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::backend::Backend;
use crate::provision::{self, Environment};
use crate::{shell, workspace};
use libtest::{Outcome, Suite};
use parts::Part;
use report::{Counts, Row};

/// Run the shared test suite on every backend and compare what ran.
///
/// Installs what the backends need (see `provision`). Fails when a test fails, when a backend
/// cannot run, or when one backend ran other tests than another.
#[derive(clap::Args)]
#[command(
    after_help = "Example: cargo xtask test-all-backends --backends flex,tch --filter search"
)]
pub struct Args {
    /// The backends to test.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Backend::TESTED)]
    pub backends: Vec<Backend>,
    /// Run only tests whose name contains this.
    #[arg(long)]
    pub filter: Option<String>,
}

/// A compiled suite.
struct Binary {
    package: String,
    folder: PathBuf,
    path: PathBuf,
}

/// Runs the task.
///
/// # Errors
/// When anything stands against a green result; the details are printed before.
pub fn run(args: &Args) -> Result<()> {
    let mut backends = args.backends.clone();
    backends.sort_unstable();
    backends.dedup();

    let mut environment = Environment::default();
    let mut rows: Vec<(Backend, Row)> = backends
        .iter()
        .map(|&backend| (backend, Row::new(backend.name())))
        .collect();
    for (backend, row) in &mut rows {
        if let Err(error) = provision::provide(*backend, &mut environment) {
            row.broken.push(format!("{error:#}"));
        }
    }
    let ready: Vec<Backend> = rows
        .iter()
        .filter(|(_, row)| row.broken.is_empty())
        .map(|(backend, _)| *backend)
        .collect();
    if !ready.is_empty() {
        match compile(&ready, &environment) {
            Ok(binaries) => {
                let ready = rows.iter_mut().filter(|(_, row)| row.broken.is_empty());
                for (backend, row) in ready {
                    let start = Instant::now();
                    run_suites(
                        &binaries,
                        *backend,
                        args.filter.as_deref(),
                        &environment,
                        row,
                    );
                    row.time = start.elapsed();
                }
            }
            Err(error) => {
                for (_, row) in rows.iter_mut().filter(|(_, row)| row.broken.is_empty()) {
                    row.broken.push(format!("{error:#}"));
                }
            }
        }
    }

    let rows: Vec<Row> = rows.into_iter().map(|(_, row)| row).collect();
    print_details(&rows);
    println!("\n{}", report::table(&rows));
    let objections = report::objections(&rows);
    ensure!(objections.is_empty(), "{}", objections.join("\n       "));
    Ok(())
}

/// The arguments that select what is compiled. `ci` uses the same ones, so that nothing is compiled
/// twice: cargo unifies features over the packages that it is asked for.
///
/// # Errors
/// When a manifest is not valid.
pub fn selection(backends: &[Backend]) -> Result<[String; 3]> {
    let features = workspace::features(&workspace::packages()?, backends);
    let features = format!("arbora-cli/remote,{features}");
    Ok(["--workspace".into(), "--features".into(), features])
}

fn compile(backends: &[Backend], environment: &Environment) -> Result<Vec<Binary>> {
    let packages = workspace::packages()?;
    let mut cargo = shell::cargo();
    cargo.args(["test", "--no-run", "--test", "backend"]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    environment.apply(cargo.args(selection(backends)?));
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    println!("compiling the suite for {}", names.join(", "));
    // What cargo says goes to the terminal, what it produced comes through the pipe.
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    ensure!(output.status.success(), "the suite does not compile");

    /// What cargo says of something that it compiled.
    #[derive(Deserialize)]
    struct Artifact {
        manifest_path: PathBuf,
        target: Target,
        executable: PathBuf,
    }
    #[derive(Deserialize)]
    struct Target {
        name: String,
        kind: Vec<String>,
    }
    let mut binaries = Vec::new();
    // Messages about other things lack a field.
    let messages = output.stdout.split(|&byte| byte == b'\n');
    for one in messages.filter_map(|line| serde_json::from_slice::<Artifact>(line).ok()) {
        if one.target.name != "backend" || one.target.kind != ["test"] {
            continue;
        }
        let mut packages = packages.iter();
        let package = packages.find(|package| package.manifest_path == one.manifest_path);
        let package = package.context("cargo compiled a suite of an unknown package")?;
        binaries.push(Binary {
            package: package.name.clone(),
            folder: one.manifest_path.parent().unwrap_or(Path::new("")).into(),
            path: one.executable,
        });
    }
    ensure!(!binaries.is_empty(), "no crate has a test target `backend`");
    binaries.sort_by(|one, other| one.package.cmp(&other.package));
    Ok(binaries)
}

/// Runs the suites on one backend, prints a line of progress each and adds their results to the row.
fn run_suites(
    binaries: &[Binary],
    backend: Backend,
    filter: Option<&str>,
    environment: &Environment,
    row: &mut Row,
) {
    let mut all: Vec<Part<&Binary>> = Vec::new();
    for binary in binaries {
        if !backend.compiles_kernels() {
            all.push(Part::whole(binary));
            continue;
        }
        match tests_of(binary, backend, filter, environment) {
            Ok(tests) => all.extend(parts::by_module(binary, &tests)),
            Err(error) => row.broken.push(format!("{}: {error:#}", binary.package)),
        }
    }
    let cores = std::thread::available_parallelism().map_or(2, |count| count.get());
    let processes = match backend.compiles_kernels() {
        true => cores.min(MOST_PROCESSES),
        false => 1,
    };
    let mut left: Vec<usize> = binaries
        .iter()
        .map(|binary| {
            all.iter()
                .filter(|part| std::ptr::eq(part.of, binary))
                .count()
        })
        .collect();
    let mut suites: Vec<(Suite, f64)> = binaries.iter().map(|_| Default::default()).collect();
    let run = |part: &Part<&Binary>| {
        let start = Instant::now();
        let suite = suite_of(part, backend, filter, environment);
        (suite, start.elapsed().as_secs_f64())
    };
    parts::run(all, processes, run, |part, (result, seconds)| {
        let at = binaries
            .iter()
            .position(|binary| std::ptr::eq(part.of, binary));
        let at = at.expect("a part is of one of the suites");
        match result {
            Ok(part) => {
                let (suite, total) = &mut suites[at];
                suite.add(part);
                *total += seconds;
            }
            Err(error) => row
                .broken
                .push(format!("{}: {error:#}", binaries[at].package)),
        }
        left[at] -= 1;
        if left[at] > 0 {
            return;
        }
        let (suite, seconds) = std::mem::take(&mut suites[at]);
        println!(
            "{:<8} {:<18} {} in {seconds:.1} s",
            backend.name(),
            binaries[at].package,
            Counts::of(suite.tests.values())
        );
        row.add(&binaries[at].package, suite);
    });
}

/// How many processes test one backend at once: each one has a device of its own, which on a GPU takes memory.
const MOST_PROCESSES: usize = 4;

/// The names of a suite's tests.
fn tests_of(
    binary: &Binary,
    backend: Backend,
    filter: Option<&str>,
    environment: &Environment,
) -> Result<Vec<String>> {
    let mut command = command(binary, backend, environment);
    command.args(["--list", "--format", "terse"]).args(filter);
    Ok(parts::listed(&shell::output(&mut command)?))
}

/// A test binary as cargo would run it, on the backend asked for.
fn command(binary: &Binary, backend: Backend, environment: &Environment) -> Command {
    let mut command = Command::new(&binary.path);
    command.current_dir(&binary.folder).stdin(Stdio::null());
    command
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .env("BURN_DEVICE", backend.name());
    // On Mesa's CPU driver a kernel costs its compilation: 30 ms for one that then runs in 20 µs. Two thirds of that
    // are LLVM's. Without LLVM's optimisations it is 19 ms.
    if backend.compiles_kernels() && std::env::var_os("GALLIVM_PERF").is_none() {
        command.env("GALLIVM_PERF", "nopt");
    }
    environment.apply(&mut command);
    command
}

fn suite_of(
    part: &Part<&Binary>,
    backend: Backend,
    filter: Option<&str>,
    environment: &Environment,
) -> Result<Suite> {
    let mut command = command(part.of, backend, environment);
    // More than one thread even on one core: with a single one the harness prints a test's name
    // before the test runs, and what a driver writes then lands in the middle of the line.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    command.args(["--show-output", "--test-threads", &threads.to_string()]);
    match &part.tests {
        Some(tests) => command.arg("--exact").args(tests),
        None => command.args(filter),
    };
    let output = command
        .output()
        .with_context(|| part.of.path.display().to_string())?;
    let printed = String::from_utf8_lossy(&output.stdout);
    match libtest::parse(&printed) {
        Ok(suite) => {
            let failed = suite
                .tests
                .values()
                .any(|test| matches!(test, Outcome::Failed(_)));
            if output.status.success() == failed {
                bail!(
                    "the results say otherwise than the test binary, which ended with {}",
                    output.status
                );
            }
            if let Some(tests) = &part.tests {
                ensure!(
                    suite.tests.keys().eq(tests),
                    "ran other tests than those asked for"
                );
            }
            Ok(suite)
        }
        Err(error) => {
            let errors = String::from_utf8_lossy(&output.stderr);
            eprintln!("{}\n{}", last_lines(&printed), last_lines(&errors));
            Err(error.context(format!("ended with {}", output.status)))
        }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// What failed tests printed, and why tests were skipped.
fn print_details(rows: &[Row]) {
    for row in rows {
        for (name, outcome) in &row.tests {
            if let Outcome::Failed(printed) = outcome {
                println!(
                    "\n---- failed on {}: {name}\n{}",
                    row.backend,
                    printed.trim()
                );
            }
        }
    }
    for row in rows {
        for (name, outcome) in &row.tests {
            if let Outcome::Skipped(reason) = outcome {
                println!("skipped on {}: {name}: {reason}", row.backend);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_suite_in_parts_is_the_suite() {
        // This very binary. Tests of this name are in two modules.
        let binaries = [Binary {
            package: "xtask".to_string(),
            folder: shell::root().join("xtask"),
            path: std::env::current_exe().unwrap(),
        }];
        let run = |backend: Backend| {
            let mut row = Row::new(backend.name());
            let environment = Environment::default();
            run_suites(&binaries, backend, Some("is_read"), &environment, &mut row);
            assert_eq!(row.broken, [] as [String; 0]);
            row.tests
        };
        let whole = run(Backend::Flex);
        assert_eq!(whole.len(), 3);
        assert_eq!(run(Backend::Wgpu), whole);
    }
}
