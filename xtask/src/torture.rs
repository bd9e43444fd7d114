//! `cargo xtask torture`: a campaign of what must break nothing, and its counts in `docs/results/torture.md`.

// What the program of `crates/arbora-torture` writes, as it declares it.
#[path = "../../crates/arbora-torture/src/counts.rs"]
mod counts;

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::backend::Backend;
use crate::columns::{Column, table};
use crate::provision::{self, Environment};
use crate::table::thousands;
use crate::test_all_backends::selection;
use crate::{atomic_file, origin, page, shell};
use counts::Counts;

/// Try what must break nothing: random problems for every operator, damaged files for every reader, commands that are
/// killed or whose system calls fail, servers that receive anything. The part `long` is for --only: it takes hours.
///
/// Prints what was tried and what failed, and fails if anything did. A failure names the seed and the index that
/// show it again. With --page the counts are added to docs/results/torture.json and the page beside it is written, so that
/// a campaign may be run in parts.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask torture
  cargo xtask torture --minutes 600 --count 1000000 --release --page
  cargo xtask torture --minutes 30 --only operators --asan --page
  cargo xtask torture --minutes 30 --only operators --tsan --page
  cargo xtask torture --only inputs --target index --seed 0 --index 906")]
pub struct Args {
    /// How long to try, in all.
    #[arg(long, default_value_t = MINUTES)]
    minutes: f64,
    /// At most so many tries of each target; the time is then what it may take.
    #[arg(long)]
    count: Option<u64>,
    /// One part alone.
    #[arg(long)]
    only: Option<Part>,
    /// One target of the part alone.
    #[arg(long, requires = "only")]
    target: Option<String>,
    /// Of all random numbers [default: 0; with --page one that the campaign has not had].
    #[arg(long)]
    seed: Option<u64>,
    /// One try alone, with all that it prints.
    #[arg(long, requires = "target")]
    index: Option<u64>,
    #[command(flatten)]
    sanitizer: Sanitizer,
    /// Compile with optimisations and the checks of a debug build, on flex alone and into target/torture: as much again is
    /// tried in a fraction of the time.
    #[arg(long, conflicts_with_all = ["asan", "tsan"])]
    release: bool,
    /// Add the counts to docs/results/torture.json, and write docs/results/torture.md.
    #[arg(long, conflicts_with = "index")]
    page: bool,
}

/// What watches the tries from within their process, if anything. The fields are those of torture.json, too.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::Args, Deserialize, Serialize)]
struct Sanitizer {
    /// Compile with AddressSanitizer, on flex alone and into target/asan. For Linux on x86-64.
    #[arg(long)]
    asan: bool,
    /// Compile with ThreadSanitizer, the standard library too, on flex alone and into target/tsan. For Linux on x86-64.
    #[arg(long, conflicts_with = "asan")]
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    tsan: bool,
}

/// Threads of a process under ThreadSanitizer, whatever the machine has: with more of them than cores, tasks of one call are on
/// several of them more often.
const THREADS: &str = "4";

impl Sanitizer {
    /// The value of rustc's `-Zsanitizer`, and how people call it.
    fn names(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self { asan: true, .. } => Some(("address", "AddressSanitizer")),
            Self { tsan: true, .. } => Some(("thread", "ThreadSanitizer")),
            _ => None,
        }
    }

    /// Whether it watches the tries of a part: those within one process, and for ThreadSanitizer those of several threads.
    fn watches(self, part: Part) -> bool {
        match part {
            Part::Operators => true,
            Part::Inputs => !self.tsan,
            _ => self == Self::default(),
        }
    }

    /// What was tried, and with what if not plainly.
    fn of(self, what: &str) -> String {
        match self.names() {
            Some((_, name)) => format!("{what}, {name}"),
            None => what.to_owned(),
        }
    }
}

/// What continuous integration takes: with getting ready, three.
const MINUTES: f64 = 2.25;

/// The parts, as `crates/arbora-torture` names them.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    Operators,
    Inputs,
    Kill,
    Faults,
    Serve,
    Long,
}

