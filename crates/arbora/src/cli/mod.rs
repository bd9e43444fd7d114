//! The command line.

mod dashboard;
mod eval;
mod inspect;
mod train;
mod trained;

use crate::config::{ModelKind, Preset, Task};
use anyhow::{Context as _, Error, Result};
use arbora_rl::train::TrainError;
use clap::{Args, Parser, Subcommand};
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Attention over trees: train, measure and look inside.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a model; leaves a run folder with checkpoints, numbers, curves and pictures.
    #[command(after_help = "Examples:
  arbora train images
  arbora train copy --set data.length=256
  arbora train gp --model cross-attention
  arbora train images --set trainer.steps=2000 --set architecture.order=morton --out runs/mine
  arbora train images --set 'data={\"kind\":\"folder\",\"path\":\"faces\",\"size\":[32,32],\"held_out\":40}'
  arbora train images --out runs/mine --resume")]
    Train(TrainArgs),
    /// Measure a trained run on its test items.
    #[command(after_help = "Example:
  arbora eval runs/images-retreever-1 --json")]
    Eval(EvalArgs),
    /// Draw what a trained run does with one query: the path down its tree, what it selected, how sure
    /// it was; and the curves of the run.
    #[command(after_help = "Examples:
  arbora inspect runs/images-retreever-1 --item 3 --query 400
  arbora inspect runs/copy-retreever-1 --json --out pictures")]
    Inspect(InspectArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
struct TrainArgs {
    /// What to learn.
    task: Task,
    /// Which model learns it [default: retreever].
    #[arg(long)]
    model: Option<ModelKind>,
    /// Where settings start.
    #[arg(long, default_value = "small", conflicts_with = "resume")]
    preset: Preset,
    /// A JSON file with any part of the settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, by its path in config.json. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Where to compute; one of the backends compiled in.
    #[arg(long)]
    backend: Option<String>,
    /// Seed of weights, data and decisions.
    #[arg(long)]
    seed: Option<u64>,
    /// The run's folder [default: runs/TASK-MODEL-N with the first free N].
    #[arg(long, value_name = "FOLDER", required_if_eq("resume", "true"))]
    out: Option<PathBuf>,
    /// Continue the run in the folder, with its own settings.
    #[arg(long)]
    resume: bool,
    /// Plot the run in the terminal while it trains, in place of the progress bar.
    #[arg(long, conflicts_with = "json")]
    dashboard: bool,
    /// Print the final numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
struct EvalArgs {
    /// The run's folder.
    run: PathBuf,
    /// Where to compute; one of the backends compiled in.
    #[arg(long)]
    backend: Option<String>,
    /// Walk the trees at random instead of by the learned policy.
    #[arg(long)]
    random_route: bool,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
struct InspectArgs {
    /// The run's folder.
    run: PathBuf,
    /// Which test item, from 0 [default: 0].
    #[arg(long)]
    item: Option<usize>,
    /// Which of its queries, from 0; for images the pixel, row by row [default: the middle of an
    /// image, otherwise 0].
    #[arg(long)]
    query: Option<usize>,
    /// Where the pictures go [default: the folder `inspect` in the run's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Where to compute; one of the backends compiled in.
    #[arg(long)]
    backend: Option<String>,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process.
///
/// Exit codes: 0 done; 130 stopped by Ctrl-C with a checkpoint; 1 a computation that failed (a loss that
/// is not finite, a device that gave up); 2 anything that the caller can mend: arguments, settings, data,
/// run folders, a disk that is full, a driver that is missing.
pub fn main() -> ExitCode {
    crate::memory::keep_freed_blocks();
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return refuse(&refused),
    };
    let outcome = match cli.command {
        Command::Train(args) => train::run(args),
        Command::Eval(args) => eval::run(args),
        Command::Inspect(args) => inspect::run(args),
    };
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {}", one_line(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Help and version as clap prints them; a refusal of arguments in one line like every other.
fn refuse(refused: &clap::Error) -> ExitCode {
    if !refused.use_stderr() {
        // Whoever stopped reading has seen enough.
        let _ = refused.print();
        return ExitCode::SUCCESS;
    }
    let text = refused.to_string();
    // What follows the first blank line is the usage and a pointer to --help.
    let cause = text.split("\n\n").next().unwrap_or_default();
    eprintln!("{}", cause.split_whitespace().collect::<Vec<_>>().join(" "));
    ExitCode::from(2)
}

/// Writes a result to standard output. Whoever stopped reading it has seen enough.
fn show(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// Writes a file beside its place and renames it: it is whole or absent.
fn write_whole(path: &Path, text: &str) -> Result<()> {
    let mut beside = OsString::from(path);
    beside.push(".unfinished");
    std::fs::write(&beside, text)
        .and_then(|()| std::fs::rename(&beside, path))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// An error and its causes in one line, whatever they contain. A cause that the text above it quotes
/// already is not repeated.
fn one_line(error: &Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(|cause| cause.to_string()) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn exit_code(error: &Error) -> u8 {
    match error
        .chain()
        .find_map(|cause| cause.downcast_ref::<TrainError>())
    {
        Some(TrainError::NonFinite { .. } | TrainError::Device(_) | TrainError::Signal(_)) => 1,
        _ => 2,
    }
}
