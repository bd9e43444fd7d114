//! Attention with a matrix of scores, composed of tensor operations: for masks of pairs, and for
//! relaxations that need every pair.

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, Int, Tensor};

/// Which pairs a query does not see, `[batch, 1, queries, keys]`, `true` = masked out.
///
/// - padding: keys, `[batch, keys]`
/// - causal: `Some(offset)`: query `i` sees keys up to `i + offset`
pub(crate) fn hidden_pairs(
    [batch, queries, keys]: [usize; 3],
    padding: Option<&Tensor<2, Bool>>,
    causal: Option<usize>,
    device: &Device,
) -> Tensor<4, Bool> {
    let shape = [batch, 1, queries, keys];
    let mut hidden = Tensor::<4, Int>::zeros(shape, device).bool();
    if let Some(padding) = padding {
        let padding = padding.clone().reshape([batch, 1, 1, keys]).expand(shape);
        hidden = hidden.bool_or(padding);
    }
    if let Some(offset) = causal {
        let last = Tensor::<1, Int>::arange(0..queries as i64, device)
            .add_scalar(offset as i64)
            .reshape([1, 1, queries, 1])
            .expand(shape);
        let key = Tensor::<1, Int>::arange(0..keys as i64, device)
            .reshape([1, 1, 1, keys])
            .expand(shape);
        hidden = hidden.bool_or(key.greater(last));
    }
    hidden
}

/// Softmax over the last axis of what is not masked out; zeros where everything is.
///
/// - hidden: `[batch, heads or 1, queries, keys]`, `true` = masked out
pub(crate) fn softmax_of_visible(logits: Tensor<4>, hidden: Tensor<4, Bool>) -> Tensor<4> {
    const MASKED: f64 = -1e30;
    const SMALLEST: f64 = 1e-30;
    let hidden = hidden.expand(logits.dims());
    let logits = logits.mask_fill(hidden.clone(), MASKED);
    let greatest = logits.clone().detach().max_dim(3);
    let exponential = (logits - greatest).exp().mask_fill(hidden, 0.0);
    let total = exponential.clone().sum_dim(3).clamp_min(SMALLEST);
    exponential / total
}

/// `[batch, rows, heads, width]` -> `[batch, heads, rows, width]`
pub(crate) fn by_head(rows: Tensor<4>) -> Tensor<4> {
    rows.swap_dims(1, 2)
}

/// `[batch, rows, kv_heads, width]` -> `[batch, rows, kv_heads · group, width]`, each head `group` times
/// in a row.
pub(crate) fn repeat_heads<K: Basic>(rows: Tensor<4, K>, group: usize) -> Tensor<4, K> {
    if group == 1 {
        return rows;
    }
    let [batch, count, heads, width] = rows.dims();
    rows.reshape([batch, count, heads, 1, width])
        .repeat_dim(3, group)
        .reshape([batch, count, heads * group, width])
}
