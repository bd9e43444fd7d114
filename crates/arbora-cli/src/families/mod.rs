//! Families of tasks: what commands need of a run, whichever family it is of.
//!
//! A family is a folder with the same files: `config` (settings and what is checked of them), `data` (from settings to
//! batches), `model` (what a step minimises and an evaluation measures) and, where a run shows more than curves, `report`.
//! Its `mod.rs` joins them as one [`Family`].

mod attention;
mod check;
pub mod curves;
mod kept;
pub mod language;
pub mod leaves;
mod names;
mod presets;
pub mod retrieval;
pub mod sequence;
mod training;

pub use kept::Kept;
pub(crate) use names::kind;
pub use names::{AnyModel, AnyTask, Preset, named, names};

use crate::placement::NOTHING_TO_PLACE;
use crate::settings::FIRST_NAMES;
use anyhow::{Result, bail};
use arbora::models::init::stable_hash;
use arbora::models::tree_coder::Placement;
use arbora::rl::train::{TrainableModel, TrainerConfig};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use clap::ValueEnum;
use curves::Curve;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::path::Path;

/// Evaluation data are the same in every run, whatever its seed.
pub const EVALUATION_SEED: u64 = 0;

/// Calls a function that is generic over the family with the family of a task.
macro_rules! of_family {
    ($task:expr, $function:ident($($argument:expr),*)) => {{
        use $crate::families::{AnyTask as Task, language, retrieval, sequence};
        match $task {
            Task::Retrieval(_) => $function::<retrieval::RetrievalConfig>($($argument),*),
            Task::Sequence(_) => $function::<sequence::SequenceConfig>($($argument),*),
            Task::Language(_) => $function::<language::LanguageConfig>($($argument),*),
        }
    }};
}
pub(crate) use of_family;

/// [`Family::common`], from fields that the settings of every family have.
macro_rules! common {
    () => {
        fn common(&self) -> $crate::families::Common<'_> {
            $crate::families::Common {
                task: self.task.name(),
                model: self.model.name(),
                eval_batch: self.eval_batch_size,
                eval_items: self.eval_items,
                test_items: self.test_items,
                trainer: &self.trainer,
            }
        }
    };
}
use common;

/// The settings of a run, and what they make.
pub trait Family: Clone + PartialEq + Serialize + DeserializeOwned + 'static {
    /// Which model learns.
    type ModelKind: ValueEnum;
    type Data;
    /// What a step works on.
    type Batch: Clone + Send + Sync + 'static;
    /// The model with what its training needs.
    type Model: FamilyModel<Batch = Self::Batch>;

    /// Its name, in the plural where it is one.
    const NAME: &'static str;
    /// Of its numbers: a commit that changes what a training or an evaluation comes to raises it.
    const VERSION: u32;
    /// Where the settings of its tasks start: a file of `presets`.
    const PRESETS: &'static str;
    /// What a comparison shows beside the qualities.
    const COLUMNS: &'static [Column];
    /// The numbers of a run that a dashboard plots, where they are logged.
    #[cfg_attr(not(feature = "dashboard"), allow(dead_code))]
    const LIVE: &'static [&'static str];

    /// See [`presets::read`].
    fn preset(task: &str, preset: Preset, from: Option<&Path>) -> Result<Self> {
        presets::read(task, preset, from)
    }
    /// What the settings of all families have.
    fn common(&self) -> Common<'_>;
    /// The same with absolute paths, so that a run can be resumed and measured from anywhere, and checked beyond
    /// what types do.
    fn checked(self) -> Result<Self>;
    /// Loads the data.
    ///
    /// - run: the folder of the run whose data they are, where there is one: what it keeps of them counts. That they are
    ///   the data that it began with [`About::expect_kept`] says.
    fn load(&self, run: Option<&Path>) -> Result<Self::Data>;

    /// What settings and data together come to. Settings that do not fit the data are refused.
    fn about(&self, data: &Self::Data) -> Result<About>;
    /// The model before its first step.
    fn init(&self, data: &Self::Data, device: &Device) -> Result<Self::Model> {
        Ok(self.untrained(data, device))
    }
    /// A model that a checkpoint is to be loaded into.
    fn untrained(&self, data: &Self::Data, device: &Device) -> Self::Model;
    fn training(&self, data: &Self::Data) -> TrainingBatches<Self::Batch>;
    /// The fixed evaluation batches.
    ///
    /// - items: how many to ask about; 0 means all of a finite set. Rounded up to whole batches.
    fn evaluation(
        &self,
        data: &Self::Data,
        items: usize,
        device: &Device,
    ) -> Result<Vec<Self::Batch>, TaskError>;
    /// The curves of runs: the first, and what else they logged.
    ///
    /// - has_classes: whether an accuracy was logged
    fn curves(&self, has_classes: bool) -> Vec<Curve>;
    /// Draws finished runs of one task into a folder: their curves, and what else there is to look at.
    fn draw(
        runs: &[Finished<'_, Self>],
        _data: &Self::Data,
        _device: &Device,
        folder: &Path,
    ) -> Result<()> {
        curves::draw(&curves::panels(runs)?, folder)
    }
}

