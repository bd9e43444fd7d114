//! Bottom-up building of token trees by a transformer block: each level in one pass, and its
//! gradient.
//!
//! A level is cut into chunks of sibling groups whose activations stay in the cache of one core.
//! Chunks are cut by shape and lengths alone, and sums over chunks have a fixed order, so that the
//! number of threads changes no result.
//!
//! The mean over siblings is linear, and so is the last layer of the feed-forward part: hidden units
//! are averaged first, and the last layer sees one row per parent.

use super::feed_forward::{self, FeedForwardGradientSlices, FeedForwardSlices};
use super::rows::{
    self, CHUNK_ROWS, CHUNKS_OF_FEW_ROWS, Matrix, PARTIAL_GRADIENTS, Write, add, add_rows,
    layer_norm, layer_norm_backward, load, most_rows, multiply, store, sum_partials,
};
use super::simd::{Arithmetic, Kernel, LANES, dispatch, dot, exp};
use arbora_tree::TokenTreeShape;
use rayon::prelude::*;
use std::mem::take;
use std::ops::Range;

/// Parameters of the block, row-major; matrices are `[input, output]`.
pub(crate) struct BlockSlices<'a> {
    /// `[dim]`
    pub norm_gamma: &'a [f32],
    /// `[dim]`
    pub norm_beta: &'a [f32],
    /// `[dim, dim]`
    pub query: &'a [f32],
    /// `[dim, dim]`
    pub key: &'a [f32],
    /// `[dim, dim]`
    pub value: &'a [f32],
    /// `[dim, dim]`
    pub output: &'a [f32],
    /// `[dim]`
    pub output_bias: &'a [f32],
    pub feed_forward: FeedForwardSlices<'a>,
}

/// Gradients of [`BlockSlices`], of the same shapes.
pub(crate) struct BlockGradients<'a> {
    pub norm_gamma: &'a mut [f32],
    pub norm_beta: &'a mut [f32],
    pub query: &'a mut [f32],
    pub key: &'a mut [f32],
    pub value: &'a mut [f32],
    pub output: &'a mut [f32],
    pub output_bias: &'a mut [f32],
    pub feed_forward: FeedForwardGradientSlices<'a>,
}

impl<'a> BlockGradients<'a> {
    /// The gradients as parts of one slice of [`BuildDims::parameters`] numbers.
    fn over(flat: &'a mut [f32], dims: &BuildDims) -> Self {
        let dim = dims.dim;
        let own = dims.parameters() - feed_forward::parameters(dim, dims.ff);
        let (mut rest, feed_forward) = flat.split_at_mut(own);
        let mut part = |length: usize| {
            let (part, after) = take(&mut rest).split_at_mut(length);
            rest = after;
            part
        };
        Self {
            norm_gamma: part(dim),
            norm_beta: part(dim),
            query: part(dim * dim),
            key: part(dim * dim),
            value: part(dim * dim),
            output: part(dim * dim),
            output_bias: part(dim),
            feed_forward: FeedForwardGradientSlices::over(feed_forward, dim, dims.ff),
        }
    }

