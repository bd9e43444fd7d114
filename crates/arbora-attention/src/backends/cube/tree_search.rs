//! Tree search and its gradients.
//!
//! A search is two launches: one unit per query walks down and leaves the weights of everything that it
//! attends to, then one unit per number of the context adds up. A gradient is three: weights and
//! gradients of scores; those of queries, by the same sum; and those of nodes. A unit of the last
//! owns one feature of every node that is the c-th child at its height, and reads the queries in
//! their order.

use super::{element, empty, grid, into_contiguous, shapes, vector_size, zeros};
use crate::ops::limits::{leaf_group, slots};
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{
    GhostNodes, RoutePrimitive, TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive,
};
use arbora_tree::{Layout, TokenTreeShape};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// How children are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Choice {
    Greedy,
    Sampled,
    Uniform,
    Given,
}

/// Sizes of a search, for a kernel. All are run-time numbers: one kernel serves every tree.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    rows: usize,
    queries: usize,
    heads: usize,
    /// Stored nodes of one example.
    nodes: usize,
    tokens: usize,
    branching: usize,
    leaf_group: usize,
    decisions: usize,
    /// Leaf slots under the root.
    root_span: usize,
    /// Stored nodes above the first siblings: the root, unless it is the only token.
    roots: usize,
    /// 1 if every level is stored whole, ghosts included.
    complete: usize,
    /// 1 if inner ghosts that are not chosen are attended to.
    ghosts: usize,
    scale: f32,
}

/// One group of siblings on the way down.
#[derive(CubeType)]
struct Siblings {
    group: usize,
    /// Position of the level's first node in an example.
    offset: usize,
    width: usize,
    span: usize,
    /// Index of the first sibling in its level.
    first: usize,
    /// Siblings over at least one token.
    real: usize,
    /// Siblings that may be attended to.
    scored: usize,
    /// Siblings on the levels above.
    slot: usize,
}

#[cube]
impl Siblings {
    /// Above the first siblings.
    fn above(sizes: &Sizes) -> Siblings {
        Siblings {
            group: 0usize,
            offset: 0usize,
            width: sizes.roots,
            span: sizes.root_span,
            first: 0usize,
            real: 0usize,
            scored: 0usize,
            slot: 0usize,
        }
    }

    /// Steps down to the children of the node of index `parent`.
    fn descend(&mut self, sizes: &Sizes, step: usize, parent: usize, length: usize) {
        let leaves = step == sizes.decisions;
        let group = select(leaves, sizes.leaf_group, sizes.branching);
        let span = self.span / group;
        let whole = self.width * group;
        let needed = sizes.tokens.div_ceil(span);
        let first = parent * group;
        let real = length.div_ceil(span);
        self.slot += self.group;
        self.offset += self.width;
        self.width = select(sizes.complete == 1, whole, needed);
        self.span = span;
        self.group = group;
        self.first = first;
        self.real = up_to(real, first, group);
        self.scored = select(
            sizes.ghosts == 1 && !leaves,
            up_to(self.width, first, group),
            self.real,
        );
    }
}

/// How many of the `group` entries from `first` on are below `end`.
#[cube]
fn up_to(end: usize, first: usize, group: usize) -> usize {
    let mut count = 0usize;
    if end > first {
        count = end - first;
    }
    if count > group {
        count = group;
    }
    count
}

/// A length or a step of a path as a position. A negative number is 0, as in the reference; the mere
/// conversion would make it a great one.
#[cube]
pub(super) fn position_of<I: Numeric>(number: I) -> usize {
    let mut position = 0usize;
    if number > I::from_int(0) {
        position = usize::cast_from(number);
    }
    position
}

/// Real tokens of the example of a row.
#[cube]
fn length_of<I: Numeric>(lengths: &[I], sizes: &Sizes, row: usize) -> usize {
    let length = position_of::<I>(lengths[row / sizes.queries]);
    select(length > sizes.tokens, sizes.tokens, length)
}

/// The child that a path takes, moved to the nearest real one.
#[cube]
fn child_of(next: usize, siblings: &Siblings) -> usize {
    let mut child = 0usize;
    if next > siblings.first {
        child = next - siblings.first;
    }
    let mut last = 0usize;
    if siblings.real > 0 {
        last = siblings.real - 1;
    }
    select(child > last, last, child)
}

