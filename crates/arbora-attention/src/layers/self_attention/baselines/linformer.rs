//! Linformer: attention to learned mixtures of the keys.

use super::super::kind::{HeadSizes, Projected};
use crate::functions::masked_attention::{dense_by_group, without_padding};
use burn::config::Config;
use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

/// Settings of Linformer ([arXiv 2006.04768](https://arxiv.org/abs/2006.04768)): every query attends to `rank`
/// learned mixtures of keys instead of to the keys.
///
/// Supports padding masks. Panics on causal masks and masks of pairs: a mixture has no position.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct LinformerConfig {
    /// Most keys; a shorter input uses the weights of the first ones.
    pub max_tokens: usize,
    /// Number of mixtures, the paper's `k`.
    pub rank: usize,
    /// Whether every key and value head has projections of its own. The default, one for all heads of the
    /// layer, is the paper's "headwise sharing" (section 4).
    pub per_head: bool,
    /// Whether keys and values are mixed by the same weights ("key-value sharing").
    pub share_key_value: bool,
}

impl Config for LinformerConfig {}

impl Default for LinformerConfig {
    fn default() -> Self {
        Self {
            max_tokens: 512,
            rank: 128,
            per_head: false,
            share_key_value: false,
        }
    }
}

/// Softmax attention to learned mixtures of the keys (arXiv 2006.04768, equation 7):
/// `softmax(Q (E K)ᵀ / √head_dim) F V`.
///
/// A key over padding is zeroed before it is mixed, so that padding changes nothing. Linear in the number of
/// tokens, in time and in memory.
#[derive(Module, Debug)]
pub struct Linformer {
    /// `E`, `[max_tokens, rank]`: one for all heads, or one per key and value head.
    pub key: Vec<Linear>,
    /// `F`, as `E`; none where `E` mixes the values too.
    pub value: Vec<Linear>,
    #[module(skip)]
    max_tokens: usize,
}

impl LinformerConfig {
    /// Initialises as burn's linear layers do. A model that seeds its linear layers seeds these with them.
    pub(in super::super) fn init(&self, sizes: HeadSizes, device: &Device) -> Linformer {
        let projections = || {
            let count = if self.per_head { sizes.kv_heads } else { 1 };
            let linear = LinearConfig::new(self.max_tokens, self.rank).with_bias(false);
            (0..count).map(|_| linear.init(device)).collect()
        };
        Linformer {
            key: projections(),
            value: if self.share_key_value {
                Vec::new()
            } else {
                projections()
            },
            max_tokens: self.max_tokens,
        }
    }
}

impl Linformer {
    /// Number of mixtures of keys.
    pub fn rank(&self) -> usize {
        self.key[0].weight.dims()[1]
    }

    #[track_caller]
    pub(in super::super) fn attend(&self, input: Projected) -> Tensor<4> {
        input.masks.only("linformer", false);
        let keys = input.key.dims()[1];
        assert!(
            keys <= self.max_tokens,
            "linformer: keys: expected at most max_tokens = {}, got {keys}",
            self.max_tokens
        );
        let padding = input.masks.padding;
        let values = if self.value.is_empty() {
            &self.key
        } else {
            &self.value
        };
        let key = mixtures(&self.key, without_padding(input.key, padding.clone()));
        let value = mixtures(values, without_padding(input.value, padding));
        dense_by_group(input.query, key, value, None)
    }
}

/// `[batch, keys, heads, width]` -> `[batch, rank, heads, width]`
fn mixtures(projections: &[Linear], rows: Tensor<4>) -> Tensor<4> {
    let [batch, keys, heads, width] = rows.dims();
    // Heads with the same weights stand side by side, as columns of one product.
    let (count, columns) = (projections.len(), heads * width / projections.len());
    let weights: Vec<Tensor<2>> = projections
        .iter()
        .map(|projection| projection.weight.val().narrow(0, 0, keys))
        .collect();
    let weights: Tensor<3> = Tensor::stack(weights, 0); // [count, keys, rank]
    let rank = weights.dims()[2];
    let rows = rows.reshape([batch, keys, count, columns]).swap_dims(1, 2); // [batch, count, keys, columns]
    weights
        .swap_dims(1, 2)
        .reshape([1, count, rank, keys])
        .matmul(rows)
        .swap_dims(1, 2)
        .reshape([batch, rank, heads, width])
}
