//! What the models are made of.

use crate::check::expect_some;
use crate::init::Initialization;
use crate::prediction::{HeadKind, Prediction};
use arbora_attention::functions::{BlockWeights, FeedForwardWeights, feed_forward, tree_build};
use arbora_attention::ops::TreeBuildOptions;
use arbora_attention::{PreNormAttention, PreNormAttentionConfig};
use arbora_tree::token::masked_mean;
use arbora_tree::{Aggregator, ConfigError, TokenTreeShape};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{
    Dropout, DropoutConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, PositionalEncoding,
    PositionalEncodingConfig,
};
use burn::tensor::activation::{gelu, relu};
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

/// How tokens and queries are embedded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EmbeddingKind {
    /// Points without an order: an MLP. Published for regression and images.
    #[default]
    Points,
    /// Sequences: an MLP, sinusoidal positions counted from 0, dropout and a second MLP. Published
    /// for the copy task. Context and queries count positions separately.
    Sequence,
}

/// What ReTreever and the model it is compared with have in common. The defaults are the published
/// ones (arXiv 2309.17388, appendix).
#[derive(Config, Debug)]
pub struct ModelConfig {
    /// Features of a context token.
    pub d_context: usize,
    /// Features of a query.
    pub d_query: usize,
    /// What is predicted.
    pub head: HeadKind,
    /// Width of embeddings and tokens.
    #[config(default = 64)]
    pub d_model: usize,
    /// Width of feed-forward layers.
    #[config(default = 128)]
    pub d_ff: usize,
    /// Number of attention heads; must divide `d_model`.
    #[config(default = 4)]
    pub n_heads: usize,
    /// How tokens and queries are embedded.
    #[config(default = "EmbeddingKind::Points")]
    pub embedding: EmbeddingKind,
    /// Linear layers of an embedding, at least 1.
    #[config(default = 4)]
    pub embedding_depth: usize,
    /// Transformer blocks of the encoder; 0 encodes each token by itself.
    #[config(default = 6)]
    pub encoder_layers: usize,
    /// Dropout in feed-forward layers and after positional encodings.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// How far weights are drawn from 0.
    #[config(default = "Initialization::Published")]
    pub initialization: Initialization,
    /// Most positions of a sequence embedding.
    #[config(default = 5000)]
    pub max_positions: usize,
}

impl ModelConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([
            ("d_context", self.d_context),
            ("d_query", self.d_query),
            ("d_model", self.d_model),
            ("d_ff", self.d_ff),
            ("embedding_depth", self.embedding_depth),
            ("max_positions", self.max_positions),
        ])?;
        let holds = self.embedding == EmbeddingKind::Points || self.d_model.is_multiple_of(2);
        let expected = "an even number, which sequence embeddings need";
        ConfigError::unless(holds, "d_model", expected, self.d_model)?;
        ConfigError::unless_divisor("n_heads", self.n_heads, self.d_model)?;
        ConfigError::unless_dropout(self.dropout)
    }
}

/// The context that queries are answered from.
#[derive(Clone, Debug)]
pub struct Context {
    /// Features per token, `[batch, tokens, d_context]`.
    pub features: Tensor<3>,
    /// Where each token is, `[batch, tokens, dim]`: what leaf orders read.
    pub positions: Tensor<3>,
    /// `[batch, tokens]`, `true` = masked out. `None` where every token is real.
    pub mask: Option<Tensor<2, Bool>>,
}

impl Context {
    /// Points with values: the features are coordinates and values side by side.
    ///
    /// # Shapes
    /// - x: `[batch, tokens, x_dim]`, also the positions
    /// - y: `[batch, tokens, y_dim]`
    /// - mask: `[batch, tokens]`, `true` = masked out
    pub fn points(x: Tensor<3>, y: Tensor<3>, mask: Option<Tensor<2, Bool>>) -> Self {
        Self {
            features: Tensor::cat(vec![x.clone(), y], 2),
            positions: x,
            mask,
        }
    }

    /// A sequence of token features `[batch, tokens, d_context]`; a token's position is its place.
    pub fn sequence(features: Tensor<3>, mask: Option<Tensor<2, Bool>>) -> Self {
        let [batch, tokens, _] = features.dims();
        // In half precision places past 2,048 would be equal.
        let positions = Tensor::<1, Int>::arange(0..tokens as i64, &features.device())
            .cast(FloatDType::F32)
            .reshape([1, tokens, 1])
            .expand([batch, tokens, 1]);
        Self {
            features,
            positions,
            mask,
        }
    }
}

