//! A tree that grows while it is trained, frozen or saved.

use arbora_attention::store::{load_weights, save_weights};
use arbora_attention::{
    AttentionKind, AttentionKindConfig, Growth, Routing, SelfAttention, SelfAttentionConfig,
    SelfAttentionInput, Surrogate, TreeFineConfig,
};
use burn::module::Module;
use burn::optim::decay::WeightDecayConfig;
use burn::optim::{GradientsParams, ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Distribution, Tensor};

fn layer(branching: &[usize], device: &Device) -> SelfAttention {
    let mut config = TreeFineConfig::new(branching);
    config.router.surrogate = Surrogate::Soft { temperature: 1.0 };
    let kind = AttentionKindConfig::TreeFine(config);
    SelfAttentionConfig::new(8, 2).with_kind(kind).init(device)
}

/// The weights of the level at the bottom.
fn bottom(layer: &SelfAttention) -> Tensor<3> {
    let AttentionKind::TreeFine(fine) = &layer.kind else {
        panic!("it attends within leaves");
    };
    fine.router.query.levels().last().unwrap().weight.val()
}

#[test]
fn a_level_that_grows_after_the_optimiser_was_made_does_not_decay() {
    let device = Device::flex().autodiff();
    let decay = Some(WeightDecayConfig::new(0.5));
    let decaying = SgdConfig::new().with_weight_decay(decay).build();
    let trees = SelfAttention::tree_parameter_group();
    let mut optimizer =
        ModuleOptimizer::from(decaying).with_group(trees, SgdConfig::new().build(), None);
    let layer = layer(&[2], &device).grow(2, &Growth::Random { seed: 1 });
    let tokens = Tensor::random([2, 9, 8], Distribution::Default, &device);
    let output = layer.forward(SelfAttentionInput::new(tokens));
    let routed: Routing = output.routing.expect("it routes").query;
    assert_eq!(routed.shape().leaves(), 4);
    let gradients = output.context.powi_scalar(2).mean().backward();
    let of_tree = bottom(&layer).grad(&gradients).expect("it learns");
    let expected = bottom(&layer).without_autodiff() - of_tree * 0.1;
    let gradients = GradientsParams::from_grads(gradients, &layer);
    let trained = optimizer.step(0.1, layer, gradients);
    let error = (bottom(&trained).without_autodiff() - expected).abs().max();
    assert!(error.into_scalar::<f32>() < 1e-6);
}

#[test]
fn a_frozen_layer_stays_frozen() {
    let layer = layer(&[2], &Device::flex().autodiff()).no_grad();
    assert!(!bottom(&layer.grow(2, &Growth::preserve(1))).is_require_grad());
}

#[test]
fn the_weights_of_a_higher_tree_are_refused() {
    let (device, folder) = (Device::flex(), tempfile::tempdir().unwrap());
    for name in ["weights.bpk", "weights.safetensors"] {
        let path = folder.path().join(name);
        save_weights(&layer(&[2; 4], &device), &path).unwrap();
        let refused = load_weights(layer(&[2; 2], &device), &path).unwrap_err();
        assert!(
            refused.to_string().contains("weights of another model"),
            "{refused}"
        );
        load_weights(layer(&[2; 4], &device), &path).unwrap();
    }
}