    /// All fields, in the order of [`over`](Self::over).
    fn fields(&mut self) -> [&mut [f32]; 13] {
        let [
            ff_norm_gamma,
            ff_norm_beta,
            inner,
            inner_bias,
            outer,
            outer_bias,
        ] = self.feed_forward.fields();
        [
            self.norm_gamma,
            self.norm_beta,
            self.query,
            self.key,
            self.value,
            self.output,
            self.output_bias,
            ff_norm_gamma,
            ff_norm_beta,
            inner,
            inner_bias,
            outer,
            outer_bias,
        ]
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
    fn parameters(&self) -> usize {
        let dim = self.dim;
        4 * dim * dim + 3 * dim + feed_forward::parameters(dim, self.ff)
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
    block: &BlockSlices,
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

    let pool = Pool::new(dims, Pass::Forward);
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
        let chunks: Vec<Vec<ForwardRun>> = plan(dims, lengths, height, pool.rows)
            .into_iter()
            .map(|chunk| {
                let cut = |run: Run| {
                    let (parents, children) = &mut levels[run.example];
                    let (written, rest) = take(parents).split_at_mut(run.groups * dims.dim);
                    *parents = rest;
                    ForwardRun {
                        children: &children[run.first * group * dims.dim..][..run.rows * dims.dim],
                        parents: written,
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
/// - d_block: fully written
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward(
    dims: &BuildDims,
    nodes: &[f32],
    lengths: &[usize],
    block: &BlockSlices,
    detach: bool,
    grad: &[f32],
    d_leaves: &mut [f32],
    d_block: &mut BlockGradients,
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
    let pool = Pool::new(dims, if detach { Pass::Parameters } else { Pass::All });
    let heights = (1..=shape.height()).rev();
    let chunks_of = |height| plan(dims, lengths, height, pool.rows);
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
        backward_chunks(dims, block, &pool, chunks.collect(), &mut partials);
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
                    let (written, rest) = take(d_children).split_at_mut(run.rows * dims.dim);
                    *d_children = rest;
                    BackwardRun {
                        children: children_of(&run, height),
                        d_parents: &d_parents[run.first * dims.dim..][..run.groups * dims.dim],
                        d_children: written,
                    }
                };
                (group, chunk.into_iter().map(cut).collect())
            });
            let chunks = chunks.collect();
            backward_chunks(dims, block, &pool, chunks, &mut partials);
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

    sum_partials(&partials, d_block.fields());
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
    block: &BlockSlices,
    pool: &Pool,
    chunks: Vec<(usize, Vec<BackwardRun>)>,
    partials: &mut [f32],
) {
    let mut chunks = chunks;
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
                    group: *group,
                    runs,
                    gradients: BlockGradients::over(partial, dims),
                    scratch,
                });
            }
        });
    });
}

/// What a chunk's memory is for.
#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    /// Gradients of the parameters.
    Parameters,
    /// Gradients of the parameters and of the children.
    All,
}

/// Memory for the chunks that are being worked on.
struct Pool<'a> {
    dims: &'a BuildDims,
    pass: Pass,
    /// Most rows of a chunk.
    rows: usize,
    free: rows::Pool<Scratch>,
}

impl<'a> Pool<'a> {
    fn new(dims: &'a BuildDims, pass: Pass) -> Self {
        let row = Scratch::numbers_per_row(dims, pass);
        Self {
            dims,
            pass,
            rows: most_rows(row),
            free: rows::Pool::new(),
        }
    }

    fn with(&self, work: impl FnOnce(&mut Scratch)) {
        let create = || Scratch::new(self.dims, self.pass, self.rows);
        self.free.with(create, work);
    }
}

/// Activations and gradients of one chunk. Names are those of what the rows go through.
struct Scratch {
    pass: Pass,
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

impl Scratch {
    /// Rows of all siblings, of two siblings' parents, and of weights, as far as the sizes matter.
    fn numbers_per_row(dims: &BuildDims, pass: Pass) -> usize {
        let forward = 9 * dims.dim + 3 * dims.ff + dims.heads * dims.shape.branching();
        match pass {
            Pass::Forward => forward,
            Pass::Parameters | Pass::All => forward + 5 * dims.dim + dims.ff,
        }
    }

    fn new(dims: &BuildDims, pass: Pass, rows: usize) -> Self {
        let widest = (1..=dims.shape.height())
            .map(|height| dims.shape.group(height))
            .max()
            .unwrap_or(1);
        // A chunk has a whole number of groups, each with a row at least.
        let rows = rows
            .max(CHUNK_ROWS.start.next_multiple_of(widest))
            .max(CHUNK_ROWS.start + widest);
        let (dim, ff) = (dims.dim, dims.ff);
        let forward = |width: usize| vec![0.0; rows * width];
        let backward = |width: usize| match pass {
            Pass::Forward => Vec::new(),
            Pass::Parameters | Pass::All => vec![0.0; rows * width],
        };
        Self {
            pass,
            groups: Vec::with_capacity(rows),
            input: forward(dim),
            normed: forward(dim),
            query: forward(dim),
            key: forward(dim),
            value: forward(dim),
            context: forward(dim),
            attended: forward(dim),
            ff_normed: forward(dim),
            hidden: forward(2 * ff),
            weights: forward(dims.heads * widest),
            moments: vec![[0.0; 2]; rows],
            ff_moments: vec![[0.0; 2]; rows],
            pooled: forward(ff),
            d_pooled: backward(ff),
            parents: forward(dim),
            d_rows: backward(dim),
            d_context: backward(dim),
            d_query: backward(dim),
            d_key: backward(dim),
            d_value: backward(dim),
            d_weights: vec![0.0; widest],
        }
    }

