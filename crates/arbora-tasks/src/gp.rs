//! Regression on functions drawn from Gaussian processes.
//!
//! Each example is a function of its own: its hyperparameters are drawn, then its values at all points
//! jointly. A model sees some of them and predicts the others. Models are trained on one kernel and
//! judged on it and on others ([`GpRegression::with_kernel`]).
//!
//! Source: [Tree Cross Attention](https://arxiv.org/abs/2309.17388), section 4, which takes the task
//! from the neural processes before it.

use std::f64::consts::PI;

use burn::config::Config;
use burn::tensor::Device;
use derive_setters::Setters;
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;
use serde::{Deserialize, Serialize};

use crate::draws::{self, PointCounts};
use crate::{RegressionBatch, RegressionExample, TaskError};

/// Points lie in [-2, 2).
pub(crate) const RANGE: std::ops::Range<f64> = -2.0..2.0;

/// The factorisation costs the cube of the number of points, its memory the square (128 MiB here).
const MOST_POINTS: usize = 4096;

/// Covariance function of the values at two points.
///
/// With the distance d, the scale s, the length l and the period p of [`Hyperparameters`]:
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kernel {
    /// Radial basis functions, for smooth functions: `s^2 exp(-(d / l)^2 / 2)`. The published
    /// training kernel.
    #[default]
    Rbf,
    /// Matérn with smoothness 5/2, for rougher functions: `s^2 (1 + r + r^2 / 3) exp(-r)` with
    /// `r = sqrt(5) d / l`. The published second kernel for evaluation.
    Matern52,
    /// Functions that repeat themselves: `s^2 exp(-2 sin^2(pi d / p) / l^2)`.
    Periodic,
}

impl Kernel {
    /// The covariance, without noise, of the values at two points `distance` apart.
    pub fn covariance(self, hyper: &Hyperparameters, distance: f64) -> f64 {
        let correlation = match self {
            Self::Rbf => (-0.5 * (distance / hyper.length).powi(2)).exp(),
            Self::Matern52 => {
                let r = 5f64.sqrt() * distance.abs() / hyper.length;
                (1.0 + r + r * r / 3.0) * (-r).exp()
            }
            Self::Periodic => {
                let sine = (PI * distance / hyper.period).sin();
                (-2.0 * (sine / hyper.length).powi(2)).exp()
            }
        };
        hyper.scale.powi(2) * correlation
    }
}

/// The parameters of a [`Kernel`] and the noise of observations.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hyperparameters {
    /// The distance over which values stay alike, above 0. In units of x; for [`Kernel::Periodic`], in
    /// units of `sin(pi d / p)`.
    pub length: f64,
    /// The standard deviation of a value, above 0.
    pub scale: f64,
    /// The period of [`Kernel::Periodic`], above 0. Other kernels ignore it.
    pub period: f64,
    /// The standard deviation of the noise that each value carries on its own, at least 0.
    pub noise: f64,
}

impl Hyperparameters {
    /// The noise of the published task.
    pub const NOISE: f64 = 0.02;

    /// Draws the hyperparameters of one function: the length from U[0.1, 0.6) and the scale from
    /// U[0.1, 1) as published, the period from U[0.1, 0.5), and the noise is
    /// [`NOISE`](Self::NOISE).
    pub fn draw(rng: &mut impl Rng) -> Self {
        // The period is drawn for every kernel, so that a kernel changes the values and nothing else.
        Self {
            length: rng.random_range(0.1..0.6),
            scale: rng.random_range(0.1..1.0),
            period: rng.random_range(0.1..0.5),
            noise: Self::NOISE,
        }
    }

    #[track_caller]
    fn assert_valid(&self) {
        let positive = [
            ("length", self.length),
            ("scale", self.scale),
            ("period", self.period),
        ];
        for (name, value) in positive {
            assert!(
                value > 0.0 && value.is_finite(),
                "sample_function: {name}: expected a finite number above 0, got {value}"
            );
        }
        assert!(
            self.noise >= 0.0 && self.noise.is_finite(),
            "sample_function: noise: expected a finite number of at least 0, got {}",
            self.noise
        );
    }
}

