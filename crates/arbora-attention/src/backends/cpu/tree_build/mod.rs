//! Bottom-up building of token trees by a transformer block: each level in one pass, and its
//! gradient.
//!
//! A level is cut into chunks of sibling groups whose activations stay in the cache of one core.
//! Chunks are cut by shape and lengths alone, and sums over chunks have a fixed order, so that the
//! number of threads changes no result.
//!
//! The mean over siblings is linear, and so is the last layer of the feed-forward part: hidden units
//! are averaged first, and the last layer sees one row per parent.

mod backward;
mod forward;

use super::feed_forward::{self, FeedForward, Layer};
use super::rows::{
    Matrix, Pool, Write, add_rows, layer_norm, layer_norm_backward, load, most_rows, multiply,
    split_array, store, sum_partials,
};
use super::simd::{Arithmetic, Kernel, LANES, add_scaled, dispatch, dot, exp};
use super::tuning::{CHUNK_ROWS, CHUNKS_OF_FEW_ROWS};
use crate::functions::check::{expect, expect_divisor};
use crate::ops::TreeBuildOptions;
use crate::ops::fields::from_array;
use arbora_tree::TokenTreeShape;
use rayon::prelude::*;
use std::mem::take;
use std::ops::Range;

/// Parameters of the block or their gradients, row-major: [`BlockPrimitive`](crate::ops::BlockPrimitive) in memory.
pub(crate) struct Block<T> {
    norm_gamma: T,
    norm_beta: T,
    query: T,
    key: T,
    value: T,
    output: T,
    output_bias: T,
    feed_forward: FeedForward<T>,
}

impl<T> Block<T> {
    from_array! { [T; 13] norm_gamma, norm_beta, query, key, value, output, output_bias; feed_forward: FeedForward }
}

/// One build: its block, and the sizes and settings.
pub(crate) struct Build<'a> {
    /// The tree that all examples share.
    shape: TokenTreeShape,
    batch: usize,
    /// Width of a node.
    dim: usize,
    /// Divides `dim`.
    heads: usize,
    /// Width of the feed-forward part.
    ff: usize,
    /// What both normalisations add to the variance.
    epsilon: f32,
    /// Whether gradients stop at the children of each group: that of the leaves is then what they have directly.
    detach: bool,
    /// Tokens of each example.
    lengths: &'a [usize],
    block: Block<&'a [f32]>,
}

impl<'a> Build<'a> {
    /// Checks the weights and the lengths.
    #[track_caller]
    pub(crate) fn new(
        [batch, dim]: [usize; 2],
        lengths: &'a [usize],
        weights: [&'a [f32]; 13],
        options: &TreeBuildOptions,
    ) -> Self {
        let build = Self {
            shape: options.shape,
            batch,
            dim,
            heads: options.heads,
            ff: weights[10].len() / 2,
            epsilon: options.epsilon as f32,
            detach: options.detach_children,
            lengths,
            block: Block::from_array(weights),
        };
        expect_divisor("tree_build: heads", build.heads, dim);
        expect("tree_build: lengths", lengths.len(), batch);
        let numbers = weights.map(<[f32]>::len);
        expect("tree_build: numbers of weights", numbers, build.sizes());
        let (most, tokens) = (lengths.iter().max(), build.shape.tokens());
        let most = most.copied().unwrap_or(0);
        assert!(
            most <= tokens,
            "tree_build: length: expected at most {tokens}, got {most}"
        );
        build
    }

    #[track_caller]
    fn check(&self, leaves: &[f32], nodes: &[f32]) {
        let expected = self.batch * self.shape.width(0) * self.dim;
        expect("tree_build: numbers of leaves", leaves.len(), expected);
        let expected = self.batch * self.example();
        expect("tree_build: numbers of nodes", nodes.len(), expected);
    }

    fn feed_forward(&self) -> Layer<'_> {
        Layer {
            weights: &self.block.feed_forward,
            epsilon: self.epsilon,
        }
    }

    /// How many numbers each parameter of the block has, in the order of the fields.
    fn sizes(&self) -> [usize; 13] {
        let (row, matrix) = (self.dim, self.dim * self.dim);
        let [a, b, c, d, e, f] = feed_forward::sizes(self.dim, self.ff);
        [
            row, row, matrix, matrix, matrix, matrix, row, a, b, c, d, e, f,
        ]
    }

