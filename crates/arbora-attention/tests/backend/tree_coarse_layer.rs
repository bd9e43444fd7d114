//! Tree-coarse as a kind of self-attention.

use crate::self_attention::with_fixed_projections;
use arbora_attention::{
    AlignmentConfig, AttentionKind, AttentionKindConfig, RouterConfig, SelfAttention,
    SelfAttentionConfig, SelfAttentionInput, TreeCoarse, TreeCoarseConfig, TreeScope, TreeSharing,
};
use arbora_testing::gradient::assert_matches_finite_differences;
use arbora_testing::{assert_close, autodiff_device, device, padding, random, random_data, values};
use arbora_tree::Surrogate;
use burn::module::Module;
use burn::tensor::{Bool, Device, Int, Tensor};
use proptest::prelude::*;

const SURROGATES: [Surrogate; 3] = [
    Surrogate::DenseGradient {
        temperature: 1.0,
        clip: 100.0,
        scale: None,
    },
    Surrogate::TopMargin {
        candidates: 2,
        temperature: 1.0,
    },
    Surrogate::Soft { temperature: 1.0 },
];

/// Width 8, four query heads.
pub fn layer(config: TreeCoarseConfig, kv_heads: usize, device: &Device) -> SelfAttention {
    with_fixed_projections(
        SelfAttentionConfig::new(8, 4)
            .with_n_kv_heads(Some(kv_heads))
            .with_kind(AttentionKindConfig::TreeCoarse(config))
            .init(device),
    )
}

pub fn coarse(layer: &SelfAttention) -> &TreeCoarse {
    match &layer.kind {
        AttentionKind::TreeCoarse(coarse) => coarse,
        kind => panic!("expected tree-coarse, got {kind:?}"),
    }
}

fn binary() -> TreeCoarseConfig {
    TreeCoarseConfig::new([2, 2])
}

fn context(layer: &SelfAttention, input: SelfAttentionInput) -> Tensor<3> {
    layer.forward(input).context
}

/// What the output projection makes of no attention at all.
fn output_of_nothing(layer: &SelfAttention, rows: usize) -> Tensor<3> {
    layer.output.forward(Tensor::zeros([1, rows, 8], &device()))
}

#[test]
fn training_computes_what_inference_does_whatever_the_straight_through_surrogate() {
    let variants = [
        (binary(), 4),
        (
            TreeCoarseConfig {
                per_head_alpha: true,
                ..TreeCoarseConfig::new([3, 2])
            },
            2,
        ),
        (
            TreeCoarseConfig {
                router: RouterConfig {
                    scope: TreeScope::PerLayer,
                    normalize: true,
                    ..binary().router
                },
                ..binary()
            },
            1,
        ),
        (
            TreeCoarseConfig {
                router: RouterConfig {
                    sharing: TreeSharing::Shared,
                    ..binary().router
                },
                ..binary()
            },
            2,
        ),
    ];
    for (config, kv_heads) in variants {
        let training = layer(config, kv_heads, &autodiff_device());
        let inference = training.valid();
        let inputs = |device: &Device| {
            let tokens = random([2, 7, 8], 1, device);
            let mask = padding(&[7, 4], 7, device);
            let queries = random([2, 3, 8], 2, device);
            [
                SelfAttentionInput::new(tokens.clone()).mask_pad(mask.clone()),
                SelfAttentionInput::new(tokens.clone()).causal(),
                SelfAttentionInput::cross(queries.clone(), tokens.clone()).mask_pad(mask),
                SelfAttentionInput::cross(queries, tokens).causal(),
            ]
        };
        let expected = inputs(&device()).map(|input| context(&inference, input));
        for surrogate in &SURROGATES[..2] {
            let inputs = inputs(&autodiff_device()).map(|input| input.with_surrogate(*surrogate));
            for (input, expected) in inputs.into_iter().zip(expected.clone()) {
                let got = context(&training, input).without_autodiff();
                assert_close(got, expected, 1e-5, 1e-5);
            }
        }
    }
}

#[test]
fn without_a_decision_every_token_gets_the_weighted_mean() {
    let layer = layer(TreeCoarseConfig::new([]), 4, &device());
    let tokens = random([2, 5, 8], 1, &device());
    let mean = layer
        .value
        .forward(tokens.clone())
        .mean_dim(1)
        .repeat_dim(1, 5);
    assert_eq!(values(coarse(&layer).alpha.val()), [1.0]);
    let expected = layer.output.forward(mean);
    assert_close(
        context(&layer, SelfAttentionInput::new(tokens)),
        expected,
        1e-5,
        1e-5,
    );
}

