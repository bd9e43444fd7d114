//! Softmax attention of a list of queries to a list of keys, forward and backward: the task of both dense
//! attention and attention within leaves.
//!
//! No array of queries by keys exists. A task goes over tiles of some keys by some queries that stay in
//! the nearest cache; queries are the lanes of its vectors, so that maxima and totals of the softmax need
//! no sums across lanes. The forward pass keeps, per query, the greatest logit so far and everything
//! relative to it; the backward pass computes the weights again from the total that the forward pass
//! returns.
//!
//! See [FlashAttention-2](https://arxiv.org/abs/2307.08691).

mod backward;
mod forward;
mod memory;
mod products;

pub(super) use backward::{Backward, Gradients};
pub(super) use forward::Forward;
pub(super) use memory::{Scratch, Shared, Summed};

use super::simd::{Arithmetic, LANES};
use super::tuning::QUERIES;
use crate::ops::pair_number;

/// Below every logit, and finite, so that the difference of two of them is a number.
const UNSEEN: f32 = -1e30;

/// One attention: what is attended with and to, and the sizes of that.
#[derive(Clone, Copy)]
pub(crate) struct Attention<'a> {
    /// `[batch, queries, heads, head_dim]`
    pub(crate) query: &'a [f32],
    /// `[batch, keys, kv_heads, head_dim]`
    pub(crate) key: &'a [f32],
    /// `[batch, keys, kv_heads, value_dim]`
    pub(crate) value: &'a [f32],
    pub(crate) batch: usize,
    pub(crate) queries: usize,
    pub(crate) keys: usize,
    pub(crate) heads: usize,
    /// Divides `heads`.
    pub(crate) kv_heads: usize,
    pub(crate) head_dim: usize,
    pub(crate) value_dim: usize,
    /// Factor of the dot products.
    pub(crate) scale: f32,
}

impl Attention<'_> {
    /// Pairs of an example and a head of keys.
    pub(super) fn groups(&self) -> usize {
        self.batch * self.kv_heads
    }

    /// Rows of queries, contexts and `lse`.
    pub(super) fn query_rows(&self) -> usize {
        self.batch * self.queries * self.heads
    }

    /// Rows of keys and values.
    pub(super) fn key_rows(&self) -> usize {
        self.batch * self.keys * self.kv_heads
    }

    /// Panics where a slice is not of its shape.
    pub(super) fn check(&self, context: &[f32], lse: &[f32]) {
        assert!(self.heads.is_multiple_of(self.kv_heads));
        assert_eq!(self.query.len(), self.query_rows() * self.head_dim);
        assert_eq!(self.key.len(), self.key_rows() * self.head_dim);
        assert_eq!(self.value.len(), self.key_rows() * self.value_dim);
        assert_eq!(context.len(), self.query_rows() * self.value_dim);
        assert_eq!(lse.len(), self.query_rows());
    }

    /// [`check`](Self::check) of a backward pass, with gradients of query, key and value.
    pub(super) fn check_backward(&self, outputs: &AttentionOutputs, gradients: [&[f32]; 3]) {
        self.check(outputs.context, outputs.lse);
        assert_eq!(outputs.grad.len(), outputs.context.len());
        for (gradient, input) in gradients.iter().zip([self.query, self.key, self.value]) {
            assert_eq!(gradient.len(), input.len());
        }
    }
}

/// What the forward pass returned, and the gradient of its context.
#[derive(Clone, Copy)]
pub(crate) struct AttentionOutputs<'a> {
    /// `[batch, queries, heads, value_dim]`
    pub(crate) context: &'a [f32],
    /// `[batch, queries, heads]`
    pub(crate) lse: &'a [f32],
    /// As context.
    pub(crate) grad: &'a [f32],
}

/// Lanes for the queries that a task holds at once, of calls whose tasks have at most so many.
fn room(most_queries: usize) -> usize {
    most_queries.min(QUERIES).next_multiple_of(2 * LANES)
}

