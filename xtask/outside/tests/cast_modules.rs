//! Modules that were cast on a device of single precision.

use arbora_attention::{
    AttentionKindConfig, SelfAttentionConfig, SelfAttentionInput, TreeCoarseConfig, TreeFineConfig,
};
use arbora_rl::{PolicyGradientConfig, Rollout};
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::activation::log_softmax;
use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor};

struct Cast(FloatDType);

impl ModuleMapper for Cast {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|old| {
            let learns = old.is_require_grad();
            old.cast(self.0).detach().set_require_grad(learns)
        })
    }
}

#[test]
fn cast_layers_train() {
    let device = Device::flex().autodiff();
    for dtype in [FloatDType::F16, FloatDType::BF16, FloatDType::F64] {
        for kind in [
            AttentionKindConfig::Dense,
            AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2])),
            AttentionKindConfig::TreeCoarse(TreeCoarseConfig::new([2, 2])),
        ] {
            let layer = SelfAttentionConfig::new(8, 2).with_kind(kind).init(&device);
            let layer = layer.map(&mut Cast(dtype));
            let tokens = Tensor::<3>::random([2, 9, 8], Distribution::Default, &device).cast(dtype);
            let output = layer.forward(SelfAttentionInput::new(tokens));
            let mut loss = output.context.powi_scalar(2).mean();
            if let Some(report) = output.routing {
                loss = loss + report.balance_loss.unwrap();
            }
            let gradients = loss.backward();
            assert!(
                layer.value.weight.val().grad(&gradients).is_some(),
                "{dtype:?}"
            );
        }
    }
}

#[test]
fn a_policy_in_half_precision_learns_from_a_reward_in_single() {
    let device = Device::flex().autodiff();
    let logits = Tensor::<2>::random([4, 3], Distribution::Default, &device);
    let logits = logits.cast(FloatDType::F16).require_grad();
    let choices = Tensor::<2, Int>::zeros([4, 2], &device);
    let rollout = Rollout::from_choices(log_softmax(logits.clone(), 1), choices);
    let reward = Tensor::random([4, 2], Distribution::Default, &Device::flex());
    let found = PolicyGradientConfig::default()
        .init()
        .loss(rollout, reward, None);
    assert_eq!(found.loss.dtype(), DType::F16);
    assert!(logits.grad(&found.loss.backward()).is_some());
}
