//! Attention with a matrix of scores, composed of tensor operations: for masks of pairs, and for
//! relaxations that need every pair. And what such compositions are made of.

use super::dense_attention;
use crate::ops::DenseAttentionOptions;
use arbora_tree::tensors::at_least_single;
use burn::tensor::kind::Basic;
use burn::tensor::{Bool, Device, FloatDType, Int, Tensor, TensorCreationOptions};

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
        let key = index_along(3, shape, &last.device());
        key.greater(last.reshape([1, 1, queries, 1]).expand(shape))
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
    let dtype = logits.dtype();
    let logits = fill_hidden(at_least_single(logits), &hidden, MASKED);
    let greatest = logits.clone().detach().max_dim(3);
    let exponential = fill_hidden((logits - greatest).exp(), &hidden, 0.0);
    let total = exponential.clone().sum_dim(3).clamp_min(SMALLEST);
    (exponential / total).cast(dtype)
}

/// `pairs` with `value` where they are hidden.
///
/// - hidden: as [`hidden_pairs`] gives it, or whatever else broadcasts to `pairs`
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

/// Indicators of leaves in single precision, `[batch, rows, heads]` -> `[batch, rows, heads, leaves]`; zeros for rows
/// without one.
pub(crate) fn one_hot(leaf: &Tensor<3, Int>, leaves: usize) -> Tensor<4> {
    let [batch, rows, heads] = leaf.dims();
    let shape = [batch, rows, heads, leaves];
    let each = index_along(3, shape, (&leaf.device(), leaf.dtype()));
    let own = leaf.clone().unsqueeze_dim::<4>(3).expand(shape);
    own.equal(each).cast(FloatDType::F32)
}

/// How far along `axis` each place of a tensor is.
pub(crate) fn index_along<const D: usize>(
    axis: usize,
    shape: [usize; D],
    options: impl Into<TensorCreationOptions>,
) -> Tensor<D, Int> {
    let mut own = [1; D];
    own[axis] = shape[axis];
    Tensor::<1, Int>::arange(0..shape[axis] as i64, options)
        .reshape(own)
        .expand(shape)
}

/// Places on the host as a tensor of indices.
pub(crate) fn places(places: &[usize], device: &Device) -> Tensor<1, Int> {
    let places: Vec<i64> = places.iter().map(|&place| place as i64).collect();
    Tensor::from_data(places.as_slice(), device)
}

/// Rows of the first axis.
pub(crate) fn select_rows(tensor: &Tensor<4>, rows: &[usize]) -> Tensor<4> {
    let rows = places(rows, &tensor.device());
    tensor.clone().select(0, rows)
}

/// `rows` with zeros where a leaf of `[batch, rows, heads]` is negative, which is masked out.
pub(crate) fn without_absent(rows: Tensor<4>, leaves: Tensor<3, Int>) -> Tensor<4> {
    let absent = leaves.lower_elem(0).unsqueeze_dim::<4>(3);
    let absent = absent.expand(rows.dims());
    rows.mask_fill(absent, 0.0)
}

/// Rows `[batch, rows, heads, width]` with zeros where `padding` is `true`.
pub(crate) fn without_padding(rows: Tensor<4>, padding: Option<Tensor<2, Bool>>) -> Tensor<4> {
    let [batch, count, ..] = rows.dims();
    let padding = padding.map(|padding| padding.reshape([batch, count, 1, 1]));
    fill_hidden(rows, &padding, 0.0)
}

/// Values with one more column of ones, whose sums are those of weights.
pub(crate) fn with_ones(value: Tensor<4>) -> Tensor<4> {
    let [batch, keys, kv_heads, _] = value.dims();
    let options = (&value.device(), value.dtype());
    let ones = Tensor::ones([batch, keys, kv_heads, 1], options);
    Tensor::cat(vec![value, ones], 3)
}

/// [`dense_attention`] to all keys, of which query heads share some.
///
/// - query: `[batch, queries, heads, head_dim]`
/// - key, value: `[batch, keys, kv_heads, head_dim]`
/// - padding: keys, `[batch, keys]`, `true` = masked out
#[track_caller]
pub(crate) fn dense_by_group(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    padding: Option<Tensor<2, Bool>>,
) -> Tensor<4> {
    let group = query.dims()[2] / key.dims()[2];
    let options = DenseAttentionOptions {
        first_key: 0,
        scale: None,
    };
    let (key, value) = (repeat_each(key, group), repeat_each(value, group));
    dense_attention(query, key, value, padding, options)
}

/// `[batch, rows, heads, width]` -> `[batch, heads, rows, width]`
pub(crate) fn by_head(rows: Tensor<4>) -> Tensor<4> {
    rows.swap_dims(1, 2)
}

/// Each entry of axis 2 `group` times in a row: key heads for the query heads that share them, or nodes for their
/// children.
pub(crate) fn repeat_each<K: Basic>(rows: Tensor<4, K>, group: usize) -> Tensor<4, K> {
    if group == 1 {
        return rows;
    }
    let [batch, count, heads, width] = rows.dims();
    rows.reshape([batch, count, heads, 1, width])
        .repeat_dim(3, group)
        .reshape([batch, count, heads * group, width])
}
