//! `arbora train`

mod plain;

use super::{TrainArgs, dashboard};
use crate::config::{AnyModel, AnyTask, RunConfig, Task, difference};
use crate::learner::TaskModel;
use crate::progress::Bar;
use crate::report::Results;
use crate::run::{CONFIG, RunSettings, measure};
use crate::{backend, picture, remote, report, whole};
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::{Checkpoint, TrainError, TrainReport, Trainer};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Test images in the picture of completions, from the front: the sample is balanced by class.
const PICTURE_ROWS: usize = 8;
/// Pixels shown to the models in that picture.
pub(super) const PICTURE_CONTEXT: usize = 100;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    if args.dashboard {
        dashboard::check()?;
    }
    match args.task {
        AnyTask::Sequence(task) => plain::sequence(task, args),
        AnyTask::Language(task) => plain::language(task, args),
        AnyTask::Retrieval(task) => retrieval(task, args),
    }
}

fn retrieval(task: Task, args: TrainArgs) -> Result<ExitCode> {
    if args.from.is_some() {
        bail!("--from: {} starts from fresh weights", task.name());
    }
    args.place.refuse()?;
    let model = args.model.map(AnyModel::retrieval).transpose()?;
    let config: RunConfig = configure(&args, task, model, || {
        Ok(RunConfig::preset(task, args.preset))
    })?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let task = config.load()?;
    let out = args.out.clone().unwrap_or_else(|| first_free(&config));
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
        refuse(config, &task, folder, args.resume)?;
    }

    let mut trained = Vec::new();
    for (config, folder) in planned {
        // A resumed run may not have come to its second model.
        let resume = args.resume && folder.join(CONFIG).exists();
        let trainer = prepare(&config, &task, &folder, resume)?;
        if trained.is_empty() {
            let name = config.model.name();
            eprintln!("{name} on {backend}, run folder {}", out.display());
        }
        let interrupter = trainer.interrupter();
        #[cfg(feature = "dashboard")]
        let (trainer, _notices) = match args.dashboard {
            true => {
                let (trainer, notices) =
                    dashboard::show(trainer, &dashboard::names(&config, &task.features()));
                (trainer, Some(notices))
            }
            false => (trainer, None),
        };
        let model = config.blank(&task, &device);
        let report = fit(trainer, &config, &task, model, &device)?;
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
        picture::completion::draw(&rows, &names, &out.join("completion"))?;
    }

    let results = trained
        .iter()
        .map(|(model, _, report)| {
            // All test items, and also where a resumed run had no step left to evaluate.
            let problems = config.evaluation(&task, config.test_items, &device)?;
            let measured = measure(&report.model, problems, config.trainer.seed);
            Ok((model.name(), measured, report.seconds))
        })
        .collect::<Result<Vec<_>>>()?;
    let text = report::table(&results);
    super::show(&summary(&out, results, text, args.json))?;
    Ok(ExitCode::SUCCESS)
}

/// The settings of a run: those of its folder where it is resumed, else a preset, and layers over them.
fn configure<C: RunSettings>(
    args: &TrainArgs,
    task: C::Task,
    model: Option<C::ModelKind>,
    preset: impl FnOnce() -> Result<C>,
) -> Result<C> {
    let base = match (&args.out, args.resume) {
        (Some(out), true) => {
            if !out.is_dir() {
                bail!("{}: no run to resume here", out.display());
            }
            same_family(out, args.task)?;
            C::read(&out.join(CONFIG))?
        }
        _ => preset()?,
    };
    let mut config = base.layered(args.config.as_deref(), &args.settings)?;
    if config.task() != task {
        bail!(
            "the settings are for task {}, asked for {}",
            config.task_name(),
            args.task.name()
        );
    }
    if let Some(model) = model {
        config = config.with_model(model);
    }
    if let Some(seed) = args.seed {
        config.trainer_mut().seed = seed;
    }
    if !args.resume {
        config = config
            .absolute()
            .context("cannot read the working directory")?;
    }
    if args.resume
        && let Some((key, wanted, found)) = difference(
            &serde_json::to_value(&config)?,
            &serde_json::to_value(&base)?,
        )
    {
        // The trainer refuses settings that would change the numbers; the others are kept as the
        // run has them, so that config.json stays true.
        bail!(
            "--resume continues a run with its own settings; start a new run to change them: {key} is {found}, asked for {wanted}"
        );
    }
    config.check()?;
    Ok(config)
}

