//! Tree-fine attention as a kind of self-attention.

use super::cache::{FineCache, expect_trees};
use super::kind::{Attended, CachedRows, HeadSizes, Projected};
use super::router::{RoutedCall, Router, RouterConfig};
use crate::functions::{
    EmptyLeaf, LeafAttentionInput, RoutedRows, TreeFineInput, TreeFineOptions, WithinLeaves,
    head_leaves, tree_fine,
};
use crate::ops::Dropout;
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use derive_setters::Setters;
use serde::{Deserialize, Serialize};

/// Configuration of [`TreeFine`].
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize, Setters)]
#[setters(prefix = "with_")]
#[serde(default, deny_unknown_fields)]
pub struct TreeFineConfig {
    /// The trees, and how they learn.
    pub router: RouterConfig,
    /// Output of a query whose leaf has no visible key.
    pub empty_leaf: EmptyLeaf,
    /// Rate of dropout of the weights within a leaf, in `0.0..1.0`. It drops on autodiff devices alone,
    /// and there [`SelfAttentionInput::with_seed`](super::SelfAttentionInput::with_seed) has to be
    /// called.
    pub dropout: f64,
}

impl Config for TreeFineConfig {}

impl TreeFineConfig {
    /// The defaults with the given branching factors, root first.
    pub fn new(branching: impl Into<Vec<usize>>) -> Self {
        Self {
            router: RouterConfig::new(branching),
            ..Self::default()
        }
    }

    #[track_caller]
    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> TreeFine {
        TreeFine {
            router: self.router.init(sizes, device),
            empty_leaf: self.empty_leaf,
            dropout: self.dropout,
        }
    }
}

/// Attention of every query to the keys of its own leaf: TF-Attention of
/// [Treeformer](https://arxiv.org/abs/2208.09015), section 3.1. See [`tree_fine`](crate::functions::tree_fine()).
#[derive(Module, Debug)]
pub struct TreeFine {
    /// The trees.
    pub router: Router,
    #[module(skip)]
    empty_leaf: EmptyLeaf,
    #[module(skip)]
    dropout: f64,
}

impl TreeFine {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        input.masks.only("tree-fine", true);
        let causal = input.masks.causal;
        let (queries, keys) = (input.query.dims()[1], input.key.dims()[1]);
        let [query_padding, key_padding] = input.masks.of_rows(input.is_self);
        let is_training = input.query.device().is_autodiff();
        let surrogate = input.surrogate.unwrap_or(self.router.surrogate);
        let options = TreeFineOptions {
            empty_leaf: self.empty_leaf,
            surrogate,
            causal: causal.then(|| keys - queries),
            scale: None,
            dropout: self.dropout(is_training, input.seed),
        };
        let rows = (input.query.clone(), input.key.clone());
        let found = tree_fine(
            TreeFineInput {
                query: input.query,
                key: input.key,
                value: input.value,
                query_padding: query_padding.clone(),
                key_padding: key_padding.clone(),
                is_self: input.is_self,
            },
            &self.router.query,
            &self.router.key_tree(),
            options,
        );
        let report = self.router.report(RoutedCall {
            rows,
            masks: [query_padding, key_padding],
            routes: (found.query, found.key),
            lse: Some(found.lse),
            surrogate: &surrogate,
            causal: options.causal,
            seed: input.seed,
        });
        Attended {
            context: found.context,
            routing: Some(report),
        }
    }

    /// Attention of the next tokens to those of the cache and themselves, `[batch, new, heads,
    /// head_dim]`.
    #[track_caller]
    pub(super) fn attend_cached(&self, rows: CachedRows, cache: &mut FineCache) -> Tensor<4> {
        let shape = self.router.query.shape();
        expect_trees("tree_fine", cache.shape(), shape);
        let (query, key) = self
            .router
            .route(rows.query.clone(), rows.key.clone(), None, None);
        let query_leaf = head_leaves(&query, rows.query.dims()[2]);
        let key_leaf = head_leaves(&key, rows.key.dims()[2]);
        let flat = |leaves: Tensor<3, Int>| leaves.flatten::<1>(0, 2);
        // One transfer for both.
        let both = Tensor::cat(vec![flat(query_leaf.clone()), flat(key_leaf)], 0).into_data();
        let leaves: Vec<i64> = both.iter::<i64>().collect();
        let (asked, fresh) = leaves.split_at(query_leaf.dims().iter().product());
        let needs_ancestors = matches!(
            self.empty_leaf,
            EmptyLeaf::AncestorMean | EmptyLeaf::AncestorAttend
        );
        let gathered = cache.gather(&rows, asked, fresh, needs_ancestors);
        cache.append(rows.key, rows.value.clone(), fresh);
        let options = TreeFineOptions {
            empty_leaf: self.empty_leaf,
            // Keys of the past come first, in whatever order: every query of the call is after them.
            causal: Some(gathered.before),
            ..TreeFineOptions::default()
        };
        let routed_rows = RoutedRows {
            rows: LeafAttentionInput {
                query: rows.query,
                key: gathered.key,
                value: gathered.value,
                query_leaf,
                key_leaf: gathered.key_leaf,
                key_bias: None,
            },
            own_value: Some(rows.value),
        };
        WithinLeaves::new(shape, &options)
            .attend(routed_rows)
            .context
    }

    #[track_caller]
    fn dropout(&self, is_training: bool, seed: Option<u64>) -> Option<Dropout> {
        let rate = self.dropout;
        if rate == 0.0 || !is_training {
            return None;
        }
        let seed = seed.unwrap_or_else(|| {
            panic!(
                "tree_fine: seed: dropout of {rate} on an autodiff device needs one per call, see with_seed"
            )
        });
        Some(Dropout { rate, seed })
    }
}
