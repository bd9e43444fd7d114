//! Tree search on slices.
//!
//! Sixteen queries walk down at once, one per lane: scores are dot products of whole rows, and all
//! that follows from them (softmax, choice, log-probability, entropy) is arithmetic across lanes,
//! whatever the number of heads and children.

// A lane is at one place in several arrays.
#![allow(clippy::needless_range_loop)]

use super::rows::split;
use super::simd::{
    Arithmetic, Kernel, LANES, add_scaled, dispatch, dot, dot_of_four, exp, ln, prefetch,
};
use crate::ops::limits::leaf_group;
use crate::ops::reference::{MASKED_LOGIT, SMALLEST_TOTAL};
use arbora_tree::TokenTreeShape;
use rayon::prelude::*;
use std::iter::repeat_n;

/// Rows (queries of all examples) per task.
const ROWS_PER_TASK: usize = 4 * LANES;

/// Queries whose gradients are held before they are added to keys and values.
const QUERIES_PER_CHUNK: usize = 32 * LANES;

/// Keys of a level beyond this many bytes do not stay in a core's cache: they are asked for early.
const CACHED_BYTES: usize = 16 * 1024;

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

/// Sizes and settings of a search.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchDims {
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
}

/// How children are chosen. Numbers are `[batch, queries, draws]`, paths `[batch, queries, decisions + 1]`.
#[derive(Clone, Copy, Debug)]
pub(crate) enum RouteSlices<'a> {
    Greedy,
    Sampled { numbers: &'a [f32], draws: usize },
    Uniform { numbers: &'a [f32], draws: usize },
    Given(&'a [u32]),
}

/// What a search reads: query `[batch, queries, heads, head_dim]`, key `[batch, nodes, heads,
/// head_dim]`, value `[batch, nodes, heads, value_dim]`, lengths `[batch]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SearchInputs<'a> {
    pub query: &'a [f32],
    pub key: &'a [f32],
    pub value: &'a [f32],
    pub lengths: &'a [usize],
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

impl SearchDims {
    fn key_row(&self) -> usize {
        self.heads * self.head_dim
    }

    fn value_row(&self) -> usize {
        self.heads * self.value_dim
    }

    fn steps(&self) -> usize {
        self.shape.decisions() + 1
    }
}

/// Searches; see [`tree_search`](crate::tree_search).
pub(crate) fn search(
    dims: &SearchDims,
    inputs: SearchInputs<'_>,
    route: RouteSlices<'_>,
    outputs: SearchOutputs<'_>,
) {
    if dims.batch * dims.queries == 0 {
        return;
    }
    let levels = levels(&dims.shape);
    let steps = dims.steps();
    let all = dims.batch * dims.queries;
    let (log_prob, entropy) = outputs.policy.split_at_mut(all);
    let (decisions, counts) = outputs.counts.split_at_mut(all);
    let (selected, read) = counts.split_at_mut(all);
    let policy = log_prob
        .par_chunks_mut(ROWS_PER_TASK)
        .zip(entropy.par_chunks_mut(ROWS_PER_TASK));
    let counts = decisions
        .par_chunks_mut(ROWS_PER_TASK)
        .zip(selected.par_chunks_mut(ROWS_PER_TASK))
        .zip(read.par_chunks_mut(ROWS_PER_TASK));
    // A context may have no columns, which cannot be chunked.
    let firsts = (0..all).step_by(ROWS_PER_TASK);
    let rows = firsts.map(|first| ROWS_PER_TASK.min(all - first));
    let context: Vec<_> =
        split(outputs.context, rows.map(|rows| rows * dims.value_row())).collect();
    let tasks = outputs
        .path
        .par_chunks_mut(ROWS_PER_TASK * steps)
        .zip(policy)
        .zip(counts)
        .zip(context)
        .enumerate();
    tasks.for_each(
        |(task, (((path, (log_prob, entropy)), ((decisions, selected), read)), context))| {
            let first = task * ROWS_PER_TASK;
            let task = SearchTask {
                problem: Problem {
                    dims,
                    levels: &levels,
                    inputs,
                },
                route,
                first,
                outputs: TaskOutputs {
                    context,
                    path,
                    log_prob,
                    entropy,
                    decisions,
                    selected,
                    read,
                },
            };
            match dims.head_dim {
                16 if dims.value_dim == 16 => dispatch(Specialised::<_, 16>(task)),
                32 if dims.value_dim == 32 => dispatch(Specialised::<_, 32>(task)),
                64 if dims.value_dim == 64 => dispatch(Specialised::<_, 64>(task)),
                _ => dispatch(Specialised::<_, 0>(task)),
            }
        },
    );
}

/// Work compiled for one head width; 0 is any.
struct Specialised<T, const D: usize>(T);

/// What all rows of a search read.
#[derive(Clone, Copy)]
struct Problem<'a> {
    dims: &'a SearchDims,
    levels: &'a [Level],
    inputs: SearchInputs<'a>,
}

/// Up to [`LANES`] rows on their way down.
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
            root: [0; LANES],
            length: [0; LANES],
            node: [0; LANES],
            real: [0; LANES],
            scored: [0; LANES],
            base: [0; LANES],
        };
        for lane in 0..rows {
            let example = (first + lane) / self.dims.queries;
            block.root[lane] = example * self.dims.shape.nodes();
            block.length[lane] = self.inputs.lengths[example];
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
            let real = block.length[lane]
                .div_ceil(level.span)
                .saturating_sub(first)
                .min(level.group);
            let scored = if dims.ghosts_attended && !level.leaves {
                level.width.saturating_sub(first).min(level.group)
            } else {
                real
            };
            let base = block.root[lane] + level.offset + first;
            block.real[lane] = real as u32;
            block.scored[lane] = scored as u32;
            block.base[lane] = base;
            let query = &self.inputs.query[(block.first + lane) * width..][..width];
            let keys = &self.inputs.key[base * width..][..scored * width];
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
                prefetch(&self.inputs.key[base * key..][..stored * key]);
            }
        }
        if far(level, value) {
            for lane in 0..block.rows {
                for child in 0..block.scored[lane] {
                    if child != chosen[lane] {
                        let at = block.base[lane] + child as usize;
                        prefetch(&self.inputs.value[at * value..][..value]);
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
    if D == 0 {
        for (head, product) in products.iter_mut().enumerate() {
            let part = head * dim..(head + 1) * dim;
            product.0[lane] = dot::<A>(&a[part.clone()], &b[part]) * scale;
        }
        return;
    }
    let (fours, rest) = products.as_chunks_mut::<4>();
    let done = fours.len() * 4;
    for (four, products) in fours.iter_mut().enumerate() {
        let part = four * 4 * D..(four + 1) * 4 * D;
        let sums = dot_of_four::<A, D>(&a[part.clone()], &b[part]);
        for (product, sum) in products.iter_mut().zip(sums) {
            product.0[lane] = sum * scale;
        }
    }
    for (head, product) in rest.iter_mut().enumerate() {
        let part = (done + head) * D..(done + head + 1) * D;
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

/// Some rows of a search, done by one thread.
struct SearchTask<'a> {
    problem: Problem<'a>,
    route: RouteSlices<'a>,
    first: usize,
    outputs: TaskOutputs<'a>,
}

/// The task's rows of [`SearchOutputs`].
struct TaskOutputs<'a> {
    context: &'a mut [f32],
    path: &'a mut [u32],
    log_prob: &'a mut [f32],
    entropy: &'a mut [f32],
    decisions: &'a mut [u32],
    selected: &'a mut [u32],
    read: &'a mut [u32],
}

/// Scratch of a search, made once per task.
struct SearchScratch {
    /// `[group, heads]` of the current level.
    logits: Vec<Lanes>,
    /// `[group]` of one head.
    probabilities: Vec<Lanes>,
    /// `[group]`, the mean over heads.
    policy: Vec<Lanes>,
    /// `[slots, heads]`: siblings not descended into, and leaves.
    attended: Vec<Lanes>,
    /// `[slots]`, position among the nodes of all examples.
    positions: Vec<Indices>,
}

impl<const D: usize> Kernel for Specialised<SearchTask<'_>, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let mut task = self.0;
        let dims = task.problem.dims;
        let widest = task.problem.levels.iter().map(|level| level.group).max();
        let widest = widest.unwrap_or(0);
        let slots: usize = task
            .problem
            .levels
            .iter()
            .map(|level| level.group - usize::from(!level.leaves))
            .sum();
        let mut scratch = SearchScratch {
            logits: vec![ZERO; widest * dims.heads],
            probabilities: vec![ZERO; widest],
            policy: vec![ZERO; widest],
            attended: vec![ZERO; slots * dims.heads],
            positions: vec![[NOWHERE; LANES]; slots],
        };
        let rows = task.outputs.path.len() / dims.steps();
        for start in (0..rows).step_by(LANES) {
            let count = LANES.min(rows - start);
            task.search_block::<A, D>(start, count, &mut scratch);
        }
    }
}

impl SearchTask<'_> {
    /// Searches `count` rows from the task's row `start` on.
    #[inline(always)]
    fn search_block<A: Arithmetic, const D: usize>(
        &mut self,
        start: usize,
        count: usize,
        scratch: &mut SearchScratch,
    ) {
        let problem = self.problem;
        let dims = problem.dims;
        let (heads, steps) = (dims.heads, dims.steps());
        let inverse_temperature = 1.0 / dims.temperature;
        let head_weight = 1.0 / heads as f32;
        let mut block = problem.block(self.first + start, count);
        let mut log_prob = [0.0f32; LANES];
        let mut entropy = [0.0f32; LANES];
        let mut decisions: Indices = [0; LANES];
        let mut selected: Indices = [0; LANES];
        let mut read: Indices = [0; LANES];
        let mut slot = 0;
        let path = &mut self.outputs.path[start * steps..][..count * steps];
        for lane in 0..count {
            path[lane * steps] = 0;
        }

        for (step, level) in problem.levels.iter().enumerate() {
            let group = level.group;
            let logits = &mut scratch.logits[..group * heads];
            problem.score::<A, D>(level, &mut block, logits);
            for lane in 0..LANES {
                read[lane] += block.real[lane];
            }
            if level.leaves {
                for child in 0..group {
                    scratch.attended[slot * heads..][..heads]
                        .copy_from_slice(&logits[child * heads..][..heads]);
                    for lane in 0..LANES {
                        let taken = (child as u32) < block.real[lane];
                        let at = (block.base[lane] + child) as u32;
                        scratch.positions[slot][lane] = if taken { at } else { NOWHERE };
                        selected[lane] += u32::from(taken);
                    }
                    slot += 1;
                }
                break;
            }

            let policy = &mut scratch.policy[..group];
            policy.fill(ZERO);
            let mut level_entropy = [0.0f32; LANES];
            for head in 0..heads {
                let head_entropy = softmax_of_head::<A>(
                    logits,
                    head,
                    heads,
                    group,
                    &block.real,
                    inverse_temperature,
                    &mut scratch.probabilities,
                );
                for lane in 0..LANES {
                    level_entropy[lane] += head_entropy.0[lane];
                }
                for (policy, probability) in policy.iter_mut().zip(&scratch.probabilities) {
                    for lane in 0..LANES {
                        policy.0[lane] =
                            A::mul_add(probability.0[lane], head_weight, policy.0[lane]);
                    }
                }
            }
            if let RouteSlices::Uniform { .. } = self.route {
                for (child, policy) in policy.iter_mut().enumerate() {
                    for lane in 0..LANES {
                        let real = block.real[lane];
                        let even = 1.0 / (real.max(1) as f32);
                        policy.0[lane] = if (child as u32) < real { even } else { 0.0 };
                    }
                }
            }

            let mut chosen = match self.route {
                RouteSlices::Greedy => leftmost_best(policy, &block.real),
                RouteSlices::Sampled { numbers, draws }
                | RouteSlices::Uniform { numbers, draws } => {
                    let mut uniform = [0.0f32; LANES];
                    for lane in 0..count {
                        // Indexed by height, so that padding to a higher tree moves no number.
                        uniform[lane] = numbers[(block.first + lane) * draws + level.height - 1];
                    }
                    inverse_cdf(policy, &uniform)
                }
                RouteSlices::Given(path) => {
                    let mut chosen = [0; LANES];
                    for lane in 0..count {
                        let next = path[(block.first + lane) * steps + step + 1];
                        chosen[lane] = next.saturating_sub(block.node[lane] * group as u32);
                    }
                    chosen
                }
            };
            for lane in 0..LANES {
                // An example without tokens has no real sibling, and a given path may name a ghost.
                chosen[lane] = chosen[lane].min(block.real[lane].saturating_sub(1));
            }

            let mut picked = [0.0f32; LANES];
            for (child, policy) in policy.iter().enumerate() {
                for lane in 0..LANES {
                    let hit = chosen[lane] == child as u32;
                    picked[lane] = if hit { policy.0[lane] } else { picked[lane] };
                }
            }
            for lane in 0..LANES {
                // With fewer than two real siblings the step is forced: no decision.
                let decided = block.real[lane] > 1;
                let step_log_prob = ln::<A>(picked[lane].max(f32::MIN_POSITIVE));
                log_prob[lane] += if decided { step_log_prob } else { 0.0 };
                entropy[lane] += if decided {
                    level_entropy[lane] * head_weight
                } else {
                    0.0
                };
                decisions[lane] += u32::from(decided);
            }

            // The siblings beside the chosen one are compacted.
            for other in 0..group - 1 {
                let (attended, rest) = (
                    &mut scratch.attended[slot * heads..][..heads],
                    &logits[other * heads..][..2 * heads],
                );
                let (left, right) = rest.split_at(heads);
                for (attended, (left, right)) in attended.iter_mut().zip(left.iter().zip(right)) {
                    for lane in 0..LANES {
                        let past = other as u32 >= chosen[lane];
                        attended.0[lane] = if past { right.0[lane] } else { left.0[lane] };
                    }
                }
                for lane in 0..LANES {
                    let child = other as u32 + u32::from(other as u32 >= chosen[lane]);
                    let taken = child < block.scored[lane];
                    let at = (block.base[lane] + child as usize) as u32;
                    scratch.positions[slot][lane] = if taken { at } else { NOWHERE };
                    selected[lane] += u32::from(taken);
                }
                slot += 1;
            }
            for lane in 0..LANES {
                block.node[lane] = block.node[lane] * group as u32 + chosen[lane];
            }
            for lane in 0..count {
                path[lane * steps + step + 1] = block.node[lane];
            }
            if let Some(next) = problem.levels.get(step + 1) {
                problem.prefetch(level, next, &block, &chosen);
            }
        }

        softmax_of_slots::<A>(&mut scratch.attended, heads);
        let width = dims.value_row();
        for lane in 0..count {
            weighted_sum::<A, D>(
                &mut self.outputs.context[(start + lane) * width..][..width],
                problem.inputs.value,
                dims.value_dim,
                lane,
                &scratch.positions,
                &scratch.attended,
            );
            let made = decisions[lane].max(1) as f32;
            self.outputs.entropy[start + lane] = entropy[lane] / made;
        }
        let rows = start..start + count;
        self.outputs.log_prob[rows.clone()].copy_from_slice(&log_prob[..count]);
        self.outputs.decisions[rows.clone()].copy_from_slice(&decisions[..count]);
        self.outputs.selected[rows.clone()].copy_from_slice(&selected[..count]);
        self.outputs.read[rows].copy_from_slice(&read[..count]);
    }
}

