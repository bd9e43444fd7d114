//! The search of trees: one unit per query, then the context feature by feature.

use super::*;

/// One unit per row: walks down, and leaves the weights of the final attention in `weights`,
/// `[slots * heads + widest, rows]`, whose last entries hold the policy of the current level.
#[cube(launch_unchecked)]
fn search_kernel<R: Numeric, I: Numeric, N: Size>(
    query: &[Vector<f32, N>],
    key: &[Vector<f32, N>],
    lengths: &[I],
    choices: &[R],
    weights: &mut [f32],
    path: &mut [I],
    policy: &mut [f32],
    counts: &mut [I],
    sizes: &Sizes,
    head_vectors: usize,
    slots: usize,
    choices_per_row: usize,
    inverse_temperature: f32,
    #[comptime] choice: Choice,
    #[define(R, I)] _dtypes: [ElemType; 2],
) {
    let row = ABSOLUTE_POS;
    if row >= sizes.rows {
        terminate!();
    }
    let (rows, heads) = (sizes.rows, sizes.heads);
    let length = length_of::<I>(lengths, sizes, row);
    let root = (row / sizes.queries) * sizes.nodes;
    let head_weight = 1.0f32 / f32::cast_from(heads);
    let held = slots * heads; // where the policy is
    let mut siblings = Siblings::above(sizes);
    let mut node = 0usize;
    let mut log_prob = 0.0f32;
    let mut entropy = 0.0f32;
    let mut decided = 0usize;
    let mut selected = 0usize;
    let mut read = 0usize;
    path[row * (sizes.decisions + 1)] = I::cast_from(node);

    for step in 0..sizes.decisions + 1 {
        siblings.descend(sizes, step, node, length);
        let (group, real, scored) = (siblings.group, siblings.real, siblings.scored);
        let first_slot = siblings.slot;
        read += real;
        let base = root + siblings.offset + siblings.first;
        for child in 0..group {
            for head in 0..heads {
                let mut logit = f32::new(MASKED);
                if child < scored {
                    let product = dot::<N>(
                        query,
                        (row * heads + head) * head_vectors,
                        key,
                        ((base + child) * heads + head) * head_vectors,
                        head_vectors,
                    );
                    logit = product * sizes.scale;
                }
                weights[((first_slot + child) * heads + head) * rows + row] = logit;
            }
        }

        if step == sizes.decisions {
            selected += real;
        } else {
            for child in 0..group {
                weights[(held + child) * rows + row] = 0.0f32;
            }
            let mut step_entropy = 0.0f32;
            for head in 0..heads {
                let mut greatest = f32::new(MASKED);
                for child in 0..real {
                    let logit = weights[((first_slot + child) * heads + head) * rows + row];
                    greatest = greatest.max(logit);
                }
                let mut total = 0.0f32;
                let mut spread = 0.0f32;
                for child in 0..real {
                    let logit = weights[((first_slot + child) * heads + head) * rows + row];
                    let shifted = (logit - greatest) * inverse_temperature;
                    let exponential = shifted.exp();
                    total += exponential;
                    spread += exponential * shifted;
                }
                let inverse = 1.0f32 / total.max(SMALLEST);
                for child in 0..real {
                    let logit = weights[((first_slot + child) * heads + head) * rows + row];
                    let shifted = (logit - greatest) * inverse_temperature;
                    weights[(held + child) * rows + row] += shifted.exp() * inverse * head_weight;
                }
                step_entropy += total.max(SMALLEST).ln() - spread * inverse;
            }
            if comptime![choice == Choice::Uniform] {
                for child in 0..real {
                    weights[(held + child) * rows + row] = 1.0f32 / f32::cast_from(real);
                }
            }

            let mut next = siblings.first;
            if comptime![choice == Choice::Greedy] {
                let mut best = f32::new(-1.0);
                for child in 0..real {
                    let probability = weights[(held + child) * rows + row];
                    if probability > best {
                        best = probability;
                        next = siblings.first + child;
                    }
                }
            }
            if comptime![choice == Choice::Given] {
                next = position_of::<R>(choices[row * choices_per_row + step + 1]);
            }
            if comptime![choice == Choice::Sampled || choice == Choice::Uniform] {
                let mut whole = 0.0f32;
                for child in 0..real {
                    whole += weights[(held + child) * rows + row];
                }
                // Indexed by height, so that padding to a higher tree moves no number.
                let at = row * choices_per_row + sizes.decisions - 1 - step;
                let threshold = f32::cast_from(choices[at]) * whole;
                let mut cumulative = 0.0f32;
                let mut drawn = 0usize;
                let mut last_positive = 0usize;
                for child in 0..real {
                    cumulative += weights[(held + child) * rows + row];
                    if cumulative <= threshold {
                        drawn += 1;
                    }
                    if cumulative < whole {
                        last_positive += 1;
                    }
                }
                next = siblings.first + select(drawn > last_positive, last_positive, drawn);
            }
            let child = child_of(next, &siblings);

            // With fewer than two real siblings the step is forced: no decision.
            if real > 1 {
                // A given path may take a child whose probability underflows to 0.
                let picked = weights[(held + child) * rows + row].max(f32::MIN_POSITIVE);
                log_prob += picked.ln();
                entropy += step_entropy * head_weight;
                decided += 1;
            }
            // The chosen node is not attended to.
            for head in 0..heads {
                weights[((first_slot + child) * heads + head) * rows + row] = f32::new(MASKED);
            }
            selected += scored;
            if child < scored {
                selected -= 1;
            }
            node = siblings.first + child;
            path[row * (sizes.decisions + 1) + step + 1] = I::cast_from(node);
        }
    }

    for head in 0..heads {
        softmax_of_slots(weights, row, rows, head, heads, slots);
    }
    let mut divisor = 1.0f32;
    if decided > 1 {
        divisor = f32::cast_from(decided);
    }
    policy[row] = log_prob;
    policy[rows + row] = entropy / divisor;
    counts[row] = I::cast_from(decided);
    counts[rows + row] = I::cast_from(selected);
    counts[2 * rows + row] = I::cast_from(read);
}

