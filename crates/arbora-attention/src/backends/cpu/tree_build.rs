//! Bottom-up building of token trees by a transformer block: each level in one pass, and its
//! gradient.
//!
//! A level is cut into chunks of sibling groups whose activations stay in the cache of one core.
//! Chunks are cut by shape and lengths alone, and sums over chunks have a fixed order, so that the
//! number of threads changes no result.
//!
//! The mean over siblings is linear, and so is the last layer of the feed-forward part: hidden units
//! are averaged first, and the last layer sees one row per parent.

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

/// Builds the nodes of all examples.
///
/// - leaves: `[batch, width(0), dim]`; rows of ghosts are ignored
/// - lengths: `[batch]`, tokens of each example
/// - nodes: `[batch, nodes, dim]` in level order, fully written; ghosts are zero
pub(crate) fn forward(
    dims: &BuildDims,
    leaves: &[f32],
    lengths: &[usize],
    block: &Block<&[f32]>,
    nodes: &mut [f32],
) {
    let shape = &dims.shape;
    check(dims, lengths, block, leaves.len(), nodes.len());
    nodes
        .par_chunks_exact_mut(dims.example())
        .zip(leaves.par_chunks_exact(shape.width(0) * dims.dim))
        .zip(lengths)
        .for_each(|((nodes, leaves), length)| {
            for height in 0..=shape.height() {
                let level = &mut nodes[dims.offset(height)..][..shape.width(height) * dims.dim];
                let (real, ghosts) = level.split_at_mut(dims.real(height, *length) * dims.dim);
                if height == 0 {
                    real.copy_from_slice(&leaves[..real.len()]);
                }
                ghosts.fill(0.0);
            }
        });

    let most = most_rows(numbers_per_row(dims));
    let pool = Pool::<Scratch>::default();
    for height in 1..=shape.height() {
        // What is left to write of each example's parents, and all of its children.
        let mut levels: Vec<(&mut [f32], &[f32])> = nodes
            .chunks_exact_mut(dims.example())
            .map(|example| {
                let (above, below) = example.split_at_mut(dims.offset(height - 1));
                (&mut above[dims.offset(height)..], &*below)
            })
            .collect();
        let group = shape.group(height);
        let chunks: Vec<Vec<ForwardRun>> = plan(dims, lengths, height, most)
            .into_iter()
            .map(|chunk| {
                let cut = |run: Run| {
                    let (parents, children) = &mut levels[run.example];
                    let parents = parents.split_off_mut(..run.groups * dims.dim);
                    ForwardRun {
                        children: &children[run.first * group * dims.dim..][..run.rows * dims.dim],
                        parents: parents.expect("runs are parts of their level"),
                    }
                };
                chunk.into_iter().map(cut).collect()
            })
            .collect();
        for_each(chunks, |mut runs| {
            pool.with(|scratch| {
                dispatch(Forward {
                    dims,
                    block,
                    group,
                    runs: &mut runs,
                    scratch,
                });
            });
        });
    }
}