/// The first real child that no real child exceeds.
#[inline(always)]
fn leftmost_best(policy: &[Lanes], real: &Indices) -> Indices {
    let mut best = [-1.0f32; LANES];
    let mut chosen: Indices = [0; LANES];
    for (child, policy) in policy.iter().enumerate() {
        for lane in 0..LANES {
            let better = policy.0[lane] > best[lane] && (child as u32) < real[lane];
            best[lane] = if better { policy.0[lane] } else { best[lane] };
            chosen[lane] = if better { child as u32 } else { chosen[lane] };
        }
    }
    chosen
}

/// The child that a uniform number falls on; see the reference for why the whole is the last
/// cumulative entry and how children of probability 0 are never drawn.
#[inline(always)]
fn inverse_cdf(policy: &[Lanes], uniform: &[f32; LANES]) -> Indices {
    let mut whole = [0.0f32; LANES];
    for policy in policy {
        for lane in 0..LANES {
            whole[lane] += policy.0[lane];
        }
    }
    let mut cumulative = [0.0f32; LANES];
    let mut drawn: Indices = [0; LANES];
    let mut last_positive: Indices = [0; LANES];
    for policy in policy {
        for lane in 0..LANES {
            cumulative[lane] += policy.0[lane];
            drawn[lane] += u32::from(cumulative[lane] <= uniform[lane] * whole[lane]);
            last_positive[lane] += u32::from(cumulative[lane] < whole[lane]);
        }
    }
    for lane in 0..LANES {
        drawn[lane] = drawn[lane].min(last_positive[lane]);
    }
    drawn
}

