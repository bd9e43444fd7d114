//! Tree search on slices.
//!
//! Sixteen queries walk down at once, one per lane: scores are dot products of whole rows, and all
//! that follows from them (softmax, choice, log-probability, entropy) is arithmetic across lanes,
//! whatever the number of heads and children.

// A lane is at one place in several arrays.
#![allow(clippy::needless_range_loop)]

mod backward;
mod forward;

pub(crate) use backward::SearchGradient;

use super::rows::{split, split_array};
use super::simd::{
    Arithmetic, Kernel, LANES, add_scaled, dispatch, dot, dot_of_four, exp, ln, prefetch,
};
use super::tuning::CACHED_BYTES;
use crate::ops::limits::leaf_group;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use arbora_tree::TokenTreeShape;
use rayon::prelude::*;
use std::iter::repeat_n;

const MASKED: f32 = MASKED_LOGIT as f32;
const SMALLEST: f32 = SMALLEST_TOTAL as f32;
const NOWHERE: u32 = u32::MAX;

/// One number per query.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub(crate) struct Lanes([f32; LANES]);

const ZERO: Lanes = Lanes([0.0; LANES]);

/// One index per query.
type Indices = [u32; LANES];

/// One search: what it reads, and the sizes and settings of that.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Search<'a> {
    pub shape: TokenTreeShape,
    pub batch: usize,
    pub queries: usize,
    pub heads: usize,
    pub head_dim: usize,
    pub value_dim: usize,
    pub scale: f32,
    pub temperature: f32,
    /// Whether unchosen inner ghosts are attended to.
    pub ghosts_attended: bool,
    /// `[batch, queries, heads, head_dim]`
    pub query: &'a [f32],
    /// `[batch, nodes, heads, head_dim]`
    pub key: &'a [f32],
    /// `[batch, nodes, heads, value_dim]`
    pub value: &'a [f32],
    /// `[batch]`
    pub lengths: &'a [usize],
}

/// How children are chosen. Numbers are `[batch, queries, draws]`, paths `[batch, queries, decisions + 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RouteSlices<'a> {
    Greedy,
    Sampled(&'a [f32]),
    Uniform(&'a [f32]),
    Given(&'a [u32]),
}

/// What a search writes: context `[batch, queries, heads, value_dim]`, path `[batch, queries,
/// decisions + 1]`, policy `[2, batch, queries]`, counts `[3, batch, queries]`.
#[derive(Debug)]
pub(crate) struct SearchOutputs<'a> {
    pub context: &'a mut [f32],
    pub path: &'a mut [u32],
    pub policy: &'a mut [f32],
    pub counts: &'a mut [u32],
}

/// One group of siblings on the way down.
#[derive(Clone, Copy, Debug)]
struct Level {
    height: usize,
    group: usize,
    /// Position of the level's first node.
    offset: usize,
    width: usize,
    span: usize,
    /// Siblings on the levels above.
    slots_above: usize,
    /// Whether all siblings are taken, and no child is chosen.
    leaves: bool,
}

impl Level {
    /// Siblings from `first` on that are over tokens.
    #[inline(always)]
    fn real(&self, length: usize, first: usize) -> usize {
        let real = length.div_ceil(self.span).saturating_sub(first);
        real.min(self.group)
    }
}

fn levels(shape: &TokenTreeShape) -> Vec<Level> {
    let mut slots_above = 0;
    let decisions = (1..=shape.decisions())
        .rev()
        .map(|height| (height, shape.group(height + 1), false));
    let leaves = leaf_group(shape);
    decisions
        .chain([(0, leaves, true)])
        .map(|(height, group, leaves)| {
            let level = Level {
                height,
                group,
                offset: shape.offset(height),
                width: shape.width(height),
                span: shape.span(height),
                slots_above,
                leaves,
            };
            slots_above += group;
            level
        })
        .collect()
}

impl Search<'_> {
    fn key_row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn value_row(&self) -> usize {
        self.heads * self.value_dim
    }

    /// Nodes on a path.
    pub(crate) fn steps(&self) -> usize {
        self.shape.decisions() + 1
    }
}

/// Work compiled for one head width; 0 is any.
struct Specialised<T, const D: usize>(T);

/// What all rows of a search read.
#[derive(Clone, Copy)]
struct Problem<'a> {
    dims: &'a Search<'a>,
    levels: &'a [Level],
}

/// Up to [`LANES`] rows on their way down.
#[derive(Default)]
struct Block {
    first: usize,
    rows: usize,
    /// Position of the root among the nodes of all examples.
    root: [usize; LANES],
    length: [usize; LANES],
    /// Index of the node arrived at, among its level.
    node: Indices,
    /// Real siblings of the current group.
    real: Indices,
    /// Siblings of the current group whose keys are read; the others are ghosts.
    scored: Indices,
    /// Position of the group's first sibling among the nodes of all examples.
    base: [usize; LANES],
}

