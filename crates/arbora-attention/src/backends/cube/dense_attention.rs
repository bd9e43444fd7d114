//! Dense attention and its gradients, without a matrix of scores in memory.
//!
//! Forward and in the gradient of queries a unit owns one head of a query or two and reads the keys in
//! their order; in the gradients of keys and values it owns one head of keys and reads the queries. Units
//! side by side own neighbours of one head, so that they read the same rows at the same time.

use super::{element, empty, grid, into_contiguous, shapes, vector_size};
use crate::functions::check::Axes;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{AttentionMask, AttentionOutput, DenseAttentionInputs, DenseAttentionOptions};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// Up to this width of a key and its value together a unit holds two rows.
const NARROW: usize = 64;

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

/// Copies rows of one head, of `held` neighbours from `first` on, into registers. Past the last
/// neighbour it is the last one's that are copied, and never written back.
#[cube]
fn load<N: Size>(
    rows: &[Vector<f32, N>],
    owned: &Owned,
    #[comptime] held: usize,
    #[comptime] width: usize,
) -> Array<Vector<f32, N>> {
    let mut loaded = Array::<Vector<f32, N>>::new(held * width);
    #[unroll]
    for row in 0..held {
        let at = owned.row(row) * width;
        #[unroll]
        for i in 0..width {
            loaded[row * width + i] = rows[at + i];
        }
    }
    loaded
}

#[cube]
fn zeros<N: Size>(#[comptime] count: usize) -> Array<Vector<f32, N>> {
    let mut rows = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        rows[i] = Vector::new(0.0f32);
    }
    rows
}

/// The dot products of rows in registers and one in memory.
#[cube]
fn dots<N: Size>(
    rows: &Array<Vector<f32, N>>,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] held: usize,
    #[comptime] width: usize,
) -> Array<f32> {
    let mut sums = zeros::<N>(held);
    #[unroll]
    for i in 0..width {
        let other = memory[at + i];
        #[unroll]
        for row in 0..held {
            sums[row] += rows[row * width + i] * other;
        }
    }
    let mut products = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        products[row] = sums[row].vector_sum();
    }
    products
}

/// `rows[r] += factors[r] * memory[at]`
#[cube]
fn add<N: Size>(
    rows: &mut Array<Vector<f32, N>>,
    factors: &Array<f32>,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] held: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for i in 0..width {
        let other = memory[at + i];
        #[unroll]
        for row in 0..held {
            rows[row * width + i] += Vector::<f32, N>::new(factors[row]) * other;
        }
    }
}

#[cube]
fn store<N: Size>(
    memory: &mut [Vector<f32, N>],
    owned: &Owned,
    rows: &Array<Vector<f32, N>>,
    factors: &Array<f32>,
    #[comptime] held: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for row in 0..held {
        if owned.first + row < owned.count {
            let at = owned.row(row) * width;
            #[unroll]
            for i in 0..width {
                memory[at + i] = Vector::<f32, N>::new(factors[row]) * rows[row * width + i];
            }
        }
    }
}

/// As many ones as a unit holds rows.
#[cube]
fn ones(#[comptime] held: usize) -> Array<f32> {
    let mut ones = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        ones[row] = 1.0f32;
    }
    ones
}

/// The rows of queries or keys that a unit owns: neighbours, one head of each.
#[derive(CubeType)]
struct Owned {
    example: usize,
    head: usize,
    heads: usize,
    first: usize,
    /// Rows of an example.
    count: usize,
}

#[cube]
impl Owned {
    fn new(unit: usize, count: usize, heads: usize, #[comptime] held: usize) -> Owned {
        let blocks = count.div_ceil(held);
        Owned {
            example: unit / blocks / heads,
            head: (unit / blocks) % heads,
            heads,
            first: unit % blocks * held,
            count,
        }
    }

    /// Position of one head of an owned row among those of all examples.
    fn row(&self, row: usize) -> usize {
        let at = select(
            self.first + row < self.count,
            self.first + row,
            self.count - 1,
        );
        (self.example * self.count + at) * self.heads + self.head
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
    lse: &mut [f32],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] held: usize,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::new(ABSOLUTE_POS, sizes.queries, sizes.heads, held);
    let rows = load::<N>(query, &owned, held, key_vectors);
    let mut sums = zeros::<N>(held * value_vectors);
    let mut greatest = Array::<f32>::new(held);
    let mut totals = Array::<f32>::new(held);
    let mut weights = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        greatest[row] = f32::new(MASKED);
        totals[row] = 0.0f32;
    }
    for at in sizes.first_key..sizes.rows {
        if kept::<M>(mask, sizes, owned.example, at, masked) {
            let of_key = (owned.example * sizes.rows + at) * sizes.heads + owned.head;
            let products = dots::<N>(&rows, key, of_key * key_vectors, held, key_vectors);
            #[unroll]
            for row in 0..held {
                let logit = products[row] * sizes.scale;
                if logit > greatest[row] {
                    let shrink = (greatest[row] - logit).exp();
                    totals[row] *= shrink;
                    #[unroll]
                    for i in 0..value_vectors {
                        sums[row * value_vectors + i] *= Vector::<f32, N>::new(shrink);
                    }
                    greatest[row] = logit;
                }
                let weight = (logit - greatest[row]).exp();
                totals[row] += weight;
                weights[row] = weight;
            }
            add::<N>(
                &mut sums,
                &weights,
                value,
                of_key * value_vectors,
                held,
                value_vectors,
            );
        }
    }
    #[unroll]
    for row in 0..held {
        // A query without keys has total 0; any positive divisor leaves it at 0.
        weights[row] = 1.0f32 / totals[row].max(SMALLEST);
        if owned.first + row < owned.count {
            let mut logarithm = 0.0f32;
            if totals[row] != 0.0f32 {
                logarithm = totals[row].ln() + greatest[row];
            }
            lse[owned.row(row)] = logarithm;
        }
    }
    store::<N>(context, &owned, &sums, &weights, held, value_vectors);
}

