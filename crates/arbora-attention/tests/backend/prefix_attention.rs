//! Causal attention without a softmax.

use arbora_attention::functions::{prefix_attention, prefix_sums};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, random, random_data};
use burn::tensor::{Bool, Tensor};

/// The definition, with every pair in memory.
fn every_pair(query: Tensor<4>, key: Tensor<4>, value: Tensor<4>) -> Tensor<4> {
    let ([batch, queries, heads, _], [_, keys, kv_heads, _]) = (query.dims(), key.dims());
    let shared = |rows: Tensor<4>| {
        let width = rows.dims()[3];
        rows.reshape([batch, keys, kv_heads, 1, width])
            .repeat_dim(3, heads / kv_heads)
            .reshape([batch, keys, heads, width])
            .swap_dims(1, 2)
    };
    let later =
        Tensor::<2, Bool>::tril_mask([queries, keys], (keys - queries) as i64, &query.device());
    let pairs = query.swap_dims(1, 2).matmul(shared(key).swap_dims(2, 3));
    let later = later.reshape([1, 1, queries, keys]).expand(pairs.dims());
    let pairs = pairs.mask_fill(later, 0.0);
    pairs.matmul(shared(value)).swap_dims(1, 2)
}

#[test]
fn chunks_give_the_sum_over_every_earlier_key() {
    for (queries, keys, kv_heads) in [(1, 1, 4), (5, 5, 2), (64, 64, 1), (65, 65, 4), (70, 131, 2)]
    {
        let query = random([2, queries, 4, 3], 1, &device());
        let key = random([2, keys, kv_heads, 3], 2, &device());
        let value = random([2, keys, kv_heads, 5], 3, &device());
        let expected = every_pair(query.clone(), key.clone(), value.clone());
        assert_close(prefix_attention(query, key, value), expected, 1e-4, 1e-5);
    }
}

#[test]
fn gradients_are_those_of_the_sum_over_every_earlier_key() {
    let autodiff = autodiff_device();
    let query = random([1, 66, 4, 2], 1, &autodiff).require_grad();
    let key = random([1, 131, 2, 2], 2, &autodiff).require_grad();
    let value = random([1, 131, 2, 3], 3, &autodiff).require_grad();
    let weight = random([1, 66, 4, 3], 4, &autodiff);
    let gradients = |attend: fn(Tensor<4>, Tensor<4>, Tensor<4>) -> Tensor<4>| {
        let context = attend(query.clone(), key.clone(), value.clone());
        let gradients = (context * weight.clone()).sum().backward();
        [&query, &key, &value].map(|input| input.grad(&gradients).unwrap())
    };
    let expected = gradients(every_pair);
    for (got, expected) in gradients(prefix_attention).into_iter().zip(expected) {
        assert_close(got, expected, 1e-4, 1e-5);
    }
}

#[test]
fn gradients_agree_with_finite_differences() {
    assert_matches_finite_differences(random_data([1, 7, 1, 2], 1), &device(), 1e-2, 2e-3, |key| {
        let [query, value, weight] =
            [2, 3, 4].map(|seed| random([1, 7, 1, 2], seed, &key.device()));
        (prefix_attention(query, key, value) * weight).sum()
    });
}

#[test]
fn later_tokens_change_nothing() {
    let inputs = [1, 2, 3].map(|seed| random([1, 80, 2, 3], seed, &device()));
    let cut = inputs.clone().map(|input| input.narrow(1, 0, 67));
    let changed = inputs.map(|input| {
        let other = random([1, 13, 2, 3], 9, &device()) * 100.0;
        Tensor::cat(vec![input.narrow(1, 0, 67), other], 1)
    });
    let attend = |[query, key, value]: [Tensor<4>; 3]| prefix_attention(query, key, value);
    assert_close(attend(changed).narrow(1, 0, 67), attend(cut), 1e-5, 1e-5);
}

#[test]
fn running_sums_count_exactly_over_several_levels_of_chunks() {
    if arbora_testing::skipped_in_half_precision("whole numbers are not exact up to 4,200") {
        return;
    }
    for tokens in [1, 64, 65, 4200] {
        let ones = Tensor::ones([1, tokens, 1, 2], &device());
        let expected: Vec<f32> = (1..=tokens).flat_map(|count| [count as f32; 2]).collect();
        assert_eq!(arbora_testing::values(prefix_sums(ones)), expected);
    }
}

#[test]
#[should_panic(expected = "prefix_attention: queries: expected at most one per key (3), got 4")]
fn more_queries_than_keys_are_refused() {
    let rows = |count: usize| random([1, count, 1, 2], 1, &device());
    prefix_attention(rows(4), rows(3), rows(3));
}

#[test]
#[should_panic(expected = "prefix_attention: axis 1 of query: expected at least 1, got 0")]
fn no_tokens_are_refused() {
    let rows = || Tensor::zeros([1, 0, 1, 2], &device());
    prefix_attention(rows(), rows(), rows());
}

#[test]
#[should_panic(
    expected = "prefix_attention: value [batch, keys, kv_heads, value_dim]: expected [1, 4, 2, 3], got [1, 4, 1, 3]"
)]
fn values_of_other_heads_than_keys_are_refused() {
    let rows = |heads: usize| random([1, 4, heads, 3], 1, &device());
    prefix_attention(rows(2), rows(2), rows(1));
}
