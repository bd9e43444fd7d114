//! The trainer on a model that is no tree: a contextual bandit.
//!
//! A context is a vector; each of three arms pays its inner product with a vector that the policy
//! does not know. The policy is a small network that maps the context to a distribution over arms.
//! It sees the reward of the arms that it draws and nothing else.
//!
//! `cargo run -p arbora-rl --example contextual_bandit --features train,flex`

use arbora_rl::seed::{Purpose, derive, rng, step_rng};
use arbora_rl::train::{
    Decisions, EvaluationReport, Measurement, Progress, StepOutput, TrainError, TrainableModel,
    Trainer, TrainerConfig,
};
use arbora_rl::{BaselineConfig, PolicyGradientConfig, Rollout, sample};
use burn::module::{Module, Param};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::{log_softmax, tanh};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use rand_chacha::ChaCha8Rng;

/// Arms.
pub const ARMS: usize = 3;
/// Dimension of a context.
pub const DIM: usize = 4;
/// What each arm pays per unit of each context dimension.
const PAYS: [[f32; DIM]; ARMS] = [
    [1.0, -0.5, 0.0, 0.3],
    [-0.8, 0.9, 0.2, 0.0],
    [0.1, 0.0, -1.0, 0.7],
];
/// Draws per context.
const SAMPLES: usize = 4;

/// A policy over arms.
#[derive(Module, Debug)]
pub struct Bandit {
    hidden: Linear,
    output: Linear,
}

impl Bandit {
    /// A policy with `hidden` units whose initial weights are those of `seed`.
    pub fn new(hidden: usize, seed: u64, device: &Device) -> Self {
        let mut rng = rng(seed, Purpose::Parameters, 0);
        Self {
            hidden: linear(DIM, hidden, &mut rng, device),
            output: linear(hidden, ARMS, &mut rng, device),
        }
    }

    /// Log-probabilities of the arms, `[rows, arms]`, for contexts `[rows, dim]`.
    fn log_policy(&self, contexts: Tensor<2>) -> Tensor<2> {
        log_softmax(self.output.forward(tanh(self.hidden.forward(contexts))), 1)
    }
}

/// A layer with weights from the host, so that every backend starts from the same ones.
fn linear(inputs: usize, outputs: usize, rng: &mut ChaCha8Rng, device: &Device) -> Linear {
    let bound = 1.0 / (inputs as f32).sqrt();
    let mut draw = |count| {
        (0..count)
            .map(|_| rng.random_range(-bound..bound))
            .collect::<Vec<_>>()
    };
    let mut layer = LinearConfig::new(inputs, outputs).init(device);
    let weight = TensorData::new(draw(inputs * outputs), [inputs, outputs]);
    layer.weight = Param::from_data(weight, device);
    layer.bias = Some(Param::from_data(
        TensorData::new(draw(outputs), [outputs]),
        device,
    ));
    layer
}

/// What every arm pays, `[rows, arms]`, for contexts `[rows, dim]`.
fn payments(contexts: &Tensor<2>) -> Tensor<2> {
    let pays = Tensor::<2>::from_data(PAYS, &contexts.device());
    contexts.clone().matmul(pays.transpose())
}

impl TrainableModel for Bandit {
    type Batch = Tensor<2>;

    fn training_step(&self, contexts: Tensor<2>, rng: &mut ChaCha8Rng) -> StepOutput {
        let [rows, _] = contexts.dims();
        let device = contexts.device();
        let payments = payments(&contexts);
        let log_policy = self.log_policy(contexts);

        let uniform = sample::uniform(rng, [rows, SAMPLES], &device);
        let arm = sample::categorical(log_policy.clone().exp(), uniform).autodiff();
        let best_guess: Tensor<2, Int> = log_policy.clone().detach().argmax(1);
        let entropy = (log_policy.clone().exp() * log_policy.clone())
            .sum_dim(1)
            .neg();
        let decisions = Decisions {
            rollout: Rollout {
                log_prob: log_policy.gather(1, arm.clone()),
                entropy: entropy.repeat_dim(1, SAMPLES),
                decisions: Tensor::ones([rows, SAMPLES], &device),
                mask: None,
            },
            reward: payments.clone().gather(1, arm),
            greedy_reward: Some(payments.gather(1, best_guess)),
        };
        StepOutput::new(Tensor::zeros([1], &device)).with_decisions(decisions)
    }

    fn evaluate(&self, contexts: Tensor<2>, _rng: &mut ChaCha8Rng) -> Vec<Measurement> {
        let [rows, _] = contexts.dims();
        let payments = payments(&contexts);
        let arm = self.log_policy(contexts).argmax(1);
        let sum = |reward: Tensor<2>| f64::from(reward.sum().into_scalar::<f32>());
        let weight = rows as f64;
        vec![
            Measurement::new("greedy", sum(payments.clone().gather(1, arm)), weight),
            Measurement::new("best", sum(payments.clone().max_dim(1)), weight),
            Measurement::new("uniform", sum(payments.mean_dim(1)), weight),
        ]
    }
}

/// The contexts of a training step, `[64, dim]`.
pub fn contexts(seed: u64, step: u64, device: &Device) -> Result<Tensor<2>, std::io::Error> {
    Ok(sample::uniform(&mut step_rng(seed, step), [64, DIM], device) * 2.0 - 1.0)
}

/// The contexts of an evaluation batch: 100 in every one but the last, which has 30.
pub fn held_out(index: u64, device: &Device) -> Result<Tensor<2>, std::io::Error> {
    let rows = if index == 3 { 30 } else { 100 };
    let mut rng = step_rng(derive(99, Purpose::Evaluation), index);
    Ok(sample::uniform(&mut rng, [rows, DIM], device) * 2.0 - 1.0)
}

/// Settings that solve the bandit in a few seconds.
pub fn config() -> TrainerConfig {
    TrainerConfig {
        steps: 300,
        eval_every: 100,
        checkpoint_every: 100,
        learning_rate: 0.02,
        warmup_steps: 10,
        policy_gradient: PolicyGradientConfig {
            baseline: BaselineConfig::LeaveOneOut,
            entropy_weight: 0.001,
        },
        ..TrainerConfig::default()
    }
}

struct Print;

impl Progress for Print {
    fn on_evaluation(&mut self, report: &EvaluationReport) {
        println!("step {}: {:?}", report.step, report.metrics);
    }
}

#[allow(dead_code, reason = "tests include this file as a module")]
fn main() -> Result<(), TrainError> {
    let device = Device::default();
    let run = std::env::temp_dir().join(format!("arbora-bandit-{}", std::process::id()));
    let trainer = Trainer::new(config(), &run, "bandit-16").progress(Print);
    trainer.stop_on_ctrl_c()?;
    let report = trainer.fit(
        Bandit::new(16, 0, &device),
        contexts,
        (4, held_out),
        &device,
    )?;
    println!(
        "{} steps in {:.1} s; the run is in {}",
        report.step,
        report.seconds,
        run.display()
    );
    Ok(())
}
