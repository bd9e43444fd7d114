//! `cargo xtask reproduce`: the tables of `docs/results`, from training to text.

mod experiments;
mod grid;
mod runs;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use clap::builder::PossibleValue;
use serde_json::Value;

use crate::page::{self, Machine};
use crate::shell;
use experiments::{AT_RANDOM, Column, Experiment, Name};
use runs::{Run, State};
use table::{Measured, Reached, Results, Settings};

/// Train the models of a results table and write the table.
///
/// Finished runs are kept and unfinished ones resumed, so the command can be stopped at any time and
/// called again. Every number of the table is measured on all test items from the runs' last
/// checkpoints. The text of the table's page outside its generated part is kept.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask reproduce images
  cargo xtask reproduce images --steps 2000 --set trainer.eval_every=500
  cargo xtask reproduce copy --plan
  cargo xtask reproduce copy --only-table --partial
  cargo xtask reproduce lm")]
pub struct Args {
    /// What to reproduce.
    what: What,
    /// Training steps of each run. New runs take the row's or the preset's without it.
    #[arg(long)]
    steps: Option<u64>,
    /// One run of each row per seed [default: the seeds of the row].
    #[arg(long, value_delimiter = ',')]
    seeds: Vec<u64>,
    /// A setting of every run, as `arbora train --set` takes it. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Train nothing: measure the finished runs again and write the table.
    #[arg(long)]
    only_table: bool,
    /// Write the table without the runs that are not finished, and say so.
    #[arg(long, requires = "only_table")]
    partial: bool,
    /// Train, measure and write nothing: print how far each run is and the command that trains it.
    #[arg(long, conflicts_with = "only_table")]
    plan: bool,
    /// The `arbora` that trains and measures [default: the one compiled in release].
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
}

/// What can be reproduced: tables of rows, and the grid of language models.
#[derive(Clone, Copy, PartialEq, Eq)]
enum What {
    Table(Name),
    Grid,
}

impl ValueEnum for What {
    fn value_variants<'a>() -> &'a [Self] {
        use What::{Grid, Table};
        &[
            Table(Name::Images),
            Table(Name::Orders),
            Table(Name::Series),
            Table(Name::Gp),
            Table(Name::Copy),
            Table(Name::CopyAblation),
            Table(Name::Recall),
            Table(Name::Needle),
            Table(Name::RecallAblation),
            Grid,
            Table(Name::LmBalance),
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        match self {
            Self::Table(name) => name.to_possible_value(),
            Self::Grid => Some(
                PossibleValue::new("lm")
                    .help("Language models: trees and their controls over a grid, on two texts"),
            ),
        }
    }
}

/// Runs the task.
///
/// # Errors
/// When a run fails or holds other settings than asked for, or a page cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let What::Table(name) = args.what else {
        return grid::run(args);
    };
    let experiment = name.experiment();
    let root = shell::root();
    let planned = plan(experiment, args)?;

    // All mistakes before the first hour of training.
    let mut states = Vec::new();
    for run in &planned {
        states.push(run.state(&root)?);
    }
    if args.plan {
        for (run, state) in planned.iter().zip(&states) {
            println!("{}: {}", run.folder.display(), state.told());
            if *state != State::Finished {
                let command = run.training(Path::new("arbora"), *state, &root);
                println!("  {}", shell::shown(&command));
            }
        }
        return Ok(());
    }
    let (finished, missing) = match args.only_table {
        true => {
            let (finished, missing) = split(planned, &states);
            if !missing.is_empty() && (!args.partial || finished.is_empty()) {
                bail!("not finished: {}", missing.join(", "));
            }
            (finished, missing)
        }
        false => (planned, Vec::new()),
    };

    let program = match &args.program {
        // Commands are started in the root of the workspace, wherever this one was.
        Some(program) => std::path::absolute(program)
            .with_context(|| format!("cannot find {}", program.display()))?,
        None => build()?,
    };
    for (at, run) in finished.iter().enumerate() {
        let state = run.state(&root)?;
        println!(
            "[{}/{}] {}: {}",
            at + 1,
            finished.len(),
            run.folder.display(),
            state.plan()
        );
        if state != State::Finished {
            train(&mut run.training(&program, state, &root))?;
        }
    }

    // Before the measuring, which takes minutes: these can refuse.
    let settings = shared_settings(experiment, &finished, args, &root)?;
    let mut rows = Vec::new();
    for run in &finished {
        println!("measuring {}", run.folder.display());
        rows.push(measure(experiment, run, false, &program, &root)?);
        if run.row.at_random.is_some() {
            println!("measuring {}, walking at random", run.folder.display());
            rows.push(measure(experiment, run, true, &program, &root)?);
        }
    }
    let results = Results {
        command: command_line(experiment, args, &rows),
        machine: Machine::this(),
        date: page::today()?,
        not_finished: missing,
        settings,
        summary: table::summarise(experiment, &rows),
        runs: rows,
    };
    write(experiment, &results, &root)
}

