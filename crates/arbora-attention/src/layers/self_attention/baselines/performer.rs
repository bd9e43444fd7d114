//! Performer: linear attention by positive random features.

use super::super::kind::{CachedRows, HeadSizes, Projected};
use crate::functions::masked_attention::{fill_hidden, with_ones};
use crate::functions::prefix_attention;
use arbora_tree::tensors::at_least_single;
use burn::config::Config;
use burn::module::{Module, RunningState};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use derive_setters::Setters;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, StandardNormal};
use serde::{Deserialize, Serialize};

/// Greatest exponent of a key's feature in causal attention. Only a key nearly equal to a long direction would
/// have a greater one.
const GREATEST_EXPONENT: f64 = 20.0;

/// Least sum of weights that a constant divides by, and the least share of it. A query whose weights sum to less
/// than their product gets less than the mean of values. Smaller ones would let gradients overflow.
const LEAST_SIZE: f64 = 1e-14;
const LEAST_SHARE: f64 = 1e-8;

/// What an exponent over padding is set to before the greatest is taken.
const MASKED: f64 = -1e30;

/// Settings of Performer ([arXiv 2009.14794](https://arxiv.org/abs/2009.14794)): softmax attention estimated
/// from random features (FAVOR+).
///
/// Supports padding and causal masks. Panics on masks of pairs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct PerformerConfig {
    /// Number of random features, the paper's `m`. The error of the estimate falls with its square root.
    pub features: usize,
    /// Whether the directions of features are orthogonal in groups of `head_dim`, which lowers the variance
    /// (section 2.4), or independent.
    pub orthogonal: bool,
    /// What the directions are drawn from, with `layer`.
    pub seed: u64,
    /// Which layer of a model this is: layers with different numbers draw different directions.
    pub layer: u64,
}

impl Config for PerformerConfig {}

impl Default for PerformerConfig {
    fn default() -> Self {
        Self {
            features: 256,
            orthogonal: true,
            seed: 0,
            layer: 0,
        }
    }
}

/// Attention with positive random features (arXiv 2009.14794, lemma 1 and section 2.3).
///
/// With directions `w ~ N(0, I)` and `x' = x / head_dim^¼`, the features `φ(x) = exp(w · x' - |x'|² / 2)` have
/// `E φ(q) · φ(k) = exp(q · k / √head_dim)`, so `Σ_j φ(q) · φ(k_j) v_j / Σ_j φ(q) · φ(k_j)` estimates softmax attention.
/// The sums over keys are formed once, so time and memory are linear in the number of tokens.
///
/// # Numerical behaviour
/// All in single precision at least. Exponents are shifted by the greatest of a query's features, and by the
/// greatest of all keys' features of a head; both shifts cancel. In causal attention the exponents of keys are not
/// shifted, since that would leak: a key of a norm over about `10 · head_dim^¼` then loses its weight. A query that
/// sees no key gets 0.
#[derive(Module, Debug)]
pub struct Performer {
    /// `[head_dim, features]`: drawn once, saved, not trained.
    pub directions: RunningState<Tensor<2>>,
}

impl PerformerConfig {
    /// Draws the directions on the host.
    pub(in super::super) fn init(&self, sizes: HeadSizes, device: &Device) -> Performer {
        let rows = self.draw(sizes.head_dim); // [features, head_dim]
        let rows = TensorData::new(rows, [self.features, sizes.head_dim]);
        let directions = Tensor::<2>::from_data(rows, device).transpose();
        Performer {
            directions: RunningState::new(directions),
        }
    }

