//! The search of trees: the walk of a block of queries, and attention to what it selects.

use super::super::tuning::ROWS_PER_TASK;
use super::*;

impl Search<'_> {
    /// Searches; see [`tree_search`](crate::functions::tree_search).
    pub(crate) fn forward(&self, route: RouteSlices<'_>, outputs: SearchOutputs<'_>) {
        let all = self.batch * self.queries;
        if all == 0 {
            return;
        }
        let levels = levels(&self.shape);
        let problem = Problem {
            dims: self,
            levels: &levels,
        };
        let SearchOutputs {
            mut context,
            mut path,
            policy,
            counts,
        } = outputs;
        let [mut log_prob, mut entropy] = split_array(policy, [all; 2]);
        let (mut decisions, counts) = counts.split_at_mut(all);
        let (mut selected, mut read) = counts.split_at_mut(all);
        let mut tasks = Vec::with_capacity(all.div_ceil(ROWS_PER_TASK));
        for first in (0..all).step_by(ROWS_PER_TASK) {
            let rows = ROWS_PER_TASK.min(all - first);
            tasks.push(SearchTask {
                problem,
                route,
                first,
                context: take(&mut context, rows * self.value_row()),
                path: take(&mut path, rows * self.steps()),
                log_prob: take(&mut log_prob, rows),
                entropy: take(&mut entropy, rows),
                decisions: take(&mut decisions, rows),
                selected: take(&mut selected, rows),
                read: take(&mut read, rows),
            });
        }
        tasks.into_par_iter().for_each(|task| match self.head_dim {
            16 if self.value_dim == 16 => dispatch(Specialised::<_, 16>(task)),
            32 if self.value_dim == 32 => dispatch(Specialised::<_, 32>(task)),
            64 if self.value_dim == 64 => dispatch(Specialised::<_, 64>(task)),
            _ => dispatch(Specialised::<_, 0>(task)),
        });
    }
}

/// The first `count` numbers of what is left of a slice.
fn take<'a, T>(rest: &mut &'a mut [T], count: usize) -> &'a mut [T] {
    rest.split_off_mut(..count).expect("the slice has all rows")
}

/// Some rows of a search, done by one thread.
struct SearchTask<'a> {
    problem: Problem<'a>,
    route: RouteSlices<'a>,
    first: usize,
    // Its rows of `SearchOutputs`.
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
        let rows = task.path.len() / dims.steps();
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
        let path = &mut self.path[start * steps..][..count * steps];
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
            if let RouteSlices::Uniform(_) = self.route {
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
                RouteSlices::Sampled(numbers) | RouteSlices::Uniform(numbers) => {
                    let draws = numbers.len() / (dims.batch * dims.queries);
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
                &mut self.context[(start + lane) * width..][..width],
                problem.dims.value,
                dims.value_dim,
                lane,
                &scratch.positions,
                &scratch.attended,
            );
            let made = decisions[lane].max(1) as f32;
            self.entropy[start + lane] = entropy[lane] / made;
        }
        let rows = start..start + count;
        self.log_prob[rows.clone()].copy_from_slice(&log_prob[..count]);
        self.decisions[rows.clone()].copy_from_slice(&decisions[..count]);
        self.selected[rows.clone()].copy_from_slice(&selected[..count]);
        self.read[rows].copy_from_slice(&read[..count]);
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
