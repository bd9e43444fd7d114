//! Tree build, level by level.
//!
//! Products with weights are burn's own, tuned for the device; one kernel each does what is between
//! them. A kernel per level that multiplies as well would read all weights once per group of siblings.
//! On a CPU driver this is several times faster than the reference body, whose many small operations it
//! replaces.
//!
//! Gradients go down again level by level. They save nothing: each level computes what it needs once more
//! from the nodes.

mod backward;

pub(super) use backward::backward;

use super::feed_forward::{self, normalize, product};
use super::tree_search::position_of;
use super::{MASKED, SMALLEST, element, end_past, floats, into_contiguous, launch, zeros};
use crate::ops::shapes;
use crate::ops::{BlockPrimitive, TreeBuildGradients, TreeBuildOptions};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Sizes of one level of a build, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    /// Stored nodes of one example.
    nodes: usize,
    dim: usize,
    heads: usize,
    /// Factor on the logits of attention.
    scale: f32,
    /// Child slots under one parent.
    group: usize,
    /// Child slots of one example: `group` for each of its parents.
    slots: usize,
    /// Stored children of one example, and where the first of them is.
    children: usize,
    children_offset: usize,
    /// Leaf slots under one child.
    span: usize,
    /// Where the first parent of an example is.
    parents_offset: usize,
}

/// Whether the child in a slot is over at least one token.
#[cube]
fn is_real<I: Numeric>(lengths: &[I], sizes: &Sizes, example: usize, slot: usize) -> bool {
    slot * sizes.span < position_of::<I>(lengths[example])
}

/// One unit per number of the leaves, `from` which or, backward, to which it goes: into their places among the nodes or out of
/// them, ghosts as zeros.
#[cube(launch_unchecked)]
fn leaves_kernel<I: Numeric>(
    from: &[f32],
    lengths: &[I],
    to: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[comptime] backward: bool,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let feature = ABSOLUTE_POS % sizes.dim;
    let leaf = (ABSOLUTE_POS / sizes.dim) % sizes.children;
    let example = ABSOLUTE_POS / sizes.dim / sizes.children;
    let node = example * sizes.nodes + sizes.children_offset + leaf;
    let mut from_at = ABSOLUTE_POS;
    let mut to_at = node * sizes.dim + feature;
    if comptime![backward] {
        from_at = node * sizes.dim + feature;
        to_at = ABSOLUTE_POS;
    }
    let mut number = 0.0f32;
    if leaf < position_of::<I>(lengths[example]) {
        number = from[from_at];
    }
    to[to_at] = number;
}

/// One unit per child slot: the child, `[batch * slots, dim]`, and its normalisation.
#[cube(launch_unchecked)]
fn children_kernel(
    nodes: &[f32],
    gamma: &[f32],
    beta: &[f32],
    children: &mut [f32],
    normalized: &mut [f32],
    units: usize,
    sizes: &Sizes,
    epsilon: f32,
) {
    end_past(units);
    let dim = sizes.dim;
    let slot = ABSOLUTE_POS % sizes.slots;
    let example = ABSOLUTE_POS / sizes.slots;
    let stored = slot < sizes.children;
    let from = (example * sizes.nodes + sizes.children_offset + slot) * dim;
    let to = ABSOLUTE_POS * dim;
    let mut sum = 0.0f32;
    for feature in 0..dim {
        let mut number = 0.0f32;
        if stored {
            number = nodes[from + feature];
        }
        children[to + feature] = number;
        sum += number;
    }
    normalize(&*children, to, sum, gamma, beta, normalized, dim, epsilon);
}

