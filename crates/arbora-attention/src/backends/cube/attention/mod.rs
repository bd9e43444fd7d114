//! Attention without a matrix of scores in memory, and its gradients: dense, and within leaves with the gradients of candidate gates.
//!
//! Forward and in the gradient of queries a unit owns one head of a query, of dense attention up to two neighbours, and reads
//! its keys in their order; in the gradients of keys it owns one head of a key and reads the queries. Units side by side own
//! neighbours of one head, and within leaves of one leaf, so that they read the same rows at the same time.
//!
//! Within leaves the rows of each leaf are listed first: see `lists`. Beside results there are then two numbers per row in the
//! lists, and two per leaf; gradients take two per query.

// Kernels have no slices to iterate over, conditions known at compile time stay apart from the others, and
// assigning operators are not in the language of kernels for every type.
#![allow(
    clippy::needless_range_loop,
    clippy::collapsible_if,
    clippy::assign_op_pattern
)]

mod backward;
mod forward;
mod lists;

pub(super) use backward::{candidate_gates, dense_backward, within_leaves_backward};
pub(super) use forward::{dense, within_leaves};

use super::tree_search::position_of;
use super::{
    MASKED, SMALLEST, element, empty, end_past, floats, into_contiguous, launch, vector_size,
};
use crate::functions::check::Axes;
use crate::ops::{
    AttentionMask, AttentionOutput, CandidateInputs, DenseAttentionInputs, DenseAttentionOptions,
    LeafAttentionGradients, LeafAttentionInputs, LeafAttentionOptions, shapes,
};
use burn::backend::ops::FloatTensorOps;
use burn::backend::{Slice, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// Up to this width of a key and its value together a unit of dense attention holds two rows; not tuned on a GPU.
const NARROW: usize = 64;

/// What is known of attention when its kernels are compiled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Plan {
    /// Within leaves in place of dense.
    listed: bool,
    /// Whether dense attention has a mask.
    masked: bool,
    causal: bool,
    dropping: bool,
    /// Neighbours that a unit owns.
    held: usize,
    /// Vectors of a key, and of a value.
    key_vectors: usize,
    value_vectors: usize,
}

/// Queries or keys, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Side {
    /// Rows of an example.
    positions: usize,
    heads: usize,
    /// Rows of all examples and heads.
    rows: usize,
    /// The first row of an example that dense attention counts.
    first: usize,
    /// Where the lists of the side start.
    lists: usize,
}

/// Sizes of attention, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    query: Side,
    key: Side,
    leaves: usize,
    /// What is added to a query's index to get the last key that it may see.
    offset: usize,
    scale: f32,
    /// What all pairs share of the hash that decides on dropout.
    state: u32,
    threshold: u32,
    /// Factor of the weights that stay.
    factor: f32,
    #[cube(comptime)]
    plan: Plan,
}

/// The rows that a unit owns, one head of neighbours of one side, and the rows of the other side, `others`, that it pairs them with.
#[derive(CubeType)]
struct Owned {
    example: usize,
    /// Index of the first among the rows of its example.
    position: usize,
    /// Where that is among the rows of all examples, and how far apart neighbours are.
    row: usize,
    stride: usize,
    /// How many of them there are.
    stored: usize,
    /// Where the others begin and end: in the lists, or as indices in the example.
    first: usize,
    end: usize,
    /// Where the other of index 0 is.
    base: usize,
    #[cube(comptime)]
    plan: Plan,
}

#[cube]
impl Owned {
    /// Rows of the side `own`, and those of `other` that no leaf, and no first key, keeps from them; masks may.
    fn new<M: Numeric>(lists: &[M], own: &Side, other: &Side, sizes: &Sizes) -> Owned {
        if comptime![sizes.plan.listed] {
            Owned::listed::<M>(lists, own, other, sizes)
        } else {
            Owned::neighbours(own, other, sizes)
        }
    }

