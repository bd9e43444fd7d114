//! The backward pass of one task.

use super::super::simd::{Arithmetic, Kernel, LANES, add_scaled, exp_lanes_up_to_zero};
use super::super::tuning::{BACKWARD_KEYS, QUERIES};
use super::memory::{Rows, Scratch};
use super::products::{
    Sink, add_products, copy_rows, lanes, lanes_mut, padded, products, scale_row, tiles, transpose,
};
use super::{Attention, AttentionOutputs, Pairs, Places, Sight, room};
use std::marker::PhantomData;

/// The backward pass of some queries and some keys. The results are written, not added to what is there;
/// those of keys are written only if there are queries.
pub(in super::super) struct Backward<'a, P> {
    pub(in super::super) attention: Attention<'a>,
    pub(in super::super) pairs: P,
    pub(in super::super) outputs: AttentionOutputs<'a>,
    pub(in super::super) gradients: Gradients<'a>,
    pub(in super::super) scratch: &'a mut Scratch,
    /// The most queries of any task.
    pub(in super::super) most_queries: usize,
    /// Rows of queries. No other task writes them.
    pub(in super::super) queries: &'a [usize],
    /// Rows of keys. No other task writes them.
    pub(in super::super) keys: &'a [usize],
}

/// Where gradients go. Those of biases are not looked at if pairs are plain, nor the others if only gates
/// have gradients.
pub(in super::super) struct Gradients<'a> {
    pub(in super::super) query: Rows<'a>,
    pub(in super::super) key: Rows<'a>,
    pub(in super::super) value: Rows<'a>,
    pub(in super::super) bias: Rows<'a>,
}

/// What a tile of queries brings to a tile of keys, and its gradient.
struct BackwardTile<'a> {
    /// `[queries, padded head_dim]`
    query: &'a [f32],
    /// `[head_dim, lanes]`, times scale.
    query_lanes: &'a [f32],
    /// `[queries, padded value_dim]`
    grad: &'a [f32],
    /// `[value_dim, lanes]`
    grad_lanes: &'a [f32],
    /// Of all keys.
    lse: &'a [f32],
    /// The mean of what the weights get as gradients.
    mean: &'a [f32],
    /// `[queries, padded head_dim]`, without scale.
    d_query: &'a mut [f32],
    queries: usize,
}

/// A tile of keys, its gradients, and room for one tile of queries.
struct BackwardKeys<'a> {
    /// `[keys, padded head_dim]`
    key: &'a [f32],
    /// `[keys, value_dim]`
    value: &'a [f32],
    /// `[keys, padded head_dim]`, without scale.
    d_key: &'a mut [f32],
    /// `[keys, padded value_dim]`
    d_value: &'a mut [f32],
    /// `[keys, lanes]`
    weights: &'a mut [f32],
    /// `[keys, lanes]`
    d_logits: &'a mut [f32],
    /// Of biases, whose lanes are still to be summed, `[keys, one vector]`
    d_bias: &'a mut [f32],
    count: usize,
    places: Places<'a>,
}

/// Turns logits into weights.
struct Weights<'a, A: Arithmetic, P, const VECTORS: usize> {
    weights: &'a mut [f32],
    lse: [A::Vector; VECTORS],
    places: Places<'a>,
    pairs: PhantomData<P>,
}

impl<A: Arithmetic, P: Pairs, const VECTORS: usize> Sink<A> for Weights<'_, A, P, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        let mut logit = products;
        // Rows that only fill the last block are not keys.
        let special = !P::PLAIN && key < self.places.keys.len();
        if special {
            // First, as it was summed: large logits lose what is between them in another order.
            logit = A::add_lanes(logit, A::splat(self.places.keys[key].bias));
        }
        let logit = A::sub_lanes(logit, self.lse[vector]);
        let mut weight = if P::GATES {
            sigmoid::<A>(logit)
        } else {
            exp_lanes_up_to_zero::<A>(logit)
        };
        if special && self.places.partial {
            weight = self.places.hide::<A>(key, vector, weight, 0.0);
        }
        A::store(
            weight,
            lanes_mut(self.weights, (key * VECTORS + vector) * LANES),
        );
    }
}

/// `1 / (1 + exp(-x))` per lane, without an exponential above 1.
#[inline(always)]
fn sigmoid<A: Arithmetic>(x: A::Vector) -> A::Vector {
    let zero = A::splat(0.0);
    let below = A::sub_lanes(zero, A::max_lanes(x, A::sub_lanes(zero, x)));
    let (mut numbers, mut powers) = ([0.0; LANES], [0.0; LANES]);
    A::store(x, &mut numbers);
    A::store(exp_lanes_up_to_zero::<A>(below), &mut powers);
    for (number, power) in numbers.iter_mut().zip(powers) {
        let upper = if *number < 0.0 { power } else { 1.0 };
        *number = upper / (1.0 + power);
    }
    A::load(&numbers)
}

