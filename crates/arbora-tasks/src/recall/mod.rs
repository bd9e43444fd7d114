//! Looking up: associative recall, and needles in a haystack.
//!
//! A sequence holds pairs of a key and a value; later tokens are keys again, and each asks for the value that
//! came with it. Dense attention solves both tasks, and every answer lies at one place: attention that does
//! not look there cannot know it. [`Lookup::recall`] has many pairs at the front and asks at all other
//! places, after multi-query associative recall (Arora et al. 2023, "Zoology", arXiv 2312.04927).
//! [`Lookup::needle`] has few pairs, scattered over tokens that mean nothing, and asks at the end.

mod config;

pub use config::{NeedleConfig, RecallConfig, Stage};

use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

use crate::TaskError;
use crate::draws::{Purpose, generator};
use crate::error::check_batch;

/// Sequences with the classes that some of their tokens ask for.
#[derive(Clone, Debug)]
pub struct LookupBatch {
    /// `[batch, length]`: keys first, then values, then fillers, each sort numbered on from the last.
    pub tokens: Tensor<2, Int>,
    /// The value to answer each token with, counted from 0, `[batch, length]`; 0 where nothing is asked.
    pub classes: Tensor<2, Int>,
    /// Where nothing is asked, `[batch, length]`, `true` = masked out.
    pub target_mask: Tensor<2, Bool>,
}

/// A lookup task: sequences with pairs of a key and a value somewhere, and queries at the end.
#[derive(Clone, Debug)]
pub struct Lookup {
    whole: Layout,
    /// What the first steps train on, and until which step.
    stages: Vec<(u64, Layout)>,
}

/// How long sequences are, and of what.
#[derive(Clone, Copy, Debug)]
struct Layout {
    length: usize,
    pairs: usize,
    keys: usize,
    values: usize,
    /// 0 where the pairs fill all places before the queries.
    fillers: usize,
    queries: usize,
}

impl Lookup {
    /// Multi-query associative recall: pairs at the front, then keys drawn from those shown, each asking for
    /// its value.
    ///
    /// # Errors
    /// As [`RecallConfig::check`].
    pub fn recall(config: RecallConfig) -> Result<Self, TaskError> {
        config.check()?;
        let of_length = |length: usize| {
            let pairs = (config.pairs * length / config.length).max(1);
            Layout {
                length,
                pairs,
                keys: config.keys,
                values: config.values,
                fillers: 0,
                queries: length - 2 * pairs,
            }
        };
        Ok(Self::new(config.length, &config.curriculum, of_length))
    }

    /// Needles in a haystack: pairs at random places among fillers, and at the end keys drawn from those
    /// shown, each asking for its value.
    ///
    /// # Errors
    /// As [`NeedleConfig::check`].
    pub fn needle(config: NeedleConfig) -> Result<Self, TaskError> {
        config.check()?;
        let of_length = |length: usize| Layout {
            length,
            pairs: config.needles,
            keys: config.keys,
            values: config.values,
            fillers: config.fillers,
            queries: config.queries,
        };
        Ok(Self::new(config.length, &config.curriculum, of_length))
    }

    fn new(length: usize, stages: &[Stage], of_length: impl Fn(usize) -> Layout) -> Self {
        let mut until = 0u64;
        let stages = stages.iter().map(|stage| {
            until = until.saturating_add(stage.steps);
            (until, of_length(stage.length))
        });
        Self {
            stages: stages.collect(),
            whole: of_length(length),
        }
    }

    /// Tokens of a sequence.
    pub fn length(&self) -> usize {
        self.whole.length
    }

    /// Different tokens.
    pub fn vocabulary(&self) -> usize {
        self.whole.vocabulary()
    }

    /// Different answers: the values.
    pub fn classes(&self) -> usize {
        self.whole.values
    }

    /// The batch of a training step: a pure function of seed and step. In a curriculum there are more
    /// examples of shorter sequences, about as many tokens in all.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<LookupBatch, TaskError> {
        let stage = self.stages.iter().find(|(until, _)| step < *until);
        let layout = stage.map_or(&self.whole, |(_, layout)| layout);
        let examples = batch_size * self.whole.length / layout.length;
        layout.draw(generator(seed, Purpose::Training, step), examples, device)
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
    ) -> Result<LookupBatch, TaskError> {
        let rng = generator(seed, Purpose::Evaluation, index);
        self.whole.draw(rng, batch_size, device)
    }
}

impl Layout {
    fn vocabulary(&self) -> usize {
        self.keys + self.values + self.fillers
    }

    fn draw(
        &self,
        mut rng: ChaCha8Rng,
        batch_size: usize,
        device: &Device,
    ) -> Result<LookupBatch, TaskError> {
        check_batch(batch_size)?;
        let body = self.length - self.queries;
        let sequences = (0..batch_size).map(|_| self.sequence(&mut rng));
        let (tokens, classes): (Vec<_>, Vec<_>) = sequences.unzip();
        let shape = [batch_size, self.length];
        let ignored_targets: Vec<bool> = (0..self.length).map(|place| place < body).collect();
        let ignored_targets = TensorData::new(ignored_targets, [1, self.length]);
        Ok(LookupBatch {
            tokens: Tensor::from_data(TensorData::new(tokens.concat(), shape), device),
            classes: Tensor::from_data(TensorData::new(classes.concat(), shape), device),
            target_mask: Tensor::<2, Bool>::from_data(ignored_targets, device).expand(shape),
        })
    }

    /// Tokens and classes of one sequence.
    fn sequence(&self, rng: &mut ChaCha8Rng) -> (Vec<i64>, Vec<i64>) {
        let body = self.length - self.queries;
        let (first_value, first_filler) = (self.keys, self.keys + self.values);
        let mut tokens: Vec<i64> = match self.fillers {
            0 => vec![0; body],
            _ => (0..body)
                .map(|_| rng.random_range(first_filler..self.vocabulary()) as i64)
                .collect(),
        };
        // Every pair as one place: `pairs` of `body - pairs` places, all choices equally likely.
        let mut places = distinct(rng, body - self.pairs, self.pairs);
        places.sort_unstable();
        let keys = distinct(rng, self.keys, self.pairs);
        let pairs: Vec<(i64, i64)> = keys
            .into_iter()
            .map(|key| (key as i64, rng.random_range(0..self.values) as i64))
            .collect();
        for (before, (place, (key, value))) in places.iter().zip(&pairs).enumerate() {
            tokens[place + before] = *key;
            tokens[place + before + 1] = first_value as i64 + value;
        }
        let mut classes = vec![0; body];
        for _ in 0..self.queries {
            let (key, value) = pairs[rng.random_range(0..self.pairs)];
            tokens.push(key);
            classes.push(value);
        }
        (tokens, classes)
    }
}

/// `count` different numbers below `below`, every ordered choice equally likely: the first steps of
/// Fisher and Yates' shuffle.
fn distinct(rng: &mut ChaCha8Rng, below: usize, count: usize) -> Vec<usize> {
    let mut all: Vec<usize> = (0..below).collect();
    for at in 0..count {
        let other = rng.random_range(at..below);
        all.swap(at, other);
    }
    all.truncate(count);
    all
}
