//! `arbora train`

use super::{TrainArgs, dashboard, interrupted, show};
use crate::backend;
use crate::families::{AnyTask, Family, FamilyModel as _, Finished, of_family};
use crate::message::tell;
use crate::run::{Run, config_of, first_free, is_taken, measured, refuse_taken};
use crate::settings::{difference_but_places, layered};
use anyhow::{Result, bail};
use arbora::rl::train::is_folder;
use serde_json::json;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: TrainArgs) -> Result<ExitCode> {
    if args.dashboard {
        dashboard::check()?;
    }
    of_family!(args.task, train(&args))
}

fn train<F: Family>(args: &TrainArgs) -> Result<ExitCode> {
    let config: F = configure(args)?;
    let common = config.common();
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let resumed = args.out.as_deref().filter(|_| args.resume);
    let data = config.load(resumed)?;
    let about = config.about(&data)?;
    let next = || first_free(common.task, common.model);
    let mut run = Run {
        config: config.clone(),
        folder: args.out.clone().unwrap_or_else(next),
    };
    // Before the folder is made: a refusal leaves nothing.
    if !args.resume {
        refuse_taken(&run.folder)?;
    }
    let state = run.state(&about)?;
    let placement = args.place.open()?;
    let model = run.model(&data, &device)?.place(&placement)?;
    let trainer = loop {
        match run.trainer(&about, &backend, state) {
            // Another process was faster.
            Err(error) if args.out.is_none() && is_taken(&error) => run.folder = next(),
            trainer => break trainer?.keep_devices(!placement.is_empty()),
        }
    };
    let folder = run.folder.clone();
    let data_summary = about
        .data_summary
        .map(|data_summary| format!("; {data_summary}"));
    tell!(
        "{} on {backend}, run folder {}{}",
        common.model,
        folder.display(),
        data_summary.unwrap_or_default()
    );
    #[cfg(feature = "dashboard")]
    let (trainer, _notices) = dashboard::show(trainer, F::LIVE, args.dashboard);

    let trained = run.train(trainer, model, &data, &device)?;
    if trained.is_stopped() {
        return interrupted(&format!(
            "stopped at step {}; continue with --out {} --resume",
            trained.step,
            folder.display()
        ));
    }
    let finished = Finished {
        name: common.model,
        folder: &folder,
        config: &config,
        model: Some(&trained.model),
    };
    F::draw(&[finished], &data, &device, &folder)?;
    // All test items, and also where a resumed run had no step left to evaluate.
    let mut means = measured(&config, &trained.model, common.test_items, &data, &device)?;
    means.extend(about.static_metrics);
    show(&if args.json {
        means.insert("seconds".into(), trained.seconds);
        let models = json!({ common.model: means });
        json!({ "run": folder.to_string_lossy(), "models": models }).to_string()
    } else {
        format!(
            "{} after {:.0} s{}\nrun folder with curves: {}",
            common.model,
            trained.seconds,
            super::eval::lines(&means),
            folder.display()
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The settings of a run: those of its folder where it is resumed, else a preset, and layers over them.
fn configure<F: Family>(args: &TrainArgs) -> Result<F> {
    let task = args.task.name();
    let mut settings = args.settings.clone();
    if let Some(model) = args.model {
        settings.push(format!("model={}", model.of::<F>()?));
    }
    if let Some(seed) = args.seed {
        settings.push(format!("trainer.seed={seed}"));
    }
    let base: F = match (&args.out, args.resume) {
        (Some(out), true) => resumed(out, args.task)?,
        _ => F::preset(task, args.preset, args.from.as_deref())?,
    };
    let config = layered(&base, args.config.as_deref(), &settings)?;
    if config.common().task != task {
        bail!(
            "the settings are for task {}, asked for {task}",
            config.common().task
        );
    }
    if args.resume
        && let Some((key, wanted, found)) = difference_but_places(
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
    Ok(config)
}

/// The settings of the run in a folder. One of another family is refused by the name of its task, before its settings
/// are read as what they are not.
fn resumed<F: Family>(folder: &Path, asked: AnyTask) -> Result<F> {
    if !is_folder(folder)? {
        bail!("{}: no run to resume here", folder.display());
    }
    match AnyTask::of_run(folder) {
        Some(found) if !found.is_like(asked) => bail!(
            "the settings are for task {}, asked for {}",
            found.name(),
            asked.name()
        ),
        _ => config_of(folder),
    }
}
