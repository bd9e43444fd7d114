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

use crate::ops::primitive::{Float, Mask};
use burn::backend::Backend;

/// Below every logit that single precision can tell apart from another, and finite, so that a row
/// without real entries stays free of NaN.
pub(crate) const MASKED_LOGIT: f64 = -1e30;

/// Divisor of a row without real entries. Its inverse is finite, and so are gradients through it.
pub(crate) const SMALLEST_TOTAL: f64 = 1e-30;

/// Softmax over the last axis of four of what is not hidden, zeros where everything is; and the logarithm of its denominator.
fn softmax<B: Backend>(
    logits: Float<B>,
    hidden: Option<&Mask<B>>,
) -> (Float<B>, impl FnOnce() -> Float<B> + use<B>) {
    let fill = |pairs: Float<B>, value: f64| match hidden {
        None => pairs,
        Some(hidden) => pairs.fill(hidden.clone(), value),
    };
    let logits = fill(logits, MASKED_LOGIT);
    // The maximum only shifts the exponent: the result does not depend on it, nor does the gradient.
    let greatest = logits.clone().detach().max(3);
    let exponential = fill(logits.sub(greatest.clone()).exp(), 0.0);
    // A query without keys has total 0; any positive divisor leaves it at 0.
    let total = exponential.clone().sum(3).clamp_min(SMALLEST_TOTAL);
    let weights = exponential.div(total.clone());
    (weights, move || total.detach().log().add(greatest))
}
