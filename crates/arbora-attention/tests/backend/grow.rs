//! Layers whose trees grow by a level.

use crate::self_attention::with_fixed_projections;
use crate::tree_coarse_layer::{coarse, layer as coarse_layer};
use arbora_attention::{
    AttentionKind, AttentionKindConfig, Router, SelfAttention, SelfAttentionConfig,
    SelfAttentionInput, TreeCoarseConfig, TreeFineConfig, TreeSharing,
};
use arbora_testing::{allowed, assert_close, autodiff_device, device, random, values};
use arbora_tree::Growth;
use burn::module::Module;
use burn::tensor::{Device, Tensor};

fn fine_layer(branching: &[usize], kv_heads: usize, device: &Device) -> SelfAttention {
    let mut config = TreeFineConfig::new(branching);
    // Calls leave the layer as it is.
    config.router.balance_rate = 0.0;
    let kind = AttentionKindConfig::TreeFine(config);
    with_fixed_projections(
        SelfAttentionConfig::new(8, 4)
            .with_n_kv_heads(Some(kv_heads))
            .with_kind(kind)
            .init(device),
    )
}

fn router(layer: &SelfAttention) -> &Router {
    match &layer.kind {
        AttentionKind::TreeFine(fine) => &fine.router,
        AttentionKind::TreeCoarse(coarse) => &coarse.router,
        kind => panic!("expected a kind with trees, got {kind:?}"),
    }
}

fn attend(layer: &SelfAttention, causal: bool) -> Tensor<3> {
    let device = layer.query.weight.val().device();
    let mut input = SelfAttentionInput::new(random([2, 9, 8], 1, &device));
    input.masks.causal = causal;
    layer.forward(input).context.without_autodiff()
}

#[test]
fn a_preserving_level_changes_nothing_on_any_device() {
    for device in [device(), autodiff_device()] {
        for branching in [&[][..], &[2, 3]] {
            let layers = [
                fine_layer(branching, 2, &device),
                coarse_layer(TreeCoarseConfig::new(branching), 2, &device),
            ];
            for layer in layers {
                for causal in [false, true] {
                    let grown = layer.clone().grow(2, &Growth::preserve(7));
                    let height = branching.len() + 1;
                    assert_eq!(router(&grown).query.height(), height);
                    assert_eq!(router(&grown).key_tree().height(), height);
                    assert_close(attend(&grown, causal), attend(&layer, causal), 1e-5, 1e-5);
                }
            }
        }
    }
}

#[test]
fn a_new_depth_weighs_nothing_where_it_preserves_and_its_share_otherwise() {
    let alpha = |layer: &SelfAttention| values(coarse(layer).alpha.val());
    let layer = coarse_layer(TreeCoarseConfig::new([2]), 2, &device());
    let preserved = layer.clone().grow(2, &Growth::preserve(1));
    assert_eq!(alpha(&preserved), [0.5, 0.5, 0.0]);
    let random = layer.clone().grow(3, &Growth::Random { seed: 1 });
    let weights = alpha(&random);
    assert_eq!(weights[..2], [0.5, 0.5]);
    assert!((weights[2] - 1.0 / 3.0).abs() < allowed(1e-7));
    // An optimiser must not give the state of the old weights to the longer ones.
    assert_ne!(coarse(&random).alpha.id, coarse(&layer).alpha.id);
}

#[test]
fn a_grown_layer_trains_its_new_level_and_keeps_the_parameters_of_the_others() {
    let layer = coarse_layer(TreeCoarseConfig::new([2]), 2, &autodiff_device());
    let before = layer.tree_parameter_ids();
    let grown = layer.clone().grow(2, &Growth::Random { seed: 3 });
    let after = grown.tree_parameter_ids();
    assert!(before.iter().all(|id| after.contains(id)));
    assert_eq!(after.len(), before.len() + 4); // a weight and a bias, of queries and of keys
    assert_eq!(grown.query.weight.id, layer.query.weight.id);
    let tokens = random([2, 9, 8], 1, &autodiff_device());
    let weight = random([2, 9, 8], 2, &autodiff_device());
    let context = grown.forward(SelfAttentionInput::new(tokens)).context;
    let gradients = (context * weight).sum().backward();
    let alpha = coarse(&grown).alpha.val().grad(&gradients).unwrap();
    assert!(values(alpha).iter().all(|x| *x != 0.0));
    for tree in [&router(&grown).query, &router(&grown).key_tree()] {
        let weight = tree.levels()[1].weight.val().grad(&gradients).unwrap();
        assert!(values(weight).iter().any(|x| *x != 0.0));
    }
}

