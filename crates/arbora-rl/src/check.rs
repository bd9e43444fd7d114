//! Shape checks, and constants beside other tensors.

use burn::tensor::{Bool, DType, Tensor};

/// Panics if an axis of `[rows, samples]` is 0: there is nothing to learn from, and not every backend takes tensors of nothing.
#[track_caller]
pub(crate) fn some_samples(operation: &str, tensor: &str, [rows, samples]: [usize; 2]) {
    for (axis, (name, got)) in [("rows", rows), ("samples", samples)]
        .into_iter()
        .enumerate()
    {
        assert!(
            got > 0,
            "{operation}: {tensor}: axis {axis} ({name}): expected at least 1, got 0"
        );
    }
}

/// Panics unless `got` equals `expected` at `[rows, samples]`, naming the operation, the tensor and the axis.
#[track_caller]
pub(crate) fn same_shape(operation: &str, tensor: &str, got: [usize; 2], expected: [usize; 2]) {
    same_axes(operation, tensor, ["rows", "samples"], &got, &expected);
}

/// Panics unless `got` equals `expected` at the named axes.
#[track_caller]
pub(crate) fn same_axes<const D: usize>(
    operation: &str,
    tensor: &str,
    names: [&str; D],
    got: &[usize],
    expected: &[usize],
) {
    for (axis, name) in names.into_iter().enumerate() {
        assert_eq!(
            got[axis], expected[axis],
            "{operation}: {tensor}: axis {axis} ({name}): expected {}, got {}",
            expected[axis], got[axis]
        );
    }
}

/// `tensor` without history, as a constant beside `reference`: on its device, of its type, and recording as it does.
///
/// A reward may be computed from values that left the graph, and two strategies of gradient checkpointing cannot meet in an
/// operation: [`Tensor::autodiff`] knows burn's default alone.
pub(crate) fn constant_like<const D: usize, const E: usize>(
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

/// The mask on the device of `reference`; nothing masked where there is none.
pub(crate) fn mask_like(mask: Option<Tensor<2, Bool>>, reference: &Tensor<2>) -> Tensor<2, Bool> {
    match mask {
        None => reference.zeros_like().detach().greater_elem(0.5),
        Some(mask) => mask.without_autodiff().to_device(&reference.device()),
    }
}

/// In single precision, if it was less.
pub(crate) fn at_least_single<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    match tensor.dtype() {
        DType::F16 | DType::BF16 => tensor.cast(DType::F32),
        _ => tensor,
    }
}