    /// Copies the children of a chunk side by side and notes the groups; returns the rows.
    fn gather<'r>(
        &mut self,
        dim: usize,
        group: usize,
        runs: impl Iterator<Item = (&'r [f32], usize)>,
    ) -> usize {
        self.groups.clear();
        let mut rows = 0;
        for (children, groups) in runs {
            self.input[rows * dim..][..children.len()].copy_from_slice(children);
            let end = rows + children.len() / dim;
            let first = rows;
            self.groups.extend((0..groups).map(|at| {
                let start = first + at * group;
                start..(start + group).min(end)
            }));
            rows = end;
        }
        rows
    }
}

struct Forward<'a, 'r> {
    dims: &'a BuildDims,
    block: &'a BlockSlices<'a>,
    group: usize,
    runs: &'a mut [ForwardRun<'r>],
    scratch: &'a mut Scratch,
}

impl Kernel for Forward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self {
            dims,
            block,
            group,
            runs,
            scratch,
        } = self;
        let (dim, ff) = (dims.dim, dims.ff);
        let spans = runs
            .iter()
            .map(|run| (run.children, run.parents.len() / dim));
        let rows = scratch.gather(dim, group, spans);
        activate::<A>(dims, block, group, rows, scratch);

        let Scratch {
            groups,
            ff_normed,
            hidden,
            pooled,
            parents,
            ..
        } = scratch;
        let (pooled, parents) = (
            &mut pooled[..groups.len() * ff],
            &mut parents[..groups.len() * dim],
        );
        let siblings = || groups.iter().cloned();
        feed_forward::gate::<A>(siblings(), block.feed_forward.inner_bias, hidden, pooled);
        feed_forward::finish::<A>(siblings(), &block.feed_forward, ff_normed, pooled, parents);
        let mut rest = &*parents;
        for run in runs {
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
    block: &BlockSlices,
    group: usize,
    rows: usize,
    scratch: &mut Scratch,
) {
    let (dim, ff) = (dims.dim, dims.ff);
    let Scratch {
        groups,
        input,
        normed,
        query,
        key,
        value,
        context,
        attended,
        ff_normed,
        hidden,
        weights,
        moments,
        ff_moments,
        ..
    } = scratch;
    let length = rows * dim;
    let input = &input[..length];
    let normed = &mut normed[..length];
    layer_norm::<A>(
        input,
        block.norm_gamma,
        block.norm_beta,
        dims.epsilon,
        normed,
        moments,
    );
    let (query, key, value) = (
        &mut query[..length],
        &mut key[..length],
        &mut value[..length],
    );
    let projected = |target: &mut [f32], factor: f32, rows: &[f32], weight: &[f32]| {
        multiply(
            target,
            Write::Set,
            factor,
            Matrix::new(rows, dim),
            Matrix::new(weight, dim),
        );
    };
    projected(query, scale(dims), normed, block.query);
    projected(key, 1.0, input, block.key);
    projected(value, 1.0, input, block.value);
    let weights = &mut weights[..rows * dims.heads * group];
    let context = &mut context[..length];
    attend::<A>(dims, group, groups, query, key, value, weights, context);

    let attended = &mut attended[..length];
    for (attended, normed) in attended.chunks_exact_mut(dim).zip(normed.chunks_exact(dim)) {
        attended.copy_from_slice(normed);
        add::<A>(attended, 1.0, block.output_bias);
    }
    multiply(
        attended,
        Write::Add,
        1.0,
        Matrix::new(context, dim),
        Matrix::new(block.output, dim),
    );
    feed_forward::activate::<A>(
        &block.feed_forward,
        dims.epsilon,
        attended,
        &mut ff_normed[..length],
        ff_moments,
        &mut hidden[..rows * 2 * ff],
    );
}

/// What multiplies products of queries and keys.
fn scale(dims: &BuildDims) -> f32 {
    1.0 / ((dims.dim / dims.heads) as f32).sqrt()
}

