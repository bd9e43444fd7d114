//! Language: each next token of a text is predicted.

mod config;
mod data;
mod model;
pub mod report;

pub use config::{LanguageConfig, LanguageModelKind, LanguageTask};
pub use data::{LanguageBatch, LanguageData, TextSource, TokenizerSource, kept_tokenizer};
pub use model::LanguageModel;

use super::{About, Column, Family, FamilyModel, Finished, Preset, TrainingBatches};
use super::{column, common, named};
use anyhow::{Result, bail};
use arbora::models::tree_coder::{Placement, SelectorGradient};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use std::path::Path;

impl Family for LanguageConfig {
    type Task = LanguageTask;
    type ModelKind = LanguageModelKind;
    type Data = LanguageData;
    type Batch = LanguageBatch;
    type Model = LanguageModel;

    const NAME: &'static str = "language";
    const VERSION: u32 = 1;
    const COLUMNS: &'static [Column] = &[
        column("active_parameters", "active parameters", 0),
        column("perplexity", "perplexity", 2),
        column("bits_per_byte", "bits per byte", 3),
        column("leaf_share_min", "smallest leaf, of its fair share", 2),
    ];
    const LIVE: &'static [&'static str] = &["loss", "log_likelihood"];

    fn preset(task: &str, preset: Preset, from: Option<&Path>) -> Result<Self> {
        if from.is_some() {
            bail!("--from: {task} starts from fresh weights");
        }
        Self::of_task(named(task)?, preset)
    }

    common!();

    fn checked(mut self) -> Result<Self> {
        self.check()?;
        self.data = self.data.absolute()?;
        Ok(self)
    }

    /// With the run's own tokenizer: what it was made from may be gone.
    fn load(&self, run: Option<&Path>) -> Result<LanguageData> {
        let Some(run) = run else {
            return self.read_text(None);
        };
        self.read_text(Some(kept_tokenizer(run)?))
    }

    fn about(&self, data: &LanguageData) -> Result<About> {
        self.check_text(data)?;
        let tokenizer = data.text.tokenizer();
        let counts = self.tree_coder(tokenizer.vocabulary()).parameters();
        let static_metrics = [
            ("active_parameters", counts.active),
            ("total_parameters", counts.total),
        ];
        Ok(About {
            fingerprint: self.fingerprint_with(tokenizer)?,
            digest: Some(data.digest()),
            items: "sequences of held-out text",
            count: Some(data.text.validation_windows()),
            static_metrics: static_metrics
                .map(|(name, count)| (name.to_owned(), count as f64))
                .into(),
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
        let (text, size) = (&data.text, self.eval_batch_size);
        let batches = text.spread_eval_batches(self.eval_batches(data, items), size, device)?;
        let prompt = self.prompt();
        Ok(batches
            .map(|batch| LanguageBatch::new(batch, prompt))
            .collect())
    }

    fn draw(runs: &[Finished<Self>], _: &Self::Data, _: &Device, folder: &Path) -> Result<()> {
        report::draw(runs, folder)
    }
}

impl FamilyModel for LanguageModel {
    fn timed_forward(&self, batch: &LanguageBatch, rng: &mut ChaCha8Rng) -> usize {
        drop(self.forward(batch, rng));
        batch.text.tokens.dims().iter().product()
    }

    fn walking_at_random(self) -> Result<Self> {
        let tree = self.network().config();
        if tree.height == 0 {
            bail!("walks no tree");
        }
        if tree.selector.gradient == SelectorGradient::Soft {
            bail!("has soft selectors, and soft selectors go to all leaves");
        }
        Ok(self.with_random_route())
    }

    fn place(self, placement: &Placement) -> Result<Self> {
        Ok(LanguageModel::place(self, placement)?)
    }
}
