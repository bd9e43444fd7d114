//! Contexts that grow and change token by token.

use crate::check::expect;
use crate::parts::Context;
use crate::retreever::{ReTreever, ReTreeverOutput};
use arbora_attention::{IndexError, SearchOptions, StreamingIndex, TreeIndex};
use arbora_tree::{Changed, Layout, StreamError, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Tensor};
use std::path::Path;
use thiserror::Error;

/// Why a model cannot answer from a context that grows, or a stored one cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReTreeverStreamError {
    /// The encoder attends among tokens, so that one more token changes all of them.
    #[error(
        "growing contexts need tokens encoded one by one; self-attention in this encoder \
         (encoder_layers = {layers}) changes every token when one is appended"
    )]
    Encoder {
        /// Its layers of self-attention.
        layers: usize,
    },
    /// The leaves are sorted, so that one more token may belong anywhere.
    #[error("growing contexts need tokens in their given order, this model orders them {order:?}")]
    Order {
        /// The model's order.
        order: TokenOrder,
    },
    /// Leaves are grouped in another way than from the left, so that one more token may move all
    /// others.
    #[error("growing contexts need the layout left-filled, this model has {layout:?}")]
    Layout {
        /// The model's layout.
        layout: Layout,
    },
    /// The stored stream cannot be read, or is not of this model.
    #[error(transparent)]
    Stored(#[from] IndexError),
}

/// A batch of contexts that grow and change, ready to be searched.
///
/// Appending or replacing a token embeds it and aggregates and projects its `O(log N)` ancestors,
/// each from `b` children, and nothing else. Answers equal those from [`ReTreever::index`] of the whole
/// context, up to rounding. Which models can: see [`ReTreeverStreamError`].
///
/// Stream on a device without gradients: see [`TokenTree`], section "Streams".
///
/// # Example
///
/// ```no_run
/// use arbora_attention::Route;
/// use arbora_models::{HeadKind, ModelConfig, ReTreeverConfig, StdKind};
/// use burn::tensor::{Device, Tensor};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let device = Device::default();
/// let head = HeadKind::Gaussian { dim: 1, std: StdKind::Exp };
/// let config = ModelConfig::new(3, 2, head).with_encoder_layers(0);
/// let model = ReTreeverConfig::new(config).with_seed(1).init(&device);
/// let mut stream = model.stream_empty(1, 1024, &device)?; // room for 1024 tokens at first
/// for _ in 0..10 {
///     stream.append(Tensor::ones([1, 1, 3], &device))?;
/// }
/// let found = stream.predict(Tensor::ones([1, 4, 2], &device), Route::Greedy);
/// assert_eq!(found.search.context.dims(), [1, 4, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ReTreeverStream<'model> {
    model: &'model ReTreever,
    memory: StreamingIndex,
    /// Tokens of each example: where the next one stands in its sequence.
    lengths: Vec<usize>,
}

impl ReTreever {
    /// Encodes and indexes a context that is to grow and change.
    ///
    /// Padding must follow the tokens of its example, or the first change is refused with
    /// [`StreamError::Order`].
    ///
    /// # Errors
    /// If the encoder attends among tokens, leaves are not the tokens in their given order, or the
    /// layout is not left-filled.
    pub fn stream(&self, context: &Context) -> Result<ReTreeverStream<'_>, ReTreeverStreamError> {
        self.streams()?;
        let memory = self.attention.stream(self.tree(context));
        Ok(ReTreeverStream::new(self, memory))
    }

    /// A batch of contexts without tokens that are to grow, with room for `room` tokens each at first.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    ///
    /// # Panics
    /// If `batch` or `room` is 0.
    #[track_caller]
    pub fn stream_empty(
        &self,
        batch: usize,
        room: usize,
        device: &Device,
    ) -> Result<ReTreeverStream<'_>, ReTreeverStreamError> {
        self.streams()?;
        let shape = TokenTreeShape::new(room, self.branching, self.layout);
        let tree = TokenTree::empty(batch, self.attention.attention.d_model, shape, device);
        Ok(ReTreeverStream::new(self, self.attention.stream(tree)))
    }

    /// Reads a stream that [`ReTreeverStream::save`] wrote, on any backend, so that it can grow on.
    ///
    /// # Errors
    /// As [`stream`](Self::stream), and as [`StreamingIndex::load`]. Only the weights that project
    /// nodes are compared with those of the file: that the encoder is the same is for the caller to
    /// know.
    pub fn stream_load(
        &self,
        path: impl AsRef<Path>,
        device: &Device,
    ) -> Result<ReTreeverStream<'_>, ReTreeverStreamError> {
        self.streams()?;
        let memory = StreamingIndex::load(path, &self.attention, device)?;
        Ok(ReTreeverStream::new(self, memory))
    }

    /// Whether one more token leaves the others as they are.
    fn streams(&self) -> Result<(), ReTreeverStreamError> {
        if self.encoder.layers() > 0 {
            let layers = self.encoder.layers();
            return Err(ReTreeverStreamError::Encoder { layers });
        }
        if self.order != TokenOrder::Given {
            return Err(ReTreeverStreamError::Order { order: self.order });
        }
        if self.layout != Layout::LeftFilled {
            let layout = self.layout;
            return Err(ReTreeverStreamError::Layout { layout });
        }
        Ok(())
    }
}