/// Refuses a run folder of another family by the name of its task, before its settings are read as
/// what they are not.
fn same_family(folder: &Path, asked: AnyTask) -> Result<()> {
    match AnyTask::of_run(folder) {
        Some(found) if !found.is_like(asked) => bail!(
            "the settings are for task {}, asked for {}",
            found.name(),
            asked.name()
        ),
        _ => Ok(()),
    }
}

/// Refuses a folder that a run cannot begin in, or with `resume` one that cannot be continued.
fn refuse<C: RunSettings>(config: &C, data: &C::Data, folder: &Path, resume: bool) -> Result<()> {
    config.check_data(data)?;
    match resume && folder.join(CONFIG).exists() {
        true => refuse_unusable(folder, &config.fingerprint(data)?)?,
        false => refuse_taken(folder)?,
    }
    Ok(())
}

/// A trainer whose run folder is there, with its settings.
pub(super) fn prepare<C: RunSettings>(
    config: &C,
    data: &C::Data,
    out: &Path,
    resume: bool,
) -> Result<Trainer> {
    let fingerprint = config.fingerprint(data)?;
    // Paths that are no text cannot be written: a refusal leaves nothing.
    let settings = serde_json::to_string_pretty(config)? + "\n";
    let trainer = Trainer::new(config.trainer().clone(), out, fingerprint)
        .resume(resume)
        .progress(Bar::new(config.model_name(), config.trainer().steps));
    trainer.stop_on_ctrl_c()?;
    remote::saved(Some(format!(
        "the run's checkpoints are in {}; continue with --resume",
        out.display()
    )));
    if !resume {
        std::fs::create_dir_all(out).with_context(|| format!("cannot make {}", out.display()))?;
        config.keep(data, out)?;
        whole::write(&out.join(CONFIG), &settings)?;
    }
    Ok(trainer)
}

/// The model that a run begins with, or that the weights of its newest checkpoint will be loaded into.
pub(super) fn first_model<C: RunSettings>(
    config: &C,
    data: &C::Data,
    folder: &Path,
    device: &Device,
) -> Result<C::Model> {
    match Checkpoint::newest(folder) {
        Ok(_) => Ok(config.blank(data, device)),
        Err(_) => config.init(data, device),
    }
}

pub(super) fn fit<C: RunSettings>(
    trainer: Trainer,
    config: &C,
    data: &C::Data,
    model: C::Model,
    device: &Device,
) -> Result<TrainReport<C::Model>> {
    let batches = config.evaluation(data, config.sizes().eval_items, device)?;
    let count = batches.len() as u64;
    let evaluation =
        move |index: u64, _: &Device| Ok::<_, TaskError>(batches[index as usize].clone());
    Ok(trainer.fit(model, config.training(data), (count, evaluation), device)?)
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

fn first_free<C: RunSettings>(config: &C) -> PathBuf {
    super::first_free(config.task_name(), config.model_name())
}

fn interrupted(out: &Path, step: u64) -> Result<ExitCode> {
    super::interrupted(&format!(
        "stopped at step {step}; continue with --out {} --resume",
        out.display()
    ))
}

/// The final numbers, for a program or for a person, who reads `text`.
fn summary(out: &Path, results: Vec<Results>, text: String, as_json: bool) -> String {
    if as_json {
        let models: BTreeMap<_, _> = results
            .into_iter()
            .map(|(model, mut numbers, seconds)| {
                numbers.insert("seconds".into(), seconds);
                (model, numbers)
            })
            .collect();
        return json!({ "run": out.to_string_lossy(), "models": models }).to_string();
    }
    format!("{text}\nrun folder with curves: {}", out.display())
}
