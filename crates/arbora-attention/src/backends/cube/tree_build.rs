//! Tree build, level by level.
//!
//! Products with weights are burn's own, tuned for the device; one kernel each does what is between
//! them. Gradients take the reference body.

use super::{element, empty, fits_positions, grid, into_contiguous};
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{BlockPrimitive, TreeBuildOptions};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;

/// A unit holds a row of one head in registers; wider ones take the reference body.
const WIDEST_HEAD: usize = 256;

/// Sizes of one level of a build, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    /// Stored nodes of one example.
    nodes: usize,
    dim: usize,
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
    units: usize,
}

/// Whether the child in a slot is over at least one token.
#[cube]
fn is_real<I: Numeric>(lengths: &[I], sizes: &Sizes, example: usize, slot: usize) -> bool {
    slot * sizes.span < usize::cast_from(lengths[example])
}

/// One unit per number of the leaves: into their places, ghosts as zeros.
#[cube(launch_unchecked)]
fn leaves_kernel<I: Numeric>(
    leaves: &[f32],
    lengths: &[I],
    nodes: &mut [f32],
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
    if leaf < usize::cast_from(lengths[example]) {
        number = leaves[ABSOLUTE_POS];
    }
    let node = example * sizes.nodes + sizes.children_offset + leaf;
    nodes[node * sizes.dim + feature] = number;
}

/// One unit per child slot: the child, `[batch * slots, dim]`, and its normalisation.
#[cube(launch_unchecked)]
fn children_kernel(
    nodes: &[f32],
    gamma: &[f32],
    beta: &[f32],
    children: &mut [f32],
    normalized: &mut [f32],
    sizes: &Sizes,
    epsilon: f32,
) {
    let row = ABSOLUTE_POS;
    if row >= sizes.units {
        terminate!();
    }
    let dim = sizes.dim;
    let slot = row % sizes.slots;
    let example = row / sizes.slots;
    let stored = slot < sizes.children;
    let from = (example * sizes.nodes + sizes.children_offset + slot) * dim;
    let to = row * dim;
    let width = f32::cast_from(dim);
    let mut sum = 0.0f32;
    for feature in 0..dim {
        let mut number = 0.0f32;
        if stored {
            number = nodes[from + feature];
        }
        children[to + feature] = number;
        sum += number;
    }
    let mean = sum / width;
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = children[to + feature] - mean;
        squares += centered * centered;
    }
    let deviation = (squares / width + epsilon).sqrt();
    for feature in 0..dim {
        let centered = children[to + feature] - mean;
        normalized[to + feature] = centered / deviation * gamma[feature] + beta[feature];
    }
}

/// One unit per (slot, head): attention among the real siblings. `pairs`, `[batch * slots, 2 * dim]`, holds
/// keys and values side by side.
#[cube(launch_unchecked)]
fn siblings_kernel<I: Numeric>(
    query: &[f32],
    pairs: &[f32],
    lengths: &[I],
    context: &mut [f32],
    sizes: &Sizes,
    scale: f32,
    #[comptime] head_dim: usize,
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
            logit *= scale;
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

/// One unit per slot: the normalisation of attention and residual.
#[cube(launch_unchecked)]
fn attended_kernel(
    attended: &[f32],
    bias: &[f32],
    residual: &[f32],
    gamma: &[f32],
    beta: &[f32],
    normalized: &mut [f32],
    sizes: &Sizes,
    epsilon: f32,
) {
    let row = ABSOLUTE_POS;
    if row >= sizes.units {
        terminate!();
    }
    let dim = sizes.dim;
    let at = row * dim;
    let width = f32::cast_from(dim);
    let mut sum = 0.0f32;
    for feature in 0..dim {
        let number = attended[at + feature] + bias[feature] + residual[at + feature];
        normalized[at + feature] = number;
        sum += number;
    }
    let mean = sum / width;
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = normalized[at + feature] - mean;
        squares += centered * centered;
    }
    let deviation = (squares / width + epsilon).sqrt();
    for feature in 0..dim {
        let centered = normalized[at + feature] - mean;
        normalized[at + feature] = centered / deviation * gamma[feature] + beta[feature];
    }
}

