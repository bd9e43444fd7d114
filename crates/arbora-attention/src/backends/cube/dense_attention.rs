//! Dense attention and its gradients, without a matrix of scores in memory.
//!
//! Forward and in the gradient of queries a unit owns one head of a query and reads the keys in their
//! order; in the gradients of keys and values it owns one head of a key and reads the queries. Units
//! side by side own neighbours of one head, so that they read the same rows at the same time.

use super::{element, empty, fits_positions, grid, into_contiguous, vector_size};
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{AttentionMask, DenseAttentionOptions};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// A unit holds rows of one head in registers; wider ones take the reference body.
const WIDEST_HEAD: usize = 256;

/// Sizes of dense attention, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    queries: usize,
    heads: usize,
    /// Stored rows of keys and values of one example.
    rows: usize,
    first_key: usize,
    scale: f32,
    units: usize,
}

/// Copies the vectors of one row into registers.
#[cube]
fn load<N: Size>(
    rows: &[Vector<f32, N>],
    at: usize,
    #[comptime] count: usize,
) -> Array<Vector<f32, N>> {
    let mut row = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        row[i] = rows[at + i];
    }
    row
}

#[cube]
fn zeros<N: Size>(#[comptime] count: usize) -> Array<Vector<f32, N>> {
    let mut row = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        row[i] = Vector::new(0.0f32);
    }
    row
}

/// The dot product of a row in registers and one in memory.
#[cube]
fn dot<N: Size>(
    row: &Array<Vector<f32, N>>,
    rows: &[Vector<f32, N>],
    at: usize,
    #[comptime] count: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..count {
        sum += row[i] * rows[at + i];
    }
    sum.vector_sum()
}

/// `row += factor * rows[at]`
#[cube]
fn add<N: Size>(
    row: &mut Array<Vector<f32, N>>,
    factor: f32,
    rows: &[Vector<f32, N>],
    at: usize,
    #[comptime] count: usize,
) {
    let factor = Vector::<f32, N>::new(factor);
    #[unroll]
    for i in 0..count {
        row[i] += factor * rows[at + i];
    }
}

#[cube]
fn store<N: Size>(
    rows: &mut [Vector<f32, N>],
    at: usize,
    row: &Array<Vector<f32, N>>,
    factor: f32,
    #[comptime] count: usize,
) {
    let factor = Vector::<f32, N>::new(factor);
    #[unroll]
    for i in 0..count {
        rows[at + i] = factor * row[i];
    }
}

/// Whether a key of an example takes part.
#[cube]
fn kept<M: Numeric>(
    mask: &[M],
    sizes: &Sizes,
    example: usize,
    key: usize,
    #[comptime] masked: bool,
) -> bool {
    let mut kept = true;
    if comptime![masked] {
        let keys = sizes.rows - sizes.first_key;
        kept = u32::cast_from(mask[example * keys + key - sizes.first_key]) == 0u32;
    }
    kept
}

#[cube(launch_unchecked)]
fn forward_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    mask: &[M],
    context: &mut [Vector<f32, N>],
    log_total: &mut [f32],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let heads = sizes.heads;
    let query_at = ABSOLUTE_POS % sizes.queries;
    let head = (ABSOLUTE_POS / sizes.queries) % heads;
    let example = ABSOLUTE_POS / sizes.queries / heads;
    let of_query = (example * sizes.queries + query_at) * heads + head;
    let row = load::<N>(query, of_query * key_vectors, key_vectors);
    let mut sum = zeros::<N>(value_vectors);
    let mut greatest = f32::new(MASKED);
    let mut total = 0.0f32;
    for at in sizes.first_key..sizes.rows {
        if kept::<M>(mask, sizes, example, at, masked) {
            let of_key = (example * sizes.rows + at) * heads + head;
            let logit = dot::<N>(&row, key, of_key * key_vectors, key_vectors) * sizes.scale;
            if logit > greatest {
                let shrink = (greatest - logit).exp();
                total *= shrink;
                let factor = Vector::<f32, N>::new(shrink);
                #[unroll]
                for i in 0..value_vectors {
                    sum[i] *= factor;
                }
                greatest = logit;
            }
            let weight = (logit - greatest).exp();
            total += weight;
            add::<N>(
                &mut sum,
                weight,
                value,
                of_key * value_vectors,
                value_vectors,
            );
        }
    }
    // A query without keys has total 0; any positive divisor leaves it at 0.
    let inverse = 1.0f32 / total.max(SMALLEST);
    store::<N>(
        context,
        of_query * value_vectors,
        &sum,
        inverse,
        value_vectors,
    );
    let mut logarithm = 0.0f32;
    if total != 0.0f32 {
        logarithm = total.ln() + greatest;
    }
    log_total[of_query] = logarithm;
}

