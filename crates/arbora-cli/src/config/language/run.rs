//! Runs on language: what commands need of them.

use super::{
    LanguageConfig, LanguageData, LanguageModelKind, LanguageTask, TextSource, TokenizerSource,
    expect_kept_text, kept, kept_tokenizer,
};
use crate::learner::language::{LanguageBatch, LanguageModel};
use crate::run::{Column, RunSettings, TrainingBatches, common_settings};
use anyhow::{Result, bail};
use arbora::models::tree_coder::Placement;
use arbora::rl::seed::{Purpose, derive};
use arbora::tasks::TaskError;
use arbora::tasks::text::Corpus;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use std::collections::BTreeMap;
use std::path::Path;

impl RunSettings for LanguageConfig {
    type Task = LanguageTask;
    type ModelKind = LanguageModelKind;
    type Data = LanguageData;
    type Model = LanguageModel;
    type Batch = LanguageBatch;

    const COLUMNS: &'static [Column] = &[
        Column {
            metric: "active_parameters",
            title: "active parameters",
            digits: 0,
        },
        Column {
            metric: "perplexity",
            title: "perplexity",
            digits: 2,
        },
        Column {
            metric: "bits_per_byte",
            title: "bits per byte",
            digits: 3,
        },
        Column {
            metric: "leaf_share_min",
            title: "smallest leaf, of its fair share",
            digits: 2,
        },
    ];

    common_settings!();

    fn absolute(mut self) -> std::io::Result<Self> {
        let data = &mut self.data;
        for source in [Some(&mut data.source), data.validation_source.as_mut()] {
            if let Some(TextSource::Path(path)) = source {
                *path = std::path::absolute(&path)?;
            }
        }
        if let TokenizerSource::File { path } = &mut self.data.tokenizer {
            *path = std::path::absolute(&path)?;
        }
        Ok(self)
    }

    fn load(&self) -> Result<LanguageData> {
        self.read_text(None)
    }

    /// With the run's own tokenizer: what it was made from may be gone.
    fn load_run(&self, folder: &Path) -> Result<LanguageData> {
        let data = self.read_text(Some(kept_tokenizer(folder)?))?;
        expect_kept_text(&data, folder)?;
        Ok(data)
    }

    fn keep(&self, data: &LanguageData, folder: &Path) -> Result<()> {
        kept::keep(data, folder)
    }

    fn check_kept(&self, data: &LanguageData, folder: &Path) -> Result<()> {
        Ok(expect_kept_text(data, folder)?)
    }

    /// Refuses a text in which nothing is asked for: its loss would be the mean of nothing.
    fn check_data(&self, data: &LanguageData) -> Result<()> {
        for (part, targets) in [
            ("training", data.targets(self)),
            ("held-out", data.held_out_targets(self)),
        ] {
            if targets == 0 {
                bail!(
                    "the {part} text has no token after the first {} of a sequence, which choose its route (architecture.route_on)",
                    self.prompt()
                );
            }
        }
        for (setting, items) in [
            ("eval_items", self.eval_items),
            ("test_items", self.test_items),
        ] {
            let windows = self.sizes().measured(items, Self::count(data));
            let (batches, size) = (self.eval_batches(data, items), self.eval_batch_size);
            if data
                .text
                .spread_targets_after(batches, size, self.unasked())?
                == 0
            {
                bail!(
                    "{setting}: the {windows} sequences that are measured have no token after the first {}, which choose the route (architecture.route_on); measure more",
                    self.prompt()
                );
            }
        }
        Ok(())
    }

    fn account(&self, data: &LanguageData) -> Option<String> {
        let part = |name: &str, corpus: &Corpus, targets: usize| {
            let documents = corpus.documents().len();
            format!(
                "{name} {} bytes in {documents} documents, {targets} targets",
                corpus.bytes()
            )
        };
        Some(format!(
            "text: {}; {}",
            part("training", &data.training, data.targets(self)),
            part("held out", &data.validation, data.held_out_targets(self))
        ))
    }

    fn fingerprint(&self, data: &LanguageData) -> Result<String> {
        self.fingerprint_with(data.text.tokenizer())
    }

    fn init(&self, data: &LanguageData, device: &Device) -> Result<LanguageModel> {
        Ok(self.blank(data, device))
    }

    fn blank(&self, data: &LanguageData, device: &Device) -> LanguageModel {
        self.blank_for(data.text.tokenizer().vocabulary(), device)
    }

    fn place(model: LanguageModel, placement: &Placement) -> Result<LanguageModel> {
        Ok(model.place(placement)?)
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
        Ok(batches
            .map(|batch| LanguageBatch::new(batch, self.prompt()))
            .collect())
    }

    fn items(_: &LanguageData) -> &'static str {
        "sequences of held-out text"
    }

    fn count(data: &LanguageData) -> Option<usize> {
        Some(data.text.validation_windows())
    }

    fn facts(&self, data: &LanguageData) -> BTreeMap<String, f64> {
        let vocabulary = data.text.tokenizer().vocabulary();
        let counts = self.tree_coder(vocabulary).parameters();
        let facts = [
            ("active_parameters", counts.active),
            ("total_parameters", counts.total),
        ];
        facts
            .map(|(name, count)| (name.to_owned(), count as f64))
            .into()
    }

    fn answer(model: &LanguageModel, batch: &LanguageBatch, rng: &mut ChaCha8Rng) -> usize {
        drop(model.forward(batch, rng));
        batch.text.tokens.dims().iter().product()
    }
}

impl LanguageData {
    /// Tokens of the training part that are asked for in an epoch.
    fn targets(&self, config: &LanguageConfig) -> usize {
        self.text.train_targets_after(config.unasked())
    }

    /// Tokens of the validation part that are asked for.
    fn held_out_targets(&self, config: &LanguageConfig) -> usize {
        self.text.validation_targets_after(config.unasked())
    }
}

impl LanguageConfig {
    /// Batches of an evaluation that asks for so many sequences, all with 0.
    fn eval_batches(&self, data: &LanguageData, items: usize) -> usize {
        let windows = self.sizes().measured(items, Self::count(data));
        windows.div_ceil(self.eval_batch_size)
    }

    /// Targets at the start of a sequence that are not asked for. The last token of a prompt predicts one that is.
    fn unasked(&self) -> usize {
        self.prompt().saturating_sub(1)
    }

    /// Tokens at the start of a sequence that are not asked for, since they choose the route of some model.
    pub(crate) fn prompt(&self) -> usize {
        self.architecture.route_on.prompt()
    }

    /// The model before its first step, for a vocabulary.
    pub fn blank_for(&self, vocabulary: usize, device: &Device) -> LanguageModel {
        let seed = derive(self.trainer.seed, Purpose::Parameters);
        LanguageModel::new(self, self.tree_coder(vocabulary).init(seed, device))
    }
}
