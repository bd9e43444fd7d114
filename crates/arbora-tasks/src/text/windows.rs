//! Windows of tokens, in batches.

use std::ops::Range;
use std::sync::Arc;

use burn::config::Config;
use burn::tensor::{Bool, Device, Int, Tensor, TensorData};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

use super::Tokenizer;
use super::corpus::{Corpus, check_share};
use crate::batch::{batches_in_order, pad, padding_mask};
use crate::{TaskError, shuffle};

/// Most tokens of a window.
const MOST: usize = 1 << 20;

/// How a corpus becomes windows.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct TextConfig {
    /// Tokens of a window, each of which predicts the next one. Default 256.
    pub window: usize,
    /// `false` (default): a window has tokens of one document only. `true`: the documents follow each other
    /// in one stream, with the end of a document between them, and windows are cut from the stream.
    pub mix_documents: bool,
    /// The share of the text that is for validation, as [`Corpus::split`] takes it. Default 0.1.
    pub validation: f64,
}

impl Default for TextConfig {
    fn default() -> Self {
        Self {
            window: 256,
            mix_documents: false,
            validation: 0.1,
        }
    }
}

impl Config for TextConfig {}

impl TextConfig {
    /// Whether every setting is in its range.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), TaskError> {
        if !(1..=MOST).contains(&self.window) {
            let expected = format!("1 to {MOST}");
            return Err(TaskError::config("window", expected, self.window));
        }
        check_share(self.validation)
    }
}

/// Windows of tokens, and what each token is to predict.
#[derive(Clone, Debug)]
pub struct TextBatch {
    /// `[batch, window]`. Padding is the end of a document.
    pub tokens: Tensor<2, Int>,
    /// The token after each token: `[batch, window]`. Padding is the end of a document.
    pub targets: Tensor<2, Int>,
    /// `true` = padding, of tokens and targets alike, which no loss counts: `[batch, window]`.
    /// Padding is at the end of a window.
    pub ignored: Tensor<2, Bool>,
    /// Tokens of each window, padding not counted, at least 1: `[batch]`, on the host.
    pub counts: Vec<usize>,
    /// How many bytes of text each target stands for, 0 for ends of documents and padding:
    /// `[batch, window]` row by row, on the host.
    pub bytes: Vec<u32>,
    /// The document of each window's first token, numbered through the part: `[batch]`, on the host.
    pub documents: Vec<usize>,
    /// Which window each row is, numbered through the part: `[batch]`, on the host.
    pub indices: Vec<usize>,
}

/// A language model's data: the training and the validation part of a corpus, as windows of tokens.
///
/// An end of document follows every document. Windows follow each other without overlap, so each token is
/// predicted exactly once: in the window of the token before it. Only the first token of a document is
/// predicted by nothing; with [`TextConfig::mix_documents`], only the first one of a part. The last window of
/// a document (of a part) may be shorter and is padded. None is dropped, however short. The context of a
/// token begins at the start of its window.
///
/// Training walks through the windows in epochs, each in an order of its own. Evaluation walks once through
/// all windows of the validation part. Clones share the tokens.
#[derive(Clone, Debug)]
pub struct Text {
    tokenizer: Tokenizer,
    window: usize,
    train: Arc<Part>,
    validation: Arc<Part>,
}

impl Text {
    /// The windows of a corpus, split by [`TextConfig::validation`].
    ///
    /// # Errors
    /// As [`TextConfig::check`], [`Corpus::split`] and [`Tokenizer::encode`]; [`TaskError::Text`] if the
    /// tokenizer has no token for a whole part.
    pub fn new(
        corpus: &Corpus,
        tokenizer: Tokenizer,
        config: TextConfig,
    ) -> Result<Self, TaskError> {
        config.check()?;
        let (train, validation) = corpus.split(config.validation)?;
        Self::from_parts(&train, &validation, tokenizer, config)
    }

    /// The windows of a corpus that comes with a validation part. [`TextConfig::validation`] is not used.
    ///
    /// # Errors
    /// As [`Text::new`].
    pub fn from_parts(
        train: &Corpus,
        validation: &Corpus,
        tokenizer: Tokenizer,
        config: TextConfig,
    ) -> Result<Self, TaskError> {
        config.check()?;
        let part = |corpus, name| Part::new(corpus, name, &tokenizer, config).map(Arc::new);
        Ok(Self {
            train: part(train, "training")?,
            validation: part(validation, "validation")?,
            window: config.window,
            tokenizer,
        })
    }

    /// What turned the text into tokens.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Tokens of a window.
    pub fn window(&self) -> usize {
        self.window
    }

    /// How many windows the training part has.
    pub fn train_windows(&self) -> usize {
        self.train.windows.len()
    }

    /// How many windows the validation part has.
    pub fn validation_windows(&self) -> usize {
        self.validation.windows.len()
    }

    /// How many targets an epoch of training has, without the first `skipped` of each window; padding is none.
    pub fn train_targets_after(&self, skipped: usize) -> usize {
        self.train.targets(skipped)
    }

    /// How many targets evaluation has, without the first `skipped` of each window; padding is none.
    pub fn validation_targets_after(&self, skipped: usize) -> usize {
        self.validation.targets(skipped)
    }

    /// How many bytes of text the targets of evaluation stand for.
    pub fn validation_bytes(&self) -> u64 {
        let windows = self.validation.windows.iter();
        let bytes = windows.flat_map(|window| &self.validation.bytes[window.targets()]);
        bytes.map(|&bytes| u64::from(bytes)).sum()
    }