/// All runs of an experiment, seed by seed: a table over the seeds that are complete is then fair at any
/// time.
fn plan(experiment: &'static Experiment, args: &Args) -> Result<Vec<Run>> {
    let of = |row: &experiments::Row| match args.seeds.is_empty() {
        true => row.seeds.to_vec(),
        false => args.seeds.clone(),
    };
    let mut seeds: Vec<u64> = experiment.rows.iter().flat_map(of).collect();
    seeds.sort_unstable();
    seeds.dedup();
    let mut planned = Vec::new();
    for seed in seeds {
        for row in experiment.rows.iter().filter(|row| of(row).contains(&seed)) {
            planned.push(Run::new(experiment, row, seed, args)?);
        }
    }
    Ok(planned)
}

/// The finished runs, and the names of the others.
fn split(planned: Vec<Run>, states: &[State]) -> (Vec<Run>, Vec<String>) {
    let (mut finished, mut missing) = (Vec::new(), Vec::new());
    for (run, state) in planned.into_iter().zip(states) {
        match state {
            State::Finished => finished.push(run),
            _ => missing.push(format!("{}-seed{}", run.row.name, run.seed)),
        }
    }
    (finished, missing)
}

/// Compiles the command line in release and returns where it is.
fn build() -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "arbora-cli",
        "--bin",
        "arbora",
    ]);
    cargo.args(["--message-format", "json-render-diagnostics"]);
    println!("compiling arbora");
    let output = cargo.stderr(std::process::Stdio::inherit()).output();
    let output = output.context("cannot start cargo")?;
    ensure!(output.status.success(), "arbora does not compile");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|message| message["target"]["name"] == "arbora")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .context("cargo built no program `arbora`")
}

fn train(command: &mut Command) -> Result<()> {
    println!("{}", shell::shown(command));
    let status = command.status().context("cannot start arbora")?;
    match status.code() {
        Some(0) => Ok(()),
        Some(130) => bail!("stopped; call the same command again to continue"),
        _ => bail!("`{}` failed ({status})", shell::shown(command)),
    }
}

/// Measures one run on all test items, walking as it was trained or at random.
fn measure(
    experiment: &Experiment,
    run: &Run,
    at_random: bool,
    program: &Path,
    root: &Path,
) -> Result<Measured> {
    let mut command = Command::new(program);
    command
        .current_dir(root)
        .arg("eval")
        .arg(&run.folder)
        .arg("--json");
    if at_random {
        command.arg("--random-route");
    }
    let text = shell::output(&mut command)?;
    let measured: Value = serde_json::from_str(&text).context("output of arbora eval")?;
    let steps = run.steps(root)?;
    ensure!(
        measured["step"] == steps,
        "{}: expected a checkpoint of step {steps}, got {}",
        run.folder.display(),
        measured["step"]
    );
    let missing = |key: &str| format!("output of arbora eval: no {key}");
    let whole = |key: &str| measured[key].as_u64().with_context(|| missing(key));
    let word = |key: &str| {
        let word = measured[key].as_str().with_context(|| missing(key))?;
        Ok::<_, anyhow::Error>(word.to_string())
    };
    let metrics = serde_json::from_value(measured["metrics"].clone());
    let mut reached = Vec::new();
    // The walk at random was not trained.
    for column in experiment.columns.iter().filter(|_| !at_random) {
        if let Column::Reached(accuracy) = column {
            let found = run.reached(*accuracy, root)?;
            reached.push(Reached {
                accuracy: *accuracy,
                step: found.map(|(step, _)| step),
                minutes: found.map(|(_, seconds)| seconds / 60.0),
            });
        }
    }
    let name = run.row.name;
    Ok(Measured {
        line: match at_random {
            true => format!("{name}{AT_RANDOM}"),
            false => name.to_string(),
        },
        seed: run.seed,
        steps,
        backend: word("backend")?,
        items: whole("items")?,
        of: word("of")?,
        parameters: whole("parameters")?,
        training_seconds: match at_random {
            true => None,
            false => Some(run.training_seconds(root)?),
        },
        metrics: metrics.with_context(|| missing("metrics"))?,
        reached,
    })
}

