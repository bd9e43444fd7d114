//! Block-sparse attention.

use crate::kinds::{self, D_MODEL, layer};
use arbora_attention::baselines::BigBirdConfig;
use arbora_attention::{AttentionKindConfig, SelfAttention, SelfAttentionInput};
use arbora_testing::{assert_close, autodiff_device, device, padding, random, values};
use burn::tensor::{Bool, Device, Tensor, TensorData};
use proptest::prelude::*;

fn config(block: usize, window: usize, random: usize, global: usize) -> BigBirdConfig {
    BigBirdConfig {
        block,
        window,
        random,
        global,
        seed: 5,
        layer: 1,
    }
}

#[test]
fn big_bird_does_what_every_kind_does() {
    kinds::check(&AttentionKindConfig::BigBird(config(2, 1, 1, 1)));
    kinds::check(&AttentionKindConfig::BigBird(config(3, 3, 1, 0)));
}

/// The pairs that the pattern leaves out.
fn hidden_pairs(
    config: &BigBirdConfig,
    batch: usize,
    tokens: usize,
    device: &Device,
) -> Tensor<3, Bool> {
    let blocks = tokens.div_ceil(config.block);
    let mut hidden = Vec::with_capacity(batch * tokens * tokens);
    for _ in 0..batch {
        for query in 0..tokens {
            let seen = config.key_blocks(query / config.block, blocks);
            hidden.extend((0..tokens).map(|key| !seen.contains(&(key / config.block))));
        }
    }
    Tensor::from_data(TensorData::new(hidden, [batch, tokens, tokens]), device)
}

/// Context, gradient of tokens and gradient of the key projection of a layer.
fn run(
    layer: &SelfAttention,
    tokens: usize,
    lengths: &[usize],
    pairs: Option<Tensor<3, Bool>>,
) -> [Tensor<3>; 3] {
    let device = autodiff_device();
    let input = random([lengths.len(), tokens, D_MODEL], 3, &device).require_grad();
    let hidden = padding(lengths, tokens, &device);
    let masked = SelfAttentionInput::new(input.clone()).mask_pad(hidden);
    let masked = match pairs {
        None => masked,
        Some(pairs) => masked.mask_attn(pairs),
    };
    let context = layer.forward(masked).context;
    let gradients = context.clone().powi_scalar(2).sum().backward();
    let weight = layer.key.weight.val().grad(&gradients).expect("it is used");
    [
        context.inner(),
        input.grad(&gradients).expect("it is used"),
        weight.unsqueeze(),
    ]
}

/// BigBird and dense attention with the same projections and the mask of the pattern.
#[track_caller]
fn assert_equals_masked_dense(config: &BigBirdConfig, tokens: usize, lengths: &[usize]) {
    let device = autodiff_device();
    let sparse = layer(&AttentionKindConfig::BigBird(config.clone()), &device);
    let dense = sparse
        .clone()
        .with_kind(&AttentionKindConfig::Dense, &device);
    let pairs = hidden_pairs(config, lengths.len(), tokens, &device);
    let got = run(&sparse, tokens, lengths, None);
    let expected = run(&dense, tokens, lengths, Some(pairs));
    for (got, expected) in got.into_iter().zip(expected) {
        assert_close(got, expected, 1e-3, 1e-3);
    }
}

#[test]
fn big_bird_is_dense_attention_with_the_mask_of_its_pattern() {
    assert_equals_masked_dense(&config(4, 3, 1, 1), 32, &[32, 32]);
    assert_equals_masked_dense(&config(4, 3, 1, 1), 30, &[30, 9, 1]);
    assert_equals_masked_dense(&config(3, 1, 2, 0), 19, &[19, 0]);
    assert_equals_masked_dense(&config(2, 5, 0, 2), 21, &[21, 20]);
}

#[test]
fn a_sequence_of_global_blocks_alone_is_dense() {
    assert_equals_masked_dense(&config(4, 3, 1, 2), 7, &[7, 3]);
    assert_equals_masked_dense(&config(4, 1, 0, 9), 13, &[13]);
}

proptest! {
    // Few and small: on the CPU driver of Vulkan every new shape compiles a kernel.
    #![proptest_config(ProptestConfig { cases: 8, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_pattern_equals_its_mask(
        block in 1usize..5, reach in 0usize..2, random in 0usize..3, global in 0usize..3,
        tokens in 1usize..20, cut in 0usize..20,
    ) {
        let config = config(block, 2 * reach + 1, random, global);
        assert_equals_masked_dense(&config, tokens, &[tokens, tokens.saturating_sub(cut)]);
    }
}

