//! Tree search and its gradients.
//!
//! A search is two launches: one unit per query walks down and leaves the weights of everything that it
//! attends to, then one unit per number of the context adds up. A gradient is three: weights and
//! gradients of scores; those of queries, by the same sum; and those of nodes. A unit of the last
//! owns one feature of every node that is the c-th child at its height, and reads the queries in
//! their order.

mod backward;
mod forward;

pub(super) use backward::{context_backward, policy_backward};
pub(super) use forward::search;

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
