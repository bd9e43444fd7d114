//! The tensor functions that users call.
//!
//! # Kernels
//!
//! There are kernels for single precision on flex, ndarray, tch on the CPU, and all CubeCL backends; on these for `head_dim`
//! and `value_dim` up to 256, and up to 2^31 - 1 numbers per tensor. Everything else (half, bfloat16 and double precision,
//! wider heads on GPUs, tch on other devices) runs the reference implementation on tensor operations, without a warning.

pub(crate) mod check;
mod dense_attention;
mod feed_forward;
mod leaf_attention;
pub(crate) mod masked_attention;
pub(crate) mod prefix_attention;
mod several_paths;
mod tree_build;
mod tree_coarse;
mod tree_fine;
mod tree_search;

pub use dense_attention::dense_attention;
pub use feed_forward::{FeedForwardWeights, feed_forward};
pub use leaf_attention::{
    CandidateKeys, LeafAttentionInput, LeafAttentionOutput, candidate_keys, leaf_attention,
};
pub use prefix_attention::{prefix_attention, prefix_sums};
pub use tree_build::{BlockWeights, tree_build};
pub use tree_coarse::{
    EmptyNode, NodeIndicators, TreeCoarseOptions, TreeCoarseState, tree_coarse, tree_coarse_relaxed,
};
pub use tree_fine::{EmptyLeaf, TreeFineInput, TreeFineOptions, TreeFineOutput, tree_fine};
pub(crate) use tree_fine::{RoutedRows, WithinLeaves, head_leaves, to_heads, tree_input};
pub use tree_search::{Route, SearchOutput, tree_search};