#[test]
fn trees_of_queries_and_keys_grow_differently() {
    let layer = coarse_layer(TreeCoarseConfig::new([]), 2, &device());
    let grown = layer.grow(2, &Growth::Random { seed: 3 });
    let weights = [&router(&grown).query, &router(&grown).key_tree()]
        .map(|tree| values(tree.levels()[0].weight.val()));
    assert_ne!(weights[0], weights[1]);
}

#[test]
fn a_median_split_balances_the_projections_of_the_samples() {
    let tokens = random([1, 16, 8], 1, &device());
    let samples = tokens.clone().reshape([1, 16, 1, 8]);
    for sharing in [TreeSharing::Shared, TreeSharing::Separate] {
        let mut config = TreeCoarseConfig::new([]);
        config.router.sharing = sharing;
        let layer = coarse_layer(config, 2, &device());
        let growth = Growth::MedianSplit {
            samples: samples.clone(),
        };
        let grown = layer.grow(2, &growth);
        let routing = grown
            .forward(SelfAttentionInput::new(tokens.clone()))
            .routing
            .unwrap();
        let counts = [routing.counts.queries, routing.counts.keys].map(values);
        match sharing {
            // Queries and keys of a tree together: 32 and 16.
            TreeSharing::Shared => {
                for (queries, keys) in counts[0].iter().zip(&counts[1]) {
                    assert!((queries + keys - 24.0).abs() <= 1.0, "{counts:?}");
                }
            }
            TreeSharing::Separate => {
                assert!(
                    counts[0].iter().all(|count| (count - 16.0).abs() <= 1.0),
                    "{counts:?}"
                );
                assert!(
                    counts[1].iter().all(|count| (count - 8.0).abs() <= 1.0),
                    "{counts:?}"
                );
            }
        }
    }
}

#[test]
#[should_panic(expected = "self_attention: grow: expected a kind with trees, got dense")]
fn dense_attention_does_not_grow() {
    let layer = SelfAttentionConfig::new(8, 4).init(&device());
    let _ = layer.grow(2, &Growth::preserve(0));
}

#[test]
#[should_panic(
    expected = "self_attention: samples [batch, tokens, 1, d_model]: expected [1, 3, 1, 8], got [1, 3, 4, 2]"
)]
fn samples_are_tokens() {
    let layer = fine_layer(&[], 4, &device());
    let samples = random([1, 3, 4, 2], 1, &device());
    let _ = layer.grow(2, &Growth::MedianSplit { samples });
}

#[test]
fn a_frozen_layer_stays_frozen_when_it_grows() {
    for height in [0, 1] {
        let branching = vec![2; height];
        let layer = coarse_layer(TreeCoarseConfig::new(branching), 2, &autodiff_device());
        for growth in [Growth::Random { seed: 1 }, Growth::preserve(1)] {
            let frozen = layer.clone().no_grad().grow(2, &growth);
            let learning = layer.clone().grow(2, &growth);
            for (layer, learns) in [(frozen, false), (learning, true)] {
                assert_eq!(coarse(&layer).alpha.is_require_grad(), learns);
                for tree in [&router(&layer).query, &router(&layer).key_tree()] {
                    for level in tree.levels() {
                        assert_eq!(level.weight.is_require_grad(), learns);
                        assert_eq!(level.bias.is_require_grad(), learns);
                    }
                }
            }
        }
    }
}
