//! `cargo xtask test-all-backends`: one suite, every backend.
//!
//! The suite is the test target `backend` of each crate that has one. It is compiled once, with the
//! features of all backends asked for, and run once per backend with `BURN_DEVICE`. On flex and
//! libtorch it runs again on devices that record by gradient checkpointing, and on devices whose
//! floats are of half and of double precision.

mod libtest;
mod report;

use std::io::{BufRead, BufReader, Read, Seek};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use core_affinity::CoreId;

use crate::backend::Backend;
use crate::provision::{self, Environment};
use crate::{shell, workspace};
use libtest::Outcome;
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
    backends: Vec<Backend>,
    /// Run only tests whose name contains this.
    #[arg(long)]
    filter: Option<String>,
}

/// How devices under test are set up beside their defaults: a name, and the variable that `arbora-testing` reads.
type Setting = (&'static str, (&'static str, &'static str));

const SETTINGS: [Setting; 4] = [
    ("checkpointing", ("ARBORA_TEST_CHECKPOINTING", "1")),
    ("f16", ("ARBORA_TEST_FLOAT", "f16")),
    ("bf16", ("ARBORA_TEST_FLOAT", "bf16")),
    ("f64", ("ARBORA_TEST_FLOAT", "f64")),
];
/// Its suite runs whole commands, which choose their devices themselves.
const COMMANDS: &str = "arbora-cli";

/// Suites of one backend that run at the same time.
const SUITES_AT_ONCE: usize = 2;
const HOLDERS: &str = "who holds it does not panic";

/// A compiled suite.
struct Binary {
    package: String,
    folder: PathBuf,
    path: PathBuf,
}

/// Fails when anything stands against a green result; the details are printed before.
pub fn run(args: &Args) -> Result<()> {
    let mut backends = args.backends.clone();
    backends.sort_unstable();
    backends.dedup();

    let mut environment = Environment::default();
    let mut ready = Vec::new();
    let mut rows = Vec::new();
    for backend in backends {
        let mut row = Row::new(backend.name());
        match provision::provide(backend, &mut environment) {
            Ok(()) => ready.push(backend),
            Err(error) => row.broken.push(format!("{error:#}")),
        }
        rows.push(row);
    }
    if !ready.is_empty() {
        let compiled = compile(&ready, &environment);
        for row in rows.iter_mut().filter(|row| row.broken.is_empty()) {
            let start = Instant::now();
            match &compiled {
                Ok(binaries) => run_suites(binaries, args.filter.as_deref(), &environment, row),
                Err(error) => row.broken.push(format!("{error:#}")),
            }
            row.time = start.elapsed();
        }
        let again = ready.iter().filter(|backend| backend.runs_settings());
        for (backend, setting) in again.flat_map(|one| SETTINGS.map(|setting| (one, setting))) {
            let Ok(binaries) = &compiled else { break };
            let mut row = Row::new(backend.name());
            row.setting = Some(setting);
            let start = Instant::now();
            run_suites(binaries, args.filter.as_deref(), &environment, &mut row);
            row.time = start.elapsed();
            rows.push(row);
        }
    }

    print_details(&rows);
    println!("\n{}", report::table(&rows));
    let objections = report::objections(&rows);
    ensure!(objections.is_empty(), "{}", objections.join("\n       "));
    Ok(())
}

/// The arguments that select what is compiled. `ci` uses the same ones, so that nothing is compiled
/// twice: cargo unifies features over the packages that it is asked for.
pub fn selection(backends: &[Backend]) -> Result<[String; 3]> {
    let features = workspace::features(&workspace::packages()?, backends);
    let features = format!("arbora-cli/remote,{features}");
    Ok(["--workspace".into(), "--features".into(), features])
}

fn compile(backends: &[Backend], environment: &Environment) -> Result<Vec<Binary>> {
    let mut cargo = shell::cargo();
    cargo.args(["test", "--no-run", "--test", "backend"]);
    environment.apply(cargo.args(selection(backends)?));
    let names: Vec<&str> = backends.iter().map(|backend| backend.name()).collect();
    println!("compiling the suite for {}", names.join(", "));
    let mut binaries = Vec::new();
    for one in shell::compiled(&mut cargo, "the suite")? {
        if one.target.name != "backend" || one.target.kind != ["test"] {
            continue;
        }
        // A crate lies in a folder of its name.
        let folder = one.manifest_path.parent().context("it is in a folder")?;
        let package = folder.file_name().unwrap_or_default();
        binaries.push(Binary {
            package: package.to_string_lossy().into_owned(),
            folder: folder.into(),
            path: one.executable,
        });
    }
    ensure!(!binaries.is_empty(), "no crate has a test target `backend`");
    binaries.sort_by(|one, other| one.package.cmp(&other.package));
    Ok(binaries)
}

/// Runs the suites on the backend of a row, prints a line for each and adds its results to the row.
///
/// On a CPU driver one thread of each process compiles the kernels, which is most of the time, so several processes run at the
/// same time. Where there is one core for each, it gets that one: what waits in a suite spins, and must not take the other's. See
/// docs/decisions/0011-the-suite-on-a-cpu-driver.md.
fn run_suites(binaries: &[Binary], filter: Option<&str>, environment: &Environment, row: &mut Row) {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let places: Vec<Option<CoreId>> = match cores.len() {
        1..=SUITES_AT_ONCE => cores.into_iter().map(Some).collect(),
        _ => vec![None; SUITES_AT_ONCE],
    };
    let (backend, setting, name) = (row.backend, row.setting, row.name());
    let suites = binaries
        .iter()
        .filter(|binary| setting.is_none() || binary.package != COMMANDS);
    let left = Mutex::new(suites);
    let row = Mutex::new(row);
    let run = |place: Option<CoreId>| {
        if let Some(core) = place {
            // What this thread starts inherits it. Where the system refuses, suites share the cores.
            core_affinity::set_for_current(core);
        }
        loop {
            let next = left.lock().expect(HOLDERS).next();
            let Some(binary) = next else { return };
            let start = Instant::now();
            let outcome = suite_of(binary, (backend, setting), filter, environment);
            let package = &binary.package;
            let mut row = row.lock().expect(HOLDERS);
            match outcome {
                Ok(suite) => {
                    let counts = Counts::of(suite.tests.values());
                    let seconds = start.elapsed().as_secs_f64();
                    println!("{name:<18} {package:<18} {counts} in {seconds:.1} s");
                    row.add(package, suite);
                }
                Err(error) => {
                    println!("{name:<18} {package:<18} broke off");
                    row.broken.push(format!("{package}: {error:#}"));
                }
            }
        }
    };
    std::thread::scope(|scope| {
        for place in places {
            let run = &run;
            scope.spawn(move || run(place));
        }
    });
}

fn suite_of(
    binary: &Binary,
    (backend, setting): (&str, Option<Setting>),
    filter: Option<&str>,
    environment: &Environment,
) -> Result<libtest::Suite> {
    let mut command = Command::new(&binary.path);
    // More than one thread even on one core: with a single one the harness prints a test's name
    // before the test runs, and what a driver writes then lands in the middle of the line.
    let threads = std::thread::available_parallelism().map_or(2, |count| count.get().max(2));
    command.args(["--show-output", "--test-threads", &threads.to_string()]);
    command.args(filter).stdin(Stdio::null());
    // As cargo would run it, on the backend asked for.
    command.current_dir(&binary.folder);
    command.env("CARGO_MANIFEST_DIR", &binary.folder);
    command.env("BURN_DEVICE", backend);
    command.envs(setting.map(|(_, variable)| variable));
    // CubeCL's memory pools make an error, with a backtrace where `RUST_BACKTRACE` is set, of every page without room: see
    // docs/decisions/0011-the-suite-on-a-cpu-driver.md. Panics keep theirs.
    command.env("RUST_LIB_BACKTRACE", "0");
    // Mesa's CPU driver compiles for longer than it computes: without passes that make kernels faster, and without threads of its own
    // beside the one that compiles. Nothing else reads these.
    command.envs([("GALLIVM_PERF", "nopt"), ("LP_NUM_THREADS", "0")]);
    let mut errors = tempfile::tempfile()?;
    command.stdout(Stdio::piped()).stderr(errors.try_clone()?);
    let child = environment.apply(&mut command).spawn();
    let mut child = child.with_context(|| binary.path.display().to_string())?;
    let mut printed = String::new();
    for line in BufReader::new(child.stdout.take().context("results are piped")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        // At once: of a test that never ends there will be nothing else.
        if line.contains("has been running for over") {
            println!("{backend:<8} {:<18} {line}", binary.package);
        }
        printed.push_str(&line);
        printed.push('\n');
    }
    let status = child.wait()?;
    match libtest::parse(&printed) {
        Ok(suite) => {
            let failed = Counts::of(suite.tests.values()).failed;
            ensure!(
                status.success() == (failed == 0),
                "the results say otherwise than the test binary, which ended with {status}"
            );
            Ok(suite)
        }
        Err(error) => {
            let mut text = Vec::new();
            errors.rewind()?;
            errors.read_to_end(&mut text)?;
            let errors = String::from_utf8_lossy(&text);
            eprintln!("{}\n{}", last_lines(&printed), last_lines(&errors));
            Err(error.context(format!("ended with {status}")))
        }
    }
}

fn last_lines(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}

/// What failed tests printed, and why tests were skipped.
fn print_details(rows: &[Row]) {
    let outcomes = || {
        rows.iter()
            .flat_map(|row| row.tests.iter().map(|test| (row.name(), test)))
    };
    for (backend, (name, outcome)) in outcomes() {
        if let Outcome::Failed(printed) = outcome {
            println!("\n---- failed on {backend}: {name}\n{}", printed.trim());
        }
    }
    for (backend, (name, outcome)) in outcomes() {
        if let Outcome::Skipped(reason) = outcome {
            println!("skipped on {backend}: {name}: {reason}");
        }
    }
}