/// One unit per (slot, head): attention among the real siblings. `pairs`, `[batch * slots, 2 * dim]`, holds
/// keys and values side by side.
#[cube(launch_unchecked)]
fn siblings_kernel<I: Numeric>(
    query: &[f32],
    pairs: &[f32],
    lengths: &[I],
    context: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[comptime] head_dim: usize,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let dim = sizes.dim;
    let row = ABSOLUTE_POS / sizes.heads;
    let head = ABSOLUTE_POS % sizes.heads;
    let own = row * dim + head * head_dim;
    let slot = row % sizes.slots;
    let example = row / sizes.slots;
    let first = slot / sizes.group * sizes.group;
    let mut sum = Array::<f32>::new(head_dim);
    for feature in 0..head_dim {
        sum[feature] = 0.0f32;
    }
    let mut greatest = f32::new(MASKED);
    let mut total = 0.0f32;
    for sibling in 0..sizes.group {
        if is_real::<I>(lengths, sizes, example, first + sibling) {
            let key = (row - slot + first + sibling) * 2 * dim + head * head_dim;
            let mut logit = 0.0f32;
            for feature in 0..head_dim {
                logit += query[own + feature] * pairs[key + feature];
            }
            logit *= sizes.scale;
            if logit > greatest {
                let shrink = (greatest - logit).exp();
                total *= shrink;
                for feature in 0..head_dim {
                    sum[feature] *= shrink;
                }
                greatest = logit;
            }
            let weight = (logit - greatest).exp();
            total += weight;
            for feature in 0..head_dim {
                sum[feature] += weight * pairs[key + dim + feature];
            }
        }
    }
    let inverse = 1.0f32 / total.max(SMALLEST);
    for feature in 0..head_dim {
        context[own + feature] = sum[feature] * inverse;
    }
}

/// One unit per slot: adds bias and residual to `attended`, and normalises the sum.
#[cube(launch_unchecked)]
fn attended_kernel(
    attended: &mut [f32],
    bias: &[f32],
    residual: &[f32],
    gamma: &[f32],
    beta: &[f32],
    normalized: &mut [f32],
    units: usize,
    dim: usize,
    epsilon: f32,
) {
    end_past(units);
    let at = ABSOLUTE_POS * dim;
    let mut sum = 0.0f32;
    for feature in 0..dim {
        let number = attended[at + feature] + bias[feature] + residual[at + feature];
        attended[at + feature] = number;
        sum += number;
    }
    normalize(&*attended, at, sum, gamma, beta, normalized, dim, epsilon);
}

/// One unit per number of the parents: the mean over real children, into the parents' places.
#[cube(launch_unchecked)]
fn parents_kernel<I: Numeric>(
    fed: &[f32],
    bias: &[f32],
    residual: &[f32],
    lengths: &[I],
    nodes: &mut [f32],
    units: usize,
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let dim = sizes.dim;
    let feature = ABSOLUTE_POS % dim;
    let parents = sizes.slots / sizes.group;
    let parent = (ABSOLUTE_POS / dim) % parents;
    let example = ABSOLUTE_POS / dim / parents;
    let mut sum = 0.0f32;
    let mut count = 0.0f32;
    for sibling in 0..sizes.group {
        let slot = parent * sizes.group + sibling;
        if is_real::<I>(lengths, sizes, example, slot) {
            let at = (example * sizes.slots + slot) * dim + feature;
            sum += fed[at] + bias[feature] + residual[at];
            count += 1.0f32;
        }
    }
    let node = example * sizes.nodes + sizes.parents_offset + parent;
    nodes[node * dim + feature] = sum / count.max(1.0f32);
}

/// What all levels share. Tensors lie without gaps.
struct Build {
    options: TreeBuildOptions,
    batch: usize,
    dim: usize,
    lengths: CubeTensor,
    block: BlockPrimitive<CubeBackend>,
    /// `W_k` and `W_v` side by side, `[dim, 2 * dim]`
    pairs: CubeTensor,
    nodes: CubeTensor,
}

/// What the block makes of children, `[batch * slots, width]`.
struct Activations {
    children: CubeTensor,
    normalized: CubeTensor,
    query: CubeTensor,
    /// Keys and values side by side.
    pairs: CubeTensor,
    context: CubeTensor,
    /// With bias and residual.
    attended: CubeTensor,
    feed_forward: feed_forward::Activations,
}

pub(super) fn build(
    leaves: CubeTensor,
    lengths: CubeTensor,
    block: BlockPrimitive<CubeBackend>,
    options: TreeBuildOptions,
) -> CubeTensor {
    let rows = [("leaves", &leaves.shape())];
    shapes::tree_build(&rows, &lengths.shape(), &block, &options);
    let [batch, _, dim] = leaves.shape().dims();
    let nodes = floats(&leaves, [batch, options.shape.nodes(), dim]);
    if batch * dim == 0 {
        return nodes;
    }
    let build = Build::new(nodes, lengths, block, options);
    build.leaves(&into_contiguous(leaves), &build.nodes, false);
    for height in 1..=options.shape.height() {
        build.level(height);
    }
    build.nodes
}