/// What may differ between the runs of any table: what it compares, and what changes no number in it.
const FREE: [&str; 8] = [
    "model",
    "from",
    "compare_with",
    "eval_items",
    "trainer.seed",
    "trainer.eval_every",
    "trainer.checkpoint_every",
    "trainer.keep_checkpoints",
];

/// The settings that all runs of a preset have in common, which is all but what the rows name.
fn shared_settings(
    experiment: &Experiment,
    planned: &[Run],
    args: &Args,
    root: &Path,
) -> Result<Vec<Settings>> {
    let mut named = Vec::new();
    for row in experiment.rows {
        for setting in row.settings {
            named.push(runs::setting(setting)?.0);
        }
    }
    // What was asked of every run is the same in every run.
    for setting in &args.settings {
        let (key, _) = runs::setting(setting)?;
        named.retain(|other| *other != key);
    }
    if args.steps.is_some() {
        named.retain(|key| key != "trainer.steps");
    }
    // A preset has other settings for runs that start from trained weights.
    let mut shared: Vec<(Settings, _, &Run)> = Vec::new();
    for run in planned {
        let mut config = run.config(root)?;
        let free = FREE.into_iter().chain(named.iter().map(String::as_str));
        free.for_each(|key| remove(&mut config, key));
        let start = (run.row.preset, run.row.from.is_some());
        let group = shared.iter_mut().find(|group| group.1 == start);
        let Some((first, _, other)) = group else {
            let rows = vec![run.row.name.to_string()];
            shared.push((Settings { rows, config }, start, run));
            continue;
        };
        if let Some(key) = runs::difference(&first.config, &config, "") {
            bail!(
                "{} and {} differ in {key}: they do not belong in one table",
                other.folder.display(),
                run.folder.display()
            );
        }
        if !first.rows.iter().any(|row| row == run.row.name) {
            first.rows.push(run.row.name.to_string());
        }
    }
    ensure!(!shared.is_empty(), "no runs");
    Ok(shared.into_iter().map(|(settings, ..)| settings).collect())
}

/// Takes the value at a dotted key out of a configuration, if there is one.
fn remove(config: &mut Value, key: &str) {
    let (group, last) = match key.rsplit_once('.') {
        Some((groups, last)) => {
            let path = format!("/{}", groups.replace('.', "/"));
            (config.pointer_mut(&path), last)
        }
        None => (Some(config), key),
    };
    if let Some(group) = group.and_then(Value::as_object_mut) {
        group.remove(last);
    }
}

/// The command that makes the results, with the steps spelled out where they are those of a preset.
fn command_line(experiment: &Experiment, args: &Args, runs: &[Measured]) -> String {
    let mut command = experiment.generator();
    let mut settings = experiment.settings.iter();
    let mut rows = experiment.rows.iter().flat_map(|row| row.settings);
    let set = |setting: &&str| setting.starts_with("trainer.steps=");
    let fixed = settings.any(set) || rows.any(set);
    let steps = runs.first().map(|run| run.steps);
    let common = steps.filter(|steps| !fixed && runs.iter().all(|run| run.steps == *steps));
    if let Some(steps) = args.steps.or(common) {
        command.push_str(&format!(" --steps {steps}"));
    }
    if !args.seeds.is_empty() {
        let seeds: Vec<String> = args.seeds.iter().map(u64::to_string).collect();
        command.push_str(&format!(" --seeds {}", seeds.join(",")));
    }
    for setting in &args.settings {
        // Quoted for a shell: values may be JSON.
        command.push_str(&format!(" --set '{setting}'"));
    }
    command
}

/// Writes the page, the numbers behind it and, for a whole table, the README's.
fn write(experiment: &Experiment, results: &Results, root: &Path) -> Result<()> {
    let folder = root.join("docs/results");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let generator = experiment.generator();
    let path = folder.join(format!("{}.md", experiment.name));
    if !path.exists() {
        let start = format!("# {}\n\n{}\n", experiment.title, experiment.about);
        page::replace(&path, &page::with_room(&start, &generator))?;
    }
    page::update(&path, &generator, &table::page(experiment, results))?;
    let json = serde_json::to_string_pretty(results)? + "\n";
    page::replace(&path.with_extension("json"), &json)?;
    println!("wrote docs/results/{}.md", experiment.name);
    if experiment.in_readme && results.not_finished.is_empty() {
        let text = table::readme(experiment, results);
        page::update(&root.join("README.md"), &generator, &text)?;
        println!("wrote README.md");
    }
    Ok(())
}

