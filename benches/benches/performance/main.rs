//! Every number of `docs/results/performance.md`, measured in one process: tree attention on each
//! backend compiled in, beside the best dense attention among those backends.
//!
//! `cargo xtask bench` runs it and writes the page. By hand:
//!
//! ```sh
//! cargo bench -p arbora-benches --bench performance --features flex,ndarray,tch,wgpu -- --quick
//! ```
//!
//! Progress goes to standard error, the numbers as JSON to the file of `--json`.

// burn 0.22 marks ndarray and libtorch as deprecated in favour of flex; they are measured all the same.
#![cfg_attr(any(feature = "ndarray", feature = "tch"), allow(deprecated))]

mod backends;
mod dense;
mod floor;
mod gpu;
mod gradient;
mod layer;
mod leaf;
mod machine;
mod measure;
mod numbers;
mod problem;
mod report;
mod scaling;
mod search;
mod targets;
mod training;

use backends::Opened;
use measure::Effort;
use numbers::Report;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

/// Threads of every measurement that does not say otherwise.
const THREADS: usize = 2;

/// Measures one subject and adds its rows to the report.
type Section = fn(&mut Bench);

/// What is measured, by the names that `--only` takes. Memory comes first: what the allocator keeps would
/// hide it.
const SECTIONS: [(&str, Section); 7] = [
    (scaling::SECTION, scaling::measure),
    ("search", search::measure),
    ("layer", layer::measure),
    ("gradient", gradient::measure),
    ("training", training::measure),
    ("leaf", leaf::measure),
    ("gpu", gpu::measure),
];

/// What a section works with.
pub struct Bench {
    /// Fewer samples and smaller shapes.
    quick: bool,
    effort: Effort,
    /// The backends on the host's processor.
    backends: Vec<Opened>,
    report: Report,
}

struct Args {
    quick: bool,
    only: Vec<String>,
    backends: Vec<String>,
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    let args = match parse(std::env::args().skip(1)) {
        Ok(args) => args,
        Err(message) => {
            eprintln!("error: {message}");
            return ExitCode::from(2);
        }
    };
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let mut args = Args {
        quick: false,
        only: Vec::new(),
        backends: Vec::new(),
        json: None,
    };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value"));
        let list = |value: String| value.split(',').map(str::to_owned).collect();
        match word.as_str() {
            // What cargo itself passes to a bench target.
            "--bench" => {}
            "--quick" => args.quick = true,
            "--json" => args.json = Some(value()?.into()),
            "--only" => args.only = list(value()?),
            "--backends" => args.backends = list(value()?),
            _ => {
                return Err(format!(
                    "unknown argument {word}; there are --quick, --only SECTION,..., --backends NAME,... \
                     and --json FILE"
                ));
            }
        }
    }
    let names = SECTIONS.map(|(name, _)| name);
    match args
        .only
        .iter()
        .find(|name| !names.contains(&name.as_str()))
    {
        Some(unknown) => Err(format!(
            "no section {unknown}; there are {}",
            names.join(", ")
        )),
        None => Ok(args),
    }
}

fn run(args: &Args) -> Result<(), String> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(THREADS)
        .build_global()
        .map_err(|error| format!("threads: {error}"))?;
    backends::set_libtorch_threads(THREADS);
    let started = Instant::now();
    let mut backends = backends::on_the_host();
    if !args.backends.is_empty() {
        backends.retain(|opened| args.backends.iter().any(|name| name == opened.name));
    }
    if backends.is_empty() {
        return Err("no such backend is compiled in: give --features flex,ndarray,tch,wgpu".into());
    }
    eprintln!("measuring the machine");
    let peaks = machine::measure(&backends, args.quick);
    let mut bench = Bench {
        quick: args.quick,
        effort: Effort::new(args.quick),
        backends,
        report: Report::new(args.quick, THREADS, peaks),
    };
    for (name, section) in SECTIONS {
        if args.only.is_empty() || args.only.iter().any(|only| only == name) {
            let begun = Instant::now();
            eprintln!("\n== {name}");
            if name != scaling::SECTION {
                // As the command line does; libtorch gains as much from it as burn-flex.
                arbora_rl::train::keep_freed_blocks();
            }
            section(&mut bench);
            eprintln!("   {:.0} s", begun.elapsed().as_secs_f64());
        }
    }
    if !args.quick {
        bench.report.targets = targets::judge(&bench.report);
    }
    bench.report.seconds = started.elapsed().as_secs_f64();
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&bench.report)
            .map_err(|error| format!("report: {error}"))?;
        std::fs::write(path, text + "\n")
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(())
}
