//! What models share as the trainer wants them.

use arbora::rl::train::ParameterGroup;
use burn::module::{ParamGroup, ParamId};
use burn::tensor::{Bool, Tensor};

/// The mean of losses, `[1]` each; `None` of none.
pub fn mean_of(losses: impl Iterator<Item = Tensor<1>>) -> Option<Tensor<1>> {
    let losses: Vec<Tensor<1>> = losses.collect();
    (!losses.is_empty()).then(|| Tensor::cat(losses, 0).mean())
}

/// Parameters that do not decay and learn at a rate of their own, if there are some.
pub fn not_decaying(parameters: Vec<ParamId>, rate: f64) -> Option<ParameterGroup> {
    (!parameters.is_empty()).then(|| ParameterGroup {
        parameters: ParamGroup::from_ids(parameters),
        decays: false,
        rate,
    })
}

/// How many targets are not masked out.
pub fn count_asked(mask: &Tensor<2, Bool>) -> f64 {
    let [rows, columns] = mask.dims();
    let masked = mask.clone().int().sum().into_scalar::<i64>();
    (rows * columns) as f64 - masked as f64
}
