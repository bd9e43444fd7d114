//! Files of runs and of comparisons.

use super::Reader;
use super::models::device;
use anyhow::{Context as _, Result};
use arbora::rl::BaselineState;
use arbora::rl::train::{
    Checkpoint, CheckpointState, FORMAT_VERSION, OptimizerConfig, TrainerConfig, testing,
};
use arbora_cli::testing as commands;
use burn::nn::LinearConfig;
use burn::optim::GradientsParams;
use burn::tensor::Tensor;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::fs;
use std::path::Path;

/// A run of each family in a folder of its own, of those whose settings are asked for.
fn runs(
    is_asked: fn(&Value) -> bool,
    read: impl FnMut(&Path, &str) -> Result<()> + 'static,
) -> Result<Reader> {
    let settings = commands::settings_of_runs()?.into_iter().enumerate();
    let asked = settings
        .filter(|(_, text)| is_asked(&serde_json::from_str(text).unwrap_or_default()))
        .map(|(at, text)| (format!("run-{at}/config.json"), text));
    Ok(Reader::new(asked, &["\"kind\""], read))
}

/// The settings of a run of each family.
pub fn settings(_: &Path) -> Result<Reader> {
    runs(
        |_| true,
        |folder, name| commands::read_settings(folder.join(name).parent().unwrap_or(folder)),
    )
}

/// The settings of runs whose data are drawn, up to what settings and data come to.
pub fn begun(_: &Path) -> Result<Reader> {
    runs(
        |settings| settings["task"] == "bandit" || settings["task"] == "recall",
        |folder, name| {
            let run = folder.join(name);
            // What does not fit the data is named by its key.
            commands::begin_run(run.parent().unwrap_or(folder)).with_context(|| name.to_owned())
        },
    )
}

/// A file of settings over those of a task.
pub fn layer(_: &Path) -> Result<Reader> {
    let layer = json!({
        "trainer": {"steps": 5, "learning_rate": 0.1, "policy_gradient": {"entropy_weight": 0.5}},
        "architecture": {"order": {"axis": 0}, "d_model": 16}
    });
    let text = json!({"data": {"source": "moby-dick", "tokenizer": {"kind": "bytes"}}});
    let files = [
        ("images.json", layer.to_string()),
        ("lm.json", text.to_string()),
    ];
    let words = &["\"kind\"", "\"path\""];
    Ok(Reader::new(files, words, |folder, name| {
        // A setting that is out of range is named by its key: it may be that of another layer.
        commands::read_layer(name.trim_end_matches(".json"), &folder.join(name))
            .with_context(|| name.to_owned())
    }))
}

const LOG: &str = "{\"step\":1,\"split\":\"train\",\"loss\":0.5,\"learning_rate\":0.001}\n\
    {\"step\":2,\"split\":\"train\",\"loss\":null,\"learning_rate\":0.001}\n\
    {\"step\":2,\"split\":\"valid\",\"loss\":0.25}\n{\"step\":3,\"split\":\"train\",\"loss\":1e-9}\n";

/// The log of a run that goes on from its second step.
pub fn log(_: &Path) -> Result<Reader> {
    let files = [("metrics.jsonl", LOG)];
    let words = &["\"step\":", "}\n{"];
    Ok(Reader::new(files, words, |folder, name| {
        Ok(testing::open_log(&folder.join(name), 2)?)
    }))
}

