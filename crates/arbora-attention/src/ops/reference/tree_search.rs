//! The search of a tree by its definition.

use super::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::limits::leaf_group;
use crate::ops::primitive::{Float, Integer, Mask};
use crate::ops::{
    GhostNodes, RoutePrimitive, TreeSearchInputs, TreeSearchOptions, TreeSearchPrimitive,
};
use burn::backend::Backend;

/// Reference of [`TreeAttentionOps::tree_search`](crate::ops::TreeAttentionOps::tree_search).
///
/// Follows the one-pass form of Tree Cross Attention: the policy scores siblings with the weights and
/// inputs of the final attention, so the logits of unchosen siblings are already their final logits.
/// Whole rows of keys are picked per level, so a query reads the nodes on its path and no others.
pub fn tree_search<B: Backend>(
    inputs: TreeSearchInputs<B>,
    route: RoutePrimitive<B>,
    options: TreeSearchOptions,
) -> TreeSearchPrimitive<B> {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(Float::<B>);
    let lengths = Integer::<B>(inputs.lengths);
    let TreeSearchOptions {
        shape,
        temperature,
        ghosts,
        ..
    } = options;
    let output_dtype = query.dtype();
    let [query, key, value] = [query, key, value].map(Float::at_least_single);
    let dtype = query.dtype();
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, nodes, _, value_dim] = value.dims();
    let rows = batch * queries;
    if rows == 0 {
        // Some backends do not take all of the operations below of nothing.
        let none = Integer::arange(0, &lengths);
        let context = query.zeros([batch, queries, heads, value_dim]);
        let path = none.clone();
        return TreeSearchPrimitive {
            context: context.cast(output_dtype).0,
            path: path.reshape([batch, queries, shape.decisions() + 1]).0,
            policy: query.zeros([2, batch, queries]).0,
            counts: none.reshape([3, batch, queries]).0,
        };
    }
    let scale = options.scale.unwrap_or((head_dim as f64).powf(-0.5));

    let search = Search {
        query: query.scale(scale).reshape([rows, 1, heads, head_dim]),
        key: key.reshape([batch * nodes, heads * head_dim]),
        // [batch] -> [rows]: the queries of an example share its length and its place in the batch.
        lengths: per_query(lengths.clone(), batch, queries),
        first_node: per_query(
            Integer::arange(batch, &lengths).times(nodes),
            batch,
            queries,
        ),
        rows,
        heads,
        head_dim,
    };

    let mut node = Integer::arange(rows, &search.lengths).times(0); // index at the current height
    let mut path = vec![node.clone().reshape([batch, queries, 1])];
    let mut attended: Vec<Siblings<B>> = Vec::new();
    let mut log_prob = search.query.zeros([rows]);
    let mut entropy = log_prob.clone();
    let mut decisions = node.clone();
    let mut read = node.clone();

    for height in (1..=shape.decisions()).rev() {
        let siblings = search.siblings(&options, height, shape.group(height + 1), node.clone());
        let group = siblings.group;
        let real = siblings.real.clone();
        let count = real.clone().count(&node); // real siblings
        // per head [rows, group, heads]; ghosts get probability exactly 0
        let scaled = siblings.logits.clone().scale(1.0 / temperature);
        let (probability, log_probability) = masked_softmax(scaled, real.clone());
        let policy = probability
            .clone()
            .sum(2)
            .scale(1.0 / heads as f64)
            .reshape([rows, group]);

        let chosen_from = match &route {
            RoutePrimitive::Uniform(_) => {
                let keep = real.clone().float(dtype);
                let total = keep.clone().sum(1).clamp_min(1.0);
                keep.div(total)
            }
            _ => policy,
        };
        let child = match &route {
            RoutePrimitive::Greedy => leftmost_best(chosen_from.clone(), real.clone(), &node),
            RoutePrimitive::Sampled(uniforms) | RoutePrimitive::Uniform(uniforms) => {
                let uniforms = Float::<B>(uniforms.clone()).at_least_single().cast(dtype);
                // Indexed by height, so that padding to a higher tree moves no number.
                inverse_cdf(
                    chosen_from.clone(),
                    uniforms.last_of_three(height - 1),
                    &node,
                )
            }
            RoutePrimitive::Given(path) => {
                let path = Integer::<B>(path.clone()).cast_like(&node);
                let next = path.last_of_three(shape.decisions() - height + 1);
                next.sub(node.clone().times(group))
            }
        };
        // An example without tokens has no real sibling, and a given path may name a ghost.
        let child = child.min(count.clone().plus(-1)).clamp(0, group as i64 - 1);

        let columns = Integer::arange(group, &node)
            .reshape([1, group])
            .expand([rows, group]);
        let chosen = columns.equal(child.clone().reshape([rows, 1]).expand([rows, group])); // [rows, group]

        // With fewer than two real siblings the step is forced: no decision, log-probability 0.
        let decided = count.clone().above(1);
        let weight = decided.clone().float(dtype);
        let picked = chosen_from
            .mul(chosen.clone().float(dtype))
            .sum(1)
            .reshape([rows])
            .fill(decided.clone().not(), 1.0)
            .detach();
        // A given path may take a child whose probability underflows to 0.
        let smallest = f64::from(f32::MIN_POSITIVE);
        log_prob = log_prob.add(picked.clone().clamp_min(smallest).log());
        if !matches!(route, RoutePrimitive::Uniform(_)) {
            let held = picked.clone().at_most(picked.zeros_like().shift(smallest));
            let step = log_sum_of_chosen(log_probability.clone(), &chosen);
            let gradient = step.clone().sub(step.detach());
            let gradient = gradient.fill(held, 0.0).mul(weight.clone());
            log_prob = log_prob.add(gradient);
        }
        let step_entropy = probability
            .mul(log_probability)
            .sum(1)
            .sum(2)
            .scale(-1.0 / heads as f64)
            .reshape([rows])
            .mul(weight);
        entropy = entropy.add(step_entropy);
        decisions = decisions.add(decided.integer(&node));
        read = read.add(count);

        let keep = match ghosts {
            GhostNodes::Masked => real.and(chosen.not()),
            GhostNodes::Published => chosen.not(),
        };
        attended.push(Siblings {
            real: keep,
            ..siblings
        });
        node = node.times(group).add(child);
        path.push(node.clone().reshape([batch, queries, 1]));
    }

    let leaves = leaf_group(&shape);
    let siblings = search.siblings(&options, 0, leaves, node);
    read = read.clone().add(siblings.real.clone().count(&read));
    attended.push(siblings);

    let slots: usize = attended.iter().map(|siblings| siblings.group).sum();
    let all = attended.into_iter();
    let logits = Float::cat(all.clone().map(|siblings| siblings.logits).collect(), 1); // [rows, slots, heads]
    let keep = Mask::cat(all.clone().map(|siblings| siblings.real).collect(), 1); // [rows, slots]
    let positions = Integer::cat(all.map(|siblings| siblings.positions).collect(), 1);
    let positions = positions.reshape([rows * slots]);
    let selected = keep.clone().count(&read);
    let (weights, _) = masked_softmax(logits, keep);
    let values = value
        .reshape([batch * nodes, heads * value_dim])
        .select_rows(positions)
        .reshape([rows, slots, heads, value_dim]);
    let context = weights.reshape([rows, slots, heads, 1]).mul(values).sum(1);

    let entropy = entropy.div(decisions.clone().float(dtype).clamp_min(1.0));
    let counts = [decisions, selected, read].map(|count| count.reshape([1, batch, queries]));
    TreeSearchPrimitive {
        context: context
            .reshape([batch, queries, heads, value_dim])
            .cast(output_dtype)
            .0,
        path: Integer::cat(path, 2).0,
        policy: Float::cat(
            [log_prob, entropy]
                .map(|uniforms| uniforms.reshape([1, batch, queries]))
                .into(),
            0,
        )
        .0,
        counts: Integer::cat(counts.into(), 0).0,
    }
}