    fn parameters(&self) -> usize {
        self.sizes().iter().sum()
    }

    /// Numbers of one example's nodes.
    fn example(&self) -> usize {
        self.shape.nodes() * self.dim
    }

    /// Numbers before the nodes of one height in [`example`](Self::example).
    fn offset(&self, height: usize) -> usize {
        self.shape.offset(height) * self.dim
    }

    /// Nodes of one height that are over at least one token.
    fn real(&self, height: usize, length: usize) -> usize {
        length.div_ceil(self.shape.span(height))
    }
}

/// Sibling groups next to one another in one level of one example.
struct Run {
    example: usize,
    /// Index of the first parent.
    first: usize,
    groups: usize,
    /// Real children; all groups but the last are full.
    rows: usize,
}

/// Cuts the real groups of one height into chunks of at most `rows` children, across examples.
fn plan(build: &Build, height: usize, rows: usize) -> Vec<Vec<Run>> {
    let group = build.shape.group(height);
    let parents = |length: &usize| build.real(height, *length);
    let total: usize = build.lengths.iter().map(parents).sum();
    let least = CHUNK_ROWS.start.div_ceil(group);
    let most = (rows / group).max(least);
    let size = total.div_ceil(CHUNKS_OF_FEW_ROWS).clamp(least, most);

    let mut chunks = Vec::with_capacity(total.div_ceil(size));
    let mut chunk = Vec::new();
    let mut room = size;
    for (example, length) in build.lengths.iter().enumerate() {
        let (parents, children) = (parents(length), build.real(height - 1, *length));
        let mut first = 0;
        while first < parents {
            let groups = room.min(parents - first);
            chunk.push(Run {
                example,
                first,
                groups,
                rows: children.min((first + groups) * group) - first * group,
            });
            first += groups;
            room -= groups;
            if room == 0 {
                chunks.push(take(&mut chunk));
                room = size;
            }
        }
    }
    if !chunk.is_empty() {
        chunks.push(chunk);
    }
    chunks
}

/// Runs chunks in parallel. A single one stays on this thread: the root's level is a few rows.
fn for_each<T: Send>(chunks: Vec<T>, work: impl Fn(T) + Sync + Send) {
    if chunks.len() > 1 {
        chunks.into_par_iter().for_each(work);
    } else {
        chunks.into_iter().for_each(work);
    }
}

/// Activations and gradients of one chunk. Names are those of what the rows go through.
#[derive(Default)]
struct Scratch {
    /// The rows of each sibling group.
    groups: Vec<Range<usize>>,
    /// `[rows, dim]` each
    input: Vec<f32>,
    normed: Vec<f32>,
    query: Vec<f32>,
    key: Vec<f32>,
    value: Vec<f32>,
    context: Vec<f32>,
    attended: Vec<f32>,
    feed_forward: feed_forward::Scratch,
    /// `[rows, heads, group]`
    weights: Vec<f32>,
    /// `[rows]`, mean and inverse deviation
    moments: Vec<[f32; 2]>,
    /// `[groups, dim]`
    parents: Vec<f32>,
    /// `[rows, dim]` each
    d_rows: Vec<f32>,
    d_context: Vec<f32>,
    d_query: Vec<f32>,
    d_key: Vec<f32>,
    d_value: Vec<f32>,
    /// `[group]`
    d_weights: Vec<f32>,
}

/// Forward: rows of all siblings, of two siblings' parents, and of weights, as far as the sizes matter.
fn numbers_per_row(build: &Build) -> usize {
    9 * build.dim + 3 * build.ff + build.heads * build.shape.branching()
}

impl Scratch {
    /// Copies the children of a chunk side by side and notes the groups; returns the rows.
    fn gather<'r>(
        &mut self,
        dim: usize,
        group: usize,
        runs: impl Iterator<Item = (&'r [f32], usize)>,
    ) -> usize {
        self.groups.clear();
        self.input.clear();
        for (children, groups) in runs {
            let first = self.input.len() / dim;
            self.input.extend_from_slice(children);
            let end = self.input.len() / dim;
            self.groups.extend((0..groups).map(|at| {
                let start = first + at * group;
                start..(start + group).min(end)
            }));
        }
        self.input.len() / dim
    }
}

