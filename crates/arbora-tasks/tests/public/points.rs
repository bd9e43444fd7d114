//! Batches of regression problems as numbers on the host.

use arbora_tasks::RegressionBatch;
use arbora_testing::values;
use burn::tensor::{Bool, Tensor};

/// A batch on the host, without its padding.
#[derive(Debug, PartialEq)]
pub struct HostBatch {
    pub context: HostPoints,
    pub target: HostPoints,
    pub indices: Vec<usize>,
}

#[derive(Debug, PartialEq)]
pub struct HostPoints {
    pub counts: Vec<usize>,
    pub mask: Vec<bool>,
    /// Of each example, coordinates and values.
    examples: Vec<(Vec<f32>, Vec<f32>)>,
}

impl HostPoints {
    fn new(x: Tensor<3>, y: Tensor<3>, mask: Tensor<2, Bool>, counts: Vec<usize>) -> Self {
        let rows = |tensor: Tensor<3>| {
            let [_, points, dim] = tensor.dims();
            let values = values(tensor);
            let row =
                |(at, count): (usize, &usize)| values[at * points * dim..][..count * dim].to_vec();
            counts.iter().enumerate().map(row).collect::<Vec<_>>()
        };
        Self {
            examples: rows(x).into_iter().zip(rows(y)).collect(),
            mask: mask.into_data().iter::<bool>().collect(),
            counts,
        }
    }

    pub fn example(&self, at: usize) -> (&[f32], &[f32]) {
        let (x, y) = &self.examples[at];
        (x, y)
    }
}

pub fn host(batch: RegressionBatch) -> HostBatch {
    HostBatch {
        context: HostPoints::new(
            batch.context_x,
            batch.context_y,
            batch.context_mask,
            batch.context_counts,
        ),
        target: HostPoints::new(
            batch.target_x,
            batch.target_y,
            batch.target_mask,
            batch.target_counts,
        ),
        indices: batch.indices,
    }
}
