//! A vision transformer over 196 patches, its attention within the leaves of trees.

use arbora_attention::{AttentionKindConfig, SelfAttentionInput, TreeFineConfig};
use arbora_models::{TransformerBlock, TransformerBlockConfig};
use arbora_rl::rand::Rng;
use arbora_rl::seed::{Purpose, rng};
use arbora_tasks::images::ImageSet;
use burn::module::{Module, Param};
use burn::nn::loss::CrossEntropyLossConfig;
use burn::nn::{Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams};
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};

const PATCHES: usize = 14 * 14;
const D_MODEL: usize = 64;

#[derive(Module, Debug)]
struct VisionTransformer {
    embed: Linear,
    positions: Param<Tensor<3>>,
    blocks: Vec<TransformerBlock>,
    head: Linear,
}

/// Logits, the balance losses of all layers, and the share of queries without a key in each.
type Output = (Tensor<2>, Vec<Tensor<1>>, Vec<f32>);

impl VisionTransformer {
    fn forward(&self, patches: Tensor<3>) -> Output {
        let mut hidden = self.embed.forward(patches) + self.positions.val();
        let (mut losses, mut alone) = (Vec::new(), Vec::new());
        for block in &self.blocks {
            let (next, attended) = block.forward(SelfAttentionInput::new(hidden));
            hidden = next;
            let report = attended.routing.expect("it routes");
            losses.extend(report.balance_loss);
            alone.push(report.queries_without_key.mean().into_scalar::<f32>());
        }
        let pooled = hidden.mean_dim(1).squeeze_dim(1);
        (self.head.forward(pooled), losses, alone)
    }
}

fn batch(set: &ImageSet, pictures: &[usize], device: &Device) -> (Tensor<3>, Tensor<1, Int>) {
    let mut values = Vec::new();
    for picture in pictures {
        for patch in 0..PATCHES {
            let (row, column) = (2 * (patch / 14), 2 * (patch % 14));
            for (down, right) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let at = picture * 784 + (row + down) * 28 + column + right;
                values.push(f32::from(set.pixels[at]) / 255.0 - 0.3);
            }
        }
    }
    let labels = set.labels.as_ref().unwrap();
    let classes: Vec<i64> = pictures.iter().map(|at| i64::from(labels[*at])).collect();
    let count = pictures.len();
    (
        Tensor::from_data(TensorData::new(values, [count, PATCHES, 4]), device),
        Tensor::from_data(TensorData::new(classes, [count]), device),
    )
}

#[test]
fn queries_of_a_vision_transformer_have_keys_in_their_leaves_after_100_steps() {
    let (pictures, held_out) = ImageSet::bundled();
    let device = Device::flex().autodiff();
    device.seed(0);
    let kind = AttentionKindConfig::TreeFine(TreeFineConfig::new([2, 2]));
    let block = |layer| {
        TransformerBlockConfig::new(D_MODEL, 4, 2 * D_MODEL)
            .with_attention(kind.for_layer(layer))
            .init(&device)
    };
    // As large as what patches hold: see docs/guide/treeformer.md.
    let spread = Distribution::Normal(0.0, 0.3);
    let mut model = VisionTransformer {
        embed: LinearConfig::new(4, D_MODEL).init(&device),
        positions: Param::from_tensor(Tensor::random([1, PATCHES, D_MODEL], spread, &device)),
        blocks: (0..2).map(block).collect(),
        head: LinearConfig::new(D_MODEL, 10).init(&device),
    };
    let mut optimizer = AdamConfig::new().init();
    let mut random = rng(0, Purpose::Data, 0);
    for _ in 0..100 {
        let drawn: Vec<usize> = (0..32)
            .map(|_| random.random_range(0..pictures.count))
            .collect();
        let (patches, classes) = batch(&pictures, &drawn, &device);
        let (logits, balance, _) = model.forward(patches);
        let mut loss = CrossEntropyLossConfig::new()
            .init(&device)
            .forward(logits, classes);
        for balance in balance {
            loss = loss + balance * 0.1;
        }
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, gradients);
    }
    let shown: Vec<usize> = (0..100).collect();
    let (patches, _) = batch(&held_out, &shown, &Device::flex());
    let (_, _, alone) = model.valid().forward(patches);
    println!("queries without a key in their leaf, by layer: {alone:?}");
    assert!(alone.iter().all(|share| *share <= 0.05), "{alone:?}");
}
