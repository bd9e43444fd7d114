//! Incremental decoding of tree-coarse against one causal call.

use crate::tree_coarse_layer::layer;
use arbora_attention::{
    AttentionKindConfig, EmptyNode, RouterConfig, SelfAttention, SelfAttentionInput,
    TreeCoarseConfig, TreeScope,
};
use arbora_testing::{assert_close, device, random};
use burn::tensor::Tensor;

const TOKENS: usize = 20;

fn tokens() -> Tensor<3> {
    random([2, TOKENS, 8], 1, &device()) * 3.0
}

/// The same tokens in calls of the given lengths.
fn decoded(layer: &SelfAttention, lengths: impl IntoIterator<Item = usize>) -> Tensor<3> {
    let mut cache = layer.cache(2, &device());
    let parts = lengths.into_iter().map(|length| {
        let part = tokens().narrow(1, cache.tokens(), length);
        let context = layer.forward_cached(part, &mut cache).context;
        assert_eq!(cache.keys_read(), 0);
        context
    });
    Tensor::cat(parts.collect(), 1)
}

#[test]
fn any_calls_decode_what_one_causal_call_gives() {
    let per_layer = RouterConfig {
        scope: TreeScope::PerLayer,
        ..TreeCoarseConfig::new([2, 3]).router
    };
    for config in [
        TreeCoarseConfig::new([]),
        TreeCoarseConfig::new([2, 2, 2]),
        TreeCoarseConfig {
            empty_node: EmptyNode::Drop,
            per_head_alpha: true,
            ..TreeCoarseConfig::new([3, 2])
        },
        TreeCoarseConfig {
            router: per_layer,
            ..TreeCoarseConfig::default()
        },
    ] {
        let layer = layer(config, 2, &device());
        let expected = layer
            .forward(SelfAttentionInput::new(tokens()).causal())
            .context;
        for lengths in [vec![1; TOKENS], vec![7, 1, 3, 9], vec![TOKENS]] {
            assert_close(decoded(&layer, lengths), expected.clone(), 1e-5, 1e-5);
        }
    }
}

#[test]
#[should_panic(
    expected = "self_attention: cache: expected one of tree-coarse, got one of another kind of attention"
)]
fn a_cache_of_another_kind_is_refused() {
    let layer = layer(TreeCoarseConfig::new([2]), 2, &device());
    let dense = layer
        .clone()
        .with_kind(&AttentionKindConfig::Dense, &device());
    let mut cache = dense.cache(2, &device());
    layer.forward_cached(tokens(), &mut cache);
}

#[test]
#[should_panic(expected = "tree_coarse: cache: expected one of trees")]
fn a_cache_of_other_trees_is_refused() {
    let mut cache = layer(TreeCoarseConfig::new([2]), 2, &device()).cache(2, &device());
    layer(TreeCoarseConfig::new([3]), 2, &device()).forward_cached(tokens(), &mut cache);
}
