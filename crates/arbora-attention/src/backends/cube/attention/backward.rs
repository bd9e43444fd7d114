//! Gradients of attention, and those of candidate keys.

use super::*;

/// What the gradients need: of one head of a query its `lse`, and the product of its context and that gradient; behind those
/// of all queries, the biases of keys, over which their gradients are written. Kernels would compute it on the way, but with
/// more buffers, and WebGPU promises eight.
#[cube(launch_unchecked)]
fn statistics_kernel<N: Size>(
    context: &[Vector<f32, N>],
    lse: &[f32],
    grad: &[Vector<f32, N>],
    key_bias: &[f32],
    statistics: &mut [f32],
    units: usize,
    query_rows: usize,
    #[comptime] value_vectors: usize,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let unit = ABSOLUTE_POS;
    if unit < query_rows {
        let mut mean = Vector::<f32, N>::new(0.0f32);
        #[unroll]
        for i in 0..value_vectors {
            mean += grad[unit * value_vectors + i] * context[unit * value_vectors + i];
        }
        statistics[unit * 2] = lse[unit];
        statistics[unit * 2 + 1] = mean.vector_sum();
    } else {
        statistics[query_rows + unit] = key_bias[unit - query_rows];
    }
}

/// Gradients of queries.
#[cube(launch_unchecked)]
fn backward_query_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    others: &[M],
    grad: &[Vector<f32, N>],
    statistics: &[f32],
    d_query: &mut [Vector<f32, N>],
    units: usize,
    sizes: &Sizes,
    #[define(M)] _dtype: ElemType,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let plan = comptime![sizes.plan];
    let held = comptime![plan.held];
    let owned = Owned::new::<M>(others, &sizes.query, &sizes.key, sizes);
    let rows = Rows::<N>::load(query, &owned, plan.key_vectors);
    let of_context = Rows::<N>::load(grad, &owned, plan.value_vectors);
    let mut sums = Rows::<N>::zeros(held, plan.key_vectors);
    let mut logarithms = filled(0.0f32, held);
    let mut means = filled(0.0f32, held);
    let mut scores = filled(0.0f32, held);
    #[unroll]
    for row in 0..held {
        logarithms[row] = statistics[owned.row(row) * 2];
        means[row] = statistics[owned.row(row) * 2 + 1];
    }
    let last = owned.position + sizes.offset;
    let state = row_state(sizes, owned.row);
    for at in owned.first..owned.end {
        let key_row = owned.other::<M>(others, at);
        if comptime![plan.causal] {
            if key_position(sizes, key_row) > last {
                break;
            }
        }
        if is_kept::<M>(others, sizes, owned.example, at) {
            let products = rows.dots(key, key_row);
            let of_weights = of_context.dots(value, key_row);
            #[unroll]
            for row in 0..held {
                let mut logit = products[row] * sizes.scale;
                if comptime![plan.listed] {
                    logit += statistics[sizes.query.rows * 2 + key_row];
                }
                let mut of_weight = of_weights[row];
                if comptime![plan.dropping] {
                    of_weight *= drop_factor(sizes, state, key_position(sizes, key_row));
                }
                let weight = (logit - logarithms[row]).exp();
                scores[row] = weight * (of_weight - means[row]) * sizes.scale;
            }
            sums.add(&scores, key, key_row);
        }
    }
    sums.store(d_query, &owned, &filled(1.0f32, held));
}

/// Whether a key may be seen from a query.
#[cube]
fn is_seen(owned: &Owned, sizes: &Sizes, query_row: usize) -> bool {
    let mut seen = true;
    if comptime![sizes.plan.causal] {
        let position = query_row / sizes.query.heads % sizes.query.positions;
        seen = owned.position <= position + sizes.offset;
    }
    seen
}

