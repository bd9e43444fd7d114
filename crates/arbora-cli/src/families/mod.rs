//! Families of tasks: what commands need of a run, whichever family it is of.
//!
//! *Retrieval*: queries are answered from a context, by ReTreever and what it is compared with. *Sequences*: the
//! tokens of a sequence are classified, by a transformer whose attention is of some kind. *Language*: each next token
//! of a text is predicted, by a TreeCoder and what it is compared with.
//!
//! A family is a folder with the same files: `config` (settings and presets), `data` (from settings to batches),
//! `model` (what a step minimises and an evaluation measures) and `report` (what people see of a run). Its `mod.rs`
//! joins them as one [`Family`]. A new family is such a folder, a variant in `names`, an arm of
//! [`of_family!`], and what `inspect` shows of it.

pub mod curves;
pub mod language;
mod names;
pub mod retrieval;
pub mod sequence;

pub use names::{AnyModel, AnyTask, Preset, named, names};

use crate::atomic_file;
use crate::placement::NOTHING_TO_PLACE;
use anyhow::{Context as _, Result, bail};
use arbora::models::tree_coder::Placement;
use arbora::rl::train::{TrainableModel, TrainerConfig};
use arbora::tasks::TaskError;
use burn::tensor::Device;
use clap::ValueEnum;
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::Path;

/// Evaluation asks the same questions in every run, whatever its seed.
pub const EVALUATION_SEED: u64 = 0;

/// Far above any size that is of use, and below what overflows an address.
pub const LARGEST_SIZE: usize = 1 << 16;

/// Refuses the first of some settings, each with its least value, that is no size.
fn check_sizes<'a>(sizes: impl IntoIterator<Item = (&'a str, usize, usize)>) -> Result<()> {
    for (key, value, least) in sizes {
        if !(least..=LARGEST_SIZE).contains(&value) {
            bail!("{key}: expected {least} to {LARGEST_SIZE}, got {value}");
        }
    }
    Ok(())
}

/// Refuses the first of some settings that is no number of at least 0.
fn check_weights<const N: usize>(weights: [(&str, f64); N]) -> Result<()> {
    for (key, weight) in weights {
        if !(weight.is_finite() && weight >= 0.0) {
            bail!("{key}: expected a number of at least 0, got {weight}");
        }
    }
    Ok(())
}

/// Calls a function that is generic over the family with the family of a task.
macro_rules! of_family {
    ($task:expr, $function:ident($($argument:expr),*)) => {
        match $task {
            $crate::families::AnyTask::Retrieval(_) => {
                $function::<$crate::families::retrieval::RetrievalConfig>($($argument),*)
            }
            $crate::families::AnyTask::Sequence(_) => {
                $function::<$crate::families::sequence::SequenceConfig>($($argument),*)
            }
            $crate::families::AnyTask::Language(_) => {
                $function::<$crate::families::language::LanguageConfig>($($argument),*)
            }
        }
    };
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
    /// What is learned.
    type Task: ValueEnum;
    /// Which model learns it.
    type ModelKind: ValueEnum;
    /// The data.
    type Data;
    /// What a step works on.
    type Batch: Clone + Send + Sync + 'static;
    /// The model with what its training needs.
    type Model: FamilyModel<Batch = Self::Batch>;

    /// Its name, in the plural where it is one.
    const NAME: &'static str;
    /// Of its numbers: a commit that changes what a training or an evaluation comes to raises it.
    const VERSION: u32;
    /// What a comparison shows beside the qualities.
    const COLUMNS: &'static [Column];
    /// The numbers of a run that a dashboard plots, where they are logged.
    #[cfg_attr(not(feature = "dashboard"), allow(dead_code))]
    const LIVE: &'static [&'static str];

    /// The settings that a task starts from.
    ///
    /// - from: the run whose weights a run starts from
    ///
    /// # Errors
    /// If the task has no such preset, or starts from fresh weights.
    fn preset(task: &str, preset: Preset, from: Option<&Path>) -> Result<Self>;
    /// What the settings of all families have.
    fn common(&self) -> Common<'_>;
    /// The same with absolute paths, so that a run can be resumed and measured from anywhere, and checked beyond
    /// what types do.
    ///
    /// # Errors
    /// With the first setting that is out of range; if the working directory cannot be read.
    fn checked(self) -> Result<Self>;
    /// Loads the data.
    ///
    /// - run: the folder of the run whose data they are, where there is one: what it keeps of them counts. That they are
    ///   the data that it began with [`About::expect_kept`] says.
    ///
    /// # Errors
    /// If they cannot be read or do not fit the settings, or what is kept is damaged.
    fn load(&self, run: Option<&Path>) -> Result<Self::Data>;
    /// What settings and data together come to.
    ///
    /// # Errors
    /// With the first setting that does not fit the data.
    fn about(&self, data: &Self::Data) -> Result<About>;
    /// The model before its first step.
    ///
    /// # Errors
    /// If it is to start from a run that cannot be read or does not fit.
    fn init(&self, data: &Self::Data, device: &Device) -> Result<Self::Model> {
        Ok(self.untrained(data, device))
    }
    /// A model that a checkpoint is to be loaded into.
    fn untrained(&self, data: &Self::Data, device: &Device) -> Self::Model;
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
    /// Draws finished runs of one task into a folder: their curves, and what else there is to look at.
    ///
    /// # Errors
    /// If a log cannot be read or a picture cannot be written.
    fn draw(
        runs: &[Finished<'_, Self>],
        data: &Self::Data,
        device: &Device,
        folder: &Path,
    ) -> Result<()>;
}

