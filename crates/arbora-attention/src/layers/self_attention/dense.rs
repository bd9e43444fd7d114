use super::AttentionMasks;
use super::kind::{Attended, Projected};
use crate::functions::dense_attention;
use crate::ops::DenseAttentionOptions;
use burn::module::Module;
use burn::tensor::{Bool, Int, Tensor};

/// Softmax attention of every query to every key.
#[derive(Module, Debug)]
pub struct Dense {}

impl Dense {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        let Projected {
            query,
            key,
            value,
            masks,
            ..
        } = input;
        let group = query.dims()[2] / key.dims()[2];
        let (key, value) = (repeat_heads(key, group), repeat_heads(value, group));
        let context = match masks.causal || masks.pairs.is_some() {
            false => {
                let options = DenseAttentionOptions {
                    first_key: 0,
                    scale: None,
                };
                dense_attention(query, key, value, masks.padding, options)
            }
            true => {
                let hidden = hidden(&masks, &query, key.dims()[1]);
                masked(query, key, value, hidden)
            }
        };
        Attended { context }
    }
}

/// Which pairs a query does not see, `[batch, 1, queries, keys]`, `true` = masked out.
fn hidden(masks: &AttentionMasks, query: &Tensor<4>, keys: usize) -> Tensor<4, Bool> {
    let [batch, queries, _, _] = query.dims();
    let shape = [batch, 1, queries, keys];
    let mut hidden = Tensor::<4, Int>::zeros(shape, &query.device()).bool();
    if let Some(padding) = &masks.padding {
        let padding = padding.clone().reshape([batch, 1, 1, keys]).expand(shape);
        hidden = hidden.bool_or(padding);
    }
    if let Some(pairs) = &masks.pairs {
        hidden = hidden.bool_or(pairs.clone().reshape(shape));
    }
    if masks.causal {
        let device = query.device();
        let last = Tensor::<1, Int>::arange(0..queries as i64, &device)
            .add_scalar((keys - queries) as i64)
            .reshape([1, 1, queries, 1])
            .expand(shape);
        let key = Tensor::<1, Int>::arange(0..keys as i64, &device)
            .reshape([1, 1, 1, keys])
            .expand(shape);
        hidden = hidden.bool_or(key.greater(last));
    }
    hidden
}

/// Attention with a mask of pairs. A query that sees no key gets 0.
fn masked(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    hidden: Tensor<4, Bool>,
) -> Tensor<4> {
    let [batch, queries, heads, head_dim] = query.dims();
    let keys = key.dims()[1];
    let hidden = hidden.expand([batch, heads, queries, keys]);
    let scale = (head_dim as f64).powf(-0.5);
    let by_head = |rows: Tensor<4>| rows.swap_dims(1, 2);
    let logits = (by_head(query) * scale).matmul(by_head(key).swap_dims(2, 3));
    let weights = quiet_softmax_of(logits, hidden);
    weights.matmul(by_head(value)).swap_dims(1, 2)
}

/// Softmax over the last axis of what is not masked out; zeros where everything is.
fn quiet_softmax_of(logits: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<4> {
    const MASKED: f64 = -1e30;
    const SMALLEST: f64 = 1e-30;
    let logits = logits.mask_fill(hidden.clone(), MASKED);
    let greatest = logits.clone().detach().max_dim(3);
    let exponential = (logits - greatest).exp().mask_fill(hidden, 0.0);
    let total = exponential.clone().sum_dim(3).clamp_min(SMALLEST);
    exponential / total
}

/// `[batch, rows, kv_heads, width]` -> `[batch, rows, kv_heads · group, width]`, each head `group` times in a
/// row.
pub(super) fn repeat_heads(rows: Tensor<4>, group: usize) -> Tensor<4> {
    if group == 1 {
        return rows;
    }
    let [batch, count, heads, width] = rows.dims();
    rows.reshape([batch, count, heads, 1, width])
        .repeat_dim(3, group)
        .reshape([batch, count, heads * group, width])
}
