//! Gradients of dense attention.

use super::*;

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

pub(crate) fn backward(
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