/// Gradients of keys and values, and, in place of the biases, those of biases; zero for rows that are not attended to.
#[cube(launch_unchecked)]
fn backward_key_kernel<M: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    others: &[M],
    grad: &[Vector<f32, N>],
    statistics: &mut [f32],
    d_key: &mut [Vector<f32, N>],
    d_value: &mut [Vector<f32, N>],
    units: usize,
    sizes: &Sizes,
    #[define(M)] _dtype: ElemType,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let plan = comptime![sizes.plan];
    let held = comptime![plan.held];
    let owned = Owned::new::<M>(others, &sizes.key, &sizes.query, sizes);
    let of_logits = Rows::<N>::load(key, &owned, plan.key_vectors);
    let of_context = Rows::<N>::load(value, &owned, plan.value_vectors);
    let mut key_sums = Rows::<N>::zeros(held, plan.key_vectors);
    let mut value_sums = Rows::<N>::zeros(held, plan.value_vectors);
    let mut shares = filled(0.0f32, held);
    let mut scores = filled(0.0f32, held);
    // 1 for a row that is attended to, 0 for one that is not.
    let mut factors = filled(1.0f32, held);
    let mut bias = 0.0f32;
    let mut bias_sum = 0.0f32;
    let mut taken = 1.0f32;
    if comptime![plan.listed] {
        bias = statistics[sizes.query.rows * 2 + owned.row];
    } else {
        taken = 0.0f32;
        #[unroll]
        for row in 0..held {
            let at = owned.position + row;
            let mut factor = 0.0f32;
            if at >= sizes.key.first
                && row < owned.stored
                && is_kept::<M>(others, sizes, owned.example, at)
            {
                factor = 1.0f32;
            }
            factors[row] = factor;
            taken += factor;
        }
    }
    if taken > 0.0f32 {
        for at in owned.first..owned.end {
            let query_row = owned.other::<M>(others, at);
            if is_seen(&owned, sizes, query_row) {
                let products = of_logits.dots(query, query_row);
                let of_weights = of_context.dots(grad, query_row);
                let logarithm = statistics[query_row * 2];
                let mean = statistics[query_row * 2 + 1];
                let state = row_state(sizes, query_row);
                #[unroll]
                for row in 0..held {
                    let mut logit = products[row] * sizes.scale;
                    if comptime![plan.listed] {
                        logit += bias;
                    }
                    // A row that is masked out has no weight, which its exponential need not tell.
                    let mut weight = 0.0f32;
                    if factors[row] > 0.0f32 {
                        weight = (logit - logarithm).exp();
                    }
                    let mut share = weight;
                    let mut of_weight = of_weights[row];
                    if comptime![plan.dropping] {
                        let factor = drop_factor(sizes, state, owned.position);
                        of_weight *= factor;
                        share *= factor;
                    }
                    let score = weight * (of_weight - mean);
                    bias_sum += score;
                    shares[row] = share;
                    scores[row] = score * sizes.scale;
                }
                key_sums.add(&scores, query, query_row);
                value_sums.add(&shares, grad, query_row);
            }
        }
    }
    key_sums.store(d_key, &owned, &factors);
    value_sums.store(d_value, &owned, &factors);
    if comptime![plan.listed] {
        statistics[sizes.query.rows * 2 + owned.row] = bias_sum;
    }
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
    units: usize,
    sizes: &Sizes,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let plan = comptime![sizes.plan];
    let owned = Owned::new::<u32>(lists, &sizes.key, &sizes.query, sizes);
    let of_logits = Rows::<N>::load(key, &owned, plan.key_vectors);
    let of_context = Rows::<N>::load(value, &owned, plan.value_vectors);
    let mut sum = 0.0f32;
    for at in owned.first..owned.end {
        let query_row = owned.other::<u32>(lists, at);
        if is_seen(&owned, sizes, query_row) {
            let products = of_logits.dots(query, query_row);
            let of_weights = of_context.dots(grad, query_row);
            // Past 80 nothing changes that single precision can tell from 1.
            let logit = (products[0] * sizes.scale - statistics[query_row * 2])
                .max(f32::new(-80.0))
                .min(f32::new(80.0));
            let weight = 1.0f32 / (1.0f32 + (f32::new(0.0) - logit).exp());
            sum += weight * (of_weights[0] - statistics[query_row * 2 + 1]);
        }
    }
    d_gate[owned.row] = sum;
}