impl<'a> Problem<'a> {
    #[inline(always)]
    fn block(&self, first: usize, rows: usize) -> Block {
        let mut block = Block {
            first,
            rows,
            ..Block::default()
        };
        for lane in 0..rows {
            let example = (first + lane) / self.dims.queries;
            block.root[lane] = example * self.dims.shape.nodes();
            block.length[lane] = self.dims.lengths[example];
        }
        block
    }

    /// Scores the children of each lane's node: `logits` is `[group, heads]`, masked for those whose
    /// keys are not read.
    #[inline(always)]
    fn score<A: Arithmetic, const D: usize>(
        &self,
        level: &Level,
        block: &mut Block,
        logits: &mut [Lanes],
    ) {
        let dims = self.dims;
        let (heads, width) = (dims.heads, dims.key_row());
        for lane in 0..block.rows {
            let first = block.node[lane] as usize * level.group;
            let real = level.real(block.length[lane], first);
            let scored = if dims.ghosts_attended && !level.leaves {
                level.width.saturating_sub(first).min(level.group)
            } else {
                real
            };
            let base = block.root[lane] + level.offset + first;
            block.real[lane] = real as u32;
            block.scored[lane] = scored as u32;
            block.base[lane] = base;
            let query = &self.dims.query[(block.first + lane) * width..][..width];
            let keys = &self.dims.key[base * width..][..scored * width];
            for child in 0..level.group {
                let logits = &mut logits[child * heads..][..heads];
                if child >= scored {
                    for logit in logits {
                        logit.0[lane] = MASKED;
                    }
                    continue;
                }
                let key = &keys[child * width..][..width];
                head_dots::<A, D>(query, key, dims.head_dim, lane, dims.scale, logits);
            }
        }
    }

    /// Asks for the keys of the children of each lane's node, and for the values of `position`.
    #[inline(always)]
    fn prefetch(&self, level: &Level, next: &Level, block: &Block, chosen: &Indices) {
        let (key, value) = (self.dims.key_row(), self.dims.value_row());
        let far =
            |level: &Level, width: usize| level.width * width * size_of::<f32>() > CACHED_BYTES;
        if far(next, key) {
            for lane in 0..block.rows {
                let first = block.node[lane] as usize * next.group;
                let stored = next.width.saturating_sub(first).min(next.group);
                let base = block.root[lane] + next.offset + first;
                prefetch(&self.dims.key[base * key..][..stored * key]);
            }
        }
        if far(level, value) {
            for lane in 0..block.rows {
                for child in 0..block.scored[lane] {
                    if child != chosen[lane] {
                        let at = block.base[lane] + child as usize;
                        prefetch(&self.dims.value[at * value..][..value]);
                    }
                }
            }
        }
    }
}

/// The dot products of two rows, head by head, into one lane of `products`.
#[inline(always)]
fn head_dots<A: Arithmetic, const D: usize>(
    a: &[f32],
    b: &[f32],
    dim: usize,
    lane: usize,
    scale: f32,
    products: &mut [Lanes],
) {
    let mut done = 0;
    if D > 0 {
        let (fours, _) = products.as_chunks_mut::<4>();
        for (four, products) in fours.iter_mut().enumerate() {
            let part = four * 4 * D..(four + 1) * 4 * D;
            let sums = dot_of_four::<A, D>(&a[part.clone()], &b[part]);
            for (product, sum) in products.iter_mut().zip(sums) {
                product.0[lane] = sum * scale;
            }
        }
        done = fours.len() * 4;
    }
    let dim = if D == 0 { dim } else { D };
    for (head, product) in products.iter_mut().enumerate().skip(done) {
        let part = head * dim..(head + 1) * dim;
        product.0[lane] = dot::<A>(&a[part.clone()], &b[part]) * scale;
    }
}

/// `target += factor * source`, for one head of two rows.
#[inline(always)]
fn head_add<A: Arithmetic, const D: usize>(
    target: &mut [f32],
    factor: f32,
    source: &[f32],
    head: usize,
    dim: usize,
) {
    let dim = if D == 0 { dim } else { D };
    let target = &mut target[head * dim..][..dim];
    add_scaled::<A>(target, factor, &source[head * dim..][..dim]);
}

