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

/// How the kernels on the CPU run in this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuKernels {
    /// The vector instructions that they pick on this processor: `AVX-512`, `AVX2` or `portable`, those that every
    /// processor of its kind has.
    pub instructions: &'static str,
    /// The threads that they share, which are rayon's.
    pub threads: usize,
}

/// How the kernels on the CPU run in this process, unless no backend compiled in has any.
pub fn cpu_kernels() -> Option<CpuKernels> {
    #[cfg(feature = "cpu-kernels")]
    return Some(CpuKernels {
        instructions: cpu::instructions(),
        threads: rayon::current_num_threads(),
    });
    #[cfg(not(feature = "cpu-kernels"))]
    None
}
