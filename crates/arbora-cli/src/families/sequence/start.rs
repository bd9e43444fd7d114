//! How a run on sequences starts: from fresh weights, or from those of another run.

use super::{SequenceConfig, SequenceModel};
use crate::families::{AnyTask, Family as _};
use crate::message::tell;
use crate::run::CONFIG;
use crate::settings::{self, difference};
use anyhow::Result;
use arbora::attention::{AttentionKindConfig, RouterConfig};
use arbora::models::Treeformer;
use arbora::rl::seed::{Purpose, derive};
use arbora::rl::train::{Checkpoint, TrainError, has_any};
use arbora::tasks::recall::Lookup;
use burn::module::Module as _;
use burn::tensor::Device;
use std::path::Path;

impl SequenceConfig {
    /// The model before its first step. New trees split the activations of some sequences evenly, where they are to.
    pub(super) fn first_model(&self, data: &Lookup, device: &Device) -> Result<SequenceModel> {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        let (mut network, new_layers) = match &self.from {
            Some(from) => self.continued(from, data, device)?,
            None => (
                self.treeformer(data).with_seed(seed).init(device),
                (0..self.architecture.layers).collect(),
            ),
        };
        if self.trees.median_split && self.router().is_some() {
            // Whole sequences of a stream that no step trains on.
            let batch = data.eval_batch(seed, 0, self.batch_size, device)?;
            network = network.with_median_split(batch.tokens, &new_layers);
        }
        Ok(SequenceModel::new(self, network))
    }

    /// The network of another run with the attention of this one, and the layers whose attention is new.
    fn continued(
        &self,
        from: &Path,
        data: &Lookup,
        device: &Device,
    ) -> Result<(Treeformer, Vec<usize>)> {
        let (source, theirs, checkpoint) = self.source(from, data)?;
        // Of its own sequences: what mixes tokens has as many weights as these have tokens.
        let network = checkpoint.load_model(source.untrained(&theirs, device))?;
        let network = network.into_network();
        let old = network.blocks.iter();
        let old: Vec<_> = old.map(|block| block.attention.kind.clone()).collect();
        let (had, wanted) = (source.treeformer(&theirs), self.treeformer(data));
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        let (dense, layers) = (wanted.dense_layers, old.len());
        let mut network = network
            .with_attention(&AttentionKindConfig::Dense, 0..dense, seed)
            .with_attention(&wanted.attention, dense..layers, seed);
        let mut fresh = Vec::new();
        for (layer, (block, old)) in network.blocks.iter_mut().zip(old).enumerate() {
            if same_weights(&had.kind(layer), &wanted.kind(layer)) {
                let new = &mut block.attention.kind;
                *new = new.clone().load_record(old.into_record());
            } else {
                fresh.push(layer);
            }
        }
        Ok((network, fresh))
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
        let theirs = source.data.lookup()?;
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

/// Whether the weights of one kind of attention are weights of the other.
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
