//! Gradients of a tree build, level by level from the root.

use super::feed_forward::{normalize_backward, of_matrix, of_vector, transposed};
use super::*;
use crate::backends::cube::{softmax, softmax_backward};
use burn::backend::Slice;

/// One unit per number of the slots: the gradient of what a parent is the mean of, zero for ghosts.
#[cube(launch_unchecked)]
fn parents_backward_kernel<I: Numeric>(
    grad: &[f32],
    lengths: &[I],
    d_fed: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let dim = sizes.dim;
    let feature = ABSOLUTE_POS % dim;
    let slot = (ABSOLUTE_POS / dim) % sizes.slots;
    let example = ABSOLUTE_POS / dim / sizes.slots;
    let parent = slot / sizes.group;
    let mut number = 0.0f32;
    if is_real::<I>(lengths, sizes, example, slot) {
        let mut count = 0.0f32;
        for sibling in 0..sizes.group {
            if is_real::<I>(lengths, sizes, example, parent * sizes.group + sibling) {
                count += 1.0f32;
            }
        }
        let node = example * sizes.nodes + sizes.parents_offset + parent;
        number = grad[node * dim + feature] / count;
    }
    d_fed[ABSOLUTE_POS] = number;
}

/// One unit per (slot, head): its weights of attention among siblings and the gradients of its scores,
/// both `[batch * slots, heads, group]`.
#[cube(launch_unchecked)]
fn siblings_scores_kernel<I: Numeric>(
    query: &[f32],
    pairs: &[f32],
    lengths: &[I],
    d_context: &[f32],
    weights: &mut [f32],
    scores: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let (dim, heads) = (sizes.dim, sizes.heads);
    let head_dim = dim / heads;
    let row = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    let own = row * dim + head * head_dim;
    let slot = row % sizes.slots;
    let example = row / sizes.slots;
    let first = slot / sizes.group * sizes.group;
    let held = ABSOLUTE_POS * sizes.group;
    for sibling in 0..sizes.group {
        let mut logit = f32::new(MASKED);
        let mut score = 0.0f32;
        if is_real::<I>(lengths, sizes, example, first + sibling) {
            let key = (row - slot + first + sibling) * 2 * dim + head * head_dim;
            let mut product = 0.0f32;
            for feature in 0..head_dim {
                product += query[own + feature] * pairs[key + feature];
                score += d_context[own + feature] * pairs[key + dim + feature];
            }
            logit = product * sizes.scale;
        }
        weights[held + sibling] = logit;
        scores[held + sibling] = score;
    }
    softmax(weights, held, 1usize, sizes.group);
    softmax_backward(&*weights, scores, held, 1usize, sizes.group, sizes.scale);
}

/// One unit per number of a slot's query, key and value: their gradients through attention among
/// siblings.
#[cube(launch_unchecked)]
fn siblings_backward_kernel(
    query: &[f32],
    pairs: &[f32],
    d_context: &[f32],
    weights: &[f32],
    scores: &[f32],
    d_query: &mut [f32],
    d_pairs: &mut [f32],
    units: usize,
    sizes: &Sizes,
) {
    end_past(units);
    let (dim, heads) = (sizes.dim, sizes.heads);
    let column = ABSOLUTE_POS % (3 * dim);
    let row = ABSOLUTE_POS / (3 * dim);
    let feature = column % dim;
    let head = feature / (dim / heads);
    let group = sizes.group;
    let place = row % group;
    let first = row - place;
    let mut sum = 0.0f32;
    if column < dim {
        for sibling in 0..group {
            let score = scores[(row * heads + head) * group + sibling];
            sum += score * pairs[(first + sibling) * 2 * dim + feature];
        }
        d_query[row * dim + feature] = sum;
    } else {
        // What this row is to the queries of its siblings.
        for sibling in 0..group {
            let from = first + sibling;
            let at = (from * heads + head) * group + place;
            if column < 2 * dim {
                sum += scores[at] * query[from * dim + feature];
            } else {
                sum += weights[at] * d_context[from * dim + feature];
            }
        }
        d_pairs[row * 2 * dim + column - dim] = sum;
    }
}

/// One unit per number of the stored children: adds their two gradients to those they have.
#[cube(launch_unchecked)]
fn children_backward_kernel(
    first: &[f32],
    second: &[f32],
    grad: &mut [f32],
    units: usize,
    sizes: &Sizes,
) {
    end_past(units);
    let dim = sizes.dim;
    let feature = ABSOLUTE_POS % dim;
    let child = (ABSOLUTE_POS / dim) % sizes.children;
    let example = ABSOLUTE_POS / dim / sizes.children;
    let at = (example * sizes.slots + child) * dim + feature;
    let node = example * sizes.nodes + sizes.children_offset + child;
    grad[node * dim + feature] += first[at] + second[at];
}