/// The gradient that a backward pass starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SearchGradient<'a> {
    /// Of the context, `[batch, queries, heads, value_dim]`.
    Context(&'a [f32]),
    /// Of log-probability and entropy, `[2, batch, queries]`.
    Policy(&'a [f32]),
}

/// Gradients of a search along its path `[batch, queries, decisions + 1]`: `outputs` are those of query, key
/// and value, each of the shape of its input; the last is empty where the policy is differentiated.
///
/// Scores are computed again. Keys and values gather their gradients level by level in the order of
/// queries, whatever the number of threads: levels hold different nodes, so they need no atomics.
pub(crate) fn backward(
    dims: &SearchDims,
    inputs: SearchInputs<'_>,
    path: &[u32],
    gradient: SearchGradient<'_>,
    outputs: [&mut [f32]; 3],
) {
    if dims.batch == 0 {
        return;
    }
    let mut levels = levels(&dims.shape);
    if let SearchGradient::Policy(_) = gradient {
        levels.retain(|level| !level.leaves);
    }
    let nodes = dims.shape.nodes();
    let value_width = match gradient {
        SearchGradient::Context(_) => dims.value_row(),
        SearchGradient::Policy(_) => 0,
    };
    let query_numbers = dims.queries * dims.key_row();
    let (key_numbers, value_numbers) = (nodes * dims.key_row(), nodes * value_width);
    // What has no numbers cannot be chunked.
    let [query, key, value] = outputs;
    let query: Vec<_> = split(query, repeat_n(query_numbers, dims.batch)).collect();
    let key: Vec<_> = split(key, repeat_n(key_numbers, dims.batch)).collect();
    let value: Vec<_> = split(value, repeat_n(value_numbers, dims.batch)).collect();
    let examples = query.into_par_iter().zip(key).zip(value).enumerate();
    examples.for_each(|(example, ((query, key), value))| {
        let problem = Problem {
            dims,
            levels: &levels,
            inputs,
        };
        let example = ExampleBackward {
            problem,
            path,
            gradient,
            example,
            value_width,
        };
        match dims.head_dim {
            16 if dims.value_dim == 16 => example.run::<16>(query, key, value),
            32 if dims.value_dim == 32 => example.run::<32>(query, key, value),
            64 if dims.value_dim == 64 => example.run::<64>(query, key, value),
            _ => example.run::<0>(query, key, value),
        }
    });
}

/// The nodes of each level, of all nodes of an example, which have `width` numbers each. Levels lie behind one another.
fn by_level<'a>(levels: &[Level], nodes: &'a mut [f32], width: usize) -> Vec<&'a mut [f32]> {
    let mut end = 0;
    let lengths = levels.iter().flat_map(|level| {
        let above = level.offset - end;
        end = level.offset + level.width;
        [above * width, level.width * width]
    });
    split(nodes, lengths).skip(1).step_by(2).collect()
}

