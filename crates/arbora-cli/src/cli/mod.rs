//! The command line.

mod compare;
mod dashboard;
mod devices;
mod eval;
mod generate;
mod grow;
mod inspect;
mod search;
mod serve;
mod train;

use crate::catch_panic::hold_panics;
use crate::families::{AnyModel, AnyTask, Preset};
use crate::message::tell;
use crate::placement::PlaceArgs;
use crate::{remote, threads};
use anyhow::{Context as _, Error, Result};
use arbora::models::tree_coder::GenerateError;
use arbora::rl::train::TrainError;
use clap::{Args, Parser, Subcommand};
use std::io::{ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;

/// Attention over trees: train, measure and look inside.
#[derive(Debug, Parser)]
#[command(name = "arbora", version, about, max_term_width = 100)]
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
  arbora train images --out runs/mine --resume
  arbora train recall
  arbora train recall --model tree-fine --from runs/recall-dense-1
  arbora train needle --set data.length=1024
  arbora train lm
  arbora train lm --set data.source=notes --set data.tokenizer.kind=bytes --set architecture.branching=3")]
    Train(TrainArgs),
    /// Train several models with one budget and put their numbers into one table.
    ///
    /// What is compared is an experiment: one made of a task and --models, or the one that a file describes (the
    /// repository has some in crates/arbora-cli/experiments). Every run is a run folder like any other. Finished ones are
    /// kept and unfinished ones resumed, so the command can be stopped at any time and called again.
    ///
    /// For lm it is a grid: trees, texts and seeds. Each tree is compared with a transformer as deep as a path
    /// through it, one of the same depth with as many parameters in all, and the same tree with random and
    /// with hashed routes. Models that are equal in several cases are one run.
    #[command(after_help = "Examples:
  arbora compare images
  arbora compare copy --models retreever,cross-attention,random-route --seeds 0,1,2
  arbora compare images --models retreever,perceiver --rates 1e-3,5e-4 --out runs/mine
  arbora compare recall --models dense,tree-fine,linformer --from runs/recall-dense-1
  arbora compare lm --branching 2,3 --heights 1,2 --widths 32,64 --seeds 0,1,2
  arbora compare lm --trees 2:2:1:64,4:1:2:32 --corpora moby-dick,data/sotu --shard 1/2 --out runs/grid
  arbora compare mine.json --hours 2 --out runs/mine --page mine.md")]
    #[command(allow_negative_numbers = true)]
    Compare(Box<compare::CompareArgs>),
    /// Measure a trained run on its test items.
    #[command(after_help = "Examples:
  arbora eval runs/images-retreever-1 --json
  arbora eval runs/images-retreever-1 --search greedy,samples=4,beam=4 --temperature 0.5
  arbora eval runs/lm-tree-coder-1 --random-route")]
    Eval(EvalArgs),
    /// Continue text with a trained language model.
    ///
    /// The tokenizer is part of the run; the text that it was trained on is not needed.
    #[command(after_help = "Examples:
  arbora generate runs/lm-tree-coder-1 --prompt 'Call me Ishmael. Some years ago'
  arbora generate runs/lm-tree-coder-1 --prompt 'The whale' --temperature 0 --stop $'\\n\\n'
  arbora generate runs/lm-tree-coder-1 --prompt 'The whale' --prompt 'The ship' --tokens 500 --reroute 64 --json")]
    Generate(generate::GenerateArgs),
    /// Draw what a trained run does with one query: the path down its tree, what it selected, how sure
    /// it was; and the curves of the run.
    ///
    /// Of a language model: how its leaves were used over training, how sure its selectors were, and which
    /// documents go to which leaf.
    #[command(after_help = "Examples:
  arbora inspect runs/images-retreever-1 --item 3 --query 400
  arbora inspect runs/copy-retreever-1 --json --out pictures
  arbora inspect runs/lm-tree-coder-1")]
    Inspect(InspectArgs),
    /// Make decisions one after the other with a trained model, which appends each observation to its context.
    ///
    /// bandit: arms of the wheel bandit, with a run of the task bandit. optimisation: where to look for
    /// the maximum of a function, with a run of the task gp. A model with a tree that encodes tokens one
    /// by one (architecture.encoder_layers = 0) appends to its tree; others encode the whole context again
    /// in every round.
    #[command(after_help = "Examples:
  arbora grow runs/bandit-retreever-1
  arbora grow runs/gp-cross-attention-1 --loop optimisation --rounds 20 --json")]
    Grow(GrowArgs),
    /// Let other processes compute on a device of this one, until Ctrl-C.
    ///
    /// They name it as they name a backend, by its address: --backend ws://HOST:PORT, or ws://HOST:PORT/1 for
    /// the second of several devices. The traffic is not encrypted, and whoever reaches the address may
    /// compute: serve one machine or a network that you trust. Where the environment variable ARBORA_TOKEN is
    /// set, only clients with the same ARBORA_TOKEN are served.
    #[command(after_help = "Examples:
  arbora serve
  arbora serve --backend cuda --devices 2 --address 0.0.0.0:3000
  arbora serve --address 127.0.0.1:0 --json")]
    Serve(ServeArgs),
    /// List the backends compiled in: their adapters and drivers, which can run on this machine, and which one
    /// a command takes without --backend.
    #[command(after_help = "Examples:
  arbora devices
  BURN_DEVICE=wgpu arbora devices --json")]
    Devices(devices::DevicesArgs),
}

