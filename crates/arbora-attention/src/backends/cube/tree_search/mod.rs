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

use super::{
    MASKED, SMALLEST, element, empty, end_past, floats, into_contiguous, launch, softmax,
    softmax_backward, vector_size, zeros,
};
use crate::functions::check::Axes;
use crate::ops::limits::{leaf_group, slots};
use crate::ops::{
    GhostNodes, RoutePrimitive, TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive, shapes,
};
use arbora_tree::Layout;
use burn::backend::TensorMetadata;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

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
    /// Siblings of all decisions and of the last step.
    slots: usize,
    /// Leaf slots under the root.
    root_span: usize,
    /// Stored nodes above the first siblings: the root, unless it is the only token.
    roots: usize,
    /// 1 if every level is stored whole, ghosts included.
    complete: usize,
    /// 1 if inner ghosts that are not chosen are attended to.
    ghosts: usize,
    scale: f32,
    /// Of the policy.
    inverse_temperature: f32,
}

/// One group of siblings on the way down of a row.
#[derive(CubeType)]
struct Siblings {
    /// Real tokens of the example.
    length: usize,
    /// Position of the level's first node.
    offset: usize,
    width: usize,
    span: usize,
    group: usize,
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
    fn above<I: Numeric>(lengths: &[I], sizes: &Sizes, row: usize) -> Siblings {
        let example = row / sizes.queries;
        let length = position_of::<I>(lengths[example]);
        Siblings {
            length: select(length > sizes.tokens, sizes.tokens, length),
            offset: example * sizes.nodes,
            width: sizes.roots,
            span: sizes.root_span,
            group: 0usize,
            first: 0usize,
            real: 0usize,
            scored: 0usize,
            slot: 0usize,
        }
    }