struct Backward<'a, 'r> {
    dims: &'a BuildDims,
    block: &'a BlockSlices<'a>,
    group: usize,
    runs: &'a mut [BackwardRun<'r>],
    gradients: BlockGradients<'a>,
    scratch: &'a mut Scratch,
}

impl Kernel for Backward<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let Self {
            dims,
            block,
            group,
            runs,
            mut gradients,
            scratch,
        } = self;
        let (dim, ff) = (dims.dim, dims.ff);
        let spans = runs
            .iter()
            .map(|run| (run.children, run.d_parents.len() / dim));
        let rows = scratch.gather(dim, group, spans);
        activate::<A>(dims, block, group, rows, scratch);

        let Scratch {
            pass,
            groups,
            input,
            normed,
            query,
            key,
            value,
            context,
            attended,
            ff_normed,
            hidden,
            weights,
            moments,
            ff_moments,
            pooled,
            d_pooled,
            parents: d_outputs,
            d_rows,
            d_context,
            d_query,
            d_key,
            d_value,
            d_weights,
        } = scratch;
        let length = rows * dim;
        let (input, normed, context, attended, ff_normed) = (
            &input[..length],
            &normed[..length],
            &context[..length],
            &attended[..length],
            &ff_normed[..length],
        );

        // Siblings share the gradient of their outputs: that of the parent, divided among them.
        let d_outputs = &mut d_outputs[..groups.len() * dim];
        let mut rest = &mut *d_outputs;
        for run in runs.iter() {
            let (own, after) = rest.split_at_mut(run.d_parents.len());
            own.copy_from_slice(run.d_parents);
            rest = after;
        }
        add_rows::<A>(gradients.feed_forward.outer_bias, d_outputs);
        for (siblings, d_output) in groups.iter().zip(d_outputs.chunks_exact_mut(dim)) {
            let share = 1.0 / siblings.len() as f32;
            for number in d_output {
                *number *= share;
            }
        }
        let d_outputs = &*d_outputs;

        let d_rows = &mut d_rows[..length];
        feed_forward::differentiate::<A>(
            groups.iter().cloned(),
            &block.feed_forward,
            attended,
            ff_normed,
            ff_moments,
            &mut hidden[..rows * 2 * ff],
            d_outputs,
            &mut pooled[..groups.len() * ff],
            &mut d_pooled[..groups.len() * ff],
            d_rows,
            &mut gradients.feed_forward,
        );

        // The attention among siblings.
        let accumulate = |target: &mut [f32],
                          factor: f32,
                          rows: &[f32],
                          width: usize,
                          grads: &[f32],
                          columns: usize| {
            multiply(
                target,
                Write::Add,
                factor,
                Matrix::new(rows, width).transposed(),
                Matrix::new(grads, columns),
            );
        };
        add_rows::<A>(gradients.output_bias, d_rows);
        accumulate(gradients.output, 1.0, context, dim, d_rows, dim);
        let back =
            |target: &mut [f32], write: Write, factor: f32, grads: &[f32], weight: &[f32]| {
                multiply(
                    target,
                    write,
                    factor,
                    Matrix::new(grads, dim),
                    Matrix::new(weight, dim).transposed(),
                );
            };
        let d_context = &mut d_context[..length];
        back(d_context, Write::Set, 1.0, d_rows, block.output);
        let (d_query, d_key, d_value) = (
            &mut d_query[..length],
            &mut d_key[..length],
            &mut d_value[..length],
        );
        let attention = Attention {
            query: &query[..length],
            key: &key[..length],
            value: &value[..length],
            weights: &weights[..rows * dims.heads * group],
        };
        let d_weights = &mut d_weights[..group];
        attend_backward::<A>(
            dims, group, groups, &attention, d_context, d_query, d_key, d_value, d_weights,
        );
        let scale = scale(dims);
        accumulate(gradients.query, scale, normed, dim, d_query, dim);
        accumulate(gradients.key, 1.0, input, dim, d_key, dim);
        accumulate(gradients.value, 1.0, input, dim, d_value, dim);
        back(d_rows, Write::Add, scale, d_query, block.query);
        layer_norm_backward::<A>(
            input,
            block.norm_gamma,
            moments,
            d_rows,
            gradients.norm_gamma,
            gradients.norm_beta,
        );
        if *pass != Pass::All {
            return;
        }
        back(d_rows, Write::Add, 1.0, d_key, block.key);
        back(d_rows, Write::Add, 1.0, d_value, block.value);
        let mut rest = &*d_rows;
        for run in runs {
            let (own, after) = rest.split_at(run.d_children.len());
            add::<A>(run.d_children, 1.0, own);
            rest = after;
        }
    }
}

