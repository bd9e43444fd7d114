//! `cargo xtask bench`: `docs/results/performance.md`, from measuring to text.

// What the benchmark writes, as it declares it.
#[path = "../../../benches/benches/performance/numbers.rs"]
mod numbers;
mod table;

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::backend::Backend;
use crate::page;
use crate::provision::{self, Environment};
use crate::{atomic_file, origin, shell};
use numbers::Report;

/// Measure tree attention beside dense attention and write the page of results.
///
/// Everything runs in one process: each backend asked for, and the dense attention of libtorch and
/// burn-flex where those are among them. Prints one table. A full run writes docs/results/performance.md
/// and the same numbers as performance.json beside it; the text of the page outside its generated part
/// is kept. With --quick or --only it prints, and leaves the numbers under target/.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask bench
  cargo xtask bench --quick
  cargo xtask bench --only search,gradient --backends flex,tch")]
pub struct Args {
    /// Fewer samples and smaller shapes: minutes less, and no numbers to keep.
    #[arg(long)]
    quick: bool,
    /// Only these sections: search, layer, scaling, gradient, training, leaf, gpu.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// The backends to measure.
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Backend::TESTED)]
    backends: Vec<Backend>,
}

/// What the generated part of the page is marked with.
const GENERATOR: &str = "cargo xtask bench";

/// Everything behind the page.
#[derive(Serialize)]
struct Results {
    command: &'static str,
    commit: String,
    date: String,
    machine: Machine,
    memory_gib: Option<f64>,
    /// As the benchmark wrote it.
    measured: Value,
}

#[derive(Serialize)]
struct Machine {
    cpu: String,
    threads: usize,
}

/// Fails when a backend other than those of a GPU cannot be provided for, the benchmark fails, or a page
/// cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let mut environment = Environment::default();
    let mut backends = Vec::new();
    for &backend in &args.backends {
        match provision::provide(backend, &mut environment) {
            Ok(()) => backends.push(backend.name()),
            // A machine without a driver still has a processor to measure.
            Err(error) if backend == Backend::Wgpu => println!("wgpu is left out: {error:#}"),
            Err(error) => return Err(error),
        }
    }
    ensure!(!backends.is_empty(), "no backend to measure");
    let whole = !args.quick && args.only.is_empty() && args.backends == Backend::TESTED;

    let root = shell::root();
    let folder = root.join("target/bench");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let name = if args.quick { "quick" } else { "full" };
    let numbers = folder.join(name).with_extension("json");
    let mut cargo = shell::cargo();
    cargo.args(["bench", "--package", "arbora-benches"]);
    cargo.args(["--bench", "performance", "--features"]);
    cargo.arg(backends.join(",")).args(["--", "--json"]);
    cargo.arg(&numbers);
    if args.quick {
        cargo.arg("--quick");
    }
    if !args.only.is_empty() {
        cargo.args(["--only", &args.only.join(",")]);
    }
    // Pages are about the code as it was when measuring began.
    let made = whole.then(origin::now).transpose()?;
    shell::run(environment.apply(&mut cargo))?;

    let text = fs::read_to_string(&numbers)
        .with_context(|| format!("cannot read {}", numbers.display()))?;
    let report: Report = serde_json::from_str(&text).context("output of the benchmark")?;
    println!("\n{}", table::terminal(&report));
    let Some((commit, date)) = made else {
        println!("numbers: {}", numbers.display());
        return Ok(());
    };
    let model = system("/proc/cpuinfo", "model name");
    let memory = system("/proc/meminfo", "MemTotal");
    let kilobytes = memory.and_then(|text| text.strip_suffix("kB")?.trim().parse::<f64>().ok());
    let results = Results {
        command: GENERATOR,
        commit,
        date,
        machine: Machine {
            cpu: model.unwrap_or_else(|| format!("{} CPU", std::env::consts::ARCH)),
            threads: std::thread::available_parallelism().map_or(1, |count| count.get()),
        },
        memory_gib: kilobytes.map(|kilobytes| kilobytes / (1 << 20) as f64),
        measured: serde_json::from_str(&text).context("output of the benchmark")?,
    };
    write(&results, &report, &root)
}

fn write(results: &Results, report: &Report, root: &Path) -> Result<()> {
    let folder = root.join("docs/results");
    let json = serde_json::to_string_pretty(results)? + "\n";
    atomic_file::write(&folder.join("performance.json"), json)?;
    let generated = format!("{}\n{}", preamble(results, report), table::page(report));
    let path = folder.join("performance.md");
    page::update(&path, "# Performance", GENERATOR, &generated)?;
    println!("wrote docs/results/performance.md and performance.json");
    Ok(())
}

fn preamble(results: &Results, report: &Report) -> String {
    let memory = results.memory_gib;
    let memory = memory.map_or(String::new(), |gib| format!(", {gib:.0} GiB of memory"));
    format!(
        "```sh\n{}\n```\n\nMeasured on {} at {} on {} with {} cores{memory}, in {:.0} minutes.\n",
        results.command,
        results.date,
        results.commit,
        results.machine.cpu,
        results.machine.threads,
        report.seconds / 60.0
    )
}

/// What a file of Linux says of `key`, in a line `key: value`.
fn system(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let mut entries = text.lines().filter_map(|line| line.split_once(':'));
    let (_, value) = entries.find(|(name, _)| name.trim() == key)?;
    Some(value.trim().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repositorys_page_takes_the_tables() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("docs/results");
        fs::create_dir_all(&folder).unwrap();
        let page = folder.join("performance.md");
        fs::copy(shell::root().join("docs/results/performance.md"), &page).unwrap();
        let results = Results {
            command: GENERATOR,
            commit: "commit 1234567".into(),
            date: "2026-01-01".into(),
            machine: Machine {
                cpu: "some CPU".into(),
                threads: 2,
            },
            memory_gib: Some(24.0),
            measured: Value::Null,
        };
        write(&results, &table::tests::report(), root.path()).unwrap();
        let page = fs::read_to_string(page).unwrap();
        assert!(
            page.contains(
                "at commit 1234567 on some CPU with 2 cores, 24 GiB of memory, in 10 minutes."
            ),
            "{page}"
        );
        assert!(page.contains("| 20.0 × |") && page.contains("How to read the tables."));
        assert!(folder.join("performance.json").is_file());
    }
}
