//! `arbora train` on sequences.

use super::{configure, first_free, fit, interrupted, prepare, refuse, summary};
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
    // Before the folder is made. What is resumed has its weights there.
    let model = match args.resume && holds_weights(&out) {
        true => config.blank(&data, &device),
        false => config.init(&data, &device)?,
    };
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

/// Whether a run folder has checkpoints to go on from.
fn holds_weights(run: &std::path::Path) -> bool {
    arbora_rl::train::Checkpoint::newest(run).is_ok()
}
