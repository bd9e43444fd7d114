//! The Treeformer: a transformer over tokens whose attention is of any kind.

mod mixing;

pub use mixing::LocalMixing;

use crate::block::{TransformerBlock, TransformerBlockConfig, check_causal};
use crate::check::expect_some;
use crate::init::{Initialization, seeded};
use arbora_attention::{AttentionKindConfig, RoutingReport, SelfAttentionInput};
use arbora_rl::seed::spread;
use arbora_tree::ConfigError;
use arbora_tree::routing::Surrogate;
use burn::config::Config;
use burn::module::{Module, ParamId};
use burn::nn::{
    Dropout, DropoutConfig, Embedding, EmbeddingConfig, Linear, LinearConfig, RmsNorm,
    RmsNormConfig,
};
use burn::tensor::{Bool, Device, Int, Tensor, assert_shape};
use std::ops::Range;

/// Configuration of [`Treeformer`].
#[derive(Config, Debug)]
pub struct TreeformerConfig {
    /// Different tokens.
    pub vocabulary: usize,
    /// Classes that are predicted at every token.
    pub classes: usize,
    /// Width of tokens.
    #[config(default = 64)]
    pub d_model: usize,
    /// Query heads; must divide `d_model`.
    #[config(default = 2)]
    pub n_heads: usize,
    /// Key and value heads, which must divide `n_heads`; `None` means as many.
    #[config(default = "None")]
    pub n_kv_heads: Option<usize>,
    /// Transformer blocks.
    #[config(default = 1)]
    pub layers: usize,
    /// Width inside the MLPs.
    #[config(default = 128)]
    pub d_ff: usize,
    /// Positions with a learned embedding, which is also the longest sequence; 0 means that tokens have no
    /// positions.
    #[config(default = 0)]
    pub max_positions: usize,
    /// Whether every token gets a learned map of the one before it: [`LocalMixing`].
    #[config(default = true)]
    pub local_mixing: bool,
    /// Whether a token sees none after it.
    #[config(default = false)]
    pub causal: bool,
    /// Dropout after embeddings, in MLPs, and after attention and MLPs.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// How tokens attend.
    #[config(default = "AttentionKindConfig::Dense")]
    pub attention: AttentionKindConfig,
    /// Blocks that attend densely whatever `attention` says, counted from the tokens; at most `layers`.
    /// Treeformers are bootstrapped from the top (arXiv 2208.09015, Algorithm 1).
    #[config(default = 0)]
    pub dense_layers: usize,
    /// Seed of the weights: one seed gives the same weights on every backend.
    #[config(default = 0)]
    pub seed: u64,
}

/// A transformer over tokens whose attention is of any kind: an encoder, or with `causal` a decoder.
///
/// Tokens are embedded, optionally with learned positions and with a map of the token before
/// ([`LocalMixing`]), pass pre-norm blocks of attention and an MLP, and are mapped to classes one by one. With
/// [`TreeFine`](AttentionKindConfig::TreeFine) in all layers this is the Treeformer of
/// [Madaan et al.](https://arxiv.org/abs/2208.09015); with dense attention it is the transformer that one
/// starts from.
///
/// How this differs from the paper: normalisation comes before attention and MLPs and is by the root mean
/// square, and positions and local mixing are choices.
#[derive(Module, Debug)]
pub struct Treeformer {
    embedding: Embedding,
    positions: Option<Embedding>,
    mixing: Option<LocalMixing>,
    dropout: Dropout,
    /// The transformer blocks, the one over the tokens first.
    pub blocks: Vec<TransformerBlock>,
    norm: RmsNorm,
    head: Linear,
    #[module(skip)]
    causal: bool,
}

/// What [`Treeformer::forward`] takes beside tokens.
#[derive(Clone, Debug, Default)]
pub struct TreeformerOptions {
    /// Another gradient of routes than the layers have, as annealing takes.
    pub surrogate: Option<Surrogate>,
    /// Seed of what attention draws in this call (dropout within leaves, rows whose routes are aligned), other
    /// numbers in every layer.
    pub seed: Option<u64>,
}