impl<'model> ReTreeverStream<'model> {
    fn new(model: &'model ReTreever, memory: StreamingIndex) -> Self {
        let lengths = memory.tree().lengths().into_data();
        let lengths = lengths
            .iter::<i64>()
            .map(|length| length as usize)
            .collect();
        let limit = memory.tree().max_tokens();
        let stream = Self {
            model,
            memory,
            lengths,
        };
        // Positions end, whatever the tree has room for.
        match (limit, model.encoder.max_positions()) {
            (None, Some(positions)) => stream.with_max_tokens(positions),
            _ => stream,
        }
    }

    /// Limits how many tokens an example may grow to. A sequence embedding also limits it, to its
    /// positions.
    #[must_use]
    pub fn with_max_tokens(mut self, max_tokens: usize) -> Self {
        let positions = self.model.encoder.max_positions().unwrap_or(usize::MAX);
        self.memory = self.memory.with_max_tokens(max_tokens.min(positions));
        self
    }

    /// Tokens of each example, `[batch]`.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of the longest example.
    pub fn len(&self) -> usize {
        self.lengths.iter().copied().max().unwrap_or(0)
    }

    /// Whether no example has a token.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// What to search. A clone is a snapshot: see [`StreamingIndex`].
    pub fn index(&self) -> &TreeIndex {
        self.memory.index()
    }

    /// Answers queries by search: see [`ReTreever::predict`].
    ///
    /// - queries: `[batch, queries, d_query]`
    #[track_caller]
    pub fn predict(
        &self,
        queries: Tensor<3>,
        options: impl Into<SearchOptions>,
    ) -> ReTreeverOutput {
        self.model.predict(queries, self.index(), options)
    }

    /// Appends the same number of tokens to every example.
    ///
    /// - features: `[batch, new, d_context]`
    ///
    /// # Errors
    /// [`StreamError::Full`] beyond [`with_max_tokens`](Self::with_max_tokens); nothing has changed
    /// then.
    ///
    /// # Panics
    /// If an axis of `features` is not that of the stream or the model.
    #[track_caller]
    pub fn append(&mut self, features: Tensor<3>) -> Result<Changed, StreamError> {
        let counts = vec![features.dims()[1]; self.lengths.len()];
        self.append_ragged(features, &counts)
    }

    /// Appends to every example the first `counts[example]` of its tokens.
    ///
    /// - features: `[batch, new, d_context]`; what follows an example's count is ignored
    ///
    /// # Errors
    /// As [`append`](Self::append).
    ///
    /// # Panics
    /// As [`append`](Self::append), and if there is not one count per example or one exceeds the tokens
    /// given.
    #[track_caller]
    pub fn append_ragged(
        &mut self,
        features: Tensor<3>,
        counts: &[usize],
    ) -> Result<Changed, StreamError> {
        let [batch, new, _] = features.dims();
        let expected = self.lengths.len();
        for (name, got) in [("axis 0 of features", batch), ("counts", counts.len())] {
            expect(&format!("retreever stream: append: {name}"), got, expected);
        }
        // Before anything is embedded: there are no positions beyond the limit.
        let max_tokens = self.memory.tree().max_tokens().unwrap_or(usize::MAX);
        let mut places = Vec::with_capacity(batch * new);
        for (example, (&length, &count)) in self.lengths.iter().zip(counts).enumerate() {
            if count > max_tokens.saturating_sub(length) {
                return Err(StreamError::Full {
                    example,
                    length,
                    appended: count,
                    max_tokens,
                });
            }
            // What follows the count is not kept, so it may stand anywhere.
            places.extend((0..new).map(|at| if at < count { length + at } else { 0 }));
        }
        let model = self.model;
        let tokens = model.encoder.embed_context_at(features, &places);
        let changed =
            self.memory
                .append_ragged(&model.attention, tokens, counts, &model.aggregator)?;
        for (length, count) in self.lengths.iter_mut().zip(counts) {
            *length += count;
        }
        Ok(changed)
    }

    /// Replaces tokens, named as `(example, token)`, in any order.
    ///
    /// - features: `[leaves, d_context]`
    ///
    /// # Errors
    /// [`StreamError::NoSuchToken`] and [`StreamError::Repeated`]; nothing has changed then.
    ///
    /// # Panics
    /// If `features` has another number of rows than `leaves`, or another width than the model's
    /// context.
    #[track_caller]
    pub fn update(
        &mut self,
        leaves: &[(usize, usize)],
        features: Tensor<2>,
    ) -> Result<Changed, StreamError> {
        let [rows, _] = features.dims();
        let what = "retreever stream: update: axis 0 of features";
        expect(what, rows, leaves.len());
        for &(example, token) in leaves {
            let batch = self.lengths.len();
            if example >= batch || token >= self.lengths[example] {
                return Err(StreamError::NoSuchToken {
                    example,
                    token,
                    batch,
                });
            }
        }
        let places: Vec<usize> = leaves.iter().map(|(_, token)| *token).collect();
        let model = self.model;
        let tokens = model
            .encoder
            .embed_context_at(features.unsqueeze_dim(0), &places)
            .squeeze_dim(0);
        self.memory
            .update(&model.attention, leaves, tokens, &model.aggregator)
    }

    /// Writes index and trees to a safetensors file: see [`StreamingIndex::save`].
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<(), IndexError> {
        self.memory.save(path)
    }
}
