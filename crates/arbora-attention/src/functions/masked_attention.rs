//! Attention with a matrix of scores, composed of tensor operations: for masks of pairs, and for
//! relaxations that need every pair.

use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, Int, Tensor};

/// Which pairs a query does not see, `true` = masked out; `None` where nothing is. What does not depend on an
/// axis has length 1 there: the result broadcasts to `[batch, heads, queries, keys]`.
///
/// - keys: how many there are
/// - padding: keys, `[batch, keys]`
/// - last_key: of the keys that each query sees, `[queries]`, see [`last_keys`]; `None`: all
pub(crate) fn hidden_pairs(
    keys: usize,
    padding: Option<&Tensor<2, Bool>>,
    last_key: Option<Tensor<1, Int>>,
) -> Option<Tensor<4, Bool>> {
    let padded = padding.map(|padding| {
        let [batch, keys] = padding.dims();
        padding.clone().reshape([batch, 1, 1, keys])
    });
    let later = last_key.map(|last| {
        let [queries] = last.dims();
        let shape = [1, 1, queries, keys];
        let key = Tensor::<1, Int>::arange(0..keys as i64, &last.device());
        let last = last.reshape([1, 1, queries, 1]).expand(shape);
        key.reshape([1, 1, 1, keys]).expand(shape).greater(last)
    });
    match (padded, later) {
        (Some(padded), Some(later)) => {
            let shape = [padded.dims()[0], 1, later.dims()[2], keys];
            Some(padded.expand(shape).bool_or(later.expand(shape)))
        }
        (padded, later) => padded.or(later),
    }
}

/// The last key that each query sees where query `i` sees keys up to `i + offset`, `[queries]`.
pub(crate) fn last_keys(queries: usize, offset: usize, device: &Device) -> Tensor<1, Int> {
    Tensor::arange(offset as i64..(offset + queries) as i64, device)
}

/// Softmax over the last axis of what is not masked out; zeros where everything is.
///
/// - hidden: as [`hidden_pairs`] gives it
pub(crate) fn softmax_of_visible(logits: Tensor<4>, hidden: Option<Tensor<4, Bool>>) -> Tensor<4> {
    const MASKED: f64 = -1e30;
    const SMALLEST: f64 = 1e-30;
    let logits = fill_hidden(logits, &hidden, MASKED);
    let greatest = logits.clone().detach().max_dim(3);
    let exponential = fill_hidden((logits - greatest).exp(), &hidden, 0.0);
    let total = exponential.clone().sum_dim(3).clamp_min(SMALLEST);
    exponential / total
}

/// `pairs` with `value` where they are hidden.
///
/// - hidden: as [`hidden_pairs`] gives it
pub(crate) fn fill_hidden(
    pairs: Tensor<4>,
    hidden: &Option<Tensor<4, Bool>>,
    value: f64,
) -> Tensor<4> {
    match hidden {
        None => pairs,
        Some(hidden) => {
            let hidden = hidden.clone().expand(pairs.dims());
            pairs.mask_fill(hidden, value)
        }
    }
}

/// Indicators of leaves, `[batch, rows, heads]` -> `[batch, rows, heads, leaves]`; zeros for rows without
/// one.
pub(crate) fn one_hot(leaf: &Tensor<3, Int>, leaves: usize) -> Tensor<4> {
    let [batch, rows, heads] = leaf.dims();
    let shape = [batch, rows, heads, leaves];
    let each =
        Tensor::<1, Int>::arange(0..leaves as i64, &leaf.device()).reshape([1, 1, 1, leaves]);
    leaf.clone()
        .unsqueeze_dim::<4>(3)
        .expand(shape)
        .equal(each.expand(shape))
        .float()
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