/// What the gradients need of one head of a query, `[batch, queries, heads, 2]`: the logarithm of its
/// total, and the product of its context and that gradient. Gradients of queries would compute it on the
/// way, but with nine buffers, and WebGPU promises eight.
#[cube(launch_unchecked)]
fn statistics_kernel<N: Size>(
    context: &[Vector<f32, N>],
    lse: &[f32],
    grad: &[Vector<f32, N>],
    statistics: &mut [f32],
    units: usize,
    #[comptime] value_vectors: usize,
) {
    let unit = ABSOLUTE_POS;
    if unit >= units {
        terminate!();
    }
    let mut mean = Vector::<f32, N>::new(0.0f32);
    #[unroll]
    for i in 0..value_vectors {
        mean += grad[unit * value_vectors + i] * context[unit * value_vectors + i];
    }
    statistics[unit * 2] = lse[unit];
    statistics[unit * 2 + 1] = mean.vector_sum();
}

/// Gradients of queries.
#[cube(launch_unchecked)]
fn backward_query_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    mask: &[M],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_query: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] masked: bool,
    #[comptime] held: usize,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::new(ABSOLUTE_POS, sizes.queries, sizes.heads, held);
    let rows = load::<N>(query, &owned, held, key_vectors);
    let of_context = load::<N>(grad, &owned, held, value_vectors);
    let mut sums = zeros::<N>(held * key_vectors);
    let mut logarithms = Array::<f32>::new(held);
    let mut means = Array::<f32>::new(held);
    let mut scores = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        let of_query = owned.row(row);
        logarithms[row] = statistics[of_query * 2];
        means[row] = statistics[of_query * 2 + 1];
    }
    for at in sizes.first_key..sizes.rows {
        if kept::<M>(mask, sizes, owned.example, at, masked) {
            let of_key = (owned.example * sizes.rows + at) * sizes.heads + owned.head;
            let products = dots::<N>(&rows, key, of_key * key_vectors, held, key_vectors);
            let of_weights = dots::<N>(
                &of_context,
                value,
                of_key * value_vectors,
                held,
                value_vectors,
            );
            #[unroll]
            for row in 0..held {
                let weight = (products[row] * sizes.scale - logarithms[row]).exp();
                scores[row] = weight * (of_weights[row] - means[row]) * sizes.scale;
            }
            add::<N>(
                &mut sums,
                &scores,
                key,
                of_key * key_vectors,
                held,
                key_vectors,
            );
        }
    }
    store::<N>(d_query, &owned, &sums, &ones(held), held, key_vectors);
}

/// Gradients of keys and values, zero for masked rows.
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
    #[comptime] held: usize,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
    #[define(M)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::new(ABSOLUTE_POS, sizes.rows, sizes.heads, held);
    let of_logits = load::<N>(key, &owned, held, key_vectors);
    let of_weights = load::<N>(value, &owned, held, value_vectors);
    let mut key_sums = zeros::<N>(held * key_vectors);
    let mut value_sums = zeros::<N>(held * value_vectors);
    let mut shares = ones(held);
    let mut scores = ones(held);
    // 1 for a row that takes part, 0 for one that does not.
    let mut factors = ones(held);
    let mut taken = 0.0f32;
    #[unroll]
    for row in 0..held {
        let at = owned.first + row;
        let mut factor = 0.0f32;
        if at >= sizes.first_key
            && at < sizes.rows
            && kept::<M>(mask, sizes, owned.example, at, masked)
        {
            factor = 1.0f32;
        }
        factors[row] = factor;
        taken += factor;
    }
    if taken > 0.0f32 {
        for query_at in 0..sizes.queries {
            let of_query = (owned.example * sizes.queries + query_at) * sizes.heads + owned.head;
            let products = dots::<N>(&of_logits, query, of_query * key_vectors, held, key_vectors);
            let grads = dots::<N>(
                &of_weights,
                grad,
                of_query * value_vectors,
                held,
                value_vectors,
            );
            let logarithm = statistics[of_query * 2];
            let mean = statistics[of_query * 2 + 1];
            #[unroll]
            for row in 0..held {
                // A row that is masked out has no weight, which its exponential need not tell.
                let mut weight = 0.0f32;
                if factors[row] > 0.0f32 {
                    weight = (products[row] * sizes.scale - logarithm).exp();
                }
                shares[row] = weight;
                scores[row] = weight * (grads[row] - mean) * sizes.scale;
            }
            add::<N>(
                &mut key_sums,
                &scores,
                query,
                of_query * key_vectors,
                held,
                key_vectors,
            );
            add::<N>(
                &mut value_sums,
                &shares,
                grad,
                of_query * value_vectors,
                held,
                value_vectors,
            );
        }
    }
    store::<N>(d_key, &owned, &key_sums, &factors, held, key_vectors);
    store::<N>(d_value, &owned, &value_sums, &factors, held, value_vectors);
}

