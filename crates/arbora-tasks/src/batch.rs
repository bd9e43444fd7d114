//! Batches of regression problems: predict the values at target points from context points.

use burn::tensor::{Bool, Device, Tensor, TensorData};

use crate::TaskError;

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

/// One example as plain numbers, for [`RegressionBatch::from_values`]. Every list is row-major: the
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
    /// - [`TaskError::DimensionMismatch`] where a list is no whole number of points of `x_dim` or
    ///   `y_dim` numbers, or coordinates and values differ in their number of points
    /// - [`TaskError::EmptyContext`] and [`TaskError::NoTargets`]
    /// - [`TaskError::NonFinite`] for NaN and infinities
    ///
    /// # Panics
    /// If `x_dim` or `y_dim` is 0.
    pub fn from_values(
        examples: &[RegressionExample],
        x_dim: usize,
        y_dim: usize,
        device: &Device,
    ) -> Result<Self, TaskError> {
        Ok(HostBatch::from_values(examples, x_dim, y_dim)?.upload(device))
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

/// A batch before it goes to a device.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostBatch {
    pub(crate) context: HostPoints,
    pub(crate) target: HostPoints,
    pub(crate) indices: Vec<usize>,
}

/// Padded points of every example. Padding is 0 and masked.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct HostPoints {
    x_dim: usize,
    y_dim: usize,
    /// Points per example after padding.
    padded: usize,
    pub(crate) counts: Vec<usize>,
    x: Vec<f32>,
    y: Vec<f32>,
    mask: Vec<bool>,
}

impl HostPoints {
    pub(crate) fn new(counts: Vec<usize>, x_dim: usize, y_dim: usize) -> Self {
        let batch = counts.len();
        let padded = counts.iter().copied().max().unwrap_or(0);
        let mut mask = vec![false; batch * padded];
        for (row, &count) in mask.chunks_mut(padded.max(1)).zip(&counts) {
            row[count..].fill(true);
        }
        Self {
            x_dim,
            y_dim,
            padded,
            x: vec![0.0; batch * padded * x_dim],
            y: vec![0.0; batch * padded * y_dim],
            mask,
            counts,
        }
    }

    /// The coordinates `[count, x_dim]` and values `[count, y_dim]` of one example.
    pub(crate) fn example(&self, example: usize) -> (&[f32], &[f32]) {
        let (start, end) = self.range(example);
        (
            &self.x[start * self.x_dim..end * self.x_dim],
            &self.y[start * self.y_dim..end * self.y_dim],
        )
    }

    /// [`example`](Self::example), to be filled in.
    pub(crate) fn example_mut(&mut self, example: usize) -> (&mut [f32], &mut [f32]) {
        let (start, end) = self.range(example);
        (
            &mut self.x[start * self.x_dim..end * self.x_dim],
            &mut self.y[start * self.y_dim..end * self.y_dim],
        )
    }

    fn range(&self, example: usize) -> (usize, usize) {
        let start = example * self.padded;
        (start, start + self.counts[example])
    }

    fn into_tensors(self, device: &Device) -> (Tensor<3>, Tensor<3>, Tensor<2, Bool>, Vec<usize>) {
        let (batch, padded) = (self.counts.len(), self.padded);
        (
            Tensor::from_data(TensorData::new(self.x, [batch, padded, self.x_dim]), device),
            Tensor::from_data(TensorData::new(self.y, [batch, padded, self.y_dim]), device),
            Tensor::from_data(TensorData::new(self.mask, [batch, padded]), device),
            self.counts,
        )
    }
}

impl HostBatch {
    pub(crate) fn from_values(
        examples: &[RegressionExample],
        x_dim: usize,
        y_dim: usize,
    ) -> Result<Self, TaskError> {
        assert!(
            x_dim > 0,
            "RegressionBatch::from_values: x_dim: expected at least 1, got 0"
        );
        assert!(
            y_dim > 0,
            "RegressionBatch::from_values: y_dim: expected at least 1, got 0"
        );
        if examples.is_empty() {
            return Err(TaskError::EmptyBatch);
        }
        let (mut contexts, mut targets) = (Vec::new(), Vec::new());
        for (at, example) in examples.iter().enumerate() {
            let place = || format!("example {at}");
            let context = count(
                at,
                ["context_x", "context_y"],
                [&example.context_x, &example.context_y],
                [x_dim, y_dim],
            )?;
            let target = count(
                at,
                ["target_x", "target_y"],
                [&example.target_x, &example.target_y],
                [x_dim, y_dim],
            )?;
            if context == 0 {
                return Err(TaskError::EmptyContext { place: place() });
            }
            if target == 0 {
                return Err(TaskError::NoTargets { place: place() });
            }
            contexts.push(context);
            targets.push(target);
        }
        let mut context = HostPoints::new(contexts, x_dim, y_dim);
        let mut target = HostPoints::new(targets, x_dim, y_dim);
        for (at, example) in examples.iter().enumerate() {
            let (x, y) = context.example_mut(at);
            x.copy_from_slice(&example.context_x);
            y.copy_from_slice(&example.context_y);
            let (x, y) = target.example_mut(at);
            x.copy_from_slice(&example.target_x);
            y.copy_from_slice(&example.target_y);
        }
        Ok(Self {
            context,
            target,
            indices: (0..examples.len()).collect(),
        })
    }

