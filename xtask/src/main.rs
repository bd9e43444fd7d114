//! Development tasks of the Arbora workspace: `cargo xtask --help`.

mod backend;
mod bench;
mod ci;
mod columns;
mod data;
mod origin;
mod outside;
// The command line writes such pages and tables too. Its files are shared, since a dependency on its crate would compile burn.
#[path = "../../crates/arbora-cli/src/atomic_file.rs"]
mod atomic_file;
#[path = "../../crates/arbora-cli/src/experiment/page.rs"]
mod page;
mod provision;
mod reproduce;
mod shell;
#[path = "../../crates/arbora-cli/src/table.rs"]
mod table;
mod test_all_backends;
mod torture;
mod workspace;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Development tasks of the Arbora workspace.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    Provision(provision::Args),
    TestAllBackends(test_all_backends::Args),
    Ci(ci::Args),
    Data(data::Args),
    Bench(bench::Args),
    Reproduce(reproduce::Args),
    Torture(torture::Args),
    Outside(outside::Args),
}

impl Task {
    /// As it is without options.
    fn named(name: &str) -> Self {
        Cli::parse_from(["cargo xtask", name]).task
    }

    fn run(&self) -> Result<()> {
        match self {
            Self::Provision(args) => provision::run(args),
            Self::TestAllBackends(args) => test_all_backends::run(args),
            Self::Ci(args) => ci::run(args),
            Self::Data(args) => data::run(args),
            Self::Bench(args) => bench::run(args),
            Self::Reproduce(args) => reproduce::run(args),
            Self::Torture(args) => torture::run(args),
            Self::Outside(args) => outside::run(args),
        }
    }
}

fn main() -> ExitCode {
    match Cli::parse().task.run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
