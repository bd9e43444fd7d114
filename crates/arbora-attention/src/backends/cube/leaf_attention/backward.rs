//! Gradients of attention within leaves, and those of candidate keys.

use super::*;

/// What the gradients need: of one head of a query the logarithm of its total, and the product of its
/// context and that gradient; behind those of all queries, the biases of keys, over which their
/// gradients are written. Kernels would compute it on the way, but with more buffers, and WebGPU promises
/// eight.
#[cube(launch_unchecked)]
fn statistics_kernel<N: Size>(
    context: &[Vector<f32, N>],
    lse: &[f32],
    grad: &[Vector<f32, N>],
    key_bias: &[f32],
    statistics: &mut [f32],
    query_rows: usize,
    key_rows: usize,
    #[comptime] value_vectors: usize,
) {
    let unit = ABSOLUTE_POS;
    if unit < query_rows {
        let mut mean = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..value_vectors {
            mean += grad[unit * value_vectors + i] * context[unit * value_vectors + i];
        }
        statistics[unit * 2] = lse[unit];
        statistics[unit * 2 + 1] = mean.vector_sum();
    }
    if unit < key_rows {
        statistics[query_rows * 2 + unit] = key_bias[unit];
    }
}

/// Gradients of queries.
#[cube(launch_unchecked)]
fn backward_query_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_query: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::query(lists, sizes, ABSOLUTE_POS);
    let row = load::<N>(query, owned.row, key_vectors);
    let of_context = load::<N>(grad, owned.row, value_vectors);
    let mut sums = zeros::<N>(key_vectors);
    let logarithm = statistics[owned.row * 2];
    let mean = statistics[owned.row * 2 + 1];
    let last = owned.position + sizes.offset;
    let mut state = 0u32;
    if comptime![dropping] {
        state = row_state(sizes, owned.row);
    }
    for at in owned.first..owned.end {
        let key_row = usize::cast_from(lists[at]);
        let key_at = key_row / sizes.kv_heads % sizes.keys;
        if comptime![causal] {
            if key_at > last {
                break;
            }
        }
        let bias = statistics[sizes.query_rows * 2 + key_row];
        let product = dot::<N>(&row, key, key_row, key_vectors);
        let mut of_weight = dot::<N>(&of_context, value, key_row, value_vectors);
        if comptime![dropping] {
            of_weight *= kept(sizes, state, key_at);
        }
        let weight = (product * sizes.scale + bias - logarithm).exp();
        let score = weight * (of_weight - mean) * sizes.scale;
        add::<N>(&mut sums, score, key, key_row, key_vectors);
    }
    store::<N>(d_query, owned.row, &sums, 1.0f32, key_vectors);
}

/// Gradients of keys and values, and, in place of the biases, those of biases; zero for rows that take no
/// part.
#[cube(launch_unchecked)]
fn backward_key_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &mut [f32],
    d_key: &mut [Vector<f32, N>],
    d_value: &mut [Vector<f32, N>],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] dropping: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::key(lists, sizes, ABSOLUTE_POS);
    let of_logit = load::<N>(key, owned.row, key_vectors);
    let of_context = load::<N>(value, owned.row, value_vectors);
    let mut key_sums = zeros::<N>(key_vectors);
    let mut value_sums = zeros::<N>(value_vectors);
    let mut bias_sum = 0.0f32;
    let bias = statistics[sizes.query_rows * 2 + owned.row];
    for at in owned.first..owned.end {
        let query_row = usize::cast_from(lists[at]);
        let mut seen = true;
        if comptime![causal] {
            seen = owned.position <= query_row / sizes.heads % sizes.queries + sizes.offset;
        }
        if seen {
            let logarithm = statistics[query_row * 2];
            let mean = statistics[query_row * 2 + 1];
            let product = dot::<N>(&of_logit, query, query_row, key_vectors);
            let mut of_weight = dot::<N>(&of_context, grad, query_row, value_vectors);
            let weight = (product * sizes.scale + bias - logarithm).exp();
            let mut share = weight;
            if comptime![dropping] {
                let factor = kept(sizes, row_state(sizes, query_row), owned.position);
                of_weight *= factor;
                share *= factor;
            }
            let score = weight * (of_weight - mean);
            bias_sum += score;
            add::<N>(
                &mut key_sums,
                score * sizes.scale,
                query,
                query_row,
                key_vectors,
            );
            add::<N>(&mut value_sums, share, grad, query_row, value_vectors);
        }
    }
    store::<N>(d_key, owned.row, &key_sums, 1.0f32, key_vectors);
    store::<N>(d_value, owned.row, &value_sums, 1.0f32, value_vectors);
    statistics[sizes.query_rows * 2 + owned.row] = bias_sum;
}

