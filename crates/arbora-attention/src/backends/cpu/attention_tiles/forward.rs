//! The forward pass of one task.

use super::super::simd::{Arithmetic, Kernel, LANES, exp_lanes_up_to_zero};
use super::super::tuning::FORWARD_KEYS;
use super::memory::{Rows, Scratch};
use super::products::{
    Sink, add_products, copy_rows, lanes, lanes_mut, padded, products, scale_row, tiles, transpose,
};
use super::{Attention, Pairs, Places, Sight, UNSEEN, room};
use std::marker::PhantomData;

/// The forward pass of some queries, which lie in `query` and `context` as the numbers of their rows say,
/// and of some keys. At most [`QUERIES`](super::super::tuning::QUERIES) queries.
pub(in super::super) struct Forward<'a, P> {
    pub(in super::super) attention: Attention<'a>,
    pub(in super::super) pairs: P,
    pub(in super::super) context: Rows<'a>,
    pub(in super::super) lse: Rows<'a>,
    pub(in super::super) scratch: &'a mut Scratch,
    /// The most queries of any task.
    pub(in super::super) most_queries: usize,
    /// Rows of queries. No other task has them.
    pub(in super::super) queries: &'a [usize],
    /// Rows of keys.
    pub(in super::super) keys: &'a [usize],
}

/// The state of a tile of queries between two tiles of keys.
struct ForwardTile<'a> {
    /// `[head_dim, lanes]`, times scale.
    query: &'a [f32],
    /// The greatest logit so far.
    maximum: &'a mut [f32],
    /// The sum of weights so far.
    total: &'a mut [f32],
    /// The sum of weighted values so far, `[queries, padded value_dim]`.
    context: &'a mut [f32],
    queries: usize,
}

/// A tile of keys, and room for the weights of one tile of queries.
struct ForwardKeys<'a> {
    /// `[keys, head_dim]`
    key: &'a [f32],
    /// `[keys, padded value_dim]`
    value: &'a [f32],
    /// `[keys, lanes]`
    weights: &'a mut [f32],
    count: usize,
    first: bool,
    places: Places<'a>,
}

/// Keeps logits and their maxima.
struct Logits<'a, A: Arithmetic, P, const VECTORS: usize> {
    logits: &'a mut [f32],
    maximum: [A::Vector; VECTORS],
    places: Places<'a>,
    keys: usize,
    pairs: PhantomData<P>,
}

impl<A: Arithmetic, P: Pairs, const VECTORS: usize> Sink<A> for Logits<'_, A, P, VECTORS> {
    #[inline(always)]
    fn take(&mut self, key: usize, vector: usize, products: A::Vector) {
        let mut products = products;
        if !P::PLAIN && key < self.keys {
            let bias = A::splat(self.places.keys[key].bias);
            products = A::add_lanes(products, bias);
            if self.places.partial {
                products = self.places.hide::<A>(key, vector, products, UNSEEN);
            }
        }
        A::store(
            products,
            lanes_mut(self.logits, (key * VECTORS + vector) * LANES),
        );
        // Rows that only fill the last block are not keys.
        if key < self.keys {
            self.maximum[vector] = A::max_lanes(self.maximum[vector], products);
        }
    }
}

