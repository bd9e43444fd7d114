//! The `arbora` command. Its library is for its own tests and benchmarks.
//!
//! # Feature flags
//!
//! - `dashboard`: `arbora train --dashboard`, which plots a run in the terminal
//! - `remote`: `arbora serve`, and devices of other processes
//! - `flex` (default), `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`, `fusion`: burn's
//!   backend features of the same names

// burn 0.22 marks ndarray and libtorch as deprecated in favour of flex. They are supported here for as long as the
// pinned burn carries them, and lint levels do not reach dependents.
#![cfg_attr(any(feature = "ndarray", feature = "tch"), allow(deprecated))]
// Both panic where nobody reads any more: see `message::tell` and `cli::show`.
#![deny(clippy::print_stderr, clippy::print_stdout)]

mod atomic_file;
pub mod backend;
mod catch_panic;
mod cli;
mod experiment;
mod families;
mod folder_lock;
mod grow;
mod message;
pub mod picture;
mod placement;
mod progress;
#[cfg_attr(not(feature = "remote"), path = "without_remote.rs")]
pub mod remote;
mod run;
mod settings;
mod statistic;
mod table;
#[doc(hidden)]
pub mod testing;
mod threads;
// For its tests: CI has the feature.
#[cfg(all(test, feature = "remote"))]
#[allow(dead_code)]
mod without_remote;

pub use cli::main;