struct Problem {
    batch: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
    rows: usize,
    value_dim: usize,
    options: DenseAttentionOptions,
    axes: Axes,
    /// The mask, or any tensor where there is none.
    mask: CubeTensor,
    masked: bool,
}

impl Problem {
    fn new(
        [query, key, value]: [&CubeTensor; 3],
        mask: AttentionMask<CubeBackend>,
        options: DenseAttentionOptions,
    ) -> Self {
        let inputs = [&query.shape(), &key.shape(), &value.shape()];
        let shape_of_mask = match &mask {
            AttentionMask::None => None,
            AttentionMask::Keys(mask) => Some(mask.shape()),
        };
        let axes = shapes::dense_attention(inputs, shape_of_mask.as_ref(), &options);
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
            axes,
            mask,
            masked,
        }
    }

    fn vector(&self) -> usize {
        vector_size(&[self.head_dim, self.value_dim])
    }

    /// Rows that a unit holds: more than one where registers allow, since each saves reading all others
    /// once more.
    fn held(&self) -> usize {
        if self.head_dim + self.value_dim <= NARROW {
            2
        } else {
            1
        }
    }

    /// Units that own all heads of `rows` in every example.
    fn units(&self, rows: usize) -> usize {
        self.batch * self.heads * rows.div_ceil(self.held())
    }

    fn sizes(&self, units: usize) -> SizesLaunch {
        SizesLaunch::new(
            self.queries,
            self.heads,
            self.rows,
            self.options.first_key,
            self.options.scale(self.head_dim) as f32,
            units,
        )
    }
}

pub(super) fn attend(
    inputs: DenseAttentionInputs<CubeBackend>,
    options: DenseAttentionOptions,
) -> AttentionOutput<CubeBackend> {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let problem = Problem::new([&query, &key, &value], inputs.mask, options);
    let (batch, queries, heads) = (problem.batch, problem.queries, problem.heads);
    let context = empty(
        &query,
        [batch, queries, heads, problem.value_dim],
        DType::F32,
    );
    let lse = empty(&query, [batch, queries, heads], DType::F32);
    let units = problem.units(queries);
    if units > 0 {
        let vector = problem.vector();
        let (count, dim) = grid(&query, units);
        let dtype = element(&problem.mask);
        // SAFETY: a unit writes its own query and head, or two; of past-the-end neighbours it reads the last query and writes
        // nothing. Shapes are checked above.
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
                lse.clone().into_buffer_arg(),
                problem.sizes(units),
                problem.masked,
                problem.held(),
                problem.head_dim / vector,
                problem.value_dim / vector,
                dtype,
            );
        }
    }
    AttentionOutput { context, lse }
}

pub(super) fn backward(
    inputs: DenseAttentionInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: DenseAttentionOptions,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let [context, lse, grad] = [output.context, output.lse, grad].map(into_contiguous);
    let problem = Problem::new([&query, &key, &value], inputs.mask, options);
    let attended = [&context.shape(), &lse.shape(), &grad.shape()];
    shapes::attended(&problem.axes, attended);
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
        // SAFETY: a unit writes the two numbers of its own query and head. Shapes are checked above.
        unsafe {
            statistics_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                context.into_buffer_arg(),
                lse.into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                units,
                value_vectors,
            );
        }
        let units = problem.units(queries);
        let (count, dim) = grid(&query, units);
        // SAFETY: as in `attend`: a unit writes the gradients of its own query and head, or two.
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
                grad.clone().into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                d_query.clone().into_buffer_arg(),
                problem.sizes(units),
                problem.masked,
                problem.held(),
                key_vectors,
                value_vectors,
                dtype,
            );
        }
    }
    let units = problem.units(problem.rows);
    if units > 0 {
        let (count, dim) = grid(&query, units);
        // SAFETY: as in `attend`, with keys for queries.
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
                problem.sizes(units),
                problem.masked,
                problem.held(),
                key_vectors,
                value_vectors,
                dtype,
            );
        }
    }
    (d_query, d_key, d_value)
}
