//! The copy task: read a random sequence and write it in reverse.
//!
//! Source: Tree Cross Attention (arXiv 2309.17388), §4.1, "random mirrored". A task for which dense
//! attention is perfect and for which every query needs one particular token.

use std::ops::Range;

use burn::config::Config;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use derive_setters::Setters;
use rand::Rng;
use serde::{Deserialize, Serialize};

use crate::TaskError;
use crate::draws::{Purpose, generator};
use crate::error::check_batch;

/// Classes beside the characters: the start and the end of a sequence.
const SPECIAL: usize = 2;
const START: i64 = 0;
const END: i64 = 1;

/// Streams of evaluation, apart from those of training, which are numbered by step.
const EVALUATION: u64 = 1 << 63;

/// Training on shorter sequences first.
///
/// A sequence of half length n' < n is a part of the whole task: its tokens stand at the first n'
/// places of the context, the queries that ask for them at the last n' places, and everything else
/// is masked. A query therefore needs the token of the same place at every length. Step t has
/// `n' = min(n, start · 2^⌊t / steps⌋)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Curriculum {
    /// Context tokens of the first steps, at least 2.
    pub start: usize,
    /// Steps until the length doubles, at least 1.
    pub steps: u64,
}

/// Configuration of [`SequenceCopy`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct CopyConfig {
    /// Length of the whole sequence, N: the first half is the context, the second half is asked for.
    /// Even, at least 4.
    pub length: usize,
    /// Different characters, at least 2. Published: 10.
    pub characters: usize,
    /// Shorter sequences first, in training alone; none trains at full length throughout, as
    /// published.
    pub curriculum: Option<Curriculum>,
}

impl Default for CopyConfig {
    fn default() -> Self {
        Self {
            length: 128,
            characters: 10,
            curriculum: None,
        }
    }
}

impl Config for CopyConfig {}

impl CopyConfig {
    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), TaskError> {
        let refuse = |setting, expected, got| Err(TaskError::config(setting, expected, got));
        if self.length < 4 || !self.length.is_multiple_of(2) || self.length > 1 << 20 {
            return refuse("length", "an even number from 4 to 1048576", self.length);
        }
        if !(2..=1000).contains(&self.characters) {
            return refuse("characters", "2 to 1000", self.characters);
        }
        match self.curriculum {
            Some(Curriculum { start, .. }) if start < 2 => {
                refuse("curriculum.start", "at least 2", start)
            }
            Some(Curriculum { steps: 0, .. }) => refuse("curriculum.steps", "at least 1", 0),
            _ => Ok(()),
        }
    }

    /// Unmasked context tokens of a training step.
    fn context_at(&self, step: u64) -> usize {
        let whole = self.length / 2;
        let Some(Curriculum { start, steps }) = self.curriculum else {
            return whole;
        };
        let doublings = u32::try_from(step / steps).unwrap_or(u32::MAX);
        // Beyond 32 doublings every length is whole.
        whole.min(start.saturating_mul(1 << doublings.min(32)))
    }
}

/// Sequences to be mirrored. The context is the start sign and `length / 2 - 1` random characters; the
/// answers are those characters from the last to the first, then the end sign. A query carries
/// nothing but its position.
#[derive(Clone, Copy, Debug)]
pub struct SequenceCopy {
    config: CopyConfig,
}

/// A batch of the copy task.
#[derive(Clone, Debug)]
pub struct CopyBatch {
    /// One-hot tokens, `[batch, length / 2, classes]`: class 0 is the start sign, 1 the end sign.
    pub tokens: Tensor<3>,
    /// Zeros, `[batch, length / 2, classes]`: a query is its place in the sequence.
    pub queries: Tensor<3>,
    /// The class to answer each query with, `[batch, length / 2]`.
    pub classes: Tensor<2, Int>,
    /// Unmasked context tokens of each example, and as many queries: the first of the context, the last of the queries.
    /// All of them, but for a curriculum.
    pub active_tokens: usize,
}

impl CopyBatch {
    /// Masked tokens, `[batch, length / 2]`, `true` = masked out; `None` where none is.
    pub fn context_mask(&self) -> Option<Tensor<2, Bool>> {
        self.mask(self.active_tokens..self.classes.dims()[1])
    }

    /// Masked queries, `[batch, length / 2]`, `true` = masked out; `None` where none is.
    pub fn target_mask(&self) -> Option<Tensor<2, Bool>> {
        self.mask(0..self.classes.dims()[1] - self.active_tokens)
    }

    fn mask(&self, masked: Range<usize>) -> Option<Tensor<2, Bool>> {
        if masked.is_empty() {
            return None;
        }
        let [batch, context] = self.classes.dims();
        let row: Vec<bool> = (0..context).map(|place| masked.contains(&place)).collect();
        let row = TensorData::new(row, [1, context]);
        Some(Tensor::<2, Bool>::from_data(row, &self.classes.device()).expand([batch, context]))
    }
}

impl SequenceCopy {
    /// The task of a configuration.
    ///
    /// # Errors
    /// As [`CopyConfig::check`].
    pub fn new(config: CopyConfig) -> Result<Self, TaskError> {
        config.check()?;
        Ok(Self { config })
    }

    /// Tokens of the context, which is also the number of queries.
    pub fn context(&self) -> usize {
        self.config.length / 2
    }

    /// Characters and the two signs.
    pub fn classes(&self) -> usize {
        self.config.characters + SPECIAL
    }

    /// The batch of a training step: a pure function of seed and step.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<CopyBatch, TaskError> {
        let part = self.config.context_at(step);
        self.draw(seed, step & !EVALUATION, batch_size, part, device)
    }

    /// Evaluation batch `index`: a pure function of seed and index, from other streams than training
    /// with the same seed.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batch(
        &self,
        seed: u64,
        index: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<CopyBatch, TaskError> {
        self.draw(seed, index | EVALUATION, batch_size, self.context(), device)
    }

    /// The index of the context token that answers each query, for the oracle control alone. The last answer, the end
    /// sign, is not in the context; its index is that of the start sign.
    pub fn answers(&self) -> Vec<usize> {
        (0..self.context()).rev().collect()
    }

    fn draw(
        &self,
        seed: u64,
        stream: u64,
        batch_size: usize,
        active_tokens: usize,
        device: &Device,
    ) -> Result<CopyBatch, TaskError> {
        check_batch(batch_size)?;
        let (context, classes) = (self.context(), self.classes());
        // Evaluation has the purpose of training too: its streams are others.
        let mut rng = generator(seed, Purpose::Training, stream);
        let mut tokens = vec![0.0f32; batch_size * context * classes];
        let mut answers = vec![END; batch_size * context];
        for example in 0..batch_size {
            let first = example * context;
            tokens[first * classes + START as usize] = 1.0;
            for place in 1..context {
                let class = rng.random_range(SPECIAL..classes);
                tokens[(first + place) * classes + class] = 1.0;
                answers[first + context - 1 - place] = class as i64;
            }
        }
        let shape = [batch_size, context, classes];
        Ok(CopyBatch {
            tokens: Tensor::from_data(TensorData::new(tokens, shape), device),
            queries: Tensor::zeros(shape, device),
            classes: Tensor::from_data(TensorData::new(answers, [batch_size, context]), device),
            active_tokens,
        })
    }
}