/// The backward pass of one example.
#[derive(Clone, Copy)]
struct ExampleBackward<'a> {
    problem: Problem<'a>,
    path: &'a [u32],
    gradient: SearchGradient<'a>,
    example: usize,
    value_width: usize,
}

/// Gradients of the scores and weights of a block's siblings, `[slots, heads]`, and where the siblings
/// are among the nodes of their example.
struct BlockGradients<'a> {
    scores: &'a mut [Lanes],
    weights: &'a mut [Lanes],
    positions: &'a mut [Indices],
}

impl ExampleBackward<'_> {
    fn run<const D: usize>(self, d_query: &mut [f32], d_key: &mut [f32], d_value: &mut [f32]) {
        let Problem { dims, levels, .. } = self.problem;
        let slots: usize = levels.iter().map(|level| level.group).sum();
        let per_block = slots * dims.heads;
        d_key.fill(0.0);
        d_value.fill(0.0);
        if per_block == 0 {
            d_query.fill(0.0);
            return;
        }
        let (key_width, value_width) = (dims.key_row(), self.value_width);
        let blocks = QUERIES_PER_CHUNK.min(dims.queries).div_ceil(LANES);
        let mut scores = vec![ZERO; blocks * per_block];
        let mut weights = vec![ZERO; blocks * per_block];
        let mut positions = vec![[NOWHERE; LANES]; blocks * slots];
        for (chunk, d_query) in d_query
            .chunks_mut(QUERIES_PER_CHUNK * key_width.max(1))
            .enumerate()
        {
            let first = self.example * dims.queries + chunk * QUERIES_PER_CHUNK;
            let rows = QUERIES_PER_CHUNK.min(dims.queries - chunk * QUERIES_PER_CHUNK);
            d_query
                .par_chunks_mut(LANES * key_width)
                .zip(scores.par_chunks_mut(per_block))
                .zip(weights.par_chunks_mut(per_block))
                .zip(positions.par_chunks_mut(slots))
                .enumerate()
                .with_min_len(4)
                .for_each(|(block, (((d_query, scores), weights), positions))| {
                    dispatch(Specialised::<_, D>(BlockBackward {
                        whole: self,
                        first: first + block * LANES,
                        rows: LANES.min(rows - block * LANES),
                        d_query,
                        out: BlockGradients {
                            scores,
                            weights,
                            positions,
                        },
                    }));
                });
            let d_key = by_level(levels, d_key, key_width);
            let d_value = by_level(levels, d_value, value_width);
            let tasks = levels.par_iter().zip(d_key).zip(d_value);
            tasks.for_each(|((level, d_key), d_value)| {
                dispatch(Specialised::<_, D>(Scatter {
                    whole: self,
                    level: *level,
                    first,
                    rows,
                    slots,
                    scores: &scores,
                    weights: &weights,
                    positions: &positions,
                    d_key,
                    d_value,
                }));
            });
        }
    }
}