#[cfg(test)]
impl Args {
    /// As the command line gives them without an option.
    pub fn of(what: Name) -> Self {
        Self {
            what: What::Table(what),
            steps: None,
            seeds: Vec::new(),
            settings: Vec::new(),
            only_table: false,
            partial: false,
            plan: false,
            program: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::collections::BTreeSet;

    fn runs(root: &Path, configs: &[Value]) -> Vec<Run> {
        let run = |(at, config): (usize, &Value)| {
            let folder = at.to_string();
            fs::create_dir(root.join(&folder)).unwrap();
            fs::write(root.join(&folder).join("config.json"), config.to_string()).unwrap();
            runs::example(&folder, Vec::new())
        };
        configs.iter().enumerate().map(run).collect()
    }

    #[test]
    fn one_table_takes_runs_that_differ_in_what_it_compares_alone() {
        let root = tempfile::tempdir().unwrap();
        let of = |order: &str, seed: u64, rate: f64| json!({"architecture": {"order": order, "heads": 4}, "trainer": {"seed": seed, "eval_every": seed, "learning_rate": rate}});
        let planned = runs(
            root.path(),
            &[of("a", 0, 0.5), of("b", 1, 0.5), of("a", 2, 0.25)],
        );
        let args = Args::of(Name::Orders);
        let shared =
            |planned| shared_settings(Name::Orders.experiment(), planned, &args, root.path());
        let settings = shared(&planned[..2]).unwrap();
        assert_eq!(settings.len(), 1);
        assert_eq!(
            settings[0].config,
            json!({"architecture": {"heads": 4}, "trainer": {"learning_rate": 0.5}})
        );
        let error = shared(&planned).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("0 and 2 differ in trainer.learning_rate")
        );
    }

    #[test]
    fn runs_are_planned_seed_by_seed_with_the_seeds_of_their_rows() {
        let folders = |what: Name, seeds: &[u64]| {
            let args = Args {
                seeds: seeds.to_vec(),
                ..Args::of(what)
            };
            let planned = plan(what.experiment(), &args).unwrap();
            let folders = planned.iter().map(|run| run.folder.display().to_string());
            folders.collect::<Vec<_>>()
        };
        let orders = folders(Name::Orders, &[]);
        assert_eq!(orders.len(), 12);
        assert_eq!(orders[0], "runs/reproduce/orders/random-seed0");
        assert_eq!(orders[6], "runs/reproduce/orders/random-seed1");
        let copy = folders(Name::Copy, &[]);
        assert_eq!(copy.len(), 7);
        assert!(copy.iter().all(|folder| folder.ends_with("-seed0")));
        assert_eq!(folders(Name::Images, &[5, 5, 4]).len(), 8);
    }

    #[test]
    fn every_table_and_the_grid_can_be_named() {
        let names = |values: Vec<Option<PossibleValue>>| {
            let values = values.into_iter().flatten();
            let names: BTreeSet<String> = values.map(|value| value.get_name().into()).collect();
            names
        };
        let all = What::value_variants().iter();
        let tables = Name::value_variants().iter();
        let mut expected = names(tables.map(Name::to_possible_value).collect());
        expected.insert("lm".into());
        assert_eq!(names(all.map(What::to_possible_value).collect()), expected);
    }

    #[test]
    fn unfinished_runs_are_named() {
        let planned = plan(Name::Copy.experiment(), &Args::of(Name::Copy)).unwrap();
        let mut states = vec![State::Finished; planned.len()];
        states[1] = State::Absent;
        states[6] = State::Unfinished;
        let (finished, missing) = split(planned, &states);
        assert_eq!(finished.len(), 5);
        assert_eq!(missing, ["ours-128-seed0", "published-256-seed0"]);
    }

    #[test]
    fn keys_are_taken_out_wherever_they_are() {
        let mut config = json!({"a": 1, "b": {"c": {"d": 2, "e": 3}}});
        for key in ["a", "b.c.d", "b.x.y", "z"] {
            remove(&mut config, key);
        }
        assert_eq!(config, json!({"b": {"c": {"e": 3}}}));
    }
}