/// What commands ask of a model beside training and measuring it.
pub trait FamilyModel: TrainableModel {
    /// One forward pass, from features to predictions, for the clock; how many queries it answered.
    fn timed_forward(&self, batch: &Self::Batch, rng: &mut ChaCha8Rng) -> usize;

    /// The same weights with random routes.
    ///
    /// # Errors
    /// If it has no routes.
    fn walking_at_random(self) -> Result<Self>;

    /// The same with nodes on other devices.
    ///
    /// # Errors
    /// If the model does not have a node of the placement, or is no tree of nodes.
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
    /// The optimiser and the schedule.
    pub trainer: &'a TrainerConfig,
}

impl Common<'_> {
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

/// What settings and data together come to.
#[derive(Clone, Debug)]
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
    /// Files of the run's folder that keep something of the data, by name.
    pub kept: Vec<Kept>,
}

impl About {
    /// Refuses other data than the run in a folder began with. A folder that does not say which they were, as those of
    /// earlier versions, is believed, unless the data have moved.
    ///
    /// - have_moved: whether they lie elsewhere than where they did
    ///
    /// # Errors
    /// If they are others, or what the folder keeps cannot be read.
    pub fn expect_kept(&self, folder: &Path, have_moved: bool) -> Result<()> {
        let mut is_known = false;
        for kept in &self.kept {
            is_known |= kept.check(folder)?;
        }
        if have_moved && !is_known {
            bail!(
                "{}: does not say which data it began with, so they cannot be named anew",
                folder.display()
            );
        }
        Ok(())
    }
}

/// A file in the folder of a run that keeps something of its data.
#[derive(Clone, Debug)]
pub struct Kept {
    /// Its name.
    pub name: &'static str,
    /// All of it.
    pub contents: String,
    /// Where a run whose file is another goes on no more: what says so.
    pub check: Option<CheckKept>,
}

/// Refuses other contents than a run's folder has: the folder, what it has, what there is.
type CheckKept = fn(&Path, &str, &str) -> Result<()>;

impl Kept {
    /// Refuses a folder whose file says that its run began with other data. Whether there was a file to say so.
    fn check(&self, folder: &Path) -> Result<bool> {
        let path = folder.join(self.name);
        match (self.check, std::fs::read_to_string(&path)) {
            (None, _) => Ok(false),
            (_, Err(error)) if error.kind() == ErrorKind::NotFound => Ok(false),
            (Some(check), found) => {
                let found = found.with_context(|| format!("cannot read {}", path.display()))?;
                check(
                    folder,
                    crate::settings::without_mark(&found),
                    &self.contents,
                )
                .map(|()| true)
            }
        }
    }

    /// Refuses a folder that has another file of this name. A start that was cut short has left the same.
    ///
    /// # Errors
    /// If there is one.
    pub fn refuse_another(&self, folder: &Path) -> Result<()> {
        let path = folder.join(self.name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            Ok(found) if found == self.contents.as_bytes() => Ok(()),
            _ => bail!(
                "{}: is there, and is not of this run; choose another folder for it",
                path.display()
            ),
        }
    }

    /// Writes the file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        atomic_file::write(&folder.join(self.name), &self.contents)
    }
}

/// A run to be drawn.
pub struct Finished<'a, F: Family> {
    /// What it is called.
    pub name: &'a str,
    /// Where it lies.
    pub folder: &'a Path,
    /// Its settings.
    pub config: &'a F,
    /// Its model; without one, what it answers is not drawn.
    pub model: Option<&'a F::Model>,
}

/// A number in a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// The measurement.
    pub metric: &'static str,
    /// What is written above it.
    pub title: &'static str,
    /// Digits after the point.
    pub digits: usize,
}

/// A column of a table.
const fn column(metric: &'static str, title: &'static str, digits: usize) -> Column {
    Column {
        metric,
        title,
        digits,
    }
}

/// The batch of a seed and a step.
pub type TrainingBatches<B> = Box<dyn Fn(u64, u64, &Device) -> Result<B, TaskError> + Send + Sync>;
