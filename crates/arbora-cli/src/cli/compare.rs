//! `arbora compare`: several models, one budget, one table.

mod grid;
mod published;
mod table;

pub use grid::GridArgs;

use super::CompareArgs;
use super::train::{first_model, fit, prepare, refuse_taken, refuse_unusable};
use crate::config::sequence::SequenceConfig;
use crate::config::{AnyModel, AnyTask, RunConfig};
use crate::run::{CONFIG, RunSettings, measure};
use crate::{backend, config, whole};
use anyhow::{Context as _, Result, bail};
use arbora::rl::train::{Checkpoint, TrainError};
use burn::module::Module;
use burn::tensor::Device;
use burn::train::Interrupter;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;
use table::{Comparison, ModelResults, Run, Tried};

/// Test batches whose forward pass is timed, at most.
const TIMED_BATCHES: usize = 64;

/// A run of the comparison: its settings and where it lies.
struct Plan<C> {
    config: C,
    folder: PathBuf,
}

/// What the runs of a comparison share.
struct Setting<C: RunSettings> {
    base: C,
    data: C::Data,
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
        AnyTask::Retrieval(task) => {
            refuse_from(&args, task.name())?;
            let models = all(&args.models, AnyModel::retrieval)?;
            let base = RunConfig {
                compare_with: None,
                ..configure(&args, task, RunConfig::preset(task, args.preset))?
            };
            compare(args, models, base)
        }
        AnyTask::Sequence(task) => {
            let models = all(&args.models, AnyModel::sequence)?;
            let mut preset = SequenceConfig::preset(task, args.preset)?;
            if let Some(from) = &args.from {
                preset = preset.started_from(from.clone());
            }
            let base = configure(&args, task, preset)?;
            compare(args, models, base)
        }
        AnyTask::Language(task) => grid::run(args, task),
    }
}

fn refuse_from(args: &CompareArgs, task: &str) -> Result<()> {
    match args.from {
        Some(_) => bail!("--from: {task} starts from fresh weights"),
        None => Ok(()),
    }
}

fn all<K>(models: &[AnyModel], family: fn(AnyModel) -> Result<K>) -> Result<Vec<K>> {
    models.iter().map(|model| family(*model)).collect()
}