/// Turns gradients of weights into gradients of logits, and drops weights.
struct LogitGrads<'a, A: Arithmetic, P, const VECTORS: usize> {
    weights: &'a mut [f32],
    d_logits: &'a mut [f32],
    mean: [A::Vector; VECTORS],
    places: Places<'a>,
    pairs: PhantomData<P>,
}

impl<A: Arithmetic, P: Pairs, const VECTORS: usize> Sink<A> for LogitGrads<'_, A, P, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        let first = (key * VECTORS + vector) * LANES;
        let weight = A::load(lanes(self.weights, first));
        let mut products = products;
        if !P::PLAIN
            && key < self.places.keys.len()
            && let Some(dropping) = self.places.dropping
        {
            let kept = self.places.kept::<A>(dropping, key, vector);
            products = A::mul_lanes(products, kept);
            A::store(A::mul_lanes(weight, kept), lanes_mut(self.weights, first));
        }
        A::store(
            A::mul_lanes(weight, A::sub_lanes(products, self.mean[vector])),
            lanes_mut(self.d_logits, first),
        );
    }
}

impl<P: Pairs> Kernel for Backward<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(mut self) {
        let Self {
            attention,
            pairs,
            outputs,
            keys,
            ..
        } = self;
        let gradients = &mut self.gradients;
        let (key_dim, value_dim) = (attention.head_dim, attention.value_dim);
        let (key_columns, value_columns) = (padded(key_dim), padded(value_dim));
        let room = room(self.most_queries);
        let (
            [
                query,
                query_lanes,
                grad,
                grad_lanes,
                context_lanes,
                lse,
                mean,
                d_query,
                key,
                value,
                d_key,
                d_value,
                weights,
                d_logits,
                d_bias,
            ],
            places,
        ) = self.scratch.reserve([
            room * key_columns,
            room * key_dim,
            room * value_columns,
            room * value_dim,
            2 * LANES * value_dim,
            room,
            room,
            room * key_columns,
            BACKWARD_KEYS * key_columns,
            BACKWARD_KEYS * value_dim,
            BACKWARD_KEYS * key_columns,
            BACKWARD_KEYS * value_columns,
            BACKWARD_KEYS * 2 * LANES,
            BACKWARD_KEYS * 2 * LANES,
            BACKWARD_KEYS * LANES,
        ]);