impl<P: Pairs> Kernel for Forward<'_, P> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(mut self) {
        let Self {
            attention,
            pairs,
            queries,
            ..
        } = self;
        let (key_dim, value_dim) = (attention.head_dim, attention.value_dim);
        let columns = padded(value_dim);
        let room = room(self.most_queries);
        let ([query, key, value, weights, context, maximum, total], places) =
            self.scratch.reserve([
                room * key_dim,
                FORWARD_KEYS * key_dim,
                FORWARD_KEYS * columns,
                FORWARD_KEYS * 2 * LANES,
                room * columns,
                room,
                room,
            ]);
        if !P::PLAIN {
            places.hold_queries(&pairs, queries);
        }
        for (first, vectors) in tiles(A::MANY_REGISTERS, queries.len()) {
            let count = (queries.len() - first).min(vectors * LANES);
            transpose::<A>(
                |lane| &attention.query[queries[first + lane] * key_dim..][..key_dim],
                count,
                key_dim,
                attention.scale,
                &mut query[first * key_dim..],
                vectors,
            );
        }
        context[..padded(queries.len()) * columns].fill(0.0);

        for (block, rows) in self.keys.chunks(FORWARD_KEYS).enumerate() {
            copy_rows(key, key_dim, attention.key, key_dim, rows);
            copy_rows(value, columns, attention.value, value_dim, rows);
            if !P::PLAIN {
                places.hold_keys(&pairs, rows);
            }
            for (first, vectors) in tiles(A::MANY_REGISTERS, queries.len()) {
                let width = vectors * LANES;
                let (here, sight) = places.tile(&pairs, first..first + width);
                if sight == Sight::Nothing {
                    // Nor does it see any of the later keys; these are its first only if it sees none.
                    if block == 0 {
                        maximum[first..first + width].fill(UNSEEN);
                        total[first..first + width].fill(0.0);
                    }
                    continue;
                }
                let tile = ForwardTile {
                    query: &query[first * key_dim..(first + width) * key_dim],
                    maximum: &mut maximum[first..first + width],
                    total: &mut total[first..first + width],
                    context: &mut context[first * columns..(first + width) * columns],
                    queries: width.min(queries.len() - first),
                };
                let keys = ForwardKeys {
                    key,
                    value,
                    weights,
                    count: rows.len(),
                    first: block == 0,
                    places: here,
                };
                match vectors {
                    1 => tile.attend::<A, P, 1>(keys, key_dim, columns),
                    _ => tile.attend::<A, P, 2>(keys, key_dim, columns),
                }
            }
        }

        for first in (0..queries.len()).step_by(LANES) {
            let mut lses = [P::NO_KEYS; LANES];
            let mut inverses = [0.0; LANES];
            if !self.keys.is_empty() {
                let (maximum, total) = (lanes(maximum, first), lanes(total, first));
                for lane in 0..LANES {
                    // NaN is no total of 0.
                    if P::PLAIN || total[lane] != 0.0 {
                        lses[lane] = maximum[lane] + total[lane].ln();
                        inverses[lane] = 1.0 / total[lane];
                    }
                }
            }
            for (lane, &row) in queries[first..].iter().enumerate().take(LANES) {
                self.lse.row(row, 1)[0] = lses[lane];
                let target = self.context.row(row * value_dim, value_dim);
                let row = (first + lane) * columns;
                scale_row(target, &context[row..row + columns], inverses[lane]);
            }
        }
    }
}

impl ForwardTile<'_> {
    /// Takes a tile of keys into the state.
    #[inline(always)]
    fn attend<A: Arithmetic, P: Pairs, const VECTORS: usize>(
        self,
        keys: ForwardKeys,
        key_dim: usize,
        columns: usize,
    ) {
        let width = VECTORS * LANES;
        let places = keys.places;
        let mut logits = Logits::<A, P, VECTORS> {
            logits: keys.weights,
            maximum: [A::splat(f32::NEG_INFINITY); VECTORS],
            places,
            keys: keys.count,
            pairs: PhantomData,
        };
        products::<A, VECTORS>(
            keys.count,
            key_dim,
            keys.key,
            key_dim,
            self.query,
            &mut logits,
        );
        let mut maximum = logits.maximum;
        let mut total = [A::splat(0.0); VECTORS];
        if !keys.first {
            let mut shrink = [[0.0; LANES]; VECTORS];
            for vector in 0..VECTORS {
                let before = A::load(lanes(self.maximum, vector * LANES));
                maximum[vector] = A::max_lanes(maximum[vector], before);
                let factor = exp_lanes_up_to_zero::<A>(A::sub_lanes(before, maximum[vector]));
                total[vector] = A::mul_lanes(A::load(lanes(self.total, vector * LANES)), factor);
                A::store(factor, &mut shrink[vector]);
            }
            for query in 0..self.queries {
                let factor = A::splat(shrink[query / LANES][query % LANES]);
                for column in (0..columns).step_by(LANES) {
                    let sum = lanes_mut(self.context, query * columns + column);
                    A::store(A::mul_lanes(A::load(sum), factor), sum);
                }
            }
        }
        for key in 0..keys.count {
            for vector in 0..VECTORS {
                let weights = lanes_mut(keys.weights, (key * VECTORS + vector) * LANES);
                let mut weight =
                    exp_lanes_up_to_zero::<A>(A::sub_lanes(A::load(weights), maximum[vector]));
                if !P::PLAIN && places.partial {
                    weight = places.hide::<A>(key, vector, weight, 0.0);
                }
                total[vector] = A::add_lanes(total[vector], weight);
                if let Some(dropping) = places.dropping {
                    weight = A::mul_lanes(weight, places.kept::<A>(dropping, key, vector));
                }
                A::store(weight, weights);
            }
        }
        for vector in 0..VECTORS {
            A::store(maximum[vector], lanes_mut(self.maximum, vector * LANES));
            A::store(total[vector], lanes_mut(self.total, vector * LANES));
        }
        add_products::<A>(
            self.queries,
            keys.count,
            keys.weights,
            [1, width],
            keys.value,
            columns,
            self.context,
        );
    }
}