/// Gradients of queries. Leaves in `statistics`, `[batch, queries, heads, 2]`, what the gradients of keys
/// need of a query: the logarithm of its total, and the product of its context and that gradient.
#[cube(launch_unchecked)]
fn backward_query_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    mask: &[M],
    context: &[Vector<f32, N>],
    log_total: &[f32],
    grad: &[Vector<f32, N>],
    d_query: &mut [Vector<f32, N>],
    statistics: &mut [f32],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let heads = sizes.heads;
    let query_at = ABSOLUTE_POS % sizes.queries;
    let head = (ABSOLUTE_POS / sizes.queries) % heads;
    let example = ABSOLUTE_POS / sizes.queries / heads;
    let of_query = (example * sizes.queries + query_at) * heads + head;
    let row = load::<N>(query, of_query * key_vectors, key_vectors);
    let of_context = load::<N>(grad, of_query * value_vectors, value_vectors);
    let mean = dot::<N>(
        &of_context,
        context,
        of_query * value_vectors,
        value_vectors,
    );
    let logarithm = log_total[of_query];
    let mut sum = zeros::<N>(key_vectors);
    for at in sizes.first_key..sizes.rows {
        if kept::<M>(mask, sizes, example, at, masked) {
            let of_key = (example * sizes.rows + at) * heads + head;
            let logit = dot::<N>(&row, key, of_key * key_vectors, key_vectors) * sizes.scale;
            let weight = (logit - logarithm).exp();
            let of_weight = dot::<N>(&of_context, value, of_key * value_vectors, value_vectors);
            let score = weight * (of_weight - mean) * sizes.scale;
            add::<N>(&mut sum, score, key, of_key * key_vectors, key_vectors);
        }
    }
    store::<N>(d_query, of_query * key_vectors, &sum, 1.0f32, key_vectors);
    statistics[of_query * 2] = logarithm;
    statistics[of_query * 2 + 1] = mean;
}

/// Gradients of keys and values, zero for rows that take no part.
#[cube(launch_unchecked)]
fn backward_key_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    mask: &[M],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_key: &mut [Vector<f32, N>],
    d_value: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let heads = sizes.heads;
    let at = ABSOLUTE_POS % sizes.rows;
    let head = (ABSOLUTE_POS / sizes.rows) % heads;
    let example = ABSOLUTE_POS / sizes.rows / heads;
    let of_key = (example * sizes.rows + at) * heads + head;
    let of_logit = load::<N>(key, of_key * key_vectors, key_vectors);
    let of_weight = load::<N>(value, of_key * value_vectors, value_vectors);
    let mut key_sum = zeros::<N>(key_vectors);
    let mut value_sum = zeros::<N>(value_vectors);
    let mut taken = at >= sizes.first_key;
    if taken {
        taken = kept::<M>(mask, sizes, example, at, masked);
    }
    if taken {
        for query_at in 0..sizes.queries {
            let of_query = (example * sizes.queries + query_at) * heads + head;
            let logit =
                dot::<N>(&of_logit, query, of_query * key_vectors, key_vectors) * sizes.scale;
            let weight = (logit - statistics[of_query * 2]).exp();
            let product = dot::<N>(&of_weight, grad, of_query * value_vectors, value_vectors);
            let score = weight * (product - statistics[of_query * 2 + 1]) * sizes.scale;
            add::<N>(
                &mut key_sum,
                score,
                query,
                of_query * key_vectors,
                key_vectors,
            );
            add::<N>(
                &mut value_sum,
                weight,
                grad,
                of_query * value_vectors,
                value_vectors,
            );
        }
    }
    store::<N>(d_key, of_key * key_vectors, &key_sum, 1.0f32, key_vectors);
    store::<N>(
        d_value,
        of_key * value_vectors,
        &value_sum,
        1.0f32,
        value_vectors,
    );
}

/// Whether a unit can hold rows of a head, and 32 bits count everything.
pub(super) fn fits(query: &CubeTensor, value: &CubeTensor) -> bool {
    let [batch, queries, heads, head_dim] = query.shape().dims();
    let [_, rows, _, value_dim] = value.shape().dims();
    let widest = head_dim.max(value_dim);
    let narrowest = head_dim.min(value_dim);
    let numbers = batch
        .saturating_mul(queries.max(rows))
        .saturating_mul(heads)
        .saturating_mul(widest.max(2));
    widest <= WIDEST_HEAD && narrowest > 0 && fits_positions(numbers)
}

struct Problem {
    batch: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
    rows: usize,
    value_dim: usize,
    options: DenseAttentionOptions,
    /// The mask, or any tensor where there is none.
    mask: CubeTensor,
    masked: bool,
}

