//! The search of trees: one unit per query, then the context feature by feature.

use super::*;

/// How children are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Choice {
    Greedy,
    Sampled,
    Uniform,
    Given,
}

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
    units: usize,
    sizes: &Sizes,
    head_vectors: usize,
    choices_per_row: usize,
    #[comptime] choice: Choice,
    #[define(R, I)] _dtypes: [ElemType; 2],
    #[define(N)] _vector: usize,
) {
    end_past(units);
    let row = ABSOLUTE_POS;
    let (rows, heads) = (sizes.rows, sizes.heads);
    let head_weight = 1.0f32 / f32::cast_from(heads);
    let held = sizes.slots * heads; // where the policy is
    let mut siblings = Siblings::above::<I>(lengths, sizes, row);
    let mut node = 0usize;
    let mut log_prob = 0.0f32;
    let mut entropy = 0.0f32;
    let mut decided = 0usize;
    let mut selected = 0usize;
    let mut read = 0usize;
    path[row * (sizes.decisions + 1)] = I::cast_from(node);

    for step in 0..sizes.decisions + 1 {
        siblings.descend(sizes, step, node);
        let (group, real, scored) = (siblings.group, siblings.real, siblings.scored);
        let first_slot = siblings.slot;
        read += real;
        for child in 0..group {
            for head in 0..heads {
                let mut logit = f32::new(MASKED);
                if child < scored {
                    let at = (siblings.node() + child) * heads + head;
                    let product = dot::<N>(query, row * heads + head, key, at, head_vectors);
                    logit = product * sizes.scale;
                }
                weights[weight_at(sizes, first_slot + child, head, row)] = logit;
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
                    let logit = weights[weight_at(sizes, first_slot + child, head, row)];
                    greatest = greatest.max(logit);
                }
                let mut total = 0.0f32;
                let mut spread = 0.0f32;
                for child in 0..real {
                    let logit = weights[weight_at(sizes, first_slot + child, head, row)];
                    let shifted = (logit - greatest) * sizes.inverse_temperature;
                    let exponential = shifted.exp();
                    total += exponential;
                    spread += exponential * shifted;
                }
                let inverse = 1.0f32 / total.max(SMALLEST);
                for child in 0..real {
                    let logit = weights[weight_at(sizes, first_slot + child, head, row)];
                    let shifted = (logit - greatest) * sizes.inverse_temperature;
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
            let child = siblings.child(next);

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
                weights[weight_at(sizes, first_slot + child, head, row)] = f32::new(MASKED);
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
        softmax(weights, head * rows + row, heads * rows, sizes.slots);
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
    let (problem, value) = Problem::new(inputs, None, options);
    let [batch, queries, heads, head_dim] = problem.dims();
    let rows = problem.rows();
    let [query, key, lengths, path] = problem.inputs();
    // A kernel takes the same number of buffers for every choice.
    let (choice, choices) = match route {
        RoutePrimitive::Greedy => (Choice::Greedy, lengths.clone()),
        RoutePrimitive::Sampled(uniforms) => (Choice::Sampled, uniforms),
        RoutePrimitive::Uniform(uniforms) => (Choice::Uniform, uniforms),
        RoutePrimitive::Given(path) => (Choice::Given, path),
    };
    match choice {
        Choice::Greedy => {}
        Choice::Sampled | Choice::Uniform => {
            shapes::draws(&problem.axes, &choices.shape(), &options);
        }
        Choice::Given => problem.axes.expect("path", PATH, &choices.shape()),
    }
    let choices = into_contiguous(choices);
    let choices_per_row = choices.shape().num_elements() / rows.max(1);
    let policy = floats(query, [2, batch, queries]);
    let counts = empty(query, [3, batch, queries], lengths.dtype);
    let (_, slots) = slots(&options.shape);
    let held = slots * heads + options.shape.branching();
    let weights = floats(query, [held, rows]);
    let vector = vector_size(&[head_dim]);
    let (sizes, width) = (problem.sizes(), head_dim / vector);
    let dtypes = [element(&choices), element(lengths)];
    // SAFETY: a unit writes the entries of its own row. A step goes to a real child or, in an example without tokens, to the first,
    // whatever a given path names (`child`): both are stored. A length counts as the number of tokens at most (`above`).
    unsafe {
        launch!(
            search_kernel(rows, sizes, width, choices_per_row, choice, dtypes, vector),
            [query, key, lengths, choices, weights, path, policy, counts]
        );
    }
    let steps = options.shape.decisions() + 1;
    TreeSearchPrimitive {
        context: problem.gather(&into_contiguous(value), &weights, steps),
        path: problem.path,
        policy,
        counts,
    }
}
