//! `arbora eval`

use super::EvalArgs;
use crate::backend;
use crate::config::{ModelKind, RunConfig};
use crate::images::{ImageModel, ImageTask};
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
    if args.random_route && config.model == ModelKind::CrossAttention {
        bail!("--random-route: cross-attention walks no tree");
    }
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
    let batches = task.evaluation_batches(0, config.eval_batch_size, &device)?;
    let means = model.measure(batches, config.trainer.seed);
    let step = checkpoint.state().step;
    let text = if args.json {
        let route = match config.model {
            ModelKind::CrossAttention => "none",
            ModelKind::RandomRoute => "random",
            ModelKind::ReTreever if args.random_route => "random",
            ModelKind::ReTreever => "learned",
        };
        json!({
            "run": args.run.to_string_lossy(), "model": config.model, "step": step,
            "backend": backend, "route": route, "images": task.test_images(),
            "parameters": model.num_params(), "metrics": means,
        })
        .to_string()
    } else {
        let (name, images) = (config.model.name(), task.test_images());
        let title = format!("{name} at step {step}, {images} test images");
        let lines = means
            .iter()
            .map(|(name, mean)| format!("\n{name:<16} {mean:>10.4}"));
        title + &lines.collect::<String>()
    };
    super::show(&text)?;
    Ok(ExitCode::SUCCESS)
}
