//! A vision transformer on the bundled pictures of clothes, whose attention is dense or within the leaves of trees:
//!
//! ```sh
//! cargo run --release -p arbora --example vision --features flex,sample -- tree-fine 2500 0
//! ```
//!
//! It prints the accuracy on the test pictures, the cost of attention by actual counts, and for each layer the share of
//! queries that found no key in their leaf: where that is large, a low cost saves nothing.

use arbora::attention::flops::RunCost;
use arbora::attention::{AttentionKindConfig, RoutingReport, SelfAttentionInput, TreeFineConfig};
use arbora::models::{TransformerBlock, TransformerBlockConfig};
use arbora::tasks::images::ImageSet;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use clap::{Parser, ValueEnum};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Patches of 2 x 2 pixels.
const SIDE: usize = 14;
const PATCHES: usize = SIDE * SIDE;
const D_MODEL: usize = 64;
const LAYERS: usize = 2;
const BATCH: usize = 32;
const LEARNING_RATE: f64 = 2e-3;

#[derive(Module, Debug)]
struct VisionTransformer {
    embed: Linear,
    /// `[1, patches, d_model]`
    positions: Param<Tensor<3>>,
    blocks: Vec<TransformerBlock>,
    norm: RmsNorm,
    head: Linear,
}

impl VisionTransformer {
    fn new(kind: &AttentionKindConfig, device: &Device) -> Self {
        let block = |layer| {
            TransformerBlockConfig::new(D_MODEL, 4, 4 * D_MODEL)
                .with_attention(kind.for_layer(layer))
                .init(device)
        };
        // As large as what patches hold: while all patches of a plain background are the same token, no tree can part them.
        let spread = Distribution::Normal(0.0, 0.3);
        let positions = Tensor::random([1, PATCHES, D_MODEL], spread, device);
        Self {
            embed: LinearConfig::new(4, D_MODEL).init(device),
            positions: Param::from_tensor(positions),
            blocks: (0..LAYERS).map(block).collect(),
            norm: RmsNormConfig::new(D_MODEL).init(device),
            head: LinearConfig::new(D_MODEL, 10).init(device),
        }
    }

    /// `[batch, patches, 4]` -> `[batch, classes]`, and what each layer with trees reports.
    fn forward(&self, patches: Tensor<3>) -> (Tensor<2>, Vec<Option<RoutingReport>>) {
        let mut hidden = self.embed.forward(patches) + self.positions.val();
        let mut reports = Vec::new();
        for block in &self.blocks {
            let (next, attended) = block.forward(SelfAttentionInput::new(hidden));
            hidden = next;
            reports.push(attended.routing);
        }
        let pooled = self.norm.forward(hidden).mean_dim(1).squeeze_dim(1);
        (self.head.forward(pooled), reports)
    }
}

/// Pictures as patches `[batch, patches, 4]`, and their classes.
fn batch(set: &ImageSet, pictures: &[usize], device: &Device) -> (Tensor<3>, Tensor<1, Int>) {
    let pixel = |picture: usize, row: usize, column: usize| {
        f32::from(set.pixels[(picture * 2 * SIDE + row) * 2 * SIDE + column]) / 255.0 - 0.3
    };
    let mut values = Vec::with_capacity(pictures.len() * PATCHES * 4);
    for &picture in pictures {
        for patch in 0..PATCHES {
            let (row, column) = (2 * (patch / SIDE), 2 * (patch % SIDE));
            for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                values.push(pixel(picture, row + down, column + right));
            }
        }
    }
    let labels = set.labels.as_ref().expect("the sample has classes");
    let classes: Vec<i64> = pictures.iter().map(|at| i64::from(labels[*at])).collect();
    let count = pictures.len();
    (
        Tensor::from_data(TensorData::new(values, [count, PATCHES, 4]), device),
        Tensor::from_data(TensorData::new(classes, [count]), device),
    )
}

fn train(
    model: VisionTransformer,
    set: &ImageSet,
    steps: usize,
    seed: u64,
    balance: f64,
) -> VisionTransformer {
    let device = model.positions.val().device();
    let mut rng = ChaCha8Rng::seed_from_u64(seed + 100);
    let mut optimizer = AdamConfig::new().init();
    let mut model = model;
    for step in 1..=steps {
        let pictures: Vec<usize> = (0..BATCH).map(|_| rng.random_range(0..set.count)).collect();
        let (patches, classes) = batch(set, &pictures, &device);
        let (logits, reports) = model.forward(patches);
        let mut loss = CrossEntropyLossConfig::new()
            .init(&device)
            .forward(logits, classes);
        for report in reports.into_iter().flatten() {
            loss = loss + report.balance_loss.expect("the device records gradients") * balance;
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        let warm = (step as f64 / 20.0).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * step as f64 / steps as f64).cos());
        model = optimizer.step(LEARNING_RATE * warm * cosine, model, gradients);
    }
    model
}

fn mean(share: &Tensor<2>) -> f64 {
    f64::from(share.clone().mean().into_scalar::<f32>())
}

fn test(model: &VisionTransformer, set: &ImageSet) {
    let device = Device::flex();
    let mut cost = RunCost::default();
    let mut alone = [[0.0; 2]; LAYERS];
    let (mut right, mut batches) = (0, 0);
    for first in (0..set.count).step_by(50) {
        let pictures: Vec<usize> = (first..(first + 50).min(set.count)).collect();
        let (patches, classes) = batch(set, &pictures, &device);
        let (logits, reports) = model.forward(patches);
        let found = logits.argmax(1).squeeze_dim::<1>(1).equal(classes);
        right += found.int().sum().into_scalar::<i64>();
        batches += 1;
        for (layer, (block, report)) in model.blocks.iter().zip(&reports).enumerate() {
            let share = report.as_ref().map(|report| mean(&report.cost_ratio));
            cost.record(layer, &block.attention, [PATCHES; 2], share);
            if let Some(report) = report {
                alone[layer][0] += mean(&report.queries_without_key);
                alone[layer][1] += mean(&report.keys_without_query);
            }
        }
    }
    println!("accuracy: {:.2} %", 100.0 * right as f64 / set.count as f64);
    println!("{cost}");
    for (layer, shares) in alone.iter().enumerate() {
        let [queries, keys] = shares.map(|sum| 100.0 * sum / f64::from(batches));
        println!(
            "layer {}: {queries:.1} % of queries without a key in their leaf, {keys:.1} % of keys without a query",
            layer + 1
        );
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Dense,
    TreeFine,
}

#[derive(Parser)]
struct Args {
    /// The kind of attention.
    #[arg(default_value = "tree-fine")]
    kind: Kind,
    /// Steps of training.
    #[arg(default_value_t = 100)]
    steps: usize,
    #[arg(default_value_t = 0)]
    seed: u64,
    /// The weight of the loss that keeps leaves even within each picture.
    #[arg(default_value_t = 0.1)]
    balance: f64,
}

fn main() {
    let Args {
        kind,
        steps,
        seed,
        balance,
    } = Args::parse();
    let kind = match kind {
        Kind::Dense => AttentionKindConfig::Dense,
        Kind::TreeFine => {
            let mut config = TreeFineConfig::new([2, 2]);
            config.router.seed = seed;
            AttentionKindConfig::TreeFine(config)
        }
    };
    let (pictures, held_out) = ImageSet::bundled();
    let device = Device::flex().autodiff();
    device.seed(seed);
    let model = train(
        VisionTransformer::new(&kind, &device),
        &pictures,
        steps,
        seed,
        balance,
    );
    test(&model.valid(), &held_out);
}
