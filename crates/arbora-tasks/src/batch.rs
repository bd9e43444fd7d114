//! Batches of regression problems: predict the values at target points from context points.

use std::iter::repeat_n;
use std::ops::Range;

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::TaskError;
use crate::error::check_batch;

/// One regression problem per example, padded to common lengths.
///
/// Masks follow burn: `true` marks padding, which a model must not see. Coordinates and values of
/// padding are 0. Where every example has the same number of points, no mask is set anywhere.
#[derive(Clone, Debug)]
pub struct RegressionBatch {
    /// Where values are known: `[batch, context, x_dim]`.
    pub context_x: Tensor<3>,
    /// The known values: `[batch, context, y_dim]`.
    pub context_y: Tensor<3>,
    /// `true` = padding: `[batch, context]`.
    pub context_mask: Tensor<2, Bool>,
    /// Where values are asked for: `[batch, targets, x_dim]`.
    pub target_x: Tensor<3>,
    /// The values to predict: `[batch, targets, y_dim]`.
    pub target_y: Tensor<3>,
    /// `true` = padding: `[batch, targets]`.
    pub target_mask: Tensor<2, Bool>,
    /// Context points per example, padding not counted: `[batch]`, on the host.
    pub context_counts: Vec<usize>,
    /// Target points per example, padding not counted: `[batch]`, on the host.
    pub target_counts: Vec<usize>,
    /// Which item of its data set each example is: `[batch]`, on the host. For examples without a
    /// data set these are the positions in the batch.
    pub indices: Vec<usize>,
}

/// One example as numbers on the host, for [`RegressionBatch::from_values`]. Every list is row-major: the
/// first point's numbers, then the second point's.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RegressionExample {
    /// `[context, x_dim]`
    pub context_x: Vec<f32>,
    /// `[context, y_dim]`
    pub context_y: Vec<f32>,
    /// `[targets, x_dim]`
    pub target_x: Vec<f32>,
    /// `[targets, y_dim]`
    pub target_y: Vec<f32>,
}

impl RegressionBatch {
    /// Checks examples and makes a padded batch of them. Examples may differ in their numbers of
    /// points.
    ///
    /// This is where data of one's own enters, so non-finite values are refused here; models do not
    /// look for them again.
    ///
    /// # Errors
    /// - [`TaskError::EmptyBatch`] without examples
    /// - [`TaskError::Example`] where a list is no whole number of points of `x_dim` or `y_dim`
    ///   numbers, coordinates and values differ in their number of points, or a value is NaN or
    ///   infinite
    /// - [`TaskError::EmptyContext`] and [`TaskError::NoTargets`]
    ///
    /// # Panics
    /// If `x_dim` or `y_dim` is 0.
    pub fn from_values(
        examples: &[RegressionExample],
        x_dim: usize,
        y_dim: usize,
        device: &Device,
    ) -> Result<Self, TaskError> {
        for (name, dim) in [("x_dim", x_dim), ("y_dim", y_dim)] {
            assert!(
                dim > 0,
                "RegressionBatch::from_values: {name}: expected at least 1, got 0"
            );
        }
        check_batch(examples.len())?;
        for (at, example) in examples.iter().enumerate() {
            let [context, targets] =
                example
                    .count_points([x_dim, y_dim])
                    .map_err(|problem| TaskError::Example {
                        example: at,
                        problem,
                    })?;
            if context == 0 {
                let place = format!("example {at}");
                return Err(TaskError::EmptyContext { place });
            }
            if targets == 0 {
                let place = format!("example {at}");
                return Err(TaskError::NoTargets { place });
            }
        }
        let indices = (0..examples.len()).collect();
        Ok(Self::padded(examples, [x_dim, y_dim], indices, device))
    }

