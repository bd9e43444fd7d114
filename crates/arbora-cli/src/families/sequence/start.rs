//! How a run on sequences starts: from fresh weights, or from those of another run.

use super::{SequenceConfig, SequenceModel};
use crate::families::{AnyTask, Family as _};
use crate::message::tell;
use crate::run::CONFIG;
use crate::settings::{self, difference};
use anyhow::Result;
use arbora::attention::{AttentionKindConfig, RouterConfig};
use arbora::rl::seed::{Purpose, derive};
use arbora::rl::train::{Checkpoint, TrainError, has_any};
use arbora::tasks::TaskError;
use arbora::tasks::recall::Lookup;
use burn::module::Module as _;
use burn::tensor::Device;
use std::path::Path;

impl SequenceConfig {
    /// The model before its first step.
    ///
    /// # Errors
    /// As [`source`](Self::source).
    pub(super) fn first_model(&self, data: &Lookup, device: &Device) -> Result<SequenceModel> {
        let layers = 0..self.architecture.layers;
        let Some(from) = &self.from else {
            let fresh: Vec<usize> = layers.collect();
            return Ok(self.split(self.untrained(data, device), data, device, &fresh)?);
        };
        let (source, theirs, checkpoint) = self.source(from, data)?;
        // Of its own sequences: what mixes tokens has as many weights as these have tokens.
        let mut network = checkpoint
            .load_model(source.untrained(&theirs, device))?
            .into_network();
        let (had, wanted) = (source.treeformer(&theirs), self.treeformer(data));
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        let mut fresh = Vec::new();
        for layer in layers {
            let kind = if layer < wanted.dense_layers {
                Default::default()
            } else {
                wanted.attention.clone()
            };
            let old = network.blocks[layer].attention.kind.clone();
            network = network.with_attention(&kind, layer..layer + 1, seed);
            if same_weights(&had.kind(layer), &wanted.kind(layer)) {
                let new = &mut network.blocks[layer].attention.kind;
                *new = new.clone().load_record(old.into_record());
            } else {
                fresh.push(layer);
            }
        }
        Ok(self.split(SequenceModel::new(self, network), data, device, &fresh)?)
    }

    /// Splits the activations of some sequences evenly by the trees of a model that are new: those of the
    /// layers `fresh`.
    fn split(
        &self,
        model: SequenceModel,
        data: &Lookup,
        device: &Device,
        fresh: &[usize],
    ) -> Result<SequenceModel, TaskError> {
        if !self.trees.median_split || self.router().is_none() {
            return Ok(model);
        }
        // Whole sequences of a stream that no step trains on.
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        let batch = data.eval_batch(seed, 0, self.batch_size, device)?;
        Ok(model.map_network(|network| network.with_median_split(batch.tokens, fresh)))
    }

    /// The settings, the sequences and the newest checkpoint of the run to start from.
    ///
    /// # Errors
    /// [`TrainError::Missing`] without a run; [`TrainError::OtherSettings`] if more than its attention is of
    /// another architecture; whatever keeps its checkpoint from being read.
    pub(super) fn source(&self, from: &Path, data: &Lookup) -> Result<(Self, Lookup, Checkpoint)> {
        let missing = || TrainError::Missing {
            path: from.into(),
            what: "run to start from",
        };
        let other = |setting: &str, saved: &dyn ToString, asked: &dyn ToString| {
            Err(TrainError::OtherSettings {
                path: from.into(),
                setting: setting.into(),
                saved: saved.to_string(),
                asked: asked.to_string(),
            }
            .into())
        };
        match AnyTask::of_run(from) {
            Some(AnyTask::Sequence(_)) => {}
            Some(task) => return other("task", &task.name(), &self.task.name()),
            None if !has_any(from, &[CONFIG])? => return Err(missing().into()),
            // Reading it whole says what is wrong with it.
            None => {}
        }
        let source = settings::read::<Self>(&from.join(CONFIG))?;
        let theirs = source.lookup()?;
        let [wanted, found] = [self.treeformer(data), source.treeformer(&theirs)]
            .map(|mut config| {
                config.attention = Default::default();
                config.dense_layers = 0;
                config
            })
            .map(serde_json::to_value);
        if let Some((key, wanted, found)) = difference(&wanted?, &found?) {
            return other(&key, found, wanted);
        }
        let (checkpoint, passed_over) = Checkpoint::newest(from)?;
        for error in passed_over {
            tell!("{error}; starting from step {}", checkpoint.state().step);
        }
        checkpoint.expect_fingerprint(&source.architecture_fingerprint(&theirs)?)?;
        Ok((source, theirs, checkpoint))
    }
}

/// Whether the weights of one way of attending are weights of the other.
fn same_weights(one: &AttentionKindConfig, other: &AttentionKindConfig) -> bool {
    match (one, other) {
        (AttentionKindConfig::TreeFine(one), AttentionKindConfig::TreeFine(other)) => {
            same_trees(&one.router, &other.router)
        }
        (AttentionKindConfig::TreeCoarse(one), AttentionKindConfig::TreeCoarse(other)) => {
            same_trees(&one.router, &other.router) && one.per_head_alpha == other.per_head_alpha
        }
        (one, other) => one == other,
    }
}

fn same_trees(one: &RouterConfig, other: &RouterConfig) -> bool {
    one.branching == other.branching
        && one.scope == other.scope
        && one.sharing == other.sharing
        && one.normalize == other.normalize
}
