//! Attention within leaves on the host, in double precision: by definition, and with relaxed indicators.

use arbora_attention::functions::{TreeFineInput, TreeFineOutput};
use arbora_testing::allowed;
use burn::tensor::{Bool, Int, Tensor};

pub(super) struct Host {
    pub batch: usize,
    pub queries: usize,
    pub keys: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    query: Vec<f64>,
    key: Vec<f64>,
    value: Vec<f64>,
    /// `[batch, queries, heads]`
    pub query_leaf: Vec<i64>,
    /// `[batch, keys, kv_heads]`
    pub key_leaf: Vec<i64>,
    key_mask: Vec<bool>,
    causal: Option<usize>,
}

fn floats(tensor: &Tensor<4>) -> Vec<f64> {
    tensor.clone().into_data().iter::<f64>().collect()
}

/// The leaf of every head.
pub(super) fn leaves(leaf: Tensor<3, Int>, heads: usize) -> Vec<i64> {
    let times = heads / leaf.dims()[2];
    let leaf: Vec<i64> = leaf.into_data().iter::<i64>().collect();
    match times {
        1 => leaf,
        _ => leaf
            .into_iter()
            .flat_map(|leaf| vec![leaf; times])
            .collect(),
    }
}

impl Host {
    pub fn new(input: &TreeFineInput, found: &TreeFineOutput, causal: Option<usize>) -> Self {
        let [batch, queries, heads, head_dim] = input.query.dims();
        let [_, keys, kv_heads, value_dim] = input.value.dims();
        let key_mask = match &input.key_padding {
            None => vec![false; batch * keys],
            Some(mask) => bools(mask),
        };
        Self {
            batch,
            queries,
            keys,
            heads,
            kv_heads,
            head_dim,
            value_dim,
            query: floats(&input.query),
            key: floats(&input.key),
            value: floats(&input.value),
            query_leaf: leaves(found.query.leaves(), heads),
            key_leaf: leaves(found.key.leaves(), kv_heads),
            key_mask,
            causal,
        }
    }

    pub fn kv_head(&self, head: usize) -> usize {
        head / (self.heads / self.kv_heads)
    }

    pub fn query_at(&self, example: usize, query: usize, head: usize) -> usize {
        (example * self.queries + query) * self.heads + head
    }

    pub fn key_at(&self, example: usize, key: usize, head: usize) -> usize {
        (example * self.keys + key) * self.kv_heads + head
    }

    pub fn value_row(&self, example: usize, key: usize, head: usize) -> &[f64] {
        let at = self.key_at(example, key, head) * self.value_dim;
        &self.value[at..at + self.value_dim]
    }

    pub fn is_visible(&self, example: usize, query: usize, key: usize) -> bool {
        !self.key_mask[example * self.keys + key]
            && self.causal.is_none_or(|offset| key <= query + offset)
    }

    /// `exp(q . k / sqrt(head_dim))`
    pub fn weight(&self, example: usize, query: usize, key: usize, head: usize) -> f64 {
        let q = self.query_at(example, query, head) * self.head_dim;
        let k = self.key_at(example, key, self.kv_head(head)) * self.head_dim;
        let dot: f64 = (0..self.head_dim)
            .map(|at| self.query[q + at] * self.key[k + at])
            .sum();
        (dot / (self.head_dim as f64).sqrt()).exp()
    }

    /// The queries, with their position in `[batch, queries, heads]`.
    pub fn each_query(&self) -> impl Iterator<Item = (usize, usize, usize, usize)> {
        let (queries, heads) = (self.queries, self.heads);
        (0..self.batch * queries * heads).map(move |at| {
            let (row, head) = (at / heads, at % heads);
            (row / queries, row % queries, head, at)
        })
    }

    /// Attention to the keys that `share` says to weigh, and the sum of weights; zeros without any.
    pub fn attend(
        &self,
        (example, query, head): (usize, usize, usize),
        share: impl Fn(usize) -> f64,
    ) -> (Vec<f64>, f64) {
        let mut sum = vec![0.0; self.value_dim];
        let mut total = 0.0;
        for key in 0..self.keys {
            if !self.is_visible(example, query, key) {
                continue;
            }
            let weight = share(key) * self.weight(example, query, key, head);
            total += weight;
            let value = self.value_row(example, key, self.kv_head(head));
            sum.iter_mut()
                .zip(value)
                .for_each(|(sum, value)| *sum += weight * value);
        }
        if total != 0.0 {
            sum.iter_mut().for_each(|sum| *sum /= total);
        }
        (sum, total)
    }

    /// Attention of a query within a leaf.
    pub fn within(&self, at: (usize, usize, usize), leaf: i64) -> (Vec<f64>, f64) {
        let head = self.kv_head(at.2);
        self.attend(at, |key| {
            let own = self.key_leaf[self.key_at(at.0, key, head)];
            f64::from(u8::from(own == leaf && leaf >= 0))
        })
    }

    /// `[batch, queries, heads, value_dim]`, zero for queries of empty leaves.
    pub fn context(&self) -> Vec<f64> {
        self.each_query()
            .flat_map(|(example, query, head, at)| {
                self.within((example, query, head), self.query_leaf[at]).0
            })
            .collect()
    }

    /// Of query, key and value, for a given gradient of the context.
    pub fn gradients(&self, delta: &[f32]) -> [Vec<f64>; 3] {
        let mut query = vec![0.0; self.query.len()];
        let mut key = vec![0.0; self.key.len()];
        let mut value = vec![0.0; self.value.len()];
        let scale = (self.head_dim as f64).powf(-0.5);
        for (example, i, head, at) in self.each_query() {
            let leaf = self.query_leaf[at];
            let (context, total) = self.within((example, i, head), leaf);
            if total == 0.0 {
                continue;
            }
            let delta: Vec<f64> = delta[at * self.value_dim..][..self.value_dim]
                .iter()
                .map(|x| f64::from(*x))
                .collect();
            let kv_head = self.kv_head(head);
            for j in 0..self.keys {
                let key_at = self.key_at(example, j, kv_head);
                if self.key_leaf[key_at] != leaf || !self.is_visible(example, i, j) {
                    continue;
                }
                let share = self.weight(example, i, j, head) / total;
                let row = self.value_row(example, j, kv_head);
                let slope: f64 = (0..self.value_dim)
                    .map(|d| delta[d] * (row[d] - context[d]))
                    .sum::<f64>()
                    * share
                    * scale;
                for d in 0..self.head_dim {
                    query[at * self.head_dim + d] += slope * self.key[key_at * self.head_dim + d];
                    key[key_at * self.head_dim + d] += slope * self.query[at * self.head_dim + d];
                }
                for d in 0..self.value_dim {
                    value[key_at * self.value_dim + d] += share * delta[d];
                }
            }
        }
        [query, key, value]
    }
}

fn bools(mask: &Tensor<2, Bool>) -> Vec<bool> {
    mask.clone().into_data().iter::<bool>().collect()
}

#[track_caller]
pub(super) fn assert_near(name: &str, got: &[f32], expected: &[f64]) {
    assert_eq!(got.len(), expected.len(), "{name}: number of elements");
    for (at, (got, expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(*got) - expected).abs();
        assert!(
            error <= f64::from(allowed(3e-5)) * (1.0 + expected.abs()),
            "{name}: element {at}: expected {expected}, got {got}"
        );
    }
}