impl Part {
    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

/// All runs of a campaign: the numbers behind the page.
#[derive(Default, Deserialize, Serialize)]
struct Campaign {
    runs: Vec<Run>,
    totals: Vec<Total>,
}

/// One call of the command.
#[derive(Deserialize, Serialize)]
struct Run {
    commit: String,
    date: String,
    seed: u64,
    minutes: f64,
    #[serde(flatten)]
    sanitizer: Sanitizer,
    tried: u64,
    failed: u64,
}

/// What a target came to over all runs.
#[derive(Deserialize, Serialize)]
struct Total {
    #[serde(flatten)]
    sanitizer: Sanitizer,
    #[serde(flatten)]
    counts: Counts,
}

/// Fails when the program does not compile, a part cannot be run, anything failed, or the page cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let folder = shell::root().join("docs/results");
    let read = || Campaign::read(&folder.join("torture.json"));
    let before = if args.page { read()?.runs.len() } else { 0 };
    let seed = args.seed.unwrap_or(before as u64);
    // The page is about the code as it was when the tries began.
    let made = args.page.then(origin::now).transpose()?;
    let mut environment = Environment::default();
    let sanitizer = args.sanitizer;
    let program = compile(args, &mut environment)?;
    let parts: Vec<Part> = match args.only {
        Some(part) => vec![part],
        // One try of what is long takes longer than that.
        None => (Part::value_variants().iter().copied())
            .filter(|part| *part != Part::Long && sanitizer.watches(*part))
            .collect(),
    };
    let watched = parts.iter().all(|part| sanitizer.watches(*part));
    ensure!(
        watched,
        "--asan is for operators and inputs, --tsan for operators"
    );
    if parts.contains(&Part::Faults) {
        provision::strace()?;
    }
    let seconds = args.minutes * 60.0 / parts.len() as f64;
    let mut found: Vec<Counts> = Vec::new();
    let begun = Instant::now();
    for part in parts {
        let mut command = Command::new(&program);
        environment.apply(&mut command).arg(part.name());
        command.args(["--seed", &seed.to_string()]);
        command.args(["--seconds", &seconds.to_string()]);
        if let Some(count) = args.count.or((part == Part::Long).then_some(1)) {
            command.args(["--count", &count.to_string()]);
        }
        command.env("ARBORA", program.with_file_name("arbora"));
        if sanitizer.tsan {
            // A try that meets a race ends its process, and is counted.
            command.env("TSAN_OPTIONS", "halt_on_error=1");
            command.env("RAYON_NUM_THREADS", THREADS);
        }
        if let Some(target) = &args.target {
            command.args(["--target", target]);
        }
        if let Some(index) = args.index {
            return shell::run(command.args(["--index", &index.to_string()]));
        }
        println!("{}", shell::shown(&command));
        found.extend(counts(&mut command)?);
    }
    let rows: Vec<(Sanitizer, &Counts)> = found.iter().map(|counts| (sanitizer, counts)).collect();
    println!("\n{}", tried(&rows));
    let failed: u64 = found.iter().map(|counts| counts.failed).sum();
    if let Some((commit, date)) = made {
        // Now: other runs may have written theirs meanwhile.
        let mut campaign = read()?;
        campaign.runs.push(Run {
            commit,
            date,
            seed,
            minutes: begun.elapsed().as_secs_f64() / 60.0,
            sanitizer,
            tried: found.iter().map(|counts| counts.tried).sum(),
            failed,
        });
        for counts in found {
            campaign.add(sanitizer, counts);
        }
        campaign.write(&folder)?;
        println!("wrote docs/results/torture.md and torture.json");
    }
    ensure!(failed == 0, "{failed} failed");
    Ok(())
}

/// What a part of the program counts.
fn counts(command: &mut Command) -> Result<Vec<Counts>> {
    // Failures are told as they come, through standard error.
    let text = shell::stdout(command)?;
    let last = text.lines().last().unwrap_or_default();
    serde_json::from_str(last).with_context(|| format!("output of `{}`", shell::shown(command)))
}

