//! Seeded initialisation on the host.
//!
//! burn draws parameters lazily from each backend's own generator, so the same seed gives different
//! weights on different backends, and different weights when a layer is first used at another time.
//! Here every draw comes from the host and depends on the seed and the parameter's path alone.

use arbora_rl::seed::step_rng;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Tensor, TensorData};
use rand::Rng;
use serde::{Deserialize, Serialize};

/// How far weights are drawn from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initialization {
    /// `U(-1/√fan_in, 1/√fan_in)`, PyTorch's default and the published one. Under a ReLU it shrinks a
    /// signal to less than half per layer.
    #[default]
    Published,
    /// The same, but `U(-√(6/fan_in), √(6/fan_in))` for the weights after positional encodings (a ReLU
    /// network), which keeps the size of a signal (He et al. 2015, arXiv 1502.01852). Positions then reach
    /// attention at full size, and it learns to look them up several times sooner.
    HePositions,
    /// `U(-√(3/fan_in), √(3/fan_in))` for weights, whose variance is then `1/fan_in`, and 0 for biases: a
    /// linear layer keeps the size of a signal (LeCun et al. 1998, "Efficient BackProp"). Attention starts
    /// out three times as sharp as with the published weights.
    Unit,
}

/// Draws the weights and biases of all [`Linear`](burn::nn::Linear) layers from their uniform
/// distributions, and the rows of all [`Embedding`](burn::nn::Embedding)s from `N(0, 1)`, truncated as
/// in [`truncated_normal`].
/// Other parameters (the ones and zeros of norms, latents, routing trees) are left as they are.
pub fn seeded<M: Module>(module: M, seed: u64, initialization: Initialization) -> M {
    module.map(&mut SeededLinear {
        seed,
        initialization,
        path: Vec::new(),
        containers: Vec::new(),
        fan_in: 1,
    })
}

/// Draws from `N(0, deviation²)` truncated at two standard deviations, for the parameter at `path`:
/// what [`seeded`] is for linear layers. Truncation leaves 0.88 of the deviation.
///
/// - shape: of the parameter, any axes
/// - deviation: standard deviation before truncation
pub fn truncated_normal<const D: usize>(
    shape: [usize; D],
    deviation: f32,
    seed: u64,
    path: &str,
) -> TensorData {
    let mut rng = step_rng(seed, stable_hash(path));
    // Rejection from a uniform proposal: exact, and without tails it accepts six in ten.
    let mut draw = || loop {
        let standard: f32 = rng.random_range(-2.0..2.0);
        if rng.random::<f32>() < (-0.5 * standard * standard).exp() {
            return deviation * standard;
        }
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(|_| draw()).collect();
    TensorData::new(values, shape)
}

struct SeededLinear {
    seed: u64,
    initialization: Initialization,
    path: Vec<String>,
    containers: Vec<String>,
    /// Inputs of the linear layer visited last: its weight comes before its bias.
    fan_in: usize,
}

impl ModuleMapper for SeededLinear {
    fn enter_module(&mut self, name: &str, container_type: &str) {
        self.path.push(name.to_owned());
        self.containers.push(container_type.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
        self.containers.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        // What holds the parameter itself: this crate has an embedding of its own, made of linear layers.
        let holder = self.containers.last().map(String::as_str);
        let path = self.path.join(".");
        if holder == Some("Struct:Embedding") {
            return param.map(|tensor| {
                let values = truncated_normal(tensor.dims(), 1.0, self.seed, &path);
                Tensor::from_data(values, &tensor.device())
                    .set_require_grad(tensor.is_require_grad())
            });
        }
        if holder != Some("Struct:Linear") {
            return param;
        }
        let after_positions = self
            .containers
            .iter()
            .any(|container| container == "Struct:SequenceEmbedding");
        param.map(|tensor| {
            let shape = tensor.dims();
            if D == 2 {
                self.fan_in = shape[0];
            }
            let spread: f32 = match self.initialization {
                Initialization::HePositions if after_positions && D == 2 => 6.0,
                Initialization::Unit if D == 2 => 3.0,
                Initialization::Unit => 0.0,
                _ => 1.0,
            };
            let bound = (spread / self.fan_in as f32).sqrt();
            let mut rng = step_rng(self.seed, stable_hash(&path));
            let values: Vec<f32> = (0..shape.iter().product())
                .map(|_| {
                    if bound > 0.0 {
                        rng.random_range(-bound..bound)
                    } else {
                        0.0
                    }
                })
                .collect();
            // A new tensor asks for no gradient: without this the layer would never train.
            Tensor::from_data(TensorData::new(values, shape), &tensor.device())
                .set_require_grad(tensor.is_require_grad())
        })
    }
}

/// FNV-1a: a hash that is the same in every build, unlike the standard library's.
pub fn stable_hash(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
