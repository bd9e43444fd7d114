//! What a policy did: log-probabilities, entropies and counts of decisions.

use burn::tensor::{Bool, Int, Tensor};

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
    /// One decision per sample, among choices whose log-probabilities are the policy.
    ///
    /// - log_probs: `[rows, choices]`, normalised over the choices, as `log_softmax` gives them; -infinity for a choice that
    ///   cannot be taken
    /// - choices: `[rows, samples]`, as [`sample::categorical`](crate::sample::categorical) draws them
    ///
    /// # Panics
    /// If the numbers of rows differ or there is no choice.
    #[track_caller]
    pub fn from_choices(log_probs: Tensor<2>, choices: Tensor<2, Int>) -> Self {
        let [rows, _] = log_probs.dims();
        let [chosen_rows, samples] = choices.dims();
        let operation = "Rollout::from_choices";
        check::some_samples(operation, "choices", [chosen_rows, samples]);
        check::same_axes(operation, "choices", ["rows"], &[chosen_rows], &[rows]);
        // 0 log 0 is 0, and so is its gradient.
        let never = log_probs.clone().exp().lower_equal_elem(0.0);
        let finite = log_probs.clone().mask_fill(never.clone(), 0.0);
        let probability = finite.clone().exp().mask_fill(never, 0.0);
        let entropy = (probability * finite).sum_dim(1).neg();
        let log_prob = log_probs.gather(1, choices.without_autodiff());
        Self {
            entropy: entropy.expand([rows, samples]),
            decisions: log_prob.ones_like().detach(),
            log_prob,
            mask: None,
        }
    }

    /// `[rows, samples]`
    ///
    /// # Panics
    /// If there is nothing in them, or the tensors disagree in shape.
    #[track_caller]
    pub fn dims(&self) -> [usize; 2] {
        let dims = self.log_prob.dims();
        check::some_samples("Rollout", "log_prob", dims);
        check::same_shape("Rollout", "entropy", self.entropy.dims(), dims);
        check::same_shape("Rollout", "decisions", self.decisions.dims(), dims);
        if let Some(mask) = &self.mask {
            check::same_shape("Rollout", "mask", mask.dims(), dims);
        }
        dims
    }
}
