//! Gradients of tree search along its paths: through the context, and through log-probability and entropy.

use super::*;

/// One unit per (row, head): the weights of attention along a path, and the gradients of its scores, both
/// `[slots * heads, rows]`.
#[cube(launch_unchecked)]
fn context_scores_kernel<I: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    value: &[Vector<f32, N>],
    lengths: &[I],
    path: &[I],
    grad: &[Vector<f32, N>],
    weights: &mut [f32],
    scores: &mut [f32],
    sizes: &Sizes,
    head_vectors: usize,
    value_vectors: usize,
    slots: usize,
    #[define(I)] _dtype: ElemType,
) {
    let (rows, heads) = (sizes.rows, sizes.heads);
    if ABSOLUTE_POS >= rows * heads {
        terminate!();
    }
    let row = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    let length = length_of::<I>(lengths, sizes, row);
    let root = (row / sizes.queries) * sizes.nodes;
    let steps = sizes.decisions + 1;
    let mut siblings = Siblings::above(sizes);
    for step in 0..steps {
        let parent = usize::cast_from(path[row * steps + step]);
        siblings.descend(sizes, step, parent, length);
        let base = root + siblings.offset + siblings.first;
        let mut chosen = siblings.group;
        if step < sizes.decisions {
            let next = usize::cast_from(path[row * steps + step + 1]);
            chosen = child_of(next, &siblings);
        }
        for child in 0..siblings.group {
            let mut logit = f32::new(MASKED);
            let mut score = 0.0f32;
            if child < siblings.scored && child != chosen {
                let at = (base + child) * heads + head;
                let product = dot::<N>(
                    query,
                    (row * heads + head) * head_vectors,
                    key,
                    at * head_vectors,
                    head_vectors,
                );
                logit = product * sizes.scale;
                // The gradient of a weight is the value's product with that of the context.
                score = dot::<N>(
                    grad,
                    (row * heads + head) * value_vectors,
                    value,
                    at * value_vectors,
                    value_vectors,
                );
            }
            let at = ((siblings.slot + child) * heads + head) * rows + row;
            weights[at] = logit;
            scores[at] = score;
        }
    }
    softmax_of_slots(weights, row, rows, head, heads, slots);
    let mut mean = 0.0f32;
    for slot in 0..slots {
        let at = (slot * heads + head) * rows + row;
        mean += weights[at] * scores[at];
    }
    for slot in 0..slots {
        let at = (slot * heads + head) * rows + row;
        scores[at] = weights[at] * (scores[at] - mean) * sizes.scale;
    }
}

/// One unit per row: the gradients of the scores of all decisions, `[slots * heads, rows]`, through
/// log-probability and entropy.
#[cube(launch_unchecked)]
fn policy_scores_kernel<I: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    lengths: &[I],
    path: &[I],
    grad: &[f32],
    scores: &mut [f32],
    sizes: &Sizes,
    head_vectors: usize,
    inverse_temperature: f32,
    #[define(I)] _dtype: ElemType,
) {
    let row = ABSOLUTE_POS;
    if row >= sizes.rows {
        terminate!();
    }
    let (rows, heads) = (sizes.rows, sizes.heads);
    let length = length_of::<I>(lengths, sizes, row);
    let root = (row / sizes.queries) * sizes.nodes;
    let steps = sizes.decisions + 1;
    let head_weight = 1.0f32 / f32::cast_from(heads);
    // The mean over real decisions needs their number first.
    let mut decided = 0.0f32;
    let mut counted = Siblings::above(sizes);
    for step in 0..sizes.decisions {
        let parent = usize::cast_from(path[row * steps + step]);
        counted.descend(sizes, step, parent, length);
        if counted.real > 1 {
            decided += 1.0f32;
        }
    }

    let mut siblings = Siblings::above(sizes);
    for step in 0..sizes.decisions {
        let parent = usize::cast_from(path[row * steps + step]);
        siblings.descend(sizes, step, parent, length);
        let real = siblings.real;
        let base = root + siblings.offset + siblings.first;
        let next = usize::cast_from(path[row * steps + step + 1]);
        let chosen = child_of(next, &siblings);
        let mut probability_of_chosen = 0.0f32;
        for head in 0..heads {
            // Probabilities wait where scores will be.
            let first = (siblings.slot * heads + head) * rows + row;
            let stride = heads * rows;
            let mut greatest = f32::new(MASKED);
            for child in 0..real {
                let product = dot::<N>(
                    query,
                    (row * heads + head) * head_vectors,
                    key,
                    ((base + child) * heads + head) * head_vectors,
                    head_vectors,
                );
                let logit = product * sizes.scale * inverse_temperature;
                scores[first + child * stride] = logit;
                greatest = greatest.max(logit);
            }
            let mut total = 0.0f32;
            for child in 0..real {
                let exponential = (scores[first + child * stride] - greatest).exp();
                scores[first + child * stride] = exponential;
                total += exponential;
            }
            let inverse = 1.0f32 / total.max(SMALLEST);
            for child in 0..real {
                scores[first + child * stride] *= inverse;
            }
            for child in real..siblings.group {
                scores[first + child * stride] = 0.0f32;
            }
            if chosen < real {
                probability_of_chosen += scores[first + chosen * stride] * head_weight;
            }
        }

        let mut from_log_prob = 0.0f32;
        let mut from_entropy = 0.0f32;
        if real > 1 {
            from_entropy = grad[rows + row] * head_weight / decided;
            // Below it the log-probability is held.
            if probability_of_chosen >= f32::MIN_POSITIVE {
                from_log_prob = grad[row] * head_weight;
            }
        }
        let factor = inverse_temperature * sizes.scale;
        for head in 0..heads {
            let first = (siblings.slot * heads + head) * rows + row;
            let stride = heads * rows;
            let mut entropy = 0.0f32;
            for child in 0..real {
                let probability = scores[first + child * stride];
                entropy -= probability * probability.max(f32::MIN_POSITIVE).ln();
            }
            // Divided first: a share is at most one per head, while a gradient over a policy near
            // the smallest number overflows.
            let mut share = 0.0f32;
            if chosen < real && probability_of_chosen >= f32::MIN_POSITIVE {
                share = scores[first + chosen * stride] / probability_of_chosen;
            }
            for child in 0..real {
                let probability = scores[first + child * stride];
                let mut hit = 0.0f32;
                if child == chosen {
                    hit = 1.0f32;
                }
                // d log pi(a) / d l_c = p_a (1[c = a] - p_c) / (heads * pi(a))
                let log_prob = from_log_prob * share * (hit - probability);
                // d H / d l_c = -p_c (ln p_c + H)
                let logarithm = probability.max(f32::MIN_POSITIVE).ln();
                let spread = from_entropy * probability * (logarithm + entropy);
                scores[first + child * stride] = (log_prob - spread) * factor;
            }
        }
    }
}

