//! Sequences: their tokens are classified, by a transformer whose attention is of some kind.

mod config;
mod data;
mod model;
mod start;

pub use config::{SequenceConfig, SequenceModelKind, SequenceTask};
pub use data::SequenceBatch;
pub use model::SequenceModel;

use super::curves::{Curve, PERCENT};
use super::leaves::UNANSWERED;
use super::{About, Column, EVALUATION_SEED, Family, FamilyModel, TrainingBatches};
use super::{column, common};
use anyhow::{Result, bail};
use arbora::rl::seed::{Purpose, derive};
use arbora::tasks::TaskError;
use arbora::tasks::recall::Lookup;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

impl Family for SequenceConfig {
    type ModelKind = SequenceModelKind;
    type Data = Lookup;
    type Batch = SequenceBatch;
    type Model = SequenceModel;

    const NAME: &'static str = "sequences";
    const VERSION: u32 = 2;
    const PRESETS: &'static str = include_str!("../../../presets/sequences.json");
    const COLUMNS: &'static [Column] = &[
        column("core_flops_percent", "core FLOPs, % of dense", 1),
        column("effective_leaves", "effective leaves", 1),
        column(UNANSWERED, "queries without a key, %", 1),
    ];
    const LIVE: &'static [&'static str] = &["loss", "log_likelihood", "accuracy"];

    common!();

    fn checked(self) -> Result<Self> {
        self.check()?;
        Ok(Self {
            from: self.from.map(std::path::absolute).transpose()?,
            ..self
        })
    }

    fn load(&self, _run: Option<&Path>) -> Result<Lookup> {
        self.data.lookup()
    }

    /// Also that the run to start from is there and of the same architecture but for its attention.
    fn about(&self, data: &Lookup) -> Result<About> {
        if let Some(from) = &self.from {
            self.source(from, data)?;
        }
        Ok(About {
            fingerprint: self.architecture_fingerprint(data)?,
            items: "sequences",
            ..About::default()
        })
    }

    fn init(&self, data: &Lookup, device: &Device) -> Result<SequenceModel> {
        self.first_model(data, device)
    }

    fn untrained(&self, data: &Lookup, device: &Device) -> SequenceModel {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        SequenceModel::new(self, self.treeformer(data).with_seed(seed).init(device))
    }

    fn training(&self, data: &Lookup) -> TrainingBatches<SequenceBatch> {
        let (data, batch_size) = (data.clone(), self.batch_size);
        let steps = self.trainer.steps.max(1);
        Box::new(move |seed, step, device| {
            Ok(SequenceBatch {
                lookup: data.batch(seed, step, batch_size, device)?,
                progress: step as f64 / steps as f64,
            })
        })
    }

    fn evaluation(
        &self,
        data: &Lookup,
        items: usize,
        device: &Device,
    ) -> Result<Vec<SequenceBatch>, TaskError> {
        let size = self.eval_batch_size;
        let batch = |index| {
            Ok(SequenceBatch {
                lookup: data.eval_batch(EVALUATION_SEED, index, size, device)?,
                progress: 1.0,
            })
        };
        let batches = self.common().batches(items, None);
        (0..batches as u64).map(batch).collect()
    }

    fn curves(&self, _: bool) -> Vec<Curve> {
        let (flops, leaves) = (("% of dense", 1.0), ("leaves", 1.0));
        let balance = ("1 at balance", 1.0);
        let in_use = "effective_leaves";
        vec![
            Curve("Training loss", ("nats", 1.0), "train", "loss"),
            Curve("Accuracy, training", PERCENT, "train", "accuracy"),
            Curve("Accuracy, held out", PERCENT, "valid", "accuracy"),
            Curve("Core FLOPs, held out", flops, "valid", "core_flops_percent"),
            Curve("Effective leaves, held out", leaves, "valid", in_use),
            Curve(
                "Queries without a key, held out",
                ("%", 1.0),
                "valid",
                UNANSWERED,
            ),
            Curve("Balance loss", balance, "train", "balance"),
            Curve("Alignment loss", ("nats", 1.0), "train", "alignment"),
        ]
    }
}

impl FamilyModel for SequenceModel {
    fn timed_forward(&self, batch: &SequenceBatch, _: &mut ChaCha8Rng) -> usize {
        let [examples, tokens] = batch.lookup.tokens.dims();
        drop(self.forward(&batch.lookup, &Default::default()));
        examples * tokens
    }

    fn walking_at_random(self) -> Result<Self> {
        bail!("searches no token tree")
    }
}