/// What [`Treeformer::forward`] returns.
#[derive(Clone, Debug)]
pub struct TreeformerOutput {
    /// Unnormalised log-probabilities of classes, `[batch, tokens, classes]`.
    pub logits: Tensor<3>,
    /// Where tokens went in each layer, and the losses that train its trees; `None` for layers that do not
    /// route.
    pub routing: Vec<Option<RoutingReport>>,
}

impl TreeformerConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([
            ("vocabulary", self.vocabulary),
            ("classes", self.classes),
            ("layers", self.layers),
        ])?;
        let holds = self.dense_layers <= self.layers;
        let expected = format!("at most {}", self.layers);
        ConfigError::unless(holds, "dense_layers", &expected, self.dense_layers)?;
        if self.causal {
            check_causal(&self.attention)?;
        }
        // Of the highest layer, which no setting makes dense but `attention` itself.
        self.block(self.layers).check()
    }

    /// Initialises the model on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> Treeformer {
        ConfigError::expect_ok("treeformer", self.check());
        let table = |rows| EmbeddingConfig::new(rows, self.d_model).init(device);
        let model = Treeformer {
            embedding: table(self.vocabulary),
            positions: (self.max_positions > 0).then(|| table(self.max_positions)),
            mixing: self
                .local_mixing
                .then(|| LocalMixing::new(self.d_model, device)),
            dropout: DropoutConfig::new(self.dropout).init(),
            blocks: (0..self.layers)
                .map(|layer| self.block(layer).init(device))
                .collect(),
            norm: RmsNormConfig::new(self.d_model).init(device),
            head: LinearConfig::new(self.d_model, self.classes).init(device),
            causal: self.causal,
        };
        seeded(model, self.seed, Initialization::Unit)
    }

    fn block(&self, layer: usize) -> TransformerBlockConfig {
        TransformerBlockConfig::new(self.d_model, self.n_heads, self.d_ff)
            .with_n_kv_heads(self.n_kv_heads)
            .with_dropout(self.dropout)
            .with_attention(self.kind(layer))
    }

    /// How the tokens attend in a layer.
    pub fn kind(&self, layer: usize) -> AttentionKindConfig {
        if layer < self.dense_layers {
            AttentionKindConfig::Dense
        } else {
            self.attention.for_layer(layer)
        }
    }
}

impl Treeformer {
    /// Another kind of attention in some layers, freshly initialised. All other weights, and so the
    /// optimiser's state for them, stay: how a dense model becomes a Treeformer.
    ///
    /// Trees and random features depend on the seeds in `kind` and the layer. Other weights that a kind brings
    /// (Linformer's projections) are drawn from the seed given.
    ///
    /// # Panics
    /// If a layer is not there.
    #[must_use]
    #[track_caller]
    pub fn with_attention(
        mut self,
        kind: &AttentionKindConfig,
        layers: Range<usize>,
        seed: u64,
    ) -> Self {
        let count = self.blocks.len();
        assert!(
            layers.end <= count,
            "treeformer: layers: expected below {count}, got {layers:?}"
        );
        let device = self.head.weight.val().device();
        for (layer, block) in self.blocks.iter_mut().enumerate() {
            if layers.contains(&layer) {
                let attention = block.attention.clone();
                let mut attention = attention.with_kind(&kind.for_layer(layer), &device);
                let seed = spread(seed, layer as u64);
                attention.kind = seeded(attention.kind, seed, Initialization::Unit);
                block.attention = attention;
            }
        }
        self
    }

