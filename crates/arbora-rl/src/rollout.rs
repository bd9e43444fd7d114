//! What a policy did: log-probabilities, entropies and counts of decisions.

use burn::tensor::{Bool, Tensor};

use crate::check;

/// The sampled decisions of a batch.
///
/// A *row* is one decision problem (a query of an example: rows = batch x queries). A *sample* is
/// one sequence of decisions drawn for that row. Rows are independent of each other, and so are the
/// samples of a row; the baselines that look at other rewards rely on it.
#[derive(Clone, Debug)]
pub struct Rollout {
    /// Log-probability of the whole sequence: summed over its decisions. Carries the gradient.
    /// `[rows, samples]`, in nats.
    pub log_prob: Tensor<2>,
    /// Entropy of the policy: mean over the real decisions of the sequence. Carries the gradient.
    /// `[rows, samples]`, in nats.
    pub entropy: Tensor<2>,
    /// Number of real decisions in the sequence, as a float. A sequence without decisions enters
    /// no entropy mean, whatever its `entropy` says. `[rows, samples]`
    pub decisions: Tensor<2>,
    /// `true` = masked out; its other values are ignored, even when they
    /// are not finite. `[rows, samples]`
    pub mask: Option<Tensor<2, Bool>>,
}

impl Rollout {
    /// `[rows, samples]`
    ///
    /// # Panics
    /// If the tensors disagree in shape.
    #[track_caller]
    pub fn dims(&self) -> [usize; 2] {
        let dims = self.log_prob.dims();
        check::same_shape("Rollout", "entropy", self.entropy.dims(), dims);
        check::same_shape("Rollout", "decisions", self.decisions.dims(), dims);
        if let Some(mask) = &self.mask {
            check::same_shape("Rollout", "mask", mask.dims(), dims);
        }
        dims
    }
}