/// `LN(x) + FF(LN(x))` with `FF(z) = W_2 · (a · gelu(g)) + b_2`, `[a, g] = W_1 z + b_1`.
///
/// The residual is around the normalised input, as published. GELU is the exact one.
#[derive(Module, Debug)]
pub struct FeedForward {
    norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    dropout: Dropout,
}

impl FeedForward {
    fn new(config: &ModelConfig, device: &Device) -> Self {
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        Self {
            norm: LayerNormConfig::new(d_model).init(device),
            inner: LinearConfig::new(d_model, 2 * d_ff).init(device),
            outer: LinearConfig::new(d_ff, d_model).init(device),
            dropout: DropoutConfig::new(config.dropout).init(),
        }
    }

    /// `[batch, rows, d_model]` -> the same. In one operator, which has no dropout: where dropout
    /// acts, layer by layer.
    ///
    /// # Panics
    /// If there is no example.
    #[track_caller]
    pub fn forward(&self, input: Tensor<3>) -> Tensor<3> {
        expect_some("feed_forward: axis 0 of input", input.dims()[0]);
        if !self.drops(&input.device()) {
            let epsilon = LayerNormConfig::new(self.norm.gamma.dims()[0]).epsilon;
            return feed_forward(input, self.weights(), epsilon);
        }
        let normalized = self.norm.forward(input);
        let [value, gate] = self
            .inner
            .forward(normalized.clone())
            .chunk(2, 2)
            .try_into()
            .expect("two halves of an even width");
        normalized + self.dropout.forward(self.outer.forward(value * gelu(gate)))
    }

    /// Whether dropout acts on tensors of a device.
    fn drops(&self, device: &Device) -> bool {
        self.dropout.prob > 0.0 && self.dropout.training.is_enabled() && device.is_autodiff()
    }

    fn weights(&self) -> FeedForwardWeights {
        FeedForwardWeights {
            norm_gamma: self.norm.gamma.val(),
            norm_beta: shift(&self.norm),
            inner: self.inner.weight.val(),
            inner_bias: bias(&self.inner),
            outer: self.outer.weight.val(),
            outer_bias: bias(&self.outer),
        }
    }
}

const BIAS: &str = "the block's layers are made with a bias";

fn shift(norm: &LayerNorm) -> Tensor<1> {
    norm.beta.as_ref().expect(BIAS).val()
}

fn bias(linear: &Linear) -> Tensor<1> {
    linear.bias.as_ref().expect(BIAS).val()
}

/// The published transformer block: pre-norm attention with queries normalised and keys and values
/// raw, then a gated feed-forward layer; both residuals are around the normalised input.
#[derive(Module, Debug)]
pub struct Block {
    attention: PreNormAttention,
    feed_forward: FeedForward,
}

