//! Dense attention and its gradients, without a matrix of scores in memory.
//!
//! Forward and in the gradient of queries a unit owns one head of a query or two and reads the keys in
//! their order; in the gradients of keys and values it owns one head of keys and reads the queries. Units
//! side by side own neighbours of one head, so that they read the same rows at the same time.

mod backward;
mod forward;

pub(super) use backward::backward;
pub(super) use forward::attend;

use super::{element, empty, grid, into_contiguous, shapes, vector_size};
use crate::functions::check::Axes;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::{AttentionMask, AttentionOutput, DenseAttentionInputs, DenseAttentionOptions};
use burn::backend::TensorMetadata;
use burn::tensor::DType;
use burn_cubecl::CubeBackend;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;

/// Up to this width of a key and its value together a unit holds two rows.
const NARROW: usize = 64;

/// Sizes of dense attention, for a kernel.
#[derive(CubeType, CubeLaunch)]
struct Sizes {
    queries: usize,
    heads: usize,
    /// Stored rows of keys and values of one example.
    rows: usize,
    first_key: usize,
    scale: f32,
    units: usize,
}

/// Copies rows of one head, of `held` neighbours from `first` on, into registers. Past the last
/// neighbour it is the last one's that are copied, and never written back.
#[cube]
fn load<N: Size>(
    rows: &[Vector<f32, N>],
    owned: &Owned,
    #[comptime] held: usize,
    #[comptime] width: usize,
) -> Array<Vector<f32, N>> {
    let mut loaded = Array::<Vector<f32, N>>::new(held * width);
    #[unroll]
    for row in 0..held {
        let at = owned.row(row) * width;
        #[unroll]
        for i in 0..width {
            loaded[row * width + i] = rows[at + i];
        }
    }
    loaded
}

#[cube]
fn zeros<N: Size>(#[comptime] count: usize) -> Array<Vector<f32, N>> {
    let mut rows = Array::<Vector<f32, N>>::new(count);
    #[unroll]
    for i in 0..count {
        rows[i] = Vector::new(0.0f32);
    }
    rows
}

/// The dot products of rows in registers and one in memory.
#[cube]
fn dots<N: Size>(
    rows: &Array<Vector<f32, N>>,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] held: usize,
    #[comptime] width: usize,
) -> Array<f32> {
    let mut sums = zeros::<N>(held);
    #[unroll]
    for i in 0..width {
        let other = memory[at + i];
        #[unroll]
        for row in 0..held {
            sums[row] += rows[row * width + i] * other;
        }
    }
    let mut products = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        products[row] = sums[row].vector_sum();
    }
    products
}

/// `rows[r] += factors[r] * memory[at]`
#[cube]
fn add<N: Size>(
    rows: &mut Array<Vector<f32, N>>,
    factors: &Array<f32>,
    memory: &[Vector<f32, N>],
    at: usize,
    #[comptime] held: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for i in 0..width {
        let other = memory[at + i];
        #[unroll]
        for row in 0..held {
            rows[row * width + i] += Vector::<f32, N>::new(factors[row]) * other;
        }
    }
}

#[cube]
fn store<N: Size>(
    memory: &mut [Vector<f32, N>],
    owned: &Owned,
    rows: &Array<Vector<f32, N>>,
    factors: &Array<f32>,
    #[comptime] held: usize,
    #[comptime] width: usize,
) {
    #[unroll]
    for row in 0..held {
        if owned.first + row < owned.count {
            let at = owned.row(row) * width;
            #[unroll]
            for i in 0..width {
                memory[at + i] = Vector::<f32, N>::new(factors[row]) * rows[row * width + i];
            }
        }
    }
}

/// As many ones as a unit holds rows.
#[cube]
fn ones(#[comptime] held: usize) -> Array<f32> {
    let mut ones = Array::<f32>::new(held);
    #[unroll]
    for row in 0..held {
        ones[row] = 1.0f32;
    }
    ones
}

/// The rows of queries or keys that a unit owns: neighbours, one head of each.
#[derive(CubeType)]
struct Owned {
    example: usize,
    head: usize,
    heads: usize,
    first: usize,
    /// Rows of an example.
    count: usize,
}

#[cube]
impl Owned {
    fn new(unit: usize, count: usize, heads: usize, #[comptime] held: usize) -> Owned {
        let blocks = count.div_ceil(held);
        Owned {
            example: unit / blocks / heads,
            head: (unit / blocks) % heads,
            heads,
            first: unit % blocks * held,
            count,
        }
    }

    /// Position of one head of an owned row among those of all examples.
    fn row(&self, row: usize) -> usize {
        let at = select(
            self.first + row < self.count,
            self.first + row,
            self.count - 1,
        );
        (self.example * self.count + at) * self.heads + self.head
    }
}

/// Whether a key of an example takes part.
#[cube]
fn kept<M: Numeric>(
    mask: &[M],
    sizes: &Sizes,
    example: usize,
    key: usize,
    #[comptime] masked: bool,
) -> bool {
    let mut kept = true;
    if comptime![masked] {
        let keys = sizes.rows - sizes.first_key;
        kept = u32::cast_from(mask[example * keys + key - sizes.first_key]) == 0u32;
    }
    kept
}

struct Problem {
    batch: usize,
    queries: usize,
    heads: usize,
    head_dim: usize,
    rows: usize,
    value_dim: usize,
    options: DenseAttentionOptions,
    axes: Axes,
    /// The mask, or any tensor where there is none.
    mask: CubeTensor,
    masked: bool,
}

impl Problem {
    fn new(
        [query, key, value]: [&CubeTensor; 3],
        mask: AttentionMask<CubeBackend>,
        options: DenseAttentionOptions,
    ) -> Self {
        let inputs = [&query.shape(), &key.shape(), &value.shape()];
        let shape_of_mask = match &mask {
            AttentionMask::None => None,
            AttentionMask::Keys(mask) => Some(mask.shape()),
        };
        let axes = shapes::dense_attention(inputs, shape_of_mask.as_ref(), &options);
        let [batch, queries, heads, head_dim] = query.shape().dims();
        let [_, rows, _, value_dim] = value.shape().dims();
        let (mask, masked) = match mask {
            // Never read; a kernel takes the same number of buffers with a mask and without.
            AttentionMask::None => (query.clone(), false),
            AttentionMask::Keys(mask) if rows == options.first_key => (mask, false),
            AttentionMask::Keys(mask) => (into_contiguous(mask), true),
        };
        Self {
            batch,
            queries,
            heads,
            head_dim,
            rows,
            value_dim,
            options,
            axes,
            mask,
            masked,
        }
    }

    fn vector(&self) -> usize {
        vector_size(&[self.head_dim, self.value_dim])
    }

    /// Rows that a unit holds: more than one where registers allow, since each saves reading all others
    /// once more.
    fn held(&self) -> usize {
        if self.head_dim + self.value_dim <= NARROW {
            2
        } else {
            1
        }
    }

    /// Units that own all heads of `rows` in every example.
    fn units(&self, rows: usize) -> usize {
        self.batch * self.heads * rows.div_ceil(self.held())
    }

    fn sizes(&self, units: usize) -> SizesLaunch {
        SizesLaunch::new(
            self.queries,
            self.heads,
            self.rows,
            self.options.first_key,
            self.options.scale(self.head_dim) as f32,
            units,
        )
    }
}
