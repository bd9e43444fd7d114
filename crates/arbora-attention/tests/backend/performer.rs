//! Attention from random features.

use crate::kinds::{self, D_MODEL, HEADS, layer};
use arbora_attention::baselines::PerformerConfig;
use arbora_attention::{
    AttentionKind, AttentionKindConfig, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, padding, random, random_data, values};
use burn::module::Module;
use burn::tensor::{Bool, Tensor};

fn config(features: usize, seed: u64) -> AttentionKindConfig {
    AttentionKindConfig::Performer(PerformerConfig {
        features,
        seed,
        ..PerformerConfig::default()
    })
}

#[test]
fn performer_does_what_every_kind_does() {
    kinds::check(&config(12, 0));
    kinds::check(&AttentionKindConfig::Performer(PerformerConfig {
        features: 5,
        orthogonal: false,
        seed: 1,
        layer: 2,
    }));
}

/// The estimate with all pairs of features and keys formed, nothing shifted, head by head: query head `h` of 4
/// reads key and value head `h / 2`.
fn by_definition(layer: &SelfAttention, tokens: Tensor<3>, hidden: Tensor<3, Bool>) -> Tensor<3> {
    let AttentionKind::Performer(performer) = &layer.kind else {
        panic!("not a Performer");
    };
    let [batch, count, _] = tokens.dims();
    let head_dim = D_MODEL / HEADS;
    let directions = performer.directions.value().unsqueeze::<3>(); // [1, head_dim, features]
    let features = |rows: Tensor<3>| {
        let rows = rows / (head_dim as f64).powf(0.25);
        let squares = rows.clone().powi_scalar(2).sum_dim(2);
        (rows.matmul(directions.clone().repeat_dim(0, batch)) - squares / 2.0).exp()
    };
    let [query, key, value] =
        [&layer.query, &layer.key, &layer.value].map(|linear| linear.forward(tokens.clone()));
    let contexts = (0..HEADS).map(|head| {
        let slice = |rows: &Tensor<3>, at: usize| {
            rows.clone()
                .slice([0..batch, 0..count, at * head_dim..(at + 1) * head_dim])
        };
        let key = features(slice(&key, head / 2));
        let weights = features(slice(&query, head)).matmul(key.swap_dims(1, 2));
        let weights = weights.mask_fill(hidden.clone(), 0.0);
        let total = weights.clone().sum_dim(2);
        (weights / total).matmul(slice(&value, head / 2))
    });
    layer.output.forward(Tensor::cat(contexts.collect(), 2))
}

/// Pairs hidden by padding and, on demand, by the order of tokens.
fn hidden_pairs(lengths: &[usize], count: usize, causal: bool) -> Tensor<3, Bool> {
    let device = autodiff_device();
    let all = [lengths.len(), count, count];
    let padding = padding(lengths, count, &device)
        .unsqueeze_dim::<3>(1)
        .expand(all);
    if causal {
        let later = Tensor::<2, Bool>::tril_mask([count, count], 0, &device);
        padding.bool_or(later.unsqueeze::<3>().expand(all))
    } else {
        padding
    }
}

#[test]
fn performer_is_its_definition_with_or_without_order() {
    let lengths = [9, 4];
    for causal in [false, true] {
        let device = autodiff_device();
        let layer = layer(&config(6, 3), &device);
        let run = |expected: bool| {
            let tokens = random([2, 9, D_MODEL], 3, &device).require_grad();
            let context = if expected {
                let hidden = hidden_pairs(&lengths, 9, causal);
                by_definition(&layer, tokens.clone(), hidden)
            } else {
                let input =
                    SelfAttentionInput::new(tokens.clone()).mask_pad(padding(&lengths, 9, &device));
                let input = if causal { input.causal() } else { input };
                layer.forward(input).context
            };
            let gradients = context.clone().powi_scalar(2).sum().backward();
            let tokens = tokens.grad(&gradients).expect("it is used");
            let weight = layer.key.weight.val().grad(&gradients).expect("it is used");
            (context.inner(), tokens, weight)
        };
        let (got, expected) = (run(false), run(true));
        assert_close(got.0, expected.0, 1e-4, 1e-3);
        assert_close(got.1, expected.1, 1e-3, 1e-3);
        assert_close(got.2, expected.2, 1e-3, 1e-3);
    }
}

/// Mean absolute difference of the mean of some estimates from dense attention.
fn error(features: usize, seeds: std::ops::Range<u64>) -> f32 {
    let device = device();
    // Queries and keys of a norm under 1: the variance of features grows exponentially with it.
    let mut dense = layer(&AttentionKindConfig::Dense, &device);
    (dense.query.bias, dense.key.bias) = (None, None);
    let forward = |layer: SelfAttention| {
        let tokens = random([2, 16, D_MODEL], 3, &device) / 2;
        layer.forward(SelfAttentionInput::new(tokens)).context
    };
    let exact = forward(dense.clone());
    let count = (seeds.end - seeds.start) as f64;
    let mean = seeds
        .map(|seed| forward(dense.clone().with_kind(&config(features, seed), &device)))
        .reduce(|sum, estimate| sum + estimate)
        .expect("there are seeds")
        / count;
    (mean - exact).abs().mean().into_scalar()
}

#[test]
fn more_features_estimate_softmax_attention_better() {
    let mean_error = |features| {
        (0..8)
            .map(|seed| error(features, seed..seed + 1))
            .sum::<f32>()
            / 8.0
    };
    let (few, some, many) = (mean_error(8), mean_error(128), mean_error(2048));
    println!("8 features: {few}, 128: {some}, 2048: {many}");
    // Sixteen times the features: the error falls to about a quarter.
    assert!(some < 0.45 * few && many < 0.45 * some && many < 0.01);
}

