//! Data-parallel training with burn-train's own strategy: the model on every device, each with its part of the
//! batch.
//!
//! ```sh
//! cargo run --example data_parallel -- flex flex
//! cargo run --example data_parallel -- ws://10.0.0.1:3000 ws://10.0.0.2:3000
//! ```
//!
//! burn sums the gradients of the devices on the first one, which takes the step. So each device's loss is divided
//! by their number: the step is then the one of a single device with all parts as one batch.

use arbora::models::tree_coder::RouteOn;
use arbora::models::{TreeCoder, TreeCoderConfig, TreeCoderOptions};
use burn::data::dataloader::DataLoaderBuilder;
use burn::data::dataloader::batcher::Batcher;
use burn::data::dataset::InMemDataset;
use burn::module::Module;
use burn::nn::loss::CrossEntropyLossConfig;
use burn::optim::lr_scheduler::constant::ConstantLr;
use burn::optim::{ModuleOptimizer, SgdConfig};
use burn::tensor::{Device, Int, Tensor, TensorData};
use burn::train::{
    ExecutionStrategy, InferenceStep, Learner, MultiDeviceOptim, SupervisedTraining, TrainOutput,
    TrainStep,
};
use std::error::Error;
use std::path::Path;

/// Tokens of a sequence and the one after them.
type Window = Vec<i64>;

/// A language model and by what its loss is divided.
#[derive(Module, Debug)]
pub struct Parallel {
    network: TreeCoder,
    #[module(skip)]
    devices: usize,
}

/// The first tokens of a sequence, which choose its route. None of them is predicted.
const PROMPT: usize = 4;

/// The mean cross-entropy of each next token after the prompt, `[1]`.
///
/// - windows: `[batch, tokens + 1]`
pub fn loss(network: &TreeCoder, windows: Tensor<2, Int>) -> Tensor<1> {
    let [batch, length] = windows.dims();
    let tokens = windows.clone().narrow(1, 0, length - 1);
    let targets = windows.narrow(1, PROMPT, length - PROMPT);
    let output = network.forward(tokens, None, &TreeCoderOptions::default());
    let rows = batch * (length - PROMPT);
    let logits = output.logits.narrow(1, PROMPT - 1, length - PROMPT);
    let logits = logits.reshape([rows as i64, -1]);
    let device = logits.device();
    CrossEntropyLossConfig::new()
        .init(&device)
        .forward(logits, targets.reshape([rows]))
}

impl TrainStep for Parallel {
    type Input = Tensor<2, Int>;
    type Output = ();

    fn step(&self, windows: Tensor<2, Int>) -> TrainOutput<()> {
        let share = loss(&self.network, windows) / self.devices as f64;
        TrainOutput::new(self, share.backward(), ())
    }
}

impl InferenceStep for Parallel {
    type Input = Tensor<2, Int>;
    type Output = ();

    fn step(&self, _windows: Tensor<2, Int>) {}
}

#[derive(Clone)]
struct Stack;

impl Batcher<Window, Tensor<2, Int>> for Stack {
    fn batch(&self, windows: Vec<Window>, device: &Device) -> Tensor<2, Int> {
        let shape = [windows.len(), windows[0].len()];
        Tensor::from_data(TensorData::new(windows.concat(), shape), device)
    }
}

/// Trains over all windows once. Each device takes one contiguous part of them, `batch` windows a step, so the
/// number of windows is to be a multiple of `batch` times devices.
///
/// # Errors
/// If a device fails.
pub fn train(
    network: TreeCoder,
    devices: Vec<Device>,
    windows: Vec<Window>,
    batch: usize,
    (optimizer, rate): (ModuleOptimizer, f64),
    folder: &Path,
) -> Result<TreeCoder, Box<dyn Error>> {
    let loader = |windows| {
        DataLoaderBuilder::new(Stack)
            .batch_size(batch)
            .build(InMemDataset::new(windows))
    };
    let model = Parallel {
        network: network.train(),
        devices: devices.len(),
    };
    let devices = devices.into_iter().map(Device::autodiff).collect();
    let strategy = ExecutionStrategy::multi(devices, MultiDeviceOptim::OptimMainDevice);
    let result = SupervisedTraining::new(folder, loader(windows), loader(Vec::new()))
        .with_application_logger(None)
        .with_training_strategy(strategy.into())
        .launch(Learner::new(model, optimizer, ConstantLr::from(rate)));
    match result.error {
        Some(error) => Err(error.to_string().into()),
        None => Ok(result.model.network),
    }
}

/// A tree of three nodes over bytes.
pub fn network(device: &Device) -> TreeCoder {
    TreeCoderConfig::new(256, 32)
        .with_d_model(32)
        .with_height(1)
        .with_d_ff(vec![64])
        .with_route_on(RouteOn::FirstN { tokens: PROMPT })
        .init(device)
}

/// Windows of a text's bytes, `tokens + 1` each.
pub fn windows(text: &str, tokens: usize) -> Vec<Window> {
    let bytes: Vec<i64> = text.bytes().map(i64::from).collect();
    bytes
        .chunks_exact(tokens + 1)
        .map(<[i64]>::to_vec)
        .collect()
}

#[allow(dead_code, reason = "a test includes this file")]
fn main() -> Result<(), Box<dyn Error>> {
    let devices = std::env::args()
        .skip(1)
        .map(|name| Ok(arbora_cli::backend::open(Some(&name))?.1))
        .collect::<Result<Vec<Device>, Box<dyn Error>>>()?;
    let first = devices.first().ok_or("name at least one device")?.clone();
    let batch = 4;
    let mut windows = windows(include_str!("data_parallel.rs"), 32);
    windows.truncate(windows.len() / (batch * devices.len()) * batch * devices.len());
    let held: Vec<i64> = windows[..batch].concat();
    let held = Tensor::from_data(TensorData::new(held, [batch, 33]), &first);
    let before = network(&first);
    let folder = std::env::temp_dir().join("arbora-data-parallel");
    let optimizer = (SgdConfig::new().init(), 0.5);
    let after = train(before.clone(), devices, windows, batch, optimizer, &folder)?;
    let nats = |network: &TreeCoder| loss(network, held.clone()).into_scalar::<f32>();
    println!(
        "loss {:.3} before, {:.3} after",
        nats(&before),
        nats(&after)
    );
    Ok(())
}
