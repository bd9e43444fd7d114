//! What commands need of a run, whichever family of tasks it is of.
//!
//! There are three families. *Retrieval* ([`RunConfig`](crate::config::RunConfig)): queries are answered from a
//! context, by ReTreever and what it is compared with. *Sequences*
//! ([`SequenceConfig`](crate::config::sequence::SequenceConfig)): tokens are classified by a transformer,
//! whose attention is of some kind. *Language*
//! ([`LanguageConfig`](crate::config::language::LanguageConfig)): each next token of a text is predicted, by a
//! TreeCoder and what it is compared with. Each has settings, data and models of its own; run folders, the
//! trainer, layers of settings and comparisons are the same.

use crate::config::layers;
use crate::placement::NOTHING_TO_PLACE;
use anyhow::{Result, bail};
use arbora::models::tree_coder::Placement;
use arbora::rl::train::{TrainableModel, TrainerConfig};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// How much a run trains and measures at a time and in all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Items per training step.
    pub batch: usize,
    /// Items that are measured at a time.
    pub eval_batch: usize,
    /// Evaluation items measured during training; 0 means all of a finite set.
    pub eval_items: usize,
    /// Evaluation items measured at the end; 0 means all of a finite set.
    pub test_items: usize,
}

impl Sizes {
    /// Items that are measured where so many are asked for: whole batches, and no more than there are.
    ///
    /// - asked: 0 means all of a finite set
    /// - count: all of a finite set
    pub fn measured(&self, asked: usize, count: Option<usize>) -> usize {
        let batches = asked.div_ceil(self.eval_batch.max(1));
        let whole = batches.saturating_mul(self.eval_batch);
        match (asked, count) {
            (0, count) => count.unwrap_or(0),
            (_, Some(count)) => whole.min(count),
            (_, None) => whole,
        }
    }
}

/// The settings of a run, in its folder.
pub(crate) const CONFIG: &str = "config.json";

/// A number in the table of a comparison.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The measurement.
    pub metric: &'static str,
    /// What is written above it.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

/// The batch of a seed and a step.
pub type TrainingBatches<B> = Box<dyn Fn(u64, u64, &Device) -> Result<B, TaskError> + Send + Sync>;