    /// The batch of examples whose lists fit together.
    pub(crate) fn padded(
        examples: &[RegressionExample],
        [x_dim, y_dim]: [usize; 2],
        indices: Vec<usize>,
        device: &Device,
    ) -> Self {
        let points = |lists: fn(&RegressionExample) -> (&[f32], &[f32])| {
            let counts: Vec<usize> = examples
                .iter()
                .map(|example| lists(example).1.len() / y_dim)
                .collect();
            let most = counts.iter().copied().max().unwrap_or(0);
            let tensor = |rows: Vec<&[f32]>, dim: usize| {
                let rows = rows.into_iter().map(|row| row.iter().copied());
                let values = pad(rows, most * dim, 0.0);
                let shape = [examples.len(), most, dim];
                Tensor::<3>::from_data(TensorData::new(values, shape), device)
            };
            let (x, y) = examples.iter().map(lists).unzip();
            let mask = padding_mask(&counts, most, device);
            (tensor(x, x_dim), tensor(y, y_dim), mask, counts)
        };
        let (context_x, context_y, context_mask, context_counts) =
            points(|example| (&example.context_x, &example.context_y));
        let (target_x, target_y, target_mask, target_counts) =
            points(|example| (&example.target_x, &example.target_y));
        Self {
            context_x,
            context_y,
            context_mask,
            target_x,
            target_y,
            target_mask,
            context_counts,
            target_counts,
            indices,
        }
    }

    /// How many examples there are.
    pub fn batch_size(&self) -> usize {
        self.indices.len()
    }

    /// The batch on another device.
    pub fn to_device(self, device: &Device) -> Self {
        Self {
            context_x: self.context_x.to_device(device),
            context_y: self.context_y.to_device(device),
            context_mask: self.context_mask.to_device(device),
            target_x: self.target_x.to_device(device),
            target_y: self.target_y.to_device(device),
            target_mask: self.target_mask.to_device(device),
            ..self
        }
    }
}

impl RegressionExample {
    /// How many points the context and the targets have.
    ///
    /// # Errors
    /// What is wrong where lists do not fit together or hold a value that is not finite.
    fn count_points(&self, [x_dim, y_dim]: [usize; 2]) -> Result<[usize; 2], String> {
        let count = |[x_name, y_name]: [&str; 2], x: &[f32], y: &[f32]| {
            if !x.len().is_multiple_of(x_dim) {
                let got = x.len();
                return Err(format!(
                    "{x_name}: expected a multiple of {x_dim} values, got {got}"
                ));
            }
            let points = x.len() / x_dim;
            let (values, got) = (points * y_dim, y.len());
            if got != values {
                return Err(format!(
                    "{y_name}: expected {points} points of {y_dim}: {values} values, got {got}"
                ));
            }
            for (name, list) in [(x_name, x), (y_name, y)] {
                if let Some(position) = list.iter().position(|value| !value.is_finite()) {
                    let value = list[position];
                    return Err(format!(
                        "{name}[{position}] is {value}; every value must be finite"
                    ));
                }
            }
            Ok(points)
        };
        Ok([
            count(["context_x", "context_y"], &self.context_x, &self.context_y)?,
            count(["target_x", "target_y"], &self.target_x, &self.target_y)?,
        ])
    }
}

/// Rows one after the other, each filled up to `length` elements.
pub(crate) fn pad<T: Clone>(
    rows: impl Iterator<Item = impl IntoIterator<Item = T>>,
    length: usize,
    filler: T,
) -> Vec<T> {
    let mut padded = Vec::new();
    for (row, elements) in rows.enumerate() {
        padded.extend(elements);
        padded.resize((row + 1) * length, filler.clone());
    }
    padded
}

/// `[batch, length]`, `true` behind the first `counts` elements of each row.
pub(crate) fn padding_mask(counts: &[usize], length: usize, device: &Device) -> Tensor<2, Bool> {
    let rows = counts.iter().map(|&count| repeat_n(false, count));
    let mask = pad(rows, length, true);
    Tensor::from_data(TensorData::new(mask, [counts.len(), length]), device)
}

/// The items of each batch of an evaluation: all of `0..count` in order. The last batch may be smaller.
pub(crate) fn batches_in_order(
    count: usize,
    batch_size: usize,
) -> Result<impl ExactSizeIterator<Item = Range<usize>>, TaskError> {
    check_batch(batch_size)?;
    Ok((0..count.div_ceil(batch_size)).map(move |batch| {
        let first = batch * batch_size;
        first..count.min(first + batch_size)
    }))
}