    /// The training batch of `step`: a pure function of its arguments.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<TextBatch, TaskError> {
        let indices = shuffle::batch_indices(self.train_windows(), seed, step, batch_size)?;
        Ok(self.windows_of(&self.train, indices, device))
    }

    /// All windows of the validation part in order, each once. The last batch may be smaller.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batches<'a>(
        &'a self,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = TextBatch> + use<'a>, TaskError> {
        self.spread_eval_batches(usize::MAX, batch_size, device)
    }

    /// Some of the batches of [`eval_batches`](Self::eval_batches) in order, evenly spaced over the validation
    /// part.
    ///
    /// - batches: how many; all where there are no more
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn spread_eval_batches<'a>(
        &'a self,
        batches: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = TextBatch> + use<'a>, TaskError> {
        let device = device.clone();
        let spread = self.spread(batches, batch_size)?;
        Ok(
            spread
                .map(move |windows| self.windows_of(&self.validation, windows.collect(), &device)),
        )
    }

    /// How many targets the windows of [`spread_eval_batches`](Self::spread_eval_batches) have without the first
    /// `skipped` of each.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn spread_targets_after(
        &self,
        batches: usize,
        batch_size: usize,
        skipped: usize,
    ) -> Result<usize, TaskError> {
        let windows = self.spread(batches, batch_size)?.flatten();
        let targets = windows.map(|index| self.validation.windows[index].targets_after(skipped));
        Ok(targets.sum())
    }

    /// The windows of each batch of an evaluation.
    fn spread(
        &self,
        batches: usize,
        batch_size: usize,
    ) -> Result<impl ExactSizeIterator<Item = Range<usize>> + use<>, TaskError> {
        let all: Vec<_> = batches_in_order(self.validation_windows(), batch_size)?.collect();
        let batches = batches.min(all.len());
        Ok((0..batches).map(move |number| all[number * all.len() / batches].clone()))
    }

    fn windows_of(&self, part: &Part, indices: Vec<usize>, device: &Device) -> TextBatch {
        let shape = [indices.len(), self.window];
        let filler = i64::from(self.tokenizer.end_of_document());
        let windows: Vec<Window> = indices.iter().map(|&index| part.windows[index]).collect();
        let ids = |range: fn(Window) -> Range<usize>| {
            let rows = windows.iter().map(|&window| &part.ids[range(window)]);
            let rows = rows.map(|ids| ids.iter().map(|&id| i64::from(id)));
            let ids = TensorData::new(pad(rows, self.window, filler), shape);
            Tensor::from_data(ids, device)
        };
        let bytes = windows.iter().map(|window| &part.bytes[window.targets()]);
        let counts: Vec<usize> = windows.iter().map(|window| window.count).collect();
        TextBatch {
            tokens: ids(Window::tokens),
            targets: ids(Window::targets),
            ignored: padding_mask(&counts, self.window, device),
            counts,
            bytes: pad(bytes.map(|bytes| bytes.iter().copied()), self.window, 0),
            documents: windows.iter().map(|window| window.document).collect(),
            indices,
        }
    }
}

/// All tokens of a part, and where its windows lie.
#[derive(Debug)]
struct Part {
    /// The documents one after the other, each followed by the end of a document.
    ids: Vec<u32>,
    /// By token.
    bytes: Vec<u32>,
    windows: Vec<Window>,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    /// The first token, in those of the part.
    start: usize,
    /// Tokens, and as many targets.
    count: usize,
    document: usize,
}

impl Window {
    fn tokens(self) -> Range<usize> {
        self.start..self.start + self.count
    }

    fn targets(self) -> Range<usize> {
        self.start + 1..self.start + self.count + 1
    }

    /// How many targets there are without the first ones.
    fn targets_after(self, skipped: usize) -> usize {
        self.count.saturating_sub(skipped)
    }
}

impl Part {
    fn new(
        corpus: &Corpus,
        name: &str,
        tokenizer: &Tokenizer,
        config: TextConfig,
    ) -> Result<Self, TaskError> {
        let mut part = Self {
            ids: Vec::new(),
            bytes: Vec::new(),
            windows: Vec::new(),
        };
        // The end of each document in the tokens. A document without tokens ends where the last one did.
        let mut ends = Vec::with_capacity(corpus.documents().len());
        for text in corpus.texts() {
            let encoded = tokenizer.encode(text)?;
            if !encoded.ids.is_empty() {
                part.ids.extend(encoded.ids);
                part.ids.push(tokenizer.end_of_document());
                part.bytes.extend(encoded.bytes);
                part.bytes.push(0);
            }
            ends.push(part.ids.len());
        }
        if part.ids.is_empty() {
            return Err(TaskError::Text(format!(
                "the tokenizer gives no token for any document of the {name} text"
            )));
        }
        // Windows are cut from each document, or from all of them as one stream.
        let streams = if config.mix_documents {
            vec![part.ids.len()]
        } else {
            ends.clone()
        };
        let mut first = 0;
        for end in streams {
            // The last token is a target only.
            let last = end.saturating_sub(1);
            let starts = (first..last).step_by(config.window);
            part.windows.extend(starts.map(|start| Window {
                start,
                count: config.window.min(last - start),
                document: ends.partition_point(|&end| end <= start),
            }));
            first = end;
        }
        Ok(part)
    }

    fn targets(&self, skipped: usize) -> usize {
        let windows = self.windows.iter();
        windows.map(|window| window.targets_after(skipped)).sum()
    }
}
