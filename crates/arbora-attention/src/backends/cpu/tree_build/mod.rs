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

pub(crate) use backward::backward;
pub(crate) use forward::forward;

use super::feed_forward::{self, FeedForward};
use super::rows::{
    CHUNK_ROWS, CHUNKS_OF_FEW_ROWS, Matrix, PARTIAL_GRADIENTS, Pool, Write, add_rows, layer_norm,
    layer_norm_backward, load, most_rows, multiply, split, store, sum_partials,
};
use super::simd::{Arithmetic, Kernel, LANES, add_scaled, dispatch, dot, exp};
use arbora_tree::TokenTreeShape;
use rayon::prelude::*;
use std::mem::take;
use std::ops::Range;

/// Parameters of the block or their gradients, row-major; matrices are `[input, output]`.
pub(crate) struct Block<T> {
    /// `[dim]`
    pub norm_gamma: T,
    /// `[dim]`
    pub norm_beta: T,
    /// `[dim, dim]`
    pub query: T,
    /// `[dim, dim]`
    pub key: T,
    /// `[dim, dim]`
    pub value: T,
    /// `[dim, dim]`
    pub output: T,
    /// `[dim]`
    pub output_bias: T,
    pub feed_forward: FeedForward<T>,
}

impl<T> Block<T> {
    /// From all fields in their order, those of the feed-forward part last.
    pub(crate) fn new(mut fields: impl Iterator<Item = T>) -> Self {
        let mut next = || fields.next().expect("there are all fields");
        Self {
            norm_gamma: next(),
            norm_beta: next(),
            query: next(),
            key: next(),
            value: next(),
            output: next(),
            output_bias: next(),
            feed_forward: FeedForward::new(fields),
        }
    }
}

/// Sizes of a build.
pub(crate) struct BuildDims {
    /// The tree that all examples share.
    pub shape: TokenTreeShape,
    /// Number of examples.
    pub batch: usize,
    /// Width of a node.
    pub dim: usize,
    /// Number of heads; divides `dim`.
    pub heads: usize,
    /// Width of the feed-forward part.
    pub ff: usize,
    /// What both normalisations add to the variance.
    pub epsilon: f32,
    /// Whether gradients stop at the children of each group: that of the leaves is then what they have directly.
    pub detach: bool,
}

impl BuildDims {
    /// How many numbers each parameter of the block has, in the order of the fields.
    fn sizes(&self) -> impl Iterator<Item = usize> {
        let (row, matrix) = (self.dim, self.dim * self.dim);
        let sizes = [row, row, matrix, matrix, matrix, matrix, row];
        sizes
            .into_iter()
            .chain(feed_forward::sizes(self.dim, self.ff))
    }