impl Problem {
    /// See [`statistics_kernel`]; and the gradient of the context without gaps.
    fn statistics(
        &self,
        output: AttentionOutput<CubeBackend>,
        grad: CubeTensor,
        key_bias: Option<CubeTensor>,
    ) -> [CubeTensor; 2] {
        let attended = [output.context, output.lse, grad].map(into_contiguous);
        let [context, lse, grad] = attended.each_ref().map(|tensor| tensor.shape());
        shapes::attended(&self.axes, [&context, &lse, &grad]);
        let [context, lse, grad] = attended;
        let query_rows = self.query_rows();
        let biases = match &key_bias {
            Some(biases) => biases.shape().num_elements(),
            None => 0,
        };
        let statistics = floats(&grad, [2 * query_rows + biases]);
        // Never read where there are none.
        let key_bias = key_bias.unwrap_or_else(|| lse.clone());
        let (units, width) = (query_rows + biases, self.plan.value_vectors);
        // SAFETY: a unit writes the numbers of its own query or those of its own key. Shapes are checked above and, of the bias, by
        // who calls.
        unsafe {
            launch!(
                statistics_kernel(units, query_rows, width, self.vector),
                [context, lse, grad, key_bias, statistics]
            );
        }
        [grad, statistics]
    }

    /// Gradients of query, key and value; those of biases take the place of biases in `statistics`.
    fn backward(&self, [grad, statistics]: &[CubeTensor; 2]) -> [CubeTensor; 3] {
        let [query, key, value, others] = self.inputs();
        let gradients = [query, key, value].map(|rows| floats(query, rows.shape()));
        let [d_query, d_key, d_value] = &gradients;
        let dtype = element(others);
        // SAFETY: as in `attend`: a unit writes the gradients of its own query and head, or two.
        unsafe {
            launch!(
                backward_query_kernel(self.units(query), self.sizes(), dtype, self.vector),
                [query, key, value, others, grad, statistics, d_query]
            );
        }
        // SAFETY: as in `attend`, with keys for queries; a unit writes where its own bias was, too, which only it reads.
        unsafe {
            launch!(
                backward_key_kernel(self.units(key), self.sizes(), dtype, self.vector),
                [query, key, value, others, grad, statistics, d_key, d_value]
            );
        }
        gradients
    }
}

pub(crate) fn dense_backward(
    inputs: DenseAttentionInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: DenseAttentionOptions,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let problem = Problem::dense(inputs, options);
    let statistics = problem.statistics(output, grad, None);
    let [d_query, d_key, d_value] = problem.backward(&statistics);
    (d_query, d_key, d_value)
}

pub(crate) fn within_leaves_backward(
    inputs: LeafAttentionInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> LeafAttentionGradients<CubeBackend> {
    let rows = [inputs.query, inputs.key, inputs.value];
    let problem = Problem::within_leaves(rows, [inputs.query_leaf, inputs.key_leaf], options);
    let key_bias = into_contiguous(inputs.key_bias);
    problem.expect_bias(&key_bias);
    let shape = key_bias.shape();
    let statistics = problem.statistics(output, grad, Some(key_bias));
    let [query, key, value] = problem.backward(&statistics);
    let [_, statistics] = statistics;
    let of_biases = Slice::new(2 * problem.query_rows() as isize, None, 1);
    let key_bias = CubeBackend::float_slice(statistics, &[of_biases]);
    LeafAttentionGradients {
        query,
        key,
        value,
        key_bias: CubeBackend::float_reshape(key_bias, shape),
    }
}

pub(crate) fn candidate_gates(
    inputs: CandidateInputs<CubeBackend>,
    output: AttentionOutput<CubeBackend>,
    grad: CubeTensor,
    options: LeafAttentionOptions,
) -> CubeTensor {
    let rows = [inputs.query, inputs.key, inputs.value];
    let leaves = [inputs.query_leaf, inputs.candidate_leaf];
    let problem = Problem::within_leaves(rows, leaves, options);
    let [grad, statistics] = problem.statistics(output, grad, None);
    let [query, key, value, lists] = problem.inputs();
    let [batch, keys, kv_heads, _] = key.shape().dims();
    let d_gate = floats(query, [batch, keys, kv_heads]);
    // SAFETY: as in `attend`, with keys for queries: a unit writes the gradient of its own gate.
    unsafe {
        launch!(
            gate_kernel(problem.units(key), problem.sizes(), problem.vector),
            [query, key, value, lists, grad, statistics, d_gate]
        );
    }
    d_gate
}
