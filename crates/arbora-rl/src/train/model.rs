//! What a trainer asks of a model.

use std::convert::Infallible;
use std::fmt::Display;

use burn::module::{Module, ModuleDisplay, ParamGroup};
use burn::tensor::{Device, Tensor};
use rand_chacha::ChaCha8Rng;

use crate::Rollout;

/// A model that the trainer can train: it maps a batch to a loss and, if it took decisions, to
/// what the policy gradient needs.
pub trait TrainableModel: Module + ModuleDisplay + Display + 'static {
    /// What one step works on.
    type Batch: Send + 'static;

    /// The forward pass of one training step.
    ///
    /// `rng` is fresh for every step and derived from the run's seed and the step. All randomness
    /// must come from it, or a resumed run does not continue the same numbers.
    fn training_step(&self, batch: Self::Batch, rng: &mut ChaCha8Rng) -> StepOutput;

    /// Parameters that the optimiser treats in another way than the others. Asked once, before the first step;
    /// where a parameter is in several groups, the last one counts.
    fn parameter_groups(&self) -> Vec<ParameterGroup> {
        Vec::new()
    }

    /// Measures one evaluation batch. The model is in validation mode, off the autodiff device.
    ///
    /// `rng` depends on the seed and the batch's index alone, so that evaluations at different
    /// steps draw the same numbers.
    fn evaluate(&self, batch: Self::Batch, rng: &mut ChaCha8Rng) -> Vec<Measurement>;

    /// Numbers that follow from the means over a whole evaluation, such as the exponential of one. They are
    /// reported behind the means, in this order.
    ///
    /// - means: names and means of all that [`evaluate`](Self::evaluate) measured, in its order
    fn derive(&self, _means: &[(String, f64)]) -> Vec<(String, f64)> {
        Vec::new()
    }
}

/// Parameters with their own settings of the optimiser.
#[derive(Clone, Debug)]
pub struct ParameterGroup {
    /// The parameters.
    pub parameters: ParamGroup,
    /// Whether weight decay pulls them to 0, as it does all others. Where a parameter's direction decides and
    /// not its size, as in the hyperplanes of a routing tree, decay does nothing but shrink gradients, or lets
    /// the bias decide alone.
    pub decays: bool,
    /// Their learning rate relative to that of all others.
    pub rate: f64,
}

/// What a training step hands to the trainer.
#[derive(Debug)]
pub struct StepOutput {
    /// The differentiable loss without the policy-gradient term, `[1]`.
    pub task_loss: Tensor<1>,
    /// The decisions taken, if any.
    pub decisions: Option<Decisions>,
    /// More numbers for the log, `[1]` each. Names must be the same at every step.
    pub metrics: Vec<(String, Tensor<1>)>,
}

impl StepOutput {
    /// A step with a loss, no decisions and no more numbers.
    pub fn new(task_loss: Tensor<1>) -> Self {
        Self {
            task_loss,
            decisions: None,
            metrics: Vec::new(),
        }
    }

    /// Adds the decisions taken.
    pub fn with_decisions(mut self, decisions: Decisions) -> Self {
        self.decisions = Some(decisions);
        self
    }

    /// Adds a number for the log, `[1]`. Its history, if any, is dropped.
    pub fn with_metric(mut self, name: impl Into<String>, value: Tensor<1>) -> Self {
        self.metrics.push((name.into(), value));
        self
    }
}

/// Decisions and how good they were.
#[derive(Clone, Debug)]
pub struct Decisions {
    /// The sampled decisions.
    pub rollout: Rollout,
    /// `[rows, samples]`
    pub reward: Tensor<2>,
    /// `[rows, 1]`, needed by the self-critical baseline alone.
    pub greedy_reward: Option<Tensor<2>>,
}

/// One measured quantity of an evaluation batch, as a weighted sum, so that the mean over batches
/// of different sizes is exact.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The quantity's name in the log.
    pub name: String,
    /// Sum over the batch's items.
    pub sum: f64,
    /// Number of items, or their total weight.
    pub weight: f64,
}

impl Measurement {
    /// A quantity's sum over `weight` items.
    pub fn new(name: impl Into<String>, sum: f64, weight: f64) -> Self {
        Self {
            name: name.into(),
            sum,
            weight,
        }
    }
}

/// No evaluation: what [`Trainer::fit`](super::Trainer::fit) takes where there are no batches for it.
pub fn no_evaluation<B>() -> (u64, impl Fn(u64, &Device) -> Result<B, Infallible>) {
    (0, |index, _: &Device| {
        panic!("no_evaluation: index: expected none, got {index}")
    })
}

/// What one training step did.
#[derive(Clone, Debug)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The step's numbers in the order of the log. The first is `loss`.
    pub metrics: Vec<(String, f32)>,
    /// The step's learning rate.
    pub learning_rate: f64,
    /// Wall-clock time of the step.
    pub seconds: f64,
}

impl StepReport {
    /// The number called `name`.
    pub fn metric(&self, name: &str) -> Option<f32> {
        named(&self.metrics, name)
    }
}

/// What one evaluation measured.
#[derive(Clone, Debug)]
pub struct EvaluationReport {
    /// Steps done before it.
    pub step: u64,
    /// Weighted means over all evaluation batches, in the order of the log.
    pub metrics: Vec<(String, f64)>,
    /// Wall-clock time of the evaluation.
    pub seconds: f64,
}

impl EvaluationReport {
    /// The mean called `name`.
    pub fn metric(&self, name: &str) -> Option<f64> {
        named(&self.metrics, name)
    }
}

fn named<T: Copy>(numbers: &[(String, T)], name: &str) -> Option<T> {
    let found = numbers.iter().find(|(own, _)| own == name);
    found.map(|(_, value)| *value)
}

/// Watches a run: a progress bar, curves. Every method does nothing unless overridden.
pub trait Progress {
    /// After every training step.
    fn on_step(&mut self, _report: &StepReport) {}

    /// After every evaluation.
    fn on_evaluation(&mut self, _report: &EvaluationReport) {}

    /// After a checkpoint was written.
    fn on_checkpoint(&mut self, _step: u64) {}

    /// Something a person should know that is no error, such as a damaged checkpoint that was
    /// passed over for an older one.
    fn on_notice(&mut self, _text: &str) {}
}

impl Progress for () {}