#[test]
fn one_token_alone_gets_its_own_value_from_every_depth() {
    let config = TreeCoarseConfig {
        router: RouterConfig {
            sharing: TreeSharing::Shared,
            ..binary().router
        },
        ..binary()
    };
    // With one shared tree the token's query may pass other nodes than its key: empty ones, which carry the root's.
    let layer = layer(config, 4, &device());
    let token = random([1, 1, 8], 1, &device());
    let expected = layer.output.forward(layer.value.forward(token.clone()));
    assert_close(
        context(&layer, SelfAttentionInput::new(token)),
        expected,
        1e-5,
        1e-5,
    );
}

#[test]
fn gradients_reach_both_trees_their_projections_values_and_depths() {
    for surrogate in SURROGATES {
        for causal in [false, true] {
            let layer = layer(binary(), 2, &autodiff_device());
            let tokens = random([2, 6, 8], 1, &autodiff_device());
            let mut input = SelfAttentionInput::new(tokens)
                .mask_pad(padding(&[6, 4], 6, &autodiff_device()))
                .with_surrogate(surrogate);
            input.masks.causal = causal;
            let weight = random([2, 6, 8], 2, &autodiff_device());
            let gradients = (context(&layer, input) * weight).sum().backward();
            let router = &coarse(&layer).router;
            let trees = [&router.query, router.key.as_ref().unwrap()];
            let mut found = vec![
                coarse(&layer).alpha.val().grad(&gradients).map(values),
                layer.query.weight.val().grad(&gradients).map(values),
                layer.key.weight.val().grad(&gradients).map(values),
                layer.value.weight.val().grad(&gradients).map(values),
            ];
            for level in trees.iter().flat_map(|tree| tree.levels()) {
                found.push(level.weight.val().grad(&gradients).map(values));
            }
            for (number, gradient) in found.into_iter().enumerate() {
                let gradient = gradient.unwrap_or_else(|| panic!("no gradient {number}"));
                let size: f32 = gradient.iter().map(|x| x.abs()).sum();
                assert!(
                    size.is_finite() && size > 1e-4,
                    "{surrogate:?} {number}: {size}"
                );
            }
        }
    }
}

#[test]
fn soft_routes_are_differentiated_exactly() {
    let autodiff = autodiff_device();
    let layer = layer(binary(), 2, &autodiff);
    assert_matches_finite_differences(random_data([1, 5, 8], 1), &autodiff, 1e-2, 1e-2, |tokens| {
        let weight = random([1, 5, 8], 2, &autodiff);
        let input = SelfAttentionInput::new(tokens).with_surrogate(SURROGATES[2]);
        (context(&layer, input) * weight).sum()
    });
}

#[test]
fn padding_is_in_no_mean_and_gets_nothing() {
    let layer = layer(binary(), 2, &device());
    let tokens = random([1, 6, 8], 1, &device());
    let other = Tensor::cat(
        vec![
            tokens.clone().narrow(1, 0, 4),
            random([1, 2, 8], 9, &device()) * 50.0,
        ],
        1,
    );
    let attend = |tokens: Tensor<3>, lengths: &[usize]| {
        let mask = padding(lengths, tokens.dims()[1], &device());
        context(&layer, SelfAttentionInput::new(tokens).mask_pad(mask))
    };
    let padded = attend(tokens.clone(), &[4]);
    assert_close(attend(other, &[4]), padded.clone(), 1e-6, 1e-6);
    let alone = context(
        &layer,
        SelfAttentionInput::new(tokens.clone().narrow(1, 0, 4)),
    );
    assert_close(padded.clone().narrow(1, 0, 4), alone, 1e-5, 1e-5);
    assert_close(
        padded.narrow(1, 4, 2),
        output_of_nothing(&layer, 2),
        1e-6,
        1e-6,
    );
    assert_close(
        attend(tokens, &[0]),
        output_of_nothing(&layer, 6),
        1e-6,
        1e-6,
    );
}

#[test]
fn examples_do_not_see_each_other() {
    let layer = layer(binary(), 2, &device());
    let tokens = random([3, 5, 8], 1, &device());
    let order = Tensor::<1, Int>::from_data([2, 0, 1], &device());
    let attend = |tokens: Tensor<3>| context(&layer, SelfAttentionInput::new(tokens));
    let expected = attend(tokens.clone()).select(0, order.clone());
    assert_close(attend(tokens.select(0, order)), expected, 1e-5, 1e-5);
}