fn compare<C: RunSettings>(
    args: CompareArgs,
    models: Vec<C::ModelKind>,
    base: C,
) -> Result<ExitCode> {
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let data = base.clone().with_model(models[0]).load()?;
    let setting = Setting {
        out: args.out.clone().unwrap_or_else(|| first_free(&base)),
        base,
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
                setting.plan(*model, *seed, *rate).check(&setting.data)?;
            }
        }
    }
    let names: Vec<&str> = models.iter().map(|model| setting.name(*model)).collect();
    eprintln!(
        "{}: {} on {backend}, folder {}",
        names.join(", "),
        setting.base.task_name(),
        setting.out.display()
    );

    let mut results = Vec::new();
    for model in &models {
        let Some((rate, tried)) = setting.choose_rate(*model, args.seeds[0], &rates)? else {
            return interrupted(&setting.out);
        };
        results.push(ModelResults {
            model: setting.name(*model),
            learning_rate: rate.unwrap_or(setting.base.trainer().learning_rate),
            tried,
            runs: Vec::new(),
        });
    }
    // Seed by seed: what is finished at any time is fair to every model.
    for seed in &args.seeds {
        for (model, results) in models.iter().zip(&mut results) {
            let rate = (!args.rates.is_empty()).then_some(results.learning_rate);
            let plan = setting.plan(*model, *seed, rate);
            let Some(trained) = setting.trained(&plan)? else {
                return interrupted(&setting.out);
            };
            results.runs.push(setting.measure(&plan, &trained.model)?);
            if trained.is_stopped() {
                return interrupted(&setting.out);
            }
        }
    }
    let comparison = Comparison {
        task: setting.base.task_name(),
        sizes: setting.base.sizes(),
        steps: setting.base.trainer().steps,
        settings: serde_json::to_value(&setting.base)?,
        columns: C::COLUMNS,
        items: C::items(&setting.data),
        count: C::count(&setting.data),
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

fn configure<C: RunSettings>(args: &CompareArgs, task: C::Task, preset: C) -> Result<C> {
    refuse_doubled("--models", args.models.iter().map(|model| model.name()))?;
    refuse_doubled("--seeds", &args.seeds)?;
    refuse_doubled("--rates", &args.rates)?;
    let base = preset.layered(args.config.as_deref(), &args.settings)?;
    if base.task() != task {
        bail!(
            "the settings are for task {}, asked for {}",
            base.task_name(),
            args.task.name()
        );
    }
    base.absolute().context("cannot read the working directory")
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

impl<C: RunSettings> Plan<C> {
    /// Refuses settings out of range and a folder with another run.
    fn check(&self, data: &C::Data) -> Result<()> {
        self.config.check()?;
        self.config.check_data(data)?;
        if !self.folder.join(CONFIG).exists() {
            return Ok(refuse_taken(&self.folder)?);
        }
        let found = C::read(&self.folder.join(CONFIG))?;
        // Through text like what was found: numbers of many digits need not survive it unchanged.
        let wanted: C = serde_json::from_str(&serde_json::to_string(&self.config)?)?;
        let [wanted, found] = [&wanted, &found].map(serde_json::to_value);
        if let Some((key, wanted, found)) = config::difference(&wanted?, &found?) {
            bail!(
                "{}: holds a run with other settings: {key} is {found}, asked for {wanted}",
                self.folder.display()
            );
        }
        self.config.check_kept(data, &self.folder)?;
        let fingerprint = self.config.fingerprint(data)?;
        Ok(refuse_unusable(&self.folder, &fingerprint)?)
    }
}

/// A model at the end of its training.
struct Trained<M> {
    model: M,
    /// Of the training, where there was one: Ctrl-C goes on being told to it while the model is measured.
    interrupter: Option<Interrupter>,
}

impl<M> Trained<M> {
    fn is_stopped(&self) -> bool {
        let interrupter = self.interrupter.as_ref();
        interrupter.is_some_and(Interrupter::should_stop)
    }
}

impl<C: RunSettings> Setting<C> {
    fn name(&self, model: C::ModelKind) -> &'static str {
        self.base.clone().with_model(model).model_name()
    }

    fn plan(&self, model: C::ModelKind, seed: u64, rate: Option<f64>) -> Plan<C> {
        let mut config = self.base.clone().with_model(model);
        config.trainer_mut().seed = seed;
        let mut name = format!("{}-seed{seed}", config.model_name());
        if let Some(rate) = rate {
            config.trainer_mut().learning_rate = rate;
            name += &format!("-rate{rate:e}");
        }
        Plan {
            config,
            folder: self.out.join(name),
        }
    }

    fn batches(&self, items: usize) -> Result<Vec<C::Batch>> {
        Ok(self.base.evaluation(&self.data, items, &self.device)?)
    }

    /// The learning rate whose run has the highest log-likelihood on the problems that a training
    /// evaluates with, and what every rate came to. `None` after Ctrl-C.
    fn choose_rate(
        &self,
        model: C::ModelKind,
        seed: u64,
        rates: &[Option<f64>],
    ) -> Result<Option<(Option<f64>, Vec<Tried>)>> {
        let mut tried = Vec::new();
        for rate in rates.iter().flatten() {
            let plan = self.plan(model, seed, Some(*rate));
            let log_likelihood = match self.trained(&plan) {
                Ok(None) => return Ok(None),
                Ok(Some(trained)) => {
                    let batches = self.batches(self.base.sizes().eval_items)?;
                    let measured = measure(&trained.model, batches, seed);
                    if trained.is_stopped() {
                        return Ok(None);
                    }
                    measured.get("log_likelihood").copied()
                }
                // A rate that is too high has lost, and the others have not.
                Err(error) if diverged(&error) && rates.len() > 1 => {
                    eprintln!("{} at learning rate {rate:e}: {error}", self.name(model));
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
            bail!(
                "{}: training diverged at every learning rate",
                self.name(model)
            );
        };
        eprintln!(
            "{}: learning rate {rate:e} of {}, held-out log-likelihood {log_likelihood:.4}",
            self.name(model),
            tried.len()
        );
        Ok(Some((Some(rate), tried)))
    }

    /// The trained model of a run: from its folder where it is finished, else after training what is
    /// missing. `None` after Ctrl-C.
    fn trained(&self, plan: &Plan<C>) -> Result<Option<Trained<C::Model>>> {
        let Plan { config, folder } = plan;
        let resume = folder.join(CONFIG).exists();
        if resume
            && let Ok((checkpoint, _)) = Checkpoint::newest(folder)
            && checkpoint.state().step == config.trainer().steps
        {
            eprintln!("{}: finished before", folder.display());
            let model = config.blank(&self.data, &self.device);
            return Ok(Some(Trained {
                model: checkpoint.load_model(model)?,
                interrupter: None,
            }));
        }
        eprintln!(
            "{}: {}",
            folder.display(),
            if resume { "resuming" } else { "training" }
        );
        let model = first_model(config, &self.data, folder, &self.device)?;
        let trainer = prepare(config, &self.data, folder, resume)?;
        let interrupter = trainer.interrupter();
        let report = fit(trainer, config, &self.data, model, &self.device)?;
        let trained = Trained {
            model: report.model,
            interrupter: Some(interrupter),
        };
        Ok((!report.interrupted && !trained.is_stopped()).then_some(trained))
    }

    fn measure(&self, plan: &Plan<C>, model: &C::Model) -> Result<Run> {
        let seed = plan.config.trainer().seed;
        let batches = self.batches(self.base.sizes().test_items)?;
        let query_seconds = self.query_seconds(model, &batches)?;
        let mut metrics = measure(model, batches, seed);
        metrics.extend(plan.config.facts(&self.data));
        Ok(Run {
            seed,
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
            let queries = C::answer(model, batch, &mut numbers);
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

fn first_free<C: RunSettings>(config: &C) -> PathBuf {
    super::first_free(config.task_name(), "compare")
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
