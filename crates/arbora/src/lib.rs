//! Attention over trees for burn: the libraries under one name, and the `arbora` command.
//!
//! Embed single crates where you can; this facade is for programs that use several.
//!
//! - [`tree`][]: shapes, leaf orders and node tensors
//! - [`attention`][]: operators for every backend, and layers
//! - [`rl`][]: policy gradients and the trainer
//! - [`models`][]: ReTreever and the models it is compared with
//! - [`tasks`][]: data
//! - [`memory`]: what a program that trains asks of its allocator
//!
//! The modules behind the feature `cli` make the command line: its configuration, its runs and its
//! pictures.
//!
//! # Feature flags
//!
//! - `cli` (default): the `arbora` command and what it is made of
//! - `dashboard`: `arbora train --dashboard`, which plots a run in the terminal
//! - `flex` (default), `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`,
//!   `fusion`: burn's backend features of the same names
//!
//! With `default-features = false` and one backend this crate is the libraries alone.

// burn 0.22 marks ndarray and libtorch as deprecated in favour of flex. They are supported here for
// as long as the pinned burn carries them, and lint levels do not reach dependents.
#![cfg_attr(any(feature = "ndarray", feature = "tch"), allow(deprecated))]

pub use arbora_attention as attention;
pub use arbora_models as models;
pub use arbora_rl as rl;
pub use arbora_tasks as tasks;
pub use arbora_tree as tree;

pub mod memory;

#[cfg(feature = "cli")]
pub mod backend;
#[cfg(feature = "cli")]
pub mod cli;
#[cfg(feature = "cli")]
pub mod config;
#[cfg(feature = "cli")]
pub mod grow;
#[cfg(feature = "cli")]
pub mod learner;
#[cfg(feature = "cli")]
pub mod picture;
#[cfg(feature = "cli")]
pub mod placement;
#[cfg(feature = "cli")]
pub mod problem;
#[cfg(feature = "cli")]
pub mod progress;
#[cfg(feature = "cli")]
mod quiet;
#[cfg(feature = "cli")]
pub mod remote;
#[cfg(feature = "cli")]
pub mod report;
#[cfg(feature = "cli")]
pub mod run;
#[cfg(feature = "cli")]
pub mod task;
#[cfg(feature = "cli")]
mod whole;
