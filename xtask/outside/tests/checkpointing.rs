//! Everything on a device that records by gradient checkpointing, with rewards, masks and samples from a plain one.

use arbora_attention::{
    AttentionKindConfig, Growth, SelfAttention, SelfAttentionConfig, SelfAttentionInput,
    TreeCoarseConfig, TreeFineConfig,
};
use arbora_rl::{BaselineConfig, PolicyGradientConfig, Rollout, sample};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Distribution, Tensor};

fn device() -> Device {
    Device::flex().autodiff().gradient_checkpointing()
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Default, device)
}

fn trains(layer: &SelfAttention) {
    let input = SelfAttentionInput::new(random([2, 9, 8], &device()));
    let output = layer.forward(input);
    let balance = output
        .routing
        .expect("it routes")
        .balance_loss
        .expect("it trains");
    let gradients = (output.context.powi_scalar(2).mean() + balance).backward();
    assert!(layer.value.weight.val().grad(&gradients).is_some());
}

#[test]
fn a_policy_learns_from_a_plain_reward_and_mask() {
    let plain = Device::flex();
    let logits = random([6, 4], &device()).require_grad();
    let log_probs = log_softmax(logits.clone(), 1);
    let choices = sample::categorical(log_probs.clone().exp(), random([6, 3], &plain));
    let mut rollout = Rollout::from_choices(log_probs, choices);
    rollout.mask = Some(random([6, 3], &plain).greater_elem(0.9));
    for baseline in [BaselineConfig::None, BaselineConfig::BatchMean] {
        let mut estimator = PolicyGradientConfig::default()
            .with_baseline(baseline)
            .init();
        let found = estimator.loss(rollout.clone(), random([6, 3], &plain), None);
        assert!(found.loss.into_scalar::<f32>().is_finite());
    }
    let mut estimator = PolicyGradientConfig::default().init();
    let found = estimator.loss(rollout, random([6, 3], &plain), None);
    assert!(logits.grad(&found.loss.backward()).is_some());
}

#[test]
fn trees_grow_by_each_kind_of_growth() {
    let samples = random([1, 64, 1, 8], &Device::flex());
    for kind in [
        AttentionKindConfig::TreeFine(TreeFineConfig::new([2])),
        AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2])),
    ] {
        let layer = SelfAttentionConfig::new(8, 2)
            .with_kind(kind)
            .init(&device());
        trains(&layer);
        for growth in [
            Growth::Random { seed: 1 },
            Growth::preserve(1),
            Growth::MedianSplit {
                samples: samples.clone(),
            },
        ] {
            trains(&layer.clone().grow(2, &growth));
        }
    }
}
