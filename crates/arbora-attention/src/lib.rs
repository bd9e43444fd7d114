//! Attention over trees for burn: operators declared on every backend, the tensor functions that call
//! them, and layers.
//!
//! Depend on this crate to put tree cross attention, or self-attention within the leaves of learned
//! trees ([`SelfAttention`], [`tree_fine()`](functions::tree_fine())), into a model of your own. The trees come from
//! [`arbora_tree`]; how the discrete route learns is in `arbora-rl`, which this crate does not know.
//!
//! - [`ops`]: [`TreeAttentionOps`](ops::TreeAttentionOps), the operators as a backend extension. Each has a default body in
//!   plain backend operations. That body is the reference and the oracle of the tests; a backend
//!   overrides it with a kernel.
//! - [`functions`]: the tensor functions that users call.
//! - [`baselines`]: published ways of attending that trees are compared with.
//! - [`layers`]: modules, each with a config, `init` and `forward`-like methods.
//! - [`store`]: saving and loading the weights of any module, which refuses those of another one.
//! - [`flops`]: counting of work.
//! - [`cpu_kernels()`]: the vector instructions and threads of the kernels on the CPU.
//!
//! # Feature flags
//!
//! `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu` and `fusion`
//! are burn's backend features of the same names; none is on by default. Enable a backend on this
//! crate and not only on burn: a backend that burn has and this crate lacks compiles, and panics when
//! an operator is called. The GPU features imply `fusion`.
//!
//! `remote`: tensors on devices of another process, where operators run as compositions of burn's operations.
//! `count-projections`: what [`flops`] counts in tests.

// burn 0.22 marks ndarray and libtorch as deprecated in favour of flex. They are supported here for
// as long as the pinned burn carries them, and lint levels do not reach dependents.
#![cfg_attr(any(feature = "ndarray", feature = "tch"), allow(deprecated))]

mod backends;
pub mod flops;
pub mod functions;
pub mod layers;
pub mod ops;
pub mod store;

pub use arbora_tree::ConfigError;
pub use arbora_tree::routing::{Growth, LeafCounts, Routing, RoutingTree, Surrogate};
pub use backends::{CpuKernels, cpu_kernels};
pub use functions::{EmptyLeaf, EmptyNode, Route, SearchOutput};
pub use layers::*;
pub use ops::{Dropout, GhostNodes};