    fn parameters(&self) -> usize {
        self.sizes().sum()
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
fn plan(dims: &BuildDims, lengths: &[usize], height: usize, rows: usize) -> Vec<Vec<Run>> {
    let group = dims.shape.group(height);
    let parents = |length: &usize| dims.real(height, *length);
    let total: usize = lengths.iter().map(parents).sum();
    let least = CHUNK_ROWS.start.div_ceil(group);
    let most = (rows / group).max(least);
    let size = total.div_ceil(CHUNKS_OF_FEW_ROWS).clamp(least, most);

    let mut chunks = Vec::with_capacity(total.div_ceil(size));
    let mut chunk = Vec::new();
    let mut room = size;
    for (example, length) in lengths.iter().enumerate() {
        let (parents, children) = (parents(length), dims.real(height - 1, *length));
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
    ff_normed: Vec<f32>,
    /// `[rows, 2 * ff]`
    hidden: Vec<f32>,
    /// `[rows, heads, group]`
    weights: Vec<f32>,
    /// `[rows]`, mean and inverse deviation
    moments: Vec<[f32; 2]>,
    ff_moments: Vec<[f32; 2]>,
    /// `[groups, ff]`
    pooled: Vec<f32>,
    d_pooled: Vec<f32>,
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
fn numbers_per_row(dims: &BuildDims) -> usize {
    9 * dims.dim + 3 * dims.ff + dims.heads * dims.shape.branching()
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

/// Everything before the non-linearity of the feed-forward part, for `rows` gathered rows.
#[inline(always)]
fn activate<A: Arithmetic>(
    dims: &BuildDims,
    block: &Block<&[f32]>,
    group: usize,
    rows: usize,
    scratch: &mut Scratch,
) {
    let (dim, ff) = (dims.dim, dims.ff);
    for array in [
        &mut scratch.normed,
        &mut scratch.query,
        &mut scratch.key,
        &mut scratch.value,
        &mut scratch.context,
        &mut scratch.attended,
        &mut scratch.ff_normed,
    ] {
        array.resize(rows * dim, 0.0);
    }
    scratch.hidden.resize(rows * 2 * ff, 0.0);
    scratch.weights.resize(rows * dims.heads * group, 0.0);
    scratch.moments.resize(rows, [0.0; 2]);
    scratch.ff_moments.resize(rows, [0.0; 2]);
    layer_norm::<A>(
        &scratch.input,
        block.norm_gamma,
        block.norm_beta,
        dims.epsilon,
        &mut scratch.normed,
        &mut scratch.moments,
    );
    let projected = |target: &mut [f32], factor: f32, rows: &[f32], weight: &[f32]| {
        let (rows, weight) = (Matrix::new(rows, dim), Matrix::new(weight, dim));
        multiply(target, Write::Set, factor, rows, weight);
    };
    projected(
        &mut scratch.query,
        scale(dims),
        &scratch.normed,
        block.query,
    );
    projected(&mut scratch.key, 1.0, &scratch.input, block.key);
    projected(&mut scratch.value, 1.0, &scratch.input, block.value);
    attend::<A>(dims, group, scratch);

    let attended = scratch.attended.chunks_exact_mut(dim);
    for (attended, normed) in attended.zip(scratch.normed.chunks_exact(dim)) {
        attended.copy_from_slice(normed);
        add_scaled::<A>(attended, 1.0, block.output_bias);
    }
    multiply(
        &mut scratch.attended,
        Write::Add,
        1.0,
        Matrix::new(&scratch.context, dim),
        Matrix::new(block.output, dim),
    );
    feed_forward::activate::<A>(
        &block.feed_forward,
        dims.epsilon,
        &scratch.attended,
        &mut scratch.ff_normed,
        &mut scratch.ff_moments,
        &mut scratch.hidden,
    );
}

/// What multiplies products of queries and keys.
fn scale(dims: &BuildDims) -> f32 {
    1.0 / ((dims.dim / dims.heads) as f32).sqrt()
}

/// Softmax attention among siblings, head by head. Queries are scaled already.
///
/// - weights: `[rows, heads, group]`; zero for siblings that do not exist
#[inline(always)]
fn attend<A: Arithmetic>(dims: &BuildDims, group: usize, scratch: &mut Scratch) {
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
    let (dim, heads) = (dims.dim, dims.heads);
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

#[track_caller]
fn check(dims: &BuildDims, lengths: &[usize], block: &Block<&[f32]>, leaves: usize, nodes: usize) {
    let (dim, ff) = (dims.dim, dims.ff);
    assert!(
        dims.heads > 0 && dim.is_multiple_of(dims.heads),
        "tree_build: heads: expected a divisor of {dim}, got {}",
        dims.heads
    );
    for (name, got, expected) in [
        ("lengths", lengths.len(), dims.batch),
        ("leaves", leaves, dims.batch * dims.shape.width(0) * dim),
        ("nodes", nodes, dims.batch * dims.example()),
        ("norm_gamma", block.norm_gamma.len(), dim),
        ("norm_beta", block.norm_beta.len(), dim),
        ("query", block.query.len(), dim * dim),
        ("key", block.key.len(), dim * dim),
        ("value", block.value.len(), dim * dim),
        ("output", block.output.len(), dim * dim),
        ("output_bias", block.output_bias.len(), dim),
    ] {
        assert_eq!(
            got, expected,
            "tree_build: numbers of {name}: expected {expected}, got {got}"
        );
    }
    block.feed_forward.check("tree_build", dim, ff);
    for length in lengths {
        assert!(
            *length <= dims.shape.tokens(),
            "tree_build: length: expected at most {}, got {length}",
            dims.shape.tokens()
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{numbers, on_threads};
    use super::*;
    use arbora_tree::Layout;

    /// Nodes, gradients of the leaves and of the parameters.
    fn build(dims: &BuildDims, lengths: &[usize], threads: usize) -> [Vec<f32>; 3] {
        let mut weights = numbers(dims.parameters(), 1);
        let block = Block::new(split(&mut weights, dims.sizes()).map(|part| &*part));
        let leaves = numbers(dims.batch * dims.shape.width(0) * dims.dim, 2);
        let grad = numbers(dims.batch * dims.example(), 3);
        let mut nodes = vec![f32::NAN; grad.len()];
        let mut d_leaves = vec![f32::NAN; leaves.len()];
        let mut d_weights = vec![f32::NAN; dims.parameters()];
        on_threads(threads, || {
            forward(dims, &leaves, lengths, &block, &mut nodes);
            let d_block = split(&mut d_weights, dims.sizes()).collect();
            let d_leaves = &mut d_leaves[..];
            backward(dims, &nodes, lengths, &block, &grad, d_leaves, d_block);
        });
        [nodes, d_leaves, d_weights]
    }

    #[test]
    fn results_do_not_depend_on_the_number_of_threads() {
        for (tokens, branching, layout) in [
            (150, 2, Layout::LeftFilled),
            (100, 3, Layout::Published),
            (90, 5, Layout::LeftFilled),
        ] {
            let dims = BuildDims {
                shape: TokenTreeShape::new(tokens, branching, layout),
                batch: 9,
                dim: 24,
                heads: 3,
                ff: 20,
                epsilon: 1e-5,
                detach: true,
            };
            let lengths: Vec<usize> = (0..9).map(|example| tokens * example / 8).collect();
            for detach in [true, false] {
                let dims = BuildDims { detach, ..dims };
                let alone = build(&dims, &lengths, 1);
                assert!(alone.iter().flatten().all(|number| number.is_finite()));
                for threads in [2, 5] {
                    assert!(alone == build(&dims, &lengths, threads));
                }
            }
        }
    }
}