impl Problem {
    fn new(
        query: &CubeTensor,
        value: &CubeTensor,
        mask: AttentionMask<CubeBackend>,
        options: DenseAttentionOptions,
    ) -> Self {
        let [batch, queries, heads, head_dim] = query.shape().dims();
        let [_, rows, _, value_dim] = value.shape().dims();
        let (mask, masked) = match mask {
            // Never read; a kernel takes the same number of buffers with a mask and without.
            AttentionMask::None => (query.clone(), false),
            AttentionMask::Keys(mask) if rows == options.first_key => (mask, false),
            AttentionMask::Keys(mask) => (into_contiguous(mask), true),
        };
        Self {
            batch,
            queries,
            heads,
            head_dim,
            rows,
            value_dim,
            options,
            mask,
            masked,
        }
    }

    fn vector(&self) -> usize {
        vector_size(&[self.head_dim, self.value_dim])
    }

    /// Sizes for as many units as there are heads of `rows` in every example.
    fn sizes(&self, rows: usize) -> SizesLaunch {
        SizesLaunch::new(
            self.queries,
            self.heads,
            self.rows,
            self.options.first_key,
            self.options.scale(self.head_dim) as f32,
            self.batch * self.heads * rows,
        )
    }
}

pub(super) fn attend(
    query: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    mask: AttentionMask<CubeBackend>,
    options: DenseAttentionOptions,
) -> (CubeTensor, CubeTensor) {
    let [query, key, value] = [query, key, value].map(into_contiguous);
    let problem = Problem::new(&query, &value, mask, options);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let context = empty(
        &query,
        [batch, queries, heads, problem.value_dim],
        DType::F32,
    );
    let log_total = empty(&query, [batch, queries, heads], DType::F32);
    let units = batch * queries * heads;
    if units > 0 {
        let vector = problem.vector();
        let (count, dim) = grid(&query, units);
        let dtype = element(&problem.mask);
        // SAFETY: a unit writes its own query and head; all positions are bounded by the sizes of the
        // tensors.
        unsafe {
            forward_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.into_buffer_arg(),
                value.into_buffer_arg(),
                problem.mask.clone().into_buffer_arg(),
                context.clone().into_buffer_arg(),
                log_total.clone().into_buffer_arg(),
                problem.sizes(queries),
                problem.masked,
                problem.head_dim / vector,
                problem.value_dim / vector,
                dtype,
            );
        }
    }
    (context, log_total)
}

pub(super) fn backward(
    query: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    mask: AttentionMask<CubeBackend>,
    context: CubeTensor,
    log_total: CubeTensor,
    grad: CubeTensor,
    options: DenseAttentionOptions,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [query, key, value] = [query, key, value].map(into_contiguous);
    let [context, log_total, grad] = [context, log_total, grad].map(into_contiguous);
    let problem = Problem::new(&query, &value, mask, options);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let d_query = empty(&query, query.shape().dims::<4>(), DType::F32);
    let d_key = empty(&query, key.shape().dims::<4>(), DType::F32);
    let d_value = empty(&query, value.shape().dims::<4>(), DType::F32);
    let statistics = empty(&query, [batch, queries, heads, 2], DType::F32);
    let vector = problem.vector();
    let (key_vectors, value_vectors) = (problem.head_dim / vector, problem.value_dim / vector);
    let dtype = element(&problem.mask);
    let units = batch * queries * heads;
    if units > 0 {
        let (count, dim) = grid(&query, units);
        // SAFETY: as in `attend`.
        unsafe {
            backward_query_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.clone().into_buffer_arg(),
                value.clone().into_buffer_arg(),
                problem.mask.clone().into_buffer_arg(),
                context.into_buffer_arg(),
                log_total.into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                d_query.clone().into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                problem.sizes(queries),
                problem.masked,
                key_vectors,
                value_vectors,
                dtype,
            );
        }
    }
    let units = batch * problem.rows * heads;
    if units > 0 {
        let (count, dim) = grid(&query, units);
        // SAFETY: a unit writes its own key and head; all positions are bounded by the sizes of the
        // tensors.
        unsafe {
            backward_key_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.into_buffer_arg(),
                value.into_buffer_arg(),
                problem.mask.clone().into_buffer_arg(),
                grad.into_buffer_arg(),
                statistics.into_buffer_arg(),
                d_key.clone().into_buffer_arg(),
                d_value.clone().into_buffer_arg(),
                problem.sizes(problem.rows),
                problem.masked,
                key_vectors,
                value_vectors,
                dtype,
            );
        }
    }
    (d_query, d_key, d_value)
}
