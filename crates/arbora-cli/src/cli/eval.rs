//! `arbora eval`

use super::{EvalArgs, search, show};
use crate::families::retrieval::{RetrievalConfig, RetrievalModelKind};
use crate::families::{AnyTask, Family, FamilyModel as _, of_family};
use crate::run::{TrainedRun, config_of, measured, task_of};
use anyhow::{Result, anyhow, bail};
use burn::module::Module as _;
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    let task = task_of(&args.run);
    if !args.search.is_empty() {
        return searches(&args, task);
    }
    of_family!(task, eval(&args))
}

fn eval<F: Family>(args: &EvalArgs) -> Result<ExitCode> {
    let placement = args.place.open()?;
    let TrainedRun {
        config,
        data,
        about,
        model,
        step,
        backend,
        device,
    } = TrainedRun::<F>::load(&args.run, args.backend.as_deref(), &args.data.moved)?;
    let common = config.common();
    let mut model = model.place(&placement)?;
    if args.random_route {
        let walking = model.walking_at_random();
        model = walking.map_err(|error| anyhow!("--random-route: {} {error}", common.model))?;
    }
    let items = common.measured(common.test_items, about.count);
    let mut means = measured(&config, &model, common.test_items, &data, &device)?;
    // Where they are counted, what is no parameter is left out: biases of balance, for instance.
    let counted = about.static_metrics.get("total_parameters");
    let parameters = counted.map_or_else(|| model.num_params(), |count| *count as usize);
    means.extend(about.static_metrics);
    show(&if args.json {
        json!({
            "run": args.run.to_string_lossy(), "model": common.model, "step": step,
            "backend": backend, "route": route(common.model, args.random_route), "items": items,
            "of": about.items, "parameters": parameters, "metrics": means,
        })
        .to_string()
    } else {
        format!(
            "{} at step {step}, {items} {}{}",
            common.model,
            about.items,
            lines(&means)
        )
    })?;
    Ok(ExitCode::SUCCESS)
}

/// How a model walks down its trees.
fn route(model: &str, at_random: bool) -> &'static str {
    match model {
        _ if at_random => "random",
        "retreever" | "tree-coder" => "learned",
        "random-route" => "random",
        "oracle-route" => "oracle",
        "hash-route" => "hashed",
        _ => "none",
    }
}

/// The name of the model of the run in a folder.
fn model_of<F: Family>(folder: &Path) -> Result<&'static str> {
    Ok(config_of::<F>(folder)?.common().model)
}

/// The searches asked for, in one table.
fn searches(args: &EvalArgs, task: AnyTask) -> Result<ExitCode> {
    if !matches!(task, AnyTask::Retrieval(_)) {
        let model = of_family!(task, model_of(&args.run))?;
        bail!("--search: {model} searches no token tree");
    }
    let config = config_of::<RetrievalConfig>(&args.run)?;
    args.place.refuse()?;
    if config.model != RetrievalModelKind::ReTreever {
        bail!("--search: {} has no learned route", config.model.name());
    }
    let run = TrainedRun::load(&args.run, args.backend.as_deref(), &args.data.moved)?;
    show(&search::compare(&run, args)?)?;
    Ok(ExitCode::SUCCESS)
}

/// The numbers, one a line. Where there are classes, their accuracy comes first, in per cent: that is
/// what a person asks for.
pub fn lines(means: &BTreeMap<String, f64>) -> String {
    let is_accuracy = |name: &str| name == "accuracy" || name.starts_with("accuracy_");
    let (accuracies, others): (Vec<_>, Vec<_>) =
        means.iter().partition(|(name, _)| is_accuracy(name));
    let line = |(name, mean): (&String, &f64)| {
        if is_accuracy(name) {
            format!("\n{name:<16} {:>8.2} %", 100.0 * mean)
        } else {
            format!("\n{name:<16} {mean:>10.4}")
        }
    };
    accuracies.into_iter().chain(others).map(line).collect()
}