pub(crate) fn search(
    inputs: TreeSearchInputs<CubeBackend>,
    route: RoutePrimitive<CubeBackend>,
    options: TreeSearchOptions,
) -> TreeSearchPrimitive<CubeBackend> {
    let axes = shapes::tree_search(&inputs, &options);
    match &route {
        RoutePrimitive::Greedy => {}
        RoutePrimitive::Sampled(numbers) | RoutePrimitive::Uniform(numbers) => {
            shapes::draws(&axes, &numbers.shape(), &options);
        }
        RoutePrimitive::Given(path) => {
            axes.expect("path", "batch, queries, decisions + 1", &path.shape());
        }
    }
    let problem = Problem::new(&inputs.query, &options);
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
    let lengths = into_contiguous(inputs.lengths);
    let (batch, queries, rows) = (problem.batch, problem.queries, problem.rows());
    let (heads, steps) = (problem.heads, problem.shape.decisions() + 1);
    let value_dim = value.shape()[3];
    let context = empty(&query, [batch, queries, heads, value_dim], DType::F32);
    let path = empty(&query, [batch, queries, steps], lengths.dtype);
    let policy = empty(&query, [2, batch, queries], DType::F32);
    let counts = empty(&query, [3, batch, queries], lengths.dtype);
    let found = TreeSearchPrimitive {
        context: context.clone(),
        path: path.clone(),
        policy: policy.clone(),
        counts: counts.clone(),
    };
    if rows == 0 {
        return found;
    }

    let (_, slots) = slots(&problem.shape);
    let held = slots * heads + problem.shape.branching();
    let weights = empty(&query, [held, rows], DType::F32);
    let (choice, choices) = match route {
        // Never read; a kernel takes the same number of buffers for every choice.
        RoutePrimitive::Greedy => (Choice::Greedy, lengths.clone()),
        RoutePrimitive::Sampled(numbers) => (Choice::Sampled, into_contiguous(numbers)),
        RoutePrimitive::Uniform(numbers) => (Choice::Uniform, into_contiguous(numbers)),
        RoutePrimitive::Given(path) => (Choice::Given, into_contiguous(path)),
    };
    let choices_per_row = choices.shape().num_elements() / rows;
    let vector = vector_size(&[problem.head_dim]);
    let (count, dim) = grid(&query, rows);
    let dtypes = [element(&choices), element(&lengths)];
    // SAFETY: a unit writes the entries of its own row. A step goes to a real child or, in an example without tokens, to the first,
    // whatever a given path names (`child_of`): both are stored. A length counts as the number of tokens at most (`length_of`).
    unsafe {
        search_kernel::launch_unchecked(
            &query.client,
            count,
            dim,
            vector,
            query.clone().into_buffer_arg(),
            key.into_buffer_arg(),
            lengths.clone().into_buffer_arg(),
            choices.into_buffer_arg(),
            weights.clone().into_buffer_arg(),
            path.clone().into_buffer_arg(),
            policy.into_buffer_arg(),
            counts.into_buffer_arg(),
            problem.sizes(),
            problem.head_dim / vector,
            slots,
            choices_per_row,
            problem.inverse_temperature(),
            choice,
            dtypes,
        );
    }
    problem.gather(value, weights, lengths, path, context, steps);
    found
}
