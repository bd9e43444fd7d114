//! `cargo xtask test-all-backends`: one suite, every backend.
//!
//! The suite is the test target `backend` of each crate that has one. It is compiled once, with the
//! features of all backends asked for, and run once per backend with `BURN_DEVICE`.

mod libtest;
mod report;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::backend::Backend;
use crate::provision::{self, Environment};
use crate::{shell, workspace};
use libtest::Outcome;
use report::Row;

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
                    for binary in &binaries {
                        run_suite(binary, *backend, args.filter.as_deref(), &environment, row);
                    }
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
    Ok([
        "--workspace".to_string(),
        "--features".to_string(),
        format!("arbora-cli/remote,{features}"),
    ])
}

#[derive(Deserialize)]
struct Message {
    manifest_path: Option<PathBuf>,
    target: Option<Target>,
    executable: Option<PathBuf>,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

fn compile(backends: &[Backend], environment: &Environment) -> Result<Vec<Binary>> {
    let packages = workspace::packages()?;
    let mut cargo = shell::cargo();
    cargo
        .args(["test", "--no-run", "--test", "backend"])
        .args(selection(backends)?);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    environment.apply(&mut cargo);
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    println!("compiling the suite for {}", names.join(", "));
    // What cargo says goes to the terminal, what it produced comes through the pipe.
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    ensure!(output.status.success(), "the suite does not compile");

    let mut binaries = Vec::new();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let Ok(message) = serde_json::from_str::<Message>(line) else {
            continue;
        };
        let (Some(manifest), Some(target), Some(path)) =
            (message.manifest_path, message.target, message.executable)
        else {
            continue;
        };
        if target.name != "backend" || target.kind != ["test"] {
            continue;
        }
        let folder = manifest.parent().unwrap_or(Path::new("")).to_path_buf();
        let package = packages.iter().find(|package| package.folder == folder);
        let package = package.context("cargo compiled a suite of an unknown package")?;
        binaries.push(Binary {
            package: package.name.clone(),
            folder,
            path,
        });
    }
    ensure!(!binaries.is_empty(), "no crate has a test target `backend`");
    binaries.sort_by(|one, other| one.package.cmp(&other.package));
    Ok(binaries)
}

/// Runs one suite on one backend, prints its line of progress and adds its results to the row.
fn run_suite(
    binary: &Binary,
    backend: Backend,
    filter: Option<&str>,
    environment: &Environment,
    row: &mut Row,
) {
    print!("{:<8} {:<18} ", backend.name(), binary.package);
    std::io::stdout().flush().ok();
    let start = Instant::now();
    match suite_of(binary, backend, filter, environment) {
        Ok(suite) => {
            let counts = report::counts(suite.tests.values());
            println!(
                "{} passed, {} failed, {} skipped in {:.1} s",
                counts.passed,
                counts.failed,
                counts.skipped,
                start.elapsed().as_secs_f64()
            );
            row.add(&binary.package, suite);
        }
        Err(error) => {
            println!("broke off");
            row.broken.push(format!("{}: {error:#}", binary.package));
        }
    }
}

fn suite_of(
    binary: &Binary,
    backend: Backend,
    filter: Option<&str>,
    environment: &Environment,
) -> Result<libtest::Suite> {
    let mut command = Command::new(&binary.path);
    // More than one thread even on one core: with a single one the harness prints a test's name
    // before the test runs, and what a driver writes then lands in the middle of the line.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    command
        .args(["--show-output", "--test-threads", &threads.to_string()])
        .args(filter);
    command.current_dir(&binary.folder).stdin(Stdio::null());
    // As cargo would run it, on the backend asked for.
    command
        .env("CARGO_MANIFEST_DIR", &binary.folder)
        .env("BURN_DEVICE", backend.name());
    environment.apply(&mut command);
    let output = command
        .output()
        .with_context(|| binary.path.display().to_string())?;
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