#[test]
fn a_causal_layer_sees_no_later_token() {
    let layer = layer(binary(), 2, &device());
    let tokens = random([1, 70, 8], 1, &device());
    let changed = Tensor::cat(
        vec![
            tokens.clone().narrow(1, 0, 66),
            random([1, 4, 8], 9, &device()) * 50.0,
        ],
        1,
    );
    let attend = |tokens: Tensor<3>| {
        context(&layer, SelfAttentionInput::new(tokens).causal()).narrow(1, 0, 66)
    };
    assert_close(attend(changed), attend(tokens), 1e-5, 1e-5);
}

#[test]
fn the_report_counts_tokens_and_has_a_balance_loss_in_training_alone() {
    let training = layer(binary(), 2, &autodiff_device());
    let report = |layer: &SelfAttention, device: &Device| {
        let input = SelfAttentionInput::new(random([2, 6, 8], 1, device)).mask_pad(padding(
            &[6, 4],
            6,
            device,
        ));
        layer.forward(input).routing.unwrap()
    };
    let report_of_training = report(&training, &autodiff_device());
    let loss: f32 = report_of_training.balance_loss.unwrap().into_scalar();
    assert!(loss >= 1.0 - 1e-5);
    let report = report(&training.valid(), &device());
    assert!(report.balance_loss.is_none() && report.alignment_loss.is_none());
    let total = |counts: Tensor<3>| values(counts.sum_dim(2));
    assert_eq!(total(report.counts.queries), [12.0, 12.0, 8.0, 8.0]); // two query heads per tree
    assert_eq!(total(report.counts.keys), [6.0, 6.0, 4.0, 4.0]);
}

#[test]
fn another_kind_keeps_the_projections() {
    let dense = SelfAttentionConfig::new(8, 4).init(&device());
    let before = [&dense.query, &dense.key, &dense.value, &dense.output].map(|l| l.weight.id);
    let coarse = dense.with_kind(&AttentionKindConfig::TreeCoarse(binary()), &device());
    let after = [&coarse.query, &coarse.key, &coarse.value, &coarse.output].map(|l| l.weight.id);
    assert_eq!(after, before);
}

#[test]
fn missing_settings_are_those_of_tree_coarse_and_unknown_ones_are_refused() {
    let read = |text: &str| serde_json::from_str::<AttentionKindConfig>(text);
    let config = read(r#"{"kind": "tree-coarse", "router": {"branching": [2, 2]}}"#).unwrap();
    assert_eq!(config, AttentionKindConfig::TreeCoarse(binary()));
    let text = serde_json::to_string(&config).unwrap();
    assert_eq!(read(&text).unwrap(), config);
    let unknown = read(r#"{"kind": "tree-coarse", "router": {"branchings": [2, 2]}}"#);
    assert!(unknown.unwrap_err().to_string().contains("branchings"));
}

#[test]
#[should_panic(
    expected = "self_attention: pairs: tree-coarse does not support masks of pairs, got one"
)]
fn a_mask_of_pairs_is_refused() {
    let layer = layer(binary(), 2, &device());
    let pairs = Tensor::<3, Bool>::full([1, 3, 3], false, &device());
    context(
        &layer,
        SelfAttentionInput::new(random([1, 3, 8], 1, &device())).mask_attn(pairs),
    );
}

#[test]
#[should_panic(
    expected = "self_attention: kind.router.alignment: expected null, since means are not aligned, got 64 rows"
)]
fn an_alignment_is_refused() {
    let mut config = binary();
    config.router.alignment = Some(AlignmentConfig::default());
    layer(config, 2, &device());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, ..Default::default() })]

    #[test]
    fn any_tree_any_length_any_padding_trains_on_what_inference_computes(
        branching in prop::collection::vec(2usize..4, 0..5),
        tokens in 1usize..6,
        length in 0usize..6,
        causal: bool,
        seed in 0u64..1000,
    ) {
        let mut config = TreeCoarseConfig::new(branching);
        config.router.seed = seed;
        let training = layer(config, 2, &autodiff_device());
        let attend = |layer: &SelfAttention, device: &Device| {
            let mask = padding(&[length.min(tokens)], tokens, device);
            let rows = random([1, tokens, 8], seed, device);
            let mut input = SelfAttentionInput::new(rows).mask_pad(mask);
            input.masks.causal = causal;
            context(layer, input).without_autodiff()
        };
        let expected = attend(&training.valid(), &device());
        assert_close(attend(&training, &autodiff_device()), expected, 1e-5, 1e-5);
    }
}
