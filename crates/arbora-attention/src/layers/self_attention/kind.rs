use super::cache::{CacheState, DenseCache, FineCache};
use super::router::RoutingReport;
use super::tree_fine::{TreeFine, TreeFineConfig};
use super::{AttentionMasks, dense};
use arbora_tree::routing::Surrogate;
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use serde::{Deserialize, Serialize};

/// How queries attend, and with which settings.
#[derive(Clone, Debug, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttentionKindConfig {
    /// Every query to every key.
    #[default]
    Dense,
    /// Every query to the keys of its own leaf.
    TreeFine(TreeFineConfig),
}

/// How queries attend.
// A layer has one: its size does not matter, and boxes would show in every match.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum Kind {
    /// Every query to every key. Takes every mask.
    Dense(dense::Dense),
    /// Every query to the keys of its own leaf: TF-Attention. Takes padding and the causal mask.
    TreeFine(TreeFine),
}

/// Heads and their width.
#[derive(Clone, Copy, Debug)]
pub struct HeadSizes {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Numbers per head of a query, a key and a value.
    pub head_dim: usize,
}

/// What a kind attends over.
pub(super) struct Projected {
    /// `[batch, queries, heads, head_dim]`
    pub query: Tensor<4>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub key: Tensor<4>,
    /// `[batch, keys, kv_heads, head_dim]`
    pub value: Tensor<4>,
    pub masks: AttentionMasks,
    /// Whether queries and keys are the same tokens.
    pub is_self: bool,
    /// What the gradient of a route is, if this call says it.
    pub surrogate: Option<Surrogate>,
    /// Where the randomness of this call comes from.
    pub seed: Option<u64>,
}

/// The next tokens of an incremental call, projected.
pub(super) struct CachedRows {
    /// `[batch, new, heads, head_dim]`
    pub query: Tensor<4>,
    /// `[batch, new, kv_heads, head_dim]`
    pub key: Tensor<4>,
    /// `[batch, new, kv_heads, head_dim]`
    pub value: Tensor<4>,
}

/// What a kind found.
pub(super) struct Attended {
    /// `[batch, queries, heads, head_dim]`
    pub context: Tensor<4>,
    /// Where rows went, for kinds that route.
    pub routing: Option<RoutingReport>,
}

impl AttentionKindConfig {
    #[track_caller]
    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> Kind {
        match self {
            Self::Dense => Kind::Dense(dense::Dense {}),
            Self::TreeFine(config) => Kind::TreeFine(config.init(sizes, device)),
        }
    }
}

impl Kind {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        match self {
            Self::Dense(dense) => dense.attend(input),
            Self::TreeFine(tree) => tree.attend(input),
        }
    }

    /// What an incremental call starts with.
    pub(super) fn cache(&self, sizes: HeadSizes, batch: usize, device: &Device) -> CacheState {
        match self {
            Self::Dense(_) => CacheState::Dense(DenseCache::default()),
            Self::TreeFine(tree) => {
                let shape = tree.router.query.shape();
                CacheState::TreeFine(FineCache::new(sizes, shape, batch, device))
            }
        }
    }

    /// As configurations name it.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::TreeFine(_) => "tree-fine",
        }
    }
}
