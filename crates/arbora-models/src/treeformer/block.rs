use super::TreeformerConfig;
use arbora_attention::{
    AttentionKindConfig, Kind, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
    SelfAttentionOutput,
};
use burn::module::Module;
use burn::nn::transformer::{PositionWiseFeedForward, PositionWiseFeedForwardConfig};
use burn::nn::{Dropout, DropoutConfig, Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::{Device, Tensor};

/// Adds to every token a learned map of the token before it: `x_t + W x_{t-1}`, with zeros before the first.
///
/// A value then knows the key in front of it, so that one layer of attention can look it up.
#[derive(Module, Debug)]
pub struct LocalMixing {
    /// `W`, `[d_model, d_model]`
    pub before: Linear,
}

impl LocalMixing {
    pub(super) fn new(d_model: usize, device: &Device) -> Self {
        Self {
            before: LinearConfig::new(d_model, d_model)
                .with_bias(false)
                .init(device),
        }
    }

    /// `[batch, tokens, d_model]` -> the same
    pub fn forward(&self, tokens: Tensor<3>) -> Tensor<3> {
        let [batch, count, width] = tokens.dims();
        if count <= 1 {
            return tokens;
        }
        let first = Tensor::zeros([batch, 1, width], &tokens.device());
        let before = self.before.forward(tokens.clone().narrow(1, 0, count - 1));
        tokens + Tensor::cat(vec![first, before], 1)
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
                .init(device),
            feed_forward_norm: norm(),
            feed_forward: PositionWiseFeedForwardConfig::new(config.d_model, config.d_ff)
                .with_dropout(config.dropout)
                .init(device),
            dropout: DropoutConfig::new(config.dropout).init(),
        }
    }

    /// The same with trees that split these tokens, `[batch, tokens, d_model]` off the autodiff device,
    /// evenly.
    #[track_caller]
    pub(super) fn with_median_split(mut self, tokens: Tensor<3>) -> Self {
        let plain = self.valid();
        let tokens = plain.attention_norm.forward(tokens);
        let query = plain.attention.query.forward(tokens.clone());
        let key = plain.attention.key.forward(tokens);
        let router = match &mut self.attention.kind {
            Kind::TreeFine(tree) => &mut tree.router,
            Kind::TreeCoarse(tree) => &mut tree.router,
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
    #[track_caller]
    pub(super) fn forward(
        &self,
        tokens: Tensor<3>,
        input: impl FnOnce(Tensor<3>) -> SelfAttentionInput,
    ) -> (Tensor<3>, SelfAttentionOutput) {
        let attended = self
            .attention
            .forward(input(self.attention_norm.forward(tokens.clone())));
        let tokens = tokens + self.dropout.forward(attended.context.clone());
        let mapped = self
            .feed_forward
            .forward(self.feed_forward_norm.forward(tokens.clone()));
        (tokens + self.dropout.forward(mapped), attended)
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

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;

    #[test]
    fn mixing_adds_nothing_where_no_token_is_before() {
        let device = Device::flex();
        let mixing = LocalMixing::new(3, &device);
        let one = Tensor::<3>::ones([2, 1, 3], &device);
        let mixed = mixing.forward(one.clone());
        assert_eq!(mixed.into_data(), one.into_data());
        let none = mixing.forward(Tensor::zeros([2, 0, 3], &device));
        assert_eq!(none.dims(), [2, 0, 3]);
    }
}