pub(crate) fn backward(
    nodes: CubeTensor,
    lengths: CubeTensor,
    block: BlockPrimitive<CubeBackend>,
    grad: CubeTensor,
    options: TreeBuildOptions,
) -> TreeBuildGradients<CubeBackend> {
    let rows = [("nodes", &nodes.shape()), ("nodes", &grad.shape())];
    shapes::tree_build(&rows, &lengths.shape(), &block, &options);
    let [batch, _, dim] = nodes.shape().dims();
    let build = Build::new(into_contiguous(nodes), lengths, block, options);
    let grad = into_contiguous(grad);
    // Children add to it in place.
    let grad = if options.detach_children {
        grad
    } else {
        grad.copy()
    };
    let levels = if batch * dim > 0 {
        options.shape.height()
    } else {
        0
    };
    let add = |(total, level): (CubeTensor, _)| CubeBackend::float_add(total, level);
    let total = (1..=levels)
        .rev()
        .map(|height| build.level_backward(height, &grad))
        .reduce(|total, level| total.into_iter().zip(level).map(add).collect());
    let block = build.block.clone();
    let block = match total {
        None => block.map(|weight| zeros(&weight, weight.shape())),
        Some(mut total) => {
            let columns = |first: usize| {
                let columns = Slice::new(first as isize, Some((first + dim) as isize), 1);
                CubeBackend::float_slice(total[PAIRS].clone(), &[Slice::full(), columns])
            };
            let [key, value] = [columns(0), columns(dim)];
            total[PAIRS] = key;
            total.insert(PAIRS + 1, value);
            let mut total = total.into_iter();
            block.map(|_| total.next().expect("a gradient of each weight"))
        }
    };
    let leaves = floats(&grad, [batch, options.shape.width(0), dim]);
    build.leaves(&grad, &leaves, true);
    TreeBuildGradients { leaves, block }
}

/// Where the gradients of a level have those of `W_k` and `W_v` side by side.
const PAIRS: usize = 3;

impl Build {
    /// Gradients of the weights through all nodes of a height, in the order of `map` but for [`PAIRS`]. Adds those of the children
    /// to `grad`, unless they stop there.
    fn level_backward(&self, height: usize, grad: &CubeTensor) -> Vec<CubeTensor> {
        let (below, dtype) = (height - 1, element(&self.lengths));
        let (rows, dim, heads) = (self.slots(height), self.dim, self.options.heads);
        let block = &self.block;
        let found = self.activations(height);
        let d_fed = self.empty(rows, dim);
        // SAFETY: a unit writes its own number, and reads one of its parent; parents of slots are stored.
        unsafe {
            launch!(
                parents_backward_kernel(rows * dim, self.sizes(below), dtype),
                [grad, self.lengths, d_fed]
            );
        }
        let (rows_of, weights_of) = (&found.attended, &block.feed_forward);
        let (d_attended, of_feed_forward) =
            (found.feed_forward).backward(rows_of, weights_of, d_fed, self.epsilon());

        let d_context = product(&d_attended, &transposed(&block.output));
        let (query, pairs, group) = (&found.query, &found.pairs, self.options.shape.group(height));
        let [weights, scores] = [(); 2].map(|()| self.empty(rows, heads * group));
        // SAFETY: a unit writes the entries of its own row and head, and reads rows of its own group.
        unsafe {
            launch!(
                siblings_scores_kernel(rows * heads, self.sizes(below), dtype),
                [query, pairs, self.lengths, d_context, weights, scores]
            );
        }
        let d_query = self.empty(rows, dim);
        let d_pairs = self.empty(rows, 2 * dim);
        // SAFETY: a unit writes its own number, and reads rows of its own group.
        unsafe {
            launch!(
                siblings_backward_kernel(rows * 3 * dim, self.sizes(below)),
                [query, pairs, d_context, weights, scores, d_query, d_pairs]
            );
        }

        let through_query = product(&d_query, &transposed(&block.query));
        let parts = [&d_attended, &through_query];
        let [d_normalized, d_factor, d_children] =
            normalize_backward(&found.children, &block.norm_gamma, parts, self.epsilon());
        if !self.options.detach_children {
            let through_pairs = product(&d_pairs, &transposed(&self.pairs));
            let units = self.batch * self.options.shape.width(below) * dim;
            // SAFETY: a unit adds to its own number of a stored child, whose slot there is. `backward` copied what it adds to.
            unsafe {
                launch!(
                    children_backward_kernel(units, self.sizes(below)),
                    [d_children, through_pairs, grad]
                );
            }
        }
        let of_attention = [
            of_vector(d_factor),
            of_vector(d_normalized),
            of_matrix(&found.normalized, &d_query),
            of_matrix(&found.children, &d_pairs),
            of_matrix(&found.context, &d_attended),
            of_vector(d_attended),
        ];
        of_attention.into_iter().chain(of_feed_forward).collect()
    }
}
