//! Functions whose maximum is to be found by few looks at them.
//!
//! A loop over [`GpObjective`] is what growing contexts are for: predict the function from the values
//! seen so far, choose where to look, look, append. A model trained on [`gp`](crate::gp) with the same
//! kernel predicts it. As a test of predictions from context: Garnelo and others,
//! [Neural Processes](https://arxiv.org/abs/1807.01622), 2018.

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::gp::{Hyperparameters, Kernel, RANGE, sample_function};

/// Points of the grid, 0.01 apart: a tenth of the shortest length that is drawn.
const GRID: usize = 401;

/// A function on [-2, 2] drawn from a Gaussian process, without noise.
///
/// Its values are drawn on a grid of 401 points; between them it is linear. So its maximum is known
/// exactly: it lies on the grid. [`Kernel::Periodic`] with a short length and period varies faster than
/// the grid and shows as a ragged line.
#[derive(Clone, Debug, PartialEq)]
pub struct GpObjective {
    kernel: Kernel,
    hyper: Hyperparameters,
    values: Vec<f64>,
}

impl GpObjective {
    /// The function of a seed, with hyperparameters as [`Hyperparameters::draw`] draws them, but
    /// without noise. A pure function of its arguments.
    pub fn new(kernel: Kernel, seed: u64) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let hyper = Hyperparameters {
            noise: 0.0,
            ..Hyperparameters::draw(&mut rng)
        };
        let xs: Vec<f64> = (0..GRID).map(place).collect();
        Self {
            kernel,
            hyper,
            values: sample_function(kernel, &hyper, &xs, &mut rng),
        }
    }

    /// The function at `x`.
    ///
    /// # Panics
    /// If `x` is not within [-2, 2].
    #[track_caller]
    pub fn value(&self, x: f64) -> f64 {
        assert!(
            (RANGE.start..=RANGE.end).contains(&x),
            "GpObjective::value: x: expected -2 to 2, got {x}"
        );
        let at = (x - RANGE.start) / (RANGE.end - RANGE.start) * (GRID - 1) as f64;
        // The last point has no interval after it, so it is the end of the one before.
        let left = (at as usize).min(GRID - 2);
        let share = at - left as f64;
        self.values[left] * (1.0 - share) + self.values[left + 1] * share
    }

    /// Where the function is greatest, and its value there. The first place if there are several.
    pub fn maximum(&self) -> (f64, f64) {
        let mut best = 0;
        for (at, value) in self.values.iter().enumerate() {
            if *value > self.values[best] {
                best = at;
            }
        }
        (place(best), self.values[best])
    }

    /// The kernel that the function was drawn with.
    pub fn kernel(&self) -> Kernel {
        self.kernel
    }

    /// The hyperparameters that the function was drawn with.
    pub fn hyperparameters(&self) -> &Hyperparameters {
        &self.hyper
    }
}

/// The point of the grid at `at`.
fn place(at: usize) -> f64 {
    RANGE.start + (RANGE.end - RANGE.start) * at as f64 / (GRID - 1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_between_points_of_the_grid_are_linear_and_both_ends_belong_to_the_function() {
        let objective = GpObjective::new(Kernel::Rbf, 3);
        let (left, right) = (objective.values[10], objective.values[11]);
        let between = objective.value(0.25 * place(10) + 0.75 * place(11));
        assert!((between - (0.25 * left + 0.75 * right)).abs() < 1e-9);
        assert_eq!(objective.value(-2.0), objective.values[0]);
        assert_eq!(objective.value(2.0), objective.values[GRID - 1]);
    }
}