    fn neighbours(own: &Side, other: &Side, sizes: &Sizes) -> Owned {
        let blocks = own.positions.div_ceil(comptime![sizes.plan.held]);
        let example = ABSOLUTE_POS / blocks / own.heads;
        let head = (ABSOLUTE_POS / blocks) % own.heads;
        let position = ABSOLUTE_POS % blocks * comptime![sizes.plan.held];
        Owned {
            example,
            position,
            row: (example * own.positions + position) * own.heads + head,
            stride: own.heads,
            stored: own.positions - position,
            first: other.first,
            end: other.positions,
            base: example * other.positions * own.heads + head,
            plan: comptime![sizes.plan],
        }
    }

    fn listed<M: Numeric>(lists: &[M], own: &Side, other: &Side, sizes: &Sizes) -> Owned {
        let at = own.lists + ABSOLUTE_POS;
        let row = usize::cast_from(lists[at]);
        let leaf = usize::cast_from(lists[own.rows + at]);
        let per_group = own.positions * (own.heads / sizes.key.heads);
        let bucket = ABSOLUTE_POS / per_group * (sizes.leaves + 1) + leaf;
        let bounds = other.lists + 2 * other.rows + 2 * bucket;
        // A row without a leaf is paired with none.
        let taken = select(leaf < sizes.leaves, 1usize, 0usize);
        let first = usize::cast_from(lists[bounds]);
        let count = (usize::cast_from(lists[bounds + 1]) - first) * taken;
        Owned {
            example: row / own.heads / own.positions,
            position: row / own.heads % own.positions,
            row,
            stride: 0usize,
            stored: 1usize,
            first: other.lists + first,
            end: other.lists + first + count,
            base: 0usize,
            plan: comptime![sizes.plan],
        }
    }

    /// Where an owned row is. Past the last neighbour it is the last one's that is read, and never written back.
    fn row(&self, neighbour: usize) -> usize {
        let last = self.stored - 1;
        self.row + select(neighbour < self.stored, neighbour, last) * self.stride
    }

    /// Where one of the others is.
    fn other<M: Numeric>(&self, lists: &[M], at: usize) -> usize {
        if comptime![self.plan.listed] {
            usize::cast_from(lists[at])
        } else {
            self.base + at * self.stride
        }
    }
}

/// Rows of one head in registers.
#[derive(CubeType)]
struct Rows<N: Size> {
    numbers: Array<Vector<f32, N>>,
    #[cube(comptime)]
    count: usize,
    /// Vectors of a row.
    #[cube(comptime)]
    width: usize,
}

#[cube]
impl<N: Size> Rows<N> {
    fn zeros(#[comptime] count: usize, #[comptime] width: usize) -> Rows<N> {
        let mut numbers = Array::<Vector<f32, N>>::new(count * width);
        #[unroll]
        for i in 0..count * width {
            numbers[i] = Vector::new(0.0f32);
        }
        Rows::<N> {
            numbers,
            count,
            width,
        }
    }

    fn load(memory: &[Vector<f32, N>], owned: &Owned, #[comptime] width: usize) -> Rows<N> {
        let count = comptime![owned.plan.held];
        let mut numbers = Array::<Vector<f32, N>>::new(count * width);
        #[unroll]
        for row in 0..count {
            let at = owned.row(row) * width;
            #[unroll]
            for i in 0..width {
                numbers[row * width + i] = memory[at + i];
            }
        }
        Rows::<N> {
            numbers,
            count,
            width,
        }
    }

    /// The dot products with a row in memory.
    fn dots(&self, memory: &[Vector<f32, N>], other: usize) -> Array<f32> {
        let count = comptime![self.count];
        let width = comptime![self.width];
        let mut sums = Array::<Vector<f32, N>>::new(count);
        #[unroll]
        for row in 0..count {
            sums[row] = Vector::new(0.0f32);
        }
        #[unroll]
        for i in 0..width {
            let number = memory[other * width + i];
            #[unroll]
            for row in 0..count {
                sums[row] += self.numbers[row * width + i] * number;
            }
        }
        let mut products = Array::<f32>::new(count);
        #[unroll]
        for row in 0..count {
            products[row] = sums[row].vector_sum();
        }
        products
    }