/// The settings of a run, and what they make.
pub trait RunSettings: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// What is learned.
    type Task: Copy + PartialEq;
    /// Which model learns it.
    type ModelKind: Copy + PartialEq;
    /// The data.
    type Data;
    /// The model with what its training needs.
    type Model: TrainableModel<Batch = Self::Batch>;
    /// What a step works on.
    type Batch: Clone + Send + Sync + 'static;

    /// What a comparison shows beside the qualities.
    const COLUMNS: &'static [Column];

    /// What is learned.
    fn task(&self) -> Self::Task;
    /// Its name on the command line and in files.
    fn task_name(&self) -> &'static str;
    /// The name of the model on the command line and in files.
    fn model_name(&self) -> &'static str;
    /// The same settings for another model.
    #[must_use]
    fn with_model(self, model: Self::ModelKind) -> Self;
    /// How much is trained and measured.
    fn sizes(&self) -> Sizes;
    /// The optimiser and the schedule.
    fn trainer(&self) -> &TrainerConfig;
    /// The optimiser and the schedule.
    fn trainer_mut(&mut self) -> &mut TrainerConfig;
    /// The same settings with absolute paths, so that a run can be resumed and measured from anywhere.
    ///
    /// # Errors
    /// If the working directory cannot be read.
    fn absolute(self) -> std::io::Result<Self>;
    /// Checks what types alone do not.
    ///
    /// # Errors
    /// With the first setting that is out of range.
    fn check(&self) -> Result<()>;

    /// Puts a configuration file (JSON, any part of the whole) and single settings
    /// (`trainer.steps=100`) over this one.
    ///
    /// # Errors
    /// If the file cannot be read, a key is unknown (the nearest known one is named) or a value has
    /// the wrong type or range.
    fn layered(&self, file: Option<&Path>, settings: &[String]) -> Result<Self> {
        layers::layered(self, file, settings)
    }
    /// Reads the settings that a run folder holds.
    ///
    /// # Errors
    /// If the file is missing, is no JSON or holds unknown or invalid settings.
    fn read(path: &Path) -> Result<Self> {
        layers::read(path)
    }

    /// Loads the data.
    ///
    /// # Errors
    /// If they cannot be read or do not fit the settings.
    fn load(&self) -> Result<Self::Data>;
    /// Loads the data of the run in a folder, with what that folder keeps of them.
    ///
    /// # Errors
    /// As [`load`](Self::load), and if what is kept is damaged.
    fn load_run(&self, _folder: &Path) -> Result<Self::Data> {
        self.load()
    }
    /// Writes into a new run's folder what is kept of the data.
    ///
    /// # Errors
    /// If it cannot be written.
    fn keep(&self, _data: &Self::Data, _folder: &Path) -> Result<()> {
        Ok(())
    }
    /// Refuses data that are not those that the run in a folder began with, where the folder tells.
    ///
    /// # Errors
    /// If they are others, or what is kept of them is damaged.
    fn check_kept(&self, _data: &Self::Data, _folder: &Path) -> Result<()> {
        Ok(())
    }
    /// How much data there is to train and to measure on, in one line, where that is not plain from the settings.
    fn account(&self, _data: &Self::Data) -> Option<String> {
        None
    }
    /// Checks what depends on the data.
    ///
    /// # Errors
    /// With the first setting that does not fit them.
    fn check_data(&self, data: &Self::Data) -> Result<()>;
    /// Names the model's architecture: checkpoints of another are refused.
    ///
    /// # Errors
    /// If the configuration cannot be written as JSON.
    fn fingerprint(&self, data: &Self::Data) -> Result<String>;
    /// The model before its first step.
    ///
    /// # Errors
    /// If it is to start from a run that cannot be read or does not fit.
    fn init(&self, data: &Self::Data, device: &Device) -> Result<Self::Model>;
    /// A model that a checkpoint is to be loaded into.
    fn blank(&self, data: &Self::Data, device: &Device) -> Self::Model;
    /// Spreads a model over devices.
    ///
    /// # Errors
    /// If the model does not have a node of the placement, or is no tree of nodes.
    fn place(model: Self::Model, placement: &Placement) -> Result<Self::Model> {
        match placement.is_empty() {
            true => Ok(model),
            false => bail!(NOTHING_TO_PLACE),
        }
    }
    /// Training batches.
    fn training(&self, data: &Self::Data) -> TrainingBatches<Self::Batch>;
    /// The fixed evaluation batches.
    ///
    /// - items: how many to ask about; 0 means all of a finite set. Rounded up to whole batches.
    ///
    /// # Errors
    /// If the data cannot give them.
    fn evaluation(
        &self,
        data: &Self::Data,
        items: usize,
        device: &Device,
    ) -> Result<Vec<Self::Batch>, TaskError>;
    /// What an item is, in the plural.
    fn items(data: &Self::Data) -> &'static str;
    /// Items in the evaluation set, `None` where they are generated without end.
    fn count(data: &Self::Data) -> Option<usize>;
    /// Numbers of the model that follow from settings and data alone, by name. They stand beside measurements.
    fn facts(&self, _data: &Self::Data) -> BTreeMap<String, f64> {
        BTreeMap::new()
    }
    /// One forward pass, from features to predictions, for the clock; how many queries it answered.
    fn answer(model: &Self::Model, batch: &Self::Batch, rng: &mut ChaCha8Rng) -> usize;
}

/// Those methods of [`RunSettings`] that only read or put fields which the settings of every family have.
macro_rules! common_settings {
    () => {
        fn task(&self) -> Self::Task {
            self.task
        }

        fn task_name(&self) -> &'static str {
            self.task.name()
        }

        fn model_name(&self) -> &'static str {
            self.model.name()
        }

        fn with_model(self, model: Self::ModelKind) -> Self {
            Self { model, ..self }
        }

        fn sizes(&self) -> $crate::run::Sizes {
            $crate::run::Sizes {
                batch: self.batch_size,
                eval_batch: self.eval_batch_size,
                eval_items: self.eval_items,
                test_items: self.test_items,
            }
        }

        fn trainer(&self) -> &arbora::rl::train::TrainerConfig {
            &self.trainer
        }

        fn trainer_mut(&mut self) -> &mut arbora::rl::train::TrainerConfig {
            &mut self.trainer
        }

        fn check(&self) -> anyhow::Result<()> {
            self.check_settings()
        }
    };
}
pub(crate) use common_settings;

/// Means of every measurement over batches, and what follows from them, by name: what an evaluation during
/// training with the same seed reports.
pub fn measure<M: TrainableModel>(
    model: &M,
    batches: impl IntoIterator<Item = M::Batch>,
    seed: u64,
) -> BTreeMap<String, f64> {
    let mut totals: BTreeMap<String, (f64, f64)> = BTreeMap::new();
    for (index, batch) in batches.into_iter().enumerate() {
        let purpose = arbora::rl::seed::Purpose::Evaluation;
        let mut rng = arbora::rl::seed::rng(seed, purpose, index as u64);
        for measured in model.evaluate(batch, &mut rng) {
            let (sum, weight) = totals.entry(measured.name).or_default();
            *sum += measured.sum;
            *weight += measured.weight;
        }
    }
    let means: Vec<(String, f64)> = totals
        .into_iter()
        .map(|(name, (sum, weight))| (name, sum / weight))
        .collect();
    let derived = model.derive(&means);
    means.into_iter().chain(derived).collect()
}