/// Gradients of scores, weights and queries of up to [`LANES`] queries.
struct BlockBackward<'a> {
    whole: ExampleBackward<'a>,
    first: usize,
    rows: usize,
    d_query: &'a mut [f32],
    out: BlockGradients<'a>,
}

impl<const D: usize> Kernel for Specialised<BlockBackward<'_>, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let task = self.0;
        let (whole, first, rows, mut out) = (task.whole, task.first, task.rows, task.out);
        let problem = whole.problem;
        let dims = problem.dims;
        let (heads, steps) = (dims.heads, dims.steps());
        let mut block = problem.block(first, rows);
        let widest = problem.levels.iter().map(|level| level.group).max();
        let mut probabilities = vec![ZERO; widest.unwrap_or(0) * heads];
        let mut entropies = vec![ZERO; heads];
        let mut decisions: Indices = [0; LANES];
        if let SearchGradient::Policy(_) = whole.gradient {
            // The mean over real decisions needs their number first.
            for (step, level) in problem.levels.iter().enumerate() {
                for lane in 0..rows {
                    let node = whole.path[(first + lane) * steps + step] as usize;
                    let real = block.length[lane].div_ceil(level.span);
                    let real = real.saturating_sub(node * level.group).min(level.group);
                    decisions[lane] += u32::from(real > 1);
                }
            }
        }

        for (step, level) in problem.levels.iter().enumerate() {
            let slots = level.slots_above * heads..(level.slots_above + level.group) * heads;
            let scores = &mut out.scores[slots];
            for lane in 0..rows {
                block.node[lane] = whole.path[(first + lane) * steps + step];
            }
            problem.score::<A, D>(level, &mut block, scores);
            let mut chosen: Indices = [NOWHERE; LANES];
            if !level.leaves {
                for lane in 0..rows {
                    let next = whole.path[(first + lane) * steps + step + 1];
                    let child = next.saturating_sub(block.node[lane] * level.group as u32);
                    chosen[lane] = child.min(block.real[lane].saturating_sub(1));
                }
            }
            let positions = &mut out.positions[level.slots_above..][..level.group];
            match whole.gradient {
                SearchGradient::Context(_) => {
                    for (child, positions) in positions.iter_mut().enumerate() {
                        for lane in 0..LANES {
                            let child = child as u32;
                            let taken = child < block.scored[lane] && child != chosen[lane];
                            let at = (block.base[lane] - block.root[lane]) as u32 + child;
                            positions[lane] = if taken { at } else { NOWHERE };
                        }
                    }
                    // The chosen node is not attended to.
                    for child in 0..level.group {
                        for score in &mut scores[child * heads..][..heads] {
                            for lane in 0..LANES {
                                let out = chosen[lane] == child as u32;
                                score.0[lane] = if out { MASKED } else { score.0[lane] };
                            }
                        }
                    }
                }
                SearchGradient::Policy(grad) => {
                    for (child, positions) in positions.iter_mut().enumerate() {
                        for lane in 0..LANES {
                            let taken = (child as u32) < block.real[lane] && block.real[lane] > 1;
                            let at = (block.base[lane] - block.root[lane] + child) as u32;
                            positions[lane] = if taken { at } else { NOWHERE };
                        }
                    }
                    policy_scores::<A>(
                        dims,
                        level,
                        &block,
                        &chosen,
                        grad,
                        &decisions,
                        scores,
                        &mut probabilities,
                        &mut entropies,
                    );
                }
            }
        }

        if let SearchGradient::Context(grad) = whole.gradient {
            context_scores::<A, D>(&problem, &block, grad, &mut out);
        }

        let width = dims.key_row();
        for lane in 0..rows {
            weighted_sum::<A, D>(
                &mut task.d_query[lane * width..][..width],
                &problem.inputs.key[block.root[lane] * width..],
                dims.head_dim,
                lane,
                out.positions,
                out.scores,
            );
        }
    }
}

