//! Which backends implement the operators, and how.
//!
//! `cpu` serves all backends whose tensors lie in this process's memory, `cube` all CubeCL runtimes;
//! `autodiff` adds the gradients. What a backend has no kernel for falls to the reference body.

mod autodiff;
#[cfg(feature = "cpu-kernels")]
mod cpu;
#[cfg(feature = "cube-kernels")]
mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
#[cfg(feature = "remote")]
mod remote;
#[cfg(feature = "tch")]
mod tch;
