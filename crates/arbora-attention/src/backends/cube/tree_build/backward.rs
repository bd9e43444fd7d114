//! Gradients of a tree build, level by level from the root.

use super::*;
use crate::ops::FeedForwardPrimitive;

/// One unit per number of the slots: the gradient of what a parent is the mean of, zero for ghosts.
#[cube(launch_unchecked)]
fn parents_backward_kernel<I: Numeric>(
    grad: &[f32],
    lengths: &[I],
    d_fed: &mut [f32],
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
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

/// One unit per gated number: the gradients of its value and its gate, side by side.
#[cube(launch_unchecked)]
pub(crate) fn gate_backward_kernel(
    inner: &[f32],
    bias: &[f32],
    d_gated: &[f32],
    d_inner: &mut [f32],
    ff: usize,
    units: usize,
) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let feature = ABSOLUTE_POS % ff;
    let at = ABSOLUTE_POS / ff * 2 * ff + feature;
    let value = inner[at] + bias[feature];
    let gate = inner[at + ff] + bias[ff + feature];
    let share = 0.5f32 * (1.0f32 + Erf::erf(gate * FRAC_1_SQRT_2));
    let density = (gate * gate * -0.5f32).exp() * DENSITY_AT_ZERO;
    let grad = d_gated[ABSOLUTE_POS];
    d_inner[at] = grad * gate * share;
    d_inner[at + ff] = grad * value * (share + gate * density);
}

/// One unit per row: the gradient of a normalised row, given that of the normalisation in two parts.
/// Leaves their sum in `shift`, of which the gradient of beta is the sum over rows, and that times the
/// normalised row in `factor`, for gamma.
#[cube(launch_unchecked)]
pub(crate) fn normalize_backward_kernel(
    rows: &[f32],
    gamma: &[f32],
    first: &[f32],
    second: &[f32],
    shift: &mut [f32],
    factor: &mut [f32],
    d_rows: &mut [f32],
    dim: usize,
    units: usize,
    epsilon: f32,
) {
    let row = ABSOLUTE_POS;
    if row >= units {
        terminate!();
    }
    let at = row * dim;
    let width = f32::cast_from(dim);
    let mut sum = 0.0f32;
    for feature in 0..dim {
        sum += rows[at + feature];
    }
    let mean = sum / width;
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = rows[at + feature] - mean;
        squares += centered * centered;
    }
    let inverse = 1.0f32 / (squares / width + epsilon).sqrt();
    let mut along_ones = 0.0f32;
    let mut along_row = 0.0f32;
    for feature in 0..dim {
        let grad = first[at + feature] + second[at + feature];
        let normalized = (rows[at + feature] - mean) * inverse;
        shift[at + feature] = grad;
        factor[at + feature] = grad * normalized;
        along_ones += grad * gamma[feature];
        along_row += grad * gamma[feature] * normalized;
    }
    along_ones /= width;
    along_row /= width;
    for feature in 0..dim {
        let normalized = (rows[at + feature] - mean) * inverse;
        let scaled = shift[at + feature] * gamma[feature];
        d_rows[at + feature] = (scaled - along_ones - normalized * along_row) * inverse;
    }
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
    sizes: &Sizes,
    scale: f32,
    head_dim: usize,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let dim = sizes.dim;
    let heads = dim / head_dim;
    let row = ABSOLUTE_POS / heads;
    let head = ABSOLUTE_POS % heads;
    let own = row * dim + head * head_dim;
    let slot = row % sizes.slots;
    let example = row / sizes.slots;
    let first = slot / sizes.group * sizes.group;
    let held = ABSOLUTE_POS * sizes.group;
    let mut greatest = f32::new(MASKED);
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
            logit = product * scale;
        }
        weights[held + sibling] = logit;
        scores[held + sibling] = score;
        greatest = greatest.max(logit);
    }
    let mut total = 0.0f32;
    for sibling in 0..sizes.group {
        let mut weight = 0.0f32;
        if is_real::<I>(lengths, sizes, example, first + sibling) {
            weight = (weights[held + sibling] - greatest).exp();
        }
        weights[held + sibling] = weight;
        total += weight;
    }
    let inverse = 1.0f32 / total.max(SMALLEST);
    let mut mean = 0.0f32;
    for sibling in 0..sizes.group {
        let weight = weights[held + sibling] * inverse;
        weights[held + sibling] = weight;
        mean += weight * scores[held + sibling];
    }
    for sibling in 0..sizes.group {
        let centered = scores[held + sibling] - mean;
        scores[held + sibling] = weights[held + sibling] * centered * scale;
    }
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
    sizes: &Sizes,
    head_dim: usize,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let dim = sizes.dim;
    let heads = dim / head_dim;
    let column = ABSOLUTE_POS % (3 * dim);
    let row = ABSOLUTE_POS / (3 * dim);
    let feature = column % dim;
    let head = feature / head_dim;
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
fn children_backward_kernel(first: &[f32], second: &[f32], grad: &mut [f32], sizes: &Sizes) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let dim = sizes.dim;
    let feature = ABSOLUTE_POS % dim;
    let child = (ABSOLUTE_POS / dim) % sizes.children;
    let example = ABSOLUTE_POS / dim / sizes.children;
    let at = (example * sizes.slots + child) * dim + feature;
    let node = example * sizes.nodes + sizes.children_offset + child;
    grad[node * dim + feature] += first[at] + second[at];
}