#[test]
fn estimates_average_out_to_softmax_attention() {
    let (single, mean) = (error(64, 0..1), error(64, 0..32));
    println!("one draw: {single}, mean of 32: {mean}");
    assert!(mean < 0.35 * single && mean < 0.05);
}

#[test]
fn a_causal_performer_does_not_leak() {
    let layer = layer(&config(12, 0), &device());
    let tokens = random::<3>([2, 70, D_MODEL], 3, &device());
    let before = |tokens: Tensor<3>| {
        let input = SelfAttentionInput::new(tokens).causal();
        layer.forward(input).context.slice([0..2, 0..66])
    };
    // Large, so that anything that depends on the greatest key would show.
    let later = random([2, 4, D_MODEL], 4, &device()) * 30.0;
    let moved = tokens
        .clone()
        .slice_assign([0..2, 66..70, 0..D_MODEL], later);
    assert_close(before(moved), before(tokens), 1e-6, 1e-6);
}

#[test]
fn calls_with_a_cache_are_one_causal_call() {
    let layer = layer(&config(12, 0), &device());
    let tokens = random([2, 13, D_MODEL], 3, &device());
    let expected = layer
        .forward(SelfAttentionInput::new(tokens.clone()).causal())
        .context;
    let mut cache = layer.cache(2, &device());
    let mut first = 0;
    let parts = [1, 5, 1, 6].map(|count| {
        let rows = tokens.clone().narrow(1, first, count);
        first += count;
        layer.forward_cached(rows, &mut cache).context
    });
    assert_eq!((cache.tokens(), cache.keys_read()), (13, 0));
    assert_close(Tensor::cat(parts.to_vec(), 1), expected, 1e-4, 1e-4);
}

#[test]
fn gradients_of_a_causal_performer_match_finite_differences() {
    let kind = config(6, 2);
    let weights = random_data([1, 5, D_MODEL], 11);
    let function = |tokens: Tensor<3>| {
        let device = tokens.device();
        let input = SelfAttentionInput::new(tokens).causal();
        let context = layer(&kind, &device).forward(input).context;
        (context * Tensor::from_data(weights.clone(), &device)).sum()
    };
    let input = random_data([1, 5, D_MODEL], 10);
    assert_matches_finite_differences(input, &device(), 1e-2, 1e-2, function);
}

#[test]
fn cutting_padding_off_changes_nothing() {
    let layer = layer(&config(12, 0), &device());
    let tokens = random([2, 12, D_MODEL], 4, &device());
    let padded = SelfAttentionInput::new(tokens.clone()).mask_pad(padding(&[7, 7], 12, &device()));
    let short = SelfAttentionInput::new(tokens.slice([0..2, 0..7]));
    let padded = layer.forward(padded).context.slice([0..2, 0..7]);
    assert_close(padded, layer.forward(short).context, 1e-5, 1e-5);
}

#[test]
fn large_tokens_give_finite_contexts_and_gradients() {
    let device = autodiff_device();
    let layer = layer(&config(12, 0), &device);
    for causal in [false, true] {
        let tokens = (random([2, 9, D_MODEL], 3, &device) * 30.0).require_grad();
        let input = SelfAttentionInput::new(tokens.clone()).mask_pad(padding(&[9, 0], 9, &device));
        let input = if causal { input.causal() } else { input };
        let context = layer.forward(input).context;
        let gradients = context.clone().sum().backward();
        let gradient = tokens.grad(&gradients).expect("it is used");
        for tensor in [context.inner(), gradient] {
            assert!(values(tensor).iter().all(|value| value.is_finite()));
        }
    }
}

#[test]
fn directions_are_saved_and_not_trained() {
    let layer = layer(&config(12, 0), &autodiff_device());
    let trained = |layer: &SelfAttention| match &layer.kind {
        AttentionKind::Performer(performer) => values(performer.directions.value()),
        _ => panic!("not a Performer"),
    };
    let other = SelfAttentionConfig::new(D_MODEL, HEADS)
        .with_n_kv_heads(Some(2))
        .with_kind(config(12, 9))
        .init(&device());
    assert_ne!(trained(&layer), trained(&other));
    let loaded = other.load_record(layer.clone().into_record());
    assert_eq!(trained(&layer), trained(&loaded));
    assert!(matches!(&layer.kind, AttentionKind::Performer(performer)
        if !performer.directions.value().is_require_grad()));
}

/// A matrix of scores would be 1 GiB, more than the CPU driver of Vulkan gives a buffer.
#[test]
fn memory_is_linear_in_the_number_of_tokens() {
    let layer = SelfAttentionConfig::new(2, 1)
        .with_kind(config(4, 0))
        .init(&device());
    for causal in [false, true] {
        let input = SelfAttentionInput::new(random([1, 16_384, 2], 4, &device()));
        let input = if causal { input.causal() } else { input };
        let context = layer.forward(input).context;
        assert!(values(context).iter().all(|value| value.is_finite()));
    }
}

#[test]
#[should_panic(expected = "performer does not support masks of pairs")]
fn a_performer_with_a_mask_of_pairs_is_refused() {
    let pairs = Tensor::<3, Bool>::full([1, 4, 4], false, &device());
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 1, &device()));
    layer(&config(4, 0), &device()).forward(input.mask_attn(pairs));
}

#[test]
#[should_panic(expected = "self_attention: kind.features: expected at least 1, got 0")]
fn a_performer_without_features_is_refused() {
    layer(&config(0, 0), &device());
}
