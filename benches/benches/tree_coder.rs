//! One training step of a TreeCoder of 31 nodes beside that of a linear transformer of its active depth: the
//! same tokens, every leaf occupied, in one process and in turns. The optimiser's time is measured apart, since
//! a tree has several times the parameters.
//!
//! ```sh
//! cargo bench -p arbora-benches --features flex --bench tree_coder
//! ```
//!
//! On the backend of `BURN_DEVICE`, burn-flex where it is not set.

use arbora_models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use arbora_rl::seed::step_rng;
use burn::optim::{AdamWConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::log_softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use rand::Rng;
use std::hint::black_box;
use std::time::Instant;

const BATCHES: [usize; 2] = [64, 128];
const TOKENS: usize = 128;
const VOCABULARY: usize = 512;
const HEIGHT: usize = 4;

/// Steps whose median is taken, after one that warms up.
const STEPS: usize = 9;

fn config() -> TreeCoderConfig {
    TreeCoderConfig::new(VOCABULARY, TOKENS)
        .with_d_model(128)
        .with_n_heads(4)
        .with_d_ff(vec![512])
        .with_height(HEIGHT)
}

/// A model with its optimiser, and the times of its steps.
struct Runner {
    model: TreeCoder,
    optimizer: ModuleOptimizer,
    options: TreeCoderOptions,
    gradients: Vec<f64>,
    updates: Vec<f64>,
}

impl Runner {
    fn new(config: &TreeCoderConfig, leaves: Option<Vec<usize>>, device: &Device) -> Self {
        Self {
            model: config.clone().with_seed(1).init(device),
            optimizer: AdamWConfig::new().init(),
            options: TreeCoderOptions {
                leaves,
                ..Default::default()
            },
            gradients: Vec::new(),
            updates: Vec::new(),
        }
    }

    fn step(&mut self, tokens: &Tensor<2, Int>, targets: &Tensor<2, Int>, is_measured: bool) {
        let device = tokens.device();
        let [batch, count] = targets.dims();
        let start = Instant::now();
        let output = self.model.forward(tokens.clone(), None, &self.options);
        let chosen =
            log_softmax(output.logits, 2).gather(2, targets.clone().reshape([batch, count, 1]));
        let gradients = chosen.mean().neg().backward();
        let gradients = GradientsParams::from_grads(gradients, &self.model);
        device.sync().expect("the device answers");
        let backward = start.elapsed().as_secs_f64() * 1e3;
        let start = Instant::now();
        self.model = self.optimizer.step(1e-4, self.model.clone(), gradients);
        device.sync().expect("the device answers");
        let update = start.elapsed().as_secs_f64() * 1e3;
        if is_measured {
            self.gradients.push(backward);
            self.updates.push(update);
        }
        black_box(&self.model);
    }
}

fn median(times: &[f64]) -> f64 {
    let mut times = times.to_vec();
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn random_tokens(seed: u64, batch: usize, device: &Device) -> Tensor<2, Int> {
    let mut rng = step_rng(seed, 0);
    let numbers: Vec<i64> = (0..batch * TOKENS)
        .map(|_| rng.random_range(0..VOCABULARY as i64))
        .collect();
    Tensor::from_data(TensorData::new(numbers, [batch, TOKENS]), device)
}

fn main() {
    let device = match std::env::var_os("BURN_DEVICE") {
        Some(_) => Device::default(),
        None => Device::flex(),
    }
    .autodiff();
    let tree = config();
    let linear = config().with_height(0).with_blocks(vec![HEIGHT + 1]);
    let leaves = tree.tree().leaves();
    println!(
        "{} nodes of one block, {leaves} leaves, beside {} blocks in line; width {}, {TOKENS} tokens, {} thread(s)",
        tree.tree().nodes(),
        linear.active_blocks(),
        tree.d_model,
        rayon::current_num_threads()
    );
    for batch in BATCHES {
        // As many sequences for every leaf.
        let routes = (0..batch).map(|sequence| sequence % leaves).collect();
        let mut runners = [
            Runner::new(&tree, Some(routes), &device),
            Runner::new(&linear, None, &device),
        ];
        let [tokens, targets] = [1, 2].map(|seed| random_tokens(seed, batch, &device));
        for step in 0..=STEPS {
            for runner in &mut runners {
                runner.step(&tokens, &targets, step > 0);
            }
        }
        let [tree, linear] = &runners;
        let gradients = runners.each_ref().map(|runner| median(&runner.gradients));
        let updates = runners.each_ref().map(|runner| median(&runner.updates));
        let parameters = [tree, linear].map(|runner| runner.model.config().parameters().total);
        println!(
            "batch {batch}: forward and backward {:.0} ms, in line {:.0} ms: ratio {:.2}; optimiser {:.1} ms for {} parameters, in line {:.1} ms for {}",
            gradients[0],
            gradients[1],
            gradients[0] / gradients[1],
            updates[0],
            parameters[0],
            updates[1],
            parameters[1]
        );
    }
}
