use super::AttentionMasks;
use super::dense;
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
}

/// How queries attend.
#[derive(Module, Debug)]
pub enum Kind {
    /// Every query to every key. Takes every mask.
    Dense(dense::Dense),
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
}

/// What a kind found.
pub(super) struct Attended {
    /// `[batch, queries, heads, head_dim]`
    pub context: Tensor<4>,
}

impl AttentionKindConfig {
    pub(super) fn init(&self, sizes: HeadSizes, device: &Device) -> Kind {
        let _ = (sizes, device);
        match self {
            Self::Dense => Kind::Dense(dense::Dense {}),
        }
    }
}

impl Kind {
    #[track_caller]
    pub(super) fn attend(&self, input: Projected) -> Attended {
        match self {
            Self::Dense(dense) => dense.attend(input),
        }
    }
}
