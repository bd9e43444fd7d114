//! Trains a TreeCoder on two kinds of sequences and shows which leaf each goes to.
//!
//! A sequence counts up or down through ten numbers, from anywhere. Its first four tokens choose the route, and are
//! not predicted.
//!
//! `cargo run -p arbora-models --example route_sequences --features flex`

use arbora_models::tree_coder::{RouteOn, SelectorBalance, SelectorConfig};
use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use arbora_rl::seed::{Purpose, rng};
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;

const BATCH: usize = 32;
const TOKENS: usize = 12;
const PROMPT: usize = 4;
const STEPS: u64 = 150;

/// Sequences of one token more than the model reads, and whether each counts up.
fn sequences(purpose: Purpose, step: u64, device: &Device) -> (Tensor<2, Int>, Vec<bool>) {
    let mut rng = rng(0, purpose, step);
    let (mut tokens, mut ups) = (Vec::new(), Vec::new());
    for _ in 0..BATCH {
        let (start, up) = (rng.random_range(0..10), rng.random::<bool>());
        tokens.extend((0..=TOKENS as i64).map(|at| (start + if up { at } else { 9 * at }) % 10));
        ups.push(up);
    }
    let tokens = TensorData::new(tokens, [BATCH, TOKENS + 1]);
    (Tensor::from_data(tokens, device), ups)
}

/// The mean loss, in nats, of the tokens after the prompt, and where sequences went.
fn loss(model: &TreeCoder, tokens: Tensor<2, Int>, seed: u64) -> (Tensor<1>, Vec<usize>) {
    let options = TreeCoderOptions {
        seed,
        ..Default::default()
    };
    let output = model.forward(tokens.clone().narrow(1, 0, TOKENS), None, &options);
    // The prediction at a place is of the token after it.
    let scored = TOKENS + 1 - PROMPT;
    let logits = output.logits.narrow(1, PROMPT - 1, scored);
    let targets = tokens.narrow(1, PROMPT, scored);
    let loss = CrossEntropyLossConfig::new()
        .init(&logits.device())
        .forward(
            logits.reshape([BATCH * scored, 10]),
            targets.reshape([BATCH * scored]),
        );
    (loss, output.routing.leaves)
}

fn main() {
    let plain = Device::default();
    let device = plain.clone().autodiff();
    let selector = SelectorConfig::new().with_balance(SelectorBalance::LossFree { rate: 1e-2 });
    let config = TreeCoderConfig::new(10, TOKENS)
        .with_d_model(16)
        .with_d_ff(vec![32])
        .with_height(1)
        .with_route_on(RouteOn::FirstN { tokens: PROMPT })
        .with_selector(selector);
    let counts = config.parameters();
    println!(
        "{} parameters, {} of them on a path",
        counts.total, counts.active
    );
    let mut model = config.init(&device);
    let mut optimiser = AdamConfig::new().init();
    for step in 0..STEPS {
        let (tokens, _) = sequences(Purpose::Data, step, &device);
        let (loss, _) = loss(&model, tokens, step);
        if step % 50 == 0 {
            println!("step {step}: loss {:.3}", loss.clone().into_scalar::<f32>());
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimiser.step(1e-2, model, gradients);
    }

    let model = model.valid();
    let (tokens, ups) = sequences(Purpose::Evaluation, 0, &plain);
    let (loss, leaves) = loss(&model, tokens, 0);
    println!("new sequences: loss {:.3}", loss.into_scalar::<f32>());
    for leaf in 0..2 {
        let here = |up: bool| {
            let pairs = leaves.iter().zip(&ups);
            pairs.filter(|(at, is)| **at == leaf && **is == up).count()
        };
        println!("leaf {leaf}: {} count up, {} down", here(true), here(false));
    }
}
