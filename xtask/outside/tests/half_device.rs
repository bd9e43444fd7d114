//! A device whose floats are of half precision by default.

use arbora_attention::{
    AttentionKindConfig, SelfAttentionConfig, SelfAttentionInput, TreeCoarseConfig, TreeFineConfig,
};
use arbora_tree::{Layout, MeanAggregator, TokenOrder, TokenTree, TokenTreeShape};
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use std::sync::OnceLock;

fn device() -> Device {
    static CONFIGURED: OnceLock<()> = OnceLock::new();
    CONFIGURED.get_or_init(|| Device::flex().configure(FloatDType::F16).unwrap());
    Device::flex()
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Normal(0.0, 1.0), device)
}

#[test]
fn attention_within_leaves_trains_and_counts_more_tokens_than_half_precision_can() {
    let device = device().autodiff();
    for kind in [
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
    ] {
        let layer = SelfAttentionConfig::new(8, 1).with_kind(kind).init(&device);
        let output = layer.forward(SelfAttentionInput::new(random([1, 3000, 8], &device)));
        let report = output.routing.expect("it routes");
        assert_eq!(report.counts.queries.sum().into_scalar::<f32>(), 3000.0);
        let ratio = report.cost_ratio.mean().into_scalar::<f32>();
        assert!(ratio > 0.0 && ratio <= 1.0, "{ratio}");
        let loss = output.context.powi_scalar(2).mean() + report.balance_loss.unwrap();
        let gradients = loss.backward();
        let gradient = layer.value.weight.val().grad(&gradients).unwrap();
        assert!(gradient.abs().max().into_scalar::<f32>() > 0.0);
    }
}

#[test]
fn a_tree_of_means_is_built() {
    let tokens = random([1, 5000, 2], &device()) + 1.0;
    let shape = TokenTreeShape::new(5000, 2, Layout::LeftFilled);
    let order = TokenOrder::Given.permutation(&tokens, None, &shape);
    let tree = TokenTree::build(tokens, None, order, shape, &MeanAggregator);
    let root = tree.level(shape.height()).mean().into_scalar::<f32>();
    assert!((root - 1.0).abs() < 0.1, "{root}");
}