/// One unit per number of the leaves: their gradients, zero for ghosts.
#[cube(launch_unchecked)]
fn leaves_backward_kernel<I: Numeric>(
    grad: &[f32],
    lengths: &[I],
    d_leaves: &mut [f32],
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
    let feature = ABSOLUTE_POS % sizes.dim;
    let leaf = (ABSOLUTE_POS / sizes.dim) % sizes.children;
    let example = ABSOLUTE_POS / sizes.dim / sizes.children;
    let mut number = 0.0f32;
    if leaf < position_of::<I>(lengths[example]) {
        let node = example * sizes.nodes + sizes.children_offset + leaf;
        number = grad[node * sizes.dim + feature];
    }
    d_leaves[ABSOLUTE_POS] = number;
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
    let mut total: Option<Weights> = None;
    if batch * dim > 0 {
        for height in (1..=options.shape.height()).rev() {
            let level = build.level_backward(height, &grad);
            total = Some(match total {
                None => level,
                Some(total) => std::array::from_fn(|at| {
                    CubeBackend::float_add(total[at].clone(), level[at].clone())
                }),
            });
        }
    }
    let block = &build.block;
    let block = match total {
        None => block.clone().map(|weight| zeros(&weight, weight.shape())),
        Some(total) => {
            let [
                norm_gamma,
                norm_beta,
                query,
                pairs,
                output,
                output_bias,
                feed_forward_norm_gamma,
                feed_forward_norm_beta,
                inner,
                inner_bias,
                outer,
                outer_bias,
            ] = total;
            let vector = |row: CubeTensor| {
                let [_, width] = row.shape().dims();
                CubeBackend::float_reshape(row, [width].into())
            };
            let columns = |first: usize| {
                let rows = Slice::new(0, Some(dim as isize), 1);
                let columns = Slice::new(first as isize, Some((first + dim) as isize), 1);
                CubeBackend::float_slice(pairs.clone(), &[rows, columns])
            };
            BlockPrimitive {
                norm_gamma: vector(norm_gamma),
                norm_beta: vector(norm_beta),
                query,
                key: columns(0),
                value: columns(dim),
                output,
                output_bias: vector(output_bias),
                feed_forward: FeedForwardPrimitive {
                    norm_gamma: vector(feed_forward_norm_gamma),
                    norm_beta: vector(feed_forward_norm_beta),
                    inner,
                    inner_bias: vector(inner_bias),
                    outer,
                    outer_bias: vector(outer_bias),
                },
            }
        }
    };
    let leaves = match batch * dim {
        0 => empty(&grad, [batch, options.shape.width(0), dim], DType::F32),
        _ => build.leaves_backward(&grad),
    };
    TreeBuildGradients { leaves, block }
}

impl Build {
    /// Gradients of the weights through all nodes of a height. Adds those of the children to `grad`,
    /// unless they stop there.
    fn level_backward(&self, height: usize, grad: &CubeTensor) -> Weights {
        let (shape, below) = (&self.options.shape, height - 1);
        let rows = self.batch * shape.width(height) * shape.group(height);
        let (dim, ff, heads) = (self.dim, self.ff, self.options.heads);
        let head_dim = dim / heads;
        let client = &self.nodes.client;
        let block = &self.block;
        let found = self.activations(height);

        let d_fed = self.empty(rows, dim);
        let (count, cube) = grid(&d_fed, rows * dim);
        // SAFETY: a unit writes its own number, and reads one of its parent; parents of slots are stored.
        unsafe {
            parents_backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(grad),
                buffer(&self.lengths),
                buffer(&d_fed),
                self.sizes(below, rows * dim),
                element(&self.lengths),
            );
        }

