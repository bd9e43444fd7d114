//! Modules.

mod pre_norm_attention;
mod tree_cross_attention;
mod tree_index;

pub use pre_norm_attention::{
    PreNormAttention, PreNormAttentionConfig, ProjectedQueries, QueryResidual,
};
pub use tree_cross_attention::{SearchOutput, TreeCrossAttention, TreeCrossAttentionConfig};
pub use tree_index::TreeIndex;
