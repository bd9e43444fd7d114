use super::TreeformerConfig;
use arbora_attention::{
    AttentionKindConfig, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
    SelfAttentionOutput,
};
use burn::module::{Module, Param};
use burn::nn::transformer::{PositionWiseFeedForward, PositionWiseFeedForwardConfig};
use burn::nn::{Dropout, DropoutConfig, Initializer, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};

/// Adds to every token a learned share of the token before it, channel by channel: `x_t + w ⊙ x_{t-1}`,
/// with zeros before the first.
///
/// A value then knows the key in front of it, so that one layer of attention can look it up.
#[derive(Module, Debug)]
pub struct LocalMixing {
    /// `w`, `[d_model]`
    pub weight: Param<Tensor<1>>,
}

impl LocalMixing {
    pub(super) fn new(d_model: usize, device: &Device) -> Self {
        Self {
            weight: Initializer::Zeros.init([d_model], device),
        }
    }

    /// `[batch, tokens, d_model]` -> the same
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [batch, count, width] = tokens.dims();
        if count == 1 {
            return tokens;
        }
        let first = Tensor::zeros([batch, 1, width], &tokens.device());
        let before = Tensor::cat(vec![first, tokens.clone().narrow(1, 0, count - 1)], 1);
        tokens + before * self.weight.val().reshape([1, 1, width])
    }
}

/// A pre-norm transformer block: `x + attention(norm(x))`, then `x + MLP(norm(x))`.
#[derive(Module, Debug)]
pub struct TreeformerBlock {
    attention_norm: RmsNorm,
    /// Attention among the tokens.
    pub attention: SelfAttention,
    feed_forward_norm: RmsNorm,
    feed_forward: PositionWiseFeedForward,
    dropout: Dropout,
}

impl TreeformerBlock {
    #[track_caller]
    pub(super) fn new(
        config: &TreeformerConfig,
        kind: AttentionKindConfig,
        device: &Device,
    ) -> Self {
        let norm = || RmsNormConfig::new(config.d_model).init(device);
        Self {
            attention_norm: norm(),
            attention: SelfAttentionConfig::new(config.d_model, config.heads)
                .with_kv_heads(config.kv_heads)
                .with_kind(kind)
                .with_bias(false)
                .init(device),
            feed_forward_norm: norm(),
            feed_forward: PositionWiseFeedForwardConfig::new(config.d_model, config.d_ff)
                .with_dropout(config.dropout)
                .init(device),
            dropout: DropoutConfig::new(config.dropout).init(),
        }
    }

    /// What attention of this block reads of tokens `[batch, tokens, d_model]`.
    pub(super) fn normalized(&self, tokens: Tensor<3>) -> Tensor<3> {
        self.attention_norm.forward(tokens)
    }

    /// The tokens after this block, and all that attention found.
    #[track_caller]
    pub(super) fn forward(
        &self,
        tokens: Tensor<3>,
        input: impl FnOnce(Tensor<3>) -> SelfAttentionInput,
    ) -> (Tensor<3>, SelfAttentionOutput) {
        let attended = self
            .attention
            .forward(input(self.normalized(tokens.clone())));
        let tokens = tokens + self.dropout.forward(attended.context.clone());
        let mapped = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(tokens.clone()));
        (tokens + self.dropout.forward(mapped), attended)
    }
}
