//! The reference bodies: compositions of plain backend operations, and gradients of those.
//!
//! They run on every backend, [`Dispatch`](burn::backend::Dispatch) included, and are the oracle of
//! every kernel.

mod dense_attention;
mod feed_forward;
mod gradient;
mod leaf_attention;
mod tree_build;
mod tree_search;

pub use dense_attention::dense_attention;
pub use feed_forward::feed_forward;
pub use gradient::{
    dense_attention_backward, feed_forward_backward, leaf_attention_backward, tree_build_backward,
    tree_context_backward, tree_policy_backward,
};
pub use leaf_attention::{candidate_keys_backward, leaf_attention};
pub use tree_build::tree_build;
pub use tree_search::tree_search;

/// Below every logit that single precision can tell apart from another, and finite, so that a row
/// without real entries stays free of NaN.
pub(crate) const MASKED_LOGIT: f64 = -1e30;

/// Divisor of a row without real entries. Its inverse is finite, and so are gradients through it.
pub(crate) const SMALLEST_TOTAL: f64 = 1e-30;
