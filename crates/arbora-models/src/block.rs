//! The pre-norm transformer block that the Treeformer and the TreeCoder are made of.

use arbora_attention::{
    AttentionCache, AttentionKind, AttentionKindConfig, SelfAttention, SelfAttentionConfig,
    SelfAttentionInput, SelfAttentionOutput,
};
use arbora_tree::ConfigError;
use burn::config::Config;
use burn::module::Module;
use burn::nn::transformer::{PositionWiseFeedForward, PositionWiseFeedForwardConfig};
use burn::nn::{Dropout, DropoutConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};

/// A pre-norm transformer block: `x + attention(norm(x))`, then `x + MLP(norm(x))`.
#[derive(Module, Debug)]
pub struct TransformerBlock {
    attention_norm: RmsNorm,
    /// Attention among the tokens.
    pub attention: SelfAttention,
    feed_forward_norm: RmsNorm,
    feed_forward: PositionWiseFeedForward,
    dropout: Dropout,
}

/// Configuration of [`TransformerBlock`].
#[derive(Config, Debug)]
pub struct TransformerBlockConfig {
    /// Width of tokens.
    pub d_model: usize,
    /// Query heads; must divide `d_model`.
    pub n_heads: usize,
    /// Width inside the MLP.
    pub d_ff: usize,
    /// Key and value heads, which must divide `n_heads`; `None` means as many.
    #[config(default = "None")]
    pub n_kv_heads: Option<usize>,
    /// Dropout in the MLP, and after attention and MLP.
    #[config(default = 0.0)]
    pub dropout: f64,
    /// How tokens attend.
    #[config(default = "AttentionKindConfig::Dense")]
    pub attention: AttentionKindConfig,
}

impl TransformerBlockConfig {
    /// Checks that every setting is in its range and goes with the others.
    ///
    /// # Errors
    /// With the first setting that is not.
    pub fn check(&self) -> Result<(), ConfigError> {
        let heads = SelfAttentionConfig::new(self.d_model, self.n_heads);
        heads.with_n_kv_heads(self.n_kv_heads).check()?;
        ConfigError::unless_at_least_1([("d_ff", self.d_ff)])?;
        ConfigError::unless_dropout(self.dropout)?;
        let kv_heads = self.n_kv_heads.unwrap_or(self.n_heads);
        ConfigError::in_section("attention", self.attention.check(self.n_heads, kv_heads))
    }

    /// Initialises the block on a device, with burn's weights: models draw their own over them.
    ///
    /// # Panics
    /// With a setting that [`check`](Self::check) refuses.
    #[track_caller]
    pub fn init(&self, device: &Device) -> TransformerBlock {
        ConfigError::expect_ok("transformer_block", self.check());
        let norm = || RmsNormConfig::new(self.d_model).init(device);
        TransformerBlock {
            attention_norm: norm(),
            attention: SelfAttentionConfig::new(self.d_model, self.n_heads)
                .with_n_kv_heads(self.n_kv_heads)
                .with_kind(self.attention.clone())
                .init(device),
            feed_forward_norm: norm(),
            feed_forward: PositionWiseFeedForwardConfig::new(self.d_model, self.d_ff)
                .with_dropout(self.dropout)
                .init(device),
            dropout: DropoutConfig::new(self.dropout).init(),
        }
    }
}

/// Refuses a kind of attention that supports no causal mask.
pub(crate) fn check_causal(attention: &AttentionKindConfig) -> Result<(), ConfigError> {
    let kind = match attention {
        AttentionKindConfig::Linformer(_) => "linformer",
        AttentionKindConfig::BigBird(_) => "big-bird",
        _ => return Ok(()),
    };
    Err(ConfigError::new(
        "attention",
        "a kind that supports causal masks",
        kind,
    ))
}

impl TransformerBlock {
    /// The same with trees that split these tokens, `[batch, tokens, d_model]` off the autodiff device,
    /// evenly.
    #[track_caller]
    pub(crate) fn with_median_split(mut self, tokens: Tensor<3>) -> Self {
        let plain = self.valid();
        let tokens = plain.attention_norm.forward(tokens);
        let query = plain.attention.query.forward(tokens.clone());
        let key = plain.attention.key.forward(tokens);
        let router = match &mut self.attention.kind {
            AttentionKind::TreeFine(tree) => &mut tree.router,
            AttentionKind::TreeCoarse(tree) => &mut tree.router,
            _ => return self,
        };
        let (trees, dim) = (router.query.trees(), router.query.dim());
        let queries = rows(query, trees, dim);
        match router.key.take() {
            None => {
                let keys = rows(key, trees, dim);
                let both = Tensor::cat(vec![queries, keys], 1);
                router.query = router.query.clone().with_median_split(both);
            }
            Some(tree) => {
                let keys = rows(key, trees, tree.dim());
                router.query = router.query.clone().with_median_split(queries);
                router.key = Some(tree.with_median_split(keys));
            }
        }
        self
    }

    /// The tokens after this block, and all that attention found.
    ///
    /// - input: tokens `[batch, tokens, d_model]`, and what attention is asked beside them: masks, surrogate, seed.
    ///   A context is attended to as it is, not normalised.
    ///
    /// # Panics
    /// As [`SelfAttention::forward`].
    #[track_caller]
    pub fn forward(&self, input: SelfAttentionInput) -> (Tensor<3>, SelfAttentionOutput) {
        let tokens = input.tokens.clone();
        let attended = self.attention.forward(SelfAttentionInput {
            tokens: self.attention_norm.forward(tokens.clone()),
            ..input
        });
        let tokens = tokens + self.dropout.forward(attended.context.clone());
        let mapped = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(tokens.clone()));
        (tokens + self.dropout.forward(mapped), attended)
    }

    /// The next tokens after this block, which attend to themselves and those in the cache, causally: any split of a
    /// sequence into calls gives what one causal [`forward`](Self::forward) without dropout gives.
    ///
    /// - tokens: `[batch, new tokens, d_model]`, none of them padding
    ///
    /// # Panics
    /// As [`SelfAttention::forward_cached`].
    #[track_caller]
    pub fn forward_cached(&self, tokens: Tensor<3>, cache: &mut AttentionCache) -> Tensor<3> {
        let attended = self
            .attention
            .forward_cached(self.attention_norm.forward(tokens.clone()), cache);
        let tokens = tokens + attended.context;
        let mapped = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(tokens.clone()));
        tokens + mapped
    }
}

/// What trees read of projected tokens, `[batch, tokens, width]` -> `[batch, tokens · group, trees, dim]`: heads
/// that share a tree are rows of their own.
fn rows(projected: Tensor<3>, trees: usize, dim: usize) -> Tensor<4> {
    let [batch, tokens, width] = projected.dims();
    let group = width / (trees * dim);
    projected
        .reshape([batch, tokens, trees, group, dim])
        .swap_dims(2, 3) // [batch, tokens, group, trees, dim]
        .reshape([batch, tokens * group, trees, dim])
}