#[test]
fn a_pattern_that_covers_everything_is_dense_attention() {
    let config = config(4, 3, 16, 1);
    let device = autodiff_device();
    let sparse = layer(&AttentionKindConfig::BigBird(config), &device);
    let dense = sparse
        .clone()
        .with_kind(&AttentionKindConfig::Dense, &device);
    let lengths = [22, 15];
    let expected = run(&dense, 22, &lengths, None);
    for (got, expected) in run(&sparse, 22, &lengths, None).into_iter().zip(expected) {
        assert_close(got, expected, 1e-3, 1e-3);
    }
}

#[test]
fn without_random_blocks_cutting_padding_off_changes_nothing() {
    let kind = AttentionKindConfig::BigBird(config(4, 3, 0, 1));
    let layer = layer(&kind, &device());
    let input = random([2, 27, D_MODEL], 4, &device());
    let short = SelfAttentionInput::new(input.clone().slice([0..2, 0..11]));
    let padded = SelfAttentionInput::new(input).mask_pad(padding(&[11, 11], 27, &device()));
    let padded = layer.forward(padded).context.slice([0..2, 0..11]);
    assert_close(padded, layer.forward(short).context, 1e-5, 1e-5);
}

#[test]
fn the_draw_of_a_layer_changes_what_is_read() {
    let first = AttentionKindConfig::BigBird(config(2, 1, 1, 0));
    let input = random([1, 32, D_MODEL], 4, &device());
    let forward = |kind: &AttentionKindConfig| {
        let input = SelfAttentionInput::new(input.clone());
        layer(kind, &device()).forward(input).context
    };
    let (same, other) = (forward(&first.for_layer(1)), forward(&first.for_layer(2)));
    assert_close(same, forward(&first), 1e-6, 1e-6);
    let greatest: f32 = (other - forward(&first)).abs().max().into_scalar();
    assert!(greatest > 1e-2, "{greatest}");
}

/// A matrix of scores would be 1 GiB, more than the CPU driver of Vulkan gives a buffer.
#[test]
fn memory_is_linear_in_the_number_of_tokens() {
    let kind = AttentionKindConfig::BigBird(config(8, 3, 1, 1));
    let layer = arbora_attention::SelfAttentionConfig::new(1, 1)
        .with_kind(kind)
        .init(&device());
    let input = random([1, 16_384, 1], 4, &device());
    let context = layer.forward(SelfAttentionInput::new(input)).context;
    assert!(values(context).iter().all(|value| value.is_finite()));
}

#[test]
#[should_panic(expected = "big-bird does not support causal masks")]
fn a_causal_big_bird_is_refused() {
    let kind = AttentionKindConfig::BigBird(BigBirdConfig::default());
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 1, &device()));
    layer(&kind, &device()).forward(input.causal());
}

#[test]
#[should_panic(expected = "big-bird does not support masks of pairs")]
fn a_big_bird_with_a_mask_of_pairs_is_refused() {
    let kind = AttentionKindConfig::BigBird(BigBirdConfig::default());
    let pairs = Tensor::<3, Bool>::full([1, 4, 4], false, &device());
    let input = SelfAttentionInput::new(random([1, 4, D_MODEL], 1, &device()));
    layer(&kind, &device()).forward(input.mask_attn(pairs));
}

#[test]
#[should_panic(expected = "big-bird attends among the tokens of one sequence")]
fn a_big_bird_with_a_context_is_refused() {
    let kind = AttentionKindConfig::BigBird(BigBirdConfig::default());
    let tokens = || random([1, 4, D_MODEL], 1, &device());
    layer(&kind, &device()).forward(SelfAttentionInput::cross(tokens(), tokens()));
}

#[test]
#[should_panic(expected = "self_attention: kind.window: expected an odd number, got 2")]
fn an_even_window_is_refused() {
    let kind = AttentionKindConfig::BigBird(config(4, 2, 1, 1));
    layer(&kind, &device());
}

#[test]
#[should_panic(expected = "cache: big-bird does not support causal decoding")]
fn a_cache_is_refused() {
    let _ = layer(
        &AttentionKindConfig::BigBird(BigBirdConfig::default()),
        &device(),
    )
    .cache(1, &device());
}
