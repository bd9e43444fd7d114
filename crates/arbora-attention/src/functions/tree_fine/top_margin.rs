//! Gradients of routes from the best few leaves.

use super::{Call, RoutedRows, nothing_but_gradient, to_heads};
use crate::functions::leaf_attention::{CandidateKeys, LeafAttentionOutput, candidate_keys};
use arbora_tree::routing::{Candidates, RoutingTree};
use burn::tensor::activation::{log_softmax, softmax};
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Tensor};

impl Call<'_> {
    /// Attention within leaves, whose routes get gradients from `candidates` leaves each.
    pub(super) fn top_margin(self, candidates: usize, temperature: f64) -> LeafAttentionOutput {
        let best = |tree: &RoutingTree, rows: &Tensor<4>, mask: &Option<Tensor<2, Bool>>| {
            tree.best_leaves(rows.clone(), mask.clone(), candidates)
        };
        if candidates.min(self.queries.leaves()) == 1 {
            return self.hard();
        }
        let query = best(self.queries, &self.query_rows, &self.input.query_padding);
        let key = best(self.keys, &self.key_rows, &self.input.key_padding);
        let [_, _, kv_heads, _] = self.input.key.dims();

        let log_probability = column(log_softmax(key.scores.clone() / temperature, 3), 0);
        let constants = self.routed_rows().without_autodiff();
        let key_bias = to_heads(nothing_but_gradient(log_probability), kv_heads);
        let mut biased = self.routed_rows();
        biased.rows.key_bias = Some(key_bias.cast(self.input.key.dtype()));
        let found = self.within.attend(biased);
        let lse = found.lse.clone();
        let context = self.candidate_keys(found, &key, &constants, temperature);
        let context = self.candidate_queries(context, &query, constants, temperature);
        LeafAttentionOutput { context, lse }
    }

    /// Gates of the leaves that keys are not in.
    fn candidate_keys(
        &self,
        found: LeafAttentionOutput,
        candidates: &Candidates,
        constants: &RoutedRows,
        temperature: f64,
    ) -> Tensor<4> {
        let constants = &constants.rows;
        let [_, _, kv_heads, _] = constants.key.dims();
        let probability = softmax(candidates.scores.clone() / temperature, 3);
        let mut context = found.context;
        for candidate in 1..candidates.scores.dims()[3] {
            let gate = nothing_but_gradient(column(probability.clone(), candidate));
            let compared = CandidateKeys {
                gate: to_heads(gate, kv_heads).cast(context.dtype()),
                query: constants.query.clone(),
                key: constants.key.clone(),
                value: constants.value.clone(),
                query_leaf: constants.query_leaf.clone(),
                candidate_leaf: to_heads(column(candidates.leaves.clone(), candidate), kv_heads),
                lse: found.lse.clone(),
            };
            context = candidate_keys(context, compared, self.within.options);
        }
        context
    }

    /// The context mixed with what queries would get in other leaves, by weights that are 0 in value.
    fn candidate_queries(
        &self,
        context: Tensor<4>,
        candidates: &Candidates,
        constants: RoutedRows,
        temperature: f64,
    ) -> Tensor<4> {
        let [_, _, heads, _] = context.dims();
        let probability = softmax(candidates.scores.clone() / temperature, 3);
        let own = context.clone().without_autodiff();
        let mut mixed = context;
        for candidate in 0..candidates.scores.dims()[3] {
            let outcome = match candidate {
                0 => own.clone(),
                _ => {
                    let mut other = constants.clone();
                    other.rows.query_leaf =
                        to_heads(column(candidates.leaves.clone(), candidate), heads);
                    self.within.attend(other).context
                }
            };
            let gate = nothing_but_gradient(column(probability.clone(), candidate));
            mixed = mixed + gate.unsqueeze_dim::<4>(3).cast(outcome.dtype()) * outcome;
        }
        mixed
    }
}

/// `[batch, rows, heads, count]` -> `[batch, rows, heads]`
fn column<K: Basic>(rows: Tensor<4, K>, at: usize) -> Tensor<3, K> {
    rows.narrow(3, at, 1).squeeze_dim(3)
}
