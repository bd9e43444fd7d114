//! Tree-coarse without projections of queries and keys.

use crate::self_attention::with_fixed_projections;
use crate::tree_coarse_layer::{coarse, layer};
use arbora_attention::{
    AttentionKind, AttentionKindConfig, RouterConfig, SelfAttention, SelfAttentionConfig,
    SelfAttentionInput, TreeCoarseConfig, TreeScope, TreeSharing, flops,
};
use arbora_testing::{assert_close, autodiff_device, device, padding, random, values};
use burn::module::Module;
use burn::tensor::Tensor;

fn config(branching: &[usize], scope: TreeScope, sharing: TreeSharing) -> TreeCoarseConfig {
    let default = TreeCoarseConfig::new(branching);
    TreeCoarseConfig {
        router: RouterConfig {
            scope,
            sharing,
            ..default.router
        },
        per_head_alpha: true,
        ..default
    }
}

/// The folded layer and the whole one agree on three calls; no decision is close enough to fall otherwise.
fn assert_folds(layer: &SelfAttention) {
    let folded = layer.fold();
    let tokens = random([2, 7, 8], 3, &device());
    let queries = random([2, 3, 8], 4, &device());
    let inputs = [
        SelfAttentionInput::new(tokens.clone()).mask_pad(padding(&[7, 4], 7, &device())),
        SelfAttentionInput::new(tokens.clone()).causal(),
        SelfAttentionInput::cross(queries, tokens),
    ];
    for input in inputs {
        let whole = layer.forward(input.clone());
        let routing = whole.routing.unwrap();
        for margins in [routing.query.margins, routing.key.margins] {
            let margins = values(margins);
            let least = margins
                .iter()
                .filter(|m| **m > 0.0)
                .fold(f32::MAX, |a, b| a.min(*b));
            assert!(least > 1e-5, "choose other seeds: a margin of {least:e}");
        }
        assert_close(folded.forward(input).context, whole.context, 1e-5, 1e-5);
    }
}

#[test]
fn folding_changes_nothing() {
    use TreeScope::{PerHead, PerLayer};
    use TreeSharing::{Separate, Shared};
    for (kv_heads, config) in [
        (4, config(&[2, 2], PerHead, Separate)),
        (2, config(&[3, 2], PerHead, Shared)),
        (1, config(&[2, 2, 2], PerLayer, Separate)),
        (4, config(&[2, 4], PerLayer, Shared)),
        (2, config(&[], PerHead, Separate)),
    ] {
        assert_folds(&layer(config, kv_heads, &device()));
    }
}

#[test]
fn folding_needs_no_biases_of_projections() {
    let kind = config(&[2, 2], TreeScope::PerHead, TreeSharing::Separate);
    let layer = SelfAttentionConfig::new(8, 4)
        .with_kind(AttentionKindConfig::TreeCoarse(kind))
        .with_bias(false)
        .init(&device());
    let layer = with_fixed_projections(layer);
    assert_folds(&layer);
}

#[test]
fn balance_biases_are_folded_too() {
    let mut config = config(&[2, 2], TreeScope::PerHead, TreeSharing::Separate);
    config.router.balance_rate = 0.3;
    let training = layer(config, 2, &autodiff_device());
    for seed in 0..3 {
        let tokens = random([2, 9, 8], seed, &autodiff_device());
        training.forward(SelfAttentionInput::new(tokens));
    }
    let layer = training.valid();
    let moved = coarse(&layer)
        .router
        .query
        .levels()
        .iter()
        .any(|level| values(level.balance.value_sync()).iter().any(|x| *x != 0.0));
    assert!(
        moved,
        "the biases must have moved for this test to say something"
    );
    assert_folds(&layer);
}

#[test]
fn any_calls_decode_what_one_causal_call_gives() {
    for (kv_heads, scope) in [(2, TreeScope::PerHead), (4, TreeScope::PerLayer)] {
        let config = config(&[2, 3], scope, TreeSharing::Separate);
        let folded = layer(config, kv_heads, &device()).fold();
        let tokens = random([2, 9, 8], 3, &device());
        let whole = SelfAttentionInput::new(tokens.clone()).causal();
        let expected = folded.forward(whole).context;
        for lengths in [vec![1; 9], vec![4, 1, 4]] {
            let (mut state, mut first) = (folded.cache(2, &device()), 0);
            let contexts = lengths.into_iter().map(|new| {
                let part = tokens.clone().narrow(1, first, new);
                first += new;
                folded.forward_cached(part, &mut state)
            });
            let contexts = Tensor::cat(contexts.collect(), 1);
            assert_close(contexts, expected.clone(), 1e-5, 1e-5);
        }
    }
}

#[test]
#[should_panic(expected = "folded_tree_coarse: cache: expected one of trees")]
fn a_cache_of_other_trees_is_refused() {
    let folded = |branching: &[usize]| {
        let config = config(branching, TreeScope::PerHead, TreeSharing::Separate);
        layer(config, 4, &device()).fold()
    };
    let mut state = folded(&[3]).cache(1, &device());
    folded(&[2]).forward_cached(Tensor::zeros([1, 2, 8], &device()), &mut state);
}

#[test]
fn only_values_and_outputs_are_projected() {
    let layer = layer(
        config(&[2, 2], TreeScope::PerHead, TreeSharing::Separate),
        2,
        &device(),
    );
    let folded = layer.fold();
    let input = SelfAttentionInput::new(random([2, 7, 8], 1, &device()));
    let (_, whole) = flops::count(|| layer.forward(input.clone()));
    let (_, half) = flops::count(|| folded.forward(input));
    let projections = |query, key| flops::Projections {
        query,
        key,
        value: 14,
        output: 14,
    };
    assert_eq!(whole, projections(14, 14));
    assert_eq!(half, projections(0, 0));
}

#[test]
#[should_panic(
    expected = "self_attention: fold: expected a router with normalize = false, got true"
)]
fn a_router_that_normalises_cannot_be_folded() {
    let mut config = config(&[2], TreeScope::PerHead, TreeSharing::Separate);
    config.router.normalize = true;
    let _ = layer(config, 4, &device()).fold();
}

#[test]
#[should_panic(expected = "self_attention: fold: expected the kind tree-coarse, got dense")]
fn dense_attention_cannot_be_folded() {
    let layer = SelfAttentionConfig::new(8, 4).init(&device());
    assert!(matches!(layer.kind, AttentionKind::Dense(_)));
    let _ = layer.fold();
}

#[test]
#[should_panic(expected = "folded_tree_coarse: axis 2 of tokens: expected 8, got 7")]
fn tokens_of_another_width_are_refused() {
    let config = config(&[2], TreeScope::PerHead, TreeSharing::Separate);
    let folded = layer(config, 4, &device()).fold();
    folded.forward(SelfAttentionInput::new(Tensor::zeros([1, 2, 7], &device())));
}
