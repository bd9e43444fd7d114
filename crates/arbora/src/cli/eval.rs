//! `arbora eval`

use super::EvalArgs;
use crate::backend;
use crate::config::RunConfig;
use crate::images::{ImageModel, ImageTask};
use anyhow::{Result, bail};
use arbora_rl::train::{Checkpoint, TrainableModel};
use burn::module::Module;
use serde_json::json;
use std::collections::BTreeMap;
use std::process::ExitCode;

pub fn run(args: EvalArgs) -> Result<ExitCode> {
    if !args.run.is_dir() {
        bail!("{}: expected a run folder", args.run.display());
    }
    let config = RunConfig::read(&args.run.join("config.json"))?;
    let (checkpoint, passed_over) = Checkpoint::newest(&args.run)?;
    for error in passed_over {
        eprintln!("{error}; using step {}", checkpoint.state().step);
    }
    let task = ImageTask::load(&config)?;
    checkpoint.expect_fingerprint(&config.fingerprint(task.channels())?)?;
    let (backend, device) = backend::open(args.backend.as_deref())?;
    let mut model = checkpoint.load_model(ImageModel::new(&config, task.channels(), &device))?;
    if args.random_route {
        model = model.with_random_route();
    }
    let seed = config.trainer.seed;
    let mut totals: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    let batches = task.evaluation_batches(0, config.eval_batch_size, &device)?;
    for (index, batch) in batches.into_iter().enumerate() {
        let purpose = arbora_rl::seed::Purpose::Evaluation;
        let mut rng = arbora_rl::seed::rng(seed, purpose, index as u64);
        for measured in model.evaluate(batch, &mut rng) {
            let (sum, weight) = totals.entry(measured.name).or_default();
            *sum += measured.sum;
            *weight += measured.weight;
        }
    }
    let means = totals
        .into_iter()
        .map(|(name, (sum, weight))| (name, sum / weight));
    let step = checkpoint.state().step;
    if args.json {
        let metrics: serde_json::Map<_, _> =
            means.map(|(name, mean)| (name, json!(mean))).collect();
        let route = if args.random_route {
            "random"
        } else {
            "learned"
        };
        println!(
            "{}",
            json!({
                "run": args.run, "model": config.model, "step": step, "backend": backend,
                "route": route, "images": task.test_images(), "parameters": model.num_params(),
                "metrics": metrics,
            })
        );
    } else {
        println!(
            "{} at step {step}, {} test images",
            config.model.name(),
            task.test_images()
        );
        means.for_each(|(name, mean)| println!("{name:<16} {mean:>10.4}"));
    }
    Ok(ExitCode::SUCCESS)
}
