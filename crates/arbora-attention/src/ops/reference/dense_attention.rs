//! Dense attention by its definition.

use super::softmax;
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
    let (weights, lse) = softmax(logits, masked.as_ref());
    let context = weights.matmul(attended(value));
    let lse = match masked {
        None => lse(),
        Some(mask) => {
            let empty = mask.not().float(dtype).sum(3).equals_zero();
            lse().fill(empty, 0.0)
        }
    };
    let lse = lse.reshape([batch, heads, queries]).swap_dims(1, 2);
    AttentionOutput {
        context: context.swap_dims(1, 2).cast(output_dtype).0,
        lse: lse.0,
    }
}