/// What a run's folder and a page's numbers say of runs.
pub fn records(_: &Path) -> Result<Reader> {
    let entry = json!({
        "fingerprint": "0123", "line": "retreever", "seed": 1, "commit": "1a2b3c4", "backend": "flex",
        "version": 1, "steps": 10, "items": 100, "of": "test images", "parameters": 1234,
        "metrics": {"loss": 0.5, "perplexity": null}, "reached": [{"accuracy": 0.9, "step": null}]
    });
    let made = json!([{"version": 1, "backend": "flex"}]);
    let measured = json!({"entries": [entry], "seconds_per_query": 1e-6});
    let page = json!({"runs": [entry], "title": "x"});
    let files = [
        ("made.json", made.to_string()),
        ("measured.json", measured.to_string()),
        ("page.json", page.to_string()),
        ("metrics.jsonl", LOG.into()),
    ];
    let words = &["\"step\":"];
    Ok(Reader::new(files, words, |folder, name| match name {
        "page.json" => commands::read_numbers(&folder.join(name)),
        _ => commands::read_records(folder),
    }))
}

/// A checkpoint with the state of an optimiser, which is loaded.
pub fn checkpoint(made: &Path) -> Result<Reader> {
    let device = device()?;
    let tracked = device.clone().autodiff();
    let model = LinearConfig::new(3, 4).init(&tracked);
    let mut optimizer = OptimizerConfig::default().init();
    let loss = model.forward(Tensor::<2>::ones([2, 3], &tracked)).sum();
    let gradients = GradientsParams::from_grads(loss.backward(), &model);
    let model = optimizer.step(0.1, model, gradients);
    let state = CheckpointState {
        format_version: FORMAT_VERSION,
        step: 1,
        seed: 3,
        fingerprint: "linear".into(),
        baseline: BaselineState::default(),
        config: TrainerConfig::default(),
    };
    testing::save(made, &state, &model, &optimizer)?;
    let names = ["state.json", "SHA256SUMS", "model.bpk", "optimizer.bpk"];
    let from = made.join("checkpoints/step-00000001");
    let read = |name: &str| {
        Ok((
            format!("checkpoints/step-00000001/{name}"),
            fs::read(from.join(name))?,
        ))
    };
    let files = names.into_iter().map(read).collect::<Result<Vec<_>>>()?;
    let words = &[
        "\"format_version\"",
        "  model.bpk\n",
        "param_id",
        "dtype",
        "shape",
    ];
    let mut reader = Reader::new(files, words, move |folder, _| {
        let (checkpoint, _) = Checkpoint::newest(folder)?;
        checkpoint.load_model(LinearConfig::new(3, 4).init(&device))?;
        testing::load_optimizer(&checkpoint, OptimizerConfig::default().init())?;
        Ok(())
    });
    reader.mend = Some(|folder, name, bytes| {
        let file = name.rsplit('/').next().unwrap_or(name);
        let sums = name.replace(file, "SHA256SUMS");
        if name == sums {
            return Ok(vec![(name.into(), bytes)]);
        }
        let sum = format!("{:x}", Sha256::digest(&bytes));
        let text = fs::read_to_string(folder.join(&sums))?;
        let lines = text.lines().map(|line| {
            if line.ends_with(file) {
                format!("{sum}  {file}\n")
            } else {
                format!("{line}\n")
            }
        });
        let text: String = lines.collect();
        Ok(vec![(name.into(), bytes), (sums, text.into_bytes())])
    });
    Ok(reader)
}

pub fn placement(_: &Path) -> Result<Reader> {
    let placement =
        json!({"root": "flex", "0": "ws://127.0.0.1:3000", "0.1.1": "flex", "1": "flex"});
    let files = [("placement.json", placement.to_string())];
    let words = &["0.", "root", "99999999999999999999", "..", "ws://"];
    Ok(Reader::new(files, words, |folder, name| {
        commands::read_placement(&folder.join(name))
    }))
}

/// Experiments that are a part of the program.
pub fn experiment(_: &Path) -> Result<Reader> {
    let experiments = commands::experiments().enumerate();
    let files = experiments.map(|(at, text)| (format!("experiment-{at}.json"), text));
    let words = &["\"rows\"", "\"from\"", "\"seeds\""];
    Ok(Reader::new(files, words, |folder, name| {
        commands::read_experiment(&folder.join(name))
    }))
}
