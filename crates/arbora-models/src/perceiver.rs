//! Perceiver IO, the model of as many latents as ReTreever retrieves tokens.

use crate::init::{seeded, truncated_normal};
use crate::parts::{Block, Context, Decoder, Encoder, ModelConfig};
use crate::prediction::Prediction;
use arbora_attention::{PreNormAttention, PreNormAttentionConfig};
use arbora_tree::{ConfigError, Layout, TokenTreeShape};
use burn::config::Config;
use burn::module::{Module, Param};
use burn::tensor::{Device, Tensor};

/// Standard deviation of latents before training (arXiv 2103.03206, whose latents these are).
const LATENT_DEVIATION: f32 = 0.02;

/// Configuration of [`PerceiverIo`].
#[derive(Config, Debug)]
pub struct PerceiverIoConfig {
    /// What it shares with ReTreever. `encoder_layers` counts blocks of self-attention among latents.
    pub model: ModelConfig,
    /// Number of latents, at least 1; [`latents_for`] gives as many as ReTreever retrieves.
    pub latents: usize,
    /// Seed of the weights: one seed gives the same weights on every backend.
    #[config(default = 0)]
    pub seed: u64,
}

/// Perceiver IO (Jaegle et al. 2021, arXiv 2107.14795, §3.1): latents read the context once, and
/// queries read the latents.
///
/// Context → embed → cross attention from learned latents → self-attention among latents → cross
/// attention from queries → decode. A context of any length becomes a fixed number of vectors before
/// any query is known; ReTreever keeps all tokens and lets each query choose as many.
///
/// Embeddings, blocks, attention and decoder are ReTreever's, so that a comparison differs in the
/// bottleneck alone. Where they depart from the paper's own blocks: residuals are around the
/// *normalised* rows, the rows attended to are not normalised, feed-forward layers are gated, and
/// attention from queries has a residual. It has ReTreever's number of parameters and
/// `latents · d_model` more: the block that reads stands where ReTreever has its aggregator.
#[derive(Module, Debug)]
pub struct PerceiverIo {
    encoder: Encoder,
    latents: Param<Tensor<2>>, // [latents, d_model]
    read: Block,
    attention: PreNormAttention,
    decoder: Decoder,
}

impl PerceiverIoConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// If there is no latent, or as [`ModelConfig::check`] of `model`.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::unless_at_least_1([("latents", self.latents)])?;
        ConfigError::in_section("model", self.model.check())
    }

    /// Initialises the model on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> PerceiverIo {
        ConfigError::expect_ok("perceiver_io", self.check());
        let model = &self.model;
        let shape = [self.latents, model.d_model];
        let latents = truncated_normal(shape, LATENT_DEVIATION, self.seed, "latents");
        let perceiver = PerceiverIo {
            encoder: Encoder::new(model, device),
            latents: Param::from_data(latents, device),
            read: Block::new(model, device),
            attention: PreNormAttentionConfig::new(model.d_model, model.n_heads).init(device),
            decoder: Decoder::new(model, device),
        };
        seeded(perceiver, self.seed, model.initialization)
    }
}

/// An encoded context: all that queries need, and as large for every context.
#[derive(Clone, Debug)]
pub struct EncodedLatents {
    latents: Tensor<3>,
}

impl EncodedLatents {
    /// What became of each latent, `[batch, latents, d_model]`.
    pub fn latents(&self) -> Tensor<3> {
        self.latents.clone()
    }
}

impl PerceiverIo {
    /// Number of latents: what a query attends to.
    pub fn latents(&self) -> usize {
        self.latents.shape().dims::<2>()[0]
    }

    /// Encodes a context. Masked tokens have no effect; without any other, latents are what they
    /// would be after reading nothing.
    #[track_caller]
    pub fn encode(&self, context: &Context) -> EncodedLatents {
        let tokens = self.encoder.embed_context(context);
        let [batch, _, d_model] = tokens.dims();
        let latents = self.latents.val();
        let count = latents.dims()[0];
        let latents = latents
            .unsqueeze_dim::<3>(0)
            .expand([batch, count, d_model]);
        let latents = self.read.attend(latents, tokens, context.mask.clone());
        EncodedLatents {
            latents: self.encoder.transform(latents, None),
        }
    }

    /// Answers queries from all latents.
    ///
    /// - queries: `[batch, queries, d_query]`
    #[track_caller]
    pub fn predict(&self, queries: Tensor<3>, context: &EncodedLatents) -> Prediction {
        let queries = self.encoder.embed_queries(queries);
        self.decoder
            .decode(self.attention.attend(queries, context.latents(), None))
    }
}

/// As many latents as ReTreever retrieves of `tokens` tokens: the most nodes that one query selects,
/// `k (b - 1) + P` for `k` decisions in a tree of branching factor `b` with `P` leaves in the last group
/// (arXiv 2309.17388, §3.2).
///
/// Where the left-filled layout leaves groups near the root short, which happens for `b > 2` alone,
/// only nodes that exist count. The published layout counts its ghosts. A single token is selected
/// itself.
///
/// # Panics
/// If `tokens` is 0 or `branching` is below 2.
#[track_caller]
pub fn latents_for(tokens: usize, branching: usize, layout: Layout) -> usize {
    let shape = TokenTreeShape::new(tokens, branching, layout);
    // The way down the left edge: no group of the same height is larger than the leftmost.
    let read: usize = (1..=shape.height())
        .map(|height| shape.children(height, 0).len())
        .sum();
    read.max(1) - shape.decisions()
}