/// What is particular to a query.
#[derive(Clone, Copy, Debug)]
pub(super) struct QueryPlace {
    /// The last key that it may see.
    pub(super) position: u32,
    /// What its pairs share of the hash that decides on dropout.
    pub(super) state: u32,
}

/// What is particular to a key.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeyPlace {
    pub(super) position: u32,
    /// Added to its logits.
    pub(super) bias: f32,
}

/// Dropout of pairs, ready to be computed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dropping {
    /// Numbers below it are dropped.
    pub(super) threshold: u32,
    /// Factor of those that stay.
    pub(super) factor: f32,
}

/// What attention does with a pair beside the dot product.
pub(super) trait Pairs: Copy + Send + Sync {
    /// Whether it does nothing else, and nothing below is called.
    const PLAIN: bool;

    /// Whether the backward pass is that of the gates of candidates: weights are what a key would have
    /// beside those that are seen already, and only biases get a gradient.
    const GATES: bool;

    /// The `lse` of a query that sees no key.
    const NO_KEYS: f32;

    /// Of a row of queries. Positions do not descend along a list.
    fn query(&self, row: usize) -> QueryPlace;

    /// Of a row of keys. Positions ascend along a list.
    fn key(&self, row: usize) -> KeyPlace;

    /// Dropout, if any.
    fn dropping(&self) -> Option<Dropping>;
}

/// Dense attention.
#[derive(Clone, Copy)]
pub(super) struct Plain;

impl Pairs for Plain {
    const PLAIN: bool = true;
    const GATES: bool = false;
    const NO_KEYS: f32 = 0.0;

    fn query(&self, _row: usize) -> QueryPlace {
        unreachable!("pairs are plain")
    }

    fn key(&self, _row: usize) -> KeyPlace {
        unreachable!("pairs are plain")
    }

    #[inline(always)]
    fn dropping(&self) -> Option<Dropping> {
        None
    }
}

/// The places of a tile of queries and a tile of keys; none if pairs are plain.
#[derive(Clone, Copy)]
struct Places<'a> {
    /// Of queries, whole vectors.
    positions: &'a [u32],
    /// Of queries, whole vectors.
    states: &'a [u32],
    keys: &'a [KeyPlace],
    /// Whether some query may not see some key.
    partial: bool,
    dropping: Option<Dropping>,
}

/// How much of a tile of keys a tile of queries sees.
#[derive(Clone, Copy, PartialEq)]
enum Sight {
    Nothing,
    Some,
    All,
}

impl Places<'_> {
    /// The numbers of one key and a vector of queries, with another in place of those of unseen pairs.
    #[inline(always)]
    fn hide<A: Arithmetic>(
        &self,
        key: usize,
        vector: usize,
        numbers: A::Vector,
        instead: f32,
    ) -> A::Vector {
        let position = self.keys[key].position;
        let last_seen = words(self.positions, vector);
        let mut lanes = [0.0; LANES];
        A::store(numbers, &mut lanes);
        for (lane, last_seen) in lanes.iter_mut().zip(last_seen) {
            *lane = if position > *last_seen {
                instead
            } else {
                *lane
            };
        }
        A::load(&lanes)
    }

    /// Factors of the weights of one key and a vector of queries.
    #[inline(always)]
    fn kept<A: Arithmetic>(&self, dropping: Dropping, key: usize, vector: usize) -> A::Vector {
        let position = self.keys[key].position;
        let states = words(self.states, vector);
        let mut lanes = [0.0; LANES];
        for (lane, state) in lanes.iter_mut().zip(states) {
            let stays = pair_number(*state, position) >= dropping.threshold;
            *lane = if stays { dropping.factor } else { 0.0 };
        }
        A::load(&lanes)
    }
}

/// One vector of what belongs to queries.
#[inline(always)]
fn words(array: &[u32], vector: usize) -> &[u32; LANES] {
    array[vector * LANES..]
        .first_chunk()
        .expect("places of queries are whole vectors")
}