/// One unit per number: values times the exact GELU of gates. `inner`, `[rows, 2 * ff]`, holds them side
/// by side.
#[cube(launch_unchecked)]
fn gate_kernel(inner: &[f32], bias: &[f32], gated: &mut [f32], ff: usize, units: usize) {
    if ABSOLUTE_POS >= units {
        terminate!();
    }
    let feature = ABSOLUTE_POS % ff;
    let at = ABSOLUTE_POS / ff * 2 * ff + feature;
    let value = inner[at] + bias[feature];
    let gate = inner[at + ff] + bias[ff + feature];
    let share = 0.5f32 * (1.0f32 + Erf::erf(gate * FRAC_1_SQRT_2));
    gated[ABSOLUTE_POS] = value * (gate * share);
}

/// One unit per number of the parents: the mean over real children, into the parents' places.
#[cube(launch_unchecked)]
fn parents_kernel<I: Numeric>(
    fed: &[f32],
    bias: &[f32],
    residual: &[f32],
    lengths: &[I],
    nodes: &mut [f32],
    sizes: &Sizes,
    #[define(I)] _dtype: ElemType,
) {
    if ABSOLUTE_POS >= sizes.units {
        terminate!();
    }
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

/// Whether a unit can hold a head, and 32 bits count everything.
pub(super) fn fits(
    leaves: &CubeTensor,
    block: &BlockPrimitive<CubeBackend>,
    options: &TreeBuildOptions,
) -> bool {
    let [batch, _, dim] = leaves.shape().dims();
    let [ff, _] = block.outer.shape().dims();
    let shape = &options.shape;
    let widest = (2 * dim).max(2 * ff);
    let slots = (1..=shape.height())
        .map(|height| shape.width(height) * shape.group(height))
        .max()
        .unwrap_or(1);
    let rows = slots.max(shape.nodes()).saturating_mul(batch);
    ff > 0
        && dim / options.heads <= WIDEST_HEAD
        && fits_positions(rows.saturating_mul(widest))
        && fits_positions(shape.span(shape.height()).saturating_mul(shape.branching()))
}

/// What all levels share.
struct Build {
    options: TreeBuildOptions,
    batch: usize,
    dim: usize,
    ff: usize,
    lengths: CubeTensor,
    block: BlockPrimitive<CubeBackend>,
    /// `W_k` and `W_v` side by side, `[dim, 2 * dim]`
    pairs: CubeTensor,
    nodes: CubeTensor,
}

pub(super) fn build(
    leaves: CubeTensor,
    lengths: CubeTensor,
    block: BlockPrimitive<CubeBackend>,
    options: TreeBuildOptions,
) -> CubeTensor {
    let [batch, _, dim] = leaves.shape().dims();
    let [ff, _] = block.outer.shape().dims();
    let nodes = empty(&leaves, [batch, options.shape.nodes(), dim], DType::F32);
    if batch * dim == 0 {
        return nodes;
    }
    let block: BlockPrimitive<CubeBackend> = block.map(into_contiguous);
    let pairs = CubeBackend::float_cat(vec![block.key.clone(), block.value.clone()], 1);
    let build = Build {
        options,
        batch,
        dim,
        ff,
        lengths: into_contiguous(lengths),
        block,
        pairs,
        nodes,
    };
    build.leaves(into_contiguous(leaves));
    for height in 1..=options.shape.height() {
        build.level(height);
    }
    build.nodes
}

impl Build {
    /// Sizes of the step from `below` to the height above it.
    fn sizes(&self, below: usize, units: usize) -> SizesLaunch {
        let shape = &self.options.shape;
        let (group, parents, parents_offset) = match below < shape.height() {
            true => (
                shape.group(below + 1),
                shape.width(below + 1),
                shape.offset(below + 1),
            ),
            false => (1, 1, 0),
        };
        SizesLaunch::new(
            shape.nodes(),
            self.dim,
            group,
            parents * group,
            shape.width(below),
            shape.offset(below),
            shape.span(below),
            parents_offset,
            units,
        )
    }

    fn empty(&self, rows: usize, width: usize) -> CubeTensor {
        empty(&self.nodes, [rows, width], DType::F32)
    }

    fn leaves(&self, leaves: CubeTensor) {
        let units = self.batch * self.options.shape.width(0) * self.dim;
        let (count, dim) = grid(&leaves, units);
        let dtype = element(&self.lengths);
        // SAFETY: a unit writes one number of one stored leaf.
        unsafe {
            leaves_kernel::launch_unchecked(
                &self.nodes.client,
                count,
                dim,
                leaves.into_buffer_arg(),
                self.lengths.clone().into_buffer_arg(),
                self.nodes.clone().into_buffer_arg(),
                self.sizes(0, units),
                dtype,
            );
        }
    }

    /// All nodes of a height from those below it.
    fn level(&self, height: usize) {
        let (shape, below) = (&self.options.shape, height - 1);
        let parents = shape.width(height);
        let rows = self.batch * parents * shape.group(height);
        let (dim, ff, heads) = (self.dim, self.ff, self.options.heads);
        let head_dim = dim / heads;
        let client = &self.nodes.client;
        let integer = element(&self.lengths);
        let epsilon = self.options.epsilon as f32;
        let buffer = |tensor: &CubeTensor| tensor.clone().into_buffer_arg();
        let product = |rows: CubeTensor, weight: &CubeTensor| {
            into_contiguous(CubeBackend::float_matmul(rows, weight.clone()))
        };
        let block = &self.block;

        let children = self.empty(rows, dim);
        let normalized = self.empty(rows, dim);
        let (count, cube) = grid(&children, rows);
        // SAFETY: a unit writes its own row, and reads a stored node.
        unsafe {
            children_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&self.nodes),
                buffer(&block.norm_gamma),
                buffer(&block.norm_beta),
                buffer(&children),
                buffer(&normalized),
                self.sizes(below, rows),
                epsilon,
            );
        }

        let query = product(normalized.clone(), &block.query);
        let pairs = product(children, &self.pairs);
        let context = self.empty(rows, dim);
        let (count, cube) = grid(&context, rows * heads);
        // SAFETY: a unit writes its own row and head, and reads rows of its own group.
        unsafe {
            siblings_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&query),
                buffer(&pairs),
                buffer(&self.lengths),
                buffer(&context),
                self.sizes(below, rows * heads),
                (head_dim as f64).powf(-0.5) as f32,
                head_dim,
                integer,
            );
        }

        let attended = product(context, &block.output);
        let residual = self.empty(rows, dim);
        let (count, cube) = grid(&residual, rows);
        // SAFETY: a unit writes its own row, and reads the same.
        unsafe {
            attended_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&attended),
                buffer(&block.output_bias),
                buffer(&normalized),
                buffer(&block.feed_forward_norm_gamma),
                buffer(&block.feed_forward_norm_beta),
                buffer(&residual),
                self.sizes(below, rows),
                epsilon,
            );
        }

        let inner = product(residual.clone(), &block.inner);
        let gated = self.empty(rows, ff);
        let (count, cube) = grid(&gated, rows * ff);
        // SAFETY: a unit writes its own number, and reads its value and gate.
        unsafe {
            gate_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&inner),
                buffer(&block.inner_bias),
                buffer(&gated),
                ff,
                rows * ff,
            );
        }

        let fed = product(gated, &block.outer);
        let units = self.batch * parents * dim;
        let (count, cube) = grid(&fed, units);
        // SAFETY: a unit writes one number of one stored parent, and reads rows of that parent's group.
        unsafe {
            parents_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&fed),
                buffer(&block.outer_bias),
                buffer(&residual),
                buffer(&self.lengths),
                buffer(&self.nodes),
                self.sizes(below, units),
                integer,
            );
        }
    }
}