        let d_gated = product(&d_fed, &transposed(&block.feed_forward.outer));
        let d_inner = self.empty(rows, 2 * ff);
        let (count, cube) = grid(&d_inner, rows * ff);
        // SAFETY: a unit writes its own value and gate, and reads the same, `ff` apart in rows of `2 * ff`.
        unsafe {
            gate_backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&found.inner),
                buffer(&block.feed_forward.inner_bias),
                buffer(&d_gated),
                buffer(&d_inner),
                ff,
                rows * ff,
            );
        }

        let through_inner = product(&d_inner, &transposed(&block.feed_forward.inner));
        let [d_residual, d_norm_factor, d_attended] = self.normalize_backward(
            &found.attended,
            &block.feed_forward.norm_gamma,
            &d_fed,
            &through_inner,
        );

        let d_context = product(&d_attended, &transposed(&block.output));
        let weights = empty(&self.nodes, [rows, heads, shape.group(height)], DType::F32);
        let scores = empty(&self.nodes, [rows, heads, shape.group(height)], DType::F32);
        let (count, cube) = grid(&weights, rows * heads);
        // SAFETY: a unit writes the entries of its own row and head, and reads rows of its own group.
        unsafe {
            siblings_scores_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&found.query),
                buffer(&found.pairs),
                buffer(&self.lengths),
                buffer(&d_context),
                buffer(&weights),
                buffer(&scores),
                self.sizes(below, rows * heads),
                self.scale(),
                head_dim,
                element(&self.lengths),
            );
        }
        let d_query = self.empty(rows, dim);
        let d_pairs = self.empty(rows, 2 * dim);
        let (count, cube) = grid(&d_query, rows * 3 * dim);
        // SAFETY: a unit writes its own number, and reads rows of its own group.
        unsafe {
            siblings_backward_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&found.query),
                buffer(&found.pairs),
                buffer(&d_context),
                buffer(&weights),
                buffer(&scores),
                buffer(&d_query),
                buffer(&d_pairs),
                self.sizes(below, rows * 3 * dim),
                head_dim,
            );
        }

        let through_query = product(&d_query, &transposed(&block.query));
        let [d_normalized, d_factor, d_children] = self.normalize_backward(
            &found.children,
            &block.norm_gamma,
            &d_attended,
            &through_query,
        );
        if !self.options.detach_children {
            let through_pairs = product(&d_pairs, &transposed(&self.pairs));
            let units = self.batch * shape.width(below) * dim;
            let (count, cube) = grid(grad, units);
            // SAFETY: a unit adds to its own number of a stored child, whose slot there is. `backward` copied what it adds to.
            unsafe {
                children_backward_kernel::launch_unchecked(
                    client,
                    count,
                    cube,
                    buffer(&d_children),
                    buffer(&through_pairs),
                    buffer(grad),
                    self.sizes(below, units),
                );
            }
        }

        let of_weight = |rows: &CubeTensor, grad: &CubeTensor| product(&transposed(rows), grad);
        let of_vector = |rows: CubeTensor| CubeBackend::float_sum_dim(rows, 0);
        [
            of_vector(d_factor),
            of_vector(d_normalized),
            of_weight(&found.normalized, &d_query),
            of_weight(&found.children, &d_pairs),
            of_weight(&found.context, &d_attended),
            of_vector(d_attended),
            of_vector(d_norm_factor),
            of_vector(d_residual),
            of_weight(&found.residual, &d_inner),
            of_vector(d_inner),
            of_weight(&found.gated, &d_fed),
            of_vector(d_fed),
        ]
    }

    /// Gradient of a normalisation, in two parts -> its sum, that times the normalised rows, and the
    /// gradient of the rows.
    fn normalize_backward(
        &self,
        rows: &CubeTensor,
        gamma: &CubeTensor,
        first: &CubeTensor,
        second: &CubeTensor,
    ) -> [CubeTensor; 3] {
        let [count, dim] = rows.shape().dims();
        let outputs = [(); 3].map(|()| self.empty(count, dim));
        let (cubes, cube) = grid(rows, count);
        // SAFETY: a unit reads and writes its own row.
        unsafe {
            normalize_backward_kernel::launch_unchecked(
                &self.nodes.client,
                cubes,
                cube,
                buffer(rows),
                buffer(gamma),
                buffer(first),
                buffer(second),
                buffer(&outputs[0]),
                buffer(&outputs[1]),
                buffer(&outputs[2]),
                dim,
                count,
                self.options.epsilon as f32,
            );
        }
        outputs
    }

    fn leaves_backward(&self, grad: &CubeTensor) -> CubeTensor {
        let leaves = self.options.shape.width(0);
        let d_leaves = empty(&self.nodes, [self.batch, leaves, self.dim], DType::F32);
        let units = self.batch * leaves * self.dim;
        let (count, cube) = grid(&d_leaves, units);
        // SAFETY: a unit writes its own number, and reads one of a stored leaf. Shapes are checked by `backward`.
        unsafe {
            leaves_backward_kernel::launch_unchecked(
                &self.nodes.client,
                count,
                cube,
                buffer(grad),
                buffer(&self.lengths),
                buffer(&d_leaves),
                self.sizes(0, units),
                element(&self.lengths),
            );
        }
        d_leaves
    }
}
