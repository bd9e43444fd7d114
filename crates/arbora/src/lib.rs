//! Attention over trees for burn: the libraries under one name.
//!
//! Embed single crates where you can; this facade is for programs that use several.
//!
//! - [`tree`][]: shapes, leaf orders, node tensors, and decision trees that route tokens
//! - [`attention`][]: operators for every backend, and layers
//! - [`rl`][]: policy gradients and the trainer
//! - [`models`][]: ReTreever, Treeformer, TreeCoders, and the models they are compared with
//! - [`tasks`][]: data
//!
//! The command `arbora` is the crate `arbora-cli`.
//!
//! # Feature flags
//!
//! - `train`: the trainer of [`rl`]
//! - `sample`: the bundled data of [`tasks`]
//! - `remote`: nodes of a tree on devices of other processes
//! - `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`, `fusion`: burn's backend
//!   features of the same names. None is on by default.

pub use arbora_attention as attention;
pub use arbora_models as models;
pub use arbora_rl as rl;
pub use arbora_tasks as tasks;
pub use arbora_tree as tree;