/// The sum over one lane's slots of factor times row, per head: `rows` is `[nodes, heads, dim]`, factors
/// are `[slots, heads]`.
#[inline(always)]
fn weighted_sum<A: Arithmetic, const D: usize>(
    sum: &mut [f32],
    rows: &[f32],
    dim: usize,
    lane: usize,
    positions: &[Indices],
    factors: &[Lanes],
) {
    let width = sum.len();
    if D == 0 {
        sum.fill(0.0);
        let heads = width.checked_div(dim).unwrap_or(0);
        for (slot, position) in positions.iter().enumerate() {
            if position[lane] != NOWHERE {
                let row = &rows[position[lane] as usize * width..][..width];
                for head in 0..heads {
                    let factor = factors[slot * heads + head].0[lane];
                    head_add::<A, D>(sum, factor, row, head, dim);
                }
            }
        }
        return;
    }
    // Sums stay in registers over all slots: four vectors of them at a time.
    let heads = width / D;
    let (parts, _) = sum.as_chunks_mut::<LANES>();
    let count = parts.len();
    for first in (0..count).step_by(4) {
        let several = 4.min(count - first);
        let mut totals = [A::splat(0.0); 4];
        for (position, factors) in positions.iter().zip(factors.chunks_exact(heads)) {
            if position[lane] == NOWHERE {
                continue;
            }
            let row = &rows[position[lane] as usize * width + first * LANES..];
            if several == 4 {
                let (row, _) = row[..4 * LANES].as_chunks::<LANES>();
                for part in 0..4 {
                    let factor = A::splat(factors[(first + part) / (D / LANES)].0[lane]);
                    totals[part] = A::mul_add_lanes(factor, A::load(&row[part]), totals[part]);
                }
            } else {
                let (row, _) = row[..several * LANES].as_chunks::<LANES>();
                for part in 0..several {
                    let factor = A::splat(factors[(first + part) / (D / LANES)].0[lane]);
                    totals[part] = A::mul_add_lanes(factor, A::load(&row[part]), totals[part]);
                }
            }
        }
        for part in 0..several {
            A::store(totals[part], &mut parts[first + part]);
        }
    }
}

/// Probabilities of one head's children, in place of their logits; the entropy is returned.
///
/// `logits` is read with a stride of `heads`, and only the first `real` entries of a lane count.
#[inline(always)]
fn softmax_of_head<A: Arithmetic>(
    logits: &[Lanes],
    head: usize,
    heads: usize,
    group: usize,
    real: &Indices,
    inverse_temperature: f32,
    probabilities: &mut [Lanes],
) -> Lanes {
    let mut greatest = [MASKED; LANES];
    for child in 0..group {
        let logit = &logits[child * heads + head].0;
        for lane in 0..LANES {
            let masked = child as u32 >= real[lane];
            let logit = if masked { MASKED } else { logit[lane] };
            greatest[lane] = greatest[lane].max(logit);
        }
    }
    let mut total = [0.0f32; LANES];
    let mut weighted = [0.0f32; LANES];
    for child in 0..group {
        let logit = &logits[child * heads + head].0;
        let probability = &mut probabilities[child].0;
        for lane in 0..LANES {
            let shifted = (logit[lane] - greatest[lane]) * inverse_temperature;
            let masked = child as u32 >= real[lane];
            let exponential = if masked { 0.0 } else { exp::<A>(shifted) };
            let shifted = if masked { 0.0 } else { shifted };
            probability[lane] = exponential;
            total[lane] += exponential;
            weighted[lane] = A::mul_add(exponential, shifted, weighted[lane]);
        }
    }
    let mut inverse = [0.0f32; LANES];
    let mut entropy = ZERO;
    for lane in 0..LANES {
        let total = total[lane].max(SMALLEST);
        inverse[lane] = 1.0 / total;
        entropy.0[lane] = ln::<A>(total) - weighted[lane] * inverse[lane];
    }
    for probability in &mut probabilities[..group] {
        for lane in 0..LANES {
            probability.0[lane] *= inverse[lane];
        }
    }
    entropy
}

/// Weights of attention over all entries of each head, in place of their logits: `[slots, heads]`.
/// Masked entries get exactly 0; so do all entries of a lane without any other.
#[inline(always)]
fn softmax_of_slots<A: Arithmetic>(logits: &mut [Lanes], heads: usize) {
    for head in 0..heads {
        let entries = || (head..logits.len()).step_by(heads);
        let mut greatest = [MASKED; LANES];
        for at in entries() {
            for lane in 0..LANES {
                greatest[lane] = greatest[lane].max(logits[at].0[lane]);
            }
        }
        let mut total = [0.0f32; LANES];
        for at in (head..logits.len()).step_by(heads) {
            for lane in 0..LANES {
                let logit = logits[at].0[lane];
                let exponential = exp::<A>(logit - greatest[lane]);
                let weight = if logit <= MASKED { 0.0 } else { exponential };
                logits[at].0[lane] = weight;
                total[lane] += weight;
            }
        }
        for total in &mut total {
            *total = 1.0 / total.max(SMALLEST);
        }
        for at in (head..logits.len()).step_by(heads) {
            for lane in 0..LANES {
                logits[at].0[lane] *= total[lane];
            }
        }
    }
}
