//! Shape checks and the lifting of plain tensors into an autodiff computation.

use burn::tensor::{Bool, Tensor};

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

/// `tensor` without history, in the same autodiff context as `reference`.
///
/// A reward may be computed from values that left the graph. Mixing such a tensor with a tracked
/// one panics inside burn with a message that names neither.
pub(crate) fn detached_like<const D: usize>(tensor: Tensor<D>, reference: &Tensor<D>) -> Tensor<D> {
    if reference.is_autodiff() {
        tensor.autodiff().detach()
    } else {
        tensor.without_autodiff()
    }
}

/// The mask in the same autodiff context as `reference`; nothing masked where there is none.
pub(crate) fn mask_like(mask: Option<Tensor<2, Bool>>, reference: &Tensor<2>) -> Tensor<2, Bool> {
    match mask {
        None => reference.zeros_like().detach().greater_elem(0.5),
        Some(mask) if reference.is_autodiff() => mask.autodiff(),
        Some(mask) => mask.without_autodiff(),
    }
}
