//! What `cargo xtask torture` runs: one part, for a given time or a given number of tries, from a given seed.
//!
//! It prints what was tried and what failed as JSON. Parts are in [`PARTS`]; the targets of a part are one list in its
//! module.

mod counts;
mod frame;
mod heap;
mod inputs;
mod itself;
mod long;
mod operators;
mod runs;
mod serve;

use anyhow::{Context as _, Result};
use clap::Parser;
use frame::{Asked, Target};
use std::process::ExitCode;

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

/// The targets of a part, and how many seconds one try may take where `--longest` does not say it: where it is whole processes.
type Part = (fn() -> Vec<Target>, Option<f64>);

/// The parts by their names: `cargo xtask torture` knows the same.
///
/// `itself` shows that what is wrong is seen, and is no part of a campaign.
const PARTS: [(&str, Part); 7] = [
    ("operators", (operators::targets, None)),
    ("inputs", (inputs::targets, None)),
    ("kill", (runs::kill::targets, Some(120.0))),
    ("faults", (runs::faults::targets, Some(120.0))),
    ("serve", (serve::targets, Some(120.0))),
    ("long", (long::targets, Some(4.0 * 3600.0))),
    ("itself", (itself::targets, None)),
];

/// One part of a campaign.
#[derive(Parser)]
#[command(name = "torture")]
struct Cli {
    /// Which part.
    part: String,
    #[command(flatten)]
    asked: Asked,
}

fn run() -> Result<()> {
    let Cli { part, asked } = Cli::parse();
    let names = || PARTS.map(|(name, _)| name).join(", ");
    let (_, (targets, longest)) = PARTS
        .iter()
        .find(|(name, _)| *name == part)
        .with_context(|| format!("{part}: expected one of {}", names()))?;
    let longest = longest.unwrap_or(asked.longest);
    if let Some(counts) = frame::run(&part, &targets(), &asked, longest)? {
        println!("{}", serde_json::to_string(&counts)?);
    }
    Ok(())
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