/// The dot product of `count` vectors of two rows.
#[cube]
fn dot<N: Size>(
    left: &[Vector<f32, N>],
    left_at: usize,
    right: &[Vector<f32, N>],
    right_at: usize,
    count: usize,
) -> f32 {
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for at in 0..count {
        sum += left[left_at + at] * right[right_at + at];
    }
    sum.vector_sum()
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

/// Weights of attention in place of the logits of one head of a row. What is masked gets exactly 0.
#[cube]
fn softmax_of_slots(
    weights: &mut [f32],
    row: usize,
    rows: usize,
    head: usize,
    heads: usize,
    slots: usize,
) {
    let mut greatest = f32::new(MASKED);
    for slot in 0..slots {
        greatest = greatest.max(weights[(slot * heads + head) * rows + row]);
    }
    let mut total = 0.0f32;
    for slot in 0..slots {
        let at = (slot * heads + head) * rows + row;
        let logit = weights[at];
        let mut weight = 0.0f32;
        if logit != f32::new(MASKED) {
            weight = (logit - greatest).exp();
        }
        weights[at] = weight;
        total += weight;
    }
    // A row that keeps nothing has total 0; any positive divisor leaves it at 0.
    let inverse = 1.0f32 / total.max(SMALLEST);
    for slot in 0..slots {
        weights[(slot * heads + head) * rows + row] *= inverse;
    }
}

/// One unit per number of `output`, `[rows, heads * width]`: rows of nodes along the path, weighted.
#[cube(launch_unchecked)]
fn gather_kernel<I: Numeric>(
    table: &[f32],
    weights: &[f32],
    lengths: &[I],
    path: &[I],
    output: &mut [f32],
    sizes: &Sizes,
    width: usize,
    steps: usize,
    #[define(I)] _dtype: ElemType,
) {
    let (rows, heads) = (sizes.rows, sizes.heads);
    let features = heads * width;
    let position = ABSOLUTE_POS;
    if position >= rows * features {
        terminate!();
    }
    let row = position / features;
    let feature = position % features;
    let head = feature / width;
    let length = length_of::<I>(lengths, sizes, row);
    let root = (row / sizes.queries) * sizes.nodes;
    let mut siblings = Siblings::above(sizes);
    let mut sum = 0.0f32;
    for step in 0..steps {
        let parent = usize::cast_from(path[row * (sizes.decisions + 1) + step]);
        siblings.descend(sizes, step, parent, length);
        let base = root + siblings.offset + siblings.first;
        for child in 0..siblings.scored {
            let weight = weights[((siblings.slot + child) * heads + head) * rows + row];
            sum += weight * table[(base + child) * features + feature];
        }
    }
    output[position] = sum;
}

/// One unit per (example, slot, feature): adds the weighted rows of the example's queries to the nodes
/// of `output`, `[batch, nodes, heads * width]`, that are this child of their parent.
#[cube(launch_unchecked)]
fn scatter_kernel<I: Numeric>(
    table: &[f32],
    weights: &[f32],
    lengths: &[I],
    path: &[I],
    output: &mut [f32],
    sizes: &Sizes,
    width: usize,
    slots: usize,
    units: usize,
    #[define(I)] _dtype: ElemType,
) {
    let position = ABSOLUTE_POS;
    if position >= units {
        terminate!();
    }
    let (rows, heads) = (sizes.rows, sizes.heads);
    let features = heads * width;
    let feature = position % features;
    let head = feature / width;
    let slot = (position / features) % slots;
    let example = position / features / slots;
    let first_row = example * sizes.queries;
    let length = length_of::<I>(lengths, sizes, first_row);
    let step = select(
        slot < sizes.decisions * sizes.branching,
        slot / sizes.branching,
        sizes.decisions,
    );
    let child = slot - step * sizes.branching;
    let root = example * sizes.nodes;
    let mut siblings = Siblings::above(sizes);
    for above in 0..step + 1 {
        siblings.descend(sizes, above, 0usize, length);
    }
    let steps = sizes.decisions + 1;
    // Queries that share a node with the one before add to a register.
    let nowhere = root + sizes.nodes;
    let mut held = nowhere;
    let mut sum = 0.0f32;
    for query in 0..sizes.queries {
        let row = first_row + query;
        let index = usize::cast_from(path[row * steps + step]) * siblings.group + child;
        if index < siblings.width {
            let node = root + siblings.offset + index;
            if node != held {
                if held != nowhere {
                    output[held * features + feature] += sum;
                }
                held = node;
                sum = 0.0f32;
            }
            sum += weights[(slot * heads + head) * rows + row] * table[row * features + feature];
        }
    }
    if held != nowhere {
        output[held * features + feature] += sum;
    }
}

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

struct Problem {
    shape: TokenTreeShape,
    batch: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
    scale: f64,
    temperature: f64,
    ghosts: GhostNodes,
}

impl Problem {
    fn new(query: &CubeTensor, options: &TreeSearchOptions) -> Self {
        let [batch, queries, heads, head_dim] = query.shape().dims();
        Self {
            shape: options.shape,
            batch,
            queries,
            heads,
            head_dim,
            scale: options.scale.unwrap_or((head_dim as f64).powf(-0.5)),
            temperature: options.temperature,
            ghosts: options.ghosts,
        }
    }

    fn rows(&self) -> usize {
        self.batch * self.queries
    }

    fn inverse_temperature(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    fn sizes(&self) -> SizesLaunch {
        let shape = &self.shape;
        let inner = shape.height() > 0;
        SizesLaunch::new(
            self.rows(),
            self.queries,
            self.heads,
            shape.nodes(),
            shape.tokens(),
            shape.branching(),
            leaf_group(shape),
            shape.decisions(),
            shape.span(shape.height()),
            usize::from(inner),
            usize::from(inner && shape.layout() == Layout::Published),
            usize::from(self.ghosts == GhostNodes::Published),
            self.scale as f32,
        )
    }

    /// Rows of nodes along the path, weighted: `[rows, heads * width]` in the shape of `output`.
    fn gather(
        &self,
        table: CubeTensor,
        weights: CubeTensor,
        lengths: CubeTensor,
        path: CubeTensor,
        output: CubeTensor,
        steps: usize,
    ) -> CubeTensor {
        let width = output.shape()[3];
        let units = self.rows() * self.heads * width;
        if units == 0 {
            return output;
        }
        let (count, dim) = grid(&output, units);
        let dtype = element(&lengths);
        // SAFETY: a unit writes the number of its own position. It reads siblings that are stored, whatever node the path names:
        // `up_to` counts none of the others.
        unsafe {
            gather_kernel::launch_unchecked(
                &output.client,
                count,
                dim,
                table.into_buffer_arg(),
                weights.into_buffer_arg(),
                lengths.into_buffer_arg(),
                path.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                self.sizes(),
                width,
                steps,
                dtype,
            );
        }
        output
    }

    /// Weighted rows of queries, added to their nodes: `[batch, nodes, heads, width]`.
    fn scatter(
        &self,
        table: CubeTensor,
        weights: CubeTensor,
        lengths: CubeTensor,
        path: CubeTensor,
        slots: usize,
    ) -> CubeTensor {
        let width = table.shape()[3];
        let output = zeros(
            &table,
            [self.batch, self.shape.nodes(), self.heads, width].into(),
        );
        let units = self.batch * slots * self.heads * width;
        if units * self.queries == 0 {
            return output;
        }
        let (count, dim) = grid(&output, units);
        let dtype = element(&lengths);
        // SAFETY: a unit alone writes its feature of the nodes that are its child of their parent: siblings in other slots are
        // other nodes. It writes stored ones alone, whatever node the path names: it passes over indices past the level's width.
        unsafe {
            scatter_kernel::launch_unchecked(
                &output.client,
                count,
                dim,
                table.into_buffer_arg(),
                weights.into_buffer_arg(),
                lengths.into_buffer_arg(),
                path.into_buffer_arg(),
                output.clone().into_buffer_arg(),
                self.sizes(),
                width,
                slots,
                units,
                dtype,
            );
        }
        output
    }
}

pub(super) fn search(
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

pub(super) fn context_backward(
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

pub(super) fn policy_backward(
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