/// From scores to gradients of the logits and to weights, through the context.
#[inline(always)]
fn context_scores<A: Arithmetic, const D: usize>(
    problem: &Problem<'_>,
    block: &Block,
    grad: &[f32],
    out: &mut BlockGradients<'_>,
) {
    let dims = problem.dims;
    let (heads, width) = (dims.heads, dims.value_row());
    out.weights.copy_from_slice(out.scores);
    softmax_of_slots::<A>(out.weights, heads);
    // The gradient of a weight is the value's product with that of the context.
    for lane in 0..block.rows {
        let grad = &grad[(block.first + lane) * width..][..width];
        for (slot, position) in out.positions.iter().enumerate() {
            let scores = &mut out.scores[slot * heads..][..heads];
            if position[lane] == NOWHERE {
                for score in scores {
                    score.0[lane] = 0.0;
                }
                continue;
            }
            let at = block.root[lane] + position[lane] as usize;
            let value = &problem.inputs.value[at * width..][..width];
            head_dots::<A, D>(grad, value, dims.value_dim, lane, 1.0, scores);
        }
    }
    for head in 0..heads {
        let mut mean = [0.0f32; LANES];
        for at in (head..out.scores.len()).step_by(heads) {
            for lane in 0..LANES {
                let (weight, score) = (out.weights[at].0[lane], out.scores[at].0[lane]);
                mean[lane] = A::mul_add(weight, score, mean[lane]);
            }
        }
        for at in (head..out.scores.len()).step_by(heads) {
            for lane in 0..LANES {
                let centred = out.scores[at].0[lane] - mean[lane];
                out.scores[at].0[lane] = out.weights[at].0[lane] * centred * dims.scale;
            }
        }
    }
}

