//! Linear attention to all earlier keys, in chunks.

use super::check::{axes, expect_divisor, expect_some};
use super::masked_attention::index_along;
use burn::tensor::{Bool, Tensor};

/// Tokens whose pairs are formed: pairs cost `tokens · CHUNK`, and one state of `features · value_dim` numbers
/// is held for every `CHUNK` tokens. Chunks of 16, 32, 64, 128 and 256 took 117, 68, 35, 85 and 83 ms at 4,096 tokens and
/// 64 features, and 5.6, 6.1, 7.8, 30 and 44 ms at 16 (flex, 2 cores).
const CHUNK: usize = 64;

/// Causal attention without a softmax, at a cost linear in the number of tokens:
/// `out_i = Σ_{j ≤ i} (query_i · key_j) value_j = query_i · Σ_{j ≤ i} key_jᵀ value_j`.
///
/// Nothing is normalised. For attention with positive features (Performer, arXiv 2009.14794, section 3.2)
/// divide by the same sum over values of 1, which one more column of ones in `value` gives. The sums run in
/// chunks: pairs within a chunk, one state per chunk between them. Differentiable in all three.
///
/// # Shapes
/// - query: `[batch, queries, heads, features]`; with fewer queries than keys, query `i` stands at
///   `i + keys - queries`
/// - key: `[batch, keys, kv_heads, features]`, where `kv_heads` divides `heads`: query head `h` reads head
///   `h / (heads / kv_heads)`
/// - value: `[batch, keys, kv_heads, value_dim]`
/// - returns `[batch, queries, heads, value_dim]`
///
/// A masked key is one whose features are 0.
///
/// # Panics
/// If an axis disagrees with the others, if there is no query, or if there are more queries than keys.
#[track_caller]
pub fn prefix_attention(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    let [batch, queries, heads, features] = query.dims();
    let [_, keys, kv_heads, _] = key.dims();
    let value_dim = value.dims()[3];
    let axes = axes!(
        "prefix_attention",
        batch,
        keys,
        kv_heads,
        features,
        value_dim
    );
    axes.expect("key", "batch, keys, kv_heads, features", &key.dims());
    axes.expect("value", "batch, keys, kv_heads, value_dim", &value.dims());
    expect_divisor("prefix_attention: kv_heads", kv_heads, heads);
    expect_some("prefix_attention: axis 1 of query", queries);
    assert!(
        queries <= keys,
        "prefix_attention: queries: expected at most one per key ({keys}), got {queries}"
    );
    let (group, rows) = (heads / kv_heads, batch * kv_heads);
    let chunk = CHUNK.min(keys);
    let chunks = keys.div_ceil(chunk);
    let after = chunks * chunk - keys;

    // `[batch, keys, kv_heads · shared, width]` -> `[batch · kv_heads, chunks, chunk · shared, width]`, where the
    // heads that share a key stand side by side as rows of their token.
    let by_chunk = |tensor: Tensor<4>, shared: usize, width: usize| {
        tensor
            .reshape([batch, chunks, chunk, kv_heads, shared, width])
            .swap_dims(1, 3)
            .swap_dims(2, 3)
            .reshape([rows, chunks, chunk * shared, width])
    };
    let query = by_chunk(
        with_zero_rows(query, keys - queries, after),
        group,
        features,
    );
    let key = by_chunk(with_zero_rows(key, 0, after), 1, features).swap_dims(2, 3);
    let value = by_chunk(with_zero_rows(value, 0, after), 1, value_dim);

    let later = later_keys(chunk, group, &query).expand([rows, chunks, chunk * group, chunk]);
    let pairs = query.clone().matmul(key.clone()).mask_fill(later, 0.0);
    let within = pairs.matmul(value.clone());
    let context = match chunks {
        1 => within,
        _ => {
            let own = key
                .matmul(value)
                .reshape([rows, chunks, features * value_dim]);
            let before = shifted(running_sums(own));
            within + query.matmul(before.reshape([rows, chunks, features, value_dim]))
        }
    };
    context
        .reshape([batch, kv_heads, chunks, chunk, group, value_dim])
        .swap_dims(1, 2)
        .swap_dims(2, 3)
        .reshape([batch, chunks * chunk, heads, value_dim])
        .narrow(1, keys - queries, queries)
}

/// Running sums over tokens, `out_i = Σ_{j ≤ i} rows_j`: the state of [`prefix_attention`] for values of 1.
///
/// # Shapes
/// - rows: `[batch, tokens, heads, features]`
/// - returns the same
pub fn prefix_sums(rows: Tensor<4>) -> Tensor<4> {
    let [batch, tokens, heads, features] = rows.dims();
    running_sums(rows.reshape([batch, tokens, heads * features]))
        .reshape([batch, tokens, heads, features])
}

/// Running sums over axis 1 of `[rows, count, width]`.
///
/// Within chunks, then over the totals of chunks: burn's `cumsum` reads all elements before each one on GPU
/// backends, which over the whole axis would be quadratic.
pub(super) fn running_sums(rows: Tensor<3>) -> Tensor<3> {
    let [outer, count, width] = rows.dims();
    if count <= CHUNK {
        return rows.cumsum(1);
    }
    let chunks = count.div_ceil(CHUNK);
    let after = chunks * CHUNK - count;
    let rows = with_zero_rows(rows.reshape([outer, count, 1, width]), 0, after);
    let within = rows.reshape([outer, chunks, CHUNK, width]).cumsum(2);
    let totals = within.clone().narrow(2, CHUNK - 1, 1);
    let before = shifted(running_sums(totals.reshape([outer, chunks, width])));
    let before = before
        .reshape([outer, chunks, 1, width])
        .expand([outer, chunks, CHUNK, width]);
    (within + before)
        .reshape([outer, chunks * CHUNK, width])
        .narrow(1, 0, count)
}

/// Each row at the place of the next one; zeros first.
pub(super) fn shifted(rows: Tensor<3>) -> Tensor<3> {
    let [outer, count, width] = rows.dims();
    let first = Tensor::zeros([outer, 1, width], (&rows.device(), rows.dtype()));
    Tensor::cat(vec![first, rows.narrow(1, 0, count - 1)], 1)
}

/// Which pairs of one chunk have a key after the query, `[1, 1, chunk · group, chunk]`.
fn later_keys(chunk: usize, group: usize, like: &Tensor<4>) -> Tensor<4, Bool> {
    let device = like.device();
    let all = [chunk, group, chunk];
    index_along(2, all, &device)
        .greater(index_along(0, all, &device))
        .reshape([1, 1, chunk * group, chunk])
}

/// Rows of zeros before and after the rows of axis 1.
pub(crate) fn with_zero_rows(rows: Tensor<4>, before: usize, after: usize) -> Tensor<4> {
    match (before, after) {
        (0, 0) => rows,
        more => rows.pad([(0, 0), more, (0, 0), (0, 0)], 0.0),
    }
}
