//! `arbora compare`: several models, one budget, one table.

mod grid;
mod published;
mod table;

pub use grid::GridArgs;

use super::CompareArgs;
use crate::families::retrieval::RetrievalConfig;
use crate::families::sequence::SequenceConfig;
use crate::families::{About, AnyTask, Family, FamilyModel as _, Finished};
use crate::run::{Run as Plan, State, Trained, first_free, measured};
use crate::settings::layered;
use crate::{backend, whole};
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::{Checkpoint, TrainError};
use burn::module::Module;
use burn::tensor::Device;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use table::{Comparison, ModelResults, Run, Tried};

/// Test batches whose forward pass is timed, at most.
const TIMED_BATCHES: usize = 64;

/// What the runs of a comparison share.
struct Setting<C: Family> {
    base: C,
    data: C::Data,
    about: About,
    device: Device,
    out: PathBuf,
}

pub fn run(args: CompareArgs) -> Result<ExitCode> {
    if !matches!(args.task, AnyTask::Language(_)) {
        args.grid.refuse(args.task.name())?;
        if args.models.is_empty() {
            bail!(
                "--models: name one or more of those that learn {}",
                args.task.name()
            );
        }
    }
    match args.task {
        AnyTask::Retrieval(_) => compare::<RetrievalConfig>(args),
        AnyTask::Sequence(_) => compare::<SequenceConfig>(args),
        AnyTask::Language(_) => grid::run(args),
    }
}

