//! Fits ReTreever to sine waves in an ordinary burn loop: see 16 points of a wave, predict
//! others of the same wave.
//!
//! `cargo run -p arbora-models --example fit_sine --features flex`

use arbora_attention::Route;
use arbora_models::{
    Context, HeadKind, LossOptions, ModelConfig, Prediction, ReTreever, ReTreeverConfig, StdKind,
    Target,
};
use arbora_rl::seed::{Purpose, rng};
use arbora_rl::{PolicyGradientConfig, sample};
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Tensor, TensorData};
use rand::Rng;

const BATCH: usize = 16;
const TOKENS: usize = 16;
const QUERIES: usize = 8;
const STEPS: u64 = 1000;

/// Waves with a random phase: contexts `(x, y)` sorted by x, and queries with their truth.
fn waves(seed: u64, step: u64, device: &Device) -> (Context, Tensor<3>, Tensor<3>) {
    let mut rng = rng(seed, Purpose::Data, step);
    let mut sides = [TOKENS, QUERIES].map(|count| (count, Vec::new(), Vec::new()));
    for _ in 0..BATCH {
        let phase: f32 = rng.random_range(0.0..std::f32::consts::TAU);
        for (count, x, y) in &mut sides {
            let mut points: Vec<f32> = (0..*count).map(|_| rng.random_range(-2.0..2.0)).collect();
            points.sort_by(f32::total_cmp);
            y.extend(points.iter().map(|x| (2.0 * x + phase).sin()));
            x.extend(points);
        }
    }
    let [context, queries] = sides.map(|(count, x, y)| {
        [x, y].map(|rows| Tensor::<3>::from_data(TensorData::new(rows, [BATCH, count, 1]), device))
    });
    let [x, y] = context;
    let [query, truth] = queries;
    (Context::points(x, y, None), query, truth)
}

/// Root mean squared error of the greedy search's means on waves never seen, and how many nodes it
/// attends to.
fn evaluate(model: &ReTreever, device: &Device) -> (f32, f32) {
    let (context, query, truth) = waves(1, 0, device);
    let output = model.predict(query, &model.index(&context), Route::Greedy);
    let Prediction::Gaussian { mean, .. } = output.prediction else {
        unreachable!("the model predicts a Gaussian");
    };
    let error = (mean - truth).square().mean().sqrt().into_scalar::<f32>();
    (error, output.search.selected.float().mean().into_scalar())
}

fn main() {
    let plain = Device::default();
    let device = plain.clone().autodiff();
    let head = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Bounded,
    };
    let config = ModelConfig::new(2, 1, head)
        .with_d_model(32)
        .with_d_ff(32)
        .with_encoder_layers(2);
    let mut model = ReTreeverConfig::new(config).init(&device);
    let mut optimizer = AdamConfig::new().init();
    let mut estimator = PolicyGradientConfig::default().init();
    let decisions = model.decisions(TOKENS);

    for step in 0..STEPS {
        let (context, query, truth) = waves(0, step, &device);
        let shape = [BATCH, QUERIES, 1, decisions];
        let uniforms = sample::uniform(&mut rng(0, Purpose::Policy, step), shape, &device);
        let target = Target::Values(truth);
        let losses = model.losses(
            &context,
            query,
            &target,
            None,
            Route::Sampled(uniforms),
            LossOptions::default(),
        );
        let policy = estimator.loss(losses.rollout, losses.reward, None);
        let loss = losses.tree + losses.leaves + policy.loss;
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
        if step % 200 == 199 {
            let (error, _) = evaluate(&model.valid(), &plain);
            println!("step {}: error on new waves {error:.3}", step + 1);
        }
    }
    let (_, selected) = evaluate(&model.valid(), &plain);
    println!("each query attends to {selected:.1} nodes, of {TOKENS} tokens");
}
