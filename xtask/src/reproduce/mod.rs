//! `cargo xtask reproduce`: the tables of `docs/results`, from training to text.

mod runs;
mod table;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde_json::Value;

use crate::page::{self, Machine};
use crate::shell;
use runs::{Run, State};
use table::{Results, Row, Variant};

/// Train the models of a results table and write the table.
///
/// Finished runs are kept and unfinished ones resumed, so the command can be stopped at any time and
/// called again. Every number of the table is measured on all test images from the runs' last
/// checkpoints. The text of the table's page outside its generated part is kept.
#[derive(clap::Args)]
#[command(after_help = "Examples:
  cargo xtask reproduce images
  cargo xtask reproduce images --steps 2000 --set trainer.eval_every=500
  cargo xtask reproduce images --only-table")]
pub struct Args {
    /// What to reproduce.
    what: Experiment,
    /// Training steps of each run. New runs take the preset's without it.
    #[arg(long)]
    steps: Option<u64>,
    /// One run of each model per seed.
    #[arg(long, value_delimiter = ',', default_values_t = [0, 1, 2])]
    seeds: Vec<u64>,
    /// A setting of every run, as `arbora train --set` takes it. May be given several times.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// Train nothing: measure the finished runs again and write the table.
    #[arg(long)]
    only_table: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Experiment {
    /// Image completion on the bundled sample: ReTreever, its random control and dense attention.
    Images,
}

/// The models that are trained, by their names on the command line.
const MODELS: [&str; 3] = ["cross-attention", "retreever", "random-route"];

/// What the generated parts of pages are marked with.
const GENERATOR: &str = "cargo xtask reproduce images";

/// Where the runs lie, below the root of the workspace.
const RUNS: &str = "runs/reproduce/images";

/// Runs the task.
///
/// # Errors
/// When a run fails or holds other settings than asked for, or a page cannot be written.
pub fn run(args: &Args) -> Result<()> {
    let Experiment::Images = args.what;
    let mut seeds = args.seeds.clone();
    seeds.sort_unstable();
    seeds.dedup();
    ensure!(!seeds.is_empty(), "--seeds: expected at least one");
    let root = shell::root();
    // Seed by seed: a table over the seeds that are complete is then fair at any time.
    let mut planned = Vec::new();
    for seed in &seeds {
        for model in MODELS {
            let folder = PathBuf::from(RUNS).join(format!("{model}-seed{seed}"));
            let mut settings = vec![
                ("model".to_string(), Value::from(model)),
                ("trainer.seed".to_string(), Value::from(*seed)),
                ("compare_with".to_string(), Value::Null),
            ];
            if let Some(steps) = args.steps {
                settings.push(("trainer.steps".into(), Value::from(steps)));
            }
            for setting in &args.settings {
                settings.push(runs::setting(setting)?);
            }
            planned.push(Run {
                model,
                seed: *seed,
                folder,
                settings,
            });
        }
    }

    // All mistakes before the first hour of training.
    let mut unfinished = Vec::new();
    for run in &planned {
        if run.state(&root)? != State::Finished {
            unfinished.push(run.folder.display().to_string());
        }
    }
    if args.only_table && !unfinished.is_empty() {
        bail!("not finished: {}", unfinished.join(", "));
    }

    let program = build()?;
    for (at, run) in planned.iter().enumerate() {
        let state = run.state(&root)?;
        println!(
            "[{}/{}] {}: {}",
            at + 1,
            planned.len(),
            run.folder.display(),
            state.plan()
        );
        if state != State::Finished {
            train(&mut run.training(&program, &state, args, &root))?;
        }
    }

    let settings = shared_settings(&planned, &root)?;
    let mut rows = Vec::new();
    for run in &planned {
        let variants: &[Variant] = match run.model {
            "cross-attention" => &[Variant::Dense],
            "retreever" => &[Variant::Learned, Variant::WalkingAtRandom],
            _ => &[Variant::TrainedAtRandom],
        };
        for variant in variants {
            println!("measuring {}: {}", run.folder.display(), variant.title());
            rows.push(measure(run, *variant, &program, &root)?);
        }
    }
    let results = Results {
        command: command_line(args, &seeds, &settings),
        machine: Machine::this(),
        date: page::today()?,
        settings,
        summary: table::summarise(&rows),
        rows,
    };
    write(&results, &root)
}

/// Compiles the command line in release and returns where it is.
fn build() -> Result<PathBuf> {
    let mut cargo = shell::cargo();
    cargo.args([
        "build",
        "--release",
        "--package",
        "arbora",
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

/// Measures one run on all test images.
fn measure(run: &Run, variant: Variant, program: &Path, root: &Path) -> Result<Row> {
    let mut command = Command::new(program);
    command
        .current_dir(root)
        .arg("eval")
        .arg(&run.folder)
        .arg("--json");
    if variant == Variant::WalkingAtRandom {
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
    let metric = |key: &str| {
        measured["metrics"][key]
            .as_f64()
            .with_context(|| missing(key))
    };
    Ok(Row {
        variant,
        seed: run.seed,
        steps,
        backend: measured["backend"]
            .as_str()
            .with_context(|| missing("backend"))?
            .to_string(),
        images: whole("images")?,
        parameters: whole("parameters")?,
        training_seconds: run.training_seconds(root)?,
        log_likelihood: metric("log_likelihood")?,
        tokens_percent: metric("tokens_percent")?,
        nodes_selected: metric("nodes_selected")?,
        nodes_read: metric("nodes_read")?,
        context_tokens: metric("context_tokens")?,
    })
}

/// What may differ between the runs of one table: what the table compares, and what changes no number
/// in it.
const FREE: [(&str, &[&str]); 2] = [
    ("", &["model", "compare_with", "eval_images"]),
    (
        "trainer",
        &["seed", "eval_every", "checkpoint_every", "keep_checkpoints"],
    ),
];

/// The settings that all runs have in common.
fn shared_settings(planned: &[Run], root: &Path) -> Result<Value> {
    let mut shared: Option<(Value, &Run)> = None;
    for run in planned {
        let mut config = run.config(root)?;
        for (group, keys) in FREE {
            let group = match group {
                "" => &mut config,
                _ => &mut config[group],
            };
            if let Some(group) = group.as_object_mut() {
                keys.iter().for_each(|key| drop(group.remove(*key)));
            }
        }
        match &shared {
            None => shared = Some((config, run)),
            Some((first, other)) => {
                if let Some(key) = runs::difference(first, &config, "") {
                    bail!(
                        "{} and {} differ in {key}: they do not belong in one table",
                        other.folder.display(),
                        run.folder.display()
                    );
                }
            }
        }
    }
    let (config, _) = shared.context("no runs")?;
    Ok(config)
}

/// The command that makes the results, with the steps spelled out.
fn command_line(args: &Args, seeds: &[u64], settings: &Value) -> String {
    let seeds: Vec<String> = seeds.iter().map(u64::to_string).collect();
    let mut command = format!(
        "cargo xtask reproduce images --steps {} --seeds {}",
        settings["trainer"]["steps"],
        seeds.join(",")
    );
    for setting in &args.settings {
        // Quoted for a shell: values may be JSON.
        command.push_str(&format!(" --set '{setting}'"));
    }
    command
}

/// Writes the page, the numbers behind it and the README's table.
fn write(results: &Results, root: &Path) -> Result<()> {
    let folder = root.join("docs/results");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let json = serde_json::to_string_pretty(results)? + "\n";
    page::replace(&folder.join("images.json"), &json)?;
    for (file, text) in [
        ("docs/results/images.md", table::page(results)),
        ("README.md", table::readme(results)),
    ] {
        page::update(&root.join(file), GENERATOR, &text)?;
        println!("wrote {file}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn runs(root: &Path, configs: &[Value]) -> Vec<Run> {
        let run = |(at, config): (usize, &Value)| {
            let folder = PathBuf::from(at.to_string());
            fs::create_dir(root.join(&folder)).unwrap();
            fs::write(root.join(&folder).join("config.json"), config.to_string()).unwrap();
            Run {
                model: "retreever",
                seed: 0,
                folder,
                settings: Vec::new(),
            }
        };
        configs.iter().enumerate().map(run).collect()
    }

    #[test]
    fn one_table_takes_runs_that_differ_in_what_it_compares_alone() {
        let root = tempfile::tempdir().unwrap();
        let of = |model: &str, seed: u64, rate: f64| json!({"model": model, "trainer": {"seed": seed, "eval_every": seed, "learning_rate": rate}});
        let planned = runs(
            root.path(),
            &[of("a", 0, 0.5), of("b", 1, 0.5), of("a", 2, 0.25)],
        );
        assert_eq!(
            shared_settings(&planned[..2], root.path()).unwrap(),
            json!({"trainer": {"learning_rate": 0.5}})
        );
        let error = shared_settings(&planned, root.path()).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("0 and 2 differ in trainer.learning_rate")
        );
    }
}
