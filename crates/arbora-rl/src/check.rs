//! Shape checks and the lifting of plain tensors into an autodiff computation.

use burn::tensor::{Bool, Tensor};

const AXES: [&str; 2] = ["rows", "samples"];

/// Panics unless `got` equals `expected`, naming the operation, the tensor and the axis.
#[track_caller]
pub(crate) fn same_shape(operation: &str, tensor: &str, got: [usize; 2], expected: [usize; 2]) {
    for axis in 0..2 {
        assert_eq!(
            got[axis], expected[axis],
            "{operation}: {tensor}: axis {axis} ({}): expected {}, got {}",
            AXES[axis], expected[axis], got[axis]
        );
    }
}

/// `tensor` without history, in the same autodiff context as `reference`.
///
/// A reward may be computed from values that left the graph. Mixing such a tensor with a tracked
/// one panics inside burn with a message that names neither.
pub(crate) fn detached_like<const D: usize>(tensor: Tensor<D>, reference: &Tensor<D>) -> Tensor<D> {
    match (reference.is_autodiff(), tensor.is_autodiff()) {
        (true, false) => tensor.autodiff(),
        (true, true) => tensor.detach(),
        (false, true) => tensor.inner(),
        (false, false) => tensor,
    }
}

/// The mask in the same autodiff context as `reference`; nothing masked where there is none.
pub(crate) fn mask_like(mask: Option<Tensor<2, Bool>>, reference: &Tensor<2>) -> Tensor<2, Bool> {
    match mask {
        None => reference.zeros_like().detach().greater_elem(0.5),
        Some(mask) => match (reference.is_autodiff(), mask.is_autodiff()) {
            (true, false) => mask.autodiff(),
            (false, true) => mask.inner(),
            _ => mask,
        },
    }
}