/// From scores to gradients of the logits of one group of siblings, through log-probability and
/// entropy.
#[inline(always)]
#[allow(clippy::too_many_arguments)]
fn policy_scores<A: Arithmetic>(
    dims: &SearchDims,
    level: &Level,
    block: &Block,
    chosen: &Indices,
    grad: &[f32],
    decisions: &Indices,
    scores: &mut [Lanes],
    probabilities: &mut [Lanes],
    entropies: &mut [Lanes],
) {
    let (heads, group) = (dims.heads, level.group);
    let inverse_temperature = 1.0 / dims.temperature;
    let head_weight = 1.0 / heads as f32;
    // [heads, group], so that one head's children are side by side.
    let mut policy = ZERO;
    for head in 0..heads {
        let probabilities = &mut probabilities[head * group..][..group];
        entropies[head] = softmax_of_head::<A>(
            scores,
            head,
            heads,
            group,
            &block.real,
            inverse_temperature,
            probabilities,
        );
        for (child, probability) in probabilities.iter().enumerate() {
            for lane in 0..LANES {
                let hit = chosen[lane] == child as u32;
                policy.0[lane] += if hit {
                    probability.0[lane] * head_weight
                } else {
                    0.0
                };
            }
        }
    }
    // The share of a head in the policy, p_a / (heads * pi(a)), is at most one, while a gradient over
    // a policy near the smallest number overflows: both are scaled by the power of two next to the
    // policy, which alters no bit of a quotient that does not.
    let mut scale_of_policy = [1.0f32; LANES];
    let mut from_log_prob = [0.0f32; LANES];
    let mut from_entropy = [0.0f32; LANES];
    let (first, all) = (block.first, dims.batch * dims.queries);
    for lane in 0..block.rows {
        let (of_log_prob, of_entropy) = (grad[first + lane], grad[all + first + lane]);
        let decided = block.real[lane] > 1;
        let clamped = policy.0[lane] < f32::MIN_POSITIVE;
        if decided {
            from_entropy[lane] = of_entropy * head_weight / decisions[lane].max(1) as f32;
        }
        if decided && !clamped {
            scale_of_policy[lane] = inverse_power_of_two(policy.0[lane]);
            let policy = policy.0[lane] * scale_of_policy[lane];
            from_log_prob[lane] = of_log_prob * head_weight / policy;
        }
    }
    let factor = inverse_temperature * dims.scale;
    for head in 0..heads {
        let probabilities = &probabilities[head * group..][..group];
        let entropy = &entropies[head].0;
        let mut taken = [0.0f32; LANES];
        for (child, probability) in probabilities.iter().enumerate() {
            for lane in 0..LANES {
                let hit = chosen[lane] == child as u32;
                taken[lane] = if hit {
                    probability.0[lane] * scale_of_policy[lane]
                } else {
                    taken[lane]
                };
            }
        }
        for (child, probability) in probabilities.iter().enumerate() {
            let score = &mut scores[child * heads + head].0;
            for lane in 0..LANES {
                let probability = probability.0[lane];
                let hit = if chosen[lane] == child as u32 {
                    1.0
                } else {
                    0.0
                };
                // d log pi(a) / d l_c = p_a (1[c = a] - p_c) / (heads * pi(a))
                let log_prob = from_log_prob[lane] * taken[lane] * (hit - probability);
                // d H / d l_c = -p_c (ln p_c + H)
                let logarithm = ln::<A>(probability.max(f32::MIN_POSITIVE));
                let spread = -from_entropy[lane] * probability * (logarithm + entropy[lane]);
                score[lane] = (log_prob + spread) * factor;
            }
        }
    }
}

