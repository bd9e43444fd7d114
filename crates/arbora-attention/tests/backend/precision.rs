//! Layers in other precisions than the device's, and on devices that record by gradient checkpointing.

use arbora_attention::baselines::{BigBirdConfig, LinformerConfig, PerformerConfig};
use arbora_attention::{
    AttentionKindConfig, Router, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
    TreeCoarseConfig, TreeFineConfig, TreeSharing,
};
use arbora_testing::{autodiff_device, cast_module, device, other_floats, random, values};
use arbora_tree::Growth;
use burn::tensor::{Device, Tensor};

const D_MODEL: usize = 8;

fn layer(kind: AttentionKindConfig, device: &Device) -> SelfAttention {
    SelfAttentionConfig::new(D_MODEL, 2)
        .with_kind(kind)
        .init(device)
}

fn router(layer: &SelfAttention) -> &Router {
    use arbora_attention::AttentionKind::{TreeCoarse, TreeFine};
    match &layer.kind {
        TreeFine(fine) => &fine.router,
        TreeCoarse(coarse) => &coarse.router,
        other => panic!("{} has no trees", other.name()),
    }
}

fn kinds() -> [AttentionKindConfig; 6] {
    [
        AttentionKindConfig::Dense,
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
        AttentionKindConfig::Linformer(LinformerConfig::default()),
        AttentionKindConfig::BigBird(BigBirdConfig::default().with_block(2)),
        AttentionKindConfig::Performer(PerformerConfig::default().with_features(16)),
    ]
}

/// Trains for one step: the loss of the layer and of its trees, which add up, and the gradient of its queries' projection.
fn step(layer: &SelfAttention, tokens: Tensor<3>) -> Vec<f32> {
    let output = layer.forward(SelfAttentionInput::new(tokens).with_seed(1));
    let mut loss = output.context.powi_scalar(2).mean();
    if let Some(report) = output.routing {
        loss = loss + report.balance_loss.expect("on an autodiff device") * 0.01;
    }
    let gradients = loss.backward();
    let weight = layer.value.weight.val().grad(&gradients);
    values(weight.expect("it is used"))
}

fn assert_learns(gradient: &[f32], what: &str) {
    assert!(gradient.iter().all(|x| x.is_finite()), "{what}");
    assert!(gradient.iter().any(|x| *x != 0.0), "{what}");
}

#[test]
fn a_layer_that_was_cast_trains_in_its_precision() {
    for dtype in other_floats(&device()) {
        for kind in kinds() {
            let layer = cast_module(layer(kind.clone(), &autodiff_device()), dtype);
            let tokens = random([2, 9, D_MODEL], 1, &autodiff_device()).cast(dtype);
            assert_learns(&step(&layer, tokens), &format!("{kind:?} in {dtype:?}"));
        }
    }
}

#[test]
fn a_layer_grows_where_gradients_are_checkpointed() {
    let device = device().autodiff().gradient_checkpointing();
    let samples = random([1, 64, 1, D_MODEL], 2, &arbora_testing::device());
    for kind in kinds().into_iter().skip(1).take(2) {
        let layer = layer(kind.clone(), &device);
        for growth in [
            Growth::Random { seed: 3 },
            Growth::preserve(3),
            Growth::MedianSplit {
                samples: samples.clone(),
            },
        ] {
            let grown = layer.clone().grow(2, &growth);
            let gradient = step(&grown, random([2, 9, D_MODEL], 1, &device));
            assert_learns(&gradient, &format!("{kind:?} by {growth:?}"));
        }
    }
}

#[test]
fn counts_of_many_tokens_are_exact_whatever_the_precision_of_the_device() {
    let config = TreeFineConfig::new([2]);
    for sharing in [TreeSharing::Shared, TreeSharing::Separate] {
        let mut config = config.clone();
        config.router.sharing = sharing;
        let layer = layer(AttentionKindConfig::TreeFine(config), &device());
        let routed = router(&layer).query.trees();
        let tokens = Tensor::ones([1, 3000, 8], &device());
        let report = layer.forward(SelfAttentionInput::new(tokens)).routing;
        let report = report.expect("it routes");
        // All tokens are the same one.
        for counts in [report.counts.queries, report.counts.keys] {
            let counts = values(counts);
            assert_eq!(counts.len(), 2 * routed);
            assert!(
                counts.iter().all(|count| count % 3000.0 == 0.0),
                "{counts:?}"
            );
        }
        let ratio = values(report.cost_ratio);
        assert!(
            ratio.iter().all(|ratio| [0.0, 1.0].contains(ratio)),
            "{ratio:?}"
        );
    }
}