    /// Adds `factors[row] * memory[other]` to each row.
    fn add(&mut self, factors: &Array<f32>, memory: &[Vector<f32, N>], other: usize) {
        let count = comptime![self.count];
        let width = comptime![self.width];
        #[unroll]
        for i in 0..width {
            let number = memory[other * width + i];
            #[unroll]
            for row in 0..count {
                self.numbers[row * width + i] += Vector::<f32, N>::new(factors[row]) * number;
            }
        }
    }

    /// Writes `factors[row] * row` where the owned rows are.
    fn store(&self, memory: &mut [Vector<f32, N>], owned: &Owned, factors: &Array<f32>) {
        let count = comptime![self.count];
        let width = comptime![self.width];
        #[unroll]
        for row in 0..count {
            if row < owned.stored {
                let at = owned.row(row) * width;
                #[unroll]
                for i in 0..width {
                    let number = self.numbers[row * width + i];
                    memory[at + i] = Vector::<f32, N>::new(factors[row]) * number;
                }
            }
        }
    }
}

/// One number per row that a unit holds.
#[cube]
fn filled(number: f32, #[comptime] held: usize) -> Array<f32> {
    let mut numbers = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        numbers[row] = number;
    }
    numbers
}

/// Whether dense attention attends to a key of an example.
#[cube]
fn is_kept<M: Numeric>(mask: &[M], sizes: &Sizes, example: usize, key: usize) -> bool {
    let mut kept = true;
    if comptime![sizes.plan.masked] {
        let keys = sizes.key.positions - sizes.key.first;
        kept = u32::cast_from(mask[example * keys + key - sizes.key.first]) == 0u32;
    }
    kept
}

/// As `step` of the operator's dropout.
#[cube]
fn step(state: u32, word: u32) -> u32 {
    let mut mixed = (state + 0x9e37_79b9u32) ^ word;
    mixed = mixed ^ (mixed >> 16u32);
    mixed = mixed * 0x7feb_352du32;
    mixed = mixed ^ (mixed >> 15u32);
    mixed = mixed * 0x846c_a68bu32;
    mixed ^ (mixed >> 16u32)
}

/// What the pairs of a query share.
#[cube]
fn row_state(sizes: &Sizes, row: usize) -> u32 {
    let mut state = 0u32;
    if comptime![sizes.plan.dropping] {
        let example = row / sizes.query.heads / sizes.query.positions;
        let of_example = step(sizes.state, u32::cast_from(example));
        let of_head = step(of_example, u32::cast_from(row % sizes.query.heads));
        let position = row / sizes.query.heads % sizes.query.positions;
        state = step(of_head, u32::cast_from(position));
    }
    state
}

#[cube]
fn key_position(sizes: &Sizes, row: usize) -> usize {
    row / sizes.key.heads % sizes.key.positions
}

/// What dropout multiplies a weight by; `key` is a position.
#[cube]
fn drop_factor(sizes: &Sizes, state: u32, key: usize) -> f32 {
    let mut factor = 0.0f32;
    if step(state, u32::cast_from(key)) >= sizes.threshold {
        factor = sizes.factor;
    }
    factor
}

/// Attention as kernels are launched for it. Tensors lie without gaps.
struct Problem {
    query: CubeTensor,
    key: CubeTensor,
    value: CubeTensor,
    /// The lists, or the mask, or any tensor where there is neither: a kernel takes the same number of buffers for all.
    others: CubeTensor,
    axes: Axes,
    /// The first row of keys that dense attention attends to.
    first_key: usize,
    /// Of attention within leaves; of dense attention they hold the scale alone.
    options: LeafAttentionOptions,
    vector: usize,
    plan: Plan,
}

impl Problem {
    fn new(
        [query, key, value]: [CubeTensor; 3],
        axes: Axes,
        options: LeafAttentionOptions,
    ) -> Self {
        let [_, _, _, head_dim] = query.shape().dims();
        let [_, _, _, value_dim] = value.shape().dims();
        let vector = vector_size(&[head_dim, value_dim]);
        Self {
            others: query.clone(),
            query,
            key,
            value,
            axes,
            first_key: 0,
            options,
            vector,
            plan: Plan {
                held: 1,
                key_vectors: head_dim / vector,
                value_vectors: value_dim / vector,
                ..Plan::default()
            },
        }
    }

