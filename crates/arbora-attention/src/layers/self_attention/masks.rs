//! What attention masks out.

use crate::functions::check::axes;
use burn::tensor::{Bool, Tensor};

/// What attention masks out. Each kind of attention takes some of these and panics on the others.
#[derive(Clone, Debug, Default)]
pub struct AttentionMasks {
    /// Keys over padding, `[batch, keys]`, `true` = masked out. In self-attention, kinds that route leave out the
    /// queries there too: their attention is 0, so that the layer gives the bias of its output. The other kinds give
    /// these queries ordinary contexts, which are to be ignored.
    pub padding: Option<Tensor<2, Bool>>,
    /// Pairs, `[batch, queries, keys]`, `true` = masked out.
    pub pairs: Option<Tensor<3, Bool>>,
    /// Whether a query sees no key after it. With more keys than queries, the queries are the last
    /// tokens: query `i` stands at `i + keys - queries`.
    pub causal: bool,
}

impl AttentionMasks {
    /// The padding of queries and that of keys.
    pub(super) fn of_rows(self, is_self: bool) -> [Option<Tensor<2, Bool>>; 2] {
        [self.padding.clone().filter(|_| is_self), self.padding]
    }

    #[track_caller]
    pub(super) fn check(&self, batch: usize, queries: usize, keys: usize) {
        let axes = axes!("self_attention", batch, queries, keys);
        if let Some(padding) = &self.padding {
            axes.expect("padding", "batch, keys", &padding.dims());
        }
        if let Some(pairs) = &self.pairs {
            axes.expect("pairs", "batch, queries, keys", &pairs.dims());
        }
        assert!(
            !self.causal || keys >= queries,
            "self_attention: causal: expected at least as many keys as queries ({queries}), got {keys}"
        );
    }

    /// Panics on a mask of pairs, and unless `causal` on a causal one: masks that a kind does not support.
    #[track_caller]
    pub(super) fn only(&self, kind: &str, causal: bool) {
        assert!(
            self.pairs.is_none(),
            "self_attention: pairs: {kind} does not support masks of pairs, got one"
        );
        assert!(
            causal || !self.causal,
            "self_attention: causal: {kind} does not support causal masks, got one"
        );
    }
}