    /// The same with trees that split evenly: layer by layer, half of the queries and keys that some sequences
    /// make there go to either side of every binary node
    /// ([`RoutingTree::with_median_split`](arbora_tree::RoutingTree::with_median_split)).
    ///
    /// - tokens: `[batch, tokens]`, no padding among them
    /// - layers: whose trees, counted from 0; layers without trees are passed over
    ///
    /// The sequences pass as in an evaluation, also on an autodiff device: without dropout, and no other bias
    /// moves.
    ///
    /// # Panics
    /// If a layer is not there, or there are more tokens than positions.
    #[must_use]
    #[track_caller]
    pub fn with_median_split(mut self, tokens: Tensor<2, Int>, layers: &[usize]) -> Self {
        let Some(last) = layers.iter().copied().max() else {
            return self;
        };
        let count = self.blocks.len();
        assert!(
            last < count,
            "treeformer: layers: expected below {count}, got {last}"
        );
        let plain = self.valid();
        let mut hidden = plain.embed(tokens.without_autodiff(), None);
        for layer in 0..=last {
            if layers.contains(&layer) {
                let block = self.blocks[layer].clone();
                self.blocks[layer] = block.with_median_split(hidden.clone());
            }
            if layer < last {
                // What comes next sees what these trees make of the tokens.
                let block = self.blocks[layer].valid();
                hidden = block.forward(plain.input(hidden, None)).0;
            }
        }
        self
    }

    /// The ids of the parameters of the trees that route tokens, layer by layer. An optimiser should not decay
    /// them.
    pub fn tree_parameter_ids(&self) -> Vec<ParamId> {
        self.blocks
            .iter()
            .flat_map(|block| block.attention.tree_parameter_ids())
            .collect()
    }

    /// Predicts classes at every token.
    ///
    /// # Shapes
    /// - tokens: `[batch, tokens]`, each below the vocabulary
    /// - padding: `[batch, tokens]`, `true` = masked out; what is predicted there means nothing
    /// - logits: `[batch, tokens, classes]`
    ///
    /// # Panics
    /// If there is no sequence or no token, the axes of `padding` disagree with those of `tokens`, there are more tokens than
    /// positions, or the kind of attention does not take a mask that is there.
    #[track_caller]
    pub fn forward(
        &self,
        tokens: Tensor<2, Int>,
        padding: Option<Tensor<2, Bool>>,
        options: &TreeformerOptions,
    ) -> TreeformerOutput {
        let mut hidden = self.embed(tokens, padding.as_ref());
        let mut routing = Vec::with_capacity(self.blocks.len());
        for (layer, block) in self.blocks.iter().enumerate() {
            let mut input = self.input(hidden, padding.clone());
            input.surrogate = options.surrogate;
            input.seed = options.seed.map(|seed| spread(seed, layer as u64));
            let (next, attended) = block.forward(input);
            hidden = next;
            routing.push(attended.routing);
        }
        TreeformerOutput {
            logits: self.head.forward(self.norm.forward(hidden)),
            routing,
        }
    }

    fn input(&self, tokens: Tensor<3>, padding: Option<Tensor<2, Bool>>) -> SelfAttentionInput {
        let mut input = SelfAttentionInput::new(tokens);
        input.masks.padding = padding;
        input.masks.causal = self.causal;
        input
    }

    /// `[batch, tokens]` -> `[batch, tokens, d_model]`. Padding is 0 there, so that nothing of it is mixed
    /// into tokens.
    #[track_caller]
    fn embed(&self, tokens: Tensor<2, Int>, padding: Option<&Tensor<2, Bool>>) -> Tensor<3> {
        let [batch, count] = tokens.dims();
        expect_some("treeformer: axis 0 of tokens", batch);
        expect_some("treeformer: axis 1 of tokens", count);
        let device = tokens.device();
        let mut hidden = self.embedding.forward(tokens);
        if let Some(positions) = &self.positions {
            let most = positions.weight.dims()[0];
            assert!(
                count <= most,
                "treeformer: axis 1 of tokens: expected at most {most} positions, got {count}"
            );
            let places = Tensor::<1, Int>::arange(0..count as i64, &device).reshape([1, count]);
            hidden = hidden + positions.forward(places);
        }
        if let Some(padding) = padding {
            assert_shape!(*padding, [batch, count]);
            let width = hidden.dims()[2];
            let padding = padding.clone().reshape([batch, count, 1]);
            hidden = hidden.mask_fill(padding.expand([batch, count, width]), 0.0);
        }
        if let Some(mixing) = &self.mixing {
            hidden = mixing.forward(hidden);
        }
        self.dropout.forward(hidden)
    }
}
