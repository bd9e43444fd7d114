//! The network that chooses a child for each sequence.

use super::config::{SelectorBalance, TreeCoderConfig};
use arbora_tree::tensors::single;
use burn::module::{Module, ParamId, RunningState};
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, FloatDType, Tensor};
use std::cmp::Ordering;

/// Scores the children of a node: a classifier outside the transformer blocks.
///
/// Pooled hidden states are normalised and mapped to one score per child, by a linear map or with a hidden layer
/// before it.
#[derive(Module, Debug)]
pub struct Selector {
    norm: RmsNorm,
    hidden: Option<Linear>,
    /// `[d_model or hidden, branching]`
    pub output: Linear,
    /// What loss-free balancing adds to the probabilities where decisions are taken, `[branching]`.
    balance: RunningState<Tensor<1>>,
}

impl Selector {
    pub(super) fn new(config: &TreeCoderConfig, device: &Device) -> Self {
        let width = config.selector.hidden.unwrap_or(config.d_model);
        Self {
            norm: RmsNormConfig::new(config.d_model).init(device),
            hidden: config
                .selector
                .hidden
                .map(|hidden| LinearConfig::new(config.d_model, hidden).init(device)),
            output: LinearConfig::new(width, config.branching).init(device),
            balance: RunningState::new(Tensor::zeros([config.branching], single(device))),
        }
    }

    /// The same with output weights of half the size: scores then have a standard deviation of 1/2 at first, and
    /// probabilities are near uniform. Half is exact, so all backends still start with the same weights.
    pub(super) fn with_even_start(mut self) -> Self {
        self.output.weight = self.output.weight.map(|weight| {
            let learns = weight.is_require_grad();
            (weight * 0.5).detach().set_require_grad(learns)
        });
        self
    }

    pub(super) fn parameter_ids(&self) -> Vec<ParamId> {
        let linear = |linear: &Linear| {
            [
                Some(linear.weight.id),
                linear.bias.as_ref().map(|bias| bias.id),
            ]
        };
        let hidden = self.hidden.iter().flat_map(linear);
        std::iter::once(Some(self.norm.gamma.id))
            .chain(hidden)
            .chain(linear(&self.output))
            .flatten()
            .collect()
    }

    /// Scores of children before a softmax, `[items, d_model]` -> `[items, branching]`. The bias of loss-free
    /// balancing is not in them. In single precision, whatever the weights are.
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        let mut pooled = self.norm.forward(pooled);
        if let Some(hidden) = &self.hidden {
            pooled = gelu(hidden.forward(pooled));
        }
        self.output.forward(pooled).cast(FloatDType::F32)
    }

    /// What loss-free balancing adds to the probabilities where decisions are taken, `[branching]`, off the
    /// autodiff device.
    pub fn decision_bias(&self) -> Tensor<1> {
        self.balance.value_sync().without_autodiff()
    }

    /// Moves the bias of loss-free balancing one step against the load.
    ///
    /// - loads: items that went to each child
    pub(super) fn track_balance(&self, balance: SelectorBalance, loads: &[usize]) {
        let SelectorBalance::LossFree { rate } = balance else {
            return;
        };
        let mean = loads.iter().sum::<usize>() as f64 / loads.len() as f64;
        let steps: Vec<f32> = loads
            .iter()
            .map(|load| match (*load as f64).total_cmp(&mean) {
                Ordering::Less => rate as f32,
                Ordering::Equal => 0.0,
                Ordering::Greater => -rate as f32,
            })
            .collect();
        let old = self.balance.value_sync().without_autodiff();
        let steps = Tensor::<1>::from_data(steps.as_slice(), single(&old.device()));
        self.balance.update((old + steps).detach());
        // A record is made of the value that is in sync.
        self.balance.value_sync();
    }
}
