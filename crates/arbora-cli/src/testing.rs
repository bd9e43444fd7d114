//! Readers of this crate's files, for `cargo xtask torture`, which damages the files. Errors are the command line's own.

use crate::experiment::{self, Experiment};
use crate::families::language::LanguageConfig;
use crate::families::retrieval::RetrievalConfig;
use crate::families::sequence::SequenceConfig;
use crate::families::{AnyTask, Family, Preset, curves, of_family};
use crate::{placement, run, settings};
use anyhow::Result;
use clap::ValueEnum as _;
use std::path::Path;

/// The settings of a run of each family, as its `config.json` has them.
pub fn settings_of_runs() -> Result<Vec<String>> {
    fn text<F: Family>(task: &str) -> Result<String> {
        let config = F::preset(task, Preset::Small, None)?.checked()?;
        Ok(serde_json::to_string_pretty(&config)?)
    }
    Ok(vec![
        text::<RetrievalConfig>("images")?,
        text::<RetrievalConfig>("bandit")?,
        text::<SequenceConfig>("recall")?,
        text::<LanguageConfig>("lm")?,
    ])
}

/// Reads the settings of the run in a folder, of whichever family.
pub fn read_settings(folder: &Path) -> Result<()> {
    fn read<F: Family>(folder: &Path) -> Result<()> {
        run::config_of::<F>(folder).map(drop)
    }
    of_family!(run::task_of(folder), read(folder))
}

/// Reads the settings of the run in a folder, loads its data, and puts both together.
pub fn begin_run(folder: &Path) -> Result<()> {
    fn begin<F: Family>(folder: &Path) -> Result<()> {
        let config = run::config_of::<F>(folder)?;
        config.about(&config.load(None)?).map(drop)
    }
    of_family!(run::task_of(folder), begin(folder))
}

/// Puts a file of settings over those of a task.
pub fn read_layer(task: &str, path: &Path) -> Result<()> {
    fn read<F: Family>(task: &str, path: &Path) -> Result<()> {
        settings::layered(&F::preset(task, Preset::Small, None)?, Some(path), &[]).map(drop)
    }
    let known = AnyTask::from_str(task, false).map_err(anyhow::Error::msg)?;
    of_family!(known, read(task, path))
}

/// Reads a placement.
pub fn read_placement(path: &Path) -> Result<()> {
    placement::read(path).map(drop)
}

/// The experiments that are a part of the program, as their files have them.
pub fn experiments() -> impl Iterator<Item = &'static str> {
    experiment::BUNDLED.iter().map(|(_, text)| *text)
}

/// Reads an experiment.
pub fn read_experiment(path: &Path) -> Result<()> {
    let experiment = Experiment::read(path)?;
    let _ = experiment.lines();
    Ok(())
}

/// Reads the numbers beside a page.
pub fn read_numbers(path: &Path) -> Result<()> {
    experiment::store::read(path).map(drop)
}

/// Reads what a run's folder says of it, and its log as pictures do.
pub fn read_records(folder: &Path) -> Result<()> {
    run::made(folder)?;
    experiment::store::measured(folder)?;
    let log = curves::read_log(folder)?;
    let _ = curves::points(&log, "train", "loss", 1.0);
    Ok(())
}
