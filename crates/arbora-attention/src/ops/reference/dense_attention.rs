//! Dense attention by its definition.

use super::{MASKED_LOGIT, SMALLEST_TOTAL};
use crate::ops::primitive::{Float, Mask};
use crate::ops::{AttentionMask, AttentionOutput, DenseAttentionInputs, DenseAttentionOptions};
use burn::backend::Backend;

/// Reference of [`TreeAttentionOps::dense_attention`](crate::ops::TreeAttentionOps::dense_attention).
pub fn dense_attention<B: Backend>(
    inputs: DenseAttentionInputs<B>,
    options: DenseAttentionOptions,
) -> AttentionOutput<B> {
    let [query, key, value] = [inputs.query, inputs.key, inputs.value].map(Float::<B>);
    let output_dtype = query.dtype();
    let [batch, queries, heads, head_dim] = query.dims();
    let [_, rows, _, value_dim] = value.dims();
    let first = options.first_key;
    let keys = rows - first;
    // [batch, rows, heads, width] -> [batch, heads, keys, width]
    let attended = |rows: Float<B>| rows.at_least_single().rows_from(first).swap_dims(1, 2);
    let query = query
        .at_least_single()
        .swap_dims(1, 2)
        .scale(options.scale(head_dim));
    let key = attended(key);
    let dtype = query.dtype();
    if keys == 0 {
        let context = query.zeros([batch, queries, heads, value_dim]);
        return AttentionOutput {
            context: context.cast(output_dtype).0,
            lse: query.zeros([batch, queries, heads]).0,
        };
    }

    let logits = query.matmul(key.swap_dims(2, 3)); // [batch, heads, queries, keys]
    let masked = match inputs.mask {
        AttentionMask::None => None,
        AttentionMask::Keys(mask) => Some(
            Mask::<B>(mask)
                .reshape([batch, 1, 1, keys])
                .expand([batch, heads, queries, keys]),
        ),
    };
    let logits = match &masked {
        None => logits,
        Some(mask) => logits.fill(mask.clone(), MASKED_LOGIT),
    };
    // The maximum only shifts the exponent: the result does not depend on it, nor does the gradient.
    let greatest = logits.clone().detach().max(3);
    let exponential = logits.sub(greatest.clone()).exp();
    let exponential = match &masked {
        None => exponential,
        Some(mask) => exponential.fill(mask.clone(), 0.0),
    };
    // A query without keys has total 0; any positive divisor leaves it at 0.
    let total = exponential.clone().sum(3).clamp_min(SMALLEST_TOTAL);
    let context = exponential.div(total.clone()).matmul(attended(value));
    let lse = total.log().add(greatest);
    let lse = match masked {
        None => lse,
        Some(mask) => {
            let empty = mask.not().float(dtype).sum(3).equals_zero();
            lse.fill(empty, 0.0)
        }
    };
    let lse = lse.reshape([batch, heads, queries]).swap_dims(1, 2);
    AttentionOutput {
        context: context.swap_dims(1, 2).cast(output_dtype).0,
        lse: lse.detach().0,
    }
}
