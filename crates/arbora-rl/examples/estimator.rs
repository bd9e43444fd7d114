//! The estimator alone, in an ordinary burn program: learn which of five arms pays best.
//!
//! `cargo run -p arbora-rl --example estimator --features flex`

use arbora_rl::seed::{Purpose, rng};
use arbora_rl::{BaselineConfig, PolicyGradientConfig, Rollout, sample};
use burn::module::{Module, Param};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Tensor, TensorData};

/// What each arm pays.
const PAYS: [f32; 5] = [0.2, 0.1, 1.0, 0.6, 0.3];

#[derive(Module, Debug)]
struct Policy {
    logits: Param<Tensor<2>>,
}

fn main() {
    let device = Device::default().autodiff();
    let plain = device.clone().without_autodiff();
    let logits = TensorData::new(vec![0.0f32; PAYS.len()], [1, PAYS.len()]);
    let mut policy = Policy {
        logits: Param::from_data(logits, &device),
    };
    let mut optimizer = AdamConfig::new().init();
    let baseline = BaselineConfig::LeaveOneOut;
    let mut estimator = PolicyGradientConfig {
        baseline,
        entropy_weight: 0.01,
    }
    .init();

    for step in 0..200 {
        let log_policy = log_softmax(policy.logits.val(), 1);
        let probabilities = log_policy.clone().inner().exp();
        // Eight draws of the one row.
        let uniform = sample::uniform(&mut rng(0, Purpose::Policy, step), [1, 8], &plain);
        let arm = sample::categorical(probabilities, uniform);
        let pays = Tensor::<1>::from_data(PAYS, &plain);
        let reward = pays.select(0, arm.clone().reshape([8])).reshape([1, 8]);

        let entropy = (log_policy.clone().exp() * log_policy.clone())
            .sum_dim(1)
            .neg();
        let rollout = Rollout {
            log_prob: log_policy.gather(1, arm.autodiff()),
            entropy: entropy.repeat_dim(1, 8),
            decisions: Tensor::ones([1, 8], &device),
            mask: None,
        };
        let output = estimator.loss(rollout, reward, None);
        if step % 50 == 0 {
            println!(
                "step {step}: mean reward {:.2}",
                output.reward.into_scalar::<f32>()
            );
        }
        let gradients = GradientsParams::from_grads(output.loss.backward(), &policy);
        policy = optimizer.step(0.05, policy, gradients);
    }

    let learned = log_softmax(policy.logits.val(), 1).exp().into_data();
    for (arm, (probability, pays)) in learned.iter::<f32>().zip(PAYS).enumerate() {
        println!("arm {arm} pays {pays:.1}: chosen with probability {probability:.2}");
    }
}
