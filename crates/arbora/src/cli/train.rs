//! `arbora train`

use super::TrainArgs;
use crate::config::{ModelKind, RunConfig, Task};
use crate::images::{ImageModel, ImageTask};
use crate::progress::Bar;
use crate::{backend, picture, report};
use anyhow::{Context as _, Result, bail};
use arbora_rl::train::{EvaluationReport, TrainError, TrainReport, Trainer};
use arbora_tasks::TaskError;
use burn::tensor::Device;
use serde_json::json;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Test images in the picture of completions, from the front: the sample is balanced by class.
const PICTURE_ROWS: usize = 8;
/// Pixels shown to the models in that picture.
const PICTURE_CONTEXT: usize = 100;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    let config = configure(&args)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let Task::Images = config.task;
    let task = ImageTask::load(&config)?;
    let out = match &args.out {
        Some(out) => out.clone(),
        None => first_free(&config)?,
    };
    if out.exists() && !out.is_dir() {
        return Err(TrainError::NotAFolder { path: out }.into());
    }
    eprintln!(
        "{} on {backend}, run folder {}",
        config.model.name(),
        out.display()
    );

    let first = train_one(&config, &task, &out, args.resume, &device)?;
    if first.interrupted {
        return interrupted(&out, first.step);
    }
    let mut trained = vec![(config.model, out.clone(), first)];
    if let Some(model) = config.compare_with.filter(|model| *model != config.model) {
        let compared = RunConfig {
            model,
            compare_with: None,
            ..config.clone()
        };
        let folder = out.join(model.name());
        let resume = args.resume && folder.exists();
        let second = train_one(&compared, &task, &folder, resume, &device)?;
        if second.interrupted {
            return interrupted(&out, second.step);
        }
        trained.push((model, folder, second));
    }

    let runs: Vec<(&str, &Path)> = trained
        .iter()
        .map(|(model, folder, _)| (model.name(), folder.as_path()))
        .collect();
    report::draw_curves(&runs, &out)?;
    let models: Vec<&ImageModel> = trained.iter().map(|(_, _, report)| &report.model).collect();
    let names: Vec<&str> = trained.iter().map(|(model, _, _)| model.name()).collect();
    let images: Vec<usize> = (0..task.test_images().min(PICTURE_ROWS)).collect();
    let context = PICTURE_CONTEXT.min(config.points.max_points - 1);
    let rows = task.complete(&models, &images, context, &device)?;
    picture::completion::draw(&rows, &names, &out.join("completion.png"))?;

    let results = trained
        .iter()
        .map(|(model, _, report)| (*model, report.evaluation.clone(), report.seconds));
    print(&out, results.collect(), args.json);
    Ok(ExitCode::SUCCESS)
}

fn configure(args: &TrainArgs) -> Result<RunConfig> {
    let base = match (&args.out, args.resume) {
        (Some(out), true) => {
            if !out.is_dir() {
                bail!("{}: no run to resume here", out.display());
            }
            RunConfig::read(&out.join("config.json"))?
        }
        _ => RunConfig::preset(args.task, args.preset),
    };
    let mut config = base.layered(args.config.as_deref(), &args.settings)?;
    if config.task != args.task {
        bail!(
            "the settings are for task {:?}, asked for {:?}",
            config.task,
            args.task
        );
    }
    if let Some(model) = args.model {
        config.model = model;
    }
    if let Some(seed) = args.seed {
        config.trainer.seed = seed;
    }
    if args.resume && config != base {
        // The trainer refuses settings that would change the numbers; the others are kept as the
        // run has them, so that config.json stays true.
        bail!("--resume continues a run with its own settings; start a new run to change them");
    }
    config.check()?;
    Ok(config)
}

fn train_one(
    config: &RunConfig,
    task: &ImageTask,
    out: &Path,
    resume: bool,
    device: &Device,
) -> Result<TrainReport<ImageModel>> {
    let channels = task.channels();
    let trainer = Trainer::new(config.trainer.clone(), out, config.fingerprint(channels)?)
        .resume(resume)
        .progress(Bar::new(config.model.name(), config.trainer.steps));
    trainer.stop_on_ctrl_c()?;
    let batches = task.evaluation_batches(config.eval_images, config.eval_batch_size, device)?;
    let count = batches.len() as u64;
    let evaluation =
        move |index: u64, _: &Device| Ok::<_, TaskError>(batches[index as usize].clone());
    let model = ImageModel::new(config, channels, device);
    if !resume {
        claim(out)?;
        write_config(config, out)?;
    }
    Ok(trainer.fit(
        model,
        task.training_source(config.batch_size),
        (count, evaluation),
        device,
    )?)
}

/// Makes the run folder, unless it holds a run already.
fn claim(out: &Path) -> Result<()> {
    if out.join("config.json").exists() {
        return Err(TrainError::RunExists { path: out.into() }.into());
    }
    std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))
}

fn write_config(config: &RunConfig, out: &Path) -> Result<()> {
    let path = out.join("config.json");
    let beside = out.join("config.json.unfinished");
    std::fs::write(&beside, serde_json::to_string_pretty(config)? + "\n")
        .and_then(|()| std::fs::rename(&beside, &path))
        .with_context(|| format!("cannot write {}", path.display()))
}

fn first_free(config: &RunConfig) -> Result<PathBuf> {
    let task = serde_json::to_value(config.task)?;
    let name = format!("{}-{}", task.as_str().unwrap_or("run"), config.model.name());
    let free = (1..)
        .map(|n| PathBuf::from(format!("runs/{name}-{n}")))
        .find(|path| !path.exists());
    free.context("no free run folder")
}

fn interrupted(out: &Path, step: u64) -> Result<ExitCode> {
    eprintln!(
        "stopped at step {step}; continue with --out {} --resume",
        out.display()
    );
    Ok(ExitCode::from(130))
}

fn print(out: &Path, results: Vec<(ModelKind, Option<EvaluationReport>, f64)>, as_json: bool) {
    if as_json {
        let models: serde_json::Map<_, _> = results
            .into_iter()
            .map(|(model, evaluation, seconds)| {
                let mut numbers: serde_json::Map<String, serde_json::Value> = evaluation
                    .map(|report| {
                        report
                            .metrics
                            .into_iter()
                            .map(|(k, v)| (k, json!(v)))
                            .collect()
                    })
                    .unwrap_or_default();
                numbers.insert("seconds".into(), json!(seconds));
                (model.name().to_owned(), numbers.into())
            })
            .collect();
        println!("{}", json!({ "run": out, "models": models }));
        return;
    }
    println!(
        "{:<16} {:>22} {:>10} {:>12} {:>9}",
        "model", "held-out log-lik", "% tokens", "nodes read", "seconds"
    );
    for (model, evaluation, seconds) in results {
        let number = |name| {
            evaluation
                .as_ref()
                .and_then(|report| report.metric(name))
                .unwrap_or(f64::NAN)
        };
        println!(
            "{:<16} {:>22.4} {:>10.1} {:>12.1} {:>9.0}",
            model.name(),
            number("log_likelihood"),
            number("tokens_percent"),
            number("nodes_read"),
            seconds
        );
    }
    println!("curves and completed images: {}", out.display());
}