/// Arguments of `train`.
#[derive(Debug, Args)]
struct TrainArgs {
    /// What to learn.
    task: AnyTask,
    /// Which model learns it [default: retreever; for recall and needle: dense; for lm: tree-coder].
    #[arg(long)]
    model: Option<AnyModel>,
    /// The settings that others are changed from: small takes minutes, published hours to days.
    #[arg(long, default_value = "small", conflicts_with = "resume")]
    preset: Preset,
    /// A JSON file with any part of the settings.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// One setting, by its path in config.json. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    backend: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Seed of weights, data and decisions.
    #[arg(long, allow_negative_numbers = true)]
    seed: Option<u64>,
    /// For recall and needle: start from the weights of the trained run in this folder, whose architecture
    /// must be the same but for its attention. Trees of the same shape keep their weights; new ones split its
    /// activations evenly, unless trees.median_split is false.
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    from: Option<PathBuf>,
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

/// Where the data of a run lie.
#[derive(Debug, Args)]
struct DataArgs {
    /// Where data of the run that have moved lie now: data.path=FOLDER, data.source=FILE and so on, as in its
    /// config.json. They must be the same data.
    #[arg(long = "set", value_name = "KEY=PATH")]
    moved: Vec<String>,
}

/// Arguments of `eval`.
#[derive(Debug, Args)]
struct EvalArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    backend: Option<String>,
    #[command(flatten)]
    place: PlaceArgs,
    /// Walk the trees at random instead of by the learned policy.
    #[arg(long)]
    random_route: bool,
    /// How to search: greedy, samples=K or beam=W. Several, separated by commas, are compared in one
    /// table [default: greedy].
    #[arg(
        long,
        value_name = "SEARCH",
        value_delimiter = ',',
        value_parser = search::strategy,
        conflicts_with = "random_route"
    )]
    search: Vec<crate::families::retrieval::Strategy>,
    /// Divides the policy's logits while searching: below 1 sharpens samples and beams.
    #[arg(
        long,
        default_value_t = 1.0,
        requires = "search",
        allow_negative_numbers = true,
        value_parser = search::temperature
    )]
    temperature: f64,
    /// Also write the table of searches to this Markdown file.
    #[arg(long, value_name = "FILE", requires = "search")]
    markdown: Option<PathBuf>,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Arguments of `inspect`.
#[derive(Debug, Args)]
struct InspectArgs {
    /// The run's folder.
    run: PathBuf,
    #[command(flatten)]
    data: DataArgs,
    /// Which test item, from 0 [default: 0].
    #[arg(long, allow_negative_numbers = true)]
    item: Option<usize>,
    /// Which of its queries, from 0; for images the pixel, row by row [default: the middle of an
    /// image, otherwise 0].
    #[arg(long, allow_negative_numbers = true)]
    query: Option<usize>,
    /// Where the pictures go [default: the folder `inspect` in the run's].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    backend: Option<String>,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Arguments of `grow`.
#[derive(Debug, Args)]
struct GrowArgs {
    /// The run's folder.
    run: PathBuf,
    /// Which loop [default: the one that fits the run's task].
    #[arg(long = "loop", value_name = "LOOP")]
    kind: Option<grow::Loop>,
    /// Choices made in each environment, 1 to 65536 [default: bandit 500, optimisation 40].
    #[arg(
        long,
        value_parser = clap::value_parser!(u64).range(1..=65_536),
        allow_negative_numbers = true
    )]
    rounds: Option<u64>,
    /// Independent environments (for the bandit: of each radius), 1 to 4096 [default: bandit 10, optimisation 50].
    #[arg(
        long,
        value_parser = clap::value_parser!(u64).range(1..=4_096),
        allow_negative_numbers = true
    )]
    repeats: Option<u64>,
    /// How predictions become choices.
    #[arg(long, default_value = "thompson")]
    choice: crate::grow::Choice,
    /// Seed of worlds and choices.
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    seed: u64,
    /// Where to compute: a backend compiled in, or ws://HOST:PORT where `arbora serve` listens.
    #[arg(long)]
    backend: Option<String>,
    /// Where the curves go [default: the run's folder].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
    /// Print the numbers as JSON on standard output.
    #[arg(long)]
    json: bool,
}