pub(crate) fn context_backward(
    inputs: TreeSearchInputs<CubeBackend>,
    path: CubeTensor,
    grad: CubeTensor,
    options: TreeSearchOptions,
) -> (CubeTensor, CubeTensor, CubeTensor) {
    let axes = shapes::tree_search(&inputs, &options);
    axes.expect("path", "batch, queries, decisions + 1", &path.shape());
    axes.expect("grad", "batch, queries, heads, value_dim", &grad.shape());
    let problem = Problem::new(&inputs.query, &options);
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let [lengths, path, grad] = [inputs.lengths, path, grad].map(into_contiguous);
    let (rows, heads) = (problem.rows(), problem.heads);
    let value_dim = value.shape()[3];
    let (_, slots) = slots(&problem.shape);
    let d_query = empty(&query, query.shape().dims::<4>(), DType::F32);
    let weights = empty(&query, [slots * heads, rows], DType::F32);
    let scores = empty(&query, [slots * heads, rows], DType::F32);
    if rows * heads > 0 {
        let vector = vector_size(&[problem.head_dim, value_dim]);
        let (count, dim) = grid(&query, rows * heads);
        let dtype = element(&lengths);
        // SAFETY: a unit writes the entries of its own row and head. It reads stored siblings alone, as in `gather`.
        unsafe {
            context_scores_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.clone().into_buffer_arg(),
                value.into_buffer_arg(),
                lengths.clone().into_buffer_arg(),
                path.clone().into_buffer_arg(),
                grad.clone().into_buffer_arg(),
                weights.clone().into_buffer_arg(),
                scores.clone().into_buffer_arg(),
                problem.sizes(),
                problem.head_dim / vector,
                value_dim / vector,
                slots,
                dtype,
            );
        }
    }
    let steps = problem.shape.decisions() + 1;
    let d_query = problem.gather(
        key,
        scores.clone(),
        lengths.clone(),
        path.clone(),
        d_query,
        steps,
    );
    let d_key = problem.scatter(query, scores, lengths.clone(), path.clone(), slots);
    let d_value = problem.scatter(grad, weights, lengths, path, slots);
    (d_query, d_key, d_value)
}

pub(crate) fn policy_backward(
    inputs: TreeSearchInputs<CubeBackend>,
    path: CubeTensor,
    grad: CubeTensor,
    options: TreeSearchOptions,
) -> (CubeTensor, CubeTensor) {
    let axes = shapes::tree_search(&inputs, &options);
    axes.expect("path", "batch, queries, decisions + 1", &path.shape());
    axes.expect("grad", "2, batch, queries", &grad.shape());
    let problem = Problem {
        // The policy is over real children alone.
        ghosts: GhostNodes::Masked,
        ..Problem::new(&inputs.query, &options)
    };
    let [query, key, lengths] = [inputs.query, inputs.key, inputs.lengths].map(into_contiguous);
    let [path, grad] = [path, grad].map(into_contiguous);
    let (rows, heads) = (problem.rows(), problem.heads);
    let (slots, _) = slots(&problem.shape);
    let d_query = empty(&query, query.shape().dims::<4>(), DType::F32);
    let scores = empty(&query, [slots * heads, rows], DType::F32);
    if rows * slots * heads > 0 {
        let vector = vector_size(&[problem.head_dim]);
        let (count, dim) = grid(&query, rows);
        let dtype = element(&lengths);
        // SAFETY: a unit writes the entries of its own row. It reads stored siblings alone, as in `gather`.
        unsafe {
            policy_scores_kernel::launch_unchecked(
                &query.client,
                count,
                dim,
                vector,
                query.clone().into_buffer_arg(),
                key.clone().into_buffer_arg(),
                lengths.clone().into_buffer_arg(),
                path.clone().into_buffer_arg(),
                grad.into_buffer_arg(),
                scores.clone().into_buffer_arg(),
                problem.sizes(),
                problem.head_dim / vector,
                problem.inverse_temperature(),
                dtype,
            );
        }
    }
    let steps = problem.shape.decisions();
    let d_query = problem.gather(
        key,
        scores.clone(),
        lengths.clone(),
        path.clone(),
        d_query,
        steps,
    );
    let d_key = problem.scatter(query, scores, lengths, path, slots);
    (d_query, d_key)
}