/// Gradients of a build. Activations are computed again from the nodes.
///
/// - nodes: what [`forward`] wrote
/// - detach: whether the gradient stops at the children of each group. Then that of the leaves is
///   what `grad` has for them; otherwise it goes through all levels
/// - grad: `[batch, nodes, dim]`, gradient with respect to all nodes; ghosts are ignored
/// - d_leaves: `[batch, width(0), dim]`, fully written; ghosts are zero
/// - d_block: all fields of a [`Block`] in their order, fully written
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    dims: &BuildDims,
    nodes: &[f32],
    lengths: &[usize],
    block: &Block<&[f32]>,
    detach: bool,
    grad: &[f32],
    d_leaves: &mut [f32],
    d_block: Vec<&mut [f32]>,
) {
    let shape = &dims.shape;
    check(dims, lengths, block, d_leaves.len(), nodes.len());
    assert_eq!(
        grad.len(),
        nodes.len(),
        "tree_build_backward: gradient: expected {}, got {}",
        nodes.len(),
        grad.len()
    );
    let most = most_rows(numbers_per_row(dims) + 5 * dims.dim + dims.ff);
    let pool = Pool::default();
    let heights = (1..=shape.height()).rev();
    let chunks_of = |height| plan(dims, lengths, height, most);
    let children_of = |run: &Run, height: usize| {
        let first = run.example * dims.example() + dims.offset(height - 1);
        &nodes[first + run.first * shape.group(height) * dims.dim..][..run.rows * dims.dim]
    };
    let mut partials = vec![0.0; PARTIAL_GRADIENTS * dims.parameters()];

    // Gradients of the leaves, in level order of whole trees.
    let mut flow = Vec::new();
    if detach {
        // Levels do not depend on one another.
        let chunks = heights.flat_map(|height| {
            chunks_of(height).into_iter().map(move |chunk| {
                let cut = |run: Run| BackwardRun {
                    children: children_of(&run, height),
                    d_parents: &grad[run.example * dims.example() + dims.offset(height)..]
                        [run.first * dims.dim..][..run.groups * dims.dim],
                    d_children: &mut [],
                };
                (shape.group(height), chunk.into_iter().map(cut).collect())
            })
        });
        backward_chunks(dims, block, detach, &pool, chunks.collect(), &mut partials);
    } else {
        flow.extend_from_slice(grad);
        for height in heights {
            let group = shape.group(height);
            let mut levels: Vec<(&[f32], &mut [f32])> = flow
                .chunks_exact_mut(dims.example())
                .map(|example| {
                    let (above, below) = example.split_at_mut(dims.offset(height - 1));
                    (&above[dims.offset(height)..], below)
                })
                .collect();
            let chunks = chunks_of(height).into_iter().map(|chunk| {
                let cut = |run: Run| {
                    let (d_parents, d_children) = &mut levels[run.example];
                    let d_children = d_children.split_off_mut(..run.rows * dims.dim);
                    BackwardRun {
                        children: children_of(&run, height),
                        d_parents: &d_parents[run.first * dims.dim..][..run.groups * dims.dim],
                        d_children: d_children.expect("runs are parts of their level"),
                    }
                };
                (group, chunk.into_iter().map(cut).collect())
            });
            backward_chunks(dims, block, detach, &pool, chunks.collect(), &mut partials);
        }
    }

    let totals: &[f32] = if detach { grad } else { &flow };
    d_leaves
        .par_chunks_exact_mut(shape.width(0) * dims.dim)
        .zip(totals.par_chunks_exact(dims.example()))
        .zip(lengths)
        .for_each(|((d_leaves, totals), length)| {
            let (real, ghosts) = d_leaves.split_at_mut(length * dims.dim);
            real.copy_from_slice(&totals[dims.offset(0)..][..real.len()]);
            ghosts.fill(0.0);
        });

    sum_partials(&partials, d_block);
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

struct ForwardRun<'a> {
    children: &'a [f32],
    parents: &'a mut [f32],
}

struct BackwardRun<'a> {
    children: &'a [f32],
    d_parents: &'a [f32],
    /// Added to; empty where no gradient reaches the children.
    d_children: &'a mut [f32],
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

fn backward_chunks(
    dims: &BuildDims,
    block: &Block<&[f32]>,
    detach: bool,
    pool: &Pool<Scratch>,
    mut chunks: Vec<(usize, Vec<BackwardRun>)>,
    partials: &mut [f32],
) {
    let share = chunks.len().div_ceil(PARTIAL_GRADIENTS).max(1);
    let tasks = chunks
        .chunks_mut(share)
        .zip(partials.chunks_exact_mut(dims.parameters()));
    for_each(tasks.collect(), |(chunks, partial)| {
        pool.with(|scratch| {
            for (group, runs) in chunks {
                dispatch(Backward {
                    dims,
                    block,
                    detach,
                    group: *group,
                    runs,
                    gradients: Block::new(split(partial, dims.sizes())),
                    scratch,
                });
            }
        });
    });
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

struct Forward<'a, 'r> {
    dims: &'a BuildDims,
    block: &'a Block<&'a [f32]>,
    group: usize,
    runs: &'a mut [ForwardRun<'r>],
    scratch: &'a mut Scratch,
}