    /// Steps down to the children of the node of index `parent`.
    fn descend(&mut self, sizes: &Sizes, step: usize, parent: usize) {
        let leaves = step == sizes.decisions;
        let group = select(leaves, sizes.leaf_group, sizes.branching);
        let span = self.span / group;
        let whole = self.width * group;
        let needed = sizes.tokens.div_ceil(span);
        let first = parent * group;
        let real = self.length.div_ceil(span);
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

    /// Steps down along the path of a row.
    fn follow<I: Numeric>(&mut self, path: &[I], sizes: &Sizes, row: usize, step: usize) {
        let parent = usize::cast_from(path[row * (sizes.decisions + 1) + step]);
        self.descend(sizes, step, parent);
    }

    /// Where the first sibling is.
    fn node(&self) -> usize {
        self.offset + self.first
    }

    /// The child of index `next` in its level, moved to the nearest real one.
    fn child(&self, next: usize) -> usize {
        let mut child = 0usize;
        if next > self.first {
            child = next - self.first;
        }
        let mut last = 0usize;
        if self.real > 0 {
            last = self.real - 1;
        }
        select(child > last, last, child)
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

/// The dot product of a row of `left` and one of `right`, of `width` vectors.
#[cube]
fn dot<N: Size>(
    left: &[Vector<f32, N>],
    left_row: usize,
    right: &[Vector<f32, N>],
    right_row: usize,
    width: usize,
) -> f32 {
    let left_at = left_row * width;
    let right_at = right_row * width;
    let mut sum = Vector::<f32, N>::new(0.0f32);
    for at in 0..width {
        sum += left[left_at + at] * right[right_at + at];
    }
    sum.vector_sum()
}

/// Where one head of a row has its weight of a slot.
#[cube]
fn weight_at(sizes: &Sizes, slot: usize, head: usize, row: usize) -> usize {
    (slot * sizes.heads + head) * sizes.rows + row
}

/// One unit per number of `output`, `[rows, heads * width]`: rows of nodes along the path, weighted.
#[cube(launch_unchecked)]
fn gather_kernel<I: Numeric>(
    table: &[f32],
    weights: &[f32],
    lengths: &[I],
    path: &[I],
    output: &mut [f32],
    units: usize,
    sizes: &Sizes,
    width: usize,
    steps: usize,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let features = sizes.heads * width;
    let row = ABSOLUTE_POS / features;
    let feature = ABSOLUTE_POS % features;
    let head = feature / width;
    let mut siblings = Siblings::above::<I>(lengths, sizes, row);
    let mut sum = 0.0f32;
    for step in 0..steps {
        siblings.follow::<I>(path, sizes, row, step);
        let node = siblings.node();
        for child in 0..siblings.scored {
            let weight = weights[weight_at(sizes, siblings.slot + child, head, row)];
            sum += weight * table[(node + child) * features + feature];
        }
    }
    output[ABSOLUTE_POS] = sum;
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
    units: usize,
    sizes: &Sizes,
    width: usize,
    slots: usize,
    #[define(I)] _dtype: ElemType,
) {
    end_past(units);
    let features = sizes.heads * width;
    let feature = ABSOLUTE_POS % features;
    let head = feature / width;
    let slot = (ABSOLUTE_POS / features) % slots;
    let example = ABSOLUTE_POS / features / slots;
    let first_row = example * sizes.queries;
    let step = select(
        slot < sizes.decisions * sizes.branching,
        slot / sizes.branching,
        sizes.decisions,
    );
    let child = slot - step * sizes.branching;
    let mut siblings = Siblings::above::<I>(lengths, sizes, first_row);
    for above in 0..step + 1 {
        siblings.descend(sizes, above, 0usize);
    }
    let steps = sizes.decisions + 1;
    // Queries that share a node with the one before add to a register.
    let nowhere = (example + 1) * sizes.nodes;
    let mut held = nowhere;
    let mut sum = 0.0f32;
    for query in 0..sizes.queries {
        let row = first_row + query;
        let index = usize::cast_from(path[row * steps + step]) * siblings.group + child;
        if index < siblings.width {
            let node = siblings.offset + index;
            if node != held {
                if held != nowhere {
                    output[held * features + feature] += sum;
                }
                held = node;
                sum = 0.0f32;
            }
            let weight = weights[weight_at(sizes, slot, head, row)];
            sum += weight * table[row * features + feature];
        }
    }
    if held != nowhere {
        output[held * features + feature] += sum;
    }
}

/// The axes of a path.
const PATH: &str = "batch, queries, decisions + 1";

/// A search as kernels are launched for it. Tensors lie without gaps.
struct Problem {
    query: CubeTensor,
    key: CubeTensor,
    lengths: CubeTensor,
    /// Of every query, given or yet to be written.
    path: CubeTensor,
    options: TreeSearchOptions,
    axes: Axes,
}

impl Problem {
    /// The search, and its values as they lie: not every launch reads them.
    fn new(
        inputs: TreeSearchInputs<CubeBackend>,
        path: Option<CubeTensor>,
        options: TreeSearchOptions,
    ) -> (Self, CubeTensor) {
        let floats = [&inputs.query, &inputs.key, &inputs.value];
        let [query, key, value] = floats.map(|tensor| tensor.shape());
        let tensors = [&query, &key, &value, &inputs.lengths.shape()];
        let axes = shapes::tree_search(tensors, &options);
        let [batch, queries, ..] = query.dims::<4>();
        let steps = options.shape.decisions() + 1;
        let path = match path {
            Some(path) => {
                axes.expect("path", PATH, &path.shape());
                into_contiguous(path)
            }
            None => empty(&inputs.query, [batch, queries, steps], inputs.lengths.dtype),
        };
        let problem = Self {
            query: into_contiguous(inputs.query),
            key: into_contiguous(inputs.key),
            lengths: into_contiguous(inputs.lengths),
            path,
            options,
            axes,
        };
        (problem, inputs.value)
    }

    fn inputs(&self) -> [&CubeTensor; 4] {
        [&self.query, &self.key, &self.lengths, &self.path]
    }

    /// Batch, queries, heads and the width of a head.
    fn dims(&self) -> [usize; 4] {
        self.query.shape().dims()
    }

    fn rows(&self) -> usize {
        let [batch, queries, ..] = self.dims();
        batch * queries
    }

    fn sizes(&self) -> SizesLaunch {
        let [_, queries, heads, head_dim] = self.dims();
        let options = &self.options;
        let shape = &options.shape;
        let (_, slots) = slots(shape);
        let inner = shape.height() > 0;
        let scale = options.scale.unwrap_or((head_dim as f64).powf(-0.5));
        SizesLaunch::new(
            self.rows(),
            queries,
            heads,
            shape.nodes(),
            shape.tokens(),
            shape.branching(),
            leaf_group(shape),
            shape.decisions(),
            slots,
            shape.span(shape.height()),
            usize::from(inner),
            usize::from(inner && shape.layout() == Layout::Published),
            usize::from(options.ghosts == GhostNodes::Published),
            scale as f32,
            (1.0 / options.temperature) as f32,
        )
    }

    /// Rows of nodes along the path, weighted: `[batch, queries, heads, width]`.
    fn gather(&self, table: &CubeTensor, weights: &CubeTensor, steps: usize) -> CubeTensor {
        let [batch, queries, heads, _] = self.dims();
        let width = table.shape()[3];
        let output = floats(table, [batch, queries, heads, width]);
        let (units, dtype) = (self.rows() * heads * width, element(&self.lengths));
        // SAFETY: a unit writes the number of its own position. It reads siblings that are stored, whatever node the path names:
        // `up_to` counts none of the others.
        unsafe {
            launch!(
                gather_kernel(units, self.sizes(), width, steps, dtype),
                [table, weights, self.lengths, self.path, output]
            );
        }
        output
    }

    /// Weighted rows of queries, added to their nodes: `[batch, nodes, heads, width]`.
    fn scatter(&self, table: &CubeTensor, weights: &CubeTensor, slots: usize) -> CubeTensor {
        let [batch, _, heads, _] = self.dims();
        let width = table.shape()[3];
        let output = zeros(table, [batch, self.options.shape.nodes(), heads, width]);
        if self.rows() == 0 {
            return output;
        }
        let (units, dtype) = (batch * slots * heads * width, element(&self.lengths));
        // SAFETY: a unit alone writes its feature of the nodes that are its child of their parent: siblings in other slots are
        // other nodes. It writes stored ones alone, whatever node the path names: it passes over indices past the level's width.
        unsafe {
            launch!(
                scatter_kernel(units, self.sizes(), width, slots, dtype),
                [table, weights, self.lengths, self.path, output]
            );
        }
        output
    }
}
