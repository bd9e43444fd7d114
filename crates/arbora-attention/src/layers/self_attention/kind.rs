//! The kinds of self-attention, and what a layer asks of each.

use super::baselines::{BigBird, BigBirdConfig};
use super::baselines::{Linformer, LinformerConfig};
use super::baselines::{Performer, PerformerConfig};
use super::cache::{CacheState, FineCache};
use super::router::RoutingReport;
use super::tree_coarse::{TreeCoarse, TreeCoarseConfig};
use super::tree_fine::{TreeFine, TreeFineConfig};
use super::{AttentionMasks, dense};
use crate::functions::TreeCoarseState;
use arbora_tree::ConfigError;
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
    /// Every query to learned mixtures of keys.
    Linformer(LinformerConfig),
    /// Blocks of queries to a window, to random blocks and to global ones.
    BigBird(BigBirdConfig),
    /// An estimate of attention to every key from random features.
    Performer(PerformerConfig),
    /// Every query to the keys of its own leaf.
    TreeFine(TreeFineConfig),
    /// The mean of values in each node on a query's path.
    TreeCoarse(TreeCoarseConfig),
}

/// How queries attend.
// A layer has one: its size does not matter, and boxes would show in every match.
#[allow(clippy::large_enum_variant)]
#[derive(Module, Debug)]
pub enum AttentionKind {
    /// Every query to every key. Supports every mask.
    Dense(dense::Dense),
    /// Every query to learned mixtures of keys. Supports padding masks.
    Linformer(Linformer),
    /// Blocks of queries to a window, to random blocks and to global ones. Supports padding masks.
    BigBird(BigBird),
    /// An estimate of attention to every key from random features. Supports padding and causal masks.
    Performer(Performer),
    /// Every query to the keys of its own leaf: TF-Attention. Supports padding and causal masks.
    TreeFine(TreeFine),
    /// The mean of values in each node on a query's path: TC-Attention. Supports padding and causal masks.
    TreeCoarse(TreeCoarse),
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

impl HeadSizes {
    /// Width of all query heads together, which is that of tokens.
    pub(super) fn d_model(&self) -> usize {
        self.heads * self.head_dim
    }
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
    /// The settings of a layer, made from those of a model: kinds that draw random numbers draw others in every
    /// layer.
    #[must_use]
    pub fn for_layer(&self, layer: usize) -> Self {
        let layer = layer as u64;
        let mut kind = self.clone();
        match &mut kind {
            Self::Dense | Self::Linformer(_) => {}
            Self::BigBird(big_bird) => big_bird.layer = layer,
            Self::Performer(performer) => performer.layer = layer,
            Self::TreeFine(TreeFineConfig { router, .. })
            | Self::TreeCoarse(TreeCoarseConfig { router, .. }) => {
                // An odd factor, so that no two layers share a seed.
                let step = layer.wrapping_mul(0xd134_2543_de82_ef95);
                router.seed = router.seed.wrapping_add(step);
            }
        }
        kind
    }

    #[track_caller]
    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> AttentionKind {
        ConfigError::expect_ok("self_attention", self.check(sizes.heads, sizes.kv_heads));
        match self {
            Self::Dense => AttentionKind::Dense(dense::Dense {}),
            Self::Linformer(linformer) => AttentionKind::Linformer(linformer.init(sizes, device)),
            Self::BigBird(big_bird) => AttentionKind::BigBird(big_bird.init()),
            Self::Performer(performer) => AttentionKind::Performer(performer.init(sizes, device)),
            Self::TreeFine(config) => AttentionKind::TreeFine(config.init(sizes, device)),
            Self::TreeCoarse(config) => AttentionKind::TreeCoarse(config.init(sizes, device)),
        }
    }
}

impl AttentionKind {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        let context = match self {
            Self::TreeFine(tree) => return tree.attend(input),
            Self::TreeCoarse(tree) => return tree.attend(input),
            Self::Dense(dense) => dense.attend(input),
            Self::Linformer(linformer) => linformer.attend(input),
            Self::BigBird(big_bird) => big_bird.attend(input),
            Self::Performer(performer) => performer.attend(input),
        };
        Attended {
            context,
            routing: None,
        }
    }

    /// What an incremental call starts with.
    #[track_caller]
    pub(super) fn cache(&self, sizes: HeadSizes, batch: usize, device: &Device) -> CacheState {
        match self {
            Self::Dense(_) => CacheState::Dense(None),
            Self::Performer(_) => CacheState::Performer(None),
            Self::Linformer(_) | Self::BigBird(_) => panic!(
                "self_attention: cache: {} does not support causal decoding",
                self.name()
            ),
            Self::TreeFine(tree) => {
                let shape = tree.router.query.shape();
                CacheState::TreeFine(FineCache::new(sizes, shape, batch, device))
            }
            Self::TreeCoarse(tree) => {
                let (width, shape) = (sizes.head_dim, tree.router.query.shape());
                let state = TreeCoarseState::new(batch, sizes.kv_heads, width, shape, device);
                CacheState::TreeCoarse(state)
            }
        }
    }

    /// As configurations name it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Dense(_) => "dense",
            Self::Linformer(_) => "linformer",
            Self::BigBird(_) => "big-bird",
            Self::Performer(_) => "performer",
            Self::TreeFine(_) => "tree-fine",
            Self::TreeCoarse(_) => "tree-coarse",
        }
    }
}
