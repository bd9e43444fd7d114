//! Layers with deeper trees, grown from those of a trained layer.

use super::SelfAttention;
use super::kind::AttentionKind;
use super::router::Router;
use crate::functions::check::axes;
use crate::functions::tree_input;
use arbora_tree::routing::{Growth, RoutingTree};
use arbora_tree::tensors::constant_like;
use burn::module::{Module, Param};
use burn::tensor::Tensor;

impl SelfAttention {
    /// The layer with one more level of `branching` children below the leaves of its trees: what bootstrapping
    /// (Treeformer, arXiv 2208.09015, section 3.3, algorithm 1) does between its stages. Projections and the other levels
    /// keep their parameters and their ids.
    ///
    /// With [`Growth::Preserve`] the layer computes the same as before: attention within leaves, because all tokens of a
    /// leaf go to the same new leaf, and tree-coarse, because the new depth starts with the weight 0. With other [`Growth`] the
    /// weight of a new depth starts with 1 / (height + 1), as in a new layer. The weights of depths become a new parameter: what an
    /// optimiser holds for the old one does not fit it. What is frozen stays so: a new level by the level above it, the first
    /// level of a tree by the projection of queries.
    ///
    /// [`Growth::MedianSplit`] takes tokens here, `[batch, tokens, 1, d_model]`, which the layer projects: shared
    /// trees split queries and keys together, separate trees their own.
    ///
    /// # Panics
    /// If the kind has no trees, `branching` is below 2, or samples are not as wide as tokens.
    #[must_use]
    #[track_caller]
    pub fn grow(self, branching: usize, growth: &Growth) -> Self {
        let samples = match growth {
            Growth::MedianSplit { samples } => Some(self.samples(samples.clone())),
            _ => None,
        };
        let learns = self.query.weight.is_require_grad();
        let kind = match self.kind {
            AttentionKind::TreeFine(mut fine) => {
                fine.router = grown(fine.router, learns, branching, growth, samples);
                AttentionKind::TreeFine(fine)
            }
            AttentionKind::TreeCoarse(mut coarse) => {
                coarse.router = grown(coarse.router, learns, branching, growth, samples);
                let alpha = Param::from_tensor(with_new_depth(coarse.alpha.val(), growth));
                coarse.alpha = alpha.set_require_grad(coarse.alpha.is_require_grad());
                AttentionKind::TreeCoarse(coarse)
            }
            kind => panic!(
                "self_attention: grow: expected a kind with trees, got {}",
                kind.name()
            ),
        };
        Self { kind, ..self }
    }

    /// Samples `[batch, tokens, 1, d_model]` as projected queries and keys by head.
    #[track_caller]
    fn samples(&self, samples: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, tokens, ..] = samples.dims();
        let d_model = self.sizes.d_model();
        axes!("self_attention", batch, tokens, d_model)
            .with("1", 1)
            .expect("samples", "batch, tokens, 1, d_model", &samples.dims());
        let tokens = samples.reshape([batch, tokens, d_model]);
        (
            self.by_head(self.query.forward(tokens.clone()), self.sizes.heads),
            self.by_head(self.key.forward(tokens), self.sizes.kv_heads),
        )
    }
}

#[track_caller]
fn grown(
    router: Router,
    learns: bool,
    branching: usize,
    growth: &Growth,
    samples: Option<(Tensor<4>, Tensor<4>)>,
) -> Router {
    let (of_queries, of_keys) = match samples {
        None => (growth.clone(), growth_of_keys(growth)),
        Some((query, key)) => {
            let key = tree_input(key, &router.key_tree());
            let query = tree_input(query, &router.query);
            // Trees that queries and keys share are split by both.
            let query = match router.key {
                None => Tensor::cat(vec![beside(query, key.dims()[2]), key.clone()], 1),
                Some(_) => query,
            };
            (
                Growth::MedianSplit { samples: query },
                Growth::MedianSplit { samples: key },
            )
        }
    };
    let grow = |tree: RoutingTree, growth: &Growth| {
        let is_first = tree.height() == 0;
        let grown = tree.grow(branching, growth);
        if is_first && !learns {
            grown.no_grad()
        } else {
            grown
        }
    };
    Router {
        query: grow(router.query, &of_queries),
        key: router.key.map(|tree| grow(tree, &of_keys)),
        ..router
    }
}

/// Query heads that share a key head as further tokens: `[batch, tokens, heads, width]` ->
/// `[batch, tokens · heads / kv_heads, kv_heads, width]`.
fn beside(query: Tensor<4>, kv_heads: usize) -> Tensor<4> {
    let [batch, tokens, heads, width] = query.dims();
    let group = heads / kv_heads;
    query
        .reshape([batch, tokens, kv_heads, group, width])
        .swap_dims(2, 3)
        .reshape([batch, tokens * group, kv_heads, width])
}

/// The same growth with a seed of its own for the trees of keys.
fn growth_of_keys(growth: &Growth) -> Growth {
    let mut growth = growth.clone();
    if let Growth::Random { seed } | Growth::Preserve { seed, .. } = &mut growth {
        *seed = Router::seed_of_keys(*seed);
    }
    growth
}

/// Weights of depths with one more column, on the device of the old ones.
fn with_new_depth(old: Tensor<2>, growth: &Growth) -> Tensor<2> {
    let alpha = old.clone().without_autodiff();
    let [rows, depths] = alpha.dims();
    let first = match growth {
        Growth::Preserve { .. } => 0.0,
        _ => (depths as f64 + 1.0).recip(),
    };
    let new = Tensor::full([rows, 1], first, (&alpha.device(), alpha.dtype()));
    constant_like(Tensor::cat(vec![alpha, new], 1), &old)
}