/// What stays the same on the way down.
struct Search<B: Backend> {
    query: Float<B>,        // [rows, 1, heads, head_dim], scaled
    key: Float<B>,          // [batch * nodes, heads * head_dim]
    lengths: Integer<B>,    // [rows]
    first_node: Integer<B>, // [rows]
    rows: usize,
    heads: usize,
    head_dim: usize,
}

/// The children of one node per row.
#[derive(Clone)]
struct Siblings<B: Backend> {
    group: usize,
    logits: Float<B>,      // [rows, group, heads]
    real: Mask<B>,         // [rows, group], later: which are attended
    positions: Integer<B>, // [rows, group], rows of keys and values
}

impl<B: Backend> Search<B> {
    /// Scores the children, at `height`, of the given node one height above.
    fn siblings(
        &self,
        options: &TreeSearchOptions,
        height: usize,
        group: usize,
        parent: Integer<B>,
    ) -> Siblings<B> {
        let (rows, shape) = (self.rows, &options.shape);
        let per_child = |row: &Integer<B>| row.clone().reshape([rows, 1]).expand([rows, group]);
        let slot = Integer::arange(group, &parent)
            .reshape([1, group])
            .expand([rows, group]);
        let index = per_child(&parent.times(group)).add(slot); // [rows, group]
        let real = index
            .clone()
            .times(shape.span(height))
            .below(per_child(&self.lengths));
        // Slots past the last stored node are ghosts; any stored node can stand in for them.
        let stored = index
            .clamp(0, shape.width(height) as i64 - 1)
            .plus(shape.offset(height) as i64);
        let positions = stored.add(per_child(&self.first_node));
        let keys = self
            .key
            .clone()
            .select_rows(positions.clone().reshape([rows * group]))
            .reshape([rows, group, self.heads, self.head_dim]);
        let logits = self
            .query
            .clone()
            .mul(keys)
            .sum(3)
            .reshape([rows, group, self.heads]);
        Siblings {
            group,
            logits,
            real,
            positions,
        }
    }
}