impl Kernel for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (dims, block, scratch) = (self.dims, self.block, self.scratch);
        let (dim, ff) = (dims.dim, dims.ff);
        let runs = self.runs.iter();
        let runs = runs.map(|run| (run.children, run.parents.len() / dim));
        let rows = scratch.gather(dim, self.group, runs);
        activate::<A>(dims, block, self.group, rows, scratch);

        scratch.pooled.resize(scratch.groups.len() * ff, 0.0);
        scratch.parents.resize(scratch.groups.len() * dim, 0.0);
        let siblings = || scratch.groups.iter().cloned();
        let (pooled, parents) = (&mut scratch.pooled, &mut scratch.parents);
        let (weights, normed) = (&block.feed_forward, &scratch.ff_normed);
        feed_forward::gate::<A>(siblings(), weights.inner_bias, &scratch.hidden, pooled);
        feed_forward::finish::<A>(siblings(), weights, normed, pooled, parents);
        let mut rest = parents.as_slice();
        for run in self.runs {
            let (own, after) = rest.split_at(run.parents.len());
            run.parents.copy_from_slice(own);
            rest = after;
        }
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

struct Backward<'a, 'r> {
    dims: &'a BuildDims,
    block: &'a Block<&'a [f32]>,
    /// Whether no gradient reaches the children.
    detach: bool,
    group: usize,
    runs: &'a mut [BackwardRun<'r>],
    gradients: Block<&'a mut [f32]>,
    scratch: &'a mut Scratch,
}

impl Kernel for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let (dims, block, scratch) = (self.dims, self.block, self.scratch);
        let mut gradients = self.gradients;
        let (dim, ff) = (dims.dim, dims.ff);
        let runs = self.runs.iter();
        let runs = runs.map(|run| (run.children, run.d_parents.len() / dim));
        let rows = scratch.gather(dim, self.group, runs);
        activate::<A>(dims, block, self.group, rows, scratch);

        for array in [
            &mut scratch.d_rows,
            &mut scratch.d_context,
            &mut scratch.d_query,
            &mut scratch.d_key,
            &mut scratch.d_value,
        ] {
            array.resize(rows * dim, 0.0);
        }
        scratch.pooled.resize(scratch.groups.len() * ff, 0.0);
        scratch.d_pooled.resize(scratch.groups.len() * ff, 0.0);
        scratch.d_weights.resize(self.group, 0.0);

        // Siblings share the gradient of their outputs: that of the parent, divided among them.
        let d_outputs = &mut scratch.parents;
        d_outputs.clear();
        for run in self.runs.iter() {
            d_outputs.extend_from_slice(run.d_parents);
        }
        add_rows::<A>(gradients.feed_forward.outer_bias, d_outputs);
        for (siblings, d_output) in scratch.groups.iter().zip(d_outputs.chunks_exact_mut(dim)) {
            let share = 1.0 / siblings.len() as f32;
            for number in d_output {
                *number *= share;
            }
        }
        feed_forward::differentiate::<A>(
            scratch.groups.iter().cloned(),
            &block.feed_forward,
            &scratch.attended,
            &scratch.ff_normed,
            &scratch.ff_moments,
            &mut scratch.hidden,
            d_outputs,
            &mut scratch.pooled,
            &mut scratch.d_pooled,
            &mut scratch.d_rows,
            &mut gradients.feed_forward,
        );

        // The attention among siblings.
        let accumulate = |target: &mut [f32], factor: f32, rows: &[f32], grads: &[f32]| {
            let (rows, grads) = (Matrix::new(rows, dim), Matrix::new(grads, dim));
            multiply(target, Write::Add, factor, rows.transposed(), grads);
        };
        let back =
            |target: &mut [f32], write: Write, factor: f32, grads: &[f32], weight: &[f32]| {
                let (grads, weight) = (Matrix::new(grads, dim), Matrix::new(weight, dim));
                multiply(target, write, factor, grads, weight.transposed());
            };
        let d_rows = &mut scratch.d_rows;
        add_rows::<A>(gradients.output_bias, d_rows);
        accumulate(gradients.output, 1.0, &scratch.context, d_rows);
        back(
            &mut scratch.d_context,
            Write::Set,
            1.0,
            d_rows,
            block.output,
        );
        attend_backward::<A>(dims, self.group, scratch);
        let scale = scale(dims);
        let (input, d_rows) = (&scratch.input, &mut scratch.d_rows);
        accumulate(gradients.query, scale, &scratch.normed, &scratch.d_query);
        accumulate(gradients.key, 1.0, input, &scratch.d_key);
        accumulate(gradients.value, 1.0, input, &scratch.d_value);
        back(d_rows, Write::Add, scale, &scratch.d_query, block.query);
        layer_norm_backward::<A>(
            input,
            block.norm_gamma,
            &scratch.moments,
            d_rows,
            gradients.norm_gamma,
            gradients.norm_beta,
        );
        if self.detach {
            return;
        }
        back(d_rows, Write::Add, 1.0, &scratch.d_key, block.key);
        back(d_rows, Write::Add, 1.0, &scratch.d_value, block.value);
        let mut rest = d_rows.as_slice();
        for run in self.runs {
            let (own, after) = rest.split_at(run.d_children.len());
            add_scaled::<A>(run.d_children, 1.0, own);
            rest = after;
        }
    }
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