/// Everything before the feed-forward part, for `rows` gathered rows.
#[inline(always)]
fn activate<A: Arithmetic>(build: &Build, group: usize, rows: usize, scratch: &mut Scratch) {
    let dim = build.dim;
    for array in [
        &mut scratch.normed,
        &mut scratch.query,
        &mut scratch.key,
        &mut scratch.value,
        &mut scratch.context,
        &mut scratch.attended,
    ] {
        array.resize(rows * dim, 0.0);
    }
    scratch.weights.resize(rows * build.heads * group, 0.0);
    scratch.moments.resize(rows, [0.0; 2]);
    layer_norm::<A>(
        &scratch.input,
        build.block.norm_gamma,
        build.block.norm_beta,
        build.epsilon,
        &mut scratch.normed,
        &mut scratch.moments,
    );
    let projected = |target: &mut [f32], factor: f32, rows: &[f32], weight: &[f32]| {
        let (rows, weight) = (Matrix::new(rows, dim), Matrix::new(weight, dim));
        multiply(target, Write::Set, factor, rows, weight);
    };
    projected(
        &mut scratch.query,
        scale(build),
        &scratch.normed,
        build.block.query,
    );
    projected(&mut scratch.key, 1.0, &scratch.input, build.block.key);
    projected(&mut scratch.value, 1.0, &scratch.input, build.block.value);
    attend::<A>(build, group, scratch);

    let attended = scratch.attended.chunks_exact_mut(dim);
    for (attended, normed) in attended.zip(scratch.normed.chunks_exact(dim)) {
        attended.copy_from_slice(normed);
        add_scaled::<A>(attended, 1.0, build.block.output_bias);
    }
    multiply(
        &mut scratch.attended,
        Write::Add,
        1.0,
        Matrix::new(&scratch.context, dim),
        Matrix::new(build.block.output, dim),
    );
}

/// What multiplies products of queries and keys.
fn scale(build: &Build) -> f32 {
    1.0 / ((build.dim / build.heads) as f32).sqrt()
}

/// Softmax attention among siblings, head by head. Queries are scaled already.
///
/// - weights: `[rows, heads, group]`; zero for siblings that do not exist
#[inline(always)]
fn attend<A: Arithmetic>(build: &Build, group: usize, scratch: &mut Scratch) {
    let Scratch {
        groups,
        query,
        key,
        value,
        weights,
        context,
        ..
    } = scratch;
    // Slices: a vector would be looked up again in every loop.
    let (groups, query, key, value) = (&groups[..], &query[..], &key[..], &value[..]);
    let (weights, context) = (&mut weights[..], &mut context[..]);
    let (dim, heads) = (build.dim, build.heads);
    let width = dim / heads;
    for siblings in groups {
        for row in siblings.clone() {
            for head in 0..heads {
                let query = &query[row * dim + head * width..][..width];
                let weights = &mut weights[(row * heads + head) * group..][..group];
                let (real, missing) = weights.split_at_mut(siblings.len());
                let mut highest = f32::NEG_INFINITY;
                for (weight, other) in real.iter_mut().zip(siblings.clone()) {
                    *weight = dot::<A>(query, &key[other * dim + head * width..][..width]);
                    highest = highest.max(*weight);
                }
                for weight in real {
                    *weight -= highest;
                }
                missing.fill(f32::NEG_INFINITY);
            }
        }
    }
    // All exponentials at once fill the vectors that a handful of siblings does not.
    for at in (0..weights.len()).step_by(LANES) {
        let mut lanes = load(&weights[at..]);
        for lane in &mut lanes {
            *lane = exp::<A>(*lane);
        }
        store(&mut weights[at..], lanes);
    }
    for siblings in groups {
        for row in siblings.clone() {
            for head in 0..heads {
                let weights = &mut weights[(row * heads + head) * group..][..group];
                let total: f32 = weights.iter().sum();
                let factor = 1.0 / total;
                for weight in &mut *weights {
                    *weight *= factor;
                }
                let context = &mut context[row * dim + head * width..][..width];
                context.fill(0.0);
                for (weight, other) in weights.iter().zip(siblings.clone()) {
                    add_scaled::<A>(
                        context,
                        *weight,
                        &value[other * dim + head * width..][..width],
                    );
                }
            }
        }
    }
}
