//! Language: each next token of a text is predicted.

mod config;
mod data;
mod model;
pub mod report;

pub use config::{LanguageConfig, LanguageModelKind, LanguageTask};
pub use data::{LanguageBatch, LanguageData, TextSource, kept_tokenizer};
pub use model::LanguageModel;

use super::curves::Curve;
use super::{About, Column, Family, TrainingBatches, column, common};
use anyhow::Result;
use arbora::tasks::TaskError;
use burn::tensor::Device;
use model::BITS_PER_BYTE;
use std::collections::BTreeMap;
use std::path::Path;

impl Family for LanguageConfig {
    type ModelKind = LanguageModelKind;
    type Data = LanguageData;
    type Batch = LanguageBatch;
    type Model = LanguageModel;

    const NAME: &'static str = "language";
    const VERSION: u32 = 1;
    const PRESETS: &'static str = include_str!("../../../presets/language.json");
    const COLUMNS: &'static [Column] = &[
        column("active_parameters", "active parameters", 0),
        column("perplexity", "perplexity", 2),
        column("bits_per_byte", "bits per byte", 3),
        column("leaf_share_min", "smallest leaf, of its fair share", 2),
    ];
    const LIVE: &'static [&'static str] = &["loss", "log_likelihood"];

    common!();

    fn checked(mut self) -> Result<Self> {
        self.check()?;
        self.data = self.data.absolute()?;
        Ok(self)
    }

    /// With the run's own tokenizer: what it was made from may be gone.
    fn load(&self, run: Option<&Path>) -> Result<LanguageData> {
        self.read_text(run.map(kept_tokenizer).transpose()?)
    }

    fn about(&self, data: &LanguageData) -> Result<About> {
        self.check_text(data)?;
        let tokenizer = data.text.tokenizer();
        let counts = self.tree_coder(tokenizer.vocabulary()).parameters();
        let (active, total) = (counts.active as f64, counts.total as f64);
        Ok(About {
            fingerprint: self.fingerprint_with(tokenizer)?,
            digest: Some(data.digest()),
            items: "sequences of held-out text",
            count: Some(data.text.validation_windows()),
            static_metrics: BTreeMap::from([
                ("active_parameters".into(), active),
                ("total_parameters".into(), total),
            ]),
            data_summary: Some(self.data_summary(data)),
            kept: data.kept()?,
        })
    }

    fn untrained(&self, data: &LanguageData, device: &Device) -> LanguageModel {
        self.untrained_for(data.text.tokenizer().vocabulary(), device)
    }

    fn training(&self, data: &LanguageData) -> TrainingBatches<LanguageBatch> {
        let (text, batch_size) = (data.text.clone(), self.batch_size);
        let prompt = self.prompt();
        Box::new(move |seed, step, device| {
            let batch = text.batch(seed, step, batch_size, device)?;
            Ok(LanguageBatch::new(batch, prompt))
        })
    }

    fn evaluation(
        &self,
        data: &LanguageData,
        items: usize,
        device: &Device,
    ) -> Result<Vec<LanguageBatch>, TaskError> {
        let (count, size) = (self.eval_batches(data, items), self.eval_batch_size);
        let batches = data.text.spread_eval_batches(count, size, device)?;
        let prompt = self.prompt();
        Ok(batches
            .map(|batch| LanguageBatch::new(batch, prompt))
            .collect())
    }

    fn curves(&self, _: bool) -> Vec<Curve> {
        let (token, fair) = (("nats per token", 1.0), ("of its fair share", 1.0));
        let (bits, weighted) = (("bits", 1.0), ("weighted", 1.0));
        vec![
            Curve("Training loss", ("nats", 1.0), "train", "loss"),
            Curve("Loss, held out", token, "valid", "loss"),
            Curve("Bits per byte, held out", bits, "valid", BITS_PER_BYTE),
            Curve("Smallest leaf, held out", fair, "valid", "leaf_share_min"),
            Curve("Largest leaf, held out", fair, "valid", "leaf_share_max"),
            Curve("Balance loss", weighted, "train", "balance"),
        ]
    }
}