impl Block {
    /// A block of the configured width.
    #[track_caller]
    pub fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            attention: PreNormAttentionConfig::new(config.d_model, config.n_heads).init(device),
            feed_forward: FeedForward::new(config, device),
        }
    }

    /// Self-attention among the tokens of each example.
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens, d_model]`
    /// - mask: `[batch, tokens]`, `true` = masked out
    /// - returns `[batch, tokens, d_model]`
    pub fn forward(&self, tokens: Tensor<3>, mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.attend(tokens.clone(), tokens, mask)
    }

    /// The same with attention from other rows than those attended to.
    ///
    /// # Shapes
    /// - queries: `[batch, queries, d_model]`
    /// - tokens: `[batch, tokens, d_model]`
    /// - mask: `[batch, tokens]`, `true` = masked out; where all are, attention adds nothing but its
    ///   output bias
    /// - returns `[batch, queries, d_model]`
    #[track_caller]
    pub fn attend(
        &self,
        queries: Tensor<3>,
        tokens: Tensor<3>,
        mask: Option<Tensor<2, Bool>>,
    ) -> Tensor<3> {
        self.feed_forward
            .forward(self.attention.attend(queries, tokens, mask))
    }

    fn weights(&self) -> BlockWeights {
        let attention = &self.attention;
        BlockWeights {
            norm_gamma: attention.norm.gamma.val(),
            norm_beta: shift(&attention.norm),
            query: attention.query.weight.val(),
            key: attention.key.weight.val(),
            value: attention.value.weight.val(),
            output: attention.output.weight.val(),
            output_bias: bias(&attention.output),
            feed_forward: self.feed_forward.weights(),
        }
    }
}

/// The published aggregator: one transformer block over the children of a node, shared by all nodes
/// of all levels, then their mean.
#[derive(Module, Debug)]
pub struct BlockAggregator {
    block: Block,
    /// Whether gradients stop at the children, so that none crosses more than one level. Published:
    /// true.
    pub detach_children: bool,
}

impl BlockAggregator {
    /// An aggregator of the configured width.
    #[track_caller]
    pub fn new(config: &ModelConfig, detach_children: bool, device: &Device) -> Self {
        Self {
            block: Block::new(config, device),
            detach_children,
        }
    }
}

impl Aggregator for BlockAggregator {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        let mask = leaves.equal_elem(0);
        let children = if self.detach_children {
            children.detach()
        } else {
            children
        };
        masked_mean(self.block.forward(children, Some(mask.clone())), mask)
    }

    /// In one operator, which has no dropout: where dropout acts, level by level.
    #[track_caller]
    fn nodes(
        &self,
        leaves: Tensor<3>,
        lengths: Tensor<1, Int>,
        shape: &TokenTreeShape,
    ) -> Tensor<3> {
        if self.block.feed_forward.drops(&leaves.device()) {
            return LevelByLevel(self).nodes(leaves, lengths, shape);
        }
        let attention = &self.block.attention;
        let options = TreeBuildOptions {
            shape: *shape,
            heads: attention.n_heads,
            epsilon: LayerNormConfig::new(attention.d_model).epsilon,
            detach_children: self.detach_children,
        };
        tree_build(leaves, lengths, self.block.weights(), options)
    }
}

/// An aggregator without its own way to all nodes at once.
struct LevelByLevel<'a>(&'a BlockAggregator);

impl Aggregator for LevelByLevel<'_> {
    fn aggregate(&self, children: Tensor<3>, leaves: Tensor<2, Int>) -> Tensor<2> {
        self.0.aggregate(children, leaves)
    }
}

/// Embeds features of tokens or queries.
#[derive(Module, Debug)]
pub struct Embedding {
    layers: Vec<Linear>,
    sequence: Option<SequenceEmbedding>,
}

#[derive(Module, Debug)]
struct SequenceEmbedding {
    positions: PositionalEncoding,
    dropout: Dropout,
    layers: Vec<Linear>,
}

impl Embedding {
    fn new(d_input: usize, config: &ModelConfig, device: &Device) -> Self {
        let (d_model, d_ff) = (config.d_model, config.d_ff);
        let linear = |from, to| LinearConfig::new(from, to).init(device);
        let mut layers = vec![linear(d_input, d_model)];
        layers.extend((1..config.embedding_depth).map(|_| linear(d_model, d_model)));
        let sequence = (config.embedding == EmbeddingKind::Sequence).then(|| SequenceEmbedding {
            positions: PositionalEncodingConfig::new(d_model)
                .with_max_sequence_size(config.max_positions)
                // 10,000 as published, which burn wants to be no less than the positions.
                .with_max_timescale(config.max_positions.max(10_000))
                .init(device),
            dropout: DropoutConfig::new(config.dropout).init(),
            layers: vec![
                linear(d_model, d_ff),
                linear(d_ff, d_ff),
                linear(d_ff, d_model),
            ],
        });
        Self { layers, sequence }
    }

    /// `[batch, rows, features]` -> `[batch, rows, d_model]`
    ///
    /// # Panics
    /// If there is no example, or a sequence is longer than the configured number of positions.
    #[track_caller]
    pub fn forward(&self, features: Tensor<3>) -> Tensor<3> {
        let hidden = self.contents(features);
        match &self.sequence {
            None => hidden,
            Some(sequence) => sequence.forward(sequence.positions.forward(hidden)),
        }
    }

    /// [`forward`](Self::forward) for rows that stand elsewhere in their sequences.
    ///
    /// # Shapes
    /// - features: `[batch, rows, features]`
    /// - places: `[batch · rows]`, counted from 0; points have none, and ignore them
    /// - returns `[batch, rows, d_model]`
    ///
    /// # Panics
    /// If there is no example, or a place is not below the configured number of positions.
    #[track_caller]
    pub fn forward_at(&self, features: Tensor<3>, places: &[usize]) -> Tensor<3> {
        let hidden = self.contents(features);
        let Some(sequence) = &self.sequence else {
            return hidden;
        };
        let positions = sequence.positions.sinusoids.clone();
        let [_, most, width] = positions.dims();
        let indices: Vec<i64> = places
            .iter()
            .map(|place| {
                assert!(
                    *place < most,
                    "embedding: place: expected below {most}, got {place}"
                );
                *place as i64
            })
            .collect();
        let indices = Tensor::from_data(TensorData::new(indices, [places.len()]), &hidden.device());
        let [batch, rows, _] = hidden.dims();
        let positions = positions.reshape([most, width]).select(0, indices);
        sequence.forward(hidden + positions.reshape([batch, rows, width]))
    }

    /// What rows hold, wherever they stand.
    #[track_caller]
    fn contents(&self, features: Tensor<3>) -> Tensor<3> {
        expect_some("embedding: axis 0 of features", features.dims()[0]);
        mlp(&self.layers, features, elu)
    }
}

impl SequenceEmbedding {
    /// What follows once positions are added, `[batch, rows, d_model]` -> the same.
    fn forward(&self, positioned: Tensor<3>) -> Tensor<3> {
        mlp(&self.layers, self.dropout.forward(positioned), relu)
    }
}

/// Linear layers with an activation between them.
fn mlp(layers: &[Linear], input: Tensor<3>, activation: fn(Tensor<3>) -> Tensor<3>) -> Tensor<3> {
    let (last, before) = layers.split_last().expect("there is a layer");
    let hidden = before
        .iter()
        .fold(input, |hidden, layer| activation(layer.forward(hidden)));
    last.forward(hidden)
}

/// `x` where positive, else `e^x - 1`. burn's own also multiplies by its parameter, which is 1 here: a
/// pass over memory forward and another backward.
fn elu(input: Tensor<3>) -> Tensor<3> {
    let negative = input.clone().lower_equal_scalar(0);
    input
        .clone()
        .mask_where(negative, input.exp().sub_scalar(1))
}

/// Embeds context and queries, and encodes the context by self-attention.
#[derive(Module, Debug)]
pub struct Encoder {
    context: Embedding,
    query: Embedding,
    blocks: Vec<Block>,
}

impl Encoder {
    #[track_caller]
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            context: Embedding::new(config.d_context, config, device),
            query: Embedding::new(config.d_query, config, device),
            blocks: (0..config.encoder_layers)
                .map(|_| Block::new(config, device))
                .collect(),
        }
    }

    /// The encoded tokens, `[batch, tokens, d_model]`.
    ///
    /// # Panics
    /// If features are not as wide as the model takes them, or a sequence is longer than `max_positions`.
    pub fn encode(&self, context: &Context) -> Tensor<3> {
        self.transform(self.embed_context(context), context.mask.clone())
    }

    /// The embedded tokens, before any self-attention, `[batch, tokens, d_model]`.
    pub fn embed_context(&self, context: &Context) -> Tensor<3> {
        self.context.forward(context.features.clone())
    }

    /// [`embed_context`](Self::embed_context) for tokens that stand elsewhere in their sequences: see
    /// [`Embedding::forward_at`].
    pub fn embed_context_at(&self, features: Tensor<3>, places: &[usize]) -> Tensor<3> {
        self.context.forward_at(features, places)
    }

    /// Blocks of self-attention; 0 encodes each token by itself.
    pub fn layers(&self) -> usize {
        self.blocks.len()
    }

    /// The most tokens that a sequence embedding has positions for; points have no limit.
    pub fn max_positions(&self) -> Option<usize> {
        let sequence = self.context.sequence.as_ref()?;
        Some(sequence.positions.max_sequence_size)
    }

    /// All blocks of self-attention among the rows of each example.
    ///
    /// # Shapes
    /// - rows: `[batch, rows, d_model]`, also returned
    /// - mask: `[batch, rows]`, `true` = masked out
    pub fn transform(&self, rows: Tensor<3>, mask: Option<Tensor<2, Bool>>) -> Tensor<3> {
        self.blocks
            .iter()
            .fold(rows, |rows, block| block.forward(rows, mask.clone()))
    }

    /// The embedded queries, `[batch, queries, d_query]` -> `[batch, queries, d_model]`.
    pub fn embed_queries(&self, queries: Tensor<3>) -> Tensor<3> {
        self.query.forward(queries)
    }
}

/// Turns what attention returned into a prediction.
#[derive(Module, Debug)]
pub struct Decoder {
    feed_forward: FeedForward,
    hidden: Linear,
    output: Linear,
    #[module(skip)]
    head: HeadKind,
}

impl Decoder {
    #[track_caller]
    pub(crate) fn new(config: &ModelConfig, device: &Device) -> Self {
        Self {
            feed_forward: FeedForward::new(config, device),
            hidden: LinearConfig::new(config.d_model, config.d_ff).init(device),
            output: LinearConfig::new(config.d_ff, config.head.width()).init(device),
            head: config.head,
        }
    }

    /// `[batch, queries, d_model]` -> a prediction per query.
    pub fn decode(&self, context: Tensor<3>) -> Prediction {
        let hidden = relu(self.hidden.forward(self.feed_forward.forward(context)));
        self.head.read(self.output.forward(hidden))
    }
}
