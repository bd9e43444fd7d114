//! Trees over tokens: what a tree is, in which order tokens become its leaves, and the tensors of
//! its nodes.
//!
//! Depend on this crate alone to order tokens along a space-filling curve or a k-d tree, or to
//! build level-order summaries of a sequence. `arbora-attention` searches the trees built here.
//!
//! - [`shape`]: index arithmetic on integers, no tensors: [`TokenTreeShape`]
//!   (a balanced tree over N tokens in two layouts) and [`CompleteTree`] (a
//!   branching factor per level).
//! - `order`: the permutation that makes tokens leaves: given, by axis, k-d, Morton, ball tree,
//!   along a random direction, by clusters of encodings, random.
//! - `token`: `TokenTree`, one tensor `[batch, nodes, dim]` in level order with its mask, built
//!   bottom-up by an `Aggregator`, which tokens can be appended to and replaced in.
//! - `routing`: `RoutingTree`, decision trees that send each token to a leaf, the differentiable
//!   scores that stand in for their decisions, statistics of balance, and growth by a level.
//!
//! # Feature flags
//!
//! - `tensor` (default): `order`, `token` and `routing`, which need burn. Without it the crate is
//!   [`shape`] alone and `no_std` (it needs `alloc`).
//! - `flex`, `ndarray`, `tch`, `wgpu`, `vulkan`, `webgpu`, `metal`, `cuda`, `rocm`, `cpu`,
//!   `fusion`: burn's backend features of the same names. None is on by default.

#![cfg_attr(not(feature = "tensor"), no_std)]

extern crate alloc;

#[cfg(feature = "tensor")]
mod error;
#[cfg(feature = "tensor")]
pub mod order;
#[cfg(feature = "tensor")]
pub mod routing;
pub mod shape;
#[cfg(feature = "tensor")]
#[doc(hidden)]
pub mod tensors;
#[cfg(feature = "tensor")]
pub mod token;

#[cfg(feature = "tensor")]
pub use error::ConfigError;
#[cfg(feature = "tensor")]
pub use order::{OrderInput, TokenOrder};
#[cfg(feature = "tensor")]
pub use routing::{
    Candidates, Growth, LeafCounts, NO_LEAF, Routing, RoutingTree, RoutingTreeConfig, Surrogate,
};
pub use shape::{CompleteTree, Layout, TokenTreeShape};
#[cfg(feature = "tensor")]
pub use token::{Aggregator, Changed, MeanAggregator, StreamError, TokenTree};