impl Build {
    fn new(
        nodes: CubeTensor,
        lengths: CubeTensor,
        block: BlockPrimitive<CubeBackend>,
        options: TreeBuildOptions,
    ) -> Self {
        let [batch, _, dim] = nodes.shape().dims();
        let block: BlockPrimitive<CubeBackend> = block.map(into_contiguous);
        let pairs = CubeBackend::float_cat(vec![block.key.clone(), block.value.clone()], 1);
        Self {
            options,
            batch,
            dim,
            lengths: into_contiguous(lengths),
            block,
            pairs: into_contiguous(pairs),
            nodes,
        }
    }

    /// Sizes of the step from `below` to the height above it.
    fn sizes(&self, below: usize) -> SizesLaunch {
        let (shape, heads) = (&self.options.shape, self.options.heads);
        let scale = ((self.dim / heads) as f64).powf(-0.5);
        let (group, parents, parents_offset) = if below < shape.height() {
            (
                shape.group(below + 1),
                shape.width(below + 1),
                shape.offset(below + 1),
            )
        } else {
            (1, 1, 0)
        };
        SizesLaunch::new(
            shape.nodes(),
            self.dim,
            heads,
            scale as f32,
            group,
            parents * group,
            shape.width(below),
            shape.offset(below),
            shape.span(below),
            parents_offset,
        )
    }

    /// Child slots of all parents of a height.
    fn slots(&self, height: usize) -> usize {
        let shape = &self.options.shape;
        self.batch * shape.width(height) * shape.group(height)
    }

    /// Copies the leaves to the nodes, or backward their gradients from those of the nodes.
    fn leaves(&self, from: &CubeTensor, to: &CubeTensor, backward: bool) {
        let units = self.batch * self.options.shape.width(0) * self.dim;
        let dtype = element(&self.lengths);
        // SAFETY: a unit reads and writes a number of one stored leaf. Shapes are checked by `build` and `backward`.
        unsafe {
            launch!(
                leaves_kernel(units, self.sizes(0), backward, dtype),
                [from, self.lengths, to]
            );
        }
    }

    fn empty(&self, rows: usize, width: usize) -> CubeTensor {
        floats(&self.nodes, [rows, width])
    }

    fn epsilon(&self) -> f32 {
        self.options.epsilon as f32
    }

    /// What the block makes of all children of the nodes of a height, up to the last product.
    fn activations(&self, height: usize) -> Activations {
        let (below, dtype) = (height - 1, element(&self.lengths));
        let (rows, dim, epsilon) = (self.slots(height), self.dim, self.epsilon());
        let block = &self.block;
        let [children, normalized, context, residual] = [(); 4].map(|()| self.empty(rows, dim));
        // SAFETY: a unit writes its own row, and reads a node if its slot is a stored child's.
        unsafe {
            launch!(
                children_kernel(rows, self.sizes(below), epsilon),
                [
                    self.nodes,
                    block.norm_gamma,
                    block.norm_beta,
                    children,
                    normalized
                ]
            );
        }
        let query = product(&normalized, &block.query);
        let pairs = product(&children, &self.pairs);
        let heads = self.options.heads;
        // SAFETY: a unit writes its own row and head, and reads rows of its own group, all of whose slots there are.
        unsafe {
            launch!(
                siblings_kernel(rows * heads, self.sizes(below), dim / heads, dtype),
                [query, pairs, self.lengths, context]
            );
        }
        let attended = product(&context, &block.output);
        let weights = &block.feed_forward;
        let (gamma, beta) = (&weights.norm_gamma, &weights.norm_beta);
        // SAFETY: a unit reads and writes its own row. The product that it writes over is of this function alone.
        unsafe {
            launch!(
                attended_kernel(rows, dim, epsilon),
                [
                    attended,
                    block.output_bias,
                    normalized,
                    gamma,
                    beta,
                    residual
                ]
            );
        }
        Activations {
            children,
            normalized,
            query,
            pairs,
            context,
            attended,
            feed_forward: feed_forward::Activations::new(residual, weights),
        }
    }

    /// All nodes of a height from those below it.
    fn level(&self, height: usize) {
        let found = self.activations(height).feed_forward;
        let weights = &self.block.feed_forward;
        let fed = found.fed(weights);
        let units = self.batch * self.options.shape.width(height) * self.dim;
        // SAFETY: a unit writes one number of one stored parent, and reads rows of that parent's group, all of whose slots there are.
        unsafe {
            launch!(
                parents_kernel(units, self.sizes(height - 1), element(&self.lengths)),
                [
                    fed,
                    weights.outer_bias,
                    found.normalized,
                    self.lengths,
                    self.nodes
                ]
            );
        }
    }
}
