//! Models learn: slow on GPU backends without a GPU, so not part of the suite of every backend.

use arbora_attention::Route;
use arbora_models::{
    Context, CrossAttentionConfig, HeadKind, LossOptions, ModelConfig, PerceiverIoConfig,
    ReTreeverConfig, StdKind, Target,
};
use arbora_rl::PolicyGradientConfig;
use arbora_testing::{autodiff_device, random, uniforms};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::Tensor;

const STEPS: u64 = 60;
const RATE: f64 = 1e-2;

fn small() -> ModelConfig {
    let head = HeadKind::Gaussian {
        dim: 1,
        std: StdKind::Exp,
    };
    ModelConfig::new(3, 2, head)
        .with_d_model(16)
        .with_d_ff(16)
        .with_n_heads(2)
        .with_encoder_layers(1)
}

/// One batch: nine points and five queries of the function `sin(2 x)` of points in the plane.
fn batch() -> (Context, Tensor<3>, Target) {
    let device = autodiff_device();
    let truth = |points: Tensor<3>| {
        let [batch, count, _] = points.dims();
        (points.slice([0..batch, 0..count, 0..1]) * 2.0).sin()
    };
    let context = random([4, 9, 2], 1, &device);
    let queries = random([4, 5, 2], 2, &device);
    let target = Target::Values(truth(queries.clone()));
    let context = Context::points(context.clone(), truth(context), None);
    (context, queries, target)
}

#[test]
fn retreever_overfits_one_batch() {
    let device = autodiff_device();
    let (context, queries, target) = batch();
    let mut model = ReTreeverConfig::new(small()).with_seed(1).init(&device);
    let mut optimizer = AdamConfig::new().init();
    let mut estimator = PolicyGradientConfig::default().init();
    let mut tree = Vec::new();
    let mut leaves = Vec::new();
    for step in 0..STEPS {
        let route = Route::Sampled(uniforms([4, 5, 1, 3], step, &device));
        let losses = model.losses(
            &context,
            queries.clone(),
            &target,
            None,
            route,
            LossOptions::default(),
        );
        tree.push(losses.tree.clone().into_scalar::<f32>());
        leaves.push(losses.leaves.clone().into_scalar::<f32>());
        let policy = estimator.loss(losses.rollout, losses.reward, None);
        let loss = losses.tree + losses.leaves + policy.loss;
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(RATE, model, gradients);
    }
    assert_fell(&tree);
    assert_fell(&leaves);
}

#[test]
fn dense_attention_overfits_one_batch() {
    let device = autodiff_device();
    let (context, queries, target) = batch();
    let mut model = CrossAttentionConfig::new(small())
        .with_seed(1)
        .init(&device);
    let mut optimizer = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let prediction = model.predict(queries.clone(), &model.encode(&context));
        let loss = prediction.loss(&target, None);
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(RATE, model, gradients);
    }
    assert_fell(&losses);
}

#[test]
fn four_latents_overfit_one_batch() {
    // At the rate of the others it falls and then leaps: so does dense attention from other seeds.
    let rate = RATE / 10.0;
    let device = autodiff_device();
    let (context, queries, target) = batch();
    let mut model = PerceiverIoConfig::new(small(), 4)
        .with_seed(1)
        .init(&device);
    let mut optimizer = AdamConfig::new().init();
    let mut losses = Vec::new();
    for _ in 0..STEPS {
        let prediction = model.predict(queries.clone(), &model.encode(&context));
        let loss = prediction.loss(&target, None);
        losses.push(loss.clone().into_scalar::<f32>());
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(rate, model, gradients);
    }
    assert_fell(&losses);
}

#[track_caller]
fn assert_fell(losses: &[f32]) {
    let (first, last) = (losses[0], losses[losses.len() - 1]);
    assert!(last < first - 0.5, "from {first} to {last}: {losses:?}");
}
