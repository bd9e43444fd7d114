//! `arbora train`

use super::{TrainArgs, dashboard};
use crate::config::{ModelKind, RunConfig};
use crate::learner::TaskModel;
use crate::progress::Bar;
use crate::task::{self, Features, TaskData};
use crate::{backend, picture, report};
use anyhow::{Context as _, Result, bail};
use arbora_rl::train::{Checkpoint, TrainError, TrainReport, Trainer};
use arbora_tasks::TaskError;
use burn::tensor::Device;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Test images in the picture of completions, from the front: the sample is balanced by class.
const PICTURE_ROWS: usize = 8;
/// Pixels shown to the models in that picture.
pub(super) const PICTURE_CONTEXT: usize = 100;

/// A run's settings, in its folder.
pub(super) const CONFIG: &str = "config.json";

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    if args.dashboard {
        dashboard::check()?;
    }
    let config = configure(&args)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let task = task::load(&config)?;
    let features = task.features();
    let out = match &args.out {
        Some(out) => out.clone(),
        None => first_free(&config),
    };
    let second = config
        .compare_with
        .filter(|model| *model != config.model)
        .map(|model| {
            let compared = RunConfig {
                model,
                compare_with: None,
                ..config.clone()
            };
            (compared, out.join(model.name()))
        });
    let mut planned = vec![(config.clone(), out.clone())];
    planned.extend(second);
    // Before the first step: the second run must not be refused after hours of the first.
    for (config, folder) in &planned {
        if args.resume && folder.join(CONFIG).exists() {
            refuse_unusable(folder, &config.fingerprint(&features)?)?;
        } else {
            refuse_taken(folder)?;
        }
    }

    let mut trained = Vec::new();
    for (config, folder) in planned {
        // A resumed run may not have come to its second model.
        let resume = args.resume && folder.join(CONFIG).exists();
        let trainer = prepare(&config, &features, &folder, resume)?;
        if trained.is_empty() {
            let name = config.model.name();
            eprintln!("{name} on {backend}, run folder {}", out.display());
        }
        let interrupter = trainer.interrupter();
        #[cfg(feature = "dashboard")]
        let (trainer, _notices) = match args.dashboard {
            true => {
                let (trainer, notices) = dashboard::show(trainer, &config, &features);
                (trainer, Some(notices))
            }
            false => (trainer, None),
        };
        let report = fit(trainer, &config, &task, &device)?;
        if report.interrupted || interrupter.should_stop() {
            return interrupted(&out, report.step);
        }
        trained.push((config.model, folder, report));
    }

    let runs: Vec<(&str, &Path)> = trained
        .iter()
        .map(|(model, folder, _)| (model.name(), folder.as_path()))
        .collect();
    report::draw_curves(&runs, &out)?;
    let names: Vec<&str> = trained.iter().map(|(model, _, _)| model.name()).collect();
    if let (Some(images), Some(points)) = (task.images(), &config.points) {
        let models: Vec<&TaskModel> = trained.iter().map(|(_, _, report)| &report.model).collect();
        let shown: Vec<usize> = (0..images.test().count.min(PICTURE_ROWS)).collect();
        let context = PICTURE_CONTEXT.min(points.max_points - 1);
        let rows = images.complete(&models, &shown, context, &device)?;
        picture::completion::draw(&rows, &names, &out.join("completion.png"))?;
    }

    let results = trained
        .iter()
        .map(|(model, _, report)| {
            // All test items, and also where a resumed run had no step left to evaluate.
            let problems = task.evaluation(config.test_items, config.eval_batch_size, &device)?;
            let measured = report.model.measure(problems, config.trainer.seed);
            Ok((*model, measured, report.seconds))
        })
        .collect::<Result<Vec<_>>>()?;
    super::show(&summary(&out, results, args.json))?;
    Ok(ExitCode::SUCCESS)
}

