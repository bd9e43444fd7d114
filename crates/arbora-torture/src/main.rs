//! What `cargo xtask torture` runs: one part, for a given time or a given number of tries, from a given seed.
//!
//! It prints what was tried and what failed as JSON. Parts are in [`PARTS`]; the targets of a part are one table in its
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
use counts::Counts;
use frame::Asked;
use std::process::ExitCode;

#[global_allocator]
static HEAP: heap::Counted = heap::Counted;

/// What a part does with what is asked of it; nothing to print from a process that is a part of a part.
type Part = fn(&Asked) -> Result<Option<Vec<Counts>>>;

/// The parts by their names: `cargo xtask torture` knows the same.
///
/// `itself` shows that what is wrong is seen, and is no part of a campaign.
const PARTS: [(&str, Part); 7] = [
    ("operators", |asked| {
        frame::run("operators", &operators::TARGETS, asked)
    }),
    ("inputs", |asked| {
        frame::run("inputs", &inputs::TARGETS, asked)
    }),
    ("kill", |asked| {
        frame::run("kill", &runs::kill::TARGETS, &asked.patient(120.0))
    }),
    ("faults", |asked| {
        frame::run("faults", &runs::faults::TARGETS, &asked.patient(120.0))
    }),
    ("serve", |asked| {
        frame::run("serve", &serve::TARGETS, &asked.patient(120.0))
    }),
    ("long", |asked| {
        frame::run("long", &long::TARGETS, &asked.patient(4.0 * 3600.0))
    }),
    ("itself", |asked| {
        frame::run("itself", &itself::TARGETS, asked)
    }),
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
    let (_, found) = PARTS
        .iter()
        .find(|(name, _)| *name == part)
        .with_context(|| format!("{part}: expected one of {}", names()))?;
    if let Some(counts) = found(&asked)? {
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
