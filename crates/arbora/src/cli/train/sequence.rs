//! `arbora train` on sequences.

use super::{configure, first_free, first_model, fit, interrupted, prepare, refuse, summary};
use crate::cli::TrainArgs;
use crate::config::AnyModel;
use crate::config::sequence::{SequenceConfig, SequenceTask};
use crate::run::{RunSettings as _, measure};
use crate::{backend, report};
use anyhow::Result;
use std::path::PathBuf;
use std::process::ExitCode;

pub(super) fn run(task: SequenceTask, args: TrainArgs) -> Result<ExitCode> {
    let model = args.model.map(AnyModel::sequence).transpose()?;
    let config: SequenceConfig = configure(&args, task, model, || {
        let preset = SequenceConfig::preset(task, args.preset)?;
        Ok(match &args.from {
            Some(from) => preset.started_from(from.clone()),
            None => preset,
        })
    })?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let data = config.load()?;
    let out: PathBuf = args.out.clone().unwrap_or_else(|| first_free(&config));
    refuse(&config, &data, &out, args.resume)?;
    let name = config.model_name();
    // Before the folder is made: a refusal leaves nothing.
    let model = first_model(&config, &data, &out, &device)?;
    let trainer = prepare(&config, &data, &out, args.resume)?;
    eprintln!("{name} on {backend}, run folder {}", out.display());
    let interrupter = trainer.interrupter();
    #[cfg(feature = "dashboard")]
    let (trainer, _notices) = match args.dashboard {
        true => {
            let names = ["loss", "log_likelihood", "accuracy"];
            let (trainer, notices) = crate::cli::dashboard::show(trainer, &names);
            (trainer, Some(notices))
        }
        false => (trainer, None),
    };
    let trained = fit(trainer, &config, &data, model, &device)?;
    if trained.interrupted || interrupter.should_stop() {
        return interrupted(&out, trained.step);
    }
    report::draw_sequence_curves(&[(name, &out)], &out)?;
    let batches = config.evaluation(&data, config.test_items, &device)?;
    let numbers = measure(&trained.model, batches, config.trainer.seed);
    let results = vec![(name, numbers, trained.seconds)];
    let text = report::sequence_table(&results);
    crate::cli::show(&summary(&out, results, text, args.json))?;
    Ok(ExitCode::SUCCESS)
}
