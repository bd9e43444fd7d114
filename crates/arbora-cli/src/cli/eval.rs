//! `arbora eval`

use super::EvalArgs;
use super::trained::TrainedRun;
use crate::config::language::LanguageConfig;
use crate::config::sequence::SequenceConfig;
use crate::config::{AnyTask, ModelKind, RunConfig};
use crate::learner::Walk;
use crate::run::{RunSettings, measure};
use anyhow::{Result, bail};
use arbora::models::tree_coder::SelectorGradient;
use burn::module::Module;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    match AnyTask::of_run(&args.run) {
        Some(AnyTask::Sequence(_)) => return sequence(&args),
        Some(AnyTask::Language(_)) => return language(&args),
        // Reading settings that name no task says what is wrong with them.
        Some(AnyTask::Retrieval(_)) | None => {}
    }
    let model = TrainedRun::<RunConfig>::config(&args.run)?.model;
    args.place.refuse()?;
    if args.random_route && !model.has_tree() {
        bail!("--random-route: {} walks no tree", model.name());
    }
    if !args.search.is_empty() && model != ModelKind::ReTreever {
        bail!("--search: {} has no learned route", model.name());
    }
    let searches = super::search::options(&args.search, args.temperature)?;
    let run: TrainedRun = TrainedRun::load(&args.run, args.backend.as_deref())?;
    let items = run.test_items();
    let TrainedRun {
        config,
        task,
        mut model,
        step,
        backend,
        device,
    } = run;
    if args.random_route {
        model = model.with_walk(Walk::Random);
    }
    let problems = task.evaluation(config.test_items, config.eval_batch_size, &device)?;
    if !searches.is_empty() {
        let text = super::search::compare(&model, &searches, &problems, &config, &args)?;
        super::show(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let means = measure(&model, problems, config.trainer.seed);
    let text = if args.json {
        let route = match config.model {
            ModelKind::CrossAttention | ModelKind::Perceiver => "none",
            _ if args.random_route => "random",
            ModelKind::RandomRoute => "random",
            ModelKind::OracleRoute => "oracle",
            ModelKind::ReTreever => "learned",
        };
        json!({
            "run": args.run.to_string_lossy(), "model": config.model, "step": step,
            "backend": backend, "route": route, "items": items, "of": task.items(),
            "parameters": model.num_params(), "metrics": means,
        })
        .to_string()
    } else {
        let (name, of) = (config.model.name(), task.items());
        format!("{name} at step {step}, {items} {of}{}", lines(&means))
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// A run on sequences, whose models have one way to be measured.
fn sequence(args: &EvalArgs) -> Result<ExitCode> {
    let name = TrainedRun::<SequenceConfig>::config(&args.run)?.model_name();
    if args.random_route {
        bail!("--random-route: {name} searches no token tree");
    }
    refuse_search(args, name)?;
    args.place.refuse()?;
    measured(
        TrainedRun::<SequenceConfig>::load(&args.run, args.backend.as_deref())?,
        args,
    )
}

/// A run on language, whose trees may be walked at random.
fn language(args: &EvalArgs) -> Result<ExitCode> {
    let config = TrainedRun::<LanguageConfig>::config(&args.run)?;
    let model = config.model;
    if args.random_route && !model.has_tree() {
        bail!("--random-route: {} walks no tree", model.name());
    }
    if args.random_route && config.selector.gradient == SelectorGradient::Soft {
        bail!("--random-route: soft selectors go to all leaves");
    }
    refuse_search(args, model.name())?;
    let mut run = TrainedRun::<LanguageConfig>::load(&args.run, args.backend.as_deref())?;
    run.model = run.model.place(&args.place.open()?)?;
    if args.random_route {
        run.model = run.model.with_random_route();
    }
    measured(run, args)
}

fn refuse_search(args: &EvalArgs, name: &str) -> Result<()> {
    match args.search.is_empty() {
        true => Ok(()),
        false => bail!("--search: {name} searches no token tree"),
    }
}

fn measured<C: RunSettings>(run: TrainedRun<C>, args: &EvalArgs) -> Result<ExitCode> {
    let name = run.config.model_name();
    let (items, of) = (run.test_items(), C::items(&run.task));
    let batches = run.config.evaluation(&run.task, items, &run.device)?;
    let mut means = measure(&run.model, batches, run.config.trainer().seed);
    let facts = run.config.facts(&run.task);
    // Where they are counted, what is no parameter is left out: biases of balance, for instance.
    let counted = facts.get("total_parameters").map(|count| *count as usize);
    let parameters = counted.unwrap_or_else(|| run.model.num_params());
    means.extend(facts);
    let text = match args.json {
        true => json!({
            "run": args.run.to_string_lossy(), "model": name, "step": run.step,
            "backend": run.backend, "items": items, "of": of,
            "parameters": parameters, "metrics": means,
        })
        .to_string(),
        false => format!("{name} at step {}, {items} {of}{}", run.step, lines(&means)),
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}

/// The numbers, one a line. Where there are classes, their accuracy comes first, in per cent: that is
/// what a person asks for.
fn lines(means: &BTreeMap<String, f64>) -> String {
    let is_accuracy = |name: &str| name == "accuracy" || name.starts_with("accuracy_");
    let (accuracies, others): (Vec<_>, Vec<_>) =
        means.iter().partition(|(name, _)| is_accuracy(name));
    let accuracies = accuracies
        .into_iter()
        .map(|(name, mean)| format!("\n{name:<16} {:>8.2} %", 100.0 * mean));
    let others = others
        .into_iter()
        .map(|(name, mean)| format!("\n{name:<16} {mean:>10.4}"));
    accuracies.chain(others).collect()
}
