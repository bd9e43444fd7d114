//! Incremental decoding against one causal call.

use crate::self_attention::with_fixed_projections;
use arbora_attention::{
    AttentionKindConfig, EmptyLeaf, RouterConfig, SelfAttention, SelfAttentionConfig,
    SelfAttentionInput, TreeFineConfig, TreeScope, TreeSharing,
};
use arbora_testing::{assert_close, autodiff_device, device, random};
use burn::tensor::Tensor;

// Few: every call has shapes of its own, and a GPU's kernels are compiled for each.
const TOKENS: usize = 20;

fn layer(kind: AttentionKindConfig) -> SelfAttention {
    with_fixed_projections(
        SelfAttentionConfig::new(12, 4)
            .with_n_kv_heads(Some(2))
            .with_kind(kind)
            .init(&device()),
    )
}

fn fine(branching: &[usize]) -> TreeFineConfig {
    TreeFineConfig {
        router: RouterConfig {
            // Queries and keys apart: early tokens often find their leaf empty.
            sharing: TreeSharing::Separate,
            seed: 3,
            ..RouterConfig::new(branching)
        },
        ..TreeFineConfig::default()
    }
}

fn tokens() -> Tensor<3> {
    random([2, TOKENS, 12], 1, &device()) * 3.0
}

/// The same tokens in calls of the given lengths.
fn decoded(layer: &SelfAttention, lengths: impl IntoIterator<Item = usize>) -> Tensor<3> {
    let tokens = tokens();
    let mut cache = layer.cache(2, &device());
    let parts = lengths
        .into_iter()
        .map(|length| {
            let first = cache.tokens();
            let part = tokens.clone().slice([0..2, first..first + length]);
            layer.forward_cached(part, &mut cache).context
        })
        .collect();
    assert_eq!(cache.tokens(), TOKENS);
    Tensor::cat(parts, 1)
}

fn prefilled(layer: &SelfAttention) -> Tensor<3> {
    let input = SelfAttentionInput::new(tokens()).causal();
    layer.forward(input).context
}

#[track_caller]
fn assert_decodes(kind: AttentionKindConfig) {
    let layer = layer(kind);
    let expected = prefilled(&layer);
    let one_by_one = std::iter::repeat_n(1, TOKENS);
    assert_close(decoded(&layer, one_by_one), expected.clone(), 1e-5, 1e-5);
    assert_close(decoded(&layer, [9, 1, 3, 7]), expected.clone(), 1e-5, 1e-5);
    assert_close(decoded(&layer, [TOKENS]), expected, 1e-5, 1e-5);
}

#[test]
fn dense_attention_decodes_what_one_causal_call_gives() {
    assert_decodes(AttentionKindConfig::Dense);
}

#[test]
fn every_policy_for_empty_leaves_decodes_what_one_causal_call_gives() {
    for empty_leaf in [
        EmptyLeaf::Zero,
        EmptyLeaf::AncestorMean,
        EmptyLeaf::AncestorAttend,
        EmptyLeaf::SelfKey,
    ] {
        assert_decodes(AttentionKindConfig::TreeFine(TreeFineConfig {
            empty_leaf,
            ..fine(&[2, 2, 3])
        }));
    }
}

#[test]
fn a_tree_of_height_zero_and_one_per_layer_decode_too() {
    assert_decodes(AttentionKindConfig::TreeFine(fine(&[])));
    let mut config = fine(&[2, 2]);
    config.router.scope = TreeScope::PerLayer;
    assert_decodes(AttentionKindConfig::TreeFine(config));
}

#[test]
fn a_query_reads_the_keys_of_its_leaf_alone() {
    let read = |config: TreeFineConfig| {
        let layer = layer(AttentionKindConfig::TreeFine(config));
        let mut cache = layer.cache(2, &device());
        let tokens = tokens();
        layer.forward_cached(tokens.clone().slice([0..2, 0..TOKENS - 1]), &mut cache);
        assert_eq!(cache.keys_read(), 0);
        let output =
            layer.forward_cached(tokens.clone().slice([0..2, TOKENS - 1..TOKENS]), &mut cache);
        assert!(output.routing.is_none());
        let report = layer
            .forward(SelfAttentionInput::new(tokens))
            .routing
            .expect("the kind routes");
        (cache.keys_read(), report)
    };
    // Two examples, two key heads.
    assert_eq!(read(fine(&[])).0, 2 * 2 * (TOKENS - 1));

    let (count, report) = read(TreeFineConfig {
        empty_leaf: EmptyLeaf::Zero,
        ..fine(&[2, 2, 2])
    });
    let integers = |leaves: Tensor<3, burn::tensor::Int>| -> Vec<i64> {
        leaves.into_data().iter::<i64>().collect()
    };
    let (queries, keys) = (
        integers(report.query.leaves()),
        integers(report.key.leaves()),
    );
    let mut expected = 0;
    for example in 0..2 {
        for head in 0..2 {
            // The two query heads of a key head.
            let at = (example * TOKENS + TOKENS - 1) * 4 + head * 2;
            expected += (0..TOKENS - 1)
                .map(|key| keys[(example * TOKENS + key) * 2 + head])
                .filter(|leaf| queries[at..at + 2].contains(leaf))
                .count();
        }
    }
    assert_eq!(count, expected);
    assert!(count > 0);
}

#[test]
#[should_panic(expected = "self_attention: cache: expected one of dense, got one of another kind")]
fn the_cache_of_another_kind_is_refused() {
    let layer = layer(AttentionKindConfig::TreeFine(fine(&[2])));
    let mut cache = layer.cache(2, &device());
    let dense = layer.with_kind(&AttentionKindConfig::Dense, &device());
    dense.forward_cached(tokens(), &mut cache);
}

#[test]
#[should_panic(expected = "tree_fine: cache: expected one of trees")]
fn the_cache_of_other_trees_is_refused() {
    let layer = layer(AttentionKindConfig::TreeFine(fine(&[2])));
    let mut cache = layer.cache(2, &device());
    let kind = AttentionKindConfig::TreeFine(fine(&[3]));
    layer
        .with_kind(&kind, &device())
        .forward_cached(tokens(), &mut cache);
}

#[test]
#[should_panic(expected = "self_attention: axis 0 of tokens, as of the cache: expected 3, got 2")]
fn another_batch_than_the_cache_has_is_refused() {
    let layer = layer(AttentionKindConfig::Dense);
    let mut cache = layer.cache(3, &device());
    layer.forward_cached(tokens(), &mut cache);
}

#[test]
#[should_panic(expected = "self_attention: cache: expected a device without autodiff")]
fn decoding_on_an_autodiff_device_is_refused() {
    let layer = SelfAttentionConfig::new(12, 4).init(&autodiff_device());
    let mut cache = layer.cache(2, &autodiff_device());
    layer.forward_cached(random([2, 3, 12], 1, &autodiff_device()), &mut cache);
}