/// The logarithm of the sum over heads of the probability of the chosen child. Its gradient is that of logarithms: through
/// the probability itself, it would overflow where that is small.
///
/// - log_probability: `[rows, group, heads]`
/// - chosen: `[rows, group]`, one of each row
/// - returns `[rows]`
fn log_sum_of_chosen<B: Backend>(log_probability: Float<B>, chosen: &Mask<B>) -> Float<B> {
    let [rows, group, heads] = log_probability.dims();
    let chosen = chosen.clone().float(log_probability.dtype());
    let chosen = chosen
        .reshape([rows, group, 1])
        .expand([rows, group, heads]);
    let each = log_probability.mul(chosen).sum(1).reshape([rows, heads]);
    let greatest = each.clone().detach().max(1);
    let exponential = each.sub(greatest.clone().expand([rows, heads])).exp();
    exponential.sum(1).log().add(greatest).reshape([rows])
}

/// `[batch]` -> `[batch * queries]`.
fn per_query<B: Backend>(values: Integer<B>, batch: usize, queries: usize) -> Integer<B> {
    values
        .reshape([batch, 1])
        .expand([batch, queries])
        .reshape([batch * queries])
}

/// Softmax over axis 1 of `[rows, entries, heads]` among the kept `[rows, entries]`, and its
/// logarithm. Entries not kept get exactly 0 in both; so does a row that keeps none.
fn masked_softmax<B: Backend>(logits: Float<B>, keep: Mask<B>) -> (Float<B>, Float<B>) {
    let [rows, entries, heads] = logits.dims();
    let dtype = logits.dtype();
    let keep = keep
        .reshape([rows, entries, 1])
        .expand([rows, entries, heads]);
    let drop = keep.clone().not();
    let logits = logits.fill(drop.clone(), MASKED_LOGIT);
    // The maximum only shifts the exponent: the result does not depend on it, nor does the gradient.
    let shifted = logits.clone().sub(logits.detach().max(1));
    let exponential = shifted.clone().exp().mul(keep.float(dtype));
    // A row that keeps nothing has total 0; any positive divisor leaves it at 0.
    let total = exponential.clone().sum(1).clamp_min(SMALLEST_TOTAL);
    let logarithm = shifted.sub(total.clone().log()).fill(drop, 0.0);
    (exponential.div(total), logarithm)
}

/// The entry that a uniform number in [0, 1) falls on: the number of entries whose cumulative
/// probability is at most `u` times the whole.
///
/// The whole is the last cumulative entry, since a sum may round differently, and an entry of
/// probability 0 is never drawn, however `u` times the whole rounds.
fn inverse_cdf<B: Backend>(
    probability: Float<B>,
    uniform: Float<B>,
    like: &Integer<B>,
) -> Integer<B> {
    let [rows, group] = probability.dims();
    let cumulative = probability.detach().cumsum(1);
    let whole = cumulative.clone().max(1); // [rows, 1]
    let threshold = uniform.detach().reshape([rows, 1]).mul(whole.clone());
    let drawn = cumulative
        .clone()
        .at_most(threshold.expand([rows, group]))
        .count(like);
    let last_positive = cumulative
        .at_least(whole.expand([rows, group]))
        .not()
        .count(like);
    drawn.min(last_positive)
}

/// The first real entry that no real entry exceeds.
fn leftmost_best<B: Backend>(
    probability: Float<B>,
    real: Mask<B>,
    like: &Integer<B>,
) -> Integer<B> {
    let [rows, group] = probability.dims();
    let dtype = probability.dtype();
    let candidates = probability.detach().fill(real.not(), -1.0);
    let best = candidates.clone().max(1).expand([rows, group]);
    // The entries before the first best are those whose running count of bests is still 0.
    candidates
        .at_least(best)
        .float(dtype)
        .cumsum(1)
        .equals_zero()
        .count(like)
}
