//! The dense model that ReTreever is compared with: "Transformer + Cross Attention" in the paper.

use crate::init::seeded;
use crate::parts::{Context, Decoder, Encoder, ModelConfig};
use crate::prediction::Prediction;
use arbora_attention::{PreNormAttention, PreNormAttentionConfig};
use arbora_tree::ConfigError;
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Bool, Device, Tensor};

/// Configuration of [`CrossAttentionModel`].
#[derive(Config, Debug)]
pub struct CrossAttentionConfig {
    /// What it shares with ReTreever.
    pub model: ModelConfig,
    /// Seed of the weights: one seed gives the same weights on every backend.
    #[config(default = 0)]
    pub seed: u64,
}

/// A transformer encoder with one dense cross attention from queries to all tokens.
///
/// It has ReTreever's encoder, attention and decoder and no aggregator. Following the published
/// baseline, the residual around its attention is the normalised query alone.
#[derive(Module, Debug)]
pub struct CrossAttentionModel {
    encoder: Encoder,
    attention: PreNormAttention,
    decoder: Decoder,
}

impl CrossAttentionConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// As [`ModelConfig::check`] of `model`.
    pub fn check(&self) -> Result<(), ConfigError> {
        ConfigError::in_section("model", self.model.check())
    }

    /// Initialises the model on a device.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> CrossAttentionModel {
        ConfigError::expect_ok("cross_attention", self.check());
        let model = &self.model;
        let dense = CrossAttentionModel {
            encoder: Encoder::new(model, device),
            attention: PreNormAttentionConfig::new(model.d_model, model.n_heads).init(device),
            decoder: Decoder::new(model, device),
        };
        seeded(dense, self.seed, model.initialization)
    }
}

/// An encoded context: all that queries need.
#[derive(Clone, Debug)]
pub struct EncodedContext {
    tokens: Tensor<3>,
    mask: Option<Tensor<2, Bool>>,
}

impl CrossAttentionModel {
    /// Encodes a context.
    ///
    /// # Panics
    /// As [`Encoder::encode`].
    pub fn encode(&self, context: &Context) -> EncodedContext {
        EncodedContext {
            tokens: self.encoder.encode(context),
            mask: context.mask.clone(),
        }
    }

    /// Answers queries from all tokens.
    ///
    /// - queries: `[batch, queries, d_query]`
    #[track_caller]
    pub fn predict(&self, queries: Tensor<3>, context: &EncodedContext) -> Prediction {
        let queries = self.encoder.embed_queries(queries);
        let EncodedContext { tokens, mask } = context.clone();
        self.decoder
            .decode(self.attention.attend(queries, tokens, mask))
    }
}