    /// `[features, dim]`, row-major. Every row is distributed as `N(0, I)`.
    fn draw(&self, dim: usize) -> Vec<f32> {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(self.layer);
        let mut gaussian =
            || -> Vec<f64> { (0..dim).map(|_| StandardNormal.sample(&mut rng)).collect() };
        let mut directions: Vec<f32> = Vec::with_capacity(self.features * dim);
        // Orthogonal unit vectors of the group that is being filled.
        let mut group: Vec<Vec<f64>> = Vec::with_capacity(dim);
        while directions.len() < self.features * dim {
            let mut row = gaussian();
            if self.orthogonal {
                if group.len() == dim {
                    group.clear();
                }
                // Twice, since one pass of Gram-Schmidt leaves rounding along nearly parallel vectors.
                for _ in 0..2 {
                    for unit in &group {
                        let along = dot(&row, unit);
                        row.iter_mut().zip(unit).for_each(|(x, u)| *x -= along * u);
                    }
                }
                let size = norm(&row);
                row.iter_mut().for_each(|x| *x /= size);
                group.push(row.clone());
                // The length of a Gaussian vector, independent of its direction.
                let length = norm(&gaussian());
                row.iter_mut().for_each(|x| *x *= length);
            }
            directions.extend(row.iter().map(|x| *x as f32));
        }
        directions
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

impl Performer {
    /// Number of random features.
    pub fn features(&self) -> usize {
        self.directions.value().dims()[1]
    }

    #[track_caller]
    pub(in super::super) fn attend(&self, input: Projected) -> Tensor<4> {
        input.masks.only("performer", true);
        let (dtype, masks) = (input.query.dtype(), input.masks);
        let query = self.query_features(at_least_single(input.query));
        let key = self.key_features(at_least_single(input.key), masks.padding, masks.causal);
        let value = with_ones(at_least_single(input.value));
        let sums = if masks.causal {
            prefix_attention(query, key, value)
        } else {
            read(query, state(key, value))
        };
        quotient(sums).cast(dtype)
    }

    /// Causal attention of the next tokens to those of the cache and to themselves. The cache sums over the keys so
    /// far, `[batch, kv_heads, features, head_dim + 1]`.
    pub(in super::super) fn attend_cached(
        &self,
        rows: CachedRows,
        cache: &mut Option<Tensor<4>>,
    ) -> Tensor<4> {
        let dtype = rows.query.dtype();
        let query = self.query_features(at_least_single(rows.query));
        let key = self.key_features(at_least_single(rows.key), None, true);
        let value = with_ones(at_least_single(rows.value));
        let own = state(key.clone(), value.clone());
        let within = prefix_attention(query.clone(), key, value);
        let (sums, total) = match cache.take() {
            None => (within, own),
            Some(before) => (within + read(query, before.clone()), before + own),
        };
        *cache = Some(total);
        quotient(sums).cast(dtype)
    }

    /// `[batch, queries, heads, features]`, the greatest of a query 1.
    fn query_features(&self, query: Tensor<4>) -> Tensor<4> {
        let exponents = self.exponents(query);
        let greatest = exponents.clone().detach().max_dim(3);
        (exponents - greatest).exp()
    }

    /// Logarithms of features, `[batch, rows, heads, head_dim]` -> `[batch, rows, heads, features]`.
    fn exponents(&self, rows: Tensor<4>) -> Tensor<4> {
        let [batch, count, heads, head_dim] = rows.dims();
        let rows = rows * (head_dim as f64).powf(-0.25);
        let directions = self.directions.value().cast(rows.dtype());
        let features = directions.dims()[1];
        let along = rows
            .clone()
            .reshape([batch * count * heads, head_dim])
            .matmul(directions)
            .reshape([batch, count, heads, features]);
        let squares = (rows.clone() * rows).sum_dim(3);
        along - squares * 0.5
    }

    /// `[batch, keys, kv_heads, features]`, 0 over padding.
    fn key_features(
        &self,
        key: Tensor<4>,
        padding: Option<Tensor<2, Bool>>,
        causal: bool,
    ) -> Tensor<4> {
        let [batch, keys, kv_heads, _] = key.dims();
        let padding = padding.map(|padding| padding.reshape([batch, keys, 1, 1]));
        let exponents = self.exponents(key);
        let exponents = if causal {
            exponents.clamp_max(GREATEST_EXPONENT)
        } else {
            let seen = fill_hidden(exponents.clone().detach(), &padding, MASKED);
            let greatest = seen.max_dim(3).max_dim(1);
            exponents - greatest.reshape([batch, 1, kv_heads, 1])
        };
        // Before `exp` too, since a key over padding may lie above the greatest one.
        fill_hidden(fill_hidden(exponents, &padding, 0.0).exp(), &padding, 0.0)
    }
}

/// `Σ_j keyⱼᵀ valueⱼ`: `[batch, keys, kv_heads, features]`, `[batch, keys, kv_heads, width]`
/// -> `[batch, kv_heads, features, width]`
fn state(key: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    key.swap_dims(1, 2)
        .swap_dims(2, 3)
        .matmul(value.swap_dims(1, 2))
}

/// `query · state`, `[batch, queries, heads, width]`
fn read(query: Tensor<4>, state: Tensor<4>) -> Tensor<4> {
    let [batch, queries, heads, features] = query.dims();
    let [_, kv_heads, _, width] = state.dims();
    let group = heads / kv_heads;
    query
        .reshape([batch, queries, kv_heads, group, features])
        .swap_dims(1, 2)
        .reshape([batch, kv_heads, queries * group, features])
        .matmul(state)
        .reshape([batch, kv_heads, queries, group, width])
        .swap_dims(1, 2)
        .reshape([batch, queries, heads, width])
}

/// Sums of weighted values over the sums of weights, which are the last column. 0 where these are 0.
fn quotient(sums: Tensor<4>) -> Tensor<4> {
    let width = sums.dims()[3] - 1;
    let values = sums.clone().narrow(3, 0, width);
    let total = sums.narrow(3, width, 1);
    // Divided by its own size first, as a constant: the square of a small total, which the derivative of a
    // quotient holds, would be 0.
    let size = total.clone().detach().clamp_min(LEAST_SIZE);
    let share = (total / size.clone()).clamp_min(LEAST_SHARE);
    values / size / share
}
