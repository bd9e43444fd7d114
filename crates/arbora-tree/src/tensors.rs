//! Checks and tensors that all modules share.

use burn::tensor::{Device, Int, Tensor, TensorData};
use core::fmt::{Debug, Display};

/// # Panics
/// If the two differ, with what they are of.
#[track_caller]
pub(crate) fn expect_equal<T: PartialEq + Debug>(of: impl Display, expected: T, got: T) {
    assert!(got == expected, "{of}: expected {expected:?}, got {got:?}");
}

/// `values` as an integer tensor of the device's own integer type.
pub(crate) fn int_tensor<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// 0, 1, 2, … along the last axis of a tensor of the given shape.
pub(crate) fn counting<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D, Int> {
    let mut row = [1; D];
    row[D - 1] = dims[D - 1];
    Tensor::<1, Int>::arange(0..dims[D - 1] as i64, device)
        .reshape(row)
        .expand(dims)
}