    fn dense(inputs: DenseAttentionInputs<CubeBackend>, options: DenseAttentionOptions) -> Self {
        let rows = [inputs.query, inputs.key, inputs.value].map(into_contiguous);
        let mask = match inputs.mask {
            AttentionMask::None => None,
            AttentionMask::Keys(mask) => Some(mask),
        };
        let shape_of_mask = mask.as_ref().map(|mask| mask.shape());
        let shapes = rows.each_ref().map(|rows| rows.shape());
        let axes = shapes::dense_attention(shapes.each_ref(), shape_of_mask.as_ref(), &options);
        let scale = LeafAttentionOptions {
            scale: options.scale,
            ..LeafAttentionOptions::new(0)
        };
        let mut problem = Self::new(rows, axes, scale);
        problem.first_key = options.first_key;
        if let Some(mask) = mask.filter(|mask| mask.shape().num_elements() > 0) {
            problem.others = into_contiguous(mask);
            problem.plan.masked = true;
        }
        // Each more saves reading all others once more, where registers allow it.
        let width = (problem.plan.key_vectors + problem.plan.value_vectors) * problem.vector;
        problem.plan.held = if width <= NARROW { 2 } else { 1 };
        problem
    }

    fn within_leaves(
        rows: [CubeTensor; 3],
        leaves: [CubeTensor; 2],
        options: LeafAttentionOptions,
    ) -> Self {
        let rows = rows.map(into_contiguous);
        let [query, key, value] = rows.each_ref().map(|rows| rows.shape());
        let [query_leaf, key_leaf] = leaves.each_ref().map(|leaf| leaf.shape());
        let axes = shapes::leaf_attention("leaf_attention", [&query, &key, &value, &query_leaf]);
        axes.expect("key_leaf", "batch, keys, kv_heads", &key_leaf);
        let mut problem = Self::new(rows, axes, options);
        problem.plan.listed = true;
        problem.plan.causal = options.causal.is_some();
        problem.plan.dropping = options.dropping().is_some();
        problem.list(leaves);
        problem
    }

    fn expect_bias(&self, key_bias: &CubeTensor) {
        let names = "batch, keys, kv_heads";
        self.axes.expect("key_bias", names, &key_bias.shape());
    }

    fn inputs(&self) -> [&CubeTensor; 4] {
        [&self.query, &self.key, &self.value, &self.others]
    }

    /// Units that own all rows of a side.
    fn units(&self, rows: &CubeTensor) -> usize {
        let [batch, positions, heads, _] = rows.shape().dims();
        batch * heads * positions.div_ceil(self.plan.held)
    }

    fn query_rows(&self) -> usize {
        let [batch, queries, heads, _] = self.query.shape().dims();
        batch * queries * heads
    }

    fn queries(&self) -> SideLaunch {
        let [_, queries, heads, _] = self.query.shape().dims();
        SideLaunch::new(queries, heads, self.query_rows(), 0, 0)
    }

    fn keys(&self) -> SideLaunch {
        let [batch, keys, kv_heads, _] = self.key.shape().dims();
        let groups = batch * kv_heads;
        let lists = 2 * self.query_rows() + 2 * groups * (self.options.leaves + 1);
        SideLaunch::new(keys, kv_heads, groups * keys, self.first_key, lists)
    }

    fn sizes(&self) -> SizesLaunch {
        let [_, keys, _, head_dim] = self.key.shape().dims();
        let dropout = self.options.dropping();
        SizesLaunch::new(
            self.queries(),
            self.keys(),
            self.options.leaves,
            self.options.causal.unwrap_or(0).min(keys),
            self.options.scale(head_dim) as f32,
            dropout.map_or(0, |dropout| dropout.state()),
            dropout.map_or(0, |dropout| dropout.threshold()),
            dropout.map_or(1.0, |dropout| dropout.factor() as f32),
            self.plan,
        )
    }
}