/// Gradients of queries, keys and values through [`attend`].
#[inline(always)]
fn attend_backward<A: Arithmetic>(dims: &BuildDims, group: usize, scratch: &mut Scratch) {
    let Scratch {
        groups,
        query,
        key,
        value,
        weights,
        d_context,
        d_query,
        d_key,
        d_value,
        d_weights,
        ..
    } = scratch;
    // As in `attend`.
    let (groups, query, key, value) = (&groups[..], &query[..], &key[..], &value[..]);
    let (weights, d_context, d_weights) = (&weights[..], &d_context[..], &mut d_weights[..]);
    let (d_query, d_key, d_value) = (&mut d_query[..], &mut d_key[..], &mut d_value[..]);
    let (dim, heads) = (dims.dim, dims.heads);
    let width = dim / heads;
    d_query.fill(0.0);
    d_key.fill(0.0);
    d_value.fill(0.0);
    for siblings in groups {
        for row in siblings.clone() {
            for head in 0..heads {
                let of = |row: usize| row * dim + head * width..row * dim + (head + 1) * width;
                let weights = &weights[(row * heads + head) * group..][..group];
                let d_context = &d_context[of(row)];
                // The gradient of a logit is its weight times how far the gradient of the weight is
                // from the weighted mean of all.
                let mut mean = 0.0;
                for ((d_weight, weight), other) in
                    d_weights.iter_mut().zip(weights).zip(siblings.clone())
                {
                    *d_weight = dot::<A>(d_context, &value[of(other)]);
                    mean = A::mul_add(*weight, *d_weight, mean);
                }
                for ((d_weight, weight), other) in
                    d_weights.iter().zip(weights).zip(siblings.clone())
                {
                    let d_logit = weight * (d_weight - mean);
                    add_scaled::<A>(&mut d_query[of(row)], d_logit, &key[of(other)]);
                    add_scaled::<A>(&mut d_key[of(other)], d_logit, &query[of(row)]);
                    add_scaled::<A>(&mut d_value[of(other)], *weight, d_context);
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
    fn build(dims: &BuildDims, lengths: &[usize], detach: bool, threads: usize) -> [Vec<f32>; 3] {
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
            backward(
                dims, &nodes, lengths, &block, detach, &grad, d_leaves, d_block,
            );
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
            };
            let lengths: Vec<usize> = (0..9).map(|example| tokens * example / 8).collect();
            for detach in [true, false] {
                let alone = build(&dims, &lengths, detach, 1);
                assert!(alone.iter().flatten().all(|number| number.is_finite()));
                for threads in [2, 5] {
                    assert!(alone == build(&dims, &lengths, detach, threads));
                }
            }
        }
    }
}