/// The program, compiled as the other steps of continuous integration compile everything, so that nothing is compiled
/// twice; with a sanitizer, or optimised, alone.
fn compile(args: &Args, environment: &mut Environment) -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    let sanitizer = args.sanitizer;
    if let Some((name, _)) = sanitizer.names() {
        cargo.args(["build", "--bin", "torture"]);
        cargo.args(["--package", "arbora-torture", "--target-dir"]);
        let folder = if sanitizer.tsan { "tsan" } else { "asan" };
        cargo.arg(shell::root().join("target").join(folder));
        // With a target named, build scripts and macros are compiled without the sanitizer.
        cargo.args(["--target", "x86_64-unknown-linux-gnu"]);
        cargo.env("RUSTC_BOOTSTRAP", "1");
        cargo.env("RUSTFLAGS", format!("-Zsanitizer={name}"));
        if sanitizer.tsan {
            // Of a standard library that is compiled already, the sanitizer does not see what orders threads: fences of `Arc`, for
            // one, which this one has not. With it nothing is reported that is no race, and nothing has to be suppressed.
            provision::rust_source()?;
            cargo.arg("-Zbuild-std");
        }
    } else if args.release {
        cargo.args(["build", "--profile", "torture"]);
        cargo.args(["--package", "arbora-torture", "--bin", "torture"]);
        cargo.args(["--package", "arbora-cli", "--bin", "arbora"]);
        cargo.args(["--features", "arbora-cli/flex,arbora-cli/remote"]);
    } else {
        provision::provide(Backend::Tch, environment)?;
        // Their tests need `torture` and `arbora`. A build of these alone would have other features, as it leaves out what only
        // tests depend on.
        cargo.args(["test", "--no-run", "--test", "itself", "--test", "backend"]);
        cargo.args(selection(&Backend::TESTED)?);
    }
    let found = shell::compiled(environment.apply(&mut cargo), "the program")?;
    let mut paths = found.into_iter().map(|found| found.executable);
    let program = paths.find(|path| path.ends_with("torture"));
    program.context("cargo compiled no program")
}

/// One table of what was tried.
fn tried(rows: &[(Sanitizer, &Counts)]) -> String {
    let columns: [Column<(Sanitizer, &Counts)>; 6] = [
        ("part", |(sanitizer, counts)| sanitizer.of(&counts.part)),
        ("target", |(_, counts)| counts.target.clone()),
        ("tried", |(_, counts)| thousands(counts.tried)),
        ("failed", |(_, counts)| thousands(counts.failed)),
        ("panics of libraries, contained", |(_, counts)| {
            thousands(counts.contained.values().sum())
        }),
        ("per second", |(_, counts)| {
            match counts.tried as f64 / counts.seconds.max(1e-9) {
                few if few < 10.0 => format!("{few:.1}"),
                many => thousands(many as u64),
            }
        }),
    ];
    table(rows, 2, &columns)
}

impl Campaign {
    /// What there is; nothing where there is no file.
    fn read(path: &Path) -> Result<Self> {
        let text = match fs::read_to_string(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Self::default()),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        serde_json::from_str(&text).with_context(|| format!("in {}", path.display()))
    }

    /// Adds what a run counted.
    fn add(&mut self, sanitizer: Sanitizer, counts: Counts) {
        let same = |total: &&mut Total| {
            total.sanitizer == sanitizer
                && total.counts.part == counts.part
                && total.counts.target == counts.target
        };
        match self.totals.iter_mut().find(same) {
            None => self.totals.push(Total { sanitizer, counts }),
            Some(Total { counts: total, .. }) => {
                total.tried += counts.tried;
                total.failed += counts.failed;
                for (panic, times) in counts.contained {
                    *total.contained.entry(panic).or_default() += times;
                }
                total.seconds += counts.seconds;
                total.failures.extend(counts.failures);
            }
        }
    }