fn configure(args: &TrainArgs) -> Result<RunConfig> {
    let base = match (&args.out, args.resume) {
        (Some(out), true) => {
            if !out.is_dir() {
                bail!("{}: no run to resume here", out.display());
            }
            RunConfig::read(&out.join(CONFIG))?
        }
        _ => RunConfig::preset(args.task, args.preset),
    };
    let mut config = base.layered(args.config.as_deref(), &args.settings)?;
    if config.task != args.task {
        bail!(
            "the settings are for task {}, asked for {}",
            config.task.name(),
            args.task.name()
        );
    }
    if let Some(model) = args.model {
        config.model = model;
    }
    if let Some(seed) = args.seed {
        config.trainer.seed = seed;
    }
    if !args.resume {
        config.data = config
            .data
            .absolute()
            .context("cannot read the working directory")?;
    }
    if args.resume && config != base {
        // The trainer refuses settings that would change the numbers; the others are kept as the
        // run has them, so that config.json stays true.
        bail!("--resume continues a run with its own settings; start a new run to change them");
    }
    config.check()?;
    Ok(config)
}

/// A trainer whose run folder is there, with its settings.
pub(super) fn prepare(
    config: &RunConfig,
    features: &Features,
    out: &Path,
    resume: bool,
) -> Result<Trainer> {
    let fingerprint = config.fingerprint(features)?;
    let trainer = Trainer::new(config.trainer.clone(), out, fingerprint)
        .resume(resume)
        .progress(Bar::new(config.model.name(), config.trainer.steps));
    trainer.stop_on_ctrl_c()?;
    if !resume {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        write_config(config, out)?;
    }
    Ok(trainer)
}

pub(super) fn fit(
    trainer: Trainer,
    config: &RunConfig,
    task: &Arc<dyn TaskData>,
    device: &Device,
) -> Result<TrainReport<TaskModel>> {
    let problems = task.evaluation(config.eval_items, config.eval_batch_size, device)?;
    let count = problems.len() as u64;
    let evaluation =
        move |index: u64, _: &Device| Ok::<_, TaskError>(problems[index as usize].clone());
    let (training, batch_size) = (task.clone(), config.batch_size);
    Ok(trainer.fit(
        TaskModel::new(config, &task.features(), device),
        move |seed, step, device: &Device| training.training(seed, step, batch_size, device),
        (count, evaluation),
        device,
    )?)
}

/// Refuses a path that cannot become a new run's folder.
pub(super) fn refuse_taken(out: &Path) -> Result<(), TrainError> {
    if out.exists() && !out.is_dir() {
        return Err(TrainError::NotAFolder { path: out.into() });
    }
    let kept = [CONFIG, "metrics.jsonl", "checkpoints"];
    if kept.iter().any(|name| out.join(name).exists()) {
        return Err(TrainError::RunExists { path: out.into() });
    }
    Ok(())
}

/// Refuses a run that cannot be continued. One that ended before its first checkpoint can.
pub(super) fn refuse_unusable(out: &Path, fingerprint: &str) -> Result<(), TrainError> {
    match Checkpoint::newest(out) {
        Ok((checkpoint, _)) => checkpoint.expect_fingerprint(fingerprint),
        Err(TrainError::Missing { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

fn write_config(config: &RunConfig, out: &Path) -> Result<()> {
    let text = serde_json::to_string_pretty(config)? + "\n";
    super::write_whole(&out.join(CONFIG), &text)
}

fn first_free(config: &RunConfig) -> PathBuf {
    let name = format!("{}-{}", config.task.name(), config.model.name());
    (1..u64::MAX)
        .map(|n| PathBuf::from(format!("runs/{name}-{n}")))
        .find(|path| !path.exists())
        .expect("fewer runs than numbers")
}

fn interrupted(out: &Path, step: u64) -> Result<ExitCode> {
    eprintln!(
        "stopped at step {step}; continue with --out {} --resume",
        out.display()
    );
    Ok(ExitCode::from(130))
}

/// The final numbers, for a program or for a person.
fn summary(
    out: &Path,
    results: Vec<(ModelKind, BTreeMap<String, f64>, f64)>,
    as_json: bool,
) -> String {
    if as_json {
        let models: BTreeMap<_, _> = results
            .into_iter()
            .map(|(model, mut numbers, seconds)| {
                numbers.insert("seconds".into(), seconds);
                (model.name(), numbers)
            })
            .collect();
        return json!({ "run": out.to_string_lossy(), "models": models }).to_string();
    }
    report::table(&results) + &format!("\nrun folder with curves: {}", out.display())
}