/// Softmax attention among siblings, head by head. Queries are scaled already.
///
/// - weights: `[rows, heads, group]`; zero for siblings that do not exist
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn attend<A: Arithmetic>(
    dims: &BuildDims,
    group: usize,
    groups: &[Range<usize>],
    query: &[f32],
    key: &[f32],
    value: &[f32],
    weights: &mut [f32],
    context: &mut [f32],
) {
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
                    add::<A>(
                        context,
                        *weight,
                        &value[other * dim + head * width..][..width],
                    );
                }
            }
        }
    }
}

/// What [`attend`] read and the weights it found.
struct Attention<'a> {
    query: &'a [f32],
    key: &'a [f32],
    value: &'a [f32],
    weights: &'a [f32],
}

#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn attend_backward<A: Arithmetic>(
    dims: &BuildDims,
    group: usize,
    groups: &[Range<usize>],
    attention: &Attention,
    d_context: &[f32],
    d_query: &mut [f32],
    d_key: &mut [f32],
    d_value: &mut [f32],
    d_weights: &mut [f32],
) {
    let (dim, heads) = (dims.dim, dims.heads);
    let width = dim / heads;
    d_query.fill(0.0);
    d_key.fill(0.0);
    d_value.fill(0.0);
    for siblings in groups {
        for row in siblings.clone() {
            for head in 0..heads {
                let of = |row: usize| row * dim + head * width..row * dim + (head + 1) * width;
                let weights = &attention.weights[(row * heads + head) * group..][..group];
                let d_context = &d_context[of(row)];
                // The gradient of a logit is its weight times how far the gradient of the weight is
                // from the weighted mean of all.
                let mut mean = 0.0;
                for ((d_weight, weight), other) in
                    d_weights.iter_mut().zip(weights).zip(siblings.clone())
                {
                    *d_weight = dot::<A>(d_context, &attention.value[of(other)]);
                    mean = A::mul_add(*weight, *d_weight, mean);
                }
                for ((d_weight, weight), other) in
                    d_weights.iter().zip(weights).zip(siblings.clone())
                {
                    let d_logit = weight * (d_weight - mean);
                    add::<A>(&mut d_query[of(row)], d_logit, &attention.key[of(other)]);
                    add::<A>(&mut d_key[of(other)], d_logit, &attention.query[of(row)]);
                    add::<A>(&mut d_value[of(other)], *weight, d_context);
                }
            }
        }
    }
}

#[track_caller]
fn check(dims: &BuildDims, lengths: &[usize], block: &BlockSlices, leaves: usize, nodes: usize) {
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
    use super::*;
    use arbora_tree::Layout;

    /// Numbers in (-1, 1) without a pattern that matters here.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    /// Nodes, gradients of the leaves and of the parameters.
    fn build(dims: &BuildDims, lengths: &[usize], detach: bool, threads: usize) -> [Vec<f32>; 3] {
        let mut weights = numbers(dims.parameters(), 1);
        let parts = BlockGradients::over(&mut weights, dims);
        let block = BlockSlices {
            norm_gamma: parts.norm_gamma,
            norm_beta: parts.norm_beta,
            query: parts.query,
            key: parts.key,
            value: parts.value,
            output: parts.output,
            output_bias: parts.output_bias,
            feed_forward: parts.feed_forward.into_slices(),
        };
        let leaves = numbers(dims.batch * dims.shape.width(0) * dims.dim, 2);
        let grad = numbers(dims.batch * dims.example(), 3);
        let mut nodes = vec![f32::NAN; grad.len()];
        let mut d_leaves = vec![f32::NAN; leaves.len()];
        let mut d_weights = vec![f32::NAN; dims.parameters()];
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        pool.unwrap().install(|| {
            forward(dims, &leaves, lengths, &block, &mut nodes);
            let mut d_block = BlockGradients::over(&mut d_weights, dims);
            let (d_leaves, d_block) = (&mut d_leaves[..], &mut d_block);
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