fn compare<C: Family>(args: CompareArgs) -> Result<ExitCode> {
    let models = args.models.iter().map(|model| model.of::<C>());
    let models: Vec<&'static str> = models.collect::<Result<_>>()?;
    let base: C = configure(&args)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let data = base.load(None)?;
    let about = base.about(&data)?;
    let out = args.out.clone();
    let setting = Setting {
        out: out.unwrap_or_else(|| first_free(base.common().task, "compare")),
        base,
        about,
        data,
        device,
    };
    // All mistakes before the first hour of training.
    if setting.out.exists() && !setting.out.is_dir() {
        return Err(TrainError::NotAFolder { path: setting.out }.into());
    }
    let rates: Vec<Option<f64>> = match args.rates.is_empty() {
        true => vec![None],
        false => args.rates.iter().copied().map(Some).collect(),
    };
    for model in &models {
        for seed in &args.seeds {
            for rate in &rates {
                let plan = setting.plan(model, *seed, *rate)?;
                plan.state(&plan.config.about(&setting.data)?)?;
            }
        }
    }
    eprintln!(
        "{}: {} on {backend}, folder {}",
        models.join(", "),
        setting.base.common().task,
        setting.out.display()
    );

    let mut results = Vec::new();
    for model in &models {
        let Some((rate, tried)) = setting.choose_rate(model, args.seeds[0], &rates)? else {
            return interrupted(&setting.out);
        };
        results.push(ModelResults {
            model,
            learning_rate: rate.unwrap_or(setting.base.common().trainer.learning_rate),
            tried,
            runs: Vec::new(),
        });
    }
    // Of the first seed, for the pictures.
    let mut drawn = Vec::new();
    // Seed by seed: what is finished at any time is fair to every model.
    for seed in &args.seeds {
        for (model, results) in models.iter().zip(&mut results) {
            let rate = (!args.rates.is_empty()).then_some(results.learning_rate);
            let plan = setting.plan(model, *seed, rate)?;
            let Some(trained) = setting.trained(&plan)? else {
                return interrupted(&setting.out);
            };
            results.runs.push(setting.measure(&plan, &trained.0)?);
            if trained.1 {
                return interrupted(&setting.out);
            }
            if *seed == args.seeds[0] {
                drawn.push((plan, trained.0));
            }
        }
    }
    let finished: Vec<Finished<C>> = drawn
        .iter()
        .map(|(plan, model)| Finished {
            name: plan.config.common().model,
            folder: &plan.folder,
            config: &plan.config,
            model: Some(model),
        })
        .collect();
    C::draw(&finished, &setting.data, &setting.device, &setting.out)?;
    let comparison = Comparison {
        task: setting.base.common().task,
        batch: setting.base.common().batch,
        measured: setting
            .base
            .common()
            .measured(setting.base.common().test_items, setting.about.count),
        steps: setting.base.common().trainer.steps,
        settings: serde_json::to_value(&setting.base)?,
        columns: C::COLUMNS,
        items: setting.about.items,
        count: setting.about.count,
        backend,
        threads: std::thread::available_parallelism().map_or(1, |threads| threads.get()),
        seeds: args.seeds,
        models: results,
    };
    write(&setting.out, &comparison.page(), &comparison.json())?;
    super::show(&match args.json {
        true => comparison.json().to_string(),
        false => format!(
            "{}\nfolder with the runs, {TABLE} and {NUMBERS}: {}",
            comparison.text(),
            setting.out.display()
        ),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The table, in the comparison's folder.
const TABLE: &str = "compare.md";
/// The numbers behind it.
const NUMBERS: &str = "compare.json";

fn configure<C: Family>(args: &CompareArgs) -> Result<C> {
    refuse_doubled("--models", args.models.iter().map(|model| model.name()))?;
    refuse_doubled("--seeds", &args.seeds)?;
    refuse_doubled("--rates", &args.rates)?;
    let task = args.task.name();
    let preset: C = Family::preset(task, args.preset, args.from.as_deref())?;
    let base = layered(&preset, args.config.as_deref(), &args.settings)?;
    if base.common().task != task {
        bail!(
            "the settings are for task {}, asked for {task}",
            base.common().task
        );
    }
    Ok(base)
}

/// Refuses a list that names something twice.
fn refuse_doubled<T: ToString>(option: &str, values: impl IntoIterator<Item = T>) -> Result<()> {
    let mut seen = Vec::new();
    for value in values {
        let value = value.to_string();
        if seen.contains(&value) {
            bail!("{option}: {value} is given twice");
        }
        seen.push(value);
    }
    Ok(())
}

impl<C: Family> Setting<C> {
    fn plan(&self, model: &str, seed: u64, rate: Option<f64>) -> Result<Plan<C>> {
        let mut settings = vec![format!("model={model}"), format!("trainer.seed={seed}")];
        let mut name = format!("{model}-seed{seed}");
        if let Some(rate) = rate {
            settings.push(format!("trainer.learning_rate={rate}"));
            name += &format!("-rate{rate:e}");
        }
        Ok(Plan {
            config: layered(&self.base, None, &settings)?,
            folder: self.out.join(name),
        })
    }

    fn batches(&self, items: usize) -> Result<Vec<C::Batch>> {
        Ok(self.base.evaluation(&self.data, items, &self.device)?)
    }

    /// The learning rate whose run has the highest log-likelihood on the problems that a training
    /// evaluates with, and what every rate came to. `None` after Ctrl-C.
    fn choose_rate(
        &self,
        model: &str,
        seed: u64,
        rates: &[Option<f64>],
    ) -> Result<Option<(Option<f64>, Vec<Tried>)>> {
        let mut tried = Vec::new();
        for rate in rates.iter().flatten() {
            let plan = self.plan(model, seed, Some(*rate))?;
            let log_likelihood = match self.trained(&plan) {
                Ok(None) => return Ok(None),
                Ok(Some(trained)) => {
                    let items = self.base.common().eval_items;
                    let means =
                        measured(&plan.config, &trained.0, items, &self.data, &self.device)?;
                    if trained.1 {
                        return Ok(None);
                    }
                    means.get("log_likelihood").copied()
                }
                // A rate that is too high has lost, and the others have not.
                Err(error) if diverged(&error) && rates.len() > 1 => {
                    eprintln!("{} at learning rate {rate:e}: {error}", model);
                    None
                }
                Err(error) => return Err(error),
            };
            tried.push(Tried {
                learning_rate: *rate,
                log_likelihood: log_likelihood.filter(|number| number.is_finite()),
            });
        }
        if tried.is_empty() {
            return Ok(Some((None, tried)));
        }
        let best = tried
            .iter()
            .filter_map(|tried| Some((tried.log_likelihood?, tried.learning_rate)))
            .max_by(|one, other| one.0.total_cmp(&other.0));
        let Some((log_likelihood, rate)) = best else {
            bail!("{}: training diverged at every learning rate", model);
        };
        eprintln!(
            "{}: learning rate {rate:e} of {}, held-out log-likelihood {log_likelihood:.4}",
            model,
            tried.len()
        );
        Ok(Some((Some(rate), tried)))
    }

    /// The trained model of a run, from its folder where it is finished, else after training what is missing; and
    /// whether someone has asked to stop since. `None` after Ctrl-C.
    fn trained(&self, plan: &Plan<C>) -> Result<Option<(C::Model, bool)>> {
        let Plan { config, folder } = plan;
        let about = config.about(&self.data)?;
        let state = plan.state(&about)?;
        if state == State::Finished {
            eprintln!("{}: finished before", folder.display());
            let (checkpoint, _) = Checkpoint::newest(folder)?;
            let model = checkpoint.load_model(config.blank(&self.data, &self.device))?;
            return Ok(Some((model, false)));
        }
        let resume = state == State::Unfinished;
        eprintln!(
            "{}: {}",
            folder.display(),
            if resume { "resuming" } else { "training" }
        );
        let model = plan.model(&self.data, &self.device)?;
        let trainer = plan.trainer(&about, resume)?;
        let trained: Trained<C::Model> = plan.train(trainer, model, &self.data, &self.device)?;
        let stopped = trained.is_stopped();
        Ok((!stopped).then_some((trained.model, false)))
    }

    fn measure(&self, plan: &Plan<C>, model: &C::Model) -> Result<Run> {
        let config = &plan.config;
        let items = config.common().test_items;
        let query_seconds = self.query_seconds(model, &self.batches(items)?)?;
        let mut metrics = measured(config, model, items, &self.data, &self.device)?;
        metrics.extend(config.about(&self.data)?.facts);
        Ok(Run {
            seed: config.common().trainer.seed,
            folder: plan.folder.clone(),
            parameters: model.num_params(),
            query_seconds,
            metrics,
            training_seconds: training_seconds(&plan.folder)?,
        })
    }

    /// Wall-clock time of a forward pass (from features to predictions) by the number of its queries, the
    /// median over batches.
    fn query_seconds(&self, model: &C::Model, batches: &[C::Batch]) -> Result<f64> {
        let mut times = Vec::new();
        // The first batch twice: what starts up at a first call is no part of a query.
        for batch in batches
            .iter()
            .take(1)
            .chain(batches)
            .take(1 + TIMED_BATCHES)
        {
            let mut numbers = arbora::rl::seed::step_rng(0, 0);
            self.device.sync().context("the device gave up")?;
            let started = Instant::now();
            let queries = model.answer(batch, &mut numbers);
            self.device.sync().context("the device gave up")?;
            times.push(started.elapsed().as_secs_f64() / queries as f64);
        }
        let times = times.get_mut(1..).unwrap_or_default();
        times.sort_by(f64::total_cmp);
        Ok(times.get(times.len() / 2).copied().unwrap_or(f64::NAN))
    }
}

/// Whether a training ended because its numbers did.
fn diverged(error: &anyhow::Error) -> bool {
    matches!(
        error.downcast_ref::<TrainError>(),
        Some(TrainError::NonFinite { .. })
    )
}

/// Wall-clock seconds of all training steps of a run, over all its parts.
fn training_seconds(folder: &Path) -> Result<f64> {
    let path = folder.join("timing.jsonl");
    let text = std::fs::read_to_string(&path)
        .with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["split"] == "train")
        .filter_map(|line| line["seconds"].as_f64())
        .sum())
}

fn interrupted(out: &Path) -> Result<ExitCode> {
    super::interrupted(&format!(
        "stopped; continue with the same command and --out {}",
        out.display()
    ))
}

/// Writes numbers and table beside their places and renames them: each is whole or as it was.
fn write(out: &Path, page: &str, numbers: &Value) -> Result<()> {
    whole::write(&out.join(TABLE), page)?;
    whole::write(
        &out.join(NUMBERS),
        &(serde_json::to_string_pretty(numbers)? + "\n"),
    )
}
