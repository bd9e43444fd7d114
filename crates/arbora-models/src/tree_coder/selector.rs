use super::config::{SelectorBalance, SelectorKind, TreeCoderConfig};
use burn::module::{Module, RunningState};
use burn::nn::{Linear, LinearConfig, RmsNorm, RmsNormConfig};
use burn::tensor::activation::gelu;
use burn::tensor::{Device, Tensor};
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
    /// What loss-free balancing adds to the scores where decisions are taken, `[branching]`.
    balance: RunningState<Tensor<1>>,
}

impl Selector {
    /// `None` where routes are not learned.
    pub(super) fn new(config: &TreeCoderConfig, device: &Device) -> Option<Self> {
        if config.selector.kind != SelectorKind::Learned {
            return None;
        }
        let width = config.selector.hidden.unwrap_or(config.d_model);
        Some(Self {
            norm: RmsNormConfig::new(config.d_model).init(device),
            hidden: config
                .selector
                .hidden
                .map(|hidden| LinearConfig::new(config.d_model, hidden).init(device)),
            output: LinearConfig::new(width, config.branching).init(device),
            balance: RunningState::new(Tensor::zeros([config.branching], device)),
        })
    }

    /// Scores of children before a softmax, `[items, d_model]` -> `[items, branching]`. The bias of loss-free
    /// balancing is not in them.
    pub fn forward(&self, pooled: Tensor<2>) -> Tensor<2> {
        let mut pooled = self.norm.forward(pooled);
        if let Some(hidden) = &self.hidden {
            pooled = gelu(hidden.forward(pooled));
        }
        self.output.forward(pooled)
    }

    /// What is added to the scores where decisions are taken, one number per child.
    pub(super) fn decision_bias(&self) -> Vec<f32> {
        self.balance
            .value()
            .into_data()
            .convert::<f32>()
            .try_into_vec()
            .expect("converted to this type")
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
        let steps = Tensor::<1>::from_floats(steps.as_slice(), &old.device());
        self.balance.update((old + steps).detach());
        // A record is made of the value that is in sync.
        self.balance.value_sync();
    }
}