/// Draws the values of one function at the points `xs`, `[points]`, noise included.
///
/// The covariance matrix is factorised in 64 bits. So that rounding does not make it indefinite, its
/// diagonal is raised by 10^-10 times the variance, and by ten times more as often as that fails,
/// which happens with many close points and no noise.
///
/// Points need not be sorted, and a point may come twice: without noise, the values there agree up to
/// the square root of that raise. No points give no values.
///
/// # Panics
/// If a point or a hyperparameter is not finite or out of its range.
#[track_caller]
pub fn sample_function(
    kernel: Kernel,
    hyper: &Hyperparameters,
    xs: &[f64],
    rng: &mut impl Rng,
) -> Vec<f64> {
    hyper.assert_valid();
    if let Some(at) = xs.iter().position(|x| !x.is_finite()) {
        panic!(
            "sample_function: xs[{at}]: expected a finite number, got {}",
            xs[at]
        );
    }
    let normals: Vec<f64> = xs.iter().map(|_| rng.sample(StandardNormal)).collect();
    let factor = factorise(kernel, hyper, xs);
    let count = xs.len();
    (0..count)
        .map(|row| {
            (0..=row)
                .map(|at| factor[at * count + row] * normals[at])
                .sum()
        })
        .collect()
}

/// The Cholesky factor of the covariance at `xs`, `[points, points]` by columns. What lies above the diagonal is 0.
fn factorise(kernel: Kernel, hyper: &Hyperparameters, xs: &[f64]) -> Vec<f64> {
    let count = xs.len();
    // Only the lower triangle is read.
    let mut covariance = vec![0.0; count * count];
    for column in 0..count {
        for row in column..count {
            covariance[column * count + row] = kernel.covariance(hyper, xs[row] - xs[column]);
        }
    }
    let mut raise = 1e-10 * hyper.scale.powi(2);
    loop {
        let mut raised = covariance.clone();
        for at in 0..count {
            raised[at * count + at] += hyper.noise.powi(2) + raise;
        }
        // This ends: a raise above the sum of the moduli of a row makes any matrix definite.
        match cholesky(raised, count) {
            Some(factor) => return factor,
            None => raise *= 10.0,
        }
    }
}

/// The lower triangular factor of a symmetric matrix that is stored by columns, of which the lower triangle is read;
/// none if rounding leaves it indefinite.
fn cholesky(mut matrix: Vec<f64>, count: usize) -> Option<Vec<f64>> {
    for at in 0..count {
        let (finished, rest) = matrix.split_at_mut(at * count);
        let column = &mut rest[at..count];
        for earlier in finished.chunks_exact(count) {
            let factor = earlier[at];
            for (own, other) in column.iter_mut().zip(&earlier[at..]) {
                *own -= factor * other;
            }
        }
        let root = column[0].sqrt();
        // The root of a negative number is no number.
        if root.is_nan() || root == 0.0 {
            return None;
        }
        column[0] = root;
        column[1..].iter_mut().for_each(|entry| *entry /= root);
    }
    Some(matrix)
}

/// The kernel, and how many points are shown and asked for.
///
/// With n = `max_points` (50 as published), the number of context points is uniform over
/// `min_context ..= n - 1 - min_targets` (3 to 46) and then the number of targets is uniform over
/// `min_targets ..= n - 1 - context` (3 to 49 - context), both the same for a whole batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, Setters)]
#[serde(default, deny_unknown_fields)]
#[setters(prefix = "with_")]
pub struct GpConfig {
    /// Which functions. Default `rbf`.
    pub kernel: Kernel,
    /// Context and targets together stay below this many points. Default 50, at most 4096.
    pub max_points: usize,
    /// The least number of context points. Default 3.
    pub min_context: usize,
    /// The least number of targets. Default 3.
    pub min_targets: usize,
}

impl Default for GpConfig {
    fn default() -> Self {
        Self {
            kernel: Kernel::default(),
            max_points: 50,
            min_context: 3,
            min_targets: 3,
        }
    }
}

impl Config for GpConfig {}

impl GpConfig {
    /// Checks that there is something to show and something to ask for.
    ///
    /// # Errors
    /// [`TaskError::EmptyContext`] and [`TaskError::NoTargets`] where a minimum is 0,
    /// [`TaskError::Config`] where `max_points` leaves no room for both minima or is above 4096.
    pub fn check(&self) -> Result<(), TaskError> {
        self.counts().check()?;
        if self.max_points > MOST_POINTS {
            let expected = format!("at most {MOST_POINTS}");
            return Err(TaskError::config("max_points", expected, self.max_points));
        }
        Ok(())
    }