        for (chunk, queries) in self.queries.chunks(QUERIES).enumerate() {
            let count = queries.len();
            copy_rows(query, key_columns, attention.query, key_dim, queries);
            copy_rows(grad, value_columns, outputs.grad, value_dim, queries);
            copy_rows(lse, 1, outputs.lse, 1, queries);
            if !P::PLAIN {
                // Lanes without a query have no weight.
                lse[count..padded(count)].fill(f32::MAX);
                places.hold_queries(&pairs, queries);
            }
            for (first, vectors) in tiles(A::MANY_REGISTERS, count) {
                let lanes_used = (count - first).min(vectors * LANES);
                transpose::<A>(
                    |lane| &query[(first + lane) * key_columns..],
                    lanes_used,
                    key_dim,
                    attention.scale,
                    &mut query_lanes[first * key_dim..],
                    vectors,
                );
                let grad_lanes = &mut grad_lanes[first * value_dim..];
                transpose::<A>(
                    |lane| &grad[(first + lane) * value_columns..],
                    lanes_used,
                    value_dim,
                    1.0,
                    grad_lanes,
                    vectors,
                );
                transpose::<A>(
                    |lane| &outputs.context[queries[first + lane] * value_dim..][..value_dim],
                    lanes_used,
                    value_dim,
                    1.0,
                    context_lanes,
                    vectors,
                );
                // In the order in which the gradients of weights are summed, so that both are the same
                // number where one key has all the weight, and the logits get no gradient.
                for vector in 0..vectors {
                    let mut sum = A::splat(0.0);
                    for column in 0..value_dim {
                        let at = (column * vectors + vector) * LANES;
                        let of_context = A::load(lanes(context_lanes, at));
                        sum = A::mul_add_lanes(of_context, A::load(lanes(grad_lanes, at)), sum);
                    }
                    A::store(sum, lanes_mut(mean, first + vector * LANES));
                }
            }
            d_query[..count * key_columns].fill(0.0);

            for rows in keys.chunks(BACKWARD_KEYS) {
                copy_rows(key, key_columns, attention.key, key_dim, rows);
                copy_rows(value, value_dim, attention.value, value_dim, rows);
                if !P::PLAIN {
                    places.hold_keys(&pairs, rows);
                    d_bias[..rows.len() * LANES].fill(0.0);
                }
                d_key[..rows.len() * key_columns].fill(0.0);
                d_value[..rows.len() * value_columns].fill(0.0);
                for (first, vectors) in tiles(A::MANY_REGISTERS, count) {
                    let end = first + vectors * LANES;
                    let (here, sight) = places.tile(&pairs, first..end);
                    if sight == Sight::Nothing {
                        continue;
                    }
                    let tile = BackwardTile {
                        query: &query[first * key_columns..end * key_columns],
                        query_lanes: &query_lanes[first * key_dim..end * key_dim],
                        grad: &grad[first * value_columns..end * value_columns],
                        grad_lanes: &grad_lanes[first * value_dim..end * value_dim],
                        lse: &lse[first..end],
                        mean: &mean[first..end],
                        d_query: &mut d_query[first * key_columns..end * key_columns],
                        queries: count.min(end) - first,
                    };
                    let keys = BackwardKeys {
                        key,
                        value,
                        d_key,
                        d_value,
                        weights,
                        d_logits,
                        d_bias,
                        count: rows.len(),
                        places: here,
                    };
                    match vectors {
                        1 => tile.attend::<A, P, 1>(keys, attention),
                        _ => tile.attend::<A, P, 2>(keys, attention),
                    }
                }
                for (index, &row) in rows.iter().enumerate() {
                    if !P::PLAIN {
                        let sum = A::sum_lanes(A::load(lanes(d_bias, index * LANES)));
                        let to_bias = gradients.bias.row(row, 1);
                        match chunk {
                            0 => to_bias[0] = sum,
                            _ => to_bias[0] += sum,
                        }
                    }
                    if P::GATES {
                        continue;
                    }
                    let to_key = gradients.key.row(row * key_dim, key_dim);
                    let to_value = gradients.value.row(row * value_dim, value_dim);
                    let d_key = &d_key[index * key_columns..][..key_dim];
                    let d_value = &d_value[index * value_columns..][..value_dim];
                    if chunk == 0 {
                        scale_row(to_key, d_key, attention.scale);
                        scale_row(to_value, d_value, 1.0);
                    } else {
                        add_scaled::<A>(to_key, attention.scale, d_key);
                        add_scaled::<A>(to_value, 1.0, d_value);
                    }
                }
            }
            if P::GATES {
                continue;
            }
            for (index, &row) in queries.iter().enumerate() {
                let target = gradients.query.row(row * key_dim, key_dim);
                let row = index * key_columns;
                scale_row(target, &d_query[row..row + key_columns], attention.scale);
            }
        }
    }
}

impl BackwardTile<'_> {
    /// Adds the gradients between a tile of queries and a tile of keys.
    #[inline(always)]
    fn attend<A: Arithmetic, P: Pairs, const VECTORS: usize>(
        self,
        keys: BackwardKeys,
        Attention {
            head_dim,
            value_dim,
            ..
        }: Attention,
    ) {
        let places = keys.places;
        let width = VECTORS * LANES;
        let (key_columns, value_columns) = (padded(head_dim), padded(value_dim));
        let mut lse = [A::splat(0.0); VECTORS];
        let mut mean = [A::splat(0.0); VECTORS];
        for vector in 0..VECTORS {
            lse[vector] = A::load(lanes(self.lse, vector * LANES));
            mean[vector] = A::load(lanes(self.mean, vector * LANES));
        }
        products::<A, VECTORS>(
            keys.count,
            head_dim,
            keys.key,
            key_columns,
            self.query_lanes,
            &mut Weights::<A, P, VECTORS> {
                weights: keys.weights,
                lse,
                places,
                pairs: PhantomData,
            },
        );
        products::<A, VECTORS>(
            keys.count,
            value_dim,
            keys.value,
            value_dim,
            self.grad_lanes,
            &mut LogitGrads::<A, P, VECTORS> {
                weights: keys.weights,
                d_logits: keys.d_logits,
                mean,
                places,
                pairs: PhantomData,
            },
        );
        if !P::PLAIN {
            for key in 0..keys.count {
                let sums = lanes_mut(keys.d_bias, key * LANES);
                let mut sum = A::load(sums);
                for vector in 0..VECTORS {
                    let grads = lanes(keys.d_logits, (key * VECTORS + vector) * LANES);
                    sum = A::add_lanes(sum, A::load(grads));
                }
                A::store(sum, sums);
            }
        }
        if P::GATES {
            return;
        }
        add_products::<A>(
            keys.count,
            self.queries,
            keys.weights,
            [width, 1],
            self.grad,
            value_columns,
            keys.d_value,
        );
        add_products::<A>(
            keys.count,
            self.queries,
            keys.d_logits,
            [width, 1],
            self.query,
            key_columns,
            keys.d_key,
        );
        add_products::<A>(
            self.queries,
            keys.count,
            keys.d_logits,
            [1, width],
            keys.key,
            key_columns,
            self.d_query,
        );
    }
}
