//! Gradients of tree search along its paths: through the context, and through log-probability and entropy.

use super::super::tuning::QUERIES_PER_CHUNK;
use super::*;

/// The gradient that a backward pass starts from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum SearchGradient<'a> {
    /// Of the context, `[batch, queries, heads, value_dim]`.
    Context(&'a [f32]),
    /// Of log-probability and entropy, `[2, batch, queries]`.
    Policy(&'a [f32]),
}

impl Search<'_> {
    /// Gradients of a search along its path `[batch, queries, decisions + 1]`: `outputs` are those of query, key
    /// and value, each of the shape of its input; the last is empty where the policy is differentiated.
    ///
    /// Scores are computed again. Keys and values gather their gradients level by level in the order of
    /// queries, whatever the number of threads: levels hold different nodes, so they need no atomics.
    pub(crate) fn backward(
        &self,
        path: &[u32],
        gradient: SearchGradient<'_>,
        outputs: [&mut [f32]; 3],
    ) {
        if self.batch == 0 {
            return;
        }
        let mut levels = levels(&self.shape);
        let value_width = match gradient {
            SearchGradient::Context(_) => self.value_row(),
            SearchGradient::Policy(_) => {
                levels.retain(|level| !level.leaves);
                0
            }
        };
        // What has no numbers cannot be chunked.
        let by_example =
            |output, numbers| -> Vec<_> { split(output, repeat_n(numbers, self.batch)).collect() };
        let nodes = self.shape.nodes();
        let [query, key, value] = outputs;
        let query = by_example(query, self.queries * self.key_row());
        let key = by_example(key, nodes * self.key_row());
        let value = by_example(value, nodes * value_width);
        let examples = query.into_par_iter().zip(key).zip(value).enumerate();
        examples.for_each(|(example, ((query, key), value))| {
            let example = ExampleBackward {
                problem: Problem {
                    dims: self,
                    levels: &levels,
                },
                path,
                gradient,
                example,
                value_width,
            };
            match self.head_dim {
                16 if self.value_dim == 16 => example.run::<16>(query, key, value),
                32 if self.value_dim == 32 => example.run::<32>(query, key, value),
                64 if self.value_dim == 64 => example.run::<64>(query, key, value),
                _ => example.run::<0>(query, key, value),
            }
        });
    }
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

impl ExampleBackward<'_> {
    fn run<const D: usize>(self, d_query: &mut [f32], d_key: &mut [f32], d_value: &mut [f32]) {
        let Problem { dims, levels } = self.problem;
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
                        scores,
                        weights,
                        positions,
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
    /// Gradients of scores, `[slots, heads]`.
    scores: &'a mut [Lanes],
    /// Gradients of weights, `[slots, heads]`.
    weights: &'a mut [Lanes],
    /// Where siblings are among the nodes of their example, `[slots]`.
    positions: &'a mut [Indices],
}

impl<const D: usize> Kernel for Specialised<BlockBackward<'_>, D> {
    type Output = ();

    #[inline(always)]
    fn run<A: Arithmetic>(self) {
        let mut task = self.0;
        let (whole, first, rows) = (task.whole, task.first, task.rows);
        let problem = whole.problem;
        let dims = problem.dims;
        let (heads, steps) = (dims.heads, dims.steps());
        let mut block = problem.block(first, rows);
        let widest = problem.levels.iter().map(|level| level.group).max();
        let mut policy = Policy {
            decisions: [0; LANES],
            probabilities: vec![ZERO; widest.unwrap_or(0) * heads],
            entropies: vec![ZERO; heads],
        };
        if let SearchGradient::Policy(_) = whole.gradient {
            // The mean over real decisions needs their number first.
            for (step, level) in problem.levels.iter().enumerate() {
                for lane in 0..rows {
                    let node = whole.path[(first + lane) * steps + step] as usize;
                    let real = level.real(block.length[lane], node * level.group);
                    policy.decisions[lane] += u32::from(real > 1);
                }
            }
        }

        for (step, level) in problem.levels.iter().enumerate() {
            let slots = level.slots_above * heads..(level.slots_above + level.group) * heads;
            let scores = &mut task.scores[slots];
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
            // Of the context the scored siblings beside the chosen one get gradients, of the policy those that it decides among.
            let (mut siblings, mut skipped) = (block.scored, chosen);
            if let SearchGradient::Policy(grad) = whole.gradient {
                policy_scores::<A>(dims, level, &block, &chosen, grad, scores, &mut policy);
                skipped = [NOWHERE; LANES];
                for lane in 0..LANES {
                    let real = block.real[lane];
                    siblings[lane] = if real > 1 { real } else { 0 };
                }
            } else {
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
            let positions = &mut task.positions[level.slots_above..][..level.group];
            for (child, positions) in positions.iter_mut().enumerate() {
                for lane in 0..LANES {
                    let child = child as u32;
                    let taken = child < siblings[lane] && child != skipped[lane];
                    let at = (block.base[lane] - block.root[lane]) as u32 + child;
                    positions[lane] = if taken { at } else { NOWHERE };
                }
            }
        }

        if let SearchGradient::Context(grad) = whole.gradient {
            task.context_scores::<A, D>(&block, grad);
        }

        let width = dims.key_row();
        for lane in 0..rows {
            weighted_sum::<A, D>(
                &mut task.d_query[lane * width..][..width],
                &problem.dims.key[block.root[lane] * width..],
                dims.head_dim,
                lane,
                task.positions,
                task.scores,
            );
        }
    }
}

impl BlockBackward<'_> {
    /// From scores to gradients of the logits and to weights, through the context.
    #[inline(always)]
    fn context_scores<A: Arithmetic, const D: usize>(&mut self, block: &Block, grad: &[f32]) {
        let dims = self.whole.problem.dims;
        let (heads, width) = (dims.heads, dims.value_row());
        self.weights.copy_from_slice(self.scores);
        softmax_of_slots::<A>(self.weights, heads);
        // The gradient of a weight is the value's product with that of the context.
        for lane in 0..block.rows {
            let grad = &grad[(block.first + lane) * width..][..width];
            for (slot, position) in self.positions.iter().enumerate() {
                let scores = &mut self.scores[slot * heads..][..heads];
                if position[lane] == NOWHERE {
                    for score in scores {
                        score.0[lane] = 0.0;
                    }
                    continue;
                }
                let at = block.root[lane] + position[lane] as usize;
                let value = &dims.value[at * width..][..width];
                head_dots::<A, D>(grad, value, dims.value_dim, lane, 1.0, scores);
            }
        }
        for head in 0..heads {
            let mut mean = [0.0f32; LANES];
            for at in (head..self.scores.len()).step_by(heads) {
                for lane in 0..LANES {
                    let (weight, score) = (self.weights[at].0[lane], self.scores[at].0[lane]);
                    mean[lane] = A::mul_add(weight, score, mean[lane]);
                }
            }
            for at in (head..self.scores.len()).step_by(heads) {
                for lane in 0..LANES {
                    let centred = self.scores[at].0[lane] - mean[lane];
                    self.scores[at].0[lane] = self.weights[at].0[lane] * centred * dims.scale;
                }
            }
        }
    }
}

/// The policy of a block of queries.
struct Policy {
    /// Real decisions of each query.
    decisions: Indices,
    /// `[heads, group]` of the current level, one head's children side by side.
    probabilities: Vec<Lanes>,
    /// `[heads]` of the current level.
    entropies: Vec<Lanes>,
}

/// From scores to gradients of the logits of one group of siblings, through log-probability and
/// entropy.
#[inline(always)]
fn policy_scores<A: Arithmetic>(
    dims: &Search,
    level: &Level,
    block: &Block,
    chosen: &Indices,
    grad: &[f32],
    scores: &mut [Lanes],
    policy: &mut Policy,
) {
    let Policy {
        decisions,
        probabilities,
        entropies,
    } = policy;
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
            let query = &whole.problem.dims.query[(first + row) * key_width..][..key_width];
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