/// Gradients of gates; the leaves of keys are their candidates.
#[cube(launch_unchecked)]
fn gate_kernel<N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lists: &[u32],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_gate: &mut [f32],
    sizes: &Sizes,
    #[comptime] causal: bool,
    #[comptime] key_vectors: usize,
    #[comptime] value_vectors: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let owned = Owned::key(lists, sizes, ABSOLUTE_POS);
    let of_logit = load::<N>(key, owned.row, key_vectors);
    let of_context = load::<N>(value, owned.row, value_vectors);
    let mut sum = 0.0f32;
    for at in owned.first..owned.end {
        let query_row = usize::cast_from(lists[at]);
        let mut seen = true;
        if comptime![causal] {
            seen = owned.position <= query_row / sizes.heads % sizes.queries + sizes.offset;
        }
        if seen {
            let product = dot::<N>(&of_logit, query, query_row, key_vectors);
            let of_weight = dot::<N>(&of_context, grad, query_row, value_vectors);
            // Past 80 nothing changes that single precision can tell from 1.
            let logit = (product * sizes.scale - statistics[query_row * 2])
                .max(f32::new(-80.0))
                .min(f32::new(80.0));
            let weight = 1.0f32 / (1.0f32 + (f32::new(0.0) - logit).exp());
            sum += weight * (of_weight - statistics[query_row * 2 + 1]);
        }
    }
    d_gate[owned.row] = sum;
}

impl Problem {
    /// See [`statistics_kernel`].
    fn statistics(
        &self,
        context: CubeTensor,
        lse: CubeTensor,
        grad: &CubeTensor,
        key_bias: Option<CubeTensor>,
    ) -> CubeTensor {
        let attended = [&context.shape(), &lse.shape(), &grad.shape()];
        shapes::attended(&self.axes, attended);
        let (query_rows, key_rows) = match key_bias {
            Some(_) => (self.query_rows(), self.key_rows()),
            None => (self.query_rows(), 0),
        };
        let statistics = empty(grad, [2 * query_rows + key_rows], DType::F32);
        let (count, dim) = grid(grad, query_rows.max(key_rows));
        let vector = self.vector();
        // Never read where there are none.
        let key_bias = key_bias.unwrap_or_else(|| lse.clone());
        // SAFETY: a unit writes the numbers of its own query and of its own key. Shapes are checked above and, of the bias, by who
        // calls.
        unsafe {
            statistics_kernel::launch_unchecked(
                &grad.client,
                count,
                dim,
                vector,
                context.into_buffer_arg(),
                lse.into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                key_bias.into_buffer_arg(),
                statistics.clone().into_buffer_arg(),
                query_rows,
                key_rows,
                self.value_dim / vector,
            );
        }
        statistics
    }
}

pub(crate) fn backward(
    inputs: LeafAttentionInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<CubeBackend> {
    let floats = [inputs.query, inputs.key, inputs.value, inputs.key_bias];
    let [query, key, value, key_bias] = floats.map(into_contiguous);
    let [context, lse, grad] = [output.context, output.lse, grad].map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.key_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    problem.check_bias(&key_bias);
    let d_query = empty(&query, query.shape().dims::<4>(), DType::F32);
    let d_key = empty(&query, key.shape().dims::<4>(), DType::F32);
    let d_value = empty(&query, value.shape().dims::<4>(), DType::F32);
    let statistics = problem.statistics(context, lse, &grad, Some(key_bias));
    let vector = problem.vector();
    let (key_vectors, value_vectors) = (problem.head_dim / vector, problem.value_dim / vector);
    let units = problem.query_rows();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`: a unit writes the gradients of its own query and head.
    unsafe {
        backward_query_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.clone().into_buffer_arg(),
            value.clone().into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.clone().into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            d_query.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            key_vectors,
            value_vectors,
        );
    }
    let units = problem.key_rows();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`, with keys for queries; a unit writes where its own bias was, too, which only it reads.
    unsafe {
        backward_key_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            statistics.clone().into_buffer_arg(),
            d_key.clone().into_buffer_arg(),
            d_value.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.dropping(),
            key_vectors,
            value_vectors,
        );
    }
    let first = 2 * problem.query_rows();
    let of_biases = Slice::new(first as isize, Some((first + units) as isize), 1);
    let key_bias = CubeBackend::float_reshape(
        CubeBackend::float_slice(statistics, &[of_biases]),
        Shape::from([problem.batch, problem.keys, problem.kv_heads]),
    );
    LeafAttentionGradients {
        query: d_query,
        key: d_key,
        value: d_value,
        key_bias,
    }
}

pub(crate) fn candidate_gates(
    inputs: CandidateInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> CubeTensor {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let [context, lse, grad] = [output.context, output.lse, grad].map(into_contiguous);
    let leaves = [inputs.query_leaf, inputs.candidate_leaf];
    let problem = Problem::new([&query, &key, &value], leaves, options);
    let statistics = problem.statistics(context, lse, &grad, None);
    let (batch, keys, kv_heads) = (problem.batch, problem.keys, problem.kv_heads);
    let d_gate = empty(&query, [batch, keys, kv_heads], DType::F32);
    let units = problem.key_rows();
    let vector = problem.vector();
    let (count, dim) = grid(&query, units);
    // SAFETY: as in `attend`, with keys for queries: a unit writes the gradient of its own gate.
    unsafe {
        gate_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            value.into_buffer_arg(),
            problem.lists.clone().into_buffer_arg(),
            grad.into_buffer_arg(),
            statistics.into_buffer_arg(),
            d_gate.clone().into_buffer_arg(),
            problem.sizes(units),
            problem.causal(),
            problem.head_dim / vector,
            problem.value_dim / vector,
        );
    }
    d_gate
}
