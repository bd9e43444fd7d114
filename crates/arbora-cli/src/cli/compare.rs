//! `arbora compare`: several models, one budget, one table.

use crate::experiment::{
    Asked, Experiment, Row, TREE_CODER, quoted, refuse_doubled, run as run_experiment,
};
use crate::families::{AnyModel, AnyTask, Family, Preset, named, names, of_family};
use anyhow::{Context as _, Result, bail};
use clap::{Args, ValueEnum as _};
use std::path::Path;
use std::process::ExitCode;

/// Arguments of `compare`.
#[derive(Debug, Args)]
pub struct CompareArgs {
    /// What to learn, or the file of an experiment.
    #[arg(value_name = "TASK|FILE.json")]
    what: String,
    /// Which models learn it [default for images: retreever,cross-attention; for lm: all].
    #[arg(long, value_name = "MODELS", value_delimiter = ',')]
    models: Vec<AnyModel>,
    /// The settings that others are changed from: small takes minutes, published hours to days [default: small].
    #[arg(long)]
    preset: Option<Preset>,
    /// One run of each model per seed [default: 0, or the seeds of the experiment].
    #[arg(
        long,
        value_name = "SEEDS",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    seeds: Vec<u64>,
    /// Candidate learning rates: each model takes the one that is best on the first seed.
    #[arg(
        long,
        value_name = "RATES",
        value_delimiter = ',',
        allow_negative_numbers = true
    )]
    rates: Vec<f64>,
    #[command(flatten)]
    asked: Asked,
}

pub fn run(mut args: CompareArgs) -> Result<ExitCode> {
    refuse_doubled("--models", args.models.iter().map(|model| model.name()))?;
    refuse_doubled("--seeds", &args.seeds)?;
    refuse_doubled("--rates", &args.rates)?;
    let experiment = match AnyTask::from_str(&args.what, false) {
        Ok(task) => of_task(&mut args, task)?,
        Err(_) => of_file(&args)?,
    };
    args.asked.command = command(&args);
    args.asked.is_part = !args.seeds.is_empty()
        || !args.rates.is_empty()
        || args.asked.from.is_some()
        || args.asked.has_settings();
    let task: AnyTask = named(&experiment.task).context("task")?;
    of_family!(task, run_experiment(&experiment, &args.asked))
}

/// The experiment of a file, with other seeds or rates where they are asked for.
fn of_file(args: &CompareArgs) -> Result<Experiment> {
    let path = Path::new(&args.what);
    if path
        .extension()
        .is_none_or(|ending| !ending.eq_ignore_ascii_case("json"))
    {
        bail!(
            "{}: expected one of {}, or a file of an experiment (.json)",
            args.what,
            names::<AnyTask>().join(", ")
        );
    }
    let mut experiment = Experiment::read(path)?;
    for (option, given) in [
        ("--models", !args.models.is_empty()),
        ("--preset", args.preset.is_some()),
    ] {
        if given {
            bail!(
                "{option}: cannot be combined with {}, which sets it",
                args.what
            );
        }
    }
    args.asked.grid.refuse(&args.what)?;
    if !args.seeds.is_empty() {
        experiment.seeds = args.seeds.clone();
        experiment.rows.iter_mut().for_each(|row| row.seeds = None);
    }
    if !args.rates.is_empty() {
        if experiment.grid.is_some() {
            bail!(ONE_RATE);
        }
        experiment.rates = args.rates.clone();
    }
    Ok(experiment)
}

const ONE_RATE: &str =
    "--rates: a grid has one learning rate; give it by --set trainer.learning_rate=RATE";

/// An experiment of models that learn a task, with the words and the published numbers of the one that has its name.
fn of_task(args: &mut CompareArgs, task: AnyTask) -> Result<Experiment> {
    let is_grid = matches!(task, AnyTask::Language(_));
    let mut models = args.models.clone();
    if !is_grid {
        args.asked.grid.refuse(task.name())?;
    } else if !args.rates.is_empty() {
        bail!(ONE_RATE);
    }
    let bundled = Experiment::bundled(task.name())?;
    if models.is_empty() {
        let default: &[&str] = match task.name() {
            "images" => &["retreever", "cross-attention"],
            "lm" => &[
                TREE_CODER,
                "linear-active",
                "linear-total",
                "random-route",
                "hash-route",
            ],
            name => bail!("--models: name one or more of those that learn {name}"),
        };
        models = default
            .iter()
            .map(|name| named(name))
            .collect::<Result<_>>()?;
    }
    if is_grid && models.iter().all(|model| model.name() != TREE_CODER) {
        bail!("--models: expected tree-coder among the models of a grid");
    }
    args.asked.is_grid = is_grid;
    let row = |model: AnyModel| Ok(Row::of_model(of_family!(task, model_of(model))?));
    let seeds = match args.seeds.as_slice() {
        [] => vec![0],
        seeds => seeds.to_vec(),
    };
    let rows: Vec<Row> = models.into_iter().map(row).collect::<Result<_>>()?;
    Ok(Experiment::of_models(
        task.name(),
        args.preset.unwrap_or_default(),
        seeds,
        rows,
        args.rates.clone(),
        bundled,
    ))
}

fn model_of<F: Family>(model: AnyModel) -> Result<&'static str> {
    model.of::<F>()
}

/// The command as it was called, less what changes no number and the places of files.
fn command(args: &CompareArgs) -> String {
    const SILENT: [&str; 4] = ["--json", "--only-table", "--plan", "--again"];
    const PLACES: [&str; 7] = [
        "--out",
        "--page",
        "--readme",
        "--made-by",
        "--shard",
        "--hours",
        "--backend",
    ];
    let mut words = std::env::args().skip(2);
    let mut kept = vec![args.asked.made_by.clone()];
    let is_named = args.asked.made_by != "arbora compare";
    while let Some(word) = words.next() {
        let name = word.split('=').next().unwrap_or_default();
        if PLACES.contains(&name) {
            if !word.contains('=') {
                words.next();
            }
        } else if !(SILENT.contains(&word.as_str()) || is_named && word == args.what) {
            kept.push(quoted(&word));
        }
    }
    kept.join(" ")
}