/// The power of two that takes a positive normal `value` into [1, 2); 0 where it is no finite number.
#[inline(always)]
fn inverse_power_of_two(value: f32) -> f32 {
    let exponent = value.to_bits() >> (f32::MANTISSA_DIGITS - 1);
    f32::from_bits((2u32 * 127).saturating_sub(exponent) << (f32::MANTISSA_DIGITS - 1))
}

/// Adds the gradients of one level's keys and values, query by query.
struct Scatter<'a> {
    whole: ExampleBackward<'a>,
    level: Level,
    first: usize,
    rows: usize,
    /// Siblings on all levels.
    slots: usize,
    scores: &'a [Lanes],
    weights: &'a [Lanes],
    positions: &'a [Indices],
    d_key: &'a mut [f32],
    d_value: &'a mut [f32],
}

impl<const D: usize> Kernel for Specialised<Scatter<'_>, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let task = self.0;
        let (whole, level, first) = (task.whole, task.level, task.first);
        let dims = whole.problem.dims;
        let heads = dims.heads;
        let (key_width, value_width) = (dims.key_row(), dims.value_row());
        for row in 0..task.rows {
            let (block, lane) = (row / LANES, row % LANES);
            let query = &whole.problem.inputs.query[(first + row) * key_width..][..key_width];
            for child in 0..level.group {
                let slot = block * task.slots + level.slots_above + child;
                let position = task.positions[slot][lane];
                if position == NOWHERE {
                    continue;
                }
                let node = position as usize - level.offset;
                let target = &mut task.d_key[node * key_width..][..key_width];
                for head in 0..heads {
                    let score = task.scores[slot * heads + head].0[lane];
                    head_add::<A, D>(target, score, query, head, dims.head_dim);
                }
                if let SearchGradient::Context(grad) = whole.gradient {
                    let grad = &grad[(first + row) * value_width..][..value_width];
                    let target = &mut task.d_value[node * value_width..][..value_width];
                    for head in 0..heads {
                        let weight = task.weights[slot * heads + head].0[lane];
                        head_add::<A, D>(target, weight, grad, head, dims.value_dim);
                    }
                }
            }
        }
    }
}
