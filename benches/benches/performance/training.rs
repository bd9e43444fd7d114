//! A training step of the published ReTreever on the copy task: forward, policy gradient, backward and
//! Adam.

use crate::backends::Opened;
use crate::floor::{attention, linear};
use crate::layer::aggregation;
use crate::measure::{Entrant, contest};
use crate::numbers::{Cost, Row};
use crate::problem::{draws, uniform};
use crate::{Bench, THREADS};
use arbora_attention::Route;
use arbora_models::parts::EmbeddingKind;
use arbora_models::{Context, HeadKind, LossOptions, ModelConfig, ReTreeverConfig, Target};
use arbora_rl::PolicyGradientConfig;
use arbora_tree::{Layout, TokenTreeShape};
use burn::module::Module;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Int, Tensor, TensorData};
use std::hint::black_box;

pub const SECTION: &str = "training";

/// Symbols of the copy task, one-hot.
const CLASSES: usize = 12;

#[derive(Clone, Copy)]
struct Step {
    batch: usize,
    /// Context tokens, and queries.
    tokens: usize,
    dropout: f64,
}

pub fn measure(bench: &mut Bench) {
    for dropout in [0.0, 0.1] {
        let step = Step {
            batch: if bench.quick { 16 } else { 128 },
            tokens: 128,
            dropout,
        };
        let entrants = bench.backends.iter().map(|at| entrant(step, at)).collect();
        for ours in contest(&bench.effort, entrants) {
            let Step { batch, tokens, .. } = step;
            bench.report.add(Row {
                section: SECTION.into(),
                what: what(dropout),
                shape: format!("{batch} contexts of {tokens} tokens, {tokens} queries each"),
                tokens,
                routes: "sampled".into(),
                backend: ours.name.clone(),
                threads: THREADS,
                ours,
                cost: Some(step.cost()),
                ..Row::default()
            });
        }
    }
}

/// The name of a row.
pub fn what(dropout: f64) -> String {
    format!("ReTreever training step, copy, dropout {dropout}")
}

impl Step {
    fn model(&self) -> ModelConfig {
        ModelConfig::new(CLASSES, CLASSES, HeadKind::Classes { count: CLASSES })
            .with_embedding(EmbeddingKind::Sequence)
            .with_encoder_layers(0)
            .with_dropout(self.dropout)
    }

    fn shape(&self) -> TokenTreeShape {
        TokenTreeShape::new(self.tokens, 2, Layout::LeftFilled)
    }

    /// Matrix products of the forward pass and their adjoints, two each, except where an input needs
    /// no gradient: one-hot tokens and queries, and the children of the aggregator, from which
    /// gradients are cut off as published. Moving the weights alone would take no time, so there
    /// are no bytes.
    fn cost(&self) -> Cost {
        let Self { batch, tokens, .. } = *self;
        let ModelConfig {
            d_model: width,
            d_ff,
            ..
        } = self.model();
        let shape = self.shape();
        let rows = batch * tokens; // of tokens, and of queries
        let nodes = batch * shape.nodes();
        let children = batch * (shape.nodes() - 1);
        let symbols = linear(rows, CLASSES, width);
        let embedding = symbols
            + 3.0 * linear(rows, width, width)
            + linear(rows, width, d_ff)
            + linear(rows, d_ff, d_ff)
            + linear(rows, d_ff, width);
        let decoder = linear(rows, width, 2 * d_ff)
            + 2.0 * linear(rows, d_ff, width)
            + linear(rows, d_ff, CLASSES);
        let slots = 2 * shape.decisions() + 2;
        let forward = 2.0 * embedding
            + aggregation(children, width, d_ff)
            + 2.0 * linear(nodes, width, width)
            // Search and attention to all leaves share their queries; each has outputs.
            + 3.0 * linear(rows, width, width)
            + attention(rows, tokens, width)
            + attention(rows, slots, width)
            + 2.0 * decoder;
        let without_gradient = 2.0 * symbols + 2.0 * linear(children, width, width);
        Cost {
            flops: 3.0 * forward - without_gradient,
            bytes: 0.0,
        }
    }
}

fn entrant(step: Step, backend: &Opened) -> Entrant<'static> {
    let Step { batch, tokens, .. } = step;
    let device = backend.device.clone().autodiff();
    let symbols = uniform([batch, tokens, 1], 1, &backend.device).into_data();
    let symbols: Vec<i64> = symbols
        .iter::<f32>()
        .map(|unit| (unit * CLASSES as f32) as i64)
        .collect();
    let one_hot: Vec<f32> = symbols
        .iter()
        .flat_map(|symbol| (0..CLASSES as i64).map(move |class| f32::from(class == *symbol)))
        .collect();
    let features = TensorData::new(one_hot, [batch, tokens, CLASSES]);
    let context = Context::sequence(Tensor::from_data(features, &device), None);
    let queries = Tensor::<3>::zeros([batch, tokens, CLASSES], &device);
    let classes = TensorData::new(symbols, [batch, tokens]);
    let target = Target::Classes(Tensor::<2, Int>::from_data(classes, &device));
    let uniforms = uniform([batch, tokens, 1, draws(&step.shape())], 2, &device);

    let mut model = Some(ReTreeverConfig::new(step.model()).init(&device).train());
    let mut optimizer = AdamConfig::new().init();
    let mut estimator = PolicyGradientConfig::default().init();
    Entrant::new(backend.name, move || {
        let current = model.take().expect("a step ends with a model");
        let route = Route::Sampled(uniforms.clone());
        let losses = current.losses(
            &context,
            queries.clone(),
            &target,
            None,
            route,
            LossOptions::default(),
        );
        let policy = estimator.loss(losses.rollout, losses.reward, None);
        let loss = losses.tree + losses.leaves + policy.loss;
        let gradients = GradientsParams::from_grads(loss.backward(), &current);
        model = Some(optimizer.step(5e-4, current, gradients));
        // As a trainer does, and all the work of the step that the loss depends on is then done.
        black_box(loss.into_scalar::<f32>());
        device.sync().expect("the device runs the work");
    })
}
