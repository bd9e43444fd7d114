//! Development tasks of the Arbora workspace: `cargo xtask --help`.

mod backend;
mod bench;
mod ci;
mod data;
mod origin;
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
#[cfg(test)]
mod tidy;
mod torture;
mod workspace;

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
    Provision(provision::Args),
    TestAllBackends(test_all_backends::Args),
    Ci(ci::Args),
    Data(data::Args),
    Bench(bench::Args),
    Reproduce(reproduce::Args),
    Torture(torture::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Provision(args) => provision::run(&args),
        Task::TestAllBackends(args) => test_all_backends::run(&args),
        Task::Ci(args) => ci::run(&args),
        Task::Data(args) => data::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Reproduce(args) => reproduce::run(&args),
        Task::Torture(args) => torture::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
