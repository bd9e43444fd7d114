//! Checks and tensors that all modules share.

use burn::tensor::{DType, Device, Int, Tensor, TensorCreationOptions, TensorData};
use core::fmt::{Debug, Display};

/// # Panics
/// If the two differ, with what they are of.
#[track_caller]
pub(crate) fn expect_equal<T: PartialEq + Debug>(of: impl Display, expected: T, got: T) {
    assert!(got == expected, "{of}: expected {expected:?}, got {got:?}");
}

/// # Panics
/// If there are none of what is counted.
#[track_caller]
pub(crate) fn expect_some(what: impl Display, got: usize) {
    assert!(got > 0, "{what}: expected at least 1, got 0");
}

/// `values` as an integer tensor of the device's own integer type.
pub(crate) fn int_tensor<const D: usize>(
    values: Vec<i64>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    Tensor::from_data(TensorData::new(values, shape), device)
}

/// `tensor` as a constant beside `reference`: on its device, of its type, and recording as it does. Two strategies of gradient
/// checkpointing cannot meet in an operation, and [`Tensor::autodiff`] knows burn's default alone.
pub fn constant_like<const D: usize, const E: usize>(
    tensor: Tensor<D>,
    reference: &Tensor<E>,
) -> Tensor<D> {
    let (device, dtype) = (reference.device(), reference.dtype());
    let tensor = tensor.without_autodiff().to_device(&device).cast(dtype);
    if device.is_autodiff() {
        (tensor * Tensor::ones([1; D], (&device, dtype))).detach()
    } else {
        tensor
    }
}

/// In single precision, if it was less.
pub fn at_least_single<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor,
    }
}

/// How counts, scores and balance biases are made: in single precision, whatever the device makes by default.
pub fn single(device: &Device) -> TensorCreationOptions {
    (device, DType::F32).into()
}

/// 0, 1, 2, … along the last axis of a tensor of the given shape.
pub(crate) fn counting<const D: usize>(dims: [usize; D], device: &Device) -> Tensor<D, Int> {
    let mut row = [1; D];
    row[D - 1] = dims[D - 1];
    Tensor::<1, Int>::arange(0..dims[D - 1] as i64, device)
        .reshape(row)
        .expand(dims)
}