    fn write(&self, folder: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)? + "\n";
        atomic_file::write(&folder.join("torture.json"), json)?;
        let path = folder.join("torture.md");
        page::update(&path, "# Torture", "cargo xtask torture", &self.generated())
    }

    /// The generated part of the page.
    fn generated(&self) -> String {
        let rows = self.totals.iter();
        let rows: Vec<(Sanitizer, &Counts)> =
            rows.map(|one| (one.sanitizer, &one.counts)).collect();
        let mut text = tried(&rows);
        let (mut failures, mut contained) = (String::new(), String::new());
        for Total { counts, .. } in &self.totals {
            let Counts { part, target, .. } = counts;
            for failure in &counts.failures {
                let (seed, index, reason) = (failure.seed, failure.index, &failure.reason);
                failures += &format!("- {part}, {target}, seed {seed}, index {index}: {reason}\n");
            }
            for (panic, times) in &counts.contained {
                let times = thousands(*times);
                contained += &format!("- {part}, {target}, {times} times: {panic}\n");
            }
        }
        if !failures.is_empty() {
            text += &format!("\nThe first failures of each target and run:\n\n{failures}");
        }
        if !contained.is_empty() {
            text += &format!("\nPanics of libraries that became errors:\n\n{contained}");
        }
        let columns: [Column<Run>; 6] = [
            ("code", |run| run.sanitizer.of(&run.commit)),
            ("day", |run| run.date.clone()),
            ("seed", |run| run.seed.to_string()),
            ("minutes", |run| format!("{:.0}", run.minutes)),
            ("tried", |run| thousands(run.tried)),
            ("failed", |run| thousands(run.failed)),
        ];
        text + &format!("\nRuns:\n\n{}", table(&self.runs, 2, &columns))
    }
}

#[cfg(test)]
mod tests {
    use super::counts::Failure;
    use super::*;

    fn counts(target: &str, tried: u64, failed: u64) -> Counts {
        let failure = Failure {
            seed: 1,
            index: 7,
            reason: "panics: why".into(),
        };
        Counts {
            part: "inputs".into(),
            target: target.into(),
            tried,
            failed,
            failures: vec![failure; failed as usize],
            seconds: 2.0,
            contained: [("of a library".into(), failed)].into(),
        }
    }

    #[test]
    fn counts_of_runs_add_up_and_make_the_repositorys_page() {
        let root = tempfile::tempdir().unwrap();
        let page = root.path().join("torture.md");
        fs::copy(shell::root().join("docs/results/torture.md"), &page).unwrap();
        let mut campaign = Campaign::read(&root.path().join("none.json")).unwrap();
        let [asan, tsan] = [true, false].map(|asan| Sanitizer { asan, tsan: !asan });
        for (sanitizer, counts) in [
            (Sanitizer::default(), counts("idx", 1_000, 0)),
            (Sanitizer::default(), counts("idx", 234, 1)),
            (Sanitizer::default(), counts("ts", 5, 0)),
            (asan, counts("idx", 10, 0)),
            (tsan, counts("idx", 11, 0)),
        ] {
            campaign.add(sanitizer, counts);
        }
        campaign.write(root.path()).unwrap();
        let again = Campaign::read(&root.path().join("torture.json")).unwrap();
        let tried: Vec<u64> = again.totals.iter().map(|one| one.counts.tried).collect();
        assert_eq!(tried, [1_234, 5, 10, 11]);
        let page = fs::read_to_string(page).unwrap();
        for name in ["AddressSanitizer", "ThreadSanitizer"] {
            assert!(page.contains(&format!("| inputs, {name}")), "{page}");
        }
        assert!(page.contains("1,234 |") && page.contains("308 |"), "{page}");
        assert!(
            page.contains("- inputs, idx, seed 1, index 7: panics: why"),
            "{page}"
        );
        assert!(
            page.contains("- inputs, idx, 1 times: of a library"),
            "{page}"
        );
        assert!(page.contains("Found and mended"), "what people wrote");
    }

    #[test]
    fn parts_are_those_of_the_program() {
        let program = shell::root().join("crates/arbora-torture/src/main.rs");
        let program = fs::read_to_string(program).unwrap();
        for part in Part::value_variants() {
            assert!(program.contains(&format!("(\"{}\"", part.name())));
        }
        // And one that tries the program itself.
        let count = Part::value_variants().len() + 1;
        assert!(program.contains(&format!("[(&str, Part); {count}]")));
    }
}
