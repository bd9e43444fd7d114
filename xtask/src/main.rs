//! Development tasks of the Arbora workspace: `cargo xtask --help`.

mod data;
mod shell;

use std::process::ExitCode;

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
    Data(data::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Data(args) => data::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
