//! `arbora train` on sequences and on language: one model, one run.

use super::{configure, first_free, first_model, fit, interrupted, prepare, refuse, summary};
use crate::backend;
use crate::cli::TrainArgs;
use crate::config::AnyModel;
use crate::config::language::{LanguageConfig, LanguageTask};
use crate::config::sequence::{SequenceConfig, SequenceTask};
use crate::report::{self, Results};
use crate::run::{RunSettings, measure};
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

pub(super) fn sequence(task: SequenceTask, args: TrainArgs) -> Result<ExitCode> {
    let model = args.model.map(AnyModel::sequence).transpose()?;
    let config: SequenceConfig = configure(&args, task, model, || {
        let preset = SequenceConfig::preset(task, args.preset)?;
        Ok(match &args.from {
            Some(from) => preset.started_from(from.clone()),
            None => preset,
        })
    })?;
    let shown = Shown {
        live: &["loss", "log_likelihood", "accuracy"],
        curves: report::draw_sequence_curves,
        table: report::sequence_table,
    };
    run(&config, &args, shown)
}

pub(super) fn language(task: LanguageTask, args: TrainArgs) -> Result<ExitCode> {
    if args.from.is_some() {
        bail!("--from: {} starts from fresh weights", task.name());
    }
    let model = args.model.map(AnyModel::language).transpose()?;
    let config: LanguageConfig = configure(&args, task, model, || {
        LanguageConfig::preset(task, args.preset)
    })?;
    let shown = Shown {
        live: &["loss", "log_likelihood"],
        curves: report::language::draw_curves,
        table: report::language::table,
    };
    run(&config, &args, shown)
}

/// Draws the curves of runs, each with its name, in a folder.
type DrawCurves = fn(&[(&str, &Path)], &Path) -> Result<()>;

/// What people see of a run.
struct Shown {
    /// The numbers on the dashboard.
    #[cfg_attr(not(feature = "dashboard"), allow(dead_code))]
    live: &'static [&'static str],
    curves: DrawCurves,
    table: fn(&[Results]) -> String,
}

fn run<C: RunSettings>(config: &C, args: &TrainArgs, shown: Shown) -> Result<ExitCode> {
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let data = match &args.out {
        Some(out) if args.resume => config.load_run(out)?,
        _ => config.load()?,
    };
    let out: PathBuf = args.out.clone().unwrap_or_else(|| first_free(config));
    refuse(config, &data, &out, args.resume)?;
    let name = config.model_name();
    // Before the folder is made: a refusal leaves nothing.
    let model = C::place(
        first_model(config, &data, &out, &device)?,
        &args.place.open()?,
    )?;
    let trainer = prepare(config, &data, &out, args.resume)?.keep_devices(!args.place.is_empty());
    let account = config.account(&data).map(|account| format!("; {account}"));
    eprintln!(
        "{name} on {backend}, run folder {}{}",
        out.display(),
        account.unwrap_or_default()
    );
    let interrupter = trainer.interrupter();
    #[cfg(feature = "dashboard")]
    let (trainer, _notices) = match args.dashboard {
        true => {
            let (trainer, notices) = crate::cli::dashboard::show(trainer, shown.live);
            (trainer, Some(notices))
        }
        false => (trainer, None),
    };
    let trained = fit(trainer, config, &data, model, &device)?;
    if trained.interrupted || interrupter.should_stop() {
        return interrupted(&out, trained.step);
    }
    (shown.curves)(&[(name, &out)], &out)?;
    let batches = config.evaluation(&data, config.sizes().test_items, &device)?;
    let mut numbers = measure(&trained.model, batches, config.trainer().seed);
    numbers.extend(config.facts(&data));
    let results = vec![(name, numbers, trained.seconds)];
    let text = (shown.table)(&results);
    crate::cli::show(&summary(&out, results, text, args.json))?;
    Ok(ExitCode::SUCCESS)
}