    fn counts(&self) -> PointCounts {
        PointCounts {
            max_points: self.max_points,
            min_context: self.min_context,
            min_targets: self.min_targets,
        }
    }
}

/// Regression on functions drawn from Gaussian processes, with `x_dim` = `y_dim` = 1.
///
/// Points are uniform over [-2, 2), those of the context and those of the targets each in ascending
/// order. The values of both are drawn jointly, with noise.
#[derive(Clone, Copy, Debug)]
pub struct GpRegression {
    config: GpConfig,
}

impl GpRegression {
    /// The task of a configuration.
    ///
    /// # Errors
    /// As [`GpConfig::check`].
    pub fn new(config: GpConfig) -> Result<Self, TaskError> {
        config.check()?;
        Ok(Self { config })
    }

    /// The same task with functions of another kernel. Points, hyperparameters and the normal draws
    /// behind the values stay those of the same seed and step.
    #[must_use]
    pub fn with_kernel(mut self, kernel: Kernel) -> Self {
        self.config.kernel = kernel;
        self
    }

    /// The configuration.
    pub fn config(&self) -> &GpConfig {
        &self.config
    }

    /// The training batch of `step`: a pure function of its arguments.
    ///
    /// Shapes as in [`RegressionBatch`], with `x_dim` = `y_dim` = 1 and nothing masked.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn batch(
        &self,
        seed: u64,
        step: u64,
        batch_size: usize,
        device: &Device,
    ) -> Result<RegressionBatch, TaskError> {
        let mut rng = draws::training(seed, step, batch_size)?;
        Ok(self.draw(&mut rng, batch_size, device))
    }

    /// `batches` fixed batches for evaluation, as published 3,000 of 16 functions for each kernel.
    ///
    /// Batch `i` is a pure function of `seed`, `i` and `batch_size`, so that all models are judged on
    /// the same functions. The draws differ from those of training with the same seed.
    ///
    /// # Errors
    /// [`TaskError::EmptyBatch`] if `batch_size` is 0.
    pub fn eval_batches(
        &self,
        seed: u64,
        batches: usize,
        batch_size: usize,
        device: &Device,
    ) -> Result<impl ExactSizeIterator<Item = RegressionBatch> + use<>, TaskError> {
        let (task, device) = (*self, device.clone());
        let streams = draws::evaluation(seed, batches, batch_size)?;
        Ok(streams.map(move |mut rng| task.draw(&mut rng, batch_size, &device)))
    }

    fn draw(&self, rng: &mut ChaCha8Rng, batch_size: usize, device: &Device) -> RegressionBatch {
        let (context, targets) = self.config.counts().draw(rng);
        let examples: Vec<_> = (0..batch_size)
            .map(|_| {
                let hyper = Hyperparameters::draw(rng);
                let points = context + targets;
                let mut xs: Vec<f64> = (0..points).map(|_| rng.random_range(RANGE)).collect();
                xs[..context].sort_unstable_by(f64::total_cmp);
                xs[context..].sort_unstable_by(f64::total_cmp);
                let ys = sample_function(self.config.kernel, &hyper, &xs, rng);
                RegressionExample {
                    context_x: rounded(&xs[..context]),
                    context_y: rounded(&ys[..context]),
                    target_x: rounded(&xs[context..]),
                    target_y: rounded(&ys[context..]),
                }
            })
            .collect();
        RegressionBatch::padded(&examples, [1, 1], (0..batch_size).collect(), device)
    }
}

fn rounded(values: &[f64]) -> Vec<f32> {
    values.iter().map(|&value| value as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_factor_times_its_transpose_is_the_matrix_and_an_indefinite_one_has_none() {
        let matrix = [4.0, 2.0, -2.0, 0.0, 10.0, 5.0, 0.0, 0.0, 9.0];
        let factor = [2.0, 1.0, -1.0, 0.0, 3.0, 2.0, 0.0, 0.0, 2.0];
        assert_eq!(cholesky(matrix.to_vec(), 3), Some(factor.to_vec()));
        for last in [0.0, 1.0] {
            assert_eq!(cholesky(vec![1.0, 1.0, 0.0, last], 2), None);
        }
        assert_eq!(cholesky(Vec::new(), 0), Some(Vec::new()));
    }
}
