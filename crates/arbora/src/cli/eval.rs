//! `arbora eval`

use super::EvalArgs;
use crate::backend;
use crate::config::{ModelKind, RunConfig};
use crate::learner::{TaskModel, Walk};
use crate::task;
use anyhow::{Result, bail};
use arbora_rl::train::Checkpoint;
use burn::module::Module;
use serde_json::json;
use std::process::ExitCode;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    if !args.run.is_dir() {
        bail!("{}: expected a run folder", args.run.display());
    }
    let config = RunConfig::read(&args.run.join("config.json"))?;
    if args.random_route && !config.model.has_tree() {
        bail!("--random-route: {} walks no tree", config.model.name());
    }
    if !args.search.is_empty() && config.model != ModelKind::ReTreever {
        bail!("--search: {} has no learned route", config.model.name());
    }
    let searches = super::search::options(&args.search, args.temperature)?;
    let (checkpoint, passed_over) = Checkpoint::newest(&args.run)?;
    for error in passed_over {
        eprintln!("{error}; using step {}", checkpoint.state().step);
    }
    let task = task::load(&config)?;
    let features = task.features();
    checkpoint.expect_fingerprint(&config.fingerprint(&features)?)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let mut model = checkpoint.load_model(TaskModel::new(&config, &features, &device))?;
    if args.random_route {
        model = model.with_walk(Walk::Random);
    }
    let problems = task.evaluation(config.test_items, config.eval_batch_size, &device)?;
    if !searches.is_empty() {
        let text = super::search::compare(&model, &searches, &problems, &config, &args)?;
        super::show(&text)?;
        return Ok(ExitCode::SUCCESS);
    }
    let means = model.measure(problems, config.trainer.seed);
    let items = match config.test_items {
        0 => task.count().unwrap_or(0),
        items => items,
    };
    let step = checkpoint.state().step;
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
        let title = format!("{name} at step {step}, {items} {of}");
        let lines = means
            .iter()
            .map(|(name, mean)| format!("\n{name:<16} {mean:>10.4}"));
        title + &lines.collect::<String>()
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}
