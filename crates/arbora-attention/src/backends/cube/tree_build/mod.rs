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

pub(super) use backward::{backward, gate_backward_kernel, normalize_backward_kernel};

use super::tree_search::position_of;
use super::{element, empty, grid, into_contiguous, shapes, zeros};
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{BlockPrimitive, TreeBuildGradients, TreeBuildOptions};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Slice, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;
const FRAC_1_SQRT_2: f32 = std::f32::consts::FRAC_1_SQRT_2;
/// Of the standard normal distribution.
const DENSITY_AT_ZERO: f32 = 0.398_942_3;

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
    slot * sizes.span < position_of::<I>(lengths[example])
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
    if leaf < position_of::<I>(lengths[example]) {
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

/// One unit per slot: adds bias and residual to `attended`, and normalises the sum.
#[cube(launch_unchecked)]
fn attended_kernel(
    attended: &mut [f32],
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
        attended[at + feature] = number;
        sum += number;
    }
    let mean = sum / width;
    let mut squares = 0.0f32;
    for feature in 0..dim {
        let centered = attended[at + feature] - mean;
        squares += centered * centered;
    }
    let deviation = (squares / width + epsilon).sqrt();
    for feature in 0..dim {
        let centered = attended[at + feature] - mean;
        normalized[at + feature] = centered / deviation * gamma[feature] + beta[feature];
    }
}

/// One unit per number: values times the exact GELU of gates. `inner`, `[rows, 2 * ff]`, holds them side
/// by side.
#[cube(launch_unchecked)]
pub(super) fn gate_kernel(inner: &[f32], bias: &[f32], gated: &mut [f32], ff: usize, units: usize) {
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
    let rows = [("leaves", &leaves.shape())];
    shapes::tree_build(&rows, &lengths.shape(), &block, &options);
    let [batch, _, dim] = leaves.shape().dims();
    let nodes = empty(&leaves, [batch, options.shape.nodes(), dim], DType::F32);
    if batch * dim == 0 {
        return nodes;
    }
    let build = Build::new(nodes, lengths, block, options);
    build.leaves(into_contiguous(leaves));
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
        let [ff, _] = block.feed_forward.outer.shape().dims();
        let block: BlockPrimitive<CubeBackend> = block.map(into_contiguous);
        let pairs = CubeBackend::float_cat(vec![block.key.clone(), block.value.clone()], 1);
        Self {
            options,
            batch,
            dim,
            ff,
            lengths: into_contiguous(lengths),
            block,
            pairs: into_contiguous(pairs),
            nodes,
        }
    }

    /// Sizes of the step from `below` to the height above it.
    fn sizes(&self, below: usize, units: usize) -> SizesLaunch {
        let shape = &self.options.shape;
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
        // SAFETY: a unit writes one number of one stored leaf. Shapes are checked by `build`.
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

    /// What the block makes of all children of the nodes of a height, up to the last product.
    fn activations(&self, height: usize) -> Activations {
        let (shape, below) = (&self.options.shape, height - 1);
        let rows = self.batch * shape.width(height) * shape.group(height);
        let (dim, ff, heads) = (self.dim, self.ff, self.options.heads);
        let head_dim = dim / heads;
        let client = &self.nodes.client;
        let epsilon = self.options.epsilon as f32;
        let block = &self.block;

        let children = self.empty(rows, dim);
        let normalized = self.empty(rows, dim);
        let (count, cube) = grid(&children, rows);
        // SAFETY: a unit writes its own row, and reads a node if its slot is a stored child's.
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

        let query = product(&normalized, &block.query);
        let pairs = product(&children, &self.pairs);
        let context = self.empty(rows, dim);
        let (count, cube) = grid(&context, rows * heads);
        // SAFETY: a unit writes its own row and head, and reads rows of its own group, all of whose slots there are.
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
                self.scale(),
                head_dim,
                element(&self.lengths),
            );
        }

        let attended = product(&context, &block.output);
        let residual = self.empty(rows, dim);
        let (count, cube) = grid(&residual, rows);
        // SAFETY: a unit reads and writes its own row. The product that it writes over is of this function alone.
        unsafe {
            attended_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&attended),
                buffer(&block.output_bias),
                buffer(&normalized),
                buffer(&block.feed_forward.norm_gamma),
                buffer(&block.feed_forward.norm_beta),
                buffer(&residual),
                self.sizes(below, rows),
                epsilon,
            );
        }

        let inner = product(&residual, &block.feed_forward.inner);
        let gated = self.empty(rows, ff);
        let (count, cube) = grid(&gated, rows * ff);
        // SAFETY: a unit writes its own number, and reads its value and gate, `ff` apart in rows of `2 * ff`.
        unsafe {
            gate_kernel::launch_unchecked(
                client,
                count,
                cube,
                buffer(&inner),
                buffer(&block.feed_forward.inner_bias),
                buffer(&gated),
                ff,
                rows * ff,
            );
        }
        Activations {
            children,
            normalized,
            query,
            pairs,
            context,
            attended,
            residual,
            inner,
            gated,
        }
    }

    fn scale(&self) -> f32 {
        ((self.dim / self.options.heads) as f64).powf(-0.5) as f32
    }

    /// All nodes of a height from those below it.
    fn level(&self, height: usize) {
        let Activations {
            residual, gated, ..
        } = self.activations(height);
        let fed = product(&gated, &self.block.feed_forward.outer);
        let units = self.batch * self.options.shape.width(height) * self.dim;
        let (count, cube) = grid(&fed, units);
        // SAFETY: a unit writes one number of one stored parent, and reads rows of that parent's group, all of whose slots there are.
        unsafe {
            parents_kernel::launch_unchecked(
                &self.nodes.client,
                count,
                cube,
                buffer(&fed),
                buffer(&self.block.feed_forward.outer_bias),
                buffer(&residual),
                buffer(&self.lengths),
                buffer(&self.nodes),
                self.sizes(height - 1, units),
                element(&self.lengths),
            );
        }
    }
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
    /// The second normalisation.
    residual: CubeTensor,
    inner: CubeTensor,
    gated: CubeTensor,
}

/// Gradients of gamma and beta, `W_q`, `W_k` beside `W_v`, `W_o` and its bias, the second gamma and beta,
/// `W_1` and its bias, `W_2` and its bias. Those of vectors are rows of one.
type Weights = [CubeTensor; 12];

pub(super) fn buffer(tensor: &CubeTensor) -> BufferArg {
    tensor.clone().into_buffer_arg()
}

pub(super) fn product(rows: &CubeTensor, weight: &CubeTensor) -> CubeTensor {
    into_contiguous(CubeBackend::float_matmul(rows.clone(), weight.clone()))
}

pub(super) fn transposed(matrix: &CubeTensor) -> CubeTensor {
    CubeBackend::float_swap_dims(matrix.clone(), 0, 1)
}
