//! Which backends implement the operators, and how.
//!
//! Every backend uses the reference body so far. A backend that gets a kernel overrides the method in
//! its own module here.

mod autodiff;
#[cfg(feature = "cube-kernels")]
mod cube;

#[allow(unused_imports)] // No backend, no use.
use crate::ops::TreeAttentionOps;

#[cfg(feature = "flex")]
impl TreeAttentionOps for burn::backend::Flex {}

#[cfg(feature = "ndarray")]
impl TreeAttentionOps for burn::backend::NdArray {}

#[cfg(feature = "tch")]
impl TreeAttentionOps for burn::backend::LibTorch {}
