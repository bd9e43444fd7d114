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
    units: usize,
    sizes: &Sizes,
    head_vectors: usize,
    value_vectors: usize,
    #[define(I)] _dtype: ElemType,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let heads = sizes.heads;
    let row = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    let steps = sizes.decisions + 1;
    let mut siblings = Siblings::above::<I>(lengths, sizes, row);
    for step in 0..steps {
        siblings.follow::<I>(path, sizes, row, step);
        let mut chosen = siblings.group;
        if step < sizes.decisions {
            let next = usize::cast_from(path[row * steps + step + 1]);
            chosen = siblings.child(next);
        }
        for child in 0..siblings.group {
            let mut logit = f32::new(MASKED);
            let mut score = 0.0f32;
            if child < siblings.scored && child != chosen {
                let at = (siblings.node() + child) * heads + head;
                logit = dot::<N>(query, ABSOLUTE_POS, key, at, head_vectors) * sizes.scale;
                // The gradient of a weight is the value's product with that of the context.
                score = dot::<N>(grad, ABSOLUTE_POS, value, at, value_vectors);
            }
            let at = weight_at(sizes, siblings.slot + child, head, row);
            weights[at] = logit;
            scores[at] = score;
        }
    }
    let first = head * sizes.rows + row;
    let stride = heads * sizes.rows;
    softmax(weights, first, stride, sizes.slots);
    softmax_backward(&*weights, scores, first, stride, sizes.slots, sizes.scale);
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
    units: usize,
    sizes: &Sizes,
    head_vectors: usize,
    #[define(I)] _dtype: ElemType,
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let row = ABSOLUTE_POS;
    let (rows, heads) = (sizes.rows, sizes.heads);
    let steps = sizes.decisions + 1;
    let head_weight = 1.0f32 / f32::cast_from(heads);
    // From the slot of one child to that of the next.
    let stride = heads * rows;
    // The mean over real decisions needs their number first.
    let mut decided = 0.0f32;
    let mut counted = Siblings::above::<I>(lengths, sizes, row);
    for step in 0..sizes.decisions {
        counted.follow::<I>(path, sizes, row, step);
        if counted.real > 1 {
            decided += 1.0f32;
        }
    }

    let mut siblings = Siblings::above::<I>(lengths, sizes, row);
    for step in 0..sizes.decisions {
        siblings.follow::<I>(path, sizes, row, step);
        let real = siblings.real;
        let next = usize::cast_from(path[row * steps + step + 1]);
        let chosen = siblings.child(next);
        let mut probability_of_chosen = 0.0f32;
        for head in 0..heads {
            // Probabilities wait where scores will be.
            let first = weight_at(sizes, siblings.slot, head, row);
            for child in 0..real {
                let at = (siblings.node() + child) * heads + head;
                let product = dot::<N>(query, row * heads + head, key, at, head_vectors);
                let logit = product * sizes.scale * sizes.inverse_temperature;
                scores[first + child * stride] = logit;
            }
            softmax(scores, first, stride, real);
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
        let factor = sizes.inverse_temperature * sizes.scale;
        for head in 0..heads {
            let first = weight_at(sizes, siblings.slot, head, row);
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
    let (problem, value) = Problem::new(inputs, Some(path), options);
    let names = "batch, queries, heads, value_dim";
    problem.axes.expect("grad", names, &grad.shape());
    let [query, key, lengths, path] = problem.inputs();
    let [value, grad] = [value, grad].map(into_contiguous);
    let [_, _, heads, head_dim] = problem.dims();
    let value_dim = value.shape()[3];
    let (_, slots) = slots(&options.shape);
    let [weights, scores] = [(); 2].map(|()| floats(query, [slots * heads, problem.rows()]));
    let vector = vector_size(&[head_dim, value_dim]);
    let (widths, dtype) = (
        [head_dim, value_dim].map(|dim| dim / vector),
        element(lengths),
    );
    let units = problem.rows() * heads;
    // SAFETY: a unit writes the entries of its own row and head. It reads stored siblings alone, as in `gather`.
    unsafe {
        launch!(
            context_scores_kernel(units, problem.sizes(), widths[0], widths[1], dtype, vector),
            [query, key, value, lengths, path, grad, weights, scores]
        );
    }
    let d_query = problem.gather(key, &scores, options.shape.decisions() + 1);
    let d_key = problem.scatter(query, &scores, slots);
    let d_value = problem.scatter(&grad, &weights, slots);
    (d_query, d_key, d_value)
}

pub(crate) fn policy_backward(
    inputs: TreeSearchInputs<CubeBackend>,
    path: CubeTensor,
    grad: CubeTensor,
    options: TreeSearchOptions,
) -> (CubeTensor, CubeTensor) {
    let options = TreeSearchOptions {
        // The policy is over real children alone.
        ghosts: GhostNodes::Masked,
        ..options
    };
    let (problem, _) = Problem::new(inputs, Some(path), options);
    let names = "2, batch, queries";
    problem.axes.expect("grad", names, &grad.shape());
    let [query, key, lengths, path] = problem.inputs();
    let grad = into_contiguous(grad);
    let [_, _, heads, head_dim] = problem.dims();
    let rows = problem.rows();
    let (slots, _) = slots(&options.shape);
    let scores = floats(query, [slots * heads, rows]);
    let vector = vector_size(&[head_dim]);
    let (width, dtype) = (head_dim / vector, element(lengths));
    let units = if slots * heads > 0 { rows } else { 0 };
    // SAFETY: a unit writes the entries of its own row. It reads stored siblings alone, as in `gather`.
    unsafe {
        launch!(
            policy_scores_kernel(units, problem.sizes(), width, dtype, vector),
            [query, key, lengths, path, grad, scores]
        );
    }
    let d_query = problem.gather(key, &scores, options.shape.decisions());
    let d_key = problem.scatter(query, &scores, slots);
    (d_query, d_key)
}