/// What commands ask of a model beside training and measuring it.
pub trait FamilyModel: TrainableModel {
    /// One forward pass, from features to predictions, for the clock; how many queries it answered.
    fn timed_forward(&self, batch: &Self::Batch, rng: &mut ChaCha8Rng) -> usize;

    /// The same weights with random routes; refused where it has no routes.
    fn walking_at_random(self) -> Result<Self>;

    /// The same with nodes on other devices; refused where it does not have them.
    fn place(self, placement: &Placement) -> Result<Self> {
        if placement.is_empty() {
            Ok(self)
        } else {
            bail!(NOTHING_TO_PLACE)
        }
    }
}

/// Settings that every family has.
#[derive(Clone, Copy, Debug)]
pub struct Common<'a> {
    /// The name of the task on the command line and in files.
    pub task: &'static str,
    /// The name of the model, likewise.
    pub model: &'static str,
    /// Items that are measured at a time.
    pub eval_batch: usize,
    /// Evaluation items measured during training; 0 means all of a finite set.
    pub eval_items: usize,
    /// Evaluation items measured at the end; 0 means all of a finite set.
    pub test_items: usize,
    pub trainer: &'a TrainerConfig,
}

impl Common<'_> {
    /// Items that are measured where so many are asked for: whole batches, and no more than there are.
    ///
    /// - asked: 0 means all of a finite set
    /// - count: all of a finite set
    pub fn measured(&self, asked: usize, count: Option<usize>) -> usize {
        let whole = self.batches(asked, count).saturating_mul(self.eval_batch);
        count.map_or(whole, |count| whole.min(count))
    }

    /// The same in batches.
    pub fn batches(&self, asked: usize, count: Option<usize>) -> usize {
        let items = match (asked, count) {
            (0, count) => count.unwrap_or(0),
            (_, Some(count)) => asked.min(count),
            (_, None) => asked,
        };
        items.div_ceil(self.eval_batch.max(1))
    }
}

/// A hash of all settings of a network but its seed, which is not set, and the last of them.
fn network_hash(network: &impl Serialize) -> Result<u64> {
    let mut settings = serde_json::to_string(network)?;
    if let Some(at) = settings.rfind(",\"seed\":0}") {
        settings.replace_range(at..at + 9, "");
    }
    for (name, first) in FIRST_NAMES {
        settings = settings.replace(&format!("\"{name}\":"), &format!("\"{first}\":"));
    }
    Ok(stable_hash(&settings))
}

/// What settings and data together come to.
#[derive(Clone, Debug, Default)]
pub struct About {
    /// Names the model's architecture: checkpoints of another are refused.
    pub fingerprint: String,
    /// Tells the data from others; `None` where they are drawn as the settings say.
    pub digest: Option<String>,
    /// What an item is, in the plural.
    pub items: &'static str,
    /// Items in the evaluation set, `None` where they are generated without end.
    pub count: Option<usize>,
    /// Numbers of the model that follow from settings and data alone, by name. They stand beside measurements.
    pub static_metrics: BTreeMap<String, f64>,
    /// How much data there is to train and to measure on, where that is not plain from the settings.
    pub data_summary: Option<String>,
    /// Files of the run's folder that keep something of the data.
    pub kept: Vec<Kept>,
}

impl About {
    /// Refuses other data than the run in a folder began with. A folder that does not say which they were, as those of
    /// earlier versions, is believed, unless the data have moved.
    ///
    /// - have_moved: whether they lie elsewhere than where they did
    pub fn expect_kept(&self, folder: &Path, have_moved: bool) -> Result<()> {
        let mut is_known = false;
        for kept in &self.kept {
            is_known |= kept.check(folder)?;
        }
        if have_moved && !is_known {
            bail!(
                "{}: has no digest of its data, so their paths cannot be changed",
                folder.display()
            );
        }
        Ok(())
    }
}

/// A run to be drawn.
pub struct Finished<'a, F: Family> {
    pub name: &'a str,
    pub folder: &'a Path,
    pub config: &'a F,
    /// Without one, what it answers is not drawn.
    pub model: Option<&'a F::Model>,
}

/// A number in a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    pub metric: &'static str,
    /// What is written above it.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

const fn column(metric: &'static str, title: &'static str, digits: usize) -> Column {
    Column {
        metric,
        title,
        digits,
    }
}

/// The batch of a seed and a step.
pub type TrainingBatches<B> = Box<dyn Fn(u64, u64, &Device) -> Result<B, TaskError> + Send + Sync>;