    pub(crate) fn upload(self, device: &Device) -> RegressionBatch {
        let (context_x, context_y, context_mask, context_counts) =
            self.context.into_tensors(device);
        let (target_x, target_y, target_mask, target_counts) = self.target.into_tensors(device);
        RegressionBatch {
            context_x,
            context_y,
            context_mask,
            target_x,
            target_y,
            target_mask,
            context_counts,
            target_counts,
            indices: self.indices,
        }
    }
}

/// The number of points that two lists agree on, after a look for non-finite values.
fn count(
    example: usize,
    names: [&'static str; 2],
    lists: [&[f32]; 2],
    dims: [usize; 2],
) -> Result<usize, TaskError> {
    let [x, y] = lists;
    if !x.len().is_multiple_of(dims[0]) {
        return Err(TaskError::DimensionMismatch {
            example,
            part: names[0],
            expected: format!("a multiple of {}", dims[0]),
            got: x.len(),
        });
    }
    let points = x.len() / dims[0];
    if y.len() != points * dims[1] {
        return Err(TaskError::DimensionMismatch {
            example,
            part: names[1],
            expected: format!("{points} points of {}: {}", dims[1], points * dims[1]),
            got: y.len(),
        });
    }
    for (part, list) in names.into_iter().zip(lists) {
        if let Some(position) = list.iter().position(|value| !value.is_finite()) {
            let value = list[position];
            return Err(TaskError::NonFinite {
                example,
                part,
                position,
                value,
            });
        }
    }
    Ok(points)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(context: usize, targets: usize) -> RegressionExample {
        let list = |len: usize| (0..len).map(|at| at as f32 + 1.0).collect();
        RegressionExample {
            context_x: list(context * 2),
            context_y: list(context),
            target_x: list(targets * 2),
            target_y: list(targets),
        }
    }

    fn error(examples: &[RegressionExample]) -> String {
        HostBatch::from_values(examples, 2, 1)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn shorter_examples_are_padded_with_masked_zeros() {
        let batch = HostBatch::from_values(&[example(3, 1), example(1, 2)], 2, 1).unwrap();
        assert_eq!(batch.context.counts, [3, 1]);
        assert_eq!(batch.context.mask, [false, false, false, false, true, true]);
        assert_eq!(batch.context.y, [1.0, 2.0, 3.0, 1.0, 0.0, 0.0]);
        assert_eq!(batch.context.x[6..], [1.0, 2.0, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(batch.target.mask, [false, true, false, false]);
        assert_eq!(
            batch.target.example(1),
            (&[1.0, 2.0, 3.0, 4.0][..], &[1.0, 2.0][..])
        );
    }

    #[test]
    fn empty_contexts_and_missing_targets_are_refused() {
        assert_eq!(error(&[]), "a batch needs at least one example, got 0");
        assert_eq!(
            error(&[example(1, 1), example(0, 1)]),
            "example 1: the context is empty; at least one point is needed"
        );
        assert_eq!(
            error(&[example(1, 0)]),
            "example 0: there are no targets; at least one point is needed"
        );
    }

    #[test]
    fn dimension_mismatches_are_refused() {
        let mut odd = example(2, 1);
        odd.context_x.pop();
        assert_eq!(
            error(&[odd]),
            "example 0: context_x: expected a multiple of 2 values, got 3"
        );
        let mut short = example(1, 3);
        short.target_y.pop();
        assert_eq!(
            error(&[short]),
            "example 0: target_y: expected 3 points of 1: 3 values, got 2"
        );
    }

    #[test]
    fn non_finite_values_are_refused_in_every_list() {
        let lists: [fn(&mut RegressionExample) -> &mut Vec<f32>; 4] = [
            |example| &mut example.context_x,
            |example| &mut example.context_y,
            |example| &mut example.target_x,
            |example| &mut example.target_y,
        ];
        let names = ["context_x", "context_y", "target_x", "target_y"];
        for (list, name) in lists.into_iter().zip(names) {
            for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut bad = example(2, 2);
                list(&mut bad)[1] = value;
                assert_eq!(
                    error(&[bad]),
                    format!("example 0: {name}[1] is {value}; every value must be finite")
                );
            }
        }
    }
}