/// Arguments of `serve`.
#[derive(Debug, Args)]
struct ServeArgs {
    /// Where to compute; one of the backends compiled in but libtorch.
    #[arg(long)]
    backend: Option<String>,
    /// Where to listen. Port 0 lets the system choose; the address is printed.
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    address: String,
    /// How many devices to serve: accelerators for cuda and rocm, otherwise one device several times.
    #[arg(long, default_value = "1", allow_negative_numbers = true)]
    devices: std::num::NonZeroU8,
    /// Print the address as JSON, in the first line of standard output.
    #[arg(long)]
    json: bool,
}

/// Runs the command line of this process.
///
/// Exit codes: 0 done; 130 stopped by Ctrl-C, SIGTERM or SIGHUP with a checkpoint; 1 a computation that failed (a loss that
/// is not finite, a device that gave up, a server of devices that is gone); 2 anything that the caller can mend: arguments, settings, data,
/// run folders, a disk that is full, a driver that is missing.
pub fn main() -> ExitCode {
    arbora::rl::train::keep_freed_blocks();
    // A file over the limit of the process (`ulimit -f`) is an error of its write then, and no end without a word.
    #[cfg(unix)]
    let _ = signal_hook::flag::register(libc::SIGXFSZ, std::sync::Arc::default());
    hold_panics(run)
}

fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(refused) => return refuse(&refused),
    };
    remote::end_on_loss(end);
    let outcome = threads::start().and_then(|()| match cli.command {
        Command::Train(args) => train::run(args),
        Command::Compare(args) => compare::run(*args),
        Command::Eval(args) => eval::run(args),
        Command::Generate(args) => generate::run(args),
        Command::Inspect(args) => inspect::run(args),
        Command::Grow(args) => grow::run(args),
        Command::Serve(args) => serve::run(args),
        Command::Devices(args) => devices::run(&args),
    });
    match outcome {
        Ok(code) => {
            remote::finish();
            code
        }
        Err(error) => {
            // Whatever failed may have failed over it.
            if let Some(lost) = remote::lost() {
                end(&lost);
            }
            remote::finish();
            tell!("error: {}", one_line(&error));
            ExitCode::from(exit_code(&error))
        }
    }
}

/// Ends the process over a server that is lost.
fn end(lost: &str) -> ! {
    remote::finish();
    let kept = remote::saved(None).map(|kept| format!("; {kept}"));
    // A closed standard error does not keep the process alive.
    tell!(
        "error: {}",
        words(&format!("{lost}{}", kept.unwrap_or_default()))
    );
    std::process::exit(1)
}

/// Help and version as clap prints them, and so the help where there is no command; any other refusal of arguments in one
/// line like every other, with what clap suggests.
fn refuse(refused: &clap::Error) -> ExitCode {
    let is_help =
        refused.kind() == clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
    if is_help || !refused.use_stderr() {
        // Whoever stopped reading has seen enough.
        let _ = refused.print();
        return ExitCode::from(refused.exit_code() as u8);
    }
    let text = refused.to_string();
    let mut parts = text.split("\n\n");
    // The others are the usage and a pointer to --help.
    let cause = parts.next().map(words).unwrap_or_default();
    let tips = parts.flat_map(str::lines);
    let tips = tips.filter_map(|line| line.trim().strip_prefix("tip: "));
    let line = tips.fold(cause, |line, tip| format!("{line}; {}", words(tip)));
    tell!("{line}");
    ExitCode::from(2)
}

/// Writes a result to standard output. Whoever stopped reading it has seen enough.
pub fn show(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}

/// The end of a command that Ctrl-C stopped, with how to go on.
pub fn interrupted(message: &str) -> Result<ExitCode> {
    tell!("{message}");
    Ok(ExitCode::from(130))
}

/// An error and its causes in one line. A cause that the text above it quotes
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
    words(&text)
}

/// A text in one line, whatever it contains.
fn words(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn exit_code(error: &Error) -> u8 {
    use TrainError::{Device, NonFinite, Signal};
    let trained = error.chain().find_map(|cause| cause.downcast_ref());
    match (trained, error.downcast_ref()) {
        (Some(NonFinite { .. } | Device(_) | Signal(_)), _) => 1,
        (_, Some(GenerateError::NotFinite { .. })) => 1,
        _ => 2,
    }
}
